//! The CUDA backend on a real device: the conformance suite against tract, then latency and throughput of each batch size
//! beside the floor of its kernels. `scripts/gpu-check.sh` builds, packs and runs it.
//!
//! ```text
//! gpu_check [--models FOLDER] [--quick]
//! ```
//!
//! `--quick` is for tools that slow everything down: the suite, and one batch of each size. Without a usable device it
//! says why and ends with 0, with `REQUIRE_GPU=1` with 1; a difference from tract ends with 1. `BARISTA_TEST_SEED` names
//! the seed of weights and inputs.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

#[path = "../tests/cuda_suite/mod.rs"]
#[allow(dead_code, reason = "each program uses its part")]
mod cuda_suite;

use cuda_suite::cases::{self, Domain};
use cuda_suite::{compare, rows, seed};
use executor::backend::cuda::roofline::{self, Figures};
use executor::backend::cuda::{CudaBackend, Execution, Layout, Probe, lower_file, probe};
use executor::backend::tract::TractBackend;
use executor::backend::{Backend, LoadOptions, Row};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Largest batch size measured.
const MAX_BATCH: usize = 32;
/// Time for each batch size, and batches that are enough for a 99th percentile.
const MEASURE: Duration = Duration::from_secs(2);
const ENOUGH: usize = 2_000;
const WARM_UP: usize = 20;

fn main() -> ExitCode {
    let (folder, quick) = match options() {
        Ok(options) => options,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    let device = match probe() {
        Probe::On(device) => device,
        Probe::Off(reason) => {
            println!("CUDA backend: off, because {reason}");
            let required = std::env::var("REQUIRE_GPU").is_ok_and(|v| v == "1");
            println!(
                "gpu-check: no GPU, nothing was checked{}",
                if required { ", and REQUIRE_GPU=1 asks for one" } else { "" }
            );
            return ExitCode::from(u8::from(required));
        }
    };
    println!("{device}\nseed {}", seed());
    let figures = roofline::DEVICES.into_iter().find(|d| device.name.contains(d.name));
    let mut table = Table::default();
    let outcome = suite(&mut table)
        .and_then(|()| models(&folder))
        .and_then(|paths| paths.iter().try_for_each(|path| model(path, figures.as_ref(), quick, &mut table)));
    table.print(&device.name);
    match outcome {
        Ok(()) => {
            println!("gpu-check: all answers within {:e} of tract", cuda_suite::TOLERANCE);
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("gpu-check: FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<(PathBuf, bool), String> {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let (mut folder, mut quick) = (committed, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.len()) {
            ("--quick", _) => quick = true,
            ("--models", 1..) => folder = arguments.next().unwrap_or_default().into(),
            (other, _) => return Err(format!("{other}?\nusage: gpu_check [--models FOLDER] [--quick]")),
        }
    }
    Ok((folder, quick))
}

/// Every operator of the allow-list.
fn suite(table: &mut Table) -> Result<(), String> {
    let (graphs, eager) = (CudaBackend::default(), CudaBackend::with_execution(Execution::Eager));
    let file = std::env::temp_dir().join(format!("barista-gpu-check-{}.onnx", std::process::id()));
    let cases = cases::all(seed());
    let (total, mut worst, mut failures) = (cases.len(), 0.0f32, Vec::new());
    for (i, case) in cases.into_iter().enumerate() {
        let verdict = std::fs::write(&file, &case.bytes)
            .map_err(|e| e.to_string())
            .and_then(|()| compare(&file, [&TractBackend, &graphs, &eager], &[1, 3], case.domain, seed() + i as u64));
        match verdict {
            Ok(verdict) => worst = worst.max(verdict.apart),
            Err(why) => failures.push(format!("{}: {why}", case.name)),
        }
    }
    let _ = std::fs::remove_file(&file);
    failures.iter().for_each(|f| println!("{f}"));
    table.add(["operators", &format!("{total} models"), &format!("{worst:.1e}"), "", "", "", "", "", ""]);
    match failures.len() {
        0 => Ok(()),
        n => Err(format!("{n} of {total} models of the suite, the first {}", failures[0])),
    }
}

fn models(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    paths.sort();
    if paths.is_empty() { Err(format!("no models in {}", folder.display())) } else { Ok(paths) }
}

/// A whole model: its distance from tract, and a line for each batch size.
fn model(path: &Path, figures: Option<&Figures>, quick: bool, table: &mut Table) -> Result<(), String> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let named = |e: String| format!("{name}: {e}");
    let (graphs, eager) = (CudaBackend::default(), CudaBackend::with_execution(Execution::Eager));
    let verdict = compare(path, [&TractBackend, &graphs, &eager], &[1, 3], Domain::Any, seed()).map_err(named)?;
    let options = LoadOptions { max_batch: if quick { 2 } else { MAX_BATCH } };
    let lowered = lower_file(path, &options, Layout::default()).map_err(|e| named(e.to_string()))?;
    let model = graphs.load(path, &options).map_err(|e| named(e.to_string()))?;
    for plan in &lowered.plans {
        let rows = rows(model.as_ref(), plan.batch, Domain::Any, seed());
        let mut worker = model.worker().map_err(|e| named(e.to_string()))?;
        let times = measure(worker.as_mut(), &rows, quick).map_err(named)?;
        let at = |q: f64| times[((times.len() as f64 * q) as usize).min(times.len() - 1)];
        let floor = figures.map(|f| roofline::estimate(plan, f).floor_us);
        table.add([
            &name,
            &plan.batch.to_string(),
            &format!("{:.1e}", verdict.apart),
            &format!("{:.1}", at(0.5)),
            &format!("{:.1}", at(0.95)),
            &format!("{:.1}", at(0.99)),
            &format!("{:.0}", plan.batch as f64 * 1e6 / at(0.5)),
            &floor.map_or("unknown".to_owned(), |us| format!("{us:.2}")),
            &floor.map_or(String::new(), |us| format!("{:.1}", at(0.5) / us)),
        ]);
    }
    Ok(())
}

/// Times of single batches, microseconds, ascending.
fn measure(worker: &mut dyn executor::backend::Worker, rows: &[Row], quick: bool) -> Result<Vec<f64>, String> {
    let batch: Vec<&Row> = rows.iter().collect();
    let mut run = || -> Result<f64, String> {
        let start = Instant::now();
        worker.run(&batch).map_err(|e| e.to_string())?;
        Ok(start.elapsed().as_secs_f64() * 1e6)
    };
    for _ in 0..if quick { 0 } else { WARM_UP } {
        run()?;
    }
    let began = Instant::now();
    let mut times = vec![run()?];
    while !quick && times.len() < ENOUGH && began.elapsed() < MEASURE {
        times.push(run()?);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The table at the end.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<[String; 9]>,
}

impl Table {
    fn add(&mut self, row: [&str; 9]) {
        self.rows.push(row.map(str::to_owned));
    }

    fn print(&self, device: &str) {
        let head = ["model", "batch", "from tract", "p50 µs", "p95 µs", "p99 µs", "rows/s", "floor µs", "p50/floor"]
            .map(str::to_owned);
        let width = |c: usize| self.rows.iter().chain([&head]).map(|r| r[c].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        println!("\n{device}: one worker, times of a batch from rows in host memory to rows in host memory");
        for row in std::iter::once(&head).chain(&self.rows) {
            let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:>w$}")).collect();
            println!("{}", cells.join("  "));
        }
    }
}
