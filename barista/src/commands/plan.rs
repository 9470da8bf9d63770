//! `barista plan --explain INPUTS.json`: one decision with its reasons.

use crate::failure::{Failure, Outcome};
use crate::output;
use planner::model::PlanInputs;
use std::io::{IsTerminal, Read};
use std::path::PathBuf;

/// One planning decision.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Inputs as JSON; `-` or nothing reads stdin.
    inputs: Option<PathBuf>,
    /// With its reasons: options, margin and what bound each decision. A table on a terminal, JSON in a pipe.
    #[arg(long)]
    explain: bool,
    /// For a program, on a terminal too.
    #[arg(long, conflicts_with = "text")]
    json: bool,
    /// For a person, in a pipe too.
    #[arg(long)]
    text: bool,
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
    let for_a_person = args.text || (args.explain && !args.json && std::io::stdout().is_terminal());
    if !for_a_person {
        return output::print_json(&explanation);
    }
    output::print_line(&explanation.table())
}
