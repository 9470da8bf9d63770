//! Boosted regression trees on the change from the newest value to the target, with absolute loss.
//!
//! Purpose: what is not linear — a morning after a holiday, a peak that ends by the clock. Histogram trees (Ke and
//! others, LightGBM, NeurIPS 2017) of fixed depth on the signs of the residuals; each leaf is the median of its
//! residuals (Friedman, "Greedy function approximation", 2001, algorithm 3). Fitted anew now and then on the
//! recorded past, outside the step that forecasts: [`crate::Model::maintain`].
//!
//! All inputs but the clock are differences of values and all comparisons are of ranks, so that a scaled series
//! gives the scaled forecast.
//!
//! Invariants: the fit is a pure function of the history (the rows of a tree are drawn by a fixed generator); leaves
//! are finite; time and memory are bounded by [`ROWS`], [`TREES`] and [`DEPTH`]. Abstains until fitted, and always
//! where the history keeps means of several steps (below a minute).

use crate::calendar::Calendar;
use crate::history::{History, Seasons};
use serde::{Deserialize, Serialize};

/// Most rows of the past that a fit uses.
const ROWS: usize = 10_080;
/// Fewest rows for a first fit.
const LEAST_ROWS: usize = 600;
const TREES: usize = 80;
const DEPTH: usize = 4;
const SPLITS: usize = (1 << DEPTH) - 1;
const LEAVES: usize = 1 << DEPTH;
/// Ranks that a feature is cut into.
const BINS: usize = 64;
const RATE: f64 = 0.12;
const LEAST_LEAF: u32 = 20;
/// Number of features.
const N: usize = 23;

/// See the module's documentation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Trees {
    /// By tree and node, breadth first: the feature, and the value above which the way goes right.
    #[serde(with = "crate::bits::bytes")]
    features: Vec<u8>,
    #[serde(with = "crate::bits::single")]
    thresholds: Vec<f32>,
    /// By tree and leaf: part of the change.
    #[serde(with = "crate::bits::single")]
    leaves: Vec<f32>,
}

impl Trees {
    /// Bytes of a fitted ensemble.
    pub(crate) const BYTES: usize = TREES * (SPLITS * 5 + LEAVES * 4);

    pub(crate) fn fits(&self) -> bool {
        let trees = self.leaves.len() / LEAVES;
        trees <= TREES
            && self.leaves.len() == trees * LEAVES
            && self.features.len() == trees * SPLITS
            && self.thresholds.len() == trees * SPLITS
            && self.features.iter().all(|&feature| usize::from(feature) < N)
            && !self.thresholds.iter().any(|threshold| threshold.is_nan())
            && self.leaves.iter().all(|leaf| leaf.is_finite())
    }

    pub(crate) fn predict(&self, history: &History, seasons: Seasons, calendar: &Calendar, target: i64) -> Option<f64> {
        if self.leaves.is_empty() {
            return None;
        }
        let (origin, _) = history.series.newest()?;
        let past = |index: i64| history.series.at(index).map_or(f32::NAN, |value| value as f32);
        let means = [history.means.day as f32, history.means.week as f32];
        let clock = clock(calendar, history.series.start_ms(target));
        let x = row(past, seasons, origin, target, means, clock);
        Some(history.last_value() + self.sum(&x))
    }

    fn sum(&self, x: &[f32; N]) -> f64 {
        let trees = self
            .features
            .chunks_exact(SPLITS)
            .zip(self.thresholds.chunks_exact(SPLITS))
            .zip(self.leaves.chunks_exact(LEAVES));
        trees
            .map(|((features, thresholds), leaves)| {
                let mut node = 0;
                for _ in 0..DEPTH {
                    node = 2 * node + 1 + usize::from(x[usize::from(features[node])] > thresholds[node]);
                }
                f64::from(leaves[node - SPLITS])
            })
            .sum()
    }

    /// Trees for forecasts `steps` ahead, from all of the past that is kept; nothing while it is too short.
    pub(crate) fn fit(history: &History, seasons: Seasons, calendar: &Calendar, steps: u32) -> Trees {
        let Some((newest, _)) = history.series.newest() else { return Trees::default() };
        if history.series.is_coarse() {
            return Trees::default();
        }
        let first = (newest + 1 - ROWS as i64).max(0);
        let past: Vec<f32> =
            (first..=newest).map(|index| history.series.at(index).map_or(f32::NAN, |value| value as f32)).collect();
        let Some(sample) = Sample::collect(&past, first, history, seasons, calendar, i64::from(steps)) else {
            return Trees::default();
        };
        sample.boost()
    }
}

/// Parts of the day and of the week that have passed.
fn clock(calendar: &Calendar, at_ms: i64) -> [f32; 2] {
    let phase = calendar.phase(at_ms);
    [calendar.day_slot(phase, 1440) as f32, calendar.week_slot(phase, 7) as f32]
}

/// The features of a target as seen from an origin. What is unknown is taken for the nearest known.
fn row(
    past: impl Fn(i64) -> f32,
    seasons: Seasons,
    origin: i64,
    target: i64,
    [mean_day, mean_week]: [f32; 2],
    [minute, weekday]: [f32; 2],
) -> [f32; N] {
    let (day, week) = (seasons.day_steps as i64, seasons.week_steps as i64);
    let or = |index: i64, fallback: f32| {
        let value = if index <= origin { past(index) } else { f32::NAN };
        if value.is_nan() { fallback } else { value }
    };
    let last = or(origin, 0.0);
    let lag = |steps: i64| or(origin - steps, last);
    let at_day = or(target - day, last);
    let at_week = or(target - week, at_day);
    let since_day = at_day - or(origin - day, last);
    let since_week = at_week - or(origin - week, or(origin - day, last));
    let short = (0..12).map(lag).sum::<f32>() / 12.0;
    [
        last,
        lag(1) - last,
        lag(2) - last,
        lag(3) - last,
        lag(4) - last,
        lag(5) - last,
        lag(8) - last,
        lag(11) - last,
        at_day - last,
        or(target - day - 1, at_day) - at_day,
        or(target - day + 1, at_day) - at_day,
        at_week - last,
        or(target - week - 1, at_week) - at_week,
        or(target - week + 1, at_week) - at_week,
        since_day,
        since_week,
        or(target - 2 * week, at_week) - last,
        short - last,
        mean_day - last,
        mean_week - mean_day,
        (since_day + since_week) / 2.0,
        minute,
        weekday,
    ]
}

/// What trees are fitted to.
struct Sample {
    /// Upper ends of the bins, by feature.
    edges: Vec<Vec<f32>>,
    /// Bins, by row and feature.
    bins: Vec<[u8; N]>,
    /// Changes still to be explained, by row.
    residuals: Vec<f32>,
}

impl Sample {
    fn collect(
        past: &[f32],
        first: i64,
        history: &History,
        seasons: Seasons,
        calendar: &Calendar,
        steps: i64,
    ) -> Option<Sample> {
        let at =
            |index: i64| usize::try_from(index - first).ok().and_then(|i| past.get(i)).copied().unwrap_or(f32::NAN);
        let end = first + past.len() as i64;
        // The first day has no seasonal lag at all, and there the means have not settled.
        let begin = first + seasons.day_steps as i64;
        let (mut rows, mut residuals) = (Vec::new(), Vec::new());
        let (mut mean_day, mut mean_week, mut known) = (0.0_f32, 0.0_f32, 0_u64);
        for origin in first..end - steps {
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
            rows.push(row(at, seasons, origin, target, [mean_day, mean_week], clock));
            residuals.push(observed - value);
        }
        if rows.len() < LEAST_ROWS {
            return None;
        }
        let edges: Vec<Vec<f32>> = (0..N).map(|feature| edges(&rows, feature)).collect();
        let bin = |x: &[f32; N]| {
            let mut bins = [0; N];
            for ((bin, edges), value) in bins.iter_mut().zip(&edges).zip(x) {
                *bin = edges.partition_point(|edge| edge < value) as u8;
            }
            bins
        };
        Some(Sample { bins: rows.iter().map(bin).collect(), edges, residuals })
    }

    fn boost(mut self) -> Trees {
        let mut trees = Trees::default();
        // Knuth's multiplier (MMIX): half of the rows for each tree, always the same half for the same tree.
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        for _ in 0..TREES {
            let drawn: Vec<u32> = (0..self.bins.len() as u32).filter(|_| random() & 1 == 0).collect();
            self.grow(&drawn, &mut trees);
        }
        trees
    }

    /// Appends one tree and takes its part from the residuals.
    fn grow(&mut self, drawn: &[u32], trees: &mut Trees) {
        let mut nodes = vec![0_u16; self.bins.len()];
        for depth in 0..DEPTH {
            let width = 1 << depth;
            let splits = self.splits(drawn, &nodes, width);
            for &(feature, bin) in &splits {
                let edge = self.edges[feature].get(bin).copied();
                trees.features.push(feature as u8);
                trees.thresholds.push(edge.unwrap_or(f32::INFINITY));
            }
            for (node, bins) in nodes.iter_mut().zip(&self.bins) {
                let (feature, bin) = splits[usize::from(*node)];
                *node = 2 * *node + u16::from(usize::from(bins[feature]) > bin);
            }
        }
        let mut of_leaf: Vec<Vec<f32>> = vec![Vec::new(); LEAVES];
        for &i in drawn {
            of_leaf[usize::from(nodes[i as usize])].push(self.residuals[i as usize]);
        }
        let leaves: Vec<f32> =
            of_leaf.iter_mut().map(|residuals| (RATE * f64::from(median(residuals))) as f32).collect();
        for (residual, node) in self.residuals.iter_mut().zip(&nodes) {
            *residual -= leaves[usize::from(*node)];
        }
        trees.leaves.extend(leaves);
    }

    /// The best cut of each of the `width` nodes of one depth: feature, and the last bin that goes left; all go left
    /// where none is worth it.
    fn splits(&self, drawn: &[u32], nodes: &[u16], width: usize) -> Vec<(usize, usize)> {
        // Sum of signs and number of rows by node, feature and bin.
        let mut histogram = vec![(0_i32, 0_u32); width * N * BINS];
        for &i in drawn {
            let i = i as usize;
            let sign = match self.residuals[i] {
                residual if residual > 0.0 => 1,
                residual if residual < 0.0 => -1,
                _ => 0,
            };
            let of_node = &mut histogram[usize::from(nodes[i]) * N * BINS..][..N * BINS];
            for (of_feature, &bin) in of_node.chunks_exact_mut(BINS).zip(&self.bins[i]) {
                let entry = &mut of_feature[usize::from(bin) % BINS];
                entry.0 += sign;
                entry.1 += 1;
            }
        }
        histogram.chunks_exact(N * BINS).map(best_cut).collect()
    }
}

/// The cut with the largest sum of `S² / n` over its two sides.
fn best_cut(histogram: &[(i32, u32)]) -> (usize, usize) {
    let (mut best, mut most) = ((0, BINS), 0.0);
    let (sum, n) = histogram[..BINS].iter().fold((0, 0), |(sum, n), entry| (sum + entry.0, n + entry.1));
    let score = |sum: i32, n: u32| f64::from(sum).powi(2) / f64::from(n.max(1));
    let whole = score(sum, n);
    for (feature, of_feature) in histogram.chunks_exact(BINS).enumerate() {
        let (mut left_sum, mut left_n) = (0, 0);
        for (bin, entry) in of_feature.iter().enumerate() {
            left_sum += entry.0;
            left_n += entry.1;
            if left_n < LEAST_LEAF || n - left_n < LEAST_LEAF {
                continue;
            }
            let gain = score(left_sum, left_n) + score(sum - left_sum, n - left_n) - whole;
            if gain > most {
                (best, most) = ((feature, bin), gain);
            }
        }
    }
    best
}

/// At most `BINS - 1` values that cut the feature into parts of about equal size.
fn edges(rows: &[[f32; N]], feature: usize) -> Vec<f32> {
    let mut values: Vec<f32> = rows.iter().map(|row| row[feature]).collect();
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len() - 1;
    let mut edges: Vec<f32> = (1..BINS).map(|part| values[part * last / BINS]).collect();
    edges.dedup();
    edges
}

fn median(values: &mut [f32]) -> f32 {
    let middle = values.len() / 2;
    if values.is_empty() {
        return 0.0;
    }
    let (_, median, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    *median
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
        let mut history = History::new(SEASONS);
        let mut state = 1_u64;
        for hour in 0..hours {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
            let noise = (state >> 54) as f64 / 100.0;
            let value = if hour % 24 < 8 { 20.0 } else { 100.0 } + noise;
            history.observe(SEASONS, &calendar, calendar.phase(hour * HOUR_MS), hour * HOUR_MS, value);
        }
        (history, calendar)
    }

    #[test]
    fn finds_a_step_by_the_clock() {
        let (history, calendar) = history(24 * 60 + 8);
        let trees = Trees::fit(&history, SEASONS, &calendar, 1);
        let (newest, _) = history.series.newest().expect("there are samples");
        let forecast = trees.predict(&history, SEASONS, &calendar, newest + 1).expect("it is fitted");
        assert!((forecast - 105.0).abs() < 8.0, "{forecast} after {}", history.last_value());
        assert!(trees.fits() && trees.leaves.len() == TREES * LEAVES);
    }

    #[test]
    fn the_same_past_gives_the_same_trees() {
        let (history, calendar) = history(24 * 40);
        let fitted = || Trees::fit(&history, SEASONS, &calendar, 3);
        assert_eq!(serde_json::to_string(&fitted()).ok(), serde_json::to_string(&fitted()).ok());
    }

    #[test]
    fn a_short_past_gives_none() {
        let (history, calendar) = history(300);
        let trees = Trees::fit(&history, SEASONS, &calendar, 1);
        assert_eq!(trees.predict(&history, SEASONS, &calendar, 300), None);
    }
}
