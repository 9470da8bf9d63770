//! Takes a physical plan apart around its aggregation.
//!
//! Invariants: before the aggregation there are only filters and projections, which are evaluated here directly on a
//! batch (running them as plan nodes would add a set of metrics to each node at every run, for ever). After it there
//! may be anything; that part runs once a closed window, on a fresh copy each time for the same reason.

use crate::sql::session::Slot;
use crate::sql::window_fn::Kind;
use crate::window::plan::QueryError;
use crate::window::table::{GroupSpec, GroupTable};
use arrow::array::{AsArray, RecordBatch, RecordBatchOptions};
use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::execution::TaskContext;
use datafusion::physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::aggregates::AggregateExec;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::streaming::StreamingTableExec;
use datafusion::physical_plan::{ExecutionPlan, collect};
use std::sync::Arc;

/// The three parts.
pub(super) struct Parts {
    pub(super) pre: PreSteps,
    pub(super) groups: GroupSpec,
    pub(super) post: PostPlan,
}

/// Splits `plan` at its innermost aggregation, whose window column is called `window_name`.
pub(super) fn take_apart(
    plan: &Arc<dyn ExecutionPlan>,
    window_name: &str,
    task: Arc<TaskContext>,
) -> Result<Parts, QueryError> {
    if count(plan, &|node| node.downcast_ref::<StreamingTableExec>().is_some()) != 1 {
        return Err(QueryError::SeveralWindows);
    }
    let node = innermost_aggregation(plan).ok_or(QueryError::NoWindow)?;
    let aggregate = node.downcast_ref::<AggregateExec>().ok_or(QueryError::NoWindow)?;
    if aggregate.group_expr().has_grouping_set() {
        return Err(QueryError::GroupingSets);
    }
    let groups = GroupSpec::of(aggregate, window_index(aggregate, window_name)?)?;
    // Accumulators check their literal arguments when they are made: now rather than at the first row.
    GroupTable::new(&groups)?;
    Ok(Parts { pre: PreSteps::compile(aggregate.input())?, groups, post: PostPlan::new(plan, &node, task)? })
}

fn count(plan: &Arc<dyn ExecutionPlan>, is: &impl Fn(&Arc<dyn ExecutionPlan>) -> bool) -> usize {
    usize::from(is(plan)) + plan.children().into_iter().map(|child| count(child, is)).sum::<usize>()
}

fn innermost_aggregation(plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn ExecutionPlan>> {
    let below = plan.children().into_iter().find_map(innermost_aggregation);
    below.or_else(|| plan.downcast_ref::<AggregateExec>().map(|_| Arc::clone(plan)))
}

/// By name, because the call itself may have been hoisted into a projection below; by call as a second chance.
fn window_index(aggregate: &AggregateExec, window_name: &str) -> Result<usize, QueryError> {
    let groups = aggregate.group_expr().expr();
    let calls = |e: &Arc<dyn PhysicalExpr>| {
        e.downcast_ref::<ScalarFunctionExpr>().is_some_and(|f| Kind::of(f.name()).is_some())
    };
    groups
        .iter()
        .position(|(_, name)| name == window_name)
        .or_else(|| groups.iter().position(|(e, _)| calls(e)))
        .ok_or_else(|| QueryError::Engine(format!("the window column `{window_name}` is gone from the physical plan")))
}

/// What is done to a batch of the stream before it is grouped.
#[derive(Debug)]
pub(super) struct PreSteps(Vec<Step>);

#[derive(Debug)]
enum Step {
    /// Keeps some columns.
    Columns(Vec<usize>),
    /// Keeps rows, then some columns.
    Filter { predicate: Arc<dyn PhysicalExpr>, columns: Option<Vec<usize>> },
    /// Computes columns.
    Project { expressions: Vec<Arc<dyn PhysicalExpr>>, schema: SchemaRef },
}

impl PreSteps {
    fn compile(plan: &Arc<dyn ExecutionPlan>) -> Result<Self, QueryError> {
        let mut steps = Vec::new();
        let mut node = Arc::clone(plan);
        loop {
            let refused = || QueryError::BelowWindow { node: node.name().to_owned() };
            let input = if let Some(filter) = node.downcast_ref::<FilterExec>() {
                steps.push(Step::Filter {
                    predicate: Arc::clone(filter.predicate()),
                    columns: filter.projection().as_ref().map(|p| p.to_vec()),
                });
                Arc::clone(filter.input())
            } else if let Some(projection) = node.downcast_ref::<ProjectionExec>() {
                let expressions = projection.expr().iter().map(|e| Arc::clone(&e.expr)).collect();
                steps.push(Step::Project { expressions, schema: projection.schema() });
                Arc::clone(projection.input())
            } else if let Some(scan) = node.downcast_ref::<StreamingTableExec>() {
                if scan.limit().is_some() {
                    return Err(QueryError::BelowWindow { node: "LIMIT".to_owned() });
                }
                steps.extend(scan.projection().as_ref().map(|p| Step::Columns(p.to_vec())));
                steps.reverse();
                return Ok(PreSteps(steps));
            } else if node.downcast_ref::<CooperativeExec>().is_some() {
                node.children().first().map(|child| Arc::clone(child)).ok_or_else(refused)?
            } else {
                return Err(refused());
            };
            if node.fetch().is_some() {
                return Err(QueryError::BelowWindow { node: "LIMIT".to_owned() });
            }
            node = input;
        }
    }

    /// The rows and columns that are grouped.
    pub(super) fn run(&self, batch: &RecordBatch) -> Result<RecordBatch, QueryError> {
        self.0.iter().try_fold(batch.clone(), |batch, step| step.run(&batch))
    }
}

impl Step {
    fn run(&self, batch: &RecordBatch) -> Result<RecordBatch, QueryError> {
        match self {
            Step::Columns(columns) => Ok(batch.project(columns)?),
            Step::Filter { predicate, columns } => {
                let keep = predicate.evaluate(batch)?.into_array(batch.num_rows())?;
                let kept = filter_record_batch(batch, keep.as_boolean())?;
                match columns {
                    Some(columns) => Ok(kept.project(columns)?),
                    None => Ok(kept),
                }
            }
            Step::Project { expressions, schema } => {
                let rows = batch.num_rows();
                let arrays =
                    expressions.iter().map(|e| e.evaluate(batch)?.into_array(rows)).collect::<Result<Vec<_>, _>>()?;
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                Ok(RecordBatch::try_new_with_options(Arc::clone(schema), arrays, &options)?)
            }
        }
    }
}

/// What is done to the rows of a closed window.
#[derive(Debug)]
pub(super) struct PostPlan {
    plan: Arc<dyn ExecutionPlan>,
    slot: Slot,
    task: Arc<TaskContext>,
}

impl PostPlan {
    /// `plan` with the aggregation `node` replaced by a leaf.
    fn new(
        plan: &Arc<dyn ExecutionPlan>,
        node: &Arc<dyn ExecutionPlan>,
        task: Arc<TaskContext>,
    ) -> Result<Self, QueryError> {
        let slot = Slot::new(node.schema());
        let leaf: Arc<dyn ExecutionPlan> = Arc::new(StreamingTableExec::try_new(
            node.schema(),
            vec![Arc::new(slot.clone())],
            None,
            vec![],
            false,
            None,
        )?);
        let replaced = Arc::clone(plan).transform_down(|at| {
            if Arc::ptr_eq(&at, node) {
                Ok(Transformed::new(Arc::clone(&leaf), true, TreeNodeRecursion::Jump))
            } else {
                Ok(Transformed::no(at))
            }
        })?;
        Ok(PostPlan { plan: replaced.data, slot, task })
    }

    pub(super) fn schema(&self) -> SchemaRef {
        self.plan.schema()
    }

    /// Runs on the rows of one window.
    pub(super) async fn run(&self, rows: RecordBatch) -> Result<RecordBatch, QueryError> {
        if self.plan.downcast_ref::<StreamingTableExec>().is_some() {
            return Ok(rows);
        }
        let fresh = reset_plan_states(Arc::clone(&self.plan))?;
        self.slot.put(rows);
        let batches = collect(fresh, Arc::clone(&self.task)).await?;
        Ok(concat_batches(&self.schema(), &batches)?)
    }
}
