//! The emitter against a reader written from the WIT's own words.

use proptest::prelude::*;

use super::*;
use crate::BatchBuilder;

/// A piece of a new record as the WIT says it: kept, absent or new.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Kept,
    Absent,
    New(Vec<u8>),
}

/// A new record, decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decoded {
    source: u32,
    output: u32,
    partition: Option<u32>,
    timestamp: Option<i64>,
    key: Piece,
    value: Piece,
    headers: Option<Vec<(String, Vec<u8>)>>,
}

fn decode(emitted: &Emitted) -> Vec<Decoded> {
    let bytes = |offset: u32, length: u32| {
        emitted.data[offset as usize..offset as usize + length as usize].to_vec()
    };
    let piece = |offset: u32, length: u32| match (offset, length) {
        (NONE, 0) => Piece::Kept,
        (_, NONE) => Piece::Absent,
        (offset, length) => Piece::New(bytes(offset, length)),
    };
    let name = |offset, length| String::from_utf8(bytes(offset, length)).expect("a name");
    assert!(emitted.spans.len().is_multiple_of(SPANS));
    let rows = emitted.spans.as_chunks::<SPANS>().0;
    let stamps = &emitted.timestamps;
    assert!(stamps.is_empty() || stamps.len() == rows.len());
    let decode_row = |(index, row): (usize, &[u32; SPANS])| {
        let (first, count) = (row[7] as usize, row[8] as usize);
        let header = |h: &[u32; HEADER]| (name(h[0], h[1]), bytes(h[2], h[3]));
        Decoded {
            source: row[0],
            output: row[1],
            partition: (row[2] != NONE).then_some(row[2]),
            timestamp: stamps.get(index).copied().filter(|&at| at != i64::MIN),
            key: piece(row[3], row[4]),
            value: piece(row[5], row[6]),
            headers: (row[7] != NONE).then(|| {
                let all = emitted.headers.as_chunks::<HEADER>().0;
                all[first..first + count].iter().map(header).collect()
            }),
        }
    };
    rows.iter().enumerate().map(decode_row).collect()
}

fn pieces() -> impl Strategy<Value = Piece> {
    prop_oneof![
        Just(Piece::Kept),
        Just(Piece::Absent),
        prop::collection::vec(any::<u8>(), 0..12).prop_map(Piece::New),
    ]
}

fn decoded() -> impl Strategy<Value = Decoded> {
    let header = ("[a-zé]{1,5}", prop::collection::vec(any::<u8>(), 0..6));
    (
        (
            0u32..4,
            0u32..3,
            prop::option::of(0u32..9),
            prop::option::of(1i64..99),
        ),
        (pieces(), pieces()),
        prop::option::of(prop::collection::vec(header, 0..4)),
    )
        .prop_map(
            |((source, output, partition, timestamp), (key, value), headers)| Decoded {
                source,
                output,
                partition,
                timestamp,
                key,
                value,
                headers,
            },
        )
}

proptest! {
    #[test]
    fn what_is_emitted_is_what_the_columns_say(records in prop::collection::vec(decoded(), 0..20)) {
        let batch = (0..4).fold(BatchBuilder::new(), |b, _| b.record(None, None)).build();
        let mut out = Emitter::with_capacity(batch.len());
        for record in &records {
            out.from(&batch.record(record.source as usize).expect("four records"));
            let mut draft = out.emit(Output(record.output));
            // In an order of its own, since a caller may use any.
            if let Some(headers) = &record.headers {
                draft.without_headers();
                for (name, value) in headers {
                    draft.header(name, value);
                }
            }
            match &record.value {
                Piece::Kept => &mut draft,
                Piece::Absent => draft.without_value(),
                Piece::New(bytes) => draft.value_with(|data| data.extend_from_slice(bytes)),
            };
            if let Some(partition) = record.partition {
                draft.partition(partition);
            }
            if let Some(timestamp) = record.timestamp {
                draft.timestamp(timestamp);
            }
            match &record.key {
                Piece::Kept => &mut draft,
                Piece::Absent => draft.without_key(),
                Piece::New(bytes) => draft.key(bytes),
            };
        }
        prop_assert_eq!(out.len(), records.len());
        prop_assert_eq!(decode(&out.finish()), records);
    }
}

#[test]
fn headers_can_be_added_to_those_of_the_input() {
    let batch = BatchBuilder::new()
        .record(None, None)
        .header("a", b"1")
        .build();
    let record = batch.record(0).expect("one record");
    let mut out = Emitter::default();
    out.from(&record)
        .emit(Output(0))
        .headers_of(&record)
        .header("b", b"2");
    let decoded = decode(&out.finish());
    let expected = vec![
        ("a".to_owned(), b"1".to_vec()),
        ("b".to_owned(), b"2".to_vec()),
    ];
    assert_eq!(decoded[0].headers, Some(expected));
}

#[test]
fn a_late_timestamp_leaves_the_earlier_records_their_own() {
    let mut out = Emitter::default();
    out.emit(Output(0));
    out.emit(Output(0)).timestamp(5);
    out.emit(Output(0));
    assert_eq!(out.finish().timestamps, [i64::MIN, 5, i64::MIN]);
}
