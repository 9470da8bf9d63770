#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::log::testing::{self, PLAIN, entry};

fn opening() -> Opening {
    Opening { start: 0, segment_bytes: 1 << 20, now_ms: 0 }
}

/// `count` batches of two records each, back to back; also where each begins.
fn log_bytes(count: i64) -> (Vec<u8>, Vec<usize>) {
    let (mut bytes, mut starts) = (Vec::new(), Vec::new());
    for i in 0..count {
        let entries = [entry("k", &format!("value {i}"), i), entry("l", "x", i)];
        let mut one = testing::batch(&entries, PLAIN);
        batch::assign(&mut one, i * 2, None);
        starts.push(bytes.len());
        bytes.extend(one);
    }
    (bytes, starts)
}

fn with_log(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = segment::log_path(dir.path(), 0);
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

proptest! {
    /// Wherever a write was cut short, exactly the whole batches in front of it remain.
    #[test]
    fn torn_tails_are_cut(count in 1i64..12, cut in any::<proptest::sample::Index>()) {
        let (bytes, starts) = log_bytes(count);
        let keep = cut.index(bytes.len() + 1);
        let (dir, path) = with_log(&bytes[..keep]);
        let log = open(dir.path(), opening()).unwrap();
        let whole = starts.iter().skip(1).chain([&bytes.len()]).filter(|end| **end <= keep).count();
        prop_assert_eq!(log.end(), whole as i64 * 2);
        let expected = starts.get(whole).copied().unwrap_or(bytes.len());
        prop_assert_eq!(fs::metadata(&path).unwrap().len(), expected as u64);
    }

    /// One damaged byte in the middle of a log costs at most the batch it is in; nothing is cut.
    #[test]
    fn damage_in_the_middle_costs_one_batch(
        damaged in 1usize..10, at in any::<proptest::sample::Index>(), bit in 0u8..8,
    ) {
        let (mut bytes, starts) = log_bytes(12);
        let batch = starts[damaged]..starts[damaged + 1];
        bytes[batch.start + at.index(batch.len())] ^= 1 << bit;
        let (dir, path) = with_log(&bytes);
        let log = open(dir.path(), opening()).unwrap();
        prop_assert_eq!(log.end(), 24);
        prop_assert_eq!(fs::read(&path).unwrap(), bytes);
        // Readers find what follows the damage.
        let behind = (damaged as i64 + 1) * 2;
        let place = log.locate(behind).unwrap();
        let file = File::open(&path).unwrap();
        let span = segment::Span { until: i64::MAX,
            position: place.position, limit: place.limit, offset: behind, end: place.end,
            max_bytes: 100_000, at_least_one: true,
        };
        let read = segment::read_batches(&file, span).unwrap();
        prop_assert_eq!(testing::decode(&read).len(), 24 - behind as usize);
    }

    /// Garbage behind whole batches goes, they stay.
    #[test]
    fn garbage_at_the_end_is_cut(garbage in proptest::collection::vec(any::<u8>(), 1..300)) {
        let (bytes, _) = log_bytes(5);
        let (dir, path) = with_log(&[&bytes[..], &garbage].concat());
        let log = open(dir.path(), opening()).unwrap();
        prop_assert_eq!(log.end(), 10);
        prop_assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn leftovers_of_a_replacement_are_removed() {
    let (bytes, _) = log_bytes(3);
    let (dir, path) = with_log(&bytes);
    let leftover = path.with_extension("tmp");
    fs::write(&leftover, b"half").unwrap();
    assert_eq!(open(dir.path(), opening()).unwrap().end(), 6);
    assert!(!leftover.exists());
}

#[test]
fn empty_last_segment_keeps_the_end_of_the_log() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(segment::log_path(dir.path(), 100), b"").unwrap();
    let log = open(dir.path(), Opening { start: 100, ..opening() }).unwrap();
    assert_eq!((log.start(), log.end()), (100, 100));
}

/// A power cut may take the end of a segment and leave the empty next one behind: offsets that
/// nobody has seen are given out again, without a hole.
#[test]
fn empty_segment_behind_a_cut_one_goes() {
    let (bytes, starts) = log_bytes(4);
    let (dir, _) = with_log(&bytes[..starts[3] + 10]);
    fs::write(segment::log_path(dir.path(), 8), b"").unwrap();
    let log = open(dir.path(), opening()).unwrap();
    assert_eq!(log.end(), 6);
    assert!(!segment::log_path(dir.path(), 8).exists());
}

#[test]
fn index_of_another_state_is_not_believed() {
    let (bytes, _) = log_bytes(4);
    let (dir, path) = with_log(&bytes);
    let log = open(dir.path(), opening()).unwrap();
    segment::write_index(dir.path(), log.active(), log.producers(), false).unwrap();
    fs::write(segment::log_path(dir.path(), 8), &log_bytes(0).0).unwrap();
    assert!(segment::read_index(dir.path(), 0, bytes.len() as u64).is_some());
    assert!(segment::read_index(dir.path(), 0, 7).is_none(), "another size");
    let index = segment::index_path(dir.path(), 0);
    let mut damaged = fs::read(&index).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fs::write(&index, damaged).unwrap();
    assert!(segment::read_index(dir.path(), 0, fs::metadata(path).unwrap().len()).is_none());
    assert_eq!(open(dir.path(), opening()).unwrap().end(), 8);
}
