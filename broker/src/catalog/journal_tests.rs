#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;
use crate::catalog::tests::{after, event};

fn first() -> Event {
    Event::ClusterNamed { id: "test".into() }
}

fn open(dir: &Path) -> (Journal, Catalog) {
    Journal::open(dir, first).unwrap()
}

fn file(dir: &Path) -> PathBuf {
    path(dir, open(dir).0.generation)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What was appended is there after reopening, rewritten or not.
    #[test]
    fn reopening_replays(
        events in proptest::collection::vec(event(), 0..30), rewrite_at in 0usize..30,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, mut catalog) = open(dir.path());
        for (i, event) in events.into_iter().enumerate() {
            journal.append(std::slice::from_ref(&event), false).unwrap();
            catalog.evolve(event);
            if i == rewrite_at {
                journal.rewrite(&catalog).unwrap();
            }
        }
        drop(journal);
        prop_assert_eq!(open(dir.path()).1, catalog);
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "one generation only");
    }

    /// Wherever the last write was cut short, the events before it remain, and writing goes on.
    #[test]
    fn torn_records_are_cut(
        events in proptest::collection::vec(event(), 1..12), cut in any::<proptest::sample::Index>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (mut journal, _) = open(dir.path());
        let mut ends = vec![journal.size];
        for event in &events {
            journal.append(std::slice::from_ref(event), false).unwrap();
            ends.push(journal.size);
        }
        drop(journal);
        let path = file(dir.path());
        let begin = ends[0] as usize;
        let keep = begin + cut.index(ends[events.len()] as usize - begin + 1);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..keep]).unwrap();
        let whole = ends.iter().filter(|end| **end <= keep as u64).count() - 1;
        let expected = [&[first()], &events[..whole]].concat();
        let (mut journal, catalog) = open(dir.path());
        prop_assert_eq!(&catalog, &after(&expected));
        journal.append(&events[..1], false).unwrap();
        drop(journal);
        prop_assert_eq!(open(dir.path()).1, after(&[&expected[..], &events[..1]].concat()));
    }
}

#[test]
fn damage_before_the_end_is_an_error_that_names_the_place() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let at = journal.size;
    for name in ["a", "b"] {
        journal.append(&[Event::TopicDeleted { name: name.into() }], true).unwrap();
    }
    drop(journal);
    let path = file(dir.path());
    let mut bytes = fs::read(&path).unwrap();
    bytes[at as usize + FRAME + 3] ^= 1;
    fs::write(&path, bytes).unwrap();
    match Journal::open(dir.path(), first) {
        Err(Error::Journal { at: found, .. }) => assert_eq!(found, at),
        other => panic!("{other:?}"),
    }
}

#[test]
fn growth_makes_a_rewrite_worthwhile() {
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, mut catalog) = open(dir.path());
    assert!(!journal.wants_rewrite());
    let event = Event::GroupForgotten { group: "g".repeat(500_000) };
    for _ in 0..10 {
        journal.append(std::slice::from_ref(&event), false).unwrap();
        catalog.evolve(event.clone());
    }
    assert!(journal.wants_rewrite());
    journal.rewrite(&catalog).unwrap();
    assert!(!journal.wants_rewrite() && journal.size < 1000);
}
