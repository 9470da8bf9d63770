//! What clients did to a broker and were told, and whether what is left agrees: pure.
//!
//! Time is a counter that all clients share: an operation takes a number when it is sent and one
//! when its answer arrives, so that "before" means before for everybody. An operation without an
//! answer may or may not have happened; one with an answer has.
//!
//! [`check`] demands: what was acknowledged is there, at the offset that was told; nothing is there
//! twice or out of nowhere; a producer's records keep their order; an append that began after
//! another's acknowledgement lies behind it; high watermarks cover what was acknowledged and never
//! fall; of a transaction all or nothing is visible, as its producer was told; committed offsets are
//! what was committed last; what a reader has seen stays; of a compacted key the newest value stays.

use std::collections::{BTreeMap, BTreeSet};

use crate::register::{self, Crew};

/// A moment on the clients' common clock.
pub(crate) type Tick = u64;
/// A partition of the topic that is appended to.
pub(crate) type Partition = i32;

/// One record that was sent.
#[derive(Debug, Clone)]
pub(crate) struct Append {
    /// Whose records keep their order; one writer's appends are listed in the order sent.
    pub(crate) writer: u64,
    pub(crate) partition: Partition,
    /// Unique over the history.
    pub(crate) value: u64,
    pub(crate) sent: Tick,
    /// When it was acknowledged, and at which offset.
    pub(crate) acknowledged: Option<(Tick, i64)>,
    pub(crate) transaction: Option<u64>,
}

/// What the producer of a transaction knows about its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Committed,
    Aborted,
    /// The answer to the commit was lost and not asked for again.
    Unknown,
}

/// What happened to the committed offset of one group, in order; one client does it all.
#[derive(Debug, Clone, Copy)]
pub(crate) enum OffsetStep {
    /// Committed by itself; whether it was acknowledged.
    Commit { offset: i64, acknowledged: bool },
    /// Committed with a transaction.
    InTransaction { offset: i64, transaction: u64 },
    /// Read, with all transactions settled; -1 when there is none.
    Read { offset: i64 },
}

/// A look at the end of a partition; one client takes them all.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    pub(crate) partition: Partition,
    pub(crate) sent: Tick,
    pub(crate) high: i64,
    pub(crate) stable: i64,
}

/// Everything that clients did and saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct History {
    pub(crate) appends: Vec<Append>,
    pub(crate) transactions: BTreeMap<u64, Outcome>,
    pub(crate) offsets: BTreeMap<String, Vec<OffsetStep>>,
    pub(crate) looks: Vec<Look>,
    /// What a read-committed consumer got on its way: partition, offset, value.
    pub(crate) seen: Vec<(Partition, i64, u64)>,
    /// Writes to the compacted topic: per key the values in order, and which were acknowledged.
    pub(crate) table: BTreeMap<String, Vec<(u64, bool)>>,
    /// What the members of a group did.
    pub(crate) crew: Crew,
    /// Answers that must not be.
    pub(crate) complaints: Vec<String>,
}

impl History {
    /// Takes in what another client did.
    pub(crate) fn merge(&mut self, other: Self) {
        self.appends.extend(other.appends);
        self.transactions.extend(other.transactions);
        self.offsets.extend(other.offsets);
        self.looks.extend(other.looks);
        self.seen.extend(other.seen);
        self.table.extend(other.table);
        self.crew.merge(other.crew);
        self.complaints.extend(other.complaints);
    }
}

/// Offset and value of every record of a partition, in the order read.
pub(crate) type Log = Vec<(i64, u64)>;

/// What is left in the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Remains {
    /// What a reader of everything gets.
    pub(crate) all: BTreeMap<Partition, Log>,
    /// What a reader of committed records gets.
    pub(crate) committed: BTreeMap<Partition, Log>,
    /// Newest value of each key of the compacted topic.
    pub(crate) table: BTreeMap<String, u64>,
}

/// Everything that is wrong; empty when all is well.
pub(crate) fn check(history: &History, remains: &Remains) -> Vec<String> {
    let mut wrong = history.complaints.clone();
    let outcomes = settle(history, &mut wrong);
    let places = places(remains, &mut wrong);
    check_presence(history, &places, &mut wrong);
    check_visibility(history, remains, &outcomes, &places, &mut wrong);
    check_order(history, &places, &mut wrong);
    check_looks(history, &mut wrong);
    check_table(history, remains, &mut wrong);
    wrong.extend(register::check(&history.crew));
    wrong
}

/// What the committed offsets say about transactions of which the producer does not know the end.
fn settle(history: &History, wrong: &mut Vec<String>) -> BTreeMap<u64, Outcome> {
    let mut outcomes = history.transactions.clone();
    for (group, steps) in &history.offsets {
        // What may be read now, oldest first, with the transaction it came with.
        let mut possible: Vec<(i64, Option<u64>)> = vec![(-1, None)];
        for step in steps {
            match *step {
                OffsetStep::Commit { offset, acknowledged } => {
                    if acknowledged {
                        possible.clear();
                    }
                    possible.push((offset, None));
                }
                OffsetStep::InTransaction { offset, transaction } => {
                    match outcomes.get(&transaction) {
                        Some(Outcome::Committed) => possible.clear(),
                        Some(Outcome::Unknown) => {}
                        Some(Outcome::Aborted) | None => continue,
                    }
                    possible.push((offset, Some(transaction)));
                }
                OffsetStep::Read { offset } => {
                    let Some(at) = possible.iter().rposition(|(known, _)| *known == offset) else {
                        wrong.push(format!("{group}: read offset {offset}, possible were {possible:?}"));
                        continue;
                    };
                    for (_, transaction) in &possible[at + 1..] {
                        outcomes.extend(transaction.map(|id| (id, Outcome::Aborted)));
                    }
                    outcomes.extend(possible[at].1.map(|id| (id, Outcome::Committed)));
                    possible = vec![possible[at]];
                }
            }
        }
    }
    outcomes
}

type Places = BTreeMap<u64, (Partition, i64)>;

/// Where each value lies; complains about what lies twice or not in order.
fn places(remains: &Remains, wrong: &mut Vec<String>) -> Places {
    let mut places = Places::new();
    for (partition, log) in &remains.all {
        if let Some(pair) = log.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            wrong.push(format!("partition {partition}: offsets do not ascend: {pair:?}"));
        }
        for (offset, value) in log {
            if let Some(first) = places.insert(*value, (*partition, *offset)) {
                wrong.push(format!("value {value} lies twice: {first:?} and {:?}", (partition, offset)));
            }
        }
    }
    places
}

fn check_presence(history: &History, places: &Places, wrong: &mut Vec<String>) {
    let mut sent = BTreeSet::new();
    for append in &history.appends {
        sent.insert(append.value);
        if let Some((_, offset)) = append.acknowledged
            && places.get(&append.value) != Some(&(append.partition, offset))
        {
            wrong.push(format!("acknowledged and not there: {append:?}, but {:?}", places.get(&append.value)));
        }
    }
    wrong.extend(
        places.iter().filter(|(v, _)| !sent.contains(v)).map(|(v, at)| format!("{v} at {at:?} was never sent")),
    );
}

fn check_visibility(
    history: &History,
    remains: &Remains,
    outcomes: &BTreeMap<u64, Outcome>,
    places: &Places,
    wrong: &mut Vec<String>,
) {
    let mut visible = Places::new();
    for (partition, log) in &remains.committed {
        visible.extend(log.iter().map(|(offset, value)| (*value, (*partition, *offset))));
        if let Some(pair) = log.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            wrong.push(format!("partition {partition}, committed: offsets do not ascend: {pair:?}"));
        }
    }
    for (value, at) in &visible {
        if places.get(value) != Some(at) {
            wrong.push(format!("value {value} at {at:?} is seen only by readers of committed records"));
        }
    }
    let mut parts: BTreeMap<u64, (usize, usize)> = BTreeMap::new();
    for append in &history.appends {
        let is_visible = visible.contains_key(&append.value);
        match append.transaction {
            None if is_visible != places.contains_key(&append.value) => {
                wrong.push(format!("not transactional, but hidden: {append:?}"));
            }
            None => {}
            Some(id) => {
                let (shown, total) = parts.entry(id).or_default();
                *shown += usize::from(is_visible);
                *total += 1;
            }
        }
    }
    for (id, (shown, total)) in parts {
        let is_right = match outcomes.get(&id) {
            Some(Outcome::Committed) => shown == total,
            Some(Outcome::Aborted) | None => shown == 0,
            Some(Outcome::Unknown) => shown == 0 || shown == total,
        };
        if !is_right {
            wrong.push(format!("transaction {id}, {:?}: {shown} of {total} records are visible", outcomes.get(&id)));
        }
    }
    for (partition, offset, value) in &history.seen {
        if visible.get(value) != Some(&(*partition, *offset)) {
            wrong.push(format!("a reader saw {value} at {partition}/{offset}; now it is {:?}", visible.get(value)));
        }
    }
}

fn check_order(history: &History, places: &Places, wrong: &mut Vec<String>) {
    let mut last: BTreeMap<(u64, Partition), (i64, u64)> = BTreeMap::new();
    let mut by_place: BTreeMap<(Partition, i64), &Append> = BTreeMap::new();
    for append in &history.appends {
        let Some(&(partition, offset)) = places.get(&append.value) else { continue };
        by_place.insert((partition, offset), append);
        if let Some((before, value)) = last.insert((append.writer, partition), (offset, append.value))
            && before > offset
        {
            let writer = append.writer;
            wrong.push(format!("writer {writer}: {value} at {before} was sent before {} at {offset}", append.value));
        }
    }
    // From the end to the start: nothing may have been acknowledged before it was begun by what
    // lies in front of it.
    let mut earliest: BTreeMap<Partition, (Tick, u64)> = BTreeMap::new();
    for ((partition, offset), append) in by_place.into_iter().rev() {
        if let Some((tick, value)) = earliest.get(&partition)
            && *tick < append.sent
        {
            wrong.push(format!("{value} was acknowledged before {} was sent, but lies behind it", append.value));
        }
        if let Some((tick, at)) = append.acknowledged
            && at == offset
            && earliest.get(&partition).is_none_or(|(known, _)| tick < *known)
        {
            earliest.insert(partition, (tick, append.value));
        }
    }
}

fn check_looks(history: &History, wrong: &mut Vec<String>) {
    let mut acknowledged: Vec<(Tick, Partition, i64)> =
        history.appends.iter().filter_map(|a| a.acknowledged.map(|(tick, at)| (tick, a.partition, at))).collect();
    acknowledged.sort_unstable();
    let mut acknowledged = acknowledged.into_iter().peekable();
    let mut floor: BTreeMap<Partition, i64> = BTreeMap::new();
    let mut before: BTreeMap<Partition, Look> = BTreeMap::new();
    for look in &history.looks {
        while let Some((_, partition, offset)) = acknowledged.next_if(|(tick, ..)| *tick < look.sent) {
            let floor = floor.entry(partition).or_default();
            *floor = (*floor).max(offset + 1);
        }
        let floor = floor.get(&look.partition).copied().unwrap_or(0);
        if look.high < floor {
            wrong.push(format!("{look:?} does not cover what was acknowledged, up to {floor}"));
        }
        if let Some(before) = before.insert(look.partition, *look)
            && (before.high > look.high || before.stable > look.stable)
        {
            wrong.push(format!("the end of a partition fell: {before:?}, then {look:?}"));
        }
    }
}

fn check_table(history: &History, remains: &Remains, wrong: &mut Vec<String>) {
    for (key, writes) in &history.table {
        let newest_acknowledged = writes.iter().rposition(|(_, acknowledged)| *acknowledged);
        let left = remains.table.get(key);
        let at = left.and_then(|left| writes.iter().position(|(value, _)| value == left));
        if at < newest_acknowledged || (left.is_some() && at.is_none()) {
            wrong.push(format!("compacted key {key}: left is {left:?}, number {at:?} of {}", writes.len()));
        }
    }
}

#[cfg(test)]
#[path = "history_tests.rs"]
mod tests;
