//! The cluster as clients see it: one node that leads every partition and coordinates every group.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::describe_cluster_response::DescribeClusterBroker;
use kafka_protocol::messages::find_coordinator_response::Coordinator;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiVersionsResponse, BrokerId, DescribeClusterRequest, DescribeClusterResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, MetadataRequest, MetadataResponse, TopicName,
};

use super::{text, topics, uuid};
use crate::catalog::{TopicId, check_topic_name};
use crate::context::{Context, NODE_ID};
use crate::log::batch::LEADER_EPOCH;
use crate::protocol::api::APIS;
use crate::topics::Topic;

/// Authorized operations of a broker without authorization: not known.
const OPERATIONS_UNKNOWN: i32 = i32::MIN;
/// Coordinator kind that transactions ask for.
const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;

/// The requests that are served.
pub(crate) fn api_versions() -> ApiVersionsResponse {
    let versions = APIS.iter().map(|api| {
        ApiVersion::default().with_api_key(api.key as i16).with_min_version(api.min).with_max_version(api.max)
    });
    ApiVersionsResponse::default().with_api_keys(versions.collect())
}

/// The same list under the error that asks a client for an older version.
pub(crate) fn future_api_versions() -> ApiVersionsResponse {
    api_versions().with_error_code(ResponseError::UnsupportedVersion.code())
}

/// Node, topics and partitions; creates topics on demand where that is configured.
pub(crate) fn metadata(context: &Context, request: MetadataRequest, version: i16) -> MetadataResponse {
    let all = match &request.topics {
        None => true,
        Some(topics) => version == 0 && topics.is_empty(),
    };
    let topics = if all {
        context.topics.all().iter().map(|topic| describe_topic(topic)).collect()
    } else {
        let create = context.config.auto_create_topics && request.allow_auto_topic_creation;
        let asked = request.topics.unwrap_or_default();
        asked.into_iter().map(|topic| one_topic(context, topic, create)).collect()
    };
    let broker = MetadataResponseBroker::default()
        .with_node_id(BrokerId(NODE_ID))
        .with_host(text(context.host.as_str()))
        .with_port(context.port.into());
    MetadataResponse::default()
        .with_brokers(vec![broker])
        .with_cluster_id(Some(text(cluster_id(context))))
        .with_controller_id(BrokerId(NODE_ID))
        .with_topics(topics)
        .with_cluster_authorized_operations(OPERATIONS_UNKNOWN)
}

fn cluster_id(context: &Context) -> String {
    context.store.read(|catalog| catalog.cluster_id().to_owned())
}

fn one_topic(context: &Context, asked: MetadataRequestTopic, create: bool) -> MetadataResponseTopic {
    // Kafka's Java client sends an empty name beside an id: the id decides where there is one.
    let found = match &asked.name {
        Some(name) if asked.topic_id.is_nil() => find_or_create(context, name, create),
        _ => context.topics.get_by_id(TopicId(*asked.topic_id.as_bytes())).ok_or(ResponseError::UnknownTopicId),
    };
    match found {
        Ok(topic) => describe_topic(&topic),
        Err(error) => MetadataResponseTopic::default()
            .with_error_code(error.code())
            .with_name(asked.name)
            .with_topic_id(asked.topic_id)
            .with_topic_authorized_operations(OPERATIONS_UNKNOWN),
    }
}

fn find_or_create(context: &Context, name: &str, create: bool) -> Result<std::sync::Arc<Topic>, ResponseError> {
    if let Some(topic) = context.topics.get(name) {
        return Ok(topic);
    }
    check_topic_name(name).map_err(|refused| refused.error)?;
    if !create {
        return Err(ResponseError::UnknownTopicOrPartition);
    }
    match topics::create_by_default(context, name) {
        // Somebody else was faster.
        Err(ResponseError::TopicAlreadyExists) => context.topics.get(name).ok_or(ResponseError::LeaderNotAvailable),
        outcome => outcome,
    }
}

fn describe_topic(topic: &Topic) -> MetadataResponseTopic {
    let partitions = (0..topic.partition_count()).map(|index| {
        MetadataResponsePartition::default()
            .with_partition_index(index)
            .with_leader_id(BrokerId(NODE_ID))
            .with_leader_epoch(LEADER_EPOCH)
            .with_replica_nodes(vec![BrokerId(NODE_ID)])
            .with_isr_nodes(vec![BrokerId(NODE_ID)])
    });
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(topic.name.as_str()))))
        .with_topic_id(uuid(topic.id))
        .with_partitions(partitions.collect())
        .with_topic_authorized_operations(OPERATIONS_UNKNOWN)
}

/// The node, for admin clients.
pub(crate) fn describe(context: &Context, request: DescribeClusterRequest, version: i16) -> DescribeClusterResponse {
    let mut response = DescribeClusterResponse::default()
        .with_cluster_id(text(cluster_id(context)))
        .with_controller_id(BrokerId(NODE_ID))
        .with_cluster_authorized_operations(OPERATIONS_UNKNOWN)
        .with_endpoint_type(request.endpoint_type);
    if version >= 1 && request.endpoint_type != 1 {
        let message = "this broker has no separate controllers";
        response.error_code = ResponseError::UnsupportedEndpointType.code();
        response.error_message = Some(text(message));
        return response;
    }
    let broker = DescribeClusterBroker::default()
        .with_broker_id(BrokerId(NODE_ID))
        .with_host(text(context.host.as_str()))
        .with_port(context.port.into());
    response.with_brokers(vec![broker])
}

/// Every group and every transaction is coordinated here.
pub(crate) fn find_coordinator(
    context: &Context,
    request: FindCoordinatorRequest,
    version: i16,
) -> FindCoordinatorResponse {
    let refusal = match request.key_type {
        GROUP | TRANSACTION => None,
        other => Some((ResponseError::InvalidRequest, format!("this broker knows no coordinators of kind {other}"))),
    };
    if version < 4 {
        let response = FindCoordinatorResponse::default();
        return match refusal {
            Some((error, message)) => response
                .with_error_code(error.code())
                .with_error_message(Some(text(message)))
                .with_node_id(BrokerId(-1))
                .with_port(-1),
            None => response
                .with_node_id(BrokerId(NODE_ID))
                .with_host(text(context.host.as_str()))
                .with_port(context.port.into()),
        };
    }
    let coordinators = request.coordinator_keys.into_iter().map(|key| {
        let coordinator = Coordinator::default().with_key(key);
        match &refusal {
            Some((error, message)) => coordinator
                .with_error_code(error.code())
                .with_error_message(Some(text(message.as_str())))
                .with_node_id(BrokerId(-1))
                .with_port(-1),
            None => coordinator
                .with_node_id(BrokerId(NODE_ID))
                .with_host(text(context.host.as_str()))
                .with_port(context.port.into()),
        }
    });
    FindCoordinatorResponse::default().with_coordinators(coordinators.collect())
}
