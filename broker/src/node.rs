//! The broker as the embedding program sees it: start, address, shutdown.
//!
//! It runs on threads of its own, so that blocking calls in the embedding program (and the client
//! library's are) cannot stall it. A lock file keeps a second broker out of the data folder.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::transactions::ending;
use crate::{Config, Error, FsyncPolicy, server};

/// How often abandoned transactions are looked for.
const TRANSACTION_CHECK: Duration = Duration::from_millis(250);

/// A running broker. Dropping it stops it without the final flush; [`Broker::shutdown`] is better.
#[derive(Debug)]
pub struct Broker {
    addr: SocketAddr,
    bootstrap: String,
    stop: CancellationToken,
    main: Option<JoinHandle<()>>,
    /// Taken at the end; present until then.
    runtime: Option<Runtime>,
}

impl Broker {
    /// Starts a broker: locks and recovers its data folder, then listens.
    ///
    /// # Errors
    /// When the configuration is out of range, the folder cannot be used or is in use, its metadata
    /// is damaged, or the address cannot be bound.
    pub async fn start(config: Config) -> Result<Self, Error> {
        config.validate()?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(config.worker_threads)
            .thread_name("broker")
            .enable_all()
            .build()
            .map_err(Error::Runtime)?;
        let stop = CancellationToken::new();
        let starting = runtime.spawn(launch(config, stop.clone()));
        let mut broker = Self {
            addr: SocketAddr::from(([0, 0, 0, 0], 0)),
            bootstrap: String::new(),
            stop,
            main: None,
            runtime: Some(runtime),
        };
        let launched = starting.await.map_err(|error| Error::Runtime(error.into()))??;
        broker.addr = launched.addr;
        broker.bootstrap = launched.bootstrap;
        broker.main = Some(launched.main);
        Ok(broker)
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// What to give to clients as `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.bootstrap.clone()
    }

    /// Ends all connections, forces everything to the disk and releases the data folder.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        if let Some(main) = self.main.take()
            && let Err(error) = main.await
        {
            tracing::error!(%error, "the broker ended abnormally");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not be waited for inside another one.
            runtime.shutdown_background();
        }
    }
}

struct Launched {
    addr: SocketAddr,
    bootstrap: String,
    main: JoinHandle<()>,
}

async fn launch(config: Config, stop: CancellationToken) -> Result<Launched, Error> {
    let lock = tokio::task::block_in_place(|| lock(&config.data_dir))?;
    let asked = config.listen;
    let listen = |source| Error::Listen { addr: asked, source };
    let listener = TcpListener::bind(asked).await.map_err(listen)?;
    let addr = listener.local_addr().map_err(listen)?;
    let context = tokio::task::block_in_place(|| Context::open(config, addr.port()))?;
    let bootstrap = endpoint(&context.host, context.port);
    tracing::info!(%addr, data = %context.config.data_dir.display(), "{}", crate::capabilities());
    let main = tokio::spawn(run(Arc::new(context), listener, stop, lock));
    Ok(Launched { addr, bootstrap, main })
}

fn endpoint(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn lock(dir: &Path) -> Result<File, Error> {
    fs::create_dir_all(dir).map_err(Error::io("cannot create", dir))?;
    let path = dir.join("broker.lock");
    let file = File::create(&path).map_err(Error::io("cannot create", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(Error::io("cannot lock", &path)(error)),
    }
}

/// Everything that runs, until it is stopped; then the last flush.
async fn run(context: Arc<Context>, listener: TcpListener, stop: CancellationToken, lock: File) {
    let background = [
        tokio::spawn(until(stop.clone(), timer(Arc::clone(&context)))),
        tokio::spawn(until(stop.clone(), housekeeping(Arc::clone(&context)))),
        tokio::spawn(until(stop.clone(), transactions(Arc::clone(&context)))),
        tokio::spawn(until(stop.clone(), flushing(Arc::clone(&context)))),
    ];
    server::run(Arc::clone(&context), listener, stop).await;
    for task in background {
        if let Err(error) = task.await {
            tracing::error!(%error, "a background task of the broker failed");
        }
    }
    tokio::task::block_in_place(|| context.flush());
    drop(lock);
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn timer(context: Arc<Context>) {
    context.groups.run_timer().await;
}

async fn housekeeping(context: Arc<Context>) {
    every(context.config.housekeeping_interval, || context.housekeep()).await;
}

async fn transactions(context: Arc<Context>) {
    every(TRANSACTION_CHECK, || ending::expire(&context)).await;
}

async fn flushing(context: Arc<Context>) {
    match context.config.fsync {
        FsyncPolicy::Interval(interval) => every(interval, || context.flush()).await,
        FsyncPolicy::Never | FsyncPolicy::Always => std::future::pending().await,
    }
}

async fn every(interval: Duration, mut work: impl FnMut()) {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        tokio::task::block_in_place(&mut work);
    }
}

#[cfg(test)]
#[path = "node_tests.rs"]
mod tests;
