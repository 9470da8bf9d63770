//! The wire: which requests are served in which versions, how a frame becomes a typed request and
//! how a typed reply becomes a frame.
//!
//! Invariants: nothing here panics or allocates by a count that the sender merely claims
//! ([`shape`] checks every count against the bytes that are there before the generated decoders
//! run); a frame that does not decode is an error of its connection, never of the broker.
//! Left out: what a request means (see `handlers`).

pub(crate) mod api;
pub(crate) mod frame;
pub(crate) mod pieces;
pub(crate) mod shape;
pub(crate) mod unserved;
