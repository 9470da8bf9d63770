//! Providers: what starts and stops nodes.
//!
//! Invariants: `start` and `stop` are idempotent by node id, since a reply may be lost; a provider never decides; an
//! error of one order leaves the others alone. Left out: when to act (`service`).

mod local;
mod none;

pub use local::{LocalProvider, LocalSpec};
pub use none::NoProvider;

use crate::config::{KUBERNETES, ProviderConfig, ProviderKind};
use async_trait::async_trait;
use std::sync::Arc;

/// An order for one node.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeOrder {
    /// Node id.
    pub node: String,
    /// Flavor.
    pub flavor: String,
    /// Cores.
    pub cores: u32,
    /// Memory, GiB; 0 is not given.
    pub memory_gib: f64,
    /// GPUs.
    pub gpus: u32,
    /// Boot time that a provider without real machines simulates.
    pub boot_ms: u64,
}

/// A node that a provider knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProviderNode {
    /// Node id.
    pub node: String,
    /// Flavor.
    pub flavor: String,
    /// False once it has ended without being stopped.
    pub alive: bool,
}

/// A provider could not do what it was told.
#[derive(Debug, thiserror::Error)]
#[error("node {node}: {what}: {source}")]
pub struct ProviderError {
    /// Node id.
    pub node: String,
    /// What was tried.
    pub what: String,
    /// Why it failed.
    pub source: std::io::Error,
}

/// Starts and stops nodes.
#[async_trait]
pub trait Provider: Send + Sync {
    /// False when it cannot start or stop anything.
    fn elastic(&self) -> bool {
        true
    }

    /// Begins to start a node; returns before it is ready. A node that runs already is left alone.
    async fn start(&self, order: NodeOrder) -> Result<(), ProviderError>;

    /// Begins to stop a node, which is given a grace time. A node that it does not know is no error.
    async fn stop(&self, node: &str) -> Result<(), ProviderError>;

    /// Nodes that were started and not stopped.
    async fn list(&self) -> Vec<ProviderNode>;

    /// Ends what lives only as long as this process, and waits for it.
    async fn shutdown(&self);
}

/// The configured provider.
pub fn build(config: &ProviderConfig, local: LocalSpec) -> Result<Arc<dyn Provider>, crate::Error> {
    match config.kind {
        ProviderKind::Local => Ok(Arc::new(LocalProvider::new(local))),
        ProviderKind::None => Ok(Arc::new(NoProvider)),
        ProviderKind::Kubernetes => Err(crate::Error::Config(KUBERNETES.to_owned())),
    }
}
