//! What a check found.

use std::fmt;

/// Kinds of faults. Each has a planted bug in `tests/planted.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// An access outside every live buffer, or outside the block's shared memory.
    OutOfBounds,
    /// An access to a buffer that was given back.
    UseAfterFree,
    /// An address that is no multiple of the access size.
    Misaligned,
    /// A read of memory nobody has written.
    UnwrittenRead,
    /// Two threads of a block touch a word of shared memory without a barrier between, one of them writing.
    SharedRace,
    /// The same for global memory; between blocks nothing orders two accesses.
    GlobalRace,
    /// A barrier not all threads of the block arrive at.
    DivergentBarrier,
    /// A shuffle that names a lane which is elsewhere.
    MissingLane,
    /// Grid, block or shared memory beyond what a device or the kernel's own bounds allow.
    LaunchLimit,
    /// More instructions than any kernel here needs.
    Endless,
}

/// A fault with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// Name of the kernel.
    pub kernel: String,
    /// Line in the PTX; 0 where the launch itself is wrong.
    pub line: u32,
    /// Block index.
    pub block: [u32; 3],
    /// Thread index in the block.
    pub thread: [u32; 3],
    /// Addresses and sizes.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:?} in {} (PTX line {}, block {:?}, thread {:?}): {}",
            self.kind, self.kernel, self.line, self.block, self.thread, self.detail
        )
    }
}

impl std::error::Error for Fault {}
