//! `cargo run --release -p sim --example simulate -- SCENARIO.toml [--policy P] [--seeds N] [--days D] [--json|--html FILE]`
//!
//! The simulator without the `barista` binary, and over several seeds: with `--seeds N`, one JSON report a line for the
//! seeds from 1 to N, which `bench/peers/planning_table.py` turns into the tables of `docs/benchmarks/planning.md`. With
//! `--out FILE` reports are added to a file, and seeds that it holds already are left out, so that a run that was cut
//! short goes on where it was. `--ablation zero-setup|fine-nodes` takes a cause of cost away. `--from-profile FILE.jsonl`
//! puts recorded `workload.observed` in the place of the scenario's trace.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

use serde_json::Value;
use sim::simulate::{Selection, Simulation};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Seeds whose reports a file holds.
fn known(file: &Path) -> Result<Vec<u64>, Box<dyn std::error::Error>> {
    if !file.exists() {
        return Ok(Vec::new());
    }
    let mut seeds = Vec::new();
    for line in std::fs::read_to_string(file)?.lines() {
        let report: Value = serde_json::from_str(line)?;
        seeds.extend(report["seed"].as_u64());
    }
    Ok(seeds)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut file, mut policies, mut seeds, mut days) = (None, "all".to_owned(), None, None);
    let (mut json, mut html, mut out, mut ablation, mut recorded) = (false, None, None, None, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--policy" => policies = value()?,
            "--seeds" => seeds = Some(value()?.parse::<u64>()?),
            "--days" => days = Some(value()?.parse::<f64>()?),
            "--html" => html = Some(PathBuf::from(value()?)),
            "--out" => out = Some(PathBuf::from(value()?)),
            "--ablation" => ablation = Some(value()?),
            "--from-profile" => recorded = Some(PathBuf::from(value()?)),
            "--json" => json = true,
            _ => file = Some(PathBuf::from(arg)),
        }
    }
    let file = file.ok_or("which scenario? e.g. sim/scenarios/flash-crowds.toml")?;
    let data = std::env::var_os("BARISTA_DATA").map(PathBuf::from);
    let mut simulation = Simulation::new(&file, data)?;
    if let Some(file) = &recorded {
        simulation.replay(file)?;
    }
    if let Some(days) = days {
        simulation.scenario().trace.days = days;
    }
    if let Some(what) = &ablation {
        simulation.scenario().ablate(what)?;
    }
    let selection = Selection::parse(&policies)?;
    let present = out.as_deref().map_or(Ok(Vec::new()), known)?;
    let seeds: Vec<Option<u64>> = seeds.map_or(vec![None], |n| (1..=n).map(Some).collect());
    for seed in seeds.into_iter().filter(|s| s.is_none_or(|s| !present.contains(&s))) {
        let report = simulation.run(&selection, seed, |what| eprintln!("{what}"))?;
        if let Some(path) = &html {
            std::fs::write(path, report.html())?;
        }
        if let Some(path) = &out {
            let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path)?;
            writeln!(file, "{}", report.json())?;
        } else if json {
            println!("{}", report.json())
        } else {
            println!("{}", report.table())
        }
    }
    Ok(())
}
