//! What can end or hinder the planner.

use runtime::PortError;
use runtime::ports::Kind;
use std::path::PathBuf;

/// An error of the planner service.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker.
    #[error("planner: {0}")]
    Port(#[from] PortError),
    /// A message that could not be written.
    #[error("planner: {0}")]
    Encode(#[from] schemas::message::EncodeError),
    /// The configuration cannot work.
    #[error("{0}")]
    Config(String),
    /// A profile cannot be used.
    #[error("service `{service}`: profile {}: {why}; write it anew with `barista profile`", path.display())]
    Profile {
        /// Service.
        service: String,
        /// File.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl Error {
    /// What a caller can do.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Port(e) => e.kind(),
            Error::Encode(_) => Kind::Bug,
            Error::Config(_) | Error::Profile { .. } => Kind::Config,
        }
    }
}
