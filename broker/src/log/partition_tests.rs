#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use kafka_protocol::records::Compression;

use super::*;
use crate::log::testing::{self, Entry, Made, PLAIN, entry};

fn opening() -> Opening {
    Opening { start: 0, segment_bytes: 4096, now_ms: 0 }
}

fn open(dir: &Path) -> Arc<Partition> {
    let opened = Partition::open("test-0".into(), dir.to_owned(), opening(), Durability::PageCache);
    Arc::new(opened.unwrap())
}

fn put(partition: &Partition, entries: &[Entry], made: Made, rules: &LogRules) -> i64 {
    let bytes = testing::batch(entries, made);
    let header = batch::validate(&bytes, false).unwrap();
    match partition.append(1000, &header, &bytes, rules, || Ok(())).unwrap() {
        Reply::Appended { base_offset, .. } => base_offset,
        other => panic!("{other:?}"),
    }
}

fn read_all(partition: &Partition) -> Vec<(i64, Option<String>, Option<String>)> {
    let Watermarks { mut start, end, .. } = partition.watermarks();
    let mut all = Vec::new();
    while start < end {
        let fetched = partition.read(start, 2000, true, Isolation::Uncommitted).unwrap();
        let header = BatchHeader::parse(&fetched.records).unwrap();
        assert!(header.last_offset() >= start);
        let records = testing::decode(&fetched.records);
        let mut rest = &fetched.records[..];
        while let Ok(header) = BatchHeader::parse(rest) {
            start = header.next_offset();
            rest = &rest[header.size..];
        }
        all.extend(records);
    }
    all
}

fn numbered(range: std::ops::Range<i64>) -> Vec<Entry> {
    range.map(|i| entry(&format!("k{i}"), &format!("v{i}"), i * 10)).collect()
}

#[test]
fn what_is_appended_is_read_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    for i in 0..200 {
        assert_eq!(put(&partition, &numbered(i * 3..i * 3 + 3), PLAIN, &LogRules::small()), i * 3);
    }
    let check = |partition: &Partition| {
        let all = read_all(partition);
        let expected = numbered(0..600).into_iter().zip(0..).map(|(e, i)| (i, e.key, e.value));
        assert!(all.into_iter().eq(expected));
        // From the middle of a batch the whole batch is returned.
        let fetched = partition.read(100, 1, true, Isolation::Uncommitted).unwrap();
        assert_eq!(testing::decode(&fetched.records).first().unwrap().0, 99);
        assert!(partition.read(100, 1, false, Isolation::Uncommitted).unwrap().records.is_empty());
    };
    check(&partition);
    assert!(fs::read_dir(dir.path()).unwrap().count() > 10, "many segments");
    drop(partition);
    check(&open(dir.path()));
}

#[test]
fn offsets_outside_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    put(&partition, &numbered(0..5), PLAIN, &LogRules::small());
    assert_eq!(partition.read(6, 100, true, Isolation::Uncommitted).unwrap_err(), ResponseError::OffsetOutOfRange);
    assert!(partition.read(5, 100, true, Isolation::Uncommitted).unwrap().records.is_empty());
    partition.trim(0, 3, &LogRules::small(), |_| Ok(())).unwrap();
    assert_eq!(partition.read(2, 100, true, Isolation::Uncommitted).unwrap_err(), ResponseError::OffsetOutOfRange);
    assert!(!partition.read(3, 100, true, Isolation::Uncommitted).unwrap().records.is_empty());
    let refused = partition.trim(0, 5, &LogRules::small(), |_| Err(ResponseError::KafkaStorageError));
    assert_eq!(refused.unwrap_err(), ResponseError::KafkaStorageError);
    assert_eq!(partition.watermarks().start, 3, "what is not written down does not count");
}

#[test]
fn records_are_found_by_time_in_every_codec() {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let dir = tempfile::tempdir().unwrap();
        let partition = open(dir.path());
        let made = Made { compression, ..PLAIN };
        for i in 0..50 {
            put(&partition, &numbered(i * 4..i * 4 + 4), made, &LogRules::small());
        }
        for (time, offset) in [(-5, 0), (0, 0), (1, 1), (1230, 123), (1231, 124), (1990, 199)] {
            let found = partition.find_time(time).unwrap().unwrap();
            assert_eq!((found.offset, found.timestamp), (offset, offset * 10));
        }
        assert_eq!(partition.find_time(1991).unwrap(), None);
        assert_eq!(partition.find_newest().unwrap().unwrap().offset, 199);
        partition.trim(0, 150, &LogRules::small(), |_| Ok(())).unwrap();
        assert_eq!(partition.find_time(0).unwrap().unwrap().offset, 150);
    }
}

#[test]
fn failed_writes_leave_no_trace() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    let log = segment::log_path(dir.path(), 0);
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let bytes = testing::batch(&numbered(0..2), PLAIN);
    let header = batch::validate(&bytes, false).unwrap();
    let refused = partition.append(0, &header, &bytes, &LogRules::small(), || Ok(()));
    assert_eq!(refused.unwrap_err(), ResponseError::KafkaStorageError);
    assert_eq!(partition.watermarks(), Watermarks { start: 0, end: 0, stable_end: 0 });
    fs::remove_file(&log).unwrap();
    assert_eq!(put(&partition, &numbered(0..2), PLAIN, &LogRules::small()), 0);
    assert_eq!(read_all(&partition).len(), 2);
}

#[tokio::test]
async fn waiting_fetches_are_woken_by_appends_only() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    let waker = Arc::new(Notify::new());
    let ticket = partition.wait(&waker);
    let quiet = tokio::time::timeout(Duration::from_millis(1), waker.notified()).await;
    assert!(quiet.is_err());
    put(&partition, &numbered(0..1), PLAIN, &LogRules::small());
    waker.notified().await;
    drop(ticket);
    assert!(lock(&partition.waiting).wakers.is_empty(), "the ticket was given back");
}

#[test]
fn repeats_are_recognised_after_reopening_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let made = |sequence| Made { producer_id: 5, epoch: 0, sequence, ..PLAIN };
    let big = |i: i32| [entry("k", &format!("{i}{}", "x".repeat(1500)), 0)];
    {
        let partition = open(dir.path());
        for i in 0..9 {
            put(&partition, &big(i), made(i), &LogRules::small());
        }
    }
    // With and without index files: what they know is also in the batches.
    for remove_indexes in [false, true] {
        if remove_indexes {
            for entry in fs::read_dir(dir.path()).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "index") {
                    fs::remove_file(path).unwrap();
                }
            }
        }
        let partition = open(dir.path());
        for i in 4..9 {
            let offset = put(&partition, &big(i), made(i), &LogRules::small());
            assert_eq!(offset, i64::from(i), "indexes removed: {remove_indexes}");
        }
        assert_eq!(partition.watermarks().end, 9);
    }
}

#[test]
fn deleted_partitions_refuse_everything() {
    let dir = tempfile::tempdir().unwrap();
    let partition = open(dir.path());
    put(&partition, &numbered(0..1), PLAIN, &LogRules::small());
    partition.delete();
    let unknown = ResponseError::UnknownTopicOrPartition;
    assert_eq!(partition.read(0, 100, true, Isolation::Uncommitted).unwrap_err(), unknown);
    let bytes = testing::batch(&numbered(0..2), PLAIN);
    let header = batch::validate(&bytes, false).unwrap();
    assert_eq!(partition.append(0, &header, &bytes, &LogRules::small(), || Ok(())).unwrap_err(), unknown);
}
