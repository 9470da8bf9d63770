//! Scoring of a Parquet file or a topic by the nodes that serve a model, on cores that nothing else needs.
//!
//! Purpose: rows in, as requests of `prediction.batch.<service>`; their answers out, one line a row, in the order of the
//! input.
//!
//! Invariants:
//! - Each row of the input is one line of the output: its outputs, or why it was rejected. Never none, never two.
//! - The output is the journal: a run that was killed is gone on with behind its last whole line. Rows that were on
//!   their way are sent again; an answer to an earlier run is not taken.
//! - At most `in_flight` rows are on their way: memory is bounded, and what waits in Kafka is young.
//!
//! Cores, pure: [`window`] (which rows wait, in which order lines go), [`mapping`] (columns to tensors), [`answer`]
//! (records to lines). Shells: [`journal`] (the output file), [`rows`] (the input), [`run`].
//!
//! Left out: who runs the model (`executor`), and other formats.

pub mod answer;
pub mod journal;
pub mod mapping;
pub mod rows;
mod run;
pub mod window;

pub use run::{Job, Summary, run};

/// A row of the input: partition and offset of a record, or partition 0 and the number of a row in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId {
    /// Partition; 0 in a file.
    pub partition: i32,
    /// Offset, or number from 0.
    pub number: i64,
}
