//! `workload.observed`: how many prediction requests arrived for each service, by append time.

pub mod counter;
pub mod service;

pub use counter::{ArrivalCounter, Checkpoint, Settings};
