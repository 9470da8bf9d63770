//! The service against brokers over sockets: what is acknowledged is in Kafka, what is not comes again.
#![allow(clippy::unwrap_used, reason = "tests")]
#![allow(unreachable_pub, reason = "the support module")]

mod support;

use ingest::{Config, IngestConfig, MqttConfig};
use rumqttc::{Packet, QoS};
use runtime::PortError;
use runtime::config::{ConfigDuration, Secret};
use schemas::headers;
use schemas::topics::{TELEMETRY_REJECTED, TELEMETRY_VEHICLE};
use std::path::PathBuf;
use support::*;
use tokio::net::TcpListener;

fn once(range: std::ops::Range<usize>) -> std::collections::BTreeMap<i64, usize> {
    range.map(|n| (n as i64, 1)).collect()
}

/// With everything acknowledged, the persistent session has nothing left for the next process.
async fn assert_nothing_left(config: Config, broker: std::net::SocketAddr, bus: &std::sync::Arc<ControlledBus>) {
    let before: usize = bus.events().values().sum();
    let next = Ingest::start(config, bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &positions(900_000..900_001)).await;
    until("the marker", || bus.events().contains_key(&900_000)).await;
    assert_eq!(next.stop().await.received, 1, "only the marker came");
    assert_eq!(bus.events().values().sum::<usize>(), before + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_rejections_and_duplicates_all_get_their_record_and_their_ack() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    let ingest = Ingest::start(config(broker), bus.clone()).await;
    let mut messages = positions(0..500);
    messages.extend(positions(0..50));
    messages.push(("/hfp/v2/deadrun/ongoing/vp/bus/0018/00001".to_owned(), b"{\"VP\":{".to_vec()));
    messages.push(("/hfp/v2/deadrun/ongoing/vp/bus/0018/00001".to_owned(), b"{\"VP\":{\"odo\":1}}".to_vec()));
    messages.push(("/hfp/v2/nonsense".to_owned(), b"\x00\xff".to_vec()));
    let sent = messages.len() as u64;
    publish(broker, QoS::AtLeastOnce, &messages).await;
    until("all acknowledged", || ingest.counts().acks == sent).await;
    let counts = ingest.stop().await;
    assert_eq!((counts.received, counts.published, counts.rejected, counts.duplicates), (sent, 500, 3, 50));
    assert_eq!((counts.connections, counts.stale_acks, counts.qos0), (1, 0, 0));
    assert_eq!(bus.events(), once(0..500));

    let mut rejected = bus.rejected();
    rejected.sort_by_key(|r| r.headers.get_str(headers::REASON).unwrap().to_owned());
    let reasons: Vec<&str> = rejected.iter().map(|r| r.headers.get_str(headers::REASON).unwrap()).collect();
    assert_eq!(reasons, ["bad-topic", "invalid-json", "missing-field"]);
    assert_eq!(rejected[0].value.as_deref(), Some(&b"\x00\xff"[..]), "the original bytes");
    assert_eq!(
        (rejected[0].key_str(), rejected[0].headers.get_str(headers::MQTT_TOPIC)),
        ("/hfp/v2/nonsense", Some("/hfp/v2/nonsense"))
    );
    assert!(rejected[2].headers.get_str(headers::DETAIL).unwrap().contains("tst"));
    let received: i64 = rejected[0].headers.get_str(headers::RECEIVED_AT).unwrap().parse().unwrap();
    assert_eq!(rejected[0].timestamp_ms, received);
    let event = &bus.memory.records(TELEMETRY_VEHICLE)[0];
    assert!(event.key_str().starts_with("0018/0000"), "{}", event.key_str());
    assert_nothing_left(config(broker), broker, &bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_acknowledged_before_its_delivery_report_so_a_kill_loses_nothing() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    bus.hold(true);
    let first = Ingest::start(config(broker), bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &positions(0..40)).await;
    until("all in flight", || bus.held() == 40).await;
    assert_eq!(first.counts().acks, 0);
    first.kill().await;
    bus.release(Err(PortError::Closed));
    assert_eq!(bus.events(), once(0..0), "nothing is in Kafka");

    bus.hold(false);
    publish(broker, QoS::AtLeastOnce, &positions(40..60)).await;
    let second = Ingest::start(config(broker), bus.clone()).await;
    until("redelivery", || second.counts().acks == 60).await;
    second.stop().await;
    assert_eq!(bus.events(), once(0..60));
    assert_nothing_left(config(broker), broker, &bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_connection_loses_and_doubles_nothing() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    let proxy = Proxy::start(broker).await;
    let ingest = Ingest::start(config(proxy.address), bus.clone()).await;
    let total = 3000;
    let publisher = tokio::spawn(async move { publish(broker, QoS::AtLeastOnce, &positions(0..total)).await });
    for at in [200, 900, 1700] {
        until("progress", || bus.events().len() >= at).await;
        proxy.cut();
    }
    publisher.await.unwrap();
    until("everything", || bus.events().len() == total).await;
    until("the last acknowledgement", || ingest.counts().acks + ingest.counts().stale_acks >= total as u64).await;
    let counts = ingest.stop().await;
    assert_eq!(bus.events(), once(0..total), "the window outlives the connection: each exactly once");
    // A cut may hit the proxy while the client is still reconnecting.
    assert!(counts.connections >= 2, "{counts:?}");
    assert_eq!(counts.received, counts.published + counts.duplicates, "{counts:?}");
    assert_nothing_left(config(broker), broker, &bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_deliveries_are_redelivered_until_kafka_is_back() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    let ingest = Ingest::start(config(broker), bus.clone()).await;
    bus.memory.fail_sends(Some("away"));
    publish(broker, QoS::AtLeastOnce, &positions(0..300)).await;
    until("several attempts", || ingest.counts().connections >= 4).await;
    assert_eq!((ingest.counts().acks, bus.events().len()), (0, 0));
    bus.memory.fail_sends(None);
    until("delivery", || bus.events().len() == 300 && ingest.counts().acks >= 300).await;
    let counts = ingest.stop().await;
    assert_eq!(bus.events(), once(0..300));
    assert!(counts.delivery_failures > 0);
    assert_nothing_left(config(broker), broker, &bus).await;
}

/// The embedded broker ends a connection whose acknowledgements are out of order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_out_of_order_leave_as_acknowledgements_in_order() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    bus.hold(true);
    let ingest = Ingest::start(config(broker), bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &positions(0..90)).await;
    until("all in flight", || bus.held() == 90).await;
    bus.hold(false);
    bus.release(Ok(()));
    publish(broker, QoS::AtLeastOnce, &positions(90..200)).await;
    until("all acknowledged", || ingest.counts().acks == 200).await;
    assert_eq!(ingest.stop().await.connections, 1);
    assert_nothing_left(config(broker), broker, &bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_message_in_flight_is_acknowledged_only_with_the_first() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    bus.hold(true);
    let ingest = Ingest::start(config(broker), bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &[position(1), position(1), position(1)]).await;
    until("arrival", || ingest.counts().received == 3).await;
    until("one record", || bus.held() == 1).await;
    assert_eq!((ingest.counts().acks, ingest.counts().duplicates), (0, 0));
    bus.hold(false);
    bus.release(Ok(()));
    until("all acknowledged", || ingest.counts().acks == 3).await;
    assert_eq!(ingest.stop().await.duplicates, 2);
    assert_eq!(bus.events(), once(1..2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_waits_for_deliveries_and_acknowledges_them() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    bus.hold(true);
    let ingest = Ingest::start(config(broker), bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &positions(0..20)).await;
    until("all in flight", || bus.held() == 20).await;
    ingest.begin_shutdown();
    bus.hold(false);
    bus.release(Ok(()));
    assert_eq!(ingest.stop().await.acks, 20);
    assert_nothing_left(config(broker), broker, &bus).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shutdown_does_not_wait_for_ever() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    bus.hold(true);
    let mut config = config(broker);
    config.ingest.drain_timeout = ConfigDuration::from_millis(50);
    config.ingest.in_flight = 5;
    let ingest = Ingest::start(config.clone(), bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &positions(0..20)).await;
    until("all that fits", || bus.held() == 5).await;
    assert_eq!(ingest.stop().await.acks, 0);
    bus.hold(false);
    let next = Ingest::start(config, bus.clone()).await;
    until("redelivery", || next.counts().acks == 20).await;
    next.stop().await;
    assert_eq!(bus.events(), once(0..20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_pipeline_holds_back_and_goes_on() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    bus.hold(true);
    let mut config = config(broker);
    config.mqtt.max_inflight = 1;
    config.ingest.in_flight = 3;
    config.ingest.buffer_bytes = 400;
    let ingest = Ingest::start(config.clone(), bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &positions(0..50)).await;
    until("all that fits", || bus.held() > 0).await;
    while bus.events().len() < 50 {
        assert!(bus.held() <= 3);
        bus.release(Ok(()));
        tokio::task::yield_now().await;
    }
    until("all acknowledged", || {
        bus.release(Ok(()));
        ingest.counts().acks == 50
    })
    .await;
    ingest.stop().await;
    assert_eq!(bus.events(), once(0..50));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_payloads_are_rejected_and_cut() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    let mut config = config(broker);
    config.ingest.max_payload_bytes = 1000;
    let ingest = Ingest::start(config, bus.clone()).await;
    let topic = position(1).0;
    publish(broker, QoS::AtLeastOnce, &[(topic, vec![b'x'; 300_000]), position(1)]).await;
    until("all acknowledged", || ingest.counts().acks == 2).await;
    ingest.stop().await;
    let rejected = &bus.rejected()[0];
    assert_eq!(rejected.headers.get_str(headers::REASON), Some("too-large"));
    assert!(rejected.headers.get_str(headers::DETAIL).unwrap().contains("300000"));
    assert_eq!(rejected.value.as_ref().unwrap().len(), 1000);
    assert_eq!(bus.events(), once(1..2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_refuses_is_rejected_and_if_that_is_refused_too_the_service_ends() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    bus.refuse(|record| record.topic == TELEMETRY_VEHICLE);
    let ingest = Ingest::start(config(broker), bus.clone()).await;
    publish(broker, QoS::AtLeastOnce, &[position(1)]).await;
    until("acknowledged", || ingest.counts().acks == 1).await;
    assert_eq!(bus.rejected().len(), 1);
    bus.refuse(|record| [TELEMETRY_VEHICLE, TELEMETRY_REJECTED].contains(&record.topic.as_str()));
    publish(broker, QoS::AtLeastOnce, &[position(2)]).await;
    let error = ingest.ended().await.unwrap_err();
    assert!(matches!(error, ingest::Error::Kafka(PortError::Refused(_))), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qos_0_is_taken_and_counted() {
    let (broker, bus) = (broker(BrokerOptions::default()).await, ControlledBus::new());
    let ingest = Ingest::start(config(broker), bus.clone()).await;
    publish(broker, QoS::AtMostOnce, &positions(0..10)).await;
    publish(broker, QoS::AtLeastOnce, &positions(10..20)).await;
    until("arrival", || bus.events().len() == 20).await;
    until("acknowledged", || ingest.counts().received == 20).await;
    // rumqttd delivers a QoS 0 publication at the subscription's QoS; Mosquitto at the lower of both.
    assert!(ingest.stop().await.qos0 <= 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_credentials() {
    let options = BrokerOptions { tls: true, auth: Some(("edge", "s3cret")) };
    let (broker, bus) = (broker(options).await, ControlledBus::new());
    let ca = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/tls/ca.pem"));
    let config = Config {
        mqtt: MqttConfig {
            broker: format!("mqtts://localhost:{}", broker.port()),
            username: Some("edge".to_owned()),
            password: Some(Secret::new("s3cret")),
            ca_file: Some(ca),
            ..config(broker).mqtt
        },
        ingest: IngestConfig::default(),
    };
    let ingest = Ingest::start(config.clone(), bus.clone()).await;
    assert_eq!(ingest.stop().await.connections, 1);

    // rumqttd drops a client with a wrong password without a word: it is retried, and not ready.
    let mut wrong = config;
    wrong.mqtt.password = Some(Secret::new("guess"));
    let ingest = Ingest::spawn(wrong, bus);
    until("an attempt", || ingest.readiness.checks().get("ingest").is_some_and(|c| c.detail != "connecting")).await;
    assert!(!ingest.readiness.is_ready());
    assert_eq!(ingest.stop().await.connections, 0);
}

#[tokio::test]
async fn configuration_that_cannot_work_ends_the_service() {
    let bus = ControlledBus::new();
    let mut embedded = config("127.0.0.1:1".parse().unwrap());
    embedded.mqtt.broker = "embedded".to_owned();
    let error = Ingest::spawn(embedded, bus.clone()).ended().await.unwrap_err();
    assert!(error.to_string().contains("mqtt.broker"), "{error}");
    let mut no_ca = config("127.0.0.1:1".parse().unwrap());
    no_ca.mqtt.broker = "mqtts://localhost:1".to_owned();
    no_ca.mqtt.ca_file = Some("/does/not/exist.pem".into());
    let error = Ingest::spawn(no_ca, bus.clone()).ended().await.unwrap_err();
    assert!(error.to_string().contains("mqtt.ca_file: /does/not/exist.pem"), "{error}");
    let mut empty = config("127.0.0.1:1".parse().unwrap());
    empty.mqtt.topics.clear();
    empty.ingest.in_flight = 0;
    let error = Ingest::spawn(empty, bus).ended().await.unwrap_err().to_string();
    assert!(error.contains("mqtt.topics") && error.contains("ingest.in_flight"), "all at once: {error}");
}

#[tokio::test]
async fn refused_credentials_and_subscriptions_end_the_service() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = config(listener.local_addr().unwrap());
    let ingest = Ingest::spawn(config.clone(), ControlledBus::new());
    let mut connection = Scripted::accept(&listener).await;
    connection.read().await;
    let code = rumqttc::ConnectReturnCode::NotAuthorized;
    connection.write(&[Packet::ConnAck(rumqttc::ConnAck { session_present: false, code })]).await;
    let error = ingest.ended().await.unwrap_err().to_string();
    assert!(error.contains("mqtt.username"), "{error}");

    let ingest = Ingest::spawn(config, ControlledBus::new());
    let mut connection = Scripted::accept(&listener).await;
    connection.welcome(false, false).await;
    let Packet::Subscribe(subscribe) = connection.read().await else { panic!("expected SUBSCRIBE") };
    let codes = vec![rumqttc::SubscribeReasonCode::Success(QoS::AtLeastOnce), rumqttc::SubscribeReasonCode::Failure];
    connection.write(&[Packet::SubAck(rumqttc::SubAck::new(subscribe.pkid, codes))]).await;
    let error = ingest.ended().await.unwrap_err().to_string();
    assert!(error.contains("/hfp/v1/#"), "{error}");
}

/// The trap: packet ids of an old connection mean other messages on the new one.
#[tokio::test]
async fn acknowledgements_of_an_old_connection_never_reach_the_new_one() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bus = ControlledBus::new();
    bus.hold(true);
    let ingest = Ingest::spawn(config(listener.local_addr().unwrap()), bus.clone());

    let mut old = Scripted::accept(&listener).await;
    old.welcome(false, true).await;
    old.write(&[publication(1, 10), publication(2, 11), publication(3, 12)]).await;
    until("in flight", || bus.held() == 3).await;
    drop(old);

    // The session is still there, the subscription confirmed: no new one. Ids 1 and 2 are other messages now.
    let mut new = Scripted::accept(&listener).await;
    new.welcome(true, false).await;
    new.write(&[publication(1, 20), publication(2, 21)]).await;
    until("in flight", || bus.held() == 5).await;
    // Reports of 21, 20 (new) and then 12, 11, 10 (old).
    bus.release(Ok(()));
    for expected in [1, 2] {
        let Packet::PubAck(ack) = new.read().await else { panic!("expected PUBACK") };
        assert_eq!(ack.pkid, expected);
    }
    // Redelivered under new ids: duplicates now, acknowledged in order.
    bus.hold(false);
    new.write(&[publication(3, 10), publication(4, 11), publication(5, 12)]).await;
    for expected in [3, 4, 5] {
        let Packet::PubAck(ack) = new.read().await else { panic!("expected PUBACK") };
        assert_eq!(ack.pkid, expected);
    }
    ingest.begin_shutdown();
    assert!(matches!(new.read().await, Packet::Disconnect));
    drop(new);
    let counts = ingest.stop().await;
    assert_eq!((counts.acks, counts.stale_acks, counts.duplicates, counts.published), (5, 3, 3, 5));
}

/// The trap: the client keeps publications that it read with the packet that ended the connection, and yields them
/// after the next CONNACK.
#[tokio::test]
async fn publications_left_over_from_an_old_connection_are_dropped() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let bus = ControlledBus::new();
    let ingest = Ingest::spawn(config(listener.local_addr().unwrap()), bus.clone());
    let mut old = Scripted::accept(&listener).await;
    old.welcome(false, true).await;
    until("subscription", || ingest.readiness.is_ready()).await;
    // Packet type 0 is forbidden: the client ends the connection while both publications are in its buffer.
    old.write_with(&[publication(7, 1), publication(8, 2)], &[0, 0]).await;

    let mut new = Scripted::accept(&listener).await;
    new.welcome(true, false).await;
    new.write(&[publication(1, 2), publication(2, 1), publication(3, 3)]).await;
    for expected in [1, 2, 3] {
        let Packet::PubAck(ack) = new.read().await else { panic!("expected PUBACK") };
        assert_eq!(ack.pkid, expected, "7 and 8 are ids of the old connection");
    }
    ingest.begin_shutdown();
    assert!(matches!(new.read().await, Packet::Disconnect));
    drop(new);
    let counts = ingest.stop().await;
    assert_eq!((counts.received, counts.published, counts.acks), (3, 3, 3));
}

#[tokio::test]
async fn a_new_session_is_subscribed_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ingest = Ingest::spawn(config(listener.local_addr().unwrap()), ControlledBus::new());
    // Even a session that exists is subscribed once by each process: it may be an older one's with other filters.
    for session_present in [true, false, false] {
        let mut connection = Scripted::accept(&listener).await;
        connection.welcome(session_present, true).await;
        until("subscription", || ingest.readiness.is_ready()).await;
        drop(connection);
        until("notice", || !ingest.readiness.is_ready()).await;
    }
    assert!(ingest.stop().await.connections >= 3);
}
