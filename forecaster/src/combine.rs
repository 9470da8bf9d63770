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

use crate::work::count;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What remains of a regret after one step: a memory of about 2,000 steps.
const DISCOUNT: f64 = 0.9995;
/// Share of the weight that is spread evenly, so that an expert whose time comes is found again.
const UNIFORM: f64 = 0.001;
/// No single step counts more than this many times the usual loss.
const MOST: f64 = 20.0;
const TINY: f64 = 1e-8;

/// What is known of one forecaster.
#[derive(Debug, Clone, Copy)]
struct Record {
    /// Discounted sum of regrets with their second-order term: the less the better.
    regret: f64,
    /// Discounted sum of squared regrets.
    square: f64,
    /// Largest recent regret in size.
    range: f64,
    weight: f64,
    /// Weight before anything is known; they sum to 1.
    prior: f64,
}

/// Numbers of a [`Record`].
const NUMBERS: usize = 5;

impl Record {
    fn rate(&self, log_n: f64) -> f64 {
        (0.5 / self.range).min((log_n / self.square.max(TINY)).sqrt())
    }
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Combiner {
    #[serde(serialize_with = "write", deserialize_with = "read")]
    records: Vec<Record>,
}

fn write<S: Serializer>(records: &[Record], serializer: S) -> Result<S::Ok, S::Error> {
    let numbers: Vec<f64> = records.iter().flat_map(|r| [r.regret, r.square, r.range, r.weight, r.prior]).collect();
    crate::bits::serialize(&numbers, serializer)
}

fn read<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Record>, D::Error> {
    let numbers = crate::bits::deserialize(deserializer)?;
    let (records, rest) = numbers.as_chunks::<NUMBERS>();
    if !rest.is_empty() {
        return Err(serde::de::Error::custom(format!("{} numbers are no whole number of records", numbers.len())));
    }
    let record =
        |&[regret, square, range, weight, prior]: &[f64; NUMBERS]| Record { regret, square, range, weight, prior };
    Ok(records.iter().map(record).collect())
}

impl Combiner {
    /// Forecasters whose weights before anything is known are as `prior` (positive, at least one).
    pub(crate) fn new(prior: &[f64]) -> Self {
        let total = prior.iter().sum::<f64>();
        let record = |weight: &f64| {
            let prior = weight / total;
            Record { regret: 0.0, square: TINY, range: TINY, weight: prior, prior }
        };
        Combiner { records: prior.iter().map(record).collect() }
    }

    /// `n` forecasters of equal weight, `n` at least 1.
    pub(crate) fn even(n: usize) -> Self {
        Combiner::new(&vec![1.0; n])
    }

    /// True if this state, read from outside, is one that `fresh` can have become.
    pub(crate) fn fits(&self, fresh: &Combiner) -> bool {
        let good = |value: f64, least: f64| value.is_finite() && value >= least;
        let sound = |record: &Record| {
            good(record.square, 0.0)
                && good(record.range, 0.0)
                && good(record.weight, 0.0)
                && good(record.regret, f64::MIN)
        };
        self.records.len() == fresh.records.len()
            && self.records.iter().all(sound)
            && (self.weights().sum::<f64>() - 1.0).abs() < 1e-6
            && self.records.iter().zip(&fresh.records).all(|(a, b)| a.prior.to_bits() == b.prior.to_bits())
    }

    pub(crate) fn weights(&self) -> impl Iterator<Item = f64> + '_ {
        self.records.iter().map(|record| record.weight)
    }

    /// The weighted mean of the forecasts that are not NaN; `None` if all abstain.
    pub(crate) fn mix(&self, forecasts: &[f64]) -> Option<f64> {
        count(self.records.len());
        let (mut sum, mut total) = (0.0, 0.0);
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for (record, forecast) in self.records.iter().zip(forecasts).filter(|(_, forecast)| !forecast.is_nan()) {
            sum += record.weight * forecast;
            total += record.weight;
            least = least.min(*forecast);
            most = most.max(*forecast);
        }
        // Rounding must not carry the mean out of the hull.
        (total > 0.0).then(|| (sum / total).clamp(least, most))
    }

    /// Weighted mean distance from `center` of the forecasts that are not NaN; 0 if all abstain.
    pub(crate) fn spread(&self, forecasts: &[f64], center: f64) -> f64 {
        count(self.records.len());
        let (mut sum, mut total) = (0.0, 0.0);
        for (record, forecast) in self.records.iter().zip(forecasts).filter(|(_, forecast)| !forecast.is_nan()) {
            sum += record.weight * (forecast - center).abs();
            total += record.weight;
        }
        if total > 0.0 { sum / total } else { 0.0 }
    }

    /// Takes the linearised regret of each forecaster against the mixture, in units of the usual loss (positive is
    /// worse than the mixture); NaN where it abstained.
    pub(crate) fn learn(&mut self, regrets: impl Iterator<Item = f64> + Clone) {
        count(3 * self.records.len());
        let log_n = (self.records.len() as f64).ln().max(f64::MIN_POSITIVE);
        // Of the best that is awake: its record, and its rate times its regret.
        let mut best: Option<(Record, f64)> = None;
        let mut all_awake = true;
        for (record, regret) in self.records.iter_mut().zip(regrets.clone()) {
            if regret.is_nan() {
                all_awake = false;
                continue;
            }
            let r = regret.clamp(-MOST, MOST);
            record.square = DISCOUNT * record.square + r * r;
            record.range = (DISCOUNT * record.range).max(r.abs()).max(TINY);
            let rate = record.rate(log_n);
            record.regret = DISCOUNT * record.regret + r + rate * r * r;
            // Until all are weighed anew this is the exponent.
            record.weight = rate;
            let total = rate * record.regret;
            if best.as_ref().is_none_or(|(_, least)| total < *least) {
                best = Some((*record, total));
            }
        }
        let Some((best, _)) = best else { return };
        if !all_awake {
            for (record, _) in self.records.iter_mut().zip(regrets).filter(|(_, regret)| regret.is_nan()) {
                (record.square, record.range) = (best.square, best.range);
                record.regret = best.regret.min(0.0);
                record.weight = best.weight;
            }
        }
        self.weigh();
    }

    /// Weights from the rates that stand in their place.
    fn weigh(&mut self) {
        let n = self.records.len() as f64;
        let least = self.records.iter().map(|record| record.weight * record.regret).fold(f64::INFINITY, f64::min);
        let mut total = 0.0;
        for record in &mut self.records {
            let rate = record.weight;
            record.weight = record.prior * rate * (least - rate * record.regret).exp();
            total += record.weight;
        }
        for record in &mut self.records {
            record.weight = (1.0 - UNIFORM) * record.weight / total + UNIFORM / n;
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
            combiner.learn(guesses.iter().map(|guess| gradient * (guess - mixture) / 4.0));
        }
        (loss / steps as f64, combiner.weights().collect())
    }

    fn weights(combiner: &Combiner) -> Vec<f64> {
        combiner.weights().collect()
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
        assert_eq!(weights(&combiner), [0.75, 0.25]);
        combiner.learn([0.1, -0.1].into_iter());
        assert!((0.5..0.75).contains(&weights(&combiner)[0]), "{combiner:?}");
        for _ in 0..100 {
            combiner.learn([0.1, -0.1].into_iter());
        }
        assert!(weights(&combiner)[1] > 0.95, "{combiner:?}");
    }

    #[test]
    fn all_abstaining_is_no_forecast() {
        let mut combiner = Combiner::even(2);
        assert_eq!(combiner.mix(&[f64::NAN, f64::NAN]), None);
        combiner.learn([f64::NAN, f64::NAN].into_iter());
        assert_eq!(weights(&combiner), [0.5, 0.5]);
        assert_eq!(combiner.mix(&[f64::NAN, 3.0]), Some(3.0));
    }

    proptest! {
        #[test]
        fn weights_stay_a_distribution(steps in prop::collection::vec(prop::collection::vec(prop_oneof![3 => -1e3_f64..1e3, 1 => Just(f64::NAN), 1 => Just(0.0)], 4), 1..200)) {
            let mut combiner = Combiner::even(4);
            for regrets in steps {
                combiner.learn(regrets.into_iter());
                prop_assert!(combiner.fits(&Combiner::even(4)), "{:?}", combiner);
                prop_assert!(combiner.weights().all(|weight| weight > 0.0));
            }
        }
    }
}
