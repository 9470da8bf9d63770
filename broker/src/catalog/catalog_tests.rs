#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let name = || prop_oneof![Just("a".to_owned()), Just("b.c".to_owned()), Just("d-e".to_owned())];
    let settings = || proptest::collection::btree_map(Just("retention.ms".to_owned()), "[0-9]{1,6}", 0..2);
    let committed = (0i64..1000, "[a-zé\"\\\\]{0,5}", 0i64..10_000).prop_map(|(offset, metadata, at_ms)| Committed {
        offset,
        leader_epoch: 0,
        metadata,
        at_ms,
    });
    let partition = move || (name(), 0i32..4);
    prop_oneof![
        (name(), any::<[u8; 16]>(), 1i32..5, settings()).prop_map(|(name, id, partitions, config)| {
            Event::TopicCreated { name, id: TopicId(id), partitions, config }
        }),
        name().prop_map(|name| Event::TopicDeleted { name }),
        (name(), 1i32..9).prop_map(|(name, total)| Event::PartitionsAdded { name, total }),
        (name(), settings()).prop_map(|(name, config)| Event::TopicConfigured { name, config }),
        (partition(), 0i64..100)
            .prop_map(|((topic, partition), offset)| { Event::LogStartMoved { topic, partition, offset } }),
        (name(), proptest::collection::vec((partition(), committed), 1..4))
            .prop_map(|(group, offsets)| Event::OffsetsCommitted { group, offsets }),
        (name(), 0i64..10_000).prop_map(|(group, at_ms)| Event::OffsetsKept { group, at_ms }),
        (name(), proptest::collection::vec(partition(), 0..3))
            .prop_map(|(group, partitions)| Event::OffsetsForgotten { group, partitions }),
        name().prop_map(|group| Event::GroupForgotten { group }),
        (0i64..9999).prop_map(|below| Event::ProducerIdsReserved { below }),
    ]
}

pub(crate) fn after(events: &[Event]) -> Catalog {
    let mut catalog = Catalog::default();
    events.iter().cloned().for_each(|event| catalog.evolve(event));
    catalog
}

proptest! {
    /// A snapshot is as good as the history it stands for.
    #[test]
    fn snapshots_lose_nothing(events in proptest::collection::vec(event(), 0..40)) {
        let catalog = after(&events);
        prop_assert_eq!(after(&catalog.snapshot()), catalog.clone());
        // Deleted topics leave no offsets behind.
        let offsets = catalog.offsets().values();
        prop_assert!(offsets.clone().all(|offsets| !offsets.is_empty()));
    }

    /// Producer ids are never given out twice, whatever happens in between.
    #[test]
    fn producer_ids_are_unique(events in proptest::collection::vec(event(), 0..20)) {
        let mut catalog = after(&events);
        let (event, first) = catalog.plan_producer_ids();
        catalog.evolve(event);
        events.into_iter().for_each(|event| catalog.evolve(event));
        let (_, second) = catalog.plan_producer_ids();
        prop_assert!(second.start >= first.end);
    }
}

#[test]
fn offsets_expire_when_old_and_unused() {
    let at = |ms| Committed { offset: 1, leader_epoch: 0, metadata: String::new(), at_ms: ms };
    let commit = |group: &str, ms, partition| Event::OffsetsCommitted {
        group: group.into(),
        offsets: vec![(("t".into(), partition), at(ms))],
    };
    let catalog = after(&[
        commit("old", 0, 0),
        commit("mixed", 0, 0),
        commit("mixed", 900, 1),
        commit("fresh", 900, 0),
        commit("live", 0, 0),
    ]);
    let is_live = |group: &str| group == "live";
    let kept = Event::OffsetsKept { group: "live".into(), at_ms: 1000 };
    let expected = [
        kept.clone(),
        Event::OffsetsForgotten { group: "mixed".into(), partitions: vec![("t".into(), 0)] },
        Event::GroupForgotten { group: "old".into() },
    ];
    assert_eq!(catalog.plan_offset_expiry(1000, 0, 500, is_live), expected);
    // Right after a start nothing goes.
    assert_eq!(catalog.plan_offset_expiry(1000, 990, 500, is_live), [kept]);
}

/// A group that lived for long without a commit keeps its offsets for their whole time afterwards.
#[test]
fn offsets_are_kept_from_the_end_of_their_group() {
    let committed = Committed { offset: 1, leader_epoch: 0, metadata: String::new(), at_ms: 0 };
    let offsets = vec![(("t".to_owned(), 0), committed)];
    let mut catalog = after(&[Event::OffsetsCommitted { group: "g".into(), offsets }]);
    for now in 0..5000 {
        for event in catalog.plan_offset_expiry(now, 0, 500, |_| true) {
            catalog.evolve(event);
        }
    }
    let forgotten = |now| !catalog.plan_offset_expiry(now, 0, 500, |_| false).is_empty();
    let first = (5000..).find(|now| forgotten(*now)).unwrap();
    assert!((5500..=5550).contains(&first), "{first}");
}

#[test]
fn topic_names() {
    for good in ["a", "telemetry.vehicle", "A_b-9", &"x".repeat(249)] {
        assert!(check_topic_name(good).is_ok(), "{good}");
    }
    for bad in ["", ".", "..", "a b", "a/b", "ü", "a\n", &"x".repeat(250)] {
        let refused = check_topic_name(bad).unwrap_err();
        assert_eq!(refused.error, ResponseError::InvalidTopicException, "{bad}");
    }
}

#[test]
fn topic_ids_are_text_and_back() {
    let id = TopicId([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255]);
    assert_eq!(id.to_string(), "000102030405060708090a0b0c0d0eff");
    assert_eq!(id.to_string().parse(), Ok(id));
    assert!("nonsense".parse::<TopicId>().is_err());
}
