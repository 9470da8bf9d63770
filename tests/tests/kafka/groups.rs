//! Groups: commits, views, members that vanish.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{CommitMode, Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::children::Child;
use crate::harness::{PATIENCE, Target, poll_until, receive, send, send_many, share, take, unique, until};

fn at(topic: &str, offset: i64) -> Result<TopicPartitionList> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(offset))?;
    Ok(list)
}

fn committed(consumer: &StreamConsumer, topic: &str) -> Result<Offset> {
    let mut list = TopicPartitionList::new();
    list.add_partition(topic, 0);
    let found = consumer.committed_offsets(list, PATIENCE)?;
    Ok(found.elements().first().context("no answer")?.offset())
}

pub(crate) async fn commit_and_resume(target: Target) -> Result<()> {
    let topic = target.topic("commit", 1).await?;
    let group = unique("commit");
    send_many(&target.producer(&[])?, &topic, Some(0), 100, "x").await?;
    {
        let consumer = target.subscriber(&group, &topic, &[])?;
        take(&consumer, 40).await?;
        ensure!(committed(&consumer, &topic)? == Offset::Invalid, "something is committed already");
        let mut note = TopicPartitionList::new();
        note.add_partition_offset(&topic, 0, Offset::Offset(40))?;
        note.find_partition(&topic, 0).context("no element")?.set_metadata("a note");
        consumer.commit(&note, CommitMode::Sync)?;
        ensure!(committed(&consumer, &topic)? == Offset::Offset(40));
    }
    let consumer = target.subscriber(&group, &topic, &[])?;
    let resumed = take(&consumer, 60).await?;
    ensure!(resumed.first().is_some_and(|record| record.offset == 40), "{:?}", resumed.first());
    // Committing backwards is allowed; what counts is the last commit.
    consumer.commit(&at(&topic, 7)?, CommitMode::Sync)?;
    ensure!(committed(&consumer, &topic)? == Offset::Offset(7));
    // Another group knows nothing of it.
    let stranger = target.consumer(&unique("stranger"), &[])?;
    ensure!(committed(&stranger, &topic)? == Offset::Invalid);
    Ok(())
}

struct View {
    state: String,
    protocol_type: String,
    protocol: String,
    clients: Vec<String>,
    assignments: usize,
}

fn view(consumer: &StreamConsumer, group: &str) -> Result<Option<View>> {
    let list = consumer.fetch_group_list(Some(group), PATIENCE)?;
    let found = list.groups().iter().find(|g| g.name() == group).map(|g| View {
        state: g.state().to_owned(),
        protocol_type: g.protocol_type().to_owned(),
        protocol: g.protocol().to_owned(),
        clients: g.members().iter().map(|m| m.client_id().to_owned()).collect(),
        assignments: g.members().iter().filter(|m| m.assignment().is_some()).count(),
    });
    Ok(found)
}

pub(crate) async fn listed_and_described(target: Target) -> Result<()> {
    let topic = target.topic("listed", 2).await?;
    send(&target.producer(&[])?, &topic, Some(0), "k", "x").await?;
    let group = unique("listed");
    let consumer = target.subscriber(&group, &topic, &[("client.id", "the-client")])?;
    take(&consumer, 1).await?;
    consumer.commit(&at(&topic, 1)?, CommitMode::Sync)?;
    let observer = target.consumer(&unique("observer"), &[])?;
    let seen = view(&observer, &group)?.context("the group is not listed")?;
    ensure!(seen.state == "Stable", "{}", seen.state);
    ensure!(seen.protocol_type == "consumer" && seen.protocol == "range", "{}", seen.protocol);
    ensure!(seen.clients == ["the-client"] && seen.assignments == 1, "{:?}", seen.clients);
    let all = observer.fetch_group_list(None, PATIENCE)?;
    ensure!(all.groups().iter().any(|g| g.name() == group), "not in the list of all groups");
    drop(consumer);
    until("the empty group", || {
        let seen = view(&observer, &group)?.context("the group is gone with its last member")?;
        Ok(seen.state == "Empty" && seen.clients.is_empty())
    })
    .await
}

pub(crate) async fn deleted(target: Target) -> Result<()> {
    let topic = target.topic("deleted", 1).await?;
    send(&target.producer(&[])?, &topic, Some(0), "k", "x").await?;
    let group = unique("deleted");
    let consumer = target.subscriber(&group, &topic, &[])?;
    take(&consumer, 1).await?;
    consumer.commit(&at(&topic, 1)?, CommitMode::Sync)?;
    let admin = target.admin()?;
    let delete = || async {
        let results = admin.delete_groups(&[&group], &AdminOptions::new()).await?;
        let verdict = results.into_iter().next().context("no verdict")?;
        Ok::<_, anyhow::Error>(verdict.map(|_| ()).map_err(|(_, code)| code))
    };
    ensure!(delete().await? == Err(RDKafkaErrorCode::NonEmptyGroup));
    drop(consumer);
    let observer = target.consumer(&group, &[])?;
    until("the empty group", || Ok(view(&observer, &group)?.is_some_and(|seen| seen.clients.is_empty()))).await?;
    ensure!(delete().await? == Ok(()));
    ensure!(committed(&observer, &topic)? == Offset::Invalid, "the offset outlived its group");
    ensure!(delete().await? == Err(RDKafkaErrorCode::GroupIdNotFound));
    Ok(())
}

/// Who is not in the group cannot commit for it while it has members.
pub(crate) async fn offsets_of_strangers_are_refused(target: Target) -> Result<()> {
    let topic = target.topic("strangers", 1).await?;
    send_many(&target.producer(&[])?, &topic, Some(0), 3, "x").await?;
    let group = unique("strangers");
    let stranger = target.consumer(&group, &[])?;
    // Nobody is in the group: offsets can be stored by hand.
    stranger.assign(&at(&topic, 0)?)?;
    stranger.commit(&at(&topic, 1)?, CommitMode::Sync)?;
    let member = target.subscriber(&group, &topic, &[])?;
    ensure!(take(&member, 1).await?.first().is_some_and(|record| record.offset == 1));
    match stranger.commit(&at(&topic, 3)?, CommitMode::Sync) {
        Err(KafkaError::ConsumerCommit(RDKafkaErrorCode::UnknownMemberId)) => {}
        other => bail!("a stranger's commit: {other:?}"),
    }
    ensure!(committed(&member, &topic)? == Offset::Offset(1));
    Ok(())
}

/// A consumer killed by SIGKILL says no goodbye: its session time-out hands its partitions on.
pub(crate) async fn killed_consumer_is_evicted(target: Target) -> Result<()> {
    let topic = target.topic("killed", 2).await?;
    let group = unique("killed");
    let child = Child::consumer(&target, &group, &topic)?;
    ensure!(child.ready == "2", "the child has {} partitions", child.ready);
    let survivor = target.subscriber(&group, &topic, &[])?;
    poll_until("half of the partitions", &[&survivor], || Ok(share(&survivor)? == 1)).await?;
    child.kill()?;
    poll_until("all partitions", &[&survivor], || Ok(share(&survivor)? == 2)).await
}

/// A consumer that is alive but whose application has stopped polling gives its partitions up.
pub(crate) async fn silent_consumer_is_evicted(target: Target) -> Result<()> {
    let topic = target.topic("silent", 2).await?;
    let group = unique("silent");
    let settings = [("max.poll.interval.ms", "6000")];
    let silent = target.subscriber(&group, &topic, &settings)?;
    poll_until("all partitions", &[&silent], || Ok(share(&silent)? == 2)).await?;
    let other = target.subscriber(&group, &topic, &[])?;
    let outcome = poll_until("all partitions", &[&other], || Ok(share(&other)? == 2)).await;
    // Not closed: once against Apache Kafka the client waited for ever in its own close, after it had been evicted.
    std::mem::forget(silent);
    outcome
}

/// KIP-848 groups where the broker has them; where not, the client is told at once.
pub(crate) async fn next_generation_protocol(target: Target) -> Result<()> {
    let topic = target.topic("next-generation", 1).await?;
    send_many(&target.producer(&[])?, &topic, Some(0), 5, "x").await?;
    let mut config = target.client();
    config
        .set("group.id", unique("next-generation"))
        .set("auto.offset.reset", "earliest")
        .set("group.protocol", "consumer");
    let consumer: StreamConsumer = config.create()?;
    consumer.subscribe(&[&topic])?;
    if target.next_generation_groups {
        take(&consumer, 5).await?;
        return Ok(());
    }
    match tokio::time::timeout(Duration::from_secs(10), receive(&consumer)).await {
        Ok(Err(_)) => Ok(()),
        Ok(Ok(_)) => bail!("a record came, the capability is wrong"),
        Err(_) => bail!("no error: the consumer hangs"),
    }
}
