//! `barista backtest SERIES.csv`: scores of the forecaster on recorded load.

use crate::failure::{Failure, Outcome};
use crate::output;
use forecaster::backtest::{self, CsvSeries, Method, Options};
use std::path::PathBuf;

/// Scores the forecaster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// `timestamp,value` on a regular grid.
    series: PathBuf,
    /// Steps ahead.
    #[arg(long, value_delimiter = ',', default_value = "1,2,6,12")]
    horizon: Vec<u32>,
    /// Share of the series that is not scored.
    #[arg(long, default_value_t = 0.65)]
    train: f64,
    /// What to score: `ensemble`, or one expert by its name.
    #[arg(long, default_value = "ensemble")]
    model: Method,
    /// For a program.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub fn run(args: Args) -> Outcome {
    let bad = |e: String| Failure::Usage(format!("{}: {e}", args.series.display()));
    let series = CsvSeries::read(&args.series).map_err(|e| bad(e.to_string()))?;
    let options = Options { horizons: args.horizon, train: args.train, method: args.model, ..Options::default() };
    let report = backtest::run(&series, &options).map_err(|e| bad(e.to_string()))?;
    if args.json { output::print_json(&report) } else { output::print_line(&report.table()) }
}
