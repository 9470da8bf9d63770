//! Barista 2019 and the policies that know the peak.
//!
//! **`barista2019`** is a reconstruction (FACTS §The paper; its full text was not read). Algorithm 1: the cheapest flavor
//! by `price / floor(SLO / p95)`, p95 being that of the distribution that fits the profile best where the profile has one.
//! Algorithm 2: every 10 s, `need = ceil(y'(t + t_setup) · factor / capacity)` back-ends, where a back-end works off
//! `floor(SLO / p95)` requests a worker in one SLO, and `y'` is the forecast of `forecaster`'s expert `barista2019` (trend,
//! seasonality and compensator); leases that are valid then count, first renew, then start. Vertical: the paper takes
//! cores from batch jobs on the same machine. A node here serves with all cores that it rents, so there is nothing to
//! take; the reactive step adds a node at once when the newest p95 latency is beyond the SLO, and takes one back when it
//! stays below half of it for a minute (additive steps every 10 s, as Faro's authors modelled Barista, FACTS §The paper).
//! `Without` switches parts off for the ablation: `forecast` (the last value instead), `compensator`, `vertical`,
//! `algorithm1` (the cheapest by throughput, as our planner would choose). Surplus leases by the hour serve until they
//! lapse, where the paper offers them to batch jobs: nobody pays for those here.
//!
//! **`static-peak`** holds the fleet that our margin asks for at the highest rate of a minute, for the whole time.

use super::{Command, Policy, Scaler, Seen, Unit};
use crate::simulate::workload::Feed;
use planner::margin::Waiting;
use planner::model::{CapacityRule, FleetState};

/// What of Barista 2019 is switched off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Without {
    /// Nothing.
    #[default]
    Nothing,
    /// The forecast.
    Forecast,
    /// The compensator of the forecast.
    Compensator,
    /// Vertical scaling.
    Vertical,
    /// The choice of flavor and batch.
    Algorithm1,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Barista2019 {
    factor: f64,
    without: Without,
    scaler: Scaler,
    /// By service: the unit, nodes added reactively, since when latency is comfortable.
    states: Vec<(Option<Unit>, usize, Option<usize>)>,
}

impl Barista2019 {
    /// `factor` is what the need is multiplied by.
    pub fn new(factor: f64, without: Without) -> Self {
        Barista2019 { factor, without, scaler: Scaler::default(), states: Vec::new() }
    }
}

impl Policy for Barista2019 {
    fn name(&self) -> String {
        let factor = if self.factor == 1.0 { String::new() } else { format!("x{}", self.factor) };
        match self.without {
            Without::Nothing => format!("barista2019{factor}"),
            Without::Forecast => format!("barista2019{factor}-no-forecast"),
            Without::Compensator => format!("barista2019{factor}-no-compensator"),
            Without::Vertical => format!("barista2019{factor}-no-vertical"),
            Without::Algorithm1 => format!("barista2019{factor}-no-algorithm1"),
        }
    }

    fn period_s(&self) -> usize {
        10
    }

    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Command> {
        self.states.resize(seen.services.len(), (None, 0, None));
        let rule = if self.without == Without::Algorithm1 { CapacityRule::Margin } else { CapacityRule::Paper };
        let feed = match self.without {
            Without::Forecast => Feed::LastValue,
            Without::Compensator => Feed::Barista2019Trend,
            _ => Feed::Barista2019,
        };
        let mut commands = Vec::new();
        for service in 0..seen.services.len() {
            let (unit, added, calm_since) = &mut self.states[service];
            if unit.is_none() {
                *unit = Unit::cheapest(seen.world, seen.flavors, service, rule);
            }
            let Some(unit) = unit.clone() else { continue };
            let slo_s = seen.world.services[service].slo_s;
            let capacity_rps = if rule == CapacityRule::Paper {
                f64::from(unit.per_slo * unit.host.batch * unit.host.workers) / slo_s
            } else {
                unit.sustained_rps
            };
            let forecasts = seen.world.services[service].workload.forecasts.get(&feed);
            let interval_ms = forecasts.and_then(|f| f.by_interval.first()).map_or(60_000, |f| f.interval_ms);
            let newest = forecasts.and_then(|f| f.by_interval.get(seen.second * 1000 / interval_ms.max(1) as usize));
            let to_ms = seen.now_ms + (unit.setup_s * 1000.0) as i64 + 10_000;
            let steps = newest.map(|f| f.steps.iter().filter(|s| s.start_ms < to_ms));
            let ahead_rps = steps.map_or(0.0, |s| s.map(|s| s.mean_rps).fold(0.0, f64::max));
            if self.without != Without::Vertical && seen.second > 0 {
                let here = |n: &&super::NodeSeen| n.hosts.iter().any(|h| h.service == service);
                let booting = seen.nodes.iter().filter(here).any(|n| n.state == FleetState::Ordered);
                let p95_s = seen.services[service].p95_s;
                if p95_s > slo_s && !booting {
                    *added += 1;
                    *calm_since = None;
                } else if p95_s < 0.5 * slo_s && *added > 0 {
                    let since = *calm_since.get_or_insert(seen.second);
                    if seen.second - since >= 60 {
                        *added -= 1;
                        *calm_since = None;
                    }
                } else {
                    *calm_since = None;
                }
            }
            let need = (ahead_rps * self.factor / capacity_rps - 1e-9).ceil() as usize + *added;
            commands.extend(self.scaler.scale(seen, &unit, need.max(1), 10));
        }
        commands
    }
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub struct StaticPeak {
    scaler: Scaler,
}

impl Policy for StaticPeak {
    fn name(&self) -> String {
        "static-peak".to_owned()
    }

    fn period_s(&self) -> usize {
        60
    }

    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Command> {
        let mut commands = Vec::new();
        for (service, s) in seen.world.services.iter().enumerate() {
            // Prices of the first day choose: it never changes.
            let first = seen.world.flavors_at(0.0);
            let Some(unit) = Unit::cheapest(seen.world, &first, service, CapacityRule::Margin) else { continue };
            let minute = |m: &[f32]| m.iter().map(|r| f64::from(*r)).sum::<f64>() / m.len().max(1) as f64;
            let peak_rps = s.workload.rates.chunks(60).map(minute).fold(0.0, f64::max);
            let waiting = Waiting { allowed_s: s.slo_s - unit.p95_s, epsilon: 0.01, dispersion: 1.0, sheds: false };
            let wanted = (waiting.required_rps(peak_rps) / unit.sustained_rps - 1e-9).ceil() as usize;
            commands.extend(self.scaler.scale(seen, &unit, wanted.max(1), 60));
        }
        commands
    }
}
