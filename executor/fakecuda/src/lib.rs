//! A stand-in `libcuda.so.1` for tests: enough of the driver API for cudarc, kernels run by a checking PTX interpreter.
//!
//! Loaded by absolute path before anything asks for the driver, its soname makes the loader hand it to whoever asks.
//! Never part of a release: only tests depend on it.
//!
//! - Functions that are missing here are missing symbols, on which cudarc panics; a handle nobody made, a copy outside a
//!   buffer, a free of what is not there are errors, as they are on a device; what was wrong is counted and has a name
//!   ([`misuse::Misuse`]).
//! - A fault of a kernel is sticky: from then on every call fails, as after an illegal address on a device. Its text is
//!   in [`fakecuda_last_fault`](api::fakecuda_last_fault).
//! - In lazy mode work on a stream waits until somebody waits for it. Whoever reads a result too early finds NaN; whoever
//!   changes pinned memory too early is named.
//! - `FAKECUDA_INIT`, `FAKECUDA_VERSION`, `FAKECUDA_DEVICES`, `FAKECUDA_CAPABILITY` make a driver that fails, is old, has
//!   no device, or one that is too old.

#![allow(clippy::missing_safety_doc, reason = "the safety of each call is the driver API's")]

pub mod api;
mod driver;
mod install;
pub mod misuse;
pub mod ptx;

pub use api::Counters;
pub use install::{Installed, install, library};
