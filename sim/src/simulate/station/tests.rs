//! Tests of a station: against the executor's queue, and what becomes of workers.

use super::*;
use crate::simulate::scenario::{Folders, Scenario, tests::SMALL};
use crate::simulate::world::World;
use proptest::prelude::*;
use schemas::profile::{Profile, ProfilePoint};

/// Only its size matters here.
fn world() -> &'static World {
    static WORLD: std::sync::OnceLock<World> = std::sync::OnceLock::new();
    WORLD.get_or_init(|| {
        let mut scenario = Scenario::parse(SMALL).expect("sound");
        (scenario.trace.days, scenario.forecast.train_days) = (0.01, 0.1);
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        World::new(&scenario, &Folders(vec![folder]), 1, &[]).expect("sound")
    })
}

/// A batch of `n` takes `first_ms + (n - 1) * more_ms`, always.
fn timing(first_ms: f64, more_ms: f64, batch: u32) -> Timing {
    let point = |n: u32| {
        let ms = first_ms + f64::from(n - 1) * more_ms;
        ProfilePoint { workers: 1, batch: n, p50_ms: ms, p95_ms: ms, p99_ms: ms, rps: f64::from(n) * 1000.0 / ms }
    };
    let profile = Profile {
        model: "m".into(),
        sha256: String::new(),
        backend: "tract".into(),
        host: "h".into(),
        load_ms: 1.0,
        memory_mib: 1.0,
        points: (1..=batch).map(point).collect(),
        estimated: false,
        distributions: Vec::new(),
    };
    Timing::new(&profile, (1, batch), 1.0, 0.0, &mut Random::new(1, "t"))
}

fn host(workers: u32, batch: u32) -> Host {
    Host { service: 0, backend: "tract".into(), workers, batch, service_p95_us: 0 }
}

#[derive(Debug, Clone)]
struct Case {
    gaps_ms: Vec<f64>,
    workers: u32,
    batch: u32,
    times: (f64, f64),
    slo_ms: u32,
    capacity: usize,
    window_ms: i64,
    shedding: bool,
}

fn case() -> impl Strategy<Value = Case> {
    let load = (proptest::collection::vec(0.0f64..40.0, 1..120), 1u32..5, 1u32..6, (5.0f64..60.0, 1.0f64..30.0));
    let bounds = (20u32..300, 1usize..40, prop_oneof![Just(0i64), 1i64..40], any::<bool>());
    (load, bounds).prop_map(|((gaps_ms, workers, batch, times), (slo_ms, capacity, window_ms, shedding))| Case {
        gaps_ms,
        workers,
        batch,
        times,
        slo_ms,
        // What is not shed may wait as long as it likes.
        capacity: if shedding { capacity } else { usize::MAX },
        window_ms,
        shedding,
    })
}

impl Case {
    fn arrivals(&self) -> Vec<f64> {
        self.gaps_ms.iter().scan(0.0, |at, gap| Some(std::mem::replace(at, *at + gap / 1000.0))).collect()
    }

    fn timing(&self) -> Timing {
        timing(self.times.0, self.times.1.min(self.times.0), self.batch)
    }

    /// The station's counts, and what is left in it.
    fn station(&self, seconds: usize) -> ((Vec<u64>, u64, u64, u64), usize) {
        let (world, timings) = (world(), [self.timing()]);
        let (mut record, mut random, mut busy_s) = (Recorder::new(world), Random::new(1, "s"), [0.0]);
        let mut station = Station::new(None, self.capacity, self.window_ms);
        station.add(Instance::new(0, &host(self.workers, self.batch), 0, &timings, 0.0), &timings);
        let mut context = Context {
            service: 0,
            slo_s: f64::from(self.slo_ms) / 1000.0,
            shedding: self.shedding,
            vertical: false,
            timings: &timings,
            random: &mut random,
            record: &mut record,
            busy_s: &mut busy_s,
        };
        let arrivals = self.arrivals();
        for second in 0..seconds {
            let within = |at: &&f64| (**at as usize) == second;
            let fresh: Vec<f64> = arrivals.iter().filter(within).copied().collect();
            station.serve(&fresh, second as f64 + 1.0, &mut context);
        }
        let left = station.waiting() + station.in_work() as usize;
        (record.counts(), left)
    }

    /// The executor's queue itself, and workers that come for more when they are done; written without regard to time.
    fn executor(&self) -> (Vec<u64>, u64, u64, u64) {
        let (world, timing) = (world(), self.timing());
        let mut record = Recorder::new(world);
        let limits = Limits { capacity: self.capacity, max_batch: self.batch, window_ms: self.window_ms };
        let mut queue: Queue<f64> = Queue::new(limits, timing.planned);
        let slo_s = f64::from(self.slo_ms) / 1000.0;
        let mut arrivals = self.arrivals();
        arrivals.reverse();
        // By worker: until when, and what it runs.
        let mut workers: Vec<Option<(f64, Vec<Entry<f64>>)>> = vec![None; self.workers as usize];
        let mut ask_s = f64::INFINITY;
        loop {
            let done = workers.iter().flatten().map(|w| w.0).fold(f64::INFINITY, f64::min);
            let arrival = arrivals.last().copied().unwrap_or(f64::INFINITY);
            let ask = if workers.iter().any(Option::is_none) { ask_s } else { f64::INFINITY };
            let now = done.min(arrival).min(ask);
            if now.is_infinite() {
                return record.counts();
            }
            if done <= now {
                let place = workers.iter().position(|w| w.as_ref().is_some_and(|w| w.0 == done)).expect("one");
                for entry in workers[place].take().expect("busy").1 {
                    record.served(0, entry.item, done - entry.item, slo_s);
                }
            } else if arrival <= now {
                arrivals.pop();
                let rows = workers.iter().flatten().map(|w| w.1.len() as u32).sum();
                let busy = workers.iter().flatten().count() as u32;
                let counts = Workers { total: self.workers, busy, busy_rows: rows };
                let slo_ms = if self.shedding { i64::from(self.slo_ms) } else { NEVER_MS };
                let deadline_ms = ms(arrival) + slo_ms;
                let (class, order) = (Class::Normal, None);
                let entry = Entry { class, order, deadline_ms, rows: 1, queued_ms: 0, item: arrival };
                if queue.push(ms(now), entry, counts).is_err() {
                    record.shed(0);
                }
            }
            while let Some(place) = workers.iter().position(Option::is_none) {
                let taken = queue.take(ms(now));
                taken.shed.iter().for_each(|_| record.shed(0));
                ask_s = taken.ask_again_ms.map_or(f64::INFINITY, |ms| ms as f64 / 1000.0);
                if taken.batch.is_empty() {
                    break;
                }
                let end = now + timing.mean_s[taken.batch.len().min(self.batch as usize)];
                workers[place] = Some((end, taken.batch));
            }
        }
    }
}

proptest! {
    #[test]
    fn decisions_are_those_of_the_executors_queue(case in case()) {
        let (station, left) = case.station(60);
        prop_assert_eq!(left, 0);
        prop_assert_eq!(&station, &case.executor());
        let served: u64 = station.0.iter().sum();
        prop_assert_eq!(served + station.2, case.gaps_ms.len() as u64, "each once");
        prop_assert!(case.shedding || station.2 == 0, "without shedding all are served");
    }

    #[test]
    fn what_waits_is_counted_at_every_second(case in case(), seconds in 0usize..3) {
        let ((bins, _, shed, _), left) = case.station(seconds);
        let arrived = case.arrivals().iter().filter(|at| (**at as usize) < seconds).count();
        prop_assert_eq!(bins.iter().sum::<u64>() as usize + shed as usize + left, arrived);
    }
}

#[test]
fn workers_that_go_finish_and_those_of_a_lost_node_do_not() {
    let (world, timings) = (world(), [timing(100.0, 0.0, 1)]);
    let (mut record, mut random, mut busy_s) = (Recorder::new(world), Random::new(1, "s"), [0.0, 0.0]);
    let mut station = Station::new(None, 100, 0);
    for node in 0..2 {
        station.add(Instance::new(node, &host(2, 1), 0, &timings, 0.0), &timings);
    }
    let mut context = Context {
        service: 0,
        slo_s: 1.0,
        shedding: true,
        vertical: true,
        timings: &timings,
        random: &mut random,
        record: &mut record,
        busy_s: &mut busy_s,
    };
    station.serve(&[0.95, 0.96, 0.97, 0.98, 0.99], 1.0, &mut context);
    assert_eq!((station.in_work(), station.waiting()), (4, 1));
    // Down to one worker: the surplus one ends after its batch and takes no more.
    station.resize(0, (1, 0), 1.0, &timings);
    assert_eq!((station.in_work(), station.counts.total), (4, 3));
    station.remove(1, true, &mut context);
    assert_eq!((station.in_work(), station.done_s(1)), (2, 0.0));
    station.serve(&[], 2.0, &mut context);
    assert_eq!((station.workers.len(), station.in_work(), station.waiting()), (1, 0, 0));
    station.resize(0, (3, 0), 2.0, &timings);
    station.serve(&[2.5, 2.5, 2.5], 3.0, &mut context);
    assert_eq!(context.record.counts().0.iter().sum::<u64>(), 6, "three of five, and three at once");
    assert_eq!(context.record.counts().3, 2, "what the lost node had in work");
}
