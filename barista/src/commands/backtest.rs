//! `barista backtest SERIES.csv`: scores of the forecaster on recorded load.

use crate::failure::{Failure, Outcome};
use crate::output;
use forecaster::CalendarConfig;
use forecaster::backtest::{self, CsvError, CsvSeries, Method, Options};
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
    /// Levels of the quantiles; with one below 0.5 the page's band has two sides.
    #[arg(long, value_delimiter = ',', default_value = "0.5,0.9,0.95,0.975,0.99")]
    levels: Vec<f64>,
    /// Score the highest value of the next so many steps too; none beyond the last horizon.
    #[arg(long, value_delimiter = ',')]
    windows: Vec<u32>,
    /// Time zone whose wall clock the load follows, as `Europe/Helsinki`.
    #[arg(long, default_value = "UTC")]
    timezone: String,
    /// Days that are like Sundays, as `2014-07-04`.
    #[arg(long, value_delimiter = ',')]
    holidays: Vec<String>,
    /// For a program.
    #[arg(long)]
    json: bool,
    /// Write a page with the series, the forecasts and the errors here.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// Runs it.
pub fn run(args: Args) -> Outcome {
    let bad = |e: String| Failure::Usage(format!("{}: {e}", args.series.display()));
    let series = CsvSeries::read(&args.series).map_err(|e| match e {
        // It names the file itself.
        CsvError::Unreadable { .. } => Failure::Usage(e.to_string()),
        _ => bad(e.to_string()),
    })?;
    let calendar = CalendarConfig { timezone: args.timezone, holidays: args.holidays, ..CalendarConfig::default() };
    let options = Options {
        horizons: args.horizon,
        train: args.train,
        levels: args.levels,
        windows: args.windows,
        method: args.model,
        calendar,
    };
    let said = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let progress = |done: usize| {
        if said && done.is_multiple_of(PROGRESS_ROWS) {
            use std::io::Write;
            // Progress is a courtesy: a closed terminal is no failure.
            let _ = write!(
                std::io::stderr(),
                "\r\x1b[K{} % of {} rows",
                100 * done / series.values.len(),
                series.values.len()
            );
        }
    };
    if let Some(path) = &args.html {
        // Not after minutes of work.
        std::fs::write(path, "").map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
    }
    let detail = backtest::run_with(&series, &options, progress).map_err(|e| bad(e.to_string()))?;
    if said {
        use std::io::Write;
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    if let Some(path) = &args.html {
        let page = backtest::page(&series, &options, &detail);
        std::fs::write(path, page).map_err(|e| Failure::Usage(format!("{}: {e}", path.display())))?;
    }
    let report = detail.report;
    if args.json { output::print_json(&report) } else { output::print_line(&report.table()) }
}

const PROGRESS_ROWS: usize = 1000;
