//! The generated files are those that the types give.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::path::Path;

const HINT: &str = "run `barista schema write` (or `just schemas`) and commit the result";

#[test]
fn generated_files_are_fresh() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = schemas::registry::generated_files();
    for (name, content) in &files {
        let on_disk = std::fs::read_to_string(root.join(name)).unwrap_or_default();
        assert!(on_disk == *content, "schemas/{name} is stale: {HINT}");
    }
    let expected: BTreeSet<String> =
        files.iter().filter_map(|(n, _)| n.strip_prefix("json/").map(str::to_owned)).collect();
    let found: BTreeSet<String> = std::fs::read_dir(root.join("json"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(found, expected, "schemas/json holds other files than the contracts: {HINT}");
}

#[test]
fn asyncapi_points_at_things_that_exist() {
    let document = schemas::asyncapi::document();
    let text = document.to_string();
    let references: Vec<&str> = text.split("\"$ref\":\"").skip(1).filter_map(|s| s.split('"').next()).collect();
    let mut checked = 0;
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap_or_else(|| panic!("{reference} leaves the document"));
        assert!(document.pointer(pointer).is_some(), "{reference} points nowhere");
        checked += 1;
    }
    assert!(checked >= 20, "only {checked} references found");
    for spec in schemas::Topics::all(["delay"]) {
        let address = format!("\"address\":\"{}\"", spec.name.replace(".delay", ".{service}"));
        assert!(text.contains(&address), "{} is missing from the AsyncAPI document", spec.name);
    }
}
