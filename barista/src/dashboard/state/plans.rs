//! Plans: the newest, a history that a person can read, and what the fleet has cost.

use schemas::EpochMs;
use schemas::allocation::{CostSoFar, FleetPlan, LoadSample, PlanChange, PlanMode, ServicePlan};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// Entries of the history; beyond it the oldest go.
pub(crate) const MAX_ENTRIES: usize = 50;
/// Changes of a plan that are kept; the rest is counted.
const MAX_CHANGES: usize = 40;

/// What was decided for one service, for the history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServiceDecision {
    /// Prediction service.
    pub service: String,
    /// The sample and forecast it was made from.
    pub load: LoadSample,
    /// Level of the forecast quantile planned for.
    pub quantile: f64,
    /// Rate to be carried, requests per second.
    pub demand_rps: f64,
    /// Added for queueing, requests per second.
    pub margin_rps: f64,
    /// How far ahead was planned.
    pub lead_ms: u64,
    /// Chosen flavor.
    pub chosen: Option<String>,
    /// What bound the decision.
    pub bound_by: String,
    /// Instances that should serve.
    pub instances: u32,
    /// Their capacity, requests per second.
    pub capacity_rps: f64,
    /// Load that cannot be carried, requests per second.
    pub shortfall_rps: f64,
    /// Why, in one sentence.
    pub reason: String,
}

impl From<&ServicePlan> for ServiceDecision {
    fn from(plan: &ServicePlan) -> Self {
        ServiceDecision {
            service: plan.service.clone(),
            load: plan.load.clone(),
            quantile: plan.quantile,
            demand_rps: super::round3(plan.demand_rps),
            margin_rps: super::round3(plan.margin_rps),
            lead_ms: plan.lead_ms,
            chosen: plan.chosen.clone(),
            bound_by: plan.bound_by.clone(),
            instances: plan.instances,
            capacity_rps: super::round3(plan.capacity_rps),
            shortfall_rps: super::round3(plan.shortfall_rps),
            reason: plan.reason.clone(),
        }
    }
}

/// One plan of the history, or a run of plans that changed nothing.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlanEntry {
    /// Name of the plan; of the newest one in a run.
    pub plan_id: String,
    /// When it was decided; the first one of a run.
    pub created_at_ms: EpochMs,
    /// When the last one of a run was decided.
    pub last_at_ms: EpochMs,
    /// Plans in this run.
    pub plans: u32,
    /// Whether it is carried out.
    pub mode: PlanMode,
    /// Price of its nodes.
    pub cost_usd_per_hour: f64,
    /// Nodes in it.
    pub nodes: u32,
    /// Load that it cannot carry, requests per second.
    pub shortfall_rps: f64,
    /// What changed, with reasons.
    pub changes: Vec<PlanChange>,
    /// Changes beyond those.
    pub changes_left_out: u32,
    /// What was decided for each service.
    pub services: Vec<ServiceDecision>,
}

/// Cost figures that the owner of the dashboard knows better than the plans tell.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CostFigures {
    /// Cost so far.
    pub usd: f64,
    /// What a constant fleet for the peak would have cost in the same time.
    pub usd_static_peak: f64,
    /// What a reactive policy would have cost; absent until someone computed it.
    pub usd_reactive: Option<f64>,
    /// Where the figures are from, for a person.
    pub note: String,
}

/// Where cost figures come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CostSource {
    /// Given by the owner of the dashboard.
    Owner,
    /// The account that the planner keeps in its plans.
    Planner,
    /// Summed here over the plans seen: each node while the plan has it, at most to the end of its lease.
    Plans,
}

/// Cost so far.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CostView {
    /// US dollars so far.
    pub usd: f64,
    /// Price of the present fleet.
    pub usd_per_hour: f64,
    /// Of a constant fleet for the peak, in the same time.
    pub usd_static_peak: Option<f64>,
    /// Of a reactive policy, in the same time.
    pub usd_reactive: Option<f64>,
    /// Share of the static fleet's cost that was saved; negative when more was spent.
    pub saving: Option<f64>,
    /// Begin of the account, where known.
    pub since_ms: Option<EpochMs>,
    /// Where the figures come from.
    pub source: CostSource,
    /// More on that, for a person.
    pub note: Option<String>,
}

/// The newest plan, history and account. Bounded to [`MAX_ENTRIES`] entries.
#[derive(Debug, Default)]
pub(crate) struct Plans {
    current: Option<FleetPlan>,
    /// Newest first.
    history: VecDeque<PlanEntry>,
    /// Cost of the plans before the current one.
    spent_usd: f64,
    since_ms: Option<EpochMs>,
}

impl Plans {
    /// Takes a plan. False when a newer one, or one of a higher epoch, is known: a deposed planner wrote it.
    pub(crate) fn apply(&mut self, plan: FleetPlan) -> bool {
        if let Some(current) = &self.current {
            if (plan.epoch, plan.sequence) <= (current.epoch, current.sequence) {
                return false;
            }
            self.spent_usd += cost_until(current, plan.created_at_ms);
        }
        self.since_ms = self.since_ms.or(Some(plan.created_at_ms));
        self.remember(&plan);
        self.current = Some(plan);
        true
    }

    pub(crate) fn current(&self) -> Option<&FleetPlan> {
        self.current.as_ref()
    }

    pub(crate) fn history(&self) -> impl Iterator<Item = &PlanEntry> {
        self.history.iter()
    }

    pub(crate) fn decision(&self, service: &str) -> Option<&ServicePlan> {
        self.current.as_ref()?.services.iter().find(|s| s.service == service)
    }

    /// Cost at `now_ms`; the owner's figures go before the planner's, and these before our own sum.
    pub(crate) fn cost(&self, owner: Option<&CostFigures>, now_ms: EpochMs) -> Option<CostView> {
        let current = self.current.as_ref();
        let usd_per_hour = current.map_or(0.0, |plan| plan.cost_usd_per_hour);
        let view = |usd: f64, usd_static_peak: Option<f64>, source: CostSource| CostView {
            usd,
            usd_per_hour,
            usd_static_peak,
            usd_reactive: None,
            saving: usd_static_peak.filter(|peak| *peak > 0.0).map(|peak| 1.0 - usd / peak),
            since_ms: self.since_ms,
            source,
            note: None,
        };
        if let Some(figures) = owner {
            let base = view(figures.usd, Some(figures.usd_static_peak), CostSource::Owner);
            return Some(CostView { usd_reactive: figures.usd_reactive, note: Some(figures.note.clone()), ..base });
        }
        let current = current?;
        if let Some(CostSoFar { since_ms, usd, usd_static_peak }) = current.cost {
            let base = view(usd, Some(usd_static_peak), CostSource::Planner);
            return Some(CostView { since_ms: Some(since_ms), ..base });
        }
        Some(view(self.spent_usd + cost_until(current, now_ms), None, CostSource::Plans))
    }

    fn remember(&mut self, plan: &FleetPlan) {
        let entry = entry(plan);
        match self.history.front_mut() {
            Some(last) if is_same(last, &entry) => {
                let (created_at_ms, plans) = (last.created_at_ms, last.plans.saturating_add(1));
                *last = PlanEntry { created_at_ms, plans, ..entry };
            }
            _ => self.history.push_front(entry),
        }
        self.history.truncate(MAX_ENTRIES);
    }
}

/// True for a plan that, like the one before, changes nothing.
fn is_same(last: &PlanEntry, next: &PlanEntry) -> bool {
    last.changes.is_empty()
        && next.changes.is_empty()
        && last.mode == next.mode
        && last.nodes == next.nodes
        && last.cost_usd_per_hour == next.cost_usd_per_hour
        && (last.shortfall_rps > 0.0) == (next.shortfall_rps > 0.0)
}

fn entry(plan: &FleetPlan) -> PlanEntry {
    PlanEntry {
        plan_id: plan.plan_id.clone(),
        created_at_ms: plan.created_at_ms,
        last_at_ms: plan.created_at_ms,
        plans: 1,
        mode: plan.mode,
        cost_usd_per_hour: plan.cost_usd_per_hour,
        nodes: u32::try_from(plan.nodes.len()).unwrap_or(u32::MAX),
        shortfall_rps: super::round3(plan.shortfall_rps),
        changes: plan.changes.iter().take(MAX_CHANGES).cloned().collect(),
        changes_left_out: u32::try_from(plan.changes.len().saturating_sub(MAX_CHANGES)).unwrap_or(u32::MAX),
        services: plan.services.iter().map(ServiceDecision::from).collect(),
    }
}

/// What the nodes of `plan` cost from its decision until `until_ms`: an advisory plan costs nothing, and a node costs
/// nothing outside of its lease.
fn cost_until(plan: &FleetPlan, until_ms: EpochMs) -> f64 {
    const HOUR_MS: f64 = 3_600_000.0;
    if plan.mode == PlanMode::Advise {
        return 0.0;
    }
    let leased_ms = |start: EpochMs, end: EpochMs| (until_ms.min(end) - plan.created_at_ms.max(start)).max(0) as f64;
    plan.nodes.iter().map(|n| n.usd_per_hour * leased_ms(n.lease_start_ms, n.lease_end_ms) / HOUR_MS).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemas::allocation::{NodeAction, NodePlan};

    const HOUR: EpochMs = 3_600_000;

    fn plan(epoch: u64, sequence: u64, created_at_ms: EpochMs, nodes: usize) -> FleetPlan {
        let node = |i: usize| NodePlan {
            node: format!("n{i}"),
            flavor: "small".to_owned(),
            action: NodeAction::Keep,
            lease_start_ms: 0,
            lease_end_ms: 10 * HOUR,
            usd_per_hour: 0.5,
            instances: vec![],
            reason: String::new(),
        };
        FleetPlan {
            schema: Default::default(),
            plan_id: format!("{epoch}-{sequence}"),
            epoch,
            sequence,
            created_at_ms,
            mode: PlanMode::Apply,
            services: vec![],
            nodes: (0..nodes).map(node).collect(),
            cost_usd_per_hour: nodes as f64 * 0.5,
            shortfall_rps: 0.0,
            changes: vec![],
            cost: None,
        }
    }

    fn change() -> PlanChange {
        PlanChange {
            service: None,
            node: "n0".to_owned(),
            action: NodeAction::Start,
            reason: "load rose".to_owned(),
            load: None,
        }
    }

    fn usd(plans: &Plans, now_ms: EpochMs) -> f64 {
        plans.cost(None, now_ms).map_or(f64::NAN, |cost| cost.usd)
    }

    #[test]
    fn cost_is_the_integral_of_the_price_between_plans() {
        let mut plans = Plans::default();
        assert_eq!(plans.cost(None, 0), None);
        plans.apply(plan(1, 1, 0, 1));
        plans.apply(plan(1, 2, HOUR, 3));
        assert_eq!(usd(&plans, HOUR), 0.5);
        assert_eq!(usd(&plans, 3 * HOUR), 0.5 + 2.0 * 1.5);
        assert_eq!(usd(&plans, 100 * HOUR), 0.5 + 9.0 * 1.5, "leases ended after ten hours");
        let mut advice = plan(1, 3, 2 * HOUR, 9);
        advice.mode = PlanMode::Advise;
        plans.apply(advice);
        assert_eq!(usd(&plans, 9 * HOUR), 2.0, "nobody pays for advice");
    }

    #[test]
    fn better_figures_take_precedence_over_our_sum() {
        let mut plans = Plans::default();
        let mut with_account = plan(1, 1, 0, 1);
        with_account.cost = Some(CostSoFar { since_ms: -5, usd: 3.0, usd_static_peak: 4.0 });
        plans.apply(with_account);
        let planner = plans.cost(None, HOUR).expect("cost");
        assert_eq!((planner.usd, planner.saving, planner.source), (3.0, Some(0.25), CostSource::Planner));
        let figures =
            CostFigures { usd: 1.0, usd_static_peak: 2.0, usd_reactive: Some(1.5), note: "simulated".to_owned() };
        let owner = plans.cost(Some(&figures), HOUR).expect("cost");
        assert_eq!((owner.usd, owner.saving, owner.source), (1.0, Some(0.5), CostSource::Owner));
        assert_eq!((owner.usd_reactive, owner.note.as_deref()), (Some(1.5), Some("simulated")));
    }

    #[test]
    fn a_deposed_planner_and_a_repeated_plan_change_nothing() {
        let mut plans = Plans::default();
        assert!(plans.apply(plan(2, 1, 0, 1)));
        assert!(!plans.apply(plan(1, 99, HOUR, 5)), "lower epoch");
        assert!(!plans.apply(plan(2, 1, HOUR, 5)), "same plan again");
        assert_eq!(plans.current().map(|p| p.nodes.len()), Some(1));
        assert_eq!(usd(&plans, HOUR), 0.5);
        assert!(plans.apply(plan(3, 0, HOUR, 2)));
    }

    #[test]
    fn plans_that_change_nothing_are_one_entry_and_the_history_is_bounded() {
        let mut plans = Plans::default();
        let mut sequence = 0;
        for _ in 0..100 {
            let mut changed = plan(1, sequence, sequence as i64 * 1000, 1);
            changed.changes = vec![change(); MAX_CHANGES + 2];
            plans.apply(changed);
            for quiet in 1..=10 {
                plans.apply(plan(1, sequence + quiet, (sequence + quiet) as i64 * 1000, 1));
            }
            sequence += 11;
        }
        assert_eq!(plans.history().count(), MAX_ENTRIES);
        let entries: Vec<&PlanEntry> = plans.history().collect();
        assert_eq!((entries[0].plans, entries[0].plan_id.as_str()), (10, "1-1099"));
        assert_eq!((entries[0].created_at_ms, entries[0].last_at_ms), (1_090_000, 1_099_000));
        assert_eq!((entries[1].plans, entries[1].changes.len()), (1, MAX_CHANGES));
        assert_eq!(entries[1].changes_left_out, 2);
    }
}
