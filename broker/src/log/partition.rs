//! One partition: its state machine, its files, and those who wait for its next record.
//!
//! Every change happens under one short lock: plan, write, record, wake. Readers take the lock only
//! to find out where to read; the bytes below the end of a segment never change, so the reading
//! itself needs none. Invariants: what was acknowledged lies in the page cache at least; a failed
//! write leaves the state as it was and the file cut back to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use kafka_protocol::ResponseError;
use tokio::sync::Notify;

use super::batch::{self, BatchHeader, Ending};
use super::compaction;
use super::producers::Described;
use super::recovery::{self, Opening};
use super::rules::LogRules;
use super::segment::{self, Headers, ReadError, Span};
use super::state::{Aborted, Effect, Location, LogState, Reply, Request};
use crate::Error;

/// How far each write must have gone before it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    /// The page cache of the kernel.
    PageCache,
    /// The page cache now, the disk when the segment is closed or flushed.
    Deferred,
    /// The disk.
    Disk,
}

/// One partition of a topic.
#[derive(Debug)]
pub(crate) struct Partition {
    /// `topic-partition`, for logs.
    name: String,
    dir: PathBuf,
    durability: Durability,
    inner: Mutex<Inner>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Inner {
    state: LogState,
    /// The segment that is written to, opened at the first write.
    active: Option<Arc<File>>,
    /// Written to since the last flush.
    is_dirty: bool,
    is_deleted: bool,
}

/// Fetches that wait for the next record, by ticket.
#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    wakers: BTreeMap<u64, Arc<Notify>>,
}

/// Where the readable records of a partition are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watermarks {
    pub(crate) start: i64,
    pub(crate) end: i64,
    /// Where the first open transaction begins; the end when there is none.
    pub(crate) stable_end: i64,
}

/// Which records a reader wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// All.
    Uncommitted,
    /// Those in front of the first open transaction; aborted ones are named.
    Committed,
}

impl Isolation {
    /// As requests say it.
    pub(crate) fn of(level: i8) -> Self {
        if level == 1 { Self::Committed } else { Self::Uncommitted }
    }
}

impl Watermarks {
    /// Where a reader's view ends.
    pub(crate) fn visible_end(&self, isolation: Isolation) -> i64 {
        match isolation {
            Isolation::Uncommitted => self.end,
            Isolation::Committed => self.stable_end,
        }
    }
}

/// What was read, and where the log stood.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) records: Bytes,
    /// Aborted transactions among them, for readers of committed records.
    pub(crate) aborted: Option<Vec<Aborted>>,
    pub(crate) watermarks: Watermarks,
}

/// A record found by its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) offset: i64,
    pub(crate) timestamp: i64,
}

/// A place in a waiting list; leaving it is dropping it.
pub(crate) struct Ticket {
    partition: Arc<Partition>,
    number: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        lock(&self.partition.waiting).wakers.remove(&self.number);
    }
}

/// A panic while the lock was held has left the state between two whole effects, so it is usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partition {
    /// Opens the partition in `dir`, recovering what is there.
    pub(crate) fn open(name: String, dir: PathBuf, opening: Opening, durability: Durability) -> Result<Self, Error> {
        let state = recovery::open(&dir, opening)?;
        let inner = Inner { state, active: None, is_dirty: false, is_deleted: false };
        let waiting = Mutex::default();
        Ok(Self { name, dir, durability, inner: Mutex::new(inner), waiting })
    }

    /// Oldest and next offset.
    pub(crate) fn watermarks(&self) -> Watermarks {
        lock(&self.inner).watermarks()
    }

    /// Appends a batch that [`batch::validate`] has passed. `admit` is asked under the lock: what
    /// it says holds until the batch is in the log.
    pub(crate) fn append(
        &self,
        now_ms: i64,
        header: &BatchHeader,
        bytes: &[u8],
        rules: &LogRules,
        admit: impl FnOnce() -> Result<(), ResponseError>,
    ) -> Result<Reply, ResponseError> {
        self.change(now_ms, Request::Append(header), bytes, rules, admit)
    }

    /// Ends a transaction with a marker; does nothing if it has no records here.
    pub(crate) fn end_transaction(&self, now_ms: i64, ending: Ending, rules: &LogRules) -> Result<(), ResponseError> {
        let marker = batch::marker(ending, now_ms);
        let header = BatchHeader::parse(&marker).map_err(|_| ResponseError::UnknownServerError)?;
        self.change(now_ms, Request::End(&header, ending), &marker, rules, || Ok(())).map(|_| ())
    }

    /// The producers that have written here and are remembered.
    pub(crate) fn producers(&self) -> Vec<Described> {
        lock(&self.inner).state.producers().describe().collect()
    }

    /// Producer and epoch of each transaction that is open here.
    pub(crate) fn open_transactions(&self) -> Vec<(i64, i16)> {
        lock(&self.inner).state.producers().open().map(|(id, _, epoch)| (id, epoch)).collect()
    }

    fn change(
        &self,
        now_ms: i64,
        request: Request<'_>,
        bytes: &[u8],
        rules: &LogRules,
        admit: impl FnOnce() -> Result<(), ResponseError>,
    ) -> Result<Reply, ResponseError> {
        let mut inner = lock(&self.inner);
        if inner.is_deleted {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        admit()?;
        let (reply, effects) = inner.state.apply(now_ms, request, rules);
        if let Reply::Refused(error) = reply {
            return Err(error);
        }
        for effect in &effects {
            self.carry_out(&mut inner, now_ms, effect, bytes).map_err(|error| {
                tracing::error!(partition = %self.name, %error, "cannot write to the log");
                ResponseError::KafkaStorageError
            })?;
        }
        drop(inner);
        if !effects.is_empty() {
            self.wake_all();
        }
        Ok(reply)
    }

    fn carry_out(&self, inner: &mut Inner, now_ms: i64, effect: &Effect, bytes: &[u8]) -> io::Result<()> {
        match *effect {
            Effect::Roll { .. } => self.close_active(inner),
            Effect::Write { header, append_time_ms, .. } => {
                let mut stored = bytes.to_vec();
                batch::assign(&mut stored, header.base_offset, append_time_ms);
                self.write(inner, &stored)?;
            }
            Effect::MoveStart(_) => {}
            Effect::Drop { base } => remove_segment(&self.dir, base)?,
        }
        inner.state.record(now_ms, effect);
        Ok(())
    }

    /// Leaves the files of the last segment so that a restart finds them complete.
    fn close_active(&self, inner: &mut Inner) {
        let durable = self.durability != Durability::PageCache;
        let closing = inner.active.take();
        let write = || -> io::Result<()> {
            if let (true, Some(file)) = (durable, closing) {
                file.sync_data()?;
            }
            let state = &inner.state;
            segment::write_index(&self.dir, state.active(), state.producers(), durable)
        };
        // The index can be rebuilt, and the records are where acknowledged writes left them.
        if let Err(error) = write() {
            tracing::warn!(partition = %self.name, %error, "cannot write the index of a segment");
        }
    }

    fn write(&self, inner: &mut Inner, bytes: &[u8]) -> io::Result<()> {
        let (base, position) = {
            let active = inner.state.active();
            (active.base, active.size)
        };
        let file = match &inner.active {
            Some(file) => Arc::clone(file),
            None => Arc::new(segment::open_active(&self.dir, base)?),
        };
        let written = file.write_all_at(bytes, position).and_then(|()| match self.durability {
            Durability::Disk => file.sync_data(),
            _ => Ok(()),
        });
        match written {
            Ok(()) => {
                inner.active = Some(file);
                inner.is_dirty = true;
                Ok(())
            }
            Err(error) => {
                // The next write begins at the same place; what it does not cover must be gone.
                inner.active = None;
                if let Err(error) = file.set_len(position) {
                    tracing::error!(partition = %self.name, %error,
                        "cannot cut a failed write off; the next start will");
                }
                Err(error)
            }
        }
    }

    /// Forgets records before `offset` (-1: all). `persist` makes the new start durable first.
    pub(crate) fn trim(
        &self,
        now_ms: i64,
        offset: i64,
        rules: &LogRules,
        persist: impl FnOnce(i64) -> Result<(), ResponseError>,
    ) -> Result<i64, ResponseError> {
        let mut inner = lock(&self.inner);
        let (reply, effects) = inner.state.apply(now_ms, Request::Trim(offset), rules);
        let start = match reply {
            Reply::Trimmed(start) => start,
            Reply::Refused(error) => return Err(error),
            _ => return Err(ResponseError::UnknownServerError),
        };
        if !effects.is_empty() {
            persist(start)?;
        }
        self.carry_out_housekeeping(&mut inner, now_ms, &effects);
        Ok(start)
    }

    /// Retention, compaction and expiry.
    pub(crate) fn housekeep(&self, now_ms: i64, rules: &LogRules) {
        {
            let mut inner = lock(&self.inner);
            if inner.is_deleted {
                return;
            }
            inner.state.set_segment_bytes(rules.segment_bytes);
            inner.state.expire_producers(now_ms);
            let (_, effects) = inner.state.apply(now_ms, Request::Retain, rules);
            self.carry_out_housekeeping(&mut inner, now_ms, &effects);
        }
        if rules.cleanup.compact {
            self.compact(now_ms, rules);
        }
    }

    /// Stops at the first failure: what is left is tried again next time.
    fn carry_out_housekeeping(&self, inner: &mut Inner, now_ms: i64, effects: &[Effect]) {
        for effect in effects {
            if let Err(error) = self.carry_out(inner, now_ms, effect, &[]) {
                tracing::error!(partition = %self.name, %error, "cannot remove an old segment");
                return;
            }
        }
    }

    /// Rewrites closed segments to the newest record of each key. Runs without the lock: closed
    /// segments do not change, and only this and retention (same task) remove them.
    fn compact(&self, now_ms: i64, rules: &LogRules) {
        let (start, stable_end, aborted, closed) = {
            let inner = lock(&self.inner);
            let active = inner.state.active().base;
            let closed: Vec<_> = inner.state.segments().filter(|s| s.base != active).cloned().collect();
            let aborted = inner.state.aborted(inner.state.start(), i64::MAX);
            (inner.state.start(), inner.state.stable_end(), aborted, closed)
        };
        let plan = compaction::Plan { start, stable_end, aborted: &aborted, now_ms, rules };
        match compaction::run(&self.dir, &closed, &plan) {
            Ok(rewritten) => {
                for replacement in rewritten {
                    self.swap_in(now_ms, replacement);
                }
            }
            Err(error) => {
                tracing::error!(partition = %self.name, %error, "cannot compact the log");
            }
        }
    }

    fn swap_in(&self, now_ms: i64, replacement: compaction::Replacement) {
        let mut inner = lock(&self.inner);
        let base = replacement.segment.base;
        // A concurrent DeleteRecords may have removed the segment meanwhile.
        let is_there = inner.state.segments().any(|s| s.base == base);
        let outcome = if !is_there || inner.is_deleted {
            replacement.discard()
        } else if replacement.is_empty && inner.state.is_inner(base) {
            let dropped = Effect::Drop { base };
            replacement.discard().and_then(|()| self.carry_out(&mut inner, now_ms, &dropped, &[]))
        } else {
            replacement.install(&self.dir).map(|segment| inner.state.replace(segment))
        };
        if let Err(error) = outcome {
            tracing::error!(partition = %self.name, %error, "cannot replace a compacted segment");
        }
    }

    /// Forces what was written to the disk.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let file = {
            let mut inner = lock(&self.inner);
            if !std::mem::take(&mut inner.is_dirty) {
                return Ok(());
            }
            inner.active.clone()
        };
        file.map_or(Ok(()), |file| file.sync_data())
    }

    /// Reads whole batches from `offset` on.
    pub(crate) fn read(
        &self,
        offset: i64,
        max_bytes: usize,
        at_least_one: bool,
        isolation: Isolation,
    ) -> Result<Fetched, ResponseError> {
        let (watermarks, place, mut aborted) = {
            let inner = lock(&self.inner);
            let watermarks = inner.readable(offset)?;
            let until = watermarks.visible_end(isolation);
            let place = inner.state.locate(offset).filter(|_| offset < until);
            let place = place.map(|at| self.open_place(&inner, at));
            let aborted = (isolation == Isolation::Committed).then(|| inner.state.aborted(offset, until));
            (watermarks, place, aborted)
        };
        let until = watermarks.visible_end(isolation);
        let records = match place {
            None => Bytes::new(),
            Some(place) => {
                let (file, at) = place.map_err(|error| self.storage_error(&error.into()))?;
                let Location { position, limit, end, .. } = at;
                let span = Span { position, limit, offset, end, until, max_bytes, at_least_one };
                segment::read_batches(&file, span).map_err(|error| self.storage_error(&error))?
            }
        };
        if let Some(aborted) = &mut aborted {
            let read_to = segment::end_offset(&records).unwrap_or(offset);
            aborted.retain(|transaction| transaction.first < read_to);
        }
        Ok(Fetched { records, aborted, watermarks })
    }

    /// About how many bytes can be read from `offset` on; 0 only when there are none.
    pub(crate) fn available(&self, offset: i64, isolation: Isolation) -> Result<u64, ResponseError> {
        let inner = lock(&self.inner);
        let watermarks = inner.readable(offset)?;
        let until = watermarks.visible_end(isolation);
        // What compaction left behind the offset may begin where the view ends.
        let is_visible = inner.state.locate(offset).is_some_and(|at| offset < until && at.segment < until);
        Ok(if is_visible { inner.state.available(offset) } else { 0 })
    }

    /// The first record with a time of at least `timestamp`.
    pub(crate) fn find_time(&self, timestamp: i64) -> Result<Option<Found>, ResponseError> {
        let (start, places) = {
            let inner = lock(&self.inner);
            let open = |at| self.open_place(&inner, at);
            let places: io::Result<Vec<_>> = inner.state.locate_time(timestamp).into_iter().map(open).collect();
            (inner.state.start(), places)
        };
        let search = || -> Result<Option<Found>, ReadError> {
            for (file, at) in places? {
                if let Some(found) = find_in(&file, at, timestamp, start)? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        };
        search().map_err(|error| self.storage_error(&error))
    }

    /// The first record that has the newest time of all.
    pub(crate) fn find_newest(&self) -> Result<Option<Found>, ResponseError> {
        let newest = lock(&self.inner).state.max_timestamp();
        match newest {
            Some(newest) if newest >= 0 => self.find_time(newest),
            _ => Ok(None),
        }
    }

    fn open_place(&self, inner: &Inner, at: Location) -> io::Result<(Arc<File>, Location)> {
        let file = match &inner.active {
            Some(file) if inner.state.active().base == at.segment => Arc::clone(file),
            _ => Arc::new(File::open(segment::log_path(&self.dir, at.segment))?),
        };
        Ok((file, at))
    }

    fn storage_error(&self, error: &ReadError) -> ResponseError {
        tracing::error!(partition = %self.name, %error, "cannot read from the log");
        match error {
            ReadError::Io(_) => ResponseError::KafkaStorageError,
            ReadError::Batch(_) => ResponseError::CorruptMessage,
        }
    }

    /// Has `waker` notified at every append from now on, until the ticket is dropped.
    pub(crate) fn wait(self: &Arc<Self>, waker: &Arc<Notify>) -> Ticket {
        let mut waiting = lock(&self.waiting);
        let number = waiting.next;
        waiting.next += 1;
        waiting.wakers.insert(number, Arc::clone(waker));
        Ticket { partition: Arc::clone(self), number }
    }

    fn wake_all(&self) {
        for waker in lock(&self.waiting).wakers.values() {
            waker.notify_one();
        }
    }

    /// Takes the partition out of service; its files are the caller's to remove.
    pub(crate) fn delete(&self) {
        {
            let mut inner = lock(&self.inner);
            inner.is_deleted = true;
            inner.active = None;
        }
        self.wake_all();
    }
}

impl Inner {
    fn watermarks(&self) -> Watermarks {
        Watermarks { start: self.state.start(), end: self.state.end(), stable_end: self.state.stable_end() }
    }

    fn readable(&self, offset: i64) -> Result<Watermarks, ResponseError> {
        let watermarks = self.watermarks();
        if self.is_deleted {
            return Err(ResponseError::UnknownTopicOrPartition);
        }
        if offset < watermarks.start || offset > watermarks.end {
            return Err(ResponseError::OffsetOutOfRange);
        }
        Ok(watermarks)
    }
}

fn find_in(file: &File, at: Location, timestamp: i64, start: i64) -> Result<Option<Found>, ReadError> {
    let mut headers = Headers::new(file, at.position, at.limit);
    while let Some(placed) = headers.next_batch()? {
        let placed = placed?;
        if placed.header.max_timestamp < timestamp || placed.header.last_offset() < start {
            continue;
        }
        let bytes = segment::read_batch(file, &placed)?;
        let found = segment::record_by_time(&placed.header, &bytes, timestamp, start)?;
        if let Some((offset, timestamp)) = found {
            return Ok(Some(Found { offset, timestamp }));
        }
    }
    Ok(None)
}

fn remove_segment(dir: &Path, base: i64) -> io::Result<()> {
    for path in [segment::log_path(dir, base), segment::index_path(dir, base)] {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "partition_tests.rs"]
mod tests;
