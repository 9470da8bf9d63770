//! A reconstruction of the method of BARISTA (Bhattacharjee and others, IC2E 2019), as a baseline.
//!
//! A decomposable model forecasts ([`decomposition`]), and a compensator learns what it will be wrong by from its last
//! five errors and its bounds ([`compensator`]). The paper's full text was not read; that a Prophet-like model and a
//! learned function of forecast, bounds and about five errors were used is known, the settings are ours.
//!
//! Both are fitted anew about once a day in [`crate::Model::maintain`]: first the decomposition on the first three
//! quarters of the kept past, for honest errors on the last quarter, which the compensator learns from; then the
//! decomposition on all. A forecast between costs six evaluations.
//!
//! Left out: what is older than the kept past (a week of minutes, five weeks of five minutes, a year of hours).

mod compensator;
mod decomposition;

use super::{ExpertKind, Origin};
use crate::calendar::Calendar;
use crate::history::History;
use compensator::{Choice, Compensator, INPUTS, Inputs, Row};
use decomposition::Decomposition;
use serde::{Deserialize, Serialize};

/// Part of the past that the compensator's errors are not from.
const EARLY: f64 = 0.75;
/// Most samples of the past that are fitted.
const ROWS: i64 = 10_080;
/// Errors that the compensator looks at.
const ERRORS: i64 = 5;

/// See the module's documentation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Barista2019 {
    choice: Choice,
    decomposition: Option<Decomposition>,
    compensator: Option<Compensator>,
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
        Some(Barista2019 { choice, decomposition: None, compensator: None })
    }

    pub(crate) fn fits(&self, fresh: &Self) -> bool {
        self.choice == fresh.choice
            && self.decomposition.as_ref().is_none_or(Decomposition::is_sound)
            && self.compensator.as_ref().is_none_or(Compensator::is_sound)
    }

    pub(crate) fn memory_bytes() -> usize {
        Compensator::BYTES + 8 * 64
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
    pub(crate) fn refit(&mut self, history: &History, calendar: &Calendar, steps: u32) {
        let Some((newest, _)) = history.series.newest() else { return };
        let first = (newest + 1 - ROWS).max(0);
        let samples: Vec<(i64, f64)> = (first..=newest)
            .filter_map(|index| Some((history.series.start_ms(index), history.series.at(index)?)))
            .collect();
        let early = (samples.len() as f64 * EARLY) as usize;
        self.compensator = Decomposition::fit(calendar, &samples[..early]).and_then(|early_fit| {
            let begin = first + ((newest - first) as f64 * EARLY) as i64 + ERRORS;
            let rows: Vec<Row> = (begin..=newest - i64::from(steps))
                .filter_map(|origin| row(&early_fit, history, calendar, origin, origin + i64::from(steps)))
                .collect();
            Compensator::fit(&rows, self.choice)
        });
        if let Some(fitted) = Decomposition::fit(calendar, &samples) {
            self.decomposition = Some(fitted);
        }
    }
}

fn row(fitted: &Decomposition, history: &History, calendar: &Calendar, origin: i64, target: i64) -> Option<Row> {
    let value = history.series.at(target)?;
    let inputs = inputs(fitted, history, calendar, origin, target)?;
    Some((inputs, value - inputs[ERRORS as usize]))
}

/// The last errors before `origin` (an unknown one is as the one after it), the forecast and its bounds.
fn inputs(fitted: &Decomposition, history: &History, calendar: &Calendar, origin: i64, target: i64) -> Option<Inputs> {
    let mut inputs = [0.0; INPUTS];
    let mut error = None;
    for back in 0..ERRORS {
        let at = origin - back;
        let here = history.series.at(at).map(|value| value - fitted.at(calendar, history.series.start_ms(at)).mean);
        error = here.or(error);
        inputs[back as usize] = error?;
    }
    let forecast = fitted.at(calendar, history.series.start_ms(target));
    inputs[ERRORS as usize..].copy_from_slice(&[forecast.mean, forecast.lower, forecast.upper]);
    Some(inputs)
}
