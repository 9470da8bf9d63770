//! Follows `allocation.control`: the node's share of the plan, from the beginning of the topic, then live.
//!
//! Invariants:
//! - What is older than the end of the topic at the start is folded to its newest record before it is told.
//! - A tombstone is told as [`Order::Retired`] only if it is the newest record of the key. Whether an old one is still
//!   there depends on compaction, so the node ignores it before its first allocation.
//! - A record that cannot be read is logged and skipped; the plan before it stays in force.

use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::{Bus, PortError, Record, Source, SourceEvent, SourceSpec, Start};
use schemas::Message;
use schemas::allocation::{NODE_KEY_PREFIX, NodeAllocation};
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// What the plan says to the node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Order {
    /// Host this.
    Follow(Box<NodeAllocation>),
    /// The node is not part of the fleet any more.
    Retired,
}

/// Tells orders until cancelled. An error is one that trying again cannot mend.
pub(crate) async fn follow(
    bus: Arc<dyn Bus>,
    node: String,
    tell: impl Fn(Order),
    cancelled: CancellationToken,
) -> Result<(), PortError> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), 0);
    loop {
        let outcome = tokio::select! {
            () = cancelled.cancelled() => return Ok(()),
            outcome = read(bus.as_ref(), &node, &tell, &mut backoff) => outcome,
        };
        match outcome {
            Err(error) if error.kind() != Kind::Transient => return Err(error),
            Err(error) => {
                let delay = backoff.next_delay();
                tracing::warn!(%error, ?delay, "the plan cannot be read for now, the last one stays in force");
                tokio::select! {
                    () = cancelled.cancelled() => return Ok(()),
                    () = tokio::time::sleep(delay) => {}
                }
            }
            Ok(never) => match never {},
        }
    }
}

async fn read(
    bus: &dyn Bus,
    node: &str,
    tell: &impl Fn(Order),
    backoff: &mut Backoff,
) -> Result<std::convert::Infallible, PortError> {
    let topic = bus.topics().name(schemas::topics::ALLOCATION_CONTROL);
    let mut source: Box<dyn Source> = bus.source(SourceSpec::assign(vec![topic], Start::Beginning)).await?;
    let mut folded: Option<Order> = None;
    let mut live = false;
    loop {
        match source.next().await? {
            SourceEvent::Record(record) => {
                backoff.reset();
                match decode(&record, node) {
                    Some(order) if live => tell(order),
                    Some(order) => folded = Some(newest(folded, order)),
                    None => {}
                }
            }
            SourceEvent::CaughtUp => {
                live = true;
                if let Some(order) = folded.take() {
                    tell(order);
                }
            }
            SourceEvent::Assigned(_) | SourceEvent::Revoked(..) => {}
        }
    }
}

/// The order to follow of two, the second of which stands later in the log.
fn newest(before: Option<Order>, order: Order) -> Order {
    match (before, order) {
        (Some(Order::Follow(old)), Order::Follow(new)) if !crate::reconcile::supersedes(&new, Some(&old)) => {
            Order::Follow(old)
        }
        (_, order) => order,
    }
}

fn decode(record: &Record, node: &str) -> Option<Order> {
    if record.key_str().strip_prefix(NODE_KEY_PREFIX) != Some(node) {
        return None;
    }
    let Some(value) = &record.value else { return Some(Order::Retired) };
    match NodeAllocation::decode(value) {
        Ok(allocation) => Some(Order::Follow(Box::new(allocation))),
        Err(error) => {
            tracing::warn!(%error, offset = record.offset, "a control record cannot be read, it is skipped");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::allocation;

    fn plan(epoch: u64, sequence: u64) -> Order {
        Order::Follow(Box::new(NodeAllocation {
            schema: Default::default(),
            node: "n".to_owned(),
            plan_id: format!("{epoch}-{sequence}"),
            epoch,
            sequence,
            created_at_ms: 0,
            instances: vec![allocation("a", "1", 1)],
            drain: false,
            reason: String::new(),
            load: Vec::new(),
        }))
    }

    #[test]
    fn a_deposed_planner_is_not_followed() {
        assert_eq!(newest(Some(plan(3, 1)), plan(2, 9)), plan(3, 1));
        assert_eq!(newest(Some(plan(3, 1)), plan(3, 2)), plan(3, 2));
        assert_eq!(newest(Some(plan(3, 1)), Order::Retired), Order::Retired);
        assert_eq!(newest(Some(Order::Retired), plan(1, 1)), plan(1, 1));
    }
}
