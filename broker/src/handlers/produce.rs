//! Produce: batches are checked and appended one partition at a time.

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{ProduceRequest, ProduceResponse};

use super::text;
use crate::catalog::Refused;
use crate::context::{Context, now_ms};
use crate::log::batch::{self, BatchError, BatchHeader};
use crate::log::state::Reply;
use crate::protocol::frame::{Frame, Refusal};
use crate::transactions::ledger::Who;

/// Zstandard needs at least this version, so that an old client never meets it unprepared.
const ZSTD_FROM: i16 = 7;
const ZSTD: i16 = 4;

/// Where a batch has come to lie.
struct Placed {
    base_offset: i64,
    append_time_ms: i64,
    log_start: i64,
}

/// Serves a produce request; with `acks=0` there is no reply.
pub(crate) fn produce(context: &Context, frame: &Frame) -> Result<Option<BytesMut>, Refusal> {
    let request: ProduceRequest = frame.decode()?;
    let acks = request.acks;
    let (response, failed) = context.on_disk(|| append_all(context, request, frame.version));
    if acks != 0 {
        return frame.encode(&response).map(Some);
    }
    match failed {
        None => Ok(None),
        Some(refused) => Err(Refusal::Ended(format!("acks=0 produce failed: {}", refused.message))),
    }
}

fn append_all(context: &Context, request: ProduceRequest, version: i16) -> (ProduceResponse, Option<Refused>) {
    let admitted = admit(&request);
    let mut failed = None;
    let mut responses = Vec::with_capacity(request.topic_data.len());
    for topic in request.topic_data {
        let mut partitions = Vec::with_capacity(topic.partition_data.len());
        let transactional_id = request.transactional_id.as_ref().map(|id| id.as_str());
        for data in topic.partition_data {
            let outcome = admitted.clone().and_then(|()| {
                let records = data.records.unwrap_or_default();
                append(context, &topic.name, data.index, &records, Sent { version, transactional_id })
            });
            let response = PartitionProduceResponse::default().with_index(data.index);
            partitions.push(match outcome {
                Ok(placed) => response
                    .with_base_offset(placed.base_offset)
                    .with_log_append_time_ms(placed.append_time_ms)
                    .with_log_start_offset(placed.log_start),
                Err(refused) => {
                    let response = refuse(response, &refused);
                    failed.get_or_insert(refused);
                    response
                }
            });
        }
        let name = topic.name;
        responses.push(TopicProduceResponse::default().with_name(name).with_partition_responses(partitions));
    }
    (ProduceResponse::default().with_responses(responses), failed)
}

fn refuse(response: PartitionProduceResponse, refused: &Refused) -> PartitionProduceResponse {
    let message = text(refused.message.as_str());
    let record_errors = match refused.error {
        ResponseError::InvalidRecord => vec![
            BatchIndexAndErrorMessage::default()
                .with_batch_index(0)
                .with_batch_index_error_message(Some(message.clone())),
        ],
        _ => Vec::new(),
    };
    response
        .with_error_code(refused.error.code())
        .with_error_message(Some(message))
        .with_record_errors(record_errors)
        .with_base_offset(-1)
        .with_log_append_time_ms(-1)
        .with_log_start_offset(-1)
}

fn admit(request: &ProduceRequest) -> Result<(), Refused> {
    if !matches!(request.acks, -1..=1) {
        let message = format!("acks={} is not 0, 1 or all", request.acks);
        return Err(Refused::new(ResponseError::InvalidRequiredAcks, message));
    }
    Ok(())
}

/// How a batch came.
#[derive(Clone, Copy)]
struct Sent<'a> {
    version: i16,
    transactional_id: Option<&'a str>,
}

fn append(context: &Context, topic: &str, index: i32, records: &Bytes, sent: Sent<'_>) -> Result<Placed, Refused> {
    let unknown = || Refused::from(ResponseError::UnknownTopicOrPartition);
    let topic = context.topics.get(topic).ok_or_else(unknown)?;
    let partition = topic.partition(index).ok_or_else(unknown)?;
    let rules = topic.rules();
    let header = batch::validate(records, rules.cleanup.compact).map_err(|error| invalid(&error))?;
    if header.codec() == ZSTD && sent.version < ZSTD_FROM {
        let message = format!("zstd needs produce version {ZSTD_FROM} or later");
        return Err(Refused::new(ResponseError::UnsupportedCompressionType, message));
    }
    let admit = || admit_batch(context, &header, sent.transactional_id, &topic.name, index);
    match partition.append(now_ms(), &header, records, &rules, admit)? {
        Reply::Appended { base_offset, append_time_ms } => {
            let log_start = partition.watermarks().start;
            Ok(Placed { base_offset, append_time_ms, log_start })
        }
        _ => Err(ResponseError::UnknownServerError.into()),
    }
}

/// Whether the transaction of a batch is open and has this partition.
fn admit_batch(
    context: &Context,
    header: &BatchHeader,
    transactional_id: Option<&str>,
    topic: &str,
    index: i32,
) -> Result<(), ResponseError> {
    if !header.is_transactional() {
        return Ok(());
    }
    let id = transactional_id.ok_or(ResponseError::InvalidTxnState)?;
    let who = Who { id, producer_id: header.producer_id, epoch: header.producer_epoch };
    let verdict = context.store.read(|catalog| catalog.transactions().may_write(who, &(topic.to_owned(), index)));
    verdict.map_err(|error| match error {
        // Produce knows only this name for it.
        ResponseError::ProducerFenced => ResponseError::InvalidProducerEpoch,
        other => other,
    })
}

fn invalid(error: &BatchError) -> Refused {
    let code = match error {
        BatchError::Short | BatchError::Length | BatchError::Checksum => ResponseError::CorruptMessage,
        BatchError::Magic(_) => ResponseError::UnsupportedForMessageFormat,
        BatchError::Content(_) | BatchError::Compression(_) => ResponseError::InvalidRecord,
    };
    Refused::new(code, error.to_string())
}
