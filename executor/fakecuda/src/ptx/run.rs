//! Runs a launch block by block, warp by warp, 32 lanes at a time.
//!
//! A warp whose lanes take different ways is split into fragments. The one that is furthest behind runs, so that they
//! meet again where the ways join. Each warp runs until all its lanes wait at a barrier or are done.

use super::decode::{Ins, Kernel, NONE, Op, SHARED_BASE};
use super::fault::{Fault, FaultKind};
use super::lanes::Regs;
use super::memory::{Memory, SharedTouch, THREAD_BITS};

/// What no device grants more of to a kernel that does not ask.
const SHARED_LIMIT: usize = 48 * 1024;
const MAX_GRID_YZ: u32 = 65_535;

/// Order in which blocks and warps run. A result must not depend on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order {
    /// Last block first.
    pub blocks_reversed: bool,
    /// Last warp first.
    pub warps_reversed: bool,
}

/// A launch.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: usize,
    /// Parameters, laid out as the kernel says.
    pub params: &'a [u8],
    /// Order of blocks and warps.
    pub order: Order,
    /// Warp instructions after which the launch counts as endless.
    pub instruction_limit: u64,
}

/// What a launch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Warp instructions.
    pub instructions: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    AtBarrier,
    WaitsForLanes,
}

#[derive(Debug, Clone, Copy)]
struct Fragment {
    pc: usize,
    mask: u32,
    state: State,
}

struct Warp {
    regs: Regs,
    fragments: Vec<Fragment>,
    done: u32,
    all: u32,
    first_thread: u32,
}

struct Machine<'a> {
    kernel: &'a Kernel,
    launch: Launch<'a>,
    memory: &'a mut Memory,
    shared: Vec<u8>,
    shared_touches: Vec<SharedTouch>,
    block: [u32; 3],
    block_linear: u32,
    block_phase: u32,
    instructions: u64,
    /// Buffer each instruction used last.
    near: Vec<usize>,
}

/// Runs a kernel to its end, or to its first fault.
pub fn launch(kernel: &Kernel, launch: Launch<'_>, memory: &mut Memory) -> Result<Stats, Box<Fault>> {
    let Launch { grid, block, dynamic_shared, params, order, .. } = launch;
    let threads = block.iter().map(|n| u64::from(*n)).product::<u64>();
    let blocks = grid.iter().map(|n| u64::from(*n)).product::<u64>();
    let limit = |detail: String| {
        Box::new(Fault {
            kind: FaultKind::LaunchLimit,
            kernel: kernel.name.clone(),
            line: 0,
            block: [0; 3],
            thread: [0; 3],
            detail,
        })
    };
    if threads == 0 || blocks == 0 {
        return Err(limit(format!("empty grid {grid:?} or block {block:?}")));
    }
    if threads > u64::from(kernel.max_threads) || block[2] > 64 {
        return Err(limit(format!("block {block:?} against at most {} threads", kernel.max_threads)));
    }
    if grid[0] > i32::MAX as u32 || grid[1] > MAX_GRID_YZ || grid[2] > MAX_GRID_YZ {
        return Err(limit(format!("grid {grid:?}")));
    }
    if blocks >= 1 << (32 - THREAD_BITS) {
        return Err(limit(format!("grid {grid:?} has more blocks than the checker can tell apart")));
    }
    let shared_bytes = kernel.shared + dynamic_shared;
    if shared_bytes > SHARED_LIMIT {
        return Err(limit(format!("{shared_bytes} bytes of shared memory")));
    }
    if params.len() != kernel.param_bytes {
        return Err(limit(format!("{} bytes of parameters, {} expected", params.len(), kernel.param_bytes)));
    }
    memory.begin_launch();
    let mut machine = Machine {
        kernel,
        launch,
        memory,
        shared: vec![0xff; shared_bytes],
        shared_touches: vec![SharedTouch::default(); shared_bytes.div_ceil(4)],
        block: [0; 3],
        block_linear: 0,
        block_phase: 0,
        instructions: 0,
        near: vec![0; kernel.code.len()],
    };
    let mut warps = machine.warps(threads as u32);
    for at in 0..blocks {
        let linear = if order.blocks_reversed { blocks - 1 - at } else { at };
        let [gx, gy] = [u64::from(grid[0]), u64::from(grid[1])];
        machine.block = [(linear % gx) as u32, (linear / gx % gy) as u32, (linear / gx / gy) as u32];
        machine.block_linear = linear as u32;
        machine.run_block(&mut warps)?;
    }
    Ok(Stats { instructions: machine.instructions })
}

impl Machine<'_> {
    fn warps(&self, threads: u32) -> Vec<Warp> {
        let k = self.kernel;
        let [bx, by, bz] = self.launch.block;
        (0..threads.div_ceil(32))
            .map(|w| {
                let mut regs = Regs { w32: vec![[0; 32]; k.n32], w64: vec![[0; 32]; k.n64], p: vec![0; k.np] };
                k.const32.iter().for_each(|(r, v)| regs.w32[*r as usize] = [*v; 32]);
                k.const64.iter().for_each(|(r, v)| regs.w64[*r as usize] = [*v; 32]);
                if let Some(p) = k.always {
                    regs.p[p as usize] = u32::MAX;
                }
                let mut special = |at: usize, lane: &dyn Fn(u32) -> u32| {
                    if k.special[at] != NONE {
                        regs.w32[k.special[at] as usize] = std::array::from_fn(|l| lane(l as u32));
                    }
                };
                let t = |l: u32| w * 32 + l;
                special(0, &|l| t(l) % bx);
                special(1, &|l| t(l) / bx % by);
                special(2, &|l| t(l) / bx / by);
                for (at, n) in [bx, by, bz].into_iter().enumerate() {
                    special(3 + at, &|_| n);
                    special(9 + at, &|_| self.launch.grid[at]);
                }
                special(12, &|l| l);
                let lanes = (threads - w * 32).min(32);
                let all = if lanes == 32 { u32::MAX } else { (1 << lanes) - 1 };
                Warp { regs, fragments: Vec::new(), done: 0, all, first_thread: w * 32 }
            })
            .collect()
    }

    fn run_block(&mut self, warps: &mut [Warp]) -> Result<(), Box<Fault>> {
        self.memory.phase += 1;
        self.block_phase = self.memory.phase;
        for warp in warps.iter_mut() {
            for at in 0..3 {
                if self.kernel.special[6 + at] != NONE {
                    warp.regs.w32[self.kernel.special[6 + at] as usize] = [self.block[at]; 32];
                }
            }
            warp.done = 0;
            warp.fragments = vec![Fragment { pc: 0, mask: warp.all, state: State::Running }];
        }
        loop {
            for at in 0..warps.len() {
                let at = if self.launch.order.warps_reversed { warps.len() - 1 - at } else { at };
                self.run_warp(&mut warps[at])?;
            }
            if warps.iter().all(|w| w.done == w.all) {
                return Ok(());
            }
            self.release_barrier(warps)?;
        }
    }

    /// All lanes of the block must wait at one barrier.
    fn release_barrier(&mut self, warps: &mut [Warp]) -> Result<(), Box<Fault>> {
        let pcs = || warps.iter().flat_map(|w| w.fragments.iter().map(|f| f.pc));
        let (Some(first), Some(last)) = (pcs().min(), pcs().max()) else { return Ok(()) };
        let line = self.kernel.code[first].line;
        if let Some(warp) = warps.iter().find(|w| w.done != 0) {
            let lane = warp.done.trailing_zeros();
            return Err(self.fault(
                FaultKind::DivergentBarrier,
                line,
                warp.first_thread + lane,
                "this thread has ended; others wait".into(),
            ));
        }
        if first != last {
            let (warp, fragment) = warps
                .iter()
                .flat_map(|w| w.fragments.iter().map(move |f| (w, f)))
                .find(|(_, f)| f.pc == last)
                .map(|(w, f)| (w.first_thread, *f))
                .unwrap_or((0, Fragment { pc: last, mask: 1, state: State::AtBarrier }));
            let detail = format!("this thread waits at PTX line {}", self.kernel.code[last].line);
            return Err(self.fault(FaultKind::DivergentBarrier, line, warp + fragment.mask.trailing_zeros(), detail));
        }
        self.memory.phase += 1;
        for warp in warps {
            warp.fragments = vec![Fragment { pc: first + 1, mask: warp.all, state: State::Running }];
        }
        Ok(())
    }

    fn fault(&self, kind: FaultKind, line: u32, thread: u32, detail: String) -> Box<Fault> {
        let [bx, by, _] = self.launch.block;
        let thread = [thread % bx, thread / bx % by, thread / bx / by];
        Box::new(Fault { kind, kernel: self.kernel.name.clone(), line, block: self.block, thread, detail })
    }

    fn run_warp(&mut self, warp: &mut Warp) -> Result<(), Box<Fault>> {
        loop {
            let running = |f: &&Fragment| f.state == State::Running;
            let Some(pc) = warp.fragments.iter().filter(running).map(|f| f.pc).min() else {
                let Some(stuck) = warp.fragments.iter().find(|f| f.state == State::WaitsForLanes) else {
                    return Ok(());
                };
                let lane = stuck.mask.trailing_zeros();
                let line = self.kernel.code[stuck.pc].line;
                return Err(self.fault(
                    FaultKind::MissingLane,
                    line,
                    warp.first_thread + lane,
                    "a named lane is elsewhere".into(),
                ));
            };
            // All that stand at the same place run on together.
            let mut mask = 0;
            warp.fragments.retain(|f| {
                let here = f.pc == pc && f.state != State::AtBarrier;
                mask |= if here { f.mask } else { 0 };
                !here
            });
            let limit = warp.fragments.iter().filter(|f| f.state != State::AtBarrier).map(|f| f.pc).min();
            self.run_fragment(warp, Fragment { pc, mask, state: State::Running }, limit.unwrap_or(usize::MAX))?;
        }
    }

    /// Runs until another fragment is met at `limit`, the ways part, or there is something to wait for.
    fn run_fragment(&mut self, warp: &mut Warp, mut f: Fragment, limit: usize) -> Result<(), Box<Fault>> {
        let kernel = self.kernel;
        let start = f.pc;
        loop {
            if f.pc >= limit && f.pc != start {
                warp.fragments.push(f);
                return Ok(());
            }
            let Some(ins) = kernel.code.get(f.pc) else {
                warp.done |= f.mask;
                return Ok(());
            };
            self.instructions += 1;
            if self.instructions > self.launch.instruction_limit {
                return Err(self.fault(
                    FaultKind::Endless,
                    ins.line,
                    warp.first_thread,
                    "the launch does not end".into(),
                ));
            }
            let mut active = f.mask;
            if ins.guard != NONE {
                let p = warp.regs.p[ins.guard as usize];
                active &= if ins.negate { !p } else { p };
            }
            if active == 0 || warp.regs.arithmetic(ins, active) {
                f.pc += 1;
                continue;
            }
            match ins.op {
                Op::Ld { .. } | Op::St { .. } => {
                    self.access(warp, ins, f.pc, active)?;
                    f.pc += 1;
                }
                Op::LdParam32 | Op::LdParam64 => {
                    self.parameter(warp, ins, active);
                    f.pc += 1;
                }
                Op::Bra if active == f.mask => {
                    f.pc = ins.at as usize;
                    if f.pc <= start || f.pc > limit {
                        // Let whoever is further behind go first.
                        warp.fragments.push(f);
                        return Ok(());
                    }
                }
                Op::Bra => {
                    warp.fragments.push(Fragment { pc: ins.at as usize, mask: active, state: State::Running });
                    warp.fragments.push(Fragment { pc: f.pc + 1, mask: f.mask & !active, state: State::Running });
                    return Ok(());
                }
                Op::Ret => {
                    warp.done |= active;
                    if f.mask & !active != 0 {
                        warp.fragments.push(Fragment { pc: f.pc + 1, mask: f.mask & !active, state: State::Running });
                    }
                    return Ok(());
                }
                Op::Bar => {
                    warp.fragments.push(Fragment { pc: f.pc, mask: active, state: State::AtBarrier });
                    if f.mask & !active != 0 {
                        warp.fragments.push(Fragment { pc: f.pc + 1, mask: f.mask & !active, state: State::Running });
                    }
                    return Ok(());
                }
                Op::Shfl { mode } => {
                    if !self.shuffle(warp, ins, mode, active) {
                        warp.fragments.push(Fragment { state: State::WaitsForLanes, ..f });
                        return Ok(());
                    }
                    f.pc += 1;
                }
                op => {
                    return Err(self.fault(
                        FaultKind::LaunchLimit,
                        ins.line,
                        warp.first_thread,
                        format!("{op:?} has no meaning here"),
                    ));
                }
            }
        }
    }

    fn parameter(&self, warp: &mut Warp, ins: &Ins, mask: u32) {
        let at = ins.at as usize;
        let params = self.launch.params;
        let mut raw = [0u8; 8];
        let wide = ins.op == Op::LdParam64;
        let size = if wide { 8 } else { 4 };
        raw[..size].copy_from_slice(&params[at..at + size]);
        let value = u64::from_le_bytes(raw);
        for l in (0..32).filter(|l| mask >> l & 1 == 1) {
            if wide {
                warp.regs.w64[ins.d[0] as usize][l] = value;
            } else {
                warp.regs.w32[ins.d[0] as usize][l] = value as u32;
            }
        }
    }

    /// False when a lane the mask names is not here.
    fn shuffle(&self, warp: &mut Warp, ins: &Ins, mode: u8, mask: u32) -> bool {
        let regs = &mut warp.regs;
        let [value, operand, clamp, members] = ins.s.map(|s| regs.w32[s as usize]);
        let (mut out, mut ok) = (value, 0u32);
        for l in 0..32u32 {
            if mask >> l & 1 == 0 {
                continue;
            }
            if members[l as usize] & !mask != 0 || members[l as usize] >> l & 1 == 0 {
                return false;
            }
            let (b, c) = (operand[l as usize] & 31, clamp[l as usize]);
            let (bound, segment) = (c & 31, c >> 8 & 31);
            let (max, min) = (l & segment | bound & !segment, l & segment);
            let (from, inside) = match mode {
                0 => (l ^ b, (l ^ b) <= max),
                1 => (l + b, l + b <= max),
                2 => (l.wrapping_sub(b), i64::from(l) - i64::from(b) >= i64::from(max)),
                _ => (min | b & !segment, (min | b & !segment) <= max),
            };
            if inside {
                ok |= 1 << l;
                // A lane that is not here has no value to give.
                out[l as usize] = if mask >> (from & 31) & 1 == 1 { value[(from & 31) as usize] } else { u32::MAX };
            }
        }
        for l in (0..32).filter(|l| mask >> l & 1 == 1) {
            regs.w32[ins.d[0] as usize][l] = out[l];
        }
        if ins.d[1] != NONE {
            let p = &mut regs.p[ins.d[1] as usize];
            *p = *p & !mask | ok & mask;
        }
        true
    }

    fn access(&mut self, warp: &mut Warp, ins: &Ins, pc: usize, mask: u32) -> Result<(), Box<Fault>> {
        let (shared, bytes, width, store) = match ins.op {
            Op::Ld { shared, bytes, width } => (shared, bytes as usize, width as usize, false),
            Op::St { shared, bytes, width } => (shared, bytes as usize, width as usize, true),
            _ => return Ok(()),
        };
        let size = bytes * width;
        for l in 0..32u32 {
            if mask >> l & 1 == 0 {
                continue;
            }
            let lane = l as usize;
            let base = if ins.s[3] == 1 {
                u64::from(warp.regs.w32[ins.s[0] as usize][lane])
            } else {
                warp.regs.w64[ins.s[0] as usize][lane]
            };
            let address = base.wrapping_add(ins.at as u64);
            let thread = warp.first_thread + l;
            if !address.is_multiple_of(size as u64) {
                let detail = format!("{size} bytes at {address:#x}");
                return Err(self.fault(FaultKind::Misaligned, ins.line, thread, detail));
            }
            let who = self.block_linear << THREAD_BITS | thread;
            let phase = self.memory.phase;
            let (buffer, offset) = if shared {
                let offset = address.wrapping_sub(SHARED_BASE) as usize;
                if offset.checked_add(size).is_none_or(|end| end > self.shared.len()) {
                    let detail = format!("shared offset {} of {}", offset as i64, self.shared.len());
                    return Err(self.fault(FaultKind::OutOfBounds, ins.line, thread, detail));
                }
                (None, offset)
            } else {
                let near = self.near[pc];
                let hit = self.memory.buffers.get(near).and_then(|b| {
                    let offset = address.checked_sub(b.base)? as usize;
                    (offset.checked_add(size)? <= b.bytes.len()).then_some((near, offset))
                });
                let Some((at, offset)) = hit.or_else(|| self.memory.find(address, size)) else {
                    let freed = self.memory.was_freed(address);
                    let kind = if freed { FaultKind::UseAfterFree } else { FaultKind::OutOfBounds };
                    let detail = self.where_is(address, size);
                    return Err(self.fault(kind, ins.line, thread, detail));
                };
                self.near[pc] = at;
                (Some(at), offset)
            };
            let (launch, block_phase) = (self.memory.launch_phase, self.block_phase);
            let checked = match buffer {
                Some(at) if store => self.memory.buffers[at].on_write(offset, size, who, phase, launch),
                Some(at) => self.memory.buffers[at].on_read(offset, size, who, phase, launch),
                None => (offset / 4..(offset + size) / 4).try_for_each(|word| {
                    let touch = &mut self.shared_touches[word];
                    if store { touch.on_write(who, phase) } else { touch.on_read(who, phase, block_phase) }
                }),
            };
            if let Err((kind, what)) = checked {
                let detail = format!("{what}, offset {offset}");
                return Err(self.fault(kind, ins.line, thread, detail));
            }
            let place = match buffer {
                Some(at) => &mut self.memory.buffers[at].bytes[offset..offset + size],
                None => &mut self.shared[offset..offset + size],
            };
            for (i, chunk) in place.chunks_exact_mut(bytes).enumerate() {
                let reg = ins.d[i] as usize;
                match (bytes, store) {
                    (4, true) => chunk.copy_from_slice(&warp.regs.w32[reg][lane].to_le_bytes()),
                    (4, false) => {
                        warp.regs.w32[reg][lane] = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]])
                    }
                    (_, true) => chunk.copy_from_slice(&warp.regs.w64[reg][lane].to_le_bytes()),
                    (_, false) => {
                        let mut raw = [0; 8];
                        raw.copy_from_slice(chunk);
                        warp.regs.w64[reg][lane] = u64::from_le_bytes(raw);
                    }
                }
            }
        }
        Ok(())
    }

    fn where_is(&self, address: u64, size: usize) -> String {
        let before = self.memory.buffers.iter().rev().find(|b| b.base <= address);
        match before {
            Some(b) => format!("{size} bytes at offset {} of a buffer of {}", address - b.base, b.bytes.len()),
            None => format!("{size} bytes at {address:#x}: no such buffer"),
        }
    }
}
