//! The recorded data read completely, with what was counted when they were made.
#![allow(clippy::unwrap_used, reason = "tests")]

use sim::replay::{Rate, parse, timeline};
use sim::trace::Trace;
use std::path::PathBuf;

/// A file of the data folder; `None` (said loudly) when it is absent and nobody asked for real data.
fn data(name: &str) -> Option<String> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/data");
    let folder = std::env::var("BARISTA_DATA").unwrap_or_else(|_| default.to_owned());
    let file = PathBuf::from(folder).join(name);
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

#[test]
fn recordings_parse_line_by_line() {
    for (name, lines, span_ms) in
        [("hfp/hfp-v1-2018-10-09.txt", 5000, 3_304), ("hfp/hfp-v2-2023-2024.txt", 3690, 17_861_347_927)]
    {
        let Some(text) = data(name) else { return };
        let all = parse(&text).unwrap();
        assert_eq!(all.len(), lines, "{name}");
        assert!(
            all.iter()
                .all(|m| m.topic.starts_with("/hfp/v") && m.payload.starts_with("{\"") && m.payload.ends_with('}'))
        );
        // Topics with spaces came through whole.
        assert!(all.iter().any(|m| m.topic.contains(' ')), "{name}");
        let (first, last) = (all.iter().map(|m| m.received_at_ms).min(), all.iter().map(|m| m.received_at_ms).max());
        let span = last.unwrap() - first.unwrap();
        assert!((span - span_ms).abs() < 5_000, "{name}: {span} ms");
        // The second one is windows of seven months; without the gaps it plays within hours.
        let timeline = timeline(&all, 10_000);
        assert!(timeline.is_sorted() && timeline[0] == 0);
        assert!(*timeline.last().unwrap() < 4 * 3_600_000, "{name}: {} ms", timeline.last().unwrap());
        assert_eq!(Rate::Times(10.0).due_ms(first.unwrap(), last.unwrap()), (span as f64 / 10.0) as u64);
    }
}

#[test]
fn load_traces_have_the_rows_and_steps_of_their_description() {
    for (name, rows, step_s) in [
        ("nyc_taxi", 10_320, 1800),
        ("i94_traffic", 19_728, 3600),
        ("fremont_bike", 14_568, 3600),
        ("elb_requests", 4_040, 300),
        ("nasa_http", 7_938, 300),
        ("wc98", 50_400, 60),
    ] {
        let Some(text) = data(&format!("load/{name}.csv")) else { return };
        let trace = Trace::parse(&text).unwrap();
        assert_eq!((trace.counts.len(), trace.interval_ms), (rows, step_s * 1000), "{name}");
        let scaled = trace.scale_to_peak(300.0).unwrap();
        let above = scaled.counts.iter().filter(|c| **c > 300.0 * step_s as f64).count();
        assert!(above <= rows / 1000, "{name}: {above} intervals above the peak");
        let day = trace.cut(trace.start_ms + 86_400_000, 1.0).unwrap();
        assert_eq!(day.counts.len() as i64, 86_400 / step_s, "{name}");
    }
}
