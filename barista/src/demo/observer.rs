//! Reads every topic of the demo as an outsider would, and keeps the books.

use super::accounts::{Accounts, Settlement, Totals};
use crate::dashboard::CostFigures;
use runtime::{Context, Record, SourceEvent, SourceSpec, Start};
use schemas::allocation::{CostSoFar, FleetPlan, NodeAction};
use schemas::status::{ExecutorStatus, InstanceState};
use schemas::workload::WorkloadObserved;
use schemas::{EpochMs, Message, topics};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Scaling events kept for the report; counts go on when it is full.
const EVENTS: usize = 1_000;
/// Intervals of load kept for a service: more than a day of the demo's.
const OBSERVED: usize = 20_000;
/// Requests must all have a record, and none must come, for this long.
const QUIET: Duration = Duration::from_millis(1_000);

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Observations {
    pub(super) accounts: Accounts,
    pub(super) send_failures: u64,
    pub(super) telemetry: u64,
    pub(super) telemetry_rejected: u64,
    pub(super) windows: u64,
    pub(super) forecasts: u64,
    pub(super) plans: u64,
    pub(super) horizontal: u64,
    pub(super) vertical: u64,
    pub(super) events: Vec<Value>,
    pub(super) cost: Option<CostSoFar>,
    pub(super) cost_at_ms: EpochMs,
    pub(super) usd_per_hour: f64,
    pub(super) nodes: usize,
    /// Services that an instance has reported ready.
    pub(super) serving: BTreeSet<String>,
    pub(super) last_request_ms: EpochMs,
    /// JSON lines of `workload.observed` by service, without the simulated history.
    pub(super) observed: BTreeMap<String, Vec<String>>,
}

pub(super) type Shared = Arc<Mutex<Observations>>;

pub(super) fn lock(shared: &Shared) -> MutexGuard<'_, Observations> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Figures of an instant, for the progress lines.
#[derive(Debug, Clone)]
pub(super) struct Tally {
    pub(super) telemetry: u64,
    pub(super) totals: Totals,
    pub(super) nodes: usize,
    pub(super) usd_per_hour: f64,
    pub(super) p95_ms: Vec<(String, Option<f64>, f64)>,
    pub(super) plans: u64,
    pub(super) forecasts: u64,
}

pub(super) fn tally(shared: &Shared) -> Tally {
    let seen = lock(shared);
    Tally {
        telemetry: seen.telemetry,
        totals: seen.accounts.totals(),
        nodes: seen.nodes,
        usd_per_hour: seen.usd_per_hour,
        p95_ms: seen.accounts.reports().into_iter().map(|(n, r)| (n, r.p95_ms, r.target_ms)).collect(),
        plans: seen.plans,
        forecasts: seen.forecasts,
    }
}

/// The planner's account, carried on from its last plan at that plan's price.
pub(super) fn cost(shared: &Shared, now_ms: EpochMs) -> Option<CostFigures> {
    let seen = lock(shared);
    let cost = seen.cost?;
    let since_h = (now_ms - seen.cost_at_ms).max(0) as f64 / 3_600_000.0;
    let run_ms = (seen.cost_at_ms - cost.since_ms).max(1) as f64;
    let usd = cost.usd + seen.usd_per_hour * since_h;
    let usd_static_peak = cost.usd_static_peak * (1.0 + since_h * 3_600_000.0 / run_ms);
    Some(CostFigures {
        usd,
        usd_static_peak,
        usd_reactive: None,
        note: "reactive: simulated at the end of the demo, see its report".to_owned(),
    })
}

/// Resolves when all of these services have been ready once: requests before would only measure the first boot.
pub(super) async fn serving(shared: &Shared, services: BTreeSet<String>) {
    while !services.is_subset(&lock(shared).serving) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Resolves when every request has a record and none came for a while.
pub(super) async fn settled(shared: &Shared, context: &Context) {
    loop {
        {
            let seen = lock(shared);
            let quiet_ms = context.clock.now_ms() - seen.last_request_ms;
            if seen.accounts.open() == 0 && quiet_ms >= QUIET.as_millis() as i64 {
                return;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

pub(super) async fn run(
    context: Context,
    services: Vec<String>,
    shared: Shared,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let names = context.bus.topics().clone();
    let fixed = [
        topics::TELEMETRY_VEHICLE,
        topics::TELEMETRY_REJECTED,
        topics::TRANSIT_AGGREGATES,
        topics::WORKLOAD_FORECAST,
        topics::WORKLOAD_OBSERVED,
        topics::ALLOCATION_CONTROL,
        topics::EXECUTOR_STATUS,
        topics::PREDICTION_REJECTED,
    ];
    let mut all: Vec<String> = fixed.iter().map(|t| names.name(t)).collect();
    for service in &services {
        all.extend([names.requests(service), names.results(service)]);
    }
    let mut source = context.bus.source(SourceSpec::assign(all, Start::Beginning)).await?;
    loop {
        let event = tokio::select! {
            event = source.next() => event?,
            () = token.cancelled() => return Ok(()),
        };
        if let SourceEvent::Record(record) = event {
            let topic = names.strip(&record.topic).unwrap_or(&record.topic).to_owned();
            lock(&shared).apply(&topic, &record, context.clock.now_ms());
        }
    }
}

impl Observations {
    fn apply(&mut self, topic: &str, record: &Record, now_ms: EpochMs) {
        match topic {
            topics::TELEMETRY_VEHICLE => self.telemetry += 1,
            topics::TELEMETRY_REJECTED => self.telemetry_rejected += 1,
            topics::TRANSIT_AGGREGATES => self.windows += 1,
            topics::WORKLOAD_FORECAST => self.forecasts += 1,
            topics::WORKLOAD_OBSERVED => self.workload(record),
            topics::ALLOCATION_CONTROL => self.control(record),
            topics::EXECUTOR_STATUS => self.status(record),
            topics::PREDICTION_REJECTED => {
                if let Some(id) = id(record) {
                    self.accounts.settle(&id, record.timestamp_ms, Settlement::Rejected);
                }
            }
            _ => self.prediction(topic, record, now_ms),
        }
    }

    fn prediction(&mut self, topic: &str, record: &Record, now_ms: EpochMs) {
        let Some(id) = id(record) else { return };
        if let Some(service) = topic.strip_prefix(topics::PREDICTION_REQUESTS) {
            self.accounts.sent(service, &id, record.timestamp_ms);
            self.last_request_ms = now_ms;
        } else if topic.starts_with(topics::PREDICTION_RESULTS) {
            self.accounts.settle(&id, record.timestamp_ms, Settlement::Answered);
        }
    }

    fn workload(&mut self, record: &Record) {
        let Some(Ok(sample)) = record.value.as_deref().map(WorkloadObserved::decode) else { return };
        let Ok(line) = serde_json::to_string(&sample) else { return };
        let lines = self.observed.entry(sample.service).or_default();
        if !sample.simulated && lines.len() < OBSERVED {
            lines.push(line);
        }
    }

    fn control(&mut self, record: &Record) {
        let Some(Ok(plan)) = record.value.as_deref().map(FleetPlan::decode) else { return };
        self.plans += 1;
        self.usd_per_hour = plan.cost_usd_per_hour;
        self.nodes = plan.nodes.iter().filter(|n| n.action != NodeAction::Stop).count();
        if plan.cost.is_some() {
            (self.cost, self.cost_at_ms) = (plan.cost, plan.created_at_ms);
        }
        for change in plan.changes {
            let scales = matches!(change.action, NodeAction::Start | NodeAction::Stop | NodeAction::Lapse);
            if scales {
                self.horizontal += 1;
                self.event(json!({
                    "kind": "horizontal", "at_ms": plan.created_at_ms, "plan_id": plan.plan_id, "node": change.node,
                    "service": change.service, "action": change.action, "reason": change.reason, "load": change.load,
                }));
            }
        }
    }

    fn status(&mut self, record: &Record) {
        let Some(Ok(status)) = record.value.as_deref().map(ExecutorStatus::decode) else { return };
        let ready = status.instances.iter().filter(|i| i.state == InstanceState::Ready);
        self.serving.extend(ready.map(|i| i.service.clone()));
        for event in status.scaling {
            if event.kind == schemas::status::ScalingKind::Vertical {
                self.vertical += 1;
                self.event(json!(event));
            }
        }
    }

    fn event(&mut self, event: Value) {
        if self.events.len() < EVENTS {
            self.events.push(event);
        }
    }
}

/// The id in a request, a result, or the original bytes of a rejected request.
fn id(record: &Record) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Id {
        id: String,
    }
    serde_json::from_slice::<Id>(record.value.as_deref()?).ok().map(|v| v.id)
}
