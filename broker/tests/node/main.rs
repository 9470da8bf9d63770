//! The broker as a process, over the wire: what it promises when it is killed, fed nonsense, or
//! short of disk.
//!
//! Map: [`client`] speaks the protocol, [`child`] is a broker that can be killed; [`history`] checks
//! what clients were told and [`register`] what the members of a group were (pure), [`workload`] are the
//! clients and [`crew`] the members, [`kills`] the check itself; [`disk`] is what
//! full disks and retention leave, [`offsets`] how long committed offsets stay.
#![allow(clippy::unwrap_used, reason = "tests")]

mod child;
mod client;
mod crew;
mod disk;
mod history;
mod kills;
mod offsets;
mod register;
mod workload;
