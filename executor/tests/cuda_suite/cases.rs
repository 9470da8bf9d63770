//! Models of one operator each, at shapes that are odd, one, prime, and larger than a tile.

use super::onnx::Attribute::{Float, Int, Ints, Text};
use super::onnx::{Attribute, Graph};

/// What the inputs of a case are drawn from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Domain {
    /// -2 to 2.
    Any,
    /// 0.1 to 3.
    Positive,
}

/// A model with its inputs' domain.
#[derive(Debug)]
pub struct Case {
    /// Operator and shape.
    pub name: String,
    /// The file.
    pub bytes: Vec<u8>,
    /// Where inputs are drawn from.
    pub domain: Domain,
}

/// All cases; weights come from `seed`.
pub fn all(seed: u64) -> Vec<Case> {
    let mut cases = Cases { seed, list: Vec::new() };
    cases.elementwise();
    cases.chains();
    cases.products();
    cases.norms();
    cases.reductions();
    cases.convolutions();
    cases.pools();
    cases.recurrences();
    cases.moves();
    cases.network();
    cases.list
}

struct Cases {
    seed: u64,
    list: Vec<Case>,
}

/// Shapes of a row: one element, a prime, two odd dimensions of more than a block.
const SHAPES: [&[usize]; 4] = [&[1], &[13], &[5, 67], &[3, 1, 17]];

impl Cases {
    /// One input of `shape`; the value `build` gives is the output.
    fn add(&mut self, name: &str, shape: &[usize], domain: Domain, build: impl FnOnce(&mut Graph, &str) -> String) {
        let mut graph = Graph::new(self.seed + self.list.len() as u64);
        let x = graph.input(shape);
        let y = build(&mut graph, &x);
        graph.output(&y);
        self.list.push(Case { name: format!("{name} {shape:?}"), bytes: graph.bytes(), domain });
    }

    /// A node with one input.
    fn unary(&mut self, operator: &str, domain: Domain, attributes: &[(&str, Attribute)]) {
        for shape in SHAPES {
            self.add(operator, shape, domain, |g, x| g.node(operator, &[x], attributes));
        }
    }

    fn elementwise(&mut self) {
        use Domain::{Any, Positive};
        for operator in ["Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Floor", "Ceil", "Erf", "HardSwish", "Relu", "Sign"] {
            self.unary(operator, Any, &[]);
        }
        for operator in ["Log", "Sqrt", "Reciprocal"] {
            self.unary(operator, Positive, &[]);
        }
        self.unary("LeakyRelu", Any, &[("alpha", Float(0.03))]);
        self.unary("Gelu", Any, &[]);
        self.unary("Gelu", Any, &[("approximate", Text("tanh"))]);
        for shape in SHAPES {
            self.add("x*sigmoid(x)", shape, Any, |g, x| {
                let s = g.node("Sigmoid", &[x], &[]);
                g.node("Mul", &[x, &s], &[])
            });
            self.add("1/sqrt(x)", shape, Positive, |g, x| {
                let s = g.node("Sqrt", &[x], &[]);
                g.node("Reciprocal", &[&s], &[])
            });
            for power in [2.0, 3.0, 2.7, -1.5] {
                self.add(&format!("Pow {power}"), shape, Positive, |g, x| {
                    let p = g.floats(&[], vec![power]);
                    g.node("Pow", &[x, &p], &[])
                });
            }
        }
        for operator in ["Add", "Sub", "Mul", "Div", "Max", "Min", "Pow"] {
            for shape in SHAPES {
                // Against a scalar, a vector, and another value; on either side.
                for side in ["number", "vector", "value"] {
                    for first in [true, false] {
                        let name = format!("{operator} {side} {}", if first { "left" } else { "right" });
                        self.add(&name, shape, Positive, |g, x| {
                            let other = match side {
                                "number" => g.floats(&[], vec![1.7]),
                                "vector" => {
                                    let n = shape[shape.len() - 1];
                                    g.floats(&[n], (0..n).map(|i| 0.5 + (i % 5) as f32 / 3.0).collect())
                                }
                                _ => g.node("Sigmoid", &[x], &[]),
                            };
                            let (a, b) = if first { (other.as_str(), x) } else { (x, other.as_str()) };
                            g.node(operator, &[a, b], &[])
                        });
                    }
                }
            }
        }
    }

    fn chains(&mut self) {
        // More operands than one chain reads, a value read twice, a broadcast over a middle dimension.
        for shape in [&[7usize, 1, 9][..], &[4, 3, 33], &[1, 1, 1]] {
            self.add("long chain", shape, Domain::Any, |g, x| {
                let mut v = x.to_owned();
                for i in 0..9 {
                    let n = if i % 2 == 0 { vec![1, shape[2]] } else { vec![shape[0], 1, 1] };
                    let w = g.weights(&n, 1.0);
                    v = g.node(["Add", "Mul", "Sub"][i % 3], &[&v, &w], &[]);
                }
                let t = g.node("Tanh", &[&v], &[]);
                g.node("Add", &[&t, &v], &[])
            });
        }
        let mut graph = Graph::new(self.seed);
        let (a, b) = (graph.input(&[5, 1, 3]), graph.input(&[1, 7, 3]));
        let sum = graph.node("Sub", &[&a, &b], &[]);
        let product = graph.node("Mul", &[&b, &sum], &[]);
        graph.output(&sum);
        graph.output(&product);
        self.list.push(Case {
            name: "two inputs, two outputs, both broadcast".to_owned(),
            bytes: graph.bytes(),
            domain: Domain::Any,
        });
    }

    fn products(&mut self) {
        for (k, n) in [(1, 1), (7, 13), (64, 64), (67, 131)] {
            for act in ["", "Relu", "Sigmoid", "Tanh", "Gelu"] {
                self.add(&format!("Gemm to {n} {act}"), &[k], Domain::Any, |g, x| {
                    let (w, b) = (g.weights(&[k, n], 0.5), g.weights(&[n], 0.5));
                    let y = g.node("Gemm", &[x, &w, &b], &[]);
                    if act.is_empty() { y } else { g.node(act, &[&y], &[]) }
                });
            }
            self.add(&format!("Gemm transposed, without bias, to {n}"), &[k], Domain::Any, |g, x| {
                let w = g.weights(&[n, k], 0.5);
                g.node("Gemm", &[x, &w], &[("transB", Int(1))])
            });
        }
        // Rows beyond the thin product: the tiled kernels, with and without wide loads.
        for (m, k, n) in [(17, 5, 3), (67, 17, 65), (64, 64, 64), (68, 20, 132)] {
            self.add(&format!("MatMul with a constant of {k}x{n}"), &[m, k], Domain::Any, |g, x| {
                let (w, b) = (g.weights(&[k, n], 0.5), g.weights(&[n], 0.5));
                let y = g.node("MatMul", &[x, &w], &[]);
                let y = g.node("Add", &[&y, &b], &[]);
                g.node("Relu", &[&y], &[])
            });
            self.add(&format!("MatMul of values, transposed, {n}"), &[m, k], Domain::Any, |g, x| {
                let w = g.weights(&[k, k], 0.3);
                let key = g.node("MatMul", &[x, &w], &[]);
                let key = g.node("Transpose", &[&key], &[("perm", Ints(vec![0, 2, 1]))]);
                g.node("MatMul", &[x, &key], &[])
            });
        }
        for (heads, t, d) in [(1, 1, 1), (3, 5, 7), (2, 19, 4)] {
            // Attention: products of four dimensions, a softmax, transpositions between.
            self.add("attention", &[t, heads * d], Domain::Any, |g, x| {
                let shape = g.integers(&[0, t as i64, heads as i64, d as i64]);
                let back = g.integers(&[0, t as i64, (heads * d) as i64]);
                let split = g.node("Reshape", &[x, &shape], &[]);
                let q = g.node("Transpose", &[&split], &[("perm", Ints(vec![0, 2, 1, 3]))]);
                let k = g.node("Transpose", &[&split], &[("perm", Ints(vec![0, 2, 3, 1]))]);
                let scores = g.node("MatMul", &[&q, &k], &[]);
                let weights = g.node("Softmax", &[&scores], &[("axis", Int(-1))]);
                let mixed = g.node("MatMul", &[&weights, &q], &[]);
                let mixed = g.node("Transpose", &[&mixed], &[("perm", Ints(vec![0, 2, 1, 3]))]);
                g.node("Reshape", &[&mixed, &back], &[])
            });
        }
    }

    fn norms(&mut self) {
        for shape in [&[1usize][..], &[7], &[3, 131], &[5, 4, 17]] {
            for axis in 1..=shape.len() as i64 {
                self.add(&format!("Softmax axis {axis}"), shape, Domain::Any, |g, x| {
                    g.node("Softmax", &[x], &[("axis", Int(axis))])
                });
            }
            let n = shape[shape.len() - 1];
            self.add("LayerNormalization", shape, Domain::Any, |g, x| {
                let (gain, shift) = (g.weights(&[n], 1.0), g.weights(&[n], 1.0));
                g.node("LayerNormalization", &[x, &gain, &shift], &[("axis", Int(-1)), ("epsilon", Float(1e-3))])
            });
            for axis in 1..=shape.len() as i64 {
                // As exporters write it: x / sqrt(mean(x²) + e), over any axis.
                self.add(&format!("RMS norm axis {axis}"), shape, Domain::Any, |g, x| {
                    let axes = g.integers(&[axis]);
                    let two = g.floats(&[], vec![2.0]);
                    let squares = g.node("Pow", &[x, &two], &[]);
                    let mean = g.node("ReduceMean", &[&squares, &axes], &[]);
                    let eps = g.floats(&[], vec![1e-3]);
                    let root = g.node("Add", &[&mean, &eps], &[]);
                    let root = g.node("Sqrt", &[&root], &[]);
                    let inverse = g.node("Reciprocal", &[&root], &[]);
                    g.node("Mul", &[x, &inverse], &[])
                });
            }
        }
    }

    fn reductions(&mut self) {
        for operator in ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare"] {
            for (shape, axes) in [
                (&[1usize][..], &[1i64][..]),
                (&[37], &[1]),
                (&[5, 67], &[1]),
                (&[5, 67], &[2]),
                (&[5, 7, 3], &[1, 2]),
                (&[5, 7, 3], &[1, 3]),
                (&[4, 300], &[2]),
            ] {
                for keep in [0, 1] {
                    let domain = if operator == "ReduceProd" { Domain::Positive } else { Domain::Any };
                    // A product over many numbers leaves the range that 1e-4 means anything in.
                    if operator == "ReduceProd" && shape.iter().product::<usize>() > 200 {
                        continue;
                    }
                    self.add(&format!("{operator} over {axes:?}, keep {keep}"), shape, domain, |g, x| {
                        let axes = g.integers(axes);
                        let y = g.node(operator, &[x, &axes], &[("keepdims", Int(keep))]);
                        let one = g.floats(&[], vec![1.0]);
                        g.node("Mul", &[&y, &one], &[])
                    });
                }
            }
        }
        for shape in [&[3usize, 11][..], &[1, 1], &[2, 131]] {
            self.add("mean of squares", shape, Domain::Any, |g, x| {
                let axes = g.integers(&[2]);
                let squares = g.node("Mul", &[x, x], &[]);
                g.node("ReduceMean", &[&squares, &axes], &[])
            });
        }
    }

    fn convolutions(&mut self) {
        // Input channels, height, width, output channels, kernel, stride, padding, dilation, groups.
        type Shape = ([usize; 3], usize, [usize; 2], [usize; 2], usize, [usize; 2], usize);
        let cases: [Shape; 21] = [
            ([1, 1, 1], 1, [1, 1], [1, 1], 0, [1, 1], 1),
            ([3, 5, 7], 5, [1, 1], [1, 1], 0, [1, 1], 1),
            ([13, 9, 11], 17, [1, 1], [1, 1], 0, [1, 1], 1),
            ([4, 8, 8], 8, [1, 1], [1, 1], 0, [1, 1], 1),
            ([5, 9, 9], 3, [1, 1], [2, 2], 0, [1, 1], 1),
            ([1, 3, 3], 1, [3, 3], [1, 1], 0, [1, 1], 1),
            ([3, 17, 19], 5, [3, 3], [1, 1], 1, [1, 1], 1),
            ([2, 33, 18], 9, [3, 3], [1, 1], 1, [1, 1], 1),
            ([3, 17, 19], 7, [3, 3], [2, 2], 1, [1, 1], 1),
            ([5, 35, 37], 8, [3, 3], [2, 2], 0, [1, 1], 1),
            ([3, 17, 19], 5, [3, 3], [2, 1], 1, [1, 1], 1),
            ([2, 13, 11], 3, [5, 3], [1, 2], 2, [1, 1], 1),
            ([2, 13, 17], 3, [3, 3], [1, 1], 2, [2, 2], 1),
            ([3, 12, 12], 4, [2, 2], [2, 2], 0, [1, 1], 1),
            ([6, 7, 9], 9, [3, 3], [1, 1], 1, [1, 1], 3),
            ([6, 7, 9], 4, [1, 1], [1, 1], 0, [1, 1], 2),
            ([7, 11, 13], 7, [3, 3], [1, 1], 1, [1, 1], 7),
            ([5, 14, 9], 5, [5, 5], [2, 2], 2, [1, 1], 5),
            ([3, 9, 9], 3, [3, 3], [1, 1], 2, [2, 2], 3),
            ([3, 5, 5], 6, [3, 3], [1, 1], 1, [1, 1], 3),
            ([4, 3, 150], 3, [3, 3], [1, 1], 1, [1, 1], 1),
        ];
        for (i, (x, co, kernel, stride, pad, dilation, group)) in cases.into_iter().enumerate() {
            let act = ["", "Relu", "HardSwish"][i % 3];
            let name =
                format!("Conv to {co}, {kernel:?} step {stride:?} pad {pad} apart {dilation:?} groups {group} {act}");
            self.add(&name, &x, Domain::Any, |g, input| {
                let w = g.weights(&[co, x[0] / group, kernel[0], kernel[1]], 0.5);
                let b = g.weights(&[co], 0.5);
                let attributes = [
                    ("kernel_shape", pair(kernel)),
                    ("strides", pair(stride)),
                    ("dilations", pair(dilation)),
                    ("pads", Ints(vec![pad as i64; 4])),
                    ("group", Int(group as i64)),
                ];
                let inputs: &[&str] = if i % 2 == 0 { &[input, &w, &b] } else { &[input, &w] };
                let y = g.node("Conv", inputs, &attributes);
                if act.is_empty() { y } else { g.node(act, &[&y], &[]) }
            });
        }
        for (c, t, co, k, stride, dilation) in
            [(1, 1, 1, 1, 1, 1), (8, 17, 5, 3, 1, 1), (3, 130, 7, 5, 2, 1), (4, 50, 4, 3, 1, 8)]
        {
            self.add(
                &format!("Conv in one dimension to {co}, {k} step {stride} apart {dilation}"),
                &[c, t],
                Domain::Any,
                |g, x| {
                    let (w, b) = (g.weights(&[co, c, k], 0.5), g.weights(&[co], 0.5));
                    let pad = (dilation * (k - 1)) as i64;
                    let attributes = [
                        ("strides", Ints(vec![stride])),
                        ("dilations", Ints(vec![dilation as i64])),
                        ("pads", Ints(vec![pad, 0])),
                    ];
                    g.node("Conv", &[x, &w, &b], &attributes)
                },
            );
        }
        self.add("BatchNormalization after Conv", &[3, 9, 11], Domain::Any, |g, x| {
            let w = g.weights(&[5, 3, 3, 3], 0.5);
            let y = g.node("Conv", &[x, &w], &[("pads", Ints(vec![1; 4]))]);
            let (gain, shift, mean) = (g.weights(&[5], 1.0), g.weights(&[5], 1.0), g.weights(&[5], 1.0));
            let variance = g.floats(&[5], vec![0.5, 1.0, 1.5, 2.0, 0.1]);
            g.node("BatchNormalization", &[&y, &gain, &shift, &mean, &variance], &[])
        });
    }

    fn pools(&mut self) {
        for (shape, kernel, stride, pad) in [
            ([1usize, 1, 1], [1, 1], [1, 1], 0),
            ([3, 7, 9], [2, 2], [2, 2], 0),
            ([2, 13, 11], [3, 3], [2, 2], 1),
            ([5, 17, 19], [5, 3], [1, 2], 1),
        ] {
            let attributes = [("kernel_shape", pair(kernel)), ("strides", pair(stride)), ("pads", Ints(vec![pad; 4]))];
            self.add(&format!("MaxPool {kernel:?} step {stride:?} pad {pad}"), &shape, Domain::Any, |g, x| {
                g.node("MaxPool", &[x], &attributes)
            });
            for inside in [0, 1] {
                let mut attributes = attributes.to_vec();
                attributes.push(("count_include_pad", Int(inside)));
                let name = format!("AveragePool {kernel:?} step {stride:?} pad {pad}, padding counts {inside}");
                self.add(&name, &shape, Domain::Any, |g, x| g.node("AveragePool", &[x], &attributes));
            }
            self.add("MaxPool rounded up", &shape, Domain::Any, |g, x| {
                g.node(
                    "MaxPool",
                    &[x],
                    &[("kernel_shape", pair(kernel)), ("strides", pair(stride)), ("ceil_mode", Int(1))],
                )
            });
            self.add("GlobalAveragePool", &shape, Domain::Any, |g, x| g.node("GlobalAveragePool", &[x], &[]));
        }
    }

    fn recurrences(&mut self) {
        // From four steps on tract sees the whole recurrence as one operator.
        for (steps, width, hidden) in [(4, 2, 1), (5, 5, 7), (5, 3, 33), (4, 4, 67)] {
            for direction in ["forward", "reverse"] {
                for last in [false, true] {
                    let name = format!("GRU {hidden} {direction}, {}", if last { "last state" } else { "all states" });
                    self.add(&name, &[steps, width], Domain::Any, |g, x| {
                        let swapped = g.node("Transpose", &[x], &[("perm", Ints(vec![1, 0, 2]))]);
                        let w = g.weights(&[1, 3 * hidden, width], 0.5);
                        let r = g.weights(&[1, 3 * hidden, hidden], 0.5);
                        let b = g.weights(&[1, 6 * hidden], 0.5);
                        let attributes = [
                            ("hidden_size", Int(hidden as i64)),
                            ("linear_before_reset", Int(1)),
                            ("direction", Text(direction)),
                        ];
                        let outputs = g.nodes("GRU", &[&swapped, &w, &r, &b], &attributes, 2);
                        let axes = g.integers(&[if last { 0 } else { 1 }]);
                        let y = g.node("Squeeze", &[&outputs[usize::from(last)], &axes], &[]);
                        if last { y } else { g.node("Transpose", &[&y], &[("perm", Ints(vec![1, 0, 2]))]) }
                    });
                }
            }
        }
    }

    fn moves(&mut self) {
        for shape in [[1usize, 1, 1], [3, 5, 7], [2, 33, 35], [1, 67, 3]] {
            for perm in [[0, 2, 1, 3], [0, 3, 2, 1], [0, 1, 3, 2], [0, 2, 3, 1], [0, 3, 1, 2]] {
                self.add(&format!("Transpose {perm:?}"), &shape, Domain::Any, |g, x| {
                    g.node("Transpose", &[x], &[("perm", Ints(perm.to_vec()))])
                });
            }
            self.add("Reshape", &shape, Domain::Any, |g, x| {
                let to = g.integers(&[0, -1]);
                g.node("Reshape", &[x, &to], &[])
            });
            self.add("Unsqueeze of another output", &shape, Domain::Any, |g, x| {
                let axes = g.integers(&[2]);
                let y = g.node("Neg", &[x], &[]);
                g.output(&y);
                g.node("Unsqueeze", &[&y, &axes], &[])
            });
            self.add("Unsqueeze and Squeeze", &shape, Domain::Any, |g, x| {
                let axes = g.integers(&[2]);
                let y = g.node("Unsqueeze", &[x, &axes], &[]);
                let y = g.node("Neg", &[&y], &[]);
                g.node("Squeeze", &[&y, &axes], &[])
            });
            for axis in 1..=3 {
                self.add(&format!("Concat axis {axis}"), &shape, Domain::Any, |g, x| {
                    let n = g.node("Neg", &[x], &[]);
                    let w = g.weights(&[1, shape[0], shape[1], shape[2]], 1.0);
                    let wide = g.node("Mul", &[x, &w], &[]);
                    g.node("Concat", &[x, &n, &wide], &[("axis", Int(axis))])
                });
                let size = shape[axis as usize - 1] as i64;
                self.add(&format!("Slice axis {axis}"), &shape, Domain::Any, |g, x| {
                    let (starts, ends) = (g.integers(&[size / 3]), g.integers(&[size - size / 4]));
                    let axes = g.integers(&[axis]);
                    g.node("Slice", &[x, &starts, &ends, &axes], &[])
                });
                self.add(&format!("Pad axis {axis}"), &shape, Domain::Any, |g, x| {
                    let mut pads = [0i64; 8];
                    (pads[axis as usize], pads[4 + axis as usize]) = (2, 1);
                    let (pads, value) = (g.integers(&pads), g.floats(&[], vec![0.75]));
                    g.node("Pad", &[x, &pads, &value], &[])
                });
            }
            self.add("Expand", &shape, Domain::Any, |g, x| {
                let axes = g.integers(&[2]);
                let narrow = g.node("ReduceMax", &[x, &axes], &[]);
                let to = g.integers(&[1, shape[0] as i64, 5, shape[2] as i64]);
                g.node("Expand", &[&narrow, &to], &[])
            });
        }
    }
}

impl Cases {
    /// The blocks of a mobile vision network (MobileNetV3): strided convolution, depthwise, squeeze and excite,
    /// residual sum, pooling, classifier.
    fn network(&mut self) {
        self.add("mobile network", &[3, 21, 35], Domain::Any, |g, x| {
            let same = |stride: i64| [("pads", Ints(vec![1; 4])), ("strides", Ints(vec![stride; 2]))];
            let w = g.weights(&[8, 3, 3, 3], 0.3);
            let y = g.node("Conv", &[x, &w], &same(2));
            let mut y = g.node("HardSwish", &[&y], &[]);
            for (wide, stride) in [(16, 1), (24, 2)] {
                let entry = y.clone();
                let (w, b) = (g.weights(&[wide, 8, 1, 1], 0.3), g.weights(&[wide], 0.1));
                y = g.node("Conv", &[&y, &w, &b], &[]);
                y = g.node("Relu", &[&y], &[]);
                let w = g.weights(&[wide, 1, 3, 3], 0.3);
                let mut attributes = same(stride).to_vec();
                attributes.push(("group", Int(wide as i64)));
                y = g.node("Conv", &[&y, &w], &attributes);
                let pooled = g.node("GlobalAveragePool", &[&y], &[]);
                let (down, up) = (g.weights(&[4, wide, 1, 1], 0.3), g.weights(&[wide, 4, 1, 1], 0.3));
                let gate = g.node("Conv", &[&pooled, &down], &[]);
                let gate = g.node("Relu", &[&gate], &[]);
                let gate = g.node("Conv", &[&gate, &up], &[]);
                let gate = g.node("Sigmoid", &[&gate], &[]);
                y = g.node("Mul", &[&y, &gate], &[]);
                let w = g.weights(&[8, wide, 1, 1], 0.3);
                y = g.node("Conv", &[&y, &w], &[]);
                if stride == 1 {
                    y = g.node("Add", &[&y, &entry], &[]);
                }
            }
            let pooled = g.node("GlobalAveragePool", &[&y], &[]);
            let flat = g.node("Flatten", &[&pooled], &[]);
            let (w, b) = (g.weights(&[8, 3], 0.5), g.weights(&[3], 0.5));
            let logits = g.node("Gemm", &[&flat, &w, &b], &[]);
            g.node("Softmax", &[&logits], &[("axis", Int(-1))])
        });
    }
}

fn pair(values: [usize; 2]) -> Attribute {
    Ints(values.iter().map(|v| *v as i64).collect())
}
