//! `barista_gateway_*`: names, labels and help of the gateway's metrics. Labels are bounded: protocol, status, model.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use runtime::SharedRegistry;
use runtime::metrics::{latency_histogram, with_registry};

/// Protocol of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ProtocolLabel {
    /// `http` or `grpc`.
    pub(crate) protocol: &'static str,
}

/// A finished request for inference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct InferLabel {
    pub(crate) protocol: &'static str,
    /// HTTP status, also of gRPC requests: one scale for both.
    pub(crate) status: u16,
}

/// All of them; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) inferences: Family<InferLabel, Counter>,
    pub(crate) in_flight: Gauge,
    pub(crate) in_flight_bytes: Gauge,
    pub(crate) connections: Family<ProtocolLabel, Gauge>,
    pub(crate) seconds: Family<ProtocolLabel, Histogram, fn() -> Histogram>,
}

impl Metrics {
    /// Registers them.
    pub(crate) fn register(registry: &SharedRegistry) -> Self {
        let metrics = Metrics {
            inferences: Family::default(),
            in_flight: Gauge::default(),
            in_flight_bytes: Gauge::default(),
            connections: Family::default(),
            seconds: Family::new_with_constructor(latency_histogram as fn() -> Histogram),
        };
        let m = metrics.clone();
        with_registry(registry, |registry| {
            let registry = registry.sub_registry_with_prefix("barista_gateway");
            registry.register("inferences", "Requests for inference that are done with, by status", m.inferences);
            registry.register("in_flight", "Requests for inference that are worked on", m.in_flight);
            registry.register("in_flight_bytes", "Bytes that their bodies hold, or have declared", m.in_flight_bytes);
            registry.register("connections", "Open connections", m.connections);
            registry.register("seconds", "From the head of a request for inference to its answer", m.seconds);
        });
        metrics
    }
}
