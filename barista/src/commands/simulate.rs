//! `barista simulate`: not available yet; says so.

use crate::failure::{Outcome, usage};
use std::path::PathBuf;

/// Policies side by side on a trace.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Scenario file.
    scenario: PathBuf,
}

/// Refuses: the simulator is a later step, and a made-up answer would be worse than none.
pub fn run(args: Args) -> Outcome {
    usage(format!(
        "cannot simulate {}: this version has no simulator yet; `barista plan --explain` shows single decisions",
        args.scenario.display()
    ))
}
