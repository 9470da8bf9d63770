//! Embedded brokers: our own Kafka-protocol broker and rumqttd, both on loopback.
//!
//! What they cannot do is said at start-up, from the broker's own [`broker::Capabilities`].

use anyhow::{Context as _, anyhow};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

/// Usual port of Kafka; taken when it is free, so that a person's tools find it.
pub const KAFKA_PORT: u16 = 9092;
/// Usual port of MQTT.
pub const MQTT_PORT: u16 = 1883;

/// Which port an embedded server listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    /// This one, or an error.
    Exactly(u16),
    /// This one if it is free, else any.
    Prefer(u16),
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A free address. For a server that cannot report the port it was given.
fn choose(port: Port) -> anyhow::Result<SocketAddr> {
    let (wanted, any) = match port {
        Port::Exactly(port) => (port, false),
        Port::Prefer(port) => (port, true),
    };
    match TcpListener::bind(loopback(wanted)) {
        Ok(listener) => Ok(listener.local_addr()?),
        Err(_) if any => Ok(TcpListener::bind(loopback(0))?.local_addr()?),
        Err(error) => Err(anyhow!("port {wanted} on 127.0.0.1: {error}; stop what listens there")),
    }
}

/// Starts the Kafka-protocol broker with its data under `data_dir/broker`.
pub async fn start_kafka(data_dir: &Path, port: Port) -> anyhow::Result<broker::Broker> {
    let folder = data_dir.join("broker");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut config = broker::Config::new(folder);
    config.listen = choose(port)?;
    config.auto_create_topics = false;
    let broker = broker::Broker::start(config).await?;
    tracing::info!(address = %broker.addr(), "embedded broker: {}", broker::capabilities());
    Ok(broker)
}

/// Starts rumqttd; it ends with the process, since it has no stop call. Sessions do not outlive it.
pub async fn start_mqtt(port: Port) -> anyhow::Result<SocketAddr> {
    let address = choose(port)?;
    let mut mqtt = rumqttd::Broker::new(mqtt_config(address));
    std::thread::Builder::new().name("rumqttd".to_owned()).spawn(move || {
        if let Err(error) = mqtt.start() {
            tracing::error!(%error, "embedded MQTT broker ended");
        }
    })?;
    wait_for_listener(address).await?;
    tracing::info!(%address, "embedded MQTT broker: sessions and queued messages do not survive a restart");
    Ok(address)
}

async fn wait_for_listener(address: SocketAddr) -> anyhow::Result<()> {
    let connect = async {
        while tokio::net::TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), connect)
        .await
        .map_err(|_| anyhow!("the embedded MQTT broker did not listen on {address} within 10 s"))
}

fn mqtt_config(listen: SocketAddr) -> rumqttd::Config {
    let server = rumqttd::ServerSettings {
        name: "embedded".to_owned(),
        listen,
        tls: None,
        next_connection_delay_ms: 0,
        connections: rumqttd::ConnectionSettings {
            connection_timeout_ms: 5_000,
            max_payload_size: 256 * 1024,
            max_inflight_count: 200,
            auth: None,
            external_auth: None,
            dynamic_filters: true,
        },
    };
    rumqttd::Config {
        id: 0,
        router: rumqttd::RouterConfig {
            max_connections: 10_000,
            max_outgoing_packet_count: 200,
            max_segment_size: 16 * 1024 * 1024,
            max_segment_count: 10,
            custom_segment: None,
            initialized_filters: None,
            shared_subscriptions_strategy: Default::default(),
        },
        v4: Some([("embedded".to_owned(), server)].into()),
        v5: None,
        ws: None,
        cluster: None,
        console: None,
        bridge: None,
        prometheus: None,
        metrics: None,
    }
}
