//! Metrics of the forecaster, `barista_forecaster_*`.
//!
//! Names and labels are only here. The label `service` takes at most `forecaster.max_services` values.

use crate::score::RecentError;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use runtime::SharedRegistry;
use runtime::metrics::with_registry;
use std::sync::atomic::AtomicU64;

type Labels<const N: usize> = [(&'static str, String); N];
type FloatGauge = Gauge<f64, AtomicU64>;

/// Buckets in seconds for the time of one step: 5 µs to 50 ms.
const STEP_SECONDS: [f64; 13] = [5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2];

/// Handles of all metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) observations: Counter,
    ignored: Family<[(&'static str, &'static str); 1], Counter>,
    pub(crate) forecasts: Counter,
    pub(crate) forecast_failures: Counter,
    pub(crate) state_writes: Counter,
    pub(crate) state_failures: Counter,
    pub(crate) cold_starts: Counter,
    pub(crate) series: Gauge,
    pub(crate) step_seconds: Histogram,
    samples: Family<Labels<1>, Gauge>,
    mae: Family<Labels<1>, FloatGauge>,
    mase: Family<Labels<1>, FloatGauge>,
    coverage: Family<Labels<2>, FloatGauge>,
}

impl Metrics {
    /// Creates and registers all of them.
    pub fn register(registry: &SharedRegistry) -> Self {
        let metrics = Metrics {
            observations: Counter::default(),
            ignored: Family::default(),
            forecasts: Counter::default(),
            forecast_failures: Counter::default(),
            state_writes: Counter::default(),
            state_failures: Counter::default(),
            cold_starts: Counter::default(),
            series: Gauge::default(),
            step_seconds: Histogram::new(STEP_SECONDS),
            samples: Family::default(),
            mae: Family::default(),
            mase: Family::default(),
            coverage: Family::default(),
        };
        let m = metrics.clone();
        with_registry(registry, |r| {
            r.register("barista_forecaster_observations", "Intervals learned", m.observations);
            r.register("barista_forecaster_ignored", "Records of workload.observed not learned, by reason", m.ignored);
            r.register("barista_forecaster_forecasts", "Forecasts published", m.forecasts);
            r.register(
                "barista_forecaster_forecast_failures",
                "Forecasts the broker did not take",
                m.forecast_failures,
            );
            r.register("barista_forecaster_state_writes", "States written to forecaster.state", m.state_writes);
            r.register("barista_forecaster_state_failures", "States the broker did not take", m.state_failures);
            r.register("barista_forecaster_cold_starts", "Series begun without usable state", m.cold_starts);
            r.register("barista_forecaster_series", "Series in memory", m.series);
            r.register("barista_forecaster_step_seconds", "Time to learn one interval and forecast", m.step_seconds);
            r.register("barista_forecaster_samples", "Samples that a series' model stands on", m.samples);
            r.register("barista_forecaster_error_rps", "Recent mean absolute error, one step ahead", m.mae);
            r.register("barista_forecaster_error_ratio", "That error over the seasonal naive forecast's", m.mase);
            r.register(
                "barista_forecaster_coverage_ratio",
                "Recent share of samples at or below a quantile",
                m.coverage,
            );
        });
        metrics
    }

    pub(crate) fn ignore(&self, reason: &'static str) {
        self.ignored.get_or_create(&[("reason", reason)]).inc();
    }

    pub(crate) fn scored(&self, service: &str, samples: u64, levels: &[f64], error: &RecentError) {
        let label = [("service", service.to_owned())];
        self.samples.get_or_create(&label).set(i64::try_from(samples).unwrap_or(i64::MAX));
        if let Some(mae) = error.mae {
            self.mae.get_or_create(&label).set(mae);
        }
        if let Some(mase) = error.mase {
            self.mase.get_or_create(&label).set(mase);
        }
        for (level, share) in levels.iter().zip(&error.coverage) {
            let labels = [("service", service.to_owned()), ("level", level.to_string())];
            self.coverage.get_or_create(&labels).set(*share);
        }
    }

    /// A series left this process: its gauges would stand still.
    pub(crate) fn forget(&self, service: &str, levels: &[f64]) {
        let label = [("service", service.to_owned())];
        self.samples.remove(&label);
        self.mae.remove(&label);
        self.mase.remove(&label);
        for level in levels {
            self.coverage.remove(&[("service", service.to_owned()), ("level", level.to_string())]);
        }
    }
}
