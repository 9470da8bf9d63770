//! Make before break: what serves goes on until what takes over serves.
//!
//! A plan says where everything shall run. A service that moves to a node that still boots would serve nowhere until
//! then, so the shares that are published keep its old instances, with the workers that they have, until every
//! instance of the plan serves. The plan itself does not know of them: planning again from it changes nothing.
//!
//! Invariants: pure; an instance that serves is taken away, or loses workers, only when all planned instances of its
//! service serve or none is planned; nothing that the plan puts on a node is left out. On a node without free cores
//! planned instances wait for the rest of their workers; each has one at once, so that two services that change
//! places do not wait for each other, and cores are shared for that time. Memory is never shared: what does not fit
//! beside the plan goes at once. For the time of a hand-over a service may have more instances than its `max`.

use crate::model::Plan;
use schemas::allocation::{InstanceAllocation, NodeAction, NodePlan, PlanChange};
use std::collections::{BTreeMap, BTreeSet};

/// What serves on a node at this moment.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Serving {
    /// Instances that were put there and say that they serve.
    pub instances: Vec<InstanceAllocation>,
    /// Instances of earlier plans that only wait for others to take over.
    pub held: BTreeSet<String>,
    /// Worker permits of the node; 0: not known, and nothing is checked.
    pub cores: u32,
    /// Memory of the node, MiB; infinite: not checked.
    pub memory_mib: f64,
}

/// The plan as it is to be published: with what is kept for now. `serving` is by node; `memory_mib` tells what an
/// instance of a service takes.
pub fn hand_over(decided: &Plan, serving: &BTreeMap<String, Serving>, memory_mib: impl Fn(&str) -> f64) -> Plan {
    let mut waiting: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in &decided.nodes {
        for i in node.instances.iter().filter(|i| !serves(serving, &node.node, i)) {
            waiting.entry(&i.service).or_default().push(&node.node);
        }
    }
    let mut published = decided.clone();
    for node in &mut published.nodes {
        let Some(now) = serving.get(&node.node) else { continue };
        let planned = node.instances.clone();
        let kept = keep(node, now, &waiting, &memory_mib);
        fit(node, &planned, now);
        if !kept.is_empty() && matches!(node.action, NodeAction::Stop | NodeAction::Lapse) {
            if node.action == NodeAction::Stop {
                published.cost_usd_per_hour += node.usd_per_hour;
            }
            node.action = NodeAction::Keep;
            published.changes.retain(|c| c.node != node.node);
        }
        for service in &kept {
            let takers = waiting.get(service.as_str()).map(|n| n.join(", ")).unwrap_or_default();
            node.reason = format!("{}; keeps {service} until it serves on {takers}", node.reason);
        }
        let released: Vec<&String> =
            now.held.iter().filter(|s| node.instances.iter().all(|i| i.service != **s)).collect();
        let told = published.changes.iter().any(|c| c.node == node.node);
        if !released.is_empty() && !told {
            let services: Vec<&str> = released.iter().map(|s| s.as_str()).collect();
            node.reason = format!("stops {}: it serves elsewhere now", services.join(", "));
            published.changes.push(PlanChange {
                service: Some(released[0].clone()),
                node: node.node.clone(),
                action: node.action,
                reason: node.reason.clone(),
                load: decided.services.iter().find(|s| s.service == *released[0]).map(|s| s.load.clone()),
            });
        }
    }
    published
}

/// True when the very instance that is planned serves already.
fn serves(serving: &BTreeMap<String, Serving>, node: &str, planned: &InstanceAllocation) -> bool {
    serving
        .get(node)
        .is_some_and(|n| n.instances.iter().any(|i| i.service == planned.service && i.version == planned.version))
}

/// Adds to `node` what must go on there, and gives the services that the plan does not have there.
fn keep(
    node: &mut NodePlan,
    now: &Serving,
    waiting: &BTreeMap<&str, Vec<&str>>,
    memory_mib: &impl Fn(&str) -> f64,
) -> Vec<String> {
    let mut kept = Vec::new();
    for running in now.instances.iter().filter(|i| waiting.contains_key(i.service.as_str())) {
        match node.instances.iter_mut().find(|i| i.service == running.service) {
            Some(planned) => planned.workers = planned.workers.max(running.workers),
            None => {
                let taken: f64 = node.instances.iter().map(|i| memory_mib(&i.service)).sum();
                if taken + memory_mib(&running.service) <= now.memory_mib {
                    node.instances.push(running.clone());
                    kept.push(running.service.clone());
                }
            }
        }
    }
    node.instances.sort_by(|a, b| a.service.cmp(&b.service));
    kept
}

/// Takes workers back until the node has the cores for all: first what would be added to what there is, then what is
/// kept beyond the plan. One worker stays of each.
fn fit(node: &mut NodePlan, planned: &[InstanceAllocation], now: &Serving) {
    let workers = |of: &[InstanceAllocation], s: &str| of.iter().find(|i| i.service == s).map_or(0, |i| i.workers);
    let over = |n: &NodePlan| n.instances.iter().map(|i| i.workers).sum::<u32>().saturating_sub(now.cores);
    if now.cores == 0 || node.instances.as_slice() == planned {
        return;
    }
    for to_plan in [false, true] {
        for index in 0..node.instances.len() {
            let too_many = over(node);
            let instance = &mut node.instances[index];
            let floor = workers(if to_plan { planned } else { &now.instances }, &instance.service).max(1);
            let spare = instance.workers.saturating_sub(floor);
            instance.workers -= spare.min(too_many);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SERVICES: [&str; 3] = ["a", "b", "c"];

    fn instance(service: &str, workers: u32) -> InstanceAllocation {
        InstanceAllocation {
            service: service.into(),
            model: format!("{service}.onnx"),
            version: "1".into(),
            backend: "tract".into(),
            workers,
            max_batch: 1,
            slo_ms: 200.0,
            service_p95_ms: 5.0,
        }
    }

    fn node(id: &str, action: NodeAction, instances: Vec<InstanceAllocation>) -> NodePlan {
        NodePlan {
            node: id.into(),
            flavor: "f".into(),
            action,
            lease_start_ms: 0,
            lease_end_ms: 60_000,
            usd_per_hour: 1.0,
            instances,
            reason: "as planned".into(),
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

    fn serving(instances: Vec<InstanceAllocation>, cores: u32) -> Serving {
        Serving { instances, cores, memory_mib: f64::INFINITY, ..Serving::default() }
    }

    fn workers(plan: &Plan, node: &str) -> Vec<(String, u32)> {
        let node = plan.nodes.iter().find(|n| n.node == node).expect("there");
        node.instances.iter().map(|i| (i.service.clone(), i.workers)).collect()
    }

    #[test]
    fn a_service_stays_until_the_node_that_takes_it_over_serves() {
        let decided = plan_of(vec![
            node("old", NodeAction::Keep, vec![instance("a", 2)]),
            node("new", NodeAction::Start, vec![instance("b", 2)]),
        ]);
        let old = serving(vec![instance("a", 1), instance("b", 1)], 2);
        let published = hand_over(&decided, &BTreeMap::from([("old".into(), old.clone())]), |_| 0.0);
        assert_eq!(workers(&published, "old"), [("a".into(), 1), ("b".into(), 1)], "a waits for its second core");
        assert!(published.nodes[0].reason.contains("keeps b until it serves on new"), "{}", published.nodes[0].reason);
        let held = Serving { held: BTreeSet::from(["b".to_owned()]), ..old };
        let both = BTreeMap::from([("old".into(), held), ("new".into(), serving(vec![instance("b", 2)], 2))]);
        let published = hand_over(&decided, &both, |_| 0.0);
        assert_eq!(published.nodes[0].instances, decided.nodes[0].instances);
        assert!(published.changes[0].reason.contains("stops b"), "{:?}", published.changes);
    }

    #[test]
    fn a_node_that_shall_stop_waits_too_and_a_service_that_is_given_up_does_not() {
        let stop = node("old", NodeAction::Stop, vec![]);
        let now = BTreeMap::from([("old".to_owned(), serving(vec![instance("a", 1)], 2))]);
        let moved = plan_of(vec![stop.clone(), node("new", NodeAction::Start, vec![instance("a", 1)])]);
        let published = hand_over(&moved, &now, |_| 0.0);
        assert_eq!(published.nodes[0].action, NodeAction::Keep);
        assert_eq!(published.cost_usd_per_hour, moved.cost_usd_per_hour + 1.0, "it is paid while it waits");
        assert_eq!(workers(&published, "old"), [("a".into(), 1)]);
        assert_eq!(hand_over(&plan_of(vec![stop.clone()]), &now, |_| 0.0), plan_of(vec![stop]));
    }

    #[test]
    fn what_does_not_fit_into_memory_goes_at_once() {
        let decided = plan_of(vec![
            node("old", NodeAction::Keep, vec![instance("a", 1)]),
            node("new", NodeAction::Start, vec![instance("b", 1)]),
        ]);
        let now = Serving { memory_mib: 150.0, ..serving(vec![instance("b", 1)], 2) };
        let published = hand_over(&decided, &BTreeMap::from([("old".into(), now)]), |_| 100.0);
        assert_eq!(published.nodes[0].instances, decided.nodes[0].instances);
    }

    fn any_instances() -> impl Strategy<Value = Vec<InstanceAllocation>> {
        prop::collection::vec(0u32..4, 3).prop_map(|workers| {
            let some = SERVICES.iter().zip(workers).filter(|(_, w)| *w > 0);
            some.map(|(s, w)| instance(s, w)).collect()
        })
    }

    proptest! {
        #[test]
        fn nothing_that_serves_goes_before_its_successor_serves(
            worlds in prop::collection::vec((any_instances(), any_instances(), any::<bool>()), 1..5)
        ) {
            let id = |i: usize| format!("n{i}");
            let nodes = worlds.iter().enumerate().map(|(i, w)| node(&id(i), NodeAction::Keep, w.0.clone())).collect();
            let decided = plan_of(nodes);
            let cores = |w: &(Vec<InstanceAllocation>, Vec<InstanceAllocation>, bool)| {
                let sum = |x: &[InstanceAllocation]| x.iter().map(|i| i.workers).sum::<u32>();
                sum(&w.0).max(sum(&w.1)).max(1)
            };
            let now: BTreeMap<String, Serving> = worlds
                .iter()
                .enumerate()
                .filter(|(_, w)| w.2)
                .map(|(i, w)| (id(i), serving(w.1.clone(), cores(w))))
                .collect();
            let published = hand_over(&decided, &now, |_| 0.0);
            for (before, after) in decided.nodes.iter().zip(&published.nodes) {
                for i in &before.instances {
                    prop_assert!(after.instances.iter().any(|j| j.service == i.service && j.workers >= 1));
                }
                let Some(n) = now.get(&after.node) else {
                    prop_assert_eq!(&before.instances, &after.instances);
                    continue;
                };
                let total: u32 = after.instances.iter().map(|i| i.workers).sum();
                let new = after.instances.iter().filter(|i| n.instances.iter().all(|j| j.service != i.service)).count();
                prop_assert!(total <= n.cores + new as u32, "{total} of {}", n.cores);
                for running in &n.instances {
                    let planned: Vec<_> = decided.nodes.iter().filter(|p| p.instances.iter().any(|i| i.service == running.service)).collect();
                    let all_serve = planned.iter().all(|p| {
                        now.get(&p.node).is_some_and(|n| n.instances.iter().any(|i| i.service == running.service))
                    });
                    if !all_serve {
                        prop_assert!(after.instances.iter().any(|i| i.service == running.service));
                    }
                }
            }
            // When all that is planned serves, the plan is what is published.
            let served: BTreeMap<String, Serving> = decided.nodes.iter().map(|n| (n.node.clone(), serving(n.instances.clone(), 8))).collect();
            prop_assert_eq!(hand_over(&decided, &served, |_| 0.0), decided);
        }
    }
}
