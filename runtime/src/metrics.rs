//! Metrics: one registry a process, histograms with buckets chosen for the quantity.

use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::sync::{Arc, Mutex, PoisonError};

/// A registry that every service of a process registers in.
pub type SharedRegistry = Arc<Mutex<Registry>>;

/// An empty registry; names get no prefix, each crate writes `barista_<role>_…`.
pub fn new_registry() -> SharedRegistry {
    Arc::new(Mutex::new(Registry::default()))
}

/// Runs `register` on the registry.
pub fn with_registry<T>(registry: &SharedRegistry, register: impl FnOnce(&mut Registry) -> T) -> T {
    register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The registry in OpenMetrics text.
pub fn encode(registry: &SharedRegistry) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Buckets in seconds for latencies inside a machine: 0.1 ms to 10 s.
pub const LATENCY_SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Buckets in seconds for delays over a mobile network: 10 ms to 5 min.
pub const DEVICE_DELAY_SECONDS: [f64; 14] =
    [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0];

/// Buckets for batch sizes.
pub const BATCH_SIZES: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// A histogram of [`LATENCY_SECONDS`].
pub fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_SECONDS)
}
