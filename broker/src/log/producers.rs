//! Idempotent producers of one partition: who has written what, and is this a repeat?
//!
//! Pure. For each producer id the last five batches are remembered, as many as a client may have
//! in flight, so that any retry is recognised and answered with the offset of the first attempt.
//! Invariants: a batch is accepted at most once per (producer, epoch, sequence); sequences of one
//! epoch have no gaps; an older epoch never writes again. A producer that is not known (new, or
//! forgotten after its idle time) may start at any sequence, as in Apache Kafka.
//!
//! Open transactions are remembered too: where the first record of each lies. They are never
//! forgotten before their marker. Left out: whether a batch may join a transaction (see
//! `transactions`).

use std::collections::{BTreeMap, VecDeque};

use bytes::{Buf, BufMut};
use kafka_protocol::ResponseError;

use super::batch::{BatchHeader, Ending, advance_sequence};

/// Batches remembered of each producer.
const REMEMBERED: usize = 5;
/// Producers remembered of one partition; beyond it the longest idle one is forgotten.
const MAX_PRODUCERS: usize = 100_000;

/// A batch that was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Appended {
    pub(crate) base_sequence: i32,
    pub(crate) last_sequence: i32,
    pub(crate) base_offset: i64,
    pub(crate) timestamp: i64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Producer {
    epoch: i16,
    /// Oldest first, at most [`REMEMBERED`]; empty when a marker alone made the producer known.
    batches: VecDeque<Appended>,
    last_used_ms: i64,
}

/// Whether a batch may be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Check {
    /// It is next in line.
    Fresh,
    /// It was appended before, there.
    Repeat(Appended),
    /// It must be refused.
    Refused(ResponseError),
}

/// The producers of one partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Producers {
    known: BTreeMap<i64, Producer>,
    /// First offset and epoch of each open transaction, by producer.
    open: BTreeMap<i64, (i64, i16)>,
}

/// What an administrator is told of one producer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
    /// Sequence of its last record, -1 when it wrote none in this epoch.
    pub(crate) last_sequence: i32,
    /// Time of its last batch, or of the marker that made it known.
    pub(crate) last_timestamp: i64,
    /// Where its open transaction begins.
    pub(crate) open_since: Option<i64>,
}

impl Producers {
    /// Every producer that is remembered.
    pub(crate) fn describe(&self) -> impl Iterator<Item = Described> {
        self.known.iter().map(|(&id, producer)| {
            let last = producer.batches.back();
            Described {
                id,
                epoch: producer.epoch,
                last_sequence: last.map_or(-1, |batch| batch.last_sequence),
                last_timestamp: last.map_or(producer.last_used_ms, |batch| batch.timestamp),
                open_since: self.open.get(&id).map(|(first, _)| *first),
            }
        })
    }

    /// Decides about a batch; changes nothing.
    pub(crate) fn check(&self, batch: &BatchHeader) -> Check {
        let Some(producer) = self.known.get(&batch.producer_id) else {
            return Check::Fresh;
        };
        if batch.producer_epoch < producer.epoch {
            return Check::Refused(ResponseError::InvalidProducerEpoch);
        }
        if batch.producer_epoch > producer.epoch {
            return match batch.base_sequence {
                0 => Check::Fresh,
                _ => Check::Refused(ResponseError::OutOfOrderSequenceNumber),
            };
        }
        let same =
            |seen: &&Appended| seen.base_sequence == batch.base_sequence && seen.last_sequence == batch.last_sequence();
        if let Some(seen) = producer.batches.iter().find(same) {
            return Check::Repeat(*seen);
        }
        match producer.batches.back() {
            Some(last) if batch.base_sequence != advance_sequence(last.last_sequence, 1) => {
                Check::Refused(ResponseError::OutOfOrderSequenceNumber)
            }
            _ => Check::Fresh,
        }
    }

    /// Remembers a batch that is in the log.
    pub(crate) fn record(&mut self, batch: &BatchHeader, now_ms: i64) {
        if !batch.is_idempotent() || batch.is_control() {
            return;
        }
        // A batch that compaction has emptied no longer needs its marker.
        if batch.is_transactional() && batch.count > 0 {
            let open = self.open.entry(batch.producer_id).or_insert((batch.base_offset, batch.producer_epoch));
            open.1 = batch.producer_epoch;
        }
        let fresh = Producer {
            epoch: batch.producer_epoch,
            batches: VecDeque::with_capacity(REMEMBERED),
            last_used_ms: now_ms,
        };
        let producer = self.known.entry(batch.producer_id).or_insert(fresh);
        if producer.epoch != batch.producer_epoch {
            producer.epoch = batch.producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == REMEMBERED {
            producer.batches.pop_front();
        }
        producer.batches.push_back(Appended {
            base_sequence: batch.base_sequence,
            last_sequence: batch.last_sequence(),
            base_offset: batch.base_offset,
            timestamp: batch.max_timestamp,
        });
        producer.last_used_ms = now_ms;
        if self.known.len() > MAX_PRODUCERS {
            self.forget_longest_idle();
        }
    }

    /// Remembers that a transaction has ended; returns where it began, if it wrote anything.
    pub(crate) fn end(&mut self, ending: Ending, now_ms: i64) -> Option<i64> {
        let Ending { producer_id, epoch, .. } = ending;
        let fresh = Producer { epoch, batches: VecDeque::new(), last_used_ms: now_ms };
        let producer = self.known.entry(producer_id).or_insert(fresh);
        if producer.epoch < epoch {
            producer.epoch = epoch;
            producer.batches.clear();
        }
        self.open.remove(&producer_id).map(|(first, _)| first)
    }

    /// The open transactions: producer, first offset, epoch.
    pub(crate) fn open(&self) -> impl Iterator<Item = (i64, i64, i16)> {
        self.open.iter().map(|(&id, &(first, epoch))| (id, first, epoch))
    }

    /// Forgets producers that wrote nothing for `idle_ms`.
    pub(crate) fn expire(&mut self, now_ms: i64, idle_ms: i64) {
        self.known.retain(|_, producer| now_ms - producer.last_used_ms < idle_ms);
    }

    fn forget_longest_idle(&mut self) {
        let idle = self.known.iter().min_by_key(|(_, p)| p.last_used_ms).map(|(id, _)| *id);
        if let Some(id) = idle {
            self.known.remove(&id);
        }
    }

    /// Writes all of it, for the file beside a closed segment.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.known.len() as u32);
        for (id, producer) in &self.known {
            out.put_i64(*id);
            out.put_i16(producer.epoch);
            out.put_i64(producer.last_used_ms);
            out.put_u8(producer.batches.len() as u8);
            for batch in &producer.batches {
                out.put_i32(batch.base_sequence);
                out.put_i32(batch.last_sequence);
                out.put_i64(batch.base_offset);
                out.put_i64(batch.timestamp);
            }
        }
        out.put_u32(self.open.len() as u32);
        for (id, first, epoch) in self.open() {
            out.put_i64(id);
            out.put_i64(first);
            out.put_i16(epoch);
        }
    }

    /// Reads what [`Self::encode`] wrote; `None` if it is something else.
    pub(crate) fn decode(from: &mut &[u8]) -> Option<Self> {
        let mut known = BTreeMap::new();
        for _ in 0..from.try_get_u32().ok()? {
            let id = from.try_get_i64().ok()?;
            let epoch = from.try_get_i16().ok()?;
            let last_used_ms = from.try_get_i64().ok()?;
            let mut batches = VecDeque::with_capacity(REMEMBERED);
            for _ in 0..from.try_get_u8().ok()? {
                batches.push_back(Appended {
                    base_sequence: from.try_get_i32().ok()?,
                    last_sequence: from.try_get_i32().ok()?,
                    base_offset: from.try_get_i64().ok()?,
                    timestamp: from.try_get_i64().ok()?,
                });
            }
            known.insert(id, Producer { epoch, batches, last_used_ms });
        }
        let mut open = BTreeMap::new();
        for _ in 0..from.try_get_u32().ok()? {
            let id = from.try_get_i64().ok()?;
            open.insert(id, (from.try_get_i64().ok()?, from.try_get_i16().ok()?));
        }
        Some(Self { known, open })
    }
}

#[cfg(test)]
#[path = "producers_tests.rs"]
mod tests;
