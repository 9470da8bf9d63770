//! One consumer of a service: from records to jobs, from finished jobs to records, and the commits in between.
//!
//! Purpose: read `prediction.requests.<service>` as a member of the service's group, hand requests to the pool that
//! serves, write each result or rejection, and commit what is finished.
//!
//! Invariants:
//! - An offset is committed only when every record before it in its partition has its delivery report.
//! - A revoked partition's waiting requests are given back (uncommitted, so that the next owner reads them); running
//!   ones are finished, written and committed before the acknowledgement.
//! - At most `max_in_flight` requests are accepted and not finished, and the member takes none while those in the pools
//!   fill `max_in_flight_bytes`. At a bound it stops reading, the source's buffer fills and the source pauses the
//!   partitions; the same while it drains.
//! - While no pool serves, a record that was read is held and nothing after it is read.
//! - With `delivery = "exactly_once"` answers and offsets go together, see [`exactly_once`].
//! - A write that fails for now is repeated with backoff until it succeeds or the member is told to leave; a result
//!   that the broker refuses for good becomes a rejection.

mod exactly_once;
mod routing;
mod writer;

pub(crate) use routing::{Route, Routing, Service};

use crate::error::Error;
use crate::metrics::{AnswerLabel, ReasonLabel};
use crate::pool::{Accepted, Finished, Job, NotTaken, Pool, Reply};
use crate::queue::Class;
use crate::request::{Fault, class, deadline_ms, order_key, prepare, version};
use crate::stats::Stats;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use runtime::backoff::Backoff;
use runtime::ports::Kind;
use runtime::{OffsetTracker, PortError, Record, RevokeAck, Sink, Source, SourceEvent, TopicPartition, Transactions};
use schemas::EpochMs;
use schemas::headers::{DEADLINE_MS, Reason};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use writer::Writer;

/// What a member is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Read and serve.
    Run,
    /// Read no more, finish what was accepted, then leave the group.
    Drain,
    /// Give back what has not begun, finish what runs, then leave the group.
    Leave,
}

/// What a member reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Intake {
    /// `prediction.requests.<service>`.
    Requests,
    /// `prediction.batch.<service>`: every request is of class `batch`, has all the time unless it names a deadline, is
    /// offered again when the queue has no room, and counts as nothing that is planned or scaled for.
    Background {
        /// Full name of the topic of its results.
        scores_topic: String,
    },
}

/// Bounds and places of a member.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// Number of the member, unique in the node.
    pub(crate) member: u64,
    /// What it reads.
    pub(crate) intake: Intake,
    /// Full name of the rejected topic.
    pub(crate) rejected_topic: String,
    /// Requests accepted and not finished.
    pub(crate) max_in_flight: usize,
    /// Bytes of requests in the pools, as they came.
    pub(crate) max_in_flight_bytes: usize,
    /// Rows of a request.
    pub(crate) max_rows: u32,
    /// Time between commits.
    pub(crate) commit_interval: Duration,
}

/// A written record.
struct Written {
    partition: TopicPartition,
    offset: i64,
    timestamp_ms: EpochMs,
    deadline_ms: EpochMs,
    class: Class,
    /// `None`: a result.
    rejected: Option<Reason>,
    outcome: Result<(), PortError>,
}

/// Deadline of background work that names none: far beyond any clock, and sums with it stay in range.
const NO_DEADLINE_MS: EpochMs = EpochMs::MAX / 4;
/// How long background work waits that the queue has no room for.
const DEFER: Duration = Duration::from_millis(200);

/// A job and the pool it is for.
type Offer = (Pool, Accepted);

struct Member {
    service: Service,
    options: Options,
    source: Box<dyn Source>,
    sink: Arc<dyn Sink>,
    mode: watch::Receiver<Mode>,
    tracker: OffsetTracker,
    finished: mpsc::UnboundedSender<Finished>,
    /// Bounded by `max_in_flight`, as every entry belongs to a request in flight.
    writes: FuturesUnordered<BoxFuture<'static, Written>>,
    /// Present with `delivery = "exactly_once"`; then `writes` stays empty.
    exactly_once: Option<exactly_once::ExactlyOnce>,
    held: Option<Record>,
    /// Background work that the queue had no room for; part of what is in flight.
    deferred: Vec<Record>,
    /// When it is offered again.
    deferred_until: Option<tokio::time::Instant>,
    /// Bytes of this member's requests in the pools.
    in_pools_bytes: usize,
    /// Requests in the tracker that were given back: open for the commit, and nobody works on them.
    given_back: BTreeMap<TopicPartition, usize>,
    /// Partitions whose running requests are being finished for their next owner.
    revoking: Vec<(Vec<TopicPartition>, RevokeAck)>,
    backoff: Backoff,
}

/// Bytes of a request as it came.
fn size(record: &Record) -> usize {
    record.value.as_ref().map_or(0, |value| value.len())
}

/// Runs a member until its mode tells it to go. An error is one that a restart or an operator must fix.
pub(crate) async fn run(
    service: Service,
    options: Options,
    source: Box<dyn Source>,
    sink: Arc<dyn Sink>,
    transactions: Option<Box<dyn Transactions>>,
    mode: watch::Receiver<Mode>,
) -> Result<(), Error> {
    let exactly_once = transactions.map(|writer| exactly_once::ExactlyOnce::new(writer, options.member));
    let (finished, results) = mpsc::unbounded_channel();
    let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5), options.member);
    let member = Member {
        service,
        options,
        source,
        sink,
        mode,
        tracker: OffsetTracker::new(),
        finished,
        writes: FuturesUnordered::new(),
        exactly_once,
        held: None,
        deferred: Vec::new(),
        deferred_until: None,
        in_pools_bytes: 0,
        given_back: BTreeMap::new(),
        revoking: Vec::new(),
        backoff,
    };
    member.run(results).await
}

impl Member {
    async fn run(mut self, mut results: mpsc::UnboundedReceiver<Finished>) -> Result<(), Error> {
        let mut commits = tokio::time::interval(self.options.commit_interval);
        commits.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut retry_at: Option<tokio::time::Instant> = None;
        loop {
            let mode = *self.mode.borrow_and_update();
            match mode {
                Mode::Run => self.serve_held(),
                Mode::Leave => self.give_back(|_| true),
                Mode::Drain => {}
            }
            self.begin_transaction();
            if mode != Mode::Run && self.in_flight() == 0 && self.exactly_once.as_ref().is_none_or(|e| e.is_settled()) {
                self.commit().await;
                self.revoking.clear();
                return Ok(());
            }
            let reads = mode == Mode::Run
                && self.held.is_none()
                && retry_at.is_none()
                && self.in_flight() + self.exactly_once.as_ref().map_or(0, |e| e.waiting())
                    < self.options.max_in_flight
                && self.in_pools_bytes < self.options.max_in_flight_bytes;
            tokio::select! {
                biased;
                changed = self.mode.changed() => {
                    if changed.is_err() {
                        return Err(Error::Bug(format!("service {}: the node left its member behind", self.service.name)));
                    }
                }
                Some(written) = self.writes.next(), if !self.writes.is_empty() => {
                    self.settle(written)?;
                    self.finish_revocations().await;
                }
                outcome = ended(&mut self.exactly_once) => {
                    if let Err(error) = self.on_transaction(outcome) {
                        self.give_back(|_| true);
                        return Err(error);
                    }
                    self.finish_revocations().await;
                }
                Some(job) = results.recv() => {
                    self.in_pools_bytes -= size(&job.record);
                    self.write(job);
                    if self.exactly_once.is_some() {
                        self.finish_revocations().await;
                    }
                }
                _ = commits.tick(), if self.exactly_once.is_none() => self.commit().await,
                () = sleep_until(retry_at), if retry_at.is_some() => retry_at = None,
                () = sleep_until(self.deferred_until), if self.deferred_until.is_some() => self.offer_deferred(),
                event = self.source.next(), if reads => match event {
                    Ok(event) => {
                        self.backoff.reset();
                        self.on_event(event).await;
                    }
                    Err(error) => retry_at = Some(self.on_source_error(error)?),
                },
            }
        }
    }

    fn on_source_error(&mut self, error: PortError) -> Result<tokio::time::Instant, Error> {
        let what = || format!("reading requests of service {}", self.service.name);
        if matches!(error, PortError::Closed) || error.kind() != Kind::Transient {
            return Err(Error::port(what(), error));
        }
        let delay = self.backoff.next_delay();
        tracing::warn!(%error, service = self.service.name, ?delay, "requests cannot be read for now");
        Ok(tokio::time::Instant::now() + delay)
    }

    async fn on_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Record(record) => self.accept(record),
            SourceEvent::Assigned(partitions) => {
                tracing::debug!(service = self.service.name, ?partitions, "assigned");
            }
            SourceEvent::Revoked(partitions, ack) => {
                tracing::debug!(service = self.service.name, ?partitions, "revoked");
                self.give_back(|record| partitions.contains(&record.topic_partition()));
                self.revoking.push((partitions, ack));
                self.finish_revocations().await;
            }
            SourceEvent::CaughtUp => {}
        }
    }

    /// Takes a record in: to a pool, to the rejected topic, or held until a pool serves.
    fn accept(&mut self, record: Record) {
        let received = Instant::now();
        match self.prepare(&record, received) {
            Ok(None) => self.held = Some(record),
            Ok(Some((pool, job))) => {
                self.track(&record);
                self.offer(pool, job);
            }
            Err((deadline_ms, fault)) => {
                self.track(&record);
                self.write(Finished { record, deadline_ms, outcome: Err(fault) });
            }
        }
    }

    fn is_background(&self) -> bool {
        matches!(self.options.intake, Intake::Background { .. })
    }

    /// Class and deadline of a record: of the intake, or as its headers say.
    fn terms(&self, record: &Record, slo_ms: f64) -> Result<(Class, EpochMs), Fault> {
        let class = if self.is_background() { Class::Batch } else { class(record)? };
        if self.is_background() && record.headers.get(DEADLINE_MS).is_none() {
            return Ok((class, NO_DEADLINE_MS));
        }
        Ok((class, deadline_ms(record, class, slo_ms)?))
    }

    fn track(&mut self, record: &Record) {
        self.tracker.track(&record.topic_partition(), record.offset);
        if self.is_background() {
            return;
        }
        self.service.stats(Stats::arrived);
        self.service.metrics.requests.get_or_create(&self.service.label()).inc();
    }

    /// The pool and the job for a record; `None` while no pool serves. Faults come with the deadline as far as known.
    fn prepare(&self, record: &Record, received: Instant) -> Result<Option<Offer>, (EpochMs, Fault)> {
        let unknown = |fault| (record.timestamp_ms, fault);
        let asked = version(record).map_err(unknown)?;
        let Some(route) = self.service.route(asked).map_err(unknown)? else { return Ok(None) };
        let (class, deadline_ms) = self.terms(record, route.slo_ms).map_err(unknown)?;
        let known = |fault| (deadline_ms, fault);
        let now_ms = self.service.clock.now_ms();
        if deadline_ms < now_ms {
            let detail = format!("deadline-ms: passed {} ms ago", now_ms - deadline_ms);
            return Err(known(Fault::new(Reason::DeadlinePast, detail)));
        }
        let request = prepare(record, route.pool.signature(), self.options.max_rows).map_err(known)?;
        let rows = u32::try_from(request.rows.len()).unwrap_or(u32::MAX);
        // Background work is no load to scale for.
        if class != Class::Batch {
            self.service.stats(|stats| stats.offered(now_ms, rows));
        }
        let job = Box::new(Job {
            record: record.clone(),
            request,
            class,
            order: order_key(record),
            deadline_ms,
            received,
            member: self.options.member,
            reply: Reply::Member(self.finished.clone()),
        });
        Ok(Some((route.pool, job)))
    }

    fn offer(&mut self, pool: Pool, job: Accepted) {
        let bytes = size(&job.record);
        let refused = match pool.push(job) {
            Ok(()) => {
                self.in_pools_bytes += bytes;
                return;
            }
            Err(NotTaken::Refused(refusal)) => refusal,
            // Another version took over between routing and pushing: the record goes through it all again. Its offset
            // is tracked already, and tracking it twice changes nothing.
            Err(NotTaken::Retired(job)) => return self.again(job.record),
        };
        let Job { record, deadline_ms, .. } = *refused.item;
        let fault = Fault { reason: refused.reason, detail: refused.detail };
        self.write(Finished { record, deadline_ms, outcome: Err(fault) });
    }

    fn again(&mut self, record: Record) {
        let bytes = size(&record);
        match self.prepare(&record, Instant::now()) {
            Ok(Some((pool, job))) => match pool.push(job) {
                Ok(()) => self.in_pools_bytes += bytes,
                Err(NotTaken::Refused(refused)) => {
                    let fault = Fault { reason: refused.reason, detail: refused.detail };
                    self.write(Finished { record, deadline_ms: refused.item.deadline_ms, outcome: Err(fault) });
                }
                Err(NotTaken::Retired(job)) => self.unserved(job.record),
            },
            Ok(None) => self.unserved(record),
            Err((deadline_ms, fault)) => self.write(Finished { record, deadline_ms, outcome: Err(fault) }),
        }
    }

    /// A tracked record that no pool takes any more.
    fn unserved(&mut self, record: Record) {
        let detail = format!("no instance of service {} serves on this node any more", self.service.name);
        let deadline_ms = record.timestamp_ms;
        self.write(Finished { record, deadline_ms, outcome: Err(Fault::new(Reason::ShuttingDown, detail)) });
    }

    /// Tries the record again that came when no pool served.
    fn serve_held(&mut self) {
        if let Some(record) = self.held.take() {
            self.accept(record);
        }
    }

    /// Offers again what the queue had no room for.
    fn offer_deferred(&mut self) {
        self.deferred_until = None;
        for record in std::mem::take(&mut self.deferred) {
            self.again(record);
        }
    }

    /// Takes waiting jobs of this member out of the pools; their offsets stay uncommitted.
    fn give_back(&mut self, which: impl Fn(&Record) -> bool) {
        let pools = self.service.routing.read().unwrap_or_else(PoisonError::into_inner).all();
        let own = |job: &Job| job.member == self.options.member && which(&job.record);
        let given: Vec<Accepted> = pools.iter().flat_map(|pool| pool.give_back(own)).collect();
        let (deferred, kept) = std::mem::take(&mut self.deferred).into_iter().partition(|record| which(record));
        self.deferred = kept;
        let deferred: Vec<Record> = deferred;
        if given.is_empty() && deferred.is_empty() {
            return;
        }
        let label = self.service.label();
        self.service.metrics.given_back.get_or_create(&label).inc_by((given.len() + deferred.len()) as u64);
        for record in deferred {
            *self.given_back.entry(record.topic_partition()).or_default() += 1;
        }
        for job in given {
            self.in_pools_bytes -= size(&job.record);
            *self.given_back.entry(job.record.topic_partition()).or_default() += 1;
        }
    }

    /// Accepted, not finished, not given back.
    fn in_flight(&self) -> usize {
        self.tracker.in_flight() - self.given_back.values().sum::<usize>()
    }

    fn in_flight_of(&self, partition: &TopicPartition) -> usize {
        self.tracker.in_flight_of(partition) - self.given_back.get(partition).copied().unwrap_or(0)
    }

    /// Starts writing the record of a finished job.
    fn write(&mut self, mut done: Finished) {
        if let Intake::Background { scores_topic } = &self.options.intake {
            match &mut done.outcome {
                Ok(out) => out.topic.clone_from(scores_topic),
                // More urgent requests fill the queue: it has time.
                Err(fault) if fault.reason == Reason::Overloaded => {
                    self.deferred.push(done.record);
                    self.deferred_until.get_or_insert_with(|| tokio::time::Instant::now() + DEFER);
                    return;
                }
                Err(_) => {}
            }
        }
        if self.exactly_once.is_some() {
            return self.keep(done);
        }
        let Finished { record, deadline_ms, outcome } = done;
        let writer = Writer {
            sink: self.sink.clone(),
            rejected_topic: self.options.rejected_topic.clone(),
            retries: self.service.metrics.retries.clone(),
        };
        self.writes.push(Box::pin(writer.write(record, deadline_ms, outcome)));
    }

    /// A record has its delivery report, or never will.
    fn settle(&mut self, written: Written) -> Result<(), Error> {
        if let Err(error) = written.outcome {
            return Err(Error::port(format!("writing an answer of service {}", self.service.name), error));
        }
        self.tracker.complete(&written.partition, written.offset);
        self.count(&written);
        Ok(())
    }

    /// An answer is there for its reader.
    fn count(&self, written: &Written) {
        let now_ms = self.service.clock.now_ms();
        let service = self.service.name.clone();
        match written.rejected {
            None if self.is_background() => {
                self.service.metrics.background.get_or_create(&self.service.label()).inc();
            }
            Some(reason) => {
                if !self.is_background() {
                    self.service.stats(Stats::rejected);
                }
                let label = ReasonLabel { service, reason: reason.as_str() };
                self.service.metrics.rejected.get_or_create(&label).inc();
            }
            None => {
                let latency_ms = (now_ms - written.timestamp_ms).max(0) as f64;
                let in_slo = now_ms <= written.deadline_ms;
                if written.class == Class::Batch {
                    self.service.stats(|stats| stats.answered_batch(in_slo));
                } else {
                    self.service.stats(|stats| stats.answered(now_ms, latency_ms, in_slo));
                    let label = self.service.label();
                    self.service.metrics.latency_seconds.get_or_create(&label).observe(latency_ms / 1e3);
                }
                let label = AnswerLabel { service, in_time: if in_slo { "true" } else { "false" } };
                self.service.metrics.answered.get_or_create(&label).inc();
            }
        }
    }

    /// True when nothing of the partition runs, and what can be committed is.
    fn is_done_with(&self, partition: &TopicPartition) -> bool {
        let committed = self.exactly_once.as_ref().is_none_or(|e| e.is_settled_of(partition));
        self.in_flight_of(partition) == 0 && committed
    }

    /// Acknowledges revocations whose running requests are finished.
    async fn finish_revocations(&mut self) {
        self.begin_transaction();
        let (wait, done): (Vec<_>, Vec<_>) = std::mem::take(&mut self.revoking)
            .into_iter()
            .partition(|(partitions, _)| partitions.iter().any(|tp| !self.is_done_with(tp)));
        self.revoking = wait;
        if done.is_empty() {
            return;
        }
        self.commit().await;
        for (partitions, ack) in done {
            for tp in &partitions {
                self.tracker.forget(tp);
                if let Some(exactly_once) = &mut self.exactly_once {
                    exactly_once.forget(tp);
                }
                self.given_back.remove(tp);
            }
            ack.done();
        }
    }

    /// Commits what moved. A failure is logged and made up for by the next commit, at the latest by reading again.
    async fn commit(&mut self) {
        if self.exactly_once.is_some() {
            return;
        }
        let offsets = self.tracker.take_committable();
        if offsets.is_empty() {
            return;
        }
        if let Err(error) = self.source.commit(&offsets).await {
            tracing::warn!(%error, service = self.service.name, "offsets cannot be committed for now");
        }
    }
}

/// Resolves when a transaction ends; never without transactions.
async fn ended(exactly_once: &mut Option<exactly_once::ExactlyOnce>) -> Option<exactly_once::Outcome> {
    match exactly_once {
        Some(exactly_once) => exactly_once.ended().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
