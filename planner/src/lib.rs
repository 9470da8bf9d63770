//! Decides what to lease, start, keep, renew, let lapse and stop, and where every instance runs.
//!
//! Purpose: turn the forecast of every service into a fleet that carries it inside its latency objective at least
//! cost, and say why. The decision is [`plan()`], a pure function over [`model::PlanInputs`]; the service around it
//! gathers the inputs from topics, publishes the plan on `allocation.control` and lets a provider act on it.
//!
//! Invariants:
//! - The core (`model`, `margin`, `cost`, `cover`, `demand`, `lease`, `pack`, `grow`, `shrink`, `plan`, `report`, `explain`,
//!   `ledger`, `fleet`) depends on `schemas` alone: no clock, no environment, no I/O, fixed iteration order.
//! - Every plan carries its reasons; "short by N, because …" is a value in it, not an error.
//! - A plan is published before anything acts on it.
//!
//! Left out: forecasting (crate `forecaster`), scaling inside a node (crate `executor`).

mod bridge;
pub mod budget;
mod compose;
pub mod config;
pub mod cost;
mod cover;
pub mod demand;
mod error;
pub mod explain;
pub mod fleet;
mod grow;
pub mod handover;
mod lead;
pub mod leadership;
pub mod lease;
pub mod ledger;
pub mod live;
pub mod load;
pub mod margin;
pub mod metrics;
pub mod model;
mod pack;
mod plan;
#[cfg(test)]
mod properties;
pub mod provider;
mod report;
#[cfg(test)]
mod scenarios;
mod service;
mod share;
mod shrink;
pub mod spot;
#[cfg(test)]
mod testing;

pub use config::Config;
pub use error::Error;
pub use plan::plan;
pub use service::{load_profiles, run, run_with};
