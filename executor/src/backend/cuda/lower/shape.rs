//! Operators that only move elements.

use super::super::plan::{At, Call, Slot};
use super::{Lowered, Lowering, Value, coalesce, floats, strides};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::DimLike;
use tract_onnx::tract_core::ops::array::{MultiBroadcastTo, Pad, PadMode, Slice, TypedConcat};
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::downsample::Downsample;

/// Dimensions the copying kernel walks.
const MAX_DIMS: usize = 6;

impl Lowering<'_> {
    /// Lowers the operators of this file; false for others.
    pub(super) fn shape_node(&mut self, node: &TypedNode) -> Lowered<bool> {
        let output = OutletId::new(node.id, 0);
        if let Some(op) = node.op_as::<AxisOp>() {
            let (shape, slot) = (self.shape(node.inputs[0])?, self.alias(node.inputs[0])?);
            let slot = match op {
                AxisOp::Move(from, to) => {
                    let mut order: Vec<usize> = (0..shape.len()).collect();
                    let axis = order.remove(*from);
                    order.insert(*to, axis);
                    self.permute(slot, &shape, &order)?
                }
                _ => slot,
            };
            self.set(node, 0, Value::Ready(slot));
        } else if node.op_is::<MultiBroadcastTo>() {
            let (from, to) = (self.shape(node.inputs[0])?, self.shape(output)?);
            let x = self.slot(node.inputs[0])?;
            let missing = to.len().checked_sub(from.len()).ok_or("a broadcast to a lower rank")?;
            let walk = strides(&from).into_iter().zip(&from).map(|(s, n)| if *n == 1 { 0 } else { s });
            let walk: Vec<usize> = std::iter::repeat_n(0, missing).chain(walk).collect();
            let y = self.buffer(&to)?;
            self.copy(&to, (x.into(), &walk), (y.into(), &strides(&to)))?;
            self.set(node, 0, Value::Ready(y));
        } else if let Some(op) = node.op_as::<TypedConcat>() {
            let to = self.shape(output)?;
            let (y, walk) = (self.buffer(&to)?, strides(&to));
            let mut at = 0;
            for input in &node.inputs {
                let from = self.shape(*input)?;
                let x = self.slot(*input)?;
                let offset = at * walk[op.axis];
                self.copy(&from, (x.into(), &strides(&from)), (At { slot: y, offset }, &walk))?;
                at += from[op.axis];
            }
            self.set(node, 0, Value::Ready(y));
        } else if let Some(op) = node.op_as::<Slice>() {
            let (from, to) = (self.shape(node.inputs[0])?, self.shape(output)?);
            let start = op.start.to_usize().map_err(|e| e.to_string())?;
            let (slot, walk) = (self.slot(node.inputs[0])?, strides(&from));
            let y = self.buffer(&to)?;
            self.copy(&to, (At { slot, offset: start * walk[op.axis] }, &walk), (y.into(), &strides(&to)))?;
            self.set(node, 0, Value::Ready(y));
        } else if let Some(op) = node.op_as::<Downsample>() {
            let step = usize::try_from(op.stride).map_err(|_| "a step backwards".to_owned())?;
            let (from, to) = (self.shape(node.inputs[0])?, self.shape(output)?);
            let (slot, mut walk) = (self.slot(node.inputs[0])?, strides(&from));
            let offset = op.modulo * walk[op.axis];
            walk[op.axis] *= step;
            let y = self.buffer(&to)?;
            self.copy(&to, (At { slot, offset }, &walk), (y.into(), &strides(&to)))?;
            self.set(node, 0, Value::Ready(y));
        } else if let Some(op) = node.op_as::<Pad>() {
            let PadMode::Constant(value) = &op.mode else {
                return Err("padding other than with a constant".to_owned());
            };
            let value = floats(value)?.first().copied().ok_or("no value to pad with")?;
            let (from, to) = (self.shape(node.inputs[0])?, self.shape(output)?);
            let (x, y, walk) = (self.slot(node.inputs[0])?, self.buffer(&to)?, strides(&to));
            self.push(Call::Fill { y: y.into(), n: to.iter().product(), value });
            let offset = op.pads.iter().zip(&walk).map(|((before, _), s)| before * s).sum();
            self.copy(&from, (x.into(), &strides(&from)), (At { slot: y, offset }, &walk))?;
            self.set(node, 0, Value::Ready(y));
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// The memory of a value, for another name of it. Where others read the value too, nothing may be joined to the call
    /// that wrote it any more.
    fn alias(&mut self, outlet: OutletId) -> Lowered<Slot> {
        let slot = self.slot(outlet)?;
        if !self.has_one_reader(outlet) {
            self.writers.remove(&slot);
        }
        Ok(slot)
    }

    /// Copies a box of elements between two layouts.
    fn copy(&mut self, dims: &[usize], from: (At, &[usize]), to: (At, &[usize])) -> Lowered {
        let n = dims.iter().product();
        let (dims, walks) = coalesce(dims, &[from.1.to_vec(), to.1.to_vec()]);
        if dims.len() > MAX_DIMS {
            return Err(format!("a copy over {} dimensions", dims.len()));
        }
        let mut words = vec![0u32; 19];
        words[0] = dims.len() as u32;
        dims.iter().enumerate().for_each(|(i, d)| words[1 + i] = *d as u32);
        for (base, walk) in [(7, &walks[0]), (13, &walks[1])] {
            walk.iter().enumerate().for_each(|(i, s)| words[base + i] = *s as u32);
        }
        let shape = self.constants.intern(words);
        self.push(Call::CopyBox { shape, x: from.0, y: to.0, n });
        Ok(())
    }

    /// The tensor whose axis `i` is axis `order[i]` of the old one.
    pub(super) fn permute(&mut self, x: Slot, shape: &[usize], order: &[usize]) -> Lowered<Slot> {
        if order.iter().filter(|a| shape[**a] != 1).is_sorted() {
            return Ok(x);
        }
        let to: Vec<usize> = order.iter().map(|a| shape[*a]).collect();
        let from = strides(shape);
        let walk: Vec<usize> = order.iter().map(|a| from[*a]).collect();
        let y = self.buffer(&to)?;
        let (dims, walks) = coalesce(&to, std::slice::from_ref(&walk));
        // [batch,] cols, rows of a matrix whose rows lie `cols` apart.
        let plain = match (&dims[..], &walks[0][..]) {
            ([c, r], [1, s]) if s == c => Some((1, *r, *c)),
            ([b, c, r], [s0, 1, s]) if s == c && *s0 == c * r => Some((*b, *r, *c)),
            _ => None,
        };
        match plain {
            Some((batch, rows, cols)) => {
                self.push_writing(y, Call::Transpose { x: x.into(), y: y.into(), batch, rows, cols });
            }
            None => self.copy(&to, (x.into(), &walk), (y.into(), &strides(&to)))?,
        }
        Ok(y)
    }

    /// As [`Lowering::permute`], for a value that may be constant and is then permuted now.
    pub(super) fn permuted(&mut self, outlet: OutletId, shape: &[usize], order: &[usize]) -> Lowered<Slot> {
        if let Some(values) = self.known(outlet)? {
            let to: Vec<usize> = order.iter().map(|a| shape[*a]).collect();
            let (from, to_strides) = (strides(shape), strides(&to));
            let index = |i: usize| -> usize {
                order.iter().enumerate().map(|(d, a)| i / to_strides[d] % to[d] * from[*a]).sum()
            };
            let packed: Vec<f32> = (0..values.len()).map(|i| values[index(i)]).collect();
            return Ok(self.constants.floats(&packed));
        }
        let x = self.slot(outlet)?;
        self.permute(x, shape, order)
    }
}
