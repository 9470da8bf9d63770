//! The clairvoyant fluid bound: what no policy can beat (FACTS §Planning).
//!
//! True minute rates known in advance, every machine at the throughput of its best batch under the SLO without any
//! queueing, whole nodes, set-up paid, leases kept, and the cheapest 1 % of requests dropped. The price of a dropped
//! request is bisected until 1 % are dropped; the Lagrangian then gives `cost + price · (dropped − 1 %)`, which is a
//! lower bound whatever the price, and the largest of the bisection counts.
//!
//! - **Per second:** a dynamic programme over minutes and the counts of up to three flavors, those that cover some load
//!   of the trace cheapest; starting a node costs its set-up time, separable, so that a min-plus transform along each
//!   axis is exact (prototype `dp.rs`).
//! - **Hourly, one flavor:** the fleet falls into layers: the k-th node serves what is above `k − 1` nodes. Each layer is
//!   a programme over on and off, a term serves from its order's set-up on (a renewal without set-up) and is paid whole,
//!   cut at the end of the simulation. With several hourly flavors, the cheapest per request in every layer, which
//!   flatters reality by less than one small node and is no proof.
//! - **Several services** are counted in units of the cheapest flavor's throughput for each, and every flavor with the
//!   best ratio that it has for any of them: a relaxation, so still a bound.
//!
//! **The floor** ([`floor_usd`]) is the same with the second half of the objective: at most 2 % of the minutes may drop
//! more than the SLO's quantile allows. Its price, of a bad minute, is found in the same way. It says how much of a
//! policy's distance to the bound is the objective's and not the policy's; for one service that is billed by the second.
//!
//! **With queueing** ([`Capacity::Queue`]) a minute drops the share that a queue with deadline shedding drops at its load
//! (`planner::margin`), not only what is above capacity: a reference for what a clairvoyant would pay, by a formula, and
//! no bound.
//!
//! Left out: prices that change (the first counts, or the lowest if one falls), faults, spot.

use super::policy::Unit;
use super::world::World;
use planner::lease::Billing;
use planner::model::CapacityRule;

/// Share of requests that may be dropped.
const DROPPED: f64 = 0.01;
/// Flavors of the exact programme.
const MOST_FLAVORS: usize = 3;
/// Steps of the bisection of the price.
const BISECTIONS: usize = 14;

/// Share of minutes that may be bad.
const BAD_MINUTES: f64 = 0.02;

#[derive(Debug, Clone, Copy)]
struct Kind {
    rate: f64,
    usd_per_min: f64,
    setup_min: f64,
    hourly: bool,
    /// Waiting that the SLO leaves at the best batch, seconds, times the requests in one unit of load.
    allowed: f64,
}

/// What a fleet loses at a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capacity {
    /// What is above its throughput.
    Fluid,
    /// What a queue drops.
    Queue,
}

/// What misses cost: a request per second over a minute, and a minute in which more than a share of them is dropped.
#[derive(Debug, Clone, Copy)]
struct Prices {
    request: f64,
    minute: f64,
    /// Share of a minute's requests that may be dropped.
    late: f64,
    capacity: Capacity,
}

/// Cost with penalties, what was dropped, and bad minutes.
type Value = (f64, f64, f64);

/// USD.
pub(super) fn bound_usd(world: &World) -> f64 {
    let (load, kinds) = relaxed(world);
    if kinds.is_empty() {
        return 0.0;
    }
    best_request_price(&load, &kinds, 0.0, 1.0, Capacity::Fluid).0
}

/// USD; absent where the rule for minutes cannot be stated in the common unit (see the module).
pub(super) fn floor_usd(world: &World, capacity: Capacity) -> Option<f64> {
    let (load, kinds) = relaxed(world);
    if world.services.len() != 1 || kinds.is_empty() || kinds[0].hourly {
        return None;
    }
    let late = 1.0 - world.services[0].slo_quantile;
    let may = BAD_MINUTES * load.iter().filter(|l| **l > 0.0).count() as f64;
    // From nothing to a node for a day: dearer than any minute.
    let (mut low, mut high) = (0.0_f64, kinds.iter().map(|k| k.usd_per_min * 1440.0).fold(0.0, f64::max));
    let mut best = 0.0_f64;
    for _ in 0..BISECTIONS {
        let price = if low == 0.0 { high / 64.0 } else { (low * high).sqrt() };
        let (usd, bad) = best_request_price(&load, &kinds, price, late, capacity);
        best = best.max(usd - price * may);
        if bad > may {
            low = price
        } else {
            high = price
        }
        if low == 0.0 && high < 1e-9 {
            break;
        }
    }
    Some(best.max(best_request_price(&load, &kinds, 0.0, 1.0, capacity).0))
}

/// The largest Lagrangian over the price of a request at a price of a bad minute, and the bad minutes there.
fn best_request_price(load: &[f64], kinds: &[Kind], minute: f64, late: f64, capacity: Capacity) -> (f64, f64) {
    let total: f64 = load.iter().sum();
    // From no price to the dearest that could matter: a whole node for a single request.
    let (mut low, mut high) = (0.0_f64, kinds.iter().map(|k| k.usd_per_min * 1e4 / k.rate).fold(0.0, f64::max));
    let mut best = (0.0_f64, 0.0);
    let mut consider = |request: f64| {
        let (usd, dropped, bad) = solve(load, kinds, Prices { request, minute, late, capacity });
        // `usd` contains what was dropped at its price.
        let value = usd - request * DROPPED * total;
        if value >= best.0 {
            best = (value, bad);
        }
        dropped
    };
    if minute > 0.0 {
        consider(0.0);
    }
    for _ in 0..BISECTIONS {
        let price = if low == 0.0 { high / 1024.0 } else { (low * high).sqrt() };
        if consider(price) > DROPPED * total {
            low = price
        } else {
            high = price
        }
        if low == 0.0 && high < 1e-12 {
            break;
        }
    }
    best
}

/// Load by minute in requests/s of a common unit, and the flavors in that unit.
fn relaxed(world: &World) -> (Vec<f64>, Vec<Kind>) {
    let prices: Vec<_> =
        world.flavors.iter().map(|f| f.prices.iter().map(|p| p.1).fold(f64::INFINITY, f64::min)).collect();
    let flavors: Vec<_> = world
        .flavors
        .iter()
        .zip(&prices)
        .map(|(f, usd)| planner::model::Flavor { usd_per_hour: *usd, ..f.flavor.clone() })
        .collect();
    let units: Vec<Vec<Unit>> = (0..world.services.len())
        .map(|s| Unit::all(world, &flavors, s, CapacityRule::Margin).into_iter().map(|u| u.1).collect())
        .collect();
    let Some(reference) = units.iter().find_map(|u| u.first()).map(|u| u.flavor) else {
        return (Vec::new(), Vec::new());
    };
    let throughput = |s: usize, f: usize| units[s].iter().find(|u| u.flavor == f).map(|u| u.sustained_rps);
    let base = |s: usize| throughput(s, reference).or_else(|| units[s].first().map(|u| u.sustained_rps));
    let mut load = vec![0.0; world.seconds.div_ceil(60)];
    for (s, service) in world.services.iter().enumerate() {
        let Some(base) = base(s) else { continue };
        for (minute, rates) in service.workload.rates.chunks(60).enumerate() {
            load[minute] += rates.iter().map(|r| f64::from(*r)).sum::<f64>() / rates.len() as f64 / base;
        }
    }
    let waits = |f: usize| {
        let unit = units.first().and_then(|of| of.iter().find(|u| u.flavor == f));
        // With batches, an arrival also waits until a worker is free again.
        let lump = |u: &Unit| if u.host.batch > 1 { u.p95_s / f64::from(u.host.workers) } else { 0.0 };
        unit.map_or(0.0, |u| (world.services[0].slo_s - u.p95_s - lump(u)).max(0.0))
    };
    let mut kinds: Vec<Kind> = (0..flavors.len())
        .filter_map(|f| {
            let best = (0..units.len()).filter_map(|s| Some(throughput(s, f)? / base(s)?)).fold(0.0, f64::max);
            let setup_s =
                units.iter().flatten().filter(|u| u.flavor == f).map(|u| u.setup_s).fold(f64::INFINITY, f64::min);
            (best > 0.0).then(|| Kind {
                // Slower machines than their profiles are no secret to a clairvoyant.
                rate: best / (1.0 + world.profile_error),
                usd_per_min: flavors[f].usd_per_hour / 60.0,
                setup_min: setup_s / 60.0,
                hourly: flavors[f].billing == Billing::Hour,
                allowed: waits(f) * base(0).unwrap_or(1.0),
            })
        })
        .collect();
    kinds.sort_by(|a, b| (a.usd_per_min / a.rate).total_cmp(&(b.usd_per_min / b.rate)));
    let mut chosen = worth_having(&load, &kinds);
    chosen.truncate(MOST_FLAVORS);
    (load, chosen)
}

/// The flavors that cover loads between nothing and the peak cheapest, the most useful first.
fn worth_having(load: &[f64], kinds: &[Kind]) -> Vec<Kind> {
    const GRID: usize = 256;
    let peak = load.iter().copied().fold(0.0, f64::max);
    let unit = peak / GRID as f64;
    let weight = |k: &Kind| ((k.rate / unit).floor() as usize).max(1);
    let mut cost = vec![0.0; GRID + 1];
    let mut choice = vec![0; GRID + 1];
    for q in 1..=GRID {
        let price = |k: &Kind| k.usd_per_min + cost[q.saturating_sub(weight(k))];
        let best = (0..kinds.len()).min_by(|&a, &b| price(&kinds[a]).total_cmp(&price(&kinds[b]))).unwrap_or(0);
        cost[q] = price(&kinds[best]);
        choice[q] = best;
    }
    let mut used = vec![0.0; kinds.len()];
    for rate in load {
        let mut q = ((rate / unit).ceil() as usize).min(GRID);
        while q > 0 {
            used[choice[q]] += kinds[choice[q]].usd_per_min;
            q = q.saturating_sub(weight(&kinds[choice[q]]));
        }
    }
    let mut order: Vec<usize> = (0..kinds.len()).filter(|&i| used[i] > 0.0).collect();
    order.sort_by(|&a, &b| used[b].total_cmp(&used[a]));
    order.into_iter().map(|i| kinds[i]).collect()
}

/// Least cost with misses at their prices, what is dropped (in requests per second times minutes), and bad minutes.
fn solve(load: &[f64], kinds: &[Kind], prices: Prices) -> Value {
    if kinds[0].hourly {
        let (usd, dropped) = layers(load, &kinds[0], prices.request);
        (usd, dropped, 0.0)
    } else {
        counts(load, kinds, prices)
    }
}

/// Share of arrivals that a queue with deadline shedding drops (`planner::margin`): `u / (e^{cu} − 1)`.
fn dropped_share(load: f64, rate: f64, allowed: f64) -> f64 {
    if load <= 0.0 || rate <= 0.0 {
        return f64::from(u8::from(load > 0.0));
    }
    let (u, c) = ((rate - load) / load, 2.0 * rate * allowed);
    if (c * u).abs() < 1e-9 { 1.0 / c.max(1.0) } else { (u / (c * u).exp_m1()).clamp(0.0, 1.0) }
}

/// Terms of an hour, one flavor.
fn layers(load: &[f64], kind: &Kind, price: f64) -> (f64, f64) {
    let n = load.len();
    // Whole minutes of set-up; what is less of one is left to the clairvoyant.
    let setup_min = kind.setup_min.floor() as usize;
    let peak = load.iter().copied().fold(0.0, f64::max);
    let term_usd = |t: usize| kind.usd_per_min * 60.min(n - t) as f64;
    let (mut usd, mut dropped) = (0.0, 0.0);
    for layer in 0..(peak / kind.rate).ceil() as usize {
        let part = |t: usize| (load[t] - layer as f64 * kind.rate).clamp(0.0, kind.rate);
        let mut sum = vec![0.0; n + 1];
        (0..n).for_each(|t| sum[t + 1] = sum[t] + part(t));
        // Cost from t on without a term, and at the end of a term; what is dropped with it.
        let mut off = vec![(0.0, 0.0); n + 1];
        let mut on = vec![(0.0, 0.0); n + 1];
        let less = |a: (f64, f64), b: (f64, f64)| if b.0 < a.0 { b } else { a };
        for t in (0..n).rev() {
            let end = (t + 60).min(n);
            let serves = (t + setup_min).min(end);
            let unserved = sum[serves] - sum[t];
            let idle = (price * part(t) + off[t + 1].0, part(t) + off[t + 1].1);
            let start = (term_usd(t) + price * unserved + on[end].0, unserved + on[end].1);
            let renew = (term_usd(t) + on[end].0, on[end].1);
            // Everyone begins with what it wants.
            off[t] = less(idle, if t == 0 { renew } else { start });
            on[t] = less(off[t], renew);
        }
        usd += off[0].0;
        dropped += off[0].1;
    }
    (usd, dropped)
}

/// By the second, up to three flavors.
fn counts(load: &[f64], kinds: &[Kind], prices: Prices) -> Value {
    let peak = load.iter().copied().fold(0.0, f64::max);
    let widest = kinds.iter().map(|k| k.rate).fold(0.0, f64::max);
    let size = |i: usize| {
        let all = (peak / kinds[i].rate).ceil() as usize;
        // The first may carry everything; the others fill up what whole nodes of it leave.
        if i == 0 { all + 1 } else { all.min((widest / kinds[i].rate).ceil() as usize + 1) + 1 }
    };
    let dims: Vec<usize> = (0..MOST_FLAVORS).map(|i| if i < kinds.len() { size(i) } else { 1 }).collect();
    let of = |i: usize, f: fn(&Kind) -> f64| kinds.get(i).map_or(0.0, f);
    let cells = dims.iter().product::<usize>();
    let (mut usd, mut rate) = (vec![0.0; cells], vec![0.0; cells]);
    let mut allowed = vec![f64::INFINITY; cells];
    for (cell, ((usd, rate), allowed)) in usd.iter_mut().zip(&mut rate).zip(&mut allowed).enumerate() {
        let at = [cell / (dims[1] * dims[2]), cell / dims[2] % dims[1], cell % dims[2]];
        for (i, n) in at.into_iter().enumerate() {
            *usd += n as f64 * of(i, |k| k.usd_per_min);
            *rate += n as f64 * of(i, |k| k.rate);
            if n > 0 {
                *allowed = allowed.min(of(i, |k| k.allowed));
            }
        }
    }
    let strides = [dims[1] * dims[2], dims[2], 1];
    // Value and drops from a minute on, by the counts that serve in it; ties and signs follow the value.
    let mut value = vec![(0.0_f64, 0.0_f64, 0.0_f64); cells];
    for t in (0..load.len()).rev() {
        for axis in 0..kinds.len() {
            let start_usd = kinds[axis].usd_per_min * kinds[axis].setup_min;
            let (stride, len) = (strides[axis], dims[axis]);
            for cell in 0..cells {
                // Descending along the axis: more nodes later cost their set-up each.
                let cell = cells - 1 - cell;
                if (cell / stride) % len + 1 < len {
                    let (more, drops, bad) = value[cell + stride];
                    if more + start_usd < value[cell].0 {
                        value[cell] = (more + start_usd, drops, bad);
                    }
                }
            }
            for cell in 0..cells {
                // Ascending: fewer nodes later are free.
                if (cell / stride) % len > 0 && value[cell - stride].0 < value[cell].0 {
                    value[cell] = value[cell - stride];
                }
            }
        }
        for (cell, v) in value.iter_mut().enumerate() {
            let short = match prices.capacity {
                Capacity::Fluid => (load[t] - rate[cell]).max(0.0),
                Capacity::Queue => load[t] * dropped_share(load[t], rate[cell], allowed[cell]),
            };
            let bad = f64::from(u8::from(short > prices.late * load[t]));
            v.0 += usd[cell] + prices.request * short + prices.minute * bad;
            v.1 += short;
            v.2 += bad;
        }
    }
    value.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(rate: f64, usd_per_min: f64, setup_min: f64, hourly: bool) -> Kind {
        Kind { rate, usd_per_min, setup_min, hourly, allowed: 1.0 }
    }

    /// All schedules of a small instance, tried one by one.
    #[test]
    fn the_programme_is_as_good_as_trying_everything() {
        let (load, price) = ([3.0, 9.0, 1.0, 7.0, 7.0, 0.0], 0.4);
        let kinds = [kind(4.0, 1.0, 1.0, false), kind(1.5, 0.5, 1.0, false)];
        let states: Vec<(usize, usize)> = (0..4).flat_map(|a| (0..5).map(move |b| (a, b))).collect();
        let mut best: Vec<f64> = vec![0.0; states.len()];
        for (t, load) in load.iter().enumerate().rev() {
            let stage = |&(a, b): &(usize, usize)| {
                let carried = a as f64 * 4.0 + b as f64 * 1.5;
                let short = (load - carried).max(0.0);
                let bad = if short > 0.05 * load { 0.7 } else { 0.0 };
                a as f64 + b as f64 * 0.5 + price * short + bad
            };
            let go = |&(a, b): &(usize, usize)| {
                let next = states
                    .iter()
                    .zip(&best)
                    .map(|(&(x, y), v)| v + x.saturating_sub(a) as f64 + y.saturating_sub(b) as f64 * 0.5);
                next.fold(f64::INFINITY, f64::min)
            };
            let last = t + 1 == 6;
            best = states.iter().map(|s| stage(s) + if last { 0.0 } else { go(s) }).collect();
        }
        let expected = best.into_iter().fold(f64::INFINITY, f64::min);
        let (usd, dropped, bad) =
            counts(&load, &kinds, Prices { request: price, minute: 0.7, late: 0.05, capacity: Capacity::Fluid });
        assert!((usd - expected).abs() < 1e-9, "{usd} {expected}");
        assert!(dropped > 0.0 && bad > 0.0, "at this price the last requests are not worth a node");
    }

    #[test]
    fn terms_of_an_hour_are_paid_whole_and_renewed_without_set_up() {
        let load: Vec<f64> = (0..240).map(|t| if (60..170).contains(&t) { 1.0 } else { 0.0 }).collect();
        // Two terms, the first ordered two minutes early; nothing is dropped at a high price.
        let (usd, dropped) = layers(&load, &kind(1.0, 1.0, 2.0, true), 1e3);
        assert_eq!((usd, dropped), (120.0, 0.0));
        // Two terms for an hour and a minute do not pay when a dropped minute is cheaper.
        let (usd, dropped) = layers(&load[..121], &kind(1.0, 1.0, 0.0, true), 0.5);
        assert!((usd - 30.5).abs() < 1.1 && dropped >= 1.0, "{usd} {dropped}");
    }
}
