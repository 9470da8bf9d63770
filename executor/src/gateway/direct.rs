//! Straight into the queues of the node in the same process.

use super::failure::{Code, Failure};
use super::message::{Answer, Call};
use super::path::{LoadWish, Path, Served};
use crate::direct::Door;
use async_trait::async_trait;
use runtime::SharedClock;
use schemas::allocation::InstanceAllocation;
use schemas::status::InstanceStatus;

/// Bodies larger than this are decoded off the threads that serve sockets, bytes.
const LARGE: usize = 256 << 10;

/// The path into a node.
pub(crate) struct Direct {
    pub(crate) door: Door,
    pub(crate) clock: SharedClock,
    /// Rows of a request, as `executor.max_rows` says.
    pub(crate) max_rows: u32,
    /// Services that exist.
    pub(crate) services: Vec<Served>,
    /// Backend of models whose configuration leaves it open.
    pub(crate) backend: String,
}

#[async_trait]
impl Path for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }

    fn not_ready(&self) -> Option<String> {
        (!self.door.is_open()).then(|| "the node in this process does not take requests now".to_owned())
    }

    async fn infer(&self, call: Call) -> Result<Answer, Failure> {
        let service = call.service.clone();
        if let Some(served) = self.services.iter().find(|s| s.name == service)
            && !self.door.leads_to(&service)
        {
            return Err(self.door.miss(&service, served.slo_ms).into());
        }
        let large = call.body.len() > LARGE;
        let record = call.into_record(self.clock.now_ms());
        let pending = if large {
            let (door, max_rows) = (self.door.clone(), self.max_rows);
            let decoding = tokio::task::spawn_blocking(move || door.submit(&service, record, max_rows));
            decoding.await.map_err(|e| Failure::new(Code::Internal, format!("a bug: {e}")))?
        } else {
            self.door.submit(&service, record, self.max_rows)
        };
        Answer::of_node(pending?.answer().await?)
    }

    fn instances(&self) -> Vec<InstanceStatus> {
        self.door.instances()
    }

    async fn load(&self, served: &Served, wish: LoadWish) -> Result<(), Failure> {
        let backend = if served.backend == "auto" { self.backend.clone() } else { served.backend.clone() };
        let instance = InstanceAllocation {
            service: served.name.clone(),
            model: served.model.clone(),
            version: served.version.clone(),
            backend,
            workers: wish.workers.unwrap_or(1).max(1),
            max_batch: wish.max_batch.unwrap_or(1).max(1),
            slo_ms: served.slo_ms,
            // Not known before it is measured; until then nothing is refused on its account.
            service_p95_ms: 0.0,
        };
        self.door.load(instance).await.map_err(|why| Failure::new(Code::Conflict, format!("failed to load: {why}")))
    }

    async fn unload(&self, service: &str) -> Result<(), Failure> {
        self.door.unload(service).await.map_err(|why| Failure::new(Code::Conflict, format!("failed to unload: {why}")))
    }
}
