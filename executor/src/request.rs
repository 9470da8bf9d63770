//! Requests and results on the wire: Open Inference Protocol v2 in, validated rows out, and back. Pure.
//!
//! Invariants:
//! - What cannot be used is a [`Fault`] whose detail names the field; no bytes make this panic.
//! - A [`Prepared`] request fits the signature that it was prepared for: workers need not check again.
//! - A result repeats the request's key, id and headers.
//!
//! Tensors may follow the JSON in binary (the protocol's binary tensor extension): header
//! `Inference-Header-Content-Length` gives the length of the JSON, `binary_data_size` the bytes of each tensor,
//! little-endian. A result carries an output in binary when the request asks for it (`binary_data` of the output, else
//! `binary_data_output` of the request): then it has the same header and its tensors a `binary_data_size`. Otherwise it
//! is plain JSON.

use crate::backend::{Row, Signature, TensorSpec};
use crate::queue::Class;
use bytes::{BufMut, Bytes, BytesMut};
use runtime::{OutRecord, Record};
use schemas::EpochMs;
use schemas::headers::{self, Reason};
use schemas::prediction::{
    InferRequest, InferResponse, Parameters, RequestedOutput, ResultParameters, Tensor, TensorError, decode_request,
};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Why a request is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// For the `reason` header.
    pub reason: Reason,
    /// For the `detail` header: names the field.
    pub detail: String,
}

impl Fault {
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Fault { reason, detail: detail.into() }
    }
}

impl From<TensorError> for Fault {
    fn from(error: TensorError) -> Self {
        Fault { reason: error.reason, detail: error.detail }
    }
}

/// A validated request.
#[derive(Debug, Clone, PartialEq)]
pub struct Prepared {
    /// The sender's id.
    pub id: Option<String>,
    /// Rows, at least one.
    pub rows: Vec<Row>,
    /// Outputs that are wanted.
    pub outputs: Vec<Wanted>,
}

/// An output that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Its place in the signature.
    pub index: usize,
    /// Its elements follow the JSON in binary.
    pub binary: bool,
}

/// What background work has when it names no deadline of its own: a day, milliseconds.
const BATCH_DEADLINE_MS: i64 = 86_400_000;

/// Priority class that the request asks for.
pub fn class(record: &Record) -> Result<Class, Fault> {
    let Some(bytes) = record.headers.get(headers::PRIORITY) else { return Ok(Class::Normal) };
    match bytes {
        b"high" => Ok(Class::High),
        b"normal" => Ok(Class::Normal),
        b"batch" => Ok(Class::Batch),
        other => {
            let text = String::from_utf8_lossy(other);
            let known = headers::PRIORITIES.join(", ");
            Err(Fault::new(Reason::BadField, format!("header priority: `{text}` is not one of {known}")))
        }
    }
}

/// Key of the requests that this one is to be kept in order with.
pub fn order_key(record: &Record) -> Option<u64> {
    record.headers.get(headers::ORDER_KEY).map(|key| {
        let mut hasher = DefaultHasher::new();
        // Order is kept within a partition: equal keys of two partitions need not wait for each other.
        (key, record.partition).hash(&mut hasher);
        hasher.finish()
    })
}

/// When the answer stops being useful: record timestamp plus header `deadline-ms`, else plus the SLO, or a day for
/// background work.
pub fn deadline_ms(record: &Record, class: Class, slo_ms: f64) -> Result<EpochMs, Fault> {
    let Some(bytes) = record.headers.get(headers::DEADLINE_MS) else {
        let default_ms = if class == Class::Batch { BATCH_DEADLINE_MS } else { slo_ms.ceil() as i64 };
        return Ok(record.timestamp_ms.saturating_add(default_ms));
    };
    let text = std::str::from_utf8(bytes).unwrap_or("not UTF-8");
    let relative_ms: u32 = text.parse().map_err(|_| {
        Fault::new(Reason::BadField, format!("header deadline-ms: `{text}` is not a number of milliseconds"))
    })?;
    Ok(record.timestamp_ms.saturating_add(i64::from(relative_ms)))
}

/// Model version that the request asks for.
pub fn version(record: &Record) -> Result<Option<&str>, Fault> {
    match record.headers.get(headers::MODEL_VERSION) {
        None => Ok(None),
        Some(bytes) => std::str::from_utf8(bytes)
            .map(Some)
            .map_err(|_| Fault::new(Reason::UnknownModelVersion, "header model-version: not UTF-8")),
    }
}

/// Decodes and validates a request against a model's signature; at most `max_rows` rows.
pub fn prepare(record: &Record, signature: &Signature, max_rows: u32) -> Result<Prepared, Fault> {
    let value = record.value.clone().ok_or_else(|| Fault::new(Reason::InvalidJson, "request: the record is empty"))?;
    let (json, binary) = split_binary(record, value)?;
    let request = decode_request(&json)?;
    let tensors = tensors_in_order(&request, signature)?;
    let mut rows: Vec<Row> = Vec::new();
    let mut blobs = blobs(&request, binary)?;
    for (i, spec) in signature.inputs.iter().enumerate() {
        let (position, tensor) = tensors[i];
        refuse_unserved(&tensor.parameters, &format!("inputs[`{}`].parameters", spec.name))?;
        let n = row_count(tensor, spec, signature, max_rows)?;
        if i == 0 {
            rows = vec![Vec::with_capacity(signature.inputs.len()); n];
        } else if n != rows.len() {
            let detail = format!("inputs[`{}`].shape: {n} rows, the first input has {}", spec.name, rows.len());
            return Err(Fault::new(Reason::BadShape, detail));
        }
        let data = match blobs[position].take() {
            Some(blob) => from_binary(tensor, &blob)?,
            None => tensor.to_fp32()?,
        };
        if let Some(at) = data.iter().position(|x| !x.is_finite()) {
            let detail = format!("inputs[`{}`].data: element {at} is not a finite 32-bit float", spec.name);
            return Err(Fault::new(Reason::BadField, detail));
        }
        let elements = spec.elements();
        for (r, row) in rows.iter_mut().enumerate() {
            row.push(data[r * elements..(r + 1) * elements].to_vec());
        }
    }
    Ok(Prepared { outputs: wanted_outputs(&request, signature)?, id: request.id, rows })
}

/// JSON part and binary part of a value.
fn split_binary(record: &Record, value: Bytes) -> Result<(Bytes, Option<Bytes>), Fault> {
    let Some(bytes) = record.headers.get(headers::INFERENCE_HEADER_CONTENT_LENGTH) else {
        return Ok((value, None));
    };
    let length = std::str::from_utf8(bytes).ok().and_then(|t| t.parse::<usize>().ok()).filter(|n| *n <= value.len());
    let length = length.ok_or_else(|| {
        let detail = format!(
            "header {}: not a length within the {} bytes of the record",
            headers::INFERENCE_HEADER_CONTENT_LENGTH,
            value.len()
        );
        Fault::new(Reason::BadField, detail)
    })?;
    Ok((value.slice(..length), Some(value.slice(length..))))
}

/// The binary data of each input, by position in the request.
fn blobs(request: &InferRequest, binary: Option<Bytes>) -> Result<Vec<Option<Bytes>>, Fault> {
    let mut rest = binary.unwrap_or_default();
    let mut blobs = Vec::with_capacity(request.inputs.len());
    for input in &request.inputs {
        let Some(size) = input.parameters.get("binary_data_size") else {
            blobs.push(None);
            continue;
        };
        let size = size.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= rest.len());
        let size = size.ok_or_else(|| {
            let detail = format!("inputs[`{}`].parameters.binary_data_size: {} bytes are left", input.name, rest.len());
            Fault::new(Reason::BadField, detail)
        })?;
        blobs.push(Some(rest.split_to(size)));
    }
    if !rest.is_empty() {
        let detail = format!("inputs: {} binary bytes belong to no tensor", rest.len());
        return Err(Fault::new(Reason::BadField, detail));
    }
    Ok(blobs)
}

fn from_binary(tensor: &Tensor, blob: &Bytes) -> Result<Vec<f32>, Fault> {
    let wanted = tensor.shape.iter().try_fold(4usize, |a, &b| a.checked_mul(b));
    if wanted != Some(blob.len()) {
        let detail =
            format!("inputs[`{}`]: {} binary bytes do not fill shape {:?}", tensor.name, blob.len(), tensor.shape);
        return Err(Fault::new(Reason::BadShape, detail));
    }
    Ok(blob.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// For each input of the signature: its position in the request and the tensor.
fn tensors_in_order<'a>(request: &'a InferRequest, signature: &Signature) -> Result<Vec<(usize, &'a Tensor)>, Fault> {
    for (i, input) in request.inputs.iter().enumerate() {
        if request.inputs[..i].iter().any(|other| other.name == input.name) {
            return Err(Fault::new(Reason::BadField, format!("inputs[`{}`]: given twice", input.name)));
        }
        if !signature.inputs.iter().any(|spec| spec.name == input.name) {
            let detail = format!("inputs[`{}`]: no such input, the model has {}", input.name, names(&signature.inputs));
            return Err(Fault::new(Reason::BadField, detail));
        }
    }
    let find = |spec: &TensorSpec| {
        let found = request.inputs.iter().enumerate().find(|(_, input)| input.name == spec.name);
        found.ok_or_else(|| Fault::new(Reason::MissingField, format!("inputs[`{}`]: absent", spec.name)))
    };
    signature.inputs.iter().map(find).collect()
}

/// Rows of a tensor, after its datatype and shape were checked.
fn row_count(tensor: &Tensor, spec: &TensorSpec, signature: &Signature, max_rows: u32) -> Result<usize, Fault> {
    let wanted = spec.datatype.as_str();
    if tensor.datatype != wanted {
        let detail = format!("inputs[`{}`].datatype: `{}`, expected `{wanted}`", spec.name, tensor.datatype);
        return Err(Fault::new(Reason::BadDatatype, detail));
    }
    if !signature.batched {
        let right = tensor.shape == spec.shape;
        return if right { Ok(1) } else { Err(bad_shape(tensor, &format!("{:?}", spec.shape))) };
    }
    match tensor.shape.split_first() {
        Some((&rows, rest)) if rest == spec.shape && (1..=max_rows as usize).contains(&rows) => Ok(rows),
        _ => {
            let dims: Vec<String> = spec.shape.iter().map(usize::to_string).collect();
            let expected = [vec!["n".to_owned()], dims].concat().join(", ");
            Err(bad_shape(tensor, &format!("[{expected}] with n from 1 to {max_rows}")))
        }
    }
}

fn bad_shape(tensor: &Tensor, expected: &str) -> Fault {
    let detail = format!("inputs[`{}`].shape: {:?}, expected {expected}", tensor.name, tensor.shape);
    Fault::new(Reason::BadShape, detail)
}

fn wanted_outputs(request: &InferRequest, signature: &Signature) -> Result<Vec<Wanted>, Fault> {
    let all_binary = flag(&request.parameters, "binary_data_output", "parameters")?.unwrap_or(false);
    if request.outputs.is_empty() {
        return Ok((0..signature.outputs.len()).map(|index| Wanted { index, binary: all_binary }).collect());
    }
    let find = |output: &RequestedOutput| {
        let name = &output.name;
        let place = format!("outputs[`{name}`].parameters");
        refuse_unserved(&output.parameters, &place)?;
        let index = signature.outputs.iter().position(|spec| spec.name == *name).ok_or_else(|| {
            let detail = format!("outputs[`{name}`]: no such output, the model has {}", names(&signature.outputs));
            Fault::new(Reason::BadField, detail)
        })?;
        let binary = flag(&output.parameters, "binary_data", &place)?.unwrap_or(all_binary);
        Ok(Wanted { index, binary })
    };
    request.outputs.iter().map(find).collect()
}

/// A parameter that is true or false; `place` names where it stands.
fn flag(parameters: &Parameters, name: &str, place: &str) -> Result<Option<bool>, Fault> {
    match parameters.get(name) {
        None => Ok(None),
        Some(serde_json::Value::Bool(value)) => Ok(Some(*value)),
        Some(other) => Err(Fault::new(Reason::BadField, format!("{place}.{name}: `{other}`, expected true or false"))),
    }
}

/// Extensions that change what a tensor means and are not served must not be ignored.
fn refuse_unserved(parameters: &Parameters, place: &str) -> Result<(), Fault> {
    for name in ["classification", "shared_memory_region"] {
        // A count of 0 classes is how some clients say that they want none.
        if parameters.get(name).is_some_and(|value| *value != 0) {
            return Err(Fault::new(Reason::BadField, format!("{place}.{name}: this extension is not served")));
        }
    }
    Ok(())
}

fn names(specs: &[TensorSpec]) -> String {
    specs.iter().map(|s| format!("`{}`", s.name)).collect::<Vec<_>>().join(", ")
}

/// Who answers.
#[derive(Debug, Clone)]
pub struct Answerer {
    /// Full name of the results topic.
    pub topic: String,
    /// Prediction service.
    pub service: String,
    /// Model version.
    pub version: String,
}

/// The result record of a request. `rows` are the outputs of its rows, in order.
pub fn respond(
    answerer: &Answerer,
    signature: &Signature,
    record: &Record,
    request: &Prepared,
    rows: &[Row],
    parameters: ResultParameters,
) -> Result<OutRecord, Fault> {
    let mut outputs = Vec::with_capacity(request.outputs.len());
    let mut blobs = Vec::new();
    for &Wanted { index, binary } in &request.outputs {
        let spec = &signature.outputs[index];
        let batch = signature.batched.then_some(rows.len());
        let shape = batch.into_iter().chain(spec.shape.iter().copied()).collect();
        let data: Vec<f32> = rows.iter().flat_map(|row| row[index].iter().copied()).collect();
        if binary {
            outputs.push(binary_tensor(spec, shape, data.len()));
            blobs.push(data);
        } else {
            let tensor = Tensor::fp32(spec.name.clone(), shape, &data);
            outputs.push(tensor.map_err(|e| Fault::new(Reason::InferenceFailed, format!("output {}", e.detail)))?);
        }
    }
    let response = InferResponse {
        model_name: answerer.service.clone(),
        model_version: Some(answerer.version.clone()),
        id: request.id.clone(),
        parameters,
        outputs,
    };
    let json = serde_json::to_vec(&response)
        .map_err(|e| Fault::new(Reason::InferenceFailed, format!("the result cannot be written as JSON: {e}")))?;
    let mut out = OutRecord::new(answerer.topic.clone());
    out.key = record.key.clone();
    let repeated = |name: &str| name != headers::INFERENCE_HEADER_CONTENT_LENGTH;
    out.headers.0.extend(record.headers.0.iter().filter(|(name, _)| repeated(name)).cloned());
    if blobs.is_empty() {
        out.value = Some(json.into());
    } else {
        out.headers.push(headers::INFERENCE_HEADER_CONTENT_LENGTH, json.len().to_string());
        out.value = Some(followed_by(&json, &blobs));
    }
    Ok(out)
}

fn binary_tensor(spec: &TensorSpec, shape: Vec<usize>, elements: usize) -> Tensor {
    let mut parameters = Parameters::new();
    parameters.insert("binary_data_size".to_owned(), (4 * elements).into());
    Tensor { name: spec.name.clone(), shape, datatype: spec.datatype.as_str().to_owned(), parameters, data: None }
}

fn followed_by(json: &[u8], blobs: &[Vec<f32>]) -> Bytes {
    let binary: usize = blobs.iter().map(|blob| 4 * blob.len()).sum();
    let mut bytes = BytesMut::with_capacity(json.len() + binary);
    bytes.put_slice(json);
    for x in blobs.iter().flatten() {
        bytes.put_f32_le(*x);
    }
    bytes.freeze()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;
    use runtime::Headers;

    fn signature() -> Signature {
        Signature {
            inputs: vec![TensorSpec::fp32("x", vec![2]), TensorSpec::fp32("z", vec![1, 2])],
            outputs: vec![TensorSpec::fp32("y", vec![]), TensorSpec::fp32("w", vec![2])],
            batched: true,
        }
    }

    fn record(value: impl Into<Bytes>, headers: &[(&str, &str)]) -> Record {
        let mut h = Headers::default();
        for (name, value) in headers {
            h.push(*name, value.to_string());
        }
        Record {
            topic: "prediction.requests.a".to_owned(),
            partition: 1,
            offset: 7,
            timestamp_ms: 1000,
            key: Some("k".into()),
            value: Some(value.into()),
            headers: h,
        }
    }

    fn x(shape: &str, datatype: &str, data: &str) -> String {
        format!(r#"{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}"#)
    }

    const Z: &str = r#"{"name":"z","shape":[1,1,2],"datatype":"FP32","data":[[[5,6]]]}"#;

    fn body(inputs: &[&str]) -> String {
        format!(r#"{{"id":"i","inputs":[{}]}}"#, inputs.join(","))
    }

    #[test]
    fn a_request_of_two_rows_is_cut_into_rows() {
        let z = r#"{"name":"z","shape":[2,1,2],"datatype":"FP32","data":[5,6,7,8]}"#;
        let body = body(&[z, &x("[2,2]", "FP32", "[[1,2],[3,4]]")]);
        let prepared = prepare(&record(body, &[]), &signature(), 8).unwrap();
        assert_eq!(prepared.rows, vec![vec![vec![1.0, 2.0], vec![5.0, 6.0]], vec![vec![3.0, 4.0], vec![7.0, 8.0]]]);
        assert_eq!(prepared.outputs, [0, 1].map(|index| Wanted { index, binary: false }));
        assert_eq!(prepared.id.as_deref(), Some("i"));
    }

    #[test]
    fn each_fault_has_its_reason_and_names_its_field() {
        let good = x("[1,2]", "FP32", "[1,2]");
        let with_outputs = format!(r#"{{"inputs":[{good},{Z}],"outputs":[{{"name":"q"}}]}}"#);
        let cases = [
            (body(&[&x("[1,3]", "FP32", "[1,2,3]"), Z]), Reason::BadShape, "inputs[`x`].shape"),
            (body(&[&x("[2]", "FP32", "[1,2]"), Z]), Reason::BadShape, "inputs[`x`].shape"),
            (body(&[&x("[0,2]", "FP32", "[]"), Z]), Reason::BadShape, "inputs[`x`].shape"),
            (body(&[&x("[9,2]", "FP32", "[]"), Z]), Reason::BadShape, "n from 1 to 8"),
            (body(&[&x("[2,2]", "FP32", "[1,2,3,4]"), Z]), Reason::BadShape, "inputs[`z`].shape"),
            (body(&[&x("[1,2]", "FP32", "[1,2,3]"), Z]), Reason::BadShape, "inputs[`x`].data"),
            (body(&[&x("[1,2]", "INT64", "[1,2]"), Z]), Reason::BadDatatype, "inputs[`x`].datatype"),
            (body(&[&x("[1,2]", "FP32", "[1,\"a\"]"), Z]), Reason::BadField, "inputs[`x`].data"),
            (body(&[&x("[1,2]", "FP32", "[1,1e300]"), Z]), Reason::BadField, "inputs[`x`].data"),
            (body(&[&good]), Reason::MissingField, "inputs[`z`]"),
            (body(&[&good, Z, Z]), Reason::BadField, "inputs[`z`]"),
            (body(&[&good, &Z.replace("\"z\"", "\"q\"")]), Reason::BadField, "inputs[`q`]"),
            (with_outputs, Reason::BadField, "outputs[`q`]"),
            ("{".to_owned(), Reason::InvalidJson, "request"),
            (r#"{"id":"i"}"#.to_owned(), Reason::MissingField, "inputs"),
        ];
        for (body, reason, field) in cases {
            let fault = prepare(&record(body.clone(), &[]), &signature(), 8).unwrap_err();
            assert_eq!(fault.reason, reason, "{body}: {fault:?}");
            assert!(fault.detail.contains(field), "{body}: {fault:?}");
        }
    }

    #[test]
    fn tensors_may_follow_in_binary() {
        let json = format!(
            r#"{{"inputs":[{Z},{{"name":"x","shape":[1,2],"datatype":"FP32","parameters":{{"binary_data_size":8}}}}]}}"#
        );
        let mut bytes = json.clone().into_bytes();
        bytes.extend(1.5f32.to_le_bytes());
        bytes.extend((-2.0f32).to_le_bytes());
        let length = json.len().to_string();
        let header = [(headers::INFERENCE_HEADER_CONTENT_LENGTH, length.as_str())];
        let prepared = prepare(&record(bytes.clone(), &header), &signature(), 8).unwrap();
        assert_eq!(prepared.rows, vec![vec![vec![1.5, -2.0], vec![5.0, 6.0]]]);
        bytes.push(0);
        let fault = prepare(&record(bytes.clone(), &header), &signature(), 8).unwrap_err();
        assert_eq!(fault.reason, Reason::BadField, "a byte too many");
        let fault = prepare(&record(json.clone(), &header), &signature(), 8).unwrap_err();
        assert!(fault.detail.contains("binary_data_size"), "{fault:?}");
        let header = [(headers::INFERENCE_HEADER_CONTENT_LENGTH, "99999")];
        assert_eq!(prepare(&record(json, &header), &signature(), 8).unwrap_err().reason, Reason::BadField);
    }

    #[test]
    fn deadlines_come_from_the_header_or_the_slo() {
        assert_eq!(deadline_ms(&record("", &[]), Class::Normal, 99.5), Ok(1100));
        assert_eq!(deadline_ms(&record("", &[]), Class::Batch, 99.5), Ok(1000 + 86_400_000));
        assert_eq!(deadline_ms(&record("", &[("deadline-ms", "250")]), Class::Batch, 99.5), Ok(1250));
        for bad in ["soon", "-1", "1.5", "99999999999"] {
            let fault = deadline_ms(&record("", &[("deadline-ms", bad)]), Class::Normal, 1.0).unwrap_err();
            assert!(fault.reason == Reason::BadField && fault.detail.contains("deadline-ms"), "{fault:?}");
        }
    }

    #[test]
    fn priority_and_order_come_from_headers() {
        let class_of = |value| class(&record("", &[("priority", value)]));
        assert_eq!(class(&record("", &[])), Ok(Class::Normal));
        assert_eq!(
            [class_of("high"), class_of("normal"), class_of("batch")],
            [Ok(Class::High), Ok(Class::Normal), Ok(Class::Batch)]
        );
        let fault = class_of("urgent").unwrap_err();
        assert!(fault.reason == Reason::BadField && fault.detail.contains("priority: `urgent`"), "{fault:?}");
        let order = |value| order_key(&record("", &[("order-key", value)]));
        assert_eq!(order_key(&record("", &[])), None);
        assert!(order("a") == order("a") && order("a") != order("b"));
    }

    #[test]
    fn a_result_repeats_key_id_and_headers() {
        let request = Prepared {
            id: Some("i".to_owned()),
            rows: vec![vec![], vec![]],
            outputs: vec![Wanted { index: 1, binary: false }],
        };
        let rows = vec![vec![vec![1.0], vec![2.0, 3.0]], vec![vec![4.0], vec![5.0, 6.0]]];
        let parameters = ResultParameters {
            node: "n".to_owned(),
            backend: "fake".to_owned(),
            batch_size: 2,
            queue_ms: 0.5,
            infer_ms: 1.5,
            deadline_met: true,
        };
        let answerer =
            Answerer { topic: "prediction.results.a".to_owned(), service: "a".to_owned(), version: "3".to_owned() };
        let sent = record("", &[("correlation-id", "c"), ("Inference-Header-Content-Length", "3")]);
        let out = respond(&answerer, &signature(), &sent, &request, &rows, parameters).unwrap();
        assert_eq!(out.key, sent.key);
        assert_eq!(out.headers.0, [("correlation-id".to_owned(), Bytes::from("c"))]);
        let response: InferResponse = serde_json::from_slice(&out.value.unwrap()).unwrap();
        assert_eq!((response.id.as_deref(), response.model_version.as_deref()), (Some("i"), Some("3")));
        assert_eq!(response.outputs.len(), 1);
        assert_eq!(response.outputs[0].shape, [2, 2]);
        assert_eq!(response.outputs[0].to_fp32().unwrap(), [2.0, 3.0, 5.0, 6.0]);
    }

    #[test]
    fn a_result_that_json_cannot_carry_is_a_fault() {
        let request = Prepared { id: None, rows: vec![vec![]], outputs: vec![Wanted { index: 0, binary: false }] };
        let parameters = ResultParameters {
            node: String::new(),
            backend: String::new(),
            batch_size: 1,
            queue_ms: 0.0,
            infer_ms: 0.0,
            deadline_met: true,
        };
        let answerer = Answerer { topic: String::new(), service: String::new(), version: String::new() };
        let rows = vec![vec![vec![f32::NAN], vec![0.0, 0.0]]];
        let fault = respond(&answerer, &signature(), &record("", &[]), &request, &rows, parameters).unwrap_err();
        assert!(fault.reason == Reason::InferenceFailed && fault.detail.contains("`y`"), "{fault:?}");
    }

    fn answerer() -> Answerer {
        Answerer { topic: "prediction.results.a".to_owned(), service: "a".to_owned(), version: "3".to_owned() }
    }

    fn no_parameters() -> ResultParameters {
        ResultParameters {
            node: String::new(),
            backend: String::new(),
            batch_size: 1,
            queue_ms: 0.0,
            infer_ms: 0.0,
            deadline_met: true,
        }
    }

    #[test]
    fn outputs_come_in_binary_where_the_request_asks_for_it() {
        let good = x("[1,2]", "FP32", "[1,2]");
        let wanted = |parameters: &str, outputs: &str| {
            let body = format!(r#"{{"parameters":{parameters},"inputs":[{good},{Z}],"outputs":{outputs}}}"#);
            let prepared = prepare(&record(body, &[]), &signature(), 8);
            prepared.map(|p| p.outputs.iter().map(|o| (o.index, o.binary)).collect::<Vec<_>>())
        };
        let w = r#"[{"name":"w","parameters":{"binary_data":true}},{"name":"y"}]"#;
        assert_eq!(wanted("{}", w).unwrap(), [(1, true), (0, false)]);
        assert_eq!(wanted(r#"{"binary_data_output":true}"#, "[]").unwrap(), [(0, true), (1, true)]);
        let not_y = r#"[{"name":"y","parameters":{"binary_data":false}}]"#;
        assert_eq!(wanted(r#"{"binary_data_output":true}"#, not_y).unwrap(), [(0, false)]);
        for (parameters, outputs, field) in [
            (r#"{"binary_data_output":1}"#, "[]", "parameters.binary_data_output"),
            ("{}", r#"[{"name":"y","parameters":{"binary_data":"yes"}}]"#, "outputs[`y`].parameters.binary_data"),
            ("{}", r#"[{"name":"y","parameters":{"classification":3}}]"#, "outputs[`y`].parameters.classification"),
        ] {
            let fault = wanted(parameters, outputs).unwrap_err();
            assert!(fault.reason == Reason::BadField && fault.detail.starts_with(field), "{fault:?}");
        }
        let shared = good.replace(r#""data""#, r#""parameters":{"shared_memory_region":"r"},"data""#);
        let fault = prepare(&record(body(&[&shared, Z]), &[]), &signature(), 8).unwrap_err();
        assert!(fault.detail.contains("shared_memory_region"), "{fault:?}");
    }

    proptest! {
        #[test]
        fn a_binary_result_carries_every_float(
            rows in proptest::collection::vec(any::<[f32; 3]>(), 1..5), json_too in any::<bool>(),
        ) {
            let wanted = |index, binary| Wanted { index, binary };
            let outputs = if json_too { vec![wanted(1, true), wanted(0, false)] } else { vec![wanted(1, true)] };
            let finite = rows.iter().all(|row| row[0].is_finite());
            let answers: Vec<Row> = rows.iter().map(|r| vec![vec![r[0]], vec![r[1], r[2]]]).collect();
            let request = Prepared { id: None, rows: vec![vec![]; rows.len()], outputs };
            let out = respond(&answerer(), &signature(), &record("", &[]), &request, &answers, no_parameters());
            prop_assume!(out.is_ok() || (json_too && !finite));
            let Ok(out) = out else { return Ok(()) };
            let value = out.value.unwrap();
            let length: usize = out.headers.get_str(headers::INFERENCE_HEADER_CONTENT_LENGTH).unwrap().parse().unwrap();
            let response: InferResponse = serde_json::from_slice(&value[..length]).unwrap();
            prop_assert_eq!(&response.outputs[0].parameters["binary_data_size"], 8 * rows.len());
            prop_assert!(response.outputs[0].data.is_none());
            let expected: Vec<u8> = rows.iter().flat_map(|r| [r[1].to_le_bytes(), r[2].to_le_bytes()].concat()).collect();
            prop_assert_eq!(&value[length..], expected.as_slice());
            if json_too {
                let y = response.outputs[1].to_fp32().unwrap();
                prop_assert_eq!(y, rows.iter().map(|r| r[0]).collect::<Vec<_>>());
            }
        }

        #[test]
        fn no_bytes_make_preparing_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), length in proptest::option::of("[0-9]{1,4}"),
        ) {
            let headers: Vec<(&str, &str)> =
                length.iter().map(|l| (headers::INFERENCE_HEADER_CONTENT_LENGTH, l.as_str())).collect();
            let _ = prepare(&record(bytes, &headers), &signature(), 8);
        }

        #[test]
        fn mutations_of_a_good_request_are_served_or_refused(at in 0usize..150, with in any::<u8>()) {
            let mut bytes = body(&[&x("[1,2]", "FP32", "[1,2]"), Z]).into_bytes();
            let at = at % bytes.len();
            bytes[at] = with;
            if let Err(fault) = prepare(&record(bytes, &[]), &signature(), 8) {
                prop_assert!(!fault.detail.is_empty());
            }
        }
    }
}
