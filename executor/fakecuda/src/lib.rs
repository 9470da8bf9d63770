//! A stand-in `libcuda.so.1` for tests: enough of the driver API for cudarc, kernels run by a checking PTX interpreter.
pub mod ptx;
