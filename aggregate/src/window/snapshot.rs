//! The state of one partition of an operator as bytes: one Arrow IPC stream, a record batch a pane.
//!
//! The schema's metadata carry the layout's version, the engine's version (accumulator states are its own and not
//! stable between releases), where event time stands, and which partitions the process owned. The last is needed to
//! restore: states of different partitions are not written in one piece, so after a crash one may be older than
//! another although its windows were emitted with the other's; see [`closed_ends`].

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use schemas::EpochMs;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Version of the layout.
pub const STATE_VERSION: u32 = 1;
/// Metadata key of the header.
const HEADER: &str = "barista.aggregate";

/// A state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Not the bytes of a snapshot.
    #[error("state is damaged: {0}")]
    Damaged(String),
    /// Written by another version of the layout or the engine, or for other columns.
    #[error("state is of another version: {0}")]
    OtherVersion(String),
}

impl From<ArrowError> for SnapshotError {
    fn from(error: ArrowError) -> Self {
        SnapshotError::Damaged(error.to_string())
    }
}

/// State of one partition.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Greatest event time seen.
    pub max_ms: Option<EpochMs>,
    /// Windows that end at or before this were emitted.
    pub closed_end_ms: EpochMs,
    /// Partitions that the process owned then, this one included.
    pub owned: BTreeSet<i32>,
    /// State by pane start.
    pub panes: BTreeMap<EpochMs, RecordBatch>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    engine: String,
    max_ms: Option<EpochMs>,
    closed_end_ms: EpochMs,
    owned: BTreeSet<i32>,
    panes: Vec<EpochMs>,
}

impl Snapshot {
    /// Serialises; `schema` is that of every pane.
    pub fn encode(&self, schema: &SchemaRef) -> Result<Vec<u8>, SnapshotError> {
        let header = Header {
            version: STATE_VERSION,
            engine: datafusion::DATAFUSION_VERSION.to_owned(),
            max_ms: self.max_ms,
            closed_end_ms: self.closed_end_ms,
            owned: self.owned.clone(),
            panes: self.panes.keys().copied().collect(),
        };
        let text = serde_json::to_string(&header).map_err(|e| SnapshotError::Damaged(e.to_string()))?;
        let with_header =
            Arc::new(Schema::new_with_metadata(schema.fields().clone(), [(HEADER.to_owned(), text)].into()));
        let mut writer = StreamWriter::try_new(Vec::new(), &with_header)?;
        for pane in self.panes.values() {
            writer.write(&RecordBatch::try_new(Arc::clone(&with_header), pane.columns().to_vec())?)?;
        }
        writer.finish()?;
        Ok(writer.into_inner()?)
    }

    /// Reads bytes that [`Snapshot::encode`] wrote for `schema`.
    pub fn decode(bytes: &[u8], schema: &SchemaRef) -> Result<Self, SnapshotError> {
        let reader = StreamReader::try_new(bytes, None)?;
        let header = header_of(&reader.schema())?;
        if reader.schema().fields() != schema.fields() {
            return Err(SnapshotError::OtherVersion("its columns are not the query's".to_owned()));
        }
        let batches = reader
            .map(|batch| RecordBatch::try_new(Arc::clone(schema), batch?.columns().to_vec()))
            .collect::<Result<Vec<RecordBatch>, ArrowError>>()?;
        if batches.len() != header.panes.len() {
            let (found, announced) = (batches.len(), header.panes.len());
            return Err(SnapshotError::Damaged(format!("{found} panes where the header announces {announced}")));
        }
        Ok(Snapshot {
            max_ms: header.max_ms,
            closed_end_ms: header.closed_end_ms,
            owned: header.owned,
            panes: header.panes.into_iter().zip(batches).collect(),
        })
    }
}

fn header_of(schema: &Schema) -> Result<Header, SnapshotError> {
    let text = schema.metadata().get(HEADER).ok_or_else(|| SnapshotError::Damaged("no header".to_owned()))?;
    let header: Header = serde_json::from_str(text).map_err(|e| SnapshotError::Damaged(e.to_string()))?;
    if header.version != STATE_VERSION || header.engine != datafusion::DATAFUSION_VERSION {
        return Err(SnapshotError::OtherVersion(format!("layout {}, engine {}", header.version, header.engine)));
    }
    Ok(header)
}

/// For each partition, up to where its windows were emitted: what its own state says, or the newer state of another
/// partition that was owned together with it. (That one was written after those windows were delivered.)
pub fn closed_ends(states: &BTreeMap<i32, Snapshot>) -> BTreeMap<i32, EpochMs> {
    states
        .keys()
        .map(|partition| {
            let together = states.values().filter(|s| s.owned.contains(partition));
            (*partition, together.map(|s| s.closed_end_ms).max().unwrap_or(EpochMs::MIN))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field};

    fn schema(name: &str) -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new(name, DataType::Int64, true)]))
    }

    fn example(owned: &[i32], closed_end_ms: i64) -> Snapshot {
        let batch = |v: i64| RecordBatch::try_new(schema("n"), vec![Arc::new(Int64Array::from(vec![v]))]).unwrap();
        Snapshot {
            max_ms: Some(71),
            closed_end_ms,
            owned: owned.iter().copied().collect(),
            panes: [(40, batch(1)), (70, batch(2))].into(),
        }
    }

    #[test]
    fn bytes_round_trip_also_without_panes() {
        for snapshot in [example(&[1, 2], 40), Snapshot { panes: BTreeMap::new(), ..example(&[0], i64::MIN) }] {
            let bytes = snapshot.encode(&schema("n")).unwrap();
            assert_eq!(Snapshot::decode(&bytes, &schema("n")).unwrap(), snapshot);
        }
    }

    #[test]
    fn other_columns_and_damage_are_told_apart() {
        let bytes = example(&[0], 0).encode(&schema("n")).unwrap();
        let other = Snapshot::decode(&bytes, &schema("m"));
        assert!(matches!(other, Err(SnapshotError::OtherVersion(_))), "{other:?}");
        for damaged in [&bytes[..9], &[], b"hello"] {
            let result = Snapshot::decode(damaged, &schema("n"));
            assert!(matches!(result, Err(SnapshotError::Damaged(_))), "{result:?}");
        }
    }

    #[test]
    fn an_older_state_learns_from_a_newer_one_of_the_same_owner_only() {
        let states = [(0, example(&[0, 1], 60)), (1, example(&[0, 1], 40)), (2, example(&[2], 20))].into();
        assert_eq!(closed_ends(&states), [(0, 60), (1, 60), (2, 20)].into());
    }
}
