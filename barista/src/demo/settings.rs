//! What the demo runs: models from this binary, profiles measured now, demand sized so that one node is sometimes not
//! enough.

use super::Demo;
use crate::commands::profile::measure;
use crate::config::Config;
use crate::failure::Outcome;
use anyhow::Context as _;
use planner::config::{FlavorConfig, ServiceConfig};
use runtime::Clock;
use runtime::config::ConfigDuration;
use schemas::EpochMs;
use schemas::profile::Profile;
use sim::load::Demand;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Least time of one `occupancy` inference: what a small edge core takes for it.
pub(super) const EMULATED_INFER_MS: f64 = 25.0;
/// Interval of observed workload.
const INTERVAL_MS: i64 = 5_000;
/// Days of simulated history.
const HISTORY_DAYS: usize = 3;
/// Peaks of demand in a (compressed) day.
const PEAKS: usize = 16;
/// Share of the time between two peaks that passes before the first one: a demo begins between peaks.
const FIRST_PEAK: f64 = 0.42;

const DELAY: &[u8] = include_bytes!("../../../models/delay.onnx");
const OCCUPANCY: &[u8] = include_bytes!("../../../models/occupancy-gru.onnx");

/// Shape of the demand on `occupancy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DemandKind {
    /// Peaks that one node cannot carry.
    Waves,
    /// Constant and low: nothing should scale.
    Low,
}

/// Everything that was prepared.
pub(super) struct Prepared {
    pub(super) config: Config,
    pub(super) node_config: PathBuf,
    pub(super) demand: Vec<(String, Demand)>,
    pub(super) history: Vec<(String, Demand)>,
    pub(super) history_intervals: usize,
    pub(super) interval_ms: i64,
    pub(super) seed: u64,
    pub(super) banner: String,
}

pub(super) async fn prepare(demo: &Demo, folder: &Path) -> Outcome<Prepared> {
    let models = folder.join("models");
    std::fs::create_dir_all(&models).with_context(|| format!("cannot create {}", models.display()))?;
    let delay_model = write(&models, "delay.onnx", DELAY)?;
    let occupancy_model = write(&models, "occupancy-gru.onnx", OCCUPANCY)?;
    let (delay, occupancy) = {
        let (delay_model, occupancy_model) = (delay_model.clone(), occupancy_model.clone());
        tokio::task::spawn_blocking(move || -> anyhow::Result<(Profile, Profile)> {
            let quick = executor::profile::Options {
                workers: vec![1, 2, 4],
                batches: vec![1, 4],
                warmup: Duration::from_millis(50),
                duration: Duration::from_millis(200),
                ..Default::default()
            };
            let tract = executor::backend::tract::TractBackend;
            let delay = measure(&delay_model, &tract, &quick)?;
            let occupancy = measure(&occupancy_model, &tract, &quick)?;
            Ok((delay, slow_down(occupancy, EMULATED_INFER_MS)))
        })
        .await??
    };
    let day_ms = (86_400_000.0 / demo.speed) as i64;
    let one_node_rps = occupancy.point(2, 1).map_or(60.0, |p| p.rps);
    let occupancy_demand = match demo.demand {
        DemandKind::Low => Demand::constant(8.0, day_ms),
        DemandKind::Waves => waves(day_ms, one_node_rps, runtime::SystemClock.now_ms()),
    };
    let services = vec![
        service("delay", &delay_model, 500.0, &delay, folder)?,
        service("occupancy", &occupancy_model, 300.0, &occupancy, folder)?,
    ];
    let config = configure(demo, services, day_ms, folder)?;
    let node_config = folder.join("node.toml");
    let text = runtime::config::print(&config).map_err(anyhow::Error::msg)?;
    std::fs::write(&node_config, text).with_context(|| format!("cannot write {}", node_config.display()))?;
    // A vehicle asks for its delay once a window.
    let delay_rps = demo.vehicles as f64 / 10.0;
    Ok(Prepared {
        history: vec![
            ("delay".to_owned(), Demand::constant(delay_rps, day_ms)),
            ("occupancy".to_owned(), occupancy_demand.clone()),
        ],
        demand: vec![("occupancy".to_owned(), occupancy_demand)],
        history_intervals: (day_ms / INTERVAL_MS) as usize * HISTORY_DAYS,
        interval_ms: INTERVAL_MS,
        seed: demo.seed,
        banner: format!(
            "Demo: the city, its passengers and {HISTORY_DAYS} days of warm-up history are simulated; a day lasts {:.0} min. \
             Nodes are local processes that boot in 3 s and emulate edge machines: an occupancy inference takes at \
             least {EMULATED_INFER_MS} ms.",
            day_ms as f64 / 60_000.0
        ),
        config,
        node_config,
    })
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    std::fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

/// The profile of a machine on which each request takes at least `floor_ms`.
fn slow_down(mut profile: Profile, floor_ms: f64) -> Profile {
    profile.host = format!("{}, emulating an edge core: at least {floor_ms} ms a request", profile.host);
    for point in &mut profile.points {
        let least_ms = floor_ms * f64::from(point.batch);
        point.p50_ms = point.p50_ms.max(least_ms);
        point.p95_ms = point.p95_ms.max(least_ms * 1.02);
        point.p99_ms = point.p99_ms.max(least_ms * 1.05);
        point.rps = point.rps.min(f64::from(point.workers * point.batch) * 1000.0 / least_ms);
    }
    profile
}

/// Peaks of 1.5 times what one node carries, one every day/16, on a base of a fifth.
fn waves(day_ms: i64, one_node_rps: f64, now_ms: EpochMs) -> Demand {
    let begin = now_ms.rem_euclid(day_ms) as f64 / day_ms as f64;
    Demand {
        base_rps: 0.2 * one_node_rps,
        peak_rps: 1.5 * one_node_rps,
        day_ms,
        peaks: (0..PEAKS).map(|i| (begin + (i as f64 + FIRST_PEAK) / PEAKS as f64).fract()).collect(),
        sigma: 0.17 / PEAKS as f64,
    }
}

fn service(name: &str, model: &Path, slo_p95_ms: f64, profile: &Profile, folder: &Path) -> Outcome<ServiceConfig> {
    let path = folder.join(format!("{name}.profile.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(profile)?)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(ServiceConfig {
        name: name.to_owned(),
        model: model.display().to_string(),
        slo_p95_ms,
        profile: Some(path),
        ..ServiceConfig::default()
    })
}

fn flavor(name: &str, cores: u32, usd_per_hour: f64) -> FlavorConfig {
    FlavorConfig {
        name: name.to_owned(),
        cores,
        usd_per_hour,
        min_lease_s: 15.0,
        boot_s: 3.0,
        quota: Some(4),
        ..FlavorConfig::default()
    }
}

fn configure(demo: &Demo, services: Vec<ServiceConfig>, day_ms: i64, folder: &Path) -> Outcome<Config> {
    let mut config = Config { service: services, ..Config::default() };
    config.flavor = vec![flavor("edge.small", 2, 0.05), flavor("edge.medium", 4, 0.095)];
    config.embedded.data_dir = Some(folder.to_owned());
    config.telemetry.address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, 0));
    config.telemetry.shutdown_deadline = ConfigDuration::from_secs(4);
    config.dashboard = crate::dashboard::Config { address: demo.dashboard, open: demo.open };
    config.kafka.fetch_wait = ConfigDuration::from_millis(50);
    config.kafka.heartbeat = ConfigDuration::from_millis(100);
    config.aggregate.interval = ConfigDuration::from_millis(INTERVAL_MS as u64);
    config.planner.period = ConfigDuration::from_secs(2);
    config.planner.hold = ConfigDuration::from_secs(8);
    config.planner.horizon = ConfigDuration::from_secs(60);
    config.provider = planner::config::ProviderConfig { kind: planner::config::ProviderKind::Local };
    let day = ConfigDuration::from_millis(day_ms.unsigned_abs());
    config.aggregate.lateness = ConfigDuration::from_secs(2);
    config.forecaster.day = day;
    config.forecaster.week = ConfigDuration::from_millis(7 * day_ms.unsigned_abs());
    config.executor.drain_timeout = ConfigDuration::from_secs(3);
    config.executor.vertical.hold = ConfigDuration::from_secs(10);
    config.executor.emulate =
        vec![executor::config::Emulation { service: "occupancy".to_owned(), min_infer_ms: EMULATED_INFER_MS }];
    Ok(config)
}
