//! Port: records and input offsets that become visible together, from one writer at a time.
//!
//! A writer is known by its transactional id. Opening it ([`crate::Bus::transactions`]) ends what an earlier writer of
//! the id left open and fences that writer: nothing of it is ever committed after that. Readers are read-committed
//! ([`crate::Source`]), so they see all of a transaction or nothing.
//!
//! What a caller does after an error:
//!
//! | error | of | then |
//! |---|---|---|
//! | [`PortError::Fenced`] | any call | another writer has the id: drop this one |
//! | other | `begin`, `send`, `send_offsets` | `abort`, and try again with a new transaction |
//! | other | `commit`, `abort` | the outcome is not known: drop this writer and open the id again, which settles it; what was committed is in the log |
//!
//! Left out: several transactions at a time (use several ids).

use crate::ports::{Delivery, OutRecord, PortError, TopicPartition};
use async_trait::async_trait;
use futures::future::BoxFuture;

/// A member of a consumer group as the broker knows it, from [`crate::Source::group_metadata`]: offsets of a member
/// that the group has expelled since are refused.
#[derive(Clone)]
pub struct GroupMetadata(pub(crate) Member);

#[derive(Clone)]
pub(crate) enum Member {
    Memory {
        group: String,
        member: u64,
    },
    #[cfg(feature = "kafka")]
    Kafka(std::sync::Arc<rdkafka::consumer::ConsumerGroupMetadata>),
}

impl std::fmt::Debug for GroupMetadata {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Member::Memory { group, member } => write!(f, "GroupMetadata({group}, {member})"),
            #[cfg(feature = "kafka")]
            Member::Kafka(_) => f.write_str("GroupMetadata(Kafka)"),
        }
    }
}

/// The writer of a transactional id. One transaction at a time; see the module for errors.
#[async_trait]
pub trait Transactions: Send + Sync {
    /// Begins a transaction.
    async fn begin(&self) -> Result<(), PortError>;

    /// Appends a record in the open transaction, with the order and the back-pressure of [`crate::Sink::send`].
    /// Resolves when it is stored; it is visible after [`Transactions::commit`] only.
    fn send(&self, record: OutRecord) -> BoxFuture<'static, Result<Delivery, PortError>>;

    /// Commits next offsets to read of the group with the open transaction, if the member still belongs to it.
    async fn send_offsets(&self, offsets: &[(TopicPartition, i64)], group: &GroupMetadata) -> Result<(), PortError>;

    /// Waits for everything sent and commits. Bounded by `kafka.transaction_timeout`.
    async fn commit(&self) -> Result<(), PortError>;

    /// Drops everything since [`Transactions::begin`]; without an open transaction it does nothing.
    async fn abort(&self) -> Result<(), PortError>;
}
