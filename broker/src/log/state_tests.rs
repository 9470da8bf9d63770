#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::log::rules::Cleanup;

fn header(size: usize, count: i32, timestamp: i64) -> BatchHeader {
    BatchHeader {
        base_offset: 0,
        size,
        crc: 0,
        attributes: 0,
        last_offset_delta: count - 1,
        base_timestamp: timestamp,
        max_timestamp: timestamp,
        producer_id: -1,
        producer_epoch: -1,
        base_sequence: -1,
        count,
    }
}

fn empty() -> LogState {
    LogState::new(0, Vec::new(), Producers::default(), 4096)
}

/// Plans and, as a disk that works would, carries everything out.
fn apply(log: &mut LogState, now: i64, request: Request<'_>, rules: &LogRules) -> Reply {
    let (reply, effects) = log.apply(now, request, rules);
    effects.iter().for_each(|effect| log.record(now, effect));
    reply
}

fn append(log: &mut LogState, now: i64, batch: &BatchHeader, rules: &LogRules) -> i64 {
    match apply(log, now, Request::Append(batch), rules) {
        Reply::Appended { base_offset, .. } => base_offset,
        other => panic!("{other:?}"),
    }
}

fn bases(log: &LogState) -> Vec<i64> {
    log.segments().map(|segment| segment.base).collect()
}

#[test]
fn planning_changes_nothing() {
    let mut log = empty();
    append(&mut log, 0, &header(3000, 5, 0), &LogRules::small());
    let before = log.clone();
    for request in [Request::Append(&header(3000, 5, 0)), Request::Trim(3), Request::Retain] {
        let (_, effects) = log.apply(0, request, &LogRules::small());
        assert!(!effects.is_empty() || matches!(request, Request::Retain));
        assert_eq!(log, before);
    }
}

#[test]
fn segments_roll_by_size_and_age() {
    let rules = LogRules { segment_ms: 1000, ..LogRules::small() };
    let mut log = empty();
    assert_eq!(append(&mut log, 0, &header(3000, 5, 0), &rules), 0);
    assert_eq!(append(&mut log, 10, &header(1000, 5, 0), &rules), 5);
    assert_eq!(bases(&log), [0]);
    assert_eq!(append(&mut log, 20, &header(200, 1, 0), &rules), 10);
    assert_eq!(bases(&log), [0, 10]);
    assert_eq!(append(&mut log, 1020, &header(200, 1, 0), &rules), 11);
    assert_eq!(bases(&log), [0, 10, 11]);
    // A batch larger than a segment gets one for itself.
    assert_eq!(append(&mut log, 1021, &header(9000, 3, 0), &rules), 12);
    assert_eq!(bases(&log), [0, 10, 11, 12]);
}

#[test]
fn what_does_not_fit_is_refused_without_effects() {
    let log = empty();
    let rules = LogRules { max_message_bytes: 500, ..LogRules::small() };
    let refused = |batch: BatchHeader| match log.apply(0, Request::Append(&batch), &rules) {
        (Reply::Refused(error), effects) if effects.is_empty() => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(header(501, 1, 0)), ResponseError::MessageTooLarge);
}

#[test]
fn trimming_moves_the_start_and_drops_whole_segments() {
    let rules = LogRules::small();
    let mut log = empty();
    for _ in 0..4 {
        append(&mut log, 0, &header(4000, 10, 0), &rules);
    }
    assert_eq!(bases(&log), [0, 10, 20, 30]);
    let trim = |log: &mut LogState, to| apply(log, 0, Request::Trim(to), &rules);
    assert_eq!(trim(&mut log, 15), Reply::Trimmed(15));
    assert_eq!((bases(&log), log.start()), (vec![10, 20, 30], 15));
    assert_eq!(trim(&mut log, 3), Reply::Trimmed(15));
    assert_eq!(trim(&mut log, 41), Reply::Refused(ResponseError::OffsetOutOfRange));
    assert_eq!(trim(&mut log, -1), Reply::Trimmed(40));
    assert_eq!((bases(&log), log.start(), log.end()), (vec![30], 40, 40));
    assert_eq!(log.locate(40), None);
}

#[test]
fn retention_by_time_counts_record_times_and_reaches_the_last_segment() {
    let rules = LogRules { retention_ms: Some(1000), ..LogRules::small() };
    let mut log = empty();
    for time in [100, 5000, 200] {
        append(&mut log, 0, &header(4000, 10, time), &rules);
    }
    apply(&mut log, 1101, Request::Retain, &rules);
    assert_eq!(bases(&log), [10, 20], "the second one holds back the third");
    assert_eq!(log.start(), 10);
    apply(&mut log, 6001, Request::Retain, &rules);
    assert_eq!(bases(&log), [30]);
    assert_eq!((log.start(), log.end()), (30, 30));
    assert_eq!(append(&mut log, 6002, &header(100, 1, 6002), &rules), 30);
    // Records without a time are as old as their append.
    append(&mut log, 7000, &header(4000, 1, -1), &rules);
    apply(&mut log, 7900, Request::Retain, &rules);
    assert_eq!(bases(&log), [31]);
}

#[test]
fn retention_by_size_keeps_at_least_so_much() {
    let rules = LogRules { retention_bytes: Some(9000), ..LogRules::small() };
    let mut log = empty();
    for _ in 0..5 {
        append(&mut log, 0, &header(4000, 10, 0), &rules);
    }
    apply(&mut log, 0, Request::Retain, &rules);
    assert_eq!(bases(&log), [20, 30, 40]);
    let keep_nothing = LogRules { retention_bytes: Some(0), ..LogRules::small() };
    apply(&mut log, 0, Request::Retain, &keep_nothing);
    assert_eq!(bases(&log), [40], "the segment that is written to stays");
}

#[test]
fn compacted_topics_lose_nothing_to_retention() {
    let rules = LogRules {
        cleanup: Cleanup { delete: false, compact: true },
        retention_ms: Some(1),
        retention_bytes: Some(1),
        ..LogRules::small()
    };
    let mut log = empty();
    for _ in 0..3 {
        append(&mut log, 0, &header(4000, 10, 0), &rules);
    }
    apply(&mut log, i64::MAX, Request::Retain, &rules);
    assert_eq!((bases(&log), log.start()), (vec![0, 10, 20], 0));
}

#[test]
fn append_time_is_given_where_the_topic_wants_it() {
    let rules = LogRules { log_append_time: true, ..LogRules::small() };
    let mut log = empty();
    let batch = header(100, 1, 55);
    let (reply, effects) = log.apply(777, Request::Append(&batch), &rules);
    assert_eq!(reply, Reply::Appended { base_offset: 0, append_time_ms: 777 });
    effects.iter().for_each(|effect| log.record(777, effect));
    assert_eq!(log.max_timestamp(), Some(777));
}

#[derive(Debug, Clone)]
enum Step {
    Append { size: usize, count: i32, time: i64 },
    Trim(i64),
    Retain { now: i64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let append =
        (62usize..5000, 1i32..20, 0i64..10_000).prop_map(|(size, count, time)| Step::Append { size, count, time });
    let trim = (-1i64..300).prop_map(Step::Trim);
    let retain = (0i64..12_000).prop_map(|now| Step::Retain { now });
    proptest::collection::vec(prop_oneof![6 => append, 1 => trim, 1 => retain], 1..80)
}

proptest! {
    /// Against a plain list of batches: offsets are given out in order and once, what is readable
    /// is found where it was put, and the start only moves forward.
    #[test]
    fn behaves_like_a_list(steps in steps()) {
        let rules = LogRules {
            retention_ms: Some(3000), retention_bytes: Some(20_000), ..LogRules::small()
        };
        let mut log = empty();
        let mut model: Vec<(i64, i64)> = Vec::new();
        for step in steps {
            let (start, end) = (log.start(), log.end());
            match step {
                Step::Append { size, count, time } => {
                    let base = append(&mut log, 0, &header(size, count, time), &rules);
                    prop_assert_eq!(base, end);
                    prop_assert_eq!(log.end(), end + i64::from(count));
                    model.push((base, log.end()));
                }
                Step::Trim(to) => {
                    let reply = apply(&mut log, 0, Request::Trim(to), &rules);
                    let wanted = if to == -1 { end } else { to };
                    match reply {
                        Reply::Trimmed(at) => prop_assert_eq!(at, start.max(wanted)),
                        other => {
                            prop_assert_eq!(other, Reply::Refused(ResponseError::OffsetOutOfRange));
                            prop_assert!(wanted > end);
                        }
                    }
                }
                Step::Retain { now } => {
                    apply(&mut log, now, Request::Retain, &rules);
                    // Time over, everything of it is gone; otherwise at least the limit is kept.
                    let left: u64 = log.segments().map(|s| s.size).sum();
                    let expired = log.segments().next().is_none_or(|s| s.size == 0);
                    let all: u64 = model.len() as u64 * 5000;
                    prop_assert!(left >= 20_000.min(all) || expired || left <= all);
                }
            }
            prop_assert!(log.start() >= start && log.start() <= log.end());
            let mut last = i64::MIN;
            for segment in log.segments() {
                prop_assert!(segment.base >= last && segment.end >= segment.base);
                last = segment.end;
            }
            for &(base, next) in model.iter().filter(|(_, next)| *next > log.start()) {
                let at = log.locate(base.max(log.start())).unwrap();
                prop_assert!(at.segment <= base && at.position <= at.limit);
                prop_assert!(log.available(base.max(log.start())) > 0);
                prop_assert!(next <= log.end());
            }
            prop_assert_eq!(log.available(log.end()), 0);
        }
    }
}
