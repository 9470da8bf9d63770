//! How many workers each instance has, and the events that say why.

use super::{Node, planned_time};
use crate::background;
use crate::instance::InstanceKey;
use crate::metrics::{ScalingLabel, ServiceLabel};
use crate::pool::{Look, Pool};
use crate::queue::ServiceTime;
use crate::stats::{LOAD_WINDOW_MS, Recent};
use crate::vertical::{Sample, call_back};
use schemas::EpochMs;
use schemas::allocation::LoadSample;
use schemas::status::{InstanceState, ScalingEvent, ScalingKind};

/// Events kept for the next heartbeat; when the broker is away for long the oldest go first.
const MAX_EVENTS: usize = 1000;

/// A change of workers or instances.
struct Change<'a> {
    kind: ScalingKind,
    service: &'a str,
    from: u32,
    to: u32,
    reason: String,
    load: Option<LoadSample>,
}

impl Node {
    /// Looks at the load of every instance that serves, and lends or takes back workers.
    pub(crate) fn scale(&mut self) {
        let now_ms = self.context.clock.now_ms();
        let keys: Vec<InstanceKey> = self.extras.keys().cloned().collect();
        for key in keys {
            let Some(sample) = self.sample(&key, now_ms) else { continue };
            if !self.config.vertical.enabled {
                continue;
            }
            let thresholds = self.config.vertical.thresholds();
            let step = self.extras.get_mut(&key).and_then(|e| e.vertical.observe(&thresholds, &sample));
            if let Some(step) = step {
                let load = self.own_load(&key.service, now_ms);
                self.set_workers(&key, step.to, step.reason, load);
            }
        }
        self.lend_idle();
    }

    /// Lends the permits that no worker has to instances with background work, and takes lent ones back.
    pub(super) fn lend_idle(&self) {
        let serving = self.instances.iter().filter(|(_, i)| i.state() == InstanceState::Ready);
        let pools: Vec<(&InstanceKey, Pool, u32)> = serving
            .filter_map(|(key, i)| {
                let pool = self.pool(key)?;
                let wanted = background::wanted(pool.look(0).background_rows, i.plan.max_batch);
                Some((key, pool, wanted))
            })
            .collect();
        let wants: Vec<u32> = pools.iter().map(|(_, _, wanted)| *wanted).collect();
        for ((key, pool, _), lent) in pools.iter().zip(background::lend(self.free_permits(), &wants)) {
            pool.lend(lent);
            let label = ServiceLabel { service: key.service.clone() };
            self.metrics.background_workers.get_or_create(&label).set(i64::from(lent));
        }
    }

    /// What the loop looks at; also tells the queue the service times that were measured.
    fn sample(&self, key: &InstanceKey, now_ms: EpochMs) -> Option<Sample> {
        let instance = self.instances.get(key).filter(|i| i.state() == InstanceState::Ready)?;
        let pool = self.pool(key)?;
        let service = &self.hosts.get(&key.service)?.service;
        let planned = planned_time(&instance.plan);
        let (recent, time): (Recent, ServiceTime) =
            service.stats(|stats| (stats.recent(now_ms), stats.service_time(now_ms, planned, instance.plan.max_batch)));
        pool.set_service_time(time);
        let Look { backlog_ms, workers, .. } = pool.look(now_ms);
        Some(Sample {
            now_ms,
            slo_ms: instance.plan.slo_ms,
            p95_ms: recent.p95_ms,
            rows_per_s: recent.rows_per_s,
            backlog_ms,
            per_row_ms: time.per_row_ms,
            batch_p95_ms: time.batch_p95_ms,
            utilisation: (recent.busy_workers / f64::from(workers.max(1))).min(1.0),
            workers,
            planned: instance.plan.workers.max(1),
            free: self.free_permits(),
        })
    }

    /// Permits that no worker has.
    fn free_permits(&self) -> u32 {
        let used: u32 = self.extras.values().filter_map(|e| e.pool.as_ref()).map(|p| p.look(0).workers).sum();
        self.permits.saturating_sub(used)
    }

    /// Gives every instance at least what the plan says, and calls borrowed workers back where they are too many.
    pub(super) fn fit_workers(&mut self) {
        let serving: Vec<(InstanceKey, u32, u32)> = self
            .instances
            .iter()
            .filter(|(_, i)| matches!(i.state(), InstanceState::Ready | InstanceState::Draining))
            .filter_map(|(key, i)| {
                let planned = i.plan.workers.max(1);
                self.pool(key).map(|pool| (key.clone(), planned, pool.look(0).workers))
            })
            .collect();
        let raised: Vec<(u32, u32)> = serving.iter().map(|(_, planned, has)| (*planned, *has.max(planned))).collect();
        for ((key, planned, has), workers) in serving.iter().zip(call_back(self.permits, &raised)) {
            if workers == *has {
                continue;
            }
            let reason = if workers > *has {
                format!("the plan gives {planned} workers")
            } else {
                format!("the plan needs the permits, {planned} workers are planned")
            };
            let load = self.plan_load(&key.service);
            self.set_workers(key, workers, reason, load);
        }
    }

    fn set_workers(&mut self, key: &InstanceKey, workers: u32, reason: String, load: Option<LoadSample>) {
        let Some(pool) = self.pool(key) else { return };
        let from = pool.look(0).workers;
        pool.set_workers(workers);
        // The permits may be lent: their workers go after the inference that they run.
        self.lend_idle();
        tracing::info!(instance = %key, from, to = workers, reason, "workers");
        let kind = ScalingKind::Vertical;
        self.note(Change { kind, service: &key.service, from, to: workers, reason, load });
    }

    /// Notes that an instance of the service came (`+1`) or went (`-1`).
    pub(super) fn note_instances(&mut self, service: &str, difference: i32) {
        let alive = |state| matches!(state, InstanceState::Ready | InstanceState::Draining);
        let of_service = self.instances.iter().filter(|(key, i)| key.service == service && alive(i.state()));
        let to = u32::try_from(of_service.count()).unwrap_or(u32::MAX);
        let from = to.saturating_add_signed(-difference);
        let reason = match (&self.allocation, difference) {
            _ if self.stopping => "the node stops".to_owned(),
            _ if self.retired => "the plan retires the node".to_owned(),
            (Some(plan), _) if !plan.reason.is_empty() => plan.reason.clone(),
            (_, 1..) => "an instance is ready".to_owned(),
            _ => "an instance has gone".to_owned(),
        };
        let load = self.plan_load(service);
        self.note(Change { kind: ScalingKind::Horizontal, service, from, to, reason, load });
    }

    fn note(&mut self, change: Change<'_>) {
        let Change { kind, service, from, to, reason, load } = change;
        let label = ScalingLabel {
            service: service.to_owned(),
            kind: if kind == ScalingKind::Vertical { "vertical" } else { "horizontal" },
            direction: if to > from { "up" } else { "down" },
        };
        self.metrics.scaling.get_or_create(&label).inc();
        if self.scaling.len() == MAX_EVENTS {
            self.scaling.remove(0);
        }
        self.scaling.push(ScalingEvent {
            at_ms: self.context.clock.now_ms(),
            kind,
            node: self.id.clone(),
            service: service.to_owned(),
            from,
            to,
            reason,
            plan_id: self.allocation.as_ref().map(|a| a.plan_id.clone()),
            load,
        });
        self.changed = true;
    }

    /// The sample that the plan was made from.
    fn plan_load(&self, service: &str) -> Option<LoadSample> {
        self.allocation.as_ref()?.load.iter().find(|load| load.service == service).cloned()
    }

    /// The node's own rate over the last seconds, beside the forecast that the plan was made for.
    fn own_load(&self, service: &str, now_ms: EpochMs) -> Option<LoadSample> {
        let recent = self.hosts.get(service)?.service.stats(|stats| stats.recent(now_ms));
        Some(LoadSample {
            service: service.to_owned(),
            start_ms: now_ms - LOAD_WINDOW_MS,
            observed_rps: recent.requests_per_s,
            forecast_rps: self.plan_load(service).map_or(0.0, |load| load.forecast_rps),
        })
    }
}
