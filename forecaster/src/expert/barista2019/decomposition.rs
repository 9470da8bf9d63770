//! Trend and seasonality of a series: a piecewise-linear trend, Fourier series of the day and the week, and a step for
//! holidays, after S. J. Taylor and B. Letham, "Forecasting at scale", The American Statistician 72 (2018).
//!
//! Prophet finds the mode of the posterior with Stan. Here the same model is solved as a sequence of ridge regressions:
//! the Laplace prior on the changes of slope is the normal one with variance `τ · |δ|` at the solution before
//! (iteratively reweighted least squares), the noise's variance that of the residuals before. The bounds are in closed
//! form: the noise, and future changes of slope as frequent and as large as the past ones, whose contribution to the
//! variance `s` after the end is `2 b² λ s³ / 3`.
//!
//! Invariants: a pure function of its samples; coefficients are finite. Left out: yearly seasonality (the memory is
//! shorter), saturating growth, multiplicative seasonality, one effect for each holiday.

use super::past::Sample;
use crate::calendar::Calendar;
use nalgebra::{DMatrix, DVector};
use serde::{Deserialize, Serialize};

const CHANGES: usize = 25;
/// Part of the past in which the slope may change.
const CHANGE_RANGE: f64 = 0.8;
/// Scale of the Laplace prior on changes of slope.
const CHANGE_PRIOR: f64 = 0.05;
/// Standard deviations of the priors on slope and level, and on seasonality and holidays.
const TREND_PRIOR: f64 = 5.0;
const SEASON_PRIOR: f64 = 10.0;
const DAY_ORDER: usize = 4;
const WEEK_ORDER: usize = 3;
const SEASONS: usize = 2 * (DAY_ORDER + WEEK_ORDER);
/// Slope, level, changes, seasonality, holidays.
const N: usize = 2 + CHANGES + SEASONS + 1;
const ROUNDS: usize = 6;
/// Fewest samples of a fit.
const LEAST: usize = 40;
/// The bounds' levels are 0.1 and 0.9.
const BOUND_NORMAL: f64 = 1.281_551_6;

/// A fitted decomposition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Decomposition {
    /// Begin of the past that was fitted, and its length, milliseconds.
    from_ms: i64,
    span_ms: f64,
    /// The largest value: coefficients are parts of it.
    scale: f64,
    /// Standard deviation of the residuals.
    sigma: f64,
    /// Mean size of a change of slope.
    change: f64,
    #[serde(with = "crate::bits")]
    coefficients: Vec<f64>,
}

/// The decomposition at one instant, in the series' unit: the trend, the day, the week and the holiday add up to the
/// mean.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Component {
    /// The instant.
    pub at_ms: i64,
    /// Piecewise-linear trend.
    pub trend: f64,
    /// Effect of the time of day.
    pub day: f64,
    /// Effect of the time of the week.
    pub week: f64,
    /// Effect of a holiday.
    pub holiday: f64,
    /// The forecast.
    pub mean: f64,
    /// Bound with 10 % below.
    pub lower: f64,
    /// Bound with 10 % above.
    pub upper: f64,
}

/// A forecast and its bounds at 10 % and 90 %.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Bounded {
    pub(super) mean: f64,
    pub(super) lower: f64,
    pub(super) upper: f64,
}

impl Decomposition {
    /// Fits to samples in ascending order; `None` if there are too few or they say nothing.
    pub(super) fn fit(calendar: &Calendar, samples: &[Sample]) -> Option<Self> {
        let (from_ms, to_ms) = (samples.first()?.at_ms, samples.last()?.at_ms);
        let scale = samples.iter().map(|sample| sample.value).fold(0.0, f64::max);
        if samples.len() < LEAST || scale <= 0.0 {
            return None;
        }
        let span_ms = (to_ms - from_ms) as f64;
        let (means, single): (Vec<&Sample>, Vec<&Sample>) = samples.iter().partition(|sample| sample.weight > 1.0);
        let sums = |of: &[&Sample]| Sums::of(calendar, of, from_ms, span_ms, scale);
        let (coefficients, sigma) = solve(&sums(&single), &sums(&means))?;
        let changes = coefficients.rows(2, CHANGES);
        let change = changes.iter().map(|delta| delta.abs()).sum::<f64>() / CHANGES as f64;
        let fitted = Decomposition {
            from_ms,
            span_ms,
            scale,
            sigma: sigma * scale,
            change,
            coefficients: coefficients.iter().copied().collect(),
        };
        fitted.is_sound().then_some(fitted)
    }

    /// True if a state read from outside makes sense.
    pub(super) fn is_sound(&self) -> bool {
        self.coefficients.len() == N
            && self.coefficients.iter().all(|coefficient| coefficient.is_finite())
            && [self.span_ms, self.scale].iter().all(|value| value.is_finite() && *value > 0.0)
            && [self.sigma, self.change].iter().all(|value| value.is_finite() && *value >= 0.0)
    }

    pub(super) fn at(&self, calendar: &Calendar, at_ms: i64) -> Bounded {
        let t = (at_ms - self.from_ms) as f64 / self.span_ms;
        let x = row(calendar, at_ms, t);
        let mean = self.scale * x.iter().zip(&self.coefficients).map(|(x, c)| x * c).sum::<f64>();
        let ahead = (t - 1.0).max(0.0);
        // Changes are as frequent after the end as in the whole of the past, as Prophet has it.
        let trend = 2.0 * self.change.powi(2) * CHANGES as f64 * ahead.powi(3) / 3.0;
        let reach = BOUND_NORMAL * (self.sigma.powi(2) + self.scale.powi(2) * trend).sqrt();
        Bounded { mean, lower: mean - reach, upper: mean + reach }
    }

    pub(super) fn component(&self, calendar: &Calendar, at_ms: i64) -> Component {
        let x = row(calendar, at_ms, (at_ms - self.from_ms) as f64 / self.span_ms);
        let part = |of: std::ops::Range<usize>| {
            self.scale * x[of.clone()].iter().zip(&self.coefficients[of]).map(|(x, c)| x * c).sum::<f64>()
        };
        let (seasons, week) = (2 + CHANGES, 2 + CHANGES + 2 * DAY_ORDER);
        let Bounded { mean, lower, upper } = self.at(calendar, at_ms);
        Component {
            at_ms,
            trend: part(0..seasons),
            day: part(seasons..week),
            week: part(week..N - 1),
            holiday: part(N - 1..N),
            mean,
            lower,
            upper,
        }
    }
}

/// Sums of squares and products over samples.
struct Sums {
    gram: DMatrix<f64>,
    moments: DVector<f64>,
    squares: f64,
    weight: f64,
}

impl Sums {
    fn of(calendar: &Calendar, samples: &[&Sample], from_ms: i64, span_ms: f64, scale: f64) -> Self {
        let mut sums = Sums { gram: DMatrix::zeros(N, N), moments: DVector::zeros(N), squares: 0.0, weight: 0.0 };
        for sample in samples {
            let x = row(calendar, sample.at_ms, (sample.at_ms - from_ms) as f64 / span_ms);
            let (y, weight) = (sample.value / scale, sample.weight);
            for i in 0..N {
                // Changes of slope that have not come yet, and holidays, are mostly zero.
                if x[i] == 0.0 {
                    continue;
                }
                sums.moments[i] += weight * x[i] * y;
                for j in 0..=i {
                    sums.gram[(i, j)] += weight * x[i] * x[j];
                }
            }
            sums.squares += weight * y * y;
            sums.weight += weight;
        }
        sums.gram.fill_upper_triangle_with_lower_triangle();
        sums
    }

    /// Mean squared residual.
    fn variance(&self, coefficients: &DVector<f64>) -> f64 {
        let fitted = (&self.gram * coefficients).dot(coefficients);
        ((self.squares - 2.0 * coefficients.dot(&self.moments) + fitted) / self.weight).max(1e-9)
    }
}

/// Features of an instant; `t` is the part of the past that has gone by.
fn row(calendar: &Calendar, at_ms: i64, t: f64) -> [f64; N] {
    let mut x = [0.0; N];
    (x[0], x[1]) = (t, 1.0);
    for (k, feature) in x[2..2 + CHANGES].iter_mut().enumerate() {
        let place = CHANGE_RANGE * (k + 1) as f64 / CHANGES as f64;
        *feature = (t - place).max(0.0);
    }
    let seasons = calendar.seasons(at_ms);
    let (day, week) = x[2 + CHANGES..2 + CHANGES + SEASONS].split_at_mut(2 * DAY_ORDER);
    crate::calendar::harmonics(seasons.day, day);
    crate::calendar::harmonics(seasons.week, week);
    x[N - 1] = if seasons.holiday { 1.0 } else { 0.0 };
    x
}

/// Coefficients and the residuals' standard deviation, both in units of the scale. The noise is that of single
/// samples: their means have less.
fn solve(single: &Sums, means: &Sums) -> Option<(DVector<f64>, f64)> {
    let gram = &single.gram + &means.gram;
    let moments = &single.moments + &means.moments;
    let mut variance = (single.squares / single.weight).max(1e-12);
    let mut deltas = [CHANGE_PRIOR; CHANGES];
    let mut coefficients = DVector::zeros(N);
    for _ in 0..ROUNDS {
        let mut system = gram.clone();
        for i in 0..N {
            let prior = match i {
                0 | 1 => TREND_PRIOR.powi(2),
                i if i < 2 + CHANGES => CHANGE_PRIOR * deltas[i - 2].abs().max(1e-6),
                _ => SEASON_PRIOR.powi(2),
            };
            system[(i, i)] += variance / prior;
        }
        coefficients = system.cholesky()?.solve(&moments);
        deltas.iter_mut().zip(coefficients.rows(2, CHANGES).iter()).for_each(|(delta, c)| *delta = *c);
        variance = single.variance(&coefficients);
    }
    Some((coefficients, variance.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::CalendarConfig;

    const HOUR_MS: i64 = 3_600_000;

    fn calendar() -> Calendar {
        Calendar::new(&CalendarConfig { holidays: vec!["2024-01-25".to_owned()], ..CalendarConfig::default() })
    }

    fn samples(n: i64, value: impl Fn(f64) -> f64) -> Vec<Sample> {
        (0..n).map(|i| Sample { at_ms: 1_704_067_200_000 + i * HOUR_MS, value: value(i as f64), weight: 1.0 }).collect()
    }

    fn daily(hour: f64) -> f64 {
        30.0 * (std::f64::consts::TAU * hour / 24.0).sin()
    }

    #[test]
    fn trend_and_rhythm_are_found_and_continued() {
        let past = samples(24 * 28, |hour| 100.0 + 0.1 * hour + daily(hour));
        let fitted = Decomposition::fit(&calendar(), &past).expect("it fits");
        for ahead in [1.0, 10.0, 40.0] {
            let hour = 24.0 * 28.0 - 1.0 + ahead;
            let forecast = fitted.at(&calendar(), 1_704_067_200_000 + hour as i64 * HOUR_MS);
            let truth = 100.0 + 0.1 * hour + daily(hour);
            assert!((forecast.mean - truth).abs() < 3.0, "{ahead}: {forecast:?}, {truth}");
        }
    }

    #[test]
    fn a_bend_of_the_trend_is_followed() {
        let bent = |hour: f64| 100.0 + if hour > 300.0 { hour - 300.0 } else { 0.0 };
        let past = samples(672, bent);
        let fitted = Decomposition::fit(&calendar(), &past).expect("it fits");
        let end = 1_704_067_200_000 + 680 * HOUR_MS;
        assert!((fitted.at(&calendar(), end).mean - bent(680.0)).abs() < 12.0, "{:?}", fitted.at(&calendar(), end));
    }

    #[test]
    fn bounds_widen_with_the_distance() {
        let past = samples(672, |hour| 100.0 + daily(hour) + 40.0 * (hour / 90.0).sin());
        let fitted = Decomposition::fit(&calendar(), &past).expect("it fits");
        let width = |hours: i64| {
            let at = fitted.at(&calendar(), 1_704_067_200_000 + (671 + hours) * HOUR_MS);
            at.upper - at.lower
        };
        assert!(width(1) > 0.0 && width(1) < width(100) && width(100) < width(1000));
    }

    #[test]
    fn components_add_up_to_the_mean() {
        let past = samples(24 * 28, |hour| 100.0 + 0.1 * hour + daily(hour));
        let fitted = Decomposition::fit(&calendar(), &past).expect("it fits");
        for hour in [3, 24 * 24 + 7, 24 * 30] {
            let at = fitted.component(&calendar(), 1_704_067_200_000 + hour * HOUR_MS);
            assert!((at.trend + at.day + at.week + at.holiday - at.mean).abs() < 1e-6 * at.mean, "{at:?}");
            assert!((at.day - daily(hour as f64)).abs() < 2.0 && at.week.abs() < 2.0, "{at:?}");
            assert!((at.trend - 100.0 - 0.1 * hour as f64).abs() < 4.0, "{at:?}");
        }
    }

    #[test]
    fn a_holiday_has_an_effect_of_its_own() {
        let quiet = |hour: f64| 100.0 + daily(hour) - if (576.0..600.0).contains(&hour) { 50.0 } else { 0.0 };
        let fitted = Decomposition::fit(&calendar(), &samples(672, quiet)).expect("it fits");
        let at = |hour: i64| fitted.at(&calendar(), 1_704_067_200_000 + hour * HOUR_MS).mean;
        assert!(at(588) < at(588 + 24) - 30.0, "{} {}", at(588), at(588 + 24));
    }

    #[test]
    fn nothing_is_fitted_to_nothing() {
        assert_eq!(Decomposition::fit(&calendar(), &[]), None);
        assert_eq!(Decomposition::fit(&calendar(), &samples(39, |_| 1.0)), None);
        assert_eq!(Decomposition::fit(&calendar(), &samples(100, |_| 0.0)), None);
    }
}
