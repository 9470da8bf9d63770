//! Group membership and the views of groups.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::join_group_response::JoinGroupResponseMember;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::leave_group_response::MemberResponse;
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::{
    ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, DeleteGroupsRequest, DeleteGroupsResponse,
    DescribeGroupsRequest, DescribeGroupsResponse, GroupId, HeartbeatRequest, HeartbeatResponse, JoinGroupRequest,
    JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest, ListGroupsResponse, SyncGroupRequest,
    SyncGroupResponse,
};
use kafka_protocol::protocol::StrBytes;

use super::{Client, code, text};
use crate::catalog::Event;
use crate::context::Context;
use crate::groups::coordinator::Listed;
use crate::groups::member::{Identity, Join, Joined, Reply, Request, Sync};

/// Joins without a member id get one and come again from this version on.
const MEMBER_ID_REQUIRED_FROM: i16 = 4;
/// Leaders can be told to skip the assignment from this version on.
const SKIP_ASSIGNMENT_FROM: i16 = 9;
/// Several members can leave in one request from this version on.
const LEAVE_MANY_FROM: i16 = 3;
/// Unknown groups are an error from this version on, before that a group in state `Dead`.
const UNKNOWN_IS_ERROR_FROM: i16 = 6;

fn identity(member_id: &StrBytes, instance_id: Option<&StrBytes>) -> Identity {
    Identity { member_id: member_id.to_string(), instance_id: instance_id.map(|name| name.to_string()) }
}

fn optional(text: Option<&StrBytes>) -> Option<String> {
    text.map(|text| text.to_string())
}

/// Joins a group and waits for its rebalance.
pub(crate) async fn join(
    context: &Arc<Context>,
    client: &Client,
    client_id: &StrBytes,
    request: JoinGroupRequest,
    version: i16,
) -> JoinGroupResponse {
    if request.group_id.is_empty() {
        return JoinGroupResponse::default()
            .with_error_code(ResponseError::InvalidGroupId.code())
            .with_member_id(request.member_id);
    }
    let who = identity(&request.member_id, request.group_instance_id.as_ref());
    let prefix = who.instance_id.clone().unwrap_or_else(|| client_id.to_string());
    let session_timeout_ms = i64::from(request.session_timeout_ms);
    let join = Join {
        who,
        fresh_id: context.member_id(&prefix),
        can_rejoin_with_id: version >= MEMBER_ID_REQUIRED_FROM,
        can_skip_assignment: version >= SKIP_ASSIGNMENT_FROM,
        client_id: client_id.to_string(),
        client_host: client.host.clone(),
        session_timeout_ms,
        // Version 0 has no rebalance time-out; its session time-out serves as one.
        rebalance_timeout_ms: match i64::from(request.rebalance_timeout_ms) {
            given @ 0.. => given,
            _ => session_timeout_ms,
        },
        protocol_type: request.protocol_type.to_string(),
        protocols: request.protocols.into_iter().map(|p| (p.name.to_string(), p.metadata)).collect(),
    };
    match context.groups.join(&request.group_id, join).await {
        Reply::Joined(joined) => joined_response(joined, version),
        Reply::NotJoined { error, member_id } => not_joined(error, member_id),
        _ => not_joined(ResponseError::UnknownServerError, request.member_id.to_string()),
    }
}

fn not_joined(error: ResponseError, member_id: String) -> JoinGroupResponse {
    JoinGroupResponse::default()
        .with_error_code(error.code())
        .with_generation_id(-1)
        .with_protocol_type(None)
        .with_protocol_name(Some(StrBytes::default()))
        .with_member_id(text(member_id))
}

fn joined_response(joined: Joined, version: i16) -> JoinGroupResponse {
    let members = joined.members.into_iter().map(|(id, instance_id, metadata)| {
        JoinGroupResponseMember::default()
            .with_member_id(text(id))
            .with_group_instance_id(instance_id.filter(|_| version >= 5).map(text))
            .with_metadata(metadata)
    });
    JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type(joined.protocol_type.map(text))
        .with_protocol_name(Some(text(joined.protocol.unwrap_or_default())))
        .with_leader(text(joined.leader))
        .with_skip_assignment(joined.skip_assignment)
        .with_member_id(text(joined.member_id))
        .with_members(members.collect())
}

/// Hands in, or waits for, the assignment.
pub(crate) async fn sync(context: &Arc<Context>, request: SyncGroupRequest) -> SyncGroupResponse {
    let sync = Sync {
        who: identity(&request.member_id, request.group_instance_id.as_ref()),
        generation: request.generation_id,
        protocol_type: optional(request.protocol_type.as_ref()),
        protocol: optional(request.protocol_name.as_ref()),
        assignments: request.assignments.into_iter().map(|a| (a.member_id.to_string(), a.assignment)).collect(),
    };
    let response = SyncGroupResponse::default();
    match context.groups.ask(&request.group_id, Request::Sync(sync)).await {
        Reply::Synced(synced) => response
            .with_protocol_type(synced.protocol_type.map(text))
            .with_protocol_name(synced.protocol.map(text))
            .with_assignment(synced.assignment),
        Reply::Plain(Err(error)) => response
            .with_error_code(error.code())
            .with_protocol_type(None)
            .with_protocol_name(None)
            .with_assignment(Bytes::new()),
        _ => response.with_error_code(ResponseError::UnknownServerError.code()),
    }
}

/// A sign of life.
pub(crate) async fn heartbeat(context: &Arc<Context>, request: HeartbeatRequest) -> HeartbeatResponse {
    let who = identity(&request.member_id, request.group_instance_id.as_ref());
    let heartbeat = Request::Heartbeat { who, generation: request.generation_id };
    let verdict = match context.groups.ask(&request.group_id, heartbeat).await {
        Reply::Plain(verdict) => verdict,
        _ => Err(ResponseError::UnknownServerError),
    };
    HeartbeatResponse::default().with_error_code(code(&verdict))
}

/// Leaves a group.
pub(crate) async fn leave(context: &Arc<Context>, request: LeaveGroupRequest, version: i16) -> LeaveGroupResponse {
    let leaving: Vec<MemberIdentity> = if version >= LEAVE_MANY_FROM {
        request.members
    } else {
        vec![MemberIdentity::default().with_member_id(request.member_id)]
    };
    let who = leaving.iter().map(|m| identity(&m.member_id, m.group_instance_id.as_ref())).collect();
    let reply = context.groups.ask(&request.group_id, Request::Leave(who)).await;
    let verdicts = match reply {
        Reply::Left(verdicts) => verdicts,
        _ => vec![Err(ResponseError::UnknownServerError); leaving.len()],
    };
    if version < LEAVE_MANY_FROM {
        let verdict = verdicts.into_iter().next().unwrap_or(Ok(()));
        return LeaveGroupResponse::default().with_error_code(code(&verdict));
    }
    let members = leaving.into_iter().zip(verdicts).map(|(member, verdict)| {
        MemberResponse::default()
            .with_member_id(member.member_id)
            .with_group_instance_id(member.group_instance_id)
            .with_error_code(code(&verdict))
    });
    LeaveGroupResponse::default().with_members(members.collect())
}

/// The group protocol of KIP-848 is not served; clients take this answer as final.
pub(crate) fn refuse_next_generation(_request: ConsumerGroupHeartbeatRequest) -> ConsumerGroupHeartbeatResponse {
    let message = format!("set group.protocol=classic: {}", crate::capabilities());
    ConsumerGroupHeartbeatResponse::default()
        .with_error_code(ResponseError::UnsupportedVersion.code())
        .with_error_message(Some(text(message)))
        .with_member_id(None)
        .with_assignment(None)
}

/// Names of groups that only have offsets.
fn offset_groups(context: &Context) -> BTreeSet<String> {
    context.store.read(|catalog| catalog.offsets().keys().cloned().collect())
}

/// All groups, with or without members.
pub(crate) fn list(context: &Context, request: ListGroupsRequest) -> ListGroupsResponse {
    let mut groups = context.groups.list();
    let with_members: BTreeSet<String> = groups.iter().map(|g| g.group.clone()).collect();
    let idle = offset_groups(context).into_iter().filter(|name| !with_members.contains(name));
    groups.extend(idle.map(|group| Listed { group, protocol_type: "consumer".to_owned(), state: "Empty" }));
    let has = |filter: &[StrBytes], value: &str| {
        filter.is_empty() || filter.iter().any(|wanted| wanted.eq_ignore_ascii_case(value))
    };
    let listed = groups
        .into_iter()
        .filter(|g| has(&request.states_filter, g.state) && has(&request.types_filter, "classic"))
        .map(|g| {
            ListedGroup::default()
                .with_group_id(GroupId(text(g.group)))
                .with_protocol_type(text(g.protocol_type))
                .with_group_state(StrBytes::from_static_str(g.state))
                .with_group_type(StrBytes::from_static_str("classic"))
        });
    ListGroupsResponse::default().with_groups(listed.collect())
}

/// Members and assignments of groups.
pub(crate) fn describe(context: &Context, request: DescribeGroupsRequest, version: i16) -> DescribeGroupsResponse {
    let idle = offset_groups(context);
    let groups = request.groups.into_iter().map(|id| describe_one(context, id, &idle, version));
    DescribeGroupsResponse::default().with_groups(groups.collect())
}

fn describe_one(context: &Context, id: GroupId, idle: &BTreeSet<String>, version: i16) -> DescribedGroup {
    let described = DescribedGroup::default()
        .with_group_id(id.clone())
        .with_error_message(None)
        .with_authorized_operations(i32::MIN);
    let Some(group) = context.groups.describe(&id) else {
        if idle.contains(id.as_str()) {
            return described
                .with_group_state(StrBytes::from_static_str("Empty"))
                .with_protocol_type(StrBytes::from_static_str("consumer"));
        }
        let dead = described.with_group_state(StrBytes::from_static_str("Dead"));
        if version < UNKNOWN_IS_ERROR_FROM {
            return dead;
        }
        let message = format!("group `{}` does not exist", id.as_str());
        return dead.with_error_code(ResponseError::GroupIdNotFound.code()).with_error_message(Some(text(message)));
    };
    let members = group.members.into_iter().map(|member| {
        DescribedGroupMember::default()
            .with_member_id(text(member.member_id))
            .with_group_instance_id(member.instance_id.map(text))
            .with_client_id(text(member.client_id))
            .with_client_host(text(member.client_host))
            .with_member_metadata(member.metadata)
            .with_member_assignment(member.assignment)
    });
    described
        .with_group_state(StrBytes::from_static_str(group.state))
        .with_protocol_type(text(group.protocol_type))
        .with_protocol_data(text(group.protocol))
        .with_members(members.collect())
}

/// Deletes groups without members, that is, their offsets.
pub(crate) fn delete(context: &Context, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let results = request.groups_names.into_iter().map(|id| {
        let outcome = delete_one(context, &id);
        DeletableGroupResult::default().with_group_id(id).with_error_code(code(&outcome))
    });
    DeleteGroupsResponse::default().with_results(results.collect())
}

fn delete_one(context: &Context, group: &str) -> Result<(), ResponseError> {
    if context.groups.has_members(group) {
        return Err(ResponseError::NonEmptyGroup);
    }
    let was_known = context.groups.forget(group);
    context.store.update(|catalog| match (catalog.offsets().contains_key(group), was_known) {
        (true, _) => Ok(((), vec![Event::GroupForgotten { group: group.to_owned() }])),
        (false, true) => Ok(((), Vec::new())),
        (false, false) => Err(ResponseError::GroupIdNotFound),
    })
}
