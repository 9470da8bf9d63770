//! Processes that can be killed: this test binary run again, as a broker or as a consumer.
//!
//! [`act`] looks like a test; started by [`Child::broker`] or [`Child::consumer`] it becomes what
//! its environment says and runs until it is killed.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use broker::{Broker, Config};
use rdkafka::consumer::Consumer;

use crate::harness::{Target, share, unique};

const ROLE: &str = "KAFKA_TEST_CHILD";
const ARGUMENTS: &str = "KAFKA_TEST_CHILD_ARGUMENTS";
/// Marks the line on which a child says that it is ready.
const READY: &str = "child ready: ";

/// A process that dies with this value, by SIGKILL.
pub(crate) struct Child {
    process: std::process::Child,
    /// What it said when it was ready: a broker its address, a consumer its number of partitions.
    pub(crate) ready: String,
}

impl Drop for Child {
    fn drop(&mut self) {
        // Killing one that is dead already fails, which is fine.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Child {
    fn start(role: &str, arguments: &[&str]) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["children::act", "--exact", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(ARGUMENTS, arguments.join("\n"))
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let output = process.stdout.take().context("no output to read")?;
        let mut child = Self { process, ready: String::new() };
        for line in BufReader::new(output).lines() {
            if let Some((_, said)) = line?.split_once(READY) {
                said.clone_into(&mut child.ready);
                return Ok(child);
            }
        }
        bail!("child `{role}` ended before it was ready")
    }

    /// A broker on `folder` and, for a restart, on the address it had before.
    pub(crate) fn broker(folder: &Path, listen: &str) -> Result<Self> {
        Self::start("broker", &[folder.to_str().context("a path in UTF-8")?, listen])
    }

    /// A broker with the settings that an embedding program starts from.
    pub(crate) fn ordinary_broker(folder: &Path, listen: &str) -> Result<Self> {
        Self::start("ordinary broker", &[folder.to_str().context("a path in UTF-8")?, listen])
    }

    /// What the kernel says about its memory.
    pub(crate) fn memory(&self) -> Result<String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let lines = status.lines().filter(|line| line.starts_with("VmRSS") || line.starts_with("VmHWM"));
        let words = lines.flat_map(str::split_whitespace).collect::<Vec<_>>();
        Ok(words.join(" "))
    }

    /// A consumer in `group` that has got all it can of `topic`.
    pub(crate) fn consumer(target: &Target, group: &str, topic: &str) -> Result<Self> {
        Self::start("consumer", &[&target.bootstrap, group, topic])
    }

    /// Kills it: no signal handler, no destructor, no goodbye.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

/// An address that is free now.
pub(crate) fn free_address() -> Result<String> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string())
}

#[test]
fn act() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let arguments = std::env::var(ARGUMENTS).unwrap();
    let arguments: Vec<&str> = arguments.lines().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match (role.as_str(), arguments.as_slice()) {
            ("broker", [folder, listen]) => be_broker(folder, listen, Some(256 << 10)).await,
            ("ordinary broker", [folder, listen]) => be_broker(folder, listen, None).await,
            ("consumer", [bootstrap, group, topic]) => be_consumer(bootstrap, group, topic).await,
            other => panic!("no such child: {other:?}"),
        }
    });
}

fn ready(what: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "\n{READY}{what}").unwrap();
    out.flush().unwrap();
}

async fn be_broker(folder: &str, listen: &str, segment_bytes: Option<u64>) {
    let mut config = Config::new(folder);
    config.listen = listen.parse().unwrap();
    config.segment_bytes = segment_bytes.unwrap_or(config.segment_bytes);
    let broker = Broker::start(config).await.unwrap();
    ready(&broker.bootstrap());
    std::future::pending::<()>().await;
}

async fn be_consumer(bootstrap: &str, group: &str, topic: &str) {
    let target = Target { bootstrap: bootstrap.to_owned(), transactions: false, next_generation_groups: false };
    let settings = [("client.id", &*unique("child"))];
    let consumer = target.subscriber(group, topic, &settings).unwrap();
    loop {
        let _ = tokio::time::timeout(Duration::from_millis(50), consumer.recv()).await;
        let share = share(&consumer).unwrap();
        if share > 0 {
            ready(&share.to_string());
            break;
        }
    }
    loop {
        // Keeps polling, as an application would, until it is killed.
        let _ = consumer.recv().await;
        let _ = consumer.assignment();
    }
}
