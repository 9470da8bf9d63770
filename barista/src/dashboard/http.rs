//! The page, its figures as JSON, and the stream that keeps it live.
//!
//! One snapshot a second is serialised once for all streams. A stream holds no queue: a client that reads slower than
//! that misses snapshots and always gets the newest one. At most [`MAX_STREAMS`] streams are open; one more is
//! refused with 503.

use super::metrics::Metrics;
use super::state::{HealthView, Snapshot};
use super::{Error, Handle};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{StreamExt, stream};
use runtime::{Readiness, SharedClock};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

/// Most streams open at once.
const MAX_STREAMS: usize = 64;
/// Time between snapshots.
const TICK: Duration = Duration::from_secs(1);
/// What a browser waits before it connects again.
const RETRY: Duration = Duration::from_secs(1);

/// Only what this server sends may run or be loaded, and nobody may frame it.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self'; \
                      connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Path, content type and content of every file; all are in the binary.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("static/index.html")),
    ("/style.css", "text/css; charset=utf-8", include_str!("static/style.css")),
    ("/format.js", "text/javascript; charset=utf-8", include_str!("static/format.js")),
    ("/chart.js", "text/javascript; charset=utf-8", include_str!("static/chart.js")),
    ("/app.js", "text/javascript; charset=utf-8", include_str!("static/app.js")),
    ("/favicon.svg", "image/svg+xml", include_str!("static/favicon.svg")),
];

/// What the handlers share.
#[derive(Clone)]
pub(super) struct Page {
    handle: Handle,
    clock: SharedClock,
    readiness: Readiness,
    metrics: Metrics,
    /// Newest snapshot as JSON; the ticker writes it, streams read it.
    newest: Arc<watch::Sender<Arc<str>>>,
    permits: Arc<Semaphore>,
}

impl Page {
    pub(super) fn new(handle: Handle, context: &runtime::Context, metrics: Metrics) -> Self {
        Page {
            handle,
            clock: context.clock.clone(),
            readiness: context.readiness.clone(),
            metrics,
            newest: Arc::new(watch::Sender::new(Arc::from("{}"))),
            permits: Arc::new(Semaphore::new(MAX_STREAMS)),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let health = self.readiness.checks().into_iter();
        let health =
            health.map(|(name, check)| HealthView { name, ready: check.ready, detail: check.detail }).collect();
        Snapshot { health, ..self.handle.snapshot(self.clock.now_ms()) }
    }

    fn json(&self) -> Result<Arc<str>, serde_json::Error> {
        serde_json::to_string(&self.snapshot()).map(Arc::from)
    }
}

/// Publishes a snapshot a second while anybody looks.
pub(super) async fn tick(page: Page, stop: CancellationToken) -> Result<(), Error> {
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = interval.tick() => {}
        }
        if page.newest.receiver_count() == 0 {
            continue;
        }
        match page.json() {
            Ok(json) => {
                page.newest.send_replace(json);
            }
            Err(error) => tracing::error!(%error, "cannot write the snapshot"),
        }
    }
}

/// The routes; streams end when `stop` is cancelled.
pub(super) fn router(page: Page, stop: CancellationToken) -> Router {
    let stream = move |State(page): State<Page>| {
        let stop = stop.clone();
        async move { serve_stream(page, stop) }
    };
    let mut router = Router::new().route("/api/state", get(serve_state)).route("/api/stream", get(stream));
    for (path, kind, content) in FILES {
        router = router.route(path, get(move || async move { file(kind, content) }));
    }
    router.with_state(page)
}

fn file(kind: &'static str, content: &'static str) -> impl IntoResponse {
    let headers: [(HeaderName, &str); 4] = [
        (header::CONTENT_TYPE, kind),
        // The next version of the binary has other files under the same names.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, content)
}

async fn serve_state(State(page): State<Page>) -> Response {
    match page.json() {
        Ok(json) => {
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-store")];
            (headers, json.to_string()).into_response()
        }
        Err(error) => failed(&error),
    }
}

fn serve_stream(page: Page, stop: CancellationToken) -> Response {
    let Ok(permit) = page.permits.clone().try_acquire_owned() else {
        page.metrics.streams_refused.inc();
        let text = format!("{MAX_STREAMS} pages are connected already; close one, or poll /api/state\n");
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    // Subscribed before the first snapshot is taken, so that no change falls between the two.
    let later = WatchStream::from_changes(page.newest.subscribe());
    let first = match page.json() {
        Ok(json) => json,
        Err(error) => return failed(&error),
    };
    let open = OpenStream::new(permit, &page.metrics);
    let events = stream::once(async move { first }).chain(later).take_until(stop.cancelled_owned()).map(move |json| {
        let _held = &open;
        Ok::<Event, Infallible>(Event::default().retry(RETRY).data(json))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

fn failed(error: &serde_json::Error) -> Response {
    tracing::error!(%error, "cannot write the snapshot");
    (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot write the snapshot: {error}\n")).into_response()
}

/// Counts a stream for as long as it is open.
struct OpenStream {
    metrics: Metrics,
    _permit: OwnedSemaphorePermit,
}

impl OpenStream {
    fn new(permit: OwnedSemaphorePermit, metrics: &Metrics) -> Self {
        metrics.streams.inc();
        OpenStream { metrics: metrics.clone(), _permit: permit }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.metrics.streams.dec();
    }
}
