//! The deadline-ordered queue of a service, with admission, shedding and batching. Pure.
//!
//! Purpose: decide which request is served next, which are refused and when. Time is an argument.
//!
//! Invariants:
//! - Every request that was pushed leaves exactly once: refused by [`Queue::push`], taken, shed, or removed.
//! - Never more than `capacity` requests wait; one more is refused as [`Reason::Overloaded`].
//! - Requests are taken in the order of their deadlines, first come first served among equal ones.
//! - A request is refused early, while its sender can still do something else, when the rows ahead of it make its
//!   deadline impossible; never when a worker is idle, because then trying costs nobody anything.
//! - A batch holds at most `max_batch` rows (a single larger request is a batch of its own), and is not grown past
//!   what the deadline of its most urgent request allows.
//!
//! Left out: threads (`pool`), and where service times come from (the plan first, then what was measured).

use schemas::EpochMs;
use schemas::headers::Reason;
use std::collections::BTreeMap;

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

/// A request as the queue sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
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

/// The queue.
#[derive(Debug)]
pub struct Queue<T> {
    limits: Limits,
    service_time: ServiceTime,
    entries: BTreeMap<(EpochMs, u64), Entry<T>>,
    rows: u64,
    sequence: u64,
}

impl<T> Queue<T> {
    /// An empty queue.
    pub fn new(limits: Limits, service_time: ServiceTime) -> Self {
        let limits = Limits { max_batch: limits.max_batch.max(1), ..limits };
        Queue { limits, service_time, entries: BTreeMap::new(), rows: 0, sequence: 0 }
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
        self.entries.len()
    }

    /// True when none waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Rows that wait.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How long the oldest request has waited, milliseconds; 0 when none waits.
    pub fn age_ms(&self, now_ms: EpochMs) -> i64 {
        self.entries.values().map(|e| now_ms - e.queued_ms).max().unwrap_or(0).max(0)
    }

    /// Time until what waits now would be worked off, milliseconds.
    pub fn backlog_ms(&self, workers: Workers) -> f64 {
        self.wait_ms(self.rows, workers)
    }

    /// Takes a request in, or refuses it.
    pub fn push(&mut self, now_ms: EpochMs, entry: Entry<T>, workers: Workers) -> Result<(), Refusal<T>> {
        if let Some((reason, detail)) = self.objection(now_ms, &entry, workers) {
            return Err(Refusal { reason, detail, item: entry.item });
        }
        let key = (entry.deadline_ms, self.sequence);
        self.sequence += 1;
        self.rows += u64::from(entry.rows);
        self.entries.insert(key, Entry { queued_ms: now_ms, ..entry });
        Ok(())
    }

    fn objection(&self, now_ms: EpochMs, entry: &Entry<T>, workers: Workers) -> Option<(Reason, String)> {
        // A request without a millisecond left cannot be answered in time.
        if entry.deadline_ms <= now_ms {
            return Some((Reason::DeadlinePast, past(now_ms, entry.deadline_ms)));
        }
        if self.entries.len() >= self.limits.capacity {
            return Some((Reason::Overloaded, format!("{} requests wait, the queue is full", self.entries.len())));
        }
        if self.entries.is_empty() && workers.busy < workers.total {
            return None;
        }
        let ahead = self.rows_until(entry.deadline_ms);
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

    /// Rows that go before a new request of this deadline.
    fn rows_until(&self, deadline_ms: EpochMs) -> u64 {
        match self.entries.last_key_value() {
            Some(((last, _), _)) if *last <= deadline_ms => self.rows,
            _ => self.entries.range(..=(deadline_ms, u64::MAX)).map(|(_, e)| u64::from(e.rows)).sum(),
        }
    }

    /// Time to work `rows` off after what runs now, of which half is left on average.
    fn wait_ms(&self, rows: u64, workers: Workers) -> f64 {
        (rows as f64 + f64::from(workers.busy_rows) / 2.0) * self.service_time.per_row_ms
            / f64::from(workers.total.max(1))
    }

    /// The next batch for a worker that is free, and what had to be given up on the way.
    pub fn take(&mut self, now_ms: EpochMs) -> Taken<T> {
        let mut taken = Taken { batch: Vec::new(), shed: Vec::new(), ask_again_ms: None };
        self.shed_hopeless(now_ms, &mut taken.shed);
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
            if !taken.batch.is_empty() && (with > self.limits.max_batch || !in_time) {
                break;
            }
            rows = with;
            taken.batch.push(first.remove());
        }
        self.rows -= u64::from(rows);
        taken
    }

    /// Gives up the most urgent requests while their deadline is past, or out of reach and others could use the time.
    fn shed_hopeless(&mut self, now_ms: EpochMs, shed: &mut Vec<Refusal<T>>) {
        while let Some((_, first)) = self.entries.first_key_value() {
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
            if let Some((_, entry)) = self.entries.pop_first() {
                self.rows -= u64::from(entry.rows);
                shed.push(Refusal { reason, detail, item: entry.item });
            }
        }
    }

    /// Until when the next batch waits to fill; `None` when it need not.
    fn open_until_ms(&self) -> Option<EpochMs> {
        let (_, first) = self.entries.first_key_value()?;
        if self.limits.window_ms <= 0 || self.rows >= u64::from(self.limits.max_batch) {
            return None;
        }
        let oldest_ms = self.entries.values().map(|e| e.queued_ms).min()?;
        let latest_start_ms = first.deadline_ms as f64 - self.service_time.batch_p95_ms;
        Some((oldest_ms + self.limits.window_ms).min(latest_start_ms.floor() as EpochMs))
    }

    /// Removes requests that `unwanted` names, in the order of their deadlines.
    pub fn remove_where(&mut self, mut unwanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let keys: Vec<_> = self.entries.iter().filter(|(_, e)| unwanted(&e.item)).map(|(k, _)| *k).collect();
        let removed: Vec<Entry<T>> = keys.iter().filter_map(|key| self.entries.remove(key)).collect();
        self.rows -= removed.iter().map(|e| u64::from(e.rows)).sum::<u64>();
        removed.into_iter().map(|e| e.item).collect()
    }
}

fn past(now_ms: EpochMs, deadline_ms: EpochMs) -> String {
    format!("deadline-ms: passed {} ms ago", now_ms - deadline_ms)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const IDLE: Workers = Workers { total: 1, busy: 0, busy_rows: 0 };
    const BUSY: Workers = Workers { total: 1, busy: 1, busy_rows: 1 };

    fn queue(capacity: usize, max_batch: u32, window_ms: i64) -> Queue<u64> {
        let time = ServiceTime { per_row_ms: 10.0, batch_p95_ms: 12.0 };
        Queue::new(Limits { capacity, max_batch, window_ms }, time)
    }

    fn entry(item: u64, deadline_ms: EpochMs) -> Entry<u64> {
        Entry { deadline_ms, rows: 1, queued_ms: 0, item }
    }

    fn items(taken: &Taken<u64>) -> Vec<u64> {
        taken.batch.iter().map(|e| e.item).collect()
    }

    #[test]
    fn the_nearest_deadline_goes_first() {
        let mut q = queue(10, 1, 0);
        for (item, deadline) in [(1, 900), (2, 500), (3, 900), (4, 100)] {
            q.push(0, entry(item, deadline), BUSY).unwrap();
        }
        let order: Vec<u64> = std::iter::from_fn(|| items(&q.take(0)).pop()).collect();
        assert_eq!(order, [4, 2, 1, 3]);
    }

    #[test]
    fn each_refusal_has_its_reason() {
        let mut q = queue(2, 1, 0);
        assert_eq!(q.push(10, entry(1, 9), IDLE).unwrap_err().reason, Reason::DeadlinePast);
        assert_eq!(q.push(0, entry(2, 16), BUSY).unwrap_err().reason, Reason::WouldMissDeadline, "5 left + 12 own");
        q.push(0, entry(3, 17), BUSY).unwrap();
        q.push(0, entry(4, 100), BUSY).unwrap();
        assert_eq!(q.push(0, entry(5, 1000), BUSY).unwrap_err().reason, Reason::Overloaded);
    }

    #[test]
    fn an_idle_worker_tries_what_the_profile_calls_impossible() {
        let mut q = queue(2, 1, 0);
        q.push(0, entry(1, 1), IDLE).unwrap();
        assert_eq!(items(&q.take(0)), [1]);
    }

    #[test]
    fn only_rows_with_an_earlier_deadline_count_as_ahead() {
        let mut q = queue(100, 1, 0);
        for i in 0..10 {
            q.push(0, entry(i, 1000 + i as i64), BUSY).unwrap();
        }
        assert!(q.push(0, entry(50, 20), BUSY).is_ok(), "goes before all of them");
        assert_eq!(
            q.push(0, entry(51, 1009), Workers { busy_rows: 200, ..BUSY }).unwrap_err().reason,
            Reason::WouldMissDeadline
        );
        let four = Workers { total: 8, busy: 8, busy_rows: 200 };
        assert!(q.push(0, entry(51, 1009), four).is_ok(), "more workers work it off faster");
    }

    #[test]
    fn late_requests_are_shed_when_taken() {
        let mut q = queue(10, 4, 0);
        for (item, deadline) in [(1, 100), (2, 105), (3, 500)] {
            q.push(0, entry(item, deadline), BUSY).unwrap();
        }
        let taken = q.take(101);
        let reasons: Vec<_> = taken.shed.iter().map(|r| (r.item, r.reason)).collect();
        assert_eq!(reasons, [(1, Reason::DeadlinePast), (2, Reason::WouldMissDeadline)]);
        assert_eq!(items(&taken), [3]);
    }

    #[test]
    fn the_last_request_is_tried_even_if_it_may_be_late() {
        let mut q = queue(10, 4, 0);
        q.push(0, entry(1, 100), BUSY).unwrap();
        assert_eq!(items(&q.take(99)), [1]);
    }

    #[test]
    fn a_batch_closes_by_size_by_window_or_by_deadline() {
        let mut q = queue(10, 3, 50);
        q.push(0, entry(1, 1000), IDLE).unwrap();
        assert_eq!(q.take(1).ask_again_ms, Some(50));
        q.push(5, entry(2, 1000), IDLE).unwrap();
        assert!(q.take(49).batch.is_empty());
        assert_eq!(items(&q.take(50)), [1, 2], "window");
        for i in 3..6 {
            q.push(60, entry(i, 1000), IDLE).unwrap();
        }
        assert_eq!(items(&q.take(60)), [3, 4, 5], "size");
        q.push(100, entry(6, 130), IDLE).unwrap();
        assert_eq!(q.take(100).ask_again_ms, Some(118), "deadline less the time of a batch");
        assert_eq!(items(&q.take(118)), [6]);
    }

    #[test]
    fn a_batch_is_not_grown_past_its_most_urgent_deadline() {
        let mut q = queue(10, 8, 0);
        for i in 0..6 {
            q.push(0, entry(i, 35 + i as i64 * 100), Workers { busy: 0, ..BUSY }).unwrap();
        }
        assert_eq!(items(&q.take(0)), [0, 1, 2], "four rows would end at 40");
    }

    #[test]
    fn a_request_larger_than_a_batch_runs_alone() {
        let mut q = queue(10, 4, 0);
        q.push(0, Entry { rows: 9, ..entry(1, 1000) }, IDLE).unwrap();
        q.push(0, entry(2, 1000), IDLE).unwrap();
        assert_eq!(items(&q.take(0)), [1]);
        assert_eq!(items(&q.take(0)), [2]);
        assert_eq!(q.rows(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push { deadline_in: i64, rows: u32 },
        Take,
        Remove { modulo: u64 },
        Wait(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (-20i64..400, 1u32..6).prop_map(|(deadline_in, rows)| Step::Push { deadline_in, rows }),
            3 => Just(Step::Take),
            1 => (2u64..5).prop_map(|modulo| Step::Remove { modulo }),
            2 => (0i64..80).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn every_request_leaves_once_and_bounds_hold(
            steps in proptest::collection::vec(step(), 1..120),
            capacity in 1usize..12, max_batch in 1u32..9, window_ms in 0i64..60, total in 1u32..4, busy in 0u32..4,
        ) {
            let mut q = queue(capacity, max_batch, window_ms);
            let workers = Workers { total, busy: busy.min(total), busy_rows: busy.min(total) * 2 };
            let (mut now, mut next, mut inside) = (1000i64, 0u64, BTreeSet::new());
            let mut left = BTreeSet::new();
            for s in steps {
                match s {
                    Step::Push { deadline_in, rows } => {
                        next += 1;
                        match q.push(now, Entry { rows, ..entry(next, now + deadline_in) }, workers) {
                            Ok(()) => { inside.insert(next); }
                            Err(refusal) => {
                                prop_assert_eq!(refusal.item, next);
                                prop_assert!(left.insert(next));
                                prop_assert_eq!(refusal.reason == Reason::DeadlinePast, deadline_in <= 0);
                            }
                        }
                    }
                    Step::Take => {
                        let taken = q.take(now);
                        let rows: u32 = taken.batch.iter().map(|e| e.rows).sum();
                        prop_assert!(rows <= max_batch || taken.batch.len() == 1);
                        prop_assert!(taken.batch.windows(2).all(|w| w[0].deadline_ms <= w[1].deadline_ms));
                        prop_assert!(taken.batch.iter().all(|e| e.deadline_ms > now));
                        prop_assert!(taken.ask_again_ms.is_none_or(|at| at > now && !q.is_empty()));
                        prop_assert!(!taken.batch.is_empty() || taken.ask_again_ms.is_some() || q.is_empty(), "a free worker is not left without work");
                        for item in taken.batch.iter().map(|e| e.item).chain(taken.shed.iter().map(|r| r.item)) {
                            prop_assert!(inside.remove(&item) && left.insert(item));
                        }
                    }
                    Step::Remove { modulo } => {
                        for item in q.remove_where(|item| item % modulo == 0) {
                            prop_assert!(inside.remove(&item) && left.insert(item));
                        }
                    }
                    Step::Wait(ms) => now += ms,
                }
                prop_assert!(q.len() <= capacity);
                prop_assert_eq!(q.len(), inside.len());
                prop_assert!(q.rows() >= q.len() as u64);
            }
            let rest: BTreeSet<u64> = q.remove_where(|_| true).into_iter().collect();
            prop_assert_eq!(rest, inside);
            prop_assert_eq!(q.rows(), 0);
        }

        #[test]
        fn more_workers_never_refuse_what_fewer_admit(
            deadlines in proptest::collection::vec(0i64..300, 1..30), total in 1u32..6,
        ) {
            let (mut few, mut many) = (queue(50, 4, 0), queue(50, 4, 0));
            for (i, deadline) in deadlines.iter().enumerate() {
                let busy = |total| Workers { total, busy: total, busy_rows: 1 };
                // The same content in both: what the smaller one refuses is not put into the larger one.
                let admitted = few.push(0, entry(i as u64, *deadline), busy(total)).is_ok();
                if admitted {
                    prop_assert!(many.push(0, entry(i as u64, *deadline), busy(total + 1)).is_ok());
                }
            }
        }
    }
}
