//! The sparse index of one segment: from an offset or a time to a place to start reading.
//!
//! Pure, in memory, and always rebuildable from the segment. One entry about every
//! `interval` bytes, so that a lookup ends at most that far before its target and a
//! segment has a few thousand entries at most, whatever the size of its batches.

use bytes::{Buf, BufMut};

/// A batch that the index points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Base offset of the batch.
    offset: i64,
    /// Where it begins in the file.
    position: u32,
    /// Newest timestamp of all batches in front of it.
    newest_before: i64,
}

/// Index of one segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    entries: Vec<Entry>,
    interval: u32,
    next_at: u32,
}

impl SparseIndex {
    /// An empty index for a segment that may grow to `segment_bytes`.
    pub(crate) fn new(segment_bytes: u64) -> Self {
        let interval = u32::try_from(segment_bytes / 4096).unwrap_or(u32::MAX).max(4096);
        Self { entries: Vec::new(), interval, next_at: interval }
    }

    /// Notes a batch at `position`; batches come in order.
    pub(crate) fn note(&mut self, offset: i64, position: u32, newest_before: i64) {
        if position >= self.next_at {
            self.entries.push(Entry { offset, position, newest_before });
            self.next_at = position.saturating_add(self.interval);
        }
    }

    /// Notes a batch that readers must be able to start at, whatever lies in front of it.
    pub(crate) fn force(&mut self, offset: i64, position: u32, newest_before: i64) {
        self.next_at = position;
        self.note(offset, position, newest_before);
    }

    /// Where to start reading to find `offset`: at or before its batch.
    pub(crate) fn floor_offset(&self, offset: i64) -> u32 {
        self.floor(|entry| entry.offset <= offset)
    }

    /// Where to start reading to find the first batch that holds a time of at least `timestamp`.
    pub(crate) fn floor_time(&self, timestamp: i64) -> u32 {
        self.floor(|entry| entry.newest_before < timestamp)
    }

    fn floor(&self, passed: impl Fn(&Entry) -> bool) -> u32 {
        let behind = self.entries.partition_point(passed);
        behind.checked_sub(1).and_then(|i| self.entries.get(i)).map_or(0, |e| e.position)
    }

    /// Writes the index for the file beside a closed segment.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32(self.interval);
        out.put_u32(self.entries.len() as u32);
        for entry in &self.entries {
            out.put_i64(entry.offset);
            out.put_u32(entry.position);
            out.put_i64(entry.newest_before);
        }
    }

    /// Reads what [`Self::encode`] wrote; `None` if it is something else.
    pub(crate) fn decode(from: &mut &[u8]) -> Option<Self> {
        let interval = from.try_get_u32().ok()?;
        let mut entries = Vec::new();
        for _ in 0..from.try_get_u32().ok()? {
            entries.push(Entry {
                offset: from.try_get_i64().ok()?,
                position: from.try_get_u32().ok()?,
                newest_before: from.try_get_i64().ok()?,
            });
        }
        let next_at = entries.last().map_or(0, |e| e.position).saturating_add(interval);
        Some(Self { entries, interval, next_at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// The index never points behind the batch that is looked for, and at most one interval
        /// plus one batch before it.
        #[test]
        fn floors_are_tight_and_never_late(
            batches in proptest::collection::vec((1u32..9000, 1i64..50, 0i64..1000), 1..200),
        ) {
            let mut index = SparseIndex::new(0);
            let (mut position, mut offset, mut newest) = (0u32, 0i64, -1i64);
            let mut seen = Vec::new();
            for (size, count, time) in batches {
                index.note(offset, position, newest);
                seen.push((offset, position, size, time));
                newest = newest.max(time);
                position += size;
                offset += count;
            }
            for (i, &(offset, position, ..)) in seen.iter().enumerate() {
                let floor = index.floor_offset(offset);
                prop_assert!(floor <= position);
                prop_assert!(position - floor <= 4096 + 9000);
                let time = seen[i].3;
                let first = seen.iter().find(|b| b.3 >= time).map_or(0, |b| b.1);
                prop_assert!(index.floor_time(time) <= first);
            }
            let mut bytes = Vec::new();
            index.encode(&mut bytes);
            prop_assert_eq!(SparseIndex::decode(&mut bytes.as_slice()), Some(index));
        }
    }
}
