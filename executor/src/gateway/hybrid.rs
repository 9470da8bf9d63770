//! Direct where the node in the same process serves the model, over Kafka where it does not.

use super::direct::Direct;
use super::failure::Failure;
use super::kafka::OverKafka;
use super::message::{Answer, Call};
use super::path::{LoadWish, Path, Served};
use async_trait::async_trait;
use schemas::status::{InstanceState, InstanceStatus};
use std::sync::Arc;

/// Both paths.
pub(crate) struct Hybrid {
    pub(crate) direct: Direct,
    pub(crate) kafka: Arc<OverKafka>,
}

#[async_trait]
impl Path for Hybrid {
    fn name(&self) -> &'static str {
        "direct, or over kafka for models that are not here"
    }

    fn not_ready(&self) -> Option<String> {
        // What is here can be asked for before the topics are read.
        self.direct.not_ready().and_then(|_| self.kafka.not_ready())
    }

    async fn infer(&self, call: Call) -> Result<Answer, Failure> {
        if self.direct.door.serves(&call.service) {
            self.direct.infer(call).await
        } else {
            self.kafka.infer(call).await
        }
    }

    fn instances(&self) -> Vec<InstanceStatus> {
        // A model and version is listed once, by its best state. The node's own word is newer than its heartbeat, which
        // may still call an instance loading that has failed: of what is here, heartbeats count only where it serves.
        let own = self.direct.instances();
        let here = |i: &InstanceStatus| own.iter().any(|o| (&o.service, &o.version) == (&i.service, &i.version));
        let told = self.kafka.instances().into_iter();
        let elsewhere: Vec<_> = told.filter(|i| i.state == InstanceState::Ready || !here(i)).collect();
        own.into_iter().chain(elsewhere).collect()
    }

    async fn load(&self, served: &Served, wish: LoadWish) -> Result<(), Failure> {
        self.direct.load(served, wish).await
    }

    async fn unload(&self, service: &str) -> Result<(), Failure> {
        self.direct.unload(service).await
    }
}
