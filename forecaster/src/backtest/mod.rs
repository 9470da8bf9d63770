//! How good the forecaster would have been on a recorded series.
//!
//! The protocol: samples are given one after another; after each, the forecast is noted. The first `train` share of
//! the series is not scored. Then for each horizon `h` every interval `j ≥ split + max(h)` is a target, forecast from
//! `j − h`, so that all horizons are scored on the same targets. Nothing is fitted ahead and no sample is seen
//! before its time.
//!
//! Scores, for each horizon:
//! - `mae`, `wape`, `smape`, `mase` of the median and `rmse` of the mean: each error is measured on the forecast that
//!   minimises it. `wape` and `smape` are in per cent. `mase` divides by the smaller of the mean absolute errors of
//!   the daily and the weekly seasonal naive forecast on the unscored part.
//! - `pinball`: mean pinball loss of the quantile, in per cent of the mean of the targets.
//! - `coverage`: share of targets at or below the quantile.
//!
//! [`page`] makes a page of it for a person.
//!
//! Left out: confidence intervals of the points' scores (`bench/peers/table.py` has them).

mod csv;
mod decompose;
mod page;
mod peaks;

pub use crate::expert::barista2019::Component;
pub use csv::{CsvError, CsvSeries};
pub use decompose::decompose;
pub use page::page;
pub use peaks::PeakScore;

use crate::calendar::CalendarConfig;
use crate::expert::ExpertKind;
use crate::forecast::{Forecast, StepForecast};
use crate::model::{ConfigError, Model, ModelConfig};
use peaks::{Outcome, PeakTally};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// What is measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Method {
    /// All experts of the default model, combined.
    #[default]
    Ensemble,
    /// One expert alone, with the same quantiles around it.
    Expert(ExpertKind),
}

impl Method {
    /// `ensemble` or the expert's name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Ensemble => "ensemble",
            Method::Expert(kind) => kind.name(),
        }
    }
}

/// Nothing that could be measured has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no model is called `{0}`; there are: ensemble, {names}", names = alone().map(ExpertKind::name).collect::<Vec<_>>().join(", "))]
pub struct UnknownMethod(String);

/// Experts that forecast by themselves.
fn alone() -> impl Iterator<Item = ExpertKind> {
    ExpertKind::ALL.into_iter().filter(|kind| is_alone(*kind))
}

/// These two correct the mixture of the others.
fn is_alone(kind: ExpertKind) -> bool {
    !matches!(kind, ExpertKind::Exogenous | ExpertKind::Stack)
}

impl std::str::FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "ensemble" => Ok(Method::Ensemble),
            name => name.parse().map(Method::Expert).map_err(|_| UnknownMethod(name.to_owned())),
        }
    }
}

/// How to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Steps ahead to score, ascending.
    pub horizons: Vec<u32>,
    /// Share of the series that is not scored.
    pub train: f64,
    /// Levels to score, ascending.
    pub levels: Vec<f64>,
    /// Windows whose highest value is scored, steps, ascending, none beyond the last horizon.
    pub windows: Vec<u32>,
    /// What to measure.
    pub method: Method,
    /// Lengths of day and week, and the time zone.
    pub calendar: CalendarConfig,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            horizons: vec![1, 2, 6, 12],
            train: 0.65,
            levels: ModelConfig::LEVELS.to_vec(),
            windows: Vec::new(),
            method: Method::Ensemble,
            calendar: CalendarConfig::default(),
        }
    }
}

/// A backtest that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The options, or an interval that no model can be made for.
    #[error("backtest cannot be run: {0}")]
    Config(#[from] ConfigError),
    /// The train share is no share.
    #[error("train is {0}, it must lie inside (0, 1)")]
    Train(f64),
    /// The expert has nothing to say without others.
    #[error("`{0}` corrects the mixture of the other experts and has no forecast of its own; it is part of `ensemble`")]
    NeedsOthers(&'static str),
    /// Nothing is left to score.
    #[error("{rows} rows are too few: after the first {split} and the longest horizon none is left to score")]
    TooShort {
        /// Rows of the series.
        rows: usize,
        /// Rows that are not scored.
        split: usize,
    },
}

/// The scores; serialises to the object that `backtest --json` prints.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Name of the series.
    pub series: String,
    /// What was measured.
    pub model: String,
    /// Steps of the series, unknown ones included.
    pub rows: usize,
    /// Steps without a value.
    pub missing: usize,
    /// Length of a step, seconds.
    pub interval_s: f64,
    /// Mean time to learn a sample and forecast, microseconds.
    pub us_per_step: f64,
    /// Mean time a step of the refits that may be done between two samples, microseconds.
    pub background_us_per_step: f64,
    /// Most bytes that a model of this series ever takes.
    pub bytes_per_series: usize,
    /// Scores by horizon.
    pub horizons: Vec<HorizonScore>,
    /// Scores of the highest value of a window, by its length; only what was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peaks: Vec<PeakScore>,
}

/// Scores of one horizon; see the module's documentation. `None` where a divisor is zero.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HorizonScore {
    /// Steps ahead.
    pub h: u32,
    /// Targets scored.
    pub n: usize,
    /// Mean absolute error of the median.
    pub mae: f64,
    /// Root mean squared error of the mean.
    pub rmse: f64,
    /// Sum of absolute errors over the sum of targets, per cent.
    pub wape: Option<f64>,
    /// Symmetric mean absolute percentage error.
    pub smape: f64,
    /// Mean absolute error over that of the seasonal naive forecast.
    pub mase: Option<f64>,
    /// Pinball loss by level, per cent of the mean target.
    pub pinball: BTreeMap<String, Option<f64>>,
    /// Share of targets at or below the quantile, by level.
    pub coverage: BTreeMap<String, f64>,
}

impl Report {
    /// Mean of `mase` over the horizons; `None` if any has none.
    pub fn mean_mase(&self) -> Option<f64> {
        let all: Option<Vec<f64>> = self.horizons.iter().map(|horizon| horizon.mase).collect();
        all.filter(|all| !all.is_empty()).map(|all| all.iter().sum::<f64>() / all.len() as f64)
    }

    /// The scores for a person, a line a horizon.
    pub fn table(&self) -> String {
        let levels: Vec<&String> =
            self.horizons.first().map(|horizon| horizon.coverage.keys().collect()).unwrap_or_default();
        let mut text = format!(
            "{}: {} on {} rows of {} s, {:.1} us a step (+ {:.1} us of refits between), {} KiB\n\n",
            self.series,
            self.model,
            self.rows,
            self.interval_s,
            self.us_per_step,
            self.background_us_per_step,
            self.bytes_per_series.div_ceil(1024),
        );
        let _ = write!(
            text,
            "{:>4} {:>7} {:>10} {:>10} {:>7} {:>7} {:>7}",
            "h", "n", "MAE", "RMSE", "WAPE%", "sMAPE%", "MASE"
        );
        for level in &levels {
            let _ = write!(text, " {:>9}", format!("pin%@{level}"));
        }
        for level in &levels {
            let _ = write!(text, " {:>9}", format!("cov@{level}"));
        }
        text.push('\n');
        for row in &self.horizons {
            let _ = write!(
                text,
                "{:>4} {:>7} {:>10.3} {:>10.3} {:>7} {:>7.2} {:>7}",
                row.h,
                row.n,
                row.mae,
                row.rmse,
                or_dash(row.wape, 2),
                row.smape,
                or_dash(row.mase, 3)
            );
            for loss in row.pinball.values() {
                let _ = write!(text, " {:>9}", or_dash(*loss, 3));
            }
            for share in row.coverage.values() {
                let _ = write!(text, " {share:>9.3}");
            }
            text.push('\n');
        }
        if let Some(mase) = self.mean_mase() {
            let _ = writeln!(text, "\nmean MASE {mase:.3}");
        }
        text.push_str(&peaks::table(&self.peaks));
        text
    }
}

fn or_dash(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// A [`Report`] and the forecasts that it scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Detail {
    /// The scores.
    pub report: Report,
    /// Levels of the forecasts' quantiles.
    pub levels: Vec<f64>,
    /// Index of the first target.
    pub first_target: usize,
    /// Every scored forecast, in order of origins.
    pub forecasts: Vec<Scored>,
    /// Every scored forecast of a window's highest value, in order of origins; only what was asked for.
    pub peaks: Vec<ScoredPeak>,
    /// What the model said of itself, at most [`MOODS`] times over the whole series.
    pub moods: Vec<Mood>,
}

/// Most [`Mood`]s of a [`Detail`].
pub const MOODS: usize = 960;

/// What the model said of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Mood {
    /// Index of the newest interval then.
    pub origin: usize,
    /// Weight of each expert in the mean of the first horizon.
    pub weights: Vec<(ExpertKind, f64)>,
    /// Until a whole day was seen.
    pub cold: bool,
    /// A day after the errors changed beyond chance.
    pub shift: bool,
}

/// One scored forecast of a window's highest value.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredPeak {
    /// Index of the newest interval when it was made.
    pub origin: usize,
    /// Steps of the window, which begins with the next.
    pub steps: u32,
    /// The highest value that came.
    pub highest: f64,
    /// The quantiles that were forecast.
    pub quantiles: Vec<f64>,
}

/// One scored forecast.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// Index of the forecast interval.
    pub target: usize,
    /// What was observed there.
    pub value: f64,
    /// The forecast; its `step` is the horizon.
    pub forecast: StepForecast,
}

impl Detail {
    /// One row `target,h,point,q95,q99` a forecast: the form of the peers under `bench/peers/`. A quantile that was
    /// not asked for is empty.
    pub fn to_csv(&self) -> String {
        let place = |wanted: f64| self.levels.iter().position(|level| (level - wanted).abs() < 1e-9);
        let places = [place(0.95), place(0.99)];
        let mut text = "target,h,point,q95,q99\n".to_owned();
        for scored in &self.forecasts {
            let forecast = &scored.forecast;
            let _ = write!(text, "{},{},{}", scored.target, forecast.step, forecast.median);
            for place in places {
                text.push(',');
                if let Some(quantile) = place.and_then(|place| forecast.quantiles.get(place)) {
                    let _ = write!(text, "{quantile}");
                }
            }
            text.push('\n');
        }
        text
    }
}

/// Runs the protocol. Reads the machine's monotonic clock for the times and nothing else.
///
/// # Errors
/// [`Error`] if the options do not fit the series.
pub fn run(series: &CsvSeries, options: &Options) -> Result<Report, Error> {
    run_in_detail(series, options).map(|detail| detail.report)
}

/// As [`run`], and keeps the forecasts.
///
/// # Errors
/// [`Error`] if the options do not fit the series.
pub fn run_in_detail(series: &CsvSeries, options: &Options) -> Result<Detail, Error> {
    run_with(series, options, |_| {})
}

/// As [`run_in_detail`], and says before each row how many it has done.
///
/// # Errors
/// [`Error`] if the options do not fit the series.
pub fn run_with(series: &CsvSeries, options: &Options, progress: impl Fn(usize)) -> Result<Detail, Error> {
    if !(options.train > 0.0 && options.train < 1.0) {
        return Err(Error::Train(options.train));
    }
    if let Method::Expert(kind) = options.method
        && !is_alone(kind)
    {
        return Err(Error::NeedsOthers(kind.name()));
    }
    let default = ModelConfig::new(series.interval_ms);
    let config = ModelConfig {
        horizons: options.horizons.clone(),
        windows: options.windows.clone(),
        levels: options.levels.clone(),
        calendar: options.calendar.clone(),
        experts: match options.method {
            Method::Ensemble => default.experts.clone(),
            Method::Expert(kind) => vec![kind],
        },
        ..default
    };
    let mut model = Model::new(config)?;
    let rows = series.values.len();
    let split = (rows as f64 * options.train) as usize;
    let first_target = split + options.horizons.last().copied().unwrap_or(0) as usize;
    if first_target >= rows {
        return Err(Error::TooShort { rows, split });
    }
    let mut tallies: Vec<Tally> = options.horizons.iter().map(|_| Tally::new(options.levels.len())).collect();
    let mut peaks: Vec<PeakTally> =
        model.config().windows.iter().map(|&steps| PeakTally::new(steps, options.levels.len())).collect();
    let (mut forecasts, mut scored_peaks, mut moods) = (Vec::new(), Vec::new(), Vec::new());
    let between_moods = rows.div_ceil(MOODS);
    let spent = replay(series, &mut model, &progress, |origin, forecast| {
        let steps = &forecast.steps;
        if origin % between_moods == 0 {
            let weights = forecast.weights.clone();
            moods.push(Mood { origin, weights, cold: forecast.cold, shift: forecast.shift });
        }
        let day = forecast.origin_ms.div_euclid(options.calendar.day_ms as i64);
        for tally in peaks.iter_mut().filter(|_| origin + 1 >= first_target) {
            let window = series.values.get(origin + 1..=origin + tally.steps()).unwrap_or_default();
            let highest = window.iter().copied().reduce(|a, b| Some(a?.max(b?))).flatten();
            if let (Some(highest), Some(peak)) = (highest, tally.of(&forecast.peaks)) {
                let of_steps = highest_quantiles(&steps[..tally.steps()]);
                let outcome = Outcome { day, highest, quantiles: &peak.quantiles, of_steps: &of_steps };
                tally.add(&outcome, &options.levels);
                let quantiles = peak.quantiles.clone();
                scored_peaks.push(ScoredPeak { origin, steps: peak.steps, highest, quantiles });
            }
        }
        for (&h, tally) in options.horizons.iter().zip(&mut tallies) {
            let target = origin + h as usize;
            let value = series.values.get(target).copied().flatten();
            if let (true, Some(value), Some(step)) = (target >= first_target, value, steps.get(h as usize - 1)) {
                tally.add(value, step, &options.levels);
                forecasts.push(Scored { target, value, forecast: step.clone() });
            }
        }
    });
    let naive = naive_error(&series.values[..split], &options.calendar, series.interval_ms);
    let scores = options.horizons.iter().zip(&tallies).map(|(&h, tally)| tally.score(h, naive, &options.levels));
    let report = Report {
        series: series.name.clone(),
        model: options.method.name().to_owned(),
        rows,
        missing: series.values.iter().filter(|value| value.is_none()).count(),
        interval_s: series.interval_ms as f64 / 1000.0,
        us_per_step: spent.steps.as_secs_f64() * 1e6 / rows as f64,
        background_us_per_step: spent.background.as_secs_f64() * 1e6 / rows as f64,
        bytes_per_series: model.memory_bytes(),
        horizons: scores.collect(),
        peaks: peaks.iter().map(|tally| tally.score(&options.levels)).collect(),
    };
    Ok(Detail { report, levels: options.levels.clone(), first_target, forecasts, peaks: scored_peaks, moods })
}

/// The highest quantile of the steps, by level.
fn highest_quantiles(steps: &[StepForecast]) -> Vec<f64> {
    let mut highest = vec![0.0_f64; steps.first().map_or(0, |step| step.quantiles.len())];
    for step in steps {
        highest.iter_mut().zip(&step.quantiles).for_each(|(highest, quantile)| *highest = highest.max(*quantile));
    }
    highest
}

/// Where the time went.
#[derive(Debug, Default)]
struct Spent {
    steps: Duration,
    background: Duration,
}

/// Feeds the series and hands out every forecast; returns the times that the model took.
fn replay(
    series: &CsvSeries,
    model: &mut Model,
    progress: &impl Fn(usize),
    mut seen: impl FnMut(usize, &Forecast),
) -> Spent {
    let mut spent = Spent::default();
    for (origin, value) in series.values.iter().enumerate() {
        progress(origin);
        let Some(value) = *value else { continue };
        let began = Instant::now();
        // The reader has checked values and grid, so every sample is new; one that is not has no forecast to score.
        let new = model.observe(series.start_ms(origin), value).is_ok_and(|observation| observation.is_new());
        let forecast = if new { model.forecast() } else { None };
        spent.steps += began.elapsed();
        let began = Instant::now();
        model.maintain();
        spent.background += began.elapsed();
        if let Some(forecast) = forecast {
            seen(origin, &forecast);
        }
    }
    spent
}

/// The smaller of the mean absolute errors of the value a day and a week before; `None` if there is neither, or the
/// series repeats itself exactly.
fn naive_error(train: &[Option<f64>], calendar: &CalendarConfig, interval_ms: u64) -> Option<f64> {
    let error = |season_ms: u64| {
        let season = (season_ms / interval_ms) as usize;
        let pairs = train.iter().skip(season).zip(train);
        let errors: Vec<f64> =
            pairs.filter_map(|(now, before)| Some((now.as_ref()? - before.as_ref()?).abs())).collect();
        (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
    };
    [error(calendar.day_ms), error(calendar.week_ms)]
        .into_iter()
        .flatten()
        .reduce(f64::min)
        .filter(|error| *error > 0.0)
}

/// Sums over the targets of one horizon.
struct Tally {
    n: usize,
    targets: f64,
    absolute: f64,
    squared: f64,
    symmetric: f64,
    pinball: Vec<f64>,
    covered: Vec<usize>,
}

impl Tally {
    fn new(levels: usize) -> Self {
        Tally {
            n: 0,
            targets: 0.0,
            absolute: 0.0,
            squared: 0.0,
            symmetric: 0.0,
            pinball: vec![0.0; levels],
            covered: vec![0; levels],
        }
    }

    fn add(&mut self, value: f64, step: &StepForecast, levels: &[f64]) {
        let error = (value - step.median).abs();
        self.n += 1;
        self.targets += value;
        self.absolute += error;
        self.squared += (value - step.mean).powi(2);
        self.symmetric += 2.0 * error / (value + step.median).max(1e-9);
        for (((loss, covered), quantile), level) in
            self.pinball.iter_mut().zip(&mut self.covered).zip(&step.quantiles).zip(levels)
        {
            let above = value - quantile;
            *loss += (level * above).max((level - 1.0) * above);
            *covered += usize::from(above <= 0.0);
        }
    }

    fn score(&self, h: u32, naive: Option<f64>, levels: &[f64]) -> HorizonScore {
        let n = self.n.max(1) as f64;
        let per_cent_of_targets = |sum: f64| (self.targets > 0.0).then(|| 100.0 * sum / self.targets);
        let keys = || levels.iter().map(ToString::to_string);
        HorizonScore {
            h,
            n: self.n,
            mae: self.absolute / n,
            rmse: (self.squared / n).sqrt(),
            wape: per_cent_of_targets(self.absolute),
            smape: 100.0 * self.symmetric / n,
            mase: naive.map(|naive| self.absolute / n / naive),
            pinball: keys().zip(self.pinball.iter().map(|&loss| per_cent_of_targets(loss))).collect(),
            coverage: keys().zip(self.covered.iter().map(|&covered| covered as f64 / n)).collect(),
        }
    }
}
