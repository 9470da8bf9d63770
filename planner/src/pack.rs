//! Where instances run: services spread over nodes, several services sharing one.
//!
//! Topology: the partitions of a service split its arrivals over the group members of the nodes that host it, and a
//! partition is not divided: of 4 partitions, one of 3 nodes gets 2. Inside a node all workers of the service share
//! one queue. So a set of nodes carries a rate only if each of them carries the largest share that may fall to it,
//! and the queueing margin is paid once a node. With [`Members::Shared`] all nodes of a service take from one queue
//! (late binding): capacities add up and the margin is paid once, for the node that leaves least time to wait.
//!
//! Invariants: instances on a node never take more cores, GPUs or memory than it has; a service has at most one
//! instance on a node, at most `max` and at most as many as its topic has partitions. Everything here depends only
//! on the nodes, what they host and the demands, in a fixed order, so that a finished placement is kept as it is.
//! Left out: which nodes should exist (`plan`), and moving one instance to make room for another.

use crate::cost::{Ladder, Rung};
use crate::demand::Demand;
use crate::lease::Terms;
use crate::margin::Waiting;
use crate::model::{CapacityRule, Flavor, FleetNode, Members, PlanInputs, Service};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Rates below this count as none, requests per second.
pub(crate) const NO_LOAD_RPS: f64 = 1e-3;
/// Rates closer than this are equal, requests per second.
pub(crate) const TOLERANCE_RPS: f64 = 1e-6;

/// What is fixed during one decision. Services and flavors are in name order; both are referred to by index.
#[derive(Clone)]
pub(crate) struct Problem<'a> {
    pub(crate) inputs: &'a PlanInputs,
    pub(crate) services: Vec<&'a Service>,
    pub(crate) flavors: Vec<&'a Flavor>,
    /// By service, then flavor; the error says why it cannot run there.
    pub(crate) ladders: Rc<Vec<Vec<Result<Ladder, String>>>>,
    /// By service.
    pub(crate) demands: Vec<Demand>,
    /// Services in the order in which they are served: priority, then price, then name.
    pub(crate) order: Vec<usize>,
    /// Nodes of the fleet that count against the quota of each flavor, and those of any flavor.
    pub(crate) existing: (Vec<usize>, usize),
    /// By flavor: the price by which it is compared with others ([`crate::spot`]).
    pub(crate) usd_per_hour: Vec<f64>,
    /// By service: how a shortage is met before the flavor that serves it cheapest is there ([`crate::lead`]).
    pub(crate) near: Vec<Option<crate::lead::Near>>,
}

impl Problem<'_> {
    pub(crate) fn ladder(&self, service: usize, flavor: usize) -> Option<&Ladder> {
        self.ladders[service][flavor].as_ref().ok()
    }

    pub(crate) fn demand_rps(&self, service: usize) -> f64 {
        self.demands[service].rps
    }

    /// Group members that a node with `cores` has for a service.
    pub(crate) fn weight(&self, cores: u32) -> u32 {
        match self.inputs.settings.members {
            Members::OnePerNode | Members::Shared => 1,
            Members::OnePerCore => cores.max(1),
        }
    }

    /// All nodes of a service take from one queue.
    pub(crate) fn is_shared(&self) -> bool {
        self.inputs.settings.members == Members::Shared
    }

    /// True when capacity is planned without a queueing margin.
    fn without_margin(&self) -> bool {
        self.inputs.settings.capacity_rule == CapacityRule::Paper
    }

    /// What an instance adds to a set: capacity to a shared queue, else group members.
    pub(crate) fn contribution(&self, rung: Option<&Rung>, cores: u32) -> f64 {
        match rung {
            None => 0.0,
            Some(r) if self.is_shared() => {
                if self.without_margin() {
                    r.carry_rps
                } else {
                    r.sustained_rps
                }
            }
            Some(_) => f64::from(self.weight(cores)),
        }
    }

    /// What bounds a set of which this instance is the weakest: the time that it leaves for waiting in a shared queue,
    /// else the rate that it carries for each of its group members; without bound if it carries everything alone.
    pub(crate) fn quality(&self, service: usize, rung: Option<&Rung>, cores: u32) -> f64 {
        match rung {
            None => 0.0,
            Some(r) if self.is_shared() => {
                if r.carry_rps <= 0.0 {
                    0.0
                } else if self.without_margin() {
                    1.0
                } else {
                    r.waiting.allowed_s
                }
            }
            Some(r) if r.carry_rps > 0.0 && r.carry_rps >= self.demand_rps(service) - 1e-9 => f64::INFINITY,
            Some(_) => self.potential(rung, cores),
        }
    }

    /// How well an instance takes its part: capacity in a shared queue, else rate for each of its group members.
    pub(crate) fn potential(&self, rung: Option<&Rung>, cores: u32) -> f64 {
        match rung {
            None => 0.0,
            Some(r) if r.carry_rps <= 0.0 => 0.0,
            Some(_) if self.is_shared() => self.contribution(rung, cores),
            Some(r) => r.carry_rps / f64::from(self.weight(cores)),
        }
    }

    /// The queue's [`Waiting`] when the instance that leaves the least time leaves `allowed_s`.
    fn waiting(&self, service: usize, allowed_s: f64) -> Waiting {
        let settings = &self.inputs.settings;
        let dispersion = self.services[service].load.dispersion.unwrap_or(settings.dispersion);
        let epsilon = crate::cost::epsilon(self.services[service].load.allowance, settings);
        Waiting { allowed_s, epsilon, dispersion, sheds: settings.sheds }
    }

    /// Largest share of the service's arrivals that may fall to `weight` of all `total` members.
    pub(crate) fn share(&self, service: usize, weight: u32, total: u32) -> f64 {
        let share = match self.services[service].partitions {
            Some(p) if p > 0 => f64::from(weight) * f64::from(p.div_ceil(total.max(1))) / f64::from(p),
            _ => f64::from(weight) / f64::from(total.max(1)),
        };
        share.min(1.0)
    }

    /// Members that a service needs so that none of them gets more than `1 / parts` of its arrivals.
    pub(crate) fn members_for(&self, service: usize, parts: f64) -> Option<f64> {
        match self.services[service].partitions {
            Some(p) if p > 0 => {
                let each = (f64::from(p) / parts + 1e-9).floor();
                (each >= 1.0).then(|| (f64::from(p) / each - 1e-9).ceil())
            }
            _ => Some(parts),
        }
    }

    /// Nothing has to run for this service.
    pub(crate) fn wants_nothing(&self, service: usize) -> bool {
        self.demand_rps(service) < NO_LOAD_RPS && self.services[service].min == 0
    }
}

/// Where a node comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// In the fleet, at this index of the inputs.
    Fleet(usize),
    /// Would be ordered by this plan.
    New,
}

/// A node that can host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) flavor: usize,
    pub(crate) origin: Origin,
    pub(crate) cores: u32,
    /// MiB; infinite when it is not checked.
    pub(crate) memory_mib: f64,
    pub(crate) gpus: u32,
    /// Set up and serving.
    pub(crate) ready: bool,
    /// Paid for beyond the next decision: giving it up saves nothing yet.
    pub(crate) sunk: bool,
    /// New, and ordered by an earlier round of this decision: from then on like any node that is being set up.
    pub(crate) ordered: bool,
    /// Given up by an earlier round of this decision, and ends now: it takes nothing more.
    pub(crate) ending: bool,
    /// Ordered to take over from a dearer node, so it is not superfluous while that one still runs.
    pub(crate) replacement: bool,
    /// Services whose model failed to load here.
    pub(crate) failed: BTreeSet<usize>,
    /// Services that serve here at the moment.
    pub(crate) live: BTreeSet<usize>,
    /// Workers by service; changed by [`Packing::assign`] and [`Packing::empty`] alone.
    hosts: BTreeMap<usize, u32>,
    /// What the hosted instances leave.
    free: Free,
}

/// What is left of a node.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Free {
    cores: u32,
    gpus: u32,
    memory_mib: f64,
}

impl Node {
    /// Not ordered yet: it may still be left out.
    pub(crate) fn is_new(&self) -> bool {
        self.origin == Origin::New && !self.ordered
    }

    /// Order of names in which 10 comes after 9, so that nodes of one plan are preferred in the order of their making.
    pub(crate) fn cmp_name(&self, other: &Node) -> std::cmp::Ordering {
        self.id.len().cmp(&other.id.len()).then_with(|| self.id.cmp(&other.id))
    }

    pub(crate) fn in_use(&self) -> bool {
        !self.hosts.is_empty()
    }

    /// Workers by service.
    pub(crate) fn hosts(&self) -> &BTreeMap<usize, u32> {
        &self.hosts
    }

    /// What is left beside all hosted instances but those of `service`.
    fn free_beside(&self, service: Option<usize>, problem: &Problem<'_>) -> Free {
        let mut free = Free { cores: self.cores, gpus: self.gpus, memory_mib: self.memory_mib };
        for (&other, &workers) in self.hosts.iter().filter(|(s, _)| Some(**s) != service) {
            if let Some(taken) = problem.ladder(other, self.flavor) {
                free.cores = free.cores.saturating_sub(taken.cores(workers));
                free.gpus = free.gpus.saturating_sub(taken.gpus);
                free.memory_mib -= taken.memory_mib;
            }
        }
        free
    }

    /// A node of this plan.
    pub(crate) fn new(id: String, flavor_index: usize, flavor: &Flavor) -> Self {
        Node {
            id,
            flavor: flavor_index,
            origin: Origin::New,
            cores: flavor.cores,
            memory_mib: memory_mib(flavor),
            gpus: flavor.gpus,
            ready: false,
            sunk: false,
            ordered: false,
            ending: false,
            replacement: false,
            failed: BTreeSet::new(),
            live: BTreeSet::new(),
            hosts: BTreeMap::new(),
            free: Free { cores: flavor.cores, gpus: flavor.gpus, memory_mib: memory_mib(flavor) },
        }
    }

    /// A node of the fleet. `then_ms` is when a node ordered at the next decision would be ready.
    pub(crate) fn existing(
        index: usize,
        node: &FleetNode,
        flavor_index: usize,
        problem: &Problem<'_>,
        then_ms: i64,
    ) -> Self {
        let flavor = problem.flavors[flavor_index];
        // Services are in name order.
        let by_name = |name: &str| problem.services.binary_search_by(|s| s.name.as_str().cmp(name)).ok();
        let known: Vec<_> = node.hosts.iter().filter_map(|h| by_name(&h.service).map(|s| (s, h))).collect();
        let known = || known.iter().copied();
        let hosts = known().filter(|(s, h)| h.failed.is_none() && problem.ladder(*s, flavor_index).is_some());
        let mut node = Node {
            id: node.node.clone(),
            origin: Origin::Fleet(index),
            cores: node.cores.unwrap_or(flavor.cores),
            ready: node.state == crate::model::FleetState::Ready,
            sunk: Terms::of(flavor).is_sunk(node.lease, then_ms),
            failed: known().filter(|(_, h)| h.failed.is_some()).map(|(s, _)| s).collect(),
            live: known().filter(|(_, h)| h.ready && h.failed.is_none()).map(|(s, _)| s).collect(),
            hosts: hosts.map(|(s, h)| (s, h.workers.max(1))).collect(),
            ..Node::new(node.node.clone(), flavor_index, flavor)
        };
        node.free = node.free_beside(None, problem);
        node
    }
}

fn memory_mib(flavor: &Flavor) -> f64 {
    if flavor.memory_gib > 0.0 { flavor.memory_gib * 1024.0 } else { f64::INFINITY }
}

/// Workers by node index.
pub(crate) type Assignment = Vec<(usize, u32)>;

/// Nodes and what they host.
#[derive(Clone)]
pub(crate) struct Packing<'p> {
    pub(crate) problem: &'p Problem<'p>,
    /// The problem of the near demands (`bridge`); absent where nothing is bridged.
    pub(crate) sooner: Option<&'p Problem<'p>>,
    pub(crate) nodes: Vec<Node>,
    /// By service: the nodes that host it, ascending. Says the same as the nodes' own lists.
    at: Vec<Vec<usize>>,
}

impl<'p> Packing<'p> {
    /// These nodes with what they host.
    pub(crate) fn new(problem: &'p Problem<'p>, nodes: Vec<Node>) -> Self {
        let mut packing = Packing { problem, sooner: None, nodes, at: Vec::new() };
        packing.reindex();
        packing
    }

    /// To be called after nodes were taken out or put into another order.
    pub(crate) fn reindex(&mut self) {
        self.at = vec![Vec::new(); self.problem.services.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            for &service in node.hosts.keys() {
                self.at[service].push(i);
            }
        }
    }
}

impl Packing<'_> {
    /// Nodes that host the service, by index.
    pub(crate) fn hosting(&self, service: usize) -> Vec<usize> {
        self.at[service].clone()
    }

    /// Most workers that the service could have on the node beside what the others have there.
    pub(crate) fn room(&self, service: usize, index: usize) -> u32 {
        let node = &self.nodes[index];
        if node.ending || (node.free.cores == 0 && !node.hosts.contains_key(&service)) {
            return 0;
        }
        let Some(ladder) = self.problem.ladder(service, node.flavor) else { return 0 };
        if node.failed.contains(&service) {
            return 0;
        }
        let hosted = node.hosts.contains_key(&service);
        let free = if hosted { node.free_beside(Some(service), self.problem) } else { node.free };
        if free.gpus < ladder.gpus || free.memory_mib < ladder.memory_mib { 0 } else { ladder.most_workers(free.cores) }
    }

    /// Rate that the service carries on the node with this many workers.
    fn carry_rps(&self, service: usize, index: usize, workers: u32) -> f64 {
        self.problem.ladder(service, self.nodes[index].flavor).map_or(0.0, |l| l.carry_rps(workers))
    }

    fn weight(&self, index: usize) -> u32 {
        self.problem.weight(self.nodes[index].cores)
    }

    /// Rate that the node could carry for the service, for each of its group members: what decides how well it takes
    /// its share of the arrivals.
    pub(crate) fn potential(&self, service: usize, index: usize) -> f64 {
        self.problem.potential(self.full(service, index), self.nodes[index].cores)
    }

    /// The instance that fills what the others leave of the node.
    fn full(&self, service: usize, index: usize) -> Option<&Rung> {
        self.problem.ladder(service, self.nodes[index].flavor)?.rung(self.room(service, index))
    }

    /// See [`Problem::quality`].
    pub(crate) fn quality(&self, service: usize, index: usize) -> f64 {
        self.problem.quality(service, self.full(service, index), self.nodes[index].cores)
    }

    /// See [`Problem::contribution`].
    pub(crate) fn contribution(&self, service: usize, index: usize) -> f64 {
        self.problem.contribution(self.full(service, index), self.nodes[index].cores)
    }

    /// Contributions that a set needs whose weakest member is of quality `class`; `None` if there are not enough
    /// partitions for such a set.
    pub(crate) fn required(&self, service: usize, class: f64) -> Option<f64> {
        let rate_rps = self.problem.demand_rps(service);
        if self.problem.is_shared() {
            let margin = !self.problem.without_margin();
            return Some(if margin { self.problem.waiting(service, class).required_rps(rate_rps) } else { rate_rps });
        }
        if class.is_infinite() { Some(0.0) } else { self.problem.members_for(service, rate_rps / class) }
    }

    /// Rate that a shared queue with these instances carries, and its capacity.
    fn pooled(&self, service: usize, instances: &[(usize, u32)]) -> (f64, f64) {
        let rungs = || {
            let rung = |&(i, w): &(usize, u32)| self.problem.ladder(service, self.nodes[i].flavor)?.rung(w);
            instances.iter().filter_map(rung)
        };
        let capacity_rps: f64 = rungs().map(|r| self.problem.contribution(Some(r), 1)).sum();
        if self.problem.without_margin() || instances.is_empty() {
            return (capacity_rps, capacity_rps);
        }
        let allowed_s = rungs().map(|r| r.waiting.allowed_s).fold(f64::INFINITY, f64::min);
        (self.problem.waiting(service, allowed_s).carried_rps(capacity_rps), capacity_rps)
    }

    /// What queueing asks for on top of `rate_rps` when these instances share a queue.
    pub(crate) fn pooled_margin_rps(&self, service: usize, instances: &[(usize, u32)], rate_rps: f64) -> f64 {
        let rung = |&(i, w): &(usize, u32)| self.problem.ladder(service, self.nodes[i].flavor)?.rung(w);
        let allowed_s = instances.iter().filter_map(rung).map(|r| r.waiting.allowed_s).fold(f64::INFINITY, f64::min);
        let margin_rps = self.problem.waiting(service, allowed_s).margin_rps(rate_rps);
        if margin_rps.is_finite() { margin_rps.max(0.0) } else { 0.0 }
    }

    /// [`Packing::spread`] with a shared queue: all work at the same share of what they could.
    fn spread_pooled(&self, service: usize, rate_rps: f64, members: &[usize]) -> Option<Assignment> {
        let full: Assignment = members.iter().map(|&i| (i, self.room(service, i))).collect();
        let (carried_rps, capacity_rps) = self.pooled(service, &full);
        if full.iter().any(|f| f.1 == 0) || carried_rps < rate_rps - TOLERANCE_RPS || members.is_empty() {
            return None;
        }
        let needed_rps = members.iter().map(|&i| self.quality(service, i)).fold(f64::INFINITY, f64::min);
        let needed_rps = if self.problem.without_margin() {
            rate_rps
        } else {
            self.problem.waiting(service, needed_rps).required_rps(rate_rps)
        };
        let share = (needed_rps / capacity_rps).min(1.0);
        let fewer = |&(i, room): &(usize, u32)| {
            let ladder = self.problem.ladder(service, self.nodes[i].flavor)?;
            let part = |w: u32| self.problem.contribution(ladder.rung(w), 1);
            (1..=room).find(|&w| part(w) >= part(room) * share - TOLERANCE_RPS).map(|w| (i, w))
        };
        let spread: Assignment = full.iter().map(fewer).collect::<Option<_>>()?;
        if self.pooled(service, &spread).0 >= rate_rps - TOLERANCE_RPS { Some(spread) } else { Some(full) }
    }

    /// Share of the service's arrivals that may fall to each of these nodes, largest case.
    pub(crate) fn shares(&self, service: usize, members: &[usize]) -> Vec<f64> {
        let total: u32 = members.iter().map(|&i| self.weight(i)).sum();
        members.iter().map(|&i| self.problem.share(service, self.weight(i), total)).collect()
    }

    /// Rate that these instances carry together, each with the largest share that may fall to it.
    pub(crate) fn carried_by(&self, service: usize, instances: &[(usize, u32)]) -> f64 {
        if self.problem.is_shared() {
            return self.pooled(service, instances).0;
        }
        let members: Vec<usize> = instances.iter().map(|&(i, _)| i).collect();
        let shares = self.shares(service, &members);
        let rates = instances.iter().zip(shares).map(|(&(i, w), share)| self.carry_rps(service, i, w) / share);
        if instances.is_empty() { 0.0 } else { rates.fold(f64::INFINITY, f64::min) }
    }

    /// Present instances of a service.
    pub(crate) fn instances(&self, service: usize) -> Assignment {
        let workers = |i: usize| self.nodes[i].hosts.get(&service).copied();
        self.at[service].iter().filter_map(|&i| workers(i).map(|w| (i, w))).collect()
    }

    /// Rate that the service's present instances carry.
    pub(crate) fn carried(&self, service: usize) -> f64 {
        self.carried_by(service, &self.instances(service))
    }

    /// Load of the service that its present instances cannot carry.
    pub(crate) fn shortfall(&self, service: usize) -> f64 {
        let missing = self.problem.demand_rps(service) - self.carried(service);
        if missing > TOLERANCE_RPS && self.problem.demand_rps(service) >= NO_LOAD_RPS { missing } else { 0.0 }
    }

    /// Fewest workers with which these nodes carry `rate_rps`; `None` if one of them cannot take its share.
    pub(crate) fn spread(&self, service: usize, rate_rps: f64, members: &[usize]) -> Option<Assignment> {
        if self.problem.is_shared() {
            return self.spread_pooled(service, rate_rps, members);
        }
        members
            .iter()
            .zip(self.shares(service, members))
            .map(|(&i, share)| {
                let ladder = self.problem.ladder(service, self.nodes[i].flavor)?;
                let workers = ladder.workers_for(rate_rps * share)?;
                (workers <= self.room(service, i)).then_some((i, workers))
            })
            .collect()
    }

    /// Replaces the service's instances.
    pub(crate) fn assign(&mut self, service: usize, assignment: &[(usize, u32)]) {
        let mut touched = std::mem::take(&mut self.at[service]);
        for &i in &touched {
            self.nodes[i].hosts.remove(&service);
        }
        for &(i, workers) in assignment {
            self.nodes[i].hosts.insert(service, workers);
            touched.push(i);
        }
        for i in touched {
            self.nodes[i].free = self.nodes[i].free_beside(None, self.problem);
        }
        self.at[service] = assignment.iter().map(|&(i, _)| i).collect();
        self.at[service].sort_unstable();
    }

    /// Takes everything off a node.
    pub(crate) fn empty(&mut self, index: usize) {
        for service in std::mem::take(&mut self.nodes[index].hosts).into_keys() {
            self.at[service].retain(|&i| i != index);
        }
        self.nodes[index].free = self.nodes[index].free_beside(None, self.problem);
    }

    /// Instances that the service may have at most and must have at least.
    pub(crate) fn limits(&self, service: usize) -> (usize, usize) {
        let s = self.problem.services[service];
        let most = s.most_instances() as usize;
        let least = if self.problem.wants_nothing(service) { 0 } else { (s.min as usize).max(1) };
        (least.min(most), most)
    }

    /// A placement that carries the demand on the nodes to which `tier` gives a number, lower ones first. The nodes
    /// that host the service already are kept if that is possible.
    pub(crate) fn cover(&self, service: usize, tier: impl Fn(usize) -> Option<u8>) -> Option<Assignment> {
        let rate_rps = self.problem.demand_rps(service);
        let (least, most) = self.limits(service);
        if self.problem.wants_nothing(service) {
            return Some(Vec::new());
        }
        let mut members: Vec<usize> = self.hosting(service).into_iter().filter(|&i| tier(i).is_some()).collect();
        let enough = |members: &[usize]| members.len() >= least && members.len() <= most;
        if enough(&members)
            && let Some(kept) = self.spread(service, rate_rps, &members)
        {
            return Some(kept);
        }
        for i in self.others(service, &tier) {
            if members.len() >= most {
                break;
            }
            members.push(i);
            if enough(&members)
                && let Some(grown) = self.spread(service, rate_rps, &members)
            {
                return Some(grown);
            }
        }
        self.cover_afresh(service, &tier)
    }

    /// Usable nodes that do not host the service: lower tier, then more rate a member, then more members, then name.
    pub(crate) fn others(&self, service: usize, tier: &impl Fn(usize) -> Option<u8>) -> Vec<usize> {
        let mut others: Vec<(u8, usize, f64)> = (0..self.nodes.len())
            .filter(|&i| !self.nodes[i].hosts.contains_key(&service))
            .filter_map(|i| Some((tier(i)?, i, self.potential(service, i))))
            .filter(|(_, _, potential)| *potential > 0.0)
            .collect();
        others.sort_by(|a, b| {
            let (x, y) = (&self.nodes[a.1], &self.nodes[b.1]);
            let weights = self.weight(b.1).cmp(&self.weight(a.1));
            a.0.cmp(&b.0).then(b.2.total_cmp(&a.2)).then(weights).then(x.cmp_name(y))
        });
        others.into_iter().map(|(_, i, _)| i).collect()
    }

    /// The smallest set of nodes that carries the demand, present ones or not.
    fn cover_afresh(&self, service: usize, tier: &impl Fn(usize) -> Option<u8>) -> Option<Assignment> {
        let rate_rps = self.problem.demand_rps(service);
        let (least, most) = self.limits(service);
        let (best_rps, widest) = self.best_set(service, most, &|i| tier(i).is_some());
        if best_rps < rate_rps - TOLERANCE_RPS || widest.len() < least {
            return None;
        }
        (least.max(1)..=most.min(self.nodes.len())).find_map(|size| {
            let (_, members) = self.best_set(service, size, &|i| tier(i).is_some());
            if members.len() < least { None } else { self.spread(service, rate_rps, &members) }
        })
    }

    /// The set of at most `size` nodes that could carry most, and how much. Its rate is bound by the smallest quality
    /// in it, so the best set takes, above some quality, the nodes that contribute most.
    pub(crate) fn best_set(&self, service: usize, size: usize, allowed: &dyn Fn(usize) -> bool) -> (f64, Vec<usize>) {
        let mut usable: Vec<(f64, usize)> = (0..self.nodes.len())
            .filter(|&i| allowed(i))
            .map(|i| (self.quality(service, i), i))
            .filter(|(quality, _)| *quality > 0.0)
            .collect();
        let by_name = |a: usize, b: usize| self.nodes[a].cmp_name(&self.nodes[b]);
        usable.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| by_name(a.1, b.1)));
        let mut best = (0.0, Vec::new());
        for end in 1..=usable.len() {
            let last_of_its_kind = usable.get(end).is_none_or(|next| next.0 < usable[end - 1].0);
            if !last_of_its_kind {
                continue;
            }
            let mut chosen: Vec<(f64, usize)> = usable[..end].to_vec();
            if end > size {
                let by_weight =
                    |a: usize, b: usize| self.contribution(service, b).total_cmp(&self.contribution(service, a));
                chosen.sort_by(|a, b| by_weight(a.1, b.1).then(b.0.total_cmp(&a.0)).then_with(|| by_name(a.1, b.1)));
                chosen.truncate(size);
            }
            let full: Assignment = chosen.iter().map(|&(_, i)| (i, self.room(service, i))).collect();
            let rate_rps = self.carried_by(service, &full);
            if !chosen.is_empty() && rate_rps > best.0 + TOLERANCE_RPS {
                let mut members: Vec<usize> = chosen.into_iter().map(|(_, i)| i).collect();
                members.sort_unstable();
                best = (rate_rps, members);
            }
        }
        best
    }

    /// As much of the demand as the usable nodes carry, on as many nodes as must be. Present instances stay if
    /// nothing is better.
    pub(crate) fn best_effort(&mut self, service: usize, allowed: &dyn Fn(usize) -> bool) {
        let (least, most) = self.limits(service);
        let (_, mut members) = self.best_set(service, most, allowed);
        let others = self.others(service, &|i| allowed(i).then_some(0));
        for i in self.hosting(service).into_iter().chain(others) {
            if members.len() < least && !members.contains(&i) && self.room(service, i) > 0 {
                members.push(i);
            }
        }
        let full: Assignment = members.iter().map(|&i| (i, self.room(service, i))).collect();
        let wanted = self.problem.demand_rps(service).min(self.carried_by(service, &full));
        let present = self.hosting(service).len();
        let no_more = present.min(least) >= members.len().min(least);
        if present > 0 && no_more && wanted <= self.carried(service) + TOLERANCE_RPS {
            return;
        }
        if let Some(assignment) = self.spread(service, wanted, &members) {
            self.assign(service, &assignment);
        }
    }
}
