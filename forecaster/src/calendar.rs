//! Where in its day and week an instant lies, and the smooth features made of that.
//!
//! Purpose: the only place that knows about calendars. A demo that runs a day in minutes sets a short day; a city
//! sets its time zone, so that rush hour stays at eight o'clock over a change to daylight-saving time.
//!
//! Invariants: a pure function of the instant; phases are in `[0, 1)`.
//!
//! A holiday counts as a Sunday, so that slots, profiles and features of the week need not know of it.

use schemas::EpochMs;
use serde::{Deserialize, Serialize};

/// Milliseconds in a real day.
pub const DAY_MS: u64 = 86_400_000;

/// Number of Fourier features: four daily and three weekly harmonics, and the week's first with three of the day's.
pub(crate) const FOURIER: usize = 20;
const DAY_HARMONICS: usize = 4;
const WEEK_HARMONICS: usize = 3;
/// Days from the begin of a week, which is a Thursday like the first of 1970, to its Sunday.
const SUNDAY: u64 = 3;

/// Lengths of the two seasons, and whose clock they follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CalendarConfig {
    /// Length of the short season, milliseconds; 86 400 000 unless time is compressed.
    pub day_ms: u64,
    /// Length of the long season, milliseconds.
    pub week_ms: u64,
    /// IANA name of the time zone whose wall clock the load follows; only for real days, `UTC` otherwise.
    pub timezone: String,
    /// Days that are like Sundays, as `2026-12-25` on that wall clock; only for real days and weeks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub holidays: Vec<String>,
}

impl Default for CalendarConfig {
    fn default() -> Self {
        CalendarConfig { day_ms: DAY_MS, week_ms: 7 * DAY_MS, timezone: "UTC".to_owned(), holidays: Vec::new() }
    }
}

impl CalendarConfig {
    /// A calendar in which time runs `speed` times as fast, in whole intervals.
    pub fn compressed(speed: f64, interval_ms: u64) -> Self {
        let day_ms = (DAY_MS as f64 / speed.max(f64::MIN_POSITIVE)).round() as u64;
        let calendar = CalendarConfig { day_ms, week_ms: day_ms.saturating_mul(7), ..CalendarConfig::default() };
        calendar.rounded(interval_ms)
    }

    /// The same with the day rounded to whole intervals and the week to as many days as it had.
    pub(crate) fn rounded(self, interval_ms: u64) -> Self {
        let interval = interval_ms.max(1);
        let days_a_week = (self.week_ms as f64 / self.day_ms.max(1) as f64).round() as u64;
        let day_ms = (self.day_ms.saturating_add(interval / 2) / interval).max(1).saturating_mul(interval);
        CalendarConfig { day_ms, week_ms: day_ms.saturating_mul(days_a_week.max(1)), ..self }
    }

    fn is_utc(&self) -> bool {
        self.timezone.is_empty() || self.timezone == "UTC"
    }

    /// What is wrong with the values, one line each.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.day_ms == 0 || self.week_ms < self.day_ms {
            problems
                .push(format!("day ({} ms) must be positive and week ({} ms) no shorter", self.day_ms, self.week_ms));
        }
        if self.week_ms > 400 * DAY_MS {
            problems.push(format!("week ({} ms) is longer than 400 days", self.week_ms));
        }
        if !self.is_utc() {
            if self.day_ms != DAY_MS {
                problems.push(format!("timezone `{}` needs a day of 24 hours; use UTC", self.timezone));
            }
            if let Err(error) = jiff::tz::TimeZone::get(&self.timezone) {
                problems.push(format!("timezone `{}` is not known: {error}", self.timezone));
            }
        }
        if !self.holidays.is_empty() && (self.day_ms != DAY_MS || self.week_ms != 7 * DAY_MS) {
            problems.push("holidays need a day of 24 hours and a week of seven days".to_owned());
        }
        for holiday in &self.holidays {
            if let Err(error) = holiday.parse::<jiff::civil::Date>() {
                problems.push(format!("holiday `{holiday}` is no date such as 2026-12-25: {error}"));
            }
        }
        problems
    }
}

/// Phases of one instant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Phase {
    /// Milliseconds since the day began.
    pub(crate) day_ms: u64,
    /// Milliseconds since the week began.
    pub(crate) week_ms: u64,
}

/// A [`CalendarConfig`] made ready for use.
#[derive(Debug, Clone)]
pub(crate) struct Calendar {
    config: CalendarConfig,
    zone: Option<jiff::tz::TimeZone>,
    /// Days since the epoch, on the zone's clock, ascending.
    holidays: Vec<i64>,
}

/// Parts of the seasons that have gone by, and whether the day is a holiday.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct SeasonParts {
    /// In `[0, 1)`.
    pub(crate) day: f64,
    /// In `[0, 1)`; not moved by holidays.
    pub(crate) week: f64,
    pub(crate) holiday: bool,
}

impl Calendar {
    /// Falls back on UTC for a zone that does not exist: `problems` has refused it before.
    pub(crate) fn new(config: &CalendarConfig) -> Self {
        let zone = if config.is_utc() { None } else { jiff::tz::TimeZone::get(&config.timezone).ok() };
        let mut holidays: Vec<i64> = config.holidays.iter().filter_map(|date| days_since_epoch(date)).collect();
        holidays.sort_unstable();
        Calendar { config: config.clone(), zone, holidays }
    }

    pub(crate) fn phase(&self, at_ms: EpochMs) -> Phase {
        let local = at_ms + self.offset_ms(at_ms);
        let within = |season: u64| local.rem_euclid(season.max(1) as i64) as u64;
        let day_ms = within(self.config.day_ms);
        let week_ms = if self.is_holiday(local) { SUNDAY * DAY_MS + day_ms } else { within(self.config.week_ms) };
        Phase { day_ms, week_ms }
    }

    pub(crate) fn seasons(&self, at_ms: EpochMs) -> SeasonParts {
        let local = at_ms + self.offset_ms(at_ms);
        let part = |season: u64| local.rem_euclid(season.max(1) as i64) as f64 / season.max(1) as f64;
        SeasonParts { day: part(self.config.day_ms), week: part(self.config.week_ms), holiday: self.is_holiday(local) }
    }

    fn is_holiday(&self, local_ms: i64) -> bool {
        !self.holidays.is_empty() && self.holidays.binary_search(&local_ms.div_euclid(DAY_MS as i64)).is_ok()
    }

    fn offset_ms(&self, at_ms: EpochMs) -> i64 {
        let Some(zone) = &self.zone else { return 0 };
        jiff::Timestamp::from_millisecond(at_ms)
            .map_or(0, |instant| i64::from(zone.to_offset(instant).seconds()) * 1000)
    }

    /// Slot of the day, of `slots` equal ones.
    pub(crate) fn day_slot(&self, phase: Phase, slots: usize) -> usize {
        slot(phase.day_ms, self.config.day_ms, slots)
    }

    /// Slot of the week, of `slots` equal ones.
    pub(crate) fn week_slot(&self, phase: Phase, slots: usize) -> usize {
        slot(phase.week_ms, self.config.week_ms, slots)
    }

    /// Smooth features of the phase, each in `[-1, 1]`; the first four are the day's first two harmonics.
    pub(crate) fn fourier(&self, phase: Phase) -> [f64; FOURIER] {
        let mut features = [0.0; FOURIER];
        let (day, rest) = features.split_at_mut(2 * DAY_HARMONICS);
        let (week, cross) = rest.split_at_mut(2 * WEEK_HARMONICS);
        harmonics(phase.day_ms as f64 / self.config.day_ms as f64, day);
        harmonics(phase.week_ms as f64 / self.config.week_ms as f64, week);
        for (product, of_day) in cross.iter_mut().zip(day.iter()) {
            *product = week[0] * of_day;
        }
        features
    }
}

fn days_since_epoch(date: &str) -> Option<i64> {
    let date = date.parse::<jiff::civil::Date>().ok()?;
    let midnight = jiff::tz::TimeZone::UTC.to_timestamp(date.at(0, 0, 0, 0)).ok()?;
    Some(midnight.as_millisecond().div_euclid(DAY_MS as i64))
}

fn slot(within_ms: u64, season_ms: u64, slots: usize) -> usize {
    // A season is at most 400 days (`problems`), so the product is far from the largest.
    let index = within_ms.saturating_mul(slots as u64) / season_ms.max(1);
    (index as usize).min(slots.saturating_sub(1))
}

/// `sin` and `cos` of 1, 2, 3… turns, by the addition theorem: one call of `sin_cos` for all.
pub(crate) fn harmonics(turns: f64, out: &mut [f64]) {
    let (sin, cos) = (std::f64::consts::TAU * turns).sin_cos();
    let (mut s, mut c) = (sin, cos);
    for pair in out.chunks_exact_mut(2) {
        pair[0] = s;
        pair[1] = c;
        (s, c) = (s * cos + c * sin, c * cos - s * sin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn phases_repeat_every_day_and_week() {
        let calendar = Calendar::new(&CalendarConfig::default());
        let at = 1_700_000_000_000;
        let phase = calendar.phase(at);
        assert_eq!(calendar.phase(at + 24 * HOUR_MS).day_ms, phase.day_ms);
        assert_ne!(calendar.phase(at + 24 * HOUR_MS).week_ms, phase.week_ms);
        assert_eq!(calendar.phase(at + 7 * 24 * HOUR_MS), phase);
        assert_eq!(calendar.day_slot(phase, 24), 22, "2023-11-14T22:13:20Z");
    }

    #[test]
    fn rush_hour_stays_in_its_slot_over_daylight_saving() {
        let calendar =
            Calendar::new(&CalendarConfig { timezone: "Europe/Helsinki".to_owned(), ..CalendarConfig::default() });
        // 2024-03-30 and 2024-03-31 (the clock changes on the 31st), both at 12:00 in Helsinki.
        let before = 1_711_792_800_000;
        let after = before + 23 * HOUR_MS;
        assert_eq!(calendar.day_slot(calendar.phase(before), 24), 12);
        assert_eq!(calendar.day_slot(calendar.phase(after), 24), 12);
    }

    /// Both changes of a year in Helsinki: local hours stay in their slots, the day that is an hour shorter lacks one
    /// slot, and the longer one has it twice.
    #[test]
    fn both_changes_of_the_clock_keep_the_slots_of_the_day() {
        let calendar =
            Calendar::new(&CalendarConfig { timezone: "Europe/Helsinki".to_owned(), ..CalendarConfig::default() });
        let slots = |local_midnight_ms: i64, hours: i64| -> Vec<usize> {
            (0..hours).map(|h| calendar.day_slot(calendar.phase(local_midnight_ms + h * HOUR_MS), 24)).collect()
        };
        let spring = slots(1_711_836_000_000, 23); // 2024-03-31
        assert_eq!(spring, (0..24).filter(|&hour| hour != 3).collect::<Vec<_>>());
        let autumn = slots(1_729_976_400_000, 25); // 2024-10-27
        assert_eq!(autumn, [(0..=3).collect::<Vec<_>>(), (3..24).collect()].concat());
    }

    #[test]
    fn a_holiday_is_a_sunday_on_the_local_clock() {
        let zone = CalendarConfig {
            timezone: "Europe/Helsinki".to_owned(),
            holidays: vec!["2024-12-25".to_owned()],
            ..CalendarConfig::default()
        };
        let calendar = Calendar::new(&zone);
        let sunday = calendar.phase(1_734_861_600_000); // 2024-12-22 12:00 in Helsinki
        let christmas = 1_734_861_600_000 + 72 * HOUR_MS;
        assert_eq!(calendar.phase(christmas), sunday);
        assert_ne!(calendar.phase(christmas + 24 * HOUR_MS).week_ms, sunday.week_ms);
        let at = |hour: i64| calendar.seasons(christmas + (hour - 12) * HOUR_MS).holiday;
        assert_eq!([at(-1), at(0), at(23), at(24)], [false, true, true, false]);
        let wrong = CalendarConfig { holidays: vec!["25.12.".to_owned()], ..CalendarConfig::default() };
        assert!(wrong.problems().iter().any(|problem| problem.contains("25.12.")));
        let short =
            CalendarConfig { holidays: vec!["2024-12-25".to_owned()], ..CalendarConfig::compressed(60.0, 1000) };
        assert!(short.problems().iter().any(|problem| problem.contains("24 hours")));
    }

    #[test]
    fn instants_before_the_epoch_have_phases_too() {
        let calendar = Calendar::new(&CalendarConfig::default());
        assert_eq!(calendar.phase(-1).day_ms, DAY_MS - 1);
    }

    #[test]
    fn harmonics_are_sines_and_cosines() {
        let calendar = Calendar::new(&CalendarConfig::default());
        let features = calendar.fourier(Phase { day_ms: DAY_MS / 10, week_ms: 3 * DAY_MS / 10 });
        let angle = std::f64::consts::TAU / 10.0;
        for k in 1..=DAY_HARMONICS {
            assert!((features[2 * k - 2] - (k as f64 * angle).sin()).abs() < 1e-12);
            assert!((features[2 * k - 1] - (k as f64 * angle).cos()).abs() < 1e-12);
        }
        let week = (std::f64::consts::TAU * 0.3 / 7.0).sin();
        assert!((features[14] - week * angle.sin()).abs() < 1e-12);
    }

    #[test]
    fn compressed_days_are_whole_intervals() {
        let calendar = CalendarConfig::compressed(60.0, 1000);
        assert_eq!((calendar.day_ms, calendar.week_ms), (1_440_000, 10_080_000));
        assert_eq!(CalendarConfig::compressed(7.0, 5000).day_ms % 5000, 0);
        assert!(calendar.problems().is_empty());
    }

    #[test]
    fn impossible_calendars_are_named() {
        let check = |day_ms, week_ms, timezone: &str, word: &str| {
            let problems =
                CalendarConfig { day_ms, week_ms, timezone: timezone.to_owned(), holidays: Vec::new() }.problems();
            assert!(problems.iter().any(|problem| problem.contains(word)), "{problems:?} should name {word}");
        };
        check(0, 0, "UTC", "day");
        check(1000, 500, "UTC", "week");
        check(DAY_MS, 7 * DAY_MS, "Europe/Atlantis", "Europe/Atlantis");
        check(60_000, 420_000, "Europe/Helsinki", "24 hours");
    }
}
