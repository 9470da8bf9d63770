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

impl Profile {
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
