//! Nodes: what the plan wants of each and what each says of itself.

use schemas::EpochMs;
use schemas::allocation::{FleetPlan, InstanceAllocation, NodeAction, NodePlan};
use schemas::status::{ExecutorStatus, InstanceState, InstanceStatus, NodeState};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// A node that has said nothing for this long is shown as silent.
pub(crate) const SILENT_MS: i64 = 5_000;
/// A stopped node is shown for this long.
const STOPPED_SHOWN_MS: i64 = 60_000;
/// A silent node that no plan wants is shown for this long.
const SILENT_SHOWN_MS: i64 = 600_000;
/// Most nodes kept; beyond it the one silent for longest goes.
const MAX_NODES: usize = 512;

/// State of a node as the page shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeCondition {
    /// In the plan, and has not been heard of.
    Ordered,
    /// Says that it boots.
    Booting,
    /// Takes work.
    Ready,
    /// Finishes what it accepted.
    Draining,
    /// Said that it ended.
    Stopped,
    /// Has said nothing for more than five seconds.
    Silent,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeView {
    /// Node id.
    pub node: String,
    /// Flavor.
    pub flavor: String,
    /// State.
    pub condition: NodeCondition,
    /// What the current plan does with it; absent when the plan does not name it.
    pub action: Option<NodeAction>,
    /// End of its lease, by the current plan.
    pub lease_end_ms: Option<EpochMs>,
    /// Price while it is leased.
    pub usd_per_hour: Option<f64>,
    /// Why the plan has it.
    pub reason: Option<String>,
    /// Worker permits; absent before its first heartbeat.
    pub cores: Option<u32>,
    /// Plan that it follows.
    pub plan_id: Option<String>,
    /// When its process began.
    pub started_at_ms: Option<EpochMs>,
    /// Last heartbeat.
    pub last_seen_ms: Option<EpochMs>,
    /// Its instances, those that the plan wants and it does not have yet included.
    pub instances: Vec<InstanceView>,
}

/// One instance on a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InstanceView {
    /// Prediction service.
    pub service: String,
    /// Model version.
    pub version: String,
    /// Backend.
    pub backend: String,
    /// State; absent when it is only planned.
    pub state: Option<InstanceState>,
    /// Workers at the moment.
    pub workers: u32,
    /// Workers that the plan gave it.
    pub planned_workers: u32,
    /// Time from order to ready.
    pub load_ms: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// Nodes by condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct NodeCounts {
    /// Ordered, not heard of.
    pub ordered: u32,
    /// Booting.
    pub booting: u32,
    /// Ready.
    pub ready: u32,
    /// Draining.
    pub draining: u32,
    /// Silent.
    pub silent: u32,
    /// Worker permits of the ready nodes.
    pub ready_cores: u32,
}

/// Newest heartbeat of each node. Bounded to [`MAX_NODES`].
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    nodes: BTreeMap<String, ExecutorStatus>,
}

impl Fleet {
    /// Takes a heartbeat. False when it is not newer than the last one of its node.
    pub(crate) fn heartbeat(&mut self, status: ExecutorStatus) -> bool {
        if self.nodes.get(&status.node).is_some_and(|known| known.at_ms >= status.at_ms) {
            return false;
        }
        self.nodes.insert(status.node.clone(), status);
        if self.nodes.len() > MAX_NODES {
            let oldest = self.nodes.iter().min_by_key(|(_, s)| s.at_ms).map(|(node, _)| node.clone());
            oldest.and_then(|node| self.nodes.remove(&node));
        }
        true
    }

    /// A tombstone: the node is retired.
    pub(crate) fn remove(&mut self, node: &str) {
        self.nodes.remove(node);
    }

    /// Forgets stopped nodes, and silent ones that no plan wants, after a while.
    pub(crate) fn prune(&mut self, now_ms: EpochMs, plan: Option<&FleetPlan>) {
        let wanted: BTreeSet<&str> = plan.iter().flat_map(|p| &p.nodes).map(|n| n.node.as_str()).collect();
        self.nodes.retain(|node, status| {
            let age_ms = now_ms - status.at_ms;
            let shown_ms = if status.state == NodeState::Stopped { STOPPED_SHOWN_MS } else { SILENT_SHOWN_MS };
            age_ms <= shown_ms || (status.state != NodeState::Stopped && wanted.contains(node.as_str()))
        });
    }

    /// Requests of `service` that wait now, and the greatest age among them, over nodes that are not silent at `now_ms`.
    pub(crate) fn queue(&self, service: &str, now_ms: EpochMs) -> (u64, f64) {
        let live = self.nodes.values().filter(|s| now_ms - s.at_ms <= SILENT_MS && s.state != NodeState::Stopped);
        live.flat_map(|s| &s.services)
            .filter(|s| s.service == service)
            .fold((0, 0.0), |(depth, age), s| (s.queue_depth.saturating_add(depth), s.queue_age_ms.max(age)))
    }

    /// Instances of `service` that serve, and their workers, over nodes that are not silent at `now_ms`.
    pub(crate) fn serving(&self, service: &str, now_ms: EpochMs) -> (u32, u32) {
        let live = self.nodes.values().filter(|s| now_ms - s.at_ms <= SILENT_MS && s.state == NodeState::Ready);
        live.flat_map(|s| &s.instances)
            .filter(|i| i.service == service && i.state == InstanceState::Ready)
            .fold((0, 0), |(instances, workers), i| (instances + 1, i.workers.saturating_add(workers)))
    }

    /// Every node that is or should be, by name.
    pub(crate) fn view(&self, plan: Option<&FleetPlan>, now_ms: EpochMs) -> Vec<NodeView> {
        let planned: BTreeMap<&str, &NodePlan> =
            plan.iter().flat_map(|p| &p.nodes).map(|n| (n.node.as_str(), n)).collect();
        let names: BTreeSet<&str> = planned.keys().copied().chain(self.nodes.keys().map(String::as_str)).collect();
        names
            .into_iter()
            .filter_map(|name| node_view(name, planned.get(name).copied(), self.nodes.get(name), now_ms))
            .collect()
    }
}

pub(crate) fn counts(nodes: &[NodeView]) -> NodeCounts {
    let mut counts = NodeCounts::default();
    for node in nodes {
        match node.condition {
            NodeCondition::Ordered => counts.ordered += 1,
            NodeCondition::Booting => counts.booting += 1,
            NodeCondition::Ready => {
                counts.ready += 1;
                counts.ready_cores = counts.ready_cores.saturating_add(node.cores.unwrap_or(0));
            }
            NodeCondition::Draining => counts.draining += 1,
            NodeCondition::Silent => counts.silent += 1,
            NodeCondition::Stopped => {}
        }
    }
    counts
}

/// `None` for a node that was never heard of and that the plan only stops.
fn node_view(
    name: &str,
    planned: Option<&NodePlan>,
    status: Option<&ExecutorStatus>,
    now_ms: EpochMs,
) -> Option<NodeView> {
    if status.is_none() && planned.is_none_or(|p| p.action == NodeAction::Stop) {
        return None;
    }
    let flavor = planned.map(|p| &p.flavor).or(status.map(|s| &s.flavor)).cloned().unwrap_or_default();
    Some(NodeView {
        node: name.to_owned(),
        flavor,
        condition: condition(status, now_ms),
        action: planned.map(|p| p.action),
        lease_end_ms: planned.map(|p| p.lease_end_ms),
        usd_per_hour: planned.map(|p| p.usd_per_hour),
        reason: planned.map(|p| p.reason.clone()),
        cores: status.map(|s| s.cores),
        plan_id: status.and_then(|s| s.plan_id.clone()),
        started_at_ms: status.map(|s| s.started_at_ms),
        last_seen_ms: status.map(|s| s.at_ms),
        instances: instances(planned.map_or(&[], |p| &p.instances), status.map_or(&[], |s| &s.instances)),
    })
}

fn condition(status: Option<&ExecutorStatus>, now_ms: EpochMs) -> NodeCondition {
    let Some(status) = status else { return NodeCondition::Ordered };
    match status.state {
        NodeState::Stopped => NodeCondition::Stopped,
        _ if now_ms - status.at_ms > SILENT_MS => NodeCondition::Silent,
        NodeState::Booting => NodeCondition::Booting,
        NodeState::Ready => NodeCondition::Ready,
        NodeState::Draining => NodeCondition::Draining,
    }
}

/// What the node has, then what the plan wants beyond that, by service and version.
fn instances(planned: &[InstanceAllocation], present: &[InstanceStatus]) -> Vec<InstanceView> {
    let mut views: Vec<InstanceView> = present.iter().map(present_view).collect();
    for want in planned {
        let same = |service: &str, version: &str| service == want.service && version == want.version;
        let wanted = planned.iter().filter(|p| same(&p.service, &p.version)).count();
        if views.iter().filter(|v| same(&v.service, &v.version)).count() < wanted {
            views.push(InstanceView {
                service: want.service.clone(),
                version: want.version.clone(),
                backend: want.backend.clone(),
                state: None,
                workers: 0,
                planned_workers: want.workers,
                load_ms: None,
                error: None,
            });
        }
    }
    views.sort_by(|a, b| (&a.service, &a.version).cmp(&(&b.service, &b.version)));
    views
}

fn present_view(status: &InstanceStatus) -> InstanceView {
    InstanceView {
        service: status.service.clone(),
        version: status.version.clone(),
        backend: status.backend.clone(),
        state: Some(status.state),
        workers: status.workers,
        planned_workers: status.planned_workers,
        load_ms: status.load_ms.map(super::round3),
        error: status.error.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(node: &str, at_ms: EpochMs, state: NodeState) -> ExecutorStatus {
        ExecutorStatus {
            schema: Default::default(),
            node: node.to_owned(),
            flavor: "small".to_owned(),
            at_ms,
            started_at_ms: 0,
            state,
            plan_id: None,
            cores: 2,
            instances: vec![],
            services: vec![],
            profile_updates: vec![],
            replan: vec![],
            scaling: vec![],
        }
    }

    fn planned(node: &str, action: NodeAction) -> NodePlan {
        NodePlan {
            node: node.to_owned(),
            flavor: "small".to_owned(),
            action,
            lease_start_ms: 0,
            lease_end_ms: 60_000,
            usd_per_hour: 0.1,
            instances: vec![allocation("vision", 2)],
            reason: "demand".to_owned(),
        }
    }

    fn allocation(service: &str, workers: u32) -> InstanceAllocation {
        InstanceAllocation {
            service: service.to_owned(),
            model: "m.onnx".to_owned(),
            version: "1".to_owned(),
            backend: "tract".to_owned(),
            workers,
            max_batch: 1,
            slo_ms: 100.0,
            service_p95_ms: 10.0,
        }
    }

    fn plan(nodes: Vec<NodePlan>) -> FleetPlan {
        FleetPlan {
            schema: Default::default(),
            plan_id: "1-1".to_owned(),
            epoch: 1,
            sequence: 1,
            created_at_ms: 0,
            mode: Default::default(),
            services: vec![],
            nodes,
            cost_usd_per_hour: 0.1,
            shortfall_rps: 0.0,
            changes: vec![],
            cost: None,
        }
    }

    fn conditions(fleet: &Fleet, plan: &FleetPlan, now_ms: EpochMs) -> Vec<(String, NodeCondition)> {
        fleet.view(Some(plan), now_ms).into_iter().map(|n| (n.node, n.condition)).collect()
    }

    #[test]
    fn plan_and_heartbeats_meet_in_one_list() {
        let plan = plan(vec![
            planned("a", NodeAction::Keep),
            planned("b", NodeAction::Start),
            planned("gone", NodeAction::Stop),
        ]);
        let mut fleet = Fleet::default();
        fleet.heartbeat(status("a", 1000, NodeState::Ready));
        fleet.heartbeat(status("c", 1000, NodeState::Draining));
        let expected = [("a", NodeCondition::Ready), ("b", NodeCondition::Ordered), ("c", NodeCondition::Draining)];
        assert_eq!(conditions(&fleet, &plan, 2000), expected.map(|(n, c)| (n.to_owned(), c)));
        let view = fleet.view(Some(&plan), 2000);
        assert_eq!(view[0].instances[0].state, None, "planned and not yet there");
        assert_eq!(view[2].lease_end_ms, None, "the plan does not know it");
        assert_eq!(
            counts(&view),
            NodeCounts { ordered: 1, ready: 1, draining: 1, ready_cores: 2, ..Default::default() }
        );
    }

    #[test]
    fn a_node_is_silent_after_five_seconds_and_comes_back() {
        let plan = plan(vec![]);
        let mut fleet = Fleet::default();
        fleet.heartbeat(status("a", 1000, NodeState::Ready));
        assert_eq!(conditions(&fleet, &plan, 6000)[0].1, NodeCondition::Ready);
        assert_eq!(conditions(&fleet, &plan, 6001)[0].1, NodeCondition::Silent);
        assert!(!fleet.heartbeat(status("a", 1000, NodeState::Ready)), "a repeated heartbeat is no news");
        assert!(fleet.heartbeat(status("a", 7000, NodeState::Ready)));
        assert_eq!(conditions(&fleet, &plan, 7500)[0].1, NodeCondition::Ready);
    }

    #[test]
    fn nodes_that_ended_leave_the_list() {
        let mut fleet = Fleet::default();
        fleet.heartbeat(status("stopped", 0, NodeState::Stopped));
        fleet.heartbeat(status("lost", 0, NodeState::Ready));
        fleet.heartbeat(status("wanted", 0, NodeState::Ready));
        let plan = plan(vec![planned("wanted", NodeAction::Keep)]);
        fleet.prune(STOPPED_SHOWN_MS + 1, Some(&plan));
        assert_eq!(fleet.nodes.len(), 2);
        fleet.prune(SILENT_SHOWN_MS + 1, Some(&plan));
        assert_eq!(fleet.nodes.keys().collect::<Vec<_>>(), ["wanted"]);
        fleet.remove("wanted");
        assert!(fleet.nodes.is_empty());
    }

    #[test]
    fn memory_is_bounded_and_the_newest_stay() {
        let mut fleet = Fleet::default();
        for i in 0..MAX_NODES as i64 + 100 {
            fleet.heartbeat(status(&format!("n{i}"), i, NodeState::Ready));
        }
        assert_eq!(fleet.nodes.len(), MAX_NODES);
        assert!(fleet.nodes.contains_key("n611") && !fleet.nodes.contains_key("n0"));
    }
}
