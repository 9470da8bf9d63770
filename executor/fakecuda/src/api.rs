//! The entry points, by the names the driver gives them.

#![allow(non_snake_case, missing_docs, unused_unsafe, reason = "names and meanings are those of NVIDIA's driver API")]

use crate::driver::{
    CAPTURE_UNSUPPORTED, Call, Capture, Code, Driver, HostBytes, INVALID_HANDLE, INVALID_VALUE, OK, OUT_OF_MEMORY,
    Work, driver,
};
use crate::misuse::Misuse;
use crate::ptx::{Order, parse};
use std::alloc::{Layout, alloc, dealloc};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

type Pointer = *mut c_void;
type Device = u64;

/// Counters of the driver, for tests.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub device_buffers: u64,
    pub device_bytes: u64,
    pub pinned_buffers: u64,
    pub streams: u64,
    pub events: u64,
    pub graphs: u64,
    pub executables: u64,
    pub modules: u64,
    pub contexts: i64,
    /// Calls so far.
    pub allocations: u64,
    pub launches: u64,
    pub graph_launches: u64,
    pub synchronizes: u64,
    pub instructions: u64,
    /// Misuses of the API so far.
    pub misuses: u64,
}

const CONTEXT: u64 = 0x10;
const INVALID_CONTEXT: Code = 201;

fn environment(name: &str, default: c_int) -> c_int {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

fn host_layout(len: usize) -> Option<Layout> {
    Layout::from_size_align(len.max(1), 4096).ok()
}

macro_rules! api {
    ($($name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)*) => {
        $(#[unsafe(no_mangle)] pub unsafe extern "C" fn $name($($arg: $ty),*) -> Code {
            // SAFETY: pointers are the caller's, as the driver API says.
            unsafe { $body }
        })*
    };
}

thread_local! {
    /// The calling thread has a context.
    static CURRENT: Cell<bool> = const { Cell::new(false) };
}

/// The driver, on a thread with a context.
macro_rules! current {
    () => {{
        let mut d = driver();
        if !CURRENT.get() {
            return d.misuse(Misuse::NoContext, "a call on a thread without a context", INVALID_CONTEXT);
        }
        d
    }};
}

/// After a kernel's fault every call fails with it.
macro_rules! live {
    () => {{
        let d = current!();
        if d.sticky != OK {
            return d.sticky;
        }
        d
    }};
}

api! {
cuInit(_flags: c_uint) { environment("FAKECUDA_INIT", OK) }
cuDriverGetVersion(version: *mut c_int) { *version = environment("FAKECUDA_VERSION", 12_020); OK }
cuDeviceGetCount(count: *mut c_int) { *count = environment("FAKECUDA_DEVICES", 1); OK }
cuDeviceGet(device: *mut c_int, ordinal: c_int) {
    if ordinal < 0 || ordinal >= environment("FAKECUDA_DEVICES", 1) { return 101; }
    *device = ordinal;
    OK
}
cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
    let text = b"fakecuda PTX interpreter\0";
    std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len().min(len as usize));
    OK
}
cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) {
    // Threads per block, warp size, shared memory per block, multiprocessors, compute capability, memory pools.
    let capability = environment("FAKECUDA_CAPABILITY", 75);
    *value = match attribute {
        1 => 1024,
        8 => 49_152,
        10 => 32,
        16 => 8,
        75 => capability / 10,
        76 => capability % 10,
        115 => 0,
        _ => return INVALID_VALUE,
    };
    OK
}
cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) { *bytes = driver().total_bytes() as usize; OK }
cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
    let d = live!();
    *total = d.total_bytes() as usize;
    *free = (*total).saturating_sub(d.memory.live_bytes());
    OK
}
cuDevicePrimaryCtxRetain(context: *mut Pointer, _device: c_int) { driver().contexts += 1; *context = CONTEXT as Pointer; OK }
cuDevicePrimaryCtxRelease_v2(_device: c_int) {
    let mut d = driver();
    d.contexts -= 1;
    let alive = d.alive();
    if d.contexts == 0 && !alive.is_empty() { d.misuse(Misuse::Leak, &alive, OK); }
    OK
}
cuCtxSetCurrent(context: Pointer) {
    if !context.is_null() && context as u64 != CONTEXT { return driver().bad_handle("context", context as u64); }
    CURRENT.set(!context.is_null());
    OK
}
cuCtxGetCurrent(context: *mut Pointer) {
    *context = if CURRENT.get() { CONTEXT as Pointer } else { std::ptr::null_mut() };
    OK
}
cuCtxSynchronize() { live!().drain_all() }

cuStreamCreate(stream: *mut Pointer, _flags: c_uint) {
    let mut d = live!();
    let handle = d.handle();
    d.streams.insert(handle, Default::default());
    *stream = handle as Pointer;
    OK
}
cuStreamDestroy_v2(stream: Pointer) {
    let mut d = current!();
    d.drain(stream as u64);
    d.captures.remove(&(stream as u64));
    if d.streams.remove(&(stream as u64)).is_none() { return d.bad_handle("stream", stream as u64); }
    d.destroyed.insert(stream as u64);
    OK
}
cuStreamSynchronize(stream: Pointer) {
    let mut d = live!();
    d.synchronizes += 1;
    if let Some(code) = d.injected(Call::Synchronize) { return code; }
    if stream as u64 != 0 && !d.streams.contains_key(&(stream as u64)) { return d.bad_handle("stream", stream as u64); }
    if d.captures.contains_key(&(stream as u64)) {
        return d.misuse(Misuse::CaptureMisuse, "waiting for a stream that captures", CAPTURE_UNSUPPORTED);
    }
    d.drain(stream as u64)
}
cuStreamWaitEvent(stream: Pointer, event: Pointer, _flags: c_uint) {
    let mut d = live!();
    if !d.events.contains(&(event as u64)) { return d.bad_handle("event", event as u64); }
    d.submit(stream as u64, Work::Wait(event as u64))
}
cuStreamIsCapturing(stream: Pointer, status: *mut c_int) {
    *status = c_int::from(live!().captures.contains_key(&(stream as u64)));
    OK
}
cuStreamBeginCapture_v2(stream: Pointer, mode: c_int) {
    let mut d = live!();
    if !d.streams.contains_key(&(stream as u64)) { return d.bad_handle("stream", stream as u64); }
    if d.captures.insert(stream as u64, Capture::begin(mode)).is_some() {
        return d.misuse(Misuse::CaptureMisuse, "a stream that captures already", CAPTURE_UNSUPPORTED);
    }
    OK
}
cuStreamEndCapture(stream: Pointer, graph: *mut Pointer) {
    let mut d = live!();
    let Some(Capture { work, .. }) = d.captures.remove(&(stream as u64)) else {
        return d.misuse(Misuse::CaptureMisuse, "the end of a capture that never began", INVALID_HANDLE);
    };
    let handle = d.handle();
    d.graphs.insert(handle, Arc::new(work));
    *graph = handle as Pointer;
    OK
}
cuGraphInstantiateWithFlags(executable: *mut Pointer, graph: Pointer, _flags: u64) {
    let mut d = live!();
    let Some(work) = d.graphs.get(&(graph as u64)).cloned() else { return d.bad_handle("graph", graph as u64) };
    let handle = d.handle();
    d.executables.insert(handle, work);
    *executable = handle as Pointer;
    OK
}
cuGraphUpload(executable: Pointer, _stream: Pointer) {
    let mut d = live!();
    if d.executables.contains_key(&(executable as u64)) { OK } else { d.bad_handle("executable graph", executable as u64) }
}
cuGraphLaunch(executable: Pointer, stream: Pointer) {
    let mut d = live!();
    d.graph_launches += 1;
    if let Some(code) = d.injected(Call::GraphLaunch) { return code; }
    let Some(work) = d.executables.get(&(executable as u64)).cloned() else {
        return d.bad_handle("executable graph", executable as u64);
    };
    for work in work.iter() {
        let code = d.submit(stream as u64, work.clone());
        if code != OK { return code; }
    }
    OK
}
cuGraphDestroy(graph: Pointer) {
    let mut d = current!();
    if d.graphs.remove(&(graph as u64)).is_none() { return d.bad_handle("graph", graph as u64); }
    d.destroyed.insert(graph as u64);
    OK
}
cuGraphExecDestroy(executable: Pointer) {
    let mut d = current!();
    if d.executables.remove(&(executable as u64)).is_none() {
        return d.bad_handle("executable graph", executable as u64);
    }
    d.destroyed.insert(executable as u64);
    OK
}

cuEventCreate(event: *mut Pointer, _flags: c_uint) {
    let mut d = live!();
    let handle = d.handle();
    d.events.insert(handle);
    *event = handle as Pointer;
    OK
}
cuEventDestroy_v2(event: Pointer) {
    let mut d = current!();
    if !d.events.remove(&(event as u64)) { return d.bad_handle("event", event as u64); }
    d.destroyed.insert(event as u64);
    OK
}
cuEventRecord(event: Pointer, stream: Pointer) {
    let mut d = live!();
    if !d.events.contains(&(event as u64)) { return d.bad_handle("event", event as u64); }
    d.recorded.remove(&(event as u64));
    d.submit(stream as u64, Work::Record(event as u64))
}
cuEventSynchronize(event: Pointer) {
    let mut d = live!();
    if !d.events.contains(&(event as u64)) { return d.bad_handle("event", event as u64); }
    d.wait(event as u64);
    d.sticky
}

cuMemAlloc_v2(pointer: *mut Device, len: usize) {
    let mut d = live!();
    d.allocations += 1;
    if let Some(code) = d.injected(Call::Alloc) { return code; }
    if len == 0 { return INVALID_VALUE; }
    if d.captures.values().any(Capture::forbids_unsafe_calls) {
        return d.misuse(Misuse::CaptureMisuse, "an allocation while a stream captures", CAPTURE_UNSUPPORTED);
    }
    if d.memory.live_bytes() as u64 + len as u64 > d.total_bytes() { return OUT_OF_MEMORY; }
    *pointer = d.memory.alloc(len);
    OK
}
cuMemFree_v2(pointer: Device) {
    let mut d = current!();
    // A free waits for the device, as the real one does.
    d.drain_all();
    if d.memory.free(pointer) { return OK; }
    let kind = if d.memory.was_freed(pointer) { Misuse::DoubleFree } else { Misuse::InvalidFree };
    d.misuse(kind, &format!("device memory at {pointer:#x}"), INVALID_VALUE)
}
cuMemHostAlloc(pointer: *mut Pointer, len: usize, _flags: c_uint) {
    let mut d = live!();
    d.allocations += 1;
    if let Some(code) = d.injected(Call::HostAlloc) { return code; }
    let Some(layout) = host_layout(len) else { return OUT_OF_MEMORY };
    let at = alloc(layout);
    if at.is_null() { return OUT_OF_MEMORY; }
    std::ptr::write_bytes(at, 0xff, layout.size());
    d.pinned.insert(at as usize, layout.size());
    d.unpinned.remove(&(at as usize));
    *pointer = at.cast();
    OK
}
cuMemFreeHost(pointer: Pointer) {
    let mut d = current!();
    d.drain_all();
    let Some(len) = d.pinned.remove(&(pointer as usize)) else {
        let kind = if d.unpinned.contains(&(pointer as usize)) { Misuse::DoubleFree } else { Misuse::InvalidFree };
        return d.misuse(kind, &format!("pinned memory at {pointer:p}"), INVALID_VALUE);
    };
    d.unpinned.insert(pointer as usize);
    if let Some(layout) = host_layout(len) { dealloc(pointer.cast(), layout); }
    OK
}
cuMemcpyHtoDAsync_v2(to: Device, from: *const c_void, len: usize, stream: Pointer) {
    let mut d = live!();
    if !d.reaches(to, len) { return INVALID_VALUE; }
    let from = if d.is_pinned(from as usize, len) {
        HostBytes::Pinned(from as usize, len)
    } else {
        HostBytes::Copied(std::slice::from_raw_parts(from.cast(), len).to_vec())
    };
    d.submit(stream as u64, Work::Upload { to, from, before: None })
}
cuMemcpyHtoD_v2(to: Device, from: *const c_void, len: usize) {
    let mut d = live!();
    d.drain_all();
    if !d.reaches(to, len) { return INVALID_VALUE; }
    d.memory.write(to, std::slice::from_raw_parts(from.cast(), len));
    d.sticky
}
cuMemcpyDtoHAsync_v2(to: Pointer, from: Device, len: usize, stream: Pointer) {
    let mut d = live!();
    if !d.reaches(from, len) { return INVALID_VALUE; }
    let pinned = d.is_pinned(to as usize, len);
    if !pinned && d.captures.contains_key(&(stream as u64)) {
        return d.misuse(Misuse::CaptureMisuse, "a copy to memory that is not pinned", CAPTURE_UNSUPPORTED);
    }
    let code = d.submit(stream as u64, Work::Download { to: to as usize, from, len, poisoned: false });
    if code != OK || pinned { code } else { d.drain(stream as u64) }
}
cuMemcpyDtoH_v2(to: Pointer, from: Device, len: usize) {
    let mut d = live!();
    d.drain_all();
    if !d.reaches(from, len) { return INVALID_VALUE; }
    if !d.memory.is_written(from, len) { d.misuse(Misuse::UnwrittenRead, "a copy to the host", OK); }
    d.memory.read(from, std::slice::from_raw_parts_mut(to.cast(), len));
    d.sticky
}
cuMemcpyDtoDAsync_v2(to: Device, from: Device, len: usize, stream: Pointer) {
    let mut d = live!();
    if !d.reaches(to, len) || !d.reaches(from, len) { return INVALID_VALUE; }
    d.submit(stream as u64, Work::Copy { to, from, len })
}
cuMemsetD8Async(to: Device, value: u8, len: usize, stream: Pointer) {
    let mut d = live!();
    if !d.reaches(to, len) { return INVALID_VALUE; }
    d.submit(stream as u64, Work::Fill { to, value, len })
}

cuModuleLoadData(module: *mut Pointer, image: *const c_void) {
    let source = CStr::from_ptr(image.cast()).to_string_lossy();
    let mut d = live!();
    match parse(&source) {
        Ok(kernels) => {
            let handle = d.handle();
            d.modules.insert(handle, kernels.into_iter().map(Arc::new).collect());
            *module = handle as Pointer;
            OK
        }
        Err(error) => {
            eprintln!("fakecuda: {error}");
            d.last_fault = error;
            218
        }
    }
}
cuModuleUnload(module: Pointer) {
    let mut d = current!();
    let gone: Vec<u64> = d.functions.iter().filter(|(_, (m, _))| *m == module as u64).map(|(f, _)| *f).collect();
    for function in gone {
        d.functions.remove(&function);
        d.destroyed.insert(function);
    }
    if d.modules.remove(&(module as u64)).is_none() { return d.bad_handle("module", module as u64); }
    d.destroyed.insert(module as u64);
    OK
}
cuModuleGetFunction(function: *mut Pointer, module: Pointer, name: *const c_char) {
    let mut d = live!();
    let name = CStr::from_ptr(name).to_string_lossy();
    let Some(kernels) = d.modules.get(&(module as u64)).cloned() else { return d.bad_handle("module", module as u64) };
    let Some(kernel) = kernels.iter().find(|k| k.name == name).cloned() else { return 500 };
    let handle = d.handle();
    d.functions.insert(handle, (module as u64, kernel));
    *function = handle as Pointer;
    OK
}
cuLaunchKernel(
    function: Pointer, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
    stream: Pointer, arguments: *mut Pointer, extra: *mut Pointer,
) {
    let mut d = live!();
    if let Some(code) = d.injected(Call::Launch) { return code; }
    let Some((_, kernel)) = d.functions.get(&(function as u64)).cloned() else {
        return d.bad_handle("function", function as u64);
    };
    if !extra.is_null() || (arguments.is_null() && !kernel.params.is_empty()) {
        return d.misuse(Misuse::BadLaunch, &format!("{} without its arguments", kernel.name), INVALID_VALUE);
    }
    let mut params = vec![0u8; kernel.param_bytes];
    for (i, (offset, len)) in kernel.params.iter().enumerate() {
        std::ptr::copy_nonoverlapping((*arguments.add(i)).cast::<u8>(), params[*offset..].as_mut_ptr(), *len);
    }
    let work = Work::Kernel { kernel, grid: [gx, gy, gz], block: [bx, by, bz], dynamic_shared: shared as usize, params };
    d.submit(stream as u64, work)
}
cuGetErrorName(code: Code, name: *mut *const c_char) {
    *name = match code {
        0 => c"CUDA_SUCCESS",
        1 => c"CUDA_ERROR_INVALID_VALUE",
        2 => c"CUDA_ERROR_OUT_OF_MEMORY",
        100 => c"CUDA_ERROR_NO_DEVICE",
        201 => c"CUDA_ERROR_INVALID_CONTEXT",
        218 => c"CUDA_ERROR_INVALID_PTX",
        400 => c"CUDA_ERROR_INVALID_HANDLE",
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        719 => c"CUDA_ERROR_LAUNCH_FAILED",
        900 => c"CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        999 => c"CUDA_ERROR_UNKNOWN",
        _ => c"CUDA_ERROR_OTHER",
    }.as_ptr();
    OK
}
cuGetErrorString(code: Code, text: *mut *const c_char) { cuGetErrorName(code, text) }

fakecuda_counters(out: *mut Counters) { *out = counters(&driver()); OK }
// What happens with the next calls: 0 lazy mode, 1 order of blocks and warps (bits 0 and 1), 2 bytes of device memory,
// 3 forget a sticky fault, 4 forget everything.
fakecuda_set(key: c_int, value: u64) {
    let mut d = driver();
    match key {
        0 => d.lazy = value != 0,
        1 => d.order = Order { blocks_reversed: value & 1 == 1, warps_reversed: value & 2 == 2 },
        2 => d.memory_bytes = Some(value),
        3 => d.sticky = OK,
        4 => *d = Driver::default(),
        _ => return INVALID_VALUE,
    }
    OK
}
// Makes a call fail once after some successes: 0 allocation, 1 kernel launch, 2 graph launch, 3 synchronisation,
// 4 allocation of pinned memory.
fakecuda_fail(call: c_int, successes: u64, code: c_int) {
    let call = match call {
        0 => Call::Alloc,
        1 => Call::Launch,
        2 => Call::GraphLaunch,
        3 => Call::Synchronize,
        4 => Call::HostAlloc,
        _ => return INVALID_VALUE,
    };
    driver().fail_after(call, successes, code);
    OK
}
// Text of the last fault, cut to `len` bytes with a zero at the end.
fakecuda_last_fault(text: *mut c_char, len: usize) {
    let d = driver();
    let bytes = d.last_fault.as_bytes();
    let n = bytes.len().min(len.saturating_sub(1));
    std::ptr::copy_nonoverlapping(bytes.as_ptr().cast(), text, n);
    if len > 0 { *text.add(n) = 0; }
    OK
}
}

fn counters(d: &Driver) -> Counters {
    Counters {
        device_buffers: d.memory.live_buffers() as u64,
        device_bytes: d.memory.live_bytes() as u64,
        pinned_buffers: d.pinned.len() as u64,
        streams: d.streams.keys().filter(|s| **s != 0).count() as u64,
        events: d.events.len() as u64,
        graphs: d.graphs.len() as u64,
        executables: d.executables.len() as u64,
        modules: d.modules.len() as u64,
        contexts: d.contexts,
        allocations: d.allocations,
        launches: d.launches,
        graph_launches: d.graph_launches,
        synchronizes: d.synchronizes,
        instructions: d.instructions,
        misuses: d.misuses,
    }
}
