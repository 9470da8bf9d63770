//! `cargo run --release -p planner --example instances [N]`: N random static instances with the planner's cost, one JSON
//! object a line, for `bench/peers/planning_milp.py`, which solves each with HiGHS.
//!
//! One service, 2 to 10 flavors in four sizes and a GPU kind with prices spread by a quarter, quotas on some, a load of
//! up to 60 small nodes, one shared queue, nothing rented yet. An instance gives for each flavor the capacity of a node
//! and the time that it leaves for waiting, so that the oracle computes the margin by itself.

#![allow(clippy::print_stdout, reason = "a command line")]

use planner::lease::Billing;
use planner::model::*;
use rand::{Rng, SeedableRng};
use schemas::profile::{Profile, ProfilePoint};
use schemas::workload::{ForecastError, ForecastStep, WorkloadForecast};

fn main() {
    let n: u64 = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(200);
    for seed in 0..n {
        let inputs = instance(seed);
        let plan = planner::plan(&inputs);
        let rated = |f: &Flavor| {
            let ladder = planner::cost::rate(&inputs.services[0], f, &inputs.profiles, &inputs.settings).ok()?;
            let top = *ladder.top()?;
            Some(serde_json::json!({
                "capacity_rps": top.sustained_rps, "allowed_s": top.waiting.allowed_s,
                "usd_per_hour": f.usd_per_hour, "quota": f.quota,
            }))
        };
        let line = serde_json::json!({
            "seed": seed, "rate_rps": plan.services[0].demand_rps, "epsilon": inputs.settings.epsilon, "sheds": inputs.settings.sheds,
            "flavors": inputs.flavors.iter().filter_map(rated).collect::<Vec<_>>(),
            "usd_per_hour": plan.cost_usd_per_hour, "shortfall_rps": plan.shortfall_rps,
        });
        println!("{line}");
    }
}

/// As the prototype's `inst.rs` sizes them.
fn instance(seed: u64) -> PlanInputs {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let core_ms = rng.random_range(20.0..90.0);
    let flavors = (0..rng.random_range(2..=10)).map(|i| {
        let gpu = i % 5 == 4;
        let cores = [1, 2, 4, 8][i % 4];
        let family = 1.0 + 0.25 * rng.random::<f64>();
        Flavor {
            name: format!("f{i}"),
            cores,
            gpus: u32::from(gpu),
            usd_per_hour: if gpu { 0.526 * (1.0 + rng.random::<f64>()) } else { 0.045 * f64::from(cores) * family },
            billing: Billing::Second,
            quota: rng.random_bool(0.3).then(|| rng.random_range(1..12)),
            speed: rng.random_range(0.85..1.15),
            ..Flavor::default()
        }
    });
    let flavors: Vec<Flavor> = flavors.collect();
    let point = |workers: u32, batch: u32, ms: f64| ProfilePoint {
        workers,
        batch,
        p50_ms: ms,
        p95_ms: ms * 1.1,
        p99_ms: ms * 1.2,
        rps: f64::from(workers * batch) * 1000.0 / ms,
    };
    let profile = |backend: &str, points| ServiceProfile {
        service: "s".into(),
        flavor: None,
        profile: Profile {
            model: "s.onnx".into(),
            sha256: String::new(),
            backend: backend.into(),
            host: "random".into(),
            load_ms: 1_000.0,
            memory_mib: 100.0,
            points,
            estimated: false,
            distributions: Vec::new(),
        },
    };
    let cpu = (1..=8).map(|w| point(w, 1, core_ms * (1.0 + 0.05 * f64::from(w - 1)))).collect();
    let gpu = [1, 4, 8].into_iter().map(|b| point(1, b, 6.0 + core_ms * 0.07 * f64::from(b))).collect();
    let rate_rps = rng.random_range(1.0..60.0) * 1000.0 / core_ms;
    let forecast = WorkloadForecast {
        schema: Default::default(),
        service: "s".into(),
        origin_ms: 0,
        interval_ms: 600_000,
        levels: vec![0.95],
        steps: vec![ForecastStep { start_ms: 0, mean_rps: rate_rps, quantiles_rps: vec![rate_rps] }],
        last_observed_rps: rate_rps,
        weights: Default::default(),
        error: ForecastError::default(),
        samples: 1,
        cold_start: false,
        ..WorkloadForecast::default()
    };
    let load = ServiceLoad { forecast: Some(forecast), ..ServiceLoad::default() };
    let service = Service { name: "s".into(), slo_ms: 200.0, load, ..Service::default() };
    PlanInputs {
        settings: Settings { members: Members::Shared, total_quota: None, ..Settings::default() },
        services: vec![service],
        flavors,
        profiles: vec![profile("tract", cpu), profile("cuda", gpu)],
        ..PlanInputs::default()
    }
}
