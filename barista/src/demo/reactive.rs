//! What a reactive autoscaler would have cost on the arrivals that the demo recorded: simulated, and labelled so.

use super::settings::Prepared;
use planner::config::{FlavorConfig, ServiceConfig};
use sim::simulate::scenario::{Faults, FlavorSpec, ForecastSpec, OneOrMany, ServiceSpec, Setup, Topology, TraceSpec};
use sim::simulate::{Folders, Scenario, Selection, Simulation};
use std::collections::BTreeMap;
use std::path::Path;

/// Who it is compared with: Kubernetes' HPA at a target of 60 % utilisation, no shedding.
const POLICY: &str = "hpa-60";

/// The note that goes with the figure.
pub(super) fn note() -> String {
    format!(
        "simulated: {POLICY} on the recorded arrivals (workload.observed), each service a deployment on nodes of its own"
    )
}

/// Cost over the recorded time, USD. `observed` has the JSON lines of `workload.observed` by service; the error says
/// why nothing can be said.
pub(super) fn usd(observed: &BTreeMap<String, Vec<String>>, prepared: &Prepared) -> Result<f64, String> {
    if observed.is_empty() {
        return Err("no interval of load was closed".to_owned());
    }
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let services = prepared.config.service.iter().filter_map(|s| Some((s, observed.get(&s.name)?)));
    services.map(|(service, lines)| usd_of(service, lines, &prepared.config.flavor, prepared.seed, folder.path())).sum()
}

fn usd_of(
    service: &ServiceConfig,
    lines: &[String],
    flavors: &[FlavorConfig],
    seed: u64,
    folder: &Path,
) -> Result<f64, String> {
    let file = folder.join(format!("{}.jsonl", service.name));
    std::fs::write(&file, lines.join("\n")).map_err(|e| format!("{}: {e}", file.display()))?;
    let recorded = sim::simulate::observed::read(&file).map_err(|e| e.to_string())?;
    let trace = recorded.traces.get(&service.name).ok_or_else(|| format!("no records of {}", service.name))?;
    let profile = service.profile.clone().ok_or_else(|| format!("{} has no profile", service.name))?;
    let scenario = Scenario {
        name: "demo".to_owned(),
        seed,
        trace: TraceSpec {
            file: Some(file),
            generator: None,
            start: None,
            days: trace.counts.len() as f64 * trace.interval_ms as f64 / 86_400_000.0,
            peak_rps: 1.0,
        },
        service: vec![ServiceSpec {
            name: service.name.clone(),
            share: 1.0,
            slo_ms: service.slo_p95_ms,
            slo_quantile: 0.95,
            attainment: 0.99,
            profile: OneOrMany::One(profile),
            priority: 0,
            min: service.min.max(1),
        }],
        flavor: flavors.iter().map(flavor).collect(),
        setup: Setup::default(),
        faults: Faults::default(),
        forecast: ForecastSpec { train_days: 0.0, ..ForecastSpec::default() },
        topology: Topology::default(),
    };
    let problems = scenario.problems();
    if !problems.is_empty() {
        return Err(problems.join("; "));
    }
    let selection = Selection(vec![(POLICY.to_owned(), false)]);
    let report =
        Simulation::of(scenario, Folders::default()).run(&selection, None, |_| {}).map_err(|e| e.to_string())?;
    report.runs.first().map(|run| run.outcome.cost_usd).ok_or_else(|| "the policy did not run".to_owned())
}

fn flavor(f: &FlavorConfig) -> FlavorSpec {
    FlavorSpec {
        name: f.name.clone(),
        cores: f.cores,
        memory_gib: f.memory_gib,
        gpus: f.gpus,
        usd_per_hour: f.usd_per_hour,
        billing: f.billing,
        min_lease_s: f.min_lease_s,
        boot_s: f.boot_s,
        boot_cv: 0.0,
        quota: f.quota,
        speed: f.speed,
        interruptions_per_h: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::workload::WorkloadObserved;

    #[test]
    fn a_recorded_load_has_a_price() {
        let folder = tempfile::tempdir().expect("a folder");
        let profile = folder.path().join("s.json");
        let text = serde_json::json!({
            "model": "s.onnx", "sha256": "0", "backend": "tract", "host": "test", "load_ms": 100.0, "memory_mib": 10.0,
            "points": [{"workers": 1, "batch": 1, "p50_ms": 20.0, "p95_ms": 25.0, "p99_ms": 30.0, "rps": 48.0},
                       {"workers": 2, "batch": 1, "p50_ms": 20.0, "p95_ms": 25.0, "p99_ms": 30.0, "rps": 96.0}],
        });
        std::fs::write(&profile, text.to_string()).expect("written");
        let lines = |rate: u64| -> Vec<String> {
            let of = |i: i64| WorkloadObserved {
                schema: Default::default(),
                service: "s".into(),
                start_ms: 1_700_000_000_000 + i * 5_000,
                interval_ms: 5_000,
                arrivals: 5 * rate,
                direct_arrivals: 0,
                simulated: false,
            };
            (0..24).map(|i| serde_json::to_string(&of(i)).expect("JSON")).collect()
        };
        let service =
            ServiceConfig { name: "s".into(), slo_p95_ms: 200.0, profile: Some(profile), ..ServiceConfig::default() };
        let flavors = [FlavorConfig {
            name: "f".into(),
            cores: 2,
            usd_per_hour: 3.6,
            boot_s: 3.0,
            min_lease_s: 15.0,
            ..FlavorConfig::default()
        }];
        let usd = |rate| usd_of(&service, &lines(rate), &flavors, 1, folder.path()).expect("a price");
        // One node for two minutes at 0.001 USD a second.
        assert!((usd(10) - 0.12).abs() < 0.02, "{}", usd(10));
        assert!(usd(200) > 2.0 * usd(10), "more load, more nodes: {}", usd(200));
        assert!(usd_of(&service, &[], &flavors, 1, folder.path()).is_err());
    }
}
