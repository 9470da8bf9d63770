//! `barista score`: a Parquet file or a topic through a model, on cores that nothing else needs.

use super::Source;
use crate::failure::{Failure, Outcome, usage};
use crate::output;
use crate::score::mapping::MapOption;
use crate::score::rows::Input;
use crate::score::{self, Job};
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Scores rows in the background. Run the same command again after it was stopped: it goes on where it was.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Prediction service.
    #[arg(long)]
    service: String,
    /// `FILE.parquet`, or `topic:NAME` for a topic of inference requests (its records until now).
    #[arg(long)]
    input: Input,
    /// File of JSON lines, one a row of the input, in its order.
    #[arg(long)]
    output: PathBuf,
    /// Columns of an input of the model, where names do not tell: `INPUT=COLUMN,COLUMN…`; may be given again.
    #[arg(long, value_name = "INPUT=COLUMNS")]
    map: Vec<MapOption>,
    /// Model version; without, whichever serves.
    #[arg(long)]
    model_version: Option<String>,
    /// Rows on their way at once.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    in_flight: u32,
    /// For a program.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    source: Source,
}

/// Runs it.
pub async fn run(args: Args) -> Outcome {
    let config = args.source.load()?;
    if !config.service.is_empty() && config.service.iter().all(|s| s.name != args.service) {
        let names: Vec<&str> = config.service.iter().map(|s| s.name.as_str()).collect();
        return usage(format!("--service {}: the configuration has {}", args.service, names.join(", ")));
    }
    if matches!(&args.input, Input::Topic(_)) && !args.map.is_empty() {
        return usage("--map: only for a file; the records of a topic are requests already");
    }
    if let Input::Parquet(path) = &args.input
        && !path.is_file()
    {
        return usage(format!("--input {}: no such file", path.display()));
    }
    let bus = args.source.bus(&config).await?;
    let stop = CancellationToken::new();
    let signal = stop.clone();
    tokio::spawn(async move {
        if runtime::supervisor::signalled().await.is_ok() {
            signal.cancel();
        }
    });
    let job = Job {
        service: args.service,
        input: args.input,
        output: args.output,
        in_flight: args.in_flight as usize,
        map: args.map,
        model_version: args.model_version,
    };
    let bar = indicatif::ProgressBar::no_length().with_message(format!("scoring with {}", job.service));
    if let Ok(style) = indicatif::ProgressStyle::with_template("{msg} {bar:30} {pos}/{len} rows, {per_sec}") {
        bar.set_style(style);
    }
    let summary = score::run(&job, &bus, &stop, |progress| {
        if let Some(rows) = progress.of {
            bar.set_length(rows);
        }
        bar.set_position(progress.rows);
    })
    .await?;
    bar.finish_and_clear();
    if args.json {
        output::print_json(&summary)?;
    } else {
        output::print_line(&format!(
            "{} rows in {}: {} scored, {} rejected; {} in this run, {:.0} a second",
            summary.rows,
            summary.output,
            summary.scored,
            summary.rejected,
            summary.rows - summary.resumed_rows,
            summary.rows_per_s
        ))?;
    }
    if summary.complete {
        return Ok(());
    }
    Err(Failure::Failed(anyhow::anyhow!("stopped before the end of the input; the same command goes on from here")))
}
