//! Making room: which nodes to add when a service does not fit on those that exist.
//!
//! New nodes are chosen as a cover: many of one flavor and up to a few of a second for the remainder, the cheapest
//! combination that carries what is missing, inside the quota of each flavor and of all. When no combination fits,
//! the quota is used up with the nodes that carry most, and the rest is a shortfall.
//!
//! Invariants: quotas always hold, existing nodes counted; the family of combinations does not depend on the
//! demand, so more demand never finds a cheaper one. Left out: exact covers of three and more flavors.

use crate::model::FleetState;
use crate::pack::{Node, Packing, TOLERANCE_RPS};

/// Nodes of the second flavor that a cover may have.
const MOST_SECOND: u32 = 4;

/// Nodes that may still be ordered.
#[derive(Debug, Clone)]
pub(crate) struct Quota {
    by_flavor: Vec<u32>,
    total: u32,
}

impl Quota {
    /// One more node of this flavor is allowed.
    pub(crate) fn allows(&self, flavor: usize) -> bool {
        self.total > 0 && self.by_flavor[flavor] > 0
    }
}

impl Packing<'_> {
    /// What the quotas leave, with every node of the fleet counted that is not gone.
    pub(crate) fn quota(&self) -> Quota {
        let inputs = self.problem.inputs;
        if !inputs.settings.elastic {
            return Quota { by_flavor: vec![0; self.problem.flavors.len()], total: 0 };
        }
        let exists = inputs.fleet.iter().filter(|n| n.state != FleetState::Lost);
        let mut names: Vec<&str> = exists.map(|n| n.flavor.as_str()).collect();
        let ordered = self.nodes.iter().filter(|n| n.is_new());
        names.extend(ordered.map(|n| self.problem.flavors[n.flavor].name.as_str()));
        let left = |quota: Option<u32>, used: usize| quota.map_or(u32::MAX, |q| q.saturating_sub(used as u32));
        let used = |name: &str| names.iter().filter(|n| **n == name).count();
        Quota {
            by_flavor: self.problem.flavors.iter().map(|f| left(f.quota, used(&f.name))).collect(),
            total: left(inputs.settings.total_quota, names.len()),
        }
    }

    /// Adds an empty new node and gives its index.
    pub(crate) fn add(&mut self, flavor: usize, next: &mut u64) -> usize {
        let f = self.problem.flavors[flavor];
        let id = format!("{}-{}-{}", f.name, self.problem.inputs.naming.epoch, next);
        *next += 1;
        self.nodes.push(Node::new(id, flavor, f));
        self.nodes.len() - 1
    }

    /// Group members of a node of the flavor.
    fn fresh_weight(&self, flavor: usize) -> u32 {
        self.problem.weight(self.problem.flavors[flavor].cores)
    }

    /// Rate that an empty node of the flavor carries for each of its group members.
    fn fresh_potential(&self, service: usize, flavor: usize) -> f64 {
        let top = self.problem.ladder(service, flavor).and_then(|l| l.top());
        top.map_or(0.0, |top| top.carry_rps / f64::from(self.fresh_weight(flavor)))
    }

    /// Adds the nodes with which the service's demand is carried, or as many as help within the quota.
    pub(crate) fn add_nodes_for(&mut self, service: usize, next: &mut u64) {
        if let Some(cover) = self.cheapest_cover(service) {
            for (flavor, count) in cover {
                for _ in 0..count {
                    self.add(flavor, next);
                }
            }
        } else {
            self.use_up_quota(service, next);
        }
    }

    fn cheapest_cover(&self, service: usize) -> Option<Vec<(usize, u32)>> {
        let quota = self.quota();
        let usable: Vec<usize> = (0..self.problem.flavors.len())
            .filter(|&f| quota.allows(f) && self.fresh_potential(service, f) > 0.0)
            .collect();
        let mut best: Option<Cover> = None;
        for threshold in self.thresholds(service, &usable) {
            let Some(base) = self.base(service, threshold) else { continue };
            let fits: Vec<usize> =
                usable.iter().copied().filter(|&f| self.fresh_potential(service, f) >= threshold).collect();
            for &first in &fits {
                for &second in &fits {
                    let most_second = if first == second { 0 } else { MOST_SECOND };
                    for n_second in 0..=most_second {
                        let Some(cover) = self.complete(service, &base, first, (second, n_second), &quota) else {
                            continue;
                        };
                        if best.as_ref().is_none_or(|b| cover.comes_before(b)) {
                            best = Some(cover);
                        }
                    }
                }
            }
        }
        best.map(|b| b.counts)
    }

    /// Potentials that a covering set could have as its smallest.
    fn thresholds(&self, service: usize, flavors: &[usize]) -> Vec<f64> {
        let existing = (0..self.nodes.len()).map(|i| self.potential(service, i));
        let mut all: Vec<f64> = existing.chain(flavors.iter().map(|&f| self.fresh_potential(service, f))).collect();
        all.retain(|t| *t > 0.0);
        all.sort_by(|a, b| b.total_cmp(a));
        all.dedup();
        all
    }

    /// What the present nodes give to a set whose potentials are all at least `threshold`; `None` if there are not
    /// enough partitions for such a set.
    fn base(&self, service: usize, threshold: f64) -> Option<Base> {
        let usable: Vec<usize> = (0..self.nodes.len()).filter(|&i| self.potential(service, i) >= threshold).collect();
        let present: u32 = usable.iter().map(|&i| self.problem.weight(self.nodes[i].cores)).sum();
        let parts = self.problem.demand_rps(service) / threshold;
        let missing = self.problem.members_for(service, parts)? - f64::from(present);
        Some(Base { parts, missing: missing.max(0.0), instances: usable.len() })
    }

    /// The fewest nodes of `first` that complete a cover with `n_second` of `second`.
    fn complete(
        &self,
        service: usize,
        base: &Base,
        first: usize,
        (second, n_second): (usize, u32),
        quota: &Quota,
    ) -> Option<Cover> {
        let flavors = &self.problem.flavors;
        let (least, most) = self.limits(service);
        // One node alone gets everything, whatever the partitions.
        let alone = base.instances == 0 && n_second == 0 && base.parts <= f64::from(self.fresh_weight(first)) + 1e-9;
        let missing = base.missing - f64::from(n_second * self.fresh_weight(second));
        let by_rate = (missing / f64::from(self.fresh_weight(first)) - 1e-9).ceil().max(0.0);
        let by_rate = if alone { 1.0 } else { by_rate };
        let by_count = least.saturating_sub(base.instances + n_second as usize) as f64;
        let n_first = by_rate.max(by_count);
        if n_first > f64::from(quota.by_flavor[first]) || n_second > quota.by_flavor[second] {
            return None;
        }
        let n_first = n_first as u32;
        let new = n_first.checked_add(n_second)?;
        if new == 0 || new > quota.total || base.instances + new as usize > most {
            return None;
        }
        let usd = f64::from(n_first) * flavors[first].usd_per_hour + f64::from(n_second) * flavors[second].usd_per_hour;
        Some(Cover { usd_per_hour: usd, new, counts: vec![(first, n_first), (second, n_second)] })
    }

    /// One node after the other, each the one that adds most, until the demand is carried or nothing helps.
    fn use_up_quota(&mut self, service: usize, next: &mut u64) {
        let (_, most) = self.limits(service);
        let all = |_: usize| true;
        let mut carried = self.best_set(service, most, &all).0;
        while carried < self.problem.demand_rps(service) - TOLERANCE_RPS {
            let quota = self.quota();
            let mut best: Option<(f64, f64, usize)> = None;
            for flavor in 0..self.problem.flavors.len() {
                if !quota.allows(flavor) {
                    continue;
                }
                let mut trial = self.clone();
                trial.add(flavor, &mut next.clone());
                let (rate_rps, usd) =
                    (trial.best_set(service, most, &all).0, self.problem.flavors[flavor].usd_per_hour);
                let better = best.is_none_or(|(r, u, _)| rate_rps > r + TOLERANCE_RPS || (rate_rps >= r && usd < u));
                if rate_rps > carried + TOLERANCE_RPS && better {
                    best = Some((rate_rps, usd, flavor));
                }
            }
            let Some((rate_rps, _, flavor)) = best else { break };
            self.add(flavor, next);
            carried = rate_rps;
        }
        self.add_for_min(service, next);
    }

    /// Cheapest nodes until as many could host the service as must.
    fn add_for_min(&mut self, service: usize, next: &mut u64) {
        let (least, _) = self.limits(service);
        let can_host = |p: &Self| (0..p.nodes.len()).filter(|&i| p.potential(service, i) > 0.0).count();
        while can_host(self) < least {
            let quota = self.quota();
            let usable =
                (0..self.problem.flavors.len()).filter(|&f| quota.allows(f) && self.fresh_potential(service, f) > 0.0);
            let usd = |f: &usize| self.problem.flavors[*f].usd_per_hour;
            let Some(flavor) = usable.min_by(|a, b| usd(a).total_cmp(&usd(b))) else { return };
            self.add(flavor, next);
        }
    }
}

/// See [`Packing::base`].
struct Base {
    /// Into how many equal parts the arrivals must fall, so that each is carried by one member.
    parts: f64,
    /// Members that are missing for that.
    missing: f64,
    instances: usize,
}

/// New nodes that complete a service.
struct Cover {
    usd_per_hour: f64,
    new: u32,
    counts: Vec<(usize, u32)>,
}

impl Cover {
    /// Cheaper, then fewer nodes; flavors are visited in name order, so the first of equals stays.
    fn comes_before(&self, other: &Cover) -> bool {
        let cheaper = self.usd_per_hour < other.usd_per_hour - 1e-12;
        let equal = (self.usd_per_hour - other.usd_per_hour).abs() <= 1e-12;
        cheaper || (equal && self.new < other.new)
    }
}
