//! What a planner knows, whether it leads or stands by, and what is due while it leads.

use super::control::{decode, sign_of_life};
use super::office::Office;
use crate::config::{Config, PlannerConfig, ServiceConfig};
use crate::demand::demand;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::handover::hand_over;
use crate::leadership::Event;
use crate::lease::Terms;
use crate::ledger::{Held, Ledger};
use crate::live;
use crate::load::LoadState;
use crate::metrics::{FlavorLabel, Metrics, ServiceLabel};
use crate::model::{Flavor, Naming, Plan, PlanInputs, PreviousDemand, Service, ServiceProfile};
use crate::provider::Provider;
use runtime::{Bus, Context, Record};
use schemas::EpochMs;
use schemas::allocation::{FLEET_KEY, FleetPlan, NODE_KEY_PREFIX, NodeAllocation, PlanMode};
use schemas::status::{ExecutorStatus, InstanceState};
use schemas::topics::WORKLOAD_FORECAST;
use schemas::workload::{WorkloadForecast, WorkloadObserved};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Decisions out of turn are at least so far apart.
const LEAST_GAP_MS: i64 = 1_000;
/// Partitions of the request topics are looked up again so often.
const PARTITIONS_EVERY_MS: i64 = 60_000;
/// A node's request for another plan is heard so often at most: the plan before must have had time to help.
const ASKED_AGAIN_MS: i64 = 10_000;
/// Heartbeats of nodes are remembered for a claim for so many times the silence that means loss.
const REMEMBERED: i64 = 10;

/// See [`super`].
pub(super) struct Planner {
    pub(super) config: PlannerConfig,
    pub(super) services: Vec<Service>,
    pub(super) flavors: Vec<Flavor>,
    pub(super) profiles: Vec<ServiceProfile>,
    pub(super) provider: Arc<dyn Provider>,
    pub(super) context: Context,
    pub(super) metrics: Metrics,
    pub(super) loads: BTreeMap<String, LoadState>,
    /// Newest heartbeat of each node and when it came, for the next claim.
    statuses: BTreeMap<String, (ExecutorStatus, EpochMs)>,
    partitions_at_ms: EpochMs,
    pub(super) office: Office,
    /// What follows is of the present epoch only.
    pub(super) fleet: Fleet,
    pub(super) ledger: Ledger,
    pub(super) previous: Vec<PreviousDemand>,
    pub(super) last: Option<Plan>,
    /// `last` with what is kept until others take over.
    pub(super) published: Option<Plan>,
    pub(super) sequence: u64,
    pub(super) naming: Naming,
    pub(super) plan_at_ms: EpochMs,
    pub(super) planned_at_ms: EpochMs,
    /// Why the next decision should not wait for its turn.
    pub(super) urgent: Option<String>,
    /// When a node last asked for another plan for the sake of a service, and was heard.
    asked: BTreeMap<String, EpochMs>,
    /// Lost nodes that have been counted.
    pub(super) counted_lost: BTreeSet<String>,
}

impl Planner {
    pub(super) fn new(
        config: Config,
        profiles: Vec<ServiceProfile>,
        provider: Arc<dyn Provider>,
        context: Context,
    ) -> Self {
        let now_ms = context.clock.now_ms();
        Planner {
            fleet: Fleet::new(config.planner.patience()),
            services: config.service.iter().map(ServiceConfig::service).collect(),
            flavors: config.flavor,
            config: config.planner,
            profiles,
            provider,
            metrics: Metrics::register(&context.registry),
            context,
            loads: BTreeMap::new(),
            statuses: BTreeMap::new(),
            partitions_at_ms: EpochMs::MIN / 2,
            office: Office::new(),
            ledger: Ledger::new(now_ms),
            previous: Vec::new(),
            last: None,
            published: None,
            sequence: 0,
            naming: Naming::default(),
            plan_at_ms: now_ms,
            planned_at_ms: EpochMs::MIN / 2,
            urgent: None,
            asked: BTreeMap::new(),
            counted_lost: BTreeSet::new(),
        }
    }

    pub(super) fn bus(&self) -> Arc<dyn Bus> {
        self.context.bus.clone()
    }

    /// Heartbeats of the time before this process, as a claim will need them.
    pub(super) fn remember(&mut self, status: &BTreeMap<String, Record>) {
        let now_ms = self.context.clock.now_ms();
        for heartbeat in status.values().filter_map(decode::<ExecutorStatus>) {
            let seen_ms = heartbeat.at_ms.min(now_ms);
            self.statuses.insert(heartbeat.node.clone(), (heartbeat, seen_ms));
        }
    }

    /// Continues from the control topic and the heartbeats in force, in a new epoch.
    pub(super) fn restore(&mut self, control: &BTreeMap<String, Record>, epoch: u64) {
        let now_ms = self.context.clock.now_ms();
        self.fleet = Fleet::new(self.config.patience());
        self.ledger = Ledger::new(now_ms);
        (self.previous, self.last, self.published) = (Vec::new(), None, None);
        (self.sequence, self.naming) = (0, Naming { epoch, next: 0 });
        (self.plan_at_ms, self.planned_at_ms, self.urgent) = (now_ms, EpochMs::MIN / 2, None);
        self.counted_lost.clear();
        let shares = control.iter().filter(|(key, _)| key.starts_with(NODE_KEY_PREFIX));
        let shares: Vec<NodeAllocation> = shares.filter_map(|(_, record)| decode(record)).collect();
        let plan: Option<FleetPlan> = control.get(FLEET_KEY).and_then(decode);
        let plan = plan.filter(|p| p.mode == PlanMode::Apply);
        if let Some(plan) = &plan {
            self.continue_plan(plan);
            self.fleet.adopt_shares(&shares, now_ms);
        }
        for (heartbeat, seen_ms) in self.statuses.values().cloned().collect::<Vec<_>>() {
            let fresh = now_ms - seen_ms <= self.config.patience().heartbeat_ms;
            if fresh || self.fleet.knows(&heartbeat.node) {
                self.heartbeat(&heartbeat, seen_ms);
            }
        }
        if plan.is_none() && self.config.mode == PlanMode::Apply {
            // After advice, or without a plan: those that live were adopted just now.
            self.fleet.adopt_shares(&shares, now_ms);
        }
    }

    fn continue_plan(&mut self, plan: &FleetPlan) {
        self.fleet.adopt_plan(plan);
        self.previous = plan
            .services
            .iter()
            .map(|s| PreviousDemand {
                service: s.service.clone(),
                demand_rps: s.demand_rps,
                justified_at_ms: s.justified_at_ms,
            })
            .collect();
        if let Some(cost) = &plan.cost {
            let known: Vec<Held> = self.fleet.held(&self.flavors);
            self.ledger = Ledger::resume(cost, known, plan.created_at_ms);
        }
    }

    pub(super) fn on_control(&mut self, record: &Record) {
        self.office.hear(record);
        if let Some((epoch, resigned)) = sign_of_life(record) {
            self.tell(Event::Heard { epoch, resigned });
        }
    }

    pub(super) fn on_status(&mut self, record: &Record) {
        let Some(heartbeat) = decode::<ExecutorStatus>(record) else { return };
        let now_ms = self.context.clock.now_ms();
        // Here and not in `heartbeat`, which a claim calls again for what is remembered: a period counts once.
        for counted in &heartbeat.services {
            if let Some(load) = self.loads.get_mut(&counted.service) {
                load.finished(now_ms, counted.answered + counted.rejected, counted.in_slo);
            }
        }
        if self.leads() {
            self.heartbeat(&heartbeat, now_ms);
        }
        self.statuses.insert(heartbeat.node.clone(), (heartbeat, now_ms));
    }

    fn heartbeat(&mut self, heartbeat: &ExecutorStatus, seen_ms: EpochMs) {
        let flavors = &self.flavors;
        let terms = |name: &str| flavors.iter().find(|f| f.name == name).map(Terms::of);
        let known = self.fleet.knows(&heartbeat.node);
        if let Some(up) = self.fleet.heartbeat(heartbeat, seen_ms, terms) {
            tracing::info!(node = up.node, setup_ms = up.setup_ms, "node ready");
            self.metrics.setup_seconds.observe(up.setup_ms as f64 / 1000.0);
        }
        if !known && self.fleet.knows(&heartbeat.node) {
            tracing::info!(node = heartbeat.node, flavor = heartbeat.flavor, "node adopted");
            self.urgent = Some(format!("node {} has come", heartbeat.node));
        }
        for update in &heartbeat.profile_updates {
            let Some(flavor) = self.flavors.iter().find(|f| f.name == heartbeat.flavor) else { continue };
            if let Some(factor) = live::learn(&mut self.profiles, flavor, update) {
                let (service, p95_ms) = (&update.service, update.point.p95_ms);
                tracing::info!(service, flavor = flavor.name, p95_ms, factor, "a profile is corrected");
            }
        }
        // Only of services that are planned for: what nodes name must not fill the memory.
        let planned = |service: &str| self.services.iter().any(|s| s.name == service);
        for request in heartbeat.replan.iter().filter(|r| planned(&r.service)) {
            let heard = self.asked.get(&request.service).is_some_and(|last_ms| seen_ms - last_ms < ASKED_AGAIN_MS);
            if !heard {
                self.asked.insert(request.service.clone(), seen_ms);
                self.urgent = Some(format!("{} on {}: {}", request.service, heartbeat.node, request.reason));
            }
        }
        for failed in heartbeat.instances.iter().filter(|i| i.state == InstanceState::Failed) {
            let still = self.last.as_ref().is_some_and(|p| places(p, &heartbeat.node, &failed.service));
            if still {
                self.urgent = Some(format!("{} failed on {}", failed.service, heartbeat.node));
            }
        }
    }

    pub(super) fn on_workload(&mut self, record: &Record) {
        let names = self.context.bus.topics();
        let service = if record.topic == names.name(WORKLOAD_FORECAST) {
            let Some(forecast) = decode::<WorkloadForecast>(record) else { return };
            let service = forecast.service.clone();
            self.loads.entry(service.clone()).or_default().forecast(forecast);
            service
        } else {
            let Some(observed) = decode::<WorkloadObserved>(record) else { return };
            let service = observed.service.clone();
            self.count_cold_starts(&observed);
            let load = self.loads.entry(service.clone()).or_default();
            if let Some(rate_rps) = load.observed(observed, self.config.nowcast_window.as_ms()) {
                self.ledger.observe(&service, rate_rps);
            }
            service
        };
        if self.leads()
            && let Some(why) = self.is_above_plan(&service)
        {
            self.urgent = Some(why);
        }
    }

    /// The price of scaling to zero: who comes meanwhile waits for a set-up.
    fn count_cold_starts(&self, observed: &WorkloadObserved) {
        let known = self.services.iter().any(|s| s.name == observed.service);
        if self.leads() && known && !observed.simulated && self.fleet.ready_instances(&observed.service) == 0 {
            let label = ServiceLabel { service: observed.service.clone() };
            self.metrics.cold_start_requests.get_or_create(&label).inc_by(observed.arrivals);
        }
    }

    /// Says so if the load of a service is more than the plan carries and than it was made for.
    fn is_above_plan(&self, service: &str) -> Option<String> {
        let planned = self.last.as_ref()?.services.iter().find(|s| s.service == service)?;
        let now_ms = self.context.clock.now_ms();
        let mut known = self.services.iter().find(|s| s.name == service)?.clone();
        known.load = self.loads.get(service)?.at(now_ms, self.fleet.backlog(service, now_ms));
        let settings = self.config.settings(self.provider.elastic());
        let setup_ms = planned.lead_ms as i64 - settings.period_ms;
        let raw_rps = demand(&known, setup_ms, 0.0, None, now_ms, &settings).raw_rps;
        (raw_rps > planned.capacity_rps && raw_rps > planned.demand_rps).then(|| {
            format!("{service} asks for {raw_rps:.1} requests/s, the plan carries {:.1}", planned.capacity_rps)
        })
    }

    /// What is due: decide, retire, keep the account; a standby only looks after its children.
    pub(super) async fn pulse(&mut self) -> Result<(), Error> {
        let alive: BTreeMap<String, bool> = self.provider.list().await.into_iter().map(|n| (n.node, n.alive)).collect();
        let now_ms = self.context.clock.now_ms();
        let kept_ms = REMEMBERED * self.config.patience().heartbeat_ms;
        self.statuses.retain(|_, (_, seen_ms)| now_ms - *seen_ms <= kept_ms);
        if !self.leads() {
            return Ok(());
        }
        self.fleet.provider_says(&alive);
        for node in self.fleet.lost(now_ms, &self.flavors) {
            if self.counted_lost.insert(node.clone()) {
                tracing::warn!(node, "node lost");
                self.metrics.nodes_lost.inc();
                self.urgent = Some(format!("node {node} is lost"));
            }
        }
        if self.can_hand_over(now_ms) {
            self.urgent.get_or_insert_with(|| "what was waited for serves now".to_owned());
        }
        let due = now_ms >= self.plan_at_ms;
        let may = now_ms - self.planned_at_ms >= LEAST_GAP_MS;
        if due || (may && self.urgent.is_some()) {
            self.decide(now_ms).await?;
        }
        if self.config.mode == PlanMode::Apply {
            self.retire().await?;
        }
        self.keep_account();
        Ok(())
    }

    /// The plan as it is published: what serves goes on until its successor serves.
    pub(super) fn with_what_is_kept(&self, decided: &Plan, now_ms: EpochMs) -> Plan {
        let memory_mib = |service: &str| {
            let measured = self.profiles.iter().filter(|p| p.service == service).map(|p| p.profile.memory_mib);
            measured.fold(0.0, f64::max)
        };
        hand_over(decided, &self.fleet.serving(now_ms, &self.known_flavors()), memory_mib)
    }

    /// True when something that is kept needs not be kept any more.
    fn can_hand_over(&self, now_ms: EpochMs) -> bool {
        let (Some(last), Some(published)) = (&self.last, &self.published) else { return false };
        let shares = |p: &Plan| p.nodes.iter().map(|n| n.instances.clone()).collect::<Vec<_>>();
        let kept = shares(published);
        kept != shares(last) && kept != shares(&self.with_what_is_kept(last, now_ms))
    }

    fn keep_account(&mut self) {
        let flavors = self.known_flavors();
        let now_ms = self.context.clock.now_ms();
        self.metrics.cost_usd.set(self.ledger.accrue(self.fleet.held(&flavors), now_ms));
        for flavor in &flavors {
            let n =
                self.fleet.held(&flavors).iter().filter(|h| self.fleet.flavor(&h.node) == Some(&flavor.name)).count();
            self.metrics.nodes.get_or_create(&FlavorLabel { flavor: flavor.name.clone() }).set(n as i64);
        }
    }

    /// Configured flavors, and those that only running nodes know: free, and never ordered.
    fn known_flavors(&self) -> Vec<Flavor> {
        let mut flavors = self.flavors.clone();
        for (name, cores) in self.fleet.unknown_flavors(&self.flavors) {
            flavors.push(Flavor { name, cores, quota: Some(0), min_lease_s: 0.0, boot_s: 0.0, ..Flavor::default() });
        }
        flavors
    }

    pub(super) async fn inputs(&mut self, now_ms: EpochMs) -> PlanInputs {
        self.look_up_partitions(now_ms).await;
        let flavors = self.known_flavors();
        let services: Vec<Service> = self
            .services
            .iter()
            .map(|s| {
                let backlog = self.fleet.backlog(&s.name, now_ms);
                let load = self.loads.get(&s.name).map(|l| l.at(now_ms, backlog)).unwrap_or_default();
                Service { load, ..s.clone() }
            })
            .collect();
        let version = |name: &str| self.services.iter().find(|s| s.name == name).map(|s| s.version.as_str());
        PlanInputs {
            now_ms,
            settings: self.config.settings(self.provider.elastic()),
            fleet: self.fleet.snapshot(now_ms, &flavors, version),
            services,
            flavors,
            profiles: self.profiles.clone(),
            previous: self.previous.clone(),
            naming: self.naming,
        }
    }

    /// A topic that does not exist yet limits nothing yet.
    async fn look_up_partitions(&mut self, now_ms: EpochMs) {
        let again = now_ms - self.partitions_at_ms >= PARTITIONS_EVERY_MS;
        for service in self.services.iter_mut().filter(|s| again || s.partitions.is_none()) {
            let topic = self.context.bus.topics().requests(&service.name);
            match self.context.bus.partitions(&topic).await {
                Ok(partitions) => service.partitions = u32::try_from(partitions).ok().filter(|p| *p > 0),
                Err(error) => tracing::debug!(%error, topic, "partitions not known"),
            }
        }
        if again {
            self.partitions_at_ms = now_ms;
        }
    }
}

fn places(plan: &Plan, node: &str, service: &str) -> bool {
    plan.nodes.iter().any(|n| n.node == node && n.instances.iter().any(|i| i.service == service))
}
