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
mod station;
#[cfg(test)]
mod tests;
mod timing;
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
use std::sync::atomic::{AtomicUsize, Ordering};
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
    /// replaced by it, unscaled, and as much of it is simulated as is not needed to learn from (a third at most). Services
    /// that were recorded have their own load; if none of the scenario's was, all that was recorded is split by `share`.
    pub fn replay(&mut self, file: &Path) -> Result<(), Error> {
        let recorded = observed::read(file)?;
        let services: Vec<&str> = self.scenario.service.iter().map(|s| s.name.as_str()).collect();
        let own = recorded.has(&services).map_err(|text| Error::Parse { path: file.to_owned(), text })?;
        let lengths = recorded.traces.values().map(|t| (t.counts.len(), t.interval_ms));
        let (intervals, interval_ms) = lengths.max().unwrap_or((0, 1));
        let days = intervals as f64 * interval_ms as f64 / 86_400_000.0;
        let learn = self.scenario.forecast.train_days.min(days / 3.0);
        self.scenario.forecast.train_days = learn;
        self.scenario.trace.file = Some(file.to_owned());
        (self.scenario.trace.generator, self.scenario.trace.start) = (None, None);
        self.scenario.trace.days = days - learn;
        let whose = if own { "" } else { " (all recorded services together)" };
        let gaps = match recorded.missing {
            0 => String::new(),
            n => format!(", {n} of {} intervals not watched", intervals * recorded.traces.len()),
        };
        self.scenario.name = format!("{}, load recorded{whose}{gaps}", self.scenario.name);
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
        let flavors = world.flavors.iter().map(|f| f.flavor.name.clone()).collect();
        let wape = world.services.iter().map(|s| (s.name.clone(), s.workload.wape.clone())).collect();
        let (runs, (bound_usd, floor_usd, queueing_usd)) = parallel(&world, &selection.0, progress);
        Ok(Report {
            scenario: world.name.clone(),
            seed,
            days: world.seconds as f64 / 86_400.0,
            bound_usd,
            floor_usd,
            queueing_usd,
            runs,
            flavors,
            objectives: world.services.iter().map(objective).collect(),
            capacity_rps: capacity_rps(&world),
            wape,
        })
    }
}

fn objective(service: &world::ServiceWorld) -> String {
    format!("{}: {:.0} ms at p{}", service.name, service.slo_s * 1000.0, service.slo_quantile * 100.0)
}

fn capacity_rps(world: &World) -> Option<Vec<f64>> {
    let rule = planner::model::CapacityRule::Margin;
    let units = policy::Unit::all(world, &world.flavors_at(0.0), 0, rule);
    let of = |flavor| units.iter().find(|(_, u)| u.flavor == flavor).map_or(0.0, |(_, u)| u.sustained_rps);
    (world.services.len() == 1).then(|| (0..world.flavors.len()).map(of).collect())
}

/// What a clairvoyant pays: the bound, and with the other half of the objective, and with queueing.
type Bounds = (f64, Option<f64>, Option<f64>);

/// Runs policies, and the bound beside them, on as many threads as there are cores. Runs share nothing but the world.
fn parallel(world: &World, jobs: &[(String, bool)], mut progress: impl FnMut(&str)) -> (Vec<Run>, Bounds) {
    let next = AtomicUsize::new(0);
    let (told, heard) = std::sync::mpsc::channel();
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(jobs.len());
    let work = |told: std::sync::mpsc::Sender<String>| {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some((name, shedding)) = jobs.get(at) else { break };
            let _ = told.send(format!("{name}{}", if *shedding { " with shedding" } else { "" }));
            done.extend(policy(name, world.feed).map(|mut policy| {
                let outcome = engine::run(world, policy.as_mut(), *shedding);
                (at, Run { shedding: *shedding, outcome })
            }));
        }
        done
    };
    std::thread::scope(|scope| {
        let hands: Vec<_> = (0..threads).map(|_| told.clone()).map(|told| scope.spawn(|| work(told))).collect();
        let bound = scope.spawn(|| {
            let floor = |capacity| bound::floor_usd(world, capacity);
            (bound::bound_usd(world), floor(bound::Capacity::Fluid), floor(bound::Capacity::Queue))
        });
        drop(told);
        heard.iter().for_each(|what| progress(&what));
        let mut runs: Vec<(usize, Run)> = hands.into_iter().flat_map(joined).collect();
        runs.sort_by_key(|(at, _)| *at);
        progress("bound");
        (runs.into_iter().map(|(_, run)| run).collect(), joined(bound))
    })
}

fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
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
    /// By service, what it asks for, for a person.
    pub objectives: Vec<String>,
    /// Names of flavors.
    pub flavors: Vec<String>,
    /// By flavor, what a node carries of the only service, requests a second; absent with several services.
    pub capacity_rps: Option<Vec<f64>>,
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
