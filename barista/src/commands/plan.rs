//! `barista plan --explain INPUTS.json`: one decision with its reasons.

use crate::failure::{Failure, Outcome};
use crate::output;
use planner::model::PlanInputs;
use std::io::Read;
use std::path::PathBuf;

/// One planning decision.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Inputs as JSON; `-` or nothing reads stdin.
    inputs: Option<PathBuf>,
    /// For a person: options, margin and what bound each decision; without it, JSON.
    #[arg(long)]
    explain: bool,
    /// For a program.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args) -> Outcome {
    let (text, from) = match args.inputs.filter(|p| p.as_os_str() != "-") {
        Some(path) => {
            let text =
                std::fs::read_to_string(&path).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
            (text, path.display().to_string())
        }
        None => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            (text, "stdin".to_owned())
        }
    };
    let inputs: PlanInputs = serde_json::from_str(&text).map_err(|e| Failure::Usage(format!("{from}: {e}")))?;
    let problems = inputs.problems();
    if !problems.is_empty() {
        return Err(Failure::Usage(format!("{from}: {}", problems.join("; "))));
    }
    let explanation = planner::explain::explain(&inputs);
    if args.json || !args.explain {
        return output::print_json(&explanation);
    }
    output::print_line(&explanation.table())
}
