//! The dashboard role: a live page for people who run Barista, with its figures as JSON and as a stream.
//!
//! Purpose: read the topics that say what happens (telemetry counted, load, forecasts, plans, heartbeats), keep the
//! last quarter of an hour in memory ([`state`], pure), and serve it ([`http`]): `/`, `/api/state`, `/api/stream`,
//! beside `/metrics`, `/healthz` and `/readyz`.
//!
//! Invariants:
//! - It only reads. Nothing it does, and no number of people who look at it, changes what the other roles do.
//! - Memory is bounded by the state's limits and by a fixed number of open streams.
//! - The page loads nothing from elsewhere.
//!
//! Left out: history beyond fifteen minutes (Prometheus keeps that), users and permissions: who reaches the address
//! sees everything, which is why it is a loopback address unless configured otherwise.

mod handle;
mod http;
mod metrics;
mod reader;
pub mod state;

pub use handle::Handle;
pub use state::{CostFigures, Snapshot, State};

use metrics::Metrics;
use runtime::{PortError, admin};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Name of the role in readiness checks.
const ROLE: &str = "dashboard";
/// How long open connections may take to end after the token is cancelled: a browser's idle connection must not hold
/// up the process.
const GRACE: Duration = Duration::from_millis(500);

/// Section `[dashboard]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the page; port 0 takes any free one.
    pub address: SocketAddr,
    /// Open the page in this machine's browser.
    pub open: bool,
}

impl Default for Config {
    fn default() -> Self {
        Config { address: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)), open: false }
    }
}

impl Config {
    /// Values that cannot work, one sentence each. The types leave none: every address and port may be tried.
    pub fn problems(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Why the dashboard ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address could not be used.
    #[error(
        "cannot listen on dashboard.address {address}: {source}; end what uses it, or set another address or port 0"
    )]
    Bind {
        /// Address of the configuration.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// A topic could not be read, for a reason that trying again does not mend.
    #[error("cannot read {topics}: {source}")]
    Read {
        /// The topics.
        topics: String,
        /// What the port says.
        source: PortError,
    },
    /// The server failed.
    #[error("http server of the dashboard: {0}")]
    Serve(std::io::Error),
    /// A part of the dashboard panicked: a bug.
    #[error("a part of the dashboard panicked: {0}")]
    Panicked(tokio::task::JoinError),
}

/// Serves the page until `shutdown` is cancelled. `handle` is how the owner of the process adds what no topic tells,
/// and learns the address; see [`Handle`].
///
/// The address is bound before anything is read, so that a taken port is known at once.
pub async fn run(
    config: Config,
    context: runtime::Context,
    handle: Handle,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let address = config.address;
    let listener = TcpListener::bind(address).await.map_err(|source| Error::Bind { address, source })?;
    let bound = listener.local_addr().map_err(Error::Serve)?;
    if !bound.ip().is_loopback() {
        tracing::warn!(address = %bound, "the dashboard has no login: who reaches this address sees everything");
    }
    let metrics = Metrics::register(&context.registry);
    handle.start(context.clock.now_ms());
    handle.set_address(bound);
    tracing::info!(url = %format!("http://{bound}/"), "dashboard is up");
    if config.open {
        open_page(bound);
    }

    let stop = shutdown.child_token();
    let mut tasks: JoinSet<Result<(), Error>> = JoinSet::new();
    for spec in reader::specs(context.bus.topics()) {
        tasks.spawn(reader::read(spec, context.clone(), handle.clone(), metrics.clone(), stop.clone()));
    }
    let page = http::Page::new(handle, &context, metrics);
    tasks.spawn(http::tick(page.clone(), stop.clone()));
    let admin = admin::Admin { registry: context.registry.clone(), readiness: context.readiness.clone() };
    let router = http::router(page, stop.clone()).merge(admin::router(admin));
    tasks.spawn(serve(listener, router, stop.clone()));
    finish(tasks, stop).await
}

/// Serves, and after cancellation waits for open connections no longer than [`GRACE`].
async fn serve(listener: TcpListener, router: axum::Router, stop: CancellationToken) -> Result<(), Error> {
    let deadline = async {
        stop.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = admin::serve(listener, router, stop.clone()) => served.map_err(Error::Serve),
        () = deadline => Ok(()),
    }
}

/// Waits for all parts; the first that ends, well or badly, ends the others, and the first error is returned.
async fn finish(mut tasks: JoinSet<Result<(), Error>>, stop: CancellationToken) -> Result<(), Error> {
    let mut outcome = Ok(());
    while let Some(joined) = tasks.join_next().await {
        stop.cancel();
        outcome = outcome.and(joined.unwrap_or_else(|panicked| Err(Error::Panicked(panicked))));
    }
    outcome
}

/// No browser is no reason to end: the address is in the log.
fn open_page(address: SocketAddr) {
    let url = format!("http://{address}/");
    if let Err(error) = open::that_detached(&url) {
        tracing::warn!(%error, url, "cannot open a browser; open the address by hand");
    }
}

#[cfg(test)]
mod tests;
