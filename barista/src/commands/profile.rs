//! `barista profile MODEL.onnx`: latency and throughput by workers and batch, for the planner and for people.

use crate::failure::{Failure, Outcome};
use crate::output;
use anyhow::Context as _;
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
    if args.backend == "cuda" {
        return Err(Failure::Usage(
            "--backend cuda: not offered yet, see docs/cuda.md for what is there; use tract".to_owned(),
        ));
    }
    if !args.model.is_file() {
        return Err(Failure::Usage(format!("{}: no such file", args.model.display())));
    }
    let backends = executor::backend::Backends::available(args.onnxruntime.as_deref());
    let backend = backends.get(&args.backend).ok_or_else(|| {
        let hint = match args.backend.as_str() {
            "ort" => "; it needs a build with `--features ort` and `--onnxruntime libonnxruntime.so`",
            _ => "",
        };
        Failure::Usage(format!("--backend {}: not here, this has {}{hint}", args.backend, backends.names().join(", ")))
    })?;
    let (model, workers, batches) = (args.model.clone(), args.cores, args.batch);
    let measured = tokio::task::spawn_blocking(move || {
        measure(&model, backend.as_ref(), &Options { workers, batches, ..Options::default() })
    })
    .await??;
    if let Some(out) = &args.out {
        let text = serde_json::to_string_pretty(&measured)?;
        std::fs::write(out, text + "\n").with_context(|| format!("cannot write {}", out.display()))?;
    }
    if args.json { output::print_json(&measured) } else { output::print(&render(&measured)) }
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
    let head = format!(
        "{} on {} ({})\nload {:.1} ms, memory {:.1} MiB, sha256 {}\n\n",
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
