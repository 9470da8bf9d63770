//! One direct horizon: its experts, their combination, and the forecasts still waiting for their value.
//!
//! Purpose: a forecast `h` steps ahead is learned by a model for `h` steps, not by chaining one-step forecasts.
//! What was known at the origin is remembered with the forecast and learned from `h` steps later.
//!
//! Invariants: at most `h` forecasts wait; they are in order of their targets. A target whose interval never came
//! is dropped without being learned.

use crate::calendar::{Calendar, FOURIER};
use crate::combine::Combiner;
use crate::covariates::LAGS;
use crate::expert::hour_ridge::HOURS;
use crate::expert::ridge::{Inputs, Link};
use crate::expert::stack::Stack;
use crate::expert::trees::{Forest, OriginView, Share};
use crate::expert::{Expert, ExpertKind, Origin, both};
use crate::features::{self, VALUES};
use crate::guard::Guard;
use crate::history::{History, Seasons};
use crate::quantile::{Outcome, Quantiles, SCALES};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// The stack abstains before this many samples, and through the first two days.
const STACK_SAMPLES: u64 = 200;

/// The stack corrects by at most this many times the usual error.
const STACK_REACH: f64 = 2.0;

/// A forecast made directly, not interpolated.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Direct {
    pub(crate) steps: u32,
    pub(crate) mean: f64,
    pub(crate) median: f64,
    #[serde(with = "crate::bits")]
    pub(crate) quantiles: Vec<f64>,
}

/// A [`Direct`] forecast and what it was made from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Pending {
    target: i64,
    level: f64,
    direct: Direct,
    /// What the experts' weights were for, before the guard: median and mean.
    mixtures: [f64; 2],
    /// The mixture that the exogenous inputs correct, and their features.
    exogenous: (f64, Vec<f32>),
    #[serde(with = "crate::bits::single")]
    values: Vec<f32>,
    /// Forecasts of the experts; NaN where one abstained.
    #[serde(with = "crate::bits")]
    experts: Vec<f64>,
    scales: [f64; SCALES],
    /// How far the experts lay apart.
    spread: f64,
}

/// What a step has in common for all horizons.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now<'a> {
    pub(crate) history: &'a History,
    pub(crate) seasons: Seasons,
    pub(crate) calendar: &'a Calendar,
}

/// What the forecasts from the newest interval have in common.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    outset: features::Outset,
    trees: Option<OriginView>,
}

impl View {
    pub(crate) fn new(now: Now<'_>) -> Self {
        View {
            outset: features::Outset::new(now.history, now.seasons, now.calendar, now.history.level()),
            trees: OriginView::new(now.history, now.seasons),
        }
    }
}

/// What a [`Horizon`] is made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape<'a> {
    pub(crate) steps: u32,
    pub(crate) kinds: &'a [ExpertKind],
    pub(crate) levels: &'a [f64],
    pub(crate) seasons: Seasons,
    pub(crate) trees: Share,
    /// Exogenous inputs.
    pub(crate) covariates: usize,
}

/// See the module's documentation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Horizon {
    steps: u32,
    experts: Vec<Expert>,
    /// Present if [`ExpertKind::Trees`] or [`ExpertKind::TreesTypical`] is among the experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    forest: Option<Forest>,
    /// Weights for the absolute loss: they give the median.
    for_median: Combiner,
    /// Weights for the squared loss: they give the mean.
    for_mean: Combiner,
    /// Present if [`ExpertKind::Stack`] is among the experts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stack: Option<Stack>,
    /// Present if [`ExpertKind::Exogenous`] is: how far the inputs move the mixture of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inputs: Option<Stack>,
    /// Absent where some of the simple experts are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    guard: Option<Guard>,
    quantiles: Quantiles,
    pending: VecDeque<Pending>,
    /// The forecast that was learned from last: its vectors serve for the next one.
    #[serde(skip)]
    spare: Pending,
}

impl Horizon {
    pub(crate) fn new(shape: Shape<'_>) -> Self {
        let Shape { steps, kinds, levels, seasons, trees, covariates } = shape;
        let has = |kind: ExpertKind| kinds.contains(&kind);
        let combiner = Combiner::new(&prior(steps, kinds, seasons));
        Horizon {
            steps,
            experts: kinds.iter().map(|&kind| Expert::new(kind, seasons)).collect(),
            forest: (has(ExpertKind::Trees) || has(ExpertKind::TreesTypical))
                .then(|| Forest::new(trees.of(has(ExpertKind::Trees), has(ExpertKind::TreesTypical)))),
            for_median: combiner.clone(),
            for_mean: combiner,
            stack: has(ExpertKind::Stack).then(|| Stack::new(kinds.len())),
            guard: Guard::new(kinds, seasonal_prior(steps, seasons), seasons.day_steps),
            inputs: has(ExpertKind::Exogenous).then(|| Stack::of_inputs(covariates * LAGS)),
            quantiles: Quantiles::new(levels, seasons.day_steps, seasons.week_steps),
            pending: VecDeque::new(),
            spare: Pending::default(),
        }
    }

    pub(crate) fn fits(&self, shape: Shape<'_>) -> bool {
        let fresh = Horizon::new(shape);
        let Shape { steps, kinds, levels, seasons, covariates, .. } = shape;
        self.steps == steps
            && self.experts.len() == kinds.len()
            && self.experts.iter().zip(&fresh.experts).all(|(expert, fresh)| expert.fits(fresh))
            && self.for_median.fits(&fresh.for_median)
            && self.for_mean.fits(&fresh.for_mean)
            && both(&self.forest, &fresh.forest, Forest::fits)
            && both(&self.stack, &fresh.stack, Stack::fits)
            && both(&self.guard, &fresh.guard, Guard::fits)
            && both(&self.inputs, &fresh.inputs, Stack::fits)
            && self.quantiles.fits(levels, seasons.day_steps, seasons.week_steps)
            && self.pending.len() <= steps as usize
            && self.pending.iter().all(|pending| pending.fits(kinds.len(), levels.len(), covariates))
            && self.pending.iter().zip(self.pending.iter().skip(1)).all(|(a, b)| a.target < b.target)
    }

    pub(crate) fn steps(&self) -> u32 {
        self.steps
    }

    /// Weights of the experts for the mean.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (ExpertKind, f64)> + '_ {
        let mut weights: Vec<f64> = self.for_mean.weights().collect();
        if let Some(guard) = &self.guard {
            guard.spread(&mut weights);
        }
        self.experts.iter().map(Expert::kind).zip(weights)
    }

    /// The value of interval `index` is known: learns from the forecast made for it and returns that forecast.
    /// `now` is the state before this value.
    pub(crate) fn learn(
        &mut self,
        now: Now<'_>,
        index: i64,
        start_ms: i64,
        fourier: &[f64; FOURIER],
        value: f64,
    ) -> Option<&Direct> {
        while self.pending.front().is_some_and(|pending| pending.target < index) {
            self.pending.pop_front();
        }
        let pending = self.pending.pop_front_if(|pending| pending.target == index)?;
        let unit = 4.0 * self.quantiles.recent_error().max(1e-6 * pending.level);
        self.learn_weights(&pending, value, unit);
        if let Some(guard) = &mut self.guard {
            guard.learn(pending.mixtures[0], &pending.experts, value, self.quantiles.usual_error());
        }
        let phase = now.calendar.phase(start_ms);
        self.learn_stack(&pending, value);
        self.learn_inputs(&pending, value);
        let Direct { median: center, quantiles: said, .. } = &pending.direct;
        let slots = self.quantiles.slots(now.calendar, phase);
        let Pending { level, scales, spread, .. } = &pending;
        let outcome = Outcome { value, center: *center, scales, said, level: *level, slots, spread: *spread };
        self.quantiles.learn(outcome, unit);
        if let Ok(values) = <&[f32; VALUES]>::try_from(pending.values.as_slice()) {
            let values = values.map(f64::from);
            let logs = values.map(|value| Link::Log.apply(value));
            let hour = now.calendar.day_slot(phase, HOURS);
            let inputs = Inputs { values: &values, logs: &logs, fourier, level: pending.level, hour };
            for expert in &mut self.experts {
                expert.learn(inputs, value);
            }
        }
        self.spare = pending;
        Some(&self.spare.direct)
    }

    fn learn_weights(&mut self, pending: &Pending, value: f64, unit: f64) {
        let [median, mean] = pending.mixtures;
        let distance = median - value;
        // A hit within rounding has no side.
        let sign = if distance.abs() <= 1e-9 * pending.level { 0.0 } else { distance.signum() };
        self.for_median.learn(pending.experts.iter().map(|forecast| sign * (forecast - median) / unit));

        let slope = 2.0 * ((mean - value) / unit).clamp(-3.0, 3.0);
        self.for_mean.learn(pending.experts.iter().map(|forecast| slope * (forecast - mean) / unit));
    }

    fn learn_stack(&mut self, pending: &Pending, value: f64) {
        let Some(stack) = &mut self.stack else { return };
        // An error beyond four times the usual one counts as if it were four times.
        let usual = 4.0 * self.quantiles.usual_error().max(1e-6 * pending.level);
        let weight = (usual / (value - pending.mixtures[0]).abs()).min(1.0);
        let own = self.experts.iter().position(|expert| expert.kind() == ExpertKind::Stack);
        let others = pending.experts.iter().enumerate();
        let others = others.map(|(place, &forecast)| if Some(place) == own { f64::NAN } else { forecast });
        stack.learn(others, pending.mixtures[0], value, pending.level, weight);
    }

    fn learn_inputs(&mut self, pending: &Pending, value: f64) {
        let Some(inputs) = &mut self.inputs else { return };
        let (mixture, features) = &pending.exogenous;
        let usual = 4.0 * self.quantiles.usual_error().max(1e-6 * pending.level);
        let weight = (usual / (value - mixture).abs()).min(1.0);
        inputs.learn(as_forecasts(*mixture, pending.level, features), *mixture, value, pending.level, weight);
    }

    /// Brings the experts up to date with what they learned.
    pub(crate) fn refresh(&mut self) {
        for expert in &mut self.experts {
            expert.refresh();
        }
        if let Some(stack) = &mut self.stack {
            stack.solve();
        }
        if let Some(inputs) = &mut self.inputs {
            inputs.solve();
        }
    }

    /// True if there is something for [`Horizon::refit`] to do.
    pub(crate) fn can_refit(&self) -> bool {
        self.forest.is_some() || self.experts.iter().any(Expert::can_refit)
    }

    /// Fits anew the experts that learn from the recorded past.
    pub(crate) fn refit(&mut self, now: Now<'_>) {
        if let Some(forest) = &mut self.forest {
            forest.refit(now.history, now.seasons, now.calendar, self.steps);
        }
        for expert in &mut self.experts {
            expert.refit(now.history, now.seasons, now.calendar, self.steps);
        }
    }

    /// Forecasts from the newest interval into `direct`, and remembers the forecast until its target comes. `view` is
    /// of `now`.
    pub(crate) fn forecast(&mut self, now: Now<'_>, view: &View, direct: &mut Direct) {
        let (history, calendar) = (now.history, now.calendar);
        let target = view.outset.origin() + i64::from(self.steps);
        let level = view.outset.level();
        let phase = calendar.phase(history.series.start_ms(target));
        let values = view.outset.values(history, now.seasons, calendar, target, phase);
        let fourier = calendar.fourier(phase);
        let forest = self.forest.as_ref().filter(|forest| forest.is_fitted()).zip(view.trees.as_ref());
        let trees = forest.map(|(forest, view)| forest.predict(&view.target(history, calendar, target)));
        let origin = Origin {
            history,
            seasons: now.seasons,
            calendar,
            target,
            steps: self.steps,
            inputs: Inputs {
                values: &values.plain,
                logs: &values.logs,
                fourier: &fourier,
                level,
                hour: calendar.day_slot(phase, HOURS),
            },
            trees: trees.unwrap_or_default(),
        };
        while self.pending.len() >= self.steps as usize {
            self.pending.pop_front();
        }
        let mut pending = std::mem::take(&mut self.spare);
        let experts = &mut pending.experts;
        experts.clear();
        experts.extend(self.experts.iter().map(|expert| expert.predict(&origin).unwrap_or(f64::NAN)));
        let grown = history.samples >= STACK_SAMPLES.max(2 * now.seasons.day_steps);
        let exogenous = &mut pending.exogenous;
        exogenous.0 = self.for_median.mix(experts).unwrap_or(0.0);
        exogenous.1.clear();
        exogenous.1.extend_from_slice(history.covariates.features());
        if let (Some(inputs), true) = (&self.inputs, grown) {
            let (mixture, features) = &*exogenous;
            // An input beyond anything seen must not carry the forecast away.
            let most = STACK_REACH * self.quantiles.usual_error();
            let moved = inputs.predict(*mixture, as_forecasts(*mixture, level, features));
            let moved = moved.clamp(mixture - most, mixture + most).clamp(0.0, history.cap());
            set(&self.experts, experts, ExpertKind::Exogenous, moved);
        }
        if let (Some(stack), Some(mixture), true) = (&self.stack, self.for_median.mix(experts), grown) {
            // After a change of level the experts lie far apart, which its weights were not learned for.
            let most = STACK_REACH * self.quantiles.usual_error();
            let stacked = stack.predict(mixture, experts.iter().copied()).clamp(mixture - most, mixture + most);
            let stacked = stacked.clamp(0.0, history.cap());
            set(&self.experts, experts, ExpertKind::Stack, stacked);
        }
        let fallback = history.last_value();
        pending.mixtures = [&self.for_median, &self.for_mean].map(|weights| weights.mix(experts).unwrap_or(fallback));
        let guarded = |mixture| self.guard.as_ref().map_or(mixture, |guard| guard.mix(mixture, experts));
        let [median, mean] = pending.mixtures.map(guarded);
        let spread = self.for_median.spread(experts, median);
        let scales = self.quantiles.scales(median, level, self.quantiles.slots(calendar, phase), spread);
        (direct.steps, direct.mean, direct.median) = (self.steps, mean, median);
        self.quantiles.at(median, &scales, &mut direct.quantiles);
        pending.target = target;
        pending.level = level;
        pending.spread = spread;
        pending.direct.clone_from(direct);
        pending.values.clear();
        pending.values.extend(values.plain.iter().map(|&value| value as f32));
        pending.scales = scales;
        self.pending.push_back(pending);
    }

    /// Most bytes that this horizon ever takes.
    pub(crate) fn memory_bytes(&self) -> usize {
        let inputs = self.inputs.as_ref().map_or(0, Stack::inputs);
        let pending =
            inputs.div_ceil(2) + VALUES.div_ceil(2) + self.experts.len() + SCALES + self.quantiles.levels() + 24;
        let combiners = 2 * 5 * self.experts.len();
        self.experts.iter().map(Expert::memory_bytes).sum::<usize>()
            + self.forest.as_ref().map_or(0, Forest::memory_bytes)
            + self.stack.as_ref().map_or(0, Stack::memory_bytes)
            + self.inputs.as_ref().map_or(0, Stack::memory_bytes)
            + self.guard.as_ref().map_or(0, Guard::memory_bytes)
            + self.quantiles.memory_bytes()
            + (pending * self.steps as usize + combiners) * size_of::<f64>()
    }
}

/// Standardised inputs as [`Stack`] takes them: each as if it forecast the mixture plus its own number of levels.
fn as_forecasts(mixture: f64, level: f64, features: &[f32]) -> impl Iterator<Item = f64> + Clone {
    features.iter().map(move |&feature| mixture + level * f64::from(feature))
}

/// Sets the forecast of one kind of expert, if it is there.
fn set(experts: &[Expert], forecasts: &mut [f64], kind: ExpertKind, forecast: f64) {
    for (_, place) in experts.iter().zip(forecasts).filter(|(expert, _)| expert.kind() == kind) {
        *place = forecast;
    }
}

/// Weight in the guard of the seasonal expert, against the last value's 1: chosen on synthetic series so that the second
/// day of a load with a rhythm is within 5 % of what the seasonal forecast alone would have made of it.
fn seasonal_prior(steps: u32, seasons: Seasons) -> f64 {
    (4.0 * ExpertKind::SeasonalDay.prior(lead_days(steps, seasons)) - 3.0).powf(0.75)
}

/// Weights of the experts before anything is known.
fn prior(steps: u32, kinds: &[ExpertKind], seasons: Seasons) -> Vec<f64> {
    kinds.iter().map(|kind| kind.prior(lead_days(steps, seasons))).collect()
}

fn lead_days(steps: u32, seasons: Seasons) -> f64 {
    f64::from(steps) / seasons.day_steps as f64
}

impl Pending {
    fn fits(&self, experts: usize, levels: usize, covariates: usize) -> bool {
        self.values.len() == VALUES
            && self.experts.len() == experts
            && self.direct.fits(levels)
            && self.values.iter().all(|value| value.is_finite())
            && self.scales.iter().all(|scale| scale.is_finite() && *scale > 0.0)
            && self.spread.is_finite()
            && self.spread >= 0.0
            && !self.experts.iter().any(|forecast| forecast.is_infinite())
            && self.exogenous.0.is_finite()
            && self.exogenous.1.len() == covariates * LAGS
            && self.exogenous.1.iter().all(|feature| feature.is_finite())
            && self.mixtures.iter().all(|mixture| mixture.is_finite())
            && self.level.is_finite()
            && self.level > 0.0
    }
}

impl Direct {
    /// The same into the vector that is there.
    fn clone_from(&mut self, other: &Direct) {
        (self.steps, self.mean, self.median) = (other.steps, other.mean, other.median);
        self.quantiles.clone_from(&other.quantiles);
    }

    pub(crate) fn fits(&self, levels: usize) -> bool {
        let sound = |value: f64| value.is_finite() && value >= 0.0;
        self.quantiles.len() == levels
            && sound(self.mean)
            && sound(self.median)
            && self.quantiles.iter().all(|quantile| sound(*quantile))
            && self.quantiles.is_sorted()
    }
}
