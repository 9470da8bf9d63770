//! `[kafka]`: how to reach the cluster.

use crate::config::{ConfigDuration, Secret};
use rdkafka::ClientConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// `[kafka]`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// `embedded`, or `host:port` of one or more brokers, separated by commas.
    pub brokers: String,
    /// Put before every topic and group name.
    pub topic_prefix: String,
    /// Replication factor of topics that Barista creates; the embedded broker knows 1 only.
    pub replication: i32,
    /// Partitions of topics that Barista creates, where the contract does not ask for one.
    pub partitions: i32,
    /// Retention of topics that Barista creates (those that are not compacted).
    pub retention: ConfigDuration,
    /// TLS; absent for plain text.
    pub tls: Option<TlsConfig>,
    /// SASL; absent for none.
    pub sasl: Option<SaslConfig>,
    /// Producer: how long a batch waits for more records.
    pub linger: ConfigDuration,
    /// Producer: records that may wait for their delivery report; a full queue makes senders wait.
    pub producer_queue: usize,
    /// Consumer: how long a broker may hold an empty fetch. Members of groups ask for 25 ms at most: a partition that comes
    /// to a member waits for the fetch under way.
    pub fetch_wait: ConfigDuration,
    /// Consumer: silence after which the broker gives a member's partitions away.
    pub session_timeout: ConfigDuration,
    /// Consumer: how often a member asks whether its group rebalances. A partition that moves is read by nobody for
    /// one or two such periods. Short against the latency objective it costs little: two small requests a member and period.
    pub heartbeat: ConfigDuration,
    /// Consumer: how long a revoke waits for in-flight work.
    pub revoke_timeout: ConfigDuration,
    /// A record must be delivered within this time, retries included; then its send fails.
    pub delivery_timeout: ConfigDuration,
    /// A transaction must end within this time. One whose writer died is aborted after it, or as soon as another
    /// writer takes the transactional id; until then readers of its partitions wait.
    pub transaction_timeout: ConfigDuration,
}

/// `[kafka.tls]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file of the certificate authority; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the client's certificate.
    pub cert_file: Option<PathBuf>,
    /// PEM file of the client's key.
    pub key_file: Option<PathBuf>,
}

/// `[kafka.sasl]`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SaslConfig {
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`.
    pub mechanism: String,
    /// User name.
    pub username: String,
    /// Password.
    pub password: Secret,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        KafkaConfig {
            brokers: "embedded".to_owned(),
            topic_prefix: String::new(),
            replication: 1,
            partitions: 4,
            retention: ConfigDuration::from_secs(7 * 24 * 3600),
            tls: None,
            sasl: None,
            linger: ConfigDuration::from_millis(2),
            producer_queue: 20_000,
            fetch_wait: ConfigDuration::from_millis(100),
            session_timeout: ConfigDuration::from_secs(10),
            heartbeat: ConfigDuration::from_millis(250),
            revoke_timeout: ConfigDuration::from_secs(10),
            delivery_timeout: ConfigDuration::from_secs(30),
            transaction_timeout: ConfigDuration::from_secs(10),
        }
    }
}

impl KafkaConfig {
    /// What is wrong with the values, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.brokers.trim().is_empty() {
            problems.push("kafka.brokers: empty; use \"embedded\" or host:port".to_owned());
        }
        if self.partitions < 1 {
            problems.push("kafka.partitions: must be at least 1".to_owned());
        }
        if self.replication < 1 {
            problems.push("kafka.replication: must be at least 1".to_owned());
        }
        if self.is_embedded() && self.replication != 1 {
            problems.push("kafka.replication: the embedded broker keeps one copy; set it to 1".to_owned());
        }
        if self.heartbeat.as_ms() < 1 || self.heartbeat.as_ms() > self.session_timeout.as_ms() / 3 {
            problems.push(format!(
                "kafka.heartbeat: {} ms; must be from 1 ms to a third of kafka.session_timeout ({} ms)",
                self.heartbeat.as_ms(),
                self.session_timeout.as_ms()
            ));
        }
        if self.transaction_timeout.as_ms() < 1_000 {
            problems.push(format!(
                "kafka.transaction_timeout: {} ms; must be at least 1 s",
                self.transaction_timeout.as_ms()
            ));
        }
        if self.producer_queue == 0 {
            problems.push("kafka.producer_queue: must be at least 1".to_owned());
        }
        if let Some(sasl) = &self.sasl {
            const KNOWN: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];
            if !KNOWN.contains(&sasl.mechanism.as_str()) {
                problems.push(format!("kafka.sasl.mechanism: `{}`; one of {}", sasl.mechanism, KNOWN.join(", ")));
            }
        }
        problems
    }

    /// True for the embedded broker.
    pub fn is_embedded(&self) -> bool {
        self.brokers == "embedded"
    }

    /// Settings that every client shares.
    pub fn client(&self) -> ClientConfig {
        let mut client = ClientConfig::new();
        client
            .set("bootstrap.servers", &self.brokers)
            .set("client.id", "barista")
            .set("socket.nagle.disable", "true")
            .set("topic.metadata.refresh.interval.ms", "5000")
            // librdkafka opens unasked connections no faster than half of this (`sparse_connect_intvl`), and after its
            // first look at the cluster it has to open one: 100 ms here cost every new client 50 ms.
            .set("reconnect.backoff.ms", "20")
            .set("reconnect.backoff.max.ms", "2000")
            .set("log_level", "4");
        let protocol = match (&self.tls, &self.sasl) {
            (None, None) => "plaintext",
            (Some(_), None) => "ssl",
            (None, Some(_)) => "sasl_plaintext",
            (Some(_), Some(_)) => "sasl_ssl",
        };
        client.set("security.protocol", protocol);
        if let Some(tls) = &self.tls {
            let files = [
                ("ssl.ca.location", &tls.ca_file),
                ("ssl.certificate.location", &tls.cert_file),
                ("ssl.key.location", &tls.key_file),
            ];
            for (key, file) in files {
                if let Some(file) = file {
                    client.set(key, file.display().to_string());
                }
            }
        }
        if let Some(sasl) = &self.sasl {
            client
                .set("sasl.mechanism", &sasl.mechanism)
                .set("sasl.username", &sasl.username)
                .set("sasl.password", sasl.password.reveal());
        }
        client
    }
}
