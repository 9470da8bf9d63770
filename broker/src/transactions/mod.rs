//! Transactions: who may write under which transactional id, and how each transaction ends.
//!
//! [`ledger`] decides (pure; its state lives in the catalog and its changes in the journal, so that
//! a restart is a replay); [`ending`] carries a decision out: markers into the logs, then the
//! offsets, then the note that it is done.
//!
//! Invariants:
//! - A decision to commit or abort is in the journal before the first marker is written; whatever
//!   interrupts the rest, it is resumed at the next start or by the timer, with the same outcome.
//! - A batch enters a log only while its transaction is open and names the partition; this is
//!   looked up under the lock of the partition that the marker takes too, so that no batch can
//!   follow the marker of its own transaction.
//! - Endings run one at a time, so that a marker never ends the transaction after the one it means.
//!
//! Left out: the second version of the protocol (KIP-890, `transaction.version=2`), which clients
//! use only where a cluster announces it, and two-phase commit (KIP-939).

pub(crate) mod ending;
pub(crate) mod ledger;
