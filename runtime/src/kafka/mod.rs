//! The ports over Kafka (librdkafka).
//!
//! Invariants:
//! - The producer is idempotent with acks = all; a send resolves with the delivery report.
//! - Nothing is committed by a timer; sources commit what services hand them.
//! - A full buffer pauses the partitions; the poll thread goes on polling, so a slow service is never evicted.
//! - A revoke waits for the service (bounded by `kafka.revoke_timeout`), then hands the partitions over.

mod config;
mod consumer;
mod producer;
mod transactions;

pub use config::{KafkaConfig, SaslConfig, TlsConfig};

use crate::ports::{Bus, PortError, Sink, Source, SourceSpec};
use crate::transactions::Transactions;
use async_trait::async_trait;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use schemas::Topics;
use schemas::topics::{Cleanup, TopicSpec};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long an administrative request may take.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Age at which a segment of a compacted topic is closed, and so may be compacted: 10 minutes.
const COMPACTED_SEGMENT_MS: &str = "600000";

/// A Kafka cluster, or the embedded broker.
pub struct KafkaBus {
    config: KafkaConfig,
    topics: Topics,
    sink: Arc<producer::KafkaSink>,
    pollers: consumer::Pollers,
}

impl KafkaBus {
    /// Checks the configuration and creates the producer. Brokers are contacted in the background; use
    /// [`KafkaBus::probe`] to wait for them.
    pub fn connect(config: &KafkaConfig) -> Result<Self, PortError> {
        let sink = producer::KafkaSink::new(config)?;
        Ok(KafkaBus {
            topics: Topics::new(config.topic_prefix.clone()),
            sink: Arc::new(sink),
            config: config.clone(),
            pollers: consumer::Pollers::default(),
        })
    }

    /// Asks for metadata until a broker answers; an error after `deadline`.
    pub async fn probe(&self, deadline: Duration) -> Result<usize, PortError> {
        let consumer: BaseConsumer = self.config.client().create().map_err(|e| config_error(&e))?;
        let brokers = self.config.brokers.clone();
        blocking(move || {
            consumer.fetch_metadata(None, deadline).map(|m| m.brokers().len()).map_err(|e| {
                PortError::Broker(format!(
                    "no broker of kafka.brokers = \"{brokers}\" answered within {deadline:?}: {e}"
                ))
            })
        })
        .await
    }

    /// Waits until every partition of new topics has a leader: a cluster answers the creation before that.
    async fn await_leaders(&self, topics: Vec<String>) -> Result<(), PortError> {
        let consumer: BaseConsumer = self.config.client().create().map_err(|e| config_error(&e))?;
        blocking(move || {
            topics.iter().try_for_each(|topic| {
                retry_transient(|| {
                    let metadata = consumer.fetch_metadata(Some(topic), ADMIN_TIMEOUT)?;
                    let partitions = metadata.topics().first().map(|t| t.partitions().len()).unwrap_or(0);
                    // Asks the leader itself, which may know of its office later than the controller.
                    (0..partitions as i32)
                        .try_for_each(|p| consumer.fetch_watermarks(topic, p, ADMIN_TIMEOUT).map(|_| ()))
                })
            })
        })
        .await
    }

    fn admin(&self) -> Result<AdminClient<DefaultClientContext>, PortError> {
        self.config.client().create().map_err(|e| config_error(&e))
    }
}

#[async_trait]
impl Bus for KafkaBus {
    fn sink(&self) -> Arc<dyn Sink> {
        self.sink.clone()
    }

    async fn source(&self, spec: SourceSpec) -> Result<Box<dyn Source>, PortError> {
        Ok(Box::new(consumer::KafkaSource::open(&self.config, spec, self.pollers.clone()).await?))
    }

    async fn transactions(&self, id: &str) -> Result<Box<dyn Transactions>, PortError> {
        Ok(Box::new(transactions::KafkaTransactions::open(&self.config, id).await?))
    }

    async fn close(&self, limit: Duration) -> bool {
        let begin = Instant::now();
        while !self.pollers.all_ended() {
            if begin.elapsed() >= limit {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }

    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), PortError> {
        let admin = self.admin()?;
        let replication = self.config.replication;
        let names: Vec<String> = topics.iter().map(|t| self.topics.name(&t.name)).collect();
        let retention = self.config.retention.as_ms().to_string();
        let new: Vec<NewTopic<'_>> = topics
            .iter()
            .zip(&names)
            .map(|(topic, name)| {
                let partitions = if topic.single_partition { 1 } else { self.config.partitions };
                let new = NewTopic::new(name, partitions, TopicReplication::Fixed(replication))
                    .set("cleanup.policy", topic.cleanup.as_str());
                let new = if topic.append_time { new.set("message.timestamp.type", "LogAppendTime") } else { new };
                match topic.cleanup {
                    Cleanup::Delete => new.set("retention.ms", &retention),
                    // The segment that is written to is never compacted: a short one keeps heartbeats from piling up.
                    Cleanup::Compact => new.set("segment.ms", COMPACTED_SEGMENT_MS),
                }
            })
            .collect();
        let options = AdminOptions::new().operation_timeout(Some(ADMIN_TIMEOUT)).request_timeout(Some(ADMIN_TIMEOUT));
        let results = admin.create_topics(&new, &options).await.map_err(|e| broker_error(&e))?;
        let mut created = Vec::new();
        for result in results {
            match result {
                Ok(topic) => created.push(topic),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => {
                    return Err(PortError::Refused(format!("cannot create topic {topic}: {code}")));
                }
            }
        }
        if created.is_empty() { Ok(()) } else { self.await_leaders(created).await }
    }

    async fn partitions(&self, topic: &str) -> Result<i32, PortError> {
        let consumer: BaseConsumer = self.config.client().create().map_err(|e| config_error(&e))?;
        let topic = topic.to_owned();
        blocking(move || {
            let metadata = consumer.fetch_metadata(Some(&topic), ADMIN_TIMEOUT).map_err(|e| broker_error(&e))?;
            match metadata.topics().first() {
                Some(t) if t.error().is_none() && !t.partitions().is_empty() => Ok(t.partitions().len() as i32),
                _ => Err(PortError::Refused(format!("topic {topic} does not exist"))),
            }
        })
        .await
    }

    fn topics(&self) -> &Topics {
        &self.topics
    }
}

/// Runs a blocking librdkafka call off the async threads.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, PortError> + Send + 'static,
) -> Result<T, PortError> {
    tokio::task::spawn_blocking(call).await.map_err(|e| PortError::Broker(format!("blocking call: {e}")))?
}

/// Repeats a request that fails for a reason that passes by itself, as it does while leaders are elected; at most
/// [`ADMIN_TIMEOUT`]. Blocking.
fn retry_transient<T>(mut request: impl FnMut() -> Result<T, KafkaError>) -> Result<T, PortError> {
    const PAUSE: Duration = Duration::from_millis(50);
    let mut waited = Duration::ZERO;
    loop {
        match request() {
            Ok(answer) => return Ok(answer),
            Err(error) if passes(&error) && waited < ADMIN_TIMEOUT => {
                std::thread::sleep(PAUSE);
                waited += PAUSE;
            }
            Err(error) => return Err(broker_error(&error)),
        }
    }
}

fn passes(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::NotLeaderForPartition
                | RDKafkaErrorCode::LeaderNotAvailable
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
        )
    )
}

fn config_error(error: &KafkaError) -> PortError {
    PortError::Config(format!("kafka: {error}"))
}

/// Sorts librdkafka's errors by what a caller can do.
fn broker_error(error: &KafkaError) -> PortError {
    match error.rdkafka_error_code() {
        Some(
            RDKafkaErrorCode::MessageSizeTooLarge
            | RDKafkaErrorCode::InvalidMessage
            | RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::PolicyViolation,
        ) => PortError::Refused(error.to_string()),
        _ => PortError::Broker(error.to_string()),
    }
}
