#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { max_timeout_ms: 60_000, max_ids: 2, idle_ms: 100_000 };

fn apply(ledger: &mut Ledger, now: i64, request: Request<'_>) -> (Reply, Released) {
    let (reply, changes) = ledger.apply(now, request, &LIMITS);
    let mut released = Released::new();
    for change in changes {
        released.extend(ledger.evolve(change));
    }
    (reply, released)
}

fn init(ledger: &mut Ledger, now: i64, current: Option<(i64, i16)>) -> Reply {
    apply(ledger, now, Request::Init { id: "a", timeout_ms: 1000, current, fresh: 7 }).0
}

fn finish(ledger: &mut Ledger) -> Released {
    let changes = ledger.plan_finished("a");
    changes.into_iter().flat_map(|change| ledger.evolve(change)).collect()
}

fn who(epoch: i16) -> Who<'static> {
    Who { id: "a", producer_id: 7, epoch }
}

fn at(index: i32) -> TopicPartition {
    ("t".to_owned(), index)
}

fn offset(offset: i64) -> Committed {
    Committed { offset, leader_epoch: 0, metadata: String::new(), at_ms: 0 }
}

fn join(ledger: &mut Ledger, now: i64, epoch: i16) -> Reply {
    apply(ledger, now, Request::AddPartitions { who: who(epoch), partitions: vec![at(0)] }).0
}

fn end(ledger: &mut Ledger, epoch: i16, outcome: Outcome) -> Reply {
    apply(ledger, 0, Request::End { who: who(epoch), outcome }).0
}

#[test]
fn offsets_appear_with_the_commit_and_only_then() {
    for (outcome, visible) in [(Outcome::Commit, 1), (Outcome::Abort, 0)] {
        let mut ledger = Ledger::default();
        assert_eq!(init(&mut ledger, 0, None), Reply::Initialised { producer_id: 7, epoch: 0 });
        let offsets = vec![(at(3), offset(5))];
        let add = |group| Request::AddOffsets { who: who(0), group, offsets: offsets.clone() };
        assert_eq!(apply(&mut ledger, 0, add("g")).0, Reply::Refused(ResponseError::InvalidTxnState));
        assert_eq!(apply(&mut ledger, 0, Request::AddGroup { who: who(0), group: "g" }).0, Reply::Done);
        assert_eq!(apply(&mut ledger, 0, add("other")).0, Reply::Refused(ResponseError::InvalidTxnState));
        assert_eq!(apply(&mut ledger, 0, add("g")), (Reply::Done, Released::new()));
        assert!(ledger.is_unstable("g", &at(3)) && !ledger.is_unstable("g", &at(4)));
        assert_eq!(end(&mut ledger, 0, outcome), Reply::EndFirst { epoch: 0 });
        assert!(ledger.is_unstable("g", &at(3)), "decided is not done");
        let released: usize = finish(&mut ledger).values().map(Vec::len).sum();
        assert_eq!(released, visible);
        assert!(!ledger.is_unstable("g", &at(3)));
        assert_eq!(end(&mut ledger, 0, outcome), Reply::Done, "a repeated request is answered as before");
    }
}

#[test]
fn an_outcome_does_not_change() {
    let mut ledger = Ledger::default();
    init(&mut ledger, 0, None);
    assert_eq!(end(&mut ledger, 0, Outcome::Commit), Reply::Refused(ResponseError::InvalidTxnState));
    join(&mut ledger, 0, 0);
    end(&mut ledger, 0, Outcome::Commit);
    assert_eq!(end(&mut ledger, 0, Outcome::Abort), Reply::Refused(ResponseError::InvalidTxnState));
    assert_eq!(join(&mut ledger, 0, 0), Reply::Refused(ResponseError::ConcurrentTransactions));
    assert_eq!(ledger.may_write(who(0), &at(0)), Err(ResponseError::InvalidTxnState));
    finish(&mut ledger);
    assert_eq!(end(&mut ledger, 0, Outcome::Abort), Reply::Refused(ResponseError::InvalidTxnState));
}

#[test]
fn a_successor_ends_the_transaction_and_shuts_the_zombie_out() {
    let mut ledger = Ledger::default();
    init(&mut ledger, 0, None);
    join(&mut ledger, 0, 0);
    assert_eq!(ledger.may_write(who(0), &at(0)), Ok(()));
    assert_eq!(ledger.may_write(who(0), &at(1)), Err(ResponseError::InvalidTxnState));
    assert_eq!(init(&mut ledger, 0, None), Reply::EndFirst { epoch: 1 });
    assert_eq!(ledger.may_write(who(0), &at(0)), Err(ResponseError::ProducerFenced));
    assert_eq!(end(&mut ledger, 0, Outcome::Commit), Reply::Refused(ResponseError::ProducerFenced));
    finish(&mut ledger);
    assert_eq!(init(&mut ledger, 0, None), Reply::Initialised { producer_id: 7, epoch: 2 });
    let zombie = init(&mut ledger, 0, Some((7, 0)));
    assert_eq!(zombie, Reply::Refused(ResponseError::ProducerFenced), "nor may it come back by itself");
}

#[test]
fn raising_the_epoch_twice_by_a_lost_reply_raises_it_once() {
    let mut ledger = Ledger::default();
    init(&mut ledger, 0, None);
    assert_eq!(init(&mut ledger, 0, Some((7, 0))), Reply::Initialised { producer_id: 7, epoch: 1 });
    assert_eq!(init(&mut ledger, 0, Some((7, 0))), Reply::Initialised { producer_id: 7, epoch: 1 });
    assert_eq!(init(&mut ledger, 0, Some((8, 1))), Reply::Refused(ResponseError::ProducerFenced));
}

#[test]
fn abandoned_transactions_are_aborted_and_idle_ids_forgotten() {
    let mut ledger = Ledger::default();
    init(&mut ledger, 0, None);
    join(&mut ledger, 500, 0);
    apply(&mut ledger, 1499, Request::Expire);
    assert!(ledger.ending().is_empty());
    apply(&mut ledger, 1500, Request::Expire);
    assert_eq!(ledger.ending(), ["a"]);
    assert_eq!(end(&mut ledger, 0, Outcome::Commit), Reply::Refused(ResponseError::ProducerFenced));
    finish(&mut ledger);
    apply(&mut ledger, 101_499, Request::Expire);
    assert!(ledger.get("a").is_some());
    apply(&mut ledger, 101_500, Request::Expire);
    assert!(ledger.get("a").is_none());
}

#[test]
fn bounds_hold_and_a_worn_out_epoch_gets_a_fresh_producer() {
    let mut ledger = Ledger::default();
    let begin = |ledger: &mut Ledger, id, timeout_ms, fresh| {
        apply(ledger, 0, Request::Init { id, timeout_ms, current: None, fresh }).0
    };
    let refused = Reply::Refused;
    assert_eq!(begin(&mut ledger, "", 1, 1), refused(ResponseError::InvalidRequest));
    assert_eq!(begin(&mut ledger, "a", 0, 1), refused(ResponseError::InvalidTransactionTimeout));
    assert_eq!(begin(&mut ledger, "a", 60_001, 1), refused(ResponseError::InvalidTransactionTimeout));
    begin(&mut ledger, "a", 1, 1);
    begin(&mut ledger, "b", 1, 2);
    assert_eq!(begin(&mut ledger, "c", 1, 3), refused(ResponseError::PolicyViolation));
    let mut worn = ledger.get("a").unwrap().clone();
    worn.epoch = LAST_EPOCH;
    ledger.evolve(Change::Restored { id: "a".into(), transaction: worn });
    assert_eq!(begin(&mut ledger, "a", 1, 9), Reply::Initialised { producer_id: 9, epoch: 0 });
}

#[test]
fn lists_go_by_phase_producer_and_age() {
    let mut ledger = Ledger::default();
    init(&mut ledger, 0, None);
    let ids = |ledger: &Ledger, now, filter: &Filter<'_>| ledger.list(now, filter).len();
    let all = Filter::default();
    let mine = Filter { producer_ids: vec![7], ..Filter::default() };
    let others = Filter { producer_ids: vec![8], ..Filter::default() };
    let old = Filter { open_longer_than_ms: Some(100), ..Filter::default() };
    assert_eq!([&all, &mine, &others, &old].map(|filter| ids(&ledger, 50, filter)), [1, 1, 0, 1], "nothing is open");
    join(&mut ledger, 1000, 0);
    assert_eq!((ids(&ledger, 1100, &old), ids(&ledger, 1101, &old)), (0, 1));
    for (outcome, names) in [(None, "Ongoing"), (Some(Outcome::Commit), "PrepareCommit")] {
        outcome.map(|outcome| end(&mut ledger, 0, outcome));
        let here = |name| ids(&ledger, 2000, &Filter { phases: vec![name], ..Filter::default() });
        let found: Vec<_> = PHASE_NAMES.iter().filter(|name| here(name) == 1).collect();
        assert_eq!(found, [&names]);
    }
}

proptest! {
    /// Whatever happens: planning changes nothing; a snapshot and the journal's text give the same
    /// state; the epoch never falls; offsets come out only of transactions that were committed.
    #[test]
    fn invariants(steps in proptest::collection::vec((0..7u8, 0..4i16, 0..400i64), 1..80)) {
        let mut ledger = Ledger::default();
        let (mut now, mut newest, mut committing) = (0, 0, false);
        for (kind, back, wait) in steps {
            now += wait;
            let who = who(newest - back);
            let offsets = vec![(at(back.into()), offset(now))];
            let request = match kind {
                0 => Request::Init { id: "a", timeout_ms: 1000, current: None, fresh: 7 },
                1 => Request::AddPartitions { who, partitions: vec![at(back.into())] },
                2 => Request::AddGroup { who, group: "g" },
                3 => Request::AddOffsets { who, group: "g", offsets },
                4 => Request::End { who, outcome: Outcome::Commit },
                5 => Request::End { who, outcome: Outcome::Abort },
                _ => Request::Expire,
            };
            let before = ledger.clone();
            let (_, changes) = ledger.apply(now, request, &LIMITS);
            prop_assert_eq!(&before, &ledger);
            for change in changes {
                if let Change::Decided { outcome, .. } = change {
                    committing = outcome == Outcome::Commit;
                    prop_assert!(!committing || back == 0, "an old epoch committed");
                }
                let text = serde_json::to_string(&change).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Change>(&text).unwrap(), &change);
                prop_assert_eq!(ledger.evolve(change), Released::new());
            }
            if wait % 2 == 0 {
                let released = finish(&mut ledger);
                prop_assert!(released.is_empty() || committing);
            }
            if let Some(known) = ledger.get("a") {
                prop_assert!(known.epoch >= newest);
                prop_assert!(PHASE_NAMES.contains(&known.phase.name()));
                newest = known.epoch;
            }
            let mut copy = Ledger::default();
            ledger.snapshot().for_each(|change| { copy.evolve(change); });
            prop_assert_eq!(&copy, &ledger);
        }
    }
}
