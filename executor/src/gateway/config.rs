//! `[gateway]`: configuration of the gateway.

use runtime::config::{ConfigDuration, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

/// Where requests go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// `direct` for models that an executor in the same process serves, `kafka` for all others.
    #[default]
    Auto,
    /// Into the queues of the executor in the same process; answered on the connection, outside Kafka's guarantee.
    Direct,
    /// Over `prediction.requests.<service>` and back over the results topic.
    Kafka,
}

/// `[gateway.tls]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// PEM file with the certificate and its chain, the server's own first.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
}

/// `[gateway]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the HTTP protocol; port 0 takes any free one and logs it.
    pub http: SocketAddr,
    /// Address of the gRPC protocol; port 0 takes any free one and logs it.
    pub grpc: SocketAddr,
    /// Where requests go.
    pub mode: Mode,
    /// Bytes of one request at most, after decompression, gRPC's frame of five included; a larger one is refused (413).
    pub max_body: usize,
    /// Requests for inference that are worked on at once; one more is refused with 429.
    pub max_in_flight: usize,
    /// Bytes of all their bodies together; what would go beyond is refused with 429.
    pub max_in_flight_bytes: usize,
    /// Connections of each protocol; one more waits until another closes.
    pub max_connections: usize,
    /// Longest time from the head of a request to its answer; then 504. A client's own time-out goes before it.
    pub timeout: ConfigDuration,
    /// At shutdown: how long requests are still taken after readiness said no, so that load balancers notice.
    pub drain_delay: ConfigDuration,
    /// Bearer tokens of which a request needs one; none: everybody may ask. Health is open to all.
    pub tokens: Vec<Secret>,
    /// TLS of both protocols; absent: plain text.
    pub tls: Option<TlsConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            http: SocketAddr::from((Ipv4Addr::LOCALHOST, 8000)),
            grpc: SocketAddr::from((Ipv4Addr::LOCALHOST, 8001)),
            mode: Mode::default(),
            max_body: 64 << 20,
            max_in_flight: 1024,
            max_in_flight_bytes: 512 << 20,
            max_connections: 1024,
            timeout: ConfigDuration::from_secs(30),
            drain_delay: ConfigDuration::from_secs(0),
            tokens: Vec::new(),
            tls: None,
        }
    }
}

impl Config {
    /// Values that cannot work, one sentence each, naming the key.
    pub fn problems(&self) -> Vec<String> {
        // What semaphores can count.
        let most = tokio::sync::Semaphore::MAX_PERMITS.min(u32::MAX as usize);
        let mut problems = Vec::new();
        let mut check = |bad: bool, problem: String| {
            if bad {
                problems.push(problem);
            }
        };
        for (key, value) in [
            ("max_body", self.max_body),
            ("max_in_flight", self.max_in_flight),
            ("max_in_flight_bytes", self.max_in_flight_bytes),
            ("max_connections", self.max_connections),
        ] {
            check(!(1..=most).contains(&value), format!("gateway.{key}: must be from 1 to {most}"));
        }
        check(
            self.max_in_flight_bytes < self.max_body,
            "gateway.max_in_flight_bytes: below gateway.max_body, the largest request would never be taken".to_owned(),
        );
        check(self.timeout.as_ms() == 0, "gateway.timeout: must be longer than 0".to_owned());
        check(
            self.tokens.iter().any(|token| token.reveal().trim().is_empty()),
            "gateway.tokens: one is empty, which would let everybody in".to_owned(),
        );
        if let Some(tls) = &self.tls {
            check(tls.certificate.as_os_str().is_empty(), "gateway.tls.certificate: name a PEM file".to_owned());
            check(tls.key.as_os_str().is_empty(), "gateway.tls.key: name a PEM file".to_owned());
        }
        problems
    }

    /// True when tokens would cross a network unencrypted.
    pub(crate) fn exposes_tokens(&self) -> bool {
        let beyond = |address: &SocketAddr| !address.ip().is_loopback();
        (beyond(&self.http) || beyond(&self.grpc)) && !self.tokens.is_empty() && self.tls.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_sound() {
        assert_eq!(Config::default().problems(), Vec::<String>::new());
    }

    #[test]
    fn each_problem_names_its_key() {
        let bad = Config {
            max_body: 10,
            max_in_flight: 0,
            max_in_flight_bytes: 9,
            timeout: ConfigDuration::from_secs(0),
            tokens: vec![Secret::new(" ")],
            tls: Some(TlsConfig::default()),
            ..Config::default()
        };
        let text = bad.problems().join("\n");
        for key in ["max_in_flight", "max_in_flight_bytes", "timeout", "tokens", "tls.certificate", "tls.key"] {
            assert!(text.contains(&format!("gateway.{key}")), "{key} missing in\n{text}");
        }
    }
}
