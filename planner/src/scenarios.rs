//! Cases with names: what [`crate::plan()`] does in situations that an operator knows.

use crate::lease::{Billing, HOUR_MS, Lease};
use crate::model::*;
use crate::plan;
use crate::testing::{advance, flavor, forecast, loaded, node, point, profile};
use schemas::allocation::{NodeAction, NodePlan};

/// 10 ms a request: about 85 requests/s a core inside the SLO.
fn world(services: Vec<Service>, flavors: Vec<Flavor>) -> PlanInputs {
    let profiles = services.iter().map(|s| profile(&s.name, vec![point(1, 1, 10.0)])).collect();
    PlanInputs { services, flavors, profiles, ..PlanInputs::default() }
}

fn small() -> Flavor {
    flavor("small", 2, 0.1)
}

fn the_node<'a>(plan: &'a Plan, id: &str) -> &'a NodePlan {
    plan.nodes.iter().find(|n| n.node == id).expect("in the plan")
}

fn actions(plan: &Plan) -> Vec<(&str, NodeAction)> {
    plan.nodes.iter().map(|n| (n.node.as_str(), n.action)).collect()
}

#[test]
fn services_share_a_node_when_they_fit() {
    let p = plan(&world(vec![loaded("a", 0, 20.0), loaded("b", 0, 20.0)], vec![small()]));
    assert_eq!(p.nodes.len(), 1, "{:?}", actions(&p));
    assert_eq!(p.nodes[0].instances.iter().map(|i| i.workers).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(p.cost_usd_per_hour, 0.1);
}

#[test]
fn a_rise_one_set_up_time_ahead_orders_a_node_now() {
    let mut inputs = world(vec![loaded("a", 0, 20.0)], vec![small()]);
    inputs.fleet = vec![node("n", &small(), &[("a", 1)])];
    // Boot 60 s, load 0.5 s, period 10 s: the step at 70 s counts, the one at 80 s does not yet.
    let rising = |at: usize| {
        let rates: Vec<f64> = (0..60).map(|i| if i >= at { 300.0 } else { 20.0 }).collect();
        forecast("a", 0, &rates)
    };
    inputs.services[0].load.forecast = Some(rising(8));
    assert!(plan(&inputs).changes.is_empty());
    inputs.services[0].load.forecast = Some(rising(7));
    let p = plan(&inputs);
    assert!(p.changes.iter().any(|c| c.action == NodeAction::Start), "{:?}", p.changes);
    let load = p.changes.iter().find_map(|c| c.load.clone()).expect("the sample is named");
    assert_eq!((load.service.as_str(), load.forecast_rps), ("a", 300.0));
}

#[test]
fn a_surplus_per_second_node_lapses_while_committed_and_then_stops() {
    let mut inputs = world(vec![loaded("a", 0, 20.0)], vec![small()]);
    inputs.now_ms = 30_000;
    let mut surplus = node("z", &small(), &[]);
    surplus.lease = Lease { start_ms: 0, end_ms: 60_000 };
    inputs.fleet = vec![node("n", &small(), &[("a", 1)]), surplus];
    assert_eq!(the_node(&plan(&inputs), "z").action, NodeAction::Lapse);
    inputs.now_ms = 60_000;
    assert_eq!(the_node(&plan(&inputs), "z").action, NodeAction::Stop);
}

#[test]
fn an_hourly_lease_is_renewed_when_it_would_end_before_a_new_node_is_ready() {
    let hourly = Flavor { billing: Billing::Hour, ..small() };
    let mut inputs = world(vec![loaded("a", 0, 20.0)], vec![hourly.clone()]);
    inputs.fleet = vec![node("n", &hourly, &[("a", 1)])];
    // Set-up takes 60.5 s and the next decision comes in 10 s.
    inputs.now_ms = HOUR_MS - 70_501;
    inputs.services = vec![loaded("a", inputs.now_ms, 20.0)];
    assert_eq!(the_node(&plan(&inputs), "n").action, NodeAction::Keep);
    inputs.now_ms += 1;
    let p = plan(&inputs);
    assert_eq!((the_node(&p, "n").action, the_node(&p, "n").lease_end_ms), (NodeAction::Renew, 2 * HOUR_MS));
    assert_eq!(p.changes.len(), 1);
}

#[test]
fn an_idle_lease_is_used_before_a_node_is_started() {
    let mut inputs = world(vec![loaded("a", 0, 150.0)], vec![small()]);
    inputs.services[0].partitions = Some(12);
    inputs.services[0].load.forecast = Some(forecast("a", 0, &[300.0; 60]));
    inputs.fleet = vec![node("n", &small(), &[("a", 2)]), node("idle", &small(), &[])];
    let p = plan(&inputs);
    assert!(p.nodes.iter().all(|n| n.action == NodeAction::Keep), "{:?}", actions(&p));
    assert_eq!(the_node(&p, "idle").instances[0].service, "a");
}

#[test]
fn under_one_quota_the_higher_priority_is_served_and_the_other_is_short() {
    let vip = Service { priority: 5, ..loaded("vip", 0, 150.0) };
    let mut inputs = world(vec![loaded("bulk", 0, 250.0), vip], vec![flavor("four", 4, 0.2)]);
    inputs.settings.total_quota = Some(1);
    // The low priority was there first and has the node to itself.
    inputs.fleet = vec![node("n", &flavor("four", 4, 0.2), &[("bulk", 4)])];
    let p = plan(&inputs);
    let [bulk, vip] = &p.services[..] else { panic!("two services") };
    assert!(vip.shortfall_rps == 0.0 && bulk.shortfall_rps > 0.0, "{vip:#?} {bulk:#?}");
    assert_eq!(bulk.bound_by, "quota");
    assert!(
        bulk.reason.contains("short by") && bulk.reason.contains("quotas allow no further node"),
        "{}",
        bulk.reason
    );
    assert!((p.shortfall_rps - bulk.shortfall_rps - vip.shortfall_rps).abs() < 1e-9);
}

#[test]
fn partitions_cap_the_nodes_and_the_plan_says_so() {
    let mut inputs = world(vec![loaded("a", 0, 1000.0)], vec![small()]);
    inputs.services[0].partitions = Some(3);
    let p = plan(&inputs);
    let a = &p.services[0];
    assert_eq!((a.instances, a.bound_by.as_str()), (3, "partitions"));
    assert!(a.reason.contains("has 3 partitions"), "{}", a.reason);
    let more = Service { max: Some(2), ..inputs.services[0].clone() };
    inputs.services = vec![more];
    assert_eq!(plan(&inputs).services[0].bound_by, "max");
}

#[test]
fn a_partition_is_not_divided_so_three_nodes_of_four_partitions_carry_no_more_than_two() {
    let mut inputs = world(vec![loaded("a", 0, 400.0)], vec![small()]);
    let carried = |inputs: &PlanInputs| (plan(inputs).services[0].instances, plan(inputs).services[0].shortfall_rps);
    assert_eq!(carried(&inputs), (3, 0.0));
    inputs.services[0].partitions = Some(4);
    assert_eq!(carried(&inputs), (4, 0.0), "one of three nodes would get half of the arrivals");
    inputs.services[0].partitions = Some(12);
    assert_eq!(carried(&inputs), (3, 0.0));
}

#[test]
fn a_node_is_given_up_only_when_others_already_serve() {
    let mut inputs = world(vec![loaded("a", 0, 20.0), loaded("b", 0, 20.0)], vec![small()]);
    inputs.now_ms = 100_000;
    inputs.fleet = vec![node("n1", &small(), &[("a", 1)]), node("n2", &small(), &[("b", 1)])];
    inputs.services = vec![loaded("a", 100_000, 20.0), loaded("b", 100_000, 20.0)];
    let first = plan(&inputs);
    assert!(first.nodes.iter().all(|n| n.action == NodeAction::Keep), "{:?}", actions(&first));
    let doubled: Vec<_> = first.nodes.iter().filter(|n| n.instances.len() == 2).collect();
    assert_eq!(doubled.len(), 1, "one node gets the other's service too: {:?}", first.nodes);
    // Not ready yet: nothing goes.
    let waiting = plan(&advance(&inputs, &first, 661_000, false));
    assert!(waiting.changes.is_empty(), "{:?}", waiting.changes);
    // Ready: the other node goes.
    let done = plan(&advance(&inputs, &first, 102_000, true));
    assert_eq!(done.nodes.iter().filter(|n| n.action == NodeAction::Stop).count(), 1, "{:?}", actions(&done));
    assert_eq!(done.cost_usd_per_hour, 0.1);
}

#[test]
fn a_node_that_is_too_big_is_exchanged_make_before_break() {
    let big = flavor("big", 16, 1.6);
    let mut inputs = world(vec![loaded("a", 100_000, 20.0)], vec![small(), big.clone()]);
    inputs.now_ms = 100_000;
    inputs.fleet = vec![node("n", &big, &[("a", 1)])];
    let first = plan(&inputs);
    assert_eq!(the_node(&first, "n").action, NodeAction::Keep);
    assert_eq!(first.changes.iter().filter(|c| c.action == NodeAction::Start).count(), 1, "{:?}", first.changes);
    let done = plan(&advance(&inputs, &first, 760_000, true));
    assert_eq!((the_node(&done, "n").action, done.cost_usd_per_hour), (NodeAction::Stop, 0.1));
    // Not worth it when what is saved does not pay for the overlap.
    inputs.settings.payback_ms = 1_000;
    assert!(plan(&inputs).changes.is_empty());
}

#[test]
fn several_small_nodes_are_merged_into_a_big_one_and_it_is_split_again() {
    // Eight cores for the price of three: four small nodes were ordered as the load grew.
    let big = flavor("big", 8, 0.3);
    let mut inputs = world(vec![loaded("a", 100_000, 700.0)], vec![small(), big]);
    inputs.settings.members = Members::Shared;
    // Eleven minutes later the load has lasted as long as four small nodes take to cost what the exchange does.
    inputs.now_ms = 660_000;
    inputs.services = vec![loaded("a", 660_000, 700.0)];
    let names = ["n1", "n2", "n3", "n4"];
    inputs.fleet = names.iter().map(|n| node(n, &small(), &[("a", 2)])).collect();
    let first = plan(&inputs);
    let starts = |p: &Plan| p.changes.iter().filter(|c| c.action == NodeAction::Start).count();
    assert_eq!((starts(&first), first.nodes.len()), (1, 5), "{:?}", actions(&first));
    assert!(first.nodes.iter().all(|n| n.action != NodeAction::Stop), "{:?} {:?}", actions(&first), first.services);
    // While it boots nothing more happens; when it serves, the four go.
    let waiting = plan(&advance(&inputs, &first, 101_000, false));
    assert!(waiting.changes.is_empty(), "{:?}", waiting.changes);
    let merged_inputs = advance(&inputs, &first, 200_000, true);
    let merged = plan(&merged_inputs);
    assert_eq!(merged.nodes.iter().filter(|n| n.action == NodeAction::Stop).count(), 4, "{:?}", actions(&merged));
    assert_eq!(merged.cost_usd_per_hour, 0.3);
    // The load falls to what two small nodes carry: they are ordered for the big one.
    let mut falling = advance(&merged_inputs, &merged, 1_600_000, true);
    falling.services = vec![loaded("a", 1_600_000, 250.0)];
    falling.previous.clear();
    let split = plan(&falling);
    assert_eq!(starts(&split), 2, "{:?}", actions(&split));
    let done = plan(&advance(&falling, &split, 1_700_000, true));
    assert_eq!(done.cost_usd_per_hour, 0.2, "{:?}", actions(&done));
}

/// A cheap flavor that takes seven minutes, and a dearer one that takes half a minute.
fn slow_and_fast() -> [Flavor; 2] {
    [Flavor { boot_s: 420.0, ..flavor("cheap", 2, 0.08) }, Flavor { boot_s: 30.0, ..flavor("fast", 2, 0.1) }]
}

fn started(plan: &Plan, flavor: &str) -> usize {
    plan.nodes.iter().filter(|n| n.action == NodeAction::Start && n.flavor == flavor).count()
}

#[test]
fn a_shortage_is_met_by_what_is_there_sooner_and_the_lasting_load_by_what_is_cheap() {
    let [cheap, fast] = slow_and_fast();
    let mut inputs = world(vec![loaded("a", 1_000_000, 300.0)], vec![cheap.clone(), fast]);
    inputs.settings.members = Members::Shared;
    inputs.now_ms = 1_000_000;
    inputs.fleet = ["c1", "c2"].iter().map(|n| node(n, &cheap, &[("a", 2)])).collect();
    assert!(plan(&inputs).changes.is_empty());
    // It doubles at once.
    inputs.services = vec![loaded("a", 1_000_000, 720.0)];
    let jump = plan(&inputs);
    assert_eq!((started(&jump, "fast"), started(&jump, "cheap")), (2, 0), "{:?}", actions(&jump));
    // The same, foreseen seven minutes ahead: the cheap ones are there in time.
    let rising: Vec<f64> = (0..60).map(|i| if i >= 42 { 720.0 } else { 300.0 }).collect();
    inputs.services[0].load.forecast = Some(forecast("a", 1_000_000, &rising));
    let foreseen = plan(&inputs);
    assert_eq!((started(&foreseen, "fast"), started(&foreseen, "cheap")), (0, 2), "{:?}", actions(&foreseen));
    // A shortage of a few requests is cheaper than a node.
    inputs.services = vec![loaded("a", 1_000_000, 405.0)];
    let little = plan(&inputs);
    assert_eq!((started(&little, "fast"), started(&little, "cheap")), (0, 1), "{:?}", actions(&little));
    // The jump lasts: once the dear nodes have cost what the exchange does, cheap ones take over.
    let mut lasting = advance(&inputs, &jump, 1_100_000, true);
    let mut swapped_at = None;
    for step in 0..60 {
        let now_ms = 1_100_000 + step * 60_000;
        lasting.now_ms = now_ms;
        lasting.services = vec![loaded("a", now_ms, 720.0)];
        let p = plan(&lasting);
        if started(&p, "cheap") > 0 {
            swapped_at.get_or_insert(now_ms);
        }
        lasting = advance(&lasting, &p, now_ms, true);
    }
    let flavors: Vec<&str> = lasting.fleet.iter().map(|n| n.flavor.as_str()).collect();
    assert_eq!(flavors, ["cheap"; 4]);
    // 430.5 s of a cheap node, 0.08, at 0.02 saved an hour.
    assert!(swapped_at.is_some_and(|at| at - 1_000_000 >= 4 * 430_500), "{swapped_at:?}");
}

#[test]
fn what_serves_keeps_its_workers_until_what_was_ordered_serves_too() {
    let mut inputs =
        world(vec![loaded("a", 100_000, 100.0), loaded("b", 100_000, 100.0)], vec![flavor("four", 4, 0.2)]);
    inputs.settings.members = Members::Shared;
    inputs.now_ms = 100_000;
    inputs.fleet = vec![node("n", &flavor("four", 4, 0.2), &[("a", 2), ("b", 2)])];
    inputs.services = vec![loaded("a", 100_000, 250.0), loaded("b", 100_000, 100.0)];
    let workers =
        |p: &Plan, service: &str| the_node(p, "n").instances.iter().find(|i| i.service == service).map(|i| i.workers);
    let first = plan(&inputs);
    assert_eq!(first.nodes.len(), 2, "{:?}", actions(&first));
    assert_eq!(workers(&first, "a"), Some(2), "{:?}", first.nodes);
    let second = plan(&advance(&inputs, &first, 101_000, false));
    assert_eq!((workers(&second, "a"), second.changes.len()), (Some(2), 0), "{:?}", second.nodes);
}

#[test]
fn a_lost_node_is_replaced() {
    let mut inputs = world(vec![loaded("a", 0, 20.0)], vec![small()]);
    inputs.fleet = vec![FleetNode { state: FleetState::Lost, ..node("n", &small(), &[("a", 1)]) }];
    let p = plan(&inputs);
    assert_eq!(the_node(&p, "n").action, NodeAction::Stop);
    assert!(the_node(&p, "n").reason.contains("lost"));
    assert!(p.nodes.iter().any(|n| n.action == NodeAction::Start), "{:?}", actions(&p));
}

#[test]
fn a_fixed_fleet_starts_and_stops_nothing() {
    let mut inputs = world(vec![loaded("a", 0, 1000.0)], vec![small()]);
    inputs.settings.elastic = false;
    inputs.now_ms = 100_000;
    inputs.services = vec![loaded("a", 100_000, 1000.0)];
    inputs.fleet = vec![node("n", &small(), &[]), node("o", &small(), &[])];
    let p = plan(&inputs);
    assert_eq!(actions(&p), [("n", NodeAction::Keep), ("o", NodeAction::Keep)]);
    assert!(p.services[0].reason.contains("this provider starts no nodes"), "{}", p.services[0].reason);
    inputs.services = vec![loaded("a", 100_000, 10.0)];
    let idle = plan(&inputs);
    assert_eq!(idle.nodes.iter().filter(|n| n.action == NodeAction::Lapse).count(), 1, "{:?}", actions(&idle));
}

#[test]
fn a_model_that_does_not_load_starts_no_further_nodes() {
    let mut inputs = world(vec![loaded("a", 0, 20.0)], vec![small()]);
    let mut n = node("n", &small(), &[("a", 1)]);
    n.hosts[0] = HostedInstance { ready: false, failed: Some("no such file".into()), ..n.hosts[0].clone() };
    inputs.fleet = vec![n];
    let p = plan(&inputs);
    assert!(p.nodes.iter().all(|n| n.action != NodeAction::Start), "{:?}", actions(&p));
    assert_eq!(p.services[0].bound_by, "failed to load");
    assert!(p.services[0].shortfall_rps > 0.0);
}

#[test]
fn zero_load_with_min_zero_runs_nothing() {
    let mut inputs = world(vec![Service { min: 0, ..loaded("a", 0, 0.0) }], vec![small()]);
    assert!(plan(&inputs).nodes.is_empty());
    inputs.services[0].min = 2;
    let p = plan(&inputs);
    assert_eq!((p.services[0].instances, p.services[0].bound_by.as_str()), (2, "min"));
}

#[test]
fn nothing_feasible_is_said_with_its_reason() {
    let mut inputs = world(vec![loaded("a", 0, 20.0)], vec![small()]);
    inputs.profiles[0].profile.points = vec![point(1, 1, 500.0)];
    let a = &plan(&inputs).services[0];
    assert_eq!((a.bound_by.as_str(), a.chosen.as_deref(), a.shortfall_rps), ("no feasible flavor", None, 20.0));
    assert!(a.reason.contains("500.0 ms at p95"), "{}", a.reason);
    assert!(a.options[0].infeasible.is_some());
}

/// `ceil(y' / n_req)`: 4 requests of 50 ms a worker in 200 ms, so 20 requests/s.
#[test]
fn the_papers_rule_counts_back_ends_as_the_paper_does() {
    let mut inputs = world(vec![loaded("a", 0, 61.0)], vec![flavor("one", 1, 0.1)]);
    inputs.settings.capacity_rule = CapacityRule::Paper;
    inputs.profiles[0].profile.points = vec![point(1, 1, 50.0)];
    let p = plan(&inputs);
    assert_eq!((p.nodes.len(), p.services[0].margin_rps), (4, 0.0));
    assert_eq!(p.services[0].options[0].requests_per_slo, 4);
}

#[test]
fn equal_priorities_lose_the_same_share_whatever_their_names() {
    let wants = [("a", 300.0), ("b", 300.0), ("c", 60.0)];
    let services = wants.iter().map(|(name, rps)| loaded(name, 0, *rps)).collect();
    let mut inputs = world(services, vec![flavor("four", 4, 0.2)]);
    inputs.settings.total_quota = Some(1);
    let p = plan(&inputs);
    let served: Vec<f64> = p.services.iter().map(|s| s.capacity_rps.min(s.demand_rps) / s.demand_rps).collect();
    assert!(served.iter().all(|share| *share > 0.1), "none starves: {served:?}");
    assert!(p.services[0].reason.contains("of the same priority"), "{}", p.services[0].reason);
    // Its own priority does not change what a lower one gets, and the higher one is served.
    inputs.services[2].priority = 1;
    let p = plan(&inputs);
    assert_eq!(p.services[2].shortfall_rps, 0.0, "{:?}", p.services[2]);
    assert!(p.services[..2].iter().all(|s| s.shortfall_rps > 0.0));
}

#[test]
fn a_spot_node_is_taken_when_interruptions_leave_it_cheaper() {
    let spot = |interruptions_per_hour: f64| Flavor { interruptions_per_hour, ..flavor("spot", 2, 0.03) };
    let chosen = |interruptions_per_hour: f64| {
        let p = plan(&world(vec![loaded("a", 0, 20.0)], vec![small(), spot(interruptions_per_hour)]));
        (p.services[0].chosen.clone().expect("feasible"), p.services[0].options.clone(), p.cost_usd_per_hour)
    };
    // Set-up takes 60.5 s: r·T·21 is 0.018 at one in 20 hours, 3.5 at ten an hour.
    let (flavor, options, cost_usd) = chosen(0.05);
    assert_eq!((flavor.as_str(), cost_usd), ("spot", 0.03), "what is paid is the plain price");
    let plain = |o: &[schemas::allocation::FlavorOption]| {
        o.iter().find(|o| o.flavor == "spot").map(|o| o.usd_per_million * o.capacity_rps * 3600.0 / 1e6)
    };
    assert!((plain(&options).expect("rated") / 0.03 - (1.0 + 0.05 * 60.5 / 3600.0 * 21.0)).abs() < 1e-9);
    assert_eq!(chosen(10.0).0, "small");
}
