//! A second opinion on the mixture of all experts: the simplest of them, each on its own record.
//!
//! Purpose: a mixture that is still learning, or whose load just changed its ways, can be worse than repeating the
//! last value. The forecast is therefore an average of the mixture and the experts that learn nothing, weighted by
//! `exp(−κ √n (L / L* − 1))`, where `L` is the discounted sum of absolute errors, `L*` the least of them and `n` the
//! discounted number of targets: an excess counts as far as it stands out from chance, whose part in a sum of `n`
//! errors shrinks with `√n` (exponential weights: Cesa-Bianchi and Lugosi, "Prediction, learning, and games", 2006,
//! chapter 2). Once the mixture is clearly the best it is all there is.
//!
//! The seasonal expert takes part from the start: until it has a day to repeat it repeats the last value, as a
//! seasonal naive forecast does.
//!
//! Invariants: weights are not negative and sum to 1; the result lies between the least and the largest candidate.

use crate::expert::ExpertKind;
use serde::{Deserialize, Serialize};

/// The experts that take part, beside the mixture.
const SIMPLE: [ExpertKind; 5] = [
    ExpertKind::LastValue,
    ExpertKind::EwmaFast,
    ExpertKind::EwmaMedium,
    ExpertKind::EwmaSlow,
    ExpertKind::SeasonalDay,
];
/// The mixture comes first.
const CANDIDATES: usize = 1 + SIMPLE.len();
const LAST: usize = 1;
const SEASONAL: usize = CANDIDATES - 1;
/// What remains of an error after one step.
const DISCOUNT: f64 = 0.9995;
/// How sharply a worse record tells.
const SHARPNESS: f64 = 3.0;
/// No error counts more than this many times the usual one.
const MOST: f64 = 50.0;
/// Weight of a mean before anything is known: the last value is the better guess of the near future.
const MEANS_PRIOR: f64 = 0.3;

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Guard {
    /// Places of [`SIMPLE`] among the experts.
    places: Vec<usize>,
    #[serde(with = "crate::bits")]
    prior: Vec<f64>,
    #[serde(with = "crate::bits")]
    losses: Vec<f64>,
    targets: f64,
}

impl Guard {
    /// `None` if one of the simple experts is missing. `seasonal` is the prior weight of the seasonal one against the
    /// last value's 1.
    pub(crate) fn new(kinds: &[ExpertKind], seasonal: f64) -> Option<Self> {
        let place = |wanted: &ExpertKind| kinds.iter().position(|kind| kind == wanted);
        let places: Vec<usize> = SIMPLE.iter().filter_map(place).collect();
        if places.len() < SIMPLE.len() || kinds.len() == SIMPLE.len() {
            return None;
        }
        let mut prior = vec![1.0, 1.0, MEANS_PRIOR, MEANS_PRIOR, MEANS_PRIOR, 1.0];
        prior[SEASONAL] = seasonal;
        Some(Guard { places, prior, losses: vec![0.0; CANDIDATES], targets: 0.0 })
    }

    pub(crate) fn fits(&self, fresh: &Guard) -> bool {
        self.places == fresh.places
            && self.prior == fresh.prior
            && self.losses.len() == CANDIDATES
            && self.losses.iter().all(|loss| loss.is_finite() && *loss >= 0.0)
            && self.targets.is_finite()
            && self.targets >= 0.0
    }

    /// The candidates: the mixture, and the simple experts' forecasts.
    fn candidates(&self, mixture: f64, experts: &[f64]) -> [f64; CANDIDATES] {
        let mut candidates = [mixture; CANDIDATES];
        for (candidate, &place) in candidates[1..].iter_mut().zip(&self.places) {
            *candidate = experts.get(place).copied().unwrap_or(f64::NAN);
        }
        let last = if candidates[LAST].is_nan() { mixture } else { candidates[LAST] };
        for candidate in &mut candidates {
            if candidate.is_nan() {
                *candidate = last;
            }
        }
        candidates
    }

    fn weights(&self) -> [f64; CANDIDATES] {
        let mut weights = [0.0; CANDIDATES];
        let best = self.losses.iter().copied().fold(f64::INFINITY, f64::min);
        let sharpness = SHARPNESS * self.targets.sqrt();
        for ((weight, &loss), &prior) in weights.iter_mut().zip(&self.losses).zip(&self.prior) {
            // All exact so far: nobody is worse. One exact: the others are out.
            let excess = if loss <= best { 0.0 } else { (loss / best - 1.0).min(1e6) };
            *weight = prior * (-sharpness * excess).exp();
        }
        let total: f64 = weights.iter().sum();
        weights.map(|weight| weight / total)
    }

    /// The forecast: `mixture` and the simple ones (NaN where one abstains), by their records.
    pub(crate) fn mix(&self, mixture: f64, experts: &[f64]) -> f64 {
        let candidates = self.candidates(mixture, experts);
        let least = candidates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = candidates.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = self.weights().iter().zip(candidates).map(|(weight, candidate)| weight * candidate).sum();
        // Rounding must not carry the mean out of the hull.
        sum.clamp(least, most)
    }

    /// What the weights of the mixture come to after this: `of_mixture` by expert, summing to 1.
    pub(crate) fn spread(&self, of_mixture: &mut [f64]) {
        let weights = self.weights();
        of_mixture.iter_mut().for_each(|weight| *weight *= weights[0]);
        for (&place, weight) in self.places.iter().zip(&weights[1..]) {
            if let Some(of_expert) = of_mixture.get_mut(place) {
                *of_expert += weight;
            }
        }
    }

    /// The value that `mixture` and `experts` forecast, and the usual error: one absurd value must not hide for days
    /// which of them is better.
    pub(crate) fn learn(&mut self, mixture: f64, experts: &[f64], value: f64, usual_error: f64) {
        let most = if usual_error > 0.0 { MOST * usual_error } else { f64::INFINITY };
        let candidates = self.candidates(mixture, experts);
        self.targets = DISCOUNT * self.targets + 1.0;
        for (loss, candidate) in self.losses.iter_mut().zip(candidates) {
            *loss = DISCOUNT * *loss + (candidate - value).abs().min(most);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        (self.places.len() + 2 * CANDIDATES) * size_of::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guard() -> Guard {
        Guard::new(&ExpertKind::DEFAULT, 4.0).expect("the default has the simple experts")
    }

    /// Experts that all say `others`, but the one of this kind says `own`.
    fn experts(kind: ExpertKind, own: f64, others: f64) -> Vec<f64> {
        ExpertKind::DEFAULT.iter().map(|&each| if each == kind { own } else { others }).collect()
    }

    #[test]
    fn a_mixture_worse_than_a_simple_expert_is_left() {
        let mut guard = guard();
        let experts = experts(ExpertKind::EwmaMedium, 11.0, 15.0);
        for _ in 0..100 {
            guard.learn(13.0, &experts, 10.0, 1.0);
        }
        assert!((guard.mix(13.0, &experts) - 11.0).abs() < 0.01);
    }

    #[test]
    fn a_mixture_better_than_all_is_kept() {
        let mut guard = guard();
        for _ in 0..100 {
            guard.learn(10.5, &[12.0; ExpertKind::DEFAULT.len()], 10.0, 1.0);
        }
        assert!((guard.mix(10.5, &[12.0; ExpertKind::DEFAULT.len()]) - 10.5).abs() < 0.01);
    }

    #[test]
    fn without_a_day_the_seasonal_one_repeats_the_last_value() {
        let mut forecasts = experts(ExpertKind::LastValue, 7.0, 9.0);
        forecasts[4] = f64::NAN;
        assert_eq!(ExpertKind::DEFAULT[4], ExpertKind::SeasonalDay);
        assert_eq!(guard().candidates(8.0, &forecasts), [8.0, 7.0, 9.0, 9.0, 9.0, 7.0]);
    }

    #[test]
    fn one_expert_alone_has_no_guard() {
        assert!(Guard::new(&[ExpertKind::LastValue], 1.0).is_none());
    }

    proptest! {
        #[test]
        fn stays_between_the_candidates(steps in prop::collection::vec((0.0_f64..1e12, 0.0_f64..1e12, 0.0_f64..1e12), 1..100)) {
            let mut guard = guard();
            for (mixture, other, value) in steps {
                let experts = experts(ExpertKind::SeasonalDay, f64::NAN, other);
                let mixed = guard.mix(mixture, &experts);
                prop_assert!(mixed >= mixture.min(other) && mixed <= mixture.max(other));
                let mut weights = vec![1.0 / experts.len() as f64; experts.len()];
                guard.spread(&mut weights);
                prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                guard.learn(mixture, &experts, value, 0.0);
                prop_assert!(guard.fits(&self::guard()));
            }
        }
    }
}
