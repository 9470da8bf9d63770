//! Who serves a service on this node.

use crate::metrics::{Metrics, ServiceLabel};
use crate::pool::Pool;
use crate::request::Fault;
use crate::stats::Stats;
use runtime::SharedClock;
use schemas::headers::Reason;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Which pools serve a service; the last one takes what asks for no version.
#[derive(Debug, Default)]
pub(crate) struct Routing {
    pools: Vec<Route>,
    /// Pools that drain: they get nothing new, but their jobs may have to be given back.
    draining: Vec<Pool>,
}

/// A pool that serves.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    /// The pool.
    pub(crate) pool: Pool,
    /// Latency objective, the default deadline.
    pub(crate) slo_ms: f64,
}

impl Routing {
    /// This pool serves from now on, and takes what asks for no version.
    pub(crate) fn serve(&mut self, route: Route) {
        self.forget(&route.pool);
        self.pools.push(route);
    }

    /// This pool finishes what it has.
    pub(crate) fn drain(&mut self, pool: &Pool) {
        self.forget(pool);
        self.draining.push(pool.clone());
    }

    /// This pool is gone.
    pub(crate) fn forget(&mut self, pool: &Pool) {
        self.pools.retain(|route| !route.pool.is(pool));
        self.draining.retain(|other| !other.is(pool));
    }

    /// Changes the objective of a pool that serves.
    pub(crate) fn set_slo(&mut self, pool: &Pool, slo_ms: f64) {
        for route in self.pools.iter_mut().filter(|route| route.pool.is(pool)) {
            route.slo_ms = slo_ms;
        }
    }

    /// True when some pool serves.
    pub(crate) fn serves(&self) -> bool {
        !self.pools.is_empty()
    }

    fn find(&self, version: Option<&str>) -> Option<Route> {
        let wanted = |route: &&Route| version.is_none_or(|v| route.pool.version() == v);
        self.pools.iter().rev().find(wanted).cloned()
    }

    fn versions(&self) -> String {
        self.pools.iter().map(|route| format!("`{}`", route.pool.version())).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn all(&self) -> Vec<Pool> {
        self.pools.iter().map(|route| route.pool.clone()).chain(self.draining.iter().cloned()).collect()
    }
}

/// What the members and pools of a service share.
#[derive(Clone)]
pub(crate) struct Service {
    /// Prediction service.
    pub(crate) name: String,
    /// Who serves.
    pub(crate) routing: Arc<RwLock<Routing>>,
    /// Counters.
    pub(crate) stats: Arc<Mutex<Stats>>,
    /// Metrics.
    pub(crate) metrics: Metrics,
    /// The clock.
    pub(crate) clock: SharedClock,
}

impl Service {
    /// Runs `with` on the counters.
    pub(crate) fn stats<T>(&self, with: impl FnOnce(&mut Stats) -> T) -> T {
        with(&mut self.stats.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `with` on the routing.
    pub(crate) fn routing<T>(&self, with: impl FnOnce(&mut Routing) -> T) -> T {
        with(&mut self.routing.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// True while some pool serves.
    pub(crate) fn is_served(&self) -> bool {
        self.routing.read().unwrap_or_else(PoisonError::into_inner).serves()
    }

    /// Who serves this version, or any; `None` while nobody serves.
    pub(crate) fn route(&self, version: Option<&str>) -> Result<Option<Route>, Fault> {
        let routing = self.routing.read().unwrap_or_else(PoisonError::into_inner);
        match routing.find(version) {
            Some(route) => Ok(Some(route)),
            None if !routing.serves() => Ok(None),
            None => {
                let wanted = version.unwrap_or_default();
                let detail =
                    format!("header model-version: `{wanted}` is not served, this node has {}", routing.versions());
                Err(Fault::new(Reason::UnknownModelVersion, detail))
            }
        }
    }

    /// Label of its metrics.
    pub(crate) fn label(&self) -> ServiceLabel {
        ServiceLabel { service: self.name.clone() }
    }
}
