//! How much load each service must carry, one set-up time ahead.
//!
//! The demand is the forecast quantile of the highest rate between now and the time when a node ordered at the *next*
//! decision would be ready; from a forecast without those, the highest of its steps' quantiles. Two things correct it:
//!
//! - the **nowcast guard**: when the rate just observed is above that forecast by more than chance explains
//!   ([`GUARD_SIGMAS`] standard deviations of a count over the window), the near path is lifted to the observed rate and
//!   what it takes to work off, within a period, what waits longer than the SLO allows; the newest interval alone counts
//!   where it is as far above the window, since a jump shows there first;
//! - below that, an observed rate above the forecast of this moment lifts the path by its **news**: the part of the
//!   difference that is the forecast's error rather than the chance of counting;
//! - the **error budget** (`budget`): load may go beyond what nodes carry by the part of a small node that the misses
//!   saved so far pay for, and an overdrawn one asks for a higher quantile, up to [`CAUTIOUS`];
//! - **hysteresis**: a demand that is only a little lower (`hysteresis`), or lower since a short time (`hold`), does
//!   not count as lower. So noise can raise the plan once but cannot make it flap.
//!
//! Where the flavor that is cheapest for a lasting load is not the one that is there soonest (`lead`), two times count:
//! what is wanted within the sooner one's lead is computed as above and must be there by then (`near_rps`), and beyond it,
//! up to the other one's, what is as likely as not: what turns out higher can still be met by the sooner one.
//!
//! Invariants: pure; planning again at the same time from the result gives the same demand.
//! Left out: the margin for queueing (`margin`), and what serves the demand (`plan`).

use crate::model::{ObservedRate, PreviousDemand, Service, ServiceLoad, Settings};
use schemas::EpochMs;
use schemas::workload::WorkloadForecast;

/// Window over which the observed rate is taken when nothing else is configured.
pub const NOWCAST_WINDOW_MS: i64 = 20_000;

/// However much may be missed, a service with load keeps a demand, requests per second.
const LEAST_RPS: f64 = 0.1;

/// Standard deviations of the observed rate above the forecast that are no chance any more. The guard is asked every
/// period: at one, it would lift the plan at every sixth, by chance and for the hold time each, which is as dear as a
/// forecast that is wrong by 3 %; at three, once in two hours. A crowd is beyond three within one window.
const GUARD_SIGMAS: f64 = 3.0;

/// Level of the forecast quantile where the error budget is far overdrawn. The configured one is right where the forecast
/// errs by less than a node, so that whole nodes are margin enough; how much it errs on a load is what misses tell.
const CAUTIOUS: f64 = 0.95;

/// The standard normal distribution's quantile at 0.9.
const Z_90: f64 = 1.2816;

/// Where a demand comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The forecast's quantile.
    Forecast,
    /// The observed rate is above the forecast.
    Guard,
    /// There is no forecast that covers now.
    ObservedOnly,
    /// The plan before still stands: nothing is known, or demand is not lower for long enough.
    Held,
    /// Nothing is known of this service.
    Unknown,
}

/// What a service must carry, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// To be carried, requests per second.
    pub rps: f64,
    /// Before hysteresis.
    pub raw_rps: f64,
    /// Part of it that is wanted within the lead of the flavor that is there soonest.
    pub near_rps: f64,
    /// Forecast quantile alone; 0 without a forecast.
    pub forecast_rps: f64,
    /// Rate observed last; 0 without one.
    pub observed_rps: f64,
    /// Begin of the window that was observed, else the time of the decision.
    pub sample_start_ms: EpochMs,
    /// When load last justified `rps`.
    pub justified_at_ms: EpochMs,
    /// How far ahead was looked.
    pub lead_ms: i64,
    /// Where `rps` comes from.
    pub source: Source,
    /// True when the forecast ends before the time looked at; its last step stands for the rest.
    pub forecast_short: bool,
}

/// The demand of one service, `setup_ms` being its set-up time on the flavor that it would be given and `step_rps` what
/// the smallest node that is of use to it carries.
pub fn demand(
    service: &Service,
    setup_ms: i64,
    step_rps: f64,
    previous: Option<&PreviousDemand>,
    now_ms: EpochMs,
    settings: &Settings,
) -> Demand {
    demand_until(service, setup_ms, setup_ms, step_rps, previous, now_ms, settings)
}

/// [`demand()`] where shortages are met by a flavor that is set up in `setup_ms`, and a lasting load by one that takes
/// `lasting_ms`, not less.
pub(crate) fn demand_until(
    service: &Service,
    setup_ms: i64,
    lasting_ms: i64,
    step_rps: f64,
    previous: Option<&PreviousDemand>,
    now_ms: EpochMs,
    settings: &Settings,
) -> Demand {
    let lead_ms = (setup_ms.max(0) + settings.period_ms).min(settings.horizon_ms);
    let load = &service.load;
    let quantile = quantile(load.allowance, settings);
    let forecast = load.forecast.as_ref().and_then(|f| peak(f, quantile, now_ms, now_ms + lead_ms));
    let dispersion = load.dispersion.unwrap_or(settings.dispersion);
    let observed = recent(load, dispersion);
    let observed_rps = observed.map_or(0.0, |o| o.rate_rps);
    let near_rps = observed_rps + overdue_rps(load.backlog, observed_rps * service.slo_ms / 1000.0, settings);
    let sigma_rps = observed.map_or(0.0, |o| sigma(o, dispersion));
    let (raw_rps, source) = match (&forecast, observed) {
        (Some(f), Some(_)) if near_rps - GUARD_SIGMAS * sigma_rps > f.rps => (near_rps, Source::Guard),
        (Some(f), Some(o)) => (f.rps + news(load.forecast.as_ref(), o, dispersion, now_ms), Source::Forecast),
        (Some(f), None) => (f.rps, Source::Forecast),
        // Two standard deviations stand in for the quantile that no forecast gives.
        (None, Some(_)) => (near_rps + 2.0 * sigma_rps, Source::ObservedOnly),
        (None, None) if previous.is_some() => (previous.map_or(0.0, |p| p.demand_rps), Source::Held),
        (None, None) => (0.0, Source::Unknown),
    };
    let near_rps = stretched(raw_rps, service, step_rps, settings);
    let far_ms = (lasting_ms.max(0) + settings.period_ms).min(settings.horizon_ms);
    let far = load.forecast.as_ref().filter(|_| far_ms > lead_ms && forecast.is_some());
    let far_rps = far.and_then(|f| later(f, now_ms + far_ms - settings.period_ms, now_ms + far_ms));
    let raw_rps = near_rps.max(far_rps.map_or(0.0, |rps| stretched(rps, service, step_rps, settings)));
    let (rps, justified_at_ms, held) = hold(raw_rps, previous, now_ms, settings);
    Demand {
        rps,
        raw_rps,
        near_rps,
        forecast_rps: forecast.as_ref().map_or(0.0, |f| f.rps),
        observed_rps: observed.map_or(0.0, |o| o.rate_rps),
        sample_start_ms: observed.map_or(now_ms, |o| o.start_ms),
        justified_at_ms,
        lead_ms,
        source: if held { Source::Held } else { source },
        forecast_short: forecast.is_some_and(|f| f.short),
    }
}

/// The level to plan for: the configured one, and towards [`CAUTIOUS`] as the error budget is overdrawn.
pub fn quantile(allowance: f64, settings: &Settings) -> f64 {
    let overdrawn = (-allowance).clamp(0.0, 1.0);
    settings.quantile + overdrawn * (CAUTIOUS - settings.quantile).max(0.0)
}

/// The observed window, or its newest interval where that is above it by more than chance explains.
fn recent(load: &ServiceLoad, dispersion: f64) -> Option<&ObservedRate> {
    let observed = load.observed.as_ref()?;
    let jumped = |n: &&ObservedRate| n.rate_rps - GUARD_SIGMAS * sigma(n, dispersion) > observed.rate_rps;
    Some(load.newest.as_ref().filter(jumped).unwrap_or(observed))
}

struct Peak {
    rps: f64,
    short: bool,
}

/// Quantile of the highest rate in `[from, to)`, else the highest quantile of its steps. `None` when the forecast says
/// nothing about `from`.
fn peak(forecast: &WorkloadForecast, quantile: f64, from_ms: EpochMs, to_ms: EpochMs) -> Option<Peak> {
    let of_steps = forecast.max_quantile_rps(quantile, from_ms, to_ms)?;
    let rps = forecast.peak_quantile_rps(quantile, from_ms, to_ms).unwrap_or(of_steps);
    let last = forecast.steps.last()?;
    let end_ms = last.start_ms + forecast.interval_ms as i64;
    (rps.is_finite() && end_ms > from_ms).then_some(Peak { rps: rps.max(0.0), short: end_ms < to_ms })
}

/// The rate in `[from, to)` that is as likely as not; of the last step where the forecast ends before.
fn later(forecast: &WorkloadForecast, from_ms: EpochMs, to_ms: EpochMs) -> Option<f64> {
    let last_ms = forecast.steps.last()?.start_ms;
    let rps = forecast.max_quantile_rps(0.5, from_ms.min(last_ms), to_ms)?;
    rps.is_finite().then_some(rps.max(0.0))
}

/// What the observed rate says beyond the forecast of this moment, where it is higher: the two are weighed by their
/// variances, as in a Kalman filter, since an error of the forecast lasts longer than one of a count. The forecast's
/// variance is read from its upper quantiles, less the chance of the counts that it forecasts.
fn news(forecast: Option<&WorkloadForecast>, observed: &ObservedRate, dispersion: f64, now_ms: EpochMs) -> f64 {
    let rate = |level| forecast?.max_quantile_rps(level, now_ms, now_ms + 1);
    let (Some(middle), Some(high)) = (rate(0.5), rate(0.9)) else { return 0.0 };
    let interval_s = forecast.map_or(1.0, |f| f.interval_ms.max(1) as f64 / 1000.0);
    let of_counts = dispersion * middle.max(0.0) / interval_s;
    let of_forecast = (((high - middle) / Z_90).powi(2) - of_counts).max(0.0);
    let of_observed = sigma(observed, dispersion).powi(2);
    let above = (observed.rate_rps - middle).max(0.0);
    if of_forecast + of_observed > 0.0 { above * of_forecast / (of_forecast + of_observed) } else { 0.0 }
}

/// Standard deviation of a mean rate over its window, for arrivals with this index of dispersion.
fn sigma(observed: &ObservedRate, dispersion: f64) -> f64 {
    let window_s = (observed.window_ms.max(1)) as f64 / 1000.0;
    (dispersion * observed.rate_rps.max(0.0) / window_s).sqrt()
}

/// Extra rate that works off until the next decision what waits beyond `in_time`, the requests that may wait when all
/// are answered within the SLO (Little's law).
fn overdue_rps(backlog: u64, in_time: f64, settings: &Settings) -> f64 {
    (backlog as f64 - in_time).max(0.0) * 1000.0 / settings.period_ms.max(1) as f64
}

/// Demand less what may be missed of it. A constant rate, since a node is worth the same to a fleet of any size, but at
/// least the part that leaves a minute good, which is more than a small node where the fleet is large.
fn stretched(raw_rps: f64, service: &Service, step_rps: f64, settings: &Settings) -> f64 {
    if settings.stretch <= 0.0 {
        return raw_rps;
    }
    let full_rps = (settings.stretch * step_rps).max((1.0 - service.slo_quantile) * raw_rps);
    let part_rps = service.load.allowance.clamp(0.0, 1.0) * full_rps;
    (raw_rps - part_rps).max(raw_rps.min(LEAST_RPS))
}

/// Demand after hysteresis, when it was justified, and whether the demand before was held up.
fn hold(raw_rps: f64, previous: Option<&PreviousDemand>, now_ms: EpochMs, settings: &Settings) -> (f64, EpochMs, bool) {
    let Some(previous) = previous else { return (raw_rps, now_ms, false) };
    let before = previous.demand_rps;
    if raw_rps >= before {
        (raw_rps, now_ms, false)
    } else if raw_rps >= before * (1.0 - settings.hysteresis) {
        (before, now_ms, true)
    } else if now_ms - previous.justified_at_ms < settings.hold_ms {
        (before, previous.justified_at_ms, true)
    } else {
        (raw_rps, now_ms, false)
    }
}

impl Demand {
    /// Where the number comes from, for a person.
    pub fn sentence(&self, quantile: f64) -> String {
        let ahead_s = self.lead_ms as f64 / 1000.0;
        let short = if self.forecast_short { ", whose last step stands for what it does not reach" } else { "" };
        match self.source {
            Source::Forecast => format!(
                "{:.1} requests/s is the highest p{:.0} of the forecast over the next {ahead_s:.0} s{short}",
                self.rps,
                quantile * 100.0
            ),
            Source::Guard => format!(
                "{:.1} requests/s, since {:.1} were observed, above the forecast of {:.1}",
                self.rps, self.observed_rps, self.forecast_rps
            ),
            Source::ObservedOnly => format!(
                "{:.1} requests/s from the {:.1} observed, since no forecast covers now",
                self.rps, self.observed_rps
            ),
            Source::Held => format!(
                "{:.1} requests/s as before: {:.1} is not lower by enough, or not for long enough",
                self.rps, self.raw_rps
            ),
            Source::Unknown => "nothing is known of its load yet".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{forecast, service};
    use proptest::prelude::*;
    use schemas::workload::ForecastPeak;

    fn observed(rate_rps: f64) -> Option<ObservedRate> {
        Some(ObservedRate { start_ms: 0, window_ms: 20_000, rate_rps })
    }

    fn settings() -> Settings {
        Settings::default()
    }

    #[test]
    fn looks_one_set_up_time_and_one_period_ahead() {
        let mut s = service("s");
        s.load.forecast = Some(forecast("s", 0, &[10.0, 20.0, 30.0, 40.0, 50.0, 60.0]));
        assert_eq!(demand(&s, 0, 0.0, None, 0, &settings()).rps, 10.0);
        assert_eq!(demand(&s, 10_001, 0.0, None, 0, &settings()).rps, 30.0);
        let far = demand(&s, 90_000, 0.0, None, 0, &settings());
        assert!(far.rps == 60.0 && far.forecast_short);
        let cut = Settings { horizon_ms: 20_000, ..settings() };
        assert_eq!(demand(&s, 90_000, 0.0, None, 0, &cut).rps, 20.0);
        // A falling load is planned at its present height.
        s.load.forecast = Some(forecast("s", 0, &[60.0, 10.0, 10.0]));
        assert_eq!(demand(&s, 0, 0.0, None, 9_999, &settings()).rps, 60.0);
        assert_eq!(demand(&s, 0, 0.0, None, 10_000, &settings()).rps, 10.0);
    }

    #[test]
    fn the_quantile_of_the_peak_counts_where_the_forecast_has_it() {
        let mut s = service("s");
        let mut f = forecast("s", 0, &[10.0, 20.0, 30.0]);
        let peak = |steps, rate| ForecastPeak { steps, quantiles_rps: vec![rate], coverage: Vec::new() };
        f.peaks = vec![peak(1, 12.0), peak(2, 25.0), peak(3, 40.0)];
        s.load.forecast = Some(f);
        assert_eq!(demand(&s, 0, 0.0, None, 0, &settings()).rps, 12.0);
        assert_eq!(demand(&s, 10_001, 0.0, None, 0, &settings()).rps, 40.0);
        assert_eq!(demand(&s, 0, 0.0, None, 20_000, &settings()).rps, 30.0, "too old for its peaks: the step's own");
    }

    #[test]
    fn the_guard_lifts_the_near_path_only_beyond_chance() {
        let mut s = service("s");
        s.load.forecast = Some(forecast("s", 0, &[100.0; 6]));
        s.load.observed = observed(106.0);
        assert_eq!(demand(&s, 0, 0.0, None, 0, &settings()).source, Source::Forecast, "sigma is 2.3");
        s.load.observed = observed(110.0);
        let lifted = demand(&s, 0, 0.0, None, 0, &settings());
        assert_eq!((lifted.source, lifted.rps), (Source::Guard, 110.0));
        s.load.observed = observed(100.0);
        s.load.backlog = 200;
        let worked_off = demand(&s, 0, 0.0, None, 0, &settings()).rps;
        assert_eq!(worked_off, 118.0, "200 wait, of which 20 are in time at 100 a second and 200 ms; the rest in 10 s");
        s.load.backlog = 20;
        assert_eq!(demand(&s, 0, 0.0, None, 0, &settings()).source, Source::Forecast);
    }

    #[test]
    fn a_full_budget_lets_load_go_beyond_by_a_part_of_a_small_node_or_by_what_a_good_minute_may_miss() {
        let mut s = service("s");
        s.load.forecast = Some(forecast("s", 0, &[100.0; 6]));
        let with = |s: &mut Service, allowance: f64, step_rps: f64, stretch: f64| {
            s.load.allowance = allowance;
            demand(s, 0, step_rps, None, 0, &Settings { stretch, ..settings() }).rps
        };
        assert_eq!(with(&mut s, 0.0, 50.0, 0.2), 100.0);
        assert_eq!(with(&mut s, 1.0, 50.0, 0.2), 90.0);
        assert_eq!(with(&mut s, 1.0, 10.0, 0.2), 95.0);
        assert_eq!(with(&mut s, -1.0, 50.0, 0.2), 100.0, "it is the quantile that rises then");
        assert_eq!(with(&mut s, 1.0, 50.0, 0.0), 100.0);
        assert!(with(&mut s, 1.0, 10_000.0, 0.2) > 0.0, "something is always carried");
    }

    #[test]
    fn an_overdrawn_budget_asks_for_a_higher_quantile() {
        let settings = Settings { quantile: 0.6, ..settings() };
        let at = |allowance| quantile(allowance, &settings);
        assert_eq!((at(1.0), at(0.0), at(-2.0)), (0.6, 0.6, CAUTIOUS));
        assert!((at(-0.5) - 0.775).abs() < 1e-12);
        assert_eq!(quantile(-1.0, &Settings { quantile: 0.99, ..settings.clone() }), 0.99, "never less than asked for");
    }

    #[test]
    fn a_jump_counts_by_the_newest_interval() {
        let mut s = service("s");
        s.load.forecast = Some(forecast("s", 0, &[100.0; 6]));
        s.load.observed = observed(150.0);
        let newest = |rate_rps| Some(ObservedRate { start_ms: 10_000, window_ms: 10_000, rate_rps });
        s.load.newest = newest(200.0);
        let jump = demand(&s, 0, 0.0, None, 0, &settings());
        assert_eq!((jump.rps, jump.sample_start_ms), (200.0, 10_000));
        s.load.newest = newest(155.0);
        assert_eq!(demand(&s, 0, 0.0, None, 0, &settings()).rps, 150.0, "chance");
        s.load.newest = newest(50.0);
        assert_eq!(demand(&s, 0, 0.0, None, 0, &settings()).rps, 150.0, "a fall can wait");
    }

    #[test]
    fn a_stale_forecast_does_not_count() {
        let mut s = service("s");
        s.load.forecast = Some(forecast("s", 0, &[100.0; 3]));
        s.load.observed = observed(20.0);
        let d = demand(&s, 0, 0.0, None, 30_000, &settings());
        assert_eq!((d.source, d.rps), (Source::ObservedOnly, 22.0));
        s.load.observed = None;
        assert_eq!(demand(&s, 0, 0.0, None, 30_000, &settings()).source, Source::Unknown);
        let before = PreviousDemand { service: "s".into(), demand_rps: 7.0, justified_at_ms: 0 };
        assert_eq!(demand(&s, 0, 0.0, Some(&before), 1_000_000, &settings()).rps, 7.0, "blind: keep what was");
    }

    #[test]
    fn lower_demand_counts_only_after_the_hold_time() {
        let mut s = service("s");
        s.load.forecast = Some(forecast("s", 0, &[50.0; 60]));
        let before = PreviousDemand { service: "s".into(), demand_rps: 100.0, justified_at_ms: 10_000 };
        let at = |now| demand(&s, 0, 0.0, Some(&before), now, &settings());
        assert_eq!((at(69_999).rps, at(69_999).justified_at_ms), (100.0, 10_000));
        assert_eq!((at(70_000).rps, at(70_000).justified_at_ms), (50.0, 70_000));
    }

    proptest! {
        #[test]
        fn planning_again_at_the_same_time_changes_nothing(
            rates in prop::collection::vec(0.0f64..500.0, 1..30), seen in prop::option::of(0.0f64..500.0),
            before in prop::option::of((0.0f64..500.0, -200_000i64..0)), setup in 0i64..200_000, backlog in 0u64..1000
        ) {
            let mut s = service("s");
            s.load.forecast = Some(forecast("s", 0, &rates));
            s.load.observed = seen.and_then(observed);
            s.load.backlog = backlog;
            let before = before.map(|(demand_rps, justified_at_ms)| PreviousDemand { service: "s".into(), demand_rps, justified_at_ms });
            let first = demand(&s, setup, 0.0, before.as_ref(), 5_000, &settings());
            let again = PreviousDemand { service: "s".into(), demand_rps: first.rps, justified_at_ms: first.justified_at_ms };
            let second = demand(&s, setup, 0.0, Some(&again), 5_000, &settings());
            prop_assert_eq!(first.rps, second.rps);
            prop_assert_eq!(first.justified_at_ms, second.justified_at_ms);
            prop_assert!(first.rps >= first.raw_rps);
        }

        #[test]
        fn small_noise_never_lowers_the_demand(noise in prop::collection::vec(-0.02f64..0.02, 2..50), level in 1.0f64..1000.0) {
            let mut before: Option<PreviousDemand> = None;
            for (i, n) in noise.iter().enumerate() {
                let mut s = service("s");
                let now = i as i64 * 30_000;
                s.load.forecast = Some(forecast("s", now, &[level * (1.0 + n); 60]));
                let d = demand(&s, 60_000, 0.0, before.as_ref(), now, &settings());
                if let Some(b) = &before {
                    prop_assert!(d.rps >= b.demand_rps);
                }
                before = Some(PreviousDemand { service: "s".into(), demand_rps: d.rps, justified_at_ms: d.justified_at_ms });
            }
        }
    }
}
