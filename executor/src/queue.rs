//! The deadline-ordered queue of a service, with admission, shedding and batching. Pure.
//!
//! Purpose: decide which request is served next, which are refused and when. Time is an argument.
//!
//! Invariants:
//! - Every request that was pushed leaves exactly once: refused by [`Queue::push`], taken, shed, or removed.
//! - Never more than `capacity` requests wait; one more is refused as [`Reason::Overloaded`].
//! - A higher class goes first; within a class requests are taken in the order of their deadlines, first come first
//!   served among equal ones. A batch holds one class, so a lower class delays a higher one by one inference at most.
//! - A full queue makes room for a higher class: the last request of the lowest class is displaced, as overloaded.
//! - Of the requests with one order key at most one is with a worker, and they go in the order in which they came; the
//!   next is let go by [`Queue::finished`].
//! - A request is refused early, while its sender can still do something else, when the rows ahead of it make its
//!   deadline impossible; never when a worker is idle, because then trying costs nobody anything.
//! - A batch holds at most `max_batch` rows (a single larger request is a batch of its own), and is not grown past
//!   what the deadline of its most urgent request allows.
//!
//! Left out: threads (`pool`), and where service times come from (the plan first, then what was measured).

use schemas::EpochMs;
use schemas::headers::Reason;
use std::collections::{BTreeMap, VecDeque};

mod line;
#[cfg(test)]
mod tests;

use line::Lines;

/// Fixed bounds of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Requests that may wait.
    pub capacity: usize,
    /// Rows of a batch that pay, at least 1.
    pub max_batch: u32,
    /// How long a batch that is not full waits for more, from the arrival of its oldest request; 0 takes what is there.
    pub window_ms: i64,
}

/// What an inference takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServiceTime {
    /// Mean time of a row inside full batches: how fast one worker works off a queue, milliseconds.
    pub per_row_ms: f64,
    /// Time of one batch at its 95th percentile, milliseconds.
    pub batch_p95_ms: f64,
}

impl ServiceTime {
    /// What a plan says, until enough has been measured ([`crate::stats::Stats::service_time`]).
    pub fn planned(service_p95_ms: f64, max_batch: u32) -> Self {
        ServiceTime { per_row_ms: service_p95_ms / f64::from(max_batch.max(1)), batch_p95_ms: service_p95_ms }
    }
}

/// Priority class of a request; the first goes first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// Before everything else.
    High,
    /// What asks for nothing.
    #[default]
    Normal,
    /// Background work: only where nothing else waits.
    Batch,
}

impl Class {
    /// Classes there are.
    const COUNT: usize = 3;
    /// In the order in which they go.
    const ALL: [Class; Class::COUNT] = [Class::High, Class::Normal, Class::Batch];
}

/// A request as the queue sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// Priority class.
    pub class: Class,
    /// Requests of an equal key are served one after the other, in the order in which they came.
    pub order: Option<u64>,
    /// When its answer stops being useful.
    pub deadline_ms: EpochMs,
    /// Rows of the model that it needs, at least 1.
    pub rows: u32,
    /// When it was queued; set by [`Queue::push`].
    pub queued_ms: EpochMs,
    /// The request itself.
    pub item: T,
}

/// A request that will not be served, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal<T> {
    /// Reason for the header.
    pub reason: Reason,
    /// What exactly, for a person.
    pub detail: String,
    /// The request itself.
    pub item: T,
}

/// Who works on the queue at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// Workers there are.
    pub total: u32,
    /// Of those, running a batch.
    pub busy: u32,
    /// Rows in those batches.
    pub busy_rows: u32,
}

/// What [`Queue::take`] gives a worker.
#[derive(Debug, PartialEq, Eq)]
pub struct Taken<T> {
    /// To be run as one batch; empty when there is nothing to do yet.
    pub batch: Vec<Entry<T>>,
    /// Given up.
    pub shed: Vec<Refusal<T>>,
    /// When to ask again, if requests wait for their batch to fill.
    pub ask_again_ms: Option<EpochMs>,
}

/// Place of a request that may be taken: class, deadline, order of arrival.
type Place = (Class, EpochMs, u64);

/// The queue.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    service_time: ServiceTime,
    /// What may be taken.
    entries: Lines<T>,
    /// What waits behind another request of its order key. A lane is there while one of its requests is in `entries` or
    /// with a worker.
    lanes: BTreeMap<u64, VecDeque<Entry<T>>>,
    /// Requests in lanes.
    behind: usize,
    /// Rows that wait, by class; those in lanes too.
    rows: [u64; Class::COUNT],
    /// Given up for a higher class, told by the next [`Queue::take`].
    displaced: Vec<Refusal<T>>,
    sequence: u64,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(limits: Limits, service_time: ServiceTime) -> Self {
        let limits = Limits { max_batch: limits.max_batch.max(1), ..limits };
        Queue {
            limits,
            service_time,
            entries: Lines::new(),
            lanes: BTreeMap::new(),
            behind: 0,
            rows: [0; Class::COUNT],
            displaced: Vec::new(),
            sequence: 0,
        }
    }

    /// Changes the bounds; requests that already wait stay.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = Limits { max_batch: limits.max_batch.max(1), ..limits };
    }

    /// Changes what inferences are expected to take.
    pub fn set_service_time(&mut self, service_time: ServiceTime) {
        self.service_time = service_time;
    }

    /// What inferences are expected to take.
    pub fn service_time(&self) -> ServiceTime {
        self.service_time
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.entries.len() + self.behind
    }

    /// True when none waits, and none is left to be told as displaced.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.displaced.is_empty()
    }

    /// Rows that wait.
    pub fn rows(&self) -> u64 {
        self.rows.iter().sum()
    }

    /// Rows of background work that wait.
    pub fn background_rows(&self) -> u64 {
        self.rows[Class::Batch as usize]
    }

    /// How long the oldest request has waited, milliseconds; 0 when none waits. Background work does not count.
    pub fn age_ms(&self, now_ms: EpochMs) -> i64 {
        let waiting = self.entries.iter().chain(self.lanes.values().flatten()).filter(|e| e.class != Class::Batch);
        waiting.map(|e| now_ms - e.queued_ms).max().unwrap_or(0).max(0)
    }

    /// Time until what waits now would be worked off, milliseconds; background work, which yields, does not count.
    pub fn backlog_ms(&self, workers: Workers) -> f64 {
        self.wait_ms(self.rows() - self.rows[Class::Batch as usize], workers)
    }

    /// Takes a request in, or refuses it.
    pub fn push(&mut self, now_ms: EpochMs, entry: Entry<T>, workers: Workers) -> Result<(), Refusal<T>> {
        if let Some((reason, detail)) = self.objection(now_ms, &entry, workers) {
            return Err(Refusal { reason, detail, item: entry.item });
        }
        if self.len() >= self.limits.capacity {
            self.displace_last();
        }
        self.rows[entry.class as usize] += u64::from(entry.rows);
        let entry = Entry { queued_ms: now_ms, ..entry };
        match entry.order.and_then(|order| self.lanes.get_mut(&order)) {
            Some(lane) => {
                lane.push_back(entry);
                self.behind += 1;
            }
            None => {
                if let Some(order) = entry.order {
                    self.lanes.insert(order, VecDeque::new());
                }
                self.insert(entry);
            }
        }
        Ok(())
    }

    /// Puts a request back that was taken and did not run: it is not admitted again, and those behind it in its order
    /// stay behind. [`Queue::finished`] is not to be called for it.
    pub fn put_back(&mut self, entry: Entry<T>) {
        self.rows[entry.class as usize] += u64::from(entry.rows);
        self.insert(entry);
    }

    fn insert(&mut self, entry: Entry<T>) {
        self.entries.insert(self.sequence, entry);
        self.sequence += 1;
    }

    fn objection(&self, now_ms: EpochMs, entry: &Entry<T>, workers: Workers) -> Option<(Reason, String)> {
        // A request without a millisecond left cannot be answered in time.
        if entry.deadline_ms <= now_ms {
            return Some((Reason::DeadlinePast, past(now_ms, entry.deadline_ms)));
        }
        if self.len() >= self.limits.capacity && !self.can_displace(entry.class) {
            return Some((Reason::Overloaded, format!("{} requests wait, the queue is full", self.len())));
        }
        if self.entries.is_empty() && workers.busy < workers.total {
            return None;
        }
        let ahead = self.rows_until(entry.class, entry.deadline_ms);
        let own_ms = self.service_time.batch_p95_ms.max(f64::from(entry.rows) * self.service_time.per_row_ms);
        let over_ms = now_ms as f64 + self.wait_ms(ahead, workers) + own_ms - entry.deadline_ms as f64;
        (over_ms > 0.0).then(|| {
            let detail = format!(
                "would be {over_ms:.0} ms late: {ahead} rows ahead, {} running, {} workers",
                workers.busy_rows, workers.total
            );
            (Reason::WouldMissDeadline, detail)
        })
    }

    /// True when the last request that may be taken is of a lower class.
    fn can_displace(&self, class: Class) -> bool {
        self.entries.last_class().is_some_and(|last| last > class)
    }

    fn displace_last(&mut self) {
        let Some(last) = self.entries.pop_last() else { return };
        self.left(&last);
        let detail = "the queue is full and a request of a higher class came".to_owned();
        self.displaced.push(Refusal { reason: Reason::Overloaded, detail, item: last.item });
    }

    /// An entry has left `entries` without going to a worker.
    fn left(&mut self, entry: &Entry<T>) {
        self.rows[entry.class as usize] -= u64::from(entry.rows);
        self.release(entry.order);
    }

    /// Lets the next request of an order key go, if there is one.
    fn release(&mut self, order: Option<u64>) {
        let Some(order) = order else { return };
        let next = self.lanes.get_mut(&order).and_then(VecDeque::pop_front);
        match next {
            Some(entry) => {
                self.behind -= 1;
                self.insert(entry);
            }
            None => {
                self.lanes.remove(&order);
            }
        }
    }

    /// A worker is done with a request of this order key.
    pub fn finished(&mut self, order: Option<u64>) {
        self.release(order);
    }

    /// Rows that go before a new request of this class and deadline; those in lanes count with their class.
    fn rows_until(&self, class: Class, deadline_ms: EpochMs) -> u64 {
        let higher: u64 = self.rows[..class as usize].iter().sum();
        match self.entries.last_deadline_ms(class) {
            Some(last) if last > deadline_ms => higher + self.entries.rows_until(class, deadline_ms),
            _ => higher + self.rows[class as usize],
        }
    }

    /// Time to work `rows` off after what runs now, of which half is left on average.
    fn wait_ms(&self, rows: u64, workers: Workers) -> f64 {
        (rows as f64 + f64::from(workers.busy_rows) / 2.0) * self.service_time.per_row_ms
            / f64::from(workers.total.max(1))
    }

    /// The next batch for a worker that is free, and what had to be given up on the way.
    pub fn take(&mut self, now_ms: EpochMs) -> Taken<T> {
        let mut taken = Taken { batch: Vec::new(), shed: std::mem::take(&mut self.displaced), ask_again_ms: None };
        // What is shed may let a request of its order key go that is late, too, and of any class.
        let mut before = usize::MAX;
        while before != taken.shed.len() {
            before = taken.shed.len();
            for class in Class::ALL {
                self.shed_hopeless(class, now_ms, &mut taken.shed);
            }
        }
        if let Some(open_until_ms) = self.open_until_ms()
            && now_ms < open_until_ms
        {
            taken.ask_again_ms = Some(open_until_ms);
            return taken;
        }
        let mut rows = 0;
        let mut urgent = EpochMs::MAX;
        while let Some(first) = self.entries.first() {
            let (class, with) = (first.class, rows + first.rows);
            urgent = urgent.min(first.deadline_ms);
            let in_time = now_ms as f64 + f64::from(with) * self.service_time.per_row_ms <= urgent as f64;
            let same_class = taken.batch.first().is_none_or(|head: &Entry<T>| head.class == class);
            if !taken.batch.is_empty() && (with > self.limits.max_batch || !in_time || !same_class) {
                break;
            }
            let Some(entry) = self.entries.pop_first_of(class) else { break };
            rows = with;
            self.rows[entry.class as usize] -= u64::from(entry.rows);
            taken.batch.push(entry);
        }
        taken
    }

    /// As [`Queue::take`], for a worker that is there for background work alone: nothing while anything else waits.
    pub fn take_background(&mut self, now_ms: EpochMs) -> Taken<T> {
        match self.entries.first() {
            Some(first) if first.class == Class::Batch => self.take(now_ms),
            _ => Taken { batch: Vec::new(), shed: Vec::new(), ask_again_ms: None },
        }
    }

    /// Gives up the most urgent requests of a class while their deadline is past, or out of reach and others could use
    /// the time.
    fn shed_hopeless(&mut self, class: Class, now_ms: EpochMs, shed: &mut Vec<Refusal<T>>) {
        while let Some(first) = self.entries.first_of(class) {
            let own_ms = f64::from(first.rows) * self.service_time.per_row_ms;
            let late = first.deadline_ms <= now_ms;
            let hopeless = self.entries.len() > 1 && now_ms as f64 + own_ms > first.deadline_ms as f64;
            let (reason, detail) = match (late, hopeless) {
                (true, _) => (Reason::DeadlinePast, past(now_ms, first.deadline_ms)),
                (false, true) => {
                    (Reason::WouldMissDeadline, format!("needs {own_ms:.1} ms, its deadline is nearer and others wait"))
                }
                (false, false) => return,
            };
            if let Some(entry) = self.entries.pop_first_of(class) {
                self.left(&entry);
                shed.push(Refusal { reason, detail, item: entry.item });
            }
        }
    }

    /// Until when the next batch waits to fill; `None` when it need not.
    fn open_until_ms(&self) -> Option<EpochMs> {
        let first = self.entries.first()?;
        if self.limits.window_ms <= 0 || self.rows[first.class as usize] >= u64::from(self.limits.max_batch) {
            return None;
        }
        let oldest_ms = self.entries.of_class(first.class).map(|e| e.queued_ms).min()?;
        let latest_start_ms = first.deadline_ms as f64 - self.service_time.batch_p95_ms;
        Some((oldest_ms + self.limits.window_ms).min(latest_start_ms.floor() as EpochMs))
    }

    /// Removes requests that `unwanted` names, in the order in which they would have been served.
    pub fn remove_where(&mut self, mut unwanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let mut removed: Vec<(Place, T)> = Vec::new();
        // First those behind, so that none of them takes the place of the one that is removed from before them.
        for lane in self.lanes.values_mut() {
            for _ in 0..lane.len() {
                let Some(entry) = lane.pop_front() else { break };
                if unwanted(&entry.item) {
                    self.behind -= 1;
                    self.rows[entry.class as usize] -= u64::from(entry.rows);
                    removed.push(((entry.class, entry.deadline_ms, u64::MAX), entry.item));
                } else {
                    lane.push_back(entry);
                }
            }
        }
        for (place, entry) in self.entries.extract(&mut unwanted) {
            self.left(&entry);
            removed.push((place, entry.item));
        }
        let displaced = std::mem::take(&mut self.displaced);
        for refusal in displaced {
            if unwanted(&refusal.item) {
                removed.push(((Class::Batch, EpochMs::MAX, u64::MAX), refusal.item));
            } else {
                self.displaced.push(refusal);
            }
        }
        removed.sort_by_key(|(place, _)| *place);
        removed.into_iter().map(|(_, item)| item).collect()
    }
}

fn past(now_ms: EpochMs, deadline_ms: EpochMs) -> String {
    format!("deadline-ms: passed {} ms ago", now_ms - deadline_ms)
}
