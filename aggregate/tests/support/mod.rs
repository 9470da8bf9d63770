//! A small stream `t (ts, rt, k, v, n)` and a driver for the window operator.
#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(unreachable_pub, reason = "shared by several test binaries")]

use aggregate::sql::{Stream, session};
use aggregate::window::{ClosedWindow, QueryError, Rules, Snapshot, WindowOperator, WindowPlan, closed_ends};
use arrow::array::{Float64Array, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use jiff::tz::TimeZone;
use std::collections::BTreeMap;
use std::sync::Arc;

/// One row; times in milliseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub ts: Option<i64>,
    pub rt: Option<i64>,
    pub k: Option<&'static str>,
    pub v: Option<f64>,
    pub n: i64,
}

pub fn row(ts: i64, k: &'static str, v: f64, n: i64) -> Row {
    Row { ts: Some(ts), rt: None, k: Some(k), v: Some(v), n }
}

pub fn stream() -> Stream {
    let time = || DataType::Timestamp(TimeUnit::Millisecond, None);
    let schema = Arc::new(Schema::new(vec![
        Field::new("ts", time(), true),
        Field::new("rt", time(), true),
        Field::new("k", DataType::Utf8, true),
        Field::new("v", DataType::Float64, true),
        Field::new("n", DataType::Int64, false),
    ]));
    Stream { table: "t", schema, received_at: Some("rt") }
}

pub fn batch(rows: &[Row]) -> RecordBatch {
    RecordBatch::try_new(
        stream().schema,
        vec![
            Arc::new(rows.iter().map(|r| r.ts).collect::<TimestampMillisecondArray>()),
            Arc::new(rows.iter().map(|r| r.rt).collect::<TimestampMillisecondArray>()),
            Arc::new(rows.iter().map(|r| r.k).collect::<StringArray>()),
            Arc::new(rows.iter().map(|r| r.v).collect::<Float64Array>()),
            Arc::new(rows.iter().map(|r| Some(r.n)).collect::<Int64Array>()),
        ],
    )
    .expect("arrays fit the schema")
}

pub const RULES: Rules = Rules { lateness_ms: 0, max_ahead_ms: 1 << 50, idle_timeout_ms: 1 << 50 };

pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime").block_on(future)
}

pub async fn plan(sql: &str) -> Result<WindowPlan, QueryError> {
    let context = session(&stream(), &TimeZone::UTC)?;
    WindowPlan::compile(&context, sql, &stream()).await
}

/// An operator that owns partitions 0 to `partitions`.
pub async fn operator(sql: &str, rules: Rules, partitions: i32) -> WindowOperator {
    let plan = plan(sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let mut operator = WindowOperator::new(plan, rules);
    (0..partitions).for_each(|p| operator.assign(p, 0));
    operator
}

/// One text a row: `start..end: column=value …`, floating-point numbers with all their digits.
pub fn lines(windows: &[ClosedWindow]) -> Vec<String> {
    windows
        .iter()
        .flat_map(|window| {
            let rows = window.rows.as_ref().expect("the query works on its rows");
            (0..rows.num_rows()).map(|r| format!("{}..{}: {}", window.start_ms, window.end_ms, line(rows, r)))
        })
        .collect()
}

fn line(rows: &RecordBatch, row: usize) -> String {
    let options = FormatOptions::default().with_null("null");
    let schema = rows.schema();
    let cells = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
        let formatter = ArrayFormatter::try_new(column, &options).expect("printable");
        format!("{}={}", field.name(), formatter.value(row))
    });
    cells.collect::<Vec<_>>().join(" ")
}

/// Pushes one batch into partition 0 and returns the rows of what closed.
pub async fn feed(operator: &mut WindowOperator, rows: &[Row]) -> Vec<String> {
    operator.push(0, &batch(rows), 0).expect("push");
    lines(&operator.advance(0).await.expect("advance"))
}

/// The serialised state of every partition.
pub fn snapshots(operator: &mut WindowOperator) -> BTreeMap<i32, Vec<u8>> {
    operator
        .partitions()
        .into_iter()
        .map(|p| {
            let snapshot = operator.snapshot(p).expect("snapshot");
            (p, operator.encode(&snapshot).expect("encode"))
        })
        .collect()
}

/// A fresh operator with these states.
pub async fn restored(sql: &str, rules: Rules, states: &BTreeMap<i32, Vec<u8>>) -> WindowOperator {
    let mut operator = operator(sql, rules, 0).await;
    let decoded: BTreeMap<i32, Snapshot> =
        states.iter().map(|(p, bytes)| (*p, operator.decode(bytes).expect("decode"))).collect();
    let ends = closed_ends(&decoded);
    for (partition, snapshot) in decoded {
        operator.restore(partition, snapshot, ends[&partition], 0);
    }
    operator
}
