//! The topics that are open: their partitions and their rules, found by name or id.
//!
//! The catalog says which topics exist; this holds the running counterpart of each. Folders are
//! named after topic and id, so that a topic which is deleted and created again never meets its
//! former records; folders nobody knows are leftovers of an interrupted deletion and are removed at
//! start.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::Error;
use crate::catalog::{TopicId, TopicMeta};
use crate::log::partition::{Durability, Partition};
use crate::log::recovery::Opening;
use crate::log::rules::LogRules;

/// An open topic.
#[derive(Debug)]
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) id: TopicId,
    partitions: RwLock<Vec<Arc<Partition>>>,
    rules: RwLock<Arc<LogRules>>,
}

/// All open topics.
#[derive(Debug)]
pub(crate) struct Topics {
    root: PathBuf,
    durability: Durability,
    by_name: RwLock<BTreeMap<String, Arc<Topic>>>,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Topic {
    /// A partition by its number.
    pub(crate) fn partition(&self, index: i32) -> Option<Arc<Partition>> {
        let index = usize::try_from(index).ok()?;
        read(&self.partitions).get(index).cloned()
    }

    /// All partitions in order.
    pub(crate) fn partitions(&self) -> Vec<Arc<Partition>> {
        read(&self.partitions).clone()
    }

    /// Number of partitions.
    pub(crate) fn partition_count(&self) -> i32 {
        i32::try_from(read(&self.partitions).len()).unwrap_or(i32::MAX)
    }

    /// The rules of its logs as of now.
    pub(crate) fn rules(&self) -> Arc<LogRules> {
        Arc::clone(&read(&self.rules))
    }

    /// Changes the rules of its logs.
    pub(crate) fn set_rules(&self, rules: LogRules) {
        *write(&self.rules) = Arc::new(rules);
    }
}

/// Folder of a topic: the beginning of its name for people, its id for certainty.
fn folder(name: &str, id: TopicId) -> String {
    let readable: String = name.chars().take(100).collect();
    format!("{readable}.{id}")
}

impl Topics {
    /// No topics yet; `root` is the folder that holds theirs, and is created.
    pub(crate) fn new(root: PathBuf, durability: Durability) -> Result<Self, Error> {
        fs::create_dir_all(&root).map_err(Error::io("cannot create", &root))?;
        Ok(Self { root, durability, by_name: RwLock::default() })
    }

    /// Removes folders of topics that `known` does not have.
    pub(crate) fn remove_leftovers(&self, known: &BTreeMap<String, TopicMeta>) -> Result<(), Error> {
        let wanted: Vec<String> = known.iter().map(|(name, t)| folder(name, t.id)).collect();
        for entry in fs::read_dir(&self.root).map_err(Error::io("cannot list", &self.root))? {
            let path = entry.map_err(Error::io("cannot list", &self.root))?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned());
            if name.is_some_and(|name| !wanted.contains(&name)) {
                tracing::info!(path = %path.display(), "removing what a deleted topic left");
                remove_folder(&path)?;
            }
        }
        Ok(())
    }

    /// Opens a topic: creates or recovers its partitions and makes it visible.
    pub(crate) fn open(&self, name: &str, meta: &TopicMeta, rules: LogRules, now_ms: i64) -> Result<Arc<Topic>, Error> {
        let partitions: Result<Vec<_>, Error> =
            (0..meta.partitions).map(|index| self.open_partition(name, meta, index, &rules, now_ms)).collect();
        let topic = Arc::new(Topic {
            name: name.to_owned(),
            id: meta.id,
            partitions: RwLock::new(partitions?),
            rules: RwLock::new(Arc::new(rules)),
        });
        write(&self.by_name).insert(name.to_owned(), Arc::clone(&topic));
        Ok(topic)
    }

    fn open_partition(
        &self,
        name: &str,
        meta: &TopicMeta,
        index: i32,
        rules: &LogRules,
        now_ms: i64,
    ) -> Result<Arc<Partition>, Error> {
        let dir = self.root.join(folder(name, meta.id)).join(index.to_string());
        let opening = Opening {
            start: meta.log_starts.get(&index).copied().unwrap_or(0),
            segment_bytes: rules.segment_bytes,
            now_ms,
        };
        Partition::open(format!("{name}-{index}"), dir, opening, self.durability).map(Arc::new)
    }

    /// Opens the partitions that a topic has got in addition.
    pub(crate) fn grow(&self, topic: &Topic, meta: &TopicMeta, now_ms: i64) -> Result<(), Error> {
        let rules = topic.rules();
        let mut partitions = write(&topic.partitions);
        let held = i32::try_from(partitions.len()).unwrap_or(i32::MAX);
        for index in held..meta.partitions {
            partitions.push(self.open_partition(&topic.name, meta, index, &rules, now_ms)?);
        }
        Ok(())
    }

    /// Takes a topic out of service and removes its records.
    pub(crate) fn close(&self, name: &str) -> Result<(), Error> {
        let Some(topic) = write(&self.by_name).remove(name) else { return Ok(()) };
        topic.partitions().iter().for_each(|partition| partition.delete());
        remove_folder(&self.root.join(folder(name, topic.id)))
    }

    /// A topic by name.
    pub(crate) fn get(&self, name: &str) -> Option<Arc<Topic>> {
        read(&self.by_name).get(name).cloned()
    }

    /// A topic by id.
    pub(crate) fn get_by_id(&self, id: TopicId) -> Option<Arc<Topic>> {
        read(&self.by_name).values().find(|topic| topic.id == id).cloned()
    }

    /// A partition by topic name and number.
    pub(crate) fn partition(&self, name: &str, index: i32) -> Option<Arc<Partition>> {
        self.get(name)?.partition(index)
    }

    /// All topics by name.
    pub(crate) fn all(&self) -> Vec<Arc<Topic>> {
        read(&self.by_name).values().cloned().collect()
    }
}

fn remove_folder(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("cannot remove", path)(error)),
        _ => Ok(()),
    }
}
