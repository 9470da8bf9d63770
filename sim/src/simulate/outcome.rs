//! What came of a simulation: attainment, latency, cost, and the curves of the report.

use super::policy::Policy;
use super::world::World;

/// Latency bins: half a millisecond up to two seconds, then logarithmic.
const FINE: usize = 4_000;
const BINS: usize = 4_600;
/// Requests over which the recent 95th percentile is taken.
const RECENT: usize = 200;
/// After the end of a minute, all that can still be in time has been answered.
const SETTLE_S: usize = 10;

fn bin(latency_s: f64) -> usize {
    let fine = (latency_s * 2_000.0) as usize;
    if fine < FINE { fine } else { (FINE + ((latency_s / 2.0).ln() * 50.0) as usize).min(BINS - 1) }
}

fn bin_ms(bin: usize) -> f64 {
    if bin < FINE { (bin as f64 + 1.0) * 0.5 } else { 2_000.0 * ((bin - FINE + 1) as f64 / 50.0).exp() }
}

/// Counts while a simulation runs.
#[derive(Debug, Clone)]
pub struct Recorder {
    bins: Vec<u64>,
    /// By service, then minute: arrived, in time.
    minutes: Vec<Vec<(u32, u32)>>,
    slo_quantiles: Vec<f64>,
    shed: u64,
    lost: u64,
    broken: u64,
    recent: Vec<(Vec<f32>, usize)>,
    latest: Vec<u32>,
    curve: Vec<MinuteCurve>,
    n_flavors: usize,
    decided_ms: Vec<f32>,
    /// Starts after the first tick.
    pub cold_starts: u64,
    /// Orders, ends, and changes of what a node hosts.
    pub changes: u64,
    /// Price of all.
    pub cost_usd: f64,
    /// Work done.
    pub busy_s: f64,
    /// Worker time that was paid for.
    pub paid_worker_s: f64,
    /// Node time that was ready.
    pub ready_node_s: f64,
}

/// A minute of the report's curves.
#[derive(Debug, Clone, Default)]
pub struct MinuteCurve {
    /// Ready nodes by flavor.
    pub nodes: Vec<u16>,
    /// 95th percentile of the latencies of requests answered in it, in units of the SLO.
    pub p95_s: f32,
}

impl Recorder {
    /// Nothing yet.
    pub fn new(world: &World) -> Self {
        let n = world.services.len();
        Recorder {
            bins: vec![0; BINS],
            minutes: vec![vec![(0, 0); world.seconds.div_ceil(60) + 1]; n],
            slo_quantiles: world.services.iter().map(|s| s.slo_quantile).collect(),
            shed: 0,
            lost: 0,
            broken: 0,
            recent: vec![(Vec::with_capacity(RECENT), 0); n],
            latest: vec![0; 512],
            curve: Vec::new(),
            n_flavors: world.flavors.len(),
            decided_ms: Vec::new(),
            cold_starts: 0,
            changes: 0,
            cost_usd: 0.0,
            busy_s: 0.0,
            paid_worker_s: 0.0,
            ready_node_s: 0.0,
        }
    }

    /// Requests arrived in a second.
    pub fn arrived(&mut self, service: usize, second: usize, count: u32) {
        self.minutes[service][second / 60].0 += count;
    }

    /// A request was answered after `latency_s`. True if in time.
    pub fn served(&mut self, service: usize, arrived_s: f64, latency_s: f64, slo_s: f64) -> bool {
        self.bins[bin(latency_s)] += 1;
        self.latest[((latency_s / slo_s * 128.0) as usize).min(511)] += 1;
        let (recent, at) = &mut self.recent[service];
        if recent.len() < RECENT {
            recent.push(latency_s as f32);
        } else {
            recent[*at] = latency_s as f32;
            *at = (*at + 1) % RECENT;
        }
        let in_time = latency_s <= slo_s;
        self.minutes[service][(arrived_s / 60.0) as usize].1 += u32::from(in_time);
        in_time
    }

    /// A request was refused.
    pub fn shed(&mut self, _service: usize) {
        self.shed += 1;
    }

    /// Requests were in work on a node that broke.
    pub fn lost(&mut self, _service: usize, requests: usize) {
        self.lost += requests as u64;
    }

    /// A node broke.
    pub fn broke(&mut self) {
        self.broken += 1;
    }

    /// A decision took so long.
    pub fn decided(&mut self, ms: f64) {
        self.decided_ms.push(ms as f32);
    }

    /// 95th percentile of the newest latencies.
    pub fn recent_p95(&self, service: usize) -> f64 {
        let mut values = self.recent[service].0.clone();
        if values.is_empty() {
            return 0.0;
        }
        let rank = (values.len() * 95 / 100).min(values.len() - 1);
        let (_, value, _) = values.select_nth_unstable_by(rank, f32::total_cmp);
        f64::from(*value)
    }

    /// Minutes whose requests have all been answered, refused or are late by now: arrived, in time.
    pub fn settled(&self, service: usize, second: usize) -> &[(u32, u32)] {
        &self.minutes[service][..second.saturating_sub(SETTLE_S) / 60]
    }

    /// A minute is over.
    pub fn minute(&mut self, ready: impl Iterator<Item = usize>) {
        let mut nodes = vec![0; self.n_flavors];
        ready.for_each(|f| nodes[f] += 1);
        let total: u32 = self.latest.iter().sum();
        let mut seen = 0;
        let p95 = self.latest.iter().position(|n| {
            seen += n;
            f64::from(seen) >= 0.95 * f64::from(total)
        });
        // In units of the SLO, so that services of different SLOs share a curve.
        let p95_s = if total == 0 { 0.0 } else { p95.unwrap_or(0) as f32 / 128.0 };
        self.latest.iter_mut().for_each(|n| *n = 0);
        self.curve.push(MinuteCurve { nodes, p95_s });
    }

    /// Requests answered by latency, of those in time, refused, and lost.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (Vec<u64>, u64, u64, u64) {
        let in_time = self.minutes.iter().flatten().map(|m| u64::from(m.1)).sum();
        (self.bins.clone(), in_time, self.shed, self.lost)
    }

    /// The result.
    pub fn finish(self, policy: &dyn Policy, left_over: u64) -> Outcome {
        let all = || self.minutes.iter().flatten();
        let requests: u64 = all().map(|m| u64::from(m.0)).sum();
        let in_time: u64 = all().map(|m| u64::from(m.1)).sum();
        let with_load = self.minutes.iter().zip(&self.slo_quantiles);
        let (mut minutes, mut good) = (0u64, 0u64);
        for (of_service, quantile) in with_load {
            for (arrived, ok) in of_service.iter().filter(|m| m.0 > 0) {
                minutes += 1;
                good += u64::from(f64::from(*ok) >= quantile * f64::from(*arrived));
            }
        }
        let served: u64 = self.bins.iter().sum();
        let quantile_ms = |q: f64| {
            let mut seen = 0u64;
            let at = self.bins.iter().position(|n| {
                seen += n;
                seen as f64 >= q * served as f64
            });
            at.map_or(0.0, bin_ms)
        };
        let mut times = self.decided_ms.clone();
        times.sort_by(f32::total_cmp);
        let p99 = times.get((times.len() * 99 / 100).min(times.len().saturating_sub(1))).copied().unwrap_or(0.0);
        Outcome {
            policy: policy.name(),
            cost_usd: self.cost_usd,
            attainment: in_time as f64 / requests.max(1) as f64,
            minutes_ok: good as f64 / minutes.max(1) as f64,
            p50_ms: quantile_ms(0.50),
            p95_ms: quantile_ms(0.95),
            p99_ms: quantile_ms(0.99),
            requests,
            shed: self.shed,
            lost: self.lost,
            served,
            left_over,
            broken_nodes: self.broken,
            cold_starts: self.cold_starts,
            plan_changes: self.changes,
            planner_p99_ms: f64::from(p99),
            wasted: 1.0 - (self.busy_s / self.paid_worker_s.max(1e-9)).min(1.0),
            load: (0..self.curve.len())
                .map(|m| self.minutes.iter().map(|s| s[m].0).sum::<u32>() as f32 / 60.0)
                .collect(),
            curve: self.curve,
        }
    }
}

/// What came of a policy.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Its name.
    pub policy: String,
    /// Price of all.
    pub cost_usd: f64,
    /// Share of all requests that were answered in time.
    pub attainment: f64,
    /// Share of minutes (of each service) in which the SLO's quantile met it; shed, lost and left over are misses.
    pub minutes_ok: f64,
    /// Median latency of the answered.
    pub p50_ms: f64,
    /// Its 95th percentile.
    pub p95_ms: f64,
    /// Its 99th percentile.
    pub p99_ms: f64,
    /// Requests that arrived.
    pub requests: u64,
    /// Answered, in time or late.
    pub served: u64,
    /// Refused at the door or given up in the queue.
    pub shed: u64,
    /// In work on nodes that broke.
    pub lost: u64,
    /// Neither answered nor refused when time was up.
    pub left_over: u64,
    /// Nodes that broke.
    pub broken_nodes: u64,
    /// Orders after the beginning.
    pub cold_starts: u64,
    /// Orders, ends and changes.
    pub plan_changes: u64,
    /// 99th percentile of the time of a decision.
    pub planner_p99_ms: f64,
    /// Share of paid worker time without work.
    pub wasted: f64,
    /// Arrivals by minute, requests per second.
    pub load: Vec<f32>,
    /// By minute.
    pub curve: Vec<MinuteCurve>,
}
