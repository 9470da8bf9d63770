#![allow(clippy::unwrap_used, reason = "tests")]

use kafka_protocol::records::Compression;
use proptest::prelude::*;

use super::*;
use crate::log::testing::{self, Entry, Made, PLAIN, entry};

const CODECS: [Compression; 5] =
    [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];

fn sample(compression: Compression) -> Vec<u8> {
    let entries = [entry("a", "one", 1000), entry("b", "two", 3000), entry("c", "three", 2000)];
    testing::batch(&entries, Made { compression, ..PLAIN })
}

#[test]
fn header_says_what_was_encoded() {
    let made = Made { producer_id: 42, epoch: 3, sequence: 7, compression: Compression::Lz4 };
    let bytes = testing::batch(&[entry("a", "x", 1000), entry("b", "y", 900)], made);
    let header = validate(&bytes, true).unwrap();
    assert_eq!((header.producer_id, header.producer_epoch, header.base_sequence), (42, 3, 7));
    assert_eq!((header.last_sequence(), header.count, header.codec()), (8, 2, 3));
    assert_eq!((header.base_timestamp, header.max_timestamp), (900, 1000));
    assert_eq!((header.size, header.next_offset()), (bytes.len(), 2));
}

#[test]
fn every_codec_is_read_back() {
    for compression in CODECS {
        let bytes = sample(compression);
        let header = validate(&bytes, true).unwrap();
        let inflated = records(&header, &bytes).unwrap();
        let keys: Vec<_> = Records::new(&inflated).map(|r| r.unwrap().key.unwrap()).collect();
        assert_eq!(keys, [b"a", b"b", b"c"], "{compression:?}");
    }
}

#[test]
fn wrong_batches_are_refused() {
    let check = |change: &dyn Fn(&mut Vec<u8>), needs_keys| {
        let mut bytes = sample(Compression::None);
        change(&mut bytes);
        let crc = crc32c::crc32c(&bytes[21..]);
        bytes[17..21].copy_from_slice(&crc.to_be_bytes());
        validate(&bytes, needs_keys).unwrap_err()
    };
    assert_eq!(check(&|b| b.truncate(b.len() - 1), false), BatchError::Short);
    assert_eq!(check(&|b| b[16] = 1, false), BatchError::Magic(1));
    assert!(matches!(check(&|b| b.push(0), false), BatchError::Content(_)), "two batches");
    assert!(matches!(check(&|b| b[22] |= 0x20, false), BatchError::Content(_)), "control");
    assert!(matches!(check(&|b| b[22] |= 0x07, false), BatchError::Content(_)), "codec");
    assert!(matches!(check(&|b| b[60] = 2, false), BatchError::Content(_)), "count");
    assert!(
        matches!(
            check(
                &|b| {
                    b[60] = 2;
                    b[26] = 1
                },
                false
            ),
            BatchError::Content(_)
        ),
        "count and delta agree, the records do not"
    );
    assert!(matches!(check(&|b| b[60] = 0, false), BatchError::Content(_)), "no records");
    let keyless = Entry { key: None, value: Some("v".into()), timestamp: 0 };
    for compression in CODECS {
        let made = Made { compression, ..PLAIN };
        let bytes = testing::batch(std::slice::from_ref(&keyless), made);
        assert!(validate(&bytes, false).is_ok());
        assert!(matches!(validate(&bytes, true), Err(BatchError::Content(_))), "{compression:?}");
    }
}

#[test]
fn assigning_changes_offset_and_time_and_nothing_else() {
    let original = sample(Compression::Zstd);
    let mut stored = original.clone();
    assign(&mut stored, 5000, None);
    let header = BatchHeader::parse(&stored).unwrap();
    assert_eq!((header.base_offset, header.max_timestamp), (5000, 3000));
    assert!(verify_crc(&header, &stored).is_ok());
    assert_eq!(stored[16..], original[16..], "outside the prefix nothing changes");
    let mut stamped = original;
    assign(&mut stamped, 5000, Some(99_999));
    let header = BatchHeader::parse(&stamped).unwrap();
    assert!(header.is_log_append_time() && verify_crc(&header, &stamped).is_ok());
    assert_eq!(header.max_timestamp, 99_999);
}

#[test]
fn sequences_wrap() {
    assert_eq!(advance_sequence(i32::MAX, 1), 0);
    assert_eq!(advance_sequence(i32::MAX - 1, 3), 1);
    assert_eq!(advance_sequence(5, 0), 5);
}

proptest! {
    /// No flipped bit behind the leader epoch goes unnoticed.
    #[test]
    fn damage_is_noticed(at in 16usize..200, bit in 0u8..8) {
        let mut bytes = sample(Compression::None);
        let at = 16 + (at - 16) % (bytes.len() - 16);
        bytes[at] ^= 1 << bit;
        prop_assert!(validate(&bytes, false).is_err());
    }

    /// Nonsense never panics, whatever its checksum says.
    #[test]
    fn nonsense_is_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = BatchHeader::parse(&bytes);
        if bytes.len() > HEADER_LEN {
            let length = (bytes.len() - PREFIX_LEN) as i32;
            bytes[8..12].copy_from_slice(&length.to_be_bytes());
            bytes[16] = 2;
            bytes[21..23].copy_from_slice(&[0, 0]);
            let crc = crc32c::crc32c(&bytes[21..]);
            bytes[17..21].copy_from_slice(&crc.to_be_bytes());
            let _ = validate(&bytes, true);
        }
        for record in Records::new(&bytes) {
            let _ = record;
        }
    }
}
