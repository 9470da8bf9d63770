//! What is fixed for all policies of a simulation: load, machines, profiles, faults.

use super::scenario::{Error, Folders, QueueKind, Scenario};
use super::workload::{Feed, Path, Source, Workload};
use planner::model::{Flavor, ServiceProfile};
use schemas::EpochMs;
use schemas::profile::Profile;

/// A service.
#[derive(Debug, Clone)]
pub struct ServiceWorld {
    /// Name.
    pub name: String,
    /// Latency objective.
    pub slo_s: f64,
    /// Its quantile.
    pub slo_quantile: f64,
    /// Share of requests that shall meet it.
    pub attainment: f64,
    /// Priority.
    pub priority: i32,
    /// Instances at least.
    pub min: u32,
    /// One a backend.
    pub profiles: Vec<Profile>,
    /// Load.
    pub workload: Workload,
}

/// A flavor, and how its price and luck go.
#[derive(Debug, Clone)]
pub struct FlavorWorld {
    /// As the planner reads it, at the first price.
    pub flavor: Flavor,
    /// Spread of the boot time.
    pub boot_cv: f64,
    /// Spot.
    pub interruptions_per_h: f64,
    /// From a second on, this price; ascending, the first from 0.
    pub prices: Vec<(f64, f64)>,
}

impl FlavorWorld {
    /// Price at a second.
    pub fn price_at(&self, second: f64) -> f64 {
        self.prices.iter().rev().find(|p| p.0 <= second).map_or(self.flavor.usd_per_hour, |p| p.1)
    }

    /// Price of a stretch of time.
    pub fn usd(&self, from_s: f64, to_s: f64) -> f64 {
        let ends = self.prices.iter().skip(1).map(|p| p.0).chain([f64::INFINITY]);
        let part = |((begin, price), end): (&(f64, f64), f64)| (to_s.min(end) - from_s.max(*begin)).max(0.0) * price;
        self.prices.iter().zip(ends).map(part).sum::<f64>() / 3600.0
    }
}

/// See the module.
#[derive(Debug, Clone)]
pub struct World {
    /// Scenario.
    pub name: String,
    /// Seed.
    pub seed: u64,
    /// Begin.
    pub start_ms: EpochMs,
    /// Length.
    pub seconds: usize,
    /// Services.
    pub services: Vec<ServiceWorld>,
    /// Machines.
    pub flavors: Vec<FlavorWorld>,
    /// Program onto a node.
    pub image_s: f64,
    /// A model's file onto a node that has not had it.
    pub fetch_s: f64,
    /// Share of boots that fail.
    pub boot_failure: f64,
    /// Mean time between failures of a node, hours; 0: none.
    pub mtbf_h: f64,
    /// How much slower machines are than their profiles.
    pub profile_error: f64,
    /// Where requests wait.
    pub queue: QueueKind,
    /// Partitions of each topic.
    pub partitions: u32,
    /// Forecast given to `ours`.
    pub feed: Feed,
}

impl World {
    /// Reads trace and profiles, draws the load and makes the forecasts of `feeds`.
    pub fn new(scenario: &Scenario, folders: &Folders, seed: u64, feeds: &[Feed]) -> Result<Self, Error> {
        let with_seed = Scenario { seed, ..scenario.clone() };
        let (traces, first) = with_seed.traces(folders)?;
        let trace = traces.first().map(|(trace, _)| trace).ok_or(crate::trace::Error::EmptyCut)?;
        let start_ms = trace.start_ms + first as i64 * trace.interval_ms;
        let seconds = ((trace.counts.len() - first) as i64 * trace.interval_ms / 1000) as usize;
        let interval_ms = scenario.forecast.interval_s as i64 * 1000;
        let longest_s = scenario.flavor.iter().map(|f| f.boot_s).fold(0.0, f64::max);
        let longest_s = longest_s + scenario.setup.image_s + scenario.setup.fetch_s;
        let reach = (((longest_s + 90.0) / scenario.forecast.interval_s as f64).ceil() as u32).clamp(3, 60);
        let own = match scenario.forecast.model.as_str() {
            "oracle" => Feed::Oracle,
            "barista2019" => Feed::Barista2019,
            _ => Feed::Ensemble,
        };
        let mut services = Vec::new();
        for (i, spec) in scenario.service.iter().enumerate() {
            let source = Source {
                service: &spec.name,
                path: Path { trace: &traces[i].0, share: traces[i].1 },
                start_ms,
                seconds,
                train_days: scenario.forecast.train_days,
                interval_ms,
                reach,
                seed: seed.wrapping_add(1_000_003 * i as u64),
            };
            let mut feeds = feeds.to_vec();
            feeds.push(own);
            feeds.sort_unstable();
            feeds.dedup();
            services.push(ServiceWorld {
                name: spec.name.clone(),
                slo_s: spec.slo_ms / 1000.0,
                slo_quantile: spec.slo_quantile,
                attainment: spec.attainment,
                priority: spec.priority,
                min: spec.min,
                profiles: scenario.profiles(spec, folders)?,
                workload: Workload::new(&source, &feeds),
            });
        }
        let flavors = scenario.flavor.iter().map(|spec| {
            let mut prices = vec![(0.0, spec.usd_per_hour)];
            let changes = scenario.faults.price_change.iter().filter(|c| c.flavor == spec.name);
            prices.extend(changes.map(|c| (c.day * 86_400.0, c.usd_per_hour)));
            prices.sort_by(|a, b| a.0.total_cmp(&b.0));
            FlavorWorld {
                flavor: spec.flavor(),
                boot_cv: spec.boot_cv,
                interruptions_per_h: spec.interruptions_per_h,
                prices,
            }
        });
        Ok(World {
            name: scenario.name.clone(),
            seed,
            start_ms,
            seconds,
            services,
            flavors: flavors.collect(),
            image_s: scenario.setup.image_s,
            fetch_s: scenario.setup.fetch_s,
            boot_failure: scenario.faults.boot_failure,
            mtbf_h: scenario.faults.node_mtbf_h,
            profile_error: scenario.faults.profile_error,
            queue: scenario.topology.queue,
            partitions: scenario.topology.partitions,
            feed: own,
        })
    }

    /// Flavors at the prices of a second.
    pub fn flavors_at(&self, second: f64) -> Vec<Flavor> {
        let priced = |f: &FlavorWorld| Flavor { usd_per_hour: f.price_at(second), ..f.flavor.clone() };
        self.flavors.iter().map(priced).collect()
    }

    /// Time to load a service's model from its file.
    pub fn load_s(&self, service: usize, backend: &str) -> f64 {
        let profiles = &self.services[service].profiles;
        profiles.iter().find(|p| p.backend == backend).or(profiles.first()).map_or(0.0, |p| p.load_ms / 1000.0)
    }

    /// Profiles as the planner reads them; a new node has to get the file before it can load the model.
    pub fn profiles(&self) -> Vec<ServiceProfile> {
        let of = |s: &ServiceWorld| -> Vec<ServiceProfile> {
            let cold = |p: &Profile| Profile { load_ms: p.load_ms + self.fetch_s * 1000.0, ..p.clone() };
            let one = |p: &Profile| ServiceProfile { service: s.name.clone(), flavor: None, profile: cold(p) };
            s.profiles.iter().map(one).collect()
        };
        self.services.iter().flat_map(of).collect()
    }

    /// The service as the planner reads it, without load.
    pub fn planned(&self, service: usize) -> planner::model::Service {
        let s = &self.services[service];
        planner::model::Service {
            name: s.name.clone(),
            model: s.profiles.first().map_or_else(String::new, |p| p.model.clone()),
            slo_ms: s.slo_s * 1000.0,
            slo_quantile: s.slo_quantile,
            min: s.min,
            priority: s.priority,
            partitions: (self.queue == QueueKind::Partition).then_some(self.partitions),
            ..planner::model::Service::default()
        }
    }
}
