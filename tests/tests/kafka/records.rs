//! What is produced comes back: content, order, and each record once.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use rdkafka::Timestamp;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::FutureRecord;

use crate::harness::{PATIENCE, Target, receive, send, send_many, take};
use crate::wire::{self, NOBODY, Produced, Wire};

pub(crate) async fn keys_headers_timestamps_and_tombstones(target: Target) -> Result<()> {
    let topic = target.topic("content", 1).await?;
    let producer = target.producer(&[])?;
    let time = 1_700_000_000_123;
    let headers = OwnedHeaders::new()
        .insert(Header { key: "text", value: Some("v") })
        .insert(Header { key: "bytes", value: Some(&[0u8, 255, 1][..]) })
        .insert(Header::<&str> { key: "null", value: None })
        .insert(Header { key: "text", value: Some("again") });
    let full = FutureRecord::to(&topic).key("k").payload("v").headers(headers).timestamp(time);
    producer.send(full, PATIENCE).await.map_err(|(error, _)| error)?;
    let tombstone = FutureRecord::<str, str>::to(&topic).key("k");
    producer.send(tombstone, PATIENCE).await.map_err(|(error, _)| error)?;
    let keyless = FutureRecord::<str, [u8]>::to(&topic).payload(&[]);
    producer.send(keyless, PATIENCE).await.map_err(|(error, _)| error)?;

    let consumer = target.reader(&topic, &[])?;
    let first = receive(&consumer).await?;
    ensure!(first.key() == Some(b"k") && first.payload() == Some(b"v"));
    ensure!(first.timestamp() == Timestamp::CreateTime(time), "{:?}", first.timestamp());
    let headers = first.headers().context("no headers")?;
    let seen: Vec<_> = headers.iter().map(|h| (h.key, h.value)).collect();
    let expected: [(&str, Option<&[u8]>); 4] =
        [("text", Some(b"v")), ("bytes", Some(&[0, 255, 1])), ("null", None), ("text", Some(b"again"))];
    ensure!(seen == expected, "{seen:?}");
    let second = receive(&consumer).await?;
    ensure!(second.key() == Some(b"k") && second.payload().is_none(), "not a tombstone");
    let third = receive(&consumer).await?;
    ensure!(third.key().is_none() && third.payload().is_some_and(<[u8]>::is_empty));
    Ok(())
}

pub(crate) async fn codecs(target: Target) -> Result<()> {
    for codec in ["gzip", "snappy", "lz4", "zstd"] {
        let topic = target.topic(codec, 1).await?;
        let producer = target.producer(&[("compression.type", codec), ("linger.ms", "50")])?;
        let prefix = "the same words compress well ".repeat(8);
        send_many(&producer, &topic, Some(0), 500, &prefix).await?;
        let seen = take(&target.reader(&topic, &[])?, 500).await?;
        for (i, record) in seen.iter().enumerate() {
            ensure!(record.offset == i64::try_from(i)?, "{codec}: {record:?} at {i}");
            ensure!(record.value == format!("{prefix}{i}"), "{codec}: another value at {i}");
        }
    }
    Ok(())
}

pub(crate) async fn large_records(target: Target) -> Result<()> {
    let topic = target.topic("large", 1).await?;
    let producer = target.producer(&[])?;
    let value = |i: usize| format!("{i}{}", "z".repeat(900_000));
    for i in 0..4 {
        send(&producer, &topic, Some(0), "k", &value(i)).await?;
    }
    // Larger than what the consumer asks for per partition: it must get them all the same.
    let consumer = target.reader(&topic, &[("fetch.message.max.bytes", "10000")])?;
    let seen = take(&consumer, 4).await?;
    ensure!(seen.iter().enumerate().all(|(i, record)| record.value == value(i)));
    Ok(())
}

pub(crate) async fn oversized_record_is_refused(target: Target) -> Result<()> {
    let topic = target.topic_with("oversized", 1, &[("max.message.bytes", "10000")]).await?;
    let producer = target.producer(&[])?;
    let value = "z".repeat(20_000);
    let refused = producer.send(FutureRecord::to(&topic).key("k").payload(&value), PATIENCE).await;
    match refused {
        Err((KafkaError::MessageProduction(RDKafkaErrorCode::MessageSizeTooLarge), _)) => {}
        other => bail!("expected MessageSizeTooLarge, got {other:?}"),
    }
    let (_, offset) = send(&producer, &topic, Some(0), "k", "small").await?;
    ensure!(offset == 0, "the refused record took an offset");
    Ok(())
}

pub(crate) async fn idempotent_producer_keeps_order(target: Target) -> Result<()> {
    let topic = target.topic("idempotent", 1).await?;
    let producer = target.producer(&[("enable.idempotence", "true")])?;
    send_many(&producer, &topic, Some(0), 2000, "i").await?;
    let seen = take(&target.reader(&topic, &[])?, 2000).await?;
    for (i, record) in seen.iter().enumerate() {
        ensure!(record.offset == i64::try_from(i)? && record.value == format!("i{i}"), "{record:?}");
    }
    Ok(())
}

pub(crate) async fn repeated_batches_are_appended_once(target: Target) -> Result<()> {
    let topic = target.topic("repeated", 1).await?;
    let mut wire = Wire::connect(&target.bootstrap)?;
    let producer = wire.producer_id()?;
    let batch = |sequence, values: &[&str]| wire::batch(producer, sequence, Some("k"), values);
    let accepted = |base_offset| Produced { error: wire::NONE, base_offset };

    ensure!(wire.produce(&topic, &batch(0, &["a", "b"]))? == accepted(0));
    ensure!(wire.produce(&topic, &batch(2, &["c"]))? == accepted(2));
    // A client whose answer was lost sends again, with up to five batches in flight.
    ensure!(wire.produce(&topic, &batch(2, &["c"]))? == accepted(2));
    ensure!(wire.produce(&topic, &batch(0, &["a", "b"]))? == accepted(0));
    ensure!(wire.produce(&topic, &batch(3, &["d"]))? == accepted(3));
    let gap = wire.produce(&topic, &batch(9, &["lost before"]))?;
    ensure!(gap.error == wire::OUT_OF_ORDER_SEQUENCE, "{gap:?}");
    // Another producer has its own numbers.
    let other = wire.producer_id()?;
    ensure!(other != producer);
    let batch = wire::batch(other, 0, Some("k"), &["e"]);
    ensure!(wire.produce(&topic, &batch)? == accepted(4));

    let seen = take(&target.reader(&topic, &[])?, 5).await?;
    let values: String = seen.into_iter().map(|record| record.value).collect();
    ensure!(values == "abcde", "{values}");
    Ok(())
}

pub(crate) async fn concurrent_producers_keep_their_order(target: Target) -> Result<()> {
    const EACH: usize = 400;
    let topic = target.topic("concurrent", 1).await?;
    let producers = (0..4).map(|_| target.producer(&[("enable.idempotence", "true")]));
    let producers = producers.collect::<Result<Vec<_>>>()?;
    let sends = producers.iter().enumerate().map(|(i, producer)| {
        let topic = topic.clone();
        async move { send_many(producer, &topic, Some(0), EACH, &format!("{i}:")).await }
    });
    try_join_all(sends).await?;
    let seen = take(&target.reader(&topic, &[])?, 4 * EACH).await?;
    let mut next: BTreeMap<String, usize> = BTreeMap::new();
    for (at, record) in seen.iter().enumerate() {
        ensure!(record.offset == i64::try_from(at)?, "offsets have a gap at {record:?}");
        let (producer, number) = record.value.split_once(':').context("another value")?;
        let expected = next.entry(producer.to_owned()).or_default();
        ensure!(number.parse::<usize>()? == *expected, "{record:?} instead of {expected}");
        *expected += 1;
    }
    ensure!(next.values().all(|count| *count == EACH), "{next:?}");
    Ok(())
}

#[allow(clippy::disallowed_methods, reason = "compared with the broker's stamp")]
pub(crate) async fn append_time_is_stamped(target: Target) -> Result<()> {
    let settings = [("message.timestamp.type", "LogAppendTime")];
    let topic = target.topic_with("append-time", 1, &settings).await?;
    let producer = target.producer(&[])?;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_millis());
    let before = i64::try_from(now()?)?;
    let record = FutureRecord::to(&topic).key("k").payload("v").timestamp(1000);
    producer.send(record, PATIENCE).await.map_err(|(error, _)| error)?;
    let after = i64::try_from(now()?)?;
    let consumer = target.reader(&topic, &[("check.crcs", "true")])?;
    match receive(&consumer).await?.timestamp() {
        Timestamp::LogAppendTime(at) if (before..=after).contains(&at) => Ok(()),
        other => bail!("{other:?} is not an append time between {before} and {after}"),
    }
}

pub(crate) async fn compacted_topic_needs_keys(target: Target) -> Result<()> {
    let topic = target.topic_with("keyed", 1, &[("cleanup.policy", "compact")]).await?;
    let mut wire = Wire::connect(&target.bootstrap)?;
    let refused = wire.produce(&topic, &wire::batch(NOBODY, -1, None, &["no key"]))?;
    ensure!(refused.error == wire::INVALID_RECORD, "{refused:?}");
    let accepted = wire.produce(&topic, &wire::batch(NOBODY, -1, Some("k"), &["v"]))?;
    ensure!(accepted == Produced { error: wire::NONE, base_offset: 0 }, "{accepted:?}");
    Ok(())
}
