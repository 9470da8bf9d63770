//! Bugs in the use of the driver's API, planted on purpose: each kind is caught, under its name.

#![allow(clippy::unwrap_used, reason = "tests")]

use fakecuda::Counters;
use fakecuda::api::*;
use fakecuda::misuse::Misuse;
use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

const PTX: &str = include_str!("planted.ptx");
const OK: c_int = 0;

/// The driver is one for the process: one test at a time, each with a fresh one.
struct Fresh(#[allow(dead_code, reason = "held")] MutexGuard<'static, ()>);

fn fresh() -> Fresh {
    static ONE: Mutex<()> = Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: no handle of an earlier test is used again; the pointer is to a local.
    unsafe {
        fakecuda_set(4, 0);
        let mut context = null_mut();
        assert_eq!((cuDevicePrimaryCtxRetain(&mut context, 0), cuCtxSetCurrent(context)), (OK, OK));
    }
    Fresh(guard)
}

impl Fresh {
    fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        // SAFETY: the pointer is to a local.
        unsafe { fakecuda_counters(&mut counters) };
        counters
    }

    fn fault(&self) -> String {
        let mut text = vec![0u8; 512];
        // SAFETY: as long as the buffer says.
        unsafe { fakecuda_last_fault(text.as_mut_ptr().cast(), text.len()) };
        CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy().into_owned()
    }

    /// Exactly one misuse so far, of this kind.
    fn caught(&self, kind: Misuse) {
        assert_eq!(self.counters().misuses, 1, "{}", self.fault());
        assert!(self.fault().starts_with(&format!("{kind}: ")), "{kind:?}: {}", self.fault());
    }

    fn lazy(&self) {
        // SAFETY: takes numbers.
        assert_eq!(unsafe { fakecuda_set(0, 1) }, OK);
    }

    fn device(&self, len: usize) -> u64 {
        let mut pointer = 0;
        // SAFETY: the pointer is to a local; so below.
        assert_eq!(unsafe { cuMemAlloc_v2(&mut pointer, len) }, OK);
        pointer
    }

    fn pinned(&self, values: &[f32]) -> *mut f32 {
        let mut pointer = null_mut();
        // SAFETY: as many floats as were asked for are written.
        unsafe {
            assert_eq!(cuMemHostAlloc(&mut pointer, 4 * values.len(), 0), OK);
            std::ptr::copy_nonoverlapping(values.as_ptr(), pointer.cast(), values.len());
        }
        pointer.cast()
    }

    fn stream(&self) -> *mut c_void {
        let mut stream = null_mut();
        // SAFETY: as above.
        assert_eq!(unsafe { cuStreamCreate(&mut stream, 1) }, OK);
        stream
    }

    /// The kernel `copy` of 64 floats.
    fn copy_kernel(&self) -> (*mut c_void, *mut c_void) {
        let text = CString::new(PTX).unwrap();
        let (mut module, mut function) = (null_mut(), null_mut());
        // SAFETY: both texts end with a zero.
        unsafe {
            assert_eq!(cuModuleLoadData(&mut module, text.as_ptr().cast()), OK);
            assert_eq!(cuModuleGetFunction(&mut function, module, c"copy".as_ptr()), OK);
        }
        (module, function)
    }

    fn launch(&self, function: *mut c_void, x: u64, y: u64, stream: *mut c_void) -> c_int {
        let (mut x, mut y, mut n) = (x, y, 64i32);
        let mut arguments: [*mut c_void; 3] = [(&raw mut x).cast(), (&raw mut y).cast(), (&raw mut n).cast()];
        // SAFETY: the arguments are those of `copy`.
        unsafe { cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, arguments.as_mut_ptr(), null_mut()) }
    }
}

/// Up, kernel, down: by calls and as a graph. Everything is given back.
fn clean(d: &Fresh, lazy: bool, graph: bool) {
    let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
    if lazy {
        d.lazy();
    }
    let (x, y, stream) = (d.device(256), d.device(256), d.stream());
    let (from, to) = (d.pinned(&values), d.pinned(&[0.0; 64]));
    let (module, function) = d.copy_kernel();
    let (mut template, mut executable) = (null_mut(), null_mut());
    // SAFETY: handles made above, used before they are destroyed; pinned memory is read after waiting.
    unsafe {
        if graph {
            assert_eq!(cuStreamBeginCapture_v2(stream, 1), OK);
        }
        assert_eq!(cuMemcpyHtoDAsync_v2(x, from.cast(), 256, stream), OK);
        assert_eq!(d.launch(function, x, y, stream), OK);
        assert_eq!(cuMemcpyDtoHAsync_v2(to.cast(), y, 256, stream), OK);
        if graph {
            assert_eq!(cuStreamEndCapture(stream, &mut template), OK);
            assert_eq!(cuGraphInstantiateWithFlags(&mut executable, template, 0), OK);
            assert_eq!((cuGraphDestroy(template), cuGraphLaunch(executable, stream)), (OK, OK));
        }
        assert_eq!(cuStreamSynchronize(stream), OK);
        assert_eq!(std::slice::from_raw_parts(to, 64), values);
        if graph {
            assert_eq!(cuGraphExecDestroy(executable), OK);
        }
        assert_eq!((cuMemFreeHost(from.cast()), cuMemFreeHost(to.cast())), (OK, OK));
        assert_eq!((cuMemFree_v2(x), cuMemFree_v2(y)), (OK, OK));
        assert_eq!((cuModuleUnload(module), cuStreamDestroy_v2(stream)), (OK, OK));
        assert_eq!(cuDevicePrimaryCtxRelease_v2(0), OK);
    }
}

#[test]
fn a_clean_program_is_not_accused() {
    for (lazy, graph) in [(false, false), (true, false), (false, true), (true, true)] {
        let d = fresh();
        clean(&d, lazy, graph);
        assert_eq!((d.counters().misuses, d.fault()), (0, String::new()));
    }
}

#[test]
fn use_after_free() {
    let d = fresh();
    let (x, mut host) = (d.device(64), [0u8; 64]);
    // SAFETY: `host` has the 64 bytes that are copied; the driver refuses the freed address.
    unsafe {
        assert_eq!(cuMemcpyHtoD_v2(x, host.as_ptr().cast(), 64), OK);
        assert_eq!(cuMemFree_v2(x), OK);
        assert_eq!(cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), x, 64), 1);
    }
    d.caught(Misuse::UseAfterFree);
}

#[test]
fn a_kernel_uses_memory_after_its_free() {
    let d = fresh();
    let (x, y, stream) = (d.device(256), d.device(256), d.stream());
    let (_, function) = d.copy_kernel();
    // SAFETY: takes a number.
    unsafe { assert_eq!(cuMemFree_v2(x), OK) };
    assert_eq!(d.launch(function, x, y, stream), 700);
    assert!(d.fault().starts_with("UseAfterFree in copy"), "{}", d.fault());
}

#[test]
fn a_copy_of_freed_pinned_memory() {
    let d = fresh();
    let (x, stream, from) = (d.device(256), d.stream(), d.pinned(&[1.0; 64]));
    // SAFETY: pinned memory of 64 floats; after its free only the driver is given its address, which it checks.
    unsafe {
        assert_eq!(cuStreamBeginCapture_v2(stream, 1), OK);
        assert_eq!(cuMemcpyHtoDAsync_v2(x, from.cast(), 256, stream), OK);
        let (mut graph, mut executable) = (null_mut(), null_mut());
        assert_eq!(cuStreamEndCapture(stream, &mut graph), OK);
        assert_eq!(cuGraphInstantiateWithFlags(&mut executable, graph, 0), OK);
        assert_eq!(cuMemFreeHost(from.cast()), OK);
        assert_eq!(cuGraphLaunch(executable, stream), 700);
    }
    d.caught(Misuse::UseAfterFree);
}

#[test]
fn double_free() {
    let d = fresh();
    let x = d.device(64);
    // SAFETY: frees take addresses that the driver looks up; it touches nothing that is not there.
    unsafe { assert_eq!((cuMemFree_v2(x), cuMemFree_v2(x)), (OK, 1)) };
    d.caught(Misuse::DoubleFree);
    let d = {
        drop(d);
        fresh()
    };
    let pinned = d.pinned(&[0.0]);
    // SAFETY: frees take addresses that the driver looks up; it touches nothing that is not there.
    unsafe { assert_eq!((cuMemFreeHost(pinned.cast()), cuMemFreeHost(pinned.cast())), (OK, 1)) };
    d.caught(Misuse::DoubleFree);
}

#[test]
fn a_free_of_the_middle_of_a_buffer() {
    let d = fresh();
    let x = d.device(64);
    // SAFETY: takes a number.
    unsafe { assert_eq!(cuMemFree_v2(x + 4), 1) };
    d.caught(Misuse::InvalidFree);
}

#[test]
fn a_copy_beyond_an_allocation() {
    type Copy = fn(u64, &mut [u8; 68], *mut c_void) -> c_int;
    let copies: [Copy; 4] = [
        // SAFETY: the host side has the 68 bytes; the device side is an address that the driver checks.
        |x, host, stream| unsafe { cuMemcpyHtoDAsync_v2(x, host.as_ptr().cast(), 68, stream) },
        |x, host, _| unsafe { cuMemcpyHtoD_v2(x, host.as_ptr().cast(), 68) },
        // SAFETY: the host side has the 68 bytes; the device side is an address that the driver checks.
        |x, host, stream| unsafe { cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), x, 68, stream) },
        |x, _, stream| unsafe { cuMemsetD8Async(x + 4, 0, 64, stream) },
    ];
    for copy in copies {
        let d = fresh();
        let (x, stream) = (d.device(64), d.stream());
        assert_eq!(copy(x, &mut [0; 68], stream), 1);
        d.caught(Misuse::CopyOutOfBounds);
    }
}

#[test]
fn an_unwritten_result() {
    let d = fresh();
    let (x, mut host) = (d.device(64), [0u8; 64]);
    // SAFETY: `host` has the 64 bytes that are copied.
    unsafe { cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), x, 64) };
    d.caught(Misuse::UnwrittenRead);
}

#[test]
fn handles_of_the_wrong_kind_and_of_what_is_gone() {
    let d = fresh();
    let stream = d.stream();
    // SAFETY: handles are looked up in the driver, never followed.
    unsafe { assert_eq!(cuGraphLaunch(stream, stream), 400) };
    d.caught(Misuse::UnknownHandle);
    drop(d);

    let d = fresh();
    let stream = d.stream();
    // SAFETY: handles are looked up in the driver, never followed.
    unsafe { assert_eq!((cuStreamDestroy_v2(stream), cuStreamSynchronize(stream)), (OK, 400)) };
    d.caught(Misuse::UseAfterDestroy);
    drop(d);

    let d = fresh();
    let (stream, (module, function)) = (d.stream(), d.copy_kernel());
    // SAFETY: handles are looked up in the driver, never followed.
    unsafe { assert_eq!(cuModuleUnload(module), OK) };
    assert_eq!(d.launch(function, 0, 0, stream), 400);
    d.caught(Misuse::UseAfterDestroy);
}

#[test]
fn what_a_capture_forbids() {
    let calls: [fn(*mut c_void) -> c_int; 5] = [
        // SAFETY: pointers are to locals that outlive the call; handles are looked up, never followed.
        |stream| unsafe { cuStreamSynchronize(stream) },
        |_| unsafe { cuMemAlloc_v2(&mut 0, 64) },
        // SAFETY: pointers are to locals that outlive the call; handles are looked up, never followed.
        |stream| unsafe { cuStreamBeginCapture_v2(stream, 1) },
        |stream| unsafe {
            let (mut graph, mut again) = (null_mut(), null_mut());
            assert_eq!(cuStreamEndCapture(stream, &mut graph), OK);
            cuStreamEndCapture(stream, &mut again)
        },
        // SAFETY: pointers are to locals that outlive the call; handles are looked up, never followed.
        |stream| unsafe { cuMemcpyDtoHAsync_v2([0u8; 4].as_mut_ptr().cast(), 0x00de_0000_0000_0000, 4, stream) },
    ];
    for call in calls {
        let d = fresh();
        let (_, stream) = (d.device(64), d.stream());
        // SAFETY: pointers are to locals that outlive the call; handles are looked up, never followed.
        unsafe { assert_eq!(cuStreamBeginCapture_v2(stream, 1), OK) };
        assert_ne!(call(stream), OK);
        d.caught(Misuse::CaptureMisuse);
    }
}

#[test]
fn missing_synchronisation_before_a_source_changes() {
    let d = fresh();
    d.lazy();
    let (x, stream, from) = (d.device(256), d.stream(), d.pinned(&[1.0; 64]));
    // SAFETY: pinned memory of 64 floats, never freed; the copy is made on this thread, inside the last call.
    unsafe {
        assert_eq!(cuMemcpyHtoDAsync_v2(x, from.cast(), 256, stream), OK);
        *from = 2.0;
        assert_eq!(cuStreamSynchronize(stream), 700);
    }
    d.caught(Misuse::MissingSynchronization);
}

#[test]
fn missing_synchronisation_before_a_result_is_read_or_replaced() {
    let d = fresh();
    d.lazy();
    let (x, stream) = (d.device(256), d.stream());
    let (from, to) = (d.pinned(&[1.0; 64]), d.pinned(&[0.0; 64]));
    // SAFETY: pinned memory of 64 floats, never freed; the copies are made on this thread, inside the calls.
    unsafe {
        assert_eq!(cuMemcpyHtoDAsync_v2(x, from.cast(), 256, stream), OK);
        assert_eq!(cuMemcpyDtoHAsync_v2(to.cast(), x, 256, stream), OK);
        // Reading host memory cannot be seen by a driver: it sees to it that nothing there passes for a result.
        assert!(std::slice::from_raw_parts(to, 64).iter().all(|v| v.is_nan()));
        *to = 3.0;
        assert_eq!(cuStreamSynchronize(stream), 700);
    }
    d.caught(Misuse::MissingSynchronization);
}

#[test]
fn missing_order_between_two_streams() {
    let d = fresh();
    d.lazy();
    let (x, y, one, two) = (d.device(256), d.device(256), d.stream(), d.stream());
    let from = d.pinned(&[1.0; 64]);
    let (_, function) = d.copy_kernel();
    // SAFETY: pinned memory of 64 floats, never freed; handles made above.
    unsafe {
        assert_eq!(cuMemcpyHtoDAsync_v2(x, from.cast(), 256, one), OK);
        assert_eq!(d.launch(function, x, y, two), OK);
        assert_eq!(cuStreamSynchronize(two), 700);
    }
    assert!(d.fault().starts_with("UnwrittenRead in copy"), "{}", d.fault());
}

#[test]
fn a_leak_at_unload() {
    let d = fresh();
    let (_, _) = (d.device(64), d.stream());
    // SAFETY: takes a number.
    unsafe { assert_eq!(cuDevicePrimaryCtxRelease_v2(0), OK) };
    d.caught(Misuse::Leak);
    assert_eq!(d.fault(), "Leak: 1 device buffers, 1 streams");
}

#[test]
fn a_thread_without_a_context() {
    let d = fresh();
    // SAFETY: the pointer is to a local of the call.
    let code = std::thread::scope(|s| s.spawn(|| unsafe { cuMemAlloc_v2(&mut 0, 64) }).join().unwrap());
    assert_eq!(code, 201);
    d.caught(Misuse::NoContext);
}

#[test]
fn a_launch_without_arguments() {
    let d = fresh();
    let (stream, (_, function)) = (d.stream(), d.copy_kernel());
    // SAFETY: the driver refuses the null before it reads it.
    let code = unsafe { cuLaunchKernel(function, 1, 1, 1, 64, 1, 1, 0, stream, null_mut(), null_mut()) };
    assert_eq!(code, 1);
    d.caught(Misuse::BadLaunch);
}

#[test]
fn calls_and_kernels_that_are_not_there() {
    let d = fresh();
    let (module, _) = d.copy_kernel();
    let mut function = null_mut();
    // SAFETY: the pointer is to a local, the text ends with a zero.
    unsafe { assert_eq!(cuModuleGetFunction(&mut function, module, c"no_such_kernel".as_ptr()), 500) };
    let bad = CString::new(PTX.replace("ld.global.f32", "ld.volatile.f32")).unwrap();
    // SAFETY: the pointer is to a local, the text ends with a zero.
    unsafe { assert_eq!(cuModuleLoadData(&mut function, bad.as_ptr().cast()), 218) };
    assert!(d.fault().contains("opcode ld.volatile.f32"), "{}", d.fault());
    // A function of the API that the stand-in does not have is a symbol that is missing.
    let installed = fakecuda::install().unwrap();
    assert!(installed.has(c"cuMemAlloc_v2") && !installed.has(c"cuMemAllocAsync") && !installed.has(c"cuCtxCreate_v2"));
}
