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
//! seasonal naive forecast does. So its record of the first day says nothing about it. On the second day its errors are
//! compared with what the last value's were so far: the likelihood ratio of two Laplace distributions of unknown
//! scale moves its prior. One error of a true rhythm is small beside a day of the others, and tells more than many
//! pairs do.
//!
//! What cannot be had: at the end of the first day, half a day ahead, a load with a rhythm and a random walk look the
//! same. A prior that loses at most 5 % on the former trusts the day before, and the latter pays about 10 % for it.
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
const MOST: f64 = 200.0;
/// Weight of a mean before anything is known, against 1 of the mixture and of the last value: that is the better guess of
/// the near future.
const MEANS_PRIOR: f64 = 0.5;

/// What an error an hour counts as evidence: errors of successive hours are alike.
const TEMPER: f64 = 0.5;
const HOURS: f64 = 24.0;
const MOST_EVIDENCE: f64 = 6.0;

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
    /// What the first errors of the seasonal expert say for it, in nats.
    evidence: f64,
    /// What one of them counts.
    temper: f64,
    /// Its errors so far, up to a day of them, and their sum.
    seasonal_targets: f64,
    seasonal_loss: f64,
    /// Steps of a day.
    day_steps: f64,
}

impl Guard {
    /// `None` if one of the simple experts is missing. `seasonal` is the prior weight of the seasonal one against the
    /// last value's 1.
    pub(crate) fn new(kinds: &[ExpertKind], seasonal: f64, day_steps: u64) -> Option<Self> {
        let place = |wanted: &ExpertKind| kinds.iter().position(|kind| kind == wanted);
        let places: Vec<usize> = SIMPLE.iter().filter_map(place).collect();
        if places.len() < SIMPLE.len() || kinds.len() == SIMPLE.len() {
            return None;
        }
        let prior = vec![1.0, 1.0, MEANS_PRIOR, MEANS_PRIOR, MEANS_PRIOR, seasonal];
        let day_steps = day_steps as f64;
        Some(Guard {
            places,
            prior,
            losses: vec![0.0; CANDIDATES],
            targets: 0.0,
            evidence: 0.0,
            temper: TEMPER * (HOURS / day_steps).min(1.0),
            seasonal_targets: 0.0,
            seasonal_loss: 0.0,
            day_steps,
        })
    }

    pub(crate) fn fits(&self, fresh: &Guard) -> bool {
        self.places == fresh.places
            && self.prior == fresh.prior
            && self.losses.len() == CANDIDATES
            && self.losses.iter().all(|loss| loss.is_finite() && *loss >= 0.0)
            && self.evidence.abs() <= MOST_EVIDENCE
            && self.temper.to_bits() == fresh.temper.to_bits()
            && self.day_steps.to_bits() == fresh.day_steps.to_bits()
            && [self.targets, self.seasonal_targets, self.seasonal_loss]
                .iter()
                .all(|sum| sum.is_finite() && *sum >= 0.0)
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
        weights[SEASONAL] *= self.evidence.exp();
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
        let is_awake = self.places.last().and_then(|&place| experts.get(place)).is_some_and(|own| !own.is_nan());
        if is_awake && self.seasonal_targets < self.day_steps {
            self.learn_seasonal(
                (candidates[SEASONAL] - value).abs().min(most),
                (candidates[LAST] - value).abs().min(most),
            );
        }
        self.targets = DISCOUNT * self.targets + 1.0;
        for (loss, candidate) in self.losses.iter_mut().zip(candidates) {
            *loss = DISCOUNT * *loss + (candidate - value).abs().min(most);
        }
    }

    /// Takes an error of the seasonal expert and that of the last value for the same target.
    fn learn_seasonal(&mut self, seasonal: f64, last: f64) {
        let known = self.losses[LAST];
        if known > 0.0 {
            // Before its first error it is thought to be as good as the last value.
            let expected = known / self.targets;
            // In units of that, so that a scaled series gives the same.
            let sum = 1.0 + self.seasonal_loss / expected;
            let own = log_density(1.0 + self.seasonal_targets, sum, seasonal / expected);
            let others = log_density(self.targets, self.targets, last / expected);
            // Errors beside which the mean is nothing say nothing: both densities are 0.
            let change = Some(self.temper * (own - others)).filter(|change| !change.is_nan()).unwrap_or(0.0);
            self.evidence = (self.evidence + change).clamp(-MOST_EVIDENCE, MOST_EVIDENCE);
        }
        self.seasonal_targets += 1.0;
        self.seasonal_loss += seasonal;
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        (self.places.len() + 2 * CANDIDATES) * size_of::<f64>()
    }
}

/// Logarithm of the density of the next error of a Laplace distribution of unknown scale, of which `n` errors summed to
/// `sum` (a gamma prior on the rate, integrated out).
fn log_density(n: f64, sum: f64, error: f64) -> f64 {
    (n / sum).ln() - (n + 1.0) * (error / sum).ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guard() -> Guard {
        Guard::new(&ExpertKind::DEFAULT, 4.0, 24).expect("the default has the simple experts")
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

    /// Errors of the second day move the seasonal expert's weight faster than the two days' sums could.
    #[test]
    fn a_rhythm_is_seen_within_hours_of_the_second_day() {
        let weight = |of_second_day: f64| {
            let mut guard = guard();
            let mut forecasts = experts(ExpertKind::SeasonalDay, f64::NAN, 0.0);
            for hour in 0..24 + 3 {
                if hour >= 24 {
                    forecasts[4] = of_second_day;
                }
                guard.learn(0.0, &forecasts, 10.0, 10.0);
            }
            guard.weights()[SEASONAL]
        };
        // 1 off where the others are 10 off; as far off as the others; twice as far.
        assert!(weight(9.0) > 0.95 && weight(0.0) < 0.7 && weight(-10.0) < 0.4, "{:?}", [9.0, 0.0, -10.0].map(weight));
    }

    #[test]
    fn one_expert_alone_has_no_guard() {
        assert!(Guard::new(&[ExpertKind::LastValue], 1.0, 24).is_none());
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
