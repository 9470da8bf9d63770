//! Kernel calls: their arguments, their launches, and what they must move and compute at least.

use super::{At, Slot};

/// What is applied to each element of a product before it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None = 0,
    /// `max(x, 0)`.
    Relu = 1,
    /// `1 / (1 + exp(-x))`.
    Sigmoid = 2,
    /// `tanh(x)`.
    Tanh = 3,
    /// `x/2 (1 + erf(x/sqrt 2))`.
    Gelu = 4,
}

/// What is added to a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// Nothing.
    None = 0,
    /// One number for each column.
    Column = 1,
    /// One number for each row.
    Row = 2,
}

/// Geometry of a window over `[N, C, H, W]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Pictures.
    pub n: usize,
    /// Input channels.
    pub ci: usize,
    /// Output channels.
    pub co: usize,
    /// Input height and width.
    pub input: [usize; 2],
    /// Output height and width.
    pub output: [usize; 2],
    /// Window height and width.
    pub kernel: [usize; 2],
    /// Steps.
    pub stride: [usize; 2],
    /// Rows above and columns to the left that lie outside.
    pub pad: [usize; 2],
    /// Distance between the elements of a window.
    pub dilation: [usize; 2],
}

impl Window {
    /// Places of an output plane.
    pub fn places(&self) -> usize {
        self.output[0] * self.output[1]
    }

    fn input_plane(&self) -> usize {
        self.input[0] * self.input[1]
    }

    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// Kinds of pooling, by the numbers of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Maximum.
    Max = 0,
    /// Sum.
    Sum = 1,
    /// Mean of what lies inside.
    MeanInside = 2,
    /// Mean over the whole window.
    MeanAll = 3,
}

/// Kinds of reduction, by the numbers of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Sum.
    Sum = 0,
    /// Maximum.
    Max = 1,
    /// Minimum.
    Min = 2,
    /// Product.
    Product = 3,
    /// Mean of the squares.
    MeanSquare = 4,
}

/// One kernel call. Formulas, layouts and launch bounds: `executor/kernels/README.md`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "fields are the kernel's arguments")]
pub enum Call {
    Gemm {
        a: At,
        b: At,
        bias: Option<Slot>,
        c: At,
        m: usize,
        n: usize,
        k: usize,
        batch: usize,
        a_mod: usize,
        b_mod: usize,
        bias_kind: Bias,
        act: Activation,
    },
    Conv3x3 {
        x: At,
        w: Slot,
        bias: Slot,
        y: At,
        window: Window,
        act: Activation,
    },
    Conv1x1 {
        x: At,
        w: Slot,
        bias: Slot,
        y: At,
        n: usize,
        ci: usize,
        co: usize,
        places: usize,
        act: Activation,
    },
    Depthwise {
        x: At,
        w: Slot,
        bias: Slot,
        y: At,
        window: Window,
        act: Activation,
    },
    Im2col {
        x: At,
        col: At,
        window: Window,
    },
    Pool {
        x: At,
        y: At,
        window: Window,
        kind: Pooling,
    },
    Softmax {
        x: At,
        y: At,
        outer: usize,
        n: usize,
        inner: usize,
    },
    LayerNorm {
        x: At,
        gain: Slot,
        shift: Slot,
        y: At,
        rows: usize,
        n: usize,
        eps: f32,
    },
    RmsNorm {
        x: At,
        y: At,
        outer: usize,
        n: usize,
        inner: usize,
        eps: f32,
    },
    Reduce {
        x: At,
        y: At,
        outer: usize,
        n: usize,
        inner: usize,
        kind: Reduction,
    },
    GruStep {
        xw: At,
        rt: Slot,
        rb: Slot,
        prev: At,
        next: At,
        y: Option<At>,
        rows: usize,
        hidden: usize,
        xw_stride: usize,
        y_stride: usize,
    },
    Chain {
        program: Slot,
        x: Vec<At>,
        y: At,
        n: usize,
        steps: usize,
        read: usize,
    },
    CopyBox {
        shape: Slot,
        x: At,
        y: At,
        n: usize,
    },
    Fill {
        y: At,
        n: usize,
        value: f32,
    },
    Transpose {
        x: At,
        y: At,
        batch: usize,
        rows: usize,
        cols: usize,
    },
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Arg {
    /// Device pointer.
    At(At),
    /// Null pointer.
    Null,
    /// 32-bit integer.
    Int(i32),
    /// 32-bit float.
    Float(f32),
}

/// A kernel call as the driver wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Launch {
    /// Entry name.
    pub kernel: &'static str,
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads.
    pub block: [u32; 3],
    /// Arguments.
    pub args: Vec<Arg>,
}

/// What a call must move and compute at least.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Floor {
    /// Bytes to and from device memory, each operand once.
    pub bytes: u64,
    /// Floating-point operations; a multiply-add is two.
    pub operations: u64,
}

impl std::ops::AddAssign for Floor {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.operations += other.operations;
    }
}

/// Rows up to which the thin product is used.
pub const SMALL_ROWS: usize = 16;

fn over(n: usize, per: usize) -> u32 {
    u32::try_from(n.div_ceil(per)).unwrap_or(u32::MAX)
}

fn ints(values: &[usize]) -> impl Iterator<Item = Arg> + '_ {
    values.iter().map(|v| Arg::Int(i32::try_from(*v).unwrap_or(i32::MAX)))
}

impl Call {
    /// The launch of this call.
    pub fn launch(&self) -> Launch {
        let at = |a: &At| Arg::At(*a);
        let slot = |s: &Slot| Arg::At((*s).into());
        let make = |kernel, grid, block, pointers: Vec<Arg>, sizes: &[usize]| Launch {
            kernel,
            grid,
            block,
            args: pointers.into_iter().chain(ints(sizes)).collect(),
        };
        match self {
            Call::Gemm { a, b, bias, c, m, n, k, batch, a_mod, b_mod, bias_kind, act } => {
                let bias = bias.as_ref().map_or(Arg::Null, slot);
                let pointers = vec![at(a), at(b), bias, at(c)];
                if self.is_thin() {
                    let sizes = [*m, *n, *k, *bias_kind as usize, *act as usize];
                    return make("linear_small_f32", [over(*n, 32), over(*m, 4), 1], [32, 8, 1], pointers, &sizes);
                }
                let aligned = n % 4 == 0 && k % 4 == 0 && [a, b, c].iter().all(|p| p.offset % 4 == 0);
                let kernel = if aligned { "gemm_vec4_f32" } else { "gemm_f32" };
                let sizes = [*m, *n, *k, *a_mod, *b_mod, *bias_kind as usize, *act as usize];
                make(kernel, [over(*n, 64), over(*m, 64), over(*batch, 1)], [256, 1, 1], pointers, &sizes)
            }
            Call::Conv3x3 { x, w, bias, y, window: v, act } => {
                let kernel = if v.stride == [1, 1] { "conv3x3_s1_f32" } else { "conv3x3_s2_f32" };
                let grid = [over(v.output[1], 16) * over(v.output[0], 16), over(v.co, 8), over(v.n, 1)];
                let sizes =
                    [v.ci, v.input[0], v.input[1], v.co, v.output[0], v.output[1], v.pad[0], v.pad[1], *act as usize];
                make(kernel, grid, [16, 16, 1], vec![at(x), slot(w), slot(bias), at(y)], &sizes)
            }
            Call::Conv1x1 { x, w, bias, y, n, ci, co, places, act } => {
                let grid = [over(*places, 128), over(*co, 8), over(*n, 1)];
                let pointers = vec![at(x), slot(w), slot(bias), at(y)];
                make("conv1x1_f32", grid, [128, 1, 1], pointers, &[*ci, *places, *co, *act as usize])
            }
            Call::Depthwise { x, w, bias, y, window: v, act } => {
                let mut sizes = vec![v.input[0], v.input[1], v.kernel[0], v.kernel[1]];
                sizes.extend(v.tail());
                sizes.push(*act as usize);
                let grid = [over(v.places(), 128), over(v.ci, 1), over(v.n, 1)];
                make("depthwise_f32", grid, [128, 1, 1], vec![at(x), slot(w), slot(bias), at(y)], &sizes)
            }
            Call::Im2col { x, col, window: v } => {
                let mut sizes = vec![v.ci, v.input[0], v.input[1], v.kernel[0], v.kernel[1]];
                sizes.extend(v.tail());
                let grid = [over(v.ci * v.taps() * v.places(), 256), over(v.n, 1), 1];
                make("im2col_f32", grid, [256, 1, 1], vec![at(x), at(col)], &sizes)
            }
            Call::Pool { x, y, window: v, kind } => {
                let mut sizes = vec![v.n * v.ci, v.input[0], v.input[1], v.kernel[0], v.kernel[1]];
                sizes.extend(v.tail());
                sizes.push(*kind as usize);
                let grid = [over(v.n * v.ci * v.places(), 128), 1, 1];
                make("pool_f32", grid, [128, 1, 1], vec![at(x), at(y)], &sizes)
            }
            Call::Softmax { x, y, outer, n, inner } => {
                let grid = [over(outer * inner, 4), 1, 1];
                make("softmax_f32", grid, [32, 4, 1], vec![at(x), at(y)], &[*outer, *n, *inner])
            }
            Call::LayerNorm { x, gain, shift, y, rows, n, eps } => {
                let pointers = vec![at(x), slot(gain), slot(shift), at(y)];
                let mut launch = make("layer_norm_f32", [over(*rows, 1), 1, 1], [128, 1, 1], pointers, &[*n]);
                launch.args.push(Arg::Float(*eps));
                launch
            }
            Call::RmsNorm { x, y, outer, n, inner, eps } => {
                let grid = [over(outer * inner, 1), 1, 1];
                let mut launch = make("rms_norm_f32", grid, [128, 1, 1], vec![at(x), at(y)], &[*n, *inner]);
                launch.args.push(Arg::Float(*eps));
                launch
            }
            Call::Reduce { x, y, outer, n, inner, kind } if *inner == 1 => make(
                "reduce_row_f32",
                [over(*outer, 4), 1, 1],
                [32, 4, 1],
                vec![at(x), at(y)],
                &[*outer, *n, *kind as usize],
            ),
            Call::Reduce { x, y, outer, n, inner, kind } => {
                let sizes = [*outer, *n, *inner, *kind as usize];
                make("reduce_col_f32", [over(outer * inner, 128), 1, 1], [128, 1, 1], vec![at(x), at(y)], &sizes)
            }
            Call::GruStep { xw, rt, rb, prev, next, y, rows, hidden, xw_stride, y_stride } => {
                let pointers = vec![at(xw), slot(rt), slot(rb), at(prev), at(next), y.as_ref().map_or(Arg::Null, at)];
                let grid = [over(*hidden, 32), over(*rows, 1), 1];
                make("gru_step_f32", grid, [32, 8, 1], pointers, &[*hidden, *xw_stride, *y_stride])
            }
            Call::Chain { program, x, y, n, .. } => {
                let mut pointers = vec![slot(program)];
                pointers.extend((0..6).map(|i| x.get(i).map_or(Arg::Null, at)));
                pointers.push(at(y));
                make("chain_f32", [over(*n, 256), 1, 1], [256, 1, 1], pointers, &[*n])
            }
            Call::CopyBox { shape, x, y, n } => {
                let base = |a: &At| At { slot: a.slot, offset: 0 };
                let pointers = vec![slot(shape), at(&base(x)), at(&base(y))];
                make("copy_box_f32", [over(*n, 256), 1, 1], [256, 1, 1], pointers, &[*n, x.offset, y.offset])
            }
            Call::Fill { y, n, value } => {
                let mut launch = make("fill_f32", [over(*n, 256), 1, 1], [256, 1, 1], vec![at(y)], &[*n]);
                launch.args.push(Arg::Float(*value));
                launch
            }
            Call::Transpose { x, y, batch, rows, cols } => {
                let grid = [over(*cols, 32), over(*rows, 32), over(*batch, 1)];
                make("transpose_f32", grid, [32, 8, 1], vec![at(x), at(y)], &[*rows, *cols])
            }
        }
    }

    /// Where it writes.
    pub fn written(&self) -> Vec<Slot> {
        match self {
            Call::Gemm { c: y, .. }
            | Call::Conv3x3 { y, .. }
            | Call::Conv1x1 { y, .. }
            | Call::Depthwise { y, .. }
            | Call::Im2col { col: y, .. }
            | Call::Pool { y, .. }
            | Call::Softmax { y, .. }
            | Call::LayerNorm { y, .. }
            | Call::RmsNorm { y, .. }
            | Call::Reduce { y, .. }
            | Call::Chain { y, .. }
            | Call::CopyBox { y, .. }
            | Call::Fill { y, .. }
            | Call::Transpose { y, .. } => vec![y.slot],
            Call::GruStep { next, y, .. } => std::iter::once(next.slot).chain(y.map(|y| y.slot)).collect(),
        }
    }

    /// A product of so few rows that the thin kernel fills the device better.
    fn is_thin(&self) -> bool {
        matches!(self, Call::Gemm { m, batch: 1, bias_kind, .. } if *m <= SMALL_ROWS && *bias_kind != Bias::Row)
    }

    /// What the call must move and compute at least.
    pub fn floor(&self) -> Floor {
        let f =
            |elements: usize, operations: usize| Floor { bytes: 4 * elements as u64, operations: operations as u64 };
        match self {
            Call::Gemm { m, n, k, batch, a_mod, b_mod, .. } => {
                f(a_mod.min(batch) * m * k + b_mod.min(batch) * k * n + batch * m * n, 2 * batch * m * n * k)
            }
            Call::Conv3x3 { window: v, .. } => f(
                v.n * (v.ci * v.input_plane() + v.co * v.places()) + v.ci * v.co * 9,
                2 * v.n * v.co * v.places() * v.ci * 9,
            ),
            Call::Conv1x1 { n, ci, co, places, .. } => f(n * places * (ci + co) + ci * co, 2 * n * places * ci * co),
            Call::Depthwise { window: v, .. } => {
                f(v.n * v.ci * (v.input_plane() + v.places()), 2 * v.n * v.ci * v.places() * v.taps())
            }
            Call::Im2col { window: v, .. } => f(v.n * v.ci * (v.input_plane() + v.taps() * v.places()), 0),
            Call::Pool { window: v, .. } => {
                f(v.n * v.ci * (v.input_plane() + v.places()), v.n * v.ci * v.places() * v.taps())
            }
            Call::Softmax { outer, n, inner, .. } => f(2 * outer * n * inner, 4 * outer * n * inner),
            Call::LayerNorm { rows, n, .. } => f(2 * rows * n + 2 * n, 7 * rows * n),
            Call::RmsNorm { outer, n, inner, .. } => f(2 * outer * n * inner, 3 * outer * n * inner),
            Call::Reduce { outer, n, inner, .. } => f(outer * inner * (n + 1), outer * n * inner),
            Call::GruStep { rows, hidden, .. } => {
                f(3 * hidden * hidden + rows * 5 * hidden, rows * 6 * hidden * hidden)
            }
            Call::Chain { n, steps, read, .. } => f(n + read, n * steps),
            Call::CopyBox { n, .. } => f(2 * n, 0),
            Call::Fill { n, .. } => f(*n, 0),
            Call::Transpose { batch, rows, cols, .. } => f(2 * batch * rows * cols, 0),
        }
    }
}

impl Window {
    fn tail(&self) -> [usize; 8] {
        [
            self.output[0],
            self.output[1],
            self.stride[0],
            self.stride[1],
            self.pad[0],
            self.pad[1],
            self.dilation[0],
            self.dilation[1],
        ]
    }
}
