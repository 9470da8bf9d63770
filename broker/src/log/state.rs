//! The log of one partition as a pure state machine.
//!
//! [`LogState::apply`]`(now, request) -> (reply, effects)` decides, without changing anything. The
//! shell carries the effects out on the disk and hands each one that succeeded to
//! [`LogState::record`], which is the only place where the state changes. A disk that refuses thus
//! leaves the state where it was. Recovery is the same `record`, fed with what lies on the disk.
//!
//! Invariants: there is always at least one segment and the last one is the one written to; the
//! segments' ranges ascend without overlap; `start <= end`; offsets are given out once and in
//! order. Left out: bytes.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;

use super::batch::{BatchHeader, Ending};
use super::index::SparseIndex;
use super::producers::{Check, Producers};
use super::rules::LogRules;

/// A producer that wrote nothing for this long is forgotten, as in Apache Kafka.
const PRODUCER_IDLE_MS: i64 = 24 * 3600 * 1000;

/// What is known of one segment without opening it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Offset its file is named after; no record in it is older.
    pub(crate) base: i64,
    /// Offset behind its last record.
    pub(crate) end: i64,
    /// Bytes of whole batches.
    pub(crate) size: u64,
    /// Newest timestamp in it, -1 when there is none.
    pub(crate) max_timestamp: i64,
    /// When its first batch was appended (or found at a restart).
    pub(crate) first_append_ms: Option<i64>,
    /// When it was first compacted.
    pub(crate) compacted_ms: Option<i64>,
    /// Whether compaction left tombstones in it.
    pub(crate) has_tombstones: bool,
    /// Transactions whose abort marker is in it.
    pub(crate) aborted: Vec<Aborted>,
    /// Finds places in it.
    pub(crate) index: SparseIndex,
}

/// A transaction that was aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aborted {
    pub(crate) producer_id: i64,
    /// Offset of its first record.
    pub(crate) first: i64,
    /// Offset of its marker.
    pub(crate) last: i64,
}

impl Aborted {
    /// Whether the batch belongs to it.
    pub(crate) fn covers(&self, batch: &BatchHeader) -> bool {
        batch.is_transactional()
            && batch.producer_id == self.producer_id
            && (self.first..self.last).contains(&batch.base_offset)
    }
}

impl Segment {
    /// A segment without records.
    pub(crate) fn empty(base: i64, segment_bytes: u64) -> Self {
        Self {
            base,
            end: base,
            size: 0,
            max_timestamp: -1,
            first_append_ms: None,
            compacted_ms: None,
            has_tombstones: false,
            aborted: Vec::new(),
            index: SparseIndex::new(segment_bytes),
        }
    }

    /// Age that retention goes by: the newest timestamp or, when producers set none, the append.
    fn newest_ms(&self, now_ms: i64) -> i64 {
        match self.max_timestamp {
            0.. => self.max_timestamp,
            _ => self.first_append_ms.unwrap_or(now_ms),
        }
    }

    /// Takes note of a batch behind the last one.
    pub(crate) fn note(&mut self, batch: &BatchHeader, now_ms: i64) {
        let position = u32::try_from(self.size).unwrap_or(u32::MAX);
        self.index.note(batch.base_offset, position, self.max_timestamp);
        self.end = batch.next_offset();
        self.size += batch.size as u64;
        self.max_timestamp = self.max_timestamp.max(batch.max_timestamp);
        self.first_append_ms.get_or_insert(now_ms);
    }
}

impl Segment {
    /// Takes note of what a batch means for its producer, and of an abort.
    pub(crate) fn note_producer(
        &mut self,
        producers: &mut Producers,
        batch: &BatchHeader,
        ending: Option<Ending>,
        now_ms: i64,
    ) {
        let Some(ending) = ending else { return producers.record(batch, now_ms) };
        let first = producers.end(ending, now_ms);
        if let (Some(first), false) = (first, ending.is_commit) {
            self.aborted.push(Aborted { producer_id: ending.producer_id, first, last: batch.base_offset });
        }
    }

    /// Counts bytes that are not batches, up to a batch at `position` with this offset.
    pub(crate) fn skip_to(&mut self, position: u64, offset: i64) {
        let at = u32::try_from(position).unwrap_or(u32::MAX);
        self.index.force(offset, at, self.max_timestamp);
        self.size = position;
        self.end = offset;
    }
}

/// What is asked of a log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Request<'a> {
    /// Append a valid batch.
    Append(&'a BatchHeader),
    /// End a transaction with this marker, if it wrote here.
    End(&'a BatchHeader, Ending),
    /// Forget the records before this offset; -1 means all there are.
    Trim(i64),
    /// Dispose of what retention no longer keeps.
    Retain,
}

/// What the asker is told once the effects are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The batch is in the log, now or since an earlier attempt.
    Appended {
        /// Offset of its first record.
        base_offset: i64,
        /// Time of the append where the topic uses it, else -1.
        append_time_ms: i64,
    },
    /// There is no transaction to end.
    NothingOpen,
    /// The log now starts here.
    Trimmed(i64),
    /// Housekeeping is done.
    Retained,
    /// The request was refused; there are no effects.
    Refused(ResponseError),
}

/// What must happen on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Close the last segment and begin one with this base.
    Roll {
        /// Base offset of the new segment.
        base: i64,
    },
    /// Write a batch behind the last one. The header has its offset already.
    Write {
        /// Header as it will lie on the disk.
        header: BatchHeader,
        /// Time to stamp into it, where the topic uses it.
        append_time_ms: Option<i64>,
        /// What it says, if it is a marker.
        ending: Option<Ending>,
    },
    /// Remember durably that the log starts here.
    MoveStart(i64),
    /// Remove a closed segment.
    Drop {
        /// Its base offset.
        base: i64,
    },
}

/// Where to read an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    /// Base offset of the segment.
    pub(crate) segment: i64,
    /// Where to start looking.
    pub(crate) position: u64,
    /// Where the whole batches of the segment end.
    pub(crate) limit: u64,
    /// Offset behind its last record.
    pub(crate) end: i64,
}

/// State of one log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogState {
    start: i64,
    segments: BTreeMap<i64, Segment>,
    producers: Producers,
    segment_bytes: u64,
}

impl LogState {
    /// A log made of `segments` (in order; one empty segment at `start` when there are none).
    pub(crate) fn new(start: i64, segments: Vec<Segment>, producers: Producers, segment_bytes: u64) -> Self {
        let mut segments: BTreeMap<i64, Segment> =
            segments.into_iter().map(|segment| (segment.base, segment)).collect();
        if segments.is_empty() {
            segments.insert(start, Segment::empty(start, segment_bytes));
        }
        let first = segments.keys().next().copied().unwrap_or(start);
        let end = segments.values().next_back().map_or(first, |s| s.end);
        let start = start.max(first).min(end);
        Self { start, segments, producers, segment_bytes }
    }

    /// Offset of the oldest record that can be read.
    pub(crate) fn start(&self) -> i64 {
        self.start
    }

    /// Offset the next record will get.
    pub(crate) fn end(&self) -> i64 {
        self.active().end
    }

    /// Offset behind the last record whose transaction, if any, has ended.
    pub(crate) fn stable_end(&self) -> i64 {
        let first_open = self.producers.open().map(|(_, first, _)| first).min();
        first_open.map_or(self.end(), |first| first.max(self.start))
    }

    /// Aborted transactions with records or a marker in the range, by their first offset.
    pub(crate) fn aborted(&self, from: i64, until: i64) -> Vec<Aborted> {
        let all = self.segments().filter(|s| s.end > from).flat_map(|s| &s.aborted);
        let mut found: Vec<_> = all.filter(|a| a.last >= from && a.first < until).copied().collect();
        found.sort_unstable_by_key(|aborted| aborted.first);
        found
    }

    /// The segments, oldest first; the last one is written to.
    pub(crate) fn segments(&self) -> impl DoubleEndedIterator<Item = &Segment> {
        self.segments.values()
    }

    /// The producers, as of the last record.
    pub(crate) fn producers(&self) -> &Producers {
        &self.producers
    }

    /// The segment that is written to.
    pub(crate) fn active(&self) -> &Segment {
        match self.segments.last_key_value() {
            Some((_, segment)) => segment,
            None => unreachable!("a log always has a segment"),
        }
    }

    /// Applies the rules to a request: the reply that holds once the effects are carried out. The state
    /// changes only then, by [`Self::record`].
    pub(crate) fn apply(&self, now_ms: i64, request: Request<'_>, rules: &LogRules) -> (Reply, Vec<Effect>) {
        let planned = match request {
            Request::Append(batch) => self.plan_append(now_ms, batch, rules),
            Request::End(marker, ending) => self.plan_end(now_ms, marker, ending, rules),
            Request::Trim(before) => self.plan_trim(before),
            Request::Retain => Ok((Reply::Retained, self.plan_retention(now_ms, rules))),
        };
        planned.unwrap_or_else(|error| (Reply::Refused(error), Vec::new()))
    }

    fn plan_append(
        &self,
        now_ms: i64,
        batch: &BatchHeader,
        rules: &LogRules,
    ) -> Result<(Reply, Vec<Effect>), ResponseError> {
        if batch.size > rules.max_message_bytes as usize {
            return Err(ResponseError::MessageTooLarge);
        }
        if batch.is_idempotent() {
            match self.producers.check(batch) {
                Check::Fresh => {}
                Check::Refused(error) => return Err(error),
                Check::Repeat(seen) => {
                    let append_time_ms = if rules.log_append_time { seen.timestamp } else { -1 };
                    let base_offset = seen.base_offset;
                    return Ok((Reply::Appended { base_offset, append_time_ms }, Vec::new()));
                }
            }
        }
        self.plan_write(now_ms, batch, None, rules)
    }

    fn plan_end(
        &self,
        now_ms: i64,
        marker: &BatchHeader,
        ending: Ending,
        rules: &LogRules,
    ) -> Result<(Reply, Vec<Effect>), ResponseError> {
        if !self.producers.open().any(|(id, ..)| id == ending.producer_id) {
            return Ok((Reply::NothingOpen, Vec::new()));
        }
        self.plan_write(now_ms, marker, Some(ending), rules)
    }

    fn plan_write(
        &self,
        now_ms: i64,
        batch: &BatchHeader,
        ending: Option<Ending>,
        rules: &LogRules,
    ) -> Result<(Reply, Vec<Effect>), ResponseError> {
        let base_offset = self.end();
        if base_offset.checked_add(i64::from(batch.count)).is_none() {
            return Err(ResponseError::UnknownServerError);
        }
        let append_time_ms = rules.log_append_time.then_some(now_ms);
        let header =
            BatchHeader { base_offset, max_timestamp: append_time_ms.unwrap_or(batch.max_timestamp), ..*batch };
        let mut effects = Vec::with_capacity(2);
        if self.must_roll(now_ms, batch.size as u64, rules) {
            effects.push(Effect::Roll { base: base_offset });
        }
        effects.push(Effect::Write { header, append_time_ms, ending });
        let append_time_ms = append_time_ms.unwrap_or(-1);
        Ok((Reply::Appended { base_offset, append_time_ms }, effects))
    }

    fn must_roll(&self, now_ms: i64, more: u64, rules: &LogRules) -> bool {
        let active = self.active();
        let is_old = active.first_append_ms.is_some_and(|first| now_ms.saturating_sub(first) >= rules.segment_ms);
        active.size > 0 && (active.size + more > rules.segment_bytes || is_old)
    }

    fn plan_trim(&self, before: i64) -> Result<(Reply, Vec<Effect>), ResponseError> {
        let before = if before == -1 { self.end() } else { before };
        if before < 0 || before > self.end() {
            return Err(ResponseError::OffsetOutOfRange);
        }
        if before <= self.start {
            return Ok((Reply::Trimmed(self.start), Vec::new()));
        }
        let mut effects = vec![Effect::MoveStart(before)];
        let gone = self.closed().take_while(|segment| segment.end <= before);
        effects.extend(gone.map(|segment| Effect::Drop { base: segment.base }));
        Ok((Reply::Trimmed(before), effects))
    }

    fn plan_retention(&self, now_ms: i64, rules: &LogRules) -> Vec<Effect> {
        if !rules.cleanup.delete {
            return Vec::new();
        }
        let is_expired = |segment: &Segment| match rules.retention_ms {
            Some(keep) => segment.size > 0 && segment.newest_ms(now_ms) < now_ms.saturating_sub(keep),
            None => false,
        };
        let mut total: u64 = self.segments.values().map(|segment| segment.size).sum();
        let mut effects = Vec::new();
        for segment in self.closed() {
            let keep = rules.retention_bytes.and_then(|bytes| u64::try_from(bytes).ok());
            let is_surplus = keep.is_some_and(|keep| total.saturating_sub(segment.size) >= keep);
            if !is_expired(segment) && !is_surplus {
                return effects;
            }
            total -= segment.size;
            effects.push(Effect::Drop { base: segment.base });
        }
        if is_expired(self.active()) {
            effects.push(Effect::Roll { base: self.end() });
            effects.push(Effect::Drop { base: self.active().base });
        }
        effects
    }

    fn closed(&self) -> impl Iterator<Item = &Segment> {
        let active = self.active().base;
        self.segments.values().take_while(move |segment| segment.base != active)
    }

    /// Takes note of an effect that has been carried out.
    pub(crate) fn record(&mut self, now_ms: i64, effect: &Effect) {
        match *effect {
            Effect::Roll { base } => {
                self.segments.insert(base, Segment::empty(base, self.segment_bytes));
            }
            Effect::Write { ref header, ending, .. } => {
                if let Some(mut active) = self.segments.last_entry() {
                    let active = active.get_mut();
                    active.note(header, now_ms);
                    active.note_producer(&mut self.producers, header, ending, now_ms);
                }
            }
            Effect::MoveStart(start) => self.start = self.start.max(start),
            Effect::Drop { base } => {
                self.segments.remove(&base);
                let first = self.segments.keys().next().copied().unwrap_or(self.start);
                self.start = self.start.max(first);
            }
        }
    }

    /// Forgets idle producers.
    pub(crate) fn expire_producers(&mut self, now_ms: i64) {
        self.producers.expire(now_ms, PRODUCER_IDLE_MS);
    }

    /// Whether the segment at `base` may be left out when compaction has emptied it: one in front
    /// tells where the log starts (compaction does not move that), and a closed one behind where it
    /// ends, also to a restart.
    pub(crate) fn is_inner(&self, base: i64) -> bool {
        let first = self.segments.keys().next().is_some_and(|first| *first < base);
        first && self.closed().last().is_some_and(|last| last.base > base)
    }

    /// Puts the compacted form of a closed segment in its place.
    pub(crate) fn replace(&mut self, segment: Segment) {
        debug_assert!(segment.base != self.active().base, "only closed segments are compacted");
        self.segments.insert(segment.base, segment);
    }

    /// Size from which the next new segment derives its index.
    pub(crate) fn set_segment_bytes(&mut self, segment_bytes: u64) {
        self.segment_bytes = segment_bytes;
    }

    /// Where to read `offset`; `None` at the end. The caller has checked that it is in range.
    pub(crate) fn locate(&self, offset: i64) -> Option<Location> {
        let (_, holder) = self.segments.range(..=offset).next_back()?;
        let segment = if offset < holder.end {
            holder
        } else {
            // Behind the records that compaction left, or at the end of the log.
            self.segments.range(offset + 1..).map(|(_, s)| s).find(|s| s.size > 0)?
        };
        Some(Location {
            segment: segment.base,
            position: segment.index.floor_offset(offset).into(),
            limit: segment.size,
            end: segment.end,
        })
    }

    /// Segments that may hold a record of at least `timestamp`, with where to start in each.
    pub(crate) fn locate_time(&self, timestamp: i64) -> Vec<Location> {
        let candidates = self.segments().filter(|s| s.max_timestamp >= timestamp && s.end > self.start);
        candidates
            .map(|segment| Location {
                segment: segment.base,
                position: segment.index.floor_time(timestamp).into(),
                limit: segment.size,
                end: segment.end,
            })
            .collect()
    }

    /// Newest timestamp that can be read, if there are records.
    pub(crate) fn max_timestamp(&self) -> Option<i64> {
        let readable = self.segments().filter(|s| s.size > 0 && s.end > self.start);
        readable.map(|s| s.max_timestamp).max()
    }

    /// About how many bytes there are from `offset` on: 0 only when there are none, never too few.
    pub(crate) fn available(&self, offset: i64) -> u64 {
        let Some(from) = self.locate(offset) else { return 0 };
        let rest = self.segments.range(from.segment + 1..).map(|(_, s)| s.size).sum::<u64>();
        from.limit - from.position + rest
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
