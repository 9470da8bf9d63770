//! Executor processes with the CUDA backend, on the stand-in driver, through Kafka: instances come and go with the
//! control messages, and every request has its answer.

use runtime::{Bus, OutRecord, Record};
use schemas::allocation::{InstanceAllocation, NodeAllocation};
use schemas::status::{ExecutorStatus, InstanceState, NodeState};
use schemas::{Message, Topics};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use tests::{Brokers, Process, read_until, send, unique, workspace};

/// Requests of each stage.
const STAGE: usize = 60;

fn plan(node: &str, sequence: u64, workers: u32) -> NodeAllocation {
    let instance = InstanceAllocation {
        service: "delay".to_owned(),
        model: workspace().join("models/delay.onnx").to_string_lossy().into_owned(),
        version: "1".to_owned(),
        backend: "cuda".to_owned(),
        workers,
        max_batch: 4,
        slo_ms: 600_000.0,
        service_p95_ms: 10.0,
    };
    NodeAllocation {
        schema: Default::default(),
        node: node.to_owned(),
        plan_id: format!("1-{sequence}"),
        epoch: 1,
        sequence,
        created_at_ms: 0,
        instances: if workers == 0 { Vec::new() } else { vec![instance] },
        drain: workers == 0,
        reason: "a test".to_owned(),
        load: Vec::new(),
    }
}

struct Stack {
    bus: runtime::kafka::KafkaBus,
    /// A request body and what must come back.
    features: Vec<f64>,
    expected: f64,
    sent: usize,
}

impl Stack {
    async fn plan(&self, node: &str, sequence: u64, workers: u32) {
        let topic = self.bus.topics().name("allocation.control");
        send(&self.bus, OutRecord::message(topic, &plan(node, sequence, workers)).unwrap()).await;
    }

    async fn status(&self, node: &str, what: impl Fn(&ExecutorStatus) -> bool) -> ExecutorStatus {
        let of = |r: &Record| r.value.as_ref().and_then(|v| ExecutorStatus::decode(v).ok());
        let wanted = |r: &Record| of(r).is_some_and(|s| s.node == node && what(&s));
        let records = read_until(&self.bus, "executor.status", |records| records.iter().any(wanted)).await;
        records.iter().filter(|r| wanted(r)).find_map(of).unwrap()
    }

    async fn ready(&self, node: &str, workers: u32) {
        let cuda = |s: &ExecutorStatus| {
            s.instances.iter().any(|i| i.backend == "cuda" && i.state == InstanceState::Ready && i.workers == workers)
        };
        self.status(node, cuda).await;
    }

    async fn requests(&mut self, n: usize) {
        for _ in 0..n {
            let id = format!("r{}", self.sent);
            let body = serde_json::json!({"id": id, "inputs": [
                {"name": "features", "shape": [1, 16], "datatype": "FP32", "data": self.features}]});
            let topic = self.bus.topics().requests("delay");
            send(&self.bus, OutRecord::new(topic).key(id).value(body.to_string())).await;
            self.sent += 1;
        }
    }

    /// Waits for all answers; gives the nodes that gave those from `first` on.
    async fn answers(&self, first: usize) -> BTreeSet<String> {
        let distinct = |records: &[Record]| records.iter().map(Record::key_str).collect::<BTreeSet<_>>().len();
        let records = read_until(&self.bus, "prediction.results.delay", |records| distinct(records) == self.sent).await;
        let mut by_key: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
        for record in &records {
            let answer = serde_json::from_slice(record.value.as_ref().unwrap()).unwrap();
            by_key.entry(record.key_str()).or_default().push(answer);
        }
        let mut nodes = BTreeSet::new();
        for (key, answers) in by_key {
            assert_eq!(answers.len(), 1, "{key} is answered more than once");
            let answer = &answers[0];
            assert_eq!(answer["parameters"]["backend"], "cuda", "{answer}");
            let value = answer["outputs"][0]["data"][0].as_f64().unwrap();
            assert!((value - self.expected).abs() <= 1e-4 * self.expected.abs().max(1.0), "{value}, {}", self.expected);
            if key[1..].parse::<usize>().unwrap() >= first {
                nodes.insert(answer["parameters"]["node"].as_str().unwrap().to_owned());
            }
        }
        nodes
    }
}

async fn instances_follow_the_plan(brokers: Brokers) {
    let vectors = std::fs::read_to_string(workspace().join("models/test-vectors.json")).unwrap();
    let vectors: Value = serde_json::from_str(&vectors).unwrap();
    let case = &vectors["models"]["delay"]["cases"][0];
    let features = case["input"]["rows"][0].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect();
    let expected = case["expected"].as_array().unwrap().iter().flat_map(numbers).next().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let driver = folder.path().join("driver");
    std::fs::create_dir(&driver).unwrap();
    std::os::unix::fs::symlink(fakecuda::library().unwrap(), driver.join("libcuda.so.1")).unwrap();
    let prefix = unique("cuda-") + ".";
    let bus = brokers.bus(&prefix);
    bus.create_topics(&Topics::all(["delay"])).await.unwrap();
    let config = folder.path().join("barista.toml");
    let text = format!(
        "[kafka]\nbrokers = {:?}\ntopic_prefix = {prefix:?}\n[executor]\nflavor = \"gpu\"\ncores = 2\n",
        brokers.kafka
    );
    std::fs::write(&config, text).unwrap();
    let start = |node: &str| {
        let args = ["executor", "-c", config.to_str().unwrap()];
        let env = [("LD_LIBRARY_PATH", driver.to_str().unwrap())];
        Process::start_in(&args, &[("executor.node", node)], &env, folder.path())
    };
    let mut stack = Stack { bus, features, expected, sent: 0 };
    let (first, second) = (start("g0"), start("g1"));
    stack.plan("g0", 1, 1).await;
    stack.ready("g0", 1).await;
    stack.requests(STAGE).await;
    assert_eq!(stack.answers(0).await, BTreeSet::from(["g0".to_owned()]));

    // Up: another worker in the node, and another node.
    stack.plan("g0", 2, 2).await;
    stack.ready("g0", 2).await;
    stack.plan("g1", 3, 1).await;
    stack.ready("g1", 1).await;
    // Until the second one has its share of the partitions.
    let both = loop {
        let before = stack.sent;
        stack.requests(STAGE).await;
        let nodes = stack.answers(before).await;
        if nodes.len() == 2 {
            break nodes;
        }
    };
    assert_eq!(both, BTreeSet::from(["g0".to_owned(), "g1".to_owned()]));

    // Down, with requests on their way.
    let before = stack.sent;
    stack.requests(STAGE / 2).await;
    stack.plan("g0", 4, 0).await;
    stack.requests(STAGE / 2).await;
    stack.status("g0", |s| s.state == NodeState::Stopped).await;
    let nodes = stack.answers(before).await;
    assert!(nodes.contains("g1"), "{nodes:?}");
    drop(first);
    assert_eq!(second.interrupt().await, Some(0));
    brokers.shutdown().await;
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().map_or_else(|| value.as_f64().into_iter().collect(), |all| all.iter().flat_map(numbers).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_follow_the_plan_over_the_embedded_broker() {
    instances_follow_the_plan(Brokers::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_follow_the_plan_over_apache_kafka() {
    if let Some(brokers) = Brokers::real() {
        instances_follow_the_plan(brokers).await;
    }
}

/// `barista doctor` with a `libcuda.so.1` and settings of the stand-in: the line about CUDA, and the JSON.
fn doctor(library: impl FnOnce(&std::path::Path), env: &[(&str, &str)]) -> (String, Value) {
    let folder = tempfile::tempdir().unwrap();
    library(&folder.path().join("libcuda.so.1"));
    let run = |args: &[&str]| {
        let mut command = std::process::Command::new(tests::barista());
        command.args(args).env("LD_LIBRARY_PATH", folder.path()).envs(env.iter().copied()).current_dir(folder.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let text = run(&["doctor"]);
    let line = text.lines().find(|l| l.contains("cuda")).unwrap_or_else(|| panic!("no line about CUDA in\n{text}"));
    (line.to_owned(), serde_json::from_str::<Value>(&run(&["doctor", "--json"])).unwrap()["cuda"].clone())
}

#[test]
fn doctor_says_what_it_finds_of_cuda_and_why_it_is_off() {
    let stand_in = |at: &std::path::Path| std::os::unix::fs::symlink(fakecuda::library().unwrap(), at).unwrap();
    let (line, json) = doctor(stand_in, &[]);
    assert!(line.contains("fakecuda PTX interpreter, driver for CUDA 12.2, 1.0 GiB"), "{line}");
    assert_eq!((json["available"].as_bool(), json["memory_gib"].as_f64()), (Some(true), Some(1.0)));
    for (env, reason) in [
        (("FAKECUDA_INIT", "999"), "cuInit = 999"),
        (("FAKECUDA_VERSION", "11040"), "is for CUDA 11.4"),
        (("FAKECUDA_DEVICES", "0"), "finds no device"),
        (("FAKECUDA_CAPABILITY", "61"), "has compute capability 6.1"),
    ] {
        let (line, json) = doctor(stand_in, &[env]);
        assert!(line.contains("off, because") && line.contains(reason), "{line}");
        assert_eq!(json["available"], false);
        assert!(json["reason"].as_str().unwrap().contains(reason), "{json}");
    }
    let (line, _) = doctor(|at| std::fs::write(at, "no library").unwrap(), &[]);
    assert!(line.contains("off, because the NVIDIA driver cannot be loaded"), "{line}");
}
