//! No provider: someone else starts and stops executors, the planner places instances on those that report.

use super::{NodeOrder, Provider, ProviderError, ProviderNode};
use async_trait::async_trait;

/// Starts and stops nothing, and says so ([`Provider::elastic`]).
#[derive(Debug, Clone, Copy, Default)]
pub struct NoProvider;

#[async_trait]
impl Provider for NoProvider {
    fn elastic(&self) -> bool {
        false
    }

    async fn start(&self, order: NodeOrder) -> Result<(), ProviderError> {
        let source = std::io::Error::from(std::io::ErrorKind::Unsupported);
        Err(ProviderError { node: order.node, what: "start without a provider".to_owned(), source })
    }

    async fn stop(&self, _node: &str) -> Result<(), ProviderError> {
        Ok(())
    }

    async fn list(&self) -> Vec<ProviderNode> {
        Vec::new()
    }

    async fn shutdown(&self) {}
}
