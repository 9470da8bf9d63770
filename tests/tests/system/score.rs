//! `barista score`: every row of the input is one line of the output, whoever is killed on the way.

use crate::predictions::{self, Stack};
use parquet::data_type::{ByteArray, ByteArrayType, FloatType};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use runtime::{Bus, Clock, OutRecord, SystemClock};
use schemas::topics::{Cleanup, TopicSpec};
use serde_json::Value;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use tests::{Brokers, barista, read_all, send, until};

const FEATURES: usize = 16;
/// Rows of the file and of each of its groups.
const ROWS: usize = 6000;
const GROUP: usize = 1700;
/// Two rows that no model can take.
const NULL_ROW: usize = 777;
/// Rows repeat after so many.
const PERIOD: usize = 100;
/// Kills of the command; its last run is let finish.
const KILLS: usize = 4;

fn feature(row: usize, column: usize) -> f32 {
    ((row % PERIOD) * 7 + column * 3) as f32 / 10.0
}

fn write_table(path: &Path) {
    let columns: String = (0..FEATURES).map(|i| format!("optional float f{i};")).collect();
    let schema =
        Arc::new(parse_message_type(&format!("message m {{ required binary name (UTF8); {columns} }}")).unwrap());
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let mut writer =
        SerializedFileWriter::new(std::fs::File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
    for begin in (0..ROWS).step_by(GROUP) {
        let rows: Vec<usize> = (begin..ROWS.min(begin + GROUP)).collect();
        let mut group = writer.next_row_group().unwrap();
        let mut at = 0;
        while let Some(mut column) = group.next_column().unwrap() {
            if at == 0 {
                let names: Vec<ByteArray> = rows.iter().map(|row| format!("row {row}").as_str().into()).collect();
                column.typed::<ByteArrayType>().write_batch(&names, None, None).unwrap();
            } else {
                let is_null = |row: &usize| *row == NULL_ROW && at == 4;
                let there: Vec<i16> = rows.iter().map(|row| i16::from(!is_null(row))).collect();
                let values: Vec<f32> = rows.iter().filter(|r| !is_null(r)).map(|r| feature(*r, at - 1)).collect();
                column.typed::<FloatType>().write_batch(&values, Some(&there), None).unwrap();
            }
            column.close().unwrap();
            at += 1;
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn score(brokers: &Brokers, stack: &Stack, folder: &Path, input: &str, output: &Path) -> Child {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(folder.join("score.log")).unwrap();
    Command::new(barista())
        .args(["score", "--service", "delay", "--in-flight", "300", "--input", input])
        .args(["--output", output.to_str().unwrap(), "--json", "-c", stack.config.to_str().unwrap()])
        .env("BARISTA_KAFKA__BROKERS", &brokers.kafka)
        .env("BARISTA_KAFKA__TOPIC_PREFIX", &stack.prefix)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Lets a run finish; its summary.
fn finish(child: Child, folder: &Path) -> Value {
    let output = child.wait_with_output().unwrap();
    let log = std::fs::read_to_string(folder.join("score.log")).unwrap_or_default();
    assert!(output.status.success(), "barista score: {}\n{log}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn whole_lines(output: &Path) -> usize {
    std::fs::read(output).map_or(0, |bytes| bytes.iter().filter(|b| **b == b'\n').count())
}

fn lines(output: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(output).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

async fn a_file(brokers: &Brokers, stack: &mut Stack) {
    let folder = tempfile::tempdir().unwrap();
    let (table, output) = (folder.path().join("rows.parquet"), folder.path().join("scores.jsonl"));
    write_table(&table);
    let seed: u64 = rand::random();
    eprintln!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for kill in 0..KILLS {
        let before = whole_lines(&output);
        let more = random.random_range(1..ROWS / 8);
        let mut child = score(brokers, stack, folder.path(), table.to_str().unwrap(), &output);
        until("more lines", || whole_lines(&output) >= before + more || child.try_wait().unwrap().is_some()).await;
        if kill == 1 {
            // The node, too; its partitions are free after the session time-out.
            stack.restart();
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let child = score(brokers, stack, folder.path(), table.to_str().unwrap(), &output);
    let summary = finish(child, folder.path());
    assert_eq!((&summary["rows"], &summary["rejected"], &summary["complete"]), (&ROWS.into(), &1.into(), &true.into()));
    assert!(summary["resumed_rows"].as_u64().unwrap() > 0, "{summary}");

    let lines = lines(&output);
    assert_eq!(lines.len(), ROWS);
    for (row, line) in lines.iter().enumerate() {
        assert_eq!(line["row"], row, "each row once, in order");
        if row == NULL_ROW {
            assert_eq!(line["rejected"]["reason"], "bad-field", "{line}");
            continue;
        }
        let y = &line["outputs"];
        assert!(y.as_object().is_some_and(|y| !y.is_empty()), "{line}");
        assert_eq!(*y, lines[row % PERIOD]["outputs"], "rows {row} and {} are equal", row % PERIOD);
    }
    assert_ne!(lines[1]["outputs"], lines[2]["outputs"]);
    let rejected = read_all(&stack.bus, "prediction.rejected").await;
    let batch = stack.bus.topics().batch("delay");
    let letter = rejected.iter().find(|r| r.headers.get_str("source-topic") == Some(batch.as_str()));
    assert!(letter.is_some_and(|r| r.headers.get_str("detail").unwrap().contains("features")), "{rejected:?}");

    // Once more changes nothing, and another input is not mixed in.
    let again = finish(score(brokers, stack, folder.path(), table.to_str().unwrap(), &output), folder.path());
    assert_eq!((&again["rows"], &again["resumed_rows"]), (&ROWS.into(), &ROWS.into()));
    let mut other = score(brokers, stack, folder.path(), "topic:prediction.requests.delay", &output);
    assert_eq!(other.wait().unwrap().code(), Some(2));
}

async fn a_topic(brokers: &Brokers, stack: &Stack) {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("scores.jsonl");
    let name = "old.requests";
    let spec =
        TopicSpec { name: name.to_owned(), cleanup: Cleanup::Delete, single_partition: false, append_time: false };
    stack.bus.create_topics(&[spec]).await.unwrap();
    let topic = stack.bus.topics().name(name);
    // Past every deadline, and younger than what Kafka deletes.
    let an_hour_ago_ms = SystemClock.now_ms() - 3_600_000;
    for i in 0..400 {
        let mut record =
            predictions::request(&stack.bus, &format!("t{i}")).header("deadline-ms", "1").key(format!("{i}"));
        record.topic.clone_from(&topic);
        if i == 123 {
            record.value = Some("not JSON".into());
        }
        send(&stack.bus, OutRecord { timestamp_ms: Some(an_hour_ago_ms), ..record }).await;
    }
    let mut child = score(brokers, stack, folder.path(), &format!("topic:{name}"), &output);
    until("some lines", || whole_lines(&output) >= 50 || child.try_wait().unwrap().is_some()).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let summary = finish(score(brokers, stack, folder.path(), &format!("topic:{name}"), &output), folder.path());
    assert_eq!((&summary["rows"], &summary["rejected"]), (&400.into(), &1.into()), "{summary}");
    let mut rows: Vec<(i64, i64)> =
        lines(&output).iter().map(|l| (l["partition"].as_i64().unwrap(), l["row"].as_i64().unwrap())).collect();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), 400, "each record once");
}

async fn both(brokers: Brokers) {
    let mut stack = predictions::serve(&brokers).await;
    a_file(&brokers, &mut stack).await;
    a_topic(&brokers, &stack).await;
    drop(stack);
    brokers.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scoring_loses_and_doubles_nothing_on_the_embedded_brokers() {
    both(Brokers::embedded().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scoring_loses_and_doubles_nothing_on_real_brokers() {
    if let Some(brokers) = Brokers::real() {
        both(brokers).await;
    }
}
