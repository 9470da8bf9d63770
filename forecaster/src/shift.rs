//! Tells when the errors of the forecast changed beyond chance: the load is not what it was.
//!
//! Purpose: a reader of a forecast message should know that the model is learning anew. Two-sided CUSUM (E. S. Page,
//! "Continuous inspection schemes", Biometrika 41, 1954) on the one-step errors, in units of their usual size, each
//! cut at a few units so that one freak value is no shift. Errors follow one another, so they are first rid of their
//! usual lag-one correlation; and since a change of the spread alone is no shift, both the scale and the bias that is
//! normal are running means of about a week.
//!
//! Invariants: bounded time and memory; nothing is flagged before [`LEAST`] errors; a flag lasts a day of steps after
//! the last alarm.
//!
//! Left out: what kind of shift it was, and reacting to it: the experts' weights do that.

use serde::{Deserialize, Serialize};

/// Errors before the first alarm.
const LEAST: u64 = 100;
/// Slack of a CUSUM, in usual errors: shifts of less than twice this are not looked for.
const SLACK: f64 = 0.75;
/// Sum that raises the alarm. For independent errors the mean time between false alarms grows as `exp(2 · SLACK · BOUND)`.
const BOUND: f64 = 14.0;
/// One error counts at most this much.
const MOST: f64 = 4.0;
/// Errors that the usual size remembers: at least this many.
const LEAST_MEMORY: f64 = 500.0;

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShiftDetector {
    /// Running means of the error and of its distance from that.
    mean: f64,
    spread: f64,
    /// Running mean of the product of two successive scaled errors.
    correlation: f64,
    previous: f64,
    up: f64,
    down: f64,
    errors: u64,
    /// Errors since the last alarm; `None` before the first.
    since_alarm: Option<u64>,
}

impl ShiftDetector {
    pub(crate) fn new() -> Self {
        ShiftDetector {
            mean: 0.0,
            spread: 0.0,
            correlation: 0.0,
            previous: 0.0,
            up: 0.0,
            down: 0.0,
            errors: 0,
            since_alarm: None,
        }
    }

    /// True if this state, read from outside, makes sense.
    pub(crate) fn fits(&self) -> bool {
        [self.mean, self.previous].iter().all(|value| value.is_finite())
            && [self.spread, self.up, self.down].iter().all(|value| value.is_finite() && *value >= 0.0)
            && (-1.0..=1.0).contains(&self.correlation)
    }

    /// Takes a one-step error; true if it raises the alarm. `week_steps` is the memory of what is usual.
    pub(crate) fn observe(&mut self, error: f64, week_steps: u64) -> bool {
        self.since_alarm = self.since_alarm.map(|steps| steps.saturating_add(1));
        let unit = 1.2533 * self.spread; // A normal variable's deviation from its mean absolute deviation.
        let scaled = if unit > 0.0 { ((error - self.mean) / unit).clamp(-MOST, MOST) } else { 0.0 };
        let innovation = scaled - self.correlation * self.previous;
        let alarm = self.errors >= LEAST && self.accumulate(innovation);
        self.learn(error, scaled, week_steps);
        if alarm {
            (self.up, self.down) = (0.0, 0.0);
            self.since_alarm = Some(0);
        }
        alarm
    }

    fn accumulate(&mut self, innovation: f64) -> bool {
        self.up = (self.up + innovation - SLACK).max(0.0);
        self.down = (self.down - innovation - SLACK).max(0.0);
        self.up > BOUND || self.down > BOUND
    }

    fn learn(&mut self, error: f64, scaled: f64, week_steps: u64) {
        self.errors += 1;
        let rate = 1.0 / (self.errors as f64).min((week_steps as f64).max(LEAST_MEMORY));
        let product = (scaled * self.previous).clamp(-1.0, 1.0);
        // No more than half is taken off: a shift itself makes errors follow one another.
        self.correlation = (self.correlation + rate * (product - self.correlation)).clamp(-0.5, 0.5);
        self.previous = scaled;
        // A freak value must not make the usual size forget what is usual.
        let error = if self.spread > 0.0 {
            error.clamp(self.mean - 8.0 * self.spread, self.mean + 8.0 * self.spread)
        } else {
            error
        };
        let distance = error - self.mean;
        self.mean += rate * distance;
        self.spread += rate * (distance.abs() - self.spread);
    }

    /// True for a day after an alarm.
    pub(crate) fn is_flagged(&self, day_steps: u64) -> bool {
        self.since_alarm.is_some_and(|steps| steps < day_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const WEEK: u64 = 2016;

    /// Sum of twelve uniform variables less six: near enough to normal.
    fn normal(rng: &mut ChaCha8Rng) -> f64 {
        (0..12).map(|_| rng.random_range(0.0..1.0)).sum::<f64>() - 6.0
    }

    /// Steps at which an alarm is raised.
    fn alarms(n: usize, mut error: impl FnMut(usize) -> f64) -> Vec<usize> {
        let mut detector = ShiftDetector::new();
        (0..n).filter(|&i| detector.observe(error(i), WEEK)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn noise_alone_raises_no_alarm(seed in any::<u64>(), scale in 1e-3_f64..1e6, bias in -2.0_f64..2.0) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let found = alarms(20_000, |_| scale * (bias + normal(&mut rng)));
            prop_assert!(found.is_empty(), "{found:?}");
        }

        #[test]
        fn errors_that_follow_one_another_raise_few(seed in any::<u64>(), memory in 0.0_f64..0.4) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut error = 0.0;
            let found = alarms(20_000, |_| {
                error = memory * error + normal(&mut rng);
                error
            });
            prop_assert!(found.len() <= 1, "{found:?}");
        }

        #[test]
        fn heavy_tails_raise_few(seed in any::<u64>()) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            // Laplace, and one in fifty is ten times as large.
            let found = alarms(20_000, |_| {
                let size = -rng.random_range(1e-12_f64..1.0).ln();
                let burst = if rng.random_range(0.0..1.0) < 0.02 { 10.0 } else { 1.0 };
                if rng.random_range(0.0..1.0) < 0.5 { size * burst } else { -size * burst }
            });
            prop_assert!(found.len() <= 1, "{found:?}");
        }

        #[test]
        fn a_shift_of_three_usual_errors_is_seen_soon(seed in any::<u64>(), up in any::<bool>(), scale in 1e-3_f64..1e6) {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let shift = if up { 3.0 } else { -3.0 };
            let found = alarms(3000, |i| scale * (normal(&mut rng) + if i >= 2500 { shift } else { 0.0 }));
            prop_assert!(found.first().is_some_and(|first| (2500..2530).contains(first)), "{found:?}");
        }

        #[test]
        fn whatever_comes_it_stays_sound(errors in prop::collection::vec(-1e15_f64..1e15, 0..400)) {
            let mut detector = ShiftDetector::new();
            for error in errors {
                detector.observe(error, WEEK);
                prop_assert!(detector.fits());
            }
        }
    }

    #[test]
    fn the_flag_lasts_a_day() {
        let mut detector = ShiftDetector::new();
        let error = |detector: &mut ShiftDetector, i: usize, shift: f64| {
            detector.observe(shift + if i.is_multiple_of(2) { 1.0 } else { -1.0 }, WEEK)
        };
        let mut i = 0;
        while i < 500 {
            error(&mut detector, i, 0.0);
            i += 1;
        }
        assert!(!detector.is_flagged(96));
        while !error(&mut detector, i, 4.0) {
            i += 1;
        }
        let flagged = (0..200).filter(|&k| {
            error(&mut detector, k, 0.0);
            detector.is_flagged(96)
        });
        assert_eq!(flagged.count(), 95, "and the step of the alarm itself");
    }

    #[test]
    fn a_silent_series_raises_nothing() {
        assert!(alarms(1000, |_| 0.0).is_empty());
    }
}
