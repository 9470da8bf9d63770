#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use kafka_protocol::records::Compression;
use proptest::prelude::*;

use super::*;
use crate::log::partition::{Durability, Isolation, Partition};
use crate::log::recovery::Opening;
use crate::log::rules::Cleanup;
use crate::log::state::Reply;
use crate::log::testing::{self, Entry, Made, PLAIN, entry};

fn rules() -> LogRules {
    LogRules {
        cleanup: Cleanup { delete: false, compact: true },
        segment_bytes: 600,
        delete_retention_ms: 1000,
        ..LogRules::small()
    }
}

fn open(dir: &Path) -> Partition {
    let opening = Opening { start: 0, segment_bytes: 600, now_ms: 0 };
    Partition::open("test-0".into(), dir.to_owned(), opening, Durability::PageCache).unwrap()
}

fn put(partition: &Partition, entries: &[Entry], made: Made) -> i64 {
    let bytes = testing::batch(entries, made);
    let header = batch::validate(&bytes, true).unwrap();
    match partition.append(0, &header, &bytes, &rules(), || Ok(())).unwrap() {
        Reply::Appended { base_offset, .. } => base_offset,
        other => panic!("{other:?}"),
    }
}

type Content = Vec<(i64, Option<String>, Option<String>)>;

fn content(partition: &Partition) -> Content {
    let marks = partition.watermarks();
    let (mut at, mut all) = (marks.start, Vec::new());
    while at < marks.end {
        let records = partition.read(at, 10_000, true, Isolation::Uncommitted).unwrap().records;
        let mut rest = &records[..];
        while let Ok(header) = BatchHeader::parse(rest) {
            batch::verify_crc(&header, rest).unwrap();
            let own = testing::decode(&rest[..header.size]);
            assert!(own.iter().all(|r| r.0 >= header.base_offset && r.0 <= header.last_offset()));
            all.extend(own);
            at = header.next_offset();
            rest = &rest[header.size..];
        }
    }
    all
}

fn tombstone(key: &str) -> Entry {
    Entry { key: Some(key.into()), value: None, timestamp: 0 }
}

#[test]
fn newest_of_each_key_stays_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    for i in 0..60 {
        put(&partition, &[entry(&format!("k{}", i % 4), &format!("v{i}"), i)], PLAIN);
    }
    let before = content(&partition);
    partition.housekeep(0, &rules());
    let after = content(&partition);
    assert!(after.len() < before.len() / 2, "{} of {} left", after.len(), before.len());
    assert!(after.iter().all(|record| before.contains(record)), "no record changed");
    assert_eq!(partition.watermarks().end, 60);
    assert_eq!(newest(&after), newest(&before));
    drop(partition);
    assert_eq!(content(&open(dir.path())), after, "a restart changes nothing");
}

fn newest(content: &Content) -> BTreeMap<Option<String>, (i64, Option<String>)> {
    content.iter().map(|(offset, key, value)| (key.clone(), (*offset, value.clone()))).collect()
}

/// A consumer that stands where nothing is left reads on with what comes behind.
#[test]
fn compaction_does_not_move_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    for i in 0..100 {
        put(&partition, &[entry("k", &format!("v{i}"), i)], PLAIN);
    }
    partition.housekeep(0, &rules());
    for partition in [partition, open(dir.path())] {
        assert_eq!(partition.watermarks().start, 0);
        let left = content(&partition);
        for at in [0, 1, 40] {
            let read = partition.read(at, 10_000, true, Isolation::Uncommitted).unwrap();
            assert!(!read.records.is_empty(), "nothing from {at} on");
        }
        assert!(left.len() < 20 && left.last().is_some_and(|r| r.0 == 99), "{left:?}");
    }
}

#[test]
fn tombstones_go_after_their_time_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    put(&partition, &[entry("gone", "value", 0)], PLAIN);
    put(&partition, &[tombstone("gone")], PLAIN);
    for i in 0..30 {
        put(&partition, &[entry("filler", &format!("v{i}"), 0)], PLAIN);
    }
    let of_gone = |partition: &Partition| {
        let found = content(partition).into_iter().filter(|r| r.1.as_deref() == Some("gone"));
        found.map(|r| r.2).collect::<Vec<_>>()
    };
    assert_eq!(of_gone(&partition), [Some("value".to_owned()), None]);
    partition.housekeep(5000, &rules());
    assert_eq!(of_gone(&partition), [None], "the value is gone, its tombstone tells so");
    partition.housekeep(5999, &rules());
    assert_eq!(of_gone(&partition), [None]);
    partition.housekeep(6000, &rules());
    assert!(of_gone(&partition).is_empty());
}

#[test]
fn uncompacted_lag_is_respected() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    for i in 0..30 {
        put(&partition, &[entry("k", &format!("v{i}"), 1000 + i)], PLAIN);
    }
    let lagging = LogRules { min_compaction_lag_ms: 5000, ..rules() };
    partition.housekeep(2000, &lagging);
    assert_eq!(content(&partition).len(), 30);
    partition.housekeep(7000, &lagging);
    assert!(content(&partition).len() < 30);
}

#[test]
fn producers_are_remembered_over_compaction() {
    let dir = tempfile::tempdir().unwrap();
    let made = |sequence| Made { producer_id: 3, epoch: 0, sequence, ..PLAIN };
    {
        let partition = open(dir.path());
        for i in 0..30 {
            put(&partition, &[entry("k", &format!("v{i}"), 0)], made(i));
        }
        partition.housekeep(0, &rules());
    }
    let partition = open(dir.path());
    for i in 25..30 {
        assert_eq!(put(&partition, &[entry("k", &format!("v{i}"), 0)], made(i)), i64::from(i));
    }
    assert_eq!(put(&partition, &[entry("k", "v30", 0)], made(30)), 30);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever was written in whatever batches and codecs, compacting any number of times keeps
    /// the newest record of every key at its offset, invents nothing and keeps the log's end.
    #[test]
    fn nothing_newest_is_lost(
        batches in proptest::collection::vec(
            (proptest::collection::vec((0u8..6, proptest::option::of(0u16..1000)), 1..6), 0usize..5),
            1..40,
        ),
        passes in 1i64..4,
    ) {
        let codecs = [
            Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4,
            Compression::Zstd,
        ];
        let dir = tempfile::tempdir().unwrap();
        let partition = open(dir.path());
        for (entries, codec) in &batches {
            let entries: Vec<Entry> = entries
                .iter()
                .map(|(key, value)| Entry {
                    key: Some(format!("k{key}")),
                    value: value.map(|v| v.to_string()),
                    timestamp: 0,
                })
                .collect();
            put(&partition, &entries, Made { compression: codecs[*codec], ..PLAIN });
        }
        let (before, end) = (content(&partition), partition.watermarks().end);
        for pass in 0..passes {
            // No time passes for tombstones.
            partition.housekeep(pass, &rules());
        }
        let after = content(&partition);
        prop_assert_eq!(newest(&after), newest(&before));
        prop_assert!(after.iter().all(|record| before.contains(record)));
        prop_assert!(after.windows(2).all(|pair| pair[0].0 < pair[1].0));
        prop_assert_eq!(partition.watermarks().end, end);
        drop(partition);
        let reopened = open(dir.path());
        prop_assert_eq!(content(&reopened), after);
        prop_assert_eq!(reopened.watermarks().end, end);
    }
}
