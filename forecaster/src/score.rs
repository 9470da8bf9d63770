//! How good the one-step forecast has been lately: what a reader of a forecast message may rely on.
//!
//! Invariants: every number is a running mean over known samples with a stated memory; `None` before the first.

use serde::{Deserialize, Serialize};

/// Samples that the coverage remembers; at the 0.99 level a hundred would say nothing.
const COVERAGE_MEMORY: f64 = 1000.0;
/// Fewest samples that the errors remember; otherwise a day.
const LEAST_MEMORY: f64 = 60.0;

/// Recent errors of the one-step forecast, in the series' unit.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentError {
    /// Mean absolute error of the median over about a day.
    pub mae: Option<f64>,
    /// That error over the one of the seasonal naive forecast (a day before) on the same samples.
    pub mase: Option<f64>,
    /// Share of samples at or below each quantile, over about a thousand samples; empty before the first.
    pub coverage: Vec<f64>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct RunningMean {
    mean: f64,
    samples: u64,
}

impl RunningMean {
    fn add(&mut self, value: f64, memory: f64) {
        self.samples += 1;
        self.mean += (value - self.mean) / (self.samples as f64).min(memory);
    }

    fn get(&self) -> Option<f64> {
        (self.samples > 0).then_some(self.mean)
    }

    fn sound(&self) -> bool {
        self.mean.is_finite() && self.mean >= 0.0
    }
}

/// Keeps [`RecentError`] up to date.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Score {
    error: RunningMean,
    /// On the samples that have a seasonal naive forecast.
    paired_error: RunningMean,
    naive_error: RunningMean,
    below: Vec<RunningMean>,
}

impl Score {
    pub(crate) fn new(levels: usize) -> Self {
        Score {
            error: RunningMean::default(),
            paired_error: RunningMean::default(),
            naive_error: RunningMean::default(),
            below: vec![RunningMean::default(); levels],
        }
    }

    pub(crate) fn fits(&self, levels: usize) -> bool {
        self.below.len() == levels
            && [&self.error, &self.paired_error, &self.naive_error]
                .into_iter()
                .chain(&self.below)
                .all(RunningMean::sound)
    }

    /// A one-step forecast met its value.
    pub(crate) fn add(&mut self, value: f64, median: f64, quantiles: &[f64], naive: Option<f64>, day_steps: u64) {
        let memory = (day_steps as f64).max(LEAST_MEMORY);
        let error = (value - median).abs();
        self.error.add(error, memory);
        if let Some(naive) = naive {
            self.paired_error.add(error, memory);
            self.naive_error.add((value - naive).abs(), memory);
        }
        for (below, quantile) in self.below.iter_mut().zip(quantiles) {
            below.add(if value <= *quantile { 1.0 } else { 0.0 }, COVERAGE_MEMORY);
        }
    }

    pub(crate) fn recent(&self) -> RecentError {
        let mase = match (self.paired_error.get(), self.naive_error.get()) {
            (Some(ours), Some(naive)) if naive > 0.0 => Some(ours / naive),
            _ => None,
        };
        RecentError { mae: self.error.get(), mase, coverage: self.below.iter().filter_map(RunningMean::get).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_before_the_first_sample() {
        assert_eq!(Score::new(2).recent(), RecentError::default());
    }

    #[test]
    fn mase_compares_on_the_samples_both_have() {
        let mut score = Score::new(1);
        score.add(10.0, 0.0, &[9.0], None, 24);
        score.add(10.0, 9.0, &[11.0], Some(8.0), 24);
        let recent = score.recent();
        assert_eq!((recent.mae, recent.mase), (Some(5.5), Some(0.5)));
        assert_eq!(recent.coverage, [0.5]);
    }

    #[test]
    fn a_perfect_naive_gives_no_ratio() {
        let mut score = Score::new(0);
        score.add(1.0, 2.0, &[], Some(1.0), 24);
        assert_eq!(score.recent().mase, None);
    }
}
