//! What the ridge experts see: lags, seasonal lags, slot profiles and means, and the calendar.
//!
//! Purpose: one description of the features of a (target, origin) pair. The [`VALUES`] depend on the past and are
//! remembered until the target is observed; the rest follows from the target's phase and is computed twice.
//!
//! Invariants: every feature is finite. What is unknown is replaced by the nearest known: a missing lag by the
//! newer one, the week's by the day's, the day's by the newest value, so that a short history gives a shorter
//! model and not an absent one.
//!
//! Left out: lags of two days and two weeks; on the recorded series they changed no score and would have doubled
//! the history.

use crate::calendar::{Calendar, FOURIER};
use crate::history::{History, Seasons};

/// Lags of the newest samples.
const LAGS: usize = 12;
/// Number of remembered values.
pub(crate) const VALUES: usize = LAGS + 15;
/// Daily harmonics (sine and cosine of the first two) that interact with deviations.
const INTERACTING: usize = 4;
const DEVIATIONS: usize = 5;
/// What a small model looks at: newest three, the week's slot at origin and target, the day's slot, day and week lags
/// at target and origin, and the mean of the day.
pub(crate) const FEW: [usize; 11] = [
    LAST,
    LAST + 1,
    LAST + 2,
    PROFILE_WEEK_AT_ORIGIN,
    PROFILE_WEEK,
    PROFILE_DAY,
    DAY,
    WEEK,
    DAY_AT_ORIGIN,
    WEEK_AT_ORIGIN,
    MEAN_DAY,
];
/// Number of features of a ridge: intercept, values, calendar, interactions.
pub(crate) const FEATURES: usize = 1 + VALUES + FOURIER + INTERACTING * DEVIATIONS;

// Positions among the values.
const LAST: usize = 0;
const DAY: usize = LAGS;
const WEEK: usize = LAGS + 3;
const DAY_AT_ORIGIN: usize = LAGS + 6;
const WEEK_AT_ORIGIN: usize = LAGS + 7;
const PROFILE_WEEK: usize = LAGS + 8;
const PROFILE_WEEK_AT_ORIGIN: usize = LAGS + 9;
const PROFILE_DAY: usize = LAGS + 10;
const PROFILE_DAY_AT_ORIGIN: usize = LAGS + 11;
const MEAN_SHORT: usize = LAGS + 12;
const MEAN_DAY: usize = LAGS + 13;
const MEAN_WEEK: usize = LAGS + 14;

/// Weights that a ridge is shrunk to: half the newest value, a quarter each of the day's and the week's.
pub(crate) const PRIOR: [(usize, f64); 3] = [(1 + LAST, 0.5), (1 + DAY, 0.25), (1 + WEEK, 0.25)];

/// The values for forecasting interval `target` from the newest one, as multiples of `level`.
pub(crate) fn values(
    history: &History,
    seasons: Seasons,
    calendar: &Calendar,
    target: i64,
    level: f64,
) -> [f64; VALUES] {
    let mut x = [0.0; VALUES];
    let series = &history.series;
    let Some((origin, origin_ms)) = series.newest() else { return x };
    let (day, week) = (seasons.day_steps as i64, seasons.week_steps as i64);

    let mut newer = 0.0;
    for (lag, feature) in x[..LAGS].iter_mut().enumerate() {
        newer = series.at(origin - lag as i64).unwrap_or(newer);
        *feature = newer;
    }
    let or = |index: i64, fallback: f64| series.at(index).unwrap_or(fallback);
    x[DAY] = or(target - day, x[LAST]);
    x[DAY + 1] = or(target - day - 1, x[DAY]);
    x[DAY + 2] = or(target - day + 1, x[DAY]);
    x[WEEK] = or(target - week, x[DAY]);
    x[WEEK + 1] = or(target - week - 1, x[DAY + 1]);
    x[WEEK + 2] = or(target - week + 1, x[DAY + 2]);
    x[DAY_AT_ORIGIN] = or(origin - day, x[LAST]);
    x[WEEK_AT_ORIGIN] = or(origin - week, x[DAY_AT_ORIGIN]);

    let at_target = calendar.phase(series.start_ms(target));
    let at_origin = calendar.phase(origin_ms);
    let profile = &history.profile;
    x[PROFILE_DAY] = profile.day(calendar, at_target).unwrap_or(x[LAST]);
    x[PROFILE_DAY_AT_ORIGIN] = profile.day(calendar, at_origin).unwrap_or(x[LAST]);
    x[PROFILE_WEEK] = profile.week(calendar, at_target).unwrap_or(x[PROFILE_DAY]);
    x[PROFILE_WEEK_AT_ORIGIN] = profile.week(calendar, at_origin).unwrap_or(x[PROFILE_DAY_AT_ORIGIN]);
    x[MEAN_SHORT] = history.means.short;
    x[MEAN_DAY] = history.means.day;
    x[MEAN_WEEK] = history.means.week;

    for feature in &mut x {
        *feature /= level;
    }
    x
}

/// The whole vector: intercept, `values` (already in the ridge's scale), calendar, and deviations from what is
/// usual times the day's harmonics, so that a persistence may differ between morning and evening.
pub(crate) fn assemble(values: &[f64; VALUES], fourier: &[f64; FOURIER], out: &mut [f64; FEATURES]) {
    out[0] = 1.0;
    out[1..=VALUES].copy_from_slice(values);
    out[1 + VALUES..1 + VALUES + FOURIER].copy_from_slice(fourier);
    let deviations = [
        values[LAST] - values[PROFILE_WEEK_AT_ORIGIN],
        values[LAST] - values[DAY_AT_ORIGIN],
        values[LAST] - values[WEEK_AT_ORIGIN],
        values[PROFILE_WEEK],
        values[MEAN_DAY] - values[MEAN_WEEK],
    ];
    let interactions = &mut out[1 + VALUES + FOURIER..];
    for (chunk, deviation) in interactions.chunks_exact_mut(INTERACTING).zip(deviations) {
        for (feature, harmonic) in chunk.iter_mut().zip(&fourier[..INTERACTING]) {
            *feature = deviation * harmonic;
        }
    }
}
