//! Simulated worlds: recorded and synthetic load, a synthetic city, and a clock that runs as fast as asked.
//!
//! Invariants: everything but [`publish`] is a pure function of its configuration and seed; the same seed gives the
//! same messages and arrivals. Left out, for now: the discrete-event simulator of policies, which will drive the same
//! planner and executor cores from [`trace`].

pub mod city;
pub mod clock;
pub mod load;
pub mod publish;
pub mod replay;
pub mod trace;
