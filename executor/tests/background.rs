//! Background work on a broker in memory: read from its own topic, on idle permits, behind everything else, no load.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use executor::Config;
use executor::backend::fake::{FakeBackend, FakeModelFile, Gate};
use executor::config::{Delivery, VerticalConfig};
use runtime::config::ConfigDuration;
use runtime::{OutRecord, Record};
use std::collections::BTreeMap;
use support::*;

const BATCH: &str = "prediction.batch.a";
const SCORES: &str = "prediction.scores.a";
const BATCH_GROUP: &str = "barista.batch.a";

fn broker() -> Broker {
    let broker = Broker::new();
    broker.bus.create(BATCH, 4);
    broker.bus.create(SCORES, 4);
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker
}

/// A node that looks at its permits all the time; the plan's workers stay as they are otherwise.
fn lending(node: &str) -> Config {
    let vertical = VerticalConfig { enabled: false, interval: ConfigDuration::from_millis(5), ..Default::default() };
    Config { vertical, ..config(node) }
}

fn work(i: usize) -> OutRecord {
    OutRecord { topic: BATCH.to_owned(), ..request(i, &[]) }
}

async fn give(broker: &Broker, range: std::ops::Range<usize>) {
    for i in range {
        broker.send(work(i)).await;
    }
}

fn committed(broker: &Broker) -> i64 {
    broker.bus.committed(BATCH_GROUP).values().sum()
}

fn keys(records: &[Record]) -> BTreeMap<String, usize> {
    let mut keys = BTreeMap::new();
    for record in records {
        *keys.entry(record.key_str().to_owned()).or_default() += 1;
    }
    keys
}

fn metric(node: &Node, line: &str) -> bool {
    runtime::metrics::encode(&node.metrics).unwrap().lines().any(|l| l == line)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_takes_idle_permits_and_gives_them_back_within_one_inference() {
    let broker = broker();
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let node = broker.node(lending("n1"), FakeBackend::default().with_gate(gate.clone()));
    give(&broker, 0..200).await;
    broker.send(OutRecord { value: Some("not json".into()), ..work(200) }).await;
    until("the planned worker and three lent ones at work", || gate.waiting() == 4).await;
    let status = broker.status("n1", "an instance", |s| !s.instances.is_empty()).await;
    assert!(status.instances.iter().all(|i| i.workers <= 1), "what is lent is in no book: {status:?}");

    // The plan wants the permits: its workers are there at once, the lent ones end with the inference that they run.
    broker.plan("n1", 2, vec![instance("sum", "1", 4)]).await;
    until("no permit lent", || metric(&node, r#"barista_executor_background_workers{service="a"} 0"#)).await;
    until("the plan's workers at work beside the lent ones", || gate.waiting() == 7).await;
    broker.requests(100..104).await;
    // One inference after the other ends, until those on lent permits have: then never more than the plan's four run.
    let mut passed = 0;
    while gate.waiting() > 4 {
        gate.allow(1);
        passed += 1;
        until("an inference to end", || gate.passed() == passed && gate.waiting() >= 4).await;
    }
    broker.wait(SCORES, "what ran on lent permits", |records| records.len() >= 3).await;
    gate.open();

    let scores = broker.wait(SCORES, "all scores", |records| records.len() >= 200).await;
    let expected: BTreeMap<String, usize> = (0..200).map(|i| (format!("r{i}"), 1)).collect();
    assert_eq!(keys(&scores), expected);
    let rejected = broker.wait(REJECTED, "a rejection", |records| !records.is_empty()).await;
    let header = |name| rejected[0].headers.get_str(name).unwrap().to_owned();
    assert_eq!((header("reason"), header("source-topic")), ("invalid-json".to_owned(), BATCH.to_owned()));
    until("all work committed", || committed(&broker) == 201).await;
    // Were the 201 records of work counted as arrivals, the sum would never be 4.
    let sum = |of: fn(&schemas::status::ServiceStatus) -> u64| {
        broker.statuses("n1").iter().flat_map(|s| &s.services).map(of).sum::<u64>()
    };
    until("only the requests counted", || sum(|s| s.arrivals) == 4 && sum(|s| s.answered) == 4).await;
    assert_eq!(sum(|s| s.rejected), 0, "the rejected work is nothing to plan for");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_that_the_queue_has_no_room_for_waits_and_is_not_refused() {
    let broker = broker();
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let small = Config { queue_capacity: 2, cores: 1, ..lending("n1") };
    let node = broker.node(small, FakeBackend::default().with_gate(gate.clone()));
    give(&broker, 0..6).await;
    broker.status("n1", "a full queue", |s| s.services.iter().any(|s| s.queue_depth == 2)).await;
    // They displace the work that waits.
    broker.requests(100..102).await;
    until("the requests read", || {
        broker.statuses("n1").iter().flat_map(|s| &s.services).map(|s| s.arrivals).sum::<u64>() == 2
    })
    .await;
    gate.open();
    let scores = broker.wait(SCORES, "all scores", |records| records.len() >= 6).await;
    assert_eq!(keys(&scores), (0..6).map(|i| (format!("r{i}"), 1)).collect());
    broker.wait(RESULTS, "the results", |records| records.len() == 2).await;
    assert_eq!(broker.bus.records(REJECTED), []);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_gives_its_work_to_the_next_one_in_both_modes() {
    for delivery in [Delivery::AtLeastOnce, Delivery::ExactlyOnce] {
        let broker = broker();
        broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
        let gate = Gate::closed();
        let first = Config { delivery, ..lending("n1") };
        let node = broker.node(first, FakeBackend::default().with_gate(gate.clone()));
        give(&broker, 0..50).await;
        until("four at work", || gate.waiting() == 4).await;
        node.token.cancel();
        until("the rest given back", || {
            runtime::metrics::encode(&node.metrics).unwrap().contains(r#"given_back_total{service="a"}"#)
        })
        .await;
        gate.open();
        node.end().await.unwrap();
        assert!(broker.bus.records(SCORES).len() <= 8, "only what ran, and what a worker took at the same moment");
        broker.plan("n2", 2, vec![instance("sum", "1", 1)]).await;
        let second = broker.node(Config { delivery, ..lending("n2") }, FakeBackend::default());
        let scores = broker.wait(SCORES, "all scores", |records| keys(records).len() == 50).await;
        assert!(keys(&scores).values().all(|n| *n == 1), "{delivery:?}: {:?}", keys(&scores));
        until("all work committed", || committed(&broker) == 50).await;
        second.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_finds_work_that_is_given_for_the_first_time_while_it_serves() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let node = broker.node(lending("n1"), FakeBackend::default());
    broker.requests(0..1).await;
    broker.answers(1).await;
    broker.bus.create(BATCH, 4);
    broker.bus.create(SCORES, 4);
    give(&broker, 0..3).await;
    broker.wait(SCORES, "scores", |records| records.len() == 3).await;
    node.stop().await;
}
