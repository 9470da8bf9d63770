//! Puts the stand-in in front of the real driver in a test's process.

use crate::api::Counters;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const NOW: c_int = 2;
const GLOBAL: c_int = 0x100;

/// The stand-in, loaded. It stays loaded to the end of the process.
#[derive(Debug, Clone, Copy)]
pub struct Installed(*mut c_void);

// SAFETY: the handle is only used to look up functions that lock the driver themselves.
unsafe impl Send for Installed {}
// SAFETY: as above.
unsafe impl Sync for Installed {}

/// Where cargo put the shared library: beside the test's executable, or one folder up.
pub fn library() -> Result<PathBuf, String> {
    let exe = std::env::current_exe().map_err(|e| e.to_string())?;
    let folders = exe.ancestors().skip(1).take(2);
    let found = folders.map(|folder| folder.join("libfakecuda.so")).find(|path| path.is_file());
    found.ok_or_else(|| {
        format!("no libfakecuda.so near {}: cargo builds it with the tests of `executor`", exe.display())
    })
}

/// Loads the stand-in, so that whoever asks for `libcuda.so.1` from now on gets it.
pub fn install() -> Result<Installed, String> {
    let path = library()?;
    let name = CString::new(path.to_string_lossy().into_owned()).map_err(|e| e.to_string())?;
    // SAFETY: a library of this repository, without initialisers.
    let handle = unsafe { dlopen(name.as_ptr(), NOW | GLOBAL) };
    if handle.is_null() {
        // SAFETY: after a failure the message is a string.
        let why = unsafe { CStr::from_ptr(dlerror()) };
        return Err(format!("{}: {}", path.display(), why.to_string_lossy()));
    }
    Ok(Installed(handle))
}

impl Installed {
    /// True when the stand-in has this function of the driver's API.
    pub fn has(self, name: &CStr) -> bool {
        // SAFETY: the library is loaded.
        !unsafe { dlsym(self.0, name.as_ptr()) }.is_null()
    }

    fn symbol(self, name: &CStr) -> *mut c_void {
        // SAFETY: the library is loaded.
        let symbol = unsafe { dlsym(self.0, name.as_ptr()) };
        assert!(!symbol.is_null(), "the stand-in has no {name:?}");
        symbol
    }

    /// What is alive and what was called.
    pub fn counters(self) -> Counters {
        let mut out = Counters::default();
        // SAFETY: the function has this signature.
        unsafe {
            let call: unsafe extern "C" fn(*mut Counters) -> c_int =
                std::mem::transmute(self.symbol(c"fakecuda_counters"));
            call(&mut out);
        }
        out
    }

    /// See [`fakecuda_set`](crate::api::fakecuda_set).
    pub fn set(self, key: c_int, value: u64) {
        // SAFETY: the function has this signature.
        unsafe {
            let call: unsafe extern "C" fn(c_int, u64) -> c_int = std::mem::transmute(self.symbol(c"fakecuda_set"));
            assert_eq!(call(key, value), 0, "no setting {key}");
        }
    }

    /// See [`fakecuda_fail`](crate::api::fakecuda_fail).
    pub fn fail(self, call: c_int, successes: u64, code: c_int) {
        // SAFETY: the function has this signature.
        unsafe {
            let function: unsafe extern "C" fn(c_int, u64, c_int) -> c_int =
                std::mem::transmute(self.symbol(c"fakecuda_fail"));
            assert_eq!(function(call, successes, code), 0, "no call {call}");
        }
    }

    /// Text of the last fault of a kernel.
    pub fn last_fault(self) -> String {
        let mut text = vec![0u8; 1024];
        // SAFETY: the function has this signature and ends the text with a zero.
        unsafe {
            let call: unsafe extern "C" fn(*mut c_char, usize) -> c_int =
                std::mem::transmute(self.symbol(c"fakecuda_last_fault"));
            call(text.as_mut_ptr().cast(), text.len());
        }
        CStr::from_bytes_until_nul(&text).map(|t| t.to_string_lossy().into_owned()).unwrap_or_default()
    }
}
