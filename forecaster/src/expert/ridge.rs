//! Ridge regression learned one sample at a time.
//!
//! Purpose: the expert that learns. It keeps the information matrix `G = Σ λ^age w x xᵀ` and `r = Σ λ^age w x z`,
//! adds samples by rank-one updates, some at a time, and every few steps solves `(G + ρI)(β − β₀) = r − Gβ₀`: with little data
//! the weights stay near the prior `β₀` that copies the newest, the day's and the week's value.
//!
//! Inputs and target are multiples of the series' level at the origin, through a [`Link`]; on the square-root
//! scale the variance of counts is about constant, so that peaks do not drown the nights. A sample whose error
//! exceeds `HUBER` standard deviations weighs less (Huber, 1964).
//!
//! Invariants: weights are finite; a matrix that cannot be solved leaves the weights as they were.

use crate::calendar::FOURIER;
use crate::features::{self, FEATURES, PRIOR, VALUES};
use crate::work::count;
use nalgebra::{Cholesky, DMatrix, DVector};
use serde::{Deserialize, Serialize};

/// Strength of the pull towards the prior, in samples of unit inputs.
const RHO: f64 = 0.3;
/// Part of the diagonal added to itself against rounding.
const JITTER: f64 = 1e-6;
/// Errors beyond this many standard deviations weigh less.
pub(crate) const HUBER: f64 = 3.5;
/// Weight of a new squared error in the running variance.
pub(crate) const VARIANCE_RATE: f64 = 0.01;
const FIRST_VARIANCE: f64 = 0.05;
/// Rows and columns of a tile of `G`.
const TILE: usize = 4;
/// Tiles along an edge of `G`.
const TILES: usize = FEATURES / TILE;
const _: () = assert!(FEATURES.is_multiple_of(TILE));
/// Numbers in the tiles on and below the diagonal.
pub(crate) const PACKED: usize = TILES * (TILES + 1) / 2 * TILE * TILE;
/// Samples that `G` takes at once: it is the largest part of the state, and reading and writing it is most of the work.
pub(crate) const BATCH: usize = 8;

/// The scale on which a ridge is linear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Link {
    /// As is.
    Identity,
    /// Square root.
    Sqrt,
    /// Logarithm, kept from the deep by [`LOG_FLOOR`].
    Log,
}

/// Added before the logarithm, in multiples of the level.
const LOG_FLOOR: f64 = 0.05;

impl Link {
    pub(crate) fn apply(self, x: f64) -> f64 {
        match self {
            Link::Identity => x,
            Link::Sqrt => x.max(0.0).sqrt(),
            Link::Log => (x.max(0.0) + LOG_FLOOR).ln(),
        }
    }

    /// Expected value on the plain scale of a normal variable with this mean and variance on the link's scale.
    pub(crate) fn invert(self, z: f64, variance: f64) -> f64 {
        match self {
            Link::Identity => z,
            Link::Sqrt => z.max(0.0).powi(2) + variance,
            Link::Log => z.min(8.0).exp() * (1.0 + 0.5 * variance.min(0.5)) - LOG_FLOOR,
        }
    }
}

/// What is known at an origin and needed again when the target is observed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) values: &'a [f64; VALUES],
    /// Of the values.
    pub(crate) logs: &'a [f64; VALUES],
    pub(crate) fourier: &'a [f64; FOURIER],
    pub(crate) level: f64,
    /// Hour of the target's day, below [`super::hour_ridge::HOURS`].
    pub(crate) hour: usize,
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ridge {
    link: Link,
    forgetting: f64,
    /// `G` without the newest samples: its tiles on and below the diagonal, row by row, each row by row.
    #[serde(with = "crate::bits::single")]
    gram: Vec<f32>,
    /// The newest samples, fewer than [`BATCH`]: features, the oldest sample first.
    #[serde(with = "crate::bits::single")]
    batch: Vec<f32>,
    /// What each of them counts, when it is the newest.
    #[serde(with = "crate::bits::single")]
    counts: Vec<f32>,
    #[serde(with = "crate::bits")]
    moments: Vec<f64>,
    #[serde(with = "crate::bits")]
    weights: Vec<f64>,
    /// Running variance of the errors on the link's scale.
    variance: f64,
}

impl Ridge {
    /// A ridge whose memory halves in about `0.7 * window` samples.
    pub(crate) fn new(link: Link, window: f64) -> Self {
        let mut weights = vec![0.0; FEATURES];
        for (feature, weight) in PRIOR {
            weights[feature] = weight;
        }
        Ridge {
            link,
            forgetting: 1.0 - 1.0 / window,
            gram: vec![0.0; PACKED],
            batch: Vec::with_capacity(BATCH * FEATURES),
            counts: Vec::with_capacity(BATCH),
            moments: vec![0.0; FEATURES],
            weights,
            variance: FIRST_VARIANCE,
        }
    }

    pub(crate) fn fits(&self, fresh: &Ridge) -> bool {
        let finite = |values: &[f64]| values.iter().all(|value| value.is_finite());
        self.link == fresh.link
            && self.forgetting.to_bits() == fresh.forgetting.to_bits()
            && (self.gram.len(), self.moments.len(), self.weights.len()) == (PACKED, FEATURES, FEATURES)
            && self.counts.len() < BATCH
            && self.batch.len() == self.counts.len() * FEATURES
            && self.gram.iter().chain(&self.batch).chain(&self.counts).all(|value| value.is_finite())
            && finite(&self.moments)
            && finite(&self.weights)
            && self.variance.is_finite()
            && self.variance >= 0.0
    }

    pub(crate) fn predict(&self, inputs: Inputs<'_>) -> f64 {
        let x = self.row(inputs);
        inputs.level * self.link.invert(dot(&self.weights, &x), self.variance)
    }

    pub(crate) fn learn(&mut self, inputs: Inputs<'_>, value: f64) {
        let x = self.row(inputs);
        let z = self.link.apply(value / inputs.level);
        let error = z - dot(&self.weights, &x);
        let bound = HUBER * self.variance.sqrt();
        let weight = if error.abs() > bound { bound / error.abs() } else { 1.0 };
        let surprise = (error * error).min(4.0 * bound * bound);
        self.variance = (self.variance + VARIANCE_RATE * (surprise - self.variance)).max(1e-12);

        // Single precision halves the largest part of the state; the rounding stays far below the pull of `RHO`.
        self.batch.extend(x.iter().map(|&feature| feature as f32));
        self.counts.push(weight as f32);
        let scaled = weight * z;
        for (moment, xi) in self.moments.iter_mut().zip(&x) {
            *moment = self.forgetting * *moment + scaled * xi;
        }
        if self.counts.len() == BATCH {
            self.take_batch();
        }
    }

    /// Adds the newest samples to `G`.
    fn take_batch(&mut self) {
        let (rows, _) = self.batch.as_chunks::<FEATURES>();
        count(rows.len() * PACKED);
        let forgetting = self.forgetting as f32;
        let mut scaled = [[0.0_f32; FEATURES]; BATCH];
        let mut factor = 1.0;
        for (row, (&count, scaled)) in rows.iter().zip(self.counts.iter().zip(&mut scaled)).rev() {
            scaled.iter_mut().zip(row).for_each(|(scaled, x)| *scaled = factor * count * x);
            factor *= forgetting;
        }
        let (tiles, _) = self.gram.as_chunks_mut::<{ TILE * TILE }>();
        let mut tiles = tiles.iter_mut();
        for down in 0..TILES {
            for (along, tile) in tiles.by_ref().take(down + 1).enumerate() {
                let mut sum = tile.map(|entry| factor * entry);
                for (row, scaled) in rows.iter().zip(&scaled) {
                    let (left, up) = (tile_of(scaled, down), tile_of(row, along));
                    for (sum, left) in sum.as_chunks_mut::<TILE>().0.iter_mut().zip(left) {
                        sum.iter_mut().zip(up).for_each(|(sum, up)| *sum += left * up);
                    }
                }
                *tile = sum;
            }
        }
        self.batch.clear();
        self.counts.clear();
    }

    /// `G` with all samples, both triangles.
    fn information(&self) -> DMatrix<f64> {
        let mut g = DMatrix::<f64>::zeros(FEATURES, FEATURES);
        let (tiles, _) = self.gram.as_chunks::<{ TILE * TILE }>();
        let mut tiles = tiles.iter();
        for down in 0..TILES {
            for (along, tile) in tiles.by_ref().take(down + 1).enumerate() {
                for (place, &entry) in tile.iter().enumerate() {
                    let (i, j) = (TILE * down + place / TILE, TILE * along + place % TILE);
                    g[(i, j)] = f64::from(entry);
                    g[(j, i)] = f64::from(entry);
                }
            }
        }
        g
    }

    /// Brings the weights up to date with what was learned. Costs `FEATURES³ / 3` multiplications.
    pub(crate) fn solve(&mut self) {
        self.take_batch();
        count(FEATURES.pow(3) / 3);
        let mut g = self.information();
        let mut right = DVector::from_column_slice(&self.moments);
        for (feature, weight) in PRIOR {
            right.axpy(-weight, &g.column(feature), 1.0);
        }
        for i in 0..FEATURES {
            g[(i, i)] += RHO + JITTER * g[(i, i)];
        }
        let Some(cholesky) = Cholesky::new(g) else { return };
        cholesky.solve_mut(&mut right);
        for (feature, weight) in PRIOR {
            right[feature] += weight;
        }
        if right.iter().all(|weight| weight.is_finite()) {
            self.weights.copy_from_slice(right.as_slice());
        }
    }

    fn row(&self, inputs: Inputs<'_>) -> [f64; FEATURES] {
        count(2 * FEATURES);
        let mut x = [0.0; FEATURES];
        match self.link {
            Link::Identity => features::assemble(inputs.values, inputs.fourier, &mut x),
            Link::Sqrt => {
                features::assemble(&inputs.values.map(|value| self.link.apply(value)), inputs.fourier, &mut x)
            }
            Link::Log => features::assemble(inputs.logs, inputs.fourier, &mut x),
        }
        x
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        (PACKED + BATCH * (FEATURES + 1)) * size_of::<f32>()
            + (self.moments.len() + self.weights.len()) * size_of::<f64>()
    }
}

/// The part of a row that meets the tiles at this place.
fn tile_of(row: &[f32; FEATURES], place: usize) -> &[f32; TILE] {
    &row.as_chunks::<TILE>().0[place]
}

fn dot(a: &[f64], b: &[f64; FEATURES]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    const LEVEL: f64 = 50.0;

    /// Random inputs, and a target that is a fixed mixture of two of them.
    fn sample(rng: &mut ChaCha8Rng) -> ([f64; VALUES], [f64; FOURIER], f64) {
        let mut values = [0.0; VALUES];
        values.fill_with(|| rng.random_range(0.2..2.0));
        let mut fourier = [0.0; FOURIER];
        fourier.fill_with(|| rng.random_range(-1.0..1.0));
        let target = LEVEL * (0.7 * values[0] + 0.2 * values[3] + 0.1 * (1.0 + fourier[0]));
        (values, fourier, target)
    }

    /// On the plain scale and that of the root no logarithms are looked at.
    fn inputs<'a>(values: &'a [f64; VALUES], fourier: &'a [f64; FOURIER]) -> Inputs<'a> {
        Inputs { values, logs: &[0.0; VALUES], fourier, level: LEVEL, hour: 0 }
    }

    fn trained(link: Link, samples: usize, mut disturb: impl FnMut(usize, f64) -> f64) -> Ridge {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut ridge = Ridge::new(link, 8000.0);
        for i in 0..samples {
            let (values, fourier, target) = sample(&mut rng);
            ridge.learn(inputs(&values, &fourier), disturb(i, target));
        }
        ridge.solve();
        ridge
    }

    /// Mean absolute error on fresh samples.
    fn error(ridge: &Ridge) -> f64 {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let errors = (0..200).map(|_| {
            let (values, fourier, target) = sample(&mut rng);
            (ridge.predict(inputs(&values, &fourier)) - target).abs()
        });
        errors.sum::<f64>() / 200.0
    }

    #[test]
    fn finds_the_linear_rule() {
        let ridge = trained(Link::Identity, 3000, |_, target| target);
        assert!(error(&ridge) < 0.02 * LEVEL, "{}", error(&ridge));
    }

    #[test]
    fn on_the_root_scale_it_finds_nearly_the_same() {
        let ridge = trained(Link::Sqrt, 3000, |_, target| target);
        assert!(error(&ridge) < 0.1 * LEVEL, "{}", error(&ridge));
    }

    #[test]
    fn before_any_sample_it_copies_last_day_and_week() {
        let mut ridge = Ridge::new(Link::Identity, 1000.0);
        ridge.solve();
        assert!((ridge.predict(inputs(&[0.8; VALUES], &[0.0; FOURIER])) - 0.8 * LEVEL).abs() < 1e-9);
    }

    #[test]
    fn a_few_wild_samples_do_not_ruin_it() {
        let ridge = trained(Link::Identity, 3000, |i, target| if i % 100 == 99 { 1e6 } else { target });
        assert!(error(&ridge) < 0.1 * LEVEL, "{}", error(&ridge));
    }

    /// The rank-one updates are the weighted sums that they stand for.
    #[test]
    fn the_information_matrix_is_the_discounted_sum() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let mut ridge = Ridge::new(Link::Identity, 10.0);
        let mut expected = DMatrix::<f64>::zeros(FEATURES, FEATURES);
        for _ in 0..30 {
            let (values, fourier, target) = sample(&mut rng);
            let inputs = inputs(&values, &fourier);
            let x = DVector::from_column_slice(&ridge.row(inputs));
            let error = target / LEVEL - dot(&ridge.weights, &ridge.row(inputs));
            let bound = HUBER * ridge.variance.sqrt();
            let weight = if error.abs() > bound { bound / error.abs() } else { 1.0 };
            expected = expected * 0.9 + weight * &x * x.transpose();
            ridge.learn(inputs, target);
        }
        ridge.take_batch();
        let found = ridge.information();
        assert!((&found - &expected).amax() < 1e-4, "{found} against {expected}");
    }
}
