//! Transactions and producers as an administrator sees them (`kafka-transactions.sh list`, `describe`,
//! `describe-producers`, `find-hanging`).

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_producers_response::{PartitionResponse, ProducerState, TopicResponse};
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::list_transactions_response::TransactionState as Listed;
use kafka_protocol::messages::{
    DescribeProducersRequest, DescribeProducersResponse, DescribeTransactionsRequest, DescribeTransactionsResponse,
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TopicName, TransactionalId,
};

use super::text;
use crate::context::{Context, now_ms};
use crate::log::producers::Described;
use crate::transactions::ledger::{Filter, PHASE_NAMES, Transaction};

/// "There is none", of times and offsets.
const NONE: i64 = -1;
/// Epochs of coordinators are not kept.
const NO_EPOCH: i32 = -1;

/// The transactional ids that the filters let pass.
pub(crate) fn list(context: &Context, request: ListTransactionsRequest, version: i16) -> ListTransactionsResponse {
    let is_known = |name: &&str| PHASE_NAMES.contains(name);
    let (known, unknown): (Vec<&str>, Vec<&str>) = request.state_filters.iter().map(|s| s.as_str()).partition(is_known);
    let unknown: Vec<_> = unknown.into_iter().map(text).collect();
    if known.is_empty() && !unknown.is_empty() {
        return ListTransactionsResponse::default().with_unknown_state_filters(unknown);
    }
    let filter = Filter {
        phases: known,
        producer_ids: request.producer_id_filters.iter().map(|id| id.0).collect(),
        open_longer_than_ms: (version >= 1 && request.duration_filter >= 0).then_some(request.duration_filter),
    };
    let listed = context.store.read(|catalog| {
        let found = catalog.transactions().list(now_ms(), &filter);
        let line = |(id, known): (&str, &Transaction)| {
            Listed::default()
                .with_transactional_id(TransactionalId(text(id)))
                .with_producer_id(ProducerId(known.producer_id))
                .with_transaction_state(text(known.phase.name()))
        };
        found.into_iter().map(line).collect()
    });
    ListTransactionsResponse::default().with_unknown_state_filters(unknown).with_transaction_states(listed)
}

/// All about some transactional ids.
pub(crate) fn describe(context: &Context, request: DescribeTransactionsRequest) -> DescribeTransactionsResponse {
    let states = request.transactional_ids.into_iter().map(|id| {
        let known = context.store.read(|catalog| catalog.transactions().get(&id).cloned());
        match known {
            Some(known) => describe_one(id, &known),
            None => TransactionState::default()
                .with_error_code(ResponseError::TransactionalIdNotFound.code())
                .with_transactional_id(id),
        }
    });
    DescribeTransactionsResponse::default().with_transaction_states(states.collect())
}

fn describe_one(id: TransactionalId, known: &Transaction) -> TransactionState {
    let mut topics: Vec<TopicData> = Vec::new();
    // In order of topics, so that the partitions of one lie together.
    for (topic, index) in &known.partitions {
        match topics.last_mut() {
            Some(last) if last.topic.as_str() == topic => last.partitions.push(*index),
            _ => topics
                .push(TopicData::default().with_topic(TopicName(text(topic.as_str()))).with_partitions(vec![*index])),
        }
    }
    TransactionState::default()
        .with_transactional_id(id)
        .with_transaction_state(text(known.phase.name()))
        .with_transaction_timeout_ms(i32::try_from(known.timeout_ms).unwrap_or(i32::MAX))
        .with_transaction_start_time_ms(known.phase.since_ms().unwrap_or(NONE))
        .with_producer_id(ProducerId(known.producer_id))
        .with_producer_epoch(known.epoch)
        .with_topics(topics)
}

/// The producers that wrote to some partitions.
pub(crate) fn describe_producers(context: &Context, request: DescribeProducersRequest) -> DescribeProducersResponse {
    let topics = request.topics.into_iter().map(|topic| {
        let partitions = topic.partition_indexes.iter().map(|&index| {
            let answer = PartitionResponse::default().with_partition_index(index);
            match context.topics.partition(&topic.name, index) {
                Some(partition) => answer.with_active_producers(partition.producers().iter().map(producer).collect()),
                None => answer.with_error_code(ResponseError::UnknownTopicOrPartition.code()),
            }
        });
        let partitions = partitions.collect();
        TopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions)
    });
    DescribeProducersResponse::default().with_topics(topics.collect())
}

fn producer(known: &Described) -> ProducerState {
    ProducerState::default()
        .with_producer_id(ProducerId(known.id))
        .with_producer_epoch(known.epoch.into())
        .with_last_sequence(known.last_sequence)
        .with_last_timestamp(known.last_timestamp)
        .with_coordinator_epoch(NO_EPOCH)
        .with_current_txn_start_offset(known.open_since.unwrap_or(NONE))
}
