//! The gateway as a user runs it: clients that nobody here wrote, straight into a node and over Kafka.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::{Brokers, Process, free_port, unique, workspace};

const REQUEST: &str = r#"{"id":"7","inputs":[{"name":"features","shape":[1,16],"datatype":"FP32",
"data":[1,-20,-60,0,-30,12,6.5,11.0,0.1,0.2,90,55,0.5,0.5,0.1,0.9]}]}"#;

/// `delay` and `broken`, whose file is no model.
fn configuration(folder: &Path) -> PathBuf {
    let (model, broken) = (workspace().join("models/delay.onnx"), folder.join("broken.onnx"));
    std::fs::write(&broken, "no model").unwrap();
    let service = |name: &str, model: &Path| {
        format!("[[service]]\nname = {name:?}\nmodel = {model:?}\nversion = \"1\"\nslo_p95_ms = 5000\n")
    };
    let text = format!("[executor]\ncores = 2\n{}{}", service("delay", &model), service("broken", &broken));
    let file = folder.join("barista.toml");
    std::fs::write(&file, text).unwrap();
    file
}

/// A process with a gateway, and the addresses of both protocols.
struct Served {
    process: Process,
    http: String,
    grpc: String,
}

async fn serve(args: &[&str], brokers: &Brokers, prefix: &str, folder: &Path) -> Served {
    let config = configuration(folder);
    let (http, grpc) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
    let settings = [
        ("kafka.brokers", brokers.kafka.as_str()),
        ("kafka.topic_prefix", prefix),
        ("mqtt.broker", &format!("mqtt://{}", brokers.mqtt)),
        ("executor.node", "test-node"),
        ("gateway.http", &http),
        ("gateway.grpc", &grpc),
    ];
    let args = [args, &["-c", config.to_str().unwrap()]].concat();
    let mut process = Process::start(&args, &settings, folder);
    process.ready().await;
    Served { process, http, grpc }
}

async fn post(address: &str, path: &str, body: &'static str) -> (u16, serde_json::Value) {
    let url = format!("http://{address}{path}");
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let answer = tokio::task::spawn_blocking(move || {
        let mut answer = agent.post(&url).send(body).expect("an answer");
        let text = answer.body_mut().read_to_string().expect("text");
        (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
    });
    answer.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tritons_and_kserves_clients_work_unchanged() {
    let Ok(python) = std::env::var("BARISTA_TEST_CLIENTS") else {
        // Half a gigabyte of wheels: CI does not install them, docs/gateway.md says how to run this.
        eprintln!("SKIPPED: BARISTA_TEST_CLIENTS names no Python that has tests/clients/requirements.txt");
        return;
    };
    let (brokers, folder) = (Brokers::embedded().await, tempfile::tempdir().unwrap());
    let prefix = unique("gateway-") + ".";
    let served = serve(&["up", "--roles", "executor,gateway"], &brokers, &prefix, folder.path()).await;
    let script = workspace().join("tests/clients/oip.py");
    let vectors = workspace().join("models/test-vectors.json");
    let (http, grpc) = (served.http.clone(), served.grpc.clone());
    let ran = tokio::task::spawn_blocking(move || {
        Command::new(python).arg(script).args([http, grpc]).arg(vectors).stdin(Stdio::null()).output().unwrap()
    });
    let ran = ran.await.unwrap();
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(ran.status.success(), "{}\n{}", said(&ran.stderr), served.process.log_text());
    assert!(said(&ran.stdout).ends_with("ok\n"), "{}", said(&ran.stdout));
    assert_eq!(served.process.interrupt().await, Some(0), "it ends in order");
    brokers.shutdown().await;
}

async fn over_kafka(brokers: Brokers) {
    let folder = tempfile::tempdir().unwrap();
    let prefix = unique("gateway-") + ".";
    let node = serve(&["executor", "--gateway"], &brokers, &prefix, folder.path()).await;
    let (status, said) = post(&node.http, "/v2/repository/models/delay/load", "{}").await;
    assert_eq!(status, 200, "{said}");
    let (status, direct) = post(&node.http, "/v2/models/delay/infer", REQUEST).await;
    assert_eq!(status, 200, "{direct}");

    let alone = serve(&["gateway"], &brokers, &prefix, folder.path()).await;
    let (status, over) = post(&alone.http, "/v2/models/delay/infer", REQUEST).await;
    assert_eq!(status, 200, "{over}");
    assert_eq!((&over["id"], &over["outputs"]), (&direct["id"], &direct["outputs"]));
    assert_eq!(over["parameters"]["node"], "test-node");
    let (status, wrong) = post(&alone.http, "/v2/models/delay/infer", r#"{"inputs":[]}"#).await;
    assert_eq!(status, 400, "{wrong}");
    assert!(wrong["error"].as_str().is_some_and(|text| text.contains("inputs[`features`]")), "{wrong}");
    let (status, refused) = post(&alone.http, "/v2/repository/models/delay/load", "{}").await;
    assert_eq!(status, 501, "{refused}");
    assert_eq!(alone.process.interrupt().await, Some(0));
    assert_eq!(node.process.interrupt().await, Some(0));
    brokers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_alone_asks_over_kafka() {
    over_kafka(Brokers::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_alone_asks_over_real_kafka() {
    if let Some(brokers) = Brokers::real() {
        over_kafka(brokers).await;
    }
}
