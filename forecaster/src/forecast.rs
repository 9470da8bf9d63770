//! What a model says: a mean and quantiles for every step, and the interpolation between direct horizons.
//!
//! Invariants: steps are 1, 2, 3… to the last direct horizon; values are finite and not negative; quantiles do not
//! decrease with the level.

use crate::expert::ExpertKind;
use crate::horizon::Direct;
use crate::peak::PeakForecast;
use crate::work::count;
use schemas::EpochMs;

/// Forecast of one series from its newest interval. Values are in the series' unit.
#[derive(Debug, Clone, PartialEq)]
pub struct Forecast {
    /// End of the newest interval.
    pub origin_ms: EpochMs,
    /// Length of a step, milliseconds.
    pub interval_ms: u64,
    /// Value of the newest interval.
    pub last_value: f64,
    /// One entry a step, ascending from 1.
    pub steps: Vec<StepForecast>,
    /// Quantiles of the highest value of the next intervals, one entry a window, ascending.
    pub peaks: Vec<PeakForecast>,
    /// Weight of each expert in the mean of the first horizon.
    pub weights: Vec<(ExpertKind, f64)>,
    /// Known samples that the forecast stands on.
    pub samples: u64,
    /// True until a whole day was seen.
    pub cold: bool,
    /// True for a day after the errors changed beyond chance.
    pub shift: bool,
}

impl Forecast {
    /// Start of the interval `step` steps ahead (1 is the next).
    pub fn start_ms(&self, step: u32) -> EpochMs {
        self.origin_ms + (i64::from(step) - 1) * self.interval_ms as i64
    }
}

/// Forecast of one interval.
#[derive(Debug, Clone, PartialEq)]
pub struct StepForecast {
    /// Steps ahead.
    pub step: u32,
    /// Expected value: least squared error.
    pub mean: f64,
    /// Middle value: least absolute error. It need not equal the quantile at 0.5, which is calibrated on its own.
    pub median: f64,
    /// Quantiles at the model's levels.
    pub quantiles: Vec<f64>,
}

/// Fills the steps between direct forecasts. `shape` is the typical value at a step, if known: what is interpolated
/// is the difference from it, so that a peak between two horizons is not cut off.
pub(crate) fn interpolate(last_value: f64, direct: &[Direct], shape: impl Fn(u32) -> Option<f64>) -> Vec<StepForecast> {
    let levels = direct.first().map_or(0, |direct| direct.quantiles.len());
    // Before the first horizon: from the value just seen, which is certain.
    let now = Direct { steps: 0, mean: last_value, median: last_value, quantiles: vec![last_value; levels] };
    let mut steps = Vec::new();
    count(direct.last().map_or(0, |last| last.steps as usize) * levels);
    for (left, right) in std::iter::once(&now).chain(direct).zip(direct) {
        let ends = shape(left.steps).zip(shape(right.steps));
        for step in left.steps + 1..right.steps {
            let t = f64::from(step - left.steps) / f64::from(right.steps - left.steps);
            let bend =
                ends.zip(shape(step)).map_or(0.0, |((at_left, at_right), here)| here - lerp(at_left, at_right, t));
            steps.push(between(left, right, step, t, bend));
        }
        steps.push(StepForecast {
            step: right.steps,
            mean: right.mean,
            median: right.median,
            quantiles: right.quantiles.clone(),
        });
    }
    steps
}

/// Adding the same `bend` to all quantiles keeps their order; cutting at zero keeps it too.
fn between(left: &Direct, right: &Direct, step: u32, t: f64, bend: f64) -> StepForecast {
    let value = |a: f64, b: f64| (lerp(a, b, t) + bend).max(0.0);
    StepForecast {
        step,
        mean: value(left.mean, right.mean),
        median: value(left.median, right.median),
        quantiles: left.quantiles.iter().zip(&right.quantiles).map(|(&a, &b)| value(a, b)).collect(),
    }
}

fn lerp(a: f64, b: f64, t: f64) -> f64 {
    a * (1.0 - t) + b * t
}

#[cfg(test)]
mod tests {
    use super::*;

    fn direct(steps: u32, center: f64) -> Direct {
        Direct { steps, mean: center, median: center, quantiles: vec![center, center + 10.0] }
    }

    #[test]
    fn every_step_once_and_the_direct_ones_as_they_are() {
        let steps = interpolate(1.0, &[direct(1, 5.0), direct(4, 11.0)], |_| None);
        assert_eq!(steps.iter().map(|step| step.step).collect::<Vec<_>>(), [1, 2, 3, 4]);
        assert_eq!(steps.iter().map(|step| step.mean).collect::<Vec<_>>(), [5.0, 7.0, 9.0, 11.0]);
        assert_eq!(steps[1].quantiles, [7.0, 17.0]);
    }

    #[test]
    fn a_known_peak_between_two_horizons_stays() {
        let shape = |step: u32| Some(if step == 2 { 100.0 } else { 0.0 });
        let steps = interpolate(1.0, &[direct(1, 5.0), direct(3, 5.0)], shape);
        assert_eq!(steps[1].mean, 105.0);
        assert_eq!(steps[1].quantiles, [105.0, 115.0]);
    }

    #[test]
    fn a_valley_does_not_go_below_zero() {
        let shape = |step: u32| Some(if step == 2 { 0.0 } else { 100.0 });
        let steps = interpolate(1.0, &[direct(1, 5.0), direct(3, 5.0)], shape);
        assert_eq!((steps[1].mean, steps[1].quantiles.as_slice()), (0.0, [0.0, 0.0].as_slice()));
    }

    #[test]
    fn steps_before_the_first_horizon_start_at_the_last_value() {
        let steps = interpolate(1.0, &[direct(2, 3.0)], |_| None);
        assert_eq!(steps[0].quantiles, [2.0, 7.0]);
    }
}
