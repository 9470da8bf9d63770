//! What decides in a simulation: one small trait, and all policies behind it.
//!
//! A policy sees what an operator of the same system could measure, never the future, with three exceptions that are
//! named for it: the oracle, the static peak and the bound. Policies that people use today scale one flavor a service,
//! the cheapest for a request by throughput at the batch that our planner would choose, so that none of them loses by
//! a bad choice of machine; each node serves one service.

pub mod ours;
pub mod paper;
mod publish;
pub mod reactive;

use super::world::World;
use planner::lease::{Billing, Lease, Terms};
use planner::model::{CapacityRule, Flavor, FleetState, Settings};
use schemas::EpochMs;
use schemas::status::ProfileUpdate;

/// One instance on a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Service, by index.
    pub service: usize,
    /// Backend of its profile.
    pub backend: String,
    /// Workers.
    pub workers: u32,
    /// Batch at most.
    pub batch: u32,
    /// What the plan believes that such a batch takes at its 95th percentile, microseconds; 0: what the profile says.
    pub service_p95_us: u32,
}

/// An order.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A new node.
    Start {
        /// Its name, new.
        id: String,
        /// Its flavor, by index.
        flavor: usize,
        /// What it serves.
        hosts: Vec<Host>,
    },
    /// A longer lease.
    Renew {
        /// Node.
        node: String,
        /// New end.
        end_ms: EpochMs,
    },
    /// Another placement.
    Host {
        /// Node.
        node: String,
        /// What it serves from now on.
        hosts: Vec<Host>,
    },
    /// Finish what is in work, and end.
    Stop {
        /// Node.
        node: String,
    },
}

/// A node as it is seen.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeSeen {
    /// Name.
    pub id: String,
    /// Flavor, by index.
    pub flavor: usize,
    /// State.
    pub state: FleetState,
    /// Lease.
    pub lease: Lease,
    /// What it serves or will serve.
    pub hosts: Vec<Host>,
    /// Services, by index, whose models are loaded on it and have workers.
    pub serving: Vec<usize>,
    /// Work done since it began.
    pub busy_s: f64,
    /// When it was or will be ready (policies only ask this of the past).
    pub ready_at_s: f64,
}

/// A service as it is seen.
#[derive(Debug, Clone, Copy)]
pub struct ServiceSeen<'a> {
    /// Arrivals in each second so far.
    pub per_second: &'a [u32],
    /// Requests waiting and in work at the end of each second so far.
    pub in_system: &'a [f32],
    /// Requests waiting now.
    pub queued: usize,
    /// 95th percentile of the newest latencies.
    pub p95_s: f64,
    /// Minutes that are over and settled: arrived, and of those answered in time.
    pub minutes: &'a [(u32, u32)],
}

impl ServiceSeen<'_> {
    /// Mean rate over the last seconds, and over how many of them it is.
    pub fn rate(&self, seconds: usize) -> (f64, usize) {
        let last = &self.per_second[self.per_second.len().saturating_sub(seconds)..];
        let total: u64 = last.iter().map(|n| u64::from(*n)).sum();
        (total as f64 / last.len().max(1) as f64, last.len())
    }

    /// Mean of requests waiting and in work over the last seconds.
    pub fn concurrency(&self, seconds: usize) -> f64 {
        let last = &self.in_system[self.in_system.len().saturating_sub(seconds)..];
        last.iter().map(|n| f64::from(*n)).sum::<f64>() / last.len().max(1) as f64
    }
}

/// What a policy decides from.
#[derive(Clone, Copy)]
pub struct Seen<'a> {
    /// What is fixed.
    pub world: &'a World,
    /// Now.
    pub now_ms: EpochMs,
    /// Seconds since the begin.
    pub second: usize,
    /// Flavors at today's prices.
    pub flavors: &'a [Flavor],
    /// By service.
    pub services: &'a [ServiceSeen<'a>],
    /// All nodes.
    pub nodes: &'a [NodeSeen],
    /// What nodes of a flavor, by index, measured in the last minute where it is not what the plan believes.
    pub updates: &'a [(usize, ProfileUpdate)],
}

/// Decides.
pub trait Policy {
    /// Its name in reports.
    fn name(&self) -> String;
    /// Seconds between decisions.
    fn period_s(&self) -> usize;
    /// True where nodes lend their free cores to their instances, as the executor does.
    fn vertical(&self) -> bool {
        false
    }
    /// True while something waits for a hand-over, so that [`Policy::is_urgent`] is to be asked each second.
    fn waits(&self) -> bool {
        false
    }
    /// True if a decision is due before its time.
    fn is_urgent(&self, _seen: &Seen<'_>) -> bool {
        false
    }
    /// Orders for now.
    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Command>;
}

/// The node that a policy of one flavor scales for a service.
#[derive(Debug, Clone, PartialEq)]
pub struct Unit {
    /// Flavor, by index.
    pub flavor: usize,
    /// What the node serves.
    pub host: Host,
    /// Throughput of the node when its queue never empties.
    pub sustained_rps: f64,
    /// 95th percentile of a batch.
    pub p95_s: f64,
    /// `floor(SLO / p95)` requests a worker and SLO (Barista 2019).
    pub per_slo: u32,
    /// Set-up after the order, seconds.
    pub setup_s: f64,
}

impl Unit {
    /// The cheapest for a request, by throughput or by the paper's rule.
    pub fn cheapest(world: &World, flavors: &[Flavor], service: usize, rule: CapacityRule) -> Option<Unit> {
        Unit::all(world, flavors, service, rule).into_iter().map(|(_, unit)| unit).next()
    }

    /// All usable flavors, cheapest first, with their price of a request.
    pub fn all(world: &World, flavors: &[Flavor], service: usize, rule: CapacityRule) -> Vec<(f64, Unit)> {
        let profiles = world.profiles();
        let settings = Settings { capacity_rule: rule, overhead_ms: 0.0, ..Settings::default() };
        let planned = world.planned(service);
        let mut units: Vec<(f64, Unit)> = flavors
            .iter()
            .enumerate()
            .filter_map(|(i, flavor)| {
                let ladder = planner::cost::rate(&planned, flavor, &profiles, &settings).ok()?;
                let top = ladder.top()?;
                let host = Host {
                    service,
                    backend: ladder.backend.clone(),
                    workers: top.workers,
                    batch: top.batch,
                    service_p95_us: 0,
                };
                let capacity_rps = if rule == CapacityRule::Paper { top.carry_rps } else { top.sustained_rps };
                let unit = Unit {
                    flavor: i,
                    sustained_rps: top.sustained_rps,
                    p95_s: top.service_ms / 1000.0,
                    per_slo: top.requests_per_slo,
                    setup_s: flavor.boot_s + world.image_s + world.fetch_s + world.load_s(service, &host.backend),
                    host,
                };
                Some((flavor.usd_per_hour / capacity_rps, unit))
            })
            .collect();
        units.sort_by(|a, b| a.0.total_cmp(&b.0));
        units
    }
}

/// Brings the nodes of a service to a number: the hand of all policies that count.
#[derive(Debug, Clone, Default)]
pub struct Scaler {
    next: u64,
}

impl Scaler {
    /// Orders that lead to `wanted` nodes of the unit. Lost nodes are given up and replaced. What is superfluous ends:
    /// nodes that are not ready yet first, then the newest; with hourly terms only those whose term ends before the next
    /// decision, since the others are paid for.
    pub fn scale(&mut self, seen: &Seen<'_>, unit: &Unit, wanted: usize, period_s: usize) -> Vec<Command> {
        let mut commands = Vec::new();
        let mine = || seen.nodes.iter().filter(|n| n.hosts.iter().any(|h| h.service == unit.host.service));
        for lost in mine().filter(|n| n.state == FleetState::Lost) {
            commands.push(Command::Stop { node: lost.id.clone() });
        }
        let mut present: Vec<&NodeSeen> =
            mine().filter(|n| n.state != FleetState::Lost && n.flavor == unit.flavor).collect();
        for _ in present.len()..wanted {
            let id = format!("{}-{}", unit.host.service, self.next);
            self.next += 1;
            commands.push(Command::Start { id, flavor: unit.flavor, hosts: vec![unit.host.clone()] });
        }
        let flavor = &seen.flavors[unit.flavor];
        let next_ms = seen.now_ms + period_s as i64 * 1000;
        let hourly = flavor.billing == Billing::Hour;
        if hourly {
            let staying = present.iter().filter(|n| n.lease.end_ms > next_ms).count();
            for node in present.iter().filter(|n| n.lease.end_ms <= next_ms).take(wanted.saturating_sub(staying)) {
                let end_ms = Terms::of(flavor).renewed(node.lease, next_ms).end_ms;
                commands.push(Command::Renew { node: node.id.clone(), end_ms });
            }
        }
        let surplus = present.len().saturating_sub(wanted);
        present.sort_by_key(|n| (n.state == FleetState::Ready, std::cmp::Reverse(n.lease.start_ms)));
        let renewed = |n: &NodeSeen| commands.iter().any(|c| matches!(c, Command::Renew { node, .. } if *node == n.id));
        let may_end: Vec<String> = present
            .iter()
            .filter(|n| !hourly || (n.lease.end_ms <= next_ms && !renewed(n)))
            .take(surplus)
            .map(|n| n.id.clone())
            .collect();
        commands.extend(may_end.into_iter().map(|node| Command::Stop { node }));
        commands
    }
}
