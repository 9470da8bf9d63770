//! `barista demo`: the whole pipeline on one machine, with a simulated city, and the books kept from record ids.
//!
//! What is real: brokers, protocols, models, inference, forecasts, plans, processes that start and stop. What is
//! simulated, and labelled so: the city and its passengers, the forecaster's warm-up history, the boot time of nodes,
//! and the slowness of an edge machine (an inference of `occupancy` takes at least [`settings::EMULATED_INFER_MS`]).

pub mod accounts;
mod load;
mod observer;
mod reactive;
mod report;
mod settings;

use crate::commands::city::drive;
use crate::dashboard;
use crate::failure::Outcome;
use crate::roles::{Brokers, Process, Role};
use accounts::Accounts;
use anyhow::Context as _;
use observer::{Observations, Shared};
use runtime::OutRecord;
use schemas::topics::WORKLOAD_OBSERVED;
use schemas::workload::WorkloadObserved;
use sim::city::{City, CityConfig};
use sim::publish::Publisher;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

pub use settings::DemandKind;

/// How the demo runs.
#[derive(Debug, Clone)]
pub struct Demo {
    /// Stops after this time.
    pub duration: Option<Duration>,
    /// Speed of the calendar and of the daily rhythm.
    pub speed: f64,
    /// Vehicles of the city.
    pub vehicles: usize,
    /// Seed of the city and the demand.
    pub seed: u64,
    /// Demand on `occupancy`.
    pub demand: DemandKind,
    /// Where the JSON summary goes.
    pub report: Option<PathBuf>,
    /// Dashboard address.
    pub dashboard: std::net::SocketAddr,
    /// Opens the page.
    pub open: bool,
}

/// Requests still open are awaited this long at the end; what has no record by then is lost.
const SETTLE: Duration = Duration::from_secs(10);
/// The same after Ctrl-C, when a person waits.
const SETTLE_INTERRUPTED: Duration = Duration::from_millis(1500);

/// Runs the demo and gives its report.
pub async fn run(demo: Demo) -> Outcome<serde_json::Value> {
    let folder = tempfile::Builder::new().prefix("barista-demo-").tempdir().context("cannot create a folder")?;
    progress("measuring the models");
    let prepared = settings::prepare(&demo, folder.path()).await?;
    let mut process = Process::prepare(
        prepared.config.clone(),
        Some(folder.path().to_owned()),
        Brokers::StartAnywhere,
        Some(prepared.node_config.clone()),
    )
    .await?;
    process.dashboard.set_banner(Some(prepared.banner.clone()));
    publish_history(&process, &prepared).await?;
    for role in [Role::Dashboard, Role::Ingest, Role::Aggregate, Role::Forecaster, Role::Planner] {
        process.start(role)?;
    }
    announce(&process, &demo);

    let slo = prepared.config.service.iter().map(|s| (s.name.clone(), s.slo_p95_ms));
    let shared: Shared = Arc::new(Mutex::new(Observations { accounts: Accounts::new(slo), ..Observations::default() }));
    let started_ms = process.context.clock.now_ms();
    let sources_stop = process.token().child_token();
    let token = process.token();
    process.spawn(
        "observer",
        observer::run(process.context.clone(), prepared.config.service_names(), shared.clone(), token.clone()),
    );
    let tokens = Tokens { sources: sources_stop.clone(), process: token.clone() };
    let publisher = start_city(&mut process, &demo, tokens.clone())?;
    process
        .spawn("load", load::run(process.context.clone(), prepared.demand.clone(), demo.seed, tokens, shared.clone()));
    process.spawn("progress", lines(process.dashboard.clone(), shared.clone(), process.context.clone(), token.clone()));

    let ending = Ending {
        duration: demo.duration,
        sources_stop,
        token,
        shared: shared.clone(),
        context: process.context.clone(),
    };
    process.spawn("demo", ending.run());
    let (context, ingest) = (process.context.clone(), process.ingest.clone());
    let outcome = process.run().await;
    let counts = ingest.map(|m| m.counts()).unwrap_or_default();
    let published = publisher.load(std::sync::atomic::Ordering::SeqCst);
    let seconds = (context.clock.now_ms() - started_ms) as f64 / 1000.0;
    let report = report::build(&shared, &counts, published, seconds, &demo, &prepared);
    if let Some(path) = &demo.report {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    outcome.map(|()| report)
}

/// One line on stderr.
fn progress(text: &str) {
    // A closed stderr must not end the demo.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("barista: {text}\n").as_bytes());
}

fn announce(process: &Process, demo: &Demo) {
    progress(&format!("kafka  {}   (kcat -b {0} -L)", process.config.kafka.brokers));
    progress(&format!("mqtt   {}", process.config.mqtt.broker));
    progress(&format!("page   http://{}/", demo.dashboard));
    progress("stop with Ctrl-C");
}

/// Simulated history, labelled so in each record, for the forecaster to start warm.
async fn publish_history(process: &Process, prepared: &settings::Prepared) -> Outcome {
    let topic = process.context.bus.topics().name(WORKLOAD_OBSERVED);
    let interval_ms = prepared.interval_ms;
    let now = process.context.clock.now_ms();
    // With the interval that is running, so that what aggregate closes first follows without a gap.
    let end_ms = now - now.rem_euclid(interval_ms) + interval_ms;
    let sink = process.context.bus.sink();
    let mut deliveries = Vec::new();
    for (service, demand) in &prepared.history {
        for (start_ms, arrivals) in demand.history(end_ms, interval_ms, prepared.history_intervals, prepared.seed) {
            let sample = WorkloadObserved {
                schema: Default::default(),
                service: service.clone(),
                start_ms,
                interval_ms: interval_ms as u64,
                arrivals,
                direct_arrivals: 0,
                simulated: true,
            };
            deliveries.push(sink.send(OutRecord::message(topic.clone(), &sample)?));
        }
    }
    for delivery in deliveries {
        delivery.await?;
    }
    Ok(())
}

/// The city publishes over MQTT like any device; its count of acknowledged messages is the report's `published`.
fn start_city(process: &mut Process, demo: &Demo, tokens: Tokens) -> Outcome<Arc<std::sync::atomic::AtomicU64>> {
    let address = ingest::config::BrokerAddress::parse(&process.config.mqtt.broker).map_err(anyhow::Error::msg)?;
    let city = City::new(CityConfig { vehicles: demo.vehicles, seed: demo.seed, ..CityConfig::default() });
    let published = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let (count, speed) = (published.clone(), demo.speed);
    process.spawn("city", async move {
        let connection = CancellationToken::new();
        let publisher = Publisher::connect(&address.host, address.port, "barista-city", &connection);
        let driven = drive(city, &publisher, speed, &tokens.sources).await;
        let acknowledged = publisher.finish(Duration::from_secs(2)).await;
        count.store(acknowledged.unwrap_or(0), std::sync::atomic::Ordering::SeqCst);
        driven.map_err(|failure| anyhow::anyhow!("{failure}"))?;
        // Ending is no reason to end the process: the last predictions are still to come.
        tokens.process.cancelled().await;
        anyhow::Ok(())
    });
    Ok(published)
}

/// What ends the sources, and what ends the process after them.
#[derive(Debug, Clone)]
struct Tokens {
    sources: CancellationToken,
    process: CancellationToken,
}

/// Stops the sources first, waits for the last answers, then ends everything.
struct Ending {
    duration: Option<Duration>,
    sources_stop: CancellationToken,
    token: CancellationToken,
    shared: Shared,
    context: runtime::Context,
}

impl Ending {
    async fn run(self) -> anyhow::Result<()> {
        let timer = async {
            match self.duration {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        let settle = tokio::select! {
            () = timer => SETTLE,
            signal = runtime::supervisor::signalled() => { signal?; SETTLE_INTERRUPTED }
            () = self.token.cancelled() => return Ok(()),
        };
        self.sources_stop.cancel();
        let settled = observer::settled(&self.shared, &self.context);
        if tokio::time::timeout(settle, settled).await.is_err() {
            tracing::warn!("requests without a record remain; the report counts them as lost");
        }
        self.token.cancel();
        Ok(())
    }
}

/// A line every five seconds.
async fn lines(
    handle: dashboard::Handle,
    shared: Shared,
    context: runtime::Context,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(5));
    ticks.tick().await;
    let mut last = observer::tally(&shared);
    loop {
        tokio::select! {
            () = token.cancelled() => return Ok(()),
            _ = ticks.tick() => {}
        }
        let now = observer::tally(&shared);
        progress(&report::line(&now, &last, 5.0));
        last = now;
        handle.set_cost(observer::cost(&shared, context.clock.now_ms()));
    }
}
