//! What every role stands on: ports and their adapters, configuration, shutdown, admin HTTP, metrics, tracing.
//!
//! Purpose: services see ports ([`ports::Bus`], [`ports::Sink`], [`ports::Source`], [`clock::Clock`]) and never a
//! broker; the binary picks the adapters ([`memory`] in tests, [`kafka`] in production).
//!
//! Invariants:
//! - A sink's future resolves only after the durable append; a source's commit is called by the service after its
//!   work is done, never by a timer.
//! - Every queue here is bounded, and its documentation says what happens when it is full.
//! - No global state: a service gets a [`Context`] and a cancellation token.
//!
//! Left out: what any message means, and the composition of roles (crate `barista`).

pub mod admin;
pub mod backoff;
pub mod clock;
pub mod config;
pub mod dead_letter;
pub mod health;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod memory;
pub mod metrics;
pub mod offsets;
pub mod page;
pub mod ports;
pub mod restore;
pub mod supervisor;
pub mod trace;
pub mod transactions;

pub use clock::{Clock, ManualClock, SharedClock, SystemClock};
pub use health::Readiness;
pub use metrics::SharedRegistry;
pub use offsets::OffsetTracker;
pub use ports::{
    Bus, Delivery, Headers, OutRecord, PortError, Record, RevokeAck, Sink, Source, SourceEvent, SourceMode, SourceSpec,
    Start, TopicPartition,
};
pub use transactions::{GroupMetadata, Transactions};

use std::sync::Arc;

/// What a service is given: its ports and where it reports to.
#[derive(Clone)]
pub struct Context {
    /// Topics in and out.
    pub bus: Arc<dyn Bus>,
    /// The wall clock, or a test's.
    pub clock: SharedClock,
    /// Where metrics are registered.
    pub registry: SharedRegistry,
    /// What `/readyz` answers from.
    pub readiness: Readiness,
}
