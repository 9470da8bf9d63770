//! Readiness of a process: named checks that its services set.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// True when the part does its work.
    pub ready: bool,
    /// Why, for a person.
    pub detail: String,
}

/// Shared readiness; ready when every check that was ever set is.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, Check>>>);

impl Readiness {
    /// Sets a check, such as `ingest`.
    pub fn set(&self, name: &str, ready: bool, detail: impl Into<String>) {
        let mut checks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checks.insert(name.to_owned(), Check { ready, detail: detail.into() });
    }

    /// All checks by name.
    pub fn checks(&self) -> BTreeMap<String, Check> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// True when there is at least one check and all hold.
    pub fn is_ready(&self) -> bool {
        let checks = self.checks();
        !checks.is_empty() && checks.values().all(|c| c.ready)
    }
}
