//! Algorithm 1: what every flavor would cost a service, at its best batch under the SLO.
//!
//! Barista 2019, as far as it is known (its full text was not read, so this is a reconstruction): a worker runs
//! `n_req = floor(SLO / p95)` requests one after the other within the SLO, a request costs `price / n_req`, the
//! cheapest feasible flavor is taken. That number sets utilisation arbitrarily, since nothing in it is about
//! queueing. So `n_req` is computed and shown (`requests_per_slo`), and [`CapacityRule::Paper`] plans with it; the
//! default rule takes the measured throughput less the queueing margin of module [`crate::margin`].
//!
//! Invariants: pure; a rating never improves with a tighter SLO; more workers never carry less. Worker counts that
//! the profile does not hold are scaled linearly from the nearest one below (else above) and marked.
//! Left out: mixing backends of one service on one node, more than one GPU an instance.

use crate::margin::Waiting;
use crate::model::{CapacityRule, Flavor, Service, ServiceProfile, Settings};
use crate::spot::expected_usd_per_hour;
use schemas::allocation::FlavorOption;
use schemas::profile::{Profile, ProfilePoint};
use std::collections::{BTreeMap, BTreeSet};

/// A node of which less than this share can be used inside the SLO is of no use.
const LEAST_UTILISATION: f64 = 0.02;
/// Share of requests that may wait too long where the error budget is far overdrawn.
const CAUTIOUS_EPSILON: f64 = 0.01;
/// The backend that needs a GPU.
const CUDA: &str = "cuda";

/// What an instance with a given number of workers does at its best batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rung {
    /// Workers.
    pub workers: u32,
    /// Best batch.
    pub batch: u32,
    /// Time of one batch at the SLO's quantile, milliseconds.
    pub service_ms: f64,
    /// Waiting that the SLO leaves.
    pub waiting: Waiting,
    /// Rate when the queue never empties, requests per second.
    pub sustained_rps: f64,
    /// Rate that is carried inside the SLO, requests per second.
    pub carry_rps: f64,
    /// `floor(SLO / p95)` of one worker, in batches.
    pub requests_per_slo: u32,
    /// Worker count of the profile's point, where this one was not measured.
    pub scaled_from: Option<u32>,
}

/// A service on a flavor: one rung for each number of workers, from 1 up.
#[derive(Debug, Clone, PartialEq)]
pub struct Ladder {
    /// Backend.
    pub backend: String,
    /// GPUs that an instance takes.
    pub gpus: u32,
    /// Memory that an instance takes, MiB.
    pub memory_mib: f64,
    /// From opening the model to the first answer, milliseconds.
    pub load_ms: i64,
    /// Nothing was measured: the profile is an estimate.
    pub estimated: bool,
    /// By workers; `rungs[w - 1]` has `w`.
    pub rungs: Vec<Rung>,
}

impl Ladder {
    /// Cores that an instance with `workers` takes: GPU streams share one host core.
    pub fn cores(&self, workers: u32) -> u32 {
        if self.gpus > 0 { 1 } else { workers }
    }

    /// Most workers that fit into `cores`.
    pub fn most_workers(&self, cores: u32) -> u32 {
        let most = self.rungs.len() as u32;
        if self.gpus > 0 { if cores > 0 { most } else { 0 } } else { most.min(cores) }
    }

    /// The rung with exactly `workers`.
    pub fn rung(&self, workers: u32) -> Option<&Rung> {
        self.rungs.get((workers as usize).checked_sub(1)?)
    }

    /// Rate carried with `workers`; 0 without any.
    pub fn carry_rps(&self, workers: u32) -> f64 {
        self.rung(workers).map_or(0.0, |r| r.carry_rps)
    }

    /// Fewest workers that carry `rate_rps`, at least 1.
    pub fn workers_for(&self, rate_rps: f64) -> Option<u32> {
        self.rungs.iter().find(|r| r.carry_rps >= rate_rps - 1e-9).map(|r| r.workers)
    }

    /// The whole node for this service.
    pub fn top(&self) -> Option<&Rung> {
        self.rungs.last()
    }
}

/// Rates a service on a flavor. `Err` is the reason why it cannot run there.
pub fn rate(
    service: &Service,
    flavor: &Flavor,
    profiles: &[ServiceProfile],
    settings: &Settings,
) -> Result<Ladder, String> {
    rate_among(service, flavor, &profiles.iter().collect::<Vec<_>>(), settings, &mut Rungs::default())
}

/// Rungs of one service that were computed already: flavors of one speed share them. By the profile's address, speed,
/// workers and batch.
pub(crate) type Rungs = BTreeMap<(usize, u64, u32, u32), Option<Rung>>;

/// [`rate`], where others have sorted out which profiles may concern the service.
pub(crate) fn rate_among(
    service: &Service,
    flavor: &Flavor,
    profiles: &[&ServiceProfile],
    settings: &Settings,
    rungs: &mut Rungs,
) -> Result<Ladder, String> {
    let mut reasons = Vec::new();
    let mut best: Option<Ladder> = None;
    for profile in usable_profiles(service, flavor, profiles) {
        match ladder(service, flavor, profile, settings, rungs) {
            Ok(ladder) => {
                let carried = |l: &Ladder| l.top().map_or(0.0, |r| r.carry_rps);
                if best.as_ref().is_none_or(|b| carried(&ladder) > carried(b)) {
                    best = Some(ladder);
                }
            }
            Err(reason) => reasons.push(format!("{}: {reason}", profile.backend)),
        }
    }
    best.ok_or_else(|| {
        if reasons.is_empty() {
            let wanted = if service.backend == "auto" { "any backend" } else { &service.backend };
            format!("no profile of `{}` for {wanted}; run `barista profile`", service.name)
        } else {
            reasons.join("; ")
        }
    })
}

/// One profile for each backend that the service allows, by backend name; one measured on this flavor comes before
/// a general one, and among equals the first by content, so that the order of the inputs does not matter.
fn usable_profiles<'a>(service: &Service, flavor: &Flavor, profiles: &[&'a ServiceProfile]) -> Vec<&'a Profile> {
    let fits = |p: &&ServiceProfile| {
        p.service == service.name
            && p.flavor.as_ref().is_none_or(|f| *f == flavor.name)
            && (service.backend == "auto" || service.backend == p.profile.backend)
    };
    let mut fitting: Vec<&ServiceProfile> = profiles.iter().copied().filter(|p| fits(p)).collect();
    fitting.sort_by(|a, b| {
        let key = |p: &ServiceProfile| (p.profile.backend.clone(), p.flavor.is_none(), p.profile.sha256.clone());
        key(a).cmp(&key(b)).then(a.profile.host.cmp(&b.profile.host))
    });
    let mut seen = BTreeSet::new();
    fitting.into_iter().filter(|p| seen.insert(p.profile.backend.clone())).map(|p| &p.profile).collect()
}

fn ladder(
    service: &Service,
    flavor: &Flavor,
    profile: &Profile,
    settings: &Settings,
    known: &mut Rungs,
) -> Result<Ladder, String> {
    let gpu = profile.backend == CUDA;
    if gpu && flavor.gpus == 0 {
        return Err("the flavor has no GPU".to_owned());
    }
    let available_mib = flavor.memory_gib * 1024.0;
    if available_mib > 0.0 && profile.memory_mib > available_mib {
        return Err(format!("an instance takes {:.0} MiB, the flavor has {available_mib:.0}", profile.memory_mib));
    }
    if profile.points.is_empty() {
        return Err("the profile has no points".to_owned());
    }
    let most = if gpu { profile.points.iter().map(|p| p.workers).max().unwrap_or(1) } else { flavor.cores };
    let batches: BTreeSet<u32> = profile.points.iter().map(|p| p.batch).collect();
    let rater = Rater { service, settings, speed: flavor.speed };
    let mut rungs: Vec<Rung> = Vec::new();
    for workers in 1..=most {
        let rated = batches.iter().filter_map(|&batch| {
            let key = (std::ptr::from_ref(profile).addr(), flavor.speed.to_bits(), workers, batch);
            *known.entry(key).or_insert_with(|| rater.rung(profile, workers, batch))
        });
        // Best batch: carries most, the smaller one among equals.
        let best = rated.fold(None, |best: Option<Rung>, r| match best {
            Some(b) if b.carry_rps >= r.carry_rps => Some(b),
            _ => Some(r),
        });
        let Some(mut rung) = best else { continue };
        // One more worker may stand idle, so it never makes an instance worse.
        if let Some(below) = rungs.last().filter(|below| below.carry_rps > rung.carry_rps) {
            rung = Rung { workers, ..*below };
        }
        rungs.push(rung);
    }
    match rungs.last() {
        Some(top) if top.carry_rps > 0.0 && top.carry_rps >= LEAST_UTILISATION * top.sustained_rps => Ok(Ladder {
            backend: profile.backend.clone(),
            estimated: profile.estimated,
            gpus: u32::from(gpu),
            memory_mib: profile.memory_mib,
            load_ms: profile.load_ms.max(0.0).ceil() as i64,
            rungs,
        }),
        _ => Err(too_slow(service, flavor, profile, settings)),
    }
}

fn too_slow(service: &Service, flavor: &Flavor, profile: &Profile, settings: &Settings) -> String {
    let fastest =
        profile.points.iter().map(|p| latency_ms(p, service.slo_quantile) / flavor.speed).fold(f64::INFINITY, f64::min);
    format!(
        "{fastest:.1} ms at p{:.0} and {:.1} ms overhead leave too little of the SLO of {:.0} ms for waiting",
        service.slo_quantile * 100.0,
        settings.overhead_ms,
        service.slo_ms
    )
}

/// The measured quantile at or above the one that the SLO names.
fn latency_ms(point: &ProfilePoint, quantile: f64) -> f64 {
    if quantile <= 0.5 {
        point.p50_ms
    } else if quantile <= 0.95 {
        point.p95_ms
    } else {
        point.p99_ms
    }
}

struct Rater<'a> {
    service: &'a Service,
    settings: &'a Settings,
    speed: f64,
}

impl Rater<'_> {
    fn rung(&self, profile: &Profile, workers: u32, batch: u32) -> Option<Rung> {
        let of_batch = || profile.points.iter().filter(move |p| p.batch == batch);
        let below = of_batch().filter(|p| p.workers <= workers).max_by_key(|p| p.workers);
        let point = below.or_else(|| of_batch().min_by_key(|p| p.workers))?;
        let measured_ms = latency_ms(point, self.service.slo_quantile);
        // Barista plans with the p95 of the distribution that fits best, whatever the SLO's quantile.
        let planned_ms = match self.settings.capacity_rule {
            CapacityRule::Margin => measured_ms,
            CapacityRule::Paper => profile.fitted_p95_ms(point.workers, point.batch).unwrap_or(measured_ms),
        };
        let service_ms = planned_ms / self.speed;
        let sustained_rps = point.rps * self.speed * f64::from(workers) / f64::from(point.workers);
        let waiting = self.waiting(service_ms, workers, batch);
        let per_slo = (self.service.slo_ms / service_ms).floor().clamp(0.0, f64::from(u32::MAX));
        let carry_rps = match self.settings.capacity_rule {
            CapacityRule::Margin => waiting.carried_rps(sustained_rps),
            CapacityRule::Paper => per_slo * f64::from(batch) * f64::from(workers) * 1000.0 / self.service.slo_ms,
        };
        Some(Rung {
            workers,
            batch,
            service_ms,
            waiting,
            sustained_rps,
            carry_rps,
            requests_per_slo: per_slo as u32,
            scaled_from: (point.workers != workers).then_some(point.workers),
        })
    }

    /// What the SLO leaves for waiting. A batch is served in one piece, so with batches an arrival also waits until
    /// one of the workers is free again, which the fluid formula does not see.
    fn waiting(&self, service_ms: f64, workers: u32, batch: u32) -> Waiting {
        let lump_ms = if batch > 1 { service_ms / f64::from(workers) } else { 0.0 };
        let allowed_ms = self.service.slo_ms - self.settings.overhead_ms - service_ms - lump_ms;
        Waiting {
            allowed_s: allowed_ms.max(0.0) / 1000.0,
            epsilon: epsilon(self.service.load.allowance, self.settings),
            dispersion: self.service.load.dispersion.unwrap_or(self.settings.dispersion),
            sheds: self.settings.sheds,
        }
    }
}

/// The share of requests that may wait too long: the configured one, and towards [`CAUTIOUS_EPSILON`], by equal factors,
/// as the error budget is overdrawn.
pub(crate) fn epsilon(allowance: f64, settings: &Settings) -> f64 {
    let cautious = CAUTIOUS_EPSILON.min(settings.epsilon) / settings.epsilon;
    settings.epsilon * cautious.powf((-allowance).clamp(0.0, 1.0))
}

/// Price of a million requests when a node of the flavor is full of this service.
pub fn usd_per_million(flavor: &Flavor, ladder: &Ladder, settings: &Settings) -> f64 {
    let carried = ladder.top().map_or(0.0, |r| r.carry_rps);
    let setup_ms = flavor.boot_ms() + settings.image_ms + ladder.load_ms;
    expected_usd_per_hour(flavor, setup_ms, settings) / 3600.0 / carried * 1e6
}

/// The rating as a plan shows it.
pub fn option(flavor: &Flavor, rated: &Result<Ladder, String>, service: &Service, settings: &Settings) -> FlavorOption {
    let infeasible = |reason: &str| FlavorOption {
        flavor: flavor.name.clone(),
        backend: service.backend.clone(),
        workers: 0,
        batch: 0,
        p95_ms: 0.0,
        requests_per_slo: 0,
        sustained_rps: 0.0,
        capacity_rps: 0.0,
        usd_per_million: 0.0,
        estimated: false,
        infeasible: Some(reason.to_owned()),
    };
    let ladder = match rated {
        Ok(ladder) => ladder,
        Err(reason) => return infeasible(reason),
    };
    let Some(top) = ladder.top() else { return infeasible("no worker fits") };
    FlavorOption {
        flavor: flavor.name.clone(),
        backend: ladder.backend.clone(),
        workers: top.workers,
        batch: top.batch,
        p95_ms: top.service_ms,
        requests_per_slo: top.requests_per_slo,
        sustained_rps: top.sustained_rps,
        capacity_rps: top.carry_rps,
        usd_per_million: usd_per_million(flavor, ladder, settings),
        estimated: ladder.estimated,
        infeasible: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{flavor, point, profile, service};
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings { overhead_ms: 0.0, ..Settings::default() }
    }

    #[test]
    fn the_papers_number_is_shown_and_jumps_where_the_slo_divides_by_p95() {
        let profiles = [profile("s", vec![point(1, 1, 50.0)])];
        let paper = Settings { capacity_rule: CapacityRule::Paper, ..settings() };
        let carried = |slo_ms: f64, settings: &Settings| {
            let service = Service { slo_ms, ..service("s") };
            let ladder = rate(&service, &flavor("f", 1, 1.0), &profiles, settings).expect("feasible");
            (ladder.rungs[0].requests_per_slo, ladder.rungs[0].carry_rps)
        };
        assert_eq!(carried(199.0, &paper), (3, 3.0 * 1000.0 / 199.0));
        assert_eq!(carried(200.0, &paper), (4, 20.0));
        // The margin rule has no such jump.
        let (below, above) = (carried(199.0, &settings()).1, carried(200.0, &settings()).1);
        assert!((above - below).abs() < 0.1, "{below} {above}");
    }

    #[test]
    fn the_best_batch_is_taken_and_depends_on_the_slo() {
        // Batch 8 doubles throughput and takes 40 ms.
        let profiles = [profile("s", vec![point(1, 1, 10.0), point(1, 8, 40.0)])];
        let best = |slo_ms: f64| {
            let service = Service { slo_ms, ..service("s") };
            rate(&service, &flavor("f", 1, 1.0), &profiles, &settings()).expect("feasible").rungs[0].batch
        };
        assert_eq!(best(400.0), 8);
        assert_eq!(best(60.0), 1, "two batches of 40 ms do not fit into 60 ms");
    }

    #[test]
    fn what_cannot_run_says_why() {
        let slow = [profile("s", vec![point(1, 1, 250.0)])];
        let reason =
            |f: &Flavor, p: &[ServiceProfile], s: &Service| rate(s, f, p, &settings()).expect_err("infeasible");
        let text = reason(&flavor("f", 2, 1.0), &slow, &service("s"));
        assert!(text.contains("250.0 ms at p95") && text.contains("SLO of 200 ms"), "{text}");
        let text = reason(&flavor("f", 2, 1.0), &[], &service("s"));
        assert!(text.contains("no profile of `s`") && text.contains("barista profile"), "{text}");
        let mut gpu = profile("s", vec![point(1, 1, 5.0)]);
        gpu.profile.backend = "cuda".into();
        let text = reason(&flavor("f", 2, 1.0), &[gpu], &service("s"));
        assert!(text.contains("no GPU"), "{text}");
        let mut big = profile("s", vec![point(1, 1, 5.0)]);
        big.profile.memory_mib = 5000.0;
        let small = Flavor { memory_gib: 4.0, ..flavor("f", 2, 1.0) };
        let text = reason(&small, &[big], &service("s"));
        assert!(text.contains("5000 MiB") && text.contains("4096"), "{text}");
    }

    #[test]
    fn unmeasured_worker_counts_are_scaled_and_marked() {
        let profiles = [profile("s", vec![point(1, 1, 10.0), point(2, 1, 12.0)])];
        let ladder = rate(&service("s"), &flavor("f", 4, 1.0), &profiles, &settings()).expect("feasible");
        assert_eq!(ladder.rungs.iter().map(|r| r.scaled_from).collect::<Vec<_>>(), [None, None, Some(2), Some(2)]);
        assert!((ladder.rungs[3].sustained_rps - 2.0 * ladder.rungs[1].sustained_rps).abs() < 1e-9);
    }

    #[test]
    fn a_gpu_with_big_batches_beats_cores_at_its_price() {
        let cpu = profile("s", vec![point(1, 1, 20.0)]);
        let mut gpu = profile("s", vec![point(1, 1, 6.0), point(1, 32, 20.0)]);
        gpu.profile.backend = "cuda".into();
        let f = Flavor { gpus: 1, ..flavor("g4", 4, 0.5) };
        let ladder = rate(&service("s"), &f, &[cpu, gpu], &settings()).expect("feasible");
        assert_eq!((ladder.backend.as_str(), ladder.gpus, ladder.rungs[0].batch), ("cuda", 1, 32));
        assert_eq!(ladder.cores(1), 1);
    }

    proptest! {
        #[test]
        fn a_tighter_slo_or_a_slower_machine_never_carries_more(
            p95 in 1.0f64..150.0, slo in 20.0f64..1000.0, cut in 0.0f64..0.5, cores in 1u32..9, speed in 0.3f64..3.0
        ) {
            let profiles = [profile("s", vec![point(1, 1, p95), point(1, 4, p95 * 2.0)])];
            let carried = |slo_ms: f64, speed: f64| {
                let service = Service { slo_ms, ..service("s") };
                let f = Flavor { speed, ..flavor("f", cores, 1.0) };
                rate(&service, &f, &profiles, &settings())
                    .map_or(vec![0.0; cores as usize], |l| l.rungs.iter().map(|r| r.carry_rps).collect())
            };
            let (loose, tight, slow) = (carried(slo, speed), carried(slo * (1.0 - cut), speed), carried(slo, speed * 0.8));
            for w in 0..cores as usize {
                prop_assert!(tight[w] <= loose[w] + 1e-9 && slow[w] <= loose[w] + 1e-9);
                prop_assert!(w == 0 || loose[w] >= loose[w - 1]);
            }
        }
    }
}
