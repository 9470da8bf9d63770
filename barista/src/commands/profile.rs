//! `barista profile MODEL.onnx`: latency and throughput by workers and batch, for the planner and for people.

use crate::failure::{Failure, Outcome};
use crate::output;
use anyhow::Context as _;
use executor::backend::cuda;
use executor::profile::{self, Options};
use schemas::profile::{LatencyDistribution, Profile};
use std::path::PathBuf;

/// Measures a model.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// ONNX file.
    model: PathBuf,
    /// Backend.
    #[arg(long, default_value = "tract", value_parser = ["tract", "ort", "cuda"])]
    backend: String,
    /// Shared library of ONNX Runtime, for `--backend ort` (a build with cargo feature `ort`).
    #[arg(long)]
    onnxruntime: Option<PathBuf>,
    /// For `--backend cuda` on a machine without a device: estimate for this one from its data sheet.
    #[arg(long, value_parser = ["T4", "L4", "A100", "H100"])]
    device: Option<String>,
    /// Numbers of workers.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    cores: Vec<u32>,
    /// Batch sizes.
    #[arg(long, value_delimiter = ',', default_value = "1,4,16")]
    batch: Vec<u32>,
    /// File to write for `[[service]] profile = …`.
    #[arg(long)]
    out: Option<PathBuf>,
    /// For a program.
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub async fn run(args: Args) -> Outcome {
    if !args.model.is_file() {
        return Err(Failure::Usage(format!("{}: no such file", args.model.display())));
    }
    if let Some(device) = &args.device {
        return estimate(&args, device);
    }
    let backends = executor::backend::Backends::available(args.onnxruntime.as_deref());
    let backend = backends.get(&args.backend).ok_or_else(|| {
        let hint = match args.backend.as_str() {
            "ort" => "; it needs a build with `--features ort` and `--onnxruntime libonnxruntime.so`",
            "cuda" => "; `--device T4` (or L4, A100, H100) estimates from a data sheet",
            _ => "",
        };
        Failure::Usage(format!("--backend {}: {}{hint}", args.backend, backends.why_not(&args.backend)))
    })?;
    if args.backend == "cuda" && !args.json {
        let max_batch = args.batch.iter().max().copied().unwrap_or(1);
        output::print(&plans(&args.model, max_batch)?)?;
    }
    let (model, workers, batches) = (args.model.clone(), args.cores.clone(), args.batch.clone());
    let measured = tokio::task::spawn_blocking(move || {
        measure(&model, backend.as_ref(), &Options { workers, batches, ..Options::default() })
    })
    .await??;
    write(&args, &measured)?;
    if args.json { output::print_json(&measured) } else { output::print(&render(&measured)) }
}

/// What the model becomes on a device: one plan a batch size.
fn plans(model: &std::path::Path, max_batch: u32) -> Outcome<String> {
    let options = executor::backend::LoadOptions { max_batch: max_batch.max(1) as usize };
    let lowered = cuda::lower_file(model, &options, cuda::Layout::default()).map_err(anyhow::Error::from)?;
    Ok(lowered.plans.iter().map(|plan| format!("{plan}\n")).collect())
}

/// A profile that nobody measured, marked so.
fn estimate(args: &Args, device: &str) -> Outcome {
    if args.backend != "cuda" {
        return Err(Failure::Usage(format!("--device {device}: only for --backend cuda")));
    }
    let figures = cuda::roofline::DEVICES.iter().find(|d| d.name == device);
    let figures = figures.ok_or_else(|| Failure::Usage(format!("--device {device}: no figures of it")))?;
    let max_batch = args.batch.iter().max().copied().unwrap_or(1);
    let (profile, lowered) = profile::estimate(&args.model, figures, max_batch).map_err(anyhow::Error::from)?;
    write(args, &profile)?;
    if args.json {
        return output::print_json(&profile);
    }
    let plans: String = lowered.plans.iter().map(|plan| format!("{plan}\n")).collect();
    output::print(&(plans + &render(&profile)))
}

fn write(args: &Args, profile: &Profile) -> Outcome {
    let Some(out) = &args.out else { return Ok(()) };
    let text = serde_json::to_string_pretty(profile)?;
    std::fs::write(out, text + "\n").with_context(|| format!("cannot write {}", out.display()))?;
    Ok(())
}

/// Measures with a progress bar on a terminal's stderr.
pub fn measure(
    model: &std::path::Path,
    backend: &dyn executor::backend::Backend,
    options: &Options,
) -> anyhow::Result<Profile> {
    let total = options.workers.len() * options.batches.len();
    let bar = indicatif::ProgressBar::new(total as u64).with_message(format!("measuring {}", model.display()));
    if let Ok(style) = indicatif::ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}") {
        bar.set_style(style);
    }
    let profile = profile::measure(model, backend, options, &mut |progress| bar.set_position(progress.done as u64));
    bar.finish_and_clear();
    profile.with_context(|| format!("cannot profile {}", model.display()))
}

fn render(profile: &Profile) -> String {
    let estimated = if profile.estimated { "ESTIMATED, nothing was measured: " } else { "" };
    let head = format!(
        "{estimated}{} on {} ({})\nload {:.1} ms, memory {:.1} MiB, sha256 {}\n\n",
        profile.model, profile.host, profile.backend, profile.load_ms, profile.memory_mib, profile.sha256
    );
    let rows = profile
        .points
        .iter()
        .map(|p| {
            let described = profile.distributions.iter().find(|d| (d.workers, d.batch) == (p.workers, p.batch));
            let told = |tell: fn(&LatencyDistribution) -> String| described.map_or_else(|| "–".to_owned(), tell);
            vec![
                p.workers.to_string(),
                p.batch.to_string(),
                format!("{:.3}", p.p50_ms),
                format!("{:.3}", p.p95_ms),
                format!("{:.3}", p.p99_ms),
                format!("{:.0}", p.rps),
                told(|d| format!("{:.3} to {:.3}", d.p95_interval_ms[0], d.p95_interval_ms[1])),
                told(|d| format!("{:.3} ({})", d.planned_p95_ms, d.planned_by)),
            ]
        })
        .collect();
    let names =
        ["workers", "batch", "p50 ms", "p95 ms", "p99 ms", "requests/s", "p95 within (95 %)", "fitted p95 (by)"];
    head + &output::table(&names, rows) + "\n"
}
