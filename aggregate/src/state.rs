//! `aggregate.state`: what a restart goes on from.
//!
//! One record a query and partition: the panes, and the next input offset. Both are in one message, so they always
//! belong together. A state of another SQL text, layout or engine version is not used: the query then begins with
//! empty windows at the group's committed offset, and the log says so.

use crate::base64;
use crate::window::{STATE_VERSION, Snapshot, WindowOperator};
use runtime::Record;
use schemas::Message;
use schemas::state::{AggregateState, AggregateStateTag};
use std::collections::BTreeMap;

/// A usable state.
#[derive(Debug, Clone)]
pub struct Saved {
    /// Panes and event time.
    pub snapshot: Snapshot,
    /// Next input offset.
    pub offset: i64,
}

/// Newest record of each key of the state topic.
pub type StateRecords = BTreeMap<String, Record>;

/// The message for a snapshot; `topic` is the input's full name.
pub fn message(query: &str, sql: &str, partition: i32, topic: &str, offset: i64, snapshot: &[u8]) -> AggregateState {
    AggregateState {
        schema: AggregateStateTag,
        query: query.to_owned(),
        partition,
        offsets: BTreeMap::from([(topic.to_owned(), offset)]),
        state_version: STATE_VERSION,
        sql: sql.to_owned(),
        state: base64::encode(snapshot),
    }
}

/// Usable states of a query by partition, of all partitions in the topic (not only those that are ours).
pub fn of_query(
    records: &StateRecords,
    query: &str,
    sql: &str,
    topic: &str,
    operator: &WindowOperator,
) -> BTreeMap<i32, Saved> {
    let prefix = format!("{query}/");
    let own = records.iter().filter(|(key, _)| key.starts_with(&prefix));
    own.filter_map(|(key, record)| match read(record, query, sql, topic, operator) {
        Ok((partition, saved)) => Some((partition, saved)),
        Err(reason) => {
            tracing::warn!(key, reason, "state is not used; windows that were open in it begin empty");
            None
        }
    })
    .collect()
}

fn read(
    record: &Record,
    query: &str,
    sql: &str,
    topic: &str,
    operator: &WindowOperator,
) -> Result<(i32, Saved), String> {
    let value = record.value.as_deref().unwrap_or_default();
    let state = AggregateState::decode(value).map_err(|e| e.to_string())?;
    if state.query != query || state.sql != sql {
        return Err("the query's SQL is another now".to_owned());
    }
    if state.state_version != STATE_VERSION {
        return Err(format!("layout {} where {STATE_VERSION} is known", state.state_version));
    }
    let offset = *state.offsets.get(topic).ok_or_else(|| format!("no offset of {topic}"))?;
    let bytes = base64::decode(&state.state).ok_or_else(|| "not base 64".to_owned())?;
    let snapshot = operator.decode(&bytes).map_err(|e| e.to_string())?;
    Ok((state.partition, Saved { snapshot, offset }))
}
