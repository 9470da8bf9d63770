//! Is there a usable NVIDIA driver? Asked before anything touches cudarc, which panics where a library or a symbol is
//! missing.

#![allow(unsafe_code, reason = "loads the driver and calls its C functions")]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;

/// Lowest CUDA version of the driver: the kernels are PTX 8.0, which drivers from 525 on accept.
pub const MIN_VERSION: i32 = 12_000;
/// Lowest compute capability: the kernels are compiled for 7.5.
pub const MIN_CAPABILITY: (i32, i32) = (7, 5);

/// Every driver function the backend calls.
const SYMBOLS: [&str; 39] = [
    "cuInit",
    "cuDriverGetVersion",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceGetAttribute",
    "cuDeviceTotalMem_v2",
    "cuMemGetInfo_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxGetCurrent",
    "cuCtxSynchronize",
    "cuStreamCreate",
    "cuStreamDestroy_v2",
    "cuStreamSynchronize",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuGraphInstantiateWithFlags",
    "cuGraphUpload",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemHostAlloc",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyDtoH_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernel",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuMemcpyDtoDAsync_v2",
    "cuMemsetD8Async",
];

/// What this machine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// No CUDA, and why.
    Off(String),
    /// A usable device.
    On(Device),
}

/// The first device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// As the driver calls it.
    pub name: String,
    /// CUDA version of the driver: 1000 × major + 10 × minor.
    pub driver: i32,
    /// Compute capability.
    pub capability: (i32, i32),
    /// Device memory, bytes.
    pub memory_bytes: usize,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Probe::Off(reason) => write!(f, "off, because {reason}"),
            Probe::On(device) => write!(f, "{device}"),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = (self.driver / 1000, self.driver % 1000 / 10);
        let gib = self.memory_bytes as f64 / f64::from(1 << 30);
        let (a, b) = self.capability;
        write!(f, "{}, {gib:.1} GiB, compute capability {a}.{b}, driver for CUDA {major}.{minor}", self.name)
    }
}

/// Looks for the driver and its first device. Never panics; starts the driver, which takes up to a second.
pub fn probe() -> Probe {
    match look() {
        Ok(device) => Probe::On(device),
        Err(reason) => Probe::Off(reason),
    }
}

fn look() -> Result<Device, String> {
    if !cfg!(target_os = "linux") {
        return Err("only Linux is supported".to_owned());
    }
    // SAFETY: loading the driver runs its initialisers, as starting any CUDA program does.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }
        .map_err(|e| format!("the NVIDIA driver cannot be loaded ({e})"))?;
    for name in SYMBOLS {
        // SAFETY: the symbol is looked up, not called.
        if unsafe { library.get::<*const ()>(name.as_bytes()) }.is_err() {
            return Err(format!("the NVIDIA driver is broken or too old: it has no {name}"));
        }
    }
    let driver = Calls { library: &library };
    driver.start()?;
    let version = driver.value("cuDriverGetVersion")?;
    if version < MIN_VERSION {
        return Err(format!(
            "the NVIDIA driver is for CUDA {}.{}, needed is {}.0 (driver 525) or newer",
            version / 1000,
            version % 1000 / 10,
            MIN_VERSION / 1000
        ));
    }
    if driver.value("cuDeviceGetCount")? < 1 {
        return Err("the NVIDIA driver finds no device".to_owned());
    }
    let device = driver.describe(version)?;
    if device.capability < MIN_CAPABILITY {
        let ((a, b), (c, d)) = (device.capability, MIN_CAPABILITY);
        return Err(format!("{} has compute capability {a}.{b}, needed is {c}.{d} or higher", device.name));
    }
    // The driver stays loaded: unloading it runs destructors that are not safe while its threads live.
    std::mem::forget(library);
    Ok(device)
}

/// Calls before cudarc may be touched.
struct Calls<'a> {
    library: &'a libloading::Library,
}

impl Calls<'_> {
    fn start(&self) -> Result<(), String> {
        type Function = unsafe extern "C" fn(c_uint) -> c_int;
        // SAFETY: the signature of `cuInit`.
        let code = unsafe { self.library.get::<Function>(b"cuInit").map_err(|e| e.to_string())?(0) };
        let hint = match code {
            0 => return Ok(()),
            100 => ": it finds no device",
            803 => ": its library and its kernel module differ; reboot after an update",
            _ => "",
        };
        Err(format!("the NVIDIA driver does not start (cuInit = {code}){hint}"))
    }

    /// Functions that fill one integer.
    fn value(&self, name: &str) -> Result<c_int, String> {
        type Function = unsafe extern "C" fn(*mut c_int) -> c_int;
        let mut value = 0;
        // SAFETY: `cuDriverGetVersion` and `cuDeviceGetCount` have this signature.
        let code = unsafe {
            let function = self.library.get::<Function>(name.as_bytes()).map_err(|e| e.to_string())?;
            function(&mut value)
        };
        if code == 0 { Ok(value) } else { Err(format!("the NVIDIA driver fails ({name} = {code})")) }
    }

    fn describe(&self, driver: i32) -> Result<Device, String> {
        type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
        type Name = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
        type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
        type Memory = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
        let failed = |name: &str, code: c_int| format!("the NVIDIA driver fails ({name} = {code})");
        let (mut device, mut major, mut minor, mut memory_bytes) = (0, 0, 0, 0usize);
        let mut name = [0 as c_char; 256];
        // SAFETY: signatures as in NVIDIA's driver API; the pointers are to locals that outlive the calls.
        unsafe {
            let symbol = |e: libloading::Error| e.to_string();
            let code = self.library.get::<Get>(b"cuDeviceGet").map_err(symbol)?(&mut device, 0);
            if code != 0 {
                return Err(failed("cuDeviceGet", code));
            }
            let code = self.library.get::<Name>(b"cuDeviceGetName").map_err(symbol)?(name.as_mut_ptr(), 255, device);
            if code != 0 {
                return Err(failed("cuDeviceGetName", code));
            }
            let attribute = self.library.get::<Attribute>(b"cuDeviceGetAttribute").map_err(symbol)?;
            // 75 and 76: compute capability, major and minor.
            for (value, which) in [(&mut major, 75), (&mut minor, 76)] {
                let code = attribute(value, which, device);
                if code != 0 {
                    return Err(failed("cuDeviceGetAttribute", code));
                }
            }
            let code = self.library.get::<Memory>(b"cuDeviceTotalMem_v2").map_err(symbol)?(&mut memory_bytes, device);
            if code != 0 {
                return Err(failed("cuDeviceTotalMem_v2", code));
            }
            let name = CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned();
            Ok(Device { name, driver, capability: (major, minor), memory_bytes })
        }
    }
}
