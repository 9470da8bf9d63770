//! Prediction requests and results: the Open Inference Protocol v2 (KServe) JSON.
//!
//! Source: <https://github.com/kserve/open-inference-protocol>, `inference_rest.yaml`, and the binary tensor data
//! extension. These messages follow the protocol, so they carry no `schema` field.

use crate::headers::Reason;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Parameters object of the protocol.
pub type Parameters = serde_json::Map<String, serde_json::Value>;

/// One inference request.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct InferRequest {
    /// Chosen by the sender, repeated in the result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Free parameters.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
    /// Input tensors.
    pub inputs: Vec<Tensor>,
    /// Outputs wanted; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<RequestedOutput>,
}

/// An output that a request names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RequestedOutput {
    /// Name of the model's output.
    pub name: String,
    /// Free parameters.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
}

/// A named tensor; row-major.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Tensor {
    /// Name of the model's input or output.
    pub name: String,
    /// Size of each dimension.
    pub shape: Vec<usize>,
    /// `FP32`, `INT64`, … as the protocol names them.
    pub datatype: String,
    /// Free parameters; `binary_data_size` says that the data follow the JSON.
    #[serde(default, skip_serializing_if = "Parameters::is_empty")]
    pub parameters: Parameters,
    /// Elements in row-major order, flat or nested; absent when they follow in binary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Vec<serde_json::Value>>")]
    pub data: Option<Box<RawValue>>,
}

/// What is wrong with a tensor, by the reason that its request is rejected with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct TensorError {
    /// Reason for the `reason` header.
    pub reason: Reason,
    /// Names the field, for the `detail` header.
    pub detail: String,
}

impl Tensor {
    /// A tensor of 32-bit floats. `data` is row-major and fits `shape`.
    pub fn fp32(name: impl Into<String>, shape: Vec<usize>, data: &[f32]) -> Result<Self, TensorError> {
        let name = name.into();
        if data.len() != shape.iter().product::<usize>() {
            return Err(TensorError {
                reason: Reason::BadShape,
                detail: format!("tensor `{name}`: {} elements do not fill shape {shape:?}", data.len()),
            });
        }
        if let Some(at) = data.iter().position(|x| !x.is_finite()) {
            return Err(TensorError {
                reason: Reason::BadField,
                detail: format!("tensor `{name}`: element {at} is not finite, which JSON cannot carry"),
            });
        }
        let raw = serde_json::value::to_raw_value(data)
            .map_err(|e| TensorError { reason: Reason::BadField, detail: format!("tensor `{name}`: {e}") })?;
        Ok(Tensor { name, shape, datatype: "FP32".to_owned(), parameters: Parameters::new(), data: Some(raw) })
    }

    /// The elements as 32-bit floats, flattened. Checks datatype `FP32`, presence and the count against `shape`.
    pub fn to_fp32(&self) -> Result<Vec<f32>, TensorError> {
        let field = |what: &str| format!("inputs[`{}`].{what}", self.name);
        if self.datatype != "FP32" {
            return Err(TensorError {
                reason: Reason::BadDatatype,
                detail: format!("{}: `{}`, expected `FP32`", field("datatype"), self.datatype),
            });
        }
        let raw = self.data.as_deref().ok_or_else(|| TensorError {
            reason: Reason::MissingField,
            detail: format!("{}: absent", field("data")),
        })?;
        let data = parse_floats(raw.get())
            .map_err(|e| TensorError { reason: Reason::BadField, detail: format!("{}: {e}", field("data")) })?;
        let wanted = self.shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
        if wanted != Some(data.len()) {
            return Err(TensorError {
                reason: Reason::BadShape,
                detail: format!("{}: {} elements do not fill shape {:?}", field("data"), data.len(), self.shape),
            });
        }
        Ok(data)
    }
}

/// Numbers of a flat or nested JSON array.
fn parse_floats(json: &str) -> Result<Vec<f32>, String> {
    if let Ok(flat) = serde_json::from_str::<Vec<f32>>(json) {
        return Ok(flat);
    }
    fn flatten(value: &serde_json::Value, out: &mut Vec<f32>) -> Result<(), String> {
        match value {
            serde_json::Value::Number(n) => {
                out.push(n.as_f64().ok_or_else(|| format!("`{n}` is not a number of 32 bits"))? as f32);
                Ok(())
            }
            serde_json::Value::Array(items) => items.iter().try_for_each(|item| flatten(item, out)),
            other => Err(format!("`{other}` is not a number")),
        }
    }
    let nested: serde_json::Value = serde_json::from_str(json).map_err(|e| e.to_string())?;
    if !nested.is_array() {
        return Err("not an array".to_owned());
    }
    let mut out = Vec::new();
    flatten(&nested, &mut out)?;
    Ok(out)
}

/// One inference result.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct InferResponse {
    /// The service's model.
    pub model_name: String,
    /// Version that answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_version: Option<String>,
    /// The request's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `node`, `backend`, `batch_size`, `queue_ms`, `infer_ms`, `deadline_met`.
    pub parameters: ResultParameters,
    /// Output tensors.
    pub outputs: Vec<Tensor>,
}

/// How a result came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResultParameters {
    /// Node that answered.
    pub node: String,
    /// Backend that ran it.
    pub backend: String,
    /// Requests in its batch.
    pub batch_size: u32,
    /// From the node's receipt to the start of inference.
    pub queue_ms: f64,
    /// Time of the batch's inference.
    pub infer_ms: f64,
    /// Whether it was finished before its deadline.
    pub deadline_met: bool,
}

/// Reads a request. The error names the field and is what the `detail` header says.
pub fn decode_request(bytes: &[u8]) -> Result<InferRequest, TensorError> {
    serde_json::from_slice(bytes).map_err(|e| TensorError {
        reason: if e.is_data() && e.to_string().starts_with("missing field") {
            Reason::MissingField
        } else if e.is_data() {
            Reason::BadField
        } else {
            Reason::InvalidJson
        },
        detail: format!("request: {e}"),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn tensor(json: &str) -> Tensor {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn nested_and_flat_data_are_the_same() {
        let nested = tensor(r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,4.5]]}"#);
        let flat = tensor(r#"{"name":"x","shape":[2,2],"datatype":"FP32","data":[1,2,3,4.5]}"#);
        assert_eq!(nested.to_fp32().unwrap(), flat.to_fp32().unwrap());
    }

    #[test]
    fn each_fault_has_its_reason_and_names_its_field() {
        let cases = [
            (r#"{"name":"x","shape":[3],"datatype":"FP32","data":[1,2]}"#, Reason::BadShape, "data"),
            (r#"{"name":"x","shape":[2],"datatype":"INT8","data":[1,2]}"#, Reason::BadDatatype, "datatype"),
            (r#"{"name":"x","shape":[2],"datatype":"FP32"}"#, Reason::MissingField, "data"),
            (r#"{"name":"x","shape":[2],"datatype":"FP32","data":[1,"a"]}"#, Reason::BadField, "data"),
            (r#"{"name":"x","shape":[1],"datatype":"FP32","data":7}"#, Reason::BadField, "data"),
        ];
        for (json, reason, field) in cases {
            let error = tensor(json).to_fp32().unwrap_err();
            assert_eq!(error.reason, reason, "{json}");
            assert!(error.detail.contains(field), "{}", error.detail);
        }
    }

    #[test]
    fn request_errors_are_classified() {
        assert_eq!(decode_request(b"{").unwrap_err().reason, Reason::InvalidJson);
        assert_eq!(decode_request(b"{}").unwrap_err().reason, Reason::MissingField);
        assert_eq!(decode_request(br#"{"inputs":3}"#).unwrap_err().reason, Reason::BadField);
    }

    proptest! {
        #[test]
        fn fp32_round_trips(data in proptest::collection::vec(-1e6f32..1e6, 0..40)) {
            let t = Tensor::fp32("x", vec![data.len()], &data).unwrap();
            let back: Tensor = serde_json::from_slice(&serde_json::to_vec(&t).unwrap()).unwrap();
            prop_assert_eq!(back.to_fp32().unwrap(), data);
        }

        #[test]
        fn no_bytes_make_decoding_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = decode_request(&bytes) {
                for input in request.inputs { let _ = input.to_fp32(); }
            }
        }
    }
}
