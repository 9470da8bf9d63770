//! Errors of the role: what a restart or an operator must fix.

use crate::output::{BadFeatures, OutputError};
use crate::window::{QueryError, SnapshotError};
use runtime::PortError;
use runtime::ports::Kind;
use schemas::message::EncodeError;

/// The role cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// A query's SQL is refused.
    #[error("aggregate.query `{query}`: {source}")]
    Query {
        /// Name of the query.
        query: String,
        /// Why.
        source: QueryError,
    },
    /// A query's features do not fit its result.
    #[error("aggregate.query `{query}`: {source}")]
    Features {
        /// Name of the query.
        query: String,
        /// Why.
        source: BadFeatures,
    },
    /// The engine failed in a way that leaves its state in doubt; a restart goes on from the last one written.
    #[error("query `{query}` failed: {source}")]
    Engine {
        /// Name of the query.
        query: String,
        /// What it said.
        source: QueryError,
    },
    /// State cannot be written.
    #[error("state of query `{query}`: {source}")]
    State {
        /// Name of the query.
        query: String,
        /// Why.
        source: SnapshotError,
    },
    /// A row cannot be written.
    #[error("output: {0}")]
    Output(#[from] OutputError),
    /// Records could not be put together to a batch.
    #[error("batch: {0}")]
    Batch(#[from] arrow::error::ArrowError),
    /// A message cannot be written as JSON.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The broker.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl Error {
    /// What a caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Config(_) | Error::Query { .. } | Error::Features { .. } => Kind::Config,
            Error::Port(error) => error.kind(),
            Error::Engine { .. } => Kind::Transient,
            Error::State { .. } | Error::Output(_) | Error::Batch(_) | Error::Encode(_) => Kind::Bug,
        }
    }
}
