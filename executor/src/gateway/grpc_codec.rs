//! Protobuf messages to requests and back. Pure.
//!
//! A gRPC request becomes the JSON of the protocol with all its tensors in binary behind it, and asks for its outputs
//! in binary; so no tensor is ever written as text. Typed contents are written as little-endian bytes of their datatype;
//! `BYTES` elements are each preceded by their length, as the raw representation has them.

use super::failure::{Code, Failure};
use super::message::{Answer, Call};
use super::proto::infer_parameter::ParameterChoice;
use super::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use super::proto::model_infer_response::InferOutputTensor;
use super::proto::{InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse};
use bytes::{BufMut, Bytes, BytesMut};
use schemas::prediction::{InferRequest, InferResponse, Parameters, RequestedOutput, ResultParameters, Tensor};
use std::collections::HashMap;

/// Where a tensor says how many binary bytes are its own.
const BINARY_DATA_SIZE: &str = "binary_data_size";

/// A request as the node takes it, and the `timeout` parameter, microseconds. The caller sets what comes from metadata.
pub(crate) fn to_call(request: ModelInferRequest) -> Result<(Call, Option<u64>), Failure> {
    let mut parameters = to_json(request.parameters, "parameters")?;
    let timeout_us = match parameters.get("timeout") {
        None => None,
        Some(value) => {
            let bad = || bad_field(format!("parameters.timeout: `{value}` is not a number of microseconds"));
            Some(value.as_u64().ok_or_else(bad)?).filter(|us| *us > 0)
        }
    };
    parameters.insert("binary_data_output".to_owned(), true.into());
    let (inputs, blobs) = inputs(request.inputs, request.raw_input_contents)?;
    let outputs = request.outputs.into_iter().map(output).collect::<Result<_, _>>()?;
    let id = Some(request.id).filter(|id| !id.is_empty());
    let json = serde_json::to_vec(&InferRequest { id, parameters, inputs, outputs })
        .map_err(|e| Failure::new(Code::Internal, format!("the request cannot be written as JSON: {e}")))?;
    let mut body = BytesMut::with_capacity(json.len() + blobs.iter().map(Bytes::len).sum::<usize>());
    body.put_slice(&json);
    for blob in blobs {
        body.put(blob);
    }
    let call = Call {
        service: request.model_name,
        version: Some(request.model_version).filter(|version| !version.is_empty()),
        body: body.freeze(),
        json_length: Some(json.len()),
        deadline_ms: None,
        handed_on: Vec::new(),
    };
    Ok((call, timeout_us))
}

fn bad_field(message: String) -> Failure {
    Failure::new(Code::BadRequest, format!("bad-field: {message}"))
}

/// Tensors without their data, and their data.
fn inputs(inputs: Vec<InferInputTensor>, raw: Vec<Bytes>) -> Result<(Vec<Tensor>, Vec<Bytes>), Failure> {
    if !raw.is_empty() && raw.len() != inputs.len() {
        return Err(bad_field(format!("raw_input_contents: {} entries for {} inputs", raw.len(), inputs.len())));
    }
    let mut raw = raw.into_iter();
    let (mut tensors, mut blobs) = (Vec::with_capacity(inputs.len()), Vec::with_capacity(inputs.len()));
    for input in inputs {
        let name = input.name;
        let blob = match (raw.next(), input.contents) {
            (Some(blob), None) => blob,
            (Some(_), Some(_)) => {
                return Err(bad_field(format!("inputs[`{name}`].contents: not together with raw_input_contents")));
            }
            (None, Some(contents)) => typed(&name, &input.datatype, contents)?,
            (None, None) => Bytes::new(),
        };
        let shape = input.shape.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
        let shape = shape.map_err(|_| bad_field(format!("inputs[`{name}`].shape: {:?} is negative", input.shape)))?;
        let mut parameters = to_json(input.parameters, &format!("inputs[`{name}`].parameters"))?;
        parameters.insert(BINARY_DATA_SIZE.to_owned(), blob.len().into());
        tensors.push(Tensor { name, shape, datatype: input.datatype, parameters, data: None });
        blobs.push(blob);
    }
    Ok((tensors, blobs))
}

fn output(output: InferRequestedOutputTensor) -> Result<RequestedOutput, Failure> {
    let mut parameters = to_json(output.parameters, &format!("outputs[`{}`].parameters", output.name))?;
    // Over gRPC outputs are always binary.
    parameters.remove("binary_data");
    Ok(RequestedOutput { name: output.name, parameters })
}

/// Typed contents as bytes of their datatype. The wrong field, or two of them, is an error.
fn typed(name: &str, datatype: &str, contents: InferTensorContents) -> Result<Bytes, Failure> {
    let c = contents;
    let given = [
        ("bool_contents", c.bool_contents.len()),
        ("int_contents", c.int_contents.len()),
        ("int64_contents", c.int64_contents.len()),
        ("uint_contents", c.uint_contents.len()),
        ("uint64_contents", c.uint64_contents.len()),
        ("fp32_contents", c.fp32_contents.len()),
        ("fp64_contents", c.fp64_contents.len()),
        ("bytes_contents", c.bytes_contents.len()),
    ];
    let (expected, bytes) = match datatype {
        "BOOL" => ("bool_contents", c.bool_contents.iter().map(|b| u8::from(*b)).collect()),
        "INT8" => ("int_contents", narrowed::<i8, _, 1>(name, datatype, &c.int_contents, i8::to_le_bytes)?),
        "INT16" => ("int_contents", narrowed::<i16, _, 2>(name, datatype, &c.int_contents, i16::to_le_bytes)?),
        "INT32" => ("int_contents", c.int_contents.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "INT64" => ("int64_contents", c.int64_contents.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "UINT8" => ("uint_contents", narrowed::<u8, _, 1>(name, datatype, &c.uint_contents, u8::to_le_bytes)?),
        "UINT16" => ("uint_contents", narrowed::<u16, _, 2>(name, datatype, &c.uint_contents, u16::to_le_bytes)?),
        "UINT32" => ("uint_contents", c.uint_contents.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "UINT64" => ("uint64_contents", c.uint64_contents.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "FP32" => ("fp32_contents", c.fp32_contents.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "FP64" => ("fp64_contents", c.fp64_contents.iter().flat_map(|x| x.to_le_bytes()).collect()),
        "BYTES" => ("bytes_contents", with_lengths(&c.bytes_contents)),
        "FP16" | "BF16" => ("raw_input_contents", Vec::new()),
        other => {
            let message = format!("bad-datatype: inputs[`{name}`].datatype: `{other}` is none of the protocol's");
            return Err(Failure::new(Code::BadRequest, message));
        }
    };
    match given.iter().find(|(field, n)| *n > 0 && *field != expected) {
        Some((field, _)) => {
            Err(bad_field(format!("inputs[`{name}`].contents.{field}: datatype `{datatype}` uses {expected}")))
        }
        None => Ok(bytes.into()),
    }
}

/// Integers of a datatype that is narrower than the field that carries it.
fn narrowed<T, W, const N: usize>(
    name: &str,
    datatype: &str,
    values: &[W],
    bytes: fn(T) -> [u8; N],
) -> Result<Vec<u8>, Failure>
where
    T: TryFrom<W>,
    W: Copy + std::fmt::Display,
{
    let mut all = Vec::with_capacity(values.len() * N);
    for (at, &value) in values.iter().enumerate() {
        let narrow = T::try_from(value).map_err(|_| {
            bad_field(format!("inputs[`{name}`].contents: element {at}, `{value}`, is not a value of {datatype}"))
        })?;
        all.extend(bytes(narrow));
    }
    Ok(all)
}

fn with_lengths(elements: &[Vec<u8>]) -> Vec<u8> {
    let mut all = Vec::with_capacity(elements.iter().map(|e| 4 + e.len()).sum());
    for element in elements {
        // A message is far below 4 GiB.
        all.extend(u32::try_from(element.len()).unwrap_or(u32::MAX).to_le_bytes());
        all.extend(element);
    }
    all
}

fn to_json(parameters: HashMap<String, InferParameter>, place: &str) -> Result<Parameters, Failure> {
    let mut json = Parameters::new();
    for (name, parameter) in parameters {
        let value = match parameter.parameter_choice {
            None => serde_json::Value::Null,
            Some(ParameterChoice::BoolParam(x)) => x.into(),
            Some(ParameterChoice::Int64Param(x)) => x.into(),
            Some(ParameterChoice::Uint64Param(x)) => x.into(),
            Some(ParameterChoice::StringParam(x)) => x.into(),
            Some(ParameterChoice::DoubleParam(x)) => match serde_json::Number::from_f64(x) {
                Some(number) => number.into(),
                None => return Err(bad_field(format!("{place}.{name}: `{x}` is not finite"))),
            },
        };
        json.insert(name, value);
    }
    Ok(json)
}

/// An answer as a message, its outputs raw.
pub(crate) fn from_answer(answer: &Answer) -> Result<ModelInferResponse, Failure> {
    let (json, mut binary) = answer.parts();
    let broken = |what: String| Failure::new(Code::Internal, format!("the result cannot be read: {what}"));
    let response: InferResponse = serde_json::from_slice(&json).map_err(|e| broken(e.to_string()))?;
    let (mut outputs, mut raw) = (Vec::new(), Vec::new());
    for tensor in response.outputs {
        raw.push(match tensor.parameters.get(BINARY_DATA_SIZE) {
            Some(size) => {
                let size = size.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n <= binary.len());
                let size = size.ok_or_else(|| broken(format!("output `{}` has no data", tensor.name)))?;
                binary.split_to(size)
            }
            // A node of an older version answers in JSON.
            None => {
                let elements = tensor.to_fp32().map_err(|e| broken(e.to_string()))?;
                elements.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
            }
        });
        let shape = tensor.shape.iter().map(|&size| i64::try_from(size).unwrap_or(i64::MAX)).collect();
        let (name, datatype) = (tensor.name, tensor.datatype);
        outputs.push(InferOutputTensor { name, datatype, shape, parameters: HashMap::new(), contents: None });
    }
    Ok(ModelInferResponse {
        model_name: response.model_name,
        model_version: response.model_version.unwrap_or_default(),
        id: response.id.unwrap_or_default(),
        parameters: result_parameters(response.parameters),
        outputs,
        raw_output_contents: raw,
    })
}

fn result_parameters(p: ResultParameters) -> HashMap<String, InferParameter> {
    use ParameterChoice::{BoolParam, DoubleParam, Int64Param, StringParam};
    let all = [
        ("node", StringParam(p.node)),
        ("backend", StringParam(p.backend)),
        ("batch_size", Int64Param(p.batch_size.into())),
        ("queue_ms", DoubleParam(p.queue_ms)),
        ("infer_ms", DoubleParam(p.infer_ms)),
        ("deadline_met", BoolParam(p.deadline_met)),
    ];
    all.map(|(name, choice)| (name.to_owned(), InferParameter { parameter_choice: Some(choice) })).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::backend::{Row, Signature, TensorSpec};
    use crate::request::{Answerer, prepare, respond};
    use proptest::prelude::*;
    use schemas::headers::Reason;

    fn signature() -> Signature {
        Signature {
            inputs: vec![TensorSpec::fp32("x", vec![2]), TensorSpec::fp32("z", vec![])],
            outputs: vec![TensorSpec::fp32("y", vec![3])],
            batched: true,
        }
    }

    fn input(name: &str, datatype: &str, shape: &[i64], contents: Option<InferTensorContents>) -> InferInputTensor {
        let (name, datatype) = (name.to_owned(), datatype.to_owned());
        InferInputTensor { name, datatype, shape: shape.to_vec(), parameters: HashMap::new(), contents }
    }

    fn fp32(values: &[f32]) -> Option<InferTensorContents> {
        Some(InferTensorContents { fp32_contents: values.to_vec(), ..Default::default() })
    }

    fn request(inputs: Vec<InferInputTensor>, raw: Vec<Bytes>) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "a".to_owned(),
            model_version: "3".to_owned(),
            id: "i".to_owned(),
            inputs,
            raw_input_contents: raw,
            ..Default::default()
        }
    }

    fn bytes(values: &[f32]) -> Bytes {
        values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>().into()
    }

    #[test]
    fn each_fault_names_its_field() {
        let typed = |datatype: &str, contents| request(vec![input("x", datatype, &[1], Some(contents))], vec![]);
        let ints = |values: &[i32]| InferTensorContents { int_contents: values.to_vec(), ..Default::default() };
        let both = request(vec![input("x", "FP32", &[1], fp32(&[1.0]))], vec![bytes(&[1.0])]);
        let mut timeout = request(vec![], vec![]);
        let soon = Some(ParameterChoice::StringParam("soon".to_owned()));
        timeout.parameters.insert("timeout".to_owned(), InferParameter { parameter_choice: soon });
        let mut infinite = request(vec![], vec![]);
        let double = Some(ParameterChoice::DoubleParam(f64::INFINITY));
        infinite.parameters.insert("p".to_owned(), InferParameter { parameter_choice: double });
        let cases = [
            (typed("INT8", ints(&[1, 300])), "inputs[`x`].contents: element 1, `300`, is not a value of INT8"),
            (typed("INT64", ints(&[1])), "inputs[`x`].contents.int_contents: datatype `INT64` uses int64_contents"),
            (typed("FP16", ints(&[1])), "inputs[`x`].contents.int_contents: datatype `FP16` uses raw_input_contents"),
            (typed("FP33", ints(&[1])), "bad-datatype: inputs[`x`].datatype: `FP33`"),
            (both, "inputs[`x`].contents: not together with raw_input_contents"),
            (request(vec![], vec![bytes(&[1.0])]), "raw_input_contents: 1 entries for 0 inputs"),
            (request(vec![input("x", "FP32", &[-1], None)], vec![]), "inputs[`x`].shape: [-1] is negative"),
            (timeout, "parameters.timeout"),
            (infinite, "parameters.p: `inf`"),
        ];
        for (request, expected) in cases {
            let failure = to_call(request).unwrap_err();
            assert_eq!(failure.code, Code::BadRequest);
            assert!(failure.message.contains(expected), "{expected} is missing in {}", failure.message);
        }
    }

    #[test]
    fn typed_contents_become_the_bytes_of_their_datatype() {
        let raw = |datatype: &str, contents| typed("x", datatype, contents).unwrap().to_vec();
        let c = InferTensorContents::default;
        assert_eq!(raw("BOOL", InferTensorContents { bool_contents: vec![true, false], ..c() }), [1, 0]);
        assert_eq!(raw("INT8", InferTensorContents { int_contents: vec![-1, 2], ..c() }), [255, 2]);
        assert_eq!(raw("INT16", InferTensorContents { int_contents: vec![-2], ..c() }), [254, 255]);
        assert_eq!(raw("UINT8", InferTensorContents { uint_contents: vec![200], ..c() }), [200]);
        assert_eq!(raw("INT64", InferTensorContents { int64_contents: vec![1], ..c() }), [1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(raw("FP64", InferTensorContents { fp64_contents: vec![1.5], ..c() }), 1.5f64.to_le_bytes());
        let two = InferTensorContents { bytes_contents: vec![b"ab".to_vec(), vec![]], ..c() };
        assert_eq!(raw("BYTES", two), [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]);
    }

    #[test]
    fn another_datatype_than_the_models_is_told_with_both() {
        let ints = InferTensorContents { int64_contents: vec![1, 2], ..Default::default() };
        let inputs = vec![input("x", "INT64", &[1, 2], Some(ints)), input("z", "FP32", &[1], fp32(&[1.0]))];
        let (call, _) = to_call(request(inputs, vec![])).unwrap();
        let fault = prepare(&call.into_record(0), &signature(), 8).unwrap_err();
        assert_eq!(fault.reason, Reason::BadDatatype);
        assert_eq!(fault.detail, "inputs[`x`].datatype: `INT64`, expected `FP32`");
    }

    /// Any message; small, so that shrinking ends.
    fn any_request() -> impl Strategy<Value = ModelInferRequest> {
        let name = prop_oneof![Just("x".to_owned()), Just("z".to_owned()), any::<String>()];
        let datatype = prop_oneof![Just("FP32"), Just("INT8"), Just("BYTES"), Just("FP16"), Just("?")];
        let contents = (
            prop::collection::vec(any::<f32>(), 0..4),
            prop::collection::vec(any::<i32>(), 0..3),
            prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3), 0..2),
        )
            .prop_map(|(fp32_contents, int_contents, bytes_contents)| InferTensorContents {
                fp32_contents,
                int_contents,
                bytes_contents,
                ..Default::default()
            });
        let tensor = (name, datatype, prop::collection::vec(-2i64..5, 0..3), prop::option::of(contents))
            .prop_map(|(name, datatype, shape, contents)| input(&name, datatype, &shape, contents));
        let raw = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..12).prop_map(Bytes::from), 0..3);
        (prop::collection::vec(tensor, 0..3), raw).prop_map(|(inputs, raw)| request(inputs, raw))
    }

    proptest! {
        #[test]
        fn raw_and_typed_contents_reach_the_node_alike(
            rows in prop::collection::vec((-1e30f32..1e30, -1e30f32..1e30, -1e30f32..1e30), 1..8),
        ) {
            let n = rows.len() as i64;
            let x: Vec<f32> = rows.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
            let z: Vec<f32> = rows.iter().map(|(_, _, c)| *c).collect();
            let raw = request(
                vec![input("x", "FP32", &[n, 2], None), input("z", "FP32", &[n], None)],
                vec![bytes(&x), bytes(&z)],
            );
            let typed = request(
                vec![input("x", "FP32", &[n, 2], fp32(&x)), input("z", "FP32", &[n], fp32(&z))],
                vec![],
            );
            let expected: Vec<Row> = rows.iter().map(|(a, b, c)| vec![vec![*a, *b], vec![*c]]).collect();
            for message in [raw, typed] {
                let (call, timeout) = to_call(message).unwrap();
                prop_assert_eq!((call.service.as_str(), call.version.as_deref(), timeout), ("a", Some("3"), None));
                let prepared = prepare(&call.into_record(0), &signature(), 8).unwrap();
                prop_assert_eq!(&prepared.rows, &expected);
                prop_assert_eq!(prepared.id.as_deref(), Some("i"));
                prop_assert!(prepared.outputs.iter().all(|o| o.binary));
            }
        }

        #[test]
        fn answers_come_back_as_they_were_computed(rows in prop::collection::vec(any::<[f32; 3]>(), 1..6)) {
            let (call, _) = to_call(request(
                vec![
                    input("x", "FP32", &[rows.len() as i64, 2], fp32(&vec![0.0; 2 * rows.len()])),
                    input("z", "FP32", &[rows.len() as i64], fp32(&vec![0.0; rows.len()])),
                ],
                vec![],
            )).unwrap();
            let record = call.into_record(0);
            let prepared = prepare(&record, &signature(), 8).unwrap();
            let answers: Vec<Row> = rows.iter().map(|row| vec![row.to_vec()]).collect();
            let answerer = Answerer { topic: String::new(), service: "a".to_owned(), version: "3".to_owned() };
            let parameters = ResultParameters {
                node: "n".to_owned(), backend: "b".to_owned(), batch_size: 2, queue_ms: 0.5, infer_ms: 1.5,
                deadline_met: true,
            };
            let out = respond(&answerer, &signature(), &record, &prepared, &answers, parameters).unwrap();
            let response = from_answer(&Answer::of_node(out).unwrap()).unwrap();
            prop_assert_eq!((response.model_name.as_str(), response.id.as_str()), ("a", "i"));
            prop_assert_eq!(&response.outputs[0].shape, &[rows.len() as i64, 3]);
            prop_assert_eq!(&response.raw_output_contents[0], &bytes(&rows.concat()));
            let double = |name: &str| response.parameters[name].parameter_choice.clone();
            prop_assert_eq!(double("infer_ms"), Some(ParameterChoice::DoubleParam(1.5)));
        }

        #[test]
        fn no_message_makes_it_panic(request in any_request()) {
            match to_call(request) {
                Err(failure) => prop_assert!(!failure.message.is_empty()),
                Ok((call, _)) => {
                    if let Err(fault) = prepare(&call.into_record(0), &signature(), 8) {
                        prop_assert!(!fault.detail.is_empty());
                    }
                }
            }
        }

        #[test]
        fn no_answer_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..60), json_length in 0usize..80) {
            let answer = Answer { body: body.into(), json_length: Some(json_length) };
            prop_assert!(from_answer(&answer).is_err());
        }
    }
}
