//! What the executor costs over a bare loop on the same backend, and what it does beyond saturation.
//!
//! ```text
//! executor_bench MODEL.onnx [--batch N] [--seconds S] [--runs R] [--slo MS] [--queue N] throughput|latency|overload|scale …
//! ```
//!
//! One process: the embedded broker, the client and everything of the node but its worker live on core 1; the worker,
//! or the bare loop, on core 0. While the bare loop runs, the same requests and results go through the broker with an
//! echo in the place of the node, so that both sides see the same neighbour. One JSON line a result; `docs/benchmarks/
//! executor.md` has the commands and what they printed.

mod scenario;
mod world;

use std::path::PathBuf;

/// What to run.
pub(crate) struct Options {
    /// Model file.
    pub(crate) model: PathBuf,
    /// Largest batch.
    pub(crate) batch: u32,
    /// Length of each measurement.
    pub(crate) seconds: u64,
    /// Repetitions.
    pub(crate) runs: usize,
    /// Latency objective of `overload`, milliseconds.
    pub(crate) slo_ms: f64,
    /// Requests that may wait in the node; absent: its default.
    pub(crate) queue: Option<usize>,
    /// Scenarios.
    pub(crate) scenarios: Vec<String>,
}

const USAGE: &str = "usage: executor_bench MODEL.onnx [--batch N] [--seconds S] [--runs R] [--slo MS] [--queue N] \
                     throughput|latency|overload|scale …";

fn options() -> Option<Options> {
    let mut arguments = std::env::args().skip(1);
    let mut options = Options {
        model: arguments.next()?.into(),
        batch: 1,
        seconds: 8,
        runs: 5,
        slo_ms: 200.0,
        queue: None,
        scenarios: Vec::new(),
    };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--batch" => options.batch = arguments.next()?.parse().ok()?,
            "--seconds" => options.seconds = arguments.next()?.parse().ok()?,
            "--runs" => options.runs = arguments.next()?.parse().ok()?,
            "--queue" => options.queue = Some(arguments.next()?.parse().ok()?),
            "--slo" => options.slo_ms = arguments.next()?.parse().ok()?,
            _ => options.scenarios.push(argument),
        }
    }
    (!options.scenarios.is_empty() && options.batch > 0 && options.runs > 0).then_some(options)
}

fn main() -> anyhow::Result<()> {
    let options = options().ok_or_else(|| anyhow::anyhow!(USAGE))?;
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    anyhow::ensure!(cores.len() >= 2, "this needs two cores: one for the worker, one for everything else");
    // Before the first thread: all of them inherit it. The worker pins itself elsewhere.
    anyhow::ensure!(core_affinity::set_for_current(cores[1]), "this thread cannot be pinned");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let world = world::World::start(&options, cores[0].id).await?;
        for name in &options.scenarios {
            match name.as_str() {
                "throughput" => scenario::throughput(&world, &options).await?,
                "latency" => scenario::latency(&world, &options).await?,
                "overload" => scenario::overload(&world, &options).await?,
                "scale" => scenario::scale(&world, &options).await?,
                other => anyhow::bail!("no scenario `{other}`; {USAGE}"),
            }
        }
        world.stop().await
    })
}
