//! Series beside one another, and refits that are under way when something happens.

use super::*;
use proptest::prelude::*;
use runtime::config::ConfigDuration;

const START_MS: i64 = 1_700_000_000_000;

/// A day of 24 steps: a refit falls due every 33.
fn config() -> Config {
    Config {
        horizon_steps: 12,
        day: ConfigDuration::from_secs(24),
        week: ConfigDuration::from_secs(7 * 24),
        ..Config::default()
    }
}

fn portfolio() -> Portfolio {
    Portfolio::new(Config { max_services: 5000, ..config() })
}

fn metrics() -> Metrics {
    Metrics::register(&runtime::metrics::new_registry())
}

fn partition() -> TopicPartition {
    TopicPartition::new("workload.observed", 0)
}

fn observed(service: usize, second: i64) -> WorkloadObserved {
    let wave = 50.0 + 40.0 * ((second + service as i64) as f64 / 24.0 * std::f64::consts::TAU).sin();
    let noise = (second * 7919 + service as i64 * 31) % 13;
    WorkloadObserved {
        schema: Default::default(),
        service: format!("service-{service}"),
        start_ms: START_MS + second * 1000,
        interval_ms: 1000,
        arrivals: wave as u64 + noise as u64,
        direct_arrivals: 0,
        simulated: false,
    }
}

fn take(portfolio: &mut Portfolio, service: usize, second: i64, offset: i64, metrics: &Metrics) -> WorkloadForecast {
    let observed = observed(service, second);
    let now_ms = observed.start_ms + 1000;
    match portfolio.take(&partition(), offset, &observed, now_ms, metrics) {
        Taken::Forecast(forecast) => *forecast,
        other => panic!("second {second} of {service} gave {other:?}"),
    }
}

/// What one series alone forecasts, refits done between samples.
fn alone(service: usize, seconds: i64, metrics: &Metrics) -> Vec<WorkloadForecast> {
    let mut portfolio = portfolio();
    let forecast = |second| {
        let forecast = take(&mut portfolio, service, second, second, metrics);
        if let Some(upkeep) = portfolio.upkeep(&forecast.service) {
            portfolio.upkept(upkeep.done());
        }
        forecast
    };
    (0..seconds).map(forecast).collect()
}

#[test]
fn three_thousand_series_do_not_depend_on_one_another_or_on_their_order() {
    const SERIES: usize = 3000;
    const SECONDS: i64 = 6;
    let metrics = metrics();
    let run = |order: &dyn Fn(usize, i64) -> usize| {
        let mut portfolio = portfolio();
        let mut offset = 0;
        let mut newest = BTreeMap::new();
        for second in 0..SECONDS {
            for place in 0..SERIES {
                let service = order(place, second);
                newest.insert(service, take(&mut portfolio, service, second, offset, &metrics));
                offset += 1;
            }
        }
        assert_eq!(portfolio.len(), SERIES);
        newest
    };
    let ascending = run(&|place, _| place);
    let shuffled = run(&|place, second| (place * 1009 + second as usize * 77) % SERIES);
    assert_eq!(ascending, shuffled);
    for service in (0..SERIES).step_by(211) {
        assert_eq!(ascending.get(&service), alone(service, SECONDS, &metrics).last());
    }
}

/// When the refit that a sample made due is ready, counted in what happens after the sample.
#[derive(Debug, Clone, Copy)]
enum Refit {
    /// Before anything else: its result is taken.
    Ready,
    /// After the next sample: too late, and left.
    Late,
    /// Under way when the process dies; the state was written before it was ready.
    Lost,
    /// Ready, and then the state is written and the process dies.
    Saved,
}

fn refit() -> impl Strategy<Value = Refit> {
    prop_oneof![Just(Refit::Ready), Just(Refit::Late), Just(Refit::Lost), Just(Refit::Saved)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// The result of a refit enters between the sample that made it due and the next, whoever made it and when: a copy
    /// that is ready in time, the model itself with the next sample, or the model that was restored from a state
    /// written while the refit was under way.
    #[test]
    fn when_a_refit_is_ready_changes_no_forecast(fates in prop::collection::vec(refit(), 1..12)) {
        const SECONDS: i64 = 260;
        let metrics = metrics();
        let expected = alone(1, SECONDS, &metrics);
        let mut portfolio = portfolio();
        let mut fates = fates.into_iter().cycle();
        let (mut late, mut happened) = (None, 0);
        for second in 0..SECONDS {
            let forecast = take(&mut portfolio, 1, second, second, &metrics);
            prop_assert_eq!(&forecast, &expected[second as usize], "second {}", second);
            if let Some(upkeep) = late.take() {
                portfolio.upkept(Upkeep::done(upkeep));
            }
            let Some(upkeep) = portfolio.upkeep("service-1") else { continue };
            happened += 1;
            let fate = fates.next().unwrap_or(Refit::Ready);
            match fate {
                Refit::Late => late = Some(upkeep),
                Refit::Ready => portfolio.upkept(upkeep.done()),
                Refit::Lost | Refit::Saved => {
                    if matches!(fate, Refit::Saved) {
                        portfolio.upkept(upkeep.done());
                    }
                    // As the compacted topic keeps it: bytes.
                    let state = portfolio.state("service-1").expect("it has one").expect("it can be written");
                    let bytes = serde_json::to_vec(&state).expect("it is JSON");
                    let state: ForecasterState = serde_json::from_slice(&bytes).expect("it is a state");
                    portfolio = self::portfolio();
                    portfolio.restore(BTreeMap::from([("service-1".to_owned(), state)]));
                }
            }
        }
        prop_assert!(happened > 4, "{happened} refits");
    }
}
