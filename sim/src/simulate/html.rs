//! The page of a simulation: what an operator would look at to decide. Self-contained, without scripts.

use super::{Report, Run};

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 150.0;
const COLORS: [&str; 6] = ["#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2"];
/// Points of a curve at most; more are not seen.
const POINTS: usize = 480;

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let rows: String = report.runs.iter().map(|run| row(report, run)).collect();
    let plots: String = report.runs.iter().map(|run| plots(report, run)).collect();
    format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{name} — barista simulate</title><style>{STYLE}</style></head><body><h1>{name}</h1>\
         <p>Seed {seed}, {days:.2} days. No policy that answers 99 % of requests can cost less than <b>{bound:.2} USD</b> \
         (load known in advance, no queueing, whole nodes, set-up paid){floor}.</p><table><thead><tr>\
         <th>policy<th>shedding<th>USD<th>× bound<th>in SLO<th>minutes ok<th>p50 ms<th>p95 ms<th>p99 ms<th>starts\
         <th>changes<th>wasted</tr></thead><tbody>{rows}</tbody></table>{plots}</body></html>\n",
        name = escape(&report.scenario),
        seed = report.seed,
        days = report.days,
        bound = report.bound_usd,
        floor = report.floor_usd.zip(report.queueing_usd).map_or(String::new(), |(floor, queueing)| {
            format!("; {floor:.2} USD when 98 % of the minutes must be good too, about {queueing:.2} USD when requests queue")
        }),
    )
}

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1020px;margin:2em auto;padding:0 1em;color:#111;\
background:#fff}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{padding:.25em .5em;\
text-align:right;border-bottom:1px solid #ddd}th:first-child,td:first-child{text-align:left}.good{color:#047857}\
.bad{color:#b91c1c}h2{margin:2em 0 .2em}svg{width:100%;height:auto;display:block}text{font-size:11px;fill:#555}\
figcaption{color:#333;font-size:13px;margin-top:.6em}figure{margin:0}\
@media(prefers-color-scheme:dark){body{background:#111;color:#eee}th,td{border-color:#333}figcaption{color:#ccc}\
text{fill:#aaa}.good{color:#34d399}.bad{color:#f87171}}";

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

/// Curves over the same time, each thinned to its maxima, and a level.
fn plot(curves: &[(String, Vec<f64>)], level: Option<f64>, days: f64) -> String {
    let thin = |values: &[f64]| -> Vec<f64> {
        let each = values.len().div_ceil(POINTS).max(1);
        values.chunks(each).map(|c| c.iter().copied().fold(0.0, f64::max)).collect()
    };
    let thinned: Vec<Vec<f64>> = curves.iter().map(|c| thin(&c.1)).collect();
    let top = thinned.iter().flatten().copied().chain(level).fold(0.0, f64::max).max(1e-9) * 1.05;
    let (left, bottom) = (46.0, 18.0);
    let x = |i: usize, n: usize| left + (WIDTH - left) * i as f64 / n.saturating_sub(1).max(1) as f64;
    let y = |v: f64| (HEIGHT - bottom) * (1.0 - v / top);
    let mut drawing = String::new();
    for part in [0.0, 0.5, 1.0] {
        let value = top / 1.05 * part;
        drawing.push_str(&format!(
            "<line x1={left} x2={WIDTH} y1={0:.1} y2={0:.1} stroke=#8883 /><text x={1} y={2:.1} text-anchor=end>{3}</text>",
            y(value),
            left - 6.0,
            y(value) + 4.0,
            if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
        ));
    }
    for day in 0..=(days.floor() as usize).min(31) {
        let at = left + (WIDTH - left) * day as f64 / days.max(1e-9);
        drawing.push_str(&format!("<text x={at:.1} y={:.1}>day {day}</text>", HEIGHT - 3.0));
    }
    if let Some(level) = level {
        drawing.push_str(&format!(
            "<line x1={left} x2={WIDTH} y1={0:.1} y2={0:.1} stroke=#dc2626 stroke-dasharray=\"4 3\"/>",
            y(level)
        ));
    }
    for (i, values) in thinned.iter().enumerate() {
        let points: Vec<String> =
            values.iter().enumerate().map(|(k, v)| format!("{:.1},{:.1}", x(k, values.len()), y(*v))).collect();
        drawing.push_str(&format!(
            "<polyline fill=none stroke=\"{}\" stroke-width=1.3 points=\"{}\"/>",
            COLORS[i % COLORS.len()],
            points.join(" ")
        ));
    }
    let legend: Vec<String> = curves
        .iter()
        .enumerate()
        .map(|(i, c)| format!("<span style=\"color:{}\">■</span> {}", COLORS[i % COLORS.len()], escape(&c.0)))
        .collect();
    format!(
        "<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img>{drawing}</svg></figure>",
        legend.join(" &nbsp; ")
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
