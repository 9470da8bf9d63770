//! `allocation.control`: the fleet plan under key `fleet`, each node's share under `node/<id>`, and the heartbeat of the
//! active planner under `planner`.

use crate::EpochMs;
use crate::message::Message;
use crate::tag::schema_tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

schema_tag!(/// `allocation.control.fleet.v1`
    FleetPlanTag = "allocation.control.fleet.v1");
schema_tag!(/// `allocation.control.node.v1`
    NodeAllocationTag = "allocation.control.node.v1");

schema_tag!(/// `allocation.control.planner.v1`
    PlannerHeartbeatTag = "allocation.control.planner.v1");

/// Key of the active planner's heartbeat.
pub const PLANNER_KEY: &str = "planner";
/// Key of the fleet plan.
pub const FLEET_KEY: &str = "fleet";
/// Prefix of a node's key.
pub const NODE_KEY_PREFIX: &str = "node/";

/// Whether a plan is carried out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlanMode {
    /// Published and carried out.
    #[default]
    Apply,
    /// Published for people to read; nothing acts on it.
    Advise,
}

/// A load sample that a decision was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LoadSample {
    /// Prediction service.
    pub service: String,
    /// Start of the observed interval.
    pub start_ms: EpochMs,
    /// Observed rate, requests per second.
    pub observed_rps: f64,
    /// Forecast that was planned for, requests per second.
    pub forecast_rps: f64,
}

/// One decision for the whole fleet, with its reasons and its cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FleetPlan {
    /// Always `allocation.control.fleet.v1`.
    pub schema: FleetPlanTag,
    /// Unique name of this plan, `<epoch>-<sequence>`.
    pub plan_id: String,
    /// Leadership epoch: a reader takes the newest plan of the highest epoch.
    pub epoch: u64,
    /// Counts plans within an epoch.
    pub sequence: u64,
    /// When it was decided.
    pub created_at_ms: EpochMs,
    /// Whether it is carried out.
    pub mode: PlanMode,
    /// What was decided for each service, and why.
    pub services: Vec<ServicePlan>,
    /// Every node that should exist.
    pub nodes: Vec<NodePlan>,
    /// Price of the nodes above.
    pub cost_usd_per_hour: f64,
    /// Load that this plan cannot carry, all services.
    pub shortfall_rps: f64,
    /// One line a change against the plan before: what and why. Empty if nothing changes.
    pub changes: Vec<PlanChange>,
    /// What the fleet has cost so far; absent in a plan that nobody pays for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<CostSoFar>,
}

/// What the fleet has cost since the first planner of this control topic began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CostSoFar {
    /// Begin of the account.
    pub since_ms: EpochMs,
    /// Paid and committed until this plan, by the billing rules of each lease.
    pub usd: f64,
    /// What a constant fleet for the highest load so far would have cost in the same time.
    pub usd_static_peak: f64,
}

/// The decision for one service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServicePlan {
    /// Prediction service.
    pub service: String,
    /// The sample and forecast it was made from.
    pub load: LoadSample,
    /// Level of the forecast quantile that was planned for.
    pub quantile: f64,
    /// Rate to be carried, requests per second.
    pub demand_rps: f64,
    /// Added on top for queueing, requests per second.
    pub margin_rps: f64,
    /// How far ahead was planned: the set-up time of the chosen flavor.
    pub lead_ms: u64,
    /// When load last justified `demand_rps`; a lower demand counts only after a hold time from here.
    #[serde(default)]
    pub justified_at_ms: EpochMs,
    /// Each flavor's price for the service, cheapest first; infeasible ones last with their reason.
    pub options: Vec<FlavorOption>,
    /// Chosen flavor; absent when none is feasible.
    pub chosen: Option<String>,
    /// What bound the decision: `demand`, `min`, `max`, `quota`, `partitions`, `no feasible flavor`,
    /// `failed to load`.
    pub bound_by: String,
    /// Instances that should serve, over all nodes.
    pub instances: u32,
    /// Capacity of those, requests per second.
    pub capacity_rps: f64,
    /// Load that cannot be carried.
    pub shortfall_rps: f64,
    /// One sentence for a person.
    pub reason: String,
}

/// What one flavor would cost a service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlavorOption {
    /// Flavor.
    pub flavor: String,
    /// Backend of the profile used.
    pub backend: String,
    /// Workers of an instance on this flavor.
    pub workers: u32,
    /// Batch size that was rated.
    pub batch: u32,
    /// Profiled p95 latency of one inference.
    pub p95_ms: f64,
    /// Requests that one worker can run one after the other within the SLO: floor(SLO / p95), in batches.
    #[serde(default)]
    pub requests_per_slo: u32,
    /// Rate that one instance sustains when its queue never empties, requests per second.
    #[serde(default)]
    pub sustained_rps: f64,
    /// Rate that one instance carries inside the SLO (sustained less the queueing margin), requests per second.
    pub capacity_rps: f64,
    /// Price of a million requests at full use.
    pub usd_per_million: f64,
    /// The profile is an estimate from a data sheet: nothing was measured yet.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub estimated: bool,
    /// Why it cannot be used; absent when it can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infeasible: Option<String>,
}

/// What a plan does with a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeAction {
    /// Order it.
    Start,
    /// It goes on under its present lease.
    Keep,
    /// Its lease is prolonged.
    Renew,
    /// It is not needed; unloaded until its lease ends.
    Lapse,
    /// Its lease has ended or it drained: stop it.
    Stop,
}

/// One node of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodePlan {
    /// Node id.
    pub node: String,
    /// Flavor.
    pub flavor: String,
    /// What the plan does with it.
    pub action: NodeAction,
    /// Start of its lease.
    pub lease_start_ms: EpochMs,
    /// End of its lease.
    pub lease_end_ms: EpochMs,
    /// Price while it is leased.
    pub usd_per_hour: f64,
    /// What it should host.
    pub instances: Vec<InstanceAllocation>,
    /// One sentence for a person.
    pub reason: String,
}

/// One instance that a node should host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceAllocation {
    /// Prediction service.
    pub service: String,
    /// Model file, as configured.
    pub model: String,
    /// Model version.
    pub version: String,
    /// Backend: `tract`, `cuda`.
    pub backend: String,
    /// Workers the plan counts on; the node may lend it more, never fewer. 0: a standby, loaded and not serving; workers
    /// in a later plan make it serve within milliseconds.
    pub workers: u32,
    /// Largest batch that pays.
    pub max_batch: u32,
    /// Latency objective.
    pub slo_ms: f64,
    /// Service time of one batch at p95, for admission.
    pub service_p95_ms: f64,
}

/// One change against the plan before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PlanChange {
    /// Service that asked for it; absent for a change of a node alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Node that changes.
    pub node: String,
    /// What happens to the node.
    pub action: NodeAction,
    /// Why.
    pub reason: String,
    /// The sample that caused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadSample>,
}

impl Message for FleetPlan {
    const SCHEMA: &'static str = FleetPlanTag::NAME;

    fn key(&self) -> String {
        FLEET_KEY.to_owned()
    }
}

/// A node's share of a plan. A retired node's key gets a tombstone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NodeAllocation {
    /// Always `allocation.control.node.v1`.
    pub schema: NodeAllocationTag,
    /// Node id.
    pub node: String,
    /// Plan it belongs to.
    pub plan_id: String,
    /// Leadership epoch.
    pub epoch: u64,
    /// Sequence within the epoch.
    pub sequence: u64,
    /// When it was decided.
    pub created_at_ms: EpochMs,
    /// What the node should host; anything else it drains and stops.
    pub instances: Vec<InstanceAllocation>,
    /// True when the node shall take no new work and end once it is empty.
    pub drain: bool,
    /// One sentence for a person.
    pub reason: String,
    /// Samples that caused it.
    pub load: Vec<LoadSample>,
}

impl Message for NodeAllocation {
    const SCHEMA: &'static str = NodeAllocationTag::NAME;

    fn key(&self) -> String {
        format!("{NODE_KEY_PREFIX}{}", self.node)
    }
}

/// The active planner lives. Written every second in the transactions of the epoch's one writer, so that none of a
/// deposed planner is ever seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PlannerHeartbeat {
    /// Always `allocation.control.planner.v1`.
    pub schema: PlannerHeartbeatTag,
    /// Name of the process that leads.
    pub planner: String,
    /// Leadership epoch.
    pub epoch: u64,
    /// When it was written, by the planner's clock.
    pub at_ms: EpochMs,
    /// When this epoch began.
    pub since_ms: EpochMs,
    /// True in the last one of a planner that ends in order: a standby need not wait for silence.
    #[serde(default)]
    pub resigned: bool,
}

impl Message for PlannerHeartbeat {
    const SCHEMA: &'static str = PlannerHeartbeatTag::NAME;

    fn key(&self) -> String {
        PLANNER_KEY.to_owned()
    }
}
