//! A recorded `workload.observed` as traces: "what would last week have cost, with which SLO?"
//!
//! One JSON value a line: the records as `barista tail workload.observed` prints them, or their values alone. Simulated
//! history is passed over; a repeated interval replaces the one before; intervals that are missing (nobody watched)
//! repeat the last count and are counted. Every record must have the same interval. Left out: reading the topic itself.

use super::scenario::Error;
use crate::trace::Trace;
use schemas::workload::WorkloadObserved;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Intervals that a recording may span.
const MOST_INTERVALS: usize = 10_000_000;

/// Recorded arrivals by service, all over the same time.
#[derive(Debug, Clone, PartialEq)]
pub struct Recorded {
    /// By service.
    pub traces: BTreeMap<String, Trace>,
    /// Intervals that nobody watched, of all services.
    pub missing: usize,
}

/// The record of a line, by itself or as the value of what `barista tail` prints; none where a value is absent.
fn record(line: &str) -> Result<Option<WorkloadObserved>, serde_json::Error> {
    let mut value: Value = serde_json::from_str(line)?;
    if let Some(inner) = value.get_mut("value") {
        value = inner.take();
    }
    if value.is_null() { Ok(None) } else { serde_json::from_value(value).map(Some) }
}

/// Reads the lines of a recording.
pub fn parse(text: &str) -> Result<Recorded, String> {
    let mut by_service: BTreeMap<String, BTreeMap<i64, u64>> = BTreeMap::new();
    let mut interval_ms = None;
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let record = record(line).map_err(|e| format!("line {}: no workload.observed: {e}", i + 1))?;
        let Some(record) = record.filter(|r| !r.simulated) else { continue };
        let interval = *interval_ms.get_or_insert(record.interval_ms);
        if interval != record.interval_ms || interval == 0 {
            return Err(format!("line {}: an interval of {} ms after {interval} ms", i + 1, record.interval_ms));
        }
        by_service.entry(record.service).or_default().insert(record.start_ms, record.arrivals + record.direct_arrivals);
    }
    let begins = || by_service.values().flat_map(|s| s.keys().copied());
    let (Some(first), Some(last), Some(interval_ms)) = (begins().min(), begins().max(), interval_ms) else {
        return Err("no records but simulated ones".to_owned());
    };
    let n = (last - first) as u64 / interval_ms + 1;
    if n > MOST_INTERVALS as u64 {
        return Err(format!("{n} intervals between the first record and the last: is one of them from another clock?"));
    }
    let interval_ms = interval_ms as i64;
    let mut missing = 0;
    let traces = by_service.into_iter().map(|(service, observed)| {
        let mut known = 0.0;
        let counts = (0..n as i64).map(|i| {
            match observed.get(&(first + i * interval_ms)) {
                Some(arrivals) => known = *arrivals as f64,
                None => missing += 1,
            }
            known
        });
        let counts = counts.collect();
        (service, Trace { start_ms: first, interval_ms, counts })
    });
    let traces = traces.collect();
    Ok(Recorded { traces, missing })
}

/// [`parse`] of a file.
pub fn read(file: &Path) -> Result<Recorded, Error> {
    let text = std::fs::read_to_string(file).map_err(|source| Error::Read { path: file.to_owned(), source })?;
    parse(&text).map_err(|text| Error::Parse { path: file.to_owned(), text })
}

impl Recorded {
    /// True if the recording has these very services; false if it has none of them, so that all that was recorded
    /// together stands for them; an error if it has some.
    pub fn has(&self, services: &[&str]) -> Result<bool, String> {
        let absent: Vec<&str> = services.iter().copied().filter(|s| !self.traces.contains_key(*s)).collect();
        if absent.is_empty() || absent.len() == services.len() {
            return Ok(absent.is_empty());
        }
        let names: Vec<&str> = self.traces.keys().map(String::as_str).collect();
        Err(format!("no records of service {}; recorded are {}", absent.join(", "), names.join(", ")))
    }

    /// A trace and the share of it, for each service.
    pub fn split(&self, services: &[(&str, f64)]) -> Result<Vec<(Trace, f64)>, String> {
        let names: Vec<&str> = services.iter().map(|s| s.0).collect();
        if self.has(&names)? {
            return Ok(names.iter().filter_map(|s| self.traces.get(*s)).map(|trace| (trace.clone(), 1.0)).collect());
        }
        let mut all = self.traces.values();
        let mut together = all.next().cloned().ok_or("no records")?;
        for trace in all {
            together.counts.iter_mut().zip(&trace.counts).for_each(|(sum, count)| *sum += count);
        }
        Ok(services.iter().map(|(_, share)| (together.clone(), *share)).collect())
    }
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
    fn records_become_traces_in_order_with_gaps_filled_and_counted() {
        let lines = [
            record("a", 20_000, 30, false),
            // As `barista tail` prints it.
            format!(r#"{{"topic":"workload.observed","key":"a","value":{}}}"#, record("a", 0, 9, false)),
            r#"{"topic":"workload.observed","key":"a","value":null}"#.to_owned(),
            record("b", 10_000, 4, false),
            record("a", 10_000, 99, true),
            record("a", 0, 10, false),
        ];
        let recorded = parse(&lines.join("\n")).expect("sound");
        let a = &recorded.traces["a"];
        assert_eq!((a.start_ms, a.interval_ms, recorded.missing), (0, 10_000, 3));
        assert_eq!(a.counts, [11.0, 11.0, 31.0]);
        let counts = |services: &[(&str, f64)]| -> Vec<(Vec<f64>, f64)> {
            recorded.split(services).expect("known").into_iter().map(|(t, share)| (t.counts, share)).collect()
        };
        assert_eq!(counts(&[("b", 0.5)]), [(vec![0.0, 5.0, 5.0], 1.0)], "its own, whatever its share");
        assert_eq!(counts(&[("x", 0.5)]), [(vec![11.0, 16.0, 36.0], 0.5)], "all together");
        assert!(
            recorded.split(&[("a", 1.0), ("x", 1.0)]).expect_err("half known").contains("service x; recorded are a, b")
        );
        assert!(parse("{}").expect_err("no record").starts_with("line 1"));
        assert!(parse("").expect_err("nothing").contains("no records"));
    }
}
