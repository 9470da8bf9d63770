//! The rows of a window depend on the rows of the input alone.
//!
//! Random streams over several partitions, out of order within the lateness, are run through the operator with random
//! batches, interleavings, snapshots, restores and crashes with replay. The rows must be those that a direct
//! computation over the whole input gives, and bit for bit those of a run without disturbance.

mod support;

use aggregate::window::{Rules, WindowOperator};
use proptest::prelude::*;
use std::collections::BTreeMap;
use support::{Row, batch, block_on, lines, operator, restored, row, snapshots};

const LATENESS_MS: i64 = 5_000;
const RULES: Rules = Rules { lateness_ms: LATENESS_MS, max_ahead_ms: 1 << 50, idle_timeout_ms: 1 << 50 };
const KEYS: [&str; 3] = ["a", "b", "c"];
/// Last row of each partition: closes everything before it.
const END_MS: i64 = 10_000_000;

const COLUMNS: &str = "k, count(*) AS c, count(v) AS cv, sum(v) AS s, avg(v) AS a, min(n) AS lo, max(n) AS hi, \
    count(DISTINCT n) AS d, count(*) FILTER (WHERE n > 2) AS f, approx_quantile(v, 0.5) AS q, \
    last_value(n ORDER BY ts) AS l";

fn tumble() -> String {
    format!("SELECT {COLUMNS} FROM t WHERE n <> 7 GROUP BY tumble(ts, interval '10 seconds'), k")
}

fn hop() -> String {
    format!("SELECT {COLUMNS} FROM t WHERE n <> 7 GROUP BY hop(ts, interval '5 seconds', interval '20 seconds'), k")
}

/// Rows of one partition: time moves on in steps, each row up to the lateness behind the greatest before it.
fn partition_log() -> impl Strategy<Value = Vec<Row>> {
    let step = (0i64..4_000, 0i64..=LATENESS_MS, 0usize..3, prop::option::weighted(0.9, -50.0f64..50.0), 0i64..9);
    prop::collection::vec(step, 0..60).prop_map(|steps| {
        let mut front_ms = 0;
        let mut rows: Vec<Row> = steps
            .into_iter()
            .map(|(forward, back, key, v, n)| {
                front_ms += forward;
                Row { v, ..row(front_ms - back, KEYS[key], 0.0, n) }
            })
            .collect();
        rows.push(row(END_MS, "end", 0.0, 0));
        rows
    })
}

#[derive(Debug, Clone, Copy)]
enum Step {
    /// So many rows of that partition.
    Push(usize, usize),
    /// Emit what is complete.
    Advance,
    /// Write the state down.
    Snapshot,
    /// Go on from the state just written, in a new operator.
    Restart,
    /// Lose everything since the last snapshot and read the input again from there.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0usize..3, 1usize..20).prop_map(|(p, rows)| Step::Push(p, rows)),
        3 => Just(Step::Advance),
        2 => Just(Step::Snapshot),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 0..60)
}

/// State and input positions, written together.
#[derive(Clone, Default)]
struct Checkpoint {
    states: BTreeMap<i32, Vec<u8>>,
    positions: Vec<usize>,
    emitted: usize,
}

struct Run<'a> {
    sql: &'a str,
    logs: &'a [Vec<Row>],
    operator: WindowOperator,
    positions: Vec<usize>,
    emitted: Vec<String>,
    checkpoint: Checkpoint,
}

impl<'a> Run<'a> {
    async fn new(sql: &'a str, logs: &'a [Vec<Row>]) -> Self {
        let mut run = Run {
            sql,
            logs,
            operator: operator(sql, RULES, logs.len() as i32).await,
            positions: vec![0; logs.len()],
            emitted: Vec::new(),
            checkpoint: Checkpoint::default(),
        };
        run.snapshot();
        run
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Push(partition, rows) => self.push(partition % self.logs.len(), rows),
            Step::Advance => self.advance().await,
            Step::Snapshot => self.snapshot(),
            Step::Restart => {
                self.snapshot();
                self.operator = restored(self.sql, RULES, &self.checkpoint.states).await;
            }
            Step::Crash => {
                self.operator = restored(self.sql, RULES, &self.checkpoint.states).await;
                self.positions = self.checkpoint.positions.clone();
                self.emitted.truncate(self.checkpoint.emitted);
            }
        }
    }

    fn push(&mut self, partition: usize, rows: usize) {
        let from = self.positions[partition];
        let to = (from + rows).min(self.logs[partition].len());
        let pushed = self.operator.push(partition as i32, &batch(&self.logs[partition][from..to]), 0).expect("push");
        assert_eq!((pushed.late, pushed.failed), (0, 0), "nothing is later than the lateness");
        self.positions[partition] = to;
    }

    async fn advance(&mut self) {
        let closed = self.operator.advance(0).await.expect("advance");
        self.emitted.extend(lines(&closed));
    }

    fn snapshot(&mut self) {
        let (positions, emitted) = (self.positions.clone(), self.emitted.len());
        self.checkpoint = Checkpoint { states: snapshots(&mut self.operator), positions, emitted };
    }

    async fn finish(mut self) -> Vec<String> {
        for partition in 0..self.logs.len() {
            self.push(partition, usize::MAX / 2);
        }
        self.advance().await;
        assert!(self.operator.open_panes() <= 1 + 3 * self.logs.len(), "only the last rows' panes are open");
        self.emitted
    }
}

async fn run(sql: &str, logs: &[Vec<Row>], steps: &[Step]) -> Vec<String> {
    let mut run = Run::new(sql, logs).await;
    for step in steps {
        run.step(*step).await;
    }
    run.finish().await
}

/// The same by direct computation: window start → key → rows.
fn reference(logs: &[Vec<Row>], slide_ms: i64, width_ms: i64) -> BTreeMap<(i64, &'static str), Vec<Row>> {
    let mut windows: BTreeMap<(i64, &str), Vec<Row>> = BTreeMap::new();
    for row in logs.iter().flatten().filter(|r| r.n != 7) {
        let (Some(ts), Some(key)) = (row.ts, row.k) else { continue };
        let mut start_ms = ts.div_euclid(slide_ms) * slide_ms;
        while start_ms > ts - width_ms {
            if start_ms + width_ms + LATENESS_MS <= END_MS {
                windows.entry((start_ms, key)).or_default().push(row.clone());
            }
            start_ms -= slide_ms;
        }
    }
    windows
}

/// The exact columns of a line.
fn exact_line(start_ms: i64, width_ms: i64, key: &str, rows: &[Row]) -> String {
    let known = rows.iter().filter(|r| r.v.is_some()).count();
    let (lo, hi) = (rows.iter().map(|r| r.n).min().unwrap_or(0), rows.iter().map(|r| r.n).max().unwrap_or(0));
    let distinct = rows.iter().map(|r| r.n).collect::<std::collections::BTreeSet<_>>().len();
    let filtered = rows.iter().filter(|r| r.n > 2).count();
    let (c, end_ms) = (rows.len(), start_ms + width_ms);
    format!("{start_ms}..{end_ms}: k={key} c={c} cv={known} lo={lo} hi={hi} d={distinct} f={filtered}")
}

/// A line without its floating-point columns, and its sum.
fn split_line(line: &str) -> (String, f64) {
    let inexact = ["s=", "a=", "q=", "l="];
    let exact: Vec<&str> = line.split(' ').filter(|cell| !inexact.iter().any(|p| cell.starts_with(p))).collect();
    let sum = line.split(' ').find_map(|cell| cell.strip_prefix("s=")).unwrap_or("null");
    (exact.join(" "), sum.parse().unwrap_or(0.0))
}

fn check_against_reference(got: &[String], logs: &[Vec<Row>], slide_ms: i64, width_ms: i64) {
    let wanted = reference(logs, slide_ms, width_ms);
    let mut wanted: Vec<(String, f64)> = wanted
        .iter()
        .map(|((start, key), rows)| (exact_line(*start, width_ms, key, rows), rows.iter().filter_map(|r| r.v).sum()))
        .collect();
    let mut got: Vec<(String, f64)> = got.iter().map(|line| split_line(line)).collect();
    wanted.sort_by(|a, b| a.0.cmp(&b.0));
    got.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(got.iter().map(|g| &g.0).collect::<Vec<_>>(), wanted.iter().map(|w| &w.0).collect::<Vec<_>>());
    for (got, wanted) in got.iter().zip(&wanted) {
        assert!((got.1 - wanted.1).abs() < 1e-9, "{got:?} {wanted:?}");
    }
}

fn check(sql: &str, logs: &[Vec<Row>], steps: &[Step], slide_ms: i64, width_ms: i64) {
    block_on(async {
        let undisturbed = run(sql, logs, &[]).await;
        check_against_reference(&undisturbed, logs, slide_ms, width_ms);
        assert_eq!(run(sql, logs, steps).await, undisturbed, "bit for bit, in the same order");
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn tumbling(logs in prop::collection::vec(partition_log(), 1..4), steps in steps()) {
        check(&tumble(), &logs, &steps, 10_000, 10_000);
    }

    #[test]
    fn hopping(logs in prop::collection::vec(partition_log(), 1..4), steps in steps()) {
        check(&hop(), &logs, &steps, 5_000, 20_000);
    }
}

#[test]
fn a_snapshot_after_every_batch_changes_nothing() {
    let every = |step: Step| {
        let turn = |i: usize| [Step::Push(i % 2, 3), Step::Advance, step];
        (0..60).flat_map(turn).collect::<Vec<Step>>()
    };
    let logs: Vec<Vec<Row>> = (0..2)
        .map(|p| {
            let mut rows: Vec<Row> = (0..90i64)
                .map(|i| row(i * 700 - (i * 37 % 11) * 450, KEYS[(i % 3) as usize], 0.1 * i as f64, i % 8 + p))
                .collect();
            rows.push(row(END_MS, "end", 0.0, 0));
            rows
        })
        .collect();
    for step in [Step::Snapshot, Step::Restart, Step::Crash] {
        check(&tumble(), &logs, &every(step), 10_000, 10_000);
        check(&hop(), &logs, &every(step), 5_000, 20_000);
    }
}
