//! ONNX files written by hand, with weights from a seed: a test that wants an operator makes its model.

use prost::Message;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto::AttributeType, type_proto,
};

/// Opset of the files.
const OPSET: i64 = 20;

/// A graph under construction. Values are named; the last node's first output is `y`.
#[derive(Debug)]
pub struct Graph {
    proto: GraphProto,
    rng: ChaCha8Rng,
    next: usize,
}

/// An attribute of a node.
#[derive(Debug, Clone)]
pub enum Attribute {
    Int(i64),
    Float(f32),
    Ints(Vec<i64>),
    Text(&'static str),
}

fn ints(values: &[usize]) -> Vec<i64> {
    values.iter().map(|v| *v as i64).collect()
}

impl Graph {
    /// A graph whose weights come from `seed`.
    pub fn new(seed: u64) -> Self {
        Graph { proto: GraphProto::default(), rng: ChaCha8Rng::seed_from_u64(seed), next: 0 }
    }

    fn name(&mut self, stem: &str) -> String {
        self.next += 1;
        format!("{stem}{}", self.next)
    }

    /// An input `[batch, shape…]` whose batch is open.
    pub fn input(&mut self, shape: &[usize]) -> String {
        let name = self.name("x");
        let dims = std::iter::once(dimension::Value::DimParam("N".to_owned()))
            .chain(shape.iter().map(|d| dimension::Value::DimValue(*d as i64)));
        self.proto.input.push(value_info(&name, Some(dims.collect())));
        name
    }

    /// Weights between -`scale` and `scale`.
    pub fn weights(&mut self, shape: &[usize], scale: f32) -> String {
        let n = shape.iter().product();
        let values = (0..n).map(|_| self.rng.random_range(-scale..scale)).collect();
        self.floats(shape, values)
    }

    /// A constant tensor of floats.
    pub fn floats(&mut self, shape: &[usize], values: Vec<f32>) -> String {
        let name = self.name("w");
        self.proto.initializer.push(TensorProto {
            dims: ints(shape),
            data_type: DataType::Float as i32,
            float_data: values,
            name: name.clone(),
            ..TensorProto::default()
        });
        name
    }

    /// A constant vector of integers.
    pub fn integers(&mut self, values: &[i64]) -> String {
        let name = self.name("i");
        self.proto.initializer.push(TensorProto {
            dims: vec![values.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: values.to_vec(),
            name: name.clone(),
            ..TensorProto::default()
        });
        name
    }

    /// A node; its first output.
    pub fn node(&mut self, operator: &str, inputs: &[&str], attributes: &[(&str, Attribute)]) -> String {
        self.nodes(operator, inputs, attributes, 1).remove(0)
    }

    /// A node with several outputs.
    pub fn nodes(
        &mut self,
        operator: &str,
        inputs: &[&str],
        attributes: &[(&str, Attribute)],
        outputs: usize,
    ) -> Vec<String> {
        let names: Vec<String> = (0..outputs).map(|_| self.name("v")).collect();
        self.proto.node.push(NodeProto {
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: names.clone(),
            name: format!("{operator}{}", self.next),
            op_type: operator.to_owned(),
            attribute: attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            ..NodeProto::default()
        });
        names
    }

    /// Makes a value an output of the model.
    pub fn output(&mut self, name: &str) {
        self.proto.output.push(value_info(name, None));
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let model = ModelProto {
            ir_version: 9,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            graph: Some(GraphProto { name: "test".to_owned(), ..self.proto.clone() }),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }
}

fn value_info(name: &str, dims: Option<Vec<dimension::Value>>) -> ValueInfoProto {
    let shape = dims.map(|dims| TensorShapeProto {
        dim: dims.into_iter().map(|v| Dimension { value: Some(v), ..Dimension::default() }).collect(),
    });
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..TypeProto::default() };
    ValueInfoProto { name: name.to_owned(), r#type: Some(kind), ..ValueInfoProto::default() }
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: name.to_owned(), ..AttributeProto::default() };
    let kind = match value {
        Attribute::Int(v) => {
            proto.i = *v;
            AttributeType::Int
        }
        Attribute::Float(v) => {
            proto.f = *v;
            AttributeType::Float
        }
        Attribute::Ints(v) => {
            proto.ints.clone_from(v);
            AttributeType::Ints
        }
        Attribute::Text(v) => {
            proto.s = v.as_bytes().to_vec();
            AttributeType::String
        }
    };
    proto.r#type = kind as i32;
    proto
}
