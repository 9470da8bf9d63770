//! `barista simulate SCENARIO.toml`: policies side by side on a trace.

use crate::failure::{Failure, Outcome};
use crate::output;
use sim::simulate::{Error, Selection, Simulation};
use std::path::PathBuf;

/// Policies side by side on a trace.
///
/// Example: barista simulate sim/scenarios/flash-crowds.toml --policy ours,hpa-60 --html report.html
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scenario file; traces and profiles are looked for beside it, then in `--data`.
    scenario: PathBuf,
    /// `all`, or names with commas: ours, oracle, barista2019, hpa-60, kpa, keda, seldon, mark, static-peak and more.
    /// `+shed` after a name asks for deadline shedding alone, `-shed` for none, neither for both.
    #[arg(long, default_value = "all")]
    policy: String,
    /// Another seed than the scenario's.
    #[arg(long)]
    seed: Option<u64>,
    /// Another length than the scenario's, days.
    #[arg(long)]
    days: Option<f64>,
    /// Folder with traces and profiles.
    #[arg(long, env = "BARISTA_DATA")]
    data: Option<PathBuf>,
    /// Recorded load instead of the scenario's trace: what would last week have cost, with which SLO? A file that
    /// `barista tail workload.observed --from beginning --no-follow > FILE.jsonl` has written. Services of the scenario
    /// that were recorded have their own load; if none was, all that was recorded is split by `share`. The first third
    /// at most is learned from and not simulated.
    #[arg(long, value_name = "FILE.jsonl")]
    from_profile: Option<PathBuf>,
    /// For a program.
    #[arg(long)]
    json: bool,
    /// Write a page with plots here.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: Args) -> Outcome {
    let wrong = |e: Error| Failure::Usage(e.to_string());
    let selection = Selection::parse(&args.policy).map_err(wrong)?;
    let mut simulation = Simulation::new(&args.scenario, args.data).map_err(wrong)?;
    if let Some(file) = &args.from_profile {
        simulation.replay(file).map_err(wrong)?;
    }
    if let Some(days) = args.days {
        simulation.scenario().trace.days = days;
    }
    let said = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let progress = |what: &str| {
        if said {
            use std::io::Write;
            // Progress is a courtesy: a closed terminal is no failure.
            let _ = write!(std::io::stderr(), "\r\x1b[K{what}");
        }
    };
    let report = simulation.run(&selection, args.seed, progress).map_err(wrong)?;
    progress("");
    if let Some(path) = args.html {
        std::fs::write(&path, report.html()).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
    }
    if args.json { output::print_json(&report.json()) } else { output::print_line(&report.table()) }
}
