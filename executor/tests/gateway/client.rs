//! Small clients: HTTP/1.1 by hand, so that a test can also be rude; gRPC by the generated one.

use executor::gateway::proto::grpc_inference_service_client::GrpcInferenceServiceClient;
use serde_json::Value;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};
use tokio_rustls::{TlsConnector, client::TlsStream};

const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) type Grpc = GrpcInferenceServiceClient<tonic::transport::Channel>;

pub(crate) fn grpc(address: SocketAddr) -> Grpc {
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    GrpcInferenceServiceClient::new(endpoint.connect_lazy())
}

/// A response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    fn parse(bytes: &[u8]) -> Reply {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Reply { status, head, body: bytes[end + 4..].to_vec() }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    pub(crate) fn json(&self) -> Value {
        let text = || String::from_utf8_lossy(&self.body).into_owned();
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {} {}", self.head, text()))
    }
}

async fn exchange(mut io: impl AsyncRead + AsyncWrite + Unpin, request: &[u8]) -> std::io::Result<Vec<u8>> {
    // The server may answer and close before it has read everything.
    let _ = io.write_all(request).await;
    let _ = io.flush().await;
    let mut reply = Vec::new();
    tokio::time::timeout(PATIENCE, io.read_to_end(&mut reply)).await.expect("an answer within patience").or_else(
        |e| {
            if reply.is_empty() { Err(e) } else { Ok(0) }
        },
    )?;
    Ok(reply)
}

pub(crate) async fn try_exchange(address: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    exchange(TcpStream::connect(address).await.ok()?, request).await.ok()
}

fn head(method: &str, path: &str, headers: &[(&str, &str)], length: Option<usize>) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if let Some(length) = length {
        head += &format!("Content-Length: {length}\r\n");
    }
    (head + "\r\n").into_bytes()
}

pub(crate) async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Reply {
    let request = [head(method, path, headers, Some(body.len())), body.to_vec()].concat();
    Reply::parse(&try_exchange(address, &request).await.expect("an answer"))
}

pub(crate) async fn get(address: SocketAddr, path: &str) -> Reply {
    Reply::parse(&try_exchange(address, &head("GET", path, &[], None)).await.expect("an answer"))
}

pub(crate) async fn post(address: SocketAddr, path: &str, body: &Value) -> Reply {
    send(address, "POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes()).await
}

pub(crate) async fn send_chunked(address: SocketAddr, path: &str, chunks: &[&[u8]]) -> Reply {
    let mut request = head("POST", path, &[("Transfer-Encoding", "chunked")], None);
    for chunk in chunks {
        request.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
        request.extend(*chunk);
        request.extend(b"\r\n");
    }
    request.extend(b"0\r\n\r\n");
    Reply::parse(&try_exchange(address, &request).await.expect("an answer"))
}

/// A request whose body never comes.
pub(crate) async fn open_request(address: SocketAddr, path: &str, length: usize) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&head("POST", path, &[], Some(length))).await.unwrap();
    stream
}

/// Waits for the answer to such a request.
pub(crate) async fn send_slowly(address: SocketAddr, path: &str, length: usize) -> Reply {
    let stream = open_request(address, path, length).await;
    Reply::parse(&exchange(stream, b"").await.expect("an answer"))
}

pub(crate) fn tls_roots(certificate: &Path) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    Arc::new(roots)
}

async fn connect_tls(address: SocketAddr, roots: &Arc<RootCertStore>, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let provider = Arc::new(ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
}

pub(crate) async fn exchange_tls(
    address: SocketAddr,
    roots: &Arc<RootCertStore>,
    alpn: &[&[u8]],
    request: &[u8],
) -> Reply {
    Reply::parse(&exchange(connect_tls(address, roots, alpn).await, request).await.unwrap())
}

/// The protocol that the handshake agreed on.
pub(crate) async fn negotiated(address: SocketAddr, roots: &Arc<RootCertStore>, alpn: &[&[u8]]) -> Option<Vec<u8>> {
    connect_tls(address, roots, alpn).await.get_ref().1.alpn_protocol().map(<[u8]>::to_vec)
}

/// Waits for a condition that nothing announces.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, poll).await.is_err() {
        panic!("waited in vain for: {what}");
    }
}
