//! A reconstruction of the method of BARISTA (Bhattacharjee and others, IC2E 2019), as a baseline.
//!
//! A decomposable model forecasts ([`decomposition`]), and a compensator learns what it will be wrong by from its last
//! five errors and its bounds ([`compensator`]). The paper's full text was not read; that a Prophet-like model and a
//! learned function of forecast, bounds and about five errors were used is known, the settings are ours.
//!
//! Both are fitted anew about once a day in [`crate::Model::maintain`]. The compensator must learn from errors as it
//! will meet them: of a decomposition that was fitted a short while before. So the last quarter of the kept past is
//! cut into pieces of a day or more, each forecast by a decomposition of what came before it; with one for the whole quarter
//! the errors and the width of the bounds were other ones than those served with, and what the ridge made of that on
//! one-minute data was four times the error of Prophet with the same ridge. Last the decomposition is fitted to all.
//! A forecast between costs six evaluations.
//!
//! Left out: what is older than the kept past (five weeks of one or five minutes, a year of hours; see [`past`]).

mod compensator;
mod decomposition;
mod past;

use super::{ExpertKind, Origin};
use crate::calendar::Calendar;
use crate::history::{History, Seasons};
use compensator::{Choice, Compensator, ERRORS, INPUTS, Inputs, Row};
pub use decomposition::Component;
use decomposition::Decomposition;
use past::{Past, Sample, stride};
use serde::{Deserialize, Serialize};

/// Part of the past that the compensator's errors are not from.
const EARLY: f64 = 0.75;
/// Most pieces of the rest.
const FITS: i64 = 6;

/// See the module's documentation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Barista2019 {
    choice: Choice,
    decomposition: Option<Decomposition>,
    compensator: Option<Compensator>,
    #[serde(default)]
    past: Past,
}

impl Barista2019 {
    /// `None` if the kind is another method.
    pub(crate) fn of(kind: ExpertKind) -> Option<Self> {
        let choice = match kind {
            ExpertKind::Barista2019 => Choice::Better,
            ExpertKind::Barista2019Ridge => Choice::Ridge,
            ExpertKind::Barista2019Trees => Choice::Trees,
            ExpertKind::Barista2019Trend => Choice::None,
            _ => return None,
        };
        Some(Barista2019 { choice, decomposition: None, compensator: None, past: Past::default() })
    }

    pub(crate) fn fits(&self, fresh: &Self) -> bool {
        self.choice == fresh.choice
            && self.decomposition.as_ref().is_none_or(Decomposition::is_sound)
            && self.compensator.as_ref().is_none_or(Compensator::is_sound)
            && self.past.is_sound()
    }

    pub(crate) fn memory_bytes() -> usize {
        Compensator::BYTES + Past::BYTES + 8 * 64
    }

    /// The newest value until something was fitted.
    pub(crate) fn predict(&self, origin: &Origin<'_>) -> Option<f64> {
        let Some(decomposition) = &self.decomposition else { return Some(origin.history.last_value()) };
        let (newest, _) = origin.history.series.newest()?;
        let mean = decomposition.at(origin.calendar, origin.history.series.start_ms(origin.target)).mean;
        let error = self.compensator.as_ref().zip(inputs(
            decomposition,
            origin.history,
            origin.calendar,
            newest,
            origin.target,
        ));
        Some(mean + error.map_or(0.0, |(compensator, inputs)| compensator.predict(&inputs)))
    }

    /// Fits both anew to the kept past, for forecasts `steps` ahead.
    pub(crate) fn refit(&mut self, history: &History, seasons: Seasons, calendar: &Calendar, steps: u32) {
        let Some((newest, _)) = history.series.newest() else { return };
        let (samples, first) = self.past.samples(history, seasons);
        let kept = Kept { history, calendar, samples: &samples, first, newest, stride: stride(seasons) };
        self.compensator = Compensator::fit(&kept.rows(seasons, i64::from(steps)), self.choice);
        if let Some(fitted) = Decomposition::fit(calendar, &samples) {
            self.decomposition = Some(fitted);
        }
        self.past.absorb(history, seasons);
    }
}

/// The decomposition alone: fitted to `samples` (start and value, ascending), at these instants. `None` if there are too
/// few samples.
pub(crate) fn decompose(
    calendar: &Calendar,
    samples: impl Iterator<Item = (i64, f64)>,
    at: impl Iterator<Item = i64>,
) -> Option<Vec<Component>> {
    let samples: Vec<Sample> = samples.map(|(at_ms, value)| Sample { at_ms, value, weight: 1.0 }).collect();
    let fitted = Decomposition::fit(calendar, &samples)?;
    Some(at.map(|at_ms| fitted.component(calendar, at_ms)).collect())
}

/// What both are fitted to.
struct Kept<'a> {
    history: &'a History,
    calendar: &'a Calendar,
    samples: &'a [Sample],
    /// Index of the first sample that is no mean, and of the newest.
    first: i64,
    newest: i64,
    stride: i64,
}

impl Kept<'_> {
    /// What the compensator learns from: one row an origin of the last part of the samples.
    fn rows(&self, seasons: Seasons, steps: i64) -> Vec<Row> {
        let Kept { history, calendar, newest, .. } = *self;
        let Some(oldest) = self.samples.first() else { return Vec::new() };
        let late_ms = (history.series.start_ms(newest) - oldest.at_ms) as f64 * (1.0 - EARLY);
        let begin = self.first.max(newest - (late_ms / seasons.interval_ms as f64) as i64);
        let piece = ((newest - begin) / FITS).max(seasons.day_steps as i64);
        let mut rows = Vec::new();
        for known in (begin..newest).step_by(piece as usize) {
            let known_ms = history.series.start_ms(known);
            let past = &self.samples[..self.samples.partition_point(|sample| sample.at_ms <= known_ms)];
            let Some(fitted) = Decomposition::fit(calendar, past) else { continue };
            let origins = (known..(known + piece).min(newest - steps + 1)).step_by(self.stride as usize);
            rows.extend(origins.filter_map(|origin| row(&fitted, history, calendar, origin, origin + steps)));
        }
        rows
    }
}

fn row(fitted: &Decomposition, history: &History, calendar: &Calendar, origin: i64, target: i64) -> Option<Row> {
    let value = history.series.at(target)?;
    let inputs = inputs(fitted, history, calendar, origin, target)?;
    Some((inputs, value - inputs[ERRORS]))
}

/// The last errors before `origin` (an unknown one is as the one after it), the forecast and its bounds.
fn inputs(fitted: &Decomposition, history: &History, calendar: &Calendar, origin: i64, target: i64) -> Option<Inputs> {
    let mut inputs = [0.0; INPUTS];
    let mut error = None;
    for (back, input) in (0..).zip(&mut inputs[..ERRORS]) {
        let at = origin - back;
        let here = history.series.at(at).map(|value| value - fitted.at(calendar, history.series.start_ms(at)).mean);
        error = here.or(error);
        *input = error?;
    }
    let forecast = fitted.at(calendar, history.series.start_ms(target));
    inputs[ERRORS..].copy_from_slice(&[forecast.mean, forecast.lower, forecast.upper]);
    Some(inputs)
}
