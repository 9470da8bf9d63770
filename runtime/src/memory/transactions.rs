//! Transactions in memory: what is open hides itself and all that follows in its partition, as at a broker.

use super::{Shared, State, append};
use crate::ports::{Delivery, OutRecord, PortError, TopicPartition};
use crate::transactions::{GroupMetadata, Member, Transactions};
use async_trait::async_trait;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

/// Who may write under which id, and what is not committed.
#[derive(Default)]
pub(super) struct Ledger {
    /// Newest writer of each transactional id, and its open transaction.
    writers: BTreeMap<String, (u64, Option<u64>)>,
    /// Transactions under way.
    open: BTreeSet<u64>,
    /// Transactions whose records nobody sees.
    aborted: BTreeSet<u64>,
    last: u64,
}

impl Ledger {
    pub(super) fn is_open(&self, transaction: Option<u64>) -> bool {
        transaction.is_some_and(|t| self.open.contains(&t))
    }

    pub(super) fn is_aborted(&self, transaction: Option<u64>) -> bool {
        transaction.is_some_and(|t| self.aborted.contains(&t))
    }

    fn end(&mut self, transaction: u64, committed: bool) {
        self.open.remove(&transaction);
        if !committed {
            self.aborted.insert(transaction);
        }
    }

    /// Takes the id over and gives the writer's number.
    pub(super) fn open_id(&mut self, id: &str) -> u64 {
        let (number, open) = self.writers.get(id).copied().unwrap_or_default();
        if let Some(transaction) = open {
            self.end(transaction, false);
        }
        self.writers.insert(id.to_owned(), (number + 1, None));
        number + 1
    }

    /// The open transaction of a writer, if no newer one has its id.
    fn of(&mut self, id: &str, number: u64) -> Result<&mut Option<u64>, PortError> {
        match self.writers.get_mut(id) {
            Some((newest, open)) if *newest == number => Ok(open),
            _ => Err(PortError::Fenced(format!("transactional id {id} has a newer writer"))),
        }
    }

    fn begin(&mut self, id: &str, number: u64) -> Result<(), PortError> {
        let transaction = self.last + 1;
        let open = self.of(id, number)?;
        if open.is_some() {
            return Err(PortError::Config("a transaction is open already".to_owned()));
        }
        *open = Some(transaction);
        self.last = transaction;
        self.open.insert(transaction);
        Ok(())
    }

    fn current(&mut self, id: &str, number: u64) -> Result<u64, PortError> {
        (*self.of(id, number)?).ok_or_else(|| PortError::Config("no transaction is open".to_owned()))
    }

    fn finish(&mut self, id: &str, number: u64, committed: bool) -> Result<(), PortError> {
        if let Some(transaction) = self.of(id, number)?.take() {
            self.end(transaction, committed);
        }
        Ok(())
    }
}

/// Offsets of one transaction.
type Offsets = Vec<(String, Vec<(TopicPartition, i64)>)>;

pub(super) struct MemoryTransactions {
    shared: Arc<Shared>,
    id: String,
    number: u64,
    offsets: Mutex<Offsets>,
}

impl MemoryTransactions {
    pub(super) fn open(shared: Arc<Shared>, id: &str) -> Result<Self, PortError> {
        let number = shared.working()?.ledger.open_id(id);
        shared.wake();
        Ok(MemoryTransactions { shared, id: id.to_owned(), number, offsets: Mutex::default() })
    }

    fn offsets(&self) -> Offsets {
        std::mem::take(&mut *self.offsets.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn commit_offsets(state: &mut State, offsets: Offsets) {
    for (group, offsets) in offsets {
        state.groups.entry(group).or_default().committed.extend(offsets);
    }
}

#[async_trait]
impl Transactions for MemoryTransactions {
    async fn begin(&self) -> Result<(), PortError> {
        self.shared.working()?.ledger.begin(&self.id, self.number)
    }

    fn send(&self, record: OutRecord) -> BoxFuture<'static, Result<Delivery, PortError>> {
        let result = self
            .shared
            .working()
            .and_then(|mut state| state.ledger.current(&self.id, self.number))
            .and_then(|transaction| append(&self.shared, record, Some(transaction)));
        async move { result }.boxed()
    }

    async fn send_offsets(&self, offsets: &[(TopicPartition, i64)], group: &GroupMetadata) -> Result<(), PortError> {
        #[cfg_attr(not(feature = "kafka"), allow(irrefutable_let_patterns, reason = "one adapter without the feature"))]
        let Member::Memory { group, member } = &group.0 else {
            return Err(PortError::Config("group metadata of another bus".to_owned()));
        };
        let mut state = self.shared.working()?;
        state.ledger.current(&self.id, self.number)?;
        if !state.groups.get(group).is_some_and(|g| g.members.contains_key(member)) {
            return Err(PortError::Broker(format!("group {group} has expelled the member")));
        }
        self.offsets.lock().unwrap_or_else(PoisonError::into_inner).push((group.clone(), offsets.to_vec()));
        Ok(())
    }

    async fn commit(&self) -> Result<(), PortError> {
        let mut state = self.shared.working()?;
        state.ledger.current(&self.id, self.number)?;
        state.ledger.finish(&self.id, self.number, true)?;
        commit_offsets(&mut state, self.offsets());
        drop(state);
        self.shared.wake();
        Ok(())
    }

    async fn abort(&self) -> Result<(), PortError> {
        self.offsets();
        self.shared.working()?.ledger.finish(&self.id, self.number, false)?;
        self.shared.wake();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use crate::memory::MemoryBus;
    use crate::ports::{Bus, OutRecord, PortError, Source, SourceEvent, SourceSpec, Start, TopicPartition};
    use crate::{ManualClock, restore};
    use std::sync::Arc;

    fn bus() -> MemoryBus {
        let bus = MemoryBus::new(Arc::new(ManualClock::new(0)));
        bus.create("t", 1);
        bus
    }

    fn record(value: &'static str) -> OutRecord {
        OutRecord::new("t").key(value).value(value)
    }

    fn seen(bus: &MemoryBus) -> Vec<String> {
        bus.records("t").iter().map(|r| r.key_str().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_transaction_is_seen_whole_or_not_at_all_and_hides_what_follows_it() {
        let bus = bus();
        let writer = bus.transactions("id").await.unwrap();
        let mut source: Box<dyn Source> =
            bus.source(SourceSpec::assign(vec!["t".to_owned()], Start::Beginning)).await.unwrap();
        assert!(matches!(source.next().await, Ok(SourceEvent::CaughtUp)));
        writer.begin().await.unwrap();
        writer.send(record("a")).await.unwrap();
        bus.sink().send(record("plain")).await.unwrap();
        assert_eq!(seen(&bus), Vec::<String>::new());
        writer.commit().await.unwrap();
        assert_eq!(seen(&bus), ["a", "plain"]);
        writer.begin().await.unwrap();
        writer.send(record("dropped")).await.unwrap();
        writer.abort().await.unwrap();
        bus.sink().send(record("last")).await.unwrap();
        for expected in ["a", "plain", "last"] {
            let Ok(SourceEvent::Record(record)) = source.next().await else { panic!("a record") };
            assert_eq!(record.key_str(), expected);
        }
        let restored = restore::read_to_end(&bus, "t").await.unwrap();
        assert_eq!(restored.newest.len(), 3);
    }

    #[tokio::test]
    async fn a_newer_writer_fences_the_older_and_aborts_what_it_left_open() {
        let bus = bus();
        let old = bus.transactions("id").await.unwrap();
        old.begin().await.unwrap();
        old.send(record("zombie")).await.unwrap();
        let new = bus.transactions("id").await.unwrap();
        assert!(matches!(old.send(record("zombie")).await, Err(PortError::Fenced(_))));
        assert!(matches!(old.commit().await, Err(PortError::Fenced(_))));
        assert!(matches!(old.begin().await, Err(PortError::Fenced(_))));
        new.begin().await.unwrap();
        new.send(record("heir")).await.unwrap();
        new.commit().await.unwrap();
        assert_eq!(seen(&bus), ["heir"]);
        let other = bus.transactions("another id").await.unwrap();
        other.begin().await.unwrap();
        new.begin().await.unwrap();
    }

    #[tokio::test]
    async fn offsets_are_committed_with_the_records_and_by_members_only() {
        let bus = bus();
        let group = || SourceSpec::group(vec!["t".to_owned()], "g");
        let member = bus.source(group()).await.unwrap();
        let metadata = member.group_metadata().unwrap();
        let writer = bus.transactions("id").await.unwrap();
        let offsets = [(TopicPartition::new("t", 0), 5)];
        writer.begin().await.unwrap();
        writer.send_offsets(&offsets, &metadata).await.unwrap();
        assert!(bus.committed("g").is_empty());
        writer.abort().await.unwrap();
        writer.begin().await.unwrap();
        writer.commit().await.unwrap();
        assert!(bus.committed("g").is_empty(), "the aborted ones are forgotten");
        writer.begin().await.unwrap();
        writer.send_offsets(&offsets, &metadata).await.unwrap();
        writer.commit().await.unwrap();
        assert_eq!(bus.committed("g").into_iter().collect::<Vec<_>>(), offsets);
        drop(member);
        writer.begin().await.unwrap();
        assert!(writer.send_offsets(&offsets, &metadata).await.is_err(), "it has left the group");
    }
}
