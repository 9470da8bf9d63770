//! What the decomposition will be wrong by, from its last five errors and its bounds.
//!
//! Two regressions, ridge and boosted trees, of the error at the target on eight inputs. Which is used is decided by
//! their errors on the last fifth of the samples, which neither has seen then; both can be asked for alone.
//!
//! Invariants: a pure function of its rows; what it gives is finite and within the errors that were seen, the five newest included.

use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

/// The last five errors, newest first, the forecast, and its lower and upper bound.
pub(super) const INPUTS: usize = ERRORS + 3;
pub(super) const ERRORS: usize = 5;
pub(super) type Inputs = [f64; INPUTS];
/// Fewest rows to learn from.
const LEAST: usize = 60;
const HELD_OUT: f64 = 0.2;
/// Strengths of the ridge to choose from, on inputs of unit spread, as parts of the rows.
const RIDGES: [f64; 5] = [1e-6, 1e-4, 1e-3, 1e-2, 1e-1];
const TREES: usize = 60;
const DEPTH: usize = 3;
const SPLITS: usize = (1 << DEPTH) - 1;
const LEAVES: usize = 1 << DEPTH;
const RATE: f64 = 0.1;
const LEAST_LEAF: usize = 20;
/// Candidate thresholds of a split.
const CUTS: usize = 16;

/// One row: the inputs and the error that came.
pub(super) type Row = (Inputs, f64);

/// Which regression is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Choice {
    /// The better one lately.
    #[default]
    Better,
    Ridge,
    Trees,
    /// None at all.
    None,
}

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Compensator {
    ridge: Ridge,
    trees: Trees,
    use_trees: bool,
    /// Largest error seen: what is added stays within.
    most: f64,
}

impl Compensator {
    pub(super) fn fit(rows: &[Row], choice: Choice) -> Option<Self> {
        if rows.len() < LEAST || choice == Choice::None {
            return None;
        }
        let (early, late) = rows.split_at(rows.len() - (rows.len() as f64 * HELD_OUT) as usize);
        let wrong = |predict: &dyn Fn(&Inputs) -> f64| late.iter().map(|(x, y)| (predict(x) - y).abs()).sum::<f64>();
        let (strength, ridge_wrong) = RIDGES
            .into_iter()
            .filter_map(|strength| Some((strength, Ridge::fit(early, strength)?)))
            .map(|(strength, ridge)| (strength, wrong(&|x| ridge.predict(x))))
            .min_by(|a, b| a.1.total_cmp(&b.1))?;
        let use_trees = match choice {
            Choice::Ridge | Choice::None => false,
            Choice::Trees => true,
            Choice::Better => {
                let trees = Trees::fit(early);
                wrong(&|x| trees.predict(x)) < ridge_wrong
            }
        };
        let most = rows.iter().map(|(_, y)| y.abs()).fold(0.0, f64::max);
        let fitted = Compensator { ridge: Ridge::fit(rows, strength)?, trees: Trees::fit(rows), use_trees, most };
        fitted.is_sound().then_some(fitted)
    }

    pub(super) fn is_sound(&self) -> bool {
        let ridge = &self.ridge;
        let trees = self.trees.leaves.len() / LEAVES;
        ridge.coefficients.len() == INPUTS + 1
            && ridge.coefficients.iter().all(|c| c.is_finite())
            && self.most.is_finite()
            && self.trees.leaves.len() == trees * LEAVES
            && trees <= TREES
            && self.trees.features.len() == trees * SPLITS
            && self.trees.cuts.len() == trees * SPLITS
            && self.trees.features.iter().all(|&feature| usize::from(feature) < INPUTS)
            && self.trees.leaves.iter().all(|leaf| leaf.is_finite())
            && !self.trees.cuts.iter().any(|cut| cut.is_nan())
    }

    /// The error to be expected.
    pub(super) fn predict(&self, inputs: &Inputs) -> f64 {
        let error = if self.use_trees { self.trees.predict(inputs) } else { self.ridge.predict(inputs) };
        // A decomposition that runs away must be followed: the newest errors may be beyond all that were learned from.
        let most = inputs[..ERRORS].iter().fold(self.most, |most, error| most.max(error.abs()));
        error.clamp(-most, most)
    }

    pub(super) const BYTES: usize = TREES * (SPLITS * 9 + LEAVES * 8) + 8 * (INPUTS + 4);
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Ridge {
    /// One an input, then the constant.
    #[serde(with = "crate::bits")]
    coefficients: Vec<f64>,
}

impl Ridge {
    /// Inputs are centred and brought to unit spread first: the bounds' width hardly varies, and as a second constant
    /// it would take a weight that another width turns into an error.
    fn fit(rows: &[Row], strength: f64) -> Option<Self> {
        let n = rows.len() as f64;
        let means: Inputs = std::array::from_fn(|i| rows.iter().map(|(x, _)| x[i]).sum::<f64>() / n);
        let target = rows.iter().map(|(_, y)| y).sum::<f64>() / n;
        let spreads: Inputs = std::array::from_fn(|i| {
            (rows.iter().map(|(x, _)| (x[i] - means[i]).powi(2)).sum::<f64>() / n).sqrt().max(1e-9)
        });
        let mut gram = DMatrix::<f64>::zeros(INPUTS, INPUTS);
        let mut moments = DVector::<f64>::zeros(INPUTS);
        for (x, y) in rows {
            let unit = DVector::from_fn(INPUTS, |i, _| (x[i] - means[i]) / spreads[i]);
            moments.axpy(*y - target, &unit, 1.0);
            gram.ger(1.0, &unit, &unit, 1.0);
        }
        for i in 0..INPUTS {
            gram[(i, i)] += strength * n;
        }
        let solution = gram.cholesky()?.solve(&moments);
        let mut coefficients: Vec<f64> = solution.iter().zip(&spreads).map(|(c, spread)| c / spread).collect();
        let constant = target - coefficients.iter().zip(&means).map(|(c, mean)| c * mean).sum::<f64>();
        coefficients.push(constant);
        Some(Ridge { coefficients })
    }

    fn predict(&self, inputs: &Inputs) -> f64 {
        let constant = self.coefficients.last().copied().unwrap_or(0.0);
        constant + inputs.iter().zip(&self.coefficients).map(|(x, c)| x * c).sum::<f64>()
    }
}

/// Least-squares boosting (Friedman, 2001) of small trees whose cuts are quantiles of the inputs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Trees {
    base: f64,
    #[serde(with = "crate::bits::bytes")]
    features: Vec<u8>,
    #[serde(with = "crate::bits")]
    cuts: Vec<f64>,
    #[serde(with = "crate::bits")]
    leaves: Vec<f64>,
}

impl Trees {
    fn fit(rows: &[Row]) -> Self {
        let base = rows.iter().map(|(_, y)| y).sum::<f64>() / rows.len().max(1) as f64;
        let cuts = cuts(rows);
        // Ranks among the cuts: a split then compares bytes.
        let ranks: Vec<[u8; INPUTS]> = rows
            .iter()
            .map(|(x, _)| std::array::from_fn(|i| cuts[i].partition_point(|cut| *cut < x[i]) as u8))
            .collect();
        let mut residuals: Vec<f64> = rows.iter().map(|(_, y)| y - base).collect();
        let mut trees = Trees { base, ..Trees::default() };
        for _ in 0..TREES {
            trees.grow(&ranks, &cuts, &mut residuals);
        }
        trees
    }

    fn grow(&mut self, ranks: &[[u8; INPUTS]], cuts: &[Vec<f64>], residuals: &mut [f64]) {
        let mut nodes = vec![0_usize; ranks.len()];
        for depth in 0..DEPTH {
            let first = (1 << depth) - 1;
            let splits: Vec<(u8, u8)> =
                (first..2 * first + 1).map(|node| best_split(node, &nodes, ranks, residuals)).collect();
            for (node, ranks) in nodes.iter_mut().zip(ranks) {
                let (feature, rank) = splits[*node - first];
                *node = 2 * *node + 1 + usize::from(ranks[usize::from(feature)] > rank);
            }
            for (feature, rank) in splits {
                self.features.push(feature);
                let cut = cuts[usize::from(feature)].get(usize::from(rank)).copied().unwrap_or(f64::INFINITY);
                self.cuts.push(cut);
            }
        }
        let mut sums = [(0.0, 0_usize); LEAVES];
        for (node, residual) in nodes.iter().zip(residuals.iter()) {
            let leaf = &mut sums[node - SPLITS];
            (leaf.0, leaf.1) = (leaf.0 + residual, leaf.1 + 1);
        }
        let leaves = sums.map(|(sum, n)| RATE * sum / (n as f64 + 1.0));
        residuals.iter_mut().zip(&nodes).for_each(|(residual, node)| *residual -= leaves[node - SPLITS]);
        self.leaves.extend(leaves);
    }

    fn predict(&self, inputs: &Inputs) -> f64 {
        let trees = self.features.chunks_exact(SPLITS).zip(self.cuts.chunks_exact(SPLITS));
        let sum: f64 = trees
            .zip(self.leaves.chunks_exact(LEAVES))
            .map(|((features, cuts), leaves)| {
                let mut node = 0;
                for _ in 0..DEPTH {
                    node = 2 * node + 1 + usize::from(inputs[usize::from(features[node])] > cuts[node]);
                }
                leaves[node - SPLITS]
            })
            .sum();
        self.base + sum
    }
}

/// Up to [`CUTS`] different quantiles of each input, ascending.
fn cuts(rows: &[Row]) -> Vec<Vec<f64>> {
    (0..INPUTS)
        .map(|i| {
            let mut values: Vec<f64> = rows.iter().map(|(x, _)| x[i]).collect();
            values.sort_by(f64::total_cmp);
            let mut cuts: Vec<f64> =
                (1..=CUTS).filter_map(|k| values.get(k * values.len() / (CUTS + 1)).copied()).collect();
            cuts.dedup();
            cuts
        })
        .collect()
}

/// The feature and rank above which rows go right, with the largest drop of squared error; if none is allowed, one
/// that sends every row left.
fn best_split(node: usize, nodes: &[usize], ranks: &[[u8; INPUTS]], residuals: &[f64]) -> (u8, u8) {
    let mut sums = [[0.0; CUTS + 1]; INPUTS];
    let mut counts = [[0_usize; CUTS + 1]; INPUTS];
    for ((_, ranks), residual) in nodes.iter().zip(ranks).zip(residuals).filter(|((at, _), _)| **at == node) {
        for (i, &rank) in ranks.iter().enumerate() {
            sums[i][usize::from(rank)] += residual;
            counts[i][usize::from(rank)] += 1;
        }
    }
    let mut best = ((0, u8::MAX), 0.0);
    for i in 0..INPUTS {
        let (sum, n): (f64, usize) = (sums[i].iter().sum(), counts[i].iter().sum());
        let (mut left_sum, mut left_n) = (0.0, 0);
        for rank in 0..CUTS {
            left_sum += sums[i][rank];
            left_n += counts[i][rank];
            let right_n = n - left_n;
            if left_n < LEAST_LEAF || right_n < LEAST_LEAF {
                continue;
            }
            let gain =
                left_sum * left_sum / left_n as f64 + (sum - left_sum).powi(2) / right_n as f64 - sum * sum / n as f64;
            if gain > best.1 {
                best = ((i as u8, rank as u8), gain);
            }
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    fn rows(n: usize, truth: impl Fn(&Inputs) -> f64) -> Vec<Row> {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        (0..n)
            .map(|_| {
                let x: Inputs = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
                (x, truth(&x) + 0.05 * rng.random_range(-1.0..1.0))
            })
            .collect()
    }

    #[test]
    fn the_ridge_is_chosen_for_a_line_and_the_trees_for_a_step() {
        let line = Compensator::fit(&rows(800, |x| 0.8 * x[0] - 0.3 * x[1]), Choice::Better).expect("it fits");
        assert!(!line.use_trees);
        let step = |x: &Inputs| if x[0] > 0.2 && x[6] < 0.0 { 1.0 } else { -1.0 };
        let trees = Compensator::fit(&rows(3000, step), Choice::Better).expect("it fits");
        assert!(trees.use_trees);
        let far = [0.8, 0.0, 0.0, 0.0, 0.0, 0.0, -0.7, 0.0];
        assert!(trees.predict(&far) > 0.7, "{}", trees.predict(&far));
    }

    #[test]
    fn both_can_be_asked_for() {
        let rows = rows(300, |x| x[0]);
        assert!(Compensator::fit(&rows, Choice::Trees).is_some_and(|c| c.use_trees));
        assert!(Compensator::fit(&rows, Choice::Ridge).is_some_and(|c| !c.use_trees));
        assert!(Compensator::fit(&rows[..59], Choice::Better).is_none());
        assert!(Compensator::fit(&rows, Choice::None).is_none());
    }

    #[test]
    fn a_decomposition_that_runs_away_is_followed() {
        let lasting = Compensator::fit(&rows(800, |x| x[0]), Choice::Ridge).expect("it fits");
        let far = [50.0, 50.0, 50.0, 50.0, 50.0, 0.0, 0.0, 0.0];
        assert!(lasting.predict(&far) > 45.0, "{}", lasting.predict(&far));
    }

    #[test]
    fn a_width_of_the_bounds_that_hardly_varied_gets_no_weight() {
        let rows: Vec<Row> = rows(800, |x| 0.9 * x[0] + 3.0)
            .into_iter()
            .map(|(mut x, y)| {
                (x[ERRORS + 1], x[ERRORS + 2]) = (x[ERRORS] - 5.0 - 1e-6 * x[1], x[ERRORS] + 5.0 + 1e-6 * x[1]);
                (x, y)
            })
            .collect();
        let fitted = Compensator::fit(&rows, Choice::Ridge).expect("it fits");
        let (narrow, wide) = ([0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -4.0, 6.0], [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, -6.0, 8.0]);
        assert!((fitted.predict(&narrow) - fitted.predict(&wide)).abs() < 0.1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(30))]
        #[test]
        fn what_is_added_stays_within_what_was_seen(
            values in prop::collection::vec((-1e6_f64..1e6, -1e6_f64..1e6), 60..200), probe in -1e9_f64..1e9
        ) {
            let rows: Vec<Row> = values.iter().map(|&(a, y)| ([a, y, 0.0, a * 0.5, 1.0, a, -a, a + y], y)).collect();
            if let Some(fitted) = Compensator::fit(&rows, Choice::Better) {
                let most = values.iter().map(|(_, y)| y.abs()).fold(0.0, f64::max);
                prop_assert!(fitted.predict(&[probe; INPUTS]).abs() <= most.max(probe.abs()));
            }
        }
    }
}
