//! What holds of the forecaster whatever the series: order, scale, clock, and no NaN, with all experts at work.
//!
//! That the time of a step is bounded is a property of `src/work.rs`, by counted operations.

use forecaster::{ExpertKind, Forecast, Model, ModelConfig, StepForecast};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const HOUR_MS: i64 = 3_600_000;
const WEEK_MS: i64 = 7 * 24 * HOUR_MS;
/// A Monday, midnight UTC.
const START_MS: i64 = 1_700_438_400_000;
/// Enough for the trees to be fitted at every horizon.
const SAMPLES: usize = 1000;

fn config() -> ModelConfig {
    ModelConfig { horizons: vec![1, 2, 6, 12], ..ModelConfig::new(HOUR_MS as u64) }.with_windows(&[1, 12])
}

/// A day and a week with noise, bursts and gaps (`None`).
fn load(seed: u64) -> Vec<Option<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let hour = |i: usize, rng: &mut ChaCha8Rng| {
        let day = 1.2 - (std::f64::consts::TAU * i as f64 / 24.0).cos();
        let weekend = if i / 24 % 7 >= 5 { 0.5 } else { 1.0 };
        let burst = if rng.random_range(0.0..1.0) < 0.02 { 4.0 } else { 1.0 };
        let value = 100.0 * day * weekend * burst * rng.random_range(0.7..1.3);
        (rng.random_range(0.0..1.0) > 0.01).then_some(value)
    };
    (0..SAMPLES).map(|i| hour(i, &mut rng)).collect()
}

fn run(config: ModelConfig, start_ms: i64, values: &[Option<f64>], scale: f64) -> Forecast {
    let mut model = Model::new(config).expect("the configuration is sound");
    for (i, value) in values.iter().enumerate() {
        if let Some(value) = value {
            model.observe(start_ms + i as i64 * HOUR_MS, scale * value).expect("the sample is sound");
        }
    }
    model.forecast().expect("there are samples")
}

/// Every number of a forecast in the series' unit.
fn numbers(forecast: &Forecast) -> Vec<f64> {
    let of_step = |step: &StepForecast| [vec![step.mean, step.median], step.quantiles.clone()].concat();
    let peaks = forecast.peaks.iter().flat_map(|peak| peak.quantiles.clone());
    forecast.steps.iter().flat_map(of_step).chain(peaks).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// By a power of four, nothing is rounded differently (not even roots): the scaled series gives the scaled forecast
    /// bit for bit.
    #[test]
    fn a_scaled_series_gives_the_scaled_forecast(seed in any::<u64>(), power in -3_i32..10) {
        let (values, scale) = (load(seed), 4.0_f64.powi(power));
        let (plain, scaled) = (run(config(), START_MS, &values, 1.0), run(config(), START_MS, &values, scale));
        let trees = plain.weights.iter().find(|(kind, _)| *kind == ExpertKind::Trees);
        prop_assert!(trees.is_some(), "the trees take part");
        for (plain, scaled) in numbers(&plain).into_iter().zip(numbers(&scaled)) {
            prop_assert_eq!(scale * plain, scaled);
        }
    }

    /// Whole weeks later everything is the same.
    #[test]
    fn a_clock_shifted_by_weeks_changes_nothing(seed in any::<u64>(), weeks in 1_i64..200) {
        let values = load(seed);
        let here = run(config(), START_MS, &values, 1.0);
        let there = run(config(), START_MS + weeks * WEEK_MS, &values, 1.0);
        prop_assert_eq!(numbers(&here), numbers(&there));
        prop_assert_eq!(here.weights, there.weights);
    }

    /// Experts that look at no calendar say the same at any hour and on any day, and are mixed in the same way.
    #[test]
    fn a_shifted_clock_changes_only_what_looks_at_the_calendar(seed in any::<u64>(), hours in 1_i64..10_000) {
        let free = ModelConfig {
            experts: vec![
                ExpertKind::LastValue,
                ExpertKind::EwmaFast,
                ExpertKind::EwmaMedium,
                ExpertKind::EwmaSlow,
                ExpertKind::SeasonalDay,
                ExpertKind::SeasonalWeek,
            ],
            ..config()
        };
        let values = load(seed);
        let here = run(free.clone(), START_MS, &values, 1.0);
        let there = run(free.clone(), START_MS + hours * HOUR_MS, &values, 1.0);
        for steps in free.horizons {
            let [here, there] = [&here, &there].map(|forecast| &forecast.steps[steps as usize - 1]);
            prop_assert_eq!((here.median, here.mean), (there.median, there.mean));
        }
    }

    /// Zeros, dwarfs and giants among the samples, all experts at work: every number is finite, none is negative,
    /// quantiles do not cross, and a longer window's highest value is no lower.
    #[test]
    fn every_forecast_is_sound(
        seed in any::<u64>(),
        wild in prop::collection::vec((0_usize..SAMPLES, prop_oneof![Just(0.0), Just(1e15), 1e-300_f64..1e-200, 0.0_f64..1e9]), 0..60),
        silent in prop::option::of(0_usize..SAMPLES),
    ) {
        let mut values = load(seed);
        for (place, value) in wild {
            values[place] = Some(value);
        }
        if let Some(begin) = silent {
            values[begin..].iter_mut().take(200).for_each(|value| *value = Some(0.0));
        }
        let mut model = Model::new(config()).expect("the configuration is sound");
        for (i, value) in values.iter().enumerate() {
            // A refused value changes nothing and the next one is taken.
            prop_assert!(model.observe(START_MS + i as i64 * HOUR_MS, f64::NAN).is_err());
            let Some(value) = value else { continue };
            model.observe(START_MS + i as i64 * HOUR_MS, *value).expect("the sample is sound");
            let forecast = model.forecast().expect("there are samples");
            prop_assert!(numbers(&forecast).iter().all(|number| number.is_finite() && *number >= 0.0), "at {}", i);
            prop_assert!(forecast.steps.iter().all(|step| step.quantiles.is_sorted()), "at {}", i);
            prop_assert!(forecast.peaks.iter().all(|peak| peak.quantiles.is_sorted()), "at {}", i);
            for pair in forecast.peaks.windows(2) {
                prop_assert!(pair[0].quantiles.iter().zip(&pair[1].quantiles).all(|(short, long)| short <= long));
            }
        }
    }
}
