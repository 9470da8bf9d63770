//! What the logical plan of a query says about its windows, before the optimiser moves things.
//!
//! The optimiser may hoist `tumble(...)` out of the aggregation, drop columns and rename; so the window, its time
//! column and the columns that make up a row's key are found here.

use crate::sql::window_fn::{Kind, WindowShape};
use crate::window::plan::QueryError;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::{Aggregate, Distinct, Expr, LogicalPlan, Volatility};

/// Functions that the planner would replace by the time of planning.
const CLOCK_FUNCTIONS: [&str; 5] = ["now", "current_timestamp", "current_date", "current_time", "today"];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Analysis {
    pub(super) shape: WindowShape,
    /// Name of the window's column in the output of the aggregation.
    pub(super) window_name: String,
    /// Column of the stream that the window is over.
    pub(super) time_column: String,
    /// For each group column other than the window, in the query's order: its column in the query's output.
    pub(super) group_columns: Vec<usize>,
}

/// Finds the one windowed aggregation of `plan`, which reads table `table`.
pub(super) fn analyse(plan: &LogicalPlan, table: &str) -> Result<Analysis, QueryError> {
    refuse_clocks(plan)?;
    let aggregates = aggregates_of(plan)?;
    let mut windowed = aggregates.iter().filter_map(|a| window_call(a).map(|call| (a, call)));
    let (aggregate, call) = windowed.next().ok_or(QueryError::NoWindow)?;
    if windowed.next().is_some() {
        return Err(QueryError::SeveralWindows);
    }
    let Expr::ScalarFunction(function) = strip(&aggregate.group_expr[call.index]) else {
        return Err(QueryError::NoWindow);
    };
    let (time, intervals) = function.args.split_first().ok_or(QueryError::NoWindow)?;
    Ok(Analysis {
        shape: shape(call.kind, intervals)?,
        window_name: aggregate.schema.field(call.index).name().clone(),
        time_column: time_column(&aggregate.input, time, table)
            .ok_or_else(|| QueryError::TimeColumn { function: call.kind.name(), argument: time.to_string() })?,
        group_columns: group_columns(plan)?,
    })
}

/// A call of a window function among the group expressions of an aggregation.
#[derive(Debug, Clone, Copy)]
struct WindowCall {
    index: usize,
    kind: Kind,
}

fn window_call(aggregate: &Aggregate) -> Option<WindowCall> {
    aggregate.group_expr.iter().enumerate().find_map(|(index, e)| match strip(e) {
        Expr::ScalarFunction(f) => Kind::of(f.func.name()).map(|kind| WindowCall { index, kind }),
        _ => None,
    })
}

fn strip(expression: &Expr) -> &Expr {
    match expression {
        Expr::Alias(alias) => strip(&alias.expr),
        other => other,
    }
}

fn shape(kind: Kind, intervals: &[Expr]) -> Result<WindowShape, QueryError> {
    let bad = |detail: String| QueryError::Interval { function: kind.name(), detail };
    let literals = intervals
        .iter()
        .map(|e| match strip(e) {
            Expr::Literal(value, _) => Ok(value.clone()),
            other => Err(bad(format!("`{other}` is not a literal interval such as interval '60 seconds'"))),
        })
        .collect::<Result<Vec<ScalarValue>, QueryError>>()?;
    WindowShape::from_intervals(kind, &literals).map_err(bad)
}

/// Every aggregation of the plan, outermost first; refuses grouping sets.
fn aggregates_of(plan: &LogicalPlan) -> Result<Vec<&Aggregate>, QueryError> {
    let mut found = Vec::new();
    collect_aggregates(plan, &mut found);
    let sets = |a: &&Aggregate| a.group_expr.iter().any(|e| matches!(strip(e), Expr::GroupingSet(_)));
    if found.iter().any(sets) { Err(QueryError::GroupingSets) } else { Ok(found) }
}

fn collect_aggregates<'a>(plan: &'a LogicalPlan, found: &mut Vec<&'a Aggregate>) {
    if let LogicalPlan::Aggregate(aggregate) = plan {
        found.push(aggregate);
    }
    for input in plan.inputs() {
        collect_aggregates(input, found);
    }
}

/// A standing query is planned once: a clock or a random number in it would be frozen or not repeatable.
fn refuse_clocks(plan: &LogicalPlan) -> Result<(), QueryError> {
    let mut refused = None;
    let outcome = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expression| {
            expression.apply(|e| {
                if let Expr::ScalarFunction(f) = e
                    && (f.func.signature().volatility == Volatility::Volatile
                        || CLOCK_FUNCTIONS.contains(&f.func.name()))
                {
                    refused = Some(f.func.name().to_owned());
                    return Ok(TreeNodeRecursion::Stop);
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    outcome?;
    refused.map_or(Ok(()), |function| Err(QueryError::NotReproducible { function }))
}

/// The stream's column behind the first argument of a window function.
fn time_column(input: &LogicalPlan, argument: &Expr, table: &str) -> Option<String> {
    let Expr::Column(column) = strip(argument) else { return None };
    match origin(input, column)? {
        Origin::Scan(name, column) if name == table => Some(column),
        _ => None,
    }
}

/// Where a column comes from when it is only passed on.
#[derive(Debug, PartialEq, Eq)]
enum Origin {
    /// Column of a table: table, column.
    Scan(String, String),
    /// Group expression of the outermost aggregation, by index.
    Group(usize),
}

fn origin(plan: &LogicalPlan, column: &Column) -> Option<Origin> {
    match plan {
        LogicalPlan::TableScan(scan) => {
            let index = scan.projected_schema.maybe_index_of_column(column)?;
            let name = scan.projected_schema.field(index).name().clone();
            Some(Origin::Scan(scan.table_name.table().to_owned(), name))
        }
        LogicalPlan::Aggregate(aggregate) => {
            let index = aggregate.schema.maybe_index_of_column(column)?;
            (index < aggregate.group_expr.len()).then_some(Origin::Group(index))
        }
        LogicalPlan::Projection(projection) => {
            let index = projection.schema.maybe_index_of_column(column)?;
            match strip(&projection.expr[index]) {
                Expr::Column(inner) => origin(&projection.input, inner),
                _ => None,
            }
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let index = alias.schema.maybe_index_of_column(column)?;
            origin(&alias.input, &Column::from(alias.input.schema().qualified_field(index)))
        }
        LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => plan
            .inputs()
            .into_iter()
            .find(|input| input.schema().maybe_index_of_column(column).is_some())
            .and_then(|input| origin(input, column)),
        _ => None,
    }
}

/// Output columns that hold the group expressions of the outermost aggregation, the window's left out.
fn group_columns(plan: &LogicalPlan) -> Result<Vec<usize>, QueryError> {
    let aggregates = aggregates_of(plan)?;
    let outermost = aggregates.first().ok_or(QueryError::NoWindow)?;
    let outputs: Vec<Option<Origin>> = (0..plan.schema().fields().len())
        .map(|i| origin(plan, &Column::from(plan.schema().qualified_field(i))))
        .collect();
    (0..outermost.group_expr.len())
        .filter(|index| !is_window(outermost, *index))
        .map(|index| {
            let wanted = Some(Origin::Group(index));
            outputs
                .iter()
                .position(|o| *o == wanted)
                .ok_or_else(|| QueryError::KeyNotSelected { column: outermost.schema.field(index).name().clone() })
        })
        .collect()
}

/// Whether a group expression is the window, directly or as a column of an inner aggregation.
fn is_window(aggregate: &Aggregate, index: usize) -> bool {
    match strip(&aggregate.group_expr[index]) {
        Expr::ScalarFunction(f) => Kind::of(f.func.name()).is_some(),
        Expr::Column(column) => match (origin(&aggregate.input, column), inner(&aggregate.input)) {
            (Some(Origin::Group(index)), Some(inner)) => is_window(inner, index),
            _ => false,
        },
        _ => false,
    }
}

fn inner(plan: &LogicalPlan) -> Option<&Aggregate> {
    let mut found = Vec::new();
    collect_aggregates(plan, &mut found);
    found.first().copied()
}
