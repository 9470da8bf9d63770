//! `executor.status`: what the node says of itself.

use super::Node;
use crate::backend::{Signature, TensorSpec};
use crate::drift;
use crate::instance::InstanceKey;
use crate::metrics::{ServiceLabel, StateLabel};
use crate::pool::Look;
use futures::StreamExt;
use runtime::OutRecord;
use schemas::EpochMs;
use schemas::status::{
    ExecutorStatus, InstanceState, InstanceStatus, ModelSignature, NodeState, ProfileUpdate, ReplanRequest,
    ServiceStatus, TensorSignature,
};
use std::time::Duration;

/// Heartbeats that may be on their way; with more, the next one waits and covers a longer period.
const MAX_PUBLISHING: usize = 4;

const STATES: [(InstanceState, &str); 8] = [
    (InstanceState::Cold, "cold"),
    (InstanceState::Loading, "loading"),
    (InstanceState::Cached, "cached"),
    (InstanceState::Loaded, "loaded"),
    (InstanceState::Ready, "ready"),
    (InstanceState::Draining, "draining"),
    (InstanceState::Stopped, "stopped"),
    (InstanceState::Failed, "failed"),
];

impl Node {
    /// The regular beat: also the time to try failed loads again.
    pub(crate) fn on_beat(&mut self) {
        self.follow_plan();
        self.heartbeat();
    }

    /// Beats out of turn when a state, a plan or a number of workers changed.
    pub(crate) fn beat_if_changed(&mut self) {
        if self.changed {
            self.tell_door();
            self.heartbeat();
        }
    }

    /// Sends a heartbeat off, unless too many are on their way.
    pub(crate) fn heartbeat(&mut self) {
        if self.publishing.len() >= MAX_PUBLISHING {
            return;
        }
        if let Some(record) = self.next_status() {
            let sent = self.context.bus.sink().send(record);
            self.publishing.push(Box::pin(async move {
                if let Err(error) = sent.await {
                    tracing::warn!(%error, "a heartbeat was not written");
                }
            }));
        }
    }

    /// Resolves when a heartbeat on its way has arrived or failed.
    pub(crate) async fn published(&mut self) {
        if self.publishing.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    /// The last heartbeat; waits for it, at most `deadline`.
    pub(crate) async fn farewell(&mut self, deadline: Duration) {
        self.set_state(NodeState::Stopped);
        self.door.close();
        let Some(record) = self.next_status() else { return };
        let sent = self.context.bus.sink().send(record);
        match tokio::time::timeout(deadline, sent).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the last heartbeat was not written"),
            Err(_) => tracing::warn!(?deadline, "the last heartbeat was not written in time"),
        }
    }

    /// Whoever waits at the door sees what the node holds, also while heartbeats cannot be written.
    pub(super) fn tell_door(&self) {
        self.door.tell(&self.id, self.state == NodeState::Ready, self.instance_statuses());
    }

    /// Closes the period and forgets what has gone.
    fn next_status(&mut self) -> Option<OutRecord> {
        self.tell_door();
        let now_ms = self.context.clock.now_ms();
        let status = ExecutorStatus {
            schema: Default::default(),
            node: self.id.clone(),
            flavor: self.config.flavor.clone(),
            at_ms: now_ms,
            started_at_ms: self.started_at_ms,
            state: self.state,
            plan_id: self.allocation.as_ref().map(|a| a.plan_id.clone()),
            cores: self.permits,
            instances: self.instance_statuses(),
            services: self.service_statuses(now_ms),
            profile_updates: self.profile_updates(now_ms),
            scaling: std::mem::take(&mut self.scaling),
            replan: self.replan_requests(now_ms),
        };
        self.changed = false;
        self.forget_gone();
        let topic = self.context.bus.topics().name(schemas::topics::EXECUTOR_STATUS);
        match OutRecord::message(topic, &status) {
            Ok(record) => Some(record),
            Err(error) => {
                tracing::error!(%error, "a heartbeat cannot be encoded");
                None
            }
        }
    }

    /// Where measured times are not those of the profile; each instance is looked at once a minute.
    fn profile_updates(&mut self, now_ms: EpochMs) -> Vec<ProfileUpdate> {
        let mut updates = Vec::new();
        let keys: Vec<InstanceKey> = self.extras.keys().cloned().collect();
        for key in keys {
            let Some(instance) = self.instances.get(&key).filter(|i| i.state() == InstanceState::Ready) else {
                continue;
            };
            let (batch, planned_p95_ms) = (instance.plan.max_batch.max(1), instance.plan.service_p95_ms);
            let workers = self.pool(&key).map_or(1, |pool| pool.look(now_ms).workers.max(1));
            let due = self.extras.get(&key).is_some_and(|extra| now_ms >= extra.drift_due_ms);
            let Some(host) = self.hosts.get(&key.service).filter(|_| due) else { continue };
            // The times are the service's: with two versions here they cannot be told apart.
            let versions = self.instances.keys().filter(|other| other.service == key.service).count();
            let times_ms = host.service.stats(|stats| stats.batch_times(now_ms, batch));
            if versions > 1 || times_ms.len() < drift::ENOUGH {
                continue;
            }
            if let Some(extra) = self.extras.get_mut(&key) {
                extra.drift_due_ms = now_ms + drift::PERIOD_MS;
            }
            let Some(point) = drift::drift(workers, batch, &times_ms, planned_p95_ms) else { continue };
            tracing::info!(instance = %key, planned_p95_ms, measured_p95_ms = point.p95_ms, batch, "not what the profile says");
            let samples = times_ms.len() as u64;
            let InstanceKey { service, version, backend, .. } = key;
            updates.push(ProfileUpdate { service, version, backend, point, samples });
        }
        updates
    }

    /// Instances that nothing on this node can help any more.
    fn replan_requests(&self, now_ms: EpochMs) -> Vec<ReplanRequest> {
        let ceilings = self.extras.iter().filter_map(|(key, extra)| Some((key, extra.vertical.at_ceiling(now_ms)?)));
        ceilings
            .map(|(key, ceiling)| ReplanRequest {
                service: key.service.clone(),
                since_ms: ceiling.since_ms,
                reason: format!("{}, and no core of the node is free", ceiling.strain),
            })
            .collect()
    }

    fn instance_statuses(&self) -> Vec<InstanceStatus> {
        let workers = |key| self.pool(key).map_or(0, |pool| pool.look(0).workers);
        self.instances
            .iter()
            .map(|(key, instance)| InstanceStatus {
                service: key.service.clone(),
                version: key.version.clone(),
                backend: key.backend.clone(),
                state: instance.state(),
                workers: workers(key),
                planned_workers: instance.plan.workers,
                load_ms: instance.load_ms(),
                error: instance.error().map(str::to_owned),
                signature: self.model(key).map(|model| told(model.signature(), self.config.max_rows)),
            })
            .collect()
    }

    fn service_statuses(&self, now_ms: EpochMs) -> Vec<ServiceStatus> {
        let mut statuses = Vec::new();
        for (name, host) in &self.hosts {
            let pools = self.extras.iter().filter(|(key, _)| key.service == *name);
            let looks: Vec<Look> =
                pools.filter_map(|(_, extra)| extra.pool.as_ref()).map(|pool| pool.look(now_ms)).collect();
            let queue_depth: u64 = looks.iter().map(|look| look.depth as u64).sum();
            let queue_age_ms = looks.iter().map(|look| look.age_ms).max().unwrap_or(0) as f64;
            self.set_gauges(name, &looks, queue_age_ms);
            let period = host.service.stats(|stats| stats.close_period(now_ms));
            statuses.push(ServiceStatus {
                service: name.clone(),
                period_ms: period.period_ms,
                queue_depth,
                queue_age_ms,
                arrivals: period.counters.arrivals,
                direct_arrivals: period.counters.direct_arrivals,
                answered: period.counters.answered,
                in_slo: period.counters.in_slo,
                rejected: period.counters.rejected,
                latency: period.latency,
                slo_ms: host.slo_ms,
            });
        }
        self.add_missed(&mut statuses);
        statuses
    }

    /// Requests that came through the door for services that are not here.
    fn add_missed(&self, statuses: &mut Vec<ServiceStatus>) {
        for (service, missed) in self.door.take_missed() {
            if let Some(status) = statuses.iter_mut().find(|s| s.service == service) {
                status.direct_arrivals += missed.arrivals;
                status.rejected += missed.arrivals;
                continue;
            }
            statuses.push(ServiceStatus {
                service,
                period_ms: self.config.status_interval.as_ms().unsigned_abs(),
                queue_depth: 0,
                queue_age_ms: 0.0,
                arrivals: 0,
                direct_arrivals: missed.arrivals,
                answered: 0,
                in_slo: 0,
                rejected: missed.arrivals,
                latency: None,
                slo_ms: missed.slo_ms,
            });
        }
    }

    fn set_gauges(&self, service: &str, looks: &[Look], queue_age_ms: f64) {
        let m = &self.metrics;
        let label = ServiceLabel { service: service.to_owned() };
        m.queue_depth.get_or_create(&label).set(looks.iter().map(|look| look.depth as i64).sum());
        m.queue_age.get_or_create(&label).set(queue_age_ms / 1e3);
        m.workers.get_or_create(&label).set(looks.iter().map(|look| i64::from(look.workers)).sum());
        let of_service = || self.instances.iter().filter(|(key, _)| key.service == service).map(|(_, i)| i);
        let planned = of_service().filter(|i| i.state() == InstanceState::Ready).map(|i| i64::from(i.plan.workers));
        m.planned_workers.get_or_create(&label).set(planned.sum());
        for (state, name) in STATES {
            let label = StateLabel { service: service.to_owned(), state: name };
            let count = of_service().filter(|i| i.state() == state).count();
            m.instances.get_or_create(&label).set(count as i64);
        }
    }

    /// What was told as stopped once is not told again.
    fn forget_gone(&mut self) {
        self.instances.retain(|_, instance| instance.state() != InstanceState::Stopped);
        let instances = &self.instances;
        self.extras.retain(|key, _| instances.contains_key(key));
        self.hosts.retain(|name, host| !host.members.is_empty() || instances.keys().any(|key| key.service == *name));
        self.door.keep(|name| self.hosts.contains_key(name));
    }
}

/// A signature as clients see it.
fn told(signature: &Signature, max_rows: u32) -> ModelSignature {
    let tensor = |spec: &TensorSpec| {
        let row = spec.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX));
        TensorSignature {
            name: spec.name.clone(),
            datatype: spec.datatype.as_str().to_owned(),
            shape: signature.batched.then_some(-1).into_iter().chain(row).collect(),
        }
    };
    ModelSignature {
        max_rows: if signature.batched { max_rows } else { 0 },
        inputs: signature.inputs.iter().map(tensor).collect(),
        outputs: signature.outputs.iter().map(tensor).collect(),
    }
}
