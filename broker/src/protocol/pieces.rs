//! A reply as a row of buffers, and the encoding of Fetch replies into one.
//!
//! Records go to the socket from the buffer that they were read into from the page cache, instead of
//! being copied into the frame around them. The generated encoder wants one buffer for everything, so
//! [`fetched`] has it encode every level of the reply with an empty end, and puts the real end there.
//! Property: the row is byte for byte what the generated encoder makes of the whole.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::{FetchResponse, ResponseHeader};
use kafka_protocol::protocol::{Encodable, HeaderVersion};

use super::frame::Refusal;

/// Records shorter than this are copied: an entry of a vectored write costs about as much.
const WORTH_A_PIECE: usize = 1024;

/// Buffers to be written one after the other.
#[derive(Debug, Default)]
pub(crate) struct Pieces(VecDeque<Bytes>);

impl From<BytesMut> for Pieces {
    fn from(whole: BytesMut) -> Self {
        Self(VecDeque::from([whole.freeze()]))
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        self.0.front().map_or(&[], |piece| piece)
    }

    fn chunks_vectored<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let filled = out.iter_mut().zip(&self.0).map(|(slot, piece)| *slot = IoSlice::new(piece));
        filled.count()
    }

    fn advance(&mut self, mut count: usize) {
        while let Some(first) = self.0.front_mut() {
            if count < first.len() {
                return first.advance(count);
            }
            count -= first.len();
            self.0.pop_front();
        }
        assert!(count == 0, "advanced behind the end");
    }
}

/// A Fetch reply with its length in front.
pub(crate) fn fetched(correlation: i32, version: i16, mut reply: FetchResponse) -> Result<Pieces, Refusal> {
    let header = FetchResponse::header_version(version);
    let mut row = Row { version, is_flexible: header >= 1, open: BytesMut::new(), done: VecDeque::new() };
    let refuse = |why: &dyn std::fmt::Display| Refusal::Reply(why.to_string());
    ResponseHeader::default()
        .with_correlation_id(correlation)
        .encode(&mut row.open, header)
        .map_err(|why| refuse(&why))?;
    let topics = std::mem::take(&mut reply.responses);
    row.begin(&reply, topics.len())?;
    for mut topic in topics {
        let partitions = std::mem::take(&mut topic.partitions);
        row.begin(&topic, partitions.len())?;
        for mut partition in partitions {
            let records = partition.records.replace(Bytes::new()).unwrap_or_default();
            row.begin(&partition, records.len())?;
            row.put(records);
            row.end();
        }
        row.end();
    }
    row.end();
    row.finish()
}

/// A row under construction.
struct Row {
    version: i16,
    /// Whether lengths are compact and every structure ends with its tagged fields.
    is_flexible: bool,
    open: BytesMut,
    done: VecDeque<Bytes>,
}

impl Row {
    /// Writes a structure whose last field, an array or bytes, is empty, up to that field, and then
    /// the `count` of what will follow in its place.
    fn begin(&mut self, structure: &impl Encodable, count: usize) -> Result<(), Refusal> {
        let refuse = |why: &dyn std::fmt::Display| Refusal::Reply(why.to_string());
        structure.encode(&mut self.open, self.version).map_err(|why| refuse(&why))?;
        // An empty compact array or string is 1; no tagged fields are 0.
        let empty: &[u8] = if self.is_flexible { &[1, 0] } else { &[0; 4] };
        let Some(before) = self.open.strip_suffix(empty).map(<[u8]>::len) else {
            return Err(Refusal::Reply("a structure does not end with what will be put there".into()));
        };
        self.open.truncate(before);
        if self.is_flexible {
            put_varint(&mut self.open, u32::try_from(count + 1).map_err(|why| refuse(&why))?);
        } else {
            self.open.put_i32(i32::try_from(count).map_err(|why| refuse(&why))?);
        }
        Ok(())
    }

    fn put(&mut self, records: Bytes) {
        if records.len() < WORTH_A_PIECE {
            return self.open.extend_from_slice(&records);
        }
        self.done.push_back(self.open.split().freeze());
        self.done.push_back(records);
    }

    /// Ends a structure: without tagged fields.
    fn end(&mut self) {
        if self.is_flexible {
            self.open.put_u8(0);
        }
    }

    fn finish(mut self) -> Result<Pieces, Refusal> {
        self.done.push_back(self.open.freeze());
        let pieces = Pieces(self.done);
        let length = i32::try_from(pieces.remaining()).map_err(|why| Refusal::Reply(why.to_string()))?;
        let mut row = pieces.0;
        row.push_front(Bytes::copy_from_slice(&length.to_be_bytes()));
        Ok(Pieces(row))
    }
}

fn put_varint(out: &mut BytesMut, mut value: u32) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
    use kafka_protocol::messages::{ApiKey, ProducerId, TopicName};
    use kafka_protocol::protocol::StrBytes;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{api, frame};

    /// Per topic, per partition: size of the records, error code, aborted transactions.
    type Content = Vec<Vec<(usize, i16, Option<u8>)>>;

    fn reply(content: &Content) -> FetchResponse {
        let topics = content.iter().enumerate().map(|(i, partitions)| {
            let partitions = partitions.iter().enumerate().map(|(j, &(size, error, aborted))| {
                let one = AbortedTransaction::default().with_producer_id(ProducerId(7)).with_first_offset(3);
                PartitionData::default()
                    .with_partition_index(j as i32)
                    .with_error_code(error)
                    .with_high_watermark(size as i64)
                    .with_aborted_transactions(aborted.map(|count| vec![one; count.into()]))
                    .with_records(Some(vec![i as u8; size].into()))
            });
            FetchableTopicResponse::default()
                .with_topic(TopicName(StrBytes::from_string(format!("topic {i}"))))
                .with_partitions(partitions.collect())
        });
        FetchResponse::default().with_responses(topics.collect())
    }

    proptest! {
        /// Every version, records on both sides of the sizes that matter; read in steps of any length.
        #[test]
        fn a_row_is_what_the_encoder_makes_of_the_whole(
            content in proptest::collection::vec(proptest::collection::vec(
                (prop_oneof![0..200usize, 1000..1050usize, 16_000..17_000usize], 0..2i16, proptest::option::of(0..3u8)), 0..4), 0..4),
            step in 1..5000usize,
        ) {
            let fetch = api::find(ApiKey::Fetch as i16).unwrap();
            for version in fetch.min_served..=fetch.max {
                let reply = reply(&content);
                let whole = frame::encode(77, version, &reply).unwrap();
                let mut row = fetched(77, version, reply).unwrap();
                let mut slices = [IoSlice::new(&[]); 64];
                let filled = row.chunks_vectored(&mut slices);
                let shown: Vec<u8> = slices[..filled].iter().flat_map(|slice| slice.iter().copied()).collect();
                prop_assert_eq!(&shown[..], &whole[..]);
                let mut read = Vec::new();
                while row.has_remaining() {
                    let count = step.min(row.chunk().len()).max(1);
                    read.extend_from_slice(&row.chunk()[..count.min(row.chunk().len())]);
                    row.advance(count);
                }
                prop_assert_eq!(&read[..], &whole[..]);
            }
        }
    }
}
