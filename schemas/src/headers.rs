//! Kafka header names and the reasons of rejection.

use serde::{Deserialize, Serialize};

/// Version of the model that a request asks for.
pub const MODEL_VERSION: &str = "model-version";
/// Milliseconds after the record timestamp until which an answer is useful.
pub const DEADLINE_MS: &str = "deadline-ms";
/// Priority class of a request: one of [`PRIORITIES`]; absent is `normal`.
pub const PRIORITY: &str = "priority";
/// Values of [`PRIORITY`], the first goes first. `batch` is background work: it takes what nothing else needs, has a day
/// unless `deadline-ms` says otherwise, and is no load to scale for.
pub const PRIORITIES: [&str; 3] = ["high", "normal", "batch"];
/// Requests of a partition with an equal value are served one after the other, in the order of the log.
pub const ORDER_KEY: &str = "order-key";
/// Row of the input that a request of `barista score` was made from, `<run>/<partition>/<number>`.
pub const SCORE_ROW: &str = "score-row";
/// Echoed from request to result.
pub const CORRELATION_ID: &str = "correlation-id";
/// W3C trace context.
pub const TRACEPARENT: &str = "traceparent";
/// Length of the JSON part when tensors follow in binary.
pub const INFERENCE_HEADER_CONTENT_LENGTH: &str = "Inference-Header-Content-Length";
/// Short reason of a rejection, one of [`Reason`].
pub const REASON: &str = "reason";
/// What exactly was wrong, naming the field.
pub const DETAIL: &str = "detail";
/// Topic of the rejected record.
pub const SOURCE_TOPIC: &str = "source-topic";
/// Partition of the rejected record.
pub const SOURCE_PARTITION: &str = "source-partition";
/// Offset of the rejected record.
pub const SOURCE_OFFSET: &str = "source-offset";
/// MQTT topic of a rejected telemetry message.
pub const MQTT_TOPIC: &str = "mqtt-topic";
/// Receive time of a rejected telemetry message, milliseconds since the Unix epoch.
pub const RECEIVED_AT: &str = "received-at";

/// Why a record went to a rejected topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The MQTT topic does not have the levels of its protocol.
    BadTopic,
    /// The payload is not JSON, or not the JSON of its protocol.
    InvalidJson,
    /// A required field is absent.
    MissingField,
    /// A field has a type or value that cannot be used.
    BadField,
    /// No decoder knows this topic.
    UnknownFormat,
    /// The payload is larger than the limit.
    TooLarge,
    /// The request names a model version that this service does not have.
    UnknownModelVersion,
    /// An input's shape is not the model's.
    BadShape,
    /// An input's datatype is not the model's.
    BadDatatype,
    /// The deadline had passed when the request was looked at.
    DeadlinePast,
    /// The deadline cannot be met with the queue as it is.
    WouldMissDeadline,
    /// Shed because the queue is full.
    Overloaded,
    /// The model failed on this input.
    InferenceFailed,
    /// The node stops and cannot serve it any more.
    ShuttingDown,
}

impl Reason {
    /// The header value: the kebab-case name.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::BadTopic => "bad-topic",
            Reason::InvalidJson => "invalid-json",
            Reason::MissingField => "missing-field",
            Reason::BadField => "bad-field",
            Reason::UnknownFormat => "unknown-format",
            Reason::TooLarge => "too-large",
            Reason::UnknownModelVersion => "unknown-model-version",
            Reason::BadShape => "bad-shape",
            Reason::BadDatatype => "bad-datatype",
            Reason::DeadlinePast => "deadline-past",
            Reason::WouldMissDeadline => "would-miss-deadline",
            Reason::Overloaded => "overloaded",
            Reason::InferenceFailed => "inference-failed",
            Reason::ShuttingDown => "shutting-down",
        }
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
