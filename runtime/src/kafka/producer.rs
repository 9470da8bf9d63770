//! The sink over an idempotent producer.

use super::{KafkaConfig, blocking, broker_error, config_error};
use crate::ports::{Delivery, OutRecord, PortError, Sink};
use futures::FutureExt;
use futures::future::BoxFuture;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};
use std::time::Duration;

/// How long a sender sleeps before it looks for room in a full queue again.
const FULL_RETRY: Duration = Duration::from_millis(2);

pub(super) struct KafkaSink {
    producer: FutureProducer,
}

impl KafkaSink {
    pub(super) fn new(config: &KafkaConfig) -> Result<Self, PortError> {
        let mut client = producer_config(config);
        client.set("message.timeout.ms", config.delivery_timeout.as_ms().to_string());
        Ok(KafkaSink { producer: client.create().map_err(|e| config_error(&e))? })
    }
}

/// What every producer is set to.
pub(super) fn producer_config(config: &KafkaConfig) -> ClientConfig {
    let mut client = config.client();
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", config.linger.as_ms().to_string())
        .set("compression.type", "lz4")
        .set("queue.buffering.max.messages", config.producer_queue.to_string());
    client
}

fn to_rdkafka(out: &OutRecord) -> FutureRecord<'_, [u8], [u8]> {
    let mut record = FutureRecord::to(&out.topic);
    record.partition = out.partition;
    record.key = out.key.as_deref();
    record.payload = out.value.as_deref();
    record.timestamp = out.timestamp_ms;
    if !out.headers.0.is_empty() {
        let empty = OwnedHeaders::new_with_capacity(out.headers.0.len());
        let headers = out.headers.0.iter();
        record.headers =
            Some(headers.fold(empty, |all, (key, value)| all.insert(Header { key, value: Some(value.as_ref()) })));
    }
    record
}

fn is_full(error: &KafkaError) -> bool {
    error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull)
}

/// Enqueues a record at once, or as soon as there is room; resolves with the delivery report. `sorted` says what an
/// error means to the caller.
pub(super) fn enqueue(
    producer: &FutureProducer,
    out: OutRecord,
    sorted: impl Fn(&FutureProducer, &KafkaError) -> PortError + Send + 'static,
) -> BoxFuture<'static, Result<Delivery, PortError>> {
    let first = producer.send_result(to_rdkafka(&out)).map_err(|(error, _)| error);
    let producer = producer.clone();
    async move {
        let mut attempt = first;
        let report = loop {
            match attempt {
                Ok(report) => break report,
                Err(error) if is_full(&error) => {
                    tokio::time::sleep(FULL_RETRY).await;
                    attempt = producer.send_result(to_rdkafka(&out)).map_err(|(error, _)| error);
                }
                Err(error) => return Err(sorted(&producer, &error)),
            }
        };
        match report.await {
            Ok(Ok(delivery)) => Ok(Delivery { partition: delivery.partition, offset: delivery.offset }),
            Ok(Err((error, _))) => Err(sorted(&producer, &error)),
            Err(_) => Err(PortError::Closed),
        }
    }
    .boxed()
}

impl Sink for KafkaSink {
    fn send(&self, out: OutRecord) -> BoxFuture<'static, Result<Delivery, PortError>> {
        enqueue(&self.producer, out, |_, error| broker_error(error))
    }

    fn flush(&self, deadline: Duration) -> BoxFuture<'_, Result<(), PortError>> {
        let producer = self.producer.clone();
        blocking(move || producer.flush(deadline).map_err(|e| broker_error(&e))).boxed()
    }
}
