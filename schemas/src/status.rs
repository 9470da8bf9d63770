//! `executor.status`: heartbeat of a node.

use crate::EpochMs;
use crate::allocation::LoadSample;
use crate::message::Message;
use crate::profile::ProfilePoint;
use crate::tag::schema_tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

schema_tag!(/// `executor.status.v1`
    ExecutorStatusTag = "executor.status.v1");

/// State of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Booting: the machine, or the simulated boot of a local node.
    Booting,
    /// Takes work.
    Ready,
    /// Finishes what it accepted and takes no more.
    Draining,
    /// Last heartbeat before it ends.
    Stopped,
}

/// State of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InstanceState {
    /// Nothing but the order exists.
    Cold,
    /// The model file is being read.
    Loading,
    /// The file is in memory, the model is being compiled and run once.
    Cached,
    /// Standby: loaded, and without workers until the plan gives it some.
    Loaded,
    /// Serves.
    Ready,
    /// Finishes what it accepted.
    Draining,
    /// Gone.
    Stopped,
    /// Could not be loaded or broke; the reason is beside it.
    Failed,
}

/// What a node says of itself, about once a second and at each change.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ExecutorStatus {
    /// Always `executor.status.v1`.
    pub schema: ExecutorStatusTag,
    /// Node id.
    pub node: String,
    /// Flavor of the node.
    pub flavor: String,
    /// Time of the heartbeat.
    pub at_ms: EpochMs,
    /// When the process began.
    pub started_at_ms: EpochMs,
    /// State of the node.
    pub state: NodeState,
    /// Plan that it follows; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_id: Option<String>,
    /// Worker permits of the node: how many inferences may run at once.
    pub cores: u32,
    /// Instances it holds.
    pub instances: Vec<InstanceStatus>,
    /// Load and latency of each service since the heartbeat before.
    pub services: Vec<ServiceStatus>,
    /// Live measurements that differ from the profile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile_updates: Vec<ProfileUpdate>,
    /// Scaling inside the node since the heartbeat before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub scaling: Vec<ScalingEvent>,
    /// Services that this node alone cannot keep in their objective any more: the planner is to decide again at once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replan: Vec<ReplanRequest>,
}

/// A service is under strain and the node has no free core left to lend it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ReplanRequest {
    /// Prediction service.
    pub service: String,
    /// Since when.
    pub since_ms: EpochMs,
    /// One sentence for a person.
    pub reason: String,
}

/// One loaded model on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct InstanceStatus {
    /// Prediction service.
    pub service: String,
    /// Model version.
    pub version: String,
    /// Backend.
    pub backend: String,
    /// State.
    pub state: InstanceState,
    /// Workers at the moment.
    pub workers: u32,
    /// Workers that the plan gave it.
    pub planned_workers: u32,
    /// Time from order to loaded; absent before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_ms: Option<f64>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What a request to it looks like; absent until the model is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<ModelSignature>,
}

/// Inputs and outputs of a loaded model, as a gateway tells them to its clients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ModelSignature {
    /// Rows that one request may carry; 0: the first dimension is no batch, a request is one row.
    pub max_rows: u32,
    /// Inputs in the model's order.
    pub inputs: Vec<TensorSignature>,
    /// Outputs in the model's order.
    pub outputs: Vec<TensorSignature>,
}

/// One tensor of a [`ModelSignature`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TensorSignature {
    /// Name in the model.
    pub name: String,
    /// `FP32`, `INT64`, … as the Open Inference Protocol names them.
    pub datatype: String,
    /// Shape in a request; -1: the batch.
    pub shape: Vec<i64>,
}

/// Counters and latencies of one service on one node since the heartbeat before.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ServiceStatus {
    /// Prediction service.
    pub service: String,
    /// Length of the period that the counters cover.
    pub period_ms: u64,
    /// Requests waiting now.
    pub queue_depth: u64,
    /// Age of the oldest waiting request.
    pub queue_age_ms: f64,
    /// Requests taken from Kafka.
    pub arrivals: u64,
    /// Requests taken straight from a gateway.
    #[serde(default)]
    pub direct_arrivals: u64,
    /// Results written.
    pub answered: u64,
    /// Of those, in time.
    pub in_slo: u64,
    /// Rejected, for any reason.
    pub rejected: u64,
    /// From record timestamp to result, milliseconds; absent without answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<LatencyMs>,
    /// Latency objective.
    pub slo_ms: f64,
}

/// Latency quantiles, milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyMs {
    /// Median.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
}

/// A live measurement of a profile point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProfileUpdate {
    /// Prediction service.
    pub service: String,
    /// Model version.
    pub version: String,
    /// Backend.
    pub backend: String,
    /// The point as measured under load.
    pub point: ProfilePoint,
    /// Samples behind it.
    pub samples: u64,
}

/// Direction of scaling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScalingKind {
    /// Nodes or instances came or went.
    Horizontal,
    /// Workers of an instance changed.
    Vertical,
}

/// One scaling step inside a node, with what caused it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScalingEvent {
    /// When.
    pub at_ms: EpochMs,
    /// Horizontal or vertical.
    pub kind: ScalingKind,
    /// Node.
    pub node: String,
    /// Prediction service.
    pub service: String,
    /// Workers (vertical) or instances (horizontal) before.
    pub from: u32,
    /// And after.
    pub to: u32,
    /// One sentence for a person.
    pub reason: String,
    /// Control record in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_id: Option<String>,
    /// Load sample that caused it: the node's own rate, or the plan's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<LoadSample>,
}

impl Message for ExecutorStatus {
    const SCHEMA: &'static str = ExecutorStatusTag::NAME;

    fn key(&self) -> String {
        self.node.clone()
    }
}
