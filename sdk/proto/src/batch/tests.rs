#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use bytes::{Bytes, BytesMut};
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::limits::{MAX_RECORD_BYTES, MAX_RECORD_HEADERS};
use crate::offset::{ProducerEpoch, ProducerId, Sequence};

type Plain = (
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(String, Vec<u8>)>,
    i64,
);

fn build(records: &[Plain], codec: Codec) -> Batch {
    let mut builder = BatchBuilder::new(1 << 20);
    for (key, value, headers, timestamp) in records {
        let headers: Vec<NewHeader<'_>> = headers
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_slice()))
            .collect();
        let record = NewRecord {
            key: key.as_deref(),
            value: value.as_deref(),
            headers: &headers,
            timestamp: *timestamp,
        };
        builder.push(&record).unwrap();
    }
    let predicted = builder.encoded_len();
    let batch = builder.build(codec, Stamp::default()).unwrap();
    if codec == Codec::None {
        assert_eq!(predicted, batch.bytes().len());
    }
    batch
}

fn plain(view: &BatchView<'_>) -> Vec<Plain> {
    view.records()
        .map(|r| {
            let headers = r.headers.map(|(n, v)| (n.to_owned(), v.to_vec())).collect();
            (
                r.key.map(<[u8]>::to_vec),
                r.value.map(<[u8]>::to_vec),
                headers,
                r.timestamp,
            )
        })
        .collect()
}

fn records() -> impl Strategy<Value = Vec<Plain>> {
    let bytes = || proptest::option::of(vec(any::<u8>(), 0..40));
    let headers = vec(("[a-z]{0,6}", vec(any::<u8>(), 0..6)), 0..3);
    vec((bytes(), bytes(), headers, 0_i64..1_000_000), 1..40)
}

fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::None), Just(Codec::Lz4), Just(Codec::Zstd)]
}

proptest! {
    #[test]
    fn what_is_built_is_read(records in records(), codec in codec()) {
        let built = build(&records, codec);
        let read = Batch::check(built.bytes().clone()).unwrap();
        prop_assert_eq!(&read, &built);
        let body = read.body().unwrap();
        prop_assert_eq!(plain(&body.view().unwrap()), records);
    }

    #[test]
    fn spans_point_at_the_records(records in records()) {
        let body = build(&records, Codec::None).body().unwrap();
        let view = body.view().unwrap();
        let mut columns = Columns::default();
        columns.fill(&view, Wanted { headers: true, timestamps: true, offsets: true });
        let piece = |at: u32, len: u32| (len != ABSENT).then(|| view.blob()[at as usize..][..len as usize].to_vec());
        let (spans, rest) = columns.spans.as_chunks::<6>();
        prop_assert!(rest.is_empty());
        prop_assert_eq!(spans.len(), records.len());
        for (i, (s, (key, value, headers, timestamp))) in spans.iter().zip(&records).enumerate() {
            prop_assert_eq!(&piece(s[0], s[1]), key);
            prop_assert_eq!(&piece(s[2], s[3]), value);
            prop_assert_eq!(columns.timestamps[i], *timestamp);
            prop_assert_eq!(columns.offsets[i], i as i64);
            let found: Vec<_> = columns.headers.as_chunks::<4>().0[s[4] as usize..][..s[5] as usize]
                .iter()
                .map(|h| (String::from_utf8(piece(h[0], h[1]).unwrap()).unwrap(), piece(h[2], h[3]).unwrap()))
                .collect();
            prop_assert_eq!(&found, headers);
        }
    }

    #[test]
    fn a_flipped_bit_is_noticed(records in records(), codec in codec(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
        let built = build(&records, codec);
        let mut bytes = built.bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        // The base offset is the broker's to change; all else is covered.
        let noticed = Batch::check(bytes.into()).is_err();
        prop_assert_eq!(noticed, !(8..16).contains(&at));
    }

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Batch::check(bytes.into());
    }

    #[test]
    fn hostile_headers_and_columns_are_errors_not_panics(
        records in records(), codec in codec(), patches in vec((16usize..400, any::<u8>()), 1..6),
    ) {
        // A peer can compute a checksum too, so look behind it.
        let mut bytes = build(&records, codec).bytes().to_vec();
        for (at, byte) in patches {
            if let Some(slot) = bytes.get_mut(at) {
                *slot = byte;
            }
        }
        let crc = crc32c::crc32c(&bytes[CRC_FROM..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        if let Ok(batch) = Batch::check(bytes.into())
            && let Ok(body) = batch.body()
            && let Ok(view) = body.view()
        {
            prop_assert_eq!(view.records().count(), batch.count() as usize);
            let mut columns = Columns::default();
            columns.fill(&view, Wanted { headers: true, timestamps: true, offsets: true });
        }
    }

    #[test]
    fn offsets_that_were_kept_are_read_again(steps in vec(0u64..1000, 1..30)) {
        let mut builder = BatchBuilder::new(1 << 20);
        let offsets: Vec<u64> = steps.iter().scan(7, |at, step| { *at += step; Some(*at) }).collect();
        for offset in &offsets {
            builder.push_at(Offset(*offset), &NewRecord { value: Some(b"x"), ..NewRecord::default() }).unwrap();
        }
        let body = builder.build(Codec::None, Stamp::default()).unwrap().body().unwrap();
        let read: Vec<u64> = body.view().unwrap().records().map(|r| r.offset.0).collect();
        prop_assert_eq!(read, offsets);
    }
}

/// The format at rest and on the wire: these bytes must never change meaning.
#[test]
fn golden_bytes() {
    let mut builder = BatchBuilder::new(1 << 16);
    let first = NewRecord {
        key: Some(b"k1"),
        value: Some(b"one"),
        headers: &[("h", b"v")],
        timestamp: 1000,
    };
    let second = NewRecord {
        key: None,
        value: None,
        headers: &[],
        timestamp: 1007,
    };
    builder.push(&first).unwrap();
    builder.push(&second).unwrap();
    let stamp = Stamp {
        producer: ProducerId(0x0102),
        epoch: ProducerEpoch(3),
        sequence: Sequence(4),
    };
    let batch = builder.build(Codec::None, stamp).unwrap();
    let mut expected = BytesMut::new();
    expected.extend_from_slice(b"MSB1");
    expected.extend_from_slice(&batch.header().crc.to_le_bytes());
    expected.extend_from_slice(&[0; 8]); // base offset
    expected.extend_from_slice(&[1, 0, 7, 0]); // version, codec, flags
    expected.extend_from_slice(&2u32.to_le_bytes());
    expected.extend_from_slice(&1000u64.to_le_bytes());
    expected.extend_from_slice(&0x0102u64.to_le_bytes());
    expected.extend_from_slice(&4u64.to_le_bytes());
    expected.extend_from_slice(&[3, 0, 0, 0]); // epoch, reserved
    expected.extend_from_slice(&1u32.to_le_bytes()); // record headers
    expected.extend_from_slice(&7u32.to_le_bytes()); // blob
    expected.extend_from_slice(&41u32.to_le_bytes()); // body
    expected.extend_from_slice(b"k1onehv");
    expected.extend_from_slice(&[3, 0, 0, 0, 255, 255, 255, 255]); // value lengths
    expected.extend_from_slice(&[2, 0, 0, 0, 255, 255, 255, 255]); // key lengths
    expected.extend_from_slice(&[0, 0, 0, 0, 7, 0, 0, 0]); // timestamp deltas
    expected.extend_from_slice(&[1, 0, 0, 0]); // header counts
    expected.extend_from_slice(&[1, 0]); // name lengths
    expected.extend_from_slice(&[1, 0, 0, 0]); // header value lengths
    assert_eq!(batch.bytes(), &expected.freeze());
    assert_eq!(
        batch.header().crc,
        GOLDEN_CRC,
        "{:#010x}",
        batch.header().crc
    );
}

/// CRC-32C of the golden batch, computed with another implementation.
const GOLDEN_CRC: u32 = 0x5255_24c9;

#[test]
fn the_base_offset_changes_without_the_checksum() {
    let batch = build(&[(None, Some(b"v".to_vec()), Vec::new(), 5)], Codec::Lz4);
    let (head, body) = batch.at_offset(Offset(42));
    let moved = Batch::check(Bytes::from([&head[..], &body[..]].concat())).unwrap();
    assert_eq!(moved.header().base_offset, Offset(42));
    assert_eq!(
        moved
            .body()
            .unwrap()
            .view()
            .unwrap()
            .records()
            .next()
            .unwrap()
            .offset,
        Offset(42)
    );
}

#[test]
fn a_full_batch_says_so_and_is_unchanged() {
    let mut builder = BatchBuilder::new(1000);
    let record = NewRecord {
        value: Some(&[7; 100]),
        ..NewRecord::default()
    };
    while builder.push(&record).is_ok() {}
    assert_eq!(builder.push(&record), Err(PushError::Full));
    let batch = builder.build(Codec::None, Stamp::default()).unwrap();
    assert_eq!(batch.count(), 9);
    assert!(batch.bytes().len() <= 1000);
    assert!(builder.is_empty());
}

#[test]
fn a_record_larger_than_the_batch_size_gets_a_batch_of_its_own() {
    let mut builder = BatchBuilder::new(1000);
    let big = vec![1; 5000];
    builder
        .push(&NewRecord {
            value: Some(&big),
            ..NewRecord::default()
        })
        .unwrap();
    assert_eq!(builder.push(&NewRecord::default()), Err(PushError::Full));
    let huge = vec![1; MAX_RECORD_BYTES + 1];
    let record = NewRecord {
        value: Some(&huge),
        ..NewRecord::default()
    };
    assert!(matches!(
        builder.push(&record),
        Err(PushError::RecordTooLarge { .. })
    ));
    let many = vec![("n", &b""[..]); MAX_RECORD_HEADERS + 1];
    let record = NewRecord {
        headers: &many,
        ..NewRecord::default()
    };
    assert_eq!(builder.push(&record), Err(PushError::Headers));
}

#[test]
fn timestamps_too_far_apart_begin_a_new_batch() {
    let mut builder = BatchBuilder::new(1000);
    let at = |timestamp| NewRecord {
        value: Some(b"x"),
        timestamp,
        ..NewRecord::default()
    };
    builder.push(&at(0)).unwrap();
    assert_eq!(
        builder.push(&at(i64::from(i32::MAX) + 1)),
        Err(PushError::Full)
    );
    assert_eq!(builder.push(&at(i64::MIN)), Err(PushError::Full));
    builder.push(&at(i64::from(i32::MAX))).unwrap();
}

#[test]
fn each_fault_has_its_own_error() {
    let good = build(
        &[(None, Some(b"value".to_vec()), Vec::new(), 0)],
        Codec::None,
    );
    let patched = |at: usize, byte: u8| {
        let mut bytes = good.bytes().to_vec();
        bytes[at] = byte;
        Batch::check(bytes.into()).unwrap_err()
    };
    assert!(matches!(patched(0, b'X'), BatchError::BadMagic(_)));
    assert!(matches!(patched(16, 9), BatchError::UnknownVersion(9)));
    assert!(matches!(patched(17, 7), BatchError::UnknownCodec(7)));
    assert!(matches!(patched(66, 0), BatchError::BadChecksum { .. }));
    assert!(matches!(patched(20, 0), BatchError::RecordCount(0)));
    let short = good.bytes().slice(..good.bytes().len() - 1);
    assert!(matches!(
        Batch::check(short),
        Err(BatchError::Truncated { .. })
    ));
    let long = Bytes::from([good.bytes(), &b"x"[..]].concat());
    assert!(matches!(Batch::check(long), Err(BatchError::Trailing(1))));
}

#[test]
fn a_compressed_body_cannot_claim_more_than_it_holds() {
    let batch = build(&[(None, Some(vec![0; 4000]), Vec::new(), 0)], Codec::Zstd);
    let mut bytes = batch.bytes().to_vec();
    bytes[56..60].copy_from_slice(&5000u32.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[CRC_FROM..]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    let lying = Batch::check(bytes.into()).unwrap();
    assert!(matches!(lying.body(), Err(BatchError::Compression(_))));
}
