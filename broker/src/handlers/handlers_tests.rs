#![allow(clippy::unwrap_used, reason = "tests")]
//! Every request in every version gets an answer that the version can carry.

use std::sync::Arc;

use bytes::Buf;
use kafka_protocol::ResponseError;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{ApiKey, MetadataRequest, TopicName};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::{Client, serve};
use crate::Config;
use crate::context::Context;
use crate::protocol::api::{self, APIS, Api};
use crate::protocol::frame::tests::{Dice, body, frame_of};
use crate::protocol::frame::{Parsed, parse};

fn with_context(check: impl AsyncFnOnce(Arc<Context>)) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path());
    config.max_partitions = 50;
    config.group_min_session_timeout_ms = 1;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let context = Arc::new(Context::open(config, 9092).unwrap());
    runtime.block_on(check(context));
    runtime.shutdown_background();
}

async fn answer(context: &Arc<Context>, api: &'static Api, version: i16, body: &[u8]) {
    let client = Client { host: "/127.0.0.1".into() };
    let Ok(Parsed::Request(frame)) = parse(frame_of(api, version, body)) else {
        panic!("{:?} version {version} does not parse", api.key);
    };
    let serving = serve(context, &client, &frame);
    match tokio::time::timeout(std::time::Duration::from_millis(50), serving).await {
        Ok(Ok(Some(mut reply))) => {
            let reply = reply.copy_to_bytes(reply.remaining());
            let length = u32::from_be_bytes(*reply.first_chunk().unwrap());
            assert_eq!(length as usize, reply.len() - 4);
            assert_eq!(reply[4..8], 77i32.to_be_bytes());
        }
        // A produce with acks=0 has no answer, or ends its connection.
        Ok(Ok(None) | Err(_)) if api.key == ApiKey::Produce => {}
        Ok(other) => panic!("{:?} version {version}: {other:?}", api.key),
        // Joins, syncs and fetches may have to wait, and do.
        Err(_) => assert!(
            matches!(api.key, ApiKey::JoinGroup | ApiKey::SyncGroup | ApiKey::Fetch),
            "{:?} version {version} hangs",
            api.key
        ),
    }
}

#[test]
fn every_version_is_answered() {
    with_context(async |context| {
        let mut runner = TestRunner::new(ProptestConfig::with_cases(1));
        let bytes = proptest::collection::vec(any::<u8>(), 120..121);
        for api in APIS {
            for version in api.min_served..=api.max {
                for _ in 0..25 {
                    let bytes = bytes.new_tree(&mut runner).unwrap().current();
                    let dice = &mut Dice(&bytes);
                    let body = body(api.body, version, api.is_flexible(version), dice);
                    answer(&context, api, version, &body).await;
                }
            }
        }
    });
}

/// The same with a topic and a group that exist, so that the answers have content.
#[test]
fn every_version_can_carry_content() {
    with_context(async |context| {
        let create = api::find(ApiKey::CreateTopics as i16).unwrap();
        // One topic `topic`, two partitions, one replica, no assignments, no settings.
        let mut body = vec![0, 0, 0, 1, 0, 5];
        body.extend(b"topic");
        body.extend([0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        answer(&context, create, 2, &body).await;
        assert!(context.topics.get("topic").is_some());
        for api in APIS {
            for version in api.min_served..=api.max {
                let flexible = api.is_flexible(version);
                // Dice that make every array hold something and every name be `topic` or `group`.
                for face in [1, 6, 7, 21, 22, 37] {
                    let faces = [face; 200];
                    let body = crate::protocol::frame::tests::body(api.body, version, flexible, &mut Dice(&faces));
                    answer(&context, api, version, &body).await;
                }
            }
        }
    });
}

/// An id alone, with the empty name that Kafka's Java client puts beside it, and one that nobody has.
#[test]
fn metadata_by_id() {
    with_context(async |context| {
        let topic = super::topics::create_by_default(&context, "named").unwrap();
        for name in [None, Some("")] {
            let name = name.map(|name| TopicName(super::text(name)));
            let asked = |id| MetadataRequestTopic::default().with_topic_id(super::uuid(id)).with_name(name.clone());
            let ids = [topic.id, crate::catalog::TopicId([9; 16])];
            let request = MetadataRequest::default().with_topics(Some(ids.map(asked).into()));
            let found = super::cluster::metadata(&context, request, 12).topics;
            assert_eq!(found[0].name.as_ref().unwrap().as_str(), "named");
            assert_eq!(found[1].error_code, ResponseError::UnknownTopicId.code());
        }
    });
}
