//! Compaction: closed segments are rewritten to the newest record of each key.
//!
//! Offsets never change: a rewritten batch keeps its base offset, its last offset and its place in
//! the producer's numbering; only records disappear. The newest record of a key is never removed,
//! except a tombstone whose time has come: it goes when the segment it is in was first compacted
//! (so that no older value is left in front of it) at least `delete.retention.ms` ago. Records
//! without a key are kept. The last batch of a segment always stays, empty if need be, so that the
//! segment's end can be read from its file.
//!
//! Records of aborted transactions are not the newest of anything and are removed. Segments that
//! may hold records of an open transaction wait. Markers stay as long as a record of their
//! transaction does.
//!
//! Memory is bounded: at most [`MAX_KEYS`] keys are looked at in one pass, 16 bytes of hash and an
//! offset each; what lies behind them waits for the next pass. Two keys with the same 128-bit hash
//! would be taken for one; that is as likely as a memory error nobody notices.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::{BufMut, BytesMut};
use kafka_protocol::compression::{Compressor, Gzip, Lz4, Snappy, Zstd};
use twox_hash::XxHash3_128;

use super::batch::{self, BatchHeader, HEADER_LEN, PREFIX_LEN, Record, Records};
use super::rules::LogRules;
use super::segment::{self, Headers, ReadError};
use super::state::{Aborted, Segment};

/// Keys looked at in one pass.
const MAX_KEYS: usize = 1_000_000;

/// What a pass works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan<'a> {
    /// Records before this offset are deleted already.
    pub(crate) start: i64,
    /// Records from this offset on may belong to open transactions, and are left alone.
    pub(crate) stable_end: i64,
    /// Aborted transactions of the whole log: their markers may lie behind the closed segments.
    pub(crate) aborted: &'a [Aborted],
    /// Wall clock.
    pub(crate) now_ms: i64,
    /// Settings of the topic.
    pub(crate) rules: &'a LogRules,
}

/// What a pass found for one segment.
#[derive(Debug)]
pub(crate) struct Replacement {
    /// The segment as it is to be known from now on.
    pub(crate) segment: Segment,
    /// Size of the file that is replaced.
    old_size: u64,
    /// The rewritten records; `None` when the file stays as it is.
    temporary: Option<PathBuf>,
    /// No record is left.
    pub(crate) is_empty: bool,
}

impl Plan<'_> {
    /// The segments a pass may touch: a prefix of the closed ones, old enough.
    fn eligible<'s>(&self, closed: &'s [Segment]) -> &'s [Segment] {
        let newest = self.now_ms.saturating_sub(self.rules.min_compaction_lag_ms);
        let lagging =
            |s: &Segment| s.end > self.stable_end || (self.rules.min_compaction_lag_ms > 0 && s.max_timestamp > newest);
        let count = closed.iter().position(lagging).unwrap_or(closed.len());
        &closed[..count]
    }

    fn is_due(&self, segments: &[Segment]) -> bool {
        let total: u64 = segments.iter().map(|s| s.size).sum();
        let dirty: u64 = segments.iter().filter(|s| s.compacted_ms.is_none()).map(|s| s.size).sum();
        let is_dirty = dirty > 0 && dirty as f64 >= total as f64 * self.rules.min_dirty_ratio;
        is_dirty || segments.iter().any(|s| s.has_tombstones && self.tombstones_expired(s))
    }

    fn tombstones_expired(&self, segment: &Segment) -> bool {
        let keep = self.rules.delete_retention_ms;
        segment.compacted_ms.is_some_and(|at| self.now_ms.saturating_sub(at) >= keep)
    }
}

/// The newest offset of each key, over the segments of a pass.
#[derive(Debug, Default)]
struct Newest {
    offsets: HashMap<u128, i64>,
    /// Records from this offset on were not looked at.
    until: i64,
}

/// Compacts `closed` (oldest first) where it is due. Nothing is replaced yet.
pub(crate) fn run(dir: &Path, closed: &[Segment], plan: &Plan<'_>) -> Result<Vec<Replacement>, ReadError> {
    let segments = plan.eligible(closed);
    if !plan.is_due(segments) {
        return Ok(Vec::new());
    }
    let newest = collect(dir, segments, plan.aborted)?;
    let mut replacements = Vec::new();
    let mut unended = BTreeSet::new();
    for segment in segments.iter().take_while(|segment| segment.end <= newest.until) {
        replacements.push(rewrite(dir, segment, plan, Pass { newest: &newest, unended: &mut unended })?);
    }
    Ok(replacements)
}

fn collect(dir: &Path, segments: &[Segment], aborted: &[Aborted]) -> Result<Newest, ReadError> {
    let mut newest = Newest::default();
    for segment in segments {
        for_each_batch(dir, segment, |header, bytes| {
            if header.is_control() || aborted.iter().any(|transaction| transaction.covers(header)) {
                return Ok(());
            }
            let inflated = batch::records(header, bytes)?;
            for record in Records::new(&inflated) {
                let record = record?;
                if let Some(key) = record.key {
                    let offset = header.base_offset + i64::from(record.offset_delta);
                    newest.offsets.insert(XxHash3_128::oneshot(key), offset);
                }
            }
            Ok(())
        })?;
        newest.until = segment.end;
        if newest.offsets.len() >= MAX_KEYS {
            break;
        }
    }
    Ok(newest)
}

fn for_each_batch(
    dir: &Path,
    segment: &Segment,
    mut visit: impl FnMut(&BatchHeader, &[u8]) -> Result<(), ReadError>,
) -> Result<(), ReadError> {
    let file = File::open(segment::log_path(dir, segment.base))?;
    let mut headers = Headers::new(&file, 0, segment.size);
    while let Some(placed) = headers.next_batch()? {
        let placed = placed?;
        let bytes = segment::read_batch(&file, &placed)?;
        batch::verify_crc(&placed.header, &bytes)?;
        visit(&placed.header, &bytes)?;
    }
    Ok(())
}

/// What a pass carries from segment to segment.
struct Pass<'a> {
    newest: &'a Newest,
    /// Producers of which transactional records were kept since their last marker.
    unended: &'a mut BTreeSet<i64>,
}

fn rewrite(dir: &Path, old: &Segment, plan: &Plan<'_>, pass: Pass<'_>) -> Result<Replacement, ReadError> {
    let temporary = segment::log_path(dir, old.base).with_extension("tmp");
    let mut out = Rewriter {
        file: BufWriter::new(File::create(&temporary)?),
        segment: Segment::empty(old.base, plan.rules.segment_bytes),
        records: 0,
        changed: false,
    };
    let drop_tombstones = plan.tombstones_expired(old);
    let Pass { newest, unended } = pass;
    let aborted = plan.aborted;
    let mut kept_aborted = old.aborted.clone();
    for_each_batch(dir, old, |header, bytes| {
        let is_last = header.next_offset() == old.end;
        if header.is_control() {
            // A marker goes, after the delay of tombstones, when nothing is left that needs it.
            let is_needed = unended.remove(&header.producer_id);
            if is_needed || !drop_tombstones || is_last {
                return out.marker(header, bytes);
            }
            kept_aborted.retain(|transaction| transaction.last != header.base_offset);
            out.changed = true;
            return Ok(());
        }
        let is_aborted = aborted.iter().any(|transaction| transaction.covers(header));
        let keep = |record: &Record<'_>, offset: i64| {
            if is_aborted {
                return false;
            }
            let Some(key) = record.key else { return offset >= plan.start };
            let is_newest = newest.offsets.get(&XxHash3_128::oneshot(key)) == Some(&offset);
            offset >= plan.start && is_newest && !(record.is_tombstone && drop_tombstones)
        };
        let before = out.records;
        out.batch(header, bytes, is_last, keep)?;
        if header.is_transactional() && out.records > before {
            unended.insert(header.producer_id);
        }
        Ok(())
    })?;
    let mut segment = out.segment;
    segment.aborted = kept_aborted;
    segment.first_append_ms = old.first_append_ms;
    segment.compacted_ms = old.compacted_ms.or(Some(plan.now_ms));
    let temporary = if out.changed {
        out.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Some(temporary)
    } else {
        fs::remove_file(&temporary)?;
        None
    };
    Ok(Replacement { segment, old_size: old.size, temporary, is_empty: out.records == 0 })
}

struct Rewriter {
    file: BufWriter<File>,
    segment: Segment,
    records: usize,
    changed: bool,
}

impl Rewriter {
    fn batch(
        &mut self,
        header: &BatchHeader,
        bytes: &[u8],
        is_last: bool,
        keep: impl Fn(&Record<'_>, i64) -> bool,
    ) -> Result<(), ReadError> {
        let inflated = batch::records(header, bytes)?;
        let mut kept = Vec::new();
        for record in Records::new(&inflated) {
            let record = record?;
            if keep(&record, header.base_offset + i64::from(record.offset_delta)) {
                kept.push(record);
            }
        }
        self.records += kept.len();
        self.segment.has_tombstones |= kept.iter().any(|r| r.is_tombstone && r.key.is_some());
        if kept.len() == usize::try_from(header.count).unwrap_or(0) {
            return self.write(header, bytes);
        }
        self.changed = true;
        if kept.is_empty() && !is_last {
            return Ok(());
        }
        let smaller = with_records(header, bytes, &kept)?;
        self.write(&BatchHeader::parse(&smaller)?, &smaller)
    }

    /// Keeps a marker; the segment is looked at again once it may go.
    fn marker(&mut self, header: &BatchHeader, bytes: &[u8]) -> Result<(), ReadError> {
        self.records += 1;
        self.segment.has_tombstones = true;
        self.write(header, bytes)
    }

    fn write(&mut self, header: &BatchHeader, bytes: &[u8]) -> Result<(), ReadError> {
        self.file.write_all(bytes)?;
        self.segment.note(header, 0);
        Ok(())
    }
}

/// The same batch with only `kept` of its records.
fn with_records(header: &BatchHeader, bytes: &[u8], kept: &[Record<'_>]) -> Result<Vec<u8>, ReadError> {
    let mut plain = BytesMut::with_capacity(kept.iter().map(|r| r.raw.len()).sum());
    kept.iter().for_each(|record| plain.extend_from_slice(record.raw));
    let codec = if kept.is_empty() { 0 } else { header.codec() };
    let body = compress(codec, &plain)?;
    let mut out = bytes[..HEADER_LEN].to_vec();
    out.extend_from_slice(&body);
    let length = i32::try_from(out.len() - PREFIX_LEN).map_err(io::Error::other)?;
    out[8..12].copy_from_slice(&length.to_be_bytes());
    let attributes = (header.attributes & !0x07) | codec;
    out[21..23].copy_from_slice(&attributes.to_be_bytes());
    let newest = kept.iter().map(|r| header.base_timestamp.saturating_add(r.timestamp_delta)).max();
    if let (Some(newest), false) = (newest, header.is_log_append_time()) {
        out[35..43].copy_from_slice(&newest.to_be_bytes());
    }
    out[57..61].copy_from_slice(&(kept.len() as i32).to_be_bytes());
    let crc = crc32c::crc32c(&out[21..]);
    out[17..21].copy_from_slice(&crc.to_be_bytes());
    Ok(out)
}

fn compress(codec: i16, plain: &[u8]) -> Result<BytesMut, ReadError> {
    let mut out = BytesMut::new();
    let fill = |inner: &mut BytesMut| {
        inner.put_slice(plain);
        Ok(())
    };
    let done = match codec {
        1 => Gzip::compress(&mut out, fill),
        2 => Snappy::compress(&mut out, fill),
        3 => Lz4::compress(&mut out, fill),
        4 => Zstd::compress(&mut out, fill),
        _ => fill(&mut out),
    };
    done.map_err(|why| batch::BatchError::Compression(why.to_string()))?;
    Ok(out)
}

impl Replacement {
    /// Puts the rewritten file in the place of the old one. The index goes first: between the two
    /// steps a crash finds a segment without index, which is scanned.
    pub(crate) fn install(self, dir: &Path) -> io::Result<Segment> {
        let base = self.segment.base;
        let known = segment::read_index(dir, base, self.old_size);
        if let Some(temporary) = &self.temporary {
            let index = segment::index_path(dir, base);
            if index.exists() {
                fs::remove_file(index)?;
            }
            fs::rename(temporary, segment::log_path(dir, base))?;
            segment::sync_dir(dir)?;
        }
        if let Some((_, producers)) = known {
            segment::write_index(dir, &self.segment, &producers, true)?;
        }
        Ok(self.segment)
    }

    /// Throws the rewritten file away.
    pub(crate) fn discard(self) -> io::Result<()> {
        self.temporary.map_or(Ok(()), fs::remove_file)
    }
}

#[cfg(test)]
#[path = "compaction_tests.rs"]
mod tests;
