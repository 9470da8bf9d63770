//! The service: one task that reads MQTT, one that writes Kafka, and their common end.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::mqtt::{self, Acks, Reader, ReaderParts};
use crate::pipeline::{Pipeline, PipelineParts};
use runtime::{Context, PortError};
use schemas::topics::{TELEMETRY_REJECTED, TELEMETRY_VEHICLE};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Wishes of the pipeline that may wait for the reader; when it is full, one of them is there already.
const COMMANDS: usize = 16;

/// Ingest cannot go on until an operator changes something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Values of the configuration.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The MQTT side.
    #[error(transparent)]
    Mqtt(#[from] mqtt::Error),
    /// Kafka refuses what ingest writes.
    #[error("Kafka: {0}; check kafka.* and the topics telemetry.vehicle and telemetry.rejected")]
    Kafka(#[from] PortError),
    /// A bug: a task panicked.
    #[error("a task of ingest ended unexpectedly: {0}")]
    Task(#[from] JoinError),
}

/// Runs ingest until `shutdown` is cancelled: then it reads no more, waits for the deliveries in flight (at most
/// `ingest.drain_timeout`), acknowledges them and disconnects. Both telemetry topics must exist or be creatable by
/// the broker. `mqtt.broker` must be a URL.
///
/// # Errors
/// Only what a restart or an operator must fix; lost connections and failed deliveries are retried.
pub async fn run(config: Config, context: Context, shutdown: CancellationToken) -> Result<(), Error> {
    let metrics = Metrics::register(&context.registry);
    run_with_metrics(config, context, metrics, shutdown).await
}

/// [`run`] with metrics that the caller has registered, to read [`Metrics::counts`].
///
/// # Errors
/// As [`run`].
pub async fn run_with_metrics(
    config: Config,
    context: Context,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    let (client, event_loop) = mqtt::persistent_client(&config.mqtt)?;
    let acks = Arc::new(Acks::new(client.clone()));
    let (to_pipeline, messages) = mpsc::channel(config.mqtt.max_inflight);
    let (to_reader, commands) = mpsc::channel(COMMANDS);
    // Also cancelled when one of the tasks ends by itself.
    let stop = shutdown.child_token();
    let reader = ReaderParts {
        config: config.mqtt.clone(),
        client,
        event_loop,
        acks: acks.clone(),
        messages: to_pipeline,
        commands,
        memory: Arc::new(Semaphore::new(config.ingest.buffer_bytes)),
        buffer_bytes: config.ingest.buffer_bytes,
        clock: context.clock.clone(),
        metrics: metrics.clone(),
        readiness: context.readiness.clone(),
        shutdown: stop.clone(),
    };
    let topics = context.bus.topics();
    let pipeline = PipelineParts {
        config: config.ingest.clone(),
        messages,
        commands: to_reader,
        acks,
        sink: context.bus.sink(),
        vehicle_topic: topics.name(TELEMETRY_VEHICLE),
        rejected_topic: topics.name(TELEMETRY_REJECTED),
        clock: context.clock.clone(),
        metrics,
        hash_seed: random_seed(),
        stop: stop.clone(),
    };
    let mut tasks: JoinSet<Result<(), Error>> = JoinSet::new();
    tasks.spawn(async move { Reader::new(reader, random_seed()).run().await.map_err(Error::from) });
    tasks.spawn(async move { Pipeline::new(pipeline).run().await.map_err(Error::from) });
    join(tasks, &stop).await
}

/// Waits for both tasks; one that ends takes the other with it, and the first error counts.
async fn join(mut tasks: JoinSet<Result<(), Error>>, stop: &CancellationToken) -> Result<(), Error> {
    let mut outcome = Ok(());
    while let Some(ended) = tasks.join_next().await {
        stop.cancel();
        let ended = ended.unwrap_or_else(|panic| Err(Error::Task(panic)));
        if outcome.is_ok() {
            outcome = ended;
        }
    }
    outcome
}

/// Different in every process; the standard library seeds its hashers from the operating system.
fn random_seed() -> u64 {
    RandomState::new().hash_one("ingest")
}
