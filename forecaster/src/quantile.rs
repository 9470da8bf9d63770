//! Quantiles around the point forecast, learned from its recent errors.
//!
//! Purpose: for each level, several guesses of "how far above the point forecast": an error scale times a factor.
//! The scales differ in what they follow: nothing, the forecast itself, the slot of the day, that of the week alone and
//! with the last minutes, and how far values were *above* the forecast in the slot of the day, again alone and with
//! the last minutes. Each factor is tracked online so that the wanted share of errors falls below it: up by `step · τ` after a
//! miss, down by `step · (1 − τ)` otherwise, whose balance is coverage τ whatever the distribution (Robbins and Monro;
//! "conformal P control" of Angelopoulos, Candès and Tibshirani, NeurIPS 2023). The guesses are combined by
//! [`Combiner`] on pinball loss. A mixture of guesses that each cover τ covers more than that, so an offset, tracked
//! in the same way by what was said, is added at the end.
//!
//! Why these: chosen by pinball loss on the first 65 % of the recorded series and on synthetic ones
//! (`docs/benchmarks/forecast.md`). Errors of a load with a rhythm differ by the hour and between workdays and weekends
//! by several times, and at many hours they are far from symmetric. Where the experts disagree, errors are larger than
//! usual before the first of them is seen.
//!
//! Invariants: quantiles are finite, not negative, and do not decrease with the level.
//!
//! Left out: scales of the lower side, for levels below one half; those are calibrated but wider than need be.

use crate::calendar::{Calendar, Phase};
use crate::combine::Combiner;
use serde::{Deserialize, Serialize};

/// Number of error scales.
pub(crate) const SCALES: usize = 9;
/// The scale that the offset counts in: that of the slot of the week.
const OF_WEEK: usize = 3;
/// Most slots of a day and of a week that have an error scale of their own.
const DAY_SLOTS: u64 = 48;
const WEEK_SLOTS: u64 = 336;
const SLOW_RATE: f64 = 0.003;
const RECENT_RATE: f64 = 0.06;
/// Weight of a new day in the scales of a slot of the day, and of a new week in that of a slot of the week.
const DAY_RATE: f64 = 0.08;
const WEEK_RATE: f64 = 0.12;
/// Band before the first error is known, as a part of the level.
const FIRST_SCALE: f64 = 0.25;
/// Steps of the factors: the first, the last, and how fast they fall with the misses to be expected; below a level of
/// 0.875 as if it were that.
const FIRST_SPEED: f64 = 1.2;
const LEAST_SPEED: f64 = 0.03;
const YOUNG_RATE: f64 = 0.4;
const MOST_YOUNG_RATE: f64 = 0.05;
/// Step of the offset.
const OFFSET_STEP: f64 = 0.02;
const MOST_OFFSET: f64 = 5.0;

/// Where in its day and week a target lies: slots of [`Quantiles::slots`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slots {
    pub(crate) day: usize,
    pub(crate) week: usize,
}

/// Running means of absolute errors.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Scales {
    slow: f64,
    recent: f64,
    /// Errors as parts of the forecast.
    relative: f64,
    /// Twice the part of the error above the forecast: as large as an error where they are symmetric.
    above: f64,
    /// How far the experts lay apart.
    spread: f64,
    /// Weight of a new error in its slot.
    day_rate: f64,
    week_rate: f64,
    /// By slot of the day and of the week; NaN until an error fell into the slot.
    #[serde(with = "crate::bits::single")]
    of_day: Vec<f32>,
    #[serde(with = "crate::bits::single")]
    of_week: Vec<f32>,
    /// As `above`, by slot of the day.
    #[serde(with = "crate::bits::single")]
    above_of_day: Vec<f32>,
    errors: u64,
}

impl Scales {
    fn new(day_steps: u64, week_steps: u64) -> Self {
        let slots = |steps: u64, most: u64| steps.clamp(1, most);
        let rate = |rate: f64, slots: u64, steps: u64| (rate * slots as f64 / steps.max(1) as f64).max(SLOW_RATE);
        let (days, weeks) = (slots(day_steps, DAY_SLOTS), slots(week_steps, WEEK_SLOTS));
        Scales {
            slow: 0.0,
            recent: 0.0,
            relative: 0.0,
            above: 0.0,
            spread: 0.0,
            day_rate: rate(DAY_RATE, days, day_steps),
            week_rate: rate(WEEK_RATE, weeks, week_steps),
            of_day: vec![f32::NAN; days as usize],
            of_week: vec![f32::NAN; weeks as usize],
            above_of_day: vec![f32::NAN; days as usize],
            errors: 0,
        }
    }

    fn fits(&self, fresh: &Scales) -> bool {
        let sound = |scales: &[f32], fresh: &[f32]| {
            scales.len() == fresh.len() && scales.iter().all(|s| s.is_nan() || (s.is_finite() && *s >= 0.0))
        };
        [self.slow, self.recent, self.relative, self.above, self.spread]
            .iter()
            .all(|scale| scale.is_finite() && *scale >= 0.0)
            && self.day_rate.to_bits() == fresh.day_rate.to_bits()
            && self.week_rate.to_bits() == fresh.week_rate.to_bits()
            && sound(&self.of_day, &fresh.of_day)
            && sound(&self.of_week, &fresh.of_week)
            && sound(&self.above_of_day, &fresh.above_of_day)
    }

    fn learn(&mut self, outcome: Outcome<'_>) {
        let Outcome { value, center, level, slots, spread, .. } = outcome;
        let (error, above) = ((value - center).abs(), 2.0 * (value - center).max(0.0));
        self.errors += 1;
        let young = 1.0 / self.errors as f64;
        let follow = |mean: &mut f64, rate: f64, value: f64| *mean += rate.max(young) * (value - *mean);
        follow(&mut self.slow, SLOW_RATE, error);
        follow(&mut self.recent, RECENT_RATE, error);
        follow(&mut self.relative, SLOW_RATE, error / relative_base(center, level));
        follow(&mut self.above, SLOW_RATE, above);
        follow(&mut self.spread, SLOW_RATE, spread);
        let of_day = follow_slot(&mut self.of_day[slots.day], self.slow, self.day_rate, error);
        follow_slot(&mut self.of_week[slots.week], of_day, self.week_rate, error);
        follow_slot(&mut self.above_of_day[slots.day], self.above, self.day_rate, above);
    }

    fn at(&self, forecast: f64, level: f64, slots: Slots, spread: f64) -> [f64; SCALES] {
        if self.errors == 0 {
            return [FIRST_SCALE * level; SCALES];
        }
        let or = |of_slot: f32, other: f64| if of_slot.is_nan() { other } else { f64::from(of_slot) };
        let of_day = or(self.of_day[slots.day], self.slow);
        let of_week = or(self.of_week[slots.week], of_day);
        let above = or(self.above_of_day[slots.day], self.above);
        let apart = if self.spread > 0.0 { spread / self.spread } else { 1.0 };
        let scales = [
            self.slow,
            self.relative * relative_base(forecast, level),
            of_day,
            of_week,
            (of_week * self.recent).sqrt(),
            above,
            (above * self.recent).sqrt(),
            (above * spread).sqrt(),
            of_week * (0.5 + 0.5 * apart),
        ];
        scales.map(|scale| scale.max(1e-4 * level))
    }
}

/// Moves the running mean of a slot; one that is unknown begins at `first`. Returns the new mean.
fn follow_slot(mean: &mut f32, first: f64, rate: f64, value: f64) -> f64 {
    let old = if mean.is_nan() { first } else { f64::from(*mean) };
    *mean = (old + rate * (value - old)) as f32;
    f64::from(*mean)
}

fn relative_base(forecast: f64, level: f64) -> f64 {
    forecast.max(0.05 * level)
}

/// One level: a factor for each scale, their combination, and what is added to it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tracker {
    level: f64,
    factors: [f64; SCALES],
    /// In units of the scale [`OF_WEEK`].
    offset: f64,
    combiner: Combiner,
}

impl Tracker {
    fn new(level: f64) -> Self {
        Tracker { level, factors: [first_factor(level); SCALES], offset: 0.0, combiner: Combiner::even(SCALES) }
    }

    fn fits(&self, level: f64) -> bool {
        self.level.to_bits() == level.to_bits()
            && self.factors.iter().all(|factor| factor.is_finite())
            && self.offset.abs() <= MOST_OFFSET
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

    fn quantile(&self, center: f64, scales: &[f64; SCALES]) -> f64 {
        self.mix(&self.guesses(center, scales)) + self.offset * scales[OF_WEEK]
    }

    /// Weighs by the pinball loss of today's factors on the scales of then, and moves the factors; the offset is moved
    /// by what was `said` then.
    fn learn(&mut self, outcome: Outcome<'_>, said: f64, unit: f64, seen: u64) {
        let (tau, Outcome { value, center, scales, .. }) = (self.level, outcome);
        let guesses = self.guesses(center, scales);
        let mixture = self.mix(&guesses);
        let gradient = if value <= mixture { 1.0 - tau } else { -tau };
        self.combiner.learn(guesses.iter().map(|guess| gradient * (guess - mixture) / unit));

        let speed = speed(tau, seen);
        let push = |is_below: bool| if is_below { tau - 1.0 } else { tau };
        for (factor, scale) in self.factors.iter_mut().zip(scales) {
            let step = speed * (factor.abs() + 0.1);
            *factor = (*factor + step * push(value - center <= *factor * scale)).clamp(-1e3, 1e3);
        }
        self.offset = (self.offset + OFFSET_STEP * push(value <= said)).clamp(-MOST_OFFSET, MOST_OFFSET);
    }
}

/// Step of a factor in parts of itself, after `seen` errors. What tells how far a quantile is off are the misses, one
/// in `1 / (1 − tau)` errors: a tracker is young until it has seen some of them, not some errors.
fn speed(tau: f64, seen: u64) -> f64 {
    let misses = (YOUNG_RATE * (1.0 - tau)).min(MOST_YOUNG_RATE) * seen as f64;
    LEAST_SPEED.max(FIRST_SPEED / (1.0 + misses))
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
    /// The quantiles that were said.
    pub(crate) said: &'a [f64],
    /// The series' level at the origin.
    pub(crate) level: f64,
    pub(crate) slots: Slots,
    /// How far the experts lay apart at the origin.
    pub(crate) spread: f64,
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Quantiles {
    scales: Scales,
    trackers: Vec<Tracker>,
}

impl Quantiles {
    pub(crate) fn new(levels: &[f64], day_steps: u64, week_steps: u64) -> Self {
        Quantiles {
            scales: Scales::new(day_steps, week_steps),
            trackers: levels.iter().map(|&level| Tracker::new(level)).collect(),
        }
    }

    pub(crate) fn fits(&self, levels: &[f64], day_steps: u64, week_steps: u64) -> bool {
        self.scales.fits(&Scales::new(day_steps, week_steps))
            && self.trackers.len() == levels.len()
            && self.trackers.iter().zip(levels).all(|(tracker, &level)| tracker.fits(level))
    }

    /// The slots that a target at `phase` falls into.
    pub(crate) fn slots(&self, calendar: &Calendar, phase: Phase) -> Slots {
        Slots {
            day: calendar.day_slot(phase, self.scales.of_day.len()),
            week: calendar.week_slot(phase, self.scales.of_week.len()),
        }
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

    /// Error scales for a forecast, to be remembered for [`Quantiles::learn`]; `spread` is how far the experts lie apart.
    pub(crate) fn scales(&self, center: f64, level: f64, slots: Slots, spread: f64) -> [f64; SCALES] {
        self.scales.at(center, level, slots, spread)
    }

    /// The quantiles at the levels, ascending, into `quantiles`.
    pub(crate) fn at(&self, center: f64, scales: &[f64; SCALES], quantiles: &mut Vec<f64>) {
        let mut floor = 0.0_f64;
        quantiles.clear();
        quantiles.extend(self.trackers.iter().map(|tracker| {
            floor = floor.max(tracker.quantile(center, scales));
            floor
        }));
    }

    /// Learns from an outcome; `unit` is the usual loss.
    pub(crate) fn learn(&mut self, outcome: Outcome<'_>, unit: f64) {
        let seen = self.scales.errors;
        for (tracker, &said) in self.trackers.iter_mut().zip(outcome.said) {
            tracker.learn(outcome, said, unit, seen);
        }
        self.scales.learn(outcome);
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        let slots = 2 * self.scales.of_day.len() + self.scales.of_week.len();
        slots * size_of::<f32>() + self.trackers.len() * (SCALES * 6 + 6) * size_of::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const LEVELS: [f64; 5] = [0.5, 0.9, 0.95, 0.975, 0.99];
    const SPREAD: f64 = 3.0;

    fn at(quantiles: &Quantiles, center: f64, scales: &[f64; SCALES]) -> Vec<f64> {
        let mut at = Vec::new();
        quantiles.at(center, scales, &mut at);
        at
    }

    /// Shares of outcomes at or below each quantile, for errors drawn around a forecast of 100; the first tenth of the
    /// outcomes is not counted.
    fn coverage(outcomes: usize, mut error: impl FnMut(&mut ChaCha8Rng, usize) -> f64) -> [f64; 5] {
        let mut rng = ChaCha8Rng::seed_from_u64(11);
        let mut quantiles = Quantiles::new(&LEVELS, 24, 168);
        let mut below = [0.0; 5];
        for i in 0..outcomes {
            let slots = Slots { day: i % 24, week: i % 168 };
            let scales = quantiles.scales(100.0, 100.0, slots, SPREAD);
            let said = at(&quantiles, 100.0, &scales);
            let value = (100.0 + error(&mut rng, i)).max(0.0);
            if i >= outcomes / 10 {
                for (below, quantile) in below.iter_mut().zip(&said) {
                    *below += if value <= *quantile { 1.0 } else { 0.0 };
                }
            }
            let unit = 4.0 * quantiles.recent_error().max(1e-6);
            quantiles.learn(
                Outcome { value, center: 100.0, scales: &scales, said: &said, level: 100.0, slots, spread: SPREAD },
                unit,
            );
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
    fn errors_that_grow_with_the_disagreement_are_met_by_wider_bands() {
        let mut rng = ChaCha8Rng::seed_from_u64(12);
        let mut quantiles = Quantiles::new(&LEVELS, 24, 168);
        let band = |quantiles: &Quantiles, spread: f64| {
            at(quantiles, 100.0, &quantiles.scales(100.0, 100.0, Slots { day: 0, week: 0 }, spread))[2] - 100.0
        };
        for i in 0..5000 {
            let (slots, spread) = (Slots { day: i % 24, week: i % 168 }, rng.random_range(1.0..10.0));
            let scales = quantiles.scales(100.0, 100.0, slots, spread);
            let said = at(&quantiles, 100.0, &scales);
            let value = 100.0 + spread * rng.random_range(-1.0..1.0);
            let unit = 4.0 * quantiles.recent_error().max(1e-6);
            quantiles.learn(
                Outcome { value, center: 100.0, scales: &scales, said: &said, level: 100.0, slots, spread },
                unit,
            );
        }
        let (narrow, wide) = (band(&quantiles, 2.0), band(&quantiles, 8.0));
        assert!(wide > 1.5 * narrow, "{narrow} where the experts agree, {wide} where they do not");
    }

    #[test]
    fn before_the_first_error_there_is_a_band() {
        let quantiles = Quantiles::new(&LEVELS, 24, 168);
        let band = at(&quantiles, 100.0, &quantiles.scales(100.0, 100.0, Slots { day: 0, week: 0 }, SPREAD));
        assert!(band[0] == 100.0 && band[4] > 130.0, "{band:?}");
    }

    proptest! {
        #[test]
        fn never_crossing_whatever_happens(outcomes in prop::collection::vec((0.0_f64..1e6, 0.0_f64..1e6, 0.0_f64..1e6), 1..300)) {
            let mut quantiles = Quantiles::new(&LEVELS, 24, 168);
            for (i, (value, center, spread)) in outcomes.into_iter().enumerate() {
                let slots = Slots { day: i % 24, week: i % 168 };
                let scales = quantiles.scales(center, 1.0, slots, spread);
                let at = at(&quantiles, center, &scales);
                prop_assert!(at.is_sorted() && at.iter().all(|quantile| quantile.is_finite() && *quantile >= 0.0));
                let unit = 4.0 * quantiles.recent_error().max(1e-6);
                quantiles.learn(Outcome { value, center, scales: &scales, said: &at, level: 1.0, slots, spread }, unit);
            }
            prop_assert!(quantiles.fits(&LEVELS, 24, 168));
        }
    }
}
