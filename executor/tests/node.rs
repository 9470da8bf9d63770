//! The node on a broker in memory: requests in, answers out, plans followed, nothing lost.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use executor::Config;
use executor::backend::fake::{FakeBackend, FakeModelFile, Gate};
use executor::config::VerticalConfig;
use runtime::config::ConfigDuration;
use runtime::{OutRecord, Record};
use schemas::allocation::{InstanceAllocation, NodeAllocation};
use schemas::status::{ExecutorStatus, InstanceState, NodeState, ScalingKind};
use std::time::Duration;
use support::*;

fn ready(status: &ExecutorStatus) -> bool {
    status.instances.iter().any(|i| i.state == InstanceState::Ready)
}

fn version_is(status: &ExecutorStatus, version: &str, state: InstanceState) -> bool {
    status.instances.iter().any(|i| i.version == version && i.state == state)
}

fn reason(record: &Record) -> &str {
    record.headers.get_str("reason").unwrap()
}

fn detail(record: &Record) -> &str {
    record.headers.get_str("detail").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_gets_its_result() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "3", 2)]).await;
    broker.requests(0..100).await;
    let headers = [
        ("correlation-id", "c"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("model-version", "3"),
    ];
    broker.send(request(100, &headers)).await;
    let node = broker.node(config("n1"), FakeBackend::default());

    let answers = broker.answers(101).await;
    for i in 0..=100 {
        let records = &answers[&format!("r{i}")];
        assert_eq!(records.len(), 1, "exactly one record for r{i}");
        assert_eq!(records[0].topic, RESULTS, "{:?}", records[0]);
        let response = response(&records[0]);
        assert_eq!(response.id, Some(format!("r{i}")));
        assert_eq!(response.outputs[0].to_fp32().unwrap(), [i as f32]);
        assert_eq!(response.outputs[0].shape, [1, 1]);
        let p = &response.parameters;
        assert_eq!((p.node.as_str(), p.backend.as_str(), p.batch_size), ("n1", "fake", 1));
        assert!(p.deadline_met && p.queue_ms >= 0.0 && p.infer_ms >= 0.0);
    }
    let echoed: Vec<_> = answers["r100"][0].headers.0.iter().map(|(n, v)| (n.as_str(), v.as_ref())).collect();
    assert_eq!(echoed, headers.map(|(n, v)| (n, v.as_bytes())));
    until("all offsets committed", || broker.committed() == 101).await;

    until("all counted", || {
        broker.statuses("n1").iter().flat_map(|s| &s.services).map(|s| s.answered).sum::<u64>() == 101
    })
    .await;
    let statuses = broker.statuses("n1");
    let services = || statuses.iter().flat_map(|s| &s.services);
    assert_eq!(services().map(|s| s.arrivals).sum::<u64>(), 101);
    assert_eq!(services().map(|s| s.in_slo).sum::<u64>(), 101);
    assert!(services().any(|s| s.latency.is_some_and(|l| l.p50_ms <= l.p99_ms)));
    let status = broker.status("n1", "a ready instance", ready).await;
    assert_eq!((status.plan_id.as_deref(), status.cores), (Some("1-1"), 4));
    assert!(status.instances[0].load_ms.is_some_and(|ms| ms > 0.0));
    let came = statuses.iter().flat_map(|s| &s.scaling).find(|e| e.kind == ScalingKind::Horizontal).unwrap();
    assert_eq!((came.from, came.to, came.plan_id.as_deref()), (0, 1, Some("1-1")));
    assert_eq!(came.load.as_ref().map(|l| l.start_ms), Some(7));
    let text = runtime::metrics::encode(&node.metrics).unwrap();
    assert!(text.contains(r#"barista_executor_answered_total{service="a",in_time="true"} 101"#), "{text}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_model_answers_over_the_topic() {
    let broker = Broker::new();
    let plan = InstanceAllocation { max_batch: 8, ..instance("delay.onnx", "1", 1) };
    broker.plan("n1", 1, vec![plan]).await;
    let vectors = std::fs::read_to_string(committed_models().join("test-vectors.json")).unwrap();
    let vectors: serde_json::Value = serde_json::from_str(&vectors).unwrap();
    let case = &vectors["models"]["delay"]["cases"][0];
    let rows = case["input"]["rows"].as_array().unwrap();
    for (i, row) in rows.iter().enumerate() {
        let body = serde_json::json!({"id": format!("{i}"), "inputs": [
            {"name": "features", "shape": [1, 16], "datatype": "FP32", "data": row}]});
        broker.send(raw_request(&format!("{i}"), body.to_string().as_bytes(), &[])).await;
    }
    let all = serde_json::json!({"id": "all", "inputs": [
        {"name": "features", "shape": [rows.len(), 16], "datatype": "FP32", "data": rows}]});
    broker.send(raw_request("all", all.to_string().as_bytes(), &[])).await;
    let node = broker.node(Config { model_dir: committed_models(), ..config("n1") }, FakeBackend::default());

    let answers = broker.answers(rows.len() + 1).await;
    let expected: Vec<f32> = case["expected"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
    let close = |got: Vec<f32>, want: &[f32]| {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-4 * w.abs().max(1.0), "{g} against {w}");
        }
    };
    for (i, want) in expected.iter().enumerate() {
        close(response(&answers[&format!("{i}")][0]).outputs[0].to_fp32().unwrap(), &[*want]);
    }
    close(response(&answers["all"][0]).outputs[0].to_fp32().unwrap(), &expected);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_request_is_rejected_once_with_a_reason_that_names_the_field() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile { fails_on: Some(666.0), panics_on: Some(777.0), ..FakeModelFile::sum(2) });
    let plan = InstanceAllocation { max_batch: 4, ..instance("sum", "1", 1) };
    broker.plan("n1", 1, vec![plan]).await;
    let body = |inputs: &str| format!(r#"{{"inputs":[{inputs}]}}"#).into_bytes();
    let shape = body(r#"{"name":"x","shape":[1,3],"datatype":"FP32","data":[1,2,3]}"#);
    let datatype = body(r#"{"name":"x","shape":[1,2],"datatype":"INT8","data":[1,2]}"#);
    let absent = body("");
    let bad: Vec<(&str, OutRecord, &str, &str)> = vec![
        ("version", request(1, &[("model-version", "9")]), "unknown-model-version", "`9`"),
        ("shape", raw_request("", &shape, &[]), "bad-shape", "inputs[`x`].shape"),
        ("datatype", raw_request("", &datatype, &[]), "bad-datatype", "inputs[`x`].datatype"),
        ("json", raw_request("", b"{\"inputs\":", &[]), "invalid-json", "request"),
        ("absent", raw_request("", &absent, &[]), "missing-field", "inputs[`x`]"),
        (
            "deadline",
            OutRecord { timestamp_ms: Some(1000), ..request(1, &[("deadline-ms", "5")]) },
            "deadline-past",
            "deadline-ms",
        ),
        ("header", request(1, &[("deadline-ms", "soon")]), "bad-field", "deadline-ms"),
        ("tombstone", OutRecord { value: None, ..request(1, &[]) }, "invalid-json", "empty"),
        ("poison", request(666, &[]), "inference-failed", "fails"),
        ("panic", request(777, &[]), "inference-failed", "panics"),
    ];
    for (key, record, ..) in &bad {
        broker.send(record.clone().key(*key)).await;
        broker.send(request(0, &[]).key(format!("good-{key}"))).await;
    }
    let node = broker.node(config("n1"), FakeBackend::default());

    let answers = broker.answers(2 * bad.len()).await;
    for (key, sent, expected, field) in &bad {
        let records = &answers[*key];
        assert_eq!((records.len(), records[0].topic.as_str()), (1, REJECTED), "{key}: {records:?}");
        assert_eq!(reason(&records[0]), *expected, "{key}: {}", detail(&records[0]));
        assert!(detail(&records[0]).contains(field), "{key}: {}", detail(&records[0]));
        assert_eq!(records[0].value, sent.value, "{key}: the original bytes");
        assert_eq!(records[0].headers.get_str("source-topic"), Some(REQUESTS));
        assert!(
            records[0].headers.get("source-partition").is_some() && records[0].headers.get("source-offset").is_some()
        );
        assert_eq!(answers[&format!("good-{key}")][0].topic, RESULTS, "its neighbours are served");
    }
    until("all offsets committed", || broker.committed() == 2 * bad.len() as i64).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_finishes_what_it_accepted_and_ends() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let node = broker.node(config("n1"), FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..30).await;
    broker.status("n1", "29 waiting requests", |s| s.services.iter().any(|s| s.queue_depth == 29)).await;

    let drain = NodeAllocation { drain: true, ..allocation("n1", 2, vec![instance("sum", "1", 1)]) };
    broker.send_plan(drain).await;
    broker
        .status("n1", "draining", |s| s.state == NodeState::Draining && version_is(s, "1", InstanceState::Draining))
        .await;
    broker.requests(30..40).await;
    assert_eq!(broker.bus.records(RESULTS).len(), 0);
    gate.open();
    node.end().await.unwrap();

    let requests = broker.bus.records(REQUESTS);
    let answers = broker.answers(30).await;
    for record in &requests {
        let answered = answers.get(record.key_str()).map_or(0, Vec::len);
        let index: usize = record.key_str()[1..].parse().unwrap();
        assert_eq!(answered, usize::from(index < 30), "{}", record.key_str());
        assert_eq!(broker.is_committed(record), index < 30, "{}", record.key_str());
    }
    let last = broker.statuses("n1").pop().unwrap();
    assert_eq!(last.state, NodeState::Stopped);
    let gone = broker.statuses("n1").into_iter().flat_map(|s| s.scaling).find(|e| e.to == 0).unwrap();
    assert_eq!((gone.kind, gone.plan_id.as_deref()), (ScalingKind::Horizontal, Some("1-2")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_that_runs_out_of_time_gives_back_what_has_not_begun() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let impatient = Config { drain_timeout: ConfigDuration::from_millis(1), ..config("n1") };
    let node = broker.node(impatient, FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..10).await;
    broker.status("n1", "9 waiting requests", |s| s.services.iter().any(|s| s.queue_depth == 9)).await;
    node.token.cancel();
    until("the queue given back", || {
        runtime::metrics::encode(&node.metrics).unwrap().contains(r#"given_back_total{service="a"} 9"#)
    })
    .await;
    gate.open();
    node.end().await.unwrap();
    assert_eq!(broker.bus.records(RESULTS).len(), 1, "what ran was finished");

    broker.plan("n2", 2, vec![instance("sum", "1", 1)]).await;
    let second = broker.node(config("n2"), FakeBackend::default());
    let answers = broker.answers(10).await;
    assert!(answers.len() == 10 && answers.values().all(|records| records.len() == 1), "{answers:?}");
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_partitions_are_given_back_and_served_by_their_next_owner() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    for node in ["n1", "n2"] {
        broker.plan(node, 1, vec![instance("sum", "1", 1)]).await;
    }
    let gate = Gate::closed();
    let first = broker.node(config("n1"), FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..60).await;
    broker.status("n1", "59 waiting requests", |s| s.services.iter().any(|s| s.queue_depth == 59)).await;
    let second = broker.node(config("n2"), FakeBackend::default());
    // The running request may sit in a revoked partition: then that partition moves only after it.
    until("the first node to give partitions back", || {
        runtime::metrics::encode(&first.metrics).unwrap().contains(r#"given_back_total{service="a"}"#)
    })
    .await;
    gate.open();

    let answers = broker.answers(60).await;
    until("all offsets committed", || broker.committed() == 60).await;
    assert_eq!(answers.len(), 60);
    assert!(answers.values().all(|records| records.len() == 1), "{answers:?}");
    let by = |node: &str| answers.values().filter(|r| response(&r[0]).parameters.node == node).count();
    assert!(by("n1") > 0 && by("n2") > 0, "both served: {} and {}", by("n1"), by("n2"));
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_scales_workers_and_takes_services_away() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let node = broker.node(config("n1"), FakeBackend::default());
    broker.status("n1", "one worker", |s| s.instances.iter().any(|i| i.workers == 1 && i.planned_workers == 1)).await;
    broker.plan("n1", 3, vec![instance("sum", "1", 3)]).await;
    broker.status("n1", "three workers", |s| s.instances.iter().any(|i| i.workers == 3)).await;
    let step =
        broker.statuses("n1").into_iter().flat_map(|s| s.scaling).find(|e| e.kind == ScalingKind::Vertical).unwrap();
    assert_eq!((step.from, step.to, step.plan_id.as_deref()), (1, 3, Some("1-3")));
    assert_eq!(step.load.map(|l| l.forecast_rps), Some(2.0));

    broker.plan("n1", 2, vec![]).await;
    until("the older plan ignored", || {
        runtime::metrics::encode(&node.metrics).unwrap().contains("stale_plans_total 1")
    })
    .await;
    assert_eq!(broker.statuses("n1").pop().unwrap().plan_id.as_deref(), Some("1-3"));
    assert!(broker.statuses("n1").iter().all(|s| !version_is(s, "1", InstanceState::Draining)));

    broker.plan("n1", 4, vec![]).await;
    broker.status("n1", "no instance", |s| s.plan_id.as_deref() == Some("1-4") && s.instances.is_empty()).await;
    broker.requests(0..3).await;
    broker.plan("n1", 5, vec![instance("sum", "1", 1)]).await;
    assert_eq!(broker.answers(3).await.len(), 3, "what came while nobody served is served later");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_version_takes_over_without_a_gap_and_a_corrupt_one_does_not() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    std::fs::write(broker.models.path().join("corrupt"), "no model").unwrap();
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let loads = Gate::closed();
    let node = broker.node(config("n1"), FakeBackend::default().with_load_gate(loads.clone()));
    loads.allow(1);
    broker.status("n1", "version 1", |s| version_is(s, "1", InstanceState::Ready)).await;

    broker.plan("n1", 2, vec![instance("corrupt", "2", 1)]).await;
    loads.allow(1);
    let failed = broker.status("n1", "version 2 failed", |s| version_is(s, "2", InstanceState::Failed)).await;
    assert!(failed.instances.iter().any(|i| i.error.as_ref().is_some_and(|e| e.contains("corrupt"))), "{failed:?}");
    broker.requests(0..5).await;
    assert!(broker.answers(5).await.values().all(|r| response(&r[0]).model_version.as_deref() == Some("1")));

    broker.plan("n1", 3, vec![instance("sum", "3", 1)]).await;
    broker.status("n1", "version 3 loading", |s| version_is(s, "3", InstanceState::Loading)).await;
    broker.requests(5..10).await;
    assert!(broker.answers(10).await.values().all(|r| response(&r[0]).model_version.as_deref() == Some("1")));
    loads.allow(1);
    let only_3 = |s: &ExecutorStatus| version_is(s, "3", InstanceState::Ready) && s.instances.len() == 1;
    broker.status("n1", "version 3 alone", only_3).await;
    broker.requests(10..15).await;
    let answers = broker.answers(15).await;
    assert!(answers.values().all(|r| r.len() == 1 && r[0].topic == RESULTS));
    for i in 10..15 {
        assert_eq!(response(&answers[&format!("r{i}")][0]).model_version.as_deref(), Some("3"));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_cancelled_when_the_instance_is_wanted_again() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let (gate, loads) = (Gate::closed(), Gate::closed());
    loads.allow(1);
    let fake = FakeBackend::default().with_gate(gate.clone()).with_load_gate(loads.clone());
    let node = broker.node(config("n1"), fake);
    broker.requests(0..5).await;
    until("a running request", || gate.waiting() == 1).await;
    broker.plan("n1", 2, vec![]).await;
    broker.status("n1", "draining", |s| version_is(s, "1", InstanceState::Draining)).await;
    broker.plan("n1", 3, vec![instance("sum", "1", 1)]).await;
    let again = |s: &ExecutorStatus| s.plan_id.as_deref() == Some("1-3") && version_is(s, "1", InstanceState::Ready);
    broker.status("n1", "ready again", again).await;
    gate.open();
    broker.requests(5..10).await;
    let answers = broker.answers(10).await;
    assert!(answers.len() == 10 && answers.values().all(|r| r.len() == 1 && r[0].topic == RESULTS));
    assert_eq!(loads.passed(), 1, "the model was not loaded again");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_sheds_and_every_request_has_one_answer() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let small = Config { queue_capacity: 8, max_in_flight: 1000, ..config("n1") };
    let node = broker.node(small, FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..1).await;
    until("a running request", || gate.waiting() == 1).await;
    broker.requests(1..100).await;
    broker.wait(REJECTED, "91 rejections", |records| records.len() >= 91).await;
    gate.open();
    let answers = broker.answers(100).await;
    assert!(answers.len() == 100 && answers.values().all(|records| records.len() == 1));
    let rejected = broker.bus.records(REJECTED);
    assert!(rejected.len() == 91 && rejected.iter().all(|r| reason(r) == "overloaded"), "{rejected:?}");
    until("all counted", || {
        broker.statuses("n1").iter().flat_map(|s| &s.services).map(|s| s.rejected + s.answered).sum::<u64>() == 100
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_bound_of_bytes_in_flight_the_node_reads_no_further() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let bytes = request(0, &[]).value.map_or(0, |v| v.len());
    let small = Config { max_in_flight_bytes: 5 * bytes, ..config("n1") };
    let node = broker.node(small, FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..1000).await;
    until("a running request", || gate.waiting() == 1).await;
    let held = |s: &ExecutorStatus| s.services.iter().any(|x| x.queue_depth > 0);
    let status = broker.status("n1", "a queue", held).await;
    assert!(status.services[0].queue_depth <= 5, "{status:?}");
    gate.open();
    let answers = broker.answers(1000).await;
    assert!(answers.values().all(|r| r.len() == 1 && r[0].topic == RESULTS), "it goes on as room comes");
    let depths = broker.statuses("n1").into_iter().flat_map(|s| s.services).map(|s| s.queue_depth);
    assert!(depths.max() <= Some(5));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_does_not_take_what_its_profile_says_is_told() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    let slow = InstanceAllocation { service_p95_ms: 100.0, ..instance("sum", "1", 1) };
    broker.plan("n1", 1, vec![slow]).await;
    let node = broker.node(config("n1"), FakeBackend::default());
    broker.requests(0..executor::drift::ENOUGH + 100).await;
    let told = broker.status("n1", "a profile update", |s| !s.profile_updates.is_empty()).await;
    let update = &told.profile_updates[0];
    assert_eq!((update.service.as_str(), update.version.as_str(), update.backend.as_str()), ("a", "1", "fake"));
    assert!(update.samples >= executor::drift::ENOUGH as u64 && update.point.batch == 1);
    assert!(update.point.p95_ms < 90.0 && update.point.p50_ms <= update.point.p95_ms, "{update:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_bound_of_requests_in_flight_the_node_reads_no_further() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let small = Config { max_in_flight: 9, ..config("n1") };
    let node = broker.node(small, FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..50).await;
    broker.status("n1", "a full queue", |s| s.services.iter().any(|s| s.queue_depth == 8)).await;
    for _ in 0..41 {
        gate.allow(1);
    }
    let bounded = |s: &ExecutorStatus| s.services.iter().all(|s| s.queue_depth <= 9);
    broker.wait(RESULTS, "41 results", |records| records.len() >= 41).await;
    assert!(broker.statuses("n1").iter().all(bounded));
    assert_eq!(broker.bus.records(REJECTED).len(), 0, "backpressure, not shedding");
    gate.open();
    assert_eq!(broker.answers(50).await.len(), 50);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_committed_before_its_answer_is_written() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let node = broker.node(config("n1"), FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..10).await;
    broker.send(raw_request("bad", b"{", &[])).await;
    broker.status("n1", "9 waiting requests", |s| s.services.iter().any(|s| s.queue_depth == 9)).await;
    broker.wait(REJECTED, "the bad one", |records| records.len() == 1).await;
    broker.bus.fail_sends(Some("away"));
    gate.open();
    until("failed writes", || {
        let text = runtime::metrics::encode(&node.metrics).unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix("barista_executor_write_retries_total "));
        line.and_then(|n| n.parse::<u64>().ok()).is_some_and(|n| n >= 10)
    })
    .await;
    let before = broker.bus.records(REQUESTS);
    assert!(before.iter().all(|r| !broker.is_committed(r) || r.key_str() == "bad"));
    broker.bus.fail_sends(None);
    let answers = broker.answers(11).await;
    assert!(answers.len() == 11 && answers.values().all(|records| records.len() == 1));
    until("all offsets committed", || broker.committed() == 11).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_borrows_free_workers_and_says_why() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    let slow = InstanceAllocation { service_p95_ms: 2_000.0, ..instance("sum", "1", 1) };
    broker.plan("n1", 1, vec![slow]).await;
    let vertical = VerticalConfig { interval: ConfigDuration::from_millis(10), ..VerticalConfig::default() };
    let gate = Gate::closed();
    let node = broker.node(Config { vertical, ..config("n1") }, FakeBackend::default().with_gate(gate.clone()));
    // 28 waiting rows of 2 s predict 58 s against 60 s: refused by nobody, near the SLO.
    broker.requests(0..29).await;
    broker
        .status("n1", "borrowed workers", |s| s.instances.iter().any(|i| i.workers > 1 && i.planned_workers == 1))
        .await;
    let step =
        broker.statuses("n1").into_iter().flat_map(|s| s.scaling).find(|e| e.kind == ScalingKind::Vertical).unwrap();
    assert!(step.to > 1 && step.to <= 4 && step.from == 1, "{step:?}");
    assert_eq!(step.plan_id.as_deref(), Some("1-1"));
    assert!(step.load.is_some_and(|l| l.observed_rps > 0.0) && step.reason.contains("queue"));
    until("more than one running", || gate.waiting() > 1).await;
    gate.open();
    assert_eq!(broker.answers(29).await.len(), 29);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_batched_and_shed_by_deadline() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    let plan = InstanceAllocation { max_batch: 4, ..instance("sum", "1", 1) };
    broker.plan("n1", 1, vec![plan]).await;
    let gate = Gate::closed();
    let node = broker.node(config("n1"), FakeBackend::default().with_gate(gate.clone()));
    broker.requests(0..1).await;
    until("a running request", || gate.waiting() == 1).await;
    broker.requests(1..9).await;
    // Its deadline passes while it waits behind the gate.
    broker.send(request(9, &[("deadline-ms", "1500")])).await;
    broker.status("n1", "9 waiting requests", |s| s.services.iter().any(|s| s.queue_depth == 9)).await;
    tokio::time::sleep(Duration::from_millis(1501)).await;
    gate.open();
    let answers = broker.answers(10).await;
    assert_eq!(reason(&answers["r9"][0]), "deadline-past");
    let sizes: Vec<u32> = (0..9).map(|i| response(&answers[&format!("r{i}")][0]).parameters.batch_size).collect();
    assert_eq!(sizes, [1, 4, 4, 4, 4, 4, 4, 4, 4]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_boots_retires_and_says_so() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    let boots = broker.node(Config { boot_ms: 3_600_000, ..config("n1") }, FakeBackend::default());
    broker.status("n1", "booting", |s| s.state == NodeState::Booting).await;
    boots.stop().await;
    assert_eq!(broker.statuses("n1").pop().unwrap().state, NodeState::Stopped);

    // A tombstone of an earlier life means nothing to a node that never had a plan; one that comes later retires it.
    broker.send(OutRecord::tombstone("allocation.control", "node/n2")).await;
    let node = broker.node(config("n2"), FakeBackend::default());
    broker.status("n2", "ready", |s| s.state == NodeState::Ready).await;
    broker.plan("n2", 1, vec![instance("sum", "1", 1)]).await;
    broker.status("n2", "a ready instance", ready).await;
    broker.send(OutRecord::tombstone("allocation.control", "node/n2")).await;
    node.end().await.unwrap();
    assert_eq!(broker.statuses("n2").pop().unwrap().state, NodeState::Stopped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_backend_fails_the_instance_and_not_the_node() {
    let broker = Broker::new();
    let plan = InstanceAllocation { backend: "cuda".to_owned(), ..instance("sum", "1", 1) };
    broker.plan("n1", 1, vec![plan]).await;
    let node = broker.node(config("n1"), FakeBackend::default());
    let failed = broker.status("n1", "a failed instance", |s| version_is(s, "1", InstanceState::Failed)).await;
    let error = failed.instances[0].error.clone().unwrap();
    assert!(error.contains("cuda") && error.contains("tract"), "{error}");
    node.stop().await;
}

/// A request whose answer lands in one partition with all others, so that their offsets tell the order.
fn in_one_partition(i: usize, headers: &[(&str, &str)]) -> OutRecord {
    request(i, headers).key("k".to_owned())
}

/// Ids of the answers in the order in which they were written.
fn order_of(records: &[Record]) -> Vec<String> {
    records.iter().map(|record| response(record).id.unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_work_waits_for_everything_else_and_is_no_load() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let node = broker.node(config("n1"), FakeBackend::default().with_gate(gate.clone()));
    broker.send(in_one_partition(0, &[])).await;
    until("a running request", || gate.waiting() == 1).await;
    for i in 1..4 {
        broker.send(in_one_partition(i, &[("priority", "batch")])).await;
    }
    broker.send(in_one_partition(4, &[])).await;
    broker.send(in_one_partition(5, &[("priority", "high")])).await;
    broker.send(in_one_partition(6, &[("priority", "urgent")])).await;
    broker.status("n1", "5 waiting requests", |s| s.services.iter().any(|s| s.queue_depth == 5)).await;
    gate.open();
    let answers = broker.answers(7).await;
    assert_eq!(order_of(&broker.bus.records(RESULTS)), ["r0", "r5", "r4", "r1", "r2", "r3"]);
    let refused = answers["k"].iter().find(|r| r.topic == REJECTED).unwrap();
    assert_eq!((reason(refused), detail(refused).contains("priority")), ("bad-field", true));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_an_order_key_are_answered_in_the_order_of_the_log() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 4)]).await;
    let gate = Gate::closed();
    let node = broker.node(config("n1"), FakeBackend::default().with_gate(gate.clone()));
    for i in 0..20 {
        broker.send(in_one_partition(i, &[("order-key", "vehicle 7")])).await;
    }
    broker.status("n1", "19 waiting requests", |s| s.services.iter().any(|s| s.queue_depth == 19)).await;
    assert_eq!(gate.waiting(), 1, "three workers are free and wait for the first");
    gate.open();
    broker.answers(20).await;
    let expected: Vec<String> = (0..20).map(|i| format!("r{i}")).collect();
    assert_eq!(order_of(&broker.bus.records(RESULTS)), expected);
    node.stop().await;
}
