//! The sections `[mqtt]` and `[ingest]`.

use runtime::config::{ConfigDuration, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Both sections that ingest reads.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where messages come from.
    pub mqtt: MqttConfig,
    /// What is done with them.
    pub ingest: IngestConfig,
}

impl Config {
    /// What is wrong with the values, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.mqtt.problems();
        problems.extend(self.ingest.problems());
        problems
    }
}

/// Section `[mqtt]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MqttConfig {
    /// `embedded`, or a URL: `mqtt://host:1883`, `mqtts://host:8883`.
    pub broker: String,
    /// Identifies the persistent session at the broker: keep it over restarts, and unlike other clients'. To share
    /// the load between several ingest nodes give each its own id and subscribe to `$share/<group>/<filter>`.
    pub client_id: String,
    /// User name, if the broker asks for one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    /// PEM file of the certificate authorities to trust with `mqtts`; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Topic filters, subscribed at QoS 1. HFP may append levels to its topics: keep the trailing `/#`.
    pub topics: Vec<String>,
    /// The broker is pinged this often when nothing else is sent; whole seconds.
    pub keep_alive: ConfigDuration,
    /// Messages that may wait between the MQTT client and the pipeline. When it is full no more is read from the
    /// socket, and if that lasts longer than `keep_alive` the broker ends the connection and redelivers: set it no
    /// lower than the number of unacknowledged messages that the broker allows (Mosquitto: `max_inflight_messages`).
    pub max_inflight: usize,
    /// First pause before a new connection; it doubles (with jitter) up to `reconnect_max`.
    pub reconnect_min: ConfigDuration,
    /// Longest pause before a new connection.
    pub reconnect_max: ConfigDuration,
}

impl Default for MqttConfig {
    fn default() -> Self {
        MqttConfig {
            broker: "embedded".to_owned(),
            client_id: "barista-ingest".to_owned(),
            username: None,
            password: None,
            ca_file: None,
            topics: vec!["/hfp/v2/#".to_owned(), "/hfp/v1/#".to_owned()],
            keep_alive: ConfigDuration::from_secs(30),
            max_inflight: 2000,
            reconnect_min: ConfigDuration::from_millis(100),
            reconnect_max: ConfigDuration::from_secs(10),
        }
    }
}

impl MqttConfig {
    /// What is wrong with the values, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.broker != "embedded"
            && let Err(problem) = BrokerAddress::parse(&self.broker)
        {
            problems.push(format!("mqtt.broker: {problem}"));
        }
        if self.client_id.is_empty() || self.client_id.len() > 128 {
            problems.push("mqtt.client_id: must have 1 to 128 bytes; it names the persistent session".to_owned());
        }
        if self.password.is_some() && self.username.is_none() {
            problems.push("mqtt.password: set without mqtt.username, which MQTT does not allow".to_owned());
        }
        if self.topics.is_empty() {
            problems.push("mqtt.topics: is empty, nothing would be received".to_owned());
        }
        for filter in self.topics.iter().filter(|filter| !rumqttc::valid_filter(filter)) {
            problems.push(format!("mqtt.topics: `{filter}` is not an MQTT topic filter"));
        }
        let keep_alive = self.keep_alive.get();
        if keep_alive.subsec_nanos() != 0 || !(1..=65_535).contains(&keep_alive.as_secs()) {
            problems.push("mqtt.keep_alive: must be whole seconds, from 1s to 65535s".to_owned());
        }
        if !(1..=65_535).contains(&self.max_inflight) {
            problems.push(format!("mqtt.max_inflight: is {}, must be from 1 to 65535", self.max_inflight));
        }
        if self.reconnect_min.get().is_zero() || self.reconnect_min > self.reconnect_max {
            problems.push("mqtt.reconnect_min: must be above zero and not above mqtt.reconnect_max".to_owned());
        }
        problems
    }
}

/// Section `[ingest]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IngestConfig {
    /// How long after its delivery an equal (topic, payload) counts as a duplicate; zero switches deduplication off.
    pub dedup_window: ConfigDuration,
    /// Most deliveries remembered (about 100 bytes each); the oldest fall out first. It should hold the messages of a
    /// whole window: rate × `dedup_window`.
    pub dedup_entries: usize,
    /// Larger payloads are rejected, and only this much of them is kept in `telemetry.rejected`.
    pub max_payload_bytes: usize,
    /// Most messages between their arrival in the pipeline and their Kafka delivery report. When it is reached,
    /// messages wait in the buffer of `mqtt.max_inflight`.
    pub in_flight: usize,
    /// Most bytes of topics and payloads held at once, buffered and in flight; when it is reached no more is read
    /// from the socket. One larger message is still taken, alone.
    pub buffer_bytes: usize,
    /// At shutdown, deliveries are awaited this long; what is not delivered by then is left to redelivery.
    pub drain_timeout: ConfigDuration,
}

impl Default for IngestConfig {
    fn default() -> Self {
        IngestConfig {
            dedup_window: ConfigDuration::from_secs(120),
            dedup_entries: 200_000,
            max_payload_bytes: 64 * 1024,
            in_flight: 2000,
            buffer_bytes: 64 * 1024 * 1024,
            drain_timeout: ConfigDuration::from_secs(3),
        }
    }
}

impl IngestConfig {
    /// What is wrong with the values, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let mut check = |key: &str, value: usize, max: usize| {
            if !(1..=max).contains(&value) {
                problems.push(format!("ingest.{key}: is {value}, must be from 1 to {max}"));
            }
        };
        check("dedup_entries", self.dedup_entries, 50_000_000);
        // Numbers may grow when they are written again; a record must stay below Kafka's usual 1 MB.
        check("max_payload_bytes", self.max_payload_bytes, 200_000);
        check("in_flight", self.in_flight, 1_000_000);
        // What a semaphore counts.
        check("buffer_bytes", self.buffer_bytes, u32::MAX as usize);
        problems
    }
}

/// Host, port and transport of a broker URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerAddress {
    /// Host name or address; an IPv6 address keeps its brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// TLS.
    pub tls: bool,
}

impl BrokerAddress {
    /// Reads `mqtt://host[:port]` (port 1883) or `mqtts://host[:port]` (port 8883).
    ///
    /// # Errors
    /// What is wrong, without the key.
    pub fn parse(url: &str) -> Result<Self, String> {
        const FORM: &str = "write it as mqtt://host:1883 or mqtts://host:8883";
        let (scheme, rest) = url.split_once("://").ok_or_else(|| format!("`{url}` is not a URL; {FORM}"))?;
        let (tls, default_port) = match scheme {
            "mqtt" | "tcp" => (false, 1883),
            "mqtts" | "ssl" => (true, 8883),
            other => return Err(format!("scheme `{other}` is not known; {FORM}")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains('@') {
            return Err("credentials do not belong into the URL; set mqtt.username and mqtt.password".to_owned());
        }
        // The last colon, unless it is one of an IPv6 address in brackets.
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => {
                (host, port.parse().map_err(|_| format!("`{port}` is not a port; {FORM}"))?)
            }
            _ => (rest, default_port),
        };
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || host.contains(['/', '?', '#', ' ']) || (host.contains(':') && !bracketed) {
            return Err(format!("`{host}` is not a host; {FORM}"));
        }
        if tls && bracketed {
            return Err("an IPv6 address cannot be used with mqtts; use a host name".to_owned());
        }
        Ok(BrokerAddress { host: host.to_owned(), port, tls })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn address(host: &str, port: u16, tls: bool) -> Result<BrokerAddress, String> {
        Ok(BrokerAddress { host: host.to_owned(), port, tls })
    }

    #[test]
    fn broker_urls() {
        assert_eq!(BrokerAddress::parse("mqtt://broker.example:1884"), address("broker.example", 1884, false));
        assert_eq!(BrokerAddress::parse("mqtt://127.0.0.1"), address("127.0.0.1", 1883, false));
        assert_eq!(BrokerAddress::parse("mqtts://mqtt.hsl.fi:8883/"), address("mqtt.hsl.fi", 8883, true));
        assert_eq!(BrokerAddress::parse("mqtt://[::1]:1884"), address("[::1]", 1884, false));
        assert_eq!(BrokerAddress::parse("mqtt://[::1]"), address("[::1]", 1883, false));
        for bad in [
            "localhost:1883",
            "http://a",
            "mqtt://",
            "mqtt://a:b",
            "mqtt://a:70000",
            "mqtt://u:p@a",
            "mqtt://a/topic",
            "mqtt://::1",
            "mqtts://[::1]",
        ] {
            assert!(BrokerAddress::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_default_has_no_problems() {
        assert_eq!(Config::default().problems(), Vec::<String>::new());
    }

    #[test]
    fn problems_name_their_keys() {
        let mqtt = MqttConfig {
            broker: "localhost".to_owned(),
            client_id: String::new(),
            password: Some(Secret::new("x")),
            topics: vec!["a/#/b".to_owned()],
            keep_alive: ConfigDuration::from_millis(500),
            max_inflight: 0,
            reconnect_min: ConfigDuration::from_secs(60),
            ..MqttConfig::default()
        };
        let ingest = IngestConfig { dedup_entries: 0, max_payload_bytes: 1 << 30, in_flight: 0, ..Default::default() };
        let problems = Config { mqtt, ingest }.problems();
        let keys: Vec<&str> = problems.iter().map(|p| p.split(':').next().unwrap()).collect();
        assert_eq!(
            keys,
            [
                "mqtt.broker",
                "mqtt.client_id",
                "mqtt.password",
                "mqtt.topics",
                "mqtt.keep_alive",
                "mqtt.max_inflight",
                "mqtt.reconnect_min",
                "ingest.dedup_entries",
                "ingest.max_payload_bytes",
                "ingest.in_flight",
            ]
        );
    }

    #[test]
    fn sections_are_read_and_secrets_are_not_printed() {
        let tree: serde_json::Value = serde_json::json!({
            "mqtt": {"broker": "mqtt://a", "keep_alive": "15s", "password": "p"}, "ingest": {"in_flight": 7}
        });
        let config: Config = serde_json::from_value(tree).unwrap();
        assert_eq!((config.mqtt.keep_alive.get().as_secs(), config.ingest.in_flight), (15, 7));
        assert!(!runtime::config::print(&config).unwrap().contains("\"p\""));
    }
}
