//! What the service tests stand on: an embedded broker, a publisher, a sink whose reports the test decides, a TCP
//! proxy that can cut, and a scripted broker.

use async_trait::async_trait;
use bytes::BytesMut;
use futures::FutureExt;
use futures::future::BoxFuture;
use ingest::{Config, Counts, IngestConfig, Metrics, MqttConfig};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};
use runtime::memory::MemoryBus;
use runtime::{Bus, Context, Delivery, OutRecord, PortError, Readiness, Sink, Source, SourceSpec, SystemClock};
use schemas::Topics;
use schemas::topics::{TELEMETRY_REJECTED, TELEMETRY_VEHICLE, TopicSpec};
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Bounds every wait; reaching it is a failure.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub async fn within<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Waits until the condition holds, looking again every few milliseconds.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[derive(Default)]
pub struct BrokerOptions {
    pub auth: Option<(&'static str, &'static str)>,
    pub tls: bool,
}

/// Starts rumqttd on a free port of loopback; it lives as long as the test process.
pub async fn broker(options: BrokerOptions) -> SocketAddr {
    // Bound and released, so another process could take it in between; the connection below would notice.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let fixture = |name: &str| format!("{}/tests/fixtures/tls/{name}", env!("CARGO_MANIFEST_DIR"));
    let server = rumqttd::ServerSettings {
        name: "test".to_owned(),
        listen: address,
        tls: options.tls.then(|| rumqttd::TlsConfig::Rustls {
            capath: None,
            certpath: fixture("server.pem"),
            keypath: fixture("server.key"),
        }),
        next_connection_delay_ms: 0,
        connections: rumqttd::ConnectionSettings {
            connection_timeout_ms: 5000,
            max_payload_size: 1 << 20,
            max_inflight_count: 100,
            auth: options.auth.map(|(user, password)| HashMap::from([(user.to_owned(), password.to_owned())])),
            external_auth: None,
            dynamic_filters: true,
        },
    };
    let config = rumqttd::Config {
        id: 0,
        router: rumqttd::RouterConfig {
            max_connections: 100,
            max_outgoing_packet_count: 200,
            max_segment_size: 10 << 20,
            max_segment_count: 10,
            ..Default::default()
        },
        v4: Some(HashMap::from([("1".to_owned(), server)])),
        v5: None,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    };
    let mut broker = rumqttd::Broker::new(config);
    std::thread::spawn(move || {
        if let Err(error) = broker.start() {
            panic!("the embedded broker ended: {error}");
        }
    });
    within("broker", async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    address
}

static CLIENTS: AtomicUsize = AtomicUsize::new(0);

/// Publishes and waits for every PUBACK.
pub async fn publish(broker: SocketAddr, qos: QoS, messages: &[(String, Vec<u8>)]) {
    let id = format!("device-{}", CLIENTS.fetch_add(1, Ordering::SeqCst));
    let mut options = MqttOptions::new(id, broker.ip().to_string(), broker.port());
    options.set_max_packet_size(1 << 20, 1 << 20);
    let (client, mut events) = AsyncClient::new(options, 10);
    let batch = messages.to_vec();
    let sender = tokio::spawn(async move {
        for (topic, payload) in batch {
            client.publish(topic, qos, false, payload).await.unwrap();
        }
        client
    });
    let mut left = messages.len();
    within("publisher", async {
        while left > 0 {
            match events.poll().await.unwrap() {
                Event::Incoming(Packet::PubAck(_)) => left -= 1,
                Event::Outgoing(rumqttc::Outgoing::Publish(_)) if qos == QoS::AtMostOnce => left -= 1,
                _ => {}
            }
        }
    })
    .await;
    drop(sender.await.unwrap());
}

/// A position of one vehicle; equal numbers are equal messages.
pub fn position(n: usize) -> (String, Vec<u8>) {
    let (vehicle, second, ms) = (n % 7, n / 1000 % 60, n % 1000);
    let topic = format!("/hfp/v2/deadrun/ongoing/vp/bus/0018/0000{vehicle}");
    let tst = format!("2024-02-13T16:{:02}:{second:02}.{ms:03}Z", n / 60_000 % 60);
    (topic, format!("{{\"VP\":{{\"tst\":\"{tst}\",\"odo\":{n}}}}}").into_bytes())
}

pub fn positions(range: std::ops::Range<usize>) -> Vec<(String, Vec<u8>)> {
    range.map(position).collect()
}

type Refuses = fn(&OutRecord) -> bool;
type Decided = oneshot::Sender<Result<(), PortError>>;

#[derive(Default)]
struct Reports {
    held: Vec<(OutRecord, Decided)>,
}

/// [`MemoryBus`] whose delivery reports the test can hold back, decide in any order, or refuse.
pub struct ControlledBus {
    pub memory: MemoryBus,
    sink: Arc<ControlledSink>,
}

struct ControlledSink {
    inner: Arc<dyn Sink>,
    hold: AtomicBool,
    reports: Mutex<Reports>,
    refuse: Mutex<Option<Refuses>>,
}

impl ControlledBus {
    pub fn new() -> Arc<Self> {
        let memory = MemoryBus::new(Arc::new(SystemClock));
        let sink = Arc::new(ControlledSink {
            inner: memory.sink(),
            hold: AtomicBool::new(false),
            reports: Mutex::default(),
            refuse: Mutex::default(),
        });
        Arc::new(ControlledBus { memory, sink })
    }

    /// From now on reports wait (`true`) or come at once.
    pub fn hold(&self, hold: bool) {
        self.sink.hold.store(hold, Ordering::SeqCst);
    }

    pub fn refuse(&self, which: Refuses) {
        *self.sink.refuse.lock().unwrap() = Some(which);
    }

    pub fn held(&self) -> usize {
        self.sink.reports.lock().unwrap().held.len()
    }

    /// Decides what is held, newest first.
    pub fn release(&self, result: Result<(), PortError>) {
        let held = std::mem::take(&mut self.sink.reports.lock().unwrap().held);
        for (_, decided) in held.into_iter().rev() {
            // A service that was killed does not listen any more.
            let _ = decided.send(result.clone());
        }
    }

    /// `odo` of the events in Kafka, with how often each is there.
    pub fn events(&self) -> BTreeMap<i64, usize> {
        let mut counts = BTreeMap::new();
        for record in self.memory.records(TELEMETRY_VEHICLE) {
            let event: schemas::telemetry::VehicleEvent =
                schemas::Message::decode(record.value.as_deref().unwrap()).unwrap();
            *counts.entry(event.odometer_m.unwrap()).or_default() += 1;
        }
        counts
    }

    pub fn rejected(&self) -> Vec<runtime::Record> {
        self.memory.records(TELEMETRY_REJECTED)
    }
}

impl Sink for ControlledSink {
    fn send(&self, record: OutRecord) -> BoxFuture<'static, Result<Delivery, PortError>> {
        if self.refuse.lock().unwrap().is_some_and(|refuse| refuse(&record)) {
            return async { Err(PortError::Refused("record too large".to_owned())) }.boxed();
        }
        let inner = self.inner.clone();
        if !self.hold.load(Ordering::SeqCst) {
            return inner.send(record);
        }
        let (decided, decision) = oneshot::channel();
        self.reports.lock().unwrap().held.push((record.clone(), decided));
        async move {
            decision.await.unwrap_or(Err(PortError::Closed))?;
            inner.send(record).await
        }
        .boxed()
    }

    fn flush(&self, deadline: Duration) -> BoxFuture<'_, Result<(), PortError>> {
        self.inner.flush(deadline)
    }
}

#[async_trait]
impl Bus for ControlledBus {
    fn sink(&self) -> Arc<dyn Sink> {
        self.sink.clone()
    }
    async fn source(&self, spec: SourceSpec) -> Result<Box<dyn Source>, PortError> {
        self.memory.source(spec).await
    }
    async fn create_topics(&self, topics: &[TopicSpec]) -> Result<(), PortError> {
        self.memory.create_topics(topics).await
    }
    async fn partitions(&self, topic: &str) -> Result<i32, PortError> {
        self.memory.partitions(topic).await
    }
    fn topics(&self) -> &Topics {
        self.memory.topics()
    }
}

/// A running ingest.
pub struct Ingest {
    task: JoinHandle<Result<(), ingest::Error>>,
    shutdown: CancellationToken,
    metrics: Metrics,
    pub readiness: Readiness,
}

pub fn config(broker: SocketAddr) -> Config {
    Config {
        mqtt: MqttConfig {
            broker: format!("mqtt://{broker}"),
            client_id: "ingest-under-test".to_owned(),
            reconnect_min: runtime::config::ConfigDuration::from_millis(5),
            reconnect_max: runtime::config::ConfigDuration::from_millis(50),
            ..MqttConfig::default()
        },
        ingest: IngestConfig::default(),
    }
}

impl Ingest {
    /// Starts it and waits until it is subscribed.
    pub async fn start(config: Config, bus: Arc<ControlledBus>) -> Self {
        let ingest = Ingest::spawn(config, bus);
        until("subscription", || ingest.readiness.is_ready()).await;
        ingest
    }

    pub fn spawn(config: Config, bus: Arc<ControlledBus>) -> Self {
        let registry = runtime::metrics::new_registry();
        let metrics = Metrics::register(&registry);
        let readiness = Readiness::default();
        let context = Context { bus, clock: Arc::new(SystemClock), registry, readiness: readiness.clone() };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(ingest::run_with_metrics(config, context, metrics.clone(), shutdown.clone()));
        Ingest { task, shutdown, metrics, readiness }
    }

    pub fn counts(&self) -> Counts {
        self.metrics.counts()
    }

    pub fn begin_shutdown(&self) {
        self.shutdown.cancel();
    }

    /// Ends it in good order.
    pub async fn stop(self) -> Counts {
        self.shutdown.cancel();
        within("shutdown", self.task).await.unwrap().unwrap();
        self.metrics.counts()
    }

    /// Ends it as a kill would: no acknowledgement, no DISCONNECT.
    pub async fn kill(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    /// Waits for it to end by itself.
    pub async fn ended(self) -> Result<(), ingest::Error> {
        within("end", self.task).await.unwrap()
    }
}

/// Forwards to `target`; every [`Proxy::cut`] ends all connections.
pub struct Proxy {
    pub address: SocketAddr,
    cuts: watch::Sender<u64>,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = watch::Sender::new(0);
        let subscribe = cuts.clone();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut cut = subscribe.subscribe();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(target).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Proxy { address, cuts }
    }

    pub fn cut(&self) {
        self.cuts.send_modify(|n| *n += 1);
    }
}

/// One connection of a broker whose every packet the test writes.
pub struct Scripted {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Scripted {
    pub async fn accept(listener: &TcpListener) -> Self {
        let (stream, _) = within("connection", listener.accept()).await.unwrap();
        Scripted { stream, buffer: BytesMut::new() }
    }

    pub async fn read(&mut self) -> Packet {
        within("packet", async {
            loop {
                match Packet::read(&mut self.buffer, 1 << 20) {
                    Ok(packet) => return packet,
                    Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the client closed");
            }
        })
        .await
    }

    pub async fn write(&mut self, packets: &[Packet]) {
        self.write_with(packets, &[]).await;
    }

    /// In one segment, so that the client reads them together.
    pub async fn write_with(&mut self, packets: &[Packet], garbage: &[u8]) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet.write(&mut bytes, 1 << 20).unwrap();
        }
        bytes.extend_from_slice(garbage);
        self.stream.write_all(&bytes).await.unwrap();
    }

    /// Reads CONNECT, answers, and answers the SUBSCRIBE if there must be one.
    pub async fn welcome(&mut self, session_present: bool, subscribes: bool) {
        let Packet::Connect(connect) = self.read().await else { panic!("expected CONNECT") };
        assert!(!connect.clean_session, "the session must be persistent");
        let code = rumqttc::ConnectReturnCode::Success;
        self.write(&[Packet::ConnAck(rumqttc::ConnAck { session_present, code })]).await;
        if subscribes {
            let Packet::Subscribe(subscribe) = self.read().await else { panic!("expected SUBSCRIBE") };
            assert!(subscribe.filters.iter().all(|f| f.qos == QoS::AtLeastOnce));
            let codes = vec![rumqttc::SubscribeReasonCode::Success(QoS::AtLeastOnce); subscribe.filters.len()];
            self.write(&[Packet::SubAck(rumqttc::SubAck::new(subscribe.pkid, codes))]).await;
        }
    }
}

/// A PUBLISH as a broker sends it.
pub fn publication(packet_id: u16, n: usize) -> Packet {
    let (topic, payload) = position(n);
    let mut publish = rumqttc::Publish::new(topic, QoS::AtLeastOnce, payload);
    publish.pkid = packet_id;
    Packet::Publish(publish)
}
