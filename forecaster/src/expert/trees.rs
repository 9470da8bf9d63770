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
use crate::work::count;
use boost::{Boost, Fitted};
pub(crate) use rows::N;
use rows::{Bases, Outset, Row, clock};
use serde::{Deserialize, Serialize};

/// Most rows of the past that a fit uses.
pub(crate) const ROWS: usize = 10_080;
/// Fewest rows for a first fit.
const LEAST_ROWS: usize = 600;
pub(crate) const DEPTH: usize = 5;
const SPLITS: usize = (1 << DEPTH) - 1;
const LEAVES: usize = 1 << DEPTH;
/// Trees that are walked down at the same time: each step down waits for the one before, but not for another tree's.
const ABREAST: usize = 8;
/// Ranks that a feature is cut into.
const BINS: usize = 32;

/// Trees for a horizon of a model with few horizons, of each [`Base`].
pub(crate) const MANY: usize = 120;
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
    /// Of the horizon at this place of so many.
    pub(crate) fn new(place: usize, horizons: usize) -> Self {
        if horizons <= FEW_HORIZONS {
            return Share { last: MANY, typical: MANY };
        }
        if place.is_multiple_of(2) { Share { last: FEW, typical: 0 } } else { Share { last: 0, typical: FEW } }
    }

    /// The same, with trees only on the bases that are wanted.
    pub(crate) fn of(self, last: bool, typical: bool) -> Self {
        Share { last: if last { self.last } else { 0 }, typical: if typical { self.typical } else { 0 } }
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

impl Base {
    const ALL: [Base; 2] = [Base::Last, Base::Typical];
}

/// The trees on one base.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Trees {
    base: Base,
    /// Trees that a fit makes; none if 0.
    most: usize,
    /// Tree after tree, [`LEAVES`] places each: breadth first and from place 1 on, the feature plus 256 times the last
    /// rank that goes left.
    #[serde(with = "crate::bits::short")]
    nodes: Vec<i16>,
    /// Tree after tree: leaves in the tree's unit. A hundred and twenty-seventh of the largest is far below what a
    /// leaf can be known to, and a step reads every tree.
    #[serde(with = "crate::bits::tiny")]
    leaves: Vec<i8>,
    /// By tree.
    #[serde(with = "crate::bits::single")]
    units: Vec<f32>,
}

impl Trees {
    fn new(base: Base, most: usize) -> Self {
        Trees { base, most, nodes: Vec::new(), leaves: Vec::new(), units: Vec::new() }
    }

    fn fits(&self, fresh: &Trees) -> bool {
        let trees = self.units.len();
        self.base == fresh.base
            && self.most == fresh.most
            && (trees == 0 || trees == self.most)
            && self.nodes.len() == trees * LEAVES
            && self.leaves.len() == trees * LEAVES
            && self.units.iter().all(|unit| unit.is_finite())
    }

    fn set(&mut self, fitted: &Fitted) {
        *self = Trees::new(self.base, self.most);
        for (nodes, leaves) in fitted.nodes.chunks_exact(SPLITS).zip(fitted.leaves.chunks_exact(LEAVES)) {
            self.nodes.push(0);
            self.nodes.extend(nodes.iter().map(|&(feature, cut)| i16::from(feature) | i16::from(cut) << 8));
            let largest = leaves.iter().fold(0.0_f32, |largest, leaf| largest.max(leaf.abs()));
            let unit = (largest / f32::from(i8::MAX)).max(f32::MIN_POSITIVE);
            self.leaves.extend(leaves.iter().map(|leaf| (leaf / unit).round() as i8));
            self.units.push(unit);
        }
    }

    /// Abstains until fitted.
    fn predict(&self, view: &TargetView, ranks: &Ranks) -> Option<f64> {
        (!self.units.is_empty()).then(|| f64::from(view.bases.of(self.base)) + self.sum(ranks))
    }

    /// Sum over all trees of the leaves that a row falls into.
    fn sum(&self, ranks: &Ranks) -> f64 {
        count(self.units.len() * DEPTH);
        let (nodes, _) = self.nodes.as_chunks::<LEAVES>();
        let (leaves, _) = self.leaves.as_chunks::<LEAVES>();
        let leaf = |place: usize, leaves: &[i8; LEAVES], unit: f32| f64::from(unit) * f64::from(leaves[place % LEAVES]);
        let (groups, rest) = nodes.as_chunks::<ABREAST>();
        let (mut leaves, mut units) = (leaves.iter(), self.units.iter());
        let mut sum = 0.0;
        for group in groups {
            let mut places = [1_usize; ABREAST];
            for _ in 0..DEPTH {
                for (place, tree) in places.iter_mut().zip(group) {
                    *place = below(tree, ranks, *place);
                }
            }
            for ((place, leaves), &unit) in places.iter().zip(&mut leaves).zip(&mut units) {
                sum += leaf(*place, leaves, unit);
            }
        }
        for ((tree, leaves), &unit) in rest.iter().zip(leaves).zip(units) {
            sum += leaf((0..DEPTH).fold(1, |place, _| below(tree, ranks, place)), leaves, unit);
        }
        sum
    }

    fn memory_bytes(&self) -> usize {
        self.most * (LEAVES * (size_of::<i16>() + size_of::<i8>()) + size_of::<f32>())
    }
}

/// The trees of one horizon; see the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Forest {
    /// By feature: the values that its ranks end at.
    #[serde(with = "crate::bits::single")]
    edges: Vec<f32>,
    /// One for each base.
    trees: [Trees; 2],
}

impl Forest {
    /// Not yet fitted.
    pub(crate) fn new(share: Share) -> Self {
        let trees = Base::ALL.map(|base| {
            let most = match base {
                Base::Last => share.last,
                Base::Typical => share.typical,
            };
            Trees::new(base, most)
        });
        Forest { edges: Vec::new(), trees }
    }

    pub(crate) fn fits(&self, fresh: &Forest) -> bool {
        self.edges.len() == if self.is_fitted() { N * (BINS - 1) } else { 0 }
            && !self.edges.iter().any(|edge| edge.is_nan())
            && self.trees.iter().zip(&fresh.trees).all(|(trees, fresh)| trees.fits(fresh))
    }

    /// Bytes when fitted.
    pub(crate) fn memory_bytes(&self) -> usize {
        N * (BINS - 1) * size_of::<f32>() + self.trees.iter().map(Trees::memory_bytes).sum::<usize>()
    }

    pub(crate) fn is_fitted(&self) -> bool {
        self.trees.iter().any(|trees| !trees.units.is_empty())
    }

    /// The forecasts on each base; `None` until fitted.
    pub(crate) fn predict(&self, view: &TargetView) -> [Option<f64>; 2] {
        if self.edges.is_empty() {
            return [None; 2];
        }
        let ranks = rank(&view.row, &self.edges);
        [self.trees[0].predict(view, &ranks), self.trees[1].predict(view, &ranks)]
    }

    /// Trees for forecasts `steps` ahead, from all of the past that is kept; none while it is too short.
    pub(crate) fn refit(&mut self, history: &History, seasons: Seasons, calendar: &Calendar, steps: u32) {
        let unfitted = |trees: &mut Trees| *trees = Trees::new(trees.base, trees.most);
        let rows = if self.trees.iter().all(|trees| trees.most == 0) || history.series.is_coarse() {
            Vec::new()
        } else {
            examples(history, seasons, calendar, i64::from(steps))
        };
        self.edges.clear();
        self.trees.iter_mut().for_each(unfitted);
        if rows.len() < LEAST_ROWS {
            return;
        }
        let boost = Boost::new(rows.iter().map(|example| &example.row));
        for trees in self.trees.iter_mut().filter(|trees| trees.most > 0) {
            let changes = rows.iter().map(|example| example.observed - example.bases.of(trees.base)).collect();
            trees.set(&boost.run(changes, trees.most, REACH / trees.most as f64));
        }
        self.edges = boost.into_edges();
    }
}

/// A target of the past, and what was seen of it.
struct Example {
    row: Row,
    bases: Bases,
    observed: f32,
}

/// All targets `steps` ahead of an origin that are kept and known.
fn examples(history: &History, seasons: Seasons, calendar: &Calendar, steps: i64) -> Vec<Example> {
    let Some((newest, _)) = history.series.newest() else { return Vec::new() };
    let first = (newest + 1 - ROWS as i64).max(0);
    let past: Vec<f32> = (first..=newest).map(past(history)).collect();
    let at = |index: i64| usize::try_from(index - first).ok().and_then(|i| past.get(i)).copied().unwrap_or(f32::NAN);
    // The first day has no seasonal lag at all, and there the means have not settled.
    let begin = first + seasons.day_steps as i64;
    let mut examples = Vec::with_capacity((newest - steps - begin + 1).max(0) as usize);
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
        count(N);
        examples.push(Example { row, bases, observed });
    }
    examples
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
    count(N);
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

/// The place below `place`, left or right. Both remainders only spare a check.
fn below(tree: &[i16; LEAVES], ranks: &Ranks, place: usize) -> usize {
    let node = tree[place % LEAVES] as u16;
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

    fn fitted(history: &History, calendar: &Calendar, steps: u32) -> Forest {
        let mut forest = Forest::new(Share::new(0, 4));
        forest.refit(history, SEASONS, calendar, steps);
        forest
    }

    fn view(history: &History, calendar: &Calendar, target: i64) -> TargetView {
        OriginView::new(history, SEASONS).expect("there are samples").target(history, calendar, target)
    }

    #[test]
    fn finds_a_step_by_the_clock() {
        let (history, calendar) = history(24 * 60 + 8);
        let (newest, _) = history.series.newest().expect("there are samples");
        let forest = fitted(&history, &calendar, 1);
        let forecasts = forest.predict(&view(&history, &calendar, newest + 1));
        // One row of 24 jumps; from the last value each tree can take only part of that.
        for ((base, most), forecast) in Base::ALL.into_iter().zip([30.0, 8.0]).zip(forecasts) {
            let forecast = forecast.expect("it is fitted");
            assert!((forecast - 105.0).abs() < most, "{base:?}: {forecast} after {}", history.last_value());
        }
        assert!(forest.fits(&Forest::new(Share::new(0, 4))));
        let bytes = |trees: &Trees| 2 * trees.nodes.len() + trees.leaves.len() + 4 * trees.units.len();
        assert_eq!(4 * forest.edges.len() + forest.trees.iter().map(bytes).sum::<usize>(), forest.memory_bytes());
    }

    /// Trees walked abreast are the trees walked one by one.
    #[test]
    fn the_sum_is_that_of_every_tree() {
        let (history, calendar) = history(24 * 60);
        let forest = fitted(&history, &calendar, 2);
        for target in 24 * 60 + 1..24 * 60 + 20 {
            let view = view(&history, &calendar, target);
            let ranks = rank(&view.row, &forest.edges);
            for (feature, value) in view.row.iter().enumerate() {
                let edges = &forest.edges[feature * (BINS - 1)..][..BINS - 1];
                assert_eq!(usize::from(ranks[feature]), edges.partition_point(|edge| edge < value));
            }
            for trees in &forest.trees {
                let mut sum = 0.0;
                for (tree, unit) in trees.units.iter().enumerate() {
                    let mut place = 1;
                    while place < LEAVES {
                        let node = trees.nodes[tree * LEAVES + place];
                        let (feature, cut) = ((node & 0xff) as usize, node >> 8);
                        place = 2 * place + usize::from(i16::from(ranks[feature]) > cut);
                    }
                    sum += f64::from(*unit) * f64::from(trees.leaves[tree * LEAVES + place - LEAVES]);
                }
                assert_eq!(trees.sum(&ranks), sum);
            }
        }
    }

    #[test]
    fn the_same_past_gives_the_same_trees() {
        let (history, calendar) = history(24 * 40);
        let text = || serde_json::to_string(&fitted(&history, &calendar, 3)).ok();
        assert_eq!(text(), text());
    }

    #[test]
    fn a_short_past_gives_none() {
        let (history, calendar) = history(300);
        let forest = fitted(&history, &calendar, 1);
        assert!(!forest.is_fitted() && forest.fits(&Forest::new(Share::new(0, 4))));
        assert_eq!(forest.predict(&view(&history, &calendar, 300)), [None; 2]);
    }

    #[test]
    fn many_horizons_share() {
        let trees: usize = (0..9).map(|place| Share::new(place, 9)).map(|share| share.last + share.typical).sum();
        assert_eq!(trees, 9 * FEW);
    }
}
