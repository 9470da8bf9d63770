//! The committed kernels against plain loops, at odd sizes, sizes of one, primes, and more than a tile.

mod common;

use common::Arg::{F, I, P};
use common::{Device, assert_close, noise, over};
use fakecuda::ptx::Order;

const SOURCES: [&str; 5] = [
    include_str!("../../kernels/ptx/gemm.ptx"),
    include_str!("../../kernels/ptx/norm.ptx"),
    include_str!("../../kernels/ptx/conv.ptx"),
    include_str!("../../kernels/ptx/recurrent.ptx"),
    include_str!("../../kernels/ptx/elementwise.ptx"),
];

fn activate(v: f32, act: i32) -> f32 {
    match act {
        1 => v.max(0.0),
        2 => 1.0 / (1.0 + (-v).exp()),
        3 => v.tanh(),
        _ => v,
    }
}

#[test]
fn products() {
    let mut d = Device::new(&SOURCES);
    let sizes =
        [(1, 1, 1), (3, 5, 7), (64, 64, 16), (65, 67, 17), (4, 8, 12), (130, 132, 68), (37, 64, 100), (128, 4, 4)];
    for (case, (m, n, k)) in sizes.into_iter().enumerate() {
        for batch in [1usize, 3] {
            let (act, bias_mode) = (case as i32 % 4, (case as i32 + batch as i32) % 3);
            let (a, b) = (noise(m * k, 1), noise(batch * k * n, 2));
            let bias = noise(m.max(n), 3);
            let mut want = Vec::new();
            for z in 0..batch {
                for r in 0..m {
                    for c in 0..n {
                        let dot: f64 =
                            (0..k).map(|i| f64::from(a[r * k + i]) * f64::from(b[(z * k + i) * n + c])).sum();
                        let bias = [0.0, bias[c], bias[r]][bias_mode as usize];
                        want.push(activate(dot as f32 + bias, act));
                    }
                }
            }
            let (pa, pb, pbias) = (d.upload(&a), d.upload(&b), d.upload(&bias));
            for name in ["gemm_f32", "gemm_vec4_f32"] {
                if name == "gemm_vec4_f32" && (n % 4 != 0 || k % 4 != 0) {
                    continue;
                }
                for order in [Order::default(), Order { blocks_reversed: true, warps_reversed: true }] {
                    d.order = order;
                    let pc = d.empty(batch * m * n);
                    let args = [
                        P(pa),
                        P(pb),
                        P(pbias),
                        P(pc),
                        I(m as i32),
                        I(n as i32),
                        I(k as i32),
                        I(1),
                        I(batch as i32),
                        I(bias_mode),
                        I(act),
                    ];
                    d.run(name, [over(n, 64), over(m, 64), batch as u32], [256, 1, 1], &args);
                    assert_close(
                        &d.download(pc, batch * m * n),
                        &want,
                        1e-5,
                        &format!("{name} {m}x{n}x{k} batch {batch}"),
                    );
                }
            }
            if batch == 1 && bias_mode != 2 {
                let pc = d.empty(m * n);
                let args = [P(pa), P(pb), P(pbias), P(pc), I(m as i32), I(n as i32), I(k as i32), I(bias_mode), I(act)];
                d.run("linear_small_f32", [over(n, 32), over(m, 4), 1], [32, 8, 1], &args);
                assert_close(&d.download(pc, m * n), &want, 1e-5, &format!("linear_small {m}x{n}x{k}"));
            }
        }
    }
}

#[test]
fn softmax_and_norms() {
    let mut d = Device::new(&SOURCES);
    for (outer, n, inner) in [(1usize, 1usize, 1usize), (3, 37, 1), (5, 33, 7), (130, 3, 1), (2, 257, 2)] {
        let x: Vec<f32> = noise(outer * n * inner, 4).iter().map(|v| v * 8.0).collect();
        let (px, total) = (d.upload(&x), outer * n * inner);
        let lines = |g: &dyn Fn(&[f32]) -> Vec<f32>| {
            let mut y = vec![0.0; total];
            for o in 0..outer {
                for i in 0..inner {
                    let line: Vec<f32> = (0..n).map(|c| x[(o * n + c) * inner + i]).collect();
                    for (c, v) in g(&line).into_iter().enumerate() {
                        y[(o * n + c) * inner + i] = v;
                    }
                }
            }
            y
        };
        let what = format!("[{outer}, {n}, {inner}]");
        let py = d.empty(total);
        let sizes = [I(outer as i32), I(n as i32), I(inner as i32)];
        d.run("softmax_f32", [over(outer * inner, 4), 1, 1], [32, 4, 1], &[P(px), P(py), sizes[0], sizes[1], sizes[2]]);
        let want = lines(&|x| {
            let top = x.iter().copied().fold(f32::MIN, f32::max);
            let sum: f32 = x.iter().map(|v| (v - top).exp()).sum();
            x.iter().map(|v| (v - top).exp() / sum).collect()
        });
        assert_close(&d.download(py, total), &want, 1e-5, &format!("softmax {what}"));

        let py = d.empty(total);
        d.run(
            "rms_norm_f32",
            [(outer * inner) as u32, 1, 1],
            [128, 1, 1],
            &[P(px), P(py), sizes[1], sizes[2], F(1e-5)],
        );
        let rms = |x: &[f32]| (x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32 + 1e-5).sqrt();
        assert_close(
            &d.download(py, total),
            &lines(&|x| x.iter().map(|v| v / rms(x)).collect()),
            1e-5,
            &format!("rms {what}"),
        );

        if inner == 1 {
            let (gain, shift) = (noise(n, 5), noise(n, 6));
            let (pg, ps, py) = (d.upload(&gain), d.upload(&shift), d.empty(total));
            d.run(
                "layer_norm_f32",
                [outer as u32, 1, 1],
                [128, 1, 1],
                &[P(px), P(pg), P(ps), P(py), sizes[1], F(1e-5)],
            );
            let want = lines(&|x| {
                let mean = x.iter().sum::<f32>() / n as f32;
                let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n as f32;
                x.iter().enumerate().map(|(i, v)| (v - mean) / (var + 1e-5).sqrt() * gain[i] + shift[i]).collect()
            });
            assert_close(&d.download(py, total), &want, 1e-5, &format!("layer norm {what}"));
        }
        for op in 0..5 {
            let reduce = |x: &[f32]| match op {
                0 => x.iter().sum(),
                1 => x.iter().copied().fold(f32::MIN, f32::max),
                2 => x.iter().copied().fold(f32::MAX, f32::min),
                3 => x.iter().product(),
                _ => x.iter().map(|v| v * v).sum::<f32>() / x.len() as f32,
            };
            if op == 3 && n > 8 {
                continue;
            }
            let per_line = lines(&|x| vec![reduce(x); n]);
            let want: Vec<f32> = (0..outer)
                .flat_map(|o| (0..inner).map(move |i| (o, i)))
                .map(|(o, i)| per_line[o * n * inner + i])
                .collect();
            let py = d.empty(outer * inner);
            d.run(
                "reduce_col_f32",
                [over(outer * inner, 128), 1, 1],
                [128, 1, 1],
                &[P(px), P(py), sizes[0], sizes[1], sizes[2], I(op)],
            );
            assert_close(&d.download(py, outer * inner), &want, 1e-5, &format!("reduce_col {op} {what}"));
            if inner == 1 {
                let py = d.empty(outer);
                d.run("reduce_row_f32", [over(outer, 4), 1, 1], [32, 4, 1], &[P(px), P(py), sizes[0], sizes[1], I(op)]);
                assert_close(&d.download(py, outer), &want, 1e-5, &format!("reduce_row {op} {what}"));
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Conv {
    n: usize,
    ci: usize,
    h: usize,
    w: usize,
    co: usize,
    k: (usize, usize),
    s: (usize, usize),
    p: (usize, usize),
    d: (usize, usize),
}

impl Conv {
    fn out(&self) -> (usize, usize) {
        let o = |i: usize, k: usize, s: usize, p: usize, d: usize| (i + 2 * p - d * (k - 1) - 1) / s + 1;
        (o(self.h, self.k.0, self.s.0, self.p.0, self.d.0), o(self.w, self.k.1, self.s.1, self.p.1, self.d.1))
    }

    /// Calls `g` for each output and each input under its window: (n, oh, ow, i, j, h, w).
    fn windows(&self, mut g: impl FnMut(usize, usize, usize, usize, usize)) {
        let (oh, ow) = self.out();
        for y in 0..oh {
            for x in 0..ow {
                for i in 0..self.k.0 {
                    for j in 0..self.k.1 {
                        let (h, w) = (y * self.s.0 + i * self.d.0, x * self.s.1 + j * self.d.1);
                        let (Some(h), Some(w)) = (h.checked_sub(self.p.0), w.checked_sub(self.p.1)) else { continue };
                        if h < self.h && w < self.w {
                            g(y * ow + x, i * self.k.1 + j, h * self.w + w, y, x);
                        }
                    }
                }
            }
        }
    }
}

fn conv_reference(c: Conv, x: &[f32], w: &[f32], bias: &[f32], depthwise: bool) -> Vec<f32> {
    let (oh, ow) = c.out();
    let (hw, p, kk) = (c.h * c.w, oh * ow, c.k.0 * c.k.1);
    let mut y = vec![0f64; c.n * c.co * p];
    for n in 0..c.n {
        for o in 0..c.co {
            let y = &mut y[(n * c.co + o) * p..][..p];
            y.fill(f64::from(bias[o]));
            for i in 0..if depthwise { 1 } else { c.ci } {
                let (xc, wc) = if depthwise { (o, o) } else { (i, o * c.ci + i) };
                c.windows(|at, k, from, _, _| {
                    y[at] += f64::from(x[(n * c.ci + xc) * hw + from]) * f64::from(w[wc * kk + k]);
                });
            }
        }
    }
    y.into_iter().map(|v| v as f32).collect()
}

const CASES: [Conv; 7] = [
    Conv { n: 1, ci: 1, h: 1, w: 1, co: 1, k: (3, 3), s: (1, 1), p: (1, 1), d: (1, 1) },
    Conv { n: 2, ci: 3, h: 17, w: 23, co: 5, k: (3, 3), s: (1, 1), p: (1, 1), d: (1, 1) },
    Conv { n: 1, ci: 7, h: 33, w: 19, co: 17, k: (3, 3), s: (2, 2), p: (1, 1), d: (1, 1) },
    Conv { n: 2, ci: 4, h: 16, w: 16, co: 8, k: (3, 3), s: (2, 2), p: (0, 0), d: (1, 1) },
    Conv { n: 1, ci: 2, h: 13, w: 11, co: 3, k: (5, 2), s: (2, 1), p: (2, 0), d: (1, 3) },
    Conv { n: 3, ci: 5, h: 1, w: 29, co: 4, k: (1, 4), s: (1, 3), p: (0, 2), d: (1, 2) },
    Conv { n: 2, ci: 9, h: 7, w: 5, co: 13, k: (1, 1), s: (1, 1), p: (0, 0), d: (1, 1) },
];

#[test]
fn convolutions() {
    let mut d = Device::new(&SOURCES);
    for c in CASES {
        let (oh, ow) = c.out();
        let (p, kk) = (oh * ow, c.k.0 * c.k.1);
        let (x, w, bias) = (noise(c.n * c.ci * c.h * c.w, 7), noise(c.co * c.ci * kk, 8), noise(c.co, 9));
        let want = conv_reference(c, &x, &w, &bias, false);
        let (px, pw, pb) = (d.upload(&x), d.upload(&w), d.upload(&bias));
        let ints = |v: &[usize]| v.iter().map(|n| I(*n as i32)).collect::<Vec<_>>();
        let what = format!("{c:?}");

        let col_rows = c.ci * kk;
        let (pcol, py) = (d.empty(c.n * col_rows * p), d.empty(want.len()));
        let mut args = vec![P(px), P(pcol)];
        args.extend(ints(&[c.ci, c.h, c.w, c.k.0, c.k.1, oh, ow, c.s.0, c.s.1, c.p.0, c.p.1, c.d.0, c.d.1]));
        d.run("im2col_f32", [over(col_rows * p, 256), c.n as u32, 1], [256, 1, 1], &args);
        let mut args = vec![P(pw), P(pcol), P(pb), P(py)];
        args.extend(ints(&[c.co, p, col_rows, 1, c.n, 2, 0]));
        d.run("gemm_f32", [over(p, 64), over(c.co, 64), c.n as u32], [256, 1, 1], &args);
        assert_close(&d.download(py, want.len()), &want, 1e-5, &format!("im2col {what}"));

        let co8 = c.co.next_multiple_of(8);
        let mut packed = vec![0.0; c.ci * kk * co8];
        for o in 0..c.co {
            for i in 0..c.ci * kk {
                packed[i * co8 + o] = w[o * c.ci * kk + i];
            }
        }
        let mut bias8 = bias.clone();
        bias8.resize(co8, 0.0);
        let (ppacked, pb8, py) = (d.upload(&packed), d.upload(&bias8), d.empty(want.len()));
        if c.k == (3, 3) {
            let name = if c.s == (1, 1) { "conv3x3_s1_f32" } else { "conv3x3_s2_f32" };
            let mut args = vec![P(px), P(ppacked), P(pb8), P(py)];
            args.extend(ints(&[c.ci, c.h, c.w, c.co, oh, ow, c.p.0, c.p.1, 0]));
            d.run(name, [over(ow, 16) * over(oh, 16), co8 as u32 / 8, c.n as u32], [16, 16, 1], &args);
            assert_close(&d.download(py, want.len()), &want, 1e-5, &format!("direct {what}"));
        }
        if c.k == (1, 1) {
            let mut args = vec![P(px), P(ppacked), P(pb8), P(py)];
            args.extend(ints(&[c.ci, p, c.co, 0]));
            d.run("conv1x1_f32", [over(p, 128), co8 as u32 / 8, c.n as u32], [128, 1, 1], &args);
            assert_close(&d.download(py, want.len()), &want, 1e-5, &format!("1x1 {what}"));
        }
        let c = Conv { co: c.ci, ..c };
        let (w, bias) = (noise(c.ci * kk, 10), noise(c.ci, 11));
        let want = conv_reference(c, &x, &w, &bias, true);
        let (pw, pb, py) = (d.upload(&w), d.upload(&bias), d.empty(want.len()));
        let mut args = vec![P(px), P(pw), P(pb), P(py)];
        args.extend(ints(&[c.h, c.w, c.k.0, c.k.1, oh, ow, c.s.0, c.s.1, c.p.0, c.p.1, c.d.0, c.d.1, 0]));
        d.run("depthwise_f32", [over(p, 128), c.ci as u32, c.n as u32], [128, 1, 1], &args);
        assert_close(&d.download(py, want.len()), &want, 1e-5, &format!("depthwise {what}"));

        for mode in 0..4 {
            let mut want = vec![if mode == 0 { f32::NEG_INFINITY } else { 0.0 }; c.n * c.ci * p];
            for plane in 0..c.n * c.ci {
                let mut inside = vec![0; p];
                c.windows(|at, _, from, _, _| {
                    let (y, v) = (&mut want[plane * p + at], x[plane * c.h * c.w + from]);
                    *y = if mode == 0 { y.max(v) } else { *y + v };
                    inside[at] += 1;
                });
                for at in 0..p {
                    want[plane * p + at] /= [1, 1, inside[at].max(1), kk][mode] as f32;
                }
            }
            let py = d.empty(want.len());
            let mut args = vec![P(px), P(py)];
            args.extend(ints(&[
                c.n * c.ci,
                c.h,
                c.w,
                c.k.0,
                c.k.1,
                oh,
                ow,
                c.s.0,
                c.s.1,
                c.p.0,
                c.p.1,
                c.d.0,
                c.d.1,
                mode,
            ]));
            d.run("pool_f32", [over(want.len(), 128), 1, 1], [128, 1, 1], &args);
            assert_close(&d.download(py, want.len()), &want, 1e-5, &format!("pool {mode} {what}"));
        }
    }
}

#[test]
fn a_recurrent_step() {
    let mut d = Device::new(&SOURCES);
    for (rows, hidden) in [(1usize, 1usize), (3, 7), (2, 64), (5, 37), (1, 130)] {
        let (xw, r, rb, h) = (
            noise(rows * 3 * hidden, 12),
            noise(3 * hidden * hidden, 13),
            noise(3 * hidden, 14),
            noise(rows * hidden, 15),
        );
        let mut rt = vec![0.0; r.len()];
        for g in 0..3 * hidden {
            for k in 0..hidden {
                rt[k * 3 * hidden + g] = r[g * hidden + k];
            }
        }
        let mut want = Vec::new();
        for row in 0..rows {
            let gate =
                |g: usize| -> f32 { (0..hidden).map(|k| h[row * hidden + k] * r[g * hidden + k]).sum::<f32>() + rb[g] };
            for u in 0..hidden {
                let x = |g: usize| xw[row * 3 * hidden + g * hidden + u];
                let (z, r) = (activate(x(0) + gate(u), 2), activate(x(1) + gate(hidden + u), 2));
                let n = (x(2) + r * gate(2 * hidden + u)).tanh();
                want.push((1.0 - z) * n + z * h[row * hidden + u]);
            }
        }
        for with_y in [false, true] {
            let (px, pr, pb, ph) = (d.upload(&xw), d.upload(&rt), d.upload(&rb), d.upload(&h));
            let (next, y) = (d.empty(rows * hidden), d.empty(rows * hidden));
            let args = [
                P(px),
                P(pr),
                P(pb),
                P(ph),
                P(next),
                P(if with_y { y } else { 0 }),
                I(hidden as i32),
                I(3 * hidden as i32),
                I(hidden as i32),
            ];
            d.run("gru_step_f32", [over(hidden, 32), rows as u32, 1], [32, 8, 1], &args);
            assert_close(&d.download(next, want.len()), &want, 1e-5, &format!("gru {rows} {hidden}"));
            if with_y {
                assert_close(&d.download(y, want.len()), &want, 1e-5, "gru output");
            }
        }
    }
}

/// Header of a chain program: steps, dimensions, their sizes, strides of six operands.
fn program(dims: &[usize], strides: &[&[usize]], steps: &[(i32, i32, f32)]) -> Vec<i32> {
    let mut p = vec![0; 44];
    p[0] = steps.len() as i32;
    p[1] = dims.len() as i32;
    dims.iter().enumerate().for_each(|(i, d)| p[2 + i] = *d as i32);
    for (o, s) in strides.iter().enumerate() {
        s.iter().enumerate().for_each(|(i, s)| p[8 + o * 6 + i] = *s as i32);
    }
    p.extend(steps.iter().flat_map(|(op, from, v)| [*op, *from, v.to_bits() as i32, 0]));
    p
}

#[test]
fn chains() {
    let mut d = Device::new(&SOURCES);
    let dims = [3usize, 5, 7];
    let n = 105;
    let (a, b, c) = (noise(n, 16), noise(5, 17), noise(21, 18));
    let (pa, pb, pc) = (d.upload(&a), d.upload(&b), d.upload(&c));
    // tanh(max((a * b) - c, 0.1)) / 2 with b along the middle and c along the outer two others
    let p = program(
        &dims,
        &[&[35, 7, 1], &[0, 1, 0], &[7, 0, 1]],
        &[(0, 0, 0.0), (4, 1, 0.0), (2, 2, 0.0), (7, -1, 0.1), (34, -1, 0.0), (4, -1, 0.5)],
    );
    let (pp, py) = (d.upload_ints(&p), d.empty(n));
    d.run(
        "chain_f32",
        [over(n, 256), 1, 1],
        [256, 1, 1],
        &[P(pp), P(pa), P(pb), P(pc), P(pa), P(pa), P(pa), P(py), I(n as i32)],
    );
    let want: Vec<f32> = (0..n).map(|i| (a[i] * b[i / 7 % 5] - c[i / 35 * 7 + i % 7]).max(0.1).tanh() / 2.0).collect();
    assert_close(&d.download(py, n), &want, 1e-5, "chain");

    type Reference = fn(f32, f32) -> f32;
    let all: [(i32, Reference); 32] = [
        (1, |a, v| a + v),
        (2, |a, v| a - v),
        (3, |a, v| v - a),
        (4, |a, v| a * v),
        (5, |a, v| a / v),
        (6, |a, v| v / a),
        (7, |a, v| a.max(v)),
        (8, |a, v| a.min(v)),
        (9, |a, v| a.powf(v)),
        (10, |a, v| v.powf(a)),
        (32, |a, _| a.max(0.0)),
        (33, |a, _| 1.0 / (1.0 + (-a).exp())),
        (34, |a, _| a.tanh()),
        (36, |a, _| a.exp()),
        (37, |a, _| a.ln()),
        (38, |a, _| a.sqrt()),
        (39, |a, _| 1.0 / a.sqrt()),
        (40, |a, _| 1.0 / a),
        (41, |a, _| -a),
        (42, |a, _| a.abs()),
        (43, |a, _| a * a),
        (44, |a, _| a.floor()),
        (45, |a, _| a.ceil()),
        (47, |a, _| a * (a / 6.0 + 0.5).clamp(0.0, 1.0)),
        (48, |a, _| a / (1.0 + (-a).exp())),
        (49, |a, v| if a < 0.0 { a * v } else { a }),
        (50, |a, v| a.min(v)),
        (51, |a, v| a.powf(v)),
        (52, |a, _| if a == 0.0 { 0.0 } else { a.signum() }),
        (53, |a, _| 0.5 * a * (1.0 + (0.797_884_6 * (a + 0.044_715 * a * a * a)).tanh())),
        (0, |_, v| v),
        (4, |a, v| a * v),
    ];
    for (op, reference) in all {
        for x in [-3.7f32, -1.0, -0.2, 0.0, 0.3, 1.0, 2.5, 40.0] {
            let v = 1.7;
            let want = reference(x, v);
            if !want.is_finite() {
                continue;
            }
            let (px, pp) = (d.upload(&[x]), d.upload_ints(&program(&[1], &[&[1]], &[(0, 0, 0.0), (op, -1, v)])));
            let py = d.empty(1);
            d.run("chain_f32", [1, 1, 1], [256, 1, 1], &[P(pp), P(px), P(px), P(px), P(px), P(px), P(px), P(py), I(1)]);
            assert_close(&d.download(py, 1), &[want], 1e-5, &format!("operation {op} of {x}"));
        }
    }
    // erf and the exact GELU, against tables (Abramowitz and Stegun, 7.1; GELU(x) = x/2 (1 + erf(x/sqrt 2))).
    for (op, x, want) in [
        (46, 0.5, 0.520_499_9),
        (46, -1.0, -0.842_700_8),
        (46, 2.0, 0.995_322_3),
        (35, 1.0, 0.841_344_7),
        (35, -1.0, -0.158_655_3),
    ] {
        let (px, pp) = (d.upload(&[x]), d.upload_ints(&program(&[1], &[&[1]], &[(0, 0, 0.0), (op, -1, 0.0)])));
        let py = d.empty(1);
        d.run("chain_f32", [1, 1, 1], [256, 1, 1], &[P(pp), P(px), P(px), P(px), P(px), P(px), P(px), P(py), I(1)]);
        assert_close(&d.download(py, 1), &[want], 1e-5, &format!("operation {op} of {x}"));
    }
}

#[test]
fn copies_and_transposes() {
    let mut d = Device::new(&SOURCES);
    for (batch, rows, cols) in [(1usize, 1usize, 1usize), (2, 33, 31), (1, 64, 5), (3, 7, 100)] {
        let x = noise(batch * rows * cols, 19);
        let (px, py) = (d.upload(&x), d.empty(x.len()));
        d.run(
            "transpose_f32",
            [over(cols, 32), over(rows, 32), batch as u32],
            [32, 8, 1],
            &[P(px), P(py), I(rows as i32), I(cols as i32)],
        );
        let want: Vec<f32> =
            (0..x.len()).map(|i| x[i / (rows * cols) * rows * cols + i % rows * cols + i / rows % cols]).collect();
        assert_close(&d.download(py, x.len()), &want, 0.0, "transpose");
    }
    // The middle [2, 3] of a [4, 5] into the corner of a [3, 3] filled with 9.
    let x = noise(20, 20);
    let shape = d.upload_ints(&[2, 2, 3, 0, 0, 0, 0, 5, 1, 0, 0, 0, 0, 3, 1, 0, 0, 0, 0]);
    let (px, py) = (d.upload(&x), d.empty(9));
    d.run("fill_f32", [1, 1, 1], [256, 1, 1], &[P(py), I(9), F(9.0)]);
    d.run("copy_box_f32", [1, 1, 1], [256, 1, 1], &[P(shape), P(px), P(py), I(6), I(6), I(3)]);
    assert_close(&d.download(py, 9), &[9.0, 9.0, 9.0, x[6], x[7], x[8], x[11], x[12], x[13]], 0.0, "copy");
}
