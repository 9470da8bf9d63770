//! The control topic as its one writer and its readers see it.

use runtime::restore::{Restored, read_to_end};
use runtime::{Bus, OutRecord, PortError, Record, Source, Transactions};
use schemas::Message;
use schemas::allocation::{FLEET_KEY, FleetPlan, NODE_KEY_PREFIX, NodeAllocation, PLANNER_KEY, PlannerHeartbeat};
use schemas::topics::ALLOCATION_CONTROL;
use std::collections::BTreeMap;

/// The transactional id that all planners of a topic prefix share, before the prefix.
const TRANSACTIONAL_ID: &str = "barista.planner";

/// Decodes a record's value; one that cannot be read is logged and skipped.
pub(super) fn decode<M: Message>(record: &Record) -> Option<M> {
    let value = record.value.as_ref()?;
    M::decode(value)
        .inspect_err(|error| tracing::warn!(%error, topic = record.topic, offset = record.offset, "skipped"))
        .ok()
}

/// Epoch of a control record, and whether it says that its planner has resigned.
pub(super) fn sign_of_life(record: &Record) -> Option<(u64, bool)> {
    match record.key_str() {
        PLANNER_KEY => decode::<PlannerHeartbeat>(record).map(|h| (h.epoch, h.resigned)),
        FLEET_KEY => decode::<FleetPlan>(record).map(|p| (p.epoch, false)),
        key if key.starts_with(NODE_KEY_PREFIX) => decode::<NodeAllocation>(record).map(|a| (a.epoch, false)),
        _ => None,
    }
}

/// What the topic says at the moment of a claim.
pub(super) struct Claim {
    /// The writer that is ours now.
    pub(super) writer: Writer,
    /// Newest record of each key.
    pub(super) newest: BTreeMap<String, Record>,
}

/// The one writer of the control topic.
pub(super) struct Writer {
    transactions: Box<dyn Transactions>,
}

impl Writer {
    /// Takes the office: fences earlier writers, then reads what they have committed. Gives a source that goes on
    /// from there.
    pub(super) async fn claim(bus: &dyn Bus) -> Result<(Claim, Box<dyn Source>), PortError> {
        let transactions = bus.transactions(&bus.topics().name(TRANSACTIONAL_ID)).await?;
        let Restored { newest, source } = read_to_end(bus, &bus.topics().name(ALLOCATION_CONTROL)).await?;
        Ok((Claim { writer: Writer { transactions }, newest }, source))
    }

    /// Commits these records as one transaction; nothing of them is seen before.
    pub(super) async fn commit(&self, records: Vec<OutRecord>) -> Result<(), PortError> {
        self.transactions.begin().await?;
        match self.send(records).await {
            Ok(()) => self.transactions.commit().await,
            Err(error) => {
                if let Err(also) = self.transactions.abort().await {
                    tracing::debug!(%also, "abort");
                }
                Err(error)
            }
        }
    }

    /// Ends what was cut short.
    pub(super) async fn abort(&self) -> Result<(), PortError> {
        self.transactions.abort().await
    }

    async fn send(&self, records: Vec<OutRecord>) -> Result<(), PortError> {
        let deliveries: Vec<_> = records.into_iter().map(|r| self.transactions.send(r)).collect();
        for delivery in deliveries {
            delivery.await?;
        }
        Ok(())
    }
}
