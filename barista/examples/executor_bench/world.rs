//! Broker, node, echo and client of one run.

use crate::Options;
use executor::backend::{Backend, Backends, LoadOptions, Model, Row, Signature, tract::TractBackend};
use executor::direct::Door;
use runtime::config::ConfigDuration;
use runtime::kafka::{KafkaBus, KafkaConfig};
use runtime::{
    Bus, Context, OutRecord, Readiness, Record, SharedClock, Sink, SourceEvent, SourceSpec, Start, SystemClock,
};
use schemas::Message;
use schemas::allocation::{InstanceAllocation, NodeAllocation};
use schemas::headers::INFERENCE_HEADER_CONTENT_LENGTH;
use schemas::prediction::ResultParameters;
use schemas::status::ExecutorStatus;
use schemas::topics::{ALLOCATION_CONTROL, Cleanup, EXECUTOR_STATUS, PREDICTION_REJECTED, TopicSpec};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Served by the node.
pub(crate) const NODE: &str = "bench";
/// Answered by an echo: broker and client without the node.
pub(crate) const ECHO: &str = "echo";

/// What came back for a request.
pub(crate) struct Answer {
    /// From sending to reading.
    pub(crate) latency: Duration,
    /// As the node says; absent for a rejection and from the echo.
    pub(crate) parameters: Option<ResultParameters>,
    /// Why it was rejected.
    pub(crate) rejected: Option<String>,
}

/// Requests without an answer yet, and those answered.
#[derive(Default)]
pub(crate) struct Ledger {
    sent: Mutex<HashMap<u64, Instant>>,
    answers: Mutex<Vec<Answer>>,
    answered: AtomicU64,
    news: Notify,
}

impl Ledger {
    /// Requests that nothing has come back for.
    pub(crate) fn open(&self) -> usize {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Answers since the last call.
    pub(crate) fn take(&self) -> Vec<Answer> {
        std::mem::take(&mut self.answers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Resolves when an answer has come since the last time.
    pub(crate) async fn news(&self) {
        self.news.notified().await;
    }

    fn close(&self, record: &Record, parameters: Option<ResultParameters>, rejected: Option<String>) {
        let Ok(id) = record.key_str().parse::<u64>() else { return };
        let Some(sent) = self.sent.lock().unwrap_or_else(PoisonError::into_inner).remove(&id) else { return };
        let answer = Answer { latency: sent.elapsed(), parameters, rejected };
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.news.notify_one();
    }
}

pub(crate) struct World {
    broker: broker::Broker,
    pub(crate) bus: Arc<KafkaBus>,
    pub(crate) model: Arc<dyn Model>,
    pub(crate) row: Row,
    pub(crate) worker_core: usize,
    pub(crate) ledger: Arc<Ledger>,
    file: PathBuf,
    batch: u32,
    queue: usize,
    config: KafkaConfig,
    next_id: AtomicU64,
    sequence: AtomicU64,
    body: Vec<u8>,
    json_bytes: usize,
    sends: mpsc::UnboundedSender<OutRecord>,
    tasks: Vec<JoinHandle<()>>,
    token: CancellationToken,
    nodes: Mutex<Vec<JoinHandle<Result<(), executor::Error>>>>,
    folder: tempfile::TempDir,
}

/// A row of the model's shape, never all zeros.
fn row_of(signature: &Signature) -> Row {
    let element = |i: usize| (i as f32 * 0.37).sin();
    signature.inputs.iter().map(|spec| (0..spec.elements()).map(element).collect()).collect()
}

/// A request of one row with binary tensors, and the length of its JSON.
fn body_of(signature: &Signature, row: &Row) -> anyhow::Result<(Vec<u8>, usize)> {
    let tensor = |spec: &executor::backend::TensorSpec| {
        let shape: Vec<usize> = signature.batched.then_some(1).into_iter().chain(spec.shape.iter().copied()).collect();
        serde_json::json!({"name": spec.name, "shape": shape, "datatype": "FP32",
                           "parameters": {"binary_data_size": 4 * spec.elements()}})
    };
    let inputs: Vec<_> = signature.inputs.iter().map(tensor).collect();
    let outputs =
        signature.outputs.iter().map(|o| serde_json::json!({"name": o.name, "parameters": {"binary_data": true}}));
    let json = serde_json::json!({"inputs": inputs, "outputs": outputs.collect::<Vec<_>>()});
    let mut body = serde_json::to_vec(&json)?;
    let json_bytes = body.len();
    body.extend(row.iter().flatten().flat_map(|x| x.to_le_bytes()));
    Ok((body, json_bytes))
}

impl World {
    pub(crate) async fn start(options: &Options, worker_core: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let broker = broker::Broker::start(broker::Config::new(folder.path().join("broker"))).await?;
        let config = KafkaConfig { brokers: broker.bootstrap(), ..KafkaConfig::default() };
        let bus = Arc::new(KafkaBus::connect(&config)?);
        let topic =
            |name: String, cleanup, single_partition| TopicSpec { name, cleanup, single_partition, append_time: false };
        let mut topics = vec![
            topic(ALLOCATION_CONTROL.to_owned(), Cleanup::Compact, true),
            topic(EXECUTOR_STATUS.to_owned(), Cleanup::Compact, true),
            topic(PREDICTION_REJECTED.to_owned(), Cleanup::Delete, false),
        ];
        for service in [NODE, ECHO] {
            topics.push(topic(bus.topics().requests(service), Cleanup::Delete, false));
            topics.push(topic(bus.topics().results(service), Cleanup::Delete, false));
        }
        bus.create_topics(&topics).await?;
        let model = TractBackend.load(&options.model, &LoadOptions { max_batch: options.batch as usize })?;
        let row = row_of(model.signature());
        let (body, json_bytes) = body_of(model.signature(), &row)?;
        let ledger = Arc::new(Ledger::default());
        let (sends, outbox) = mpsc::unbounded_channel();
        let mut world = World {
            broker,
            bus,
            model,
            row,
            worker_core,
            ledger,
            file: std::path::absolute(&options.model)?,
            batch: options.batch,
            queue: options.queue.unwrap_or(executor::Config::default().queue_capacity),
            config,
            next_id: AtomicU64::new(0),
            sequence: AtomicU64::new(0),
            body,
            json_bytes,
            sends,
            tasks: Vec::new(),
            token: CancellationToken::new(),
            nodes: Mutex::default(),
            folder,
        };
        world.tasks.push(tokio::spawn(send_all(world.bus.sink(), outbox)));
        world.read_answers().await?;
        world.echo().await?;
        Ok(world)
    }

    async fn read_answers(&mut self) -> anyhow::Result<()> {
        let topics = self.bus.topics();
        let (results, echoed, rejected) =
            (topics.results(NODE), topics.results(ECHO), topics.name(PREDICTION_REJECTED));
        let spec = SourceSpec::assign(vec![results.clone(), echoed.clone(), rejected.clone()], Start::End);
        let mut source = self.bus.source(spec).await?;
        while !matches!(source.next().await?, SourceEvent::CaughtUp) {}
        let ledger = self.ledger.clone();
        self.tasks.push(tokio::spawn(async move {
            while let Ok(event) = source.next().await {
                let SourceEvent::Record(record) = event else { continue };
                if record.topic == rejected {
                    let reason = record.headers.get_str("reason").unwrap_or("none").to_owned();
                    ledger.close(&record, None, Some(reason));
                } else if record.topic == echoed {
                    ledger.close(&record, None, None);
                } else {
                    ledger.close(&record, parameters(&record), None);
                }
            }
        }));
        Ok(())
    }

    async fn echo(&mut self) -> anyhow::Result<()> {
        let bus = KafkaBus::connect(&self.config)?;
        let (sink, results) = (bus.sink(), bus.topics().results(ECHO));
        let mut source = bus.source(SourceSpec::group(vec![bus.topics().requests(ECHO)], "echo")).await?;
        self.tasks.push(tokio::spawn(async move {
            while let Ok(event) = source.next().await {
                if let SourceEvent::Record(record) = event {
                    let out = OutRecord::new(results.clone()).key(record.key_str().to_owned()).value(vec![0u8; 256]);
                    tokio::spawn(sink.send(out));
                }
            }
        }));
        Ok(())
    }

    /// Starts a node with one core; it waits for a plan.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<()> {
        let config = executor::Config {
            node: name.to_owned(),
            cores: 1,
            pin: true,
            queue_capacity: self.queue,
            pin_cores: vec![self.worker_core],
            vertical: executor::config::VerticalConfig { enabled: false, ..Default::default() },
            status_interval: ConfigDuration::from_millis(100),
            ..executor::Config::default()
        };
        let context = Context {
            bus: Arc::new(KafkaBus::connect(&self.config)?),
            clock: Arc::new(SystemClock) as SharedClock,
            registry: runtime::metrics::new_registry(),
            readiness: Readiness::default(),
        };
        let run = executor::run_behind(Door::new(), config, context, self.token.clone(), Backends::available(None));
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner).push(tokio::spawn(run));
        Ok(())
    }

    /// Publishes a node's share: these versions of the model, one worker each.
    pub(crate) async fn plan(&self, node: &str, versions: &[&str], slo_ms: f64) -> anyhow::Result<()> {
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let instances = versions.iter().map(|version| InstanceAllocation {
            service: NODE.to_owned(),
            model: self.file.display().to_string(),
            version: (*version).to_owned(),
            backend: "tract".to_owned(),
            workers: 1,
            max_batch: self.batch,
            slo_ms,
            service_p95_ms: 0.01,
        });
        let allocation = NodeAllocation {
            schema: Default::default(),
            node: node.to_owned(),
            plan_id: format!("1-{sequence}"),
            epoch: 1,
            sequence,
            created_at_ms: 0,
            instances: instances.collect(),
            drain: versions.is_empty(),
            reason: "benchmark".to_owned(),
            load: Vec::new(),
        };
        self.bus.sink().send(OutRecord::message(ALLOCATION_CONTROL, &allocation)?).await?;
        Ok(())
    }

    /// Heartbeats from now on.
    pub(crate) async fn statuses(&self) -> anyhow::Result<mpsc::UnboundedReceiver<ExecutorStatus>> {
        let mut source = self.bus.source(SourceSpec::assign(vec![EXECUTOR_STATUS.to_owned()], Start::End)).await?;
        while !matches!(source.next().await?, SourceEvent::CaughtUp) {}
        let (tell, statuses) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(event) = source.next().await {
                let SourceEvent::Record(record) = event else { continue };
                let status = record.value.as_ref().and_then(|v| ExecutorStatus::decode(v).ok());
                if status.is_some_and(|status| tell.send(status).is_err()) {
                    return;
                }
            }
        });
        Ok(statuses)
    }

    /// Sends one request to the node or the echo.
    pub(crate) fn send(&self, service: &str, deadline_ms: Option<f64>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let mut record = OutRecord::new(self.bus.topics().requests(service))
            .key(id.to_string())
            .value(self.body.clone())
            .header(INFERENCE_HEADER_CONTENT_LENGTH, self.json_bytes.to_string());
        if let Some(deadline_ms) = deadline_ms {
            record = record.header("deadline-ms", format!("{deadline_ms:.0}"));
        }
        self.ledger.sent.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Instant::now());
        // The receiver lives as long as this does.
        let _ = self.sends.send(record);
    }

    /// Waits until everything sent has come back.
    pub(crate) async fn drain(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        while self.ledger.open() > 0 {
            anyhow::ensure!(
                begun.elapsed() < Duration::from_secs(120),
                "{} requests without an answer",
                self.ledger.open()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    pub(crate) async fn stop(self) -> anyhow::Result<()> {
        self.token.cancel();
        let nodes = std::mem::take(&mut *self.nodes.lock().unwrap_or_else(PoisonError::into_inner));
        for node in nodes {
            node.await??;
        }
        self.tasks.iter().for_each(JoinHandle::abort);
        self.broker.shutdown().await;
        self.folder.close()?;
        Ok(())
    }
}

/// Hands records to the producer in order; delivery reports are not waited for, a failure ends the program.
async fn send_all(sink: Arc<dyn Sink>, mut outbox: mpsc::UnboundedReceiver<OutRecord>) {
    while let Some(record) = outbox.recv().await {
        let sent = sink.send(record);
        tokio::spawn(async move {
            if let Err(error) = sent.await {
                tracing::error!(%error, "a request was not written");
            }
        });
    }
}

/// Only the `parameters` of a result: its tensors follow in binary.
fn parameters(record: &Record) -> Option<ResultParameters> {
    #[derive(serde::Deserialize)]
    struct Head {
        parameters: ResultParameters,
    }
    let value = record.value.as_ref()?;
    let length = record.headers.get_str(INFERENCE_HEADER_CONTENT_LENGTH).and_then(|t| t.parse::<usize>().ok());
    let json = value.get(..length.unwrap_or(value.len()))?;
    serde_json::from_slice::<Head>(json).ok().map(|head| head.parameters)
}
