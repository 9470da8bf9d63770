//! From a finished placement to a [`Plan`]: lease actions, changes, and a sentence for each.
//!
//! Invariant: a node's action follows from its lease and from whether anything is placed on it, nothing else.

use crate::cost::option;
use crate::demand::quantile;
use crate::lease::Terms;
use crate::model::{FleetNode, FleetState, Naming, Plan};
use crate::pack::{NO_LOAD_RPS, Node, Origin, Packing};
use crate::plan::fails_to_load;
use crate::share;
use schemas::allocation::{
    FlavorOption, InstanceAllocation, LoadSample, NodeAction, NodePlan, PlanChange, ServicePlan,
};
use std::collections::BTreeSet;

/// Words of `bound_by`.
const DEMAND: &str = "demand";
const MIN: &str = "min";
const MAX: &str = "max";
const QUOTA: &str = "quota";
const PARTITIONS: &str = "partitions";
const NO_FLAVOR: &str = "no feasible flavor";
const FAILED: &str = "failed to load";

pub(crate) fn report(packing: &Packing<'_>, next: u64) -> Plan {
    let problem = packing.problem;
    let services: Vec<ServicePlan> = (0..problem.services.len()).map(|s| service_plan(packing, s)).collect();
    let (mut nodes, mut changes) = (Vec::new(), Vec::new());
    for node in &packing.nodes {
        let (plan, change) = match node.origin {
            Origin::New => started(packing, node, &services),
            Origin::Fleet(index) => kept(packing, node, &problem.inputs.fleet[index], &services),
        };
        nodes.push(plan);
        changes.extend(change);
    }
    let planned: BTreeSet<&str> = packing.nodes.iter().map(|n| n.id.as_str()).collect();
    for node in &problem.inputs.fleet {
        if !planned.contains(node.node.as_str()) {
            let (plan, change) = ended(packing, node);
            nodes.push(plan);
            changes.extend(change);
        }
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    changes.sort_by(|a, b| a.node.cmp(&b.node));
    Plan {
        cost_usd_per_hour: nodes.iter().filter(|n| n.action != NodeAction::Stop).map(|n| n.usd_per_hour).sum(),
        shortfall_rps: services.iter().map(|s| s.shortfall_rps).sum(),
        services,
        nodes,
        changes,
        naming: Naming { next, ..problem.inputs.naming },
    }
}

fn service_plan(packing: &Packing<'_>, s: usize) -> ServicePlan {
    let problem = packing.problem;
    let (service, demand) = (problem.services[s], &problem.demands[s]);
    let level = quantile(problem.services[s].load.allowance, &problem.inputs.settings);
    let instances = packing.instances(s);
    let (capacity_rps, shortfall_rps) = (packing.carried(s), packing.shortfall(s));
    let chosen = chosen(packing, s).map(|f| problem.flavors[f].name.clone());
    let margin_rps = margin_rps(packing, s, &instances);
    let bound_by = bound_by(packing, s);
    let reason =
        reason(packing, s, &Said { capacity_rps, shortfall_rps, margin_rps, bound_by, chosen: chosen.as_deref() });
    ServicePlan {
        service: service.name.clone(),
        load: sample(packing, s),
        quantile: level,
        demand_rps: demand.rps,
        margin_rps,
        lead_ms: demand.lead_ms.max(0) as u64,
        justified_at_ms: demand.justified_at_ms,
        options: options(packing, s),
        chosen,
        bound_by: bound_by.to_owned(),
        instances: instances.len() as u32,
        capacity_rps,
        shortfall_rps,
        reason,
    }
}

fn sample(packing: &Packing<'_>, s: usize) -> LoadSample {
    let demand = &packing.problem.demands[s];
    LoadSample {
        service: packing.problem.services[s].name.clone(),
        start_ms: demand.sample_start_ms,
        observed_rps: demand.observed_rps,
        forecast_rps: demand.forecast_rps,
    }
}

/// Cheapest first; what cannot be used last.
fn options(packing: &Packing<'_>, s: usize) -> Vec<FlavorOption> {
    let problem = packing.problem;
    let mut options: Vec<FlavorOption> = (0..problem.flavors.len())
        .map(|f| option(problem.flavors[f], &problem.ladders[s][f], problem.services[s], &problem.inputs.settings))
        .collect();
    options.sort_by(|a, b| {
        let infeasible = |o: &FlavorOption| o.infeasible.is_some();
        infeasible(a).cmp(&infeasible(b)).then(a.usd_per_million.total_cmp(&b.usd_per_million))
    });
    options
}

/// The flavor that carries most of the service; without instances, the cheapest that could.
fn chosen(packing: &Packing<'_>, s: usize) -> Option<usize> {
    let problem = packing.problem;
    let workers = |f: usize| -> u32 {
        let of_flavor = packing.instances(s).into_iter().filter(|&(i, _)| packing.nodes[i].flavor == f);
        of_flavor.map(|(_, w)| w).sum()
    };
    let most = (0..problem.flavors.len()).filter(|&f| workers(f) > 0).max_by(|&a, &b| {
        workers(a).cmp(&workers(b)).then(problem.usd_per_million(s, b).total_cmp(&problem.usd_per_million(s, a)))
    });
    most.or_else(|| problem.cheapest(s))
}

/// What queueing asks for on top of the demand, once for each node's queue.
fn margin_rps(packing: &Packing<'_>, s: usize, instances: &[(usize, u32)]) -> f64 {
    use crate::model::CapacityRule;
    if packing.problem.inputs.settings.capacity_rule == CapacityRule::Paper {
        return 0.0;
    }
    let members: Vec<usize> = instances.iter().map(|&(i, _)| i).collect();
    let carried = packing.problem.demand_rps(s).min(packing.carried(s));
    if packing.problem.is_shared() {
        return packing.pooled_margin_rps(s, instances, carried);
    }
    let one = |(&(i, workers), share): (&(usize, u32), f64)| {
        let rung = packing.problem.ladder(s, packing.nodes[i].flavor).and_then(|l| l.rung(workers));
        rung.map_or(0.0, |r| r.waiting.margin_rps(carried * share).max(0.0))
    };
    instances.iter().zip(packing.shares(s, &members)).map(one).filter(|m| m.is_finite()).sum()
}

fn bound_by(packing: &Packing<'_>, s: usize) -> &'static str {
    let service = packing.problem.services[s];
    let n = packing.hosting(s).len();
    let (least, most) = packing.limits(s);
    if packing.problem.cheapest(s).is_none() {
        return NO_FLAVOR;
    }
    if packing.shortfall(s) > 0.0 || n < least {
        return if fails_to_load(packing, s) {
            FAILED
        } else if n >= most || most == 0 {
            if service.partitions.is_some_and(|p| p <= service.max.unwrap_or(u32::MAX)) { PARTITIONS } else { MAX }
        } else {
            QUOTA
        };
    }
    let one_less_would_do = |members: Vec<usize>| {
        let rate_rps = packing.problem.demand_rps(s);
        members.len() == least
            && (rate_rps < NO_LOAD_RPS
                || (members.len() > 1 && packing.spread(s, rate_rps, &members[..members.len() - 1]).is_some()))
    };
    if service.min > 0 && one_less_would_do(packing.hosting(s)) { MIN } else { DEMAND }
}

struct Said<'a> {
    capacity_rps: f64,
    shortfall_rps: f64,
    margin_rps: f64,
    bound_by: &'static str,
    chosen: Option<&'a str>,
}

fn reason(packing: &Packing<'_>, s: usize, said: &Said<'_>) -> String {
    let problem = packing.problem;
    let demand = problem.demands[s].sentence(quantile(problem.services[s].load.allowance, &problem.inputs.settings));
    let n = packing.hosting(s).len();
    let chosen = said.chosen.unwrap_or("no flavor");
    let carries = match n {
        0 => "nothing runs".to_owned(),
        1 => format!("1 instance on {chosen} carries {:.1}", said.capacity_rps),
        _ => format!("{n} instances, most on {chosen}, carry {:.1}", said.capacity_rps),
    };
    let mut text = format!("{demand}; {:.1} more for queueing; {carries}", said.margin_rps);
    let because = because(packing, s, said.bound_by);
    let (least, _) = packing.limits(s);
    if said.shortfall_rps > 0.0 {
        text.push_str(&format!("; short by {:.1} requests/s, because {because}", said.shortfall_rps));
    } else if n < least {
        text.push_str(&format!("; {n} of at least {least} instances, because {because}"));
    } else if said.bound_by == MIN {
        text.push_str(&format!("; {least} kept by min"));
    }
    text
}

fn because(packing: &Packing<'_>, s: usize, bound_by: &str) -> String {
    let problem = packing.problem;
    let service = problem.services[s];
    match bound_by {
        NO_FLAVOR => {
            let first =
                options(packing, s).into_iter().find_map(|o| o.infeasible.map(|why| format!("{}: {why}", o.flavor)));
            format!("no flavor can serve it ({})", first.unwrap_or_else(|| "none is configured".to_owned()))
        }
        FAILED => "its model failed to load where it was tried".to_owned(),
        PARTITIONS => format!(
            "its request topic has {} partitions and so at most as many instances; give it more partitions",
            service.partitions.unwrap_or(0)
        ),
        MAX => format!("max allows {} instances", service.max.unwrap_or(0)),
        QUOTA if !problem.inputs.settings.elastic => {
            "this provider starts no nodes and those that run are full".to_owned()
        }
        _ => {
            let alike: Vec<&str> =
                share::short_alike(packing, s).into_iter().map(|o| problem.services[o].name.as_str()).collect();
            let shared = match alike.len() {
                0 => String::new(),
                1..=3 => format!("; {} of the same priority is short too", alike.join(", ")),
                n => format!("; {n} others of the same priority are short too"),
            };
            format!("the quotas allow no further node that would help{shared}")
        }
    }
}

fn instances(packing: &Packing<'_>, node: &Node) -> Vec<InstanceAllocation> {
    let problem = packing.problem;
    let allocation = |(&s, &workers): (&usize, &u32)| {
        let service = problem.services[s];
        let ladder = problem.ladder(s, node.flavor)?;
        let rung = ladder.rung(workers).or_else(|| ladder.top())?;
        Some(InstanceAllocation {
            service: service.name.clone(),
            model: service.model.clone(),
            version: service.version.clone(),
            backend: ladder.backend.clone(),
            workers,
            max_batch: rung.batch,
            slo_ms: service.slo_ms,
            service_p95_ms: rung.service_ms,
        })
    };
    node.hosts().iter().filter_map(allocation).collect()
}

/// The service that a change of the node is about: the first in order of service.
fn mover(packing: &Packing<'_>, concerned: impl Fn(usize) -> bool) -> Option<usize> {
    packing.problem.order.iter().copied().find(|&s| concerned(s))
}

fn list(instances: &[InstanceAllocation]) -> String {
    let one = |i: &InstanceAllocation| {
        format!("{} with {} worker{}", i.service, i.workers, if i.workers == 1 { "" } else { "s" })
    };
    instances.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn started(packing: &Packing<'_>, node: &Node, services: &[ServicePlan]) -> (NodePlan, Option<PlanChange>) {
    let problem = packing.problem;
    let flavor = problem.flavors[node.flavor];
    let lease = Terms::of(flavor).start(problem.inputs.now_ms);
    let hosted = instances(packing, node);
    let cause = mover(packing, |s| node.hosts().contains_key(&s));
    let why = cause.map_or_else(String::new, |s| format!(": {}", services[s].reason));
    let reason = format!("start for {}{why}", list(&hosted));
    let plan = NodePlan {
        node: node.id.clone(),
        flavor: flavor.name.clone(),
        action: NodeAction::Start,
        lease_start_ms: lease.start_ms,
        lease_end_ms: lease.end_ms,
        usd_per_hour: flavor.usd_per_hour,
        instances: hosted,
        reason,
    };
    let change = change(packing, &plan, cause);
    (plan, Some(change))
}

fn change(packing: &Packing<'_>, plan: &NodePlan, cause: Option<usize>) -> PlanChange {
    PlanChange {
        service: cause.map(|s| packing.problem.services[s].name.clone()),
        node: plan.node.clone(),
        action: plan.action,
        reason: plan.reason.clone(),
        load: cause.map(|s| sample(packing, s)),
    }
}

fn kept(
    packing: &Packing<'_>,
    node: &Node,
    before: &FleetNode,
    services: &[ServicePlan],
) -> (NodePlan, Option<PlanChange>) {
    let problem = packing.problem;
    let (flavor, now_ms) = (problem.flavors[node.flavor], problem.inputs.now_ms);
    let (terms, then_ms) = (Terms::of(flavor), problem.then_ms(node.flavor));
    let hosted = instances(packing, node);
    let moved = differences(before, &hosted);
    let by_name = |s: usize| moved.iter().any(|(name, _)| *name == problem.services[s].name);
    let cause = mover(packing, by_name);
    let mut lease = before.lease;
    let (action, reason) = if !hosted.is_empty() {
        let does = if moved.is_empty() { format!("runs {}", list(&hosted)) } else { sentences(&moved) };
        if terms.renewal_due(lease, then_ms) {
            lease = terms.renewed(lease, then_ms);
            (NodeAction::Renew, format!("needed beyond the end of its lease; {does}"))
        } else {
            (NodeAction::Keep, does)
        }
    } else if problem.inputs.settings.elastic && terms.may_stop(lease, now_ms) {
        (NodeAction::Stop, "not needed, and nothing more is paid for".to_owned())
    } else if problem.inputs.settings.elastic {
        let left_s = (lease.end_ms - now_ms) as f64 / 1000.0;
        (
            NodeAction::Lapse,
            format!("not needed; unloaded and free for batch work until its lease lapses in {left_s:.0} s"),
        )
    } else {
        (NodeAction::Lapse, "not needed; unloaded".to_owned())
    };
    let changed = !moved.is_empty() || matches!(action, NodeAction::Renew | NodeAction::Stop);
    let why = cause.filter(|_| changed).map_or_else(String::new, |s| format!(": {}", services[s].reason));
    let plan = NodePlan {
        node: node.id.clone(),
        flavor: flavor.name.clone(),
        action,
        lease_start_ms: lease.start_ms,
        lease_end_ms: lease.end_ms,
        usd_per_hour: flavor.usd_per_hour,
        instances: hosted,
        reason: format!("{reason}{why}"),
    };
    let change = changed.then(|| change(packing, &plan, cause));
    (plan, change)
}

/// What differs from what the node hosted, as (service, sentence).
fn differences(before: &FleetNode, hosted: &[InstanceAllocation]) -> Vec<(String, String)> {
    let mut moved = Vec::new();
    for i in hosted {
        match before.hosts.iter().find(|h| h.service == i.service && h.failed.is_none()) {
            None => moved.push((i.service.clone(), format!("starts {} with {}", i.service, i.workers))),
            Some(h) if h.workers != i.workers => {
                moved.push((i.service.clone(), format!("{} from {} to {} workers", i.service, h.workers, i.workers)));
            }
            Some(_) => {}
        }
    }
    for h in before.hosts.iter().filter(|h| h.failed.is_none()) {
        if hosted.iter().all(|i| i.service != h.service) {
            moved.push((h.service.clone(), format!("stops {}", h.service)));
        }
    }
    moved.sort();
    moved
}

fn sentences(moved: &[(String, String)]) -> String {
    moved.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(", ")
}

/// A node that hosts nothing any more: lost, draining, or of a flavor that nobody knows.
fn ended(packing: &Packing<'_>, node: &FleetNode) -> (NodePlan, Option<PlanChange>) {
    let problem = packing.problem;
    let (reason, is_change) = match node.state {
        FleetState::Lost => ("lost: no sign of life, its work is planned elsewhere", true),
        FleetState::Draining => ("draining, then stopped", false),
        _ => ("its flavor is not configured", true),
    };
    let plan = NodePlan {
        node: node.node.clone(),
        flavor: node.flavor.clone(),
        action: NodeAction::Stop,
        lease_start_ms: node.lease.start_ms,
        lease_end_ms: node.lease.end_ms,
        usd_per_hour: problem.flavor_of(node).map_or(0.0, |f| problem.flavors[f].usd_per_hour),
        instances: Vec::new(),
        reason: reason.to_owned(),
    };
    let hosted = |s: usize| node.hosts.iter().any(|h| h.service == problem.services[s].name);
    let change = is_change.then(|| change(packing, &plan, mover(packing, hosted)));
    (plan, change)
}
