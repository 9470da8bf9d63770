//! The window operator: rows in by partition, closed windows out, state as bytes.
//!
//! Invariants:
//! - The rows of a window depend only on the rows of each partition in their order, not on batches, on the
//!   interleaving of partitions, or on snapshots and restores: bit for bit, except for the last digits of the
//!   variance family (`stddev`, …). What can differ is which rows came too late after an idle partition woke up,
//!   because idleness is wall clock.
//! - Each window is emitted once. The part of the query above the aggregation (ORDER BY, LIMIT, HAVING, …) runs on
//!   the rows of one window at a time.
//! - Open panes are bounded by lateness, `max_ahead` and the distance between partitions; the caller pauses
//!   partitions that are far ahead ([`WindowOperator::ahead_of_watermark_ms`]).
//!
//! Left out: deltas of the state (a snapshot is whole), and merging over processes: a query whose groups do not
//! follow the partitions must have all partitions in one process.

use crate::window::assign::assign;
use crate::window::pane::Pane;
use crate::window::plan::{QueryError, WindowPlan};
use crate::window::progress::{self, Closing, Dropped, Progress, RowTimes, Rules};
use crate::window::snapshot::{Snapshot, SnapshotError};
use crate::window::table::{Evaluated, GroupTable};
use arrow::array::{Array, AsArray, BooleanArray, RecordBatch, TimestampMillisecondArray};
use arrow::compute::{filter_record_batch, take};
use arrow::datatypes::TimestampMillisecondType;
use schemas::EpochMs;
use std::collections::{BTreeMap, BTreeSet};

/// What became of the rows of a push. Rows that a WHERE clause leaves out are among `accepted`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pushed {
    /// Taken.
    pub accepted: u64,
    /// Dropped because their window had passed.
    pub late: u64,
    /// Dropped because their event time is too far ahead of their receive time.
    pub ahead: u64,
    /// Dropped because they have no usable event time.
    pub untimed: u64,
    /// Dropped because the query's expressions failed on them.
    pub failed: u64,
    /// What the engine said of the first of those.
    pub failure: Option<String>,
}

/// A window that will not change any more.
#[derive(Debug)]
pub struct ClosedWindow {
    /// Start, event time, inclusive.
    pub start_ms: EpochMs,
    /// End, event time, exclusive.
    pub end_ms: EpochMs,
    /// The query's rows for it; an error when the part above the aggregation failed on them (then they are lost, and
    /// would be again at every attempt).
    pub rows: Result<RecordBatch, QueryError>,
}

/// Runs one query over the partitions that one process owns.
#[derive(Debug)]
pub struct WindowOperator {
    plan: WindowPlan,
    rules: Rules,
    progress: BTreeMap<i32, Progress>,
    panes: BTreeMap<i32, BTreeMap<EpochMs, Pane>>,
}

impl WindowOperator {
    /// An operator that owns no partition yet.
    pub fn new(plan: WindowPlan, rules: Rules) -> Self {
        WindowOperator { plan, rules, progress: BTreeMap::new(), panes: BTreeMap::new() }
    }

    /// The query.
    pub fn plan(&self) -> &WindowPlan {
        &self.plan
    }

    /// Takes a partition over, empty.
    pub fn assign(&mut self, partition: i32, now_ms: EpochMs) {
        self.progress.insert(partition, Progress::new(now_ms));
        self.panes.insert(partition, BTreeMap::new());
    }

    /// Takes a partition over with its state. `closed_end_ms` comes from [`super::closed_ends`] over the states of
    /// all partitions; panes whose windows were all emitted by then are left out.
    pub fn restore(&mut self, partition: i32, snapshot: Snapshot, closed_end_ms: EpochMs, now_ms: EpochMs) {
        let progress = Progress { max_ms: snapshot.max_ms, closed_end_ms, active_at_ms: now_ms };
        self.progress.insert(partition, progress);
        let width_ms = self.plan.shape.width_ms;
        let open = snapshot.panes.into_iter().filter(|(pane_ms, _)| pane_ms + width_ms > closed_end_ms);
        self.panes.insert(partition, open.map(|(pane_ms, state)| (pane_ms, Pane::Frozen(state))).collect());
    }

    /// Gives a partition up.
    pub fn revoke(&mut self, partition: i32) {
        self.progress.remove(&partition);
        self.panes.remove(&partition);
    }

    /// Partitions owned.
    pub fn partitions(&self) -> BTreeSet<i32> {
        self.progress.keys().copied().collect()
    }

    /// Adds rows of a partition, in the order of its log. An error means that the state cannot be trusted any more.
    pub fn push(&mut self, partition: i32, batch: &RecordBatch, now_ms: EpochMs) -> Result<Pushed, QueryError> {
        let progress = self
            .progress
            .get_mut(&partition)
            .ok_or_else(|| QueryError::Engine(format!("partition {partition} is not assigned")))?;
        progress.active_at_ms = now_ms;
        let admission = progress.admit(row_times(&self.plan, batch)?, self.plan.shape, &self.rules);
        let Dropped { late, ahead, untimed } = admission.dropped;
        let mut pushed = Pushed { late, ahead, untimed, ..Pushed::default() };
        if admission.all() {
            self.group(partition, batch, &mut pushed)?;
        } else {
            let kept = filter_record_batch(batch, &BooleanArray::from(admission.keep))?;
            self.group(partition, &kept, &mut pushed)?;
        }
        Ok(pushed)
    }

    /// Groups a batch; a batch with rows that the expressions fail on is halved until those are alone.
    fn group(&mut self, partition: i32, batch: &RecordBatch, pushed: &mut Pushed) -> Result<(), QueryError> {
        let rows = batch.num_rows();
        if rows == 0 {
            return Ok(());
        }
        let evaluated = self.plan.pre.run(batch).and_then(|rows| self.plan.groups.evaluate(&rows));
        match evaluated {
            Ok(evaluated) => {
                pushed.accepted += rows as u64;
                self.add(partition, &evaluated)
            }
            Err(error) if rows == 1 => {
                pushed.failed += 1;
                pushed.failure.get_or_insert_with(|| error.to_string());
                Ok(())
            }
            Err(_) => {
                let half = rows / 2;
                self.group(partition, &batch.slice(0, half), pushed)?;
                self.group(partition, &batch.slice(half, rows - half), pushed)
            }
        }
    }

    fn add(&mut self, partition: i32, rows: &Evaluated) -> Result<(), QueryError> {
        let window: &TimestampMillisecondArray = rows.window.as_primitive::<TimestampMillisecondType>();
        let assignment = assign(window.values(), self.plan.shape.slide_ms);
        let reordered = match &assignment.order {
            Some(order) => Some(rows.map(|array| take(array, order, None))?),
            None => None,
        };
        let rows = reordered.as_ref().unwrap_or(rows);
        let panes = self.panes.entry(partition).or_default();
        for run in assignment.runs {
            let pane = match panes.entry(run.pane_ms) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => entry.insert(Pane::new(&self.plan.groups)?),
            };
            pane.update(&self.plan.groups, &rows.slice(run.offset, run.length))?;
        }
        Ok(())
    }

    /// Emits every window that is complete, in the order of their ends.
    pub async fn advance(&mut self, now_ms: EpochMs) -> Result<Vec<ClosedWindow>, QueryError> {
        let mut closed = Vec::new();
        while let Some(closing) = progress::next_closing(&self.progress, now_ms, self.plan.shape, &self.rules) {
            for end_ms in self.window_ends(&closing) {
                let start_ms = end_ms - self.plan.shape.width_ms;
                let table = self.window_table(&closing.members, start_ms)?;
                let output = table.into_output(&self.plan.groups, start_ms)?;
                closed.push(ClosedWindow { start_ms, end_ms, rows: self.plan.post.run(output).await });
            }
            self.apply(&closing);
        }
        Ok(closed)
    }

    /// Ends of the windows in `closing` that have rows.
    fn window_ends(&self, closing: &Closing) -> BTreeSet<EpochMs> {
        let shape = self.plan.shape;
        let panes = closing.members.iter().filter_map(|m| self.panes.get(m)).flat_map(BTreeMap::keys);
        panes
            .flat_map(|pane_ms| (1..=shape.width_ms / shape.slide_ms).map(move |k| pane_ms + k * shape.slide_ms))
            .filter(|end_ms| *end_ms > closing.after_ms && *end_ms <= closing.until_ms)
            .collect()
    }

    /// The groups of a window over `members`. A pane that no later window needs is used up.
    fn window_table(&mut self, members: &[i32], start_ms: EpochMs) -> Result<GroupTable, QueryError> {
        let (spec, shape) = (&self.plan.groups, self.plan.shape);
        let end_ms = start_ms + shape.width_ms;
        let mut table: Option<GroupTable> = None;
        for member in members {
            let Some(panes) = self.panes.get_mut(member) else { continue };
            // The first pane of a window is in no later window.
            if let Some(last_use) = panes.remove(&start_ms) {
                merge_pane(&mut table, last_use, spec)?;
            }
            for (_, pane) in panes.range_mut(start_ms..end_ms) {
                let state = pane.freeze(spec)?;
                match &mut table {
                    Some(table) => table.merge(spec, state)?,
                    None => table = Some(GroupTable::from_state(spec, state)?),
                }
            }
        }
        table.map_or_else(|| GroupTable::new(spec), Ok)
    }

    fn apply(&mut self, closing: &Closing) {
        let width_ms = self.plan.shape.width_ms;
        for member in &closing.members {
            if let Some(progress) = self.progress.get_mut(member) {
                progress.closed_end_ms = closing.until_ms;
            }
            if let Some(panes) = self.panes.get_mut(member) {
                panes.retain(|pane_ms, _| pane_ms + width_ms > closing.until_ms);
            }
        }
    }

    /// The state of a partition. Nothing changes by it.
    pub fn snapshot(&mut self, partition: i32) -> Result<Snapshot, QueryError> {
        let owned = self.partitions();
        let progress = self
            .progress
            .get(&partition)
            .ok_or_else(|| QueryError::Engine(format!("partition {partition} is not assigned")))?;
        let spec = &self.plan.groups;
        let panes = self.panes.entry(partition).or_default();
        let states = panes.iter_mut().map(|(pane_ms, pane)| Ok((*pane_ms, pane.freeze(spec)?.clone())));
        Ok(Snapshot {
            max_ms: progress.max_ms,
            closed_end_ms: progress.closed_end_ms,
            owned,
            panes: states.collect::<Result<_, QueryError>>()?,
        })
    }

    /// Serialises a snapshot of this query.
    pub fn encode(&self, snapshot: &Snapshot) -> Result<Vec<u8>, SnapshotError> {
        snapshot.encode(&self.plan.groups.state_schema)
    }

    /// Reads a snapshot of this query.
    pub fn decode(&self, bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
        Snapshot::decode(bytes, &self.plan.groups.state_schema)
    }

    /// Event time up to which all awake partitions have come; `None` while one has said nothing.
    pub fn watermark_ms(&self, now_ms: EpochMs) -> Option<EpochMs> {
        progress::watermark_ms(&self.progress, now_ms, &self.rules)
    }

    /// How far each partition is ahead of the watermark, milliseconds; 0 without a watermark.
    pub fn ahead_of_watermark_ms(&self, now_ms: EpochMs) -> BTreeMap<i32, i64> {
        let watermark_ms = self.watermark_ms(now_ms);
        let ahead = |p: &Progress| Some(p.max_ms? - watermark_ms?);
        self.progress.iter().map(|(partition, p)| (*partition, ahead(p).unwrap_or(0).max(0))).collect()
    }

    /// Number of open panes over all partitions.
    pub fn open_panes(&self) -> usize {
        self.panes.values().map(BTreeMap::len).sum()
    }

    /// Bytes that the open panes hold.
    pub fn state_bytes(&self) -> usize {
        self.panes.values().flat_map(BTreeMap::values).map(Pane::bytes).sum()
    }
}

fn merge_pane(
    table: &mut Option<GroupTable>,
    pane: Pane,
    spec: &crate::window::table::GroupSpec,
) -> Result<(), QueryError> {
    match (table.as_mut(), pane) {
        (None, pane) => *table = Some(pane.into_table(spec)?),
        (Some(table), Pane::Frozen(state)) => table.merge(spec, &state)?,
        (Some(table), Pane::Live(live)) => table.merge(spec, &live.into_state(spec)?)?,
    }
    Ok(())
}

/// Event and receive time of every row.
fn row_times(plan: &WindowPlan, batch: &RecordBatch) -> Result<impl Iterator<Item = RowTimes>, QueryError> {
    let column = |index: usize| {
        batch
            .column(index)
            .as_primitive_opt::<TimestampMillisecondType>()
            .ok_or_else(|| QueryError::Engine(format!("column {index} is not a timestamp in milliseconds")))
    };
    let event = column(plan.time_column)?;
    let received = plan.received_column.map(column).transpose()?;
    Ok((0..batch.num_rows()).map(move |row| RowTimes {
        event_ms: event.is_valid(row).then(|| event.value(row)),
        received_ms: received.filter(|r| r.is_valid(row)).map(|r| r.value(row)),
    }))
}
