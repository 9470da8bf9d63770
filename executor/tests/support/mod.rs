//! A node on a broker in memory: one line to start it, conditions to wait for.

#![allow(dead_code, reason = "each test binary uses its part")]

use executor::backend::Backends;
use executor::backend::fake::{FakeBackend, FakeModelFile};
use executor::direct::Door;
use executor::{Config, Error};
use runtime::config::ConfigDuration;
use runtime::memory::MemoryBus;
use runtime::{Bus, Context, OutRecord, Readiness, Record, SharedClock, SystemClock, TopicPartition};
use schemas::Message;
use schemas::allocation::{InstanceAllocation, LoadSample, NodeAllocation};
use schemas::prediction::InferResponse;
use schemas::status::ExecutorStatus;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Longest wait for a condition; tests end long before, it only bounds a failure.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) const REQUESTS: &str = "prediction.requests.a";
pub(crate) const RESULTS: &str = "prediction.results.a";
pub(crate) const REJECTED: &str = "prediction.rejected";
pub(crate) const GROUP: &str = "barista.executor.a";

pub(crate) struct Broker {
    pub(crate) bus: MemoryBus,
    pub(crate) models: tempfile::TempDir,
    clock: SharedClock,
}

pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) token: CancellationToken,
    pub(crate) metrics: runtime::SharedRegistry,
    task: JoinHandle<Result<(), Error>>,
}

pub(crate) fn config(node: &str) -> Config {
    Config {
        node: node.to_owned(),
        cores: 4,
        status_interval: ConfigDuration::from_millis(20),
        commit_interval: ConfigDuration::from_millis(5),
        retry_load: ConfigDuration::from_secs(600),
        vertical: executor::config::VerticalConfig { enabled: false, ..Default::default() },
        ..Config::default()
    }
}

pub(crate) fn instance(model: &str, version: &str, workers: u32) -> InstanceAllocation {
    InstanceAllocation {
        service: "a".to_owned(),
        model: model.to_owned(),
        version: version.to_owned(),
        backend: if model.ends_with(".onnx") { "tract" } else { "fake" }.to_owned(),
        workers,
        max_batch: 1,
        slo_ms: 60_000.0,
        service_p95_ms: 0.01,
    }
}

impl Broker {
    pub(crate) fn new() -> Self {
        let clock: SharedClock = Arc::new(SystemClock);
        let bus = MemoryBus::new(clock.clone());
        bus.create("allocation.control", 1);
        bus.create("executor.status", 1);
        bus.create(REQUESTS, 4);
        bus.create(RESULTS, 4);
        bus.create(REJECTED, 4);
        Broker { bus, models: tempfile::tempdir().unwrap(), clock }
    }

    /// Writes a fake model file; the name is what a plan calls it.
    pub(crate) fn fake_model(&self, name: &str, file: &FakeModelFile) {
        std::fs::write(self.models.path().join(name), serde_json::to_vec(file).unwrap()).unwrap();
    }

    pub(crate) fn node(&self, config: Config, fake: FakeBackend) -> Node {
        self.node_behind(Door::new(), config, fake)
    }

    /// What a service of this process is given.
    pub(crate) fn context(&self) -> Context {
        Context {
            bus: Arc::new(self.bus.clone()),
            clock: self.clock.clone(),
            registry: runtime::metrics::new_registry(),
            readiness: Readiness::default(),
        }
    }

    pub(crate) fn node_behind(&self, door: Door, config: Config, fake: FakeBackend) -> Node {
        let model_dir =
            if config.model_dir == Path::new(".") { self.models.path().to_owned() } else { config.model_dir };
        let config = Config { model_dir, ..config };
        let context = self.context();
        let (id, metrics, token) = (config.node.clone(), context.registry.clone(), CancellationToken::new());
        let backends = Backends::available(None).with(Arc::new(fake));
        let task = tokio::spawn(executor::run_behind(door, config, context, token.clone(), backends));
        Node { id, token, metrics, task }
    }

    pub(crate) async fn send(&self, record: OutRecord) {
        self.bus.sink().send(record).await.unwrap();
    }

    pub(crate) async fn plan(&self, node: &str, sequence: u64, instances: Vec<InstanceAllocation>) {
        self.send_plan(allocation(node, sequence, instances)).await;
    }

    pub(crate) async fn send_plan(&self, allocation: NodeAllocation) {
        self.send(OutRecord::message("allocation.control", &allocation).unwrap()).await;
    }

    /// Requests of one row `[i, 0]` for the sum model, with ids and keys `r<i>`.
    pub(crate) async fn requests(&self, range: std::ops::Range<usize>) {
        for i in range {
            self.send(request(i, &[])).await;
        }
    }

    pub(crate) async fn wait(&self, topic: &str, what: &str, condition: impl FnMut(&[Record]) -> bool) -> Vec<Record> {
        let waited = tokio::time::timeout(PATIENCE, self.bus.wait_until(topic, condition)).await;
        waited.unwrap_or_else(|_| panic!("waited in vain for {what}; {topic} has {:#?}", self.bus.records(topic)))
    }

    /// Results and rejections together, when there are at least `n`.
    pub(crate) async fn answers(&self, n: usize) -> BTreeMap<String, Vec<Record>> {
        let all = || [self.bus.records(RESULTS), self.bus.records(REJECTED)].concat();
        until(&format!("{n} answers"), || all().len() >= n).await;
        let mut by_key: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        for record in all() {
            by_key.entry(record.key_str().to_owned()).or_default().push(record);
        }
        by_key
    }

    pub(crate) async fn status(
        &self,
        node: &str,
        what: &str,
        condition: impl Fn(&ExecutorStatus) -> bool,
    ) -> ExecutorStatus {
        let matching = |records: &[Record]| {
            let of_node = records.iter().filter(|r| r.key_str() == node);
            of_node.filter_map(|r| ExecutorStatus::decode(r.value.as_ref()?).ok()).find(&condition)
        };
        let records = self.wait("executor.status", what, |records| matching(records).is_some()).await;
        matching(&records).unwrap()
    }

    pub(crate) fn statuses(&self, node: &str) -> Vec<ExecutorStatus> {
        let records = self.bus.records("executor.status");
        let of_node = records.iter().filter(|r| r.key_str() == node);
        of_node.map(|r| ExecutorStatus::decode(r.value.as_ref().unwrap()).unwrap()).collect()
    }

    /// Committed offsets of the requests, all partitions together.
    pub(crate) fn committed(&self) -> i64 {
        self.bus.committed(GROUP).values().sum()
    }

    /// True when this request lies before the committed offset of its partition.
    pub(crate) fn is_committed(&self, request: &Record) -> bool {
        let committed = self.bus.committed(GROUP);
        committed
            .get(&TopicPartition::new(request.topic.clone(), request.partition))
            .is_some_and(|next| request.offset < *next)
    }
}

impl Node {
    /// Waits for the end.
    pub(crate) async fn end(self) -> Result<(), Error> {
        let ended = tokio::time::timeout(PATIENCE, self.task).await;
        ended.unwrap_or_else(|_| panic!("node {} does not end", self.id)).unwrap()
    }

    pub(crate) async fn stop(self) {
        self.token.cancel();
        self.end().await.unwrap();
    }
}

pub(crate) fn allocation(node: &str, sequence: u64, instances: Vec<InstanceAllocation>) -> NodeAllocation {
    NodeAllocation {
        schema: Default::default(),
        node: node.to_owned(),
        plan_id: format!("1-{sequence}"),
        epoch: 1,
        sequence,
        created_at_ms: 0,
        instances,
        drain: false,
        reason: format!("plan {sequence}"),
        load: vec![LoadSample { service: "a".to_owned(), start_ms: 7, observed_rps: 1.0, forecast_rps: 2.0 }],
    }
}

pub(crate) fn request(i: usize, headers: &[(&str, &str)]) -> OutRecord {
    let body = format!(r#"{{"id":"r{i}","inputs":[{{"name":"x","shape":[1,2],"datatype":"FP32","data":[{i},0]}}]}}"#);
    raw_request(&format!("r{i}"), body.as_bytes(), headers)
}

pub(crate) fn raw_request(key: &str, body: &[u8], headers: &[(&str, &str)]) -> OutRecord {
    let mut record = OutRecord::new(REQUESTS).key(key.to_owned()).value(body.to_vec());
    for (name, value) in headers {
        record = record.header(*name, value.to_string());
    }
    record
}

pub(crate) fn response(record: &Record) -> InferResponse {
    serde_json::from_slice(record.value.as_ref().unwrap()).unwrap()
}

/// Waits for a condition that nothing announces.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, poll).await.is_err() {
        panic!("waited in vain for {what}");
    }
}

pub(crate) fn committed_models() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models")
}
