//! The gateway on real sockets, in front of a node on a broker in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "gateway/client.rs"]
mod client;
mod support;

use client::*;
use executor::backend::fake::{FakeBackend, FakeModelFile, Gate};
use executor::direct::Door;
use executor::gateway::proto::{self, ModelInferRequest};
use executor::gateway::{Bound, Config, Mode, Node as Behind, Served, config::TlsConfig, run_on};
use runtime::config::{ConfigDuration, Secret};
use schemas::status::{ExecutorStatus, InstanceState, ServiceStatus};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use support::*;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::Code;

/// A gateway, the node behind it, and their broker.
struct Rig {
    broker: Broker,
    node: Node,
    http: SocketAddr,
    grpc: SocketAddr,
    readiness: runtime::Readiness,
    metrics: runtime::SharedRegistry,
    stop: CancellationToken,
    gateway: JoinHandle<Result<(), executor::Error>>,
}

fn gateway_config() -> Config {
    let any = "127.0.0.1:0".parse().unwrap();
    Config { http: any, grpc: any, mode: Mode::Direct, ..Config::default() }
}

fn served(name: &str, model: &str) -> Served {
    Served {
        name: name.to_owned(),
        model: model.to_owned(),
        version: "1".to_owned(),
        backend: "fake".to_owned(),
        slo_ms: 60_000.0,
    }
}

impl Rig {
    /// Service `a` is `sum` of two elements and planned; `b` is configured and nobody holds it.
    async fn new(config: Config) -> Rig {
        Rig::with(config, executor_config(), FakeBackend::default(), true).await
    }

    async fn with(config: Config, node: executor::Config, fake: FakeBackend, planned: bool) -> Rig {
        let broker = Broker::new();
        broker.fake_model("sum", &FakeModelFile { fails_on: Some(666.0), ..FakeModelFile::sum(2) });
        if planned {
            broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
        }
        let door = Door::new();
        let max_rows = node.max_rows;
        let node = broker.node_behind(door.clone(), node, fake);
        let behind = Behind { door, max_rows, backend: "fake".to_owned() };
        let context = broker.context();
        let (readiness, metrics) = (context.readiness.clone(), context.registry.clone());
        let bound = Bound::to(&config).await.unwrap();
        let (http, grpc) = (bound.http().unwrap(), bound.grpc().unwrap());
        let stop = CancellationToken::new();
        let services = vec![served("a", "sum"), served("b", "absent")];
        let behind = (config.mode != Mode::Kafka).then_some(behind);
        let gateway = tokio::spawn(run_on(bound, config, services, behind, context, stop.clone()));
        let rig = Rig { broker, node, http, grpc, readiness, metrics, stop, gateway };
        if planned {
            rig.ready("a").await;
        }
        rig
    }

    /// Waits until the gateway and a model are ready.
    async fn ready(&self, model: &str) {
        let path = format!("/v2/models/{model}/ready");
        eventually("the model is ready", async || get(self.http, &path).await.status == 200).await;
    }

    async fn infer(&self, body: &Value) -> Reply {
        post(self.http, "/v2/models/a/infer", body).await
    }

    fn client(&self) -> Grpc {
        grpc(self.grpc)
    }

    /// What the node told of a service so far, added up.
    fn told(&self, service: &str, count: impl Fn(&ServiceStatus) -> u64) -> u64 {
        let statuses = self.broker.statuses("n1");
        statuses.iter().flat_map(|s| &s.services).filter(|s| s.service == service).map(count).sum()
    }

    /// Waits until `arrivals` requests have come of which `depth` wait. A request counts before it is queued, so a
    /// heartbeat that tells of all of them tells a depth of after the earlier ones were taken.
    async fn queued(&self, arrivals: u64, depth: u64) {
        let seen = || {
            let statuses = self.broker.statuses("n1");
            let last = statuses.last().into_iter().flat_map(|s| &s.services).any(|s| s.queue_depth == depth);
            last && self.told("a", |s| s.direct_arrivals) == arrivals
        };
        until(&format!("{depth} of {arrivals} wait"), seen).await;
    }

    async fn end(self) {
        self.stop.cancel();
        self.gateway.await.unwrap().unwrap();
        self.node.stop().await;
    }
}

fn executor_config() -> executor::Config {
    config("n1")
}

fn body(a: f32, b: f32) -> Value {
    json!({"id": "i", "inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [a, b]}]})
}

fn message(a: f32, b: f32) -> ModelInferRequest {
    let input = proto::model_infer_request::InferInputTensor {
        name: "x".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, 2],
        ..Default::default()
    };
    let raw = [a.to_le_bytes(), b.to_le_bytes()].concat();
    ModelInferRequest {
        model_name: "a".to_owned(),
        id: "i".to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![raw.into()],
        ..Default::default()
    }
}

fn first_float(bytes: &[u8]) -> f32 {
    f32::from_le_bytes(bytes[..4].try_into().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_tells_what_there_is() {
    let rig = Rig::new(gateway_config()).await;
    assert_eq!(get(rig.http, "/v2/health/live").await.json(), json!({"live": true}));
    assert_eq!(get(rig.http, "/v2/health/ready").await.json(), json!({"ready": true}));
    assert_eq!(get(rig.http, "/v2/models/a/versions/1/ready").await.json(), json!({"name": "a", "ready": true}));
    let b = get(rig.http, "/v2/models/b/ready").await;
    assert_eq!((b.status, &b.json()["ready"]), (503, &json!(false)));
    let server = get(rig.http, "/v2").await.json();
    assert_eq!(server["name"], "barista");
    assert!(server["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    assert_eq!(
        get(rig.http, "/v2/models/a/versions/1").await.json(),
        json!({"name": "a", "versions": ["1"], "platform": "fake_onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}]})
    );
    assert_eq!(get(rig.http, "/v2/models/b").await.status, 503, "not loaded: its inputs are not known");
    let config = get(rig.http, "/v2/models/a/config").await.json();
    assert_eq!(config["max_batch_size"], 256);
    assert_eq!(config["input"], json!([{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}]));
    let all = post(rig.http, "/v2/repository/index", &json!({})).await.json();
    let states: Vec<_> = all.as_array().unwrap().iter().map(|m| (m["name"].as_str(), m["state"].as_str())).collect();
    assert_eq!(states, [(Some("a"), Some("READY")), (Some("b"), Some("UNAVAILABLE"))]);
    let ready = post(rig.http, "/v2/repository/index", &json!({"ready": true})).await.json();
    assert_eq!(ready.as_array().unwrap().len(), 1);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_infers_in_json_and_in_binary() {
    let rig = Rig::new(gateway_config()).await;
    let answer = rig.infer(&body(1.5, 2.0)).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(answer.header("inference-header-content-length"), None);
    let json = answer.json();
    assert_eq!((&json["model_name"], &json["model_version"], &json["id"]), (&json!("a"), &json!("1"), &json!("i")));
    assert_eq!(json["outputs"], json!([{"name": "y", "shape": [1, 1], "datatype": "FP32", "data": [3.5]}]));
    assert_eq!(json["parameters"]["node"], "n1");
    assert_eq!(post(rig.http, "/v2/models/a/versions/1/infer", &body(1.0, 2.0)).await.status, 200);

    let head = json!({"parameters": {"binary_data_output": true}, "inputs": [
        {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {"binary_data_size": 16}}]})
    .to_string();
    let mut request = head.clone().into_bytes();
    request.extend([1.0f32, 2.0, 3.0, 4.5].iter().flat_map(|x| x.to_le_bytes()));
    let length = head.len().to_string();
    let headers = [("Inference-Header-Content-Length", length.as_str()), ("correlation-id", "mine")];
    let answer = send(rig.http, "POST", "/v2/models/a/infer", &headers, &request).await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/octet-stream")));
    assert_eq!(answer.header("correlation-id"), Some("mine"));
    let length: usize = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let json: Value = serde_json::from_slice(&answer.body[..length]).unwrap();
    assert_eq!(json["outputs"][0]["parameters"]["binary_data_size"], 8);
    assert_eq!(first_float(&answer.body[length..]), 3.0);
    assert_eq!(first_float(&answer.body[length + 4..]), 7.5);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_errors_are_json_and_name_what_was_wrong() {
    let rig = Rig::new(Config { max_body: 4096, ..gateway_config() }).await;
    let tensor = |shape: Value, datatype: &str, data: Value| json!({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]});
    let cases = [
        ("/v2/models/a/infer", tensor(json!([1, 3]), "FP32", json!([1, 2, 3])), 400, "inputs[`x`].shape"),
        ("/v2/models/a/infer", tensor(json!([1, 2]), "INT64", json!([1, 2])), 400, "`INT64`, expected `FP32`"),
        ("/v2/models/a/infer", tensor(json!([1, 2]), "FP32", json!(["a", 2])), 400, "inputs[`x`].data"),
        ("/v2/models/a/infer", tensor(json!([1, 2]), "FP32", json!([666, 2])), 500, "inference-failed"),
        ("/v2/models/a/infer", json!({"inputs": 3}), 400, "request"),
        ("/v2/models/a/infer", json!({"parameters": {"timeout": "x"}, "inputs": []}), 400, "parameters.timeout"),
        ("/v2/models/a/versions/7/infer", body(1.0, 2.0), 404, "`7` is not served"),
        ("/v2/models/nobody/infer", body(1.0, 2.0), 404, "'nobody' is not found"),
        ("/v2/models/b/infer", body(1.0, 2.0), 503, "no instance of service b"),
        ("/v2/nothing", json!({}), 404, "/v2/nothing"),
        ("/v2/health/live", json!({}), 405, "POST"),
        ("/v2/systemsharedmemory/region/r/register", json!({}), 501, "not served"),
        ("/v2/models/a/infer", json!("x".repeat(5000)), 413, "4096 bytes"),
    ];
    for (path, body, status, part) in cases {
        let reply = post(rig.http, path, &body).await;
        let error = reply.json();
        assert_eq!(reply.status, status, "{path}: {error}");
        assert!(
            error["error"].as_str().is_some_and(|text| text.contains(part)),
            "{path}: {part} is missing in {error}"
        );
        assert_eq!(error.as_object().unwrap().len(), 1, "nothing but the error: {error}");
        assert_eq!(reply.header("retry-after"), (status == 503).then_some("1"));
    }
    let header = [("deadline-ms", "soon")];
    let reply = send(rig.http, "POST", "/v2/models/a/infer", &header, body(1.0, 1.0).to_string().as_bytes()).await;
    assert_eq!(reply.status, 400);
    let reply = send(rig.http, "POST", "/v2/models/a/infer", &[("Content-Encoding", "br")], b"{}").await;
    assert_eq!(reply.status, 415);
    let chunked = send_chunked(rig.http, "/v2/models/a/infer", &[&[b' '; 3000][..], &[b' '; 3000][..]]).await;
    assert_eq!(chunked.status, 413, "a body without a length is measured as it comes");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_answers_every_call() {
    let rig = Rig::new(gateway_config()).await;
    let mut client = rig.client();
    assert!(client.server_live(proto::ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(client.server_ready(proto::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let named = |name: &str| proto::ModelReadyRequest { name: name.to_owned(), version: String::new() };
    assert!(client.model_ready(named("a")).await.unwrap().into_inner().ready);
    assert!(!client.model_ready(named("b")).await.unwrap().into_inner().ready);
    assert_eq!(client.model_ready(named("nobody")).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.server_metadata(proto::ServerMetadataRequest {}).await.unwrap().into_inner().name, "barista");
    let about = proto::ModelMetadataRequest { name: "a".to_owned(), version: "1".to_owned() };
    let about = client.model_metadata(about).await.unwrap().into_inner();
    assert_eq!((about.inputs[0].name.as_str(), about.inputs[0].shape.as_slice()), ("x", [-1, 2].as_slice()));
    let config = proto::ModelConfigRequest { name: "a".to_owned(), version: String::new() };
    let config = client.model_config(config).await.unwrap().into_inner().config.unwrap();
    assert_eq!((config.max_batch_size, config.input[0].dims.as_slice()), (256, [2].as_slice()));

    let answer = client.model_infer(message(1.0, 2.5)).await.unwrap().into_inner();
    assert_eq!((answer.id.as_str(), answer.model_version.as_str()), ("i", "1"));
    assert_eq!(answer.outputs[0].shape, [1, 1]);
    assert_eq!(first_float(&answer.raw_output_contents[0]), 3.5);
    let many =
        futures::stream::iter((0..50).map(|i| ModelInferRequest { id: i.to_string(), ..message(i as f32, 0.0) }));
    let mut stream = client.model_stream_infer(many).await.unwrap().into_inner();
    for i in 0..50 {
        let answer = stream.message().await.unwrap().unwrap();
        assert_eq!(answer.error_message, "");
        let answer = answer.infer_response.unwrap();
        assert_eq!((answer.id, first_float(&answer.raw_output_contents[0])), (i.to_string(), i as f32));
    }
    let bad = futures::stream::iter([ModelInferRequest { model_name: "nobody".to_owned(), ..message(0.0, 0.0) }]);
    let mut stream = client.model_stream_infer(bad).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().unwrap().error_message.contains("nobody"));

    let stats = proto::ModelStatisticsRequest { name: "a".to_owned(), version: String::new() };
    let stats = client.model_statistics(stats).await.unwrap().into_inner().model_stats;
    assert_eq!(stats[0].inference_count, 51);
    let index = client.repository_index(proto::RepositoryIndexRequest::default()).await.unwrap().into_inner();
    assert_eq!(index.models.iter().map(|m| m.state.as_str()).collect::<Vec<_>>(), ["READY", "UNAVAILABLE"]);

    let mut wrong = message(1.0, 2.0);
    wrong.inputs[0].shape = vec![1, 3];
    let cases = [
        (wrong, Code::InvalidArgument, "inputs[`x`].shape"),
        (ModelInferRequest { model_version: "7".to_owned(), ..message(1.0, 2.0) }, Code::NotFound, "`7`"),
        (ModelInferRequest { model_name: "b".to_owned(), ..message(1.0, 2.0) }, Code::Unavailable, "service b"),
        (message(666.0, 2.0), Code::Internal, "inference-failed"),
    ];
    for (request, code, part) in cases {
        let status = client.model_infer(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{status}");
    }
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_arrivals_are_told_also_those_that_nobody_could_serve() {
    let rig = Rig::new(gateway_config()).await;
    for i in 0..20 {
        assert_eq!(rig.infer(&body(i as f32, 0.0)).await.status, 200);
    }
    for _ in 0..3 {
        assert_eq!(post(rig.http, "/v2/models/b/infer", &body(0.0, 0.0)).await.status, 503);
    }
    until("all arrivals told", || {
        rig.told("a", |s| s.direct_arrivals) == 20 && rig.told("b", |s| s.direct_arrivals) == 3
    })
    .await;
    assert_eq!(
        (rig.told("a", |s| s.arrivals), rig.told("a", |s| s.answered), rig.told("a", |s| s.in_slo)),
        (0, 20, 20)
    );
    assert_eq!(rig.told("b", |s| s.rejected), 3);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beyond_the_limits_clients_are_told_when_to_come_back() {
    let gate = Gate::closed();
    let node = executor::Config { queue_capacity: 1, ..executor_config() };
    let limits = Config { max_in_flight: 3, ..gateway_config() };
    let rig = Rig::with(limits, node, FakeBackend::default().with_gate(gate.clone()), true).await;
    let (http, metrics) = (rig.http, rig.metrics.clone());
    let asks =
        |i: usize| tokio::spawn(async move { post(http, "/v2/models/a/infer", &body(i as f32, 0.0)).await.status });
    let running = asks(0);
    until("one runs", || gate.waiting() == 1).await;
    let queued = asks(1);
    rig.queued(2, 1).await;
    let full = rig.infer(&body(0.0, 0.0)).await;
    assert_eq!((full.status, full.header("retry-after")), (503, Some("1")), "the queue is full");
    let status = rig.client().model_infer(message(0.0, 0.0)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.metadata().get("grpc-retry-pushback-ms").unwrap(), "1000");

    // A third place is taken by a body that does not come.
    let slow = open_request(rig.http, "/v2/models/a/infer", 100).await;
    let in_flight = || runtime::metrics::encode(&metrics).unwrap().contains("barista_gateway_in_flight 3");
    until("three are in flight", in_flight).await;
    let many = rig.infer(&body(0.0, 0.0)).await;
    assert_eq!((many.status, many.header("retry-after")), (429, Some("1")));
    assert!(many.json()["error"].as_str().unwrap().contains("3 requests"));
    assert_eq!(rig.client().model_infer(message(0.0, 0.0)).await.unwrap_err().code(), Code::ResourceExhausted);
    drop(slow);
    gate.open();
    assert_eq!((running.await.unwrap(), queued.await.unwrap()), (200, 200));
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_is_limited() {
    let gate = Gate::closed();
    let timeout = ConfigDuration::from_millis(300);
    let limits = Config { timeout, ..gateway_config() };
    let rig = Rig::with(limits, executor_config(), FakeBackend::default().with_gate(gate.clone()), true).await;
    let late = rig.infer(&body(0.0, 0.0)).await;
    assert_eq!((late.status, late.header("retry-after")), (504, None));
    assert_eq!(rig.client().model_infer(message(0.0, 0.0)).await.unwrap_err().code(), Code::DeadlineExceeded);
    // The one worker is at the gate: these wait behind it, past their deadlines.
    let mut asked = body(0.0, 0.0);
    asked["parameters"] = json!({"timeout": 1000});
    assert_eq!(rig.infer(&asked).await.status, 504);
    let slow = send_slowly(rig.http, "/v2/models/a/infer", 100).await;
    assert_eq!(slow.status, 408);
    gate.open();
    eventually("it goes on", async || rig.infer(&body(1.0, 1.0)).await.status == 200).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_are_limited() {
    let rig = Rig::new(Config { max_body: 1000, max_in_flight_bytes: 1500, ..gateway_config() }).await;
    let mut large = message(0.0, 0.0);
    large.id = "x".repeat(2000);
    let status = rig.client().model_infer(large).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    assert!(status.message().contains("1000 bytes"), "{status}");
    let first = open_request(rig.http, "/v2/models/a/infer", 900).await;
    // Not before it holds its bytes: if the second were faster, the first would be the one refused.
    let holds = || runtime::metrics::encode(&rig.metrics).unwrap().contains("barista_gateway_in_flight_bytes 900");
    until("it holds its bytes", holds).await;
    let busy = send(rig.http, "POST", "/v2/models/a/infer", &[], &[b' '; 900]).await;
    assert_eq!(busy.status, 429);
    assert!(busy.json()["error"].as_str().unwrap().contains("1500 bytes"));
    drop(first);
    eventually("it goes on", async || rig.infer(&body(1.0, 1.0)).await.status == 200).await;
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_caller_left_does_not_wait_for_a_worker() {
    let gate = Gate::closed();
    let rig =
        Rig::with(gateway_config(), executor_config(), FakeBackend::default().with_gate(gate.clone()), true).await;
    let http = rig.http;
    let running = tokio::spawn(async move { post(http, "/v2/models/a/infer", &body(0.0, 0.0)).await.status });
    until("one runs", || gate.waiting() == 1).await;
    let leaving = tokio::spawn(async move { post(http, "/v2/models/a/infer", &body(1.0, 0.0)).await.status });
    rig.queued(2, 1).await;
    leaving.abort();
    rig.queued(2, 0).await;
    until("it is told", || rig.told("a", |s| s.rejected) == 1).await;
    gate.open();
    assert_eq!(running.await.unwrap(), 200);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_keep_others_out() {
    let tokens = vec![Secret::new("first"), Secret::new("second")];
    let rig = Rig::new(Config { tokens, ..gateway_config() }).await;
    let refused = rig.infer(&body(1.0, 1.0)).await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Bearer")));
    for (header, status) in [("Bearer second", 200), ("bearer first", 200), ("Bearer other", 401), ("Basic first", 401)]
    {
        let headers = [("Authorization", header)];
        let reply = send(rig.http, "POST", "/v2/models/a/infer", &headers, body(1.0, 1.0).to_string().as_bytes()).await;
        assert_eq!(reply.status, status, "{header}");
    }
    assert_eq!(get(rig.http, "/v2/models/a").await.status, 401);
    assert_eq!(get(rig.http, "/v2/health/ready").await.status, 200, "probes have no token");
    let mut client = rig.client();
    assert!(client.server_ready(proto::ServerReadyRequest {}).await.unwrap().into_inner().ready);
    assert_eq!(client.model_infer(message(1.0, 1.0)).await.unwrap_err().code(), Code::Unauthenticated);
    let stream = client.model_stream_infer(futures::stream::iter([message(1.0, 1.0)])).await;
    assert_eq!(stream.unwrap_err().code(), Code::Unauthenticated);
    let mut request = tonic::Request::new(message(1.0, 1.0));
    request.metadata_mut().insert("authorization", "Bearer first".parse().unwrap());
    assert!(client.model_infer(request).await.is_ok());
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_serves_both_protocols() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let tls = TlsConfig { certificate: fixtures.join("gateway-cert.pem"), key: fixtures.join("gateway-key.pem") };
    let rig = Rig::with(
        Config { tls: Some(tls.clone()), ..gateway_config() },
        executor_config(),
        FakeBackend::default(),
        false,
    )
    .await;
    let roots = tls_roots(&tls.certificate);
    let request = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let reply = exchange_tls(rig.http, &roots, &[b"http/1.1"], request).await;
    assert_eq!(reply.json(), json!({"live": true}));
    assert_eq!(negotiated(rig.grpc, &roots, &[b"h2"]).await.as_deref(), Some(b"h2".as_slice()));
    // Plain text is no handshake: the connection ends without a word of HTTP.
    let plain = try_exchange(rig.http, request).await;
    assert!(plain.is_none_or(|bytes| !bytes.starts_with(b"HTTP/1.1")));

    let missing = TlsConfig { key: fixtures.join("nowhere.pem"), ..tls };
    let config = Config { tls: Some(missing), ..gateway_config() };
    let bound = Bound::to(&config).await.unwrap();
    let context = rig.broker.context();
    let error = run_on(bound, config, vec![], None, context, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("gateway.tls.key") && error.contains("nowhere.pem"), "{error}");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_loaded_and_unloaded() {
    let rig = Rig::with(gateway_config(), executor_config(), FakeBackend::default(), false).await;
    eventually("the node is up", async || get(rig.http, "/v2/health/ready").await.status == 200).await;
    assert_eq!(rig.infer(&body(1.0, 2.0)).await.status, 503);
    let index = async |name: &str| {
        let all = post(rig.http, "/v2/repository/index", &json!({})).await.json();
        all.as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone()
    };
    let load = post(rig.http, "/v2/repository/models/a/load", &json!({"parameters": {"workers": 2}})).await;
    assert_eq!(load.status, 200, "{}", load.json());
    assert_eq!(index("a").await["state"], "READY");
    assert_eq!(rig.infer(&body(1.0, 2.0)).await.status, 200);
    let two = |s: &ExecutorStatus| s.instances.iter().any(|i| i.workers == 2 && i.state == InstanceState::Ready);
    rig.broker.status("n1", "two workers", two).await;
    assert_eq!(post(rig.http, "/v2/repository/models/a/load", &json!({})).await.status, 200, "again: nothing to do");

    let failed = post(rig.http, "/v2/repository/models/b/load", &json!({})).await;
    assert_eq!(failed.status, 409);
    assert!(failed.json()["error"].as_str().unwrap().contains("absent"), "names the file: {}", failed.json());
    let b = index("b").await;
    assert_eq!(b["state"], "UNAVAILABLE");
    assert!(b["reason"].as_str().unwrap().contains("absent"));
    rig.broker.fake_model("absent", &FakeModelFile::sum(2));
    let request = proto::RepositoryModelLoadRequest { repository_name: "b".to_owned(), ..Default::default() };
    let loaded = rig.client().repository_model_load(request).await.unwrap().into_inner();
    assert!(loaded.is_loaded && loaded.model_name == "b", "KServe's layout, and at once after a failure");
    assert_eq!(post(rig.http, "/v2/models/b/infer", &body(1.0, 2.0)).await.status, 200);

    assert_eq!(post(rig.http, "/v2/repository/models/a/unload", &json!({})).await.status, 200);
    eventually("it is gone", async || index("a").await["state"] == "UNAVAILABLE").await;
    assert_eq!(rig.infer(&body(1.0, 2.0)).await.status, 503);
    assert_eq!(post(rig.http, "/v2/repository/models/nobody/load", &json!({})).await.status, 404);
    let bad = post(rig.http, "/v2/repository/models/a/load", &json!({"parameters": {"workers": 0}})).await;
    assert_eq!(bad.status, 400);

    // The plan takes over what was loaded, and then only the plan lets go of it.
    rig.broker.plan("n1", 1, vec![instance("sum", "1", 1)]).await;
    rig.ready("a").await;
    let planned = post(rig.http, "/v2/repository/models/a/unload", &json!({})).await;
    assert_eq!(planned.status, 409);
    assert!(planned.json()["error"].as_str().unwrap().contains("plan 1-1"), "{}", planned.json());
    assert_eq!(index("b").await["state"], "READY", "the plan says nothing of it");
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_readiness_goes_first_and_what_runs_is_finished() {
    let gate = Gate::closed();
    let limits = Config { drain_delay: ConfigDuration::from_secs(3), ..gateway_config() };
    let rig = Rig::with(limits, executor_config(), FakeBackend::default().with_gate(gate.clone()), true).await;
    let http = rig.http;
    let running = tokio::spawn(async move { post(http, "/v2/models/a/infer", &body(1.0, 2.0)).await });
    let mut client = rig.client();
    let streamed = tokio::spawn(async move { client.model_infer(message(2.0, 2.0)).await });
    until("one runs", || gate.waiting() == 1).await;
    rig.queued(2, 1).await;
    rig.stop.cancel();
    until("not ready", || !rig.readiness.checks()["gateway"].ready).await;
    let probe = get(http, "/v2/health/ready").await;
    assert_eq!((probe.status, &probe.json()["ready"]), (503, &json!(false)), "still answers while it says no");
    eventually("no new connection", async || tokio::net::TcpStream::connect(http).await.is_err()).await;
    assert!(!rig.gateway.is_finished(), "it waits for what runs");
    gate.open();
    assert_eq!(running.await.unwrap().json()["outputs"][0]["data"], json!([3.0]));
    assert_eq!(first_float(&streamed.await.unwrap().unwrap().into_inner().raw_output_contents[0]), 4.0);
    rig.gateway.await.unwrap().unwrap();
    rig.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_kafka_the_same_requests_get_the_same_answers() {
    let kafka = Config { mode: Mode::Kafka, timeout: ConfigDuration::from_millis(400), ..gateway_config() };
    let rig = Rig::with(kafka, executor_config(), FakeBackend::default(), true).await;
    let answer = rig.infer(&body(1.5, 2.0)).await;
    assert_eq!(answer.status, 200, "{}", answer.json());
    assert_eq!(answer.json()["outputs"][0]["data"], json!([3.5]));
    let answer = rig.client().model_infer(message(1.0, 2.5)).await.unwrap().into_inner();
    assert_eq!((answer.id.as_str(), first_float(&answer.raw_output_contents[0])), ("i", 3.5));
    let mut wrong = body(1.0, 2.0);
    wrong["inputs"][0]["shape"] = json!([1, 3]);
    let reply = rig.infer(&wrong).await;
    assert!(reply.status == 400 && reply.json()["error"].as_str().unwrap().contains("inputs[`x`].shape"));
    assert_eq!(post(rig.http, "/v2/models/a/versions/9/infer", &body(1.0, 2.0)).await.status, 404);
    assert_eq!(get(rig.http, "/v2/models/a").await.json()["inputs"][0]["name"], "x", "from the heartbeat");
    let load = post(rig.http, "/v2/repository/models/a/load", &json!({})).await;
    assert_eq!(load.status, 501);
    assert!(load.json()["error"].as_str().unwrap().contains("plan"), "{}", load.json());
    // Nobody reads the requests of `b`.
    rig.broker.bus.create("prediction.requests.b", 1);
    assert_eq!(post(rig.http, "/v2/models/b/infer", &body(1.0, 2.0)).await.status, 504);
    let records = rig.broker.bus.records("prediction.requests.b");
    assert!(records[0].headers.get_str("correlation-id").is_some_and(|id| id.starts_with("gw-")));
    until("counted as Kafka's", || rig.told("a", |s| s.arrivals) == 4).await;
    assert_eq!(rig.told("a", |s| s.direct_arrivals), 0);
    rig.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_here_goes_over_kafka() {
    let auto = Config { mode: Mode::Auto, timeout: ConfigDuration::from_millis(400), ..gateway_config() };
    let rig = Rig::new(auto).await;
    assert_eq!(rig.infer(&body(1.5, 2.0)).await.status, 200);
    rig.broker.bus.create("prediction.requests.b", 1);
    eventually("the topics are read", async || {
        post(rig.http, "/v2/models/b/infer", &body(1.0, 2.0)).await.status == 504
    })
    .await;
    assert_eq!(rig.broker.bus.records("prediction.requests.b").len(), 1);
    assert_eq!(rig.broker.bus.records(REQUESTS).len(), 0, "what is here does not");
    until("told", || rig.told("a", |s| s.direct_arrivals) == 1).await;
    rig.end().await;
}

#[tokio::test]
async fn direct_without_an_executor_says_what_to_do() {
    let config = Config { mode: Mode::Direct, ..gateway_config() };
    let bound = Bound::to(&config).await.unwrap();
    let context = Broker::new().context();
    let error = run_on(bound, config, vec![], None, context, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("gateway.mode") && error.contains("--roles executor,gateway"), "{error}");
}
