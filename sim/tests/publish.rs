//! The publisher against a broker whose every packet the test writes.
#![allow(clippy::unwrap_used, reason = "tests")]

use bytes::BytesMut;
use rumqttc::{ConnAck, ConnectReturnCode, Packet, PubAck, Publish, QoS};
use sim::publish::{Error, Publisher};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Bounds every wait; reaching it is a failure.
const PATIENCE: Duration = Duration::from_secs(30);

struct Broker {
    listener: TcpListener,
}

struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Broker {
    async fn start() -> (Self, Publisher, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let publisher = Publisher::connect(&address.ip().to_string(), address.port(), "device", &shutdown);
        (Broker { listener }, publisher, shutdown)
    }

    async fn accept(&self, code: ConnectReturnCode) -> Connection {
        let (stream, _) = tokio::time::timeout(PATIENCE, self.listener.accept()).await.unwrap().unwrap();
        let mut connection = Connection { stream, buffer: BytesMut::new() };
        assert!(matches!(connection.read().await, Some(Packet::Connect(c)) if c.clean_session));
        connection.write(&[Packet::ConnAck(ConnAck { session_present: false, code })]).await;
        connection
    }
}

impl Connection {
    /// `None` when the client has closed.
    async fn read(&mut self) -> Option<Packet> {
        let packet = async {
            loop {
                match Packet::read(&mut self.buffer, 1 << 24) {
                    Ok(packet) => return Some(packet),
                    Err(rumqttc::mqttbytes::Error::InsufficientBytes(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                if self.stream.read_buf(&mut self.buffer).await.unwrap() == 0 {
                    return None;
                }
            }
        };
        tokio::time::timeout(PATIENCE, packet).await.unwrap()
    }

    async fn publication(&mut self) -> Publish {
        match self.read().await {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("expected PUBLISH, got {other:?}"),
        }
    }

    async fn write(&mut self, packets: &[Packet]) {
        let mut bytes = BytesMut::new();
        for packet in packets {
            packet.write(&mut bytes, 1 << 20).unwrap();
        }
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn ack(&mut self, publish: &Publish) {
        self.write(&[Packet::PubAck(PubAck::new(publish.pkid))]).await;
    }
}

async fn publish(publisher: &Publisher, range: std::ops::Range<usize>) {
    for n in range {
        publisher.publish(format!("t/{n}"), n.to_string().into_bytes()).await.unwrap();
    }
}

fn topics(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("t/{n}")).collect()
}

#[tokio::test]
async fn every_message_is_sent_in_order_and_acknowledged() {
    let (broker, publisher, _shutdown) = Broker::start().await;
    let served = tokio::spawn(async move {
        let mut connection = broker.accept(ConnectReturnCode::Success).await;
        let mut topics = Vec::new();
        loop {
            match connection.read().await {
                Some(Packet::Publish(publish)) => {
                    assert_eq!((publish.qos, publish.retain), (QoS::AtLeastOnce, false));
                    connection.ack(&publish).await;
                    topics.push(publish.topic);
                }
                Some(Packet::Disconnect) => return topics,
                other => panic!("{other:?}"),
            }
        }
    });
    publish(&publisher, 0..1_500).await;
    assert_eq!(publisher.finish(PATIENCE).await, Ok(1_500));
    assert_eq!(served.await.unwrap(), topics(0..1_500));
}

#[tokio::test]
async fn no_more_than_the_window_is_in_flight() {
    let (broker, publisher, shutdown) = Broker::start().await;
    publish(&publisher, 0..300).await;
    let mut connection = broker.accept(ConnectReturnCode::Success).await;
    let mut window = Vec::new();
    for _ in 0..100 {
        window.push(connection.publication().await);
    }
    // The next packet comes only after an acknowledgement.
    connection.ack(&window[0]).await;
    assert_eq!(connection.publication().await.topic, "t/100");
    assert_eq!(publisher.acknowledged(), 1);
    shutdown.cancel();
    assert_eq!(publisher.finish(PATIENCE).await, Ok(1));
}

/// The client library would forget them: the broker has no session.
#[tokio::test]
async fn what_is_not_acknowledged_is_sent_again_to_a_broker_that_forgot_everything() {
    let (broker, publisher, _shutdown) = Broker::start().await;
    publish(&publisher, 0..20).await;
    let mut first = broker.accept(ConnectReturnCode::Success).await;
    for n in 0..12 {
        let message = first.publication().await;
        if n < 5 {
            first.ack(&message).await;
        }
    }
    while publisher.acknowledged() < 5 {
        tokio::task::yield_now().await;
    }
    drop(first);
    let mut second = broker.accept(ConnectReturnCode::Success).await;
    let served = tokio::spawn(async move {
        let mut again = Vec::new();
        while let Some(Packet::Publish(publish)) = second.read().await {
            second.ack(&publish).await;
            again.push(publish.topic);
        }
        again
    });
    assert_eq!(publisher.finish(PATIENCE).await, Ok(20));
    assert_eq!(served.await.unwrap(), topics(5..20));
}

#[tokio::test]
async fn a_broker_that_is_away_is_tried_again_and_a_deadline_holds() {
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let shutdown = CancellationToken::new();
    let publisher = Publisher::connect(&address.ip().to_string(), address.port(), "device", &shutdown);
    publish(&publisher, 0..3).await;
    let error = publisher.finish(Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(&error, Error::Connection { port, .. } if *port == address.port()), "{error}");
}

#[tokio::test]
async fn a_refusal_ends_it_with_its_reason() {
    let (broker, publisher, _shutdown) = Broker::start().await;
    publish(&publisher, 0..3).await;
    drop(broker.accept(ConnectReturnCode::NotAuthorized).await);
    let error = publisher.finish(PATIENCE).await.unwrap_err();
    assert!(error.to_string().contains("NotAuthorized"), "{error}");
}

#[tokio::test]
async fn wildcards_are_no_topics_and_large_messages_go_through() {
    let (broker, publisher, _shutdown) = Broker::start().await;
    assert_eq!(publisher.publish("a/#".to_owned(), vec![]).await, Err(Error::Topic("a/#".to_owned())));
    assert!(publisher.publish(String::new(), vec![]).await.is_err());
    publisher.publish("big".to_owned(), vec![b'x'; 500_000]).await.unwrap();
    let mut connection = broker.accept(ConnectReturnCode::Success).await;
    let message = connection.publication().await;
    assert_eq!(message.payload.len(), 500_000);
    connection.ack(&message).await;
    assert_eq!(publisher.finish(PATIENCE).await, Ok(1));
}
