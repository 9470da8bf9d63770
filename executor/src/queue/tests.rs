//! Tests of the queue.

#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const IDLE: Workers = Workers { total: 1, busy: 0, busy_rows: 0 };
const BUSY: Workers = Workers { total: 1, busy: 1, busy_rows: 1 };

fn queue(capacity: usize, max_batch: u32, window_ms: i64) -> Queue<u64> {
    let time = ServiceTime { per_row_ms: 10.0, batch_p95_ms: 12.0 };
    Queue::new(Limits { capacity, max_batch, window_ms }, time)
}

fn entry(item: u64, deadline_ms: EpochMs) -> Entry<u64> {
    Entry { class: Class::Normal, order: None, deadline_ms, rows: 1, queued_ms: 0, item }
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
fn what_is_put_back_is_taken_again_and_keeps_its_order() {
    let mut q = queue(10, 2, 0);
    let ordered = |item, deadline| Entry { order: Some(7), ..entry(item, deadline) };
    for (item, deadline) in [(1, 500), (2, 400)] {
        q.push(0, ordered(item, deadline), BUSY).unwrap();
    }
    q.push(0, entry(3, 450), BUSY).unwrap();
    let taken = q.take(0);
    assert_eq!(items(&taken), [3, 1], "2 is behind 1");
    let (len, rows) = (q.len(), q.rows());
    for entry in taken.batch {
        q.put_back(entry);
    }
    assert_eq!((q.len(), q.rows()), (len + 2, rows + 2));
    assert_eq!(items(&q.take(0)), [3, 1], "2 is still behind 1");
    q.finished(Some(7));
    assert_eq!(items(&q.take(0)), [2]);
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

#[test]
fn a_higher_class_goes_first_and_batches_hold_one_class() {
    let mut q = queue(10, 8, 0);
    let of = |class, item, deadline| Entry { class, ..entry(item, deadline) };
    q.push(0, of(Class::Batch, 1, 50), BUSY).unwrap();
    q.push(0, of(Class::Normal, 2, 900), BUSY).unwrap();
    q.push(0, of(Class::High, 3, 1000), BUSY).unwrap();
    q.push(0, of(Class::High, 4, 950), BUSY).unwrap();
    assert_eq!(q.backlog_ms(IDLE), 30.0, "background work yields");
    assert_eq!(items(&q.take(0)), [4, 3]);
    assert_eq!(items(&q.take(0)), [2]);
    assert_eq!(items(&q.take(0)), [1]);
}

#[test]
fn a_full_queue_makes_room_for_a_higher_class_only() {
    let mut q = queue(2, 8, 0);
    let of = |class, item| Entry { class, ..entry(item, 1000) };
    q.push(0, of(Class::Batch, 1), BUSY).unwrap();
    q.push(0, of(Class::Normal, 2), BUSY).unwrap();
    assert_eq!(q.push(0, of(Class::Batch, 3), BUSY).unwrap_err().reason, Reason::Overloaded);
    q.push(0, of(Class::Normal, 4), BUSY).unwrap();
    assert_eq!(q.len(), 2);
    assert_eq!(q.push(0, of(Class::Normal, 5), BUSY).unwrap_err().reason, Reason::Overloaded);
    let taken = q.take(0);
    assert_eq!(items(&taken), [2, 4]);
    assert_eq!(taken.shed.iter().map(|r| (r.item, r.reason)).collect::<Vec<_>>(), [(1, Reason::Overloaded)]);
    assert!(q.is_empty());
}

#[test]
fn requests_of_an_order_key_go_one_by_one_in_the_order_in_which_they_came() {
    let mut q = queue(10, 8, 0);
    let of = |item, deadline, order| Entry { order, ..entry(item, deadline) };
    q.push(0, of(1, 900, Some(7)), BUSY).unwrap();
    q.push(0, of(2, 100, Some(7)), BUSY).unwrap();
    q.push(0, of(3, 800, None), BUSY).unwrap();
    q.push(0, of(4, 850, Some(8)), BUSY).unwrap();
    assert_eq!(items(&q.take(0)), [3, 4, 1], "2 is the most urgent and waits for 1");
    assert!(q.take(0).batch.is_empty() && q.len() == 1);
    q.finished(Some(8));
    assert!(q.take(0).batch.is_empty());
    q.finished(Some(7));
    assert_eq!(items(&q.take(0)), [2]);
    q.finished(Some(7));
    q.push(0, of(5, 100, Some(7)), BUSY).unwrap();
    assert_eq!(items(&q.take(0)), [5], "the lane is gone");
}

#[derive(Debug, Clone)]
enum Step {
    Push { deadline_in: i64, rows: u32, class: Class, order: Option<u64> },
    Take,
    Remove { modulo: u64 },
    Wait(i64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (-20i64..400, 1u32..6, 0usize..3, proptest::option::of(0u64..3)).prop_map(|(deadline_in, rows, class, order)| {
            Step::Push { deadline_in, rows, class: [Class::High, Class::Normal, Class::Batch][class], order }
        }),
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
        let mut running: Vec<Option<u64>> = Vec::new();
        let mut last_of_key = BTreeMap::new();
        for s in steps {
            match s {
                Step::Push { deadline_in, rows, class, order } => {
                    next += 1;
                    match q.push(now, Entry { rows, class, order, ..entry(next, now + deadline_in) }, workers) {
                        Ok(()) => { inside.insert(next); }
                        Err(refusal) => {
                            prop_assert_eq!(refusal.item, next);
                            prop_assert!(left.insert(next));
                            prop_assert_eq!(refusal.reason == Reason::DeadlinePast, deadline_in <= 0);
                        }
                    }
                }
                Step::Take => {
                    // What the worker had is done before it comes for more.
                    for order in running.drain(..) {
                        q.finished(order);
                    }
                    let taken = q.take(now);
                    running = taken.batch.iter().map(|e| e.order).collect();
                    for entry in &taken.batch {
                        let Some(order) = entry.order else { continue };
                        prop_assert!(running.iter().filter(|o| **o == Some(order)).count() == 1, "one at a time");
                        let before = last_of_key.insert(order, entry.item);
                        prop_assert!(before.is_none_or(|before| before < entry.item), "in the order in which they came");
                    }
                    prop_assert!(taken.batch.windows(2).all(|w| w[0].class == w[1].class));
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
            prop_assert!(q.len() <= inside.len(), "and those displaced, which the next worker is told");
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
