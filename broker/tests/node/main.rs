//! The broker as a process, over the wire: what it promises when it is killed, fed nonsense, or
//! short of disk.
//!
//! Map: [`client`] speaks the protocol, [`child`] is a broker that can be killed; [`history`] checks
//! what clients were told (pure), [`workload`] are the clients, [`kills`] the check itself; [`disk`] is what
//! full disks and retention leave, [`offsets`] how long committed offsets stay.
#![allow(clippy::unwrap_used, reason = "tests")]

mod child;
mod client;
mod disk;
mod history;
mod kills;
mod offsets;
mod workload;
