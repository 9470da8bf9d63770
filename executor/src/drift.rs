//! Does a model still take the time that its profile says? Pure.
//!
//! Purpose: compare the batches of the last minute with the 95th percentile that the plan counts on, and say what is
//! true where the two do not agree.
//!
//! Invariants:
//! - Fewer than [`ENOUGH`] batches say nothing.
//! - A difference counts only if the 95 % interval of the measured percentile lies beyond [`TOLERANCE`] of the planned
//!   one, so noise is not told as drift.

use crate::profile::fit::interval;
use crate::stats::quantile;
use schemas::profile::ProfilePoint;

/// Batches below which nothing is said.
pub const ENOUGH: usize = 200;
/// Share of the planned time within which a measured one agrees with it.
pub const TOLERANCE: f64 = 0.1;
/// How often an instance is looked at, milliseconds.
pub const PERIOD_MS: i64 = 60_000;

/// What an instance was measured to take, where that is not what was planned. `times_ms` are inference times of full
/// batches of `batch` rows while `workers` ran, `planned_p95_ms` is the plan's.
pub fn drift(workers: u32, batch: u32, times_ms: &[f64], planned_p95_ms: f64) -> Option<ProfilePoint> {
    let mut sorted: Vec<f64> = times_ms.iter().copied().filter(|t| t.is_finite() && *t > 0.0).collect();
    if sorted.len() < ENOUGH || planned_p95_ms.is_nan() || planned_p95_ms <= 0.0 {
        return None;
    }
    // The interval holds the percentile itself: where that agrees, so does the interval, and nothing need be sorted.
    let agrees = (1.0 - TOLERANCE)..=(1.0 + TOLERANCE);
    if agrees.contains(&(quantile(sorted.clone(), 0.95) / planned_p95_ms)) {
        return None;
    }
    sorted.sort_by(f64::total_cmp);
    let [low_ms, high_ms] = interval(&sorted, 0.95);
    if low_ms <= planned_p95_ms * (1.0 + TOLERANCE) && high_ms >= planned_p95_ms * (1.0 - TOLERANCE) {
        return None;
    }
    let mean_ms = sorted.iter().sum::<f64>() / sorted.len() as f64;
    let at = |q: f64| quantile(sorted.clone(), q);
    Some(ProfilePoint {
        workers,
        batch,
        p50_ms: at(0.5),
        p95_ms: at(0.95),
        p99_ms: at(0.99),
        rps: f64::from(workers) * f64::from(batch) * 1e3 / mean_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    /// Exponential times above a floor: their 95th percentile is `floor + 3 mean`.
    fn times(n: usize, floor_ms: f64, mean_ms: f64, seed: u64) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| floor_ms - mean_ms * (1.0 - rng.random::<f64>()).ln()).collect()
    }

    #[test]
    fn few_batches_say_nothing_and_a_slower_machine_is_told() {
        assert_eq!(drift(1, 1, &times(ENOUGH - 1, 20.0, 1.0, 1), 10.0), None);
        let point = drift(2, 4, &times(1000, 20.0, 1.0, 1), 10.0).expect("it takes twice as long");
        assert_eq!((point.workers, point.batch), (2, 4));
        assert!((22.0..24.0).contains(&point.p95_ms) && point.p50_ms < point.p95_ms && point.p95_ms < point.p99_ms);
        assert!((8e3 / 21.5..8e3 / 20.5).contains(&point.rps), "{point:?}");
        assert!(drift(1, 1, &times(1000, 20.0, 1.0, 1), 40.0).is_some(), "and a faster one");
    }

    proptest! {
        #[test]
        fn a_sound_profile_is_left_alone(seed in any::<u64>(), n in ENOUGH..4000, floor_ms in 1f64..100.0) {
            let mean_ms = floor_ms * 0.2;
            // What was profiled is 3 % off, as profiles are.
            let planned = (floor_ms + mean_ms * 20f64.ln()) * 1.03;
            prop_assert_eq!(drift(1, 1, &times(n, floor_ms, mean_ms, seed), planned), None);
        }

        #[test]
        fn whatever_comes_in_a_point_is_sound(times_ms in proptest::collection::vec(any::<f64>(), 0..600), planned in any::<f64>()) {
            if let Some(p) = drift(1, 1, &times_ms, planned) {
                prop_assert!(p.p50_ms > 0.0 && p.p50_ms <= p.p95_ms && p.p95_ms <= p.p99_ms);
            }
        }
    }
}
