//! When it does not fit: who is served how much.
//!
//! A higher priority comes first. Within one priority the loss is spread: each service gets the same share of its
//! demand, the largest that fits (max-min fair), and what is left over goes to them in order. So none of them starves
//! for being named later, and none is served in full at the cost of another. Utility here is the share of requests
//! served, since one that is not carried misses its SLO; that a relaxed, even utility is what to maximise across
//! services is Faro's lesson (Jeon et al., "A House United Within Itself", EuroSys 2025).
//!
//! Invariants: a class of priority never loses to a lower one; the placement found depends on the nodes and demands
//! alone, not on what runs where, so a finished one is found again and kept.
//! Left out: which nodes to order under a quota (`grow`, by priority and price).

use crate::pack::{Assignment, NO_LOAD_RPS, Packing, Problem, TOLERANCE_RPS};

/// The common share is found to this part of the demand.
const STEPS: u32 = 7;
/// Placements whose losses differ by less of the demand are equally good.
const TOLERANCE: f64 = 0.01;

/// True when a service lacks capacity or instances that more room would give it.
pub(crate) fn is_short(packing: &Packing<'_>) -> bool {
    (0..packing.problem.services.len()).any(|s| {
        let (least, _) = packing.limits(s);
        packing.shortfall(s) > 0.0 || packing.hosting(s).len() < least
    })
}

/// Places everything anew on the nodes that there are, and keeps that if it spreads the loss better.
pub(crate) fn spread_loss(packing: &mut Packing<'_>) {
    let mut fresh = packing.clone();
    for index in 0..fresh.nodes.len() {
        fresh.empty(index);
    }
    let order = packing.problem.order.clone();
    for &s in &order {
        let (least, _) = fresh.limits(s);
        // What must exist comes before what is wanted, with one worker each.
        let room: Assignment = fresh.others(s, &|_| Some(0)).into_iter().take(least).map(|i| (i, 1)).collect();
        fresh.assign(s, &room);
    }
    let same = |a: &usize, b: &usize| priority(packing.problem, *a) == priority(packing.problem, *b);
    for class in order.chunk_by(same) {
        place(&mut fresh, class);
    }
    if order.chunk_by(same).map(|class| compare(&fresh, packing, class)).find(|o| o.is_ne()).is_some_and(|o| o.is_lt())
    {
        *packing = fresh;
    }
}

fn priority(problem: &Problem<'_>, service: usize) -> i32 {
    problem.services[service].priority
}

/// Services of the same priority that are short too, for the reason in a plan.
pub(crate) fn short_alike(packing: &Packing<'_>, service: usize) -> Vec<usize> {
    let alike = |s: &usize| {
        *s != service
            && priority(packing.problem, *s) == priority(packing.problem, service)
            && packing.shortfall(*s) > 0.0
    };
    (0..packing.problem.services.len()).filter(alike).collect()
}

/// Places the services of one priority on what the higher ones left.
fn place(packing: &mut Packing<'_>, class: &[usize]) {
    if let Some(all) = at_share(packing, class, 1.0) {
        return take(packing, &all);
    }
    if class.len() > 1 {
        let (mut low, mut high) = (0.0, 1.0);
        let mut best = None;
        for _ in 0..STEPS {
            let share = 0.5 * (low + high);
            match at_share(packing, class, share) {
                Some(found) => (low, best) = (share, Some(found)),
                None => high = share,
            }
        }
        if let Some(best) = best {
            take(packing, &best);
        }
    }
    for &s in class {
        match packing.cover(s, |_| Some(0)) {
            Some(assignment) => packing.assign(s, &assignment),
            None => packing.best_effort(s, &|_| true),
        }
    }
}

fn take(packing: &mut Packing<'_>, found: &[(usize, Assignment)]) {
    for (service, assignment) in found {
        packing.assign(*service, assignment);
    }
}

/// The class with each of its services at this share of its demand; `None` if that does not fit.
fn at_share(packing: &Packing<'_>, class: &[usize], share: f64) -> Option<Vec<(usize, Assignment)>> {
    let problem = packing.problem.scaled(class, share);
    let mut trial = Packing::new(&problem, packing.nodes.clone());
    for &s in class {
        let assignment = trial.cover(s, |_| Some(0))?;
        trial.assign(s, &assignment);
    }
    // At no load at all a service may be given up; here it keeps what it must have.
    class
        .iter()
        .map(|&s| (trial.hosting(s).len() >= packing.limits(s).0.min(1)).then(|| (s, trial.instances(s))))
        .collect()
}

/// What a class loses in a placement: instances that must exist, then shares of demands, largest first.
fn losses(packing: &Packing<'_>, class: &[usize]) -> (usize, Vec<f64>) {
    let missing = |&s: &usize| packing.limits(s).0.saturating_sub(packing.hosting(s).len());
    let mut lost: Vec<f64> =
        class.iter().map(|&s| packing.shortfall(s) / packing.problem.demand_rps(s).max(NO_LOAD_RPS)).collect();
    lost.sort_by(|a, b| b.total_cmp(a));
    (class.iter().map(missing).sum(), lost)
}

/// `Less` when `a` loses less than `b`: the worst service decides, then the next.
fn compare(a: &Packing<'_>, b: &Packing<'_>, class: &[usize]) -> std::cmp::Ordering {
    let ((a_missing, a_lost), (b_missing, b_lost)) = (losses(a, class), losses(b, class));
    let tolerance =
        if class.len() > 1 { TOLERANCE } else { TOLERANCE_RPS / a.problem.demand_rps(class[0]).max(NO_LOAD_RPS) };
    let differing = a_lost.iter().zip(&b_lost).find(|(x, y)| (*x - *y).abs() > tolerance);
    a_missing.cmp(&b_missing).then(differing.map_or(std::cmp::Ordering::Equal, |(x, y)| x.total_cmp(y)))
}
