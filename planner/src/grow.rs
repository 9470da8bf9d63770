//! Making room: which nodes to add when a service does not fit on those that exist.
//!
//! New nodes are the cheapest set of all that carries what is missing, inside the quota of each flavor and of all
//! (`cover`). What a set carries is bound by its weakest member (the largest share of the arrivals that it can take,
//! or the time that it leaves for waiting), so there is one exact cover for each quality that this weakest may have.
//! When no set is enough, the quota is used up with the nodes that carry most, and the rest is a shortfall.
//!
//! Invariants: quotas always hold, existing nodes counted; what carries more demand is among what carries less, so
//! more demand never costs less (one service, nothing rented yet).

use crate::cover::{Chosen, Item, Need, cheapest};
use crate::pack::{Node, Origin, Packing, TOLERANCE_RPS};

/// Nodes that may still be ordered.
#[derive(Debug, Clone)]
pub(crate) struct Quota {
    pub(crate) by_flavor: Vec<u32>,
    pub(crate) total: u32,
}

impl Quota {
    /// One more node of this flavor is allowed.
    pub(crate) fn allows(&self, flavor: usize) -> bool {
        self.total > 0 && self.by_flavor[flavor] > 0
    }
}

/// How the nodes of a cover are compared.
pub(crate) struct Priced<'a> {
    /// Flavors that may be in it.
    pub(crate) allowed: &'a dyn Fn(usize) -> bool,
    /// Price of a node by flavor.
    pub(crate) usd: &'a dyn Fn(usize) -> f64,
    /// Price of a request per second that is not carried; infinite asks for all.
    pub(crate) shortage_usd: f64,
    /// Nodes at least, those present among them.
    pub(crate) least: usize,
}

impl Packing<'_> {
    /// What the quotas leave, with every node of the fleet counted that is not gone.
    pub(crate) fn quota(&self) -> Quota {
        let inputs = self.problem.inputs;
        if !inputs.settings.elastic {
            return Quota { by_flavor: vec![0; self.problem.flavors.len()], total: 0 };
        }
        let (mut used, mut all) = self.problem.existing.clone();
        for node in self.nodes.iter().filter(|n| n.origin == Origin::New) {
            used[node.flavor] += 1;
            all += 1;
        }
        let left = |quota: Option<u32>, used: usize| quota.map_or(u32::MAX, |q| q.saturating_sub(used as u32));
        Quota {
            by_flavor: self.problem.flavors.iter().zip(used).map(|(f, used)| left(f.quota, used)).collect(),
            total: left(inputs.settings.total_quota, all),
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

    /// What an empty node of the flavor gives to a set ([`Packing::contribution`]).
    fn fresh_weight(&self, service: usize, flavor: usize) -> f64 {
        let top = self.problem.ladder(service, flavor).and_then(|l| l.top());
        let cores = self.problem.flavors[flavor].cores;
        self.problem.contribution(top, cores)
    }

    /// Of what quality ([`Packing::quality`]) an empty node of the flavor is.
    fn fresh_quality(&self, service: usize, flavor: usize) -> f64 {
        let top = self.problem.ladder(service, flavor).and_then(|l| l.top());
        self.problem.quality(service, top, self.problem.flavors[flavor].cores)
    }

    /// How much an empty node of the flavor could do for the service; 0 if nothing.
    fn fresh_potential(&self, service: usize, flavor: usize) -> f64 {
        let top = self.problem.ladder(service, flavor).and_then(|l| l.top());
        self.problem.potential(top, self.problem.flavors[flavor].cores)
    }

    /// Adds the nodes with which the service's demand is carried, or as many as help within the quota.
    pub(crate) fn add_nodes_for(&mut self, service: usize, next: &mut u64) {
        if let Some(cover) = self.cheapest_cover(service, &self.quota(), &|_| true) {
            for (flavor, count) in cover {
                for _ in 0..count {
                    self.add(flavor, next);
                }
            }
        } else {
            self.use_up_quota(service, next);
        }
    }

    /// For every quality that the members of a set may have at least (its class), what is missing is an exact cover;
    /// the cheapest of these is the cheapest set: how many nodes of which flavor, within the quota, beside the nodes that
    /// are `present`.
    pub(crate) fn cheapest_cover(
        &self,
        service: usize,
        quota: &Quota,
        present: &dyn Fn(usize) -> bool,
    ) -> Option<Vec<(usize, u32)>> {
        let usd = |f: usize| self.problem.usd_per_hour[f];
        let (least, _) = self.limits(service);
        let priced = Priced { allowed: &|_| true, usd: &usd, shortage_usd: f64::INFINITY, least };
        self.cheapest_priced(service, quota, present, &priced)
    }

    /// [`Packing::cheapest_cover`] at other prices.
    pub(crate) fn cheapest_priced(
        &self,
        service: usize,
        quota: &Quota,
        present: &dyn Fn(usize) -> bool,
        priced: &Priced<'_>,
    ) -> Option<Vec<(usize, u32)>> {
        let usable: Vec<usize> = (0..self.problem.flavors.len())
            .filter(|&f| (priced.allowed)(f) && quota.allows(f) && self.fresh_potential(service, f) > 0.0)
            .collect();
        let (least, (_, most)) = (priced.least, self.limits(service));
        let whole = priced.shortage_usd.is_infinite();
        let mut best: Option<(Chosen, Vec<usize>)> = None;
        let mut consider = |flavors: Vec<usize>, weight: &dyn Fn(usize) -> f64, need: Need| {
            let item = |&f: &usize| Item {
                weight: weight(f),
                price: (priced.usd)(f),
                most: quota.by_flavor[f].min(need.most),
            };
            let items: Vec<Item> = flavors.iter().map(item).collect();
            if let Some(chosen) = cheapest(&items, need)
                && (chosen.nodes > 0 || !whole)
                && best.as_ref().is_none_or(|(b, _)| chosen.comes_before(b))
            {
                best = Some((chosen, flavors));
            }
        };
        // Best first, so that the nodes of at least a quality come before all others.
        let mut present: Vec<(f64, f64)> = (0..self.nodes.len())
            .filter(|&i| present(i) && self.room(service, i) > 0)
            .map(|i| (self.quality(service, i), self.contribution(service, i)))
            .filter(|p| p.0 > 0.0)
            .collect();
        present.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut classes: Vec<f64> =
            present.iter().map(|p| p.0).chain(usable.iter().map(|&f| self.fresh_quality(service, f))).collect();
        classes.retain(|c| *c > 0.0);
        classes.sort_by(|a, b| b.total_cmp(a));
        classes.dedup();
        let (mut instances, mut contributed) = (0, 0.0);
        for class in classes {
            while let Some(p) = present.get(instances).filter(|p| p.0 >= class) {
                contributed += p.1;
                instances += 1;
            }
            let Some(required) = self.required(service, class) else { continue };
            let Some(room) = most.checked_sub(instances) else { continue };
            let fits: Vec<usize> =
                usable.iter().copied().filter(|&f| self.fresh_quality(service, f) >= class).collect();
            let need = Need {
                weight: (required - contributed).max(0.0),
                least: least.saturating_sub(instances) as u32,
                most: quota.total.min(u32::try_from(room).unwrap_or(u32::MAX)),
                // A member of a group carries the rate of its class.
                shortage: priced.shortage_usd * if self.problem.is_shared() { 1.0 } else { class },
            };
            consider(fits, &|f| self.fresh_weight(service, f), need);
        }
        best.map(|(chosen, flavors)| flavors.into_iter().zip(chosen.counts).filter(|(_, n)| *n > 0).collect())
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
                let (rate_rps, usd) = (trial.best_set(service, most, &all).0, self.problem.usd_per_hour[flavor]);
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
            let usd = |f: &usize| self.problem.usd_per_hour[*f];
            let Some(flavor) = usable.min_by(|a, b| usd(a).total_cmp(&usd(b))) else { return };
            self.add(flavor, next);
        }
    }
}
