//! Dependencies of the workspace run one way.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate may depend on, tests aside. Services never depend on one another.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("schemas", &[]),
    ("runtime", &["schemas"]),
    ("ingest", &["runtime", "schemas"]),
    ("aggregate", &["runtime", "schemas"]),
    ("forecaster", &["runtime", "schemas"]),
    ("planner", &["runtime", "schemas"]),
    ("executor", &["runtime", "schemas"]),
    // The stand-in driver: `executor` has it for its tests only.
    ("fakecuda", &[]),
    ("sim", &["aggregate", "executor", "forecaster", "ingest", "planner", "runtime", "schemas"]),
    ("broker", &[]),
    ("barista", &["aggregate", "broker", "executor", "forecaster", "ingest", "planner", "runtime", "schemas", "sim"]),
    ("tests", &["broker", "ingest", "runtime", "schemas", "sim"]),
];

fn edges() -> BTreeMap<String, BTreeSet<(String, bool)>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(tests::workspace())
        .output()
        .expect("cargo metadata runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let names: BTreeSet<&str> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    packages
        .iter()
        .map(|p| {
            let dependencies = p["dependencies"].as_array().expect("dependencies");
            let own = dependencies
                .iter()
                .filter(|d| d["name"].as_str().is_some_and(|n| names.contains(n)))
                .map(|d| (d["name"].as_str().unwrap().to_owned(), d["kind"].as_str() == Some("dev")))
                .collect();
            (p["name"].as_str().unwrap().to_owned(), own)
        })
        .collect()
}

#[test]
fn dependencies_run_one_way() {
    let edges = edges();
    let known: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    assert_eq!(edges.keys().map(String::as_str).collect::<BTreeSet<_>>(), known, "crates of the workspace");
    for (name, allowed) in ALLOWED {
        for (dependency, dev) in &edges[name] {
            assert!(
                *dev || allowed.contains(&dependency.as_str()),
                "{name} depends on {dependency}; it may depend on {allowed:?} (tests/tests/system/edges.rs)"
            );
        }
    }
}

#[test]
fn only_aggregate_knows_datafusion_and_only_executor_knows_tract() {
    for (crates, owner) in [(["datafusion", "arrow"].as_slice(), "aggregate"), (["tract-onnx"].as_slice(), "executor")]
    {
        for folder in ALLOWED.map(|(name, _)| name).into_iter().filter(|name| *name != owner) {
            let folder = if folder == "fakecuda" { "executor/fakecuda" } else { folder };
            let manifest = std::fs::read_to_string(tests::workspace().join(folder).join("Cargo.toml")).unwrap();
            for name in crates {
                let used = manifest.lines().any(|line| line.starts_with(name));
                assert!(!used, "{folder} depends on {name}, which is {owner}'s alone");
            }
        }
    }
}
