//! Answers and input offsets in one transaction: `delivery = "exactly_once"`.
//!
//! Purpose: requests finish in the order of their deadlines; what is committed is always a stretch of each partition
//! without a gap, its answers and its next offset together. A read-committed reader sees one answer to each request.
//!
//! Invariants:
//! - An answer is sent only inside the transaction that also commits the offset behind its request.
//! - One transaction at a time; what finishes meanwhile goes with the next one, so transactions grow with the load.
//! - A transaction that failed and was aborted is repeated with the same answers. When its outcome is not known, or a
//!   newer writer has the id, the member ends ([`Error::Reopen`]) with everything uncommitted: the next one opens the id
//!   again, which settles it, and reads from the committed offsets.
//! - A transaction that fails while partitions are being given back is not repeated for those.
//! - The answers of a partition that is taken away are dropped unless they were committed: its next owner serves those
//!   requests again, and nobody has seen the first answers.

use super::{Member, Written};
use crate::error::Error;
use crate::pool::Finished;
use crate::request::{Fault, class};
use futures::future::{BoxFuture, join_all};
use runtime::backoff::Backoff;
use runtime::dead_letter::dead_letter;
use runtime::{GroupMetadata, OutRecord, PortError, Record, TopicPartition, Transactions};
use schemas::headers::Reason;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A finished request that is not committed.
struct Answer {
    out: OutRecord,
    /// The request, kept until the broker has taken the answer.
    record: Record,
    /// For the counters, once it is committed.
    written: Written,
}

/// What became of a transaction.
pub(super) enum Outcome {
    /// It is in the log.
    Committed,
    /// Nothing of it is; it may be tried again.
    Aborted(PortError),
    /// Nothing of it is, because the broker refuses this answer for good.
    Refused(TopicPartition, i64, String),
    /// Nobody knows, or the id belongs to another writer.
    Lost(PortError),
}

/// The transactional half of a member.
pub(super) struct ExactlyOnce {
    writer: Arc<dyn Transactions>,
    answers: BTreeMap<TopicPartition, BTreeMap<i64, Answer>>,
    /// Next offsets that may be committed and are not.
    ready: BTreeMap<TopicPartition, i64>,
    /// The transaction under way and the offsets that it commits.
    running: Option<(BoxFuture<'static, Outcome>, BTreeMap<TopicPartition, i64>)>,
    retry_at: Option<tokio::time::Instant>,
    backoff: Backoff,
}

impl ExactlyOnce {
    pub(super) fn new(writer: Box<dyn Transactions>, seed: u64) -> Self {
        ExactlyOnce {
            writer: writer.into(),
            answers: BTreeMap::new(),
            ready: BTreeMap::new(),
            running: None,
            retry_at: None,
            backoff: Backoff::new(Duration::from_millis(20), Duration::from_secs(2), seed),
        }
    }

    /// Answers that are not committed.
    pub(super) fn waiting(&self) -> usize {
        self.answers.values().map(BTreeMap::len).sum()
    }

    /// True when nothing can be committed and nothing is being committed.
    pub(super) fn is_settled(&self) -> bool {
        self.running.is_none() && self.ready.is_empty()
    }

    /// True when the partition has nothing that is being committed or can be.
    pub(super) fn is_settled_of(&self, partition: &TopicPartition) -> bool {
        !self.ready.contains_key(partition)
            && !self.running.as_ref().is_some_and(|(_, offsets)| offsets.contains_key(partition))
    }

    /// The partition belongs to another member: what was not committed is dropped.
    pub(super) fn forget(&mut self, partition: &TopicPartition) {
        self.answers.remove(partition);
        self.ready.remove(partition);
    }

    /// Resolves when the transaction under way has ended, or when it is time to try again (`None`).
    pub(super) async fn ended(&mut self) -> Option<Outcome> {
        match (&mut self.running, self.retry_at) {
            (Some((transaction, _)), _) => Some(transaction.await),
            (None, Some(at)) => {
                tokio::time::sleep_until(at).await;
                self.retry_at = None;
                None
            }
            (None, None) => std::future::pending().await,
        }
    }

    /// The answers before the offsets that may be committed, in the order of the log.
    fn batch(&self) -> Vec<(TopicPartition, i64, OutRecord)> {
        let before = |(tp, next): (&TopicPartition, &i64)| {
            let of_partition = self.answers.get(tp).into_iter().flat_map(|answers| answers.range(..*next));
            of_partition.map(|(offset, a)| (tp.clone(), *offset, a.out.clone())).collect::<Vec<_>>()
        };
        self.ready.iter().flat_map(before).collect()
    }
}

impl Member {
    /// Keeps the answer of a finished request until its transaction.
    pub(super) fn keep(&mut self, done: Finished) {
        let Finished { record, deadline_ms, outcome } = done;
        let partition = record.topic_partition();
        let Some(exactly_once) = &mut self.exactly_once else { return };
        let (out, rejected) = match outcome {
            Ok(out) => (out, None),
            Err(fault) => {
                let letter = dead_letter(&self.options.rejected_topic, &record, fault.reason, &fault.detail);
                (letter, Some(fault.reason))
            }
        };
        let written = Written {
            partition: partition.clone(),
            offset: record.offset,
            timestamp_ms: record.timestamp_ms,
            deadline_ms,
            class: class(&record).unwrap_or_default(),
            rejected,
            outcome: Ok(()),
        };
        let offset = record.offset;
        // A request of a partition that was taken away: nobody tracks it any more.
        if self.tracker.is_tracked(&partition) {
            exactly_once.answers.entry(partition.clone()).or_default().insert(offset, Answer { out, record, written });
            self.tracker.complete(&partition, offset);
        }
    }

    /// Begins the next transaction when there is something to commit and none is under way.
    pub(super) fn begin_transaction(&mut self) {
        let Some(exactly_once) = &mut self.exactly_once else { return };
        exactly_once.ready.extend(self.tracker.take_committable());
        if exactly_once.ready.is_empty() || exactly_once.running.is_some() || exactly_once.retry_at.is_some() {
            return;
        }
        let Some(group) = self.source.group_metadata() else { return };
        let (batch, offsets) = (exactly_once.batch(), std::mem::take(&mut exactly_once.ready));
        let committed: Vec<(TopicPartition, i64)> = offsets.iter().map(|(tp, next)| (tp.clone(), *next)).collect();
        let transaction = transact(exactly_once.writer.clone(), batch, committed, group);
        exactly_once.running = Some((Box::pin(transaction), offsets));
    }

    /// Takes the end of a transaction in.
    pub(super) fn on_transaction(&mut self, outcome: Option<Outcome>) -> Result<(), Error> {
        let Some(exactly_once) = &mut self.exactly_once else { return Ok(()) };
        let Some(outcome) = outcome else { return Ok(()) };
        let Some((_, offsets)) = exactly_once.running.take() else { return Ok(()) };
        match outcome {
            Outcome::Committed => {
                exactly_once.backoff.reset();
                let mut done = Vec::new();
                for (tp, next) in &offsets {
                    let Some(answers) = exactly_once.answers.get_mut(tp) else { continue };
                    let later = answers.split_off(next);
                    done.extend(std::mem::replace(answers, later).into_values().map(|answer| answer.written));
                }
                for written in done {
                    self.count(&written);
                }
                return Ok(());
            }
            Outcome::Aborted(error) => {
                // A member that was expelled can commit nothing for partitions that it is giving back.
                for tp in self.revoking.iter().flat_map(|(partitions, _)| partitions) {
                    exactly_once.forget(tp);
                }
                let delay = exactly_once.backoff.next_delay();
                tracing::warn!(%error, service = self.service.name, ?delay, "answers cannot be committed for now");
                self.service.metrics.retries.inc();
                exactly_once.retry_at = Some(tokio::time::Instant::now() + delay);
            }
            Outcome::Refused(tp, offset, why) => {
                let answer = exactly_once.answers.get_mut(&tp).and_then(|answers| answers.get_mut(&offset));
                if let Some(answer) = answer {
                    let again = answer.written.rejected.is_some();
                    let detail = format!("the result was refused by the broker: {why}");
                    let fault = Fault::new(answer.written.rejected.unwrap_or(Reason::InferenceFailed), detail);
                    let letter = dead_letter(&self.options.rejected_topic, &answer.record, fault.reason, &fault.detail);
                    // Too large with the headers on top: then the headers alone, which name the original.
                    answer.out = if again { OutRecord { value: None, ..letter } } else { letter };
                    answer.written.rejected = Some(fault.reason);
                }
            }
            Outcome::Lost(error) => {
                return Err(Error::Reopen(format!("answers of service {}: {error}", self.service.name)));
            }
        }
        // What moved further meanwhile stays.
        for (tp, next) in offsets {
            if exactly_once.answers.contains_key(&tp) {
                exactly_once.ready.entry(tp).or_insert(next);
            }
        }
        Ok(())
    }
}

/// One transaction, from beginning to end.
async fn transact(
    writer: Arc<dyn Transactions>,
    batch: Vec<(TopicPartition, i64, OutRecord)>,
    offsets: Vec<(TopicPartition, i64)>,
    group: GroupMetadata,
) -> Outcome {
    match attempt(writer.as_ref(), batch, &offsets, &group).await {
        Ok(()) => match writer.commit().await {
            Ok(()) => Outcome::Committed,
            Err(error) => Outcome::Lost(error),
        },
        Err(Outcome::Lost(error)) => Outcome::Lost(error),
        Err(outcome) => match writer.abort().await {
            Ok(()) => outcome,
            Err(error) => Outcome::Lost(error),
        },
    }
}

async fn attempt(
    writer: &dyn Transactions,
    batch: Vec<(TopicPartition, i64, OutRecord)>,
    offsets: &[(TopicPartition, i64)],
    group: &GroupMetadata,
) -> Result<(), Outcome> {
    let failed = |error| match error {
        PortError::Fenced(_) => Outcome::Lost(error),
        error => Outcome::Aborted(error),
    };
    writer.begin().await.map_err(failed)?;
    let sent = batch.into_iter().map(|(tp, offset, out)| {
        let delivered = writer.send(out);
        async move { (tp, offset, delivered.await) }
    });
    for (tp, offset, delivered) in join_all(sent).await {
        match delivered {
            Ok(_) => {}
            Err(PortError::Refused(why)) => return Err(Outcome::Refused(tp, offset, why)),
            Err(error) => return Err(failed(error)),
        }
    }
    writer.send_offsets(offsets, group).await.map_err(failed)
}
