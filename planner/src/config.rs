//! `[planner]`, `[provider]`, `[[service]]` and `[[flavor]]`.

use crate::demand::NOWCAST_WINDOW_MS;
use crate::fleet::Patience;
use crate::model::{CapacityRule, Members, Service, Settings};
use runtime::config::ConfigDuration;
use schemars::JsonSchema;
use schemas::allocation::PlanMode;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[[flavor]]`: a kind of machine.
pub use crate::model::Flavor as FlavorConfig;

/// What the planner service is given.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How to plan.
    pub planner: PlannerConfig,
    /// What acts on nodes.
    pub provider: ProviderConfig,
    /// Services to be served.
    pub service: Vec<ServiceConfig>,
    /// Machines that can be leased.
    pub flavor: Vec<FlavorConfig>,
}

/// `[planner]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlannerConfig {
    /// Time between two decisions; losses and a load above the plan are answered at once.
    pub period: ConfigDuration,
    /// Longest look ahead.
    pub horizon: ConfigDuration,
    /// Level of the forecast quantile that is planned for.
    pub quantile: f64,
    /// `apply`, or `advise`: publish plans and act on nothing.
    pub mode: PlanMode,
    /// Demand may sink by this share before it counts as lower.
    pub hysteresis: f64,
    /// Demand must have been lower for this long before it counts as lower.
    pub hold: ConfigDuration,
    /// Share of requests that may wait longer than the SLO leaves them.
    pub epsilon: f64,
    /// How far load may go beyond capacity while a service's error budget is full (`budget`), as a share of what the
    /// smallest useful node carries.
    pub stretch: f64,
    /// Variance over mean of arrivals; 1 is Poisson.
    pub dispersion: f64,
    /// Part of each SLO that is spent outside the executor: broker, polling, network.
    pub overhead: ConfigDuration,
    /// Time to bring the program onto a booted node.
    pub image: ConfigDuration,
    /// Nodes that may exist at once, all flavors: a guard against a wrong profile or forecast.
    pub total_quota: Option<u32>,
    /// How capacity follows from a profile.
    pub capacity_rule: CapacityRule,
    /// Consumer group members of a node, as `executor.members` sets them.
    pub members: Members,
    /// A node is exchanged for a cheaper one only when that saves at least this share of its price.
    pub swap_gain: f64,
    /// An exchange must earn its overlap back within the time that what it replaces has lasted, and within this time.
    pub payback: ConfigDuration,
    /// A request that is lost because a spot node was taken back counts so many times what serving it costs.
    pub loss_factor: f64,
    /// Observed rate is taken over so long a window.
    pub nowcast_window: ConfigDuration,
    /// A node that is silent for so long is lost.
    pub lost_after: ConfigDuration,
    /// A node that is not heard of so long after its boot time is lost.
    pub boot_patience: ConfigDuration,
    /// A draining node is stopped after so long, empty or not.
    pub drain_timeout: ConfigDuration,
    /// A stopped process that does not end within this time is killed (local provider).
    pub stop_grace: ConfigDuration,
}

impl Default for PlannerConfig {
    fn default() -> Self {
        let s = Settings::default();
        let ms = |ms: i64| ConfigDuration::from_millis(ms.unsigned_abs());
        PlannerConfig {
            period: ms(s.period_ms),
            horizon: ms(s.horizon_ms),
            quantile: 0.60,
            mode: PlanMode::Apply,
            hysteresis: 0.02,
            hold: ms(s.hold_ms),
            epsilon: 0.05,
            stretch: s.stretch,
            dispersion: s.dispersion,
            overhead: ms(s.overhead_ms as i64),
            image: ms(s.image_ms),
            total_quota: s.total_quota,
            capacity_rule: s.capacity_rule,
            members: s.members,
            swap_gain: s.swap_gain,
            payback: ms(s.payback_ms),
            loss_factor: s.loss_factor,
            nowcast_window: ms(NOWCAST_WINDOW_MS),
            lost_after: ConfigDuration::from_secs(10),
            boot_patience: ConfigDuration::from_secs(60),
            drain_timeout: ConfigDuration::from_secs(30),
            stop_grace: ConfigDuration::from_secs(5),
        }
    }
}

impl PlannerConfig {
    /// The knobs of a decision. `elastic` says whether the provider starts and stops nodes.
    pub fn settings(&self, elastic: bool) -> Settings {
        Settings {
            period_ms: self.period.as_ms(),
            horizon_ms: self.horizon.as_ms(),
            quantile: self.quantile,
            hysteresis: self.hysteresis,
            hold_ms: self.hold.as_ms(),
            epsilon: self.epsilon,
            dispersion: self.dispersion,
            overhead_ms: self.overhead.get().as_secs_f64() * 1000.0,
            image_ms: self.image.as_ms(),
            total_quota: self.total_quota,
            capacity_rule: self.capacity_rule,
            members: self.members,
            elastic,
            swap_gain: self.swap_gain,
            payback_ms: self.payback.as_ms(),
            loss_factor: self.loss_factor,
            stretch: self.stretch,
            // As the executor does; what rebalances and wrong forecasts miss beyond the plan, the error budget takes back.
            sheds: true,
        }
    }

    /// When silence means loss.
    pub fn patience(&self) -> Patience {
        Patience {
            heartbeat_ms: self.lost_after.as_ms(),
            boot_ms: self.boot_patience.as_ms(),
            drain_ms: self.drain_timeout.as_ms(),
        }
    }
}

/// `[provider]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProviderConfig {
    /// What acts on nodes.
    pub kind: ProviderKind,
}

/// What acts on nodes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProviderKind {
    /// Nodes are child processes of the planner's process.
    #[default]
    Local,
    /// Nodes are pods.
    Kubernetes,
    /// Nodes are started and stopped by someone else; the planner places instances on those that report.
    None,
}

/// `[[service]]`: a prediction service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceConfig {
    /// Name, unique; part of its topics' names.
    pub name: String,
    /// Model file.
    pub model: String,
    /// Model version.
    pub version: String,
    /// Latency objective for 95 % of requests, milliseconds.
    pub slo_p95_ms: f64,
    /// `auto`, or the one backend that may serve it.
    pub backend: String,
    /// Instances that always exist; 0 lets it scale to zero.
    pub min: u32,
    /// Instances at most; absent: no limit.
    pub max: Option<u32>,
    /// Higher is served first when it does not fit.
    pub priority: i32,
    /// File that `barista profile` wrote.
    pub profile: Option<PathBuf>,
    /// Further profiles, one a backend: with `backend = "auto"` each flavor gets the one that carries most for its price
    /// under the objective.
    pub profiles: Vec<PathBuf>,
}

impl Default for ServiceConfig {
    fn default() -> Self {
        let s = Service::default();
        ServiceConfig {
            name: s.name,
            model: s.model,
            version: s.version,
            slo_p95_ms: s.slo_ms,
            backend: s.backend,
            min: s.min,
            max: s.max,
            priority: s.priority,
            profile: None,
            profiles: Vec::new(),
        }
    }
}

impl ServiceConfig {
    /// As a decision sees it, without load.
    pub fn service(&self) -> Service {
        Service {
            name: self.name.clone(),
            model: self.model.clone(),
            version: self.version.clone(),
            slo_ms: self.slo_p95_ms,
            backend: self.backend.clone(),
            min: self.min,
            max: self.max,
            priority: self.priority,
            ..Service::default()
        }
    }
}

/// What is wrong with these sections, each naming its key.
pub fn problems(
    planner: &PlannerConfig,
    provider: &ProviderConfig,
    services: &[ServiceConfig],
    flavors: &[FlavorConfig],
) -> Vec<String> {
    let mut problems: Vec<String> = planner
        .settings(true)
        .problems()
        .into_iter()
        .map(|p| format!("planner.{}", p.replace("overhead_ms", "overhead")))
        .collect();
    let positive = [
        ("nowcast_window", planner.nowcast_window),
        ("lost_after", planner.lost_after),
        ("drain_timeout", planner.drain_timeout),
    ];
    for (key, value) in positive {
        if value.as_ms() <= 0 {
            problems.push(format!("planner.{key}: must be longer than 0"));
        }
    }
    if provider.kind == ProviderKind::Kubernetes {
        problems.push(KUBERNETES.to_owned());
    }
    let mut names = std::collections::BTreeSet::new();
    for (i, service) in services.iter().enumerate() {
        problems.extend(service.service().problems().into_iter().map(|p| format!("service[{i}].{p}")));
        if !service.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            problems
                .push(format!("service[{i}].name: `{}` may only hold letters, digits, `.`, `_`, `-`", service.name));
        }
        if service.model.is_empty() {
            problems.push(format!("service[{i}].model: must name an ONNX file"));
        }
        if !names.insert(("service", &service.name)) {
            problems.push(format!("service[{i}].name: `{}` occurs twice", service.name));
        }
    }
    for (i, flavor) in flavors.iter().enumerate() {
        problems.extend(flavor.problems().into_iter().map(|p| format!("flavor[{i}].{p}")));
        if !names.insert(("flavor", &flavor.name)) {
            problems.push(format!("flavor[{i}].name: `{}` occurs twice", flavor.name));
        }
    }
    problems
}

/// Said wherever a configuration asks for it.
pub(crate) const KUBERNETES: &str =
    "provider.kind: `kubernetes` is not available yet; use `local`, or `none` and start executors yourself";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_reads_back() {
        let config = Config::default();
        assert_eq!(problems(&config.planner, &config.provider, &config.service, &config.flavor), Vec::<String>::new());
        let json = serde_json::to_string(&config).expect("serialises");
        assert_eq!(serde_json::from_str::<Config>(&json).expect("reads"), config);
        let cautious = Settings { quantile: 0.60, hysteresis: 0.02, epsilon: 0.05, ..Settings::default() };
        assert_eq!(config.planner.settings(true), cautious);
    }

    #[test]
    fn problems_name_their_keys() {
        let planner = PlannerConfig { quantile: 1.0, lost_after: ConfigDuration::from_secs(0), ..Default::default() };
        let provider = ProviderConfig { kind: ProviderKind::Kubernetes };
        let twice = ServiceConfig { name: "a b".into(), model: "m".into(), max: Some(0), ..Default::default() };
        let flavors = [FlavorConfig { name: "f".into(), speed: 0.0, ..Default::default() }];
        let all = problems(&planner, &provider, &[twice.clone(), twice], &flavors).join("\n");
        for part in [
            "planner.quantile: must lie between 0 and 1",
            "planner.lost_after: must be longer than 0",
            "not available yet",
            "service[0].max: must not be smaller than min",
            "service[0].name: `a b` may only hold",
            "service[1].name: `a b` occurs twice",
            "flavor[0].speed: must be positive",
        ] {
            assert!(all.contains(part), "{part} is missing in\n{all}");
        }
    }
}
