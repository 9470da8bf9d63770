//! Worker threads of one instance around its queue.
//!
//! Purpose: one thread a worker, each with its own state on the shared model, all fed from one [`Queue`] under a mutex
//! and a condition variable.
//!
//! Invariants:
//! - Every job that [`Pool::push`] took comes back exactly once: as a [`Finished`] on its member's channel, or from
//!   [`Pool::give_back`].
//! - A pool that was retired takes nothing; whether it is idle and that it is retired are decided under one lock, so no
//!   job can slip in between.
//! - Where the engine itself fails ([`crate::backend::Worker::broken`]) the batch goes back into the queue, the worker ends, and the
//!   node is told.
//! - A row that makes the model fail or panic costs only its own request: the others of its batch are run again alone.
//!
//! The channel of finished jobs is unbounded in type and bounded by what its member lets be in flight.

mod cores;
mod work;

pub(crate) use cores::Cores;

use crate::backend::Model;
use crate::direct::DirectReply;
use crate::metrics::Metrics;
use crate::queue::{Class, Entry, Limits, Queue, Refusal, ServiceTime, Workers};
use crate::request::{Answerer, Fault, Prepared};
use crate::stats::Stats;
use runtime::{OutRecord, Record, SharedClock};
use schemas::EpochMs;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use work::{rows_of, work};

/// An accepted request.
#[derive(Debug)]
pub(crate) struct Job {
    /// As it was read.
    pub(crate) record: Record,
    /// Validated.
    pub(crate) request: Prepared,
    /// Priority class.
    pub(crate) class: Class,
    /// Key of the requests that it is to be kept in order with.
    pub(crate) order: Option<u64>,
    /// Absolute.
    pub(crate) deadline_ms: EpochMs,
    /// When the node got it.
    pub(crate) received: Instant,
    /// Group member that read it.
    pub(crate) member: u64,
    /// Where it goes when it is finished.
    pub(crate) reply: Reply,
}

/// Who is told when a job is finished.
#[derive(Debug)]
pub(crate) enum Reply {
    /// The group member that read it.
    Member(mpsc::UnboundedSender<Finished>),
    /// Whoever waits at the node's door.
    Direct(Box<DirectReply>),
}

/// A job on the heap: it moves between member, queue and batch.
pub(crate) type Accepted = Box<Job>;

/// A job that is done with.
#[derive(Debug)]
pub(crate) struct Finished {
    /// As it was read.
    pub(crate) record: Record,
    /// Absolute.
    pub(crate) deadline_ms: EpochMs,
    /// The result to be written, or why there is none.
    pub(crate) outcome: Result<OutRecord, Fault>,
}

impl Job {
    fn finish(self: Box<Self>, outcome: Result<OutRecord, Fault>) {
        let Job { record, deadline_ms, reply, .. } = *self;
        let finished = Finished { record, deadline_ms, outcome };
        match reply {
            // Without a receiver the member is gone and its offsets are uncommitted: the next owner serves the request.
            Reply::Member(member) => drop(member.send(finished)),
            Reply::Direct(direct) => direct.finish(finished),
        }
    }
}

/// Why a pool did not take a job.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// Refused for good.
    Refused(Refusal<Accepted>),
    /// The pool is retired: look for another one.
    Retired(Accepted),
}

/// What a pool tells its node.
#[derive(Debug)]
pub(crate) enum PoolEvent {
    /// A worker could not be made, or its engine failed; what it had waits in the queue.
    Broke(String),
    /// The pool is draining and has nothing left.
    Idle,
}

/// What the workers of a pool share besides the queue.
pub(crate) struct Parts {
    /// The model.
    pub(crate) model: Arc<dyn Model>,
    /// Who answers.
    pub(crate) answerer: Answerer,
    /// Node id.
    pub(crate) node: String,
    /// Backend.
    pub(crate) backend: String,
    /// The clock.
    pub(crate) clock: SharedClock,
    /// Counters of the service.
    pub(crate) stats: Arc<Mutex<Stats>>,
    /// Metrics.
    pub(crate) metrics: Metrics,
    /// Cores of the node.
    pub(crate) cores: Arc<Cores>,
    /// The node's ear.
    pub(crate) events: Box<dyn Fn(PoolEvent) + Send + Sync>,
}

struct State {
    queue: Queue<Accepted>,
    /// Workers that there should be.
    target: u32,
    /// Worker threads that there are.
    alive: u32,
    busy: u32,
    busy_rows: u32,
    /// Workers that are there for background work alone.
    lent: Lent,
    draining: bool,
    retired: bool,
}

/// Workers that idle permits are lent to; no part of what the queue counts on.
#[derive(Debug, Default)]
struct Lent {
    target: u32,
    alive: u32,
    busy: u32,
    busy_rows: u32,
}

/// What a worker thread is there for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    /// All requests.
    Everything,
    /// Background work, on a permit that is lent.
    Background,
}

impl State {
    fn alive(&mut self, duty: Duty) -> &mut u32 {
        match duty {
            Duty::Everything => &mut self.alive,
            Duty::Background => &mut self.lent.alive,
        }
    }

    /// True when a worker of this duty is to end.
    fn is_surplus(&self, duty: Duty) -> bool {
        let surplus = match duty {
            Duty::Everything => self.alive > self.target,
            Duty::Background => self.lent.alive > self.lent.target,
        };
        surplus || (self.retired && self.queue.is_empty())
    }

    /// A worker has begun (`true`) or ended a batch of so many rows.
    fn set_busy(&mut self, duty: Duty, begins: bool, rows: u32) {
        let (busy, busy_rows) = match duty {
            Duty::Everything => (&mut self.busy, &mut self.busy_rows),
            Duty::Background => (&mut self.lent.busy, &mut self.lent.busy_rows),
        };
        if begins {
            *busy += 1;
            *busy_rows += rows;
        } else {
            *busy -= 1;
            *busy_rows -= rows;
        }
    }

    fn workers(&self) -> Workers {
        Workers { total: self.target, busy: self.busy, busy_rows: self.busy_rows }
    }

    fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.busy == 0 && self.lent.busy == 0
    }
}

struct Shared {
    parts: Parts,
    state: Mutex<State>,
    wake: Condvar,
    /// Wakes workers that are lent; they cannot take what [`Shared::wake`] is for.
    wake_lent: Condvar,
}

/// Workers of one instance and their queue.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.0.parts.answerer.version).finish()
    }
}

/// What can be seen of a pool.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Look {
    /// Requests that wait.
    pub(crate) depth: usize,
    /// Age of the oldest, milliseconds.
    pub(crate) age_ms: i64,
    /// Work that waits, for one worker, milliseconds.
    pub(crate) backlog_ms: f64,
    /// Workers that there should be.
    pub(crate) workers: u32,
    /// Expected service times.
    pub(crate) service_time: ServiceTime,
    /// Rows of background work that wait, or that lent workers run.
    pub(crate) background_rows: u64,
    /// Workers lent to background work.
    pub(crate) lent: u32,
}

impl Pool {
    /// A pool without workers; [`Pool::set_workers`] starts them.
    pub(crate) fn new(parts: Parts, limits: Limits, service_time: ServiceTime) -> Self {
        let state = State {
            queue: Queue::new(limits, service_time),
            target: 0,
            alive: 0,
            busy: 0,
            busy_rows: 0,
            lent: Lent::default(),
            draining: false,
            retired: false,
        };
        Pool(Arc::new(Shared { parts, state: Mutex::new(state), wake: Condvar::new(), wake_lent: Condvar::new() }))
    }

    /// True when both are the same pool.
    pub(crate) fn is(&self, other: &Pool) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The model's signature.
    pub(crate) fn signature(&self) -> &crate::backend::Signature {
        self.0.parts.model.signature()
    }

    /// Model version.
    pub(crate) fn version(&self) -> &str {
        &self.0.parts.answerer.version
    }

    /// Takes a job in, or says why not.
    pub(crate) fn push(&self, job: Accepted) -> Result<(), NotTaken> {
        let now_ms = self.0.parts.clock.now_ms();
        let rows = u32::try_from(job.request.rows.len()).unwrap_or(u32::MAX);
        let mut state = self.0.lock();
        if state.retired {
            return Err(NotTaken::Retired(job));
        }
        let workers = state.workers();
        let (class, order, deadline_ms) = (job.class, job.order, job.deadline_ms);
        let entry = Entry { class, order, deadline_ms, rows, queued_ms: now_ms, item: job };
        state.queue.push(now_ms, entry, workers).map_err(NotTaken::Refused)?;
        let lent = class == Class::Batch && state.lent.alive > 0;
        drop(state);
        self.0.wake.notify_one();
        if lent {
            self.0.wake_lent.notify_one();
        }
        Ok(())
    }

    /// Takes back what waits and has not begun, of the jobs that `which` names; nobody will be told of them.
    pub(crate) fn give_back(&self, which: impl Fn(&Job) -> bool) -> Vec<Accepted> {
        self.0.lock().queue.remove_where(|job| which(job))
    }

    /// Changes the number of workers: new threads start at once, surplus ones end after their batch.
    pub(crate) fn set_workers(&self, workers: u32) {
        let mut state = self.0.lock();
        state.target = workers;
        while state.alive < state.target && !state.retired {
            match self.spawn(Duty::Everything) {
                Ok(()) => state.alive += 1,
                Err(error) => {
                    // Fewer workers than wanted still serve; none at all is a broken pool.
                    tracing::error!(%error, "cannot start a worker thread");
                    if state.alive == 0 {
                        (self.0.parts.events)(PoolEvent::Broke(format!("cannot start a worker thread: {error}")));
                    }
                    break;
                }
            }
        }
        drop(state);
        self.0.wake.notify_all();
    }

    /// Changes the number of workers that are lent for background work alone; surplus ones end after their batch.
    pub(crate) fn lend(&self, workers: u32) {
        let mut state = self.0.lock();
        if state.lent.target == workers {
            return;
        }
        state.lent.target = workers;
        while state.lent.alive < workers && !state.retired {
            match self.spawn(Duty::Background) {
                Ok(()) => state.lent.alive += 1,
                Err(error) => {
                    tracing::warn!(%error, "cannot start a worker thread for background work");
                    break;
                }
            }
        }
        drop(state);
        self.0.wake_lent.notify_all();
    }

    fn spawn(&self, duty: Duty) -> std::io::Result<()> {
        let shared = self.0.clone();
        let name = format!("{}-worker", shared.parts.answerer.service);
        std::thread::Builder::new().name(name).spawn(move || work(&shared, duty)).map(drop)
    }

    /// Changes the bounds of the queue.
    pub(crate) fn set_limits(&self, limits: Limits) {
        self.0.lock().queue.set_limits(limits);
    }

    /// Changes what inferences are expected to take.
    pub(crate) fn set_service_time(&self, service_time: ServiceTime) {
        self.0.lock().queue.set_service_time(service_time);
    }

    /// What can be seen now.
    pub(crate) fn look(&self, now_ms: EpochMs) -> Look {
        let state = self.0.lock();
        let service_time = state.queue.service_time();
        let alone = Workers { total: 1, busy: 0, busy_rows: 0 };
        Look {
            depth: state.queue.len(),
            age_ms: state.queue.age_ms(now_ms),
            backlog_ms: state.queue.backlog_ms(alone),
            workers: state.target,
            service_time,
            background_rows: state.queue.background_rows() + u64::from(state.lent.busy_rows),
            lent: state.lent.target,
        }
    }

    /// Begins or ends telling the node when nothing is left.
    pub(crate) fn set_draining(&self, draining: bool) {
        self.0.lock().draining = draining;
    }

    /// Ends the pool if nothing waits or runs; true if it is retired now or was before.
    pub(crate) fn try_retire(&self) -> bool {
        let mut state = self.0.lock();
        if state.is_idle() {
            state.retired = true;
        }
        let retired = state.retired;
        drop(state);
        self.0.wake_all();
        retired
    }

    /// Ends the pool whatever it does: what waits is finished with `fault`, what runs is let finish.
    pub(crate) fn abandon(&self, fault: &Fault) {
        self.hand_over(|_| None, fault);
    }

    /// Ends the pool whatever it does: what waits goes to the pool that `heir` names, or is finished with `fault`; what
    /// runs is let finish.
    pub(crate) fn hand_over(&self, heir: impl Fn(&Job) -> Option<Pool>, fault: &Fault) {
        let mut state = self.0.lock();
        state.retired = true;
        let jobs = state.queue.remove_where(|_| true);
        drop(state);
        self.0.wake_all();
        for job in jobs {
            // Its rows were checked against this pool's model.
            let heir = heir(&job).filter(|pool| !pool.is(self) && pool.signature() == self.signature());
            let Some(heir) = heir else {
                job.finish(Err(fault.clone()));
                continue;
            };
            match heir.push(job) {
                Ok(()) => (),
                Err(NotTaken::Refused(refused)) => {
                    refused.item.finish(Err(Fault { reason: refused.reason, detail: refused.detail }));
                }
                Err(NotTaken::Retired(job)) => job.finish(Err(fault.clone())),
            }
        }
    }

    /// Finishes with `fault` what waits and came to the node's door: nobody else can take it.
    pub(crate) fn refuse_direct(&self, fault: &Fault) {
        for job in self.give_back(|job| matches!(job.reply, Reply::Direct(_))) {
            job.finish(Err(fault.clone()));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        self.wake.notify_all();
        self.wake_lent.notify_all();
    }

    fn waker(&self, duty: Duty) -> &Condvar {
        match duty {
            Duty::Everything => &self.wake,
            Duty::Background => &self.wake_lent,
        }
    }

    /// Waits for a batch; `None` when this worker is to end.
    fn next_batch(&self, duty: Duty) -> Option<Vec<Entry<Accepted>>> {
        let mut state = self.lock();
        loop {
            if state.is_surplus(duty) {
                *state.alive(duty) -= 1;
                drop(state);
                // The wake-up that ended this one may have been meant for a job.
                self.waker(duty).notify_one();
                return None;
            }
            let now_ms = self.parts.clock.now_ms();
            let taken = match duty {
                Duty::Everything => state.queue.take(now_ms),
                Duty::Background => state.queue.take_background(now_ms),
            };
            if !taken.batch.is_empty() {
                state.set_busy(duty, true, rows_of(&taken.batch));
            }
            if taken.shed.is_empty() && taken.batch.is_empty() {
                state = self.wait(state, duty, taken.ask_again_ms.map(|at| at - now_ms));
                continue;
            }
            let idle = state.draining && state.is_idle();
            // What was ahead of background work may be gone now.
            let lent = state.lent.alive > 0 && state.queue.background_rows() > 0;
            drop(state);
            if lent {
                self.wake_lent.notify_one();
            }
            for refusal in taken.shed {
                refusal.item.finish(Err(Fault { reason: refusal.reason, detail: refusal.detail }));
            }
            if idle {
                (self.parts.events)(PoolEvent::Idle);
            }
            if !taken.batch.is_empty() {
                return Some(taken.batch);
            }
            state = self.lock();
        }
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, duty: Duty, for_ms: Option<i64>) -> MutexGuard<'a, State> {
        let waker = self.waker(duty);
        match for_ms {
            None => waker.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(ms) => {
                let timeout = Duration::from_millis(ms.max(0).unsigned_abs());
                waker.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// A worker has ended its batch: `orders` are the order keys of the requests that are finished, `left` did not run.
    fn batch_done(&self, duty: Duty, rows: u32, orders: &[Option<u64>], left: Vec<Accepted>) {
        let now_ms = self.parts.clock.now_ms();
        let mut state = self.lock();
        state.set_busy(duty, false, rows);
        let returned = !left.is_empty();
        for job in left {
            let rows = u32::try_from(job.request.rows.len()).unwrap_or(u32::MAX);
            let (class, order, deadline_ms) = (job.class, job.order, job.deadline_ms);
            state.queue.put_back(Entry { class, order, deadline_ms, rows, queued_ms: now_ms, item: job });
        }
        if returned {
            self.wake_all();
        }
        for order in orders {
            state.queue.finished(*order);
        }
        let idle = state.draining && state.is_idle();
        drop(state);
        if idle {
            (self.parts.events)(PoolEvent::Idle);
        }
    }
}
