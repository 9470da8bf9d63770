//! The dashboard in a real browser: headless Chromium draws the page from records on the in-memory bus, and the
//! drawn page is read. `BARISTA_SCREENSHOTS=<dir>` also writes pictures of it, to be looked at.
#![allow(clippy::unwrap_used, reason = "tests")]

use barista::dashboard::{self, Config, CostFigures, Handle};
use runtime::memory::MemoryBus;
use runtime::{Bus, Context, ManualClock, OutRecord, Readiness, metrics};
use schemas::Topics;
use schemas::topics;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Now, for the page: 2026-11-24 10:30:00 UTC.
const NOW_MS: i64 = 1_795_516_200_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_browser_draws_what_the_topics_say() {
    let Some(chromium) = chromium() else { return };
    let page = Page::serve().await;
    page.handle.set_banner(Some("Warm-up history is simulated; the city runs at 60 × speed.".to_owned()));
    page.handle.set_cost(Some(CostFigures {
        usd: 0.0423,
        usd_static_peak: 0.0756,
        usd_reactive: Some(0.0511),
        note: "reactive is simulated on the recorded arrivals".to_owned(),
    }));
    fixture::publish(&page.bus, NOW_MS).await;
    let telemetry = (0..fixture::TELEMETRY_S).map(fixture::telemetry_at).sum::<u64>();
    let last: u64 = (fixture::TELEMETRY_S - 10..fixture::TELEMETRY_S).map(fixture::telemetry_at).sum();
    let rate = format!("{:.1} msg/s", last as f64 / 10.0);
    page.wait_for(|s| s.plans.len() == fixture::PLAN_ENTRIES && s.nodes.len() == 5 && s.telemetry.total == telemetry)
        .await;
    page.wait_for(|s| s.services.len() == 3 && s.services.iter().all(|x| x.load.forecast.is_some())).await;

    let dom = page.dom(&chromium).await;
    let text = plain(&dom);
    assert!(dom.contains("data-drawn=\"once\""), "the page was not drawn to its end:\n{dom}");
    for expected in [
        // key figures, with units
        &rate,
        "2.00 rejected/s",
        "3 ready",
        "1 silent",
        "$0.0423",
        "44 % less than static peak",
        "simulated on the recorded arrivals",
        // a service, its plan and its latency
        "vision",
        "of 2 planned",
        "objective 200 ms",
        // reasons, word for word, and what caused them
        "The 95 % forecast 24 s ahead needs a second node; 1 node carries 61 req/s.",
        "observed 58.0, planned for 79.0 req/s",
        "p95 of 171 ms is within 15 % of the objective",
        // fleet
        "local-3",
        "lease ends in",
        // the banner
        "Warm-up history is simulated; the city runs at 60 × speed.",
    ] {
        assert!(text.contains(expected), "`{expected}` is not on the page:\n{text}");
    }
    assert!(text.contains("<script>alert(1)</script>"), "a name from a message is shown as text");
    assert!(!dom.contains("<script>alert(1)"), "and never as markup");
    for chart in ["line observed", "line forecast", "band band-95", "line capacity", "line p95", "line slo"] {
        assert!(dom.contains(&format!("<path class=\"{chart}\" d=\"M")), "no `{chart}` is drawn");
    }
    assert!(dom.contains("aria-label=\"vision: load"), "charts have a description");
    // The same over the stream, which the page uses when people look at it.
    let streamed = page.dom_at(&chromium, &format!("{}=stream", page.url)).await;
    assert!(streamed.contains("data-drawn=\"once\"") && plain(&streamed).contains(&rate), "{}", plain(&streamed));
    page.screenshots(&chromium, "full").await;
    page.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_page_says_what_is_missing() {
    let Some(chromium) = chromium() else { return };
    let page = Page::serve().await;
    let dom = page.dom(&chromium).await;
    let text = plain(&dom);
    for expected in ["No plan yet", "No services yet", "No nodes yet", "No scaling events yet", "nothing yet"] {
        assert!(text.contains(expected), "`{expected}` is not on the page:\n{text}");
    }
    assert!(!text.contains("NaN") && !text.contains("undefined") && !text.contains("null"), "{text}");
    page.screenshots(&chromium, "empty").await;
    page.stop().await;
}

/// The browser, or a loud skip; with `BARISTA_REQUIRE_REAL=1` its absence is a failure.
fn chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .flat_map(|dir| ["chromium", "chromium-browser", "google-chrome"].map(|name| dir.join(name)))
        .find(|file| file.is_file());
    if found.is_none() {
        let required = std::env::var("BARISTA_REQUIRE_REAL").is_ok_and(|v| v == "1");
        assert!(!required, "BARISTA_REQUIRE_REAL=1 and no chromium on PATH");
        eprintln!("SKIPPED: no chromium on PATH; the dashboard was not looked at by a browser");
    }
    found
}

struct Page {
    bus: MemoryBus,
    handle: Handle,
    url: String,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), dashboard::Error>>,
}

impl Page {
    async fn serve() -> Self {
        let clock = Arc::new(ManualClock::new(NOW_MS - fixture::UPTIME_MS));
        let bus = MemoryBus::new(clock.clone());
        bus.create_topics(&Topics::all(fixture::SERVICES)).await.unwrap();
        let readiness = Readiness::default();
        for role in ["aggregate", "forecaster", "ingest", "kafka", "mqtt", "planner"] {
            readiness.set(role, true, "working");
        }
        let registry = metrics::new_registry();
        let context =
            Context { bus: Arc::new(bus.clone()), clock: clock.clone(), registry, readiness: readiness.clone() };
        let (handle, shutdown) = (Handle::new(), CancellationToken::new());
        let config = Config { address: "127.0.0.1:0".parse().unwrap(), open: false };
        let task = tokio::spawn(dashboard::run(config, context, handle.clone(), shutdown.clone()));
        let url = format!("http://{}/?once", handle.address().await);
        // Telemetry is counted from the moment that its topics are open.
        while !(readiness.is_ready() && readiness.checks().contains_key("dashboard telemetry")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        clock.set(NOW_MS);
        Page { bus, handle, url, shutdown, task }
    }

    async fn wait_for(&self, condition: impl Fn(&dashboard::Snapshot) -> bool) {
        let reached = async {
            while !condition(&self.handle.snapshot(NOW_MS)) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(60), reached).await.is_err() {
            let s = self.handle.snapshot(NOW_MS);
            let services: Vec<&str> = s.services.iter().map(|x| x.service.as_str()).collect();
            panic!(
                "not reached: {} plans, {} nodes, services {services:?}, feeds {:?}",
                s.plans.len(),
                s.nodes.len(),
                s.feeds
            );
        }
    }

    async fn dom(&self, chromium: &Path) -> String {
        self.dom_at(chromium, &self.url).await
    }

    async fn dom_at(&self, chromium: &Path, url: &str) -> String {
        let output = browse(chromium, &["--dump-dom".to_owned()], url).await;
        String::from_utf8(output).unwrap()
    }

    /// Pictures at two widths, light and dark, when `BARISTA_SCREENSHOTS` names a folder.
    async fn screenshots(&self, chromium: &Path, name: &str) {
        let Some(dir) = std::env::var_os("BARISTA_SCREENSHOTS").map(PathBuf::from) else { return };
        std::fs::create_dir_all(&dir).unwrap();
        for (width, dark) in [(1440, false), (1440, true), (1280, false), (1600, false), (760, false)] {
            let file = dir.join(format!("{name}-{width}{}.png", if dark { "-dark" } else { "" }));
            let mut options = vec![
                format!("--screenshot={}", file.display()),
                format!("--window-size={width},{}", if name == "empty" { 1100 } else { 2500 }),
                "--hide-scrollbars".to_owned(),
            ];
            if dark {
                options.push("--blink-settings=preferredColorScheme=0".to_owned());
            }
            browse(chromium, &options, &self.url).await;
            assert!(file.is_file(), "no picture at {}", file.display());
        }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap().unwrap();
    }
}

/// Runs the browser on `url` with a profile of its own and returns what it prints.
async fn browse(chromium: &Path, options: &[String], url: &str) -> Vec<u8> {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new(chromium);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .args(["--disable-dev-shm-usage", "--virtual-time-budget=4000", "--lang=en-GB"])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(options)
        .arg(url)
        .env("TZ", "UTC");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "chromium: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The text of a page: tags out, entities back, spaces single.
fn plain(dom: &str) -> String {
    let mut text = String::new();
    let mut rest = dom;
    while let Some((before, after)) = rest.split_once('<') {
        text.push_str(before);
        // Inline tags stand inside a sentence; any other tag separates words.
        if !["b>", "/b>", "em>", "/em>"].iter().any(|tag| after.starts_with(tag)) {
            text.push(' ');
        }
        rest = after.split_once('>').map_or("", |(_, behind)| behind);
    }
    text.push_str(rest);
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A run of a city as the topics would tell it: ten minutes, three services, five nodes in different states.
mod fixture {
    use super::*;
    use bytes::Bytes;
    use schemas::Message;
    use schemas::allocation::*;
    use schemas::status::*;
    use schemas::workload::*;

    pub(super) const SERVICES: [&str; 3] = ["delay", "occupancy", "vision"];
    pub(super) const UPTIME_MS: i64 = 420_000;
    pub(super) const PLAN_ENTRIES: usize = 8;
    pub(super) const TELEMETRY_S: i64 = 290;
    const INTERVAL_MS: i64 = 5_000;
    const LEAD_MS: u64 = 24_000;
    /// A name as an attacker would choose it.
    const HOSTILE: &str = "<script>alert(1)</script>";

    pub(super) async fn publish(bus: &MemoryBus, now_ms: i64) {
        telemetry(bus, now_ms).await;
        for service in SERVICES {
            load(bus, service, now_ms).await;
        }
        plans(bus, now_ms).await;
        heartbeats(bus, now_ms).await;
    }

    async fn send<M: Message>(bus: &MemoryBus, topic: &str, at_ms: i64, message: &M) {
        let mut record = OutRecord::message(topic, message).unwrap();
        record.timestamp_ms = Some(at_ms);
        bus.sink().send(record).await.unwrap();
    }

    /// Messages in a second: between 40 and 80.
    pub(super) fn telemetry_at(second: i64) -> u64 {
        (60.0 + 14.0 * (second as f64 / 40.0).sin() + noise(second * 1000, 12.0)) as u64
    }

    async fn telemetry(bus: &MemoryBus, now_ms: i64) {
        let value = Bytes::from_static(b"{}");
        for second in 0..TELEMETRY_S {
            let at_ms = now_ms - (TELEMETRY_S - second) * 1000;
            for (topic, n) in [(topics::TELEMETRY_VEHICLE, telemetry_at(second)), (topics::TELEMETRY_REJECTED, 2)] {
                for _ in 0..n {
                    let mut record = OutRecord::new(topic).key("hsl/1").value(value.clone());
                    record.timestamp_ms = Some(at_ms);
                    bus.sink().send(record).await.unwrap();
                }
            }
        }
    }

    /// Requests per second at a time before (negative) or after now: a rhythm, a rise in the last three minutes, and
    /// noise that repeats.
    fn rate(service: &str, offset_ms: i64) -> f64 {
        let s = offset_ms as f64 / 1000.0;
        let (base, swing) = match service {
            "delay" => (120.0, 25.0),
            "occupancy" => (22.0, 6.0),
            _ => (46.0, 9.0),
        };
        let rise = if service == "vision" { 22.0 / (1.0 + (-(s + 110.0) / 18.0).exp()) } else { 0.0 };
        base + swing * (s / 95.0).sin() + rise
    }

    fn noise(offset_ms: i64, scale: f64) -> f64 {
        let x = (offset_ms as f64 / 1000.0 * 12.9898).sin() * 43_758.545;
        (x - x.floor() - 0.5) * scale
    }

    async fn load(bus: &MemoryBus, service: &str, now_ms: i64) {
        let newest = -INTERVAL_MS;
        let mut offset = -900_000;
        while offset <= newest {
            let rps = (rate(service, offset) + noise(offset, rate(service, offset) * 0.16)).max(0.0);
            let observed = WorkloadObserved {
                schema: Default::default(),
                service: service.to_owned(),
                start_ms: now_ms + offset,
                interval_ms: INTERVAL_MS as u64,
                arrivals: (rps * 5.0).round() as u64,
                direct_arrivals: 0,
                simulated: offset < -UPTIME_MS,
            };
            send(bus, topics::WORKLOAD_OBSERVED, now_ms + offset, &observed).await;
            if offset >= -UPTIME_MS {
                let forecast = forecast(service, offset + INTERVAL_MS, now_ms);
                send(bus, topics::WORKLOAD_FORECAST, now_ms + offset + INTERVAL_MS, &forecast).await;
            }
            offset += INTERVAL_MS;
        }
    }

    fn forecast(service: &str, origin: i64, now_ms: i64) -> WorkloadForecast {
        let step = |i: i64| {
            let at = origin + i * INTERVAL_MS;
            let mean = rate(service, at) * (1.0 + noise(origin, 0.05));
            let spread = mean * (0.075 + 0.006 * i as f64);
            let quantiles_rps = [0.0, 1.28, 1.64, 2.33].map(|z| mean + z * spread).to_vec();
            ForecastStep { start_ms: now_ms + at, mean_rps: mean, quantiles_rps }
        };
        WorkloadForecast {
            schema: Default::default(),
            service: service.to_owned(),
            origin_ms: now_ms + origin,
            interval_ms: INTERVAL_MS as u64,
            levels: vec![0.5, 0.9, 0.95, 0.99],
            steps: (0..24).map(step).collect(),
            last_observed_rps: rate(service, origin),
            weights: [("seasonal_naive", 0.21), ("last_value", 0.13), ("ridge", 0.66)]
                .map(|(name, weight)| (name.to_owned(), weight))
                .into(),
            error: ForecastError { mae_rps: Some(2.4), mase: Some(0.81), coverage: vec![0.51, 0.9, 0.95, 0.99] },
            samples: 17_280,
            cold_start: false,
            ..WorkloadForecast::default()
        }
    }

    fn sample(service: &str, start_ms: i64, observed_rps: f64, forecast_rps: f64) -> LoadSample {
        LoadSample { service: service.to_owned(), start_ms, observed_rps, forecast_rps }
    }

    fn allocation(service: &str, workers: u32) -> InstanceAllocation {
        InstanceAllocation {
            service: service.to_owned(),
            model: format!("{service}.onnx"),
            version: "1".to_owned(),
            backend: "tract".to_owned(),
            workers,
            max_batch: 8,
            slo_ms: 200.0,
            service_p95_ms: 30.0,
        }
    }

    fn node(name: &str, action: NodeAction, lease_end_ms: i64, instances: Vec<InstanceAllocation>) -> NodePlan {
        NodePlan {
            node: name.to_owned(),
            flavor: "local.medium".to_owned(),
            action,
            lease_start_ms: lease_end_ms - 300_000,
            lease_end_ms,
            usd_per_hour: 0.0765,
            instances,
            reason: "carries its share of the demand".to_owned(),
        }
    }

    fn service_plan(service: &str, at_ms: i64, instances: u32) -> ServicePlan {
        let (demand_rps, capacity_rps) = match (service, instances) {
            ("vision", 1) => (57.0, 61.0),
            ("vision", n) => (79.0, 61.0 * f64::from(n)),
            ("delay", _) => (152.0, 240.0),
            _ => (31.0, 58.0),
        };
        let reason = match (service, instances) {
            ("vision", 1) => "One node carries 61 req/s, enough for the 95 % forecast 24 s ahead.".to_owned(),
            ("vision", _) => "The 95 % forecast 24 s ahead needs a second node; 1 node carries 61 req/s.".to_owned(),
            _ => format!("One local.medium carries {capacity_rps} req/s at the lowest price per request."),
        };
        ServicePlan {
            service: service.to_owned(),
            load: sample(service, at_ms - INTERVAL_MS, demand_rps * 0.74, demand_rps),
            quantile: 0.95,
            demand_rps,
            margin_rps: demand_rps * 0.12,
            lead_ms: LEAD_MS,
            justified_at_ms: at_ms,
            options: vec![],
            chosen: Some("local.medium".to_owned()),
            bound_by: "demand".to_owned(),
            instances,
            capacity_rps,
            shortfall_rps: 0.0,
            reason,
        }
    }

    /// A plan every ten seconds; the first starts a node, later ones add and drop nodes.
    async fn plans(bus: &MemoryBus, now_ms: i64) {
        let offsets = (0..).map(|i| -415_000 + i * 10_000).take_while(|offset| *offset < 0);
        for (sequence, offset) in offsets.enumerate() {
            send(bus, topics::ALLOCATION_CONTROL, now_ms + offset, &plan(sequence as u64, now_ms + offset, now_ms))
                .await;
        }
    }

    fn plan(sequence: u64, at_ms: i64, now_ms: i64) -> FleetPlan {
        let offset = at_ms - now_ms;
        let (vision, changes) = match offset {
            -415_000 => {
                (1, vec![change("local-1", NodeAction::Start, None, "The first node: three services have a demand.")])
            }
            -225_000 => {
                (1, vec![change("local-1", NodeAction::Renew, None, "Its lease ends in 30 s and the demand goes on.")])
            }
            -125_000 => {
                let load = sample("vision", at_ms - INTERVAL_MS, 58.0, 79.0);
                let reason = "The 95 % forecast 24 s ahead needs a second node; 1 node carries 61 req/s.";
                (2, vec![change("local-2", NodeAction::Start, Some(load), reason)])
            }
            -35_000 => {
                let load = sample("vision", at_ms - INTERVAL_MS, 66.2, 88.4);
                let reason = "The forecast band widened; a third node is cheaper than a miss.";
                let mut lapse = change(
                    "local-4",
                    NodeAction::Lapse,
                    None,
                    "Its share fits on local-1 and local-2 until its lease ends.",
                );
                lapse.service = None;
                (2, vec![change("local-3", NodeAction::Start, Some(load), reason), lapse])
            }
            _ => (if offset > -125_000 { 2 } else { 1 }, vec![]),
        };
        let action =
            |name: &str| changes.iter().find(|c: &&PlanChange| c.node == name).map_or(NodeAction::Keep, |c| c.action);
        let all = || vec![allocation("delay", 1), allocation("occupancy", 1), allocation("vision", 2)];
        let mut nodes = vec![node("local-1", action("local-1"), now_ms + 95_000, all())];
        if vision > 1 {
            nodes.push(node("local-2", action("local-2"), now_ms + 172_000, vec![allocation("vision", 3)]));
        }
        if offset >= -35_000 {
            nodes.push(node("local-3", action("local-3"), now_ms + 264_000, vec![allocation("vision", 2)]));
            nodes.push(node("local-4", NodeAction::Lapse, now_ms + 12_000, vec![]));
        }
        let cost = CostSoFar { since_ms: now_ms - UPTIME_MS, usd: 0.0211, usd_static_peak: 0.0268 };
        FleetPlan {
            schema: Default::default(),
            plan_id: format!("3-{sequence}"),
            epoch: 3,
            sequence,
            created_at_ms: at_ms,
            mode: PlanMode::Apply,
            services: vec![
                service_plan("delay", at_ms, 1),
                service_plan("occupancy", at_ms, 1),
                service_plan("vision", at_ms, vision),
            ],
            cost_usd_per_hour: 0.0765 * nodes.len() as f64,
            nodes,
            shortfall_rps: 0.0,
            changes,
            cost: Some(cost),
        }
    }

    fn change(node: &str, action: NodeAction, load: Option<LoadSample>, reason: &str) -> PlanChange {
        PlanChange {
            service: load.as_ref().map(|l| l.service.clone()),
            node: node.to_owned(),
            action,
            reason: reason.to_owned(),
            load,
        }
    }

    fn instance(service: &str, state: InstanceState, workers: u32, planned_workers: u32) -> InstanceStatus {
        InstanceStatus {
            service: service.to_owned(),
            version: "1".to_owned(),
            backend: "tract".to_owned(),
            state,
            workers,
            planned_workers,
            load_ms: (state == InstanceState::Ready).then_some(412.0),
            error: (state == InstanceState::Failed).then(|| "model file is not ONNX: unexpected end".to_owned()),
            signature: None,
        }
    }

    fn served(service: &str, offset: i64, share: f64) -> ServiceStatus {
        let rps = rate(service, offset) * share;
        let strain = if service == "vision" && offset > -125_000 && offset < -90_000 { 2.3 } else { 1.0 };
        let p50_ms = match service {
            "delay" => 6.0,
            "occupancy" => 21.0,
            _ => 48.0,
        } * strain
            * (1.0 + noise(offset, 0.2));
        let (p95_ms, p99_ms) = (p50_ms * 1.9, p50_ms * (2.5 + noise(offset + 7, 0.8)));
        let answered = rps.round() as u64;
        let late = if p99_ms > 200.0 { answered / 25 } else { 0 };
        ServiceStatus {
            service: service.to_owned(),
            period_ms: 1000,
            queue_depth: (rps * p50_ms / 1000.0).round() as u64,
            queue_age_ms: p50_ms * 0.4,
            arrivals: answered,
            direct_arrivals: 0,
            answered,
            in_slo: answered - late,
            rejected: u64::from(strain > 1.0),
            latency: Some(LatencyMs { p50_ms, p95_ms, p99_ms }),
            slo_ms: if service == "delay" { 50.0 } else { 200.0 },
        }
    }

    async fn heartbeats(bus: &MemoryBus, now_ms: i64) {
        for second in (1..=410).rev() {
            let offset = -second * 1000;
            let two = offset > -95_000;
            let workers = if offset > -60_000 { 3 } else { 2 };
            let instances = vec![
                instance("delay", InstanceState::Ready, 1, 1),
                instance("occupancy", InstanceState::Ready, 1, 1),
                instance("vision", InstanceState::Ready, workers, 2),
            ];
            let services = vec![
                served("delay", offset, 1.0),
                served("occupancy", offset, 1.0),
                served("vision", offset, if two { 0.6 } else { 1.0 }),
            ];
            let mut first = heartbeat("local-1", now_ms, offset, NodeState::Ready, instances, services);
            first.scaling = scaling(offset, now_ms);
            send(bus, topics::EXECUTOR_STATUS, now_ms + offset, &first).await;
            if two {
                let instances = vec![instance("vision", InstanceState::Ready, 3, 3)];
                let services = vec![served("vision", offset, 0.4)];
                let second = heartbeat("local-2", now_ms, offset, NodeState::Ready, instances, services);
                send(bus, topics::EXECUTOR_STATUS, now_ms + offset, &second).await;
            }
        }
        let loading = vec![instance("vision", InstanceState::Loading, 0, 2)];
        let third = heartbeat("local-3", now_ms, -900, NodeState::Booting, loading, vec![]);
        send(bus, topics::EXECUTOR_STATUS, now_ms - 900, &third).await;
        let fourth = heartbeat("local-4", now_ms, -700, NodeState::Ready, vec![], vec![]);
        send(bus, topics::EXECUTOR_STATUS, now_ms - 700, &fourth).await;
        let failed = vec![instance("vision", InstanceState::Failed, 0, 1)];
        let lost = heartbeat(&format!("edge-7 {HOSTILE}"), now_ms, -48_000, NodeState::Ready, failed, vec![]);
        send(bus, topics::EXECUTOR_STATUS, now_ms - 48_000, &lost).await;
    }

    fn heartbeat(
        node: &str,
        now_ms: i64,
        offset: i64,
        state: NodeState,
        instances: Vec<InstanceStatus>,
        services: Vec<ServiceStatus>,
    ) -> ExecutorStatus {
        ExecutorStatus {
            schema: Default::default(),
            node: node.to_owned(),
            flavor: "local.medium".to_owned(),
            at_ms: now_ms + offset,
            started_at_ms: now_ms - 410_000,
            state,
            plan_id: Some("3-41".to_owned()),
            cores: 4,
            instances,
            services,
            profile_updates: vec![],
            replan: vec![],
            scaling: vec![],
        }
    }

    fn scaling(offset: i64, now_ms: i64) -> Vec<ScalingEvent> {
        let event = |kind, from, to, reason: &str, load| ScalingEvent {
            at_ms: now_ms + offset,
            kind,
            node: "local-1".to_owned(),
            service: "vision".to_owned(),
            from,
            to,
            reason: reason.to_owned(),
            plan_id: Some("3-35".to_owned()),
            load,
        };
        match offset {
            -408_000 => vec![event(ScalingKind::Horizontal, 0, 1, "plan 3-0 places an instance here", None)],
            -120_000 => vec![event(
                ScalingKind::Vertical,
                2,
                3,
                "p95 of 171 ms is within 15 % of the objective",
                Some(sample("vision", now_ms + offset - INTERVAL_MS, 58.0, 79.0)),
            )],
            -70_000 => {
                vec![event(ScalingKind::Vertical, 3, 2, "p95 stayed under half of the objective for 30 s", None)]
            }
            -60_000 => {
                vec![event(ScalingKind::Vertical, 2, 3, "p95 rises by 9 ms a second towards the objective", None)]
            }
            _ => vec![],
        }
    }
}
