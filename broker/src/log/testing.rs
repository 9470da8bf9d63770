//! Batches for tests, made by the protocol crate's own encoder.

use bytes::{Bytes, BytesMut};
use kafka_protocol::records::{
    Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

/// A record to be written: key, value (`None` is a tombstone), timestamp.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: Option<String>,
    pub(crate) value: Option<String>,
    pub(crate) timestamp: i64,
}

/// An entry with a key and a value.
pub(crate) fn entry(key: &str, value: &str, timestamp: i64) -> Entry {
    Entry { key: Some(key.to_owned()), value: Some(value.to_owned()), timestamp }
}

/// What a batch is made with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) compression: Compression,
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
}

/// Not compressed, not numbered.
pub(crate) const PLAIN: Made = Made { compression: Compression::None, producer_id: -1, epoch: -1, sequence: -1 };

/// A batch as a producer sends it.
pub(crate) fn batch(entries: &[Entry], made: Made) -> Vec<u8> {
    let records: Vec<Record> = entries
        .iter()
        .zip(0..)
        .map(|(entry, i)| Record {
            transactional: false,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: made.producer_id,
            producer_epoch: made.epoch,
            timestamp_type: TimestampType::Creation,
            offset: i,
            sequence: made.sequence.wrapping_add(i as i32),
            timestamp: entry.timestamp,
            key: entry.key.clone().map(Bytes::from),
            value: entry.value.clone().map(Bytes::from),
            headers: Default::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: made.compression };
    RecordBatchEncoder::encode(&mut out, &records, &options).expect("a batch");
    let mut out = out.to_vec();
    if made.producer_id < 0 {
        // The encoder derives a base sequence; a producer without id has none.
        out[53..57].copy_from_slice(&(-1i32).to_be_bytes());
        let crc = crc32c::crc32c(&out[21..]);
        out[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    out
}

/// The records in stored bytes: offset, key, value.
pub(crate) fn decode(bytes: &[u8]) -> Vec<(i64, Option<String>, Option<String>)> {
    let mut bytes = Bytes::copy_from_slice(bytes);
    let text = |b: Bytes| String::from_utf8(b.to_vec()).expect("text");
    RecordBatchDecoder::decode_all(&mut bytes)
        .expect("sound batches")
        .into_iter()
        .flat_map(|set| set.records)
        .map(|record| (record.offset, record.key.map(text), record.value.map(text)))
        .collect()
}
