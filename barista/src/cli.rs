//! The command line.

use crate::commands::*;
use crate::failure::{Failure, Outcome};
use clap::{Parser, Subcommand};
use runtime::trace;
use std::process::ExitCode;

/// Keeps deep-learning prediction services inside their latency promise at the lowest cost, by forecasting the load
/// before it comes.
#[derive(Debug, Parser)]
#[command(name = "barista", version, max_term_width = 110, after_help = "Start with: barista demo --for 60s")]
struct Cli {
    /// Filter of log lines, such as `info`, `warn,ingest=debug`.
    #[arg(
        long,
        global = true,
        env = "BARISTA_LOG",
        default_value = "warn,barista=info,rumqttd=off,rdkafka=off,librdkafka=off",
        hide_env_values = true
    )]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Everything here: embedded brokers, a simulated city, every role, a dashboard on 127.0.0.1:8080.
    #[command(after_help = "Example: barista demo --for 90s --report out.json")]
    Demo(demo::Args),
    /// Runs roles of a configuration in one process.
    #[command(after_help = "Example: barista up -c barista.toml --roles ingest,aggregate")]
    Up(up::Args),
    /// Carries telemetry from MQTT into Kafka.
    #[command(after_help = "Example: barista ingest -c barista.toml")]
    Ingest(up::RoleArgs),
    /// Turns streams into windows, features and observed workload.
    #[command(after_help = "Example: barista aggregate -c barista.toml")]
    Aggregate(up::RoleArgs),
    /// Forecasts the request rate of every service.
    #[command(after_help = "Example: barista forecaster -c barista.toml")]
    Forecaster(up::RoleArgs),
    /// Decides fleet and allocation and publishes them.
    #[command(after_help = "Example: barista planner -c barista.toml")]
    Planner(up::RoleArgs),
    /// Serves predictions on this node.
    #[command(after_help = "Example: barista executor -c barista.toml --node edge-1 --cores 4")]
    Executor(up::ExecutorArgs),
    /// Open Inference Protocol over HTTP and gRPC; requests go over Kafka (`executor --gateway`: straight into the node).
    #[command(after_help = "Example: barista gateway -c barista.toml")]
    Gateway(up::RoleArgs),
    /// The dashboard page.
    #[command(after_help = "Example: barista dashboard -c barista.toml")]
    Dashboard(up::RoleArgs),
    /// Publishes recorded HFP lines to an MQTT broker, as devices would.
    #[command(after_help = "Example: barista replay hfp.txt --mqtt mqtt://127.0.0.1:1883 --rate 10x")]
    Replay(replay::Args),
    /// A synthetic fleet that publishes valid HFP v2.
    #[command(after_help = "Example: barista city --vehicles 200 --mqtt mqtt://127.0.0.1:1883 --seed 7")]
    City(city::Args),
    /// Measures a model: latency and throughput by workers and batch.
    #[command(after_help = "Example: barista profile models/delay.onnx --cores 1,2 --batch 1,4,16 --out profile.json")]
    Profile(profile::Args),
    /// Scores the forecaster on a `timestamp,value` file.
    #[command(after_help = "Example: barista backtest load.csv --horizon 1,2,6,12")]
    Backtest(backtest::Args),
    /// Policies side by side on a trace: cost, attainment, latency, cold starts, beside a bound.
    #[command(
        after_help = "Example: barista simulate sim/scenarios/flash-crowds.toml --policy ours,hpa-60 --html report.html"
    )]
    Simulate(simulate::Args),
    /// One planning decision with its reasons.
    #[command(after_help = "Example: barista plan --explain inputs.json --json")]
    Plan(plan::Args),
    /// Creates, lists and describes topics.
    #[command(subcommand, after_help = "Example: barista topics list -c barista.toml")]
    Topics(topics::Command),
    /// Follows a topic, one JSON object a record.
    #[command(after_help = "Example: barista tail allocation.control --from beginning -n 5")]
    Tail(tail::Args),
    /// Scores a Parquet file or a topic with a service's model, on cores that nothing else needs.
    #[command(after_help = "Example: barista score --service delay --input rows.parquet --output scores.jsonl")]
    Score(score::Args),
    /// Contracts of the topics.
    #[command(subcommand, after_help = "Example: barista schema print workload.forecast")]
    Schema(schema::Command),
    /// Checks or prints the configuration.
    #[command(subcommand, after_help = "Example: barista config check -c barista.toml")]
    Config(config::Command),
    /// What this machine can do: cores, CUDA, brokers reachable, clock.
    #[command(after_help = "Example: barista doctor -c barista.toml --json")]
    Doctor(doctor::Args),
}

/// Parses, runs, and gives the exit code: 0 fine, 1 failed, 2 bad usage or configuration.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to stdout with 0, errors to stderr with 2. A closed pipe is no error.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let outcome =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::from).and_then(|tokio| {
            let outcome = tokio.block_on(run(cli));
            // Blocking calls of librdkafka that still run must not hold the process.
            tokio.shutdown_timeout(std::time::Duration::from_millis(200));
            outcome
        });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            // One line plus a hint: what failed is in the message, what to do is part of it.
            let _ = std::io::Write::write_all(&mut std::io::stderr(), format!("barista: {text}\n").as_bytes());
            ExitCode::from(failure.exit_code())
        }
    }
}

async fn run(cli: Cli) -> Outcome {
    let log = trace::Options {
        filter: cli.log,
        format: trace::LogFormat::Text,
        otlp_endpoint: None,
        service_name: "barista".to_owned(),
    };
    match cli.command {
        Command::Demo(args) => demo::run(args, log).await,
        Command::Up(args) => up::run(args, log).await,
        Command::Ingest(args) => up::run_role(crate::roles::Role::Ingest, args, log).await,
        Command::Aggregate(args) => up::run_role(crate::roles::Role::Aggregate, args, log).await,
        Command::Forecaster(args) => up::run_role(crate::roles::Role::Forecaster, args, log).await,
        Command::Planner(args) => up::run_role(crate::roles::Role::Planner, args, log).await,
        Command::Executor(args) => up::run_executor(args, log).await,
        Command::Gateway(args) => up::run_role(crate::roles::Role::Gateway, args, log).await,
        Command::Dashboard(args) => up::run_role(crate::roles::Role::Dashboard, args, log).await,
        other => {
            let guard = trace::init(&log)?;
            let outcome = run_tool(other).await;
            guard.shutdown();
            outcome
        }
    }
}

/// Commands that are no service.
async fn run_tool(command: Command) -> Outcome {
    match command {
        Command::Replay(args) => replay::run(args).await,
        Command::City(args) => city::run(args).await,
        Command::Profile(args) => profile::run(args).await,
        Command::Backtest(args) => backtest::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Topics(command) => topics::run(command).await,
        Command::Tail(args) => tail::run(args).await,
        Command::Score(args) => score::run(args).await,
        Command::Schema(command) => schema::run(command),
        Command::Config(command) => config::run(command),
        Command::Doctor(args) => doctor::run(args).await,
        _ => Err(Failure::Usage("not a tool".to_owned())),
    }
}
