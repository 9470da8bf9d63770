//! Committed offsets are kept while a group lives, and for their time after that.

use std::time::{Duration, Instant};

use broker::{Broker, Config};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::offset_commit_request::{OffsetCommitRequestPartition, OffsetCommitRequestTopic};
use kafka_protocol::messages::offset_fetch_request::OffsetFetchRequestTopic;
use kafka_protocol::messages::{
    GroupId, HeartbeatRequest, JoinGroupRequest, JoinGroupResponse, ListGroupsRequest, OffsetCommitRequest,
    OffsetFetchRequest, SyncGroupRequest,
};

use crate::client::{Client, name, text};

const TOPIC: &str = "topic";
const PATIENCE: Duration = Duration::from_secs(30);
const SESSION: Duration = Duration::from_secs(5);
const RETENTION_MS: i64 = 2000;
/// Generation and member of somebody who is in no group.
const OUTSIDER: (i32, &str) = (-1, "");

fn commit(client: &mut Client, group: &str, (generation, member): (i32, &str), offset: i64) {
    let partition = OffsetCommitRequestPartition::default().with_committed_offset(offset);
    let topic = OffsetCommitRequestTopic::default().with_name(name(TOPIC)).with_partitions(vec![partition]);
    let request = OffsetCommitRequest::default()
        .with_group_id(GroupId(text(group)))
        .with_generation_id_or_member_epoch(generation)
        .with_member_id(text(member))
        .with_topics(vec![topic]);
    let answer = client.call(7, &request).unwrap();
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
}

fn committed(client: &mut Client, group: &str) -> i64 {
    let topic = OffsetFetchRequestTopic::default().with_name(name(TOPIC)).with_partition_indexes(vec![0]);
    let request = OffsetFetchRequest::default().with_group_id(GroupId(text(group))).with_topics(Some(vec![topic]));
    client.call(7, &request).unwrap().topics[0].partitions[0].committed_offset
}

/// The only member leads, and assigns nothing.
fn sync_of(joined: &JoinGroupResponse) -> SyncGroupRequest {
    SyncGroupRequest::default()
        .with_group_id(GroupId(text("alive")))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id.clone())
}

fn is_listed(client: &mut Client, group: &str) -> bool {
    let answer = client.call(4, &ListGroupsRequest::default()).unwrap();
    answer.groups.iter().any(|listed| listed.group_id.as_str() == group)
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        // Asked again and again, not waited for.
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A member that only heartbeats keeps its group's offsets; those of a group without members go
/// after their time, and the group with them.
#[test]
fn offsets_outlive_their_group_by_their_retention_only() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path());
    config.offsets_retention_ms = RETENTION_MS;
    config.housekeeping_interval = Duration::from_millis(20);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let broker = runtime.block_on(Broker::start(config)).unwrap();
    let mut client = Client::connect(broker.addr()).unwrap();
    assert_eq!(client.create_topic(TOPIC, 1, &[]).unwrap(), 0);
    let protocol = JoinGroupRequestProtocol::default().with_name(text("range"));
    let join = JoinGroupRequest::default()
        .with_group_id(GroupId(text("alive")))
        .with_session_timeout_ms(SESSION.as_millis() as i32)
        .with_rebalance_timeout_ms(60_000)
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    // Version 3 needs no member id of its own first.
    let joined = client.call(3, &join).unwrap();
    assert_eq!(joined.error_code, 0);
    assert_eq!(client.call(3, &sync_of(&joined)).unwrap().error_code, 0);
    commit(&mut client, "alive", (joined.generation_id, joined.member_id.as_str()), 5);
    let heartbeat = HeartbeatRequest::default()
        .with_group_id(GroupId(text("alive")))
        .with_generation_id(joined.generation_id)
        .with_member_id(joined.member_id);

    commit(&mut client, "idle", OUTSIDER, 7);
    assert_eq!(committed(&mut client, "idle"), 7);
    wait_for("the end of the idle group", || {
        assert_eq!(client.call(0, &heartbeat).unwrap().error_code, 0);
        committed(&mut client, "idle") == -1 && !is_listed(&mut client, "idle")
    });
    assert_eq!(committed(&mut client, "alive"), 5);
    // Now it falls silent: evicted by its session time-out, and then the same happens.
    wait_for("the end of the silent group", || committed(&mut client, "alive") == -1);
    let evicted = client.call(0, &heartbeat).unwrap().error_code;
    assert_eq!(evicted, ResponseError::UnknownMemberId.code());
    runtime.block_on(broker.shutdown());
}
