//! Role `aggregate`: SQL windows over telemetry, prediction requests from them, and the load of each service.
//!
//! - [`window`]: the event-time window operator on stock DataFusion (the only crate that depends on it);
//! - [`sql`]: what a query may say beyond stock SQL;
//! - [`decode`] and [`output`]: messages to rows, rows to messages;
//! - [`pipeline`] and [`service`]: all queries over the input partitions, and the loop around them;
//! - [`workload`]: `workload.observed`, arrivals of prediction requests by the wall clock.
//!
//! Invariants: the cores take the time as an argument and read no clock; the state of a query and its input offsets
//! are written in one record; offsets are committed only after the outputs and the state behind them are durable.
//!
//! Left out: exactly-once (outputs, state and offsets in one transaction), repartitioning for queries whose groups
//! do not follow the record key, deltas of the state.

mod base64;
pub mod config;
pub mod decode;
pub mod error;
pub mod metrics;
pub mod outbox;
pub mod output;
pub mod pipeline;
pub mod queries;
pub mod service;
pub mod sql;
pub mod state;
pub mod window;
pub mod workload;

pub use config::Config;
pub use error::Error;
pub use service::run;
