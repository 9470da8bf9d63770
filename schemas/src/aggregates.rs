//! `transit.aggregates`: one closed window row of a query.

use crate::EpochMs;
use crate::message::Message;
use crate::tag::schema_tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

schema_tag!(/// `transit.aggregates.v1`
    WindowRowTag = "transit.aggregates.v1");

/// One row of one closed window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WindowRow {
    /// Always `transit.aggregates.v1`.
    pub schema: WindowRowTag,
    /// Name of the query.
    pub query: String,
    /// Values of the group columns, joined by `/` in the query's order.
    pub group_key: String,
    /// Start of the window, event time, inclusive.
    pub window_start_ms: EpochMs,
    /// End of the window, event time, exclusive.
    pub window_end_ms: EpochMs,
    /// Every column of the query's result by name.
    pub columns: serde_json::Map<String, serde_json::Value>,
}

impl Message for WindowRow {
    const SCHEMA: &'static str = WindowRowTag::NAME;

    fn key(&self) -> String {
        format!("{}/{}", self.query, self.group_key)
    }
}
