//! Counting arrivals into intervals of the wall clock: the pure core.
//!
//! Invariants:
//! - Every interval from the first on is closed once, in order, for every service, with zeros where nothing came.
//! - Every record of a request topic is counted in exactly one interval, also over restarts: within a partition the
//!   intervals are stretches of the log. A record counts at its timestamp, but not before an earlier record of its
//!   partition, not in an interval that is already closed (then in the oldest open one), and not in the future.
//! - A [`Checkpoint`] holds the intervals that were closed with it, so that they can be published again exactly as
//!   they were, and the position in each partition at which the next interval begins.

use runtime::TopicPartition;
use schemas::EpochMs;
use schemas::workload::{WorkloadObserved, WorkloadObservedTag};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Most intervals that one call closes, so that a checkpoint stays far below a broker's limit of a record.
const MAX_CLOSED_AT_ONCE: usize = 360;

/// What is counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Length of an interval, milliseconds; intervals are aligned to the epoch.
    pub interval_ms: i64,
    /// How long after its end an interval is closed.
    pub grace_ms: i64,
    /// Services; each gets a sample for each interval.
    pub services: BTreeSet<String>,
    /// Full names of the topics that are read.
    pub topics: BTreeSet<String>,
}

/// How an arrival came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// As a record of a request topic.
    Topic,
    /// Straight to a gateway, told by a node's heartbeat.
    Direct,
}

/// Arrivals of one service that one record stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrivals<'a> {
    /// Service.
    pub service: &'a str,
    /// How many.
    pub count: u64,
    /// How they came.
    pub path: Path,
}

/// A record's place in its log and in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its partition.
    pub partition: &'a TopicPartition,
    /// Its offset.
    pub offset: i64,
    /// Its timestamp.
    pub timestamp_ms: EpochMs,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    arrivals: u64,
    direct: u64,
}

/// Position in a partition.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cursor {
    /// Next offset to read.
    next: i64,
    /// Time of the last record, as it counted.
    time_ms: EpochMs,
    /// First offset of each open interval that has records.
    first: BTreeMap<EpochMs, i64>,
    /// Older records are from before the topic was counted; set where no position was known.
    skip_before_ms: Option<EpochMs>,
}

/// What a restart needs, written as one record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Length of the intervals.
    pub interval_ms: i64,
    /// Start of the first interval that is not closed.
    pub open_start_ms: EpochMs,
    /// From when on each topic is counted.
    pub began_ms: BTreeMap<String, EpochMs>,
    /// Next offset to read in each partition that had records.
    pub positions: Vec<Position>,
    /// Intervals closed with this checkpoint; they may or may not have been published.
    pub closed: Vec<WorkloadObserved>,
}

/// A position of a [`Checkpoint`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Full topic name.
    pub topic: String,
    /// Partition.
    pub partition: i32,
    /// Next offset to read.
    pub offset: i64,
}

/// Counts arrivals; see the module.
#[derive(Debug, Clone, PartialEq)]
pub struct ArrivalCounter {
    settings: Settings,
    open_start_ms: EpochMs,
    counts: BTreeMap<EpochMs, BTreeMap<String, Count>>,
    cursors: BTreeMap<TopicPartition, Cursor>,
    /// From when on each topic is counted.
    began_ms: BTreeMap<String, EpochMs>,
    /// Closed by the last call of [`ArrivalCounter::close_until`].
    closed: Vec<WorkloadObserved>,
}

impl ArrivalCounter {
    /// Begins with the first whole interval after `now_ms`; what came before is not counted.
    pub fn new(settings: Settings, now_ms: EpochMs) -> Self {
        let open_start_ms = ceil_to(now_ms, settings.interval_ms);
        let began_ms = settings.topics.iter().map(|topic| (topic.clone(), open_start_ms)).collect();
        ArrivalCounter {
            settings,
            open_start_ms,
            counts: BTreeMap::new(),
            cursors: BTreeMap::new(),
            began_ms,
            closed: Vec::new(),
        }
    }

    /// Goes on after `checkpoint`. With another interval length, it goes on at the next multiple of the new one, and
    /// what falls between counts there. A topic that is new is counted from there on.
    pub fn restore(settings: Settings, checkpoint: &Checkpoint) -> Self {
        let open_start_ms = ceil_to(checkpoint.open_start_ms, settings.interval_ms);
        let cursor = |p: &Position| {
            let cursor = Cursor { next: p.offset, time_ms: open_start_ms, ..Cursor::default() };
            (TopicPartition::new(p.topic.clone(), p.partition), cursor)
        };
        let began_ms = |topic: &String| checkpoint.began_ms.get(topic).copied().unwrap_or(open_start_ms);
        ArrivalCounter {
            began_ms: settings.topics.iter().map(|topic| (topic.clone(), began_ms(topic))).collect(),
            settings,
            open_start_ms,
            counts: BTreeMap::new(),
            cursors: checkpoint.positions.iter().map(cursor).collect(),
            closed: checkpoint.closed.clone(),
        }
    }

    /// Counts the arrivals that the record at `place` stands for. A record that was already seen changes nothing.
    pub fn observe(&mut self, place: Place<'_>, arrivals: &[Arrivals<'_>], now_ms: EpochMs) {
        let open_start_ms = self.open_start_ms;
        let began_ms = self.began_ms.get(&place.partition.topic).copied();
        let cursor = self.cursors.entry(place.partition.clone()).or_insert_with(|| Cursor {
            next: place.offset,
            skip_before_ms: began_ms,
            ..Cursor::default()
        });
        if place.offset < cursor.next {
            return;
        }
        cursor.next = place.offset + 1;
        if cursor.skip_before_ms.is_some_and(|began| place.timestamp_ms < began) {
            return;
        }
        cursor.time_ms = place.timestamp_ms.min(now_ms).max(cursor.time_ms).max(open_start_ms);
        let start_ms = floor_to(cursor.time_ms, self.settings.interval_ms);
        cursor.first.entry(start_ms).or_insert(place.offset);
        for arrival in arrivals.iter().filter(|a| self.settings.services.contains(a.service)) {
            let count = self.counts.entry(start_ms).or_default().entry(arrival.service.to_owned()).or_default();
            count.arrivals += arrival.count;
            if arrival.path == Path::Direct {
                count.direct += arrival.count;
            }
        }
    }

    /// Closes the intervals that ended `grace_ms` or longer before `now_ms`, at most a few hundred; call again until
    /// it returns nothing.
    pub fn close_until(&mut self, now_ms: EpochMs) -> Vec<WorkloadObserved> {
        let mut closed = Vec::new();
        for _ in 0..MAX_CLOSED_AT_ONCE {
            let end_ms = self.open_start_ms + self.settings.interval_ms;
            if end_ms + self.settings.grace_ms > now_ms {
                break;
            }
            let counts = self.counts.remove(&self.open_start_ms).unwrap_or_default();
            closed.extend(self.settings.services.iter().map(|s| self.sample(s, counts.get(s))));
            self.open_start_ms = end_ms;
        }
        let open_start_ms = self.open_start_ms;
        for cursor in self.cursors.values_mut() {
            cursor.first.retain(|start_ms, _| *start_ms >= open_start_ms);
        }
        if !closed.is_empty() {
            self.closed.clone_from(&closed);
        }
        closed
    }

    fn sample(&self, service: &str, count: Option<&Count>) -> WorkloadObserved {
        let count = count.copied().unwrap_or_default();
        WorkloadObserved {
            schema: WorkloadObservedTag,
            service: service.to_owned(),
            start_ms: self.open_start_ms,
            interval_ms: self.settings.interval_ms.unsigned_abs(),
            arrivals: count.arrivals,
            direct_arrivals: count.direct,
            simulated: false,
        }
    }

    /// The state as of the last closed interval.
    pub fn checkpoint(&self) -> Checkpoint {
        let position = |(tp, cursor): (&TopicPartition, &Cursor)| Position {
            topic: tp.topic.clone(),
            partition: tp.partition,
            offset: cursor.first.values().next().copied().unwrap_or(cursor.next),
        };
        Checkpoint {
            interval_ms: self.settings.interval_ms,
            open_start_ms: self.open_start_ms,
            began_ms: self.began_ms.clone(),
            positions: self.cursors.iter().map(position).collect(),
            closed: self.closed.clone(),
        }
    }

    /// Start of the first interval that is not closed.
    pub fn open_start_ms(&self) -> EpochMs {
        self.open_start_ms
    }
}

fn floor_to(ms: EpochMs, step_ms: i64) -> EpochMs {
    ms - ms.rem_euclid(step_ms)
}

fn ceil_to(ms: EpochMs, step_ms: i64) -> EpochMs {
    floor_to(ms + step_ms - 1, step_ms)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    const INTERVAL_MS: i64 = 100;
    const GRACE_MS: i64 = 20;

    fn settings() -> Settings {
        let services = ["a", "b"].map(str::to_owned).into();
        let topics = ["requests.a", "executor.status"].map(str::to_owned).into();
        Settings { interval_ms: INTERVAL_MS, grace_ms: GRACE_MS, services, topics }
    }

    fn one(service: &str) -> [Arrivals<'_>; 1] {
        [Arrivals { service, count: 1, path: Path::Topic }]
    }

    fn observe(counter: &mut ArrivalCounter, offset: i64, timestamp_ms: i64, now_ms: i64) {
        let partition = TopicPartition::new("requests.a", 0);
        counter.observe(Place { partition: &partition, offset, timestamp_ms }, &one("a"), now_ms);
    }

    fn arrivals_of(closed: &[WorkloadObserved], service: &str) -> Vec<(i64, u64)> {
        closed.iter().filter(|o| o.service == service).map(|o| (o.start_ms, o.arrivals)).collect()
    }

    #[test]
    fn intervals_begin_whole_and_zeros_are_there() {
        let mut counter = ArrivalCounter::new(settings(), 30);
        observe(&mut counter, 0, 50, 60);
        observe(&mut counter, 1, 120, 130);
        assert!(counter.close_until(219).is_empty(), "the grace is not over");
        let closed = counter.close_until(420);
        assert_eq!(arrivals_of(&closed, "a"), [(100, 1), (200, 0), (300, 0)], "what came before 100 is not counted");
        assert_eq!(arrivals_of(&closed, "b"), [(100, 0), (200, 0), (300, 0)]);
    }

    #[test]
    fn late_and_future_records_are_counted_where_it_is_still_possible() {
        let mut counter = ArrivalCounter::new(settings(), 0);
        observe(&mut counter, 0, 10, 10);
        assert_eq!(arrivals_of(&counter.close_until(120), "a"), [(0, 1)]);
        observe(&mut counter, 1, 90, 130);
        observe(&mut counter, 2, 9_999, 140);
        assert_eq!(arrivals_of(&counter.close_until(220), "a"), [(100, 2)], "one late, one from a clock ahead");
    }

    #[test]
    fn direct_arrivals_are_in_both_figures() {
        let mut counter = ArrivalCounter::new(settings(), 0);
        let status = TopicPartition::new("executor.status", 0);
        let direct = |service, count| Arrivals { service, count, path: Path::Direct };
        let both = [direct("a", 3), direct("unknown", 5)];
        counter.observe(Place { partition: &status, offset: 7, timestamp_ms: 50 }, &both, 50);
        observe(&mut counter, 0, 60, 60);
        let closed = counter.close_until(120);
        let a = closed.iter().find(|o| o.service == "a").unwrap();
        assert_eq!((a.arrivals, a.direct_arrivals), (4, 3));
        assert_eq!(closed.len(), 2, "only services that are configured");
    }

    #[test]
    fn another_interval_length_loses_nothing() {
        let mut counter = ArrivalCounter::new(settings(), 0);
        observe(&mut counter, 0, 10, 10);
        counter.close_until(120);
        observe(&mut counter, 1, 110, 120);
        let longer = Settings { interval_ms: 250, ..settings() };
        let mut counter = ArrivalCounter::restore(longer, &counter.checkpoint());
        observe(&mut counter, 1, 110, 120);
        assert_eq!(arrivals_of(&counter.close_until(520), "a"), [(250, 1)]);
    }

    #[test]
    fn what_a_new_topic_already_held_is_not_counted() {
        let old = Settings { topics: BTreeSet::new(), ..settings() };
        let mut counter = ArrivalCounter::new(old, 0);
        counter.close_until(520);
        let mut counter = ArrivalCounter::restore(settings(), &counter.checkpoint());
        observe(&mut counter, 0, 10, 530);
        observe(&mut counter, 1, 499, 530);
        observe(&mut counter, 2, 510, 530);
        assert_eq!(arrivals_of(&counter.close_until(620), "a"), [(500, 1)]);
    }

    #[test]
    fn a_long_pause_is_closed_in_pieces() {
        let mut counter = ArrivalCounter::new(settings(), 0);
        let far_ms = 1_000 * INTERVAL_MS + GRACE_MS;
        let pieces: Vec<usize> =
            std::iter::from_fn(|| Some(counter.close_until(far_ms).len()).filter(|n| *n > 0)).collect();
        assert_eq!(pieces, [720, 720, 560]);
    }

    /// Records of three partitions in log order: partition, time since the one before, disorder.
    #[derive(Debug, Clone)]
    struct Input {
        partition: i32,
        timestamp_ms: i64,
        appended_ms: i64,
    }

    fn inputs() -> impl Strategy<Value = Vec<Input>> {
        prop::collection::vec((0i32..3, 0i64..70, -80i64..80), 1..120).prop_map(|steps| {
            let mut appended_ms = 0;
            steps
                .into_iter()
                .map(|(partition, forward, disorder)| {
                    appended_ms += forward;
                    Input { partition, timestamp_ms: (appended_ms + disorder).max(0), appended_ms }
                })
                .collect()
        })
    }

    /// Publishes by (service, start); a sample that is published again must be the same.
    #[derive(Default)]
    struct Published(BTreeMap<(String, i64), WorkloadObserved>);

    impl Published {
        fn publish(&mut self, samples: &[WorkloadObserved]) {
            for sample in samples {
                let key = (sample.service.clone(), sample.start_ms);
                if let Some(before) = self.0.insert(key, sample.clone()) {
                    assert_eq!(&before, sample, "published twice with different content");
                }
            }
        }
    }

    fn read(counter: &mut ArrivalCounter, log: &[Input], now_ms: i64) {
        let mut offsets = [0i64; 3];
        for input in log.iter().filter(|i| i.appended_ms <= now_ms) {
            let offset = offsets[input.partition as usize];
            offsets[input.partition as usize] += 1;
            let partition = TopicPartition::new("requests.a", input.partition);
            let place = Place { partition: &partition, offset, timestamp_ms: input.timestamp_ms };
            // Reading from the start again must do no harm either.
            counter.observe(place, &one("a"), now_ms);
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost_or_counted_twice_over_crashes(
            log in inputs(), crashes in prop::collection::vec(0u8..4, 0..60),
        ) {
            let mut published = Published::default();
            let mut counter = ArrivalCounter::new(settings(), 0);
            let mut durable = counter.checkpoint();
            let end_ms = log.last().map_or(0, |i| i.appended_ms) + 5 * INTERVAL_MS;
            let mut crash = crashes.into_iter().chain(std::iter::repeat(3));
            let mut now_ms = 0;
            while now_ms <= end_ms {
                read(&mut counter, &log, now_ms);
                let closed = counter.close_until(now_ms);
                match crash.next().unwrap_or(3) {
                    // Before the checkpoint was written.
                    0 => counter = ArrivalCounter::restore(settings(), &durable),
                    // After it was written and before anything was published.
                    1 => {
                        durable = counter.checkpoint();
                        counter = ArrivalCounter::restore(settings(), &durable);
                        published.publish(&durable.closed);
                    }
                    _ => {
                        durable = counter.checkpoint();
                        published.publish(&closed);
                    }
                }
                now_ms += 35;
            }
            read(&mut counter, &log, now_ms);
            published.publish(&counter.close_until(now_ms + 9 * INTERVAL_MS));
            let total: u64 = published.0.values().map(|o| o.arrivals).sum();
            prop_assert_eq!(total, log.len() as u64);
            for service in ["a", "b"] {
                let starts: Vec<i64> = published.0.keys().filter(|k| k.0 == service).map(|k| k.1).collect();
                let contiguous: Vec<i64> = (0..starts.len() as i64).map(|i| i * INTERVAL_MS).collect();
                prop_assert_eq!(starts, contiguous);
            }
        }

        #[test]
        fn records_in_order_that_are_read_at_once_count_at_their_timestamp(gaps in prop::collection::vec(0i64..60, 1..99)) {
            let mut counter = ArrivalCounter::new(settings(), 0);
            let (mut now_ms, mut wanted, mut got) = (0, BTreeMap::<i64, u64>::new(), BTreeMap::<i64, u64>::new());
            for (offset, gap) in gaps.into_iter().enumerate() {
                now_ms += gap;
                *wanted.entry(now_ms - now_ms.rem_euclid(INTERVAL_MS)).or_default() += 1;
                observe(&mut counter, offset as i64, now_ms, now_ms);
                got.extend(arrivals_of(&counter.close_until(now_ms), "a"));
            }
            got.extend(arrivals_of(&counter.close_until(now_ms + 999), "a"));
            got.retain(|_, n| *n > 0);
            prop_assert_eq!(got, wanted);
        }
    }
}
