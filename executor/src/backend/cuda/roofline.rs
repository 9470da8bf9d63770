//! How long a plan takes at least, and roughly, on a device nobody has measured. Pure.
//!
//! A call cannot be faster than its bytes at the device's bandwidth, nor than its operations at its arithmetic rate. The
//! floor of a plan is the sum over its calls of the larger of the two. Real calls miss it: a launch in a graph costs
//! time by itself, small grids leave most of a device idle, and no kernel reaches the published rates. Where the truth
//! lies is unknown until it is measured, so an estimate is a range, wide on purpose.

use super::plan::{Floor, Plan};
use schemas::profile::ProfilePoint;

/// Published figures of a device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    /// Name.
    pub name: &'static str,
    /// Memory bandwidth, GB/s (10⁹ bytes).
    pub gb_per_s: f64,
    /// Rate of 32-bit arithmetic without tensor cores, 10¹² operations a second.
    pub tflops: f64,
    /// Multiprocessors.
    pub processors: u32,
}

/// NVIDIA T4: 320 GB/s, 8.1 TFLOPS, 40 multiprocessors. Sources of all four: `docs/cuda.md`.
pub const T4: Figures = Figures { name: "T4", gb_per_s: 320.0, tflops: 8.1, processors: 40 };
/// NVIDIA L4: 300 GB/s, 30.3 TFLOPS, 58 multiprocessors.
pub const L4: Figures = Figures { name: "L4", gb_per_s: 300.0, tflops: 30.3, processors: 58 };
/// NVIDIA A100 80 GB PCIe: 1,935 GB/s, 19.5 TFLOPS, 108 multiprocessors.
pub const A100: Figures = Figures { name: "A100", gb_per_s: 1935.0, tflops: 19.5, processors: 108 };
/// NVIDIA H100 SXM: 3,350 GB/s, 67 TFLOPS, 132 multiprocessors.
pub const H100: Figures = Figures { name: "H100", gb_per_s: 3350.0, tflops: 67.0, processors: 132 };

/// All devices with figures here.
pub const DEVICES: [Figures; 4] = [T4, L4, A100, H100];

/// Time a kernel in a graph costs besides its work, microseconds: an assumption, not a measurement.
const LAUNCH_US: f64 = 2.0;
/// Time of the copies, the launch of the graph and the wait, microseconds: an assumption.
const BATCH_US: f64 = 15.0;
/// Part of the published rates that a likely run reaches: an assumption.
const LIKELY_PART: f64 = 0.35;
/// The slow end of the range against the likely time.
const SLOW_FACTOR: f64 = 3.0;

/// A range of times for one batch, microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// No run is faster: bytes and operations at the published rates.
    pub floor_us: f64,
    /// What is planned with until something was measured.
    pub likely_us: f64,
    /// The slow end.
    pub slow_us: f64,
}

/// Least time of one call at the published rates, microseconds.
pub fn floor_us(floor: Floor, device: &Figures) -> f64 {
    let memory = floor.bytes as f64 / (device.gb_per_s * 1e3);
    let arithmetic = floor.operations as f64 / (device.tflops * 1e6);
    memory.max(arithmetic)
}

/// The range for a plan on a device.
pub fn estimate(plan: &Plan, device: &Figures) -> Estimate {
    let (mut least, mut likely) = (0.0, BATCH_US);
    for step in &plan.steps {
        let us = floor_us(step.call.floor(), device);
        let blocks: u64 = step.call.launch().grid.iter().map(|n| u64::from(*n)).product();
        // A grid of fewer blocks than multiprocessors leaves the others idle.
        let busy = (blocks as f64 / f64::from(device.processors)).min(1.0);
        least += us;
        likely += LAUNCH_US + us / (LIKELY_PART * busy.max(1e-3));
    }
    Estimate { floor_us: least, likely_us: likely, slow_us: SLOW_FACTOR * likely }
}

/// The point of a profile that a plan would have: the likely time as median, the slow end as its high quantiles. Its
/// throughput is that of one worker which never waits.
pub fn point(plan: &Plan, device: &Figures) -> ProfilePoint {
    let e = estimate(plan, device);
    ProfilePoint {
        workers: 1,
        batch: u32::try_from(plan.batch).unwrap_or(u32::MAX),
        p50_ms: e.likely_us / 1e3,
        p95_ms: e.slow_us / 1e3,
        p99_ms: e.slow_us / 1e3,
        rps: plan.batch as f64 * 1e6 / e.likely_us,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_floor_is_the_slower_of_memory_and_arithmetic() {
        // 320 MB at 320 GB/s is a millisecond; 8.1 Gop at 8.1 TFLOPS too.
        assert!((floor_us(Floor { bytes: 320_000_000, operations: 1 }, &T4) - 1000.0).abs() < 1e-9);
        assert!((floor_us(Floor { bytes: 1, operations: 8_100_000_000 }, &T4) - 1000.0).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn more_work_never_takes_less(bytes in 0u64..1 << 40, operations in 0u64..1 << 50, more in 0u64..1 << 30) {
            for device in DEVICES {
                let base = floor_us(Floor { bytes, operations }, &device);
                let more_bytes = floor_us(Floor { bytes: bytes + more, operations }, &device);
                prop_assert!(more_bytes >= base);
                let more_work = floor_us(Floor { bytes, operations: operations + more }, &device);
                prop_assert!(more_work >= base);
            }
        }
    }
}
