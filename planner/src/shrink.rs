//! Giving nodes up: consolidation, and exchange for cheaper flavors, always make-before-break.
//!
//! A node is given up when everything it hosts fits on the others. If those already serve it, at once; if not, the
//! instances are first added there (the node is *pending*), and a later decision gives it up when they are ready.
//! An exchange is the same with a new, cheaper node as the other side.
//!
//! Invariants: demand stays carried by what exists and, at the moment of giving up, by what is ready; a node that
//! is being set up is never given up; a pass over a finished placement changes nothing.
//! Left out: mergers of several nodes into one bigger (`plan` of later versions: an exact programme over counts).

use crate::lease::HOUR_MS;
use crate::pack::{Assignment, Packing, TOLERANCE_RPS};
use std::collections::BTreeSet;

/// Passes at most; each that changes something frees or prepares a node, so this is never reached in practice.
const MOST_PASSES: usize = 64;

/// Gives up what can be, and prepares what could be.
pub(crate) fn shrink(packing: &mut Packing<'_>, next: &mut u64) {
    for _ in 0..MOST_PASSES {
        let (released, pending) = release_pass(packing);
        if released {
            continue;
        }
        if !exchange_pass(packing, &pending, next) {
            return;
        }
    }
}

/// One try for every node in use. True if anything changed, and the nodes that wait for others to be ready.
fn release_pass(packing: &mut Packing<'_>) -> (bool, BTreeSet<usize>) {
    let (mut changed, mut pending) = (false, BTreeSet::new());
    for index in by_release_order(packing) {
        let node = &packing.nodes[index];
        if node.replacement || (!node.is_new() && !node.ready) {
            continue;
        }
        let sunk = node.sunk;
        let tier = |p: &Packing<'_>, i: usize| {
            let other = &p.nodes[i];
            let usable = i != index && !pending.contains(&i);
            // Idle nodes that are paid for may take over from one that is not.
            if usable && other.in_use() {
                Some(0)
            } else if usable && other.sunk && !sunk && !other.is_new() {
                Some(1)
            } else {
                None
            }
        };
        let Some((trial, moved)) = without(packing, index, &tier) else { continue };
        if packing.nodes[index].is_new() || moved.iter().all(|&s| served_now(&trial, s)) {
            *packing = trial;
            changed = true;
        } else if let Some(prepared) = prepared(packing, &trial, index, &moved) {
            changed |= prepared.nodes != packing.nodes;
            *packing = prepared;
            pending.insert(index);
        }
    }
    (changed, pending)
}

/// What saves most comes first: nodes that are not paid for beyond now, then dear ones, then those that host little.
fn by_release_order(packing: &Packing<'_>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..packing.nodes.len()).filter(|&i| packing.nodes[i].in_use()).collect();
    let price = |i: usize| packing.problem.flavors[packing.nodes[i].flavor].usd_per_hour;
    order.sort_by(|&a, &b| {
        let (x, y) = (&packing.nodes[a], &packing.nodes[b]);
        let hosted = |n: &crate::pack::Node| n.hosts.values().sum::<u32>();
        y.is_new()
            .cmp(&x.is_new())
            .then(x.sunk.cmp(&y.sunk))
            .then(price(b).total_cmp(&price(a)))
            .then(hosted(x).cmp(&hosted(y)))
            .then(y.cmp_name(x))
    });
    order
}

/// The placement without one node, if all that it hosts fits elsewhere, and the services that had to move.
fn without<'p>(
    packing: &Packing<'p>,
    index: usize,
    tier: &dyn Fn(&Packing<'_>, usize) -> Option<u8>,
) -> Option<(Packing<'p>, Vec<usize>)> {
    let hosted = &packing.nodes[index].hosts;
    let moved: Vec<usize> = packing.problem.order.iter().copied().filter(|s| hosted.contains_key(s)).collect();
    // Most often the others are full: that is seen without a copy.
    let others_could = |&s: &usize| {
        let (_, most) = packing.limits(s);
        let all = |i: usize| i != index && tier(packing, i).is_some();
        packing.problem.wants_nothing(s)
            || packing.best_set(s, most, &all).0 >= packing.problem.demand_rps(s) - TOLERANCE_RPS
    };
    if !moved.iter().all(others_could) {
        return None;
    }
    let mut trial = packing.clone();
    trial.nodes[index].hosts.clear();
    for &service in &moved {
        let assignment = trial.cover(service, |i| tier(packing, i))?;
        trial.assign(service, &assignment);
    }
    Some((trial, moved))
}

/// True when instances that serve at this moment carry the service in this placement.
fn served_now(packing: &Packing<'_>, service: usize) -> bool {
    if packing.problem.wants_nothing(service) {
        return true;
    }
    let live: Assignment =
        packing.instances(service).into_iter().filter(|&(i, _)| packing.nodes[i].live.contains(&service)).collect();
    !live.is_empty() && packing.carried_by(service, &live) >= packing.problem.demand_rps(service) - TOLERANCE_RPS
}

/// The placement in which the moved services run on their new nodes *and* still on the old one.
fn prepared<'p>(packing: &Packing<'p>, trial: &Packing<'p>, index: usize, moved: &[usize]) -> Option<Packing<'p>> {
    let mut both = packing.clone();
    // New nodes of an exchange exist in the trial only.
    both.nodes.extend(trial.nodes.iter().skip(packing.nodes.len()).cloned().map(|mut node| {
        node.hosts.clear();
        node
    }));
    for &service in moved {
        let mut members: BTreeSet<usize> = trial.hosting(service).into_iter().collect();
        members.insert(index);
        let members: Vec<usize> = members.into_iter().collect();
        let (_, most) = both.limits(service);
        if members.len() > most {
            return None;
        }
        let assignment = both.spread(service, both.problem.demand_rps(service), &members)?;
        both.assign(service, &assignment);
    }
    Some(both)
}

/// Orders a cheaper node for one that is too big for what it hosts. True if anything changed.
fn exchange_pass(packing: &mut Packing<'_>, pending: &BTreeSet<usize>, next: &mut u64) -> bool {
    if !packing.problem.inputs.settings.elastic {
        return false;
    }
    for index in by_release_order(packing) {
        let node = &packing.nodes[index];
        if node.is_new() || !node.ready || node.sunk || pending.contains(&index) {
            continue;
        }
        let mut best: Option<(f64, Packing<'_>, u64)> = None;
        for flavor in 0..packing.problem.flavors.len() {
            let Some((usd, both, after)) = exchange(packing, index, flavor, pending, *next) else { continue };
            if best.as_ref().is_none_or(|(b, ..)| usd < *b) {
                best = Some((usd, both, after));
            }
        }
        if let Some((_, both, after)) = best {
            *packing = both;
            *next = after;
            return true;
        }
    }
    false
}

/// The placement with a node of `flavor` beside `index`, if that one could then be given up and it pays.
fn exchange<'p>(
    packing: &Packing<'p>,
    index: usize,
    flavor: usize,
    pending: &BTreeSet<usize>,
    next: u64,
) -> Option<(f64, Packing<'p>, u64)> {
    let problem = packing.problem;
    let settings = &problem.inputs.settings;
    let (old, new) = (problem.flavors[packing.nodes[index].flavor], problem.flavors[flavor]);
    let saved = old.usd_per_hour - new.usd_per_hour;
    if saved <= 0.0 || saved < old.usd_per_hour * settings.swap_gain || !packing.quota().allows(flavor) {
        return None;
    }
    let load_ms = packing.nodes[index].hosts.keys().filter_map(|&s| Some(problem.ladder(s, flavor)?.load_ms)).max()?;
    let overlap_ms = new.boot_ms() + settings.image_ms + load_ms + settings.period_ms;
    let hours = |ms: i64| ms as f64 / HOUR_MS as f64;
    if saved * hours(settings.payback_ms) < new.usd_per_hour * hours(overlap_ms) {
        return None;
    }
    let (mut trial, mut after) = (packing.clone(), next);
    let added = trial.add(flavor, &mut after);
    trial.nodes[added].replacement = true;
    let tier = |p: &Packing<'_>, i: usize| {
        (i == added || (i != index && !pending.contains(&i) && p.nodes[i].in_use())).then_some(0)
    };
    let (trial, moved) = without(&trial, index, &tier)?;
    let both = prepared(packing, &trial, index, &moved)?;
    both.nodes[added].in_use().then_some((new.usd_per_hour, both, after))
}
