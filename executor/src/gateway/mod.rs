//! The gateway: the Open Inference Protocol v2 over HTTP and gRPC.
//!
//! Purpose: clients that know the protocol (`tritonclient`, KServe's, curl) ask the services without knowing Kafka.
//! A request takes one of two ways: *direct* into the queues of the executor in the same process, answered on the
//! connection and outside Kafka's guarantee; or *over Kafka*, with its guarantee and its latency. [`Mode`] says which,
//! or leaves it to where the model is.
//!
//! Pure: [`message`], `grpc_codec`, `failure`. Shells: `http`, `grpc` (the protocols), `server` (sockets), `direct`,
//! `kafka` and `hybrid` (the ways). `core` holds what both protocols share.
//!
//! Invariants:
//! - A request is validated in one place, the node's, however it came: `message` says how both protocols become what a
//!   record of the request topic holds.
//! - Bounded: connections, requests in flight, the bytes of their bodies, their time. What goes beyond is told so.
//! - At the end readiness says no first, then no connection is accepted, then what runs is finished.
//!
//! Left out: shared memory, tracing and logging settings of Triton (501); which models there are (`[[service]]`).

mod body;
pub mod config;
mod core;
mod direct;
mod failure;
mod grpc;
mod grpc_codec;
mod http;
mod hybrid;
mod kafka;
mod message;
mod metrics;
mod path;
mod server;
mod server_metadata;

/// Messages of the gRPC protocol, generated from `proto/open_inference.proto`; for clients in tests, too.
#[allow(missing_docs, unused_qualifications, clippy::all, reason = "generated; the comments are in the .proto file")]
pub mod proto {
    tonic::include_proto!("inference");
}

pub use config::{Config, Mode};
pub use path::Served;

use self::core::{Gateway, Protocol};
use self::direct::Direct;
use self::hybrid::Hybrid;
use self::kafka::OverKafka;
use self::metrics::Metrics;
use self::path::Path;
use self::server::Serving;
use crate::direct::Door;
use crate::error::Error;
use runtime::{Context, PortError};
use std::convert::Infallible;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// How often readiness is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// The executor in the same process.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its door.
    pub door: Door,
    /// Rows of a request, as `executor.max_rows` says.
    pub max_rows: u32,
    /// Backend of models whose configuration says `auto`.
    pub backend: String,
}

/// Listeners that are bound, so that their ports are known before anything runs.
#[derive(Debug)]
pub struct Bound {
    http: TcpListener,
    grpc: TcpListener,
}

impl Bound {
    /// Binds both addresses.
    pub async fn to(config: &Config) -> Result<Self, Error> {
        Ok(Bound { http: bind("http", config.http).await?, grpc: bind("grpc", config.grpc).await? })
    }

    /// Address of the HTTP protocol.
    pub fn http(&self) -> std::io::Result<SocketAddr> {
        self.http.local_addr()
    }

    /// Address of the gRPC protocol.
    pub fn grpc(&self) -> std::io::Result<SocketAddr> {
        self.grpc.local_addr()
    }
}

async fn bind(key: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    let unusable = |e: std::io::Error| {
        Error::Config(vec![format!(
            "gateway.{key}: cannot listen on {address}: {e}; choose another address, or port 0 for any free one"
        )])
    };
    TcpListener::bind(address).await.map_err(unusable)
}

/// Binds and serves until the token is cancelled, then ends in order.
pub async fn run(
    config: Config,
    served: Vec<Served>,
    node: Option<Node>,
    context: Context,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let bound = Bound::to(&config).await?;
    run_on(bound, config, served, node, context, shutdown).await
}

/// As [`run`], on listeners that are bound.
pub async fn run_on(
    bound: Bound,
    config: Config,
    served: Vec<Served>,
    node: Option<Node>,
    context: Context,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let problems = config.problems();
    if !problems.is_empty() {
        return Err(Error::Config(problems));
    }
    if config.exposes_tokens() {
        tracing::warn!("gateway.tokens without gateway.tls: tokens cross the network in plain text");
    }
    let tls = |protocols: &[&[u8]]| match &config.tls {
        None => Ok(None),
        Some(tls) => server::tls_acceptor(tls, protocols).map(Some).map_err(|problem| Error::Config(vec![problem])),
    };
    let (http_tls, grpc_tls) = (tls(&[b"h2", b"http/1.1"])?, tls(&[b"h2"])?);
    let (path, over_kafka) = choose_path(config.mode, node, &served, &context)?;
    let metrics = Metrics::register(&context.registry);
    tracing::info!(http = ?bound.http().ok(), grpc = ?bound.grpc().ok(), path = path.name(), tls = config.tls.is_some(), "gateway");
    let names: Vec<String> = served.iter().map(|s| s.name.clone()).collect();
    let gateway = Gateway::new(config, served, path, metrics, context.clock.clone());
    let stop = gateway.stop.clone();
    let listeners = async {
        tokio::join!(
            serve_http(bound.http, gateway.clone(), http_tls, stop.clone()),
            serve_grpc(bound.grpc, gateway.clone(), grpc_tls, stop.clone()),
        )
    };
    tokio::select! {
        _ = async { tokio::join!(conduct(&gateway, &context, &shutdown), listeners) } => Ok(()),
        // Read until the last request has its answer; it ends by itself only when it cannot go on.
        Err(error) = read_answers(over_kafka.as_deref(), &names) => {
            Err(Error::port("reading the answers to a gateway's requests", error))
        }
    }
}

/// Tells readiness, and at shutdown ends things in order.
async fn conduct(gateway: &Gateway, context: &Context, shutdown: &CancellationToken) {
    let tell = |why_not: Option<String>| {
        let detail = why_not.clone().unwrap_or_else(|| format!("requests go {}", gateway.path.name()));
        context.readiness.set("gateway", why_not.is_none(), detail);
    };
    let mut looks = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = looks.tick() => tell(gateway.not_ready()),
        }
    }
    gateway.drain();
    tell(gateway.not_ready());
    tokio::time::sleep(gateway.config.drain_delay.get()).await;
    gateway.stop.cancel();
}

async fn read_answers(path: Option<&OverKafka>, services: &[String]) -> Result<(), PortError> {
    match path {
        Some(path) => path.read(services).await,
        None => std::future::pending().await,
    }
}

type Chosen = (Arc<dyn Path>, Option<Arc<OverKafka>>);

fn choose_path(mode: Mode, node: Option<Node>, served: &[Served], context: &Context) -> Result<Chosen, Error> {
    let direct = node.map(|node| Direct {
        door: node.door,
        clock: context.clock.clone(),
        max_rows: node.max_rows,
        services: served.to_vec(),
        backend: node.backend,
    });
    // Differs from process to process: the standard library seeds its hasher from the system.
    let prefix = RandomState::new().build_hasher().finish();
    let kafka = || OverKafka::new(context.bus.clone(), context.clock.clone(), prefix);
    match (mode, direct) {
        (Mode::Direct, Some(direct)) => Ok((Arc::new(direct), None)),
        (Mode::Direct, None) => Err(Error::Config(vec![
            "gateway.mode: `direct` needs an executor in the same process (`barista up --roles executor,gateway`, or \
             `barista executor --gateway`); without one use `auto` or `kafka`"
                .to_owned(),
        ])),
        (Mode::Auto, Some(direct)) => {
            let kafka = kafka();
            Ok((Arc::new(Hybrid { direct, kafka: kafka.clone() }), Some(kafka)))
        }
        (Mode::Kafka, _) | (Mode::Auto, None) => {
            let kafka = kafka();
            Ok((kafka.clone(), Some(kafka)))
        }
    }
}

fn serving(gateway: &Gateway, protocol: Protocol, tls: Option<TlsAcceptor>) -> Serving {
    Serving {
        label: protocol.label(),
        tls,
        max_connections: gateway.config.max_connections,
        connections: gateway.metrics.connections.clone(),
        patience: gateway.config.timeout.get(),
    }
}

async fn serve_http(listener: TcpListener, gateway: Arc<Gateway>, tls: Option<TlsAcceptor>, stop: CancellationToken) {
    let serving = serving(&gateway, Protocol::Http, tls);
    let router = http::router(gateway);
    let handler = move |request| {
        let mut router = router.clone();
        async move {
            let answered: Result<_, Infallible> = router.call(request).await;
            answered.unwrap_or_else(|never| match never {})
        }
    };
    server::serve(listener, serving, handler, stop).await;
}

async fn serve_grpc(listener: TcpListener, gateway: Arc<Gateway>, tls: Option<TlsAcceptor>, stop: CancellationToken) {
    let serving = serving(&gateway, Protocol::Grpc, tls);
    let outer = grpc::Outer::new(gateway);
    server::serve(listener, serving, move |request| outer.clone().serve(request), stop).await;
}
