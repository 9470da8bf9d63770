#![allow(clippy::unwrap_used, reason = "tests")]
//! What a log knows of transactions: before and after a restart, and through compaction.

use std::path::Path;

use proptest::prelude::*;

use super::batch::{self, BatchHeader, Ending};
use super::partition::{Durability, Fetched, Isolation, Partition};
use super::recovery::Opening;
use super::rules::{Cleanup, LogRules};
use super::testing::{self, Made, PLAIN, entry};

fn open(dir: &Path) -> Partition {
    let opening = Opening { start: 0, segment_bytes: 300, now_ms: 0 };
    Partition::open("test-0".into(), dir.to_owned(), opening, Durability::PageCache).unwrap()
}

fn rules() -> LogRules {
    LogRules { segment_bytes: 300, cleanup: Cleanup { delete: false, compact: true }, ..LogRules::small() }
}

/// Appends one record of a transaction (or of none, for a negative producer).
fn put(log: &Partition, producer_id: i64, sequence: i32, key: &str, value: &str) {
    let made = if producer_id < 0 { PLAIN } else { Made { producer_id, epoch: 0, sequence, ..PLAIN } };
    let mut bytes = testing::batch(&[entry(key, value, 0)], made);
    if producer_id >= 0 {
        bytes[22] |= 0x10;
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    let header = batch::validate(&bytes, true).unwrap();
    log.append(0, &header, &bytes, &rules(), || Ok(())).unwrap();
}

fn end(log: &Partition, producer_id: i64, is_commit: bool) {
    log.end_transaction(0, Ending { producer_id, epoch: 0, is_commit }, &rules()).unwrap();
}

/// What a `read_committed` client makes of the log, as clients do it: from the list of aborted
/// transactions and the abort markers.
fn committed(log: &Partition) -> Vec<(i64, String)> {
    let marks = log.watermarks();
    let (mut at, mut seen) = (marks.start, Vec::new());
    while at < marks.stable_end {
        let Fetched { records, aborted, .. } = log.read(at, 250, true, Isolation::Committed).unwrap();
        let mut pending = aborted.unwrap();
        let mut dropping = Vec::new();
        let mut rest = &records[..];
        if rest.is_empty() {
            // Compaction has removed all there was in front of the first open transaction.
            assert_eq!(log.available(at, Isolation::Committed), Ok(0), "stuck at {at}");
            break;
        }
        while let Ok(header) = BatchHeader::parse(rest) {
            pending.retain(|a| {
                let begun = a.first <= header.last_offset();
                if begun {
                    dropping.push(a.producer_id);
                }
                !begun
            });
            match batch::ending(&header, rest) {
                Some(Ending { producer_id, is_commit: false, .. }) => dropping.retain(|id| *id != producer_id),
                Some(_) => {}
                None if header.is_transactional() && dropping.contains(&header.producer_id) => {}
                None => {
                    let own = testing::decode(&rest[..header.size]);
                    seen.extend(own.into_iter().map(|(offset, _, value)| (offset, value.unwrap())));
                }
            }
            at = header.next_offset();
            rest = &rest[header.size..];
        }
    }
    seen
}

fn values(log: &Partition) -> Vec<String> {
    committed(log).into_iter().map(|(_, value)| value).collect()
}

#[test]
fn open_records_are_hidden_and_aborted_ones_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    put(&log, -1, 0, "a", "plain");
    put(&log, 1, 0, "b", "one");
    put(&log, 2, 0, "c", "two");
    put(&log, -1, 0, "d", "late");
    assert_eq!((log.watermarks().stable_end, log.watermarks().end), (1, 4));
    assert_eq!(log.available(1, Isolation::Committed), Ok(0));
    assert!(log.available(1, Isolation::Uncommitted).unwrap() > 0);
    assert_eq!(values(&log), ["plain"]);
    end(&log, 1, false);
    assert_eq!(log.watermarks().stable_end, 2);
    end(&log, 2, true);
    assert_eq!(values(&log), ["plain", "two", "late"]);
    // A marker for what is not open, or was ended already, leaves no trace.
    let before = log.watermarks();
    end(&log, 2, false);
    end(&log, 9, true);
    assert_eq!(log.watermarks(), before);
}

#[test]
fn a_batch_that_is_not_admitted_leaves_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let bytes = testing::batch(&[entry("k", "v", 0)], PLAIN);
    let header = batch::validate(&bytes, true).unwrap();
    let refused = log.append(0, &header, &bytes, &rules(), || Err(kafka_protocol::ResponseError::InvalidTxnState));
    assert!(refused.is_err());
    assert_eq!(log.watermarks().end, 0);
}

/// Found by the property below: the marker lay in the segment that is not compacted yet.
#[test]
fn an_aborted_record_does_not_displace_an_older_committed_one() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    put(&log, 1, 0, "k", "kept");
    end(&log, 1, true);
    put(&log, 1, 1, "k", "aborted");
    end(&log, 1, false);
    log.housekeep(0, &rules());
    assert_eq!(values(&log), ["kept"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// Against a model: readers of committed records see all records of committed transactions and
    /// none of others, before and after a restart; compaction keeps the newest committed of each key.
    #[test]
    fn committed_records_and_no_others(steps in proptest::collection::vec((0..4i64, 0..6u8, 0..4u8), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut log = open(dir.path());
        let mut records: Vec<(i64, u8, String, Option<bool>)> = Vec::new();
        let mut sequences = [0; 4];
        for (i, (producer, action, key)) in steps.into_iter().enumerate() {
            match action {
                0 | 1 if producer > 0 => {
                    end(&log, producer, action == 0);
                    let own = records.iter_mut().filter(|r| r.0 == producer && r.3.is_none());
                    own.for_each(|record| record.3 = Some(action == 0));
                }
                2 => log = { drop(log); open(dir.path()) },
                _ => {
                    let id = if producer == 0 { -1 } else { producer };
                    let value = format!("value-{i}");
                    put(&log, id, sequences[producer as usize], &format!("key-{key}"), &value);
                    sequences[producer as usize] += 1;
                    records.push((producer, key, value, (producer == 0).then_some(true)));
                }
            }
        }
        // In front of the first open record; of those, the committed ones.
        let visible: Vec<_> = records.iter().take_while(|r| r.3.is_some()).filter(|r| r.3 == Some(true)).collect();
        let expected: Vec<&str> = visible.iter().map(|r| r.2.as_str()).collect();
        prop_assert_eq!(values(&log), expected.clone());
        log = { drop(log); open(dir.path()) };
        prop_assert_eq!(values(&log), expected.clone());
        let marks = log.watermarks();
        for now in [0, 10_000, 20_000] {
            log.housekeep(now, &rules());
            let left = values(&log);
            prop_assert!(left.iter().all(|value| expected.contains(&value.as_str())), "{left:?} of {expected:?}");
            for key in 0..4 {
                if let Some(newest) = visible.iter().rev().find(|r| r.1 == key) {
                    prop_assert!(left.contains(&newest.2), "key {key} lost {} in {left:?}", newest.2);
                }
            }
            prop_assert_eq!(log.watermarks().end, marks.end);
            prop_assert_eq!(log.watermarks().stable_end, marks.stable_end);
        }
        // Without indexes all is found by scanning.
        drop(log);
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "index") {
                std::fs::remove_file(path).unwrap();
            }
        }
        let log = open(dir.path());
        let left = values(&log);
        prop_assert!(left.iter().all(|value| expected.contains(&value.as_str())), "{left:?} of {expected:?}");
        prop_assert_eq!(log.watermarks().stable_end, marks.stable_end);
    }
}
