//! Groups and their accumulators: DataFusion's own, outside a plan.

use crate::window::plan::QueryError;
use arrow::array::{ArrayRef, AsArray, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{FieldRef, Schema, SchemaRef};
use datafusion::common::Result as EngineResult;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::aggregates::group_values::{GroupValues, new_group_values};
use datafusion::physical_plan::aggregates::order::GroupOrdering;
use datafusion::physical_plan::aggregates::{AggregateExec, AggregateMode, aggregate_expressions};
use std::sync::Arc;

/// How to group and what to accumulate.
#[derive(Debug)]
pub(super) struct GroupSpec {
    window: Arc<dyn PhysicalExpr>,
    /// Position of the window among the group columns of the output.
    window_index: usize,
    /// Group expressions without the window; the window itself when there is no other.
    keys: Vec<Arc<dyn PhysicalExpr>>,
    key_schema: SchemaRef,
    only_window: bool,
    aggregates: Vec<Arc<AggregateFunctionExpr>>,
    arguments: Vec<Vec<Arc<dyn PhysicalExpr>>>,
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    /// Number of state columns of each aggregate.
    state_widths: Vec<usize>,
    /// Keys, then the states of all aggregates.
    pub(super) state_schema: SchemaRef,
    /// As the aggregation in the plan has it.
    output_schema: SchemaRef,
}

impl GroupSpec {
    /// From the aggregation of a plan; `window_index` says which of its group expressions is the window.
    pub(super) fn of(aggregate: &AggregateExec, window_index: usize) -> Result<Self, QueryError> {
        let output_schema = aggregate.schema();
        let groups = aggregate.group_expr().expr();
        let only_window = groups.len() == 1;
        let (mut keys, mut key_fields): (Vec<_>, Vec<FieldRef>) = groups
            .iter()
            .zip(output_schema.fields())
            .enumerate()
            .filter(|(index, _)| *index != window_index || only_window)
            .map(|(_, ((expression, _), field))| (Arc::clone(expression), Arc::clone(field)))
            .unzip();
        keys.shrink_to_fit();
        let aggregates = aggregate.aggr_expr().to_vec();
        let states = aggregates.iter().map(|a| a.state_fields()).collect::<EngineResult<Vec<_>>>()?;
        let key_schema = Arc::new(Schema::new(key_fields.clone()));
        key_fields.extend(states.iter().flatten().cloned());
        Ok(GroupSpec {
            window: Arc::clone(&groups[window_index].0),
            window_index,
            keys,
            key_schema,
            only_window,
            arguments: aggregate_expressions(&aggregates, &AggregateMode::Single, 0)?,
            filters: aggregate.filter_expr().to_vec(),
            state_widths: states.iter().map(Vec::len).collect(),
            state_schema: Arc::new(Schema::new(key_fields)),
            output_schema,
            aggregates,
        })
    }

    /// Evaluates everything that grouping needs. Fails on rows that the query's expressions cannot take, and then
    /// no state has changed.
    pub(super) fn evaluate(&self, batch: &RecordBatch) -> Result<Evaluated, QueryError> {
        let rows = batch.num_rows();
        let array = |e: &Arc<dyn PhysicalExpr>| e.evaluate(batch)?.into_array(rows);
        Ok(Evaluated {
            window: array(&self.window)?,
            keys: self.keys.iter().map(array).collect::<EngineResult<_>>()?,
            arguments: self
                .arguments
                .iter()
                .map(|list| list.iter().map(array).collect::<EngineResult<_>>())
                .collect::<EngineResult<_>>()?,
            filters: self.filters.iter().map(|f| f.as_ref().map(array).transpose()).collect::<EngineResult<_>>()?,
        })
    }
}

/// Arrays of one batch, all of the same length.
#[derive(Debug)]
pub(super) struct Evaluated {
    /// Pane start.
    pub(super) window: ArrayRef,
    keys: Vec<ArrayRef>,
    arguments: Vec<Vec<ArrayRef>>,
    filters: Vec<Option<ArrayRef>>,
}

impl Evaluated {
    /// The same with every array mapped, such as reordered or cut.
    pub(super) fn map<E>(&self, f: impl Fn(&ArrayRef) -> Result<ArrayRef, E>) -> Result<Evaluated, E> {
        Ok(Evaluated {
            window: f(&self.window)?,
            keys: self.keys.iter().map(&f).collect::<Result<_, E>>()?,
            arguments: self
                .arguments
                .iter()
                .map(|list| list.iter().map(&f).collect::<Result<_, E>>())
                .collect::<Result<_, E>>()?,
            filters: self.filters.iter().map(|a| a.as_ref().map(&f).transpose()).collect::<Result<_, E>>()?,
        })
    }

    /// `length` rows from `offset` on, without copying.
    pub(super) fn slice(&self, offset: usize, length: usize) -> Evaluated {
        let cut = |a: &ArrayRef| a.slice(offset, length);
        Evaluated {
            window: cut(&self.window),
            keys: self.keys.iter().map(cut).collect(),
            arguments: self.arguments.iter().map(|list| list.iter().map(cut).collect()).collect(),
            filters: self.filters.iter().map(|a| a.as_ref().map(cut)).collect(),
        }
    }
}

/// Groups with their accumulators. Rows are accumulated in the order in which they come, so that sums of floating
/// point numbers do not depend on how the input was cut into batches.
pub(super) struct GroupTable {
    values: Box<dyn GroupValues>,
    accumulators: Vec<Box<dyn GroupsAccumulator>>,
    /// Group of each row of the batch at hand; kept to spare the allocation.
    indices: Vec<usize>,
}

impl std::fmt::Debug for GroupTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GroupTable").field("groups", &self.values.len()).finish_non_exhaustive()
    }
}

impl GroupTable {
    pub(super) fn new(spec: &GroupSpec) -> Result<Self, QueryError> {
        Ok(GroupTable {
            values: new_group_values(Arc::clone(&spec.key_schema), &GroupOrdering::None)?,
            accumulators: spec.aggregates.iter().map(accumulator).collect::<EngineResult<_>>()?,
            indices: Vec::new(),
        })
    }

    /// A table with the content of a state batch.
    pub(super) fn from_state(spec: &GroupSpec, state: &RecordBatch) -> Result<Self, QueryError> {
        let mut table = GroupTable::new(spec)?;
        table.merge(spec, state)?;
        Ok(table)
    }

    /// Adds raw rows.
    pub(super) fn update(&mut self, rows: &Evaluated) -> Result<(), QueryError> {
        self.values.intern(&rows.keys, &mut self.indices)?;
        let groups = self.values.len();
        for ((accumulator, arguments), filter) in self.accumulators.iter_mut().zip(&rows.arguments).zip(&rows.filters) {
            let filter = filter.as_ref().map(|f| f.as_boolean());
            accumulator.update_batch(arguments, &self.indices, filter, groups)?;
        }
        Ok(())
    }

    /// Adds a state batch.
    pub(super) fn merge(&mut self, spec: &GroupSpec, state: &RecordBatch) -> Result<(), QueryError> {
        let (keys, states) = state.columns().split_at(spec.keys.len());
        self.values.intern(keys, &mut self.indices)?;
        let groups = self.values.len();
        let mut rest = states;
        for (accumulator, width) in self.accumulators.iter_mut().zip(&spec.state_widths) {
            let (own, others) = rest.split_at(*width);
            accumulator.merge_batch(own, &self.indices, groups)?;
            rest = others;
        }
        Ok(())
    }

    /// The content as a state batch.
    pub(super) fn into_state(mut self, spec: &GroupSpec) -> Result<RecordBatch, QueryError> {
        let mut columns = self.values.emit(EmitTo::All)?;
        for accumulator in &mut self.accumulators {
            columns.extend(accumulator.state(EmitTo::All)?);
        }
        Ok(RecordBatch::try_new(Arc::clone(&spec.state_schema), columns)?)
    }

    /// The aggregation's output for the window that starts at `start_ms`.
    pub(super) fn into_output(mut self, spec: &GroupSpec, start_ms: i64) -> Result<RecordBatch, QueryError> {
        let mut columns = self.values.emit(EmitTo::All)?;
        let rows = columns.first().map_or(0, |c| c.len());
        if spec.only_window {
            columns.clear();
        }
        columns.insert(spec.window_index, window_column(spec, start_ms, rows)?);
        for accumulator in &mut self.accumulators {
            columns.push(accumulator.evaluate(EmitTo::All)?);
        }
        Ok(RecordBatch::try_new(Arc::clone(&spec.output_schema), columns)?)
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.values.size() + self.accumulators.iter().map(|a| a.size()).sum::<usize>()
    }
}

fn window_column(spec: &GroupSpec, start_ms: i64, rows: usize) -> Result<ArrayRef, QueryError> {
    let starts: ArrayRef = Arc::new(TimestampMillisecondArray::from_value(start_ms, rows));
    Ok(arrow::compute::cast(&starts, spec.output_schema.field(spec.window_index).data_type())?)
}

fn accumulator(aggregate: &Arc<AggregateFunctionExpr>) -> EngineResult<Box<dyn GroupsAccumulator>> {
    if aggregate.groups_accumulator_supported() {
        return aggregate.create_groups_accumulator();
    }
    let aggregate = Arc::clone(aggregate);
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || aggregate.create_accumulator())))
}
