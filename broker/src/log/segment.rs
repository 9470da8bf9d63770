//! Segment files and what lies beside them.
//!
//! `<base offset>.log` holds batches back to back exactly as they travel. When a segment is closed,
//! `<base offset>.index` is written beside it: its size, its index and the producers as of its end,
//! under a checksum, so that a restart need not read it. An absent or damaged index file costs a
//! scan, nothing else.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes};

use super::batch::{self, BatchError, BatchHeader, HEADER_LEN};
use super::index::SparseIndex;
use super::producers::Producers;
use super::state::{Aborted, Segment};

/// Bytes read at a time when only headers are wanted.
const WINDOW: usize = 64 << 10;
const INDEX_MAGIC: u32 = 0x4252_4932;

/// Path of the records of a segment.
pub(crate) fn log_path(dir: &Path, base: i64) -> PathBuf {
    dir.join(format!("{base:020}.log"))
}

/// Path of the index beside a closed segment.
pub(crate) fn index_path(dir: &Path, base: i64) -> PathBuf {
    dir.join(format!("{base:020}.index"))
}

/// The base offset in a file name that [`log_path`] made.
pub(crate) fn base_of(path: &Path) -> Option<i64> {
    let is_log = path.extension().is_some_and(|extension| extension == "log");
    let stem = path.file_stem()?.to_str()?;
    if is_log && stem.len() == 20 { stem.parse().ok().filter(|base| *base >= 0) } else { None }
}

/// Opens a segment to write to, creating it when it is not there.
pub(crate) fn open_active(dir: &Path, base: i64) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(log_path(dir, base))
}

/// Reads exactly `length` bytes at `position`.
pub(crate) fn read_at(file: &File, position: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, position)?;
    Ok(bytes)
}

/// Makes a rename or a new file in `dir` survive a power cut.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Writes `bytes` to `path` so that a reader sees the old content or all of the new.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    std::fs::write(&temporary, bytes)?;
    if durable {
        File::open(&temporary)?.sync_all()?;
    }
    std::fs::rename(&temporary, path)?;
    match path.parent() {
        Some(dir) if durable => sync_dir(dir),
        _ => Ok(()),
    }
}

/// A batch header and where its batch begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed {
    pub(crate) position: u64,
    pub(crate) header: BatchHeader,
}

/// Walks over the batches of a segment, reading no more than it must.
#[derive(Debug)]
pub(crate) struct Headers<'a> {
    file: &'a File,
    position: u64,
    limit: u64,
    window: Vec<u8>,
    window_at: u64,
}

impl<'a> Headers<'a> {
    /// Walks from `position`, where a batch begins, to `limit`.
    pub(crate) fn new(file: &'a File, position: u64, limit: u64) -> Self {
        Self { file, position, limit, window: Vec::new(), window_at: 0 }
    }

    /// The next batch; `Err` in the inner result when there are bytes that are not one.
    pub(crate) fn next_batch(&mut self) -> io::Result<Option<Result<Placed, BatchError>>> {
        let left = self.limit.saturating_sub(self.position);
        if left == 0 {
            return Ok(None);
        }
        if left < HEADER_LEN as u64 {
            return Ok(Some(Err(BatchError::Short)));
        }
        let position = self.position;
        let parsed = BatchHeader::parse(self.head()?);
        Ok(Some(parsed.and_then(|header| {
            if header.size as u64 > left {
                return Err(BatchError::Short);
            }
            self.position += header.size as u64;
            Ok(Placed { position, header })
        })))
    }

    fn head(&mut self) -> io::Result<&[u8]> {
        let offset = self.position.checked_sub(self.window_at).map_or(usize::MAX, |n| n as usize);
        let held = offset.checked_add(HEADER_LEN).is_some_and(|end| end <= self.window.len());
        if held {
            return Ok(&self.window[offset..]);
        }
        let left = self.limit - self.position;
        let length = usize::try_from(left).unwrap_or(WINDOW).min(WINDOW);
        self.window = read_at(self.file, self.position, length)?;
        self.window_at = self.position;
        Ok(&self.window)
    }
}

/// Why records could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What lies on the disk.
    #[error(transparent)]
    Batch(#[from] BatchError),
}

/// What to read from a segment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    /// Where a batch at or before the target begins.
    pub(crate) position: u64,
    /// Where the batches end.
    pub(crate) limit: u64,
    /// First offset wanted.
    pub(crate) offset: i64,
    /// Offset behind the last record of the segment.
    pub(crate) end: i64,
    /// Batches from this offset on are not wanted.
    pub(crate) until: i64,
    /// Most bytes wanted.
    pub(crate) max_bytes: usize,
    /// Return the first batch even if it is larger than `max_bytes`.
    pub(crate) at_least_one: bool,
}

/// Reads whole batches, the first of which holds `span.offset` or what follows it.
pub(crate) fn read_batches(file: &File, span: Span) -> Result<Bytes, ReadError> {
    let Some(first) = find_batch(file, span)? else { return Ok(Bytes::new()) };
    if first.header.base_offset >= span.until {
        return Ok(Bytes::new());
    }
    let left = usize::try_from(span.limit - first.position).unwrap_or(usize::MAX);
    if first.header.size > span.max_bytes {
        if !span.at_least_one {
            return Ok(Bytes::new());
        }
        return Ok(read_at(file, first.position, first.header.size)?.into());
    }
    let mut bytes = read_at(file, first.position, left.min(span.max_bytes))?;
    bytes.truncate(whole_batches(&bytes, span.end.min(span.until)));
    Ok(bytes.into())
}

/// Bytes of the whole batches at the start of `bytes`, none of which ends behind offset `limit`.
fn whole_batches(bytes: &[u8], limit: i64) -> usize {
    let mut end = 0;
    while let Ok(header) = BatchHeader::parse(&bytes[end..]) {
        match end.checked_add(header.size) {
            Some(next) if next <= bytes.len() && header.next_offset() <= limit => end = next,
            _ => break,
        }
    }
    end
}

/// Offset behind the last of the batches in `bytes`.
pub(crate) fn end_offset(bytes: &[u8]) -> Option<i64> {
    let mut rest = bytes;
    let mut end = None;
    while let Ok(header) = BatchHeader::parse(rest) {
        end = Some(header.next_offset());
        rest = rest.get(header.size..).unwrap_or_default();
    }
    end
}

fn find_batch(file: &File, span: Span) -> Result<Option<Placed>, ReadError> {
    let mut headers = Headers::new(file, span.position, span.limit);
    while let Some(placed) = headers.next_batch()? {
        let placed = placed?;
        if placed.header.next_offset() > span.end {
            return Err(BatchError::Content("a batch claims offsets behind its segment").into());
        }
        if placed.header.last_offset() >= span.offset {
            return Ok(Some(placed));
        }
    }
    Ok(None)
}

/// Reads one complete batch.
pub(crate) fn read_batch(file: &File, placed: &Placed) -> io::Result<Vec<u8>> {
    read_at(file, placed.position, placed.header.size)
}

/// Writes the index beside a closed segment.
pub(crate) fn write_index(dir: &Path, segment: &Segment, producers: &Producers, durable: bool) -> io::Result<()> {
    let mut body = Vec::new();
    body.put_i64(segment.base);
    body.put_i64(segment.end);
    body.put_u64(segment.size);
    body.put_i64(segment.max_timestamp);
    body.put_i64(segment.first_append_ms.unwrap_or(-1));
    body.put_i64(segment.compacted_ms.unwrap_or(-1));
    body.put_u8(segment.has_tombstones.into());
    body.put_u32(segment.aborted.len() as u32);
    for aborted in &segment.aborted {
        body.put_i64(aborted.producer_id);
        body.put_i64(aborted.first);
        body.put_i64(aborted.last);
    }
    segment.index.encode(&mut body);
    producers.encode(&mut body);
    let mut file = Vec::with_capacity(body.len() + 8);
    file.put_u32(INDEX_MAGIC);
    file.put_u32(crc32c::crc32c(&body));
    file.extend_from_slice(&body);
    replace_file(&index_path(dir, segment.base), &file, durable)
}

/// Reads the index beside a closed segment of `size` bytes; `None` if it is absent, damaged or
/// about another state of the segment.
pub(crate) fn read_index(dir: &Path, base: i64, size: u64) -> Option<(Segment, Producers)> {
    let bytes = std::fs::read(index_path(dir, base)).ok()?;
    let mut from = bytes.as_slice();
    let magic = from.try_get_u32().ok()?;
    let crc = from.try_get_u32().ok()?;
    if magic != INDEX_MAGIC || crc != crc32c::crc32c(from) {
        return None;
    }
    let from = &mut from;
    let mut segment = Segment::empty(from.try_get_i64().ok()?, 0);
    segment.end = from.try_get_i64().ok()?;
    segment.size = from.try_get_u64().ok()?;
    segment.max_timestamp = from.try_get_i64().ok()?;
    segment.first_append_ms = Some(from.try_get_i64().ok()?).filter(|at| *at >= 0);
    segment.compacted_ms = Some(from.try_get_i64().ok()?).filter(|at| *at >= 0);
    segment.has_tombstones = from.try_get_u8().ok()? != 0;
    for _ in 0..from.try_get_u32().ok()? {
        let (producer_id, first) = (from.try_get_i64().ok()?, from.try_get_i64().ok()?);
        segment.aborted.push(Aborted { producer_id, first, last: from.try_get_i64().ok()? });
    }
    segment.index = SparseIndex::decode(from)?;
    let producers = Producers::decode(from)?;
    (segment.base == base && segment.size == size).then_some((segment, producers))
}

/// Finds the first record of a batch at or after `from_offset` with a time of at least `timestamp`.
pub(crate) fn record_by_time(
    header: &BatchHeader,
    bytes: &[u8],
    timestamp: i64,
    from_offset: i64,
) -> Result<Option<(i64, i64)>, BatchError> {
    let fixed = header.is_log_append_time().then_some(header.max_timestamp);
    let inflated = batch::records(header, bytes)?;
    for record in batch::Records::new(&inflated) {
        let record = record?;
        let offset = header.base_offset + i64::from(record.offset_delta);
        let time = fixed.unwrap_or(header.base_timestamp.saturating_add(record.timestamp_delta));
        if time >= timestamp && offset >= from_offset {
            return Ok(Some((offset, time)));
        }
    }
    Ok(None)
}
