#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

#[tokio::test]
async fn second_broker_on_a_folder_is_refused_until_the_first_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let first = Broker::start(Config::new(dir.path())).await.unwrap();
    let refused = Broker::start(Config::new(dir.path())).await.unwrap_err();
    assert!(matches!(refused, Error::Locked(_)));
    assert!(refused.to_string().contains("in use by another broker"), "{refused}");
    first.shutdown().await;
    Broker::start(Config::new(dir.path())).await.unwrap().shutdown().await;
}

#[tokio::test]
async fn taken_address_is_an_error_that_names_it() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::new(dir.path());
    config.listen = taken.local_addr().unwrap();
    let refused = Broker::start(config).await.unwrap_err().to_string();
    assert!(refused.contains(&taken.local_addr().unwrap().to_string()), "{refused}");
}

#[tokio::test]
async fn cluster_id_stays_and_addresses_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let broker = Broker::start(Config::new(dir.path())).await.unwrap();
        assert_eq!(broker.bootstrap(), broker.addr().to_string());
        assert!(broker.addr().ip().is_loopback());
        ids.push(ask_for_metadata(broker.addr()));
        broker.shutdown().await;
    }
    // Ports differ from run to run; the cluster id behind them does not.
    let id = |answer: &[u8]| answer[answer.len() - 42..].to_vec();
    assert_eq!(id(&ids[0]), id(&ids[1]));
}

/// Metadata version 2 about no topics: the answer ends with the cluster id (2 + 32 bytes), the
/// controller (4) and an empty array (4).
fn ask_for_metadata(addr: SocketAddr) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).unwrap();
    let request = [0, 3, 0, 2, 0, 0, 0, 9, 0xff, 0xff, 0, 0, 0, 0];
    stream.write_all(&(request.len() as u32).to_be_bytes()).unwrap();
    stream.write_all(&request).unwrap();
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], [0, 0, 0, 9]);
    answer
}

/// Connections that wait for nothing, or for ever, do not hold the shutdown up.
#[tokio::test]
async fn shutdown_ends_open_connections() {
    let dir = tempfile::tempdir().unwrap();
    let broker = Broker::start(Config::new(dir.path())).await.unwrap();
    let mut idle = TcpStream::connect(broker.addr()).unwrap();
    ask_for_metadata(broker.addr());
    tokio::time::timeout(Duration::from_secs(10), broker.shutdown()).await.unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap_or(0), 0);
}
