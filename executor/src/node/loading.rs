//! Loading of models: on threads of their own, so that neither the node nor the end of the process waits for one.

use super::{Extra, Node, NodeEvent};
use crate::backend::slowed::Slowed;
use crate::backend::{LoadError, LoadOptions, Model, panic_message};
use crate::instance::{Event, Instance, InstanceKey};
use crate::metrics::ServiceLabel;
use crate::request::Fault;
use crate::vertical::Vertical;
use schemas::allocation::InstanceAllocation;
use schemas::headers::Reason;
use schemas::status::InstanceState;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

impl Node {
    pub(super) fn load(&mut self, plan: InstanceAllocation) {
        let key = InstanceKey::of(&plan);
        let now_ms = self.context.clock.now_ms();
        if self.instances.get(&key).is_none_or(|i| i.state() == InstanceState::Stopped) {
            self.instances.insert(key.clone(), Instance::new(plan.clone(), now_ms));
        }
        if !self.apply(&key, Event::Load) {
            return;
        }
        if let Some(pool) = self.pool(&key) {
            // Of its life before it broke.
            pool.abandon(&Fault::new(Reason::InferenceFailed, "the instance broke"));
            self.release(&key, &pool);
        }
        self.next_generation += 1;
        let generation = self.next_generation;
        let extra = Extra {
            generation,
            model: None,
            pool: None,
            rests: plan.workers == 0,
            vertical: Vertical::default(),
            drift_due_ms: now_ms,
        };
        self.extras.insert(key.clone(), extra);
        self.spawn_load(key, generation, &plan);
    }

    /// Loads on a thread of its own, so that neither the node nor the end of the process waits for it.
    fn spawn_load(&self, key: InstanceKey, generation: u64, plan: &InstanceAllocation) {
        let path = self.config.model_dir.join(&plan.model);
        let options = LoadOptions { max_batch: plan.max_batch.max(1) as usize };
        let (events, backends, ordered) = (self.events.clone(), self.backends.clone(), Instant::now());
        let tell = move |key: InstanceKey, outcome| {
            // The node may be gone: then so is the model.
            let _ = events.send(NodeEvent::Loaded { key, generation, outcome });
        };
        let Some(backend) = backends.get(&key.backend) else {
            let why = backends.why_not(&key.backend);
            tell(key, Err(LoadError::NoBackend(why)));
            return;
        };
        let floor = self.config.emulated_floor(&key.service);
        let (name, failed_key, failed_tell) = (format!("load-{}", key.service), key.clone(), tell.clone());
        let events = self.events.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            // What cannot be read is for the backend to tell; what can is in the system's cache when it compiles.
            if read_through(&path).is_ok() {
                let _ = events.send(NodeEvent::Cached { key: key.clone(), generation });
            }
            let outcome = catch_unwind(AssertUnwindSafe(|| backend.load(&path, &options)))
                .unwrap_or_else(|panic| Err(LoadError::Invalid { path, detail: panic_message(panic.as_ref()) }));
            let outcome = outcome.map(|model| match floor {
                Some(floor) => Arc::new(Slowed::new(model, floor)) as Arc<dyn Model>,
                None => model,
            });
            tell(key, outcome.map(|model| (model, ordered.elapsed().as_secs_f64() * 1e3)));
        });
        if let Err(error) = thread {
            failed_tell(failed_key, Err(LoadError::NoBackend(format!("cannot start a thread to load it: {error}"))));
        }
    }

    /// True while this load of the instance is wanted.
    pub(super) fn is_loading(&self, key: &InstanceKey, generation: u64) -> bool {
        let current = self.extras.get(key).is_some_and(|e| e.generation == generation);
        let loading = |i: &Instance| matches!(i.state(), InstanceState::Loading | InstanceState::Cached);
        current && self.instances.get(key).is_some_and(loading)
    }

    pub(super) fn on_loaded(
        &mut self,
        key: &InstanceKey,
        generation: u64,
        outcome: Result<(Arc<dyn Model>, f64), LoadError>,
    ) {
        if !self.is_loading(key, generation) {
            tracing::debug!(instance = %key, "a load that was given up has ended");
            return;
        }
        match outcome {
            Ok((model, load_ms)) => {
                if self.apply(key, Event::Loaded(load_ms)) {
                    let label = ServiceLabel { service: key.service.clone() };
                    self.metrics.load_seconds.get_or_create(&label).observe(load_ms / 1e3);
                    if let Some(extra) = self.extras.get_mut(key) {
                        extra.model = Some(model);
                    }
                }
            }
            Err(error) => {
                tracing::error!(instance = %key, %error, "a model cannot be loaded");
                self.metrics.failures.get_or_create(&ServiceLabel { service: key.service.clone() }).inc();
                self.apply(key, Event::LoadFailed(error.to_string()));
            }
        }
        self.follow_plan();
    }
}

/// Reads a file to its end, so that the system has it in memory.
fn read_through(path: &std::path::Path) -> std::io::Result<u64> {
    std::io::copy(&mut std::fs::File::open(path)?, &mut std::io::sink())
}
