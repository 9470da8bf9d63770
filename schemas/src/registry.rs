//! Every contract by name, for `barista schema list|print` and the generated files.

use crate::message::Message;
use crate::{aggregates, allocation, prediction, profile, state, status, telemetry, topics, workload};

/// One contract.
pub struct Contract {
    /// Schema name, such as `workload.observed.v1`.
    pub name: &'static str,
    /// Topic that carries it; absent for a file format.
    pub topic: Option<&'static str>,
    /// What the record key is.
    pub key: &'static str,
    /// One sentence for a person.
    pub summary: &'static str,
    /// Role that writes it.
    pub written_by: &'static str,
    schema: fn() -> schemars::Schema,
}

impl Contract {
    /// The JSON Schema (draft 2020-12) of the value.
    pub fn json_schema(&self) -> serde_json::Value {
        let mut schema = (self.schema)();
        schema.insert("$id".to_owned(), format!("urn:barista:{}", self.name).into());
        schema.to_value()
    }
}

fn message<M: Message>(
    topic: &'static str,
    key: &'static str,
    written_by: &'static str,
    summary: &'static str,
) -> Contract {
    Contract { name: M::SCHEMA, topic: Some(topic), key, summary, written_by, schema: || schemars::schema_for!(M) }
}

/// All contracts, in the order of the data flow.
pub fn contracts() -> Vec<Contract> {
    vec![
        message::<telemetry::VehicleEvent>(
            topics::TELEMETRY_VEHICLE,
            "<operator>/<vehicle>",
            "ingest",
            "one normalised event of a vehicle",
        ),
        message::<aggregates::WindowRow>(
            topics::TRANSIT_AGGREGATES,
            "<query>/<group key>",
            "aggregate",
            "one closed window row of a query",
        ),
        message::<workload::WorkloadObserved>(
            topics::WORKLOAD_OBSERVED,
            "service",
            "aggregate",
            "arrivals of a service in one interval",
        ),
        message::<workload::WorkloadForecast>(
            topics::WORKLOAD_FORECAST,
            "service",
            "forecaster",
            "forecast quantiles of a service's request rate",
        ),
        message::<allocation::FleetPlan>(
            topics::ALLOCATION_CONTROL,
            "fleet",
            "planner",
            "the plan of the whole fleet with its reasons and cost",
        ),
        message::<allocation::NodeAllocation>(
            topics::ALLOCATION_CONTROL,
            "node/<id>",
            "planner",
            "a node's share of the plan",
        ),
        message::<allocation::PlannerHeartbeat>(
            topics::ALLOCATION_CONTROL,
            "planner",
            "planner",
            "the active planner lives, every second",
        ),
        message::<status::ExecutorStatus>(topics::EXECUTOR_STATUS, "node id", "executor", "heartbeat of a node"),
        Contract {
            name: "prediction.requests.v1",
            topic: Some("prediction.requests.<service>"),
            key: "any",
            summary: "Open Inference Protocol v2 inference request",
            written_by: "applications, aggregate, gateway",
            schema: || schemars::schema_for!(prediction::InferRequest),
        },
        Contract {
            name: "prediction.results.v1",
            topic: Some("prediction.results.<service>"),
            key: "same as the request",
            summary: "Open Inference Protocol v2 inference response",
            written_by: "executor",
            schema: || schemars::schema_for!(prediction::InferResponse),
        },
        Contract {
            name: "prediction.batch.v1",
            topic: Some("prediction.batch.<service>"),
            key: "any",
            summary: "inference request of background work: takes idle cores, is no load to scale for, has all the time",
            written_by: "barista score",
            schema: || schemars::schema_for!(prediction::InferRequest),
        },
        Contract {
            name: "prediction.scores.v1",
            topic: Some("prediction.scores.<service>"),
            key: "same as the request",
            summary: "inference response to a request of `prediction.batch.<service>`",
            written_by: "executor",
            schema: || schemars::schema_for!(prediction::InferResponse),
        },
        message::<state::ForecasterState>(topics::FORECASTER_STATE, "series", "forecaster", "state of one series"),
        message::<state::AggregateState>(
            topics::AGGREGATE_STATE,
            "<query>/<partition>",
            "aggregate",
            "state and offsets of one query",
        ),
        Contract {
            name: "profile.v1",
            topic: None,
            key: "",
            summary: "latency and throughput of a model, the file that `barista profile` writes",
            written_by: "barista profile",
            schema: || schemars::schema_for!(profile::Profile),
        },
    ]
}

/// The contract of this name; a topic's name without version finds it too when it is the only one.
pub fn find(name: &str) -> Option<Contract> {
    contracts().into_iter().find(|c| c.name == name || c.name.strip_suffix(".v1") == Some(name))
}

/// Every generated file: name in `schemas/json/` (or beside it) and content.
pub fn generated_files() -> Vec<(String, String)> {
    let pretty = |value: &serde_json::Value| format!("{value:#}\n");
    let mut files: Vec<(String, String)> =
        contracts().iter().map(|c| (format!("json/{}.json", c.name), pretty(&c.json_schema()))).collect();
    files.push(("asyncapi.json".to_owned(), pretty(&crate::asyncapi::document())));
    files
}
