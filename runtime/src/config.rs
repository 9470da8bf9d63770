//! Configuration loader: embedded default < file < environment < flags; all problems at once.
//!
//! Keys are checked against the JSON Schema of the configuration type, so one rule covers every section: an
//! unknown key is an error that names the nearest known one. Values are checked by the types and by each
//! section's own `problems()`.

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// A secret: masked wherever it is printed.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Secret(secret.into())
    }

    /// The secret itself, for the client that needs it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// A duration written as text: `250ms`, `10s`, `2m`, `1h 30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigDuration(std::time::Duration);

impl ConfigDuration {
    /// From a duration.
    pub const fn new(duration: std::time::Duration) -> Self {
        ConfigDuration(duration)
    }

    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        ConfigDuration(std::time::Duration::from_secs(seconds))
    }

    /// Milliseconds.
    pub const fn from_millis(ms: u64) -> Self {
        ConfigDuration(std::time::Duration::from_millis(ms))
    }

    /// The duration.
    pub const fn get(self) -> std::time::Duration {
        self.0
    }

    /// In milliseconds.
    pub fn as_ms(self) -> i64 {
        i64::try_from(self.0.as_millis()).unwrap_or(i64::MAX)
    }
}

impl std::str::FromStr for ConfigDuration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parsed: jiff::SignedDuration =
            text.parse().map_err(|_| format!("`{text}` is not a duration; write it as `250ms`, `10s` or `2m`"))?;
        let duration = std::time::Duration::try_from(parsed).map_err(|_| format!("`{text}` is negative"))?;
        Ok(ConfigDuration(duration))
    }
}

impl Serialize for ConfigDuration {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let signed = jiff::SignedDuration::try_from(self.0).map_err(serde::ser::Error::custom)?;
        serializer.collect_str(&format_args!("{signed:#}"))
    }
}

impl<'de> Deserialize<'de> for ConfigDuration {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for ConfigDuration {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "description": "a duration: 250ms, 10s, 2m, 1h 30m"})
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} in the configuration:\n{}", count(.0.len()), .0.iter().map(|p| format!("  - {p}")).collect::<Vec<_>>().join("\n"))]
pub struct Problems(pub Vec<String>);

fn count(n: usize) -> String {
    if n == 1 { "1 problem".to_owned() } else { format!("{n} problems") }
}

/// Layers over the type's own default.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// TOML text embedded in the binary, below everything.
    pub embedded: &'static str,
    /// The operator's file.
    pub file: Option<PathBuf>,
    /// Environment variables of this prefix, `__` between levels: `BARISTA_KAFKA__BROKERS`.
    pub env_prefix: Option<&'static str>,
    /// Dotted keys with TOML values, from flags, above everything.
    pub overrides: Vec<(String, Value)>,
}

/// Environment variables of our prefix that are not configuration: those of the tests and scripts
/// (`BARISTA_TEST_KAFKA`, `BARISTA_DATA`, …), and those that stand for flags (`BARISTA_LOG`, `BARISTA_CONFIG`).
const NOT_CONFIGURATION: [&str; 6] = ["TEST_", "REQUIRE_", "DATA", "LOG", "CONFIG", "CUDA_"];

/// Loads a configuration. Unknown keys, wrong types and bad files are all reported together.
pub fn load<T>(layers: &Layers) -> Result<T, Problems>
where
    T: DeserializeOwned + Serialize + JsonSchema,
{
    let mut figment = Figment::new().merge(Toml::string(layers.embedded));
    if let Some(file) = &layers.file {
        figment = figment.merge(Toml::string(&read(file)?));
    }
    if let Some(prefix) = layers.env_prefix {
        let env = Env::prefixed(prefix)
            .filter(|key| !NOT_CONFIGURATION.iter().any(|skip| key.as_str().to_uppercase().starts_with(skip)))
            .split("__");
        figment = figment.merge(env);
    }
    for (key, value) in &layers.overrides {
        figment = figment.merge(Serialized::default(key, value));
    }
    let mut tree: Value = figment.extract().map_err(|e| Problems(e.into_iter().map(|e| e.to_string()).collect()))?;
    let schema = schemars::schema_for!(T).to_value();
    let mut problems = Vec::new();
    check_keys(&mut tree, &schema, &schema, "", &mut problems);
    match typed(tree, &mut problems) {
        Some(config) if problems.is_empty() => Ok(config),
        _ => Err(Problems(problems)),
    }
}

/// Reads the tree into its type; each wrong value is noted and taken out, so that the next one is found too.
fn typed<T: DeserializeOwned>(mut tree: Value, problems: &mut Vec<String>) -> Option<T> {
    const MOST: usize = 100;
    for _ in 0..MOST {
        match serde_path_to_error::deserialize::<_, T>(&tree) {
            Ok(config) => return Some(config),
            Err(error) => {
                let path = error.path().clone();
                problems.push(format!("{path}: {}", error.into_inner()));
                if !remove(&mut tree, &path) {
                    return None;
                }
            }
        }
    }
    None
}

/// Takes the value at `path` out of the tree. False if there is nothing to take out.
fn remove(tree: &mut Value, path: &serde_path_to_error::Path) -> bool {
    use serde_path_to_error::Segment;
    let segments: Vec<&Segment> = path.iter().collect();
    let Some((last, parents)) = segments.split_last() else {
        return false;
    };
    let mut at = tree;
    for segment in parents {
        let next = match segment {
            Segment::Map { key } => at.get_mut(key),
            Segment::Seq { index } => at.get_mut(*index),
            _ => None,
        };
        let Some(next) = next else { return false };
        at = next;
    }
    match (last, at) {
        (Segment::Map { key }, Value::Object(map)) => map.shift_remove(key).is_some(),
        (Segment::Seq { index }, Value::Array(items)) if *index < items.len() => {
            items.remove(*index);
            true
        }
        _ => false,
    }
}

fn read(file: &Path) -> Result<String, Problems> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| Problems(vec![format!("{}: {e}; give an existing file with -c", file.display())]))?;
    // Parsed once for its own message, which has line and column.
    toml::from_str::<toml::Table>(&text)
        .map_err(|e| Problems(vec![format!("{}: {}", file.display(), e.to_string().trim_end())]))?;
    Ok(text)
}

/// Walks the tree beside its schema; unknown keys are noted and taken out.
fn check_keys(tree: &mut Value, schema: &Value, root: &Value, path: &str, problems: &mut Vec<String>) {
    let schema = resolve(schema, root);
    match tree {
        Value::Object(map) => {
            let known = properties(schema, root);
            if known.is_empty() {
                return;
            }
            map.retain(|key, value| {
                let here = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let Some((_, sub)) = known.iter().find(|(name, _)| name == key) else {
                    problems.push(unknown(&here, path, key, &known));
                    return false;
                };
                check_keys(value, sub, root, &here, problems);
                true
            });
        }
        Value::Array(items) => {
            if let Some(sub) = schema.get("items") {
                for (i, item) in items.iter_mut().enumerate() {
                    check_keys(item, sub, root, &format!("{path}[{i}]"), problems);
                }
            }
        }
        _ => {}
    }
}

fn unknown(here: &str, path: &str, key: &str, known: &[(String, Value)]) -> String {
    let nearest = known
        .iter()
        .map(|(name, _)| (strsim::jaro_winkler(key, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.6);
    let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
    match nearest {
        Some((_, name)) => format!("{here}: unknown key; did you mean `{prefix}{name}`?"),
        None => {
            let names: Vec<&str> = known.iter().map(|(name, _)| name.as_str()).collect();
            format!("{here}: unknown key; known here: {}", names.join(", "))
        }
    }
}

fn resolve<'a>(schema: &'a Value, root: &'a Value) -> &'a Value {
    let mut schema = schema;
    while let Some(reference) = schema.get("$ref").and_then(Value::as_str) {
        let Some(target) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) else {
            break;
        };
        schema = target;
    }
    schema
}

/// Properties of an object schema, of its alternatives too (`Option`, enums).
fn properties(schema: &Value, root: &Value) -> Vec<(String, Value)> {
    let schema = resolve(schema, root);
    let mut found: Vec<(String, Value)> = schema
        .get("properties")
        .and_then(Value::as_object)
        .map(|map| map.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
        .unwrap_or_default();
    for alternatives in ["anyOf", "oneOf", "allOf"] {
        for sub in schema.get(alternatives).and_then(Value::as_array).into_iter().flatten() {
            found.extend(properties(sub, root));
        }
    }
    found
}

/// The effective configuration as TOML, secrets masked, values that are not set left out.
pub fn print<T: Serialize>(config: &T) -> Result<String, String> {
    let mut tree = serde_json::to_value(config).map_err(|e| e.to_string())?;
    drop_nulls(&mut tree);
    toml::to_string_pretty(&tree).map_err(|e| e.to_string())
}

fn drop_nulls(tree: &mut Value) {
    match tree {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[derive(Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Kafka {
        brokers: String,
        password: Option<Secret>,
        linger: ConfigDuration,
    }

    impl Default for Kafka {
        fn default() -> Self {
            Kafka { brokers: "embedded".into(), password: None, linger: ConfigDuration::from_millis(5) }
        }
    }

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Item {
        name: String,
        slo_p95_ms: f64,
    }

    #[derive(Debug, Default, Serialize, Deserialize, JsonSchema, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Tree {
        kafka: Kafka,
        service: Vec<Item>,
    }

    fn load_file(text: &str) -> Result<Tree, Problems> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("barista.toml");
        std::fs::write(&file, text).unwrap();
        load(&Layers { embedded: "[kafka]\nlinger = \"7ms\"", file: Some(file), ..Layers::default() })
    }

    #[test]
    fn layers_override_in_order() {
        let tree = load_file("[kafka]\nbrokers = \"a:1\"").unwrap();
        assert_eq!((tree.kafka.brokers.as_str(), tree.kafka.linger), ("a:1", ConfigDuration::from_millis(7)));
        let layers = Layers {
            overrides: vec![("kafka.brokers".into(), "b:2".into())],
            embedded: "[kafka]\nbrokers = \"a:1\"",
            ..Layers::default()
        };
        assert_eq!(load::<Tree>(&layers).unwrap().kafka.brokers, "b:2");
    }

    #[test]
    fn all_problems_come_at_once_and_name_the_nearest_key() {
        let text = "[kafka]\nbroker = \"x\"\nlinger = \"soon\"\n[[service]]\nslo_p59_ms = 3\n[kafak]\n";
        let Problems(problems) = load_file(text).unwrap_err();
        let all = problems.join("\n");
        assert!(all.contains("kafka.broker: unknown key; did you mean `kafka.brokers`?"), "{all}");
        assert!(all.contains("service[0].slo_p59_ms: unknown key; did you mean `service[0].slo_p95_ms`?"), "{all}");
        assert!(all.contains("kafak: unknown key; did you mean `kafka`?"), "{all}");
        assert!(all.contains("not a duration"), "{all}");
    }

    #[test]
    fn a_broken_file_says_where() {
        let Problems(problems) = load_file("[kafka\n").unwrap_err();
        assert!(problems[0].contains("barista.toml") && problems[0].contains("line 1"), "{problems:?}");
    }

    #[test]
    fn secrets_are_masked_and_durations_round_trip() {
        let tree = load_file("[kafka]\npassword = \"hunter2\"\nlinger = \"1m 30s\"").unwrap();
        let printed = print(&tree).unwrap();
        assert!(!printed.contains("hunter2") && printed.contains("***"), "{printed}");
        assert!(!format!("{tree:?}").contains("hunter2"));
        assert_eq!(tree.kafka.password.unwrap().reveal(), "hunter2");
        let again: Tree = toml::from_str(&printed).unwrap();
        assert_eq!(again.kafka.linger, ConfigDuration::from_secs(90));
    }
}
