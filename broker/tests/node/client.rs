//! A small blocking client: typed requests of the protocol, one at a time, nothing hidden.
//!
//! Client libraries retry, reconnect and re-order behind one's back; a check of what was promised
//! must know what every single request was answered.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::messages::create_topics_request::{CreatableTopic, CreatableTopicConfig};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::produce_response::PartitionProduceResponse;
use kafka_protocol::messages::{
    CreateTopicsRequest, FetchRequest, ProduceRequest, RequestHeader, ResponseHeader, TopicName, TransactionalId,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use kafka_protocol::records::{
    Compression, Record, RecordBatchDecoder, RecordBatchEncoder, RecordEncodeOptions, TimestampType,
};

/// An answer takes no longer than this; requests that wait on purpose wait less.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a broker.
#[derive(Debug)]
pub(crate) struct Client {
    stream: TcpStream,
    correlation: i32,
}

fn invalid(why: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why.to_string())
}

/// A string of the protocol.
pub(crate) fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// A topic name of the protocol.
pub(crate) fn name(topic: &str) -> TopicName {
    TopicName(text(topic))
}

impl Client {
    /// Connects.
    pub(crate) fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, correlation: 0 })
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn call<Q: Request>(&mut self, version: i16, request: &Q) -> io::Result<Q::Response> {
        self.correlation += 1;
        let header = RequestHeader::default()
            .with_request_api_key(Q::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation)
            .with_client_id(Some(StrBytes::from_static_str("check")));
        let mut frame = BytesMut::new();
        header.encode(&mut frame, Q::header_version(version)).map_err(invalid)?;
        request.encode(&mut frame, version).map_err(invalid)?;
        let mut answer = self.exchange(&frame)?;
        let header = ResponseHeader::decode(&mut answer, Q::Response::header_version(version)).map_err(invalid)?;
        if header.correlation_id != self.correlation {
            return Err(invalid("an answer to another request"));
        }
        Q::Response::decode(&mut answer, version).map_err(invalid)
    }

    /// Sends one frame as it is, and returns the frame that comes back.
    pub(crate) fn exchange(&mut self, frame: &[u8]) -> io::Result<Bytes> {
        let length = i32::try_from(frame.len()).map_err(invalid)?;
        let mut bytes = length.to_be_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.stream.write_all(&bytes)?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).map_err(invalid)?];
        self.stream.read_exact(&mut answer)?;
        Ok(answer.into())
    }

    /// Creates a topic; the answer is an error code, 0 for success.
    pub(crate) fn create_topic(
        &mut self,
        topic: &str,
        partitions: i32,
        settings: &[(&'static str, &'static str)],
    ) -> io::Result<i16> {
        let config = |(key, value): &(&'static str, &'static str)| {
            CreatableTopicConfig::default()
                .with_name(StrBytes::from_static_str(key))
                .with_value(Some(StrBytes::from_static_str(value)))
        };
        let topic = CreatableTopic::default()
            .with_name(name(topic))
            .with_num_partitions(partitions)
            .with_replication_factor(1)
            .with_configs(settings.iter().map(config).collect());
        let answer = self.call(5, &CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000))?;
        answer.topics.first().map(|topic| topic.error_code).ok_or_else(|| invalid("no topic in the answer"))
    }

    /// Writes a batch with `acks=all`.
    pub(crate) fn produce(
        &mut self,
        topic: &str,
        partition: i32,
        batch: Bytes,
        transactional_id: Option<&str>,
    ) -> io::Result<PartitionProduceResponse> {
        let data = PartitionProduceData::default().with_index(partition).with_records(Some(batch));
        let topic = TopicProduceData::default().with_name(name(topic)).with_partition_data(vec![data]);
        let request = ProduceRequest::default()
            .with_transactional_id(transactional_id.map(|id| TransactionalId(text(id))))
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![topic]);
        let answer = self.call(9, &request)?;
        let mut partitions = answer.responses.into_iter().flat_map(|topic| topic.partition_responses);
        partitions.next().ok_or_else(|| invalid("no partition in the answer"))
    }

    /// Reads from `offset` on, without waiting.
    pub(crate) fn fetch(
        &mut self,
        topic: &str,
        partition: i32,
        offset: i64,
        isolation: i8,
    ) -> io::Result<PartitionData> {
        let partition = FetchPartition::default()
            .with_partition(partition)
            .with_current_leader_epoch(-1)
            .with_fetch_offset(offset)
            .with_partition_max_bytes(1 << 20);
        let topic = FetchTopic::default().with_topic(name(topic)).with_partitions(vec![partition]);
        let request = FetchRequest::default()
            .with_max_wait_ms(0)
            .with_min_bytes(0)
            .with_max_bytes(1 << 20)
            .with_isolation_level(isolation)
            .with_session_epoch(-1)
            .with_topics(vec![topic]);
        let answer = self.call(11, &request)?;
        let mut partitions = answer.responses.into_iter().flat_map(|topic| topic.partitions);
        partitions.next().ok_or_else(|| invalid("no partition in the answer"))
    }
}

/// Who numbers a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Numbering {
    pub(crate) producer_id: i64,
    pub(crate) epoch: i16,
    pub(crate) sequence: i32,
    pub(crate) transactional: bool,
}

/// Nobody numbers it.
pub(crate) const PLAIN: Numbering = Numbering { producer_id: -1, epoch: -1, sequence: -1, transactional: false };

/// A batch of values of long ago, all under one key.
pub(crate) fn batch(key: &str, values: &[String], numbering: Numbering) -> Bytes {
    batch_at(1_700_000_000_000, key, values, numbering)
}

/// A batch of values with this timestamp.
pub(crate) fn batch_at(timestamp: i64, key: &str, values: &[String], numbering: Numbering) -> Bytes {
    let records: Vec<Record> = values
        .iter()
        .zip(0..)
        .map(|(value, i)| Record {
            transactional: numbering.transactional,
            control: false,
            delete_horizon: false,
            partition_leader_epoch: -1,
            producer_id: numbering.producer_id,
            producer_epoch: numbering.epoch,
            timestamp_type: TimestampType::Creation,
            offset: i64::from(i),
            sequence: numbering.sequence.wrapping_add(i),
            timestamp,
            key: Some(Bytes::from(key.to_owned())),
            value: Some(Bytes::from(value.clone())),
            headers: Default::default(),
        })
        .collect();
    let mut out = BytesMut::new();
    let options = RecordEncodeOptions { version: 2, compression: Compression::None };
    RecordBatchEncoder::encode(&mut out, &records, &options).expect("a batch");
    if numbering.producer_id < 0 {
        // The encoder derives a base sequence; a producer without id has none.
        out[53..57].copy_from_slice(&(-1i32).to_be_bytes());
        let crc = crc32c::crc32c(&out[21..]);
        out[17..21].copy_from_slice(&crc.to_be_bytes());
    }
    out.freeze()
}

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) offset: i64,
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) producer_id: i64,
    pub(crate) transactional: bool,
}

/// The records of an answer, without markers, and the offset behind the last of all.
///
/// `aborted` are the aborted transactions that the answer names (producer id and first offset),
/// none for a reader of everything; their records are left out as consumers do it: from the first
/// offset on, until the producer's marker.
pub(crate) fn records(bytes: &Bytes, aborted: &[(i64, i64)]) -> io::Result<(Vec<Seen>, Option<i64>)> {
    let mut rest = bytes.clone();
    let mut seen = Vec::new();
    let mut pending: Vec<(i64, i64)> = aborted.to_vec();
    let mut skipping: Vec<i64> = Vec::new();
    let string = |bytes: Option<Bytes>| {
        let bytes = bytes.unwrap_or_default();
        String::from_utf8(bytes.to_vec()).map_err(invalid)
    };
    for set in RecordBatchDecoder::decode_all(&mut rest).map_err(invalid)? {
        for record in set.records {
            pending.retain(|(producer, first)| {
                let begins = *first <= record.offset;
                if begins {
                    skipping.push(*producer);
                }
                !begins
            });
            if record.control {
                skipping.retain(|producer| *producer != record.producer_id);
                continue;
            }
            if record.transactional && skipping.contains(&record.producer_id) {
                continue;
            }
            seen.push(Seen {
                offset: record.offset,
                key: string(record.key)?,
                value: string(record.value)?,
                producer_id: record.producer_id,
                transactional: record.transactional,
            });
        }
    }
    Ok((seen, end_of(bytes)))
}

/// Offset behind the last batch; compaction leaves batches without records that count too.
fn end_of(bytes: &[u8]) -> Option<i64> {
    let (mut rest, mut end) = (bytes, None);
    while let (Some(base), Some(length), Some(delta)) = (
        rest.first_chunk().map(|b| i64::from_be_bytes(*b)),
        rest.get(8..).and_then(|b| b.first_chunk()).map(|b| i32::from_be_bytes(*b)),
        rest.get(23..).and_then(|b| b.first_chunk()).map(|b| i32::from_be_bytes(*b)),
    ) {
        end = Some(base + i64::from(delta) + 1);
        rest = usize::try_from(length).ok().and_then(|length| rest.get(12 + length..)).unwrap_or_default();
    }
    end
}
