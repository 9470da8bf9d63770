//! What the decomposition is fitted to: the samples that the series keeps and, where these are less than five weeks,
//! means of half an hour from before.
//!
//! Purpose: one week alone does not tell a week's rhythm from a trend, and of one-minute data the series keeps no more.
//!
//! Invariants: bounded memory and time; a pure function of the series. Left out: corrections of what is a mean already.

use crate::history::{History, Seasons};
use crate::series::DAY_BUCKETS;
use serde::{Deserialize, Serialize};

/// Most rows of the series itself.
const ROWS: i64 = 10_080;
/// Means of a day, and days of them that are kept.
const MEANS_OF_DAY: u64 = 48;
const DAYS: u64 = 35;

/// A sample, or the mean of several.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Sample {
    /// Middle of the samples' starts.
    pub(super) at_ms: i64,
    pub(super) value: f64,
    /// How many samples it stands for.
    pub(super) weight: f64,
}

/// See the module's documentation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Past {
    /// Which mean the oldest is: the one of the samples from `first · steps` on.
    first: i64,
    /// NaN where no sample is known.
    #[serde(with = "crate::bits")]
    means: Vec<f64>,
}

impl Past {
    pub(super) const BYTES: usize = (MEANS_OF_DAY * DAYS) as usize * 8;

    pub(super) fn is_sound(&self) -> bool {
        self.means.len() <= (MEANS_OF_DAY * DAYS) as usize
            && self.first >= 0
            && !self.means.iter().any(|m| m.is_infinite())
    }

    /// Takes what has come since the last time.
    pub(super) fn absorb(&mut self, history: &History, seasons: Seasons) {
        let (Some((newest, _)), Some(steps)) = (history.series.newest(), steps(seasons)) else { return };
        let most = (MEANS_OF_DAY * DAYS) as i64;
        let (end, mut next) = ((newest + 1) / steps, self.first + self.means.len() as i64);
        if self.means.is_empty() || end - next > most {
            self.means.clear();
            next = (end - most).max(0);
            self.first = next;
        }
        for mean in next..end {
            let known = (mean * steps..(mean + 1) * steps).filter_map(|index| history.series.at(index));
            let (sum, n) = known.fold((0.0, 0.0), |(sum, n), value| (sum + value, n + 1.0));
            self.means.push(sum / n);
        }
        let surplus = self.means.len().saturating_sub(most as usize);
        self.means.drain(..surplus);
        self.first += surplus as i64;
    }

    /// Everything known, oldest first, and the index of the first that is a sample of the series.
    pub(super) fn samples(&self, history: &History, seasons: Seasons) -> (Vec<Sample>, i64) {
        let Some((newest, _)) = history.series.newest() else { return (Vec::new(), 0) };
        let stride = stride(seasons);
        let first = (newest + 1 - ROWS * stride).max(0);
        let mut samples = Vec::new();
        if let Some(steps) = steps(seasons) {
            let before = (first / steps - self.first).clamp(0, self.means.len() as i64) as usize;
            for (mean, &value) in (self.first..).zip(&self.means[..before]).filter(|(_, value)| value.is_finite()) {
                let at_ms =
                    (history.series.start_ms(mean * steps) + history.series.start_ms((mean + 1) * steps - 1)) / 2;
                samples.push(Sample { at_ms, value, weight: (steps / stride).max(1) as f64 });
            }
        }
        let recent = (first..=newest).step_by(stride as usize);
        samples.extend(recent.filter_map(|index| {
            Some(Sample { at_ms: history.series.start_ms(index), value: history.series.at(index)?, weight: 1.0 })
        }));
        (samples, first)
    }
}

/// Samples of a mean; `None` if the series itself keeps enough.
fn steps(seasons: Seasons) -> Option<i64> {
    let enough = ROWS >= (DAYS * seasons.day_steps) as i64;
    (!enough).then(|| (seasons.day_steps / MEANS_OF_DAY).max(1) as i64)
}

/// Steps between two samples of the series that are looked at: beyond one a minute it keeps means only.
pub(super) fn stride(seasons: Seasons) -> i64 {
    seasons.day_steps.div_ceil(DAY_BUCKETS).max(1) as i64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calendar::{Calendar, CalendarConfig};
    use proptest::prelude::*;

    const SEASONS: Seasons = Seasons { interval_ms: 60_000, day_steps: 1440, week_steps: 10_080 };

    /// A history of `n` minutes whose value is the minute's number, refitted every `every` minutes.
    fn grown(n: i64, every: i64) -> (History, Past) {
        let calendar = Calendar::new(&CalendarConfig::default());
        let (mut history, mut past) = (History::new(SEASONS, 0), Past::default());
        for minute in 0..n {
            let start_ms = 1_704_067_200_000 + minute * 60_000;
            history.observe(SEASONS, &calendar, calendar.phase(start_ms), start_ms, minute as f64);
            if (minute + 1) % every == 0 {
                past.absorb(&history, SEASONS);
            }
        }
        (history, past)
    }

    #[test]
    fn three_weeks_of_minutes_are_means_first_and_samples_then() {
        let (history, past) = grown(3 * 10_080, 1440);
        let (samples, first) = past.samples(&history, SEASONS);
        assert_eq!((first, samples.len()), (2 * 10_080, 2 * 7 * 48 + 10_080));
        // The first half hour: minutes 0 to 29.
        assert_eq!(samples[0], Sample { at_ms: 1_704_067_200_000 + 870_000, value: 14.5, weight: 30.0 });
        assert!(samples.is_sorted_by(|a, b| a.at_ms < b.at_ms));
        assert_eq!(samples.iter().map(|sample| sample.weight).sum::<f64>(), 3.0 * 10_080.0);
    }

    #[test]
    fn memory_is_bounded_and_a_long_silence_empties_it() {
        let (mut history, mut past) = grown(6 * 10_080, 1440);
        assert_eq!(past.means.len() * 8, Past::BYTES);
        let calendar = Calendar::new(&CalendarConfig::default());
        let later_ms = 1_704_067_200_000 + 60_000 * 600_000;
        history.observe(SEASONS, &calendar, calendar.phase(later_ms), later_ms, 1.0);
        past.absorb(&history, SEASONS);
        assert!(past.is_sound() && past.means.iter().filter(|mean| mean.is_finite()).count() == 0);
        assert_eq!(past.samples(&history, SEASONS).0.len(), 1);
    }

    #[test]
    fn coarse_series_keep_enough_themselves() {
        let hours = Seasons { interval_ms: 3_600_000, day_steps: 24, week_steps: 168 };
        assert_eq!(steps(hours), None);
        let (history, mut past) = grown(3000, 3001);
        past.absorb(&history, hours);
        assert!(past.means.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]
        #[test]
        fn how_often_it_absorbs_does_not_matter(n in 9000_i64..20_000, every in 1_i64..4000) {
            let (_, mut often) = grown(n, every);
            let (history, mut rarely) = grown(n, 5040);
            often.absorb(&history, SEASONS);
            rarely.absorb(&history, SEASONS);
            prop_assert_eq!((often.first, often.means), (rarely.first, rarely.means));
        }
    }
}
