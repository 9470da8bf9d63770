//! Exogenous inputs help when they tell something and do not hurt when they do not.

use forecaster::model::{MOST_COVARIATES, Rejection};
use forecaster::{Model, ModelConfig};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const HOUR_MS: i64 = 3_600_000;
const DAYS: usize = 70;
const SCORED_FROM: usize = 24 * 14;
const HORIZONS: [usize; 2] = [1, 6];

/// A daily rhythm, plus what an input told a step before, plus noise; the inputs.
fn load(seed: u64) -> (Vec<f64>, Vec<f64>) {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let inputs: Vec<f64> = (0..24 * DAYS).map(|_| rng.random_range(0.0..40.0)).collect();
    let value = |hour: usize| {
        let rhythm = 100.0 - 60.0 * (std::f64::consts::TAU * hour as f64 / 24.0).cos();
        let told = if hour == 0 { 20.0 } else { inputs[hour - 1] };
        rhythm + told + rng.random_range(-10.0..10.0)
    };
    let values = (0..24 * DAYS).map(value).collect();
    (values, inputs)
}

/// Mean absolute error by horizon, with these inputs.
fn errors(values: &[f64], inputs: &[Vec<f64>]) -> [f64; 2] {
    let horizons = HORIZONS.map(|h| h as u32).to_vec();
    let config = ModelConfig { horizons, ..ModelConfig::new(HOUR_MS as u64) }.with_covariates(inputs.len());
    let mut model = Model::new(config).expect("the configuration is sound");
    let (mut sums, mut n) = ([0.0; 2], 0.0);
    for origin in 0..values.len() - 6 {
        let beside: Vec<f64> = inputs.iter().map(|input| input[origin]).collect();
        model.observe_with(origin as i64 * HOUR_MS, values[origin], &beside).expect("the sample is sound");
        let forecast = model.forecast().expect("there is a sample");
        if origin >= SCORED_FROM {
            n += 1.0;
            for (sum, h) in sums.iter_mut().zip(HORIZONS) {
                *sum += (forecast.steps[h - 1].median - values[origin + h]).abs();
            }
        }
    }
    sums.map(|sum| sum / n)
}

fn noise(seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..24 * DAYS).map(|_| rng.random_range(-1e6..1e6)).collect()
}

#[test]
fn an_input_that_tells_the_next_step_helps_it() {
    let (values, input) = load(1);
    let (without, with) = (errors(&values, &[]), errors(&values, &[input, noise(2)]));
    // The input alone moves the load by 10 on average, the rest of the noise by 5.
    assert!(with[0] < 0.8 * without[0], "{with:?} with, {without:?} without");
    assert!(with[1] < 1.01 * without[1], "{with:?} with, {without:?} without");
}

#[test]
fn inputs_that_tell_nothing_change_the_error_by_at_most_one_per_cent() {
    for seed in [3, 4] {
        let (values, _) = load(seed);
        let without: f64 = errors(&values, &[]).iter().sum();
        let with: f64 = errors(&values, &[noise(10 + seed), noise(20 + seed), noise(30 + seed)]).iter().sum();
        assert!((with / without - 1.0).abs() <= 0.01, "seed {seed}: {with} with, {without} without");
    }
}

#[test]
fn broken_and_missing_inputs_are_unknown_and_too_many_are_refused() {
    let config = ModelConfig { horizons: vec![1, 3], ..ModelConfig::new(HOUR_MS as u64) }.with_covariates(2);
    let mut model = Model::new(config.clone()).expect("the configuration is sound");
    let absurd = [f64::NAN, f64::INFINITY, f64::MAX, -0.0, 1e-300];
    for hour in 0..400 {
        let input = absurd[hour % absurd.len()];
        let inputs = [input, hour as f64];
        let sample = if hour % 7 == 0 { &inputs[..1] } else { &inputs[..] };
        model.observe_with(hour as i64 * HOUR_MS, (hour % 24) as f64, sample).expect("the sample is sound");
        for step in model.forecast().expect("there is a sample").steps {
            assert!(step.median.is_finite() && step.quantiles.iter().all(|q| q.is_finite()), "{step:?}");
        }
    }
    let refused = model.observe_with(400 * HOUR_MS, 1.0, &[1.0; 3]);
    assert_eq!(refused, Err(Rejection::Covariates { found: 3, expected: 2 }));
    let state = model.to_json().expect("it can be written");
    let mut restored = Model::from_json(config.clone(), &state).expect("it can be read");
    for model in [&mut model, &mut restored] {
        model.observe_with(400 * HOUR_MS, 5.0, &[3.0, 4.0]).expect("the sample is sound");
    }
    assert_eq!(model.forecast(), restored.forecast());
    assert!(Model::from_json(config.with_covariates(1), &state).is_err(), "another number of inputs");
    assert!(Model::new(ModelConfig::new(60_000).with_covariates(MOST_COVARIATES + 1)).is_err());
}
