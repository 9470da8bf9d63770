//! A client nobody here wrote: kcat.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::harness::{Target, skip};

/// Runs kcat with `input` and returns what it prints; fails when it fails.
fn kcat(target: &Target, arguments: &[&str], input: &str) -> Result<String> {
    let mut process = Command::new("timeout")
        .args(["30", "kcat", "-q", "-b", &target.bootstrap])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    process.stdin.take().context("no input")?.write_all(input.as_bytes())?;
    let output = process.wait_with_output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kcat {arguments:?}: {} {complaint}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) async fn produce_consume_and_list(target: Target) -> Result<()> {
    if Command::new("kcat").arg("-V").output().is_err() {
        skip("kcat", "kcat is not on the PATH (apt-get install kcat)");
        return Ok(());
    }
    let topic = target.topic("kcat", 2).await?;
    let mut expected = Vec::new();
    for codec in ["none", "gzip", "snappy", "lz4", "zstd"] {
        let lines: Vec<String> = (0..20).map(|i| format!("{codec}{i}:value {i}")).collect();
        let arguments = ["-P", "-t", &topic, "-K:", "-z", codec, "-X", "enable.idempotence=true"];
        kcat(&target, &arguments, &(lines.join("\n") + "\n"))?;
        expected.extend(lines);
    }
    let read = kcat(&target, &["-C", "-t", &topic, "-e", "-f", "%k:%s\n"], "")?;
    let mut seen: Vec<&str> = read.lines().collect();
    seen.sort_unstable();
    expected.sort_unstable();
    ensure!(seen == expected, "{seen:?}");
    let group = format!("{topic}-group");
    let read = kcat(&target, &["-G", &group, "-e", "-X", "auto.offset.reset=earliest", &topic], "")?;
    ensure!(read.lines().count() == expected.len(), "the group read {} lines", read.lines().count());
    let listed = kcat(&target, &["-L", "-t", &topic], "")?;
    ensure!(listed.contains(&format!("topic \"{topic}\" with 2 partitions")), "{listed}");
    let end = kcat(&target, &["-Q", "-t", &format!("{topic}:0:-1")], "")?;
    let start = kcat(&target, &["-Q", "-t", &format!("{topic}:0:-2")], "")?;
    ensure!(start.contains("offset 0") && !end.contains("offset 0"), "{start} {end}");
    Ok(())
}
