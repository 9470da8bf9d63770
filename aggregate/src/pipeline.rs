//! All queries over the input partitions of one process: records in, records out, state records.
//!
//! Invariants: a state written by [`Pipeline::states`] covers exactly the input before its offset, and every row that
//! closed before it has been returned by [`Pipeline::flush`]; so the caller makes outputs durable first, then the
//! states, then commits. Records below a query's own offset (it is ahead of the committed one after a crash) are
//! not pushed into it again.

use crate::config::{Config, Query};
use crate::decode::{self, BadRecord, BatchBuilder, OffsetBatch};
use crate::error::Error;
use crate::metrics::{DropLabels, Metrics, QueryLabels, ReasonLabels};
use crate::output::Writer;
use crate::sql;
use crate::state::{self, StateRecords};
use crate::window::{ClosedWindow, Pushed, Rules, WindowOperator, WindowPlan, closed_ends};
use runtime::{OutRecord, Record, TopicPartition};
use schemas::{EpochMs, Topics};
use std::collections::{BTreeMap, BTreeSet};

/// See the module.
pub struct Pipeline {
    queries: Vec<RunningQuery>,
    input_topic: String,
    state_topic: String,
    waiting: BTreeMap<i32, BatchBuilder>,
    /// Next offset to read, by partition that is ours.
    positions: BTreeMap<i32, i64>,
    /// Partitions whose state is newer than the one written.
    unsaved: BTreeSet<i32>,
    metrics: Metrics,
    reported: BTreeSet<BadRecord>,
}

struct RunningQuery {
    query: Query,
    operator: WindowOperator,
    writer: Writer,
    /// Input offset from which records are new to this query, by partition.
    from: BTreeMap<i32, i64>,
    /// Kinds of failure that were logged once.
    reported: BTreeSet<&'static str>,
}

impl Pipeline {
    /// Plans every query of `config`.
    pub async fn new(config: &Config, topics: &Topics, metrics: Metrics) -> Result<Self, Error> {
        let stream = decode::telemetry();
        let zone = config.time_zone().map_err(Error::Config)?;
        let rules = Rules {
            lateness_ms: config.lateness.as_ms(),
            max_ahead_ms: config.max_ahead.as_ms(),
            idle_timeout_ms: config.idle_timeout.as_ms(),
        };
        let mut queries = Vec::new();
        for query in config.queries() {
            let refused = |source| Error::Query { query: query.name.clone(), source };
            let session = sql::session(&stream, &zone).map_err(|e| refused(e.into()))?;
            let plan = WindowPlan::compile(&session, &query.sql, &stream).await.map_err(refused)?;
            let writer = Writer::new(&query, &plan, topics)
                .map_err(|source| Error::Features { query: query.name.clone(), source })?;
            let operator = WindowOperator::new(plan, rules);
            queries.push(RunningQuery { query, operator, writer, from: BTreeMap::new(), reported: BTreeSet::new() });
        }
        Ok(Pipeline {
            queries,
            input_topic: topics.name(schemas::topics::TELEMETRY_VEHICLE),
            state_topic: topics.name(schemas::topics::AGGREGATE_STATE),
            waiting: BTreeMap::new(),
            positions: BTreeMap::new(),
            unsaved: BTreeSet::new(),
            metrics,
            reported: BTreeSet::new(),
        })
    }

    /// Takes partitions over, with what `states` has of them.
    pub fn assign(&mut self, partitions: &[i32], states: &StateRecords, now_ms: EpochMs) {
        for running in &mut self.queries {
            running.assign(partitions, states, &self.input_topic, now_ms);
        }
        for partition in partitions {
            self.waiting.insert(*partition, BatchBuilder::default());
        }
    }

    /// Gives partitions up; what is not yet saved of them is lost here and is read again by the next owner.
    pub fn revoke(&mut self, partitions: &[i32]) {
        for partition in partitions {
            self.queries.iter_mut().for_each(|q| q.operator.revoke(*partition));
            self.waiting.remove(partition);
            self.positions.remove(partition);
            self.unsaved.remove(partition);
        }
    }

    /// Takes a record in. One that cannot be decoded is counted, and logged the first time for its reason.
    pub fn record(&mut self, record: &Record) {
        let Some(builder) = self.waiting.get_mut(&record.partition) else { return };
        let before = self.positions.insert(record.partition, record.offset + 1);
        if before.is_none() {
            self.queries.iter().for_each(|q| q.check_gap(record));
        }
        self.unsaved.insert(record.partition);
        self.metrics.records_in.inc();
        self.metrics.bytes_in.inc_by(record.value.as_ref().map_or(0, |v| v.len() as u64));
        match decode::decode(record.value.as_deref()) {
            Ok(event) => builder.push(record.offset, &event),
            Err((reason, detail)) => {
                self.metrics.decode_errors.get_or_create(&ReasonLabels { reason: reason.as_str() }).inc();
                if self.reported.insert(reason) {
                    let (partition, offset) = (record.partition, record.offset);
                    tracing::warn!(partition, offset, reason = reason.as_str(), detail, "not a telemetry message");
                }
            }
        }
    }

    /// Decoded rows that wait for a flush.
    pub fn waiting_rows(&self) -> usize {
        self.waiting.values().map(BatchBuilder::len).sum()
    }

    /// Pushes waiting rows into the windows; the records of those that closed.
    pub async fn flush(&mut self, now_ms: EpochMs) -> Result<Vec<OutRecord>, Error> {
        let mut batches = Vec::new();
        for (partition, builder) in &mut self.waiting {
            if !builder.is_empty() {
                batches.push((*partition, builder.finish()?));
            }
        }
        let mut records = Vec::new();
        let mut any_closed = false;
        for running in &mut self.queries {
            for (partition, batch) in &batches {
                running.push(*partition, batch, now_ms, &self.metrics)?;
            }
            let closed = running.advance(now_ms).await?;
            any_closed |= !closed.is_empty();
            for window in &closed {
                records.extend(running.write(window, &self.metrics));
            }
        }
        if any_closed {
            // How far windows have closed is part of every partition's state.
            self.unsaved.extend(self.positions.keys());
        }
        Ok(records)
    }

    /// State records of the partitions that moved since the last call. Flush first.
    pub fn states(&mut self) -> Result<Vec<OutRecord>, Error> {
        let mut records = Vec::new();
        for partition in std::mem::take(&mut self.unsaved) {
            let Some(position) = self.positions.get(&partition).copied() else { continue };
            for running in &mut self.queries {
                let message = running.state(partition, &self.input_topic, position)?;
                let record = OutRecord::message(self.state_topic.clone(), &message)?;
                self.metrics.snapshot_bytes.inc_by(record.value.as_ref().map_or(0, |v| v.len() as u64));
                records.push(record);
            }
        }
        Ok(records)
    }

    /// Next offsets to read.
    pub fn offsets(&self) -> Vec<(TopicPartition, i64)> {
        let input = |(partition, offset): (&i32, &i64)| (TopicPartition::new(&self.input_topic, *partition), *offset);
        self.positions.iter().map(input).collect()
    }

    /// Partitions whose event time is more than `max_drift_ms` ahead of the slowest.
    pub fn drifting(&self, max_drift_ms: i64, now_ms: EpochMs) -> BTreeSet<i32> {
        let ahead = self.queries.iter().flat_map(|q| q.operator.ahead_of_watermark_ms(now_ms));
        ahead.filter(|(_, ahead_ms)| *ahead_ms > max_drift_ms).map(|(partition, _)| partition).collect()
    }

    /// Sets the gauges.
    pub fn report(&self, now_ms: EpochMs) {
        for running in &self.queries {
            let (labels, operator) = (running.labels(), &running.operator);
            self.metrics.open_panes.get_or_create(&labels).set(operator.open_panes() as i64);
            self.metrics.state_bytes.get_or_create(&labels).set(operator.state_bytes() as i64);
            if let Some(watermark_ms) = operator.watermark_ms(now_ms) {
                self.metrics.watermark_delay.get_or_create(&labels).set((now_ms - watermark_ms) as f64 / 1000.0);
            }
        }
    }
}

impl RunningQuery {
    fn labels(&self) -> QueryLabels {
        QueryLabels { query: self.query.name.clone() }
    }

    fn engine_error(&self, source: crate::window::QueryError) -> Error {
        Error::Engine { query: self.query.name.clone(), source }
    }

    fn assign(&mut self, partitions: &[i32], states: &StateRecords, topic: &str, now_ms: EpochMs) {
        let mut saved = state::of_query(states, &self.query.name, &self.query.sql, topic, &self.operator);
        let ends = closed_ends(&saved.iter().map(|(p, s)| (*p, s.snapshot.clone())).collect());
        for partition in partitions {
            self.from.remove(partition);
            match (saved.remove(partition), ends.get(partition)) {
                (Some(saved), Some(end_ms)) => {
                    self.from.insert(*partition, saved.offset);
                    self.operator.restore(*partition, saved.snapshot, *end_ms, now_ms);
                }
                _ => self.operator.assign(*partition, now_ms),
            }
        }
    }

    /// Says so when records between the state and the first one read are gone.
    fn check_gap(&self, first: &Record) {
        if let Some(from) = self.from.get(&first.partition).filter(|from| **from < first.offset) {
            let (query, partition, records) = (&self.query.name, first.partition, first.offset - from);
            tracing::warn!(query, partition, records, "input after the saved state is gone; its rows are not counted");
        }
    }

    fn push(&mut self, partition: i32, batch: &OffsetBatch, now_ms: EpochMs, metrics: &Metrics) -> Result<(), Error> {
        let from = self.from.get(&partition).copied().unwrap_or(i64::MIN);
        let Some(rows) = batch.from_offset(from) else { return Ok(()) };
        let pushed = self.operator.push(partition, &rows, now_ms).map_err(|e| self.engine_error(e))?;
        metrics.rows_in.get_or_create(&self.labels()).inc_by(pushed.accepted);
        self.count_dropped(&pushed, metrics);
        Ok(())
    }

    fn count_dropped(&mut self, pushed: &Pushed, metrics: &Metrics) {
        let reasons =
            [("late", pushed.late), ("ahead", pushed.ahead), ("untimed", pushed.untimed), ("failed", pushed.failed)];
        for (reason, rows) in reasons.into_iter().filter(|(_, rows)| *rows > 0) {
            let labels = DropLabels { query: self.query.name.clone(), reason };
            metrics.rows_dropped.get_or_create(&labels).inc_by(rows);
        }
        if let Some(failure) = &pushed.failure
            && self.reported.insert("row")
        {
            let query = &self.query.name;
            tracing::warn!(query, failure, "the query's expressions fail on some rows; they are dropped and counted");
        }
    }

    async fn advance(&mut self, now_ms: EpochMs) -> Result<Vec<ClosedWindow>, Error> {
        let closed = self.operator.advance(now_ms).await;
        closed.map_err(|e| self.engine_error(e))
    }

    /// Records of a closed window. A failure loses the window's rows: they would fail again at every attempt.
    fn write(&mut self, window: &ClosedWindow, metrics: &Metrics) -> Vec<OutRecord> {
        let labels = self.labels();
        metrics.windows_closed.get_or_create(&labels).inc();
        let written = match &window.rows {
            Ok(rows) => self.writer.write(window, rows).map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match written {
            Ok(output) => {
                metrics.rows_out.get_or_create(&labels).inc_by(output.records.len() as u64);
                metrics.rows_skipped.get_or_create(&labels).inc_by(output.skipped);
                metrics.rows_zeroed.get_or_create(&labels).inc_by(output.zeroed);
                output.records
            }
            Err(error) => {
                metrics.windows_failed.get_or_create(&labels).inc();
                if self.reported.insert("window") {
                    let (query, start_ms) = (&self.query.name, window.start_ms);
                    tracing::error!(query, start_ms, error, "the rows of a window are lost; later ones are counted");
                }
                Vec::new()
            }
        }
    }

    fn state(&mut self, partition: i32, topic: &str, position: i64) -> Result<schemas::state::AggregateState, Error> {
        let snapshot = self.operator.snapshot(partition).map_err(|e| self.engine_error(e))?;
        let bytes = self
            .operator
            .encode(&snapshot)
            .map_err(|source| Error::State { query: self.query.name.clone(), source })?;
        // A query that is ahead of the records read since a crash stands where its state stood.
        let offset = position.max(self.from.get(&partition).copied().unwrap_or(position));
        Ok(state::message(&self.query.name, &self.query.sql, partition, topic, offset, &bytes))
    }
}
