//! `barista_executor_*`: names, labels and help of the executor's metrics.
//!
//! Labels are bounded by the configuration: service, backend, reason (the fixed set), state, direction.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use runtime::SharedRegistry;
use runtime::metrics::{BATCH_SIZES, latency_histogram, with_registry};
use std::sync::atomic::AtomicU64;

/// A service of the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceLabel {
    /// Prediction service.
    pub service: String,
}

/// A rejection.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// Prediction service.
    pub service: String,
    /// Why.
    pub reason: &'static str,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AnswerLabel {
    /// Prediction service.
    pub service: String,
    /// `true` when it came before its deadline.
    pub in_time: &'static str,
}

/// Scaling inside the node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ScalingLabel {
    /// Prediction service.
    pub service: String,
    /// `horizontal` or `vertical`.
    pub kind: &'static str,
    /// `up` or `down`.
    pub direction: &'static str,
}

/// Instances in a state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// Prediction service.
    pub service: String,
    /// Name of the state.
    pub state: &'static str,
}

type Seconds = Family<ServiceLabel, Histogram, fn() -> Histogram>;

/// All of them; cheap to clone.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// Requests taken from Kafka.
    pub requests: Family<ServiceLabel, Counter>,
    /// Requests taken at the node's door.
    pub direct_requests: Family<ServiceLabel, Counter>,
    /// Results written.
    pub answered: Family<AnswerLabel, Counter>,
    /// Rejections written.
    pub rejected: Family<ReasonLabel, Counter>,
    /// Results of background work written.
    pub background: Family<ServiceLabel, Counter>,
    /// Workers lent to background work at the moment.
    pub background_workers: Family<ServiceLabel, Gauge>,
    /// Writes that had to be repeated.
    pub retries: Counter,
    /// Requests that wait.
    pub queue_depth: Family<ServiceLabel, Gauge>,
    /// Age of the oldest waiting request.
    pub queue_age: Family<ServiceLabel, Gauge<f64, AtomicU64>>,
    /// From receipt to the start of inference.
    pub queue_seconds: Seconds,
    /// Time of a batch's inference.
    pub inference_seconds: Seconds,
    /// From record timestamp to the result's delivery report.
    pub latency_seconds: Seconds,
    /// Requests in a batch.
    pub batch_size: Seconds,
    /// Workers at the moment.
    pub workers: Family<ServiceLabel, Gauge>,
    /// Workers that the plan gave.
    pub planned_workers: Family<ServiceLabel, Gauge>,
    /// Instances by state.
    pub instances: Family<StateLabel, Gauge>,
    /// Time from order to ready.
    pub load_seconds: Seconds,
    /// Models that could not be loaded, or broke.
    pub failures: Family<ServiceLabel, Counter>,
    /// Scaling steps.
    pub scaling: Family<ScalingLabel, Counter>,
    /// Requests given back to the group when partitions moved or a drain ran out of time.
    pub given_back: Family<ServiceLabel, Counter>,
    /// Control records that were ignored because a newer one is followed.
    pub stale_plans: Counter,
}

fn batch_histogram() -> Histogram {
    Histogram::new(BATCH_SIZES)
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &SharedRegistry) -> Self {
        let seconds = || Family::new_with_constructor(latency_histogram as fn() -> Histogram);
        let metrics = Metrics {
            requests: Family::default(),
            direct_requests: Family::default(),
            answered: Family::default(),
            rejected: Family::default(),
            background: Family::default(),
            background_workers: Family::default(),
            retries: Counter::default(),
            queue_depth: Family::default(),
            queue_age: Family::default(),
            queue_seconds: seconds(),
            inference_seconds: seconds(),
            latency_seconds: seconds(),
            batch_size: Family::new_with_constructor(batch_histogram as fn() -> Histogram),
            workers: Family::default(),
            planned_workers: Family::default(),
            instances: Family::default(),
            load_seconds: seconds(),
            failures: Family::default(),
            scaling: Family::default(),
            given_back: Family::default(),
            stale_plans: Counter::default(),
        };
        metrics.register_in(registry);
        metrics
    }

    fn register_in(&self, registry: &SharedRegistry) {
        with_registry(registry, |registry| {
            let registry = registry.sub_registry_with_prefix("barista_executor");
            let m = self.clone();
            registry.register("requests", "Requests taken from Kafka", m.requests);
            registry.register("direct_requests", "Requests taken straight from a gateway", m.direct_requests);
            registry.register("answered", "Results written, by whether they came before their deadline", m.answered);
            registry.register("rejected", "Requests rejected, by reason", m.rejected);
            registry.register("background", "Results of background work written", m.background);
            registry.register("background_workers", "Workers lent to background work", m.background_workers);
            registry.register("write_retries", "Results or rejections that had to be written again", m.retries);
            registry.register("queue_depth", "Requests that wait", m.queue_depth);
            registry.register("queue_age_seconds", "Age of the oldest waiting request", m.queue_age);
            registry.register("queue_seconds", "From receipt to the start of inference", m.queue_seconds);
            registry.register("inference_seconds", "Time of a batch's inference", m.inference_seconds);
            registry.register(
                "latency_seconds",
                "From record timestamp to the result's delivery report",
                m.latency_seconds,
            );
            registry.register("batch_size", "Requests in a batch", m.batch_size);
            registry.register("workers", "Workers at the moment", m.workers);
            registry.register("planned_workers", "Workers that the plan gave", m.planned_workers);
            registry.register("instances", "Instances by state", m.instances);
            registry.register("load_seconds", "Time from order to ready", m.load_seconds);
            registry.register("instance_failures", "Models that could not be loaded, or broke", m.failures);
            registry.register("scaling", "Scaling steps inside the node", m.scaling);
            registry.register("given_back", "Accepted requests that were given back to the group", m.given_back);
            registry.register("stale_plans", "Control records that were older than the one followed", m.stale_plans);
        });
    }
}
