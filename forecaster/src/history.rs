//! Everything that the forecaster remembers of a series apart from what its experts learned.
//!
//! Purpose: one place that takes a new sample, so that experts and features only read.
//!
//! Invariants: values are finite and not negative; time and memory per sample are bounded; an unknown interval
//! changes the [`Series`] alone.

use crate::calendar::{Calendar, Phase};
use crate::covariates::Covariates;
use crate::profile::Profile;
use crate::series::{Series, SeriesShape};
use serde::{Deserialize, Serialize};

/// Steps of the shortest running mean.
const SHORT_STEPS: u64 = 12;
/// Steps kept for the experts that are fitted to the past, however short a week is.
const FIT_STEPS: u64 = 10_080;
/// Smoothing factors of the exponentially weighted means that are experts.
const EWMA_FAST: f64 = 0.5;
const EWMA_MEDIUM: f64 = 0.2;
const EWMA_SLOW: f64 = 0.05;
/// The level is never below this part of the short mean: right after a quiet week it must not make the new load
/// look thousands of times as high as usual.
const LEVEL_FLOOR: f64 = 0.1;

/// Lengths that the memory needs, in steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seasons {
    /// Length of a step.
    pub(crate) interval_ms: u64,
    /// Steps of a day.
    pub(crate) day_steps: u64,
    /// Steps of a week.
    pub(crate) week_steps: u64,
}

impl Seasons {
    pub(crate) fn shape(self) -> SeriesShape {
        // The oldest value asked for is the one before a week before the next interval; trees are fitted to all.
        let memory_steps = (self.week_steps + 2).max(FIT_STEPS);
        SeriesShape { interval_ms: self.interval_ms, day_steps: self.day_steps, memory_steps }
    }
}

/// Exponentially weighted means of the samples.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Means {
    pub(crate) ewma_fast: f64,
    pub(crate) ewma_medium: f64,
    pub(crate) ewma_slow: f64,
    /// Over about twelve steps, a day, a week.
    pub(crate) short: f64,
    pub(crate) day: f64,
    pub(crate) week: f64,
    /// Highest value of about the last week: it decays by half in a week.
    pub(crate) peak: f64,
}

impl Means {
    fn all(&self) -> [f64; 7] {
        [self.ewma_fast, self.ewma_medium, self.ewma_slow, self.short, self.day, self.week, self.peak]
    }
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct History {
    pub(crate) series: Series,
    pub(crate) profile: Profile,
    pub(crate) means: Means,
    /// Known samples so far.
    pub(crate) samples: u64,
    pub(crate) covariates: Covariates,
}

impl History {
    pub(crate) fn new(seasons: Seasons, covariates: usize) -> Self {
        History {
            series: Series::new(seasons.shape()),
            profile: Profile::new(seasons.day_steps, seasons.week_steps),
            means: Means::default(),
            samples: 0,
            covariates: Covariates::new(covariates),
        }
    }

    /// True if this state, read from outside, is one for `seasons`.
    pub(crate) fn fits(&self, seasons: Seasons, covariates: usize) -> bool {
        self.series.fits(seasons.shape())
            && self.profile.fits(seasons.day_steps, seasons.week_steps)
            && self.means.all().iter().all(|mean| mean.is_finite() && *mean >= 0.0)
            && self.covariates.fits(covariates)
            && (self.samples == 0) == self.series.newest().is_none()
    }

    /// Takes the next sample; returns its index.
    pub(crate) fn observe(
        &mut self,
        seasons: Seasons,
        calendar: &Calendar,
        phase: Phase,
        start_ms: i64,
        value: f64,
    ) -> i64 {
        let index = self.series.push(start_ms, value);
        self.profile.observe(calendar, phase, value);
        self.samples += 1;
        let known = self.samples as f64;
        let over = |steps: u64| 1.0 / known.min(steps as f64);
        let means = &mut self.means;
        // Until it has seen 1/rate samples an EWMA is the plain mean: its first value carries no undue weight.
        let ewma = |rate: f64| rate.max(1.0 / known);
        for (mean, rate) in [
            (&mut means.ewma_fast, ewma(EWMA_FAST)),
            (&mut means.ewma_medium, ewma(EWMA_MEDIUM)),
            (&mut means.ewma_slow, ewma(EWMA_SLOW)),
            (&mut means.short, over(SHORT_STEPS)),
            (&mut means.day, over(seasons.day_steps)),
            (&mut means.week, over(seasons.week_steps)),
        ] {
            *mean = (*mean + (value - *mean) * rate).max(0.0);
        }
        means.peak = value.max(means.peak * (-std::f64::consts::LN_2 / seasons.week_steps as f64).exp());
        index
    }

    /// The value that the ridge experts call 1: the week's mean, kept from vanishing.
    pub(crate) fn level(&self) -> f64 {
        self.means.week.max(LEVEL_FLOOR * self.means.short).max(1e-9)
    }

    /// No expert may go above this: an extrapolation must not order machines for a load nobody ever saw.
    pub(crate) fn cap(&self) -> f64 {
        2.5 * self.means.peak + self.level()
    }

    /// The newest value; 0 before the first sample.
    pub(crate) fn last_value(&self) -> f64 {
        self.series.newest().and_then(|(index, _)| self.series.at(index)).unwrap_or(0.0)
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.series.memory_bytes() + self.profile.memory_bytes()
    }
}
