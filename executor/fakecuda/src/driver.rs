//! State of the driver: handles, streams, captures, memory.

use crate::misuse::Misuse;
use crate::ptx::{Kernel, Launch, Memory, Order, launch};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) type Code = i32;
pub(crate) const OK: Code = 0;
pub(crate) const INVALID_VALUE: Code = 1;
pub(crate) const OUT_OF_MEMORY: Code = 2;
pub(crate) const INVALID_HANDLE: Code = 400;
pub(crate) const ILLEGAL_ADDRESS: Code = 700;
pub(crate) const CAPTURE_UNSUPPORTED: Code = 900;
/// `CU_STREAM_CAPTURE_MODE_GLOBAL` and `_THREAD_LOCAL`; the third mode, `_RELAXED`, forbids nothing.
const GLOBAL: i32 = 0;
const THREAD_LOCAL: i32 = 1;

/// What a stream captures, and what that forbids meanwhile.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) work: Vec<Work>,
    mode: i32,
    by: Option<std::thread::ThreadId>,
}

impl Capture {
    /// A capture of this mode by the calling thread.
    pub(crate) fn begin(mode: i32) -> Self {
        Capture { work: Vec::new(), mode, by: Some(std::thread::current().id()) }
    }

    /// True when the calling thread may not make calls that could wait, such as an allocation (CUDA driver API,
    /// `cuThreadExchangeStreamCaptureMode`).
    pub(crate) fn forbids_unsafe_calls(&self) -> bool {
        match self.mode {
            GLOBAL => true,
            THREAD_LOCAL => self.by == Some(std::thread::current().id()),
            _ => false,
        }
    }
}

/// Memory of the device unless told otherwise.
const MEMORY_BYTES: u64 = 1 << 30;
/// Warp instructions of one launch, some ten seconds.
const INSTRUCTION_LIMIT: u64 = 200_000_000;

/// Work on a stream.
#[derive(Debug, Clone)]
pub(crate) enum Work {
    Kernel {
        kernel: Arc<Kernel>,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: usize,
        params: Vec<u8>,
    },
    /// From the host: pinned memory is read when the copy runs, other memory was read when it was asked for.
    Upload {
        to: u64,
        from: HostBytes,
        /// What the memory held when the work was put on its stream; only in lazy mode.
        before: Option<Vec<u8>>,
    },
    /// To the host.
    Download {
        to: usize,
        from: u64,
        len: usize,
        /// The target was filled with ones when the work was put on its stream.
        poisoned: bool,
    },
    Copy {
        to: u64,
        from: u64,
        len: usize,
    },
    Fill {
        to: u64,
        value: u8,
        len: usize,
    },
    Record(u64),
    Wait(u64),
}

#[derive(Debug, Clone)]
pub(crate) enum HostBytes {
    Pinned(usize, usize),
    Copied(Vec<u8>),
}

/// What can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    Alloc,
    Launch,
    GraphLaunch,
    Synchronize,
    HostAlloc,
}

#[derive(Debug, Default)]
pub(crate) struct Driver {
    pub(crate) memory: Memory,
    pub(crate) memory_bytes: Option<u64>,
    next: u64,
    pub(crate) modules: HashMap<u64, Vec<Arc<Kernel>>>,
    pub(crate) functions: HashMap<u64, (u64, Arc<Kernel>)>,
    pub(crate) streams: HashMap<u64, VecDeque<Work>>,
    pub(crate) captures: HashMap<u64, Capture>,
    pub(crate) graphs: HashMap<u64, Arc<Vec<Work>>>,
    pub(crate) executables: HashMap<u64, Arc<Vec<Work>>>,
    pub(crate) events: HashSet<u64>,
    pub(crate) recorded: HashSet<u64>,
    /// Pinned host memory: address and length.
    pub(crate) pinned: BTreeMap<usize, usize>,
    pub(crate) contexts: i64,
    pub(crate) sticky: Code,
    pub(crate) last_fault: String,
    /// Misuses of the API so far.
    pub(crate) misuses: u64,
    /// Handles of what was destroyed, and pinned memory that was given back and not given out again.
    pub(crate) destroyed: HashSet<u64>,
    pub(crate) unpinned: HashSet<usize>,
    pub(crate) lazy: bool,
    pub(crate) order: Order,
    failures: HashMap<Call, (u64, Code)>,
    pub(crate) allocations: u64,
    pub(crate) launches: u64,
    pub(crate) graph_launches: u64,
    pub(crate) synchronizes: u64,
    pub(crate) instructions: u64,
}

static DRIVER: Mutex<Option<Driver>> = Mutex::new(None);

/// The driver, locked.
pub(crate) struct Locked(MutexGuard<'static, Option<Driver>>);

pub(crate) fn driver() -> Locked {
    let mut guard = DRIVER.lock().unwrap_or_else(PoisonError::into_inner);
    guard.get_or_insert_with(Driver::default);
    Locked(guard)
}

impl std::ops::Deref for Locked {
    type Target = Driver;
    fn deref(&self) -> &Driver {
        self.0.as_ref().expect("made when it was locked")
    }
}

impl std::ops::DerefMut for Locked {
    fn deref_mut(&mut self) -> &mut Driver {
        self.0.as_mut().expect("made when it was locked")
    }
}

impl Driver {
    pub(crate) fn handle(&mut self) -> u64 {
        self.next += 1;
        0x1000 + self.next * 16
    }

    pub(crate) fn total_bytes(&self) -> u64 {
        self.memory_bytes.unwrap_or(MEMORY_BYTES)
    }

    pub(crate) fn fail_after(&mut self, call: Call, successes: u64, code: Code) {
        self.failures.insert(call, (successes, code));
    }

    /// The code to fail with, when this call was chosen to.
    pub(crate) fn injected(&mut self, call: Call) -> Option<Code> {
        let (left, code) = self.failures.get_mut(&call)?;
        if *left > 0 {
            *left -= 1;
            return None;
        }
        let code = *code;
        self.failures.remove(&call);
        Some(code)
    }

    pub(crate) fn is_pinned(&self, address: usize, len: usize) -> bool {
        let before = self.pinned.range(..=address).next_back();
        before.is_some_and(|(base, size)| address + len <= base + size)
    }

    /// Puts work on a stream; a stream nobody made is an error.
    pub(crate) fn submit(&mut self, stream: u64, work: Work) -> Code {
        if self.sticky != OK {
            return self.sticky;
        }
        if let Some(capture) = self.captures.get_mut(&stream) {
            capture.work.push(work);
            return OK;
        }
        if stream != 0 && !self.streams.contains_key(&stream) {
            return self.bad_handle("stream", stream);
        }
        if self.lazy {
            let work = self.watched(work);
            self.streams.entry(stream).or_default().push_back(work);
            return OK;
        }
        self.run(work)
    }

    /// Work that waits: what it reads is remembered, what it will write is full of ones, which read as NaN.
    fn watched(&self, mut work: Work) -> Work {
        match &mut work {
            Work::Upload { from: HostBytes::Pinned(at, len), before, .. } if self.is_pinned(*at, *len) => {
                // SAFETY: the range lies in pinned memory that this library allocated and has not freed.
                *before = Some(unsafe { std::slice::from_raw_parts(*at as *const u8, *len) }.to_vec());
            }
            Work::Download { to, len, poisoned, .. } if self.is_pinned(*to, *len) => {
                // SAFETY: as above; the program may not touch it until it has waited.
                unsafe { std::slice::from_raw_parts_mut(*to as *mut u8, *len) }.fill(0xff);
                *poisoned = true;
            }
            _ => (),
        }
        work
    }

    /// Notes a misuse under its name and gives the code a real driver would.
    pub(crate) fn misuse(&mut self, kind: Misuse, detail: &str, code: Code) -> Code {
        self.misuses += 1;
        self.last_fault = format!("{kind}: {detail}");
        eprintln!("fakecuda: {}", self.last_fault);
        code
    }

    /// A handle that is none.
    pub(crate) fn bad_handle(&mut self, what: &str, handle: u64) -> Code {
        let kind = if self.destroyed.contains(&handle) { Misuse::UseAfterDestroy } else { Misuse::UnknownHandle };
        self.misuse(kind, &format!("{what} {handle:#x}"), INVALID_HANDLE)
    }

    /// True when `len` bytes at a device address are there; otherwise the misuse is noted.
    pub(crate) fn reaches(&mut self, address: u64, len: usize) -> bool {
        if self.memory.holds(address, len) {
            return true;
        }
        let kind = if self.memory.was_freed(address) { Misuse::UseAfterFree } else { Misuse::CopyOutOfBounds };
        self.misuse(kind, &format!("{len} bytes at {address:#x}"), INVALID_VALUE);
        false
    }

    /// What is alive, in words; empty when nothing is.
    pub(crate) fn alive(&self) -> String {
        let streams = self.streams.keys().filter(|s| **s != 0).count();
        let counts = [
            (self.memory.live_buffers(), "device buffers"),
            (self.pinned.len(), "pinned buffers"),
            (streams, "streams"),
            (self.events.len(), "events"),
            (self.graphs.len(), "graphs"),
            (self.executables.len(), "executable graphs"),
            (self.modules.len(), "modules"),
        ];
        let alive: Vec<String> = counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
        alive.join(", ")
    }

    /// Runs everything on a stream.
    pub(crate) fn drain(&mut self, stream: u64) -> Code {
        while let Some(work) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) {
            self.run(work);
        }
        self.sticky
    }

    pub(crate) fn drain_all(&mut self) -> Code {
        let mut streams: Vec<u64> = self.streams.keys().copied().collect();
        streams.sort_unstable();
        for stream in streams {
            self.drain(stream);
        }
        self.sticky
    }

    fn stick(&mut self, what: String) -> Code {
        eprintln!("fakecuda: {what}");
        self.last_fault = what;
        self.sticky = ILLEGAL_ADDRESS;
        ILLEGAL_ADDRESS
    }

    fn run(&mut self, work: Work) -> Code {
        if self.sticky != OK {
            return self.sticky;
        }
        let held = match work {
            Work::Kernel { kernel, grid, block, dynamic_shared, params } => {
                self.launches += 1;
                let order = self.order;
                let shape = Launch {
                    grid,
                    block,
                    dynamic_shared,
                    params: &params,
                    order,
                    instruction_limit: INSTRUCTION_LIMIT,
                };
                match launch(&kernel, shape, &mut self.memory) {
                    Ok(stats) => self.instructions += stats.instructions,
                    Err(fault) => return self.stick(fault.to_string()),
                }
                true
            }
            Work::Upload { to, from: HostBytes::Copied(bytes), .. } => self.memory.write(to, &bytes),
            Work::Upload { to, from: HostBytes::Pinned(at, len), before } => {
                // The buffer may have been freed since; then nothing may be read.
                if !self.is_pinned(at, len) {
                    return self.stuck(Misuse::UseAfterFree, "pinned memory of a copy to the device");
                }
                // SAFETY: the range lies in pinned memory that this library allocated and has not freed.
                let bytes = unsafe { std::slice::from_raw_parts(at as *const u8, len) };
                if before.is_some_and(|before| before != bytes) {
                    return self.stuck(Misuse::MissingSynchronization, "the source of a copy changed before it ran");
                }
                self.memory.write(to, bytes)
            }
            Work::Download { to, from, len, poisoned } => {
                if self.memory.holds(from, len) && !self.memory.is_written(from, len) {
                    return self.stuck(Misuse::UnwrittenRead, "a copy to the host");
                }
                if poisoned && !self.is_pinned(to, len) {
                    return self.stuck(Misuse::UseAfterFree, "pinned memory of a copy to the host");
                }
                // SAFETY: pinned memory as above, or the caller waits inside the call that gave the pointer.
                let bytes = unsafe { std::slice::from_raw_parts_mut(to as *mut u8, len) };
                if poisoned && bytes.iter().any(|b| *b != 0xff) {
                    return self.stuck(Misuse::MissingSynchronization, "the target of a copy changed before it ran");
                }
                self.memory.read(from, bytes)
            }
            Work::Copy { to, from, len } => self.memory.copy(to, from, len),
            Work::Fill { to, value, len } => self.memory.write(to, &vec![value; len]),
            Work::Record(event) => {
                self.recorded.insert(event);
                true
            }
            Work::Wait(event) => {
                self.wait(event);
                true
            }
        };
        if held { OK } else { self.stuck(Misuse::UseAfterFree, "memory of a copy on a stream") }
    }

    /// A misuse that shows when work runs: as after a fault, nothing works any more.
    fn stuck(&mut self, kind: Misuse, detail: &str) -> Code {
        self.sticky = ILLEGAL_ADDRESS;
        self.misuse(kind, detail, ILLEGAL_ADDRESS)
    }

    /// Runs the stream that holds an event until the event is reached.
    pub(crate) fn wait(&mut self, event: u64) {
        while !self.recorded.contains(&event) {
            let holds = |q: &VecDeque<Work>| q.iter().any(|w| matches!(w, Work::Record(e) if *e == event));
            let Some(stream) = self.streams.iter().find(|(_, q)| holds(q)).map(|(s, _)| *s) else { return };
            let Some(work) = self.streams.get_mut(&stream).and_then(VecDeque::pop_front) else { return };
            if self.run(work) != OK {
                return;
            }
        }
    }
}
