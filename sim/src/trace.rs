//! Recorded load: `timestamp,value` on a regular grid, cut, rescaled, and turned into arrivals.
//!
//! `value` is the number of arrivals in the interval that begins at `timestamp`.

use jiff::Timestamp;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Poisson};
use schemas::EpochMs;

/// What is wrong with a trace, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line cannot be read.
    #[error("line {line}: {problem}")]
    Line {
        /// Number of the line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// Fewer than two samples: no interval can be told.
    #[error("{0} samples; a trace needs at least 2")]
    TooShort(usize),
    /// A cut leaves nothing.
    #[error("no sample in the cut that was asked for")]
    EmptyCut,
    /// A rescale of a trace without load.
    #[error("the 99.9th percentile of the trace is 0, it cannot be scaled to a peak")]
    NoLoad,
}

/// Counts per interval.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// Begin of the first interval.
    pub start_ms: EpochMs,
    /// Length of each interval.
    pub interval_ms: i64,
    /// Arrivals in each interval; not negative, not always whole after a rescale.
    pub counts: Vec<f64>,
}

impl Trace {
    /// Reads `timestamp,value` lines; a first line that is no sample is taken as a header.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut samples: Vec<(usize, EpochMs, f64)> = Vec::new();
        for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
            match parse_line(line) {
                Ok((at, value)) => samples.push((i + 1, at, value)),
                Err(_) if i == 0 => {}
                Err(problem) => return Err(Error::Line { line: i + 1, problem }),
            }
        }
        let [(_, first, _), (_, second, _), ..] = samples[..] else { return Err(Error::TooShort(samples.len())) };
        let interval_ms = second - first;
        for (n, &(line, at, _)) in samples.iter().enumerate() {
            let expected = first + n as i64 * interval_ms;
            if interval_ms <= 0 || at != expected {
                let problem = format!(
                    "timestamp is {} s off the grid of {} s that the first two lines set",
                    (at - expected) / 1000,
                    interval_ms / 1000
                );
                return Err(Error::Line { line, problem });
            }
        }
        Ok(Trace { start_ms: first, interval_ms, counts: samples.into_iter().map(|s| s.2).collect() })
    }

    /// The part of `[from_ms, from_ms + days)`.
    pub fn cut(&self, from_ms: EpochMs, days: f64) -> Result<Self, Error> {
        // A float too large or NaN becomes the nearest i64 or 0.
        let to_ms = from_ms.saturating_add((days * 86_400_000.0) as i64);
        let at = |i: usize| self.start_ms + i as i64 * self.interval_ms;
        let kept: Vec<usize> = (0..self.counts.len()).filter(|&i| at(i) >= from_ms && at(i) < to_ms).collect();
        let first = *kept.first().ok_or(Error::EmptyCut)?;
        Ok(Trace {
            start_ms: at(first),
            interval_ms: self.interval_ms,
            counts: kept.into_iter().map(|i| self.counts[i]).collect(),
        })
    }

    /// Rescales so that the 99.9th percentile (nearest rank) of the rate is `peak_rps`.
    pub fn scale_to_peak(&self, peak_rps: f64) -> Result<Self, Error> {
        let mut sorted = self.counts.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = ((sorted.len() as f64 * 0.999).ceil() as usize).clamp(1, sorted.len());
        let peak = sorted[rank - 1];
        if peak <= 0.0 {
            return Err(Error::NoLoad);
        }
        let factor = peak_rps * self.interval_ms as f64 / 1000.0 / peak;
        Ok(Trace { counts: self.counts.iter().map(|c| c * factor).collect(), ..self.clone() })
    }

    /// Arrival times, ascending: Poisson counts, spread evenly at random within each interval.
    pub fn arrivals(&self, seed: u64) -> impl Iterator<Item = EpochMs> + '_ {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        self.counts.iter().enumerate().flat_map(move |(i, &mean)| {
            let begin = self.start_ms + i as i64 * self.interval_ms;
            let n = poisson(&mut rng, mean);
            let mut times: Vec<EpochMs> = (0..n).map(|_| begin + rng.random_range(0..self.interval_ms)).collect();
            times.sort_unstable();
            times
        })
    }
}

/// A Poisson count; 0 for a mean that is not positive and finite.
pub(crate) fn poisson(rng: &mut ChaCha8Rng, mean: f64) -> u64 {
    Poisson::new(mean).map_or(0, |p: Poisson<f64>| p.sample(rng) as u64)
}

fn parse_line(line: &str) -> Result<(EpochMs, f64), String> {
    let (timestamp, value) = line.split_once(',').ok_or("expected `timestamp,value`")?;
    let value: f64 = value.trim().parse().map_err(|_| format!("`{}` is not a number", value.trim()))?;
    if !(value.is_finite() && value >= 0.0) {
        return Err(format!("value {value} is not a count"));
    }
    let at = instant(timestamp.trim()).ok_or_else(|| format!("`{}` is not a timestamp", timestamp.trim()))?;
    Ok((at.as_millisecond(), value))
}

/// `2014-07-01T00:30:00Z`, with an offset or without one (then UTC), with a space instead of the `T`.
fn instant(text: &str) -> Option<Timestamp> {
    let utc = || jiff::tz::TimeZone::UTC.to_timestamp(text.parse().ok()?).ok();
    text.parse().ok().or_else(utc)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_usual_forms() {
        let a = Trace::parse("timestamp,value\n2014-07-01T00:00:00Z,5\n2014-07-01T00:30:00Z,7\n").unwrap();
        let b = Trace::parse("2014-07-01 00:00:00,5\n2014-07-01 00:30:00,7").unwrap();
        assert_eq!(a, b);
        let c = Trace::parse("2014-07-01 00:00:00Z, 5\n2014-06-30T21:30:00-03:00,7").unwrap();
        assert_eq!(a, c);
        assert_eq!((a.interval_ms, a.counts.as_slice()), (1_800_000, [5.0, 7.0].as_slice()));
    }

    #[test]
    fn faults_name_their_line() {
        let gap = Trace::parse("2014-07-01T00:00:00Z,5\n2014-07-01T00:30:00Z,7\n2014-07-01T01:30:00Z,7").unwrap_err();
        assert!(gap.to_string().starts_with("line 3: timestamp is 1800 s off"), "{gap}");
        let word = Trace::parse("2014-07-01T00:00:00Z,5\n2014-07-01T00:30:00Z,many").unwrap_err();
        assert_eq!(word.to_string(), "line 2: `many` is not a number");
        assert_eq!(Trace::parse("timestamp,value\n"), Err(Error::TooShort(0)));
    }

    #[test]
    fn cut_and_scale() {
        let counts: Vec<f64> = (0..1000).map(f64::from).collect();
        let trace = Trace { start_ms: 0, interval_ms: 60_000, counts };
        let scaled = trace.scale_to_peak(10.0).unwrap();
        assert!((scaled.counts[998] - 600.0).abs() < 1e-9, "99.9 % of 1,000 samples is the 999th");
        let cut = trace.cut(120_000, 1.0 / 1440.0).unwrap();
        assert_eq!((cut.start_ms, cut.counts), (120_000, vec![2.0]));
        assert_eq!(trace.cut(i64::MAX / 2, 1.0), Err(Error::EmptyCut));
    }

    proptest! {
        #[test]
        fn arrivals_are_sorted_seeded_and_about_as_many(seed in any::<u64>(), mean in 0.0f64..50.0) {
            let trace = Trace { start_ms: 7_000, interval_ms: 1_000, counts: vec![mean; 200] };
            let times: Vec<EpochMs> = trace.arrivals(seed).collect();
            prop_assert!(times.is_sorted());
            prop_assert_eq!(&times, &trace.arrivals(seed).collect::<Vec<_>>());
            let expected = mean * 200.0;
            prop_assert!((times.len() as f64 - expected).abs() <= 8.0 * expected.sqrt() + 1.0);
        }
    }
}
