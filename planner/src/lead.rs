//! Which flavor serves a lasting load, and which one meets a shortage until that one is there.
//!
//! A node takes a set-up time `L` from its order to its first answer. Where all are alike, the flavor that is cheapest for
//! a request is the one to order. Where the cheapest is slow, load that nobody foresaw is short until it comes, and every
//! request that is lost meanwhile counts `loss_factor` times what serving it costs (the price of `spot`, too). So a
//! service has two flavors:
//!
//! - **base**: the one that the next node for a lasting load would be of, the cheapest for a request that its quota still
//!   leaves at this load;
//! - **near**: the one that meets a shortage at least cost until a base node ordered now would be there, `p·L_base` for
//!   its capacity and the shortage price for its own set-up `L`; none where waiting for the base is no dearer.
//!
//! Invariants: pure; depends on the catalogue, the quotas and the loads alone, not on what runs where.
//! Left out: what is ordered (`bridge` for the near, `grow` for the rest).

use crate::pack::Problem;

/// The near flavor's terms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Near {
    /// Its set-up: nodes that come later are of no use for what is wanted by then.
    pub(crate) lead_ms: i64,
    /// Set-up of the base flavor.
    pub(crate) base_ms: i64,
    /// Price of a request that is lost, USD.
    pub(crate) loss_usd: f64,
}

impl Problem<'_> {
    /// The flavor of the next node for a lasting load of `rate_rps`. Each service has its part of a flavor's quota, by what
    /// all would want of it (`wishes`).
    pub(crate) fn base(&self, service: usize, rate_rps: f64, wishes: &[f64]) -> Option<usize> {
        let mut order: Vec<usize> = (0..self.flavors.len()).filter(|&f| self.is_usable(service, f)).collect();
        let price = |f: usize| self.usd_per_million(service, f);
        order.sort_by(|&a, &b| price(a).total_cmp(&price(b)).then(a.cmp(&b)));
        let mut share = 0.0;
        let marginal = order.iter().copied().find(|&f| {
            // With a part of the quota equal to its part of the wishes, it could carry this share of its load.
            share += self.flavors[f].quota.map_or(f64::INFINITY, |q| f64::from(q) / wishes[f].max(f64::MIN_POSITIVE));
            share >= 1.0
        });
        if rate_rps <= 0.0 { order.first().copied() } else { marginal.or(order.last().copied()) }
    }

    /// The service runs there, and such nodes may be ordered at all.
    fn is_usable(&self, service: usize, flavor: usize) -> bool {
        self.ladder(service, flavor).is_some() && self.flavors[flavor].quota != Some(0)
    }

    /// How a shortage of the service is met, if not by `base`.
    pub(crate) fn near_of(&self, service: usize, base: usize) -> Option<Near> {
        if !self.inputs.settings.elastic {
            return None;
        }
        let base_ms = self.setup_ms(service, base);
        let loss_usd = self.inputs.settings.loss_factor * self.usd_per_million(service, base) / 1e6;
        let waiting_usd = loss_usd * base_ms as f64 / 1000.0;
        let bridging_usd = |f: usize| {
            let served_usd = self.usd_per_million(service, f) / 1e6 * base_ms as f64 / 1000.0;
            served_usd + loss_usd * self.setup_ms(service, f) as f64 / 1000.0
        };
        (0..self.flavors.len())
            .filter(|&f| self.is_usable(service, f))
            .filter(|&f| self.setup_ms(service, f) < base_ms && bridging_usd(f) < waiting_usd)
            .min_by(|&a, &b| bridging_usd(a).total_cmp(&bridging_usd(b)).then(a.cmp(&b)))
            .map(|f| Near { lead_ms: self.setup_ms(service, f), base_ms, loss_usd })
    }

    /// What a node of the flavor carries when it serves nothing else.
    fn full_rps(&self, service: usize, flavor: usize) -> f64 {
        self.ladder(service, flavor).and_then(|l| l.top()).map_or(0.0, |r| r.carry_rps)
    }

    /// By flavor: nodes that all services together would have if they were served by this one alone.
    pub(crate) fn wishes(&self, rates_rps: &[f64]) -> Vec<f64> {
        let nodes = |s: usize, f: usize| {
            let full_rps = self.full_rps(s, f);
            if full_rps > 0.0 { rates_rps[s] / full_rps } else { 0.0 }
        };
        (0..self.flavors.len()).map(|f| (0..rates_rps.len()).map(|s| nodes(s, f)).sum()).collect()
    }
}
