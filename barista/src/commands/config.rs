//! `barista config check|print`: the effective configuration.

use super::Source;
use crate::failure::{Failure, Outcome};
use crate::output;

/// The configuration.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Reports every problem at once.
    Check {
        /// Which configuration and brokers.
        #[command(flatten)]
        source: Source,
    },
    /// The effective configuration (defaults, file, environment, flags), secrets masked.
    Print {
        /// Which configuration and brokers.
        #[command(flatten)]
        source: Source,
        /// As JSON instead of TOML.
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
pub fn run(command: Command) -> Outcome {
    match command {
        Command::Check { source } => {
            let config = source.load()?;
            output::print_line(&format!(
                "ok: {} services, {} flavors, kafka {}, mqtt {}",
                config.service.len(),
                config.flavor.len(),
                config.kafka.brokers,
                config.mqtt.broker
            ))
        }
        Command::Print { source, json: true } => output::print_json(&source.load()?),
        Command::Print { source, json: false } => {
            let text = runtime::config::print(&source.load()?);
            output::print(&text.map_err(|e| Failure::Failed(anyhow::anyhow!("cannot print: {e}")))?)
        }
    }
}
