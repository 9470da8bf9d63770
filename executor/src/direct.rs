//! The node's door for requests that come on a connection instead of over Kafka.
//!
//! Purpose: whoever holds a [`Door`] puts requests straight into the queues of a node in the same process, sees what the
//! node holds, and can ask it to hold a model that no plan gave it. The node that was started with the door is behind
//! it; without one, everything is refused as shutting down.
//!
//! Invariants:
//! - Every request that [`Door::submit`] takes is counted as a direct arrival of its service, and as answered or
//!   rejected once: also when nobody waits for it any more.
//! - A request whose caller went away does not stay in a queue.
//! - The plan goes first: what was loaded through the door is held only while the plan has no instance of its service.
//!
//! Left out: where such requests come from (`gateway`).

use crate::member::Service;
use crate::metrics::{AnswerLabel, ReasonLabel};
use crate::node::NodeEvent;
use crate::pool::{Accepted, Finished, Job, NotTaken, Pool, Reply};
use crate::queue::Class;
use crate::request::{Fault, class, deadline_ms, order_key, prepare, version};
use runtime::{OutRecord, Record};
use schemas::EpochMs;
use schemas::allocation::{InstanceAllocation, NodeAllocation};
use schemas::headers::Reason;
use schemas::status::{InstanceState, InstanceStatus};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

/// Group member number of requests that no member read; members count from 1.
const NO_MEMBER: u64 = 0;

/// What a door asks of its node.
pub(crate) enum Command {
    /// Hold this instance beside the plan's.
    Load(InstanceAllocation, oneshot::Sender<Result<(), String>>),
    /// Hold it no longer.
    Unload(String, oneshot::Sender<Result<(), String>>),
}

/// What the node tells of itself.
#[derive(Debug, Clone, Default)]
struct Notice {
    node: String,
    ready: bool,
    instances: Vec<InstanceStatus>,
}

/// Requests for a service that the node does not hold: load all the same, which the plan must hear of.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Missed {
    pub(crate) arrivals: u64,
    pub(crate) slo_ms: f64,
}

struct Inner {
    missed: Mutex<BTreeMap<String, Missed>>,
    services: RwLock<BTreeMap<String, Service>>,
    node: RwLock<Option<mpsc::UnboundedSender<NodeEvent>>>,
    notice: watch::Sender<Notice>,
}

/// A way into a node; cheap to clone, all clones lead to the same node.
#[derive(Clone)]
pub struct Door(Arc<Inner>);

impl Default for Door {
    fn default() -> Self {
        Door(Arc::new(Inner {
            missed: Mutex::default(),
            services: RwLock::default(),
            node: RwLock::default(),
            notice: watch::Sender::new(Notice::default()),
        }))
    }
}

impl std::fmt::Debug for Door {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Door").field(&self.0.notice.borrow().node).finish()
    }
}

/// The node's side.
impl Door {
    pub(crate) fn open(&self, node: mpsc::UnboundedSender<NodeEvent>) {
        *self.0.node.write().unwrap_or_else(PoisonError::into_inner) = Some(node);
    }

    pub(crate) fn close(&self) {
        self.0.node.write().unwrap_or_else(PoisonError::into_inner).take();
        self.0.notice.send_modify(|notice| notice.ready = false);
    }

    pub(crate) fn lead_to(&self, service: &Service) {
        let mut services = self.0.services.write().unwrap_or_else(PoisonError::into_inner);
        services.insert(service.name.clone(), service.clone());
    }

    pub(crate) fn keep(&self, still_there: impl Fn(&str) -> bool) {
        self.0.services.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| still_there(name));
    }

    pub(crate) fn take_missed(&self) -> BTreeMap<String, Missed> {
        std::mem::take(&mut *self.0.missed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn tell(&self, node: &str, ready: bool, instances: Vec<InstanceStatus>) {
        self.0.notice.send_replace(Notice { node: node.to_owned(), ready, instances });
    }
}

/// The other side.
impl Door {
    /// A door that leads nowhere until a node is started with it.
    pub fn new() -> Self {
        Door::default()
    }

    /// True while a node takes requests.
    pub fn is_open(&self) -> bool {
        self.0.notice.borrow().ready
    }

    /// What the node holds.
    pub fn instances(&self) -> Vec<InstanceStatus> {
        self.0.notice.borrow().instances.clone()
    }

    /// True when the node holds, or held a moment ago, an instance of the service.
    pub fn leads_to(&self, service: &str) -> bool {
        self.0.services.read().unwrap_or_else(PoisonError::into_inner).contains_key(service)
    }

    /// True while an instance of the service takes requests.
    pub fn serves(&self, service: &str) -> bool {
        let services = self.0.services.read().unwrap_or_else(PoisonError::into_inner);
        services.get(service).is_some_and(Service::is_served)
    }

    /// Counts a request for a service that exists and that the node does not hold: the arrival is told in the next
    /// heartbeat, so that a service which was scaled to nothing comes back. The fault is what its sender is told.
    pub fn miss(&self, service: &str, slo_ms: f64) -> Fault {
        let mut missed = self.0.missed.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = missed.entry(service.to_owned()).or_default();
        *entry = Missed { arrivals: entry.arrivals + 1, slo_ms };
        not_here(service)
    }

    /// Puts a request into its queue: what a record of `prediction.requests.<service>` would say, of at most `max_rows`
    /// rows. The deadline counts from the record's timestamp. Decodes the request: a large one takes its time.
    pub fn submit(&self, service: &str, record: Record, max_rows: u32) -> Result<Pending, Fault> {
        let found = self.0.services.read().unwrap_or_else(PoisonError::into_inner).get(service).cloned();
        let Some(service) = found else { return Err(not_here(service)) };
        service.stats(|stats| stats.arrived_directly());
        service.metrics.direct_requests.get_or_create(&service.label()).inc();
        let received = Instant::now();
        admit(&service, record, max_rows, received).inspect_err(|fault| count_rejected(&service, fault))
    }

    /// Asks the node to hold an instance, and waits until it serves or cannot be loaded.
    pub async fn load(&self, instance: InstanceAllocation) -> Result<(), String> {
        let mut notices = self.0.notice.subscribe();
        let (service, model) = (instance.service.clone(), instance.model.clone());
        self.order(|done| Command::Load(instance, done)).await?;
        let outcome = notices.wait_for(|notice| {
            let of_service = notice.instances.iter().filter(|i| i.service == service);
            use InstanceState::{Cached, Cold, Loading};
            of_service.map(|i| i.state).all(|state| !matches!(state, Cold | Loading | Cached))
        });
        let notice = outcome.await.map_err(|_| not_here(&service).detail)?.clone();
        let of_service: Vec<&InstanceStatus> = notice.instances.iter().filter(|i| i.service == service).collect();
        match of_service.iter().find(|i| i.state == InstanceState::Failed) {
            Some(failed) => Err(failed.error.clone().unwrap_or_else(|| "it could not be loaded".to_owned())),
            None if of_service.iter().any(|i| i.state == InstanceState::Ready) => Ok(()),
            None => Err(format!("{model} was given up before it was loaded: the node stops, or its plan changed")),
        }
    }

    /// Asks the node to let go of what [`Door::load`] made it hold. What was accepted is finished.
    pub async fn unload(&self, service: &str) -> Result<(), String> {
        self.order(|done| Command::Unload(service.to_owned(), done)).await
    }

    async fn order(&self, command: impl FnOnce(oneshot::Sender<Result<(), String>>) -> Command) -> Result<(), String> {
        let (done, outcome) = oneshot::channel();
        let node = self.0.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = node.is_some_and(|node| node.send(NodeEvent::Direct(command(done))).is_ok());
        match sent {
            true => outcome.await.unwrap_or_else(|_| Err("the node ended before it answered".to_owned())),
            false => Err("no node runs in this process".to_owned()),
        }
    }
}

fn admit(service: &Service, mut record: Record, max_rows: u32, received: Instant) -> Result<Pending, Fault> {
    // A pool may retire between routing and pushing; its successor is routed to by then.
    for _ in 0..2 {
        let Some(route) = service.route(version(&record)?)? else { break };
        let class = class(&record)?;
        let deadline_ms = deadline_ms(&record, class, route.slo_ms)?;
        let now_ms = service.clock.now_ms();
        if deadline_ms < now_ms {
            let detail = format!("deadline-ms: passed {} ms ago", now_ms - deadline_ms);
            return Err(Fault::new(Reason::DeadlinePast, detail));
        }
        let request = prepare(&record, route.pool.signature(), max_rows)?;
        let rows = u32::try_from(request.rows.len()).unwrap_or(u32::MAX);
        // Background work is no load to scale for.
        if class != Class::Batch {
            service.stats(|stats| stats.offered(now_ms, rows));
        }
        let order = order_key(&record);
        let (sender, answer) = oneshot::channel();
        let reply = Reply::Direct(Box::new(DirectReply { service: service.clone(), class, sender }));
        let job = Box::new(Job { record, request, class, order, deadline_ms, received, member: NO_MEMBER, reply });
        match route.pool.push(job) {
            Ok(()) => {
                return Ok(Pending { service: service.clone(), pool: route.pool, answer, settled: false });
            }
            Err(NotTaken::Refused(refusal)) => {
                return Err(Fault { reason: refusal.reason, detail: refusal.detail });
            }
            Err(NotTaken::Retired(job)) => record = job.record,
        }
    }
    Err(not_here(&service.name))
}

fn not_here(service: &str) -> Fault {
    Fault::new(Reason::ShuttingDown, format!("no instance of service {service} serves on this node"))
}

fn count_rejected(service: &Service, fault: &Fault) {
    service.stats(|stats| stats.rejected());
    let label = ReasonLabel { service: service.name.clone(), reason: fault.reason.as_str() };
    service.metrics.rejected.get_or_create(&label).inc();
}

/// Where the answer to a direct request goes.
pub(crate) struct DirectReply {
    service: Service,
    class: Class,
    sender: oneshot::Sender<Result<OutRecord, Fault>>,
}

impl std::fmt::Debug for DirectReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DirectReply").field(&self.service.name).finish()
    }
}

impl DirectReply {
    /// Counts the outcome and hands it over.
    pub(crate) fn finish(self, finished: Finished) {
        let Finished { record, deadline_ms, outcome } = finished;
        match &outcome {
            Err(fault) => count_rejected(&self.service, fault),
            Ok(_) => self.count_answered(record.timestamp_ms, deadline_ms),
        }
        // The caller may have gone; the work was done and is counted.
        let _ = self.sender.send(outcome);
    }

    fn count_answered(&self, timestamp_ms: EpochMs, deadline_ms: EpochMs) {
        let service = &self.service;
        let now_ms = service.clock.now_ms();
        let latency_ms = (now_ms - timestamp_ms).max(0) as f64;
        let in_slo = now_ms <= deadline_ms;
        if self.class == Class::Batch {
            service.stats(|stats| stats.answered_batch(in_slo));
        } else {
            service.stats(|stats| stats.answered(now_ms, latency_ms, in_slo));
            service.metrics.latency_seconds.get_or_create(&service.label()).observe(latency_ms / 1e3);
        }
        let in_time = if in_slo { "true" } else { "false" };
        service.metrics.answered.get_or_create(&AnswerLabel { service: service.name.clone(), in_time }).inc();
    }

    fn is_abandoned(&self) -> bool {
        self.sender.is_closed()
    }
}

/// A request in a queue. Dropping it gives the request up: it leaves the queue unless it has begun.
pub struct Pending {
    service: Service,
    pool: Pool,
    answer: oneshot::Receiver<Result<OutRecord, Fault>>,
    settled: bool,
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pending").field(&self.service.name).finish()
    }
}

impl Pending {
    /// Waits for what a record of the results topic would say.
    pub async fn answer(mut self) -> Result<OutRecord, Fault> {
        let answered = (&mut self.answer).await;
        self.settled = true;
        // The sender is dropped unused only when the node is torn down around its queue.
        answered.unwrap_or_else(|_| Err(not_here(&self.service.name)))
    }
}

impl Drop for Pending {
    /// The caller gave up: what has not begun is not worth beginning.
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        self.answer.close();
        let abandoned = |job: &Job| matches!(&job.reply, Reply::Direct(reply) if reply.is_abandoned());
        let given: Vec<Accepted> = self.pool.give_back(abandoned);
        let fault = Fault::new(Reason::DeadlinePast, "the caller went away");
        for _ in given {
            count_rejected(&self.service, &fault);
        }
    }
}

/// The plan and what was loaded through the door, as one: the plan goes first. `None`: nothing is wanted.
pub(crate) fn with_loaded(
    node: &str,
    plan: Option<&NodeAllocation>,
    loaded: &BTreeMap<String, InstanceAllocation>,
) -> Option<NodeAllocation> {
    if loaded.is_empty() {
        return plan.cloned();
    }
    let mut all = plan.cloned().unwrap_or_else(|| NodeAllocation {
        schema: Default::default(),
        node: node.to_owned(),
        plan_id: String::new(),
        epoch: 0,
        sequence: 0,
        created_at_ms: 0,
        instances: Vec::new(),
        drain: false,
        reason: "loaded through a gateway".to_owned(),
        load: Vec::new(),
    });
    let planned = |service: &str| plan.is_some_and(|p| p.instances.iter().any(|i| i.service == service));
    all.instances.extend(loaded.values().filter(|i| !planned(&i.service)).cloned());
    Some(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::instance::tests::allocation;

    #[test]
    fn the_plan_goes_before_what_was_loaded() {
        let own = InstanceAllocation { version: "9".to_owned(), ..allocation("a", "1", 1) };
        let other = InstanceAllocation { service: "other".to_owned(), ..allocation("a", "1", 1) };
        let loaded = BTreeMap::from([(own.service.clone(), own.clone()), ("other".to_owned(), other.clone())]);
        let alone = with_loaded("n", None, &loaded).unwrap();
        assert_eq!(alone.instances.len(), 2);
        let plan = NodeAllocation { instances: vec![allocation("a", "1", 1)], plan_id: "1-1".to_owned(), ..alone };
        let both = with_loaded("n", Some(&plan), &loaded).unwrap();
        assert_eq!(both.instances, [allocation("a", "1", 1), other]);
        assert_eq!(both.plan_id, "1-1");
        assert_eq!(with_loaded("n", None, &BTreeMap::new()), None);
        assert_eq!(with_loaded("n", Some(&plan), &BTreeMap::new()), Some(plan));
    }
}
