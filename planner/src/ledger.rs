//! What the fleet has cost so far, and what a constant fleet for the peak would have cost.
//!
//! Invariants: pure; cost follows from leases and their billing rules alone, so it counts what is paid and
//! committed, used or not (boots and lapsing leases too); it never falls; memory is bounded by the fleet.
//! The static peak knows the highest observed rate in advance, which no operator does: a hard baseline, on purpose.
//! Left out: prices that change during a lease (a lease keeps its terms), traffic and storage.

use crate::lease::{Lease, Terms};
use crate::model::{PlanInputs, PreviousDemand, ServiceLoad, Settings};
use crate::plan;
use schemas::EpochMs;
use schemas::allocation::CostSoFar;
use schemas::workload::{ForecastError, ForecastStep, WorkloadForecast};
use std::collections::BTreeMap;

/// A node that is leased at the moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Held {
    /// Node id.
    pub node: String,
    /// Terms of its lease.
    pub terms: Terms,
    /// Its lease.
    pub lease: Lease,
}

/// Running account of a fleet.
#[derive(Debug, Clone, PartialEq)]
pub struct Ledger {
    since_ms: EpochMs,
    at_ms: EpochMs,
    closed_usd: f64,
    open: BTreeMap<String, Held>,
    peak_rps: BTreeMap<String, f64>,
    /// What the static peak cost a millisecond before a restart: it never gets cheaper.
    before_usd_per_ms: f64,
}

impl Ledger {
    /// An empty account.
    pub fn new(since_ms: EpochMs) -> Self {
        Ledger {
            since_ms,
            at_ms: since_ms,
            closed_usd: 0.0,
            open: BTreeMap::new(),
            peak_rps: BTreeMap::new(),
            before_usd_per_ms: 0.0,
        }
    }

    /// Goes on with the account of the plan made at `at_ms`, when `held` were leased.
    pub fn resume(cost: &CostSoFar, held: Vec<Held>, at_ms: EpochMs) -> Self {
        let open_usd: f64 = held.iter().map(|h| h.terms.usd(h.lease, at_ms, None)).sum();
        Ledger {
            since_ms: cost.since_ms,
            at_ms,
            closed_usd: (cost.usd - open_usd).max(0.0),
            open: held.into_iter().map(|h| (h.node.clone(), h)).collect(),
            peak_rps: BTreeMap::new(),
            before_usd_per_ms: cost.usd_static_peak / (at_ms - cost.since_ms).max(1) as f64,
        }
    }

    /// Moves the account to `now_ms` with the nodes leased now; one that is missing was given up. Gives what the
    /// fleet has cost so far, USD. Time never goes back: an earlier `now_ms` counts as the last one.
    pub fn accrue(&mut self, held: impl IntoIterator<Item = Held>, now_ms: EpochMs) -> f64 {
        self.at_ms = self.at_ms.max(now_ms);
        let mut open = BTreeMap::new();
        for h in held {
            // A lease keeps the terms that it began with, and never gets shorter.
            let entry = match self.open.remove(&h.node) {
                Some(known) => {
                    Held { lease: Lease { end_ms: known.lease.end_ms.max(h.lease.end_ms), ..known.lease }, ..known }
                }
                None => h,
            };
            open.insert(entry.node.clone(), entry);
        }
        for given_up in self.open.values() {
            self.closed_usd += given_up.terms.usd(given_up.lease, self.at_ms, Some(self.at_ms));
        }
        self.open = open;
        self.usd()
    }

    /// Notes an observed rate, requests per second.
    pub fn observe(&mut self, service: &str, rate_rps: f64) {
        if rate_rps.is_finite() {
            let peak = self.peak_rps.entry(service.to_owned()).or_insert(0.0);
            *peak = peak.max(rate_rps);
        }
    }

    /// Paid and committed so far, USD.
    pub fn usd(&self) -> f64 {
        let open: f64 = self.open.values().map(|h| h.terms.usd(h.lease, self.at_ms, None)).sum();
        self.closed_usd + open
    }

    /// The account as a plan carries it. `inputs` give catalogue, profiles and settings for the static fleet.
    pub fn so_far(&self, inputs: &PlanInputs) -> CostSoFar {
        CostSoFar {
            since_ms: self.since_ms,
            usd: self.usd(),
            usd_static_peak: static_peak_usd(inputs, &self.peak_rps, self.since_ms, self.at_ms)
                .max(self.before_usd_per_ms * (self.at_ms - self.since_ms) as f64),
        }
    }
}

/// What a constant fleet that carries `peak_rps` of each service would cost from `from_ms` to `to_ms`, USD: planned
/// by the same rules, with the same margin, quotas and billing, leased at the beginning and never changed.
pub fn static_peak_usd(inputs: &PlanInputs, peak_rps: &BTreeMap<String, f64>, from_ms: EpochMs, to_ms: EpochMs) -> f64 {
    let mut fixed = inputs.clone();
    fixed.now_ms = from_ms;
    fixed.fleet.clear();
    fixed.settings = Settings { elastic: true, ..fixed.settings };
    fixed.previous = Vec::<PreviousDemand>::new();
    for service in &mut fixed.services {
        let rate_rps = peak_rps.get(&service.name).copied().unwrap_or(0.0);
        let forecast = flat(&service.name, rate_rps, &fixed.settings, from_ms);
        service.load =
            ServiceLoad { forecast: Some(forecast), dispersion: service.load.dispersion, ..ServiceLoad::default() };
    }
    let nodes = plan(&fixed).nodes;
    let usd = |node: &schemas::allocation::NodePlan| {
        let flavor = fixed.flavors.iter().find(|f| f.name == node.flavor)?;
        let terms = Terms::of(flavor);
        Some(terms.usd(terms.renewed(terms.start(from_ms), to_ms), to_ms, None))
    };
    nodes.iter().filter_map(usd).sum()
}

/// A forecast that says one rate for ever.
fn flat(service: &str, rate_rps: f64, settings: &Settings, from_ms: EpochMs) -> WorkloadForecast {
    WorkloadForecast {
        schema: Default::default(),
        service: service.to_owned(),
        origin_ms: from_ms,
        interval_ms: settings.horizon_ms.max(1).unsigned_abs(),
        levels: vec![settings.quantile],
        steps: vec![ForecastStep { start_ms: from_ms, mean_rps: rate_rps, quantiles_rps: vec![rate_rps] }],
        last_observed_rps: rate_rps,
        weights: BTreeMap::new(),
        error: ForecastError::default(),
        samples: 0,
        cold_start: false,
        ..WorkloadForecast::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::HOUR_MS;
    use crate::model::Flavor;
    use crate::testing::{flavor, point, profile, service};
    use proptest::prelude::*;

    fn held(node: &str, flavor: &Flavor, at_ms: EpochMs) -> Held {
        let terms = Terms::of(flavor);
        Held { node: node.into(), terms, lease: terms.start(at_ms) }
    }

    #[test]
    fn counts_time_held_and_commitments_given_up() {
        let f = Flavor { min_lease_s: 60.0, ..flavor("f", 2, 3.6) };
        let mut ledger = Ledger::new(0);
        assert!((ledger.accrue([held("a", &f, 0)], 0) - 0.06).abs() < 1e-12, "the shortest lease is owed at once");
        let two = [held("a", &f, 0), held("b", &f, 100_000)];
        assert!((ledger.accrue(two, 100_000) - 0.16).abs() < 1e-12);
        assert!((ledger.accrue([held("b", &f, 100_000)], 200_000) - 0.3).abs() < 1e-12);
        assert!((ledger.accrue([], 900_000) - 1.0).abs() < 1e-12, "a 200 s, b until 900 s: seen at the next look");
    }

    #[test]
    fn goes_on_after_a_restart() {
        let f = flavor("f", 2, 3.6);
        let mut whole = Ledger::new(0);
        whole.accrue([held("a", &f, 0), held("b", &f, 0)], 0);
        whole.accrue([held("a", &f, 0)], 300_000);
        let cost = CostSoFar { since_ms: 0, usd: whole.usd(), usd_static_peak: 3.0 };
        let mut resumed = Ledger::resume(&cost, vec![held("a", &f, 0)], 300_000);
        let (a, b) = (whole.accrue([held("a", &f, 0)], 500_000), resumed.accrue([held("a", &f, 0)], 500_000));
        assert!((a - b).abs() < 1e-12, "{a} {b}");
        let peak = resumed.so_far(&PlanInputs::default()).usd_static_peak;
        assert!((peak - 5.0).abs() < 1e-12, "3 USD in 300 s go on: {peak}");
    }

    #[test]
    fn the_static_peak_is_the_fleet_for_the_peak_all_the_time() {
        let inputs = PlanInputs {
            services: vec![service("s")],
            flavors: vec![Flavor { min_lease_s: 0.0, ..flavor("f", 2, 1.0) }],
            profiles: vec![profile("s", vec![point(1, 1, 10.0)])],
            ..PlanInputs::default()
        };
        let usd =
            |rate: f64, hours: i64| static_peak_usd(&inputs, &BTreeMap::from([("s".into(), rate)]), 0, hours * HOUR_MS);
        assert_eq!(usd(100.0, 1), 1.0);
        assert_eq!(usd(100.0, 5), 5.0);
        assert_eq!(usd(400.0, 1), 3.0, "3 nodes: 3 x (200 - margin) covers 400");
    }

    proptest! {
        #[test]
        fn cost_never_falls(steps in prop::collection::vec((0i64..500_000, prop::collection::vec(any::<bool>(), 3)), 1..20)) {
            let f = flavor("f", 1, 1.0);
            let (mut ledger, mut now, mut last) = (Ledger::new(0), 0, 0.0);
            let mut generation = [0, 0, 0];
            let mut since: [Option<EpochMs>; 3] = [None; 3];
            for (step, present) in steps {
                now += step;
                for i in 0..3 {
                    if present[i] && since[i].is_none() {
                        since[i] = Some(now);
                        generation[i] += 1;
                    } else if !present[i] {
                        since[i] = None;
                    }
                }
                let nodes = (0..3).filter_map(|i| since[i].map(|s| held(&format!("{i}-{}", generation[i]), &f, s)));
                let usd = ledger.accrue(nodes.collect::<Vec<_>>(), now);
                prop_assert!(usd >= last - 1e-12);
                last = usd;
            }
        }
    }
}
