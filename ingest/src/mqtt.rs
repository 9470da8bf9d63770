//! The MQTT side: connection options, acknowledgements, and the task that reads.
//!
//! rumqttc 0.25 with manual acknowledgements and a persistent session. Its traps, read from its source, shape this
//! module:
//!
//! - It acknowledges by packet id, and an acknowledgement issued for a message of an older connection would go out
//!   on the new one, where the id may be another message: silent loss. So connections are numbered, [`Acks`] lets
//!   only the live connection's acknowledgements through, and after the number has changed the reader clears the
//!   client's queue once more, because an acknowledgement may have slipped in after the client cleared it itself.
//! - Acknowledgements come from another task than the one that polls, through the client's request queue. Waiting
//!   for room there while the poller waits for us would be a deadlock, so the queue ([`REQUEST_QUEUE`]) is larger
//!   than the number of packet ids that a broker can have outstanding, and an acknowledgement never waits.
//! - It ends the connection on a PUBREL for an unknown id, so we subscribe at QoS 1: the broker then delivers a
//!   QoS 2 publication at QoS 1.
//! - Publications that it had read but not yet returned when a connection ended come out after the next CONNACK, with
//!   packet ids of the old connection. The reader empties that buffer with the connection.
//! - Its poll must not be cancelled and polled again: an outgoing packet may be lost. A poll is cancelled only where
//!   the connection is given up.
//! - A packet above the client's limit ends the connection, is redelivered, and ends it again, for ever. So the limit
//!   here is the protocol's; the broker's own limit holds, and larger payloads are rejected one stage later.
//!
//! Left out: MQTT 5, WebSockets, client certificates.

use crate::config::{BrokerAddress, MqttConfig};
use crate::metrics::Metrics;
use bytes::Bytes;
use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Packet, Publish,
    QoS, SubAck, SubscribeFilter, SubscribeReasonCode, TlsConfiguration, Transport,
};
use runtime::backoff::Backoff;
use runtime::{Readiness, SharedClock};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use schemas::EpochMs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Requests that the client's queue holds: every packet id of a connection, and room for (un)subscriptions.
const REQUEST_QUEUE: usize = 65_535 + 64;

/// Largest packet of MQTT 3.1.1.
const MAX_PACKET_BYTES: usize = 268_435_455;

/// A connection that lived this long was a good one: the backoff starts again.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Time for the last acknowledgements and the DISCONNECT to leave and for the broker to close.
const GOODBYE: Duration = Duration::from_secs(1);

/// Where certificate authorities usually are, on Debian, Fedora, SUSE, macOS and Alpine.
const SYSTEM_CA_FILES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The MQTT side cannot work until an operator changes something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `mqtt.broker`.
    #[error("mqtt.broker: {0}")]
    Broker(String),
    /// The file of certificate authorities.
    #[error("mqtt.ca_file: {path}: {detail}", path = path.display())]
    CaFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// No certificate authorities were found.
    #[error("mqtt.ca_file: not set, and the system has none of {}", SYSTEM_CA_FILES.join(", "))]
    NoCaFile,
    /// TLS could not be set up.
    #[error("mqtt.broker: TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The broker does not let us in.
    #[error("the MQTT broker refused the connection ({0:?}); check mqtt.username, mqtt.password and mqtt.client_id")]
    Refused(ConnectReturnCode),
    /// The broker does not let us subscribe.
    #[error("the MQTT broker refused to subscribe to `{0}`; check mqtt.topics and the broker's access rules")]
    Subscription(String),
}

/// Options of a client for this broker: address, TLS and credentials. The caller chooses the kind of session.
///
/// # Errors
/// A URL or certificate file that cannot be used; `broker = "embedded"` must have been resolved before.
pub fn client_options(config: &MqttConfig) -> Result<MqttOptions, Error> {
    let address = BrokerAddress::parse(&config.broker).map_err(Error::Broker)?;
    let mut options = MqttOptions::new(&config.client_id, &address.host, address.port);
    options.set_keep_alive(config.keep_alive.get());
    options.set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
    if address.tls {
        options.set_transport(Transport::Tls(TlsConfiguration::Rustls(Arc::new(tls(config.ca_file.as_deref())?))));
    }
    if let Some(username) = &config.username {
        options.set_credentials(username, config.password.as_ref().map_or("", |p| p.reveal()));
    }
    Ok(options)
}

/// Socket options: small packets leave at once.
pub fn network_options() -> NetworkOptions {
    let mut options = NetworkOptions::new();
    options.set_tcp_nodelay(true);
    options
}

fn tls(ca_file: Option<&Path>) -> Result<rustls::ClientConfig, Error> {
    let path = match ca_file {
        Some(path) => path,
        None => SYSTEM_CA_FILES.iter().map(Path::new).find(|p| p.exists()).ok_or(Error::NoCaFile)?,
    };
    let unusable = |detail: String| Error::CaFile { path: path.to_owned(), detail };
    let certificates: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|e| unusable(format!("{e}; expected certificates in PEM")))?;
    let mut roots = rustls::RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(unusable("holds no certificate that can be used".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// A message as it came, and the memory that it holds.
#[derive(Debug)]
pub(crate) struct Inbound {
    /// Number of the connection it came on, from 1.
    pub(crate) connection: u64,
    pub(crate) topic: String,
    pub(crate) payload: Bytes,
    pub(crate) qos: QoS,
    pub(crate) packet_id: u16,
    pub(crate) received_at_ms: EpochMs,
    /// Its share of `ingest.buffer_bytes`, given back when the message is done.
    pub(crate) _memory: OwnedSemaphorePermit,
}

/// What an acknowledgement needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AckId {
    pub(crate) packet_id: u16,
    pub(crate) qos: QoS,
}

/// What became of an acknowledgement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Acked {
    /// In the client's queue.
    Sent,
    /// Discarded: its connection is gone, the broker redelivers the message.
    Stale,
    /// The client's queue is full, so the broker has more messages outstanding than there are packet ids.
    Overflow,
}

/// Lets acknowledgements of the live connection through, and no others.
#[derive(Debug)]
pub(crate) struct Acks {
    client: AsyncClient,
    /// The live connection; held while an acknowledgement is queued, so that none slips past a change.
    live: Mutex<Option<u64>>,
}

impl Acks {
    pub(crate) fn new(client: AsyncClient) -> Self {
        Acks { client, live: Mutex::new(None) }
    }

    pub(crate) fn send(&self, connection: u64, ack: AckId) -> Acked {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if *live != Some(connection) {
            return Acked::Stale;
        }
        let mut publish = Publish::from_bytes(String::new(), ack.qos, Bytes::new());
        publish.pkid = ack.packet_id;
        match self.client.try_ack(&publish) {
            Ok(()) => Acked::Sent,
            Err(_) => Acked::Overflow,
        }
    }

    fn set_live(&self, connection: Option<u64>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }
}

/// From the pipeline to the reader. A full queue means that the same wish is already there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Give this connection up (if it is still the live one) so that the broker redelivers.
    Reconnect { connection: u64 },
    /// Everything is decided: send the last acknowledgements and leave.
    Finish,
}

/// What the reader is made of.
pub(crate) struct ReaderParts {
    pub(crate) config: MqttConfig,
    pub(crate) client: AsyncClient,
    pub(crate) event_loop: EventLoop,
    pub(crate) acks: Arc<Acks>,
    /// Messages to the pipeline; when it is full the reader stops reading.
    pub(crate) messages: mpsc::Sender<Inbound>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// `ingest.buffer_bytes` permits.
    pub(crate) memory: Arc<Semaphore>,
    pub(crate) buffer_bytes: usize,
    pub(crate) clock: SharedClock,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) shutdown: CancellationToken,
}

/// Makes a client and its event loop for a persistent session with manual acknowledgements.
pub(crate) fn persistent_client(config: &MqttConfig) -> Result<(AsyncClient, EventLoop), Error> {
    let mut options = client_options(config)?;
    options.set_clean_session(false);
    options.set_manual_acks(true);
    let (client, mut event_loop) = AsyncClient::new(options, REQUEST_QUEUE);
    event_loop.set_network_options(network_options());
    Ok((client, event_loop))
}

/// Polls the connection, hands messages on, reconnects. See the module.
pub(crate) struct Reader {
    parts: ReaderParts,
    /// `None` once the shutdown has begun: nothing more is taken, only acknowledgements go out.
    messages: Option<mpsc::Sender<Inbound>>,
    backoff: Backoff,
    /// Number of the newest connection; 0 before the first.
    connection: u64,
    connected_at: Option<Instant>,
    /// The broker has confirmed our subscriptions in this process.
    subscribed: bool,
    /// Set once the DISCONNECT is queued: when to stop waiting for it to leave.
    closing: Option<Instant>,
}

/// What the reader does next.
enum Step {
    Event(Result<Event, ConnectionError>),
    GiveUp,
    Finish,
}

impl Reader {
    pub(crate) fn new(mut parts: ReaderParts, backoff_seed: u64) -> Self {
        let (min, max) = (parts.config.reconnect_min.get(), parts.config.reconnect_max.get());
        // The original is replaced by a closed one, so that dropping `messages` closes the channel.
        let messages = std::mem::replace(&mut parts.messages, mpsc::channel(1).0);
        Reader {
            parts,
            messages: Some(messages),
            backoff: Backoff::new(min, max, backoff_seed),
            connection: 0,
            connected_at: None,
            subscribed: false,
            closing: None,
        }
    }

    /// Runs until the pipeline says that it has finished, or until an operator is needed.
    pub(crate) async fn run(mut self) -> Result<(), Error> {
        self.not_ready("connecting");
        loop {
            match self.next_step().await {
                Step::Event(Ok(event)) => {
                    if self.on_event(event).await? {
                        return Ok(());
                    }
                }
                Step::Event(Err(error)) => {
                    self.check_refusal(&error)?;
                    if self.on_disconnect(&error.to_string()).await {
                        return Ok(());
                    }
                }
                Step::GiveUp => {
                    if self.on_disconnect("a delivery to Kafka failed").await {
                        return Ok(());
                    }
                }
                Step::Finish => {
                    if self.say_goodbye() {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// One poll of the connection, kept alive while the drain begins.
    async fn next_step(&mut self) -> Step {
        let live = self.connected_at.map(|_| self.connection);
        let parts = &mut self.parts;
        if let Some(until) = self.closing {
            let last = tokio::time::timeout_at(until, parts.event_loop.poll()).await;
            return last.map_or(Step::GiveUp, Step::Event);
        }
        let poll = parts.event_loop.poll();
        tokio::pin!(poll);
        loop {
            tokio::select! {
                event = &mut poll => return Step::Event(event),
                () = parts.shutdown.cancelled(), if self.messages.is_some() => {
                    // Not a return: the poll must go on as it is. Dropping the sender tells the pipeline.
                    self.messages = None;
                }
                command = parts.commands.recv() => match command {
                    Some(Command::Reconnect { connection }) if live == Some(connection) => return Step::GiveUp,
                    Some(Command::Reconnect { .. }) => {}
                    // A pipeline that is gone has nothing more to acknowledge.
                    Some(Command::Finish) | None => return Step::Finish,
                },
            }
        }
    }

    /// True when the reader is done.
    async fn on_event(&mut self, event: Event) -> Result<bool, Error> {
        match event {
            Event::Incoming(Packet::ConnAck(ack)) => self.on_connect(ack.session_present),
            Event::Incoming(Packet::Publish(publish)) => return Ok(self.hand_over(publish).await),
            Event::Incoming(Packet::SubAck(ack)) => self.on_subscribed(&ack)?,
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
        Ok(false)
    }

    fn on_connect(&mut self, session_present: bool) {
        self.connection += 1;
        self.connected_at = Some(Instant::now());
        self.parts.acks.set_live(Some(self.connection));
        self.parts.metrics.connections.inc();
        self.parts.metrics.connected.set(1);
        tracing::info!(
            broker = self.parts.config.broker,
            connection = self.connection,
            session_present,
            "connected to MQTT"
        );
        // The session may be an older one with other subscriptions, so each process subscribes at least once.
        if !session_present || !self.subscribed {
            self.subscribed = false;
            self.subscribe();
        } else {
            self.ready();
        }
    }

    fn subscribe(&mut self) {
        let filters =
            self.parts.config.topics.iter().map(|topic| SubscribeFilter::new(topic.clone(), QoS::AtLeastOnce));
        // The queue is empty on a new connection and the filters were checked with the configuration.
        if let Err(error) = self.parts.client.try_subscribe_many(filters) {
            tracing::error!(%error, "cannot queue the MQTT subscription");
        }
    }

    fn on_subscribed(&mut self, ack: &SubAck) -> Result<(), Error> {
        for (topic, code) in self.parts.config.topics.iter().zip(&ack.return_codes) {
            match code {
                SubscribeReasonCode::Failure => return Err(Error::Subscription(topic.clone())),
                SubscribeReasonCode::Success(QoS::AtMostOnce) => {
                    tracing::warn!(topic, "the MQTT broker grants QoS 0 only: this input is best effort");
                }
                SubscribeReasonCode::Success(_) => {}
            }
        }
        self.subscribed = true;
        self.ready();
        Ok(())
    }

    /// True when the reader is done.
    async fn hand_over(&mut self, publish: Publish) -> bool {
        let Some(messages) = self.messages.clone() else {
            // Draining: left unacknowledged, the broker delivers it to the next process.
            return false;
        };
        self.count(&publish);
        let bytes = (publish.topic.len() + publish.payload.len()).clamp(1, self.parts.buffer_bytes);
        let received_at_ms = self.parts.clock.now_ms();
        let memory = self.parts.memory.clone();
        let room = async {
            // Both ends are held by the service, so neither closes while the reader runs.
            let permit = memory.acquire_many_owned(u32::try_from(bytes).unwrap_or(u32::MAX)).await.ok()?;
            Some((permit, messages.reserve().await.ok()?))
        };
        tokio::pin!(room);
        loop {
            tokio::select! {
                // Shutdown and commands first: they must not wait behind a full pipeline.
                biased;
                () = self.parts.shutdown.cancelled() => {
                    self.messages = None;
                    return false;
                }
                command = self.parts.commands.recv() => match command {
                    Some(Command::Reconnect { connection }) if connection == self.connection => {
                        return self.on_disconnect("a delivery to Kafka failed").await;
                    }
                    Some(Command::Reconnect { .. }) => {}
                    Some(Command::Finish) | None => return self.say_goodbye(),
                },
                room = &mut room => {
                    let Some((memory, slot)) = room else { return self.say_goodbye() };
                    slot.send(Inbound {
                        connection: self.connection,
                        topic: publish.topic,
                        payload: publish.payload,
                        qos: publish.qos,
                        packet_id: publish.pkid,
                        received_at_ms,
                        _memory: memory,
                    });
                    return false;
                }
            }
        }
    }

    fn count(&self, publish: &Publish) {
        let metrics = &self.parts.metrics;
        metrics.received.inc();
        metrics.received_bytes.inc_by((publish.topic.len() + publish.payload.len()) as u64);
        if publish.qos == QoS::AtMostOnce {
            metrics.qos0.inc();
        }
        if publish.retain {
            metrics.retained.inc();
        }
        if publish.dup {
            metrics.redelivered.inc();
        }
    }

    /// Ends the connection and pauses. True when the reader is done, because the shutdown has begun.
    async fn on_disconnect(&mut self, why: &str) -> bool {
        // First no acknowledgement gets in any more, then what is in the queue goes out of it.
        self.parts.acks.set_live(None);
        self.parts.event_loop.clean();
        self.parts.event_loop.state.events.clear();
        self.parts.metrics.connected.set(0);
        if let Some(since) = self.connected_at.take() {
            self.parts.metrics.disconnections.inc();
            if since.elapsed() >= STABLE_AFTER {
                self.backoff.reset();
            }
        }
        if self.messages.is_none() {
            return true;
        }
        let pause = self.backoff.next_delay();
        tracing::warn!(
            broker = self.parts.config.broker,
            why,
            pause_ms = pause.as_millis() as u64,
            "no MQTT connection"
        );
        self.not_ready(why);
        let wake = Instant::now() + pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(wake) => return false,
                () = self.parts.shutdown.cancelled() => {
                    self.messages = None;
                    return true;
                }
                command = self.parts.commands.recv() => match command {
                    // The connection it means is gone already.
                    Some(Command::Reconnect { .. }) => {}
                    Some(Command::Finish) | None => return true,
                },
            }
        }
    }

    /// Credentials that are refused at the first connection need an operator; later they may pass.
    fn check_refusal(&self, error: &ConnectionError) -> Result<(), Error> {
        match error {
            ConnectionError::ConnectionRefused(
                code @ (ConnectReturnCode::BadUserNamePassword
                | ConnectReturnCode::NotAuthorized
                | ConnectReturnCode::BadClientId
                | ConnectReturnCode::RefusedProtocolVersion),
            ) if self.connection == 0 => Err(Error::Refused(*code)),
            _ => Ok(()),
        }
    }

    /// Queues the DISCONNECT behind the last acknowledgements. True when there is no connection to close.
    ///
    /// The reader then polls until the broker closes: only that says that it has seen the acknowledgements. A new
    /// process that took the session over before would get their messages again.
    fn say_goodbye(&mut self) -> bool {
        self.messages = None;
        self.parts.acks.set_live(None);
        self.parts.metrics.connected.set(0);
        self.not_ready("stopped");
        self.closing = Some(Instant::now() + GOODBYE);
        self.connected_at.is_none() || self.parts.client.try_disconnect().is_err()
    }

    fn ready(&self) {
        self.parts.readiness.set("ingest", true, "subscribed");
    }

    fn not_ready(&self, why: &str) {
        self.parts.readiness.set("ingest", false, why);
    }
}
