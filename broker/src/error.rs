//! What can go wrong when a broker is started or its data folder is used.
//!
//! Errors that belong to one request never appear here: clients get the protocol's own codes.

use std::io;
use std::path::{Path, PathBuf};

/// Why a broker could not start, or could not use its data folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of range.
    #[error("broker configuration: {0}")]
    Config(String),
    /// The address to listen on could not be bound.
    #[error("cannot listen on {addr}: {source} (is another program using the port?)")]
    Listen {
        /// The address asked for.
        addr: std::net::SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Another broker uses the data folder.
    #[error("data folder {} is in use by another broker; stop it or choose another folder", .0.display())]
    Locked(PathBuf),
    /// A file or folder could not be read or written.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done, for instance `cannot create`.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The metadata journal is damaged before its end, so that what follows cannot be trusted.
    #[error("metadata journal {} is damaged at byte {at}: {what}; restore it or start with an empty data folder", path.display())]
    Journal {
        /// The journal file.
        path: PathBuf,
        /// Position of the record that cannot be used.
        at: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The broker's own threads could not be started.
    #[error("cannot start the broker's runtime: {0}")]
    Runtime(io::Error),
}

impl Error {
    /// Wraps an I/O error with what was being done to which path.
    pub(crate) fn io(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { doing, path, source }
    }
}
