//! A pane: the groups of one slide of one partition.
//!
//! Invariant: freezing (to read the state, for a snapshot or an overlapping window) and thawing (to add rows again)
//! change nothing, not even the rounding of a floating-point sum: thawing merges into an empty table and sums go on
//! from there. So the rows of a window do not depend on when snapshots were taken or restored. (The engine's
//! variance family, `stddev` and the like, rounds when it merges: there the last digits may differ.)

use crate::window::plan::QueryError;
use crate::window::table::{Evaluated, GroupSpec, GroupTable};
use arrow::array::RecordBatch;

/// Groups that rows are being added to, or their state as a batch.
#[derive(Debug)]
pub(super) enum Pane {
    Live(GroupTable),
    Frozen(RecordBatch),
}

impl Pane {
    pub(super) fn new(spec: &GroupSpec) -> Result<Self, QueryError> {
        Ok(Pane::Live(GroupTable::new(spec)?))
    }

    /// Adds rows.
    pub(super) fn update(&mut self, spec: &GroupSpec, rows: &Evaluated) -> Result<(), QueryError> {
        match self {
            Pane::Live(table) => table.update(rows),
            Pane::Frozen(state) => {
                let mut table = GroupTable::from_state(spec, state)?;
                let outcome = table.update(rows);
                *self = Pane::Live(table);
                outcome
            }
        }
    }

    /// Its state; the pane is frozen afterwards.
    pub(super) fn freeze(&mut self, spec: &GroupSpec) -> Result<&RecordBatch, QueryError> {
        if let Pane::Live(table) = self {
            let table = std::mem::replace(table, GroupTable::new(spec)?);
            *self = Pane::Frozen(table.into_state(spec)?);
        }
        match self {
            Pane::Frozen(state) => Ok(state),
            Pane::Live(_) => Err(QueryError::Engine("a frozen pane is live".to_owned())),
        }
    }

    /// Its groups as a table, for the last window that needs them.
    pub(super) fn into_table(self, spec: &GroupSpec) -> Result<GroupTable, QueryError> {
        match self {
            Pane::Live(table) => Ok(table),
            Pane::Frozen(state) => GroupTable::from_state(spec, &state),
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Pane::Live(table) => table.bytes(),
            Pane::Frozen(state) => state.get_array_memory_size(),
        }
    }
}
