//! Over Kafka: produce a request, wait for its record on the results or the rejected topic.
//!
//! Invariants:
//! - At most as many requests wait as the gateway lets be in flight; each leaves the map when it is answered, given up
//!   or timed out.
//! - Nothing is produced before the results are being read, so no answer can be missed between the two.
//! - A result that nobody waits for (a duplicate, an answer that came too late, another gateway's) is ignored.
//!
//! Every gateway reads all results of its services and takes its own by `correlation-id`. Which executor holds what is
//! read from the heartbeats; one that is silent for [`SILENT_MS`] does not count.

use super::failure::{Code, Failure, from_rejection};
use super::message::{Answer, Call};
use super::path::{LoadWish, Path, Served};
use async_trait::async_trait;
use bytes::Bytes;
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::{Bus, OutRecord, PortError, Record, SharedClock, Source, SourceEvent, SourceSpec, Start, TopicPartition};
use schemas::headers;
use schemas::message::Message;
use schemas::status::{ExecutorStatus, InstanceStatus, NodeState};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// A node whose last heartbeat is older does not count, milliseconds.
const SILENT_MS: i64 = 10_000;

type Waiting = Mutex<HashMap<String, oneshot::Sender<Record>>>;

/// The path over Kafka.
pub(crate) struct OverKafka {
    bus: Arc<dyn Bus>,
    clock: SharedClock,
    rejected_topic: String,
    /// Makes correlation ids unique among gateways.
    prefix: u64,
    next: AtomicU64,
    waiting: Waiting,
    reading: AtomicBool,
    nodes: RwLock<BTreeMap<String, ExecutorStatus>>,
}

impl OverKafka {
    /// A path that is not ready until [`OverKafka::read`] runs. `prefix` differs from that of every other gateway.
    pub(crate) fn new(bus: Arc<dyn Bus>, clock: SharedClock, prefix: u64) -> Arc<Self> {
        let rejected_topic = bus.topics().name(schemas::topics::PREDICTION_REJECTED);
        Arc::new(OverKafka {
            bus,
            clock,
            rejected_topic,
            prefix,
            next: AtomicU64::new(0),
            waiting: Mutex::default(),
            reading: AtomicBool::new(false),
            nodes: RwLock::default(),
        })
    }

    /// Reads results and heartbeats for ever; an error is one that an operator must fix.
    pub(crate) async fn read(&self, services: &[String]) -> Result<(), PortError> {
        let topics = self.bus.topics();
        let mut answers: Vec<String> = services.iter().map(|service| topics.results(service)).collect();
        answers.push(self.rejected_topic.clone());
        let status = vec![topics.name(schemas::topics::EXECUTOR_STATUS)];
        tokio::try_join!(
            self.follow(
                answers,
                Start::End,
                |record| self.on_answer(record),
                || {
                    self.reading.store(true, Ordering::Release);
                }
            ),
            self.follow(status, Start::Beginning, |record| self.on_status(&record), || {}),
        )?;
        Ok(())
    }

    /// Reads topics for ever; after a failure it goes on where it was.
    async fn follow(
        &self,
        topics: Vec<String>,
        start: Start,
        take: impl Fn(Record),
        caught_up: impl Fn(),
    ) -> Result<(), PortError> {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), self.prefix);
        let mut next: BTreeMap<TopicPartition, i64> = BTreeMap::new();
        let mut source: Option<Box<dyn Source>> = None;
        loop {
            let event = match &mut source {
                Some(source) => source.next().await,
                None => {
                    let from = if next.is_empty() { start.clone() } else { Start::Offsets(next.clone()) };
                    match self.bus.source(SourceSpec::assign(topics.clone(), from)).await {
                        Ok(opened) => {
                            source = Some(opened);
                            continue;
                        }
                        Err(error) => Err(error),
                    }
                }
            };
            match event {
                Ok(SourceEvent::Record(record)) => {
                    backoff.reset();
                    next.insert(record.topic_partition(), record.offset + 1);
                    take(record);
                }
                Ok(SourceEvent::CaughtUp) => caught_up(),
                Ok(_) => {}
                Err(error) if error.kind() == Kind::Transient => {
                    let delay = backoff.next_delay();
                    tracing::warn!(%error, ?topics, ?delay, "a gateway cannot read for now");
                    if matches!(error, PortError::Closed) {
                        source = None;
                    }
                    tokio::time::sleep(delay).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn on_answer(&self, record: Record) {
        let Some(id) = record.headers.get_str(headers::CORRELATION_ID) else { return };
        let waiter = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        if let Some(waiter) = waiter {
            // It may have given up a moment ago.
            let _ = waiter.send(record);
        }
    }

    fn on_status(&self, record: &Record) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        match record.value.as_deref().map(ExecutorStatus::decode) {
            None => drop(nodes.remove(record.key_str())),
            Some(Ok(status)) => drop(nodes.insert(status.node.clone(), status)),
            Some(Err(error)) => tracing::warn!(%error, offset = record.offset, "a heartbeat cannot be read"),
        }
    }

    fn correlation_id(&self) -> String {
        format!("gw-{:016x}-{:x}", self.prefix, self.next.fetch_add(1, Ordering::Relaxed))
    }

    fn outcome(&self, record: Record) -> Result<Answer, Failure> {
        if record.topic == self.rejected_topic {
            let header = |name| record.headers.get_str(name).unwrap_or_default();
            return Err(from_rejection(header(headers::REASON), header(headers::DETAIL)));
        }
        Answer::of_record(record)
    }
}

/// An entry of the map, removed when the request leaves.
struct Entry<'a> {
    waiting: &'a Waiting,
    id: &'a str,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(self.id);
    }
}

#[async_trait]
impl Path for OverKafka {
    fn name(&self) -> &'static str {
        "kafka"
    }

    fn not_ready(&self) -> Option<String> {
        (!self.reading.load(Ordering::Acquire)).then(|| "the results topics are not read yet".to_owned())
    }

    async fn infer(&self, call: Call) -> Result<Answer, Failure> {
        if let Some(why) = self.not_ready() {
            return Err(Failure::new(Code::Unavailable, why));
        }
        let id = self.correlation_id();
        let (sender, answered) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), sender);
        let _entry = Entry { waiting: &self.waiting, id: &id };
        let mut record = OutRecord::new(self.bus.topics().requests(&call.service)).key(id.clone());
        record.headers = call.headers();
        record.headers.push(headers::CORRELATION_ID, Bytes::from(id.clone()));
        record.value = Some(call.body);
        self.bus.sink().send(record).await.map_err(|error| match error {
            PortError::Refused(why) => Failure::new(Code::TooLarge, format!("the broker refuses the request: {why}")),
            error => Failure::new(Code::Unavailable, format!("the request cannot be written for now: {error}")),
        })?;
        match answered.await {
            Ok(record) => self.outcome(record),
            Err(_) => Err(Failure::new(Code::Unavailable, "the gateway stops")),
        }
    }

    fn instances(&self) -> Vec<InstanceStatus> {
        let heard_after_ms = self.clock.now_ms() - SILENT_MS;
        let nodes = self.nodes.read().unwrap_or_else(PoisonError::into_inner);
        let alive = nodes.values().filter(|s| s.state != NodeState::Stopped && s.at_ms > heard_after_ms);
        alive.flat_map(|status| status.instances.iter().cloned()).collect()
    }

    async fn load(&self, served: &Served, _: LoadWish) -> Result<(), Failure> {
        Err(self.not_here(&served.name))
    }

    async fn unload(&self, service: &str) -> Result<(), Failure> {
        Err(self.not_here(service))
    }
}

impl OverKafka {
    fn not_here(&self, service: &str) -> Failure {
        let message = format!(
            "this gateway hands requests to Kafka: which nodes hold {service} is the plan's decision; ask a node's own \
             gateway (gateway.mode = \"direct\")"
        );
        Failure::new(Code::Unimplemented, message)
    }
}
