//! Metrics of ingest, `barista_ingest_*`.
//!
//! All counters count messages or bytes since the start of the process. Names and labels are only here.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use runtime::SharedRegistry;
use runtime::metrics::{DEVICE_DELAY_SECONDS, latency_histogram, with_registry};
use schemas::headers::Reason;

type ReasonLabel = [(&'static str, &'static str); 1];

/// Handles of all metrics; clones share them.
#[derive(Debug, Clone)]
pub struct Metrics {
    pub(crate) received: Counter,
    pub(crate) received_bytes: Counter,
    pub(crate) qos0: Counter,
    pub(crate) retained: Counter,
    pub(crate) redelivered: Counter,
    pub(crate) published: Counter,
    pub(crate) published_bytes: Counter,
    rejected: Family<ReasonLabel, Counter>,
    /// Sum over the reasons; not registered.
    rejected_any: Counter,
    pub(crate) duplicates: Counter,
    pub(crate) delivery_failures: Counter,
    pub(crate) acks: Counter,
    pub(crate) stale_acks: Counter,
    pub(crate) connections: Counter,
    pub(crate) disconnections: Counter,
    pub(crate) connected: Gauge,
    pub(crate) in_flight: Gauge,
    pub(crate) window_entries: Gauge,
    device_delay: Histogram,
    clock_ahead: Counter,
    pub(crate) delivery: Histogram,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages received from MQTT, copies included.
    pub received: u64,
    /// Events with a delivery report in `telemetry.vehicle`.
    pub published: u64,
    /// Messages with a delivery report in `telemetry.rejected`.
    pub rejected: u64,
    /// Copies dropped.
    pub duplicates: u64,
    /// Messages that came at QoS 0, best effort.
    pub qos0: u64,
    /// PUBACKs handed to the MQTT client.
    pub acks: u64,
    /// Acknowledgements discarded because their connection was gone.
    pub stale_acks: u64,
    /// Kafka deliveries that failed; the message is redelivered.
    pub delivery_failures: u64,
    /// MQTT connections made.
    pub connections: u64,
}

impl Metrics {
    /// Creates and registers all of them.
    pub fn register(registry: &SharedRegistry) -> Self {
        let metrics = Metrics {
            received: Counter::default(),
            received_bytes: Counter::default(),
            qos0: Counter::default(),
            retained: Counter::default(),
            redelivered: Counter::default(),
            published: Counter::default(),
            published_bytes: Counter::default(),
            rejected: Family::default(),
            rejected_any: Counter::default(),
            duplicates: Counter::default(),
            delivery_failures: Counter::default(),
            acks: Counter::default(),
            stale_acks: Counter::default(),
            connections: Counter::default(),
            disconnections: Counter::default(),
            connected: Gauge::default(),
            in_flight: Gauge::default(),
            window_entries: Gauge::default(),
            device_delay: Histogram::new(DEVICE_DELAY_SECONDS),
            clock_ahead: Counter::default(),
            delivery: latency_histogram(),
        };
        metrics.register_counters(registry);
        metrics.register_others(registry);
        metrics
    }

    fn register_counters(&self, registry: &SharedRegistry) {
        let counters = [
            ("received", "Messages received from MQTT, copies included", &self.received),
            ("received_bytes", "Bytes of topics and payloads received from MQTT", &self.received_bytes),
            ("qos0", "Messages received at QoS 0, which is best effort", &self.qos0),
            ("retained", "Messages received because the broker had retained them", &self.retained),
            (
                "redelivered",
                "Messages that the broker marked as redelivered (not every broker does)",
                &self.redelivered,
            ),
            ("published", "Events with a delivery report in telemetry.vehicle", &self.published),
            ("published_bytes", "Bytes of record values delivered to Kafka", &self.published_bytes),
            (
                "duplicates",
                "Copies of a message (equal topic and payload within the window) that were dropped",
                &self.duplicates,
            ),
            (
                "delivery_failures",
                "Kafka deliveries that failed; the message is not acknowledged",
                &self.delivery_failures,
            ),
            ("acks", "PUBACKs handed to the MQTT client", &self.acks),
            ("stale_acks", "Acknowledgements discarded because their connection was gone", &self.stale_acks),
            ("connections", "MQTT connections made", &self.connections),
            ("disconnections", "MQTT connections lost or given up", &self.disconnections),
            ("clock_ahead", "Events whose device time was after the receive time", &self.clock_ahead),
        ];
        with_registry(registry, |registry| {
            for (name, help, counter) in counters {
                registry.register(format!("barista_ingest_{name}"), help, counter.clone());
            }
        });
    }

    fn register_others(&self, registry: &SharedRegistry) {
        with_registry(registry, |registry| {
            let mut add = |name: &str, help: &str, gauge: &Gauge| {
                registry.register(format!("barista_ingest_{name}"), help, gauge.clone());
            };
            add("connected", "1 while connected to the MQTT broker", &self.connected);
            add("in_flight", "Messages without a delivery report, waiting copies included", &self.in_flight);
            add("dedup_entries", "Deliveries that the dedupe window remembers", &self.window_entries);
            registry.register(
                "barista_ingest_rejected",
                "Messages with a delivery report in telemetry.rejected, by reason",
                self.rejected.clone(),
            );
            registry.register(
                "barista_ingest_device_delay_seconds",
                "Receive time minus device time of events; a device clock that is ahead counts as zero",
                self.device_delay.clone(),
            );
            registry.register(
                "barista_ingest_delivery_seconds",
                "Receive time to Kafka delivery report",
                self.delivery.clone(),
            );
        });
    }

    pub(crate) fn rejected(&self, reason: Reason) {
        self.rejected.get_or_create(&[("reason", reason.as_str())]).inc();
        self.rejected_any.inc();
    }

    /// `delay_ms` is receive time minus device time.
    pub(crate) fn device_delay(&self, delay_ms: i64) {
        if delay_ms < 0 {
            self.clock_ahead.inc();
        }
        self.device_delay.observe(delay_ms.max(0) as f64 / 1000.0);
    }

    /// The counters now.
    pub fn counts(&self) -> Counts {
        Counts {
            received: self.received.get(),
            published: self.published.get(),
            rejected: self.rejected_any.get(),
            duplicates: self.duplicates.get(),
            qos0: self.qos0.get(),
            acks: self.acks.get(),
            stale_acks: self.stale_acks.get(),
            delivery_failures: self.delivery_failures.get(),
            connections: self.connections.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_are_those_of_the_role() {
        let registry = runtime::metrics::new_registry();
        let metrics = Metrics::register(&registry);
        metrics.rejected(Reason::InvalidJson);
        metrics.device_delay(-4_000);
        metrics.device_delay(670);
        let text = runtime::metrics::encode(&registry).unwrap();
        for line in [
            "barista_ingest_rejected_total{reason=\"invalid-json\"} 1",
            "barista_ingest_clock_ahead_total 1",
            "barista_ingest_device_delay_seconds_count 2",
            "barista_ingest_received_total 0",
            "barista_ingest_connected 0",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.lines().all(|l| l.starts_with('#') || l.starts_with("barista_ingest_")), "{text}");
        assert_eq!(metrics.counts(), Counts { rejected: 1, ..Counts::default() });
    }
}
