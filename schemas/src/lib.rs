//! Wire contracts of Barista: every message that crosses a topic, as plain types.
//!
//! Purpose: one place that says what a topic carries. Producers and consumers in every role share these types;
//! JSON Schemas and the AsyncAPI document are generated from them ([`registry`], [`asyncapi`]).
//!
//! Invariants:
//! - No I/O, no clock, no async. Times are integer milliseconds since the Unix epoch, UTC, and end in `_ms`.
//! - Every JSON value carries `"schema": "<topic>.v1"` ([`tag`]); reading checks it.
//! - Readers ignore unknown fields, and a field added later is optional: old readers read new messages and new
//!   readers read old ones. `tests/compat.rs` holds recorded messages of every version.
//! - Units are in the names: `_ms`, `_s`, `_rps` (requests per second), `_usd`, `_mps` (metres per second).
//!
//! Left out: what a message means to a role (its own crate), and transport (crate `runtime`).

pub mod aggregates;
pub mod allocation;
pub mod asyncapi;
pub mod headers;
pub mod message;
pub mod prediction;
pub mod profile;
pub mod registry;
pub mod state;
pub mod status;
pub mod tag;
pub mod telemetry;
pub mod topics;
pub mod workload;

pub use message::{DecodeError, Message};
pub use topics::Topics;

/// Milliseconds since the Unix epoch, UTC.
pub type EpochMs = i64;
