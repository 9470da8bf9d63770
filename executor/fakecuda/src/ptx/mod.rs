//! PTX: decoding ([`parse`](parse())), running ([`launch`]), device memory ([`Memory`]).
//!
//! Invariants:
//! - What is not covered is an error at decoding time: an unknown opcode, modifier, operand or directive is never skipped.
//! - Every access is checked: bounds, alignment, whether the word was ever written, and whether another thread touches it
//!   without a barrier between.

mod decode;
mod fault;
mod lanes;
mod memory;
mod run;

pub use decode::{Kernel, parse};
pub use fault::{Fault, FaultKind};
pub use memory::Memory;
pub use run::{Launch, Order, Stats, launch};
