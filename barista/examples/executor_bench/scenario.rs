//! The scenarios. Each prints JSON lines.

use crate::Options;
use crate::world::{Answer, ECHO, NODE, World};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use schemas::status::InstanceState;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

type Statuses = tokio::sync::mpsc::UnboundedReceiver<schemas::status::ExecutorStatus>;

/// Objective where the deadline is not what is measured, milliseconds.
const NO_HURRY_MS: f64 = 60_000.0;
/// Longest wait for a node.
const PATIENCE: Duration = Duration::from_secs(60);

fn print(value: &serde_json::Value) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{value}")?;
    Ok(())
}

fn quantile(samples: &mut [f64], q: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = ((q * samples.len() as f64).ceil() as usize).clamp(1, samples.len().max(1)) - 1;
    samples.get(rank).copied().unwrap_or(f64::NAN)
}

fn median(samples: &[f64]) -> f64 {
    quantile(&mut samples.to_vec(), 0.5)
}

fn name(options: &Options) -> String {
    options.model.file_stem().map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

/// Waits until `node` says that all its instances of this plan are ready.
async fn serve(world: &World, node: &str, versions: &[&str], slo_ms: f64) -> anyhow::Result<f64> {
    let statuses = world.statuses().await?;
    serve_seen(world, statuses, node, versions, slo_ms).await
}

async fn serve_seen(
    world: &World,
    mut statuses: Statuses,
    node: &str,
    versions: &[&str],
    slo_ms: f64,
) -> anyhow::Result<f64> {
    world.plan(node, versions, slo_ms).await?;
    let ready = async {
        while let Some(status) = statuses.recv().await {
            let ready: Vec<_> = status.instances.iter().filter(|i| i.state == InstanceState::Ready).collect();
            let failed = status.instances.iter().find_map(|i| i.error.clone());
            anyhow::ensure!(failed.is_none(), "{}", failed.unwrap_or_default());
            if status.node == node && versions.iter().all(|v| ready.iter().any(|i| i.version == *v)) {
                return Ok(ready.iter().filter_map(|i| i.load_ms).fold(0.0, f64::max));
            }
        }
        anyhow::bail!("no heartbeats")
    };
    tokio::time::timeout(PATIENCE, ready).await?
}

/// Keeps so many requests open for `seconds`; answers a second.
async fn closed_loop(world: &World, service: &str, open: usize, seconds: f64) -> f64 {
    let begun = Instant::now();
    let before = world.ledger.answered();
    while begun.elapsed().as_secs_f64() < seconds {
        for _ in world.ledger.open()..open {
            world.send(service, None);
        }
        // The news of one answer may be that of many; without any the node is waited for.
        let _ = tokio::time::timeout(Duration::from_millis(100), world.ledger.news()).await;
    }
    (world.ledger.answered() - before) as f64 / begun.elapsed().as_secs_f64()
}

/// Rows a second of the model in a loop on the worker's core.
fn bare_loop(world: &World, batch: usize, stop: Arc<AtomicBool>) -> std::thread::JoinHandle<anyhow::Result<f64>> {
    let (model, row, core) = (world.model.clone(), world.row.clone(), world.worker_core);
    std::thread::spawn(move || {
        anyhow::ensure!(core_affinity::set_for_current(core_affinity::CoreId { id: core }), "cannot pin");
        let mut worker = model.worker()?;
        let rows = vec![&row; batch];
        worker.run(&rows)?;
        let (begun, mut done) = (Instant::now(), 0usize);
        while !stop.load(Ordering::Relaxed) {
            std::hint::black_box(worker.run(&rows)?);
            done += rows.len();
        }
        Ok(done as f64 / begun.elapsed().as_secs_f64())
    })
}

/// Sends `rate` requests a second for `seconds`, evenly or as a Poisson process.
async fn open_loop(
    world: &World,
    service: &str,
    rate: f64,
    seconds: f64,
    random: Option<u64>,
    deadline_ms: Option<f64>,
) -> usize {
    let mut rng = random.map(ChaCha8Rng::seed_from_u64);
    let begun = Instant::now();
    let (mut next_s, mut sent) = (0.0, 0);
    loop {
        let now_s = begun.elapsed().as_secs_f64();
        if now_s >= seconds {
            return sent;
        }
        while next_s <= now_s {
            world.send(service, deadline_ms);
            sent += 1;
            let gap = rng.as_mut().map_or(1.0, |rng| -(1.0 - rng.random::<f64>()).ln());
            next_s += gap / rate;
        }
        tokio::time::sleep(Duration::from_secs_f64((next_s - now_s).clamp(0.000_1, 0.01))).await;
    }
}

/// Requests that keep a worker busy without a queue of seconds.
fn enough_open(options: &Options) -> usize {
    (8 * options.batch as usize).max(16)
}

/// Capacity of the node over Kafka, requests a second.
async fn capacity(world: &World, options: &Options) -> anyhow::Result<f64> {
    closed_loop(world, NODE, enough_open(options), 2.0).await;
    let rate = closed_loop(world, NODE, enough_open(options), options.seconds as f64).await;
    world.drain().await?;
    world.ledger.take();
    Ok(rate)
}

/// Over Kafka against a bare loop, in turns.
pub(crate) async fn throughput(world: &World, options: &Options) -> anyhow::Result<()> {
    world.node("throughput")?;
    let load_ms = serve(world, "throughput", &["1"], NO_HURRY_MS).await?;
    let (mut kafka, mut bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..options.runs {
        let served = capacity(world, options).await?;
        let stop = Arc::new(AtomicBool::new(false));
        let thread = bare_loop(world, options.batch as usize, stop.clone());
        let echoed = open_loop(world, ECHO, served, options.seconds as f64, None, None).await;
        stop.store(true, Ordering::Relaxed);
        let alone = tokio::task::spawn_blocking(move || thread.join()).await?;
        let alone = alone.map_err(|_| anyhow::anyhow!("the bare loop panicked"))??;
        world.drain().await?;
        world.ledger.take();
        print(
            &serde_json::json!({"model": name(options), "scenario": "throughput", "run": run, "batch": options.batch,
            "kafka_rps": served, "bare_rps": alone, "ratio": served / alone, "echoed": echoed}),
        )?;
        kafka.push(served);
        bare.push(alone);
        ratios.push(served / alone);
    }
    print(
        &serde_json::json!({"model": name(options), "scenario": "throughput", "batch": options.batch, "load_ms": load_ms,
        "kafka_rps": median(&kafka), "bare_rps": median(&bare), "ratio": median(&ratios)}),
    )?;
    leave(world, "throughput").await
}

/// A node drains and nothing is left of it.
async fn leave(world: &World, node: &str) -> anyhow::Result<()> {
    let mut statuses = world.statuses().await?;
    world.plan(node, &[], NO_HURRY_MS).await?;
    let gone = async {
        while let Some(status) = statuses.recv().await {
            if status.node == node && status.state == schemas::status::NodeState::Stopped {
                return Ok(());
            }
        }
        anyhow::bail!("no heartbeats")
    };
    tokio::time::timeout(PATIENCE, gone).await?
}

fn ms(answer: &Answer) -> f64 {
    answer.latency.as_secs_f64() * 1e3
}

/// What the node adds to inference and the two hops over Kafka, at half of its capacity, arrivals evenly spread.
pub(crate) async fn latency(world: &World, options: &Options) -> anyhow::Result<()> {
    world.node("latency")?;
    serve(world, "latency", &["1"], NO_HURRY_MS).await?;
    let capacity = capacity(world, options).await?;
    let rate = capacity / 2.0;
    let mut added_p99 = Vec::new();
    for run in 0..options.runs {
        open_loop(world, ECHO, rate, options.seconds as f64, None, None).await;
        world.drain().await?;
        let mut hops: Vec<f64> = world.ledger.take().iter().map(ms).collect();
        open_loop(world, NODE, rate, options.seconds as f64, None, None).await;
        world.drain().await?;
        let answers = world.ledger.take();
        let whole: Vec<f64> = answers.iter().map(ms).collect();
        let infer = |a: &Answer| a.parameters.as_ref().map_or(0.0, |p| p.infer_ms);
        let mut without: Vec<f64> = answers.iter().map(|a| ms(a) - infer(a)).collect();
        let mut inference: Vec<f64> = answers.iter().map(infer).collect();
        let added = quantile(&mut without, 0.99) - quantile(&mut hops, 0.99);
        added_p99.push(added);
        print(&serde_json::json!({"model": name(options), "scenario": "latency", "run": run, "rps": rate,
            "n": answers.len(), "p50_ms": quantile(&mut whole.clone(), 0.5), "p99_ms": quantile(&mut whole.clone(), 0.99),
            "infer_p99_ms": quantile(&mut inference, 0.99), "without_infer_p50_ms": quantile(&mut without, 0.5),
            "without_infer_p99_ms": quantile(&mut without, 0.99), "hops_p50_ms": quantile(&mut hops, 0.5),
            "hops_p99_ms": quantile(&mut hops, 0.99), "added_p99_ms": added}))?;
    }
    print(
        &serde_json::json!({"model": name(options), "scenario": "latency", "rps": rate, "added_p99_ms": median(&added_p99)}),
    )?;
    leave(world, "latency").await
}

fn reasons(answers: &[Answer]) -> BTreeMap<&str, usize> {
    let mut reasons = BTreeMap::new();
    for reason in answers.iter().filter_map(|a| a.rejected.as_deref()) {
        *reasons.entry(reason).or_default() += 1;
    }
    reasons
}

fn resident_mib() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split_whitespace().nth(1).and_then(|t| t.parse().ok()).unwrap_or(f64::NAN);
    pages * 4096.0 / f64::from(1 << 20)
}

/// Poisson arrivals at 0.7 to 2 times capacity, with a deadline.
pub(crate) async fn overload(world: &World, options: &Options) -> anyhow::Result<()> {
    world.node("overload")?;
    serve(world, "overload", &["1"], options.slo_ms).await?;
    let capacity = capacity(world, options).await?;
    let mut best = 0.0_f64;
    for (seed, factor) in [0.7, 0.9, 1.2, 2.0].into_iter().enumerate() {
        let before_mib = resident_mib();
        let seconds = options.seconds as f64 * 2.0;
        let sent = open_loop(world, NODE, factor * capacity, seconds, Some(seed as u64), Some(options.slo_ms)).await;
        world.drain().await?;
        let answers = world.ledger.take();
        let in_time = answers.iter().filter(|a| a.parameters.as_ref().is_some_and(|p| p.deadline_met)).count();
        let answered = answers.iter().filter(|a| a.parameters.is_some()).count();
        let reasons = reasons(&answers);
        let goodput = in_time as f64 / seconds;
        best = best.max(goodput);
        print(
            &serde_json::json!({"model": name(options), "scenario": "overload", "capacity_rps": capacity, "factor": factor,
            "slo_ms": options.slo_ms, "sent": sent, "answered": answered, "in_time": in_time, "rejected": reasons,
            "without_answer": sent - answers.len(), "goodput_rps": goodput, "of_best": goodput / best,
            "attainment": in_time as f64 / sent as f64, "memory_before_mib": before_mib, "memory_after_mib": resident_mib()}),
        )?;
    }
    leave(world, "overload").await
}

/// From nothing to the first answer, from a plan to a further instance, and a node that goes under load.
pub(crate) async fn scale(world: &World, options: &Options) -> anyhow::Result<()> {
    for run in 0..options.runs {
        let (first, second) = (format!("scale-{run}"), format!("more-{run}"));
        world.node(&first)?;
        world.node(&second)?;
        // Both follow the plan before anything counts.
        let mut statuses = world.statuses().await?;
        let mut alive = std::collections::BTreeSet::new();
        while alive.len() < 2 {
            let status = tokio::time::timeout(PATIENCE, statuses.recv()).await?;
            let status = status.ok_or_else(|| anyhow::anyhow!("no heartbeats"))?;
            if [&first, &second].contains(&&status.node) && status.state == schemas::status::NodeState::Ready {
                alive.insert(status.node);
            }
        }
        world.send(NODE, None);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = world.ledger.answered();
        let (seen_first, seen_second) = (world.statuses().await?, world.statuses().await?);
        let begun = Instant::now();
        let load_ms = {
            let ready = serve_seen(world, seen_first, &first, &["1"], NO_HURRY_MS);
            let answered = async {
                while world.ledger.answered() == before {
                    world.ledger.news().await;
                }
                begun.elapsed().as_secs_f64() * 1e3
            };
            let (load_ms, answered_ms) = tokio::join!(ready, tokio::time::timeout(PATIENCE, answered));
            let (load_ms, answered_ms) = (load_ms?, answered_ms?);
            let answers = world.ledger.take();
            let parameters = answers.first().and_then(|a| a.parameters.as_ref());
            print(
                &serde_json::json!({"model": name(options), "scenario": "scale", "run": run, "what": "first answer",
                "load_ms": load_ms, "after_ms": answered_ms, "over_ms": answered_ms - load_ms,
                "queue_ms": parameters.map(|p| p.queue_ms), "infer_ms": parameters.map(|p| p.infer_ms)}),
            )?;
            load_ms
        };
        // Time of the heartbeat's way to here included.
        let begun = Instant::now();
        let load_ms = serve_seen(world, seen_second, &second, &["1"], NO_HURRY_MS)
            .await
            .map(|own| if own > 0.0 { own } else { load_ms })?;
        let ready_ms = begun.elapsed().as_secs_f64() * 1e3;
        print(&serde_json::json!({"model": name(options), "scenario": "scale", "run": run, "what": "instance ready",
            "load_ms": load_ms, "after_ms": ready_ms, "over_ms": ready_ms - load_ms}))?;
        world.drain().await?;
        world.ledger.take();
        let capacity = capacity(world, options).await?;
        let load = open_loop(world, NODE, capacity / 2.0, options.seconds as f64, None, None);
        let goes = async {
            tokio::time::sleep(Duration::from_secs_f64(options.seconds as f64 / 2.0)).await;
            leave(world, &second).await
        };
        let (sent, gone) = tokio::join!(load, goes);
        gone?;
        world.drain().await?;
        let answers = world.ledger.take();
        let answered = answers.iter().filter(|a| a.parameters.is_some()).count();
        let mut latencies: Vec<f64> = answers.iter().map(ms).collect();
        let reasons = reasons(&answers);
        print(&serde_json::json!({"model": name(options), "scenario": "scale", "run": run, "what": "scale-down",
            "sent": sent, "answered": answered, "without_answer": sent - answers.len(), "rejected": reasons,
            "p99_ms": quantile(&mut latencies, 0.99)}))?;
        leave(world, &first).await?;
    }
    Ok(())
}
