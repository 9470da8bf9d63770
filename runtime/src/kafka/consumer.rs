//! The source: one thread polls librdkafka and hands events to the service over a bounded channel.
//!
//! Why a thread of its own: rebalance callbacks run inside `poll`, and a revoke must wait for the service without
//! blocking an async thread. Why generations: a record that was buffered before its partition was revoked must not
//! reach the service after the partition came back.

use super::{KafkaConfig, blocking, broker_error, config_error, retry_transient};
use crate::ports::*;
use crate::transactions::{GroupMetadata, Member};
use async_trait::async_trait;
use bytes::Bytes;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// How long one poll waits while the buffer has room.
const POLL: Duration = Duration::from_millis(100);
/// How long one poll waits while partitions are paused for a full buffer.
const POLL_FULL: Duration = Duration::from_millis(2);
/// How long a request for metadata or offsets may take.
const REQUEST: Duration = Duration::from_secs(20);

/// Longest wait of an empty fetch of a group member.
const GROUP_FETCH_WAIT_MS: i64 = 25;

enum Control {
    Assigned(Vec<TopicPartition>, u64),
    Revoked(Vec<TopicPartition>, oneshot::Sender<()>),
    Failed(PortError),
}

struct Buffered {
    record: Record,
    generation: u64,
}

/// Shared by the poll thread's callbacks and the source.
struct RebalanceContext {
    control: mpsc::UnboundedSender<Control>,
    generation: Mutex<u64>,
    revoke_timeout: Duration,
    closing: Arc<AtomicBool>,
}

impl ClientContext for RebalanceContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        tracing::debug!(?level, facility, message, "librdkafka");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "librdkafka");
    }
}

impl ConsumerContext for RebalanceContext {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let Rebalance::Revoke(list) = rebalance else {
            return;
        };
        let partitions = partitions_of(list);
        if partitions.is_empty() || self.closing.load(Ordering::SeqCst) {
            return;
        }
        let (done, wait) = oneshot::channel();
        if self.control.send(Control::Revoked(partitions.clone(), done)).is_err() {
            return;
        }
        if !wait_blocking(wait, self.revoke_timeout) {
            let names: Vec<String> = partitions.iter().map(ToString::to_string).collect();
            tracing::warn!(partitions = names.join(" "), "revoke timed out with work in flight; it will be run again");
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(list) => {
                let mut generation = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
                *generation += 1;
                // The source is gone when nobody receives; the thread ends at its next look.
                let _ = self.control.send(Control::Assigned(partitions_of(list), *generation));
            }
            Rebalance::Error(error) => {
                tracing::warn!(%error, "rebalance failed; librdkafka will try again");
            }
            Rebalance::Revoke(_) => {}
        }
    }
}

/// Waits on the poll thread, which is no async thread. False on time-out.
fn wait_blocking(mut wait: oneshot::Receiver<()>, timeout: Duration) -> bool {
    let step = Duration::from_millis(1);
    let mut waited = Duration::ZERO;
    loop {
        match wait.try_recv() {
            Ok(()) | Err(oneshot::error::TryRecvError::Closed) => return true,
            Err(oneshot::error::TryRecvError::Empty) if waited >= timeout => return false,
            Err(oneshot::error::TryRecvError::Empty) => {
                std::thread::sleep(step);
                waited += step;
            }
        }
    }
}

fn partitions_of(list: &TopicPartitionList) -> Vec<TopicPartition> {
    list.elements().iter().map(|e| TopicPartition::new(e.topic(), e.partition())).collect()
}

fn to_list(partitions: &[TopicPartition]) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for tp in partitions {
        list.add_partition(&tp.topic, tp.partition);
    }
    list
}

type Client = BaseConsumer<RebalanceContext>;

/// A Kafka source.
pub(super) struct KafkaSource {
    client: Arc<Client>,
    records: mpsc::Receiver<Buffered>,
    control: mpsc::UnboundedReceiver<Control>,
    /// Generation of each partition that is ours (group mode).
    generations: BTreeMap<TopicPartition, u64>,
    /// Assign mode: ends that are still to be reached before `CaughtUp`.
    ends: Option<BTreeMap<TopicPartition, i64>>,
    group: bool,
    paused: Arc<Mutex<BTreeSet<TopicPartition>>>,
    closing: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    pollers: Pollers,
}

/// Poll threads of sources that were dropped.
#[derive(Debug, Clone, Default)]
pub(super) struct Pollers(Arc<Mutex<Vec<std::thread::JoinHandle<()>>>>);

impl Pollers {
    fn note(&self, thread: std::thread::JoinHandle<()>) {
        let mut threads = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        threads.retain(|t| !t.is_finished());
        threads.push(thread);
    }

    /// True when each has left its group.
    pub(super) fn all_ended(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().all(std::thread::JoinHandle::is_finished)
    }
}

impl KafkaSource {
    pub(super) async fn open(config: &KafkaConfig, spec: SourceSpec, pollers: Pollers) -> Result<Self, PortError> {
        let (control_tx, control) = mpsc::unbounded_channel();
        let closing = Arc::new(AtomicBool::new(false));
        let context = RebalanceContext {
            control: control_tx.clone(),
            generation: Mutex::new(0),
            revoke_timeout: config.revoke_timeout.get(),
            closing: closing.clone(),
        };
        let client: Arc<Client> =
            Arc::new(client_config(config, &spec).create_with_context(context).map_err(|e| config_error(&e))?);
        let group = matches!(spec.mode, SourceMode::Group { .. });
        let ends = match &spec.mode {
            SourceMode::Group { .. } => {
                let topics: Vec<&str> = spec.topics.iter().map(String::as_str).collect();
                client.subscribe(&topics).map_err(|e| broker_error(&e))?;
                None
            }
            SourceMode::Assign { start } => {
                let (client, topics, start) = (client.clone(), spec.topics.clone(), start.clone());
                Some(blocking(move || assign(&client, &topics, &start)).await?)
            }
        };
        let (records_tx, records) = mpsc::channel(spec.buffer.max(1));
        let paused = Arc::new(Mutex::new(BTreeSet::new()));
        let poller = Poller {
            client: client.clone(),
            records: records_tx,
            control: control_tx,
            closing: closing.clone(),
            paused: paused.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("kafka-poll".to_owned())
            .spawn(move || poller.run())
            .map_err(|e| PortError::Broker(format!("cannot start the poll thread: {e}")))?;
        Ok(KafkaSource {
            client,
            records,
            control,
            generations: BTreeMap::new(),
            ends,
            group,
            paused,
            closing,
            thread: Some(thread),
            pollers,
        })
    }

    fn on_control(&mut self, control: Control) -> Result<SourceEvent, PortError> {
        match control {
            Control::Assigned(partitions, generation) => {
                for tp in &partitions {
                    self.generations.insert(tp.clone(), generation);
                }
                Ok(SourceEvent::Assigned(partitions))
            }
            Control::Revoked(partitions, done) => {
                for tp in &partitions {
                    self.generations.remove(tp);
                }
                let (ack, receiver) = RevokeAck::channel();
                tokio::spawn(async move {
                    // A dropped acknowledgement counts as one; a poll thread that waits no more needs none.
                    let _ = receiver.await;
                    let _ = done.send(());
                });
                Ok(SourceEvent::Revoked(partitions, ack))
            }
            Control::Failed(error) => Err(error),
        }
    }

    /// False for a record that was buffered before its partition went away.
    fn is_current(&self, buffered: &Buffered) -> bool {
        !self.group
            || self.generations.get(&buffered.record.topic_partition()).is_some_and(|g| *g <= buffered.generation)
    }

    fn note_progress(&mut self, record: &Record) {
        let Some(ends) = &mut self.ends else { return };
        let tp = record.topic_partition();
        if ends.get(&tp).is_some_and(|end| record.offset + 1 >= *end) {
            ends.remove(&tp);
        }
    }

    /// Compaction and transaction markers leave holes at the end of a log, so positions count too.
    fn caught_up(&mut self) -> bool {
        let Some(ends) = &mut self.ends else {
            return false;
        };
        if !ends.is_empty()
            && self.records.is_empty()
            && let Ok(positions) = self.client.position()
        {
            for e in positions.elements() {
                if let Offset::Offset(at) = e.offset() {
                    let tp = TopicPartition::new(e.topic(), e.partition());
                    if ends.get(&tp).is_some_and(|end| at >= *end) {
                        ends.remove(&tp);
                    }
                }
            }
        }
        ends.is_empty() && self.records.is_empty()
    }
}

fn client_config(config: &KafkaConfig, spec: &SourceSpec) -> rdkafka::ClientConfig {
    let mut client = config.client();
    client
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "earliest")
        .set("isolation.level", "read_committed")
        .set("fetch.wait.max.ms", fetch_wait_ms(config, spec).to_string())
        .set("session.timeout.ms", config.session_timeout.as_ms().to_string())
        .set("heartbeat.interval.ms", config.heartbeat.as_ms().to_string())
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("queued.min.messages", spec.buffer.max(1).to_string())
        .set("allow.auto.create.topics", "false");
    match &spec.mode {
        SourceMode::Group { group, instance_id } => {
            client.set("group.id", group);
            // librdkafka's main thread sleeps up to a second, heartbeat due or not, and joins a group at most once a
            // second; a metadata answer ends both (docs/adr/005-append-time-and-short-heartbeats.md).
            client.set("topic.metadata.refresh.interval.ms", config.heartbeat.as_ms().max(10).to_string());
            if let Some(id) = instance_id {
                client.set("group.instance.id", id);
            }
        }
        // librdkafka wants a group id for assignments too; nothing is ever committed under it.
        SourceMode::Assign { .. } => {
            client.set("group.id", "barista.unused");
        }
    }
    client
}

/// librdkafka has one fetch under way to a broker: a partition that is assigned meanwhile is asked for only in the next.
fn fetch_wait_ms(config: &KafkaConfig, spec: &SourceSpec) -> i64 {
    match spec.mode {
        SourceMode::Group { .. } => config.fetch_wait.as_ms().min(GROUP_FETCH_WAIT_MS),
        SourceMode::Assign { .. } => config.fetch_wait.as_ms(),
    }
}

/// Assigns every partition of the topics; returns the ends they have now, without those already reached.
fn assign(client: &Client, topics: &[String], start: &Start) -> Result<BTreeMap<TopicPartition, i64>, PortError> {
    let mut list = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for topic in topics {
        let metadata = client.fetch_metadata(Some(topic), REQUEST).map_err(|e| broker_error(&e))?;
        let partitions = metadata.topics().first().map(|t| t.partitions().len()).unwrap_or(0);
        if partitions == 0 {
            return Err(PortError::Refused(format!(
                "topic {topic} does not exist; create it with `barista topics create`"
            )));
        }
        for p in 0..partitions as i32 {
            let (low, high) = retry_transient(|| client.fetch_watermarks(topic, p, REQUEST))?;
            let tp = TopicPartition::new(topic.clone(), p);
            let at = match start {
                Start::Beginning => low,
                Start::End => high,
                Start::Offsets(offsets) => offsets.get(&tp).copied().unwrap_or(low).clamp(low, high),
            };
            list.add_partition_offset(topic, p, Offset::Offset(at)).map_err(|e| broker_error(&e))?;
            if at < high {
                ends.insert(tp, high);
            }
        }
    }
    client.assign(&list).map_err(|e| broker_error(&e))?;
    Ok(ends)
}

#[async_trait]
impl Source for KafkaSource {
    async fn next(&mut self) -> Result<SourceEvent, PortError> {
        loop {
            if self.caught_up() {
                self.ends = None;
                return Ok(SourceEvent::CaughtUp);
            }
            tokio::select! {
                biased;
                control = self.control.recv() => match control {
                    Some(control) => return self.on_control(control),
                    None => return Err(PortError::Closed),
                },
                buffered = self.records.recv() => match buffered {
                    Some(buffered) if self.is_current(&buffered) => {
                        self.note_progress(&buffered.record);
                        return Ok(SourceEvent::Record(buffered.record));
                    }
                    Some(_) => {}
                    None => return Err(PortError::Closed),
                },
                // Only while catching up: an end may be reached without a record.
                () = tokio::time::sleep(Duration::from_millis(20)), if self.ends.is_some() => {}
            }
        }
    }

    async fn commit(&self, offsets: &[(TopicPartition, i64)]) -> Result<(), PortError> {
        if offsets.is_empty() {
            return Ok(());
        }
        let mut list = TopicPartitionList::new();
        for (tp, offset) in offsets {
            list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(*offset))
                .map_err(|e| broker_error(&e))?;
        }
        let client = self.client.clone();
        blocking(move || client.commit(&list, CommitMode::Sync).map_err(|e| broker_error(&e))).await
    }

    fn group_metadata(&self) -> Option<GroupMetadata> {
        self.group.then(|| self.client.group_metadata())?.map(|m| GroupMetadata(Member::Kafka(Arc::new(m))))
    }

    fn pause(&self, partitions: &[TopicPartition]) {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner).extend(partitions.iter().cloned());
        if let Err(error) = self.client.pause(&to_list(partitions)) {
            tracing::debug!(%error, "pause");
        }
    }

    fn resume(&self, partitions: &[TopicPartition]) {
        let mut paused = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        for tp in partitions {
            paused.remove(tp);
        }
        drop(paused);
        if let Err(error) = self.client.resume(&to_list(partitions)) {
            tracing::debug!(%error, "resume");
        }
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::SeqCst);
        self.records.close();
        // The thread holds the last reference to the client but ours; it leaves the group when it ends. It is not
        // joined here: dropping must not block an async thread. `Bus::close` waits for it.
        if let Some(thread) = self.thread.take() {
            self.pollers.note(thread);
        }
    }
}

struct Poller {
    client: Arc<Client>,
    records: mpsc::Sender<Buffered>,
    control: mpsc::UnboundedSender<Control>,
    closing: Arc<AtomicBool>,
    paused: Arc<Mutex<BTreeSet<TopicPartition>>>,
}

impl Poller {
    fn run(self) {
        while !self.closing.load(Ordering::SeqCst) {
            match self.client.poll(POLL) {
                Some(Ok(message)) => {
                    let buffered = self.buffered(&message);
                    if !self.hand_over(buffered) {
                        break;
                    }
                }
                Some(Err(error)) => self.report(&error),
                None => {}
            }
        }
        self.client.unsubscribe();
    }

    fn buffered(&self, message: &BorrowedMessage<'_>) -> Buffered {
        let generation = *self.client.context().generation.lock().unwrap_or_else(PoisonError::into_inner);
        Buffered { record: to_record(message), generation }
    }

    /// False when the source is gone. A full buffer pauses all partitions; polling goes on for the callbacks.
    fn hand_over(&self, buffered: Buffered) -> bool {
        let mut waiting = match self.records.try_send(buffered) {
            Ok(()) => return true,
            Err(mpsc::error::TrySendError::Closed(_)) => return false,
            Err(mpsc::error::TrySendError::Full(buffered)) => vec![buffered],
        };
        self.set_paused(true);
        loop {
            // Messages that were already in the client's own queue still come; they wait here, in order.
            match self.client.poll(POLL_FULL) {
                Some(Ok(message)) => waiting.push(self.buffered(&message)),
                Some(Err(error)) => self.report(&error),
                None => {}
            }
            let mut sent = 0;
            for buffered in std::mem::take(&mut waiting) {
                if !waiting.is_empty() {
                    waiting.push(buffered);
                    continue;
                }
                match self.records.try_send(buffered) {
                    Ok(()) => sent += 1,
                    Err(mpsc::error::TrySendError::Closed(_)) => return false,
                    Err(mpsc::error::TrySendError::Full(buffered)) => waiting.push(buffered),
                }
            }
            if self.closing.load(Ordering::SeqCst) {
                return false;
            }
            if waiting.is_empty() && sent > 0 && self.records.capacity() * 2 >= self.records.max_capacity() {
                self.set_paused(false);
                return true;
            }
            if waiting.is_empty() && self.records.capacity() * 2 >= self.records.max_capacity() {
                self.set_paused(false);
                return true;
            }
        }
    }

    fn set_paused(&self, pause: bool) {
        let Ok(assignment) = self.client.assignment() else {
            return;
        };
        let by_service = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        let ours: Vec<TopicPartition> =
            partitions_of(&assignment).into_iter().filter(|tp| pause || !by_service.contains(tp)).collect();
        let list = to_list(&ours);
        let result = if pause { self.client.pause(&list) } else { self.client.resume(&list) };
        if let Err(error) = result {
            tracing::debug!(%error, pause, "cannot pause or resume");
        }
    }

    /// Most errors pass by themselves: librdkafka goes on trying. A few need an operator.
    fn report(&self, error: &KafkaError) {
        let fatal = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::Fatal
                    | RDKafkaErrorCode::TopicAuthorizationFailed
                    | RDKafkaErrorCode::GroupAuthorizationFailed
                    | RDKafkaErrorCode::UnknownTopicOrPartition
                    | RDKafkaErrorCode::UnknownTopic
            )
        );
        if fatal {
            // Nobody receives when the source is gone.
            let _ = self.control.send(Control::Failed(PortError::Refused(error.to_string())));
        } else {
            tracing::debug!(%error, "consumer");
        }
    }
}

fn to_record(message: &BorrowedMessage<'_>) -> Record {
    let headers = message
        .headers()
        .map(|headers| {
            headers.iter().map(|h| (h.key.to_owned(), Bytes::copy_from_slice(h.value.unwrap_or_default()))).collect()
        })
        .unwrap_or_default();
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis().unwrap_or(0),
        key: message.key().map(Bytes::copy_from_slice),
        value: message.payload().map(Bytes::copy_from_slice),
        headers: Headers(headers),
    }
}
