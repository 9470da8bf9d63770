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
use rows::{Bases, N, Outset, Row, clock};
use serde::{Deserialize, Serialize};

/// Most rows of the past that a fit uses.
const ROWS: usize = 10_080;
/// Fewest rows for a first fit.
const LEAST_ROWS: usize = 600;
const DEPTH: usize = 5;
const SPLITS: usize = (1 << DEPTH) - 1;
const LEAVES: usize = 1 << DEPTH;
/// Places of a tree: its nodes, the first place empty, and its leaves.
const PLACES: usize = 2 * LEAVES;
/// Trees that are walked down at the same time: each step down waits for the one before, but not for another tree's.
const ABREAST: usize = 8;
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
    /// Tree after tree, [`PLACES`] each: the nodes, breadth first and from place 1 on, as the feature plus 256 times
    /// the last rank that goes left; then the leaves, parts of the difference from the base in units of `unit`.
    #[serde(with = "crate::bits::short")]
    trees: Vec<i16>,
    unit: f32,
}

impl Trees {
    /// Not yet fitted.
    pub(crate) fn new(base: Base, share: Share) -> Self {
        let most = match base {
            Base::Last => share.last,
            Base::Typical => share.typical,
        };
        Trees { base, most, edges: Vec::new(), trees: Vec::new(), unit: 0.0 }
    }

    pub(crate) fn fits(&self, fresh: &Trees) -> bool {
        let trees = self.trees.len() / PLACES;
        self.base == fresh.base
            && self.most == fresh.most
            && (trees == 0 || trees == self.most)
            && self.trees.len() == trees * PLACES
            && self.edges.len() == if trees == 0 { 0 } else { N * (BINS - 1) }
            && !self.edges.iter().any(|edge| edge.is_nan())
            && self.unit.is_finite()
    }

    /// Bytes when fitted.
    pub(crate) fn memory_bytes(&self) -> usize {
        let edges = if self.most == 0 { 0 } else { N * (BINS - 1) * size_of::<f32>() };
        self.most * PLACES * size_of::<i16>() + edges
    }

    pub(crate) fn is_fitted(&self) -> bool {
        !self.trees.is_empty()
    }

    /// Abstains until fitted.
    pub(crate) fn predict(&self, view: &TargetView) -> Option<f64> {
        if self.trees.is_empty() {
            return None;
        }
        let sum = sum_of_leaves(&self.trees, &rank(&view.row, &self.edges));
        Some(f64::from(view.bases.of(self.base)) + sum as f64 * f64::from(self.unit))
    }

    /// Trees for forecasts `steps` ahead, from all of the past that is kept; nothing while it is too short.
    pub(crate) fn fit(&self, history: &History, seasons: Seasons, calendar: &Calendar, steps: u32) -> Trees {
        let unfitted = Trees { edges: Vec::new(), trees: Vec::new(), unit: 0.0, ..*self };
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
            let (row, bases) = Outset::new(at, seasons, origin, [mean_day, mean_week]).row(at, target, clock);
            rows.push(row);
            changes.push(observed - bases.of(self.base));
        }
        if rows.len() < LEAST_ROWS {
            return unfitted;
        }
        let fitted = Boost::new(&rows, changes).run(self.most, REACH / self.most as f64);
        let largest = fitted.leaves.iter().fold(0.0_f32, |largest, leaf| largest.max(leaf.abs()));
        let unit = (largest / f32::from(i16::MAX)).max(f32::MIN_POSITIVE);
        let mut trees = Vec::with_capacity(self.most * PLACES);
        for (nodes, leaves) in fitted.nodes.chunks_exact(SPLITS).zip(fitted.leaves.chunks_exact(LEAVES)) {
            trees.push(0);
            trees.extend(nodes.iter().map(|&(feature, cut)| i16::from(feature) | i16::from(cut) << 8));
            trees.extend(leaves.iter().map(|leaf| (leaf / unit).round() as i16));
        }
        Trees { edges: fitted.edges, trees, unit, ..unfitted }
    }
}

/// What all targets seen from the newest interval have in common for the trees; made once for all horizons.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OriginView(Outset);

/// What the trees see of one target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TargetView {
    row: Row,
    bases: Bases,
}

fn past(history: &History) -> impl Fn(i64) -> f32 {
    |index| history.series.at(index).map_or(f32::NAN, |value| value as f32)
}

impl OriginView {
    /// Before the first sample there is nothing to see.
    pub(crate) fn new(history: &History, seasons: Seasons) -> Option<Self> {
        let (origin, _) = history.series.newest()?;
        let means = [history.means.day as f32, history.means.week as f32];
        Some(OriginView(Outset::new(past(history), seasons, origin, means)))
    }

    /// `history` is the one that this was made from.
    pub(crate) fn target(&self, history: &History, calendar: &Calendar, target: i64) -> TargetView {
        let clock = clock(calendar, history.series.start_ms(target));
        let (row, bases) = self.0.row(past(history), target, clock);
        TargetView { row, bases }
    }
}

/// The ranks of a row, and one that no node asks for.
type Ranks = [u8; N + 1];

/// The rank of each feature among the edges.
fn rank(row: &Row, edges: &[f32]) -> Ranks {
    let mut bins = [0; N + 1];
    for ((bin, edges), value) in bins.iter_mut().zip(edges.as_chunks::<{ BINS - 1 }>().0).zip(row) {
        // Five halvings, without a branch that depends on the value.
        let (mut below, mut half) = (0, BINS / 2);
        while half > 0 {
            below += if edges[below + half - 1] < *value { half } else { 0 };
            half /= 2;
        }
        *bin = below as u8;
    }
    bins
}

/// Sum over all trees of the leaves that the row falls into.
fn sum_of_leaves(trees: &[i16], ranks: &Ranks) -> i64 {
    let (trees, _) = trees.as_chunks::<PLACES>();
    let (groups, rest) = trees.as_chunks::<ABREAST>();
    let mut sum = 0;
    for group in groups {
        let mut places = [1_usize; ABREAST];
        for _ in 0..DEPTH {
            for (place, tree) in places.iter_mut().zip(group) {
                *place = below(tree, ranks, *place);
            }
        }
        sum += places.iter().zip(group).map(|(place, tree)| i64::from(tree[*place % PLACES])).sum::<i64>();
    }
    let alone = |tree: &[i16; PLACES]| {
        let place = (0..DEPTH).fold(1, |place, _| below(tree, ranks, place));
        i64::from(tree[place % PLACES])
    };
    sum + rest.iter().map(alone).sum::<i64>()
}

/// The place below `place`, left or right. Both remainders only spare a check.
fn below(tree: &[i16; PLACES], ranks: &Ranks, place: usize) -> usize {
    let node = tree[place % PLACES] as u16;
    let rank = ranks[usize::from(node) % (N + 1)];
    2 * place + usize::from(u16::from(rank) > node >> 8)
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

    fn view(history: &History, calendar: &Calendar, target: i64) -> TargetView {
        OriginView::new(history, SEASONS).expect("there are samples").target(history, calendar, target)
    }

    #[test]
    fn finds_a_step_by_the_clock() {
        let (history, calendar) = history(24 * 60 + 8);
        let (newest, _) = history.series.newest().expect("there are samples");
        // One row of 24 jumps; from the last value each tree can take only part of that.
        for (base, most) in [(Base::Last, 30.0), (Base::Typical, 8.0)] {
            let trees = fitted(&history, &calendar, base, 1);
            let forecast = trees.predict(&view(&history, &calendar, newest + 1)).expect("it is fitted");
            assert!((forecast - 105.0).abs() < most, "{base:?}: {forecast} after {}", history.last_value());
            assert!(trees.fits(&Trees::new(base, Share::new(0, 4))) && trees.trees.len() == MANY * PLACES);
            let bytes = 4 * trees.edges.len() + 2 * trees.trees.len();
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
        assert_eq!(trees.predict(&view(&history, &calendar, 300)), None);
    }

    #[test]
    fn many_horizons_share() {
        let trees: usize = (0..9).map(|place| Share::new(place, 9)).map(|share| share.last + share.typical).sum();
        assert_eq!(trees, 9 * FEW);
    }
}
