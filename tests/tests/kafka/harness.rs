//! Targets, clients and small helpers of the checks.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use broker::{Broker, Capabilities, Config};
use futures::future::try_join_all;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// A check may take this long; the slowest wait for session time-outs, or start Java a dozen times.
const CHECK_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a condition is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A broker under test.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) bootstrap: String,
    /// Whether transactions are to be expected.
    pub(crate) transactions: bool,
    /// Whether the KIP-848 group protocol is to be expected.
    pub(crate) next_generation_groups: bool,
}

/// A check that runs.
pub(crate) type Check = Pin<Box<dyn Future<Output = Result<()>>>>;

fn run(name: &str, check: impl FnOnce() -> Check) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = runtime.block_on(async { tokio::time::timeout(CHECK_TIMEOUT, check()).await });
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(error)) => panic!("{name}: {error:?}"),
        Err(_) => panic!("{name}: not done after {} s", CHECK_TIMEOUT.as_secs()),
    }
}

/// Runs a check against a broker of its own.
pub(crate) fn on_embedded(name: &str, check: impl FnOnce(Target) -> Check + 'static) {
    on_embedded_with(name, |_| {}, check);
}

/// Runs a check against a broker of its own with changed settings.
pub(crate) fn on_embedded_with(
    name: &str,
    change: impl FnOnce(&mut Config) + 'static,
    check: impl FnOnce(Target) -> Check + 'static,
) {
    run(name, || {
        Box::pin(async {
            let folder = tempfile::tempdir()?;
            let mut config = Config::new(folder.path());
            change(&mut config);
            let broker = Broker::start(config).await?;
            let outcome = check(Target::embedded(&broker)).await;
            broker.shutdown().await;
            outcome
        })
    });
}

/// Runs a check against the Apache Kafka that the environment names.
pub(crate) fn on_apache(name: &str, check: impl FnOnce(Target) -> Check + 'static) {
    match std::env::var("BARISTA_TEST_KAFKA") {
        Ok(bootstrap) => run(name, || check(Target { bootstrap, transactions: true, next_generation_groups: true })),
        Err(_) => skip(name, "BARISTA_TEST_KAFKA names no server"),
    }
}

/// Says that a test was skipped, or fails where that is not allowed.
pub(crate) fn skip(name: &str, why: &str) {
    assert!(std::env::var("BARISTA_REQUIRE_REAL").as_deref() != Ok("1"), "{name}: {why}, and BARISTA_REQUIRE_REAL=1");
    eprintln!("SKIPPED: {name}: {why}");
}

impl Target {
    /// The expectations that an embedded broker's capabilities justify.
    pub(crate) fn embedded(broker: &Broker) -> Self {
        let Capabilities { transactions, next_generation_groups, .. } = broker::capabilities();
        Self { bootstrap: broker.bootstrap(), transactions, next_generation_groups }
    }

    /// Client settings that all clients share.
    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap).set("socket.timeout.ms", "15000");
        if let Ok(debug) = std::env::var("KAFKA_CLIENT_DEBUG") {
            config.set("debug", debug);
        }
        config
    }

    /// A producer with `acks=all` and further `settings`.
    pub(crate) fn producer(&self, settings: &[(&str, &str)]) -> Result<FutureProducer> {
        let mut config = self.client();
        config.set("acks", "all").set("message.timeout.ms", "20000").set("linger.ms", "2");
        settings.iter().for_each(|(key, value)| {
            config.set(*key, *value);
        });
        Ok(config.create()?)
    }

    /// Settings of a consumer that starts at the beginning and commits by hand.
    pub(crate) fn consumer_config(&self, group: &str, settings: &[(&str, &str)]) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            .set("session.timeout.ms", "6000")
            .set("heartbeat.interval.ms", "500")
            .set("topic.metadata.refresh.interval.ms", "1000");
        settings.iter().for_each(|(key, value)| {
            config.set(*key, *value);
        });
        config
    }

    /// A consumer as of [`Self::consumer_config`].
    pub(crate) fn consumer(&self, group: &str, settings: &[(&str, &str)]) -> Result<StreamConsumer> {
        Ok(self.consumer_config(group, settings).create()?)
    }

    /// A consumer subscribed to `topic` in `group`.
    pub(crate) fn subscriber(&self, group: &str, topic: &str, settings: &[(&str, &str)]) -> Result<StreamConsumer> {
        let consumer = self.consumer(group, settings)?;
        consumer.subscribe(&[topic])?;
        Ok(consumer)
    }

    /// A consumer without group that reads partition 0 of `topic` from the beginning.
    pub(crate) fn reader(&self, topic: &str, settings: &[(&str, &str)]) -> Result<StreamConsumer> {
        let consumer = self.consumer(&unique("reader"), settings)?;
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, 0, Offset::Beginning)?;
        consumer.assign(&list)?;
        Ok(consumer)
    }

    /// An admin client.
    pub(crate) fn admin(&self) -> Result<AdminClient<DefaultClientContext>> {
        Ok(self.client().create()?)
    }

    /// Creates a topic with a fresh name and waits until metadata shows it. It keeps its records:
    /// checks write times of long ago, which retention would dispose of.
    pub(crate) async fn topic(&self, prefix: &str, partitions: i32) -> Result<String> {
        self.topic_with(prefix, partitions, &[("retention.ms", "-1")]).await
    }

    /// Creates a topic with settings.
    pub(crate) async fn topic_with(&self, prefix: &str, partitions: i32, settings: &[(&str, &str)]) -> Result<String> {
        let name = unique(prefix);
        self.create(&name, partitions, settings).await?.map_err(|code| anyhow!("{code}"))?;
        let admin = self.admin()?;
        until("the new topic in metadata", || {
            let metadata = admin.inner().fetch_metadata(Some(&name), PATIENCE)?;
            let topic = metadata.topics().first().context("no topic in metadata")?;
            let ready = topic.partitions().iter().filter(|p| p.leader() >= 0).count();
            Ok(topic.error().is_none() && ready == usize::try_from(partitions)?)
        })
        .await?;
        Ok(name)
    }

    /// Asks for a topic; the inner result is the broker's verdict.
    pub(crate) async fn create(
        &self,
        name: &str,
        partitions: i32,
        settings: &[(&str, &str)],
    ) -> Result<Result<(), RDKafkaErrorCode>> {
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        let options = AdminOptions::new().request_timeout(Some(PATIENCE));
        let results = self.admin()?.create_topics(&[topic], &options).await?;
        let verdict = results.into_iter().next().context("no result for the topic")?;
        Ok(verdict.map(|_| ()).map_err(|(_, code)| code))
    }
}

/// A name that was not used before, on this server or by another run.
#[allow(clippy::disallowed_methods, reason = "a name, no decision")]
pub(crate) fn unique(prefix: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}-{:x}-{:x}-{count}", since.as_micros(), std::process::id())
}

/// Sends one record and returns where it lies.
pub(crate) async fn send(
    producer: &FutureProducer,
    topic: &str,
    partition: Option<i32>,
    key: &str,
    value: &str,
) -> Result<(i32, i64)> {
    let mut record = FutureRecord::to(topic).key(key).payload(value);
    record.partition = partition;
    let sent = producer.send(record, PATIENCE).await;
    let delivery = sent.map_err(|(error, _)| anyhow!("cannot produce: {error}"))?;
    Ok((delivery.partition, delivery.offset))
}

/// Sends `count` records `<prefix><number>` and waits until all are acknowledged.
pub(crate) async fn send_many(
    producer: &FutureProducer,
    topic: &str,
    partition: Option<i32>,
    count: usize,
    prefix: &str,
) -> Result<()> {
    // Futures are polled in order by the first poll of the join, which enqueues them in order.
    let sends = (0..count)
        .map(|i| async move { send(producer, topic, partition, &format!("k{i}"), &format!("{prefix}{i}")).await });
    try_join_all(sends).await?;
    Ok(())
}

/// A record as the checks compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) value: String,
}

/// The next record, whatever it is; errors that the client retries are waited out.
pub(crate) async fn receive<C>(consumer: &StreamConsumer<C>) -> Result<BorrowedMessage<'_>>
where
    C: ConsumerContext + 'static,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match tokio::time::timeout_at(deadline, consumer.recv()).await {
            Err(_) => bail!("no record within {} s", PATIENCE.as_secs()),
            Ok(Ok(message)) => return Ok(message),
            Ok(Err(error)) if is_passing(&error) => {}
            Ok(Err(error)) => return Err(error).context("cannot consume"),
        }
    }
}

fn is_passing(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    code.is_some_and(|code| {
        matches!(
            code,
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::UnknownTopicOrPartition
        )
    })
}

/// The next `count` records.
pub(crate) async fn take<C>(consumer: &StreamConsumer<C>, count: usize) -> Result<Vec<Seen>>
where
    C: ConsumerContext + 'static,
{
    let mut seen = Vec::with_capacity(count);
    while seen.len() < count {
        let message = receive(consumer).await.with_context(|| format!("after {} of {count} records", seen.len()))?;
        seen.push(Seen {
            partition: message.partition(),
            offset: message.offset(),
            value: String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned(),
        });
    }
    Ok(seen)
}

/// Fails if a record arrives within `quiet`.
pub(crate) async fn expect_silence<C>(consumer: &StreamConsumer<C>, quiet: Duration) -> Result<()>
where
    C: ConsumerContext + 'static,
{
    match tokio::time::timeout(quiet, consumer.recv()).await {
        Err(_) => Ok(()),
        Ok(Ok(message)) => bail!("an unexpected record at offset {}", message.offset()),
        Ok(Err(error)) => Err(error).context("an unexpected error"),
    }
}

/// Waits until `condition` holds, asking again and again.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(tokio::time::Instant::now() < deadline, "never came: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Polls consumers, as applications do, until `condition` holds; records that arrive are dropped.
pub(crate) async fn poll_until<C>(
    what: &str,
    consumers: &[&StreamConsumer<C>],
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()>
where
    C: ConsumerContext + 'static,
{
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(tokio::time::Instant::now() < deadline, "never came: {what}");
        for consumer in consumers {
            let polled = tokio::time::timeout(Duration::from_millis(20), consumer.recv()).await;
            match polled {
                Ok(Err(error)) if !is_passing(&error) => {
                    return Err(error).context("while polling");
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// Partitions a consumer has, by topic.
pub(crate) fn assigned<C>(consumer: &StreamConsumer<C>) -> Result<BTreeMap<String, Vec<i32>>>
where
    C: ConsumerContext + 'static,
{
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for element in consumer.assignment()?.elements() {
        topics.entry(element.topic().to_owned()).or_default().push(element.partition());
    }
    topics.values_mut().for_each(|partitions| partitions.sort_unstable());
    Ok(topics)
}

/// Number of partitions a consumer has.
pub(crate) fn share<C>(consumer: &StreamConsumer<C>) -> Result<usize>
where
    C: ConsumerContext + 'static,
{
    Ok(consumer.assignment()?.count())
}
