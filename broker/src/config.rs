//! What a broker can be told, with defaults that suit one machine.
//!
//! Nothing here is read from the environment or from a file: the embedding program fills the
//! struct. Everything that bounds memory or descriptors is a field, so that the bound is visible.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::Error;
use crate::transactions::ledger::Limits;

/// When written data is forced to the disk.
///
/// A process that dies (`kill -9`) loses nothing that was acknowledged under any policy, because
/// every write reaches the page cache of the kernel before it is acknowledged. The policy decides
/// what a power cut or a kernel crash can take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FsyncPolicy {
    /// Leave it to the operating system: a power cut may take the last half minute or so.
    Never,
    /// Force it at this interval: a power cut may take what was written since the last time.
    Interval(Duration),
    /// Force every write before it is acknowledged: a power cut takes nothing, and every produce
    /// request waits for the disk.
    Always,
}

/// Settings of one broker. Start from [`Config::new`] and change fields.
#[derive(Debug, Clone)]
pub struct Config {
    /// Folder that holds the logs and the metadata; created when absent, locked while in use.
    pub data_dir: PathBuf,
    /// Address to listen on. Port 0 asks the system for a free one. Loopback by default: the
    /// broker has no authentication, so think before opening it to a network.
    pub listen: SocketAddr,
    /// `host` or `host:port` told to clients instead of the listening address.
    pub advertised: Option<String>,
    /// Partitions of a topic that is created without a number of its own.
    pub default_partitions: i32,
    /// Create a topic when a client asks for metadata about one that does not exist.
    pub auto_create_topics: bool,
    /// Default `retention.ms`: closed segments whose newest record is older are deleted.
    /// `None` keeps them.
    pub retention_ms: Option<i64>,
    /// Default `retention.bytes` of a partition: the oldest closed segments are deleted while the
    /// rest is at least this large. `None` means no limit.
    pub retention_bytes: Option<i64>,
    /// Default `segment.bytes`: size at which a segment is closed and the next one begun.
    pub segment_bytes: u64,
    /// Default `max.message.bytes`: largest record batch accepted, in bytes.
    pub max_message_bytes: u32,
    /// When written data is forced to the disk.
    pub fsync: FsyncPolicy,
    /// Largest request accepted, in bytes; a larger one closes its connection.
    pub max_request_bytes: usize,
    /// Most record bytes put into one fetch response (one batch may exceed it, so that a large
    /// record can always be read).
    pub max_fetch_bytes: usize,
    /// Connections served at a time; further ones are closed as soon as they are accepted.
    pub max_connections: usize,
    /// Partitions over all topics; creating more is answered with `POLICY_VIOLATION`.
    pub max_partitions: usize,
    /// Groups with members at a time; a join that would create one more is refused.
    pub max_groups: usize,
    /// Members of one group; a further one is answered with `GROUP_MAX_SIZE_REACHED`.
    pub max_group_members: usize,
    /// Shortest session time-out a group member may ask for, in milliseconds.
    pub group_min_session_timeout_ms: i32,
    /// Longest session time-out a group member may ask for, in milliseconds.
    pub group_max_session_timeout_ms: i32,
    /// How long the first rebalance of an empty group waits for more members, in milliseconds.
    pub group_initial_rebalance_delay_ms: i32,
    /// Offsets of a group without members are forgotten after this long (at most a tenth later), in
    /// milliseconds: counted from their commit or the end of the group's last member.
    pub offsets_retention_ms: i64,
    /// Longest transaction time-out that a producer may ask for.
    pub transaction_max_timeout_ms: i32,
    /// Most transactional ids remembered; beyond it new ones are refused.
    pub max_transactional_ids: usize,
    /// A transactional id that is not used for this long is forgotten.
    pub transactional_id_expiration_ms: i64,
    /// How often retention, compaction and expiry are looked at.
    pub housekeeping_interval: Duration,
    /// Worker threads of the broker's own runtime. It has its own so that blocking code in the
    /// embedding program cannot stall the broker.
    pub worker_threads: usize,
}

impl Config {
    /// Defaults for `data_dir`: loopback, a free port, one partition, topics created on demand,
    /// seven days of retention, 64 MiB segments, fsync left to the system.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertised: None,
            default_partitions: 1,
            auto_create_topics: true,
            retention_ms: Some(7 * 24 * 3600 * 1000),
            retention_bytes: None,
            segment_bytes: 64 << 20,
            max_message_bytes: 1_048_588,
            fsync: FsyncPolicy::Never,
            max_request_bytes: 32 << 20,
            max_fetch_bytes: 16 << 20,
            max_connections: 1024,
            max_partitions: 4096,
            max_groups: 4096,
            max_group_members: 1024,
            group_min_session_timeout_ms: 1_000,
            group_max_session_timeout_ms: 1_800_000,
            group_initial_rebalance_delay_ms: 0,
            offsets_retention_ms: 7 * 24 * 3600 * 1000,
            transaction_max_timeout_ms: 900_000,
            max_transactional_ids: 10_000,
            transactional_id_expiration_ms: 7 * 24 * 3600 * 1000,
            housekeeping_interval: Duration::from_secs(5),
            worker_threads: 2,
        }
    }

    pub(crate) fn transaction_limits(&self) -> Limits {
        Limits {
            max_timeout_ms: self.transaction_max_timeout_ms.into(),
            max_ids: self.max_transactional_ids,
            idle_ms: self.transactional_id_expiration_ms,
        }
    }

    /// Checks what the types cannot: ranges and the form of `advertised`.
    pub(crate) fn validate(&self) -> Result<(), Error> {
        let bad = |what: &str| Err(Error::Config(what.to_owned()));
        if self.default_partitions < 1 {
            return bad("default_partitions must be at least 1");
        }
        if self.segment_bytes < 1024 || self.segment_bytes > u64::from(u32::MAX / 2) {
            return bad("segment_bytes must be between 1 KiB and 2 GiB");
        }
        if self.max_request_bytes < 1024 || self.max_request_bytes > (1 << 30) {
            return bad("max_request_bytes must be between 1 KiB and 1 GiB");
        }
        if self.max_fetch_bytes == 0 || self.max_connections == 0 || self.worker_threads == 0 {
            return bad("max_fetch_bytes, max_connections and worker_threads must not be 0");
        }
        if self.group_min_session_timeout_ms < 1
            || self.group_min_session_timeout_ms > self.group_max_session_timeout_ms
        {
            return bad("group session time-outs must satisfy 1 <= min <= max");
        }
        if self.transaction_max_timeout_ms < 1 || self.max_transactional_ids == 0 {
            return bad("transaction_max_timeout_ms and max_transactional_ids must be at least 1");
        }
        if self.transactional_id_expiration_ms < 1 {
            return bad("transactional_id_expiration_ms must be at least 1");
        }
        if self.housekeeping_interval.is_zero() {
            return bad("housekeeping_interval must not be 0");
        }
        if matches!(self.fsync, FsyncPolicy::Interval(every) if every.is_zero()) {
            return bad("an fsync interval must not be 0, use FsyncPolicy::Always instead");
        }
        self.advertised_endpoint(1).map(|_| ())
    }

    /// Host and port that clients are told, given the port that was bound.
    pub(crate) fn advertised_endpoint(&self, bound_port: u16) -> Result<(String, u16), Error> {
        let Some(text) = self.advertised.as_deref() else {
            return Ok((self.listen.ip().to_string(), bound_port));
        };
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.starts_with('[') => {
                let port = port
                    .parse()
                    .map_err(|_| Error::Config(format!("advertised `{text}`: the port is not a number")))?;
                (host, port)
            }
            _ => (text, bound_port),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() {
            return Err(Error::Config(format!("advertised `{text}`: the host is empty")));
        }
        Ok((host.to_owned(), port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advertised_accepts_a_host_with_and_without_port() {
        let mut config = Config::new("/nowhere");
        let endpoint = |config: &Config| config.advertised_endpoint(9092).map_err(|e| e.to_string());
        assert_eq!(endpoint(&config), Ok(("127.0.0.1".into(), 9092)));
        for (text, host, port) in
            [("box", "box", 9092), ("box:19092", "box", 19092), ("[::1]:19092", "::1", 19092), ("::1", "::1", 9092)]
        {
            config.advertised = Some(text.into());
            assert_eq!(endpoint(&config), Ok((host.into(), port)), "{text}");
        }
        config.advertised = Some("box:port".into());
        assert!(endpoint(&config).is_err());
        config.advertised = Some(":9092".into());
        assert!(endpoint(&config).is_err());
    }

    #[test]
    fn nonsense_is_refused_with_the_field_named() {
        let refused = |change: fn(&mut Config)| {
            let mut config = Config::new("/nowhere");
            change(&mut config);
            config.validate().err().map(|e| e.to_string()).unwrap_or_default()
        };
        assert_eq!(refused(|_| ()), "");
        assert!(refused(|c| c.default_partitions = 0).contains("default_partitions"));
        assert!(refused(|c| c.segment_bytes = 10).contains("segment_bytes"));
        assert!(refused(|c| c.max_connections = 0).contains("max_connections"));
        assert!(refused(|c| c.fsync = FsyncPolicy::Interval(Duration::ZERO)).contains("fsync"));
    }
}
