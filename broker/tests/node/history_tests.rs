//! The checker finds what is wrong: every kind of damage to a sound history is reported.

use super::*;

/// Two writers, one transaction of each kind, offsets, looks, a table.
fn sound() -> (History, Remains) {
    let append = |writer, value, sent, acknowledged, transaction| Append {
        writer,
        partition: 0,
        value,
        sent,
        acknowledged,
        transaction,
    };
    let history = History {
        appends: vec![
            append(1, 10, 1, Some((2, 0)), None),
            append(1, 11, 3, None, None),
            append(1, 12, 5, Some((6, 2)), None),
            append(2, 20, 7, Some((8, 3)), Some(100)),
            append(2, 21, 9, Some((10, 4)), Some(100)),
            append(2, 22, 11, Some((12, 6)), Some(101)),
            append(2, 23, 13, Some((14, 8)), Some(102)),
            append(2, 24, 15, None, Some(102)),
        ],
        transactions: [(100, Outcome::Committed), (101, Outcome::Aborted), (102, Outcome::Unknown)].into(),
        offsets: [(
            "g".to_owned(),
            vec![
                OffsetStep::Commit { offset: 1, acknowledged: true },
                OffsetStep::InTransaction { offset: 2, transaction: 100 },
                OffsetStep::InTransaction { offset: 3, transaction: 101 },
                OffsetStep::InTransaction { offset: 4, transaction: 102 },
                OffsetStep::Read { offset: 2 },
            ],
        )]
        .into(),
        looks: vec![
            Look { partition: 0, sent: 4, high: 1, stable: 1 },
            Look { partition: 0, sent: 20, high: 9, stable: 8 },
        ],
        seen: vec![(0, 0, 10), (0, 3, 20)],
        table: [("k".to_owned(), vec![(1, true), (2, true), (3, false)])].into(),
        crew: Crew::default(),
        complaints: Vec::new(),
    };
    let all = vec![(0, 10), (1, 11), (2, 12), (3, 20), (4, 21), (6, 22), (8, 23)];
    let committed = all.iter().copied().filter(|(_, value)| *value < 22).collect();
    let remains =
        Remains { all: [(0, all)].into(), committed: [(0, committed)].into(), table: [("k".to_owned(), 2)].into() };
    (history, remains)
}

fn found(damage: impl FnOnce(&mut History, &mut Remains)) -> Vec<String> {
    let (mut history, mut remains) = sound();
    damage(&mut history, &mut remains);
    check(&history, &remains)
}

fn both(remains: &mut Remains, change: impl Fn(&mut Log)) {
    remains.all.values_mut().chain(remains.committed.values_mut()).for_each(change);
}

#[test]
fn a_sound_history_is_sound() {
    assert_eq!(found(|_, _| ()), Vec::<String>::new());
    // A write without an answer may be absent too, and an unknown transaction be committed, whole.
    assert_eq!(found(|_, remains| both(remains, |log| log.retain(|(_, value)| *value != 11))), Vec::<String>::new());
    let whole = found(|history, remains| {
        history.appends.pop();
        history.offsets.clear();
        remains.committed.get_mut(&0).unwrap().push((8, 23));
    });
    assert_eq!(whole, Vec::<String>::new());
}

#[test]
fn every_kind_of_damage_is_found() {
    type Damage = fn(&mut History, &mut Remains);
    let damages: [(&str, Damage); 17] = [
        ("acknowledged and not there", |_, r| both(r, |log| log.retain(|(_, v)| *v != 12))),
        ("acknowledged and not there", |h, _| h.appends[0].acknowledged = Some((2, 5))),
        ("lies twice", |_, r| both(r, |log| log.push((9, 11)))),
        ("was never sent", |_, r| both(r, |log| log.push((9, 99)))),
        ("do not ascend", |_, r| both(r, |log| log.swap(0, 1))),
        ("was sent before", |h, r| {
            h.appends[1].acknowledged = None;
            both(r, |log| {
                log[1].1 = 12;
                log[2].1 = 11;
            });
            h.appends[2].acknowledged = Some((6, 1));
        }),
        ("lies behind it", |h, _| {
            // Another writer's append was over before the one in front of it began.
            h.appends[2].writer = 3;
            h.appends[1].sent = 7;
            h.appends[1].acknowledged = Some((8, 1));
        }),
        ("not transactional, but hidden", |_, r| {
            r.committed.values_mut().for_each(|log| log.retain(|(_, v)| *v != 12))
        }),
        ("transaction 100", |_, r| r.committed.values_mut().for_each(|log| log.retain(|(_, v)| *v != 20))),
        ("transaction 101", |_, r| r.committed.values_mut().for_each(|log| log.push((6, 22)))),
        ("transaction 102", |_, r| r.committed.values_mut().for_each(|log| log.push((8, 23)))),
        ("a reader saw", |h, _| h.seen.push((0, 6, 22))),
        ("read offset 1", |h, _| h.offsets.get_mut("g").unwrap().push(OffsetStep::Read { offset: 1 })),
        ("read offset 3", |h, _| h.offsets.get_mut("g").unwrap().push(OffsetStep::Read { offset: 3 })),
        ("does not cover", |h, _| h.looks[1].high = 8),
        ("fell", |h, _| h.looks[1].stable = 0),
        ("compacted key k", |_, r| r.table = [("k".to_owned(), 1)].into()),
    ];
    for (what, damage) in damages {
        let wrong = found(damage);
        assert!(wrong.iter().any(|line| line.contains(what)), "`{what}` was not found, only {wrong:?}");
    }
}
