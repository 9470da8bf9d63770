//! The ports in process, for tests: topics are vectors, groups hand partitions over with acknowledgement.
//!
//! Invariant: the same order, commit and revoke rules as the Kafka adapter. Left out: durability, retention,
//! compaction, sessions, transaction time-outs. Topics grow without bound, which is why this is no production adapter.

mod transactions;

use crate::clock::SharedClock;
use crate::ports::*;
use crate::transactions::{GroupMetadata, Member, Transactions};
use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use schemas::Topics;
use schemas::topics::TopicSpec;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// Partitions of a topic that was not created with a number of its own.
const DEFAULT_PARTITIONS: i32 = 4;

#[derive(Default)]
struct State {
    topics: BTreeMap<String, Vec<Vec<Slot>>>,
    ledger: transactions::Ledger,
    groups: BTreeMap<String, Group>,
    next_member: u64,
    failing: Option<String>,
}

/// A record, and the transaction that it was written in.
struct Slot {
    record: Record,
    transaction: Option<u64>,
}

#[derive(Default)]
struct Group {
    committed: BTreeMap<TopicPartition, i64>,
    members: BTreeMap<u64, Vec<String>>,
    owners: BTreeMap<TopicPartition, u64>,
    /// Being revoked: waits for the owner's acknowledgement.
    moving: BTreeSet<TopicPartition>,
    events: BTreeMap<u64, VecDeque<Control>>,
}

enum Control {
    Assign(Vec<TopicPartition>),
    Revoke(Vec<TopicPartition>),
}

struct Shared {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    clock: SharedClock,
    topics: Topics,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, unless the broker is away.
    fn working(&self) -> Result<MutexGuard<'_, State>, PortError> {
        let state = self.lock();
        match &state.failing {
            Some(why) => Err(PortError::Broker(why.clone())),
            None => Ok(state),
        }
    }

    fn wake(&self) {
        self.changed.send_modify(|n| *n += 1);
    }

    /// Moves partitions towards an even spread over the members; a partition that has an owner is revoked first.
    fn rebalance(&self, group_id: &str) {
        let mut state = self.lock();
        let State { topics, groups, .. } = &mut *state;
        let Some(group) = groups.get_mut(group_id) else {
            return;
        };
        let subscribed: BTreeSet<&String> = group.members.values().flatten().collect();
        let all: Vec<TopicPartition> = subscribed
            .into_iter()
            .flat_map(|t| (0..topics.get(t).map_or(0, Vec::len)).map(move |p| TopicPartition::new(t.clone(), p as i32)))
            .collect();
        let members: Vec<u64> = group.members.keys().copied().collect();
        let (mut revoke, mut assign): (BTreeMap<u64, Vec<_>>, BTreeMap<u64, Vec<_>>) = Default::default();
        for (i, tp) in all.into_iter().enumerate() {
            let Some(&target) = members.get(i % members.len().max(1)) else {
                continue;
            };
            match group.owners.get(&tp) {
                Some(&owner) if owner == target || group.moving.contains(&tp) => {}
                Some(&owner) => {
                    group.moving.insert(tp.clone());
                    revoke.entry(owner).or_default().push(tp);
                }
                None => {
                    group.owners.insert(tp.clone(), target);
                    assign.entry(target).or_default().push(tp);
                }
            }
        }
        for (member, tps) in revoke {
            group.events.entry(member).or_default().push_back(Control::Revoke(tps));
        }
        for (member, tps) in assign {
            group.events.entry(member).or_default().push_back(Control::Assign(tps));
        }
        drop(state);
        self.wake();
    }

    fn released(&self, group_id: &str, partitions: &[TopicPartition]) {
        if let Some(group) = self.lock().groups.get_mut(group_id) {
            for tp in partitions {
                group.owners.remove(tp);
                group.moving.remove(tp);
            }
        }
        self.rebalance(group_id);
    }
}

/// A broker in memory.
#[derive(Clone)]
pub struct MemoryBus(Arc<Shared>);

impl MemoryBus {
    /// An empty broker; record timestamps come from `clock`.
    pub fn new(clock: SharedClock) -> Self {
        MemoryBus(Arc::new(Shared {
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            clock,
            topics: Topics::default(),
        }))
    }

    /// Creates a topic with this many partitions.
    pub fn create(&self, topic: &str, partitions: i32) {
        self.0.lock().topics.entry(topic.to_owned()).or_insert_with(|| logs(partitions.max(1)));
        let groups: Vec<String> = self.0.lock().groups.keys().cloned().collect();
        for group in groups {
            self.0.rebalance(&group);
        }
    }

    /// Every record of a topic that a read-committed reader sees, partition by partition.
    pub fn records(&self, topic: &str) -> Vec<Record> {
        let state = self.0.lock();
        let Some(partitions) = state.topics.get(topic) else { return Vec::new() };
        let settled = |log: &'_ [Slot]| stable_end(&state, log);
        let stable = partitions.iter().flat_map(|log| &log[..settled(log)]);
        stable.filter(|slot| !state.ledger.is_aborted(slot.transaction)).map(|slot| slot.record.clone()).collect()
    }

    /// Committed offsets of a group.
    pub fn committed(&self, group: &str) -> BTreeMap<TopicPartition, i64> {
        self.0.lock().groups.get(group).map(|g| g.committed.clone()).unwrap_or_default()
    }

    /// Waits until `condition` holds for the records of `topic`; the caller bounds it with a time-out.
    pub async fn wait_until(&self, topic: &str, mut condition: impl FnMut(&[Record]) -> bool) -> Vec<Record> {
        let mut changed = self.0.changed.subscribe();
        loop {
            changed.mark_unchanged();
            let records = self.records(topic);
            if condition(&records) {
                return records;
            }
            if changed.changed().await.is_err() {
                return records;
            }
        }
    }

    /// From now on every send fails as a broker that is away (`Some(why)`), or works again (`None`).
    pub fn fail_sends(&self, why: Option<&str>) {
        self.0.lock().failing = why.map(str::to_owned);
    }
}

struct MemorySink(Arc<Shared>);

fn logs(partitions: i32) -> Vec<Vec<Slot>> {
    (0..partitions).map(|_| Vec::new()).collect()
}

/// First slot of an open transaction, or the end: what a read-committed reader may see ends there.
fn stable_end(state: &State, log: &[Slot]) -> usize {
    log.iter().position(|slot| state.ledger.is_open(slot.transaction)).unwrap_or(log.len())
}

fn append(shared: &Shared, out: OutRecord, transaction: Option<u64>) -> Result<Delivery, PortError> {
    let now = shared.clock.now_ms();
    let mut state = shared.working()?;
    let created = !state.topics.contains_key(&out.topic);
    let partitions = state.topics.entry(out.topic.clone()).or_insert_with(|| logs(DEFAULT_PARTITIONS));
    let partition = out.partition.unwrap_or_else(|| spread(out.key.as_ref(), partitions.len()));
    let log = partitions
        .get_mut(partition as usize)
        .ok_or_else(|| PortError::Refused(format!("{} has no partition {partition}", out.topic)))?;
    let offset = log.len() as i64;
    let record = Record {
        topic: out.topic,
        partition,
        offset,
        timestamp_ms: out.timestamp_ms.unwrap_or(now),
        key: out.key,
        value: out.value,
        headers: out.headers,
    };
    log.push(Slot { record, transaction });
    let groups: Vec<String> = if created { state.groups.keys().cloned().collect() } else { Vec::new() };
    drop(state);
    for group in groups {
        shared.rebalance(&group);
    }
    shared.wake();
    Ok(Delivery { partition, offset })
}

fn spread(key: Option<&Bytes>, partitions: usize) -> i32 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    (hasher.finish() % partitions.max(1) as u64) as i32
}

impl Sink for MemorySink {
    fn send(&self, record: OutRecord) -> BoxFuture<'static, Result<Delivery, PortError>> {
        let result = append(&self.0, record, None);
        async move { result }.boxed()
    }

    fn flush(&self, _: Duration) -> BoxFuture<'_, Result<(), PortError>> {
        async { Ok(()) }.boxed()
    }
}

struct MemorySource {
    shared: Arc<Shared>,
    changed: watch::Receiver<u64>,
    group: Option<(String, u64)>,
    positions: BTreeMap<TopicPartition, i64>,
    ends: Option<BTreeMap<TopicPartition, i64>>,
    start: Start,
    subscribed: Vec<String>,
    paused: Mutex<BTreeSet<TopicPartition>>,
    resumed: Notify,
    turn: usize,
}

impl MemorySource {
    /// Control events of the group, then the next record of any partition that is not paused.
    fn poll_now(&mut self) -> Option<SourceEvent> {
        if let Some(event) = self.poll_group() {
            return Some(event);
        }
        if self.group.is_none() {
            self.take_new_partitions();
        }
        self.poll_record().or_else(|| self.poll_caught_up())
    }

    fn poll_group(&mut self) -> Option<SourceEvent> {
        let (group_id, member) = self.group.clone()?;
        let mut state = self.shared.lock();
        let group = state.groups.get_mut(&group_id)?;
        match group.events.get_mut(&member)?.pop_front()? {
            Control::Assign(tps) => {
                for tp in &tps {
                    self.positions.insert(tp.clone(), group.committed.get(tp).copied().unwrap_or(0));
                }
                Some(SourceEvent::Assigned(tps))
            }
            Control::Revoke(tps) => {
                for tp in &tps {
                    self.positions.remove(tp);
                }
                let (ack, receiver) = RevokeAck::channel();
                let (shared, moved) = (self.shared.clone(), tps.clone());
                tokio::spawn(async move {
                    // A dropped acknowledgement counts as one.
                    let _ = receiver.await;
                    shared.released(&group_id, &moved);
                });
                Some(SourceEvent::Revoked(tps, ack))
            }
        }
    }

    fn take_new_partitions(&mut self) {
        let state = self.shared.lock();
        for topic in &self.subscribed {
            let Some(partitions) = state.topics.get(topic) else {
                continue;
            };
            for (p, log) in partitions.iter().enumerate() {
                let tp = TopicPartition::new(topic.clone(), p as i32);
                let start = match &self.start {
                    Start::Beginning => 0,
                    Start::End if self.ends.is_none() => stable_end(&state, log) as i64,
                    Start::End => 0,
                    Start::Offsets(offsets) => offsets.get(&tp).copied().unwrap_or(0),
                };
                self.positions.entry(tp).or_insert(start);
            }
        }
        if self.ends.is_none() {
            let ends = self.positions.keys().map(|tp| (tp.clone(), log_end(&state, tp))).collect();
            self.ends = Some(ends);
        }
    }

    fn poll_record(&mut self) -> Option<SourceEvent> {
        let state = self.shared.lock();
        let paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let n = self.positions.len();
        self.turn = self.turn.wrapping_add(1);
        let keys: Vec<TopicPartition> = self.positions.keys().cloned().collect();
        for i in 0..n {
            let tp = &keys[(self.turn + i) % n];
            if paused.contains(tp) {
                continue;
            }
            let position = self.positions.get_mut(tp)?;
            let log = state.topics.get(&tp.topic).and_then(|ps| ps.get(tp.partition as usize));
            while let Some(slot) = log.and_then(|log| log.get(*position as usize)) {
                if state.ledger.is_open(slot.transaction) {
                    break;
                }
                *position += 1;
                if !state.ledger.is_aborted(slot.transaction) {
                    return Some(SourceEvent::Record(slot.record.clone()));
                }
            }
        }
        None
    }

    fn poll_caught_up(&mut self) -> Option<SourceEvent> {
        let ends = self.ends.as_ref()?;
        let reached = self.group.is_none()
            && !ends.contains_key(&done_marker())
            && ends.iter().all(|(tp, end)| self.positions.get(tp).is_some_and(|p| p >= end));
        reached.then(|| {
            if let Some(ends) = &mut self.ends {
                ends.insert(done_marker(), i64::MAX);
            }
            SourceEvent::CaughtUp
        })
    }
}

/// Key in `ends` that says that the source has caught up once.
fn done_marker() -> TopicPartition {
    TopicPartition::new("", -1)
}

fn log_end(state: &State, tp: &TopicPartition) -> i64 {
    let log = state.topics.get(&tp.topic).and_then(|ps| ps.get(tp.partition as usize));
    log.map_or(0, |log| stable_end(state, log) as i64)
}

#[async_trait]
impl Source for MemorySource {
    async fn next(&mut self) -> Result<SourceEvent, PortError> {
        loop {
            self.changed.mark_unchanged();
            if let Some(event) = self.poll_now() {
                return Ok(event);
            }
            let resumed = self.resumed.notified();
            tokio::select! {
                changed = self.changed.changed() => changed.map_err(|_| PortError::Closed)?,
                () = resumed => {}
            }
        }
    }

    async fn commit(&self, offsets: &[(TopicPartition, i64)]) -> Result<(), PortError> {
        let (group, _) = self.group.as_ref().ok_or_else(|| PortError::Config("commit without a group".to_owned()))?;
        if let Some(group) = self.shared.lock().groups.get_mut(group) {
            group.committed.extend(offsets.iter().cloned());
        }
        self.shared.wake();
        Ok(())
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        let (group, member) = self.group.clone()?;
        Some(GroupMetadata(Member::Memory { group, member }))
    }

    fn pause(&self, partitions: &[TopicPartition]) {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).extend(partitions.iter().cloned());
    }

    fn resume(&self, partitions: &[TopicPartition]) {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        for tp in partitions {
            paused.remove(tp);
        }
        drop(paused);
        self.resumed.notify_one();
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        let Some((group_id, member)) = self.group.take() else {
            return;
        };
        let mut released = Vec::new();
        if let Some(group) = self.shared.lock().groups.get_mut(&group_id) {
            group.members.remove(&member);
            group.events.remove(&member);
            released = group.owners.iter().filter(|(_, m)| **m == member).map(|(tp, _)| tp.clone()).collect();
        }
        self.shared.released(&group_id, &released);
    }
}

#[async_trait]
impl Bus for MemoryBus {
    fn sink(&self) -> Arc<dyn Sink> {
        Arc::new(MemorySink(self.0.clone()))
    }

    async fn source(&self, spec: SourceSpec) -> Result<Box<dyn Source>, PortError> {
        let (group, start) = match spec.mode {
            SourceMode::Group { group, .. } => {
                let mut state = self.0.lock();
                state.next_member += 1;
                let member = state.next_member;
                state.groups.entry(group.clone()).or_default().members.insert(member, spec.topics.clone());
                (Some((group, member)), Start::Beginning)
            }
            SourceMode::Assign { start } => (None, start),
        };
        if let Some((group, _)) = &group {
            self.0.rebalance(group);
        }
        let mut source = MemorySource {
            shared: self.0.clone(),
            changed: self.0.changed.subscribe(),
            group,
            positions: BTreeMap::new(),
            ends: None,
            start,
            subscribed: spec.topics,
            paused: Mutex::default(),
            resumed: Notify::new(),
            turn: 0,
        };
        if source.group.is_none() {
            source.take_new_partitions();
        }
        Ok(Box::new(source))
    }

    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), PortError> {
        for topic in topics {
            let partitions = if topic.single_partition { 1 } else { DEFAULT_PARTITIONS };
            self.create(&self.0.topics.name(&topic.name), partitions);
        }
        Ok(())
    }

    async fn partitions(&self, topic: &str) -> Result<i32, PortError> {
        let state = self.0.lock();
        let partitions = state.topics.get(topic).map(|ps| ps.len() as i32);
        partitions.ok_or_else(|| PortError::Refused(format!("topic {topic} does not exist")))
    }

    async fn transactions(&self, id: &str) -> Result<Box<dyn Transactions>, PortError> {
        Ok(Box::new(transactions::MemoryTransactions::open(self.0.clone(), id)?))
    }

    fn topics(&self) -> &Topics {
        &self.0.topics
    }
}
