//! The whole role in process, over the in-memory broker: delivery, restarts, crashes, rebalances, arrivals.

use aggregate::config::{Query, Sink};
use aggregate::{Config, run};
use runtime::config::ConfigDuration;
use runtime::memory::MemoryBus;
use runtime::{Bus, Clock, Context, ManualClock, OutRecord, Readiness, Record, TopicPartition};
use schemas::Message;
use schemas::aggregates::WindowRow;
use schemas::prediction::InferRequest;
use schemas::status::ExecutorStatus;
use schemas::workload::WorkloadObserved;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const TELEMETRY: &str = "telemetry.vehicle";
const AGGREGATES: &str = "transit.aggregates";
const PARTITIONS: i32 = 2;

struct World {
    bus: MemoryBus,
    clock: Arc<ManualClock>,
    registry: runtime::SharedRegistry,
    readiness: Readiness,
}

impl World {
    fn new() -> Self {
        let clock = Arc::new(ManualClock::new(0));
        let bus = MemoryBus::new(clock.clone());
        bus.create(TELEMETRY, PARTITIONS);
        World { bus, clock, registry: runtime::metrics::new_registry(), readiness: Readiness::default() }
    }

    fn start(&self, config: Config) -> (CancellationToken, JoinHandle<Result<(), aggregate::Error>>) {
        let context = Context {
            bus: Arc::new(self.bus.clone()),
            clock: self.clock.clone(),
            registry: self.registry.clone(),
            readiness: self.readiness.clone(),
        };
        let token = CancellationToken::new();
        (token.clone(), tokio::spawn(run(config, context, token)))
    }

    /// One message of vehicle `v` in its partition.
    async fn tell(&self, partition: i32, v: &str, event_time_ms: i64, deviation_s: Option<i64>) {
        let mut event = json!({
            "schema": "telemetry.vehicle.v1", "source": "hfp.v2", "operator": "1", "vehicle": v, "event": "VP",
            "journey_type": "journey", "event_time_ms": event_time_ms, "received_at_ms": event_time_ms,
        });
        if let Some(s) = deviation_s {
            event["schedule_deviation_s"] = s.into();
        }
        self.put(TELEMETRY, partition, event.to_string()).await;
    }

    async fn put(&self, topic: &str, partition: i32, value: String) {
        let record = OutRecord { partition: Some(partition), ..OutRecord::new(topic).value(value) };
        self.bus.sink().send(record).await.expect("sent");
    }

    async fn wait(&self, topic: &str, what: &str, condition: impl FnMut(&[Record]) -> bool) -> Vec<Record> {
        let waiting = self.bus.wait_until(topic, condition);
        match tokio::time::timeout(Duration::from_secs(30), waiting).await {
            Ok(records) => records,
            Err(_) => panic!("{topic}: {what} never happened; it has {} records", self.bus.records(topic).len()),
        }
    }

    /// Waits until arrivals are counted: time that passes before is time when nobody counts.
    async fn wait_counting(&self) {
        let counting = || self.readiness.checks().get("workload").is_some_and(|c| c.detail.starts_with("counting"));
        let waiting = async {
            while !counting() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let limit = Duration::from_secs(30);
        tokio::time::timeout(limit, waiting).await.unwrap_or_else(|_| panic!("{:?}", self.readiness.checks()));
    }

    /// Waits until the group's offsets are at the end of the input.
    async fn wait_committed(&self) {
        let ends: BTreeMap<TopicPartition, i64> =
            self.bus.records(TELEMETRY).iter().fold(BTreeMap::new(), |mut m, r| {
                m.insert(r.topic_partition(), r.offset + 1);
                m
            });
        let committed = || self.bus.committed("barista.aggregate");
        self.wait("aggregate.state", "a commit of the whole input", |_| {
            let committed = committed();
            ends.iter().all(|(tp, end)| committed.get(tp) == Some(end))
        })
        .await;
    }
}

fn fast(query: Vec<Query>, services: &[&str]) -> Config {
    Config {
        commit_interval: ConfigDuration::from_millis(10),
        batch_latency: ConfigDuration::from_millis(2),
        lateness: ConfigDuration::from_millis(0),
        interval: ConfigDuration::from_millis(1_000),
        idle_timeout: ConfigDuration::from_secs(86_400),
        query: Some(query),
        services: services.iter().map(|s| (*s).to_owned()).collect(),
        ..Config::default()
    }
}

fn by_vehicle(sink: Sink) -> Query {
    let json = json!({
        "name": "by_vehicle",
        "sql": "SELECT operator, vehicle, count(*) AS c, avg(schedule_deviation_s) AS d FROM telemetry \
                GROUP BY tumble(event_time, interval '10 seconds'), operator, vehicle",
        "sink": sink, "features": ["c", "d"],
    });
    serde_json::from_value(json).expect("a query")
}

fn rows(records: &[Record]) -> Vec<WindowRow> {
    records.iter().map(|r| WindowRow::decode(r.value.as_deref().unwrap_or_default()).expect("a row")).collect()
}

/// Count by group and window; the same window must not come with different content.
fn counts(records: &[Record]) -> BTreeMap<(String, i64), i64> {
    let mut counts = BTreeMap::new();
    for row in rows(records) {
        let count = row.columns["c"].as_i64().expect("a count");
        let before = counts.insert((row.group_key.clone(), row.window_start_ms), count);
        assert!(before.is_none_or(|b| b == count), "{row:?} was {before:?} before");
    }
    counts
}

/// Tells `seconds` of two vehicles a partition, then waits until all is committed.
async fn drive(world: &World, seconds: std::ops::Range<i64>) {
    for second in seconds {
        for partition in 0..PARTITIONS {
            for v in ["a", "b"] {
                world.tell(partition, &format!("{v}{partition}"), second * 1_000, Some(second)).await;
            }
        }
    }
    world.wait_committed().await;
}

/// Every window of the first `windows` × 10 s with all its rows.
fn complete(windows: i64) -> BTreeMap<(String, i64), i64> {
    let groups = ["1/a0", "1/b0", "1/a1", "1/b1"];
    (0..windows).flat_map(|w| groups.map(|g| ((g.to_owned(), w * 10_000), 10))).collect()
}

#[tokio::test]
async fn rows_go_out_and_a_restart_goes_on_where_the_last_run_ended() {
    let world = World::new();
    for range in [0..13, 13..27, 27..41] {
        let (token, task) = world.start(fast(vec![by_vehicle(Sink::Aggregates)], &[]));
        drive(&world, range).await;
        token.cancel();
        task.await.expect("no panic").expect("a clean end");
    }
    let records = world.bus.records(AGGREGATES);
    assert_eq!(counts(&records), complete(4));
    assert_eq!(records.len(), 16, "a clean restart repeats nothing");
    let record = &records[0];
    assert_eq!(record.key_str(), format!("by_vehicle/{}", rows(&records)[0].group_key));
}

#[tokio::test]
async fn a_crash_loses_no_row_and_repeats_only_equal_ones() {
    let world = World::new();
    for range in [0..13, 13..27, 27..33] {
        let (_token, task) = world.start(fast(vec![by_vehicle(Sink::Aggregates)], &[]));
        drive(&world, range.clone()).await;
        // Not committed when the process dies.
        world.tell(0, "a0", range.end * 1_000, None).await;
        task.abort();
        assert!(task.await.expect_err("aborted").is_cancelled());
    }
    let (token, task) = world.start(fast(vec![by_vehicle(Sink::Aggregates)], &[]));
    drive(&world, 33..41).await;
    token.cancel();
    task.await.expect("no panic").expect("a clean end");
    let mut wanted = complete(4);
    for extra_ms in [13_000, 27_000, 33_000] {
        *wanted.get_mut(&("1/a0".to_owned(), extra_ms / 10_000 * 10_000)).expect("there") += 1;
    }
    assert_eq!(counts(&world.bus.records(AGGREGATES)), wanted);
}

#[tokio::test]
async fn partitions_move_to_a_second_process_with_their_state() {
    let world = World::new();
    let first = world.start(fast(vec![by_vehicle(Sink::Aggregates)], &[]));
    drive(&world, 0..15).await;
    let second = world.start(fast(vec![by_vehicle(Sink::Aggregates)], &[]));
    drive(&world, 15..31).await;
    first.0.cancel();
    first.1.await.expect("no panic").expect("a clean end");
    drive(&world, 31..41).await;
    second.0.cancel();
    second.1.await.expect("no panic").expect("a clean end");
    assert_eq!(counts(&world.bus.records(AGGREGATES)), complete(4));
}

#[tokio::test]
async fn a_feature_query_makes_requests_with_repeatable_ids() {
    let world = World::new();
    let topic = "prediction.requests.delay";
    let (token, task) = world.start(fast(vec![by_vehicle(Sink::Predict("delay".to_owned()))], &["delay"]));
    for partition in 0..PARTITIONS {
        world.tell(partition, "x", 1_000, Some(-30)).await;
        world.tell(partition, "x", 2_000, Some(-60)).await;
        world.tell(partition, "null", 3_000, None).await;
        world.tell(partition, "end", 10_000, None).await;
    }
    let records = world.wait(topic, "a request", |records| !records.is_empty()).await;
    token.cancel();
    task.await.expect("no panic").expect("a clean end");
    let request: InferRequest = serde_json::from_slice(records[0].value.as_deref().expect("a value")).expect("json");
    assert_eq!(request.id.as_deref(), Some("by_vehicle/1/x/10000"));
    assert_eq!(records[0].key_str(), "1/x");
    assert_eq!(request.inputs[0].to_fp32().expect("a tensor"), [4.0, -45.0]);
    assert_eq!(world.bus.records(topic).len(), 1, "no request for the vehicle without a deviation");
    let metrics = runtime::metrics::encode(&world.registry).expect("text");
    assert!(metrics.contains("barista_aggregate_requests_skipped_total{query=\"by_vehicle\"} 1"), "{metrics}");
}

#[tokio::test]
async fn records_that_are_no_telemetry_are_counted_and_passed_over() {
    let world = World::new();
    let (token, task) = world.start(fast(vec![by_vehicle(Sink::Aggregates)], &[]));
    for value in ["{", "{}", "[]", r#"{"schema":"telemetry.vehicle.v9"}"#] {
        world.put(TELEMETRY, 0, value.to_owned()).await;
    }
    drive(&world, 0..11).await;
    token.cancel();
    task.await.expect("no panic").expect("a clean end");
    assert_eq!(counts(&world.bus.records(AGGREGATES)), complete(1));
    let metrics = runtime::metrics::encode(&world.registry).expect("text");
    for expected in [
        "barista_aggregate_decode_errors_total{reason=\"invalid-json\"} 1",
        "barista_aggregate_decode_errors_total{reason=\"wrong-message\"} 3",
        "barista_aggregate_records_in_total 48",
        "barista_aggregate_rows_out_total{query=\"by_vehicle\"} 4",
        "barista_aggregate_windows_closed_total{query=\"by_vehicle\"} 1",
    ] {
        assert!(metrics.contains(expected), "{expected}\n{metrics}");
    }
}

#[tokio::test]
async fn a_broker_that_is_away_delays_the_commit_and_loses_nothing() {
    let world = World::new();
    let (token, task) = world.start(fast(vec![by_vehicle(Sink::Aggregates)], &[]));
    drive(&world, 0..5).await;
    for second in 5..11 {
        for partition in 0..PARTITIONS {
            for v in ["a", "b"] {
                world.tell(partition, &format!("{v}{partition}"), second * 1_000, Some(second)).await;
            }
        }
    }
    world.bus.fail_sends(Some("away"));
    tokio::task::yield_now().await;
    world.bus.fail_sends(None);
    world.wait_committed().await;
    token.cancel();
    task.await.expect("no panic").expect("a clean end");
    assert_eq!(counts(&world.bus.records(AGGREGATES)), complete(1));
}

#[tokio::test]
async fn a_query_that_cannot_run_ends_the_role_with_its_name() {
    let world = World::new();
    let bad = Query { sql: "SELECT vehicle FROM telemetry".to_owned(), ..by_vehicle(Sink::Aggregates) };
    let (_token, task) = world.start(fast(vec![bad], &[]));
    let error = task.await.expect("no panic").expect_err("refused").to_string();
    assert!(error.contains("`by_vehicle`") && error.contains("tumble"), "{error}");
    let unknown = Query { features: vec!["nothere".to_owned()], ..by_vehicle(Sink::Predict("delay".to_owned())) };
    let (_token, task) = world.start(fast(vec![unknown], &["delay"]));
    let error = task.await.expect("no panic").expect_err("refused").to_string();
    assert!(error.contains("nothere") && error.contains("vehicle, c, d"), "{error}");
}

fn observed(records: &[Record]) -> Vec<(String, i64, u64, u64)> {
    records
        .iter()
        .map(|r| WorkloadObserved::decode(r.value.as_deref().unwrap_or_default()).expect("a sample"))
        .map(|o| (o.service, o.start_ms, o.arrivals, o.direct_arrivals))
        .collect()
}

/// Moves the clock until `until_ms` in steps and waits for the last interval before it.
async fn pass(world: &World, until_ms: i64) {
    while world.clock.now_ms() < until_ms {
        world.clock.advance(250);
        tokio::task::yield_now().await;
    }
    let last_ms = (until_ms - 500).div_euclid(1_000) * 1_000 - 1_000;
    world
        .wait("workload.observed", "the last interval", |records| {
            observed(records).iter().filter(|o| o.1 == last_ms).count() >= 2
        })
        .await;
}

fn heartbeat(direct: u64) -> String {
    let service = json!({
        "service": "a", "period_ms": 1_000, "queue_depth": 0, "queue_age_ms": 0.0, "arrivals": 0,
        "direct_arrivals": direct, "answered": 0, "in_slo": 0, "rejected": 0, "slo_ms": 100.0,
    });
    let status = json!({
        "schema": "executor.status.v1", "node": "n", "flavor": "f", "at_ms": 0, "started_at_ms": 0, "state": "ready",
        "cores": 1, "instances": [], "services": [service],
    });
    assert!(ExecutorStatus::decode(status.to_string().as_bytes()).is_ok());
    status.to_string()
}

#[tokio::test]
async fn every_interval_of_every_service_is_published_also_over_restarts() {
    let world = World::new();
    let config = fast(vec![], &["a", "b"]);
    // The first run begins at 0; the second finds what came while nobody counted.
    let (token, task) = world.start(config.clone());
    world.wait_counting().await;
    pass(&world, 1_500).await;
    for partition in 0..3 {
        world.put("prediction.requests.a", partition, "not even json".to_owned()).await;
    }
    world.put("executor.status", 0, heartbeat(5)).await;
    pass(&world, 4_500).await;
    token.cancel();
    task.await.expect("no panic").expect("a clean end");
    world.clock.set(5_200);
    world.put("prediction.requests.b", 0, String::new()).await;
    world.clock.set(8_500);
    let (token, task) = world.start(config);
    world.wait_counting().await;
    pass(&world, 9_500).await;
    token.cancel();
    task.await.expect("no panic").expect("a clean end");

    let distinct: BTreeSet<_> = observed(&world.bus.records("workload.observed")).into_iter().collect();
    let starts = |service: &str| -> Vec<i64> { distinct.iter().filter(|o| o.0 == service).map(|o| o.1).collect() };
    assert_eq!(starts("a"), (0..8).map(|i| i * 1_000).chain([8_000]).collect::<Vec<_>>());
    assert_eq!(starts("b"), starts("a"));
    let some: Vec<_> = distinct.iter().filter(|o| o.2 > 0).cloned().collect();
    assert_eq!(some, [("a".to_owned(), 1_000, 8, 5), ("b".to_owned(), 5_000, 1, 0)]);
}
