//! Ports: how a service reads and writes topics, without knowing the broker.

use crate::transactions::{GroupMetadata, Transactions};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use schemas::message::EncodeError;
use schemas::topics::TopicSpec;
use schemas::{EpochMs, Message, Topics};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// A partition of a topic (full name).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// Full topic name, prefix included.
    pub topic: String,
    /// Partition number.
    pub partition: i32,
}

impl TopicPartition {
    /// Partition `partition` of `topic`.
    pub fn new(topic: impl Into<String>, partition: i32) -> Self {
        TopicPartition { topic: topic.into(), partition }
    }
}

impl std::fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}[{}]", self.topic, self.partition)
    }
}

/// Record headers in order; a name may repeat, the last one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, Bytes)>);

impl Headers {
    /// The last value of this name.
    pub fn get(&self, name: &str) -> Option<&[u8]> {
        self.0.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_ref())
    }

    /// The last value of this name, if it is UTF-8.
    pub fn get_str(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|v| std::str::from_utf8(v).ok())
    }

    /// Adds one.
    pub fn push(&mut self, name: impl Into<String>, value: impl Into<Bytes>) {
        self.0.push((name.into(), value.into()));
    }
}

/// A record read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Full topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
    /// Record timestamp.
    pub timestamp_ms: EpochMs,
    /// Key.
    pub key: Option<Bytes>,
    /// Value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers.
    pub headers: Headers,
}

impl Record {
    /// The partition it came from.
    pub fn topic_partition(&self) -> TopicPartition {
        TopicPartition::new(self.topic.clone(), self.partition)
    }

    /// The key as text; empty if it has none or is not UTF-8.
    pub fn key_str(&self) -> &str {
        self.key.as_deref().and_then(|k| std::str::from_utf8(k).ok()).unwrap_or("")
    }
}

/// A record to be written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutRecord {
    /// Full topic name.
    pub topic: String,
    /// Partition; by key when absent.
    pub partition: Option<i32>,
    /// Key.
    pub key: Option<Bytes>,
    /// Value; `None` is a tombstone.
    pub value: Option<Bytes>,
    /// Headers.
    pub headers: Headers,
    /// Record timestamp; the time of sending when absent.
    pub timestamp_ms: Option<EpochMs>,
}

impl OutRecord {
    /// An empty record for `topic` (full name).
    pub fn new(topic: impl Into<String>) -> Self {
        OutRecord { topic: topic.into(), ..OutRecord::default() }
    }

    /// A message under the key of its contract.
    pub fn message<M: Message>(topic: impl Into<String>, message: &M) -> Result<Self, EncodeError> {
        Ok(OutRecord::new(topic).key(message.key()).value(message.encode()?))
    }

    /// A tombstone for `key`.
    pub fn tombstone(topic: impl Into<String>, key: impl Into<Bytes>) -> Self {
        OutRecord::new(topic).key(key)
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the value.
    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = Some(value.into());
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push(name, value);
        self
    }
}

/// Where a record was appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delivery {
    /// Partition.
    pub partition: i32,
    /// Offset.
    pub offset: i64,
}

/// Whose fault an error is, and so what a caller can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// May pass: try again with backoff.
    Transient,
    /// This input will never be accepted.
    Rejected,
    /// An operator must change something.
    Config,
    /// Ours.
    Bug,
}

/// An error of a port.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PortError {
    /// The source or sink has ended; nothing more will come or go.
    #[error("closed")]
    Closed,
    /// The broker could not be reached or failed for now.
    #[error("broker: {0}")]
    Broker(String),
    /// The broker refuses this record or request for good.
    #[error("refused by the broker: {0}")]
    Refused(String),
    /// A newer writer has taken the transactional id: this one can write nothing more.
    #[error("fenced: {0}")]
    Fenced(String),
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
}

impl PortError {
    /// What a caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            // A fenced writer may take its id back, which fences the other: only after a back-off.
            PortError::Closed | PortError::Broker(_) | PortError::Fenced(_) => Kind::Transient,
            PortError::Refused(_) => Kind::Rejected,
            PortError::Config(_) => Kind::Config,
        }
    }
}

/// Writes records.
pub trait Sink: Send + Sync {
    /// Appends a record. It is enqueued by this call, so the order of calls is the order in the log of a partition;
    /// when the bounded queue is full the future waits for room first. Resolves with the delivery report.
    fn send(&self, record: OutRecord) -> BoxFuture<'static, Result<Delivery, PortError>>;

    /// Waits until everything enqueued is delivered, at most `deadline`.
    fn flush(&self, deadline: Duration) -> BoxFuture<'_, Result<(), PortError>>;
}

/// Tells the source that in-flight work of revoked partitions is finished or given back. Dropping it says so too.
#[derive(Debug)]
pub struct RevokeAck(Option<oneshot::Sender<()>>);

impl RevokeAck {
    /// An acknowledgement and the receiver that resolves with it.
    pub fn channel() -> (Self, oneshot::Receiver<()>) {
        let (sender, receiver) = oneshot::channel();
        (RevokeAck(Some(sender)), receiver)
    }

    /// Work is finished, commits are made.
    pub fn done(mut self) {
        self.release();
    }

    fn release(&mut self) {
        if let Some(sender) = self.0.take() {
            // The source may have stopped waiting: then nobody needs the answer.
            let _ = sender.send(());
        }
    }
}

impl Drop for RevokeAck {
    fn drop(&mut self) {
        self.release();
    }
}

/// What a source yields.
#[derive(Debug)]
pub enum SourceEvent {
    /// The next record.
    Record(Record),
    /// These partitions are ours now.
    Assigned(Vec<TopicPartition>),
    /// These partitions go to another member: finish or give back their in-flight work, commit, then drop the ack.
    /// The source waits for it up to its revoke time-out and drops records of them that were not yet yielded.
    Revoked(Vec<TopicPartition>, RevokeAck),
    /// Assign mode only, once: every partition has been read to the end that it had at the start.
    CaughtUp,
}

/// Reads records.
#[async_trait]
pub trait Source: Send {
    /// The next event; cancel-safe. [`PortError::Closed`] when the source has ended.
    async fn next(&mut self) -> Result<SourceEvent, PortError>;

    /// Commits next offsets to read (last processed + 1). Group mode only.
    async fn commit(&self, offsets: &[(TopicPartition, i64)]) -> Result<(), PortError>;

    /// Who this member is, for [`Transactions::send_offsets`]; `None` outside a group.
    fn group_metadata(&self) -> Option<GroupMetadata> {
        None
    }

    /// Stops fetching these partitions; records already buffered still come.
    fn pause(&self, partitions: &[TopicPartition]);

    /// Fetches them again.
    fn resume(&self, partitions: &[TopicPartition]);
}

/// Where an assigned source begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// The oldest record kept.
    Beginning,
    /// Only what is written from now on.
    End,
    /// Given offsets; partitions that are not named begin at the oldest record.
    Offsets(BTreeMap<TopicPartition, i64>),
}

/// How a source gets its partitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceMode {
    /// A member of a consumer group; begins at committed offsets, else at the oldest record.
    Group {
        /// Group id (full name).
        group: String,
        /// Static membership, for a member that keeps state over a restart.
        instance_id: Option<String>,
    },
    /// All partitions of the topics, no group.
    Assign {
        /// Where to begin.
        start: Start,
    },
}

/// What to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSpec {
    /// Full topic names.
    pub topics: Vec<String>,
    /// Group or assignment.
    pub mode: SourceMode,
    /// Records buffered between the broker's client and the service; when full, partitions are paused.
    pub buffer: usize,
}

impl SourceSpec {
    /// A group member with the usual buffer.
    pub fn group(topics: Vec<String>, group: impl Into<String>) -> Self {
        SourceSpec { topics, mode: SourceMode::Group { group: group.into(), instance_id: None }, buffer: 1024 }
    }

    /// All partitions of `topics` from `start`.
    pub fn assign(topics: Vec<String>, start: Start) -> Self {
        SourceSpec { topics, mode: SourceMode::Assign { start }, buffer: 1024 }
    }
}

/// A broker as services see it.
#[async_trait]
pub trait Bus: Send + Sync {
    /// The shared sink.
    fn sink(&self) -> Arc<dyn Sink>;

    /// Opens a source.
    async fn source(&self, spec: SourceSpec) -> Result<Box<dyn Source>, PortError>;

    /// Creates what is missing; existing topics are left as they are. Adds the prefix.
    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), PortError>;

    /// Number of partitions of a topic (full name).
    async fn partitions(&self, topic: &str) -> Result<i32, PortError>;

    /// Topic names with the configured prefix.
    fn topics(&self) -> &Topics;

    /// Opens the writer of a transactional id (full name), see [`crate::transactions`]: when this returns, what an
    /// earlier writer of the id left open is aborted and that writer is fenced.
    async fn transactions(&self, id: &str) -> Result<Box<dyn Transactions>, PortError> {
        Err(PortError::Config(format!("transactional id {id}: this bus has no transactions")))
    }

    /// Waits until sources that were dropped have left their groups, at most `limit`; for the end of a process: a
    /// member that goes without a word is missed only after the session time-out, and nobody reads its partitions
    /// until then. False when the limit came first.
    async fn close(&self, _limit: Duration) -> bool {
        true
    }
}
