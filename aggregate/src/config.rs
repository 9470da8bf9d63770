//! Section `[aggregate]` of the configuration.

use crate::queries;
use jiff::tz::TimeZone;
use runtime::config::ConfigDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Configuration of the role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Length of the intervals of `workload.observed`.
    pub interval: ConfigDuration,
    /// How long after its end an interval is closed, so that records on their way are still counted in it.
    pub grace: ConfigDuration,
    /// How far out of order event times may be; windows close this much later.
    pub lateness: ConfigDuration,
    /// After how long without records a partition is not waited for.
    pub idle_timeout: ConfigDuration,
    /// How far a device's clock may run ahead of our receive time; rows beyond are dropped.
    pub max_ahead: ConfigDuration,
    /// How far a partition's event time may run ahead of the slowest before it is paused.
    pub max_drift: ConfigDuration,
    /// How often state is written and offsets are committed; after a crash so much is read and emitted again.
    pub commit_interval: ConfigDuration,
    /// Longest time that a record waits for its batch.
    pub batch_latency: ConfigDuration,
    /// Most rows of a batch.
    pub batch_rows: usize,
    /// Time zone of `local_hour` and `local_weekday`, an IANA name.
    pub timezone: String,
    /// Static membership of the consumer groups, unique among processes; keeps partitions over a restart.
    pub instance: Option<String>,
    /// Standing queries. Absent: the built-in ones.
    pub query: Option<Vec<Query>>,
    /// Names of the prediction services, from the sections `[[service]]`; set by who composes the configuration.
    #[serde(skip)]
    pub services: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            interval: ConfigDuration::from_secs(10),
            grace: ConfigDuration::from_millis(500),
            lateness: ConfigDuration::from_secs(10),
            idle_timeout: ConfigDuration::from_secs(15),
            max_ahead: ConfigDuration::from_secs(30),
            max_drift: ConfigDuration::from_secs(600),
            commit_interval: ConfigDuration::from_secs(1),
            batch_latency: ConfigDuration::from_millis(200),
            batch_rows: 16_384,
            timezone: "Europe/Helsinki".to_owned(),
            instance: None,
            query: None,
            services: Vec::new(),
        }
    }
}

/// A standing query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// Unique name; part of record keys, request ids and the state's key.
    pub name: String,
    /// SQL over table `telemetry`, grouped by `tumble(event_time, …)` or `hop(event_time, …, …)`.
    pub sql: String,
    /// Where closed rows go.
    #[serde(default)]
    pub sink: Sink,
    /// For requests: name of the input tensor.
    #[serde(default = "default_input")]
    pub input: String,
    /// For requests: columns of the result that make up the tensor, in order.
    #[serde(default)]
    pub features: Vec<String>,
    /// For requests: what to do with a row in which a feature is null or not finite.
    #[serde(default)]
    pub on_null: OnNull,
}

fn default_input() -> String {
    "features".to_owned()
}

/// Where the rows of a query go: `aggregates`, or `predict:<service>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Sink {
    /// Topic `transit.aggregates`.
    #[default]
    Aggregates,
    /// One request a row for this service.
    Predict(String),
}

/// What to do with a row that lacks a feature.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnNull {
    /// No request.
    #[default]
    Skip,
    /// Zero in its place.
    Zero,
}

impl FromStr for Sink {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "aggregates" => Ok(Sink::Aggregates),
            Some(("predict", service)) if !service.is_empty() => Ok(Sink::Predict(service.to_owned())),
            _ => Err(format!("`{text}` is not a sink; write `aggregates` or `predict:<service>`")),
        }
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sink::Aggregates => f.write_str("aggregates"),
            Sink::Predict(service) => write!(f, "predict:{service}"),
        }
    }
}

impl Serialize for Sink {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Sink {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Sink {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Sink".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "description": "`aggregates` or `predict:<service>`"})
    }
}

impl Config {
    /// The queries in force: those configured, else the built-in ones that fit the services.
    pub fn queries(&self) -> Vec<Query> {
        self.query.clone().unwrap_or_else(|| queries::built_in(&self.services))
    }

    /// The time zone. Fails if the name is not known.
    pub fn time_zone(&self) -> Result<TimeZone, String> {
        TimeZone::get(&self.timezone)
            .map_err(|_| format!("aggregate.timezone: `{}` is not an IANA time zone", self.timezone))
    }

    /// Everything that is wrong with the values; each names its key. (SQL is checked when it is planned.)
    pub fn problems(&self) -> Vec<String> {
        let mut problems: Vec<String> = self.time_zone().err().into_iter().collect();
        let positive = [
            ("interval", self.interval),
            ("idle_timeout", self.idle_timeout),
            ("max_drift", self.max_drift),
            ("commit_interval", self.commit_interval),
            ("batch_latency", self.batch_latency),
        ];
        let zeros = positive.iter().filter(|(_, duration)| duration.as_ms() < 1);
        problems.extend(zeros.map(|(key, _)| format!("aggregate.{key}: must be at least 1ms")));
        if self.batch_rows == 0 {
            problems.push("aggregate.batch_rows: must be at least 1".to_owned());
        }
        let mut names = BTreeSet::new();
        for (index, query) in self.queries().iter().enumerate() {
            let key = format!("aggregate.query[{index}]");
            problems.extend(query.problems(&self.services).into_iter().map(|p| format!("{key}.{p}")));
            if !names.insert(query.name.clone()) {
                problems.push(format!("{key}.name: `{}` is there twice", query.name));
            }
        }
        problems
    }
}

impl Query {
    fn problems(&self, services: &[String]) -> Vec<String> {
        let mut problems = Vec::new();
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if self.name.is_empty() || !self.name.chars().all(plain) {
            problems.push(format!("name: `{}` must be of letters, digits, `.`, `_` and `-`", self.name));
        }
        if let Sink::Predict(service) = &self.sink {
            if !services.contains(service) {
                problems.push(format!("sink: there is no service `{service}`; known: {}", services.join(", ")));
            }
            if self.features.is_empty() {
                problems.push("features: a query that makes requests names the columns of its tensor".to_owned());
            }
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_default_is_sound_with_and_without_services() {
        assert_eq!(Config::default().problems(), [""; 0]);
        let config = Config { services: vec!["delay".into()], ..Config::default() };
        assert_eq!(config.problems(), [""; 0]);
        assert!(config.queries().iter().any(|q| q.sink == Sink::Predict("delay".into())));
        assert!(Config::default().queries().iter().all(|q| q.sink == Sink::Aggregates), "no service, no requests");
    }

    #[test]
    fn every_problem_names_its_key() {
        let config: Config = serde_json::from_value(serde_json::json!({
            "interval": "0s", "timezone": "Mars/Olympus", "batch_rows": 0,
            "query": [
                {"name": "a b", "sql": "", "sink": "predict:nope"},
                {"name": "x", "sql": ""}, {"name": "x", "sql": ""},
            ],
        }))
        .unwrap();
        let problems = config.problems().join("\n");
        for key in [
            "interval:",
            "timezone:",
            "batch_rows:",
            "query[0].name:",
            "query[0].sink:",
            "query[0].features:",
            "query[2].name:",
        ] {
            assert!(problems.contains(&format!("aggregate.{key}")), "{key} in\n{problems}");
        }
    }

    #[test]
    fn sinks_are_text() {
        for text in ["aggregates", "predict:delay"] {
            assert_eq!(text.parse::<Sink>().unwrap().to_string(), text);
        }
        assert!("predict:".parse::<Sink>().is_err());
        assert!("kafka".parse::<Sink>().unwrap_err().contains("predict:<service>"));
    }
}
