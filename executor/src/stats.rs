//! Counters and latencies of one service: since the last heartbeat, and over the last seconds for scaling. Pure.
//!
//! Memory is bounded: the windows keep at most [`WINDOW_SAMPLES`] samples each, the oldest go first.

use crate::queue::ServiceTime;
use hdrhistogram::Histogram;
use schemas::EpochMs;
use schemas::status::LatencyMs;
use std::collections::VecDeque;

/// Samples that a window keeps.
const WINDOW_SAMPLES: usize = 4096;
/// Window for load, latency and utilisation, milliseconds.
pub const LOAD_WINDOW_MS: i64 = 5_000;
/// Window for service times, milliseconds.
const SERVICE_WINDOW_MS: i64 = 60_000;
/// Answers in the window below which its p95 says nothing.
const ENOUGH_ANSWERS: usize = 20;
/// Batches in the window below which the plan's figures are believed rather than the measured ones.
const ENOUGH_BATCHES: usize = 20;
/// Longest latency that is told apart, microseconds: one hour.
const MAX_LATENCY_US: u64 = 3_600_000_000;

/// Samples with their times, the oldest first.
#[derive(Debug)]
struct Window<T>(VecDeque<(EpochMs, T)>);

impl<T: Copy> Window<T> {
    fn push(&mut self, now_ms: EpochMs, sample: T) {
        if self.0.len() == WINDOW_SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back((now_ms, sample));
    }

    fn since(&self, from_ms: EpochMs) -> impl Iterator<Item = T> + '_ {
        self.0.iter().rev().take_while(move |(at, _)| *at > from_ms).map(|(_, sample)| *sample)
    }

    /// Time that the samples of the last `window_ms` cover; shorter when older ones had to go.
    fn covered_ms(&self, now_ms: EpochMs, window_ms: i64) -> f64 {
        let full = self.0.len() == WINDOW_SAMPLES;
        let oldest = self.0.front().filter(|_| full).map_or(i64::MIN, |(at, _)| *at);
        (now_ms - oldest.max(now_ms - window_ms)).max(1) as f64
    }
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Window(VecDeque::new())
    }
}

/// One finished run of a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Run {
    /// Rows in it.
    pub rows: u32,
    /// Time of the inference, milliseconds.
    pub infer_ms: f64,
    /// Time that the worker was occupied, writing the results included, milliseconds.
    pub busy_ms: f64,
    /// Background work: tells how long the model takes, and is no load.
    pub background: bool,
}

/// What happened since the last heartbeat.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests taken from Kafka.
    pub arrivals: u64,
    /// Requests taken at the node's door.
    pub direct_arrivals: u64,
    /// Results written.
    pub answered: u64,
    /// Of those, before their deadline.
    pub in_slo: u64,
    /// Rejections written.
    pub rejected: u64,
}

/// A closed period.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Period {
    /// Counts.
    pub counters: Counters,
    /// Quantiles of the answers' latency; absent without answers.
    pub latency: Option<LatencyMs>,
    /// Length, milliseconds.
    pub period_ms: u64,
}

/// What scaling looks at.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Recent {
    /// 95th percentile of latency; absent with too few answers.
    pub p95_ms: Option<f64>,
    /// Requests a second.
    pub requests_per_s: f64,
    /// Rows a second.
    pub rows_per_s: f64,
    /// Time that workers were occupied, as a multiple of one worker's time.
    pub busy_workers: f64,
}

/// Counters and windows of one service.
#[derive(Debug)]
pub struct Stats {
    counters: Counters,
    latencies: Histogram<u64>,
    period_start_ms: EpochMs,
    answers: Window<f64>,
    arrivals: Window<u32>,
    runs: Window<Run>,
}

impl Stats {
    /// Empty, from now on.
    pub fn new(now_ms: EpochMs) -> Self {
        Stats {
            counters: Counters::default(),
            latencies: empty_histogram(),
            period_start_ms: now_ms,
            answers: Window::default(),
            arrivals: Window::default(),
            runs: Window::default(),
        }
    }

    /// A request was taken from Kafka.
    pub fn arrived(&mut self) {
        self.counters.arrivals += 1;
    }

    /// A request came through the node's door.
    pub fn arrived_directly(&mut self) {
        self.counters.direct_arrivals += 1;
    }

    /// A request was admitted or refused for load, after it was found sound: it is load.
    pub fn offered(&mut self, now_ms: EpochMs, rows: u32) {
        self.arrivals.push(now_ms, rows);
    }

    /// A result of background work was written. It has no latency to keep: nobody waits for it.
    pub fn answered_batch(&mut self, in_slo: bool) {
        self.counters.answered += 1;
        self.counters.in_slo += u64::from(in_slo);
    }

    /// A result was written.
    pub fn answered(&mut self, now_ms: EpochMs, latency_ms: f64, in_slo: bool) {
        self.counters.answered += 1;
        self.counters.in_slo += u64::from(in_slo);
        self.latencies.saturating_record(((latency_ms.max(0.0) * 1e3) as u64).min(MAX_LATENCY_US));
        self.answers.push(now_ms, latency_ms);
    }

    /// A rejection was written.
    pub fn rejected(&mut self) {
        self.counters.rejected += 1;
    }

    /// A worker finished a batch.
    pub fn ran(&mut self, now_ms: EpochMs, run: Run) {
        self.runs.push(now_ms, run);
    }

    /// Closes the period and begins the next one.
    pub fn close_period(&mut self, now_ms: EpochMs) -> Period {
        let quantile = |q: f64| self.latencies.value_at_quantile(q) as f64 / 1e3;
        let latency = (!self.latencies.is_empty()).then(|| LatencyMs {
            p50_ms: quantile(0.5),
            p95_ms: quantile(0.95),
            p99_ms: quantile(0.99),
        });
        let period_ms = u64::try_from(now_ms - self.period_start_ms).unwrap_or(0);
        let period = Period { counters: self.counters, latency, period_ms };
        self.counters = Counters::default();
        self.latencies.reset();
        self.period_start_ms = now_ms;
        period
    }

    /// The last [`LOAD_WINDOW_MS`].
    pub fn recent(&self, now_ms: EpochMs) -> Recent {
        let from_ms = now_ms - LOAD_WINDOW_MS;
        let mut answers = Vec::with_capacity(self.answers.0.len());
        answers.extend(self.answers.since(from_ms));
        let seconds = self.arrivals.covered_ms(now_ms, LOAD_WINDOW_MS) / 1e3;
        let rows: f64 = self.arrivals.since(from_ms).map(f64::from).sum();
        let busy_ms: f64 = self.runs.since(from_ms).filter(|r| !r.background).map(|r| r.busy_ms).sum();
        Recent {
            p95_ms: (answers.len() >= ENOUGH_ANSWERS).then(|| quantile(answers, 0.95)),
            requests_per_s: self.arrivals.since(from_ms).count() as f64 / seconds,
            rows_per_s: rows / seconds,
            busy_workers: busy_ms / self.runs.covered_ms(now_ms, LOAD_WINDOW_MS),
        }
    }

    /// Service times as measured in the last minute, or as planned while there is too little to go by.
    ///
    /// The time of a row is taken from batches at least half full, because that is how a queue is worked off; with
    /// batches of one row every batch is full.
    pub fn service_time(&self, now_ms: EpochMs, planned: ServiceTime, max_batch: u32) -> ServiceTime {
        let (mut times, mut full, mut full_ms, mut full_rows) = (Vec::with_capacity(self.runs.0.len()), 0, 0.0, 0.0);
        for run in self.runs.since(now_ms - SERVICE_WINDOW_MS) {
            times.push(run.infer_ms);
            if 2 * run.rows >= max_batch {
                full += 1;
                full_ms += run.infer_ms;
                full_rows += f64::from(run.rows);
            }
        }
        let per_row_ms = if full >= ENOUGH_BATCHES { full_ms / full_rows } else { planned.per_row_ms };
        let batch_p95_ms = if times.len() >= ENOUGH_BATCHES { quantile(times, 0.95) } else { planned.batch_p95_ms };
        ServiceTime { per_row_ms, batch_p95_ms }
    }
}

impl Stats {
    /// Inference times of the batches of exactly `rows` rows in the last minute, milliseconds.
    pub fn batch_times(&self, now_ms: EpochMs, rows: u32) -> Vec<f64> {
        let runs = self.runs.since(now_ms - SERVICE_WINDOW_MS);
        runs.filter(|r| r.rows == rows).map(|r| r.infer_ms).collect()
    }
}

fn empty_histogram() -> Histogram<u64> {
    // Three significant digits between 1 µs and the longest latency: bounds that the constructor always accepts.
    match Histogram::new_with_bounds(1, MAX_LATENCY_US, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constant bounds: {error:?}"),
    }
}

/// The `q`-quantile of samples, at least one, by the nearest rank.
pub(crate) fn quantile(mut samples: Vec<f64>, q: f64) -> f64 {
    let rank = ((q * samples.len() as f64).ceil() as usize).clamp(1, samples.len().max(1)) - 1;
    if samples.is_empty() {
        return f64::NAN;
    }
    *samples.select_nth_unstable_by(rank, f64::total_cmp).1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_period_counts_and_starts_again() {
        let mut stats = Stats::new(0);
        for i in 1..=100 {
            stats.arrived();
            stats.answered(i, i as f64, i <= 90);
        }
        stats.arrived();
        stats.arrived_directly();
        stats.rejected();
        let period = stats.close_period(1000);
        assert_eq!(
            period.counters,
            Counters { arrivals: 101, direct_arrivals: 1, answered: 100, in_slo: 90, rejected: 1 }
        );
        assert_eq!(period.period_ms, 1000);
        let latency = period.latency.unwrap();
        for (value, expected) in [(latency.p50_ms, 50.0), (latency.p95_ms, 95.0), (latency.p99_ms, 99.0)] {
            assert!((value - expected).abs() < 0.1, "{latency:?}");
        }
        assert_eq!(stats.close_period(1500), Period { counters: Counters::default(), latency: None, period_ms: 500 });
    }

    #[test]
    fn the_window_forgets() {
        let mut stats = Stats::new(0);
        for i in 0..100 {
            stats.offered(i * 10, 2);
            stats.answered(i * 10, 50.0, true);
            stats.ran(i * 10, Run { rows: 2, infer_ms: 4.0, busy_ms: 5.0, background: false });
        }
        let recent = stats.recent(1000);
        assert_eq!(recent.p95_ms, Some(50.0));
        assert_eq!((recent.requests_per_s, recent.rows_per_s), (20.0, 40.0));
        assert_eq!(recent.busy_workers, 0.1);
        stats.ran(990, Run { rows: 2, infer_ms: 900.0, busy_ms: 900.0, background: true });
        assert_eq!(stats.recent(1000).busy_workers, 0.1, "background work is no load");
        assert_eq!(
            stats.recent(7000),
            Recent { p95_ms: None, requests_per_s: 0.0, rows_per_s: 0.0, busy_workers: 0.0 }
        );
    }

    #[test]
    fn a_full_window_still_tells_the_rate() {
        let mut stats = Stats::new(0);
        for i in 0..20_000 {
            stats.offered(i / 10, 1);
        }
        let rate = stats.recent(2000).requests_per_s;
        assert!((9_000.0..11_000.0).contains(&rate), "{rate}");
    }

    #[test]
    fn service_times_are_planned_until_measured() {
        let planned = ServiceTime { per_row_ms: 1.0, batch_p95_ms: 4.0 };
        let mut stats = Stats::new(0);
        assert_eq!(stats.service_time(0, planned, 4), planned);
        for i in 0..40 {
            stats.ran(i, Run { rows: 1, infer_ms: 3.0, busy_ms: 3.0, background: false });
        }
        let single = stats.service_time(40, planned, 4);
        assert_eq!(single, ServiceTime { per_row_ms: 1.0, batch_p95_ms: 3.0 }, "single rows do not tell a full batch");
        for i in 40..80 {
            stats.ran(i, Run { rows: 4, infer_ms: 8.0, busy_ms: 8.0, background: false });
        }
        assert_eq!(stats.service_time(80, planned, 4), ServiceTime { per_row_ms: 2.0, batch_p95_ms: 8.0 });
    }

    proptest! {
        #[test]
        fn the_quantile_is_a_sample_with_the_right_rank(samples in proptest::collection::vec(0f64..1e3, 1..200), q in 0.01f64..1.0) {
            let value = quantile(samples.clone(), q);
            let at_most = samples.iter().filter(|s| **s <= value).count() as f64;
            prop_assert!(samples.contains(&value));
            prop_assert!(at_most >= q * samples.len() as f64);
        }
    }
}
