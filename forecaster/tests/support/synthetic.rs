//! Series made by formula and seed, of shapes and intervals that the recorded ones do not have.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::f64::consts::TAU;

const MINUTE_MS: u64 = 60_000;

/// A kind of load.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) interval_ms: u64,
    make: fn(&mut Source) -> f64,
}

/// All kinds.
pub(crate) const KINDS: [Kind; 10] = [
    Kind { name: "weekly_hourly", interval_ms: 60 * MINUTE_MS, make: weekly },
    Kind { name: "walk_hourly", interval_ms: 60 * MINUTE_MS, make: walk },
    Kind { name: "growth_hourly", interval_ms: 60 * MINUTE_MS, make: growth },
    Kind { name: "office_15min", interval_ms: 15 * MINUTE_MS, make: office },
    Kind { name: "weekly_5min", interval_ms: 5 * MINUTE_MS, make: weekly },
    Kind { name: "sparse_5min", interval_ms: 5 * MINUTE_MS, make: sparse },
    Kind { name: "regimes_1min", interval_ms: MINUTE_MS, make: regimes },
    Kind { name: "bursts_1min", interval_ms: MINUTE_MS, make: bursts },
    Kind { name: "drift_10s", interval_ms: 10_000, make: drift },
    Kind { name: "drift_1s", interval_ms: 1000, make: drift },
];

impl Kind {
    /// The first `n` values.
    pub(crate) fn values(self, seed: u64, n: usize) -> Vec<f64> {
        let mut source = Source {
            rng: ChaCha8Rng::seed_from_u64(seed),
            day_steps: 86_400_000.0 / self.interval_ms as f64,
            step: 0,
            state: 0.0,
        };
        (0..n)
            .map(|step| {
                source.step = step;
                (self.make)(&mut source).max(0.0)
            })
            .collect()
    }

    /// Steps of a day.
    pub(crate) fn day_steps(self) -> usize {
        (86_400_000 / self.interval_ms) as usize
    }
}

/// What a formula draws from.
struct Source {
    rng: ChaCha8Rng,
    day_steps: f64,
    step: usize,
    /// Of the formula's own.
    state: f64,
}

impl Source {
    /// Days since the start.
    fn days(&self) -> f64 {
        self.step as f64 / self.day_steps
    }

    /// Between 0 and 2, lowest at night.
    fn rhythm(&self) -> f64 {
        1.0 - (TAU * self.days()).cos()
    }

    fn uniform(&mut self) -> f64 {
        self.rng.random_range(f64::MIN_POSITIVE..1.0)
    }

    /// Standard normal (Box and Muller).
    fn normal(&mut self) -> f64 {
        (-2.0 * self.uniform().ln()).sqrt() * (TAU * self.uniform()).cos()
    }

    /// Poisson with this mean; the normal approximation above 50.
    fn count(&mut self, mean: f64) -> f64 {
        if mean > 50.0 {
            return (mean + mean.sqrt() * self.normal()).round().max(0.0);
        }
        let (mut left, mut n) = ((-mean).exp(), 0.0);
        let draw = self.uniform();
        let mut sum = left;
        while sum < draw && n < 1000.0 {
            n += 1.0;
            left *= mean / n;
            sum += left;
        }
        n
    }
}

/// Daily rhythm, a quieter weekend, proportional noise.
fn weekly(s: &mut Source) -> f64 {
    let weekend = if s.days() as u64 % 7 >= 5 { 0.6 } else { 1.0 };
    100.0 * (0.3 + s.rhythm()) * weekend * (1.0 + 0.1 * s.normal())
}

/// No rhythm at all.
fn walk(s: &mut Source) -> f64 {
    s.state = 0.98 * s.state + 0.1 * s.normal();
    200.0 * s.state.exp()
}

/// Doubles every month.
fn growth(s: &mut Source) -> f64 {
    s.count(50.0 * (s.days() / 30.0).exp2() * (0.5 + s.rhythm()))
}

/// Plateaus by the clock, a cycle of an hour, empty weekends.
fn office(s: &mut Source) -> f64 {
    let (day, hour) = (s.days() as u64, 24.0 * s.days().fract());
    let open = day % 7 < 5 && (8.0..18.0).contains(&hour);
    let cycle = 1.0 + 0.3 * (TAU * hour).sin();
    s.count(if open { 400.0 * cycle } else { 15.0 })
}

/// Few requests, most intervals without one.
fn sparse(s: &mut Source) -> f64 {
    s.count(0.3 * s.rhythm())
}

/// Levels that last some hours.
fn regimes(s: &mut Source) -> f64 {
    if s.step == 0 || s.uniform() < 1.0 / 240.0 {
        s.state = (1.5 * s.normal()).exp();
    }
    let level = 60.0 * s.state;
    s.count(level)
}

/// Bursts of random height that fade within minutes, over a small base.
fn bursts(s: &mut Source) -> f64 {
    s.state *= 0.8;
    if s.uniform() < 0.02 {
        s.state += 300.0 * -s.uniform().ln();
    }
    let mean = 20.0 + 10.0 * s.rhythm() + s.state;
    s.count(mean)
}

/// Counts of a rate that wanders, with a daily rhythm.
fn drift(s: &mut Source) -> f64 {
    let hours = 24.0 / s.day_steps;
    s.state += -s.state * hours + (2.0 * hours).sqrt() * 0.2 * s.normal();
    let mean = 20.0 * (0.5 + s.rhythm()) * s.state.exp();
    s.count(mean)
}
