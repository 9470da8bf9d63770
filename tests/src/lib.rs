//! Harness of the system tests: the binary, brokers (embedded, or real ones named by the environment), and a reader.
//!
//! Environment: `BARISTA_TEST_KAFKA=host:port` and `BARISTA_TEST_MQTT=host:port` name real brokers;
//! `BARISTA_REQUIRE_REAL=1` turns a skip into a failure; `BARISTA_DATA` names the folder with recorded data.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a harness fails by panicking, with what it wanted")]

use runtime::kafka::{KafkaBus, KafkaConfig};
use runtime::{Bus, OutRecord, Record, SourceEvent, SourceSpec, Start};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longest wait of any condition: a broken system fails by it, a slow machine does not.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The folder of the workspace.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a folder of the workspace").to_owned()
}

/// The `barista` binary that the same build made.
pub fn barista() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own file");
    let folder = test.ancestors().nth(2).expect("target/<profile>/deps/<test>");
    let binary = folder.join("barista");
    assert!(binary.is_file(), "{} is missing: run `./dev test`, or `cargo build --release` first", binary.display());
    binary
}

/// True when what is missing must fail a test.
pub fn require_real() -> bool {
    std::env::var("BARISTA_REQUIRE_REAL").is_ok_and(|v| v == "1")
}

/// Says loudly that a test does not run, or fails it where it must.
pub fn skip(what: &str) {
    assert!(!require_real(), "{what}, and BARISTA_REQUIRE_REAL=1 asks for it");
    eprintln!("SKIPPED: {what}");
}

/// A file of the recorded data; `None`, after saying so, where there is none.
pub fn recorded(name: &str) -> Option<PathBuf> {
    let folder = std::env::var("BARISTA_DATA").map_or_else(|_| workspace().join("../shared/data"), PathBuf::from);
    let path = folder.join(name);
    if path.is_file() {
        return Some(path);
    }
    skip(&format!("{} is absent; BARISTA_DATA names the folder with recorded data", path.display()));
    None
}

/// A port that is free now.
pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).expect("loopback has ports").port()
}

/// A name that no other test of this or another run uses.
#[allow(clippy::disallowed_methods, reason = "a name, no decision")]
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    format!("{prefix}{:x}{}", nanos % (1 << 48), NEXT.fetch_add(1, Ordering::SeqCst))
}

/// Kafka and MQTT for a test.
pub struct Brokers {
    /// `host:port` of Kafka.
    pub kafka: String,
    /// `host:port` of MQTT.
    pub mqtt: SocketAddr,
    /// Kept alive; absent for real brokers.
    embedded: Option<(broker::Broker, tempfile::TempDir)>,
}

impl Brokers {
    /// Embedded brokers.
    pub async fn embedded() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let kafka =
            broker::Broker::start(broker::Config::new(folder.path().join("broker"))).await.expect("the broker starts");
        let mqtt = start_rumqttd().await;
        Brokers { kafka: kafka.bootstrap(), mqtt, embedded: Some((kafka, folder)) }
    }

    /// The real brokers of the environment; `None`, after saying so, where there are none.
    pub fn real() -> Option<Self> {
        let kafka = std::env::var("BARISTA_TEST_KAFKA").ok();
        let mqtt = std::env::var("BARISTA_TEST_MQTT").ok();
        let (Some(kafka), Some(mqtt)) = (kafka, mqtt) else {
            skip(
                "no real brokers: BARISTA_TEST_KAFKA and BARISTA_TEST_MQTT name none (tests/brokers/up.sh starts some)",
            );
            return None;
        };
        let mqtt = mqtt.parse().expect("BARISTA_TEST_MQTT is address:port");
        Some(Brokers { kafka, mqtt, embedded: None })
    }

    /// Ends embedded brokers.
    pub async fn shutdown(self) {
        if let Some((broker, _folder)) = self.embedded {
            broker.shutdown().await;
        }
    }

    /// A bus under a topic prefix.
    pub fn bus(&self, prefix: &str) -> KafkaBus {
        let config =
            KafkaConfig { brokers: self.kafka.clone(), topic_prefix: prefix.to_owned(), ..KafkaConfig::default() };
        KafkaBus::connect(&config).expect("a sound configuration")
    }
}

async fn start_rumqttd() -> SocketAddr {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
    let server = rumqttd::ServerSettings {
        name: "test".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: rumqttd::ConnectionSettings {
            connection_timeout_ms: 5_000,
            max_payload_size: 256 * 1024,
            max_inflight_count: 200,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    let config = rumqttd::Config {
        id: 0,
        router: rumqttd::RouterConfig {
            max_connections: 100,
            max_outgoing_packet_count: 200,
            max_segment_size: 16 * 1024 * 1024,
            max_segment_count: 10,
            custom_segment: None,
            initialized_filters: None,
            shared_subscriptions_strategy: Default::default(),
        },
        v4: Some([("test".to_owned(), server)].into()),
        v5: None,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    };
    let mut broker = rumqttd::Broker::new(config);
    std::thread::spawn(move || {
        if let Err(error) = broker.start() {
            panic!("rumqttd: {error}");
        }
    });
    until("rumqttd listens", || std::net::TcpStream::connect(listen).is_ok()).await;
    listen
}

/// Waits for a condition, at most [`PATIENCE`].
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "waited {PATIENCE:?} for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A running `barista`; killed when dropped.
pub struct Process {
    child: Child,
    /// Admin address.
    pub admin: SocketAddr,
    /// File that holds its stderr.
    pub log: PathBuf,
}

impl Process {
    /// Starts `barista ARGS` with these settings (`kafka.brokers` style keys become environment variables).
    pub fn start(args: &[&str], settings: &[(&str, &str)], folder: &Path) -> Self {
        Process::start_in(args, settings, &[], folder)
    }

    /// The same with further environment variables.
    pub fn start_in(args: &[&str], settings: &[(&str, &str)], env: &[(&str, &str)], folder: &Path) -> Self {
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
        let log = folder.join(unique("log"));
        let stderr = std::fs::File::create(&log).expect("a log file");
        let mut command = Command::new(barista());
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        command.env("BARISTA_TELEMETRY__ADDRESS", admin.to_string());
        for (key, value) in settings {
            command.env(format!("BARISTA_{}", key.to_uppercase().replace('.', "__")), value);
        }
        command.envs(env.iter().copied());
        let child = command.spawn().expect("barista starts");
        Process { child, admin, log }
    }

    /// Waits until `/readyz` answers 200.
    pub async fn ready(&mut self) {
        let url = format!("http://{}/readyz", self.admin);
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                panic!("barista ended with {status}:\n{}", self.log_text());
            }
            let answer = tokio::task::spawn_blocking({
                let url = url.clone();
                move || ureq::get(&url).call().is_ok()
            });
            if answer.await.expect("no panic") {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "not ready after {PATIENCE:?}:\n{}", self.log_text());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What it wrote to stderr.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// True once it has ended with exit code 0; fails the test for any other.
    pub fn has_ended(&mut self) -> bool {
        match self.child.try_wait().expect("a child can be asked") {
            None => false,
            Some(status) if status.success() => true,
            Some(status) => panic!("barista ended with {status}:\n{}", self.log_text()),
        }
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGINT and waits; its exit code.
    pub async fn interrupt(mut self) -> Option<i32> {
        let sent = Command::new("kill").args(["-INT", &self.child.id().to_string()]).status();
        assert!(sent.is_ok_and(|s| s.success()), "kill -INT works");
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be asked") {
                return status.code();
            }
            assert!(begin.elapsed() < PATIENCE, "still running after SIGINT:\n{}", self.log_text());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Reads a topic (without prefix) from its beginning until `enough`, at most [`PATIENCE`].
pub async fn read_until(bus: &KafkaBus, topic: &str, mut enough: impl FnMut(&[Record]) -> bool) -> Vec<Record> {
    let name = bus.topics().name(topic);
    let mut records = Vec::new();
    let read = async {
        let mut source = bus.source(SourceSpec::assign(vec![name], Start::Beginning)).await.expect("the topic exists");
        while !enough(&records) {
            if let SourceEvent::Record(record) = source.next().await.expect("the topic can be read") {
                records.push(record);
            }
        }
    };
    let in_time = tokio::time::timeout(PATIENCE, read).await.is_ok();
    let last: Vec<String> = records.iter().rev().take(5).map(|r| format!("{} {:?}", r.key_str(), r.headers)).collect();
    assert!(
        in_time,
        "{topic} had {} records after {PATIENCE:?}, not what was awaited; the last: {last:#?}",
        records.len()
    );
    records
}

/// Everything a topic holds now.
pub async fn read_all(bus: &KafkaBus, topic: &str) -> Vec<Record> {
    let name = bus.topics().name(topic);
    let mut source = bus.source(SourceSpec::assign(vec![name], Start::Beginning)).await.expect("the topic exists");
    let mut records = Vec::new();
    loop {
        match source.next().await.expect("the topic can be read") {
            SourceEvent::Record(record) => records.push(record),
            SourceEvent::CaughtUp => return records,
            _ => {}
        }
    }
}

/// Sends and waits for the delivery.
pub async fn send(bus: &KafkaBus, record: OutRecord) {
    bus.sink().send(record).await.expect("Kafka takes the record");
}

/// True if a command is on the PATH.
pub fn has_command(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(name).is_file())
}
