//! The built-in queries on a small recorded-like input: rows as they go to Kafka, against files.
//!
//! `UPDATE_GOLDEN=1 cargo test -p aggregate --test golden` writes the files anew; read the difference before you
//! keep it.

use aggregate::config::Query;
use aggregate::metrics::Metrics;
use aggregate::pipeline::Pipeline;
use aggregate::{Config, queries};
use runtime::{OutRecord, Record};
use schemas::Topics;
use schemas::prediction::InferRequest;
use schemas::telemetry::VehicleEvent;
use std::collections::BTreeMap;
use std::path::PathBuf;

const INPUT: &str = include_str!("golden/telemetry.jsonl");

fn run(query: Query) -> Vec<OutRecord> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(async {
        let config = Config { query: Some(vec![query]), services: vec!["delay".to_owned()], ..Config::default() };
        let metrics = Metrics::register(&runtime::metrics::new_registry());
        let mut pipeline = Pipeline::new(&config, &Topics::default(), metrics).await.expect("planned");
        pipeline.assign(&[0], &BTreeMap::new(), 0);
        for (offset, line) in (0..).zip(INPUT.lines()) {
            pipeline.record(&Record {
                topic: "telemetry.vehicle".to_owned(),
                partition: 0,
                offset,
                timestamp_ms: 0,
                key: None,
                value: Some(line.as_bytes().to_vec().into()),
                headers: runtime::Headers::default(),
            });
        }
        pipeline.flush(0).await.expect("flushed")
    })
}

fn line(record: &OutRecord) -> String {
    let text =
        |bytes: &Option<bytes::Bytes>| String::from_utf8_lossy(bytes.as_deref().unwrap_or_default()).into_owned();
    format!("{} {} {}\n", record.topic, text(&record.key), text(&record.value))
}

fn check(query: Query) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("{}.rows", query.name));
    let got: String = run(query).iter().map(line).collect();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&file, &got).expect("written");
    }
    let wanted = std::fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(got, wanted, "{} differs", file.display());
}

#[test]
fn line_speed() {
    check(queries::line_speed());
}

#[test]
fn fleet() {
    check(queries::fleet());
}

#[test]
fn delay_features() {
    check(queries::delay_features());
}

/// The definition of the features, row by row, as `models/training/features.py` has it.
fn features(rows: &[VehicleEvent]) -> Vec<f64> {
    let deviation: Vec<f64> = rows.iter().filter_map(|r| r.schedule_deviation_s).map(|s| s as f64).collect();
    let speed: Vec<f64> = rows.iter().filter_map(|r| r.speed_mps).collect();
    let odometer: Vec<f64> = rows.iter().filter_map(|r| r.odometer_m).map(|m| m as f64).collect();
    let mean = |xs: &[f64]| if xs.is_empty() { 0.0 } else { xs.iter().sum::<f64>() / xs.len() as f64 };
    let max = |xs: &[f64]| xs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = |xs: &[f64]| xs.iter().copied().fold(f64::INFINITY, f64::min);
    let fraction =
        |is: &dyn Fn(&VehicleEvent) -> bool| rows.iter().filter(|r| is(r)).count() as f64 / rows.len() as f64;
    let last_s = rows[rows.len() - 1].event_time_ms as f64 / 1000.0;
    let hour = std::f64::consts::TAU * (last_s % 86_400.0) / 86_400.0;
    let weekday = std::f64::consts::TAU * (((last_s / 86_400.0).floor() + 3.0) % 7.0) / 7.0;
    vec![
        mean(&deviation),
        min(&deviation),
        max(&deviation),
        deviation[deviation.len() - 1],
        rows.len() as f64,
        mean(&speed),
        if speed.is_empty() { 0.0 } else { max(&speed) },
        speed.iter().filter(|s| **s < 0.5).count() as f64 / rows.len() as f64,
        fraction(&|r| r.doors_open == Some(true)),
        fraction(&|r| r.stop.is_some()),
        if odometer.is_empty() { 0.0 } else { max(&odometer) - min(&odometer) },
        last_s - rows[0].event_time_ms as f64 / 1000.0,
        hour.sin(),
        hour.cos(),
        weekday.sin(),
        weekday.cos(),
    ]
}

#[test]
fn the_query_computes_the_features_that_the_model_was_trained_on() {
    let mut windows: BTreeMap<(String, i64), Vec<VehicleEvent>> = BTreeMap::new();
    for line in INPUT.lines() {
        let event: VehicleEvent = serde_json::from_str(line).expect("an event");
        if event.journey_type == "journey" && event.temporal.as_deref() == Some("ongoing") {
            let end_ms = (event.event_time_ms.div_euclid(15_000) + 1) * 15_000;
            windows.entry((format!("{}/{}", event.operator, event.vehicle), end_ms)).or_default().push(event);
        }
    }
    let mut wanted: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for ((key, end_ms), mut rows) in windows {
        rows.sort_by_key(|r| r.event_time_ms);
        if rows.iter().any(|r| r.schedule_deviation_s.is_some()) {
            wanted.insert(format!("delay_features/{key}/{end_ms}"), features(&rows));
        }
    }
    let records = run(queries::delay_features());
    assert_eq!(records.len(), wanted.len());
    assert!(records.len() >= 12, "two vehicles, seven windows");
    for record in records {
        let request: InferRequest =
            serde_json::from_slice(record.value.as_deref().unwrap_or_default()).expect("a request");
        let id = request.id.expect("an id");
        let wanted = wanted.remove(&id).unwrap_or_else(|| panic!("{id} is not wanted, or came twice"));
        let got = request.inputs[0].to_fp32().expect("a tensor");
        assert_eq!(request.inputs[0].shape, [1, queries::DELAY_FEATURES.len()]);
        for ((name, got), wanted) in queries::DELAY_FEATURES.iter().zip(got).zip(wanted) {
            let tolerance = 1e-5 * wanted.abs().max(1.0);
            assert!((f64::from(got) - wanted).abs() < tolerance, "{id} {name}: {got} instead of {wanted}");
        }
    }
}
