//! Fetch: waits for enough bytes, then reads whole batches from every partition asked for.
//!
//! The wait ends the moment a record is appended: each partition notifies the fetches that wait for
//! it. Fetch sessions are declined (session id 0), so that every request names its partitions.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::fetch_request::FetchTopic;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::{FetchRequest, FetchResponse, ProducerId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::catalog::TopicId;
use crate::context::Context;
use crate::log::batch::LEADER_EPOCH;
use crate::log::partition::{Isolation, Partition};
use crate::log::state::Aborted;
use crate::topics::Topic;

/// Topics are named by id from this version on.
const TOPIC_IDS_FROM: i16 = 13;
/// Longest wait, whatever the client asks for.
const MAX_WAIT: Duration = Duration::from_secs(300);
/// Session epochs with which a client does not refer to an existing session.
const SESSIONLESS: [i32; 2] = [-1, 0];

/// A partition that is asked for.
struct Wanted {
    partition: Result<Arc<Partition>, ResponseError>,
    index: i32,
    offset: i64,
    max_bytes: usize,
}

/// Serves a fetch request.
pub(crate) async fn fetch(context: &Arc<Context>, request: FetchRequest, version: i16) -> FetchResponse {
    if !SESSIONLESS.contains(&request.session_epoch) {
        return FetchResponse::default().with_error_code(ResponseError::FetchSessionIdNotFound.code());
    }
    let wanted: Vec<(FetchTopic, Vec<Wanted>)> =
        request.topics.iter().map(|topic| (topic.clone(), resolve(context, topic, version))).collect();
    let isolation = Isolation::of(request.isolation_level);
    wait(&wanted, &request, isolation).await;
    let asked = usize::try_from(request.max_bytes).unwrap_or(0);
    let mut budget = Budget { left: asked.min(context.config.max_fetch_bytes), is_first: true };
    let responses = wanted.into_iter().map(|(topic, partitions)| {
        let data = partitions.into_iter().map(|wanted| read(&wanted, isolation, &mut budget)).collect();
        FetchableTopicResponse::default().with_topic(topic.topic).with_topic_id(topic.topic_id).with_partitions(data)
    });
    FetchResponse::default().with_responses(responses.collect())
}

fn resolve(context: &Context, asked: &FetchTopic, version: i16) -> Vec<Wanted> {
    let topic = if version >= TOPIC_IDS_FROM {
        let id = TopicId(*asked.topic_id.as_bytes());
        context.topics.get_by_id(id).ok_or(ResponseError::UnknownTopicId)
    } else {
        context.topics.get(&asked.topic).ok_or(ResponseError::UnknownTopicOrPartition)
    };
    let partition = |index, epoch| {
        let topic: &Arc<Topic> = topic.as_ref().map_err(|error| *error)?;
        check_epoch(epoch)?;
        topic.partition(index).ok_or(ResponseError::UnknownTopicOrPartition)
    };
    let wanted = asked.partitions.iter().map(|p| Wanted {
        partition: partition(p.partition, p.current_leader_epoch),
        index: p.partition,
        offset: p.fetch_offset,
        max_bytes: usize::try_from(p.partition_max_bytes).unwrap_or(0),
    });
    wanted.collect()
}

/// Checks the leader epoch that a client believes in; -1 means it has no opinion.
pub(crate) fn check_epoch(epoch: i32) -> Result<(), ResponseError> {
    match epoch {
        -1 | LEADER_EPOCH => Ok(()),
        LEADER_EPOCH.. => Err(ResponseError::UnknownLeaderEpoch),
        _ => Err(ResponseError::FencedLeaderEpoch),
    }
}

/// Returns when there are enough bytes, when a partition has something to complain about, or when
/// the client's patience ends.
async fn wait(wanted: &[(FetchTopic, Vec<Wanted>)], request: &FetchRequest, isolation: Isolation) {
    let patience = u64::try_from(request.max_wait_ms).unwrap_or(0);
    let deadline = Instant::now() + Duration::from_millis(patience).min(MAX_WAIT);
    let enough = u64::try_from(request.min_bytes).unwrap_or(0);
    let partitions = || wanted.iter().flat_map(|(_, partitions)| partitions);
    if is_ready(partitions(), enough, isolation) {
        return;
    }
    let waker = Arc::new(Notify::new());
    let found = partitions().filter_map(|wanted| wanted.partition.as_ref().ok());
    let _tickets: Vec<_> = found.map(|partition| partition.wait(&waker)).collect();
    // Asked again now that nothing can be missed, and then after every append.
    while !is_ready(partitions(), enough, isolation) {
        if tokio::time::timeout_at(deadline, waker.notified()).await.is_err() {
            return;
        }
    }
}

fn is_ready<'a>(partitions: impl Iterator<Item = &'a Wanted>, enough: u64, isolation: Isolation) -> bool {
    let mut total = 0;
    for wanted in partitions {
        let available = wanted
            .partition
            .as_ref()
            .map_err(|error| *error)
            .and_then(|partition| partition.available(wanted.offset, isolation));
        match available {
            Ok(bytes) => total += bytes,
            Err(_) => return true,
        }
    }
    total >= enough
}

/// Bytes that may still go into a response. The first batch may exceed it, so that a consumer never
/// gets stuck in front of a large record.
struct Budget {
    left: usize,
    is_first: bool,
}

fn wire(aborted: Vec<Aborted>) -> Vec<AbortedTransaction> {
    let one = |aborted: Aborted| {
        AbortedTransaction::default().with_producer_id(ProducerId(aborted.producer_id)).with_first_offset(aborted.first)
    };
    aborted.into_iter().map(one).collect()
}

fn read(wanted: &Wanted, isolation: Isolation, budget: &mut Budget) -> PartitionData {
    let data = PartitionData::default().with_partition_index(wanted.index);
    let partition = match &wanted.partition {
        Ok(partition) => partition,
        Err(error) => return refused(data, *error),
    };
    let max_bytes = wanted.max_bytes.min(budget.left);
    match partition.read(wanted.offset, max_bytes, budget.is_first, isolation) {
        Ok(fetched) => {
            budget.left = budget.left.saturating_sub(fetched.records.len());
            budget.is_first &= fetched.records.is_empty();
            data.with_high_watermark(fetched.watermarks.end)
                .with_last_stable_offset(fetched.watermarks.stable_end)
                .with_log_start_offset(fetched.watermarks.start)
                .with_aborted_transactions(fetched.aborted.map(wire))
                .with_records(Some(fetched.records))
        }
        Err(ResponseError::OffsetOutOfRange) => {
            let watermarks = partition.watermarks();
            refused(data, ResponseError::OffsetOutOfRange)
                .with_high_watermark(watermarks.end)
                .with_last_stable_offset(watermarks.stable_end)
                .with_log_start_offset(watermarks.start)
        }
        Err(error) => refused(data, error),
    }
}

fn refused(data: PartitionData, error: ResponseError) -> PartitionData {
    data.with_error_code(error.code())
        .with_high_watermark(-1)
        .with_last_stable_offset(-1)
        .with_log_start_offset(-1)
        .with_aborted_transactions(None)
        .with_records(Some(Bytes::new()))
}
