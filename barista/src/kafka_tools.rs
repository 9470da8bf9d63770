//! Metadata of topics for the operator's tools.

use anyhow::Context as _;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::Serialize;
use std::time::Duration;

const REQUEST: Duration = Duration::from_secs(10);

/// A topic as the broker knows it.
#[derive(Debug, Clone, Serialize)]
pub struct TopicInfo {
    /// Full name.
    pub name: String,
    /// Its partitions.
    pub partitions: Vec<PartitionInfo>,
}

/// A partition's offsets.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionInfo {
    /// Number.
    pub partition: i32,
    /// Oldest offset kept.
    pub start: i64,
    /// Next offset to be written.
    pub end: i64,
}

impl TopicInfo {
    /// Offsets between start and end, all partitions; compacted and transactional topics hold fewer records.
    pub fn records(&self) -> i64 {
        self.partitions.iter().map(|p| p.end - p.start).sum()
    }
}

/// All topics but the broker's own, sorted by name.
pub async fn list(client: ClientConfig) -> anyhow::Result<Vec<TopicInfo>> {
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = client.create()?;
        let metadata = consumer.fetch_metadata(None, REQUEST).context("cannot read topics")?;
        let mut topics = Vec::new();
        for topic in metadata.topics().iter().filter(|t| !t.name().starts_with("__")) {
            let mut partitions = Vec::new();
            for p in topic.partitions() {
                let (start, end) = consumer
                    .fetch_watermarks(topic.name(), p.id(), REQUEST)
                    .with_context(|| format!("cannot read offsets of {}[{}]", topic.name(), p.id()))?;
                partitions.push(PartitionInfo { partition: p.id(), start, end });
            }
            partitions.sort_by_key(|p| p.partition);
            topics.push(TopicInfo { name: topic.name().to_owned(), partitions });
        }
        topics.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(topics)
    })
    .await?
}
