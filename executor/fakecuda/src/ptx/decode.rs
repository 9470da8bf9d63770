//! PTX text to a flat array of instructions over numbered registers.
//!
//! Constants and special registers get registers of their own, filled when a warp starts, so that every operand is a
//! register. There are three files: 32 bits (also 16), 64 bits, predicates.

use std::collections::HashMap;

/// Where shared memory begins in both address widths.
pub(crate) const SHARED_BASE: u64 = 0x0100_0000;
/// No guard.
pub(crate) const NONE: u32 = u32::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ty {
    Pred,
    B8,
    B16,
    B32,
    U32,
    S32,
    F32,
    B64,
    U64,
    S64,
}

impl Ty {
    fn of(s: &str) -> Option<Ty> {
        Some(match s {
            "pred" => Ty::Pred,
            "b8" | "u8" | "s8" => Ty::B8,
            "b16" | "u16" | "s16" => Ty::B16,
            "b32" => Ty::B32,
            "u32" => Ty::U32,
            "s32" => Ty::S32,
            "f32" => Ty::F32,
            "b64" => Ty::B64,
            "u64" => Ty::U64,
            "s64" => Ty::S64,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Ty::Pred | Ty::B8 => 1,
            Ty::B16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 => 8,
        }
    }

    fn wide(self) -> bool {
        self.size() == 8
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Lt,
    Le,
    Gt,
    Ge,
    Eq,
    Ne,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Equ,
    Neu,
    Num,
    Nan,
}

/// What an instruction does. `32`, `64` are register files; `P` predicates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Mov32,
    Mov64,
    MovP,
    LdParam32,
    LdParam64,
    Ld { shared: bool, bytes: u8, width: u8 },
    St { shared: bool, bytes: u8, width: u8 },
    AddF,
    SubF,
    MulF,
    FmaF,
    FmaDown,
    DivF,
    MaxF,
    MinF,
    NegF,
    AbsF,
    Ex2,
    Lg2,
    Rcp,
    Sqrt,
    Rsqrt,
    Trunc,
    Floor,
    Ceil,
    Nearest,
    Saturate,
    Copysign,
    Add32,
    Sub32,
    Mul32,
    MulHiS,
    MulHiU,
    Mad32,
    DivS,
    DivU,
    RemS,
    RemU,
    MaxS,
    MinS,
    MaxU,
    MinU,
    Neg32,
    AbsS,
    And32,
    Or32,
    Xor32,
    Not32,
    Shl32,
    ShrS32,
    ShrU32,
    Add64,
    Sub64,
    Mul64,
    Neg64,
    And64,
    Or64,
    Xor64,
    Shl64,
    ShrU64,
    ShrS64,
    MulWideS,
    MulWideU,
    MadWideS,
    MadWideU,
    AndP,
    OrP,
    XorP,
    NotP,
    SetF(Cmp),
    SetS(Cmp),
    SetU(Cmp),
    SetS64(Cmp),
    SetU64(Cmp),
    Sel32,
    Sel64,
    S32ToS64,
    U32ToU64,
    U64ToU32,
    S32ToF,
    U32ToF,
    FToS32 { floor: bool },
    Shfl { mode: u8 },
    Bra,
    Bar,
    Ret,
}

#[derive(Debug, Clone)]
pub(crate) struct Ins {
    pub(crate) op: Op,
    pub(crate) guard: u32,
    pub(crate) negate: bool,
    pub(crate) d: [u32; 4],
    pub(crate) s: [u32; 4],
    /// Address offset, parameter offset or branch target.
    pub(crate) at: i64,
    pub(crate) line: u32,
}

/// A decoded kernel.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Entry name.
    pub name: String,
    /// Offset and size of each parameter.
    pub params: Vec<(usize, usize)>,
    /// Bytes of all parameters.
    pub param_bytes: usize,
    /// Bytes of static shared memory.
    pub shared: usize,
    /// Largest block the kernel was compiled for.
    pub max_threads: u32,
    pub(crate) code: Vec<Ins>,
    pub(crate) n32: usize,
    pub(crate) n64: usize,
    pub(crate) np: usize,
    pub(crate) const32: Vec<(u32, u32)>,
    pub(crate) const64: Vec<(u32, u64)>,
    /// Predicate register that is always true, where used.
    pub(crate) always: Option<u32>,
    /// Register of each of `SPECIALS`, where used.
    pub(crate) special: [u32; 13],
}

pub(crate) const SPECIALS: [&str; 13] = [
    "%tid.x",
    "%tid.y",
    "%tid.z",
    "%ntid.x",
    "%ntid.y",
    "%ntid.z",
    "%ctaid.x",
    "%ctaid.y",
    "%ctaid.z",
    "%nctaid.x",
    "%nctaid.y",
    "%nctaid.z",
    "%laneid",
];

#[derive(Debug, Clone, Copy)]
enum Reg {
    W32(u32),
    W64(u32),
    P(u32),
}

#[derive(Default)]
struct Names {
    regs: HashMap<String, Reg>,
    shared: HashMap<String, u64>,
    labels: HashMap<String, usize>,
    params: HashMap<String, usize>,
    n32: u32,
    n64: u32,
    np: u32,
    const32: HashMap<u32, u32>,
    const64: HashMap<u64, u32>,
    const_p: [Option<u32>; 2],
    special: [Option<u32>; 13],
    written: std::collections::HashSet<(u8, u32)>,
    read: Vec<(u8, u32, u32)>,
}

/// Decodes every entry of a PTX module.
pub fn parse(source: &str) -> Result<Vec<Kernel>, String> {
    let lines: Vec<&str> = source.lines().map(|l| l.split("//").next().unwrap_or("").trim()).collect();
    if !lines.iter().any(|l| l.starts_with(".version")) {
        return Err("not PTX: no .version".to_owned());
    }
    let mut kernels = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        if lines[at].contains(".entry") {
            kernels.push(kernel(&lines, &mut at)?);
        } else if lines[at].contains(".func") {
            return Err(format!("PTX line {}: functions are not covered", at + 1));
        } else {
            at += 1;
        }
    }
    Ok(kernels)
}

fn kernel(lines: &[&str], at: &mut usize) -> Result<Kernel, String> {
    let name = lines[*at].split(".entry").nth(1).unwrap_or("").trim().trim_end_matches('(').trim().to_owned();
    let mut names = Names::default();
    let (mut params, mut offset, mut max_threads) = (Vec::new(), 0usize, 1024);
    while !lines[*at].starts_with('{') {
        let line = lines[*at];
        if line.starts_with(".param") {
            let words: Vec<&str> = line.trim_end_matches([',', ')']).split_whitespace().collect();
            let ty = words.get(1).and_then(|w| Ty::of(w.trim_start_matches('.')));
            let (Some(ty), 3) = (ty, words.len()) else {
                return Err(format!("PTX line {}: parameter {line} is not covered", *at + 1));
            };
            offset = offset.next_multiple_of(ty.size());
            names.params.insert(words[2].to_owned(), offset);
            params.push((offset, ty.size()));
            offset += ty.size();
        }
        if let Some(bounds) = line.strip_prefix(".maxntid") {
            let sizes = bounds.split(',').map(|n| n.trim().parse::<u32>());
            max_threads = sizes.product::<Result<u32, _>>().map_err(|e| format!("PTX line {}: {e}", *at + 1))?;
        }
        *at += 1;
    }
    *at += 1;
    let mut shared = 0usize;
    let mut raw: Vec<(String, u32)> = Vec::new();
    let mut pending = String::new();
    loop {
        let line = *lines.get(*at).ok_or("PTX ends inside a kernel")?;
        *at += 1;
        if line.starts_with('}') && pending.is_empty() {
            break;
        }
        let number = *at as u32;
        if line.is_empty() || line.starts_with(".loc") || line.starts_with(".pragma") {
            continue;
        }
        if let Some(label) = line.strip_suffix(':') {
            names.labels.insert(label.to_owned(), raw.len());
        } else if let Some(rest) = line.strip_prefix(".reg") {
            registers(&mut names, rest)
                .ok_or_else(|| format!("PTX line {number}: registers {line} are not covered"))?;
        } else if let Some(rest) = line.strip_prefix(".shared") {
            shared_variable(&mut names, rest, &mut shared)
                .ok_or_else(|| format!("PTX line {number}: shared variable {line} is not covered"))?;
        } else if line.starts_with('.') || line.starts_with('{') {
            return Err(format!("PTX line {number}: directive {line} is not covered"));
        } else {
            pending.push_str(line);
            if line.ends_with(';') {
                raw.push((std::mem::take(&mut pending), number));
            } else {
                pending.push(' ');
            }
        }
    }
    let mut code = Vec::new();
    for (text, line) in &raw {
        let ins = instruction(&mut names, text, *line).map_err(|e| format!("PTX line {line}: {e} in `{text}`"))?;
        code.push(ins);
    }
    for (file, reg, line) in &names.read {
        if !names.written.contains(&(*file, *reg)) {
            return Err(format!("PTX line {line}: {name} reads a register nobody writes"));
        }
    }
    Ok(Kernel {
        name,
        params,
        param_bytes: offset,
        shared,
        max_threads,
        code,
        n32: names.n32 as usize,
        n64: names.n64 as usize,
        np: names.np as usize,
        const32: names.const32.iter().map(|(v, r)| (*r, *v)).collect(),
        const64: names.const64.iter().map(|(v, r)| (*r, *v)).collect(),
        always: names.const_p[1],
        special: names.special.map(|r| r.unwrap_or(NONE)),
    })
}

fn registers(names: &mut Names, text: &str) -> Option<()> {
    let mut words = text.trim_end_matches(';').split_whitespace();
    let ty = Ty::of(words.next()?.trim_start_matches('.'))?;
    for word in words {
        let word = word.trim_matches(',');
        let (stem, count) = match word.split_once('<') {
            Some((stem, n)) => (stem, Some(n.trim_end_matches('>').parse::<usize>().ok()?)),
            None => (word, None),
        };
        let all: Vec<String> = match count {
            Some(n) => (0..n).map(|i| format!("{stem}{i}")).collect(),
            None => vec![stem.to_owned()],
        };
        for name in all {
            let reg = names.fresh(ty);
            names.regs.insert(name, reg);
        }
    }
    Some(())
}

fn shared_variable(names: &mut Names, text: &str, used: &mut usize) -> Option<()> {
    let words: Vec<&str> = text.trim_end_matches(';').split_whitespace().collect();
    let (".align", align, ty, decl) =
        (*words.first()?, words.get(1)?.parse::<usize>().ok()?, *words.get(2)?, words.get(3)?)
    else {
        return None;
    };
    let (name, count) = decl.split_once('[')?;
    let size = Ty::of(ty.trim_start_matches('.'))?.size() * count.trim_end_matches(']').parse::<usize>().ok()?;
    *used = used.next_multiple_of(align);
    names.shared.insert(name.to_owned(), SHARED_BASE + *used as u64);
    *used += size;
    Some(())
}

impl Names {
    fn fresh(&mut self, ty: Ty) -> Reg {
        let count = match ty {
            Ty::Pred => &mut self.np,
            ty if ty.wide() => &mut self.n64,
            _ => &mut self.n32,
        };
        let id = *count;
        *count += 1;
        match ty {
            Ty::Pred => Reg::P(id),
            ty if ty.wide() => Reg::W64(id),
            _ => Reg::W32(id),
        }
    }

    /// A register that is written.
    fn target(&mut self, text: &str, ty: Ty) -> Result<u32, String> {
        let reg = *self.regs.get(text).ok_or_else(|| format!("unknown register {text}"))?;
        let (file, id) = self.checked(reg, ty, text)?;
        self.written.insert((file, id));
        Ok(id)
    }

    fn checked(&self, reg: Reg, ty: Ty, text: &str) -> Result<(u8, u32), String> {
        match (reg, ty) {
            (Reg::P(id), Ty::Pred) => Ok((0, id)),
            (Reg::W64(id), ty) if ty.wide() => Ok((2, id)),
            (Reg::W32(id), ty) if !ty.wide() && ty != Ty::Pred => Ok((1, id)),
            _ => Err(format!("register {text} has another width than {ty:?}")),
        }
    }

    /// A register that is read; constants and special registers become one.
    fn source(&mut self, text: &str, ty: Ty, line: u32) -> Result<u32, String> {
        if let Some(reg) = self.regs.get(text) {
            let (file, id) = self.checked(*reg, ty, text)?;
            self.read.push((file, id, line));
            return Ok(id);
        }
        if let Some(at) = SPECIALS.iter().position(|s| *s == text) {
            if ty.wide() {
                return Err(format!("special register {text} as 64 bits"));
            }
            let id = self.special[at].unwrap_or_else(|| match self.fresh(Ty::B32) {
                Reg::W32(id) | Reg::W64(id) | Reg::P(id) => id,
            });
            self.special[at] = Some(id);
            return Ok(id);
        }
        let value = self.constant(text).ok_or_else(|| format!("unknown operand {text}"))?;
        let (table_id, wide) = if ty.wide() {
            (self.const64.get(&value).copied(), true)
        } else if ty == Ty::Pred {
            let bit = usize::from(value & 1 == 1);
            let id = self.const_p[bit].unwrap_or_else(|| {
                self.np += 1;
                self.np - 1
            });
            self.const_p[bit] = Some(id);
            return Ok(id);
        } else {
            (self.const32.get(&(value as u32)).copied(), false)
        };
        if let Some(id) = table_id {
            return Ok(id);
        }
        let (Reg::W32(id) | Reg::W64(id) | Reg::P(id)) = self.fresh(ty);
        if wide {
            self.const64.insert(value, id);
        } else {
            self.const32.insert(value as u32, id);
        }
        Ok(id)
    }

    fn constant(&self, text: &str) -> Option<u64> {
        if let Some(hex) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
            return u64::from_str_radix(hex, 16).ok();
        }
        if let Some(hex) = text.strip_prefix("0x") {
            return u64::from_str_radix(hex, 16).ok();
        }
        if let Some(address) = self.shared.get(text) {
            return Some(*address);
        }
        text.parse::<i64>().ok().map(|v| v as u64)
    }
}

/// Operands, split at commas outside braces and brackets; `a|b` counts as two.
fn operands(text: &str) -> Vec<String> {
    let mut all = vec![String::new()];
    let mut depth = 0;
    for c in text.chars() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ => {}
        }
        if (c == ',' || c == '|') && depth == 0 {
            all.push(String::new());
        } else if let Some(last) = all.last_mut() {
            last.push(c);
        }
    }
    all.into_iter().map(|s| s.trim().to_owned()).filter(|s| !s.is_empty()).collect()
}

fn instruction(names: &mut Names, text: &str, line: u32) -> Result<Ins, String> {
    let mut text = text.trim_end_matches(';').trim();
    let (mut guard, mut negate) = (NONE, false);
    if let Some(rest) = text.strip_prefix('@') {
        let (p, rest) = rest.split_once(char::is_whitespace).ok_or("no instruction after the guard")?;
        negate = p.starts_with('!');
        guard = names.source(p.trim_start_matches('!'), Ty::Pred, line)?;
        text = rest.trim();
    }
    let (opcode, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let o = operands(rest);
    let parts: Vec<&str> = opcode.split('.').collect();
    let types: Vec<Ty> = parts.iter().skip(1).filter_map(|p| Ty::of(p)).collect();
    let modifiers: Vec<&str> = parts.iter().skip(1).copied().filter(|p| Ty::of(p).is_none()).collect();
    let mut ins = Ins { op: Op::Ret, guard, negate, d: [0; 4], s: [0; 4], at: 0, line };
    let known =
        super::lanes::plan(parts[0], &modifiers, &types).ok_or_else(|| format!("opcode {opcode} is not covered"))?;
    ins.op = known.op;
    let need = |n: usize| if o.len() == n { Ok(()) } else { Err(format!("{opcode} with {} operands", o.len())) };
    match known.op {
        Op::Bra => {
            need(1)?;
            ins.at = *names.labels.get(&o[0]).ok_or("unknown label")? as i64;
        }
        Op::Ret => need(0)?,
        Op::Bar => {
            need(1)?;
            if o[0] != "0" {
                return Err(format!("barrier {} is not covered", o[0]));
            }
        }
        Op::LdParam32 | Op::LdParam64 => {
            need(2)?;
            ins.d[0] = names.target(&o[0], known.dst)?;
            let inner = o[1].trim_start_matches('[').trim_end_matches(']');
            ins.at = *names.params.get(inner).ok_or("unknown parameter")? as i64;
        }
        Op::Ld { shared, width, .. } | Op::St { shared, width, .. } => {
            need(2)?;
            let store = matches!(known.op, Op::St { .. });
            let (address, values) = if store { (&o[0], &o[1]) } else { (&o[1], &o[0]) };
            let inner = address.trim_start_matches('[').trim_end_matches(']');
            let (base, offset) = match inner.rsplit_once('+') {
                Some((base, offset)) => (base.trim(), offset.trim().parse::<i64>().map_err(|e| e.to_string())?),
                None => (inner.trim(), 0),
            };
            ins.at = offset;
            // A shared address may be 32 or 64 bits wide; s[3] tells which.
            let narrow = shared
                && names
                    .source(base, Ty::B32, line)
                    .is_ok_and(|_| !matches!(names.regs.get(base), None | Some(Reg::W64(_))));
            ins.s[0] = names.source(base, if narrow { Ty::B32 } else { Ty::B64 }, line)?;
            ins.s[3] = u32::from(narrow);
            let list: Vec<&str> = values.trim_matches(['{', '}']).split(',').map(str::trim).collect();
            if list.len() != width as usize {
                return Err(format!("{} values for a vector of {width}", list.len()));
            }
            for (i, value) in list.iter().enumerate() {
                ins.d[i] =
                    if store { names.source(value, known.src, line)? } else { names.target(value, known.dst)? };
            }
        }
        Op::Shfl { .. } => {
            // d, (p), value, lane operand, clamp, member mask
            let p = usize::from(o.len() == 6);
            need(5 + p)?;
            ins.d[0] = names.target(&o[0], Ty::B32)?;
            ins.d[1] = if p == 1 { names.target(&o[1], Ty::Pred)? } else { NONE };
            for i in 0..4 {
                ins.s[i] = names.source(&o[1 + p + i], Ty::B32, line)?;
            }
        }
        _ => {
            need(1 + known.sources)?;
            ins.d[0] = names.target(&o[0], known.dst)?;
            for i in 0..known.sources {
                let ty = if i == 2 {
                    known.third
                } else if i == 1 {
                    known.second
                } else {
                    known.src
                };
                ins.s[i] = names.source(&o[1 + i], ty, line)?;
            }
        }
    }
    Ok(ins)
}
