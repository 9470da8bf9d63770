//! Products, recurrences, normalisations, reductions.

use super::super::plan::{Activation, At, Bias, Call, Reduction};
use super::{Lowered, Lowering, Value};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::gru_seq::GruSeq;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer, RmsNorm, Softmax, SoftmaxKind};

impl Lowering<'_> {
    /// Lowers the operators of this file; false for others.
    pub(super) fn tensor_node(&mut self, node: &TypedNode) -> Lowered<bool> {
        if let Some(op) = node.op_as::<EinSum>() {
            self.einsum(node, op)?;
        } else if let Some(op) = node.op_as::<GruSeq>() {
            self.gru(node, op)?;
        } else if let Some(op) = node.op_as::<Softmax>() {
            if op.kind != SoftmaxKind::Softmax || op.quant_output_dt.is_some() {
                return Err(format!("the kind {:?}", op.kind));
            }
            let shape = self.shape(node.inputs[0])?;
            let (outer, n, inner) = split(&shape, &op.axes)?;
            let (x, y) = (self.slot(node.inputs[0])?.into(), self.buffer(&shape)?);
            self.push_writing(y, Call::Softmax { x, y: y.into(), outer, n, inner });
            self.set(node, 0, Value::Ready(y));
        } else if let Some(op) = node.op_as::<RmsNorm>() {
            self.rms_norm(node, op)?;
        } else if let Some(op) = node.op_as::<Reduce>() {
            self.reduce(node, op)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// A product of two tensors: every axis is one of batch (both inputs and the output), row (first input and output),
    /// column (second input and output) or sum (both inputs).
    fn einsum(&mut self, node: &TypedNode, op: &EinSum) -> Lowered {
        let [a, b] = node.inputs[..] else { return Err(format!("{} inputs", node.inputs.len())) };
        if op.q_params.is_some() {
            return Err("quantised".to_owned());
        }
        if self.pointwise(node, op)? {
            return Ok(());
        }
        let (shape_a, shape_b, shape_c) = (self.shape(a)?, self.shape(b)?, self.shape(OutletId::new(node.id, 0))?);
        let mut roles = Roles::default();
        for axis in op.axes.iter_all_axes() {
            let position = |list: &[usize]| -> Lowered<Option<usize>> {
                if list.len() > 1 {
                    Err("an axis that occurs twice in one tensor".to_owned())
                } else {
                    Ok(list.first().copied())
                }
            };
            let at = (position(&axis.inputs[0])?, position(&axis.inputs[1])?, position(&axis.outputs[0])?);
            match at {
                (Some(a), Some(b), Some(c)) if shape_a[a] == shape_b[b] => roles.batch.push((a, b, c)),
                (Some(a), Some(b), None) if shape_a[a] == shape_b[b] => roles.sum.push((a, b)),
                (Some(a), None, Some(c)) => roles.row.push((a, c)),
                (None, Some(b), Some(c)) => roles.column.push((b, c)),
                // An axis of size 1 that one side lacks.
                (Some(a), Some(b), Some(c)) if shape_b[b] == 1 => {
                    roles.row.push((a, c));
                    roles.idle_b.push(b);
                }
                (Some(a), Some(b), Some(c)) if shape_a[a] == 1 => {
                    roles.column.push((b, c));
                    roles.idle_a.push(a);
                }
                (None, None, Some(c)) if shape_c[c] == 1 => roles.idle_c.push(c),
                (Some(a), None, None) if shape_a[a] == 1 => roles.idle_a.push(a),
                (None, Some(b), None) if shape_b[b] == 1 => roles.idle_b.push(b),
                _ => return Err(format!("the axis {} of {}", axis.repr, op.axes)),
            }
        }
        roles.batch.sort_by_key(|x| x.2);
        roles.row.sort_by_key(|x| x.1);
        roles.column.sort_by_key(|x| x.1);
        roles.sum.sort_by_key(|x| x.0);
        // Exchange the sides where that spares a transposition of the result.
        let natural: Vec<usize> = roles.output();
        let exchanged = roles.exchanged();
        let in_order = |order: &[usize]| order.iter().filter(|c| shape_c[**c] != 1).is_sorted();
        let swap = !in_order(&natural) && in_order(&exchanged.output());
        let (roles, a, b, shape_a, shape_b) =
            if swap { (exchanged, b, a, shape_b, shape_a) } else { (roles, a, b, shape_a, shape_b) };

        let size = |shape: &[usize], axes: &[usize]| axes.iter().map(|x| shape[*x]).product::<usize>();
        let (batch_a, row, sum_a) = roles.of_a();
        let (batch_b, sum_b, column) = roles.of_b();
        let batch = size(&shape_a, &batch_a);
        let (m, k, n) = (size(&shape_a, &row), size(&shape_a, &sum_a), size(&shape_b, &column));
        let order_a: Vec<usize> = [batch_a, row, sum_a, roles.idle_a.clone()].concat();
        let order_b: Vec<usize> = [batch_b, sum_b, column, roles.idle_b.clone()].concat();
        let a = self.permuted(a, &shape_a, &order_a)?;
        let b = self.permuted(b, &shape_b, &order_b)?;
        let order_c = roles.output();
        let canonical: Vec<usize> = order_c.iter().map(|c| shape_c[*c]).collect();
        let c = self.buffer(&canonical)?;
        self.push_writing(
            c,
            Call::Gemm {
                a: a.into(),
                b: b.into(),
                bias: None,
                c: c.into(),
                m,
                n,
                k,
                batch,
                a_mod: batch,
                b_mod: batch,
                bias_kind: Bias::None,
                act: Activation::None,
            },
        );
        // Axis `order_c[i]` of the result is axis `i` of what was computed.
        let mut back = vec![0; order_c.len()];
        order_c.iter().enumerate().for_each(|(i, axis)| back[*axis] = i);
        let y = self.permute(c, &canonical, &back)?;
        self.set(node, 0, Value::Ready(y));
        Ok(())
    }

    fn gru(&mut self, node: &TypedNode, op: &GruSeq) -> Lowered {
        if !op.reset_every_turn {
            return Err("it carries its state from one request to the next".to_owned());
        }
        let h = op.hidden;
        let shape = self.shape(node.inputs[0])?;
        let [rows, steps, width] = shape[..] else { return Err(format!("an input of shape {shape:?}")) };
        let r_at = if op.projected { 1 } else { 2 };
        let r = self.must_know(node.inputs[r_at], "the recurrent weight")?;
        let bias = if op.has_bias { self.must_know(node.inputs[r_at + 1], "the bias")? } else { vec![0.0; 6 * h] };
        let h0 = *node.inputs.last().ok_or("no inputs")?;
        if r.len() != 3 * h * h || bias.len() != 6 * h || self.shape(h0)?.iter().product::<usize>() != rows * h {
            return Err("weights of unexpected sizes".to_owned());
        }
        let x = self.slot(node.inputs[0])?;
        let xw = if op.projected {
            x
        } else {
            let w = self.must_know(node.inputs[1], "the input weight")?;
            if w.len() != 3 * h * width {
                return Err("an input weight of unexpected size".to_owned());
            }
            let b = self.constants.floats(&transposed(&w, 3 * h, width));
            let bias = Some(self.constants.floats(&bias[..3 * h]));
            let c = self.buffer(&[rows * steps, 3 * h])?;
            let (m, n, k) = (rows * steps, 3 * h, width);
            self.push_writing(
                c,
                Call::Gemm {
                    a: x.into(),
                    b: b.into(),
                    bias,
                    c: c.into(),
                    m,
                    n,
                    k,
                    batch: 1,
                    a_mod: 1,
                    b_mod: 1,
                    bias_kind: Bias::Column,
                    act: Activation::None,
                },
            );
            c
        };
        let rt = self.constants.floats(&transposed(&r, 3 * h, h));
        let rb = self.constants.floats(&bias[3 * h..]);
        let y = if op.emit_y { Some(self.buffer(&[rows, steps, h])?) } else { None };
        let mut prev = self.slot(h0)?;
        for step in 0..steps {
            let t = if op.chunk < 0 { steps - 1 - step } else { step };
            let next = self.buffer(&[rows, h])?;
            self.push(Call::GruStep {
                xw: At { slot: xw, offset: t * 3 * h },
                rt,
                rb,
                prev: prev.into(),
                next: next.into(),
                y: y.map(|slot| At { slot, offset: t * h }),
                rows,
                hidden: h,
                xw_stride: steps * 3 * h,
                y_stride: steps * h,
            });
            prev = next;
        }
        if let Some(y) = y {
            self.set(node, 0, Value::Ready(y));
        }
        self.set(node, 1, Value::Ready(prev));
        Ok(())
    }

    fn rms_norm(&mut self, node: &TypedNode, op: &RmsNorm) -> Lowered {
        let shape = self.shape(node.inputs[0])?;
        let eps = super::floats(&op.eps)?.first().copied().ok_or("no epsilon")?;
        let (outer, n, inner) = split(&shape, &[op.axis])?;
        let y = self.buffer(&shape)?;
        let call = match self.centred(node.inputs[0], op.axis).filter(|_| inner == 1) {
            Some(x) => {
                let (gain, shift) = (self.constants.floats(&vec![1.0; n]), self.constants.floats(&vec![0.0; n]));
                Call::LayerNorm { x: self.slot(x)?.into(), gain, shift, y: y.into(), rows: outer, n, eps }
            }
            None => Call::RmsNorm { x: self.slot(node.inputs[0])?.into(), y: y.into(), outer, n, inner, eps },
        };
        self.push_writing(y, call);
        self.set(node, 0, Value::Ready(y));
        Ok(())
    }

    /// `x` where a value is `x - sum(x) / n` along an axis: layer normalisation. The calls of the mean are dropped later,
    /// when nobody else reads them.
    fn centred(&self, outlet: OutletId, axis: usize) -> Option<OutletId> {
        let node = |o: OutletId| self.model.node(o.node);
        let binary = |o: OutletId, name: &str| {
            let op = node(o).op_as::<TypedBinOp>()?;
            (op.0.name() == name && node(o).inputs.len() == 2).then(|| (node(o).inputs[0], node(o).inputs[1]))
        };
        let (x, mean) = binary(outlet, "Sub")?;
        let (a, b) = binary(mean, "Mul")?;
        let (sum, scale) = if node(a).op_is::<Reduce>() { (a, b) } else { (b, a) };
        let reduce = node(sum).op_as::<Reduce>()?;
        let n = *self.shape(x).ok()?.get(axis)? as f32;
        let scale = self.known(scale).ok()??;
        let is_mean = scale.iter().all(|s| (s * n - 1.0).abs() < 1e-5);
        let same = node(sum).inputs[0] == x && reduce.reducer == Reducer::Sum && reduce.axes[..] == [axis];
        (is_mean && same).then_some(x)
    }

    fn reduce(&mut self, node: &TypedNode, op: &Reduce) -> Lowered {
        let kind = match op.reducer {
            Reducer::Sum => Reduction::Sum,
            Reducer::Max => Reduction::Max,
            Reducer::Min => Reduction::Min,
            Reducer::Prod => Reduction::Product,
            Reducer::MeanOfSquares => Reduction::MeanSquare,
            other => return Err(format!("the reduction {other:?}")),
        };
        let mut shape = self.shape(node.inputs[0])?;
        let mut x = self.slot(node.inputs[0])?;
        let mut axes = op.axes.to_vec();
        axes.sort_unstable();
        if axes.is_empty() {
            return Err("a reduction over nothing".to_owned());
        }
        // Neighbouring axes at once, from the last; those apart one after the other.
        while let Some(last) = axes.pop() {
            let mut first = last;
            while axes.last().is_some_and(|a| a + 1 == first) {
                first -= 1;
                axes.pop();
            }
            if kind == Reduction::MeanSquare && !axes.is_empty() {
                return Err("a mean of squares over axes that are apart".to_owned());
            }
            let run: Vec<usize> = (first..=last).collect();
            let (outer, n, inner) = split(&shape, &run)?;
            run.iter().for_each(|a| shape[*a] = 1);
            let y = self.buffer(&shape)?;
            self.push_writing(y, Call::Reduce { x: x.into(), y: y.into(), outer, n, inner, kind });
            x = y;
        }
        self.set(node, 0, Value::Ready(x));
        Ok(())
    }
}

/// Axes of a product by what they do. Positions in the first input, the second, the output.
#[derive(Debug, Default, Clone)]
struct Roles {
    batch: Vec<(usize, usize, usize)>,
    row: Vec<(usize, usize)>,
    column: Vec<(usize, usize)>,
    sum: Vec<(usize, usize)>,
    idle_a: Vec<usize>,
    idle_b: Vec<usize>,
    /// Axes of size 1 that only the output has.
    idle_c: Vec<usize>,
}

impl Roles {
    /// Axes of the output in the order the kernel writes them.
    fn output(&self) -> Vec<usize> {
        let batch = self.batch.iter().map(|x| x.2);
        batch
            .chain(self.row.iter().map(|x| x.1))
            .chain(self.column.iter().map(|x| x.1))
            .chain(self.idle_c.iter().copied())
            .collect()
    }

    fn exchanged(&self) -> Roles {
        Roles {
            batch: self.batch.iter().map(|(a, b, c)| (*b, *a, *c)).collect(),
            row: self.column.clone(),
            column: self.row.clone(),
            sum: self.sum.iter().map(|(a, b)| (*b, *a)).collect(),
            idle_a: self.idle_b.clone(),
            idle_b: self.idle_a.clone(),
            idle_c: self.idle_c.clone(),
        }
    }

    fn of_a(&self) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
        (
            self.batch.iter().map(|x| x.0).collect(),
            self.row.iter().map(|x| x.0).collect(),
            self.sum.iter().map(|x| x.0).collect(),
        )
    }

    fn of_b(&self) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
        (
            self.batch.iter().map(|x| x.1).collect(),
            self.sum.iter().map(|x| x.1).collect(),
            self.column.iter().map(|x| x.0).collect(),
        )
    }
}

/// A shape seen as [outer, n, inner] around neighbouring axes.
fn split(shape: &[usize], axes: &[usize]) -> Lowered<(usize, usize, usize)> {
    let (Some(first), Some(last)) = (axes.iter().min(), axes.iter().max()) else {
        return Err("no axes".to_owned());
    };
    if last - first + 1 != axes.len() || *last >= shape.len() {
        return Err(format!("axes {axes:?} of a shape of {} dimensions", shape.len()));
    }
    let product = |range: &[usize]| range.iter().product::<usize>();
    Ok((product(&shape[..*first]), product(&shape[*first..=*last]), product(&shape[last + 1..])))
}

/// `rows × cols` to `cols × rows`.
pub(super) fn transposed(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect()
}
