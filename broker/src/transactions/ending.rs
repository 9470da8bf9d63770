//! Carries decided outcomes out: a marker into every partition, then the offsets.

use kafka_protocol::ResponseError;

use super::ledger::{Outcome, Phase, Reply, Request, Transaction};
use crate::catalog::{Event, TopicPartition};
use crate::context::{Context, now_ms};
use crate::log::batch::Ending;

/// How often a producer that begins may find a transaction of its predecessor to end.
const ATTEMPTS: usize = 4;

/// Puts a request to the ledger and writes its decision down.
pub(crate) fn ask(context: &Context, request: Request<'_>) -> Result<Reply, ResponseError> {
    let limits = context.config.transaction_limits();
    let reply = context.store.update(|catalog| {
        let (reply, changes) = catalog.transactions().apply(now_ms(), request, &limits);
        let events = changes.into_iter().map(|change| Event::Transaction { change });
        Ok::<_, ResponseError>((reply, events.collect()))
    })?;
    match reply {
        Reply::Refused(error) => Err(error),
        reply => Ok(reply),
    }
}

/// Lets a producer begin; ends what its predecessor left open.
pub(crate) fn initialise(
    context: &Context,
    id: &str,
    timeout_ms: i64,
    mut current: Option<(i64, i16)>,
) -> Result<(i64, i16), ResponseError> {
    let fresh = context.next_producer_id()?;
    for _ in 0..ATTEMPTS {
        match ask(context, Request::Init { id, timeout_ms, current, fresh })? {
            Reply::Initialised { producer_id, epoch } => return Ok((producer_id, epoch)),
            Reply::EndFirst { epoch } => {
                finish(context, id).map_err(|_| ResponseError::ConcurrentTransactions)?;
                current = current.map(|(producer_id, _)| (producer_id, epoch));
            }
            Reply::Done | Reply::Refused(_) => return Err(ResponseError::UnknownServerError),
        }
    }
    Err(ResponseError::ConcurrentTransactions)
}

/// Carries the outcome of a transaction out, if one is decided. May be repeated after an error.
pub(crate) fn finish(context: &Context, id: &str) -> Result<(), ResponseError> {
    let _one_at_a_time = context.lock_endings();
    let Some((transaction, ending)) = context.store.read(|catalog| decided(catalog.transactions().get(id)?)) else {
        return Ok(());
    };
    for at in &transaction.partitions {
        mark(context, at, ending)?;
    }
    context.store.update(|catalog| {
        let changes = catalog.transactions().plan_finished(id);
        Ok(((), changes.into_iter().map(|change| Event::Transaction { change }).collect()))
    })
}

fn decided(transaction: &Transaction) -> Option<(Transaction, Ending)> {
    let Phase::Ending { outcome } = transaction.phase else { return None };
    let Transaction { producer_id, epoch, .. } = *transaction;
    let ending = Ending { producer_id, epoch, is_commit: outcome == Outcome::Commit };
    Some((transaction.clone(), ending))
}

/// Writes a marker, unless the partition has none of the transaction's records (or the marker).
fn mark(context: &Context, at: &TopicPartition, ending: Ending) -> Result<(), ResponseError> {
    let Some(topic) = context.topics.get(&at.0) else { return Ok(()) };
    let Some(partition) = topic.partition(at.1) else { return Ok(()) };
    match partition.end_transaction(now_ms(), ending, &topic.rules()) {
        // The topic was deleted meanwhile.
        Err(ResponseError::UnknownTopicOrPartition) => Ok(()),
        outcome => outcome,
    }
}

/// Aborts abandoned transactions and resumes interrupted endings.
pub(crate) fn expire(context: &Context) {
    if let Err(error) = ask(context, Request::Expire) {
        tracing::error!(%error, "cannot time transactions out; tried again");
    }
    for id in context.store.read(|catalog| catalog.transactions().ending()) {
        if let Err(error) = finish(context, &id) {
            tracing::error!(transaction = id, %error, "cannot end a transaction; tried again");
        }
    }
}

/// After a start: resumes interrupted endings, and aborts in the logs what no transaction covers.
/// The latter is what a power cut can leave that took the end of the journal but not of a log.
pub(crate) fn recover(context: &Context) {
    expire(context);
    for topic in context.topics.all() {
        for (index, partition) in (0..).zip(topic.partitions()) {
            let at = (topic.name.clone(), index);
            for (producer_id, epoch) in partition.open_transactions() {
                if context.store.read(|catalog| catalog.transactions().covers(producer_id, &at)) {
                    continue;
                }
                tracing::warn!(topic = topic.name, index, producer_id, "aborting records of an unknown transaction");
                let ending = Ending { producer_id, epoch, is_commit: false };
                if let Err(error) = mark(context, &at, ending) {
                    tracing::error!(topic = topic.name, index, %error, "cannot abort an unknown transaction");
                }
            }
        }
    }
}
