//! The snapshot: all that one look at the page needs, as plain values.

use super::latency::{ATTAINMENT_MS, Outcomes};
use super::{
    CostView, LatencyPoint, LoadView, NodeCounts, NodeView, PlanEntry, RateView, Service, ServiceDecision, State,
};
use super::{fleet, load};
use schemas::EpochMs;
use schemas::allocation::PlanMode;
use schemas::status::{LatencyMs, ScalingEvent};
use schemas::topics::{
    ALLOCATION_CONTROL, EXECUTOR_STATUS, TELEMETRY_REJECTED, TELEMETRY_VEHICLE, WORKLOAD_FORECAST, WORKLOAD_OBSERVED,
};
use serde::Serialize;

/// The topics read, in the order of the flow, with the word that the page uses for each.
pub(super) const FEEDS: [(&str, &str); 6] = [
    ("Telemetry", TELEMETRY_VEHICLE),
    ("Rejected", TELEMETRY_REJECTED),
    ("Load", WORKLOAD_OBSERVED),
    ("Forecast", WORKLOAD_FORECAST),
    ("Plan", ALLOCATION_CONTROL),
    ("Nodes", EXECUTOR_STATUS),
];
/// The newest observed interval counts as the present load up to this age.
const CURRENT_MS: i64 = 20_000;

/// Everything the page shows at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Snapshot {
    /// The moment.
    pub now_ms: EpochMs,
    /// When the dashboard began.
    pub started_at_ms: EpochMs,
    /// Line at the top of the page.
    pub banner: Option<String>,
    /// Mode of the current plan; absent before the first.
    pub mode: Option<PlanMode>,
    /// Name of the current plan.
    pub plan_id: Option<String>,
    /// Checks of this process; filled by the service, which knows them.
    pub health: Vec<HealthView>,
    /// The topics read, in the order of the flow.
    pub feeds: Vec<FeedView>,
    /// Telemetry accepted.
    pub telemetry: RateView,
    /// Telemetry rejected.
    pub rejected: RateView,
    /// Requests of all services.
    pub requests: RequestsView,
    /// Nodes by condition.
    pub node_counts: NodeCounts,
    /// Cost so far; absent before the first plan.
    pub cost: Option<CostView>,
    /// Services by name.
    pub services: Vec<ServiceView>,
    /// Nodes by name.
    pub nodes: Vec<NodeView>,
    /// Plans, newest first.
    pub plans: Vec<PlanEntry>,
    /// Scaling inside nodes, newest first.
    pub events: Vec<ScalingEvent>,
    /// Records that could not be read since the dashboard began.
    pub unreadable: u64,
}

/// A check of this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HealthView {
    /// What is checked.
    pub name: String,
    /// True when it works.
    pub ready: bool,
    /// Why, for a person.
    pub detail: String,
}

/// How fresh a topic is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FeedView {
    /// Word for it.
    pub name: &'static str,
    /// Topic, without prefix.
    pub topic: &'static str,
    /// Records read since the dashboard began.
    pub records: u64,
    /// Timestamp of the newest.
    pub last_ms: Option<EpochMs>,
}

/// Requests of all services together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RequestsView {
    /// Mean rate in the newest interval, requests per second; absent when nothing recent is known.
    pub rps: Option<f64>,
    /// `[start, requests per second]`, oldest first, without simulated history.
    pub series: Vec<(EpochMs, f64)>,
    /// Share answered in time over the last five minutes; absent without any finished.
    pub attainment: Option<f64>,
    /// What that is counted from.
    pub outcomes: Outcomes,
    /// Since the dashboard began, and what the topic still held then.
    pub totals: Outcomes,
    /// The service whose p95 of the last minute is nearest to or farthest beyond its objective.
    pub worst: Option<WorstLatency>,
}

/// The service in most need of attention.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorstLatency {
    /// Service.
    pub service: String,
    /// Its 95th percentile over the last minute.
    pub p95_ms: f64,
    /// Its objective.
    pub slo_ms: f64,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceView {
    /// Name.
    pub service: String,
    /// Latency objective; absent before a node reports it.
    pub slo_ms: Option<f64>,
    /// Load and forecast.
    pub load: LoadView,
    /// Present load, requests per second.
    pub rps: Option<f64>,
    /// Latency over time.
    pub latency: Vec<LatencyPoint>,
    /// Quantiles over the last minute.
    pub recent: Option<LatencyMs>,
    /// Share answered in time over the last five minutes.
    pub attainment: Option<f64>,
    /// Answers per second over the last half minute.
    pub answered_per_s: Option<f64>,
    /// Rejections per second over the last half minute.
    pub rejected_per_s: Option<f64>,
    /// Since the dashboard began.
    pub totals: Outcomes,
    /// Requests that wait now.
    pub queue_depth: u64,
    /// Age of the oldest of them.
    pub queue_age_ms: f64,
    /// Instances that serve now.
    pub ready_instances: u32,
    /// Their workers.
    pub workers: u32,
    /// What the current plan decided.
    pub decision: Option<ServiceDecision>,
}

impl State {
    /// The state at `now_ms`.
    pub fn snapshot(&self, now_ms: EpochMs) -> Snapshot {
        let plan = self.plans.current();
        let nodes = self.fleet.view(plan, now_ms);
        let services: Vec<ServiceView> =
            self.services.iter().map(|(name, service)| self.service_view(name, service, now_ms)).collect();
        Snapshot {
            now_ms,
            started_at_ms: self.started_at_ms,
            banner: self.banner.clone(),
            mode: plan.map(|p| p.mode),
            plan_id: plan.map(|p| p.plan_id.clone()),
            health: Vec::new(),
            feeds: self.feed_views(),
            telemetry: self.telemetry.view(self.started_at_ms, now_ms),
            rejected: self.rejected.view(self.started_at_ms, now_ms),
            requests: self.requests(&services, now_ms),
            node_counts: fleet::counts(&nodes),
            cost: self.plans.cost(self.cost.as_ref(), now_ms),
            services,
            nodes,
            plans: self.plans.history().cloned().collect(),
            events: self.events.iter().cloned().collect(),
            unreadable: self.unreadable,
        }
    }

    fn feed_views(&self) -> Vec<FeedView> {
        let view = |(name, topic): (&'static str, &'static str)| {
            let feed = self.feeds.get(topic).copied().unwrap_or_default();
            FeedView { name, topic, records: feed.records, last_ms: feed.last_ms }
        };
        FEEDS.into_iter().map(view).collect()
    }

    fn service_view(&self, name: &str, service: &Service, now_ms: EpochMs) -> ServiceView {
        let decision = self.plans.decision(name);
        let lead_ms = decision.map_or(0, |d| i64::try_from(d.lead_ms).unwrap_or(i64::MAX));
        let per_s = |count: fn(&Outcomes) -> u64| {
            service.latency.rates(now_ms).map(|(outcomes, s)| super::round3(count(&outcomes) as f64 / s))
        };
        let (queue_depth, queue_age_ms) = self.fleet.queue(name, now_ms);
        let (ready_instances, workers) = self.fleet.serving(name, now_ms);
        ServiceView {
            service: name.to_owned(),
            slo_ms: service.slo_ms,
            load: service.load.view(lead_ms),
            rps: service.load.current_rps(now_ms, CURRENT_MS),
            latency: service.latency.points(),
            recent: service.latency.recent(now_ms),
            attainment: service.latency.outcomes(ATTAINMENT_MS, now_ms).attainment(),
            answered_per_s: per_s(|o| o.answered),
            rejected_per_s: per_s(|o| o.rejected),
            totals: service.totals,
            queue_depth,
            queue_age_ms: super::round3(queue_age_ms),
            ready_instances,
            workers,
            decision: decision.map(ServiceDecision::from),
        }
    }

    fn requests(&self, services: &[ServiceView], now_ms: EpochMs) -> RequestsView {
        let (mut outcomes, mut totals) = (Outcomes::default(), Outcomes::default());
        for service in self.services.values() {
            outcomes.add(&service.latency.outcomes(ATTAINMENT_MS, now_ms));
            totals.add(&service.totals);
        }
        let rates: Vec<f64> = services.iter().filter_map(|s| s.rps).collect();
        RequestsView {
            rps: (!rates.is_empty()).then(|| super::round3(rates.iter().sum())),
            series: load::total_series(self.services.values().map(|s| &s.load)),
            attainment: outcomes.attainment(),
            outcomes,
            totals,
            worst: services.iter().filter_map(worst).max_by(|a, b| strain(a).total_cmp(&strain(b))),
        }
    }
}

fn worst(service: &ServiceView) -> Option<WorstLatency> {
    let slo_ms = service.slo_ms.filter(|slo| *slo > 0.0)?;
    Some(WorstLatency { service: service.service.clone(), p95_ms: service.recent?.p95_ms, slo_ms })
}

fn strain(latency: &WorstLatency) -> f64 {
    latency.p95_ms / latency.slo_ms
}
