//! What this broker can and cannot do, as a value that code can ask.
//!
//! A caller that needs transactions checks here before it builds a transactional producer, and
//! says so at start-up, instead of finding out from a client error.

use std::fmt;

/// The guarantees this version of the broker offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// Transactional producers, fencing, `read_committed` isolation of open transactions.
    pub transactions: bool,
    /// Producers with `enable.idempotence=true`: retries are deduplicated, also over a restart.
    pub idempotence: bool,
    /// Topics with `cleanup.policy=compact` are rewritten to the newest record of each key.
    pub compaction: bool,
    /// Consumer groups of the classic protocol, with eviction and static membership.
    pub classic_groups: bool,
    /// Consumer groups of the newer protocol (KIP-848, `group.protocol=consumer`).
    pub next_generation_groups: bool,
    /// Copies of partitions on other nodes.
    pub replication: bool,
    /// TLS, SASL and access control.
    pub security: bool,
}

/// What the broker of this crate can do.
pub fn capabilities() -> Capabilities {
    Capabilities {
        transactions: true,
        idempotence: true,
        compaction: true,
        classic_groups: true,
        next_generation_groups: false,
        replication: false,
        security: false,
    }
}

impl fmt::Display for Capabilities {
    /// One line that names what is missing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let features = [
            (self.transactions, "transactions"),
            (self.idempotence, "idempotent producers"),
            (self.compaction, "compaction"),
            (self.classic_groups, "classic consumer groups"),
            (self.next_generation_groups, "KIP-848 consumer groups"),
            (self.replication, "replication"),
            (self.security, "TLS, SASL or ACLs"),
        ];
        let missing: Vec<&str> = features.iter().filter(|(has, _)| !has).map(|(_, name)| *name).collect();
        if missing.is_empty() {
            return f.write_str("embedded single-node broker without known gaps");
        }
        write!(f, "embedded single-node broker without {}", missing.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_exactly_what_is_missing() {
        let none = Capabilities {
            transactions: true,
            idempotence: true,
            compaction: true,
            classic_groups: true,
            next_generation_groups: true,
            replication: true,
            security: true,
        };
        assert_eq!(none.to_string(), "embedded single-node broker without known gaps");
        let line = Capabilities { transactions: false, replication: false, ..none }.to_string();
        assert_eq!(line, "embedded single-node broker without transactions, replication");
        assert!(!line.contains('\n'));
    }
}
