//! Other people's clients, each as a program of its own: Kafka's own Java client in several releases,
//! confluent-kafka, kafka-python, aiokafka, franz-go.
//!
//! `tests/clients/up.sh` fetches them into the folder that `BARISTA_TEST_CLIENTS_KAFKA` names. Each
//! program prints what it observes, a line a fact, and fails by itself where something is plainly
//! wrong; here the lines from the embedded broker are compared with those from Apache Kafka.

use std::cell::RefCell;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;

use crate::harness::{Check, Target, on_apache, on_embedded, skip};

/// Begins a line for people, which is not compared.
const REMARK: char = '#';

/// A client program; the broker's address follows its arguments.
#[derive(Debug, Clone)]
struct Program {
    name: String,
    command: Vec<OsString>,
    after: Vec<OsString>,
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

/// The folder of up.sh, or `None` after a word about its absence.
fn installed(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("BARISTA_TEST_CLIENTS_KAFKA").map(PathBuf::from);
    if folder.is_none() {
        skip(test, "BARISTA_TEST_CLIENTS_KAFKA names no folder; run tests/clients/up.sh");
    }
    folder
}

/// Runs the program and returns its lines.
async fn observe(target: Target, program: Program) -> Result<Vec<String>> {
    let (first, arguments) = program.command.split_first().context("no program")?;
    let began = Instant::now();
    let output = Command::new(first)
        .args(arguments)
        .arg(&target.bootstrap)
        .args(&program.after)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot start {first:?}"))?;
    let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {}\n{said}\n{complained}", program.name, output.status);
    let lines: Vec<String> = said.lines().map(str::to_owned).collect();
    ensure!(lines.len() >= 5, "{} says too little: {said}", program.name);
    for remark in lines.iter().filter(|line| line.starts_with(REMARK)) {
        eprintln!("{} at {}: {remark}", program.name, target.bootstrap);
        // Whoever does not serve KIP-848 groups refuses them, and soon.
        let wanted = if target.next_generation_groups { "served" } else { "refused" };
        ensure!(!remark.contains("KIP-848") || remark.contains(wanted), "{remark}");
    }
    eprintln!("{} at {}: {} facts in {:.1?}", program.name, target.bootstrap, lines.len(), began.elapsed());
    Ok(lines.into_iter().filter(|line| !line.starts_with(REMARK)).collect())
}

/// Runs the program against both brokers; what it observes must be the same.
fn same_on_both(program: &Program) {
    let seen: [Rc<RefCell<Vec<String>>>; 2] = Default::default();
    let check = |slot: &Rc<RefCell<Vec<String>>>| {
        let (slot, program) = (Rc::clone(slot), program.clone());
        move |target| -> Check {
            Box::pin(async move {
                slot.replace(observe(target, program).await?);
                Ok(())
            })
        }
    };
    on_embedded(&program.name, check(&seen[0]));
    on_apache(&program.name, check(&seen[1]));
    let [embedded, apache] = seen.map(|lines| lines.take());
    if apache.is_empty() {
        return;
    }
    let differ: Vec<_> = embedded.iter().zip(&apache).filter(|(ours, theirs)| ours != theirs).collect();
    assert!(differ.is_empty(), "{}: embedded broker and Apache Kafka differ: {differ:#?}", program.name);
    assert_eq!(embedded.len(), apache.len(), "{}: {embedded:#?} {apache:#?}", program.name);
}

fn python(client: &str) {
    let Some(folder) = installed(client) else { return };
    let command = vec![folder.join("python/bin/python").into(), scripts().join("check.py").into()];
    same_on_both(&Program { name: client.to_owned(), command, after: vec![client.into()] });
}

#[test]
fn confluent_kafka() {
    python("confluent-kafka");
}

#[test]
fn kafka_python() {
    python("kafka-python");
}

#[test]
fn aiokafka() {
    python("aiokafka");
}

#[test]
fn franz_go() {
    let Some(folder) = installed("franz-go") else { return };
    let program = folder.join("franz");
    if !program.is_file() {
        // Not a failure where real clients are required: up.sh has said that this machine has no Go.
        eprintln!("SKIPPED: franz-go: {} is not there, as up.sh found no Go that is new enough", program.display());
        return;
    }
    same_on_both(&Program { name: "franz-go".into(), command: vec![program.into()], after: Vec::new() });
}

/// Every release that up.sh has fetched, by default the oldest that must work and a newer one.
#[test]
fn java() {
    let Some(folder) = installed("java") else { return };
    let entries = std::fs::read_dir(folder.join("java")).expect("the folder of the Java clients");
    let mut releases: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok()?.strip_prefix("jars-").map(str::to_owned))
        .collect();
    releases.sort_unstable();
    assert!(releases.len() >= 2, "up.sh has fetched too few releases: {releases:?}");
    for release in releases {
        let java = folder.join("java");
        let jars = java.join(format!("jars-{release}")).join("*");
        let mut path = java.join("classes").into_os_string();
        path.push(":");
        path.push(jars);
        let options = ["java", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp"];
        let command = options.into_iter().map(OsString::from).chain([path, "Check".into()]).collect();
        same_on_both(&Program { name: format!("kafka-clients {release}"), command, after: Vec::new() });
    }
}
