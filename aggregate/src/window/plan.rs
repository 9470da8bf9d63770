//! From SQL text to a plan that the operator can run.

use crate::sql::window_fn::WindowShape;
use crate::sql::{Stream, shorthand};
use crate::window::logical::{self, Analysis};
use crate::window::physical::{self, PostPlan, PreSteps};
use crate::window::table::GroupSpec;
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::prelude::SessionContext;
use datafusion::sql::parser::Statement;
use std::sync::Arc;

/// A query cannot be run as a standing query, or failed on its input.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No `tumble` or `hop` among the group expressions.
    #[error(
        "no window: GROUP BY needs tumble(event_time, interval '…') or hop(event_time, interval '…', interval '…')"
    )]
    NoWindow,
    /// More than one windowed aggregation, or the stream is read twice.
    #[error("one windowed aggregation over one scan of the stream a query; split this into several queries")]
    SeveralWindows,
    /// GROUPING SETS, ROLLUP or CUBE.
    #[error("GROUPING SETS, ROLLUP and CUBE are not supported; write one query for each set of columns")]
    GroupingSets,
    /// The interval of a window is unusable.
    #[error("{function}: {detail}")]
    Interval {
        /// `tumble` or `hop`.
        function: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// The window is over an expression.
    #[error("{function}: the first argument must be a time column of the stream as it is, not `{argument}`")]
    TimeColumn {
        /// `tumble` or `hop`.
        function: &'static str,
        /// The argument.
        argument: String,
    },
    /// Something that needs more than the row at hand stands between the stream and its window.
    #[error("{node} below the window is not supported; only filters and expressions may stand before GROUP BY")]
    BelowWindow {
        /// Name of the plan node.
        node: String,
    },
    /// A clock or a random number.
    #[error("{function}() is not repeatable in a standing query; use event_time or received_at")]
    NotReproducible {
        /// Name of the function.
        function: String,
    },
    /// Rows could not be told apart by their key.
    #[error("group column `{column}` must be in the SELECT list: it is part of the row's key")]
    KeyNotSelected {
        /// Name of the column.
        column: String,
    },
    /// DataFusion refuses the query, or it failed on its input.
    #[error("{0}")]
    Engine(String),
}

impl From<DataFusionError> for QueryError {
    fn from(error: DataFusionError) -> Self {
        QueryError::Engine(error.strip_backtrace())
    }
}

impl From<arrow::error::ArrowError> for QueryError {
    fn from(error: arrow::error::ArrowError) -> Self {
        QueryError::Engine(error.to_string())
    }
}

/// A planned query: pure data, shared by nothing.
#[derive(Debug)]
pub struct WindowPlan {
    pub(super) shape: WindowShape,
    /// Index of the window's time column in the stream.
    pub(super) time_column: usize,
    /// Index of the receive time in the stream.
    pub(super) received_column: Option<usize>,
    pub(super) pre: PreSteps,
    pub(super) groups: Arc<GroupSpec>,
    pub(super) post: PostPlan,
    group_columns: Vec<usize>,
}

impl WindowPlan {
    /// Plans `sql`, which reads `stream` and was written for a session of [`crate::sql::session()`].
    pub async fn compile(context: &SessionContext, sql: &str, stream: &Stream) -> Result<Self, QueryError> {
        let state = context.state();
        let mut statement = state.sql_to_statement(sql, &state.config_options().sql_parser.dialect)?;
        if let Statement::Statement(inner) = &mut statement {
            shorthand::expand(inner);
        }
        let logical_plan = state.statement_to_plan(statement).await?;
        let analysis = logical::analyse(&logical_plan, stream.table)?;
        let physical_plan = state.create_physical_plan(&logical_plan).await?;
        let parts = physical::take_apart(&physical_plan, &analysis.window_name, context.task_ctx())?;
        Ok(WindowPlan {
            shape: analysis.shape,
            time_column: stream.schema.index_of(&analysis.time_column)?,
            received_column: stream.received_at.map(|name| stream.schema.index_of(name)).transpose()?,
            pre: parts.pre,
            groups: Arc::new(parts.groups),
            post: parts.post,
            group_columns: checked(&analysis, &physical_plan.schema())?,
        })
    }

    /// Columns of an emitted row.
    pub fn output_schema(&self) -> SchemaRef {
        self.post.schema()
    }

    /// Which of them make up the row's key, in the query's order. Empty when the query groups by the window alone.
    pub fn group_columns(&self) -> &[usize] {
        &self.group_columns
    }

    /// Length of a window, milliseconds.
    pub fn width_ms(&self) -> i64 {
        self.shape.width_ms
    }
}

/// The optimiser keeps the output's columns; this holds it to that.
fn checked(analysis: &Analysis, output: &SchemaRef) -> Result<Vec<usize>, QueryError> {
    match analysis.group_columns.iter().find(|i| **i >= output.fields().len()) {
        None => Ok(analysis.group_columns.clone()),
        Some(index) => Err(QueryError::Engine(format!("output column {index} is gone from the physical plan"))),
    }
}
