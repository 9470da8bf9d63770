//! `barista replay FILE`: a recording to an MQTT broker, as its devices would publish it.

use crate::failure::{Failure, Outcome};
use crate::output;
use anyhow::Context as _;
use ingest::config::BrokerAddress;
use sim::publish::Publisher;
use sim::replay::{Rate, Recorded, parse};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long the last acknowledgements are awaited.
const LAST_ACKS: Duration = Duration::from_secs(30);

/// Recorded HFP lines to an MQTT broker.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Lines of `<receive time> <topic> <payload>`.
    file: PathBuf,
    /// MQTT broker.
    #[arg(long, default_value = "mqtt://127.0.0.1:1883")]
    mqtt: String,
    /// `1x` as recorded, `10x`, or `max` as fast as the broker acknowledges.
    #[arg(long, default_value = "1x")]
    rate: Rate,
    /// Begins again at the end, until it is stopped.
    #[arg(long = "loop")]
    again: bool,
    /// For a program.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub async fn run(args: Args) -> Outcome {
    let address = BrokerAddress::parse(&args.mqtt).map_err(|e| Failure::Usage(format!("--mqtt: {e}")))?;
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let messages = parse(&text).map_err(|e| Failure::Usage(format!("{}: {e}", args.file.display())))?;
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        if runtime::supervisor::signalled().await.is_ok() {
            signal.cancel();
        }
    });
    let client = format!("barista-replay-{}", std::process::id());
    let publisher = Publisher::connect(&address.host, address.port, &client, &CancellationToken::new());
    loop {
        play(&publisher, &messages, args.rate, &stop).await?;
        if !args.again || stop.is_cancelled() {
            break;
        }
    }
    let published = publisher.published();
    let acknowledged = publisher.finish(LAST_ACKS).await?;
    if args.json {
        output::print_json(&serde_json::json!({"published": published, "acknowledged": acknowledged}))?;
    } else {
        output::print_line(&format!("published {published}, acknowledged {acknowledged}"))?;
    }
    if acknowledged < published {
        return Err(Failure::Failed(anyhow::anyhow!(
            "{} messages were not acknowledged by {}; is it still there?",
            published - acknowledged,
            args.mqtt
        )));
    }
    Ok(())
}

async fn play(publisher: &Publisher, messages: &[Recorded], rate: Rate, stop: &CancellationToken) -> Outcome {
    let begin = Instant::now();
    let first_ms = messages.first().map_or(0, |m| m.received_at_ms);
    for message in messages {
        let due = begin + Duration::from_millis(rate.due_ms(first_ms, message.received_at_ms));
        if due > Instant::now() {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep_until(due) => {}
            }
        }
        if stop.is_cancelled() {
            break;
        }
        publisher.publish(message.topic.clone(), message.payload.clone().into_bytes()).await?;
    }
    Ok(())
}
