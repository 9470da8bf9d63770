//! Labels of a time axis, on the wall clock of the series.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use schemas::EpochMs;

const MINUTE: i64 = 60_000;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
/// Most labels of an axis.
const MOST: i64 = 9;

pub(super) struct Clock(TimeZone);

impl Clock {
    /// UTC if the zone is not known; the model has refused such a zone before.
    pub(super) fn new(timezone: &str) -> Self {
        Clock(TimeZone::get(timezone).unwrap_or(TimeZone::UTC))
    }

    /// Day and minute; the milliseconds if that is no date.
    pub(super) fn date(&self, at_ms: EpochMs) -> String {
        self.format(at_ms, "%Y-%m-%d %H:%M")
    }

    fn format(&self, at_ms: EpochMs, pattern: &str) -> String {
        match Timestamp::from_millisecond(at_ms) {
            Ok(at) => self.0.to_datetime(at).strftime(pattern).to_string(),
            Err(_) => format!("{at_ms} ms"),
        }
    }

    fn offset_ms(&self, at_ms: EpochMs) -> i64 {
        Timestamp::from_millisecond(at_ms).map_or(0, |at| i64::from(self.0.to_offset(at).seconds()) * 1000)
    }

    /// Round times between the two, and how to write them.
    pub(super) fn ticks(&self, (from, to): (f64, f64)) -> Vec<(f64, String)> {
        let (from, to) = (from as i64, to as i64);
        let minutes = [1, 2, 5, 10, 15, 30].map(|n| n * MINUTE);
        let hours = [1, 2, 3, 6, 12].map(|n| n * HOUR);
        let days = [1, 2, 7, 14, 28, 91, 182, 364, 3 * 364, 10 * 364, 100 * 364].map(|n| n * DAY);
        let steps = minutes.into_iter().chain(hours).chain(days);
        let Some(step) = steps.into_iter().find(|step| (to - from) / step <= MOST) else { return Vec::new() };
        let pattern = match step {
            step if step >= 91 * DAY => "%b %Y",
            step if step >= DAY => "%b %-d",
            _ => "%H:%M",
        };
        let offset = self.offset_ms(from);
        let first = (from + offset).div_euclid(step) + 1;
        (first..=(to + offset).div_euclid(step))
            .map(|k| {
                // Over a change of the clock the wall's midnight moves.
                let at_ms = k * step - self.offset_ms(k * step - offset);
                let midnight = (k * step).rem_euclid(DAY) == 0;
                (at_ms as f64, self.format(at_ms, if midnight && step < DAY { "%b %-d" } else { pattern }))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_day_has_hours_and_its_midnight_a_date() {
        let from = 1_711_839_600_000_i64; // 2024-03-31 00:00 in Berlin, where the clock goes forward at two.
        let ticks = Clock::new("Europe/Berlin").ticks((from as f64 - 1.0, (from + 23 * HOUR) as f64));
        let labels: Vec<&str> = ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels[..3], ["Mar 31", "03:00", "06:00"]);
        assert_eq!(ticks[2].0 as i64 - from, 5 * HOUR);
    }

    #[test]
    fn what_is_no_date_is_said_in_milliseconds() {
        assert_eq!(Clock::new("UTC").date(i64::MAX), format!("{} ms", i64::MAX));
    }

    proptest! {
        #[test]
        fn few_labels_inside_the_axis(from in 0_i64..4_000_000_000_000, span in 1_i64..2_000_000_000_000) {
            let (from, to) = (from as f64, (from + span) as f64);
            let ticks = Clock::new("UTC").ticks((from, to));
            prop_assert!(ticks.len() <= MOST as usize + 2);
            prop_assert!(ticks.iter().all(|(at, _)| (from..=to).contains(at)));
        }
    }
}
