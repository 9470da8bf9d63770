//! Clients that use a broker which dies under them, and write down what they were told.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, GroupId, InitProducerIdRequest,
    OffsetCommitRequest, OffsetFetchRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::client::{self, Client, Numbering, PLAIN, name, text};
use crate::history::{Append, History, Look, OffsetStep, Outcome, Partition, Remains, Tick};

/// The topic that is appended to, and its partitions.
pub(crate) const LOG: &str = "log";
pub(crate) const PARTITIONS: i32 = 3;
/// The compacted topic; every client writes keys of its own.
pub(crate) const TABLE: &str = "table";
const TABLE_KEYS: u64 = 8;

const COMMITTED: i8 = 1;
const EVERYTHING: i8 = 0;

/// What all clients share.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) address: SocketAddr,
    pub(crate) stop: Arc<AtomicBool>,
    clock: Arc<AtomicU64>,
    values: Arc<AtomicU64>,
}

impl Shared {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, stop: Arc::default(), clock: Arc::default(), values: Arc::default() }
    }

    fn tick(&self) -> Tick {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn value(&self) -> u64 {
        self.values.fetch_add(1, Ordering::SeqCst)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// The connection broke after the request was sent: whether it was carried out is not known.
#[derive(Debug)]
pub(crate) struct Lost;

/// A client: connects when it must, and again when the broker has died.
pub(crate) struct Actor {
    shared: Shared,
    rng: StdRng,
    connection: Option<Client>,
    pub(crate) history: History,
}

impl Actor {
    pub(crate) fn new(shared: &Shared, seed: u64) -> Self {
        let rng = StdRng::seed_from_u64(seed);
        Self { shared: shared.clone(), rng, connection: None, history: History::default() }
    }

    pub(crate) fn tick(&self) -> Tick {
        self.shared.tick()
    }

    pub(crate) fn value(&self) -> u64 {
        self.shared.value()
    }

    pub(crate) fn stopped(&self) -> bool {
        self.shared.stopped()
    }

    pub(crate) fn draw(&mut self, chance: f64) -> bool {
        self.rng.random_bool(chance)
    }

    pub(crate) fn below(&mut self, end: i32) -> i32 {
        self.rng.random_range(0..end)
    }

    /// Sends once, on a connection that stands.
    pub(crate) fn once<T>(&mut self, send: impl FnOnce(&mut Client) -> io::Result<T>) -> Result<T, Lost> {
        let mut connection = loop {
            match self.connection.take().map_or_else(|| Client::connect(self.shared.address), Ok) {
                Ok(connection) => break connection,
                // The broker is down; its restart is on the way.
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        match send(&mut connection) {
            Ok(answer) => {
                self.connection = Some(connection);
                Ok(answer)
            }
            Err(error) => {
                // Killed brokers break connections; they neither talk nonsense nor fall silent.
                use io::ErrorKind::{InvalidData, TimedOut, WouldBlock};
                if matches!(error.kind(), InvalidData | TimedOut | WouldBlock) {
                    self.complain(format!("no sound answer: {error}"));
                }
                Err(Lost)
            }
        }
    }

    /// Sends again and again until there is an answer.
    fn persistently<T>(&mut self, send: impl Fn(&mut Client) -> io::Result<T>) -> T {
        loop {
            if let Ok(answer) = self.once(&send) {
                return answer;
            }
        }
    }

    pub(crate) fn complain(&mut self, what: String) {
        self.history.complaints.push(what);
    }

    /// Notes records that are about to be sent; `acknowledge` completes them.
    fn note(&mut self, writer: u64, partition: Partition, transaction: Option<u64>) -> (usize, Vec<String>) {
        let sent = self.shared.tick();
        let first = self.history.appends.len();
        let count = self.rng.random_range(1..=4);
        for _ in 0..count {
            let value = self.shared.value();
            self.history.appends.push(Append { writer, partition, value, sent, acknowledged: None, transaction });
        }
        (first, self.history.appends[first..].iter().map(|append| append.value.to_string()).collect())
    }

    fn acknowledge(&mut self, first: usize, base_offset: i64) {
        let tick = self.shared.tick();
        for (append, offset) in self.history.appends[first..].iter_mut().zip(base_offset..) {
            append.acknowledged = Some((tick, offset));
        }
    }

    /// Appends without numbers: what is lost on the way is not sent again.
    pub(crate) fn write_plainly(mut self, writer: u64) -> History {
        while !self.shared.stopped() {
            let partition = self.rng.random_range(0..PARTITIONS);
            let (first, values) = self.note(writer, partition, None);
            let batch = client::batch("k", &values, PLAIN);
            match self.once(|client| client.produce(LOG, partition, batch, None)) {
                Ok(answer) if answer.error_code == 0 => self.acknowledge(first, answer.base_offset),
                Ok(answer) => self.complain(format!("writer {writer}: {answer:?}")),
                Err(Lost) => {}
            }
        }
        self.history
    }

    /// Appends with numbers: sent again until acknowledged, and there once all the same.
    pub(crate) fn write_idempotently(mut self, writer: u64) -> History {
        let (producer_id, epoch) = self.initialise(None);
        let mut sequences = [0i32; PARTITIONS as usize];
        while !self.shared.stopped() {
            let partition = self.rng.random_range(0..PARTITIONS);
            let (first, values) = self.note(writer, partition, None);
            let sequence = &mut sequences[partition as usize];
            let numbering = Numbering { producer_id, epoch, sequence: *sequence, transactional: false };
            *sequence += values.len() as i32;
            let batch = client::batch("k", &values, numbering);
            let answer = self.persistently(|client| client.produce(LOG, partition, batch.clone(), None));
            match answer.error_code {
                0 => self.acknowledge(first, answer.base_offset),
                _ => self.complain(format!("writer {writer}: {answer:?}")),
            }
        }
        self.history
    }

    fn initialise(&mut self, transactional_id: Option<&str>) -> (i64, i16) {
        let request = InitProducerIdRequest::default()
            .with_transactional_id(transactional_id.map(|id| TransactionalId(text(id))))
            .with_transaction_timeout_ms(60_000)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        loop {
            let answer = self.persistently(|client| client.call(4, &request));
            match answer.error_code {
                0 => return (answer.producer_id.0, answer.producer_epoch),
                code if is(code, ResponseError::ConcurrentTransactions) => {}
                _ => self.complain(format!("no producer id: {answer:?}")),
            }
        }
    }

    /// Transactions over several partitions and a group's offset.
    pub(crate) fn transact(mut self, writer: u64) -> History {
        let id = format!("transactional-{writer}");
        let mut producer = self.begin_anew(&id);
        let mut number = 0;
        while !self.shared.stopped() {
            number += 1;
            let transaction = writer << 32 | number;
            let outcome = self.one_transaction(&mut producer, transaction, number as i64);
            self.history.transactions.insert(transaction, outcome.unwrap_or(Outcome::Unknown));
            if outcome.is_none() || self.rng.random_bool(0.05) {
                let zombie = std::mem::replace(&mut producer, self.begin_anew(&id));
                self.haunt(&zombie);
            }
            let offset = self.read_offset(&producer.group, 0);
            self.step(&producer.group, OffsetStep::Read { offset });
        }
        self.history
    }

    fn begin_anew(&mut self, id: &str) -> Producer {
        let (producer_id, epoch) = self.initialise(Some(id));
        let group = format!("group of {id}");
        Producer { id: id.to_owned(), group, producer_id, epoch, sequences: [0; PARTITIONS as usize] }
    }

    fn step(&mut self, group: &str, step: OffsetStep) {
        self.history.offsets.entry(group.to_owned()).or_default().push(step);
    }

    /// Runs one transaction; `None` when it was given up with the end unknown. One that was given
    /// up before its end was asked for is aborted by whoever begins anew.
    fn one_transaction(&mut self, producer: &mut Producer, transaction: u64, offset: i64) -> Option<Outcome> {
        let mut partitions: Vec<Partition> = (0..PARTITIONS).filter(|_| self.rng.random_bool(0.6)).collect();
        if partitions.is_empty() {
            partitions.push(0);
        }
        let begun = self.fill(producer, transaction, &partitions, offset);
        let wants_commit = self.rng.random_bool(0.65);
        if begun.is_err() || self.rng.random_bool(0.05) {
            // Nobody asked for a commit: the next to begin with this id aborts it.
            *producer = self.begin_anew(&producer.id.clone());
            return Some(Outcome::Aborted);
        }
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(producer.id.as_str())))
            .with_producer_id(ProducerId(producer.producer_id))
            .with_producer_epoch(producer.epoch)
            .with_committed(wants_commit);
        let ended = self.insist(|client| client.call(3, &request).map(|answer| answer.error_code));
        match ended {
            Ok(()) if wants_commit => Some(Outcome::Committed),
            Ok(()) => Some(Outcome::Aborted),
            Err(Lost) if wants_commit => None,
            Err(Lost) => {
                *producer = self.begin_anew(&producer.id.clone());
                Some(Outcome::Aborted)
            }
        }
    }

    /// Records to each partition, and an offset.
    fn fill(
        &mut self,
        producer: &mut Producer,
        transaction: u64,
        partitions: &[Partition],
        offset: i64,
    ) -> Result<(), Lost> {
        let id = TransactionalId(text(producer.id.as_str()));
        let topic = AddPartitionsToTxnTopic::default().with_name(name(LOG)).with_partitions(partitions.to_vec());
        let add = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id.clone())
            .with_v3_and_below_producer_id(ProducerId(producer.producer_id))
            .with_v3_and_below_producer_epoch(producer.epoch)
            .with_v3_and_below_topics(vec![topic]);
        self.insist(|client| {
            let answer = client.call(3, &add)?;
            let mut results = answer.results_by_topic_v3_and_below.iter().flat_map(|topic| &topic.results_by_partition);
            Ok(results.find(|r| r.partition_error_code != 0).map_or(0, |r| r.partition_error_code))
        })?;
        for &partition in partitions {
            let (first, values) = self.note(producer.writer(), partition, Some(transaction));
            let numbering = producer.number(partition, values.len());
            let batch = client::batch("k", &values, numbering);
            let mut base = -1;
            let id = producer.id.clone();
            self.insist(|client| {
                let answer = client.produce(LOG, partition, batch.clone(), Some(&id))?;
                base = answer.base_offset;
                Ok(answer.error_code)
            })?;
            self.acknowledge(first, base);
        }
        self.add_offset(producer, id, offset)?;
        self.step(&producer.group.clone(), OffsetStep::InTransaction { offset, transaction });
        Ok(())
    }

    fn add_offset(&mut self, producer: &Producer, id: TransactionalId, offset: i64) -> Result<(), Lost> {
        let group = GroupId(text(producer.group.as_str()));
        let add = AddOffsetsToTxnRequest::default()
            .with_transactional_id(id.clone())
            .with_producer_id(ProducerId(producer.producer_id))
            .with_producer_epoch(producer.epoch)
            .with_group_id(group.clone());
        self.insist(|client| client.call(3, &add).map(|answer| answer.error_code))?;
        let partition = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(0)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(-1);
        let topic = TxnOffsetCommitRequestTopic::default().with_name(name(LOG)).with_partitions(vec![partition]);
        let commit = TxnOffsetCommitRequest::default()
            .with_transactional_id(id)
            .with_group_id(group)
            .with_producer_id(ProducerId(producer.producer_id))
            .with_producer_epoch(producer.epoch)
            .with_topics(vec![topic]);
        self.insist(|client| {
            let answer = client.call(3, &commit)?;
            let mut partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
            Ok(partitions.next().map_or(-1, |partition| partition.error_code))
        })
    }

    /// Sends a step of a transaction, again after "not now", and after a lost answer sometimes.
    fn insist(&mut self, mut send: impl FnMut(&mut Client) -> io::Result<i16>) -> Result<(), Lost> {
        loop {
            match self.once(&mut send) {
                Ok(0) => return Ok(()),
                Ok(code) if is(code, ResponseError::ConcurrentTransactions) => {}
                Ok(code) => {
                    self.complain(format!(
                        "a step of a transaction was refused: {:?}",
                        ResponseError::try_from_code(code)
                    ));
                    return Err(Lost);
                }
                Err(Lost) if self.rng.random_bool(0.5) => {}
                Err(Lost) => return Err(Lost),
            }
        }
    }

    /// A producer that another one has followed must not be able to do anything.
    fn haunt(&mut self, zombie: &Producer) {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(zombie.id.as_str())))
            .with_producer_id(ProducerId(zombie.producer_id))
            .with_producer_epoch(zombie.epoch)
            .with_committed(true);
        if let Ok(answer) = self.once(|client| client.call(3, &request))
            && !is(answer.error_code, ResponseError::ProducerFenced)
        {
            self.complain(format!("a zombie was answered {answer:?}"));
        }
    }

    pub(crate) fn read_offset(&mut self, group: &str, partition: Partition) -> i64 {
        let topic = OffsetFetchRequestTopic::default().with_name(name(LOG)).with_partition_indexes(vec![partition]);
        let request = OffsetFetchRequest::default()
            .with_group_id(GroupId(text(group)))
            .with_topics(Some(vec![topic]))
            .with_require_stable(true);
        loop {
            let answer = self.persistently(|client| client.call(7, &request));
            let mut partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
            match partitions.next() {
                Some(partition) if partition.error_code == 0 => return partition.committed_offset,
                Some(partition) if is(partition.error_code, ResponseError::UnstableOffsetCommit) => {}
                _ => self.complain(format!("no offset: {answer:?}")),
            }
        }
    }

    /// Commits ever larger offsets of a group, and reads them back now and then.
    pub(crate) fn commit(mut self, group: &str) -> History {
        let mut offset = 0;
        while !self.shared.stopped() {
            offset += 1;
            let partition = OffsetCommitRequestPartition::default()
                .with_partition_index(0)
                .with_committed_offset(offset)
                .with_committed_leader_epoch(-1);
            let topic = OffsetCommitRequestTopic::default().with_name(name(LOG)).with_partitions(vec![partition]);
            let request = OffsetCommitRequest::default()
                .with_group_id(GroupId(text(group)))
                .with_generation_id_or_member_epoch(-1)
                .with_topics(vec![topic]);
            let answer = self.once(|client| client.call(7, &request));
            let code = answer.map(|a| a.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code).sum::<i16>());
            match code {
                Ok(0) | Err(Lost) => self.step(group, OffsetStep::Commit { offset, acknowledged: code.is_ok() }),
                Ok(code) => self.complain(format!("a commit was refused: {:?}", ResponseError::try_from_code(code))),
            }
            if code.is_err() || self.rng.random_bool(0.1) {
                let offset = self.read_offset(group, 0);
                self.step(group, OffsetStep::Read { offset });
            }
        }
        self.history
    }

    /// Follows all partitions as a read-committed consumer, and looks at their ends.
    pub(crate) fn follow(mut self) -> History {
        let mut next = [0i64; PARTITIONS as usize];
        while !self.shared.stopped() {
            for partition in 0..PARTITIONS {
                let at = &mut next[partition as usize];
                let (from, sent) = (*at, self.shared.tick());
                let Ok(data) = self.once(|client| client.fetch(LOG, partition, from, COMMITTED)) else { continue };
                if data.error_code != 0 {
                    self.complain(format!("cannot read from {from} of {partition}: {data:?}"));
                    continue;
                }
                let (high, stable) = (data.high_watermark, data.last_stable_offset);
                self.history.looks.push(Look { partition, sent, high, stable });
                match readable(&data, from) {
                    Ok((seen, end)) => {
                        *at = end.unwrap_or(from);
                        self.history.seen.extend(seen.into_iter().map(|(offset, value)| (partition, offset, value)));
                    }
                    Err(error) => self.complain(format!("unreadable records at {from} of {partition}: {error}")),
                }
            }
        }
        self.history
    }

    /// Overwrites a few keys of the compacted topic for ever.
    pub(crate) fn overwrite(mut self, writer: u64) -> History {
        while !self.shared.stopped() {
            let key = format!("{writer}/{}", self.rng.random_range(0..TABLE_KEYS));
            let value = self.shared.value();
            let batch = client::batch(&key, &[value.to_string()], PLAIN);
            let acknowledged = match self.once(|client| client.produce(TABLE, 0, batch, None)) {
                Ok(answer) if answer.error_code == 0 => true,
                Ok(answer) => {
                    self.complain(format!("table writer {writer}: {answer:?}"));
                    false
                }
                Err(Lost) => false,
            };
            self.history.table.entry(key).or_default().push((value, acknowledged));
        }
        self.history
    }
}

fn is(code: i16, error: ResponseError) -> bool {
    code == error.code()
}

/// A transactional producer.
struct Producer {
    id: String,
    group: String,
    producer_id: i64,
    epoch: i16,
    sequences: [i32; PARTITIONS as usize],
}

impl Producer {
    /// Records keep their order within one incarnation.
    fn writer(&self) -> u64 {
        (self.producer_id.cast_unsigned() << 16 | u64::from(self.epoch.cast_unsigned())) | 1 << 63
    }

    fn number(&mut self, partition: Partition, count: usize) -> Numbering {
        let sequence = &mut self.sequences[partition as usize];
        let first = *sequence;
        *sequence += count as i32;
        Numbering { producer_id: self.producer_id, epoch: self.epoch, sequence: first, transactional: true }
    }
}

type Values = Vec<(i64, u64)>;

/// Offsets and values in an answer, from `from` on, and where to go on.
fn readable(
    data: &kafka_protocol::messages::fetch_response::PartitionData,
    from: i64,
) -> io::Result<(Values, Option<i64>)> {
    let aborted = data.aborted_transactions.iter().flatten().map(|a| (a.producer_id.0, a.first_offset));
    let aborted: Vec<(i64, i64)> = aborted.collect();
    let (seen, next) = client::records(&data.records.clone().unwrap_or_default(), &aborted)?;
    let values = seen.into_iter().filter(|record| record.offset >= from).map(|record| {
        let value = record.value.parse().map_err(|_| io::Error::other(format!("not ours: {record:?}")))?;
        Ok((record.offset, value))
    });
    Ok((values.collect::<io::Result<_>>()?, next))
}

fn read_all(client: &mut Client, topic: &str, partition: Partition, isolation: i8) -> io::Result<Values> {
    let (mut from, mut all) = (0, Vec::new());
    loop {
        let data = client.fetch(topic, partition, from, isolation)?;
        if data.error_code != 0 {
            return Err(io::Error::other(format!("{topic}/{partition} at {from}: {data:?}")));
        }
        let (seen, next) = readable(&data, from)?;
        all.extend(seen);
        match next {
            Some(next) if next > from => from = next,
            _ => return Ok(all),
        }
    }
}

/// Reads everything that is left.
pub(crate) fn remains(client: &mut Client) -> io::Result<Remains> {
    let mut remains = Remains::default();
    for partition in 0..PARTITIONS {
        remains.all.insert(partition, read_all(client, LOG, partition, EVERYTHING)?);
        remains.committed.insert(partition, read_all(client, LOG, partition, COMMITTED)?);
    }
    let mut from = 0;
    let mut table = BTreeMap::new();
    loop {
        let data = client.fetch(TABLE, 0, from, EVERYTHING)?;
        if data.error_code != 0 {
            return Err(io::Error::other(format!("{TABLE} at {from}: {data:?}")));
        }
        let (seen, next) = client::records(&data.records.unwrap_or_default(), &[])?;
        for record in seen.into_iter().filter(|record| record.offset >= from) {
            let value = record.value.parse().map_err(|_| io::Error::other("not ours"))?;
            table.insert(record.key, value);
        }
        match next {
            Some(next) if next > from => from = next,
            _ => break,
        }
    }
    remains.table = table;
    Ok(remains)
}
