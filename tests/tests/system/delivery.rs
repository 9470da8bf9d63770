//! Requests and answers while executor nodes are killed at random moments and partitions move.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::kafka::KafkaBus;
use runtime::{Bus, OutRecord};
use schemas::Topics;
use schemas::allocation::{InstanceAllocation, NodeAllocation};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use tests::{Brokers, Process, read_all, send, unique, workspace};

const NODES: usize = 3;
/// Kills in CI; `DELIVERY_KILLS` sets another number. (Not `BARISTA_…`: those are settings of the nodes.)
const KILLS: usize = 5;
/// A shell command that kills and restarts the broker under test, for `DELIVERY_RESTARTS` times between the kills. CI does
/// without: its other tests use the same broker. See `docs/benchmarks/executor.md`.
const RESTART: &str = "DELIVERY_RESTART";
/// Between two requests of the sender.
const PAUSE: Duration = Duration::from_millis(4);

fn plan(node: &str) -> NodeAllocation {
    NodeAllocation {
        schema: Default::default(),
        node: node.to_owned(),
        plan_id: "1-1".to_owned(),
        epoch: 1,
        sequence: 1,
        created_at_ms: 0,
        instances: vec![InstanceAllocation {
            service: "delay".to_owned(),
            model: workspace().join("models/delay.onnx").to_string_lossy().into_owned(),
            version: "1".to_owned(),
            backend: "tract".to_owned(),
            workers: 1,
            max_batch: 4,
            slo_ms: 600_000.0,
            service_p95_ms: 1.0,
        }],
        drain: false,
        reason: "a test".to_owned(),
        load: Vec::new(),
    }
}

fn request(bus: &KafkaBus, i: usize) -> OutRecord {
    let body = format!(
        r#"{{"id":"r{i}","inputs":[{{"name":"features","shape":[1,16],"datatype":"FP32",
        "data":[{i},-20,-60,0,-30,12,6.5,11.0,0.1,0.2,90,55,0.5,0.5,0.1,0.9]}}]}}"#
    );
    // Every fiftieth is refused: rejections are answers, too.
    let request = OutRecord::new(bus.topics().requests("delay")).key(format!("r{i}"));
    if i.is_multiple_of(50) { request.value("not JSON") } else { request.value(body) }
}

/// Answers by the key of their request.
async fn answers(bus: &KafkaBus) -> BTreeMap<String, usize> {
    let mut answers = BTreeMap::new();
    for topic in ["prediction.results.delay", "prediction.rejected"] {
        for record in read_all(bus, topic).await {
            *answers.entry(record.key_str().to_owned()).or_default() += 1;
        }
    }
    answers
}

/// Kills nodes under load; every request has an answer, and exactly one when that is what was asked for.
async fn survive(brokers: Brokers, delivery: &str) {
    let kills = std::env::var("DELIVERY_KILLS").ok().map_or(KILLS, |n| n.parse().expect("DELIVERY_KILLS is a number"));
    let seed: u64 = std::env::var("DELIVERY_SEED").ok().map_or_else(rand::random, |s| s.parse().expect("a number"));
    eprintln!("{delivery}: {kills} kills, seed {seed} (DELIVERY_SEED repeats it)");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let prefix = unique("delivery-") + ".";
    let bus = Arc::new(brokers.bus(&prefix));
    bus.create_topics(&Topics::all(["delay"])).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("barista.toml");
    let text = format!(
        "[kafka]\nbrokers = {:?}\ntopic_prefix = {prefix:?}\nsession_timeout = \"6s\"\ntransaction_timeout = \"6s\"\n\
         [executor]\nflavor = \"here\"\ncores = 1\ndelivery = {delivery:?}\n",
        brokers.kafka
    );
    std::fs::write(&config, text).unwrap();
    let start = |node: &str| {
        let args = ["executor", "-c", config.to_str().unwrap()];
        Process::start(&args, &[("executor.node", node)], folder.path())
    };
    let names: Vec<String> = (0..NODES).map(|n| format!("n{n}")).collect();
    for name in &names {
        send(&bus, OutRecord::message(bus.topics().name("allocation.control"), &plan(name)).unwrap()).await;
    }
    let mut nodes: Vec<Process> = names.iter().map(|name| start(name)).collect();

    let (sent, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let sender = tokio::spawn({
        let (bus, sent, stop) = (bus.clone(), sent.clone(), stop.clone());
        async move {
            let sink = bus.sink();
            while !stop.load(Ordering::Relaxed) {
                let i = sent.load(Ordering::Relaxed);
                sink.send(request(&bus, i)).await.expect("Kafka takes the request");
                sent.store(i + 1, Ordering::Relaxed);
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
    let restarts: usize = std::env::var("DELIVERY_RESTARTS").map_or(0, |n| n.parse().expect("a number"));
    for kill in 0..kills {
        if restarts > 0 && kill % kills.div_ceil(restarts) == kills.div_ceil(restarts) / 2 {
            let command = std::env::var(RESTART).expect("DELIVERY_RESTART names the command");
            let restart = move || std::process::Command::new("sh").args(["-c", &command]).status();
            let status = tokio::task::spawn_blocking(restart).await.unwrap().expect("a shell");
            assert!(status.success(), "{RESTART}: {status}");
            eprintln!("{delivery}: the broker was killed and started again, {} sent", sent.load(Ordering::Relaxed));
        }
        let victim = random.random_range(0..NODES);
        nodes[victim].kill();
        // The others work on for a while, or not: both are moments to come back in.
        tokio::time::sleep(Duration::from_millis(random.random_range(0..1500))).await;
        nodes[victim] = start(&names[victim]);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..2500))).await;
    }
    stop.store(true, Ordering::Relaxed);
    sender.await.unwrap();
    let sent = sent.load(Ordering::Relaxed);
    for node in &mut nodes {
        assert!(!node.has_ended(), "a node has ended by itself:\n{}", node.log_text());
    }
    let mut missing = sent;
    let begin = std::time::Instant::now();
    while missing > 0 {
        let answered = answers(&bus).await;
        missing = (0..sent).filter(|i| !answered.contains_key(&format!("r{i}"))).count();
        assert!(begin.elapsed() < tests::PATIENCE, "{missing} of {sent} requests without an answer, seed {seed}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    for node in nodes {
        assert_eq!(node.interrupt().await, Some(0));
    }
    let answered = answers(&bus).await;
    let doubled = answered.values().filter(|n| **n > 1).count();
    eprintln!("{delivery}: {sent} requests, {kills} kills, all answered, {doubled} more than once");
    assert_eq!(answered.len(), sent, "answers to requests that nobody sent, seed {seed}");
    if delivery == "exactly_once" {
        let again: Vec<_> = answered.iter().filter(|(_, n)| **n > 1).collect();
        assert!(again.is_empty(), "answered more than once: {again:?}, seed {seed}");
    }
    assert!(sent > 50, "{sent} requests are too few to tell");
    brokers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_loses_nothing_on_embedded_brokers() {
    survive(Brokers::embedded().await, "at_least_once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_once_doubles_nothing_on_embedded_brokers() {
    survive(Brokers::embedded().await, "exactly_once").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_loses_nothing_on_real_brokers() {
    if let Some(brokers) = Brokers::real() {
        survive(brokers, "at_least_once").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exactly_once_doubles_nothing_on_real_brokers() {
    if let Some(brokers) = Brokers::real() {
        survive(brokers, "exactly_once").await;
    }
}
