//! Roles of one process: embedded brokers, bus, services, admin address, in that order; stopped in one go.

use crate::config::Config;
use crate::dashboard;
use crate::embedded::{self, Port};
use crate::failure::{Outcome, usage};
use anyhow::Context as _;
use runtime::kafka::KafkaBus;
use runtime::supervisor::Supervisor;
use runtime::{Bus, Context, Readiness, SystemClock, admin, metrics};
use schemas::Topics;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a starting process waits for its broker.
const BROKER_WAIT: Duration = Duration::from_secs(60);

/// How long a process that ends waits for its consumers to leave their groups.
const LEAVE_WAIT: Duration = Duration::from_secs(1);

/// Backend of a model that is loaded through a gateway while its configuration leaves the choice open.
const DEFAULT_BACKEND: &str = "tract";

/// What a process can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Role {
    /// MQTT into Kafka.
    Ingest,
    /// Windows, features, observed workload.
    Aggregate,
    /// Forecasts.
    Forecaster,
    /// Plans.
    Planner,
    /// Predictions on this node.
    Executor,
    /// Open Inference Protocol.
    Gateway,
    /// The page.
    Dashboard,
}

impl Role {
    /// Roles of `barista up` without `--roles`: all that this version has.
    pub const ALL: [Role; 7] = [
        Role::Ingest,
        Role::Aggregate,
        Role::Forecaster,
        Role::Planner,
        Role::Executor,
        Role::Gateway,
        Role::Dashboard,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Role::Ingest => "ingest",
            Role::Aggregate => "aggregate",
            Role::Forecaster => "forecaster",
            Role::Planner => "planner",
            Role::Executor => "executor",
            Role::Gateway => "gateway",
            Role::Dashboard => "dashboard",
        }
    }
}

/// A process that is being set up.
pub struct Process {
    /// The configuration, `embedded` already replaced by addresses.
    pub config: Config,
    /// What services get.
    pub context: Context,
    /// The dashboard's figures.
    pub dashboard: dashboard::Handle,
    /// How the local provider starts a node: program, first arguments, environment.
    pub node_command: NodeCommand,
    /// Ingest's counts, once it was started here.
    pub ingest: Option<ingest::Metrics>,
    /// The executor that was started here, for a gateway.
    door: Option<executor::direct::Door>,
    /// The gateway that was started here: the executor ends after it.
    gateway: Arc<OnceLock<CancellationToken>>,
    supervisor: Supervisor,
    /// Kept until everything else has stopped.
    broker: Option<broker::Broker>,
}

/// How the local provider starts a node.
#[derive(Debug, Clone, Default)]
pub struct NodeCommand {
    /// Configuration file of the nodes; absent: defaults.
    pub config_file: Option<PathBuf>,
    /// Folder for the nodes' logs.
    pub log_dir: PathBuf,
}

/// Which brokers a process may start itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Brokers {
    /// Start what the configuration calls embedded, at its port.
    Start,
    /// As `Start`, but take any port when the usual one is in use.
    StartAnywhere,
    /// Use what another process serves.
    Connect,
}

impl Process {
    /// Starts embedded brokers, connects, creates missing topics.
    pub async fn prepare(
        mut config: Config,
        data_dir: Option<PathBuf>,
        brokers: Brokers,
        node_config: Option<PathBuf>,
    ) -> Outcome<Self> {
        let data_dir = data_dir.or_else(|| config.embedded.data_dir.clone()).map_or_else(default_data_dir, Ok)?;
        let broker = start_brokers(&mut config, &data_dir, brokers).await?;
        let bus = KafkaBus::connect(&config.kafka)?;
        bus.probe(BROKER_WAIT).await?;
        bus.create_topics(&Topics::all(config.service.iter().map(|s| s.name.as_str()))).await?;
        let context = Context {
            bus: Arc::new(bus),
            clock: Arc::new(SystemClock),
            registry: metrics::new_registry(),
            readiness: Readiness::default(),
        };
        let deadline = config.telemetry.shutdown_deadline.get();
        Ok(Process {
            node_command: NodeCommand { config_file: node_config, log_dir: data_dir.join("nodes") },
            context,
            dashboard: dashboard::Handle::default(),
            ingest: None,
            door: None,
            gateway: Arc::default(),
            supervisor: Supervisor::new(CancellationToken::new(), deadline),
            config,
            broker,
        })
    }

    /// The token that ends the process.
    pub fn token(&self) -> CancellationToken {
        self.supervisor.token()
    }

    /// Adds a task of the caller.
    pub fn spawn<E: Into<anyhow::Error>>(
        &mut self,
        name: &str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        self.supervisor.spawn(name, task);
    }

    /// Starts a role.
    pub fn start(&mut self, role: Role) -> Outcome {
        let (config, context, token) = (self.config.clone(), self.context.clone(), self.token());
        self.context.readiness.set(role.name(), false, "starting");
        match role {
            Role::Ingest => {
                let config = ingest::config::Config { mqtt: config.mqtt, ingest: config.ingest };
                let metrics = ingest::Metrics::register(&context.registry);
                self.ingest = Some(metrics.clone());
                self.spawn("ingest", ingest::run_with_metrics(config, context, metrics, token));
            }
            Role::Aggregate => {
                let mut aggregate = config.aggregate;
                aggregate.services = self.config.service_names();
                self.spawn("aggregate", on_own_thread(move || aggregate::run(aggregate, context, token)));
            }
            Role::Forecaster => self.spawn("forecaster", forecaster::run(config.forecaster, context, token)),
            Role::Planner => self.start_planner(context, token)?,
            Role::Executor => self.start_executor(context, token),
            Role::Gateway => self.start_gateway(context, token),
            Role::Dashboard => {
                self.spawn("dashboard", dashboard::run(config.dashboard, context, self.dashboard.clone(), token));
            }
        }
        Ok(())
    }

    /// The executor ends when the process does, but after the gateway whose requests it serves.
    fn start_executor(&mut self, context: Context, token: CancellationToken) {
        let door = executor::direct::Door::new();
        self.door = Some(door.clone());
        let (config, gateway, stop) = (self.config.executor.clone(), self.gateway.clone(), CancellationToken::new());
        let told = stop.clone();
        let backends = executor::backend::Backends::available(config.onnxruntime.as_deref());
        let life = executor::run_behind(door, config, context, stop, backends);
        let order = async move {
            token.cancelled().await;
            if let Some(ended) = gateway.get() {
                ended.cancelled().await;
            }
            told.cancel();
            std::future::pending::<()>().await;
        };
        self.spawn("executor", async move {
            tokio::select! {
                outcome = life => outcome,
                () = order => Ok(()),
            }
        });
    }

    fn start_gateway(&mut self, context: Context, token: CancellationToken) {
        let served = |s: &planner::config::ServiceConfig| executor::gateway::Served {
            name: s.name.clone(),
            model: s.model.clone(),
            version: s.version.clone(),
            backend: s.backend.clone(),
            slo_ms: s.slo_p95_ms,
        };
        let served = self.config.service.iter().map(served).collect();
        let node = self.door.clone().map(|door| executor::gateway::Node {
            door,
            max_rows: self.config.executor.max_rows,
            backend: DEFAULT_BACKEND.to_owned(),
        });
        let ended = self.gateway.get_or_init(CancellationToken::new).clone();
        let config = self.config.gateway.clone();
        self.spawn("gateway", async move {
            let _ended = ended.drop_guard();
            executor::gateway::run(config, served, node, context, token).await
        });
    }

    fn start_planner(&mut self, context: Context, token: CancellationToken) -> Outcome {
        let config = planner::Config {
            planner: self.config.planner.clone(),
            provider: self.config.provider.clone(),
            service: self.config.service.clone(),
            flavor: self.config.flavor.clone(),
        };
        let local = self.local_nodes()?;
        self.spawn("planner", planner::run(config, local, context, token));
        Ok(())
    }

    /// Nodes of the local provider: this binary as `executor`, told where the brokers are.
    fn local_nodes(&self) -> Outcome<planner::provider::LocalSpec> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut args_prefix = vec!["executor".to_owned(), "--attached".to_owned()];
        if let Some(file) = &self.node_command.config_file {
            args_prefix.extend(["-c".to_owned(), file.display().to_string()]);
        }
        let env = [
            ("BARISTA_KAFKA__BROKERS".to_owned(), self.config.kafka.brokers.clone()),
            ("BARISTA_TELEMETRY__ADDRESS".to_owned(), "127.0.0.1:0".to_owned()),
        ];
        Ok(planner::provider::LocalSpec {
            program,
            args_prefix,
            env: env.into_iter().collect(),
            log_dir: self.node_command.log_dir.clone(),
            grace: self.config.planner.stop_grace.get(),
        })
    }

    /// Runs until a signal, a failure, or the token; then stops everything in order.
    pub async fn run(mut self) -> Outcome {
        let token = self.token();
        let admin = admin::Admin { registry: self.context.registry.clone(), readiness: self.context.readiness.clone() };
        let listener = admin::bind(self.config.telemetry.address).await?;
        tracing::info!(address = %listener.local_addr()?, "admin: /metrics /healthz /readyz");
        self.supervisor.spawn("admin", admin::serve(listener, admin::router(admin), token.clone()));
        let signal = token.clone();
        self.supervisor.spawn("signals", async move {
            tokio::select! {
                result = runtime::supervisor::signalled() => {
                    signal.cancel();
                    result
                }
                () = signal.cancelled() => Ok(()),
            }
        });
        let outcome = self.supervisor.run().await;
        let flushed = self.context.bus.sink().flush(Duration::from_secs(2)).await;
        if let Err(error) = flushed {
            tracing::warn!(%error, "some records were not delivered before the end");
        }
        if !self.context.bus.close(LEAVE_WAIT).await {
            tracing::warn!(
                "some consumers had no time to leave their groups; they are missed after the session time-out"
            );
        }
        if let Some(broker) = self.broker.take() {
            broker.shutdown().await;
        }
        Ok(outcome?)
    }
}

/// Runs a service whose future stays on one thread (DataFusion's group tables are not `Sync`), which also keeps its
/// computations off the threads that serve sockets.
async fn on_own_thread<F, E>(service: impl FnOnce() -> F + Send + 'static) -> anyhow::Result<()>
where
    F: Future<Output = Result<(), E>>,
    E: Into<anyhow::Error> + Send + 'static,
{
    let handle = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || handle.block_on(service())).await?.map_err(Into::into)
}

async fn start_brokers(
    config: &mut Config,
    data_dir: &std::path::Path,
    brokers: Brokers,
) -> Outcome<Option<broker::Broker>> {
    let port = |port: u16| if brokers == Brokers::StartAnywhere { Port::Prefer(port) } else { Port::Exactly(port) };
    let mut started = None;
    if config.kafka.is_embedded() {
        config.kafka.brokers = format!("127.0.0.1:{}", config.embedded.kafka_port);
        if brokers != Brokers::Connect {
            let broker = embedded::start_kafka(data_dir, port(config.embedded.kafka_port)).await?;
            config.kafka.brokers = broker.bootstrap();
            started = Some(broker);
        }
    }
    if config.mqtt.broker == "embedded" {
        config.mqtt.broker = format!("mqtt://127.0.0.1:{}", config.embedded.mqtt_port);
        if brokers != Brokers::Connect {
            let address = embedded::start_mqtt(port(config.embedded.mqtt_port)).await?;
            config.mqtt.broker = format!("mqtt://{address}");
        }
    }
    Ok(started)
}

fn default_data_dir() -> Outcome<PathBuf> {
    match directories::ProjectDirs::from("", "", "barista") {
        Some(dirs) => Ok(dirs.data_local_dir().to_owned()),
        None => usage("this account has no home folder; give --data-dir"),
    }
}

/// Roles named on the command line, in the order in which they start.
pub fn ordered(roles: &[Role]) -> BTreeSet<Role> {
    if roles.is_empty() { Role::ALL.into() } else { roles.iter().copied().collect() }
}
