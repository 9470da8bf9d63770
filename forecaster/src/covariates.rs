//! Exogenous inputs: what else is measured beside the load, such as vehicles in service or stops served.
//!
//! Purpose: their newest values as features of about unit size, for [`crate::ExpertKind::Exogenous`]. Each input is
//! standardised by its own running mean and variance, so that its unit does not matter.
//!
//! Invariants: features are finite and at most [`MOST`] in size; what is unknown (NaN, infinite, absent, in a gap) is
//! taken for usual, which is 0.

use serde::{Deserialize, Serialize};

/// Newest values of each input that are features.
pub(crate) const LAGS: usize = 3;
/// Largest feature.
const MOST: f64 = 8.0;
/// Samples that mean and variance remember.
const MEMORY: f64 = 2000.0;

/// See the module's documentation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Covariates {
    #[serde(with = "crate::bits")]
    means: Vec<f64>,
    #[serde(with = "crate::bits")]
    variances: Vec<f64>,
    /// Known values so far.
    known: Vec<u64>,
    /// Standardised: all inputs of the newest interval, then those of the one before.
    #[serde(with = "crate::bits::single")]
    features: Vec<f32>,
}

impl Covariates {
    pub(crate) fn new(inputs: usize) -> Self {
        Covariates {
            means: vec![0.0; inputs],
            variances: vec![0.0; inputs],
            known: vec![0; inputs],
            features: vec![0.0; inputs * LAGS],
        }
    }

    pub(crate) fn fits(&self, inputs: usize) -> bool {
        [self.means.len(), self.variances.len(), self.known.len()] == [inputs; 3]
            && self.features.len() == inputs * LAGS
            && self.means.iter().all(|mean| mean.is_finite())
            && self.variances.iter().all(|variance| variance.is_finite() && *variance >= 0.0)
            && self.features.iter().all(|feature| feature.is_finite())
    }

    pub(crate) fn inputs(&self) -> usize {
        self.means.len()
    }

    pub(crate) fn features(&self) -> &[f32] {
        &self.features
    }

    /// Takes the inputs of the next interval, after `missing` of which nothing is known.
    pub(crate) fn observe(&mut self, values: &[f64], missing: u64) {
        let n = self.inputs();
        for _ in 0..missing.min(LAGS as u64) {
            self.shift();
        }
        self.shift();
        for (input, &value) in values.iter().take(n).enumerate() {
            // Squares of larger ones would overflow.
            if value.is_finite() && value.abs() < 1e100 {
                self.features[input] = self.standardise(input, value);
            }
        }
    }

    fn shift(&mut self) {
        let n = self.inputs();
        self.features.rotate_right(n);
        self.features[..n].fill(0.0);
    }

    /// The value by the statistics before it, which it then joins.
    fn standardise(&mut self, input: usize, value: f64) -> f32 {
        let (mean, variance) = (&mut self.means[input], &mut self.variances[input]);
        let distance = value - *mean;
        let feature = if *variance > 0.0 { (distance / variance.sqrt()).clamp(-MOST, MOST) } else { 0.0 };
        self.known[input] = self.known[input].saturating_add(1);
        let rate = 1.0 / (self.known[input] as f64).min(MEMORY);
        *mean += rate * distance;
        *variance = (1.0 - rate) * (*variance + rate * distance * distance);
        feature as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_unit_of_an_input_does_not_matter() {
        let (mut plain, mut scaled) = (Covariates::new(1), Covariates::new(1));
        for step in 0..50 {
            let value = f64::from(step * 7 % 11);
            plain.observe(&[value], 0);
            scaled.observe(&[1000.0 * value - 5.0], 0);
        }
        for (a, b) in plain.features().iter().zip(scaled.features()) {
            assert!((a - b).abs() < 1e-3 && a.abs() < 3.0, "{a} {b}");
        }
    }

    #[test]
    fn a_gap_leaves_the_lags_unknown() {
        let mut covariates = Covariates::new(2);
        for step in 0..20 {
            covariates.observe(&[f64::from(step % 3), f64::from(step % 5)], 0);
        }
        assert!(covariates.features().iter().filter(|feature| **feature != 0.0).count() >= 4);
        covariates.observe(&[9.0, f64::NAN], 100);
        assert!(covariates.features()[0] > 1.0);
        assert_eq!(covariates.features()[1..], [0.0; 5]);
    }

    proptest! {
        #[test]
        fn features_stay_finite(values in prop::collection::vec((any::<f64>(), 0_u64..5), 1..100)) {
            let mut covariates = Covariates::new(1);
            for (value, missing) in values {
                covariates.observe(&[value], missing);
                prop_assert!(covariates.fits(1), "{covariates:?}");
            }
        }
    }
}
