//! Requests of transactional producers, translated to the ledger.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use kafka_protocol::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest, AddPartitionsToTxnResponse,
    EndTxnRequest, EndTxnResponse, InitProducerIdRequest, InitProducerIdResponse, ProducerId, TxnOffsetCommitRequest,
    TxnOffsetCommitResponse,
};

use super::code;
use super::commits::{MAX_METADATA, committed};
use crate::context::Context;
use crate::groups::member::Identity;
use crate::transactions::ending::{ask, finish, initialise};
use crate::transactions::ledger::{Outcome, Reply, Request, Who};

/// From these versions on a fenced producer is told so; before, that its epoch is not valid.
const FENCED_FROM: i16 = 2;
const FENCED_FROM_INIT: i16 = 4;

fn told(error: ResponseError, knows_fenced: bool) -> ResponseError {
    match error {
        ResponseError::ProducerFenced if !knows_fenced => ResponseError::InvalidProducerEpoch,
        other => other,
    }
}

/// A producer id: a fresh one, or the one of a transactional id with the next epoch.
pub(crate) fn init_producer_id(
    context: &Context,
    request: InitProducerIdRequest,
    version: i16,
) -> InitProducerIdResponse {
    let outcome = context.on_disk(|| match &request.transactional_id {
        None => context.next_producer_id().map(|id| (id, 0)),
        Some(id) => {
            let current = (request.producer_id.0 >= 0).then_some((request.producer_id.0, request.producer_epoch));
            initialise(context, id, request.transaction_timeout_ms.into(), current)
        }
    });
    let outcome = outcome.map_err(|error| told(error, version >= FENCED_FROM_INIT));
    let (id, epoch) = outcome.unwrap_or((-1, -1));
    InitProducerIdResponse::default()
        .with_error_code(code(&outcome))
        .with_producer_id(ProducerId(id))
        .with_producer_epoch(epoch)
}

/// Takes partitions into a transaction: all or none of them.
pub(crate) fn add_partitions(
    context: &Context,
    request: AddPartitionsToTxnRequest,
    version: i16,
) -> AddPartitionsToTxnResponse {
    let asked = &request.v3_and_below_topics;
    let is_known = |topic: &str, index| context.topics.partition(topic, index).is_some();
    let all_known = asked.iter().all(|topic| topic.partitions.iter().all(|index| is_known(&topic.name, *index)));
    let outcome = if all_known {
        let pairs = asked.iter().flat_map(|t| t.partitions.iter().map(|index| (t.name.to_string(), *index)));
        let who = Who {
            id: &request.v3_and_below_transactional_id,
            producer_id: request.v3_and_below_producer_id.0,
            epoch: request.v3_and_below_producer_epoch,
        };
        context.on_disk(|| ask(context, Request::AddPartitions { who, partitions: pairs.collect() }).map(|_| ()))
    } else {
        Err(ResponseError::OperationNotAttempted)
    };
    let outcome = outcome.map_err(|error| told(error, version >= FENCED_FROM));
    let topics = asked.iter().map(|topic| {
        let partitions = topic.partitions.iter().map(|&index| {
            let verdict = match is_known(&topic.name, index) {
                true => outcome,
                false => Err(ResponseError::UnknownTopicOrPartition),
            };
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(index)
                .with_partition_error_code(code(&verdict))
        });
        AddPartitionsToTxnTopicResult::default()
            .with_name(topic.name.clone())
            .with_results_by_partition(partitions.collect())
    });
    AddPartitionsToTxnResponse::default().with_results_by_topic_v3_and_below(topics.collect())
}

/// Takes a group's offsets into a transaction.
pub(crate) fn add_offsets(context: &Context, request: AddOffsetsToTxnRequest, version: i16) -> AddOffsetsToTxnResponse {
    let who = Who { id: &request.transactional_id, producer_id: request.producer_id.0, epoch: request.producer_epoch };
    let outcome = match request.group_id.is_empty() {
        true => Err(ResponseError::InvalidGroupId),
        false => context.on_disk(|| ask(context, Request::AddGroup { who, group: &request.group_id })),
    };
    let outcome = outcome.map_err(|error| told(error, version >= FENCED_FROM));
    AddOffsetsToTxnResponse::default().with_error_code(code(&outcome))
}

/// Keeps offsets until the transaction ends.
pub(crate) fn commit_offsets(context: &Context, request: TxnOffsetCommitRequest) -> TxnOffsetCommitResponse {
    let admitted = admit_member(context, &request);
    let mut offsets = Vec::new();
    let mut verdicts = Vec::new();
    for topic in &request.topics {
        let mut partitions = Vec::new();
        for partition in &topic.partitions {
            let (index, note) = (partition.partition_index, &partition.committed_metadata);
            let verdict = admitted.and_then(|()| {
                if note.as_ref().is_some_and(|note| note.len() > MAX_METADATA) {
                    return Err(ResponseError::OffsetMetadataTooLarge);
                }
                let found = context.topics.partition(&topic.name, index);
                found.map(|_| ()).ok_or(ResponseError::UnknownTopicOrPartition)
            });
            if verdict.is_ok() {
                let kept = committed(partition.committed_offset, partition.committed_leader_epoch, note.as_ref());
                offsets.push(((topic.name.to_string(), index), kept));
            }
            partitions.push((index, verdict));
        }
        verdicts.push((topic.name.clone(), partitions));
    }
    let who = Who { id: &request.transactional_id, producer_id: request.producer_id.0, epoch: request.producer_epoch };
    let kept = match offsets.is_empty() {
        true => Ok(()),
        false => context.on_disk(|| {
            let outcome = ask(context, Request::AddOffsets { who, group: &request.group_id, offsets });
            outcome.map(|_| ()).map_err(|error| told(error, false))
        }),
    };
    let topics = verdicts.into_iter().map(|(name, partitions)| {
        let partitions = partitions.into_iter().map(|(index, verdict)| {
            TxnOffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(code(&verdict.and(kept)))
        });
        TxnOffsetCommitResponseTopic::default().with_name(name).with_partitions(partitions.collect())
    });
    TxnOffsetCommitResponse::default().with_topics(topics.collect())
}

/// Old clients name no member; the others must be members of this generation, rebalancing or not.
fn admit_member(context: &Context, request: &TxnOffsetCommitRequest) -> Result<(), ResponseError> {
    let group = request.group_id.as_str();
    if group.is_empty() {
        return Err(ResponseError::InvalidGroupId);
    }
    if request.generation_id < 0 && request.member_id.is_empty() && request.group_instance_id.is_none() {
        return Ok(());
    }
    let who = Identity {
        member_id: request.member_id.to_string(),
        instance_id: request.group_instance_id.as_ref().map(|name| name.to_string()),
    };
    match context.groups.may_commit(group, who, request.generation_id) {
        Err(ResponseError::RebalanceInProgress) => Ok(()),
        verdict => verdict,
    }
}

/// Commits or aborts.
pub(crate) fn end(context: &Context, request: EndTxnRequest, version: i16) -> EndTxnResponse {
    let who = Who { id: &request.transactional_id, producer_id: request.producer_id.0, epoch: request.producer_epoch };
    let outcome = if request.committed { Outcome::Commit } else { Outcome::Abort };
    let ended = context.on_disk(|| match ask(context, Request::End { who, outcome })? {
        // The decision is made; what cannot be carried out now is when the client asks again.
        Reply::EndFirst { .. } => finish(context, who.id).map_err(|_| ResponseError::ConcurrentTransactions),
        _ => Ok(()),
    });
    let ended = ended.map_err(|error| told(error, version >= FENCED_FROM));
    EndTxnResponse::default().with_error_code(code(&ended))
}
