//! What the page shows, kept from records: pure, no clock, no I/O.
//!
//! Invariants:
//! - Everything is bounded: the last [`WINDOW_MS`] of each series, [`MAX_SERVICES`] services, the last 50 plans, the
//!   last [`MAX_EVENTS`] scaling events; each part says what goes first when it is full.
//! - Applying a record again changes nothing (a reader may begin again at the start of a topic), telemetry aside,
//!   which is only counted.
//! - A record that cannot be read is counted and changes nothing else.
//!
//! Left out: telemetry's content, request payloads, and anything that only a node's own metrics tell.

mod fleet;
mod latency;
mod load;
mod meter;
mod plans;
mod snapshot;

pub use fleet::{InstanceView, NodeCondition, NodeCounts, NodeView};
pub use latency::{LatencyPoint, Outcomes};
pub use load::{AheadScore, BandPoint, ForecastView, LoadPoint, LoadView};
pub use meter::RateView;
pub use plans::{CostFigures, CostSource, CostView, PlanEntry, ServiceDecision};
pub use snapshot::{FeedView, HealthView, RequestsView, ServiceView, Snapshot, WorstLatency};

use fleet::Fleet;
use latency::LatencySeries;
use load::Load;
use meter::RateMeter;
use plans::Plans;
use runtime::Record;
use schemas::allocation::{FLEET_KEY, FleetPlan, NODE_KEY_PREFIX, PLANNER_KEY};
use schemas::status::{ExecutorStatus, ScalingEvent};
use schemas::topics::{
    ALLOCATION_CONTROL, TELEMETRY_REJECTED, TELEMETRY_VEHICLE, WORKLOAD_FORECAST, WORKLOAD_OBSERVED,
};
use schemas::workload::{WorkloadForecast, WorkloadObserved};
use schemas::{EpochMs, Message, Topics};
use std::collections::{BTreeMap, VecDeque};

/// How far back the charts go.
pub const WINDOW_MS: i64 = 15 * 60 * 1000;
/// Most services shown; records of further ones are counted as left out.
pub const MAX_SERVICES: usize = 32;
/// Most scaling events kept; beyond it the oldest go.
pub const MAX_EVENTS: usize = 100;

/// What became of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Applied {
    /// It is part of the state now.
    Taken,
    /// It repeats or is older than what is known.
    Stale,
    /// The page shows nothing of this topic or key.
    Unknown,
    /// Not the message that its topic carries, or with times outside of years 1970 to 9999.
    Unreadable,
    /// It belongs to a service beyond [`MAX_SERVICES`].
    LeftOut,
}

/// Newest record time and number of records of one topic.
#[derive(Debug, Clone, Copy, Default)]
struct Feed {
    last_ms: Option<EpochMs>,
    records: u64,
}

#[derive(Debug, Default)]
struct Service {
    load: Load,
    latency: LatencySeries,
    totals: Outcomes,
    slo_ms: Option<f64>,
}

impl Service {
    fn is_empty(&self) -> bool {
        self.load.is_empty() && self.latency.is_empty()
    }
}

/// The state behind the page.
#[derive(Debug, Default)]
pub struct State {
    started_at_ms: EpochMs,
    telemetry: RateMeter,
    rejected: RateMeter,
    feeds: BTreeMap<&'static str, Feed>,
    services: BTreeMap<String, Service>,
    fleet: Fleet,
    plans: Plans,
    /// Newest first.
    events: VecDeque<ScalingEvent>,
    cost: Option<CostFigures>,
    banner: Option<String>,
    unreadable: u64,
}

impl State {
    /// An empty state of a dashboard that began at `started_at_ms`.
    pub fn new(started_at_ms: EpochMs) -> Self {
        State { started_at_ms, ..State::default() }
    }

    /// Begins the clock of uptime and rates; what is known stays.
    pub fn start(&mut self, started_at_ms: EpochMs) {
        self.started_at_ms = started_at_ms;
    }

    /// Cost figures that go before those of the plans; `None` takes them back.
    pub fn set_cost(&mut self, figures: Option<CostFigures>) {
        self.cost = figures;
    }

    /// A line at the top of the page, such as what is simulated; `None` takes it away.
    pub fn set_banner(&mut self, text: Option<String>) {
        self.banner = text;
    }

    /// Takes one record.
    pub fn apply(&mut self, record: &Record, topics: &Topics) -> Applied {
        let Some(topic) = topics.strip(&record.topic).and_then(known_topic) else { return Applied::Unknown };
        let applied = match topic {
            TELEMETRY_VEHICLE => self.count(record, |state| &mut state.telemetry),
            TELEMETRY_REJECTED => self.count(record, |state| &mut state.rejected),
            WORKLOAD_OBSERVED => self.read(record, Self::observed),
            WORKLOAD_FORECAST => self.read(record, Self::forecast),
            ALLOCATION_CONTROL => self.control(record),
            _ => self.status(record),
        };
        match applied {
            Applied::Unreadable => self.unreadable += 1,
            _ => {
                let feed = self.feeds.entry(topic).or_default();
                feed.records += 1;
                feed.last_ms = feed.last_ms.max(Some(record.timestamp_ms));
            }
        }
        applied
    }

    /// Drops what no snapshot at or after `now_ms` shows.
    pub fn prune(&mut self, now_ms: EpochMs) {
        self.telemetry.prune(now_ms);
        self.rejected.prune(now_ms);
        for service in self.services.values_mut() {
            service.load.prune(now_ms);
            service.latency.prune(now_ms);
        }
        self.fleet.prune(now_ms, self.plans.current());
        // A service that nothing has been heard of for the whole window, and that no plan has, is gone.
        let plans = &self.plans;
        self.services.retain(|name, service| !service.is_empty() || plans.decision(name).is_some());
    }

    fn count(&mut self, record: &Record, meter: fn(&mut State) -> &mut RateMeter) -> Applied {
        if !plausible(record.timestamp_ms) {
            return Applied::Unreadable;
        }
        meter(self).record(record.timestamp_ms);
        Applied::Taken
    }

    fn read<M: Message>(&mut self, record: &Record, take: fn(&mut State, M) -> Applied) -> Applied {
        let Some(value) = &record.value else { return Applied::Unknown };
        match M::decode(value) {
            Ok(message) => take(self, message),
            Err(error) => {
                let (topic, offset) = (record.topic.as_str(), record.offset);
                tracing::debug!(%error, topic, offset, "record cannot be shown");
                Applied::Unreadable
            }
        }
    }

    fn observed(&mut self, message: WorkloadObserved) -> Applied {
        if !plausible(message.start_ms) {
            return Applied::Unreadable;
        }
        let Some(service) = self.service(&message.service) else { return Applied::LeftOut };
        service.load.observe(&message);
        Applied::Taken
    }

    fn forecast(&mut self, message: WorkloadForecast) -> Applied {
        if !plausible(message.origin_ms) {
            return Applied::Unreadable;
        }
        let Some(service) = self.service(&message.service) else { return Applied::LeftOut };
        service.load.forecast(message);
        Applied::Taken
    }

    fn control(&mut self, record: &Record) -> Applied {
        match (record.key_str(), &record.value) {
            (FLEET_KEY, Some(_)) => self.read(record, Self::plan),
            // It lives: its plans say all that is shown.
            (PLANNER_KEY, Some(_)) => Applied::Taken,
            // The nodes' shares repeat the fleet plan; the tombstone of one says that its node is retired.
            (key, None) => key.strip_prefix(NODE_KEY_PREFIX).map_or(Applied::Unknown, |_| Applied::Taken),
            (key, Some(_)) if key.starts_with(NODE_KEY_PREFIX) => Applied::Taken,
            _ => Applied::Unknown,
        }
    }

    fn plan(&mut self, plan: FleetPlan) -> Applied {
        let leases = plan.nodes.iter().flat_map(|n| [n.lease_start_ms, n.lease_end_ms]);
        if !leases.chain([plan.created_at_ms]).all(plausible) {
            return Applied::Unreadable;
        }
        let created_at_ms = plan.created_at_ms;
        let capacities: Vec<(String, f64)> =
            plan.services.iter().map(|s| (s.service.clone(), s.capacity_rps)).collect();
        if !self.plans.apply(plan) {
            return Applied::Stale;
        }
        for (name, capacity_rps) in capacities {
            if let Some(service) = self.service(&name) {
                service.load.capacity(created_at_ms, capacity_rps);
            }
        }
        Applied::Taken
    }

    fn status(&mut self, record: &Record) -> Applied {
        if record.value.is_none() {
            self.fleet.remove(record.key_str());
            return Applied::Taken;
        }
        self.read(record, Self::heartbeat)
    }

    fn heartbeat(&mut self, status: ExecutorStatus) -> Applied {
        if !plausible(status.at_ms) || !plausible(status.started_at_ms) {
            return Applied::Unreadable;
        }
        if !self.fleet.heartbeat(status.clone()) {
            return Applied::Stale;
        }
        for of_service in &status.services {
            let (depth, _) = self.fleet.queue(&of_service.service, status.at_ms);
            let Some(service) = self.service(&of_service.service) else { continue };
            service.slo_ms = Some(of_service.slo_ms);
            service.latency.record(status.at_ms, of_service, depth);
            service.totals.add(&Outcomes::from(of_service));
        }
        for event in status.scaling {
            self.remember(event);
        }
        Applied::Taken
    }

    /// Keeps events newest first, although nodes report them in any order.
    fn remember(&mut self, event: ScalingEvent) {
        let place = self.events.iter().position(|known| known.at_ms <= event.at_ms).unwrap_or(self.events.len());
        self.events.insert(place, event);
        self.events.truncate(MAX_EVENTS);
    }

    fn service(&mut self, name: &str) -> Option<&mut Service> {
        if !self.services.contains_key(name) && self.services.len() >= MAX_SERVICES {
            return None;
        }
        Some(self.services.entry(name.to_owned()).or_default())
    }
}

/// The constant of a topic that the page shows something of.
fn known_topic(name: &str) -> Option<&'static str> {
    snapshot::FEEDS.iter().map(|(_, topic)| *topic).find(|topic| *topic == name)
}

/// True for times between 1970 and 9999: sums of such times cannot overflow.
fn plausible(ms: EpochMs) -> bool {
    (0..=253_402_300_799_999).contains(&ms)
}

/// Three decimals are more than a pixel shows, and a third of the bytes.
fn round3(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests;
