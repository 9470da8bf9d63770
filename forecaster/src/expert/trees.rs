//! Boosted regression trees on the change from the newest value to the target, with absolute loss.
//!
//! Purpose: what is not linear — a morning after a holiday, a peak that ends by the clock. Fitted anew now and then
//! on the recorded past (`boost`), outside the step that forecasts: [`crate::Model::maintain`].
//!
//! All inputs but the clock are differences of values and all comparisons are of ranks, so that a scaled series
//! gives the scaled forecast.
//!
//! Invariants: the fit is a pure function of the history; leaves are finite; time and memory are bounded by [`ROWS`],
//! [`MANY`] and [`DEPTH`]. Abstains until fitted, and always where the history keeps means of several steps (below
//! a minute).

mod boost;
mod rows;

use crate::calendar::Calendar;
use crate::history::{History, Seasons};
use boost::Boost;
use rows::{N, Row, clock, row};
use serde::{Deserialize, Serialize};

/// Most rows of the past that a fit uses.
const ROWS: usize = 10_080;
/// Fewest rows for a first fit.
const LEAST_ROWS: usize = 600;
const DEPTH: usize = 5;
const SPLITS: usize = (1 << DEPTH) - 1;
const LEAVES: usize = 1 << DEPTH;
/// Ranks that a feature is cut into.
const BINS: usize = 32;

/// Trees for a horizon of a model with few horizons, of each [`Base`].
const MANY: usize = 120;
/// Trees for a horizon where there are more, of one [`Base`] only.
const FEW: usize = 56;
/// Horizons that are few.
const FEW_HORIZONS: usize = 4;
/// Trees times their learning rate.
const REACH: f64 = 11.0;

/// Trees of each base that the horizon at `place` of `horizons` may have: a series' memory and time are bounded, and a
/// second base adds less to a forecast than a first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    last: usize,
    typical: usize,
}

impl Share {
    pub(crate) fn new(place: usize, horizons: usize) -> Self {
        if horizons <= FEW_HORIZONS {
            return Share { last: MANY, typical: MANY };
        }
        if place.is_multiple_of(2) { Share { last: FEW, typical: 0 } } else { Share { last: 0, typical: FEW } }
    }
}

/// What the trees' sum is added to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Base {
    /// The newest value.
    Last,
    /// The mean of the target's slot over the last four weeks.
    Typical,
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Trees {
    base: Base,
    /// Trees that a fit makes; none if 0.
    most: usize,
    /// By feature: the values that its ranks end at.
    #[serde(with = "crate::bits::single")]
    edges: Vec<f32>,
    /// By tree and node, breadth first: the feature, and the last rank that goes left.
    #[serde(with = "crate::bits::bytes")]
    features: Vec<u8>,
    #[serde(with = "crate::bits::bytes")]
    cuts: Vec<u8>,
    /// By tree and leaf: part of the difference from the base, in units of `unit`.
    leaves: Vec<i16>,
    unit: f32,
}

impl Trees {
    /// Not yet fitted.
    pub(crate) fn new(base: Base, share: Share) -> Self {
        let most = match base {
            Base::Last => share.last,
            Base::Typical => share.typical,
        };
        Trees { base, most, edges: Vec::new(), features: Vec::new(), cuts: Vec::new(), leaves: Vec::new(), unit: 0.0 }
    }

    pub(crate) fn fits(&self, fresh: &Trees) -> bool {
        let trees = self.leaves.len() / LEAVES;
        self.base == fresh.base
            && self.most == fresh.most
            && (trees == 0 || trees == self.most)
            && self.leaves.len() == trees * LEAVES
            && self.features.len() == trees * SPLITS
            && self.cuts.len() == trees * SPLITS
            && self.edges.len() == if trees == 0 { 0 } else { N * (BINS - 1) }
            && self.features.iter().all(|&feature| usize::from(feature) < N)
            && !self.edges.iter().any(|edge| edge.is_nan())
            && self.unit.is_finite()
    }

    /// Bytes when fitted.
    pub(crate) fn memory_bytes(&self) -> usize {
        let edges = if self.most == 0 { 0 } else { N * (BINS - 1) * size_of::<f32>() };
        self.most * (2 * SPLITS + LEAVES * size_of::<i16>()) + edges
    }

    pub(crate) fn predict(&self, history: &History, seasons: Seasons, calendar: &Calendar, target: i64) -> Option<f64> {
        if self.leaves.is_empty() {
            return None;
        }
        let (origin, _) = history.series.newest()?;
        let past = |index: i64| history.series.at(index).map_or(f32::NAN, |value| value as f32);
        let means = [history.means.day as f32, history.means.week as f32];
        let clock = clock(calendar, history.series.start_ms(target));
        let (row, bases) = row(past, seasons, origin, target, means, clock);
        let bins = rank(&row, &self.edges);
        let trees = self
            .features
            .chunks_exact(SPLITS)
            .zip(self.cuts.chunks_exact(SPLITS))
            .zip(self.leaves.chunks_exact(LEAVES));
        let sum: i64 = trees.map(|((features, cuts), leaves)| i64::from(leaves[leaf(&bins, features, cuts)])).sum();
        Some(f64::from(bases.of(self.base)) + sum as f64 * f64::from(self.unit))
    }

    /// Trees for forecasts `steps` ahead, from all of the past that is kept; nothing while it is too short.
    pub(crate) fn fit(&self, history: &History, seasons: Seasons, calendar: &Calendar, steps: u32) -> Trees {
        let unfitted =
            Trees { edges: Vec::new(), features: Vec::new(), cuts: Vec::new(), leaves: Vec::new(), unit: 0.0, ..*self };
        if self.most == 0 {
            return unfitted;
        }
        let Some((newest, _)) = history.series.newest() else { return unfitted };
        if history.series.is_coarse() {
            return unfitted;
        }
        let first = (newest + 1 - ROWS as i64).max(0);
        let past: Vec<f32> =
            (first..=newest).map(|index| history.series.at(index).map_or(f32::NAN, |value| value as f32)).collect();
        let steps = i64::from(steps);
        let at =
            |index: i64| usize::try_from(index - first).ok().and_then(|i| past.get(i)).copied().unwrap_or(f32::NAN);
        // The first day has no seasonal lag at all, and there the means have not settled.
        let begin = first + seasons.day_steps as i64;
        let (mut rows, mut changes) = (Vec::new(), Vec::new());
        let (mut mean_day, mut mean_week, mut known) = (0.0_f32, 0.0_f32, 0_u64);
        for origin in first..=newest - steps {
            let value = at(origin);
            if value.is_nan() {
                continue;
            }
            known += 1;
            mean_day += (value - mean_day) / known.min(seasons.day_steps) as f32;
            mean_week += (value - mean_week) / known.min(seasons.week_steps) as f32;
            let (target, observed) = (origin + steps, at(origin + steps));
            if origin < begin || observed.is_nan() {
                continue;
            }
            let clock = clock(calendar, history.series.start_ms(target));
            let (row, bases) = row(at, seasons, origin, target, [mean_day, mean_week], clock);
            rows.push(row);
            changes.push(observed - bases.of(self.base));
        }
        if rows.len() < LEAST_ROWS {
            return unfitted;
        }
        let fitted = Boost::new(&rows, changes).run(self.most, REACH / self.most as f64);
        let largest = fitted.leaves.iter().fold(0.0_f32, |largest, leaf| largest.max(leaf.abs()));
        let unit = (largest / f32::from(i16::MAX)).max(f32::MIN_POSITIVE);
        Trees {
            edges: fitted.edges,
            features: fitted.features,
            cuts: fitted.cuts,
            leaves: fitted.leaves.iter().map(|leaf| (leaf / unit).round() as i16).collect(),
            unit,
            ..unfitted
        }
    }
}

/// The rank of each feature among the edges.
fn rank(row: &Row, edges: &[f32]) -> [u8; N] {
    let mut bins = [0; N];
    for ((bin, edges), value) in bins.iter_mut().zip(edges.chunks_exact(BINS - 1)).zip(row) {
        *bin = edges.partition_point(|edge| edge < value) as u8;
    }
    bins
}

/// The leaf of one tree that a row falls into.
fn leaf(bins: &[u8; N], features: &[u8], cuts: &[u8]) -> usize {
    let mut node = 0;
    for _ in 0..DEPTH {
        node = 2 * node + 1 + usize::from(bins[usize::from(features[node]) % N] > cuts[node]);
    }
    node - SPLITS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::CalendarConfig;

    const HOUR_MS: i64 = 3_600_000;
    const SEASONS: Seasons = Seasons { interval_ms: HOUR_MS as u64, day_steps: 24, week_steps: 168 };

    /// Hours of a day with a step at eight and a random level, which no lag tells.
    fn history(hours: i64) -> (History, Calendar) {
        let calendar = Calendar::new(&CalendarConfig::default());
        let mut history = History::new(SEASONS, 0);
        let mut state = 1_u64;
        for hour in 0..hours {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let noise = (state >> 54) as f64 / 100.0;
            let value = if hour % 24 < 8 { 20.0 } else { 100.0 } + noise;
            history.observe(SEASONS, &calendar, calendar.phase(hour * HOUR_MS), hour * HOUR_MS, value);
        }
        (history, calendar)
    }

    fn fitted(history: &History, calendar: &Calendar, base: Base, steps: u32) -> Trees {
        Trees::new(base, Share::new(0, 4)).fit(history, SEASONS, calendar, steps)
    }

    #[test]
    fn finds_a_step_by_the_clock() {
        let (history, calendar) = history(24 * 60 + 8);
        let (newest, _) = history.series.newest().expect("there are samples");
        // One row of 24 jumps; from the last value each tree can take only part of that.
        for (base, most) in [(Base::Last, 30.0), (Base::Typical, 8.0)] {
            let trees = fitted(&history, &calendar, base, 1);
            let forecast = trees.predict(&history, SEASONS, &calendar, newest + 1).expect("it is fitted");
            assert!((forecast - 105.0).abs() < most, "{base:?}: {forecast} after {}", history.last_value());
            assert!(trees.fits(&Trees::new(base, Share::new(0, 4))) && trees.leaves.len() == MANY * LEAVES);
            let bytes = 4 * trees.edges.len() + trees.features.len() + trees.cuts.len() + 2 * trees.leaves.len();
            assert_eq!(bytes, trees.memory_bytes());
        }
    }

    #[test]
    fn the_same_past_gives_the_same_trees() {
        let (history, calendar) = history(24 * 40);
        let text = || serde_json::to_string(&fitted(&history, &calendar, Base::Typical, 3)).ok();
        assert_eq!(text(), text());
    }

    #[test]
    fn a_short_past_gives_none() {
        let (history, calendar) = history(300);
        let trees = fitted(&history, &calendar, Base::Last, 1);
        assert_eq!(trees.predict(&history, SEASONS, &calendar, 300), None);
    }

    #[test]
    fn many_horizons_share() {
        let trees: usize = (0..9).map(|place| Share::new(place, 9)).map(|share| share.last + share.typical).sum();
        assert_eq!(trees, 9 * FEW);
    }
}
