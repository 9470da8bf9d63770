//! What a decision is made from and what it says: plain values in, plain values out.
//!
//! Invariants: [`PlanInputs`] holds everything a decision needs, so a recorded one explains a plan later
//! (`barista plan --explain`); the order of its lists carries no meaning; times are epoch milliseconds.
//! Left out: where the values come from (`service`), and what is done with the plan (`provider`).

use crate::lease::{Billing, Lease};
use schemars::JsonSchema;
use schemas::EpochMs;
use schemas::allocation::{FleetPlan, NodePlan, PlanChange, PlanMode, ServicePlan};
use schemas::profile::Profile;
use schemas::workload::WorkloadForecast;
use serde::{Deserialize, Serialize};

/// All that one decision depends on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlanInputs {
    /// Time of the decision.
    pub now_ms: EpochMs,
    /// How to decide.
    pub settings: Settings,
    /// Services to be served.
    pub services: Vec<Service>,
    /// Kinds of machines that can be leased.
    pub flavors: Vec<Flavor>,
    /// Measured latency and throughput.
    pub profiles: Vec<ServiceProfile>,
    /// Nodes that exist or are ordered.
    pub fleet: Vec<FleetNode>,
    /// What the plan before asked for.
    pub previous: Vec<PreviousDemand>,
    /// Names for new nodes.
    pub naming: Naming,
}

/// How capacity is computed from a profile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapacityRule {
    /// Measured throughput less a queueing margin (`margin`).
    #[default]
    Margin,
    /// `floor(SLO / p95)` requests a worker and SLO, no queueing term: a reconstruction of Barista 2019.
    Paper,
}

/// How many consumer group members a node has for each of its services: they split its partitions evenly.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Members {
    /// One: every node of a service gets the same share of its arrivals.
    #[default]
    OnePerNode,
    /// As many as the node has cores: shares follow cores, as far as there are partitions to follow with.
    OnePerCore,
    /// No group: all nodes of a service take from one queue, each when it has a free worker (late binding).
    Shared,
}

/// Knobs of a decision; one setting serves every trace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Time until the next decision.
    pub period_ms: i64,
    /// Longest look ahead; a longer set-up time is cut to it.
    pub horizon_ms: i64,
    /// Level of the forecast quantile that is planned for.
    pub quantile: f64,
    /// Demand may sink by this share before it counts as lower.
    pub hysteresis: f64,
    /// Demand must have been lower for this long before it counts as lower.
    pub hold_ms: i64,
    /// Share of requests that may wait longer than the SLO leaves them, at the load that is planned for: a minute at
    /// that load still meets an SLO on the 95th percentile. The load is mostly below it (quantile, whole nodes), so
    /// that far fewer are late over a day; a load that never changes and lies on a border of whole nodes is the worst case.
    pub epsilon: f64,
    /// How far load may go beyond capacity while the error budget is full (`budget`), as a share of what the smallest
    /// useful node carries; 0 keeps no budget.
    pub stretch: f64,
    /// True when those are dropped at once instead, as the executor does (`margin`).
    pub sheds: bool,
    /// Variance over mean of arrivals (1 is Poisson), where a service does not give its own.
    pub dispersion: f64,
    /// Part of the SLO that is spent outside the executor: broker, polling, network.
    pub overhead_ms: f64,
    /// Time to bring the program onto a booted node.
    pub image_ms: i64,
    /// Nodes that may exist at once, all flavors: a guard against a wrong profile or forecast; absent: no limit.
    pub total_quota: Option<u32>,
    /// How capacity follows from a profile.
    pub capacity_rule: CapacityRule,
    /// How nodes take part in a service's consumer group.
    pub members: Members,
    /// False when nothing can start or stop nodes: the fleet is what it is.
    pub elastic: bool,
    /// A node is exchanged for a cheaper one only when that saves at least this share of its price.
    pub swap_gain: f64,
    /// An exchange must earn its overlap back within the time that what it replaces has lasted, and within this time.
    pub payback_ms: i64,
    /// A request that is lost because its node was taken back counts so many times what serving it costs.
    pub loss_factor: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            period_ms: 10_000,
            horizon_ms: 600_000,
            quantile: 0.95,
            hysteresis: 0.04,
            hold_ms: 60_000,
            epsilon: 0.01,
            stretch: 0.20,
            sheds: true,
            dispersion: 1.0,
            overhead_ms: 10.0,
            image_ms: 0,
            total_quota: Some(100),
            capacity_rule: CapacityRule::Margin,
            members: Members::OnePerNode,
            elastic: true,
            swap_gain: 0.10,
            payback_ms: 3_600_000,
            loss_factor: 20.0,
        }
    }
}

/// A prediction service with its objective and its load.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Service {
    /// Name, unique.
    pub name: String,
    /// Model file, as configured.
    pub model: String,
    /// Model version.
    pub version: String,
    /// Latency objective.
    pub slo_ms: f64,
    /// Share of requests that shall meet it.
    pub slo_quantile: f64,
    /// `auto`, or the one backend that may serve it.
    pub backend: String,
    /// Instances that always exist; 0 lets it scale to zero.
    pub min: u32,
    /// Instances at most; absent: no limit.
    pub max: Option<u32>,
    /// Higher is served first when it does not fit.
    pub priority: i32,
    /// Partitions of its request topic: more instances than this would get nothing. Absent: no limit.
    pub partitions: Option<u32>,
    /// Its load.
    pub load: ServiceLoad,
}

impl Default for Service {
    fn default() -> Self {
        Service {
            name: String::new(),
            model: String::new(),
            version: "1".to_owned(),
            slo_ms: 200.0,
            slo_quantile: 0.95,
            backend: "auto".to_owned(),
            min: 1,
            max: None,
            priority: 0,
            partitions: None,
            load: ServiceLoad::default(),
        }
    }
}

impl Service {
    /// Instances at most, by `max` and partitions.
    pub fn most_instances(&self) -> u32 {
        self.max.unwrap_or(u32::MAX).min(self.partitions.unwrap_or(u32::MAX))
    }
}

/// What is known of a service's load.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceLoad {
    /// Newest forecast.
    pub forecast: Option<WorkloadForecast>,
    /// Rate over the last intervals.
    pub observed: Option<ObservedRate>,
    /// Rate over the newest of them alone, where a jump shows first.
    pub newest: Option<ObservedRate>,
    /// Requests that wait on all nodes.
    pub backlog: u64,
    /// Variance over mean of its arrivals, where measured.
    pub dispersion: Option<f64>,
    /// How freely misses may be spent (`budget`): 1 is a full budget, −1 one that is far overdrawn; 0 where nobody keeps
    /// the account.
    pub allowance: f64,
}

/// Mean arrival rate over a recent window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObservedRate {
    /// Begin of the window.
    pub start_ms: EpochMs,
    /// Its length.
    pub window_ms: i64,
    /// Requests per second.
    pub rate_rps: f64,
}

/// A kind of machine with a price.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Flavor {
    /// Name, unique.
    pub name: String,
    /// Cores: workers that run at once.
    pub cores: u32,
    /// Memory, GiB; 0 is not checked.
    pub memory_gib: f64,
    /// GPUs.
    pub gpus: u32,
    /// Price.
    pub usd_per_hour: f64,
    /// How time is billed.
    pub billing: Billing,
    /// Shortest lease, seconds.
    pub min_lease_s: f64,
    /// From order to a running machine, seconds.
    pub boot_s: f64,
    /// Nodes of it that may exist at once; absent: no limit.
    pub quota: Option<u32>,
    /// Speed relative to the host that the profiles were measured on.
    pub speed: f64,
    /// Times an hour that the provider takes such a node back (spot); 0 for never. Priced in ([`crate::spot`]).
    pub interruptions_per_hour: f64,
}

impl Default for Flavor {
    fn default() -> Self {
        Flavor {
            name: String::new(),
            cores: 1,
            memory_gib: 0.0,
            gpus: 0,
            usd_per_hour: 0.0,
            billing: Billing::Second,
            min_lease_s: 60.0,
            boot_s: 60.0,
            quota: None,
            speed: 1.0,
            interruptions_per_hour: 0.0,
        }
    }
}

/// A profile and the service that it is for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceProfile {
    /// Service.
    pub service: String,
    /// Flavor that it was measured on; absent: any, scaled by the flavor's speed.
    #[serde(default)]
    pub flavor: Option<String>,
    /// The measurement.
    pub profile: Profile,
}

/// State of a node as the planner knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FleetState {
    /// Ordered, not heard of.
    Ordered,
    /// Heard of, not ready.
    Booting,
    /// Takes work.
    Ready,
    /// Finishes what it has and ends.
    Draining,
    /// Silent for too long, or its process has ended.
    Lost,
}

/// A node that exists or is ordered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FleetNode {
    /// Node id.
    pub node: String,
    /// Flavor.
    pub flavor: String,
    /// State.
    pub state: FleetState,
    /// Its lease.
    pub lease: Lease,
    /// Worker permits that it reports; absent: those of its flavor.
    #[serde(default)]
    pub cores: Option<u32>,
    /// What the plan before put on it; for a node without a plan, what it reports.
    #[serde(default)]
    pub hosts: Vec<HostedInstance>,
}

/// An instance on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostedInstance {
    /// Service.
    pub service: String,
    /// Workers that the plan counts on.
    pub workers: u32,
    /// True once the node has said that it serves.
    #[serde(default)]
    pub ready: bool,
    /// Why it could not be loaded; the planner does not try this service on this node again.
    #[serde(default)]
    pub failed: Option<String>,
}

/// What the plan before asked for, the memory behind hysteresis.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PreviousDemand {
    /// Service.
    pub service: String,
    /// Demand that was planned for.
    pub demand_rps: f64,
    /// When load last justified it.
    pub justified_at_ms: EpochMs,
}

/// New nodes are called `<flavor>-<epoch>-<next>`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Naming {
    /// Leadership epoch.
    pub epoch: u64,
    /// Next number.
    pub next: u64,
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// What was decided for each service, by name.
    pub services: Vec<ServicePlan>,
    /// Nodes that should exist, and those that stop now, by id.
    pub nodes: Vec<NodePlan>,
    /// What changes.
    pub changes: Vec<PlanChange>,
    /// Price of the nodes that go on.
    pub cost_usd_per_hour: f64,
    /// Load that cannot be carried, all services.
    pub shortfall_rps: f64,
    /// Names for the nodes of the next decision.
    pub naming: Naming,
}

/// What turns a [`Plan`] into a control record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Leadership epoch.
    pub epoch: u64,
    /// Counts plans within it.
    pub sequence: u64,
    /// Time of the decision.
    pub created_at_ms: EpochMs,
    /// Whether it is carried out.
    pub mode: PlanMode,
}

impl Stamp {
    /// `<epoch>-<sequence>`.
    pub fn plan_id(&self) -> String {
        format!("{}-{}", self.epoch, self.sequence)
    }
}

impl Plan {
    /// The record that goes under the key `fleet`.
    pub fn into_record(self, stamp: Stamp) -> FleetPlan {
        FleetPlan {
            schema: Default::default(),
            plan_id: stamp.plan_id(),
            epoch: stamp.epoch,
            sequence: stamp.sequence,
            created_at_ms: stamp.created_at_ms,
            mode: stamp.mode,
            services: self.services,
            nodes: self.nodes,
            cost_usd_per_hour: self.cost_usd_per_hour,
            shortfall_rps: self.shortfall_rps,
            changes: self.changes,
            cost: None,
        }
    }
}

impl PlanInputs {
    /// Problems that make a decision meaningless, one sentence each, naming the field; empty when sound.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.settings.problems();
        let mut names = std::collections::BTreeSet::new();
        for (i, s) in self.services.iter().enumerate() {
            let at = format!("services[{i}]");
            if !names.insert(format!("service {}", s.name)) {
                problems.push(format!("{at}.name: `{}` occurs twice", s.name));
            }
            problems.extend(s.problems().into_iter().map(|p| format!("{at}.{p}")));
        }
        for (i, f) in self.flavors.iter().enumerate() {
            let at = format!("flavors[{i}]");
            if !names.insert(format!("flavor {}", f.name)) {
                problems.push(format!("{at}.name: `{}` occurs twice", f.name));
            }
            problems.extend(f.problems().into_iter().map(|p| format!("{at}.{p}")));
        }
        for (i, p) in self.profiles.iter().enumerate() {
            problems.extend(p.profile.problems().into_iter().map(|text| format!("profiles[{i}].profile.{text}")));
        }
        for (i, n) in self.fleet.iter().enumerate() {
            if !names.insert(format!("node {}", n.node)) {
                problems.push(format!("fleet[{i}].node: `{}` occurs twice", n.node));
            }
            if !self.flavors.iter().any(|f| f.name == n.flavor) {
                problems.push(format!("fleet[{i}].flavor: `{}` is none of the flavors", n.flavor));
            }
        }
        problems
    }
}

impl Settings {
    /// Values that cannot work, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, text: &str| {
            if !ok {
                problems.push(text.to_owned());
            }
        };
        check(self.period_ms > 0, "period: must be longer than 0");
        check(self.horizon_ms >= self.period_ms, "horizon: must not be shorter than period");
        check(self.quantile > 0.0 && self.quantile < 1.0, "quantile: must lie between 0 and 1");
        check((0.0..=1.0).contains(&self.stretch), "stretch: must lie between 0 and 1");
        check((0.0..1.0).contains(&self.hysteresis), "hysteresis: must be at least 0 and below 1");
        check(self.hold_ms >= 0, "hold: must not be negative");
        check(self.epsilon > 0.0 && self.epsilon < 1.0, "epsilon: must lie between 0 and 1");
        check(self.dispersion > 0.0 && self.dispersion.is_finite(), "dispersion: must be positive");
        check(self.overhead_ms >= 0.0 && self.overhead_ms.is_finite(), "overhead_ms: must not be negative");
        check(self.image_ms >= 0, "image: must not be negative");
        check(self.loss_factor >= 0.0 && self.loss_factor.is_finite(), "loss_factor: must be at least 0");
        check((0.0..1.0).contains(&self.swap_gain), "swap_gain: must be at least 0 and below 1");
        problems
    }
}

impl Service {
    /// Values that cannot work, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.name.is_empty() {
            problems.push("name: must not be empty".to_owned());
        }
        if !(self.slo_ms > 0.0 && self.slo_ms.is_finite()) {
            problems.push("slo_p95_ms: must be positive".to_owned());
        }
        if !(self.slo_quantile > 0.0 && self.slo_quantile < 1.0) {
            problems.push("slo_quantile: must lie between 0 and 1".to_owned());
        }
        if self.max.is_some_and(|max| max < self.min) {
            problems.push("max: must not be smaller than min".to_owned());
        }
        problems
    }
}

impl Flavor {
    /// Values that cannot work, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.name.is_empty() {
            problems.push("name: must not be empty".to_owned());
        }
        if self.cores == 0 {
            problems.push("cores: must be at least 1".to_owned());
        }
        let amounts = [
            ("memory_gib", self.memory_gib),
            ("usd_per_hour", self.usd_per_hour),
            ("min_lease_s", self.min_lease_s),
            ("boot_s", self.boot_s),
            ("interruptions_per_hour", self.interruptions_per_hour),
        ];
        for (key, value) in amounts {
            if !(value >= 0.0 && value.is_finite()) {
                problems.push(format!("{key}: must be a number of at least 0"));
            }
        }
        if !(self.speed > 0.0 && self.speed.is_finite()) {
            problems.push("speed: must be positive".to_owned());
        }
        problems
    }

    /// From order to a running machine.
    pub fn boot_ms(&self) -> i64 {
        (self.boot_s * 1000.0).ceil() as i64
    }
}
