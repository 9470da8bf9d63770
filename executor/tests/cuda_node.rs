//! A node with the CUDA backend on the stand-in driver: what fails stays where it failed.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use executor::Config;
use executor::backend::fake::FakeBackend;
use fakecuda::Installed;
use schemas::allocation::InstanceAllocation;
use schemas::status::{ExecutorStatus, InstanceState};
use support::*;
use tokio::sync::{Mutex, MutexGuard};

/// Calls of the stand-in that can be made to fail.
const GRAPH_LAUNCH: i32 = 2;
const SYNCHRONIZE: i32 = 3;

/// The stand-in is one for the process: one test at a time.
async fn driver() -> (Installed, MutexGuard<'static, ()>) {
    static ONE: Mutex<()> = Mutex::const_new(());
    let guard = ONE.lock().await;
    let driver = fakecuda::install().unwrap();
    driver.set(2, 1 << 30);
    driver.set(3, 0);
    (driver, guard)
}

fn delay(backend: &str, workers: u32, max_batch: u32) -> InstanceAllocation {
    let backend = backend.to_owned();
    InstanceAllocation { backend, max_batch, ..instance("delay.onnx", "1", workers) }
}

fn node(broker: &Broker, id: &str) -> Node {
    broker.node(Config { model_dir: committed_models(), ..config(id) }, FakeBackend::default())
}

async fn send(broker: &Broker, range: std::ops::Range<usize>) {
    for i in range {
        let row: Vec<f32> = (0..16).map(|k| ((i * 16 + k) as f32).sin()).collect();
        let input = serde_json::json!({"name": "features", "shape": [1, 16], "datatype": "FP32", "data": row});
        let body = serde_json::json!({"id": format!("r{i}"), "inputs": [input]});
        broker.send(raw_request(&format!("r{i}"), body.to_string().as_bytes(), &[])).await;
    }
}

/// The state of the instance on a backend, and its error.
fn state(status: &ExecutorStatus, backend: &str) -> Option<(InstanceState, String)> {
    let found = status.instances.iter().find(|i| i.backend == backend);
    found.map(|i| (i.state, i.error.clone().unwrap_or_default()))
}

fn is(status: &ExecutorStatus, backend: &str, wanted: InstanceState) -> bool {
    state(status, backend).is_some_and(|(state, _)| state == wanted)
}

/// `n` results, one a request, none rejected; the backends that gave them.
async fn all_answered(broker: &Broker, n: usize) -> Vec<String> {
    let answers = broker.answers(n).await;
    assert_eq!(answers.len(), n);
    let mut backends: Vec<String> = Vec::new();
    for (key, records) in answers {
        assert_eq!(records.len(), 1, "{key}");
        assert_eq!(records[0].topic, RESULTS, "{key}: {:?}", records[0]);
        backends.push(response(&records[0]).parameters.backend);
    }
    backends.sort();
    backends.dedup();
    backends
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_error_fails_one_instance_and_its_requests_go_to_another_node() {
    let (driver, _one) = driver().await;
    let broker = Broker::new();
    let ids = ["n1", "n2"];
    let mut nodes = Vec::new();
    for id in ids {
        broker.plan(id, 1, vec![delay("cuda", 1, 4)]).await;
        nodes.push(node(&broker, id));
        broker.status(id, "a ready instance", |s| is(s, "cuda", InstanceState::Ready)).await;
    }
    // CUDA_ERROR_OUT_OF_MEMORY: the context goes on, the batch is lost.
    driver.fail(GRAPH_LAUNCH, 0, 2);
    send(&broker, 0..40).await;
    assert_eq!(all_answered(&broker, 40).await, ["cuda"]);
    let failed =
        |id: &str| broker.statuses(id).iter().filter_map(|s| state(s, "cuda")).find(|s| s.0 == InstanceState::Failed);
    until("an instance that failed", || ids.iter().any(|id| failed(id).is_some())).await;
    let errors: Vec<String> = ids.iter().filter_map(|id| failed(id)).map(|s| s.1).collect();
    assert_eq!(errors.len(), 1, "one instance failed, the other lives on: {errors:?}");
    assert!(errors[0].contains("launching a graph") && errors[0].contains("OUT_OF_MEMORY"), "{errors:?}");
    until("all offsets committed", || broker.committed() == 40).await;
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_device_hands_its_requests_to_the_cpu_beside_it() {
    let (driver, _one) = driver().await;
    let broker = Broker::new();
    broker.plan("n1", 1, vec![delay("tract", 1, 4)]).await;
    let node = node(&broker, "n1");
    broker.status("n1", "the CPU instance", |s| is(s, "tract", InstanceState::Ready)).await;
    // The newest instance takes what asks for no other.
    broker.plan("n1", 2, vec![delay("tract", 1, 4), delay("cuda", 2, 4)]).await;
    broker.status("n1", "the CUDA instance", |s| is(s, "cuda", InstanceState::Ready)).await;
    send(&broker, 0..10).await;
    assert_eq!(all_answered(&broker, 10).await, ["cuda"]);
    // CUDA_ERROR_LAUNCH_FAILED, after which a context is lost.
    driver.fail(SYNCHRONIZE, 0, 719);
    send(&broker, 10..60).await;
    assert_eq!(all_answered(&broker, 60).await, ["cuda", "tract"]);
    let status = broker.status("n1", "the failed instance", |s| is(s, "cuda", InstanceState::Failed)).await;
    let (_, error) = state(&status, "cuda").unwrap();
    assert!(error.contains("LAUNCH_FAILED"), "{error}");
    assert!(is(&status, "tract", InstanceState::Ready));
    until("all offsets committed", || broker.committed() == 60).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_would_overflow_the_device_is_refused_and_others_serve() {
    let (driver, _one) = driver().await;
    let broker = Broker::new();
    broker.plan("n1", 1, vec![delay("cuda", 1, 4)]).await;
    let node = node(&broker, "n1");
    broker.status("n1", "a ready instance", |s| is(s, "cuda", InstanceState::Ready)).await;
    // Room for what is kept back and a little more, not for the pictures of the other model.
    driver.set(2, driver.counters().device_bytes + (128 << 20) + 65_536);
    let picture = InstanceAllocation { backend: "cuda".to_owned(), max_batch: 4, ..instance("count-cnn.onnx", "2", 1) };
    broker.plan("n1", 2, vec![delay("cuda", 1, 4), picture]).await;
    let refused = |s: &ExecutorStatus| {
        s.instances.iter().any(|i| {
            let error = i.error.as_deref().unwrap_or_default();
            i.version == "2" && i.state == InstanceState::Failed && error.contains("not enough device memory")
        })
    };
    let status = broker.status("n1", "a refused instance", refused).await;
    assert!(status.instances.iter().any(|i| i.version == "1" && i.state == InstanceState::Ready));
    send(&broker, 0..10).await;
    assert_eq!(all_answered(&broker, 10).await, ["cuda"]);
    node.stop().await;
}
