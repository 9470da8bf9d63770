//! Leases: what time on a node is paid for, and what may be done with it when.
//!
//! ```text
//!            order                     still needed at its end
//!   (none) ────────▶ held ──────────────────────────────────────▶ held, longer (renew)
//!                     │ not needed                                   ▲
//!                     ▼                     needed again             │
//!                   lapsing (unloaded) ──────────────────────────────┘
//!                     │ its end has come
//!                     ▼
//!                   stopped
//! ```
//!
//! Invariants: a lease never gets shorter; a node is never stopped before the end of what is paid or committed.
//! Per-second billing commits to the shortest lease only, after that the node is held by the second and may stop at
//! any time. Hourly billing pays each hour that begins. Left out: spot prices that move (interruptions: `spot`), and the
//! choice between terms by how long a load will last.

use crate::model::Flavor;
use schemars::JsonSchema;
use schemas::EpochMs;
use serde::{Deserialize, Serialize};

/// One hour.
pub const HOUR_MS: i64 = 3_600_000;

/// How time on a node is billed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Billing {
    /// By the second, the shortest lease at least.
    #[default]
    Second,
    /// By the hour that began.
    Hour,
}

/// The right to a node, from `start_ms` until at least `end_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// When the node was ordered.
    pub start_ms: EpochMs,
    /// Until when time is paid or committed; held by the second after that (per-second billing).
    pub end_ms: EpochMs,
}

/// What a lease of a flavor costs and commits to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Terms {
    /// Second or hour.
    pub billing: Billing,
    /// Shortest lease.
    pub min_lease_ms: i64,
    /// Price.
    pub usd_per_hour: f64,
}

impl Terms {
    /// The terms of a flavor.
    pub fn of(flavor: &Flavor) -> Self {
        Terms {
            billing: flavor.billing,
            min_lease_ms: (flavor.min_lease_s * 1000.0).ceil() as i64,
            usd_per_hour: flavor.usd_per_hour,
        }
    }

    /// The shortest time that can be paid for.
    fn unit_ms(&self) -> i64 {
        match self.billing {
            Billing::Second => self.min_lease_ms.max(0),
            Billing::Hour => whole_hours_ms(self.min_lease_ms),
        }
    }

    /// A lease that begins now.
    pub fn start(&self, now_ms: EpochMs) -> Lease {
        Lease { start_ms: now_ms, end_ms: now_ms + self.unit_ms() }
    }

    /// The lease prolonged, as often as it takes, so that it is valid after `until_ms`. A lease that is held by the
    /// second needs no prolonging.
    pub fn renewed(&self, lease: Lease, until_ms: EpochMs) -> Lease {
        match self.billing {
            Billing::Second => lease,
            Billing::Hour => {
                let missing = (until_ms - lease.end_ms + 1).max(0);
                let hours = missing.div_euclid(HOUR_MS) + i64::from(missing.rem_euclid(HOUR_MS) > 0);
                Lease { end_ms: lease.end_ms + hours * HOUR_MS, ..lease }
            }
        }
    }

    /// True when the lease has to be prolonged to be valid after `then_ms`.
    pub fn renewal_due(&self, lease: Lease, then_ms: EpochMs) -> bool {
        self.billing == Billing::Hour && lease.end_ms <= then_ms
    }

    /// True when nothing more is paid or committed: the node may stop.
    pub fn may_stop(&self, lease: Lease, now_ms: EpochMs) -> bool {
        now_ms >= lease.end_ms
    }

    /// True when giving the node up at `then_ms` saves nothing, since it is paid for beyond.
    pub fn is_sunk(&self, lease: Lease, then_ms: EpochMs) -> bool {
        lease.end_ms > then_ms
    }

    /// What the lease has cost at `now_ms`: time gone by, and the commitment if that is longer. `stopped_ms` is when
    /// it was given up.
    pub fn usd(&self, lease: Lease, now_ms: EpochMs, stopped_ms: Option<EpochMs>) -> f64 {
        let until = stopped_ms.map_or(now_ms, |s| s.min(now_ms)).max(lease.start_ms);
        let used_ms = until - lease.start_ms;
        let billed_ms = match self.billing {
            Billing::Second => used_ms.max(self.unit_ms()),
            // A term that lapses bills no further hour, even if the machine was noticed to be gone a little later.
            Billing::Hour => {
                whole_hours_ms(used_ms).min((lease.end_ms - lease.start_ms).max(HOUR_MS)).max(self.unit_ms())
            }
        };
        billed_ms as f64 / HOUR_MS as f64 * self.usd_per_hour
    }
}

/// Rounded up to whole hours, at least one.
fn whole_hours_ms(ms: i64) -> i64 {
    let ms = ms.max(1);
    (ms.div_euclid(HOUR_MS) + i64::from(ms.rem_euclid(HOUR_MS) > 0)) * HOUR_MS
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Terms = Terms { billing: Billing::Second, min_lease_ms: 60_000, usd_per_hour: 3.6 };
    const HOURLY: Terms = Terms { billing: Billing::Hour, min_lease_ms: 0, usd_per_hour: 2.0 };

    #[test]
    fn per_second_commits_to_the_shortest_lease_and_then_to_nothing() {
        let lease = SECOND.start(1_000);
        assert_eq!(lease.end_ms, 61_000);
        assert!(!SECOND.may_stop(lease, 60_999) && SECOND.may_stop(lease, 61_000));
        assert!(!SECOND.renewal_due(lease, 1_000_000));
        assert!((SECOND.usd(lease, 11_000, None) - 0.06).abs() < 1e-12, "the commitment is owed at once");
        assert!((SECOND.usd(lease, 101_000, None) - 0.1).abs() < 1e-12);
        assert!((SECOND.usd(lease, 901_000, Some(101_000)) - 0.1).abs() < 1e-12);
    }

    #[test]
    fn hourly_pays_each_hour_that_begins() {
        let lease = HOURLY.start(0);
        assert_eq!(lease.end_ms, HOUR_MS);
        assert!(!HOURLY.may_stop(lease, HOUR_MS - 1) && HOURLY.may_stop(lease, HOUR_MS));
        assert!(HOURLY.renewal_due(lease, HOUR_MS) && !HOURLY.renewal_due(lease, HOUR_MS - 1));
        assert_eq!(HOURLY.usd(lease, 1, None), 2.0);
        let longer = HOURLY.renewed(lease, HOUR_MS);
        assert_eq!(longer.end_ms, 2 * HOUR_MS);
        assert_eq!(HOURLY.usd(longer, HOUR_MS + 1, None), 4.0);
        assert_eq!(HOURLY.usd(lease, HOUR_MS + 500, Some(HOUR_MS + 500)), 2.0, "a lapsed term bills no further hour");
    }

    proptest! {
        #[test]
        fn leases_only_grow_and_cost_never_falls(
            hourly in any::<bool>(), min_s in 0i64..8000, start in 0i64..1_000_000, steps in prop::collection::vec(0i64..10_000_000, 1..20)
        ) {
            let billing = if hourly { Billing::Hour } else { Billing::Second };
            let terms = Terms { billing, min_lease_ms: min_s * 1000, usd_per_hour: 1.0 };
            let mut lease = terms.start(start);
            let (mut now, mut usd) = (start, terms.usd(lease, start, None));
            for step in steps {
                now += step;
                let renewed = terms.renewed(lease, now);
                prop_assert!(renewed.end_ms >= lease.end_ms && renewed.start_ms == lease.start_ms);
                prop_assert!(!terms.renewal_due(renewed, now));
                lease = renewed;
                let next = terms.usd(lease, now, None);
                prop_assert!(next >= usd - 1e-12, "{next} < {usd}");
                usd = next;
            }
        }
    }
}
