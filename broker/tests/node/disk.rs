//! A disk that is full, and records whose time has come.

use std::time::{Duration, Instant, SystemTime};

use kafka_protocol::ResponseError;

use crate::child::Victim;
use crate::client::{self, Client, PLAIN};

const TOPIC: &str = "topic";
const PATIENCE: Duration = Duration::from_secs(30);

/// Offsets and values from `from` to the end.
fn read_on(client: &mut Client, mut from: i64) -> Vec<(i64, String)> {
    let mut all = Vec::new();
    loop {
        let data = client.fetch(TOPIC, 0, from, 0).unwrap();
        assert_eq!(data.error_code, 0, "{data:?}");
        let (seen, next) = client::records(&data.records.unwrap_or_default(), &[]).unwrap();
        all.extend(seen.into_iter().filter(|record| record.offset >= from).map(|record| (record.offset, record.value)));
        match next {
            Some(next) if next > from => from = next,
            _ => return all,
        }
    }
}

/// A write that the disk takes only half of is an error, is not there, and nothing else is touched:
/// not then, not after a kill, and not when there is room again.
#[test]
fn a_full_disk_is_an_error_and_corrupts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut victim = Victim::start(folder.path()).unwrap();
    let mut client = Client::connect(victim.address).unwrap();
    assert_eq!(client.create_topic(TOPIC, 1, &[("retention.ms", "-1")]).unwrap(), 0);
    victim.kill().unwrap();
    victim.restart_on_a_small_disk(32).unwrap();
    let mut client = Client::connect(victim.address).unwrap();
    // 700 bytes do not divide 32 KiB: the last write ends in the middle of a batch.
    let value = |i: i64| format!("{i}:{}", "x".repeat(700));
    let put = |client: &mut Client, i: i64| {
        let answer = client.produce(TOPIC, 0, client::batch("k", &[value(i)], PLAIN), None).unwrap();
        assert!(answer.error_code == 0 || answer.error_code == ResponseError::KafkaStorageError.code(), "{answer:?}");
        (answer.error_code == 0).then_some(answer.base_offset)
    };
    let mut count = 0;
    while let Some(offset) = put(&mut client, count) {
        assert_eq!(offset, count);
        count += 1;
        assert!(count < 100, "the disk was to be full");
    }
    assert!(count > 20, "{count} records fit");
    assert_eq!(put(&mut client, count), None, "it is still full");
    let whole: Vec<(i64, String)> = (0..count).map(|i| (i, value(i))).collect();
    assert_eq!(read_on(&mut client, 0), whole);

    victim.kill().unwrap();
    victim.restart().unwrap();
    let mut client = Client::connect(victim.address).unwrap();
    assert_eq!(read_on(&mut client, 0), whole, "after a kill");
    assert_eq!(put(&mut client, count), Some(count), "there is room again");
    assert_eq!(read_on(&mut client, count), [(count, value(count))]);
}

/// Retention by time disposes of segments whose newest record is too old, and of no others.
#[test]
fn old_records_go_and_young_ones_stay() {
    let folder = tempfile::tempdir().unwrap();
    let victim = Victim::start(folder.path()).unwrap();
    let mut client = Client::connect(victim.address).unwrap();
    let settings = [("retention.ms", "86400000"), ("segment.bytes", "4096")];
    assert_eq!(client.create_topic(TOPIC, 1, &settings).unwrap(), 0);
    #[allow(clippy::disallowed_methods, reason = "records of today")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis() as i64;
    let filler = "x".repeat(500);
    let put = |client: &mut Client, timestamp| {
        let batch = client::batch_at(timestamp, "k", std::slice::from_ref(&filler), PLAIN);
        assert_eq!(client.produce(TOPIC, 0, batch, None).unwrap().error_code, 0);
    };
    for _ in 0..40 {
        put(&mut client, now - 2 * 86_400_000);
    }
    for _ in 0..40 {
        put(&mut client, now);
    }
    let deadline = Instant::now() + PATIENCE;
    let start = loop {
        let start = client.fetch(TOPIC, 0, 79, 0).unwrap().log_start_offset;
        assert!(start <= 40, "a young record is gone: the log starts at {start}");
        // The segment in which old and new meet stays.
        if start > 40 - 8 {
            break start;
        }
        assert!(Instant::now() < deadline, "the log still starts at {start}");
    };
    let gone = client.fetch(TOPIC, 0, start - 1, 0).unwrap().error_code;
    assert_eq!(gone, ResponseError::OffsetOutOfRange.code());
    assert_eq!(read_on(&mut client, start).len() as i64, 80 - start);
}
