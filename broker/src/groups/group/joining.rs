//! How members come in: new ones, known ones again, static ones in place of their former selves.

use bytes::Bytes;
use kafka_protocol::ResponseError;

use super::{Group, NEW_MEMBER_TIMEOUT_MS, Phase};
use crate::groups::Token;
use crate::groups::member::{Effect, Join, Joined, Member, Reply};

impl Group {
    pub(super) fn join(&mut self, now_ms: i64, token: Token, join: Join, out: &mut Vec<Effect>) {
        let answered = match self.admit(&join) {
            Err(error) => Some((error, join.who.member_id.clone())),
            Ok(()) if join.who.member_id.is_empty() => self.join_unknown(now_ms, token, join, out),
            Ok(()) => self.join_known(now_ms, token, join, out),
        };
        if let Some((error, member_id)) = answered {
            out.push(Effect { token, reply: Reply::NotJoined { error, member_id } });
        }
    }

    /// Checks what does not depend on who joins.
    fn admit(&self, join: &Join) -> Result<(), ResponseError> {
        let limits = &self.limits;
        let timeouts = limits.min_session_timeout_ms..=limits.max_session_timeout_ms;
        if !timeouts.contains(&join.session_timeout_ms) {
            return Err(ResponseError::InvalidSessionTimeout);
        }
        let is_known = self.members.contains_key(&join.who.member_id);
        let replaces = join.who.instance_id.as_ref().is_some_and(|name| self.instances.contains_key(name));
        if !is_known && !replaces && self.members.len() >= limits.max_members {
            return Err(ResponseError::GroupMaxSizeReached);
        }
        self.check_protocols(join)
    }

    /// A group speaks one protocol type, and there must be an assignor that all members support.
    fn check_protocols(&self, join: &Join) -> Result<(), ResponseError> {
        let mismatch = Err(ResponseError::InconsistentGroupProtocol);
        if join.protocol_type.is_empty() || join.protocols.is_empty() {
            return mismatch;
        }
        let others = || {
            self.members.iter().filter(|(id, member)| {
                **id != join.who.member_id
                    && (member.instance_id.is_none() || member.instance_id != join.who.instance_id)
            })
        };
        if others().next().is_none() {
            return Ok(());
        }
        if self.protocol_type.as_deref() != Some(join.protocol_type.as_str()) {
            return mismatch;
        }
        let is_common =
            |name: &str| others().all(|(_, member)| member.protocols.iter().any(|(known, _)| known == name));
        if join.protocols.iter().any(|(name, _)| is_common(name)) { Ok(()) } else { mismatch }
    }

    fn join_unknown(
        &mut self,
        now_ms: i64,
        token: Token,
        join: Join,
        out: &mut Vec<Effect>,
    ) -> Option<(ResponseError, String)> {
        let fresh_id = join.fresh_id.clone();
        if let Some(name) = join.who.instance_id.clone() {
            match self.instances.get(&name).cloned() {
                Some(old_id) => self.replace_static(now_ms, token, join, old_id, out),
                None => self.add_member(now_ms, token, join, fresh_id, out),
            }
            return None;
        }
        if join.can_rejoin_with_id {
            self.pending.insert(fresh_id.clone(), now_ms + join.session_timeout_ms);
            return Some((ResponseError::MemberIdRequired, fresh_id));
        }
        self.add_member(now_ms, token, join, fresh_id, out);
        None
    }

    fn join_known(
        &mut self,
        now_ms: i64,
        token: Token,
        join: Join,
        out: &mut Vec<Effect>,
    ) -> Option<(ResponseError, String)> {
        let id = join.who.member_id.clone();
        if join.who.instance_id.is_none() && self.pending.remove(&id).is_some() {
            self.add_member(now_ms, token, join, id, out);
            return None;
        }
        if let Err(error) = self.check_identity(&join.who) {
            return Some((error, id));
        }
        let is_leader = self.leader.as_deref() == Some(id.as_str());
        let is_same = self.members.get(&id).is_some_and(|m| m.protocols == join.protocols);
        match self.phase {
            Phase::Completing if is_same => self.answer_join(now_ms, token, &id, out),
            Phase::Stable if is_same && !is_leader => self.answer_join(now_ms, token, &id, out),
            _ => self.rejoin(now_ms, token, join, out),
        }
        None
    }

    fn add_member(&mut self, now_ms: i64, token: Token, join: Join, id: String, out: &mut Vec<Effect>) {
        self.pending.remove(&id);
        self.arrivals += 1;
        if let Some(name) = &join.who.instance_id {
            self.instances.insert(name.clone(), id.clone());
        }
        if self.members.is_empty() {
            self.protocol_type = Some(join.protocol_type);
        }
        let member = Member {
            instance_id: join.who.instance_id,
            client_id: join.client_id,
            client_host: join.client_host,
            session_timeout_ms: join.session_timeout_ms,
            rebalance_timeout_ms: join.rebalance_timeout_ms,
            protocols: join.protocols,
            assignment: Bytes::new(),
            joining: Some(token),
            syncing: None,
            is_new: true,
            deadline_ms: now_ms + NEW_MEMBER_TIMEOUT_MS.max(join.session_timeout_ms),
            arrival: self.arrivals,
        };
        self.members.insert(id, member);
        self.extend_hold(now_ms);
        self.prepare(now_ms, out);
    }

    /// A known member joins again: its answer comes when the rebalance completes.
    fn rejoin(&mut self, now_ms: i64, token: Token, join: Join, out: &mut Vec<Effect>) {
        let id = join.who.member_id.clone();
        if let Some(member) = self.members.get_mut(&id) {
            member.session_timeout_ms = join.session_timeout_ms;
            member.rebalance_timeout_ms = join.rebalance_timeout_ms;
            member.protocols = join.protocols;
            member.client_id = join.client_id;
            member.client_host = join.client_host;
            member.deadline_ms = now_ms + join.session_timeout_ms;
            // A repeated join (the client lost the connection) replaces the one that waits.
            if let Some(older) = member.joining.replace(token) {
                let error = ResponseError::RebalanceInProgress;
                let reply = Reply::NotJoined { error, member_id: id };
                out.push(Effect { token: older, reply });
            }
        }
        self.prepare(now_ms, out);
    }

    /// A static member comes back after a restart: it takes the place of its former self, and the
    /// group goes on undisturbed unless its assignor would change.
    fn replace_static(&mut self, now_ms: i64, token: Token, join: Join, old_id: String, out: &mut Vec<Effect>) {
        let new_id = join.fresh_id.clone();
        let Some(mut member) = self.members.remove(&old_id) else {
            return self.add_member(now_ms, token, join, new_id, out);
        };
        fence(&old_id, &mut member, out);
        self.unsynced.remove(&old_id);
        let was_leader = self.leader.as_deref() == Some(old_id.as_str());
        if was_leader {
            self.leader = Some(new_id.clone());
        }
        if let Some(name) = &member.instance_id {
            self.instances.insert(name.clone(), new_id.clone());
        }
        member.session_timeout_ms = join.session_timeout_ms;
        member.rebalance_timeout_ms = join.rebalance_timeout_ms;
        member.protocols.clone_from(&join.protocols);
        member.client_id.clone_from(&join.client_id);
        member.client_host.clone_from(&join.client_host);
        member.deadline_ms = now_ms + join.session_timeout_ms;
        let stays = self.phase == Phase::Stable;
        self.members.insert(new_id.clone(), member);
        if stays && self.protocol.is_some() && self.choose_protocol() == self.protocol {
            let mut joined = self.joined(&new_id);
            if was_leader {
                // A leader that cannot skip the assignment must not believe it leads, or it would
                // assign anew; it is told its former id as the leader's.
                joined.skip_assignment = join.can_skip_assignment;
                if !join.can_skip_assignment {
                    joined.leader = old_id;
                    joined.members = Vec::new();
                }
            }
            out.push(Effect { token, reply: Reply::Joined(joined) });
            return;
        }
        if let Some(member) = self.members.get_mut(&new_id) {
            member.joining = Some(token);
        }
        self.prepare(now_ms, out);
    }

    /// Answers a join at once with the generation as it is.
    fn answer_join(&mut self, now_ms: i64, token: Token, id: &str, out: &mut Vec<Effect>) {
        self.touch(now_ms, id);
        out.push(Effect { token, reply: Reply::Joined(self.joined(id)) });
    }

    pub(super) fn joined(&self, id: &str) -> Joined {
        let leader = self.leader.clone().unwrap_or_default();
        let protocol = self.protocol.clone().unwrap_or_default();
        let members = if leader == id {
            let of = |(id, m): (&String, &Member)| (id.clone(), m.instance_id.clone(), m.metadata(&protocol));
            self.members.iter().map(of).collect()
        } else {
            Vec::new()
        };
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader,
            member_id: id.to_owned(),
            skip_assignment: false,
            members,
        }
    }
}

/// Tells requests that a former self of a static member has open that it is fenced.
fn fence(id: &str, member: &mut Member, out: &mut Vec<Effect>) {
    let error = ResponseError::FencedInstanceId;
    if let Some(token) = member.joining.take() {
        out.push(Effect { token, reply: Reply::NotJoined { error, member_id: id.to_owned() } });
    }
    if let Some(token) = member.syncing.take() {
        out.push(Effect { token, reply: Reply::Plain(Err(error)) });
    }
}
