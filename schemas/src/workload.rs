//! `workload.observed` and `workload.forecast`: the load of each prediction service.

use crate::EpochMs;
use crate::message::Message;
use crate::tag::schema_tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

schema_tag!(/// `workload.observed.v1`
    WorkloadObservedTag = "workload.observed.v1");
schema_tag!(/// `workload.forecast.v1`
    WorkloadForecastTag = "workload.forecast.v1");

/// Arrivals of one service in one interval, by append time, closed by the wall clock; zeros are published too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadObserved {
    /// Always `workload.observed.v1`.
    pub schema: WorkloadObservedTag,
    /// Prediction service.
    pub service: String,
    /// Start of the interval, inclusive; a multiple of `interval_ms`.
    pub start_ms: EpochMs,
    /// Length of the interval.
    pub interval_ms: u64,
    /// Arrivals in all: over Kafka and straight at gateways.
    pub arrivals: u64,
    /// Those that came straight to a gateway, from `executor.status`.
    #[serde(default)]
    pub direct_arrivals: u64,
    /// True for history that no application sent (a demo's warm-up).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
}

impl WorkloadObserved {
    /// Mean arrival rate over the interval, requests per second.
    pub fn rate_rps(&self) -> f64 {
        self.arrivals as f64 * 1000.0 / self.interval_ms.max(1) as f64
    }
}

impl Message for WorkloadObserved {
    const SCHEMA: &'static str = WorkloadObservedTag::NAME;

    fn key(&self) -> String {
        self.service.clone()
    }
}

/// Forecast of one service's request rate.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadForecast {
    /// Always `workload.forecast.v1`.
    pub schema: WorkloadForecastTag,
    /// Prediction service.
    pub service: String,
    /// End of the last interval that the forecast knows.
    pub origin_ms: EpochMs,
    /// Length of a step.
    pub interval_ms: u64,
    /// Probability levels of every `quantiles_rps` below, ascending.
    pub levels: Vec<f64>,
    /// One entry a step, ascending.
    pub steps: Vec<ForecastStep>,
    /// Quantiles of the highest rate of the first intervals together, by how many, ascending: what one set-up time must
    /// carry. Calibrated on their own; the highest of the steps' quantiles is another, mostly higher or lower, number.
    /// Empty from writers that know none.
    #[serde(default)]
    pub peaks: Vec<ForecastPeak>,
    /// Mean rate in the last observed interval, requests per second.
    pub last_observed_rps: f64,
    /// Weight of each expert at the first step, summing to 1.
    pub weights: BTreeMap<String, f64>,
    /// Recent one-step errors.
    pub error: ForecastError,
    /// Samples seen so far.
    pub samples: u64,
    /// True while the series is too short for its seasonal experts.
    pub cold_start: bool,
    /// True for a day after the errors of the forecast changed beyond chance: the load is not what it was, and the
    /// forecast is learning it anew.
    #[serde(default)]
    pub shift: bool,
}

/// Highest rate of several intervals: quantiles of `max(rate of step 1, …, rate of step n)`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastPeak {
    /// Intervals, counted from the origin.
    pub steps: u32,
    /// Quantiles at `levels`, requests per second: they rise with the level, and with `steps` at the same level.
    pub quantiles_rps: Vec<f64>,
    /// Share of recent windows whose highest rate was at or below the quantile, for each of `levels`; empty before
    /// the first.
    #[serde(default)]
    pub coverage: Vec<f64>,
}

/// Forecast for one step ahead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastStep {
    /// Start of the interval forecast.
    pub start_ms: EpochMs,
    /// Expected rate, requests per second.
    pub mean_rps: f64,
    /// Quantiles of the rate at `levels`, requests per second, never crossing.
    pub quantiles_rps: Vec<f64>,
}

/// Recent error of the one-step forecast.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastError {
    /// Mean absolute error, requests per second; absent before the first comparison.
    pub mae_rps: Option<f64>,
    /// MAE over that of the seasonal naive forecast on the same samples.
    pub mase: Option<f64>,
    /// Share of samples at or below the quantile, for each of `levels`.
    pub coverage: Vec<f64>,
}

impl Message for WorkloadForecast {
    const SCHEMA: &'static str = WorkloadForecastTag::NAME;

    fn key(&self) -> String {
        self.service.clone()
    }
}

impl WorkloadForecast {
    /// A quantile between two of `levels`, on a straight line over the logit `ln(p / (1 − p))`, which is nearly the
    /// normal distribution's scale; below the lowest level, that one's. `None` above the highest.
    fn at_level(&self, level: f64, quantiles_rps: &[f64]) -> Option<f64> {
        let above = self.levels.iter().position(|&l| l >= level - 1e-9)?;
        let high = *quantiles_rps.get(above)?;
        let below = above.checked_sub(1).filter(|_| self.levels[above] > level + 1e-9);
        let Some(low) = below else { return Some(high) };
        let logit = |p: f64| (p / (1.0 - p)).ln();
        let (from, to) = (logit(self.levels[low]), logit(self.levels[above]));
        let part = (logit(level) - from) / (to - from);
        let low = *quantiles_rps.get(low)?;
        Some(low + (high - low) * if part.is_finite() { part } else { 1.0 })
    }

    /// The rate's quantile at `level` (between `levels`, interpolated) for the steps that overlap `[from_ms, to_ms)`:
    /// their maximum. `None` if no step or no level reaches that far.
    pub fn max_quantile_rps(&self, level: f64, from_ms: EpochMs, to_ms: EpochMs) -> Option<f64> {
        self.steps
            .iter()
            .filter(|step| step.start_ms < to_ms && step.start_ms + self.interval_ms as i64 > from_ms)
            .filter_map(|step| self.at_level(level, &step.quantiles_rps))
            .fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |b| b.max(rate))))
    }

    /// The quantile at `level` (between `levels`, interpolated) of the highest rate between the origin and `to_ms`. Between two windows of `peaks`, and beyond the last, the difference from the highest mean rate of the
    /// steps is interpolated over the logarithm of the length, and kept.
    ///
    /// `None` if there are no peaks, no level as high, or `from_ms` is more than one interval after the first step:
    /// a window that lies mostly in the past says little about what comes.
    pub fn peak_quantile_rps(&self, level: f64, from_ms: EpochMs, to_ms: EpochMs) -> Option<f64> {
        let interval_ms = i64::try_from(self.interval_ms).ok().filter(|ms| *ms > 0)?;
        let since_ms = from_ms.checked_sub(self.origin_ms)?;
        if since_ms >= 2 * interval_ms || since_ms < -interval_ms {
            return None;
        }
        let ahead_ms = to_ms.checked_sub(self.origin_ms)?.max(1);
        let wanted = u32::try_from(ahead_ms.div_euclid(interval_ms) + i64::from(ahead_ms % interval_ms > 0)).ok()?;
        let known = |peak: &ForecastPeak| Some((peak.steps, self.at_level(level, &peak.quantiles_rps)?));
        let after = self.peaks.iter().filter(|peak| peak.steps >= wanted).find_map(known);
        let before = self.peaks.iter().rev().filter(|peak| peak.steps <= wanted).find_map(known);
        let path = |steps: u32| {
            let means = self.steps.iter().take(steps as usize).map(|step| step.mean_rps);
            means.fold(0.0, f64::max)
        };
        match (before, after) {
            (Some((n, quantile)), Some((m, _))) if n == m => Some(quantile),
            (Some((n, low)), Some((m, high))) => {
                let part = (f64::from(wanted) / f64::from(n)).ln() / (f64::from(m) / f64::from(n)).ln();
                let excess = (1.0 - part) * (low - path(n)) + part * (high - path(m));
                Some((path(wanted) + excess).clamp(low, high.max(low)))
            }
            // Beyond the last window: as far above the means as at its end.
            (Some((n, low)), None) => Some((path(wanted) + low - path(n)).max(low)),
            // Shorter than the shortest window: that window's highest covers it.
            (None, Some((_, high))) => Some(high),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forecast(peaks: &[(u32, f64)]) -> WorkloadForecast {
        let step = |i: i64| ForecastStep { start_ms: i * 1000, mean_rps: 10.0 + i as f64, quantiles_rps: vec![20.0] };
        let peak = |&(steps, rate): &(u32, f64)| ForecastPeak { steps, quantiles_rps: vec![rate], coverage: vec![] };
        WorkloadForecast {
            interval_ms: 1000,
            levels: vec![0.95],
            steps: (0..10).map(step).collect(),
            peaks: peaks.iter().map(peak).collect(),
            ..WorkloadForecast::default()
        }
    }

    #[test]
    fn a_window_that_is_there_is_read_as_it_is() {
        let f = forecast(&[(1, 12.0), (4, 18.0)]);
        assert_eq!(f.peak_quantile_rps(0.95, 0, 1), Some(12.0));
        assert_eq!(f.peak_quantile_rps(0.9, 0, 1000), Some(12.0), "the next higher level");
        assert_eq!(f.peak_quantile_rps(0.95, 999, 4000), Some(18.0));
    }

    #[test]
    fn between_and_beyond_it_follows_the_means() {
        let f = forecast(&[(1, 12.0), (4, 18.0)]);
        // The excess is 2 at one step and 5 at four; half way in the logarithm is two steps, whose highest mean is 11.
        assert_eq!(f.peak_quantile_rps(0.95, 0, 2000), Some(14.5));
        assert_eq!(f.peak_quantile_rps(0.95, 0, 8000), Some(22.0), "five above the mean of 17");
        assert_eq!(forecast(&[(4, 18.0)]).peak_quantile_rps(0.95, 0, 1000), Some(18.0));
    }

    #[test]
    fn a_level_between_two_is_interpolated() {
        let mut f = forecast(&[(1, 0.0)]);
        f.levels = vec![0.5, 0.9, 0.99];
        f.peaks[0].quantiles_rps = vec![100.0, 120.0, 140.0];
        let at = |level| f.peak_quantile_rps(level, 0, 1000).expect("known");
        assert_eq!((at(0.3), at(0.5), at(0.9), at(0.99)), (100.0, 100.0, 120.0, 140.0));
        // A normal distribution with these quantiles has 0.198 of the way at 0.6.
        assert!((at(0.6) - 103.7).abs() < 0.1 && at(0.95) > 120.0 && at(0.95) < 140.0, "{}", at(0.6));
        assert_eq!(f.peak_quantile_rps(0.995, 0, 1000), None);
    }

    #[test]
    fn says_nothing_where_it_knows_nothing() {
        assert_eq!(forecast(&[]).peak_quantile_rps(0.95, 0, 1000), None);
        let f = forecast(&[(1, 12.0)]);
        assert_eq!(f.peak_quantile_rps(0.99, 0, 1000), None, "no such level");
        assert_eq!(f.peak_quantile_rps(0.95, 2000, 3000), None, "stale");
        assert_eq!(f.peak_quantile_rps(0.95, -1001, 3000), None, "not begun");
        assert_eq!(f.peak_quantile_rps(f64::NAN, 0, 1000), None);
        assert_eq!(f.peak_quantile_rps(0.95, i64::MIN, i64::MAX), None);
    }

    #[test]
    fn messages_of_before_have_no_peaks_and_still_read() {
        let mut old = serde_json::to_value(forecast(&[(1, 12.0)])).unwrap_or_default();
        if let Some(object) = old.as_object_mut() {
            object.remove("peaks");
            object.remove("shift");
        }
        let read: Option<WorkloadForecast> = serde_json::from_value(old).ok();
        assert_eq!(read, Some(forecast(&[])));
    }
}
