//! Service times of an instance, from the profile of its model.

use super::random::Random;
use executor::queue::ServiceTime;
use schemas::profile::Profile;

/// Draws of the service time's spread.
const DRAWS: usize = 1024;

/// How long batches take on a machine, and how long its plan believes they do.
#[derive(Debug, Clone)]
pub(super) struct Timing {
    /// Mean time of a batch by size; index 0 is unused.
    pub(super) mean_s: Vec<f64>,
    /// Multipliers to draw from.
    spread: Vec<f64>,
    /// What the plan says of a full batch, which knows nothing of a profile's error.
    pub(super) planned: ServiceTime,
}

impl Timing {
    /// For so many workers of a machine; `speed` is that of its flavor, `error` how much slower it is than it shall be.
    ///
    /// Workers beyond those that were measured are cores of their own on a CPU; a GPU has no more to give, and each takes
    /// longer.
    pub(super) fn new(profile: &Profile, host: (u32, u32), speed: f64, error: f64, random: &mut Random) -> Self {
        let (workers, max_batch) = (host.0, host.1.max(1));
        // The measurement with as many workers, else fewer, else the fewest: as the planner rates it.
        let counts = || profile.points.iter().map(|p| p.workers);
        let nearest = counts().filter(|w| *w <= workers).max().or_else(|| counts().min()).unwrap_or(1);
        let crowded =
            if profile.backend == "cuda" { f64::from(workers.max(nearest)) / f64::from(nearest.max(1)) } else { 1.0 };
        let slower = crowded / speed;
        let mut points: Vec<(f64, f64, f64)> = profile
            .points
            .iter()
            .filter(|p| p.workers == nearest)
            .map(|p| {
                (
                    f64::from(p.batch),
                    f64::from(p.workers * p.batch) / p.rps * slower,
                    (p.p95_ms / p.p50_ms).ln() / 1.645,
                )
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let at = |batch: f64| -> f64 {
            let above = points.iter().position(|p| p.0 >= batch).unwrap_or(points.len() - 1);
            let (x1, y1, _) = points[above];
            match above.checked_sub(1).map(|i| points[i]) {
                Some((x0, y0, _)) if x1 > x0 => y0 + (y1 - y0) * (batch - x0) / (x1 - x0),
                // Below the smallest measured batch: a smaller batch takes no less.
                _ => y1,
            }
        };
        let believed: Vec<f64> = (0..=max_batch).map(|b| at(f64::from(b.max(1)))).collect();
        let sigma = points.iter().map(|p| p.2).fold(0.0, f64::max);
        let mut spread: Vec<f64> = (0..DRAWS).map(|_| (sigma * random.normal()).exp()).collect();
        let mean = spread.iter().sum::<f64>() / DRAWS as f64;
        spread.iter_mut().for_each(|m| *m /= mean);
        let p95 = (1.645 * sigma - sigma * sigma / 2.0).exp();
        let planned = ServiceTime::planned(believed[max_batch as usize] * p95 * 1000.0, max_batch);
        let mean_s: Vec<f64> = believed.iter().map(|m| m * (1.0 + error)).collect();
        Timing { mean_s, spread, planned }
    }

    /// Time of one batch.
    pub(super) fn draw_s(&self, rows: usize, random: &mut Random) -> f64 {
        self.mean_s[rows.min(self.mean_s.len() - 1)] * self.spread[random.bits() as usize % DRAWS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::profile::ProfilePoint;

    fn profile(backend: &str) -> Profile {
        let point = |batch: u32, p50_ms: f64| ProfilePoint {
            workers: 1,
            batch,
            p50_ms,
            p95_ms: p50_ms * 1.2,
            p99_ms: p50_ms * 1.3,
            rps: f64::from(batch) * 1000.0 / p50_ms,
        };
        Profile {
            model: "m".into(),
            sha256: String::new(),
            backend: backend.into(),
            host: "h".into(),
            load_ms: 1.0,
            memory_mib: 1.0,
            points: vec![point(1, 10.0), point(4, 25.0)],
            estimated: false,
            distributions: Vec::new(),
        }
    }

    #[test]
    fn service_times_have_the_profiles_throughput() {
        let timing = Timing::new(&profile("tract"), (2, 4), 0.5, 0.0, &mut Random::new(1, "t"));
        let expected = [0.02, 0.02, 0.03, 0.04, 0.05];
        assert!(timing.mean_s.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{:?}", timing.mean_s);
        let mean = timing.spread.iter().sum::<f64>() / timing.spread.len() as f64;
        let late =
            timing.spread.iter().filter(|m| **m * 1000.0 * timing.mean_s[4] > timing.planned.batch_p95_ms).count();
        assert!((mean - 1.0).abs() < 1e-9 && (30..75).contains(&late), "{mean} {late}");
    }

    #[test]
    fn an_error_slows_the_machine_and_not_the_plan_and_a_gpu_is_shared() {
        let of = |backend, workers, error| {
            Timing::new(&profile(backend), (workers, 4), 1.0, error, &mut Random::new(1, "t"))
        };
        let (sound, slow) = (of("tract", 1, 0.0), of("tract", 1, 0.5));
        assert_eq!(slow.planned, sound.planned);
        assert!((slow.mean_s[4] / sound.mean_s[4] - 1.5).abs() < 1e-12);
        assert_eq!(of("tract", 3, 0.0).mean_s, sound.mean_s);
        assert!((of("cuda", 3, 0.0).mean_s[4] / sound.mean_s[4] - 3.0).abs() < 1e-12);
    }
}
