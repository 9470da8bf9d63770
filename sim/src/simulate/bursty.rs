//! `generator = "bursty"`: a day's wave with noise, and flash crowds that nothing announces.
//!
//! One value a minute, `rate(t) = base(t) · e^{x(t)} · crowd(t)` in arbitrary units (a scenario rescales it), with `t`
//! in minutes from the begin and `d = t / 1440`:
//!
//! ```text
//! base(t)  = 110 + 70 sin(2π (d − 0.3)) + 15 sin(4π d)
//! x(t)     = 0.9 x(t−1) + 0.035 z(t),                       z standard normal, x(−1) = 0
//! crowd(t) = max over crowds of 1 + h · g(t − s)
//! g(k)     = min(1, (k + 1) / ramp)   for 0 ≤ k < hold,     e^{−(k − hold) / 4}  for k ≥ hold, 0 otherwise
//! ```
//!
//! A **flash crowd** begins at a minute `s` drawn evenly over the whole series, eight a day on average (exactly
//! `8 · days`), with height `h` even in [0.5, 2.5) (so the load grows to 1.5 to 3.5 times), a `ramp` of 1 or 2 minutes,
//! a `hold` of 3 to 19 minutes, and lasts 60 minutes at most. These are the numbers of the prototype of FACTS §Planning.
//! Draws come from [`Random`] with the scenario's seed and purpose `bursty`: first all `z`, then each crowd's `s`, `h`,
//! `hold`, `ramp`. `generator = "daily"` is the same without crowds.

use super::random::Random;
use crate::trace::Trace;
use std::f64::consts::TAU;

const MINUTES: usize = 1440;
const CROWDS_A_DAY: usize = 8;
const LONGEST: usize = 60;

/// The series, one value a minute from the epoch's begin plus `start_ms`.
pub fn generate(seed: u64, start_ms: i64, days: usize, with_crowds: bool) -> Trace {
    let n = days.max(1) * MINUTES;
    let mut random = Random::new(seed, "bursty");
    let mut noise = 0.0;
    let mut counts: Vec<f64> = (0..n)
        .map(|t| {
            let d = t as f64 / MINUTES as f64;
            noise = 0.9 * noise + 0.035 * random.normal();
            (110.0 + 70.0 * (TAU * (d - 0.3)).sin() + 15.0 * (2.0 * TAU * d).sin()) * noise.exp() * 60.0
        })
        .collect();
    let mut crowd = vec![1.0_f64; n];
    for _ in 0..if with_crowds { CROWDS_A_DAY * days } else { 0 } {
        let begin = (random.unit() * n.saturating_sub(LONGEST) as f64) as usize;
        let height = 0.5 + 2.0 * random.unit();
        let hold = 3.0 + (17.0 * random.unit()).floor();
        let ramp = 1.0 + (2.0 * random.unit()).floor();
        for k in 0..LONGEST.min(n - begin) {
            let age = k as f64;
            let shape = if age < hold { ((age + 1.0) / ramp).min(1.0) } else { (-(age - hold) / 4.0).exp() };
            crowd[begin + k] = crowd[begin + k].max(1.0 + height * shape);
        }
    }
    for (count, factor) in counts.iter_mut().zip(crowd) {
        *count *= factor;
    }
    Trace { start_ms, interval_ms: 60_000, counts }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crowds_lift_some_minutes_and_nothing_else() {
        let (calm, crowds) = (generate(3, 0, 10, false), generate(3, 0, 10, true));
        let ratio: Vec<f64> = crowds.counts.iter().zip(&calm.counts).map(|(a, b)| a / b).collect();
        assert!(ratio.iter().all(|r| (1.0 - 1e-9..3.5).contains(r)));
        let lifted = ratio.iter().filter(|r| **r > 1.4).count();
        assert!((300..3_000).contains(&lifted), "{lifted} of 14,400 minutes");
        assert_eq!(generate(3, 0, 10, true), crowds);
        assert_ne!(generate(4, 0, 10, true), crowds);
    }
}
