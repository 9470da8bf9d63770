//! What the trees look at: differences of values, so that a scaled series gives the scaled forecast, and the clock.
//!
//! An [`Outset`] is what all targets seen from one origin have in common.

use super::Base;
use crate::calendar::Calendar;
use crate::history::Seasons;

/// Number of features.
pub(crate) const N: usize = 31;
/// The features of a target as seen from an origin.
pub(super) type Row = [f32; N];

/// Minute of the day and day of the week of an instant.
pub(super) fn clock(calendar: &Calendar, at_ms: i64) -> [f32; 2] {
    let phase = calendar.phase(at_ms);
    [calendar.day_slot(phase, 1440) as f32, calendar.week_slot(phase, 7) as f32]
}

/// What a forecast may start from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bases {
    last: f32,
    typical: f32,
}

impl Bases {
    pub(super) fn of(self, base: Base) -> f32 {
        match base {
            Base::Last => self.last,
            Base::Typical => self.typical,
        }
    }
}

/// The value at an index not after `origin`, NaN if unknown.
fn known(past: impl Fn(i64) -> f32, origin: i64, index: i64) -> f32 {
    if index <= origin { past(index) } else { f32::NAN }
}

fn or(value: f32, fallback: f32) -> f32 {
    if value.is_nan() { fallback } else { value }
}

/// Mean of the known values up to four weeks before `index`.
fn typical(past: impl Fn(i64) -> f32, origin: i64, index: i64, week: i64) -> Option<f32> {
    let weeks = (1..=4).map(|k| known(&past, origin, index - k * week)).filter(|value| !value.is_nan());
    let (sum, n) = weeks.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / n as f32)
}

/// What is seen at an origin, whatever the target.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outset {
    origin: i64,
    day: i64,
    week: i64,
    last: f32,
    /// Of 1, 2, 3, 4, 5, 8 and 11 steps.
    lags: [f32; 7],
    mean_day: f32,
    mean_week: f32,
    origin_day: f32,
    origin_week: f32,
    typical: f32,
    /// Means of twelve steps: up to the origin, and the day and the week before.
    short: [f32; 3],
}

impl Outset {
    /// `past` gives the value of an interval, NaN if unknown. What is unknown is taken for the nearest known.
    pub(super) fn new(
        past: impl Fn(i64) -> f32,
        seasons: Seasons,
        origin: i64,
        [mean_day, mean_week]: [f32; 2],
    ) -> Self {
        let (day, week) = (seasons.day_steps as i64, seasons.week_steps as i64);
        let last = or(past(origin), 0.0);
        let at = |index: i64, fallback: f32| or(past(index), fallback);
        let short = |end: i64| (0..12).map(|steps| at(end - steps, last)).sum::<f32>() / 12.0;
        let origin_day = at(origin - day, last);
        let origin_week = at(origin - week, origin_day);
        Outset {
            origin,
            day,
            week,
            last,
            lags: [1, 2, 3, 4, 5, 8, 11].map(|steps| at(origin - steps, last)),
            mean_day,
            mean_week,
            origin_day,
            origin_week,
            typical: typical(&past, origin, origin, week).unwrap_or(origin_week),
            short: [origin, origin - day, origin - week].map(short),
        }
    }

    /// The features of `target`; `past` is the one that this was made from.
    pub(super) fn row(&self, past: impl Fn(i64) -> f32, target: i64, [minute, weekday]: [f32; 2]) -> (Row, Bases) {
        let Outset { origin, day, week, last, lags, .. } = *self;
        let at = |index: i64, fallback: f32| or(known(&past, origin, index), fallback);
        let at_day = at(target - day, last);
        let at_week = at(target - week, at_day);
        let since_day = at_day - self.origin_day;
        let since_week = at_week - self.origin_week;
        let [now, short_day, short_week] = self.short;
        let typical = typical(&past, origin, target, week).unwrap_or(at_week);
        let row = [
            last,
            lags[0] - last,
            lags[1] - last,
            lags[2] - last,
            lags[3] - last,
            lags[4] - last,
            lags[5] - last,
            lags[6] - last,
            at_day - last,
            at(target - day - 1, at_day) - at_day,
            at(target - day + 1, at_day) - at_day,
            at_week - last,
            at(target - week - 1, at_week) - at_week,
            at(target - week + 1, at_week) - at_week,
            since_day,
            since_week,
            at(target - 2 * week, at_week) - last,
            now - last,
            self.mean_day - last,
            self.mean_week - self.mean_day,
            (since_day + since_week) / 2.0,
            minute,
            weekday,
            typical - last,
            last - self.typical,
            typical - self.typical,
            last - self.origin_day,
            last - self.origin_week,
            at_day - at(target - day - week, at_week),
            now - short_week,
            now - short_day,
        ];
        (row, Bases { last, typical })
    }
}
