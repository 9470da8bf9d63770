//! `[executor]`: configuration of a node.

use crate::vertical::Thresholds;
use runtime::config::ConfigDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Delivery guarantee of requests that come over Kafka.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// At least one result or rejection for each request; duplicates carry the same id.
    #[default]
    AtLeastOnce,
    /// Exactly one, as a read-committed consumer sees it.
    ExactlyOnce,
}

/// Scaling of workers inside the node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VerticalConfig {
    /// Off: instances keep the workers that the plan gives.
    pub enabled: bool,
    /// How often the load is looked at.
    pub interval: ConfigDuration,
    /// Share of the SLO at which p95 asks for more workers.
    pub up_ratio: f64,
    /// Share of the SLO below which p95 is comfortable.
    pub down_ratio: f64,
    /// How long it must be comfortable before a borrowed worker goes.
    pub hold: ConfigDuration,
}

impl Default for VerticalConfig {
    fn default() -> Self {
        let thresholds = Thresholds::default();
        VerticalConfig {
            enabled: true,
            interval: ConfigDuration::from_secs(1),
            up_ratio: thresholds.up_ratio,
            down_ratio: thresholds.down_ratio,
            hold: ConfigDuration::from_millis(thresholds.hold_ms.unsigned_abs()),
        }
    }
}

impl VerticalConfig {
    pub(crate) fn thresholds(&self) -> Thresholds {
        Thresholds { up_ratio: self.up_ratio, down_ratio: self.down_ratio, hold_ms: self.hold.as_ms() }
    }
}

/// `[executor]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Node id; the host name when empty.
    pub node: String,
    /// Flavor of this node.
    pub flavor: String,
    /// Worker permits of the node, shared by its instances: inferences that may run at once. 0: the machine's cores.
    pub cores: u32,
    /// Delivery guarantee.
    pub delivery: Delivery,
    /// Pin each worker thread to a core of its own, as far as there are cores.
    pub pin: bool,
    /// Cores for `pin`, by the number that the system gives them; empty: those that the process may use.
    pub pin_cores: Vec<usize>,
    /// Group members of each service that the node hosts. Partitions are split evenly over members: give a node as
    /// many as its flavor's share of the capacity asks.
    pub members: u32,
    /// Folder that relative model paths start from.
    pub model_dir: PathBuf,
    /// Requests that may wait for one instance; one more is rejected as overloaded.
    pub queue_capacity: usize,
    /// Requests of one group member that may be accepted and not finished; at the bound it reads no further and its
    /// partitions are paused. Below `queue_capacity` nothing is ever rejected as overloaded: the log holds what waits.
    pub max_in_flight: usize,
    /// Bytes of requests that one group member has in queues and workers; when they are as many or more it reads no
    /// further. Tensors take as much again.
    pub max_in_flight_bytes: usize,
    /// Requests of background work (`prediction.batch.<service>`) that the node holds for each service; at least as many
    /// as its cores run in a second keep them busy.
    pub batch_in_flight: usize,
    /// Rows that one request may carry.
    pub max_rows: u32,
    /// How long a batch waits to fill when a worker is free; 0 runs what is there at once.
    pub batch_window: ConfigDuration,
    /// How often finished offsets are committed.
    pub commit_interval: ConfigDuration,
    /// How often `executor.status` is written, besides at each change of state.
    pub status_interval: ConfigDuration,
    /// How long a draining node finishes what it accepted; then it gives back what has not begun.
    pub drain_timeout: ConfigDuration,
    /// How long after a failure a wanted model is loaded again.
    pub retry_load: ConfigDuration,
    /// Shared library of ONNX Runtime for backend `ort` (cargo feature `ort`); absent: no such backend.
    pub onnxruntime: Option<PathBuf>,
    /// Simulated boot time of a local node, milliseconds: it takes no work before.
    pub boot_ms: u64,
    /// Services whose inferences take longer than this machine needs: emulates a slower one, for demonstrations.
    pub emulate: Vec<Emulation>,
    /// Scaling of workers inside the node.
    pub vertical: VerticalConfig,
}

/// `[[executor.emulate]]`: a slower machine for one service.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Emulation {
    /// Prediction service.
    pub service: String,
    /// Least time of one row, milliseconds: the worker rests after its inference until it is over.
    pub min_infer_ms: f64,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            node: String::new(),
            flavor: "local".to_owned(),
            cores: 0,
            delivery: Delivery::default(),
            pin: false,
            pin_cores: Vec::new(),
            members: 1,
            model_dir: PathBuf::from("."),
            queue_capacity: 8192,
            max_in_flight: 4096,
            max_in_flight_bytes: 128 << 20,
            batch_in_flight: 256,
            max_rows: 256,
            batch_window: ConfigDuration::from_millis(0),
            commit_interval: ConfigDuration::from_millis(200),
            status_interval: ConfigDuration::from_secs(1),
            drain_timeout: ConfigDuration::from_secs(20),
            retry_load: ConfigDuration::from_secs(30),
            onnxruntime: None,
            boot_ms: 0,
            emulate: Vec::new(),
            vertical: VerticalConfig::default(),
        }
    }
}

impl Config {
    /// Values that cannot work, one sentence each, naming the key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |bad: bool, problem: &str| {
            if bad {
                problems.push(problem.to_owned());
            }
        };
        check(self.flavor.is_empty(), "executor.flavor: empty, name the flavor of this node");
        check(self.members == 0, "executor.members: must be at least 1");
        check(self.queue_capacity == 0, "executor.queue_capacity: must be at least 1");
        check(self.max_in_flight_bytes == 0, "executor.max_in_flight_bytes: must be at least 1");
        check(self.max_in_flight == 0, "executor.max_in_flight: must be at least 1");
        check(self.batch_in_flight == 0, "executor.batch_in_flight: must be at least 1");
        check(self.max_rows == 0, "executor.max_rows: must be at least 1");
        check(self.commit_interval.as_ms() == 0, "executor.commit_interval: must be longer than 0");
        check(self.status_interval.as_ms() == 0, "executor.status_interval: must be longer than 0");
        check(self.vertical.interval.as_ms() == 0, "executor.vertical.interval: must be longer than 0");
        let pinned: std::collections::BTreeSet<usize> = self.pin_cores.iter().copied().collect();
        check(pinned.len() != self.pin_cores.len(), "executor.pin_cores: a core is named twice");
        check(!self.pin && !pinned.is_empty(), "executor.pin_cores: set, but executor.pin is off");
        let floors_fit = self.emulate.iter().all(|e| (0.0..=60_000.0).contains(&e.min_infer_ms));
        check(!floors_fit, "executor.emulate.min_infer_ms: must be from 0 to 60000");
        let (up, down) = (self.vertical.up_ratio, self.vertical.down_ratio);
        check(
            !(0.0 < down && down < up && up <= 1.0),
            "executor.vertical: down_ratio must be above 0 and below up_ratio, and up_ratio at most 1",
        );
        problems
    }

    /// The node id: configured, else the host's name.
    pub fn node_id(&self) -> Result<String, String> {
        if !self.node.is_empty() {
            return Ok(self.node.clone());
        }
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let name = name.trim();
        if name.is_empty() {
            return Err("executor.node: not set, and this host does not tell its name".to_owned());
        }
        Ok(name.to_owned())
    }

    /// Least time of a row of this service, where a slower machine is emulated.
    pub fn emulated_floor(&self, service: &str) -> Option<std::time::Duration> {
        let emulation = self.emulate.iter().find(|e| e.service == service && e.min_infer_ms > 0.0)?;
        std::time::Duration::try_from_secs_f64(emulation.min_infer_ms / 1e3).ok()
    }

    /// Worker permits: configured, else the machine's cores.
    pub fn permits(&self) -> u32 {
        if self.cores > 0 {
            return self.cores;
        }
        std::thread::available_parallelism().map_or(1, |n| u32::try_from(n.get()).unwrap_or(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound_and_names_a_node() {
        assert_eq!(Config::default().problems(), Vec::<String>::new());
        assert!(Config::default().node_id().is_ok_and(|id| !id.is_empty()));
        assert!(Config::default().permits() >= 1);
    }

    #[test]
    fn each_problem_names_its_key() {
        let bad = Config {
            members: 0,
            queue_capacity: 0,
            max_in_flight: 0,
            vertical: VerticalConfig { up_ratio: 0.5, down_ratio: 0.7, ..Default::default() },
            ..Config::default()
        };
        let text = bad.problems().join("\n");
        for key in ["members", "queue_capacity", "max_in_flight", "vertical"] {
            assert!(text.contains(&format!("executor.{key}")), "{key} missing in\n{text}");
        }
    }
}
