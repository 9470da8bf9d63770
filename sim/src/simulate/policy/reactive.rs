//! Policies that people use today, as far as their published algorithms say; each is a reconstruction.
//!
//! - **HPA** (Kubernetes horizontal pod autoscaler, `autoscaling/v2` defaults): every 15 s, `desired = ceil(n · u / u*)`
//!   from mean CPU utilisation `u` of the ready nodes over 30 s, tolerance 0.1, nodes that are not ready count as idle
//!   when scaling up, at most doubling or 4 more in 15 s, scale-down to the highest recommendation of the last 300 s.
//! - **KPA** (Knative): every 2 s, `desired = ceil(concurrency / target)` over a stable window of 60 s, and over a panic
//!   window of 6 s when that asks for at least twice the ready nodes; no scale-down within 60 s of panic; target 70 % of
//!   what a node works on at once; optional scale-down delay of 300 s (the highest wish of that time).
//! - **KEDA** (Kafka lag): every 30 s, `desired = ceil(lag / threshold)` fed through the HPA's scale-down window; lag is
//!   what is not committed: waiting and in work. The threshold is what a node finishes within the SLO.
//! - **Seldon** (Core 2, lag and inactivity): one more when the lag of a node is above the threshold, checked every
//!   10 s; one less after 600 s in which one node less would have had no lag.
//! - **MArk-style hybrid** (Zhang et al., USENIX ATC 2019): plans the forecast's mean one set-up ahead with the batch
//!   that SLO allows, and adds reactively when the observed rate or latency is beyond it. Its serverless part is left
//!   out: this catalogue has no serverless offer.
//!
//! The minimum is one node a service. Left out: pods on shared nodes, KEDA's activation from zero.

use super::{Command, Policy, Scaler, Seen, Unit};
use crate::simulate::workload::Feed;
use planner::model::{CapacityRule, FleetState};
use std::collections::VecDeque;

/// Which one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Target utilisation.
    Hpa(f64),
    /// Scale-down delay, seconds.
    Kpa(usize),
    /// Kafka lag.
    Keda,
    /// Lag and inactivity.
    Seldon,
    /// Forecast and reaction.
    Mark,
}

/// A reactive policy, for all services.
#[derive(Debug, Clone)]
pub struct Reactive {
    kind: Kind,
    scaler: Scaler,
    states: Vec<State>,
}

#[derive(Debug, Clone, Default)]
struct State {
    unit: Option<Unit>,
    /// Wishes of the recent past: second and nodes.
    wishes: VecDeque<(usize, usize)>,
    /// Work done at recent looks: second, node and busy time.
    busy: VecDeque<(usize, Vec<(String, f64)>)>,
    panic_until: usize,
    panic_nodes: usize,
    idle_since: Option<usize>,
}

impl Reactive {
    /// A policy of this kind.
    pub fn new(kind: Kind) -> Self {
        Reactive { kind, scaler: Scaler::default(), states: Vec::new() }
    }
}

impl Policy for Reactive {
    fn name(&self) -> String {
        match self.kind {
            Kind::Hpa(target) => format!("hpa-{:.0}", target * 100.0),
            Kind::Kpa(0) => "kpa".to_owned(),
            Kind::Kpa(_) => "kpa-delay".to_owned(),
            Kind::Keda => "keda".to_owned(),
            Kind::Seldon => "seldon".to_owned(),
            Kind::Mark => "mark".to_owned(),
        }
    }

    fn period_s(&self) -> usize {
        match self.kind {
            Kind::Hpa(_) => 15,
            Kind::Kpa(_) => 2,
            Kind::Keda => 30,
            Kind::Seldon | Kind::Mark => 10,
        }
    }

    fn decide(&mut self, seen: &Seen<'_>) -> Vec<Command> {
        self.states.resize_with(seen.services.len(), State::default);
        let mut commands = Vec::new();
        let period_s = self.period_s();
        for service in 0..seen.services.len() {
            let state = &mut self.states[service];
            if state.unit.is_none() {
                state.unit = Unit::cheapest(seen.world, seen.flavors, service, CapacityRule::Margin);
            }
            let Some(unit) = state.unit.clone() else { continue };
            let wanted = if seen.second == 0 {
                // Everyone begins with a fleet for the first minute, a quarter more than its load.
                let rates = &seen.world.services[service].workload.rates;
                let begin = rates[..rates.len().min(60)].iter().map(|r| f64::from(*r)).fold(0.0, f64::max);
                (begin * 1.25 / unit.sustained_rps).ceil() as usize
            } else {
                state.wanted(self.kind, seen, service, &unit)
            };
            commands.extend(self.scaler.scale(seen, &unit, wanted.max(1), period_s));
        }
        commands
    }
}

impl State {
    fn wanted(&mut self, kind: Kind, seen: &Seen<'_>, service: usize, unit: &Unit) -> usize {
        let mine = || {
            let hosts = |n: &&super::NodeSeen| n.hosts.iter().any(|h| h.service == service);
            seen.nodes.iter().filter(move |n| hosts(n) && n.state != FleetState::Lost)
        };
        let (n, ready) = (mine().count(), mine().filter(|n| n.state == FleetState::Ready).count());
        let lag = f64::from(seen.services[service].in_system.last().copied().unwrap_or(0.0));
        let slo_s = seen.world.services[service].slo_s;
        let within_slo = (unit.sustained_rps * slo_s).max(1.0);
        match kind {
            Kind::Hpa(target) => {
                let utilisation = self.utilisation(seen, service, unit);
                let mut wish = n;
                if let Some((used, measured)) = utilisation {
                    let ratio = used / target;
                    if ratio > 1.1 {
                        // Nodes that are not ready count as idle.
                        let cautious = ratio * measured as f64 / n.max(1) as f64;
                        if cautious > 1.1 {
                            wish = ((cautious * n as f64 - 1e-9).ceil() as usize).min((2 * n).max(n + 4));
                        }
                    } else if ratio < 0.9 {
                        wish = (ratio * measured as f64 - 1e-9).ceil() as usize;
                    }
                }
                self.down_slowly(seen.second, wish, n, 300)
            }
            Kind::Kpa(delay) => {
                let target = 0.7 * f64::from(unit.host.workers * unit.host.batch);
                let wish =
                    |seconds: usize| (seen.services[service].concurrency(seconds) / target - 1e-9).ceil() as usize;
                let (stable, panic) = (wish(60), wish(6));
                if panic >= 2 * ready.max(1) {
                    self.panic_until = seen.second + 60;
                    self.panic_nodes = self.panic_nodes.max(n);
                }
                let wish = if seen.second < self.panic_until {
                    self.panic_nodes = self.panic_nodes.max(panic).max(stable);
                    self.panic_nodes
                } else {
                    self.panic_nodes = 0;
                    stable
                };
                // At most ten times as many at once.
                let wish = wish.min(10 * ready.max(1));
                if delay > 0 { self.down_slowly(seen.second, wish, n, delay) } else { wish }
            }
            Kind::Keda => self.down_slowly(seen.second, (lag / within_slo - 1e-9).ceil() as usize, n, 300),
            Kind::Seldon => {
                let before = self.wishes.back().map_or(n, |w| w.1);
                let mut wish = before.max(1);
                if lag > within_slo * ready.max(1) as f64 && n <= ready {
                    wish = n + 1;
                }
                let fewer = (ready.saturating_sub(1)) as f64;
                if seen.services[service].rate(60).0 < 0.7 * fewer * unit.sustained_rps {
                    let since = *self.idle_since.get_or_insert(seen.second);
                    if seen.second - since >= 600 {
                        wish = n.saturating_sub(1);
                        self.idle_since = Some(seen.second);
                    }
                } else {
                    self.idle_since = None;
                }
                self.wishes.clear();
                self.wishes.push_back((seen.second, wish));
                wish
            }
            Kind::Mark => {
                let to_ms = seen.now_ms + ((unit.setup_s + 10.0) * 1000.0) as i64;
                let interval = seen.second / forecast_interval_s(seen);
                let forecasts = &seen.world.services[service].workload.forecasts;
                let steps = forecasts.get(&Feed::Ensemble).and_then(|f| f.by_interval.get(interval)).map(|f| &f.steps);
                let ahead = steps
                    .map_or(0.0, |s| s.iter().filter(|s| s.start_ms < to_ms).map(|s| s.mean_rps).fold(0.0, f64::max));
                let (observed, _) = seen.services[service].rate(20);
                let mut wish = (ahead.max(observed) / unit.sustained_rps - 1e-9).ceil() as usize;
                if seen.services[service].p95_s > slo_s && n <= ready {
                    wish = wish.max(n + 1);
                }
                self.down_slowly(seen.second, wish, n, 60)
            }
        }
    }

    /// Never fewer than the highest wish of the last `window` seconds.
    fn down_slowly(&mut self, second: usize, wish: usize, present: usize, window: usize) -> usize {
        self.wishes.retain(|w| w.0 + window > second);
        self.wishes.push_back((second, wish));
        let highest = self.wishes.iter().map(|w| w.1).max().unwrap_or(wish);
        if wish >= present { wish } else { highest.min(present) }
    }

    /// Mean utilisation of the nodes that were ready 30 s ago, and how many they are.
    fn utilisation(&mut self, seen: &Seen<'_>, service: usize, unit: &Unit) -> Option<(f64, usize)> {
        let mine = seen.nodes.iter().filter(|n| n.hosts.iter().any(|h| h.service == service));
        let now: Vec<(String, f64)> =
            mine.filter(|n| n.state == FleetState::Ready).map(|n| (n.id.clone(), n.busy_s)).collect();
        self.busy.retain(|b| b.0 + 30 >= seen.second);
        let then = self.busy.front().cloned();
        self.busy.push_back((seen.second, now.clone()));
        let (since, then) = then?;
        let workers_s = (seen.second - since).max(1) as f64 * f64::from(unit.host.workers);
        let used = |(id, busy): &(String, f64)| {
            then.iter().find(|t| t.0 == *id).map(|t| ((busy - t.1) / workers_s).clamp(0.0, 1.0))
        };
        let used: Vec<f64> = now.iter().filter_map(used).collect();
        if used.is_empty() { None } else { Some((used.iter().sum::<f64>() / used.len() as f64, used.len())) }
    }
}

fn forecast_interval_s(seen: &Seen<'_>) -> usize {
    let first = seen.world.services[0].workload.forecasts.values().next();
    let interval_ms = first.and_then(|f| f.by_interval.first()).map_or(60_000, |f| f.interval_ms);
    (interval_ms / 1000).max(1) as usize
}

#[cfg(test)]
mod tests {
    use super::super::{NodeSeen, ServiceSeen};
    use super::*;
    use crate::simulate::scenario::tests::SMALL;
    use crate::simulate::{Folders, Scenario, World};
    use planner::lease::Lease;

    /// A service with `n` ready nodes, of which each has been busy for a share of the time since the begin.
    struct Stage {
        world: World,
        second: usize,
        per_second: Vec<u32>,
        in_system: Vec<f32>,
        nodes: Vec<NodeSeen>,
    }

    impl Stage {
        fn new(nodes: usize) -> Self {
            let scenario = Scenario::parse(SMALL).expect("sound");
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
            let world = World::new(&scenario, &Folders(vec![folder]), 1, &[]).expect("sound");
            let host = Stage::unit(&world).host;
            let node = |i: usize| NodeSeen {
                id: format!("n{i}"),
                flavor: 0,
                state: FleetState::Ready,
                lease: Lease { start_ms: 0, end_ms: 0 },
                hosts: vec![host.clone()],
                serving: vec![host.service],
                busy_s: 0.0,
                ready_at_s: 0.0,
            };
            let nodes = (0..nodes).map(node).collect();
            Stage { world, second: 0, per_second: Vec::new(), in_system: Vec::new(), nodes }
        }

        fn unit(world: &World) -> Unit {
            Unit::cheapest(world, &world.flavors_at(0.0), 0, CapacityRule::Margin).expect("usable")
        }

        /// Seconds go by with this load, requests in the system, and share of busy workers.
        fn pass(&mut self, seconds: usize, rate: u32, in_system: f32, busy: f64) {
            self.second += seconds;
            self.per_second.extend(std::iter::repeat_n(rate, seconds));
            self.in_system.extend(std::iter::repeat_n(in_system, seconds));
            let workers = f64::from(Stage::unit(&self.world).host.workers);
            self.nodes.iter_mut().for_each(|n| n.busy_s += busy * workers * seconds as f64);
        }

        fn wanted(&self, state: &mut State, kind: Kind) -> usize {
            let services = [ServiceSeen {
                per_second: &self.per_second,
                in_system: &self.in_system,
                queued: 0,
                p95_s: 0.1,
                minutes: &[],
            }];
            let flavors = self.world.flavors_at(0.0);
            let now_ms = self.world.start_ms + self.second as i64 * 1000;
            let seen = Seen {
                world: &self.world,
                now_ms,
                second: self.second,
                flavors: &flavors,
                services: &services,
                nodes: &self.nodes,
                updates: &[],
            };
            state.wanted(kind, &seen, 0, &Stage::unit(&self.world))
        }
    }

    #[test]
    fn hpa_follows_utilisation_tolerates_a_tenth_and_comes_down_after_five_minutes() {
        let (mut stage, mut state) = (Stage::new(4), State::default());
        assert_eq!(stage.wanted(&mut state, Kind::Hpa(0.6)), 4, "nothing measured yet");
        stage.pass(30, 10, 1.0, 0.9);
        assert_eq!(stage.wanted(&mut state, Kind::Hpa(0.6)), 6, "4 * 0.9 / 0.6");
        let (mut stage, mut state) = (Stage::new(4), State::default());
        stage.wanted(&mut state, Kind::Hpa(0.6));
        stage.pass(30, 10, 1.0, 0.65);
        assert_eq!(stage.wanted(&mut state, Kind::Hpa(0.6)), 4, "within the tolerance");
        for _ in 0..9 {
            stage.pass(30, 10, 1.0, 0.15);
            assert_eq!(stage.wanted(&mut state, Kind::Hpa(0.6)), 4, "held for 300 s");
        }
        for _ in 0..2 {
            stage.pass(30, 10, 1.0, 0.15);
            stage.wanted(&mut state, Kind::Hpa(0.6));
        }
        assert_eq!(stage.wanted(&mut state, Kind::Hpa(0.6)), 1, "4 * 0.15 / 0.6");
    }

    #[test]
    fn kpa_panics_within_seconds_and_holds_for_a_minute() {
        let unit_target = |s: &Stage| 0.7 * f64::from(Stage::unit(&s.world).host.workers);
        let (mut stage, mut state) = (Stage::new(2), State::default());
        let calm = (unit_target(&stage) * 1.5) as f32;
        stage.pass(60, 10, calm, 0.5);
        assert!(stage.wanted(&mut state, Kind::Kpa(0)) <= 2);
        // Six seconds of ten times as much: the minute's mean asks for little, the panic window for ten times.
        stage.pass(6, 100, calm * 10.0, 1.0);
        let panic = stage.wanted(&mut state, Kind::Kpa(0));
        assert!(panic >= 10, "{panic}");
        stage.pass(58, 10, calm, 0.5);
        assert_eq!(stage.wanted(&mut state, Kind::Kpa(0)), panic, "no scale-down in panic");
        stage.pass(10, 10, calm, 0.5);
        assert!(stage.wanted(&mut state, Kind::Kpa(0)) < panic);
        // With a delay it comes down five minutes later.
        let (mut stage, mut state) = (Stage::new(8), State::default());
        stage.pass(60, 10, (unit_target(&stage) * 7.5) as f32, 0.9);
        assert_eq!(stage.wanted(&mut state, Kind::Kpa(300)), 8);
        stage.pass(240, 1, 0.1, 0.1);
        assert_eq!(stage.wanted(&mut state, Kind::Kpa(300)), 8);
        stage.pass(61, 1, 0.1, 0.1);
        assert!(stage.wanted(&mut state, Kind::Kpa(300)) <= 1);
    }

    #[test]
    fn keda_counts_lag_alone() {
        let (mut stage, mut state) = (Stage::new(1), State::default());
        let unit = Stage::unit(&stage.world);
        let within_slo = unit.sustained_rps * 0.2;
        stage.pass(30, 1, (within_slo * 4.5) as f32, 1.0);
        assert_eq!(stage.wanted(&mut state, Kind::Keda), 5);
        // Full utilisation without lag is nothing to it.
        let (mut stage, mut state) = (Stage::new(1), State::default());
        stage.pass(30, 1, (within_slo * 0.9) as f32, 1.0);
        assert_eq!(stage.wanted(&mut state, Kind::Keda), 1);
    }

    #[test]
    fn seldon_goes_up_one_by_one_and_down_after_ten_quiet_minutes() {
        let (mut stage, mut state) = (Stage::new(2), State::default());
        stage.pass(10, 500, 500.0, 1.0);
        assert_eq!(stage.wanted(&mut state, Kind::Seldon), 3, "however large the lag");
        let (mut stage, mut state) = (Stage::new(3), State::default());
        stage.pass(60, 1, 0.1, 0.1);
        for _ in 0..59 {
            assert_eq!(stage.wanted(&mut state, Kind::Seldon), 3);
            stage.pass(10, 1, 0.1, 0.1);
        }
        stage.pass(10, 1, 0.1, 0.1);
        assert_eq!(stage.wanted(&mut state, Kind::Seldon), 2);
    }

    #[test]
    fn mark_takes_the_larger_of_forecast_and_observation_and_falls_after_a_minute() {
        let (mut stage, mut state) = (Stage::new(1), State::default());
        let unit = Stage::unit(&stage.world);
        stage.pass(20, (unit.sustained_rps * 2.5) as u32, 1.0, 1.0);
        assert_eq!(stage.wanted(&mut state, Kind::Mark), 3, "no forecast at all, but observed");
        let mut stage = Stage { nodes: Stage::new(3).nodes, ..stage };
        stage.pass(40, 1, 0.1, 0.1);
        assert_eq!(stage.wanted(&mut state, Kind::Mark), 3);
        stage.pass(30, 1, 0.1, 0.1);
        assert!(stage.wanted(&mut state, Kind::Mark) <= 1);
    }
}
