//! Reads the topics into the state; a broker that goes away is waited for.

use super::metrics::Metrics;
use super::{Error, Handle, ROLE};
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::{Context, PortError, SourceEvent, SourceSpec, Start};
use schemas::Topics;
use schemas::topics::{
    ALLOCATION_CONTROL, EXECUTOR_STATUS, TELEMETRY_REJECTED, TELEMETRY_VEHICLE, WORKLOAD_FORECAST, WORKLOAD_OBSERVED,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// First pause after an error of the broker.
const RETRY_BASE: Duration = Duration::from_millis(200);
/// Longest pause.
const RETRY_MAX: Duration = Duration::from_secs(5);

/// One source and the readiness check that says how it does.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    check: String,
    source: SourceSpec,
}

/// Telemetry is counted from now on; all else is read from its beginning, so that a new page knows the present plan
/// and the last minutes. No consumer group: every dashboard sees everything and commits nothing.
pub(super) fn specs(topics: &Topics) -> [Spec; 2] {
    let names = |constants: &[&str]| constants.iter().map(|topic| topics.name(topic)).collect::<Vec<_>>();
    let control = names(&[WORKLOAD_OBSERVED, WORKLOAD_FORECAST, ALLOCATION_CONTROL, EXECUTOR_STATUS]);
    let telemetry = names(&[TELEMETRY_VEHICLE, TELEMETRY_REJECTED]);
    [
        Spec { check: ROLE.to_owned(), source: SourceSpec::assign(control, Start::Beginning) },
        Spec { check: format!("{ROLE} telemetry"), source: SourceSpec::assign(telemetry, Start::End) },
    ]
}

/// Reads until the token is cancelled. Opening again after an error begins where the specification says: the state
/// takes no record twice, and telemetry of the time between is not counted. A topic that does not exist yet is waited
/// for like a broker that is away.
pub(super) async fn read(
    spec: Spec,
    context: Context,
    handle: Handle,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX, u64::from(std::process::id()));
    let reader = Reader { spec, context, handle, metrics };
    reader.report(false, "opening the topics");
    loop {
        let error = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            error = reader.read_once(&mut backoff) => error,
        };
        let topics = reader.spec.source.topics.join(", ");
        if matches!(error.kind(), Kind::Config | Kind::Bug) {
            return Err(Error::Read { topics, source: error });
        }
        let delay = backoff.next_delay();
        reader.report(false, error.to_string());
        reader.metrics.reopened.inc();
        tracing::warn!(%error, topics, delay_ms = delay.as_millis() as u64, "topics cannot be read; opening them again");
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(delay) => {}
        }
    }
}

struct Reader {
    spec: Spec,
    context: Context,
    handle: Handle,
    metrics: Metrics,
}

impl Reader {
    /// Reads until something fails.
    async fn read_once(&self, backoff: &mut Backoff) -> PortError {
        let mut source = match self.context.bus.source(self.spec.source.clone()).await {
            Ok(source) => source,
            Err(error) => return error,
        };
        self.report(false, "reading up to now");
        let topics = self.context.bus.topics();
        loop {
            match source.next().await {
                Ok(SourceEvent::Record(record)) => {
                    backoff.reset();
                    self.metrics.record(self.handle.apply(&record, topics));
                }
                Ok(SourceEvent::CaughtUp) => {
                    backoff.reset();
                    self.report(true, "reading");
                }
                Ok(SourceEvent::Assigned(_) | SourceEvent::Revoked(..)) => {}
                Err(error) => return error,
            }
        }
    }

    fn report(&self, ready: bool, detail: impl Into<String>) {
        self.context.readiness.set(&self.spec.check, ready, detail);
    }
}
