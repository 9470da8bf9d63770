//! Event-time windows over an unbounded stream, on stock DataFusion.
//!
//! A query is planned once. Its physical plan is taken apart into *what stands before the aggregation*, *the
//! aggregation* and *what stands after it*; the aggregation is replaced by panes that the operator keeps open until
//! the watermark passes them. DataFusion's own group tables and accumulators do the work inside a pane.
//!
//! Left out: reading and writing topics (crate root), joins of two streams, session windows, updates of a window
//! that was already emitted.

mod assign;
mod logical;
mod operator;
mod pane;
mod physical;
mod plan;
mod progress;
mod snapshot;
mod table;

pub use operator::{ClosedWindow, Pushed, WindowOperator};
pub use plan::{QueryError, WindowPlan};
pub use progress::Rules;
pub use snapshot::{STATE_VERSION, Snapshot, SnapshotError, closed_ends};
