//! Which offsets may be committed while records finish out of order. Pure.
//!
//! Invariant: a committable offset is never past an unfinished record of its partition.

use crate::ports::TopicPartition;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
struct Partition {
    /// Started and not finished.
    open: BTreeSet<i64>,
    /// One past the highest offset started.
    end: i64,
    /// Last value that `take_committable` gave.
    committed: i64,
}

impl Partition {
    fn position(&self) -> i64 {
        self.open.first().copied().unwrap_or(self.end)
    }
}

/// In-flight records of the partitions that a source has.
///
/// Memory grows with the records in flight only; who calls [`OffsetTracker::track`] bounds them.
#[derive(Debug, Default)]
pub struct OffsetTracker {
    partitions: BTreeMap<TopicPartition, Partition>,
    in_flight: usize,
}

impl OffsetTracker {
    /// An empty tracker.
    pub fn new() -> Self {
        Self::default()
    }

    /// A record was taken and is not finished yet. Offsets of a partition must come in ascending order.
    pub fn track(&mut self, partition: &TopicPartition, offset: i64) {
        if !self.partitions.contains_key(partition) {
            self.partitions
                .insert(partition.clone(), Partition { open: BTreeSet::new(), end: offset, committed: offset });
        }
        if let Some(p) = self.partitions.get_mut(partition)
            && p.open.insert(offset)
        {
            p.end = p.end.max(offset + 1);
            self.in_flight += 1;
        }
    }

    /// A record is finished. Unknown ones (of a forgotten partition) are ignored.
    pub fn complete(&mut self, partition: &TopicPartition, offset: i64) {
        if let Some(p) = self.partitions.get_mut(partition)
            && p.open.remove(&offset)
        {
            self.in_flight -= 1;
        }
    }

    /// True when a record of this partition was taken since it came.
    pub fn is_tracked(&self, partition: &TopicPartition) -> bool {
        self.partitions.contains_key(partition)
    }

    /// Next offsets to read that may be committed now.
    pub fn committable(&self) -> Vec<(TopicPartition, i64)> {
        self.partitions.iter().map(|(tp, p)| (tp.clone(), p.position())).collect()
    }

    /// As [`OffsetTracker::committable`], but only what moved since the last call of this.
    pub fn take_committable(&mut self) -> Vec<(TopicPartition, i64)> {
        let mut moved = Vec::new();
        for (tp, p) in &mut self.partitions {
            let position = p.position();
            if position > p.committed {
                p.committed = position;
                moved.push((tp.clone(), position));
            }
        }
        moved
    }

    /// Records in flight, all partitions.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Records in flight of one partition.
    pub fn in_flight_of(&self, partition: &TopicPartition) -> usize {
        self.partitions.get(partition).map_or(0, |p| p.open.len())
    }

    /// The partition went to another member: forget it and its in-flight records.
    pub fn forget(&mut self, partition: &TopicPartition) {
        if let Some(p) = self.partitions.remove(partition) {
            self.in_flight -= p.open.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn never_past_an_unfinished_record(order in Just((0..60i64).collect::<Vec<_>>()).prop_shuffle(), finished in 0usize..60) {
            let tp = TopicPartition::new("t", 0);
            let mut tracker = OffsetTracker::new();
            for offset in 0..60 { tracker.track(&tp, offset + 100); }
            for offset in &order[..finished] { tracker.complete(&tp, offset + 100); }
            let expected = (0..60).find(|o| !order[..finished].contains(o)).map_or(160, |o| o + 100);
            prop_assert_eq!(tracker.committable(), vec![(tp.clone(), expected)]);
            prop_assert_eq!(tracker.in_flight(), 60 - finished);
            let moved = tracker.take_committable();
            prop_assert_eq!(moved.len(), usize::from(expected > 100));
            prop_assert!(tracker.take_committable().is_empty());
            tracker.forget(&tp);
            prop_assert_eq!(tracker.in_flight(), 0);
        }
    }

    #[test]
    fn completing_a_forgotten_partition_is_ignored() {
        let tp = TopicPartition::new("t", 0);
        let mut tracker = OffsetTracker::new();
        tracker.track(&tp, 5);
        tracker.forget(&tp);
        tracker.complete(&tp, 5);
        assert_eq!(tracker.in_flight(), 0);
        assert!(tracker.committable().is_empty());
    }
}
