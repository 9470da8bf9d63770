//! Property tests of [`crate::plan()`]: one for each invariant that it promises, on random catalogues, profiles,
//! loads and fleets. Fleets are grown by planning, so every one of them is reachable.

use crate::lease::Billing;
use crate::model::*;
use crate::pack::NO_LOAD_RPS;
use crate::testing::{advance, flavor, forecast, loaded, point, profile, service};
use crate::{lease::Terms, plan};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use schemas::allocation::NodeAction;
use std::collections::BTreeMap;

const NAMES: [&str; 4] = ["delay", "count", "crowd", "eta"];

#[derive(Clone)]
struct World {
    inputs: PlanInputs,
    /// Load of each service in each of the decisions that grow the fleet.
    history: Vec<Vec<f64>>,
}

/// As the JSON that `barista plan --explain` reads, so that a failing case can be looked at.
impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} history {:?}", serde_json::to_string(&self.inputs).map_err(|_| std::fmt::Error)?, self.history)
    }
}

prop_compose! {
    fn any_flavor(index: usize)(
        cores in 1u32..9, usd in 0.02f64..1.0, hourly in any::<bool>(), min_lease in 0i64..300,
        boot in 0i64..400, quota in prop::option::of(0u32..12), speed in 0.5f64..2.0,
        interruptions in prop::option::weighted(0.3, 0.01f64..10.0)
    ) -> Flavor {
        Flavor {
            billing: if hourly { Billing::Hour } else { Billing::Second },
            min_lease_s: min_lease as f64,
            boot_s: boot as f64,
            quota,
            speed,
            interruptions_per_hour: interruptions.unwrap_or(0.0),
            ..flavor(&format!("f{index}"), cores, usd)
        }
    }
}

prop_compose! {
    fn any_service(name: &'static str)(
        slo in 60.0f64..500.0, min in 0u32..3, extra in prop::option::of(0u32..6),
        priority in 0i32..3, partitions in prop::option::of(1u32..9)
    ) -> Service {
        Service { slo_ms: slo, min, max: extra.map(|e| min + e), priority, partitions, ..service(name) }
    }
}

fn any_profile(name: &'static str) -> impl Strategy<Value = ServiceProfile> {
    (2.0f64..80.0, 1.0f64..1.0e0 + 1.5, any::<bool>()).prop_map(move |(p95, stretch, batches)| {
        let mut points = vec![point(1, 1, p95), point(2, 1, p95 * 1.1)];
        if batches {
            points.push(point(1, 4, p95 * 1.6 * stretch));
        }
        profile(name, points)
    })
}

fn any_world() -> impl Strategy<Value = World> {
    (1usize..4, 1usize..4).prop_flat_map(|(n_services, n_flavors)| {
        let flavors: Vec<_> = (0..n_flavors).map(any_flavor).collect();
        let services: Vec<_> = NAMES[..n_services].iter().map(|n| any_service(n)).collect();
        let profiles: Vec<_> = NAMES[..n_services].iter().map(|n| any_profile(n)).collect();
        let history = prop::collection::vec(prop::collection::vec(0.0f64..400.0, n_services), 1..5);
        (
            flavors,
            services,
            profiles,
            history,
            prop::sample::select(vec![0, 1, 3, 8, 20, 60]),
            (any::<bool>(), prop::sample::select(vec![Members::OnePerNode, Members::OnePerCore, Members::Shared])),
        )
            .prop_map(|(flavors, services, profiles, history, total_quota, (paper, members))| {
                let capacity_rule = if paper { CapacityRule::Paper } else { CapacityRule::Margin };
                let settings =
                    Settings { total_quota: Some(total_quota), capacity_rule, members, ..Settings::default() };
                World { inputs: PlanInputs { settings, services, flavors, profiles, ..PlanInputs::default() }, history }
            })
    })
}

fn with_load(mut inputs: PlanInputs, rates_rps: &[f64]) -> PlanInputs {
    for (service, rate) in inputs.services.iter_mut().zip(rates_rps) {
        service.load.forecast = Some(forecast(&service.name, inputs.now_ms, &[*rate; 90]));
    }
    inputs
}

/// The inputs of the last decision, on a fleet that the decisions before have made.
fn grown(world: &World, gap_ms: i64) -> PlanInputs {
    let mut inputs = world.inputs.clone();
    let (last, before) = world.history.split_last().expect("at least one");
    for rates in before {
        inputs = with_load(inputs, rates);
        let p = plan(&inputs);
        let now_ms = inputs.now_ms + gap_ms;
        inputs = advance(&inputs, &p, now_ms, true);
    }
    with_load(inputs, last)
}

fn nodes_by_flavor(plan: &Plan) -> BTreeMap<&str, u32> {
    let mut counts = BTreeMap::new();
    for n in plan.nodes.iter().filter(|n| n.action != NodeAction::Stop) {
        *counts.entry(n.flavor.as_str()).or_default() += 1;
    }
    counts
}

/// For messages: one line a node.
fn what_runs(plan: &Plan) -> Vec<String> {
    let hosts = |n: &schemas::allocation::NodePlan| -> Vec<String> {
        n.instances.iter().map(|i| format!("{} x{}", i.service, i.workers)).collect()
    };
    plan.nodes.iter().map(|n| format!("{} {:?} {}", n.node, n.action, hosts(n).join(", "))).collect()
}

/// Carries the demand, or says by how much it does not.
fn is_honest(service: &schemas::allocation::ServicePlan) -> bool {
    service.demand_rps < NO_LOAD_RPS || service.capacity_rps + service.shortfall_rps >= service.demand_rps - 1e-5
}

/// The same worlds in every run, so that a run can be repeated; others with `PROPTEST_RNG_SEED=n`.
///
/// Known: among other worlds (one in some thousand) there are some where `a_small_fall_gives_nothing_up` fails, with an
/// exchange that was ordered before the fall and gives a node up after it. It is listed in CHANGELOG.md.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    let rng_seed = match default.rng_seed {
        RngSeed::Random => RngSeed::Fixed(20_261_125),
        given => given,
    };
    ProptestConfig { cases: 8 * default.cases, rng_seed, ..default }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn planning_again_from_the_result_changes_nothing(world in any_world(), gap in 1_000i64..400_000, settled in any::<bool>()) {
        let inputs = grown(&world, gap);
        let first = plan(&inputs);
        let again = advance(&inputs, &first, inputs.now_ms, false);
        let second = plan(&again);
        prop_assert!(second.changes.is_empty(), "{:#?}\nafter\n{:#?}", second.changes, what_runs(&first));
        if settled {
            // When everything has come up, what was waiting for it may go, and then nothing more.
            let mut inputs = inputs;
            let mut p = first;
            for _ in 0..16 {
                inputs = advance(&inputs, &p, inputs.now_ms, true);
                p = plan(&inputs);
                if p.changes.is_empty() { break; }
            }
            prop_assert!(p.changes.is_empty(), "does not settle: {:#?}", p.changes);
        }
    }

    #[test]
    fn capacity_covers_the_demand_or_the_shortfall_is_said(world in any_world(), gap in 1_000i64..400_000) {
        let p = plan(&grown(&world, gap));
        for s in &p.services {
            prop_assert!(is_honest(s), "{s:#?}");
            prop_assert!(s.capacity_rps.is_finite() && s.margin_rps.is_finite() && s.margin_rps >= 0.0);
            prop_assert_eq!(s.shortfall_rps > 0.0, s.reason.contains("short by"), "{}", s.reason);
            if s.shortfall_rps > 0.0 {
                prop_assert!(!["demand", "min"].contains(&s.bound_by.as_str()), "{s:#?}");
            }
        }
    }

    #[test]
    fn limits_hold(world in any_world(), gap in 1_000i64..400_000) {
        let inputs = grown(&world, gap);
        let p = plan(&inputs);
        let counts = nodes_by_flavor(&p);
        for f in &inputs.flavors {
            prop_assert!(counts.get(f.name.as_str()).copied().unwrap_or(0) <= f.quota.unwrap_or(u32::MAX));
        }
        if let Some(total) = inputs.settings.total_quota {
            prop_assert!(counts.values().sum::<u32>() <= total);
        }
        for (service, s) in inputs.services.iter().map(|i| (i, p.services.iter().find(|s| s.service == i.name).expect("planned"))) {
            prop_assert!(s.instances <= service.most_instances());
            let least = service.min.min(service.most_instances());
            prop_assert!(s.instances >= least || s.reason.contains("of at least") || s.shortfall_rps > 0.0, "{s:#?}");
        }
        for n in &p.nodes {
            let f = inputs.flavors.iter().find(|f| f.name == n.flavor).expect("known");
            prop_assert!(n.instances.iter().map(|i| i.workers).sum::<u32>() <= f.cores, "{n:#?}");
            let mut hosted: Vec<_> = n.instances.iter().map(|i| &i.service).collect();
            hosted.dedup();
            prop_assert_eq!(hosted.len(), n.instances.len());
        }
    }

    #[test]
    fn lease_terms_hold(world in any_world(), gap in 1_000i64..400_000) {
        let inputs = grown(&world, gap);
        let p = plan(&inputs);
        for n in &p.nodes {
            let f = inputs.flavors.iter().find(|f| f.name == n.flavor).expect("known");
            let before = inputs.fleet.iter().find(|b| b.node == n.node);
            match (n.action, before) {
                (NodeAction::Start, None) => prop_assert_eq!(n.lease_start_ms, inputs.now_ms),
                (NodeAction::Start, Some(_)) | (_, None) => prop_assert!(false, "{n:#?}"),
                (NodeAction::Stop, Some(b)) => {
                    prop_assert!(b.state != FleetState::Ready || Terms::of(f).may_stop(b.lease, inputs.now_ms));
                }
                (NodeAction::Lapse, Some(_)) => prop_assert!(n.instances.is_empty()),
                (NodeAction::Renew, Some(b)) => prop_assert!(n.lease_end_ms > b.lease.end_ms && !n.instances.is_empty()),
                (NodeAction::Keep, Some(b)) => prop_assert_eq!(n.lease_end_ms, b.lease.end_ms),
            }
        }
    }

    #[test]
    fn the_order_of_the_inputs_does_not_matter(world in any_world(), gap in 1_000i64..400_000, seed in any::<u64>()) {
        use rand::{SeedableRng, seq::SliceRandom};
        let inputs = grown(&world, gap);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut shuffled = inputs.clone();
        shuffled.services.shuffle(&mut rng);
        shuffled.flavors.shuffle(&mut rng);
        shuffled.profiles.shuffle(&mut rng);
        shuffled.fleet.shuffle(&mut rng);
        shuffled.previous.shuffle(&mut rng);
        for n in &mut shuffled.fleet {
            n.hosts.shuffle(&mut rng);
        }
        prop_assert_eq!(plan(&inputs), plan(&shuffled));
    }

    /// A fall that stays inside the hysteresis gives nothing up. Time stands nearly still, so that no lease ends meanwhile.
    #[test]
    fn a_small_fall_gives_nothing_up(world in any_world(), fall in 0.0f64..0.9) {
        let mut inputs = grown(&world, 100_000);
        let level = world.history.last().expect("one").clone();
        for _ in 0..8 {
            let p = plan(&inputs);
            inputs = with_load(advance(&inputs, &p, inputs.now_ms + 1, true), &level);
        }
        let settled = plan(&inputs);
        let fall = 1.0 - fall * inputs.settings.hysteresis;
        let lower: Vec<f64> = level.iter().map(|l| l * fall).collect();
        let p = plan(&with_load(advance(&inputs, &settled, inputs.now_ms + 1, true), &lower));
        for n in settled.nodes.iter().filter(|n| !n.instances.is_empty()) {
            let after = p.nodes.iter().find(|a| a.node == n.node).expect("still there");
            prop_assert!(after.action != NodeAction::Stop && !after.instances.is_empty(), "{n:#?}\n{after:#?}");
        }
    }

    /// For one service, where the cover of `grow` is exact. Packing several services is a heuristic.
    #[test]
    fn more_demand_never_lowers_the_cost(world in any_world(), low in 0.0f64..400.0, more in 0.0f64..200.0) {
        let mut inputs = world.inputs;
        inputs.services.truncate(1);
        // Spot nodes are compared by what they are expected to cost, not by the price that a plan states.
        inputs.flavors.iter_mut().for_each(|f| f.interruptions_per_hour = 0.0);
        // All come up at the same time: of a dearer node that is there sooner, what counts is its price and the shortage's
        // (`more_demand_never_lowers_price_and_shortage`).
        inputs.flavors.iter_mut().for_each(|f| f.boot_s = 60.0);
        let (a, b) = (plan(&with_load(inputs.clone(), &[low])), plan(&with_load(inputs, &[low + more])));
        if b.shortfall_rps == 0.0 {
            prop_assert!(a.shortfall_rps == 0.0, "carries {} but not {low}", low + more);
            prop_assert!(a.cost_usd_per_hour <= b.cost_usd_per_hour + 1e-9, "{:#?}\n{:#?}", what_runs(&a), what_runs(&b));
        }
    }

    /// Noise may raise the plan, once: the same noise again changes nothing at all. Time stands nearly still, so that
    /// no lease ends meanwhile.
    #[test]
    fn noise_of_two_percent_does_not_flap(world in any_world(), noise in prop::collection::vec(-0.02f64..0.02, 5..20)) {
        let mut inputs = grown(&world, 100_000);
        let level = world.history.last().expect("one").clone();
        let round = |inputs: &PlanInputs, n: f64| {
            let rates: Vec<f64> = level.iter().map(|l| l * (1.0 + n)).collect();
            let inputs = with_load(inputs.clone(), &rates);
            let p = plan(&inputs);
            (advance(&inputs, &p, inputs.now_ms + 1, true), p.changes)
        };
        // Settles at the level, then meets the highest of the noise, then whatever waited for others to come up.
        for n in [0.0; 6].iter().chain(&noise).chain(&[0.0; 6]) {
            inputs = round(&inputs, *n).0;
        }
        for n in &noise {
            let (next, changes) = round(&inputs, *n);
            prop_assert!(changes.is_empty(), "{changes:#?}");
            inputs = next;
        }
    }
}

#[test]
fn a_flat_load_is_served_by_the_cheapest_flavor() {
    let inputs = PlanInputs {
        services: vec![loaded("delay", 0, 100.0)],
        flavors: vec![flavor("big", 8, 1.0), flavor("dear", 2, 0.5), flavor("small", 2, 0.1)],
        profiles: vec![profile("delay", vec![point(1, 1, 10.0)])],
        ..PlanInputs::default()
    };
    let p = plan(&inputs);
    assert_eq!(p.shortfall_rps, 0.0);
    assert!(p.nodes.iter().all(|n| n.flavor == "small" && n.action == NodeAction::Start), "{:#?}", what_runs(&p));
    assert_eq!(p.changes.len(), p.nodes.len());
    assert_eq!(p.services[0].chosen.as_deref(), Some("small"));
    assert_eq!(p.services[0].bound_by, "demand");
}
