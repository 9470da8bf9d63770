//! The world: nodes that boot, serve, fail and cost money, and requests that wait for them, one by one.
//!
//! Time goes in ticks of a second for orders, failures and decisions; requests are exact within them (`station`, where
//! the executor's own queue admits, sheds and batches them). Service times are log-normal: mean from the profile's
//! throughput, spread from its quantiles, scaled by the flavor's speed and the scenario's profile error (`timing`).
//! Once a second the executor's own loop lends free cores to instances, for policies that have it.
//!
//! A node boots, gets the program (`image_s`), and each model on it goes from cold over cached (its file is there,
//! `fetch_s`) to loaded (`load_s`), beside the others. A node keeps the files of models that it had; a model without
//! workers is a standby, loaded, and serves as soon as it gets some.
//!
//! A node costs from its order to its end by its billing, at the price of that time. Orders of the first tick are up at
//! once: every policy begins with the fleet that it wants. Failed boots and lost nodes are seen as lost after
//! [`BOOT_PATIENCE_S`] and [`SILENCE_S`], and cost until they are given up; spot nodes cost until they are taken.
//!
//! Invariants: the same world and policy give the same outcome (but for wall-clock times); every request is served,
//! shed, lost or left over, once; quotas hold whatever a policy asks. Left out: network and broker (the planner's
//! `overhead_ms` is 0 here), CPU contention of co-located services beyond their workers, several regions.

use super::outcome::{Outcome, Recorder};
use super::policy::{Command, Host, NodeSeen, Policy, Seen, ServiceSeen};
use super::random::Random;
use super::scenario::QueueKind;
use super::station::{Context, Instance, Station};
use super::timing::Timing;
use super::world::World;
use executor::vertical::call_back;
use planner::lease::{Billing, HOUR_MS, Lease, Terms};
use planner::model::FleetState;
use schemas::status::ProfileUpdate;
use std::collections::{BTreeMap, VecDeque};

/// A node that is not heard of so long after its mean boot time is lost.
pub(super) const BOOT_PATIENCE_S: f64 = 120.0;
/// A node that is silent for so long is lost.
pub(super) const SILENCE_S: f64 = 5.0;
/// Seconds between looks at measured service times. The executor looks every second; over the minute that it measures
/// in, that makes no difference but to the time a simulation takes.
const MEASURE_S: usize = 20;
/// Seconds between looks at whether models take what their profiles say, as in the executor.
const DRIFT_S: usize = (executor::drift::PERIOD_MS / 1000) as usize;
#[derive(Debug, Clone)]
struct Node {
    id: String,
    flavor: usize,
    ordered_s: f64,
    /// When the program runs on it; infinite if its boot fails.
    up_s: f64,
    /// When the first models that it was ordered for are loaded.
    ready_s: f64,
    /// Models whose file is on it, and since when.
    cached: BTreeMap<(usize, String), f64>,
    /// When it breaks.
    breaks_s: f64,
    taken: bool,
    lease: Lease,
    hosts: Vec<Host>,
    active: bool,
    broken: bool,
}

impl Node {
    /// Its first models are loaded, and it has not broken.
    fn is_ready(&self, now_s: f64) -> bool {
        self.active && self.ready_s <= now_s
    }
}

/// Where results go, and what they are made from.
struct Books {
    record: Recorder,
    random: Random,
    timings: Vec<Timing>,
    /// Work done, by node.
    busy_s: Vec<f64>,
}

/// A simulation that runs.
struct Engine<'a> {
    world: &'a World,
    shedding: bool,
    vertical: bool,
    nodes: Vec<Node>,
    alive: Vec<usize>,
    known: BTreeMap<(usize, usize, String, u32, u32), usize>,
    stations: Vec<Vec<Station>>,
    /// By service: requests while nobody serves, as the log of a topic keeps them.
    holding: Vec<VecDeque<f64>>,
    books: Books,
    faults: Random,
    routing: Random,
    updates: Vec<(usize, ProfileUpdate)>,
    per_second: Vec<Vec<u32>>,
    in_system: Vec<Vec<f32>>,
}

/// Runs a policy through a world.
pub(super) fn run(world: &World, policy: &mut dyn Policy, shedding: bool) -> Outcome {
    let n = world.services.len();
    let mut engine = Engine {
        world,
        shedding,
        vertical: policy.vertical(),
        nodes: Vec::new(),
        alive: Vec::new(),
        known: BTreeMap::new(),
        stations: (0..n).map(|_| Vec::new()).collect(),
        holding: vec![VecDeque::new(); n],
        books: Books {
            record: Recorder::new(world),
            random: Random::new(world.seed, "service times"),
            timings: Vec::new(),
            busy_s: Vec::new(),
        },
        faults: Random::new(world.seed, "faults"),
        routing: Random::new(world.seed, "routing"),
        updates: Vec::new(),
        per_second: vec![Vec::with_capacity(world.seconds); n],
        in_system: vec![Vec::with_capacity(world.seconds); n],
    };
    if world.queue == QueueKind::Shared {
        engine.stations = (0..n).map(|_| vec![engine.station(None)]).collect();
    }
    let mut arrivals: Vec<_> = world.services.iter().map(|s| s.workload.arrivals()).collect();
    let mut fresh = Vec::new();
    let period = policy.period_s().max(1);
    let mut due = 0;
    for second in 0..world.seconds {
        engine.live(second);
        if second >= due || (policy.waits() && engine.with_seen(second, |seen| policy.is_urgent(seen))) {
            engine.decide(policy, second);
            due = second + period;
        }
        engine.activate(second as f64 + 1.0);
        for (s, arrivals) in arrivals.iter_mut().enumerate() {
            fresh.clear();
            let count = arrivals.until(second + 1, &mut fresh);
            engine.per_second[s].push(count);
            engine.books.record.arrived(s, second, count);
            engine.serve(s, second, &fresh);
            let working: u32 = engine.stations[s].iter().map(Station::in_work).sum();
            let in_system = engine.waiting(s) as f32 + working as f32;
            engine.in_system[s].push(in_system);
        }
        engine.scale(second + 1);
        if second % 60 == 59 {
            let (nodes, alive) = (&engine.nodes, &engine.alive);
            engine
                .books
                .record
                .minute(alive.iter().filter(|&&i| nodes[i].is_ready(second as f64)).map(|&i| nodes[i].flavor));
        }
    }
    let end_s = world.seconds as f64;
    for i in engine.alive.clone() {
        engine.end(i, end_s);
    }
    let left_over = (0..n).map(|s| engine.waiting(s) as u64).sum();
    engine.books.record.finish(policy, left_over)
}

fn context<'a>(world: &World, service: usize, modes: (bool, bool), books: &'a mut Books) -> Context<'a> {
    Context {
        service,
        slo_s: world.services[service].slo_s,
        shedding: modes.0,
        vertical: modes.1,
        timings: &books.timings,
        random: &mut books.random,
        record: &mut books.record,
        busy_s: &mut books.busy_s,
    }
}

impl Engine<'_> {
    /// Nobody refuses a request where nothing is shed.
    fn station(&self, node: Option<usize>) -> Station {
        let limits = executor::Config::default();
        let capacity = if self.shedding { limits.queue_capacity } else { usize::MAX };
        Station::new(node, capacity, limits.batch_window.as_ms())
    }

    fn waiting(&self, service: usize) -> usize {
        self.stations[service].iter().map(Station::waiting).sum::<usize>() + self.holding[service].len()
    }

    /// Nodes break.
    fn live(&mut self, second: usize) {
        let now = second as f64;
        for i in self.alive.clone() {
            let node = &self.nodes[i];
            if !node.broken && node.breaks_s <= now {
                let taken = node.taken;
                self.nodes[i].broken = true;
                self.nodes[i].active = false;
                (0..self.stations.len()).for_each(|s| self.unload(i, s, true, now));
                self.books.record.broke();
                if taken {
                    self.bill(i, now);
                }
            }
        }
    }

    /// Nodes that are up before `to_s` begin to load their models.
    fn activate(&mut self, to_s: f64) {
        for i in self.alive.clone() {
            let node = &self.nodes[i];
            if !node.active && !node.broken && node.up_s < to_s {
                self.nodes[i].active = true;
                let (hosts, up_s) = (self.nodes[i].hosts.clone(), self.nodes[i].up_s);
                for host in hosts {
                    self.load(i, &host, up_s);
                }
            }
        }
    }

    /// A model on a node: cold, its file is fetched first; cached, where the node has had it, it is only loaded. What is
    /// there at the begin is loaded.
    fn load(&mut self, index: usize, host: &Host, from_s: f64) {
        let (fetch_s, load_s) = (self.world.fetch_s, self.world.load_s(host.service, &host.backend));
        let node = &mut self.nodes[index];
        let at_begin = node.up_s == 0.0 && from_s == 0.0;
        let cached_s = *node.cached.entry((host.service, host.backend.clone())).or_insert(if at_begin {
            0.0
        } else {
            from_s + fetch_s
        });
        let ready_s = if at_begin { 0.0 } else { from_s.max(cached_s) + load_s };
        let timing = self.timing(self.nodes[index].flavor, host, host.workers);
        let timings = &self.books.timings;
        let instance = Instance::new(index, host, timing, timings, ready_s);
        if self.world.queue == QueueKind::Partition {
            let station = self.station(Some(index));
            self.stations[host.service].push(station);
            self.stations[host.service].sort_by_key(|s| s.node);
        }
        let timings = &self.books.timings;
        let mine = self.stations[host.service].iter_mut().find(|s| s.node.is_none_or(|node| node == index));
        if let Some(station) = mine {
            station.add(instance, timings);
        }
    }

    /// An instance goes.
    fn unload(&mut self, index: usize, service: usize, lost: bool, now: f64) {
        let modes = (self.shedding, self.vertical);
        let mut context = context(self.world, service, modes, &mut self.books);
        let stations = &mut self.stations[service];
        stations.iter_mut().for_each(|s| s.remove(index, lost, &mut context));
        self.pass_on(service, now);
    }

    /// Requests that wait where nobody serves any more are given to the others.
    fn pass_on(&mut self, service: usize, now: f64) {
        let modes = (self.shedding, self.vertical);
        let mut context = context(self.world, service, modes, &mut self.books);
        let stations = &mut self.stations[service];
        let mut waiting = Vec::new();
        for station in stations.iter_mut().filter(|s| s.is_deserted()) {
            waiting.extend(station.take_back());
        }
        stations.retain(|s| s.node.is_none() || !s.instances.is_empty());
        let mut others: Vec<&mut Station> = stations.iter_mut().filter(|s| s.serves_before(now)).collect();
        let n = others.len();
        for (k, arrived_s) in waiting.into_iter().enumerate() {
            match others.get_mut(k % n.max(1)) {
                Some(other) => other.offer(arrived_s, now, &mut context),
                None => self.holding[service].push_back(arrived_s),
            }
        }
    }

    /// Service times of an instance with so many workers.
    fn timing(&mut self, flavor: usize, host: &Host, workers: u32) -> usize {
        let key = (host.service, flavor, host.backend.clone(), workers, host.batch);
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let service = &self.world.services[host.service];
        let speed = self.world.flavors[flavor].flavor.speed;
        let profile = service.profiles.iter().find(|p| p.backend == host.backend).unwrap_or(&service.profiles[0]);
        let mut random = Random::new(self.world.seed, "spread");
        let timing = Timing::new(profile, (workers, host.batch), speed, self.world.profile_error, &mut random);
        self.books.timings.push(timing);
        self.known.insert(key, self.books.timings.len() - 1);
        self.books.timings.len() - 1
    }

    /// Work of one second.
    fn serve(&mut self, service: usize, second: usize, fresh: &[f64]) {
        let (from_s, to_s) = (second as f64, second as f64 + 1.0);
        let slo_s = self.world.services[service].slo_s;
        let modes = (self.shedding, self.vertical);
        let mut context = context(self.world, service, modes, &mut self.books);
        let (stations, holding) = (&mut self.stations[service], &mut self.holding[service]);
        if self.shedding {
            // Nobody may be there to refuse them.
            while holding.front().is_some_and(|at| at + slo_s < from_s) {
                holding.pop_front();
                context.record.shed(service);
            }
        }
        let mut open: Vec<&mut Station> = stations.iter_mut().filter(|s| s.serves_before(to_s)).collect();
        if let [station] = open.as_mut_slice() {
            holding.drain(..).for_each(|at| station.offer(at, from_s, &mut context));
            station.serve(fresh, to_s, &mut context);
        } else if open.is_empty() {
            holding.extend(fresh);
        } else {
            let owners = owners(&open, |node| self.world.flavors[self.nodes[node].flavor].flavor.cores);
            let partitions = self.world.partitions.max(1) as usize;
            let mut owner = || {
                let partition = self.routing.bits() as usize % partitions;
                owners[partition * owners.len() / partitions]
            };
            holding.drain(..).for_each(|at| open[owner()].offer(at, from_s, &mut context));
            let mut split = vec![Vec::new(); open.len()];
            fresh.iter().for_each(|at| split[owner()].push(*at));
            for (station, arrivals) in open.into_iter().zip(&split) {
                station.serve(arrivals, to_s, &mut context);
            }
        }
    }

    /// Once a second the executor looks at its instances, and lends or takes back workers.
    fn scale(&mut self, second: usize) {
        let now = second as f64;
        if second.is_multiple_of(MEASURE_S) {
            self.stations.iter_mut().flatten().for_each(|s| s.measure(now));
        }
        if !self.vertical {
            return;
        }
        if second.is_multiple_of(DRIFT_S) {
            self.look_for_drift(now);
        }
        for service in 0..self.stations.len() {
            let slo_s = self.world.services[service].slo_s;
            for at in 0..self.stations[service].len() {
                for place in 0..self.stations[service][at].instances.len() {
                    let node = self.stations[service][at].instances[place].node;
                    let free = self.permits(node).saturating_sub(self.on_node(node).map(|i| i.workers).sum());
                    let step = self.stations[service][at].observe(place, slo_s, free, now);
                    if let Some(step) = step {
                        self.resize(node, service, step.to, now);
                    }
                }
            }
        }
    }

    /// Nodes say where models do not take what the plan counts on.
    fn look_for_drift(&mut self, now: f64) {
        self.updates.clear();
        for (service, stations) in self.stations.iter().enumerate() {
            for (node, point, samples) in stations.iter().flat_map(|s| s.drifts(now)) {
                let node = &self.nodes[node];
                let Some(host) = node.hosts.iter().find(|h| h.service == service) else { continue };
                let (backend, version) = (host.backend.clone(), "1".to_owned());
                let service = self.world.services[service].name.clone();
                self.updates.push((node.flavor, ProfileUpdate { service, version, backend, point, samples }));
            }
        }
    }

    fn permits(&self, node: usize) -> u32 {
        self.world.flavors[self.nodes[node].flavor].flavor.cores
    }

    fn on_node(&self, node: usize) -> impl Iterator<Item = &Instance> {
        self.stations.iter().flatten().flat_map(|s| &s.instances).filter(move |i| i.node == node)
    }

    fn resize(&mut self, node: usize, service: usize, workers: u32, now: f64) {
        let host = self.nodes[node].hosts.iter().find(|h| h.service == service).cloned();
        let Some(host) = host else { return };
        let timing = self.timing(self.nodes[node].flavor, &host, workers);
        let timings = &self.books.timings;
        self.stations[service].iter_mut().for_each(|s| s.resize(node, (workers, timing), now, timings));
    }

    /// As the executor fits workers to a new plan: what it gives at once, borrowed ones back where they are too many.
    fn fit(&mut self, node: usize, now: f64) {
        let of = |s: usize| self.stations[s].iter().flat_map(|s| &s.instances).find(|i| i.node == node);
        let serving: Vec<(usize, u32, u32)> =
            (0..self.stations.len()).filter_map(|s| of(s).map(|i| (s, i.planned, i.workers))).collect();
        let raised: Vec<(u32, u32)> = serving.iter().map(|(_, planned, has)| (*planned, *has.max(planned))).collect();
        let lent = call_back(self.permits(node), &raised);
        for ((service, planned, _), lent) in serving.into_iter().zip(lent) {
            self.resize(node, service, if self.vertical { lent } else { planned }, now);
            self.pass_on(service, now);
        }
    }

    /// The time that a decision takes is measured, and decides nothing.
    fn decide(&mut self, policy: &mut dyn Policy, second: usize) {
        let (commands, took) = self.with_seen(second, |seen| {
            let begin = std::time::Instant::now();
            (policy.decide(seen), begin.elapsed())
        });
        self.books.record.decided(took.as_secs_f64() * 1000.0);
        self.updates.clear();
        for command in commands {
            self.obey(command, second);
        }
    }

    fn with_seen<T>(&self, second: usize, then: impl FnOnce(&Seen<'_>) -> T) -> T {
        let now_ms = self.world.start_ms + second as i64 * 1000;
        let flavors = self.world.flavors_at(second as f64);
        let services: Vec<ServiceSeen<'_>> = (0..self.world.services.len())
            .map(|s| ServiceSeen {
                per_second: &self.per_second[s],
                in_system: &self.in_system[s],
                queued: self.waiting(s),
                p95_s: self.books.record.recent_p95(s),
                minutes: self.books.record.settled(s, second),
            })
            .collect();
        let nodes: Vec<NodeSeen> = self.alive.iter().map(|&i| self.seen(i, second as f64)).collect();
        let seen = Seen {
            world: self.world,
            now_ms,
            second,
            flavors: &flavors,
            services: &services,
            nodes: &nodes,
            updates: &self.updates,
        };
        then(&seen)
    }

    fn seen(&self, index: usize, now: f64) -> NodeSeen {
        let node = &self.nodes[index];
        let flavor = &self.world.flavors[node.flavor];
        let silent = node.broken && now - node.breaks_s >= SILENCE_S;
        let overdue =
            !node.active && node.ready_s.is_infinite() && now - node.ordered_s > flavor.flavor.boot_s + BOOT_PATIENCE_S;
        let state = if silent || overdue {
            FleetState::Lost
        } else if node.broken || node.is_ready(now) {
            FleetState::Ready
        } else {
            FleetState::Ordered
        };
        NodeSeen {
            id: node.id.clone(),
            flavor: node.flavor,
            state,
            lease: node.lease,
            hosts: node.hosts.clone(),
            serving: (0..self.stations.len())
                .filter(|&s| self.stations[s].iter().any(|station| station.serves(index, now)))
                .collect(),
            busy_s: self.books.busy_s[index],
            ready_at_s: node.ready_s,
        }
    }

    fn obey(&mut self, command: Command, second: usize) {
        let now = second as f64;
        match command {
            Command::Start { id, flavor, hosts } => self.start(id, flavor, hosts, second),
            Command::Renew { node, end_ms } => {
                if let Some(i) = self.find(&node) {
                    self.nodes[i].lease.end_ms = self.nodes[i].lease.end_ms.max(end_ms);
                }
            }
            Command::Host { node, hosts } => {
                let Some(i) = self.find(&node) else { return };
                let before = std::mem::replace(&mut self.nodes[i].hosts, hosts.clone());
                if before == hosts {
                    return;
                }
                self.books.record.changes += 1;
                if !self.nodes[i].active {
                    return;
                }
                // Workers and batches change at once; a model that was not there has to be loaded.
                let there = |of: &[Host], h: &Host| of.iter().any(|o| o.service == h.service && o.backend == h.backend);
                for old in before.iter().filter(|b| !there(&hosts, b)) {
                    self.unload(i, old.service, false, now);
                }
                for host in &hosts {
                    if there(&before, host) {
                        let stations = &mut self.stations[host.service];
                        stations.iter_mut().for_each(|s| s.plan(i, host, &self.books.timings));
                    } else {
                        self.load(i, host, now);
                    }
                }
                self.fit(i, now);
            }
            Command::Stop { node } => {
                let Some(i) = self.find(&node) else { return };
                self.books.record.changes += 1;
                self.end(i, now);
            }
        }
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.alive.iter().copied().find(|&i| self.nodes[i].id == id)
    }

    fn start(&mut self, id: String, flavor: usize, hosts: Vec<Host>, second: usize) {
        let of_flavor = self.alive.iter().filter(|&&i| self.nodes[i].flavor == flavor).count();
        let spec = &self.world.flavors[flavor];
        if spec.flavor.quota.is_some_and(|q| of_flavor >= q as usize) {
            return;
        }
        let now = second as f64;
        let load_s = hosts.iter().map(|h| self.world.load_s(h.service, &h.backend)).fold(0.0, f64::max);
        // Draws in a fixed number and order, so that one policy's orders meet the same luck every time.
        let boot_s = self.faults.log_normal(spec.flavor.boot_s, spec.boot_cv);
        let (fails, life_h, spot_h) = (self.faults.unit(), self.faults.exponential(), self.faults.exponential());
        let at_begin = second == 0;
        let fails = !at_begin && fails < self.world.boot_failure;
        let up_s = if at_begin { now } else { now + boot_s + self.world.image_s };
        let ready_s = if at_begin { now } else { up_s + self.world.fetch_s + load_s };
        let rate = |per_h: f64, draw: f64| if per_h > 0.0 { ready_s + draw / per_h * 3600.0 } else { f64::INFINITY };
        let breaks = rate(if self.world.mtbf_h > 0.0 { 1.0 / self.world.mtbf_h } else { 0.0 }, life_h);
        let taken = rate(spec.interruptions_per_h, spot_h);
        let now_ms = self.world.start_ms + second as i64 * 1000;
        self.nodes.push(Node {
            id,
            flavor,
            ordered_s: now,
            up_s: if fails { f64::INFINITY } else { up_s },
            ready_s: if fails { f64::INFINITY } else { ready_s },
            cached: BTreeMap::new(),
            breaks_s: if fails { f64::INFINITY } else { breaks.min(taken) },
            taken: taken <= breaks,
            lease: Terms::of(&spec.flavor).start(now_ms),
            hosts,
            active: false,
            broken: false,
        });
        self.alive.push(self.nodes.len() - 1);
        self.books.busy_s.push(0.0);
        if !at_begin {
            self.books.record.cold_starts += 1;
        }
        self.books.record.changes += 1;
    }

    /// Out of the router at once; what is in work is finished.
    fn end(&mut self, index: usize, now: f64) {
        let done = self.stations.iter().flatten().map(|s| s.done_s(index)).fold(now, f64::max);
        let done = done.min(self.world.seconds as f64);
        (0..self.stations.len()).for_each(|service| self.unload(index, service, false, now));
        if !(self.nodes[index].broken && self.nodes[index].taken) {
            self.bill(index, done);
        }
        self.alive.retain(|&i| i != index);
    }

    fn bill(&mut self, index: usize, end_s: f64) {
        let node = &self.nodes[index];
        let spec = &self.world.flavors[node.flavor];
        let horizon = self.world.seconds as f64;
        let unit_s = spec.flavor.min_lease_s;
        let until = match spec.flavor.billing {
            Billing::Second => end_s.max(node.ordered_s + unit_s),
            Billing::Hour => {
                let hour_s = HOUR_MS as f64 / 1000.0;
                let hours = ((end_s - node.ordered_s).max(unit_s).max(1.0) / hour_s - 1e-9).ceil();
                node.ordered_s + hours * hour_s
            }
        };
        // The simulation ends in the middle of terms: what reaches beyond is nobody's.
        let until = until.min(horizon.max(end_s));
        self.books.record.cost_usd += spec.usd(node.ordered_s, until);
        let ready_s = (end_s - node.ready_s).max(0.0);
        // On a CPU every core may work, planned or lent; a GPU has the streams that it was given.
        let workers: u32 = node.hosts.iter().map(|h| h.workers).sum();
        let on_gpu = node.hosts.iter().any(|h| h.backend == "cuda");
        let workers = if on_gpu { workers } else { workers.max(spec.flavor.cores) };
        self.books.record.paid_worker_s += f64::from(workers.max(1)) * (until - node.ordered_s);
        self.books.record.ready_node_s += ready_s;
    }
}

/// Who owns which member's share of the partitions: a member a core, and partitions are dealt to members in order, as
/// evenly as whole partitions go.
fn owners(stations: &[&mut Station], cores: impl Fn(usize) -> u32) -> Vec<usize> {
    let of = |(at, station): (usize, &&mut Station)| {
        std::iter::repeat_n(at, station.node.map_or(1, |node| cores(node).max(1) as usize))
    };
    stations.iter().enumerate().flat_map(of).collect()
}
