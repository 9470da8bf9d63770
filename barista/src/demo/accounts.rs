//! End-to-end accounts of requests, from record ids: nothing here is assumed. Pure.
//!
//! Invariants:
//! - Every request seen on a request topic is open until a result or a rejection with its id is seen; what is still
//!   open at the end is lost.
//! - Attainment's denominator is all requests sent: rejected, shed, late and lost ones are misses.
//!
//! Memory: one entry for each open request, one hash for each settled one of the last [`REMEMBERED`] settlements
//! (to count duplicates), and a histogram; independent of how long it runs.

use schemas::EpochMs;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

/// Settled ids that are remembered to recognise a second record.
const REMEMBERED: usize = 200_000;
/// Records of results that came before their request was seen (two consumers run side by side).
const EARLY: usize = 100_000;

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// A result was written.
    Answered,
    /// It is in the rejected topic.
    Rejected,
}

#[derive(Debug, Clone, Copy)]
struct Early {
    at_ms: EpochMs,
    settlement: Settlement,
}

/// Accounts of all services.
#[derive(Debug, Default)]
pub struct Accounts {
    services: BTreeMap<String, ServiceAccounts>,
    open: HashMap<String, (String, EpochMs)>,
    early: HashMap<String, Early>,
    settled: HashSet<String>,
    order: VecDeque<String>,
    duplicates: u64,
}

/// Accounts of one service.
#[derive(Debug, Clone)]
pub struct ServiceAccounts {
    slo_ms: f64,
    sent: u64,
    answered: u64,
    rejected: u64,
    in_slo: u64,
    latencies_ms: hdrhistogram::Histogram<u32>,
}

/// Totals for the report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Requests seen on request topics.
    pub sent: u64,
    /// With a result.
    pub answered: u64,
    /// In the rejected topic.
    pub rejected: u64,
    /// With neither.
    pub lost: u64,
    /// Second records for one request.
    pub duplicates: u64,
}

/// Latency and attainment of one service for the report.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceReport {
    /// Objective.
    pub target_ms: f64,
    /// From the request's append to the result's append.
    pub p50_ms: Option<f64>,
    /// As above.
    pub p95_ms: Option<f64>,
    /// As above.
    pub p99_ms: Option<f64>,
    /// Share of all requests sent that were answered within the objective; absent when none was sent.
    pub attainment: Option<f64>,
    /// Requests sent.
    pub sent: u64,
    /// Answered.
    pub answered: u64,
    /// Rejected.
    pub rejected: u64,
    /// Neither.
    pub lost: u64,
}

impl Accounts {
    /// Accounts of these services with their objectives.
    pub fn new(slo_ms: impl IntoIterator<Item = (String, f64)>) -> Self {
        let services = slo_ms.into_iter().map(|(name, slo_ms)| {
            // Three digits up to an hour: 1 ms to 3.6e6 ms.
            let latencies_ms = hdrhistogram::Histogram::new_with_bounds(1, 3_600_000, 3)
                .unwrap_or_else(|_| unreachable!("constant bounds are valid"));
            (name, ServiceAccounts { slo_ms, sent: 0, answered: 0, rejected: 0, in_slo: 0, latencies_ms })
        });
        Accounts { services: services.collect(), ..Accounts::default() }
    }

    /// A request was seen on the request topic of `service`.
    pub fn sent(&mut self, service: &str, id: &str, at_ms: EpochMs) {
        let Some(accounts) = self.services.get_mut(service) else { return };
        if self.open.contains_key(id) || self.settled.contains(id) {
            // The sender repeated itself (at-least-once features): one request, counted once.
            self.duplicates += 1;
            return;
        }
        accounts.sent += 1;
        self.open.insert(id.to_owned(), (service.to_owned(), at_ms));
        if let Some(early) = self.early.remove(id) {
            self.settle(id, early.at_ms, early.settlement);
        }
    }

    /// A result or rejection was seen. Deadlines of the demo are the objectives, so in time means within it.
    pub fn settle(&mut self, id: &str, at_ms: EpochMs, settlement: Settlement) {
        let Some((service, sent_ms)) = self.open.remove(id) else {
            if self.settled.contains(id) {
                self.duplicates += 1;
            } else if self.early.len() < EARLY {
                self.early.insert(id.to_owned(), Early { at_ms, settlement });
            }
            return;
        };
        self.remember(id);
        let Some(accounts) = self.services.get_mut(&service) else { return };
        match settlement {
            Settlement::Rejected => accounts.rejected += 1,
            Settlement::Answered => {
                accounts.answered += 1;
                let latency_ms = (at_ms - sent_ms).max(0);
                accounts.in_slo += u64::from(latency_ms as f64 <= accounts.slo_ms);
                accounts.latencies_ms.saturating_record(latency_ms.max(1) as u64);
            }
        }
    }

    fn remember(&mut self, id: &str) {
        if self.order.len() >= REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.settled.remove(&oldest);
        }
        self.order.push_back(id.to_owned());
        self.settled.insert(id.to_owned());
    }

    /// Requests without a record.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    /// Sums over all services; what is open counts as lost.
    pub fn totals(&self) -> Totals {
        let sum = |f: fn(&ServiceAccounts) -> u64| self.services.values().map(f).sum();
        Totals {
            sent: sum(|s| s.sent),
            answered: sum(|s| s.answered),
            rejected: sum(|s| s.rejected),
            lost: self.open.len() as u64,
            duplicates: self.duplicates,
        }
    }

    /// Each service's report.
    pub fn reports(&self) -> BTreeMap<String, ServiceReport> {
        let report = |s: &ServiceAccounts| {
            let at = |q: f64| (s.answered > 0).then(|| s.latencies_ms.value_at_quantile(q) as f64);
            ServiceReport {
                target_ms: s.slo_ms,
                p50_ms: at(0.5),
                p95_ms: at(0.95),
                p99_ms: at(0.99),
                attainment: (s.sent > 0).then(|| s.in_slo as f64 / s.sent as f64),
                sent: s.sent,
                answered: s.answered,
                rejected: s.rejected,
                lost: s.sent - s.answered - s.rejected,
            }
        };
        self.services.iter().map(|(name, s)| (name.clone(), report(s))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use proptest::prelude::*;

    fn accounts() -> Accounts {
        Accounts::new([("a".to_owned(), 100.0), ("b".to_owned(), 10.0)])
    }

    #[test]
    fn late_rejected_and_lost_are_misses() {
        let mut accounts = accounts();
        for id in ["in-time", "late", "rejected", "lost"] {
            accounts.sent("a", id, 1_000);
        }
        accounts.settle("in-time", 1_100, Settlement::Answered);
        accounts.settle("late", 1_101, Settlement::Answered);
        accounts.settle("rejected", 1_001, Settlement::Rejected);
        let report = accounts.reports().remove("a").unwrap();
        assert_eq!(report.attainment, Some(0.25));
        assert_eq!((report.answered, report.rejected, report.lost), (2, 1, 1));
        assert_eq!(accounts.totals(), Totals { sent: 4, answered: 2, rejected: 1, lost: 1, duplicates: 0 });
        assert_eq!(accounts.reports()["b"].attainment, None);
    }

    #[test]
    fn second_records_are_duplicates_and_early_results_count() {
        let mut accounts = accounts();
        accounts.settle("early", 1_010, Settlement::Answered);
        accounts.sent("b", "early", 1_005);
        accounts.settle("early", 1_020, Settlement::Answered);
        accounts.sent("b", "early", 1_006);
        assert_eq!(accounts.totals(), Totals { sent: 1, answered: 1, rejected: 0, lost: 0, duplicates: 2 });
        assert_eq!(accounts.reports()["b"].attainment, Some(1.0));
    }

    proptest! {
        #[test]
        fn nothing_is_counted_twice_or_dropped(
            events in proptest::collection::vec((0u8..40, 0u8..3, 0i64..50), 0..300)
        ) {
            let mut accounts = accounts();
            let (mut sent, mut settled) = (HashSet::new(), HashSet::new());
            for (id, what, at) in events {
                let name = id.to_string();
                match what {
                    0 => { accounts.sent("a", &name, at); sent.insert(id); }
                    1 => { accounts.settle(&name, at, Settlement::Answered); settled.insert(id); }
                    _ => { accounts.settle(&name, at, Settlement::Rejected); settled.insert(id); }
                }
            }
            let totals = accounts.totals();
            prop_assert_eq!(totals.sent, sent.len() as u64);
            prop_assert_eq!(totals.answered + totals.rejected, sent.intersection(&settled).count() as u64);
            prop_assert_eq!(totals.sent, totals.answered + totals.rejected + totals.lost);
        }
    }
}
