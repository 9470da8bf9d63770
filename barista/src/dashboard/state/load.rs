//! Load of one service: what was observed, what is forecast, what was forecast when it still could be acted on.

use schemas::EpochMs;
use schemas::workload::{ForecastStep, WorkloadForecast, WorkloadObserved};
use serde::Serialize;
use std::collections::BTreeMap;

/// Most intervals kept: the window at one interval a second; beyond it the oldest go.
const MAX_OBSERVED: usize = 1024;
/// Most forecasts kept; beyond it the oldest go.
const MAX_FORECASTS: usize = 1024;
/// Most steps of a forecast that are kept; later ones are not drawn.
const MAX_STEPS: usize = 60;
/// Most changes of capacity kept; beyond it the oldest go.
const MAX_CAPACITIES: usize = 512;

/// Observed load of one interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LoadPoint {
    /// Start of the interval.
    pub start_ms: EpochMs,
    /// Mean rate over it, requests per second.
    pub rps: f64,
    /// True for history that no application sent.
    pub simulated: bool,
}

/// One step of a forecast, requests per second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct BandPoint {
    /// Start of the interval forecast.
    pub start_ms: EpochMs,
    /// Median; the mean where the forecast has no median.
    pub p50_rps: f64,
    /// 95th percentile; absent where the forecast has none.
    pub p95_rps: Option<f64>,
    /// 99th percentile; absent where the forecast has none.
    pub p99_rps: Option<f64>,
}

/// The newest forecast.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ForecastView {
    /// End of the last interval that it knows.
    pub origin_ms: EpochMs,
    /// Its steps.
    pub steps: Vec<BandPoint>,
    /// Weight of each expert, heaviest first.
    pub weights: Vec<(String, f64)>,
    /// Mean absolute one-step error, requests per second.
    pub mae_rps: Option<f64>,
    /// That error over the seasonal naive one's.
    pub mase: Option<f64>,
    /// True while the series is too short for seasonal experts.
    pub cold_start: bool,
}

/// How forecasts made one set-up time ahead turned out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct AheadScore {
    /// Intervals compared.
    pub intervals: u32,
    /// Share of them whose load was at or below the 95th percentile.
    pub below_p95: f64,
    /// Mean absolute error of the median, requests per second.
    pub mae_rps: f64,
}

/// All that the load chart shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LoadView {
    /// Length of an interval, milliseconds; 0 before the first.
    pub interval_ms: i64,
    /// Observed load, oldest first.
    pub observed: Vec<LoadPoint>,
    /// Newest forecast.
    pub forecast: Option<ForecastView>,
    /// How long before its interval each point of `ahead` was made, milliseconds.
    pub lead_ms: i64,
    /// What had been forecast `lead_ms` ahead, oldest first.
    pub ahead: Vec<BandPoint>,
    /// How that turned out.
    pub ahead_score: Option<AheadScore>,
    /// `[from, requests per second]` that plans provided from then on.
    pub capacity: Vec<(EpochMs, f64)>,
}

#[derive(Debug)]
struct Kept {
    steps: Vec<BandPoint>,
}

/// Bounded to [`MAX_OBSERVED`] intervals, [`MAX_FORECASTS`] forecasts of [`MAX_STEPS`] steps, [`MAX_CAPACITIES`]
/// changes of capacity.
#[derive(Debug, Default)]
pub(crate) struct Load {
    interval_ms: i64,
    observed: BTreeMap<EpochMs, LoadPoint>,
    forecasts: BTreeMap<EpochMs, Kept>,
    newest: Option<ForecastView>,
    capacity: BTreeMap<EpochMs, f64>,
}

impl Load {
    pub(crate) fn observe(&mut self, message: &WorkloadObserved) {
        self.interval_ms = interval(message.interval_ms);
        let rps = super::round3(message.rate_rps());
        let point = LoadPoint { start_ms: message.start_ms, rps, simulated: message.simulated };
        self.observed.insert(message.start_ms, point);
        bound(&mut self.observed, MAX_OBSERVED);
    }

    pub(crate) fn forecast(&mut self, message: WorkloadForecast) {
        let known = message.steps.iter().filter(|step| super::plausible(step.start_ms)).take(MAX_STEPS);
        let steps: Vec<BandPoint> = known.map(|step| band(&message.levels, step)).collect();
        if self.newest.as_ref().is_none_or(|newest| newest.origin_ms <= message.origin_ms) {
            let mut weights: Vec<(String, f64)> =
                message.weights.into_iter().map(|(name, weight)| (name, super::round3(weight))).collect();
            weights.sort_by(|a, b| b.1.total_cmp(&a.1));
            self.newest = Some(ForecastView {
                origin_ms: message.origin_ms,
                steps: steps.clone(),
                weights,
                mae_rps: message.error.mae_rps.map(super::round3),
                mase: message.error.mase.map(super::round3),
                cold_start: message.cold_start,
            });
        }
        self.forecasts.insert(message.origin_ms, Kept { steps });
        bound(&mut self.forecasts, MAX_FORECASTS);
    }

    /// From `from_ms` on, plans provide `rps`.
    pub(crate) fn capacity(&mut self, from_ms: EpochMs, rps: f64) {
        let last = self.capacity.range(..=from_ms).next_back();
        if last.is_none_or(|(_, known)| *known != rps) {
            self.capacity.insert(from_ms, rps);
            bound(&mut self.capacity, MAX_CAPACITIES);
        }
    }

    /// Drops what no view at or after `now_ms` shows.
    pub(crate) fn prune(&mut self, now_ms: EpochMs) {
        let begin = now_ms - super::WINDOW_MS;
        self.observed = self.observed.split_off(&begin);
        self.forecasts.retain(|_, kept| kept.steps.last().is_some_and(|step| step.start_ms >= begin));
        // The step in force at the window's begin stays.
        if let Some((&first, _)) = self.capacity.range(..=begin).next_back() {
            self.capacity = self.capacity.split_off(&first);
        }
    }

    /// True when nothing was observed or forecast.
    pub(crate) fn is_empty(&self) -> bool {
        self.observed.is_empty() && self.forecasts.is_empty()
    }

    /// The newest observed rate, unless it is older than `max_age_ms` (or three intervals) or was simulated.
    pub(crate) fn current_rps(&self, now_ms: EpochMs, max_age_ms: i64) -> Option<f64> {
        let (_, point) = self.observed.last_key_value()?;
        let age_ms = now_ms - (point.start_ms + self.interval_ms);
        (!point.simulated && age_ms <= max_age_ms.max(3 * self.interval_ms)).then_some(point.rps)
    }

    /// Observed starts and rates that applications caused, for the sum over services.
    pub(crate) fn real_points(&self) -> impl Iterator<Item = &LoadPoint> {
        self.observed.values().filter(|point| !point.simulated)
    }

    /// The view, with the forecasts made `lead_ms` ahead (at least one interval).
    pub(crate) fn view(&self, lead_ms: i64) -> LoadView {
        let lead_ms = lead_ms.max(self.interval_ms);
        let ahead = self.ahead(lead_ms);
        LoadView {
            interval_ms: self.interval_ms,
            observed: self.observed.values().copied().collect(),
            forecast: self.newest.clone(),
            lead_ms,
            ahead_score: self.score(&ahead),
            ahead,
            capacity: self.capacity.iter().map(|(from, rps)| (*from, super::round3(*rps))).collect(),
        }
    }

    /// Of each forecast the first step that begins `lead_ms` or more after its origin; its last one if none does.
    fn ahead(&self, lead_ms: i64) -> Vec<BandPoint> {
        let mut points = BTreeMap::new();
        for (origin_ms, kept) in &self.forecasts {
            let step = kept.steps.iter().find(|step| step.start_ms - origin_ms >= lead_ms).or(kept.steps.last());
            if let Some(step) = step {
                points.insert(step.start_ms, *step);
            }
        }
        points.into_values().collect()
    }

    fn score(&self, ahead: &[BandPoint]) -> Option<AheadScore> {
        let (mut intervals, mut below, mut error) = (0_u32, 0_u32, 0.0);
        for step in ahead {
            let Some(point) = self.observed.get(&step.start_ms).filter(|point| !point.simulated) else { continue };
            let Some(p95_rps) = step.p95_rps else { continue };
            intervals += 1;
            below += u32::from(point.rps <= p95_rps);
            error += (point.rps - step.p50_rps).abs();
        }
        (intervals > 0).then(|| AheadScore {
            intervals,
            below_p95: super::round3(f64::from(below) / f64::from(intervals)),
            mae_rps: super::round3(error / f64::from(intervals)),
        })
    }
}

/// Rates summed over services for each interval that all of them have, oldest first.
pub(crate) fn total_series<'a>(loads: impl Iterator<Item = &'a Load>) -> Vec<(EpochMs, f64)> {
    let mut sums: BTreeMap<EpochMs, (f64, usize)> = BTreeMap::new();
    let mut services = 0;
    for load in loads {
        services += usize::from(load.real_points().next().is_some());
        for point in load.real_points() {
            let sum = sums.entry(point.start_ms).or_default();
            sum.0 += point.rps;
            sum.1 += 1;
        }
    }
    sums.into_iter().filter(|(_, (_, n))| *n == services).map(|(start, (sum, _))| (start, super::round3(sum))).collect()
}

fn band(levels: &[f64], step: &ForecastStep) -> BandPoint {
    let at = |level: f64| {
        let index = levels.iter().position(|l| (l - level).abs() < 1e-6)?;
        step.quantiles_rps.get(index).map(|rps| super::round3(*rps))
    };
    BandPoint {
        start_ms: step.start_ms,
        p50_rps: at(0.5).unwrap_or(super::round3(step.mean_rps)),
        p95_rps: at(0.95),
        p99_rps: at(0.99),
    }
}

/// An interval from a message: at most a day, so that sums of times cannot overflow.
fn interval(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX).clamp(1, 86_400_000)
}

fn bound<V>(map: &mut BTreeMap<EpochMs, V>, most: usize) {
    while map.len() > most {
        map.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::workload::ForecastError;

    fn observed(start_ms: EpochMs, arrivals: u64, simulated: bool) -> WorkloadObserved {
        WorkloadObserved {
            schema: Default::default(),
            service: "vision".to_owned(),
            start_ms,
            interval_ms: 5000,
            arrivals,
            direct_arrivals: 0,
            simulated,
        }
    }

    /// Six steps after `origin_ms`, step `i` forecast as `base + i`.
    fn forecast(origin_ms: EpochMs, base: f64) -> WorkloadForecast {
        let step = |i: i64| ForecastStep {
            start_ms: origin_ms + i * 5000,
            mean_rps: 0.0,
            quantiles_rps: vec![base + i as f64, base + i as f64 + 10.0, base + i as f64 + 20.0],
        };
        WorkloadForecast {
            schema: Default::default(),
            service: "vision".to_owned(),
            origin_ms,
            interval_ms: 5000,
            levels: vec![0.5, 0.95, 0.99],
            steps: (0..6).map(step).collect(),
            last_observed_rps: base,
            weights: [("last".to_owned(), 0.25), ("ridge".to_owned(), 0.75)].into(),
            error: ForecastError { mae_rps: Some(1.0), mase: None, coverage: vec![] },
            samples: 10,
            cold_start: false,
            ..WorkloadForecast::default()
        }
    }

    #[test]
    fn the_ahead_series_is_what_was_known_one_set_up_time_before() {
        let mut load = Load::default();
        for i in 0..10 {
            load.forecast(forecast(i * 5000, 100.0 * i as f64));
        }
        let view = load.view(12_000);
        // 12 s ahead is reached by the step that begins 15 s after the origin, step 3.
        assert_eq!(view.ahead.len(), 10);
        assert_eq!((view.ahead[0].start_ms, view.ahead[0].p50_rps), (15_000, 3.0));
        assert_eq!((view.ahead[9].start_ms, view.ahead[9].p50_rps), (60_000, 903.0));
        let longest = load.view(600_000);
        assert_eq!(longest.ahead[0].start_ms, 25_000, "beyond the horizon the last step stands in");
        assert_eq!(view.forecast.map(|f| (f.origin_ms, f.weights[0].0.clone())), Some((45_000, "ridge".to_owned())));
    }

    #[test]
    fn the_score_compares_load_with_the_forecast_made_ahead() {
        let mut load = Load::default();
        load.observe(&observed(0, 0, true));
        for i in 0..4 {
            load.forecast(forecast(i * 5000, 100.0));
        }
        assert_eq!(load.view(5000).ahead_score, None, "nothing to compare with yet");
        for (start_ms, rps) in [(5000, 101), (10_000, 103), (15_000, 150)] {
            load.observe(&observed(start_ms, rps * 5, false));
        }
        let score = load.view(5000).ahead_score.expect("three intervals");
        assert_eq!((score.intervals, score.below_p95, score.mae_rps), (3, 0.667, 17.0));
    }

    #[test]
    fn a_level_that_is_missing_is_absent_and_not_made_up() {
        let mut message = forecast(0, 1.0);
        message.levels = vec![0.9];
        message.steps[0].quantiles_rps = vec![7.0];
        message.steps[0].mean_rps = 5.0;
        let mut load = Load::default();
        load.forecast(message);
        let view = load.view(0);
        let step = &view.forecast.expect("forecast").steps[0];
        assert_eq!((step.p50_rps, step.p95_rps, step.p99_rps), (5.0, None, None));
    }

    #[test]
    fn capacity_keeps_changes_and_the_step_in_force() {
        let mut load = Load::default();
        for (at, rps) in [(0, 10.0), (1000, 10.0), (2000, 20.0), (3000, 10.0)] {
            load.capacity(at, rps);
        }
        assert_eq!(load.view(0).capacity, [(0, 10.0), (2000, 20.0), (3000, 10.0)]);
        load.prune(super::super::WINDOW_MS + 2500);
        assert_eq!(load.view(0).capacity, [(2000, 20.0), (3000, 10.0)]);
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let mut load = Load::default();
        for i in 0..3000_i64 {
            load.observe(&observed(i * 5000, 5, i < 10));
            load.forecast(forecast(i * 5000, 1.0));
            load.capacity(i, i as f64);
        }
        assert_eq!((load.observed.len(), load.forecasts.len()), (MAX_OBSERVED, MAX_FORECASTS));
        assert_eq!(load.capacity.len(), MAX_CAPACITIES);
        assert_eq!(load.current_rps(3000 * 5000, 15_000), Some(1.0));
        assert_eq!(load.current_rps(3010 * 5000, 15_000), None, "old load is no current load");
        load.prune(3000 * 5000);
        assert_eq!(load.observed.len() as i64, super::super::WINDOW_MS / 5000);
    }

    #[test]
    fn totals_wait_until_every_service_has_reported() {
        let (mut a, mut b) = (Load::default(), Load::default());
        a.observe(&observed(0, 50, false));
        a.observe(&observed(5000, 50, false));
        b.observe(&observed(0, 100, false));
        assert_eq!(total_series([&a, &b].into_iter()), [(0, 30.0)]);
        assert_eq!(total_series([&a, &Load::default()].into_iter()), [(0, 10.0), (5000, 10.0)]);
    }
}
