//! `barista up` and the one-role commands.

use super::Source;
use crate::failure::{Failure, Outcome};
use crate::roles::{Brokers, Process, Role, ordered};
use runtime::trace;
use std::io::Read;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Roles of a configuration in one process.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    source: Source,
    /// Which roles; all when not given.
    #[arg(long, value_delimiter = ',', value_enum)]
    roles: Vec<Role>,
    /// Folder for the embedded broker's data.
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

/// One role.
#[derive(Debug, clap::Args)]
pub struct RoleArgs {
    #[command(flatten)]
    source: Source,
}

/// A node.
#[derive(Debug, clap::Args)]
pub struct ExecutorArgs {
    #[command(flatten)]
    source: Source,
    /// Node id.
    #[arg(long)]
    node: Option<String>,
    /// Flavor of this node.
    #[arg(long)]
    flavor: Option<String>,
    /// Worker permits.
    #[arg(long)]
    cores: Option<u32>,
    /// Simulated boot time, milliseconds.
    #[arg(long)]
    boot_ms: Option<u64>,
    /// Ends when stdin closes: how a local node follows its planner, even one that was killed.
    #[arg(long)]
    attached: bool,
    /// Serves the Open Inference Protocol, straight into this node's queues ([gateway]).
    #[arg(long)]
    gateway: bool,
}

/// Runs `barista up`.
pub async fn run(args: Args, log: trace::Options) -> Outcome {
    let config = args.source.load()?;
    let guard = init(&config, log)?;
    let roles = ordered(&args.roles);
    let mut process = Process::prepare(config, args.data_dir, Brokers::Start, args.source.file.clone()).await?;
    for role in roles {
        process.start(role)?;
    }
    let outcome = process.run().await;
    guard.shutdown();
    outcome
}

/// Runs one role against brokers that something else serves.
pub async fn run_role(role: Role, args: RoleArgs, log: trace::Options) -> Outcome {
    let config = args.source.load()?;
    let guard = init(&config, log)?;
    let mut process = Process::prepare(config, None, Brokers::Connect, args.source.file.clone()).await?;
    process.start(role)?;
    let outcome = process.run().await;
    guard.shutdown();
    outcome
}

/// Runs a node.
pub async fn run_executor(args: ExecutorArgs, log: trace::Options) -> Outcome {
    let mut config = args.source.load()?;
    let executor = &mut config.executor;
    executor.node = args.node.unwrap_or_else(|| std::mem::take(&mut executor.node));
    executor.flavor = args.flavor.unwrap_or_else(|| std::mem::take(&mut executor.flavor));
    executor.cores = args.cores.unwrap_or(executor.cores);
    executor.boot_ms = args.boot_ms.unwrap_or(executor.boot_ms);
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Failure::Usage(runtime::config::Problems(problems).to_string()));
    }
    let guard = init(&config, log)?;
    let mut process = Process::prepare(config, None, Brokers::Connect, None).await?;
    if args.attached {
        end_with_stdin(process.token())?;
    }
    process.start(Role::Executor)?;
    if args.gateway {
        process.start(Role::Gateway)?;
    }
    let outcome = process.run().await;
    guard.shutdown();
    outcome
}

/// Cancels the token when stdin closes. A thread, since a blocking read cannot be cancelled; it ends with the process.
fn end_with_stdin(token: CancellationToken) -> Outcome {
    std::thread::Builder::new().name("stdin".to_owned()).spawn(move || {
        let mut rest = [0u8; 64];
        while std::io::stdin().read(&mut rest).is_ok_and(|n| n > 0) {}
        token.cancel();
    })?;
    Ok(())
}

fn init(config: &crate::config::Config, log: trace::Options) -> Outcome<trace::Guard> {
    let telemetry = &config.telemetry;
    let options =
        trace::Options { format: telemetry.log_format, otlp_endpoint: telemetry.otlp_endpoint.clone(), ..log };
    trace::init(&options).map_err(|e| Failure::Usage(e.to_string()))
}
