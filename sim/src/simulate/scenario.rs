//! The scenario file of `barista simulate`: what is simulated, as DESIGN §5 defines it.
//!
//! Beyond DESIGN: `generator = "daily"`, `profile` may be a list (one a backend), `[[flavor]] interruptions_per_h` (spot:
//! how often a node is taken away, without notice), `[topology]` and `[forecast] interval_s`. Files are looked for beside the scenario,
//! then in the data folder. Unknown keys are errors.

use crate::trace::Trace;
use planner::lease::Billing;
use planner::model::Flavor;
use schemas::profile::Profile;
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// What is wrong with a scenario.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML of this form.
    #[error("{path}: {text}")]
    Parse {
        /// Where.
        path: PathBuf,
        /// Why.
        text: String,
    },
    /// A value cannot work.
    #[error("{0}")]
    Value(String),
    /// The trace cannot be used.
    #[error("[trace]: {0}")]
    Trace(#[from] crate::trace::Error),
}

/// A scenario, as written.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name.
    pub name: String,
    /// Seed of everything random.
    #[serde(default)]
    pub seed: u64,
    /// The load.
    pub trace: TraceSpec,
    /// Prediction services.
    pub service: Vec<ServiceSpec>,
    /// Kinds of machines.
    pub flavor: Vec<FlavorSpec>,
    /// Set-up of a node after its boot.
    #[serde(default)]
    pub setup: Setup,
    /// What goes wrong.
    #[serde(default)]
    pub faults: Faults,
    /// How the load is forecast.
    #[serde(default)]
    pub forecast: ForecastSpec,
    /// How requests come to nodes.
    #[serde(default)]
    pub topology: Topology,
}

/// Where the load comes from.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceSpec {
    /// `timestamp,value` file; `.jsonl`: recorded `workload.observed`, never rescaled.
    pub file: Option<PathBuf>,
    /// `bursty` or `daily`, see [`super::bursty`].
    pub generator: Option<String>,
    /// Begin of what is simulated; absent: as late as `days` allow.
    pub start: Option<String>,
    /// Length.
    pub days: f64,
    /// 99.9th percentile of the rate after rescaling.
    pub peak_rps: f64,
}

/// A service.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// Name.
    pub name: String,
    /// Share of the trace.
    #[serde(default = "one")]
    pub share: f64,
    /// Latency objective.
    pub slo_ms: f64,
    /// Quantile of latency that must meet it in every minute.
    #[serde(default = "quantile")]
    pub slo_quantile: f64,
    /// Share of all requests that must meet it.
    #[serde(default = "attainment")]
    pub attainment: f64,
    /// Profile file or files.
    pub profile: OneOrMany,
    /// Higher is served first.
    #[serde(default)]
    pub priority: i32,
    /// Instances at least.
    #[serde(default = "one_u32")]
    pub min: u32,
}

/// A path or several.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OneOrMany {
    /// One.
    One(PathBuf),
    /// Several.
    Many(Vec<PathBuf>),
}

impl OneOrMany {
    fn paths(&self) -> &[PathBuf] {
        match self {
            OneOrMany::One(path) => std::slice::from_ref(path),
            OneOrMany::Many(paths) => paths,
        }
    }
}

/// A kind of machine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FlavorSpec {
    /// Name.
    pub name: String,
    /// Cores.
    pub cores: u32,
    /// Memory, GiB; 0 is not checked.
    #[serde(default)]
    pub memory_gib: f64,
    /// GPUs.
    #[serde(default)]
    pub gpus: u32,
    /// Price.
    pub usd_per_hour: f64,
    /// How time is billed.
    #[serde(default)]
    pub billing: Billing,
    /// Shortest lease.
    #[serde(default = "sixty")]
    pub min_lease_s: f64,
    /// Mean time from order to a running machine.
    #[serde(default = "sixty")]
    pub boot_s: f64,
    /// Its coefficient of variation (log-normal).
    #[serde(default)]
    pub boot_cv: f64,
    /// Nodes at most.
    pub quota: Option<u32>,
    /// Speed relative to the profile's host.
    #[serde(default = "one")]
    pub speed: f64,
    /// Spot: how often a node is taken away.
    #[serde(default)]
    pub interruptions_per_h: f64,
}

impl FlavorSpec {
    /// As the planner reads it.
    pub fn flavor(&self) -> Flavor {
        Flavor {
            name: self.name.clone(),
            cores: self.cores,
            memory_gib: self.memory_gib,
            gpus: self.gpus,
            usd_per_hour: self.usd_per_hour,
            billing: self.billing,
            min_lease_s: self.min_lease_s,
            boot_s: self.boot_s,
            quota: self.quota,
            speed: self.speed,
            interruptions_per_hour: self.interruptions_per_h,
        }
    }
}

/// After the boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Setup {
    /// Time to bring the program onto a node.
    pub image_s: f64,
    /// Time to bring a model's file onto a node that has not had it.
    pub fetch_s: f64,
    /// Time to load a model; absent: the profile's.
    pub load_s: Option<f64>,
}

/// What goes wrong, all absent by default.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// Share of boots that never come up.
    pub boot_failure: f64,
    /// Mean time between failures of a node; 0: none.
    pub node_mtbf_h: f64,
    /// Machines are this much slower (positive) than the profiles say.
    pub profile_error: f64,
    /// New prices.
    pub price_change: Vec<PriceChange>,
}

/// From the begin of a day on, a flavor has another price.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceChange {
    /// Days after the begin.
    pub day: f64,
    /// Flavor.
    pub flavor: String,
    /// New price.
    pub usd_per_hour: f64,
}

/// How load is forecast for the policies that use forecasts.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ForecastSpec {
    /// `ensemble` or `oracle`.
    pub model: String,
    /// Days of the trace before the begin that are learned from.
    pub train_days: f64,
    /// Step of the forecast.
    pub interval_s: u64,
}

impl Default for ForecastSpec {
    fn default() -> Self {
        ForecastSpec { model: "ensemble".to_owned(), train_days: 14.0, interval_s: 60 }
    }
}

/// How requests come to nodes.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Topology {
    /// What waits where.
    pub queue: QueueKind,
    /// Partitions of each request topic, for `queue = "partition"`.
    pub partitions: u32,
}

impl Default for Topology {
    fn default() -> Self {
        Topology { queue: QueueKind::Shared, partitions: 128 }
    }
}

/// Where requests wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueKind {
    /// One queue a service, from which every free worker takes (late binding).
    #[default]
    Shared,
    /// One queue a node; the partitions of the topic split arrivals over nodes by their cores.
    Partition,
}

fn one() -> f64 {
    1.0
}
fn one_u32() -> u32 {
    1
}
fn sixty() -> f64 {
    60.0
}
fn quantile() -> f64 {
    0.95
}
fn attainment() -> f64 {
    0.99
}

/// Where files are looked for.
#[derive(Debug, Clone, Default)]
pub struct Folders(pub Vec<PathBuf>);

impl Folders {
    fn read(&self, path: &Path) -> Result<(PathBuf, String), Error> {
        let candidates: Vec<PathBuf> = self.0.iter().map(|f| f.join(path)).collect();
        let found = candidates.iter().find(|p| p.is_file()).cloned().unwrap_or_else(|| path.to_owned());
        match std::fs::read_to_string(&found) {
            Ok(text) => Ok((found, text)),
            Err(source) if candidates.iter().all(|p| *p != found) => {
                let folders: Vec<String> = self.0.iter().map(|f| f.display().to_string()).collect();
                Err(Error::Value(format!(
                    "{}: {source}; not in {} either. `--data FOLDER` (or BARISTA_DATA) names the folder it is in",
                    path.display(),
                    folders.join(", ")
                )))
            }
            Err(source) => Err(Error::Read { path: found, source }),
        }
    }
}

impl Scenario {
    /// Reads a scenario file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        Scenario::parse(&text).map_err(|e| match e {
            Error::Value(text) => Error::Parse { path: path.to_owned(), text },
            other => other,
        })
    }

    /// Reads and checks a scenario.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let scenario: Scenario = toml::from_str(text).map_err(|e| Error::Value(e.to_string().trim().to_owned()))?;
        let problems = scenario.problems();
        if problems.is_empty() { Ok(scenario) } else { Err(Error::Value(problems.join("; "))) }
    }

    /// Values that cannot work, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |ok: bool, text: String| {
            if !ok {
                problems.push(text);
            }
        };
        check(!self.service.is_empty(), "service: at least one is needed".to_owned());
        check(!self.flavor.is_empty(), "flavor: at least one is needed".to_owned());
        let one_source = self.trace.file.is_some() != self.trace.generator.is_some();
        check(one_source, "trace: give either `file` or `generator`".to_owned());
        let generator = self.trace.generator.as_deref().unwrap_or("daily");
        check(
            ["bursty", "daily"].contains(&generator),
            format!("trace.generator: `{generator}` is not bursty or daily"),
        );
        check(self.trace.days > 0.0 && self.trace.days <= 366.0, "trace.days: must lie between 0 and 366".to_owned());
        let rate = self.trace.peak_rps;
        check(rate > 0.0 && rate <= 100_000.0, "trace.peak_rps: must lie between 0 and 100000".to_owned());
        let model = self.forecast.model.as_str();
        check(
            ["ensemble", "oracle", "barista2019"].contains(&model),
            format!("forecast.model: `{model}` is not ensemble, oracle or barista2019"),
        );
        check(
            self.forecast.interval_s > 0 && 86_400 % self.forecast.interval_s == 0,
            "forecast.interval_s: a day must be a whole number of it".to_owned(),
        );
        for f in &self.flavor {
            problems.extend(f.flavor().problems().into_iter().map(|p| format!("flavor {}: {p}", f.name)));
        }
        let share = |p: f64| (0.0..1.0).contains(&p);
        for (key, value) in [("boot_failure", self.faults.boot_failure)] {
            if !share(value) {
                problems.push(format!("faults.{key}: must be at least 0 and below 1"));
            }
        }
        for (key, value) in [("image_s", self.setup.image_s), ("fetch_s", self.setup.fetch_s)] {
            if !(value >= 0.0 && value.is_finite()) {
                problems.push(format!("setup.{key}: must not be negative"));
            }
        }
        if self.faults.profile_error <= -0.9 {
            problems.push("faults.profile_error: must be above -0.9".to_owned());
        }
        for change in &self.faults.price_change {
            if self.flavor.iter().all(|f| f.name != change.flavor) {
                problems.push(format!("faults.price_change: `{}` is none of the flavors", change.flavor));
            }
        }
        problems
    }

    /// Takes away what may hold a policy's distance to the bound, so that its part of it can be measured:
    /// `zero-setup` makes machines come up at once, `fine-nodes` cuts every machine without a GPU into machines of one
    /// core at its share of the price.
    pub fn ablate(&mut self, what: &str) -> Result<(), Error> {
        match what {
            "zero-setup" => {
                self.setup = Setup { image_s: 0.0, fetch_s: 0.0, load_s: Some(0.001) };
                for flavor in &mut self.flavor {
                    (flavor.boot_s, flavor.boot_cv) = (0.0, 0.0);
                }
            }
            "fine-nodes" => {
                for flavor in self.flavor.iter_mut().filter(|f| f.gpus == 0) {
                    flavor.usd_per_hour /= f64::from(flavor.cores);
                    flavor.memory_gib /= f64::from(flavor.cores);
                    flavor.quota = flavor.quota.map(|q| q * flavor.cores);
                    flavor.cores = 1;
                }
            }
            other => return Err(Error::Value(format!("ablation `{other}` is neither zero-setup nor fine-nodes"))),
        }
        self.name = format!("{}, {what}", self.name);
        Ok(())
    }

    /// Profiles of one service.
    pub fn profiles(&self, service: &ServiceSpec, folders: &Folders) -> Result<Vec<Profile>, Error> {
        let mut profiles = Vec::new();
        for path in service.profile.paths() {
            let (path, text) = folders.read(path)?;
            let mut profile: Profile =
                serde_json::from_str(&text).map_err(|e| Error::Parse { path: path.clone(), text: e.to_string() })?;
            if let Some(load_s) = self.setup.load_s {
                profile.load_ms = load_s * 1000.0;
            }
            if let Some(problem) = profile.problems().first() {
                return Err(Error::Parse { path, text: problem.clone() });
            }
            profiles.push(profile);
        }
        Ok(profiles)
    }

    /// By service its trace, rescaled, and the share of it; and the index of the first interval that is simulated.
    pub fn traces(&self, folders: &Folders) -> Result<(Vec<(Trace, f64)>, usize), Error> {
        let recorded = self.trace.file.as_ref().filter(|f| f.extension().is_some_and(|e| e == "jsonl"));
        if let Some(file) = recorded {
            // Last week was as large as it was.
            let (path, text) = folders.read(file)?;
            let services: Vec<(&str, f64)> = self.service.iter().map(|s| (s.name.as_str(), s.share)).collect();
            let split = super::observed::parse(&text).and_then(|recorded| recorded.split(&services));
            let mut traces = split.map_err(|text| Error::Parse { path, text })?;
            let (first, last) = traces.first().map_or(Ok((0, 0)), |(trace, _)| self.cut(trace))?;
            traces.iter_mut().for_each(|(trace, _)| trace.counts.truncate(last));
            return Ok((traces, first));
        }
        let (trace, first) = self.trace(folders)?;
        Ok((self.service.iter().map(|s| (trace.clone(), s.share)).collect(), first))
    }

    /// The whole trace, rescaled, and the index of the first interval that is simulated.
    fn trace(&self, folders: &Folders) -> Result<(Trace, usize), Error> {
        let whole = match (&self.trace.file, self.trace.generator.as_deref()) {
            (Some(file), _) => {
                let (path, text) = folders.read(file)?;
                Trace::parse(&text).map_err(|e| Error::Parse { path, text: e.to_string() })?
            }
            (None, generator) => {
                let days = (self.trace.days + self.forecast.train_days).ceil() as usize;
                super::bursty::generate(self.seed, 0, days, generator == Some("bursty"))
            }
        };
        let (first, last) = self.cut(&whole)?;
        let peak = Trace { counts: whole.counts[first..last].to_vec(), ..whole.clone() };
        // The simulated part has this peak; what is learned from is scaled alike.
        let scaled = peak.scale_to_peak(self.trace.peak_rps)?;
        let total: f64 = peak.counts.iter().sum();
        let factor = if total > 0.0 { scaled.counts.iter().sum::<f64>() / total } else { 1.0 };
        let counts = whole.counts[..last].iter().map(|c| c * factor).collect();
        Ok((Trace { counts, ..whole }, first))
    }

    /// First interval that is simulated, and the one after the last.
    fn cut(&self, whole: &Trace) -> Result<(usize, usize), Error> {
        let n = (self.trace.days * 86_400_000.0 / whole.interval_ms as f64).ceil() as usize;
        let first = match &self.trace.start {
            Some(text) => {
                let at = start_ms(text).ok_or_else(|| Error::Value(format!("trace.start: `{text}` is no date")))?;
                usize::try_from((at - whole.start_ms).div_euclid(whole.interval_ms)).ok()
            }
            None => Some(whole.counts.len().saturating_sub(n)),
        };
        let first = first.filter(|&f| f < whole.counts.len()).ok_or(crate::trace::Error::EmptyCut)?;
        Ok((first, (first + n).min(whole.counts.len())))
    }
}

/// `1998-06-20` or a whole timestamp.
fn start_ms(text: &str) -> Option<i64> {
    let day = format!("{text}T00:00:00Z");
    let at: Option<jiff::Timestamp> = text.parse().ok().or_else(|| day.parse().ok());
    at.map(|t| t.as_millisecond())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const SMALL: &str = r#"
name = "small"
seed = 1
[trace]
generator = "bursty"
days = 0.1
peak_rps = 50
[[service]]
name = "vision"
slo_ms = 200
profile = "profiles/resnet50.json"
[[flavor]]
name = "c"
cores = 2
usd_per_hour = 0.1
boot_s = 30
[forecast]
train_days = 2
"#;

    #[test]
    fn the_planner_knows_all_of_a_flavor() {
        let text =
            SMALL.replace("boot_s = 30", "boot_s = 30\ninterruptions_per_h = 0.5\nquota = 7\nbilling = \"hour\"");
        let flavor = Scenario::parse(&text).expect("sound").flavor[0].flavor();
        assert_eq!((flavor.interruptions_per_hour, flavor.quota, flavor.billing), (0.5, Some(7), Billing::Hour));
    }

    #[test]
    fn faults_in_the_file_name_their_key() {
        assert!(Scenario::parse(SMALL).is_ok());
        let check = |from: &str, to: &str, expected: &str| {
            let text = SMALL.replace(from, to);
            let error = Scenario::parse(&text).expect_err("refused").to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("peak_rps = 50", "peak_rps = 0", "trace.peak_rps");
        check("\"bursty\"", "\"calm\"", "`calm` is not bursty or daily");
        check("slo_ms = 200", "slo = 200", "unknown field `slo`");
        check("cores = 2", "cores = 0", "flavor c: cores");
        check("[forecast]", "[setup]\nfetch_s = -1\n[forecast]", "setup.fetch_s");
        check("train_days = 2", "model = \"magic\"", "forecast.model");
    }
}
