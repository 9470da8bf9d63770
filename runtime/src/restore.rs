//! Reading a compacted topic to its end, for state and control.

use crate::ports::{Bus, PortError, Record, Source, SourceEvent, SourceSpec, Start};
use std::collections::BTreeMap;

/// Newest record of each key, tombstones left out, and the source that goes on from there.
pub struct Restored {
    /// By key.
    pub newest: BTreeMap<String, Record>,
    /// Continues after the last record read.
    pub source: Box<dyn Source>,
}

/// Reads `topic` (full name) from its beginning to the end that it has now.
pub async fn read_to_end(bus: &dyn Bus, topic: &str) -> Result<Restored, PortError> {
    let mut source = bus.source(SourceSpec::assign(vec![topic.to_owned()], Start::Beginning)).await?;
    let mut newest = BTreeMap::new();
    loop {
        match source.next().await? {
            SourceEvent::Record(record) if record.value.is_some() => {
                newest.insert(record.key_str().to_owned(), record);
            }
            SourceEvent::Record(record) => {
                newest.remove(record.key_str());
            }
            SourceEvent::CaughtUp => return Ok(Restored { newest, source }),
            SourceEvent::Assigned(_) | SourceEvent::Revoked(..) => {}
        }
    }
}
