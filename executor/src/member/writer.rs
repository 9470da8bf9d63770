//! Writes one answer at least once: a result, or the rejection that stands for it.

use super::Written;
use crate::request::{Fault, class};
use runtime::backoff::Backoff;
use runtime::dead_letter::dead_letter;
use runtime::ports::Kind;
use runtime::{OutRecord, PortError, Record, Sink};
use schemas::EpochMs;
use schemas::headers::Reason;
use std::sync::Arc;
use std::time::Duration;

/// Writes one answer and keeps at it.
pub(super) struct Writer {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) rejected_topic: String,
    pub(super) retries: prometheus_client::metrics::counter::Counter,
}

impl Writer {
    pub(super) async fn write(
        self,
        record: Record,
        deadline_ms: EpochMs,
        outcome: Result<OutRecord, Fault>,
    ) -> Written {
        let mut written = Written {
            partition: record.topic_partition(),
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            deadline_ms,
            class: class(&record).unwrap_or_default(),
            rejected: None,
            outcome: Ok(()),
        };
        let fault = match outcome {
            Err(fault) => fault,
            Ok(out) => match self.deliver(&out, record.offset).await {
                Err(PortError::Refused(why)) => {
                    Fault::new(Reason::InferenceFailed, format!("the result was refused by the broker: {why}"))
                }
                outcome => {
                    written.outcome = outcome;
                    return written;
                }
            },
        };
        written.rejected = Some(fault.reason);
        let letter = dead_letter(&self.rejected_topic, &record, fault.reason, &fault.detail);
        written.outcome = self.deliver(&letter, record.offset).await;
        if matches!(written.outcome, Err(PortError::Refused(_))) {
            // Too large with the headers on top: then the headers alone, which name the original.
            written.outcome = self.deliver(&OutRecord { value: None, ..letter }, record.offset).await;
        }
        written
    }

    /// Sends until the delivery report comes; returns only errors that trying again cannot mend.
    async fn deliver(&self, out: &OutRecord, seed: i64) -> Result<(), PortError> {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5), seed.unsigned_abs());
        loop {
            match self.sink.send(out.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == Kind::Transient && !matches!(error, PortError::Closed) => {
                    self.retries.inc();
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, topic = out.topic, ?delay, "an answer cannot be written for now");
                    tokio::time::sleep(delay).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
