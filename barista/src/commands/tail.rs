//! `barista tail TOPIC`: records as they come, one JSON object a line.

use super::Source;
use crate::failure::{Outcome, usage};
use crate::output;
use runtime::{Bus, Record, SourceEvent, SourceSpec, Start, TopicPartition};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Follows a topic. Example: `barista tail allocation.control --from beginning -n 5`
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Topic, without the configured prefix.
    topic: String,
    /// `end`, `beginning`, or `N` for the offset N of every partition.
    #[arg(long, default_value = "end")]
    from: From,
    /// Stops after this many records.
    #[arg(short = 'n', long)]
    count: Option<u64>,
    /// Stops at the end that the topic had at the start.
    #[arg(long)]
    no_follow: bool,
    #[command(flatten)]
    source: Source,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Beginning,
    End,
    Offset(i64),
}

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "beginning" | "earliest" => Ok(From::Beginning),
            "end" | "latest" => Ok(From::End),
            number => number.parse().map(From::Offset).map_err(|_| "not `beginning`, `end` or an offset".to_owned()),
        }
    }
}

/// Runs it.
pub async fn run(args: Args) -> Outcome {
    let config = args.source.load()?;
    let bus = args.source.bus(&config).await?;
    let topic = bus.topics().name(&args.topic);
    let Ok(partitions) = bus.partitions(&topic).await else {
        return usage(format!("no topic `{topic}`; `barista topics list` shows them"));
    };
    let start = match args.from {
        From::Beginning => Start::Beginning,
        From::End => Start::End,
        From::Offset(offset) => Start::Offsets(
            (0..partitions).map(|p| (TopicPartition::new(topic.clone(), p), offset)).collect::<BTreeMap<_, _>>(),
        ),
    };
    let mut records = bus.source(SourceSpec::assign(vec![topic], start)).await?;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let event = tokio::select! {
            event = records.next() => event?,
            signal = runtime::supervisor::signalled() => { signal?; break }
        };
        match event {
            SourceEvent::Record(record) => {
                output::print_line(&render(&record).to_string())?;
                left -= 1;
            }
            SourceEvent::CaughtUp if args.no_follow => break,
            _ => {}
        }
    }
    Ok(())
}

/// One record as JSON; a value that is no JSON is given as text, or as its length when it is no text.
fn render(record: &Record) -> Value {
    let headers: Map<String, Value> =
        record.headers.0.iter().map(|(k, v)| (k.clone(), String::from_utf8_lossy(v).into_owned().into())).collect();
    let value = match record.value.as_deref() {
        None => Value::Null,
        Some(bytes) => serde_json::from_slice(bytes).unwrap_or_else(|_| match std::str::from_utf8(bytes) {
            Ok(text) => text.into(),
            Err(_) => format!("<{} bytes>", bytes.len()).into(),
        }),
    };
    json!({"topic": record.topic, "partition": record.partition, "offset": record.offset,
        "timestamp_ms": record.timestamp_ms, "key": record.key_str(), "headers": headers, "value": value})
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn from_is_parsed() {
        assert_eq!("17".parse::<From>().unwrap(), From::Offset(17));
        assert_eq!("earliest".parse::<From>().unwrap(), From::Beginning);
        assert!("soon".parse::<From>().is_err());
    }

    #[test]
    fn any_value_can_be_shown() {
        let mut record = Record {
            topic: "t".into(),
            partition: 0,
            offset: 1,
            timestamp_ms: 2,
            key: None,
            value: Some(vec![0xff, 0xfe].into()),
            headers: Default::default(),
        };
        assert_eq!(render(&record)["value"], "<2 bytes>");
        record.value = Some("plain".into());
        assert_eq!(render(&record)["value"], "plain");
        record.value = Some(r#"{"a":1}"#.into());
        assert_eq!(render(&record)["value"]["a"], 1);
        record.value = None;
        assert_eq!(render(&record)["value"], Value::Null);
    }
}
