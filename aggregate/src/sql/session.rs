//! The DataFusion session that plans queries, and the stream as a table.
//!
//! Invariants: one target partition (a plan is a chain, not a fan), no rule that turns one aggregation into two, no
//! filter that an aggregation feeds back to its input: the operator puts itself in the place of the one aggregation.

use crate::sql::window_fn::Kind;
use crate::sql::{local_time, quantile, trigonometry, window_fn};
use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::Result;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::optimizer::Optimizer;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{SessionConfig, SessionContext};
use jiff::tz::TimeZone;
use std::sync::{Arc, Mutex, PoisonError};

/// Splits `count(DISTINCT x)` into two aggregations, of which a pane could hold only one.
const SPLITS_AGGREGATIONS: &str = "single_distinct_aggregation_to_group_by";

/// The one table that queries read.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Table name in SQL.
    pub table: &'static str,
    /// Columns.
    pub schema: SchemaRef,
    /// Column with our receive time, Timestamp(ms): the bound for device clocks that run ahead. `None`: no bound.
    pub received_at: Option<&'static str>,
}

/// A session in which `stream` is a table and the window functions are known; local time is that of `zone`.
pub fn session(stream: &Stream, zone: &TimeZone) -> Result<SessionContext> {
    let mut optimizer = Optimizer::new();
    optimizer.rules.retain(|rule| rule.name() != SPLITS_AGGREGATIONS);
    let state = SessionStateBuilder::new_with_default_features()
        .with_config(config())
        .with_optimizer_rules(optimizer.rules)
        .build();
    let context = SessionContext::new_with_state(state);
    context.register_udf(window_fn::udf(Kind::Tumble));
    context.register_udf(window_fn::udf(Kind::Hop));
    context.register_udaf(quantile::udaf());
    trigonometry::udfs().into_iter().for_each(|udf| context.register_udf(udf));
    local_time::udfs(zone).into_iter().for_each(|udf| context.register_udf(udf));
    let leaf = Slot::new(stream.schema.clone());
    let table = StreamingTable::try_new(stream.schema.clone(), vec![Arc::new(leaf)])?;
    context.register_table(stream.table, Arc::new(table))?;
    Ok(context)
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::new().with_target_partitions(1).with_batch_size(65_536);
    config.options_mut().optimizer.enable_dynamic_filter_pushdown = false;
    config
}

/// A leaf whose rows are put in from outside before each run of its plan.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    schema: SchemaRef,
    rows: Arc<Mutex<Vec<RecordBatch>>>,
}

impl Slot {
    pub(crate) fn new(schema: SchemaRef) -> Self {
        Slot { schema, rows: Arc::default() }
    }

    /// What the next run reads.
    pub(crate) fn put(&self, batch: RecordBatch) {
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = vec![batch];
    }
}

impl PartitionStream for Slot {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _: Arc<TaskContext>) -> SendableRecordBatchStream {
        let rows = std::mem::take(&mut *self.rows.lock().unwrap_or_else(PoisonError::into_inner));
        let stream = futures::stream::iter(rows.into_iter().map(Ok));
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), stream))
    }
}
