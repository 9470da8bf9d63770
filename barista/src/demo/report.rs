//! The JSON summary of a demo, and its progress lines.

use super::observer::{Shared, Tally, lock};
use super::settings::Prepared;
use super::{Demo, reactive};
use serde_json::{Value, json};

/// The summary. Every figure is counted from records, but `telemetry.published` (the city's acknowledged messages) and
/// `telemetry.duplicates` (ingest's own count of copies it dropped).
pub(super) fn build(
    shared: &Shared,
    ingest: &ingest::Counts,
    published: u64,
    seconds: f64,
    demo: &Demo,
    prepared: &Prepared,
) -> Value {
    let seen = lock(shared);
    let totals = seen.accounts.totals();
    let cost = seen.cost;
    let reactive = reactive::usd(&seen.observed, prepared);
    json!({
        "seconds": seconds,
        "speed": demo.speed,
        "seed": demo.seed,
        "simulated": prepared.banner,
        "telemetry": {
            "published": published,
            "ingested": seen.telemetry,
            "rejected": seen.telemetry_rejected,
            "duplicates": ingest.duplicates,
        },
        "windows": {"closed": seen.windows},
        "forecasts": {"made": seen.forecasts},
        "plans": {"published": seen.plans},
        "requests": {
            "sent": totals.sent,
            "answered": totals.answered,
            "rejected": totals.rejected,
            "lost": totals.lost + seen.send_failures,
            "duplicates": totals.duplicates,
        },
        "slo": seen.accounts.reports(),
        "scaling": {"horizontal": seen.horizontal, "vertical": seen.vertical, "events": seen.events},
        "cost": {
            "usd": cost.map(|c| c.usd),
            "usd_static_peak": cost.map(|c| c.usd_static_peak),
            "usd_reactive": reactive.as_ref().ok(),
            "usd_reactive_note": reactive.as_ref().map_or_else(|why| format!("null: {why}"), |_| reactive::note()),
        },
    })
}

/// One progress line.
pub(super) fn line(now: &Tally, before: &Tally, seconds: f64) -> String {
    let rate = |a: u64, b: u64| (a.saturating_sub(b)) as f64 / seconds;
    let latency: Vec<String> = now
        .p95_ms
        .iter()
        .map(|(service, p95, slo)| match p95 {
            Some(p95) => format!("{service} p95 {p95:.0}/{slo:.0} ms"),
            None => format!("{service} p95 -/{slo:.0} ms"),
        })
        .collect();
    format!(
        "telemetry {:5.0}/s  requests {:4.0}/s  {}  rejected {}  open {}  nodes {}  ${:.3}/h  plans {}  forecasts {}",
        rate(now.telemetry, before.telemetry),
        rate(now.totals.sent, before.totals.sent),
        latency.join("  "),
        now.totals.rejected,
        now.totals.lost,
        now.nodes,
        now.usd_per_hour,
        now.plans,
        now.forecasts,
    )
}
