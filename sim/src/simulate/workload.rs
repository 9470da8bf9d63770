//! The load of one service: its rate second by second, its arrivals, and the forecasts that were possible.
//!
//! A trace coarser than a minute is read as the rate at the middle of each interval, with straight lines between; a
//! finer one as constant in each interval. Arrivals are a Poisson process of that rate. What is forecast from are the
//! counts of those very arrivals, so a forecast knows as much as `workload.observed` would have told, and is the same
//! for every policy. Left out: burstiness below the trace's resolution beyond Poisson.

use super::random::Random;
use crate::trace::Trace;
use forecaster::{ExpertKind, Model, ModelConfig};
use schemas::EpochMs;
use schemas::workload::{ForecastError, ForecastPeak, ForecastStep, WorkloadForecast};
use std::collections::BTreeMap;

/// Traces coarser than this are interpolated, milliseconds.
const COARSE_MS: i64 = 60_000;
/// Quantiles that every forecast has: those of production.
pub const LEVELS: [f64; 5] = ModelConfig::LEVELS;

/// Rate of a trace at any time, requests per second.
#[derive(Debug, Clone, Copy)]
pub struct Path<'a> {
    /// Counts.
    pub trace: &'a Trace,
    /// Part of them that is this service's.
    pub share: f64,
}

impl Path<'_> {
    /// Rate at an instant; outside the trace, that of its nearest interval.
    pub fn rate_rps(&self, at_ms: i64) -> f64 {
        let interval = self.trace.interval_ms;
        let last = self.trace.counts.len() as i64 - 1;
        let value = |i: i64| self.trace.counts[i.clamp(0, last) as usize];
        let since = at_ms - self.trace.start_ms;
        let per_s = self.share * 1000.0 / interval as f64;
        if interval <= COARSE_MS {
            return value(since.div_euclid(interval)) * per_s;
        }
        let from_middle = since - interval / 2;
        let (i, part) = (from_middle.div_euclid(interval), from_middle.rem_euclid(interval) as f64 / interval as f64);
        (value(i) * (1.0 - part) + value(i + 1) * part) * per_s
    }

    /// Rates of `n` seconds, at the middle of each.
    pub fn per_second(&self, from_ms: i64, n: usize) -> Vec<f32> {
        (0..n).map(|s| self.rate_rps(from_ms + s as i64 * 1000 + 500) as f32).collect()
    }
}

/// Arrival times of a rate, ascending, seconds from its begin.
#[derive(Debug, Clone)]
pub struct Arrivals<'a> {
    rates: &'a [f32],
    random: Random,
    at_s: f64,
    /// Expected arrivals until the next one.
    left: f64,
}

impl<'a> Arrivals<'a> {
    /// From the first second on.
    pub fn new(rates: &'a [f32], mut random: Random) -> Self {
        let left = random.exponential();
        Arrivals { rates, random, at_s: 0.0, left }
    }

    /// Appends the arrivals before `to_s`, a whole second, and gives how many.
    pub fn until(&mut self, to_s: usize, into: &mut Vec<f64>) -> u32 {
        let mut n = 0;
        while (self.at_s as usize) < to_s {
            let second = self.at_s as usize;
            let rate = f64::from(self.rates.get(second).copied().unwrap_or(0.0));
            let end = (second + 1) as f64;
            let expected = rate * (end - self.at_s);
            if expected > self.left {
                self.at_s += self.left / rate;
                self.left = self.random.exponential();
                if self.at_s < end {
                    into.push(self.at_s);
                    n += 1;
                    continue;
                }
                // Rounding put it on the border: it belongs to the next second.
                into.push(end.next_down());
                n += 1;
                self.at_s = end;
            } else {
                self.left -= expected;
                self.at_s = end;
            }
        }
        n
    }
}

/// Which forecast a policy is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feed {
    /// The ensemble of crate `forecaster`.
    Ensemble,
    /// Trend, seasonality and compensator of crate `forecaster`: a reconstruction of BARISTA's of 2019.
    Barista2019,
    /// The same without its compensator.
    Barista2019Trend,
    /// The true rate.
    Oracle,
    /// The last observed rate, for ever.
    LastValue,
}

/// Forecasts, one for each interval that begins during the simulation.
#[derive(Debug, Clone, Default)]
pub struct Forecasts {
    /// By interval.
    pub by_interval: Vec<WorkloadForecast>,
}

/// One simulated service's load.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Rate in each simulated second.
    pub rates: Vec<f32>,
    /// Forecasts by feed.
    pub forecasts: BTreeMap<Feed, Forecasts>,
    /// Seed of its arrivals.
    pub seed: u64,
    /// Mean absolute error and mean of the one-step forecast over the simulated time, by feed: `WAPE`.
    pub wape: BTreeMap<Feed, f64>,
}

/// What a workload is made from.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    /// Service.
    pub service: &'a str,
    /// Rate.
    pub path: Path<'a>,
    /// Begin of what is simulated.
    pub start_ms: EpochMs,
    /// Seconds that are simulated.
    pub seconds: usize,
    /// Days before that are learned from, as far as the trace reaches.
    pub train_days: f64,
    /// Step of the forecast, milliseconds.
    pub interval_ms: i64,
    /// Steps that a forecast reaches.
    pub reach: u32,
    /// Seed.
    pub seed: u64,
}

impl Workload {
    /// Draws the load and makes the forecasts of these feeds.
    pub fn new(source: &Source<'_>, feeds: &[Feed]) -> Self {
        let rates = source.path.per_second(source.start_ms, source.seconds);
        let observed = source.counts(&rates);
        let mut workload = Workload { rates, forecasts: BTreeMap::new(), seed: source.seed, wape: BTreeMap::new() };
        for &feed in feeds {
            let forecasts = match feed {
                Feed::Ensemble => source.learned(&observed, &ExpertKind::DEFAULT),
                Feed::Barista2019 => source.learned(&observed, &[ExpertKind::Barista2019]),
                Feed::Barista2019Trend => source.learned(&observed, &[ExpertKind::Barista2019Trend]),
                Feed::Oracle => source.oracle(),
                Feed::LastValue => source.last_value(&observed),
            };
            let interval_s = source.interval_ms as f64 / 1000.0;
            let pairs = || forecasts.by_interval.iter().zip(&observed);
            let error: f64 =
                pairs().map(|(f, n)| (f.steps.first().map_or(0.0, |s| s.mean_rps) - n / interval_s).abs()).sum();
            let total: f64 = pairs().map(|(_, n)| n / interval_s).sum();
            workload.wape.insert(feed, error / total.max(1e-9));
            workload.forecasts.insert(feed, forecasts);
        }
        workload
    }

    /// Its arrivals, from the beginning; always the same.
    pub fn arrivals(&self) -> Arrivals<'_> {
        Arrivals::new(&self.rates, Random::new(self.seed, "arrivals"))
    }
}

impl Source<'_> {
    /// Arrivals in each interval.
    fn counts(&self, rates: &[f32]) -> Vec<f64> {
        let step = (self.interval_ms / 1000).max(1) as usize;
        let mut arrivals = Arrivals::new(rates, Random::new(self.seed, "arrivals"));
        let mut sink = Vec::new();
        (0..rates.len().div_ceil(step))
            .map(|i| {
                sink.clear();
                f64::from(arrivals.until(((i + 1) * step).min(rates.len()), &mut sink))
            })
            .collect()
    }

    fn learned(&self, observed: &[f64], experts: &[ExpertKind]) -> Forecasts {
        let production = forecaster::Config { horizon_steps: self.reach, ..forecaster::Config::default() };
        let mut config = production.model(self.interval_ms.unsigned_abs());
        config.experts = experts.to_vec();
        let Ok(mut model) = Model::new(config) else { return Forecasts::default() };
        let available = ((self.start_ms - self.path.trace.start_ms) / self.interval_ms).max(0);
        let wanted = (self.train_days * 86_400_000.0 / self.interval_ms as f64) as i64;
        let mut random = Random::new(self.seed, "history");
        let interval_s = self.interval_ms as f64 / 1000.0;
        for i in (1..=available.min(wanted)).rev() {
            let begin = self.start_ms - i * self.interval_ms;
            let mean = self.path.rate_rps(begin + self.interval_ms / 2) * interval_s;
            // Counts of a minute are large enough for the normal approximation of Poisson.
            let count = (mean + mean.sqrt() * random.normal()).round().max(0.0);
            let _ = model.observe(begin, count);
        }
        let mut by_interval = Vec::with_capacity(observed.len());
        for (i, &count) in observed.iter().enumerate() {
            let origin_ms = self.start_ms + i as i64 * self.interval_ms;
            by_interval.push(self.record(origin_ms, model.forecast().as_ref(), observed, i));
            let _ = model.observe(origin_ms, count);
        }
        Forecasts { by_interval }
    }

    fn record(
        &self,
        origin_ms: EpochMs,
        forecast: Option<&forecaster::Forecast>,
        observed: &[f64],
        i: usize,
    ) -> WorkloadForecast {
        let interval_s = self.interval_ms as f64 / 1000.0;
        let last = i.checked_sub(1).map_or(0.0, |i| observed[i] / interval_s);
        let steps = forecast.map_or_else(Vec::new, |f| {
            f.steps
                .iter()
                .map(|s| ForecastStep {
                    start_ms: origin_ms + (i64::from(s.step) - 1) * self.interval_ms,
                    mean_rps: s.mean / interval_s,
                    quantiles_rps: s.quantiles.iter().map(|q| q / interval_s).collect(),
                })
                .collect()
        });
        let peaks = forecast.map_or_else(Vec::new, |f| {
            let rates = |q: &[f64]| q.iter().map(|q| q / interval_s).collect();
            let peak = |p: &forecaster::PeakForecast| ForecastPeak {
                steps: p.steps,
                quantiles_rps: rates(&p.quantiles),
                coverage: p.coverage.clone(),
            };
            f.peaks.iter().map(peak).collect()
        });
        WorkloadForecast { peaks, ..self.wrap(origin_ms, steps, last) }
    }

    fn wrap(&self, origin_ms: EpochMs, steps: Vec<ForecastStep>, last_observed_rps: f64) -> WorkloadForecast {
        WorkloadForecast {
            schema: Default::default(),
            service: self.service.to_owned(),
            origin_ms,
            interval_ms: self.interval_ms.unsigned_abs(),
            levels: LEVELS.to_vec(),
            steps,
            last_observed_rps,
            weights: BTreeMap::new(),
            error: ForecastError::default(),
            samples: 0,
            cold_start: false,
            ..WorkloadForecast::default()
        }
    }

    fn flat_step(&self, origin_ms: EpochMs, step: u32, rate_rps: f64) -> ForecastStep {
        ForecastStep {
            start_ms: origin_ms + i64::from(step) * self.interval_ms,
            mean_rps: rate_rps,
            quantiles_rps: vec![rate_rps; LEVELS.len()],
        }
    }

    fn intervals(&self) -> usize {
        (self.seconds * 1000).div_ceil(self.interval_ms.unsigned_abs().max(1) as usize)
    }

    fn oracle(&self) -> Forecasts {
        let by_interval = (0..self.intervals()).map(|i| {
            let origin_ms = self.start_ms + i as i64 * self.interval_ms;
            let mean = |step: u32| {
                let begin = origin_ms + i64::from(step) * self.interval_ms;
                // Simpson's rule over the interval.
                let at = |part: i64| self.path.rate_rps(begin + self.interval_ms * part / 2 - i64::from(part == 2));
                (at(0) + 4.0 * at(1) + at(2)) / 6.0
            };
            let steps = (0..self.reach).map(|step| self.flat_step(origin_ms, step, mean(step))).collect();
            self.wrap(origin_ms, steps, 0.0)
        });
        Forecasts { by_interval: by_interval.collect() }
    }

    fn last_value(&self, observed: &[f64]) -> Forecasts {
        let interval_s = self.interval_ms as f64 / 1000.0;
        let by_interval = (0..observed.len()).map(|i| {
            let origin_ms = self.start_ms + i as i64 * self.interval_ms;
            let rate = i.checked_sub(1).map_or_else(|| self.path.rate_rps(self.start_ms), |i| observed[i] / interval_s);
            let steps = (0..self.reach).map(|step| self.flat_step(origin_ms, step, rate)).collect();
            self.wrap(origin_ms, steps, rate)
        });
        Forecasts { by_interval: by_interval.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::bursty;

    fn source<'a>(trace: &'a Trace) -> Source<'a> {
        Source {
            service: "s",
            path: Path { trace, share: 0.5 },
            start_ms: 86_400_000,
            seconds: 3_600,
            train_days: 1.0,
            interval_ms: 60_000,
            reach: 5,
            seed: 9,
        }
    }

    #[test]
    fn arrivals_follow_the_rate_and_repeat() {
        let trace = bursty::generate(1, 0, 2, false);
        let workload = Workload::new(&source(&trace), &[]);
        let mut times = Vec::new();
        let n = workload.arrivals().until(3_600, &mut times);
        let expected: f64 = workload.rates.iter().map(|r| f64::from(*r)).sum();
        assert!((f64::from(n) - expected).abs() < 6.0 * expected.sqrt(), "{n} {expected}");
        assert!(times.iter().zip(times.iter().skip(1)).all(|(a, b)| a <= b));
        let mut pieces = Vec::new();
        let mut arrivals = workload.arrivals();
        for second in [1, 7, 8, 3_600] {
            arrivals.until(second, &mut pieces);
            assert!(pieces.last().is_none_or(|t| *t < second as f64));
        }
        assert_eq!(times, pieces, "however it is asked for");
    }

    #[test]
    fn coarse_traces_are_lines_and_fine_ones_steps() {
        let coarse = Trace { start_ms: 0, interval_ms: 1_800_000, counts: vec![1800.0, 3600.0, 3600.0] };
        let path = Path { trace: &coarse, share: 1.0 };
        assert_eq!([path.rate_rps(900_000), path.rate_rps(1_800_000), path.rate_rps(0)], [1.0, 1.5, 1.0]);
        let fine = Trace { start_ms: 0, interval_ms: 1_000, counts: vec![5.0, 9.0] };
        assert_eq!(Path { trace: &fine, share: 1.0 }.per_second(0, 2), [5.0, 9.0]);
    }

    #[test]
    fn every_feed_says_something_at_every_interval_and_the_oracle_is_right() {
        let trace = bursty::generate(1, 0, 2, false);
        let feeds = [Feed::Ensemble, Feed::Barista2019, Feed::Oracle, Feed::LastValue];
        let workload = Workload::new(&source(&trace), &feeds);
        for feed in feeds {
            let forecasts = &workload.forecasts[&feed].by_interval;
            assert_eq!(forecasts.len(), 60);
            assert!(forecasts.iter().all(|f| f.steps.len() == 5 && f.steps[0].start_ms == f.origin_ms), "{feed:?}");
        }
        assert!(workload.wape[&Feed::Oracle] < workload.wape[&Feed::LastValue]);
        assert!(workload.wape[&Feed::Ensemble] < 0.2, "{:?}", workload.wape);
    }
}
