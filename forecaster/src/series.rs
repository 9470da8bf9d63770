//! The recent past of one series on a regular grid, in bounded memory.
//!
//! Purpose: answer "what was the value in the interval with this index" for lags and seasonal lags.
//!
//! Invariants:
//! - The first sample fixes the grid; a start that is not a whole number of intervals from it is refused.
//! - An interval that never came is *unknown* (NaN in the rings), never zero: an absent observation says nothing
//!   about the load, while a closed interval without arrivals is observed as 0. Features substitute a known
//!   neighbour, experts abstain, nothing is learned from it.
//! - A gap longer than the memory empties it.
//! - Memory: [`RECENT_STEPS`] samples as they came, and at most [`DAY_BUCKETS`] means a day for the seasonal lags,
//!   whatever the interval, in single precision.
//!
//! Left out: what the values mean, and everything learned from them.

use crate::ring::Ring;
use crate::work::count;
use schemas::EpochMs;
use serde::{Deserialize, Serialize};

/// Samples kept at full resolution.
pub(crate) const RECENT_STEPS: usize = 64;
/// Most seasonal means kept for one day: one a minute.
pub(crate) const DAY_BUCKETS: u64 = 1440;
/// Latest instant accepted: the end of the year 9999. Beyond it a clock is broken.
pub(crate) const MAX_INSTANT_MS: i64 = 253_402_300_799_999;

/// Shape of a [`Series`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeriesShape {
    /// Length of a step.
    pub(crate) interval_ms: u64,
    /// Steps of a day.
    pub(crate) day_steps: u64,
    /// Steps that seasonal lags reach back.
    pub(crate) memory_steps: u64,
}

impl SeriesShape {
    fn bucket_steps(self) -> i64 {
        self.day_steps.div_ceil(DAY_BUCKETS).max(1) as i64
    }

    fn buckets(self) -> usize {
        self.memory_steps.div_ceil(self.bucket_steps() as u64) as usize + 2
    }
}

/// Where a new sample stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// After everything known, with this many unknown intervals before it.
    Ahead { index: i64, missing: u64 },
    /// At or before the last known interval.
    Behind { index: i64 },
}

/// What [`Series::amend`] did with a sample of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Amended {
    /// The interval was unknown and is known now.
    Filled,
    /// The interval had another value.
    Corrected,
    /// The interval had this value already.
    Same,
    /// The interval is older than what is kept at full resolution.
    TooOld,
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Series {
    interval_ms: i64,
    bucket_steps: i64,
    memory_steps: u64,
    /// Start of the interval with index 0: the first sample ever.
    anchor_ms: Option<EpochMs>,
    /// Index of the newest interval.
    last: i64,
    recent: Ring<f64>,
    /// Means of closed buckets; the newest belongs to the bucket before that of `last`.
    buckets: Ring<f32>,
    /// Sum and number of the known samples in the bucket of `last`.
    open_sum: f64,
    open_count: u32,
}

impl Series {
    pub(crate) fn new(shape: SeriesShape) -> Self {
        Series {
            interval_ms: shape.interval_ms as i64,
            bucket_steps: shape.bucket_steps(),
            memory_steps: shape.memory_steps,
            anchor_ms: None,
            last: 0,
            recent: Ring::new(RECENT_STEPS),
            buckets: Ring::new(shape.buckets()),
            open_sum: 0.0,
            open_count: 0,
        }
    }

    /// True if this state, read from outside, has the rings that `shape` asks for.
    pub(crate) fn fits(&self, shape: SeriesShape) -> bool {
        self.interval_ms == shape.interval_ms as i64
            && self.bucket_steps == shape.bucket_steps()
            && self.memory_steps == shape.memory_steps
            && self.recent.fits(RECENT_STEPS)
            && self.buckets.fits(shape.buckets())
            && self.open_sum.is_finite()
            && i64::from(self.open_count) <= self.bucket_steps
            && self.anchor_ms.is_none_or(|anchor| (0..=MAX_INSTANT_MS).contains(&anchor))
            && (0..=MAX_INSTANT_MS).contains(&self.last)
    }

    /// Index and start of the newest interval; `None` before the first sample.
    pub(crate) fn newest(&self) -> Option<(i64, EpochMs)> {
        self.anchor_ms.map(|anchor| (self.last, anchor + self.last * self.interval_ms))
    }

    /// Start of the interval with this index.
    pub(crate) fn start_ms(&self, index: i64) -> EpochMs {
        self.anchor_ms.unwrap_or(0) + index * self.interval_ms
    }

    /// Where a sample with this start belongs; `None` if it is off the grid. `start_ms` is in `[0, MAX_INSTANT_MS]`.
    pub(crate) fn place(&self, start_ms: EpochMs) -> Option<Place> {
        let Some(anchor) = self.anchor_ms else { return Some(Place::Ahead { index: 0, missing: 0 }) };
        let since = start_ms - anchor;
        if since.rem_euclid(self.interval_ms) != 0 {
            return None;
        }
        let index = since.div_euclid(self.interval_ms);
        Some(if index > self.last {
            Place::Ahead { index, missing: (index - self.last - 1) as u64 }
        } else {
            Place::Behind { index }
        })
    }

    /// Appends the sample at `start_ms`; unknown intervals before it are marked, or, when they are more than the
    /// memory, everything is forgotten. Takes time proportional to the memory at most. Returns its index.
    pub(crate) fn push(&mut self, start_ms: EpochMs, value: f64) -> i64 {
        let Some(anchor) = self.anchor_ms else {
            self.anchor_ms = Some(start_ms);
            self.append(0, value);
            return 0;
        };
        let index = (start_ms - anchor).div_euclid(self.interval_ms);
        if (index - self.last) as u64 > self.memory_steps {
            self.recent.clear();
            self.buckets.clear();
            (self.open_sum, self.open_count) = (0.0, 0);
            self.append(index, value);
            return index;
        }
        count((index - self.last) as usize);
        for missing in self.last + 1..index {
            self.close_bucket_before(missing);
            self.append(missing, f64::NAN);
        }
        self.close_bucket_before(index);
        self.append(index, value);
        index
    }

    fn append(&mut self, index: i64, value: f64) {
        self.last = index;
        self.recent.push(value);
        if !value.is_nan() {
            self.open_sum += value;
            self.open_count += 1;
        }
    }

    fn close_bucket_before(&mut self, index: i64) {
        if index.div_euclid(self.bucket_steps) != self.last.div_euclid(self.bucket_steps) {
            self.buckets.push(self.open_mean());
            (self.open_sum, self.open_count) = (0.0, 0);
        }
    }

    fn open_mean(&self) -> f64 {
        if self.open_count == 0 { f64::NAN } else { self.open_sum / f64::from(self.open_count) }
    }

    /// The value of an interval, or the mean of the bucket around it when it is older than the recent samples.
    /// `None` if it is unknown, forgotten or not yet come.
    pub(crate) fn at(&self, index: i64) -> Option<f64> {
        count(1);
        let back = usize::try_from(self.last - index).ok()?;
        let value = if back < self.recent.len() {
            self.recent.get(back)?
        } else {
            match usize::try_from(self.buckets_back(index)).ok()? {
                0 => self.open_mean(),
                closed => self.buckets.get(closed - 1)?,
            }
        };
        (!value.is_nan()).then_some(value)
    }

    /// Buckets from that of `index` to the open one.
    fn buckets_back(&self, index: i64) -> i64 {
        if self.bucket_steps == 1 {
            // The usual case, twenty times a step: two divisions less.
            return self.last - index;
        }
        self.last.div_euclid(self.bucket_steps) - index.div_euclid(self.bucket_steps)
    }

    /// True if the older past is kept as means of several steps.
    pub(crate) fn is_coarse(&self) -> bool {
        self.bucket_steps > 1
    }

    /// Changes a sample of the past (index at most the last). What was learned from the old value stays.
    pub(crate) fn amend(&mut self, index: i64, value: f64) -> Amended {
        let Ok(back) = usize::try_from(self.last - index) else { return Amended::TooOld };
        let Some(old) = self.recent.get(back) else { return Amended::TooOld };
        if old == value {
            return Amended::Same;
        }
        self.recent.set(back, value);
        let buckets_back = self.buckets_back(index);
        if buckets_back == 0 {
            let was_unknown = old.is_nan();
            self.open_sum += if was_unknown { value } else { value - old };
            self.open_count += u32::from(was_unknown);
        } else if self.bucket_steps == 1 {
            self.buckets.set((buckets_back - 1) as usize, value);
        }
        if old.is_nan() { Amended::Filled } else { Amended::Corrected }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.recent.memory_bytes() + self.buckets.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: SeriesShape = SeriesShape { interval_ms: 60_000, day_steps: 1440, memory_steps: 20_160 };
    const SECOND: SeriesShape = SeriesShape { interval_ms: 1000, day_steps: 86_400, memory_steps: 172_800 };

    fn filled(shape: SeriesShape, values: impl IntoIterator<Item = f64>) -> Series {
        let mut series = Series::new(shape);
        for (i, value) in values.into_iter().enumerate() {
            series.push(i as i64 * shape.interval_ms as i64, value);
        }
        series
    }

    #[test]
    fn lags_reach_over_both_rings() {
        let series = filled(MINUTE, (0..3000).map(f64::from));
        for index in [2999, 2990, 2936, 2935, 1500, 0] {
            assert_eq!(series.at(index), Some(index as f64));
        }
        assert_eq!(series.at(3000), None);
        assert_eq!(series.at(-1), None);
    }

    #[test]
    fn one_second_data_keeps_minute_means() {
        let series = filled(SECOND, (0..1000).map(f64::from));
        assert_eq!(series.at(999), Some(999.0));
        assert_eq!(series.at(130), Some((120..180).sum::<i32>() as f64 / 60.0));
        assert!(series.memory_bytes() < 30_000, "{}", series.memory_bytes());
    }

    #[test]
    fn missing_intervals_are_unknown_not_zero() {
        let mut series = filled(MINUTE, [1.0, 2.0]);
        assert_eq!(series.place(5 * 60_000), Some(Place::Ahead { index: 5, missing: 3 }));
        assert_eq!(series.push(5 * 60_000, 6.0), 5);
        assert_eq!((2..5).map(|index| series.at(index)).collect::<Vec<_>>(), [None; 3]);
        assert_eq!((series.at(1), series.at(5)), (Some(2.0), Some(6.0)));
    }

    #[test]
    fn a_late_sample_fills_its_gap_and_a_correction_replaces() {
        let mut series = filled(MINUTE, [1.0, 2.0]);
        series.push(4 * 60_000, 5.0);
        assert_eq!(series.place(3 * 60_000), Some(Place::Behind { index: 3 }));
        assert_eq!(series.amend(3, 4.0), Amended::Filled);
        assert_eq!(series.amend(3, 4.0), Amended::Same);
        assert_eq!(series.amend(1, 7.0), Amended::Corrected);
        assert_eq!(series.amend(-100, 7.0), Amended::TooOld);
        for _ in 0..100 {
            let (_, start) = series.newest().unwrap_or_default();
            series.push(start + 60_000, 9.0);
        }
        assert_eq!(
            (series.at(1), series.at(2), series.at(3)),
            (Some(7.0), None, Some(4.0)),
            "the old ring is amended too"
        );
    }

    #[test]
    fn off_grid_is_refused_and_a_grid_may_have_any_phase() {
        let mut series = Series::new(MINUTE);
        series.push(30_000, 1.0);
        assert_eq!(series.place(60_000), None);
        assert_eq!(series.place(90_000), Some(Place::Ahead { index: 1, missing: 0 }));
    }

    #[test]
    fn a_gap_beyond_the_memory_forgets() {
        let mut series = filled(MINUTE, (0..100).map(f64::from));
        let index = series.push(10_000_000_i64 * 60_000, 3.0);
        assert_eq!(series.at(index), Some(3.0));
        assert_eq!(series.at(index - 1), None);
        assert_eq!(series.at(99), None);
    }

    proptest! {
        /// Against a plain list of everything that ever came.
        #[test]
        fn agrees_with_an_unbounded_list(steps in prop::collection::vec((1_i64..4, 0.0_f64..100.0), 1..400)) {
            let shape = SeriesShape { interval_ms: 1000, day_steps: 96, memory_steps: 200 };
            let mut series = Series::new(shape);
            let mut list: Vec<Option<f64>> = Vec::new();
            for (step, value) in steps {
                let gap = if list.is_empty() { 1 } else { step };
                list.extend(std::iter::repeat_n(None, gap as usize - 1));
                list.push(Some(value));
                series.push((list.len() as i64 - 1) * 1000, value);
            }
            let oldest_kept = list.len().saturating_sub(200);
            for (index, value) in list.iter().enumerate().skip(oldest_kept) {
                let found = series.at(index as i64);
                let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b;
                prop_assert!(found.is_none() == value.is_none(), "index {}: {:?}, {:?}", index, found, value);
                prop_assert!(found.zip(*value).is_none_or(|(a, b)| near(a, b)), "index {}: {:?}, {:?}", index, found, value);
            }
        }
    }
}
