//! The service around the decision: gathers inputs, publishes plans, lets the provider act.
//!
//! One task owns all state. It reads `executor.status`, `workload.*` and `allocation.control`, and decides every
//! period, and at once when a node is lost or a load is above what the plan carries. A plan is published first, its
//! `fleet` record, then each changed node's share; only then are nodes ordered. A node that goes is told to drain,
//! and its key gets a tombstone when it has stopped.
//!
//! Invariants: nothing is done that was not published; a plan that could not be published is forgotten, and the next
//! period decides again; a planner that sees a higher epoch ends ([`Error::Deposed`]).
//! Left out: election of the active planner. Two planners are told apart by epoch only, so run one.

use crate::config::{Config, PlannerConfig, ServiceConfig};
use crate::demand::demand;
use crate::error::Error;
use crate::fleet::Fleet;
use crate::handover::hand_over;
use crate::lease::Terms;
use crate::ledger::{Held, Ledger};
use crate::load::LoadState;
use crate::metrics::{ActionLabel, FlavorLabel, Metrics, ServiceLabel};
use crate::model::{Flavor, Naming, Plan, PlanInputs, PreviousDemand, Service, ServiceProfile, Stamp};
use crate::plan;
use crate::provider::{self, LocalSpec, NodeOrder, Provider};
use runtime::restore::{Restored, read_to_end};
use runtime::{Context, OutRecord, PortError, Record, Source, SourceEvent, SourceSpec, Start};
use schemas::allocation::{FLEET_KEY, FleetPlan, NODE_KEY_PREFIX, NodeAction, NodeAllocation, NodePlan, PlanMode};
use schemas::profile::Profile;
use schemas::status::{ExecutorStatus, InstanceState};
use schemas::topics::{ALLOCATION_CONTROL, EXECUTOR_STATUS, WORKLOAD_FORECAST, WORKLOAD_OBSERVED};
use schemas::workload::{WorkloadForecast, WorkloadObserved};
use schemas::{EpochMs, Message};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often the service looks whether there is something to do.
const PULSE: Duration = Duration::from_millis(500);
/// Decisions out of turn are at least so far apart.
const LEAST_GAP_MS: i64 = 1_000;
/// Wait after a source or sink failed for now.
const RETRY: Duration = Duration::from_secs(1);
/// Partitions of the request topics are looked up again so often.
const PARTITIONS_EVERY_MS: i64 = 60_000;

/// Runs the planner with the configured provider; `local` says how nodes of the local one are started. Ends when
/// `shutdown` is cancelled, or with an error that a restart or an operator must fix.
pub async fn run(config: Config, local: LocalSpec, context: Context, shutdown: CancellationToken) -> Result<(), Error> {
    let provider = provider::build(&config.provider, local)?;
    run_with(config, provider, context, shutdown).await
}

/// The same with a provider of the caller's.
pub async fn run_with(
    config: Config,
    provider: Arc<dyn Provider>,
    context: Context,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let problems = crate::config::problems(&config.planner, &config.provider, &config.service, &config.flavor);
    if !problems.is_empty() {
        return Err(Error::Config(problems.join("; ")));
    }
    let profiles = load_profiles(&config.service)?;
    let outcome = tokio::select! {
        outcome = serve(config, profiles, provider.clone(), context.clone()) => outcome,
        () = shutdown.cancelled() => Ok(()),
    };
    context.readiness.set("planner", false, "stopped");
    provider.shutdown().await;
    outcome
}

/// Reads the profile of each service that names one.
pub fn load_profiles(services: &[ServiceConfig]) -> Result<Vec<ServiceProfile>, Error> {
    let mut profiles = Vec::new();
    for service in services {
        let Some(path) = &service.profile else {
            tracing::warn!(service = service.name, "no profile: the service gets no instances; run `barista profile`");
            continue;
        };
        let error = |why: String| Error::Profile { service: service.name.clone(), path: path.clone(), why };
        let text = std::fs::read_to_string(path).map_err(|e| error(e.to_string()))?;
        let profile: Profile = serde_json::from_str(&text).map_err(|e| error(e.to_string()))?;
        let problems = profile.problems();
        if !problems.is_empty() {
            return Err(error(problems.join("; ")));
        }
        profiles.push(ServiceProfile { service: service.name.clone(), flavor: None, profile });
    }
    Ok(profiles)
}

/// Reads what was before, then serves until something fails for good.
async fn serve(
    config: Config,
    profiles: Vec<ServiceProfile>,
    provider: Arc<dyn Provider>,
    context: Context,
) -> Result<(), Error> {
    let names = context.bus.topics().clone();
    let control = read_to_end(context.bus.as_ref(), &names.name(ALLOCATION_CONTROL)).await?;
    let status = read_to_end(context.bus.as_ref(), &names.name(EXECUTOR_STATUS)).await?;
    let topics = vec![names.name(WORKLOAD_FORECAST), names.name(WORKLOAD_OBSERVED)];
    let mut workload = context.bus.source(SourceSpec::assign(topics, Start::End)).await?;
    let metrics = Metrics::register(&context.registry);
    let mut planner = Planner::new(config, profiles, provider, context, metrics);
    planner.restore(&control, &status)?;
    let (mut control, mut status) = (control.source, status.source);
    let mut pulse = tokio::time::interval(PULSE);
    pulse.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = pulse.tick() => planner.pulse().await?,
            record = next_record(&mut control) => if let Some(r) = record? { planner.on_control(&r)? },
            record = next_record(&mut status) => if let Some(r) = record? { planner.on_status(&r) },
            record = next_record(&mut workload) => if let Some(r) = record? { planner.on_workload(&r) },
        }
    }
}

/// The next record; `None` for other events and for failures that may pass, after a wait.
async fn next_record(source: &mut Box<dyn Source>) -> Result<Option<Record>, Error> {
    match source.next().await {
        Ok(SourceEvent::Record(record)) => Ok(Some(record)),
        Ok(_) => Ok(None),
        Err(PortError::Broker(error)) => {
            tracing::warn!(error, "cannot read for now");
            tokio::time::sleep(RETRY).await;
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

/// Decodes a record's value; one that cannot be read is logged and skipped.
fn decode<M: Message>(record: &Record) -> Option<M> {
    let value = record.value.as_ref()?;
    M::decode(value)
        .inspect_err(|error| tracing::warn!(%error, topic = record.topic, offset = record.offset, "skipped"))
        .ok()
}

struct Planner {
    config: PlannerConfig,
    services: Vec<Service>,
    flavors: Vec<Flavor>,
    profiles: Vec<ServiceProfile>,
    provider: Arc<dyn Provider>,
    context: Context,
    metrics: Metrics,
    fleet: Fleet,
    loads: BTreeMap<String, LoadState>,
    ledger: Ledger,
    previous: Vec<PreviousDemand>,
    last: Option<Plan>,
    /// `last` with what is kept until others take over.
    published: Option<Plan>,
    epoch: u64,
    sequence: u64,
    naming: Naming,
    plan_at_ms: EpochMs,
    planned_at_ms: EpochMs,
    /// Why the next decision should not wait for its turn.
    urgent: Option<String>,
    partitions_at_ms: EpochMs,
    /// Lost nodes that have been counted.
    counted_lost: BTreeSet<String>,
}

impl Planner {
    fn new(
        config: Config,
        profiles: Vec<ServiceProfile>,
        provider: Arc<dyn Provider>,
        context: Context,
        metrics: Metrics,
    ) -> Self {
        let now_ms = context.clock.now_ms();
        Planner {
            fleet: Fleet::new(config.planner.patience()),
            services: config.service.iter().map(ServiceConfig::service).collect(),
            flavors: config.flavor,
            config: config.planner,
            profiles,
            provider,
            context,
            metrics,
            loads: BTreeMap::new(),
            ledger: Ledger::new(now_ms),
            previous: Vec::new(),
            last: None,
            published: None,
            epoch: 1,
            sequence: 0,
            naming: Naming::default(),
            plan_at_ms: now_ms,
            planned_at_ms: EpochMs::MIN / 2,
            urgent: None,
            partitions_at_ms: EpochMs::MIN / 2,
            counted_lost: BTreeSet::new(),
        }
    }

    /// Continues from the control topic and the heartbeats in force.
    fn restore(&mut self, control: &Restored, status: &Restored) -> Result<(), Error> {
        let now_ms = self.context.clock.now_ms();
        let shares = control.newest.iter().filter(|(key, _)| key.starts_with(NODE_KEY_PREFIX));
        let shares: Vec<NodeAllocation> = shares.filter_map(|(_, record)| decode(record)).collect();
        let plan: Option<FleetPlan> = control.newest.get(FLEET_KEY).and_then(decode);
        let epochs = shares.iter().map(|s| s.epoch).chain(plan.as_ref().map(|p| p.epoch));
        self.epoch = epochs.max().unwrap_or(0) + 1;
        self.naming = Naming { epoch: self.epoch, next: 0 };
        if let Some(plan) = plan.filter(|p| p.mode == PlanMode::Apply) {
            self.continue_plan(&plan, &shares, now_ms);
        }
        for record in status.newest.values() {
            let Some(heartbeat) = decode::<ExecutorStatus>(record) else { continue };
            let fresh = now_ms - heartbeat.at_ms <= self.config.patience().heartbeat_ms;
            if fresh || self.fleet.knows(&heartbeat.node) {
                self.heartbeat(&heartbeat, heartbeat.at_ms.min(now_ms));
            }
        }
        tracing::info!(epoch = self.epoch, "planner begins");
        Ok(())
    }

    fn continue_plan(&mut self, plan: &FleetPlan, shares: &[NodeAllocation], now_ms: EpochMs) {
        self.fleet.adopt_plan(plan);
        self.fleet.adopt_shares(shares, now_ms);
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

    fn on_control(&mut self, record: &Record) -> Result<(), Error> {
        let theirs = if record.key_str() == FLEET_KEY {
            decode::<FleetPlan>(record).map(|p| p.epoch)
        } else {
            decode::<NodeAllocation>(record).map(|a| a.epoch)
        };
        match theirs {
            Some(theirs) if theirs > self.epoch => Err(Error::Deposed { ours: self.epoch, theirs }),
            _ => Ok(()),
        }
    }

    fn on_status(&mut self, record: &Record) {
        if let Some(heartbeat) = decode::<ExecutorStatus>(record) {
            self.heartbeat(&heartbeat, self.context.clock.now_ms());
        }
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
        for counted in &heartbeat.services {
            if let Some(load) = self.loads.get_mut(&counted.service) {
                load.finished(seen_ms, counted.answered + counted.rejected, counted.in_slo);
            }
        }
        for failed in heartbeat.instances.iter().filter(|i| i.state == InstanceState::Failed) {
            let still = self.last.as_ref().is_some_and(|p| places(p, &heartbeat.node, &failed.service));
            if still {
                self.urgent = Some(format!("{} failed on {}", failed.service, heartbeat.node));
            }
        }
    }

    fn on_workload(&mut self, record: &Record) {
        let names = self.context.bus.topics();
        let service = if record.topic == names.name(WORKLOAD_FORECAST) {
            let Some(forecast) = decode::<WorkloadForecast>(record) else { return };
            let service = forecast.service.clone();
            self.loads.entry(service.clone()).or_default().forecast(forecast);
            service
        } else {
            let Some(observed) = decode::<WorkloadObserved>(record) else { return };
            let service = observed.service.clone();
            let load = self.loads.entry(service.clone()).or_default();
            if let Some(rate_rps) = load.observed(observed, self.config.nowcast_window.as_ms()) {
                self.ledger.observe(&service, rate_rps);
            }
            service
        };
        if let Some(why) = self.is_above_plan(&service) {
            self.urgent = Some(why);
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

    /// What is due: decide, retire, keep the account.
    async fn pulse(&mut self) -> Result<(), Error> {
        let alive: BTreeMap<String, bool> = self.provider.list().await.into_iter().map(|n| (n.node, n.alive)).collect();
        self.fleet.provider_says(&alive);
        let now_ms = self.context.clock.now_ms();
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
        self.retire().await?;
        self.keep_account();
        Ok(())
    }

    /// The plan as it is published: what serves goes on until its successor serves.
    fn with_what_is_kept(&self, decided: &Plan, now_ms: EpochMs) -> Plan {
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

    async fn inputs(&mut self, now_ms: EpochMs) -> PlanInputs {
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

    /// Decides, publishes, acts.
    async fn decide(&mut self, now_ms: EpochMs) -> Result<(), Error> {
        let why = self.urgent.take();
        self.plan_at_ms = now_ms + self.config.period.as_ms();
        self.planned_at_ms = now_ms;
        let inputs = self.inputs(now_ms).await;
        let began = tokio::time::Instant::now();
        let decided = plan(&inputs);
        self.metrics.plan_seconds.observe(began.elapsed().as_secs_f64());
        if let Some(why) = &why {
            tracing::info!(why, "decided out of turn");
        }
        let (mut published, mut changed) = (decided.clone(), Vec::new());
        if self.config.mode == PlanMode::Apply {
            published = self.with_what_is_kept(&decided, now_ms);
            changed = self.fleet.changed_by(&decided, &published);
        }
        if let Err(error) = self.publish(&inputs, &published, &changed).await {
            if matches!(error, Error::Port(PortError::Broker(_))) {
                self.metrics.publish_errors.inc();
                tracing::warn!(%error, "plan not published; the next period decides again");
                return Ok(());
            }
            return Err(error);
        }
        self.note(&published);
        if self.config.mode == PlanMode::Apply {
            self.fleet.apply(&decided, &published, now_ms);
            self.naming = decided.naming;
            self.start_nodes(&decided).await?;
        }
        self.last = Some(decided);
        self.published = Some(published);
        self.context.readiness.set("planner", true, format!("plan {}-{}", self.epoch, self.sequence));
        Ok(())
    }

    /// The fleet record, then the share of every node that changes, in this order in the log.
    async fn publish(&mut self, inputs: &PlanInputs, decided: &Plan, changed: &[NodePlan]) -> Result<(), Error> {
        self.sequence += 1;
        let stamp =
            Stamp { epoch: self.epoch, sequence: self.sequence, created_at_ms: inputs.now_ms, mode: self.config.mode };
        self.ledger.accrue(self.fleet.held(&inputs.flavors), inputs.now_ms);
        let cost = self.ledger.so_far(inputs);
        self.metrics.static_peak_usd.set(cost.usd_static_peak);
        let record = FleetPlan { cost: Some(cost), ..decided.clone().into_record(stamp) };
        let topic = self.context.bus.topics().name(ALLOCATION_CONTROL);
        let sink = self.context.bus.sink();
        let mut deliveries = vec![sink.send(OutRecord::message(&topic, &record)?)];
        for node in changed {
            deliveries.push(sink.send(OutRecord::message(&topic, &share(node, decided, stamp))?));
        }
        for delivery in deliveries {
            delivery.await?;
        }
        self.metrics.plans.inc();
        Ok(())
    }

    /// Remembers demands, logs changes, sets gauges.
    fn note(&mut self, decided: &Plan) {
        self.previous.clear();
        for s in &decided.services {
            self.previous.push(PreviousDemand {
                service: s.service.clone(),
                demand_rps: s.demand_rps,
                justified_at_ms: s.justified_at_ms,
            });
            let label = ServiceLabel { service: s.service.clone() };
            self.metrics.demand_rps.get_or_create(&label).set(s.demand_rps);
            self.metrics.capacity_rps.get_or_create(&label).set(s.capacity_rps);
            self.metrics.shortfall_rps.get_or_create(&label).set(s.shortfall_rps);
            self.metrics.planned_instances.get_or_create(&label).set(i64::from(s.instances));
            let ready = self.fleet.ready_instances(&s.service);
            self.metrics.ready_instances.get_or_create(&label).set(ready as i64);
        }
        for change in &decided.changes {
            let action = format!("{:?}", change.action).to_lowercase();
            tracing::info!(node = change.node, action, reason = change.reason, "plan");
            self.metrics.changes.get_or_create(&ActionLabel { action }).inc();
        }
        self.metrics.cost_usd_per_hour.set(decided.cost_usd_per_hour);
    }

    async fn start_nodes(&mut self, decided: &Plan) -> Result<(), Error> {
        for node in decided.nodes.iter().filter(|n| n.action == NodeAction::Start) {
            let Some(flavor) = self.flavors.iter().find(|f| f.name == node.flavor) else { continue };
            let order = NodeOrder {
                node: node.node.clone(),
                flavor: flavor.name.clone(),
                cores: flavor.cores,
                memory_gib: flavor.memory_gib,
                gpus: flavor.gpus,
                boot_ms: flavor.boot_ms().unsigned_abs(),
            };
            if let Err(error) = self.provider.start(order).await {
                tracing::error!(%error, "node not started; the next period decides again");
                self.metrics.provider_errors.inc();
                self.entomb(&node.node).await?;
            }
        }
        Ok(())
    }

    /// Stops nodes that have nothing left to do.
    async fn retire(&mut self) -> Result<(), Error> {
        for node in self.fleet.to_retire(self.context.clock.now_ms()) {
            if let Err(error) = self.provider.stop(&node).await {
                tracing::error!(%error, "node not stopped; trying again");
                self.metrics.provider_errors.inc();
                continue;
            }
            self.entomb(&node).await?;
        }
        Ok(())
    }

    /// Forgets a node once its key has its tombstone.
    async fn entomb(&mut self, node: &str) -> Result<(), Error> {
        let topic = self.context.bus.topics().name(ALLOCATION_CONTROL);
        let tombstone = OutRecord::tombstone(topic, format!("{NODE_KEY_PREFIX}{node}"));
        match self.context.bus.sink().send(tombstone).await {
            Ok(_) => {
                tracing::info!(node, "node retired");
                self.fleet.forget(node);
                self.counted_lost.remove(node);
                Ok(())
            }
            Err(PortError::Broker(error)) => {
                tracing::warn!(error, node, "tombstone not written; trying again");
                self.fleet.give_up(node, self.context.clock.now_ms());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn places(plan: &Plan, node: &str, service: &str) -> bool {
    plan.nodes.iter().any(|n| n.node == node && n.instances.iter().any(|i| i.service == service))
}

/// A node's share of a plan.
fn share(node: &NodePlan, decided: &Plan, stamp: Stamp) -> NodeAllocation {
    let causes: Vec<_> =
        decided.changes.iter().filter(|c| c.node == node.node).filter_map(|c| c.load.clone()).collect();
    let hosted = |service: &str| node.instances.iter().any(|i| i.service == service);
    let loads = decided.services.iter().filter(|s| hosted(&s.service)).map(|s| s.load.clone());
    let mut load = causes;
    for sample in loads {
        if !load.contains(&sample) {
            load.push(sample);
        }
    }
    NodeAllocation {
        schema: Default::default(),
        node: node.node.clone(),
        plan_id: stamp.plan_id(),
        epoch: stamp.epoch,
        sequence: stamp.sequence,
        created_at_ms: stamp.created_at_ms,
        instances: node.instances.clone(),
        drain: node.action == NodeAction::Stop,
        reason: node.reason.clone(),
        load,
    }
}
