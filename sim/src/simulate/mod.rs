//! Policies side by side on a trace, down to requests: cost, SLO, cold starts, and the bound that nobody can beat.
//!
//! [`Simulation::new`] reads a scenario, [`Simulation::run`] runs policies through it, [`Report`] shows what came of
//! them: JSON with the keys of DESIGN §5, a table, and a page with plots. Everything is a function of scenario and seed
//! but the wall-clock times of decisions.
//!
//! `[trace] file` may also be a recorded `workload.observed`, see [`observed`].

mod bound;
pub mod bursty;
mod engine;
mod html;
pub mod observed;
pub mod outcome;
pub mod policy;
mod random;
pub mod scenario;
pub mod workload;
pub mod world;

pub use outcome::Outcome;
pub use random::Random;
pub use scenario::{Error, Folders, Scenario};
pub use world::World;

use policy::Policy;
use policy::ours::Ours;
use policy::paper::{Barista2019, StaticPeak, Without};
use policy::reactive::{Kind, Reactive};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use workload::Feed;

/// Names that `--policy` knows, besides `all`.
pub const POLICIES: [&str; 21] = [
    "ours",
    "oracle",
    "barista2019",
    "barista2019x0.9",
    "barista2019x1.2",
    "barista2019x1.5",
    "barista2019-no-forecast",
    "barista2019-no-compensator",
    "barista2019-no-vertical",
    "barista2019-no-algorithm1",
    "hpa-50",
    "hpa-60",
    "hpa-75",
    "kpa",
    "kpa-delay",
    "keda",
    "seldon",
    "mark",
    "static-peak",
    "ours-last-value",
    "ours-median",
];

/// What `--policy all` runs: all but parts switched off.
const ALL: [&str; 15] = [
    "ours",
    "oracle",
    "barista2019",
    "barista2019x0.9",
    "barista2019x1.2",
    "barista2019x1.5",
    "hpa-50",
    "hpa-60",
    "hpa-75",
    "kpa",
    "kpa-delay",
    "keda",
    "seldon",
    "mark",
    "static-peak",
];

/// The one setting of our planner for every scenario: what `[planner]` has in production when nothing is configured. Its
/// guard against a wrong profile, `total_quota`, is off; topology, image and network are the scenario's (policy `ours`).
pub fn settings() -> planner::model::Settings {
    let production = planner::config::PlannerConfig::default().settings(true);
    planner::model::Settings { total_quota: None, ..production }
}

/// Other settings of our planner, for ablations: `quantile=0.8:epsilon=0.03`. `None` if a key or value is wrong.
fn changed(mut settings: planner::model::Settings, changes: &str) -> Option<planner::model::Settings> {
    for change in changes.split(':') {
        let (key, value) = change.split_once('=')?;
        let value: f64 = value.parse().ok()?;
        match key {
            "quantile" => settings.quantile = value,
            "epsilon" => settings.epsilon = value,
            "hysteresis" => settings.hysteresis = value,
            "hold_s" => settings.hold_ms = (value * 1000.0) as i64,
            "period_s" => settings.period_ms = (value * 1000.0) as i64,
            "stretch" => settings.stretch = value,
            "swap_gain" => settings.swap_gain = value,
            "payback_s" => settings.payback_ms = (value * 1000.0) as i64,
            "dispersion" => settings.dispersion = value,
            _ => return None,
        }
    }
    settings.problems().is_empty().then_some(settings)
}

/// A policy by name; `ours:quantile=0.8:epsilon=0.03` changes the settings of ours or the oracle's.
pub fn policy(name: &str, feed: Feed) -> Option<Box<dyn Policy>> {
    let barista = |factor, without| -> Option<Box<dyn Policy>> { Some(Box::new(Barista2019::new(factor, without))) };
    let reactive = |kind| -> Option<Box<dyn Policy>> { Some(Box::new(Reactive::new(kind))) };
    if let Some((base, changes)) = name.split_once(':') {
        let feed = if base == "oracle" { Feed::Oracle } else { feed };
        let settings = changed(settings(), changes).filter(|_| ["ours", "oracle"].contains(&base))?;
        return Some(Box::new(Ours::new(name, feed, settings)));
    }
    match name {
        "ours" => Some(Box::new(Ours::new("ours", feed, settings()))),
        "oracle" => Some(Box::new(Ours::new("oracle", Feed::Oracle, settings()))),
        "ours-last-value" => Some(Box::new(Ours::new("ours-last-value", Feed::LastValue, settings()))),
        "ours-median" => {
            let settings = planner::model::Settings { quantile: 0.5, ..settings() };
            Some(Box::new(Ours::new("ours-median", feed, settings)))
        }
        "barista2019" => barista(1.0, Without::Nothing),
        "barista2019x0.9" => barista(0.9, Without::Nothing),
        "barista2019x1.2" => barista(1.2, Without::Nothing),
        "barista2019x1.5" => barista(1.5, Without::Nothing),
        "barista2019-no-forecast" => barista(1.0, Without::Forecast),
        "barista2019-no-compensator" => barista(1.0, Without::Compensator),
        "barista2019-no-vertical" => barista(1.0, Without::Vertical),
        "barista2019-no-algorithm1" => barista(1.0, Without::Algorithm1),
        "hpa-50" => reactive(Kind::Hpa(0.50)),
        "hpa-60" => reactive(Kind::Hpa(0.60)),
        "hpa-75" => reactive(Kind::Hpa(0.75)),
        "kpa" => reactive(Kind::Kpa(0)),
        "kpa-delay" => reactive(Kind::Kpa(300)),
        "keda" => reactive(Kind::Keda),
        "seldon" => reactive(Kind::Seldon),
        "mark" => reactive(Kind::Mark),
        "static-peak" => Some(Box::new(StaticPeak::default())),
        _ => None,
    }
}

/// Which policies, with which shedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection(pub Vec<(String, bool)>);

impl Selection {
    /// `all`, or names with commas; `+shed` after a name asks for shedding alone, `-shed` for none, neither for both.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let mut chosen = Vec::new();
        for item in text.split(',').map(str::trim).filter(|i| !i.is_empty()) {
            let (name, shedding) = match (item.strip_suffix("+shed"), item.strip_suffix("-shed")) {
                (Some(name), _) => (name, vec![true]),
                (None, Some(name)) => (name, vec![false]),
                (None, None) => (item, vec![false, true]),
            };
            let names: Vec<&str> = if name == "all" { ALL.to_vec() } else { vec![name] };
            for name in names {
                if policy(name, Feed::Ensemble).is_none() {
                    return Err(Error::Value(format!("policy `{name}` is none of all, {}", POLICIES.join(", "))));
                }
                chosen.extend(shedding.iter().map(|s| (name.to_owned(), *s)));
            }
        }
        if chosen.is_empty() { Err(Error::Value("no policy is named".to_owned())) } else { Ok(Selection(chosen)) }
    }

    fn feeds(&self) -> Vec<Feed> {
        let mut feeds = Vec::new();
        for (name, _) in &self.0 {
            match name.as_str() {
                n if n.starts_with("oracle") => feeds.push(Feed::Oracle),
                "mark" => feeds.push(Feed::Ensemble),
                "ours-last-value" | "barista2019-no-forecast" => feeds.push(Feed::LastValue),
                "barista2019-no-compensator" => feeds.push(Feed::Barista2019Trend),
                n if n.starts_with("barista2019") => feeds.push(Feed::Barista2019),
                _ => {}
            }
        }
        feeds
    }
}

/// A scenario that can be run.
pub struct Simulation {
    scenario: Scenario,
    folders: Folders,
}

impl Simulation {
    /// From a file; `data` is a further folder for traces and profiles.
    pub fn new(file: &Path, data: Option<PathBuf>) -> Result<Self, Error> {
        let beside = file.parent().map(Path::to_owned).unwrap_or_default();
        let folders = Folders(std::iter::once(beside).chain(data).collect());
        Ok(Simulation { scenario: Scenario::read(file)?, folders })
    }

    /// From a scenario in memory.
    pub fn of(scenario: Scenario, folders: Folders) -> Self {
        Simulation { scenario, folders }
    }

    /// What the recorded load of last week (a JSONL file of `workload.observed`) would have cost: the scenario's trace is
    /// replaced by it, unscaled, and as much of it is simulated as is not needed to learn from.
    pub fn replay(&mut self, file: &Path) -> Result<(), Error> {
        let (trace, _) = observed::read(file, None)?;
        let days = trace.counts.len() as f64 * trace.interval_ms as f64 / 86_400_000.0;
        let learn = self.scenario.forecast.train_days.min(days / 3.0);
        self.scenario.forecast.train_days = learn;
        self.scenario.trace.file = Some(file.to_owned());
        (self.scenario.trace.generator, self.scenario.trace.start) = (None, None);
        self.scenario.trace.days = days - learn;
        self.scenario.name = format!("{}, recorded", self.scenario.name);
        Ok(())
    }

    /// The scenario; `days` may be cut before a run.
    pub fn scenario(&mut self) -> &mut Scenario {
        &mut self.scenario
    }

    /// Runs policies with a seed (the scenario's own if absent). `progress` is told before each.
    pub fn run(
        &self,
        selection: &Selection,
        seed: Option<u64>,
        mut progress: impl FnMut(&str),
    ) -> Result<Report, Error> {
        let seed = seed.unwrap_or(self.scenario.seed);
        progress("load and forecasts");
        let world = World::new(&self.scenario, &self.folders, seed, &selection.feeds())?;
        let mut runs = Vec::new();
        for (name, shedding) in &selection.0 {
            progress(&format!("{name}{}", if *shedding { " with shedding" } else { "" }));
            let Some(mut policy) = policy(name, world.feed) else { continue };
            runs.push(Run { shedding: *shedding, outcome: engine::run(&world, policy.as_mut(), *shedding) });
        }
        progress("bound");
        let flavors = world.flavors.iter().map(|f| f.flavor.name.clone()).collect();
        let wape = world.services.iter().map(|s| (s.name.clone(), s.workload.wape.clone())).collect();
        Ok(Report {
            scenario: world.name.clone(),
            seed,
            days: world.seconds as f64 / 86_400.0,
            bound_usd: bound::bound_usd(&world),
            floor_usd: bound::floor_usd(&world, bound::Capacity::Fluid),
            queueing_usd: bound::floor_usd(&world, bound::Capacity::Queue),
            runs,
            flavors,
            wape,
        })
    }
}

/// One policy's run.
#[derive(Debug, Clone)]
pub struct Run {
    /// With deadline shedding.
    pub shedding: bool,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of all.
#[derive(Debug, Clone)]
pub struct Report {
    /// Scenario.
    pub scenario: String,
    /// Seed.
    pub seed: u64,
    /// Length.
    pub days: f64,
    /// The clairvoyant fluid bound.
    pub bound_usd: f64,
    /// The same when 98 % of the minutes have to be good as well, where that can be said.
    pub floor_usd: Option<f64>,
    /// The same when requests also queue: what a clairvoyant would pay, by the queueing formula (a reference, no bound).
    pub queueing_usd: Option<f64>,
    /// Policies, in the order asked for.
    pub runs: Vec<Run>,
    /// Names of flavors.
    pub flavors: Vec<String>,
    /// By service and feed: weighted absolute percentage error of the one-step forecast.
    pub wape: Vec<(String, std::collections::BTreeMap<Feed, f64>)>,
}

impl Report {
    fn ratio(&self, run: &Run) -> f64 {
        if self.bound_usd > 0.0 { run.outcome.cost_usd / self.bound_usd } else { f64::NAN }
    }

    /// The keys of DESIGN §5, and `wasted`, `lost`, `left_over`, `broken_nodes` beyond them.
    pub fn json(&self) -> Value {
        let one = |run: &Run| {
            let o = &run.outcome;
            json!({
                "policy": o.policy,
                "shedding": run.shedding,
                "cost_usd": o.cost_usd,
                "ratio_to_bound": self.ratio(run),
                "attainment": o.attainment,
                "minutes_ok": o.minutes_ok,
                "p50_ms": o.p50_ms,
                "p95_ms": o.p95_ms,
                "p99_ms": o.p99_ms,
                "requests": o.requests,
                "shed": o.shed,
                "cold_starts": o.cold_starts,
                "plan_changes": o.plan_changes,
                "planner_p99_ms": o.planner_p99_ms,
                "wasted": o.wasted,
                "lost": o.lost,
                "left_over": o.left_over,
                "broken_nodes": o.broken_nodes,
            })
        };
        let feed = |(service, wape): &(String, std::collections::BTreeMap<Feed, f64>)| {
            let by_feed: serde_json::Map<String, Value> =
                wape.iter().map(|(f, w)| (format!("{f:?}").to_lowercase(), json!(w))).collect();
            json!({"service": service, "wape": by_feed})
        };
        json!({
            "scenario": self.scenario,
            "seed": self.seed,
            "days": self.days,
            "bound_usd": self.bound_usd,
            "floor_usd": self.floor_usd,
            "queueing_usd": self.queueing_usd,
            "policies": self.runs.iter().map(one).collect::<Vec<_>>(),
            "forecasts": self.wape.iter().map(feed).collect::<Vec<_>>(),
        })
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        let floor = self.floor_usd.zip(self.queueing_usd).map_or(String::new(), |(floor, queueing)| {
            format!(" ({floor:.2} with 98 % of minutes good, {queueing:.2} with queueing too)")
        });
        let mut text = format!(
            "{}, seed {}, {:.2} days; no policy can cost less than {:.2} USD{floor}\n\n{:<27} {:>4} {:>9} {:>6} {:>7} {:>7} {:>6} {:>6} {:>7} {:>7} {:>6} {:>6}\n",
            self.scenario,
            self.seed,
            self.days,
            self.bound_usd,
            "policy",
            "shed",
            "USD",
            "ratio",
            "in SLO",
            "minutes",
            "p50",
            "p95",
            "p99 ms",
            "starts",
            "wasted",
            "plan ms"
        );
        for run in &self.runs {
            let o = &run.outcome;
            text.push_str(&format!(
                "{:<27} {:>4} {:>9.2} {:>6.3} {:>6.2}% {:>6.2}% {:>6.0} {:>6.0} {:>7.0} {:>7} {:>5.0}% {:>6.2}\n",
                o.policy,
                if run.shedding { "yes" } else { "no" },
                o.cost_usd,
                self.ratio(run),
                o.attainment * 100.0,
                o.minutes_ok * 100.0,
                o.p50_ms,
                o.p95_ms,
                o.p99_ms,
                o.cold_starts,
                o.wasted * 100.0,
                o.planner_p99_ms
            ));
        }
        text
    }

    /// One page with the table and, for each policy, load, nodes and latency over time.
    pub fn html(&self) -> String {
        html::page(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let other =
            simulation(faults).run(&Selection::parse("ours,kpa").expect("known"), Some(2), |_| {}).expect("runs");
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
            let host = policy::Host { service: 0, backend: "tract".into(), workers: 1, batch: 1 };
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
            (points[0].p50_ms, points[0].p95_ms, points[0].p99_ms, points[0].rps) =
                (service_ms, service_ms, service_ms, k);
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
}
