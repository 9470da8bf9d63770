//! `cargo run --release -p planner --example timing`: how long a decision takes, from nothing and with its fleet there.
//!
//! 20 services × 10 flavors × 60 forecast steps (200 random decisions, 99th percentile), and 1,000 services × 20
//! flavors (once). Times are of this machine, single-threaded; compare them on one machine only.

#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "a command line that measures time")]

use planner::lease::Lease;
use planner::model::*;
use rand::{Rng, SeedableRng};
use schemas::allocation::NodeAction;
use schemas::profile::{Profile, ProfilePoint};
use schemas::workload::{ForecastError, ForecastStep, WorkloadForecast};
use std::time::Instant;

fn main() {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (many, rounds) = (args.next().unwrap_or(1_000), args.next().unwrap_or(200));
    for boots in [Boots::Alike, Boots::Apart] {
        let (mut fresh, mut again) = (Vec::new(), Vec::new());
        for seed in 0..rounds as u64 {
            let inputs = instance(seed, 20, 10, 60, boots);
            let (ms, plan) = timed(&inputs);
            fresh.push(ms);
            again.push(timed(&after(&inputs, &plan)).0);
        }
        println!("{boots:?}: 20 services x 10 flavors x 60 steps, from nothing: {}", quantiles(fresh));
        println!("{boots:?}: 20 services x 10 flavors x 60 steps, its fleet there: {}", quantiles(again));
        let inputs = instance(1, many, 20, 60, boots);
        let (ms, plan) = timed(&inputs);
        println!(
            "{boots:?}: {many} services x 20 flavors, from nothing: {ms:.0} ms, {} nodes, short by {:.1}",
            plan.nodes.len(),
            plan.shortfall_rps
        );
        println!("{boots:?}: {many} services x 20 flavors, its fleet there: {:.0} ms", timed(&after(&inputs, &plan)).0);
    }
}

/// How long flavors take to boot: 60 s each, or 30 to 300 s.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Boots {
    Alike,
    Apart,
}

fn timed(inputs: &PlanInputs) -> (f64, Plan) {
    let begin = Instant::now();
    let plan = planner::plan(inputs);
    (begin.elapsed().as_secs_f64() * 1000.0, plan)
}

fn quantiles(mut ms: Vec<f64>) -> String {
    ms.sort_by(f64::total_cmp);
    let at = |q: f64| ms[((ms.len() as f64 * q) as usize).min(ms.len() - 1)];
    format!("p50 {:.2} ms, p99 {:.2} ms", at(0.5), at(0.99))
}

/// The next decision, everything having come up.
fn after(inputs: &PlanInputs, plan: &Plan) -> PlanInputs {
    let mut next = inputs.clone();
    next.naming = plan.naming;
    let running = plan.nodes.iter().filter(|n| n.action != NodeAction::Stop);
    next.fleet = running
        .map(|n| FleetNode {
            node: n.node.clone(),
            flavor: n.flavor.clone(),
            state: FleetState::Ready,
            lease: Lease { start_ms: n.lease_start_ms, end_ms: n.lease_end_ms },
            cores: None,
            hosts: n
                .instances
                .iter()
                .map(|i| HostedInstance { service: i.service.clone(), workers: i.workers, ready: true, failed: None })
                .collect(),
        })
        .collect();
    next
}

fn instance(seed: u64, services: usize, flavors: usize, steps: i64, boots: Boots) -> PlanInputs {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let flavor = |i: usize, spread: f64| {
        let cores = [1, 2, 4, 8][i % 4];
        Flavor {
            name: format!("f{i}"),
            cores,
            boot_s: if boots == Boots::Alike { 60.0 } else { [30.0, 300.0, 60.0, 120.0, 90.0][i % 5] },
            usd_per_hour: 0.045 * f64::from(cores) * (1.0 + spread / 4.0),
            ..Flavor::default()
        }
    };
    let mut inputs = PlanInputs {
        settings: Settings { members: Members::Shared, total_quota: None, ..Settings::default() },
        flavors: (0..flavors).map(|i| flavor(i, rng.random())).collect(),
        ..PlanInputs::default()
    };
    for s in 0..services {
        let name = format!("s{s:04}");
        let core_ms = rng.random_range(15.0..80.0);
        let base = rng.random_range(0.5..6.0) * 1000.0 / core_ms;
        let step = |i: i64| {
            let rate = base * (1.0 + 0.4 * (i as f64 / 20.0 + s as f64).sin());
            ForecastStep { start_ms: i * 10_000, mean_rps: rate, quantiles_rps: vec![rate] }
        };
        let forecast = WorkloadForecast {
            schema: Default::default(),
            service: name.clone(),
            origin_ms: 0,
            interval_ms: 10_000,
            levels: vec![0.95],
            steps: (0..steps).map(step).collect(),
            last_observed_rps: base,
            weights: Default::default(),
            error: ForecastError::default(),
            samples: 1,
            cold_start: false,
            ..WorkloadForecast::default()
        };
        let point = |workers: u32| {
            let ms = core_ms * (1.0 + 0.05 * f64::from(workers - 1));
            let rps = f64::from(workers) * 1000.0 / ms;
            ProfilePoint { workers, batch: 1, p50_ms: ms, p95_ms: ms * 1.1, p99_ms: ms * 1.2, rps }
        };
        let profile = Profile {
            model: format!("{name}.onnx"),
            sha256: String::new(),
            backend: "tract".into(),
            host: "random".into(),
            load_ms: 1_000.0,
            memory_mib: 100.0,
            points: [1, 2, 4, 8].map(point).to_vec(),
            estimated: false,
            distributions: Vec::new(),
        };
        inputs.profiles.push(ServiceProfile { service: name.clone(), flavor: None, profile });
        let load = ServiceLoad { forecast: Some(forecast), ..ServiceLoad::default() };
        inputs.services.push(Service { name, load, ..Service::default() });
    }
    inputs
}
