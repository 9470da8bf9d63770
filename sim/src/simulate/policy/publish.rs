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
