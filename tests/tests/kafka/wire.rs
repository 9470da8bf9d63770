//! The protocol by hand, for what no client library lets a test do: send the same batch twice, send
//! nonsense, see the code in an answer.
//!
//! Only old, simple versions of the requests are spoken, which every broker still serves.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

/// Error codes the checks look for.
pub(crate) const NONE: i16 = 0;
pub(crate) const OUT_OF_ORDER_SEQUENCE: i16 = 45;
pub(crate) const STORAGE_ERROR: i16 = 56;
pub(crate) const INVALID_RECORD: i16 = 87;

/// A connection to a broker.
pub(crate) struct Wire {
    stream: TcpStream,
    correlation: i32,
}

/// What a produce request was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Produced {
    pub(crate) error: i16,
    pub(crate) base_offset: i64,
}

/// Who numbers the batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ProducerId {
    pub(crate) id: i64,
    pub(crate) epoch: i16,
}

impl Wire {
    /// Connects.
    pub(crate) fn connect(bootstrap: &str) -> Result<Self> {
        let stream = TcpStream::connect(bootstrap)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        Ok(Self { stream, correlation: 0 })
    }

    /// Sends bytes as they are.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Whether the broker has closed the connection; waits for it.
    pub(crate) fn is_closed_by_peer(&mut self) -> Result<bool> {
        match self.stream.read(&mut [0; 64]) {
            Ok(0) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(true),
            Err(error) => Err(error).context("the connection stays open"),
        }
    }

    /// Sends a request and returns the body of its answer.
    pub(crate) fn ask(&mut self, key: i16, version: i16, body: &[u8]) -> Result<Vec<u8>> {
        self.correlation += 1;
        let mut request = Vec::new();
        request.extend(key.to_be_bytes());
        request.extend(version.to_be_bytes());
        request.extend(self.correlation.to_be_bytes());
        string(&mut request, "wire");
        request.extend(body);
        self.send_raw(&i32::try_from(request.len())?.to_be_bytes())?;
        self.send_raw(&request)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length))?];
        self.stream.read_exact(&mut answer)?;
        ensure!(answer.get(..4) == Some(&self.correlation.to_be_bytes()[..]), "another answer");
        Ok(answer.split_off(4))
    }

    /// A fresh producer id (InitProducerId version 0).
    pub(crate) fn producer_id(&mut self) -> Result<ProducerId> {
        let mut body = Vec::new();
        body.extend((-1i16).to_be_bytes());
        body.extend(60_000i32.to_be_bytes());
        let answer = self.ask(22, 0, &body)?;
        ensure!(i16_at(&answer, 4)? == NONE, "no producer id: {answer:?}");
        Ok(ProducerId { id: i64_at(&answer, 6)?, epoch: i16_at(&answer, 14)? })
    }

    /// Sends a batch to partition 0 with `acks=all` (Produce version 3).
    pub(crate) fn produce(&mut self, topic: &str, batch: &[u8]) -> Result<Produced> {
        let mut body = Vec::new();
        body.extend((-1i16).to_be_bytes());
        body.extend((-1i16).to_be_bytes());
        body.extend(10_000i32.to_be_bytes());
        body.extend(1i32.to_be_bytes());
        string(&mut body, topic);
        body.extend(1i32.to_be_bytes());
        body.extend(0i32.to_be_bytes());
        body.extend(i32::try_from(batch.len())?.to_be_bytes());
        body.extend(batch);
        let answer = self.ask(0, 3, &body)?;
        // [topic name [partition 4, error 2, base offset 8, ...]]
        let at = 4 + 2 + topic.len() + 4 + 4;
        Ok(Produced { error: i16_at(&answer, at)?, base_offset: i64_at(&answer, at + 2)? })
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend(i16::try_from(text.len()).expect("a short string").to_be_bytes());
    out.extend(text.as_bytes());
}

fn i16_at(bytes: &[u8], at: usize) -> Result<i16> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("answer too short")?;
    Ok(i16::from_be_bytes(*found))
}

fn i64_at(bytes: &[u8], at: usize) -> Result<i64> {
    let found = bytes.get(at..).and_then(|rest| rest.first_chunk()).context("answer too short")?;
    Ok(i64::from_be_bytes(*found))
}

/// A record batch (message format 2, not compressed) of values, numbered from `sequence`.
pub(crate) fn batch(producer: ProducerId, sequence: i32, key: Option<&str>, values: &[&str]) -> Vec<u8> {
    let mut records = Vec::new();
    for (i, value) in values.iter().enumerate() {
        let mut record = vec![0];
        varint(&mut record, 0);
        varint(&mut record, i64::try_from(i).expect("few records"));
        match key {
            Some(key) => bytes(&mut record, key.as_bytes()),
            None => varint(&mut record, -1),
        }
        bytes(&mut record, value.as_bytes());
        varint(&mut record, 0);
        bytes(&mut records, &record);
    }
    let count = i32::try_from(values.len()).expect("few records");
    let mut covered = Vec::new();
    covered.extend(0i16.to_be_bytes());
    covered.extend((count - 1).to_be_bytes());
    covered.extend(1_700_000_000_000i64.to_be_bytes());
    covered.extend(1_700_000_000_000i64.to_be_bytes());
    covered.extend(producer.id.to_be_bytes());
    covered.extend(producer.epoch.to_be_bytes());
    covered.extend(sequence.to_be_bytes());
    covered.extend(count.to_be_bytes());
    covered.extend(&records);
    let mut out = Vec::new();
    out.extend(0i64.to_be_bytes());
    out.extend(i32::try_from(covered.len() + 9).expect("a small batch").to_be_bytes());
    out.extend((-1i32).to_be_bytes());
    out.push(2);
    out.extend(crc32c(&covered).to_be_bytes());
    out.extend(covered);
    out
}

/// No producer: the batch is not numbered.
pub(crate) const NOBODY: ProducerId = ProducerId { id: -1, epoch: -1 };

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn bytes(out: &mut Vec<u8>, content: &[u8]) {
    varint(out, i64::try_from(content.len()).expect("short content"));
    out.extend(content);
}

/// CRC-32C bit by bit, written here so that the check does not rest on the broker's own library.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
        }
    }
    !crc
}
