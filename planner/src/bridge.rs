//! Meeting a shortage before the nodes that serve it cheapest are there.
//!
//! What is wanted within the near flavor's set-up (`lead`, `demand`) must be carried by nodes that are there by then.
//! What is missing costs the shortage price until those that are being set up carry it, else for the set-up of the base
//! flavor; a node that is there sooner costs its own set-up and that time. Which of them to order is an exact cover with a
//! shortage price (`cover`): all, some or none. Base nodes follow by exchange where the load lasts (`shrink`).
//!
//! Invariants: quotas hold; ordering again from the result orders nothing; a node on which a service's near demand depends
//! is not given up for one that is not there yet.
//! Left out: steps between the near lead and the base's set-up (one shortage, constant meanwhile).

use crate::grow::{Priced, Quota};
use crate::lead::Near;
use crate::pack::{Assignment, NO_LOAD_RPS, Origin, Packing, TOLERANCE_RPS};

impl Packing<'_> {
    /// Milliseconds until the service is expected to be served by the node. One that is late is expected to be late by as
    /// much again.
    pub(crate) fn arrives_ms(&self, service: usize, index: usize) -> i64 {
        let (node, problem) = (&self.nodes[index], self.problem);
        let setup_ms = problem.setup_ms(service, node.flavor);
        match node.origin {
            Origin::New => setup_ms,
            Origin::Fleet(_) if node.ready && node.live.contains(&service) => 0,
            Origin::Fleet(_) if node.ready => problem.ladder(service, node.flavor).map_or(0, |l| l.load_ms),
            Origin::Fleet(i) => (problem.inputs.fleet[i].lease.start_ms + setup_ms - problem.inputs.now_ms).abs(),
        }
    }

    /// Rate that those instances carry that are there by the near lead; `also` counts others in.
    fn near_carried(&self, service: usize, near: Near, also: impl Fn(usize) -> bool) -> f64 {
        let soon = |i: &usize| self.arrives_ms(service, *i) <= near.lead_ms || also(*i);
        let full = |i: usize| (i, self.room(service, i));
        let there: Assignment = self.hosting(service).into_iter().filter(soon).map(full).collect();
        self.carried_by(service, &there)
    }

    /// Rate of the near demand that is carried in time, replacements taken for what they replace; without bound where
    /// nothing asks.
    pub(crate) fn near_served(&self, service: usize) -> f64 {
        let Some(near) = self.problem.near[service] else { return f64::INFINITY };
        let wanted = self.problem.demands[service].near_rps;
        self.near_carried(service, near, |i| self.nodes[i].replacement).min(wanted)
    }

    /// Until all instances of a service serve, those that do take as many free cores of their nodes as carry the demand
    /// without the others. Who is where does not change by it.
    pub(crate) fn lend_free_cores(&mut self) {
        for service in self.problem.order.clone() {
            let mut instances = self.instances(service);
            let serves = |m: &(usize, u32)| self.nodes[m.0].live.contains(&service);
            let live: Vec<usize> = instances.iter().filter(|m| serves(m)).map(|m| m.0).collect();
            if live.is_empty() || live.len() == instances.len() {
                continue;
            }
            let full = || live.iter().map(|&i| (i, self.room(service, i))).collect();
            let alone = self.spread(service, self.problem.demand_rps(service), &live).unwrap_or_else(full);
            for (i, workers) in alone {
                instances.iter_mut().filter(|m| m.0 == i).for_each(|m| m.1 = m.1.max(workers));
            }
            self.assign(service, &instances);
        }
    }

    /// Orders what meets a shortage of the service sooner, where that is cheaper than the shortage.
    pub(crate) fn bridge(&mut self, service: usize, next: &mut u64) {
        let (Some(near), Some(near_problem)) = (self.problem.near[service], self.sooner) else { return };
        let wanted_rps = self.problem.demands[service].near_rps;
        let short = |carried: f64| wanted_rps - carried > TOLERANCE_RPS;
        if wanted_rps < NO_LOAD_RPS || !short(self.near_carried(service, near, |_| false)) {
            return;
        }
        // Of all nodes only those that can matter: in a large fleet most are full.
        let soon = |i: usize| self.arrives_ms(service, i) <= near.lead_ms && self.room(service, i) > 0;
        let mut chosen: Vec<usize> =
            (0..self.nodes.len()).filter(|&i| self.nodes[i].hosts().contains_key(&service) || soon(i)).collect();
        let mut trial = Packing::new(near_problem, chosen.iter().map(|&i| self.nodes[i].clone()).collect());
        let (_, most) = self.limits(service);
        let best = |p: &Packing<'_>| p.best_set(service, most, &|i| p.arrives_ms(service, i) <= near.lead_ms);
        let (carried_rps, mut members) = best(&trial);
        if short(carried_rps) {
            let first = self.nodes.len();
            for flavor in trial.bridging_nodes(service, near, most, &self.quota()) {
                chosen.push(self.add(flavor, next));
            }
            trial.nodes.extend_from_slice(&self.nodes[first..]);
            members = best(&trial).1;
        }
        members.iter_mut().for_each(|i| *i = chosen[*i]);
        let before_rps = self.carried(service);
        for i in self.hosting(service) {
            if members.len() < most && !members.contains(&i) {
                members.push(i);
            }
        }
        members.sort_unstable();
        let full: Assignment = members.iter().map(|&i| (i, self.room(service, i))).filter(|m| m.1 > 0).collect();
        let members: Vec<usize> = full.iter().map(|m| m.0).collect();
        let demand_rps = self.problem.demand_rps(service);
        let rate_rps = self.carried_by(service, &full).min(demand_rps);
        if rate_rps >= before_rps.min(demand_rps) - TOLERANCE_RPS
            && let Some(assignment) = self.spread(service, rate_rps, &members)
        {
            self.assign(service, &assignment);
        }
    }

    /// Flavors of the nodes to order, in the packing of the near demand.
    fn bridging_nodes(&self, service: usize, near: Near, most: usize, quota: &Quota) -> Vec<usize> {
        // Until when the shortage lasts: nodes that are being set up may end it.
        let mut arrivals: Vec<i64> = self.hosting(service).into_iter().map(|i| self.arrives_ms(service, i)).collect();
        arrivals.retain(|a| *a > near.lead_ms && *a < near.base_ms);
        arrivals.sort_unstable();
        let enough = |a: &i64| {
            let (rps, _) = self.best_set(service, most, &|i| self.arrives_ms(service, i) <= *a);
            rps >= self.problem.demand_rps(service) - TOLERANCE_RPS
        };
        let gap_ms = arrivals.into_iter().find(enough).unwrap_or(near.base_ms) - near.lead_ms;
        let soon = |f: usize| self.problem.setup_ms(service, f) <= near.lead_ms;
        let usd = |f: usize| {
            let runs_ms = self.problem.setup_ms(service, f) + gap_ms;
            self.problem.usd_per_hour[f] * runs_ms.max(self.problem.least_ms(f)) as f64 / crate::lease::HOUR_MS as f64
        };
        let shortage_usd = near.loss_usd * gap_ms as f64 / 1000.0;
        let present = |i: usize| self.arrives_ms(service, i) <= near.lead_ms;
        let priced = Priced { allowed: &soon, usd: &usd, shortage_usd, least: 0 };
        let cover = self.cheapest_priced(service, quota, &present, &priced).unwrap_or_default();
        cover.into_iter().flat_map(|(flavor, n)| std::iter::repeat_n(flavor, n as usize)).collect()
    }
}
