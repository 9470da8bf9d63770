//! Bugs planted on purpose: each kind is caught, under its name.

mod common;

use common::{Arg, Device, noise};
use fakecuda::ptx::{FaultKind, parse};

const PTX: &str = include_str!("planted.ptx");

/// Runs a kernel over 100 elements and tells what was found.
fn found(name: &str, blocks: u32) -> Option<FaultKind> {
    let mut device = Device::new(&[PTX]);
    let x = device.upload(&noise(100, 1));
    let y = device.upload(&[0.0; 100]);
    device.try_run(name, [blocks, 1, 1], [64, 1, 1], &[Arg::P(x), Arg::P(y), Arg::I(100)]).err().map(|f| f.kind)
}

#[test]
fn correct_kernels_pass() {
    assert_eq!(found("reverse", 2), None);
    assert_eq!(found("copy", 2), None);
}

#[test]
fn out_of_bounds() {
    assert_eq!(found("out_of_bounds", 2), Some(FaultKind::OutOfBounds));
    assert_eq!(found("shared_out_of_bounds", 1), Some(FaultKind::OutOfBounds));
}

#[test]
fn swapped_pointers_are_out_of_bounds() {
    let mut device = Device::new(&[PTX]);
    let (long, short) = (device.upload(&noise(100, 1)), device.upload(&noise(64, 2)));
    let fault = device.try_run("copy", [2, 1, 1], [64, 1, 1], &[Arg::P(long), Arg::P(short), Arg::I(100)]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::OutOfBounds);
    assert!(fault.to_string().contains("offset 256 of a buffer of 256"), "{fault}");
}

#[test]
fn use_after_free() {
    let mut device = Device::new(&[PTX]);
    let (x, y) = (device.upload(&noise(64, 1)), device.empty(64));
    assert!(device.memory.free(x) && !device.memory.free(x));
    let fault = device.try_run("copy", [1, 1, 1], [64, 1, 1], &[Arg::P(x), Arg::P(y), Arg::I(64)]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UseAfterFree);
}

#[test]
fn misaligned() {
    assert_eq!(found("misaligned", 1), Some(FaultKind::Misaligned));
}

#[test]
fn unwritten_read() {
    assert_eq!(found("unwritten_shared", 1), Some(FaultKind::UnwrittenRead));
    let mut device = Device::new(&[PTX]);
    let (x, y) = (device.empty(64), device.empty(64));
    let fault = device.try_run("copy", [1, 1, 1], [64, 1, 1], &[Arg::P(x), Arg::P(y), Arg::I(64)]).unwrap_err();
    assert_eq!(fault.kind, FaultKind::UnwrittenRead);
}

#[test]
fn shared_race() {
    assert_eq!(found("missing_barrier", 1), Some(FaultKind::SharedRace));
}

#[test]
fn shared_race_with_the_next_round() {
    let mut device = Device::new(&[PTX]);
    let (x, y) = (device.upload(&noise(128, 1)), device.empty(128));
    let fault = device.try_run("missing_second_barrier", [1, 1, 1], [64, 1, 1], &[Arg::P(x), Arg::P(y), Arg::I(128)]);
    assert_eq!(fault.unwrap_err().kind, FaultKind::SharedRace);
}

#[test]
fn global_race() {
    assert_eq!(found("all_write_one", 1), Some(FaultKind::GlobalRace));
    for blocks in [1usize, 2] {
        let mut device = Device::new(&[PTX]);
        let y = device.upload(&noise(64 * blocks, 1));
        let run = device.try_run(
            "reads_other_block",
            [blocks as u32, 1, 1],
            [64, 1, 1],
            &[Arg::P(y), Arg::I(64 * blocks as i32)],
        );
        assert_eq!(run.err().map(|f| f.kind), (blocks == 2).then_some(FaultKind::GlobalRace));
    }
}

#[test]
fn divergent_barrier() {
    assert_eq!(found("divergent_barrier", 2), Some(FaultKind::DivergentBarrier));
    assert_eq!(found("barrier_in_branch", 1), Some(FaultKind::DivergentBarrier));
}

#[test]
fn missing_lane() {
    assert_eq!(found("missing_lane", 1), Some(FaultKind::MissingLane));
}

#[test]
fn launch_limits() {
    let mut device = Device::new(&[PTX]);
    let (x, y) = (device.upload(&noise(64, 1)), device.empty(64));
    let args = [Arg::P(x), Arg::P(y), Arg::I(64)];
    for (grid, block) in
        [([1, 1, 1], [65, 1, 1]), ([0, 1, 1], [64, 1, 1]), ([1, 65_536, 1], [64, 1, 1]), ([1, 1, 1], [0, 1, 1])]
    {
        let fault = device.try_run("copy", grid, block, &args).unwrap_err();
        assert_eq!(fault.kind, FaultKind::LaunchLimit, "{grid:?} {block:?}");
    }
}

#[test]
fn an_endless_kernel_is_stopped() {
    assert_eq!(found("endless", 1), Some(FaultKind::Endless));
}

#[test]
fn what_is_not_covered_is_an_error() {
    for (from, to, says) in [
        ("ld.global.f32", "ld.volatile.f32", "opcode ld.volatile.f32"),
        ("bar.sync \t0", "bar.sync \t1", "barrier 1"),
        ("mov.u32 ", "popc.b32 ", "opcode popc.b32"),
        (".visible .entry copy", ".visible .func copy", "functions"),
        ("%tid.x", "%clock", "unknown operand %clock"),
    ] {
        assert!(PTX.contains(from), "{from}");
        let error = parse(&PTX.replace(from, to)).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
    assert!(parse("hello").is_err());
}
