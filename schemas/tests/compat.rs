//! Recorded messages of every version that was ever published still decode, whatever was added since; and what we
//! write today still reads as what it was.

#![allow(clippy::unwrap_used, reason = "tests")]

use schemas::Message;
use serde_json::Value;
use std::path::Path;

fn fixtures(schema: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(schema);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(&path).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no fixture of {schema}");
    files
}

/// Every field of the fixture comes back unchanged, an unknown field is ignored, and another schema name is refused.
fn check<M: Message>() {
    for (file, bytes) in fixtures(M::SCHEMA) {
        let message = M::decode(&bytes).unwrap_or_else(|e| panic!("{}/{file}: {e}", M::SCHEMA));
        let original: Value = serde_json::from_slice(&bytes).unwrap();
        let again: Value = serde_json::from_slice(&message.encode().unwrap()).unwrap();
        assert_contains(&again, &original, &format!("{}/{file}", M::SCHEMA));
        assert!(!message.key().is_empty());

        let mut newer = original.clone();
        newer["added_in_a_later_version"] = "ignored".into();
        M::decode(newer.to_string().as_bytes()).expect("unknown fields are ignored");

        let mut other = original;
        other["schema"] = "something.else.v1".into();
        let error = M::decode(other.to_string().as_bytes()).err().expect("another schema is refused").to_string();
        assert!(error.contains("something.else.v1") && error.contains(M::SCHEMA), "{error}");
    }
}

fn assert_contains(now: &Value, then: &Value, at: &str) {
    match (now, then) {
        (Value::Object(now), Value::Object(then)) => {
            for (key, value) in then {
                let found = now.get(key).unwrap_or_else(|| panic!("{at}.{key} was lost"));
                assert_contains(found, value, &format!("{at}.{key}"));
            }
        }
        (Value::Array(now), Value::Array(then)) => {
            assert_eq!(now.len(), then.len(), "{at}");
            for (i, (n, t)) in now.iter().zip(then).enumerate() {
                assert_contains(n, t, &format!("{at}[{i}]"));
            }
        }
        _ => assert_eq!(now, then, "{at}"),
    }
}

#[test]
fn every_recorded_message_still_reads() {
    check::<schemas::telemetry::VehicleEvent>();
    check::<schemas::aggregates::WindowRow>();
    check::<schemas::workload::WorkloadObserved>();
    check::<schemas::workload::WorkloadForecast>();
    check::<schemas::allocation::FleetPlan>();
    check::<schemas::allocation::NodeAllocation>();
    check::<schemas::allocation::PlannerHeartbeat>();
    check::<schemas::status::ExecutorStatus>();
    check::<schemas::state::ForecasterState>();
    check::<schemas::state::AggregateState>();
}

#[test]
fn every_contract_with_a_schema_field_has_a_fixture() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    for contract in schemas::registry::contracts() {
        assert!(root.join(contract.name).is_dir(), "fixtures/{} is missing", contract.name);
    }
}

#[test]
fn prediction_messages_follow_the_protocol() {
    for (file, bytes) in fixtures("prediction.requests.v1") {
        let request = schemas::prediction::decode_request(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        for input in &request.inputs {
            input.to_fp32().unwrap_or_else(|e| panic!("{file}: {e}"));
        }
    }
    for (file, bytes) in fixtures("prediction.results.v1") {
        serde_json::from_slice::<schemas::prediction::InferResponse>(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    for (file, bytes) in fixtures("profile.v1") {
        let profile: schemas::profile::Profile =
            serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(profile.problems().is_empty(), "{file}: {:?}", profile.problems());
    }
}
