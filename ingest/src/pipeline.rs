//! From messages to records: dedupe, decode, send to Kafka, acknowledge.
//!
//! One task owns all of it, so nothing is locked. Many records are in flight at once; completions come in any order
//! and acknowledgements leave in the order of arrival ([`crate::acks`]).
//!
//! Invariants:
//! - A message is acknowledged only after the delivery report of its record in `telemetry.vehicle` or
//!   `telemetry.rejected`, or of the record of an equal message within the window.
//! - A delivery that fails for now is never acknowledged: the connection is given up, and the broker redelivers. What
//!   is still waiting on that connection is dropped unsent, since it comes again.
//! - A record that Kafka refuses for good goes to `telemetry.rejected`; if that is refused too, the service ends with
//!   an error, because nobody but an operator can help.
//! - Messages held here, copies that wait for another one included, never exceed `ingest.in_flight`.
//!
//! A QoS 0 message takes the same way; when its delivery fails it is lost, and counted.

use crate::acks::{AckOrder, Ticket};
use crate::config::IngestConfig;
use crate::decode::{Reject, decode_within};
use crate::dedup::{Admission, MessageHash, Window};
use crate::metrics::Metrics;
use crate::mqtt::{AckId, Acked, Acks, Command, Inbound};
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rumqttc::QoS;
use runtime::ports::Kind;
use runtime::{Delivery, OutRecord, PortError, SharedClock, Sink};
use schemas::headers::{self, Reason};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Span;

/// What the pipeline is made of.
pub(crate) struct PipelineParts {
    pub(crate) config: IngestConfig,
    pub(crate) messages: mpsc::Receiver<Inbound>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) acks: Arc<Acks>,
    pub(crate) sink: Arc<dyn Sink>,
    /// Full name of `telemetry.vehicle`.
    pub(crate) vehicle_topic: String,
    /// Full name of `telemetry.rejected`.
    pub(crate) rejected_topic: String,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: Metrics,
    /// Seed of the message hash.
    pub(crate) hash_seed: u64,
    /// When it is cancelled, deliveries are awaited for `ingest.drain_timeout` longer.
    pub(crate) stop: CancellationToken,
}

/// A message that waits for a delivery report, its own or that of an equal one.
struct Held {
    message: Inbound,
    /// Its place in the order of acknowledgements; none at QoS 0.
    ticket: Option<Ticket>,
}

/// What a record stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Event,
    Rejected(Reason),
}

/// A record on its way.
struct Sent {
    held: Held,
    hash: MessageHash,
    outcome: Outcome,
    value_bytes: usize,
    result: Result<Delivery, PortError>,
    /// Ends with the delivery.
    _span: Span,
}

/// See the module.
pub(crate) struct Pipeline {
    parts: PipelineParts,
    window: Window<Held>,
    /// Copies inside `window`.
    copies: usize,
    order: AckOrder<AckId>,
    in_flight: FuturesUnordered<BoxFuture<'static, Sent>>,
    /// Connections up to this number are given up.
    given_up: u64,
}

impl Pipeline {
    pub(crate) fn new(parts: PipelineParts) -> Self {
        let window = Window::new(parts.config.dedup_window.as_ms(), parts.config.dedup_entries);
        Pipeline {
            parts,
            window,
            copies: 0,
            order: AckOrder::default(),
            in_flight: FuturesUnordered::new(),
            given_up: 0,
        }
    }

    /// Runs until the reader has stopped and everything taken is decided.
    ///
    /// # Errors
    /// What Kafka refuses for good and an operator must look at.
    pub(crate) async fn run(mut self) -> Result<(), PortError> {
        let (stop, drain_timeout) = (self.parts.stop.clone(), self.parts.config.drain_timeout.get());
        let too_late = async {
            stop.cancelled().await;
            tokio::time::sleep(drain_timeout).await;
        };
        tokio::pin!(too_late);
        let mut open = true;
        while open || !self.in_flight.is_empty() {
            let room = self.held() < self.parts.config.in_flight;
            tokio::select! {
                // Completions first: they make room.
                biased;
                Some(sent) = self.in_flight.next() => self.on_report(sent)?,
                () = &mut too_late => break,
                message = self.parts.messages.recv(), if open && room => match message {
                    Some(message) => self.on_message(message),
                    None => open = false,
                },
            }
            self.parts.metrics.in_flight.set(self.held() as i64);
        }
        if !self.in_flight.is_empty() {
            tracing::warn!(left = self.held(), "stopped before all deliveries were reported; they will be redelivered");
        }
        // The reader may be gone already.
        let _ = self.parts.commands.send(Command::Finish).await;
        Ok(())
    }

    fn held(&self) -> usize {
        self.in_flight.len() + self.copies
    }

    fn on_message(&mut self, message: Inbound) {
        if message.connection <= self.given_up {
            return;
        }
        let ack = AckId { packet_id: message.packet_id, qos: message.qos };
        let ticket = (message.qos != QoS::AtMostOnce).then(|| self.order.push(message.connection, ack));
        let hash = MessageHash::of(self.parts.hash_seed, &message.topic, &message.payload);
        let held = Held { message, ticket };
        match self.window.admit(self.parts.clock.now_ms(), hash) {
            Admission::New => self.submit(held, hash),
            Admission::Delivered => self.drop_copy(&held),
            Admission::InFlight => {
                // In flight by the admission just above, so it is always taken.
                if let Some(held) = self.window.wait(hash, held) {
                    self.submit(held, hash);
                } else {
                    self.copies += 1;
                }
            }
        }
    }

    fn submit(&mut self, held: Held, hash: MessageHash) {
        let message = &held.message;
        let limit = self.parts.config.max_payload_bytes;
        let decoded = decode_within(limit, &message.topic, &message.payload, message.received_at_ms);
        let event = decoded.and_then(|event| {
            self.parts.metrics.device_delay(event.received_at_ms.saturating_sub(event.event_time_ms));
            // Events hold finite numbers only, so this encodes.
            OutRecord::message(&self.parts.vehicle_topic, &event)
                .map_err(|e| Reject::new(Reason::BadField, e.to_string()))
        });
        match event {
            Ok(record) => self.send(held, hash, record, Outcome::Event),
            Err(reject) => self.reject(held, hash, &reject),
        }
    }

    fn reject(&mut self, held: Held, hash: MessageHash, reject: &Reject) {
        let message = &held.message;
        tracing::debug!(topic = message.topic, reason = %reject.reason, detail = reject.detail, "message rejected");
        let kept = message.payload.slice(..message.payload.len().min(self.parts.config.max_payload_bytes));
        let record = OutRecord::new(&self.parts.rejected_topic)
            .key(message.topic.clone())
            .value(kept)
            .header(headers::REASON, reject.reason.as_str())
            .header(headers::DETAIL, reject.detail.clone())
            .header(headers::MQTT_TOPIC, message.topic.clone())
            .header(headers::RECEIVED_AT, message.received_at_ms.to_string());
        let outcome = Outcome::Rejected(reject.reason);
        self.send(held, hash, record, outcome);
    }

    fn send(&mut self, held: Held, hash: MessageHash, mut record: OutRecord, outcome: Outcome) {
        // At debug level and a target of its own, so that a span a message is paid for only when asked for.
        let span = tracing::debug_span!(target: "ingest::message", "ingest", topic = held.message.topic);
        if !span.is_disabled() {
            runtime::trace::inject(&span, &mut record.headers);
        }
        record.timestamp_ms = Some(held.message.received_at_ms);
        let value_bytes = record.value.as_ref().map_or(0, bytes::Bytes::len);
        let delivery = self.parts.sink.send(record);
        self.in_flight.push(Box::pin(async move {
            let result = delivery.await;
            Sent { held, hash, outcome, value_bytes, result, _span: span }
        }));
    }

    fn on_report(&mut self, sent: Sent) -> Result<(), PortError> {
        match &sent.result {
            Ok(_) => {
                self.on_delivered(sent);
                Ok(())
            }
            Err(error) => match error.kind() {
                Kind::Transient => {
                    self.on_failed(sent);
                    Ok(())
                }
                Kind::Rejected if sent.outcome == Outcome::Event => {
                    let reject = Reject::new(Reason::TooLarge, format!("Kafka refused the event's record: {error}"));
                    self.reject(sent.held, sent.hash, &reject);
                    Ok(())
                }
                Kind::Rejected | Kind::Config | Kind::Bug => Err(error.clone()),
            },
        }
    }

    fn on_delivered(&mut self, sent: Sent) {
        let now_ms = self.parts.clock.now_ms();
        let metrics = &self.parts.metrics;
        match sent.outcome {
            Outcome::Event => metrics.published.inc(),
            Outcome::Rejected(reason) => {
                metrics.rejected(reason);
                0
            }
        };
        metrics.published_bytes.inc_by(sent.value_bytes as u64);
        metrics.delivery.observe((now_ms - sent.held.message.received_at_ms).max(0) as f64 / 1000.0);
        let copies = self.window.delivered(now_ms, sent.hash);
        self.parts.metrics.window_entries.set(self.window.len() as i64);
        self.copies -= copies.len();
        self.acknowledge(sent.held.ticket);
        for copy in &copies {
            self.drop_copy(copy);
        }
    }

    fn drop_copy(&mut self, copy: &Held) {
        self.parts.metrics.duplicates.inc();
        self.acknowledge(copy.ticket);
    }

    /// Never acknowledged: the connection is given up. A copy on a connection that is newer takes its place.
    fn on_failed(&mut self, sent: Sent) {
        self.parts.metrics.delivery_failures.inc();
        let connection = sent.held.message.connection;
        if let Err(error) = &sent.result
            && connection > self.given_up
        {
            tracing::warn!(%error, topic = sent.held.message.topic, "not delivered to Kafka; not acknowledged");
        }
        if sent.held.ticket.is_some() {
            self.give_up(connection);
        }
        let copies = self.window.failed(sent.hash);
        self.copies -= copies.len();
        let given_up = self.given_up;
        for copy in copies.into_iter().filter(|copy| copy.message.connection > given_up) {
            match self.window.admit(self.parts.clock.now_ms(), sent.hash) {
                Admission::New => self.submit(copy, sent.hash),
                Admission::InFlight | Admission::Delivered => {
                    if self.window.wait(sent.hash, copy).is_none() {
                        self.copies += 1;
                    }
                }
            }
        }
    }

    fn give_up(&mut self, connection: u64) {
        if connection > self.given_up {
            self.given_up = connection;
            // A full queue holds the same wish already, or the reader is gone.
            let _ = self.parts.commands.try_send(Command::Reconnect { connection });
        }
    }

    fn acknowledge(&mut self, ticket: Option<Ticket>) {
        let Some(ticket) = ticket else { return };
        let Some(free) = self.order.complete(ticket) else {
            self.parts.metrics.stale_acks.inc();
            return;
        };
        for ack in free {
            match self.parts.acks.send(ticket.connection(), ack) {
                Acked::Sent => {
                    self.parts.metrics.acks.inc();
                }
                Acked::Stale => {
                    self.parts.metrics.stale_acks.inc();
                }
                Acked::Overflow => {
                    tracing::error!("the MQTT broker has more messages outstanding than there are packet ids");
                    self.give_up(ticket.connection());
                    return;
                }
            }
        }
    }
}
