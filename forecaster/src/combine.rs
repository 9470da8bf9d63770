//! Weights of several forecasters by their recent losses: Bernstein Online Aggregation.
//!
//! Source: O. Wintenberger, "Optimal learning with Bernstein online aggregation", Machine Learning 106 (2017),
//! 119–141, with one learning rate an expert, tuned by the sum of its squared regrets, on linearised losses (the
//! gradient trick): the average loss approaches that of the best *convex combination*, not only of the best
//! expert. Additions: regrets are discounted, so that the weights follow change; there may be a prior; and an expert
//! may abstain ("sleep", Freund et al., STOC 1997). A sleeper takes on the regret of the best that is awake: when it
//! wakes it is trusted as much as that one, and a day later it has what it deserves. (Taking on the mixture's regret
//! instead made the second day of a series 2 % worse and later days no better.)
//!
//! Invariants: weights are positive and sum to 1; a mixture lies between the least and the largest forecast.

use serde::{Deserialize, Serialize};

/// What remains of a regret after one step: a memory of about 2,000 steps.
const DISCOUNT: f64 = 0.9995;
/// Share of the weight that is spread evenly, so that an expert whose time comes is found again.
const UNIFORM: f64 = 0.001;
/// No single step counts more than this many times the usual loss.
const MOST: f64 = 20.0;
const TINY: f64 = 1e-8;

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Combiner {
    /// Discounted sums of regrets with their second-order term: the less the better.
    #[serde(with = "crate::bits")]
    regrets: Vec<f64>,
    /// Discounted sums of squared regrets.
    #[serde(with = "crate::bits")]
    squares: Vec<f64>,
    /// Largest recent regret in size.
    #[serde(with = "crate::bits")]
    ranges: Vec<f64>,
    #[serde(with = "crate::bits")]
    weights: Vec<f64>,
    /// Weights before anything is known; they sum to 1.
    #[serde(with = "crate::bits")]
    prior: Vec<f64>,
}

impl Combiner {
    /// Forecasters whose weights before anything is known are as `prior` (positive, at least one).
    pub(crate) fn new(prior: &[f64]) -> Self {
        let (n, total) = (prior.len(), prior.iter().sum::<f64>());
        let prior: Vec<f64> = prior.iter().map(|weight| weight / total).collect();
        Combiner { regrets: vec![0.0; n], squares: vec![TINY; n], ranges: vec![TINY; n], weights: prior.clone(), prior }
    }

    /// `n` forecasters of equal weight, `n` at least 1.
    pub(crate) fn even(n: usize) -> Self {
        Combiner::new(&vec![1.0; n])
    }

    /// True if this state, read from outside, is one that `fresh` can have become.
    pub(crate) fn fits(&self, fresh: &Combiner) -> bool {
        let n = fresh.prior.len();
        let good =
            |values: &[f64], least: f64| values.len() == n && values.iter().all(|v| v.is_finite() && *v >= least);
        good(&self.squares, 0.0)
            && good(&self.ranges, 0.0)
            && good(&self.weights, 0.0)
            && good(&self.regrets, f64::MIN)
            && (self.weights.iter().sum::<f64>() - 1.0).abs() < 1e-6
            && self.prior == fresh.prior
    }

    pub(crate) fn weights(&self) -> &[f64] {
        &self.weights
    }

    /// The weighted mean of the forecasts that are not NaN; `None` if all abstain.
    pub(crate) fn mix(&self, forecasts: &[f64]) -> Option<f64> {
        let (mut sum, mut total) = (0.0, 0.0);
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for (weight, forecast) in self.weights.iter().zip(forecasts).filter(|(_, forecast)| !forecast.is_nan()) {
            sum += weight * forecast;
            total += weight;
            least = least.min(*forecast);
            most = most.max(*forecast);
        }
        // Rounding must not carry the mean out of the hull.
        (total > 0.0).then(|| (sum / total).clamp(least, most))
    }

    /// Takes the linearised regret of each forecaster against the mixture, in units of the usual loss (positive is
    /// worse than the mixture); NaN where it abstained.
    pub(crate) fn learn(&mut self, regrets: &[f64]) {
        let n = self.weights.len();
        let log_n = (n as f64).ln().max(f64::MIN_POSITIVE);
        let mut best: Option<(usize, f64)> = None;
        for (i, regret) in regrets.iter().enumerate().filter(|(_, regret)| !regret.is_nan()) {
            let r = regret.clamp(-MOST, MOST);
            self.squares[i] = DISCOUNT * self.squares[i] + r * r;
            self.ranges[i] = (DISCOUNT * self.ranges[i]).max(r.abs()).max(TINY);
            self.regrets[i] = DISCOUNT * self.regrets[i] + r + self.rate(i, log_n) * r * r;
            let total = self.rate(i, log_n) * self.regrets[i];
            if best.is_none_or(|(_, least)| total < least) {
                best = Some((i, total));
            }
        }
        let Some((best, _)) = best else { return };
        for i in (0..n).filter(|&i| regrets[i].is_nan()) {
            (self.squares[i], self.ranges[i]) = (self.squares[best], self.ranges[best]);
            self.regrets[i] = self.regrets[best].min(0.0);
        }
        self.weigh(log_n);
    }

    fn rate(&self, i: usize, log_n: f64) -> f64 {
        (0.5 / self.ranges[i]).min((log_n / self.squares[i].max(TINY)).sqrt())
    }

    fn weigh(&mut self, log_n: f64) {
        let n = self.weights.len();
        let least = (0..n).map(|i| self.rate(i, log_n) * self.regrets[i]).fold(f64::INFINITY, f64::min);
        let mut total = 0.0;
        for i in 0..n {
            let rate = self.rate(i, log_n);
            self.weights[i] = self.prior[i] * rate * (least - rate * self.regrets[i]).exp();
            total += self.weights[i];
        }
        for weight in &mut self.weights {
            *weight = (1.0 - UNIFORM) * *weight / total + UNIFORM / n as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{Rng, SeedableRng};

    /// Absolute loss of forecasts around a target, learned for some steps; returns (mixture's mean loss, weights).
    fn run(steps: usize, forecasts: impl Fn(usize, f64) -> Vec<f64>) -> (f64, Vec<f64>) {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
        let mut combiner = Combiner::even(forecasts(0, 0.0).len());
        let mut loss = 0.0;
        for step in 0..steps {
            let target: f64 = rng.random_range(-1.0..1.0);
            let guesses = forecasts(step, target);
            let mixture = combiner.mix(&guesses).unwrap_or(0.0);
            loss += (mixture - target).abs();
            let gradient = if mixture > target { 1.0 } else { -1.0 };
            let regrets: Vec<f64> = guesses.iter().map(|guess| gradient * (guess - mixture) / 4.0).collect();
            combiner.learn(&regrets);
        }
        (loss / steps as f64, combiner.weights().to_vec())
    }

    #[test]
    fn finds_the_best_of_many() {
        let (_, weights) = run(500, |_, target| vec![target + 1.0, target + 0.01, target - 1.5]);
        assert!(weights[1] > 0.95, "{weights:?}");
    }

    #[test]
    fn two_that_err_to_both_sides_beat_either() {
        let (loss, weights) = run(3000, |_, target| vec![target + 1.0, target - 1.0]);
        assert!(loss < 0.2, "{loss} with {weights:?}");
    }

    #[test]
    fn follows_a_change_of_the_best() {
        let change = |step: usize, target: f64| {
            if step < 3000 { vec![target, target + 1.0] } else { vec![target + 1.0, target] }
        };
        let (_, weights) = run(9000, change);
        assert!(weights[1] > 0.9, "{weights:?}");
    }

    #[test]
    fn one_that_wakes_late_neither_rules_at_once_nor_is_lost() {
        let guesses = |wake: usize| {
            move |step: usize, target: f64| {
                vec![target + 0.3, target + 0.5, if step < wake { f64::NAN } else { target }]
            }
        };
        let (_, at_waking) = run(1000, guesses(1000));
        assert!((0.2..0.6).contains(&at_waking[2]), "{at_waking:?}");
        let (_, later) = run(2000, guesses(1000));
        assert!(later[2] > 0.9, "{later:?}");
    }

    #[test]
    fn a_prior_rules_until_there_is_evidence() {
        let mut combiner = Combiner::new(&[3.0, 1.0]);
        assert_eq!(combiner.weights(), [0.75, 0.25]);
        combiner.learn(&[0.1, -0.1]);
        assert!((0.5..0.75).contains(&combiner.weights()[0]), "{:?}", combiner.weights());
        for _ in 0..100 {
            combiner.learn(&[0.1, -0.1]);
        }
        assert!(combiner.weights()[1] > 0.95, "{:?}", combiner.weights());
    }

    #[test]
    fn all_abstaining_is_no_forecast() {
        let mut combiner = Combiner::even(2);
        assert_eq!(combiner.mix(&[f64::NAN, f64::NAN]), None);
        combiner.learn(&[f64::NAN, f64::NAN]);
        assert_eq!(combiner.weights(), [0.5, 0.5]);
        assert_eq!(combiner.mix(&[f64::NAN, 3.0]), Some(3.0));
    }

    proptest! {
        #[test]
        fn weights_stay_a_distribution(steps in prop::collection::vec(prop::collection::vec(prop_oneof![3 => -1e3_f64..1e3, 1 => Just(f64::NAN), 1 => Just(0.0)], 4), 1..200)) {
            let mut combiner = Combiner::even(4);
            for regrets in steps {
                combiner.learn(&regrets);
                prop_assert!(combiner.fits(&Combiner::even(4)), "{:?}", combiner);
                prop_assert!(combiner.weights().iter().all(|weight| *weight > 0.0));
            }
        }
    }
}
