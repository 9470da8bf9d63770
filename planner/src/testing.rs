//! Small builders that the tests of this crate share.

use crate::lease::{Lease, Terms};
use crate::model::*;
use schemas::EpochMs;
use schemas::allocation::NodeAction;
use schemas::profile::{Profile, ProfilePoint};
use schemas::workload::{ForecastError, ForecastStep, WorkloadForecast};

/// A service with an SLO of 200 ms and nothing else set.
pub(crate) fn service(name: &str) -> Service {
    Service { name: name.into(), model: format!("{name}.onnx"), ..Service::default() }
}

/// A flavor that boots in 60 s.
pub(crate) fn flavor(name: &str, cores: u32, usd_per_hour: f64) -> Flavor {
    Flavor { name: name.into(), cores, usd_per_hour, ..Flavor::default() }
}

/// A point whose throughput follows from its latency.
pub(crate) fn point(workers: u32, batch: u32, p95_ms: f64) -> ProfilePoint {
    ProfilePoint {
        workers,
        batch,
        p50_ms: p95_ms * 0.9,
        p95_ms,
        p99_ms: p95_ms * 1.2,
        rps: f64::from(workers * batch) * 1000.0 / p95_ms,
    }
}

/// A tract profile for `service` on any flavor.
pub(crate) fn profile(service: &str, points: Vec<ProfilePoint>) -> ServiceProfile {
    ServiceProfile {
        service: service.into(),
        flavor: None,
        profile: Profile {
            model: format!("{service}.onnx"),
            sha256: String::new(),
            backend: "tract".into(),
            host: "test".into(),
            load_ms: 500.0,
            memory_mib: 50.0,
            points,
            estimated: false,
            distributions: Vec::new(),
        },
    }
}

/// A forecast with one level, 0.95, and one rate a step of 10 s.
pub(crate) fn forecast(service: &str, origin_ms: EpochMs, rates_rps: &[f64]) -> WorkloadForecast {
    let step = |(i, &rate): (usize, &f64)| ForecastStep {
        start_ms: origin_ms + i as i64 * 10_000,
        mean_rps: rate,
        quantiles_rps: vec![rate],
    };
    WorkloadForecast {
        schema: Default::default(),
        service: service.into(),
        origin_ms,
        interval_ms: 10_000,
        levels: vec![0.95],
        steps: rates_rps.iter().enumerate().map(step).collect(),
        last_observed_rps: rates_rps.first().copied().unwrap_or(0.0),
        weights: Default::default(),
        error: ForecastError::default(),
        samples: 100,
        cold_start: false,
        ..WorkloadForecast::default()
    }
}

/// The service with a flat forecast.
pub(crate) fn loaded(name: &str, now_ms: EpochMs, rate_rps: f64) -> Service {
    let mut service = service(name);
    service.load.forecast = Some(forecast(name, now_ms, &[rate_rps; 60]));
    service
}

/// The inputs of the next decision at `now_ms`, if the world did exactly as the plan says. `settled` nodes and
/// instances have come up, else they are still being set up.
pub(crate) fn advance(inputs: &PlanInputs, plan: &Plan, now_ms: EpochMs, settled: bool) -> PlanInputs {
    let mut next = inputs.clone();
    next.now_ms = now_ms;
    next.naming = plan.naming;
    next.previous = plan
        .services
        .iter()
        .map(|s| PreviousDemand {
            service: s.service.clone(),
            demand_rps: s.demand_rps,
            justified_at_ms: s.justified_at_ms,
        })
        .collect();
    let before = |id: &str| inputs.fleet.iter().find(|n| n.node == id);
    next.fleet = plan.nodes.iter().filter_map(|n| node_after(before(&n.node), n, settled)).collect();
    next
}

fn node_after(before: Option<&FleetNode>, plan: &schemas::allocation::NodePlan, settled: bool) -> Option<FleetNode> {
    let state = match (plan.action, before) {
        (NodeAction::Stop, _) if settled => return None,
        (NodeAction::Stop, Some(b)) if b.state == FleetState::Lost => return None,
        (NodeAction::Stop, _) => FleetState::Draining,
        _ if settled => FleetState::Ready,
        (_, Some(b)) => b.state,
        (_, None) => FleetState::Ordered,
    };
    let was_ready = |service: &str| before.is_some_and(|b| b.hosts.iter().any(|h| h.service == service && h.ready));
    Some(FleetNode {
        node: plan.node.clone(),
        flavor: plan.flavor.clone(),
        state,
        lease: Lease { start_ms: plan.lease_start_ms, end_ms: plan.lease_end_ms },
        cores: before.and_then(|b| b.cores),
        hosts: plan
            .instances
            .iter()
            .map(|i| HostedInstance {
                service: i.service.clone(),
                workers: i.workers,
                ready: settled || was_ready(&i.service),
                failed: None,
            })
            .collect(),
    })
}

/// A ready node that hosts `hosts`, leased a long time ago.
pub(crate) fn node(id: &str, flavor: &Flavor, hosts: &[(&str, u32)]) -> FleetNode {
    FleetNode {
        node: id.into(),
        flavor: flavor.name.clone(),
        state: FleetState::Ready,
        lease: Terms::of(flavor).start(0),
        cores: None,
        hosts: hosts
            .iter()
            .map(|(service, workers)| HostedInstance {
                service: (*service).into(),
                workers: *workers,
                ready: true,
                failed: None,
            })
            .collect(),
    }
}
