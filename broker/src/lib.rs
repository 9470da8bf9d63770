//! An embedded single-node broker that speaks the Kafka protocol.
//!
//! For one machine: a laptop, a roadside box, a test. It keeps topics in files under one folder,
//! serves ordinary Kafka clients (librdkafka, kcat) on a loopback address, and says what it cannot
//! do ([`capabilities`]): there is one node, no replication and no security.
//!
//! # Map
//! - `protocol`: which requests are served, frames, and the check of untrusted counts;
//! - `log`: partition logs (a pure state machine, segment files, recovery, compaction);
//! - `catalog`: topics, settings and committed offsets (a pure state machine and its journal);
//! - `groups`: consumer groups (a pure state machine and its coordinator);
//! - `transactions`: transactional producers (a pure ledger, and how decisions are carried out);
//! - `handlers`: requests translated to the cores; `server`: sockets; `node`: lifecycle.
//!
//! Log, groups and transactions have one shape, `apply(now, request) -> (reply, effects)`, in
//! `log::state`, `groups::group` and `transactions::ledger`; property tests lie beside each.
//!
//! # Invariants
//! - Nothing is acknowledged before it lies in the page cache: `kill -9` loses nothing that was
//!   acknowledged, under any [`FsyncPolicy`].
//! - Cores decide without I/O and without a clock; shells act. A disk that fails leaves the state
//!   as it was and the client with `KAFKA_STORAGE_ERROR`.
//! - Whatever arrives on a connection ends at worst that connection.
//! - Requests, replies, connections, partitions, groups and members are bounded by [`Config`].

mod capability;
mod catalog;
mod config;
mod context;
mod error;
mod groups;
mod handlers;
mod log;
mod node;
mod protocol;
mod server;
mod topics;
mod transactions;

pub use capability::{Capabilities, capabilities};
pub use config::{Config, FsyncPolicy};
pub use error::Error;
pub use node::Broker;
