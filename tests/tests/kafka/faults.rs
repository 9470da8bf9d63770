//! Hostile peers and failing disks against the embedded broker.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use broker::{Broker, Config};
use rdkafka::consumer::{BaseConsumer, Consumer};

use crate::harness::{PATIENCE, Target, send, take};
use crate::wire::{self, NOBODY, Wire};

/// Runs a check against an embedded broker with its own settings.
fn on_broker<F>(settings: impl FnOnce(&mut Config), check: impl FnOnce(Target, tempfile::TempDir) -> F)
where
    F: Future<Output = Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let outcome = runtime.block_on(async {
        let folder = tempfile::tempdir()?;
        let mut config = Config::new(folder.path());
        settings(&mut config);
        let broker = Broker::start(config).await?;
        let outcome = check(Target::embedded(&broker), folder).await;
        broker.shutdown().await;
        outcome
    });
    if let Err(error) = outcome {
        panic!("{error:?}");
    }
}

/// Whatever arrives ends at worst its own connection.
#[test]
fn malformed_bytes_close_that_connection_only() {
    on_broker(
        |config| config.max_request_bytes = 1 << 20,
        |target, _folder| async move {
            let topic = target.topic("calm", 1).await?;
            let producer = target.producer(&[])?;
            send(&producer, &topic, Some(0), "k", "before").await?;
            let framed = |body: &[u8]| {
                let mut frame = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
                frame.extend(body);
                frame
            };
            let metadata_of_two_billion_topics = framed(&[0, 3, 0, 1, 0, 0, 0, 1, 0xff, 0xff, 0x7f, 0xff, 0xff, 0xff]);
            let produce_that_ends_early = framed(&[0, 0, 0, 9, 0, 0, 0, 1, 0xff, 0xff, 0]);
            let attacks: [(&str, Vec<u8>); 8] = [
                ("HTTP", b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".to_vec()),
                ("a negative length", (-5i32).to_be_bytes().to_vec()),
                ("two gigabytes", i32::MAX.to_be_bytes().to_vec()),
                ("no header", framed(&[1, 2, 3])),
                ("an unknown request", framed(&[0x7f, 0xff, 0, 0, 0, 0, 0, 1, 0xff, 0xff])),
                ("a version from the future", framed(&[0, 3, 0, 99, 0, 0, 0, 1, 0xff, 0xff])),
                ("two billion topics", metadata_of_two_billion_topics),
                ("half a request", produce_that_ends_early),
            ];
            for (what, bytes) in attacks {
                let mut attacker = Wire::connect(&target.bootstrap)?;
                attacker.send_raw(&bytes)?;
                let closed = attacker.is_closed_by_peer().with_context(|| what.to_owned())?;
                ensure!(closed, "{what} was answered");
            }
            // Corrupted batches are refused with a code, on a connection that goes on.
            let mut wire = Wire::connect(&target.bootstrap)?;
            let sound = wire::batch(NOBODY, -1, Some("k"), &["v"]);
            for at in 8..sound.len() {
                let mut damaged = sound.clone();
                damaged[at] ^= 0x40;
                let answer = wire.produce(&topic, &damaged)?;
                // The leader epoch is the broker's to write, whatever the producer put there.
                let is_epoch = (12..16).contains(&at);
                ensure!((answer.error == wire::NONE) == is_epoch, "byte {at}: {answer:?}");
            }
            let (_, offset) = send(&producer, &topic, Some(0), "k", "after").await?;
            let seen = take(&target.reader(&topic, &[])?, usize::try_from(offset)? + 1).await?;
            ensure!(seen.last().is_some_and(|record| record.value == "after"));
            Ok(())
        },
    );
}

/// Connections beyond the limit are closed, not kept waiting, and places are given back.
#[test]
fn connections_are_bounded() {
    on_broker(
        |config| config.max_connections = 8,
        |target, _folder| async move {
            let held = (0..8).map(|_| {
                let mut wire = Wire::connect(&target.bootstrap)?;
                wire.producer_id()?;
                Ok(wire)
            });
            let held = held.collect::<Result<Vec<_>>>()?;
            ensure!(Wire::connect(&target.bootstrap)?.is_closed_by_peer()?, "a ninth was served");
            drop(held);
            let deadline = std::time::Instant::now() + PATIENCE;
            while Wire::connect(&target.bootstrap)?.producer_id().is_err() {
                ensure!(std::time::Instant::now() < deadline, "no place was given back");
            }
            Ok(())
        },
    );
}

/// A disk without room: the client is told, nothing is damaged, and it goes on when there is room.
#[test]
fn full_disk_is_an_error_and_passes() {
    on_broker(
        |_| (),
        |target, folder| async move {
            let topic = target.topic("full", 1).await?;
            let topics = folder.path().join("topics");
            let dir = std::fs::read_dir(&topics)?.next().context("no folder")??.path().join("0");
            let log = dir.join(format!("{:020}.log", 0));
            std::os::unix::fs::symlink("/dev/full", &log)?;
            let mut wire = Wire::connect(&target.bootstrap)?;
            let batch = wire::batch(NOBODY, -1, Some("k"), &["v"]);
            ensure!(wire.produce(&topic, &batch)?.error == wire::STORAGE_ERROR);
            ensure!(wire.produce(&topic, &batch)?.error == wire::STORAGE_ERROR);
            let client: BaseConsumer = target.client().create()?;
            ensure!(client.fetch_watermarks(&topic, 0, PATIENCE)? == (0, 0));
            std::fs::remove_file(&log)?;
            ensure!(wire.produce(&topic, &batch)?.error == wire::NONE);
            ensure!(take(&target.reader(&topic, &[])?, 1).await?.len() == 1);
            Ok(())
        },
    );
}

/// Records beyond the limits of time and size go, the newest stay.
#[test]
fn retention_deletes_old_segments() {
    on_broker(
        |config| config.housekeeping_interval = Duration::from_millis(50),
        |target, _folder| async move {
            let settings = [("segment.bytes", "10000"), ("retention.bytes", "40000")];
            let topic = target.topic_with("retained", 1, &settings).await?;
            let producer = target.producer(&[("linger.ms", "0")])?;
            for i in 0..100 {
                send(&producer, &topic, Some(0), "k", &format!("{i}{}", "z".repeat(2000))).await?;
            }
            let client: BaseConsumer = target.client().create()?;
            let mut low = 0;
            crate::harness::until("old segments to go", || {
                let (now, high) = client.fetch_watermarks(&topic, 0, PATIENCE)?;
                ensure!(high == 100 && now >= low);
                low = now;
                Ok(low >= 70)
            })
            .await?;
            ensure!(low <= 85, "too much is gone: the log starts at {low}");
            // One more segment may have gone since.
            let seen = read_to(&target, &topic, 99).await?;
            let offsets: Vec<i64> = seen.iter().map(|record| record.offset).collect();
            let first = *offsets.first().context("nothing is left")?;
            ensure!((low..=85).contains(&first) && offsets == (first..100).collect::<Vec<_>>(), "{offsets:?}");
            Ok(())
        },
    );
}

/// Compaction leaves the newest record of each key where it was.
#[test]
fn compaction_keeps_the_newest_of_each_key() {
    on_broker(
        |config| config.housekeeping_interval = Duration::from_millis(50),
        |target, _folder| async move {
            let settings = [
                ("cleanup.policy", "compact"),
                ("segment.bytes", "20000"),
                ("min.cleanable.dirty.ratio", "0.01"),
                ("delete.retention.ms", "0"),
            ];
            for codec in ["none", "zstd"] {
                let topic = target.topic_with("compacted", 1, &settings).await?;
                let producer = target.producer(&[("compression.type", codec), ("linger.ms", "20")])?;
                // Values that do not compress, so that the segments fill up.
                let noise = |i: u64| -> String {
                    (0..40).map(|j| format!("{:x}", (i * 40 + j).wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect()
                };
                for round in 0..20u64 {
                    let sends = (0..20u64).map(|key| {
                        let (producer, topic) = (&producer, topic.as_str());
                        let value = format!("{round}:{}", noise(round * 20 + key));
                        async move { send(producer, topic, Some(0), &format!("key{key}"), &value).await }
                    });
                    futures::future::try_join_all(sends).await?;
                }
                let client: BaseConsumer = target.client().create()?;
                let deadline = tokio::time::Instant::now() + PATIENCE;
                let seen = loop {
                    let (_, high) = client.fetch_watermarks(&topic, 0, PATIENCE)?;
                    ensure!(high == 400, "offsets changed: the log ends at {high}");
                    let seen = read_to(&target, &topic, 399).await?;
                    if seen.len() < 200 {
                        break seen;
                    }
                    ensure!(tokio::time::Instant::now() < deadline, "{} records left", seen.len());
                };
                for key in 0..20i64 {
                    // Offset of the last value of this key: sent in order, 20 keys a round.
                    let newest = seen.iter().find(|record| record.offset == 380 + key);
                    let newest = newest.with_context(|| format!("{codec}: key{key} is lost"))?;
                    ensure!(newest.value.starts_with("19:"), "{codec}: {newest:?}");
                }
            }
            Ok(())
        },
    );
}

/// All records up to the one at offset `last`.
async fn read_to(target: &Target, topic: &str, last: i64) -> Result<Vec<crate::harness::Seen>> {
    let consumer = target.reader(topic, &[("check.crcs", "true")])?;
    let mut seen = Vec::new();
    while seen.last().is_none_or(|record: &crate::harness::Seen| record.offset < last) {
        seen.extend(take(&consumer, 1).await?);
    }
    Ok(seen)
}
