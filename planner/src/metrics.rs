//! Metrics of the planner; labels are bounded by configured services and flavors.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use runtime::SharedRegistry;
use runtime::metrics::{latency_histogram, with_registry};
use std::sync::atomic::AtomicU64;

/// Label `service`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceLabel {
    /// Prediction service.
    pub service: String,
}

/// Label `flavor`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct FlavorLabel {
    /// Flavor.
    pub flavor: String,
}

/// Label `action`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ActionLabel {
    /// `start`, `keep` (its share changes), `renew`, `lapse`, `stop`.
    pub action: String,
}

type Amount = Gauge<f64, AtomicU64>;

/// All metrics.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Plans published.
    pub plans: Counter,
    /// 1 while this planner is the active one.
    pub leads: Gauge,
    /// The newest epoch that it led with.
    pub epoch: Gauge,
    /// Plans and heartbeats that could not be published.
    pub publish_errors: Counter,
    /// Time of a decision.
    pub plan_seconds: Histogram,
    /// Changes of nodes by what is done with them.
    pub changes: Family<ActionLabel, Counter>,
    /// Price of the fleet.
    pub cost_usd_per_hour: Amount,
    /// Paid and committed so far.
    pub cost_usd: Amount,
    /// The same of a constant fleet for the peak.
    pub static_peak_usd: Amount,
    /// Demand that was planned for.
    pub demand_rps: Family<ServiceLabel, Amount>,
    /// Capacity that the plan counts on.
    pub capacity_rps: Family<ServiceLabel, Amount>,
    /// Capacity of the instances that are ready.
    pub ready_instances: Family<ServiceLabel, Gauge>,
    /// Instances planned.
    pub planned_instances: Family<ServiceLabel, Gauge>,
    /// Demand that the plan cannot carry.
    pub shortfall_rps: Family<ServiceLabel, Amount>,
    /// Requests that came while no instance of their service was ready: they wait for a cold start, and mostly miss.
    pub cold_start_requests: Family<ServiceLabel, Counter>,
    /// Nodes by flavor.
    pub nodes: Family<FlavorLabel, Gauge>,
    /// Nodes that were lost.
    pub nodes_lost: Counter,
    /// From order to ready.
    pub setup_seconds: Histogram,
    /// Orders and stops that the provider refused.
    pub provider_errors: Counter,
}

/// Buckets for set-up times: 0.5 s to 10 min.
const SETUP_SECONDS: [f64; 11] = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 45.0, 90.0, 180.0, 300.0, 600.0];

impl Metrics {
    /// Registers all metrics as `barista_planner_…`.
    pub fn register(registry: &SharedRegistry) -> Self {
        let m = Metrics {
            plans: Counter::default(),
            leads: Gauge::default(),
            epoch: Gauge::default(),
            publish_errors: Counter::default(),
            plan_seconds: latency_histogram(),
            changes: Family::default(),
            cost_usd_per_hour: Gauge::default(),
            cost_usd: Gauge::default(),
            static_peak_usd: Gauge::default(),
            demand_rps: Family::default(),
            capacity_rps: Family::default(),
            ready_instances: Family::default(),
            planned_instances: Family::default(),
            shortfall_rps: Family::default(),
            cold_start_requests: Family::default(),
            nodes: Family::default(),
            nodes_lost: Counter::default(),
            setup_seconds: Histogram::new(SETUP_SECONDS),
            provider_errors: Counter::default(),
        };
        with_registry(registry, |r| {
            r.register("barista_planner_plans", "plans published", m.plans.clone());
            r.register("barista_planner_leads", "1 while this planner is the active one", m.leads.clone());
            r.register("barista_planner_epoch", "newest epoch that it led with", m.epoch.clone());
            r.register(
                "barista_planner_publish_errors",
                "plans and heartbeats that could not be published",
                m.publish_errors.clone(),
            );
            r.register("barista_planner_plan_seconds", "time of a decision", m.plan_seconds.clone());
            r.register("barista_planner_changes", "changes of nodes by action", m.changes.clone());
            r.register("barista_planner_cost_usd_per_hour", "price of the fleet", m.cost_usd_per_hour.clone());
            r.register("barista_planner_cost_usd", "paid and committed so far", m.cost_usd.clone());
            r.register(
                "barista_planner_static_peak_usd",
                "cost of a constant fleet for the peak",
                m.static_peak_usd.clone(),
            );
            r.register("barista_planner_demand_rps", "demand planned for", m.demand_rps.clone());
            r.register("barista_planner_capacity_rps", "capacity planned", m.capacity_rps.clone());
            r.register("barista_planner_ready_instances", "instances that serve", m.ready_instances.clone());
            r.register("barista_planner_planned_instances", "instances planned", m.planned_instances.clone());
            r.register("barista_planner_shortfall_rps", "demand that the plan cannot carry", m.shortfall_rps.clone());
            r.register(
                "barista_planner_cold_start_requests",
                "requests that came while no instance was ready",
                m.cold_start_requests.clone(),
            );
            r.register("barista_planner_nodes", "nodes by flavor", m.nodes.clone());
            r.register("barista_planner_nodes_lost", "nodes that were lost", m.nodes_lost.clone());
            r.register("barista_planner_setup_seconds", "from order to ready", m.setup_seconds.clone());
            r.register("barista_planner_provider_errors", "orders and stops refused", m.provider_errors.clone());
        });
        m
    }
}
