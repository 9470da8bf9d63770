//! A small ridge for each two hours of the day.
//!
//! Purpose: what yesterday's deviation says about the next hour differs between the night and the morning rush; a
//! model with few features and few samples, one for each of [`HOURS`] parts of the day, learns that where the large
//! ridge sees an average. On the square-root scale of [`Link::Sqrt`]; solved at every sample, or every few where many
//! fall into one part of the day, which is cheap because only one of the parts changes.
//!
//! Invariants: weights are finite; a matrix that cannot be solved leaves the weights as they were.

use super::ridge::{HUBER, Inputs, Link, VARIANCE_RATE};
use crate::features;
use crate::work::count;
use serde::{Deserialize, Serialize};

/// Parts of a day.
pub(crate) const HOURS: usize = 12;
/// Intercept and the values at [`PLACES`].
pub(crate) const SIZE: usize = 1 + PLACES.len();
/// The values that it looks at.
const PLACES: [usize; 11] = features::FEW;
pub(crate) const PACKED: usize = SIZE * (SIZE + 1) / 2;
/// Days after which a part has forgotten two thirds.
const MEMORY_DAYS: f64 = 30.0;
const RHO: f64 = 0.5;
const FIRST_VARIANCE: f64 = 0.05;
const LINK: Link = Link::Sqrt;
/// A part is solved at least so often while its time lasts, but not more seldom than every so many samples.
const SOLUTIONS: f64 = 6.0;
const MOST_UNSOLVED: f64 = 8.0;
/// Prior: the target's slot of the week, plus two fifths of the deviation from it at the origin.
const PRIOR: [(usize, f64); 3] = [(1, 0.4), (4, -0.4), (5, 1.0)];

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HourRidge {
    forgetting: f64,
    /// Lower triangles, row by row, one after another.
    #[serde(with = "crate::bits::single")]
    grams: Vec<f32>,
    #[serde(with = "crate::bits")]
    moments: Vec<f64>,
    #[serde(with = "crate::bits")]
    weights: Vec<f64>,
    variance: f64,
    /// Samples from one solution to the next, and those since the last.
    every: u32,
    unsolved: u32,
}

/// A lower triangle in the first places of each row.
type Matrix = [[f64; SIZE]; SIZE];

impl HourRidge {
    pub(crate) fn new(day_steps: u64) -> Self {
        let mut weights = vec![0.0; HOURS * SIZE];
        for of_hour in weights.chunks_exact_mut(SIZE) {
            for (place, weight) in PRIOR {
                of_hour[place] = weight;
            }
        }
        let samples_an_hour = (day_steps as f64 / HOURS as f64).max(1.0);
        HourRidge {
            forgetting: 1.0 - 1.0 / (MEMORY_DAYS * samples_an_hour),
            grams: vec![0.0; HOURS * PACKED],
            moments: vec![0.0; HOURS * SIZE],
            weights,
            variance: FIRST_VARIANCE,
            every: (samples_an_hour / SOLUTIONS).clamp(1.0, MOST_UNSOLVED) as u32,
            unsolved: 0,
        }
    }

    pub(crate) fn fits(&self, fresh: &HourRidge) -> bool {
        let sound = |values: &[f64], like: &[f64]| values.len() == like.len() && values.iter().all(|v| v.is_finite());
        self.forgetting.to_bits() == fresh.forgetting.to_bits()
            && self.grams.len() == fresh.grams.len()
            && self.grams.iter().all(|value| value.is_finite())
            && sound(&self.moments, &fresh.moments)
            && sound(&self.weights, &fresh.weights)
            && self.variance.is_finite()
            && self.variance >= 0.0
            && self.every == fresh.every
            && self.unsolved < self.every
    }

    pub(crate) fn predict(&self, inputs: Inputs<'_>) -> f64 {
        let x = row(inputs);
        let weights = &self.weights[inputs.hour * SIZE..][..SIZE];
        inputs.level * LINK.invert(dot(weights, &x), self.variance)
    }

    pub(crate) fn learn(&mut self, inputs: Inputs<'_>, value: f64) {
        let x = row(inputs);
        let gram = &mut self.grams[inputs.hour * PACKED..][..PACKED];
        let moments = &mut self.moments[inputs.hour * SIZE..][..SIZE];
        let weights = &mut self.weights[inputs.hour * SIZE..][..SIZE];

        let z = LINK.apply(value / inputs.level);
        let error = z - dot(weights, &x);
        let bound = HUBER * self.variance.sqrt();
        let weight = if error.abs() > bound { bound / error.abs() } else { 1.0 };
        let surprise = (error * error).min(4.0 * bound * bound);
        self.variance = (self.variance + VARIANCE_RATE * (surprise - self.variance)).max(1e-12);

        count(PACKED);
        let mut row_start = 0;
        for (i, moment) in moments.iter_mut().enumerate() {
            let scaled = weight * x[i];
            *moment = self.forgetting * *moment + scaled * z;
            for (entry, xj) in gram[row_start..=row_start + i].iter_mut().zip(&x) {
                *entry = (self.forgetting * f64::from(*entry) + scaled * xj) as f32;
            }
            row_start += i + 1;
        }
        self.unsolved += 1;
        if self.unsolved == self.every {
            self.unsolved = 0;
            if let Some(solution) = solution(gram, moments) {
                weights.copy_from_slice(&solution);
            }
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.grams.len() * size_of::<f32>() + (self.moments.len() + self.weights.len()) * size_of::<f64>()
    }
}

/// Weights for these sums; `None` if the matrix cannot be solved.
fn solution(gram: &[f32], moments: &[f64]) -> Option<[f64; SIZE]> {
    let (mut g, mut right): (Matrix, [f64; SIZE]) = ([[0.0; SIZE]; SIZE], [0.0; SIZE]);
    right.copy_from_slice(moments);
    let mut packed = gram.iter().map(|&entry| f64::from(entry));
    for (i, row) in g.iter_mut().enumerate() {
        row.iter_mut().zip(packed.by_ref().take(i + 1)).for_each(|(place, entry)| *place = entry);
    }
    for (place, weight) in PRIOR {
        for (i, right) in right.iter_mut().enumerate() {
            *right -= weight * if place <= i { g[i][place] } else { g[place][i] };
        }
    }
    for (i, row) in g.iter_mut().enumerate() {
        row[i] += RHO;
    }
    let mut solution = solve(g, right)?;
    for (place, weight) in PRIOR {
        solution[place] += weight;
    }
    solution.iter().all(|weight| weight.is_finite()).then_some(solution)
}

/// Solves `g x = right` by the Cholesky decomposition; `None` if `g` is not positive definite.
fn solve(mut g: Matrix, mut right: [f64; SIZE]) -> Option<[f64; SIZE]> {
    count(SIZE.pow(3) / 3);
    for k in 0..SIZE {
        let pivot = g[k][k];
        if pivot <= 0.0 || !pivot.is_finite() {
            return None;
        }
        let inverse = 1.0 / pivot.sqrt();
        // Column k of the factor; its places above k stay 0, so that whole rows can be taken at once.
        let mut column = [0.0; SIZE];
        for (i, place) in column.iter_mut().enumerate().skip(k) {
            *place = g[i][k] * inverse;
            g[i][k] = *place;
        }
        right[k] *= inverse;
        for i in k + 1..SIZE {
            right[i] -= column[i] * right[k];
            for (place, factor) in g[i][k + 1..].iter_mut().zip(&column[k + 1..]) {
                *place -= column[i] * factor;
            }
        }
    }
    for k in (0..SIZE).rev() {
        right[k] /= g[k][k];
        for i in 0..k {
            right[i] -= g[k][i] * right[k];
        }
    }
    Some(right)
}

fn row(inputs: Inputs<'_>) -> [f64; SIZE] {
    let mut x = [1.0; SIZE];
    for (feature, place) in x[1..].iter_mut().zip(PLACES) {
        *feature = LINK.apply(inputs.values[place]);
    }
    x
}

fn dot(a: &[f64], b: &[f64; SIZE]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::FOURIER;
    use crate::features::VALUES;

    /// The last value says everything in one hour and nothing in another: one weight for both would be wrong twice.
    #[test]
    fn hours_learn_apart() {
        let mut ridge = HourRidge::new(24);
        fn inputs(values: &[f64; VALUES], hour: usize) -> Inputs<'_> {
            Inputs { values, logs: &[0.0; VALUES], fourier: &[0.0; FOURIER], level: 100.0, hour }
        }
        let mut seen = [1.0; VALUES];
        for step in 0..400_u32 {
            seen[0] = 0.5 + f64::from(step * 7 % 11) / 10.0;
            ridge.learn(inputs(&seen, 8), 100.0 * seen[0]);
            ridge.learn(inputs(&seen, 2), 70.0);
        }
        seen[0] = 1.4;
        let (rush, night) = (ridge.predict(inputs(&seen, 8)), ridge.predict(inputs(&seen, 2)));
        // The last value alone would say 140 in both, the mean of the two hours about 85.
        assert!((120.0..150.0).contains(&rush), "{rush}");
        assert!((night - 70.0).abs() < 8.0, "{night}");
        assert!(ridge.fits(&HourRidge::new(24)));
    }
}
