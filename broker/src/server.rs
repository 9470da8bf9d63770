//! Sockets: accepting, framing, and the loop of one connection.
//!
//! A connection is served one request at a time, in order, as clients of the protocol expect. What
//! it can hold in memory is bounded: one request (grown as bytes arrive, not as they are announced)
//! and one reply. Invariants: whatever a peer sends ends at worst its own connection; a peer that
//! hangs up while its request waits frees the connection at once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::handlers::{self, Client, cluster};
use crate::protocol::frame::{self, Parsed, Refusal};
use crate::protocol::pieces::Pieces;
use crate::protocol::unserved;

/// A connection on which nothing is asked for so long is closed, as Apache Kafka does.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// A peer that does not take its reply for so long is given up.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept (out of descriptors, for instance).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Room made for the first bytes of a request.
const FIRST_READ: usize = 16 << 10;

/// Accepts connections until cancelled, then waits for those that are open to end.
pub(crate) async fn run(context: Arc<Context>, listener: TcpListener, stop: CancellationToken) {
    let connections = TaskTracker::new();
    let slots = Arc::new(Semaphore::new(context.config.max_connections));
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            let limit = context.config.max_connections;
            tracing::warn!(%peer, limit, "too many connections: this one is closed");
            continue;
        };
        let (context, stop) = (Arc::clone(&context), stop.clone());
        connections.spawn(async move {
            let _slot = slot;
            tokio::select! {
                () = stop.cancelled() => {}
                ended = serve(&context, stream, peer) => report(peer, ended),
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Why a connection ended other than by the peer's hanging up.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("a request of {0} bytes is announced")]
    Oversized(i64),
    #[error("nothing was asked for {} s", IDLE_TIMEOUT.as_secs())]
    Idle,
    #[error("the reply was not taken for {} s", WRITE_TIMEOUT.as_secs())]
    Slow,
}

fn report(peer: SocketAddr, ended: Result<(), Ended>) {
    match ended {
        Ok(()) => {}
        Err(Ended::Io(error)) => tracing::debug!(%peer, %error, "connection lost"),
        Err(Ended::Idle) => tracing::debug!(%peer, "idle connection closed"),
        Err(error) => tracing::warn!(%peer, %error, "connection closed"),
    }
}

async fn serve(context: &Arc<Context>, stream: TcpStream, peer: SocketAddr) -> Result<(), Ended> {
    stream.set_nodelay(true)?;
    let client = Client { host: format!("/{}", peer.ip()) };
    let (reader, mut writer) = stream.into_split();
    let mut requests = Requests { reader, buffer: BytesMut::new() };
    let limit = context.config.max_request_bytes;
    while let Some(request) = requests.next(limit).await? {
        let reply = tokio::select! {
            biased;
            reply = respond(context, &client, request) => reply?,
            () = requests.hung_up() => return Ok(()),
        };
        if let Some(reply) = reply {
            send(&mut writer, reply).await?;
        }
    }
    Ok(())
}

async fn respond(context: &Arc<Context>, client: &Client, request: Bytes) -> Result<Option<Pieces>, Refusal> {
    match frame::parse(request)? {
        Parsed::Request(frame) => handlers::serve(context, client, &frame).await,
        Parsed::FutureApiVersions { correlation } => {
            frame::future_api_versions(correlation, &cluster::future_api_versions()).map(|reply| Some(reply.into()))
        }
        Parsed::Unserved { key, version, correlation } => {
            unserved::refuse(key, version, correlation).map(|reply| Some(reply.into()))
        }
    }
}

async fn send(writer: &mut OwnedWriteHalf, mut reply: Pieces) -> Result<(), Ended> {
    match tokio::time::timeout(WRITE_TIMEOUT, writer.write_all_buf(&mut reply)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(Ended::Slow),
    }
}

/// The requests of one connection.
struct Requests {
    reader: OwnedReadHalf,
    buffer: BytesMut,
}

impl Requests {
    /// The next request, `None` when the peer has hung up between two of them.
    async fn next(&mut self, limit: usize) -> Result<Option<Bytes>, Ended> {
        loop {
            if let Some(length) = self.announced(limit)?
                && self.buffer.len() >= 4 + length
            {
                self.buffer.advance(4);
                return Ok(Some(self.buffer.split_to(length).freeze()));
            }
            self.buffer.reserve(FIRST_READ);
            let read = self.reader.read_buf(&mut self.buffer);
            let count = tokio::time::timeout(IDLE_TIMEOUT, read).await.map_err(|_| Ended::Idle)??;
            if count == 0 {
                return if self.buffer.is_empty() {
                    Ok(None)
                } else {
                    Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
                };
            }
        }
    }

    fn announced(&self, limit: usize) -> Result<Option<usize>, Ended> {
        let Some(length) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let length = i32::from_be_bytes(*length);
        match usize::try_from(length) {
            Ok(length) if length <= limit => Ok(Some(length)),
            _ => Err(Ended::Oversized(length.into())),
        }
    }

    /// Returns when the peer has closed the connection. While further requests are in the way,
    /// that cannot be seen, and this never returns.
    async fn hung_up(&mut self) {
        let mut byte = [0];
        match self.reader.peek(&mut byte).await {
            Ok(0) | Err(_) => {}
            Ok(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
