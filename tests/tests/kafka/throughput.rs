//! How many records a second librdkafka gets in and out, and what a large log costs in memory. Run
//! by hand; prints, asserts nothing about time:
//! `cargo test --release -p tests --test kafka throughput -- --ignored --nocapture --test-threads 1`.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use broker::FsyncPolicy;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use crate::children::{Child, free_address};
use crate::harness::{self, PATIENCE, Target};

const RECORD_BYTES: usize = 200;
const RECORDS: u64 = 3_000_000;
/// How often each broker is measured; the best and the worst are printed.
const ROUNDS: usize = 3;
/// Records and seconds of each measurement with forced writes.
const FORCED_RECORDS: u64 = 1_000_000;
const FORCED_SECONDS: u64 = 5;
const LARGE_LOG_BYTES: u64 = 10_000_000_000;
const LARGE_RECORD_BYTES: usize = 1000;

/// Counts delivery reports.
#[derive(Clone, Default)]
struct Reports {
    delivered: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
}

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let counter = if result.is_ok() { &self.delivered } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// Produces until all is acknowledged; returns how long it took.
fn produce(target: &Target, topic: &str, records: u64, bytes: usize) -> Result<Duration> {
    let reports = Reports::default();
    let mut config = target.client();
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "20")
        .set("batch.size", "1000000")
        .set("batch.num.messages", "10000")
        .set("queue.buffering.max.messages", "500000")
        .set("queue.buffering.max.kbytes", "500000")
        .set("message.timeout.ms", "120000");
    let producer: ThreadedProducer<Reports> = config.create_with_context(reports.clone())?;
    let value = vec![b'x'; bytes];
    let start = Instant::now();
    for _ in 0..records {
        let mut record = BaseRecord::<(), [u8]>::to(topic).partition(0).payload(&value);
        while let Err((error, back)) = producer.send(record) {
            ensure!(matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull)), "{error}");
            std::thread::sleep(Duration::from_millis(1));
            record = back;
        }
    }
    producer.flush(Duration::from_secs(120))?;
    let took = start.elapsed();
    let (delivered, failed) = (reports.delivered.load(Ordering::Relaxed), reports.failed.load(Ordering::Relaxed));
    ensure!((delivered, failed) == (records, 0), "{delivered} of {records} delivered, {failed} failed");
    Ok(took)
}

/// Reads that many records from the beginning; returns how long it took.
fn consume(target: &Target, topic: &str, records: u64) -> Result<Duration> {
    let consumer: BaseConsumer = target
        .consumer_config(
            &harness::unique("throughput"),
            &[
                ("queued.min.messages", "200000"),
                ("fetch.message.max.bytes", "4194304"),
                ("queued.max.messages.kbytes", "200000"),
            ],
        )
        .create()?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Beginning)?;
    let start = Instant::now();
    consumer.assign(&list)?;
    let (mut count, mut expected) = (0, 0);
    while count < records {
        let message = consumer.poll(PATIENCE).context("no record in time")??;
        ensure!(message.offset() == expected, "offset {} where {expected} was due", message.offset());
        expected += 1;
        count += 1;
    }
    Ok(start.elapsed())
}

fn rate(records: u64, took: Duration) -> f64 {
    records as f64 / took.as_secs_f64()
}

fn spread(rates: &[f64]) -> String {
    let worst = rates.iter().copied().fold(f64::INFINITY, f64::min);
    let best = rates.iter().copied().fold(0.0, f64::max);
    format!("{worst:.0} to {best:.0}")
}

async fn measure(broker: &'static str, target: Target) -> Result<()> {
    let (mut produced, mut consumed) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let topic = target.topic("throughput", 1).await?;
        produced.push(rate(RECORDS, produce(&target, &topic, RECORDS, RECORD_BYTES)?));
        consumed.push(rate(RECORDS, consume(&target, &topic, RECORDS)?));
        target.admin()?.delete_topics(&[&topic], &rdkafka::admin::AdminOptions::new()).await?;
    }
    let (produced, consumed) = (spread(&produced), spread(&consumed));
    writeln!(
        std::io::stdout(),
        "{broker}, {ROUNDS} times {RECORDS} records of {RECORD_BYTES} bytes, one partition, idempotent, acks=all, \
         no forced fsync: produced {produced}/s, consumed {consumed}/s"
    )?;
    Ok(())
}

#[test]
#[ignore = "a measurement, to be looked at, not a check"]
fn embedded() {
    harness::on_embedded("throughput", |target| Box::pin(measure("embedded", target)));
}

#[test]
#[ignore = "a measurement, to be looked at, not a check"]
fn apache() {
    harness::on_apache("throughput", |target| Box::pin(measure("Apache Kafka", target)));
}

/// What forcing writes to the disk costs: every policy of the embedded broker, and Apache Kafka with its
/// default and with a flush at every append, in turn.
#[test]
#[ignore = "a measurement of three minutes, to be looked at, not a check"]
fn fsync_policies() {
    for round in 1..=ROUNDS {
        for (name, policy) in [
            ("embedded, never", FsyncPolicy::Never),
            ("embedded, interval of 1 s", FsyncPolicy::Interval(Duration::from_secs(1))),
            ("embedded, always", FsyncPolicy::Always),
        ] {
            let change = move |config: &mut broker::Config| config.fsync = policy;
            harness::on_embedded_with(name, change, move |target| {
                Box::pin(async move { forced(round, name, &target, &[]).await })
            });
        }
        for (name, settings) in
            [("Apache Kafka, default", &[][..]), ("Apache Kafka, flush.messages=1", &[("flush.messages", "1")][..])]
        {
            harness::on_apache(name, move |target| {
                Box::pin(async move { forced(round, name, &target, settings).await })
            });
        }
    }
}

/// One line: throughput, and times at a steady rate.
async fn forced(round: usize, name: &str, target: &Target, settings: &[(&str, &str)]) -> Result<()> {
    let settings = &[&[("retention.ms", "-1")], settings].concat();
    let topic = target.topic_with("forced", 1, settings).await?;
    let produced = rate(FORCED_RECORDS, produce(target, &topic, FORCED_RECORDS, RECORD_BYTES)?);
    let consumed = rate(FORCED_RECORDS, consume(target, &topic, FORCED_RECORDS)?);
    let quiet = target.topic_with("forced", 1, settings).await?;
    let [end_to_end, acknowledged] = crate::latency::flow(target, &quiet, "100", FORCED_SECONDS).await?;
    let options = rdkafka::admin::AdminOptions::new();
    target.admin()?.delete_topics(&[&topic, &quiet], &options).await?;
    writeln!(
        std::io::stdout(),
        "round {round}, {name}: produced {produced:.0}/s, consumed {consumed:.0}/s; end to end {end_to_end}; \
         acknowledged {acknowledged}"
    )?;
    Ok(())
}

/// What a broker in a process of its own holds in memory beside a log of 10 GB.
#[test]
#[ignore = "writes 10 GB; a measurement, to be looked at, not a check"]
fn memory_with_a_large_log() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome: Result<()> = runtime.block_on(async {
        let (folder, listen) = (tempfile::tempdir()?, free_address()?);
        let records = LARGE_LOG_BYTES / LARGE_RECORD_BYTES as u64;
        let mut child = Child::ordinary_broker(folder.path(), &listen)?;
        let target = Target { bootstrap: listen.clone(), transactions: true, next_generation_groups: false };
        let topic = target.topic("large", 1).await?;
        let mut out = std::io::stdout();
        writeln!(out, "empty: {}", child.memory()?)?;
        let took = produce(&target, &topic, records, LARGE_RECORD_BYTES)?;
        writeln!(out, "{records} records of {LARGE_RECORD_BYTES} bytes in {took:.1?}: {}", child.memory()?)?;
        let took = consume(&target, &topic, records)?;
        writeln!(out, "all read in {took:.1?}: {}", child.memory()?)?;
        child.kill()?;
        let start = Instant::now();
        child = Child::ordinary_broker(folder.path(), &listen)?;
        writeln!(out, "killed and up again after {:.1?}: {}", start.elapsed(), child.memory()?)?;
        let client: BaseConsumer = target.client().create()?;
        let marks = client.fetch_watermarks(&topic, 0, PATIENCE)?;
        ensure!(marks == (0, i64::try_from(records)?), "{marks:?}");
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error:?}");
    }
}
