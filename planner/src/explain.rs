//! `barista plan --explain`: one decision from recorded inputs, for a program and for a person.
//!
//! Invariant: the same function as in the service decides; nothing here changes a number.

use crate::model::{Plan, PlanInputs};
use crate::plan;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use schemas::allocation::{NodePlan, ServicePlan};
use serde::Serialize;

/// Columns of the table for a person.
const WIDTH: u16 = 140;

/// A decision with everything that led to it. Serialises to the documented answer: `services` with `demand_rps`,
/// `margin_rps`, `options`, `chosen`, `bound_by`; `cost_usd_per_hour`; `shortfall_rps`; and more.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Explanation(pub Plan);

/// Decides and keeps the reasons. The inputs should be sound ([`PlanInputs::problems`]).
pub fn explain(inputs: &PlanInputs) -> Explanation {
    Explanation(plan(inputs))
}

impl Explanation {
    /// For a person, in lines of about [`WIDTH`] columns.
    pub fn table(&self) -> String {
        let plan = &self.0;
        let mut out: String = plan.services.iter().map(service_text).collect();
        if !plan.nodes.is_empty() {
            let mut table = table(&["node", "flavor", "action", "instances", "usd/h", "why"]);
            for node in &plan.nodes {
                table.add_row(node_row(node));
            }
            right(&mut table, &[4]);
            out.push_str(&format!("{table}\n"));
        }
        let (usd, short) = (plan.cost_usd_per_hour, plan.shortfall_rps);
        out.push_str(&format!("cost {usd:.4} USD per hour, short by {short:.1} requests/s"));
        out
    }
}

fn service_text(service: &ServicePlan) -> String {
    let chosen = service.chosen.as_deref().unwrap_or("none");
    let summary = format!(
        "  demand {:.1} (quantile {}) + margin {:.1} requests/s, looking {:.0} s ahead; chosen {chosen}, bound by {}",
        service.demand_rps,
        service.quantile,
        service.margin_rps,
        service.lead_ms as f64 / 1000.0,
        service.bound_by
    );
    let header = [
        "flavor",
        "backend",
        "workers",
        "batch",
        "p95 ms",
        "per SLO",
        "sustains/s",
        "carries/s",
        "usd/million",
        "why not",
    ];
    let mut table = table(&header);
    for o in &service.options {
        let number = |value: String| if o.infeasible.is_some() { String::new() } else { value };
        table.add_row([
            o.flavor.clone(),
            if o.estimated { format!("{} (estimated)", o.backend) } else { o.backend.clone() },
            number(o.workers.to_string()),
            number(o.batch.to_string()),
            number(format!("{:.2}", o.p95_ms)),
            number(o.requests_per_slo.to_string()),
            number(format!("{:.1}", o.sustained_rps)),
            number(format!("{:.1}", o.capacity_rps)),
            number(format!("{:.4}", o.usd_per_million)),
            o.infeasible.clone().unwrap_or_default(),
        ]);
    }
    right(&mut table, &[2, 3, 4, 5, 6, 7, 8]);
    format!("{}: {}\n{summary}\n{table}\n\n", service.service, service.reason)
}

fn node_row(node: &NodePlan) -> [String; 6] {
    let instances: Vec<String> = node.instances.iter().map(|i| format!("{} x{}", i.service, i.workers)).collect();
    [
        node.node.clone(),
        node.flavor.clone(),
        format!("{:?}", node.action).to_lowercase(),
        instances.join(", "),
        format!("{:.4}", node.usd_per_hour),
        node.reason.clone(),
    ]
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_width(WIDTH).set_header(header.to_vec());
    table
}

fn right(table: &mut Table, columns: &[usize]) {
    for &column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand, as an operator would write it.
    const INPUTS: &str = r#"{
        "now_ms": 1000,
        "settings": {"overhead_ms": 0},
        "services": [{"name": "delay", "model": "delay.onnx", "slo_ms": 200,
            "load": {"observed": {"start_ms": -19000, "window_ms": 20000, "rate_rps": 100}}}],
        "flavors": [
            {"name": "c4", "cores": 4, "usd_per_hour": 0.2},
            {"name": "g4", "cores": 4, "gpus": 1, "usd_per_hour": 0.5}],
        "profiles": [{"service": "delay", "profile": {"model": "delay.onnx", "sha256": "", "backend": "tract",
            "host": "here", "load_ms": 20, "memory_mib": 10,
            "points": [{"workers": 1, "batch": 1, "p50_ms": 9, "p95_ms": 10, "p99_ms": 12, "rps": 100}]}}]
    }"#;

    fn inputs(json: &str) -> PlanInputs {
        serde_json::from_str(json).expect("inputs")
    }

    #[test]
    fn the_answer_has_the_documented_keys() {
        let json = serde_json::to_value(explain(&inputs(INPUTS))).expect("serialises");
        let service = &json["services"][0];
        assert_eq!((service["service"].as_str(), service["chosen"].as_str()), (Some("delay"), Some("c4")));
        // No forecast: observed and two standard deviations of a Poisson count over 20 s.
        assert!((service["demand_rps"].as_f64().expect("number") - (100.0 + 2.0 * 5f64.sqrt())).abs() < 1e-9);
        assert!(service["margin_rps"].as_f64().expect("number") > 0.0);
        assert_eq!(service["bound_by"], "demand");
        let option = &service["options"][0];
        for key in ["flavor", "backend", "batch", "usd_per_million"] {
            assert!(!option[key].is_null(), "{key}");
        }
        assert_eq!(json["cost_usd_per_hour"], 0.2);
        assert_eq!(json["shortfall_rps"], 0.0);
    }

    #[test]
    fn the_text_says_the_same_to_a_person() {
        let text = explain(&inputs(INPUTS)).table();
        for part in ["delay: ", "bound by demand", "c4", "start for delay", "cost 0.2000 USD per hour"] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(text.lines().all(|l| l.chars().count() <= 400));
    }

    #[test]
    fn options_that_rest_on_an_estimate_are_marked() {
        let plain = explain(&inputs(INPUTS));
        assert!(
            !plain.table().contains("estimated") && !serde_json::to_string(&plain).expect("json").contains("estimated")
        );
        let cuda = INPUTS.replace("\"backend\": \"tract\"", "\"backend\": \"cuda\", \"estimated\": true");
        let told = explain(&inputs(&cuda));
        let options = &told.0.services[0].options;
        let marked: Vec<(&str, bool)> = options.iter().map(|o| (o.flavor.as_str(), o.estimated)).collect();
        // The flavor without a GPU has no profile to rest on.
        assert_eq!(marked, [("g4", true), ("c4", false)]);
        assert_eq!(told.0.services[0].chosen.as_deref(), Some("g4"));
        assert!(told.table().contains("cuda (estimated)"), "{}", told.table());
        assert_eq!(serde_json::to_value(&told).expect("json")["services"][0]["options"][0]["estimated"], true);
    }

    #[test]
    fn bad_inputs_name_the_field() {
        let error = serde_json::from_str::<PlanInputs>(&INPUTS.replace("slo_ms", "slo")).expect_err("typo").to_string();
        assert!(error.contains("unknown field `slo`"), "{error}");
        let problems = inputs(&INPUTS.replace("\"slo_ms\": 200", "\"slo_ms\": 0")).problems();
        assert_eq!(problems, ["services[0].slo_p95_ms: must be positive"]);
    }
}
