//! What is known of each service's load: the newest forecast and the rate of the last intervals.
//!
//! Invariants: pure; only the intervals inside the window are kept; simulated history is no observation; a gap or
//! silence of three intervals means that nothing is known, rather than that nothing arrives.

use crate::budget::Budget;
use crate::model::{ObservedRate, ServiceLoad};
use schemas::EpochMs;
use schemas::workload::{WorkloadForecast, WorkloadObserved};
use std::collections::VecDeque;

/// Intervals of silence after which an observation is stale.
const STALE_INTERVALS: i64 = 3;

const MINUTE_MS: i64 = 60_000;

/// Load of one service.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LoadState {
    forecast: Option<WorkloadForecast>,
    /// Ascending by start.
    observed: VecDeque<WorkloadObserved>,
    budget: Budget,
    /// The minute that is being counted: its number, requests that were answered or refused in it, those in time.
    minute: Option<(i64, u64, u64)>,
}

impl LoadState {
    /// Takes a forecast, unless a newer one is known.
    pub fn forecast(&mut self, forecast: WorkloadForecast) {
        if self.forecast.as_ref().is_none_or(|known| known.origin_ms <= forecast.origin_ms) {
            self.forecast = Some(forecast);
        }
    }

    /// Takes an interval. A repeated one replaces the one before. Gives its rate, if it counts.
    pub fn observed(&mut self, observed: WorkloadObserved, window_ms: i64) -> Option<f64> {
        if observed.simulated {
            return None;
        }
        let rate_rps = observed.rate_rps();
        let newest_ms = self.observed.back().map_or(observed.start_ms, |o| o.start_ms.max(observed.start_ms));
        self.observed.retain(|o| o.start_ms != observed.start_ms && o.start_ms > newest_ms - window_ms);
        if observed.start_ms > newest_ms - window_ms {
            let at = self.observed.partition_point(|o| o.start_ms < observed.start_ms);
            self.observed.insert(at, observed);
        }
        Some(rate_rps)
    }

    /// A node has answered or refused `finished` requests, `in_time` of them in time. A minute goes into the error
    /// budget when the next one begins.
    pub fn finished(&mut self, now_ms: EpochMs, finished: u64, in_time: u64) {
        let now = now_ms.div_euclid(MINUTE_MS);
        if let Some((_, total, good)) = self.minute.filter(|m| m.0 < now) {
            self.budget.minute(total, total.saturating_sub(good));
            self.minute = None;
        }
        let (_, total, good) = self.minute.get_or_insert((now, 0, 0));
        *total += finished;
        *good += in_time.min(finished);
    }

    /// As a decision reads it.
    pub fn at(&self, now_ms: EpochMs, backlog: u64) -> ServiceLoad {
        ServiceLoad {
            forecast: self.forecast.clone(),
            observed: self.rate(now_ms, self.observed.iter()),
            newest: self.rate(now_ms, self.observed.iter().rev().take(1)),
            backlog,
            dispersion: None,
            allowance: self.budget.allowance(),
        }
    }

    /// Mean rate of these intervals, unless the newest of all is too old.
    fn rate<'a>(
        &'a self,
        now_ms: EpochMs,
        intervals: impl Iterator<Item = &'a WorkloadObserved> + Clone,
    ) -> Option<ObservedRate> {
        let newest = self.observed.back()?;
        let interval_ms = newest.interval_ms.max(1) as i64;
        if now_ms - (newest.start_ms + interval_ms) > STALE_INTERVALS * interval_ms {
            return None;
        }
        let arrivals: u64 = intervals.clone().map(|o| o.arrivals).sum();
        let window_ms: i64 = intervals.clone().map(|o| o.interval_ms.max(1) as i64).sum();
        let start_ms = intervals.map(|o| o.start_ms).min().unwrap_or(newest.start_ms);
        Some(ObservedRate { start_ms, window_ms, rate_rps: arrivals as f64 * 1000.0 / window_ms as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::forecast;

    fn interval(start_ms: EpochMs, arrivals: u64) -> WorkloadObserved {
        WorkloadObserved {
            schema: Default::default(),
            service: "s".into(),
            start_ms,
            interval_ms: 10_000,
            arrivals,
            direct_arrivals: 0,
            simulated: false,
        }
    }

    #[test]
    fn the_rate_is_that_of_the_window() {
        let mut load = LoadState::default();
        for (i, n) in [1_000, 100, 300].into_iter().enumerate() {
            assert_eq!(load.observed(interval(i as i64 * 10_000, n), 20_000), Some(n as f64 / 10.0));
        }
        let rate = load.at(30_000, 0).observed.expect("fresh");
        assert_eq!((rate.start_ms, rate.window_ms, rate.rate_rps), (10_000, 20_000, 20.0));
        let newest = load.at(30_000, 0).newest.expect("fresh");
        assert_eq!((newest.start_ms, newest.window_ms, newest.rate_rps), (20_000, 10_000, 30.0));
        load.observed(interval(20_000, 500), 20_000);
        assert_eq!(load.at(30_000, 0).observed.expect("fresh").rate_rps, 30.0, "a repeated interval replaces");
        assert_eq!(load.at(60_001, 0).observed, None, "three intervals of silence");
    }

    #[test]
    fn answers_fill_the_error_budget_minute_by_minute() {
        let mut load = LoadState::default();
        let answer = |load: &mut LoadState, second: i64, in_time| load.finished(second * 1000, 100, in_time);
        (0..600).for_each(|s| answer(&mut load, s, 100));
        let saved = load.at(600_000, 0).allowance;
        assert!(saved > 0.0);
        // A minute counts when it is over.
        (600..660).for_each(|s| answer(&mut load, s, 0));
        assert!((load.at(660_000, 0).allowance - saved).abs() < 0.1);
        answer(&mut load, 660, 100);
        assert!(load.at(661_000, 0).allowance < 0.0);
    }

    #[test]
    fn simulated_history_and_older_forecasts_do_not_count() {
        let mut load = LoadState::default();
        assert_eq!(load.observed(WorkloadObserved { simulated: true, ..interval(0, 9) }, 20_000), None);
        load.forecast(forecast("s", 20_000, &[2.0]));
        load.forecast(forecast("s", 10_000, &[1.0]));
        let at = load.at(20_000, 3);
        assert_eq!((at.observed, at.backlog, at.forecast.expect("kept").origin_ms), (None, 3, 20_000));
    }
}
