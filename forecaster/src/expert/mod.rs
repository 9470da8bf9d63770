//! The experts: each makes one forecast of one target from what is known at the origin.
//!
//! Purpose: small methods with different strengths, one file each, that [`crate::combine`] weighs. Adding one is a
//! file, a variant of [`ExpertKind`], and an arm here.
//!
//! Invariants: a forecast is finite, not negative, and at most [`History::cap`]; an expert that cannot say anything
//! yet abstains (`None`) instead of guessing.

pub(crate) mod barista2019;
mod ewma;
pub(crate) mod hour_ridge;
mod last_value;
mod profile_ar;
pub(crate) mod ridge;
mod seasonal;
pub(crate) mod stack;
pub(crate) mod trees;

use crate::calendar::Calendar;
use crate::history::{History, Seasons};
use barista2019::Barista2019;
use hour_ridge::HourRidge;
use ridge::{Inputs, Link, Ridge};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Samples after which a short-memory ridge has forgotten two thirds.
const SHORT_WINDOW: f64 = 1200.0;
const LONG_WINDOW: f64 = 8000.0;
/// Most samples for which a regression learns without a word.
const MOST_LEARNING_STEPS: u64 = 192;

/// Names of the experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExpertKind {
    /// The newest value.
    LastValue,
    /// Exponentially weighted mean, factor 0.5.
    EwmaFast,
    /// Exponentially weighted mean, factor 0.2.
    EwmaMedium,
    /// Exponentially weighted mean, factor 0.05.
    EwmaSlow,
    /// The value one day before the target.
    SeasonalDay,
    /// The value one week before the target.
    SeasonalWeek,
    /// Typical value of the target's slot plus the fading deviation of today.
    ProfileAr,
    /// Ridge on the plain scale that remembers about 1,200 samples.
    RidgeShort,
    /// Ridge on the plain scale that remembers about 8,000 samples.
    RidgeLong,
    /// Ridge on the square-root scale that remembers about 1,200 samples.
    RidgeSqrtShort,
    /// Ridge on the square-root scale that remembers about 8,000 samples.
    RidgeSqrtLong,
    /// Ridge on the logarithmic scale that remembers about 1,200 samples.
    RidgeLogShort,
    /// Ridge on the logarithmic scale that remembers about 8,000 samples.
    RidgeLogLong,
    /// Small ridge on the square-root scale for each two hours of the day.
    RidgeHour,
    /// Boosted trees on the change from the newest value, refitted now and then.
    Trees,
    /// Boosted trees on the difference from the typical value of the target's slot, refitted now and then.
    TreesTypical,
    /// What the exogenous inputs say about the error of the mixture of the others.
    Exogenous,
    /// Regression over the other experts' forecasts.
    Stack,
    /// Trend, seasonality and a compensator: a reconstruction of BARISTA (IC2E 2019); the better compensator is used.
    Barista2019,
    /// The same with the ridge compensator.
    Barista2019Ridge,
    /// The same with the boosted trees.
    Barista2019Trees,
    /// The same without a compensator: what the compensator is worth.
    Barista2019Trend,
}

impl ExpertKind {
    /// Every expert.
    pub const ALL: [ExpertKind; 22] = [
        ExpertKind::LastValue,
        ExpertKind::EwmaFast,
        ExpertKind::EwmaMedium,
        ExpertKind::EwmaSlow,
        ExpertKind::SeasonalDay,
        ExpertKind::SeasonalWeek,
        ExpertKind::ProfileAr,
        ExpertKind::RidgeShort,
        ExpertKind::RidgeLong,
        ExpertKind::RidgeSqrtShort,
        ExpertKind::RidgeSqrtLong,
        ExpertKind::RidgeLogShort,
        ExpertKind::RidgeLogLong,
        ExpertKind::RidgeHour,
        ExpertKind::Trees,
        ExpertKind::TreesTypical,
        ExpertKind::Exogenous,
        ExpertKind::Stack,
        ExpertKind::Barista2019,
        ExpertKind::Barista2019Ridge,
        ExpertKind::Barista2019Trees,
        ExpertKind::Barista2019Trend,
    ];

    /// The experts of the default ensemble. Of the large ridges it has one: on the recorded series any two or all six
    /// together change the mean score by less than one per cent, and each is much of the time and memory.
    pub const DEFAULT: [ExpertKind; 12] = [
        ExpertKind::LastValue,
        ExpertKind::EwmaFast,
        ExpertKind::EwmaMedium,
        ExpertKind::EwmaSlow,
        ExpertKind::SeasonalDay,
        ExpertKind::SeasonalWeek,
        ExpertKind::ProfileAr,
        ExpertKind::RidgeLogLong,
        ExpertKind::RidgeHour,
        ExpertKind::Trees,
        ExpertKind::TreesTypical,
        ExpertKind::Stack,
    ];

    /// The name that messages and the command line use.
    pub fn name(self) -> &'static str {
        match self {
            ExpertKind::LastValue => "last_value",
            ExpertKind::EwmaFast => "ewma_fast",
            ExpertKind::EwmaMedium => "ewma_medium",
            ExpertKind::EwmaSlow => "ewma_slow",
            ExpertKind::SeasonalDay => "seasonal_day",
            ExpertKind::SeasonalWeek => "seasonal_week",
            ExpertKind::ProfileAr => "profile_ar",
            ExpertKind::RidgeShort => "ridge_short",
            ExpertKind::RidgeLong => "ridge_long",
            ExpertKind::RidgeSqrtShort => "ridge_sqrt_short",
            ExpertKind::RidgeSqrtLong => "ridge_sqrt_long",
            ExpertKind::RidgeLogShort => "ridge_log_short",
            ExpertKind::RidgeLogLong => "ridge_log_long",
            ExpertKind::RidgeHour => "ridge_hour",
            ExpertKind::Trees => "trees",
            ExpertKind::TreesTypical => "trees_typical",
            ExpertKind::Exogenous => "exogenous",
            ExpertKind::Stack => "stack",
            ExpertKind::Barista2019 => "barista2019",
            ExpertKind::Barista2019Ridge => "barista2019_ridge",
            ExpertKind::Barista2019Trees => "barista2019_trees",
            ExpertKind::Barista2019Trend => "barista2019_trend",
        }
    }

    /// Weight before anything is known of a series, for a forecast this part of a day ahead. Nearly every load has a
    /// daily rhythm, and over hours it matters more than the newest value: without this the second day is forecast
    /// as badly as the first.
    pub(crate) fn prior(self, lead_days: f64) -> f64 {
        const MOST: f64 = 16.0;
        const FULL_LEAD_DAYS: f64 = 4.0 / 24.0;
        match self {
            ExpertKind::SeasonalDay => 1.0 + (MOST - 1.0) * (lead_days / FULL_LEAD_DAYS).min(1.0),
            _ => 1.0,
        }
    }

    fn ridge(self) -> Option<Ridge> {
        let (link, window) = match self {
            ExpertKind::RidgeShort => (Link::Identity, SHORT_WINDOW),
            ExpertKind::RidgeLong => (Link::Identity, LONG_WINDOW),
            ExpertKind::RidgeSqrtShort => (Link::Sqrt, SHORT_WINDOW),
            ExpertKind::RidgeSqrtLong => (Link::Sqrt, LONG_WINDOW),
            ExpertKind::RidgeLogShort => (Link::Log, SHORT_WINDOW),
            ExpertKind::RidgeLogLong => (Link::Log, LONG_WINDOW),
            _ => return None,
        };
        Some(Ridge::new(link, window))
    }
}

impl std::fmt::Display for ExpertKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for ExpertKind {
    type Err = UnknownExpert;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        ExpertKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| UnknownExpert(name.to_owned()))
    }
}

/// No expert has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no expert is called `{0}`; there are: {names}", names = ExpertKind::ALL.map(ExpertKind::name).join(", "))]
pub struct UnknownExpert(String);

/// What an expert may look at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin<'a> {
    pub(crate) history: &'a History,
    pub(crate) seasons: Seasons,
    pub(crate) calendar: &'a Calendar,
    /// Index of the interval to forecast.
    pub(crate) target: i64,
    /// Steps from the newest interval to the target.
    pub(crate) steps: u32,
    pub(crate) inputs: Inputs<'a>,
    /// Forecasts of the horizon's trees from the last and from the typical value.
    pub(crate) trees: [Option<f64>; 2],
}

/// One expert of one horizon.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Expert {
    kind: ExpertKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ridge: Option<Box<Ridge>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hours: Option<Box<HourRidge>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    barista2019: Option<Box<Barista2019>>,
}

impl Expert {
    pub(crate) fn new(kind: ExpertKind, seasons: Seasons) -> Self {
        let hours = (kind == ExpertKind::RidgeHour).then(|| Box::new(HourRidge::new(seasons.day_steps)));
        let (ridge, barista2019) = (kind.ridge().map(Box::new), Barista2019::of(kind).map(Box::new));
        Expert { kind, ridge, hours, barista2019 }
    }

    pub(crate) fn kind(&self) -> ExpertKind {
        self.kind
    }

    pub(crate) fn fits(&self, fresh: &Expert) -> bool {
        self.kind == fresh.kind
            && both(&self.ridge, &fresh.ridge, |a, b| a.fits(b))
            && both(&self.hours, &fresh.hours, |a, b| a.fits(b))
            && both(&self.barista2019, &fresh.barista2019, |a, b| a.fits(b))
    }

    pub(crate) fn predict(&self, origin: &Origin<'_>) -> Option<f64> {
        let forecast = match self.kind {
            ExpertKind::LastValue => Some(last_value::predict(origin)),
            ExpertKind::EwmaFast => Some(ewma::fast(origin)),
            ExpertKind::EwmaMedium => Some(ewma::medium(origin)),
            ExpertKind::EwmaSlow => Some(ewma::slow(origin)),
            ExpertKind::SeasonalDay => seasonal::day(origin),
            ExpertKind::SeasonalWeek => seasonal::week(origin),
            ExpertKind::ProfileAr => profile_ar::predict(origin),
            ExpertKind::RidgeShort
            | ExpertKind::RidgeLong
            | ExpertKind::RidgeSqrtShort
            | ExpertKind::RidgeSqrtLong
            | ExpertKind::RidgeLogShort
            | ExpertKind::RidgeLogLong => self.ridge.as_ref().map(|ridge| ridge.predict(origin.inputs)),
            ExpertKind::RidgeHour => self.hours.as_ref().map(|hours| hours.predict(origin.inputs)),
            ExpertKind::Trees => origin.trees[0],
            ExpertKind::TreesTypical => origin.trees[1],
            // They need the others' forecasts: the horizon asks them last.
            ExpertKind::Exogenous | ExpertKind::Stack => None,
            ExpertKind::Barista2019
            | ExpertKind::Barista2019Ridge
            | ExpertKind::Barista2019Trees
            | ExpertKind::Barista2019Trend => self.barista2019.as_ref().and_then(|method| method.predict(origin)),
        };
        let forecast = forecast.filter(|_| !self.is_learning(origin));
        forecast.filter(|value| value.is_finite()).map(|value| value.clamp(0.0, origin.history.cap()))
    }

    /// True while a regression has seen less than two days: it abstains instead of extrapolating from so little.
    fn is_learning(&self, origin: &Origin<'_>) -> bool {
        let enough = (2 * origin.seasons.day_steps).min(MOST_LEARNING_STEPS);
        (self.ridge.is_some() || self.hours.is_some()) && origin.history.samples < enough
    }

    /// Learns the observed value of a target whose inputs were remembered.
    pub(crate) fn learn(&mut self, inputs: Inputs<'_>, value: f64) {
        if let Some(ridge) = &mut self.ridge {
            ridge.learn(inputs, value);
        }
        if let Some(hours) = &mut self.hours {
            hours.learn(inputs, value);
        }
    }

    /// Brings the expert up to date with what it learned; the costly part, done every few steps.
    pub(crate) fn refresh(&mut self) {
        if let Some(ridge) = &mut self.ridge {
            ridge.solve();
        }
    }

    /// True if there is something for [`Expert::refit`] to do.
    pub(crate) fn can_refit(&self) -> bool {
        self.barista2019.is_some()
    }

    /// Learns anew from the recorded past, for forecasts `steps` ahead.
    pub(crate) fn refit(&mut self, history: &History, seasons: Seasons, calendar: &Calendar, steps: u32) {
        if let Some(method) = &mut self.barista2019 {
            method.refit(history, seasons, calendar, steps);
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.barista2019.as_ref().map_or(0, |_| Barista2019::memory_bytes())
            + self.ridge.as_ref().map_or(0, |ridge| ridge.memory_bytes())
            + self.hours.as_ref().map_or(0, |hours| hours.memory_bytes())
    }
}

/// Both absent, or both there and `fits`.
pub(crate) fn both<T>(read: &Option<T>, fresh: &Option<T>, fits: impl Fn(&T, &T) -> bool) -> bool {
    match (read, fresh) {
        (Some(read), Some(fresh)) => fits(read, fresh),
        (None, None) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_serde_and_read_back() {
        for kind in ExpertKind::ALL {
            assert_eq!(serde_json::to_value(kind).ok(), Some(kind.name().into()));
            assert_eq!(kind.name().parse::<ExpertKind>(), Ok(kind));
        }
        let unknown = "prophet".parse::<ExpertKind>().map_err(|error| error.to_string());
        assert!(unknown.is_err_and(|text| text.contains("`prophet`") && text.contains("seasonal_week")));
    }
}
