//! Ingest: telemetry from MQTT into Kafka, each message acknowledged only when Kafka has it.
//!
//! ```text
//! MQTT broker ──▶ reader (mqtt) ──bounded──▶ pipeline: dedup → decode → Kafka sink
//!      ▲                                        │
//!      └────────── PUBACK, in order ◀── acks ◀──┘ delivery report
//! ```
//!
//! Core, pure: [`decode`] (message to event), [`dedup`] (which messages are known), [`acks`] (order of
//! acknowledgements). Shell: [`mqtt`] (connection), `pipeline` (from message to record), [`service`] (tasks and end).
//!
//! Guarantees: at QoS 1, nothing that ingest acknowledged is ever lost, because the PUBACK follows the delivery
//! report of the record; every message becomes one record in `telemetry.vehicle` or in `telemetry.rejected`, unless an
//! equal one (topic and payload) was delivered within the window. Before the acknowledgement the MQTT broker's own
//! persistence holds. QoS 0 input is best effort and counted. After a kill, messages that were delivered and not yet
//! acknowledged are written a second time: the window does not outlive the process.
//!
//! Backpressure: Kafka slow → `ingest.in_flight` full → `mqtt.max_inflight` full → the socket is not read, and the
//! broker holds what is not acknowledged. Nothing grows without bound.

pub mod acks;
pub mod config;
pub mod decode;
pub mod dedup;
pub mod metrics;
pub mod mqtt;
mod pipeline;
pub mod service;

pub use config::{BrokerAddress, Config, IngestConfig, MqttConfig};
pub use metrics::{Counts, Metrics};
pub use service::{Error, run, run_with_metrics};
