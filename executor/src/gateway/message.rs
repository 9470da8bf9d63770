//! One request and one answer as both protocols and both paths understand them. Pure.
//!
//! A request is what a record of `prediction.requests.<service>` holds: JSON of the Open Inference Protocol, with the
//! tensors behind it where they are binary. HTTP brings it in that form; gRPC is turned into it (`grpc_codec`). So the
//! node validates every request in one place, however it came.

use super::failure::{Code, Failure};
use bytes::Bytes;
use runtime::{Headers, OutRecord, Record};
use schemas::EpochMs;
use schemas::headers;
use serde::Deserialize;

/// A request for inference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) service: String,
    /// Absent: any version.
    pub(crate) version: Option<String>,
    /// JSON, then the binary tensors.
    pub(crate) body: Bytes,
    /// Length of the JSON when tensors follow.
    pub(crate) json_length: Option<usize>,
    /// How long an answer is useful; absent: the service's SLO.
    pub(crate) deadline_ms: Option<u32>,
    /// Headers that are handed on as they came, see [`HANDED_ON`].
    pub(crate) handed_on: Vec<(&'static str, Bytes)>,
}

impl Call {
    /// Headers that a record of it has.
    pub(crate) fn headers(&self) -> Headers {
        let mut all = Headers::default();
        if let Some(length) = self.json_length {
            all.push(headers::INFERENCE_HEADER_CONTENT_LENGTH, length.to_string());
        }
        if let Some(version) = &self.version {
            all.push(headers::MODEL_VERSION, version.clone());
        }
        if let Some(deadline_ms) = self.deadline_ms {
            all.push(headers::DEADLINE_MS, deadline_ms.to_string());
        }
        for (name, value) in &self.handed_on {
            all.push(*name, value.clone());
        }
        all
    }

    /// As a record that was read from nowhere.
    pub(crate) fn into_record(self, now_ms: EpochMs) -> Record {
        Record {
            topic: String::new(),
            // Order is kept among the requests of one partition, and apart from Kafka's.
            partition: -1,
            offset: 0,
            timestamp_ms: now_ms,
            key: None,
            headers: self.headers(),
            value: Some(self.body),
        }
    }
}

/// Headers and metadata that reach the node as they came.
const HANDED_ON: [&str; 3] = [headers::TRACEPARENT, headers::PRIORITY, headers::ORDER_KEY];

/// Those of them that a request has. A `priority` that is none of ours is left out: HTTP has a header of this name.
pub(crate) fn handed_on<'a>(get: impl Fn(&'static str) -> Option<&'a [u8]>) -> Vec<(&'static str, Bytes)> {
    let is_ours = |name: &str, value: &[u8]| {
        name != headers::PRIORITY || headers::PRIORITIES.iter().any(|p| p.as_bytes() == value)
    };
    let present = HANDED_ON.iter().filter_map(|name| get(name).map(|value| (*name, value)));
    present.filter(|(name, value)| is_ours(name, value)).map(|(name, v)| (name, Bytes::copy_from_slice(v))).collect()
}

/// An answer: JSON, then the binary tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) body: Bytes,
    /// Length of the JSON when tensors follow.
    pub(crate) json_length: Option<usize>,
}

impl Answer {
    fn new(value: Option<Bytes>, headers: &Headers) -> Result<Self, Failure> {
        let body = value.unwrap_or_default();
        let json_length = match headers.get_str(headers::INFERENCE_HEADER_CONTENT_LENGTH) {
            None => None,
            Some(text) => match text.parse().ok().filter(|length| *length <= body.len()) {
                Some(length) => Some(length),
                None => {
                    let what = headers::INFERENCE_HEADER_CONTENT_LENGTH;
                    let message = format!("the result's {what} is `{text}`, it has {} bytes", body.len());
                    return Err(Failure::new(Code::Internal, message));
                }
            },
        };
        Ok(Answer { body, json_length })
    }

    /// From what the node would have written.
    pub(crate) fn of_node(out: OutRecord) -> Result<Self, Failure> {
        Answer::new(out.value, &out.headers)
    }

    /// From a record of the results topic.
    pub(crate) fn of_record(record: Record) -> Result<Self, Failure> {
        Answer::new(record.value, &record.headers)
    }

    /// JSON and binary part.
    pub(crate) fn parts(&self) -> (Bytes, Bytes) {
        let length = self.json_length.unwrap_or(self.body.len()).min(self.body.len());
        (self.body.slice(..length), self.body.slice(length..))
    }
}

/// Triton's `timeout` parameter, microseconds, of a request's JSON. JSON that cannot be read is left to who serves it.
pub(crate) fn timeout_us(json: &[u8]) -> Result<Option<u64>, Failure> {
    #[derive(Deserialize)]
    struct Outer {
        parameters: Option<Parameters>,
    }
    #[derive(Deserialize)]
    struct Parameters {
        timeout: Option<serde_json::Value>,
    }
    // Few requests have it: looking for the word is cheaper than reading them all twice.
    if !std::str::from_utf8(json).is_ok_and(|text| text.contains("\"timeout\"")) {
        return Ok(None);
    }
    let Ok(Outer { parameters: Some(Parameters { timeout: Some(value) }) }) = serde_json::from_slice(json) else {
        return Ok(None);
    };
    match value.as_u64() {
        Some(us) => Ok(Some(us).filter(|us| *us > 0)),
        None => {
            let message = format!("bad-field: parameters.timeout: `{value}` is not a number of microseconds");
            Err(Failure::new(Code::BadRequest, message))
        }
    }
}

/// How long an answer is useful: header `deadline-ms`, else the `timeout` parameter.
pub(crate) fn deadline(header: Option<&str>, timeout_us: Option<u64>) -> Result<Option<u32>, Failure> {
    match (header, timeout_us) {
        (Some(text), _) => text.parse().map(Some).map_err(|_| {
            let message = format!("bad-field: header deadline-ms: `{text}` is not a number of milliseconds");
            Failure::new(Code::BadRequest, message)
        }),
        (None, Some(us)) => Ok(Some(u32::try_from(us.div_ceil(1000)).unwrap_or(u32::MAX))),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_is_the_record_that_kafka_would_carry() {
        let call = Call {
            service: "a".to_owned(),
            version: Some("3".to_owned()),
            body: Bytes::from_static(b"{}1234"),
            json_length: Some(2),
            deadline_ms: Some(50),
            handed_on: handed_on(|name| match name {
                "priority" => Some(b"high".as_slice()),
                "traceparent" => Some(b"00-x".as_slice()),
                _ => None,
            }),
        };
        let record = call.into_record(7);
        assert_eq!(record.timestamp_ms, 7);
        let h = |name: &str| record.headers.get_str(name);
        assert_eq!(h(headers::INFERENCE_HEADER_CONTENT_LENGTH), Some("2"));
        assert_eq!((h("model-version"), h("deadline-ms"), h("traceparent")), (Some("3"), Some("50"), Some("00-x")));
        assert_eq!((h("priority"), h("order-key")), (Some("high"), None));
        let browser = handed_on(|name| (name == "priority").then_some(b"u=1, i".as_slice()));
        assert!(browser.is_empty(), "RFC 9218's header of the same name is another thing");
    }

    #[test]
    fn the_timeout_is_a_parameter_and_nothing_else() {
        let us = |json: &str| timeout_us(json.as_bytes());
        assert_eq!(us(r#"{"parameters":{"timeout":1500}}"#), Ok(Some(1500)));
        assert_eq!(us(r#"{"parameters":{"timeout":0}}"#), Ok(None), "Triton's word for none");
        assert_eq!(us(r#"{"id":"timeout"}"#), Ok(None));
        assert_eq!(us(r#"{"timeout":3}"#), Ok(None));
        assert_eq!(us(r#"{"parameters":{"timeout":3"#), Ok(None), "left to who serves it");
        let failure = us(r#"{"parameters":{"timeout":"soon"}}"#).unwrap_err();
        assert!(failure.code == Code::BadRequest && failure.message.contains("parameters.timeout"));
        assert_eq!(deadline(None, Some(1500)), Ok(Some(2)));
        assert_eq!(deadline(Some("9"), Some(1500)), Ok(Some(9)));
        assert!(deadline(Some("soon"), None).unwrap_err().message.contains("deadline-ms"));
        assert_eq!(deadline(None, None), Ok(None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100), length in any::<String>()) {
            let _ = timeout_us(&bytes);
            let mut headers = Headers::default();
            headers.push(headers::INFERENCE_HEADER_CONTENT_LENGTH, length);
            if let Ok(answer) = Answer::new(Some(bytes.clone().into()), &headers) {
                let (json, binary) = answer.parts();
                prop_assert_eq!([json, binary].concat(), bytes);
            }
        }
    }
}
