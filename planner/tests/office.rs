//! The planner service over a bus in memory: who leads, who follows, and what an adviser leaves alone.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use async_trait::async_trait;
use planner::Config;
use planner::config::{FlavorConfig, ProviderConfig, ProviderKind, ServiceConfig};
use planner::leadership::SILENCE_MS;
use planner::provider::{NodeOrder, Provider, ProviderError, ProviderNode};
use runtime::config::ConfigDuration;
use runtime::memory::MemoryBus;
use runtime::{Bus, Context, OutRecord, Readiness, Record, SharedClock, SharedRegistry, SystemClock};
use schemas::Message;
use schemas::allocation::{FLEET_KEY, FleetPlan, NODE_KEY_PREFIX, PLANNER_KEY, PlanMode, PlannerHeartbeat};
use schemas::status::{ExecutorStatus, NodeState, ReplanRequest};
use schemas::topics::{ALLOCATION_CONTROL, EXECUTOR_STATUS, Topics};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Notes what it is told.
#[derive(Default)]
struct Spy(Mutex<Vec<String>>);

#[async_trait]
impl Provider for Spy {
    async fn start(&self, order: NodeOrder) -> Result<(), ProviderError> {
        self.0.lock().unwrap().push(format!("start {}", order.node));
        Ok(())
    }
    async fn stop(&self, node: &str) -> Result<(), ProviderError> {
        self.0.lock().unwrap().push(format!("stop {node}"));
        Ok(())
    }
    async fn list(&self) -> Vec<ProviderNode> {
        Vec::new()
    }
    async fn shutdown(&self) {}
}

/// Longest wait of any condition.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    bus: MemoryBus,
    clock: SharedClock,
}

struct Running {
    task: JoinHandle<Result<(), planner::Error>>,
    token: CancellationToken,
    spy: Arc<Spy>,
    readiness: Readiness,
}

impl Running {
    /// Waits until it says so on `/readyz`.
    async fn until_it(&self, says: &str) {
        let wait = async {
            while !self.readiness.checks().get("planner").is_some_and(|c| c.detail.contains(says)) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.expect(says);
    }
}

impl World {
    async fn new() -> Self {
        let clock: SharedClock = Arc::new(SystemClock);
        let bus = MemoryBus::new(clock.clone());
        bus.create_topics(&Topics::all(["delay"])).await.unwrap();
        World { bus, clock }
    }

    fn start(&self, config: Config) -> Running {
        let readiness = Readiness::default();
        let context = Context {
            bus: Arc::new(self.bus.clone()),
            clock: self.clock.clone(),
            registry: SharedRegistry::default(),
            readiness: readiness.clone(),
        };
        let (token, spy) = (CancellationToken::new(), Arc::new(Spy::default()));
        let task = tokio::spawn(planner::run_with(config, spy.clone(), context, token.clone()));
        Running { task, token, spy, readiness }
    }

    /// The first control record that `what` is true of, once there are `n` such.
    async fn until(&self, n: usize, what: impl Fn(&Record) -> bool) -> Record {
        let seen = self.bus.wait_until(ALLOCATION_CONTROL, |records| records.iter().filter(|r| what(r)).count() >= n);
        let records = tokio::time::timeout(PATIENCE, seen).await.expect("in time");
        records.into_iter().find(what).unwrap()
    }

    fn last_beat(&self) -> PlannerHeartbeat {
        self.bus.records(ALLOCATION_CONTROL).iter().filter_map(heartbeat).next_back().unwrap()
    }

    async fn plan_of(&self, epoch: u64) -> FleetPlan {
        let record = self.until(1, |r| plan(r).is_some_and(|p| p.epoch == epoch)).await;
        plan(&record).unwrap()
    }
}

fn plan(record: &Record) -> Option<FleetPlan> {
    (record.key_str() == FLEET_KEY).then(|| FleetPlan::decode(record.value.as_ref().unwrap()).unwrap())
}

fn heartbeat(record: &Record) -> Option<PlannerHeartbeat> {
    (record.key_str() == PLANNER_KEY).then(|| PlannerHeartbeat::decode(record.value.as_ref().unwrap()).unwrap())
}

fn nothing_to_plan() -> Config {
    Config { provider: ProviderConfig { kind: ProviderKind::None }, ..Config::default() }
}

/// One service under load, and machines to be had.
fn something_to_plan(folder: &std::path::Path, mode: PlanMode) -> Config {
    let profile = folder.join("delay.json");
    let text = serde_json::json!({
        "model": "delay.onnx", "sha256": "0", "backend": "tract", "host": "test", "load_ms": 100.0, "memory_mib": 10.0,
        "points": [{"workers": 1, "batch": 1, "p50_ms": 5.0, "p95_ms": 10.0, "p99_ms": 12.0, "rps": 150.0}],
    });
    std::fs::write(&profile, text.to_string()).unwrap();
    let mut config = Config {
        service: vec![ServiceConfig {
            name: "delay".into(),
            model: "delay.onnx".into(),
            slo_p95_ms: 200.0,
            min: 1,
            profile: Some(profile),
            ..ServiceConfig::default()
        }],
        flavor: vec![FlavorConfig { name: "small".into(), cores: 2, usd_per_hour: 0.1, ..FlavorConfig::default() }],
        ..Config::default()
    };
    config.planner.mode = mode;
    config.planner.period = ConfigDuration::from_secs(1);
    config
}

/// Epochs never fall in the log, and each has one planner.
fn check_log(world: &World) {
    let beats: Vec<PlannerHeartbeat> = world.bus.records(ALLOCATION_CONTROL).iter().filter_map(heartbeat).collect();
    for pair in beats.windows(2) {
        assert!(pair[0].epoch <= pair[1].epoch, "{pair:?}");
        assert!(pair[0].epoch < pair[1].epoch || pair[0].planner == pair[1].planner, "{pair:?}");
    }
    let plans: Vec<FleetPlan> = world.bus.records(ALLOCATION_CONTROL).iter().filter_map(plan).collect();
    assert!(plans.windows(2).all(|p| (p[0].epoch, p[0].sequence) < (p[1].epoch, p[1].sequence)));
}

#[tokio::test]
async fn a_standby_follows_a_planner_that_dies() {
    let world = World::new().await;
    let first = world.start(nothing_to_plan());
    world.plan_of(1).await;
    let second = world.start(nothing_to_plan());
    second.until_it("stands by").await;
    let beats = world.bus.records(ALLOCATION_CONTROL).iter().filter_map(heartbeat).count();
    world.until(beats + 2, |r| heartbeat(r).is_some_and(|h| h.epoch == 1)).await;
    // No farewell: as by kill -9.
    first.task.abort();
    let last = world.last_beat();
    let plan = world.plan_of(2).await;
    assert!(plan.created_at_ms - last.at_ms >= SILENCE_MS - 100, "it waits for silence");
    check_log(&world);
}

#[tokio::test]
async fn a_planner_that_ends_in_order_says_so_and_is_followed() {
    let world = World::new().await;
    let first = world.start(nothing_to_plan());
    world.plan_of(1).await;
    let second = world.start(nothing_to_plan());
    second.until_it("stands by").await;
    first.token.cancel();
    first.task.await.unwrap().unwrap();
    assert!(world.last_beat().resigned);
    world.plan_of(2).await;
    check_log(&world);
}

#[tokio::test]
async fn planners_that_start_together_agree() {
    let world = World::new().await;
    let all: Vec<Running> = (0..4).map(|_| world.start(nothing_to_plan())).collect();
    let stays = |records: &[Record]| {
        let beats: Vec<PlannerHeartbeat> = records.iter().filter_map(heartbeat).collect();
        beats.last().is_some_and(|last| beats.iter().filter(|b| b.epoch == last.epoch).count() >= 6)
    };
    let settled = world.bus.wait_until(ALLOCATION_CONTROL, stays);
    tokio::time::timeout(PATIENCE, settled).await.expect("one of them leads on");
    check_log(&world);
    assert!(all.iter().all(|p| !p.task.is_finished()), "the others stand by");
}

#[tokio::test]
async fn a_fenced_planner_stands_by_and_writes_nothing() {
    let world = World::new().await;
    let running = world.start(nothing_to_plan());
    world.plan_of(1).await;
    running.until_it("plan 1-").await;
    // Somebody else takes the id, as a standby does that heard nothing; its epoch is 7.
    let other = world.bus.transactions("barista.planner").await.unwrap();
    let before = world.bus.records(ALLOCATION_CONTROL).len();
    running.until_it("stands by").await;
    assert_eq!(world.bus.records(ALLOCATION_CONTROL).len(), before, "what it wrote after the fence is not seen");
    other.begin().await.unwrap();
    let theirs = PlannerHeartbeat {
        schema: Default::default(),
        planner: "other".into(),
        epoch: 7,
        at_ms: world.clock.now_ms(),
        since_ms: 0,
        resigned: false,
    };
    other.send(OutRecord::message(ALLOCATION_CONTROL, &theirs).unwrap()).await.unwrap();
    other.commit().await.unwrap();
    // The other is silent from now on: ours returns, above it.
    world.plan_of(8).await;
    assert!(!running.task.is_finished());
    check_log(&world);
}

#[tokio::test]
async fn a_broker_that_is_away_costs_the_office_and_no_more() {
    let world = World::new().await;
    let running = world.start(nothing_to_plan());
    world.plan_of(1).await;
    running.until_it("plan 1-").await;
    world.bus.fail_sends(Some("away"));
    running.until_it("stands by").await;
    world.bus.fail_sends(None);
    world.plan_of(2).await;
    assert!(!running.task.is_finished());
    check_log(&world);
}

#[tokio::test]
async fn advice_is_published_and_nothing_acts_on_it() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new().await;
    let adviser = world.start(something_to_plan(folder.path(), PlanMode::Advise));
    world.until(3, |r| plan(r).is_some()).await;
    let records = world.bus.records(ALLOCATION_CONTROL);
    let plans: Vec<FleetPlan> = records.iter().filter_map(plan).collect();
    assert!(!plans.is_empty() && plans.iter().all(|p| p.mode == PlanMode::Advise), "marked as advice");
    assert!(plans.iter().all(|p| !p.nodes.is_empty()), "it would start a node");
    assert!(records.iter().all(|r| !r.key_str().starts_with(NODE_KEY_PREFIX)), "no node is told anything");
    assert_eq!(*adviser.spy.0.lock().unwrap(), Vec::<String>::new());
    // The same inputs applied: a share for the node, and then an order, in this sequence.
    adviser.token.cancel();
    adviser.task.await.unwrap().unwrap();
    let doer = world.start(something_to_plan(folder.path(), PlanMode::Apply));
    world.until(1, |r| r.key_str().starts_with(NODE_KEY_PREFIX)).await;
    doer.until_it("plan 2-").await;
    assert_eq!(doer.spy.0.lock().unwrap().len(), 1, "{:?}", doer.spy.0.lock().unwrap());
}

#[tokio::test]
async fn a_node_that_is_at_its_ceiling_gets_another_plan_out_of_turn() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new().await;
    let mut config = something_to_plan(folder.path(), PlanMode::Apply);
    config.planner.period = ConfigDuration::from_secs(3_600);
    config.planner.horizon = ConfigDuration::from_secs(7_200);
    let planner = world.start(config);
    let first = world.plan_of(1).await;
    planner.until_it("plan 1-").await;
    let asks = ExecutorStatus {
        schema: Default::default(),
        node: first.nodes[0].node.clone(),
        flavor: "small".into(),
        at_ms: world.clock.now_ms(),
        started_at_ms: 0,
        state: NodeState::Ready,
        plan_id: None,
        cores: 2,
        instances: Vec::new(),
        services: Vec::new(),
        profile_updates: Vec::new(),
        scaling: Vec::new(),
        replan: vec![ReplanRequest { service: "delay".into(), since_ms: 0, reason: "p95 nears the SLO".into() }],
    };
    let before = world.bus.records(ALLOCATION_CONTROL).iter().filter(|r| plan(r).is_some()).count();
    world.bus.sink().send(OutRecord::message(EXECUTOR_STATUS, &asks).unwrap()).await.unwrap();
    world.until(before + 1, |r| plan(r).is_some()).await;
}

#[tokio::test]
async fn of_two_backends_auto_takes_the_one_that_costs_less() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new().await;
    let mut config = something_to_plan(folder.path(), PlanMode::Apply);
    let faster = folder.path().join("ort.json");
    let text = std::fs::read_to_string(folder.path().join("delay.json")).unwrap();
    let text = text.replace("tract", "ort").replace("150.0", "300.0");
    std::fs::write(&faster, text.replace("5.0", "2.5").replace("\"p95_ms\":10.0", "\"p95_ms\":5.0")).unwrap();
    config.service[0].profiles = vec![faster.clone()];
    let planner = world.start(config.clone());
    let plan = world.plan_of(1).await;
    assert_eq!(plan.nodes[0].instances[0].backend, "ort");
    planner.token.cancel();
    planner.task.await.unwrap().unwrap();
    config.service[0].profiles.push(faster);
    let refused = world.start(config).task.await.unwrap().unwrap_err().to_string();
    assert!(refused.contains("a second profile of backend ort"), "{refused}");
}

#[tokio::test]
async fn a_successor_keeps_the_nodes_of_the_plan_before() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::new().await;
    let config = || something_to_plan(folder.path(), PlanMode::Apply);
    let first = world.start(config());
    let nodes = |p: &FleetPlan| p.nodes.iter().map(|n| n.node.clone()).collect::<Vec<_>>();
    let planned = nodes(&world.plan_of(1).await);
    assert_eq!(planned.len(), 1);
    let second = world.start(config());
    second.until_it("stands by").await;
    first.until_it("plan 1-").await;
    first.task.abort();
    assert_eq!(nodes(&world.plan_of(2).await), planned);
    assert_eq!(*second.spy.0.lock().unwrap(), Vec::<String>::new(), "the node was ordered already");
}
