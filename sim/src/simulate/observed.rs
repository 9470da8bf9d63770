//! A recorded `workload.observed` as a trace: "what would last week have cost, with which SLO?"
//!
//! One JSON value a line, as `barista tail workload.observed` prints them or a topic dump holds them. Records of other
//! services and simulated history are passed over; a repeated interval replaces the one before; intervals that are
//! missing (nobody watched) repeat the last rate and are counted. Every record must have the same interval. Left out:
//! reading the topic itself.

use super::scenario::Error;
use crate::trace::Trace;
use schemas::workload::WorkloadObserved;
use std::collections::BTreeMap;
use std::path::Path;

/// The trace of a service (of all together if none is named), and how many intervals nobody watched.
pub fn parse(text: &str, service: Option<&str>) -> Result<(Trace, usize), String> {
    let mut by_service: BTreeMap<String, BTreeMap<i64, u64>> = BTreeMap::new();
    let mut interval_ms = None;
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let record: WorkloadObserved =
            serde_json::from_str(line).map_err(|e| format!("line {}: no workload.observed: {e}", i + 1))?;
        if record.simulated || service.is_some_and(|s| s != record.service) {
            continue;
        }
        let interval = *interval_ms.get_or_insert(record.interval_ms);
        if interval != record.interval_ms || interval == 0 {
            return Err(format!("line {}: an interval of {} ms after {interval} ms", i + 1, record.interval_ms));
        }
        by_service.entry(record.service).or_default().insert(record.start_ms, record.arrivals + record.direct_arrivals);
    }
    let Some(interval_ms) = interval_ms.map(|ms| ms as i64) else {
        return Err(service.map_or("no records".to_owned(), |s| format!("no records of service `{s}`")));
    };
    let begins = || by_service.values().flat_map(|s| s.keys().copied());
    let (Some(first), Some(last)) = (begins().min(), begins().max()) else { return Err("no records".to_owned()) };
    let n = ((last - first) / interval_ms) as usize + 1;
    if n > 10_000_000 {
        return Err(format!("{n} intervals between the first record and the last: is one of them from another clock?"));
    }
    let (mut counts, mut missing) = (vec![0.0; n], 0);
    for of_service in by_service.values() {
        let mut known = 0.0;
        for (i, count) in counts.iter_mut().enumerate() {
            match of_service.get(&(first + i as i64 * interval_ms)) {
                Some(arrivals) => known = *arrivals as f64,
                None => missing += 1,
            }
            *count += known;
        }
    }
    Ok((Trace { start_ms: first, interval_ms, counts }, missing))
}

/// [`parse`] of a file.
pub fn read(file: &Path, service: Option<&str>) -> Result<(Trace, usize), Error> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::Read { path: file.to_owned(), source })?;
    parse(&text, service).map_err(|text| Error::Parse { path: file.to_owned(), text })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(service: &str, start_ms: i64, arrivals: u64, simulated: bool) -> String {
        let record = WorkloadObserved {
            schema: Default::default(),
            service: service.into(),
            start_ms,
            interval_ms: 10_000,
            arrivals,
            direct_arrivals: 1,
            simulated,
        };
        serde_json::to_string(&record).expect("a record")
    }

    #[test]
    fn records_become_a_trace_in_order_with_gaps_filled_and_counted() {
        let lines = [
            record("a", 20_000, 30, false),
            record("a", 0, 9, false),
            record("b", 10_000, 4, false),
            record("a", 10_000, 99, true),
            record("a", 0, 10, false),
        ];
        let text = lines.join("\n");
        let (trace, missing) = parse(&text, Some("a")).expect("sound");
        assert_eq!((trace.start_ms, trace.interval_ms, missing), (0, 10_000, 1));
        assert_eq!(trace.counts, [11.0, 11.0, 31.0]);
        assert_eq!(parse(&text, None).expect("sound").0.counts, [11.0, 16.0, 36.0]);
        assert!(parse(&text, Some("c")).expect_err("unknown").contains("`c`"));
        assert!(parse("{}", None).expect_err("no record").starts_with("line 1"));
    }
}
