//! `barista_aggregate_*`. Labels are bounded by the configuration: queries, services, and fixed reasons.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use runtime::SharedRegistry;
use runtime::metrics::{latency_histogram, with_registry};
use std::sync::atomic::AtomicU64;

/// One query.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct QueryLabels {
    /// Name of the query.
    pub query: String,
}

/// One query and a reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    /// Name of the query.
    pub query: String,
    /// `late`, `ahead`, `untimed` or `failed`.
    pub reason: &'static str,
}

/// A reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabels {
    /// Why a record could not be decoded.
    pub reason: &'static str,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ServiceLabels {
    /// Prediction service.
    pub service: String,
}

/// Metrics of the role; clones share the values.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) records_in: Counter,
    pub(crate) bytes_in: Counter,
    pub(crate) decode_errors: Family<ReasonLabels, Counter>,
    pub(crate) rows_in: Family<QueryLabels, Counter>,
    pub(crate) rows_dropped: Family<DropLabels, Counter>,
    pub(crate) rows_out: Family<QueryLabels, Counter>,
    pub(crate) rows_skipped: Family<QueryLabels, Counter>,
    pub(crate) rows_zeroed: Family<QueryLabels, Counter>,
    pub(crate) windows_closed: Family<QueryLabels, Counter>,
    pub(crate) windows_failed: Family<QueryLabels, Counter>,
    pub(crate) watermark_delay: Family<QueryLabels, Gauge<f64, AtomicU64>>,
    pub(crate) open_panes: Family<QueryLabels, Gauge>,
    pub(crate) state_bytes: Family<QueryLabels, Gauge>,
    pub(crate) snapshot_bytes: Counter,
    pub(crate) commit_seconds: Histogram,
    pub(crate) paused_partitions: Gauge,
    pub(crate) arrivals: Family<ServiceLabels, Counter>,
    pub(crate) intervals_closed: Counter,
}

impl Metrics {
    /// Registers all.
    pub fn register(registry: &SharedRegistry) -> Self {
        let metrics = Metrics {
            records_in: Counter::default(),
            bytes_in: Counter::default(),
            decode_errors: Family::default(),
            rows_in: Family::default(),
            rows_dropped: Family::default(),
            rows_out: Family::default(),
            rows_skipped: Family::default(),
            rows_zeroed: Family::default(),
            windows_closed: Family::default(),
            windows_failed: Family::default(),
            watermark_delay: Family::default(),
            open_panes: Family::default(),
            state_bytes: Family::default(),
            snapshot_bytes: Counter::default(),
            commit_seconds: latency_histogram(),
            paused_partitions: Gauge::default(),
            arrivals: Family::default(),
            intervals_closed: Counter::default(),
        };
        with_registry(registry, |r| {
            metrics.register_input(r);
            metrics.register_windows(r);
            metrics.register_workload(r);
        });
        metrics
    }

    fn register_input(&self, r: &mut Registry) {
        r.register("barista_aggregate_records_in", "Records read from telemetry.vehicle", self.records_in.clone());
        r.register("barista_aggregate_bytes_in", "Bytes of their values", self.bytes_in.clone());
        r.register(
            "barista_aggregate_decode_errors",
            "Records of telemetry.vehicle that are not such messages, by reason",
            self.decode_errors.clone(),
        );
        r.register(
            "barista_aggregate_paused_partitions",
            "Input partitions paused because they are far ahead of the others",
            self.paused_partitions.clone(),
        );
    }

    fn register_windows(&self, r: &mut Registry) {
        r.register("barista_aggregate_rows_in", "Rows taken into windows", self.rows_in.clone());
        r.register(
            "barista_aggregate_rows_dropped",
            "Rows not taken: late, ahead of the receive time, without time, or failing in an expression",
            self.rows_dropped.clone(),
        );
        r.register("barista_aggregate_rows_out", "Rows of closed windows written", self.rows_out.clone());
        r.register(
            "barista_aggregate_requests_skipped",
            "Rows for which no request was made because a feature is missing",
            self.rows_skipped.clone(),
        );
        r.register(
            "barista_aggregate_requests_zeroed",
            "Requests in which a missing feature was replaced by zero",
            self.rows_zeroed.clone(),
        );
        r.register("barista_aggregate_windows_closed", "Windows closed", self.windows_closed.clone());
        r.register(
            "barista_aggregate_windows_failed",
            "Windows whose rows the query or the encoding failed on",
            self.windows_failed.clone(),
        );
        r.register(
            "barista_aggregate_watermark_delay_seconds",
            "Wall clock minus watermark",
            self.watermark_delay.clone(),
        );
        r.register("barista_aggregate_open_panes", "Panes held open", self.open_panes.clone());
        r.register("barista_aggregate_state_bytes", "Bytes that open panes hold", self.state_bytes.clone());
        r.register("barista_aggregate_snapshot_bytes", "Bytes written to aggregate.state", self.snapshot_bytes.clone());
        r.register(
            "barista_aggregate_commit_seconds",
            "Time of a commit: outputs settled, state written, offsets committed",
            self.commit_seconds.clone(),
        );
    }

    fn register_workload(&self, r: &mut Registry) {
        r.register("barista_aggregate_arrivals", "Prediction requests counted, by service", self.arrivals.clone());
        r.register(
            "barista_aggregate_intervals_closed",
            "Intervals of workload.observed closed",
            self.intervals_closed.clone(),
        );
    }
}
