//! Metrics of the dashboard itself; what the page shows is other roles' metrics.

use super::state::Applied;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use runtime::SharedRegistry;
use runtime::metrics::with_registry;

/// What became of records: five values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// Handles; clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Metrics {
    records: Family<OutcomeLabel, Counter>,
    /// Streams open now.
    pub(super) streams: Gauge,
    /// Streams refused because too many were open.
    pub(super) streams_refused: Counter,
    /// Sources opened again after an error.
    pub(super) reopened: Counter,
}

impl Metrics {
    pub(super) fn register(registry: &SharedRegistry) -> Self {
        let metrics = Metrics::default();
        with_registry(registry, |r| {
            let records = metrics.records.clone();
            r.register("barista_dashboard_records", "records read, by what became of them", records);
            r.register("barista_dashboard_streams", "pages connected now", metrics.streams.clone());
            let refused = metrics.streams_refused.clone();
            r.register("barista_dashboard_streams_refused", "pages refused: too many connected", refused);
            r.register("barista_dashboard_reopened", "sources opened again after an error", metrics.reopened.clone());
        });
        metrics
    }

    pub(super) fn record(&self, applied: Applied) {
        let outcome = match applied {
            Applied::Taken => "taken",
            Applied::Stale => "stale",
            Applied::Unknown => "unknown",
            Applied::Unreadable => "unreadable",
            Applied::LeftOut => "left_out",
        };
        self.records.get_or_create(&OutcomeLabel { outcome }).inc();
    }
}
