//! Counts records per second of their timestamp, for rates over the last minutes.

use schemas::EpochMs;
use serde::Serialize;
use std::collections::BTreeMap;

/// How far back the series goes.
const WINDOW_S: i64 = 300;
/// Width of a point of the series.
const STEP_S: i64 = 5;
/// Headline rates are means over this long.
const RATE_S: i64 = 10;
/// Most seconds kept; beyond it the oldest go. Twice the window, so that clocks that run ahead do not push out now.
const MAX_SECONDS: usize = 2 * WINDOW_S as usize;

/// Records per second of record time. Bounded to [`MAX_SECONDS`] counters.
#[derive(Debug, Default)]
pub(crate) struct RateMeter {
    seconds: BTreeMap<i64, u64>,
    total: u64,
    last_ms: Option<EpochMs>,
}

/// What a meter shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RateView {
    /// Mean rate over the last ten whole seconds, per second.
    pub per_s: f64,
    /// Records since the dashboard began.
    pub total: u64,
    /// Timestamp of the newest record.
    pub last_ms: Option<EpochMs>,
    /// `[start, records per second]` for each five seconds of the last five minutes, zeros included.
    pub series: Vec<(EpochMs, f64)>,
}

impl RateMeter {
    pub(crate) fn record(&mut self, timestamp_ms: EpochMs) {
        *self.seconds.entry(timestamp_ms.div_euclid(1000)).or_default() += 1;
        self.total += 1;
        self.last_ms = self.last_ms.max(Some(timestamp_ms));
        if self.seconds.len() > MAX_SECONDS {
            self.seconds.pop_first();
        }
    }

    /// Drops seconds that no view at or after `now_ms` can show.
    pub(crate) fn prune(&mut self, now_ms: EpochMs) {
        self.seconds = self.seconds.split_off(&(now_ms.div_euclid(1000) - WINDOW_S - STEP_S));
    }

    /// Rates at `now_ms` of a meter that has listened since `since_ms`.
    pub(crate) fn view(&self, since_ms: EpochMs, now_ms: EpochMs) -> RateView {
        let (now_s, since_s) = (now_ms.div_euclid(1000), since_ms.div_euclid(1000));
        let span = (now_s - since_s).clamp(1, RATE_S);
        let last = now_s.div_euclid(STEP_S) * STEP_S;
        let first = (last - WINDOW_S).max(since_s.div_euclid(STEP_S) * STEP_S);
        let points = (first..last).step_by(STEP_S as usize);
        RateView {
            per_s: super::round3(self.count(now_s - span, now_s) as f64 / span as f64),
            total: self.total,
            last_ms: self.last_ms,
            series: points
                .map(|s| (s * 1000, super::round3(self.count(s, s + STEP_S) as f64 / STEP_S as f64)))
                .collect(),
        }
    }

    /// Records in seconds `[from, to)`.
    fn count(&self, from: i64, to: i64) -> u64 {
        if from >= to { 0 } else { self.seconds.range(from..to).map(|(_, n)| n).sum() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_means_over_whole_seconds() {
        let mut meter = RateMeter::default();
        for s in 0..60 {
            for _ in 0..20 {
                meter.record(s * 1000 + 17);
            }
        }
        let view = meter.view(0, 60_400);
        assert_eq!((view.per_s, view.total, view.last_ms), (20.0, 1200, Some(59_017)));
        assert_eq!(view.series.len(), 12);
        assert!(view.series.iter().all(|(_, rate)| *rate == 20.0), "{view:?}");
        // Silence shows as zeros, not as the last rate.
        assert_eq!(meter.view(0, 90_000).per_s, 0.0);
        assert_eq!(meter.view(0, 90_000).series.last(), Some(&(85_000, 0.0)));
    }

    #[test]
    fn a_young_meter_divides_by_its_age() {
        let mut meter = RateMeter::default();
        for _ in 0..30 {
            meter.record(1_000_500);
        }
        assert_eq!(meter.view(1_000_000, 1_003_000).per_s, 10.0);
        assert!(meter.view(1_000_000, 1_000_000).per_s.is_finite());
    }

    #[test]
    fn memory_is_bounded_and_clocks_ahead_do_not_hide_now() {
        let mut meter = RateMeter::default();
        for s in 0..10_000_i64 {
            meter.record(s * 1000);
        }
        assert_eq!(meter.seconds.len(), MAX_SECONDS);
        meter.record(i64::MAX);
        meter.record(i64::MIN);
        assert_eq!(meter.total, 10_002);
        assert_eq!(meter.view(0, 10_000_000).per_s, 1.0);
        meter.prune(20_000_000);
        assert_eq!(meter.seconds.len(), 1, "only the far future is left");
    }
}
