//! Recorded mornings through MQTT into Kafka at full rate, with ingest killed on the way: nothing is lost.

use ingest::decode::decode;
use schemas::{Message, telemetry::VehicleEvent};
use std::collections::{BTreeMap, BTreeSet};
use tests::{Brokers, Process, read_all, recorded, unique, until};

const RECORDINGS: [&str; 2] = ["hfp/hfp-v1-2018-10-09.txt", "hfp/hfp-v2-2023-2024.txt"];

/// How many kills, spread over the run.
#[derive(Clone, Copy)]
struct Kills(usize);

/// What a message becomes, without the time at which we received it: the identity that can be compared.
fn identity(topic: &str, payload: &str) -> String {
    match decode(topic, payload.as_bytes(), 0) {
        Ok(event) => event_identity(event),
        Err(_) => format!("rejected {topic} {payload}"),
    }
}

fn event_identity(mut event: VehicleEvent) -> String {
    event.received_at_ms = 0;
    String::from_utf8(event.encode().unwrap()).unwrap()
}

/// Identity of each distinct (topic, payload) and how many distinct ones share it (events that differ only in parts
/// that do not reach the normalised form).
fn expected(files: &[std::path::PathBuf]) -> BTreeMap<String, usize> {
    let mut distinct = BTreeSet::new();
    for file in files {
        for message in sim::replay::parse(&std::fs::read_to_string(file).unwrap()).unwrap() {
            distinct.insert((message.topic, message.payload));
        }
    }
    let mut identities = BTreeMap::new();
    for (topic, payload) in distinct {
        *identities.entry(identity(&topic, &payload)).or_insert(0) += 1;
    }
    identities
}

async fn found(bus: &runtime::kafka::KafkaBus) -> BTreeMap<String, usize> {
    let mut identities = BTreeMap::new();
    for record in read_all(bus, "telemetry.vehicle").await {
        let event = VehicleEvent::decode(record.value.as_deref().unwrap()).unwrap();
        assert_eq!(record.key_str(), event.key());
        *identities.entry(event_identity(event)).or_insert(0) += 1;
    }
    for record in read_all(bus, "telemetry.rejected").await {
        let topic = record.headers.get_str("mqtt-topic").unwrap().to_owned();
        assert!(record.headers.get_str("reason").is_some() && record.headers.get_str("detail").is_some());
        let payload = String::from_utf8(record.value.unwrap().to_vec()).unwrap();
        *identities.entry(format!("rejected {topic} {payload}")).or_insert(0) += 1;
    }
    identities
}

async fn run(brokers: Brokers, kills: Kills) {
    let Some(files) = RECORDINGS.iter().map(|name| recorded(name)).collect::<Option<Vec<_>>>() else { return };
    let folder = tempfile::tempdir().unwrap();
    let prefix = unique("loses-nothing-") + ".";
    let client = unique("ingest-");
    let mqtt = format!("mqtt://{}", brokers.mqtt);
    let bus = brokers.bus(&prefix);
    let expected = expected(&files);
    let total: usize = expected.values().sum();
    let settings = [
        ("kafka.brokers", brokers.kafka.as_str()),
        ("kafka.topic_prefix", prefix.as_str()),
        ("mqtt.broker", mqtt.as_str()),
        ("mqtt.client_id", client.as_str()),
    ];
    let mut ingest = Process::start(&["ingest"], &settings, folder.path());
    ingest.ready().await;

    let mut replays: Vec<Process> = files
        .iter()
        .map(|file| {
            let args = ["replay", file.to_str().unwrap(), "--mqtt", &mqtt, "--rate", "max"];
            Process::start(&args, &[], folder.path())
        })
        .collect();
    for kill in 1..=kills.0 {
        // At about a fourth, a half and three fourths of the way.
        let enough = total * kill / (kills.0 + 1);
        let begin = std::time::Instant::now();
        while found(&bus).await.values().sum::<usize>() < enough {
            assert!(begin.elapsed() < tests::PATIENCE, "{enough} of {total} not reached:\n{}", ingest.log_text());
        }
        ingest.kill();
        ingest = Process::start(&["ingest"], &settings, folder.path());
        ingest.ready().await;
    }
    until("both recordings are published", || replays.iter_mut().all(Process::has_ended)).await;
    let missing = |found: &BTreeMap<String, usize>| {
        expected.iter().filter(|(identity, n)| found.get(*identity).copied().unwrap_or(0) < **n).count()
    };
    let begin = std::time::Instant::now();
    let mut all = found(&bus).await;
    while missing(&all) > 0 {
        let lost = missing(&all);
        assert!(begin.elapsed() < tests::PATIENCE, "{lost} of {total} messages are lost:\n{}", ingest.log_text());
        all = found(&bus).await;
    }
    for identity in all.keys() {
        assert!(expected.contains_key(identity), "a record that nobody sent: {identity}");
    }
    let records: usize = all.values().sum();
    let copies = records - total;
    eprintln!("{total} distinct messages, {records} records, {copies} copies after {} kills", kills.0);
    // The window does not outlive the process: after a kill, what was delivered and not yet acknowledged comes again.
    // That is at most what may be in flight.
    let in_flight = ingest::config::IngestConfig::default().in_flight;
    assert!(copies <= kills.0 * in_flight, "{copies} copies");
    assert_eq!(ingest.interrupt().await, Some(0));
    drop(bus);
    brokers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_embedded_brokers() {
    run(Brokers::embedded().await, Kills(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_embedded_brokers_with_three_kills() {
    run(Brokers::embedded().await, Kills(3)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn through_mosquitto_and_apache_kafka_with_three_kills() {
    if let Some(brokers) = Brokers::real() {
        run(brokers, Kills(3)).await;
    }
}
