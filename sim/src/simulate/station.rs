//! A queue and the workers that take from it: a node's instance of a service, or all of a service that share one queue.
//!
//! The queue is the executor's ([`executor::queue`]) with its admission, shedding and batches; service times come to it
//! from the executor's counters ([`executor::stats`]), which believe the plan until enough is measured; workers are lent
//! by the executor's loop ([`executor::vertical`]). Written here is what threads do there: an event at a time, which
//! worker is free when. Decisions are made in whole milliseconds, as the executor's clock has them; requests are timed
//! exactly.
//!
//! Without shedding a request's deadline lies beyond every simulation: nothing is refused, shed or cut for it.
//!
//! Invariants: every request offered is served, refused, lost, taken back or waits; the same offers and draws give the
//! same decisions as the executor's queue alone (`decisions_are_those_of_the_executors_queue`).

use super::outcome::Recorder;
use super::policy::Host;
use super::random::Random;
use super::timing::Timing;
use executor::drift::{ENOUGH, drift};
use executor::queue::{Class, Entry, Limits, Queue, ServiceTime, Workers};
use executor::stats::{Run, Stats};
use executor::vertical::{Sample, Step, Thresholds, Vertical};
use schemas::profile::ProfilePoint;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Beyond every simulation, milliseconds.
const NEVER_MS: i64 = i64::MAX / 4;
/// Seconds over which the offered load is averaged, the executor's `LOAD_WINDOW_MS`.
const LOAD_SECONDS: usize = (executor::stats::LOAD_WINDOW_MS / 1000) as usize;

/// What is fixed for a station, and where results go.
pub(super) struct Context<'a> {
    /// Service, by index.
    pub(super) service: usize,
    /// Its SLO.
    pub(super) slo_s: f64,
    /// Admission and shedding are on.
    pub(super) shedding: bool,
    /// Workers are lent.
    pub(super) vertical: bool,
    /// Service times.
    pub(super) timings: &'a [Timing],
    /// Draws of service times.
    pub(super) random: &'a mut Random,
    /// Results.
    pub(super) record: &'a mut Recorder,
    /// Work done, by node.
    pub(super) busy_s: &'a mut [f64],
}

impl Context<'_> {
    fn deadline_ms(&self, arrived_s: f64) -> i64 {
        ms(arrived_s) + if self.shedding { (self.slo_s * 1000.0).round() as i64 } else { NEVER_MS }
    }
}

/// The executor's clock shows whole milliseconds; a nanosecond is forgiven, or 0.118 s would be 117 ms.
fn ms(at_s: f64) -> i64 {
    (at_s * 1000.0 + 1e-6) as i64
}

#[derive(Debug, Clone, Default)]
struct Worker {
    node: usize,
    /// Its instance, by place.
    at: usize,
    loading: bool,
    leaving: bool,
    batch: Vec<Entry<f64>>,
    began_s: f64,
    free_at_s: f64,
}

impl Worker {
    fn is_idle(&self) -> bool {
        !self.loading && self.batch.is_empty()
    }
}

/// A model on a node.
#[derive(Debug)]
pub(super) struct Instance {
    /// Node, by index.
    pub(super) node: usize,
    /// Workers that the plan gave.
    pub(super) planned: u32,
    /// Workers that it has.
    pub(super) workers: u32,
    /// Rows of a batch that pay.
    pub(super) batch: u32,
    /// Service times, by index.
    pub(super) timing: usize,
    /// When its model is or was loaded.
    ready_s: f64,
    /// What the plan says that it takes.
    believed: ServiceTime,
    time: ServiceTime,
    stats: Stats,
    vertical: Vertical,
}

impl Instance {
    /// With the workers of the plan; without any it is a standby, loaded and not serving. Its model is loaded at
    /// `ready_s`.
    pub(super) fn new(node: usize, host: &Host, timing: usize, timings: &[Timing], ready_s: f64) -> Self {
        let (workers, batch) = (host.workers, host.batch);
        let believed = believed(host, &timings[timing]);
        let (stats, vertical) = (Stats::new(ms(ready_s)), Vertical::default());
        Instance {
            node,
            planned: workers,
            workers,
            batch: batch.max(1),
            timing,
            ready_s,
            believed,
            time: believed,
            stats,
            vertical,
        }
    }
}

fn believed(host: &Host, timing: &Timing) -> ServiceTime {
    match host.service_p95_us {
        0 => timing.planned,
        us => ServiceTime::planned(f64::from(us) / 1000.0, host.batch),
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Station {
    /// The node, where each has its own.
    pub(super) node: Option<usize>,
    limits: Limits,
    queue: Queue<f64>,
    /// Who serves, or will.
    pub(super) instances: Vec<Instance>,
    workers: Vec<Worker>,
    /// Time at which a worker is done, and its place.
    busy: BinaryHeap<Reverse<(u64, usize)>>,
    /// Mean time of a worker, and its place.
    idle: BinaryHeap<Reverse<(u64, usize)>>,
    counts: Workers,
    /// Of all instances together, for admission.
    time: ServiceTime,
    ask_at_ms: Option<i64>,
    offered: [u32; LOAD_SECONDS],
}

impl Station {
    /// Without workers. `capacity` and `window_ms` as [`Limits`] says.
    pub(super) fn new(node: Option<usize>, capacity: usize, window_ms: i64) -> Self {
        let limits = Limits { capacity, max_batch: 1, window_ms };
        let time = ServiceTime { per_row_ms: 0.0, batch_p95_ms: 0.0 };
        Station {
            node,
            limits,
            queue: Queue::new(limits, time),
            instances: Vec::new(),
            workers: Vec::new(),
            busy: BinaryHeap::new(),
            idle: BinaryHeap::new(),
            counts: Workers { total: 0, busy: 0, busy_rows: 0 },
            time,
            ask_at_ms: None,
            offered: [0; LOAD_SECONDS],
        }
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Requests in work.
    pub(super) fn in_work(&self) -> u32 {
        self.counts.busy_rows
    }

    /// True if a worker is there before `to_s`, or now.
    pub(super) fn serves_before(&self, to_s: f64) -> bool {
        let first = self.busy.peek().map(|Reverse((bits, _))| f64::from_bits(*bits));
        self.counts.total > 0 || first.is_some_and(|first| first < to_s)
    }

    /// True while nobody serves or is about to.
    pub(super) fn is_deserted(&self) -> bool {
        self.instances.iter().all(|i| i.workers == 0)
    }

    /// True if the node's instance is loaded and has workers.
    pub(super) fn serves(&self, node: usize, now_s: f64) -> bool {
        self.workers.iter().any(|w| w.node == node && (!w.loading || w.free_at_s <= now_s))
    }

    /// An instance begins to serve when its model is loaded.
    pub(super) fn add(&mut self, instance: Instance, timings: &[Timing]) {
        let worker = Worker { node: instance.node, loading: true, free_at_s: instance.ready_s, ..Worker::default() };
        self.workers.extend(std::iter::repeat_n(worker, instance.workers as usize));
        self.instances.push(instance);
        self.rebuild(timings);
    }

    /// Other workers, at once: new ones begin now, surplus ones end after their batch.
    pub(super) fn resize(&mut self, node: usize, (workers, timing): (u32, usize), now_s: f64, timings: &[Timing]) {
        let Some(instance) = self.instances.iter_mut().find(|i| i.node == node) else { return };
        (instance.workers, instance.timing) = (workers, timing);
        let free_at_s = instance.ready_s.max(now_s);
        let mut mine: Vec<usize> = (0..self.workers.len()).filter(|&w| self.workers[w].node == node).collect();
        // Those that work stay first.
        mine.sort_by_key(|&w| (self.workers[w].is_idle(), w));
        for (nth, &w) in mine.iter().enumerate() {
            self.workers[w].leaving = nth >= workers as usize;
        }
        for _ in mine.len()..workers as usize {
            self.workers.push(Worker { node, loading: true, free_at_s, ..Worker::default() });
        }
        self.rebuild(timings);
    }

    /// Changes what the plan says of an instance.
    pub(super) fn plan(&mut self, node: usize, host: &Host, timings: &[Timing]) {
        if let Some(instance) = self.instances.iter_mut().find(|i| i.node == node) {
            (instance.planned, instance.batch) = (host.workers, host.batch.max(1));
            instance.believed = believed(host, &timings[instance.timing]);
        }
    }

    /// Nodes whose instances do not take what their plan believes: node, what was measured, and samples behind it.
    pub(super) fn drifts(&self, now_s: f64) -> Vec<(usize, ProfilePoint, u64)> {
        let of = |i: &Instance| {
            let times_ms = i.stats.batch_times(ms(now_s), i.batch);
            if times_ms.len() < ENOUGH {
                return None;
            }
            let point = drift(i.workers.max(1), i.batch, &times_ms, i.believed.batch_p95_ms)?;
            Some((i.node, point, times_ms.len() as u64))
        };
        self.instances.iter().filter_map(of).collect()
    }

    /// A node is gone. What it has in work is finished, or lost with it.
    pub(super) fn remove(&mut self, node: usize, lost: bool, context: &mut Context<'_>) {
        for w in 0..self.workers.len() {
            if self.workers[w].node == node {
                if lost {
                    let rows = std::mem::take(&mut self.workers[w].batch).len();
                    context.record.lost(context.service, rows);
                } else {
                    self.complete(w, context);
                }
            }
        }
        self.workers.retain(|w| w.node != node);
        self.instances.retain(|i| i.node != node);
        self.rebuild(context.timings);
    }

    /// When the last batch that a node has in work is done.
    pub(super) fn done_s(&self, node: usize) -> f64 {
        let working = self.workers.iter().filter(|w| w.node == node && !w.batch.is_empty());
        working.map(|w| w.free_at_s).fold(0.0, f64::max)
    }

    /// Takes back all that waits, in the order in which it would have been served.
    pub(super) fn take_back(&mut self) -> Vec<f64> {
        self.ask_at_ms = None;
        self.queue.remove_where(|_| true)
    }

    /// After a change of workers.
    fn rebuild(&mut self, timings: &[Timing]) {
        self.workers.retain(|w| !(w.leaving && (w.is_idle() || w.loading)));
        self.busy.clear();
        self.idle.clear();
        self.counts = Workers { total: 0, busy: 0, busy_rows: 0 };
        for (k, worker) in self.workers.iter_mut().enumerate() {
            // Every worker's instance is there: they come and go together.
            worker.at = self.instances.iter().position(|i| i.node == worker.node).unwrap_or(0);
            self.counts.total += u32::from(!worker.loading && !worker.leaving);
            self.counts.busy += u32::from(!worker.batch.is_empty());
            self.counts.busy_rows += worker.batch.len() as u32;
            if worker.is_idle() {
                let mean_s = timings[self.instances[worker.at].timing].mean_s[1];
                self.idle.push(Reverse((mean_s.to_bits(), k)));
            } else {
                self.busy.push(Reverse((worker.free_at_s.to_bits(), k)));
            }
        }
        self.combine();
    }

    /// Service times as measured, or as planned.
    pub(super) fn measure(&mut self, now_s: f64) {
        for instance in &mut self.instances {
            instance.time = instance.stats.service_time(ms(now_s), instance.believed, instance.batch);
        }
        self.combine();
    }

    /// A station works its queue off at the throughput of all instances; a batch's time is that of the mean request.
    fn combine(&mut self) {
        let (mut workers, mut rate, mut p95_ms) = (0.0, 0.0, 0.0);
        for instance in &self.instances {
            let of_instance = f64::from(instance.workers) / instance.time.per_row_ms.max(1e-9);
            workers += f64::from(instance.workers);
            rate += of_instance;
            p95_ms += of_instance * instance.time.batch_p95_ms;
        }
        if rate > 0.0 {
            self.time = ServiceTime { per_row_ms: workers / rate, batch_p95_ms: p95_ms / rate };
        }
    }

    /// Serves until `to_s`, while these requests arrive, ascending.
    pub(super) fn serve(&mut self, arrivals: &[f64], to_s: f64, context: &mut Context<'_>) {
        self.offered[to_s as usize % LOAD_SECONDS] = arrivals.len() as u32;
        let mut arrivals = arrivals.iter().copied().peekable();
        loop {
            let arrival_s = arrivals.peek().copied().unwrap_or(f64::INFINITY);
            let free_s = self.busy.peek().map_or(f64::INFINITY, |Reverse((bits, _))| f64::from_bits(*bits));
            let ask = self.ask_at_ms.filter(|_| !self.idle.is_empty());
            let ask_s = ask.map_or(f64::INFINITY, |ms| ms as f64 / 1000.0);
            if arrival_s.min(free_s).min(ask_s) >= to_s {
                return;
            }
            if free_s <= arrival_s && free_s <= ask_s {
                self.free(context);
            } else if arrival_s <= ask_s {
                arrivals.next();
                self.offer(arrival_s, arrival_s, context);
            } else {
                self.hand_out(ask_s, context);
            }
        }
    }

    /// A request, now; false if it was refused.
    pub(super) fn offer(&mut self, arrived_s: f64, now_s: f64, context: &mut Context<'_>) {
        let entry = Entry {
            class: Class::Normal,
            order: None,
            deadline_ms: context.deadline_ms(arrived_s),
            rows: 1,
            queued_ms: 0,
            item: arrived_s,
        };
        self.queue.set_service_time(self.time);
        match self.queue.push(ms(now_s), entry, self.counts) {
            Ok(()) if self.idle.is_empty() => {}
            Ok(()) => self.hand_out(now_s, context),
            Err(_) => context.record.shed(context.service),
        }
    }

    /// The next worker is done.
    fn free(&mut self, context: &mut Context<'_>) {
        let Some(Reverse((bits, k))) = self.busy.pop() else { return };
        if std::mem::take(&mut self.workers[k].loading) {
            self.counts.total += 1;
        } else {
            self.complete(k, context);
        }
        if self.workers[k].leaving {
            return self.rebuild(context.timings);
        }
        if !self.take(k, f64::from_bits(bits), context) {
            self.rest(k, context.timings);
        }
    }

    fn rest(&mut self, k: usize, timings: &[Timing]) {
        let mean_s = timings[self.instances[self.workers[k].at].timing].mean_s[1];
        self.idle.push(Reverse((mean_s.to_bits(), k)));
    }

    /// Free workers, the fastest first, take what there is.
    fn hand_out(&mut self, now_s: f64, context: &mut Context<'_>) {
        self.ask_at_ms = None;
        while let Some(Reverse((_, k))) = self.idle.pop() {
            if !self.take(k, now_s, context) {
                self.rest(k, context.timings);
                return;
            }
            if self.queue.is_empty() {
                return;
            }
        }
    }

    /// A worker takes a batch, if there is one.
    fn take(&mut self, k: usize, now_s: f64, context: &mut Context<'_>) -> bool {
        if self.queue.is_empty() {
            return false;
        }
        let instance = &self.instances[self.workers[k].at];
        self.queue.set_limits(Limits { max_batch: instance.batch, ..self.limits });
        self.queue.set_service_time(instance.time);
        let taken = self.queue.take(ms(now_s));
        taken.shed.iter().for_each(|_| context.record.shed(context.service));
        if taken.batch.is_empty() {
            self.ask_at_ms = taken.ask_again_ms;
            return false;
        }
        let took_s = context.timings[instance.timing].draw_s(taken.batch.len(), context.random);
        context.busy_s[instance.node] += took_s;
        context.record.busy_s += took_s;
        self.counts.busy += 1;
        self.counts.busy_rows += taken.batch.len() as u32;
        let worker = &mut self.workers[k];
        (worker.batch, worker.began_s, worker.free_at_s) = (taken.batch, now_s, now_s + took_s);
        self.busy.push(Reverse((worker.free_at_s.to_bits(), k)));
        true
    }

    /// What a worker has in work is answered.
    fn complete(&mut self, k: usize, context: &mut Context<'_>) {
        let worker = &mut self.workers[k];
        let batch = std::mem::take(&mut worker.batch);
        if batch.is_empty() {
            return;
        }
        let (end_s, end_ms) = (worker.free_at_s, ms(worker.free_at_s));
        self.counts.busy -= 1;
        self.counts.busy_rows -= batch.len() as u32;
        let stats = &mut self.instances[worker.at].stats;
        for entry in &batch {
            let latency_s = end_s - entry.item;
            let in_time = context.record.served(context.service, entry.item, latency_s, context.slo_s);
            if context.vertical {
                stats.answered(end_ms, latency_s * 1000.0, in_time);
            }
        }
        if context.vertical || context.shedding {
            let took_ms = (end_s - worker.began_s) * 1000.0;
            let run = Run { rows: batch.len() as u32, infer_ms: took_ms, busy_ms: took_ms, background: false };
            stats.ran(end_ms, run);
        }
    }

    /// What the executor's loop says of an instance, with `free` worker permits on its node.
    pub(super) fn observe(&mut self, place: usize, slo_s: f64, free: u32, now_s: f64) -> Option<Step> {
        let alone = Workers { total: 1, busy: 0, busy_rows: 0 };
        let backlog_ms = self.queue.backlog_ms(alone);
        let all: u32 = self.instances.iter().map(|i| i.workers).sum();
        let rows_per_s = f64::from(self.offered.iter().sum::<u32>()) / LOAD_SECONDS as f64;
        let instance = &mut self.instances[place];
        // Instances that share a queue share its load by their workers.
        let share = f64::from(instance.workers) / f64::from(all.max(1));
        let recent = instance.stats.recent(ms(now_s));
        let sample = Sample {
            now_ms: ms(now_s),
            slo_ms: slo_s * 1000.0,
            p95_ms: recent.p95_ms,
            rows_per_s: rows_per_s * share,
            backlog_ms: backlog_ms * share,
            per_row_ms: instance.time.per_row_ms,
            batch_p95_ms: instance.time.batch_p95_ms,
            utilisation: (recent.busy_workers / f64::from(instance.workers.max(1))).min(1.0),
            workers: instance.workers,
            planned: instance.planned,
            free,
        };
        instance.vertical.observe(&Thresholds::default(), &sample)
    }
}

#[cfg(test)]
mod tests;
