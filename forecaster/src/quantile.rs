//! Quantiles around the point forecast, learned from its recent errors.
//!
//! Purpose: for each level, several guesses of "how far above the point forecast": an error scale times a factor.
//! The six scales differ in what they follow (nothing, the level, its square root, the slot of the day, the last
//! minutes, the last two together). Each factor is tracked online so that the wanted share of errors falls below it:
//! up by `step · τ` after a miss, down by `step · (1 − τ)` otherwise, whose balance is coverage τ whatever the
//! distribution (Robbins and Monro; "conformal P control" of Angelopoulos, Candès and Tibshirani, NeurIPS 2023).
//! The guesses are combined by [`Combiner`] on pinball loss.
//!
//! Invariants: quantiles are finite, not negative, and do not decrease with the level.
//!
//! Left out: a burst-aware scale for the highest levels on minute data.

use crate::combine::Combiner;
use serde::{Deserialize, Serialize};

/// Number of error scales.
pub(crate) const SCALES: usize = 6;
/// Slots of a day that have an error scale of their own.
const DAY_SLOTS: u64 = 48;
const SLOW_RATE: f64 = 0.003;
const RECENT_RATE: f64 = 0.06;
/// Weight of a new day in the scale of a slot.
const SLOT_RATE: f64 = 0.08;
/// Band before the first error is known, as a part of the level.
const FIRST_SCALE: f64 = 0.25;

/// Running means of absolute errors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Scales {
    slow: f64,
    recent: f64,
    /// Errors as parts of the forecast.
    relative: f64,
    /// Errors as parts of the forecast's square root.
    root: f64,
    /// Weight of a new error in its slot.
    slot_rate: f64,
    /// By slot of the day; NaN until an error fell into the slot.
    #[serde(with = "crate::bits")]
    slots: Vec<f64>,
    errors: u64,
}

impl Scales {
    fn new(day_steps: u64) -> Self {
        let slots = day_steps.clamp(1, DAY_SLOTS);
        let slot_rate = (SLOT_RATE * slots as f64 / day_steps.max(1) as f64).max(SLOW_RATE);
        Scales {
            slow: 0.0,
            recent: 0.0,
            relative: 0.0,
            root: 0.0,
            slot_rate,
            slots: vec![f64::NAN; slots as usize],
            errors: 0,
        }
    }

    fn fits(&self, fresh: &Scales) -> bool {
        [self.slow, self.recent, self.relative, self.root].iter().all(|scale| scale.is_finite() && *scale >= 0.0)
            && self.slot_rate.to_bits() == fresh.slot_rate.to_bits()
            && self.slots.len() == fresh.slots.len()
            && self.slots.iter().all(|scale| scale.is_nan() || (scale.is_finite() && *scale >= 0.0))
    }

    fn learn(&mut self, error: f64, forecast: f64, level: f64, slot: usize) {
        self.errors += 1;
        let young = 1.0 / self.errors as f64;
        let follow = |mean: &mut f64, rate: f64, value: f64| *mean += rate.max(young) * (value - *mean);
        follow(&mut self.slow, SLOW_RATE, error);
        follow(&mut self.recent, RECENT_RATE, error);
        follow(&mut self.relative, SLOW_RATE, error / relative_base(forecast, level));
        follow(&mut self.root, SLOW_RATE, error / root_base(forecast, level));
        let of_slot = &mut self.slots[slot];
        if of_slot.is_nan() {
            *of_slot = self.slow;
        }
        *of_slot += self.slot_rate * (error - *of_slot);
    }

    fn at(&self, forecast: f64, level: f64, slot: usize) -> [f64; SCALES] {
        if self.errors == 0 {
            return [FIRST_SCALE * level; SCALES];
        }
        let of_slot = if self.slots[slot].is_nan() { self.slow } else { self.slots[slot] };
        let scales = [
            self.slow,
            self.relative * relative_base(forecast, level),
            self.root * root_base(forecast, level),
            of_slot,
            self.recent,
            (of_slot * self.recent).sqrt(),
        ];
        scales.map(|scale| scale.max(1e-4 * level))
    }
}

fn relative_base(forecast: f64, level: f64) -> f64 {
    forecast.max(0.05 * level)
}

fn root_base(forecast: f64, level: f64) -> f64 {
    forecast.max(0.02 * level).sqrt()
}

/// One level: a factor for each scale, and their combination.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tracker {
    level: f64,
    #[serde(with = "crate::bits")]
    factors: Vec<f64>,
    combiner: Combiner,
}

impl Tracker {
    fn new(level: f64) -> Self {
        Tracker { level, factors: vec![first_factor(level); SCALES], combiner: Combiner::even(SCALES) }
    }

    fn fits(&self, level: f64) -> bool {
        self.level.to_bits() == level.to_bits()
            && self.factors.len() == SCALES
            && self.factors.iter().all(|factor| factor.is_finite())
            && self.combiner.fits(&Combiner::even(SCALES))
    }

    fn guesses(&self, center: f64, scales: &[f64; SCALES]) -> [f64; SCALES] {
        let mut guesses = [0.0; SCALES];
        for ((guess, factor), scale) in guesses.iter_mut().zip(&self.factors).zip(scales) {
            *guess = center + factor * scale;
        }
        guesses
    }

    fn mix(&self, guesses: &[f64; SCALES]) -> f64 {
        self.combiner.mix(guesses).unwrap_or(guesses[0])
    }

    /// Weighs by the pinball loss of today's factors on the scales of then, and moves the factors.
    fn learn(&mut self, value: f64, center: f64, scales: &[f64; SCALES], unit: f64, seen: u64) {
        let tau = self.level;
        let guesses = self.guesses(center, scales);
        let mixture = self.mix(&guesses);
        let gradient = if value <= mixture { 1.0 - tau } else { -tau };
        self.combiner.learn(guesses.iter().map(|guess| gradient * (guess - mixture) / unit));

        // Rare events ask for larger steps to be followed at all, and a young tracker for larger still.
        let speed = (if tau > 0.97 { 0.6_f64 } else { 0.3 }).max(8.0 / (1.0 + 0.05 * seen as f64));
        for (factor, scale) in self.factors.iter_mut().zip(scales) {
            let below = (value - center) / scale <= *factor;
            let step = 0.15 * speed * (factor.abs() + 0.1);
            *factor = (*factor + step * if below { tau - 1.0 } else { tau }).clamp(-1e3, 1e3);
        }
    }
}

/// Quantile of a Laplace distribution of mean absolute value 1: somewhere to start.
fn first_factor(level: f64) -> f64 {
    if level >= 0.5 { -(2.0 * (1.0 - level)).ln() } else { (2.0 * level).ln() }
}

/// An observed value, and what was known about it when it was forecast.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome<'a> {
    pub(crate) value: f64,
    pub(crate) center: f64,
    pub(crate) scales: &'a [f64; SCALES],
    /// The series' level at the origin.
    pub(crate) level: f64,
    /// Slot of the day, one of [`Quantiles::slots`].
    pub(crate) slot: usize,
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    scales: Scales,
    trackers: Vec<Tracker>,
}

impl Quantiles {
    pub(crate) fn new(levels: &[f64], day_steps: u64) -> Self {
        Quantiles {
            scales: Scales::new(day_steps),
            trackers: levels.iter().map(|&level| Tracker::new(level)).collect(),
        }
    }

    pub(crate) fn fits(&self, levels: &[f64], day_steps: u64) -> bool {
        self.scales.fits(&Scales::new(day_steps))
            && self.trackers.len() == levels.len()
            && self.trackers.iter().zip(levels).all(|(tracker, &level)| tracker.fits(level))
    }

    /// Slots of the day that scales are kept for.
    pub(crate) fn slots(&self) -> usize {
        self.scales.slots.len()
    }

    /// Number of levels.
    pub(crate) fn levels(&self) -> usize {
        self.trackers.len()
    }

    /// Mean absolute error of the last minutes; what losses are measured in.
    pub(crate) fn recent_error(&self) -> f64 {
        self.scales.recent
    }

    /// Mean absolute error over a longer time.
    pub(crate) fn usual_error(&self) -> f64 {
        self.scales.slow
    }

    /// Error scales for a forecast, to be remembered for [`Quantiles::learn`].
    pub(crate) fn scales(&self, center: f64, level: f64, slot: usize) -> [f64; SCALES] {
        self.scales.at(center, level, slot)
    }

    /// The quantiles at the levels, ascending, into `quantiles`.
    pub(crate) fn at(&self, center: f64, scales: &[f64; SCALES], quantiles: &mut Vec<f64>) {
        let mut floor = 0.0_f64;
        quantiles.clear();
        quantiles.extend(self.trackers.iter().map(|tracker| {
            floor = floor.max(tracker.mix(&tracker.guesses(center, scales)));
            floor
        }));
    }

    /// Learns from an outcome; `unit` is the usual loss.
    pub(crate) fn learn(&mut self, outcome: Outcome<'_>, unit: f64) {
        let seen = self.scales.errors;
        for tracker in &mut self.trackers {
            tracker.learn(outcome.value, outcome.center, outcome.scales, unit, seen);
        }
        self.scales.learn((outcome.value - outcome.center).abs(), outcome.center, outcome.level, outcome.slot);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.slots() * size_of::<f64>() + self.trackers.len() * (SCALES * 6 * size_of::<f64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const LEVELS: [f64; 5] = [0.5, 0.9, 0.95, 0.975, 0.99];

    fn at(quantiles: &Quantiles, center: f64, scales: &[f64; SCALES]) -> Vec<f64> {
        let mut at = Vec::new();
        quantiles.at(center, scales, &mut at);
        at
    }

    /// Shares of outcomes at or below each quantile, for errors drawn around a forecast of 100; the first tenth of the
    /// outcomes is not counted.
    fn coverage(outcomes: usize, mut error: impl FnMut(&mut ChaCha8Rng, usize) -> f64) -> [f64; 5] {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut quantiles = Quantiles::new(&LEVELS, 24);
        let mut below = [0.0; 5];
        for i in 0..outcomes {
            let slot = i % 24;
            let scales = quantiles.scales(100.0, 100.0, slot);
            let value = (100.0 + error(&mut rng, i)).max(0.0);
            if i >= outcomes / 10 {
                for (below, quantile) in below.iter_mut().zip(at(&quantiles, 100.0, &scales)) {
                    *below += if value <= quantile { 1.0 } else { 0.0 };
                }
            }
            let unit = 4.0 * quantiles.recent_error().max(1e-6);
            quantiles.learn(Outcome { value, center: 100.0, scales: &scales, level: 100.0, slot }, unit);
        }
        below.map(|below| below / (outcomes - outcomes / 10) as f64)
    }

    fn assert_covers(shares: [f64; 5]) {
        for (share, level) in shares.into_iter().zip(LEVELS) {
            assert!((share - level).abs() < 0.1 * (1.0 - level) + 0.005, "coverage at {level} is {share}");
        }
    }

    #[test]
    fn coverage_holds_for_lopsided_errors() {
        // Exponential, shifted: nothing a normal band would fit.
        assert_covers(coverage(10_000, |rng, _| -10.0 * rng.random_range(1e-9_f64..1.0).ln() - 5.0));
    }

    #[test]
    fn coverage_holds_when_the_errors_depend_on_the_hour() {
        assert_covers(coverage(10_000, |rng, i| rng.random_range(-1.0..1.0) * if i % 24 < 12 { 2.0 } else { 20.0 }));
    }

    #[test]
    fn coverage_holds_over_a_change_of_scale() {
        assert_covers(coverage(20_000, |rng, i| rng.random_range(-1.0..1.0) * if i < 10_000 { 20.0 } else { 4.0 }));
    }

    #[test]
    fn before_the_first_error_there_is_a_band() {
        let quantiles = Quantiles::new(&LEVELS, 24);
        let band = at(&quantiles, 100.0, &quantiles.scales(100.0, 100.0, 0));
        assert!(band[0] == 100.0 && band[4] > 130.0, "{band:?}");
    }

    proptest! {
        #[test]
        fn never_crossing_whatever_happens(outcomes in prop::collection::vec((0.0_f64..1e6, 0.0_f64..1e6), 1..300)) {
            let mut quantiles = Quantiles::new(&LEVELS, 24);
            for (i, (value, center)) in outcomes.into_iter().enumerate() {
                let scales = quantiles.scales(center, 1.0, i % 24);
                let at = at(&quantiles, center, &scales);
                prop_assert!(at.is_sorted() && at.iter().all(|quantile| quantile.is_finite() && *quantile >= 0.0));
                let unit = 4.0 * quantiles.recent_error().max(1e-6);
                quantiles.learn(Outcome { value, center, scales: &scales, level: 1.0, slot: i % 24 }, unit);
            }
            prop_assert!(quantiles.fits(&LEVELS, 24));
        }
    }
}
