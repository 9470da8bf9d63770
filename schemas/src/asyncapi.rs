//! The AsyncAPI 3.0 document of all topics, generated from the same types.

use crate::headers;
use crate::registry::{Contract, contracts};
use serde_json::{Map, Value, json};

/// The document. Channels are topics, messages are contracts; headers are listed where a topic has them.
pub fn document() -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut schemas = Map::new();
    for contract in contracts() {
        let Some(topic) = contract.topic else {
            continue;
        };
        let channel_id = topic.trim_end_matches(".<service>").replace('.', "_");
        insert_schema(&mut schemas, &contract);
        let channel = channels.entry(channel_id.clone()).or_insert_with(|| channel(topic));
        channel["messages"][contract.name] = message(&contract);
        operations.insert(
            format!("write_{}", contract.name.replace('.', "_")),
            json!({
                "action": "send",
                "channel": {"$ref": format!("#/channels/{channel_id}")},
                "summary": format!("{}, written by {}", contract.summary, contract.written_by),
                "messages": [{"$ref": format!("#/channels/{channel_id}/messages/{}", contract.name)}],
            }),
        );
    }
    for (topic, summary, extra) in [
        ("telemetry.rejected", "original bytes of a telemetry message that could not be decoded", true),
        ("prediction.rejected", "original bytes of a request that was not served", false),
    ] {
        channels.insert(topic.replace('.', "_"), rejected_channel(topic, summary, extra));
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Barista",
            "version": "1",
            "description": "Topics of Barista. Names take the optional prefix kafka.topic_prefix.",
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"schemas": schemas},
    })
}

/// Definitions move to the document's own components, since `#/$defs` would point into the document, not the schema.
fn insert_schema(schemas: &mut Map<String, Value>, contract: &Contract) {
    let mut schema = contract.json_schema();
    if let Some(object) = schema.as_object_mut() {
        object.shift_remove("$id");
        object.shift_remove("$schema");
        if let Some(Value::Object(definitions)) = object.shift_remove("$defs") {
            for (name, mut definition) in definitions {
                point_at_components(&mut definition);
                schemas.insert(name, definition);
            }
        }
    }
    point_at_components(&mut schema);
    schemas.insert(contract.name.to_owned(), schema);
}

fn point_at_components(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                match value {
                    Value::String(text) if key == "$ref" => *text = text.replace("#/$defs/", "#/components/schemas/"),
                    other => point_at_components(other),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(point_at_components),
        _ => {}
    }
}

fn channel(topic: &str) -> Value {
    let mut channel = json!({"address": topic.replace("<service>", "{service}"), "messages": {}});
    if topic.contains("<service>") {
        channel["parameters"] = json!({"service": {"description": "name of the prediction service"}});
    }
    channel
}

fn message(contract: &Contract) -> Value {
    let mut message = json!({
        "name": contract.name,
        "summary": contract.summary,
        "contentType": "application/json",
        "bindings": {"kafka": {"key": {"type": "string", "description": contract.key}}},
        "payload": {"$ref": format!("#/components/schemas/{}", contract.name)},
    });
    if contract.name.starts_with("prediction.") {
        message["headers"] = header_schema(&[
            (headers::MODEL_VERSION, "version of the model asked for"),
            (headers::DEADLINE_MS, "milliseconds after the record timestamp; default the service's objective"),
            (headers::PRIORITY, "`high`, `normal` (default) or `batch`: background work, which yields to all else"),
            (headers::ORDER_KEY, "requests of a partition with an equal value are served one after the other"),
            (headers::CORRELATION_ID, "echoed"),
            (headers::TRACEPARENT, "W3C trace context"),
            (headers::INFERENCE_HEADER_CONTENT_LENGTH, "length of the JSON part when tensors follow in binary"),
        ]);
    }
    message
}

fn rejected_channel(topic: &str, summary: &str, telemetry: bool) -> Value {
    let mut names = vec![
        (headers::REASON, "why, one word"),
        (headers::DETAIL, "what exactly, naming the field"),
        (headers::SOURCE_TOPIC, "topic of the original"),
        (headers::SOURCE_PARTITION, "partition of the original"),
        (headers::SOURCE_OFFSET, "offset of the original"),
    ];
    if telemetry {
        names.push((headers::MQTT_TOPIC, "MQTT topic"));
        names.push((headers::RECEIVED_AT, "receive time, milliseconds since the Unix epoch"));
    }
    json!({
        "address": topic,
        "messages": {topic: {
            "name": topic,
            "summary": summary,
            "contentType": "application/octet-stream",
            "headers": header_schema(&names),
        }},
    })
}

fn header_schema(names: &[(&str, &str)]) -> Value {
    let properties: Map<String, Value> =
        names.iter().map(|(name, text)| ((*name).to_owned(), json!({"type": "string", "description": text}))).collect();
    json!({"type": "object", "properties": properties})
}
