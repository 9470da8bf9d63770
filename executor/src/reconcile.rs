//! From what a node holds and what the plan says to what has to be done. Pure.
//!
//! Invariants:
//! - A record of an older epoch, or an older sequence within an epoch, is never followed.
//! - What is wanted again while it drains is kept: its drain is cancelled before anything is loaded.
//! - An instance that the plan replaces by another one of its service (a new version) goes on until the replacement
//!   serves; if the replacement cannot be loaded, it goes on still.
//! - An instance with no workers in the plan is a standby: loaded, and serving nothing. One that serves becomes a standby
//!   by draining, under the same rule of replacement.
//! - A failed instance that is wanted is loaded again after `retry_ms`, not at once.
//! - Reconciling twice without anything having happened in between asks for nothing new.
//!
//! Left out: carrying the actions out (`service`).

use crate::instance::{Instance, InstanceKey};
use schemas::EpochMs;
use schemas::allocation::{InstanceAllocation, NodeAllocation};
use schemas::status::InstanceState;
use std::collections::{BTreeMap, BTreeSet};

/// One thing to do, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// It drains and is wanted again.
    CancelDrain(InstanceKey),
    /// Make the instance if there is none, and load its model.
    Load(InstanceAllocation),
    /// It is loaded and has workers in the plan.
    Serve(InstanceKey),
    /// The plan's figures for it changed: workers, batch, SLO, service time.
    SetPlan(InstanceAllocation),
    /// It is not wanted.
    Drain(InstanceKey),
}

/// True when `new` is to be followed after `current`.
pub fn supersedes(new: &NodeAllocation, current: Option<&NodeAllocation>) -> bool {
    current.is_none_or(|c| (new.epoch, new.sequence) > (c.epoch, c.sequence))
}

/// What the plan wants, one entry for each key; workers of equal entries are added up.
pub fn wanted(allocation: Option<&NodeAllocation>) -> BTreeMap<InstanceKey, InstanceAllocation> {
    let mut wanted: BTreeMap<InstanceKey, InstanceAllocation> = BTreeMap::new();
    let Some(allocation) = allocation.filter(|a| !a.drain) else { return wanted };
    for instance in &allocation.instances {
        wanted
            .entry(InstanceKey::of(instance))
            .and_modify(|w| w.workers = w.workers.saturating_add(instance.workers))
            .or_insert_with(|| instance.clone());
    }
    wanted
}

/// What has to be done. `allocation` is the newest one, absent when the node was retired or never had any.
pub fn reconcile(
    instances: &BTreeMap<InstanceKey, Instance>,
    allocation: Option<&NodeAllocation>,
    now_ms: EpochMs,
    retry_ms: i64,
) -> Vec<Action> {
    let wanted = wanted(allocation);
    let (mut cancels, mut loads, mut changes, mut drains) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut serves = Vec::new();
    for (key, plan) in &wanted {
        let existing = instances.get(key);
        match existing.map(Instance::state) {
            None | Some(InstanceState::Cold | InstanceState::Stopped) => loads.push(Action::Load(plan.clone())),
            Some(InstanceState::Failed) => {
                if existing.is_some_and(|i| now_ms - i.since_ms() >= retry_ms) {
                    loads.push(Action::Load(plan.clone()));
                }
            }
            Some(InstanceState::Draining) if plan.workers > 0 => cancels.push(Action::CancelDrain(key.clone())),
            Some(InstanceState::Loaded) if plan.workers > 0 => serves.push(Action::Serve(key.clone())),
            Some(
                InstanceState::Loading
                | InstanceState::Cached
                | InstanceState::Loaded
                | InstanceState::Ready
                | InstanceState::Draining,
            ) => {}
        }
        if existing.is_some_and(|i| i.plan != *plan && i.state() != InstanceState::Stopped) {
            changes.push(Action::SetPlan(plan.clone()));
        }
    }
    let with_workers = || wanted.iter().filter(|(_, plan)| plan.workers > 0).map(|(key, _)| key);
    let replaced: BTreeSet<&str> = with_workers().map(|k| k.service.as_str()).collect();
    // A drain that is cancelled above serves again, too, and what is loaded serves now.
    let serving_state =
        |i: &Instance| matches!(i.state(), InstanceState::Loaded | InstanceState::Ready | InstanceState::Draining);
    let serving: BTreeSet<&str> =
        with_workers().filter(|k| instances.get(k).is_some_and(serving_state)).map(|k| k.service.as_str()).collect();
    let unwanted = instances.iter().filter(|(key, instance)| match wanted.get(key) {
        None => true,
        Some(plan) => plan.workers == 0 && instance.state() == InstanceState::Ready,
    });
    for (key, instance) in unwanted {
        let done = matches!(instance.state(), InstanceState::Draining | InstanceState::Stopped);
        let holds_the_fort = instance.state() == InstanceState::Ready
            && replaced.contains(key.service.as_str())
            && !serving.contains(key.service.as_str());
        if !done && !holds_the_fort {
            drains.push(Action::Drain(key.clone()));
        }
    }
    [cancels, changes, serves, loads, drains].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::instance::Event;
    use crate::instance::tests::allocation;
    use proptest::prelude::*;

    const RETRY_MS: i64 = 30_000;

    fn plan(epoch: u64, sequence: u64, instances: Vec<InstanceAllocation>) -> NodeAllocation {
        NodeAllocation {
            schema: Default::default(),
            node: "n1".to_owned(),
            plan_id: format!("{epoch}-{sequence}"),
            epoch,
            sequence,
            created_at_ms: 0,
            instances,
            drain: false,
            reason: String::new(),
            load: Vec::new(),
        }
    }

    /// Carries actions out the way the node does.
    fn carry_out(instances: &mut BTreeMap<InstanceKey, Instance>, actions: &[Action], now_ms: i64) {
        for action in actions {
            match action {
                Action::Load(plan) => {
                    let instance =
                        instances.entry(InstanceKey::of(plan)).or_insert_with(|| Instance::new(plan.clone(), now_ms));
                    instance.apply(Event::Load, now_ms).unwrap();
                }
                Action::CancelDrain(key) => {
                    instances.get_mut(key).unwrap().apply(Event::CancelDrain, now_ms).unwrap();
                }
                Action::Serve(key) => instances.get_mut(key).unwrap().apply(Event::Serve, now_ms).unwrap(),
                Action::SetPlan(plan) => instances.get_mut(&InstanceKey::of(plan)).unwrap().plan = plan.clone(),
                Action::Drain(key) => instances.get_mut(key).unwrap().apply(Event::Drain, now_ms).unwrap(),
            }
        }
        instances.retain(|_, i| i.state() != InstanceState::Stopped);
    }

    fn ready(instances: &mut BTreeMap<InstanceKey, Instance>, plan: &InstanceAllocation) {
        let key = InstanceKey::of(plan);
        let mut instance = Instance::new(plan.clone(), 0);
        instance.apply(Event::Load, 0).unwrap();
        instance.apply(Event::Loaded(1.0), 0).unwrap();
        instance.apply(Event::Serve, 0).unwrap();
        instances.insert(key, instance);
    }

    #[test]
    fn older_records_are_not_followed() {
        let (old, new) = (plan(2, 5, vec![]), plan(3, 0, vec![]));
        assert!(supersedes(&new, Some(&old)) && !supersedes(&old, Some(&new)));
        assert!(!supersedes(&new, Some(&new)), "the same record again changes nothing");
        assert!(supersedes(&plan(2, 6, vec![]), Some(&old)) && supersedes(&old, None));
    }

    #[test]
    fn a_new_version_takes_over_only_when_it_serves() {
        let (v1, v2) = (allocation("a", "1", 1), allocation("a", "2", 1));
        let mut instances = BTreeMap::new();
        ready(&mut instances, &v1);
        let p = plan(1, 2, vec![v2.clone()]);
        let actions = reconcile(&instances, Some(&p), 0, RETRY_MS);
        assert_eq!(actions, [Action::Load(v2.clone())], "the old one stays");
        carry_out(&mut instances, &actions, 0);
        let mut corrupt = instances.clone();
        instances.get_mut(&InstanceKey::of(&v2)).unwrap().apply(Event::Loaded(5.0), 5).unwrap();
        let takes_over = [Action::Serve(InstanceKey::of(&v2)), Action::Drain(InstanceKey::of(&v1))];
        assert_eq!(reconcile(&instances, Some(&p), 5, RETRY_MS), takes_over);
        corrupt.get_mut(&InstanceKey::of(&v2)).unwrap().apply(Event::LoadFailed("bad".into()), 5).unwrap();
        assert_eq!(reconcile(&corrupt, Some(&p), 6, RETRY_MS), [], "the old one goes on");
        assert_eq!(reconcile(&corrupt, Some(&p), 5 + RETRY_MS, RETRY_MS), [Action::Load(v2)]);
    }

    #[test]
    fn a_drain_is_cancelled_before_anything_is_loaded() {
        let (a, b) = (allocation("z", "1", 1), allocation("b", "1", 1));
        let mut instances = BTreeMap::new();
        ready(&mut instances, &a);
        instances.get_mut(&InstanceKey::of(&a)).unwrap().apply(Event::Drain, 1).unwrap();
        let actions = reconcile(&instances, Some(&plan(1, 2, vec![b.clone(), a.clone()])), 2, RETRY_MS);
        assert_eq!(actions, [Action::CancelDrain(InstanceKey::of(&a)), Action::Load(b)]);
    }

    #[test]
    fn a_standby_waits_loaded_and_serves_when_it_gets_workers() {
        let (v1, standby) = (allocation("a", "1", 1), allocation("a", "2", 0));
        let mut instances = BTreeMap::new();
        ready(&mut instances, &v1);
        let with_standby = plan(1, 2, vec![v1.clone(), standby.clone()]);
        let actions = reconcile(&instances, Some(&with_standby), 0, RETRY_MS);
        carry_out(&mut instances, &actions, 0);
        settle(&mut instances, InstanceState::Loading, &Event::Cached, 1);
        assert_eq!(reconcile(&instances, Some(&with_standby), 1, RETRY_MS), []);
        settle(&mut instances, InstanceState::Cached, &Event::Loaded(1.0), 2);
        assert_eq!(reconcile(&instances, Some(&with_standby), 2, RETRY_MS), [], "it waits");
        // The two change places in one step.
        let (v1, v2) = (allocation("a", "1", 0), allocation("a", "2", 3));
        let (old, new) = (InstanceKey::of(&v1), InstanceKey::of(&v2));
        let swapped = plan(1, 3, vec![v1.clone(), v2.clone()]);
        let actions = reconcile(&instances, Some(&swapped), 3, RETRY_MS);
        let changes = [Action::SetPlan(v1), Action::SetPlan(v2), Action::Serve(new), Action::Drain(old.clone())];
        assert_eq!(actions, changes);
        carry_out(&mut instances, &actions, 3);
        assert_eq!(reconcile(&instances, Some(&swapped), 4, RETRY_MS), [], "it drains, and nothing cancels that");
        settle(&mut instances, InstanceState::Draining, &Event::Rest, 5);
        assert_eq!(instances[&old].state(), InstanceState::Loaded);
        let retired = reconcile(&instances, Some(&plan(1, 4, vec![])), 6, RETRY_MS);
        assert_eq!(retired.len(), 2, "a standby that is not wanted goes, too: {retired:?}");
    }

    #[test]
    fn drain_and_retirement_empty_the_node() {
        let a = allocation("a", "1", 1);
        let mut instances = BTreeMap::new();
        ready(&mut instances, &a);
        let drained = NodeAllocation { drain: true, ..plan(1, 2, vec![a.clone()]) };
        let drain = [Action::Drain(InstanceKey::of(&a))];
        assert_eq!(reconcile(&instances, Some(&drained), 0, RETRY_MS), drain);
        assert_eq!(reconcile(&instances, None, 0, RETRY_MS), drain);
    }

    #[test]
    fn equal_entries_add_up() {
        let p = plan(1, 1, vec![allocation("a", "1", 2), allocation("a", "1", 3)]);
        assert_eq!(wanted(Some(&p)).into_values().map(|i| i.workers).collect::<Vec<_>>(), [5]);
    }

    fn instances() -> impl Strategy<Value = Vec<InstanceAllocation>> {
        proptest::collection::vec(
            ("[ab]", "[12]", 0u32..4).prop_map(|(service, version, workers)| allocation(&service, &version, workers)),
            0..4,
        )
    }

    #[derive(Debug, Clone)]
    enum Step {
        Plan(Vec<InstanceAllocation>, bool),
        Loads { fail: bool },
        Drains,
        Wait(i64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (instances(), proptest::bool::weighted(0.1)).prop_map(|(i, drain)| Step::Plan(i, drain)),
            any::<bool>().prop_map(|fail| Step::Loads { fail }),
            Just(Step::Drains),
            (0i64..40_000).prop_map(Step::Wait),
        ]
    }

    fn settle(instances: &mut BTreeMap<InstanceKey, Instance>, state: InstanceState, event: &Event, now: i64) {
        for instance in instances.values_mut().filter(|i| i.state() == state) {
            instance.apply(event.clone(), now).unwrap();
        }
        instances.retain(|_, i| i.state() != InstanceState::Stopped);
    }

    /// As the node does: what the plan wants as a standby rests, the rest stops.
    fn end_drains(instances: &mut BTreeMap<InstanceKey, Instance>, plan: Option<&NodeAllocation>, now: i64) {
        let wanted = wanted(plan);
        for (key, instance) in instances.iter_mut().filter(|(_, i)| i.state() == InstanceState::Draining) {
            let event = if wanted.contains_key(key) { Event::Rest } else { Event::Drained };
            instance.apply(event, now).unwrap();
        }
        instances.retain(|_, i| i.state() != InstanceState::Stopped);
    }

    proptest! {
        #[test]
        fn any_history_keeps_the_invariants_and_ends_at_the_plan(steps in proptest::collection::vec(step(), 1..30)) {
            let mut held = BTreeMap::new();
            let mut current: Option<NodeAllocation> = None;
            let mut now = 0;
            let mut sequence = 0;
            let loaded = |fail: bool| if fail { Event::LoadFailed("bad".into()) } else { Event::Loaded(1.0) };
            for s in steps {
                match s {
                    Step::Plan(instances, drain) => {
                        sequence += 1;
                        current = Some(NodeAllocation { drain, ..plan(1, sequence, instances) });
                    }
                    Step::Loads { fail } => settle(&mut held, InstanceState::Loading, &loaded(fail), now),
                    Step::Drains => end_drains(&mut held, current.as_ref(), now),
                    Step::Wait(ms) => now += ms,
                }
                let serving = |held: &BTreeMap<InstanceKey, Instance>, service: &str| {
                    held.iter().any(|(k, i)| k.service == service && i.state() == InstanceState::Ready)
                };
                let before: Vec<bool> = ["a", "b"].iter().map(|s| serving(&held, s)).collect();
                let actions = reconcile(&held, current.as_ref(), now, RETRY_MS);
                let last_cancel = actions.iter().rposition(|a| matches!(a, Action::CancelDrain(_)));
                let first_load = actions.iter().position(|a| matches!(a, Action::Load(_)));
                prop_assert!(last_cancel.is_none() || first_load.is_none() || last_cancel < first_load);
                carry_out(&mut held, &actions, now);
                prop_assert_eq!(reconcile(&held, current.as_ref(), now, RETRY_MS), vec![], "nothing new");
                let want = wanted(current.as_ref());
                for (service, before) in ["a", "b"].iter().zip(before) {
                    let wanted_still = want.iter().any(|(k, plan)| k.service == *service && plan.workers > 0);
                    prop_assert!(!(before && wanted_still) || serving(&held, service), "{} goes on serving", service);
                }
            }
            for _ in 0..3 {
                settle(&mut held, InstanceState::Loading, &loaded(false), now);
                end_drains(&mut held, current.as_ref(), now);
                now += RETRY_MS;
                let actions = reconcile(&held, current.as_ref(), now, RETRY_MS);
                carry_out(&mut held, &actions, now);
            }
            end_drains(&mut held, current.as_ref(), now);
            let want = wanted(current.as_ref());
            let have: BTreeMap<InstanceKey, InstanceAllocation> = held.iter().map(|(k, i)| (k.clone(), i.plan.clone())).collect();
            prop_assert_eq!(have, want);
            for instance in held.values() {
                let standby = instance.plan.workers == 0;
                prop_assert_eq!(instance.state(), if standby { InstanceState::Loaded } else { InstanceState::Ready });
            }
        }
    }
}
