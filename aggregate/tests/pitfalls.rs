//! Traps that this kind of operator is known to fall into, one test each.

mod support;

use aggregate::window::{Rules, WindowOperator};
use support::{RULES, Row, batch, block_on, feed, lines, operator, restored, row, snapshots};

const COUNT: &str = "SELECT k, count(*) AS c FROM t GROUP BY tumble(ts, interval '10 seconds'), k";
const HOP: &str = "SELECT k, count(*) AS c FROM t GROUP BY hop(ts, interval '10 seconds', interval '20 seconds'), k";

#[test]
fn a_pane_without_new_rows_since_the_snapshot_still_closes() {
    block_on(async {
        let mut operator = operator(COUNT, RULES, 1).await;
        assert!(feed(&mut operator, &[row(1, "a", 0.0, 0)]).await.is_empty());
        snapshots(&mut operator);
        assert_eq!(feed(&mut operator, &[row(30_000, "a", 0.0, 0)]).await, ["0..10000: k=a c=1"]);
    });
}

#[test]
fn a_snapshot_between_two_overlapping_windows_keeps_what_the_first_has_used() {
    block_on(async {
        let mut operator = operator(HOP, RULES, 1).await;
        let first = feed(&mut operator, &[row(1, "a", 0.0, 0), row(10_001, "a", 0.0, 0)]).await;
        assert_eq!(first, ["-10000..10000: k=a c=1"]);
        let states = snapshots(&mut operator);
        let mut again = restored(HOP, RULES, &states).await;
        for operator in [&mut operator, &mut again] {
            let rest = feed(operator, &[row(90_000, "z", 0.0, 0)]).await;
            assert_eq!(rest, ["0..20000: k=a c=2", "10000..30000: k=a c=1"]);
        }
    });
}

#[test]
fn input_out_of_order_gives_one_row_a_group() {
    block_on(async {
        let rules = Rules { lateness_ms: 20_000, ..RULES };
        let mut operator = operator(COUNT, rules, 1).await;
        let mut out = Vec::new();
        for ts in [15_000, 3_000, 27_000, 8_000, 19_000, 12_000, 21_000] {
            out.extend(feed(&mut operator, &[row(ts, "a", 0.0, 0)]).await);
        }
        out.extend(feed(&mut operator, &[row(99_000, "a", 0.0, 0)]).await);
        assert_eq!(out, ["0..10000: k=a c=2", "10000..20000: k=a c=3", "20000..30000: k=a c=2"]);
    });
}

#[test]
fn a_timestamp_far_in_the_future_is_dropped_and_counted() {
    block_on(async {
        let mut operator = operator(COUNT, Rules { max_ahead_ms: 5_000, ..RULES }, 1).await;
        let mad = Row { rt: Some(2_000), ..row(4_102_444_800_000, "a", 0.0, 0) };
        let sane = |ts| Row { rt: Some(ts), ..row(ts, "a", 0.0, 0) };
        let pushed = operator.push(0, &batch(&[sane(1_000), mad, sane(2_000)]), 0).expect("push");
        assert_eq!((pushed.accepted, pushed.ahead), (2, 1));
        assert!(operator.advance(0).await.expect("advance").is_empty(), "nothing closed");
        assert_eq!(operator.open_panes(), 1);
        assert_eq!(feed(&mut operator, &[sane(10_000)]).await, ["0..10000: k=a c=2"]);
    });
}

#[test]
fn late_and_untimed_rows_are_counted_and_change_nothing() {
    block_on(async {
        let mut operator = operator(COUNT, RULES, 1).await;
        assert_eq!(feed(&mut operator, &[row(1, "a", 0.0, 0), row(10_000, "a", 0.0, 0)]).await.len(), 1);
        let untimed = Row { ts: None, ..row(0, "a", 0.0, 0) };
        let pushed = operator.push(0, &batch(&[row(9_999, "a", 0.0, 0), untimed, row(10_001, "a", 0.0, 0)]), 0);
        let pushed = pushed.expect("push");
        assert_eq!((pushed.accepted, pushed.late, pushed.untimed), (1, 1, 1));
        assert_eq!(feed(&mut operator, &[row(20_000, "a", 0.0, 0)]).await, ["10000..20000: k=a c=2"]);
    });
}

#[test]
fn rows_that_an_expression_fails_on_do_not_stop_the_others() {
    block_on(async {
        let sql = "SELECT CAST(k AS BIGINT) AS line, count(*) AS c FROM t \
                   GROUP BY tumble(ts, interval '10 seconds'), CAST(k AS BIGINT)";
        let mut operator = operator(sql, RULES, 1).await;
        let rows: Vec<Row> =
            ["1", "1004 4", "1", "x", "2"].iter().map(|k| Row { k: Some(k), ..row(5, "", 0.0, 0) }).collect();
        let pushed = operator.push(0, &batch(&rows), 0).expect("push");
        assert_eq!((pushed.accepted, pushed.failed), (3, 2));
        assert!(pushed.failure.is_some_and(|f| f.contains("1004 4")), "the first failure is told");
        let end = Row { k: Some("9"), ..row(10_000, "", 0.0, 0) };
        assert_eq!(feed(&mut operator, &[end]).await, ["0..10000: line=1 c=2", "0..10000: line=2 c=1"]);
    });
}

#[test]
fn a_failure_above_the_window_loses_that_window_alone() {
    block_on(async {
        let sql = "SELECT k, 100 / min(n) AS x FROM t GROUP BY tumble(ts, interval '10 seconds'), k";
        let mut operator = operator(sql, RULES, 1).await;
        operator
            .push(0, &batch(&[row(1, "a", 0.0, 0), row(10_001, "a", 0.0, 4), row(20_000, "z", 0.0, 1)]), 0)
            .expect("push");
        let mut closed = operator.advance(0).await.expect("advance");
        assert_eq!(closed.len(), 2);
        assert!(closed.remove(0).rows.is_err());
        assert_eq!(lines(&closed), ["10000..20000: k=a x=25"]);
    });
}

#[test]
fn a_batch_spread_over_more_panes_than_are_counted_is_sorted() {
    block_on(async {
        let sql = "SELECT k, count(*) AS c FROM t GROUP BY tumble(ts, interval '1 millisecond'), k";
        let mut operator = operator(sql, Rules { lateness_ms: 1 << 40, ..RULES }, 1).await;
        let spread: Vec<Row> = (0..5_000i64).rev().map(|i| row(i * 3, "a", 0.0, 0)).collect();
        operator.push(0, &batch(&spread), 0).expect("push");
        assert_eq!(operator.open_panes(), 5_000);
        assert_eq!(feed(&mut operator, &[row(1 << 41, "a", 0.0, 0)]).await.len(), 5_000);
    });
}

#[test]
fn quantiles_do_not_depend_on_how_the_partials_fell() {
    let sql = "SELECT approx_quantile(v, 0.95) AS p95 FROM t GROUP BY tumble(ts, interval '10 seconds')";
    let values: Vec<f64> = (0..4_000).map(|i| f64::from((i * 7919) % 4_001) - 1_000.0).collect();
    let run = |batch_rows: usize, restore: bool| {
        let rows: Vec<Row> = values.iter().map(|v| row(5, "a", *v, 0)).collect();
        block_on(async move {
            let mut operator = operator(sql, RULES, 1).await;
            for chunk in rows.chunks(batch_rows) {
                feed(&mut operator, chunk).await;
                if restore {
                    let states = snapshots(&mut operator);
                    operator = restored(sql, RULES, &states).await;
                }
            }
            feed(&mut operator, &[row(10_000, "a", 0.0, 0)]).await
        })
    };
    let whole = run(4_000, false);
    assert_eq!(run(4, false), whole);
    assert_eq!(run(40, true), whole);
}

#[test]
fn two_states_of_different_age_emit_nothing_twice() {
    block_on(async {
        let mut first = operator(COUNT, RULES, 2).await;
        let push = |operator: &mut WindowOperator, p, ts| {
            operator.push(p, &batch(&[row(ts, "a", 0.0, 0)]), 0).map(|_| ()).expect("push");
        };
        push(&mut first, 0, 1);
        push(&mut first, 1, 2);
        let old = snapshots(&mut first);
        push(&mut first, 0, 10_000);
        push(&mut first, 1, 10_001);
        assert_eq!(lines(&first.advance(0).await.expect("advance")), ["0..10000: k=a c=2"]);
        // A crash after only partition 0's state was written again.
        let mut states = snapshots(&mut first);
        states.insert(1, old[&1].clone());
        let mut second = restored(COUNT, RULES, &states).await;
        push(&mut second, 1, 10_001);
        push(&mut second, 0, 20_000);
        push(&mut second, 1, 20_000);
        assert_eq!(lines(&second.advance(0).await.expect("advance")), ["10000..20000: k=a c=2"]);
    });
}

#[test]
fn a_partition_from_a_slower_process_loses_no_window() {
    block_on(async {
        let mut slow = operator(COUNT, RULES, 0).await;
        slow.assign(1, 0);
        slow.push(1, &batch(&[row(1, "b", 0.0, 0), row(10_001, "b", 0.0, 0)]), 0).expect("push");
        assert_eq!(lines(&slow.advance(0).await.expect("advance")), ["0..10000: k=b c=1"]);
        let state = slow.snapshot(1).expect("snapshot");
        let closed_end_ms = state.closed_end_ms;

        let mut fast = operator(COUNT, RULES, 1).await;
        assert_eq!(feed(&mut fast, &[row(1, "a", 0.0, 0), row(50_000, "a", 0.0, 0)]).await, ["0..10000: k=a c=1"]);
        fast.restore(1, state, closed_end_ms, 0);
        fast.push(1, &batch(&[row(12_000, "b", 0.0, 0), row(60_000, "b", 0.0, 0)]), 0).expect("push");
        assert_eq!(lines(&fast.advance(0).await.expect("advance")), ["10000..20000: k=b c=2"]);
        fast.push(0, &batch(&[row(60_000, "a", 0.0, 0)]), 0).expect("push");
        assert_eq!(lines(&fast.advance(0).await.expect("advance")), ["50000..60000: k=a c=1"]);
    });
}

#[test]
fn an_idle_partition_is_not_waited_for_and_its_late_rows_are_counted() {
    block_on(async {
        let mut operator = operator(COUNT, Rules { idle_timeout_ms: 1_000, ..RULES }, 2).await;
        operator.push(0, &batch(&[row(1, "a", 0.0, 0), row(10_000, "a", 0.0, 0)]), 500).expect("push");
        assert!(operator.advance(999).await.expect("advance").is_empty(), "partition 1 has said nothing");
        assert_eq!(lines(&operator.advance(1_000).await.expect("advance")), ["0..10000: k=a c=1"]);
        let pushed = operator.push(1, &batch(&[row(5, "b", 0.0, 0), row(10_005, "b", 0.0, 0)]), 1_100).expect("push");
        assert_eq!((pushed.accepted, pushed.late), (1, 1));
        assert_eq!(operator.watermark_ms(1_100), Some(10_000));
        assert_eq!(operator.ahead_of_watermark_ms(1_100), [(0, 0), (1, 5)].into());
    });
}

#[test]
fn memory_is_given_back_when_windows_close() {
    block_on(async {
        let mut operator = operator(COUNT, RULES, 1).await;
        let rows: Vec<Row> = (0..3_000i64).map(|i| row(i * 10, "a", 0.0, 0)).collect();
        operator.push(0, &batch(&rows), 0).expect("push");
        let full = (operator.open_panes(), operator.state_bytes());
        operator.advance(0).await.expect("advance");
        assert_eq!(full.0, 3);
        assert!(operator.open_panes() == 1 && operator.state_bytes() < full.1, "{full:?}");
        operator.revoke(0);
        assert_eq!((operator.open_panes(), operator.state_bytes()), (0, 0));
    });
}
