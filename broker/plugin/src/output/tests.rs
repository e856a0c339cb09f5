#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use proptest::prelude::*;

use super::*;

const DATA: &[u8] = b"key0value0nv";
/// Two records: key0/value0 with one header n=v, and a tombstone without a key.
const SPANS: &[u32] = &[0, 4, 4, 6, 0, 1, 0, NONE, 0, NONE, 1, 0];
const HEADERS: &[u32] = &[10, 1, 11, 1];

fn input() -> Columns<'static> {
    Columns {
        data: DATA,
        spans: SPANS,
        headers: HEADERS,
        ..Columns::default()
    }
}

fn bounds() -> Bounds<'static> {
    Bounds {
        outputs: &[4, 1],
        bytes: 1000,
        records: 10,
    }
}

fn raw(data: &[u8], spans: &[u32], headers: &[u32]) -> OutBatch {
    OutBatch {
        data: data.to_vec(),
        timestamps: vec![],
        spans: spans.to_vec(),
        headers: headers.to_vec(),
    }
}

fn check(raw: OutBatch) -> Result<Output, String> {
    check_output(raw, &input(), &bounds()).map_err(|fault| fault.to_string())
}

fn refused(spans: &[u32], headers: &[u32], expected: &str) {
    let error = check(raw(b"abc", spans, headers)).unwrap_err();
    assert!(
        error.contains(expected),
        "{error:?} does not say {expected:?}"
    );
}

const KEEP_ALL: [u32; 9] = [0, 0, NONE, NONE, 0, NONE, 0, NONE, 0];

fn with(changes: &[(usize, u32)]) -> [u32; 9] {
    let mut span = KEEP_ALL;
    for &(at, value) in changes {
        span[at] = value;
    }
    span
}

#[test]
fn new_records_are_read_back() {
    let mut batch = raw(
        b"abc",
        &[KEEP_ALL, [1, 1, 0, 0, 1, 0, NONE, 0, 1]].concat(),
        &[1, 1, 2, 1],
    );
    batch.timestamps = vec![KEEP_TIMESTAMP, 17];
    let output = check(batch).unwrap();
    let records: Vec<_> = output.iter().collect();
    assert_eq!((records.len(), output.len()), (2, 2));
    assert_eq!(
        (records[0].key, records[0].value),
        (Piece::Keep, Piece::Keep)
    );
    assert_eq!((records[0].partition, records[0].timestamp), (None, None));
    assert_eq!(records[0].headers, HeaderPiece::Keep);
    assert_eq!((records[1].input, records[1].output), (1, 1));
    assert_eq!(
        (records[1].partition, records[1].timestamp),
        (Some(0), Some(17))
    );
    assert_eq!(
        (records[1].key, records[1].value),
        (Piece::New(b"a"), Piece::Absent)
    );
    let HeaderPiece::New(headers) = records[1].headers else {
        panic!("kept")
    };
    assert_eq!(headers.iter().collect::<Vec<_>>(), [("b", b"c".as_slice())]);
    // key0 + value0 + header n=v, then key a and header b=c.
    assert_eq!(output.expanded_bytes(), 4 + 6 + 2 + 16 + 1 + 2 + 16);
}

#[test]
fn whatever_is_out_of_bounds_is_named() {
    refused(&KEEP_ALL[..8], &[], "spans has 8 integers");
    refused(&KEEP_ALL, &[0; 3], "headers has 3 integers");
    refused(
        &with(&[(0, 2)]),
        &[],
        "names input record 2, but the batch has 2",
    );
    refused(&with(&[(1, 2)]), &[], "names output 2, but 2 outputs");
    refused(
        &with(&[(2, 4)]),
        &[],
        "partition 4 for record 0, but the target has 4",
    );
    refused(
        &with(&[(3, 1), (4, 3)]),
        &[],
        "the key of new record 0 is 3 bytes at 1",
    );
    refused(
        &with(&[(5, 0), (6, 4)]),
        &[],
        "the value of new record 0 is 4 bytes at 0",
    );
    refused(
        &with(&[(5, NONE - 1), (6, NONE - 1)]),
        &[],
        "the value of new record 0",
    );
    refused(
        &with(&[(7, 0), (8, 1)]),
        &[],
        "1 headers from header 0, but there are 0",
    );
    refused(
        &with(&[(7, 1), (8, NONE)]),
        &[0, 1, 0, 0],
        "headers from header 1",
    );
    refused(
        &KEEP_ALL,
        &[0, 4, 0, 0],
        "the name of header 0 is 4 bytes at 0",
    );
    refused(&KEEP_ALL, &[0, 1, 0, NONE], "the value of header 0");
    refused(&KEEP_ALL, &[0, 0, 0, 0], "the name of header 0 is empty");
    let error = check(raw(b"\xff", &KEEP_ALL, &[0, 1, 0, 0])).unwrap_err();
    assert!(error.contains("is not UTF-8"), "{error}");
    let mut batch = raw(b"", &KEEP_ALL, &[]);
    batch.timestamps = vec![1, 2];
    assert!(
        check(batch)
            .unwrap_err()
            .contains("2 timestamps for 1 records")
    );
}

#[test]
fn output_is_bounded_by_what_it_expands_to() {
    let many = |n: usize| {
        raw(
            &[b'x'; 200],
            &[with(&[(5, 0), (6, 200)]); 10][..n].concat(),
            &[],
        )
    };
    // 200 new bytes and 22 kept ones (key0, the header and its overhead) each.
    assert_eq!(check(many(4)).unwrap().expanded_bytes(), 4 * 222);
    let fault = check_output(many(5), &input(), &bounds()).unwrap_err();
    assert!(
        matches!(fault, Fault::Limit(LimitHit::OutputBytes(1000))),
        "{fault}"
    );
    let fault = check_output(raw(b"", &[KEEP_ALL; 11].concat(), &[]), &input(), &bounds());
    assert!(matches!(
        fault,
        Err(Fault::Limit(LimitHit::OutputRecords {
            made: 11,
            limit: 10
        }))
    ));
    // A kept piece that the plugin cannot see weighs what the caller says it does.
    let sizes = Columns {
        sizes: &[900, 1],
        headers: &[],
        ..input()
    };
    let twice = raw(b"", &[KEEP_ALL; 2].concat(), &[]);
    let fault = check_output(twice, &sizes, &bounds()).unwrap_err();
    assert!(
        matches!(fault, Fault::Limit(LimitHit::OutputBytes(1000))),
        "{fault}"
    );
}

#[test]
fn what_a_plugin_sees_and_replaces_is_not_counted() {
    // A plugin that asked for values alone: the key and the headers have 6 bytes.
    let spans = [0, NONE, 0, 10, 0, 0];
    let seen = Columns {
        data: b"0123456789",
        spans: &spans,
        sizes: &[16],
        ..Columns::default()
    };
    let expanded = |changes: &[(usize, u32)]| {
        let made = raw(b"ab", &with(changes), &[]);
        check_output(made, &seen, &bounds())
            .unwrap()
            .expanded_bytes()
    };
    assert_eq!(expanded(&[]), 16);
    let value = [(5, 0), (6, 2)];
    assert_eq!(expanded(&value), 2 + 6);
    let no_key = [(3, 0), (4, NONE)];
    assert_eq!(expanded(&[value, no_key].concat()), 2 + 6);
    let no_headers = [(7, 0), (8, 0)];
    assert_eq!(expanded(&[value, no_key, no_headers].concat()), 2);
}

#[test]
fn verdicts_and_partitions_are_checked() {
    use Verdict::{DeadLetter, Drop, Keep};
    assert_eq!(
        check_verdicts(vec![0, 1, 2], 3),
        Ok(vec![Drop, Keep, DeadLetter])
    );
    let fault = check_verdicts(vec![0, 1, 3], 3).unwrap_err();
    assert_eq!(fault, OutputFault::Verdict { record: 2, got: 3 });
    assert!(check_verdicts(vec![0], 3).is_err());
    assert_eq!(check_partitions(vec![0, 3], 2, 4), Ok(vec![0, 3]));
    let fault = check_partitions(vec![0, 4], 2, 4).unwrap_err();
    assert_eq!(
        fault,
        OutputFault::Partition {
            record: 1,
            got: 4,
            partitions: 4
        }
    );
    assert!(check_partitions(vec![0; 3], 2, 4).is_err());
}

/// Numbers near the edges that matter, and any others.
fn index() -> impl Strategy<Value = u32> {
    prop_oneof![8 => 0..24u32, 2 => Just(NONE), 1 => any::<u32>()]
}

fn span() -> impl Strategy<Value = Vec<u32>> {
    let rest = prop::collection::vec(index(), 7);
    (0..3u32, 0..3u32, rest).prop_map(|(input, output, rest)| [vec![input, output], rest].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn any_result_is_refused_or_in_bounds(
        data in prop::collection::vec(0x20..0x80u8, 0..24),
        spans in prop::collection::vec(span(), 0..4),
        headers in prop::collection::vec([0..24u32, 0..8u32, 0..24u32, 0..8u32], 0..4),
        timestamps in prop::collection::vec(any::<i64>(), 0..3),
        cut in 0..40usize,
    ) {
        let mut spans = spans.concat();
        if cut < 4 { spans.truncate(spans.len().saturating_sub(cut)); }
        let batch = OutBatch { data, timestamps, spans, headers: headers.concat() };
        let Ok(output) = check_output(batch.clone(), &input(), &bounds()) else { return Ok(()) };
        let mut bytes = 0;
        for record in output.iter() {
            prop_assert!(record.input < 2 && record.output < 2);
            prop_assert!(record.partition.is_none_or(|p| p < bounds().outputs[record.output as usize]));
            for piece in [record.key, record.value] {
                if let Piece::New(new) = piece { bytes += new.len(); }
            }
            if let HeaderPiece::New(headers) = record.headers {
                for (name, value) in headers.iter() {
                    prop_assert!(!name.is_empty());
                    bytes += name.len() + value.len();
                }
            }
        }
        prop_assert_eq!(output.len() * 9, batch.spans.len());
        prop_assert!(bytes as u64 <= output.expanded_bytes());
        prop_assert!(output.expanded_bytes() <= bounds().bytes as u64);
    }
}
