//! Quantiles of the highest value of the next intervals together.
//!
//! Purpose: a node that is ordered now must carry whatever comes until the next could be there, so the planner asks
//! for the quantile of `max(y[t+1], …, y[t+n])`. That is not the highest of the steps' quantiles: where steps are
//! independent the maximum lies above it, and where a forecast misses by the same amount for an hour it does not.
//!
//! For each window `n` and level, seven guesses are combined by [`Combiner`] on pinball loss: the highest mean of
//! the steps, corrected by the usual distance from it, plus a factor times the usual spread around that (both over a
//! long time, relative to the level, by slot of the day, or recent), and the highest *quantile* of the steps plus a
//! factor times one of three of these spreads. Factors are tracked online as in
//! `quantile`, but `n` overlapping windows are hardly more than one observation, so steps are shorter.
//!
//! Invariants: quantiles are finite, not negative, and fall neither with the level nor with the window. At most `n`
//! windows wait. A window is learned from when at least half of its intervals are known, with the highest of those.
//!
//! Left out: windows that begin later than the next interval.

use crate::combine::Combiner;
use crate::forecast::StepForecast;
use crate::work::count;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Scales of the distance from the highest mean, and of the distance from the highest quantile.
const MEAN_SCALES: usize = 4;
const GUESSES: usize = 7;
/// Which of the scales the guesses from the steps' quantiles use.
const QUANTILE_SCALES: [usize; 3] = [0, 2, 3];
/// Slots of a day that have a scale of their own.
const DAY_SLOTS: u64 = 48;
/// Longest memory of the scales, in steps; but never less than twenty windows.
const SLOW_STEPS: f64 = 400.0;
const RECENT_STEPS: f64 = 16.0;
/// Days that the scale of a slot remembers.
const SLOT_DAYS: f64 = 12.0;
/// Outcomes that the coverage remembers.
const COVERAGE_MEMORY: f64 = 1000.0;
/// Band before the first error is known, as a part of the level.
const FIRST_SCALE: f64 = 0.25;
/// Largest error as a part of the forecast that is told apart.
const MOST_RELATIVE: f64 = 20.0;
/// The offset moves so many times as fast as a factor of size 1.
const OFFSET_SPEED: f64 = 1.0;
/// How the tracker's step falls with the length of the window: by length to this power.
const OVERLAP: f64 = 0.75;

/// A window whose intervals have not all come.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Waiting {
    /// Index of the last interval before the window.
    origin: i64,
    /// The series' level at the origin.
    level: f64,
    /// Highest mean of the steps.
    center: f64,
    slot: usize,
    /// Highest of the steps' quantiles, by level.
    #[serde(with = "crate::bits")]
    upper: Vec<f64>,
    /// Corrected highest means, one a scale.
    #[serde(with = "crate::bits")]
    bases: Vec<f64>,
    #[serde(with = "crate::bits")]
    scales: Vec<f64>,
    /// What was forecast, by level.
    #[serde(with = "crate::bits")]
    forecast: Vec<f64>,
    /// Highest value seen; 0 before the first.
    highest: f64,
    known: u32,
}

/// A running mean, and the mean distance from it.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
struct Spread {
    mean: f64,
    spread: f64,
}

impl Spread {
    fn follow(&mut self, value: f64, rate: f64) {
        let distance = value - self.mean;
        self.mean += rate * distance;
        self.spread += rate * (distance.abs() - self.spread);
    }

    fn times(self, unit: f64) -> Self {
        Spread { mean: self.mean * unit, spread: self.spread * unit }
    }

    fn sound(self) -> bool {
        self.mean.is_finite() && self.spread.is_finite() && self.spread >= 0.0
    }
}

/// One level: factors of the guesses, and their combination.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tracker {
    #[serde(with = "crate::bits")]
    factors: Vec<f64>,
    combiner: Combiner,
    /// What is added to the combination, in spreads: tracked like the factors, so that what is said is calibrated and
    /// not only what it is made of.
    offset: f64,
    /// Recent share of outcomes at or below the forecast.
    covered: f64,
}

impl Tracker {
    fn new(level: f64) -> Self {
        let tail = if level >= 0.5 { -(2.0 * (1.0 - level)).ln() } else { (2.0 * level).ln() };
        let factors = (0..GUESSES).map(|i| if i < MEAN_SCALES { tail } else { 0.0 }).collect();
        Tracker { factors, combiner: Combiner::even(GUESSES), offset: 0.0, covered: 0.0 }
    }

    fn fits(&self) -> bool {
        self.factors.len() == GUESSES
            && self.factors.iter().all(|factor| factor.is_finite())
            && self.combiner.fits(&Combiner::even(GUESSES))
            && self.offset.is_finite()
            && (0.0..=1.0).contains(&self.covered)
    }

    fn guesses(&self, upper: f64, bases: &[f64], scales: &[f64]) -> [f64; GUESSES] {
        let mut guesses = [0.0; GUESSES];
        for (i, (guess, factor)) in guesses.iter_mut().zip(&self.factors).enumerate() {
            let (base, scale) = base_and_scale(i, upper, bases, scales);
            *guess = base + factor * scale;
        }
        guesses
    }

    fn mix(&self, guesses: &[f64; GUESSES]) -> f64 {
        self.combiner.mix(guesses).unwrap_or(guesses[0])
    }

    fn quantile(&self, upper: f64, bases: &[f64], scales: &[f64]) -> f64 {
        self.mix(&self.guesses(upper, bases, scales)) + self.offset * scales[0]
    }

    /// `place` is the level's among the levels.
    fn learn(&mut self, level: f64, window: &Waiting, place: usize, unit: f64, speed: f64) {
        let (upper, issued) = (window.upper[place], window.forecast[place]);
        let guesses = self.guesses(upper, &window.bases, &window.scales);
        let mixture = self.mix(&guesses);
        let gradient = if window.highest <= mixture { 1.0 - level } else { -level };
        self.combiner.learn(guesses.iter().map(|guess| gradient * (guess - mixture) / unit));
        // By what was said then, not by what today's factors would say: those have seen half of this window already.
        let below = window.highest <= issued;
        let step = OFFSET_SPEED * speed;
        self.offset = (self.offset + step * if below { level - 1.0 } else { level }).clamp(-5.0, 5.0);
        // Markov: no more than 1 − τ of the errors are beyond 1 / (1 − τ) times their mean.
        let most_factor = 1.0 / (1.0 - level).min(level);
        for (i, factor) in self.factors.iter_mut().enumerate() {
            let (base, scale) = base_and_scale(i, upper, &window.bases, &window.scales);
            let ratio = (window.highest - base) / scale;
            let step = speed * (factor.abs() + 0.1);
            *factor = if ratio <= *factor {
                *factor - step * (1.0 - level)
            } else {
                // Not beyond what was just seen by more than a tenth: a run of misses is one event, told many times.
                let most = ratio + 0.1 * (ratio.abs() + 0.1);
                (*factor + step * level).min(most.max(*factor))
            }
            .clamp(-most_factor, most_factor);
        }
    }
}

fn base_and_scale(guess: usize, upper: f64, bases: &[f64], scales: &[f64]) -> (f64, f64) {
    match guess.checked_sub(MEAN_SCALES) {
        None => (bases[guess], scales[guess]),
        Some(i) => (upper, scales[QUANTILE_SCALES[i]]),
    }
}

/// One window: its scales, trackers and what waits.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Window {
    steps: u32,
    /// Distances from the highest mean: over a long time, as a part of the level, recently.
    slow: Spread,
    relative: Spread,
    recent: Spread,
    /// The same by slot of the day; NaN until a window began there.
    #[serde(with = "crate::bits")]
    slot_means: Vec<f64>,
    #[serde(with = "crate::bits")]
    slot_spreads: Vec<f64>,
    trackers: Vec<Tracker>,
    learned: u64,
    waiting: VecDeque<Waiting>,
    /// Quantiles of the newest window; empty before the first.
    #[serde(with = "crate::bits")]
    newest: Vec<f64>,
}

/// Quantiles of the highest value of the next `steps` intervals.
#[derive(Debug, Clone, PartialEq)]
pub struct PeakForecast {
    /// Intervals, from the next on.
    pub steps: u32,
    /// Quantiles at the model's levels, in the series' unit.
    pub quantiles: Vec<f64>,
    /// Share of about the last thousand windows at or below each quantile; empty before the first.
    pub coverage: Vec<f64>,
}

/// What is known at an origin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outlook<'a> {
    /// Index of the newest interval.
    pub(crate) origin: i64,
    /// The series' level.
    pub(crate) level: f64,
    /// Slot of the day, one of [`Peaks::slots`].
    pub(crate) slot: usize,
    /// Forecasts from step 1 on, at least as many as the longest window.
    pub(crate) steps: &'a [StepForecast],
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Peaks {
    #[serde(with = "crate::bits")]
    levels: Vec<f64>,
    day_steps: u64,
    windows: Vec<Window>,
}

impl Peaks {
    /// `windows` in steps, ascending; may be empty.
    pub(crate) fn new(windows: &[u32], levels: &[f64], day_steps: u64) -> Self {
        let slots = slots_of(day_steps);
        let window = |&steps: &u32| Window {
            steps,
            slow: Spread::default(),
            relative: Spread::default(),
            recent: Spread::default(),
            slot_means: vec![f64::NAN; slots],
            slot_spreads: vec![f64::NAN; slots],
            trackers: levels.iter().map(|&level| Tracker::new(level)).collect(),
            learned: 0,
            waiting: VecDeque::new(),
            newest: Vec::new(),
        };
        Peaks { levels: levels.to_vec(), day_steps, windows: windows.iter().map(window).collect() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// Slots of the day.
    pub(crate) fn slots(&self) -> usize {
        slots_of(self.day_steps)
    }

    /// True if this state, read from outside, is one for these windows.
    pub(crate) fn fits(&self, windows: &[u32], levels: &[f64], day_steps: u64) -> bool {
        self.day_steps == day_steps
            && self.levels == levels
            && self.windows.len() == windows.len()
            && self
                .windows
                .iter()
                .zip(windows)
                .all(|(window, &steps)| window.steps == steps && window.fits(levels.len(), slots_of(day_steps)))
    }

    /// The value of interval `index`, in ascending order; those between were never known. Learns from every window
    /// that ends there or before.
    pub(crate) fn observe(&mut self, index: i64, value: f64) {
        for window in &mut self.windows {
            while let Some(ended) = window.waiting.pop_front_if(|w| w.origin + i64::from(window.steps) < index) {
                window.learn(&ended, &self.levels, self.day_steps);
            }
            count(window.waiting.len());
            for waiting in &mut window.waiting {
                waiting.highest = waiting.highest.max(value);
                waiting.known += 1;
            }
            if let Some(ended) = window.waiting.pop_front_if(|w| w.origin + i64::from(window.steps) == index) {
                window.learn(&ended, &self.levels, self.day_steps);
            }
        }
    }

    /// Forecasts the windows after an origin.
    pub(crate) fn forecast(&mut self, outlook: Outlook<'_>) {
        let n_levels = self.levels.len();
        let mut center = 0.0_f64;
        let mut upper = vec![0.0_f64; n_levels];
        let mut floor = vec![0.0_f64; n_levels];
        let mut taken = 0;
        for window in &mut self.windows {
            let until = (window.steps as usize).min(outlook.steps.len());
            for step in outlook.steps.get(taken..until).unwrap_or_default() {
                center = center.max(step.mean);
                upper.iter_mut().zip(&step.quantiles).for_each(|(upper, q)| *upper = upper.max(*q));
            }
            taken = until;
            window.forecast(outlook, center, &upper, &mut floor);
        }
    }

    /// The newest quantiles, one entry a window; empty before the first origin.
    pub(crate) fn newest(&self) -> Vec<PeakForecast> {
        let known = self.windows.iter().filter(|window| !window.newest.is_empty());
        known
            .map(|window| PeakForecast {
                steps: window.steps,
                quantiles: window.newest.clone(),
                coverage: match window.learned {
                    0 => Vec::new(),
                    _ => window.trackers.iter().map(|tracker| tracker.covered).collect(),
                },
            })
            .collect()
    }

    /// Most bytes that this ever takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let (levels, words) = (self.levels.len(), size_of::<f64>());
        let window = |window: &Window| {
            let waiting = 2 * levels + 2 * MEAN_SCALES + 18;
            (window.steps as usize * waiting + 2 * window.slot_means.len() + levels * (GUESSES * 6 + 10)) * words
        };
        self.windows.iter().map(window).sum()
    }
}

impl Window {
    fn fits(&self, levels: usize, slots: usize) -> bool {
        let sound = |value: f64| value.is_finite() && value >= 0.0;
        let all_sound = |values: &[f64]| values.iter().all(|value| sound(*value));
        self.slot_means.len() == slots
            && self.slot_spreads.len() == slots
            && self.slot_means.iter().all(|mean| mean.is_nan() || mean.is_finite())
            && self.slot_spreads.iter().all(|spread| spread.is_nan() || sound(*spread))
            && [self.slow, self.relative, self.recent].into_iter().all(Spread::sound)
            && self.trackers.len() == levels
            && self.trackers.iter().all(Tracker::fits)
            && (self.newest.is_empty() || self.newest.len() == levels)
            && all_sound(&self.newest)
            && self.waiting.len() <= self.steps as usize
            && self.waiting.iter().zip(self.waiting.iter().skip(1)).all(|(a, b)| a.origin < b.origin)
            && self.waiting.iter().all(|w| {
                w.upper.len() == levels
                    && w.forecast.len() == levels
                    && w.scales.len() == MEAN_SCALES
                    && w.bases.len() == MEAN_SCALES
                    && w.bases.iter().all(|base| base.is_finite())
                    && w.slot < slots
                    && all_sound(&w.upper)
                    && all_sound(&w.forecast)
                    && w.scales.iter().all(|scale| scale.is_finite() && *scale > 0.0)
                    && sound(w.center)
                    && sound(w.highest)
                    && w.level.is_finite()
                    && w.level > 0.0
                    && w.known <= self.steps
            })
    }

    /// Corrected highest means and spreads, one a scale.
    fn scales(&self, center: f64, level: f64, slot: usize) -> ([f64; MEAN_SCALES], [f64; MEAN_SCALES]) {
        let slot = self.slot(slot).unwrap_or(self.slow);
        let all = [self.slow, self.relative.times(relative_base(center, level)), slot, self.recent];
        // The first window may have been met by chance: as if one of the usual size had come before.
        let windows = self.learned as f64 / f64::from(self.steps);
        let least = (FIRST_SCALE / (1.0 + windows)).max(1e-4) * level;
        (all.map(|scale| center + scale.mean), all.map(|scale| scale.spread.max(least)))
    }

    fn slot(&self, slot: usize) -> Option<Spread> {
        let (mean, spread) = (*self.slot_means.get(slot)?, *self.slot_spreads.get(slot)?);
        (!mean.is_nan() && !spread.is_nan()).then_some(Spread { mean, spread })
    }

    fn forecast(&mut self, outlook: Outlook<'_>, center: f64, upper: &[f64], floor: &mut [f64]) {
        count(self.trackers.len() * GUESSES);
        let (bases, scales) = self.scales(center, outlook.level, outlook.slot);
        let mut below = 0.0_f64;
        self.newest.clear();
        for ((tracker, &upper), floor) in self.trackers.iter().zip(upper).zip(floor) {
            // A maximum over more intervals, or at a higher level, is no lower.
            below = below.max(*floor).max(tracker.quantile(upper, &bases, &scales));
            *floor = below;
            self.newest.push(below);
        }
        while self.waiting.len() >= self.steps as usize {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting {
            origin: outlook.origin,
            level: outlook.level,
            center,
            slot: outlook.slot,
            upper: upper.to_vec(),
            bases: bases.to_vec(),
            scales: scales.to_vec(),
            forecast: self.newest.clone(),
            highest: 0.0,
            known: 0,
        });
    }

    fn learn(&mut self, window: &Waiting, levels: &[f64], day_steps: u64) {
        if 2 * window.known < self.steps {
            return;
        }
        let length = f64::from(self.steps);
        // Overlapping windows count as one observation for a window's length.
        let seen = self.learned as f64 / length;
        let unit = 4.0 * (self.recent.mean.abs() + self.recent.spread).max(1e-6 * window.level);
        for (place, (tracker, &level)) in self.trackers.iter_mut().zip(levels).enumerate() {
            let speed = (if level > 0.97 { 0.6_f64 } else { 0.3 }).max(3.0 / (1.0 + 0.05 * seen));
            tracker.learn(level, window, place, unit, 0.15 * speed / length.powf(OVERLAP));
            let hit = if window.highest <= window.forecast[place] { 1.0 } else { 0.0 };
            tracker.covered += (hit - tracker.covered) / COVERAGE_MEMORY.min(self.learned as f64 + 1.0);
        }
        self.learned += 1;
        let young = 1.0 / self.learned as f64;
        let error = window.highest - window.center;
        let slow = (1.0 / SLOW_STEPS.max(20.0 * length)).max(young);
        // The level may have been almost nothing; what came after says no more than "much".
        let relative = (error / relative_base(window.center, window.level)).min(MOST_RELATIVE);
        self.slow.follow(error, slow);
        self.relative.follow(relative, slow);
        self.recent.follow(error, (1.0 / RECENT_STEPS.max(2.0 * length)).max(young));
        let steps_a_day = day_steps as f64 / self.slot_means.len() as f64;
        let mut of_slot = self.slot(window.slot).unwrap_or(self.slow);
        of_slot.follow(error, 1.0 / (SLOT_DAYS * steps_a_day));
        if let (Some(mean), Some(spread)) =
            (self.slot_means.get_mut(window.slot), self.slot_spreads.get_mut(window.slot))
        {
            (*mean, *spread) = (of_slot.mean, of_slot.spread);
        }
    }
}

fn relative_base(center: f64, level: f64) -> f64 {
    center.max(0.05 * level)
}

fn slots_of(day_steps: u64) -> usize {
    day_steps.clamp(1, DAY_SLOTS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const LEVELS: [f64; 3] = [0.5, 0.95, 0.99];
    const DAY_STEPS: u64 = 96;

    fn path(means: &[f64]) -> Vec<StepForecast> {
        let step = |(i, &mean): (usize, &f64)| StepForecast {
            step: i as u32 + 1,
            mean,
            median: mean,
            quantiles: LEVELS.map(|level| mean * (1.0 + level)).to_vec(),
        };
        means.iter().enumerate().map(step).collect()
    }

    /// Feeds values around a flat forecast of 100; gives the share of windows at or below each quantile, by window,
    /// and the mean width of the highest level. The first third is not counted.
    fn coverage(windows: &[u32], n: usize, mut value: impl FnMut(&mut ChaCha8Rng, usize) -> f64) -> Vec<[f64; 3]> {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let values: Vec<f64> = (0..n).map(|i| value(&mut rng, i)).collect();
        let mut peaks = Peaks::new(windows, &LEVELS, DAY_STEPS);
        let longest = windows.last().copied().unwrap_or(1) as usize;
        let steps = path(&vec![100.0; longest]);
        let mut hits = vec![[0.0; 3]; windows.len()];
        let mut counted = 0.0;
        for (i, value) in values.iter().enumerate() {
            peaks.observe(i as i64, *value);
            let slot = i % DAY_STEPS as usize * peaks.slots() / DAY_STEPS as usize;
            peaks.forecast(Outlook { origin: i as i64, level: 100.0, slot, steps: &steps });
            if i < n / 3 || i + longest >= n {
                continue;
            }
            counted += 1.0;
            for (hits, peak) in hits.iter_mut().zip(peaks.newest()) {
                let window = &values[i + 1..=i + peak.steps as usize];
                let highest = window.iter().copied().fold(0.0, f64::max);
                for (hit, quantile) in hits.iter_mut().zip(&peak.quantiles) {
                    *hit += if highest <= *quantile { 1.0 } else { 0.0 };
                }
            }
        }
        hits.into_iter().map(|hits| hits.map(|hit| hit / counted)).collect()
    }

    fn assert_covers(shares: &[[f64; 3]]) {
        for share in shares {
            for ((share, level), most) in share.iter().zip(LEVELS).zip([0.06, 0.015, 0.012]) {
                assert!((share - level).abs() < most, "coverage at {level} is {share}: {shares:?}");
            }
        }
    }

    #[test]
    fn independent_noise_is_covered_over_every_window() {
        assert_covers(&coverage(&[1, 6, 12, 60], 30_000, |rng, _| {
            100.0 + (0..4).map(|_| rng.random_range(-15.0..15.0)).sum::<f64>()
        }));
    }

    #[test]
    fn bursts_that_last_are_covered() {
        let mut burst = 0.0;
        assert_covers(&coverage(&[1, 6, 12], 60_000, move |rng, _| {
            burst = 0.9 * burst + if rng.random_range(0.0..1.0) < 0.02 { rng.random_range(0.0..60.0) } else { 0.0 };
            100.0 + burst + rng.random_range(-5.0..5.0)
        }));
    }

    #[test]
    fn noise_that_follows_the_hour_is_covered() {
        assert_covers(&coverage(&[1, 6], 40_000, |rng, i| {
            let wide = if i % DAY_STEPS as usize > 48 { 60.0 } else { 5.0 };
            100.0 + rng.random_range(-wide..wide)
        }));
    }

    #[test]
    fn a_window_half_unknown_is_learned_and_an_emptier_one_is_not() {
        let mut peaks = Peaks::new(&[4], &LEVELS, DAY_STEPS);
        let steps = path(&[100.0; 4]);
        let forecast = |peaks: &mut Peaks, origin| {
            peaks.forecast(Outlook { origin, level: 100.0, slot: 0, steps: &steps });
        };
        peaks.observe(0, 100.0);
        forecast(&mut peaks, 0);
        peaks.observe(1, 100.0);
        peaks.observe(9, 100.0);
        assert_eq!(peaks.windows[0].learned, 0, "one of four");
        forecast(&mut peaks, 9);
        peaks.observe(10, 100.0);
        peaks.observe(11, 100.0);
        peaks.observe(20, 100.0);
        assert_eq!(peaks.windows[0].learned, 1, "two of four");
    }

    #[test]
    fn a_series_that_begins_with_nothing_does_not_blow_up() {
        let mut peaks = Peaks::new(&[2], &LEVELS, DAY_STEPS);
        for i in 0..3000 {
            let value = if i < 10 { 0.0 } else { 100.0 };
            peaks.observe(i, value);
            let steps = path(&[value; 2]);
            peaks.forecast(Outlook { origin: i, level: value.max(1e-9), slot: 0, steps: &steps });
        }
        assert!(peaks.newest()[0].quantiles[2] < 300.0, "{:?}", peaks.newest());
    }

    proptest! {
        #[test]
        fn ordered_by_level_and_window_whatever_happens(
            steps in prop::collection::vec((1_i64..5, 0.0_f64..1e6, 0.0_f64..1e6, 1e-9_f64..1e6), 1..300)
        ) {
            let mut peaks = Peaks::new(&[1, 3, 10], &LEVELS, DAY_STEPS);
            let mut index = 0;
            for (gap, value, mean, level) in steps {
                index += gap;
                peaks.observe(index, value);
                let means: Vec<f64> = (0..10).map(|i| mean * f64::from(i % 3)).collect();
                peaks.forecast(Outlook { origin: index, level, slot: index as usize % 48, steps: &path(&means) });
                let newest = peaks.newest();
                prop_assert_eq!(newest.len(), 3);
                for peak in &newest {
                    prop_assert!(peak.quantiles.is_sorted(), "{:?}", peak);
                    prop_assert!(peak.quantiles.iter().all(|q| q.is_finite() && *q >= 0.0), "{:?}", peak);
                }
                for pair in newest.windows(2) {
                    prop_assert!(pair[0].quantiles.iter().zip(&pair[1].quantiles).all(|(a, b)| a <= b));
                }
            }
            prop_assert!(peaks.fits(&[1, 3, 10], &LEVELS, DAY_STEPS));
        }
    }
}
