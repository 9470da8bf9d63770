//! The owner's hand on the dashboard.

use super::state::{Applied, CostFigures, Snapshot, State};
use runtime::Record;
use schemas::{EpochMs, Topics};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Shared by the owner of the process, the readers and the server: sets what no topic tells, and gives the figures to
/// others, such as progress lines on a terminal. Clones are the same handle.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// A std mutex: held for microseconds by readers, for about a millisecond by a snapshot, never over an await.
    state: Mutex<State>,
    address: watch::Sender<Option<SocketAddr>>,
}

impl Default for Handle {
    fn default() -> Self {
        Handle(Arc::new(Shared { state: Mutex::default(), address: watch::Sender::new(None) }))
    }
}

impl Handle {
    /// A handle for one dashboard.
    pub fn new() -> Self {
        Handle::default()
    }

    /// Cost figures to show instead of those in the plans; `None` takes them back.
    pub fn set_cost(&self, figures: Option<CostFigures>) {
        self.lock().set_cost(figures);
    }

    /// A line at the top of the page, such as what is simulated; `None` takes it away.
    pub fn set_banner(&self, text: Option<String>) {
        self.lock().set_banner(text);
    }

    /// Everything the page shows, without health checks.
    pub fn snapshot(&self, now_ms: EpochMs) -> Snapshot {
        let mut state = self.lock();
        state.prune(now_ms);
        state.snapshot(now_ms)
    }

    /// The bound address; waits until there is one, for ever if the dashboard never binds.
    pub async fn address(&self) -> SocketAddr {
        let mut address = self.0.address.subscribe();
        loop {
            if let Some(bound) = *address.borrow_and_update() {
                return bound;
            }
            if address.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    pub(super) fn start(&self, now_ms: EpochMs) {
        self.lock().start(now_ms);
    }

    pub(super) fn set_address(&self, address: SocketAddr) {
        self.0.address.send_replace(Some(address));
    }

    pub(super) fn apply(&self, record: &Record, topics: &Topics) -> Applied {
        self.lock().apply(record, topics)
    }

    /// A panic while the state was locked leaves figures that are at worst incomplete: still worth showing.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
