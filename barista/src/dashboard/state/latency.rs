//! Latency quantiles and outcomes of one service, merged over nodes and heartbeats.
//!
//! A heartbeat gives three quantiles of a short period of one node. Neither their mean nor their maximum is the
//! quantile of all requests together, so each heartbeat is taken as a distribution, linear between
//! `0, p50, p95, p99`, weighted by its answers, and the quantiles of the mixture are read off. The result always
//! lies between the smallest and the largest of the parts. Attainment needs no such estimate: it is counted.

use schemas::EpochMs;
use schemas::status::{LatencyMs, ServiceStatus};
use serde::Serialize;
use std::collections::BTreeMap;

/// Width of a bucket.
pub(crate) const BUCKET_MS: i64 = 5_000;
/// Headline latencies cover this long.
const RECENT_MS: i64 = 60_000;
/// Attainment covers this long.
pub(crate) const ATTAINMENT_MS: i64 = 300_000;
/// Most buckets kept: the chart's window and some slack; beyond it the oldest go.
const MAX_BUCKETS: usize = (super::WINDOW_MS / BUCKET_MS) as usize + 12;
/// Most heartbeats of a bucket that enter its quantiles; more are counted, but their latencies are left out.
const MAX_PARTS: usize = 1024;

/// Outcomes counted over some time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Outcomes {
    /// Requests taken.
    pub arrivals: u64,
    /// Results written.
    pub answered: u64,
    /// Of those, in time.
    pub in_slo: u64,
    /// Rejected, for any reason.
    pub rejected: u64,
}

impl Outcomes {
    /// Share of finished requests that were answered in time; rejected and late ones are misses. `None` without any.
    pub fn attainment(&self) -> Option<f64> {
        let finished = self.answered.saturating_add(self.rejected);
        (finished > 0).then(|| self.in_slo as f64 / finished as f64)
    }

    pub(crate) fn add(&mut self, other: &Outcomes) {
        self.arrivals = self.arrivals.saturating_add(other.arrivals);
        self.answered = self.answered.saturating_add(other.answered);
        self.in_slo = self.in_slo.saturating_add(other.in_slo);
        self.rejected = self.rejected.saturating_add(other.rejected);
    }
}

impl From<&ServiceStatus> for Outcomes {
    fn from(status: &ServiceStatus) -> Self {
        Outcomes {
            arrivals: status.arrivals.saturating_add(status.direct_arrivals),
            answered: status.answered,
            in_slo: status.in_slo.min(status.answered),
            rejected: status.rejected,
        }
    }
}

/// Quantiles of one heartbeat and how many answers they stand for.
#[derive(Debug, Clone, Copy)]
struct Part {
    weight: f64,
    quantiles: LatencyMs,
}

#[derive(Debug, Default)]
struct Bucket {
    outcomes: Outcomes,
    parts: Vec<Part>,
    merged: Option<LatencyMs>,
    queue_depth: u64,
    queue_age_ms: f64,
}

impl Bucket {
    /// One part in place of many; a heartbeat that comes late still merges with it.
    fn condense(&mut self) {
        if let (Some(quantiles), true) = (self.merged, self.parts.len() > 1) {
            let weight = self.parts.iter().map(|p| p.weight).sum();
            self.parts = vec![Part { weight, quantiles }];
        }
    }
}

/// The last minutes of one service. Bounded to [`MAX_BUCKETS`] buckets of [`MAX_PARTS`] parts.
#[derive(Debug, Default)]
pub(crate) struct LatencySeries {
    buckets: BTreeMap<EpochMs, Bucket>,
    first_ms: Option<EpochMs>,
}

/// One point of the latency chart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LatencyPoint {
    /// Start of the five seconds.
    pub start_ms: EpochMs,
    /// Median, 95th and 99th percentile in milliseconds; absent when nothing was answered.
    pub latency: Option<LatencyMs>,
    /// Most requests waiting at once, all nodes.
    pub queue_depth: u64,
    /// Greatest age of a waiting request.
    pub queue_age_ms: f64,
}

impl LatencySeries {
    /// Takes what one node says; `queue_depth` is the sum over all nodes.
    pub(crate) fn record(&mut self, at_ms: EpochMs, status: &ServiceStatus, queue_depth: u64) {
        self.first_ms = Some(self.first_ms.map_or(at_ms, |first| first.min(at_ms)));
        let bucket = self.buckets.entry(at_ms.div_euclid(BUCKET_MS) * BUCKET_MS).or_default();
        bucket.outcomes.add(&Outcomes::from(status));
        bucket.queue_depth = bucket.queue_depth.max(queue_depth);
        bucket.queue_age_ms = bucket.queue_age_ms.max(status.queue_age_ms);
        if let (Some(latency), true) = (status.latency, bucket.parts.len() < MAX_PARTS) {
            bucket.parts.push(Part { weight: status.answered.max(1) as f64, quantiles: ordered(latency) });
            bucket.merged = merge(&bucket.parts);
        }
        if self.buckets.len() > MAX_BUCKETS {
            self.buckets.pop_first();
        }
    }

    /// Drops buckets and parts that no view at or after `now_ms` needs.
    pub(crate) fn prune(&mut self, now_ms: EpochMs) {
        self.buckets = self.buckets.split_off(&(now_ms - super::WINDOW_MS - BUCKET_MS));
        for (_, bucket) in self.buckets.range_mut(..now_ms - RECENT_MS - BUCKET_MS) {
            bucket.condense();
        }
    }

    /// True when nothing was reported.
    pub(crate) fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    pub(crate) fn points(&self) -> Vec<LatencyPoint> {
        let point = |(start, bucket): (&EpochMs, &Bucket)| LatencyPoint {
            start_ms: *start,
            latency: bucket.merged.map(rounded),
            queue_depth: bucket.queue_depth,
            queue_age_ms: super::round3(bucket.queue_age_ms),
        };
        self.buckets.iter().map(point).collect()
    }

    /// Quantiles over the last minute.
    pub(crate) fn recent(&self, now_ms: EpochMs) -> Option<LatencyMs> {
        let parts: Vec<Part> =
            self.buckets.range(now_ms - RECENT_MS..).flat_map(|(_, b)| b.parts.iter().copied()).collect();
        merge(&parts).map(rounded)
    }

    /// Outcomes of the buckets that began in the last `span_ms`.
    pub(crate) fn outcomes(&self, span_ms: i64, now_ms: EpochMs) -> Outcomes {
        let mut sum = Outcomes::default();
        self.buckets.range(now_ms - span_ms..).for_each(|(_, b)| sum.add(&b.outcomes));
        sum
    }

    /// Outcomes over the last whole buckets (half a minute) and their length in seconds; `None` before the first.
    pub(crate) fn rates(&self, now_ms: EpochMs) -> Option<(Outcomes, f64)> {
        let end = now_ms.div_euclid(BUCKET_MS) * BUCKET_MS;
        let first = self.first_ms?.div_euclid(BUCKET_MS) * BUCKET_MS;
        let begin = (end - 6 * BUCKET_MS).max(first);
        if begin >= end {
            return None;
        }
        let mut sum = Outcomes::default();
        self.buckets.range(begin..end).for_each(|(_, b)| sum.add(&b.outcomes));
        Some((sum, (end - begin) as f64 / 1000.0))
    }
}

/// Quantiles from a message may be anything; the mixture needs them ascending from zero.
fn ordered(latency: LatencyMs) -> LatencyMs {
    let p50_ms = latency.p50_ms.max(0.0);
    let p95_ms = latency.p95_ms.max(p50_ms);
    LatencyMs { p50_ms, p95_ms, p99_ms: latency.p99_ms.max(p95_ms) }
}

fn rounded(latency: LatencyMs) -> LatencyMs {
    LatencyMs {
        p50_ms: super::round3(latency.p50_ms),
        p95_ms: super::round3(latency.p95_ms),
        p99_ms: super::round3(latency.p99_ms),
    }
}

fn merge(parts: &[Part]) -> Option<LatencyMs> {
    match parts {
        [] => None,
        [one] => Some(one.quantiles),
        _ => Some(LatencyMs {
            p50_ms: mixture_quantile(parts, 0.50),
            p95_ms: mixture_quantile(parts, 0.95),
            p99_ms: mixture_quantile(parts, 0.99),
        }),
    }
}

/// The smallest latency at which the weighted mean of the parts' distribution functions reaches `level`.
fn mixture_quantile(parts: &[Part], level: f64) -> f64 {
    /// Halvings of the interval: below a microsecond for anything under an hour.
    const STEPS: usize = 44;
    let at = |part: &Part| match level {
        l if l <= 0.50 => part.quantiles.p50_ms,
        l if l <= 0.95 => part.quantiles.p95_ms,
        _ => part.quantiles.p99_ms,
    };
    let total: f64 = parts.iter().map(|p| p.weight).sum();
    let mut low = parts.iter().map(at).fold(f64::INFINITY, f64::min);
    let mut high = parts.iter().map(at).fold(0.0, f64::max);
    for _ in 0..STEPS {
        let middle = 0.5 * (low + high);
        let below: f64 = parts.iter().map(|p| p.weight * share_below(&p.quantiles, middle)).sum();
        if below >= level * total {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// Share of requests at or below `ms`: linear between the known quantiles, the last hundredth over as far again as
/// from p95 to p99.
fn share_below(quantiles: &LatencyMs, ms: f64) -> f64 {
    let LatencyMs { p50_ms, p95_ms, p99_ms } = *quantiles;
    let knots = [(0.0, 0.0), (p50_ms, 0.50), (p95_ms, 0.95), (p99_ms, 0.99), (2.0 * p99_ms - p95_ms, 1.0)];
    let mut share = 0.0;
    for pair in knots.windows(2) {
        let ((x0, y0), (x1, y1)) = (pair[0], pair[1]);
        if ms >= x1 {
            share = y1;
        } else if ms > x0 {
            share = y0 + (y1 - y0) * (ms - x0) / (x1 - x0);
        }
    }
    share
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn status(answered: u64, in_slo: u64, rejected: u64, latency: Option<LatencyMs>) -> ServiceStatus {
        ServiceStatus {
            service: "vision".to_owned(),
            period_ms: 1000,
            queue_depth: 0,
            queue_age_ms: 0.0,
            arrivals: answered + rejected,
            direct_arrivals: 0,
            answered,
            in_slo,
            rejected,
            latency,
            slo_ms: 200.0,
        }
    }

    fn quantiles(p50_ms: f64, p95_ms: f64, p99_ms: f64) -> LatencyMs {
        LatencyMs { p50_ms, p95_ms, p99_ms }
    }

    #[test]
    fn one_heartbeat_is_shown_as_it_is() {
        let mut series = LatencySeries::default();
        series.record(7_000, &status(10, 10, 0, Some(quantiles(20.0, 60.0, 90.0))), 3);
        let points = series.points();
        assert_eq!(points.len(), 1);
        assert_eq!((points[0].start_ms, points[0].queue_depth), (5_000, 3));
        assert_eq!(points[0].latency, Some(quantiles(20.0, 60.0, 90.0)));
    }

    #[test]
    fn a_busy_node_weighs_more_than_an_idle_one() {
        let (fast, slow) = (quantiles(10.0, 20.0, 30.0), quantiles(100.0, 200.0, 300.0));
        let merged = |fast_n: f64, slow_n: f64| {
            merge(&[Part { weight: fast_n, quantiles: fast }, Part { weight: slow_n, quantiles: slow }])
                .expect("two parts")
        };
        assert!(merged(990.0, 10.0).p95_ms < 30.0);
        assert!(merged(10.0, 990.0).p95_ms > 190.0);
        // Half of the requests are slow: the 95th percentile of all is the 90th of the slow ones.
        let half = merged(500.0, 500.0);
        assert!((half.p95_ms - 188.9).abs() < 0.1, "{half:?}");
    }

    #[test]
    fn rejected_and_late_requests_are_misses() {
        let mut series = LatencySeries::default();
        series.record(1_000, &status(90, 80, 10, None), 0);
        assert_eq!(series.outcomes(ATTAINMENT_MS, 2_000).attainment(), Some(0.8));
        assert_eq!(Outcomes::default().attainment(), None);
    }

    #[test]
    fn rates_cover_whole_buckets_only() {
        let mut series = LatencySeries::default();
        for s in 0..20 {
            series.record(s * 1000, &status(30, 30, 0, None), 0);
        }
        let (outcomes, seconds) = series.rates(17_500).expect("three whole buckets");
        assert_eq!((outcomes.answered, seconds), (450, 15.0));
        assert_eq!(series.rates(1_000), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut series = LatencySeries::default();
        let one = status(1, 1, 0, Some(quantiles(1.0, 2.0, 3.0)));
        for i in 0..1000 {
            series.record(i * BUCKET_MS, &one, 0);
        }
        assert_eq!(series.buckets.len(), MAX_BUCKETS);
        for _ in 0..MAX_PARTS + 10 {
            series.record(1000 * BUCKET_MS, &one, 0);
        }
        assert_eq!(series.buckets.last_key_value().map(|(_, b)| b.parts.len()), Some(MAX_PARTS));
        series.prune(1020 * BUCKET_MS);
        let parts = series.buckets.last_key_value().map(|(_, b)| (b.parts.len(), b.parts[0].weight));
        assert_eq!(parts, Some((1, MAX_PARTS as f64)), "old heartbeats are condensed");
        series.prune(10_000 * BUCKET_MS);
        assert!(series.buckets.is_empty());
    }

    proptest! {
        #[test]
        fn a_merged_quantile_lies_between_those_of_its_parts(
            parts in prop::collection::vec((1.0..500.0_f64, 0.0..50.0_f64, 0.0..100.0_f64, 0.0..200.0_f64), 1..20)
        ) {
            let parts: Vec<Part> = parts
                .into_iter()
                .map(|(weight, a, b, c)| Part { weight, quantiles: quantiles(a, a + b, a + b + c) })
                .collect();
            let merged = merge(&parts).expect("parts");
            for of in [|q: &LatencyMs| q.p50_ms, |q: &LatencyMs| q.p95_ms, |q: &LatencyMs| q.p99_ms] {
                let value = of(&merged);
                let low = parts.iter().map(|p| of(&p.quantiles)).fold(f64::INFINITY, f64::min);
                let high = parts.iter().map(|p| of(&p.quantiles)).fold(0.0, f64::max);
                prop_assert!(value >= low - 1e-6 && value <= high + 1e-6, "{value} not in {low}..{high}");
            }
            prop_assert!(merged.p50_ms <= merged.p95_ms + 1e-6 && merged.p95_ms <= merged.p99_ms + 1e-6);
        }
    }
}
