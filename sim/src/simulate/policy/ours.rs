//! The production planner: forecasts and observations in, [`planner::plan()`] as it is, orders out.
//!
//! `ours` reads the forecast that the scenario names, `oracle` the true rate. Vertical scaling is the executor's own
//! (`station`). What serves goes on until its successor serves, as production publishes it
//! (`publish`).

use super::publish::Publication;
use super::{Command, Host, Policy, Seen};
use crate::simulate::scenario::QueueKind;
use crate::simulate::workload::Feed;
use planner::budget::{Budget, Objective};
use planner::demand::NOWCAST_WINDOW_MS;
use planner::live;
use planner::model::*;
use schemas::allocation::{InstanceAllocation, NodeAction};
use std::collections::BTreeMap;

/// Interval of `workload.observed` in production, seconds.
const INTERVAL_S: i64 = 10;

/// See the module.
#[derive(Debug, Clone)]
pub struct Ours {
    name: String,
    feed: Feed,
    settings: Settings,
    previous: Vec<PreviousDemand>,
    naming: Naming,
    /// What the last plan put on each node; nodes may have been told to keep more.
    planned: BTreeMap<String, Vec<Host>>,
    publication: Publication,
    /// With what nodes have measured.
    profiles: Option<Vec<ServiceProfile>>,
    /// By service: its error budget, and how many minutes it knows of.
    budgets: Vec<(Budget, usize)>,
}

impl Ours {
    /// With one setting for every scenario.
    pub fn new(name: &str, feed: Feed, settings: Settings) -> Self {
        Ours {
            name: name.to_owned(),
            feed,
            settings,
            previous: Vec::new(),
            naming: Naming::default(),
            planned: BTreeMap::new(),
            publication: Publication::default(),
            profiles: None,
            budgets: Vec::new(),
        }
    }

    /// Minutes that are over go into the error budgets.
    fn account(&mut self, seen: &Seen<'_>) {
        for s in self.budgets.len()..seen.services.len() {
            let service = &seen.world.services[s];
            let objective = Objective { attainment: service.attainment, ..Objective::default() };
            self.budgets.push((Budget::new(objective, service.slo_quantile), 0));
        }
        for ((budget, known), service) in self.budgets.iter_mut().zip(seen.services) {
            for (arrived, in_time) in &service.minutes[*known..] {
                budget.minute(u64::from(*arrived), u64::from(arrived.saturating_sub(*in_time)));
            }
            *known = service.minutes.len();
        }
    }

    /// The inputs of a decision.
    pub fn inputs(&self, seen: &Seen<'_>) -> PlanInputs {
        let world = seen.world;
        let members = match world.queue {
            QueueKind::Shared => Members::Shared,
            QueueKind::Partition => Members::OnePerCore,
        };
        let image_ms = (world.image_s * 1000.0) as i64;
        let services = (0..world.services.len()).map(|s| {
            let forecasts = world.services[s].workload.forecasts.get(&self.feed);
            let interval_ms = forecasts.and_then(|f| f.by_interval.first()).map_or(60_000, |f| f.interval_ms);
            let index = seen.second * 1000 / interval_ms.max(1) as usize;
            let observed = |seconds: i64| {
                let (rate_rps, seconds) = seen.services[s].rate(seconds as usize);
                let window_ms = seconds as i64 * 1000;
                (seconds > 0).then(|| ObservedRate { start_ms: seen.now_ms - window_ms, window_ms, rate_rps })
            };
            let load = ServiceLoad {
                forecast: forecasts.and_then(|f| f.by_interval.get(index)).cloned(),
                observed: observed(NOWCAST_WINDOW_MS / 1000),
                newest: observed(INTERVAL_S),
                backlog: seen.services[s].queued as u64,
                dispersion: None,
                allowance: self.budgets.get(s).map_or(0.0, |b| b.0.allowance()),
            };
            Service { load, ..world.planned(s) }
        });
        let name = |h: &Host| world.services[h.service].name.clone();
        let fleet = seen.nodes.iter().map(|n| FleetNode {
            node: n.id.clone(),
            flavor: seen.flavors[n.flavor].name.clone(),
            state: n.state,
            lease: n.lease,
            cores: None,
            hosts: self
                .planned
                .get(&n.id)
                .unwrap_or(&n.hosts)
                .iter()
                .map(|h| HostedInstance {
                    service: name(h),
                    workers: h.workers,
                    ready: n.serving.contains(&h.service),
                    failed: None,
                })
                .collect(),
        });
        let mut flavors = seen.flavors.to_vec();
        if seen.second == 0 {
            // What is ordered before the begin is up at the begin, whatever it is.
            let slowest_s = flavors.iter().map(|f| f.boot_s).fold(0.0, f64::max);
            flavors.iter_mut().for_each(|f| f.boot_s = slowest_s);
        }
        PlanInputs {
            now_ms: seen.now_ms,
            settings: Settings { members, image_ms, overhead_ms: 0.0, ..self.settings.clone() },
            services: services.collect(),
            flavors,
            profiles: world.profiles(),
            fleet: fleet.collect(),
            previous: self.previous.clone(),
            naming: self.naming,
        }
    }
}

impl Policy for Ours {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn period_s(&self) -> usize {
        (self.settings.period_ms / 1000).max(1) as usize
    }

    fn vertical(&self) -> bool {
        true
    }

    fn waits(&self) -> bool {
        self.publication.keeps()
    }

    fn is_urgent(&self, seen: &Seen<'_>) -> bool {
        self.publication.can_hand_over(seen)
    }

    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Command> {
        self.account(seen);
        let profiles = self.profiles.get_or_insert_with(|| seen.world.profiles());
        for (flavor, update) in seen.updates {
            live::learn(profiles, &seen.flavors[*flavor], update);
        }
        let profiles = profiles.clone();
        let plan = planner::plan(&PlanInputs { profiles, ..self.inputs(seen) });
        self.naming = plan.naming;
        let previous = |s: &schemas::allocation::ServicePlan| PreviousDemand {
            service: s.service.clone(),
            demand_rps: s.demand_rps,
            justified_at_ms: s.justified_at_ms,
        };
        self.previous = plan.services.iter().map(previous).collect();
        let hosts = |instances: &[InstanceAllocation]| -> Vec<Host> {
            let one = |i: &InstanceAllocation| {
                let service = seen.world.services.iter().position(|s| s.name == i.service)?;
                let service_p95_us = (i.service_p95_ms * 1000.0).round() as u32;
                Some(Host {
                    service,
                    backend: i.backend.clone(),
                    workers: i.workers,
                    batch: i.max_batch,
                    service_p95_us,
                })
            };
            instances.iter().filter_map(one).collect()
        };
        self.planned = plan.nodes.iter().map(|n| (n.node.clone(), hosts(&n.instances))).collect();
        let mut commands = Vec::new();
        for node in self.publication.publish(plan, seen).nodes {
            let id = node.node;
            let Some(flavor) = seen.flavors.iter().position(|f| f.name == node.flavor) else { continue };
            let hosts = hosts(&node.instances);
            match node.action {
                NodeAction::Stop => commands.push(Command::Stop { node: id }),
                NodeAction::Start => commands.push(Command::Start { id, flavor, hosts }),
                NodeAction::Keep | NodeAction::Renew | NodeAction::Lapse => {
                    if node.action == NodeAction::Renew {
                        commands.push(Command::Renew { node: id.clone(), end_ms: node.lease_end_ms });
                    }
                    commands.push(Command::Host { node: id, hosts });
                }
            }
        }
        commands
    }
}
