//! The recorded feeds decode completely, and what they hold is what was counted when they were studied.
#![allow(clippy::unwrap_used, reason = "tests")]

use schemas::telemetry::VehicleEvent;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A file of the data folder; `None` (said loudly) when it is absent and nobody asked for real data.
fn recording(name: &str) -> Option<String> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var("BARISTA_DATA").unwrap_or_else(|_| default.to_owned());
    let file = PathBuf::from(folder).join("hfp").join(name);
    match std::fs::read_to_string(&file) {
        Ok(text) => Some(text),
        Err(error) if std::env::var("BARISTA_REQUIRE_REAL").is_ok_and(|v| v == "1") => {
            panic!("{}: {error}; set BARISTA_DATA", file.display())
        }
        Err(error) => {
            eprintln!("SKIPPED: {}: {error}; set BARISTA_DATA to run this test", file.display());
            None
        }
    }
}

/// Receive time, topic and payload of a line: split at the first space and at the first ` {`, since topics hold spaces.
fn split(line: &str) -> (i64, &str, &str) {
    let (received, rest) = line.split_once(' ').unwrap();
    let at = rest.find(" {").unwrap();
    let received = received.parse::<jiff::Timestamp>().unwrap().as_millisecond();
    (received, &rest[..at], &rest[at + 1..])
}

fn decode_all(text: &str) -> Vec<VehicleEvent> {
    text.lines()
        .enumerate()
        .map(|(i, line)| {
            let (received, topic, payload) = split(line);
            ingest::decode::decode(topic, payload.as_bytes(), received)
                .unwrap_or_else(|reject| panic!("line {}: {reject}: {line}", i + 1))
        })
        .collect()
}

fn count<K: Ord>(events: &[VehicleEvent], key: impl Fn(&VehicleEvent) -> K) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for event in events {
        *counts.entry(key(event)).or_default() += 1;
    }
    counts
}

fn distinct(text: &str) -> usize {
    text.lines().map(split).map(|(_, topic, payload)| (topic, payload)).collect::<BTreeSet<_>>().len()
}

#[test]
fn every_line_of_the_v1_recording_is_an_event() {
    let Some(text) = recording("hfp-v1-2018-10-09.txt") else { return };
    let events = decode_all(&text);
    assert_eq!((events.len(), distinct(&text)), (5000, 4956));
    let kinds = count(&events, |e| (e.journey_type.clone(), e.temporal.clone().unwrap_or_default()));
    let kinds: Vec<(&str, &str, usize)> = kinds.iter().map(|((a, b), n)| (a.as_str(), b.as_str(), *n)).collect();
    assert_eq!(
        kinds,
        [
            ("deadrun", "ongoing", 717),
            ("deadrun", "upcoming", 4),
            ("journey", "ongoing", 4167),
            ("journey", "upcoming", 112)
        ]
    );
    assert_eq!(events.iter().filter(|e| e.lat.is_none()).count(), 146);
    assert_eq!(events.iter().filter(|e| e.speed_mps.is_none()).count(), 149);
    assert_eq!(events.iter().filter(|e| e.schedule_deviation_s.is_none()).count(), 443);
    assert_eq!(events.iter().filter(|e| e.route.as_deref().is_some_and(|r| r.contains(' '))).count(), 19);
    assert!(events.iter().all(|e| e.attrs.is_empty() && e.event == "VP"));
    // The key that looks natural and drops real messages.
    let natural: BTreeSet<_> =
        events.iter().map(|e| (schemas::Message::key(e), e.event.clone(), e.event_time_ms)).collect();
    assert_eq!(natural.len(), 4956 - 116);
    let mut skew: Vec<i64> = events.iter().map(|e| e.received_at_ms - e.event_time_ms).collect();
    skew.sort_unstable();
    assert!(skew[0] < -4000, "a device's clock is ahead: {} ms", skew[0]);
    assert!((660..680).contains(&skew[skew.len() / 2]), "median delay {} ms", skew[skew.len() / 2]);
}

#[test]
fn every_line_of_the_v2_recording_is_an_event() {
    let Some(text) = recording("hfp-v2-2023-2024.txt") else { return };
    let events = decode_all(&text);
    assert_eq!((events.len(), distinct(&text)), (3690, 1990));
    let kinds = count(&events, |e| e.event.clone());
    let kinds: Vec<(&str, usize)> = kinds.iter().map(|(k, n)| (k.as_str(), *n)).collect();
    assert_eq!(
        kinds,
        [
            ("ARR", 20),
            ("ARS", 20),
            ("BOUT", 3),
            ("DEP", 23),
            ("DOC", 18),
            ("DOO", 19),
            ("DUE", 25),
            ("PAS", 3),
            ("PDE", 20),
            ("TLR", 8),
            ("VJA", 13),
            ("VJOUT", 13),
            ("VP", 3496),
            ("WAIT", 9),
        ]
    );
    assert_eq!(events.iter().filter(|e| e.journey_type == "journey").count(), 2426);
    assert_eq!(events.iter().filter(|e| e.lat.is_none()).count(), 940);
    assert_eq!(events.iter().filter(|e| e.speed_mps.is_some_and(|s| s < 0.0)).count(), 1);
    assert_eq!(events.iter().filter(|e| e.stop.is_some()).count(), 2457);
    assert_eq!(events.iter().filter(|e| e.scheduled_arrival_ms.is_some()).count(), 154);
    let attrs: BTreeSet<&str> = events.iter().flat_map(|e| e.attrs.keys().map(String::as_str)).collect();
    let expected = [
        "block",
        "dr-type",
        "sid",
        "signal-groupid",
        "tlp-att-seq",
        "tlp-frequency",
        "tlp-line-configid",
        "tlp-point-configid",
        "tlp-prioritylevel",
        "tlp-protocol",
        "tlp-requestid",
        "tlp-requesttype",
        "tlp-signalgroupnbr",
    ];
    assert_eq!(attrs, BTreeSet::from(expected));
    assert_eq!(count(&events, schemas::Message::key).len(), 7);
}
