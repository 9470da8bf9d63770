//! The error budget of a service: how much of what may be missed is still unspent, and what the plan makes of it.
//!
//! An objective of 99 % of the requests and 98 % of the minutes allows misses, and a plan that makes none has paid for
//! nodes that nobody asked for. Whole nodes are the reason: where load goes a little beyond what `n` of them carry, one
//! more costs most for what it carries. So every closed minute pays into two accounts, one in requests and one in
//! minutes, what the objective allows less what was missed, and the fuller they are the further load may go beyond
//! capacity before a node is added (`Settings::stretch` of the smallest node at most). Overdrawn ones allow nothing, and
//! the further they are the higher the quantile that is planned for (`demand`) and the smaller the share that may wait
//! (`cost`): how much a load surprises is learned from what it cost, not set.
//! This is proportional control of the price of a miss: in the Lagrangian of the bound (FACTS §Planning, cheapest 1 %
//! dropped) a node is added when load exceeds the others by `price of the node / price of a miss`, a constant number of
//! requests per second whatever the size of the fleet, and the price is the one at which the budget is just spent.
//!
//! Invariants: pure; without a closed minute the allowance is 0; it never leaves [−1, 1]; when no more is missed than
//! comes in, it does not sink. Accounts hold a day at most, so an old calm does not pay for a new storm. Left out:
//! persistence (a planner that begins anew begins without savings, which is the careful side).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Part of the objective's allowance that is meant to be spent; the rest is reserve.
const AIM: f64 = 0.90;
/// Accounts hold the income of so many minutes.
const DEPTH_MINUTES: f64 = 1440.0;
/// Share of the depth at which the allowance is full. A smaller one spends what a day saved on the first occasion, and a
/// miss is worth the same at all times.
const FULL_AT: f64 = 0.50;
/// Share of the depth by which an account is far overdrawn.
const SHORT_AT: f64 = 0.25;

/// What a service promises over days.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Objective {
    /// Share of requests that are answered in time.
    pub attainment: f64,
    /// Share of minutes in which the SLO's quantile of the requests is answered in time.
    pub minutes: f64,
}

impl Default for Objective {
    fn default() -> Self {
        Objective { attainment: 0.99, minutes: 0.98 }
    }
}

/// The two accounts.
#[derive(Debug, Clone, PartialEq)]
pub struct Budget {
    objective: Objective,
    slo_quantile: f64,
    /// Requests of the last day, decaying.
    daily: f64,
    /// Minutes that count in `daily`.
    seen: f64,
    requests_left: f64,
    minutes_left: f64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget::new(Objective::default(), 0.95)
    }
}

impl Budget {
    /// Without savings.
    pub fn new(objective: Objective, slo_quantile: f64) -> Self {
        Budget { objective, slo_quantile, daily: 0.0, seen: 0.0, requests_left: 0.0, minutes_left: 0.0 }
    }

    /// A minute is over in which `requests` arrived and `missed` of them were refused, lost or late.
    pub fn minute(&mut self, requests: u64, missed: u64) {
        if requests == 0 {
            return;
        }
        let (requests, missed) = (requests as f64, missed.min(requests) as f64);
        let keep = 1.0 - 1.0 / DEPTH_MINUTES;
        self.daily = self.daily * keep + requests;
        self.seen = self.seen * keep + 1.0;
        let may = AIM * (1.0 - self.objective.attainment);
        let deepest = self.deepest_requests().max(f64::MIN_POSITIVE);
        self.requests_left = (self.requests_left + may * requests - missed).clamp(-deepest, deepest);
        let bad = f64::from(u8::from(requests - missed < self.slo_quantile * requests));
        let (may, deepest) = (AIM * (1.0 - self.objective.minutes), self.deepest_minutes());
        self.minutes_left = (self.minutes_left + may - bad).clamp(-deepest, deepest);
    }

    fn deepest_requests(&self) -> f64 {
        (1.0 - self.objective.attainment) * self.daily / self.seen.max(1.0) * DEPTH_MINUTES
    }

    fn deepest_minutes(&self) -> f64 {
        (1.0 - self.objective.minutes) * DEPTH_MINUTES
    }

    /// How freely misses may be spent, from −1 (far overdrawn) to 1 (full).
    pub fn allowance(&self) -> f64 {
        let share = |left: f64, deepest: f64| {
            let whole = deepest * if left > 0.0 { FULL_AT } else { SHORT_AT };
            if whole > 0.0 { left / whole } else { 0.0 }
        };
        let requests = share(self.requests_left, self.deepest_requests());
        requests.min(share(self.minutes_left, self.deepest_minutes())).clamp(-1.0, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_calm_fills_it_and_a_storm_overdraws_it() {
        let mut budget = Budget::new(Objective::default(), 0.95);
        assert_eq!(budget.allowance(), 0.0);
        (0..300).for_each(|_| budget.minute(1000, 0));
        let saved = budget.allowance();
        assert!(saved > 0.3 && saved <= 1.0, "{saved}");
        // Half of the requests of ten minutes: more than three hundred minutes have saved.
        (0..10).for_each(|_| budget.minute(1000, 500));
        let storm = budget.allowance();
        assert!((-1.0..0.0).contains(&storm), "{storm}");
        (0..100).for_each(|_| budget.minute(1000, 0));
        let calm = budget.allowance();
        assert!(storm < calm && calm < 0.0, "ten bad minutes are not made good by a hundred: {storm} {calm}");
        (0..2000).for_each(|_| budget.minute(1000, 0));
        assert_eq!(budget.allowance(), 1.0);
    }

    #[test]
    fn bad_minutes_count_even_when_they_are_few_requests() {
        let mut budget = Budget::new(Objective::default(), 0.95);
        for minute in 0..1000 {
            // One minute in twenty is bad, with a tenth of a thousandth of all requests.
            if minute % 20 == 0 { budget.minute(10, 1) } else { budget.minute(10_000, 0) }
        }
        assert_eq!(budget.allowance(), -1.0);
    }

    proptest! {
        #[test]
        fn what_is_spent_under_this_allowance_stays_inside_the_objective(
            seed in prop::collection::vec((1u64..5_000, 0.0f64..1.0), 500..3_000)
        ) {
            // A plant that misses as much as it is allowed to, and something by itself.
            let mut budget = Budget::new(Objective::default(), 0.95);
            let (mut total, mut missed_all) = (0u64, 0u64);
            for (requests, luck) in seed {
                let share = 0.08 * budget.allowance().max(0.0) * luck;
                let missed = (share * requests as f64) as u64;
                budget.minute(requests, missed);
                let a = budget.allowance();
                prop_assert!((-1.0..=1.0).contains(&a));
                total += requests;
                missed_all += missed;
            }
            prop_assert!(missed_all as f64 <= 0.01 * total as f64 + 500.0, "{missed_all} of {total}");
        }
    }
}
