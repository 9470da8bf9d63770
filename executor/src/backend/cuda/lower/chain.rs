//! Elementwise operators: joined into chains, or into the product they follow.

use super::super::plan::{Activation, Bias, Call, Slot};
use super::{Lowered, Lowering, Value, coalesce, strides};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn;

/// Most tensors a chain reads.
const MAX_OPERANDS: usize = 6;
/// Dimensions the kernel walks.
const MAX_DIMS: usize = 6;
/// Words before the steps of a program: steps, dimensions, 6 sizes, 6 × 6 strides.
const HEADER: usize = 44;

/// Operations by the numbers of `elementwise.cu`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Op {
    Load = 0,
    Add,
    Sub,
    Rsub,
    Mul,
    Max = 7,
    Min,
    Pow,
    Rpow,
    Sigmoid = 33,
    Tanh,
    Gelu,
    Exp,
    Ln,
    Sqrt,
    Rsqrt,
    Recip,
    Neg,
    Abs,
    Square,
    Floor,
    Ceil,
    Erf,
    HardSwish,
    Silu,
    LeakyRelu,
    PowConst = 51,
    Sign,
    GeluTanh,
}

/// Where a step's second operand comes from.
#[derive(Debug, Clone, Copy)]
enum From {
    Tensor(usize),
    Number(f32),
}

/// Elementwise work on tensors of one shape.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    shape: Vec<usize>,
    operands: Vec<(Slot, Vec<usize>)>,
    steps: Vec<(Op, From)>,
}

impl Lowering<'_> {
    /// Lowers elementwise operators; false for others.
    pub(super) fn chain_node(&mut self, node: &TypedNode) -> Lowered<bool> {
        if let Some(op) = node.op_as::<ElementWiseOp>() {
            if op.1.is_some_and(|dt| dt != f32::datum_type()) {
                return Err(format!("element type {:?}", op.1));
            }
            let (step, number) = unary(op).ok_or_else(|| format!("the elementwise function {}", op.0.name()))?;
            let input = node.inputs[0];
            if let Some(act) = activation(step)
                && self.join_activation(node, input, act)?
            {
                return Ok(true);
            }
            let shape = self.shape(input)?;
            let mut chain = self.begin(input, &shape)?;
            chain.steps.push((step, From::Number(number)));
            self.set(node, 0, Value::Pending(Box::new(chain)));
            return self.settle(node).map(|()| true);
        }
        let Some(op) = node.op_as::<TypedBinOp>() else { return Ok(false) };
        let name = op.0.name();
        let (straight, reversed) = binary(name).ok_or_else(|| format!("the elementwise function {name}"))?;
        self.binary_node(node, straight, reversed)?;
        Ok(true)
    }

    fn binary_node(&mut self, node: &TypedNode, straight: Op, reversed: Op) -> Lowered {
        let [a, b] = node.inputs[..] else { return Err("a number of inputs other than two".to_owned()) };
        let shape = self.shape(OutletId::new(node.id, 0))?;
        let (known_a, known_b) = (self.known(a)?, self.known(b)?);
        // Relu comes as max(x, 0).
        let zero = |k: &Option<Vec<f32>>| k.as_ref().is_some_and(|v| v.iter().all(|x| *x == 0.0));
        for (x, other) in [(a, &known_b), (b, &known_a)] {
            let same = self.shape(x)? == shape;
            if straight == Op::Max && zero(other) && same && self.join_activation(node, x, Activation::Relu)? {
                return Ok(());
            }
        }
        if matches!(straight, Op::Add | Op::Mul)
            && (self.join_affine(node, straight, a, b)? || self.join_affine(node, straight, b, a)?)
        {
            return Ok(());
        }
        if straight == Op::Add && (self.join_bias(node, a, b)? || self.join_bias(node, b, a)?) {
            return Ok(());
        }
        // The side that goes on as the chain: pending work first, then what has the full shape.
        let full = |l: &Self, o: OutletId| l.shape(o).is_ok_and(|s| s == shape);
        let pending = |l: &Self, o: OutletId| matches!(l.values.get(&o), Some(Value::Pending(_)));
        let known = |l: &Self, o: OutletId| matches!(l.values.get(&o), Some(Value::Known(_)));
        let rank = |l: &Self, o: OutletId| (full(l, o), pending(l, o), !known(l, o));
        let (main, side, op) = if rank(self, b) > rank(self, a) { (b, a, reversed) } else { (a, b, straight) };
        let mut chain = self.begin(main, &shape)?;
        let number = self.known(side)?.filter(|v| v.iter().all(|x| *x == v[0])).map(|v| v[0]);
        let from = match number {
            Some(number) => From::Number(number),
            None => {
                if chain.operands.len() == MAX_OPERANDS {
                    let slot = self.emit_chain(chain)?;
                    chain = Chain::load(slot, shape.clone(), strides(&shape));
                }
                let side_shape = self.shape(side)?;
                let slot = self.slot(side)?;
                chain.tensor(slot, broadcast(&side_shape, &shape)?)
            }
        };
        chain.steps.push((op, from));
        self.set(node, 0, Value::Pending(Box::new(chain)));
        self.settle(node)
    }

    /// A chain that begins with a value, broadcast to `shape`.
    fn begin(&mut self, outlet: OutletId, shape: &[usize]) -> Lowered<Chain> {
        if let Value::Pending(chain) = self.value(outlet)?
            && chain.shape == shape
            && self.has_one_reader(outlet)
        {
            return Ok(*chain);
        }
        let from = self.shape(outlet)?;
        let slot = self.slot(outlet)?;
        Ok(Chain::load(slot, shape.to_vec(), broadcast(&from, shape)?))
    }

    /// What several read is computed once.
    fn settle(&mut self, node: &TypedNode) -> Lowered {
        let outlet = OutletId::new(node.id, 0);
        if !self.has_one_reader(outlet) {
            self.slot(outlet)?;
        }
        Ok(())
    }

    pub(super) fn emit_chain(&mut self, chain: Chain) -> Lowered<Slot> {
        let n: usize = chain.shape.iter().product();
        let walks: Vec<Vec<usize>> = chain.operands.iter().map(|o| o.1.clone()).collect();
        let (dims, walks) = coalesce(&chain.shape, &walks);
        if dims.len() > MAX_DIMS {
            return Err(format!("a broadcast over {} dimensions", dims.len()));
        }
        let mut program = vec![0u32; HEADER];
        program[0] = chain.steps.len() as u32;
        program[1] = dims.len() as u32;
        dims.iter().enumerate().for_each(|(i, d)| program[2 + i] = *d as u32);
        let mut read = 0;
        for (o, walk) in walks.iter().enumerate() {
            walk.iter().enumerate().for_each(|(d, s)| program[8 + o * 6 + d] = *s as u32);
            read += dims.iter().zip(walk).filter(|(_, s)| **s != 0).map(|(d, _)| *d).product::<usize>();
        }
        for (op, from) in &chain.steps {
            let (tensor, number) = match from {
                From::Tensor(t) => (*t as u32, 0.0),
                From::Number(v) => (u32::MAX, *v),
            };
            program.extend([*op as u32, tensor, number.to_bits(), 0]);
        }
        let program = self.constants.intern(program);
        let y = self.buffer(&chain.shape)?;
        let x = chain.operands.iter().map(|o| o.0.into()).collect();
        self.push_writing(y, Call::Chain { program, x, y: y.into(), n, steps: chain.steps.len(), read });
        Ok(y)
    }

    /// Makes an activation part of the product that wrote `input`, when nobody else reads that.
    fn join_activation(&mut self, node: &TypedNode, input: OutletId, wanted: Activation) -> Lowered<bool> {
        let Some(slot) = self.sole_product(input)? else { return Ok(false) };
        let step = self.writers[&slot];
        match &mut self.steps[step].call {
            Call::Gemm { act, .. }
            | Call::Conv3x3 { act, .. }
            | Call::Conv1x1 { act, .. }
            | Call::Depthwise { act, .. }
                if *act == Activation::None =>
            {
                *act = wanted;
            }
            _ => return Ok(false),
        }
        self.set(node, 0, Value::Ready(slot));
        Ok(true)
    }

    /// Makes a constant that is added to each column or each row of a product part of it.
    fn join_bias(&mut self, node: &TypedNode, product: OutletId, added: OutletId) -> Lowered<bool> {
        let (Some(values), shape) = (self.known(added)?, self.shape(product)?) else { return Ok(false) };
        let same = self.shape(OutletId::new(node.id, 0))? == shape;
        let Some(axis) = varying_axis(&self.shape(added)?, &shape).filter(|_| same) else { return Ok(false) };
        let Some(slot) = self.sole_product(product)? else { return Ok(false) };
        let outer: usize = shape[..axis].iter().product();
        let inner: usize = shape[axis + 1..].iter().product();
        let step = self.writers[&slot];
        match self.steps[step].call.clone() {
            Call::Gemm { bias: None, act: Activation::None, m, n, batch, .. } => {
                let kind = if inner == 1 && shape[axis] == n {
                    Bias::Column
                } else if (outer, shape[axis], inner) == (batch, m, n) {
                    Bias::Row
                } else {
                    return Ok(false);
                };
                let joined = Some(self.constants.floats(&values));
                if let Call::Gemm { bias, bias_kind, .. } = &mut self.steps[step].call {
                    (*bias, *bias_kind) = (joined, kind);
                }
            }
            Call::Conv1x1 { bias: Slot::Constant(old), act: Activation::None, n, co, places, .. }
                if (outer, shape[axis], inner) == (n, co, places) =>
            {
                let old = self.constants.all()[old].iter().map(|w| f32::from_bits(*w));
                let sum: Vec<f32> = old.zip(&values).map(|(a, b)| a + b).collect();
                let joined = self.padded(&sum);
                if let Call::Conv1x1 { bias, .. } = &mut self.steps[step].call {
                    *bias = joined;
                }
            }
            _ => return Ok(false),
        }
        self.set(node, 0, Value::Ready(slot));
        Ok(true)
    }

    /// Makes a constant gain or shift along the last axis part of the layer normalisation before it.
    fn join_affine(&mut self, node: &TypedNode, op: Op, normalised: OutletId, factor: OutletId) -> Lowered<bool> {
        let (Some(values), shape) = (self.known(factor)?, self.shape(normalised)?) else { return Ok(false) };
        let same = self.shape(OutletId::new(node.id, 0))? == shape;
        let last = shape.last().copied().unwrap_or(0);
        let fits = values.len() == 1 || (values.len() == last && self.shape(factor)?.last() == Some(&last));
        let Some(slot) = self.sole_product(normalised)?.filter(|_| same && fits) else { return Ok(false) };
        let step = self.writers[&slot];
        let Call::LayerNorm { gain: Slot::Constant(gain), shift: Slot::Constant(shift), .. } = self.steps[step].call
        else {
            return Ok(false);
        };
        let old = |id: usize| -> Vec<f32> { self.constants.all()[id].iter().map(|w| f32::from_bits(*w)).collect() };
        let value = |i: usize| values[if values.len() == 1 { 0 } else { i }];
        let apply = |old: Vec<f32>, multiply: bool| -> Vec<f32> {
            old.into_iter().enumerate().map(|(i, x)| if multiply { x * value(i) } else { x + value(i) }).collect()
        };
        let (new_gain, new_shift) = match op {
            Op::Mul => (apply(old(gain), true), apply(old(shift), true)),
            _ => (old(gain), apply(old(shift), false)),
        };
        let (new_gain, new_shift) = (self.constants.floats(&new_gain), self.constants.floats(&new_shift));
        if let Call::LayerNorm { gain, shift, .. } = &mut self.steps[step].call {
            (*gain, *shift) = (new_gain, new_shift);
        }
        self.set(node, 0, Value::Ready(slot));
        Ok(true)
    }

    /// The buffer of a value that a call wrote as a whole and that only one reader sees.
    fn sole_product(&self, outlet: OutletId) -> Lowered<Option<Slot>> {
        let Value::Ready(slot) = self.value(outlet)? else { return Ok(None) };
        Ok((self.has_one_reader(outlet) && self.writers.contains_key(&slot)).then_some(slot))
    }
}

impl Chain {
    fn load(slot: Slot, shape: Vec<usize>, walk: Vec<usize>) -> Self {
        Chain { shape, operands: vec![(slot, walk)], steps: vec![(Op::Load, From::Tensor(0))] }
    }

    fn tensor(&mut self, slot: Slot, walk: Vec<usize>) -> From {
        let operand = (slot, walk);
        let at = self.operands.iter().position(|o| *o == operand).unwrap_or_else(|| {
            self.operands.push(operand);
            self.operands.len() - 1
        });
        From::Tensor(at)
    }
}

/// Strides of a tensor that is repeated to fill `to`.
fn broadcast(from: &[usize], to: &[usize]) -> Lowered<Vec<usize>> {
    let missing = to.len().checked_sub(from.len()).ok_or("operands of different ranks")?;
    let mut walk = vec![0; missing];
    for (i, (stride, size)) in strides(from).into_iter().zip(from).enumerate() {
        match *size {
            1 => walk.push(0),
            n if n == to[missing + i] => walk.push(stride),
            n => return Err(format!("a dimension of {n} against {}", to[missing + i])),
        }
    }
    Ok(walk)
}

/// The axis of `to` along which a tensor that is broadcast to it varies, where it is one and all of that axis. A single
/// number varies along a last axis of size 1.
fn varying_axis(from: &[usize], to: &[usize]) -> Option<usize> {
    let missing = to.len().checked_sub(from.len())?;
    let mut varying = from.iter().enumerate().filter(|(_, n)| **n != 1);
    let Some((axis, n)) = varying.next() else { return to.last().filter(|n| **n == 1).map(|_| to.len() - 1) };
    (varying.next().is_none() && to[missing + axis] == *n).then_some(missing + axis)
}

fn activation(op: Op) -> Option<Activation> {
    match op {
        Op::Sigmoid => Some(Activation::Sigmoid),
        Op::Tanh => Some(Activation::Tanh),
        Op::Gelu => Some(Activation::Gelu),
        _ => None,
    }
}

/// An operation, and the one with its operands exchanged.
fn binary(name: &str) -> Option<(Op, Op)> {
    Some(match name {
        "Add" => (Op::Add, Op::Add),
        "Sub" => (Op::Sub, Op::Rsub),
        "Mul" => (Op::Mul, Op::Mul),
        "Max" => (Op::Max, Op::Max),
        "Min" => (Op::Min, Op::Min),
        "Pow" => (Op::Pow, Op::Rpow),
        _ => return None,
    })
}

fn unary(op: &ElementWiseOp) -> Option<(Op, f32)> {
    let op = &op.0;
    if let Some(leaky) = op.downcast_ref::<nn::LeakyRelu>() {
        return Some((Op::LeakyRelu, leaky.alpha));
    }
    if let Some(power) = op.downcast_ref::<math::PowConst>() {
        return Some((Op::PowConst, power.exponent));
    }
    let plain = match op.name().as_str() {
        "Sigmoid" => Op::Sigmoid,
        "Tanh" => Op::Tanh,
        "GeluExact" => Op::Gelu,
        "GeluApproximate" => Op::GeluTanh,
        "Exp" => Op::Exp,
        "Ln" => Op::Ln,
        "Sqrt" => Op::Sqrt,
        "Rsqrt" => Op::Rsqrt,
        "Recip" => Op::Recip,
        "Neg" => Op::Neg,
        "Abs" => Op::Abs,
        "Square" => Op::Square,
        "Floor" => Op::Floor,
        "Ceil" => Op::Ceil,
        "Erf" => Op::Erf,
        "HardSwish" => Op::HardSwish,
        "Silu" => Op::Silu,
        "Sign" => Op::Sign,
        _ => return None,
    };
    Some((plain, 0.0))
}
