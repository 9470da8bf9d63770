//! Which worker thread runs on which core.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Cores that worker threads are pinned to, each to its own.
#[derive(Debug)]
pub(crate) struct Cores {
    ids: Vec<core_affinity::CoreId>,
    taken: Mutex<BTreeSet<usize>>,
}

impl Cores {
    /// These cores, by number; without any all of the process, or none when threads are not to be pinned.
    pub(crate) fn new(pin: bool, named: &[usize]) -> Arc<Self> {
        let ids = match (pin, named) {
            (false, _) => Vec::new(),
            (true, []) => core_affinity::get_core_ids().unwrap_or_default(),
            (true, named) => named.iter().map(|&id| core_affinity::CoreId { id }).collect(),
        };
        if pin && ids.is_empty() {
            tracing::warn!("executor.pin: this system does not tell its cores, workers are not pinned");
        }
        Arc::new(Cores { ids, taken: Mutex::default() })
    }

    /// Pins the calling thread to a core that nobody has; without one it floats. The lease ends with the value.
    pub(super) fn pin(self: &Arc<Self>) -> Option<CoreLease> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let free = (0..self.ids.len()).find(|i| !taken.contains(i))?;
        taken.insert(free);
        drop(taken);
        let lease = CoreLease { cores: self.clone(), index: free };
        core_affinity::set_for_current(self.ids[free]).then_some(lease)
    }
}

pub(super) struct CoreLease {
    cores: Arc<Cores>,
    index: usize,
}

impl Drop for CoreLease {
    fn drop(&mut self) {
        self.cores.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.index);
    }
}
