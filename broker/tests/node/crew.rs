//! Members of one group: they join, share the partitions, commit offsets for their own, leave, and join
//! again whenever the broker, or another member, makes them.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, OffsetCommitRequest,
    SyncGroupRequest,
};
use kafka_protocol::protocol::StrBytes;

use crate::client::{name, text};
use crate::history::{History, Partition, Tick};
use crate::register::{Commit, Membership, Reading};
use crate::workload::{Actor, LOG, Lost, PARTITIONS};

const GROUP: &str = "crew";
const SESSION_MS: i32 = 2000;
/// A member that is somewhere else is waited for this long by the others.
const REBALANCE_MS: i32 = 200;

/// A place in a generation.
struct Place {
    member: StrBytes,
    generation: i32,
    joined: Tick,
    partitions: Vec<Partition>,
}

fn group() -> GroupId {
    GroupId(text(GROUP))
}

/// What a member is told when it must join again, as opposed to what must not be.
fn sends_back(code: i16) -> bool {
    let back = [ResponseError::UnknownMemberId, ResponseError::IllegalGeneration, ResponseError::RebalanceInProgress];
    back.iter().any(|error| error.code() == code)
}

impl Actor {
    /// Plays a member until the end.
    pub(crate) fn serve_in_crew(mut self, _number: u64) -> History {
        let mut member = StrBytes::from_static_str("");
        while !self.stopped() {
            let Some(place) = self.take_place(&mut member) else { continue };
            while !self.stopped() && self.do_duty(&place) {}
            if self.draw(0.05) {
                let leave = LeaveGroupRequest::default().with_group_id(group()).with_member_id(place.member);
                // Whether it arrives or not: the next join is a newcomer's.
                let _ = self.once(|client| client.call(2, &leave));
                member = StrBytes::from_static_str("");
            }
        }
        self.history
    }

    fn take_place(&mut self, member: &mut StrBytes) -> Option<Place> {
        let protocol = JoinGroupRequestProtocol::default().with_name(text("shares"));
        let join = JoinGroupRequest::default()
            .with_group_id(group())
            .with_session_timeout_ms(SESSION_MS)
            .with_rebalance_timeout_ms(REBALANCE_MS)
            .with_member_id(member.clone())
            .with_protocol_type(text("crew"))
            .with_protocols(vec![protocol]);
        let sent = self.tick();
        // Version 3 needs no member id of its own first.
        let answer = self.once(|client| client.call(3, &join)).ok()?;
        if answer.error_code != 0 {
            *member = StrBytes::from_static_str("");
            self.expect_sent_back("join", answer.error_code);
            return None;
        }
        let joined = self.tick();
        *member = answer.member_id.clone();
        let generation = answer.generation_id;
        self.history.crew.memberships.push(Membership { generation, sent, answered: joined });
        let sync = SyncGroupRequest::default()
            .with_group_id(group())
            .with_generation_id(generation)
            .with_member_id(member.clone())
            .with_assignments(shares(&answer));
        let synced = self.once(|client| client.call(3, &sync)).ok()?;
        if synced.error_code != 0 {
            self.expect_sent_back("sync", synced.error_code);
            return None;
        }
        let partitions = synced.assignment.iter().map(|partition| Partition::from(*partition)).collect();
        Some(Place { member: member.clone(), generation, joined, partitions })
    }

    fn expect_sent_back(&mut self, what: &str, code: i16) {
        if !sends_back(code) {
            self.complain(format!("{what} of a crew: {:?}", ResponseError::try_from_code(code)));
        }
    }

    /// A commit, or a look around; whether the place is still held.
    fn do_duty(&mut self, place: &Place) -> bool {
        if self.draw(0.1) {
            let partition = self.below(PARTITIONS);
            let sent = self.tick();
            let offset = self.read_offset(GROUP, partition);
            let got = self.tick();
            self.history.crew.readings.push(Reading { partition, offset, sent, got });
        }
        if place.partitions.is_empty() || self.draw(0.2) {
            return self.heartbeat(place);
        }
        let partition = place.partitions[self.below(place.partitions.len() as i32) as usize];
        let (offset, sent) = (self.value() as i64, self.tick());
        let entry = OffsetCommitRequestPartition::default()
            .with_partition_index(partition)
            .with_committed_offset(offset)
            .with_committed_leader_epoch(-1);
        let topic = OffsetCommitRequestTopic::default().with_name(name(LOG)).with_partitions(vec![entry]);
        let request = OffsetCommitRequest::default()
            .with_group_id(group())
            .with_generation_id_or_member_epoch(place.generation)
            .with_member_id(place.member.clone())
            .with_topics(vec![topic]);
        let answer = self.once(|client| client.call(7, &request));
        let code = answer.map(|a| a.topics.iter().flat_map(|t| &t.partitions).map(|p| p.error_code).sum::<i16>());
        let acknowledged = match code {
            Ok(0) => Some(self.tick()),
            Err(Lost) => None,
            Ok(code) => {
                self.expect_sent_back("commit", code);
                return false;
            }
        };
        let Place { generation, joined, .. } = *place;
        self.history.crew.commits.push(Commit { partition, offset, sent, acknowledged, generation, joined });
        // A lost answer is no reason to go: the next request will tell. So old members come back after kills.
        true
    }

    fn heartbeat(&mut self, place: &Place) -> bool {
        let request = HeartbeatRequest::default()
            .with_group_id(group())
            .with_generation_id(place.generation)
            .with_member_id(place.member.clone());
        match self.once(|client| client.call(3, &request)) {
            Ok(answer) if answer.error_code == 0 => true,
            Ok(answer) => {
                self.expect_sent_back("heartbeat", answer.error_code);
                false
            }
            Err(Lost) => true,
        }
    }
}

/// Round the members, by the leader; nothing by the others.
fn shares(joined: &JoinGroupResponse) -> Vec<SyncGroupRequestAssignment> {
    let count = joined.members.len();
    let share = |at: usize| (0..PARTITIONS as usize).filter(move |partition| partition % count == at);
    let assign = |(at, member): (usize, &kafka_protocol::messages::join_group_response::JoinGroupResponseMember)| {
        let bytes: Vec<u8> = share(at).map(|partition| partition as u8).collect();
        SyncGroupRequestAssignment::default().with_member_id(member.member_id.clone()).with_assignment(bytes.into())
    };
    joined.members.iter().enumerate().map(assign).collect()
}
