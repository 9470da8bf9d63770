//! `barista doctor`: what this machine can do.

use super::Source;
use crate::config::Config;
use crate::failure::Outcome;
use crate::output;
use ingest::config::BrokerAddress;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};
use std::time::Duration;

const REQUEST: Duration = Duration::from_secs(3);

/// What this machine can do.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// For a program.
    #[arg(long)]
    json: bool,
}

/// Runs it. Exit code 0 even when a broker is away: it reports, it does not judge.
pub async fn run(args: Args) -> Outcome {
    let config = args.source.load()?;
    let client = args.source.kafka(&config)?;
    let embedded = config.kafka.is_embedded();
    let brokers = args.source.kafka_config(&config).brokers;
    let (kafka, skew) = tokio::task::spawn_blocking(move || probe_kafka(&client, &brokers, embedded)).await?;
    let report = json!({
        "cores": std::thread::available_parallelism().map_or(1, |n| n.get()),
        "memory_gib": memory_gib(),
        "cuda": cuda(),
        "kafka": kafka,
        "mqtt": probe_mqtt(&config).await,
        "clock_skew_ms": skew,
        "embedded_broker": broker::capabilities().to_string(),
    });
    if args.json { output::print_json(&report) } else { print(&report) }
}

fn print(report: &Value) -> Outcome {
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "unknown".to_owned(),
        other => other.to_string(),
    };
    let reach = |value: &Value| {
        let (state, detail) = (text(&value["reachable"]), text(&value["detail"]));
        format!(
            "{} at {} ({detail})",
            if state == "true" { "reachable" } else { "not reachable" },
            text(&value["address"])
        )
    };
    let rows = vec![
        vec!["cores".to_owned(), text(&report["cores"])],
        vec!["memory".to_owned(), format!("{} GiB", text(&report["memory_gib"]))],
        vec!["cuda".to_owned(), cuda_line(&report["cuda"])],
        vec!["kafka".to_owned(), reach(&report["kafka"])],
        vec!["mqtt".to_owned(), reach(&report["mqtt"])],
        vec!["clock skew".to_owned(), format!("{} ms against the Kafka broker", text(&report["clock_skew_ms"]))],
        vec!["embedded broker".to_owned(), text(&report["embedded_broker"])],
    ];
    output::print_table(&["what", "found"], rows)
}

/// What the CUDA backend finds.
fn cuda() -> Value {
    match executor::backend::cuda::probe() {
        executor::backend::cuda::Probe::Off(reason) => json!({"available": false, "reason": reason}),
        executor::backend::cuda::Probe::On(device) => json!({
            "available": true,
            "device": device.name,
            "driver": device.driver,
            "memory_gib": device.memory_bytes as f64 / f64::from(1 << 30),
        }),
    }
}

fn cuda_line(cuda: &Value) -> String {
    let text = |key: &str| cuda[key].as_str().unwrap_or("unknown").to_owned();
    match cuda["available"] == true {
        true => format!(
            "{}, driver for CUDA {}.{}, {:.1} GiB",
            text("device"),
            cuda["driver"].as_i64().unwrap_or(0) / 1000,
            cuda["driver"].as_i64().unwrap_or(0) % 1000 / 10,
            cuda["memory_gib"].as_f64().unwrap_or(0.0)
        ),
        false => format!("off, because {}", text("reason")),
    }
}

/// Total memory of the machine; null where `/proc/meminfo` cannot be read.
fn memory_gib() -> Value {
    let parse = |text: String| {
        let line = text.lines().find(|l| l.starts_with("MemTotal:"))?.to_owned();
        line.split_whitespace().nth(1)?.parse::<f64>().ok()
    };
    match std::fs::read_to_string("/proc/meminfo").ok().and_then(parse) {
        Some(kib) => json!((kib / 1024.0 / 1024.0 * 10.0).round() / 10.0),
        None => Value::Null,
    }
}

async fn probe_mqtt(config: &Config) -> Value {
    let address = if config.mqtt.broker == "embedded" {
        Ok(("127.0.0.1".to_owned(), config.embedded.mqtt_port))
    } else {
        BrokerAddress::parse(&config.mqtt.broker).map(|b| (b.host, b.port))
    };
    let (host, port) = match address {
        Ok(address) => address,
        Err(problem) => return json!({"address": config.mqtt.broker, "reachable": false, "detail": problem}),
    };
    let name = format!("{host}:{port}");
    let target = host.trim_matches(['[', ']']).to_owned();
    let detail = match tokio::time::timeout(REQUEST, tokio::net::TcpStream::connect((target, port))).await {
        Ok(Ok(_)) => return json!({"address": name, "reachable": true, "detail": "accepts connections"}),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {REQUEST:?}"),
    };
    json!({"address": name, "reachable": false, "detail": detail})
}

/// What the broker says of itself, and the skew between its clock and ours. Kafka's protocol tells no time, so the skew
/// is unknown (null) here; a record with append time would tell it, and doctor writes nothing.
fn probe_kafka(client: &rdkafka::ClientConfig, brokers: &str, embedded: bool) -> (Value, Value) {
    let mut found = json!({"address": brokers, "reachable": false, "embedded": embedded});
    let consumer: Result<BaseConsumer, _> = client.create();
    let metadata = consumer.and_then(|c| c.fetch_metadata(None, REQUEST));
    match metadata {
        Ok(metadata) => {
            found["reachable"] = true.into();
            found["detail"] =
                format!("{} brokers, {} topics", metadata.brokers().len(), metadata.topics().len()).into();
            (found, Value::Null)
        }
        Err(error) => {
            found["detail"] = error.to_string().into();
            (found, Value::Null)
        }
    }
}
