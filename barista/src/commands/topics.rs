//! `barista topics create|list|describe`: the operator's view of the topics.

use super::Source;
use crate::failure::{Outcome, usage};
use crate::kafka_tools::{self, TopicInfo};
use crate::output;
use runtime::Bus;
use schemas::Topics;

/// Topics.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Creates every topic of the configuration that is missing.
    Create {
        /// Which configuration and brokers.
        #[command(flatten)]
        source: Source,
    },
    /// Topics with partitions and number of records.
    List {
        /// Which configuration and brokers.
        #[command(flatten)]
        source: Source,
        /// For a program.
        #[arg(long)]
        json: bool,
    },
    /// Partitions of one topic with their offsets.
    Describe {
        /// Topic, with or without the configured prefix.
        topic: String,
        /// Which configuration and brokers.
        #[command(flatten)]
        source: Source,
        /// For a program.
        #[arg(long)]
        json: bool,
    },
}

/// Runs it.
pub async fn run(command: Command) -> Outcome {
    match command {
        Command::Create { source } => {
            let config = source.load()?;
            let bus = source.bus(&config).await?;
            let specs = Topics::all(config.service.iter().map(|s| s.name.as_str()));
            bus.create_topics(&specs).await?;
            for spec in &specs {
                output::print_line(&bus.topics().name(&spec.name))?;
            }
            Ok(())
        }
        Command::List { source, json } => {
            let config = source.load()?;
            source.bus(&config).await?;
            let topics = kafka_tools::list(source.kafka(&config)?).await?;
            if json {
                return output::print_json(&topics);
            }
            let rows = topics
                .iter()
                .map(|t| vec![t.name.clone(), t.partitions.len().to_string(), t.records().to_string()])
                .collect();
            output::print_table(&["topic", "partitions", "records"], rows)
        }
        Command::Describe { topic, source, json } => {
            let config = source.load()?;
            let bus = source.bus(&config).await?;
            let topics = kafka_tools::list(source.kafka(&config)?).await?;
            let prefixed = bus.topics().name(&topic);
            let found = topics.into_iter().find(|t| t.name == topic || t.name == prefixed);
            match found {
                None => usage(format!("no topic `{topic}`; `barista topics list` shows them")),
                Some(info) if json => output::print_json(&info),
                Some(info) => describe(&info),
            }
        }
    }
}

fn describe(info: &TopicInfo) -> Outcome {
    let rows = info
        .partitions
        .iter()
        .map(|p| vec![p.partition.to_string(), p.start.to_string(), p.end.to_string(), (p.end - p.start).to_string()])
        .collect();
    output::print_line(&info.name)?;
    output::print_table(&["partition", "first offset", "next offset", "records"], rows)
}
