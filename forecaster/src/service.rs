//! The service: reads `workload.observed`, writes `workload.forecast` and `forecaster.state`.
//!
//! Order of things, so that a crash at any point loses no sample and repeats at most forecasts: learn, publish the
//! forecast, and every `state_interval` samples of a series wait for the deliveries in flight, write its state, wait
//! for that, commit. A restart reads `forecaster.state` to its end and goes on at the committed offsets; records
//! that a state already contains are skipped, so that the next forecast is the one an undisturbed process makes.
//!
//! Refits are made after the forecast is out, one at a time on a blocking thread, on a copy of the model: no series
//! waits for another's. A sample that comes before its series' refit is done makes the model do the refit itself, so
//! forecasts do not depend on which was first.
//!
//! When the sink's queue is full or [`IN_FLIGHT`] deliveries are open, nothing is read until one is done.

use crate::config::Config;
use crate::metrics::Metrics;
use crate::portfolio::{Portfolio, Taken, Upkeep};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::restore::read_to_end;
use runtime::{Context, Delivery, OutRecord, PortError, Record, Source, SourceEvent, SourceSpec, TopicPartition};
use schemas::Message;
use schemas::state::ForecasterState;
use schemas::topics::{FORECASTER_STATE, WORKLOAD_FORECAST, WORKLOAD_OBSERVED, role_group};
use schemas::workload::WorkloadObserved;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;

/// Most forecasts whose delivery is open.
const IN_FLIGHT: usize = 64;
/// Pauses after a failure of the broker.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(10);
const ROLE: &str = "forecaster";

/// The forecaster cannot go on until an operator changes something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Values of the configuration.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// Kafka refuses what the forecaster reads or writes.
    #[error(
        "Kafka: {0}; check kafka.* and the topics workload.observed, workload.forecast and forecaster.state \
         (`barista topics create`)"
    )]
    Kafka(#[from] PortError),
}

/// Runs the forecaster until `shutdown` is cancelled: then it writes the state of every series, commits and ends.
/// The three topics must exist or be creatable by the broker.
///
/// # Errors
/// Only what a restart or an operator must fix; lost connections and failed deliveries are retried.
pub async fn run(config: Config, context: Context, shutdown: CancellationToken) -> Result<(), Error> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    let topics = context.bus.topics();
    let names = Names {
        forecast: topics.name(WORKLOAD_FORECAST),
        state: topics.name(FORECASTER_STATE),
        observed: topics.name(WORKLOAD_OBSERVED),
        // The prefix is what the empty topic name has.
        group: role_group(&topics.name(""), ROLE),
    };
    let source = context.bus.source(SourceSpec::group(vec![names.observed.clone()], names.group.clone())).await?;
    let metrics = Metrics::register(&context.registry);
    let service = Service {
        portfolio: Portfolio::new(config.clone()),
        config,
        names,
        metrics,
        context,
        source,
        in_flight: FuturesUnordered::new(),
        upkeep: VecDeque::new(),
        worker: None,
        backoff: Backoff::new(RETRY_MIN, RETRY_MAX, random_seed()),
        shutdown,
    };
    service.run().await
}

/// Full names.
struct Names {
    observed: String,
    forecast: String,
    state: String,
    group: String,
}

struct Service {
    config: Config,
    names: Names,
    metrics: Metrics,
    context: Context,
    source: Box<dyn Source>,
    portfolio: Portfolio,
    in_flight: FuturesUnordered<BoxFuture<'static, Result<Delivery, PortError>>>,
    /// Series whose model has maintenance due, each at most once.
    upkeep: VecDeque<String>,
    worker: Option<JoinHandle<Upkeep>>,
    backoff: Backoff,
    shutdown: CancellationToken,
}

impl Service {
    async fn run(mut self) -> Result<(), Error> {
        let shutdown = self.shutdown.clone();
        self.context.readiness.set(ROLE, false, "waiting for partitions of workload.observed");
        loop {
            self.start_upkeep();
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(delivered) = self.in_flight.next() => {
                    self.delivered(delivered)?;
                    continue;
                }
                Some(done) = finished(&mut self.worker) => {
                    self.worker = None;
                    match done {
                        Ok(upkeep) => self.portfolio.upkept(upkeep),
                        // The model does the work itself with its next sample.
                        Err(error) => tracing::error!(%error, "maintenance of a model failed"),
                    }
                    continue;
                }
                event = self.source.next(), if self.in_flight.len() < IN_FLIGHT => event,
            };
            match event {
                Ok(event) => {
                    self.backoff.reset();
                    self.handle(event).await?;
                }
                Err(error) => self.retry_later("workload.observed cannot be read", error).await?,
            }
        }
        self.context.readiness.set(ROLE, false, "stopping");
        let unsaved = self.portfolio.unsaved(None);
        self.save(unsaved).await?;
        self.commit().await
    }

    /// Gives the next due model to a blocking thread, if none is there already.
    fn start_upkeep(&mut self) {
        while self.worker.is_none() {
            let Some(service) = self.upkeep.pop_front() else { return };
            let due = self.portfolio.upkeep(&service);
            self.worker = due.map(|upkeep| tokio::task::spawn_blocking(move || upkeep.done()));
        }
    }

    async fn handle(&mut self, event: SourceEvent) -> Result<(), Error> {
        match event {
            SourceEvent::Record(record) => {
                self.take(&record);
                let due = self.portfolio.due();
                if !due.is_empty() {
                    self.save(due).await?;
                    self.commit().await?;
                }
            }
            SourceEvent::Assigned(partitions) => {
                tracing::info!(partitions = list(&partitions), "partitions assigned");
                self.restore().await?;
            }
            SourceEvent::Revoked(partitions, ack) => {
                tracing::info!(partitions = list(&partitions), "partitions revoked");
                let unsaved = self.portfolio.unsaved(Some(&partitions));
                self.save(unsaved).await?;
                self.commit().await?;
                for service in self.portfolio.revoke(&partitions) {
                    self.metrics.forget(&service, &self.config.levels);
                }
                self.count_series();
                ack.done();
            }
            SourceEvent::CaughtUp => {}
        }
        Ok(())
    }

    /// Learns a record and puts its forecast in flight.
    fn take(&mut self, record: &Record) {
        let partition = record.topic_partition();
        let decoded = record.value.as_deref().map(WorkloadObserved::decode);
        let observed = match decoded {
            Some(Ok(observed)) => observed,
            Some(Err(error)) => {
                tracing::warn!(%partition, offset = record.offset, %error, "record ignored");
                self.metrics.ignore("unreadable");
                return self.portfolio.skip(&partition, record.offset);
            }
            None => {
                self.metrics.ignore("tombstone");
                return self.portfolio.skip(&partition, record.offset);
            }
        };
        let known = self.portfolio.len();
        let began = Instant::now();
        let now_ms = self.context.clock.now_ms();
        let taken = self.portfolio.take(&partition, record.offset, &observed, now_ms, &self.metrics);
        match taken {
            Taken::Forecast(forecast) => {
                // Looked for among those that are due only: they are few.
                if self.portfolio.is_upkeep_due(&observed.service) && !self.upkeep.contains(&observed.service) {
                    self.upkeep.push_back(observed.service.clone());
                }
                self.metrics.step_seconds.observe(began.elapsed().as_secs_f64());
                self.metrics.observations.inc();
                self.portfolio.report(&observed.service, &self.metrics);
                match OutRecord::message(self.names.forecast.clone(), &*forecast) {
                    Ok(out) => self.in_flight.push(self.context.bus.sink().send(out)),
                    Err(error) => {
                        self.metrics.forecast_failures.inc();
                        tracing::error!(service = observed.service, %error, "forecast cannot be written");
                    }
                }
            }
            Taken::Learned => {
                self.metrics.step_seconds.observe(began.elapsed().as_secs_f64());
                self.metrics.observations.inc();
            }
            Taken::Ignored { reason, detail } => {
                self.metrics.ignore(reason);
                if !detail.is_empty() {
                    let (service, offset) = (&observed.service, record.offset);
                    tracing::warn!(service, %partition, offset, reason, detail, "observation ignored");
                }
            }
        }
        if self.portfolio.len() != known {
            self.count_series();
        }
    }

    fn count_series(&self) {
        let n = self.portfolio.len();
        self.metrics.series.set(i64::try_from(n).unwrap_or(i64::MAX));
        self.context.readiness.set(ROLE, true, format!("{n} series"));
    }

    /// A forecast that the broker did not take is not sent again: the next interval's replaces it.
    fn delivered(&mut self, result: Result<Delivery, PortError>) -> Result<(), Error> {
        match result {
            Ok(_) => {
                self.metrics.forecasts.inc();
                Ok(())
            }
            Err(error) => {
                self.metrics.forecast_failures.inc();
                fatal(error, "forecast was not delivered")
            }
        }
    }

    /// Reads the saved states; tries until it can, or is told to stop.
    async fn restore(&mut self) -> Result<(), Error> {
        let bus = self.context.bus.clone();
        loop {
            match read_to_end(&*bus, &self.names.state).await {
                Ok(restored) => {
                    let states = restored.newest.into_iter().filter_map(|(key, record)| decode_state(key, &record));
                    self.portfolio.restore(states.collect::<BTreeMap<_, _>>());
                    self.count_series();
                    return Ok(());
                }
                Err(error) => self.retry_later("forecaster.state cannot be read", error).await?,
            }
            if self.shutdown.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Writes the states of these services. Forecasts made from them are delivered before, so that what is committed
    /// after is complete.
    async fn save(&mut self, services: Vec<String>) -> Result<(), Error> {
        while let Some(delivered) = self.in_flight.next().await {
            self.delivered(delivered)?;
        }
        for service in services {
            let Some(state) = self.portfolio.state(&service) else { continue };
            let sent = match state.map_err(|e| e.to_string()).and_then(|state| self.state_record(&state)) {
                Ok(out) => self.context.bus.sink().send(out).await,
                Err(detail) => Err(PortError::Refused(detail)),
            };
            match sent {
                Ok(_) => {
                    self.metrics.state_writes.inc();
                    self.portfolio.saved(&service);
                }
                Err(error) => {
                    // Its offsets stay uncommitted: at worst a restart learns from all that is kept.
                    self.metrics.state_failures.inc();
                    self.portfolio.postponed(&service);
                    fatal(error, &format!("state of {service} was not written"))?;
                }
            }
        }
        Ok(())
    }

    fn state_record(&self, state: &ForecasterState) -> Result<OutRecord, String> {
        OutRecord::message(self.names.state.clone(), state).map_err(|error| error.to_string())
    }

    /// Commits what is saved. A commit that fails is made up for by the next one.
    async fn commit(&mut self) -> Result<(), Error> {
        let offsets = self.portfolio.committable();
        if offsets.is_empty() {
            return Ok(());
        }
        match self.source.commit(&offsets).await {
            Ok(()) => {
                self.portfolio.committed(&offsets);
                Ok(())
            }
            Err(error) => fatal(error, "offsets were not committed"),
        }
    }

    /// Waits a little after a failure that may pass; other failures end the service.
    async fn retry_later(&mut self, what: &str, error: PortError) -> Result<(), Error> {
        if matches!(error, PortError::Closed) || error.kind() != Kind::Transient {
            return Err(Error::Kafka(error));
        }
        let delay = self.backoff.next_delay();
        tracing::warn!(%error, ?delay, "{what}, trying again");
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            () = tokio::time::sleep(delay) => {}
        }
        Ok(())
    }
}

/// What the worker made; `None` if there is none.
async fn finished(worker: &mut Option<JoinHandle<Upkeep>>) -> Option<Result<Upkeep, JoinError>> {
    match worker {
        Some(worker) => Some(worker.await),
        None => None,
    }
}

/// Ends the service on a failure that an operator must fix; logs one that may pass or concerns one record.
fn fatal(error: PortError, what: &str) -> Result<(), Error> {
    match error.kind() {
        Kind::Transient | Kind::Rejected => {
            tracing::warn!(%error, "{what}");
            Ok(())
        }
        Kind::Config | Kind::Bug => Err(Error::Kafka(error)),
    }
}

fn decode_state(key: String, record: &Record) -> Option<(String, ForecasterState)> {
    match ForecasterState::decode(record.value.as_deref()?) {
        Ok(state) => Some((key, state)),
        Err(error) => {
            tracing::warn!(service = key, %error, "saved state is unreadable, the series will start cold");
            None
        }
    }
}

/// Different in every process; the standard library seeds its hashers from the operating system.
fn random_seed() -> u64 {
    RandomState::new().hash_one(ROLE)
}

fn list(partitions: &[TopicPartition]) -> String {
    partitions.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
