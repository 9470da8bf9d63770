//! Sockets: accepting, TLS, and an end in order.

use super::config::TlsConfig;
use super::metrics::ProtocolLabel;
use axum::http;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// How long a client may take for the head of a request, or for its part of the TLS handshake.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);

/// Streams of one HTTP/2 connection; requests beyond the gateway's limits are refused one by one.
const MAX_STREAMS: u32 = 1024;

/// Flow control windows of HTTP/2, so that a tensor of a megabyte needs no round trip in the middle, bytes.
const WINDOW: u32 = 4 << 20;

/// How a listener serves.
pub(crate) struct Serving {
    pub(crate) label: ProtocolLabel,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) max_connections: usize,
    pub(crate) connections: Family<ProtocolLabel, Gauge>,
    /// How long requests that run may take after the end was ordered.
    pub(crate) patience: Duration,
}

/// Reads certificate and key; the message names the file.
pub(crate) fn tls_acceptor(config: &TlsConfig, protocols: &[&[u8]]) -> Result<TlsAcceptor, String> {
    let unusable = |key: &str, path: &Path, why: String| format!("gateway.tls.{key}: {}: {why}", path.display());
    let chain = CertificateDer::pem_file_iter(&config.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unusable("certificate", &config.certificate, e.to_string()))?;
    let key = PrivateKeyDer::from_pem_file(&config.key).map_err(|e| unusable("key", &config.key, e.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| format!("gateway.tls: {e}"))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| unusable("certificate", &config.certificate, e.to_string()))?;
    server.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    Ok(TlsAcceptor::from(Arc::new(server)))
}

/// Serves until `stop`, then takes no more connections and lets what runs finish.
pub(crate) async fn serve<H, F, B>(listener: TcpListener, serving: Serving, handler: H, stop: CancellationToken)
where
    H: Fn(http::Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = http::Response<B>> + Send + 'static,
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(serving.max_connections));
    let builder = builder();
    loop {
        let place = tokio::select! {
            () = stop.cancelled() => break,
            // The semaphore is never closed.
            Ok(place) = places.clone().acquire_owned() => place,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, mostly: it passes when connections close.
                    tracing::warn!(%error, protocol = serving.label.protocol, "a connection cannot be accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        let (handler, builder, tls) = (handler.clone(), builder.clone(), serving.tls.clone());
        let (watcher, open) = (graceful.watcher(), Open::new(&serving));
        tokio::spawn(async move {
            let _held = (place, open);
            let service = hyper::service::service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            if let Some(io) = secured(stream, tls).await {
                let connection = builder.serve_connection(TokioIo::new(io), service);
                if let Err(error) = watcher.watch(connection.into_owned()).await {
                    // Clients come and go; what they broke off is not ours to mend.
                    tracing::debug!(%error, "a connection ended early");
                }
            }
        });
    }
    drop(listener);
    if tokio::time::timeout(serving.patience, graceful.shutdown()).await.is_err() {
        tracing::warn!(protocol = serving.label.protocol, "requests still ran when the gateway ended");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).keep_alive(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(4 * WINDOW)
        .keep_alive_interval(Duration::from_secs(60));
    builder
}

/// Plain or TLS.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

async fn secured(stream: TcpStream, tls: Option<TlsAcceptor>) -> Option<Box<dyn Io>> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps Nagle's delay");
    }
    let Some(tls) = tls else { return Some(Box::new(stream)) };
    match tokio::time::timeout(HEAD_PATIENCE, tls.accept(stream)).await {
        Ok(Ok(stream)) => Some(Box::new(stream)),
        Ok(Err(error)) => {
            tracing::debug!(%error, "a TLS handshake failed");
            None
        }
        Err(_) => {
            tracing::debug!("a TLS handshake took too long");
            None
        }
    }
}

/// Counts a connection while it is open.
struct Open(Gauge);

impl Open {
    fn new(serving: &Serving) -> Self {
        let gauge = serving.connections.get_or_create(&serving.label).clone();
        gauge.inc();
        Open(gauge)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}
