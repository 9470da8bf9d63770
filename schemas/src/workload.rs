//! `workload.observed` and `workload.forecast`: the load of each prediction service.

use crate::EpochMs;
use crate::message::Message;
use crate::tag::schema_tag;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

schema_tag!(/// `workload.observed.v1`
    WorkloadObservedTag = "workload.observed.v1");
schema_tag!(/// `workload.forecast.v1`
    WorkloadForecastTag = "workload.forecast.v1");

/// Arrivals of one service in one interval, by append time, closed by the wall clock; zeros are published too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadObserved {
    /// Always `workload.observed.v1`.
    pub schema: WorkloadObservedTag,
    /// Prediction service.
    pub service: String,
    /// Start of the interval, inclusive; a multiple of `interval_ms`.
    pub start_ms: EpochMs,
    /// Length of the interval.
    pub interval_ms: u64,
    /// Arrivals in all: over Kafka and straight at gateways.
    pub arrivals: u64,
    /// Those that came straight to a gateway, from `executor.status`.
    #[serde(default)]
    pub direct_arrivals: u64,
    /// True for history that no application sent (a demo's warm-up).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub simulated: bool,
}

impl WorkloadObserved {
    /// Mean arrival rate over the interval, requests per second.
    pub fn rate_rps(&self) -> f64 {
        self.arrivals as f64 * 1000.0 / self.interval_ms.max(1) as f64
    }
}

impl Message for WorkloadObserved {
    const SCHEMA: &'static str = WorkloadObservedTag::NAME;

    fn key(&self) -> String {
        self.service.clone()
    }
}

/// Forecast of one service's request rate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WorkloadForecast {
    /// Always `workload.forecast.v1`.
    pub schema: WorkloadForecastTag,
    /// Prediction service.
    pub service: String,
    /// End of the last interval that the forecast knows.
    pub origin_ms: EpochMs,
    /// Length of a step.
    pub interval_ms: u64,
    /// Probability levels of every `quantiles_rps` below, ascending.
    pub levels: Vec<f64>,
    /// One entry a step, ascending.
    pub steps: Vec<ForecastStep>,
    /// Mean rate in the last observed interval, requests per second.
    pub last_observed_rps: f64,
    /// Weight of each expert at the first step, summing to 1.
    pub weights: BTreeMap<String, f64>,
    /// Recent one-step errors.
    pub error: ForecastError,
    /// Samples seen so far.
    pub samples: u64,
    /// True while the series is too short for its seasonal experts.
    pub cold_start: bool,
}

/// Forecast for one step ahead.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastStep {
    /// Start of the interval forecast.
    pub start_ms: EpochMs,
    /// Expected rate, requests per second.
    pub mean_rps: f64,
    /// Quantiles of the rate at `levels`, requests per second, never crossing.
    pub quantiles_rps: Vec<f64>,
}

/// Recent error of the one-step forecast.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ForecastError {
    /// Mean absolute error, requests per second; absent before the first comparison.
    pub mae_rps: Option<f64>,
    /// MAE over that of the seasonal naive forecast on the same samples.
    pub mase: Option<f64>,
    /// Share of samples at or below the quantile, for each of `levels`.
    pub coverage: Vec<f64>,
}

impl Message for WorkloadForecast {
    const SCHEMA: &'static str = WorkloadForecastTag::NAME;

    fn key(&self) -> String {
        self.service.clone()
    }
}

impl WorkloadForecast {
    /// The rate's quantile at `level` (one of `levels`, else the next higher) for the steps that overlap
    /// `[from_ms, to_ms)`: their maximum. `None` if no step or no level reaches that far.
    pub fn max_quantile_rps(&self, level: f64, from_ms: EpochMs, to_ms: EpochMs) -> Option<f64> {
        let index = self.levels.iter().position(|&l| l >= level - 1e-9)?;
        self.steps
            .iter()
            .filter(|step| step.start_ms < to_ms && step.start_ms + self.interval_ms as i64 > from_ms)
            .filter_map(|step| step.quantiles_rps.get(index).copied())
            .fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |b| b.max(rate))))
    }
}
