#![allow(clippy::unwrap_used, reason = "tests")]
use super::*;
use proptest::prelude::*;
use runtime::Headers;
use schemas::allocation::{NodeAllocation, ServicePlan};
use schemas::status::{LatencyMs, NodeState, ScalingKind, ServiceStatus};
use schemas::topics::EXECUTOR_STATUS;

const NOW: EpochMs = 1_760_000_000_000;

fn record(topic: &str, key: &str, value: Option<Vec<u8>>, timestamp_ms: EpochMs) -> Record {
    Record {
        topic: topic.to_owned(),
        partition: 0,
        offset: 0,
        timestamp_ms,
        key: Some(key.as_bytes().to_vec().into()),
        value: value.map(Into::into),
        headers: Headers::default(),
    }
}

fn message<M: Message>(topic: &str, message: &M) -> Record {
    record(topic, &message.key(), Some(message.encode().unwrap()), NOW)
}

fn observed(service: &str, start_ms: EpochMs, arrivals: u64) -> WorkloadObserved {
    WorkloadObserved {
        schema: Default::default(),
        service: service.to_owned(),
        start_ms,
        interval_ms: 5000,
        arrivals,
        direct_arrivals: 0,
        simulated: false,
    }
}

fn status(node: &str, at_ms: EpochMs, answered: u64, p95_ms: f64) -> ExecutorStatus {
    ExecutorStatus {
        schema: Default::default(),
        node: node.to_owned(),
        flavor: "small".to_owned(),
        at_ms,
        started_at_ms: at_ms,
        state: NodeState::Ready,
        plan_id: None,
        cores: 2,
        instances: vec![],
        services: vec![ServiceStatus {
            service: "vision".to_owned(),
            period_ms: 1000,
            queue_depth: 3,
            queue_age_ms: 4.0,
            arrivals: answered,
            direct_arrivals: 0,
            answered,
            in_slo: answered,
            rejected: 0,
            latency: Some(LatencyMs { p50_ms: p95_ms / 2.0, p95_ms, p99_ms: p95_ms * 1.5 }),
            slo_ms: 200.0,
        }],
        profile_updates: vec![],
        replan: vec![],
        scaling: vec![],
    }
}

fn event(at_ms: EpochMs) -> ScalingEvent {
    ScalingEvent {
        at_ms,
        kind: ScalingKind::Vertical,
        node: "a".to_owned(),
        service: "vision".to_owned(),
        from: 1,
        to: 2,
        reason: "p95 near the objective".to_owned(),
        plan_id: None,
        load: None,
    }
}

fn plan(sequence: u64, created_at_ms: EpochMs, capacity_rps: f64) -> FleetPlan {
    let load = schemas::allocation::LoadSample {
        service: "vision".to_owned(),
        start_ms: created_at_ms,
        observed_rps: 1.0,
        forecast_rps: 2.0,
    };
    FleetPlan {
        schema: Default::default(),
        plan_id: format!("1-{sequence}"),
        epoch: 1,
        sequence,
        created_at_ms,
        mode: Default::default(),
        services: vec![ServicePlan {
            service: "vision".to_owned(),
            load,
            quantile: 0.95,
            demand_rps: 2.0,
            margin_rps: 1.0,
            lead_ms: 10_000,
            justified_at_ms: created_at_ms,
            options: vec![],
            chosen: Some("small".to_owned()),
            bound_by: "demand".to_owned(),
            instances: 1,
            capacity_rps,
            shortfall_rps: 0.0,
            reason: "one node suffices".to_owned(),
        }],
        nodes: vec![],
        cost_usd_per_hour: 0.2,
        shortfall_rps: 0.0,
        changes: vec![],
        cost: None,
    }
}

fn topics() -> Topics {
    Topics::default()
}

#[test]
fn telemetry_is_counted_and_never_decoded() {
    let mut state = State::new(NOW - 10_000);
    for i in 0..10 {
        let at = NOW - 10_000 + i * 1000;
        for _ in 0..5 {
            let garbage = record(TELEMETRY_VEHICLE, "x", Some(vec![0xff]), at);
            assert_eq!(state.apply(&garbage, &topics()), Applied::Taken);
        }
        state.apply(&record(TELEMETRY_REJECTED, "x", None, at), &topics());
    }
    let snapshot = state.snapshot(NOW);
    assert_eq!((snapshot.telemetry.per_s, snapshot.telemetry.total), (5.0, 50));
    assert_eq!((snapshot.rejected.per_s, snapshot.rejected.total), (1.0, 10));
    assert_eq!(snapshot.feeds[0].last_ms, Some(NOW - 1000));
}

#[test]
fn topics_under_a_prefix_are_found_and_others_ignored() {
    let topics = Topics::new("city.");
    let mut state = State::new(NOW);
    let load = message("city.workload.observed", &observed("vision", NOW - 5000, 50));
    assert_eq!(state.apply(&load, &topics), Applied::Taken);
    for topic in ["workload.observed", "city.prediction.rejected", "city.", "city.workload.observed.v2"] {
        assert_eq!(state.apply(&record(topic, "", None, NOW), &topics), Applied::Unknown, "{topic}");
    }
    assert_eq!(state.snapshot(NOW).requests.rps, Some(10.0));
}

#[test]
fn unreadable_records_are_counted_and_change_nothing() {
    let mut state = State::new(NOW);
    let before = state.snapshot(NOW);
    let far = |at_ms| message(EXECUTOR_STATUS, &status("a", at_ms, 1, 1.0));
    let bad = [
        record(WORKLOAD_OBSERVED, "", Some(b"{".to_vec()), NOW),
        record(WORKLOAD_OBSERVED, "", Some(br#"{"schema":"workload.observed.v2"}"#.to_vec()), NOW),
        record(ALLOCATION_CONTROL, FLEET_KEY, Some(b"[]".to_vec()), NOW),
        message(WORKLOAD_OBSERVED, &observed("vision", i64::MAX, 1)),
        far(i64::MIN),
        far(i64::MAX),
        record(TELEMETRY_VEHICLE, "", None, -1),
    ];
    for one in &bad {
        assert_eq!(state.apply(one, &topics()), Applied::Unreadable, "{one:?}");
    }
    let after = state.snapshot(NOW);
    assert_eq!(after.unreadable, bad.len() as u64);
    assert_eq!(Snapshot { unreadable: 0, ..after }, before);
}

#[test]
fn applying_everything_again_changes_nothing() {
    let mut records = vec![];
    for i in 0..10 {
        let at = NOW - 60_000 + i * 5000;
        records.push(message(WORKLOAD_OBSERVED, &observed("vision", at, 50)));
        records.push(message(ALLOCATION_CONTROL, &plan(i as u64, at, 30.0 + i as f64)));
        let mut heartbeat = status("a", at, 10, 100.0);
        heartbeat.scaling = vec![event(at)];
        records.push(message(EXECUTOR_STATUS, &heartbeat));
    }
    let mut state = State::new(NOW);
    records.iter().for_each(|r| assert_eq!(state.apply(r, &topics()), Applied::Taken));
    let once = state.snapshot(NOW);
    for record in &records {
        state.apply(record, &topics());
    }
    let feeds = once.feeds.clone();
    assert_eq!(Snapshot { feeds, ..state.snapshot(NOW) }, once);
    assert_eq!((once.events.len(), once.plans.len()), (10, 1));
    assert_eq!(once.services[0].totals.answered, 100);
}

#[test]
fn sums_over_nodes_are_sums_and_the_worst_service_is_named() {
    let mut state = State::new(NOW - 60_000);
    for i in 0..12 {
        for node in ["a", "b"] {
            let at = NOW - 60_000 + i * 5000;
            state.apply(&message(EXECUTOR_STATUS, &status(node, at, 50, 100.0)), &topics());
        }
    }
    let mut other = status("c", NOW - 1000, 10, 190.0);
    other.services[0].service = "delay".to_owned();
    other.services[0].rejected = 10;
    state.apply(&message(EXECUTOR_STATUS, &other), &topics());
    let snapshot = state.snapshot(NOW);
    let vision = &snapshot.services[1];
    assert_eq!((vision.service.as_str(), vision.answered_per_s), ("vision", Some(20.0)));
    assert_eq!((vision.queue_depth, vision.queue_age_ms), (6, 4.0));
    assert_eq!(vision.recent.map(|l| l.p95_ms), Some(100.0));
    assert_eq!(snapshot.requests.attainment, Some(1210.0 / 1220.0));
    let worst = snapshot.requests.worst.unwrap();
    assert_eq!((worst.service.as_str(), worst.p95_ms, worst.slo_ms), ("delay", 190.0, 200.0));
    assert_eq!((snapshot.node_counts.ready, snapshot.node_counts.silent), (3, 0));
    assert_eq!(state.snapshot(NOW + 10_000).node_counts.silent, 3);
    assert_eq!(state.snapshot(NOW + 10_000).services[1].queue_depth, 0, "a silent node's queue is unknown");
}

#[test]
fn a_plan_gives_lead_time_capacity_and_its_reason() {
    let mut state = State::new(NOW);
    state.apply(&message(ALLOCATION_CONTROL, &plan(1, NOW - 20_000, 40.0)), &topics());
    state.apply(&message(ALLOCATION_CONTROL, &plan(2, NOW - 10_000, 80.0)), &topics());
    assert_eq!(state.apply(&message(ALLOCATION_CONTROL, &plan(1, NOW, 9.0)), &topics()), Applied::Stale);
    let snapshot = state.snapshot(NOW);
    let service = &snapshot.services[0];
    assert_eq!(service.load.capacity, [(NOW - 20_000, 40.0), (NOW - 10_000, 80.0)]);
    assert_eq!(service.load.lead_ms, 10_000);
    assert_eq!(service.decision.as_ref().map(|d| d.reason.as_str()), Some("one node suffices"));
    assert_eq!((snapshot.plan_id.as_deref(), snapshot.cost.map(|c| c.usd_per_hour)), (Some("1-2"), Some(0.2)));
}

#[test]
fn node_shares_and_tombstones_are_understood() {
    let share = NodeAllocation {
        schema: Default::default(),
        node: "a".to_owned(),
        plan_id: "1-1".to_owned(),
        epoch: 1,
        sequence: 1,
        created_at_ms: NOW,
        instances: vec![],
        drain: false,
        reason: String::new(),
        load: vec![],
    };
    let mut state = State::new(NOW);
    assert_eq!(state.apply(&message(ALLOCATION_CONTROL, &share), &topics()), Applied::Taken);
    assert_eq!(state.apply(&record(ALLOCATION_CONTROL, "node/a", None, NOW), &topics()), Applied::Taken);
    assert_eq!(state.apply(&record(ALLOCATION_CONTROL, "later", Some(vec![]), NOW), &topics()), Applied::Unknown);
    state.apply(&message(EXECUTOR_STATUS, &status("a", NOW, 1, 1.0)), &topics());
    assert_eq!(state.snapshot(NOW).nodes.len(), 1);
    state.apply(&record(EXECUTOR_STATUS, "a", None, NOW), &topics());
    assert_eq!((state.snapshot(NOW).nodes.len(), state.snapshot(NOW).unreadable), (0, 0));
}

#[test]
fn memory_is_bounded() {
    let mut state = State::new(NOW);
    for i in 0..MAX_SERVICES + 5 {
        let applied = state.apply(&message(WORKLOAD_OBSERVED, &observed(&format!("s{i}"), NOW, 1)), &topics());
        assert_eq!(applied, if i < MAX_SERVICES { Applied::Taken } else { Applied::LeftOut });
    }
    let mut heartbeat = status("a", NOW, 1, 1.0);
    // Out of order, as several nodes report.
    heartbeat.scaling = (0..200).map(|i| event(NOW + (i * 37) % 200)).collect();
    state.apply(&message(EXECUTOR_STATUS, &heartbeat), &topics());
    let events = state.snapshot(NOW).events;
    assert_eq!((events.len(), events[0].at_ms), (MAX_EVENTS, NOW + 199));
    assert!(events.windows(2).all(|w| w[0].at_ms >= w[1].at_ms));
    state.prune(NOW + WINDOW_MS + 60_000);
    assert!(state.services.is_empty(), "services that nobody has heard of go");
    state.apply(&message(WORKLOAD_OBSERVED, &observed("new", NOW, 1)), &topics());
    assert_eq!(state.services.len(), 1);
}

#[test]
fn banner_and_cost_come_from_the_owner() {
    let mut state = State::new(NOW);
    assert_eq!(state.snapshot(NOW).cost, None);
    state.set_banner(Some("warm-up history is simulated".to_owned()));
    let figures = CostFigures { usd: 1.0, usd_static_peak: 4.0, usd_reactive: None, note: "real time".to_owned() };
    state.set_cost(Some(figures));
    let snapshot = state.snapshot(NOW);
    assert_eq!(snapshot.banner.as_deref(), Some("warm-up history is simulated"));
    assert_eq!(snapshot.cost.and_then(|c| c.saving), Some(0.75));
}

proptest! {
    /// Whatever bytes and times come, nothing panics and the snapshot is JSON without a hole.
    #[test]
    fn any_record_is_survived(
        topic in prop::sample::select(snapshot::FEEDS.map(|(_, topic)| topic).to_vec()),
        key in prop::sample::select(vec!["fleet", "node/a", "x", ""]),
        bytes in prop::option::of(prop::collection::vec(any::<u8>(), 0..40)),
        timestamp_ms in any::<i64>(),
    ) {
        let mut state = State::new(NOW);
        state.apply(&record(topic, key, bytes, timestamp_ms), &topics());
        state.prune(NOW);
        prop_assert!(serde_json::to_string(&state.snapshot(NOW)).is_ok());
    }

    /// Whatever numbers a heartbeat carries, nothing overflows and shares stay shares.
    #[test]
    fn any_heartbeat_is_survived(
        at_ms in any::<i64>(), answered in any::<u64>(), in_slo in any::<u64>(), rejected in any::<u64>(),
        depth in any::<u64>(), p95 in any::<f64>(),
    ) {
        let mut state = State::new(NOW);
        for (node, at_ms) in [("a", at_ms), ("b", NOW), ("c", NOW)] {
            let mut heartbeat = status(node, at_ms, answered, if p95.is_finite() { p95 } else { 0.0 });
            heartbeat.services[0].in_slo = in_slo;
            heartbeat.services[0].rejected = rejected;
            heartbeat.services[0].queue_depth = depth;
            if let Some(latency) = &mut heartbeat.services[0].latency {
                latency.p99_ms = latency.p95_ms;
            }
            state.apply(&message(EXECUTOR_STATUS, &heartbeat), &topics());
        }
        let snapshot = state.snapshot(NOW);
        prop_assert!(snapshot.requests.attainment.is_none_or(|share| (0.0..=1.0).contains(&share)));
    }
}
