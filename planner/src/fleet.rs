//! The life of every node, as heartbeats, the provider and the planner's own orders tell it.
//!
//! ```text
//! ordered ──▶ booting ──▶ ready ──▶ draining ──▶ retired (tombstone)
//!    │           │          │           ▲
//!    └───────────┴──────────┴─▶ lost ───┘ (its plan says stop; nothing to drain)
//! ```
//!
//! Invariants: pure, time is an argument; a node is known from its order, or from the first heartbeat of one that
//! nobody here ordered, until it is retired; what a plan put on a node is remembered until the next plan, and a
//! model that failed to load there for the node's life. Memory is bounded by the nodes that exist.
//! Left out: doing anything (`service`, `provider`).

use crate::handover::Serving;
use crate::lease::{Lease, Terms};
use crate::ledger::Held;
use crate::model::{Flavor, FleetNode, FleetState, HostedInstance, Plan};
use schemas::EpochMs;
use schemas::allocation::{FleetPlan, InstanceAllocation, NodeAction, NodeAllocation, NodePlan};
use schemas::status::{ExecutorStatus, InstanceState, NodeState};
use std::collections::{BTreeMap, BTreeSet};

/// When silence means loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A node that was heard of and then is silent for so long is lost.
    pub heartbeat_ms: i64,
    /// A node that was ordered and is not heard of so long after its boot time is lost.
    pub boot_ms: i64,
    /// A draining node is stopped after so long, empty or not.
    pub drain_ms: i64,
}

#[derive(Debug, Clone, PartialEq)]
struct Tracked {
    flavor: String,
    lease: Lease,
    /// What the last plan put here; absent for a node that no plan has seen.
    planned: Option<Vec<InstanceAllocation>>,
    /// What the node was told last: the plan, and what is kept until others take over.
    told: Option<Vec<InstanceAllocation>>,
    /// Newest heartbeat and when it came.
    heard: Option<(ExecutorStatus, EpochMs)>,
    /// By service: version and why it failed.
    failures: BTreeMap<String, (String, String)>,
    draining_since_ms: Option<EpochMs>,
    /// The provider says that it does not run.
    gone: bool,
    ready_noted: bool,
}

/// A node that has just become ready for the first time.
#[derive(Debug, Clone, PartialEq)]
pub struct CameUp {
    /// Node id.
    pub node: String,
    /// From order to ready.
    pub setup_ms: i64,
}

/// All nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Fleet {
    nodes: BTreeMap<String, Tracked>,
    patience: Patience,
}

impl Fleet {
    /// No nodes.
    pub fn new(patience: Patience) -> Self {
        Fleet { nodes: BTreeMap::new(), patience }
    }

    /// Takes over the nodes of a plan that was made before this planner began.
    pub fn adopt_plan(&mut self, plan: &FleetPlan) {
        for node in &plan.nodes {
            let draining = node.action == NodeAction::Stop;
            let mut tracked = Tracked::planned(node);
            tracked.draining_since_ms = draining.then_some(plan.created_at_ms);
            self.nodes.insert(node.node.clone(), tracked);
        }
    }

    /// Nodes that have a share in the control topic but are in no plan (a crash came between): they are to go.
    pub fn adopt_shares(&mut self, shares: &[NodeAllocation], now_ms: EpochMs) {
        for share in shares.iter().filter(|s| !self.nodes.contains_key(&s.node)).cloned().collect::<Vec<_>>() {
            let lease = Lease { start_ms: share.created_at_ms, end_ms: share.created_at_ms };
            let tracked = Tracked::new(String::new(), lease);
            let draining_since_ms = Some(now_ms);
            self.nodes.insert(
                share.node,
                Tracked {
                    told: Some(share.instances.clone()),
                    planned: Some(share.instances),
                    draining_since_ms,
                    ..tracked
                },
            );
        }
    }

    /// A heartbeat that came at `seen_ms`. The first of a node that nobody here ordered adopts it, if it takes work.
    /// `terms` gives the terms of a flavor. Returns the node if it became ready with this heartbeat.
    pub fn heartbeat(
        &mut self,
        status: &ExecutorStatus,
        seen_ms: EpochMs,
        terms: impl Fn(&str) -> Option<Terms>,
    ) -> Option<CameUp> {
        if !self.nodes.contains_key(&status.node) {
            if !matches!(status.state, NodeState::Booting | NodeState::Ready) {
                return None;
            }
            let start_ms = status.started_at_ms;
            let lease = terms(&status.flavor).map_or(Lease { start_ms, end_ms: start_ms }, |t| t.start(start_ms));
            self.nodes.insert(status.node.clone(), Tracked::adopted(status, lease));
        }
        let node = self.nodes.get_mut(&status.node)?;
        if node.heard.as_ref().is_some_and(|(known, _)| known.at_ms > status.at_ms) {
            return None;
        }
        for instance in status.instances.iter().filter(|i| i.state == InstanceState::Failed) {
            let why = instance.error.clone().unwrap_or_else(|| "no reason given".to_owned());
            node.failures.insert(instance.service.clone(), (instance.version.clone(), why));
        }
        node.heard = Some((status.clone(), seen_ms));
        node.gone = false;
        let first = status.state == NodeState::Ready && !node.ready_noted;
        node.ready_noted |= first;
        first.then(|| CameUp { node: status.node.clone(), setup_ms: (seen_ms - node.lease.start_ms).max(0) })
    }

    /// What the provider says: nodes that it knows and that do not run are gone. It says nothing about others.
    pub fn provider_says(&mut self, alive: &BTreeMap<String, bool>) {
        for (id, node) in &mut self.nodes {
            if let Some(alive) = alive.get(id) {
                node.gone = !alive;
            }
        }
    }

    /// Flavor of a node.
    pub fn flavor(&self, node: &str) -> Option<&String> {
        self.nodes.get(node).map(|n| &n.flavor)
    }

    /// Instances of a service that say they serve.
    pub fn ready_instances(&self, service: &str) -> usize {
        let reported = self.nodes.values().filter_map(|n| n.heard.as_ref()).flat_map(|(s, _)| &s.instances);
        reported.filter(|i| i.service == service && i.state == InstanceState::Ready).count()
    }

    /// True for nodes that this fleet knows.
    pub fn knows(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// Nodes that have been lost and not yet retired.
    pub fn lost(&self, now_ms: EpochMs, flavors: &[Flavor]) -> BTreeSet<String> {
        let is_lost = |n: &&(&String, &Tracked)| n.1.state(now_ms, self.patience, flavors) == FleetState::Lost;
        self.nodes.iter().collect::<Vec<_>>().iter().filter(is_lost).map(|(id, _)| (*id).clone()).collect()
    }

    /// The fleet as a decision reads it. `version` is the version that each service should run.
    pub fn snapshot<'a>(
        &self,
        now_ms: EpochMs,
        flavors: &[Flavor],
        version: impl Fn(&str) -> Option<&'a str>,
    ) -> Vec<FleetNode> {
        self.nodes
            .iter()
            .map(|(id, node)| FleetNode {
                node: id.clone(),
                flavor: node.flavor.clone(),
                state: node.state(now_ms, self.patience, flavors),
                lease: node.lease,
                cores: node.heard.as_ref().map(|(s, _)| s.cores).filter(|c| *c > 0),
                hosts: node.hosts(&version),
            })
            .collect()
    }

    /// Requests that wait for a service, over all nodes that are heard of.
    pub fn backlog(&self, service: &str, now_ms: EpochMs) -> u64 {
        let fresh = self.nodes.values().filter_map(|n| n.heard.as_ref());
        let fresh = fresh.filter(|(_, seen_ms)| now_ms - seen_ms <= self.patience.heartbeat_ms);
        fresh.flat_map(|(s, _)| &s.services).filter(|s| s.service == service).map(|s| s.queue_depth).sum()
    }

    /// Takes a plan over that was published as `published`, with what is kept for now ([`crate::handover`]). Gives the
    /// nodes whose share changed, with what they shall host; a node that stops is among them, to be drained.
    pub fn apply(&mut self, plan: &Plan, published: &Plan, now_ms: EpochMs) -> Vec<NodePlan> {
        let mut changed = Vec::new();
        for (node, share) in plan.nodes.iter().zip(&published.nodes) {
            let tracked = self.nodes.entry(node.node.clone()).or_insert_with(|| Tracked::ordered(node));
            tracked.lease = Lease { start_ms: node.lease_start_ms, end_ms: node.lease_end_ms };
            let stops = share.action == NodeAction::Stop;
            let differs = tracked.told.as_ref() != Some(&share.instances);
            if differs || (stops && tracked.draining_since_ms.is_none()) {
                changed.push(share.clone());
            }
            tracked.planned = Some(node.instances.clone());
            tracked.told = Some(share.instances.clone());
            if stops {
                tracked.draining_since_ms.get_or_insert(now_ms);
            }
        }
        changed
    }

    /// Shares that a plan would change, without taking it over: what is to be published first.
    pub fn changed_by(&self, plan: &Plan, published: &Plan) -> Vec<NodePlan> {
        // The time of a drain does not change what differs.
        self.clone().apply(plan, published, 0)
    }

    /// What serves at this moment, by node, for [`crate::handover::hand_over`].
    pub fn serving(&self, now_ms: EpochMs, flavors: &[Flavor]) -> BTreeMap<String, Serving> {
        let ready = |n: &&(&String, &Tracked)| n.1.state(now_ms, self.patience, flavors) == FleetState::Ready;
        self.nodes
            .iter()
            .collect::<Vec<_>>()
            .iter()
            .filter(ready)
            .map(|(id, n)| ((*id).clone(), n.serving(flavors)))
            .collect()
    }

    /// Nodes that were told to stop and have nothing left to do: they stopped, are gone, were lost before, or have
    /// drained for too long.
    pub fn to_retire(&self, now_ms: EpochMs) -> Vec<String> {
        let done = |n: &Tracked| {
            let Some(since_ms) = n.draining_since_ms else { return false };
            let stopped = n.heard.as_ref().is_some_and(|(s, _)| s.state == NodeState::Stopped);
            let silent = n.heard.as_ref().is_none_or(|(_, seen_ms)| now_ms - seen_ms > self.patience.heartbeat_ms);
            n.gone || stopped || silent || now_ms - since_ms > self.patience.drain_ms
        };
        self.nodes.iter().filter(|(_, n)| done(n)).map(|(id, _)| id.clone()).collect()
    }

    /// Forgets a node: it is retired, or its order was refused.
    pub fn forget(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// Leases that are held, for the ledger.
    pub fn held(&self, flavors: &[Flavor]) -> Vec<Held> {
        let held = |(id, node): (&String, &Tracked)| {
            let flavor = flavors.iter().find(|f| f.name == node.flavor)?;
            Some(Held { node: id.clone(), terms: Terms::of(flavor), lease: node.lease })
        };
        self.nodes.iter().filter_map(held).collect()
    }

    /// Flavor and cores of nodes whose flavor is none of `flavors`.
    pub fn unknown_flavors(&self, flavors: &[Flavor]) -> BTreeMap<String, u32> {
        let mut unknown = BTreeMap::new();
        for node in self.nodes.values().filter(|n| flavors.iter().all(|f| f.name != n.flavor)) {
            let cores = node.heard.as_ref().map_or(1, |(s, _)| s.cores.max(1));
            let most = unknown.entry(node.flavor.clone()).or_insert(cores);
            *most = cores.max(*most);
        }
        unknown
    }
}

impl Tracked {
    fn planned(node: &NodePlan) -> Self {
        let instances = Some(node.instances.clone());
        Tracked { planned: instances.clone(), told: instances, ..Tracked::ordered(node) }
    }

    fn ordered(node: &NodePlan) -> Self {
        Tracked::new(node.flavor.clone(), Lease { start_ms: node.lease_start_ms, end_ms: node.lease_end_ms })
    }

    fn adopted(status: &ExecutorStatus, lease: Lease) -> Self {
        // When it was ordered is not known, so its set-up time is not measured.
        Tracked { ready_noted: true, ..Tracked::new(status.flavor.clone(), lease) }
    }

    fn new(flavor: String, lease: Lease) -> Self {
        Tracked {
            flavor,
            lease,
            planned: None,
            told: None,
            heard: None,
            failures: BTreeMap::new(),
            draining_since_ms: None,
            gone: false,
            ready_noted: false,
        }
    }

    fn state(&self, now_ms: EpochMs, patience: Patience, flavors: &[Flavor]) -> FleetState {
        if self.draining_since_ms.is_some() {
            return FleetState::Draining;
        }
        if self.gone {
            return FleetState::Lost;
        }
        let Some((status, seen_ms)) = &self.heard else {
            let boot_ms = flavors.iter().find(|f| f.name == self.flavor).map_or(0, Flavor::boot_ms);
            let waited_ms = now_ms - self.lease.start_ms;
            return if waited_ms > boot_ms + patience.boot_ms { FleetState::Lost } else { FleetState::Ordered };
        };
        if now_ms - seen_ms > patience.heartbeat_ms {
            return FleetState::Lost;
        }
        match status.state {
            NodeState::Booting => FleetState::Booting,
            NodeState::Ready => FleetState::Ready,
            // Nobody told it to: it ends by itself, so its work has to go elsewhere.
            NodeState::Draining | NodeState::Stopped => FleetState::Lost,
        }
    }

    fn serving(&self, flavors: &[Flavor]) -> Serving {
        let reported = || self.heard.iter().flat_map(|(s, _)| &s.instances);
        let serves = |i: &&InstanceAllocation| {
            reported().any(|r| r.service == i.service && r.version == i.version && r.state == InstanceState::Ready)
        };
        let planned = |service: &str| self.planned.iter().flatten().any(|i| i.service == service);
        let told = || self.told.iter().flatten();
        let memory_gib = flavors.iter().find(|f| f.name == self.flavor).map_or(0.0, |f| f.memory_gib);
        Serving {
            instances: told().filter(serves).cloned().collect(),
            held: told().filter(|i| !planned(&i.service)).map(|i| i.service.clone()).collect(),
            cores: self.heard.as_ref().map_or(0, |(s, _)| s.cores),
            memory_mib: if memory_gib > 0.0 { memory_gib * 1024.0 } else { f64::INFINITY },
        }
    }

    fn hosts<'a>(&self, version: &impl Fn(&str) -> Option<&'a str>) -> Vec<HostedInstance> {
        let reported = || self.heard.iter().flat_map(|(s, _)| &s.instances);
        let ready = |service: &str, version: &str| {
            reported().any(|i| i.service == service && i.version == version && i.state == InstanceState::Ready)
        };
        let failed = |service: &str, version: &str| {
            let (failed_version, why) = self.failures.get(service)?;
            (failed_version == version).then(|| why.clone())
        };
        let mut hosts: Vec<HostedInstance> = match &self.planned {
            Some(planned) => planned
                .iter()
                .map(|i| HostedInstance {
                    service: i.service.clone(),
                    workers: i.workers,
                    ready: ready(&i.service, &i.version),
                    failed: failed(&i.service, &i.version),
                })
                .collect(),
            None => reported()
                .filter(|i| matches!(i.state, InstanceState::Loading | InstanceState::Cached | InstanceState::Ready))
                .map(|i| HostedInstance {
                    service: i.service.clone(),
                    workers: i.planned_workers.max(1),
                    ready: i.state == InstanceState::Ready,
                    failed: failed(&i.service, &i.version),
                })
                .collect(),
        };
        // What failed here stays known after the plan has moved it away.
        for (service, (failed_version, why)) in &self.failures {
            let current = version(service) == Some(failed_version.as_str());
            if current && hosts.iter().all(|h| h.service != *service) {
                let failed = Some(why.clone());
                hosts.push(HostedInstance { service: service.clone(), workers: 0, ready: false, failed });
            }
        }
        hosts.sort_by(|a, b| a.service.cmp(&b.service));
        hosts.dedup_by(|a, b| a.service == b.service);
        hosts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::flavor;
    use schemas::status::InstanceStatus;

    const PATIENCE: Patience = Patience { heartbeat_ms: 5_000, boot_ms: 30_000, drain_ms: 20_000 };

    fn status(node: &str, at_ms: EpochMs, state: NodeState, instances: &[(&str, InstanceState)]) -> ExecutorStatus {
        ExecutorStatus {
            schema: Default::default(),
            node: node.into(),
            flavor: "f".into(),
            at_ms,
            started_at_ms: 0,
            state,
            plan_id: None,
            cores: 2,
            instances: instances
                .iter()
                .map(|(service, state)| InstanceStatus {
                    service: (*service).into(),
                    version: "1".into(),
                    backend: "tract".into(),
                    state: *state,
                    workers: 2,
                    planned_workers: 1,
                    load_ms: None,
                    error: (*state == InstanceState::Failed).then(|| "no such file".into()),
                    signature: None,
                })
                .collect(),
            services: vec![],
            profile_updates: vec![],
            replan: vec![],
            scaling: vec![],
        }
    }

    fn node_plan(node: &str, action: NodeAction, services: &[&str]) -> NodePlan {
        let instance = |service: &&str| InstanceAllocation {
            service: (*service).into(),
            model: format!("{service}.onnx"),
            version: "1".into(),
            backend: "tract".into(),
            workers: 1,
            max_batch: 1,
            slo_ms: 200.0,
            service_p95_ms: 5.0,
        };
        NodePlan {
            node: node.into(),
            flavor: "f".into(),
            action,
            lease_start_ms: 0,
            lease_end_ms: 60_000,
            usd_per_hour: 1.0,
            instances: services.iter().map(instance).collect(),
            reason: String::new(),
        }
    }

    fn plan_of(nodes: Vec<NodePlan>) -> Plan {
        Plan {
            services: vec![],
            nodes,
            changes: vec![],
            cost_usd_per_hour: 0.0,
            shortfall_rps: 0.0,
            naming: Default::default(),
        }
    }

    fn apply(fleet: &mut Fleet, plan: &Plan, now_ms: EpochMs) -> Vec<NodePlan> {
        fleet.apply(plan, plan, now_ms)
    }

    fn state(fleet: &Fleet, now_ms: EpochMs) -> Vec<FleetState> {
        let flavors = [Flavor { boot_s: 10.0, ..flavor("f", 2, 1.0) }];
        fleet.snapshot(now_ms, &flavors, |_| Some("1")).into_iter().map(|n| n.state).collect()
    }

    #[test]
    fn a_node_lives_from_order_to_retirement() {
        let mut fleet = Fleet::new(PATIENCE);
        let changed = apply(&mut fleet, &plan_of(vec![node_plan("n", NodeAction::Start, &["s"])]), 0);
        assert_eq!(changed.len(), 1);
        assert_eq!(state(&fleet, 1_000), [FleetState::Ordered]);
        assert_eq!(fleet.heartbeat(&status("n", 2_000, NodeState::Booting, &[]), 2_000, |_| None), None);
        assert_eq!(state(&fleet, 2_000), [FleetState::Booting]);
        let up =
            fleet.heartbeat(&status("n", 12_000, NodeState::Ready, &[("s", InstanceState::Ready)]), 12_000, |_| None);
        assert_eq!(up, Some(CameUp { node: "n".into(), setup_ms: 12_000 }));
        assert_eq!(state(&fleet, 12_000), [FleetState::Ready]);
        // The same plan again changes nothing; stopping is a change, once.
        assert!(apply(&mut fleet, &plan_of(vec![node_plan("n", NodeAction::Keep, &["s"])]), 13_000).is_empty());
        let stop = plan_of(vec![node_plan("n", NodeAction::Stop, &[])]);
        assert_eq!(fleet.changed_by(&stop, &stop).len(), 1);
        assert_eq!(apply(&mut fleet, &stop, 14_000).len(), 1);
        assert!(apply(&mut fleet, &stop, 14_500).is_empty());
        assert_eq!(state(&fleet, 14_500), [FleetState::Draining]);
        assert!(fleet.to_retire(14_500).is_empty());
        fleet.heartbeat(&status("n", 15_000, NodeState::Stopped, &[]), 15_000, |_| None);
        assert_eq!(fleet.to_retire(15_000), ["n"]);
        fleet.forget("n");
        assert_eq!(fleet.heartbeat(&status("n", 15_500, NodeState::Stopped, &[]), 15_500, |_| None), None);
        assert!(!fleet.knows("n"), "a last heartbeat does not bring it back");
    }

    #[test]
    fn silence_death_and_unasked_ends_are_losses() {
        let mut fleet = Fleet::new(PATIENCE);
        apply(&mut fleet, &plan_of(vec![node_plan("n", NodeAction::Start, &[])]), 0);
        assert_eq!(state(&fleet, 40_000), [FleetState::Ordered]);
        assert_eq!(state(&fleet, 40_001), [FleetState::Lost], "boot time and patience are over");
        fleet.heartbeat(&status("n", 41_000, NodeState::Ready, &[]), 41_000, |_| None);
        assert_eq!(state(&fleet, 46_000), [FleetState::Ready]);
        assert_eq!(state(&fleet, 46_001), [FleetState::Lost]);
        fleet.heartbeat(&status("n", 47_000, NodeState::Ready, &[]), 47_000, |_| None);
        fleet.provider_says(&BTreeMap::from([("n".to_owned(), false), ("other".to_owned(), true)]));
        assert_eq!(state(&fleet, 47_000), [FleetState::Lost], "its process has ended");
        fleet.heartbeat(&status("n", 48_000, NodeState::Draining, &[]), 48_000, |_| None);
        assert_eq!(state(&fleet, 48_000), [FleetState::Lost]);
    }

    #[test]
    fn a_drain_has_an_end_even_if_the_node_does_not() {
        let mut fleet = Fleet::new(PATIENCE);
        apply(&mut fleet, &plan_of(vec![node_plan("n", NodeAction::Start, &[])]), 0);
        apply(&mut fleet, &plan_of(vec![node_plan("n", NodeAction::Stop, &[])]), 10_000);
        for at in (10_000..30_000).step_by(1_000) {
            fleet.heartbeat(&status("n", at, NodeState::Draining, &[]), at, |_| None);
            assert!(fleet.to_retire(at).is_empty());
        }
        fleet.heartbeat(&status("n", 30_001, NodeState::Draining, &[]), 30_001, |_| None);
        assert_eq!(fleet.to_retire(30_001), ["n"]);
    }

    #[test]
    fn strangers_are_adopted_with_what_they_run() {
        let mut fleet = Fleet::new(PATIENCE);
        let s = status("hand", 1_000, NodeState::Ready, &[("s", InstanceState::Ready), ("t", InstanceState::Draining)]);
        fleet.heartbeat(&s, 1_000, |_| None);
        let nodes = fleet.snapshot(1_000, &[], |_| Some("1"));
        assert_eq!(nodes[0].hosts, [HostedInstance { service: "s".into(), workers: 1, ready: true, failed: None }]);
        assert_eq!(fleet.unknown_flavors(&[]), BTreeMap::from([("f".to_owned(), 2)]));
    }

    #[test]
    fn a_failed_load_is_remembered_until_the_version_changes() {
        let mut fleet = Fleet::new(PATIENCE);
        apply(&mut fleet, &plan_of(vec![node_plan("n", NodeAction::Start, &["s"])]), 0);
        fleet.heartbeat(&status("n", 1, NodeState::Ready, &[("s", InstanceState::Failed)]), 1, |_| None);
        let hosts = |fleet: &Fleet, version: &'static str| fleet.snapshot(1, &[], |_| Some(version))[0].hosts.clone();
        assert_eq!(hosts(&fleet, "1")[0].failed.as_deref(), Some("no such file"));
        apply(&mut fleet, &plan_of(vec![node_plan("n", NodeAction::Keep, &[])]), 2);
        fleet.heartbeat(&status("n", 3, NodeState::Ready, &[]), 3, |_| None);
        assert_eq!(hosts(&fleet, "1")[0].failed.as_deref(), Some("no such file"), "though nothing reports it now");
        assert!(hosts(&fleet, "2").is_empty());
    }
}
