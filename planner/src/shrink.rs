//! Giving nodes up: consolidation, and exchange for cheaper flavors, always make-before-break.
//!
//! A node is given up when everything it hosts fits on the others. If those already serve it, at once; if not, the
//! instances are first added there (the node is *pending*), and a later decision gives it up when they are ready.
//! An exchange is the same with a new, cheaper node as the other side; several for several are exchanged in `compose`.
//!
//! Invariants: demand stays carried by what exists and, at the moment of giving up, by what is ready; a node that
//! is being set up is never given up; a pass over a finished placement changes nothing.

use crate::compose::{recompose, surplus};
use crate::lease::HOUR_MS;
use crate::pack::{Assignment, Origin, Packing, TOLERANCE_RPS};
use std::collections::BTreeSet;

/// Passes at most; each that changes something frees or prepares a node, so this is never reached in practice.
const MOST_PASSES: usize = 64;

/// Gives up what can be, and prepares what could be.
pub(crate) fn shrink(packing: &mut Packing<'_>, next: &mut u64) {
    let elastic = packing.problem.inputs.settings.elastic;
    for _ in 0..MOST_PASSES {
        let (released, pending) = release_pass(packing);
        if released {
            continue;
        }
        let changed = exchange_pass(packing, &pending, next) || (elastic && recompose(packing, &pending, next));
        if !changed {
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
        let Some(before) = without(packing, index, &tier) else { continue };
        if packing.nodes[index].is_new() || before.iter().all(|(s, _)| served_now(packing, *s)) {
            changed = true;
            continue;
        }
        let targets = hosting_of(packing, &before);
        take_back(packing, &before);
        if let Some(before) = prepare(packing, index, &targets, &pending) {
            changed |= before.iter().any(|(s, instances)| packing.instances(*s) != *instances);
            pending.insert(index);
        }
    }
    (changed, pending)
}

/// What saves most comes first: nodes that are not paid for beyond now, then those outside the cheapest set, then dear
/// ones, then those that host little.
fn by_release_order(packing: &Packing<'_>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..packing.nodes.len()).filter(|&i| packing.nodes[i].in_use()).collect();
    let price = |i: usize| packing.problem.usd_per_hour[packing.nodes[i].flavor];
    let surplus = surplus(packing);
    order.sort_by(|&a, &b| {
        let (x, y) = (&packing.nodes[a], &packing.nodes[b]);
        let hosted = |n: &crate::pack::Node| n.hosts().values().sum::<u32>();
        y.is_new()
            .cmp(&x.is_new())
            .then(x.sunk.cmp(&y.sunk))
            .then(surplus.contains(&b).cmp(&surplus.contains(&a)))
            .then(price(b).total_cmp(&price(a)))
            .then(hosted(x).cmp(&hosted(y)))
            .then(y.cmp_name(x))
    });
    order
}

impl Packing<'_> {
    /// How long what a node is for can be expected to last: as long as it has lasted, `payback_ms` at most. To exchange
    /// when the dearer choice has cost as much as the exchange does is the break-even rule of renting and buying: whatever
    /// the load does next, what is paid is at most twice what it had to be, and a load that wanders starts nothing.
    pub(crate) fn lasts_ms(&self, index: usize) -> i64 {
        let Origin::Fleet(i) = self.nodes[index].origin else { return 0 };
        let inputs = self.problem.inputs;
        (inputs.now_ms - inputs.fleet[i].lease.start_ms).clamp(0, inputs.settings.payback_ms.max(0))
    }
}

/// Services that a trial moves, with the instances that they had.
type Before = Vec<(usize, Assignment)>;

fn before(packing: &Packing<'_>, services: impl Iterator<Item = usize>) -> Before {
    services.map(|s| (s, packing.instances(s))).collect()
}

fn take_back(packing: &mut Packing<'_>, before: &Before) {
    for (service, instances) in before {
        packing.assign(*service, instances);
    }
}

fn hosting_of(packing: &Packing<'_>, moved: &Before) -> Vec<(usize, Vec<usize>)> {
    moved.iter().map(|(s, _)| (*s, packing.hosting(*s))).collect()
}

/// Moves all that one node hosts elsewhere, if it fits there; otherwise nothing changes.
fn without(
    packing: &mut Packing<'_>,
    index: usize,
    tier: &dyn Fn(&Packing<'_>, usize) -> Option<u8>,
) -> Option<Before> {
    let hosted = packing.nodes[index].hosts();
    let moved: Vec<usize> = packing.problem.order.iter().copied().filter(|s| hosted.contains_key(s)).collect();
    // Most often the others are full.
    let others_could = |&s: &usize| {
        let (_, most) = packing.limits(s);
        let all = |i: usize| i != index && tier(packing, i).is_some();
        packing.problem.wants_nothing(s)
            || packing.best_set(s, most, &all).0 >= packing.problem.demand_rps(s) - TOLERANCE_RPS
    };
    if !moved.iter().all(others_could) {
        return None;
    }
    let before = before(packing, moved.iter().copied());
    let in_time: Vec<f64> = moved.iter().map(|&s| packing.near_served(s)).collect();
    packing.empty(index);
    for (&service, in_time) in moved.iter().zip(in_time) {
        let assignment = packing.cover(service, |i| tier(packing, i));
        let fits = assignment.map(|a| packing.assign(service, &a)).is_some();
        if !fits || packing.near_served(service) < in_time - TOLERANCE_RPS {
            take_back(packing, &before);
            return None;
        }
    }
    Some(before)
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

/// Lets the moved services run on their new nodes *and* still on the old one, and on those that wait for their successors
/// as well; if that cannot be, nothing changes.
fn prepare(
    packing: &mut Packing<'_>,
    index: usize,
    targets: &[(usize, Vec<usize>)],
    pending: &BTreeSet<usize>,
) -> Option<Before> {
    let before = before(packing, targets.iter().map(|(s, _)| *s));
    for (service, members) in targets {
        let mut members: BTreeSet<usize> = members.iter().copied().collect();
        members.insert(index);
        members.extend(packing.hosting(*service).into_iter().filter(|i| pending.contains(i)));
        let members: Vec<usize> = members.into_iter().collect();
        let (_, most) = packing.limits(*service);
        let rate_rps = packing.problem.demand_rps(*service);
        let both = if members.len() > most { None } else { packing.spread(*service, rate_rps, &members) };
        let Some(both) = both else {
            take_back(packing, &before);
            return None;
        };
        packing.assign(*service, &both);
    }
    Some(before)
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
        let mut best: Option<(f64, usize, Before)> = None;
        for flavor in 0..packing.problem.flavors.len() {
            let Some((usd, both)) = exchange(packing, index, flavor, pending, *next) else { continue };
            if best.as_ref().is_none_or(|(b, ..)| usd < *b) {
                best = Some((usd, flavor, both));
            }
        }
        if let Some((_, flavor, both)) = best {
            let added = packing.add(flavor, next);
            packing.nodes[added].replacement = true;
            take_back(packing, &both);
            return true;
        }
    }
    false
}

/// What would run where with a node of `flavor` beside `index`, if that one could then be given up and it pays.
fn exchange(
    packing: &mut Packing<'_>,
    index: usize,
    flavor: usize,
    pending: &BTreeSet<usize>,
    mut next: u64,
) -> Option<(f64, Before)> {
    let problem = packing.problem;
    let settings = &problem.inputs.settings;
    let (old_usd, new_usd) = (problem.usd_per_hour[packing.nodes[index].flavor], problem.usd_per_hour[flavor]);
    let saved = old_usd - new_usd;
    if saved <= 0.0 || saved < old_usd * settings.swap_gain || !packing.quota().allows(flavor) {
        return None;
    }
    let hosted = packing.nodes[index].hosts().keys();
    let load_ms = hosted.filter_map(|&s| Some(problem.ladder(s, flavor)?.load_ms)).max()?;
    let overlap_ms = problem.flavors[flavor].boot_ms() + settings.image_ms + load_ms + settings.period_ms;
    let hours = |ms: i64| ms as f64 / HOUR_MS as f64;
    if saved * hours(packing.lasts_ms(index)) < new_usd * hours(overlap_ms) {
        return None;
    }
    let added = packing.add(flavor, &mut next);
    packing.nodes[added].replacement = true;
    let tier = |p: &Packing<'_>, i: usize| {
        (i == added || (i != index && !pending.contains(&i) && p.nodes[i].in_use())).then_some(0)
    };
    let found = without(packing, index, &tier).and_then(|moved| {
        let targets = hosting_of(packing, &moved);
        take_back(packing, &moved);
        let old = prepare(packing, index, &targets, pending)?;
        let both = before(packing, targets.iter().map(|(s, _)| *s));
        let used = packing.nodes[added].in_use();
        take_back(packing, &old);
        used.then_some((new_usd, both))
    });
    packing.nodes.pop();
    found
}
