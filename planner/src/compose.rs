//! Which nodes of a service to have, when those that are there were ordered one after the other.
//!
//! Growing adds what is missing and an exchange swaps one node for one, so a service can end on nine small machines
//! where one with a GPU is cheaper, or keep that one at a load that two small machines carry. Both are one question:
//! the cheapest set that carries the demand, out of what the service has for itself and what may be ordered (`grow`,
//! an exact cover). Where that set needs new nodes and pays for the time in which old and new ones run together, they are
//! ordered; where it does not, the nodes outside it are given up first (`shrink`).
//!
//! Invariants: only nodes that host one service alone are weighed against each other, others are there anyway; one
//! change of a service at a time; make before break, as with every exchange.
//! Left out: sets for several services at once.

use crate::grow::Quota;
use crate::lease::HOUR_MS;
use crate::pack::Packing;
use std::collections::BTreeSet;

/// Nodes that the service has for itself, and that cost something from now on.
fn own(packing: &Packing<'_>, service: usize) -> Vec<usize> {
    let alone = |&i: &usize| packing.nodes[i].hosts().len() == 1 && !packing.nodes[i].sunk;
    packing.hosting(service).into_iter().filter(alone).collect()
}

fn by_flavor(packing: &Packing<'_>, nodes: &[usize]) -> Vec<u32> {
    let mut counts = vec![0; packing.problem.flavors.len()];
    nodes.iter().for_each(|&i| counts[packing.nodes[i].flavor] += 1);
    counts
}

fn usd(packing: &Packing<'_>, counts: &[u32]) -> f64 {
    counts.iter().zip(&packing.problem.usd_per_hour).map(|(n, usd)| f64::from(*n) * usd).sum()
}

/// The cheapest set, by flavor, that carries the demand in the place of `own`, out of these nodes and `more`.
fn cheapest(packing: &Packing<'_>, service: usize, own: &[usize], more: Option<&Quota>) -> Option<Vec<u32>> {
    let mut quota = Quota { by_flavor: by_flavor(packing, own), total: own.len() as u32 };
    if let Some(more) = more {
        quota.by_flavor.iter_mut().zip(&more.by_flavor).for_each(|(n, more)| *n = n.saturating_add(*more));
        quota.total = quota.total.saturating_add(more.total);
    }
    let present = |i: usize| packing.nodes[i].in_use() && !own.contains(&i);
    let mut counts = vec![0; packing.problem.flavors.len()];
    for (flavor, n) in packing.cheapest_cover(service, &quota, &present)? {
        counts[flavor] += n;
    }
    Some(counts)
}

/// Nodes outside the cheapest set of those that are there.
pub(crate) fn surplus(packing: &Packing<'_>) -> BTreeSet<usize> {
    let mut surplus = BTreeSet::new();
    for service in 0..packing.problem.services.len() {
        let mut own = own(packing, service);
        if own.windows(2).all(|w| packing.nodes[w[0]].flavor == packing.nodes[w[1]].flavor) {
            continue;
        }
        let Some(mut keep) = cheapest(packing, service, &own, None) else { continue };
        // What serves already stays before what does not yet.
        own.sort_by(|&a, &b| {
            let (x, y) = (&packing.nodes[a], &packing.nodes[b]);
            y.ready.cmp(&x.ready).then(x.is_new().cmp(&y.is_new())).then(x.cmp_name(y))
        });
        for i in own {
            let left = &mut keep[packing.nodes[i].flavor];
            if *left == 0 {
                surplus.insert(i);
            }
            *left = left.saturating_sub(1);
        }
    }
    surplus
}

/// Orders the nodes of a cheaper set. True if anything changed.
pub(crate) fn recompose(packing: &mut Packing<'_>, pending: &BTreeSet<usize>, next: &mut u64) -> bool {
    let services = packing.problem.order.clone();
    services.into_iter().any(|service| recompose_one(packing, service, pending, next).is_some())
}

fn recompose_one(packing: &mut Packing<'_>, service: usize, pending: &BTreeSet<usize>, next: &mut u64) -> Option<()> {
    let problem = packing.problem;
    let settings = &problem.inputs.settings;
    let own = own(packing, service);
    let settled = |&i: &usize| packing.nodes[i].ready && !pending.contains(&i);
    if own.is_empty() || !packing.hosting(service).iter().all(settled) {
        return None;
    }
    let before = by_flavor(packing, &own);
    let now_usd = usd(packing, &before);
    let worth_it = now_usd * (1.0 - settings.swap_gain);
    // No set costs less than its cheapest node, nor less than the load on full nodes of the best flavor.
    let usable = || (0..problem.flavors.len()).filter(|&f| problem.ladder(service, f).is_some());
    let least_usd = usable().map(|f| problem.usd_per_hour[f]).fold(f64::INFINITY, f64::min);
    let others = packing.hosting(service).len() - own.len();
    let full_usd = problem.usd_per_million(service, problem.cheapest(service)?) * problem.demand_rps(service) * 0.0036;
    if least_usd > worth_it || (others == 0 && full_usd > worth_it) {
        return None;
    }
    let quota = packing.quota();
    let wanted = cheapest(packing, service, &own, Some(&quota))?;
    let ordered: Vec<u32> = wanted.iter().zip(&before).map(|(w, b)| w.saturating_sub(*b)).collect();
    let given_up: Vec<u32> = wanted.iter().zip(&before).map(|(w, b)| b.saturating_sub(*w)).collect();
    let (new_usd, saved_usd) = (usd(packing, &ordered), now_usd - usd(packing, &wanted));
    let flavors: Vec<usize> = (0..ordered.len()).filter(|&f| ordered[f] > 0).collect();
    let overlap_ms = flavors.iter().map(|&f| problem.setup_ms(service, f)).max()? + settings.period_ms;
    // The youngest of those that would go have lasted the least.
    let going = |&&i: &&usize| given_up[packing.nodes[i].flavor] > 0;
    let lasts_ms = own.iter().filter(going).map(|&i| packing.lasts_ms(i)).min()?;
    let hours = |ms: i64| ms as f64 / HOUR_MS as f64;
    // Old and new ones exist together for a while.
    let allowed =
        flavors.iter().all(|&f| ordered[f] <= quota.by_flavor[f]) && ordered.iter().sum::<u32>() <= quota.total;
    if !allowed
        || saved_usd < usd(packing, &given_up) * settings.swap_gain
        || saved_usd * hours(lasts_ms) < new_usd * hours(overlap_ms)
    {
        return None;
    }
    let (old, numbers) = (packing.nodes.len(), *next);
    let mut members = packing.hosting(service);
    for flavor in flavors {
        for _ in 0..ordered[flavor] {
            let added = packing.add(flavor, next);
            packing.nodes[added].replacement = true;
            members.push(added);
        }
    }
    let few_enough = members.len() <= packing.limits(service).1;
    let both = few_enough.then(|| packing.spread(service, problem.demand_rps(service), &members)).flatten();
    let Some(both) = both else {
        packing.nodes.truncate(old);
        *next = numbers;
        return None;
    };
    packing.assign(service, &both);
    Some(())
}
