//! Topics and their settings.

use anyhow::{Context, Result, ensure};
use rdkafka::admin::{
    AdminOptions, AlterConfig, NewPartitions, NewTopic, OwnedResourceSpecifier, ResourceSpecifier, TopicReplication,
};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::harness::{PATIENCE, Target, send, send_many, take, unique, until};

/// Partitions of a topic by metadata, `None` when there is no such topic. Asks without creating.
fn partitions(target: &Target, topic: &str) -> Result<Option<usize>> {
    let client: BaseConsumer = target.client().set("allow.auto.create.topics", "false").create()?;
    let metadata = client.fetch_metadata(None, PATIENCE)?;
    let found = metadata.topics().iter().find(|t| t.name() == topic);
    Ok(found.map(|t| t.partitions().len()))
}

async fn delete(target: &Target, topic: &str) -> Result<Result<(), RDKafkaErrorCode>> {
    let results = target.admin()?.delete_topics(&[topic], &AdminOptions::new()).await?;
    let verdict = results.into_iter().next().context("no verdict")?;
    Ok(verdict.map(|_| ()).map_err(|(_, code)| code))
}

pub(crate) async fn topics_are_created_and_deleted(target: Target) -> Result<()> {
    let topic = target.topic("created", 3).await?;
    ensure!(partitions(&target, &topic)? == Some(3));
    ensure!(target.create(&topic, 3, &[]).await? == Err(RDKafkaErrorCode::TopicAlreadyExists));
    // Only validated, not created.
    let dry = unique("dry");
    let new = NewTopic::new(&dry, 2, TopicReplication::Fixed(1));
    let options = AdminOptions::new().validate_only(true);
    let verdicts = target.admin()?.create_topics(&[new], &options).await?;
    ensure!(verdicts.into_iter().all(|verdict| verdict.is_ok()));
    ensure!(delete(&target, &topic).await? == Ok(()));
    until("the topic to be gone", || Ok(partitions(&target, &topic)?.is_none())).await?;
    ensure!(partitions(&target, &dry)?.is_none(), "a dry run created a topic");
    ensure!(delete(&target, &topic).await? == Err(RDKafkaErrorCode::UnknownTopicOrPartition));
    Ok(())
}

pub(crate) async fn bad_topics_are_refused(target: Target) -> Result<()> {
    use RDKafkaErrorCode::{InvalidConfig, InvalidPartitions, InvalidReplicationFactor, InvalidTopic};
    let name = unique("bad");
    ensure!(target.create("no spaces", 1, &[]).await? == Err(InvalidTopic));
    ensure!(target.create(&"x".repeat(250), 1, &[]).await? == Err(InvalidTopic));
    ensure!(target.create(&name, 0, &[]).await? == Err(InvalidPartitions));
    let nonsense: [&[(&str, &str)]; 4] = [
        &[("cleanup.policy", "shred")],
        &[("retention.ms", "a week")],
        &[("no.such.setting", "1")],
        &[("segment.bytes", "-5")],
    ];
    for settings in nonsense {
        ensure!(target.create(&name, 1, settings).await? == Err(InvalidConfig), "{settings:?}");
    }
    let copies = NewTopic::new(&name, 1, TopicReplication::Fixed(3));
    let verdicts = target.admin()?.create_topics(&[copies], &AdminOptions::new()).await?;
    let verdict = verdicts.into_iter().next().context("no verdict")?;
    ensure!(verdict.map_err(|(_, code)| code) == Err(InvalidReplicationFactor));
    ensure!(partitions(&target, &name)?.is_none());
    Ok(())
}

pub(crate) async fn settings_are_described_and_changed(target: Target) -> Result<()> {
    let settings = [("cleanup.policy", "compact"), ("retention.ms", "86400000")];
    let topic = target.topic_with("settings", 1, &settings).await?;
    let admin = target.admin()?;
    let value = async |name: &str| -> Result<Option<String>> {
        let resource = [ResourceSpecifier::Topic(&topic)];
        let results = admin.describe_configs(&resource, &AdminOptions::new()).await?;
        let result = results.into_iter().next().context("no answer")?;
        let config = result.map_err(|code| anyhow::anyhow!("{code}"))?;
        ensure!(config.specifier == OwnedResourceSpecifier::Topic(topic.clone()));
        Ok(config.get(name).and_then(|entry| entry.value.clone()))
    };
    ensure!(value("cleanup.policy").await?.as_deref() == Some("compact"));
    ensure!(value("retention.ms").await?.as_deref() == Some("86400000"));
    ensure!(value("max.message.bytes").await?.as_deref() == Some("1048588"));
    ensure!(value("message.timestamp.type").await?.as_deref() == Some("CreateTime"));
    ensure!(value("retention.bytes").await?.as_deref() == Some("-1"));
    // The client library shows an error of a resource as a resource without settings.
    let missing = [ResourceSpecifier::Topic("no-such-topic")];
    let results = admin.describe_configs(&missing, &AdminOptions::new()).await?;
    ensure!(results.iter().flatten().all(|config| config.entries.is_empty()));
    let resource = ResourceSpecifier::Topic(&topic);
    let change = AlterConfig::new(resource).set("cleanup.policy", "delete");
    let results = admin.alter_configs(&[change], &AdminOptions::new()).await?;
    ensure!(results.into_iter().all(|verdict| verdict.is_ok()));
    // A controller acknowledges a change that the broker applies when it reads it.
    let begin = std::time::Instant::now();
    while value("cleanup.policy").await?.as_deref() != Some("delete") {
        ensure!(begin.elapsed() < std::time::Duration::from_secs(30), "the change is not seen");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    // This request replaces all settings: what it does not name is at its default again.
    ensure!(value("retention.ms").await?.as_deref() != Some("86400000"));
    Ok(())
}

pub(crate) async fn partitions_are_added(target: Target) -> Result<()> {
    let topic = target.topic("grown", 1).await?;
    let producer = target.producer(&[])?;
    send(&producer, &topic, Some(0), "k", "before").await?;
    let admin = target.admin()?;
    let grow = async |count| -> Result<Result<(), RDKafkaErrorCode>> {
        let wanted = NewPartitions::new(&topic, count);
        let results = admin.create_partitions(&[wanted], &AdminOptions::new()).await?;
        let verdict = results.into_iter().next().context("no verdict")?;
        Ok(verdict.map(|_| ()).map_err(|(_, code)| code))
    };
    ensure!(grow(3).await? == Ok(()));
    until("three partitions", || Ok(partitions(&target, &topic)? == Some(3))).await?;
    ensure!(grow(2).await? == Err(RDKafkaErrorCode::InvalidPartitions));
    let fresh = target.producer(&[])?;
    ensure!(send(&fresh, &topic, Some(2), "k", "new").await? == (2, 0));
    ensure!(send(&fresh, &topic, Some(0), "k", "old").await? == (0, 1));
    Ok(())
}

pub(crate) async fn records_are_deleted(target: Target) -> Result<()> {
    let topic = target.topic("trimmed", 1).await?;
    send_many(&target.producer(&[])?, &topic, Some(0), 20, "x").await?;
    let admin = target.admin()?;
    let delete = async |before| -> Result<Result<Offset, RDKafkaErrorCode>> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, before)?;
        let done = admin.delete_records(&list, &AdminOptions::new()).await?;
        let element = done.elements().first().map(|e| (e.offset(), e.error()));
        let (low, error) = element.context("no answer")?;
        match error {
            Ok(()) => Ok(Ok(low)),
            Err(error) => Ok(Err(error.rdkafka_error_code().context("no code")?)),
        }
    };
    let client: BaseConsumer = target.client().create()?;
    ensure!(delete(Offset::Offset(10)).await? == Ok(Offset::Offset(10)));
    ensure!(client.fetch_watermarks(&topic, 0, PATIENCE)? == (10, 20));
    // Deleting what is deleted already changes nothing.
    ensure!(delete(Offset::Offset(3)).await? == Ok(Offset::Offset(10)));
    ensure!(delete(Offset::Offset(21)).await? == Err(RDKafkaErrorCode::OffsetOutOfRange));
    let seen = take(&target.reader(&topic, &[])?, 10).await?;
    ensure!(seen.first().is_some_and(|record| record.offset == 10), "{:?}", seen.first());
    ensure!(delete(Offset::End).await? == Ok(Offset::Offset(20)));
    ensure!(client.fetch_watermarks(&topic, 0, PATIENCE)? == (20, 20));
    Ok(())
}

pub(crate) async fn produce_creates_topic(target: Target) -> Result<()> {
    let topic = unique("auto");
    let (partition, offset) = send(&target.producer(&[])?, &topic, None, "k", "v").await?;
    ensure!((partition, offset) == (0, 0));
    ensure!(partitions(&target, &topic)? == Some(1));
    ensure!(take(&target.reader(&topic, &[])?, 1).await?.iter().all(|r| r.value == "v"));
    Ok(())
}

pub(crate) async fn consume_creates_no_topic(target: Target) -> Result<()> {
    let topic = unique("absent");
    let consumer = target.subscriber(&unique("absent"), &topic, &[])?;
    let polled = tokio::time::timeout(PATIENCE, consumer.recv()).await?;
    let code = polled.err().and_then(|error| error.rdkafka_error_code());
    ensure!(code == Some(RDKafkaErrorCode::UnknownTopicOrPartition), "{code:?}");
    ensure!(partitions(&target, &topic)?.is_none(), "a consumer created a topic");
    Ok(())
}

pub(crate) async fn recreated_topic_starts_empty(target: Target) -> Result<()> {
    let topic = target.topic("recreated", 1).await?;
    send_many(&target.producer(&[])?, &topic, Some(0), 10, "old").await?;
    ensure!(delete(&target, &topic).await? == Ok(()));
    until("the topic to be gone", || Ok(partitions(&target, &topic)?.is_none())).await?;
    ensure!(target.create(&topic, 1, &[]).await? == Ok(()));
    until("the topic to be back", || Ok(partitions(&target, &topic)? == Some(1))).await?;
    let (_, offset) = send(&target.producer(&[])?, &topic, Some(0), "k", "new").await?;
    ensure!(offset == 0, "offset {offset}");
    let seen = take(&target.reader(&topic, &[])?, 1).await?;
    ensure!(seen.iter().all(|record| record.value == "new"), "{seen:?}");
    Ok(())
}
