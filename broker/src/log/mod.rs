//! Partition logs: batches in segment files, with the state machine that decides about them.
//!
//! Map: [`batch`] knows the bytes of a record batch; [`producers`] recognises repeats; [`index`]
//! finds places; [`state`] is the pure state machine over all three; [`segment`] and [`recovery`]
//! know the files; [`partition`] is the shell that ties state and files together and wakes waiting
//! fetches; [`compaction`] rewrites closed segments to the newest record per key.

pub(crate) mod batch;
pub(crate) mod compaction;
pub(crate) mod index;
pub(crate) mod partition;
pub(crate) mod producers;
pub(crate) mod recovery;
pub(crate) mod rules;
pub(crate) mod segment;
pub(crate) mod state;

#[cfg(test)]
pub(crate) mod testing;

#[cfg(test)]
mod transactions_tests;
