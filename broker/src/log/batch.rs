//! Record batches as they travel and as they lie on the disk (message format 2).
//!
//! A batch is never taken apart on its way from producer to consumer: the broker reads its header,
//! checks it, writes the base offset and leader epoch into it (both outside the checksum) and
//! stores it. Records are looked at only where the protocol needs it: to validate an uncompressed
//! batch, to find a record by time, and to compact.
//!
//! ```text
//! 0 base offset 8 | 8 length 4 | 12 leader epoch 4 | 16 magic 1 | 17 crc 4 | 21 attributes 2 |
//! 23 last offset delta 4 | 27 base timestamp 8 | 35 max timestamp 8 | 43 producer id 8 |
//! 51 producer epoch 2 | 53 base sequence 4 | 57 record count 4 | 61 records
//! ```
//! Left out: message formats 0 and 1, which no client since 2017 writes.

use bytes::{Buf, BufMut, Bytes};
use kafka_protocol::compression::{Decompressor, Gzip, Lz4, Snappy, Zstd};

/// Bytes in front of the records.
pub(crate) const HEADER_LEN: usize = 61;
/// Bytes in front of what the length field counts.
pub(crate) const PREFIX_LEN: usize = 12;
/// Leader epoch of every batch: a single node never elects.
pub(crate) const LEADER_EPOCH: i32 = 0;

const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// What the header of a batch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    pub(crate) base_offset: i64,
    /// Bytes of the whole batch, its prefix included.
    pub(crate) size: usize,
    pub(crate) crc: u32,
    pub(crate) attributes: i16,
    pub(crate) last_offset_delta: i32,
    pub(crate) base_timestamp: i64,
    pub(crate) max_timestamp: i64,
    pub(crate) producer_id: i64,
    pub(crate) producer_epoch: i16,
    pub(crate) base_sequence: i32,
    pub(crate) count: i32,
}

/// Why bytes are not a batch, or not one that may be appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BatchError {
    /// Fewer bytes than a header, or than the header's length field says.
    #[error("the batch is cut off")]
    Short,
    /// The length field is impossible.
    #[error("the batch length is impossible")]
    Length,
    /// Another message format.
    #[error("message format {0} is not supported, only 2")]
    Magic(u8),
    /// The checksum does not fit the content.
    #[error("the checksum does not match")]
    Checksum,
    /// The header contradicts itself or the records.
    #[error("{0}")]
    Content(&'static str),
    /// The records cannot be decompressed.
    #[error("the records cannot be decompressed: {0}")]
    Compression(String),
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`; the records need not be there.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let head: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(BatchError::Short)?;
        let short = BatchError::Short;
        let i64_at = |offset| at(head, offset).map(i64::from_be_bytes).ok_or(short.clone());
        let i32_at = |offset| at(head, offset).map(i32::from_be_bytes).ok_or(short.clone());
        let i16_at = |offset| at(head, offset).map(i16::from_be_bytes).ok_or(short.clone());
        let length = usize::try_from(i32_at(8)?).map_err(|_| BatchError::Length)?;
        let size = length + PREFIX_LEN;
        if size < HEADER_LEN {
            return Err(BatchError::Length);
        }
        if head[16] != 2 {
            return Err(BatchError::Magic(head[16]));
        }
        Ok(Self {
            base_offset: i64_at(0)?,
            size,
            crc: at(head, 17).map(u32::from_be_bytes).ok_or(short.clone())?,
            attributes: i16_at(21)?,
            last_offset_delta: i32_at(23)?,
            base_timestamp: i64_at(27)?,
            max_timestamp: i64_at(35)?,
            producer_id: i64_at(43)?,
            producer_epoch: i16_at(51)?,
            base_sequence: i32_at(53)?,
            count: i32_at(57)?,
        })
    }

    /// Offset of the last record (also when compaction has removed it).
    pub(crate) fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(self.last_offset_delta.into())
    }

    /// Offset behind the last record.
    pub(crate) fn next_offset(&self) -> i64 {
        self.last_offset().saturating_add(1)
    }

    /// Sequence number of the last record; sequences wrap from the largest number to 0.
    pub(crate) fn last_sequence(&self) -> i32 {
        advance_sequence(self.base_sequence, self.last_offset_delta)
    }

    /// Compression codec: 0 none, 1 gzip, 2 snappy, 3 lz4, 4 zstd.
    pub(crate) fn codec(&self) -> i16 {
        self.attributes & CODEC_MASK
    }

    /// Whether timestamps are the time of the append.
    pub(crate) fn is_log_append_time(&self) -> bool {
        self.attributes & LOG_APPEND_TIME != 0
    }

    /// Whether the producer numbers its batches.
    pub(crate) fn is_idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    /// Whether the batch belongs to a transaction.
    pub(crate) fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch holds control records, which only a broker may write.
    pub(crate) fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }
}

/// How a transaction ends, as its marker in a log says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) is_commit: bool,
}

/// A marker: a batch with one control record.
pub(crate) fn marker(ending: Ending, now_ms: i64) -> Vec<u8> {
    // Length, attributes, deltas; key: version 0 and kind; value: version 0 and coordinator epoch.
    let kind = u8::from(ending.is_commit);
    let record = [32, 0, 0, 0, 8, 0, 0, 0, kind, 12, 0, 0, 0, 0, 0, 0, 0];
    let mut out = Vec::with_capacity(HEADER_LEN + record.len());
    out.put_i64(0);
    out.put_i32((HEADER_LEN - PREFIX_LEN + record.len()) as i32);
    out.put_i32(LEADER_EPOCH);
    out.put_u8(2);
    out.put_u32(0);
    out.put_i16(TRANSACTIONAL | CONTROL);
    out.put_i32(0);
    out.put_i64(now_ms);
    out.put_i64(now_ms);
    out.put_i64(ending.producer_id);
    out.put_i16(ending.epoch);
    out.put_i32(-1);
    out.put_i32(1);
    out.extend_from_slice(&record);
    let crc = crc32c::crc32c(&out[21..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    out
}

/// What the marker in a complete batch says; `None` for any other batch.
pub(crate) fn ending(header: &BatchHeader, batch: &[u8]) -> Option<Ending> {
    if !header.is_control() {
        return None;
    }
    let body = records(header, batch).ok()?;
    let key = Records::new(&body).next()?.ok()?.key?;
    let is_commit = match key {
        [_, _, 0, 0] => false,
        [_, _, 0, 1] => true,
        _ => return None,
    };
    Some(Ending { producer_id: header.producer_id, epoch: header.producer_epoch, is_commit })
}

/// `sequence` moved on by `delta`, wrapping from `i32::MAX` to 0 as producers do.
pub(crate) fn advance_sequence(sequence: i32, delta: i32) -> i32 {
    let moved = i64::from(sequence) + i64::from(delta);
    i32::try_from(moved % (i64::from(i32::MAX) + 1)).unwrap_or(0)
}

/// Checks the checksum of a complete batch.
pub(crate) fn verify_crc(header: &BatchHeader, batch: &[u8]) -> Result<(), BatchError> {
    let covered = batch.get(21..header.size).ok_or(BatchError::Short)?;
    if crc32c::crc32c(covered) == header.crc { Ok(()) } else { Err(BatchError::Checksum) }
}

/// Checks everything about a batch that a producer sent, except its place in the log.
pub(crate) fn validate(bytes: &[u8], needs_keys: bool) -> Result<BatchHeader, BatchError> {
    let header = BatchHeader::parse(bytes)?;
    match bytes.len() {
        len if len < header.size => return Err(BatchError::Short),
        len if len > header.size => {
            return Err(BatchError::Content("a produce request holds one batch per partition"));
        }
        _ => {}
    }
    verify_crc(&header, bytes)?;
    if header.codec() > 4 {
        return Err(BatchError::Content("the compression codec is unknown"));
    }
    if header.is_control() {
        return Err(BatchError::Content("control records are for brokers to write"));
    }
    if header.count < 1 || header.last_offset_delta != header.count - 1 {
        return Err(BatchError::Content("the record count and the last offset delta disagree"));
    }
    if header.is_idempotent() && (header.producer_epoch < 0 || header.base_sequence < 0) {
        return Err(BatchError::Content("a producer id needs an epoch and a sequence"));
    }
    if header.is_transactional() && !header.is_idempotent() {
        return Err(BatchError::Content("a transactional batch needs a producer id"));
    }
    if header.codec() == 0 || needs_keys {
        validate_records(&header, &records(&header, bytes)?, needs_keys)?;
    }
    Ok(header)
}

fn validate_records(header: &BatchHeader, bytes: &[u8], needs_keys: bool) -> Result<(), BatchError> {
    let mut expected = 0;
    for record in Records::new(bytes) {
        let record = record?;
        if record.offset_delta != expected {
            return Err(BatchError::Content("record offsets are not consecutive"));
        }
        if needs_keys && record.key.is_none() {
            return Err(BatchError::Content("a compacted topic needs a key in every record"));
        }
        expected += 1;
    }
    if expected == header.count {
        Ok(())
    } else {
        Err(BatchError::Content("the record count does not match the records"))
    }
}

/// Writes what the broker decides into a batch: the base offset and, where the topic asks for it,
/// the time of the append (which the checksum covers, so that it is computed anew).
pub(crate) fn assign(batch: &mut [u8], base_offset: i64, append_time_ms: Option<i64>) {
    batch[0..8].copy_from_slice(&base_offset.to_be_bytes());
    batch[12..16].copy_from_slice(&LEADER_EPOCH.to_be_bytes());
    let attributes = i16::from_be_bytes([batch[21], batch[22]]);
    let stamped = match append_time_ms {
        Some(now) => {
            batch[35..43].copy_from_slice(&now.to_be_bytes());
            attributes | LOG_APPEND_TIME
        }
        None => attributes & !LOG_APPEND_TIME,
    };
    if append_time_ms.is_some() || stamped != attributes {
        batch[21..23].copy_from_slice(&stamped.to_be_bytes());
        let crc = crc32c::crc32c(&batch[21..]);
        batch[17..21].copy_from_slice(&crc.to_be_bytes());
    }
}

/// The records of a complete batch, decompressed if need be.
pub(crate) fn records(header: &BatchHeader, batch: &[u8]) -> Result<Bytes, BatchError> {
    let body = batch.get(HEADER_LEN..header.size).ok_or(BatchError::Short)?;
    let mut body = Bytes::copy_from_slice(body);
    let inflated = match header.codec() {
        0 => return Ok(body),
        1 => Gzip::decompress(&mut body, |inner| Ok(inner.split_off(0))),
        2 => Snappy::decompress(&mut body, |inner| Ok(inner.split_off(0))),
        3 => Lz4::decompress(&mut body, |inner| Ok(inner.split_off(0))),
        4 => Zstd::decompress(&mut body, |inner| Ok(inner.split_off(0))),
        _ => return Err(BatchError::Content("the compression codec is unknown")),
    };
    inflated.map_err(|why| BatchError::Compression(why.to_string()))
}

/// One record of a batch, borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) timestamp_delta: i64,
    pub(crate) offset_delta: i32,
    pub(crate) key: Option<&'a [u8]>,
    /// Whether the value is null: in a compacted topic, a tombstone.
    pub(crate) is_tombstone: bool,
    /// The bytes of the record, its length in front.
    pub(crate) raw: &'a [u8],
}

/// Iterates over uncompressed records.
pub(crate) struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// Iterates over `bytes`, which hold records back to back.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    fn next_record(&mut self) -> Result<Record<'a>, BatchError> {
        let start = self.rest;
        let length = usize::try_from(varlong(&mut self.rest)?).map_err(|_| BatchError::Length)?;
        let mut body = take(&mut self.rest, length)?;
        let raw = &start[..start.len() - self.rest.len()];
        take(&mut body, 1)?;
        let timestamp_delta = varlong(&mut body)?;
        let offset_delta = i32::try_from(varlong(&mut body)?).map_err(|_| BatchError::Length)?;
        let key = nullable(&mut body)?;
        let value = nullable(&mut body)?;
        let headers = varlong(&mut body)?;
        if headers < 0 {
            return Err(BatchError::Length);
        }
        for _ in 0..headers {
            nullable(&mut body)?.ok_or(BatchError::Content("a header key is null"))?;
            nullable(&mut body)?;
        }
        if body.is_empty() {
            Ok(Record { timestamp_delta, offset_delta, key, is_tombstone: value.is_none(), raw })
        } else {
            Err(BatchError::Content("a record is longer than its fields"))
        }
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, BatchError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.next_record();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Result<&'a [u8], BatchError> {
    let (head, rest) = from.split_at_checked(count).ok_or(BatchError::Short)?;
    *from = rest;
    Ok(head)
}

/// A byte string with a zigzag length in front, -1 for null.
fn nullable<'a>(from: &mut &'a [u8]) -> Result<Option<&'a [u8]>, BatchError> {
    match varlong(from)? {
        -1 => Ok(None),
        length => {
            let length = usize::try_from(length).map_err(|_| BatchError::Length)?;
            take(from, length).map(Some)
        }
    }
}

/// A zigzag variable-length number.
fn varlong(from: &mut &[u8]) -> Result<i64, BatchError> {
    let mut value = 0u64;
    for i in 0..10 {
        let byte = from.try_get_u8().map_err(|_| BatchError::Short)?;
        value |= u64::from(byte & 0x7f) << (7 * i);
        if byte < 0x80 {
            return Ok(((value >> 1) as i64) ^ -((value & 1) as i64));
        }
    }
    Err(BatchError::Length)
}

#[cfg(test)]
#[path = "batch_tests.rs"]
mod tests;
