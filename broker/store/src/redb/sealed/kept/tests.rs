//! What cuts leave of extents in a real segment, and that the sums stay right.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use ::redb::backends::InMemoryBackend;
use ::redb::{Database, ReadableTable};
use proptest::prelude::*;

use super::super::*;
use super::{BLOCK_BYTES, kept, offset_at, share};
use crate::limits::TRAILER_LEN;
use crate::segment::fault::FaultFiles;
use crate::segment::{OpenLimits, SegmentWriter};

const NUMBER: u64 = 7;

fn run(partition: u8) -> Key {
    Key::from([0, 0, 0, 1, 0, 0, 0, partition])
}

fn key(partition: u8, offset: u64) -> Key {
    run(partition).push_u64(offset)
}

/// Runs `work` on a segment that holds records of (partition, offset, length), in order.
fn with_segment(
    records: &[(u8, u64, usize)],
    work: impl FnOnce(&mut SealedTables<'_>, &Arc<Segments>),
) {
    let files = Arc::new(FaultFiles::new());
    let mut writer = SegmentWriter::new(files.clone(), NUMBER).unwrap();
    let mut entries = Vec::new();
    for &(partition, offset, len) in records {
        let key = key(partition, offset);
        writer.push(&key, &vec![7; len + TRAILER_LEN]).unwrap();
        let bytes = (key.len() + len) as u64;
        entries.push(SealedEntry { key, bytes });
    }
    let summary = writer.finish().unwrap();
    let segments = Arc::new(Segments::new(files, OpenLimits::default()));
    let backend = InMemoryBackend::new();
    let database = Database::builder().create_with_backend(backend).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut tables = SealedTables::open(&transaction).unwrap();
    let new = (NUMBER, summary.file_bytes);
    tables.add(new, &entries, |_| false, &segments).unwrap();
    work(&mut tables, &segments);
}

fn all_extents(tables: &SealedTables<'_>) -> Vec<(Key, Extent)> {
    let rows = tables.extents.iter().unwrap().map(|row| {
        let (start, row) = row.unwrap();
        let start = Key::from(start.value());
        let extent = Extent::decode(&start, row.value()).unwrap();
        (start, extent)
    });
    rows.collect()
}

/// What `millstream check` compares too.
fn check_sums(tables: &SealedTables<'_>) {
    let extents = all_extents(tables);
    let bytes: u64 = extents.iter().map(|(_, extent)| extent.bytes).sum();
    let row = tables.segment(NUMBER).unwrap_or_default();
    assert_eq!(
        (row.extents, row.live_bytes),
        (extents.len() as u64, bytes),
        "{extents:?}"
    );
    let mut counted = SealedTotals::default();
    if row.extents > 0 {
        counted.add(&row);
    }
    assert_eq!(tables.change(), counted);
}

/// Many in each block: what is left of them still counts, however often they are cut.
#[test]
fn what_is_left_of_small_extents_counts() {
    const LEN: usize = 784;
    const RECORDS: u64 = 20;
    const PARTITIONS: u8 = 100;
    let records = (0..PARTITIONS).flat_map(|at| (0..RECORDS).map(move |offset| (at, offset, LEN)));
    let records: Vec<(u8, u64, usize)> = records.collect();
    let blocks = records.len() * LEN / BLOCK_BYTES + 2;
    with_segment(&records, |tables, segments| {
        for first in 1..RECORDS {
            for partition in 0..PARTITIONS {
                let cut = key(partition, 0)..key(partition, first);
                tables.cut(&(&cut.start[..]..&cut.end), segments).unwrap();
            }
            check_sums(tables);
            let wanted = (RECORDS - first) * (LEN as u64 + 16);
            let extents = all_extents(tables);
            assert_eq!(extents.len(), usize::from(PARTITIONS));
            // Some have the beginning of a block, which counts as theirs; it is theirs for the most.
            let exact = extents.iter().filter(|(_, extent)| {
                assert!(extent.bytes + RECORDS >= wanted, "{extent:?}");
                extent.bytes <= wanted
            });
            assert!(exact.count() + blocks >= extents.len());
        }
    });
}

/// Where each batch has a block of its own the index knows how much is left, whatever the offsets.
#[test]
fn what_is_left_of_large_batches_is_known() {
    let offsets = [0, 1000, 1001, 1002, 5000];
    let records = offsets.map(|offset| (0, offset, 2 * BLOCK_BYTES));
    with_segment(&records, |tables, segments| {
        for (cut, offset) in offsets.into_iter().enumerate().skip(1) {
            let range = key(0, 0)..key(0, offset);
            tables
                .cut(&(&range.start[..]..&range.end), segments)
                .unwrap();
            let [(_, extent)] = &all_extents(tables)[..] else {
                panic!("one is left")
            };
            let each = 2 * BLOCK_BYTES as u64 + 16;
            let left = (offsets.len() - cut) as u64 * each;
            // The trailers are in what the index knows.
            let known = extent.bytes.abs_diff(left) <= (offsets.len() * TRAILER_LEN) as u64;
            assert!(known, "{extent:?} instead of {left}");
            check_sums(tables);
        }
    });
}

/// It says nothing of what is left, which does not make that unwanted.
#[test]
fn an_index_that_cannot_be_read_leaves_the_share() {
    let (start, middle, end) = (key(1, 10), key(1, 15), successor(&key(1, 19)));
    let (whole, part) = (&start[..]..&end[..], &middle[..]..&end[..]);
    assert_eq!(kept(&whole, 1000, &part, None), 500);
    let (whole, part) = (&b"a"[..]..&b"c"[..], &b"b"[..]..&b"c"[..]);
    assert_eq!(kept(&whole, 1000, &part, None), 0);
}

#[test]
fn offsets_tell_a_share_of_the_keys_of_one_partition() {
    let check = |whole: [&[u8]; 2], part: [&[u8]; 2], expected| {
        let [whole, part] = [whole, part].map(|[start, end]| start..end);
        assert_eq!(share(&whole, 1000, &part), expected);
    };
    let at = |offset| key(1, offset);
    let behind = |offset| successor(&key(1, offset));
    check([&at(10), &behind(19)], [&at(12), &behind(19)], Some(800));
    check([&at(10), &at(20)], [&behind(11), &at(20)], Some(800));
    check([&at(10), &at(20)], [&at(10), &at(11)], Some(100));
    check(
        [&at(0), &behind(u64::MAX)],
        [&at(1 << 63), &behind(u64::MAX)],
        Some(500),
    );
    // No record fits in between.
    check([&behind(9), &at(10)], [&behind(9), &at(10)], None);
    // Other keys.
    check([b"a", b"c"], [b"b", b"c"], None);
    check([&at(1), &at(9)], [&at(1), &at(1).push_bytes(&[0, 0])], None);
    check([&at(1), &at(1).push_bytes(&[1])], [&at(1), &at(1)], None);
    check([&at(1), &key(2, 9)], [&at(2), &key(2, 9)], None);
    assert_eq!(offset_at(&run(1), &at(5)), Some(5));
    assert_eq!(offset_at(&run(2), &at(5)), None);
}

fn records() -> impl Strategy<Value = Vec<(u8, u64, usize)>> {
    let len = prop_oneof![8 => 0usize..3000, 1 => 60_000usize..150_000];
    let record = (0u8..3, 1u64..200, len);
    prop::collection::vec(record, 1..60).prop_map(|mut records| {
        records.sort_by_key(|(partition, ..)| *partition);
        let mut offset = 0;
        for record in &mut records {
            offset += record.1;
            record.1 = offset;
        }
        records
    })
}

/// A key of a record, or one between two, or of no record at all.
fn border() -> impl Strategy<Value = Key> {
    (0u8..3, 0u64..12_000, 0u8..4).prop_map(|(partition, offset, shape)| match shape {
        0 | 1 => key(partition, offset),
        2 => successor(&key(partition, offset)),
        _ => run(partition),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_sums_stay_right(
        records in records(), cuts in prop::collection::vec((border(), border()), 0..40),
    ) {
        with_segment(&records, |tables, segments| {
            check_sums(tables);
            let mut cuts = cuts;
            cuts.push((run(0), run(3)));
            for (one, other) in &cuts {
                let before = all_extents(tables);
                let range = &one.min(other)[..]..&one.max(other)[..];
                if range.start == range.end {
                    continue;
                }
                tables.cut(&range, segments).unwrap();
                check_sums(tables);
                for (start, extent) in all_extents(tables) {
                    let of = |(from, whole): &&(Key, Extent)| *from <= start && extent.end <= whole.end;
                    let whole = before.iter().find(of).map(|(_, whole)| whole.bytes);
                    assert!(whole.is_some_and(|whole| extent.bytes <= whole));
                }
            }
            assert_eq!(tables.emptied, [NUMBER]);
            assert_eq!(tables.change(), SealedTotals::default());
        });
    }
}
