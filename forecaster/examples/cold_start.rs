//! The first two days of a series, against what needs no learning: the last value, exponentially weighted means and
//! the seasonal naive forecast (of the day; the last value before there is a day).
//!
//! ```text
//! cargo run --release -p forecaster --example cold_start -- ../shared/data/load [--seeds N] [--write FOLDER]
//! ```
//!
//! Mean absolute error over the horizons 1, 2, 6 and 12 and all targets of the first two days: the same for all, so
//! ratios of it are ratios of MASE. Recorded series first, then synthetic ones (`tests/support/synthetic.rs`), each
//! with three seeds. With `--seeds` the mean and the worst ratio of the synthetic ones from a minute up over so many other
//! seeds. With `--write` the synthetic series are written as CSV files instead.

#[path = "../tests/support/cold.rs"]
mod cold;
#[path = "../tests/support/synthetic.rs"]
mod synthetic;

use forecaster::backtest::CsvSeries;
use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

const SEEDS: [u64; 3] = [1, 2, 3];
const FIRST_OTHER_SEED: u64 = 100;
/// Days of a written series.
const DAYS: usize = 56;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let mut output = std::io::stdout().lock();
    let mut files: Vec<PathBuf> = Vec::new();
    while let Some(word) = words.next() {
        if word == "--seeds" {
            return over_seeds(words.next().ok_or("--seeds needs a number")?.parse()?, &mut output);
        }
        if word == "--write" {
            return write(Path::new(&words.next().ok_or("--write needs a folder")?));
        }
        files.extend(std::fs::read_dir(&word)?.filter_map(Result::ok).map(|file| file.path()));
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    files.sort();
    writeln!(
        output,
        "| series | ours / best | last value | EWMA .5 | .2 | .05 | seasonal naive |\n|---|---|---|---|---|---|---|"
    )?;
    let mut row = |name: &str, interval_ms: u64, values: &[f64]| {
        let errors = cold::first_days(interval_ms, values);
        let cells: Vec<String> = errors.naive.iter().map(|error| format!("{error:.3}")).collect();
        writeln!(output, "| {name} | {:.3} | {} |", errors.ratio(), cells.join(" | "))
    };
    for path in files {
        let series = CsvSeries::read(&path)?;
        let values: Vec<f64> = series.values.iter().map(|value| value.unwrap_or(f64::NAN)).collect();
        row(&series.name, series.interval_ms, &values)?;
    }
    for kind in synthetic::KINDS {
        for seed in SEEDS {
            let values = kind.values(seed, 2 * kind.day_steps());
            row(&format!("{} {seed}", kind.name), kind.interval_ms, &values)?;
        }
    }
    Ok(())
}

fn over_seeds(seeds: u64, output: &mut impl std::io::Write) -> Result<(), Box<dyn Error>> {
    writeln!(output, "| series | mean of ours / best | worst |\n|---|---|---|")?;
    for kind in synthetic::KINDS.iter().filter(|kind| kind.interval_ms >= 60_000) {
        let ratio = |seed| cold::first_days(kind.interval_ms, &kind.values(seed, 2 * kind.day_steps())).ratio();
        let ratios: Vec<f64> = (FIRST_OTHER_SEED..FIRST_OTHER_SEED + seeds.max(1)).map(ratio).collect();
        let mean = ratios.iter().sum::<f64>() / ratios.len() as f64;
        let worst = ratios.iter().copied().fold(0.0, f64::max);
        writeln!(output, "| {} | {mean:.3} | {worst:.3} |", kind.name)?;
    }
    Ok(())
}

fn write(folder: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(folder)?;
    for kind in synthetic::KINDS.iter().filter(|kind| kind.interval_ms >= 60_000) {
        let mut text = "timestamp,value\n".to_owned();
        for (step, value) in kind.values(1, DAYS * kind.day_steps()).into_iter().enumerate() {
            let seconds = step as u64 * kind.interval_ms / 1000;
            let (day, minute) = (seconds / 86_400, seconds % 86_400 / 60);
            // 1 January 2024 was a Monday.
            let (month, day) = if day < 31 {
                (1, day + 1)
            } else if day < 60 {
                (2, day - 30)
            } else {
                (3, day - 59)
            };
            let _ = writeln!(text, "2024-{month:02}-{day:02} {:02}:{:02}:00,{value}", minute / 60, minute % 60);
        }
        std::fs::write(folder.join(format!("{}.csv", kind.name)), text)?;
    }
    Ok(())
}
