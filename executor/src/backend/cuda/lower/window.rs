//! Convolutions and pooling.

use super::super::plan::{Activation, Bias, Call, Pooling, Slot, Window};
use super::tensor::transposed;
use super::{Lowered, Lowering, Value};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::InOut;
use tract_onnx::tract_core::ops::cnn::{Conv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool};
use tract_onnx::tract_core::ops::einsum::EinSum;

/// Outputs from which on the direct 3×3 kernel fills its 16 × 16 tiles well enough.
const DIRECT_PLACES: usize = 64;
/// Places from which on a 1×1 convolution goes through the tiled product.
const PRODUCT_PLACES: usize = 64;

impl Lowering<'_> {
    /// Lowers the operators of this file; false for others.
    pub(super) fn window_node(&mut self, node: &TypedNode) -> Lowered<bool> {
        if let Some(op) = node.op_as::<Conv>() {
            self.conv(node, op)?;
        } else if let Some(op) = node.op_as::<MaxPool>() {
            if op.with_index_outputs.is_some() && !node.outputs[1].successors.is_empty() {
                return Err("the places of the maxima".to_owned());
            }
            self.pool(node, &op.pool_spec, Pooling::Max)?;
        } else if let Some(op) = node.op_as::<SumPool>() {
            let ceil = matches!(op.pool_spec.padding, PaddingSpec::ExplicitOnnxPool(_, _, true));
            let kind = match (op.normalize, op.count_include_pad) {
                (false, _) => Pooling::Sum,
                (true, false) => Pooling::MeanInside,
                (true, true) if ceil => return Err("a mean over padding with the size rounded up".to_owned()),
                (true, true) => Pooling::MeanAll,
            };
            self.pool(node, &op.pool_spec, kind)?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    fn window(&self, node: &TypedNode, spec: &PoolSpec) -> Lowered<Window> {
        let shape = self.shape(node.inputs[0])?;
        let full = spec.data_format.shape(&shape[..]).map_err(|e| e.to_string())?;
        if spec.data_format.c_is_last() {
            return Err("channels last".to_owned());
        }
        let hw = full.hw_dims();
        let padding = spec.computed_padding(hw);
        let two = |values: Vec<usize>, fill: usize| -> Lowered<[usize; 2]> {
            match values[..] {
                [w] => Ok([fill, w]),
                [h, w] => Ok([h, w]),
                _ => Err(format!("a window of {} dimensions", values.len())),
            }
        };
        Ok(Window {
            n: full.n().copied().unwrap_or(1),
            ci: *full.c(),
            co: spec.output_channels,
            input: two(hw.to_vec(), 1)?,
            output: two(padding.iter().map(|p| p.convoluted).collect(), 1)?,
            kernel: two(spec.kernel_shape.to_vec(), 1)?,
            stride: two(spec.strides().to_vec(), 1)?,
            pad: two(padding.iter().map(|p| p.pad_before).collect(), 0)?,
            dilation: two(spec.dilations().to_vec(), 1)?,
        })
    }

    fn pool(&mut self, node: &TypedNode, spec: &PoolSpec, kind: Pooling) -> Lowered {
        let window = self.window(node, spec)?;
        let shape = self.shape(OutletId::new(node.id, 0))?;
        let (x, y) = (self.slot(node.inputs[0])?.into(), self.buffer(&shape)?);
        self.push_writing(y, Call::Pool { x, y: y.into(), window, kind });
        self.set(node, 0, Value::Ready(y));
        Ok(())
    }

    fn conv(&mut self, node: &TypedNode, op: &Conv) -> Lowered {
        if op.q_params.is_some() || op.kernel_fmt != KernelFormat::OIHW {
            return Err(format!("quantised, or a kernel in the order {:?}", op.kernel_fmt));
        }
        let v = self.window(node, &op.pool_spec)?;
        let w = self.must_know(node.inputs[1], "the kernel")?;
        let bias = match node.inputs.get(2) {
            Some(outlet) => self.must_know(*outlet, "the bias")?,
            None => vec![0.0],
        };
        let bias = if bias.len() == v.co { bias } else { vec![bias.first().copied().unwrap_or(0.0); v.co] };
        let taps = v.kernel[0] * v.kernel[1];
        let per_group = v.ci / op.group.max(1);
        if w.len() != v.co * per_group * taps || v.co % op.group != 0 {
            return Err("a kernel of unexpected size".to_owned());
        }
        let shape = self.shape(OutletId::new(node.id, 0))?;
        let (x, y) = (self.slot(node.inputs[0])?, self.buffer(&shape)?);
        let act = Activation::None;
        let plain = v.dilation == [1, 1] && op.group == 1;
        let one = taps == 1 && v.stride == [1, 1] && v.pad == [0, 0] && v.output == v.input;
        if op.group > 1 && op.group == v.ci && v.co == v.ci {
            let (w, bias) = (self.constants.floats(&w), self.constants.floats(&bias));
            self.push_writing(y, Call::Depthwise { x: x.into(), w, bias, y: y.into(), window: v, act });
        } else if plain && v.kernel == [3, 3] && matches!(v.stride, [1, 1] | [2, 2]) && v.places() >= DIRECT_PLACES {
            let (w, bias) = (self.eights(&w, v.co), self.padded(&bias));
            self.push_writing(y, Call::Conv3x3 { x: x.into(), w, bias, y: y.into(), window: v, act });
        } else if plain && one {
            self.push_pointwise(x, &w, Some(&bias), y, [v.n, v.ci, v.co, v.places()]);
        } else {
            let rows = per_group * taps;
            let b = if one {
                x
            } else {
                let col = self.buffer(&[v.n, v.ci * taps, v.places()])?;
                self.push_writing(col, Call::Im2col { x: x.into(), col: col.into(), window: v });
                col
            };
            let (a, bias) = (self.constants.floats(&w), Some(self.constants.floats(&bias)));
            let batch = v.n * op.group;
            self.push_writing(
                y,
                Call::Gemm {
                    a: a.into(),
                    b: b.into(),
                    bias,
                    c: y.into(),
                    m: v.co / op.group,
                    n: v.places(),
                    k: rows,
                    batch,
                    a_mod: op.group,
                    b_mod: batch,
                    bias_kind: Bias::Row,
                    act,
                },
            );
        }
        self.set(node, 0, Value::Ready(y));
        Ok(())
    }

    /// A product of `[n…, ci, places…]` with a constant of two axes that puts `co` where `ci` was: what tract makes of a
    /// 1×1 convolution. Lowered as one, it needs no transposition of the pictures. False for other products.
    pub(super) fn pointwise(&mut self, node: &TypedNode, op: &EinSum) -> Lowered<bool> {
        for (xi, wi) in [(0, 1), (1, 0)] {
            let (x, w) = (node.inputs[xi], node.inputs[wi]);
            let (shape, w_shape) = (self.shape(x)?, self.shape(w)?);
            let Some(weights) = self.known(w)?.filter(|_| w_shape.len() == 2) else { continue };
            let Some((axis, i_first)) = replaced_axis(op, xi, wi, shape.len()) else { continue };
            let (ci, co) = if i_first { (w_shape[0], w_shape[1]) } else { (w_shape[1], w_shape[0]) };
            let (n, places): (usize, usize) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
            if shape[axis] != ci || places == 1 {
                continue;
            }
            let weights = if i_first { transposed(&weights, ci, co) } else { weights };
            let output = self.shape(OutletId::new(node.id, 0))?;
            let (x, y) = (self.slot(x)?, self.buffer(&output)?);
            self.push_pointwise(x, &weights, None, y, [n, ci, co, places]);
            self.set(node, 0, Value::Ready(y));
            return Ok(true);
        }
        Ok(false)
    }

    /// `y[n, co, p] = Σ w[co, ci] x[n, ci, p] + bias[co]`.
    fn push_pointwise(&mut self, x: Slot, w: &[f32], bias: Option<&[f32]>, y: Slot, sizes: [usize; 4]) {
        let [n, ci, co, places] = sizes;
        let act = Activation::None;
        let call = if places < PRODUCT_PLACES {
            let zeros = vec![0.0; co];
            let (w, bias) = (self.eights(w, co), self.padded(bias.unwrap_or(&zeros)));
            Call::Conv1x1 { x: x.into(), w, bias, y: y.into(), n, ci, co, places, act }
        } else {
            let (a, bias) = (self.constants.floats(w), bias.map(|b| self.constants.floats(b)));
            let bias_kind = if bias.is_some() { Bias::Row } else { Bias::None };
            let (m, k, n, batch) = (co, ci, places, n);
            let (a, b, c) = (a.into(), x.into(), y.into());
            Call::Gemm { a, b, bias, c, m, n, k, batch, a_mod: 1, b_mod: batch, bias_kind, act }
        };
        self.push_writing(y, call);
    }

    /// `[co, rest]` packed as `[rest, co rounded up to 8]`.
    fn eights(&mut self, w: &[f32], co: usize) -> Slot {
        let rest = w.len() / co;
        let wide = co.next_multiple_of(8);
        let mut padded = w.to_vec();
        padded.resize(wide * rest, 0.0);
        self.constants.floats(&transposed(&padded, wide, rest))
    }

    /// A bias rounded up to a multiple of 8.
    pub(super) fn padded(&mut self, bias: &[f32]) -> Slot {
        let mut padded = bias.to_vec();
        padded.resize(bias.len().next_multiple_of(8), 0.0);
        self.constants.floats(&padded)
    }
}

/// Where a product replaces an axis of one input by one of the other, and keeps all the rest in place: that axis, and
/// whether the other input has the summed axis first. `x` and `w` are the places of the inputs.
fn replaced_axis(op: &EinSum, x: usize, w: usize, rank: usize) -> Option<(usize, bool)> {
    let (mut summed, mut made) = (None, None);
    for axis in op.axes.iter_all_axes() {
        match (&axis.inputs[x][..], &axis.inputs[w][..], &axis.outputs[0][..]) {
            ([from], [], [to]) if from == to => (),
            ([at], [in_w], []) if summed.is_none() => summed = Some((*at, *in_w)),
            ([], [_], [at]) if made.is_none() => made = Some(*at),
            _ => return None,
        }
    }
    let ((at, in_w), made) = (summed?, made?);
    (at == made && op.axes.rank(InOut::Out(0)) == rank).then_some((at, in_w == 0))
}
