//! What the ridge experts see: lags, seasonal lags, slot profiles and means, and the calendar.
//!
//! Purpose: one description of the features of a (target, origin) pair. The [`VALUES`] depend on the past and are
//! remembered until the target is observed; the rest follows from the target's phase and is computed twice. What does
//! not depend on the target is an [`Outset`], made once a step for all horizons.
//!
//! Invariants: every feature is finite. What is unknown is replaced by the nearest known: a missing lag by the
//! newer one, the week's by the day's, the day's by the newest value, so that a short history gives a shorter
//! model and not an absent one.
//!
//! Left out: lags of two days and two weeks; on the recorded series they changed no score and would have doubled
//! the history.

use crate::calendar::{Calendar, FOURIER, Phase};
use crate::expert::ridge::Link;
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

/// The values, and their logarithms ([`Link::Log`]): most are the same for all targets seen from an origin, so they are
/// taken once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Values {
    /// As multiples of the level.
    pub(crate) plain: [f64; VALUES],
    pub(crate) logs: [f64; VALUES],
}

impl Values {
    fn set(&mut self, place: usize, value: f64, level: f64) {
        self.plain[place] = value / level;
        self.logs[place] = Link::Log.apply(self.plain[place]);
    }
}

/// What is known at an origin, whatever the target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outset {
    origin: i64,
    level: f64,
    last: f64,
    /// With the places of the target still empty.
    values: Values,
}

impl Outset {
    /// Of the newest interval; before the first sample everything is 0. `level` is what counts as 1.
    pub(crate) fn new(history: &History, seasons: Seasons, calendar: &Calendar, level: f64) -> Self {
        let mut values = Values { plain: [0.0; VALUES], logs: [0.0; VALUES] };
        let series = &history.series;
        let Some((origin, origin_ms)) = series.newest() else {
            return Outset { origin: 0, level, last: 0.0, values };
        };
        let (mut newer, mut last) = (0.0, 0.0);
        for lag in 0..LAGS {
            newer = series.at(origin - lag as i64).unwrap_or(newer);
            values.set(LAST + lag, newer, level);
            if lag == 0 {
                last = newer;
            }
        }
        let at_day = series.at(origin - seasons.day_steps as i64).unwrap_or(last);
        values.set(DAY_AT_ORIGIN, at_day, level);
        values.set(WEEK_AT_ORIGIN, series.at(origin - seasons.week_steps as i64).unwrap_or(at_day), level);
        let phase = calendar.phase(origin_ms);
        let profile_day = history.profile.day(calendar, phase).unwrap_or(last);
        values.set(PROFILE_DAY_AT_ORIGIN, profile_day, level);
        values.set(PROFILE_WEEK_AT_ORIGIN, history.profile.week(calendar, phase).unwrap_or(profile_day), level);
        values.set(MEAN_SHORT, history.means.short, level);
        values.set(MEAN_DAY, history.means.day, level);
        values.set(MEAN_WEEK, history.means.week, level);
        Outset { origin, level, last, values }
    }

    /// Index of the interval seen from.
    pub(crate) fn origin(&self) -> i64 {
        self.origin
    }

    /// What counts as 1.
    pub(crate) fn level(&self) -> f64 {
        self.level
    }

    /// The values for forecasting interval `target`, which is at `phase`; the rest is as at the origin.
    pub(crate) fn values(
        &self,
        history: &History,
        seasons: Seasons,
        calendar: &Calendar,
        target: i64,
        phase: Phase,
    ) -> Values {
        let (day, week) = (seasons.day_steps as i64, seasons.week_steps as i64);
        let or = |index: i64, fallback: f64| history.series.at(index).unwrap_or(fallback);
        let at_day = or(target - day, self.last);
        let days = [at_day, or(target - day - 1, at_day), or(target - day + 1, at_day)];
        let mut values = self.values;
        for (place, value) in days.into_iter().enumerate() {
            values.set(DAY + place, value, self.level);
        }
        values.set(WEEK, or(target - week, days[0]), self.level);
        values.set(WEEK + 1, or(target - week - 1, days[1]), self.level);
        values.set(WEEK + 2, or(target - week + 1, days[2]), self.level);
        let profile_day = history.profile.day(calendar, phase).unwrap_or(self.last);
        values.set(PROFILE_DAY, profile_day, self.level);
        values.set(PROFILE_WEEK, history.profile.week(calendar, phase).unwrap_or(profile_day), self.level);
        values
    }
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
