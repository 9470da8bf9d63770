//! Offsets of logs: first, last, by time; where a leader epoch ended; deleting records.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_records_request::DeleteRecordsTopic;
use kafka_protocol::messages::delete_records_response::{DeleteRecordsPartitionResult, DeleteRecordsTopicResult};
use kafka_protocol::messages::list_offsets_request::ListOffsetsPartition;
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use kafka_protocol::messages::offset_for_leader_epoch_response::{EpochEndOffset, OffsetForLeaderTopicResult};
use kafka_protocol::messages::{
    DeleteRecordsRequest, DeleteRecordsResponse, ListOffsetsRequest, ListOffsetsResponse, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse,
};

use super::code;
use super::fetch::check_epoch;
use crate::catalog::Event;
use crate::context::{Context, now_ms};
use crate::log::batch::LEADER_EPOCH;
use crate::log::partition::{Found, Isolation};

const LATEST: i64 = -1;
const EARLIEST: i64 = -2;
const MAX_TIMESTAMP: i64 = -3;
/// First offset on the local disk: here that is the first there is.
const EARLIEST_LOCAL: i64 = -4;
/// Last offset in tiered storage, of which there is none.
const LATEST_TIERED: i64 = -5;

/// Replies carry the leader epoch from this version on.
const LEADER_EPOCH_FROM: i16 = 4;

/// Offsets by time or by one of the special times.
pub(crate) fn list(context: &Context, request: ListOffsetsRequest, version: i16) -> ListOffsetsResponse {
    let epoch = if version >= LEADER_EPOCH_FROM { LEADER_EPOCH } else { -1 };
    let isolation = Isolation::of(request.isolation_level);
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let outcome = find(context, &topic.name, partition, isolation);
            let nothing = Found { offset: -1, timestamp: -1 };
            let found = outcome.unwrap_or(None).unwrap_or(nothing);
            ListOffsetsPartitionResponse::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code(&outcome))
                .with_offset(found.offset)
                .with_timestamp(found.timestamp)
                .with_leader_epoch(if found.offset >= 0 { epoch } else { -1 })
        });
        let partitions = partitions.collect();
        ListOffsetsTopicResponse::default().with_name(topic.name).with_partitions(partitions)
    });
    ListOffsetsResponse::default().with_topics(topics.collect())
}

fn find(
    context: &Context,
    topic: &str,
    asked: &ListOffsetsPartition,
    isolation: Isolation,
) -> Result<Option<Found>, ResponseError> {
    let partition =
        context.topics.partition(topic, asked.partition_index).ok_or(ResponseError::UnknownTopicOrPartition)?;
    check_epoch(asked.current_leader_epoch)?;
    let watermarks = partition.watermarks();
    let at = |offset| Ok(Some(Found { offset, timestamp: -1 }));
    match asked.timestamp {
        LATEST => at(watermarks.visible_end(isolation)),
        EARLIEST | EARLIEST_LOCAL => at(watermarks.start),
        MAX_TIMESTAMP => partition.find_newest(),
        LATEST_TIERED => Ok(None),
        timestamp @ 0.. => {
            let found = partition.find_time(timestamp)?;
            Ok(found.filter(|found| found.offset < watermarks.visible_end(isolation)))
        }
        _ => Err(ResponseError::InvalidRequest),
    }
}

/// Where the leader epoch of a client ended. There has only ever been one epoch.
pub(crate) fn for_leader_epoch(
    context: &Context,
    request: OffsetForLeaderEpochRequest,
) -> OffsetForLeaderEpochResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let outcome = epoch_end(context, &topic.topic, partition);
            let (leader_epoch, end_offset) = outcome.unwrap_or((-1, -1));
            EpochEndOffset::default()
                .with_partition(partition.partition)
                .with_error_code(code(&outcome))
                .with_leader_epoch(leader_epoch)
                .with_end_offset(end_offset)
        });
        let partitions = partitions.collect();
        OffsetForLeaderTopicResult::default().with_topic(topic.topic).with_partitions(partitions)
    });
    OffsetForLeaderEpochResponse::default().with_topics(topics.collect())
}

fn epoch_end(context: &Context, topic: &str, asked: &OffsetForLeaderPartition) -> Result<(i32, i64), ResponseError> {
    let partition = context.topics.partition(topic, asked.partition).ok_or(ResponseError::UnknownTopicOrPartition)?;
    check_epoch(asked.current_leader_epoch)?;
    if asked.leader_epoch == LEADER_EPOCH { Ok((LEADER_EPOCH, partition.watermarks().end)) } else { Ok((-1, -1)) }
}

/// Deletes records before an offset.
pub(crate) fn delete_records(context: &Context, request: DeleteRecordsRequest) -> DeleteRecordsResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|partition| {
            let (index, offset) = (partition.partition_index, partition.offset);
            let outcome = tokio::task::block_in_place(|| trim(context, &topic, index, offset));
            DeleteRecordsPartitionResult::default()
                .with_partition_index(index)
                .with_error_code(code(&outcome))
                .with_low_watermark(outcome.unwrap_or(-1))
        });
        let partitions = partitions.collect();
        DeleteRecordsTopicResult::default().with_name(topic.name).with_partitions(partitions)
    });
    DeleteRecordsResponse::default().with_topics(topics.collect())
}

fn trim(context: &Context, topic: &DeleteRecordsTopic, index: i32, offset: i64) -> Result<i64, ResponseError> {
    let name = topic.name.as_str();
    let topic = context.topics.get(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let partition = topic.partition(index).ok_or(ResponseError::UnknownTopicOrPartition)?;
    let rules = topic.rules();
    if !rules.cleanup.delete {
        return Err(ResponseError::PolicyViolation);
    }
    partition.trim(now_ms(), offset, &rules, |start| {
        context.store.update(|_| {
            let topic = name.to_owned();
            let event = Event::LogStartMoved { topic, partition: index, offset: start };
            Ok(((), vec![event]))
        })
    })
}
