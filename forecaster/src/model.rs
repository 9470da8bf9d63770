//! The forecaster of one series: takes samples, gives forecasts with quantiles, and can be written down.
//!
//! Purpose: the pure core that the service, the backtest and the simulator share.
//!
//! Invariants:
//! - No clock, no randomness: the same samples give the same forecasts, bit for bit, also over
//!   [`Model::to_json`] and [`Model::from_json`].
//! - Whatever goes in, no NaN comes out; forecasts are not negative and quantiles do not cross.
//! - Time per sample and memory are bounded by the configuration alone.
//!
//! Gaps and disorder: see [`Observation`] and [`Rejection`].
//!
//! Left out: units (the service says requests per second), and several series at once (one model each).

use crate::calendar::{Calendar, CalendarConfig};
use crate::expert::ExpertKind;
use crate::expert::trees::Share;
use crate::forecast::{self, Forecast, StepForecast};
use crate::history::{History, Seasons};
use crate::horizon::{Direct, Horizon, Now, Shape, View};
use crate::peak::{Outlook, Peaks};
use crate::score::{RecentError, Score};
use crate::series::{Amended, MAX_INSTANT_MS, Place};
use crate::shift::ShiftDetector;
use schemas::EpochMs;
use serde::{Deserialize, Serialize};

/// Largest value accepted: beyond it squares lose all precision.
pub const MAX_VALUE: f64 = 1e15;
/// Most exogenous inputs: time and memory grow with their square.
pub const MOST_COVARIATES: usize = 16;
/// Samples during which the experts are refreshed often.
const YOUNG_SAMPLES: u64 = 200;
/// Steps between two refreshes of one horizon while young, and bounds on them later.
const YOUNG_REFRESH_STEPS: u64 = 4;
const LEAST_REFRESH_STEPS: u64 = 8;
const MOST_REFRESH_STEPS: u64 = 60;
/// Bounds on the steps between two refits.
const LEAST_REFIT_STEPS: u64 = 168;
const MOST_REFIT_STEPS: u64 = 1440;

/// What a [`Model`] is made for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Length of a step, milliseconds.
    pub interval_ms: u64,
    /// Steps ahead that are forecast directly, ascending; those between are interpolated.
    pub horizons: Vec<u32>,
    /// Probability levels of the quantiles, ascending, each inside (0, 1).
    pub levels: Vec<f64>,
    /// Steps of the windows whose highest value is forecast, ascending, none beyond the last horizon; may be empty.
    pub windows: Vec<u32>,
    /// Lengths of day and week, and the time zone.
    pub calendar: CalendarConfig,
    /// The experts to combine, without repetition.
    pub experts: Vec<ExpertKind>,
    /// Exogenous inputs that come with each sample ([`Model::observe_with`]).
    pub covariates: usize,
}

impl ModelConfig {
    /// Direct horizons of a forecast that reaches 60 steps.
    pub const HORIZONS: [u32; 8] = [1, 2, 4, 8, 12, 20, 36, 60];
    /// Levels that the planner may ask for.
    pub const LEVELS: [f64; 5] = [0.5, 0.9, 0.95, 0.975, 0.99];

    /// The default model for steps of `interval_ms`.
    pub fn new(interval_ms: u64) -> Self {
        ModelConfig {
            interval_ms,
            horizons: ModelConfig::HORIZONS.to_vec(),
            levels: ModelConfig::LEVELS.to_vec(),
            windows: Vec::new(),
            calendar: CalendarConfig::default(),
            experts: ExpertKind::DEFAULT.to_vec(),
            covariates: 0,
        }
    }

    /// The same, learning also from `inputs` exogenous inputs, if that is not 0.
    pub fn with_covariates(mut self, inputs: usize) -> Self {
        self.covariates = inputs;
        self.experts.retain(|kind| *kind != ExpertKind::Exogenous);
        if inputs > 0 {
            let before_stack = self.experts.len() - usize::from(self.experts.last() == Some(&ExpertKind::Stack));
            self.experts.insert(before_stack, ExpertKind::Exogenous);
        }
        self
    }

    /// The same, with direct horizons for a forecast of `steps` steps (at least 1).
    pub fn with_reach(mut self, steps: u32) -> Self {
        let reach = steps.max(1);
        let mut horizons: Vec<u32> = ModelConfig::HORIZONS.into_iter().filter(|&h| h < reach).collect();
        // Beyond 60, half as far again each time.
        while let Some(next) =
            horizons.last().filter(|&&last| last >= 60).map(|&last| last + last / 2).filter(|&next| next < reach)
        {
            horizons.push(next);
        }
        horizons.push(reach);
        self.horizons = horizons;
        self.windows.retain(|&steps| steps <= reach);
        self
    }

    /// The same, forecasting also the highest value of windows of so many steps; longer ones than the forecast
    /// reaches are left out.
    pub fn with_windows(mut self, windows: &[u32]) -> Self {
        let reach = self.horizons.last().copied().unwrap_or(0);
        self.windows = windows.iter().copied().filter(|&steps| steps <= reach).collect();
        self
    }

    /// What is wrong with the values, one line each; empty if nothing is.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.calendar.problems();
        let ascending = |ok: bool, what: &str| (!ok).then(|| format!("{what} must be ascending and not empty"));
        problems.extend(ascending(is_strictly_ascending(&self.horizons), "horizons"));
        problems.extend(ascending(is_strictly_ascending(&self.levels), "levels"));
        if self.horizons.first() == Some(&0) || self.horizons.last().is_some_and(|&last| last > 10_000) {
            problems.push("horizons must be between 1 and 10000 steps".to_owned());
        }
        let reach = self.horizons.last().copied().unwrap_or(0);
        if !self.windows.is_sorted_by(|a, b| a < b) || self.windows.iter().any(|&steps| steps == 0 || steps > reach) {
            problems.push(format!("windows must be ascending and between 1 and the last horizon ({reach} steps)"));
        }
        if !self.levels.iter().all(|level| *level > 0.0 && *level < 1.0) {
            problems.push("levels must lie inside (0, 1)".to_owned());
        }
        let mut kinds = self.experts.clone();
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.is_empty() || kinds.len() != self.experts.len() {
            problems.push("experts must be at least one, each once".to_owned());
        }
        if self.covariates > MOST_COVARIATES {
            problems.push(format!("{} covariates are more than {MOST_COVARIATES}", self.covariates));
        }
        let (interval, calendar) = (self.interval_ms, &self.calendar);
        if interval == 0 || interval > 31 * crate::calendar::DAY_MS {
            problems.push(format!("an interval of {interval} ms cannot be used"));
        } else if calendar.day_ms % interval != 0 || calendar.week_ms % interval != 0 {
            problems.push(format!(
                "day ({} ms) and week ({} ms) must be whole numbers of intervals ({interval} ms)",
                calendar.day_ms, calendar.week_ms
            ));
        } else if calendar.day_ms / interval < 4 {
            problems.push(format!("a day of {} ms has fewer than four intervals of {interval} ms", calendar.day_ms));
        }
        problems
    }

    fn shape(&self, place: usize) -> Shape<'_> {
        Shape {
            steps: self.horizons[place],
            kinds: &self.experts,
            levels: &self.levels,
            seasons: self.seasons(),
            trees: Share::new(place, self.horizons.len()),
            covariates: self.covariates,
        }
    }

    fn seasons(&self) -> Seasons {
        Seasons {
            interval_ms: self.interval_ms,
            day_steps: self.calendar.day_ms / self.interval_ms,
            week_steps: self.calendar.week_ms / self.interval_ms,
        }
    }
}

fn is_strictly_ascending<T: PartialOrd>(values: &[T]) -> bool {
    !values.is_empty() && values.is_sorted_by(|a, b| a < b)
}

/// A configuration that no model can be made for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("forecaster configuration cannot be used: {}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

/// What a sample was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observation {
    /// The next interval: learned from, and the forecast is new.
    Next,
    /// A later interval: as `Next`; the ones between are unknown (not zero) unless they come late.
    AfterGap {
        /// Intervals between.
        missing: u64,
    },
    /// A recent interval that was unknown: remembered for lags, not learned from; the forecast stays.
    Filled,
    /// A recent interval with another value than before: the new one replaces it in the lags; what was learned
    /// from the old one stays, and so does the forecast.
    Corrected,
    /// A recent interval with the value it had: nothing changed.
    Duplicate,
    /// An interval older than the recent samples: ignored.
    TooOld,
}

impl Observation {
    /// True if the sample moved the origin: there is a new forecast.
    pub fn is_new(self) -> bool {
        matches!(self, Observation::Next | Observation::AfterGap { .. })
    }
}

/// A sample that cannot be used; the model is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Rejection {
    /// NaN, infinite, negative or above [`MAX_VALUE`].
    #[error("value {0} is not a number between 0 and 1e15")]
    BadValue(f64),
    /// More exogenous inputs than the model was made for.
    #[error("{found} covariates came with the sample, the model was made for {expected}")]
    Covariates {
        /// With the sample.
        found: usize,
        /// Of the configuration.
        expected: usize,
    },
    /// Before 1970 or after 9999.
    #[error("start {0} ms is no usable instant")]
    BadInstant(EpochMs),
    /// Not a whole number of intervals from the first sample.
    #[error("start {start_ms} ms is not on the grid of {interval_ms} ms intervals that the first sample began")]
    OffGrid {
        /// Start of the refused sample.
        start_ms: EpochMs,
        /// Length of a step.
        interval_ms: u64,
    },
}

/// A state that cannot be restored.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The JSON is not a state of this version.
    #[error("forecaster state cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// The state belongs to another version of the model.
    #[error("forecaster state has version {found}, this build reads {expected}")]
    OtherVersion {
        /// Version in the state.
        found: u64,
        /// Version of this build.
        expected: u32,
    },
    /// The state was made for another interval, horizon, calendar or set of experts.
    #[error("forecaster state was made with another configuration")]
    OtherConfig,
    /// Parts of the state contradict one another or are not numbers.
    #[error("forecaster state is damaged")]
    Damaged,
}

/// See the module's documentation.
#[derive(Debug, Clone)]
pub struct Model {
    config: ModelConfig,
    seasons: Seasons,
    calendar: Calendar,
    body: Body,
}

/// The part of a model that changes.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Body {
    history: History,
    horizons: Vec<Horizon>,
    /// The newest direct forecasts, one a horizon; empty before the first sample.
    newest: Vec<Direct>,
    peaks: Peaks,
    score: Score,
    shift: ShiftDetector,
    /// Place of the horizon that [`Model::maintain`] has to refit.
    refit_due: Option<usize>,
}

impl Body {
    fn new(config: &ModelConfig) -> Self {
        let seasons = config.seasons();
        let horizon = |place: usize| Horizon::new(config.shape(place));
        Body {
            history: History::new(seasons, config.covariates),
            horizons: (0..config.horizons.len()).map(horizon).collect(),
            newest: Vec::new(),
            peaks: Peaks::new(&config.windows, &config.levels, seasons.day_steps),
            score: Score::new(config.levels.len()),
            shift: ShiftDetector::new(),
            refit_due: None,
        }
    }

    fn fits(&self, config: &ModelConfig) -> bool {
        let seasons = config.seasons();
        let n = config.horizons.len();
        self.history.fits(seasons, config.covariates)
            && self.horizons.len() == n
            && self.horizons.iter().enumerate().all(|(place, horizon)| horizon.fits(config.shape(place)))
            && self.newest.len() == if self.history.samples == 0 { 0 } else { n }
            && self
                .newest
                .iter()
                .zip(&config.horizons)
                .all(|(direct, &steps)| direct.steps == steps && direct.fits(config.levels.len()))
            && self.peaks.fits(&config.windows, &config.levels, seasons.day_steps)
            && self.score.fits(config.levels.len())
            && self.shift.fits()
    }
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    config: &'a ModelConfig,
    body: &'a Body,
}

#[derive(Deserialize)]
struct Read {
    config: ModelConfig,
    body: Body,
}

impl Model {
    /// Version of the serialised layout; it changes with any change of meaning.
    pub const VERSION: u32 = 6;

    /// A model that has seen nothing.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem of the configuration.
    pub fn new(config: ModelConfig) -> Result<Self, ConfigError> {
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(ConfigError(problems));
        }
        let body = Body::new(&config);
        Ok(Model { seasons: config.seasons(), calendar: Calendar::new(&config.calendar), body, config })
    }

    /// The configuration that the model was made with.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Known samples so far.
    pub fn samples(&self) -> u64 {
        self.body.history.samples
    }

    /// Start of the newest interval; `None` before the first sample.
    pub fn last_start_ms(&self) -> Option<EpochMs> {
        self.body.history.series.newest().map(|(_, start_ms)| start_ms)
    }

    /// True until a whole day was seen: the seasonal experts have nothing to say yet.
    pub fn is_cold(&self) -> bool {
        self.body.history.samples < self.seasons.day_steps
    }

    /// True for a day after the one-step errors changed beyond chance: the load is not what it was.
    pub fn is_shifted(&self) -> bool {
        self.body.shift.is_flagged(self.seasons.day_steps)
    }

    /// Error of the one-step forecast lately.
    pub fn recent_error(&self) -> RecentError {
        self.body.score.recent()
    }

    /// Takes the value of the interval that starts at `start_ms`; of the exogenous inputs, if there are any, nothing is
    /// known.
    ///
    /// # Errors
    /// [`Rejection`] if the sample cannot be used; the model is then as before.
    pub fn observe(&mut self, start_ms: EpochMs, value: f64) -> Result<Observation, Rejection> {
        self.observe_with(start_ms, value, &[])
    }

    /// As [`Model::observe`], with the exogenous inputs of the same interval, in any units, always in the same order.
    /// One that is not a finite number is unknown, and so are those that are missing at the end. They are learned from
    /// as lags: what they say of later intervals. Inputs of an interval that is not new are ignored.
    ///
    /// # Errors
    /// [`Rejection`] if the sample cannot be used; the model is then as before.
    pub fn observe_with(
        &mut self,
        start_ms: EpochMs,
        value: f64,
        covariates: &[f64],
    ) -> Result<Observation, Rejection> {
        if covariates.len() > self.config.covariates {
            return Err(Rejection::Covariates { found: covariates.len(), expected: self.config.covariates });
        }
        if !(0.0..=MAX_VALUE).contains(&value) {
            return Err(Rejection::BadValue(value));
        }
        if !(0..=MAX_INSTANT_MS).contains(&start_ms) {
            return Err(Rejection::BadInstant(start_ms));
        }
        self.maintain();
        // -0.0 passes the range and would survive into sums.
        let value = value.abs();
        let Some(place) = self.body.history.series.place(start_ms) else {
            return Err(Rejection::OffGrid { start_ms, interval_ms: self.config.interval_ms });
        };
        Ok(match place {
            Place::Ahead { index, missing } => {
                self.body.history.covariates.observe(covariates, missing);
                self.step(index, start_ms, value);
                if missing == 0 { Observation::Next } else { Observation::AfterGap { missing } }
            }
            Place::Behind { index } => match self.body.history.series.amend(index, value) {
                Amended::Filled => Observation::Filled,
                Amended::Corrected => Observation::Corrected,
                Amended::Same => Observation::Duplicate,
                Amended::TooOld => Observation::TooOld,
            },
        })
    }

    fn step(&mut self, index: i64, start_ms: EpochMs, value: f64) {
        self.learn(index, start_ms, value);
        self.body.peaks.observe(index, value);
        let phase = self.calendar.phase(start_ms);
        self.body.history.observe(self.seasons, &self.calendar, phase, start_ms, value);
        self.refresh();
        self.body.refit_due = self.next_refit();
        let now = Now { history: &self.body.history, seasons: self.seasons, calendar: &self.calendar };
        let view = View::new(now);
        self.body.newest.resize_with(self.body.horizons.len(), Direct::default);
        for (horizon, direct) in self.body.horizons.iter_mut().zip(&mut self.body.newest) {
            horizon.forecast(now, &view, direct);
        }
        if !self.body.peaks.is_empty() {
            let steps = self.steps();
            let slot = self.calendar.day_slot(phase, self.body.peaks.slots());
            let level = self.body.history.level();
            self.body.peaks.forecast(Outlook { origin: index, level, slot, steps: &steps });
        }
    }

    /// The forecast of every step up to the last horizon.
    fn steps(&self) -> Vec<StepForecast> {
        let history = &self.body.history;
        let origin = history.series.newest().map_or(0, |(index, _)| index);
        let shape = |steps: u32| {
            let phase = self.calendar.phase(history.series.start_ms(origin + i64::from(steps)));
            history.profile.week(&self.calendar, phase).or_else(|| history.profile.day(&self.calendar, phase))
        };
        forecast::interpolate(history.last_value(), &self.body.newest, shape)
    }

    /// True if [`Model::maintain`] has something to do.
    pub fn is_maintenance_due(&self) -> bool {
        self.body.refit_due.is_some()
    }

    /// Does the costly work that fell due: a caller may do it after the forecast is out, before the next sample.
    /// [`Model::observe`] does it otherwise, so that forecasts do not depend on whether this was called.
    pub fn maintain(&mut self) {
        let Some(due) = self.body.refit_due.take() else { return };
        let now = Now { history: &self.body.history, seasons: self.seasons, calendar: &self.calendar };
        if let Some(horizon) = self.body.horizons.get_mut(due) {
            horizon.refit(now);
        }
    }

    /// The horizon whose turn to be refitted it is: each once in [`Model::refit_steps`], one at a time.
    fn next_refit(&self) -> Option<usize> {
        let samples = self.body.history.samples;
        let (every, n) = (self.refit_steps(), self.body.horizons.len() as u64);
        let apart = (every / n).max(1);
        let place = samples % every;
        let due = place.is_multiple_of(apart).then(|| (place / apart) as usize)?;
        let old_enough = samples >= 2 * self.seasons.day_steps;
        (old_enough && self.body.horizons.get(due).is_some_and(Horizon::can_refit)).then_some(due)
    }

    /// Steps between two refits of one horizon: a day, but no less than a week of hours.
    fn refit_steps(&self) -> u64 {
        self.seasons.day_steps.clamp(LEAST_REFIT_STEPS, MOST_REFIT_STEPS)
    }

    fn learn(&mut self, index: i64, start_ms: EpochMs, value: f64) {
        let fourier = self.calendar.fourier(self.calendar.phase(start_ms));
        let now = Now { history: &self.body.history, seasons: self.seasons, calendar: &self.calendar };
        for horizon in &mut self.body.horizons {
            let steps = horizon.steps();
            let Some(met) = horizon.learn(now, index, start_ms, &fourier, value) else { continue };
            if steps == 1 {
                let naive = now.history.series.at(index - self.seasons.day_steps as i64);
                self.body.shift.observe(value - met.median, self.seasons.week_steps);
                self.body.score.add(value, met.median, &met.quantiles, naive, self.seasons.day_steps);
            }
        }
    }

    /// Refreshes the horizons whose turn it is; turns are spread, so that no step pays for all.
    fn refresh(&mut self) {
        let samples = self.body.history.samples;
        let every = if samples < YOUNG_SAMPLES {
            YOUNG_REFRESH_STEPS
        } else {
            (self.seasons.day_steps / 24).clamp(LEAST_REFRESH_STEPS, MOST_REFRESH_STEPS)
        };
        for (i, horizon) in self.body.horizons.iter_mut().enumerate() {
            if (samples + i as u64).is_multiple_of(every) {
                horizon.refresh();
            }
        }
    }

    /// The forecast of every step up to the last horizon, from the newest interval; `None` before the first sample.
    pub fn forecast(&self) -> Option<Forecast> {
        let history = &self.body.history;
        let (_, start_ms) = history.series.newest()?;
        let first = self.body.horizons.first();
        Some(Forecast {
            origin_ms: start_ms + self.config.interval_ms as i64,
            interval_ms: self.config.interval_ms,
            last_value: history.last_value(),
            steps: self.steps(),
            peaks: self.body.peaks.newest(),
            weights: first.map(|horizon| horizon.weights().collect()).unwrap_or_default(),
            samples: history.samples,
            cold: self.is_cold(),
            shift: self.is_shifted(),
        })
    }

    /// Most bytes that this model ever takes for its numbers.
    pub fn memory_bytes(&self) -> usize {
        self.body.history.memory_bytes()
            + self.body.peaks.memory_bytes()
            + self.body.horizons.iter().map(Horizon::memory_bytes).sum::<usize>()
    }

    /// The whole state as JSON; [`Model::from_json`] gives back a model that goes on exactly as this one would.
    ///
    /// # Errors
    /// [`StateError::Unreadable`] if serde_json cannot write it.
    pub fn to_json(&self) -> Result<serde_json::Value, StateError> {
        Ok(serde_json::to_value(Written { version: Model::VERSION, config: &self.config, body: &self.body })?)
    }

    /// Restores a state that was written with the same configuration.
    ///
    /// # Errors
    /// [`StateError`] if the state is of another version or configuration, or damaged.
    pub fn from_json(config: ModelConfig, state: &serde_json::Value) -> Result<Self, StateError> {
        let found = state.get("version").and_then(serde_json::Value::as_u64).unwrap_or(0);
        if found != u64::from(Model::VERSION) {
            return Err(StateError::OtherVersion { found, expected: Model::VERSION });
        }
        let read = Read::deserialize(state)?;
        if read.config != config {
            return Err(StateError::OtherConfig);
        }
        let mut model = Model::new(config).map_err(|_| StateError::OtherConfig)?;
        if !read.body.fits(&model.config) {
            return Err(StateError::Damaged);
        }
        model.body = read.body;
        Ok(model)
    }
}
