//! What a segment tells without its values, against what a scan of it shows, and what that reads.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use proptest::prelude::*;

use super::*;
use crate::segment::fault::{FaultFiles, FileOperation};
use crate::segment::limits::BLOCK_BYTES;
use crate::segment::tests::{Rows, write};
use crate::store::Direction;

const NUMBER: u64 = 9;

fn segment_of(rows: &Rows) -> (FaultFiles, Segment) {
    let files = FaultFiles::new();
    let bytes = write(&files, NUMBER, rows).unwrap().file_bytes;
    let segment = Segment::open(&files, NUMBER, bytes).unwrap();
    (files, segment)
}

/// One byte for the key and seven for the rest, so that keys are in the order of `number`.
fn key(number: usize) -> Vec<u8> {
    vec![number as u8, 1, 2, 3, 4, 5, 6, 7]
}

fn rows_of(lens: &[usize]) -> Rows {
    let value = |number: usize, len| (0..len).map(|at| (at * 7 + number) as u8).collect();
    let lens = lens.iter().enumerate();
    lens.map(|(number, len)| (key(number), value(number, *len)))
        .collect()
}

/// What is told fits the rows that lie in the range, one after the other.
fn check(segment: &Segment, range: Range<&[u8]>, how: How) -> Result<(), TestCaseError> {
    let mut rows = segment.iter_range(range.clone(), Direction::Forward);
    let mut heads = segment.heads(range, how, usize::MAX);
    while let Some(from) = heads.next_from().map(Key::from) {
        let Some(told) = heads.next() else { break };
        match told.unwrap() {
            Told::Block {
                first,
                entries,
                bytes,
            } => {
                prop_assert!(how == How::Together || how == How::Keys && entries == 1);
                let block: Vec<Row> = rows.by_ref().take(entries).map(Result::unwrap).collect();
                prop_assert!(first >= from && block.len() == entries);
                prop_assert_eq!(&block[0].key, &first);
                let total: usize = block.iter().map(|r| r.key.len() + r.value.len()).sum();
                prop_assert_eq!(total as u64, bytes);
            }
            Told::Entry(row) => {
                prop_assert!(row.key >= from);
                prop_assert_eq!(rows.next().unwrap().unwrap(), row);
            }
            Told::Ends {
                key,
                len,
                first,
                last,
            } => {
                prop_assert!(matches!(how, How::Values(_)) && key >= from);
                let row = rows.next().unwrap().unwrap();
                prop_assert_eq!((&row.key, row.value.len()), (&key, len));
                prop_assert!(row.value.starts_with(&first) && row.value.ends_with(&last));
            }
        }
    }
    prop_assert!(rows.next().is_none() && heads.next().is_none());
    Ok(())
}

fn lens() -> impl Strategy<Value = Vec<usize>> {
    let len = prop_oneof![
        6 => 0usize..400,
        2 => 3_000usize..30_000,
        2 => (BLOCK_BYTES - 50)..(BLOCK_BYTES + 10),
        1 => 100_000usize..200_000,
    ];
    prop::collection::vec(len, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tells_what_a_scan_shows(
        lens in lens(), bounds: [u8; 2], exact: bool, head in 1usize..100,
    ) {
        let (_, segment) = segment_of(&rows_of(&lens));
        let at = |bound: u8| key(usize::from(bound) % (lens.len() + 1));
        let [mut from, mut to] = bounds.map(at);
        if from > to {
            std::mem::swap(&mut from, &mut to);
        }
        if !exact {
            // Between two keys.
            from.push(1);
            to.push(0);
        }
        for how in [How::Together, How::Keys, How::Values(head)] {
            check(&segment, &from..&to, how)?;
            check(&segment, &[]..&[255], how)?;
        }
    }
}

#[test]
fn reads_no_value_that_it_need_not() {
    let mut lens = vec![BLOCK_BYTES; 20];
    lens.extend([1_000; 100]);
    lens.extend([BLOCK_BYTES; 20]);
    let (files, segment) = segment_of(&rows_of(&lens));
    let told = |range: Range<&[u8]>, how| {
        let before = files.count(FileOperation::Read);
        let told = segment.heads(range, how, usize::MAX).count();
        (told, files.count(FileOperation::Read) - before)
    };
    let blocks = (100 * 1_016usize).div_ceil(BLOCK_BYTES);
    assert_eq!(told(&[]..&[255], How::Together), (40 + blocks, 0));
    assert_eq!(told(&[]..&[255], How::Keys), (140, 1));
    // The first bytes and the last of each large one.
    assert_eq!(told(&[]..&[255], How::Values(64)), (140, 40 * 2 + 1));
    // A block that lies within the range in part only.
    let (entries, reads) = told(&key(30)..&key(125), How::Together);
    assert!(entries < 100 && reads == 1, "{entries} by {reads} reads");
    // What is asked for is more than the ends of a value have.
    assert_eq!(told(&key(0)..&key(20), How::Values(65)), (20, 20));
}

#[test]
fn goes_on_behind_a_block_that_is_damaged() {
    let (files, segment) = segment_of(&rows_of(&[30_000, 30_000, 30_000, 30_000, 100_000]));
    files.flip(NUMBER, 70_000, 1);
    let outcomes = |how| -> Vec<bool> {
        let heads = segment.heads(&[]..&[255], how, usize::MAX);
        heads.map(|told| told.is_ok()).collect()
    };
    assert_eq!(outcomes(How::Together), [true; 3]);
    assert_eq!(outcomes(How::Keys), [true, true, false, true]);
    assert_eq!(outcomes(How::Values(1)), [true, true, false, true]);
}
