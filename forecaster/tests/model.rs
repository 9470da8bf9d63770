//! What the model promises whatever the series: order, scale, memory, and an exact return from its written state.

use forecaster::model::StateError;
use forecaster::{CalendarConfig, DAY_MS, ExpertKind, Forecast, Model, ModelConfig, Observation};
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

const HOUR_MS: i64 = 3_600_000;
const START_MS: i64 = 1_700_000_400_000 / HOUR_MS * HOUR_MS;

fn hourly() -> ModelConfig {
    ModelConfig { horizons: vec![1, 2, 6, 12], windows: vec![1, 4, 12], ..ModelConfig::new(HOUR_MS as u64) }
}

fn model(config: ModelConfig) -> Model {
    Model::new(config).expect("the configuration is sound")
}

/// A daily rhythm with a quieter weekend and noise that grows with the level.
fn load(seed: u64, n: usize) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..n)
        .map(|i| {
            let hour = i as f64;
            let day = 1.0 + 0.8 * (std::f64::consts::TAU * hour / 24.0).sin();
            let weekend = if (i / 24) % 7 >= 5 { 0.6 } else { 1.0 };
            100.0 * day * weekend * rng.random_range(0.85..1.15) + rng.random_range(0.0..2.0)
        })
        .collect()
}

fn feed(model: &mut Model, from: usize, values: &[f64]) {
    for (i, value) in values.iter().enumerate() {
        let start_ms = START_MS + (from + i) as i64 * HOUR_MS;
        let seen = model.observe(start_ms, *value).expect("the sample is sound");
        assert!(seen.is_new());
    }
}

fn forecast(model: &Model) -> Forecast {
    model.forecast().expect("there is a sample")
}

/// Everything a forecast promises on its own.
fn assert_sound(model: &Model) {
    let forecast = forecast(model);
    let config = model.config();
    assert_eq!(forecast.steps.len(), *config.horizons.last().expect("not empty") as usize);
    for (i, step) in forecast.steps.iter().enumerate() {
        assert_eq!(step.step as usize, i + 1);
        assert_eq!(step.quantiles.len(), config.levels.len());
        for value in step.quantiles.iter().chain([&step.mean, &step.median]) {
            assert!(value.is_finite() && *value >= 0.0, "{step:?}");
        }
        assert!(step.quantiles.is_sorted(), "{step:?}");
    }
    assert_eq!(forecast.peaks.iter().map(|peak| peak.steps).collect::<Vec<_>>(), config.windows);
    for peak in &forecast.peaks {
        assert!(peak.quantiles.len() == config.levels.len() && peak.quantiles.is_sorted(), "{peak:?}");
        assert!(peak.quantiles.iter().all(|quantile| quantile.is_finite() && *quantile >= 0.0), "{peak:?}");
        assert!(peak.coverage.iter().all(|share| (0.0..=1.0).contains(share)), "{peak:?}");
    }
    for pair in forecast.peaks.windows(2) {
        let rises = pair[0].quantiles.iter().zip(&pair[1].quantiles).all(|(shorter, longer)| shorter <= longer);
        assert!(rises, "the highest of more intervals is no lower: {pair:?}");
    }
    let weights: f64 = forecast.weights.iter().map(|(_, weight)| weight).sum();
    assert!((weights - 1.0).abs() < 1e-9 && forecast.weights.iter().all(|(_, weight)| *weight >= 0.0));
    let error = model.recent_error();
    assert!(error.mae.into_iter().chain(error.mase).chain(error.coverage).all(f64::is_finite));
}

/// Forecasts of both, compared bit for bit.
fn assert_identical(a: &Model, b: &Model) {
    let bits = |model: &Model| -> Vec<u64> {
        let forecast = forecast(model);
        let steps =
            forecast.steps.iter().flat_map(|step| [step.mean, step.median].into_iter().chain(step.quantiles.clone()));
        let peaks = forecast.peaks.iter().flat_map(|peak| peak.quantiles.clone());
        steps.chain(peaks).chain(forecast.weights.iter().map(|(_, weight)| *weight)).map(f64::to_bits).collect()
    };
    assert_eq!(bits(a), bits(b));
    assert_eq!(forecast(a), forecast(b));
    assert_eq!(a.recent_error(), b.recent_error());
}

#[test]
fn a_restored_model_goes_on_bit_for_bit() {
    for (known, config) in
        [(0, hourly()), (1, hourly()), (30, hourly()), (500, hourly()), (400, hourly().with_reach(60))]
    {
        let values = load(1, known + 220);
        let mut undisturbed = model(config.clone());
        feed(&mut undisturbed, 0, &values[..known]);
        let text = undisturbed.to_json().expect("it can be written").to_string();
        let state = serde_json::from_str(&text).expect("it is JSON");
        let mut restored = Model::from_json(config, &state).expect("it can be read");
        assert_eq!(restored.last_start_ms(), undisturbed.last_start_ms());
        assert_eq!(restored.samples(), known as u64);
        for step in known..known + 200 {
            // Some intervals never come.
            if step % 37 != 5 {
                feed(&mut undisturbed, step, &values[step..=step]);
                feed(&mut restored, step, &values[step..=step]);
                assert_identical(&undisturbed, &restored);
            }
        }
        assert_eq!(undisturbed.to_json().ok(), restored.to_json().ok());
    }
}

#[test]
fn a_restored_model_of_one_second_data_goes_on_too() {
    let config = ModelConfig { horizons: vec![1, 5], ..ModelConfig::new(1000) };
    let mut undisturbed = model(config.clone());
    let values = load(2, 900);
    let observe = |model: &mut Model, i: usize| model.observe(START_MS + i as i64 * 1000, values[i]);
    for i in 0..700 {
        observe(&mut undisturbed, i).expect("sound");
    }
    let state = undisturbed.to_json().expect("it can be written");
    let mut restored = Model::from_json(config, &state).expect("it can be read");
    for i in 700..900 {
        observe(&mut undisturbed, i).expect("sound");
        observe(&mut restored, i).expect("sound");
        assert_identical(&undisturbed, &restored);
    }
}

#[test]
fn a_state_for_something_else_is_refused() {
    let mut written = model(hourly());
    feed(&mut written, 0, &load(1, 50));
    let state = written.to_json().expect("it can be written");
    let other = ModelConfig { levels: vec![0.5], ..hourly() };
    assert!(matches!(Model::from_json(other, &state), Err(StateError::OtherConfig)));
    let mut older = state.clone();
    older["version"] = 0.into();
    assert!(matches!(Model::from_json(hourly(), &older), Err(StateError::OtherVersion { found: 0, .. })));
    assert!(Model::from_json(hourly(), &serde_json::Value::Null).is_err());
    assert!(Model::from_json(hourly(), &state).is_ok());
}

/// Every value of the state is replaced in turn: the reader refuses, or gives a model that still makes sense.
#[test]
fn a_damaged_state_neither_panics_nor_poisons() {
    let config =
        ModelConfig { horizons: vec![1, 3], windows: vec![1, 3], experts: ExpertKind::DEFAULT.to_vec(), ..hourly() };
    let mut written = model(config.clone());
    feed(&mut written, 0, &load(3, 60));
    let state = written.to_json().expect("it can be written");
    let mut places = Vec::new();
    walk(&state, String::new(), &mut places);
    assert!(places.len() > 200, "{}", places.len());
    let mut refused = 0;
    for place in &places {
        for replacement in [
            serde_json::json!(null),
            serde_json::json!(-7),
            serde_json::json!(1e300),
            serde_json::json!(""),
            serde_json::json!("AAAAAAAA8H8="),
            serde_json::json!([]),
        ] {
            let mut damaged = state.clone();
            *damaged.pointer_mut(place).expect("the place exists") = replacement;
            match Model::from_json(config.clone(), &damaged) {
                Err(_) => refused += 1,
                Ok(mut restored) => {
                    for i in 0..8 {
                        let start_ms = START_MS + (60 + i) * HOUR_MS;
                        if restored.observe(start_ms, 50.0).is_ok_and(Observation::is_new) {
                            assert_sound(&restored);
                        }
                    }
                }
            }
        }
    }
    assert!(refused > 4 * places.len(), "{refused} of {} damages were noticed", 6 * places.len());
}

fn walk(value: &serde_json::Value, at: String, places: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().for_each(|(key, inner)| walk(inner, format!("{at}/{key}"), places))
        }
        serde_json::Value::Array(items) => {
            items.iter().enumerate().for_each(|(i, inner)| walk(inner, format!("{at}/{i}"), places));
        }
        _ => places.push(at),
    }
}

#[test]
fn disorder_changes_the_past_only() {
    let mut model = model(hourly());
    let values = load(4, 100);
    feed(&mut model, 0, &values);
    let before = forecast(&model);
    let at = |i: i64| START_MS + i * HOUR_MS;
    assert_eq!(model.observe(at(99), values[99]), Ok(Observation::Duplicate));
    assert_eq!(model.observe(at(98), 7.0), Ok(Observation::Corrected));
    assert_eq!(model.observe(at(98), 7.0), Ok(Observation::Duplicate));
    assert_eq!(model.observe(at(3), 7.0), Ok(Observation::TooOld));
    assert_eq!(model.observe(at(-50), 7.0), Ok(Observation::TooOld));
    assert!(model.observe(at(100) + 1, 7.0).is_err(), "off the grid");
    assert_eq!(forecast(&model), before, "the origin did not move");
    assert_eq!(model.observe(at(103), 7.0), Ok(Observation::AfterGap { missing: 3 }));
    assert_eq!(model.observe(at(101), 5.0), Ok(Observation::Filled));
    assert_eq!(model.samples(), 101);
    assert_sound(&model);
}

#[test]
fn a_gap_longer_than_the_memory_is_survived() {
    let mut model = model(hourly());
    feed(&mut model, 0, &load(5, 400));
    assert_eq!(model.observe(START_MS + 400_000 * HOUR_MS, 80.0), Ok(Observation::AfterGap { missing: 399_600 }));
    assert_sound(&model);
    let median = forecast(&model).steps[0].median;
    assert!((1.0..400.0).contains(&median), "{median} is no load that was ever seen");
}

#[test]
fn silence_is_forecast_as_silence() {
    let mut model = model(hourly());
    feed(&mut model, 0, &[0.0; 300]);
    assert_sound(&model);
    let last = &forecast(&model).steps[11];
    assert!(last.quantiles[4] < 1e-3, "{last:?}");
    // And a first burst after it is taken as it is.
    feed(&mut model, 300, &[50.0, 50.0, 50.0]);
    assert_sound(&model);
    assert!(forecast(&model).steps[0].quantiles[4] > 10.0, "{:?}", forecast(&model).steps[0]);
}

#[test]
fn a_constant_load_is_forecast_exactly() {
    let mut model = model(hourly());
    feed(&mut model, 0, &[42.0; 600]);
    for step in forecast(&model).steps {
        assert!((step.mean - 42.0).abs() < 0.1 && (step.quantiles[4] - 42.0).abs() < 1.0, "{step:?}");
    }
}

#[test]
fn a_change_of_level_is_followed_within_hours() {
    let mut model = model(hourly());
    let values = load(6, 700);
    feed(&mut model, 0, &values[..600]);
    let tripled: Vec<f64> = values[600..624].iter().map(|value| 3.0 * value).collect();
    feed(&mut model, 600, &tripled);
    let expected = 3.0 * values[624];
    let median = forecast(&model).steps[0].median;
    // The hour before is 46 % off, the day before 67 %.
    assert!((median / expected - 1.0).abs() < 0.42, "{median} against {expected}");
}

#[test]
fn the_rhythm_is_learned() {
    let mut model = model(hourly());
    let values = load(7, 24 * 28);
    let (mut ours, mut naive, mut last) = (0.0, 0.0, 0.0);
    for i in 0..values.len() - 12 {
        feed(&mut model, i, &values[i..=i]);
        if i > 24 * 14 {
            ours += (forecast(&model).steps[11].median - values[i + 12]).abs();
            naive += (values[i + 12 - 168] - values[i + 12]).abs();
            last += (values[i] - values[i + 12]).abs();
        }
    }
    // After two weeks the made-up week, exact but for its noise, is still hard to beat; on recorded series the ensemble
    // is well below it (docs/benchmarks/forecast.md).
    assert!(ours < 1.3 * naive && ours < 0.3 * last, "{ours} against week {naive} and last {last}");
    assert!(!model.is_cold());
    let error = model.recent_error();
    assert!(error.mase.is_some_and(|mase| mase < 1.0), "{error:?}");
}

#[test]
fn quantiles_cover_what_they_say() {
    let mut model = model(hourly());
    let values = load(8, 24 * 200);
    let mut below = [0_usize; 5];
    let mut scored = 0;
    for i in 0..values.len() - 1 {
        feed(&mut model, i, &values[i..=i]);
        if i > 24 * 20 {
            scored += 1;
            for (below, quantile) in below.iter_mut().zip(&forecast(&model).steps[0].quantiles) {
                *below += usize::from(values[i + 1] <= *quantile);
            }
        }
    }
    for (below, level) in below.iter().zip(ModelConfig::LEVELS) {
        let share = *below as f64 / f64::from(scored);
        assert!((share - level).abs() < 0.012, "coverage at {level} is {share}");
    }
}

#[test]
fn the_calendar_is_all_that_a_shifted_clock_changes() {
    let values = load(9, 400);
    let run = |shift_ms: i64| {
        let mut model = model(hourly());
        for (i, value) in values.iter().enumerate() {
            model.observe(START_MS + shift_ms + i as i64 * HOUR_MS, *value).expect("sound");
        }
        forecast(&model).steps
    };
    let weeks = 5 * 7 * DAY_MS as i64;
    assert_eq!(run(0), run(weeks));
    let hours = run(5 * HOUR_MS);
    for (a, b) in run(0).iter().zip(&hours) {
        assert!((a.median - b.median).abs() < 0.25 * a.median.max(10.0), "{a:?} {b:?}");
    }
}

#[test]
fn memory_is_bounded_and_small() {
    // One minute, the default horizons and levels.
    let minute = model(ModelConfig::new(60_000));
    assert!(minute.memory_bytes() <= 512 * 1024, "{}", minute.memory_bytes());
    let second = model(ModelConfig::new(1000));
    assert!(second.memory_bytes() <= 512 * 1024, "{}", second.memory_bytes());

    // A small day, so that rings and profiles fill within the test.
    let calendar = CalendarConfig::compressed(60.0, 60_000);
    let mut model = model(ModelConfig { calendar, ..ModelConfig::new(60_000) });
    let observe = |model: &mut Model, range: std::ops::Range<i64>| {
        for i in range {
            model.observe(START_MS + i * 60_000, (i % 17) as f64).expect("sound");
        }
        model.to_json().expect("it can be written").to_string().len()
    };
    // Long enough for the first trees too.
    let full = observe(&mut model, 0..900);
    let later = observe(&mut model, 900..1200);
    assert!(later < full + full / 20, "the state grew from {full} to {later} bytes");
    assert!(later < 2 * model.memory_bytes() + 20_000, "{later} against {}", model.memory_bytes());
}

#[test]
fn a_minute_series_fits_a_kafka_message() {
    let mut model = model(ModelConfig::new(60_000));
    for i in 0..70 {
        model.observe(START_MS + i * 60_000, 1e5 + i as f64 / 7.0).expect("sound");
    }
    let before = model.to_json().expect("it can be written").to_string().len();
    // What the rings still lack, in base 64.
    let ring = 8 * 7 * 1440 * 4 / 3;
    assert!(before + ring < 900_000, "{before} + {ring} bytes");
}

#[test]
fn bad_configurations_are_refused_with_every_problem() {
    let config = ModelConfig { levels: vec![0.9, 0.5], horizons: vec![], experts: vec![], ..ModelConfig::new(7000) };
    let error = Model::new(config).map(|_| ()).expect_err("it has problems").to_string();
    for word in ["levels", "horizons", "experts", "whole numbers of intervals"] {
        assert!(error.contains(word), "{error} should name {word}");
    }
}

/// Samples of every kind: sound, absurd, late, early, off the grid.
fn sample() -> impl Strategy<Value = (i64, f64)> {
    let start = prop_oneof![
        20 => 0_i64..200,
        1 => -5_i64..0,
        1 => 100_000_i64..10_000_000,
    ];
    let value = prop_oneof![
        10 => 0.0_f64..200.0,
        2 => Just(0.0),
        1 => Just(-0.0),
        1 => 1e-300_f64..1e-200,
        1 => 1e9_f64..1e15,
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY), Just(-3.0), Just(f64::MAX)],
    ];
    (start.prop_map(|hour| START_MS + hour * HOUR_MS), value)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_goes_in_makes_a_bad_forecast(
        orderly in prop::collection::vec(prop_oneof![5 => 0.0_f64..100.0, 1 => Just(0.0), 1 => 1e6_f64..1e12], 0..120),
        wild in prop::collection::vec(sample(), 0..80),
        instants in prop::collection::vec(any::<i64>(), 0..4),
    ) {
        let mut model = model(hourly());
        for (i, value) in orderly.iter().enumerate() {
            model.observe(START_MS + i as i64 * HOUR_MS, *value).expect("sound");
            assert_sound(&model);
        }
        for (start_ms, value) in wild.into_iter().chain(instants.into_iter().map(|instant| (instant, 1.0))) {
            let was = model.forecast();
            match model.observe(start_ms, value) {
                Ok(_) => assert_sound(&model),
                Err(_) => prop_assert_eq!(model.forecast(), was, "a refused sample changes nothing"),
            }
        }
        let state = model.to_json().expect("it can be written");
        prop_assert!(Model::from_json(hourly(), &state).is_ok(), "its own state is never refused");
    }

    /// By a power of four `properties.rs` asks for it bit for bit, trees included. Another scale rounds each sample, which
    /// trees, whose thresholds lie on samples, may answer with another leaf: they have a bound of their own.
    #[test]
    fn scaling_the_series_scales_the_forecast(seed in 0_u64..1000, scale in 0.01_f64..1000.0) {
        let whole = hourly();
        let smooth = ModelConfig {
            experts: whole.experts.iter().copied().filter(|kind| !trees(*kind)).collect(),
            ..hourly()
        };
        prop_assert!(smooth.experts.len() + 2 == whole.experts.len(), "two experts are trees");
        prop_assert!(scaling_error(&smooth, seed, scale) <= 1e-3);
        prop_assert!(scaling_error(&whole, seed, scale) <= 3e-2);
    }
}

fn trees(kind: ExpertKind) -> bool {
    matches!(kind, ExpertKind::Trees | ExpertKind::TreesTypical)
}

/// Largest distance between a scaled forecast and that of the scaled series, as a share of it.
fn scaling_error(config: &ModelConfig, seed: u64, scale: f64) -> f64 {
    let values = load(seed, 300);
    let run = |scale: f64| {
        let mut model = model(config.clone());
        feed(&mut model, 0, &values.iter().map(|value| scale * value).collect::<Vec<_>>());
        forecast(&model).steps
    };
    let mut worst = 0.0_f64;
    for (plain, scaled) in run(1.0).iter().zip(run(scale)) {
        let pairs = plain.quantiles.iter().zip(&scaled.quantiles);
        for (a, b) in pairs.chain([(&plain.mean, &scaled.mean), (&plain.median, &scaled.median)]) {
            worst = worst.max((a * scale - b).abs() / (a * scale).max(scale));
        }
    }
    worst
}
