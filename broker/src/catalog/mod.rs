//! What the broker must remember besides records: topics, their settings, committed offsets,
//! producer ids.
//!
//! [`Catalog`] is a pure state machine over [`Event`]s; the events are also what the journal holds,
//! so that a restart is a replay. Decisions (`plan_*`) look at the state and return events; only
//! [`Catalog::evolve`] changes it. [`store`] writes events down before they count. Map:
//! [`topic_config`] knows the settings of topics, [`journal`] the file.

pub(crate) mod journal;
pub(crate) mod store;
pub(crate) mod topic_config;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

use crate::transactions::ledger::{Change, Ledger};

/// Longest topic name, as in Apache Kafka.
const MAX_TOPIC_NAME: usize = 249;
/// Producer ids are handed out from blocks of this size, so that not every one is a write.
const PRODUCER_ID_BLOCK: i64 = 1000;
/// Longest time after a start in which no offsets are forgotten.
const RETURN_MS: i64 = 600_000;

/// The unique id of a topic: a topic that is deleted and created again has another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct TopicId(pub(crate) [u8; 16]);

impl fmt::Display for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TopicId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TopicId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let value = u128::from_str_radix(text, 16).map_err(|_| format!("`{text}` is no topic id"))?;
        Ok(Self(value.to_be_bytes()))
    }
}

impl From<TopicId> for String {
    fn from(id: TopicId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for TopicId {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A topic as it is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TopicMeta {
    pub(crate) id: TopicId,
    pub(crate) partitions: i32,
    /// Settings that differ from the defaults.
    pub(crate) config: BTreeMap<String, String>,
    /// Where partitions start after records were deleted on request.
    pub(crate) log_starts: BTreeMap<i32, i64>,
}

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
    /// Wall clock of the commit.
    pub(crate) at_ms: i64,
}

/// Partition of a topic by name.
pub(crate) type TopicPartition = (String, i32);

/// A change to the catalog; what the journal is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The first event of every journal.
    ClusterNamed {
        id: String,
    },
    TopicCreated {
        name: String,
        id: TopicId,
        partitions: i32,
        config: BTreeMap<String, String>,
    },
    TopicDeleted {
        name: String,
    },
    PartitionsAdded {
        name: String,
        total: i32,
    },
    TopicConfigured {
        name: String,
        config: BTreeMap<String, String>,
    },
    LogStartMoved {
        topic: String,
        partition: i32,
        offset: i64,
    },
    OffsetsCommitted {
        group: String,
        offsets: Vec<(TopicPartition, Committed)>,
    },
    /// The offsets of a group are in use at this time.
    OffsetsKept {
        group: String,
        at_ms: i64,
    },
    OffsetsForgotten {
        group: String,
        partitions: Vec<TopicPartition>,
    },
    GroupForgotten {
        group: String,
    },
    ProducerIdsReserved {
        below: i64,
    },
    /// A change to the ledger of transactions.
    Transaction {
        change: Change,
    },
}

/// A refusal with words for the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    pub(crate) error: ResponseError,
    pub(crate) message: String,
}

impl Refused {
    /// A refusal; `message` goes to the client as it is.
    pub(crate) fn new(error: ResponseError, message: impl Into<String>) -> Self {
        Self { error, message: message.into() }
    }
}

impl From<ResponseError> for Refused {
    fn from(error: ResponseError) -> Self {
        Self { error, message: error.to_string() }
    }
}

/// The state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Catalog {
    cluster_id: String,
    topics: BTreeMap<String, TopicMeta>,
    offsets: BTreeMap<String, BTreeMap<TopicPartition, Committed>>,
    producer_ids_below: i64,
    transactions: Ledger,
}

impl Catalog {
    /// Name of this one-node cluster.
    pub(crate) fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// Topics by name.
    pub(crate) fn topics(&self) -> &BTreeMap<String, TopicMeta> {
        &self.topics
    }

    /// Committed offsets by group.
    pub(crate) fn offsets(&self) -> &BTreeMap<String, BTreeMap<TopicPartition, Committed>> {
        &self.offsets
    }

    /// Transactional ids and their transactions.
    pub(crate) fn transactions(&self) -> &Ledger {
        &self.transactions
    }

    /// Partitions of all topics.
    pub(crate) fn total_partitions(&self) -> usize {
        self.topics.values().map(|topic| usize::try_from(topic.partitions).unwrap_or(0)).sum()
    }

    /// Checks whether a topic of this name may be created.
    pub(crate) fn check_new_topic(&self, name: &str) -> Result<(), Refused> {
        check_topic_name(name)?;
        if self.topics.contains_key(name) {
            let message = format!("topic `{name}` already exists");
            return Err(Refused::new(ResponseError::TopicAlreadyExists, message));
        }
        Ok(())
    }

    /// Reserves the next block of producer ids: the event, and the ids it reserves.
    pub(crate) fn plan_producer_ids(&self) -> (Event, std::ops::Range<i64>) {
        let from = self.producer_ids_below;
        let below = from.saturating_add(PRODUCER_ID_BLOCK);
        (Event::ProducerIdsReserved { below }, from..below)
    }

    /// Forgets offsets that nobody has needed for `keep_ms`, counted from their commit or from the
    /// end of their group's last member, whichever is later.
    ///
    /// The time of a live group's offsets is renewed whenever a tenth of `keep_ms` has passed, so
    /// that offsets go at most that much late and never early, kills included. For a while after
    /// `started_ms`, the start of the broker, nothing goes: members of before may come back.
    pub(crate) fn plan_offset_expiry(
        &self,
        now_ms: i64,
        started_ms: i64,
        keep_ms: i64,
        is_live: impl Fn(&str) -> bool,
    ) -> Vec<Event> {
        let slack_ms = keep_ms / 10;
        let age_ms = |committed: &Committed| now_ms.saturating_sub(committed.at_ms);
        let may_forget = now_ms.saturating_sub(started_ms) >= slack_ms.min(RETURN_MS);
        let mut events = Vec::new();
        for (group, offsets) in &self.offsets {
            let group = group.clone();
            if is_live(&group) {
                if offsets.values().any(|committed| age_ms(committed) >= slack_ms.max(1)) {
                    events.push(Event::OffsetsKept { group, at_ms: now_ms });
                }
                continue;
            }
            let is_old = |committed: &Committed| age_ms(committed) >= keep_ms.saturating_add(slack_ms);
            let old = offsets.iter().filter(|(_, committed)| may_forget && is_old(committed));
            let partitions: Vec<_> = old.map(|(partition, _)| partition.clone()).collect();
            if partitions.len() == offsets.len() {
                events.push(Event::GroupForgotten { group });
            } else if !partitions.is_empty() {
                events.push(Event::OffsetsForgotten { group, partitions });
            }
        }
        events
    }

    /// Applies an event.
    pub(crate) fn evolve(&mut self, event: Event) {
        match event {
            Event::ClusterNamed { id } => self.cluster_id = id,
            Event::TopicCreated { name, id, partitions, config } => {
                let log_starts = BTreeMap::new();
                self.topics.insert(name, TopicMeta { id, partitions, config, log_starts });
            }
            Event::TopicDeleted { name } => {
                self.topics.remove(&name);
                self.transactions.forget_topic(&name);
                self.forget_offsets(|(topic, _)| *topic == name);
            }
            Event::PartitionsAdded { name, total } => {
                self.on_topic(&name, |topic| topic.partitions = total);
            }
            Event::TopicConfigured { name, config } => {
                self.on_topic(&name, |topic| topic.config = config);
            }
            Event::LogStartMoved { topic, partition, offset } => self.on_topic(&topic, |topic| {
                topic.log_starts.insert(partition, offset);
            }),
            Event::OffsetsCommitted { group, offsets } => {
                self.offsets.entry(group).or_default().extend(offsets);
            }
            Event::OffsetsKept { group, at_ms } => {
                let offsets = self.offsets.get_mut(&group).into_iter().flat_map(BTreeMap::values_mut);
                offsets.for_each(|committed| committed.at_ms = committed.at_ms.max(at_ms));
            }
            Event::OffsetsForgotten { group, partitions } => {
                if let Some(offsets) = self.offsets.get_mut(&group) {
                    partitions.iter().for_each(|partition| {
                        offsets.remove(partition);
                    });
                }
                self.offsets.retain(|_, offsets| !offsets.is_empty());
            }
            Event::GroupForgotten { group } => {
                self.offsets.remove(&group);
            }
            Event::ProducerIdsReserved { below } => {
                self.producer_ids_below = self.producer_ids_below.max(below);
            }
            Event::Transaction { change } => {
                for (group, offsets) in self.transactions.evolve(change) {
                    if !offsets.is_empty() {
                        self.offsets.entry(group).or_default().extend(offsets);
                    }
                }
            }
        }
    }

    fn on_topic(&mut self, name: &str, change: impl FnOnce(&mut TopicMeta)) {
        if let Some(topic) = self.topics.get_mut(name) {
            change(topic);
        }
    }

    fn forget_offsets(&mut self, is_gone: impl Fn(&TopicPartition) -> bool) {
        for offsets in self.offsets.values_mut() {
            offsets.retain(|partition, _| !is_gone(partition));
        }
        self.offsets.retain(|_, offsets| !offsets.is_empty());
    }

    /// Events that lead from an empty catalog to this one.
    pub(crate) fn snapshot(&self) -> Vec<Event> {
        let mut events = vec![
            Event::ClusterNamed { id: self.cluster_id.clone() },
            Event::ProducerIdsReserved { below: self.producer_ids_below },
        ];
        for (name, topic) in &self.topics {
            let (id, partitions, config) = (topic.id, topic.partitions, topic.config.clone());
            events.push(Event::TopicCreated { name: name.clone(), id, partitions, config });
            events.extend(topic.log_starts.iter().map(|(&partition, &offset)| Event::LogStartMoved {
                topic: name.clone(),
                partition,
                offset,
            }));
        }
        events.extend(self.offsets.iter().map(|(group, offsets)| Event::OffsetsCommitted {
            group: group.clone(),
            offsets: offsets.iter().map(|(at, committed)| (at.clone(), committed.clone())).collect(),
        }));
        events.extend(self.transactions.snapshot().map(|change| Event::Transaction { change }));
        events
    }
}

/// Checks a topic name by Kafka's rules, which also make it a safe file name.
pub(crate) fn check_topic_name(name: &str) -> Result<(), Refused> {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let wrong = if name.is_empty() {
        "it is empty"
    } else if name.len() > MAX_TOPIC_NAME {
        "it is longer than 249 characters"
    } else if name == "." || name == ".." {
        "`.` and `..` are not names"
    } else if !name.chars().all(legal) {
        "only ASCII letters, digits, `.`, `_` and `-` are allowed"
    } else {
        return Ok(());
    };
    let message = format!("topic name `{name}` is not valid: {wrong}");
    Err(Refused::new(ResponseError::InvalidTopicException, message))
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
