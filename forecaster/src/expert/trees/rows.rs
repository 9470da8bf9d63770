//! What the trees look at: differences of values, so that a scaled series gives the scaled forecast, and the clock.

use super::Base;
use crate::calendar::Calendar;
use crate::history::Seasons;

/// Number of features.
pub(super) const N: usize = 31;
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

/// `past` gives the value of an interval, NaN if unknown. What is unknown is taken for the nearest known.
pub(super) fn row(
    past: impl Fn(i64) -> f32,
    seasons: Seasons,
    origin: i64,
    target: i64,
    [mean_day, mean_week]: [f32; 2],
    [minute, weekday]: [f32; 2],
) -> (Row, Bases) {
    let (day, week) = (seasons.day_steps as i64, seasons.week_steps as i64);
    let or = |index: i64, fallback: f32| {
        let value = if index <= origin { past(index) } else { f32::NAN };
        if value.is_nan() { fallback } else { value }
    };
    let last = or(origin, 0.0);
    let lag = |steps: i64| or(origin - steps, last);
    let at_day = or(target - day, last);
    let at_week = or(target - week, at_day);
    let origin_day = or(origin - day, last);
    let origin_week = or(origin - week, origin_day);
    let since_day = at_day - origin_day;
    let since_week = at_week - origin_week;
    let short = |end: i64| (0..12).map(|steps| or(end - steps, last)).sum::<f32>() / 12.0;
    let now = short(origin);
    let mean_of = |index: i64, season: i64, most: i64| {
        let known = (1..=most).map(|k| index - k * season).filter(|&i| i <= origin).map(&past).filter(|v| !v.is_nan());
        let (sum, n) = known.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
        (n > 0).then(|| sum / n as f32)
    };
    let typical = mean_of(target, week, 4).unwrap_or(at_week);
    let typical_origin = mean_of(origin, week, 4).unwrap_or(origin_week);
    let row = [
        last,
        lag(1) - last,
        lag(2) - last,
        lag(3) - last,
        lag(4) - last,
        lag(5) - last,
        lag(8) - last,
        lag(11) - last,
        at_day - last,
        or(target - day - 1, at_day) - at_day,
        or(target - day + 1, at_day) - at_day,
        at_week - last,
        or(target - week - 1, at_week) - at_week,
        or(target - week + 1, at_week) - at_week,
        since_day,
        since_week,
        or(target - 2 * week, at_week) - last,
        now - last,
        mean_day - last,
        mean_week - mean_day,
        (since_day + since_week) / 2.0,
        minute,
        weekday,
        typical - last,
        last - typical_origin,
        typical - typical_origin,
        last - origin_day,
        last - origin_week,
        or(target - day, last) - or(target - day - week, at_week),
        now - short(origin - week),
        now - short(origin - day),
    ];
    (row, Bases { last, typical })
}
