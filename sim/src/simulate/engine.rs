//! The world: nodes that boot, serve, fail and cost money, and requests that wait for them, one by one.
//!
//! Time goes in ticks of a second for orders, failures and decisions; requests are exact within them: a worker that is
//! free takes the oldest request (all of a service have the same SLO, so the deadline order of the executor's queue is
//! the order of arrival), with what else waits up to its batch and as far as the deadline of the oldest allows. Service
//! times are log-normal: mean from the profile's throughput, spread from its quantiles, scaled by the flavor's speed and
//! the scenario's profile error. With shedding, a request is dropped when it is its turn and it would be late at the
//! 95th percentile of a batch of one; that is the executor's rule (`executor::queue`), written again here because the
//! executor cannot be had without its ONNX runtime.
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
use super::world::World;
use planner::lease::{Billing, HOUR_MS, Lease, Terms};
use planner::model::FleetState;
use schemas::profile::Profile;
use std::collections::{BTreeMap, VecDeque};

/// A node that is not heard of so long after its mean boot time is lost.
pub(super) const BOOT_PATIENCE_S: f64 = 120.0;
/// A node that is silent for so long is lost.
pub(super) const SILENCE_S: f64 = 5.0;
/// Draws of the service time's spread.
const DRAWS: usize = 1024;

/// Service times of an instance.
#[derive(Debug, Clone)]
struct Timing {
    /// Mean time of a batch by size; index 0 is unused.
    mean_s: Vec<f64>,
    /// Its 95th percentile.
    p95_s: Vec<f64>,
    /// Multipliers to draw from.
    spread: Vec<f64>,
}

impl Timing {
    /// `slower` is what the profile's times are multiplied by.
    fn new(profile: &Profile, workers: u32, max_batch: u32, slower: f64, random: &mut Random) -> Self {
        // The measurement with as many workers, else fewer, else the fewest: as the planner rates it.
        let counts = || profile.points.iter().map(|p| p.workers);
        let nearest = counts().filter(|w| *w <= workers).max().or_else(|| counts().min()).unwrap_or(1);
        let mut points: Vec<(f64, f64, f64)> = profile
            .points
            .iter()
            .filter(|p| p.workers == nearest)
            .map(|p| {
                (
                    f64::from(p.batch),
                    f64::from(p.workers * p.batch) / p.rps * slower,
                    (p.p95_ms / p.p50_ms).ln() / 1.645,
                )
            })
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let at = |batch: f64| -> f64 {
            let above = points.iter().position(|p| p.0 >= batch).unwrap_or(points.len() - 1);
            let (x1, y1, _) = points[above];
            match above.checked_sub(1).map(|i| points[i]) {
                Some((x0, y0, _)) if x1 > x0 => y0 + (y1 - y0) * (batch - x0) / (x1 - x0),
                // Below the smallest measured batch: a smaller batch takes no less.
                _ => y1,
            }
        };
        let mean_s: Vec<f64> = (0..=max_batch).map(|b| at(f64::from(b.max(1)))).collect();
        let sigma = points.iter().map(|p| p.2).fold(0.0, f64::max);
        let mut spread: Vec<f64> = (0..DRAWS).map(|_| (sigma * random.normal()).exp()).collect();
        let mean = spread.iter().sum::<f64>() / DRAWS as f64;
        spread.iter_mut().for_each(|m| *m /= mean);
        let p95 = (1.645 * sigma - sigma * sigma / 2.0).exp();
        Timing { p95_s: mean_s.iter().map(|m| m * p95).collect(), mean_s, spread }
    }
}

#[derive(Debug, Clone)]
struct Worker {
    node: usize,
    timing: usize,
    free_at: f64,
    /// Of the batch in work: the minute of its oldest request, and how many of it will be in time.
    in_work: (u32, u32),
    batch: u32,
}

/// Requests that wait together, and who takes from them.
#[derive(Debug, Clone, Default)]
struct Group {
    /// The node, where each has its own.
    node: Option<usize>,
    queue: VecDeque<f64>,
    workers: Vec<Worker>,
}

#[derive(Debug, Clone)]
struct Node {
    id: String,
    flavor: usize,
    ordered_s: f64,
    /// When it serves; infinite if its boot fails.
    ready_s: f64,
    /// When it breaks.
    breaks_s: f64,
    taken: bool,
    lease: Lease,
    hosts: Vec<Host>,
    active: bool,
    broken: bool,
    busy_s: f64,
}

/// A simulation that runs.
struct Engine<'a> {
    world: &'a World,
    shedding: bool,
    nodes: Vec<Node>,
    alive: Vec<usize>,
    timings: Vec<Timing>,
    known: BTreeMap<(usize, usize, String, u32, u32), usize>,
    groups: Vec<Vec<Group>>,
    random: Random,
    faults: Random,
    record: Recorder,
    per_second: Vec<Vec<u32>>,
    in_system: Vec<Vec<f32>>,
}

/// Runs a policy through a world.
pub(super) fn run(world: &World, policy: &mut dyn Policy, shedding: bool) -> Outcome {
    let n = world.services.len();
    let mut engine = Engine {
        world,
        shedding,
        nodes: Vec::new(),
        alive: Vec::new(),
        timings: Vec::new(),
        known: BTreeMap::new(),
        groups: vec![if world.queue == QueueKind::Shared { vec![Group::default()] } else { Vec::new() }; n],
        random: Random::new(world.seed, "service times"),
        faults: Random::new(world.seed, "faults"),
        record: Recorder::new(world),
        per_second: vec![Vec::with_capacity(world.seconds); n],
        in_system: vec![Vec::with_capacity(world.seconds); n],
    };
    let mut arrivals: Vec<_> = world.services.iter().map(|s| s.workload.arrivals()).collect();
    // Partition mode: requests that no node takes yet.
    let mut fresh = VecDeque::new();
    let mut holding: Vec<VecDeque<f64>> = vec![VecDeque::new(); n];
    let mut routing = Random::new(world.seed, "routing");
    let period = policy.period_s().max(1);
    for second in 0..world.seconds {
        engine.live(second);
        if second % period == 0 {
            engine.decide(policy, second);
        }
        engine.activate(second as f64 + 1.0);
        for s in 0..n {
            let end = second + 1;
            let count = if world.queue == QueueKind::Shared {
                arrivals[s].until(end, &mut engine.groups[s][0].queue)
            } else {
                fresh.clear();
                let count = arrivals[s].until(end, &mut fresh);
                engine.route(s, &fresh, &mut holding[s], &mut routing);
                count
            };
            engine.per_second[s].push(count);
            engine.record.arrived(s, second, count);
            engine.serve(s, second);
            let waiting = engine.groups[s].iter().map(|g| g.queue.len()).sum::<usize>() + holding[s].len();
            let now = end as f64;
            let working: u32 =
                engine.groups[s].iter().flat_map(|g| &g.workers).filter(|w| w.free_at > now).map(|w| w.batch).sum();
            engine.in_system[s].push(waiting as f32 + working as f32);
        }
        if second % 60 == 59 {
            let (nodes, alive) = (&engine.nodes, &engine.alive);
            engine.record.minute(alive.iter().filter(|&&i| nodes[i].active).map(|&i| nodes[i].flavor));
        }
    }
    let end_s = world.seconds as f64;
    for i in engine.alive.clone() {
        engine.end(i, end_s);
    }
    engine.record.finish(policy)
}

impl Engine<'_> {
    /// Nodes break.
    fn live(&mut self, second: usize) {
        let now = second as f64;
        for i in self.alive.clone() {
            let node = &self.nodes[i];
            if !node.broken && node.breaks_s <= now {
                let taken = node.taken;
                self.nodes[i].broken = true;
                self.nodes[i].active = false;
                self.lose_work(i, now);
                self.record.broke();
                if taken {
                    self.bill(i, now);
                }
            }
        }
    }

    /// What a broken node had in work is lost.
    fn lose_work(&mut self, index: usize, now: f64) {
        for (s, groups) in self.groups.iter_mut().enumerate() {
            for group in groups.iter_mut() {
                for worker in group.workers.iter().filter(|w| w.node == index && w.free_at > now) {
                    self.record.lost(s, worker.in_work, worker.batch);
                }
                group.workers.retain(|w| w.node != index);
            }
        }
        (0..self.groups.len()).for_each(|s| self.dissolve(index, s));
    }

    /// Requests of a service that wait at a node that goes are given to the others.
    fn dissolve(&mut self, index: usize, service: usize) {
        let groups = &mut self.groups[service];
        let Some(at) = groups.iter().position(|g| g.node == Some(index)) else { return };
        let gone = groups.remove(at);
        let n = groups.len();
        if n == 0 {
            groups.push(Group { node: None, queue: gone.queue, workers: Vec::new() });
            return;
        }
        for (k, at_s) in gone.queue.into_iter().enumerate() {
            groups[k % n].queue.push_back(at_s);
        }
        for group in groups.iter_mut() {
            group.queue.make_contiguous().sort_by(f64::total_cmp);
        }
    }

    /// Nodes whose set-up ends before `to_s` begin to serve.
    fn activate(&mut self, to_s: f64) {
        for i in self.alive.clone() {
            let node = &self.nodes[i];
            if !node.active && !node.broken && node.ready_s < to_s {
                self.nodes[i].active = true;
                let (hosts, ready_s) = (self.nodes[i].hosts.clone(), self.nodes[i].ready_s);
                for host in hosts {
                    self.load(i, &host, ready_s);
                }
            }
        }
    }

    fn load(&mut self, index: usize, host: &Host, from_s: f64) {
        let timing = self.timing(self.nodes[index].flavor, host);
        let workers =
            (0..host.workers).map(|_| Worker { node: index, timing, free_at: from_s, in_work: (0, 0), batch: 0 });
        let groups = &mut self.groups[host.service];
        if self.world.queue == QueueKind::Shared {
            groups[0].workers.extend(workers);
            return;
        }
        // Requests that waited for any node at all go to the first.
        let queue = match groups.iter().position(|g| g.node.is_none()) {
            Some(at) => groups.remove(at).queue,
            None => VecDeque::new(),
        };
        groups.push(Group { node: Some(index), queue, workers: workers.collect() });
        groups.sort_by_key(|g| g.node);
    }

    fn unload(&mut self, index: usize, service: usize) {
        for group in &mut self.groups[service] {
            group.workers.retain(|w| w.node != index);
        }
        self.dissolve(index, service);
    }

    fn timing(&mut self, flavor: usize, host: &Host) -> usize {
        let key = (host.service, flavor, host.backend.clone(), host.workers, host.batch);
        if let Some(&known) = self.known.get(&key) {
            return known;
        }
        let service = &self.world.services[host.service];
        let slower = (1.0 + self.world.profile_error) / self.world.flavors[flavor].flavor.speed;
        let profile = service.profiles.iter().find(|p| p.backend == host.backend).unwrap_or(&service.profiles[0]);
        let mut random = Random::new(self.world.seed, "spread");
        self.timings.push(Timing::new(profile, host.workers, host.batch.max(1), slower, &mut random));
        self.known.insert(key, self.timings.len() - 1);
        self.timings.len() - 1
    }

    /// Partition mode: arrivals to the nodes that own their partitions.
    fn route(&mut self, service: usize, fresh: &VecDeque<f64>, holding: &mut VecDeque<f64>, random: &mut Random) {
        let groups = &mut self.groups[service];
        if groups.iter().all(|g| g.node.is_none()) {
            holding.extend(fresh);
            return;
        }
        // A member a core; partitions are dealt to members in order, as evenly as whole partitions go.
        let mut owners = Vec::new();
        for (g, group) in groups.iter().enumerate() {
            let Some(node) = group.node else { continue };
            let cores = self.world.flavors[self.nodes[node].flavor].flavor.cores.max(1);
            owners.extend(std::iter::repeat_n(g, cores as usize));
        }
        let partitions = self.world.partitions.max(1) as usize;
        let mut waiting: Vec<f64> = holding.drain(..).collect();
        waiting.extend(fresh);
        for at_s in waiting {
            let partition = random.bits() as usize % partitions;
            groups[owners[partition * owners.len() / partitions]].queue.push_back(at_s);
        }
    }

    /// Work of one second.
    fn serve(&mut self, service: usize, second: usize) {
        let (from_s, to_s) = (second as f64, second as f64 + 1.0);
        let slo_s = self.world.services[service].slo_s;
        for group in &mut self.groups[service] {
            if self.shedding {
                // Nobody may be there to refuse them.
                while group.queue.front().is_some_and(|at| at + slo_s < from_s) {
                    group.queue.pop_front();
                    self.record.shed(service);
                }
            }
            while let Some(&arrived) = group.queue.front() {
                let (mut best, mut start, mut fastest) = (usize::MAX, f64::INFINITY, f64::INFINITY);
                for (k, worker) in group.workers.iter().enumerate() {
                    if worker.free_at <= arrived {
                        let time = self.timings[worker.timing].mean_s[1];
                        if start > arrived || time < fastest {
                            (best, start, fastest) = (k, arrived, time);
                        }
                    } else if worker.free_at < start {
                        (best, start) = (k, worker.free_at);
                    }
                }
                if start >= to_s {
                    break;
                }
                let worker = &mut group.workers[best];
                let timing = &self.timings[worker.timing];
                let left_s = arrived + slo_s - start;
                if self.shedding && timing.p95_s[1] > left_s {
                    group.queue.pop_front();
                    self.record.shed(service);
                    continue;
                }
                let most = timing.mean_s.len() - 1;
                let mut n = 1;
                if most > 1 {
                    n = group.queue.iter().take(most).take_while(|at| **at <= start).count().max(1);
                    if timing.p95_s[1] <= left_s {
                        while n > 1 && timing.p95_s[n] > left_s {
                            n -= 1;
                        }
                    }
                }
                let took_s = timing.mean_s[n] * timing.spread[self.random.bits() as usize % DRAWS];
                let end = start + took_s;
                let mut in_time = 0;
                for at in group.queue.drain(..n) {
                    in_time += u32::from(self.record.served(service, at, end - at, slo_s));
                }
                worker.free_at = end;
                worker.in_work = ((arrived / 60.0) as u32, in_time);
                worker.batch = n as u32;
                self.nodes[worker.node].busy_s += took_s;
                self.record.busy_s += took_s;
            }
        }
    }

    /// The time that a decision takes is measured, and decides nothing.
    fn decide(&mut self, policy: &mut dyn Policy, second: usize) {
        let now_ms = self.world.start_ms + second as i64 * 1000;
        let flavors = self.world.flavors_at(second as f64);
        let services: Vec<ServiceSeen<'_>> = (0..self.world.services.len())
            .map(|s| ServiceSeen {
                per_second: &self.per_second[s],
                in_system: &self.in_system[s],
                queued: self.groups[s].iter().map(|g| g.queue.len()).sum(),
                p95_s: self.record.recent_p95(s),
                minutes: self.record.settled(s, second),
            })
            .collect();
        let nodes: Vec<NodeSeen> = self.alive.iter().map(|&i| self.seen(&self.nodes[i], second as f64)).collect();
        let seen = Seen { world: self.world, now_ms, second, flavors: &flavors, services: &services, nodes: &nodes };
        let begin = std::time::Instant::now();
        let commands = policy.decide(&seen);
        self.record.decided(begin.elapsed().as_secs_f64() * 1000.0);
        for command in commands {
            self.obey(command, second);
        }
    }

    fn seen(&self, node: &Node, now: f64) -> NodeSeen {
        let flavor = &self.world.flavors[node.flavor];
        let silent = node.broken && now - node.breaks_s >= SILENCE_S;
        let overdue =
            !node.active && node.ready_s.is_infinite() && now - node.ordered_s > flavor.flavor.boot_s + BOOT_PATIENCE_S;
        let state = if silent || overdue {
            FleetState::Lost
        } else if node.active || node.broken {
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
            busy_s: node.busy_s,
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
                self.record.changes += 1;
                if !self.nodes[i].active {
                    return;
                }
                for old in before.iter().filter(|b| !hosts.contains(b)) {
                    self.unload(i, old.service);
                }
                for new in hosts.iter().filter(|h| !before.contains(h)) {
                    // Workers come and go at once; a model that was not there has to be loaded.
                    let loaded = before.iter().any(|b| b.service == new.service);
                    let load_s = if loaded { 0.0 } else { self.world.load_s(new.service, &new.backend) };
                    self.load(i, new, now + load_s);
                }
            }
            Command::Stop { node } => {
                let Some(i) = self.find(&node) else { return };
                self.record.changes += 1;
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
        let ready_s = if at_begin { now } else { now + boot_s + self.world.image_s + load_s };
        let rate = |per_h: f64, draw: f64| if per_h > 0.0 { ready_s + draw / per_h * 3600.0 } else { f64::INFINITY };
        let breaks = rate(if self.world.mtbf_h > 0.0 { 1.0 / self.world.mtbf_h } else { 0.0 }, life_h);
        let taken = rate(spec.interruptions_per_h, spot_h);
        let now_ms = self.world.start_ms + second as i64 * 1000;
        self.nodes.push(Node {
            id,
            flavor,
            ordered_s: now,
            ready_s: if fails { f64::INFINITY } else { ready_s },
            breaks_s: if fails { f64::INFINITY } else { breaks.min(taken) },
            taken: taken <= breaks,
            lease: Terms::of(&spec.flavor).start(now_ms),
            hosts,
            active: false,
            broken: false,
            busy_s: 0.0,
        });
        self.alive.push(self.nodes.len() - 1);
        if !at_begin {
            self.record.cold_starts += 1;
        }
        self.record.changes += 1;
    }

    /// Out of the router at once; what is in work is finished.
    fn end(&mut self, index: usize, now: f64) {
        let workers = self.groups.iter().flatten().flat_map(|g| &g.workers).filter(|w| w.node == index);
        let done = workers.map(|w| w.free_at).fold(now, f64::max).min(self.world.seconds as f64);
        for service in 0..self.groups.len() {
            self.unload(index, service);
        }
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
        self.record.cost_usd += spec.usd(node.ordered_s, until);
        let ready_s = (end_s - node.ready_s).max(0.0);
        let workers: u32 = node.hosts.iter().map(|h| h.workers).sum();
        self.record.paid_worker_s += f64::from(workers.max(1)) * (until - node.ordered_s);
        self.record.ready_node_s += ready_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::profile::ProfilePoint;

    #[test]
    fn service_times_have_the_profiles_throughput() {
        let point = |batch: u32, p50_ms: f64| ProfilePoint {
            workers: 1,
            batch,
            p50_ms,
            p95_ms: p50_ms * 1.2,
            p99_ms: p50_ms * 1.3,
            rps: f64::from(batch) * 1000.0 / p50_ms,
        };
        let profile = Profile {
            model: "m".into(),
            sha256: String::new(),
            backend: "tract".into(),
            host: "h".into(),
            load_ms: 1.0,
            memory_mib: 1.0,
            points: vec![point(1, 10.0), point(4, 25.0)],
            estimated: false,
            distributions: Vec::new(),
        };
        let timing = Timing::new(&profile, 2, 4, 2.0, &mut Random::new(1, "t"));
        let expected = [0.02, 0.02, 0.03, 0.04, 0.05];
        assert!(timing.mean_s.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{:?}", timing.mean_s);
        let mean = timing.spread.iter().sum::<f64>() / timing.spread.len() as f64;
        let late = timing.spread.iter().filter(|m| **m * timing.mean_s[1] > timing.p95_s[1]).count();
        assert!((mean - 1.0).abs() < 1e-9 && (30..75).contains(&late), "{mean} {late}");
    }
}
