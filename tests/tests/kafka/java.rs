//! Kafka's own command line tools, unchanged, as an operator uses them.
//!
//! Their jars are those that `tests/brokers/up.sh` resolves; `BROKERS_JARS` names another folder.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use rdkafka::producer::Producer;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::harness::{PATIENCE, Target, send, skip, unique};

const TOPICS: &str = "org.apache.kafka.tools.TopicCommand";
const PRODUCER: &str = "org.apache.kafka.tools.ConsoleProducer";
const CONSUMER: &str = "org.apache.kafka.tools.consumer.ConsoleConsumer";
const TRANSACTIONS: &str = "org.apache.kafka.tools.TransactionsCommand";
const GROUPS: &str = "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand";

fn jars() -> PathBuf {
    std::env::var_os("BROKERS_JARS")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/brokers/jars")), PathBuf::from)
}

/// The tools, pointed at one broker.
struct Tools<'a> {
    jars: PathBuf,
    target: &'a Target,
}

impl Tools<'_> {
    /// Runs a tool with `input` and returns what it prints; a failure is an error with all it said.
    async fn feed(&self, tool: &str, arguments: &[&str], input: &str) -> Result<String> {
        let mut process = Command::new("java")
            .args(["-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"])
            .arg(self.jars.join("*"))
            .args([tool, "--bootstrap-server", &self.target.bootstrap])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start java")?;
        let mut stdin = process.stdin.take().context("no standard input")?;
        stdin.write_all(input.as_bytes()).await?;
        drop(stdin);
        let output = process.wait_with_output().await?;
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{tool} {arguments:?}: {}\n{said}\n{complained}", output.status);
        Ok(said.into_owned())
    }

    async fn run(&self, tool: &str, arguments: &[&str]) -> Result<String> {
        self.feed(tool, arguments, "").await
    }
}

/// The rows of a table that is printed with blanks between the columns.
fn rows(table: &str, first: &str) -> Vec<Vec<String>> {
    let split = table.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    split.filter(|row| row.first().is_some_and(|cell| cell == first)).collect()
}

fn tools<'a>(target: &'a Target, check: &str) -> Option<Tools<'a>> {
    let tools = Tools { jars: jars(), target };
    if tools.jars.is_dir() {
        return Some(tools);
    }
    skip(check, &format!("no jars in {}; run tests/brokers/up.sh kafka once", tools.jars.display()));
    None
}

/// An open transaction as `kafka-transactions.sh` shows it.
pub(crate) async fn transactions_tool(target: Target) -> Result<()> {
    let Some(tools) = tools(&target, "java::transactions_tool") else { return Ok(()) };
    let topic = target.topic("java-open", 1).await?;
    let id = unique("java-open");
    let producer = target.producer(&[("transactional.id", &id)])?;
    producer.init_transactions(PATIENCE)?;
    producer.begin_transaction()?;
    send(&producer, &topic, Some(0), "k", "open").await?;

    let listed = tools.run(TRANSACTIONS, &["list"]).await?;
    // TransactionalId Coordinator ProducerId TransactionState
    let line = rows(&listed, &id);
    ensure!(line.len() == 1 && line[0].get(3).is_some_and(|state| state == "Ongoing"), "{listed}");
    let described = tools.run(TRANSACTIONS, &["describe", "--transactional-id", &id]).await?;
    ensure!(described.contains("Ongoing") && described.contains(&format!("{topic}-0")), "{described}");
    let producers = tools.run(TRANSACTIONS, &["describe-producers", "--topic", &topic, "--partition", "0"]).await?;
    // ProducerId ProducerEpoch LatestCoordinatorEpoch LastSequence LastTimestamp CurrentTransactionStartOffset
    let producer_id = line[0].get(2).context("a producer id")?;
    let mine = rows(&producers, producer_id);
    ensure!(mine.len() == 1 && mine[0].last().is_some_and(|start| start == "0"), "{producers}");
    producer.commit_transaction(PATIENCE)?;
    Ok(())
}

/// Topics, producer, consumer, consumer groups.
pub(crate) async fn console_tools(target: Target) -> Result<()> {
    let Some(tools) = tools(&target, "java::console_tools") else { return Ok(()) };
    let (topic, group) = (unique("java"), unique("java-group"));
    let (topic, group) = (topic.as_str(), group.as_str());

    let settings = ["--partitions", "2", "--config", "retention.ms=86400000"];
    tools.run(TOPICS, &[&["--create", "--topic", topic], &settings[..]].concat()).await?;
    let described = tools.run(TOPICS, &["--describe", "--topic", topic]).await?;
    ensure!(described.contains("PartitionCount: 2") && described.contains("retention.ms=86400000"), "{described}");
    ensure!(described.matches("Leader: 1").count() == 2, "{described}");

    let keyed = ["--reader-property", "parse.key=true", "--reader-property", "key.separator=:"];
    let lines: Vec<String> = (0..40).map(|i| format!("key{i}:value {i}")).collect();
    tools.feed(PRODUCER, &[&["--topic", topic], &keyed[..]].concat(), &lines.join("\n")).await?;

    let print = ["--formatter-property", "print.key=true", "--formatter-property", "key.separator=:"];
    let from = ["--topic", topic, "--group", group, "--max-messages", "40", "--timeout-ms", "30000"];
    let consume = [&from[..], &print[..], &["--from-beginning"]].concat();
    let as_sent = |said: &str| {
        let mut got: Vec<&str> = said.lines().filter(|line| line.starts_with("key")).collect();
        let mut sent: Vec<&str> = lines.iter().map(String::as_str).collect();
        got.sort_unstable();
        sent.sort_unstable();
        ensure!(got == sent, "{said}");
        Ok(())
    };
    as_sent(&tools.run(CONSUMER, &consume).await?)?;

    let listed = tools.run(GROUPS, &["--list"]).await?;
    ensure!(listed.lines().any(|line| line.trim() == group), "{listed}");
    let described = tools.run(GROUPS, &["--describe", "--group", group]).await?;
    let table = rows(&described, group);
    let column = |at: usize| -> Result<i64> {
        table.iter().map(|row| row.get(at).context("a column is missing")?.parse::<i64>().context("a number")).sum()
    };
    // GROUP TOPIC PARTITION CURRENT-OFFSET LOG-END-OFFSET LAG ...
    ensure!(table.len() == 2 && (column(3)?, column(4)?, column(5)?) == (40, 40, 0), "{described}");

    let back = ["--reset-offsets", "--group", group, "--topic", topic, "--to-earliest", "--execute"];
    let reset = tools.run(GROUPS, &back).await?;
    ensure!(rows(&reset, group).len() == 2, "{reset}");
    as_sent(&tools.run(CONSUMER, &consume).await?)?;

    tools.run(TOPICS, &["--alter", "--topic", topic, "--partitions", "3"]).await?;
    let described = tools.run(TOPICS, &["--describe", "--topic", topic]).await?;
    ensure!(described.contains("PartitionCount: 3"), "{described}");
    let deleted = tools.run(GROUPS, &["--delete", "--group", group]).await?;
    ensure!(deleted.contains("successful"), "{deleted}");
    tools.run(TOPICS, &["--delete", "--topic", topic]).await?;
    let listed = tools.run(TOPICS, &["--list"]).await?;
    ensure!(!listed.lines().any(|line| line.trim() == topic), "{listed}");
    Ok(())
}
