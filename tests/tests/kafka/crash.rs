//! The embedded broker killed by SIGKILL, and what must be there afterwards.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

use crate::children::{Child, free_address};
use crate::harness::{PATIENCE, Target, send_many, take, unique};
use crate::wire::{self, Produced, Wire};

/// A broker process on a folder, restarted on the same address.
struct Victim {
    folder: tempfile::TempDir,
    listen: String,
    child: Option<Child>,
}

impl Victim {
    fn start() -> Result<Self> {
        let mut victim = Self { folder: tempfile::tempdir()?, listen: free_address()?, child: None };
        victim.restart()?;
        Ok(victim)
    }

    fn target(&self) -> Target {
        Target { bootstrap: self.listen.clone(), transactions: false, next_generation_groups: false }
    }

    fn kill(&mut self) -> Result<()> {
        self.child.take().context("it is dead already")?.kill()
    }

    fn restart(&mut self) -> Result<()> {
        self.child = Some(Child::broker(self.folder.path(), &self.listen)?);
        Ok(())
    }

    /// Files under the folder with this extension, in order.
    fn files(&self, extension: &str) -> Result<Vec<PathBuf>> {
        fn collect(dir: &Path, extension: &str, into: &mut Vec<PathBuf>) -> Result<()> {
            for entry in fs::read_dir(dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    collect(&path, extension, into)?;
                } else if path.extension().is_some_and(|found| found == extension) {
                    into.push(path);
                }
            }
            Ok(())
        }
        let mut found = Vec::new();
        collect(self.folder.path(), extension, &mut found)?;
        found.sort();
        Ok(found)
    }
}

/// Runs an async check on a runtime of its own.
fn run(check: impl Future<Output = Result<()>>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    if let Err(error) = runtime.block_on(check) {
        panic!("{error:?}");
    }
}

/// Keeps a window of sends in flight until `goal` of them are acknowledged.
async fn produce_until(
    producer: &FutureProducer,
    topic: &str,
    next: &mut u64,
    acknowledged: &mut Vec<(u64, i64)>,
    goal: usize,
    mut disturb: impl FnMut(usize) -> Result<()>,
) -> Result<()> {
    let mut flying = FuturesUnordered::new();
    while acknowledged.len() < goal || !flying.is_empty() {
        while flying.len() < 200 && acknowledged.len() + flying.len() < goal {
            let number = *next;
            *next += 1;
            let (producer, topic) = (producer.clone(), topic.to_owned());
            flying.push(async move {
                let value = format!("{number:0100}");
                let record = FutureRecord::to(&topic).key("k").payload(&value).partition(0);
                (number, producer.send(record, PATIENCE).await)
            });
        }
        let Some((number, sent)) = flying.next().await else { break };
        let delivery = sent.map_err(|(error, _)| error).with_context(|| format!("{number}"))?;
        acknowledged.push((number, delivery.offset));
        disturb(acknowledged.len())?;
    }
    Ok(())
}

/// An idempotent producer writes on while the broker is killed again and again: everything that was
/// acknowledged is there, at the offset that was told, and nothing is there twice.
#[test]
fn kill_loses_nothing_acknowledged_and_repeats_nothing() {
    run(async {
        const RECORDS: usize = 12_000;
        let mut victim = Victim::start()?;
        let target = victim.target();
        let topic = target.topic("crash", 1).await?;
        let producer = target.producer(&[
            ("enable.idempotence", "true"),
            ("message.timeout.ms", "60000"),
            ("reconnect.backoff.max.ms", "200"),
            ("linger.ms", "1"),
        ])?;
        let mut acknowledged = Vec::new();
        let mut kills = [500, 2100, 2150, 6007, 9999].into_iter().peekable();
        produce_until(&producer, &topic, &mut 0, &mut acknowledged, RECORDS, |count| {
            if kills.next_if(|at| *at <= count).is_some() {
                victim.kill()?;
                victim.restart()?;
            }
            Ok(())
        })
        .await?;
        ensure!(kills.peek().is_none(), "not all kills happened");
        victim.kill()?;
        victim.restart()?;

        let client: BaseConsumer = target.client().create()?;
        let marks = client.fetch_watermarks(&topic, 0, PATIENCE)?;
        ensure!(marks == (0, i64::try_from(RECORDS)?), "{marks:?} for {RECORDS} records");
        let seen = take(&target.reader(&topic, &[("check.crcs", "true")])?, RECORDS).await?;
        for (number, offset) in acknowledged {
            let record = &seen[usize::try_from(offset)?];
            ensure!(record.offset == offset && record.value.parse::<u64>()? == number);
        }
        ensure!(!victim.files("index")?.is_empty(), "the log was to have closed segments");
        Ok(())
    });
}

#[test]
fn topics_settings_and_offsets_survive() {
    run(async {
        let mut victim = Victim::start()?;
        let target = victim.target();
        let topic = target.topic_with("kept", 3, &[("cleanup.policy", "compact")]).await?;
        let gone = target.topic("gone", 1).await?;
        target.admin()?.delete_topics(&[&gone], &rdkafka::admin::AdminOptions::new()).await?;
        send_many(&target.producer(&[])?, &topic, Some(0), 50, "x").await?;
        let group = unique("kept");
        {
            let consumer = target.subscriber(&group, &topic, &[])?;
            take(&consumer, 50).await?;
            let mut list = TopicPartitionList::new();
            list.add_partition_offset(&topic, 0, Offset::Offset(37))?;
            consumer.commit(&list, CommitMode::Sync)?;
        }
        victim.kill()?;
        victim.restart()?;
        let consumer = target.subscriber(&group, &topic, &[])?;
        ensure!(take(&consumer, 13).await?.first().is_some_and(|record| record.offset == 37));
        let metadata = consumer.fetch_metadata(None, PATIENCE)?;
        let topics: Vec<_> = metadata.topics().iter().map(|t| (t.name().to_owned(), t.partitions().len())).collect();
        ensure!(topics == [(topic.clone(), 3)], "{topics:?}");
        let resource = [rdkafka::admin::ResourceSpecifier::Topic(&topic)];
        let options = rdkafka::admin::AdminOptions::new();
        let described = target.admin()?.describe_configs(&resource, &options).await?;
        let config = described.into_iter().next().context("no answer")?;
        let config = config.map_err(|code| anyhow::anyhow!("{code}"))?;
        let policy = config.get("cleanup.policy").and_then(|entry| entry.value.as_deref());
        ensure!(policy == Some("compact"), "{policy:?}");
        Ok(())
    });
}

/// What a producer wrote before the crash is still known as written.
#[test]
fn repeats_are_recognised_after_a_restart() {
    run(async {
        let mut victim = Victim::start()?;
        let target = victim.target();
        let topic = target.topic("repeat", 1).await?;
        let mut wire = Wire::connect(&target.bootstrap)?;
        let producer = wire.producer_id()?;
        let batch = |sequence, value| wire::batch(producer, sequence, Some("k"), &[value]);
        for sequence in 0..7 {
            wire.produce(&topic, &batch(sequence, "first time"))?;
        }
        victim.kill()?;
        victim.restart()?;
        let mut wire = Wire::connect(&target.bootstrap)?;
        let accepted = |base_offset| Produced { error: wire::NONE, base_offset };
        ensure!(wire.produce(&topic, &batch(6, "first time"))? == accepted(6));
        ensure!(wire.produce(&topic, &batch(3, "first time"))? == accepted(3));
        ensure!(wire.produce(&topic, &batch(7, "next"))? == accepted(7));
        ensure!(wire.produce(&topic, &batch(9, "gap"))?.error == wire::OUT_OF_ORDER_SEQUENCE);
        ensure!(wire.producer_id()? != producer, "a producer id was given out twice");
        Ok(())
    });
}

/// A write that the crash cut short is cut off, and nothing else is.
#[test]
fn torn_tail_is_cut_off_and_nothing_else() {
    run(async {
        let mut victim = Victim::start()?;
        let target = victim.target();
        let topic = target.topic("torn", 1).await?;
        send_many(&target.producer(&[])?, &topic, Some(0), 300, "whole").await?;
        let client: BaseConsumer = target.client().create()?;
        let batch = wire::batch(wire::NOBODY, -1, Some("k"), &["a record that is never finished"]);
        for part in [1, 17, 60, 61, batch.len() - 1] {
            victim.kill()?;
            let log = victim.files("log")?.pop().context("no log")?;
            let before = fs::metadata(&log)?.len();
            let mut torn = batch.clone();
            // The offset the next batch would have had.
            torn[..8].copy_from_slice(&300i64.to_be_bytes());
            OpenOptions::new().append(true).open(&log)?.write_all(&torn[..part])?;
            victim.restart()?;
            ensure!(client.fetch_watermarks(&topic, 0, PATIENCE)? == (0, 300), "{part} bytes");
            ensure!(fs::metadata(&log)?.len() == before, "{part} bytes");
        }
        send_many(&target.producer(&[])?, &topic, Some(0), 10, "after").await?;
        let seen = take(&target.reader(&topic, &[("check.crcs", "true")])?, 310).await?;
        let whole = seen.iter().filter(|record| record.value.starts_with("whole")).count();
        ensure!(whole == 300, "{whole} of 300 whole records");
        Ok(())
    });
}

/// Index files are a convenience: without them, or with nonsense in them, nothing is missing.
#[test]
fn lost_index_files_are_rebuilt() {
    run(async {
        let mut victim = Victim::start()?;
        let target = victim.target();
        let topic = target.topic("index", 1).await?;
        let producer = target.producer(&[("linger.ms", "5"), ("batch.num.messages", "50")])?;
        send_many(&producer, &topic, Some(0), 3000, &"x".repeat(500)).await?;
        victim.kill()?;
        let indexes = victim.files("index")?;
        ensure!(indexes.len() > 2, "the log was to have closed segments");
        fs::remove_file(&indexes[0])?;
        fs::write(&indexes[1], b"nonsense")?;
        victim.restart()?;
        let seen = take(&target.reader(&topic, &[])?, 3000).await?;
        ensure!(seen.iter().enumerate().all(|(i, r)| usize::try_from(r.offset).ok() == Some(i)));
        ensure!(victim.files("index")? == indexes, "an index was not written again");
        Ok(())
    });
}
