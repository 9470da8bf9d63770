//! One file per command.

pub mod backtest;
pub mod city;
pub mod config;
pub mod demo;
pub mod doctor;
pub mod plan;
pub mod profile;
pub mod replay;
pub mod schema;
pub mod score;
pub mod simulate;
pub mod tail;
pub mod topics;
pub mod up;

use crate::config::Config;
use crate::failure::{Failure, Outcome};
use runtime::kafka::{KafkaBus, KafkaConfig};
use std::path::PathBuf;
use std::time::Duration;

/// How long a tool waits for a broker.
const PROBE: Duration = Duration::from_secs(10);

/// Where the configuration comes from.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Source {
    /// Configuration file.
    #[arg(short = 'c', long = "config", value_name = "FILE", env = "BARISTA_CONFIG")]
    pub file: Option<PathBuf>,
    /// Kafka brokers, instead of those of the configuration.
    #[arg(long, value_name = "HOST:PORT,…")]
    pub brokers: Option<String>,
}

impl Source {
    /// The effective configuration.
    pub fn load(&self) -> Outcome<Config> {
        let mut overrides = Vec::new();
        if let Some(brokers) = &self.brokers {
            overrides.push(("kafka.brokers".to_owned(), brokers.clone().into()));
        }
        crate::config::load(self.file.clone(), overrides).map_err(|problems| Failure::Usage(problems.to_string()))
    }

    /// The Kafka section with `embedded` replaced by the address where `barista up` or `barista demo` serves it.
    pub fn kafka_config(&self, config: &Config) -> KafkaConfig {
        let mut kafka = config.kafka.clone();
        if kafka.is_embedded() {
            kafka.brokers = format!("127.0.0.1:{}", config.embedded.kafka_port);
        }
        kafka
    }

    /// A bus that has reached its brokers.
    pub async fn bus(&self, config: &Config) -> Outcome<KafkaBus> {
        let bus = KafkaBus::connect(&self.kafka_config(config))?;
        bus.probe(PROBE).await?;
        Ok(bus)
    }

    /// Client settings for metadata requests.
    pub fn kafka(&self, config: &Config) -> Outcome<rdkafka::ClientConfig> {
        Ok(self.kafka_config(config).client())
    }
}
