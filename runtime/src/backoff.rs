//! Exponential backoff with full jitter.
//!
//! Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

/// Delays that grow by two up to a ceiling, each drawn evenly between a tenth of it and itself.
#[derive(Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    attempt: u32,
    rng: SmallRng,
}

impl Backoff {
    /// Starts at `base` and never exceeds `max`; `seed` makes it reproducible.
    pub fn new(base: Duration, max: Duration, seed: u64) -> Self {
        Backoff { base, max, attempt: 0, rng: SmallRng::seed_from_u64(seed) }
    }

    /// The next delay.
    pub fn next_delay(&mut self) -> Duration {
        let ceiling = self.base.saturating_mul(1u32 << self.attempt.min(20)).min(self.max);
        self.attempt = self.attempt.saturating_add(1);
        ceiling.mul_f64(self.rng.random_range(0.1..=1.0))
    }

    /// Back to `base`, after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_ceiling_and_start_again() {
        let (base, max) = (Duration::from_millis(10), Duration::from_secs(1));
        let mut backoff = Backoff::new(base, max, 7);
        let delays: Vec<Duration> = (0..40).map(|_| backoff.next_delay()).collect();
        assert!(delays[0] <= base);
        assert!(delays.iter().all(|d| *d <= max));
        assert!(delays[10..].iter().any(|d| *d > max / 2), "the ceiling is reached");
        backoff.reset();
        assert!(backoff.next_delay() <= base);
    }
}
