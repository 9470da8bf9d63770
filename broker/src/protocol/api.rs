//! The requests that are served: their versions and their layouts.
//!
//! The versions are what `ApiVersions` advertises. Four things in it are not what they seem:
//! - Produce is advertised from version 0, as Apache Kafka 4 does, because librdkafka before 2.9
//!   takes a higher minimum for a broker that cannot compress. Versions 0 to 2 themselves are
//!   refused, there and here.
//! - ConsumerGroupHeartbeat is advertised and always answered UNSUPPORTED_VERSION: librdkafka takes
//!   that for final, but asks for a coordinator for ever where the request is not advertised.
//! - ListTransactions stops short of its version 2, whose filter is a regular expression of RE2.
//! - Transactional requests stop short of the second version of the protocol (KIP-890), which clients
//!   use only where a cluster announces it.

use kafka_protocol::messages::ApiKey;

use super::shape::{Field, Shape, always, since, until};
use Shape::{Blob, Fixed, Numbers, Structs, Text, Texts};

/// One kind of request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Api {
    /// Which request.
    pub(crate) key: ApiKey,
    /// Lowest version advertised.
    pub(crate) min: i16,
    /// Lowest version that is decoded; below it a request is refused.
    pub(crate) min_served: i16,
    /// Highest version advertised and served.
    pub(crate) max: i16,
    /// Layout of the body.
    pub(crate) body: &'static [Field],
}

impl Api {
    /// Whether bodies of `version` use compact lengths and tagged fields.
    pub(crate) fn is_flexible(&self, version: i16) -> bool {
        self.key.request_header_version(version) >= 2
    }
}

/// The entry of [`APIS`] for a request key, if it is served.
pub(crate) fn find(key: i16) -> Option<&'static Api> {
    APIS.iter().find(|api| api.key as i16 == key)
}

const fn api(key: ApiKey, min: i16, max: i16, body: &'static [Field]) -> Api {
    Api { key, min, min_served: min, max, body }
}

/// Every request that is served.
pub(crate) const APIS: &[Api] = &[
    Api { key: ApiKey::Produce, min: 0, min_served: 3, max: 12, body: PRODUCE },
    api(ApiKey::Fetch, 4, 17, FETCH),
    api(ApiKey::ListOffsets, 1, 10, LIST_OFFSETS),
    api(ApiKey::Metadata, 0, 13, METADATA),
    api(ApiKey::OffsetCommit, 2, 9, OFFSET_COMMIT),
    api(ApiKey::OffsetFetch, 1, 9, OFFSET_FETCH),
    api(ApiKey::FindCoordinator, 0, 5, FIND_COORDINATOR),
    api(ApiKey::JoinGroup, 0, 9, JOIN_GROUP),
    api(ApiKey::Heartbeat, 0, 4, HEARTBEAT),
    api(ApiKey::LeaveGroup, 0, 5, LEAVE_GROUP),
    api(ApiKey::SyncGroup, 0, 5, SYNC_GROUP),
    api(ApiKey::DescribeGroups, 0, 6, DESCRIBE_GROUPS),
    api(ApiKey::ListGroups, 0, 5, LIST_GROUPS),
    api(ApiKey::ApiVersions, 0, 4, &[since(3, Text), since(3, Text)]),
    api(ApiKey::CreateTopics, 2, 7, CREATE_TOPICS),
    api(ApiKey::DeleteTopics, 1, 6, DELETE_TOPICS),
    api(ApiKey::DeleteRecords, 0, 2, DELETE_RECORDS),
    api(ApiKey::InitProducerId, 0, 5, INIT_PRODUCER_ID),
    api(ApiKey::AddPartitionsToTxn, 0, 3, ADD_PARTITIONS_TO_TXN),
    api(ApiKey::AddOffsetsToTxn, 0, 4, &[always(Text), always(Fixed(8)), always(Fixed(2)), always(Text)]),
    api(ApiKey::EndTxn, 0, 4, &[always(Text), always(Fixed(8)), always(Fixed(2)), always(Fixed(1))]),
    api(ApiKey::TxnOffsetCommit, 0, 4, TXN_OFFSET_COMMIT),
    api(ApiKey::OffsetForLeaderEpoch, 2, 4, OFFSET_FOR_LEADER_EPOCH),
    api(ApiKey::DescribeConfigs, 1, 4, DESCRIBE_CONFIGS),
    api(ApiKey::AlterConfigs, 0, 2, ALTER_CONFIGS),
    api(ApiKey::CreatePartitions, 0, 3, CREATE_PARTITIONS),
    api(ApiKey::DeleteGroups, 0, 2, &[always(Texts)]),
    api(ApiKey::IncrementalAlterConfigs, 0, 1, INCREMENTAL_ALTER_CONFIGS),
    api(ApiKey::OffsetDelete, 0, 0, OFFSET_DELETE),
    api(ApiKey::DescribeCluster, 0, 2, DESCRIBE_CLUSTER),
    api(ApiKey::DescribeProducers, 0, 0, &[always(Structs(&[always(Text), always(Numbers(4))]))]),
    api(ApiKey::DescribeTransactions, 0, 0, &[always(Texts)]),
    api(ApiKey::ListTransactions, 0, 1, &[always(Texts), always(Numbers(8)), since(1, Fixed(8))]),
    api(ApiKey::ConsumerGroupHeartbeat, 0, 1, CONSUMER_GROUP_HEARTBEAT),
];

const PRODUCE: &[Field] = &[
    always(Text),     // transactional id
    always(Fixed(2)), // acks
    always(Fixed(4)), // time-out
    always(Structs(&[always(Text), always(Structs(&[always(Fixed(4)), always(Blob)]))])),
];

const FETCH: &[Field] = &[
    until(14, Fixed(4)), // replica id
    always(Fixed(4)),    // max wait
    always(Fixed(4)),    // min bytes
    always(Fixed(4)),    // max bytes
    always(Fixed(1)),    // isolation level
    since(7, Fixed(4)),  // session id
    since(7, Fixed(4)),  // session epoch
    always(Structs(&[
        until(12, Text),
        since(13, Fixed(16)),
        always(Structs(&[
            always(Fixed(4)),    // partition
            since(9, Fixed(4)),  // current leader epoch
            always(Fixed(8)),    // fetch offset
            since(12, Fixed(4)), // last fetched epoch
            since(5, Fixed(8)),  // log start offset
            always(Fixed(4)),    // max bytes
        ])),
    ])),
    since(7, Structs(&[until(12, Text), since(13, Fixed(16)), always(Numbers(4))])),
    since(11, Text), // rack
];

const LIST_OFFSETS: &[Field] = &[
    always(Fixed(4)),   // replica id
    since(2, Fixed(1)), // isolation level
    always(Structs(&[always(Text), always(Structs(&[always(Fixed(4)), since(4, Fixed(4)), always(Fixed(8))]))])),
    since(10, Fixed(4)), // time-out
];

const METADATA: &[Field] = &[
    always(Structs(&[since(10, Fixed(16)), always(Text)])),
    since(4, Fixed(1)),                             // auto creation
    Field { since: 8, until: 10, shape: Fixed(1) }, // cluster authorized operations
    since(8, Fixed(1)),                             // topic authorized operations
];

const OFFSET_COMMIT: &[Field] = &[
    always(Text),                                  // group
    always(Fixed(4)),                              // generation
    always(Text),                                  // member
    since(7, Text),                                // group instance
    Field { since: 2, until: 4, shape: Fixed(8) }, // retention
    always(Structs(&[
        always(Text),
        always(Structs(&[always(Fixed(4)), always(Fixed(8)), since(6, Fixed(4)), always(Text)])),
    ])),
];

const OFFSET_FETCH: &[Field] = &[
    until(7, Text),
    until(7, Structs(&[always(Text), always(Numbers(4))])),
    since(
        8,
        Structs(&[
            always(Text),
            since(9, Text),
            since(9, Fixed(4)),
            always(Structs(&[always(Text), always(Numbers(4))])),
        ]),
    ),
    since(7, Fixed(1)), // require stable
];

const FIND_COORDINATOR: &[Field] = &[until(3, Text), since(1, Fixed(1)), since(4, Texts)];

const JOIN_GROUP: &[Field] = &[
    always(Text),       // group
    always(Fixed(4)),   // session time-out
    since(1, Fixed(4)), // rebalance time-out
    always(Text),       // member
    since(5, Text),     // group instance
    always(Text),       // protocol type
    always(Structs(&[always(Text), always(Blob)])),
    since(8, Text), // reason
];

const HEARTBEAT: &[Field] = &[always(Text), always(Fixed(4)), always(Text), since(3, Text)];

const LEAVE_GROUP: &[Field] =
    &[always(Text), until(2, Text), since(3, Structs(&[always(Text), always(Text), since(5, Text)]))];

const SYNC_GROUP: &[Field] = &[
    always(Text),
    always(Fixed(4)),
    always(Text),
    since(3, Text),
    since(5, Text),
    since(5, Text),
    always(Structs(&[always(Text), always(Blob)])),
];

const DESCRIBE_GROUPS: &[Field] = &[always(Texts), since(3, Fixed(1))];

const LIST_GROUPS: &[Field] = &[since(4, Texts), since(5, Texts)];

const CREATE_TOPICS: &[Field] = &[
    always(Structs(&[
        always(Text),
        always(Fixed(4)),
        always(Fixed(2)),
        always(Structs(&[always(Fixed(4)), always(Numbers(4))])),
        always(Structs(&[always(Text), always(Text)])),
    ])),
    always(Fixed(4)),
    always(Fixed(1)),
];

const DELETE_TOPICS: &[Field] =
    &[since(6, Structs(&[always(Text), always(Fixed(16))])), until(5, Texts), always(Fixed(4))];

const DELETE_RECORDS: &[Field] =
    &[always(Structs(&[always(Text), always(Structs(&[always(Fixed(4)), always(Fixed(8))]))])), always(Fixed(4))];

const INIT_PRODUCER_ID: &[Field] = &[always(Text), always(Fixed(4)), since(3, Fixed(8)), since(3, Fixed(2))];

const ADD_PARTITIONS_TO_TXN: &[Field] =
    &[always(Text), always(Fixed(8)), always(Fixed(2)), always(Structs(&[always(Text), always(Numbers(4))]))];

const TXN_OFFSET_COMMIT: &[Field] = &[
    always(Text),       // transactional id
    always(Text),       // group
    always(Fixed(8)),   // producer id
    always(Fixed(2)),   // producer epoch
    since(3, Fixed(4)), // generation
    since(3, Text),     // member
    since(3, Text),     // group instance
    always(Structs(&[
        always(Text),
        always(Structs(&[
            always(Fixed(4)),   // partition
            always(Fixed(8)),   // offset
            since(2, Fixed(4)), // leader epoch
            always(Text),       // metadata
        ])),
    ])),
];

const OFFSET_FOR_LEADER_EPOCH: &[Field] = &[
    since(3, Fixed(4)),
    always(Structs(&[always(Text), always(Structs(&[always(Fixed(4)), always(Fixed(4)), always(Fixed(4))]))])),
];

const DESCRIBE_CONFIGS: &[Field] =
    &[always(Structs(&[always(Fixed(1)), always(Text), always(Texts)])), always(Fixed(1)), since(3, Fixed(1))];

const ALTER_CONFIGS: &[Field] = &[
    always(Structs(&[always(Fixed(1)), always(Text), always(Structs(&[always(Text), always(Text)]))])),
    always(Fixed(1)),
];

const CREATE_PARTITIONS: &[Field] = &[
    always(Structs(&[always(Text), always(Fixed(4)), always(Structs(&[always(Numbers(4))]))])),
    always(Fixed(4)),
    always(Fixed(1)),
];

const INCREMENTAL_ALTER_CONFIGS: &[Field] = &[
    always(Structs(&[
        always(Fixed(1)),
        always(Text),
        always(Structs(&[always(Text), always(Fixed(1)), always(Text)])),
    ])),
    always(Fixed(1)),
];

const OFFSET_DELETE: &[Field] = &[always(Text), always(Structs(&[always(Text), always(Structs(&[always(Fixed(4))]))]))];

const DESCRIBE_CLUSTER: &[Field] = &[always(Fixed(1)), since(1, Fixed(1)), since(2, Fixed(1))];

const CONSUMER_GROUP_HEARTBEAT: &[Field] = &[
    always(Text),     // group
    always(Text),     // member
    always(Fixed(4)), // epoch
    always(Text),     // group instance
    always(Text),     // rack
    always(Fixed(4)), // rebalance time-out
    always(Texts),    // topics
    since(1, Text),   // pattern
    always(Text),     // assignor
    always(Structs(&[always(Fixed(16)), always(Numbers(4))])),
];
