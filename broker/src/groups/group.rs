//! One consumer group as a pure state machine: [`Group::apply`]`(now, request) -> (reply, effects)`.
//!
//! There is no reply yet where a request must wait, joins for the others, syncs for the leader; an
//! effect is the answer to such an earlier request, by its token. [`Group::deadline`] says when time alone changes something; the
//! shell then applies [`Request::Tick`].
//!
//! ```text
//!            join                all joined / time-out         leader synced
//!   Empty ---------> Preparing -------------------> Completing -------------> Stable
//!     ^                 |  ^                             |                       |
//!     '--- last left ---'  '------ join, leave, eviction +-----------------------'
//! ```
//! Invariants: a request is answered exactly once; a generation has exactly one protocol, supported
//! by all its members, and one leader among them; members of a generation get the assignment its
//! leader gave; a static name belongs to one member id, and the older id is fenced.
//! Semantics follow Apache Kafka's group coordinator, with its error codes.

mod joining;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::Token;
use super::member::{Effect, Identity, Member, Reply, Request, Sync, Synced};

/// A new member whose client went away while it waits for its first rebalance is kept this long.
const NEW_MEMBER_TIMEOUT_MS: i64 = 300_000;
/// A group that everybody has left is remembered this long, so that tools still find it (Apache Kafka
/// looks for such groups every ten minutes).
const LINGER_MS: i64 = 600_000;

/// Limits that the broker's configuration sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) min_session_timeout_ms: i64,
    pub(crate) max_session_timeout_ms: i64,
    /// How long the first rebalance of an empty group waits for more members.
    pub(crate) initial_delay_ms: i64,
    pub(crate) max_members: usize,
}

/// Where a group stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No members.
    Empty,
    /// Waits for members to join: not before `hold_ms`, not after `deadline_ms`.
    Preparing {
        /// Even if all have joined, wait until then.
        hold_ms: i64,
        /// Go on without those who have not joined by then.
        deadline_ms: i64,
    },
    /// Waits for the leader's assignment.
    Completing,
    /// Every member has, or can fetch, its assignment.
    Stable,
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    limits: Limits,
    phase: Phase,
    generation: i32,
    protocol_type: Option<String>,
    protocol: Option<String>,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Ids given out to clients that are expected to come back with them, and until when.
    pending: BTreeMap<String, i64>,
    /// Static names.
    instances: BTreeMap<String, String>,
    /// Members of this generation that have not fetched their assignment, and until when they may.
    unsynced: BTreeSet<String>,
    unsynced_deadline_ms: i64,
    arrivals: u64,
    /// Since when nobody is in it, after somebody was.
    deserted_ms: Option<i64>,
}

/// A view of a group for those who ask about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub(crate) state: &'static str,
    pub(crate) protocol_type: String,
    pub(crate) protocol: String,
    /// Member id and member, with its subscription and assignment where they are settled.
    pub(crate) members: Vec<DescribedMember>,
}

/// A member of a [`Description`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DescribedMember {
    pub(crate) member_id: String,
    pub(crate) instance_id: Option<String>,
    pub(crate) client_id: String,
    pub(crate) client_host: String,
    pub(crate) metadata: Bytes,
    pub(crate) assignment: Bytes,
}

impl Group {
    /// A group without members.
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Empty,
            generation: 0,
            protocol_type: None,
            protocol: None,
            leader: None,
            members: BTreeMap::new(),
            pending: BTreeMap::new(),
            instances: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            unsynced_deadline_ms: 0,
            arrivals: 0,
            deserted_ms: None,
        }
    }

    /// When to forget it, if nobody comes until then.
    pub(crate) fn forget_ms(&self) -> Option<i64> {
        match (self.is_unused(), self.deserted_ms) {
            (false, _) => None,
            (true, Some(since)) => Some(since + LINGER_MS),
            // Nobody has ever been in it.
            (true, None) => Some(i64::MIN),
        }
    }

    /// Whether nobody is in it or about to be.
    pub(crate) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.pending.is_empty()
    }

    /// Whether it has no members.
    pub(crate) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Applies a request: its reply, unless it must wait, and answers to earlier requests that waited.
    /// `token` will name this request if it is among those.
    pub(crate) fn apply(&mut self, now_ms: i64, token: Token, request: Request) -> (Option<Reply>, Vec<Effect>) {
        let mut out = Vec::new();
        match request {
            Request::Join(join) => self.join(now_ms, token, join, &mut out),
            Request::Sync(sync) => self.sync(now_ms, token, sync, &mut out),
            Request::Heartbeat { who, generation } => {
                let reply = Reply::Plain(self.heartbeat(now_ms, &who, generation));
                out.push(Effect { token, reply });
            }
            Request::Commit { who, generation } => {
                let reply = Reply::Plain(self.may_commit(now_ms, &who, generation));
                out.push(Effect { token, reply });
            }
            Request::Leave(leaving) => {
                let left = leaving.iter().map(|who| self.leave(now_ms, who, &mut out)).collect();
                out.push(Effect { token, reply: Reply::Left(left) });
            }
            Request::Tick => self.tick(now_ms, &mut out),
        }
        self.deserted_ms = match self.is_unused() && self.generation > 0 {
            true => self.deserted_ms.or(Some(now_ms)),
            false => None,
        };
        let own = out.iter().position(|effect| effect.token == token);
        let reply = own.map(|at| out.remove(at).reply);
        (reply, out)
    }

    /// When time alone next changes something.
    pub(crate) fn deadline(&self) -> Option<i64> {
        let evictions = self.members.values().filter_map(Member::eviction_ms);
        let pending = self.pending.values().copied();
        let unsynced = (!self.unsynced.is_empty()).then_some(self.unsynced_deadline_ms);
        let phase = match self.phase {
            Phase::Preparing { hold_ms, deadline_ms } => Some(if self.all_joined() { hold_ms } else { deadline_ms }),
            _ => None,
        };
        evictions.chain(pending).chain(unsynced).chain(phase).min()
    }

    // ---- rebalancing ----

    fn extend_hold(&mut self, now_ms: i64) {
        if let Phase::Preparing { hold_ms, deadline_ms } = &mut self.phase
            && *hold_ms > now_ms
        {
            *hold_ms = (now_ms + self.limits.initial_delay_ms).min(*deadline_ms);
        }
    }

    /// Begins a rebalance, or goes on with the one under way.
    fn prepare(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        if !matches!(self.phase, Phase::Preparing { .. }) {
            let was_empty = self.phase == Phase::Empty;
            let hold_ms = now_ms + if was_empty { self.limits.initial_delay_ms } else { 0 };
            let deadline_ms = (now_ms + self.longest_rebalance_ms()).max(hold_ms);
            self.drop_syncs(now_ms, out);
            self.phase = Phase::Preparing { hold_ms, deadline_ms };
        }
        self.complete_joins(now_ms, out);
    }

    /// Those who wait for an assignment of a generation that is over must join again.
    fn drop_syncs(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        self.unsynced.clear();
        let completing = self.phase == Phase::Completing;
        for member in self.members.values_mut() {
            if completing {
                member.assignment = Bytes::new();
            }
            if let Some(token) = member.syncing.take() {
                // It was not expected to heartbeat while it waited.
                member.deadline_ms = now_ms + member.session_timeout_ms;
                let reply = Reply::Plain(Err(ResponseError::RebalanceInProgress));
                out.push(Effect { token, reply });
            }
        }
    }

    fn longest_rebalance_ms(&self) -> i64 {
        self.members.values().map(|m| m.rebalance_timeout_ms).max().unwrap_or(0)
    }

    fn all_joined(&self) -> bool {
        self.pending.is_empty() && self.members.values().all(|m| m.joining.is_some())
    }

    /// Begins the next generation if everybody is there or has been waited for long enough.
    fn complete_joins(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        let Phase::Preparing { hold_ms, deadline_ms } = self.phase else { return };
        let is_late = now_ms >= deadline_ms;
        if !is_late && (now_ms < hold_ms || !self.all_joined()) {
            return;
        }
        let absent: Vec<String> = self
            .members
            .iter()
            .filter(|(_, m)| m.joining.is_none() && m.instance_id.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        absent.iter().for_each(|id| self.forget(id));
        if !self.members.is_empty() && !self.elect_leader() {
            // Only static members that have not come back: their session time-outs decide.
            let deadline_ms = now_ms + self.longest_rebalance_ms().max(1);
            self.phase = Phase::Preparing { hold_ms, deadline_ms };
            return;
        }
        self.next_generation(now_ms, out);
    }

    /// Makes sure that the leader is one who has joined.
    fn elect_leader(&mut self) -> bool {
        let has_joined = |id: &String| self.members.get(id).is_some_and(|m| m.joining.is_some());
        if self.leader.as_ref().is_some_and(has_joined) {
            return true;
        }
        let joined = self.members.iter().filter(|(_, m)| m.joining.is_some());
        self.leader = joined.min_by_key(|(_, m)| m.arrival).map(|(id, _)| id.clone());
        self.leader.is_some()
    }

    fn next_generation(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        self.unsynced.clear();
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.protocol = None;
            self.leader = None;
            return;
        }
        self.protocol = self.choose_protocol();
        self.phase = Phase::Completing;
        self.unsynced = self.members.keys().cloned().collect();
        self.unsynced_deadline_ms = now_ms + self.longest_rebalance_ms().max(1);
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let joined = self.joined(&id);
            let Some(member) = self.members.get_mut(&id) else { continue };
            if let Some(token) = member.joining.take() {
                member.is_new = false;
                member.deadline_ms = now_ms + member.session_timeout_ms;
                out.push(Effect { token, reply: Reply::Joined(joined) });
            }
        }
    }

    /// The assignor that all support and most prefer; ties go to the leader's order.
    fn choose_protocol(&self) -> Option<String> {
        let supports = |m: &Member, name: &str| m.protocols.iter().any(|(known, _)| known == name);
        let is_common = |name: &str| self.members.values().all(|m| supports(m, name));
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            if let Some((name, _)) = member.protocols.iter().find(|(name, _)| is_common(name)) {
                *votes.entry(name).or_default() += 1;
            }
        }
        let most = votes.values().copied().max()?;
        let leader = self.leader.as_ref().and_then(|id| self.members.get(id));
        let leaders_order = leader.into_iter().flat_map(|m| m.protocols.iter());
        let mut favourites = leaders_order.map(|(name, _)| name.as_str());
        let chosen = favourites.find(|name| votes.get(name) == Some(&most));
        let chosen = chosen.or_else(|| votes.iter().find(|(_, n)| **n == most).map(|(k, _)| *k));
        chosen.map(str::to_owned)
    }

    // ---- syncing ----

    fn sync(&mut self, now_ms: i64, token: Token, sync: Sync, out: &mut Vec<Effect>) {
        if let Err(error) = self.check_sync(&sync) {
            out.push(Effect { token, reply: Reply::Plain(Err(error)) });
            return;
        }
        let id = sync.who.member_id.clone();
        self.touch(now_ms, &id);
        self.unsynced.remove(&id);
        if self.phase == Phase::Stable {
            out.push(Effect { token, reply: self.synced(&id) });
            return;
        }
        if let Some(member) = self.members.get_mut(&id)
            && let Some(older) = member.syncing.replace(token)
        {
            let reply = Reply::Plain(Err(ResponseError::RebalanceInProgress));
            out.push(Effect { token: older, reply });
        }
        if self.leader.as_deref() == Some(id.as_str()) {
            self.assign(now_ms, sync.assignments, out);
        }
    }

    fn check_sync(&self, sync: &Sync) -> Result<(), ResponseError> {
        self.check_identity(&sync.who)?;
        if sync.generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        let differs = |asked: &Option<String>, is: &Option<String>| asked.is_some() && asked != is;
        if differs(&sync.protocol_type, &self.protocol_type) || differs(&sync.protocol, &self.protocol) {
            return Err(ResponseError::InconsistentGroupProtocol);
        }
        match self.phase {
            Phase::Completing | Phase::Stable => Ok(()),
            Phase::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            Phase::Empty => Err(ResponseError::UnknownMemberId),
        }
    }

    /// The leader has spoken: everybody who waits gets its part.
    fn assign(&mut self, now_ms: i64, assignments: Vec<(String, Bytes)>, out: &mut Vec<Effect>) {
        let mut assignments: BTreeMap<String, Bytes> = assignments.into_iter().collect();
        for (id, member) in &mut self.members {
            member.assignment = assignments.remove(id).unwrap_or_default();
        }
        self.phase = Phase::Stable;
        let waiting: Vec<String> =
            self.members.iter().filter(|(_, member)| member.syncing.is_some()).map(|(id, _)| id.clone()).collect();
        for id in waiting {
            let reply = self.synced(&id);
            let Some(member) = self.members.get_mut(&id) else { continue };
            member.deadline_ms = now_ms + member.session_timeout_ms;
            if let Some(token) = member.syncing.take() {
                out.push(Effect { token, reply });
            }
        }
    }

    fn synced(&self, id: &str) -> Reply {
        Reply::Synced(Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: self.members.get(id).map(|m| m.assignment.clone()).unwrap_or_default(),
        })
    }

    // ---- living and leaving ----

    /// Whether the id is a member's, and the static name (if any) still belongs to it.
    fn check_identity(&self, who: &Identity) -> Result<(), ResponseError> {
        if let Some(name) = &who.instance_id {
            match self.instances.get(name) {
                None => return Err(ResponseError::UnknownMemberId),
                Some(id) if *id != who.member_id => return Err(ResponseError::FencedInstanceId),
                Some(_) => {}
            }
        }
        if self.members.contains_key(&who.member_id) { Ok(()) } else { Err(ResponseError::UnknownMemberId) }
    }

    fn touch(&mut self, now_ms: i64, id: &str) {
        if let Some(member) = self.members.get_mut(id) {
            member.deadline_ms = now_ms + member.session_timeout_ms;
        }
    }

    fn heartbeat(&mut self, now_ms: i64, who: &Identity, generation: i32) -> Result<(), ResponseError> {
        self.check_identity(who)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        self.touch(now_ms, &who.member_id);
        match self.phase {
            Phase::Preparing { .. } => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    fn may_commit(&mut self, now_ms: i64, who: &Identity, generation: i32) -> Result<(), ResponseError> {
        if generation < 0 && self.members.is_empty() {
            // Somebody who assigns partitions by hand and only stores offsets here.
            return Ok(());
        }
        self.check_identity(who)?;
        if generation != self.generation {
            return Err(ResponseError::IllegalGeneration);
        }
        self.touch(now_ms, &who.member_id);
        match self.phase {
            Phase::Completing => Err(ResponseError::RebalanceInProgress),
            _ => Ok(()),
        }
    }

    fn leave(&mut self, now_ms: i64, who: &Identity, out: &mut Vec<Effect>) -> Result<(), ResponseError> {
        let mut who = who.clone();
        if let (true, Some(name)) = (who.member_id.is_empty(), &who.instance_id) {
            // An operator removes a static member by name.
            who.member_id = self.instances.get(name).cloned().ok_or(ResponseError::UnknownMemberId)?;
        }
        if self.pending.remove(&who.member_id).is_some() {
            self.complete_joins(now_ms, out);
            return Ok(());
        }
        self.check_identity(&who)?;
        self.evict(now_ms, &who.member_id, out);
        Ok(())
    }

    /// Removes a member and lets the others rebalance.
    fn evict(&mut self, now_ms: i64, id: &str, out: &mut Vec<Effect>) {
        if let Some(member) = self.members.get_mut(id) {
            let (joining, syncing) = (member.joining.take(), member.syncing.take());
            let error = ResponseError::UnknownMemberId;
            out.extend(joining.map(|token| {
                let reply = Reply::NotJoined { error, member_id: id.to_owned() };
                Effect { token, reply }
            }));
            out.extend(syncing.map(|token| Effect { token, reply: Reply::Plain(Err(error)) }));
        }
        self.forget(id);
        match self.phase {
            Phase::Empty => {}
            Phase::Preparing { .. } => self.complete_joins(now_ms, out),
            Phase::Completing | Phase::Stable => self.prepare(now_ms, out),
        }
    }

    fn forget(&mut self, id: &str) {
        if let Some(name) = self.members.remove(id).and_then(|m| m.instance_id) {
            self.instances.remove(&name);
        }
        self.unsynced.remove(id);
        if self.leader.as_deref() == Some(id) {
            self.leader = None;
        }
    }

    fn tick(&mut self, now_ms: i64, out: &mut Vec<Effect>) {
        let before = self.pending.len();
        self.pending.retain(|_, until| *until > now_ms);
        let has_changed = self.pending.len() != before;
        let silent = self
            .members
            .iter()
            .filter(|(_, m)| m.eviction_ms().is_some_and(|deadline| deadline <= now_ms))
            .map(|(id, _)| id.clone());
        let mut leaving: BTreeSet<String> = silent.collect();
        if !self.unsynced.is_empty() && self.unsynced_deadline_ms <= now_ms {
            leaving.extend(std::mem::take(&mut self.unsynced));
        }
        for id in leaving {
            self.evict(now_ms, &id, out);
        }
        if has_changed || matches!(self.phase, Phase::Preparing { .. }) {
            self.complete_joins(now_ms, out);
        }
    }

    // ---- looking ----

    /// Name of the state as tools print it.
    pub(crate) fn state_name(&self) -> &'static str {
        match self.phase {
            Phase::Empty => "Empty",
            Phase::Preparing { .. } => "PreparingRebalance",
            Phase::Completing => "CompletingRebalance",
            Phase::Stable => "Stable",
        }
    }

    /// Protocol type, empty when there is none.
    pub(crate) fn protocol_type(&self) -> &str {
        self.protocol_type.as_deref().unwrap_or_default()
    }

    /// All about it. Subscriptions and assignments are told only when they are settled.
    pub(crate) fn describe(&self) -> Description {
        let is_stable = self.phase == Phase::Stable;
        let protocol = self.protocol.clone().filter(|_| is_stable).unwrap_or_default();
        let members = self.members.iter().map(|(id, member)| DescribedMember {
            member_id: id.clone(),
            instance_id: member.instance_id.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: if is_stable { member.metadata(&protocol) } else { Bytes::new() },
            assignment: if is_stable { member.assignment.clone() } else { Bytes::new() },
        });
        Description {
            state: self.state_name(),
            protocol_type: self.protocol_type().to_owned(),
            members: members.collect(),
            protocol,
        }
    }
}

#[cfg(test)]
#[path = "group_tests.rs"]
mod tests;
