//! Who gets which partitions, and who keeps them.

use std::sync::{Arc, Mutex};

use anyhow::{Result, ensure};
use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance, StreamConsumer};
use rdkafka::error::RDKafkaErrorCode;

use crate::harness::{PATIENCE, Target, assigned, poll_until, send_many, share, take, unique};

/// Remembers how many partitions were given and taken.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<(&'static str, usize)>>>);

impl ClientContext for Diary {}

impl ConsumerContext for Diary {
    fn pre_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let entry = match rebalance {
            Rebalance::Assign(list) => ("assigned", list.count()),
            Rebalance::Revoke(list) => ("revoked", list.count()),
            Rebalance::Error(_) => ("error", 0),
        };
        self.0.lock().unwrap().push(entry);
    }
}

impl Diary {
    /// What happened since the last call, without assignments of nothing.
    fn take(&self) -> Vec<(&'static str, usize)> {
        let mut entries = std::mem::take(&mut *self.0.lock().unwrap());
        entries.retain(|(_, count)| *count > 0);
        entries
    }
}

struct Member {
    consumer: StreamConsumer<Diary>,
    diary: Diary,
}

fn member(target: &Target, group: &str, topic: &str, settings: &[(&str, &str)]) -> Result<Member> {
    let diary = Diary::default();
    let config = target.consumer_config(group, settings);
    let consumer: StreamConsumer<Diary> = config.create_with_context(diary.clone())?;
    consumer.subscribe(&[topic])?;
    Ok(Member { consumer, diary })
}

async fn settle(members: &[&Member], shares: &[usize]) -> Result<()> {
    let consumers: Vec<_> = members.iter().map(|member| &member.consumer).collect();
    poll_until(&format!("the shares {shares:?}"), &consumers, || {
        let seen: Result<Vec<usize>> = consumers.iter().map(|consumer| share(consumer)).collect();
        Ok(seen? == shares)
    })
    .await
}

pub(crate) async fn range_shares_and_takes_over(target: Target) -> Result<()> {
    let topic = target.topic("range", 4).await?;
    send_many(&target.producer(&[])?, &topic, None, 100, "x").await?;
    let group = unique("range");
    let settings = [("partition.assignment.strategy", "range")];
    let first = member(&target, &group, &topic, &settings)?;
    settle(&[&first], &[4]).await?;
    let second = member(&target, &group, &topic, &settings)?;
    settle(&[&first, &second], &[2, 2]).await?;
    let (a, b) = (assigned(&first.consumer)?, assigned(&second.consumer)?);
    ensure!(a.values().flatten().all(|p| !b.values().flatten().any(|q| q == p)), "{a:?} {b:?}");
    ensure!(first.diary.take() == [("assigned", 4), ("revoked", 4), ("assigned", 2)]);
    drop(second);
    settle(&[&first], &[4]).await
}

pub(crate) async fn cooperative_keeps_what_stays(target: Target) -> Result<()> {
    let topic = target.topic("cooperative", 4).await?;
    let group = unique("cooperative");
    let settings = [("partition.assignment.strategy", "cooperative-sticky")];
    let first = member(&target, &group, &topic, &settings)?;
    settle(&[&first], &[4]).await?;
    let second = member(&target, &group, &topic, &settings)?;
    settle(&[&first, &second], &[2, 2]).await?;
    // Only what moves is taken away.
    let story = first.diary.take();
    ensure!(story == [("assigned", 4), ("revoked", 2)], "{story:?}");
    let story = second.diary.take();
    ensure!(story == [("assigned", 2)], "{story:?}");
    drop(second);
    settle(&[&first], &[4]).await?;
    let story = first.diary.take();
    ensure!(story == [("assigned", 2)], "{story:?}");
    Ok(())
}

pub(crate) async fn static_member_restarts_undisturbed(target: Target) -> Result<()> {
    let topic = target.topic("static", 4).await?;
    let group = unique("static");
    let named = |name| member(&target, &group, &topic, &[("group.instance.id", name)]);
    let stays = named("stays")?;
    settle(&[&stays], &[4]).await?;
    let restarts = named("restarts")?;
    settle(&[&stays, &restarts], &[2, 2]).await?;
    let had = assigned(&restarts.consumer)?;
    stays.diary.take();
    drop(restarts);
    let restarted = named("restarts")?;
    settle(&[&stays, &restarted], &[2, 2]).await?;
    ensure!(assigned(&restarted.consumer)? == had, "it got other partitions");
    let story = stays.diary.take();
    ensure!(story.is_empty(), "the other member was disturbed: {story:?}");
    Ok(())
}

pub(crate) async fn duplicate_static_member_is_fenced(target: Target) -> Result<()> {
    let topic = target.topic("fenced", 2).await?;
    let group = unique("fenced");
    let named = || target.subscriber(&group, &topic, &[("group.instance.id", "the-one")]);
    let first = named()?;
    poll_until("all partitions", &[&first], || Ok(share(&first)? == 2)).await?;
    let second = named()?;
    poll_until("all partitions", &[&second], || Ok(share(&second)? == 2)).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let polled = tokio::time::timeout_at(deadline, first.recv()).await;
        match polled.map_err(|_| anyhow::anyhow!("the first one was never fenced"))? {
            Err(_) => {}
            Ok(_) => continue,
        }
        if let Some((code, _)) = first.client().fatal_error() {
            ensure!(code == RDKafkaErrorCode::FencedInstanceId, "{code}");
            return Ok(());
        }
    }
}

/// A subscription by pattern finds a topic that is created later.
pub(crate) async fn patterns_find_new_topics(target: Target) -> Result<()> {
    let prefix = unique("pattern");
    let consumer = target.consumer(&unique("pattern"), &[])?;
    consumer.subscribe(&[&format!("^{prefix}.*")])?;
    let topic = target.topic(&prefix, 1).await?;
    send_many(&target.producer(&[])?, &topic, Some(0), 3, "x").await?;
    take(&consumer, 3).await?;
    Ok(())
}
