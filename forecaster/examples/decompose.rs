//! Components of the decomposition of `barista2019`, as CSV:
//!
//! ```text
//! cargo run --release -p forecaster --example decompose -- SERIES.csv KNOWN AHEAD
//! ```
//!
//! It is fitted to the first KNOWN steps; rows are of these and the AHEAD next.

use forecaster::CalendarConfig;
use forecaster::backtest::{CsvSeries, decompose};
use std::error::Error;
use std::io::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, known, ahead] = &words[..] else { return Err("usage: decompose SERIES.csv KNOWN AHEAD".into()) };
    let series = CsvSeries::read(Path::new(path))?;
    let components = decompose(&series, known.parse()?, ahead.parse()?, &CalendarConfig::default());
    let mut output = std::io::BufWriter::new(std::io::stdout().lock());
    writeln!(output, "at_ms,trend,day,week,holiday,mean,lower,upper")?;
    for c in components.ok_or("too few samples")? {
        writeln!(
            output,
            "{},{},{},{},{},{},{},{}",
            c.at_ms, c.trend, c.day, c.week, c.holiday, c.mean, c.lower, c.upper
        )?;
    }
    Ok(output.flush()?)
}
