//! `barista demo`.

use crate::demo::{self, DemandKind, Demo};
use crate::failure::{Failure, Outcome};
use crate::output;
use runtime::config::ConfigDuration;
use runtime::trace;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Everything here.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stops after this time, such as `60s`; without it, at Ctrl-C.
    #[arg(long = "for", value_name = "DURATION")]
    duration: Option<ConfigDuration>,
    /// Speed of the calendar: event rates follow a day of 24 h / SPEED. Latencies, boots, leases and cost are real time.
    #[arg(long, default_value_t = 60.0)]
    speed: f64,
    /// Writes a JSON summary.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Opens the dashboard in the browser.
    #[arg(long)]
    open: bool,
    /// Vehicles of the city.
    #[arg(long, default_value_t = 60)]
    vehicles: usize,
    /// Seed of city and demand.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Demand on the occupancy service.
    #[arg(long, value_enum, default_value_t = DemandKind::Waves)]
    load: DemandKind,
    /// Address of the dashboard.
    #[arg(long, default_value = "127.0.0.1:8080")]
    dashboard: SocketAddr,
}

/// Runs it.
pub async fn run(args: Args, log: trace::Options) -> Outcome {
    if !(args.speed >= 1.0 && args.speed <= 1_000.0) {
        return Err(Failure::Usage("--speed: must be from 1 to 1000".to_owned()));
    }
    let guard = trace::init(&log).map_err(|e| Failure::Usage(e.to_string()))?;
    let demo = Demo {
        duration: args.duration.map(|d| d.get()),
        speed: args.speed,
        vehicles: args.vehicles,
        seed: args.seed,
        demand: args.load,
        report: args.report.clone(),
        dashboard: args.dashboard,
        open: args.open,
    };
    let report = demo::run(demo).await?;
    guard.shutdown();
    if args.report.is_none() {
        output::print_json(&report)?;
    }
    let lost = report["requests"]["lost"].as_u64().unwrap_or(u64::MAX);
    if lost > 0 {
        return Err(Failure::Failed(anyhow::anyhow!("{lost} requests have neither a result nor a rejection")));
    }
    Ok(())
}
