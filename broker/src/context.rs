//! What every request handler can reach.
//!
//! Lock order, where more than one is held: topic changes, then the ending of a transaction, then a
//! partition, then the catalog.
//! Handlers hold none of them over an await.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use kafka_protocol::ResponseError;

use crate::catalog::store::Store;
use crate::catalog::{Event, TopicId, topic_config};
use crate::groups::coordinator::Coordinator;
use crate::groups::group::Limits;
use crate::log::partition::Durability;
use crate::topics::Topics;
use crate::transactions::ending;
use crate::{Config, Error, FsyncPolicy};

/// The node id of the only node.
pub(crate) const NODE_ID: i32 = 1;

/// State shared by all connections.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) config: Config,
    /// Host that clients are told.
    pub(crate) host: String,
    /// Port that clients are told.
    pub(crate) port: u16,
    pub(crate) store: Store,
    pub(crate) topics: Topics,
    pub(crate) groups: Coordinator,
    /// Held while topics are created, changed or deleted, so that catalog and folders agree.
    pub(crate) topic_changes: Mutex<()>,
    /// Producer ids that are reserved and not given out yet.
    producer_ids: Mutex<Range<i64>>,
    /// Held while a transaction is ended, before any other lock.
    endings: Mutex<()>,
    unique: AtomicU64,
    /// When everything had been opened.
    started_ms: i64,
}

/// Wall clock in milliseconds.
#[allow(clippy::disallowed_methods, reason = "the broker's one look at the clock; its state machines get the time")]
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Sixteen bytes that nobody had before: the standard library keys its hashers from the system's
/// randomness.
pub(crate) fn random_id() -> TopicId {
    let half = || RandomState::new().hash_one(now_ms()).to_be_bytes();
    let mut id = [0; 16];
    id[..8].copy_from_slice(&half());
    id[8..].copy_from_slice(&half());
    TopicId(id)
}

impl Context {
    /// Opens everything under the data folder of `config`.
    pub(crate) fn open(config: Config, port: u16) -> Result<Self, Error> {
        let (host, port) = config.advertised_endpoint(port)?;
        let durability = match config.fsync {
            FsyncPolicy::Never => Durability::PageCache,
            FsyncPolicy::Interval(_) => Durability::Deferred,
            FsyncPolicy::Always => Durability::Disk,
        };
        let first = || Event::ClusterNamed { id: random_id().to_string() };
        let store = Store::open(&config.data_dir, durability == Durability::Disk, first)?;
        let topics = Topics::new(config.data_dir.join("topics"), durability)?;
        let known = store.read(|catalog| catalog.topics().clone());
        topics.remove_leftovers(&known)?;
        for (name, meta) in &known {
            topics.open(name, meta, topic_config::rules(&meta.config, &config), now_ms())?;
        }
        let limits = Limits {
            min_session_timeout_ms: config.group_min_session_timeout_ms.into(),
            max_session_timeout_ms: config.group_max_session_timeout_ms.into(),
            initial_delay_ms: config.group_initial_rebalance_delay_ms.into(),
            max_members: config.max_group_members,
        };
        let context = Self {
            groups: Coordinator::new(limits, config.max_groups),
            config,
            host,
            port,
            store,
            topics,
            topic_changes: Mutex::new(()),
            producer_ids: Mutex::new(0..0),
            endings: Mutex::new(()),
            unique: AtomicU64::new(0),
            started_ms: now_ms(),
        };
        ending::recover(&context);
        Ok(context)
    }

    /// Runs `work`, which may wait for the disk, so that other connections go on meanwhile.
    pub(crate) fn on_disk<T>(&self, work: impl FnOnce() -> T) -> T {
        if self.config.fsync == FsyncPolicy::Always { tokio::task::block_in_place(work) } else { work() }
    }

    /// An id for a new group member: readable, and never given out twice.
    pub(crate) fn member_id(&self, prefix: &str) -> String {
        let number = self.unique.fetch_add(1, Ordering::Relaxed);
        let prefix = if prefix.is_empty() { "member" } else { prefix };
        format!("{prefix}-{}-{number}", random_id())
    }

    /// One transaction is ended at a time.
    pub(crate) fn lock_endings(&self) -> MutexGuard<'_, ()> {
        self.endings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next producer id.
    pub(crate) fn next_producer_id(&self) -> Result<i64, ResponseError> {
        let mut reserved = self.producer_ids.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = reserved.next() {
            return Ok(id);
        }
        *reserved = self.store.update(|catalog| {
            let (event, ids) = catalog.plan_producer_ids();
            Ok::<_, ResponseError>((ids, vec![event]))
        })?;
        reserved.next().ok_or(ResponseError::UnknownServerError)
    }

    /// Forces everything written so far to the disk.
    pub(crate) fn flush(&self) {
        if let Err(error) = self.store.flush() {
            tracing::error!(%error, "cannot flush the metadata journal");
        }
        for topic in self.topics.all() {
            for partition in topic.partitions() {
                if let Err(error) = partition.flush() {
                    tracing::error!(topic = topic.name, %error, "cannot flush a log");
                }
            }
        }
    }

    /// Retention, compaction and expiry everywhere.
    pub(crate) fn housekeep(&self) {
        let now_ms = now_ms();
        for topic in self.topics.all() {
            let rules = topic.rules();
            for partition in topic.partitions() {
                partition.housekeep(now_ms, &rules);
            }
        }
        let keep_ms = self.config.offsets_retention_ms;
        let expired = self.store.update(|catalog| {
            let live = |group: &str| self.groups.is_live(group);
            Ok::<_, ResponseError>(((), catalog.plan_offset_expiry(now_ms, self.started_ms, keep_ms, live)))
        });
        // The store has logged why; expiry is tried again next time.
        expired.unwrap_or_default();
    }
}
