//! The one configuration tree.

use runtime::config::{ConfigDuration, Layers, Problems};
use runtime::kafka::KafkaConfig;
use runtime::trace::LogFormat;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Everything that can be configured. Sections belong to their crates.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Kafka.
    pub kafka: KafkaConfig,
    /// MQTT.
    pub mqtt: ingest::config::MqttConfig,
    /// The embedded brokers.
    pub embedded: EmbeddedConfig,
    /// Prediction services.
    pub service: Vec<planner::config::ServiceConfig>,
    /// Kinds of machines.
    pub flavor: Vec<planner::config::FlavorConfig>,
    /// Ingest.
    pub ingest: ingest::config::IngestConfig,
    /// Aggregate.
    pub aggregate: aggregate::Config,
    /// Forecaster.
    pub forecaster: forecaster::Config,
    /// Planner.
    pub planner: planner::config::PlannerConfig,
    /// What acts on nodes.
    pub provider: planner::config::ProviderConfig,
    /// Executor.
    pub executor: executor::Config,
    /// Gateway.
    pub gateway: executor::gateway::Config,
    /// Dashboard.
    pub dashboard: crate::dashboard::Config,
    /// Metrics, traces, logs.
    pub telemetry: TelemetryConfig,
}

/// `[embedded]`: the brokers that `brokers = "embedded"` and `broker = "embedded"` start, on loopback.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmbeddedConfig {
    /// Port of the Kafka-protocol broker.
    pub kafka_port: u16,
    /// Port of the MQTT broker.
    pub mqtt_port: u16,
    /// Folder of the broker's data; `--data-dir` goes before it, and the platform's data folder behind it.
    pub data_dir: Option<PathBuf>,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        EmbeddedConfig {
            kafka_port: crate::embedded::KAFKA_PORT,
            mqtt_port: crate::embedded::MQTT_PORT,
            data_dir: None,
        }
    }
}

/// `[telemetry]`: of Barista itself.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// Admin address with `/metrics`, `/healthz` and `/readyz`; port 0 takes any free one and logs it.
    pub address: SocketAddr,
    /// OTLP gRPC endpoint for traces, such as `http://127.0.0.1:4317`; absent: traces are not exported.
    pub otlp_endpoint: Option<String>,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// How long services may take to stop.
    pub shutdown_deadline: ConfigDuration,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        TelemetryConfig {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)),
            otlp_endpoint: None,
            log_format: LogFormat::Text,
            shutdown_deadline: ConfigDuration::from_secs(30),
        }
    }
}

impl Config {
    /// What is wrong with the values, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.kafka.problems();
        problems.extend(self.mqtt.problems());
        problems.extend(self.ingest.problems());
        let aggregate = aggregate::Config { services: self.service_names(), ..self.aggregate.clone() };
        problems.extend(aggregate.problems());
        problems.extend(self.forecaster.problems());
        problems.extend(self.executor.problems());
        problems.extend(self.gateway.problems());
        problems.extend(planner::config::problems(&self.planner, &self.provider, &self.service, &self.flavor));
        problems
    }

    /// Names of the services.
    pub fn service_names(&self) -> Vec<String> {
        self.service.iter().map(|s| s.name.clone()).collect()
    }
}

/// Loads the layers: embedded default < file < environment (`BARISTA_KAFKA__BROKERS`) < flags.
pub fn load(file: Option<PathBuf>, overrides: Vec<(String, serde_json::Value)>) -> Result<Config, Problems> {
    let layers = Layers { embedded: include_str!("default.toml"), file, env_prefix: Some("BARISTA_"), overrides };
    let config: Config = runtime::config::load(&layers)?;
    let problems = config.problems();
    if problems.is_empty() { Ok(config) } else { Err(Problems(problems)) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_embedded_default_is_sound() {
        let layers = Layers { embedded: include_str!("default.toml"), ..Layers::default() };
        let config: Config = runtime::config::load(&layers).unwrap();
        assert_eq!(config.problems(), Vec::<String>::new());
        assert!(config.kafka.is_embedded());
    }

    #[test]
    fn what_is_printed_loads_again() {
        let layers = Layers { embedded: include_str!("default.toml"), ..Layers::default() };
        let config: Config = runtime::config::load(&layers).unwrap();
        let printed = runtime::config::print(&config).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("again.toml");
        std::fs::write(&file, &printed).unwrap();
        let again: Config = runtime::config::load(&Layers { file: Some(file), ..Layers::default() }).unwrap();
        assert_eq!(runtime::config::print(&again).unwrap(), printed);
    }
}
