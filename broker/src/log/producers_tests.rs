#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

fn header(id: i64, epoch: i16, sequence: i32, count: i32, offset: i64) -> BatchHeader {
    BatchHeader {
        base_offset: offset,
        size: 100,
        crc: 0,
        attributes: 0,
        last_offset_delta: count - 1,
        base_timestamp: 0,
        max_timestamp: offset * 10,
        producer_id: id,
        producer_epoch: epoch,
        base_sequence: sequence,
        count,
    }
}

fn refused(check: Check) -> ResponseError {
    match check {
        Check::Refused(error) => error,
        other => panic!("{other:?} is no refusal"),
    }
}

#[test]
fn repeats_gaps_and_old_epochs() {
    let mut producers = Producers::default();
    for sequence in 0..8 {
        let batch = header(1, 0, sequence, 1, i64::from(sequence));
        assert_eq!(producers.check(&batch), Check::Fresh);
        producers.record(&batch, 0);
    }
    let Check::Repeat(seen) = producers.check(&header(1, 0, 5, 1, 0)) else { panic!("no repeat") };
    assert_eq!((seen.base_offset, seen.timestamp), (5, 50));
    // Older than the five that are remembered: no way to know where it went.
    let out_of_order = ResponseError::OutOfOrderSequenceNumber;
    assert_eq!(refused(producers.check(&header(1, 0, 2, 1, 0))), out_of_order);
    assert_eq!(refused(producers.check(&header(1, 0, 9, 1, 0))), out_of_order);
    assert_eq!(refused(producers.check(&header(1, 1, 8, 1, 0))), out_of_order);
    let next_epoch = header(1, 1, 0, 2, 8);
    assert_eq!(producers.check(&next_epoch), Check::Fresh);
    producers.record(&next_epoch, 0);
    let old = ResponseError::InvalidProducerEpoch;
    assert_eq!(refused(producers.check(&header(1, 0, 8, 1, 0))), old);
    assert_eq!(producers.check(&header(1, 1, 2, 1, 0)), Check::Fresh);
    // Nobody knows this one, so anything goes.
    assert_eq!(producers.check(&header(2, 5, 77, 1, 0)), Check::Fresh);
}

#[test]
fn sequences_go_on_over_the_wrap() {
    let mut producers = Producers::default();
    producers.record(&header(1, 0, i32::MAX - 1, 2, 0), 0);
    assert_eq!(producers.check(&header(1, 0, 0, 1, 2)), Check::Fresh);
    producers.record(&header(1, 0, 0, 1, 2), 0);
    assert!(matches!(producers.check(&header(1, 0, i32::MAX - 1, 2, 0)), Check::Repeat(_)));
}

#[test]
fn idle_producers_are_forgotten() {
    let mut producers = Producers::default();
    producers.record(&header(1, 0, 0, 1, 0), 1000);
    producers.record(&header(2, 0, 0, 1, 1), 5000);
    producers.expire(6000, 2000);
    assert_eq!(producers.check(&header(1, 0, 9, 1, 0)), Check::Fresh);
    assert!(matches!(producers.check(&header(2, 0, 9, 1, 0)), Check::Refused(_)));
}

proptest! {
    /// However a client retries within its window of five, every batch is appended exactly once and
    /// every answer names the offset of that one time; and nothing of it is lost over a restart.
    #[test]
    fn retries_never_append_twice(steps in proptest::collection::vec((0usize..5, 1i32..4), 1..60)) {
        let mut producers = Producers::default();
        let mut sent: Vec<BatchHeader> = Vec::new();
        let (mut sequence, mut end) = (0, 0i64);
        for (back, count) in steps {
            if let Some(batch) = sent.len().checked_sub(back + 1).and_then(|i| sent.get(i)) {
                match producers.check(batch) {
                    Check::Repeat(seen) => prop_assert_eq!(seen.base_offset, batch.base_offset),
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            let batch = header(9, 0, sequence, count, end);
            prop_assert_eq!(producers.check(&batch), Check::Fresh);
            producers.record(&batch, 0);
            sent.push(batch);
            sequence += count;
            end += i64::from(count);
            let mut bytes = Vec::new();
            producers.encode(&mut bytes);
            prop_assert_eq!(Producers::decode(&mut bytes.as_slice()), Some(producers.clone()));
        }
    }
}
