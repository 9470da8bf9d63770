//! `delivery = "exactly_once"` on a broker in memory: one answer to each request, whatever happens to the nodes.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use executor::Config;
use executor::backend::fake::{FakeBackend, FakeModelFile, Gate};
use executor::config::Delivery;
use rand::{Rng, SeedableRng};
use runtime::Record;
use std::collections::BTreeMap;
use std::time::Duration;
use support::*;

fn exactly_once(node: &str) -> Config {
    Config { delivery: Delivery::ExactlyOnce, ..config(node) }
}

/// Every request has one answer and no more.
fn assert_one_each(answers: &BTreeMap<String, Vec<Record>>, n: usize) {
    assert_eq!(answers.len(), n);
    for (key, records) in answers {
        assert_eq!(records.len(), 1, "{key} has {} answers: {records:#?}", records.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_and_offsets_come_together() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 3)]).await;
    broker.requests(0..300).await;
    broker.send(request(300, &[("deadline-ms", "soon")])).await;
    let node = broker.node(exactly_once("n1"), FakeBackend::default());
    let answers = broker.answers(301).await;
    assert_one_each(&answers, 301);
    assert_eq!(answers["r300"][0].topic, REJECTED);
    until("all offsets committed", || broker.committed() == 301).await;
    until("all counted", || {
        let statuses = broker.statuses("n1");
        statuses.iter().flat_map(|s| &s.services).map(|s| s.answered + s.rejected).sum::<u64>() == 301
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_seen_before_all_that_comes_before_it() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let gate = Gate::closed();
    let node = broker.node(exactly_once("n1"), FakeBackend::default().with_gate(gate.clone()));
    // All in one partition; the first waits in the model while the others are refused at once.
    broker.send(request(0, &[]).key("k")).await;
    until("a running request", || gate.waiting() == 1).await;
    for i in 1..6 {
        broker.send(request(i, &[("deadline-ms", "soon")]).key("k")).await;
    }
    until("all were read", || {
        broker.statuses("n1").iter().flat_map(|s| &s.services).map(|s| s.arrivals).sum::<u64>() == 6
    })
    .await;
    assert!(broker.bus.records(REJECTED).is_empty(), "their offsets cannot be committed yet");
    assert_eq!(broker.committed(), 0);
    gate.open();
    let answers = broker.answers(6).await;
    assert_eq!(answers["k"].len(), 6);
    until("all offsets committed", || broker.committed() == 6).await;
    node.stop().await;
}

/// A process that is killed: all its tasks end at once, between any two steps.
struct Victim(Option<tokio::runtime::Runtime>);

impl Victim {
    fn start(broker: &Broker, config: Config) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        // Its handle is dropped: nobody waits for it.
        drop(broker.node(config, FakeBackend::default()));
        drop(guard);
        Victim(Some(runtime))
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_at_any_moment_doubles_and_loses_nothing() {
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile { batch_us: 300, ..FakeModelFile::sum(2) });
    for node in ["n1", "n2"] {
        broker.plan(node, 1, vec![instance("sum", "1", 2)]).await;
    }
    let mut sent = 0;
    for round in 0..12 {
        let fresh = random.random_range(20..80);
        broker.requests(sent..sent + fresh).await;
        sent += fresh;
        let killed = Victim::start(&broker, exactly_once(if round % 2 == 0 { "n1" } else { "n2" }));
        // Not to wait for anything, but to die somewhere: at once, while joining, or between two transactions.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
        drop(killed);
    }
    let node = broker.node(exactly_once("n1"), FakeBackend::default());
    until("all offsets committed", || broker.committed() == sent as i64).await;
    let answers = broker.answers(sent).await;
    assert_one_each(&answers, sent);
    node.stop().await;
    assert_one_each(&broker.answers(sent).await, sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_that_move_take_their_requests_with_them_once() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile { batch_us: 500, ..FakeModelFile::sum(2) });
    for node in ["n1", "n2", "n3"] {
        broker.plan(node, 1, vec![instance("sum", "1", 1)]).await;
    }
    broker.requests(0..200).await;
    let first = broker.node(exactly_once("n1"), FakeBackend::default());
    broker.answers(20).await;
    let second = broker.node(exactly_once("n2"), FakeBackend::default());
    broker.requests(200..400).await;
    broker.answers(150).await;
    first.stop().await;
    let third = broker.node(exactly_once("n3"), FakeBackend::default());
    until("all offsets committed", || broker.committed() == 400).await;
    second.stop().await;
    third.stop().await;
    assert_one_each(&broker.answers(400).await, 400);
}
