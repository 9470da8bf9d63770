//! The node's books: what it holds, who serves, and how orders are carried out.
//!
//! Purpose: the single owner of instances, pools and members. It is told [`NodeEvent`]s one at a time and never waits
//! for anything but the end of aborted tasks, so no order can stall behind a slow model or broker.
//!
//! Invariants:
//! - An instance changes its state only through [`crate::instance`]; an illegal change is a bug and is logged as one.
//! - A service is read only while one of its instances is ready; the last one to go is retired after its members have
//!   left the group.
//! - Events of a load or a pool that was given up meanwhile carry an old generation and are ignored.
//!
//! Left out: loading (`loading`), group members (`members`), heartbeats (`heartbeat`) and the number of workers (`scaling`).

mod door;
mod heartbeat;
mod loading;
mod members;
mod scaling;

use crate::backend::{Backends, LoadError, Model};
use crate::config::Config;
use crate::control::Order;
use crate::direct::{self, Door};
use crate::error::Error;
use crate::instance::{Event, Instance, InstanceKey};
use crate::member::{Mode, Route, Routing, Service};
use crate::metrics::{Metrics, ServiceLabel};
use crate::pool::{Cores, Job, Parts, Pool, PoolEvent};
use crate::queue::{Limits, ServiceTime};
use crate::reconcile::{Action, reconcile, supersedes, wanted};
use crate::request::{Answerer, Fault, version};
use crate::stats::Stats;
use crate::vertical::Vertical;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use runtime::{Bus, Context, PortError};
use schemas::EpochMs;
use schemas::allocation::{InstanceAllocation, NodeAllocation};
use schemas::headers::Reason;
use schemas::status::{InstanceState, NodeState, ScalingEvent};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// What the node is told.
pub(crate) enum NodeEvent {
    /// The plan speaks.
    Order(Order),
    /// The plan cannot be read any more.
    ControlFailed(PortError),
    /// A model's file is in memory.
    Cached { key: InstanceKey, generation: u64 },
    /// A model was loaded, in milliseconds, or not.
    Loaded { key: InstanceKey, generation: u64, outcome: Result<(Arc<dyn Model>, f64), LoadError> },
    /// A pool has something to say.
    Pool { key: InstanceKey, generation: u64, event: PoolEvent },
    /// Somebody at the door asks for a model.
    Direct(direct::Command),
    /// A group member has left.
    MemberEnded { service: String, member: u64, outcome: Result<(), Error> },
}

/// What belongs to an instance besides its books.
struct Extra {
    generation: u64,
    /// Once it is loaded.
    model: Option<Arc<dyn Model>>,
    /// While it serves.
    pool: Option<Pool>,
    /// When its work is drained it goes on as a standby.
    rests: bool,
    vertical: Vertical,
    /// When its times are to be compared with the profile again.
    drift_due_ms: EpochMs,
}

/// A consumer of a service.
struct MemberHandle {
    reads: members::Reads,
    /// Lowest number that no other member of the service that reads the same has: part of its transactional id, so that a member takes over
    /// from the one that had the number before.
    slot: usize,
    mode: watch::Sender<Mode>,
    task: JoinHandle<()>,
}

/// A service that the node serves, or served since the last heartbeat.
struct Host {
    service: Service,
    members: BTreeMap<u64, MemberHandle>,
    /// The members give back what they have: the instance broke, or a drain ran out of time.
    leaving: bool,
    slo_ms: f64,
}

pub(crate) struct Node {
    id: String,
    config: Config,
    context: Context,
    backends: Backends,
    metrics: Metrics,
    cores: Arc<Cores>,
    permits: u32,
    state: NodeState,
    started_at_ms: EpochMs,
    allocation: Option<NodeAllocation>,
    /// Requests that come on connections, and models asked for there.
    door: Door,
    loaded: BTreeMap<String, InstanceAllocation>,
    retired: bool,
    stopping: bool,
    failure: Option<Error>,
    instances: BTreeMap<InstanceKey, Instance>,
    extras: BTreeMap<InstanceKey, Extra>,
    hosts: BTreeMap<String, Host>,
    events: mpsc::UnboundedSender<NodeEvent>,
    /// Heartbeats on their way; bounded, see `heartbeat`.
    publishing: FuturesUnordered<BoxFuture<'static, ()>>,
    scaling: Vec<ScalingEvent>,
    changed: bool,
    next_member: u64,
    next_generation: u64,
}

impl Node {
    pub(crate) fn new(
        id: String,
        config: Config,
        context: Context,
        backends: Backends,
        events: mpsc::UnboundedSender<NodeEvent>,
        door: Door,
    ) -> Self {
        door.open(events.clone());
        context.readiness.set("executor", false, format!("node {id} boots"));
        Node {
            metrics: Metrics::register(&context.registry),
            cores: Cores::new(config.pin, &config.pin_cores),
            permits: config.permits(),
            state: NodeState::Booting,
            started_at_ms: context.clock.now_ms(),
            allocation: None,
            door,
            loaded: BTreeMap::new(),
            retired: false,
            stopping: false,
            failure: None,
            instances: BTreeMap::new(),
            extras: BTreeMap::new(),
            hosts: BTreeMap::new(),
            publishing: FuturesUnordered::new(),
            scaling: Vec::new(),
            changed: true,
            next_member: 0,
            next_generation: 0,
            id,
            config,
            context,
            backends,
            events,
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn permits(&self) -> u32 {
        self.permits
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn bus(&self) -> Arc<dyn Bus> {
        self.context.bus.clone()
    }

    pub(crate) fn events(&self) -> mpsc::UnboundedSender<NodeEvent> {
        self.events.clone()
    }

    /// Why the node ends: `Ok` when it was told to.
    pub(crate) fn outcome(&mut self) -> Result<(), Error> {
        self.failure.take().map_or(Ok(()), Err)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping
    }

    /// True while everything is being drained, whoever asked for it.
    pub(crate) fn is_ending(&self) -> bool {
        self.stopping || self.retired || self.allocation.as_ref().is_some_and(|a| a.drain)
    }

    /// True when no instance and no member is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.instances.values().all(|i| i.state() == InstanceState::Stopped)
            && self.hosts.values().all(|host| host.members.is_empty())
    }

    pub(crate) fn set_state(&mut self, state: NodeState) {
        if self.state != state {
            self.state = state;
            self.changed = true;
        }
        let ready = state == NodeState::Ready;
        self.context.readiness.set("executor", ready, format!("node {} is {state:?}", self.id));
    }

    /// Drains everything, because the process is to end.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
        self.follow_plan();
    }

    /// A part cannot go on: drains everything and ends with this error.
    fn fail(&mut self, error: Error) {
        tracing::error!(%error, node = self.id, "the node cannot go on");
        self.failure.get_or_insert(error);
        self.stop();
    }

    /// The drain ran out of time: members give back what has not begun.
    pub(crate) fn leave(&mut self) {
        for host in self.hosts.values_mut() {
            host.leaving = true;
        }
        self.settle();
    }

    /// Ends what is still there, whatever it does. Its requests stay uncommitted.
    pub(crate) async fn abort(&mut self) {
        for host in self.hosts.values_mut() {
            for (_, member) in std::mem::take(&mut host.members) {
                member.task.abort();
                // An aborted task has nothing to say.
                let _ = member.task.await;
            }
        }
        let fault = Fault::new(Reason::ShuttingDown, format!("node {} stopped", self.id));
        for extra in self.extras.values() {
            if let Some(pool) = &extra.pool {
                pool.abandon(&fault);
            }
        }
    }

    pub(crate) async fn on_event(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Order(order) => self.on_order(order),
            NodeEvent::ControlFailed(error) => self.fail(Error::port("reading the plan", error)),
            NodeEvent::Cached { key, generation } => {
                if self.is_loading(&key, generation) {
                    self.apply(&key, Event::Cached);
                }
            }
            NodeEvent::Loaded { key, generation, outcome } => self.on_loaded(&key, generation, outcome),
            NodeEvent::Direct(command) => self.on_direct(command),
            NodeEvent::Pool { key, generation, event } => self.on_pool(&key, generation, event),
            NodeEvent::MemberEnded { service, member, outcome } => {
                self.on_member_ended(&service, member, outcome).await
            }
        }
    }

    fn on_order(&mut self, order: Order) {
        match order {
            Order::Follow(new) if supersedes(&new, self.allocation.as_ref()) => {
                tracing::info!(plan_id = new.plan_id, drain = new.drain, reason = new.reason, "plan");
                self.allocation = Some(*new);
                self.retired = false;
                self.changed = true;
            }
            Order::Follow(old) => {
                tracing::debug!(plan_id = old.plan_id, "an older plan is ignored");
                self.metrics.stale_plans.inc();
            }
            Order::Retired if self.allocation.is_none() => {
                tracing::debug!("a tombstone from before this node's first plan is ignored");
            }
            Order::Retired => {
                tracing::info!("the plan retires this node");
                self.retired = true;
            }
        }
        self.follow_plan();
    }

    /// Brings what there is towards what the plan wants.
    pub(crate) fn follow_plan(&mut self) {
        let now_ms = self.context.clock.now_ms();
        let allocation = self.allocation.as_ref().filter(|_| !self.stopping && !self.retired);
        let retry_ms = self.config.retry_load.as_ms();
        let allocation = direct::with_loaded(&self.id, allocation, &self.loaded);
        let wanted = wanted(allocation.as_ref());
        for (key, extra) in &mut self.extras {
            extra.rests = wanted.get(key).is_some_and(|plan| plan.workers == 0);
        }
        for action in reconcile(&self.instances, allocation.as_ref(), now_ms, retry_ms) {
            match action {
                Action::CancelDrain(key) => self.cancel_drain(&key),
                Action::Load(plan) => self.load(plan),
                Action::Serve(key) => self.serve(&key),
                Action::SetPlan(plan) => self.set_plan(plan),
                Action::Drain(key) => self.drain(&key),
            }
        }
        if self.state != NodeState::Booting {
            self.set_state(if self.is_ending() { NodeState::Draining } else { NodeState::Ready });
        }
        self.fit_workers();
        self.settle();
    }

    /// Applies an event to an instance; false, and a log line, when the books do not allow it.
    fn apply(&mut self, key: &InstanceKey, event: Event) -> bool {
        let now_ms = self.context.clock.now_ms();
        let Some(instance) = self.instances.get_mut(key) else { return false };
        match instance.apply(event, now_ms) {
            Ok(()) => {
                tracing::info!(instance = %key, state = ?instance.state(), "instance");
                self.changed = true;
                true
            }
            Err(error) => {
                tracing::error!(instance = %key, %error, "a bug in the node's books");
                false
            }
        }
    }

    /// Starts the workers of a loaded instance and lets its service know.
    fn serve(&mut self, key: &InstanceKey) {
        if !self.apply(key, Event::Serve) {
            return;
        }
        let Some(plan) = self.instances.get(key).map(|i| i.plan.clone()) else { return };
        let Some(model) = self.model(key) else { return };
        self.next_generation += 1;
        let generation = self.next_generation;
        let service = self.host(&plan).service.clone();
        let events = self.events.clone();
        let told = key.clone();
        let parts = Parts {
            model,
            answerer: Answerer {
                topic: self.context.bus.topics().results(&plan.service),
                service: plan.service.clone(),
                version: plan.version.clone(),
            },
            node: self.id.clone(),
            backend: plan.backend.clone(),
            clock: self.context.clock.clone(),
            stats: service.stats.clone(),
            metrics: self.metrics.clone(),
            cores: self.cores.clone(),
            events: Box::new(move |event| {
                // The node is gone: nobody needs to know.
                let _ = events.send(NodeEvent::Pool { key: told.clone(), generation, event });
            }),
        };
        let pool = Pool::new(parts, self.limits(&plan), planned_time(&plan));
        pool.set_workers(plan.workers.max(1));
        service.routing(|routing| routing.serve(Route { pool: pool.clone(), slo_ms: plan.slo_ms }));
        if let Some(extra) = self.extras.get_mut(key) {
            (extra.pool, extra.generation, extra.vertical) = (Some(pool), generation, Vertical::default());
        }
        self.note_instances(&plan.service, 1);
    }

    fn limits(&self, plan: &InstanceAllocation) -> Limits {
        Limits {
            capacity: self.config.queue_capacity,
            max_batch: plan.max_batch.max(1),
            window_ms: self.config.batch_window.as_ms(),
        }
    }

    fn host(&mut self, plan: &InstanceAllocation) -> &mut Host {
        let now_ms = self.context.clock.now_ms();
        let (metrics, clock) = (self.metrics.clone(), self.context.clock.clone());
        let host = self.hosts.entry(plan.service.clone()).or_insert_with(|| Host {
            service: Service {
                name: plan.service.clone(),
                routing: Arc::new(RwLock::new(Routing::default())),
                stats: Arc::new(Mutex::new(Stats::new(now_ms))),
                metrics,
                clock,
            },
            members: BTreeMap::new(),
            leaving: false,
            slo_ms: plan.slo_ms,
        });
        host.slo_ms = plan.slo_ms;
        self.door.lead_to(&host.service);
        host
    }

    fn model(&self, key: &InstanceKey) -> Option<Arc<dyn Model>> {
        self.extras.get(key).and_then(|e| e.model.clone())
    }

    fn pool(&self, key: &InstanceKey) -> Option<Pool> {
        self.extras.get(key).and_then(|e| e.pool.clone())
    }

    fn set_plan(&mut self, plan: InstanceAllocation) {
        let key = InstanceKey::of(&plan);
        if let Some(pool) = self.pool(&key) {
            pool.set_limits(self.limits(&plan));
            pool.set_service_time(planned_time(&plan));
            let host = self.host(&plan);
            host.service.routing(|routing| routing.set_slo(&pool, plan.slo_ms));
        }
        if let Some(instance) = self.instances.get_mut(&key) {
            instance.plan = plan;
            self.changed = true;
        }
    }

    fn drain(&mut self, key: &InstanceKey) {
        if !self.apply(key, Event::Drain) {
            return;
        }
        if let (Some(pool), Some(host)) = (self.pool(key), self.hosts.get(&key.service)) {
            host.service.routing(|routing| routing.drain(&pool));
            pool.set_draining(true);
            pool.lend(0);
        }
    }

    fn cancel_drain(&mut self, key: &InstanceKey) {
        if !self.apply(key, Event::CancelDrain) {
            return;
        }
        let slo_ms = self.instances.get(key).map_or(0.0, |i| i.plan.slo_ms);
        if let (Some(pool), Some(host)) = (self.pool(key), self.hosts.get(&key.service)) {
            pool.set_draining(false);
            host.service.routing(|routing| routing.serve(Route { pool, slo_ms }));
        }
    }

    fn on_pool(&mut self, key: &InstanceKey, generation: u64, event: PoolEvent) {
        if self.extras.get(key).is_none_or(|e| e.generation != generation) {
            return;
        }
        match event {
            PoolEvent::Idle => self.settle(),
            PoolEvent::Broke(why) => self.on_broke(key, &why),
        }
    }

    /// An instance cannot go on. What waits goes to another instance of the same model where one serves; otherwise the
    /// members leave, so that another node gets it.
    fn on_broke(&mut self, key: &InstanceKey, why: &str) {
        match self.instances.get(key).map(Instance::state) {
            Some(InstanceState::Ready | InstanceState::Draining) => {
                tracing::error!(instance = %key, why, "an instance broke");
                self.metrics.failures.get_or_create(&ServiceLabel { service: key.service.clone() }).inc();
                self.apply(key, Event::Broke(why.to_owned()));
                self.note_instances(&key.service, -1);
            }
            // One more of its workers, with a batch of its own.
            Some(InstanceState::Failed) => (),
            _ => return,
        }
        let others = self.is_served(&key.service);
        if let (Some(pool), Some(host)) = (self.pool(key), self.hosts.get_mut(&key.service)) {
            let fault = Fault::new(Reason::InferenceFailed, format!("the instance broke: {why}"));
            if others {
                host.service.routing(|routing| routing.forget(&pool));
                let heir = |job: &Job| Some(host.service.route(version(&job.record).ok()?).ok()??.pool);
                pool.hand_over(heir, &fault);
            } else {
                host.service.routing(|routing| routing.drain(&pool));
                pool.refuse_direct(&fault);
                host.leaving = true;
            }
        }
        self.follow_plan();
    }

    /// True while an instance of the service is ready.
    fn is_served(&self, service: &str) -> bool {
        self.instances.iter().any(|(key, i)| key.service == service && i.state() == InstanceState::Ready)
    }

    /// Members follow the instances, and instances that drained stop.
    fn settle(&mut self) {
        for name in self.hosts.keys().cloned().collect::<Vec<_>>() {
            let served = self.is_served(&name);
            self.steer_members(&name, served);
            let gone = self.hosts.get(&name).is_none_or(|host| host.members.is_empty());
            if served || gone {
                self.retire_drained(&name, gone);
            }
        }
    }

    /// Stops draining instances that have nothing left; `gone`: the service has no members any more.
    fn retire_drained(&mut self, service: &str, gone: bool) {
        let state = |wanted: InstanceState| {
            let of_service =
                self.instances.iter().filter(move |(key, i)| key.service == service && i.state() == wanted);
            of_service.map(|(key, _)| key.clone()).collect::<Vec<_>>()
        };
        for key in state(InstanceState::Draining) {
            let Some(pool) = self.pool(&key) else { continue };
            let rests = self.extras.get(&key).is_some_and(|extra| extra.rests);
            if pool.try_retire() && self.apply(&key, if rests { Event::Rest } else { Event::Drained }) {
                self.release(&key, &pool);
                self.note_instances(service, -1);
            }
        }
        if gone {
            let broken: Vec<InstanceKey> = self
                .instances
                .iter()
                .filter(|(key, i)| {
                    key.service == service && matches!(i.state(), InstanceState::Failed | InstanceState::Stopped)
                })
                .map(|(key, _)| key.clone())
                .collect();
            for key in broken {
                if let Some(pool) = self.pool(&key) {
                    pool.abandon(&Fault::new(Reason::InferenceFailed, "the instance broke"));
                    self.release(&key, &pool);
                }
            }
        }
    }

    fn release(&mut self, key: &InstanceKey, pool: &Pool) {
        if let Some(host) = self.hosts.get(&key.service) {
            host.service.routing(|routing| routing.forget(pool));
        }
        if let Some(extra) = self.extras.get_mut(key) {
            extra.pool = None;
        }
    }
}

/// Service times that the plan counts on, before any are measured.
pub(crate) fn planned_time(plan: &InstanceAllocation) -> ServiceTime {
    ServiceTime::planned(plan.service_p95_ms, plan.max_batch)
}
