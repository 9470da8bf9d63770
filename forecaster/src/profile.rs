//! The typical value by slot of the day and by slot of the week.
//!
//! Purpose: a smooth seasonal shape, where a seasonal lag is one noisy sample of it. Each slot is a running mean
//! of its samples whose weight never falls below a floor, so that the shape follows slow change.
//!
//! Invariants: a slot is unknown until a sample fell into it; memory is [`MAX_DAY_SLOTS`] and [`MAX_WEEK_SLOTS`]
//! at most.

use crate::calendar::{Calendar, Phase};
use serde::{Deserialize, Serialize};

/// One slot a minute of a real day.
const MAX_DAY_SLOTS: u64 = 1440;
const MAX_WEEK_SLOTS: u64 = 10_080;
/// Weight of a new day in a slot of the day, once the slot is old.
const DAY_RATE: f64 = 0.15;
/// Weight of a new week in a slot of the week, once the slot is old.
const WEEK_RATE: f64 = 0.25;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Slots {
    /// Weight of a new sample once the slot is old.
    floor: f64,
    /// Running means; NaN until a sample came.
    #[serde(with = "crate::bits::single")]
    means: Vec<f32>,
    /// Samples so far, saturating.
    #[serde(with = "crate::bits::bytes")]
    counts: Vec<u8>,
}

impl Slots {
    fn new(season_steps: u64, most: u64, rate: f64) -> Self {
        let n = season_steps.clamp(1, most) as usize;
        let samples_a_season = season_steps.max(1) as f64 / n as f64;
        Slots { floor: rate / samples_a_season, means: vec![f32::NAN; n], counts: vec![0; n] }
    }

    fn fits(&self, fresh: &Slots) -> bool {
        self.floor.to_bits() == fresh.floor.to_bits()
            && self.means.len() == fresh.means.len()
            && self.counts.len() == fresh.counts.len()
            && self
                .means
                .iter()
                .zip(&self.counts)
                .all(|(mean, &count)| if count == 0 { mean.is_nan() } else { mean.is_finite() })
    }

    fn observe(&mut self, slot: usize, value: f64) {
        let (mean, count) = (&mut self.means[slot], &mut self.counts[slot]);
        if *count == 0 {
            *mean = value as f32;
        } else {
            let old = f64::from(*mean);
            *mean = (old + (value - old) * (1.0 / (f64::from(*count) + 1.0)).max(self.floor)) as f32;
        }
        *count = count.saturating_add(1);
    }

    fn get(&self, slot: usize) -> Option<f64> {
        let mean = self.means[slot];
        (!mean.is_nan()).then_some(f64::from(mean))
    }

    fn memory_bytes(&self) -> usize {
        self.means.len() * size_of::<f32>() + self.counts.len()
    }
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Profile {
    day: Slots,
    week: Slots,
}

impl Profile {
    pub(crate) fn new(day_steps: u64, week_steps: u64) -> Self {
        Profile {
            day: Slots::new(day_steps, MAX_DAY_SLOTS, DAY_RATE),
            week: Slots::new(week_steps, MAX_WEEK_SLOTS, WEEK_RATE),
        }
    }

    pub(crate) fn fits(&self, day_steps: u64, week_steps: u64) -> bool {
        let fresh = Profile::new(day_steps, week_steps);
        self.day.fits(&fresh.day) && self.week.fits(&fresh.week)
    }

    pub(crate) fn observe(&mut self, calendar: &Calendar, phase: Phase, value: f64) {
        self.day.observe(calendar.day_slot(phase, self.day.means.len()), value);
        self.week.observe(calendar.week_slot(phase, self.week.means.len()), value);
    }

    /// Typical value in this slot of the day.
    pub(crate) fn day(&self, calendar: &Calendar, phase: Phase) -> Option<f64> {
        self.day.get(calendar.day_slot(phase, self.day.means.len()))
    }

    /// Typical value in this slot of the week.
    pub(crate) fn week(&self, calendar: &Calendar, phase: Phase) -> Option<f64> {
        self.week.get(calendar.week_slot(phase, self.week.means.len()))
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.day.memory_bytes() + self.week.memory_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::CalendarConfig;

    const HOUR_MS: i64 = 3_600_000;

    #[test]
    fn learns_the_shape_of_the_day_and_the_week() {
        let calendar = Calendar::new(&CalendarConfig::default());
        let mut profile = Profile::new(24, 168);
        let value = |hour: i64| if hour % 168 < 24 { 5.0 } else { 10.0 } + (hour % 24) as f64;
        for hour in 0..24 * 28 {
            profile.observe(&calendar, calendar.phase(hour * HOUR_MS), value(hour));
        }
        let phase = calendar.phase(9 * HOUR_MS);
        assert_eq!(profile.week(&calendar, phase), Some(14.0));
        let of_day = profile.day(&calendar, phase).unwrap_or(f64::NAN);
        assert!((14.0..19.0).contains(&of_day), "{of_day} is a mean over weekdays");
    }

    #[test]
    fn a_slot_is_unknown_before_its_first_sample() {
        let calendar = Calendar::new(&CalendarConfig::default());
        let mut profile = Profile::new(24, 168);
        profile.observe(&calendar, calendar.phase(0), 3.0);
        assert_eq!(profile.day(&calendar, calendar.phase(24 * HOUR_MS)), Some(3.0));
        assert_eq!(profile.week(&calendar, calendar.phase(24 * HOUR_MS)), None);
        assert_eq!(profile.day(&calendar, calendar.phase(HOUR_MS)), None);
    }

    #[test]
    fn memory_is_bounded_at_one_second() {
        assert!(Profile::new(86_400, 604_800).memory_bytes() <= 9 * (1440 + 10_080));
    }
}
