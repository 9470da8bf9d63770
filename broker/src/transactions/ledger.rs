//! The transactional ids and their transactions as a pure state machine.
//!
//! [`Ledger::apply`]`(now, request) -> (reply, effects)` decides, without changing anything. An effect
//! is a [`Change`] to be written into the journal; [`Ledger::evolve`] takes in what has been written.
//! Replaying the changes gives the same state.
//!
//! Invariants: of the producers with one transactional id only the newest epoch may write, join or
//! end; a transaction that is being ended never takes anything in; an outcome, once decided, does
//! not change; offsets of a transaction become visible only by its commit.
//! Left out: logs. Which records belong to a transaction is known to the partitions.

use std::collections::{BTreeMap, BTreeSet};

use kafka_protocol::ResponseError;
use serde::{Deserialize, Serialize};

use crate::catalog::{Committed, TopicPartition};

/// A producer gets a fresh id before its epoch reaches the largest number.
const LAST_EPOCH: i16 = i16::MAX - 1;

/// How a transaction ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Commit,
    Abort,
}

/// Where a transactional id stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Phase {
    /// Initialised, nothing begun.
    Empty,
    /// A transaction is open since then.
    Ongoing { since_ms: i64 },
    /// The outcome is decided, and being carried out.
    Ending { outcome: Outcome },
    /// The last transaction has ended.
    Ended { outcome: Outcome },
}

impl Phase {
    /// The name that the protocol has for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing { .. } => "Ongoing",
            Self::Ending { outcome: Outcome::Commit } => "PrepareCommit",
            Self::Ending { outcome: Outcome::Abort } => "PrepareAbort",
            Self::Ended { outcome: Outcome::Commit } => "CompleteCommit",
            Self::Ended { outcome: Outcome::Abort } => "CompleteAbort",
        }
    }

    /// Since when a transaction is open.
    pub(crate) fn since_ms(self) -> Option<i64> {
        match self {
            Self::Ongoing { since_ms } => Some(since_ms),
            _ => None,
        }
    }
}

/// Every name of [`Phase::name`] and those that other brokers have besides.
pub(crate) const PHASE_NAMES: &[&str] = &[
    "Empty",
    "Ongoing",
    "PrepareCommit",
    "PrepareAbort",
    "CompleteCommit",
    "CompleteAbort",
    "Dead",
    "PrepareEpochFence",
];

/// Which transactional ids to list; what is empty or `None` does not restrict.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter<'a> {
    pub(crate) phases: Vec<&'a str>,
    pub(crate) producer_ids: Vec<i64>,
    /// Leaves out transactions that are open no longer than this.
    pub(crate) open_longer_than_ms: Option<i64>,
}

/// What is known of one transactional id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Transaction {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    /// The epoch that asked to be raised to this one: asking again must not raise it further.
    pub(crate) raised_from: Option<i16>,
    pub(crate) timeout_ms: i64,
    pub(crate) phase: Phase,
    pub(crate) used_ms: i64,
    pub(crate) partitions: BTreeSet<TopicPartition>,
    /// Offsets to be committed with it, by group.
    pub(crate) groups: BTreeMap<String, Vec<(TopicPartition, Committed)>>,
}

/// Bounds on what clients may ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) max_timeout_ms: i64,
    pub(crate) max_ids: usize,
    /// An id that was not used for this long is forgotten.
    pub(crate) idle_ms: i64,
}

/// A producer as it names itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Who<'a> {
    pub(crate) id: &'a str,
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) enum Request<'a> {
    /// A producer begins with this id. `current` is what it held before, if it says so; `fresh` a
    /// producer id that nobody has.
    Init { id: &'a str, timeout_ms: i64, current: Option<(i64, i16)>, fresh: i64 },
    /// The transaction will write to these partitions.
    AddPartitions { who: Who<'a>, partitions: Vec<TopicPartition> },
    /// The transaction will commit offsets of this group.
    AddGroup { who: Who<'a>, group: &'a str },
    /// Offsets to commit with the transaction.
    AddOffsets { who: Who<'a>, group: &'a str, offsets: Vec<(TopicPartition, Committed)> },
    /// The producer decides.
    End { who: Who<'a>, outcome: Outcome },
    /// Time passes: abandoned transactions are aborted, idle ids forgotten.
    Expire,
}

/// What the asker is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The producer id and epoch to use from now on.
    Initialised { producer_id: i64, epoch: i16 },
    /// Done.
    Done,
    /// The transaction must be ended first, as decided; its epoch is now this one.
    EndFirst { epoch: i16 },
    /// Refused, nothing has changed.
    Refused(ResponseError),
}

/// A change to the ledger, as the journal holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub(crate) enum Change {
    Initialised { id: String, producer_id: i64, epoch: i16, raised_from: Option<i16>, timeout_ms: i64, at_ms: i64 },
    PartitionsAdded { id: String, partitions: Vec<TopicPartition>, at_ms: i64 },
    GroupAdded { id: String, group: String, at_ms: i64 },
    OffsetsAdded { id: String, group: String, offsets: Vec<(TopicPartition, Committed)> },
    Decided { id: String, epoch: i16, outcome: Outcome, at_ms: i64 },
    Finished { id: String },
    Forgotten { id: String },
    Restored { id: String, transaction: Transaction },
}

/// Offsets that have become visible: of each group, by partition.
pub(crate) type Released = BTreeMap<String, Vec<(TopicPartition, Committed)>>;

/// The state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    by_id: BTreeMap<String, Transaction>,
}

type Planned = Result<(Reply, Vec<Change>), ResponseError>;

impl Ledger {
    /// What is known of an id.
    pub(crate) fn get(&self, id: &str) -> Option<&Transaction> {
        self.by_id.get(id)
    }

    /// The ids whose outcome is decided and not carried out yet.
    pub(crate) fn ending(&self) -> Vec<String> {
        let ending = self.by_id.iter().filter(|(_, t)| matches!(t.phase, Phase::Ending { .. }));
        ending.map(|(id, _)| id.clone()).collect()
    }

    /// The ids that a filter lets pass, in order.
    pub(crate) fn list(&self, now_ms: i64, filter: &Filter<'_>) -> Vec<(&str, &Transaction)> {
        let passes = |t: &Transaction| {
            let is_young = |since_ms, limit| now_ms.saturating_sub(since_ms) <= limit;
            (filter.phases.is_empty() || filter.phases.contains(&t.phase.name()))
                && (filter.producer_ids.is_empty() || filter.producer_ids.contains(&t.producer_id))
                && !matches!((t.phase.since_ms(), filter.open_longer_than_ms), (Some(s), Some(limit)) if is_young(s, limit))
        };
        self.by_id.iter().filter(|(_, t)| passes(t)).map(|(id, t)| (id.as_str(), t)).collect()
    }

    /// Whether an open or ending transaction of this producer covers the partition.
    pub(crate) fn covers(&self, producer_id: i64, partition: &TopicPartition) -> bool {
        self.by_id.values().any(|t| t.producer_id == producer_id && t.partitions.contains(partition))
    }

    /// Whether an open or ending transaction holds an offset of the group for this partition.
    pub(crate) fn is_unstable(&self, group: &str, partition: &TopicPartition) -> bool {
        let held = |t: &Transaction| t.groups.get(group).is_some_and(|held| held.iter().any(|(at, _)| at == partition));
        self.by_id.values().any(held)
    }

    /// Whether a transactional batch of this producer may be appended to the partition now.
    pub(crate) fn may_write(&self, who: Who<'_>, partition: &TopicPartition) -> Result<(), ResponseError> {
        let transaction = self.admit(who)?;
        match transaction.phase {
            Phase::Ongoing { .. } if transaction.partitions.contains(partition) => Ok(()),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    fn admit(&self, who: Who<'_>) -> Result<&Transaction, ResponseError> {
        let transaction = self.by_id.get(who.id).ok_or(ResponseError::InvalidProducerIdMapping)?;
        if transaction.producer_id != who.producer_id {
            return Err(ResponseError::InvalidProducerIdMapping);
        }
        if transaction.epoch != who.epoch {
            return Err(ResponseError::ProducerFenced);
        }
        Ok(transaction)
    }

    /// Applies the rules to a request: the reply that holds once the changes are in the journal. The
    /// state changes only then, by [`Self::evolve`].
    pub(crate) fn apply(&self, now_ms: i64, request: Request<'_>, limits: &Limits) -> (Reply, Vec<Change>) {
        let planned = match request {
            Request::Init { id, timeout_ms, current, fresh } => {
                self.plan_init(now_ms, limits, id, Wish { timeout_ms, current, fresh })
            }
            Request::AddPartitions { who, partitions } => self.plan_partitions(now_ms, who, partitions),
            Request::AddGroup { who, group } => self.plan_group(now_ms, who, group),
            Request::AddOffsets { who, group, offsets } => self.plan_offsets(who, group, offsets),
            Request::End { who, outcome } => self.plan_end(now_ms, who, outcome),
            Request::Expire => Ok((Reply::Done, self.plan_expiry(now_ms, limits))),
        };
        planned.unwrap_or_else(|error| (Reply::Refused(error), Vec::new()))
    }

    fn plan_init(&self, now_ms: i64, limits: &Limits, id: &str, wish: Wish) -> Planned {
        let Wish { timeout_ms, current, fresh } = wish;
        if id.is_empty() {
            return Err(ResponseError::InvalidRequest);
        }
        if timeout_ms <= 0 || timeout_ms > limits.max_timeout_ms {
            return Err(ResponseError::InvalidTransactionTimeout);
        }
        let initialised = |producer_id, epoch, raised_from| {
            let id = id.to_owned();
            let change = Change::Initialised { id, producer_id, epoch, raised_from, timeout_ms, at_ms: now_ms };
            Ok((Reply::Initialised { producer_id, epoch }, vec![change]))
        };
        let Some(known) = self.by_id.get(id) else {
            return match self.by_id.len() < limits.max_ids {
                true => initialised(fresh, 0, None),
                false => Err(ResponseError::PolicyViolation),
            };
        };
        if let Some((producer_id, epoch)) = current {
            if producer_id != known.producer_id {
                return Err(ResponseError::ProducerFenced);
            }
            if known.raised_from == Some(epoch) && known.phase == Phase::Empty {
                // The reply to the first attempt was lost.
                return Ok((Reply::Initialised { producer_id, epoch: known.epoch }, Vec::new()));
            }
            if epoch != known.epoch {
                return Err(ResponseError::ProducerFenced);
            }
        }
        match known.phase {
            Phase::Ongoing { .. } => {
                let decided = known.fence(id, now_ms);
                Ok((Reply::EndFirst { epoch: known.raised() }, vec![decided]))
            }
            Phase::Ending { .. } => Ok((Reply::EndFirst { epoch: known.epoch }, Vec::new())),
            Phase::Empty | Phase::Ended { .. } if known.epoch >= LAST_EPOCH => initialised(fresh, 0, None),
            Phase::Empty | Phase::Ended { .. } => {
                initialised(known.producer_id, known.raised(), current.map(|(_, epoch)| epoch))
            }
        }
    }

    /// The transaction to join, which must not be ending.
    fn joinable(&self, who: Who<'_>) -> Result<&Transaction, ResponseError> {
        let transaction = self.admit(who)?;
        match transaction.phase {
            Phase::Ending { .. } => Err(ResponseError::ConcurrentTransactions),
            _ => Ok(transaction),
        }
    }

    fn plan_partitions(&self, at_ms: i64, who: Who<'_>, mut partitions: Vec<TopicPartition>) -> Planned {
        let known = self.joinable(who)?;
        partitions.retain(|partition| !known.partitions.contains(partition));
        let is_new = !partitions.is_empty();
        let change = Change::PartitionsAdded { id: who.id.to_owned(), partitions, at_ms };
        Ok((Reply::Done, if is_new { vec![change] } else { Vec::new() }))
    }

    fn plan_group(&self, at_ms: i64, who: Who<'_>, group: &str) -> Planned {
        if self.joinable(who)?.groups.contains_key(group) {
            return Ok((Reply::Done, Vec::new()));
        }
        let change = Change::GroupAdded { id: who.id.to_owned(), group: group.to_owned(), at_ms };
        Ok((Reply::Done, vec![change]))
    }

    fn plan_offsets(&self, who: Who<'_>, group: &str, offsets: Vec<(TopicPartition, Committed)>) -> Planned {
        let known = self.joinable(who)?;
        if !matches!(known.phase, Phase::Ongoing { .. }) || !known.groups.contains_key(group) {
            return Err(ResponseError::InvalidTxnState);
        }
        let change = Change::OffsetsAdded { id: who.id.to_owned(), group: group.to_owned(), offsets };
        Ok((Reply::Done, vec![change]))
    }

    fn plan_end(&self, at_ms: i64, who: Who<'_>, outcome: Outcome) -> Planned {
        let known = self.admit(who)?;
        match known.phase {
            Phase::Ongoing { .. } => {
                let change = Change::Decided { id: who.id.to_owned(), epoch: known.epoch, outcome, at_ms };
                Ok((Reply::EndFirst { epoch: known.epoch }, vec![change]))
            }
            Phase::Ending { outcome: decided } if decided == outcome => {
                Ok((Reply::EndFirst { epoch: known.epoch }, Vec::new()))
            }
            // The reply to the first attempt was lost.
            Phase::Ended { outcome: decided } if decided == outcome => Ok((Reply::Done, Vec::new())),
            _ => Err(ResponseError::InvalidTxnState),
        }
    }

    fn plan_expiry(&self, now_ms: i64, limits: &Limits) -> Vec<Change> {
        let changes = self.by_id.iter().filter_map(|(id, t)| match t.phase {
            Phase::Ongoing { since_ms } if now_ms.saturating_sub(since_ms) >= t.timeout_ms => Some(t.fence(id, now_ms)),
            Phase::Empty | Phase::Ended { .. } if now_ms.saturating_sub(t.used_ms) >= limits.idle_ms => {
                Some(Change::Forgotten { id: id.clone() })
            }
            _ => None,
        });
        changes.collect()
    }

    /// Notes that an outcome has been carried out.
    pub(crate) fn plan_finished(&self, id: &str) -> Vec<Change> {
        match self.by_id.get(id).map(|t| t.phase) {
            Some(Phase::Ending { .. }) => vec![Change::Finished { id: id.to_owned() }],
            _ => Vec::new(),
        }
    }

    /// Applies a change; returns the offsets that became visible by it.
    pub(crate) fn evolve(&mut self, change: Change) -> Released {
        let on = |by_id: &mut BTreeMap<String, Transaction>, id: &str, apply: &dyn Fn(&mut Transaction)| {
            if let Some(transaction) = by_id.get_mut(id) {
                apply(transaction);
            }
        };
        match change {
            Change::Initialised { id, producer_id, epoch, raised_from, timeout_ms, at_ms } => {
                let transaction = Transaction {
                    producer_id,
                    epoch,
                    raised_from,
                    timeout_ms,
                    phase: Phase::Empty,
                    used_ms: at_ms,
                    partitions: BTreeSet::new(),
                    groups: BTreeMap::new(),
                };
                self.by_id.insert(id, transaction);
            }
            Change::PartitionsAdded { id, partitions, at_ms } => on(&mut self.by_id, &id, &|t| {
                t.open(at_ms);
                t.partitions.extend(partitions.iter().cloned());
            }),
            Change::GroupAdded { id, group, at_ms } => on(&mut self.by_id, &id, &|t| {
                t.open(at_ms);
                t.groups.entry(group.clone()).or_default();
            }),
            Change::OffsetsAdded { id, group, offsets } => on(&mut self.by_id, &id, &|t| {
                let held = t.groups.entry(group.clone()).or_default();
                held.retain(|(at, _)| !offsets.iter().any(|(new, _)| new == at));
                held.extend(offsets.iter().cloned());
            }),
            Change::Decided { id, epoch, outcome, at_ms } => on(&mut self.by_id, &id, &|t| {
                t.epoch = epoch;
                t.phase = Phase::Ending { outcome };
                t.used_ms = at_ms;
            }),
            Change::Finished { id } => {
                let Some(transaction) = self.by_id.get_mut(&id) else { return Released::new() };
                return transaction.finish();
            }
            Change::Forgotten { id } => {
                self.by_id.remove(&id);
            }
            Change::Restored { id, transaction } => {
                self.by_id.insert(id, transaction);
            }
        }
        Released::new()
    }

    /// Forgets what concerned a topic that is gone.
    pub(crate) fn forget_topic(&mut self, topic: &str) {
        for transaction in self.by_id.values_mut() {
            transaction.partitions.retain(|(name, _)| name != topic);
            for held in transaction.groups.values_mut() {
                held.retain(|((name, _), _)| name != topic);
            }
        }
    }

    /// Changes that lead from an empty ledger to this one.
    pub(crate) fn snapshot(&self) -> impl Iterator<Item = Change> {
        self.by_id.iter().map(|(id, t)| Change::Restored { id: id.clone(), transaction: t.clone() })
    }
}

/// What somebody who begins with an id asks for.
struct Wish {
    timeout_ms: i64,
    current: Option<(i64, i16)>,
    fresh: i64,
}

impl Transaction {
    fn raised(&self) -> i16 {
        self.epoch.saturating_add(1)
    }

    /// Ends it against its producer, who is shut out by the higher epoch.
    fn fence(&self, id: &str, at_ms: i64) -> Change {
        Change::Decided { id: id.to_owned(), epoch: self.raised(), outcome: Outcome::Abort, at_ms }
    }

    fn open(&mut self, at_ms: i64) {
        if !matches!(self.phase, Phase::Ongoing { .. }) {
            self.phase = Phase::Ongoing { since_ms: at_ms };
        }
        self.used_ms = at_ms;
    }

    fn finish(&mut self) -> Released {
        let Phase::Ending { outcome } = self.phase else { return Released::new() };
        self.phase = Phase::Ended { outcome };
        self.partitions.clear();
        let groups = std::mem::take(&mut self.groups);
        match outcome {
            Outcome::Commit => groups,
            Outcome::Abort => Released::new(),
        }
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
