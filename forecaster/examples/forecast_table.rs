//! Scores of the forecaster on every series of a folder: the numbers of `docs/benchmarks/forecast.md`.
//!
//! ```text
//! cargo run --release -p forecaster --example forecast_table -- ../shared/data/load [--model NAME] [--until SHARE] [--windows 1,6,60]
//!     [--out FOLDER] [--html FOLDER]
//! ```
//!
//! With `--windows` the quantiles of the highest value of so many steps are scored too, with direct horizons up to the
//! longest, at the levels 0.5, 0.95 and 0.99. With `--out` every scored forecast is written as `FOLDER/<series>/<model>.csv`, in the form that the peers under
//! `bench/peers/` write too, for `bench/peers/table.py` to compare. With `--html` every series gets its page.

use forecaster::ModelConfig;
use forecaster::backtest::{self, CsvSeries, Options};
use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};

struct Arguments {
    inputs: Vec<PathBuf>,
    options: Options,
    /// Share of each series that is used at all: settings are chosen on the first part.
    until: f64,
    out: Option<PathBuf>,
    html: Option<PathBuf>,
}

fn arguments() -> Result<Arguments, Box<dyn Error>> {
    let mut parsed = Arguments { inputs: Vec::new(), options: Options::default(), until: 1.0, out: None, html: None };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            "--model" => parsed.options.method = value()?.parse()?,
            "--train" => parsed.options.train = value()?.parse()?,
            "--windows" => {
                parsed.options.levels = vec![0.5, 0.95, 0.99];
                parsed.options.windows = value()?.split(',').map(str::parse).collect::<Result<_, _>>()?;
                let reach = parsed.options.windows.last().copied().unwrap_or(0);
                parsed.options.horizons = ModelConfig::new(60_000).with_reach(reach).horizons;
            }
            "--until" => parsed.until = value()?.parse()?,
            "--out" => parsed.out = Some(value()?.into()),
            "--html" => parsed.html = Some(value()?.into()),
            path if Path::new(path).is_dir() => {
                let files = std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>()?;
                parsed.inputs.extend(files.into_iter().map(|file| file.path()));
            }
            path => parsed.inputs.push(path.into()),
        }
    }
    parsed.inputs.retain(|path| path.extension().is_some_and(|extension| extension == "csv"));
    parsed.inputs.sort();
    Ok(parsed)
}

fn main() -> Result<(), Box<dyn Error>> {
    let Arguments { inputs, options, until, out, html } = arguments()?;
    let mut output = std::io::stdout().lock();
    for path in inputs {
        let mut series = CsvSeries::read(&path)?;
        series.values.truncate((series.values.len() as f64 * until) as usize);
        let detail = backtest::run_in_detail(&series, &options)?;
        let report = &detail.report;
        let mase: Vec<String> =
            report.horizons.iter().map(|row| row.mase.map_or("-".to_owned(), |mase| format!("{mase:.3}"))).collect();
        let pooled = |level: &str| {
            let shares = report.horizons.iter().filter_map(|row| row.coverage.get(level));
            100.0 * shares.sum::<f64>() / report.horizons.len() as f64
        };
        let pinball = |level: &str| {
            let losses = report.horizons.iter().filter_map(|row| row.pinball.get(level).copied().flatten());
            losses.sum::<f64>() / report.horizons.len() as f64
        };
        writeln!(
            output,
            "{:<13} {} mean MASE {:.4} [{}] pin95 {:.3} pin99 {:.3} cov95 {:.2} cov99 {:.2} {:.1} us/step {:.1} us background {} KiB",
            report.series,
            report.model,
            report.mean_mase().unwrap_or(f64::NAN),
            mase.join(" "),
            pinball("0.95"),
            pinball("0.99"),
            pooled("0.95"),
            pooled("0.99"),
            report.us_per_step,
            report.background_us_per_step,
            report.bytes_per_series.div_ceil(1024),
        )?;
        for peak in &report.peaks {
            write!(output, "  highest of {:>3} steps, {} windows:", peak.steps, peak.n)?;
            for (level, share) in &peak.coverage {
                let [low, high] = peak.coverage_interval[level].map(|share| 100.0 * share);
                write!(
                    output,
                    "  {level}: pinball {:.3} (of steps {:.3}) coverage {:.2} ({low:.1}-{high:.1}; of steps {:.2})",
                    peak.pinball[level].unwrap_or(f64::NAN),
                    peak.steps_pinball[level].unwrap_or(f64::NAN),
                    100.0 * share,
                    100.0 * peak.steps_coverage[level],
                )?;
            }
            writeln!(output)?;
        }
        if let Some(html) = &html {
            std::fs::create_dir_all(html)?;
            std::fs::write(html.join(format!("{}.html", report.series)), backtest::page(&series, &options, &detail))?;
        }
        if let Some(out) = &out {
            let folder = out.join(&report.series);
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(format!("{}.csv", report.model)), detail.to_csv())?;
            let times = serde_json::json!({
                "step_us": report.us_per_step,
                "background_us": report.background_us_per_step,
                "bytes": report.bytes_per_series,
            });
            std::fs::write(folder.join(format!("{}.json", report.model)), times.to_string())?;
        }
    }
    Ok(())
}
