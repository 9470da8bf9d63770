//! Vertical scaling inside a node: workers of an instance up at once, down step by step. Pure.
//!
//! Purpose: the plan gives an instance workers for the forecast; this loop lends it free worker permits of the node
//! when the load is above that, and takes them back when it has calmed down.
//!
//! Invariants:
//! - Never fewer workers than the plan gave, never more than the free permits allow.
//! - Up in one jump to what the load needs, as soon as p95 reaches `up_ratio` of the SLO with busy workers, or the queue
//!   predicts it.
//! - Down by one worker only after `hold_ms` without a sign of strain, and only if those that stay can carry the load.
//! - Without load, or with constant low load, nothing changes.
//!
//! - Under strain with nothing free for [`CEILING_MS`], it says so: only a new plan can help then.
//!
//! Left out: who starts threads (`pool`), and telling the planner (`node`).

use schemas::EpochMs;

/// When to scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Thresholds {
    /// Share of the SLO at which p95 is too near.
    pub up_ratio: f64,
    /// Share of the SLO below which p95 is comfortable.
    pub down_ratio: f64,
    /// How long it must be comfortable before a worker goes, milliseconds.
    pub hold_ms: i64,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds { up_ratio: 0.9, down_ratio: 0.7, hold_ms: 60_000 }
    }
}

/// Utilisation above which a queue forms; workers are counted so that they stay below it.
const TARGET_UTILISATION: f64 = 0.8;
/// Utilisation below which more workers would not help, whatever p95 says.
const BUSY_UTILISATION: f64 = 0.5;

/// How long an instance is under strain with no permit free before the planner is asked, milliseconds.
pub const CEILING_MS: i64 = 10_000;

/// What is known of an instance at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample {
    /// Now.
    pub now_ms: EpochMs,
    /// Latency objective.
    pub slo_ms: f64,
    /// 95th percentile of latency in the last seconds; absent with too few answers to tell.
    pub p95_ms: Option<f64>,
    /// Rows a second that arrived in the last seconds.
    pub rows_per_s: f64,
    /// Work that waits: rows × time of a row, for one worker, milliseconds.
    pub backlog_ms: f64,
    /// Mean time of a row, milliseconds.
    pub per_row_ms: f64,
    /// 95th percentile of a batch's time, milliseconds.
    pub batch_p95_ms: f64,
    /// Share of the workers' time that they were running, 0 to 1.
    pub utilisation: f64,
    /// Workers at the moment.
    pub workers: u32,
    /// Workers that the plan gave.
    pub planned: u32,
    /// Worker permits of the node that nobody has.
    pub free: u32,
}

/// A change of the number of workers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// New number of workers.
    pub to: u32,
    /// One sentence for a person.
    pub reason: String,
}

/// The loop's memory of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vertical {
    calm_since_ms: Option<EpochMs>,
    /// Under strain with nothing to borrow, and why.
    ceiling: Option<Ceiling>,
}

/// Where only more nodes help.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ceiling {
    /// Since when.
    pub since_ms: EpochMs,
    /// The strain, one clause for a person.
    pub strain: String,
}

impl Vertical {
    /// Looks at a sample; the change to make, if any.
    pub fn observe(&mut self, thresholds: &Thresholds, sample: &Sample) -> Option<Step> {
        let strain = strain(thresholds, sample);
        self.ceiling = strain.clone().filter(|_| sample.free == 0 && sample.workers >= sample.planned).map(|strain| {
            let since_ms = self.ceiling.as_ref().map_or(sample.now_ms, |ceiling| ceiling.since_ms);
            Ceiling { since_ms, strain }
        });
        if sample.workers < sample.planned {
            self.calm_since_ms = None;
            return Some(Step { to: sample.planned, reason: format!("the plan gives {} workers", sample.planned) });
        }
        if let Some(strain) = strain {
            self.calm_since_ms = None;
            let to = workers_needed(sample).max(sample.workers + 1).min(sample.workers + sample.free);
            return (to > sample.workers).then_some(Step { to, reason: strain });
        }
        if !calm(thresholds, sample) {
            self.calm_since_ms = None;
            return None;
        }
        let since_ms = *self.calm_since_ms.get_or_insert(sample.now_ms);
        if sample.workers <= sample.planned || sample.now_ms - since_ms < thresholds.hold_ms {
            return None;
        }
        // The next worker goes only after another quiet period.
        self.calm_since_ms = Some(sample.now_ms);
        let seconds = thresholds.hold_ms as f64 / 1e3;
        let reason = format!("p95 below {:.0} % of the SLO for {seconds:.0} s", thresholds.down_ratio * 100.0);
        Some(Step { to: sample.workers - 1, reason })
    }
}

impl Vertical {
    /// The ceiling, once it has been reached for [`CEILING_MS`].
    pub fn at_ceiling(&self, now_ms: EpochMs) -> Option<&Ceiling> {
        self.ceiling.as_ref().filter(|ceiling| now_ms - ceiling.since_ms >= CEILING_MS)
    }
}

/// Why the instance needs more workers, if it does.
fn strain(thresholds: &Thresholds, sample: &Sample) -> Option<String> {
    let limit_ms = thresholds.up_ratio * sample.slo_ms;
    let queued_ms = sample.backlog_ms / f64::from(sample.workers.max(1)) + sample.batch_p95_ms;
    if sample.backlog_ms > 0.0 && queued_ms >= limit_ms {
        return Some(format!("the queue predicts {queued_ms:.0} ms against an SLO of {:.0} ms", sample.slo_ms));
    }
    let p95_ms = sample.p95_ms?;
    (p95_ms >= limit_ms && sample.utilisation >= BUSY_UTILISATION).then(|| {
        let busy = sample.utilisation * 100.0;
        format!("p95 {p95_ms:.0} ms nears the SLO of {:.0} ms with workers {busy:.0} % busy", sample.slo_ms)
    })
}

fn calm(thresholds: &Thresholds, sample: &Sample) -> bool {
    let limit_ms = thresholds.down_ratio * sample.slo_ms;
    let fewer = f64::from(sample.workers.saturating_sub(1).max(1));
    let carried = sample.utilisation * f64::from(sample.workers) / fewer < TARGET_UTILISATION;
    sample.p95_ms.is_none_or(|p95| p95 < limit_ms) && sample.backlog_ms / fewer < limit_ms && carried
}

/// Workers that carry the arrivals and work the backlog off within the SLO.
fn workers_needed(sample: &Sample) -> u32 {
    let carrying = sample.rows_per_s * sample.per_row_ms / 1e3 / TARGET_UTILISATION;
    let left_ms = (0.7 * sample.slo_ms - sample.batch_p95_ms).max(0.1 * sample.slo_ms);
    let clearing = if left_ms > 0.0 { sample.backlog_ms / left_ms } else { 0.0 };
    // `as` saturates, so an absurd sample asks for everything that is free and no more.
    carrying.max(clearing).ceil() as u32
}

/// Workers after borrowed ones are called back so that all fit into `permits`; the largest borrower gives first.
/// Input and output: (planned, workers) and workers of each instance. What the plan gave is never touched.
pub fn call_back(permits: u32, instances: &[(u32, u32)]) -> Vec<u32> {
    let mut workers: Vec<u32> = instances.iter().map(|(_, workers)| *workers).collect();
    loop {
        let total: u64 = workers.iter().map(|w| u64::from(*w)).sum();
        if total <= u64::from(permits) {
            return workers;
        }
        let borrowed = |i: &usize| workers[*i].saturating_sub(instances[*i].0);
        // The first of equals, so that the order of the input decides and nothing else.
        let Some(largest) = (0..workers.len()).rev().max_by_key(borrowed).filter(|i| borrowed(i) > 0) else {
            return workers;
        };
        workers[largest] -= 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn quiet() -> Sample {
        Sample {
            now_ms: 0,
            slo_ms: 100.0,
            p95_ms: Some(20.0),
            rows_per_s: 10.0,
            backlog_ms: 0.0,
            per_row_ms: 5.0,
            batch_p95_ms: 6.0,
            utilisation: 0.05,
            workers: 1,
            planned: 1,
            free: 3,
        }
    }

    #[test]
    fn constant_low_load_changes_nothing() {
        let mut loop_ = Vertical::default();
        for s in 0..1000 {
            assert_eq!(loop_.observe(&Thresholds::default(), &Sample { now_ms: s * 1000, ..quiet() }), None);
        }
    }

    #[test]
    fn a_burst_is_met_in_one_jump() {
        let burst = Sample { rows_per_s: 400.0, p95_ms: Some(95.0), utilisation: 1.0, ..quiet() };
        let step = Vertical::default().observe(&Thresholds::default(), &burst).unwrap();
        assert_eq!(step.to, 3, "400 rows/s × 5 ms / 0.8 = 2.5 workers");
    }

    #[test]
    fn a_queue_is_answered_before_p95_shows_it() {
        let waiting = Sample { backlog_ms: 160.0, p95_ms: None, ..quiet() };
        let step = Vertical::default().observe(&Thresholds::default(), &waiting).unwrap();
        assert!(step.to >= 3 && step.reason.contains("queue"), "{step:?}");
    }

    #[test]
    fn latency_from_elsewhere_does_not_scale() {
        let elsewhere = Sample { p95_ms: Some(400.0), utilisation: 0.1, ..quiet() };
        assert_eq!(Vertical::default().observe(&Thresholds::default(), &elsewhere), None);
    }

    #[test]
    fn borrowed_workers_go_back_one_by_one() {
        let mut loop_ = Vertical::default();
        let mut workers = 3;
        let mut steps = Vec::new();
        for s in 0..200 {
            let sample = Sample { now_ms: s * 1000, workers, ..quiet() };
            if let Some(step) = loop_.observe(&Thresholds::default(), &sample) {
                steps.push((s, step.to));
                workers = step.to;
            }
        }
        assert_eq!(steps, [(60, 2), (120, 1)]);
    }

    #[test]
    fn the_planner_is_asked_after_ten_seconds_without_a_core_to_borrow() {
        let mut loop_ = Vertical::default();
        let strained = |now_ms, free| Sample { now_ms, free, p95_ms: Some(99.0), utilisation: 1.0, ..quiet() };
        for s in 0..10 {
            assert_eq!(loop_.observe(&Thresholds::default(), &strained(s * 1000, 0)), None);
            assert_eq!(loop_.at_ceiling(s * 1000), None, "at {s} s");
        }
        loop_.observe(&Thresholds::default(), &strained(10_000, 0));
        let ceiling = loop_.at_ceiling(10_000).unwrap();
        assert!(ceiling.since_ms == 0 && ceiling.strain.contains("p95 99 ms"), "{ceiling:?}");
        assert!(loop_.observe(&Thresholds::default(), &strained(11_000, 1)).is_some(), "a core is free again");
        assert_eq!(loop_.at_ceiling(30_000), None);
        loop_.observe(&Thresholds::default(), &strained(12_000, 0));
        loop_.observe(&Thresholds::default(), &Sample { now_ms: 21_000, free: 0, ..quiet() });
        loop_.observe(&Thresholds::default(), &strained(22_000, 0));
        assert_eq!(loop_.at_ceiling(22_000), None, "calm in between");
    }

    #[test]
    fn strain_starts_the_quiet_period_again() {
        let mut loop_ = Vertical::default();
        for s in 0..100 {
            let p95_ms = Some(if s == 50 { 80.0 } else { 20.0 });
            let sample = Sample { now_ms: s * 1000, workers: 2, p95_ms, ..quiet() };
            assert_eq!(loop_.observe(&Thresholds::default(), &sample), None, "at {s} s");
        }
    }

    #[test]
    fn borrowers_give_back_and_the_plan_is_kept() {
        assert_eq!(call_back(4, &[(1, 3), (2, 2)]), [2, 2]);
        assert_eq!(call_back(4, &[(1, 2), (1, 4)]), [2, 2]);
        assert_eq!(call_back(2, &[(2, 2), (2, 2)]), [2, 2], "the plan may ask for more than there is");
    }

    fn sample() -> impl Strategy<Value = Sample> {
        let load = (0f64..1e6, proptest::option::of(0f64..1e5), 0f64..1e6, 0f64..1.0);
        let counts = (1u32..16, 1u32..16, 0u32..16, 0i64..1_000_000);
        (load, counts, 0.01f64..1e3, 1f64..1e4).prop_map(|(load, counts, per_row_ms, slo_ms)| Sample {
            now_ms: counts.3,
            slo_ms,
            p95_ms: load.1,
            rows_per_s: load.0,
            backlog_ms: load.2,
            per_row_ms,
            batch_p95_ms: per_row_ms * 1.5,
            utilisation: load.3,
            workers: counts.0,
            planned: counts.1,
            free: counts.2,
        })
    }

    proptest! {
        #[test]
        fn steps_stay_between_the_plan_and_what_is_free(samples in proptest::collection::vec(sample(), 1..50)) {
            let mut loop_ = Vertical::default();
            for s in samples {
                if let Some(step) = loop_.observe(&Thresholds::default(), &s) {
                    prop_assert_ne!(step.to, s.workers);
                    prop_assert!(step.to >= s.planned);
                    prop_assert!(step.to <= s.planned.max(s.workers + s.free));
                    prop_assert!(step.to + 1 >= s.workers, "down by one at most");
                    prop_assert!(!step.reason.is_empty());
                }
            }
        }

        #[test]
        fn call_back_fits_or_is_at_the_plan(permits in 0u32..20, instances in proptest::collection::vec((0u32..6, 0u32..6), 0..6)) {
            let after = call_back(permits, &instances);
            let fits = after.iter().sum::<u32>() <= permits;
            prop_assert!(fits || after.iter().zip(&instances).all(|(a, (planned, _))| a <= planned || *a == 0));
            for (a, (planned, workers)) in after.iter().zip(&instances) {
                prop_assert!(a <= workers && *a >= *planned.min(workers));
            }
        }
    }
}
