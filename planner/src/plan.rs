//! Algorithm 2: provision one set-up time ahead, renew before starting, let surplus leases lapse.
//!
//! For each service the demand of one set-up time ahead (`demand`) is placed on the nodes that will be there then:
//! first what is in use, then nodes that are leased but idle, then new ones (`grow`), those that are there sooner where
//! that is cheaper than the shortage meanwhile (`lead`, `bridge`). What is not needed any more is
//! consolidated away (`shrink`): unloaded while its lease is paid, stopped after. Services share nodes (`pack`) and
//! quotas; when not everything fits, the higher priority is served first, equal ones lose the same share (`share`),
//! and what is lost is said.
//!
//! Invariants, each a property test in `properties.rs`:
//! - planning again from the result changes nothing;
//! - planned capacity covers the demand, or the shortfall is reported;
//! - quotas, `min`, `max`, partitions and lease terms hold;
//! - the order of the inputs does not matter;
//! - more demand never lowers the cost, where flavors come up alike; else price and shortage together (`cover`);
//! - noise of ±2 % does not make it flap.
//!
//! Barista 2019 counts `ceil(y' / n_req)` back-ends of one flavor for one service; with
//! [`crate::model::CapacityRule::Paper`], one service and one flavor this is what comes out. It is a reconstruction.
//! Exact for one service (`cover`); several services on shared nodes are packed by a heuristic.
//! Left out: more steps of time than the two leads of `lead`, and the choice
//! between lease terms by how long a load will last (flavors are compared by their price for an hour, `spot`).

use crate::cost::{Rungs, rate_among, usd_per_million};
use crate::demand::demand_until;
use crate::lease::Terms;
use crate::model::{Flavor, FleetNode, FleetState, Plan, PlanInputs, Service, ServiceProfile};
use crate::pack::{Node, Origin, Packing, Problem};
use crate::{report, share, shrink, spot};
use std::collections::BTreeMap;
use std::rc::Rc;

/// Rounds of growing and shrinking at most; almost always the second changes nothing.
const MOST_ROUNDS: usize = 8;
/// Times that a decision is looked at again as if it had been carried out; almost always once.
const MOST_REPLANS: usize = 8;

/// Decides. Inputs that [`PlanInputs::problems`] complains about give a plan without meaning, never a panic.
pub fn plan(inputs: &PlanInputs) -> Plan {
    let problem = problem(inputs);
    let sooner = problem.sooner();
    let mut packing = Packing::new(&problem, usable_nodes(&problem));
    packing.sooner = sooner.as_ref();
    let mut next = inputs.naming.next;
    settle_for_good(&mut packing, &mut next);
    for _ in 0..MOST_REPLANS {
        let mut published = packing.clone();
        published.lend_free_cores();
        let mut again = published.carried_out();
        settle_for_good(&mut again, &mut next);
        if again.placement() == packing.placement() {
            break;
        }
        packing = again;
    }
    packing.lend_free_cores();
    report::report(&packing, next)
}

/// Rounds of [`settle`] until nothing changes.
fn settle_for_good(packing: &mut Packing<'_>, next: &mut u64) {
    for _ in 0..MOST_ROUNDS {
        let before = packing.nodes.clone();
        settle(packing, next);
        if packing.nodes == before {
            break;
        }
    }
}

impl<'p> Packing<'p> {
    /// What the next decision would begin with, were this one carried out and no time had gone by: new nodes are
    /// ordered, and nodes that end take nothing more.
    fn carried_out(&self) -> Packing<'p> {
        let problem = self.problem;
        let mut after = self.clone();
        for node in &mut after.nodes {
            let terms = Terms::of(problem.flavors[node.flavor]);
            match node.origin {
                Origin::New => {
                    node.ordered = true;
                    node.replacement = false;
                    node.sunk = terms.is_sunk(terms.start(problem.inputs.now_ms), problem.sunk_until_ms(node.flavor));
                }
                Origin::Fleet(index) => {
                    let lease = problem.inputs.fleet[index].lease;
                    if node.in_use() && terms.renewal_due(lease, problem.then_ms(node.flavor)) {
                        let renewed = terms.renewed(lease, problem.then_ms(node.flavor));
                        node.sunk = terms.is_sunk(renewed, problem.sunk_until_ms(node.flavor));
                    }
                    let stops = problem.inputs.settings.elastic && terms.may_stop(lease, problem.inputs.now_ms);
                    node.ending |= !node.in_use() && stops;
                }
            }
            let hosts = node.hosts().clone();
            node.live.retain(|s| hosts.contains_key(s));
        }
        after.nodes.sort_by(|a, b| a.cmp_name(b));
        after.reindex();
        after
    }

    /// What runs where.
    fn placement(&self) -> BTreeMap<&str, &BTreeMap<usize, u32>> {
        self.nodes.iter().map(|n| (n.id.as_str(), n.hosts())).collect()
    }
}

/// Grows to what is needed, then gives up what is not. What is given up can make room for what was short, hence
/// the rounds in [`plan`].
fn settle(packing: &mut Packing<'_>, next: &mut u64) {
    trim(packing);
    grow(packing, next);
    if share::is_short(packing) {
        share::spread_loss(packing);
    }
    shrink::shrink(packing, next);
    let before = packing.nodes.len();
    packing.nodes.retain(|n| n.origin != Origin::New || n.in_use());
    if packing.nodes.len() != before {
        packing.reindex();
    }
}

/// Ratings, demands and the order of service.
fn problem(inputs: &PlanInputs) -> Problem<'_> {
    let mut services: Vec<&Service> = inputs.services.iter().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let mut flavors: Vec<&Flavor> = inputs.flavors.iter().collect();
    flavors.sort_by(|a, b| a.name.cmp(&b.name));
    let mut profiles: BTreeMap<&str, Vec<&ServiceProfile>> = BTreeMap::new();
    for profile in &inputs.profiles {
        profiles.entry(&profile.service).or_default().push(profile);
    }
    let of = |s: &Service| profiles.get(s.name.as_str()).map_or(&[][..], |p| p);
    let rated = |s: &&Service| {
        let mut rungs = Rungs::new();
        flavors.iter().map(|f| rate_among(s, f, of(s), &inputs.settings, &mut rungs)).collect()
    };
    let ladders: Vec<Vec<_>> = services.iter().map(rated).collect();
    let mut problem = Problem {
        existing: existing(inputs, &flavors),
        inputs,
        services,
        flavors,
        ladders: Rc::new(ladders),
        demands: Vec::new(),
        order: Vec::new(),
        usd_per_hour: Vec::new(),
        near: vec![None; inputs.services.len()],
    };
    problem.usd_per_hour = (0..problem.flavors.len())
        .map(|f| {
            let setup_ms = (0..problem.services.len()).map(|s| problem.setup_ms(s, f)).max();
            spot::expected_usd_per_hour(problem.flavors[f], setup_ms.unwrap_or(0), &inputs.settings)
        })
        .collect();
    with_demands(&mut problem);
    let mut order: Vec<usize> = (0..problem.services.len()).collect();
    let price = |s: usize| problem.cheapest(s).map_or(f64::INFINITY, |f| problem.usd_per_million(s, f));
    order.sort_by(|&a, &b| {
        let (x, y) = (problem.services[a], problem.services[b]);
        y.priority.cmp(&x.priority).then(price(a).total_cmp(&price(b))).then(x.name.cmp(&y.name))
    });
    problem.order = order;
    problem
}

/// Demands, and how shortages are met, where that differs from what serves a lasting load.
fn with_demands(problem: &mut Problem<'_>) {
    let (now_ms, settings) = (problem.inputs.now_ms, &problem.inputs.settings);
    let until = |s: usize, near_ms: i64, base_ms: i64| {
        let service = problem.services[s];
        let previous = problem.inputs.previous.iter().find(|p| p.service == service.name);
        demand_until(service, near_ms, base_ms, problem.smallest_rps(s), previous, now_ms, settings)
    };
    let setup_ms = |s: usize, f: Option<usize>| f.map_or(0, |f| problem.setup_ms(s, f));
    let first = |s: usize| {
        let setup_ms = setup_ms(s, problem.cheapest(s));
        until(s, setup_ms, setup_ms)
    };
    // Without quotas the cheapest flavor serves any load.
    let all = 0..problem.services.len();
    let limited = problem.flavors.iter().any(|f| f.quota.is_some());
    let rates: Vec<f64> = if limited { all.clone().map(|s| first(s).rps).collect() } else { Vec::new() };
    let wishes = problem.wishes(&rates);
    let one = |s: usize| {
        let base = if limited { problem.base(s, rates[s], &wishes) } else { problem.cheapest(s) };
        let near = base.and_then(|f| problem.near_of(s, f));
        (until(s, near.map_or(setup_ms(s, base), |n| n.lead_ms), setup_ms(s, base)), near)
    };
    (problem.demands, problem.near) = all.map(one).unzip();
}

/// Nodes that count against quotas: by flavor, and all.
fn existing(inputs: &PlanInputs, flavors: &[&Flavor]) -> (Vec<usize>, usize) {
    let mut by_flavor = vec![0; flavors.len()];
    let exists: Vec<&FleetNode> = inputs.fleet.iter().filter(|n| n.state != FleetState::Lost).collect();
    for node in &exists {
        if let Ok(f) = flavors.binary_search_by(|f| f.name.as_str().cmp(&node.flavor)) {
            by_flavor[f] += 1;
        }
    }
    (by_flavor, exists.len())
}

impl Problem<'_> {
    /// Price of a million requests on a full node; infinite where the service cannot run.
    pub(crate) fn usd_per_million(&self, service: usize, flavor: usize) -> f64 {
        let price = |l| usd_per_million(self.flavors[flavor], l, &self.inputs.settings);
        self.ladder(service, flavor).map_or(f64::INFINITY, price)
    }

    /// The same with the demands of these services at `share` of what they are.
    pub(crate) fn scaled(&self, services: &[usize], share: f64) -> Self {
        let mut scaled = self.clone();
        for &s in services {
            scaled.demands[s].rps *= share;
        }
        scaled
    }

    /// The same with what is wanted within the near leads as the demands; where no service has one, nothing.
    fn sooner(&self) -> Option<Self> {
        let mut sooner = self.near.iter().any(Option::is_some).then(|| self.clone())?;
        sooner.demands.iter_mut().for_each(|d| d.rps = d.near_rps);
        Some(sooner)
    }

    /// Time that a node of the flavor is paid for at least.
    pub(crate) fn least_ms(&self, flavor: usize) -> i64 {
        let lease = Terms::of(self.flavors[flavor]).start(0);
        lease.end_ms - lease.start_ms
    }

    /// The flavor with the lowest price for a request (Algorithm 1).
    pub(crate) fn cheapest(&self, service: usize) -> Option<usize> {
        (0..self.flavors.len())
            .filter(|&f| self.ladder(service, f).is_some())
            .min_by(|&a, &b| self.usd_per_million(service, a).total_cmp(&self.usd_per_million(service, b)))
    }

    /// What the smallest node that is of use to the service carries.
    fn smallest_rps(&self, service: usize) -> f64 {
        let carried = |f: usize| self.ladder(service, f)?.top().map(|r| r.carry_rps);
        let least = (0..self.flavors.len()).filter_map(carried).fold(f64::INFINITY, f64::min);
        if least.is_finite() { least } else { 0.0 }
    }

    /// From order to the first answer: boot, image, model.
    pub(crate) fn setup_ms(&self, service: usize, flavor: usize) -> i64 {
        let load_ms = self.ladder(service, flavor).map_or(0, |l| l.load_ms);
        self.flavors[flavor].boot_ms() + self.inputs.settings.image_ms + load_ms
    }

    /// When a node of the flavor that is ordered at the next decision would serve: a lease that counts is valid then.
    pub(crate) fn then_ms(&self, flavor: usize) -> i64 {
        let setup_ms = (0..self.services.len()).map(|s| self.setup_ms(s, flavor)).max();
        let setup_ms = setup_ms.unwrap_or_else(|| self.flavors[flavor].boot_ms());
        self.inputs.now_ms + (setup_ms + self.inputs.settings.period_ms).min(self.inputs.settings.horizon_ms)
    }

    /// Position of a flavor by name.
    pub(crate) fn flavor_of(&self, node: &FleetNode) -> Option<usize> {
        self.flavors.iter().position(|f| f.name == node.flavor)
    }

    /// Part of `then_ms` that binds a node's lease: held by the second, giving up saves from the next decision on.
    fn sunk_until_ms(&self, flavor: usize) -> i64 {
        match Terms::of(self.flavors[flavor]).billing {
            crate::lease::Billing::Second => self.inputs.now_ms,
            crate::lease::Billing::Hour => self.then_ms(flavor),
        }
    }
}

/// Nodes that can host, by id.
fn usable_nodes<'p>(problem: &'p Problem<'p>) -> Vec<Node> {
    let can_host = |state| !matches!(state, FleetState::Draining | FleetState::Lost);
    let fleet = problem.inputs.fleet.iter().enumerate().filter(|(_, n)| can_host(n.state));
    let mut nodes: Vec<Node> = fleet
        .filter_map(|(index, node)| {
            let flavor = problem.flavor_of(node)?;
            Some(Node::existing(index, node, flavor, problem, problem.sunk_until_ms(flavor)))
        })
        .collect();
    nodes.sort_by(|a, b| a.cmp_name(b));
    nodes
}

/// Gives back workers that present instances do not need, so that others find room.
fn trim(packing: &mut Packing<'_>) {
    for s in 0..packing.problem.services.len() {
        if packing.problem.wants_nothing(s) {
            packing.assign(s, &[]);
            continue;
        }
        let present = packing.instances(s);
        let members: Vec<usize> = present.iter().map(|&(i, _)| i).collect();
        let Some(needed) = packing.spread(s, packing.problem.demand_rps(s), &members) else { continue };
        if needed.iter().zip(&present).all(|(n, p)| n.1 <= p.1) {
            packing.assign(s, &needed);
        }
    }
}

/// Places every service, in order, with new nodes where needed and allowed.
fn grow(packing: &mut Packing<'_>, next: &mut u64) {
    for &s in &packing.problem.order {
        if !fails_to_load(packing, s) {
            packing.bridge(s, next);
        }
        if let Some(assignment) = packing.cover(s, |i| Some(tier(&packing.nodes[i]))) {
            packing.assign(s, &assignment);
            continue;
        }
        if !fails_to_load(packing, s) {
            packing.add_nodes_for(s, next);
        }
        match packing.cover(s, |i| Some(tier(&packing.nodes[i]))) {
            Some(assignment) => packing.assign(s, &assignment),
            None => packing.best_effort(s, &|_| true),
        }
    }
}

/// In use, then idle but leased, then new.
fn tier(node: &Node) -> u8 {
    match node.origin {
        _ if node.in_use() => 0,
        Origin::Fleet(_) => 1,
        Origin::New if node.ordered => 1,
        Origin::New => 2,
    }
}

/// True when the model failed where it was tried and serves nowhere: more nodes would not help.
pub(crate) fn fails_to_load(packing: &Packing<'_>, service: usize) -> bool {
    let failed = packing.nodes.iter().any(|n| n.failed.contains(&service));
    failed && !packing.nodes.iter().any(|n| n.live.contains(&service))
}
