//! A ridge over the other experts' forecasts: weights that need not be positive nor sum to one.
//!
//! Purpose: [`crate::combine`] gives the best convex mixture; where all experts err to one side, or one is best used
//! to correct another, a regression does better (stacked generalisation: Wolpert, 1992; Breiman, 1996). It is one
//! expert among the others, so that the mixture decides how far to trust it.
//!
//! Everything is a deviation from the mixture at the origin, in multiples of the level. An expert that abstained
//! deviates by nothing.
//!
//! Invariants: weights are finite; a matrix that cannot be solved leaves the weights as they were.

use crate::work::count;
use nalgebra::{Cholesky, DMatrix, DVector};
use serde::{Deserialize, Serialize};

const FORGETTING: f64 = 0.9995;
const PULL: f64 = 0.02;
/// The same for inputs of which nothing is known but that somebody thought them of use.
const PULL_OF_INPUTS: f64 = 0.1;

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Stack {
    /// Lower triangle, row by row.
    #[serde(with = "crate::bits")]
    gram: Vec<f64>,
    #[serde(with = "crate::bits")]
    moments: Vec<f64>,
    #[serde(with = "crate::bits")]
    weights: Vec<f64>,
    /// Pull towards the mixture, as a part of the mean of the diagonal.
    pull: f64,
}

impl Stack {
    /// Over this many forecasts, its own place among them included (where it is taken to abstain).
    pub(crate) fn new(experts: usize) -> Self {
        Stack::with_pull(experts, PULL)
    }

    /// Over this many inputs of unit size, each given as if it forecast the mixture plus its own number of levels.
    pub(crate) fn of_inputs(inputs: usize) -> Self {
        Stack::with_pull(inputs, PULL_OF_INPUTS)
    }

    fn with_pull(n: usize, pull: f64) -> Self {
        Stack { gram: vec![0.0; n * (n + 1) / 2], moments: vec![0.0; n], weights: vec![0.0; n], pull }
    }

    pub(crate) fn fits(&self, fresh: &Stack) -> bool {
        let sound = |values: &[f64], like: &[f64]| values.len() == like.len() && values.iter().all(|v| v.is_finite());
        self.pull.to_bits() == fresh.pull.to_bits()
            && sound(&self.gram, &fresh.gram)
            && sound(&self.moments, &fresh.moments)
            && sound(&self.weights, &fresh.weights)
    }

    /// Number of forecasts.
    pub(crate) fn inputs(&self) -> usize {
        self.weights.len()
    }

    /// The mixture of the others, corrected.
    pub(crate) fn predict(&self, mixture: f64, forecasts: impl Iterator<Item = f64>) -> f64 {
        let deviations = self.weights.iter().zip(forecasts).filter(|(_, forecast)| !forecast.is_nan());
        mixture + deviations.map(|(weight, forecast)| weight * (forecast - mixture)).sum::<f64>()
    }

    /// Learns from the others' `forecasts` (NaN where there is none) and the `center` that they were mixed to.
    /// `weight` is what the sample counts.
    pub(crate) fn learn(
        &mut self,
        forecasts: impl Iterator<Item = f64> + Clone,
        center: f64,
        value: f64,
        level: f64,
        weight: f64,
    ) {
        let deviation = |forecast: f64| if forecast.is_nan() { 0.0 } else { (forecast - center) / level };
        let wanted = (value - center) / level;
        count(self.gram.len());
        let deviations = forecasts.map(deviation);
        let mut packed = self.gram.iter_mut();
        for (i, (moment, own)) in self.moments.iter_mut().zip(deviations.clone()).enumerate() {
            let scaled = weight * own;
            *moment = FORGETTING * *moment + scaled * wanted;
            for (entry, other) in packed.by_ref().take(i + 1).zip(deviations.clone()) {
                *entry = FORGETTING * *entry + scaled * other;
            }
        }
    }

    pub(crate) fn solve(&mut self) {
        let n = self.weights.len();
        count(n.pow(3) / 3);
        let mut g = DMatrix::<f64>::zeros(n, n);
        let mut packed = self.gram.iter();
        for i in 0..n {
            for (j, &value) in packed.by_ref().take(i + 1).enumerate() {
                g[(i, j)] = value;
                g[(j, i)] = value;
            }
        }
        let pull = self.pull * g.trace() / n as f64 + 1e-9;
        for i in 0..n {
            g[(i, i)] += pull;
        }
        let mut right = DVector::from_column_slice(&self.moments);
        let Some(cholesky) = Cholesky::new(g) else { return };
        cholesky.solve_mut(&mut right);
        if right.iter().all(|weight| weight.is_finite()) {
            self.weights.copy_from_slice(right.as_slice());
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        (self.gram.len() + self.moments.len() + self.weights.len()) * size_of::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both experts are too low, so no convex mixture is right: the second's double minus the first is.
    #[test]
    fn leaves_the_convex_hull_where_that_is_right() {
        let mut stack = Stack::new(3);
        for step in 0..500_u32 {
            let swing = f64::from(step * 7 % 13);
            let forecasts = [10.0 + swing, 20.0 + 2.0 * swing, f64::NAN];
            let value = 2.0 * forecasts[1] - forecasts[0];
            stack.learn(forecasts.into_iter(), (forecasts[0] + forecasts[1]) / 2.0, value, 30.0, 1.0);
        }
        stack.solve();
        let found = stack.predict(18.0, [12.0, 24.0, f64::NAN].into_iter());
        assert!((found - 36.0).abs() < 1.0, "{found}");
        assert!(stack.fits(&Stack::new(3)));
    }

    #[test]
    fn before_anything_is_learned_it_is_the_mixture() {
        let mut stack = Stack::new(2);
        stack.solve();
        assert_eq!(stack.predict(5.0, [1.0, f64::NAN].into_iter()), 5.0);
    }
}
