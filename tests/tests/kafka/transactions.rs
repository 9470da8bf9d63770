//! Transactions, where the broker has them; where not, that it says so at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rdkafka::consumer::{Consumer, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::harness::{PATIENCE, Target, expect_silence, send_many, take, unique};

/// A transactional producer, initialised; `None` where the broker has rightly refused.
async fn transactional(target: &Target, id: &str) -> Result<Option<FutureProducer>> {
    let settings = [("transactional.id", id), ("transaction.timeout.ms", "20000")];
    let producer = target.producer(&settings)?;
    let asked = Instant::now();
    let initialised = producer.init_transactions(PATIENCE);
    if target.transactions {
        initialised?;
        return Ok(Some(producer));
    }
    // Not a hang, not a time-out: a final error that says what is wrong.
    let waited = asked.elapsed();
    ensure!(waited < Duration::from_secs(5), "refused only after {waited:?}");
    match initialised {
        Err(KafkaError::Transaction(error)) if error.is_fatal() => {
            ensure!(error.string().contains("transactions are not available"), "{error}");
            Ok(None)
        }
        other => bail!("expected a fatal error, got {other:?}"),
    }
}

fn committed_reader(target: &Target, topic: &str) -> Result<StreamConsumer> {
    target.reader(topic, &[("isolation.level", "read_committed")])
}

pub(crate) async fn commit_and_abort(target: Target) -> Result<()> {
    let input = target.topic("txn-in", 1).await?;
    let output = target.topic("txn-out", 1).await?;
    send_many(&target.producer(&[])?, &input, Some(0), 30, "in").await?;
    let consumer = target.subscriber(&unique("txn"), &input, &[])?;
    take(&consumer, 10).await?;
    let Some(producer) = transactional(&target, &unique("txn")).await? else { return Ok(()) };
    let offsets = |offset| -> Result<TopicPartitionList> {
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&input, 0, Offset::Offset(offset))?;
        Ok(list)
    };
    let group = consumer.group_metadata().context("no group metadata")?;

    producer.begin_transaction()?;
    send_many(&producer, &output, Some(0), 10, "kept").await?;
    producer.send_offsets_to_transaction(&offsets(10)?, &group, PATIENCE)?;
    producer.commit_transaction(PATIENCE)?;
    producer.begin_transaction()?;
    send_many(&producer, &output, Some(0), 10, "dropped").await?;
    producer.send_offsets_to_transaction(&offsets(20)?, &group, PATIENCE)?;
    producer.abort_transaction(PATIENCE)?;
    producer.begin_transaction()?;
    send_many(&producer, &output, Some(0), 5, "last").await?;
    producer.commit_transaction(PATIENCE)?;

    let seen = take(&committed_reader(&target, &output)?, 15).await?;
    let count = |prefix: &str| seen.iter().filter(|r| r.value.starts_with(prefix)).count();
    ensure!((count("kept"), count("dropped"), count("last")) == (10, 0, 5), "{seen:?}");
    let committed = consumer.committed(PATIENCE)?;
    let offset = committed.elements().first().context("no offset")?.offset();
    ensure!(offset == Offset::Offset(10), "{offset:?}");
    Ok(())
}

pub(crate) async fn open_transaction_is_hidden(target: Target) -> Result<()> {
    let topic = target.topic("txn-open", 1).await?;
    let Some(producer) = transactional(&target, &unique("txn")).await? else { return Ok(()) };
    producer.begin_transaction()?;
    send_many(&producer, &topic, Some(0), 5, "open").await?;
    let reader = committed_reader(&target, &topic)?;
    expect_silence(&reader, Duration::from_secs(3)).await?;
    producer.commit_transaction(PATIENCE)?;
    take(&reader, 5).await?;
    Ok(())
}

/// A second producer with the same id ends the first one's transaction: the zombie cannot commit,
/// is told that it is fenced, and what it wrote is never seen.
pub(crate) async fn zombie_is_fenced(target: Target) -> Result<()> {
    let topic = target.topic("txn-fenced", 1).await?;
    let id = unique("txn");
    let Some(zombie) = transactional(&target, &id).await? else { return Ok(()) };
    zombie.begin_transaction()?;
    send_many(&zombie, &topic, Some(0), 3, "zombie").await?;
    let heir = transactional(&target, &id).await?.context("refused the second time")?;
    match zombie.commit_transaction(PATIENCE) {
        Err(KafkaError::Transaction(error)) if error.is_fatal() => {
            let fenced = [RDKafkaErrorCode::Fenced, RDKafkaErrorCode::InvalidProducerEpoch];
            ensure!(fenced.contains(&error.code()), "{error}");
        }
        other => bail!("the zombie's commit: {other:?}"),
    }
    heir.begin_transaction()?;
    send_many(&heir, &topic, Some(0), 2, "heir").await?;
    heir.commit_transaction(PATIENCE)?;
    let seen = take(&committed_reader(&target, &topic)?, 2).await?;
    ensure!(seen.iter().all(|record| record.value.starts_with("heir")), "{seen:?}");
    Ok(())
}
