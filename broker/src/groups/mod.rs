//! Consumer groups of the classic protocol.
//!
//! Map: [`group`] is one group as a pure state machine, [`member`] its members, [`coordinator`] the
//! shell that holds all groups, their timers, and those who wait for an answer. Committed offsets
//! are not here but in the catalog: a group may have offsets and no members, and the other way
//! round.
//!
//! The broker knows nothing of assignors: eager and cooperative rebalancing are the same to it.

pub(crate) mod coordinator;
pub(crate) mod group;
pub(crate) mod member;

/// Identifies a request that waits for its answer.
pub(crate) type Token = u64;
