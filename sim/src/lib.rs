//! Simulated worlds: recorded and synthetic load, a synthetic city, and a clock that runs as fast as asked.
//!
//! Invariants: everything but [`publish`] is a pure function of its configuration and seed; the same seed gives the
//! same messages and arrivals. [`simulate`] runs scaling policies, the production planner among them, on a [`trace`].

pub mod city;
pub mod clock;
pub mod load;
pub mod publish;
pub mod replay;
pub mod simulate;
pub mod trace;
