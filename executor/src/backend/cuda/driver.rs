//! Owned handles of the CUDA driver: context, kernels, memory, streams, graphs.
//!
//! Nothing here may be called before [`super::probe`] said yes: cudarc panics where the driver is missing. Every handle
//! keeps its [`Device`] alive and gives its resource back when it is dropped.

#![allow(unsafe_code, reason = "the CUDA edge: raw driver calls behind owned handles")]

use super::plan::Arg;
use super::probe::{self, Probe};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The committed kernels.
const MODULES: [(&str, &str); 5] = [
    ("gemm", include_str!("../../../kernels/ptx/gemm.ptx")),
    ("norm", include_str!("../../../kernels/ptx/norm.ptx")),
    ("conv", include_str!("../../../kernels/ptx/conv.ptx")),
    ("recurrent", include_str!("../../../kernels/ptx/recurrent.ptx")),
    ("elementwise", include_str!("../../../kernels/ptx/elementwise.ptx")),
];

/// Memory that is left to the driver and to others: local memory of kernels, graphs, the context itself.
const RESERVE_BYTES: u64 = 128 << 20;

/// A driver call failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CudaError {
    /// The driver says no.
    #[error("CUDA: {what}: {code}")]
    Driver {
        /// What was tried.
        what: &'static str,
        /// Name of the code.
        code: String,
    },
    /// Asking for it would overflow the device.
    #[error("CUDA: not enough device memory: {needed} bytes needed, {free} free of which {reserve} are kept back")]
    Memory {
        /// Bytes asked for.
        needed: u64,
        /// Bytes free.
        free: u64,
        /// Bytes that stay free.
        reserve: u64,
    },
    /// The device failed before, in a way that ends its context.
    #[error("CUDA: the device failed earlier and this process cannot use it any more: {0}")]
    Broken(String),
}

/// A device with the kernels loaded.
pub(crate) struct Device {
    context: Arc<CudaContext>,
    modules: Vec<sys::CUmodule>,
    functions: HashMap<&'static str, sys::CUfunction>,
    /// Bytes in live buffers of this process.
    used: AtomicU64,
    /// Only one instance at a time compares what is free with what it needs, and takes it.
    admission: Mutex<()>,
    broken: Mutex<Option<String>>,
    reserve: u64,
}

// SAFETY: modules and functions are handles that the driver lets any thread use once its context is current, which
// `bind` sees to.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Device {
    /// Opens the first device; `Err` with the reason when there is none.
    pub(crate) fn open() -> Result<Arc<Self>, String> {
        let found = match probe::probe() {
            Probe::Off(reason) => return Err(reason),
            Probe::On(found) => found,
        };
        let failed = |what: &str, e: DriverError| format!("{what} fails: {:?}", e.0);
        let context = CudaContext::new(0).map_err(|e| failed("opening the device", e))?;
        let mut device = Device {
            context,
            modules: Vec::new(),
            functions: HashMap::new(),
            used: AtomicU64::new(0),
            admission: Mutex::default(),
            broken: Mutex::default(),
            // A small device cannot spare that much.
            reserve: RESERVE_BYTES.min(found.memory_bytes as u64 / 8),
        };
        for (name, source) in MODULES {
            device.load(source).map_err(|e| failed(&format!("loading the kernels `{name}`"), e))?;
        }
        Ok(Arc::new(device))
    }

    fn load(&mut self, source: &'static str) -> Result<(), DriverError> {
        let text = CString::new(source).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_INVALID_PTX))?;
        // SAFETY: the text ends with a zero and lives through the call.
        let module = unsafe { result::module::load_data(text.as_ptr().cast())? };
        self.modules.push(module);
        for line in source.lines() {
            if let Some(name) = line.strip_prefix(".visible .entry ").and_then(|rest| rest.split('(').next()) {
                let entry = CString::new(name).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_INVALID_PTX))?;
                // SAFETY: the module was loaded above and is unloaded only when the device is dropped.
                self.functions.insert(name, unsafe { result::module::get_function(module, entry)? });
            }
        }
        Ok(())
    }

    /// Makes the context current on this thread, unless the device is beyond use.
    fn bind(&self) -> Result<(), CudaError> {
        if let Some(why) = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Err(CudaError::Broken(why));
        }
        self.context.bind_to_thread().map_err(|e| self.error("making the device current", e))
    }

    /// An error of the driver; remembers those after which every call fails.
    fn error(&self, what: &'static str, error: DriverError) -> CudaError {
        use sys::CUresult as R;
        let code = format!("{:?}", error.0);
        let ends_context = matches!(
            error.0,
            R::CUDA_ERROR_ILLEGAL_ADDRESS
                | R::CUDA_ERROR_MISALIGNED_ADDRESS
                | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
                | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
                | R::CUDA_ERROR_INVALID_PC
                | R::CUDA_ERROR_HARDWARE_STACK_ERROR
                | R::CUDA_ERROR_LAUNCH_FAILED
                | R::CUDA_ERROR_LAUNCH_TIMEOUT
                | R::CUDA_ERROR_ECC_UNCORRECTABLE
                | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
        );
        if ends_context {
            let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
            broken.get_or_insert_with(|| format!("{what}: {code}"));
        }
        CudaError::Driver { what, code }
    }

    /// Bytes in live buffers of this process.
    pub(crate) fn used_bytes(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Allocates all of these sizes (in 32-bit words) or nothing; refuses what would overflow the device.
    pub(crate) fn allocate(self: &Arc<Self>, sizes: &[usize]) -> Result<Vec<Buffer>, CudaError> {
        let _admission = self.admission.lock().unwrap_or_else(PoisonError::into_inner);
        self.admit(sizes)?;
        sizes.iter().map(|words| Buffer::new(self.clone(), *words)).collect()
    }

    /// An error when these sizes (in 32-bit words) would overflow the device now.
    pub(crate) fn admit(&self, sizes: &[usize]) -> Result<(), CudaError> {
        self.bind()?;
        let (free, _) = result::mem_get_info().map_err(|e| self.error("asking for free memory", e))?;
        let (needed, free) = (sizes.iter().map(|n| 4 * *n as u64).sum::<u64>(), free as u64);
        if needed + self.reserve > free {
            return Err(CudaError::Memory { needed, free, reserve: self.reserve });
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What fails here cannot be helped: the context goes in any case.
        let _ = self.context.bind_to_thread();
        for module in self.modules.drain(..) {
            // SAFETY: loaded by `load`; no handle that uses it outlives the device.
            let _ = unsafe { result::module::unload(module) };
        }
    }
}

/// Device memory.
pub(crate) struct Buffer {
    device: Arc<Device>,
    pointer: sys::CUdeviceptr,
    words: usize,
}

impl Buffer {
    fn new(device: Arc<Device>, words: usize) -> Result<Self, CudaError> {
        // SAFETY: the context is current; the size is not zero.
        let pointer = unsafe { result::malloc_sync(4 * words.max(1)) };
        let pointer = pointer.map_err(|e| device.error("allocating device memory", e))?;
        device.used.fetch_add(4 * words as u64, Ordering::Relaxed);
        Ok(Buffer { device, pointer, words })
    }

    /// Copies words to the device and waits.
    pub(crate) fn upload(&self, words: &[u32]) -> Result<(), CudaError> {
        debug_assert!(words.len() <= self.words, "upload fits its buffer");
        self.device.bind()?;
        let words = &words[..words.len().min(self.words)];
        // SAFETY: the buffer holds at least as many words.
        unsafe { result::memcpy_htod_sync(self.pointer, words) }.map_err(|e| self.device.error("uploading", e))
    }

    /// Device address of an element.
    pub(crate) fn at(&self, word: usize) -> sys::CUdeviceptr {
        self.pointer + 4 * word as u64
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let _ = self.device.context.bind_to_thread();
        // SAFETY: allocated by `new`, freed once.
        let _ = unsafe { result::free_sync(self.pointer) };
        self.device.used.fetch_sub(4 * self.words as u64, Ordering::Relaxed);
    }
}

/// Host memory the device can reach by itself.
pub(crate) struct Pinned {
    device: Arc<Device>,
    pointer: *mut f32,
    len: usize,
}

impl Pinned {
    /// `len` zeros.
    pub(crate) fn new(device: &Arc<Device>, len: usize) -> Result<Self, CudaError> {
        device.bind()?;
        // SAFETY: the context is current; memory is written before it is read.
        let pointer = unsafe {
            let pointer = result::malloc_host(4 * len.max(1), 0);
            let pointer = pointer.map_err(|e| device.error("allocating pinned memory", e))?.cast::<f32>();
            std::ptr::write_bytes(pointer, 0, len.max(1));
            pointer
        };
        Ok(Pinned { device: device.clone(), pointer, len })
    }

    /// The elements. Only while no work that touches them is under way.
    pub(crate) fn slice(&self) -> &[f32] {
        // SAFETY: `len` elements were allocated and written.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }

    /// The elements, to be written.
    pub(crate) fn slice_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _ = self.device.context.bind_to_thread();
        // SAFETY: allocated by `new`, freed once.
        let _ = unsafe { result::free_host(self.pointer.cast()) };
    }
}

/// A stream.
pub(crate) struct Stream {
    device: Arc<Device>,
    stream: sys::CUstream,
}

impl Stream {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self, CudaError> {
        device.bind()?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        let stream = stream.map_err(|e| device.error("making a stream", e))?;
        Ok(Stream { device: device.clone(), stream })
    }

    fn try_<T>(&self, what: &'static str, result: Result<T, DriverError>) -> Result<T, CudaError> {
        result.map_err(|e| self.device.error(what, e))
    }

    /// Waits for all work on the stream.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        self.device.bind()?;
        // SAFETY: the stream lives.
        self.try_("waiting for the device", unsafe { result::stream::synchronize(self.stream) })
    }

    /// Copies to the device.
    pub(crate) fn upload(&self, to: sys::CUdeviceptr, from: &Pinned) -> Result<(), CudaError> {
        // SAFETY: the caller keeps both alive until the work is done; pinned memory is read by the device.
        self.try_("copying to the device", unsafe { result::memcpy_htod_async(to, from.slice(), self.stream) })
    }

    /// Copies from the device.
    pub(crate) fn download(&self, to: &mut Pinned, from: sys::CUdeviceptr) -> Result<(), CudaError> {
        let stream = self.stream;
        // SAFETY: as above.
        self.try_("copying from the device", unsafe { result::memcpy_dtoh_async(to.slice_mut(), from, stream) })
    }

    /// Launches a kernel; `resolve` gives the device address of an argument.
    pub(crate) fn launch(
        &self,
        launch: &super::plan::Launch,
        resolve: impl Fn(super::plan::At) -> sys::CUdeviceptr,
    ) -> Result<(), CudaError> {
        let function = self.device.functions.get(launch.kernel).copied();
        let function =
            function.ok_or_else(|| CudaError::Driver { what: launch.kernel, code: "no such kernel".into() })?;
        let mut words: Vec<[u8; 8]> = launch
            .args
            .iter()
            .map(|arg| match arg {
                Arg::At(at) => resolve(*at).to_ne_bytes(),
                Arg::Null => [0; 8],
                Arg::Int(v) => pad(v.to_ne_bytes()),
                Arg::Float(v) => pad(v.to_ne_bytes()),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|w| w.as_mut_ptr().cast()).collect();
        let dims = |d: [u32; 3]| (d[0], d[1], d[2]);
        // SAFETY: the arguments are those of the kernel (`Call::launch`, held by the conformance suite); the driver
        // copies them before it returns.
        let result = unsafe {
            result::launch_kernel(function, dims(launch.grid), dims(launch.block), 0, self.stream, &mut pointers)
        };
        self.try_("launching a kernel", result)
    }

    /// Records what `work` puts on this stream into a graph.
    pub(crate) fn capture(&self, work: impl FnOnce() -> Result<(), CudaError>) -> Result<Graph, CudaError> {
        self.device.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives and is not capturing.
        self.try_("beginning a capture", unsafe { result::stream::begin_capture(self.stream, mode) })?;
        let worked = work();
        // SAFETY: the capture was begun above; it is ended also when the work failed.
        let graph = self.try_("ending a capture", unsafe { result::stream::end_capture(self.stream) });
        worked?;
        let graph = graph?;
        let flags = sys::CUgraphInstantiate_flags(0);
        // SAFETY: the graph was just captured.
        let executable = unsafe { result::graph::instantiate(graph, flags) };
        // SAFETY: an instantiated graph no longer needs its template.
        let destroyed = unsafe { result::graph::destroy(graph) };
        let executable = self.try_("making a graph", executable)?;
        let graph = Graph { device: self.device.clone(), executable };
        self.try_("releasing a graph's template", destroyed)?;
        // SAFETY: both live.
        self.try_("uploading a graph", unsafe { result::graph::upload(graph.executable, self.stream) })?;
        Ok(graph)
    }

    /// Puts a graph on the stream.
    pub(crate) fn replay(&self, graph: &Graph) -> Result<(), CudaError> {
        self.device.bind()?;
        // SAFETY: both live.
        self.try_("launching a graph", unsafe { result::graph::launch(graph.executable, self.stream) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.device.context.bind_to_thread();
        // SAFETY: made by `new`, destroyed once; waiting first, so that nothing runs on freed buffers.
        unsafe {
            let _ = result::stream::synchronize(self.stream);
            let _ = result::stream::destroy(self.stream);
        }
    }
}

/// Work that was recorded once and can be put on a stream as one call.
pub(crate) struct Graph {
    device: Arc<Device>,
    executable: sys::CUgraphExec,
}

impl Drop for Graph {
    fn drop(&mut self) {
        let _ = self.device.context.bind_to_thread();
        // SAFETY: made by `capture`, destroyed once.
        let _ = unsafe { result::graph::exec_destroy(self.executable) };
    }
}

fn pad(word: [u8; 4]) -> [u8; 8] {
    let mut out = [0; 8];
    out[..4].copy_from_slice(&word);
    out
}
