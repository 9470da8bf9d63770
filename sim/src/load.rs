//! Demand of a prediction service for the demo: a daily shape, compressed by a speed, with seeded Poisson arrivals.
//!
//! The rate at wall time `t` is `base + (peak − base) · shape(phase)`, `phase = t mod day / day`, where a day lasts
//! `86 400 s / speed`. `shape` is the sum of bell-shaped peaks: Gaussians of width `sigma` (share of a day) around the
//! given phases, clipped to 1. With `peaks` empty the rate is constant. Flash crowds, which no calendar knows, multiply
//! the rate of [`Arrivals`] and are absent from [`Demand::history`].

use crate::trace::poisson;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1};
use schemas::EpochMs;
use std::collections::VecDeque;

/// Shape of a service's demand.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Rate between peaks, requests per second.
    pub base_rps: f64,
    /// Rate at a peak, requests per second.
    pub peak_rps: f64,
    /// Length of a day, milliseconds of wall time.
    pub day_ms: i64,
    /// Phases of the peaks, each in [0, 1).
    pub peaks: Vec<f64>,
    /// Width of a peak, share of a day.
    pub sigma: f64,
}

impl Demand {
    /// A demand that never changes.
    pub fn constant(rate_rps: f64, day_ms: i64) -> Self {
        Demand { base_rps: rate_rps, peak_rps: rate_rps, day_ms, peaks: Vec::new(), sigma: 0.01 }
    }

    /// Rate at `at_ms`, requests per second.
    pub fn rate_rps(&self, at_ms: EpochMs) -> f64 {
        let phase = at_ms.rem_euclid(self.day_ms.max(1)) as f64 / self.day_ms.max(1) as f64;
        let shape: f64 = self
            .peaks
            .iter()
            .map(|peak| {
                let distance = (phase - peak).abs();
                let around = distance.min(1.0 - distance) / self.sigma;
                (-0.5 * around * around).exp()
            })
            .sum();
        self.base_rps + (self.peak_rps - self.base_rps) * shape.min(1.0)
    }

    /// Expected arrivals in `[from_ms, to_ms)`, by the midpoint rule at steps of at most 250 ms.
    pub fn expected(&self, from_ms: EpochMs, to_ms: EpochMs) -> f64 {
        let span_ms = (to_ms - from_ms).max(0);
        let steps = (span_ms / 250).max(1);
        let step_ms = span_ms as f64 / steps as f64;
        (0..steps).map(|i| self.rate_rps(from_ms + ((i as f64 + 0.5) * step_ms) as i64) * step_ms / 1000.0).sum()
    }

    /// Simulated history: counts of the `n` intervals that end at `end_ms`, oldest first, with their begins.
    pub fn history(&self, end_ms: EpochMs, interval_ms: i64, n: usize, seed: u64) -> Vec<(EpochMs, u64)> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        (0..n)
            .map(|i| {
                let start = end_ms - (n - i) as i64 * interval_ms;
                (start, poisson(&mut rng, self.expected(start, start + interval_ms)))
            })
            .collect()
    }
}

/// A crowd that comes at once and goes slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FlashCrowd {
    /// When it comes.
    pub at_ms: EpochMs,
    /// How many times the usual rate there is at that moment.
    pub factor: f64,
    /// Time in which the excess falls to 1/e, milliseconds.
    pub decay_ms: i64,
}

impl FlashCrowd {
    /// What the usual rate is multiplied by at `now_ms`.
    pub fn multiplier(&self, now_ms: EpochMs) -> f64 {
        if now_ms < self.at_ms {
            return 1.0;
        }
        let age = (now_ms - self.at_ms) as f64 / self.decay_ms.max(1) as f64;
        1.0 + (self.factor - 1.0) * (-age).exp()
    }

    /// Crowds in `[from_ms, to_ms)`, ascending: exponential gaps of mean `mean_gap_ms`, factors evenly between 2 and
    /// `max_factor` (at least 2).
    pub fn seeded(
        seed: u64,
        (from_ms, to_ms): (EpochMs, EpochMs),
        mean_gap_ms: i64,
        max_factor: f64,
        decay_ms: i64,
    ) -> Vec<FlashCrowd> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut at_ms = from_ms;
        let mut crowds = Vec::new();
        loop {
            let gap: f64 = Exp1.sample(&mut rng);
            // At least a millisecond, so that this ends.
            at_ms = at_ms.saturating_add(((gap * mean_gap_ms as f64) as i64).max(1));
            if at_ms >= to_ms {
                return crowds;
            }
            crowds.push(FlashCrowd { at_ms, factor: rng.random_range(2.0..=max_factor.max(2.0)), decay_ms });
        }
    }
}

/// Arrivals of a demand as time goes on.
#[derive(Debug)]
pub struct Arrivals {
    demand: Demand,
    crowds: Vec<FlashCrowd>,
    rng: ChaCha8Rng,
    /// Everything before this is drawn.
    drawn_to_ms: EpochMs,
    pending: VecDeque<EpochMs>,
}

impl Arrivals {
    /// Arrivals from `start_ms` on.
    pub fn new(demand: Demand, start_ms: EpochMs, seed: u64) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(seed);
        Arrivals { demand, crowds: Vec::new(), rng, drawn_to_ms: start_ms, pending: VecDeque::new() }
    }

    /// With flash crowds; where several overlap the largest counts.
    #[must_use]
    pub fn with_flash_crowds(mut self, crowds: Vec<FlashCrowd>) -> Self {
        self.crowds = crowds;
        self
    }

    /// Takes the arrivals up to `now_ms`, ascending. Drawn in slices of 100 ms, so that the result does not depend on
    /// how often it is asked.
    pub fn until(&mut self, now_ms: EpochMs) -> Vec<EpochMs> {
        const SLICE_MS: i64 = 100;
        while self.drawn_to_ms <= now_ms {
            let crowd = self.crowds.iter().map(|c| c.multiplier(self.drawn_to_ms)).fold(1.0, f64::max);
            let mean = crowd * self.demand.expected(self.drawn_to_ms, self.drawn_to_ms + SLICE_MS);
            let n = poisson(&mut self.rng, mean);
            let mut times: Vec<EpochMs> =
                (0..n).map(|_| self.drawn_to_ms + self.rng.random_range(0..SLICE_MS)).collect();
            times.sort_unstable();
            self.pending.extend(times);
            self.drawn_to_ms += SLICE_MS;
        }
        let due = self.pending.partition_point(|&at| at <= now_ms);
        self.pending.drain(..due).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn demand() -> Demand {
        Demand { base_rps: 10.0, peak_rps: 110.0, day_ms: 1_440_000, peaks: vec![0.25, 0.995], sigma: 0.004 }
    }

    #[test]
    fn peaks_are_where_they_should_be_and_wrap() {
        let demand = demand();
        assert!((demand.rate_rps(360_000) - 110.0).abs() < 1e-6);
        assert!((demand.rate_rps(720_000) - 10.0).abs() < 1e-6);
        assert!(demand.rate_rps(1_000) > 20.0, "the peak before midnight reaches over it");
        assert_eq!(Demand::constant(5.0, 1_000).rate_rps(123), 5.0);
    }

    #[test]
    fn history_follows_the_demand() {
        let history = demand().history(1_440_000, 5_000, 288, 3);
        assert_eq!(history.len(), 288);
        assert_eq!(history[0].0, 0);
        let total: u64 = history.iter().map(|(_, n)| n).sum();
        let expected = demand().expected(0, 1_440_000);
        assert!((total as f64 - expected).abs() < 6.0 * expected.sqrt(), "{total} against {expected}");
    }

    #[test]
    fn flash_crowds_come_at_once_go_slowly_and_are_seeded() {
        let crowd = FlashCrowd { at_ms: 10_000, factor: 5.0, decay_ms: 20_000 };
        assert_eq!((crowd.multiplier(9_999), crowd.multiplier(10_000)), (1.0, 5.0));
        assert!((crowd.multiplier(30_000) - (1.0 + 4.0 / std::f64::consts::E)).abs() < 1e-9);
        let count = |crowds: Vec<FlashCrowd>| {
            let mut arrivals = Arrivals::new(Demand::constant(50.0, 1_000), 0, 1).with_flash_crowds(crowds);
            arrivals.until(10_000);
            arrivals.until(20_000).len() as f64
        };
        // Mean multiplier of the 10 s after it came: 1 + 4 · 2 · (1 − e^(−1/2)).
        let (with, without) = (count(vec![crowd]), count(Vec::new()));
        assert!((without - 500.0).abs() < 120.0 && (with - 2_074.0).abs() < 250.0, "{with} {without}");
        let crowds = FlashCrowd::seeded(3, (0, 86_400_000), 3_600_000, 8.0, 60_000);
        assert_eq!(crowds, FlashCrowd::seeded(3, (0, 86_400_000), 3_600_000, 8.0, 60_000));
        assert!((8..50).contains(&crowds.len()) && crowds.is_sorted_by_key(|c| c.at_ms), "{}", crowds.len());
        assert!(crowds.iter().all(|c| (2.0..=8.0).contains(&c.factor)));
    }

    proptest! {
        #[test]
        fn how_often_it_is_asked_changes_nothing(seed in any::<u64>(), mut cuts in proptest::collection::vec(0i64..20_000, 0..20)) {
            cuts.sort_unstable();
            let mut at_once = Arrivals::new(demand(), 350_000, seed);
            let mut in_steps = Arrivals::new(demand(), 350_000, seed);
            let mut taken = Vec::new();
            for cut in cuts { taken.extend(in_steps.until(350_000 + cut)); }
            taken.extend(in_steps.until(370_000));
            prop_assert!(taken.is_sorted());
            prop_assert_eq!(taken, at_once.until(370_000));
        }
    }
}
