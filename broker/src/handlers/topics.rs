//! Creating, growing and deleting topics.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};

use kafka_protocol::ResponseError;
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_partitions_response::CreatePartitionsTopicResult;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::create_topics_response::{CreatableTopicConfigs, CreatableTopicResult};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::delete_topics_response::DeletableTopicResult;
use kafka_protocol::messages::{
    BrokerId, CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    DeleteTopicsRequest, DeleteTopicsResponse, TopicName,
};

use super::{text, uuid};
use crate::catalog::topic_config::{self, SETTINGS};
use crate::catalog::{Catalog, Event, Refused, TopicId, TopicMeta};
use crate::context::{Context, NODE_ID, now_ms, random_id};
use crate::topics::Topic;

/// `DescribeConfigs` source of a value that was set for the topic.
pub(crate) const SOURCE_TOPIC: i8 = 1;
/// `DescribeConfigs` source of a value that nobody set.
pub(crate) const SOURCE_DEFAULT: i8 = 5;

/// Creates topics, each on its own: some may succeed while others are refused.
pub(crate) fn create(context: &Context, request: CreateTopicsRequest) -> CreateTopicsResponse {
    let mut seen = BTreeSet::new();
    let mut repeated = BTreeSet::new();
    for topic in &request.topics {
        if !seen.insert(topic.name.clone()) {
            repeated.insert(topic.name.clone());
        }
    }
    // A name asked for twice gets one answer, a refusal.
    let unique = request.topics.iter().filter(|topic| seen.remove(&topic.name));
    let results = unique.map(|topic| {
        let outcome = if repeated.contains(&topic.name) {
            let message = "the request names this topic more than once";
            Err(Refused::new(ResponseError::InvalidRequest, message))
        } else {
            create_one(context, topic, request.validate_only)
        };
        result_of(context, topic, outcome)
    });
    CreateTopicsResponse::default().with_topics(results.collect())
}

fn result_of(context: &Context, asked: &CreatableTopic, outcome: Result<TopicMeta, Refused>) -> CreatableTopicResult {
    let result = CreatableTopicResult::default().with_name(asked.name.clone());
    match outcome {
        Ok(meta) => result
            .with_topic_id(uuid(meta.id))
            .with_num_partitions(meta.partitions)
            .with_replication_factor(1)
            .with_error_message(None)
            .with_configs(Some(configs_of(context, &meta.config))),
        Err(refused) => result
            .with_error_code(refused.error.code())
            .with_error_message(Some(text(refused.message)))
            .with_num_partitions(-1)
            .with_replication_factor(-1)
            .with_configs(None),
    }
}

fn configs_of(context: &Context, set: &BTreeMap<String, String>) -> Vec<CreatableTopicConfigs> {
    let one = |setting: &topic_config::Setting| {
        let is_set = set.contains_key(setting.name);
        CreatableTopicConfigs::default()
            .with_name(text(setting.name))
            .with_value(Some(text(topic_config::effective(setting, set, &context.config))))
            .with_config_source(if is_set { SOURCE_TOPIC } else { SOURCE_DEFAULT })
    };
    SETTINGS.iter().map(one).collect()
}

fn create_one(context: &Context, asked: &CreatableTopic, validate_only: bool) -> Result<TopicMeta, Refused> {
    let partitions = partitions_of(context, asked)?;
    let mut config = BTreeMap::new();
    for setting in &asked.configs {
        // A null value means the default, which needs no entry.
        let Some(value) = &setting.value else { continue };
        topic_config::check(&setting.name, value)?;
        config.insert(setting.name.to_string(), value.to_string());
    }
    let log_starts = BTreeMap::new();
    let meta = TopicMeta { id: random_id(), partitions, config, log_starts };
    if validate_only {
        context.store.read(|catalog| check_new(context, catalog, &asked.name, &meta))?;
        return Ok(meta);
    }
    bring_up(context, &asked.name, &meta)?;
    Ok(meta)
}

fn partitions_of(context: &Context, asked: &CreatableTopic) -> Result<i32, Refused> {
    if !asked.assignments.is_empty() {
        if asked.num_partitions != -1 || asked.replication_factor != -1 {
            let message = "give either partitions and replicas or an assignment, not both";
            return Err(Refused::new(ResponseError::InvalidRequest, message));
        }
        return assigned_partitions(asked);
    }
    if !matches!(asked.replication_factor, -1 | 1) {
        let message = format!("replication factor {} is not possible: this broker is alone", asked.replication_factor);
        return Err(Refused::new(ResponseError::InvalidReplicationFactor, message));
    }
    match asked.num_partitions {
        -1 => Ok(context.config.default_partitions),
        count @ 1.. => Ok(count),
        count => {
            let message = format!("{count} is not a number of partitions");
            Err(Refused::new(ResponseError::InvalidPartitions, message))
        }
    }
}

fn assigned_partitions(asked: &CreatableTopic) -> Result<i32, Refused> {
    let mut indexes: Vec<i32> = asked.assignments.iter().map(|a| a.partition_index).collect();
    indexes.sort_unstable();
    let is_whole = indexes.iter().zip(0..).all(|(index, expected)| *index == expected);
    let here = [BrokerId(NODE_ID)];
    if !is_whole || asked.assignments.iter().any(|a| a.broker_ids != here) {
        let message = format!("partitions must count from 0 and be assigned to node {NODE_ID}");
        return Err(Refused::new(ResponseError::InvalidReplicaAssignment, message));
    }
    i32::try_from(indexes.len()).map_err(|_| ResponseError::InvalidPartitions.into())
}

fn check_new(context: &Context, catalog: &Catalog, name: &str, meta: &TopicMeta) -> Result<(), Refused> {
    catalog.check_new_topic(name)?;
    check_room(context, catalog, meta.partitions)
}

fn check_room(context: &Context, catalog: &Catalog, more: i32) -> Result<(), Refused> {
    let more = usize::try_from(more).unwrap_or(usize::MAX);
    let limit = context.config.max_partitions;
    if catalog.total_partitions().saturating_add(more) > limit {
        let message = format!("this broker holds at most {limit} partitions");
        return Err(Refused::new(ResponseError::PolicyViolation, message));
    }
    Ok(())
}

/// Writes the topic down and opens it. Files are created, so others go on meanwhile.
fn bring_up(context: &Context, name: &str, meta: &TopicMeta) -> Result<Arc<Topic>, Refused> {
    tokio::task::block_in_place(|| {
        let _changing = context.topic_changes.lock().unwrap_or_else(PoisonError::into_inner);
        context.store.update(|catalog| {
            check_new(context, catalog, name, meta)?;
            let created = Event::TopicCreated {
                name: name.to_owned(),
                id: meta.id,
                partitions: meta.partitions,
                config: meta.config.clone(),
            };
            Ok::<_, Refused>(((), vec![created]))
        })?;
        let rules = topic_config::rules(&meta.config, &context.config);
        context.topics.open(name, meta, rules, now_ms()).map_err(|error| {
            tracing::error!(topic = name, %error, "cannot create the logs of a topic");
            let undone = context.store.update(|_| {
                let gone = Event::TopicDeleted { name: name.to_owned() };
                Ok::<_, ResponseError>(((), vec![gone]))
            });
            // If that fails too, the topic is there, unopened, until the next start; logged there.
            undone.unwrap_or_default();
            Refused::new(ResponseError::KafkaStorageError, "cannot create the logs of the topic")
        })
    })
}

/// Creates a topic that a client merely asked about.
pub(crate) fn create_by_default(context: &Context, name: &str) -> Result<Arc<Topic>, ResponseError> {
    let meta = TopicMeta {
        id: random_id(),
        partitions: context.config.default_partitions,
        config: BTreeMap::new(),
        log_starts: BTreeMap::new(),
    };
    bring_up(context, name, &meta).map_err(|refused| refused.error)
}

/// Deletes topics with their records and committed offsets.
pub(crate) fn delete(context: &Context, request: DeleteTopicsRequest, version: i16) -> DeleteTopicsResponse {
    let asked: Vec<DeleteTopicState> = if version >= 6 {
        request.topics
    } else {
        let by_name = |name| DeleteTopicState::default().with_name(Some(name));
        request.topic_names.into_iter().map(by_name).collect()
    };
    let results = asked.into_iter().map(|topic| {
        let name = match &topic.name {
            Some(name) => Ok(name.to_string()),
            None => context
                .topics
                .get_by_id(TopicId(*topic.topic_id.as_bytes()))
                .map(|topic| topic.name.clone())
                .ok_or(ResponseError::UnknownTopicId),
        };
        let outcome = name.and_then(|name| delete_one(context, &name).map(|id| (name, id)));
        let result = DeletableTopicResult::default();
        match outcome {
            Ok((name, id)) => {
                result.with_name(Some(TopicName(text(name)))).with_topic_id(uuid(id)).with_error_message(None)
            }
            Err(error) => result
                .with_name(topic.name)
                .with_topic_id(topic.topic_id)
                .with_error_code(error.code())
                .with_error_message(Some(text(error.to_string()))),
        }
    });
    DeleteTopicsResponse::default().with_responses(results.collect())
}

fn delete_one(context: &Context, name: &str) -> Result<TopicId, ResponseError> {
    tokio::task::block_in_place(|| {
        let _changing = context.topic_changes.lock().unwrap_or_else(PoisonError::into_inner);
        let id = context.store.update(|catalog| {
            let topic = catalog.topics().get(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
            let gone = Event::TopicDeleted { name: name.to_owned() };
            Ok::<_, ResponseError>((topic.id, vec![gone]))
        })?;
        if let Err(error) = context.topics.close(name) {
            // The topic is gone; what is left of its files goes at the next start.
            tracing::warn!(topic = name, %error, "cannot remove the files of a deleted topic");
        }
        Ok(id)
    })
}

/// Adds partitions to topics.
pub(crate) fn create_partitions(context: &Context, request: CreatePartitionsRequest) -> CreatePartitionsResponse {
    let results = request.topics.iter().map(|topic| {
        let result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        match grow(context, topic, request.validate_only) {
            Ok(()) => result.with_error_message(None),
            Err(refused) => {
                result.with_error_code(refused.error.code()).with_error_message(Some(text(refused.message)))
            }
        }
    });
    CreatePartitionsResponse::default().with_results(results.collect())
}

fn grow(context: &Context, asked: &CreatePartitionsTopic, validate_only: bool) -> Result<(), Refused> {
    tokio::task::block_in_place(|| {
        let name = asked.name.as_str();
        let _changing = context.topic_changes.lock().unwrap_or_else(PoisonError::into_inner);
        let topic = context.topics.get(name).ok_or(ResponseError::UnknownTopicOrPartition)?;
        let meta = context.store.update(|catalog| {
            let mut meta = catalog.topics().get(name).cloned().ok_or(ResponseError::UnknownTopicOrPartition)?;
            check_growth(context, catalog, &meta, asked)?;
            meta.partitions = asked.count;
            let added = Event::PartitionsAdded { name: name.to_owned(), total: asked.count };
            Ok::<_, Refused>((meta, if validate_only { Vec::new() } else { vec![added] }))
        })?;
        if validate_only {
            return Ok(());
        }
        context.topics.grow(&topic, &meta, now_ms()).map_err(|error| {
            tracing::error!(topic = name, %error, "cannot create the logs of new partitions");
            ResponseError::KafkaStorageError.into()
        })
    })
}

fn check_growth(
    context: &Context,
    catalog: &Catalog,
    meta: &TopicMeta,
    asked: &CreatePartitionsTopic,
) -> Result<(), Refused> {
    let more = asked.count.saturating_sub(meta.partitions);
    if more <= 0 {
        let message = format!("the topic has {} partitions already, not fewer than {}", meta.partitions, asked.count);
        return Err(Refused::new(ResponseError::InvalidPartitions, message));
    }
    if let Some(assignments) = &asked.assignments {
        let here = [BrokerId(NODE_ID)];
        let fits = i32::try_from(assignments.len()).is_ok_and(|count| count == more);
        if !fits || assignments.iter().any(|a| a.broker_ids != here) {
            let message = format!("each of the {more} new partitions must be on node {NODE_ID}");
            return Err(Refused::new(ResponseError::InvalidReplicaAssignment, message));
        }
    }
    check_room(context, catalog, more)
}
