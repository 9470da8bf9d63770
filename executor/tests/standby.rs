//! Standby instances: loaded, serving nothing until the plan gives them workers.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use executor::backend::fake::{FakeBackend, FakeModelFile};
use schemas::status::{ExecutorStatus, InstanceState};
use support::*;

fn is(status: &ExecutorStatus, version: &str, state: InstanceState) -> bool {
    status.instances.iter().any(|i| i.version == version && i.state == state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_serves_without_loading_again_and_rests_after_its_work() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 0)]).await;
    let node = broker.node(config("n1"), FakeBackend::default());
    let status = broker.status("n1", "a standby", |s| is(s, "1", InstanceState::Loaded)).await;
    let loaded = &status.instances[0];
    assert!(loaded.load_ms.is_some() && loaded.signature.is_some() && loaded.workers == 0, "{loaded:?}");
    assert!(status.services.is_empty(), "nothing is read for it: {status:?}");

    // Without its file it could not be loaded a second time.
    std::fs::remove_file(broker.models.path().join("sum")).unwrap();
    broker.requests(0..10).await;
    assert!(broker.bus.records(RESULTS).is_empty());
    broker.plan("n1", 2, vec![instance("sum", "1", 2)]).await;
    let answers = broker.answers(10).await;
    assert!(answers.values().all(|records| records.len() == 1 && records[0].topic == RESULTS), "{answers:?}");
    broker.plan("n1", 3, vec![instance("sum", "1", 0)]).await;
    broker.status("n1", "rest", |s| s.plan_id.as_deref() == Some("1-3") && is(s, "1", InstanceState::Loaded)).await;
    until("all offsets committed", || broker.committed() == 10).await;

    broker.requests(10..20).await;
    broker.plan("n1", 4, vec![instance("sum", "1", 1)]).await;
    assert_eq!(broker.answers(20).await.len(), 20);
    broker.plan("n1", 5, vec![]).await;
    broker.status("n1", "the end of it", |s| is(s, "1", InstanceState::Stopped)).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_states_of_a_load_are_told_in_their_order() {
    let broker = Broker::new();
    broker.fake_model("sum", &FakeModelFile::sum(2));
    broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    let node = broker.node(config("n1"), FakeBackend::default());
    broker.status("n1", "ready", |s| is(s, "1", InstanceState::Ready)).await;
    let order = [InstanceState::Cold, InstanceState::Loading, InstanceState::Cached, InstanceState::Ready];
    let seen = broker.statuses("n1").iter().flat_map(|s| &s.instances).map(|i| i.state).collect::<Vec<_>>();
    let mut places = seen.iter().map(|state| order.iter().position(|o| o == state).unwrap());
    assert!(places.clone().is_sorted() && places.any(|p| p == 2), "{seen:?}");
    node.stop().await;
}
