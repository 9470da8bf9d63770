//! Which queries are taken, what the refused ones are told, and what the accepted ones answer.

mod support;

use support::{RULES, block_on, feed, operator, plan, row};

/// Plans `sql` and expects a refusal whose text has all of `says`.
fn check_refused(sql: &str, says: &[&str]) {
    match block_on(plan(sql)) {
        Ok(_) => panic!("accepted: {sql}"),
        Err(error) => {
            let text = error.to_string();
            assert!(says.iter().all(|s| text.contains(s)), "{sql}\n  {text}\n  should say {says:?}");
        }
    }
}

#[test]
fn refusals_say_what_to_do() {
    let cases: [(&str, &[&str]); 19] = [
        ("SELECT k, count(*) FROM t GROUP BY k", &["no window", "tumble("]),
        ("SELECT k FROM t", &["no window"]),
        ("SELECT tumble(ts, interval '5 seconds') AS w FROM t", &["no window"]),
        ("SELECT k, count(*) FROM t GROUP BY ROLLUP (tumble(ts, interval '5 seconds'), k)", &["ROLLUP"]),
        (
            "SELECT k, count(*) FROM t GROUP BY GROUPING SETS ((tumble(ts, interval '5 seconds'), k), (k))",
            &["GROUPING SETS"],
        ),
        ("SELECT count(*) FROM t GROUP BY tumble(ts, interval '0 seconds')", &["tumble", "positive"]),
        ("SELECT count(*) FROM t GROUP BY tumble(ts, interval '1 month')", &["tumble", "months"]),
        ("SELECT count(*) FROM t GROUP BY tumble(ts, n)", &["tumble", "literal interval"]),
        ("SELECT count(*) FROM t GROUP BY hop(ts, interval '7 seconds', interval '60 seconds')", &["multiple"]),
        ("SELECT count(*) FROM t GROUP BY tumble(k, interval '5 seconds')", &["time column"]),
        (
            "SELECT count(*) FROM t GROUP BY tumble(ts + interval '1 hour', interval '5 seconds')",
            &["time column of the stream as it is"],
        ),
        ("SELECT count(*) FROM t GROUP BY tumble(ts, interval '5 seconds'), k", &["`k`", "SELECT list"]),
        (
            "SELECT k, now() FROM t GROUP BY tumble(ts, interval '5 seconds'), k",
            &["now() is not repeatable", "event_time"],
        ),
        (
            "SELECT count(*) FROM (SELECT * FROM t LIMIT 10) GROUP BY tumble(ts, interval '5 seconds')",
            &["below the window"],
        ),
        (
            "SELECT count(*) FROM (SELECT *, row_number() OVER (ORDER BY ts) AS r FROM t) \
             WHERE r < 3 GROUP BY tumble(ts, interval '5 seconds')",
            &["below the window"],
        ),
        ("SELECT count(*) FROM t a JOIN t b ON a.k = b.k GROUP BY tumble(a.ts, interval '5 seconds')", &["one scan"]),
        (
            "SELECT x.c FROM (SELECT tumble(ts, interval '5 seconds') AS w, count(*) AS c FROM t GROUP BY 1) x \
             JOIN (SELECT tumble(ts, interval '5 seconds') AS w, count(*) AS c FROM t GROUP BY 1) y ON x.w = y.w",
            &["one windowed aggregation"],
        ),
        (
            "SELECT approx_quantile(v, 2) FROM t GROUP BY tumble(ts, interval '5 seconds')",
            &["probability", "from 0 to 1"],
        ),
        ("SELECT count(*) FROM nothere GROUP BY tumble(ts, interval '5 seconds')", &["nothere"]),
    ];
    for (sql, says) in cases {
        check_refused(sql, says);
    }
}

/// Feeds five rows in two windows of 10 s and a sixth that closes both; compares the rows that come out.
fn check_rows(sql: &str, expected: &[&str]) {
    let got = block_on(async {
        let mut operator = operator(sql, RULES, 1).await;
        let rows = [
            row(1_000, "a", 1.0, 1),
            row(2_000, "b", 5.0, 2),
            row(9_999, "a", 2.0, 2),
            row(10_000, "a", 4.0, 3),
            row(19_000, "b", 8.0, 3),
            row(50_000, "z", 0.0, 0),
        ];
        feed(&mut operator, &rows).await
    });
    assert_eq!(got, expected, "{sql}");
}

#[test]
fn tumbling_windows_and_their_bounds() {
    check_rows(
        "SELECT window_start, window_end, k, count(*) AS c, sum(v) AS s FROM t \
         GROUP BY tumble(ts, interval '10 seconds'), k",
        &[
            "0..10000: window_start=1970-01-01T00:00:00 window_end=1970-01-01T00:00:10 k=a c=2 s=3.0",
            "0..10000: window_start=1970-01-01T00:00:00 window_end=1970-01-01T00:00:10 k=b c=1 s=5.0",
            "10000..20000: window_start=1970-01-01T00:00:10 window_end=1970-01-01T00:00:20 k=a c=1 s=4.0",
            "10000..20000: window_start=1970-01-01T00:00:10 window_end=1970-01-01T00:00:20 k=b c=1 s=8.0",
        ],
    );
}

#[test]
fn the_window_may_stand_anywhere_and_alone() {
    check_rows(
        "SELECT k, count(*) AS c FROM t GROUP BY k, tumble(ts, interval '20 seconds')",
        &["0..20000: k=a c=3", "0..20000: k=b c=2"],
    );
    check_rows("SELECT count(*) AS c FROM t GROUP BY tumble(ts, interval '20 seconds')", &["0..20000: c=5"]);
}

#[test]
fn hopping_windows_share_panes() {
    check_rows(
        "SELECT k, count(*) AS c FROM t WHERE k = 'a' GROUP BY hop(ts, interval '10 seconds', interval '20 seconds'), k",
        &["-10000..10000: k=a c=2", "0..20000: k=a c=3", "10000..30000: k=a c=1"],
    );
}

#[test]
fn distinct_counts_stay_one_aggregation() {
    check_rows(
        "SELECT count(DISTINCT n) AS d, count(DISTINCT k) AS e FROM t GROUP BY tumble(ts, interval '20 seconds')",
        &["0..20000: d=3 e=2"],
    );
    check_rows("SELECT count(DISTINCT n) AS d FROM t GROUP BY tumble(ts, interval '20 seconds')", &["0..20000: d=3"]);
}

#[test]
fn order_and_limit_apply_to_each_window() {
    check_rows(
        "SELECT k, sum(v) AS s FROM t GROUP BY tumble(ts, interval '10 seconds'), k ORDER BY s DESC LIMIT 1",
        &["0..10000: k=b s=5.0", "10000..20000: k=b s=8.0"],
    );
}

#[test]
fn having_and_expressions_above_the_window() {
    check_rows(
        "SELECT k, max(v) - min(v) AS spread FROM t GROUP BY tumble(ts, interval '10 seconds'), k HAVING count(*) > 1",
        &["0..10000: k=a spread=1.0"],
    );
}

#[test]
fn an_aggregation_over_the_windowed_one_runs_on_each_window() {
    check_rows(
        "SELECT w, max(c) AS most FROM (SELECT tumble(ts, interval '10 seconds') AS w, k, count(*) AS c FROM t \
         GROUP BY 1, 2) GROUP BY w",
        &["0..10000: w=1970-01-01T00:00:00 most=2", "10000..20000: w=1970-01-01T00:00:10 most=1"],
    );
}

#[test]
fn a_call_that_the_optimiser_hoists_is_still_found() {
    check_rows(
        "SELECT k, tumble(ts, interval '10 seconds') AS w, max(tumble(ts, interval '10 seconds')) AS m, \
         count(*) FILTER (WHERE tumble(ts, interval '10 seconds') = ts) AS f FROM t \
         WHERE v > 3 GROUP BY tumble(ts, interval '10 seconds'), k",
        &[
            "0..10000: k=b w=1970-01-01T00:00:00 m=1970-01-01T00:00:00 f=0",
            "10000..20000: k=a w=1970-01-01T00:00:10 m=1970-01-01T00:00:10 f=1",
            "10000..20000: k=b w=1970-01-01T00:00:10 m=1970-01-01T00:00:10 f=0",
        ],
    );
}

#[test]
fn a_renamed_time_column_is_traced_to_the_stream() {
    check_rows(
        "SELECT s.key, count(*) AS c FROM (SELECT ts AS moment, k AS key FROM t WHERE v > 3) s \
         GROUP BY tumble(moment, interval '20 seconds'), s.key",
        &["0..20000: key=b c=2", "0..20000: key=a c=1"],
    );
}

#[test]
fn quantiles_last_values_and_filters() {
    check_rows(
        "SELECT approx_quantile(v, 0.5) AS p50, approx_quantile(n, 1) AS p100, \
         last_value(v ORDER BY ts) AS last, first_value(v ORDER BY ts) AS first, \
         avg(v) FILTER (WHERE k = 'a') AS a, sin(0.0) + cos(0.0) AS one, \
         local_hour(window_start) AS h, local_weekday(window_start) AS d \
         FROM t GROUP BY tumble(ts, interval '20 seconds')",
        &["0..20000: p50=4.03125 p100=3.0 last=8.0 first=1.0 a=2.3333333333333335 one=1.0 h=0 d=3"],
    );
}

#[test]
fn group_columns_are_those_of_the_output() {
    let columns = |sql: &'static str| block_on(plan(sql)).expect("planned").group_columns().to_vec();
    assert_eq!(
        columns("SELECT count(*) AS c, n AS b, k AS a FROM t GROUP BY tumble(ts, interval '5 seconds'), k, n"),
        [2, 1],
        "in the order of GROUP BY"
    );
    assert_eq!(columns("SELECT count(*) AS c FROM t GROUP BY tumble(ts, interval '5 seconds')"), [0usize; 0]);
}
