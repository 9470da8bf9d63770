//! Admin HTTP of a process: `/metrics`, `/healthz`, `/readyz`.

use crate::health::Readiness;
use crate::metrics::{self, SharedRegistry};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// What the endpoints answer from.
#[derive(Clone)]
pub struct Admin {
    /// Metrics.
    pub registry: SharedRegistry,
    /// Readiness checks.
    pub readiness: Readiness,
}

/// The admin address could not be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on telemetry.address {address}: {source}; choose another address or port 0")]
pub struct Error {
    /// Address of the configuration.
    pub address: SocketAddr,
    /// What the system says.
    pub source: std::io::Error,
}

/// The routes, for a process that serves more on the same address.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(serve_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(serve_ready))
        .with_state(admin)
}

/// Binds the address, so that a caller knows the port before anything runs.
pub async fn bind(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| Error { address, source })
}

/// Serves until the token is cancelled.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> std::io::Result<()> {
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn serve_metrics(State(admin): State<Admin>) -> Response {
    match metrics::encode(&admin.registry) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode metrics: {error}\n")).into_response(),
    }
}

async fn serve_ready(State(admin): State<Admin>) -> Response {
    let status = if admin.readiness.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, axum::Json(admin.readiness.checks())).into_response()
}
