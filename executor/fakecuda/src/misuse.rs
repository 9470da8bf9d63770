//! What a program does wrong with the driver's API, by name.

use std::fmt;

/// Kinds of misuse. Each has a planted bug in `tests/misuse.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Misuse {
    /// Memory that was given back is copied to or from.
    UseAfterFree,
    /// Memory that was given back is given back again.
    DoubleFree,
    /// A pointer is given back that no allocation gave.
    InvalidFree,
    /// A copy or fill reaches beyond its allocation.
    CopyOutOfBounds,
    /// What no kernel and no copy has written is copied to the host.
    UnwrittenRead,
    /// A handle nobody made, or of another kind.
    UnknownHandle,
    /// A handle of what was destroyed.
    UseAfterDestroy,
    /// A call that a capture forbids, or a capture begun twice or never.
    CaptureMisuse,
    /// Pinned memory changed while a copy that nobody has waited for uses it.
    MissingSynchronization,
    /// The context is given up while something made in it is alive.
    Leak,
    /// A launch without the arguments its kernel wants.
    BadLaunch,
    /// A call on a thread that has no context.
    NoContext,
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
