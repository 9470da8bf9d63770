//! The writer of a transactional id over librdkafka.
//!
//! Errors are sorted by what librdkafka says about them: fenced ones are [`PortError::Fenced`]; retriable ones are
//! tried again until the transaction's time is over; all others go to the caller, who aborts or opens the id again.

use super::producer::{enqueue, producer_config};
use super::{KafkaConfig, blocking, broker_error, config_error};
use crate::ports::{Delivery, OutRecord, PortError, TopicPartition};
use crate::transactions::{GroupMetadata, Member, Transactions};
use async_trait::async_trait;
use futures::future::BoxFuture;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::{Offset, TopicPartitionList};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Pause before a retriable request is made again.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) struct KafkaTransactions {
    producer: FutureProducer,
    id: String,
    limit: Duration,
    /// A transaction is open.
    open: AtomicBool,
}

impl KafkaTransactions {
    /// Takes the id over: ends what an earlier writer left open, and fences it.
    pub(super) async fn open(config: &KafkaConfig, id: &str) -> Result<Self, PortError> {
        let limit = config.transaction_timeout.get();
        let delivery_ms = config.delivery_timeout.as_ms().min(config.transaction_timeout.as_ms());
        let producer: FutureProducer = producer_config(config)
            .set("transactional.id", id)
            .set("transaction.timeout.ms", config.transaction_timeout.as_ms().to_string())
            .set("message.timeout.ms", delivery_ms.to_string())
            .create()
            .map_err(|e| config_error(&e))?;
        let writer = KafkaTransactions { producer, id: id.to_owned(), limit, open: AtomicBool::new(false) };
        writer.request(move |producer, left| producer.init_transactions(left)).await?;
        Ok(writer)
    }

    /// Makes a request, again while librdkafka says that this may help, within the limit.
    async fn request(
        &self,
        mut call: impl FnMut(&FutureProducer, Duration) -> Result<(), KafkaError> + Send + 'static,
    ) -> Result<(), PortError> {
        let (producer, limit, id) = (self.producer.clone(), self.limit, self.id.clone());
        blocking(move || {
            let begun = Instant::now();
            loop {
                let left = limit.saturating_sub(begun.elapsed());
                match call(&producer, left) {
                    Ok(()) => return Ok(()),
                    Err(error) if is_retriable(&error) && begun.elapsed() + PAUSE < limit => std::thread::sleep(PAUSE),
                    Err(error) => return Err(sorted(&producer, &id, &error)),
                }
            }
        })
        .await
    }
}

fn is_retriable(error: &KafkaError) -> bool {
    matches!(error, KafkaError::Transaction(error) if error.is_retriable())
}

/// True for the codes by which a broker or librdkafka says that a newer writer has the id.
fn is_fencing(code: RDKafkaErrorCode) -> bool {
    matches!(code, RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch)
}

fn sorted(producer: &FutureProducer, id: &str, error: &KafkaError) -> PortError {
    let fatal = producer.client().fatal_error();
    let codes = error.rdkafka_error_code().into_iter().chain(fatal.as_ref().map(|(code, _)| *code));
    let in_transaction = match error {
        KafkaError::Transaction(error) => Some(error.code()),
        _ => None,
    };
    if codes.chain(in_transaction).any(is_fencing) {
        return PortError::Fenced(format!("transactional id {id} has a newer writer ({error})"));
    }
    match error {
        KafkaError::Transaction(cause)
            if matches!(
                cause.code(),
                RDKafkaErrorCode::TransactionalIdAuthorizationFailed
                    | RDKafkaErrorCode::ClusterAuthorizationFailed
                    | RDKafkaErrorCode::UnsupportedFeature
            ) =>
        {
            PortError::Refused(format!("transactional id {id}: {error}"))
        }
        KafkaError::Transaction(_) => PortError::Broker(format!("transactional id {id}: {error}")),
        _ => broker_error(error),
    }
}

#[async_trait]
impl Transactions for KafkaTransactions {
    async fn begin(&self) -> Result<(), PortError> {
        self.producer.begin_transaction().map_err(|e| sorted(&self.producer, &self.id, &e))?;
        self.open.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn send(&self, record: OutRecord) -> BoxFuture<'static, Result<Delivery, PortError>> {
        let id = self.id.clone();
        enqueue(&self.producer, record, move |producer, error| sorted(producer, &id, error))
    }

    async fn send_offsets(&self, offsets: &[(TopicPartition, i64)], group: &GroupMetadata) -> Result<(), PortError> {
        let Member::Kafka(group) = &group.0 else {
            return Err(PortError::Config("group metadata of another bus".to_owned()));
        };
        let mut list = TopicPartitionList::new();
        for (tp, offset) in offsets {
            list.add_partition_offset(&tp.topic, tp.partition, Offset::Offset(*offset))
                .map_err(|e| broker_error(&e))?;
        }
        let group = group.clone();
        self.request(move |producer, left| producer.send_offsets_to_transaction(&list, &group, left)).await
    }

    async fn commit(&self) -> Result<(), PortError> {
        self.request(|producer, left| producer.commit_transaction(left)).await?;
        self.open.store(false, Ordering::SeqCst);
        Ok(())
    }

    async fn abort(&self) -> Result<(), PortError> {
        if self.open.swap(false, Ordering::SeqCst) {
            self.request(|producer, left| producer.abort_transaction(left)).await?;
        }
        Ok(())
    }
}
