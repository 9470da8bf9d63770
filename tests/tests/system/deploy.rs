//! Files of `deploy/` that CI cannot run are at least read and compared with what the binary knows. They are checked,
//! not run: `deploy/README.md` says so.

use std::path::{Path, PathBuf};
use std::process::Command;
use tests::{barista, workspace};

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
}

#[test]
fn example_configurations_are_sound() {
    let mut found = Vec::new();
    files(&workspace().join("deploy/examples"), "toml", &mut found);
    assert!(found.len() >= 2, "{found:?}");
    for file in found {
        let output = Command::new(barista())
            .args(["config", "check", "-c", file.to_str().unwrap()])
            .current_dir(workspace())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{}: {stderr}", file.display());
    }
}

#[test]
fn compose_names_every_role_and_prometheus_scrapes_it() {
    let compose: serde_yaml_ng::Value =
        serde_yaml_ng::from_str(&std::fs::read_to_string(workspace().join("deploy/compose/compose.yaml")).unwrap())
            .unwrap();
    let prometheus = std::fs::read_to_string(workspace().join("deploy/prometheus/prometheus.yml")).unwrap();
    serde_yaml_ng::from_str::<serde_yaml_ng::Value>(&prometheus).unwrap();
    let services = compose["services"].as_mapping().unwrap();
    for role in ["ingest", "aggregate", "forecaster", "planner", "executor", "dashboard"] {
        assert!(services.contains_key(role), "compose.yaml has no service {role}");
        assert!(prometheus.contains(role), "prometheus.yml does not scrape {role}");
    }
    for name in ["kafka", "mosquitto", "prometheus"] {
        assert!(services.contains_key(name), "compose.yaml has no service {name}");
    }
}
