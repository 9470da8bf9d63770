//! The queueing margin: how much capacity above the mean rate keeps waiting inside the SLO.
//!
//! The queue of one node is late-binding: its workers take from one deadline-ordered queue, so it behaves as one
//! server of rate `K`. By the effective bandwidth of arrivals with index of dispersion `I`, waiting exceeds `d` with
//! probability `ε` when
//!
//! ```text
//! K = λ (e^{Iθ} − 1) / (Iθ),   θ = ln(1/ε) / (K d)
//! ```
//!
//! With `a = I·ln(1/ε)/d` this fixed point has a closed form, in both directions:
//!
//! ```text
//! K = a / ln(1 + a/λ)          λ = a / (e^{a/K} − 1)
//! ```
//!
//! For large λ the margin `K − λ` tends to `a/2 = I·ln(1/ε)/(2d)`: requests per second, almost independent of λ.
//! That is why a fixed utilisation ("70 %") is wrong at both ends.
//!
//! **With deadline shedding** (the executor's queue) nobody waits longer than `d`: what does not fit is dropped, and the
//! question is how much that is. Work in the queue behaves as a Brownian motion with drift `λ − K` and variance `λI`
//! between the barriers 0 and `B = K·d`; the upper one is hit by a share of the arrivals of
//!
//! ```text
//! loss = u / (e^{cu} − 1),   u = (K − λ)/λ,   c = 2Kd/I          (→ 1/c at u = 0, and 1 − K/λ far beyond)
//! ```
//!
//! (regulated Brownian motion, Harrison 1985, §5). So `loss = ε` at `λ = K/(1 + y/c)` with `y/(e^y − 1) = εc`: a queue that
//! sheds carries more, and with many workers even more than its capacity less what it drops.
//!
//! Invariants: both functions increase in the rate, and are inverse to one another. Arrivals that partitions split
//! over several nodes pay the margin once a node (`pack`). Left out: service-time variance (capacity is measured
//! under load) and queues that a request cannot change (random routing to workers needs far more).

/// What waiting may be: the time left for it, how often it may be exceeded, and how bursty arrivals are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Waiting {
    /// Time that a request may wait, seconds.
    pub allowed_s: f64,
    /// Share of requests that may wait longer, between 0 and 1.
    pub epsilon: f64,
    /// Variance over mean of arrivals; 1 is Poisson.
    pub dispersion: f64,
    /// True when what would wait longer is dropped: `epsilon` is then the share that may be.
    pub sheds: bool,
}

/// The `y` with `y / (e^y − 1) = z`, for positive `z`: Newton's method on `ln` of both sides.
fn inverse_bernoulli(z: f64) -> f64 {
    // Near 0 the function is 1 − y/2; for large y it is y e^{−y}, for very negative y it is −y.
    let mut y = if z > 1.5 { -z } else { 2.0 * (1.0 - z).max(-1.0) + if z < 0.2 { -z.ln() } else { 0.0 } };
    for _ in 0..50 {
        let value = if y.abs() < 1e-6 { 1.0 - y / 2.0 } else { y / y.exp_m1() };
        // d ln f / dy = 1/y − e^y/(e^y − 1).
        let slope = if y.abs() < 1e-4 { -0.5 - y / 12.0 } else { 1.0 / y - 1.0 / (-(-y).exp_m1()) };
        let step = ((value / z).ln() / slope).clamp(-8.0, 8.0);
        y -= step;
        if step.abs() < 1e-12 * (1.0 + y.abs()) {
            break;
        }
    }
    y
}

impl Waiting {
    /// `a = I·ln(1/ε)/d`, requests per second; infinite when there is no time to wait.
    fn pressure_rps(&self) -> f64 {
        if self.allowed_s > 0.0 { self.dispersion * (1.0 / self.epsilon).ln() / self.allowed_s } else { f64::INFINITY }
    }

    /// Capacity that one queue needs to carry `rate_rps`.
    pub fn required_rps(&self, rate_rps: f64) -> f64 {
        let a = self.pressure_rps();
        if rate_rps <= 0.0 {
            return 0.0;
        }
        if a.is_infinite() {
            return f64::INFINITY;
        }
        if self.sheds {
            // The rate that is carried increases with capacity; it lies between nothing and what a queue without
            // shedding would need.
            let (mut low, mut high) = (0.0, Waiting { sheds: false, ..*self }.required_rps(rate_rps).max(rate_rps));
            while self.carried_rps(high) < rate_rps {
                high *= 2.0;
            }
            for _ in 0..60 {
                let middle = 0.5 * (low + high);
                if self.carried_rps(middle) < rate_rps {
                    low = middle
                } else {
                    high = middle
                }
                if high - low <= 1e-12 * high {
                    break;
                }
            }
            return high;
        }
        a / (a / rate_rps).ln_1p()
    }

    /// Rate that one queue with this capacity carries.
    pub fn carried_rps(&self, capacity_rps: f64) -> f64 {
        let a = self.pressure_rps();
        if capacity_rps <= 0.0 || a.is_infinite() {
            return 0.0;
        }
        if self.sheds {
            let c = 2.0 * capacity_rps * self.allowed_s / self.dispersion;
            let y = inverse_bernoulli(self.epsilon * c);
            // y > −c for every epsilon below 1.
            return capacity_rps / (1.0 + y / c).max(f64::MIN_POSITIVE);
        }
        a / (a / capacity_rps).exp_m1()
    }

    /// The part of [`Waiting::required_rps`] that is only for queueing.
    pub fn margin_rps(&self, rate_rps: f64) -> f64 {
        self.required_rps(rate_rps) - rate_rps.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tends_to_the_additive_margin() {
        let w = Waiting { allowed_s: 0.150, epsilon: 0.01, dispersion: 1.0, sheds: false };
        let limit = (100.0f64).ln() / (2.0 * 0.150);
        assert!((w.margin_rps(100_000.0) - limit).abs() < 0.01, "{}", w.margin_rps(100_000.0));
        // Almost independent of the rate: a third of the load needs nearly the same margin.
        assert!((w.margin_rps(300.0) - w.margin_rps(100.0)).abs() < 1.5);
    }

    #[test]
    fn no_time_to_wait_carries_nothing() {
        let w = Waiting { allowed_s: 0.0, epsilon: 0.01, dispersion: 1.0, sheds: false };
        assert_eq!(w.carried_rps(1000.0), 0.0);
        assert!(w.required_rps(1.0).is_infinite());
    }

    /// Discrete-event check of the formula: one queue, Poisson arrivals, a deterministic server.
    #[test]
    fn waiting_stays_inside_epsilon_in_a_simulated_queue() {
        use rand::{Rng, SeedableRng};
        let w = Waiting { allowed_s: 0.100, epsilon: 0.01, dispersion: 1.0, sheds: false };
        for rate in [20.0, 100.0, 400.0] {
            let service_s = 1.0 / w.required_rps(rate);
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
            let (mut now, mut free_at, mut late, n) = (0.0f64, 0.0f64, 0u32, 200_000u32);
            for _ in 0..n {
                now += -(1.0 - rng.random::<f64>()).ln() / rate;
                let start = free_at.max(now);
                late += u32::from(start - now > w.allowed_s);
                free_at = start + service_s;
            }
            let share = f64::from(late) / f64::from(n);
            // Conservative (no prefactor), but not by an order of magnitude at high load.
            assert!(share <= w.epsilon, "rate {rate}: {share}");
        }
    }

    /// The same with shedding: the formula says what is dropped, within a factor that a diffusion owes at small queues.
    #[test]
    fn what_is_dropped_is_what_the_formula_says() {
        use rand::{Rng, SeedableRng};
        for (rate, epsilon) in [(60.0, 0.03), (300.0, 0.03), (300.0, 0.01), (1000.0, 0.02)] {
            let w = Waiting { allowed_s: 0.130, epsilon, dispersion: 1.0, sheds: true };
            let service_s = 1.0 / w.required_rps(rate);
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(7);
            let (mut now, mut free_at, mut dropped, n) = (0.0f64, 0.0f64, 0u32, 400_000u32);
            for _ in 0..n {
                now += -(1.0 - rng.random::<f64>()).ln() / rate;
                let start = free_at.max(now);
                if start - now > w.allowed_s {
                    dropped += 1;
                } else {
                    free_at = start + service_s;
                }
            }
            let share = f64::from(dropped) / f64::from(n);
            assert!(share > 0.6 * epsilon && share < 1.3 * epsilon, "rate {rate}: {share} of {epsilon}");
        }
    }

    proptest! {
        #[test]
        fn shedding_carries_more_and_both_directions_are_inverse(
            rate in 0.1f64..20_000.0, d in 0.005f64..2.0, eps in 0.001f64..0.2, i in 0.2f64..20.0
        ) {
            let w = Waiting { allowed_s: d, epsilon: eps, dispersion: i, sheds: true };
            let k = w.required_rps(rate);
            prop_assert!(k > 0.0 && k <= 1.001 * Waiting { sheds: false, ..w }.required_rps(rate).max(rate), "{k}");
            prop_assert!((w.carried_rps(k) - rate).abs() <= 1e-6 * rate, "{} {rate}", w.carried_rps(k));
            prop_assert!(w.required_rps(rate * 1.01) > k);
            prop_assert!(w.carried_rps(k * 1.01) > w.carried_rps(k));
            let (u, c) = ((k - rate) / rate, 2.0 * k * d / i);
            let loss = if (c * u).abs() < 1e-9 { 1.0 / c } else { u / (c * u).exp_m1() };
            prop_assert!((loss - eps).abs() <= 1e-4 * eps, "{loss} {eps}");
        }

        #[test]
        fn the_two_directions_are_inverse_and_increasing(
            rate in 0.01f64..50_000.0, d in 0.001f64..2.0, eps in 0.0001f64..0.3, i in 0.2f64..20.0
        ) {
            let w = Waiting { allowed_s: d, epsilon: eps, dispersion: i, sheds: false };
            let k = w.required_rps(rate);
            prop_assert!(k > rate);
            prop_assert!((w.carried_rps(k) - rate).abs() <= 1e-6 * rate.max(1.0));
            prop_assert!(w.required_rps(rate * 1.01) > k);
            // The closed form solves the published fixed point.
            let theta = (1.0 / eps).ln() / (k * d);
            let fixed = rate * (i * theta).exp_m1() / (i * theta);
            prop_assert!((fixed - k).abs() <= 1e-6 * k, "{fixed} {k}");
        }
    }
}
