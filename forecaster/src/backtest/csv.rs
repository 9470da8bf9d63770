//! Series from `timestamp,value` files.
//!
//! Purpose: a small reader that says which line is wrong and why. Timestamps are RFC 3339
//! (`2014-07-01T00:30:00Z`), `2014-07-01 00:30:00` (taken as UTC), or seconds or milliseconds since the Unix epoch;
//! a header line and further columns are allowed. The step is the smallest difference between two lines; lines that
//! are absent, or have no value, are unknown samples.
//!
//! Left out: quoting with commas inside, other separators, irregular series.

use crate::model::MAX_VALUE;
use schemas::EpochMs;
use std::path::{Path, PathBuf};

/// Most steps between the first and the last line; a stray timestamp must not fill the memory.
const MOST_STEPS: i64 = 20_000_000;
/// Integers from here on are milliseconds: as seconds they would be after the year 5000.
const FIRST_MILLISECONDS: i64 = 100_000_000_000;

/// A series on a regular grid.
#[derive(Debug, Clone, PartialEq)]
pub struct CsvSeries {
    /// What to call it: the file's name without extension.
    pub name: String,
    /// Start of the first interval.
    pub start_ms: EpochMs,
    /// Length of a step, milliseconds.
    pub interval_ms: u64,
    /// One entry a step; `None` where the file has no value.
    pub values: Vec<Option<f64>>,
}

/// A file that is no series.
#[derive(Debug, thiserror::Error)]
pub enum CsvError {
    /// The file cannot be read.
    #[error("{path} cannot be read: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A line is wrong.
    #[error("line {line}: {problem}")]
    BadLine {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no interval to be seen.
    #[error("a series needs at least two lines `timestamp,value`, found {found}")]
    TooFewLines {
        /// Lines with a sample.
        found: usize,
    },
}

struct Line {
    number: usize,
    at_ms: EpochMs,
    value: Option<f64>,
}

impl CsvSeries {
    /// Reads a file.
    ///
    /// # Errors
    /// [`CsvError`] naming the file or the line.
    pub fn read(path: &Path) -> Result<Self, CsvError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| CsvError::Unreadable { path: path.to_owned(), source })?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        CsvSeries::parse(&name, &text)
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`CsvError`] naming the line.
    pub fn parse(name: &str, text: &str) -> Result<Self, CsvError> {
        let lines = lines(text)?;
        let steps = lines.windows(2).map(|pair| pair[1].at_ms - pair[0].at_ms);
        let (Some(first), Some(interval)) = (lines.first(), steps.min()) else {
            return Err(CsvError::TooFewLines { found: lines.len() });
        };
        let mut values = Vec::with_capacity(lines.len());
        for line in &lines {
            let since = line.at_ms - first.at_ms;
            if since % interval != 0 {
                let problem = format!(
                    "{since} ms after the first line is no whole number of steps; the smallest step in the file is {interval} ms"
                );
                return Err(CsvError::BadLine { line: line.number, problem });
            }
            let index = since / interval;
            if index >= MOST_STEPS {
                let problem =
                    format!("{index} steps of {interval} ms after the first line, at most {MOST_STEPS} are read");
                return Err(CsvError::BadLine { line: line.number, problem });
            }
            values.resize(index as usize, None);
            values.push(line.value);
        }
        Ok(CsvSeries { name: name.to_owned(), start_ms: first.at_ms, interval_ms: interval as u64, values })
    }

    /// Start of the interval with this index.
    pub fn start_ms(&self, index: usize) -> EpochMs {
        self.start_ms + index as i64 * self.interval_ms as i64
    }
}

fn lines(text: &str) -> Result<Vec<Line>, CsvError> {
    let mut lines: Vec<Line> = Vec::new();
    let mut header_allowed = true;
    for (i, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = i + 1;
        if raw.trim().is_empty() {
            continue;
        }
        let bad = |problem: String| CsvError::BadLine { line: number, problem };
        let mut columns = raw.split(',').map(|column| column.trim().trim_matches('"'));
        let (Some(stamp), Some(value)) = (columns.next(), columns.next()) else {
            return Err(bad(format!("`{}` has no comma; a line is `timestamp,value`", raw.trim())));
        };
        let at_ms = match instant(stamp) {
            Some(at_ms) => at_ms,
            None if header_allowed => {
                header_allowed = false;
                continue;
            }
            None => return Err(bad(format!("`{stamp}` is no timestamp; write it as 2014-07-01T00:30:00Z"))),
        };
        header_allowed = false;
        if let Some(previous) = lines.last().filter(|previous| previous.at_ms >= at_ms) {
            return Err(bad(format!(
                "`{stamp}` is not after line {}; sort the file and drop repetitions",
                previous.number
            )));
        }
        lines.push(Line { number, at_ms, value: number_in(value).map_err(bad)? });
    }
    Ok(lines)
}

fn instant(text: &str) -> Option<EpochMs> {
    if let Ok(number) = text.parse::<i64>() {
        return if number.abs() >= FIRST_MILLISECONDS { Some(number) } else { number.checked_mul(1000) };
    }
    if let Ok(instant) = text.parse::<jiff::Timestamp>() {
        return Some(instant.as_millisecond());
    }
    let civil = text.parse::<jiff::civil::DateTime>().ok()?;
    jiff::tz::TimeZone::UTC.to_timestamp(civil).ok().map(jiff::Timestamp::as_millisecond)
}

fn number_in(text: &str) -> Result<Option<f64>, String> {
    if text.is_empty() || text.eq_ignore_ascii_case("nan") {
        return Ok(None);
    }
    let value: f64 = text.parse().map_err(|_| format!("`{text}` is no number"))?;
    if (0.0..=MAX_VALUE).contains(&value) {
        Ok(Some(value))
    } else {
        Err(format!("`{text}` is not between 0 and 1e15; a load is a count or a rate"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<CsvSeries, String> {
        CsvSeries::parse("test", text).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_timestamp_gives_the_same_series() {
        for (first, second) in [
            ("2014-07-01T00:00:00Z", "2014-07-01T00:30:00Z"),
            ("2014-07-01T03:00:00+03:00", "2014-07-01T03:30:00+03:00"),
            ("2014-07-01 00:00:00", "2014-07-01 00:30:00"),
            ("2014-07-01T00:00", "2014-07-01T00:30"),
            ("1404172800", "1404174600"),
            ("1404172800000", "1404174600000"),
        ] {
            let series = parse(&format!("timestamp,value\n{first},1\n{second},2.5\n")).unwrap();
            assert_eq!((series.start_ms, series.interval_ms), (1_404_172_800_000, 1_800_000), "{first}");
            assert_eq!(series.values, [Some(1.0), Some(2.5)]);
        }
    }

    #[test]
    fn gaps_and_empty_values_are_unknown() {
        let series = parse("0,1\n60,\n120,3\r\n\n300,6,more\n").unwrap();
        assert_eq!(series.values, [Some(1.0), None, Some(3.0), None, None, Some(6.0)]);
        assert_eq!(series.start_ms(5), 300_000);
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, expected) in [
            ("timestamp,value\n0,1\nx,2\n", "line 3: `x` is no timestamp"),
            ("time,value\ntime,value\n", "line 2: `time` is no timestamp"),
            ("0,1\n60,two\n", "line 2: `two` is no number"),
            ("0,1\n60,-2\n", "line 2: `-2` is not between 0"),
            ("0,1\n60,inf\n", "line 2: `inf` is not between 0"),
            ("0,1\n60\n", "line 2: `60` has no comma"),
            ("0,1\n60,1\n60,2\n", "line 3: `60` is not after line 2"),
            ("0,1\n60,1\n150,2\n", "line 3: 150000 ms after the first line is no whole number of steps"),
            ("0,1\n0.001,1\n", "line 2: `0.001` is no timestamp"),
            ("0,1\n1,1\n99999999999,1\n", "line 3: 99999999999 steps"),
            ("timestamp,value\n", "at least two lines `timestamp,value`, found 0"),
            ("0,1\n", "found 1"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn an_absent_file_is_named() {
        let error = CsvSeries::read(Path::new("no/such/file.csv")).unwrap_err().to_string();
        assert!(error.contains("no/such/file.csv"), "{error}");
    }
}
