//! The command line as a person meets it.

use std::process::{Command, Output};
use tests::{barista, recorded, workspace};

fn run(args: &[&str]) -> Output {
    Command::new(barista()).args(args).output().expect("barista runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn every_command_has_help_with_an_example() {
    let help = stdout(&run(&["--help"]));
    let commands: Vec<&str> = help
        .lines()
        .skip_while(|l| !l.starts_with("Commands:"))
        .skip(1)
        .take_while(|l| l.starts_with("  "))
        // A wrapped description is indented further.
        .filter(|l| !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|c| *c != "help")
        .collect();
    assert!(commands.len() >= 18, "{commands:?}");
    for command in commands {
        let text = stdout(&run(&[command, "--help"]));
        let unavailable = text.contains("not available yet");
        assert!(text.contains("Example: barista ") || unavailable, "{command}:\n{text}");
    }
}

#[test]
fn usage_and_configuration_faults_exit_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.toml");
    std::fs::write(&file, "[kafka]\nbroker = \"x\"\n[planner]\nquantile = 7\n").unwrap();
    let output = run(&["config", "check", "-c", file.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("did you mean `kafka.brokers`?"), "{}", stderr(&output));
    for args in [["no-such-command", "x"], ["schema", "print"], ["config", "fry"]] {
        assert_eq!(run(&args).status.code(), Some(2), "{args:?}");
    }
    assert_eq!(run(&["schema", "print", "no.such"]).status.code(), Some(2));
    let simulate = run(&["simulate", "x.toml"]);
    assert_eq!(simulate.status.code(), Some(2));
    assert!(stderr(&simulate).contains("x.toml: No such file"));
}

#[test]
fn configuration_prints_with_environment_and_without_secrets() {
    let output = Command::new(barista())
        .args(["config", "print"])
        .env("BARISTA_KAFKA__TOPIC_PREFIX", "spring.")
        .env("BARISTA_MQTT__USERNAME", "u")
        .env("BARISTA_MQTT__PASSWORD", "hunter2")
        .output()
        .unwrap();
    let text = stdout(&output);
    assert!(text.contains("topic_prefix = \"spring.\""), "{text}{}", stderr(&output));
    assert!(!text.contains("hunter2") && text.contains("***"));
}

/// `BARISTA_LOG` and `BARISTA_CONFIG` stand for flags, and a variable of the scripts may be about: none is configuration.
#[test]
fn variables_that_stand_for_flags_are_no_configuration() {
    let checked = Command::new(barista())
        .args(["config", "check"])
        .env("BARISTA_LOG", "warn")
        .env("BARISTA_CONFIG", workspace().join("deploy/examples/one-process.toml"))
        .env("BARISTA_CUDA_VENV", "/nowhere")
        .output()
        .unwrap();
    assert_eq!(checked.status.code(), Some(0), "{}", stderr(&checked));
}

#[test]
fn schemas_are_printed() {
    let list: serde_json::Value = serde_json::from_str(&stdout(&run(&["schema", "list", "--json"]))).unwrap();
    assert!(list.as_array().unwrap().iter().any(|c| c["name"] == "workload.forecast.v1"));
    let schema: serde_json::Value =
        serde_json::from_str(&stdout(&run(&["schema", "print", "workload.forecast"]))).unwrap();
    assert_eq!(schema["properties"]["schema"]["const"], "workload.forecast.v1");
}

#[test]
fn doctor_says_what_is_there() {
    let output = run(&["doctor", "--json", "--brokers", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(report["cores"].as_u64().unwrap() >= 1 && report["memory_gib"].as_f64().unwrap() > 0.0);
    assert_eq!(report["kafka"]["reachable"], false);
    assert_eq!(report["cuda"]["available"], false);
}

#[test]
fn a_model_is_profiled() {
    let model = workspace().join("models/delay.onnx");
    let output = run(&["profile", model.to_str().unwrap(), "--cores", "1", "--batch", "1", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let profile: schemas::profile::Profile = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(profile.problems(), Vec::<String>::new());
    assert_eq!(profile.points.len(), 1);
    let missing = run(&["profile", "no-such.onnx"]);
    assert_eq!(missing.status.code(), Some(2));
}

#[test]
fn a_series_is_scored() {
    let Some(series) = recorded("load/elb_requests.csv") else { return };
    let output = run(&["backtest", series.to_str().unwrap(), "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    let horizons = report["horizons"].as_array().unwrap();
    assert_eq!(horizons.len(), 4);
    for horizon in horizons {
        assert!(horizon["mase"].as_f64().unwrap() > 0.0 && horizon["coverage"]["0.95"].as_f64().unwrap() > 0.8);
    }
}

#[test]
fn a_backtest_writes_a_page_and_says_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let (file, page) = (folder.path().join("a <b>.csv"), folder.path().join("page.html"));
    let rows: String = (0..400).map(|hour| format!("{},{}\n", hour * 3600, 50 + hour % 24)).collect();
    std::fs::write(&file, format!("timestamp,value\n{rows}")).unwrap();
    let (file, page) = (file.to_str().unwrap(), page.to_str().unwrap());
    for model in ["ensemble", "barista2019", "ridge_sqrt_short", "last_value"] {
        let output = run(&["backtest", file, "--model", model, "--windows", "6", "--html", page, "--json"]);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let report: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(report["model"], model);
        assert_eq!(report["peaks"][0]["steps"], 6);
        let html = std::fs::read_to_string(page).unwrap();
        assert!(html.contains("<h1>a &lt;b&gt;</h1>") && html.contains(model) && html.matches("<svg").count() > 6);
    }
    std::fs::write(folder.path().join("bad.csv"), "timestamp,value\n0,1\n60,2\n120,two\n").unwrap();
    let bad = folder.path().join("bad.csv");
    for (arguments, expected) in [
        (vec![file, "--model", "arima"], "there are: ensemble, last_value"),
        (vec![file, "--model", "stack"], "no forecast of its own"),
        (vec![file, "--windows", "60"], "last horizon (12 steps)"),
        (vec![file, "--timezone", "Mars/Olympus"], "Mars/Olympus"),
        (vec![file, "--html", "/no/such/folder/page.html"], "/no/such/folder/page.html"),
        (vec![bad.to_str().unwrap()], "line 4: `two` is no number"),
        (vec!["no-such.csv"], "no-such.csv cannot be read"),
    ] {
        let mut all = vec!["backtest"];
        all.extend(&arguments);
        let output = run(&all);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
    }
}
