//! Predictions over Kafka: clients that nobody here wrote, and input that nobody wants.

use runtime::kafka::KafkaBus;
use runtime::{Bus, OutRecord, Record};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tests::{Brokers, Process, has_command, read_until, send, skip, unique, workspace};

const GOOD: &str = r#"{"id":"ID","inputs":[{"name":"features","shape":[1,16],"datatype":"FP32",
"data":[1,-20,-60,0,-30,12,6.5,11.0,0.1,0.2,90,55,0.5,0.5,0.1,0.9]}]}"#;

/// `delay` served by one node, planned by the planner, on given brokers.
pub(crate) struct Stack {
    pub(crate) bus: KafkaBus,
    pub(crate) prefix: String,
    pub(crate) config: PathBuf,
    settings: Vec<(&'static str, String)>,
    process: Process,
    folder: tempfile::TempDir,
}

impl Stack {
    /// Kills the process as `kill -9` does and starts it again.
    pub(crate) fn restart(&mut self) {
        self.process.kill();
        self.process = start(&self.config, &self.settings, self.folder.path());
    }
}

fn start(config: &Path, settings: &[(&str, String)], folder: &Path) -> Process {
    let args = ["up", "-c", config.to_str().unwrap(), "--roles", "planner,executor"];
    let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (*key, value.as_str())).collect();
    Process::start(&args, &settings, folder)
}

pub(crate) async fn serve(brokers: &Brokers) -> Stack {
    let folder = tempfile::tempdir().unwrap();
    let prefix = unique("predict-") + ".";
    let config = configuration(folder.path());
    let settings = vec![
        ("kafka.brokers", brokers.kafka.clone()),
        ("kafka.topic_prefix", prefix.clone()),
        ("kafka.session_timeout", "6s".to_owned()),
        ("mqtt.broker", format!("mqtt://{}", brokers.mqtt)),
        ("executor.node", "test-node".to_owned()),
    ];
    let mut process = start(&config, &settings, folder.path());
    process.ready().await;
    let bus = brokers.bus(&prefix);
    // One good request through, so that the instance is known to serve.
    let mut warm = 0;
    loop {
        warm += 1;
        send(&bus, request(&bus, &format!("warm-{warm}"))).await;
        let results = tests::read_all(&bus, "prediction.results.delay").await;
        if !results.is_empty() {
            break;
        }
        if warm >= 400 {
            let rejected = tests::read_all(&bus, "prediction.rejected").await;
            let last = rejected.last().map(|r| format!("{:?}", r.headers));
            panic!("no prediction; {} rejected, the last {last:?}:\n{}", rejected.len(), process.log_text());
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    Stack { bus, prefix, config, settings, process, folder }
}

fn configuration(folder: &Path) -> PathBuf {
    let model = workspace().join("models/delay.onnx");
    let profile = folder.join("delay.profile.json");
    let measured = Command::new(tests::barista())
        .args(["profile", model.to_str().unwrap(), "--cores", "1", "--batch", "1,4"])
        .args(["--out", profile.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(measured.status.success(), "{}", String::from_utf8_lossy(&measured.stderr));
    let text = format!(
        "[planner]\nperiod = \"1s\"\n[executor]\nflavor = \"here\"\ncores = 2\n\
         [[flavor]]\nname = \"here\"\ncores = 2\nusd_per_hour = 0.1\n\
         [[service]]\nname = \"delay\"\nmodel = {model:?}\nslo_p95_ms = 5000\nprofile = {profile:?}\n"
    );
    let file = folder.join("barista.toml");
    std::fs::write(&file, text).unwrap();
    file
}

pub(crate) fn request(bus: &KafkaBus, id: &str) -> OutRecord {
    OutRecord::new(bus.topics().requests("delay")).key("k").value(GOOD.replace("ID", id))
}

fn header<'a>(record: &'a Record, name: &str) -> &'a str {
    record.headers.get_str(name).unwrap_or_default()
}

async fn bad_input(brokers: Brokers) {
    let stack = serve(&brokers).await;
    let bus = &stack.bus;
    let topic = bus.topics().requests("delay");
    let cases = [
        ("not json".to_owned(), vec![], "invalid-json", "request"),
        (r#"{"id":"x"}"#.to_owned(), vec![], "missing-field", "inputs"),
        (GOOD.replace("[1,16]", "[1,15]"), vec![], "bad-shape", "features"),
        (GOOD.replace("FP32", "INT64"), vec![], "bad-datatype", "features"),
        (GOOD.to_owned(), vec![("model-version", "99")], "unknown-model-version", "99"),
        (GOOD.to_owned(), vec![("deadline-ms", "soon")], "bad-field", "deadline-ms"),
        (GOOD.to_owned(), vec![("deadline-ms", "0")], "deadline-past", "deadline"),
    ];
    for (i, (value, headers, ..)) in cases.iter().enumerate() {
        let mut record = OutRecord::new(topic.clone()).key(format!("case-{i}")).value(value.clone());
        for (name, value) in headers {
            record = record.header(*name, (*value).to_owned());
        }
        send(bus, record).await;
    }
    let of = |records: &[Record], key: &str| records.iter().filter(|r| r.key_str() == key).cloned().collect::<Vec<_>>();
    let rejected = read_until(bus, "prediction.rejected", |records| {
        (0..cases.len()).all(|i| !of(records, &format!("case-{i}")).is_empty())
    })
    .await;
    for (i, (value, _, reason, names)) in cases.iter().enumerate() {
        let records = of(&rejected, &format!("case-{i}"));
        assert_eq!(records.len(), 1, "case {i}");
        let record = &records[0];
        assert_eq!(header(record, "reason"), *reason, "case {i}: {}", header(record, "detail"));
        assert!(header(record, "detail").contains(names), "case {i}: {}", header(record, "detail"));
        assert_eq!(header(record, "source-topic"), topic);
        assert_eq!(record.value.as_deref(), Some(value.as_bytes()), "the original bytes");
    }
    // Nothing stalls behind them.
    send(bus, request(bus, "after").header("correlation-id", "c-7")).await;
    let results = read_until(bus, "prediction.results.delay", |records| records.iter().any(|r| id(r) == "after")).await;
    let result = results.iter().find(|r| id(r) == "after").unwrap();
    assert_eq!(header(result, "correlation-id"), "c-7");
    drop(stack);
    brokers.shutdown().await;
}

fn id(record: &Record) -> String {
    let value: serde_json::Value =
        serde_json::from_slice(record.value.as_deref().unwrap_or_default()).unwrap_or_default();
    value["id"].as_str().unwrap_or_default().to_owned()
}

/// kcat produces a request, reads its result, and reads the control topic.
async fn kcat(brokers: Brokers) {
    if !has_command("kcat") {
        return skip("kcat is not installed");
    }
    let stack = serve(&brokers).await;
    let topic = stack.bus.topics().requests("delay");
    let mut producer = Command::new("kcat")
        .args(["-P", "-b", &brokers.kafka, "-t", &topic, "-k", "from-kcat", "-H", "correlation-id=kc-1"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let one_line = GOOD.replace("ID", "kcat-1").replace('\n', "");
    producer.stdin.take().unwrap().write_all(one_line.as_bytes()).unwrap();
    assert!(producer.wait().unwrap().success());
    read_until(&stack.bus, "prediction.results.delay", |records| records.iter().any(|r| id(r) == "kcat-1")).await;
    let consume = |topic: &str| {
        let output = Command::new("kcat")
            .args(["-C", "-e", "-q", "-b", &brokers.kafka, "-t", topic, "-o", "beginning", "-f", "%k %h %s\n"])
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let results = consume(&stack.bus.topics().results("delay"));
    let line = results.lines().find(|l| l.contains("\"kcat-1\"")).unwrap_or_else(|| panic!("{results}"));
    assert!(
        line.starts_with("from-kcat") && line.contains("correlation-id=kc-1") && line.contains("delay_s"),
        "{line}"
    );
    let control = consume(&format!("{}allocation.control", stack.prefix));
    assert!(control.contains("fleet") && control.contains("node/test-node"), "{control}");
    drop(stack);
    brokers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_on_the_embedded_broker() {
    bad_input(Brokers::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_on_apache_kafka() {
    if let Some(brokers) = Brokers::real() {
        bad_input(brokers).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kcat_on_the_embedded_broker() {
    kcat(Brokers::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kcat_on_apache_kafka() {
    if let Some(brokers) = Brokers::real() {
        kcat(brokers).await;
    }
}

/// `mosquitto_pub` publishes a good message and garbage; one becomes an event, the other is rejected with its reason.
#[tokio::test(flavor = "multi_thread")]
async fn mosquitto_pub_reaches_both_topics() {
    if !has_command("mosquitto_pub") {
        return skip("mosquitto_pub is not installed");
    }
    let brokers = match Brokers::real() {
        Some(brokers) => brokers,
        None => Brokers::embedded().await,
    };
    let folder = tempfile::tempdir().unwrap();
    let prefix = unique("mosquitto-") + ".";
    let client = unique("ingest-");
    let mqtt = format!("mqtt://{}", brokers.mqtt);
    let settings = [
        ("kafka.brokers", brokers.kafka.as_str()),
        ("kafka.topic_prefix", prefix.as_str()),
        ("mqtt.broker", mqtt.as_str()),
        ("mqtt.client_id", client.as_str()),
    ];
    let mut ingest = Process::start(&["ingest"], &settings, folder.path());
    ingest.ready().await;
    let vehicle = format!("{:05}", std::process::id() % 100_000);
    let topic =
        format!("/hfp/v2/journey/ongoing/vp/bus/0018/{vehicle}/2550/1/Itäkeskus(M)/07:14/1434125/5/60;24/19/73/48");
    let good = r#"{"VP":{"desi":"550","dir":"1","oper":18,"veh":1,"tst":"2026-11-24T05:20:11.123Z","tsi":1795497611,"spd":7.1,"hdg":90,"lat":60.2,"long":24.9,"acc":0.1,"dl":-41,"odo":3000,"drst":0,"oday":"2026-11-24","jrn":1,"line":2,"start":"07:14","loc":"GPS","stop":null,"route":"2550","occu":0}}"#;
    for payload in [good, "}garbage{"] {
        let status = Command::new("mosquitto_pub")
            .args(["-h", &brokers.mqtt.ip().to_string(), "-p", &brokers.mqtt.port().to_string()])
            .args(["-q", "1", "-t", &topic, "-m", payload])
            .status()
            .unwrap();
        assert!(status.success());
    }
    let bus = brokers.bus(&prefix);
    let ours = format!("0018/{vehicle}");
    read_until(&bus, "telemetry.vehicle", |records| records.iter().any(|r| r.key_str() == ours)).await;
    let rejected = read_until(&bus, "telemetry.rejected", |records| {
        records.iter().any(|r| r.headers.get_str("mqtt-topic") == Some(&topic))
    })
    .await;
    let record = rejected.iter().find(|r| r.headers.get_str("mqtt-topic") == Some(&topic)).unwrap();
    assert_eq!(header(record, "reason"), "invalid-json", "{}", header(record, "detail"));
    assert_eq!(record.value.as_deref(), Some(b"}garbage{".as_slice()));
    assert_eq!(ingest.interrupt().await, Some(0));
    drop(bus);
    brokers.shutdown().await;
}
