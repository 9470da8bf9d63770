//! The role: windows over `telemetry.vehicle`, and arrivals of prediction requests.
//!
//! Delivery is at least once. Every `commit_interval`: (1) what waits is pushed and closed windows are sent, (2) their
//! delivery reports are awaited, (3) the states are written and awaited, (4) input offsets are committed. After a
//! crash the role goes on from the last complete (3): windows that closed after it are emitted again, with equal
//! rows and, for requests, equal ids. So the window of duplicates is what closed since the last commit, one
//! `commit_interval` plus the time of a commit. Rows can differ only where an idle partition woke up in between.
//!
//! Several processes share the partitions through the consumer group. A query whose groups are vehicles (the record
//! key) scales out; one with other groups, such as routes, needs all partitions in one process, and the log warns
//! when that is not so.

use crate::config::Config;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::outbox::Outbox;
use crate::pipeline::Pipeline;
use crate::workload;
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::restore::read_to_end;
use runtime::{Bus, Context, PortError, RevokeAck, Source, SourceEvent, SourceMode, SourceSpec, TopicPartition};
use schemas::Topics;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

/// Records between the broker's client and us; when full, the client pauses its partitions.
const SOURCE_BUFFER: usize = 8192;

/// Runs the role until `shutdown` is cancelled; then it commits and ends.
pub async fn run(config: Config, context: Context, shutdown: CancellationToken) -> Result<(), Error> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config(problems.join("; ")));
    }
    let metrics = Metrics::register(&context.registry);
    context.bus.create_topics(&Topics::all(config.services.iter().map(String::as_str))).await?;
    // Both halves end together: the first that fails ends the other.
    let halves = shutdown.child_token();
    let windows = ending(run_windows(&config, &context, metrics.clone(), halves.clone()), &halves);
    let arrivals = ending(workload::service::run(&config, &context, metrics, halves.clone()), &halves);
    let (windows, arrivals) = tokio::join!(windows, arrivals);
    context.readiness.set("aggregate", false, "stopped");
    context.readiness.set(workload::service::CHECK, false, "stopped");
    windows.and(arrivals)
}

async fn ending(half: impl Future<Output = Result<(), Error>>, halves: &CancellationToken) -> Result<(), Error> {
    let outcome = half.await;
    halves.cancel();
    outcome
}

async fn run_windows(
    config: &Config,
    context: &Context,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let topics = context.bus.topics();
    let pipeline = Pipeline::new(config, topics, metrics.clone()).await?;
    let source = context
        .bus
        .source(SourceSpec {
            topics: vec![topics.name(schemas::topics::TELEMETRY_VEHICLE)],
            mode: SourceMode::Group {
                group: schemas::topics::role_group(&topics.name(""), "aggregate"),
                instance_id: config.instance.clone(),
            },
            buffer: SOURCE_BUFFER,
        })
        .await?;
    let service = Service {
        outbox: Outbox::new(context.bus.sink(), shutdown.clone()),
        pipeline,
        source,
        context: context.clone(),
        config: config.clone(),
        metrics,
        paused: BTreeSet::new(),
        flush_at: None,
    };
    service.run(shutdown).await
}

struct Service {
    pipeline: Pipeline,
    source: Box<dyn Source>,
    outbox: Outbox,
    context: Context,
    config: Config,
    metrics: Metrics,
    /// Partitions that are paused because they are far ahead.
    paused: BTreeSet<i32>,
    /// When the waiting rows must be pushed.
    flush_at: Option<Instant>,
}

enum Wake {
    Event(Result<SourceEvent, PortError>),
    Flush,
    Commit,
    Shutdown,
}

impl Service {
    async fn run(mut self, shutdown: CancellationToken) -> Result<(), Error> {
        let mut commit = tokio::time::interval(self.config.commit_interval.get());
        commit.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let flush_at = self.flush_at;
            let wake = tokio::select! {
                biased;
                () = shutdown.cancelled() => Wake::Shutdown,
                _ = commit.tick() => Wake::Commit,
                () = sleep_until(flush_at) => Wake::Flush,
                event = self.source.next() => Wake::Event(event),
            };
            match wake {
                Wake::Event(event) => self.on_event(event?).await?,
                Wake::Flush => self.flush().await?,
                Wake::Commit => self.commit().await?,
                Wake::Shutdown => return self.commit().await,
            }
        }
    }

    async fn on_event(&mut self, event: SourceEvent) -> Result<(), Error> {
        match event {
            SourceEvent::Record(record) => {
                self.pipeline.record(&record);
                self.flush_at.get_or_insert_with(|| Instant::now() + self.config.batch_latency.get());
                if self.pipeline.waiting_rows() >= self.config.batch_rows {
                    self.flush().await?;
                }
                Ok(())
            }
            SourceEvent::Assigned(partitions) => self.on_assigned(&partitions).await,
            SourceEvent::Revoked(partitions, ack) => self.on_revoked(&partitions, ack).await,
            SourceEvent::CaughtUp => Ok(()),
        }
    }

    async fn on_assigned(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        let topic = self.context.bus.topics().name(schemas::topics::AGGREGATE_STATE);
        let states = read_states(self.context.bus.as_ref(), &topic).await?;
        let numbers: Vec<i32> = partitions.iter().map(|tp| tp.partition).collect();
        self.pipeline.assign(&numbers, &states, self.context.clock.now_ms());
        tracing::info!(partitions = ?numbers, states = states.len(), "partitions assigned");
        self.context.readiness.set("aggregate", true, format!("windows over partitions {numbers:?}"));
        Ok(())
    }

    async fn on_revoked(&mut self, partitions: &[TopicPartition], ack: RevokeAck) -> Result<(), Error> {
        self.commit().await?;
        let numbers: Vec<i32> = partitions.iter().map(|tp| tp.partition).collect();
        self.pipeline.revoke(&numbers);
        self.paused.retain(|partition| !numbers.contains(partition));
        tracing::info!(partitions = ?numbers, "partitions given up");
        ack.done();
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        self.flush_at = None;
        let records = self.pipeline.flush(self.context.clock.now_ms()).await?;
        self.outbox.send(records).await?;
        self.align();
        Ok(())
    }

    /// Outputs, then states, then offsets; see the module.
    async fn commit(&mut self) -> Result<(), Error> {
        let started = Instant::now();
        self.flush().await?;
        self.outbox.settle().await?;
        let states = self.pipeline.states()?;
        self.pipeline.report(self.context.clock.now_ms());
        if states.is_empty() {
            return Ok(());
        }
        self.outbox.send(states).await?;
        self.outbox.settle().await?;
        match self.source.commit(&self.pipeline.offsets()).await {
            Ok(()) => {}
            // The states are written: the next commit covers this one, and a restart skips what they hold.
            Err(error) if error.kind() == Kind::Transient => tracing::warn!(%error, "offsets not committed"),
            Err(error) => return Err(error.into()),
        }
        self.metrics.commit_seconds.observe(started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Pauses partitions that are far ahead of the slowest, whose windows they would keep open, and resumes the rest.
    fn align(&mut self) {
        let now_ms = self.context.clock.now_ms();
        let drifting = self.pipeline.drifting(self.config.max_drift.as_ms(), now_ms);
        if drifting == self.paused {
            return;
        }
        let topic = self.context.bus.topics().name(schemas::topics::TELEMETRY_VEHICLE);
        let of = |partitions: &BTreeSet<i32>, others: &BTreeSet<i32>| -> Vec<TopicPartition> {
            partitions.difference(others).map(|p| TopicPartition::new(topic.clone(), *p)).collect()
        };
        self.source.pause(&of(&drifting, &self.paused));
        self.source.resume(&of(&self.paused, &drifting));
        self.metrics.paused_partitions.set(drifting.len() as i64);
        self.paused = drifting;
    }
}

/// Reads the state topic; a broker that is away is waited for, because going on without state would lose rows.
async fn read_states(bus: &dyn Bus, topic: &str) -> Result<crate::state::StateRecords, Error> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 56);
    loop {
        match read_to_end(bus, topic).await {
            Ok(restored) => return Ok(restored.newest),
            Err(error) if error.kind() == Kind::Transient => {
                let delay = backoff.next_delay();
                tracing::warn!(%error, topic, ?delay, "state cannot be read; trying again");
                tokio::time::sleep(delay).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
