//! The catalog and its journal under one lock: events count once they are written down.

use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kafka_protocol::ResponseError;

use super::journal::Journal;
use super::{Catalog, Event};
use crate::Error;

/// The durable catalog.
#[derive(Debug)]
pub(crate) struct Store {
    inner: Mutex<Inner>,
    /// Force every event to the disk.
    sync: bool,
}

#[derive(Debug)]
struct Inner {
    catalog: Catalog,
    journal: Journal,
    is_dirty: bool,
}

impl Store {
    /// Opens or creates the journal in `dir`.
    pub(crate) fn open(dir: &Path, sync: bool, first: impl FnOnce() -> Event) -> Result<Self, Error> {
        let (journal, catalog) = Journal::open(dir, first)?;
        Ok(Self { inner: Mutex::new(Inner { catalog, journal, is_dirty: false }), sync })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the catalog. Keep it short: everyone else waits.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&Catalog) -> T) -> T {
        look(&self.lock().catalog)
    }

    /// Lets `plan` decide on events, writes them down and applies them; all or nothing.
    ///
    /// # Errors
    /// What `plan` refused, or a storage error converted to its error type.
    pub(crate) fn update<T, E: From<ResponseError>>(
        &self,
        plan: impl FnOnce(&Catalog) -> Result<(T, Vec<Event>), E>,
    ) -> Result<T, E> {
        let mut inner = self.lock();
        let (answer, events) = plan(&inner.catalog)?;
        if events.is_empty() {
            return Ok(answer);
        }
        inner.journal.append(&events, self.sync).map_err(|error| {
            tracing::error!(%error, "cannot write to the metadata journal");
            ResponseError::KafkaStorageError
        })?;
        inner.is_dirty = true;
        events.into_iter().for_each(|event| inner.catalog.evolve(event));
        if inner.journal.wants_rewrite() {
            let Inner { catalog, journal, .. } = &mut *inner;
            if let Err(error) = journal.rewrite(catalog) {
                tracing::warn!(%error, "cannot rewrite the metadata journal; it keeps growing");
            }
        }
        Ok(answer)
    }

    /// Forces what was written to the disk.
    pub(crate) fn flush(&self) -> io::Result<()> {
        let file = {
            let mut inner = self.lock();
            if !std::mem::take(&mut inner.is_dirty) {
                return Ok(());
            }
            inner.journal.handle()?
        };
        file.sync_data()
    }
}
