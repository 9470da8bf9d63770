//! Why an executor cannot go on.

use runtime::PortError;
use runtime::ports::Kind;

/// An error that a restart or an operator must fix.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration cannot work; one sentence a problem, each names its key.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// A topic could not be read or written.
    #[error("{what}: {source}")]
    Port {
        /// What was being done.
        what: String,
        /// What the port says.
        source: PortError,
    },
    /// What was written last is not known to be there: the group member begins again from what was committed.
    #[error("{0}")]
    Reopen(String),
    /// A part of the executor ended that should not have.
    #[error("{0}")]
    Bug(String),
}

impl Error {
    /// What a caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Config(_) => Kind::Config,
            Error::Port { source, .. } => source.kind(),
            Error::Reopen(_) => Kind::Transient,
            Error::Bug(_) => Kind::Bug,
        }
    }

    pub(crate) fn port(what: impl Into<String>, source: PortError) -> Self {
        Error::Port { what: what.into(), source }
    }
}
