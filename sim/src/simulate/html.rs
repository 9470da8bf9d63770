//! The page of a simulation: what an operator would look at to decide. Self-contained, without scripts.

use super::{Report, Run};
use runtime::page::{self, Chart, Layer, escape};

const HEIGHT: f64 = 150.0;

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let rows: String = report.runs.iter().map(|run| row(report, run)).collect();
    let plots: String = report.runs.iter().map(|run| plots(report, run)).collect();
    let body = format!(
        "<h1>{name}</h1>\
         <p>Seed {seed}, {days:.2} days. No policy that answers 99 % of requests can cost less than <b>{bound:.2} USD</b> \
         (load known in advance, no queueing, whole nodes, set-up paid){floor}.</p><table><thead><tr>\
         <th>policy<th>shedding<th>USD<th>× bound<th>in SLO<th>minutes ok<th>p50 ms<th>p95 ms<th>p99 ms<th>starts\
         <th>changes<th>wasted</tr></thead><tbody>{rows}</tbody></table>{plots}",
        name = escape(&report.scenario),
        seed = report.seed,
        days = report.days,
        bound = report.bound_usd,
        floor = report.floor_usd.zip(report.queueing_usd).map_or(String::new(), |(floor, queueing)| {
            format!("; {floor:.2} USD when 98 % of the minutes must be good too, about {queueing:.2} USD when requests queue")
        }),
    );
    page::page(&format!("{} — barista simulate", report.scenario), &body)
}

fn row(report: &Report, run: &Run) -> String {
    let o = &run.outcome;
    let mark = |good: bool| if good { "good" } else { "bad" };
    format!(
        "<tr><td>{}<td>{}<td>{:.2}<td>{:.3}<td class={}>{:.2} %<td class={}>{:.2} %<td>{:.0}<td>{:.0}<td>{:.0}<td>{}<td>{}<td>{:.0} %</tr>",
        escape(&o.policy),
        if run.shedding { "yes" } else { "no" },
        o.cost_usd,
        o.cost_usd / report.bound_usd,
        mark(o.attainment >= 0.99),
        o.attainment * 100.0,
        mark(o.minutes_ok >= 0.98),
        o.minutes_ok * 100.0,
        o.p50_ms,
        o.p95_ms,
        o.p99_ms,
        o.cold_starts,
        o.plan_changes,
        o.wasted * 100.0
    )
}

fn plots(report: &Report, run: &Run) -> String {
    let o = &run.outcome;
    let load = vec![("load, requests/s".to_owned(), o.load.iter().map(|v| f64::from(*v)).collect::<Vec<_>>())];
    let nodes =
        report.flavors.iter().enumerate().map(|(f, name)| {
            (format!("{name}, nodes"), o.curve.iter().map(|c| f64::from(c.nodes[f])).collect::<Vec<_>>())
        });
    let latency =
        vec![("p95 latency, share of the SLO".to_owned(), o.curve.iter().map(|c| f64::from(c.p95_s)).collect())];
    let shedding = if run.shedding { ", with shedding" } else { "" };
    format!(
        "<h2>{}{shedding}</h2>{}{}{}",
        escape(&o.policy),
        plot(&load, None, report.days),
        plot(&nodes.collect::<Vec<_>>(), None, report.days),
        plot(&latency, Some(1.0), report.days)
    )
}

/// Curves over the same time, and a level.
fn plot(curves: &[(String, Vec<f64>)], level: Option<f64>, days: f64) -> String {
    let curve = |(color, (name, values)): (usize, &(String, Vec<f64>))| {
        let day = days / values.len().saturating_sub(1).max(1) as f64;
        let points = values.iter().enumerate().map(|(i, value)| (i as f64 * day, *value)).collect();
        Layer::Curve { name: name.clone(), color, points }
    };
    Chart {
        caption: String::new(),
        x: (0.0, days),
        ticks: (0..=(days.floor() as usize).min(31)).map(|day| (day as f64, format!("day {day}"))).collect(),
        bottom: 0.0,
        top: None,
        height: HEIGHT,
        layers: curves.iter().enumerate().map(curve).chain(level.map(Layer::Level)).collect(),
    }
    .figure()
}
