//! System tests: the binary against brokers, as its users run it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod cli;
mod cuda;
mod delivery;
mod demo;
mod deploy;
mod edges;
mod gateway;
mod ingest_loses_nothing;
mod leadership;
mod leaving;
mod predictions;
mod score;
