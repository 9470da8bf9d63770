//! Committed offsets: storing, fetching, forgetting.

use std::collections::BTreeMap;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::offset_commit_request::OffsetCommitRequestPartition;
use kafka_protocol::messages::offset_commit_response::{OffsetCommitResponsePartition, OffsetCommitResponseTopic};
use kafka_protocol::messages::offset_delete_response::{OffsetDeleteResponsePartition, OffsetDeleteResponseTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestGroup;
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions, OffsetFetchResponseTopic,
    OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest,
    OffsetFetchResponse, TopicName,
};

use kafka_protocol::protocol::StrBytes;

use super::{code, text};
use crate::catalog::{Committed, Event, TopicPartition};
use crate::context::{Context, now_ms};
use crate::groups::member::Identity;

/// A partition and what came of its commit.
type Verdict = (i32, Result<(), ResponseError>);

/// Longest note that may be committed with an offset.
pub(super) const MAX_METADATA: usize = 4096;
/// Several groups can be asked about in one request from this version on.
const MANY_GROUPS_FROM: i16 = 8;

/// Stores offsets, durably before the answer.
pub(crate) fn commit(context: &Context, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let group = request.group_id.to_string();
    let who = Identity {
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.as_ref().map(|name| name.to_string()),
    };
    let admitted = if group.is_empty() {
        Err(ResponseError::InvalidGroupId)
    } else {
        context.groups.may_commit(&group, who, request.generation_id_or_member_epoch)
    };
    let mut offsets = Vec::new();
    let mut verdicts: Vec<(TopicName, Vec<Verdict>)> = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for partition in &topic.partitions {
            let verdict = admitted.and_then(|()| check(context, &topic.name, partition));
            if verdict.is_ok() {
                let note = partition.committed_metadata.as_ref();
                let kept = committed(partition.committed_offset, partition.committed_leader_epoch, note);
                offsets.push(((topic.name.to_string(), partition.partition_index), kept));
            }
            partitions.push((partition.partition_index, verdict));
        }
        verdicts.push((topic.name.clone(), partitions));
    }
    let stored = context.on_disk(|| store(context, group, offsets));
    let topics = verdicts.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, verdict)| {
            OffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(code(&verdict.and(stored)))
        });
        OffsetCommitResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    OffsetCommitResponse::default().with_topics(topics.collect())
}

fn check(context: &Context, topic: &TopicName, partition: &OffsetCommitRequestPartition) -> Result<(), ResponseError> {
    if partition.committed_metadata.as_ref().is_some_and(|note| note.len() > MAX_METADATA) {
        return Err(ResponseError::OffsetMetadataTooLarge);
    }
    let found = context.topics.partition(topic, partition.partition_index);
    found.map(|_| ()).ok_or(ResponseError::UnknownTopicOrPartition)
}

/// An offset as it is kept.
pub(super) fn committed(offset: i64, leader_epoch: i32, note: Option<&StrBytes>) -> Committed {
    Committed { offset, leader_epoch, metadata: note.map(|note| note.to_string()).unwrap_or_default(), at_ms: now_ms() }
}

fn store(context: &Context, group: String, offsets: Vec<(TopicPartition, Committed)>) -> Result<(), ResponseError> {
    if offsets.is_empty() {
        return Ok(());
    }
    context.store.update(|catalog| {
        let known = catalog.offsets();
        if !known.contains_key(&group) && known.len() >= context.config.max_groups {
            tracing::warn!(group, limit = context.config.max_groups, "too many groups");
            return Err(ResponseError::PolicyViolation);
        }
        Ok(((), vec![Event::OffsetsCommitted { group, offsets }]))
    })
}

/// The answer about one partition: what is committed, or nothing.
fn answer(found: Option<&Committed>) -> Committed {
    let nothing = Committed { offset: -1, leader_epoch: -1, metadata: String::new(), at_ms: 0 };
    found.cloned().unwrap_or(nothing)
}

/// What was found, by topic; an error where a transaction has yet to decide.
type Found = BTreeMap<String, Vec<(i32, Result<Committed, ResponseError>)>>;

/// Offsets of a group: those asked for, or all.
fn lookup(context: &Context, group: &str, asked: Option<Vec<TopicPartition>>, require_stable: bool) -> Found {
    context.store.read(|catalog| {
        let known = catalog.offsets().get(group);
        let settled = |at: &TopicPartition, found| match require_stable && catalog.transactions().is_unstable(group, at)
        {
            true => Err(ResponseError::UnstableOffsetCommit),
            false => Ok(found),
        };
        let mut topics = Found::new();
        match asked {
            Some(asked) => {
                for at in asked {
                    let found = answer(known.and_then(|known| known.get(&at)));
                    let found = settled(&at, found);
                    topics.entry(at.0).or_default().push((at.1, found));
                }
            }
            None => {
                for (at, found) in known.into_iter().flatten() {
                    topics.entry(at.0.clone()).or_default().push((at.1, settled(at, found.clone())));
                }
            }
        }
        topics
    })
}

fn flatten<'a>(topics: impl IntoIterator<Item = (&'a TopicName, &'a Vec<i32>)>) -> Vec<TopicPartition> {
    let pairs = topics
        .into_iter()
        .flat_map(|(name, indexes)| indexes.iter().map(|index| (name.to_string(), *index)).collect::<Vec<_>>());
    pairs.collect()
}

/// Tells committed offsets; -1 where there are none.
pub(crate) fn fetch(context: &Context, request: OffsetFetchRequest, version: i16) -> OffsetFetchResponse {
    if version >= MANY_GROUPS_FROM {
        let groups = request.groups.iter().map(|group| fetch_group(context, group, request.require_stable));
        return OffsetFetchResponse::default().with_groups(groups.collect());
    }
    let asked = request.topics.as_ref().map(|topics| flatten(topics.iter().map(|t| (&t.name, &t.partition_indexes))));
    let topics = lookup(context, &request.group_id, asked, request.require_stable).into_iter().map(|(name, found)| {
        let partitions = found.into_iter().map(|(index, found)| {
            let error_code = code(&found);
            let committed = found.unwrap_or_else(|_| answer(None));
            OffsetFetchResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(error_code)
                .with_committed_offset(committed.offset)
                .with_committed_leader_epoch(committed.leader_epoch)
                .with_metadata(Some(text(committed.metadata)))
        });
        OffsetFetchResponseTopic::default().with_name(TopicName(text(name))).with_partitions(partitions.collect())
    });
    OffsetFetchResponse::default().with_topics(topics.collect())
}

fn fetch_group(context: &Context, asked: &OffsetFetchRequestGroup, require_stable: bool) -> OffsetFetchResponseGroup {
    let wanted = asked.topics.as_ref().map(|topics| flatten(topics.iter().map(|t| (&t.name, &t.partition_indexes))));
    let topics = lookup(context, &asked.group_id, wanted, require_stable).into_iter().map(|(name, found)| {
        let partitions = found.into_iter().map(|(index, found)| {
            let error_code = code(&found);
            let committed = found.unwrap_or_else(|_| answer(None));
            OffsetFetchResponsePartitions::default()
                .with_partition_index(index)
                .with_error_code(error_code)
                .with_committed_offset(committed.offset)
                .with_committed_leader_epoch(committed.leader_epoch)
                .with_metadata(Some(text(committed.metadata)))
        });
        OffsetFetchResponseTopics::default().with_name(TopicName(text(name))).with_partitions(partitions.collect())
    });
    OffsetFetchResponseGroup::default().with_group_id(asked.group_id.clone()).with_topics(topics.collect())
}

/// Forgets offsets of a group, partition by partition.
pub(crate) fn delete(context: &Context, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let group = request.group_id.to_string();
    let refuse = |error: ResponseError| OffsetDeleteResponse::default().with_error_code(error.code());
    if context.groups.has_members(&group) {
        // Which topics the members use is written in subscriptions that only they understand.
        return refuse(ResponseError::NonEmptyGroup);
    }
    let partitions: Vec<TopicPartition> = request
        .topics
        .iter()
        .flat_map(|t| t.partitions.iter().map(|p| (t.name.to_string(), p.partition_index)))
        .collect();
    let outcome = context.store.update(|catalog| {
        if !catalog.offsets().contains_key(&group) {
            return Err(ResponseError::GroupIdNotFound);
        }
        Ok(((), vec![Event::OffsetsForgotten { group: group.clone(), partitions }]))
    });
    if let Err(error) = outcome {
        return refuse(error);
    }
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic
            .partitions
            .into_iter()
            .map(|partition| OffsetDeleteResponsePartition::default().with_partition_index(partition.partition_index));
        let partitions = partitions.collect();
        OffsetDeleteResponseTopic::default().with_name(topic.name).with_partitions(partitions)
    });
    OffsetDeleteResponse::default().with_topics(topics.collect())
}
