//! The executor: a node that holds model instances and answers prediction requests within their deadlines.
//!
//! Purpose: follow the node's share of the plan (`allocation.control`), serve `prediction.requests.<service>` from the
//! instances it asks for, scale workers inside the node, and say what it does in `executor.status`.
//!
//! Cores, pure, with time as an argument: [`queue`] (order, admission, shedding, batches), [`vertical`] (workers of an
//! instance), [`instance`] (states), [`reconcile`] (plan to actions), [`request`] (wire to rows and back), [`stats`],
//! [`drift`] (does a model take what its profile says).
//! Shells: [`service`] (the node and its life), `member` (one consumer of a service), `pool` (worker threads),
//! `control` (the plan), [`direct`] (requests on connections), [`gateway`] (Open Inference Protocol). [`backend`] runs models; [`profile`] measures them.
//!
//! Invariants:
//! - Every request that is read ends in exactly one result or rejection, or is given back to the group uncommitted;
//!   an offset is committed only after the delivery report of every record before it.
//! - Everything is bounded: queues by requests, members by requests in flight, workers by the node's permits.
//! - Without a planner the node goes on with its last plan.
//!
//! Background work is read from `prediction.batch.<service>` and takes what nothing else needs ([`background`]).

pub mod backend;
pub mod background;
pub mod config;
mod control;
pub mod direct;
pub mod drift;
mod error;
pub mod gateway;
pub mod instance;
mod member;
pub mod metrics;
mod node;
mod pool;
pub mod profile;
pub mod queue;
pub mod reconcile;
pub mod request;
pub mod service;
pub mod stats;
pub mod vertical;

pub use config::Config;
pub use error::Error;
pub use service::{run, run_behind, run_with};
