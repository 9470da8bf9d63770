//! The composition of Barista: command line, configuration, embedded brokers, roles in one process, the demo.
//!
//! Invariants: only this crate knows every role and picks the adapters; a command returns an outcome and never exits
//! the process itself; stdout carries what was asked for, stderr everything else.

pub mod cli;
pub mod commands;
pub mod config;
pub mod dashboard;
pub mod demo;
pub mod embedded;
pub mod failure;
pub mod kafka_tools;
pub mod output;
pub mod roles;
pub mod score;
