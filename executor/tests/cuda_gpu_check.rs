//! `scripts/gpu-check.sh`: packed, unpacked and run; without a device, and with the stand-in for one.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/gpu-check.sh")
}

/// The program, where cargo put it: `cargo test` of the package builds examples too.
fn binary() -> PathBuf {
    // target/release/deps/this-test
    let exe = std::env::current_exe().unwrap();
    let path = exe.ancestors().nth(2).unwrap().join("examples/gpu_check");
    assert!(path.is_file(), "no {}: cargo build --release -p executor --example gpu_check", path.display());
    path
}

/// Packs, unpacks, and runs in the unpacked folder: exit code and what was said.
fn run(
    library: impl FnOnce(&Path),
    env: &[(&str, &str)],
    arguments: &[&str],
    sanitizer: Option<&str>,
) -> (i32, String) {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("check.tar.gz");
    let packed = Command::new(script()).arg("pack").arg(&archive).env("GPU_CHECK_BINARY", binary()).output().unwrap();
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()).status().unwrap();
    assert!(unpacked.success());
    let driver = folder.path().join("driver");
    std::fs::create_dir(&driver).unwrap();
    library(&driver.join("libcuda.so.1"));
    if let Some(text) = sanitizer {
        let tool = driver.join("compute-sanitizer");
        std::fs::write(&tool, text).unwrap();
        std::fs::set_permissions(&tool, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", driver.display(), std::env::var("PATH").unwrap());
    let output = Command::new(folder.path().join("gpu-check/gpu-check.sh"))
        .args(arguments)
        .env("LD_LIBRARY_PATH", &driver)
        .env("PATH", path)
        .env_remove("REQUIRE_GPU")
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

fn broken(at: &Path) {
    std::fs::write(at, "no library\n").unwrap();
}

fn stand_in(at: &Path) {
    symlink(fakecuda::library().unwrap(), at).unwrap();
}

#[test]
fn without_a_device_it_says_so_and_fails_only_where_one_is_required() {
    let (code, text) = run(broken, &[], &[], None);
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("off, because") && text.contains("nothing was checked"), "{text}");
    let (code, text) = run(broken, &[("REQUIRE_GPU", "1")], &[], None);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("REQUIRE_GPU=1 asks for one"), "{text}");
    let (code, text) = run(stand_in, &[("REQUIRE_GPU", "1"), ("FAKECUDA_DEVICES", "0")], &[], None);
    assert_eq!((code, text.contains("finds no device")), (1, true), "{text}");
}

/// The whole way on the stand-in: suite, models, tools, one table.
#[test]
fn with_a_device_it_checks_and_ends_with_one_table() {
    let tool = "#!/bin/sh\n[ \"$2\" = racecheck ] && exit 99\nexit 0\n";
    let (code, text) = run(stand_in, &[("REQUIRE_GPU", "1")], &["--quick"], Some(tool));
    assert_eq!(code, 1, "racecheck found something: {text}");
    for tool in ["memcheck: clean", "racecheck: FAILED", "initcheck: clean", "synccheck: clean"] {
        assert!(text.contains(&format!("compute-sanitizer {tool}")), "{text}");
    }
    assert!(text.contains("all answers within 1e-4 of tract"), "{text}");
    let rows = |model: &str| text.lines().filter(|l| l.trim_start().starts_with(model)).count();
    for model in ["count-cnn", "delay", "occupancy-gru"] {
        assert_eq!(rows(model), 2, "one line a batch size of {model}: {text}");
    }
    assert!(rows("operators") == 1 && text.contains("p50/floor"), "{text}");
}
