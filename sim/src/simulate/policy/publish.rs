//! What lies between a plan and the nodes in production: what serves goes on until its successor serves.
//!
//! [`planner::handover::hand_over`] makes of each decision what is published, from what was told to the nodes and what
//! they say that serves; here is kept what `planner::fleet` keeps for it. As in production a new decision is due as soon
//! as something that is kept need not be kept any more.

use super::Seen;
use planner::handover::{Serving, hand_over};
use planner::model::{FleetState, Plan};
use schemas::allocation::InstanceAllocation;
use std::collections::BTreeMap;

type Shares = BTreeMap<String, Vec<InstanceAllocation>>;

/// See the module.
#[derive(Debug, Clone, Default)]
pub(super) struct Publication {
    decided: Option<Plan>,
    planned: Shares,
    told: Shares,
}

fn shares(plan: &Plan) -> Shares {
    plan.nodes.iter().map(|n| (n.node.clone(), n.instances.clone())).collect()
}

impl Publication {
    /// Takes a decision; what is to be published of it.
    pub(super) fn publish(&mut self, decided: Plan, seen: &Seen<'_>) -> Plan {
        self.planned = shares(&decided);
        let published = self.handed_over(&decided, seen);
        self.told = shares(&published);
        self.decided = Some(decided);
        published
    }

    /// True while something is kept beyond the plan.
    pub(super) fn keeps(&self) -> bool {
        self.told != self.planned
    }

    /// True when something that is kept need not be kept any more.
    pub(super) fn can_hand_over(&self, seen: &Seen<'_>) -> bool {
        let Some(decided) = &self.decided else { return false };
        self.keeps() && self.told != shares(&self.handed_over(decided, seen))
    }

    fn handed_over(&self, decided: &Plan, seen: &Seen<'_>) -> Plan {
        let memory_mib = |service: &str| {
            let service = seen.world.services.iter().find(|s| s.name == service);
            service.map_or(0.0, |s| s.profiles.iter().map(|p| p.memory_mib).fold(0.0, f64::max))
        };
        hand_over(decided, &self.serving(seen), memory_mib)
    }

    fn serving(&self, seen: &Seen<'_>) -> BTreeMap<String, Serving> {
        let of = |node: &super::NodeSeen| {
            let told = self.told.get(&node.id).map_or(&[] as &[_], Vec::as_slice);
            let planned = self.planned.get(&node.id).map_or(&[] as &[_], Vec::as_slice);
            let serves = |i: &&InstanceAllocation| {
                node.serving.iter().any(|&service| seen.world.services[service].name == i.service)
            };
            let held = |i: &&InstanceAllocation| planned.iter().all(|p| p.service != i.service);
            let flavor = &seen.flavors[node.flavor];
            Serving {
                instances: told.iter().filter(serves).cloned().collect(),
                held: told.iter().filter(held).map(|i| i.service.clone()).collect(),
                cores: flavor.cores,
                memory_mib: if flavor.memory_gib > 0.0 { flavor.memory_gib * 1024.0 } else { f64::INFINITY },
            }
        };
        let ready = seen.nodes.iter().filter(|n| n.state == FleetState::Ready);
        ready.map(|n| (n.id.clone(), of(n))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Host, NodeSeen};
    use super::*;
    use crate::simulate::scenario::{Folders, Scenario, tests::SMALL};
    use crate::simulate::world::World;
    use planner::lease::Lease;
    use planner::model::Naming;
    use schemas::allocation::{NodeAction, NodePlan};

    fn plan(on: &[(&str, NodeAction, bool)]) -> Plan {
        let instance = InstanceAllocation {
            service: "vision".into(),
            model: "m".into(),
            version: "1".into(),
            backend: "tract".into(),
            workers: 2,
            max_batch: 1,
            slo_ms: 200.0,
            service_p95_ms: 67.0,
        };
        let node = |&(id, action, serves): &(&str, NodeAction, bool)| NodePlan {
            node: id.into(),
            flavor: "c".into(),
            action,
            lease_start_ms: 0,
            lease_end_ms: 60_000,
            usd_per_hour: 0.1,
            instances: if serves { vec![instance.clone()] } else { Vec::new() },
            reason: String::new(),
        };
        Plan {
            services: Vec::new(),
            nodes: on.iter().map(node).collect(),
            changes: Vec::new(),
            cost_usd_per_hour: 0.1,
            shortfall_rps: 0.0,
            naming: Naming::default(),
        }
    }

    #[test]
    fn a_service_that_moves_is_kept_until_it_serves_on_its_new_node() {
        let scenario = Scenario::parse(SMALL).expect("sound");
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let world = World::new(&scenario, &Folders(vec![folder]), 1, &[]).expect("sound");
        let flavors = world.flavors_at(0.0);
        let node = |id: &str, serves: bool| NodeSeen {
            id: id.into(),
            flavor: 0,
            state: if serves { FleetState::Ready } else { FleetState::Ordered },
            lease: Lease { start_ms: 0, end_ms: 60_000 },
            hosts: vec![Host { service: 0, backend: "tract".into(), workers: 2, batch: 1, service_p95_us: 0 }],
            serving: if serves { vec![0] } else { Vec::new() },
            busy_s: 0.0,
            ready_at_s: 0.0,
        };
        let (before, after) = ([node("a", true), node("b", false)], [node("a", true), node("b", true)]);
        let seen =
            |nodes| Seen { world: &world, now_ms: 0, second: 0, flavors: &flavors, services: &[], nodes, updates: &[] };
        let mut publication = Publication::default();
        publication.publish(plan(&[("a", NodeAction::Keep, true)]), &seen(&before));
        assert!(!publication.keeps());
        let moved = || plan(&[("a", NodeAction::Stop, false), ("b", NodeAction::Start, true)]);
        let published = publication.publish(moved(), &seen(&before));
        assert_eq!((published.nodes[0].action, published.nodes[0].instances.len()), (NodeAction::Keep, 1));
        assert!(publication.keeps() && !publication.can_hand_over(&seen(&before)));
        assert!(publication.can_hand_over(&seen(&after)), "its successor serves");
        let published = publication.publish(moved(), &seen(&after));
        let on = |node: usize| (published.nodes[node].action, published.nodes[node].instances.len());
        assert_eq!((on(0), on(1)), ((NodeAction::Stop, 0), (NodeAction::Start, 1)));
        assert!(!publication.keeps());
    }
}
