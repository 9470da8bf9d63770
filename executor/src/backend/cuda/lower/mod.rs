//! From tract's decluttered model with a fixed batch to a flat [`Plan`].
//!
//! Only operators that are named here are lowered; anything else refuses the whole model, which then stays on the CPU.
//! Constants are folded and packed once. Chains of elementwise operators become one call; a bias and an activation that
//! follow a product become part of it. Reshapes cost nothing: all tensors are contiguous.

mod chain;
mod shape;
mod tensor;
mod window;

use super::plan::{Call, Constants, Layout, Plan, Slot, Step};
use chain::Chain;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::source::TypedSource;

/// Largest number of elements of a tensor: kernels count in 32-bit integers.
const MAX_ELEMENTS: usize = i32::MAX as usize;
/// Largest number of blocks in the second and third direction of a grid.
const MAX_GRID_YZ: u32 = 65_535;

/// The allow-list: operators of a decluttered model, as tract calls them, besides constants and inputs. Each has models
/// in the conformance suite (`tests/cuda_conformance.rs`).
pub const OPERATORS: [&str; 47] = [
    "Abs",
    "Add",
    "AddAxis",
    "Ceil",
    "Concat",
    "Conv",
    "Downsample",
    "EinSum",
    "Erf",
    "Exp",
    "Floor",
    "GeluApproximate",
    "GeluExact",
    "GruSeq",
    "HardSwish",
    "LeakyRelu",
    "Ln",
    "Max",
    "MaxPool",
    "Min",
    "MoveAxis",
    "Mul",
    "MultiBroadcastTo",
    "Neg",
    "Pad",
    "Pow",
    "PowConst",
    "Recip",
    "Reduce<Max>",
    "Reduce<MeanOfSquares>",
    "Reduce<Min>",
    "Reduce<Prod>",
    "Reduce<Sum>",
    "Reshape",
    "RmAxis",
    "RmsNorm",
    "Rsqrt",
    "Sigmoid",
    "Sign",
    "Silu",
    "Slice",
    "Softmax",
    "Sqrt",
    "Square",
    "Sub",
    "SumPool",
    "Tanh",
];

/// Why a model stays on the CPU.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unsupported operator {operator} at node {node}: {detail}")]
pub struct Unsupported {
    /// Operator, as tract calls it.
    pub operator: String,
    /// Node of the model.
    pub node: String,
    /// What about it is not supported.
    pub detail: String,
}

/// What an operator's lowering says when it cannot.
type Lowered<T = ()> = Result<T, String>;

/// A value of the model while it is lowered.
#[derive(Debug, Clone)]
enum Value {
    /// In memory.
    Ready(Slot),
    /// Known now.
    Known(Arc<Tensor>),
    /// Elementwise work that is not yet a call.
    Pending(Box<Chain>),
}

struct Lowering<'a> {
    model: &'a TypedModel,
    constants: &'a mut Constants,
    buffers: Vec<usize>,
    steps: Vec<Step>,
    values: HashMap<OutletId, Value>,
    /// Step that wrote a buffer as a whole.
    writers: HashMap<Slot, usize>,
    /// Node that is being lowered.
    node: String,
    /// Operators lowered so far.
    operators: BTreeSet<String>,
}

/// Lowers a decluttered model whose shapes are all concrete.
pub fn lower(model: &TypedModel, batch: usize, constants: &mut Constants, layout: Layout) -> Result<Plan, Unsupported> {
    let mut lowering = Lowering {
        model,
        constants,
        buffers: Vec::new(),
        steps: Vec::new(),
        values: HashMap::new(),
        writers: HashMap::new(),
        node: String::new(),
        operators: BTreeSet::new(),
    };
    let whole = |detail: String| Unsupported { operator: "model".to_owned(), node: "-".to_owned(), detail };
    let order = model.eval_order().map_err(|e| whole(format!("{e:#}")))?;
    for id in order {
        let node = model.node(id);
        lowering.node.clone_from(&node.name);
        lowering.node(node).map_err(|detail| Unsupported {
            operator: node.op.name().into_owned(),
            node: node.name.clone(),
            detail,
        })?;
    }
    lowering.finish(batch, layout).map_err(whole)
}

impl Lowering<'_> {
    fn node(&mut self, node: &TypedNode) -> Lowered {
        for (i, output) in node.outputs.iter().enumerate() {
            let used = !output.successors.is_empty() || self.is_output(OutletId::new(node.id, i));
            let fact = &output.fact;
            if used && fact.datum_type != f32::datum_type() && node.op_as::<Const>().is_none() {
                return Err(format!("element type {:?}", fact.datum_type));
            }
        }
        if let Some(constant) = node.op_as::<Const>() {
            self.set(node, 0, Value::Known(constant.val().clone()));
            return Ok(());
        }
        if node.op_is::<TypedSource>() {
            let slot = self.buffer(&self.shape(OutletId::new(node.id, 0))?)?;
            self.set(node, 0, Value::Ready(slot));
            return Ok(());
        }
        if !OPERATORS.contains(&&*node.op.name()) {
            return Err("not in the list of operators this backend has".to_owned());
        }
        if self.chain_node(node)? || self.tensor_node(node)? || self.window_node(node)? || self.shape_node(node)? {
            self.operators.insert(node.op.name().into_owned());
            return Ok(());
        }
        Err("in the list of operators, but nothing lowers it".to_owned())
    }

    fn finish(mut self, batch: usize, layout: Layout) -> Lowered<Plan> {
        let inputs = self.model.input_outlets().map_err(|e| e.to_string())?.to_vec();
        let outputs = self.model.output_outlets().map_err(|e| e.to_string())?.to_vec();
        let inputs = inputs.into_iter().map(|o| self.slot(o)).collect::<Lowered<Vec<Slot>>>()?;
        let outputs = outputs.into_iter().map(|o| self.slot(o)).collect::<Lowered<Vec<Slot>>>()?;
        for step in &self.steps {
            let grid = step.call.launch().grid;
            if grid[1] > MAX_GRID_YZ || grid[2] > MAX_GRID_YZ || grid[0] > i32::MAX as u32 {
                return Err(format!("node {} needs a grid of {grid:?}", step.node));
            }
        }
        let mut plan = Plan {
            batch,
            operators: self.operators,
            buffers: self.buffers,
            steps: self.steps,
            inputs,
            outputs,
            offsets: Vec::new(),
            arena: 0,
        };
        plan.drop_unread();
        plan.lay_out(layout);
        Ok(plan)
    }

    fn is_output(&self, outlet: OutletId) -> bool {
        self.model.output_outlets().is_ok_and(|all| all.contains(&outlet))
    }

    /// Concrete shape of a value.
    fn shape(&self, outlet: OutletId) -> Lowered<Vec<usize>> {
        let fact = self.model.outlet_fact(outlet).map_err(|e| e.to_string())?;
        fact.shape.as_concrete().map(<[usize]>::to_vec).ok_or_else(|| "its shape depends on the data".to_owned())
    }

    fn set(&mut self, node: &TypedNode, output: usize, value: Value) {
        self.values.insert(OutletId::new(node.id, output), value);
    }

    fn value(&self, outlet: OutletId) -> Lowered<Value> {
        self.values.get(&outlet).cloned().ok_or_else(|| "uses a value that nothing gives".to_owned())
    }

    /// The numbers of a constant.
    fn known(&self, outlet: OutletId) -> Lowered<Option<Vec<f32>>> {
        match self.value(outlet)? {
            Value::Known(tensor) => Ok(Some(floats(&tensor)?)),
            _ => Ok(None),
        }
    }

    /// The numbers of an input that must be constant.
    fn must_know(&self, outlet: OutletId, what: &str) -> Lowered<Vec<f32>> {
        self.known(outlet)?.ok_or_else(|| format!("{what} is not a constant"))
    }

    /// A fresh buffer for a tensor.
    fn buffer(&mut self, shape: &[usize]) -> Lowered<Slot> {
        let elements = shape.iter().product::<usize>();
        if elements == 0 || elements > MAX_ELEMENTS {
            return Err(format!("a tensor of {elements} elements"));
        }
        self.buffers.push(elements);
        Ok(Slot::Buffer(self.buffers.len() - 1))
    }

    /// The value in memory; pending work becomes a call.
    fn slot(&mut self, outlet: OutletId) -> Lowered<Slot> {
        let slot = match self.value(outlet)? {
            Value::Ready(slot) => return Ok(slot),
            Value::Known(tensor) => {
                let values = floats(&tensor)?;
                self.constants.floats(&values)
            }
            Value::Pending(chain) => self.emit_chain(*chain)?,
        };
        self.values.insert(outlet, Value::Ready(slot));
        Ok(slot)
    }

    fn push(&mut self, call: Call) {
        self.steps.push(Step { node: self.node.clone(), call });
    }

    /// A call that writes all of `slot`.
    fn push_writing(&mut self, slot: Slot, call: Call) {
        self.writers.insert(slot, self.steps.len());
        self.push(call);
    }

    /// True when nobody but one reader sees this value.
    fn has_one_reader(&self, outlet: OutletId) -> bool {
        let successors = self.model.node(outlet.node).outputs[outlet.slot].successors.len();
        successors == 1 && !self.is_output(outlet)
    }
}

/// The numbers of a tensor.
fn floats(tensor: &Tensor) -> Lowered<Vec<f32>> {
    let tensor = tensor.cast_to::<f32>().map_err(|e| format!("{e:#}"))?;
    let view = tensor.try_as_plain_ram().map_err(|e| format!("{e:#}"))?;
    Ok(view.as_slice::<f32>().map_err(|e| format!("{e:#}"))?.to_vec())
}

/// Row-major strides of a shape.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut out = vec![1; shape.len()];
    for i in (0..shape.len().saturating_sub(1)).rev() {
        out[i] = out[i + 1] * shape[i + 1];
    }
    out
}

/// Joins neighbouring dimensions that all operands walk through in one stride, and drops those of size 1.
fn coalesce(dims: &[usize], operands: &[Vec<usize>]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut out: Vec<usize> = Vec::new();
    let mut walks: Vec<Vec<usize>> = vec![Vec::new(); operands.len()];
    for (d, &size) in dims.iter().enumerate() {
        if size == 1 {
            continue;
        }
        let joins = !out.is_empty()
            && operands.iter().zip(&walks).all(|(o, w)| w.last().is_some_and(|last| *last == o[d] * size));
        match out.last_mut() {
            Some(last) if joins => {
                *last *= size;
                walks.iter_mut().zip(operands).for_each(|(w, o)| {
                    if let Some(last) = w.last_mut() {
                        *last = o[d];
                    }
                });
            }
            _ => {
                out.push(size);
                walks.iter_mut().zip(operands).for_each(|(w, o)| w.push(o[d]));
            }
        }
    }
    if out.is_empty() {
        out.push(1);
        walks.iter_mut().for_each(|w| w.push(0));
    }
    (out, walks)
}
