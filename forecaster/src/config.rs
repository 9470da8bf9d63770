//! Section `[forecaster]`.

use crate::calendar::{CalendarConfig, DAY_MS};
use crate::expert::ExpertKind;
use crate::model::ModelConfig;
use runtime::config::ConfigDuration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What forecasts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModelKind {
    /// The online ensemble of `experts`.
    #[default]
    Ensemble,
    /// Trend, seasonality and compensator: a reconstruction of BARISTA (IC2E 2019).
    Barista2019,
}

/// From one step to an hour of minutes.
const WINDOWS: [u32; 6] = [1, 2, 6, 12, 30, 60];

/// What the service forecasts and how it keeps what it learned.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Steps (intervals of `aggregate.interval`) that a forecast reaches ahead. It should cover the longest set-up
    /// time of a flavor.
    pub horizon_steps: u32,
    /// Probability levels of the quantiles, ascending; the planner asks for one of them.
    pub levels: Vec<f64>,
    /// Windows, in steps from now, whose highest rate is forecast with quantiles of its own: the planner asks for the
    /// one of a node's set-up time and interpolates. Those beyond `horizon_steps` are left out.
    pub windows: Vec<u32>,
    /// Length of the short season. Shorter than 24 hours where time is compressed; it is then rounded to whole
    /// intervals.
    pub day: ConfigDuration,
    /// Length of the long season.
    pub week: ConfigDuration,
    /// IANA name of the time zone whose wall clock the load follows; only with a day of 24 hours.
    pub timezone: String,
    /// Days that the load takes for Sundays, as `2026-12-25` on that wall clock; only with a day of 24 hours.
    pub holidays: Vec<String>,
    /// What forecasts: the online ensemble, or the reconstruction of BARISTA's method of 2019 for comparison.
    pub model: ModelKind,
    /// Names of the experts that the ensemble combines.
    pub experts: Vec<ExpertKind>,
    /// Intervals between two writes of a service's state. A restart replays at most that many and loses none.
    pub state_interval: u32,
    /// Most services that are forecast; observations of others are counted and ignored, so that memory is bounded.
    pub max_services: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            horizon_steps: 60,
            levels: ModelConfig::LEVELS.to_vec(),
            windows: WINDOWS.to_vec(),
            day: ConfigDuration::from_millis(DAY_MS),
            week: ConfigDuration::from_millis(7 * DAY_MS),
            timezone: "UTC".to_owned(),
            holidays: Vec::new(),
            model: ModelKind::Ensemble,
            experts: ExpertKind::DEFAULT.to_vec(),
            state_interval: 60,
            max_services: 1000,
        }
    }
}

impl Config {
    /// What is wrong with the values, each naming its key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !(1..=1440).contains(&self.horizon_steps) {
            problems.push(format!("forecaster.horizon_steps is {}, it must be between 1 and 1440", self.horizon_steps));
        }
        if self.levels.len() > 20 {
            problems.push(format!("forecaster.levels has {} levels, at most 20 are kept", self.levels.len()));
        }
        if self.windows.len() > 20 {
            problems.push(format!("forecaster.windows has {} windows, at most 20 are kept", self.windows.len()));
        }
        if self.windows.contains(&0) || !self.windows.is_sorted_by(|a, b| a < b) {
            problems.push("forecaster.windows must be ascending and at least 1".to_owned());
        }
        if self.state_interval == 0 {
            problems.push("forecaster.state_interval must be at least 1".to_owned());
        }
        if self.max_services == 0 {
            problems.push("forecaster.max_services must be at least 1".to_owned());
        }
        if self.is_compressed() && self.day.as_ms() < 4 {
            problems.push(format!("forecaster.day is {} ms, too short to have intervals", self.day.as_ms()));
            return problems;
        }
        // Any interval that divides a day shows what else is wrong; the real one comes with the observations.
        let probe_ms = if self.is_compressed() { 1 } else { 60_000 };
        problems.extend(self.model(probe_ms).problems().into_iter().map(|problem| format!("forecaster: {problem}")));
        problems
    }

    /// The model for a series with this interval.
    pub fn model(&self, interval_ms: u64) -> ModelConfig {
        let mut calendar = CalendarConfig {
            day_ms: self.day.as_ms().max(0) as u64,
            week_ms: self.week.as_ms().max(0) as u64,
            timezone: self.timezone.clone(),
            holidays: self.holidays.clone(),
        };
        if self.is_compressed() {
            calendar = calendar.rounded(interval_ms);
        }
        let model = ModelConfig {
            levels: self.levels.clone(),
            experts: match self.model {
                ModelKind::Ensemble => self.experts.clone(),
                ModelKind::Barista2019 => vec![ExpertKind::Barista2019],
            },
            calendar,
            ..ModelConfig::new(interval_ms)
        };
        model.with_reach(self.horizon_steps).with_windows(&self.windows)
    }

    /// A real day must not be rounded: its slots would drift against the clock.
    fn is_compressed(&self) -> bool {
        self.day.as_ms() != DAY_MS as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut Config), word: &str) {
        let mut config = Config::default();
        change(&mut config);
        let problems = config.problems();
        assert!(problems.iter().any(|problem| problem.contains(word)), "{problems:?} should name {word}");
    }

    #[test]
    fn the_default_is_sound_at_the_usual_intervals() {
        let config = Config::default();
        assert!(config.problems().is_empty(), "{:?}", config.problems());
        for interval_ms in [500, 1000, 10_000, 60_000, 300_000, 3_600_000] {
            let model = config.model(interval_ms);
            assert!(model.problems().is_empty(), "{interval_ms}: {:?}", model.problems());
            assert_eq!(model.horizons.last(), Some(&60));
        }
    }

    #[test]
    fn a_series_of_the_default_settings_takes_at_most_512_kib() {
        for interval_ms in [60_000, 300_000, 3_600_000] {
            let model = crate::Model::new(Config::default().model(interval_ms)).expect("sound");
            assert!(model.memory_bytes() <= 512 << 10, "{interval_ms} ms: {} KiB", model.memory_bytes() >> 10);
        }
    }

    #[test]
    fn a_compressed_day_is_rounded_to_intervals() {
        let config = Config {
            day: ConfigDuration::from_millis(DAY_MS / 7),
            week: ConfigDuration::from_millis(DAY_MS),
            ..Config::default()
        };
        assert!(config.problems().is_empty(), "{:?}", config.problems());
        let model = config.model(1000);
        assert!(model.problems().is_empty(), "{:?}", model.problems());
        assert_eq!((model.calendar.day_ms, model.calendar.week_ms), (12_343_000, 7 * 12_343_000));
    }

    #[test]
    fn bad_values_are_named() {
        check(|config| config.horizon_steps = 0, "horizon_steps");
        check(|config| config.levels = vec![0.9, 0.5], "levels");
        check(|config| config.levels = vec![0.5, 1.0], "levels");
        check(|config| config.levels = vec![f64::NAN], "levels");
        check(|config| config.windows = vec![6, 2], "windows");
        check(|config| config.windows = vec![0, 2], "windows");
        check(|config| config.windows = (1..40).collect(), "windows");
        check(|config| config.day = ConfigDuration::from_millis(0), "day");
        check(|config| config.week = ConfigDuration::from_millis(1), "week");
        check(|config| config.timezone = "Europe/Atlantis".to_owned(), "timezone");
        check(|config| config.holidays = vec!["Christmas".to_owned()], "Christmas");
        check(|config| config.experts = Vec::new(), "experts");
        check(|config| config.state_interval = 0, "state_interval");
        check(|config| config.max_services = 0, "max_services");
    }

    #[test]
    fn the_baseline_is_chosen_by_name() {
        let parsed: Config = serde_json::from_str(r#"{"model": "barista2019"}"#).unwrap_or_default();
        assert_eq!(parsed.model(60_000).experts, [ExpertKind::Barista2019]);
    }

    #[test]
    fn unknown_keys_are_errors() {
        let parsed: Result<Config, _> = serde_json::from_str(r#"{"horizont": 3}"#);
        assert!(parsed.is_err_and(|error| error.to_string().contains("horizont")));
    }
}
