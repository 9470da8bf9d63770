//! Drivers that are not there, broken, old, or without a device: the backend is off, says why, and never panics. Each
//! case is a process of its own, since a driver can be looked for once.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

use executor::backend::cuda::{CudaBackend, probe};
use executor::backend::{Backend, Backends, LoadOptions};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a process sees: not a test of its own.
#[test]
#[ignore = "run by the others, with a driver of their making"]
fn child() {
    println!("PROBE {}", probe());
    let backends = Backends::available(None);
    println!("WHY {}", if backends.get("cuda").is_some() { "on".to_owned() } else { backends.why_not("cuda") });
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/delay.onnx");
    match CudaBackend::default().load(&model, &LoadOptions::default()) {
        Ok(_) => println!("LOAD fine"),
        Err(error) => println!("LOAD {error}"),
    }
}

/// What the backend says with this `libcuda.so.1` and these settings of the stand-in: probe, node, loading.
fn says(library: impl FnOnce(&Path), env: &[(&str, &str)]) -> [String; 3] {
    let folder = tempfile::tempdir().unwrap();
    library(&folder.path().join("libcuda.so.1"));
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LD_LIBRARY_PATH", folder.path())
        .envs(env.iter().copied())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    ["PROBE ", "WHY ", "LOAD "].map(|key| {
        // The first line follows the harness's "test child ...".
        text.lines().find_map(|l| l.split_once(key)).unwrap_or_else(|| panic!("no {key}in {text}")).1.to_owned()
    })
}

fn stand_in(at: &Path) {
    std::os::unix::fs::symlink(fakecuda::library().unwrap(), at).unwrap();
}

/// The backend is off for this reason, wherever it is asked.
fn is_off(says: &[String; 3], reason: &str) {
    let [probe, node, load] = says;
    assert!(probe.starts_with("off, because ") && probe.contains(reason), "{probe}");
    assert!(node.contains(reason), "{node}");
    assert!(load.starts_with("CUDA backend: off, because ") && load.contains(reason), "{load}");
}

/// A library made from C.
fn compiled(source: &'static str) -> impl FnOnce(&Path) {
    move |at| {
        let file = at.with_extension("c");
        std::fs::write(&file, source).unwrap();
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(at).arg(&file).status();
        assert!(made.unwrap().success(), "cc, which building this crate needs too");
    }
}

#[test]
fn the_stand_in_is_found() {
    let [probe, node, load] = says(stand_in, &[]);
    assert_eq!(probe, "fakecuda PTX interpreter, 1.0 GiB, compute capability 7.5, driver for CUDA 12.2");
    assert_eq!((node.as_str(), load.as_str()), ("on", "fine"));
}

#[test]
fn no_driver() {
    let installed = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib"];
    if let Some(real) = installed.iter().map(|f| PathBuf::from(f).join("libcuda.so.1")).find(|p| p.exists()) {
        eprintln!("SKIPPED: this machine has a driver, {}", real.display());
        return;
    }
    is_off(&says(|_| (), &[]), "the NVIDIA driver cannot be loaded");
}

#[test]
fn a_file_that_is_no_library() {
    let text = |at: &Path| std::fs::write(at, "not a library\n").unwrap();
    is_off(&says(text, &[]), "the NVIDIA driver cannot be loaded");
}

#[test]
fn a_library_that_is_not_the_driver() {
    is_off(&says(compiled("int answer(void) { return 42; }\n"), &[]), "it has no cuInit");
}

#[test]
fn a_driver_that_lacks_functions() {
    let source = "int cuInit(unsigned f) { return 0; }\nint cuDriverGetVersion(int *v) { *v = 12000; return 0; }\n";
    is_off(&says(compiled(source), &[]), "broken or too old: it has no cuDeviceGetCount");
}

#[test]
fn drivers_that_do_not_start() {
    for (code, hint) in [("100", "finds no device"), ("803", "reboot after an update"), ("999", "cuInit = 999")] {
        is_off(&says(stand_in, &[("FAKECUDA_INIT", code)]), hint);
    }
}

#[test]
fn an_old_driver() {
    is_off(&says(stand_in, &[("FAKECUDA_VERSION", "11040")]), "is for CUDA 11.4, needed is 12.0 (driver 525) or newer");
}

#[test]
fn no_device() {
    is_off(&says(stand_in, &[("FAKECUDA_DEVICES", "0")]), "finds no device");
}

#[test]
fn a_device_that_is_too_old() {
    let reason = "fakecuda PTX interpreter has compute capability 6.1, needed is 7.5 or higher";
    is_off(&says(stand_in, &[("FAKECUDA_CAPABILITY", "61")]), reason);
}
