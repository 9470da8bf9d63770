//! Where a log begins and ends, times, seeking, and how long a fetch waits.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::FutureRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::harness::{PATIENCE, Target, expect_silence, poll_until, receive, send, send_many, share, take, unique};

pub(crate) async fn watermarks(target: Target) -> Result<()> {
    let topic = target.topic("watermarks", 1).await?;
    let producer = target.producer(&[])?;
    let consumer: BaseConsumer = target.client().create()?;
    let marks = || consumer.fetch_watermarks(&topic, 0, PATIENCE);
    ensure!(marks()? == (0, 0));
    send_many(&producer, &topic, Some(0), 25, "x").await?;
    ensure!(marks()? == (0, 25));
    send_many(&producer, &topic, Some(0), 3, "x").await?;
    ensure!(marks()? == (0, 28));
    Ok(())
}

pub(crate) async fn offsets_for_times(target: Target) -> Result<()> {
    for codec in ["none", "lz4"] {
        let topic = target.topic("times", 1).await?;
        let producer = target.producer(&[("compression.type", codec), ("linger.ms", "100")])?;
        let first = 1_700_000_000_000i64;
        let sends = (0..40i64).map(|i| {
            let (producer, topic) = (&producer, topic.as_str());
            async move {
                let value = format!("value {i}");
                let record = FutureRecord::to(topic).key("k").payload(&value);
                let record = record.partition(0).timestamp(first + i * 1000);
                producer.send(record, PATIENCE).await.map_err(|(error, _)| error)
            }
        });
        futures::future::try_join_all(sends).await?;
        let consumer = target.consumer(&unique("times"), &[])?;
        for (time, expected) in [
            (first - 5000, Offset::Offset(0)),
            (first, Offset::Offset(0)),
            (first + 9_500, Offset::Offset(10)),
            (first + 10_000, Offset::Offset(10)),
            (first + 39_000, Offset::Offset(39)),
            (first + 39_001, Offset::End),
        ] {
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, 0, Offset::Offset(time))?;
            let found = consumer.offsets_for_times(list, PATIENCE)?;
            let found = found.elements().first().context("no answer")?.offset();
            ensure!(found == expected, "{codec}: {time} is at {found:?}, not {expected:?}");
        }
    }
    Ok(())
}

pub(crate) async fn seek(target: Target) -> Result<()> {
    let topic = target.topic("seek", 1).await?;
    send_many(&target.producer(&[])?, &topic, Some(0), 50, "x").await?;
    let consumer = target.reader(&topic, &[])?;
    take(&consumer, 50).await?;
    consumer.seek(&topic, 0, Offset::Offset(17), PATIENCE)?;
    let seen = take(&consumer, 33).await?;
    ensure!(seen.first().is_some_and(|record| record.offset == 17), "{:?}", seen.first());
    consumer.seek(&topic, 0, Offset::OffsetTail(2), PATIENCE)?;
    ensure!(take(&consumer, 2).await?.first().is_some_and(|record| record.offset == 48));
    Ok(())
}

/// A consumer that waits at the end of a partition gets a record when it is produced, not when its
/// wait of a minute is over.
pub(crate) async fn long_poll_wakes_at_once(target: Target) -> Result<()> {
    let topic = target.topic("long-poll", 1).await?;
    let producer = target.producer(&[("linger.ms", "0")])?;
    send(&producer, &topic, Some(0), "k", "first").await?;
    let patient = [("fetch.wait.max.ms", "60000"), ("socket.timeout.ms", "100000")];
    let consumer = target.reader(&topic, &patient)?;
    receive(&consumer).await?;
    for i in 0..5 {
        expect_silence(&consumer, Duration::from_millis(200)).await?;
        let value = format!("later {i}");
        send(&producer, &topic, Some(0), "k", &value).await?;
        let seen = take(&consumer, 1).await?;
        ensure!(seen.iter().all(|record| record.value == value), "{seen:?}");
    }
    Ok(())
}

pub(crate) async fn fetch_waits_for_min_bytes(target: Target) -> Result<()> {
    let topic = target.topic("min-bytes", 1).await?;
    let producer = target.producer(&[("linger.ms", "0")])?;
    let patient = [("fetch.min.bytes", "100000"), ("fetch.wait.max.ms", "60000"), ("socket.timeout.ms", "100000")];
    let consumer = target.reader(&topic, &patient)?;
    send(&producer, &topic, Some(0), "k", "too little").await?;
    expect_silence(&consumer, Duration::from_secs(2)).await?;
    send(&producer, &topic, Some(0), "k", &"z".repeat(120_000)).await?;
    ensure!(take(&consumer, 2).await?.first().is_some_and(|record| record.value == "too little"));
    Ok(())
}

pub(crate) async fn out_of_range_offset_is_reset(target: Target) -> Result<()> {
    let topic = target.topic("range", 1).await?;
    send_many(&target.producer(&[])?, &topic, Some(0), 5, "x").await?;
    let consumer = target.consumer(&unique("range"), &[])?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic, 0, Offset::Offset(1000))?;
    consumer.assign(&list)?;
    ensure!(take(&consumer, 1).await?.first().is_some_and(|record| record.offset == 0));
    Ok(())
}

pub(crate) async fn paused_partition_stays_silent(target: Target) -> Result<()> {
    let topic = target.topic("pause", 1).await?;
    let producer = target.producer(&[])?;
    send_many(&producer, &topic, Some(0), 5, "x").await?;
    let consumer = target.subscriber(&unique("pause"), &topic, &[])?;
    take(&consumer, 5).await?;
    poll_until("an assignment", &[&consumer], || Ok(share(&consumer)? == 1)).await?;
    let assignment = consumer.assignment()?;
    consumer.pause(&assignment)?;
    send_many(&producer, &topic, Some(0), 5, "y").await?;
    expect_silence(&consumer, Duration::from_secs(2)).await?;
    consumer.resume(&assignment)?;
    let seen = take(&consumer, 5).await?;
    ensure!(seen.iter().all(|record| record.value.starts_with('y')), "{seen:?}");
    Ok(())
}
