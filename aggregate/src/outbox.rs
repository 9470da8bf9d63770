//! Records on their way out, and the promise that all of them arrived.
//!
//! Invariants: records are handed to the sink at once and in order; [`Outbox::settle`] returns only when the broker
//! has reported every one. A record that failed because the broker was away is sent again with backoff, for as long
//! as it takes: input offsets are not committed meanwhile, and the source's bounded buffer stops the reading. At most
//! [`MAX_PENDING`] records wait; then [`Outbox::send`] settles first.

use futures::future::BoxFuture;
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::{Delivery, OutRecord, PortError, Sink};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Records sent and not yet reported.
pub const MAX_PENDING: usize = 10_000;
const RETRY_BASE: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Any number: it only spreads the retries of one process.
const RETRY_SEED: u64 = 55;

type Report = BoxFuture<'static, Result<Delivery, PortError>>;

/// See the module.
pub struct Outbox {
    sink: Arc<dyn Sink>,
    pending: Vec<(OutRecord, Report)>,
    abandon: CancellationToken,
}

impl Outbox {
    /// Sends to `sink`. When `abandon` is cancelled, settling gives up on a broker that is away.
    pub fn new(sink: Arc<dyn Sink>, abandon: CancellationToken) -> Self {
        Outbox { sink, pending: Vec::new(), abandon }
    }

    /// Sends records in order.
    pub async fn send(&mut self, records: Vec<OutRecord>) -> Result<(), PortError> {
        for record in records {
            if self.pending.len() >= MAX_PENDING {
                self.settle().await?;
            }
            let report = self.sink.send(record.clone());
            self.pending.push((record, report));
        }
        Ok(())
    }

    /// Waits until everything sent is durable. Fails when the broker refuses a record for good, or is away after
    /// `abandon` was cancelled.
    pub async fn settle(&mut self) -> Result<(), PortError> {
        let mut backoff = Backoff::new(RETRY_BASE, RETRY_MAX, RETRY_SEED);
        loop {
            let Some((failed, error)) = self.collect().await? else { return Ok(()) };
            if self.abandon.is_cancelled() {
                return Err(error);
            }
            let delay = backoff.next_delay();
            tracing::warn!(%error, records = failed.len(), ?delay, "records were not delivered; sending them again");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = self.abandon.cancelled() => {}
            }
            self.pending = failed.into_iter().map(|r| (r.clone(), self.sink.send(r))).collect();
        }
    }

    /// Awaits all reports; those that may succeed later, with the first error.
    async fn collect(&mut self) -> Result<Option<(Vec<OutRecord>, PortError)>, PortError> {
        let mut failed: Option<(Vec<OutRecord>, PortError)> = None;
        for (record, report) in std::mem::take(&mut self.pending) {
            match report.await {
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Transient => {
                    failed.get_or_insert_with(|| (Vec::new(), error)).0.push(record);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(failed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use runtime::memory::MemoryBus;
    use runtime::{Bus, ManualClock};

    fn bus() -> MemoryBus {
        MemoryBus::new(Arc::new(ManualClock::new(0)))
    }

    fn record(n: u8) -> OutRecord {
        OutRecord { partition: Some(0), ..OutRecord::new("t").value(vec![n]) }
    }

    #[tokio::test]
    async fn records_that_failed_are_sent_again_in_order() {
        let bus = bus();
        bus.fail_sends(Some("away"));
        let mut outbox = Outbox::new(bus.sink(), CancellationToken::new());
        outbox.send(vec![record(1), record(2)]).await.unwrap();
        bus.fail_sends(None);
        outbox.settle().await.unwrap();
        let values: Vec<u8> = bus.records("t").iter().map(|r| r.value.as_ref().unwrap()[0]).collect();
        assert_eq!(values, [1, 2]);
    }

    #[tokio::test]
    async fn shutting_down_gives_up_on_a_broker_that_is_away() {
        let bus = bus();
        bus.fail_sends(Some("away"));
        let abandon = CancellationToken::new();
        let mut outbox = Outbox::new(bus.sink(), abandon.clone());
        outbox.send(vec![record(1)]).await.unwrap();
        abandon.cancel();
        assert!(outbox.settle().await.unwrap_err().to_string().contains("away"));
    }
}
