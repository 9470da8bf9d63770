//! Real streams at every interval from a second to an hour: gaps, repetitions, late samples and corrections, restarts,
//! a change of the clock and a jump of the level.

use forecaster::{CalendarConfig, Forecast, Model, ModelConfig, Observation, StepForecast};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The night of 31 March 2024 in Berlin: at 01:00 UTC the clock goes from two to three.
const CHANGE_MS: i64 = 1_711_846_800_000;
const INTERVALS_S: [u64; 6] = [1, 10, 60, 300, 900, 3600];

fn config(interval_s: u64) -> ModelConfig {
    ModelConfig {
        horizons: vec![1, 2, 6, 12],
        calendar: CalendarConfig { timezone: "Europe/Berlin".to_owned(), ..CalendarConfig::default() },
        ..ModelConfig::new(1000 * interval_s)
    }
}

fn new(interval_s: u64) -> Model {
    Model::new(config(interval_s)).expect("sound")
}

/// A load that follows the wall clock of Berlin.
fn load(at_ms: i64, random: &mut ChaCha8Rng) -> f64 {
    let offset_h = if at_ms < CHANGE_MS { 1 } else { 2 };
    let hour = (at_ms + offset_h * 3_600_000).rem_euclid(86_400_000) as f64 / 3_600_000.0;
    let noise: f64 = (0..12).map(|_| random.random_range(0.0..1.0)).sum::<f64>() - 6.0;
    (200.0 + 120.0 * ((hour - 6.0) / 24.0 * std::f64::consts::TAU).sin() + 8.0 * noise).max(0.0)
}

fn assert_sound(forecast: &Forecast, what: &str) {
    assert_eq!(forecast.steps.len(), 12, "{what}");
    for step in &forecast.steps {
        let values = step.quantiles.iter().chain([&step.mean, &step.median]);
        assert!(values.into_iter().all(|value| value.is_finite() && *value >= 0.0), "{what}: {step:?}");
        assert!(step.quantiles.is_sorted(), "{what}: {step:?}");
    }
}

/// Samples that fit the interval: enough to see a week of hours, and the change of the clock of them all.
fn samples(interval_s: u64) -> i64 {
    if interval_s >= 900 { 1500 } else { 2400 }
}

fn steps(model: &Model) -> Vec<StepForecast> {
    model.forecast().expect("it has samples").steps
}

/// Gives both the same; they must answer the same.
fn give(twins: &mut [Model; 2], start_ms: i64, value: f64) -> Observation {
    let answers = twins.each_mut().map(|model| model.observe(start_ms, value).expect("sound"));
    assert_eq!(answers[0], answers[1]);
    answers[0]
}

#[test]
fn disorder_restarts_and_a_change_of_the_clock_at_every_interval() {
    for interval_s in INTERVALS_S {
        let mut random = ChaCha8Rng::seed_from_u64(interval_s);
        let interval_ms = 1000 * interval_s as i64;
        let n = samples(interval_s);
        let first_ms = CHANGE_MS - n / 2 * interval_ms;
        // The second of them is written down and read back now and then.
        let mut twins = [new(interval_s), new(interval_s)];
        let mut late: Vec<(i64, f64)> = Vec::new();
        let mut newest_ms = i64::MIN;
        let mut seen = [0_usize; 4];
        for i in 0..n {
            let what = format!("{interval_s} s, sample {i}");
            let start_ms = first_ms + i * interval_ms;
            let value = load(start_ms, &mut random);
            let fate = random.random_range(0.0..1.0);
            if fate < 0.02 && i > 0 {
                // It comes later, or never.
                if fate < 0.012 {
                    late.push((start_ms, value));
                }
                continue;
            }
            let gap = newest_ms > i64::MIN && start_ms - newest_ms > interval_ms;
            let observation = give(&mut twins, start_ms, value);
            assert!(observation.is_new() && gap == matches!(observation, Observation::AfterGap { .. }), "{what}");
            newest_ms = start_ms;
            if fate > 0.98 {
                let before = steps(&twins[0]);
                assert_eq!(give(&mut twins, start_ms, value), Observation::Duplicate, "{what}");
                assert_eq!(steps(&twins[0]), before, "{what}");
                seen[0] += 1;
            }
            if (0.97..0.98).contains(&fate) {
                let before = steps(&twins[0]);
                assert_eq!(give(&mut twins, start_ms, value + 1.0), Observation::Corrected, "{what}");
                assert_eq!(steps(&twins[0]), before, "{what}");
                seen[1] += 1;
            }
            if (0.6..0.7).contains(&fate) {
                for (start_ms, value) in late.drain(..) {
                    let filled = give(&mut twins, start_ms, value);
                    let recent = newest_ms - start_ms < 64 * interval_ms;
                    let expected = if recent { Observation::Filled } else { Observation::TooOld };
                    assert_eq!(filled, expected, "{what}");
                    seen[2] += 1;
                }
            }
            // Of the first, refits are done between samples; of the second with the next sample, or after a restart.
            twins[0].maintain();
            if fate < 0.03 {
                let state = twins[1].to_json().expect("it can be written").to_string();
                let state = serde_json::from_str(&state).expect("it is JSON");
                twins[1] = Model::from_json(config(interval_s), &state).expect("it can be read");
                seen[3] += 1;
            }
            if i % 7 == 0 || i + 1 == n {
                let forecasts = twins.each_ref().map(|model| model.forecast().expect("it has samples"));
                assert_sound(&forecasts[0], &what);
                assert_eq!(forecasts[0], forecasts[1], "{what}");
            }
        }
        assert!(seen.iter().all(|&times| times > 3), "{interval_s} s: {seen:?}");
    }
}

#[test]
fn a_jump_of_the_level_is_flagged_and_followed_at_every_interval() {
    for interval_s in INTERVALS_S {
        let mut random = ChaCha8Rng::seed_from_u64(interval_s);
        let interval_ms = 1000 * interval_s as i64;
        let n = samples(interval_s);
        let first_ms = CHANGE_MS - n / 2 * interval_ms;
        let jump = n * 3 / 4;
        let mut model = new(interval_s);
        let (mut false_alarm, mut flagged) = (0, None);
        let (mut error, mut stale) = (0.0, 0.0);
        for i in 0..jump + 150 {
            let start_ms = first_ms + i * interval_ms;
            let usual = load(start_ms, &mut random);
            let value = if i >= jump { 3.0 * usual } else { usual };
            if i >= jump + 100 {
                error += (model.forecast().expect("it has samples").steps[0].median - value).abs();
                stale += (value - usual).abs();
            }
            model.observe(start_ms, value).expect("sound");
            model.maintain();
            // While it is cold the errors are not what they will be.
            if i < jump && !model.is_cold() && model.is_shifted() {
                false_alarm += 1;
            }
            if i >= jump && flagged.is_none() && model.is_shifted() {
                flagged = Some(i - jump);
            }
        }
        assert!(flagged.is_some_and(|steps| steps <= 20), "{interval_s} s: flagged after {flagged:?} steps");
        assert!(false_alarm * 4 < jump, "{interval_s} s: {false_alarm} of {jump} steps were flagged before");
        assert!(error < 0.25 * stale, "{interval_s} s: error {error:.0}, of a model that stays behind {stale:.0}");
    }
}

/// The same load in Berlin's time and in UTC's: in the two days after the change the one that knows the clock is better.
#[test]
fn the_wall_clock_s_rhythm_is_kept_over_the_change() {
    let error = |timezone: &str| {
        let mut random = ChaCha8Rng::seed_from_u64(7);
        let calendar = CalendarConfig { timezone: timezone.to_owned(), ..CalendarConfig::default() };
        let mut model = Model::new(ModelConfig { calendar, ..config(3600) }).expect("sound");
        let mut sum = 0.0;
        for hour in -24 * 28..24 * 2 {
            let at_ms = CHANGE_MS + hour * 3_600_000;
            // A rush hour, which a smooth curve is not.
            let offset_h = if at_ms < CHANGE_MS { 1 } else { 2 };
            let wall = (at_ms / 3_600_000 + offset_h).rem_euclid(24);
            let value = load(at_ms, &mut random) + if wall == 8 { 600.0 } else { 0.0 };
            if hour >= 0 {
                sum += (model.forecast().expect("it has samples").steps[0].median - value).abs();
            }
            model.observe(at_ms, value).expect("sound");
            model.maintain();
        }
        sum
    };
    let (berlin, utc) = (error("Europe/Berlin"), error("UTC"));
    assert!(berlin < 0.7 * utc, "{berlin:.0} with the clock, {utc:.0} without");
}
