//! `cargo run --release -p sim --example simulate -- SCENARIO.toml [--policy P] [--seeds N] [--days D] [--json|--html FILE]`
//!
//! The simulator without the `barista` binary, and over several seeds: with `--seeds N`, one JSON report a line for the
//! seeds from 1 to N, which `bench/peers/planning_table.py` turns into the tables of `docs/benchmarks/planning.md`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line")]

use sim::simulate::{Selection, Simulation};
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mut file, mut policies, mut seeds, mut days) = (None, "all".to_owned(), None, None);
    let (mut json, mut html) = (false, None);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--policy" => policies = value()?,
            "--seeds" => seeds = Some(value()?.parse::<u64>()?),
            "--days" => days = Some(value()?.parse::<f64>()?),
            "--html" => html = Some(PathBuf::from(value()?)),
            "--json" => json = true,
            _ => file = Some(PathBuf::from(arg)),
        }
    }
    let file = file.ok_or("which scenario? e.g. sim/scenarios/flash-crowds.toml")?;
    let data = std::env::var_os("BARISTA_DATA").map(PathBuf::from);
    let mut simulation = Simulation::new(&file, data)?;
    if let Some(days) = days {
        simulation.scenario().trace.days = days;
    }
    let selection = Selection::parse(&policies)?;
    let seeds: Vec<Option<u64>> = seeds.map_or(vec![None], |n| (1..=n).map(Some).collect());
    for seed in seeds {
        let report = simulation.run(&selection, seed, |what| eprintln!("{what}"))?;
        if let Some(path) = &html {
            std::fs::write(path, report.html())?;
        }
        if json { println!("{}", report.json()) } else { println!("{}", report.table()) }
    }
    Ok(())
}
