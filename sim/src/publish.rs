//! Publishing to an MQTT broker as devices do: QoS 1, each message acknowledged, a bounded number in flight.
//!
//! The publisher keeps each message until its PUBACK and sends what is unacknowledged again, in order, on the next
//! connection. It does not leave that to the client library (rumqttc 0.25), which forgets it whenever the broker has
//! no session for it: after every restart of a broker without persistence. So a message that is counted as
//! acknowledged is at the broker at least once, over lost connections and broker restarts.
//!
//! Left out: persistence over an end of this process, as devices have none.

use rumqttc::{
    AsyncClient, ConnectReturnCode, ConnectionError, Event, EventLoop, MqttOptions, NetworkOptions, Outgoing, Packet,
    QoS,
};
use runtime::backoff::Backoff;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Messages that may wait for their acknowledgement.
const IN_FLIGHT: usize = 100;
/// Messages that may wait to be sent; one more waits in [`Publisher::publish`].
const QUEUE: usize = 1_000;
/// Largest packet of MQTT 3.1.1; the broker's own limit holds.
const MAX_PACKET_BYTES: usize = 268_435_455;
/// Pauses before a new connection grow from the first to the second.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Time for the DISCONNECT to leave.
const GOODBYE: Duration = Duration::from_secs(1);

/// The broker cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The connection could not be made or was lost while messages were waiting.
    #[error("MQTT broker {host}:{port}: {detail}")]
    Connection {
        /// Host.
        host: String,
        /// Port.
        port: u16,
        /// What the client says.
        detail: String,
    },
    /// A topic that cannot be published to.
    #[error("`{0}` is not a topic: it is empty, too long or has a wildcard")]
    Topic(String),
    /// The publisher was stopped, or the broker refused it for good ([`Publisher::finish`] says why).
    #[error("stopped")]
    Stopped,
}

#[derive(Debug, Default)]
struct Counts {
    published: AtomicU64,
    acknowledged: AtomicU64,
}

#[derive(Debug, Clone)]
struct Message {
    topic: String,
    payload: Vec<u8>,
}

/// A connection that publishes.
#[derive(Debug)]
pub struct Publisher {
    messages: mpsc::Sender<Message>,
    counts: Arc<Counts>,
    task: tokio::task::JoinHandle<Result<(), Error>>,
    stop: CancellationToken,
}

impl Publisher {
    /// Connects to `host:port` as `client_id`, without TLS or credentials. A broker that is away is tried again until
    /// `shutdown`.
    pub fn connect(host: &str, port: u16, client_id: &str, shutdown: &CancellationToken) -> Self {
        let mut options = MqttOptions::new(client_id, host, port);
        options.set_keep_alive(Duration::from_secs(30));
        Publisher::with_options(options, shutdown)
    }

    /// Connects with the address, TLS and credentials of `options`; session and windows are set here.
    pub fn with_options(mut options: MqttOptions, shutdown: &CancellationToken) -> Self {
        options
            .set_clean_session(true)
            .set_inflight(IN_FLIGHT as u16)
            .set_max_packet_size(MAX_PACKET_BYTES, MAX_PACKET_BYTES);
        let (host, port) = options.broker_address();
        // Never full: the task sends no more than IN_FLIGHT messages and a DISCONNECT.
        let (client, mut event_loop) = AsyncClient::new(options, 2 * IN_FLIGHT);
        let mut network = NetworkOptions::new();
        network.set_tcp_nodelay(true);
        event_loop.set_network_options(network);
        let (messages, queue) = mpsc::channel(QUEUE);
        let (counts, stop) = (Arc::new(Counts::default()), shutdown.child_token());
        let connection = Connection {
            client,
            event_loop,
            queue: Some(queue),
            waiting: VecDeque::new(),
            unacknowledged: VecDeque::new(),
            connected: false,
            counts: counts.clone(),
            stop: stop.clone(),
            host,
            port,
            last_error: None,
        };
        let task = tokio::spawn(connection.run());
        Publisher { messages, counts, task, stop }
    }

    /// Publishes one message at QoS 1. Waits while the queue is full.
    ///
    /// # Errors
    /// [`Error::Topic`]; [`Error::Stopped`] when nothing will be sent any more.
    pub async fn publish(&self, topic: String, payload: Vec<u8>) -> Result<(), Error> {
        if topic.is_empty() || topic.len() > usize::from(u16::MAX) || !rumqttc::valid_topic(&topic) {
            return Err(Error::Topic(topic.chars().take(200).collect()));
        }
        tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(Error::Stopped),
            sent = self.messages.send(Message { topic, payload }) => sent.map_err(|_| Error::Stopped)?,
        }
        self.counts.published.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Messages handed over so far.
    pub fn published(&self) -> u64 {
        self.counts.published.load(Ordering::SeqCst)
    }

    /// Messages that the broker has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.counts.acknowledged.load(Ordering::SeqCst)
    }

    /// Waits until all are acknowledged (at most `deadline`), disconnects, and gives the number acknowledged.
    ///
    /// # Errors
    /// [`Error::Connection`] when messages are left and there is no connection.
    pub async fn finish(self, deadline: Duration) -> Result<u64, Error> {
        let Publisher { messages, counts, mut task, stop } = self;
        // The task ends when the queue has ended and nothing is left.
        drop(messages);
        let ended = match tokio::time::timeout(deadline, &mut task).await {
            Ok(ended) => ended,
            Err(_) => {
                stop.cancel();
                task.await
            }
        };
        match ended {
            Ok(Err(error)) => Err(error),
            // A task that panicked has no better answer than what was acknowledged.
            Ok(Ok(())) | Err(_) => Ok(counts.acknowledged.load(Ordering::SeqCst)),
        }
    }
}

fn give(client: &AsyncClient, message: &Message) {
    // Cannot fail: the topic was checked, and the client's queue is longer than the window.
    let given = client.try_publish(&message.topic, QoS::AtLeastOnce, false, message.payload.clone());
    debug_assert!(given.is_ok(), "{given:?}");
}

/// What the task does next.
enum Next {
    Event(Result<Event, ConnectionError>),
    /// Nothing more will come and nothing is under way.
    QueueEnded,
    Stopped,
}

/// The task's side.
struct Connection {
    client: AsyncClient,
    event_loop: EventLoop,
    /// `None` when no more will come.
    queue: Option<mpsc::Receiver<Message>>,
    /// To be sent again, before anything of the queue.
    waiting: VecDeque<Message>,
    /// Given to the client, in order; the packet id is known once it is written.
    unacknowledged: VecDeque<(Option<u16>, Message)>,
    connected: bool,
    counts: Arc<Counts>,
    stop: CancellationToken,
    host: String,
    port: u16,
    last_error: Option<Error>,
}

impl Connection {
    async fn run(mut self) -> Result<(), Error> {
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1, u64::from(self.port));
        loop {
            self.fill();
            if self.queue.is_none() && self.waiting.is_empty() && self.unacknowledged.is_empty() {
                return self.say_goodbye().await;
            }
            match self.next().await {
                Next::Stopped => return self.last_error.map_or(Ok(()), Err),
                Next::QueueEnded => {}
                Next::Event(Ok(event)) => {
                    if self.on_event(&event) {
                        backoff.reset();
                    }
                }
                Next::Event(Err(error)) => {
                    self.on_lost(&error)?;
                    tokio::select! {
                        () = tokio::time::sleep(backoff.next_delay()) => {}
                        () = self.stop.cancelled() => return self.last_error.map_or(Ok(()), Err),
                    }
                }
            }
        }
    }

    /// Gives the client what is waiting, as far as the window allows.
    fn fill(&mut self) {
        while self.unacknowledged.len() < IN_FLIGHT {
            let Some(message) = self.waiting.pop_front() else { return };
            give(&self.client, &message);
            self.unacknowledged.push_back((None, message));
        }
    }

    /// One poll, cancelled only where nothing is under way: the client would lose a packet. New messages are given to
    /// the client meanwhile.
    async fn next(&mut self) -> Next {
        let poll = self.event_loop.poll();
        tokio::pin!(poll);
        loop {
            let open = self.waiting.is_empty() && self.unacknowledged.len() < IN_FLIGHT;
            let message = async {
                match &mut self.queue {
                    Some(queue) => queue.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return Next::Stopped,
                event = &mut poll => return Next::Event(event),
                message = message, if open => match message {
                    Some(message) => {
                        give(&self.client, &message);
                        self.unacknowledged.push_back((None, message));
                    }
                    None => {
                        self.queue = None;
                        if self.unacknowledged.is_empty() {
                            return Next::QueueEnded;
                        }
                    }
                },
            }
        }
    }

    /// True for a new connection.
    fn on_event(&mut self, event: &Event) -> bool {
        match event {
            Event::Incoming(Packet::ConnAck(_)) => {
                self.connected = true;
                self.last_error = None;
                return true;
            }
            Event::Outgoing(Outgoing::Publish(id)) => {
                // Written in the order in which they were given.
                if let Some(entry) = self.unacknowledged.iter_mut().find(|(known, _)| known.is_none()) {
                    entry.0 = Some(*id);
                }
            }
            Event::Incoming(Packet::PubAck(ack)) => {
                if let Some(at) = self.unacknowledged.iter().position(|(id, _)| *id == Some(ack.pkid)) {
                    self.unacknowledged.remove(at);
                    self.counts.acknowledged.fetch_add(1, Ordering::SeqCst);
                }
            }
            Event::Incoming(_) | Event::Outgoing(_) => {}
        }
        false
    }

    /// Takes everything back from the client.
    fn on_lost(&mut self, error: &ConnectionError) -> Result<(), Error> {
        self.connected = false;
        self.event_loop.clean();
        self.event_loop.pending.clear();
        self.event_loop.state.events.clear();
        self.event_loop.state.collision = None;
        for (_, message) in self.unacknowledged.drain(..).rev() {
            self.waiting.push_front(message);
        }
        let lost = Error::Connection { host: self.host.clone(), port: self.port, detail: error.to_string() };
        if let ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized | ConnectReturnCode::BadClientId,
        ) = error
        {
            return Err(lost);
        }
        tracing::warn!(%error, host = self.host, port = self.port, "no MQTT connection; trying again");
        self.last_error = Some(lost);
        Ok(())
    }

    async fn say_goodbye(mut self) -> Result<(), Error> {
        if !self.connected || self.client.try_disconnect().is_err() {
            return Ok(());
        }
        let leave = async {
            // An error means that the connection is gone already.
            while let Ok(event) = self.event_loop.poll().await {
                if event == Event::Outgoing(Outgoing::Disconnect) {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(GOODBYE, leave).await;
        Ok(())
    }
}
