//! The service over a real socket, on the in-memory bus.
#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use runtime::memory::MemoryBus;
use runtime::{Bus, Context, Readiness, SystemClock, metrics};
use schemas::workload::WorkloadObserved;
use schemas::{Topics, topics};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::sync::Arc;
use tokio::task::JoinHandle;

/// A dashboard that runs, and what a test does with it.
struct Running {
    bus: MemoryBus,
    context: Context,
    handle: Handle,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), Error>>,
}

/// Nothing here takes a second; a minute without an end is a failure and no hang.
async fn bounded<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("not reached within a minute")
}

fn config(address: &str) -> Config {
    Config { address: address.parse().unwrap(), open: false }
}

fn context() -> (MemoryBus, Context) {
    let clock: runtime::SharedClock = Arc::new(SystemClock);
    let bus = MemoryBus::new(clock.clone());
    let registry = metrics::new_registry();
    let context = Context { bus: Arc::new(bus.clone()), clock, registry, readiness: Readiness::default() };
    (bus, context)
}

impl Running {
    async fn start() -> Self {
        let (bus, context) = context();
        bus.create_topics(&Topics::all(["vision"])).await.unwrap();
        let (handle, shutdown) = (Handle::new(), CancellationToken::new());
        let task = tokio::spawn(run(config("127.0.0.1:0"), context.clone(), handle.clone(), shutdown.clone()));
        let address = handle.address().await;
        // Telemetry is counted from the moment that its topics are open.
        bounded(async {
            while !(context.readiness.checks().len() == 2 && context.readiness.is_ready()) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        Running { bus, context, handle, address, shutdown, task }
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        let url = format!("http://{}{path}", self.address);
        let request = move || {
            let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
            let mut response = agent.get(&url).call().unwrap();
            let kind = response.headers().get("content-type").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
            (response.status().as_u16(), kind, response.body_mut().read_to_string().unwrap())
        };
        tokio::task::spawn_blocking(request).await.unwrap()
    }

    /// Waits until the figures satisfy `condition`.
    async fn wait_for(&self, condition: impl Fn(&Snapshot) -> bool) {
        bounded(async {
            while !condition(&self.handle.snapshot(self.context.clock.now_ms())) {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }

    async fn stop(self) -> Result<(), Error> {
        self.shutdown.cancel();
        bounded(self.task).await.unwrap()
    }
}

async fn publish_load(bus: &MemoryBus, start_ms: i64, arrivals: u64) {
    let load = WorkloadObserved {
        schema: Default::default(),
        service: "vision".to_owned(),
        start_ms,
        interval_ms: 5000,
        arrivals,
        direct_arrivals: 0,
        simulated: false,
    };
    let record = runtime::OutRecord::message(topics::WORKLOAD_OBSERVED, &load).unwrap();
    bus.sink().send(record).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_its_files_and_its_figures_are_served() {
    let running = Running::start().await;
    running.handle.set_banner(Some("warm-up history is simulated".to_owned()));
    publish_load(&running.bus, running.context.clock.now_ms() - 5000, 60).await;
    for _ in 0..7 {
        let record = runtime::OutRecord::new(topics::TELEMETRY_VEHICLE).value("not even JSON");
        running.bus.sink().send(record).await.unwrap();
    }
    running.wait_for(|s| s.telemetry.total == 7 && s.requests.rps.is_some()).await;

    let (status, kind, json) = running.get("/api/state").await;
    assert_eq!((status, kind.as_str()), (200, "application/json"));
    let state: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(state["services"][0]["rps"], 12.0);
    assert_eq!(state["telemetry"]["total"], 7);
    assert_eq!(state["banner"], "warm-up history is simulated");
    assert!(state["health"].as_array().is_some_and(|checks| checks.iter().any(|c| c["name"] == "dashboard")), "{json}");

    let (status, kind, html) = running.get("/").await;
    assert_eq!((status, kind.as_str()), (200, "text/html; charset=utf-8"));
    for file in ["/style.css", "/app.js", "/favicon.svg"] {
        assert!(html.contains(&format!("\"{file}\"")), "{file}");
        assert_eq!(running.get(file).await.0, 200, "{file}");
    }
    assert_eq!(running.get("/metrics").await.0, 200);
    assert!(running.get("/metrics").await.2.contains("barista_dashboard_records_total{outcome=\"taken\"} 8"));
    assert_eq!(running.get("/healthz").await.2, "ok\n");
    assert_eq!(running.get("/readyz").await.0, 200);
    assert_eq!(running.get("/etc/passwd").await.0, 404);
    running.stop().await.unwrap();
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let files = [
        include_str!("static/index.html"),
        include_str!("static/style.css"),
        include_str!("static/app.js"),
        include_str!("static/chart.js"),
        include_str!("static/format.js"),
    ];
    for file in files {
        // A clip path of the same document is no address.
        let file = file.replace("url(#", "");
        for outside in ["http:", "https:", "//cdn", "@import", "url("] {
            assert!(!file.contains(outside), "{outside} in a static file");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_brings_a_snapshot_at_once_and_then_news() {
    let running = Running::start().await;
    let address = running.address;
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<serde_json::Value>(16);
    // A thread of its own, not a blocking task: it ends when the server closes the stream.
    let client = std::thread::spawn(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        socket.write_all(b"GET /api/stream HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        for line in BufReader::new(socket).lines() {
            let Ok(line) = line else { return };
            if let Some(json) = line.strip_prefix("data: ") {
                sender.blocking_send(serde_json::from_str(json).unwrap()).unwrap();
            }
        }
    });
    assert_eq!(bounded(receiver.recv()).await.unwrap()["services"], serde_json::json!([]));
    publish_load(&running.bus, running.context.clock.now_ms() - 5000, 60).await;
    loop {
        let snapshot = bounded(receiver.recv()).await.unwrap();
        if snapshot["services"][0]["rps"] == 12.0 {
            break;
        }
    }
    assert!(running.get("/metrics").await.2.contains("barista_dashboard_streams 1"));
    receiver.close();
    running.stop().await.unwrap();
    // The thread may have failed to hand over a snapshot after `close`; it must have ended either way.
    let _ = client.join();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_does_not_hold_up_the_end() {
    let running = Running::start().await;
    let idle = TcpStream::connect(running.address).unwrap();
    running.get("/healthz").await;
    running.stop().await.unwrap();
    drop(idle);
}

#[tokio::test]
async fn a_taken_port_is_named_before_anything_runs() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let (_, context) = context();
    let readiness = context.readiness.clone();
    let error = run(config(&address), context, Handle::new(), CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("dashboard.address") && error.contains(&address), "{error}");
    assert!(readiness.checks().is_empty(), "no topic was opened");
}

#[test]
fn the_configuration_is_read_strictly() {
    assert_eq!(Config::default().address.to_string(), "127.0.0.1:8080");
    let read = |json: &str| serde_json::from_str::<Config>(json);
    assert_eq!(read(r#"{"address":"[::1]:0"}"#).unwrap(), config("[::1]:0"));
    assert!(read(r#"{"adress":"127.0.0.1:1"}"#).is_err());
    assert!(Config::default().problems().is_empty());
}
