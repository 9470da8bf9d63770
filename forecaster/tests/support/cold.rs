//! Errors of the first two days: the model's and those of forecasts that learn nothing.

use forecaster::{Model, ModelConfig};

const HORIZONS: [usize; 4] = [1, 2, 6, 12];
/// A Monday, midnight UTC.
const START_MS: i64 = 1_700_438_400_000;

/// Mean absolute errors over the first two days.
pub(crate) struct Errors {
    pub(crate) ours: f64,
    /// Last value, EWMA of .5, .2 and .05, the value a day before.
    pub(crate) naive: [f64; 5],
}

impl Errors {
    /// Ours to the best of the others.
    pub(crate) fn ratio(&self) -> f64 {
        self.ours / self.naive.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// `values` may hold NaN where nothing is known.
pub(crate) fn first_days(interval_ms: u64, values: &[f64]) -> Errors {
    let config = ModelConfig { horizons: HORIZONS.map(|h| h as u32).to_vec(), ..ModelConfig::new(interval_ms) };
    let mut model = Model::new(config).expect("the configuration is sound");
    let day = (86_400_000 / interval_ms) as usize;
    let values = &values[..values.len().min(2 * day)];
    let (mut ours, mut naive, mut scored) = (0.0, [0.0; 5], 0.0);
    let mut ewma = [f64::NAN; 3];
    for (origin, &value) in values.iter().enumerate() {
        if value.is_nan() {
            continue;
        }
        for (mean, rate) in ewma.iter_mut().zip([0.5, 0.2, 0.05]) {
            *mean = if mean.is_nan() { value } else { *mean + rate * (value - *mean) };
        }
        model.observe(START_MS + (origin as u64 * interval_ms) as i64, value).expect("the sample is sound");
        let Some(forecast) = model.forecast() else { continue };
        model.maintain();
        for h in HORIZONS {
            let Some(&target) = values.get(origin + h).filter(|target| !target.is_nan()) else { continue };
            let before = (origin + h).checked_sub(day).map(|index| values[index]).filter(|value| !value.is_nan());
            let guesses = [value, ewma[0], ewma[1], ewma[2], before.unwrap_or(value)];
            ours += (forecast.steps[h - 1].median - target).abs();
            naive.iter_mut().zip(guesses).for_each(|(sum, guess)| *sum += (guess - target).abs());
            scored += 1.0;
        }
    }
    Errors { ours: ours / scored, naive: naive.map(|sum| sum / scored) }
}
