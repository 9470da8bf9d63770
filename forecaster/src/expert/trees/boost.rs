//! Gradient boosting of regression trees for the absolute loss, on features cut into ranks.
//!
//! Source: histogram trees as in Ke and others, "LightGBM", NeurIPS 2017, grown to a fixed depth on the signs of the
//! residuals; the histogram of the larger of two siblings is their parent's less the smaller's. Each leaf is the
//! median of its residuals (Friedman, "Greedy function approximation", 2001, algorithm 3). Every tree sees part of
//! the rows and of the features.
//!
//! Invariants: a pure function of the rows (what a tree sees is drawn by a fixed generator); leaves are finite.

use super::rows::{N, Row};
use super::{BINS, DEPTH, LEAVES, Ranks, SPLITS};
use crate::work;

/// Fewest rows on each side of a cut.
const LEAST_LEAF: u32 = 20;

/// Parts of the rows and of the features that a tree sees.
const ROW_SHARE: f64 = 0.5;
const FEATURE_SHARE: f64 = 0.35;

/// Number of rows (low half), and the sum of `sign + 1` of their residuals (high half).
type Cell = u32;
/// By feature and bin.
type Histogram = Vec<Cell>;

fn count(cell: Cell) -> u32 {
    cell & 0xffff
}

/// Sum of signs.
fn balance(cell: Cell) -> i32 {
    (cell >> 16) as i32 - count(cell) as i32
}

/// What came of it: [`super::SPLITS`] nodes and [`super::LEAVES`] leaves a tree, breadth first.
#[derive(Debug, Default)]
pub(super) struct Fitted {
    /// Feature, and the last rank that goes left.
    pub(super) nodes: Vec<(u8, u8)>,
    pub(super) leaves: Vec<f32>,
}

/// The rows that trees are fitted to.
pub(super) struct Boost {
    /// Upper ends of the bins: `BINS - 1` for each feature.
    edges: Vec<f32>,
    /// Bins, by row and feature.
    bins: Vec<Ranks>,
}

/// Knuth's generator (MMIX).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 32) as u32
    }
}

impl Boost {
    pub(super) fn new<'a>(rows: impl ExactSizeIterator<Item = &'a Row> + Clone) -> Boost {
        let mut edges = vec![f32::INFINITY; N * (BINS - 1)];
        for (feature, edges) in edges.chunks_exact_mut(BINS - 1).enumerate() {
            cut(rows.clone().map(|row| row[feature]).collect(), edges);
        }
        let bins = rows.map(|row| super::rank(row, &edges)).collect();
        Boost { edges, bins }
    }

    /// The ends of the ranks.
    pub(super) fn into_edges(self) -> Vec<f32> {
        self.edges
    }

    /// Grows `n` trees that explain `residuals`, one a row, each taking part `rate` of what it can.
    pub(super) fn run(&self, mut residuals: Vec<f32>, n: usize, rate: f64) -> Fitted {
        let (mut trees, mut random) = (Fitted::default(), Random(0x2545_f491_4f6c_dd1d));
        for _ in 0..n {
            self.grow(rate, &mut residuals, &mut random, &mut trees);
        }
        trees
    }

    /// Appends one tree and takes its part from the residuals.
    fn grow(&self, rate: f64, residuals: &mut [f32], random: &mut Random, trees: &mut Fitted) {
        let threshold = |share: f64| (share * f64::from(u32::MAX)) as u32;
        let (of_rows, of_features) = (threshold(ROW_SHARE), threshold(FEATURE_SHARE));
        let n = self.bins.len() as u32;
        let mut rows: Vec<u32> = (0..n).filter(|_| random.next() <= of_rows).collect();
        let mut features: Vec<usize> = (0..N).filter(|_| random.next() <= of_features).collect();
        if features.is_empty() {
            features = (0..N).collect();
        }
        let signs: Vec<u32> = residuals
            .iter()
            .map(|&residual| if residual > 0.0 { 2 } else { u32::from(residual == 0.0) })
            .map(|sign| 1 | (sign << 16))
            .collect();
        // Ends of the parts of `rows` that are in each node of the depth.
        let mut ends = vec![rows.len()];
        let mut histograms = vec![self.histogram(&rows, &features, &signs)];
        let first = trees.nodes.len();
        for depth in 0..DEPTH {
            let cuts: Vec<(usize, usize)> = histograms.iter().map(|h| best_cut(h, &features)).collect();
            trees.nodes.extend(cuts.iter().map(|&(feature, bin)| (feature as u8, bin as u8)));
            let (mut begin, mut halves) = (0, Vec::with_capacity(2 * ends.len()));
            for (&end, &(feature, bin)) in ends.iter().zip(&cuts) {
                let middle = begin
                    + partition(&mut rows[begin..end], |row| usize::from(self.bins[row as usize][feature]) <= bin);
                halves.extend([middle, end]);
                begin = end;
            }
            if depth + 1 < DEPTH {
                histograms = self.children(&histograms, &rows, &halves, &features, &signs);
            }
            ends = halves;
        }
        let (mut begin, mut part) = (0, Vec::new());
        let mut leaves = [0.0_f32; LEAVES];
        for (leaf, &end) in leaves.iter_mut().zip(&ends) {
            part.clear();
            part.extend(rows[begin..end].iter().map(|&row| residuals[row as usize]));
            *leaf = (rate * f64::from(median(&mut part))) as f32;
            begin = end;
        }
        let nodes = &trees.nodes[first..];
        work::count(residuals.len() * (DEPTH + 1));
        for (residual, bins) in residuals.iter_mut().zip(&self.bins) {
            *residual -= leaves[leaf(bins, nodes)];
        }
        trees.leaves.extend(leaves);
    }

    fn histogram(&self, rows: &[u32], features: &[usize], signs: &[u32]) -> Histogram {
        work::count(rows.len() * features.len());
        let mut histogram = vec![0; N * BINS];
        for &row in rows {
            let (bins, sign) = (&self.bins[row as usize], signs[row as usize]);
            for &feature in features {
                histogram[feature * BINS + usize::from(bins[feature]) % BINS] += sign;
            }
        }
        histogram
    }

    fn children(
        &self,
        parents: &[Histogram],
        rows: &[u32],
        halves: &[usize],
        features: &[usize],
        signs: &[u32],
    ) -> Vec<Histogram> {
        let mut begin = 0;
        let mut children = Vec::with_capacity(2 * parents.len());
        for (parent, halves) in parents.iter().zip(halves.chunks_exact(2)) {
            let (left, right) = (&rows[begin..halves[0]], &rows[halves[0]..halves[1]]);
            begin = halves[1];
            let is_left = left.len() <= right.len();
            let smaller = self.histogram(if is_left { left } else { right }, features, signs);
            let mut larger = parent.clone();
            larger.iter_mut().zip(smaller.iter()).for_each(|(larger, smaller)| *larger -= smaller);
            children.extend(if is_left { [smaller, larger] } else { [larger, smaller] });
        }
        children
    }
}

/// The leaf of one tree that a row falls into.
fn leaf(bins: &Ranks, nodes: &[(u8, u8)]) -> usize {
    let mut node = 0;
    for _ in 0..DEPTH {
        let (feature, cut) = nodes[node];
        node = 2 * node + 1 + usize::from(bins[usize::from(feature) % bins.len()] > cut);
    }
    node - SPLITS
}

/// Moves those that belong left to the front; returns how many they are.
fn partition(rows: &mut [u32], mut is_left: impl FnMut(u32) -> bool) -> usize {
    work::count(rows.len());
    let mut left = 0;
    for i in 0..rows.len() {
        let go = is_left(rows[i]);
        rows.swap(left, i);
        left += usize::from(go);
    }
    left
}

/// The cut with the largest sum of `S² / n` over its two sides: feature, and the last bin that goes left; all go left
/// where none is worth it.
fn best_cut(histogram: &[Cell], features: &[usize]) -> (usize, usize) {
    let mut best = (features[0], BINS);
    let whole: Cell = histogram[features[0] * BINS..][..BINS].iter().sum();
    let score = |cell: Cell| f64::from(balance(cell)).powi(2) / f64::from(count(cell).max(1));
    let mut most = score(whole) + 1e-9;
    for &feature in features {
        let mut left = 0;
        for (bin, cell) in histogram[feature * BINS..][..BINS].iter().enumerate() {
            if *cell == 0 {
                continue;
            }
            left += cell;
            let right = whole - left;
            if count(left) < LEAST_LEAF || count(right) < LEAST_LEAF {
                continue;
            }
            let gain = score(left) + score(right);
            if gain > most {
                (best, most) = ((feature, bin), gain);
            }
        }
    }
    best
}

/// Values that cut the feature into parts of about equal size; what is left of `edges` stays.
fn cut(mut values: Vec<f32>, edges: &mut [f32]) {
    values.sort_unstable_by(f32::total_cmp);
    let last = values.len() - 1;
    let mut cuts: Vec<f32> = (1..BINS).map(|part| values[part * last / BINS]).collect();
    cuts.dedup();
    edges.iter_mut().zip(cuts).for_each(|(edge, cut)| *edge = cut);
}

fn median(values: &mut [f32]) -> f32 {
    let middle = values.len() / 2;
    if values.is_empty() {
        return 0.0;
    }
    let (_, median, _) = values.select_nth_unstable_by(middle, f32::total_cmp);
    *median
}
