#![allow(clippy::unwrap_used, reason = "tests")]
//! Frames made from the described layouts: the check and the generated decoders must agree.

use bytes::{BufMut, Bytes};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::*;
use kafka_protocol::protocol::Request;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::*;
use crate::protocol::api::APIS;
use crate::protocol::shape::{Field, Shape};
use crate::protocol::unserved;

/// Bytes drawn from proptest, read one by one; zero when they are used up.
pub(crate) struct Dice<'a>(pub(crate) &'a [u8]);

impl Dice<'_> {
    fn roll(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }
}

/// Writes a random body of the described layout.
pub(crate) fn body(fields: &[Field], version: i16, flexible: bool, dice: &mut Dice<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    structure(&mut out, fields, version, flexible, dice);
    out
}

fn structure(out: &mut Vec<u8>, fields: &[Field], version: i16, flexible: bool, dice: &mut Dice<'_>) {
    for field in fields.iter().filter(|f| (f.since..=f.until).contains(&version)) {
        match field.shape {
            Shape::Fixed(size) => number(out, size, dice),
            Shape::Text => text(out, flexible, dice),
            Shape::Blob => {
                let length = usize::from(dice.roll() % 9);
                count(out, length, flexible);
                out.put_bytes(7, length);
            }
            Shape::Numbers(size) => {
                let length = usize::from(dice.roll() % 4);
                count(out, length, flexible);
                (0..length).for_each(|_| number(out, size, dice));
            }
            Shape::Texts => {
                let length = usize::from(dice.roll() % 4);
                count(out, length, flexible);
                (0..length).for_each(|_| text(out, flexible, dice));
            }
            Shape::Structs(inner) => {
                let length = usize::from(dice.roll() % 4);
                count(out, length, flexible);
                (0..length).for_each(|_| structure(out, inner, version, flexible, dice));
            }
        }
    }
    if flexible {
        // Now and then a tagged field nobody knows.
        if dice.roll().is_multiple_of(5) {
            out.put_slice(&[1, 99, 2, 0xab, 0xcd]);
        } else {
            out.put_u8(0);
        }
    }
}

/// Mostly small numbers, so that they mean something: partitions, booleans, kinds.
fn number(out: &mut Vec<u8>, size: usize, dice: &mut Dice<'_>) {
    match dice.roll() {
        0 => out.put_bytes(0xff, size),
        value if size == 1 => out.put_u8(value % 4),
        value => {
            out.put_bytes(0, size - 1);
            out.put_u8(value % 100);
        }
    }
}

fn text(out: &mut Vec<u8>, flexible: bool, dice: &mut Dice<'_>) {
    let words = ["", "topic", "group", "cleanup.policy", "1"];
    let word = words[usize::from(dice.roll()) % words.len()];
    if flexible {
        out.put_u8(word.len() as u8 + 1);
    } else {
        out.put_i16(word.len() as i16);
    }
    out.put_slice(word.as_bytes());
}

fn count(out: &mut Vec<u8>, count: usize, flexible: bool) {
    if flexible {
        out.put_u8(count as u8 + 1);
    } else {
        out.put_i32(count as i32);
    }
}

/// A whole frame around a body.
pub(crate) fn frame_of(api: &Api, version: i16, body: &[u8]) -> Bytes {
    let mut out = Vec::new();
    out.put_i16(api.key as i16);
    out.put_i16(version);
    out.put_i32(77);
    out.put_i16(4);
    out.put_slice(b"test");
    if api.is_flexible(version) {
        out.put_u8(0);
    }
    out.put_slice(body);
    out.into()
}

fn decoded<Q: Request>(frame: &Frame) -> Result<(), String> {
    let mut rest = frame.body.clone();
    Q::decode(&mut rest, frame.version).map_err(|why| why.to_string())?;
    if rest.is_empty() { Ok(()) } else { Err(format!("{} bytes left", rest.len())) }
}

fn decode_any(frame: &Frame) -> Result<(), String> {
    match frame.api.key {
        ApiKey::Produce => decoded::<ProduceRequest>(frame),
        ApiKey::Fetch => decoded::<FetchRequest>(frame),
        ApiKey::ListOffsets => decoded::<ListOffsetsRequest>(frame),
        ApiKey::Metadata => decoded::<MetadataRequest>(frame),
        ApiKey::OffsetCommit => decoded::<OffsetCommitRequest>(frame),
        ApiKey::OffsetFetch => decoded::<OffsetFetchRequest>(frame),
        ApiKey::FindCoordinator => decoded::<FindCoordinatorRequest>(frame),
        ApiKey::JoinGroup => decoded::<JoinGroupRequest>(frame),
        ApiKey::Heartbeat => decoded::<HeartbeatRequest>(frame),
        ApiKey::LeaveGroup => decoded::<LeaveGroupRequest>(frame),
        ApiKey::SyncGroup => decoded::<SyncGroupRequest>(frame),
        ApiKey::DescribeGroups => decoded::<DescribeGroupsRequest>(frame),
        ApiKey::ListGroups => decoded::<ListGroupsRequest>(frame),
        ApiKey::ApiVersions => decoded::<ApiVersionsRequest>(frame),
        ApiKey::CreateTopics => decoded::<CreateTopicsRequest>(frame),
        ApiKey::DeleteTopics => decoded::<DeleteTopicsRequest>(frame),
        ApiKey::DeleteRecords => decoded::<DeleteRecordsRequest>(frame),
        ApiKey::InitProducerId => decoded::<InitProducerIdRequest>(frame),
        ApiKey::AddPartitionsToTxn => decoded::<AddPartitionsToTxnRequest>(frame),
        ApiKey::AddOffsetsToTxn => decoded::<AddOffsetsToTxnRequest>(frame),
        ApiKey::EndTxn => decoded::<EndTxnRequest>(frame),
        ApiKey::TxnOffsetCommit => decoded::<TxnOffsetCommitRequest>(frame),
        ApiKey::OffsetForLeaderEpoch => decoded::<OffsetForLeaderEpochRequest>(frame),
        ApiKey::DescribeConfigs => decoded::<DescribeConfigsRequest>(frame),
        ApiKey::AlterConfigs => decoded::<AlterConfigsRequest>(frame),
        ApiKey::CreatePartitions => decoded::<CreatePartitionsRequest>(frame),
        ApiKey::DeleteGroups => decoded::<DeleteGroupsRequest>(frame),
        ApiKey::IncrementalAlterConfigs => decoded::<IncrementalAlterConfigsRequest>(frame),
        ApiKey::OffsetDelete => decoded::<OffsetDeleteRequest>(frame),
        ApiKey::DescribeCluster => decoded::<DescribeClusterRequest>(frame),
        ApiKey::DescribeProducers => decoded::<DescribeProducersRequest>(frame),
        ApiKey::DescribeTransactions => decoded::<DescribeTransactionsRequest>(frame),
        ApiKey::ListTransactions => decoded::<ListTransactionsRequest>(frame),
        ApiKey::ConsumerGroupHeartbeat => decoded::<ConsumerGroupHeartbeatRequest>(frame),
        other => Err(format!("{other:?} is served but not tested here")),
    }
}

fn versions() -> impl Iterator<Item = (&'static Api, i16)> {
    APIS.iter().flat_map(|api| (api.min_served..=api.max).map(move |version| (api, version)))
}

/// Draws dice for every version of every request and runs `check`.
fn for_all(cases: u32, check: impl Fn(&'static Api, i16, &[u8])) {
    let mut runner = TestRunner::new(ProptestConfig::with_cases(cases));
    runner
        .run(&proptest::collection::vec(any::<u8>(), 0..120), |bytes| {
            versions().for_each(|(api, version)| check(api, version, &bytes));
            Ok(())
        })
        .unwrap();
}

#[test]
fn decoders_accept_exactly_what_the_layouts_describe() {
    for_all(200, |api, version, bytes| {
        let body = body(api.body, version, api.is_flexible(version), &mut Dice(bytes));
        let whole = frame_of(api, version, &body);
        match parse(whole.clone()) {
            Ok(Parsed::Request(frame)) => {
                assert_eq!(frame.correlation, 77);
                assert_eq!(frame.client_id.as_str(), "test");
                if let Err(why) = decode_any(&frame) {
                    panic!("{:?} version {version}: {why}: {body:02x?}", api.key);
                }
            }
            other => panic!("{:?} version {version}: {other:?}", api.key),
        }
        // Bytes behind the layout are let pass, a missing one is not.
        let longer = [&whole[..], &[0]].concat();
        assert!(parse(longer.into()).is_ok(), "{:?} version {version}: longer", api.key);
        if !body.is_empty() {
            let shorter = whole.slice(..whole.len() - 1);
            assert!(parse(shorter).is_err(), "{:?} version {version}: shorter", api.key);
        }
    });
}

/// Damaged frames are refused or decode to something else; nothing panics or takes gigabytes.
#[test]
fn damage_is_survived() {
    for_all(100, |api, version, bytes| {
        let body = body(api.body, version, api.is_flexible(version), &mut Dice(bytes));
        let mut whole = frame_of(api, version, &body).to_vec();
        for (i, byte) in bytes.chunks_exact(3).take(4).map(|c| (c[0], c[1])) {
            let at = 8 + usize::from(i) % (whole.len() - 8);
            whole[at] = byte;
        }
        if let Ok(Parsed::Request(frame)) = parse(whole.into()) {
            // Layout and decoder may disagree about what is text; that is an error, not a panic.
            let _ = decode_any(&frame);
        }
    });
}

#[test]
fn claimed_counts_are_checked_against_the_bytes() {
    let metadata = api::find(ApiKey::Metadata as i16).unwrap();
    let claim = i32::MAX.to_be_bytes();
    let refused = parse(frame_of(metadata, 1, &claim)).unwrap_err();
    assert!(refused.to_string().contains("more elements"), "{refused}");
    let claim = [0xff, 0xff, 0xff, 0xff, 0x0f, 0, 0, 0];
    let refused = parse(frame_of(metadata, 12, &claim)).unwrap_err();
    assert!(refused.to_string().contains("more elements"), "{refused}");
}

#[test]
fn versions_of_the_future_get_an_answer_or_a_refusal() {
    let versions = api::find(ApiKey::ApiVersions as i16).unwrap();
    let future = frame_of(versions, 99, b"whatever it will be");
    assert!(matches!(parse(future), Ok(Parsed::FutureApiVersions { correlation: 77 })));
    let produce = api::find(ApiKey::Produce as i16).unwrap();
    assert!(matches!(parse(frame_of(produce, 2, &[])), Err(Refusal::Version { version: 2, .. })));
    let unknown = Bytes::from_static(&[0x7f, 0xff, 0, 0, 0, 0, 0, 1, 0xff, 0xff]);
    assert!(matches!(parse(unknown), Err(Refusal::UnknownKey(0x7fff))));
}

/// Every request of the protocol that is not served is refused at once: by its error where the layout
/// of its reply begins with one, else by the end of the connection.
#[test]
fn what_is_not_served_is_refused() {
    let code = ResponseError::UnsupportedVersion.code().to_be_bytes();
    let mut answered = 0;
    for (key, version) in (0..200).filter_map(|key| ApiKey::try_from(key).ok()).flat_map(|key| {
        let versions = key.valid_versions();
        (versions.min..=versions.max).map(move |version| (key, version))
    }) {
        if api::find(key as i16).is_some() {
            continue;
        }
        let mut frame = Vec::from((key as i16).to_be_bytes());
        frame.extend(version.to_be_bytes());
        frame.extend([0, 0, 0, 77, 0xff, 0xff]);
        let Ok(Parsed::Unserved { correlation: 77, .. }) = parse(frame.into()) else {
            panic!("{key:?} version {version} is not taken for one of the protocol");
        };
        match unserved::refuse(key, version, 77) {
            Ok(reply) => {
                assert_eq!(reply[4..8], 77i32.to_be_bytes());
                assert!(reply[8..].windows(2).any(|pair| pair == code), "{key:?} version {version}: no error");
                answered += 1;
            }
            Err(Refusal::UnknownKey(_)) => {}
            Err(other) => panic!("{key:?} version {version}: {other}"),
        }
    }
    assert!(answered > 30, "{answered}");
}

/// The table never promises more than the codec can do.
#[test]
fn table_stays_within_the_codec() {
    for api in APIS {
        let codec = api.key.valid_versions();
        assert!(api.min_served >= codec.min && api.max <= codec.max, "{:?}", api.key);
        assert!(api.min <= api.min_served && api.min_served <= api.max, "{:?}", api.key);
    }
}
