//! How long a record takes from producer to consumer. Run by hand; prints, asserts nothing about
//! time: `cargo test --release -p tests --test kafka latency -- --ignored --nocapture`.

use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use rdkafka::message::Message;
use rdkafka::producer::{DeliveryFuture, FutureRecord};

use crate::harness::{self, Target, receive, send};

const RATE_PER_S: u64 = 1000;
const SECONDS: u64 = 15;
const RECORD_BYTES: usize = 200;

#[allow(clippy::disallowed_methods, reason = "two ends of one measurement")]
fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970").as_nanos()
}

fn millis_since(sent_ns: u128) -> f64 {
    now_ns().saturating_sub(sent_ns) as f64 / 1e6
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = (sorted.len() as f64 * q) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

async fn measure(target: &Target, fetch_wait_ms: &str) -> Result<String> {
    let topic = target.topic("latency", 1).await?;
    let [end_to_end, acknowledged] = flow(target, &topic, fetch_wait_ms, SECONDS).await?;
    Ok(format!("fetch.wait.max.ms={fetch_wait_ms}; end to end {end_to_end}; acknowledged {acknowledged}"))
}

/// Sends at a steady rate and reads; quantiles of the time to the consumer and to the acknowledgement.
pub(crate) async fn flow(target: &Target, topic: &str, fetch_wait_ms: &str, seconds: u64) -> Result<[String; 2]> {
    let producer = target.producer(&[("linger.ms", "0"), ("socket.nagle.disable", "true")])?;
    let settings = [("fetch.wait.max.ms", fetch_wait_ms), ("socket.nagle.disable", "true")];
    let consumer = target.reader(topic, &settings)?;
    send(&producer, topic, Some(0), "k", "warm").await?;
    receive(&consumer).await?;
    let total = RATE_PER_S * seconds;
    let consuming = tokio::spawn(async move {
        let mut waits = Vec::new();
        for _ in 0..total {
            let message = receive(&consumer).await?;
            let text = std::str::from_utf8(message.payload().context("no payload")?)?;
            waits.push(millis_since(text.trim_start_matches('0').parse()?));
        }
        anyhow::Ok(waits)
    });
    let (acks, mut waiting) = tokio::sync::mpsc::channel::<(u128, DeliveryFuture)>(10_000);
    let acknowledging = tokio::spawn(async move {
        let mut waits = Vec::new();
        while let Some((sent, delivery)) = waiting.recv().await {
            delivery.await?.map_err(|(error, _)| error)?;
            waits.push(millis_since(sent));
        }
        anyhow::Ok(waits)
    });
    let start = Instant::now();
    for i in 0..total {
        let due = start + Duration::from_nanos(i * 1_000_000_000 / RATE_PER_S);
        tokio::time::sleep_until(due.into()).await;
        let sent = now_ns();
        let value = format!("{sent:0RECORD_BYTES$}");
        let record = FutureRecord::to(topic).key("k").payload(&value).partition(0);
        let delivery = producer.send_result(record).map_err(|(error, _)| error)?;
        acks.send((sent, delivery)).await?;
    }
    drop(acks);
    let quantiles = |mut waits: Vec<f64>| {
        waits.sort_by(f64::total_cmp);
        let [p50, p99, max] = [0.5, 0.99, 1.0].map(|q| quantile(&waits, q));
        format!("p50 {p50:.2} ms, p99 {p99:.2} ms, max {max:.2} ms")
    };
    Ok([quantiles(consuming.await??), quantiles(acknowledging.await??)])
}

fn report(broker: &'static str, target: Target) -> std::pin::Pin<Box<dyn Future<Output = Result<()>>>> {
    Box::pin(async move {
        for wait in ["10", "100", "500"] {
            let line = measure(&target, wait).await?;
            writeln!(std::io::stdout(), "{broker}, {RATE_PER_S} records/s of {RECORD_BYTES} bytes, {line}")?;
        }
        Ok(())
    })
}

#[test]
#[ignore = "a measurement of a minute, to be looked at, not a check"]
fn embedded() {
    harness::on_embedded("latency", |target| report("embedded", target));
}

#[test]
#[ignore = "a measurement of a minute, to be looked at, not a check"]
fn apache() {
    harness::on_apache("latency", |target| report("Apache Kafka", target));
}
