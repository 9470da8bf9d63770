//! The service over in-process topics: what it publishes, what it keeps, and that a restart changes nothing.

use forecaster::Config;
use runtime::config::ConfigDuration;
use runtime::memory::MemoryBus;
use runtime::{Bus, Context, ManualClock, OutRecord, Readiness, TopicPartition, metrics};
use schemas::Message;
use schemas::state::ForecasterState;
use schemas::topics::{FORECASTER_STATE, Topics, WORKLOAD_FORECAST, WORKLOAD_OBSERVED};
use schemas::workload::{WorkloadForecast, WorkloadObserved};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const START_MS: i64 = 1_700_000_000_000;
const INTERVAL_MS: u64 = 1000;
const GROUP: &str = "barista.forecaster";
/// Longer than anything here takes; a test that hangs says so.
const PATIENCE: Duration = Duration::from_secs(60);

/// Forecasts by service and origin.
type Forecasts = BTreeMap<(String, i64), WorkloadForecast>;

struct World {
    bus: MemoryBus,
    clock: Arc<ManualClock>,
    context: Context,
}

struct Running {
    token: CancellationToken,
    task: JoinHandle<Result<(), forecaster::Error>>,
}

impl World {
    async fn new() -> Self {
        let world = World::without_topics();
        world.bus.create_topics(&Topics::all([])).await.expect("topics");
        world
    }

    fn without_topics() -> Self {
        let clock = Arc::new(ManualClock::new(START_MS));
        let bus = MemoryBus::new(clock.clone());
        let context = Context {
            bus: Arc::new(bus.clone()),
            clock: clock.clone(),
            registry: metrics::new_registry(),
            readiness: Readiness::default(),
        };
        World { bus, clock, context }
    }

    fn start(&self, config: Config) -> Running {
        let token = CancellationToken::new();
        let task = tokio::spawn(forecaster::run(config, self.context.clone(), token.clone()));
        Running { token, task }
    }

    /// Publishes the `i`-th interval of a service and lets the clock reach its end.
    async fn observe(&self, service: &str, i: i64) {
        self.send(&observation(service, i)).await;
    }

    async fn send(&self, observed: &WorkloadObserved) {
        self.clock.set(observed.start_ms + observed.interval_ms as i64);
        let out = OutRecord::message(WORKLOAD_OBSERVED, observed).expect("finite");
        self.context.bus.sink().send(out).await.expect("taken");
    }

    async fn send_bytes(&self, bytes: &[u8]) {
        let out = OutRecord::new(WORKLOAD_OBSERVED).key("delay").value(bytes.to_vec());
        self.context.bus.sink().send(out).await.expect("taken");
    }

    /// No record below the committed offset is missing from the newest state of its series.
    async fn assert_nothing_is_lost(&self, services: &[&str]) {
        let partition = TopicPartition::new(WORKLOAD_OBSERVED, 0);
        let committed = self.bus.committed(GROUP).get(&partition).copied().unwrap_or(0);
        let states = self.wait_states(0).await;
        let records = self.bus.records(WORKLOAD_OBSERVED);
        for service in services {
            let saved = states.iter().rev().find(|state| state.service == *service).and_then(|state| state.next_offset);
            let lost = records.iter().find(|record| {
                record.key_str() == *service && record.offset >= saved.unwrap_or(0) && record.offset < committed
            });
            assert!(lost.is_none(), "{committed} is committed, the state of {service} ends at {saved:?}: {lost:?}");
        }
    }

    fn forecasts(&self) -> Forecasts {
        let decoded = self.bus.records(WORKLOAD_FORECAST).into_iter().map(|record| {
            let value = record.value.expect("no tombstones");
            WorkloadForecast::decode(&value).expect("a forecast")
        });
        let mut forecasts = Forecasts::new();
        for forecast in decoded {
            let key = (forecast.service.clone(), forecast.origin_ms);
            if let Some(before) = forecasts.insert(key, forecast.clone()) {
                assert_eq!(before, forecast, "the same origin was forecast differently");
            }
        }
        forecasts
    }

    /// Waits for the forecast made after interval `i`.
    async fn wait(&self, service: &str, i: i64) {
        let origin_ms = START_MS + (i + 1) * INTERVAL_MS as i64;
        let wanted = |record: &runtime::Record| {
            let forecast = record.value.as_deref().map(WorkloadForecast::decode);
            matches!(forecast, Some(Ok(f)) if f.service == service && f.origin_ms == origin_ms)
        };
        let wait = self.bus.wait_until(WORKLOAD_FORECAST, |records| records.iter().any(wanted));
        if tokio::time::timeout(PATIENCE, wait).await.is_err() {
            panic!("no forecast of {service} after interval {i}");
        }
    }

    async fn wait_states(&self, n: usize) -> Vec<ForecasterState> {
        let wait = self.bus.wait_until(FORECASTER_STATE, |records| records.len() >= n);
        let records = tokio::time::timeout(PATIENCE, wait).await.expect("states are written");
        records
            .iter()
            .map(|r| ForecasterState::decode(r.value.as_deref().expect("a value")).expect("a state"))
            .collect()
    }

    /// Sum over all processes that were started: each registers its own.
    fn metric(&self, name: &str) -> f64 {
        let text = metrics::encode(&self.context.registry).expect("text");
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with(name)).collect();
        assert!(!lines.is_empty(), "no {name} in\n{text}");
        lines.iter().map(|line| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()).expect("a number")).sum()
    }
}

impl Running {
    async fn stop(self) {
        self.token.cancel();
        let ended = tokio::time::timeout(PATIENCE, self.task).await.expect("it ends").expect("it does not panic");
        ended.expect("it ends well");
    }

    async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.expect_err("aborted").is_cancelled());
    }
}

fn config() -> Config {
    Config {
        horizon_steps: 6,
        day: ConfigDuration::from_secs(24),
        week: ConfigDuration::from_secs(7 * 24),
        state_interval: 10,
        ..Config::default()
    }
}

fn observation(service: &str, i: i64) -> WorkloadObserved {
    let wave = 50.0 + 40.0 * (i as f64 / 24.0 * std::f64::consts::TAU).sin();
    let noise = (i * 7919 + service.len() as i64 * 31) % 13;
    WorkloadObserved {
        schema: Default::default(),
        service: service.to_owned(),
        start_ms: START_MS + i * INTERVAL_MS as i64,
        interval_ms: INTERVAL_MS,
        arrivals: wave as u64 + noise as u64,
        direct_arrivals: 0,
        simulated: false,
    }
}

async fn undisturbed(config: &Config, services: &[&str], n: i64) -> Forecasts {
    let world = World::new().await;
    let running = world.start(config.clone());
    for i in 0..n {
        for service in services {
            world.observe(service, i).await;
        }
    }
    for service in services {
        world.wait(service, n - 1).await;
    }
    running.stop().await;
    world.forecasts()
}

#[tokio::test]
async fn every_interval_is_forecast_in_rps_with_its_quantiles() {
    let world = World::new().await;
    let running = world.start(config());
    // 500 ms intervals: 30 arrivals are 60 requests per second.
    for i in 0..40 {
        world
            .send(&WorkloadObserved {
                start_ms: START_MS + i * 500,
                interval_ms: 500,
                arrivals: 30,
                ..observation("delay", 0)
            })
            .await;
    }
    let wait = world.bus.wait_until(WORKLOAD_FORECAST, |records| records.len() == 40);
    tokio::time::timeout(PATIENCE, wait).await.expect("forty forecasts");
    running.stop().await;
    let forecasts = world.forecasts();
    let (_, last) = forecasts.last_key_value().expect("not empty");
    assert_eq!((last.origin_ms, last.interval_ms), (START_MS + 20_000, 500));
    assert_eq!(last.levels, [0.5, 0.9, 0.95, 0.975, 0.99]);
    assert_eq!(
        last.steps.iter().map(|step| step.start_ms).collect::<Vec<_>>(),
        (0..6).map(|s| START_MS + 20_000 + s * 500).collect::<Vec<_>>()
    );
    assert_eq!((last.last_observed_rps, last.samples, last.cold_start), (60.0, 40, true));
    for step in &last.steps {
        assert!((step.mean_rps - 60.0).abs() < 1.0, "{step:?}");
        assert!(step.quantiles_rps.is_sorted() && step.quantiles_rps.len() == 5);
    }
    assert!((last.weights.values().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(last.error.mae_rps.is_some_and(|mae| mae < 1.0), "{:?}", last.error);
    assert_eq!(world.metric("barista_forecaster_forecasts_total"), 40.0);
    assert_eq!(world.metric("barista_forecaster_observations_total"), 40.0);
    assert_eq!(world.metric("barista_forecaster_samples{service=\"delay\"}"), 40.0);
}

#[tokio::test]
async fn after_a_restart_the_forecasts_are_those_of_an_undisturbed_process() {
    let services = ["count", "delay"];
    let expected = undisturbed(&config(), &services, 90).await;
    for stop_at in [0, 1, 7, 43, 60] {
        let world = World::new().await;
        let running = world.start(config());
        for i in 0..stop_at {
            for service in services {
                world.observe(service, i).await;
            }
        }
        if stop_at > 0 {
            world.wait("delay", stop_at - 1).await;
        }
        running.stop().await;
        let running = world.start(config());
        for i in stop_at..90 {
            for service in services {
                world.observe(service, i).await;
            }
        }
        for service in services {
            world.wait(service, 89).await;
        }
        running.stop().await;
        assert_eq!(world.forecasts(), expected, "stopped after {stop_at}");
        assert_eq!(world.metric("barista_forecaster_cold_starts_total"), 2.0);
    }
}

#[tokio::test]
async fn a_killed_process_loses_no_sample() {
    let services = ["count", "delay", "occupancy"];
    let expected = undisturbed(&config(), &services, 90).await;
    for kill_at in [3_i64, 28, 55] {
        let world = World::new().await;
        let mut running = world.start(config());
        for i in 0..90 {
            for service in services {
                world.observe(service, i).await;
            }
            // Killed three times, without a chance to write anything.
            if [kill_at, kill_at + 11, kill_at + 12].contains(&i) {
                world.wait("delay", i).await;
                running.kill().await;
                world.assert_nothing_is_lost(&services).await;
                running = world.start(config());
            }
        }
        for service in services {
            world.wait(service, 89).await;
        }
        running.stop().await;
        assert_eq!(world.forecasts(), expected, "killed after {kill_at}");
    }
}

#[tokio::test]
async fn states_are_written_every_so_often_and_offsets_follow() {
    let world = World::new().await;
    let running = world.start(config());
    for i in 0..25 {
        world.observe("delay", i).await;
    }
    world.wait("delay", 24).await;
    let states = world.wait_states(2).await;
    assert_eq!(states[1].last_start_ms - states[0].last_start_ms, 10 * INTERVAL_MS as i64);
    running.stop().await;
    let states = world.wait_states(3).await;
    let last = states.last().expect("written at the end");
    assert_eq!((last.last_start_ms, last.next_offset), (START_MS + 24 * INTERVAL_MS as i64, Some(25)));
    let committed = world.bus.committed(GROUP);
    assert_eq!(committed.get(&TopicPartition::new(WORKLOAD_OBSERVED, 0)), Some(&25));
}

#[tokio::test]
async fn what_cannot_be_used_is_counted_and_passed_over() {
    let world = World::new().await;
    let running = world.start(Config { max_services: 2, ..config() });
    world.observe("delay", 0).await;
    world.send_bytes(b"not json").await;
    world.send_bytes(br#"{"schema":"workload.forecast.v1"}"#).await;
    world.context.bus.sink().send(OutRecord::tombstone(WORKLOAD_OBSERVED, "delay")).await.expect("taken");
    world.observe("delay", 0).await;
    world.observe("count", 1).await;
    world.observe("one-too-many", 1).await;
    let clock = START_MS + 2000;
    for (service, start_ms, interval_ms) in [
        // An hour and more ahead of the clock; off the grid; an interval that divides no day.
        ("delay", clock + 4_000_000, INTERVAL_MS),
        ("delay", START_MS + 1500, INTERVAL_MS),
        ("count", START_MS + 7000, 7000),
    ] {
        let odd = WorkloadObserved { start_ms, interval_ms, ..observation(service, 0) };
        let out = OutRecord::message(WORKLOAD_OBSERVED, &odd).expect("finite");
        world.context.bus.sink().send(out).await.expect("taken");
    }
    world.observe("delay", 2).await;
    world.wait("delay", 2).await;
    running.stop().await;
    for (reason, n) in [
        ("unreadable", 2.0),
        ("tombstone", 1.0),
        ("duplicate", 1.0),
        ("too_many_services", 1.0),
        ("ahead_of_clock", 1.0),
        ("off_grid", 1.0),
        ("bad_interval", 1.0),
    ] {
        assert_eq!(world.metric(&format!("barista_forecaster_ignored_total{{reason=\"{reason}\"}}")), n, "{reason}");
    }
    let states = world.bus.records(FORECASTER_STATE);
    assert!(!states.is_empty(), "the service went on");
    let committed = world.bus.committed(GROUP);
    assert_eq!(committed.get(&TopicPartition::new(WORKLOAD_OBSERVED, 0)), Some(&11), "nothing is read again");
}

#[tokio::test]
async fn an_unusable_state_starts_cold_and_says_so() {
    let world = World::new().await;
    let state = ForecasterState {
        schema: Default::default(),
        service: "delay".to_owned(),
        last_start_ms: START_MS,
        next_offset: Some(1),
        model_version: 0,
        model: serde_json::json!({"version": 0}),
    };
    let sink = world.context.bus.sink();
    sink.send(OutRecord::message(FORECASTER_STATE, &state).expect("finite")).await.expect("taken");
    sink.send(OutRecord::new(FORECASTER_STATE).key("count").value(b"?".to_vec())).await.expect("taken");
    let running = world.start(config());
    for service in ["delay", "count"] {
        world.observe(service, 0).await;
        world.wait(service, 0).await;
    }
    running.stop().await;
    assert_eq!(world.metric("barista_forecaster_cold_starts_total"), 2.0);
}

#[tokio::test]
async fn offsets_from_before_a_topic_was_made_anew_do_not_hide_new_samples() {
    let world = World::new().await;
    let running = world.start(config());
    for i in 0..20 {
        world.observe("delay", i).await;
    }
    world.wait("delay", 19).await;
    running.stop().await;
    let state = world.wait_states(1).await.pop().expect("written");
    assert_eq!(state.next_offset, Some(20));

    // The same state, but workload.observed begins at offset 0 again.
    let anew = World::new().await;
    let out = OutRecord::message(FORECASTER_STATE, &state).expect("finite");
    anew.context.bus.sink().send(out).await.expect("taken");
    let running = anew.start(config());
    anew.observe("delay", 19).await;
    anew.observe("delay", 20).await;
    anew.wait("delay", 20).await;
    running.stop().await;
    assert_eq!(anew.forecasts().into_values().next().map(|f| f.samples), Some(21));
}

#[tokio::test]
async fn made_up_history_is_learned_in_silence() {
    let world = World::new().await;
    let running = world.start(config());
    let now = START_MS + 200 * INTERVAL_MS as i64;
    for i in 0..200 {
        let observed = WorkloadObserved { simulated: true, ..observation("delay", i) };
        let out = OutRecord::message(WORKLOAD_OBSERVED, &observed).expect("finite");
        world.clock.set(now);
        world.context.bus.sink().send(out).await.expect("taken");
    }
    world.observe("delay", 200).await;
    world.wait("delay", 200).await;
    running.stop().await;
    let forecasts = world.forecasts();
    assert!(forecasts.len() <= 4, "{} forecasts of the past", forecasts.len());
    let last = forecasts.into_values().next_back().expect("one");
    assert_eq!((last.samples, last.cold_start), (201, false));
}

#[tokio::test]
async fn a_broker_that_takes_nothing_for_a_while_costs_no_sample() {
    let expected = undisturbed(&config(), &["delay"], 80).await;
    let world = World::new().await;
    let running = world.start(config());
    for i in 0..20 {
        world.observe("delay", i).await;
    }
    world.wait("delay", 19).await;
    let before = world.bus.committed(GROUP);
    let observed: Vec<OutRecord> =
        (20..60).map(|i| OutRecord::message(WORKLOAD_OBSERVED, &observation("delay", i)).expect("finite")).collect();
    // The topic fills while the forecaster is away, then its own writes fail.
    running.stop().await;
    for out in observed {
        world.context.bus.sink().send(out).await.expect("taken");
    }
    world.bus.fail_sends(Some("broker is away"));
    let running = world.start(config());
    let learned = async {
        while world.metric("barista_forecaster_observations_total") < 60.0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, learned).await.expect("it learns while it cannot write");
    assert!(world.metric("barista_forecaster_state_failures_total") >= 1.0);
    world.bus.fail_sends(None);
    for i in 60..80 {
        world.observe("delay", i).await;
    }
    world.wait("delay", 79).await;
    running.stop().await;
    let ours = world.forecasts();
    let key = ("delay".to_owned(), START_MS + 80 * INTERVAL_MS as i64);
    assert_eq!(ours.get(&key), expected.get(&key));
    let after = world.bus.committed(GROUP);
    let partition = TopicPartition::new(WORKLOAD_OBSERVED, 0);
    assert!(before.get(&partition) < after.get(&partition));
    assert_eq!(after.get(&partition), Some(&80));
}

#[tokio::test]
async fn a_second_process_takes_over_its_share_where_the_first_stopped() {
    let services: Vec<String> = (0..6).map(|i| format!("service-{i}")).collect();
    let names: Vec<&str> = services.iter().map(String::as_str).collect();
    let expected = undisturbed(&config(), &names, 60).await;
    let world = World::without_topics();
    world.bus.create(WORKLOAD_OBSERVED, 4);
    world.bus.create(WORKLOAD_FORECAST, 1);
    world.bus.create(FORECASTER_STATE, 1);
    let first = world.start(config());
    for i in 0..30 {
        for service in &names {
            world.observe(service, i).await;
        }
    }
    for service in &names {
        world.wait(service, 29).await;
    }
    let second = world.start(config());
    for i in 30..60 {
        for service in &names {
            world.observe(service, i).await;
        }
    }
    for service in &names {
        world.wait(service, 59).await;
    }
    first.stop().await;
    second.stop().await;
    assert_eq!(world.forecasts(), expected);
}

#[tokio::test]
async fn a_bad_configuration_ends_it_with_every_problem() {
    let world = World::new().await;
    let running = world.start(Config { horizon_steps: 0, state_interval: 0, ..config() });
    let error = running.task.await.expect("no panic").expect_err("it refuses").to_string();
    assert!(error.contains("horizon_steps") && error.contains("state_interval"), "{error}");
}
