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

#[cfg(test)]
mod tests;

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
    entries: BTreeMap<Place, Entry<T>>,
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
            entries: BTreeMap::new(),
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
        let waiting = self.entries.values().chain(self.lanes.values().flatten()).filter(|e| e.class != Class::Batch);
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

    fn insert(&mut self, entry: Entry<T>) {
        let place = (entry.class, entry.deadline_ms, self.sequence);
        self.sequence += 1;
        self.entries.insert(place, entry);
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
        self.entries.last_key_value().is_some_and(|((last, ..), _)| *last > class)
    }

    fn displace_last(&mut self) {
        let Some((_, last)) = self.entries.pop_last() else { return };
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
        let of_class = (class, EpochMs::MIN, 0)..=(class, EpochMs::MAX, u64::MAX);
        match self.entries.range(of_class).next_back() {
            Some(((_, last, _), _)) if *last > deadline_ms => {
                let earlier = (class, EpochMs::MIN, 0)..=(class, deadline_ms, u64::MAX);
                higher + self.entries.range(earlier).map(|(_, e)| u64::from(e.rows)).sum::<u64>()
            }
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
            for class in [Class::High, Class::Normal, Class::Batch] {
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
        while let Some(first) = self.entries.first_entry() {
            let with = rows + first.get().rows;
            urgent = urgent.min(first.get().deadline_ms);
            let in_time = now_ms as f64 + f64::from(with) * self.service_time.per_row_ms <= urgent as f64;
            let same_class = taken.batch.first().is_none_or(|head: &Entry<T>| head.class == first.get().class);
            if !taken.batch.is_empty() && (with > self.limits.max_batch || !in_time || !same_class) {
                break;
            }
            rows = with;
            let entry = first.remove();
            self.rows[entry.class as usize] -= u64::from(entry.rows);
            taken.batch.push(entry);
        }
        taken
    }

    /// As [`Queue::take`], for a worker that is there for background work alone: nothing while anything else waits.
    pub fn take_background(&mut self, now_ms: EpochMs) -> Taken<T> {
        match self.entries.first_key_value() {
            Some(((Class::Batch, ..), _)) => self.take(now_ms),
            _ => Taken { batch: Vec::new(), shed: Vec::new(), ask_again_ms: None },
        }
    }

    /// Gives up the most urgent requests of a class while their deadline is past, or out of reach and others could use
    /// the time.
    fn shed_hopeless(&mut self, class: Class, now_ms: EpochMs, shed: &mut Vec<Refusal<T>>) {
        let of_class = (class, EpochMs::MIN, 0)..=(class, EpochMs::MAX, u64::MAX);
        while let Some((place, first)) = self.entries.range(of_class.clone()).next() {
            let place = *place;
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
            if let Some(entry) = self.entries.remove(&place) {
                self.left(&entry);
                shed.push(Refusal { reason, detail, item: entry.item });
            }
        }
    }

    /// Until when the next batch waits to fill; `None` when it need not.
    fn open_until_ms(&self) -> Option<EpochMs> {
        let ((class, ..), first) = self.entries.first_key_value()?;
        if self.limits.window_ms <= 0 || self.rows[*class as usize] >= u64::from(self.limits.max_batch) {
            return None;
        }
        let of_class = (*class, EpochMs::MIN, 0)..=(*class, EpochMs::MAX, u64::MAX);
        let oldest_ms = self.entries.range(of_class).map(|(_, e)| e.queued_ms).min()?;
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
        let places: Vec<Place> = self.entries.iter().filter(|(_, e)| unwanted(&e.item)).map(|(p, _)| *p).collect();
        for place in places {
            if let Some(entry) = self.entries.remove(&place) {
                self.left(&entry);
                removed.push((place, entry.item));
            }
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
