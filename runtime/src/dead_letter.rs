//! Dead letters: the original bytes and key under headers that say why.

use crate::ports::{OutRecord, Record};
use schemas::headers::{self, Reason};

/// A record for a rejected topic (full name): the original's key, bytes and headers, and the header set of the
/// contract on top.
pub fn dead_letter(topic: &str, original: &Record, reason: Reason, detail: &str) -> OutRecord {
    let mut record = OutRecord::new(topic);
    record.key = original.key.clone();
    record.value = original.value.clone();
    record.headers = original.headers.clone();
    record
        .header(headers::REASON, reason.as_str())
        .header(headers::DETAIL, detail.to_owned())
        .header(headers::SOURCE_TOPIC, original.topic.clone())
        .header(headers::SOURCE_PARTITION, original.partition.to_string())
        .header(headers::SOURCE_OFFSET, original.offset.to_string())
}
