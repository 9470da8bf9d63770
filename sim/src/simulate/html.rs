//! The page of a simulation: what an operator would look at to decide. Self-contained, without scripts.
//!
//! First the answer (the cheapest policy that meets the objective), then the table with what each number means, then a
//! policy at a time load over capacity, nodes and latency; all but the answer and `ours` are folded.

use super::{Report, Run};
use runtime::page::{self, Chart, Layer, escape};

const HEIGHT: f64 = 150.0;
/// Share of requests and of minutes that must be good.
const OBJECTIVE: (f64, f64) = (0.99, 0.98);
/// Latency beyond so many SLOs is drawn at the edge.
const MOST_SLO: f64 = 2.0;

const COLUMNS: &str = "<table><thead><tr><th>policy<th>shedding<th>USD<th>USD / million<th>× bound<th>in SLO\
    <th>minutes ok<th>p50 ms<th>p95 ms<th>p99 ms<th>shed<th>cold starts<th>plan changes<th>wasted</tr></thead><tbody>";

const MEANINGS: &str = "<details><summary>What the numbers mean</summary><table class=words>\
    <tr><td>shedding<td>the executor refuses, at its door or in its queue, what would be late; without it all requests wait their turn\
    <tr><td>USD<td>leases from order to end, by their terms and the price of the time; the run's whole length\
    <tr><td>USD / million<td>that, for a million requests that arrived\
    <tr><td>× bound<td>USD, over what nobody can go below while answering 99 % of the requests\
    <tr><td>in SLO<td>share of all requests answered within the SLO; shed, lost and late ones are misses (≥ 99 % is green)\
    <tr><td>minutes ok<td>share of minutes in which the SLO's quantile met it, of all that arrived in them (≥ 98 % is green)\
    <tr><td>p50, p95, p99<td>latency of the requests that were answered, milliseconds\
    <tr><td>shed<td>share of requests refused\
    <tr><td>cold starts<td>nodes ordered after the begin\
    <tr><td>plan changes<td>orders, ends, and changes of what a node serves\
    <tr><td>wasted<td>share of the worker time paid for in which nothing was computed, set-up included\
    </table></details>";

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let best = best(report);
    // Those that meet the objective first, the cheaper before the dearer.
    let mut order: Vec<usize> = (0..report.runs.len()).collect();
    let usd = |at: usize| report.runs[at].outcome.cost_usd;
    order.sort_by(|a, b| meets(&report.runs[*b]).cmp(&meets(&report.runs[*a])).then(usd(*a).total_cmp(&usd(*b))));
    let rows: String = order.iter().map(|&at| row(report, at, best == Some(at))).collect();
    let plots: String = order.iter().map(|&at| plots(report, at, best)).collect();
    let body = format!(
        "<style>td{{white-space:nowrap}}.words td:last-child{{text-align:left;white-space:normal}}tr.best{{font-weight:600}}summary{{cursor:pointer}}\
         summary h2{{display:inline-block;font-size:1.1em;margin:.8em 0 .2em}}</style>\
         <h1>{name}</h1><p class=dim>{days:.2} days, {requests} million requests, seed {seed}; {objectives}</p><p>{verdict}</p>\
         <p>No policy that answers 99 % of the requests in time can cost less than <b>{bound:.2} USD</b>: load known in \
         advance, no queueing, whole nodes, set-up paid{floor}.</p>\
         <div class=wide>{COLUMNS}{rows}</tbody></table></div>{MEANINGS}{plots}",
        name = escape(&report.scenario),
        days = report.days,
        requests = report.runs.first().map_or(String::new(), |r| format!("{:.3}", r.outcome.requests as f64 / 1e6)),
        objectives = escape(&report.objectives.join(", ")),
        seed = report.seed,
        verdict = verdict(report, best),
        bound = report.bound_usd,
        floor = report.floor_usd.zip(report.queueing_usd).map_or(String::new(), |(floor, queueing)| {
            format!("; {floor:.2} USD when 98 % of the minutes must be good too, about {queueing:.2} USD when requests also queue")
        }),
    );
    page::page(&format!("{} — barista simulate", report.scenario), &body)
}

fn meets(run: &Run) -> bool {
    run.outcome.attainment >= OBJECTIVE.0 && run.outcome.minutes_ok >= OBJECTIVE.1
}

/// The cheapest that meets the objective. The oracle knows the future and cannot be had.
fn best(report: &Report) -> Option<usize> {
    let may = |at: &usize| meets(&report.runs[*at]) && !report.runs[*at].outcome.policy.starts_with("oracle");
    let usd = |at: usize| report.runs[at].outcome.cost_usd;
    (0..report.runs.len()).filter(may).min_by(|a, b| usd(*a).total_cmp(&usd(*b)))
}

fn named(run: &Run) -> String {
    format!("{}{}", escape(&run.outcome.policy), if run.shedding { " with shedding" } else { "" })
}

fn verdict(report: &Report, best: Option<usize>) -> String {
    let Some(best) = best else {
        return "<span class=bad>None of these policies answers 99 % of the requests in time with 98 % of the minutes good.</span>".to_owned();
    };
    let run = &report.runs[best];
    let month = run.outcome.cost_usd / report.days.max(1e-9) * 30.0;
    format!(
        "Cheapest that answers 99 % of the requests in time with 98 % of the minutes good: <b class=good>{}</b> at \
         <b>{:.2} USD</b>, {month:.0} USD for 30 such days.",
        named(run),
        run.outcome.cost_usd
    )
}

fn row(report: &Report, at: usize, best: bool) -> String {
    let run = &report.runs[at];
    let o = &run.outcome;
    let mark = |good: bool| if good { "good" } else { "bad" };
    let requests = o.requests.max(1) as f64;
    format!(
        "<tr{}><td>{}<td>{}<td>{:.2}<td>{:.2}<td>{:.3}<td class={}>{:.2} %<td class={}>{:.2} %<td>{:.0}<td>{:.0}<td>{:.0}\
         <td>{:.2} %<td>{}<td>{}<td>{:.0} %</tr>",
        if best { " class=best" } else { "" },
        escape(&o.policy),
        if run.shedding { "yes" } else { "no" },
        o.cost_usd,
        o.cost_usd / requests * 1e6,
        o.cost_usd / report.bound_usd,
        mark(o.attainment >= OBJECTIVE.0),
        o.attainment * 100.0,
        mark(o.minutes_ok >= OBJECTIVE.1),
        o.minutes_ok * 100.0,
        o.p50_ms,
        o.p95_ms,
        o.p99_ms,
        o.shed as f64 / requests * 100.0,
        o.cold_starts,
        o.plan_changes,
        o.wasted * 100.0
    )
}

fn plots(report: &Report, at: usize, best: Option<usize>) -> String {
    let run = &report.runs[at];
    let o = &run.outcome;
    let open =
        if best == Some(at) || (o.policy == "ours" && run.shedding) || report.runs.len() <= 2 { " open" } else { "" };
    let latency: Vec<f64> = o.curve.iter().map(|c| f64::from(c.p95_s).min(MOST_SLO)).collect();
    let latency = vec![Layer::Curve { name: String::new(), color: 3, points: over(report.days, &latency) }];
    format!(
        "<details{open}><summary><h2>{}: {:.2} USD, {:.2} % in SLO</h2></summary>{}{}{}</details>",
        named(run),
        o.cost_usd,
        o.attainment * 100.0,
        capacity(report, run),
        nodes(report, run),
        chart(
            report,
            "p95 latency of each minute, in SLOs; the broken line is the SLO",
            latency.into_iter().chain([Layer::Level(1.0)]).collect(),
            Some(MOST_SLO)
        )
    )
}

/// Load over what the ready nodes carry, flavor upon flavor; without the latter for several services, which share nodes.
fn capacity(report: &Report, run: &Run) -> String {
    let o = &run.outcome;
    let load: Vec<f64> = o.load.iter().map(|v| f64::from(*v)).collect();
    let curve = Layer::Curve { name: "load".to_owned(), color: 0, points: over(report.days, &load) };
    let Some(rps) = &report.capacity_rps else {
        return chart(report, "requests/s, all services", vec![curve], None);
    };
    let mut below = vec![0.0; o.curve.len()];
    let mut layers = Vec::new();
    for (flavor, name) in report.flavors.iter().enumerate() {
        let above: Vec<f64> =
            below.iter().zip(&o.curve).map(|(b, c)| b + f64::from(c.nodes[flavor]) * rps[flavor]).collect();
        if above != below {
            let band = over(report.days, &below).into_iter().zip(&above).map(|((x, low), high)| (x, low, *high));
            let name = format!("capacity of {name} ({:.0} a node)", rps[flavor]);
            layers.push(Layer::Band { name, color: flavor + 1, opacity: 0.3, points: band.collect() });
        }
        below = above;
    }
    layers.push(curve);
    chart(report, "requests/s; capacity is what ready nodes work off at their best batch", layers, None)
}

fn nodes(report: &Report, run: &Run) -> String {
    let of = |(flavor, name): (usize, &String)| {
        let values: Vec<f64> = run.outcome.curve.iter().map(|c| f64::from(c.nodes[flavor])).collect();
        let used = values.iter().any(|n| *n > 0.0);
        used.then(|| Layer::Curve { name: name.clone(), color: flavor + 1, points: over(report.days, &values) })
    };
    chart(report, "ready nodes", report.flavors.iter().enumerate().filter_map(of).collect(), None)
}

/// Values of each minute over days.
fn over(days: f64, values: &[f64]) -> Vec<(f64, f64)> {
    let step = days / values.len().max(1) as f64;
    values.iter().enumerate().map(|(i, value)| (i as f64 * step, *value)).collect()
}

fn chart(report: &Report, caption: &str, layers: Vec<Layer>, top: Option<f64>) -> String {
    let days = report.days;
    let ticks = if days <= 2.0 {
        let every = if days <= 0.25 { 1 } else { 3 };
        (0..=(days * 24.0) as usize).step_by(every).map(|h| (h as f64 / 24.0, format!("{h} h"))).collect()
    } else {
        let every = (days / 31.0).ceil().max(1.0) as usize;
        (0..=days as usize).step_by(every).map(|day| (day as f64, format!("day {day}"))).collect()
    };
    Chart { caption: caption.to_owned(), x: (0.0, days), ticks, bottom: 0.0, top, height: HEIGHT, layers }.figure()
}
