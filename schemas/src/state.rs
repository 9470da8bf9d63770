//! `forecaster.state` and `aggregate.state`: versioned state that its owner alone reads back.

use crate::EpochMs;
use crate::message::Message;
use crate::tag::schema_tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

schema_tag!(/// `forecaster.state.v1`
    ForecasterStateTag = "forecaster.state.v1");
schema_tag!(/// `aggregate.state.v1`
    AggregateStateTag = "aggregate.state.v1");

/// State of one series, as of the sample that it names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecasterState {
    /// Always `forecaster.state.v1`.
    pub schema: ForecasterStateTag,
    /// Prediction service.
    pub service: String,
    /// Start of the last interval that is in the state.
    pub last_start_ms: EpochMs,
    /// Offset in its partition of `workload.observed` after the last record that is in the state: after a restart,
    /// records before it whose interval is in the state are not taken twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<i64>,
    /// Version of `model`'s layout; a reader drops what it does not know and starts cold, and says so.
    pub model_version: u32,
    /// The model's own serialised form.
    pub model: serde_json::Value,
}

impl Message for ForecasterState {
    const SCHEMA: &'static str = ForecasterStateTag::NAME;

    fn key(&self) -> String {
        self.service.clone()
    }
}

/// State of one query over the partitions that one aggregate process owns, with the input offsets it stands at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AggregateState {
    /// Always `aggregate.state.v1`.
    pub schema: AggregateStateTag,
    /// Query name.
    pub query: String,
    /// Input partition.
    pub partition: i32,
    /// Next input offset to read, by topic.
    pub offsets: BTreeMap<String, i64>,
    /// Version of `state`'s layout.
    pub state_version: u32,
    /// SQL text that the state belongs to; another text starts empty.
    pub sql: String,
    /// Serialised panes (Arrow IPC), base 64.
    pub state: String,
}

impl Message for AggregateState {
    const SCHEMA: &'static str = AggregateStateTag::NAME;

    fn key(&self) -> String {
        format!("{}/{}", self.query, self.partition)
    }
}
