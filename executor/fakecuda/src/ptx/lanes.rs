//! Which opcodes are covered, and what the arithmetic ones do to the 32 lanes of a warp.

use super::decode::{Cmp, Ins, Op, Ty};

/// An opcode with its operand types.
pub(crate) struct Known {
    pub(crate) op: Op,
    pub(crate) dst: Ty,
    pub(crate) src: Ty,
    pub(crate) second: Ty,
    pub(crate) third: Ty,
    pub(crate) sources: usize,
}

fn known(op: Op, ty: Ty, sources: usize) -> Known {
    Known { op, dst: ty, src: ty, second: ty, third: ty, sources }
}

fn cmp(name: &str) -> Option<Cmp> {
    Some(match name {
        "lt" | "lo" => Cmp::Lt,
        "le" | "ls" => Cmp::Le,
        "gt" | "hi" => Cmp::Gt,
        "ge" | "hs" => Cmp::Ge,
        "eq" => Cmp::Eq,
        "ne" => Cmp::Ne,
        "ltu" => Cmp::Ltu,
        "leu" => Cmp::Leu,
        "gtu" => Cmp::Gtu,
        "geu" => Cmp::Geu,
        "equ" => Cmp::Equ,
        "neu" => Cmp::Neu,
        "num" => Cmp::Num,
        "nan" => Cmp::Nan,
        _ => return None,
    })
}

/// The opcode of this name, when everything about it is covered.
pub(crate) fn plan(name: &str, modifiers: &[&str], types: &[Ty]) -> Option<Known> {
    use Ty::*;
    let first = types.first().copied();
    let int32 = matches!(first, Some(B32 | U32 | S32 | B16));
    let int64 = matches!(first, Some(B64 | U64 | S64));
    let f32 = first == Some(F32);
    // Denormals are kept: what a device flushes to zero differs from what is computed here by less than 1e-37.
    let plain = modifiers.iter().all(|m| matches!(*m, "rn" | "ftz" | "approx" | "lo" | "uni"));
    let one = |op32: Option<Op>, op64: Option<Op>, n: usize| {
        let ty = first?;
        let op = if int64 {
            op64?
        } else if int32 {
            op32?
        } else {
            return None;
        };
        plain.then(|| known(op, ty, n))
    };
    let float = |op: Op, n: usize| (f32 && plain).then(|| known(op, F32, n));
    match (name, modifiers, types) {
        ("bra", [] | ["uni"], []) => Some(known(Op::Bra, B32, 0)),
        ("ret" | "exit", [] | ["uni"], []) => Some(known(Op::Ret, B32, 0)),
        ("bar", ["sync"], []) | ("barrier", ["sync"], []) => Some(known(Op::Bar, B32, 0)),
        ("shfl", ["sync", mode], [B32]) => {
            let mode = ["bfly", "down", "up", "idx"].iter().position(|m| m == mode)? as u8;
            Some(known(Op::Shfl { mode }, B32, 4))
        }
        ("ld", ["param"], [ty]) if ty.size_() == 4 => Some(known(Op::LdParam32, *ty, 1)),
        ("ld", ["param"], [ty]) if ty.size_() == 8 => Some(known(Op::LdParam64, *ty, 1)),
        ("ld" | "st", [space, rest @ ..], [ty]) if ty.size_() >= 4 => {
            let shared = match *space {
                "shared" => true,
                "global" => false,
                _ => return None,
            };
            let mut width = 1;
            for m in rest {
                match *m {
                    "nc" if !shared && name == "ld" => {}
                    "v2" => width = 2,
                    "v4" => width = 4,
                    _ => return None,
                }
            }
            let bytes = ty.size_() as u8;
            let op = if name == "ld" { Op::Ld { shared, bytes, width } } else { Op::St { shared, bytes, width } };
            Some(known(op, *ty, 1))
        }
        ("mov", [], [Pred]) => Some(known(Op::MovP, Pred, 1)),
        ("mov", [], [ty]) => Some(known(if ty.wide_() { Op::Mov64 } else { Op::Mov32 }, *ty, 1)),
        ("cvta", ["to", "global" | "shared"], [U64]) => Some(known(Op::Mov64, U64, 1)),
        ("setp", [c], [ty]) => {
            let c = cmp(c)?;
            let op = match ty {
                F32 => Op::SetF(c),
                S32 => Op::SetS(c),
                U32 | B32 => Op::SetU(c),
                S64 => Op::SetS64(c),
                U64 | B64 => Op::SetU64(c),
                _ => return None,
            };
            Some(Known { op, dst: Pred, src: *ty, second: *ty, third: *ty, sources: 2 })
        }
        ("selp", [], [ty]) => {
            let op = if ty.wide_() { Op::Sel64 } else { Op::Sel32 };
            Some(Known { op, dst: *ty, src: *ty, second: *ty, third: Pred, sources: 3 })
        }
        ("and", [], [Pred]) => Some(known(Op::AndP, Pred, 2)),
        ("or", [], [Pred]) => Some(known(Op::OrP, Pred, 2)),
        ("xor", [], [Pred]) => Some(known(Op::XorP, Pred, 2)),
        ("not", [], [Pred]) => Some(known(Op::NotP, Pred, 1)),
        ("and", [], _) => one(Some(Op::And32), Some(Op::And64), 2),
        ("or", [], _) => one(Some(Op::Or32), Some(Op::Or64), 2),
        ("xor", [], _) => one(Some(Op::Xor32), Some(Op::Xor64), 2),
        ("not", [], _) => one(Some(Op::Not32), None, 1),
        ("shl" | "shr", [], [ty]) => {
            let op = match (name, ty) {
                ("shl", B32) => Op::Shl32,
                ("shl", B64) => Op::Shl64,
                ("shr", S32) => Op::ShrS32,
                ("shr", U32 | B32) => Op::ShrU32,
                ("shr", S64) => Op::ShrS64,
                ("shr", U64 | B64) => Op::ShrU64,
                _ => return None,
            };
            Some(Known { op, dst: *ty, src: *ty, second: U32, third: U32, sources: 2 })
        }
        ("mul" | "mad", ["wide"], [ty @ (S32 | U32)]) => {
            let signed = *ty == S32;
            let (op, sources) = match (name, signed) {
                ("mul", true) => (Op::MulWideS, 2),
                ("mul", false) => (Op::MulWideU, 2),
                (_, true) => (Op::MadWideS, 3),
                (_, false) => (Op::MadWideU, 3),
            };
            Some(Known { op, dst: S64, src: *ty, second: *ty, third: S64, sources })
        }
        ("mul", ["hi"], [S32]) => Some(known(Op::MulHiS, S32, 2)),
        ("mul", ["hi"], [U32]) => Some(known(Op::MulHiU, U32, 2)),
        ("mad", ["lo"], _) => one(Some(Op::Mad32), None, 3),
        ("fma", ["rm"], [F32]) => Some(known(Op::FmaDown, F32, 3)),
        ("fma", _, _) => float(Op::FmaF, 3),
        ("add", _, _) if f32 => float(Op::AddF, 2),
        ("sub", _, _) if f32 => float(Op::SubF, 2),
        ("mul", _, _) if f32 => float(Op::MulF, 2),
        ("div", _, _) if f32 => float(Op::DivF, 2),
        ("max", _, _) if f32 => float(Op::MaxF, 2),
        ("min", _, _) if f32 => float(Op::MinF, 2),
        ("neg", _, _) if f32 => float(Op::NegF, 1),
        ("abs", _, _) if f32 => float(Op::AbsF, 1),
        ("ex2", _, _) => float(Op::Ex2, 1),
        ("lg2", _, _) => float(Op::Lg2, 1),
        ("rcp", _, _) => float(Op::Rcp, 1),
        ("sqrt", _, _) => float(Op::Sqrt, 1),
        ("rsqrt", _, _) => float(Op::Rsqrt, 1),
        ("copysign", _, _) => float(Op::Copysign, 2),
        ("add", [], _) => one(Some(Op::Add32), Some(Op::Add64), 2),
        ("sub", [], _) => one(Some(Op::Sub32), Some(Op::Sub64), 2),
        ("mul", ["lo"], _) => one(Some(Op::Mul32), Some(Op::Mul64), 2),
        ("neg", [], _) => one(Some(Op::Neg32), Some(Op::Neg64), 1),
        ("abs", [], [S32]) => Some(known(Op::AbsS, S32, 1)),
        ("div", [], [S32]) => Some(known(Op::DivS, S32, 2)),
        ("div", [], [U32]) => Some(known(Op::DivU, U32, 2)),
        ("rem", [], [S32]) => Some(known(Op::RemS, S32, 2)),
        ("rem", [], [U32]) => Some(known(Op::RemU, U32, 2)),
        ("max", [], [S32]) => Some(known(Op::MaxS, S32, 2)),
        ("min", [], [S32]) => Some(known(Op::MinS, S32, 2)),
        ("max", [], [U32]) => Some(known(Op::MaxU, U32, 2)),
        ("min", [], [U32]) => Some(known(Op::MinU, U32, 2)),
        ("cvt", m, [to, from]) => {
            let op = match (to, from, m) {
                (S64 | U64, S32, []) => Op::S32ToS64,
                (S64 | U64 | B64, U32 | B32, []) => Op::U32ToU64,
                (U32 | S32 | B32, U64 | S64 | B64, []) => Op::U64ToU32,
                (F32, S32, ["rn"]) => Op::S32ToF,
                (F32, U32, ["rn"]) => Op::U32ToF,
                (S32, F32, ["rzi"]) => Op::FToS32 { floor: false },
                (S32, F32, ["rmi"]) => Op::FToS32 { floor: true },
                (F32, F32, ["rzi"]) => Op::Trunc,
                (F32, F32, ["rmi"]) => Op::Floor,
                (F32, F32, ["rpi"]) => Op::Ceil,
                (F32, F32, ["rni"]) => Op::Nearest,
                (F32, F32, ["sat"]) => Op::Saturate,
                _ => return None,
            };
            Some(Known { op, dst: *to, src: *from, second: *from, third: *from, sources: 1 })
        }
        _ => None,
    }
}

impl Ty {
    fn size_(self) -> usize {
        match self {
            Ty::Pred | Ty::B8 => 1,
            Ty::B16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 => 8,
        }
    }

    fn wide_(self) -> bool {
        self.size_() == 8
    }
}

pub(crate) type Lanes32 = [u32; 32];
pub(crate) type Lanes64 = [u64; 32];

/// Registers of a warp.
#[derive(Debug, Clone, Default)]
pub(crate) struct Regs {
    pub(crate) w32: Vec<Lanes32>,
    pub(crate) w64: Vec<Lanes64>,
    pub(crate) p: Vec<u32>,
}

fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

/// a * b + c rounded once: the product is exact in 64 bits; the sum is rounded twice, which differs from one rounding
/// only in ties of the second.
#[inline]
fn fma(a: f32, b: f32, c: f32) -> f32 {
    (f64::from(a) * f64::from(b) + f64::from(c)) as f32
}

fn fma_down(a: f32, b: f32, c: f32) -> f32 {
    let exact = f64::from(a) * f64::from(b) + f64::from(c);
    let near = exact as f32;
    if f64::from(near) > exact { near.next_down() } else { near }
}

fn float_cmp(c: Cmp, a: f32, b: f32) -> bool {
    let nan = a.is_nan() || b.is_nan();
    match c {
        Cmp::Lt => a < b,
        Cmp::Le => a <= b,
        Cmp::Gt => a > b,
        Cmp::Ge => a >= b,
        Cmp::Eq => a == b,
        Cmp::Ne => !nan && a != b,
        Cmp::Ltu => nan || a < b,
        Cmp::Leu => nan || a <= b,
        Cmp::Gtu => nan || a > b,
        Cmp::Geu => nan || a >= b,
        Cmp::Equ => nan || a == b,
        Cmp::Neu => a != b,
        Cmp::Num => !nan,
        Cmp::Nan => nan,
    }
}

fn int_cmp<T: PartialOrd>(c: Cmp, a: T, b: T) -> bool {
    match c {
        Cmp::Lt | Cmp::Ltu => a < b,
        Cmp::Le | Cmp::Leu => a <= b,
        Cmp::Gt | Cmp::Gtu => a > b,
        Cmp::Ge | Cmp::Geu => a >= b,
        Cmp::Eq | Cmp::Equ => a == b,
        Cmp::Ne | Cmp::Neu => a != b,
        Cmp::Num => true,
        Cmp::Nan => false,
    }
}

#[inline(always)]
fn blend<T: Copy>(to: &mut [T; 32], from: &[T; 32], mask: u32) {
    if mask == u32::MAX {
        *to = *from;
    } else {
        for l in 0..32 {
            if mask >> l & 1 == 1 {
                to[l] = from[l];
            }
        }
    }
}

impl Regs {
    #[inline(always)]
    fn un<const N: usize>(&mut self, i: &Ins, mask: u32, g: impl Fn([u32; N]) -> u32) {
        let out: Lanes32 = std::array::from_fn(|l| g(std::array::from_fn(|n| self.w32[i.s[n] as usize][l])));
        blend(&mut self.w32[i.d[0] as usize], &out, mask);
    }

    #[inline(always)]
    fn fl<const N: usize>(&mut self, i: &Ins, mask: u32, g: impl Fn([f32; N]) -> f32) {
        self.un(i, mask, |x: [u32; N]| g(x.map(f)).to_bits());
    }

    #[inline(always)]
    fn wide<const N: usize>(&mut self, i: &Ins, mask: u32, g: impl Fn([u64; N]) -> u64) {
        let out: Lanes64 = std::array::from_fn(|l| g(std::array::from_fn(|n| self.w64[i.s[n] as usize][l])));
        blend(&mut self.w64[i.d[0] as usize], &out, mask);
    }

    /// 64-bit result from 32-bit sources, plus the third source where the operation has one.
    #[inline(always)]
    fn widen(&mut self, i: &Ins, mask: u32, add: bool, g: impl Fn(u32, u32) -> u64) {
        let out: Lanes64 = std::array::from_fn(|l| {
            let product = g(self.w32[i.s[0] as usize][l], self.w32[i.s[1] as usize][l]);
            if add { product.wrapping_add(self.w64[i.s[2] as usize][l]) } else { product }
        });
        blend(&mut self.w64[i.d[0] as usize], &out, mask);
    }

    #[inline(always)]
    fn set(&mut self, i: &Ins, mask: u32, g: impl Fn(usize) -> bool) {
        let bits = (0..32).fold(0u32, |bits, l| bits | u32::from(g(l)) << l);
        let p = &mut self.p[i.d[0] as usize];
        *p = *p & !mask | bits & mask;
    }

    fn pred(&mut self, i: &Ins, mask: u32, bits: u32) {
        let p = &mut self.p[i.d[0] as usize];
        *p = *p & !mask | bits & mask;
    }

    /// Runs an arithmetic instruction on the lanes of `mask`; false when it is not arithmetic.
    #[inline]
    pub(crate) fn arithmetic(&mut self, i: &Ins, mask: u32) -> bool {
        let s = |x: u32| x as i32;
        match i.op {
            Op::FmaF => self.fl(i, mask, |[a, b, c]| fma(a, b, c)),
            Op::Mov32 => self.un(i, mask, |[a]| a),
            Op::Mov64 => self.wide(i, mask, |[a]| a),
            Op::MovP => self.pred(i, mask, self.p[i.s[0] as usize]),
            Op::AddF => self.fl(i, mask, |[a, b]| a + b),
            Op::SubF => self.fl(i, mask, |[a, b]| a - b),
            Op::MulF => self.fl(i, mask, |[a, b]| a * b),
            Op::DivF => self.fl(i, mask, |[a, b]| a / b),
            Op::FmaDown => self.fl(i, mask, |[a, b, c]| fma_down(a, b, c)),
            Op::MaxF => self.fl(i, mask, |[a, b]| a.max(b)),
            Op::MinF => self.fl(i, mask, |[a, b]| a.min(b)),
            Op::NegF => self.un(i, mask, |[a]| a ^ 0x8000_0000),
            Op::AbsF => self.un(i, mask, |[a]| a & 0x7fff_ffff),
            Op::Copysign => self.un(i, mask, |[a, b]| a & 0x8000_0000 | b & 0x7fff_ffff),
            Op::Ex2 => self.fl(i, mask, |[a]| a.exp2()),
            Op::Lg2 => self.fl(i, mask, |[a]| a.log2()),
            Op::Rcp => self.fl(i, mask, |[a]| 1.0 / a),
            Op::Sqrt => self.fl(i, mask, |[a]| a.sqrt()),
            Op::Rsqrt => self.fl(i, mask, |[a]| 1.0 / a.sqrt()),
            Op::Trunc => self.fl(i, mask, |[a]| a.trunc()),
            Op::Floor => self.fl(i, mask, |[a]| a.floor()),
            Op::Ceil => self.fl(i, mask, |[a]| a.ceil()),
            Op::Nearest => self.fl(i, mask, |[a]| a.round_ties_even()),
            Op::Saturate => self.fl(i, mask, |[a]| if a.is_nan() { 0.0 } else { a.clamp(0.0, 1.0) }),
            Op::Add32 => self.un(i, mask, |[a, b]| a.wrapping_add(b)),
            Op::Sub32 => self.un(i, mask, |[a, b]| a.wrapping_sub(b)),
            Op::Mul32 => self.un(i, mask, |[a, b]| a.wrapping_mul(b)),
            Op::MulHiS => self.un(i, mask, |[a, b]| ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32),
            Op::MulHiU => self.un(i, mask, |[a, b]| ((u64::from(a) * u64::from(b)) >> 32) as u32),
            Op::Mad32 => self.un(i, mask, |[a, b, c]| a.wrapping_mul(b).wrapping_add(c)),
            // Division by zero gives a value nobody defined; so it does on a device.
            Op::DivS => self.un(i, mask, |[a, b]| if b == 0 { u32::MAX } else { s(a).wrapping_div(s(b)) as u32 }),
            Op::DivU => self.un(i, mask, |[a, b]| a.checked_div(b).unwrap_or(u32::MAX)),
            Op::RemS => self.un(i, mask, |[a, b]| if b == 0 { u32::MAX } else { s(a).wrapping_rem(s(b)) as u32 }),
            Op::RemU => self.un(i, mask, |[a, b]| a.checked_rem(b).unwrap_or(u32::MAX)),
            Op::MaxS => self.un(i, mask, |[a, b]| s(a).max(s(b)) as u32),
            Op::MinS => self.un(i, mask, |[a, b]| s(a).min(s(b)) as u32),
            Op::MaxU => self.un(i, mask, |[a, b]| a.max(b)),
            Op::MinU => self.un(i, mask, |[a, b]| a.min(b)),
            Op::Neg32 => self.un(i, mask, |[a]| a.wrapping_neg()),
            Op::AbsS => self.un(i, mask, |[a]| s(a).wrapping_abs() as u32),
            Op::And32 => self.un(i, mask, |[a, b]| a & b),
            Op::Or32 => self.un(i, mask, |[a, b]| a | b),
            Op::Xor32 => self.un(i, mask, |[a, b]| a ^ b),
            Op::Not32 => self.un(i, mask, |[a]| !a),
            Op::Shl32 => self.un(i, mask, |[a, b]| a.checked_shl(b).unwrap_or(0)),
            Op::ShrU32 => self.un(i, mask, |[a, b]| a.checked_shr(b).unwrap_or(0)),
            Op::ShrS32 => self.un(i, mask, |[a, b]| (s(a) >> b.min(31)) as u32),
            Op::Add64 => self.wide(i, mask, |[a, b]| a.wrapping_add(b)),
            Op::Sub64 => self.wide(i, mask, |[a, b]| a.wrapping_sub(b)),
            Op::Mul64 => self.wide(i, mask, |[a, b]| a.wrapping_mul(b)),
            Op::Neg64 => self.wide(i, mask, |[a]| a.wrapping_neg()),
            Op::And64 => self.wide(i, mask, |[a, b]| a & b),
            Op::Xor64 => self.wide(i, mask, |[a, b]| a ^ b),
            Op::Or64 => self.wide(i, mask, |[a, b]| a | b),
            Op::Shl64 | Op::ShrU64 | Op::ShrS64 => {
                let shift = self.w32[i.s[1] as usize];
                let value = self.w64[i.s[0] as usize];
                let out: Lanes64 = std::array::from_fn(|l| match i.op {
                    Op::Shl64 => value[l].checked_shl(shift[l]).unwrap_or(0),
                    Op::ShrU64 => value[l].checked_shr(shift[l]).unwrap_or(0),
                    _ => (value[l] as i64 >> shift[l].min(63)) as u64,
                });
                blend(&mut self.w64[i.d[0] as usize], &out, mask);
            }
            Op::MulWideS => self.widen(i, mask, false, |a, b| (i64::from(s(a)) * i64::from(s(b))) as u64),
            Op::MulWideU => self.widen(i, mask, false, |a, b| u64::from(a) * u64::from(b)),
            Op::MadWideS => self.widen(i, mask, true, |a, b| (i64::from(s(a)) * i64::from(s(b))) as u64),
            Op::MadWideU => self.widen(i, mask, true, |a, b| u64::from(a) * u64::from(b)),
            Op::S32ToS64 => self.widen(i, mask, false, |a, _| i64::from(s(a)) as u64),
            Op::U32ToU64 => self.widen(i, mask, false, |a, _| u64::from(a)),
            Op::U64ToU32 => {
                let out: Lanes32 = self.w64[i.s[0] as usize].map(|x| x as u32);
                blend(&mut self.w32[i.d[0] as usize], &out, mask);
            }
            Op::S32ToF => self.un(i, mask, |[a]| (s(a) as f32).to_bits()),
            Op::U32ToF => self.un(i, mask, |[a]| (a as f32).to_bits()),
            Op::FToS32 { floor } => {
                self.un(i, mask, |[a]| (if floor { f(a).floor() } else { f(a) }) as i32 as u32);
            }
            Op::AndP => self.pred(i, mask, self.p[i.s[0] as usize] & self.p[i.s[1] as usize]),
            Op::OrP => self.pred(i, mask, self.p[i.s[0] as usize] | self.p[i.s[1] as usize]),
            Op::XorP => self.pred(i, mask, self.p[i.s[0] as usize] ^ self.p[i.s[1] as usize]),
            Op::NotP => self.pred(i, mask, !self.p[i.s[0] as usize]),
            Op::SetF(c) => {
                let (a, b) = (self.w32[i.s[0] as usize], self.w32[i.s[1] as usize]);
                self.set(i, mask, |l| float_cmp(c, f(a[l]), f(b[l])));
            }
            Op::SetS(c) => {
                let (a, b) = (self.w32[i.s[0] as usize], self.w32[i.s[1] as usize]);
                self.set(i, mask, |l| int_cmp(c, s(a[l]), s(b[l])));
            }
            Op::SetU(c) => {
                let (a, b) = (self.w32[i.s[0] as usize], self.w32[i.s[1] as usize]);
                self.set(i, mask, |l| int_cmp(c, a[l], b[l]));
            }
            Op::SetS64(c) => {
                let (a, b) = (self.w64[i.s[0] as usize], self.w64[i.s[1] as usize]);
                self.set(i, mask, |l| int_cmp(c, a[l] as i64, b[l] as i64));
            }
            Op::SetU64(c) => {
                let (a, b) = (self.w64[i.s[0] as usize], self.w64[i.s[1] as usize]);
                self.set(i, mask, |l| int_cmp(c, a[l], b[l]));
            }
            Op::Sel32 => {
                let p = self.p[i.s[2] as usize];
                let (a, b) = (self.w32[i.s[0] as usize], self.w32[i.s[1] as usize]);
                let out: Lanes32 = std::array::from_fn(|l| if p >> l & 1 == 1 { a[l] } else { b[l] });
                blend(&mut self.w32[i.d[0] as usize], &out, mask);
            }
            Op::Sel64 => {
                let p = self.p[i.s[2] as usize];
                let (a, b) = (self.w64[i.s[0] as usize], self.w64[i.s[1] as usize]);
                let out: Lanes64 = std::array::from_fn(|l| if p >> l & 1 == 1 { a[l] } else { b[l] });
                blend(&mut self.w64[i.d[0] as usize], &out, mask);
            }
            _ => return false,
        }
        true
    }
}
