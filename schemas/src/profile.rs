//! The profile of a model: what `barista profile` writes and the planner reads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Latency and throughput of one model on one host and backend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Profile {
    /// File name of the model.
    pub model: String,
    /// SHA-256 of the file, hexadecimal.
    pub sha256: String,
    /// Backend: `tract`, `cuda`.
    pub backend: String,
    /// Host that it was measured on.
    pub host: String,
    /// From opening the file to the first answer.
    pub load_ms: f64,
    /// Resident memory that one instance added.
    pub memory_mib: f64,
    /// One point for each combination of workers and batch.
    pub points: Vec<ProfilePoint>,
    /// True where nothing was measured: the points are computed from a device's published figures, with the slow end of a
    /// wide range as high quantiles. The first measurement under load takes their place.
    #[serde(default, skip_serializing_if = "is_false")]
    pub estimated: bool,
    /// How the times of each point are distributed; absent in profiles of older versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distributions: Vec<LatencyDistribution>,
}

fn is_false(value: &bool) -> bool {
    !value
}

/// One measured combination.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ProfilePoint {
    /// Workers running at once.
    pub workers: u32,
    /// Requests in a batch.
    pub batch: u32,
    /// Median time of one batch.
    pub p50_ms: f64,
    /// 95th percentile.
    pub p95_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Requests per second of all workers together.
    pub rps: f64,
}

/// Distribution of the time of one batch at one point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyDistribution {
    /// Workers running at once.
    pub workers: u32,
    /// Requests in a batch.
    pub batch: u32,
    /// Batches measured.
    pub samples: u64,
    /// Measured quantiles, ascending.
    pub quantiles: Vec<LatencyQuantile>,
    /// Interval that holds the true 95th percentile with a confidence of 95 %, from the order of the samples alone: it
    /// assumes no distribution. Both ends are the extremes of the samples where there are too few to tell.
    pub p95_interval_ms: [f64; 2],
    /// Families that were fitted, the nearest to the samples first.
    pub fits: Vec<LatencyFit>,
    /// The 95th percentile to plan with when a distribution is asked for, as Barista (IC2E 2019) does: that of the
    /// nearest family if the samples do not contradict it, else the measured one.
    pub planned_p95_ms: f64,
    /// Where `planned_p95_ms` is from: a family, or `measured`.
    pub planned_by: String,
}

/// One quantile of latency.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyQuantile {
    /// Probability level, between 0 and 1.
    pub level: f64,
    /// Latency.
    pub ms: f64,
}

/// A family of distributions with its parameters fitted to the samples of one point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LatencyFit {
    /// `normal`, `log-normal`, `gamma`, `weibull`, `log-logistic` or `shifted-exponential`.
    pub family: String,
    /// In the family's usual order: mean and deviation (of the logarithm), shape and scale, or shift and mean excess.
    pub parameters: Vec<f64>,
    /// Kolmogorov–Smirnov statistic: largest distance between the fitted and the measured distribution function.
    pub ks: f64,
    /// 95th percentile of the fitted distribution.
    pub p95_ms: f64,
}

impl Profile {
    /// The 95th percentile that the distribution fitted to this point gives; absent in profiles of older versions.
    pub fn fitted_p95_ms(&self, workers: u32, batch: u32) -> Option<f64> {
        let point = self.distributions.iter().find(|d| d.workers == workers && d.batch == batch)?;
        Some(point.planned_p95_ms)
    }

    /// The point with exactly these workers and batch.
    pub fn point(&self, workers: u32, batch: u32) -> Option<&ProfilePoint> {
        self.points.iter().find(|p| p.workers == workers && p.batch == batch)
    }

    /// Problems that make a profile unusable, one sentence each; empty when it is sound.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.points.is_empty() {
            problems.push("points: empty, run `barista profile` again".to_owned());
        }
        for (i, p) in self.points.iter().enumerate() {
            if p.workers == 0 || p.batch == 0 {
                problems.push(format!("points[{i}]: workers and batch must be at least 1"));
            }
            let ordered = p.p50_ms > 0.0 && p.p50_ms <= p.p95_ms && p.p95_ms <= p.p99_ms && p.p99_ms.is_finite();
            if !ordered {
                problems.push(format!("points[{i}]: p50, p95, p99 must be positive and ascending"));
            }
            if !(p.rps > 0.0 && p.rps.is_finite()) {
                problems.push(format!("points[{i}]: rps must be positive"));
            }
        }
        problems
    }
}
