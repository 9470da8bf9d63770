//! The shell around [`ArrivalCounter`]: reads request topics and heartbeats, publishes `workload.observed`.
//!
//! Request values are never decoded; a record is an arrival. What came straight to a gateway is in the heartbeats of
//! `executor.status` and is added. (That topic is compacted: after a long absence of this role older heartbeats are
//! gone, and direct arrivals of that time with them.)
//!
//! One process counts. Who it is, the group `barista.workload` decides: its members subscribe to `executor.status`,
//! which has one partition, and who has it counts all request topics with a source of its own. The others stand by.
//!
//! A restart neither loses nor doubles an interval: closing writes a checkpoint to `aggregate.state` (key
//! `workload.observed/0`) that holds the closed samples and the positions behind them, then publishes the samples. A
//! crash in between publishes the same samples again. A counter that was away first reads what came meanwhile, then
//! closes the intervals that passed.

use crate::config::Config;
use crate::error::Error;
use crate::metrics::{Metrics, ServiceLabels};
use crate::outbox::Outbox;
use crate::workload::counter::{ArrivalCounter, Arrivals, Checkpoint, Path, Place, Settings};
use runtime::restore::read_to_end;
use runtime::{
    Context, OutRecord, Record, RevokeAck, Source, SourceEvent, SourceMode, SourceSpec, Start, TopicPartition,
};
use schemas::Message;
use schemas::headers::PRIORITY;
use schemas::state::{AggregateState, AggregateStateTag};
use schemas::status::ExecutorStatus;
use schemas::workload::WorkloadObserved;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Name of this half's readiness check.
pub(crate) const CHECK: &str = "workload";
/// Name of the checkpoint in `aggregate.state`.
const STATE_NAME: &str = "workload.observed";
/// Version of [`Checkpoint`].
const CHECKPOINT_VERSION: u32 = 1;
/// How often the wall clock is looked at.
const TICK: Duration = Duration::from_millis(100);

/// Stands by, and counts while the group says so.
pub async fn run(
    config: &Config,
    context: &Context,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    if config.services.is_empty() {
        shutdown.cancelled().await;
        return Ok(());
    }
    let topics = context.bus.topics();
    let lock_topic = topics.name(schemas::topics::EXECUTOR_STATUS);
    let mode = SourceMode::Group {
        group: schemas::topics::role_group(&topics.name(""), "workload"),
        instance_id: config.instance.clone(),
    };
    let mut lock = context.bus.source(SourceSpec { topics: vec![lock_topic], mode, buffer: 256 }).await?;
    context.readiness.set(CHECK, true, "standing by");
    loop {
        let event = tokio::select! {
            () = shutdown.cancelled() => return Ok(()),
            event = lock.next() => event?,
        };
        if let SourceEvent::Assigned(_) = event {
            let leader = Leader::start(config, context, metrics.clone(), &shutdown).await?;
            match leader.run(lock.as_mut(), &shutdown).await? {
                Some(ack) => ack.done(),
                None => return Ok(()),
            }
            context.readiness.set(CHECK, true, "standing by");
        }
    }
}

struct Leader {
    counter: ArrivalCounter,
    source: Box<dyn Source>,
    outbox: Outbox,
    context: Context,
    metrics: Metrics,
    /// Service of each request topic, by full name.
    services: BTreeMap<String, String>,
    status_topic: String,
    caught_up: bool,
    status_reported: bool,
}

impl Leader {
    async fn start(
        config: &Config,
        context: &Context,
        metrics: Metrics,
        shutdown: &CancellationToken,
    ) -> Result<Self, Error> {
        let topics = context.bus.topics();
        let services: BTreeMap<String, String> =
            config.services.iter().map(|s| (topics.requests(s), s.clone())).collect();
        let status_topic = topics.name(schemas::topics::EXECUTOR_STATUS);
        let read: BTreeSet<String> = services.keys().cloned().chain([status_topic.clone()]).collect();
        let settings = Settings {
            interval_ms: config.interval.as_ms(),
            grace_ms: config.grace.as_ms(),
            services: config.services.iter().cloned().collect(),
            topics: read.clone(),
        };
        let checkpoint = load(context).await?;
        let (counter, start) = match &checkpoint {
            Some(checkpoint) => (ArrivalCounter::restore(settings, checkpoint), start_of(checkpoint)),
            None => (ArrivalCounter::new(settings, context.clock.now_ms()), Start::End),
        };
        let mut outbox = Outbox::new(context.bus.sink(), shutdown.clone());
        if let Some(checkpoint) = checkpoint {
            // They may not have gone out before the last end.
            outbox.send(samples(context, &checkpoint.closed)?).await?;
        }
        tracing::info!(open_start_ms = counter.open_start_ms(), ?start, "counting arrivals");
        let source = context.bus.source(SourceSpec::assign(read.into_iter().collect(), start)).await?;
        Ok(Leader {
            counter,
            source,
            outbox,
            context: context.clone(),
            metrics,
            services,
            status_topic,
            caught_up: false,
            status_reported: false,
        })
    }

    /// Counts until the partition is taken away (then its acknowledgement) or the role shuts down.
    async fn run(mut self, lock: &mut dyn Source, shutdown: &CancellationToken) -> Result<Option<RevokeAck>, Error> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(None),
                event = lock.next() => match event? {
                    SourceEvent::Revoked(_, ack) => return Ok(Some(ack)),
                    // Nothing of it is needed; the commit keeps the group's lag at zero.
                    SourceEvent::Record(record) => release(lock, &record).await,
                    SourceEvent::Assigned(_) | SourceEvent::CaughtUp => {}
                },
                _ = tick.tick() => self.close().await?,
                event = self.source.next() => match event? {
                    SourceEvent::Record(record) => self.observe(&record),
                    SourceEvent::CaughtUp => self.catch_up(),
                    SourceEvent::Assigned(_) | SourceEvent::Revoked(..) => {}
                },
            }
        }
    }

    fn catch_up(&mut self) {
        if !std::mem::replace(&mut self.caught_up, true) {
            self.context.readiness.set(CHECK, true, "counting arrivals");
        }
    }

    fn observe(&mut self, record: &Record) {
        let now_ms = self.context.clock.now_ms();
        let partition = TopicPartition::new(record.topic.clone(), record.partition);
        let mut place = Place { partition: &partition, offset: record.offset, timestamp_ms: record.timestamp_ms };
        if let Some(service) = self.services.get(&record.topic) {
            // Background work takes what is idle: nobody is to be started for it.
            let count = u64::from(record.headers.get(PRIORITY) != Some(b"batch"));
            self.metrics.arrivals.get_or_create(&ServiceLabels { service: service.clone() }).inc_by(count);
            self.counter.observe(place, &[Arrivals { service, count, path: Path::Topic }], now_ms);
        } else if record.topic == self.status_topic {
            let status = self.status(record);
            let services = status.as_ref().map_or(&[][..], |s| s.services.as_slice());
            let direct = services.iter().filter(|s| s.direct_arrivals > 0);
            let arrivals: Vec<Arrivals<'_>> = direct
                .map(|s| Arrivals { service: &s.service, count: s.direct_arrivals, path: Path::Direct })
                .collect();
            // They came during the period before the heartbeat: its middle is the least wrong.
            let period_ms = services.iter().map(|s| s.period_ms).max().unwrap_or(0);
            place.timestamp_ms -= i64::try_from(period_ms / 2).unwrap_or(0);
            self.counter.observe(place, &arrivals, now_ms);
        }
    }

    /// A heartbeat; a tombstone is none. What cannot be read is logged once.
    fn status(&mut self, record: &Record) -> Option<ExecutorStatus> {
        let value = record.value.as_deref()?;
        match ExecutorStatus::decode(value) {
            Ok(status) => Some(status),
            Err(error) => {
                if !std::mem::replace(&mut self.status_reported, true) {
                    tracing::warn!(%error, offset = record.offset, "a heartbeat cannot be read; its direct arrivals are not counted");
                }
                None
            }
        }
    }

    /// Closes what the wall clock has passed: checkpoint first, then the samples.
    async fn close(&mut self) -> Result<(), Error> {
        if !self.caught_up {
            return Ok(());
        }
        loop {
            let closed = self.counter.close_until(self.context.clock.now_ms());
            if closed.is_empty() {
                return Ok(());
            }
            self.outbox.settle().await?;
            self.outbox.send(vec![checkpoint_record(&self.context, &self.counter.checkpoint())?]).await?;
            self.outbox.settle().await?;
            self.outbox.send(samples(&self.context, &closed)?).await?;
            self.outbox.settle().await?;
            self.metrics.intervals_closed.inc_by(closed.len() as u64);
        }
    }
}

async fn release(lock: &mut dyn Source, record: &Record) {
    let next = [(TopicPartition::new(record.topic.clone(), record.partition), record.offset + 1)];
    if let Err(error) = lock.commit(&next).await {
        tracing::debug!(%error, "offset of the counting lock not committed");
    }
}

fn samples(context: &Context, closed: &[WorkloadObserved]) -> Result<Vec<OutRecord>, Error> {
    let topic = context.bus.topics().name(schemas::topics::WORKLOAD_OBSERVED);
    Ok(closed.iter().map(|sample| OutRecord::message(topic.clone(), sample)).collect::<Result<_, _>>()?)
}

fn checkpoint_record(context: &Context, checkpoint: &Checkpoint) -> Result<OutRecord, Error> {
    let state = serde_json::to_string(checkpoint).map_err(crate::output::OutputError::Request)?;
    let message = AggregateState {
        schema: AggregateStateTag,
        query: STATE_NAME.to_owned(),
        partition: 0,
        offsets: BTreeMap::new(),
        state_version: CHECKPOINT_VERSION,
        sql: String::new(),
        state,
    };
    Ok(OutRecord::message(context.bus.topics().name(schemas::topics::AGGREGATE_STATE), &message)?)
}

/// The last checkpoint. One that cannot be read is not used, and the log says so: counting begins anew.
async fn load(context: &Context) -> Result<Option<Checkpoint>, Error> {
    let topic = context.bus.topics().name(schemas::topics::AGGREGATE_STATE);
    let restored = read_to_end(context.bus.as_ref(), &topic).await?;
    let Some(record) = restored.newest.get(&format!("{STATE_NAME}/0")) else { return Ok(None) };
    match parse(record.value.as_deref().unwrap_or_default()) {
        Ok(checkpoint) => Ok(Some(checkpoint)),
        Err(reason) => {
            tracing::warn!(reason, "checkpoint of the arrival counter is not used; intervals since then are missing");
            Ok(None)
        }
    }
}

fn parse(value: &[u8]) -> Result<Checkpoint, String> {
    let message = AggregateState::decode(value).map_err(|e| e.to_string())?;
    if message.state_version != CHECKPOINT_VERSION {
        return Err(format!("layout {} where {CHECKPOINT_VERSION} is known", message.state_version));
    }
    serde_json::from_str(&message.state).map_err(|e| e.to_string())
}

fn start_of(checkpoint: &Checkpoint) -> Start {
    let position =
        |p: &crate::workload::counter::Position| (TopicPartition::new(p.topic.clone(), p.partition), p.offset);
    Start::Offsets(checkpoint.positions.iter().map(position).collect())
}
