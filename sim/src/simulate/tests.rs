//! Tests of whole simulations.

use super::*;

mod faults;

fn simulation(edit: impl Fn(&mut Scenario)) -> Simulation {
    let mut scenario = Scenario::parse(scenario::tests::SMALL).expect("sound");
    edit(&mut scenario);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    Simulation::of(scenario, Folders(vec![folder]))
}

fn run(selection: &str, edit: impl Fn(&mut Scenario)) -> Report {
    let selection = Selection::parse(selection).expect("known");
    simulation(edit).run(&selection, None, |_| {}).expect("runs")
}

#[test]
fn every_policy_runs_keeps_its_books_and_never_beats_the_bound_at_its_attainment() {
    let report = run("all", |_| {});
    assert_eq!(report.runs.len(), 2 * ALL.len());
    for run in &report.runs {
        let o = &run.outcome;
        assert!(o.requests > 50_000 && o.cost_usd > 0.0, "{}", o.policy);
        assert!(run.shedding || o.shed == 0, "{}", o.policy);
        assert!(o.attainment <= 1.0 && o.minutes_ok <= 1.0 && o.p50_ms <= o.p95_ms && o.p95_ms <= o.p99_ms);
        let beats = o.attainment >= 0.99 && o.cost_usd < report.bound_usd * 0.999;
        assert!(!beats, "{} costs {} at {}, bound {}", o.policy, o.cost_usd, o.attainment, report.bound_usd);
    }
    let same = report.runs.iter().all(|r| r.outcome.requests == report.runs[0].outcome.requests);
    assert!(same, "all policies meet the same arrivals");
}

#[test]
fn the_same_seed_gives_the_same_outcome() {
    let books = |report: &Report| -> Vec<(u64, u64, u64, f64)> {
        let one = |r: &Run| (r.outcome.requests, r.outcome.shed, r.outcome.plan_changes, r.outcome.cost_usd);
        report.runs.iter().map(one).collect()
    };
    let faults = |s: &mut Scenario| {
        s.faults.boot_failure = 0.2;
        s.faults.node_mtbf_h = 1.0;
        s.flavor[0].boot_cv = 0.3;
    };
    let (a, b) = (run("ours,kpa", faults), run("ours,kpa", faults));
    assert_eq!(books(&a), books(&b));
    let other = simulation(faults).run(&Selection::parse("ours,kpa").expect("known"), Some(2), |_| {}).expect("runs");
    assert_ne!(books(&a), books(&other));
}

#[test]
fn faults_cost_attainment_and_are_counted() {
    let calm = run("ours+shed", |_| {});
    let hard = run("ours+shed", |s| s.faults.node_mtbf_h = 0.2);
    let slow = run("ours+shed", |s| s.faults.profile_error = 1.5);
    let (calm, hard, slow) = (&calm.runs[0].outcome, &hard.runs[0].outcome, &slow.runs[0].outcome);
    assert!(calm.broken_nodes == 0 && calm.lost == 0);
    assert!(hard.broken_nodes > 3 && hard.attainment < calm.attainment && hard.cold_starts > calm.cold_starts);
    assert!(slow.shed > 2 * calm.shed, "{} {}", slow.shed, calm.shed);
}

/// Fixed fleet: one node, for ever.
struct OneNode;

impl Policy for OneNode {
    fn name(&self) -> String {
        "one-node".to_owned()
    }
    fn period_s(&self) -> usize {
        1_000_000
    }
    fn decide(&mut self, seen: &policy::Seen<'_>) -> Vec<policy::Command> {
        let host = policy::Host { service: 0, backend: "tract".into(), workers: 1, batch: 1, service_p95_us: 0 };
        assert_eq!(seen.second, 0);
        vec![policy::Command::Start { id: "n".into(), flavor: 0, hosts: vec![host] }]
    }
}

/// M/D/1 at load `rho`: waiting time is at most `t` services with this probability (Erlang 1909, Crommelin 1934).
fn erlang(rho: f64, t: f64) -> f64 {
    let term = |k: u32| {
        let x = rho * (t - f64::from(k));
        (-x).powi(k as i32) / (1..=k).map(f64::from).product::<f64>() * x.exp()
    };
    (1.0 - rho) * (0..=t.floor() as u32).map(term).sum::<f64>()
}

#[test]
fn latencies_are_those_of_queueing_theory() {
    let service_ms = 100.0;
    for rho in [0.3, 0.6, 0.8] {
        let mut world = {
            let scenario = Scenario::parse(scenario::tests::SMALL).expect("sound");
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
            World::new(&scenario, &Folders(vec![folder]), 5, &[]).expect("sound")
        };
        world.seconds = 200_000;
        world.flavors[0].flavor.cores = 1;
        let service = &mut world.services[0];
        service.workload.rates = vec![(rho * 1000.0 / service_ms) as f32; world.seconds];
        let point = schemas::profile::ProfilePoint {
            p50_ms: service_ms,
            p95_ms: service_ms,
            p99_ms: service_ms,
            rps: 1000.0 / service_ms,
            ..service.profiles[0].points[0]
        };
        service.profiles[0].points = vec![point];
        let outcome = engine::run(&world, &mut OneNode, false);
        assert!(outcome.left_over < 50 && outcome.shed == 0);
        for (p, measured_ms) in [(0.5, outcome.p50_ms), (0.95, outcome.p95_ms), (0.99, outcome.p99_ms)] {
            let (mut low, mut high) = (0.0, 40.0);
            for _ in 0..60 {
                let middle = (low + high) / 2.0;
                if erlang(rho, middle) < p { low = middle } else { high = middle }
            }
            let expected_ms = service_ms * (1.0 + low);
            let apart = measured_ms / expected_ms - 1.0;
            assert!(apart.abs() < 0.04, "rho {rho}, p{p}: {measured_ms} for {expected_ms}");
        }
        let used = 1.0 - outcome.wasted;
        assert!((used - rho).abs() < 0.01, "{used} of {rho}");
    }
}

#[test]
fn a_queue_that_sheds_drops_what_the_margin_says() {
    // Deterministic service and no batches: the formula's assumption of a fluid server is nearest.
    let service_ms = 20.0;
    for load in [0.9, 1.0, 1.1] {
        let scenario = Scenario::parse(scenario::tests::SMALL).expect("sound");
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut world = World::new(&scenario, &Folders(vec![folder]), 5, &[]).expect("sound");
        world.seconds = 50_000;
        let service = &mut world.services[0];
        let (k, rate) = (1000.0 / service_ms, load * 1000.0 / service_ms);
        service.workload.rates = vec![rate as f32; world.seconds];
        let points = &mut service.profiles[0].points;
        points.truncate(1);
        (points[0].p50_ms, points[0].p95_ms, points[0].p99_ms, points[0].rps) = (service_ms, service_ms, service_ms, k);
        let outcome = engine::run(&world, &mut OneNode, true);
        let share = outcome.shed as f64 / outcome.requests as f64;
        let (u, c) = ((k - rate) / rate, 2.0 * k * (0.2 - service_ms / 1000.0));
        let expected = if u == 0.0 { 1.0 / c } else { u / (c * u).exp_m1() };
        assert!((share - expected).abs() < 0.15 * expected + 0.002, "load {load}: {share} for {expected}");
        // All that was not dropped was in time.
        assert!(outcome.attainment > 1.0 - share - 0.001);
    }
}

#[test]
fn ablations_take_causes_away() {
    let plain = run("ours+shed", |_| {});
    let instant = run("ours+shed", |s| s.ablate("zero-setup").expect("known"));
    let fine = run("ours+shed", |s| s.ablate("fine-nodes").expect("known"));
    assert!(instant.bound_usd < plain.bound_usd && fine.bound_usd < plain.bound_usd);
    assert!(simulation(|_| {}).scenario().ablate("magic").is_err());
    let (bound, floor) = (plain.bound_usd, plain.floor_usd.expect("one service"));
    let queueing = plain.queueing_usd.expect("one service");
    assert!(bound <= floor + 1e-9 && floor <= queueing + 1e-9, "{bound} {floor} {queueing}");
}

#[test]
fn partitions_cost_no_less_than_a_shared_queue_and_serve_worse() {
    let shared = run("ours+shed", |_| {});
    let split = run("ours+shed", |s| s.topology.queue = scenario::QueueKind::Partition);
    let (shared, split) = (&shared.runs[0].outcome, &split.runs[0].outcome);
    assert!(split.cost_usd > 0.99 * shared.cost_usd, "{} {}", split.cost_usd, shared.cost_usd);
    assert!(split.p99_ms >= shared.p99_ms, "{} {}", split.p99_ms, shared.p99_ms);
    assert!(split.attainment > 0.95, "{}", split.attainment);
}

#[test]
fn a_price_change_moves_the_fleet_to_the_cheaper_flavor() {
    let change = |s: &mut Scenario| {
        let dear = scenario::FlavorSpec { name: "d".into(), usd_per_hour: 0.12, ..s.flavor[0].clone() };
        s.flavor.push(dear);
        let change = scenario::PriceChange { day: 0.02, flavor: "c".into(), usd_per_hour: 0.5 };
        s.faults.price_change.push(change);
    };
    let report = run("ours+shed,hpa-60+shed", change);
    let nodes = |i: usize, minute: usize| report.runs[i].outcome.curve[minute].nodes.clone();
    assert!(nodes(0, 20)[0] > 0 && nodes(0, 20)[1] == 0, "{:?}", nodes(0, 20));
    let last = report.runs[0].outcome.curve.len() - 1;
    assert!(nodes(0, last)[0] == 0 && nodes(0, last)[1] > 0, "{:?}", nodes(0, last));
    assert!(report.runs[0].outcome.cost_usd < report.runs[1].outcome.cost_usd);
}

#[test]
fn json_has_the_keys_of_the_contract_and_html_the_plots() {
    let report = run("ours+shed", |_| {});
    let json = report.json();
    for key in ["scenario", "seed", "days", "bound_usd"] {
        assert!(!json[key].is_null(), "{key}");
    }
    let keys = "policy shedding cost_usd ratio_to_bound attainment minutes_ok p50_ms p95_ms p99_ms requests shed \
                cold_starts plan_changes planner_p99_ms";
    for key in keys.split_whitespace() {
        assert!(!json["policies"][0][key].is_null(), "{key}");
    }
    let page = report.html();
    assert!(
        page.matches("<svg").count() >= 3 && page.contains("class=curve"),
        "{} plots",
        page.matches("<svg").count()
    );
}

#[test]
fn selections_are_checked() {
    assert_eq!(Selection::parse("ours+shed").expect("known").0, [("ours".to_owned(), true)]);
    assert_eq!(Selection::parse("kpa").expect("known").0.len(), 2);
    assert!(Selection::parse("magic").expect_err("unknown").to_string().contains("`magic`"));
}
