//! What requests mean: one file per subject, each a thin translation between the wire types and
//! the cores (catalog, logs, groups).
//!
//! A handler never fails: whatever goes wrong is an error code in its reply. Only two things end a
//! connection: a frame that cannot be decoded, and a failed `acks=0` produce, which has no reply.

pub(crate) mod cluster;
pub(crate) mod commits;
pub(crate) mod configs;
pub(crate) mod fetch;
pub(crate) mod groups;
pub(crate) mod offsets;
pub(crate) mod produce;
pub(crate) mod topics;
pub(crate) mod transaction_views;
pub(crate) mod transactions;

use std::future::Future;
use std::sync::Arc;

use bytes::BytesMut;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{ApiKey, ApiVersionsRequest};
use kafka_protocol::protocol::{Encodable, HeaderVersion, Request, StrBytes};

use crate::catalog::TopicId;
use crate::context::Context;
use crate::protocol::frame::{Frame, Refusal};
use crate::protocol::pieces::{self, Pieces};

/// Who is at the other end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) host: String,
}

/// Serves one request; `None` when the protocol wants no reply.
pub(crate) async fn serve(context: &Arc<Context>, client: &Client, frame: &Frame) -> Result<Option<Pieces>, Refusal> {
    let version = frame.version;
    let c = context;
    match frame.api.key {
        ApiKey::Produce => return Ok(produce::produce(c, frame)?.map(Pieces::from)),
        ApiKey::Fetch => {
            let reply = fetch::fetch(c, frame.decode()?, version).await;
            return pieces::fetched(frame.correlation, version, reply).map(Some);
        }
        ApiKey::ListOffsets => now(frame, |r| offsets::list(c, r, version)),
        ApiKey::Metadata => now(frame, |r| cluster::metadata(c, r, version)),
        ApiKey::OffsetCommit => now(frame, |r| commits::commit(c, r)),
        ApiKey::OffsetFetch => now(frame, |r| commits::fetch(c, r, version)),
        ApiKey::FindCoordinator => now(frame, |r| cluster::find_coordinator(c, r, version)),
        ApiKey::JoinGroup => answer(frame, |r| groups::join(c, client, &frame.client_id, r, version)).await,
        ApiKey::Heartbeat => answer(frame, |request| groups::heartbeat(c, request)).await,
        ApiKey::LeaveGroup => answer(frame, |request| groups::leave(c, request, version)).await,
        ApiKey::SyncGroup => answer(frame, |request| groups::sync(c, request)).await,
        ApiKey::DescribeGroups => now(frame, |r| groups::describe(c, r, version)),
        ApiKey::ListGroups => now(frame, |r| groups::list(c, r)),
        ApiKey::ApiVersions => now(frame, |_: ApiVersionsRequest| cluster::api_versions()),
        ApiKey::CreateTopics => now(frame, |r| topics::create(c, r)),
        ApiKey::DeleteTopics => now(frame, |r| topics::delete(c, r, version)),
        ApiKey::DeleteRecords => now(frame, |r| offsets::delete_records(c, r)),
        ApiKey::InitProducerId => now(frame, |r| transactions::init_producer_id(c, r, version)),
        ApiKey::AddPartitionsToTxn => now(frame, |r| transactions::add_partitions(c, r, version)),
        ApiKey::AddOffsetsToTxn => now(frame, |r| transactions::add_offsets(c, r, version)),
        ApiKey::EndTxn => now(frame, |r| transactions::end(c, r, version)),
        ApiKey::TxnOffsetCommit => now(frame, |r| transactions::commit_offsets(c, r)),
        ApiKey::OffsetForLeaderEpoch => now(frame, |r| offsets::for_leader_epoch(c, r)),
        ApiKey::DescribeConfigs => now(frame, |r| configs::describe(c, r)),
        ApiKey::AlterConfigs => now(frame, |r| configs::replace(c, r)),
        ApiKey::CreatePartitions => now(frame, |r| topics::create_partitions(c, r)),
        ApiKey::DeleteGroups => now(frame, |r| groups::delete(c, r)),
        ApiKey::IncrementalAlterConfigs => now(frame, |r| configs::alter(c, r)),
        ApiKey::OffsetDelete => now(frame, |r| commits::delete(c, r)),
        ApiKey::DescribeCluster => now(frame, |r| cluster::describe(c, r, version)),
        ApiKey::DescribeProducers => now(frame, |r| transaction_views::describe_producers(c, r)),
        ApiKey::DescribeTransactions => now(frame, |r| transaction_views::describe(c, r)),
        ApiKey::ListTransactions => now(frame, |r| transaction_views::list(c, r, version)),
        ApiKey::ConsumerGroupHeartbeat => now(frame, groups::refuse_next_generation),
        // The table of served requests and this match are kept together by a test.
        key => Err(Refusal::UnknownKey(key as i16)),
    }
    .map(|reply| Some(reply.into()))
}

async fn answer<Q, F>(frame: &Frame, handle: impl FnOnce(Q) -> F) -> Result<BytesMut, Refusal>
where
    Q: Request,
    F: Future<Output = Q::Response>,
{
    let reply = handle(frame.decode()?).await;
    frame.encode(&reply)
}

fn now<Q, R>(frame: &Frame, handle: impl FnOnce(Q) -> R) -> Result<BytesMut, Refusal>
where
    Q: Request<Response = R>,
    R: Encodable + HeaderVersion,
{
    let reply = handle(frame.decode()?);
    frame.encode(&reply)
}

/// The code of an outcome, 0 for success.
fn code<T>(outcome: &Result<T, ResponseError>) -> i16 {
    outcome.as_ref().err().map_or(0, ResponseError::code)
}

/// A string for a reply.
fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// A topic id as the wire types hold it. Their UUID type comes from a crate that is no dependency
/// of ours, so that it cannot be named.
fn uuid<U: TryFrom<Vec<u8>> + Default>(id: TopicId) -> U {
    U::try_from(id.0.to_vec()).unwrap_or_default()
}

#[cfg(test)]
#[path = "handlers_tests.rs"]
mod tests;
