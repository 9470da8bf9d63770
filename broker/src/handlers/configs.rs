//! Describing and changing the settings of topics, and describing the node's.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use kafka_protocol::ResponseError;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use kafka_protocol::messages::incremental_alter_configs_request::{AlterConfigsResource, AlterableConfig};
use kafka_protocol::messages::incremental_alter_configs_response::AlterConfigsResourceResponse;
use kafka_protocol::messages::{
    AlterConfigsRequest, AlterConfigsResponse, DescribeConfigsRequest, DescribeConfigsResponse,
    IncrementalAlterConfigsRequest, IncrementalAlterConfigsResponse, alter_configs_response,
};

use super::text;
use super::topics::{SOURCE_DEFAULT, SOURCE_TOPIC};
use crate::catalog::topic_config::{self, Kind, SETTINGS, Setting};
use crate::catalog::{Event, Refused};
use crate::context::{Context, NODE_ID};

const RESOURCE_TOPIC: i8 = 2;
const RESOURCE_BROKER: i8 = 4;
/// Source of a value that the embedding program set.
const SOURCE_STATIC_BROKER: i8 = 4;

/// The settings of topics, or of the node.
pub(crate) fn describe(context: &Context, request: DescribeConfigsRequest) -> DescribeConfigsResponse {
    let synonyms = request.include_synonyms;
    let results = request.resources.iter().map(|resource| {
        let result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match describe_one(context, resource, synonyms) {
            Ok(configs) => result.with_configs(configs).with_error_message(None),
            Err(refused) => {
                result.with_error_code(refused.error.code()).with_error_message(Some(text(refused.message)))
            }
        }
    });
    DescribeConfigsResponse::default().with_results(results.collect())
}

fn describe_one(
    context: &Context,
    resource: &DescribeConfigsResource,
    synonyms: bool,
) -> Result<Vec<DescribeConfigsResourceResult>, Refused> {
    let wanted = |name: &str| match &resource.configuration_keys {
        Some(keys) => keys.iter().any(|key| key.as_str() == name),
        None => true,
    };
    match resource.resource_type {
        RESOURCE_TOPIC => {
            let set = topic_settings(context, &resource.resource_name)?;
            let settings = SETTINGS.iter().filter(|setting| wanted(setting.name));
            Ok(settings.map(|setting| entry(context, setting, &set, synonyms)).collect())
        }
        RESOURCE_BROKER => {
            if resource.resource_name.as_str() != NODE_ID.to_string() {
                let message = format!("the only node of this cluster is {NODE_ID}");
                return Err(Refused::new(ResponseError::InvalidRequest, message));
            }
            let all = broker_settings(context);
            Ok(all.into_iter().filter(|(name, _)| wanted(name)).map(broker_entry).collect())
        }
        _ => {
            let message = "only topics and the node have settings here";
            Err(Refused::new(ResponseError::InvalidRequest, message))
        }
    }
}

fn topic_settings(context: &Context, name: &str) -> Result<BTreeMap<String, String>, Refused> {
    let found = context.store.read(|c| c.topics().get(name).map(|topic| topic.config.clone()));
    found.ok_or_else(|| {
        let message = format!("topic `{name}` does not exist");
        Refused::new(ResponseError::UnknownTopicOrPartition, message)
    })
}

fn entry(
    context: &Context,
    setting: &Setting,
    set: &BTreeMap<String, String>,
    synonyms: bool,
) -> DescribeConfigsResourceResult {
    let source = if set.contains_key(setting.name) { SOURCE_TOPIC } else { SOURCE_DEFAULT };
    let value = topic_config::effective(setting, set, &context.config);
    let mut known_as = Vec::new();
    if synonyms {
        let synonym = |value: String, source| {
            DescribeConfigsSynonym::default()
                .with_name(text(setting.name))
                .with_value(Some(text(value)))
                .with_source(source)
        };
        if source == SOURCE_TOPIC {
            known_as.push(synonym(value.clone(), SOURCE_TOPIC));
        }
        known_as.push(synonym(setting.default_value(&context.config), SOURCE_DEFAULT));
    }
    DescribeConfigsResourceResult::default()
        .with_name(text(setting.name))
        .with_value(Some(text(value)))
        .with_config_source(source)
        .with_synonyms(known_as)
        .with_config_type(setting.kind as i8)
        .with_documentation(Some(text(setting.doc)))
}

fn broker_settings(context: &Context) -> Vec<(&'static str, String)> {
    let config = &context.config;
    vec![
        ("auto.create.topics.enable", config.auto_create_topics.to_string()),
        ("group.max.session.timeout.ms", config.group_max_session_timeout_ms.to_string()),
        ("group.min.session.timeout.ms", config.group_min_session_timeout_ms.to_string()),
        ("max.connections", config.max_connections.to_string()),
        ("message.max.bytes", config.max_message_bytes.to_string()),
        ("num.partitions", config.default_partitions.to_string()),
        ("socket.request.max.bytes", config.max_request_bytes.to_string()),
    ]
}

fn broker_entry((name, value): (&'static str, String)) -> DescribeConfigsResourceResult {
    DescribeConfigsResourceResult::default()
        .with_name(text(name))
        .with_value(Some(text(value)))
        .with_read_only(true)
        .with_config_source(SOURCE_STATIC_BROKER)
        .with_documentation(None)
}

/// Changes settings of topics. The node's are fixed by the program that embeds it.
pub(crate) fn alter(context: &Context, request: IncrementalAlterConfigsRequest) -> IncrementalAlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        let response = AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match alter_one(context, resource, request.validate_only) {
            Ok(()) => response.with_error_message(None),
            Err(refused) => {
                response.with_error_code(refused.error.code()).with_error_message(Some(text(refused.message)))
            }
        }
    });
    IncrementalAlterConfigsResponse::default().with_responses(responses.collect())
}

fn alter_one(context: &Context, resource: &AlterConfigsResource, validate_only: bool) -> Result<(), Refused> {
    let target = (resource.resource_type, resource.resource_name.as_str());
    set_topic(context, target, validate_only, |config| {
        resource.configs.iter().try_for_each(|change| apply(context, config, change))
    })
}

/// Replaces all settings of topics: what a request does not name is at its default afterwards.
pub(crate) fn replace(context: &Context, request: AlterConfigsRequest) -> AlterConfigsResponse {
    let responses = request.resources.iter().map(|resource| {
        let target = (resource.resource_type, resource.resource_name.as_str());
        let outcome = set_topic(context, target, request.validate_only, |config| {
            config.clear();
            for setting in &resource.configs {
                let Some(value) = &setting.value else { continue };
                topic_config::check(&setting.name, value)?;
                config.insert(setting.name.to_string(), value.to_string());
            }
            Ok(())
        });
        let response = alter_configs_response::AlterConfigsResourceResponse::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match outcome {
            Ok(()) => response.with_error_message(None),
            Err(refused) => {
                response.with_error_code(refused.error.code()).with_error_message(Some(text(refused.message)))
            }
        }
    });
    AlterConfigsResponse::default().with_responses(responses.collect())
}

/// Applies `change` to the settings of a topic, in the catalog and in its logs.
fn set_topic(
    context: &Context,
    (kind, name): (i8, &str),
    validate_only: bool,
    change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<(), Refused>,
) -> Result<(), Refused> {
    if kind != RESOURCE_TOPIC {
        let message = "only settings of topics can be changed while the broker runs";
        return Err(Refused::new(ResponseError::InvalidRequest, message));
    }
    let _changing = context.topic_changes.lock().unwrap_or_else(PoisonError::into_inner);
    let topic = context.topics.get(name).ok_or_else(|| {
        let message = format!("topic `{name}` does not exist");
        Refused::new(ResponseError::UnknownTopicOrPartition, message)
    })?;
    let rules = context.store.update(|catalog| {
        let mut config = catalog.topics().get(name).map(|meta| meta.config.clone()).unwrap_or_default();
        change(&mut config)?;
        let rules = topic_config::rules(&config, &context.config);
        let event = Event::TopicConfigured { name: name.to_owned(), config };
        Ok::<_, Refused>((rules, if validate_only { Vec::new() } else { vec![event] }))
    })?;
    if !validate_only {
        topic.set_rules(rules);
    }
    Ok(())
}

fn apply(context: &Context, config: &mut BTreeMap<String, String>, change: &AlterableConfig) -> Result<(), Refused> {
    let name = change.name.as_str();
    let invalid = |message: String| Err(Refused::new(ResponseError::InvalidConfig, message));
    let Some(setting) = topic_config::setting(name) else {
        return invalid(format!("setting `{name}` is not known to this broker"));
    };
    let value = change.value.as_ref().map(|value| value.to_string()).unwrap_or_default();
    let now = topic_config::effective(setting, config, &context.config);
    let listed = || now.split(',').map(str::trim).filter(|word| !word.is_empty());
    let new = match change.config_operation {
        0 => value,
        1 => {
            config.remove(name);
            return Ok(());
        }
        2 | 3 if setting.kind != Kind::List => {
            return invalid(format!("`{name}` is not a list"));
        }
        2 => listed().chain(value.split(',').map(str::trim)).collect::<Vec<_>>().join(","),
        3 => {
            let gone: Vec<&str> = value.split(',').map(str::trim).collect();
            listed().filter(|word| !gone.contains(word)).collect::<Vec<_>>().join(",")
        }
        other => return invalid(format!("operation {other} is not known")),
    };
    topic_config::check(name, &new)?;
    config.insert(name.to_owned(), new);
    Ok(())
}
