//! The committed PTX is what the sources compile to, and `ptxas` takes it without spilling.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The python with NVIDIA's compilers: of `BARISTA_CUDA_VENV`, or where `scripts/build-kernels.sh` puts it.
fn python() -> Option<PathBuf> {
    let venv = std::env::var_os("BARISTA_CUDA_VENV").map_or_else(|| root().join("target/cuda-venv"), PathBuf::from);
    let python = venv.join("bin/python");
    let imports = Command::new(&python).args(["-c", "import nvidia.cuda_nvrtc, nvidia.cuda_nvcc"]).output();
    if imports.is_ok_and(|o| o.status.success()) {
        return Some(python);
    }
    let required = std::env::var("BARISTA_REQUIRE_CUDA_TOOLCHAIN").is_ok_and(|v| v == "1");
    assert!(!required, "no NVIDIA compilers in {}: run scripts/build-kernels.sh --install", venv.display());
    eprintln!("SKIPPED: no NVIDIA compilers in {}; scripts/build-kernels.sh --install gets them", venv.display());
    None
}

fn build(python: &Path, arguments: &[&std::ffi::OsStr]) -> String {
    let output = Command::new(python).arg(root().join("executor/kernels/build.py")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn committed_ptx_is_fresh() {
    let Some(python) = python() else { return };
    let out = std::env::temp_dir().join(format!("barista-ptx-{}", std::process::id()));
    let planted = root().join("executor/fakecuda/tests/planted.cu");
    build(&python, &["--out".as_ref(), out.as_ref()]);
    build(&python, &["--out".as_ref(), out.as_ref(), planted.as_ref()]);
    let mut compared = 0;
    for entry in std::fs::read_dir(&out).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        let folder = if name == "planted.ptx" { "executor/fakecuda/tests" } else { "executor/kernels/ptx" };
        let committed = std::fs::read(root().join(folder).join(name)).unwrap();
        assert!(std::fs::read(&path).unwrap() == committed, "{folder}/{name:?} is stale: run scripts/build-kernels.sh");
        compared += 1;
    }
    std::fs::remove_dir_all(&out).unwrap();
    assert_eq!(compared, 6);
}

#[test]
fn ptxas_spills_nothing() {
    let Some(python) = python() else { return };
    let report = build(&python, &["--ptxas".as_ref()]);
    for target in ["sm_75", "sm_80", "sm_90"] {
        let rows: Vec<&str> = report.lines().filter(|l| l.starts_with(target)).collect();
        assert_eq!(rows.len(), 19, "kernels for {target}:\n{report}");
        for row in rows {
            assert!(row.ends_with("   0+0 B spilled"), "{row}");
        }
    }
}
