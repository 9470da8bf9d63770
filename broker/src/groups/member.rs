//! A member of a group, and what members ask.

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::Token;

/// A member as the group knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    /// Name of a static member (`group.instance.id`).
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_timeout_ms: i64,
    pub(crate) rebalance_timeout_ms: i64,
    /// Assignors it supports, its favourite first, each with its subscription.
    pub(crate) protocols: Vec<(String, Bytes)>,
    /// What the leader gave it in this generation.
    pub(crate) assignment: Bytes,
    /// Its JoinGroup that waits for the rebalance to complete.
    pub(crate) joining: Option<Token>,
    /// Its SyncGroup that waits for the leader's assignment.
    pub(crate) syncing: Option<Token>,
    /// It has not been part of a generation yet.
    pub(crate) is_new: bool,
    /// Without a sign of life until then it is evicted. Not looked at while it waits, except for a
    /// new member, which gets the longer time set at its join.
    pub(crate) deadline_ms: i64,
    /// Order of arrival, for the choice of a leader.
    pub(crate) arrival: u64,
}

impl Member {
    /// Whether it waits for an answer, which counts as being alive.
    pub(crate) fn is_waiting(&self) -> bool {
        self.joining.is_some() || self.syncing.is_some()
    }

    /// When it is evicted if nothing is heard of it; `None` while it waits.
    pub(crate) fn eviction_ms(&self) -> Option<i64> {
        match self.joining {
            Some(_) if self.is_new => Some(self.deadline_ms),
            _ if self.is_waiting() => None,
            _ => Some(self.deadline_ms),
        }
    }

    /// Its subscription under an assignor.
    pub(crate) fn metadata(&self, protocol: &str) -> Bytes {
        let found = self.protocols.iter().find(|(name, _)| name == protocol);
        found.map(|(_, metadata)| metadata.clone()).unwrap_or_default()
    }
}

/// Who asks: member id, and instance id for a static member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Identity {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
}

/// A JoinGroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Join {
    pub(crate) who: Identity,
    /// Id for a new member, unique for ever.
    pub(crate) fresh_id: String,
    /// The client can be told its id and asked to come again, so that a join whose answer was lost
    /// leaves no ghost behind.
    pub(crate) can_rejoin_with_id: bool,
    /// The client understands that a leader need not assign anew.
    pub(crate) can_skip_assignment: bool,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) session_timeout_ms: i64,
    pub(crate) rebalance_timeout_ms: i64,
    pub(crate) protocol_type: String,
    pub(crate) protocols: Vec<(String, Bytes)>,
}

/// A SyncGroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sync {
    pub(crate) who: Identity,
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    /// Assignments by member id; only the leader has any.
    pub(crate) assignments: Vec<(String, Bytes)>,
}

/// What is asked of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    Join(Join),
    Sync(Sync),
    Heartbeat {
        who: Identity,
        generation: i32,
    },
    Leave(Vec<Identity>),
    /// May this member commit offsets now?
    Commit {
        who: Identity,
        generation: i32,
    },
    /// Time has passed.
    Tick,
}

/// What a JoinGroup is answered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Joined {
    pub(crate) generation: i32,
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) leader: String,
    pub(crate) member_id: String,
    /// The answer goes to the leader of an unchanged group.
    pub(crate) skip_assignment: bool,
    /// All members, for the leader: id, instance id, subscription.
    pub(crate) members: Vec<(String, Option<String>, Bytes)>,
}

/// What a SyncGroup is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Synced {
    pub(crate) protocol_type: Option<String>,
    pub(crate) protocol: Option<String>,
    pub(crate) assignment: Bytes,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reply {
    Joined(Joined),
    /// A refused join; tells the member id where the protocol wants one.
    NotJoined {
        error: ResponseError,
        member_id: String,
    },
    Synced(Synced),
    /// Per member that left, in the order asked.
    Left(Vec<Result<(), ResponseError>>),
    /// To a heartbeat, a commit check, or as refusal of a sync.
    Plain(Result<(), ResponseError>),
}

/// An answer on its way to the request it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Effect {
    pub(crate) token: Token,
    pub(crate) reply: Reply,
}
