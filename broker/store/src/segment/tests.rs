//! Segments as their owner uses them: compared with a map in memory, damaged at every byte, broken
//! at every operation.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;

use super::fault::{FaultFiles, FileFault, FileOperation};
use super::limits::{BLOCK_BYTES, MAX_ENTRY_VALUE, READ_AHEAD, WRITE_BYTES};
use super::*;
use crate::batch::Key;
use crate::fault::Effect;
use crate::store::{Direction, Row};

pub(super) type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

const NUMBER: u64 = 0x1234;
const BOTH: [Direction; 2] = [Direction::Forward, Direction::Backward];

pub(super) fn write(files: &FaultFiles, number: u64, rows: &Rows) -> Result<Summary, SegmentError> {
    let mut writer = SegmentWriter::new(Arc::new(files.clone()), number)?;
    for (key, value) in rows {
        let (left, right) = value.split_at(value.len() / 3);
        writer.push_parts(key, &[left, right])?;
    }
    writer.finish()
}

fn segment_of(rows: &Rows) -> (FaultFiles, Segment, Summary) {
    let files = FaultFiles::new();
    let summary = write(&files, NUMBER, rows).unwrap();
    let segment = Segment::open(&files, NUMBER, summary.file_bytes).unwrap();
    (files, segment, summary)
}

/// Values that differ at every byte from their neighbours.
fn payload(seed: usize, len: usize) -> Vec<u8> {
    (0..len)
        .map(|at| (at * 31 + at / 251 + seed * 17) as u8)
        .collect()
}

/// Rows of `len` bytes each, under keys as records have them.
fn records(count: usize, len: usize) -> Rows {
    let key = |number: usize| [[0; 8], (number as u64).to_be_bytes()].concat();
    (0..count).map(|n| (key(n), payload(n, len))).collect()
}

fn collected(scan: Scan<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    scan.map(|row| pair(&row.unwrap())).collect()
}

fn pair(row: &Row) -> (Vec<u8>, Vec<u8>) {
    (row.key.to_vec(), row.value.to_vec())
}

fn expected(rows: &Rows, range: (&[u8], &[u8]), direction: Direction) -> Vec<(Vec<u8>, Vec<u8>)> {
    let within = rows
        .iter()
        .filter(|(key, _)| range.0 <= &key[..] && &key[..] < range.1);
    let mut within: Vec<_> = within.map(|(k, v)| (k.clone(), v.clone())).collect();
    if direction == Direction::Backward {
        within.reverse();
    }
    within
}

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        prop::collection::vec(0u8..4, 1..6),
        prop::collection::vec(any::<u8>(), 1..40),
    ]
}

/// Sizes on both sides of every border: of a copied group, of a shared value, of a block.
fn any_rows() -> impl Strategy<Value = Rows> {
    let len = prop_oneof![
        8 => 0usize..300,
        3 => 3_000usize..6_000,
        2 => 20_000usize..45_000,
        1 => (BLOCK_BYTES - 60)..(BLOCK_BYTES + 10),
        1 => 100_000usize..400_000,
    ];
    prop::collection::vec((any_key(), len), 1..80).prop_map(|rows| {
        let value = |(seed, (key, len))| (key, payload(seed, len));
        rows.into_iter().enumerate().map(value).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn answers_as_a_map_does(
        rows in any_rows(),
        probes in prop::collection::vec((any_key(), any_key(), any::<usize>()), 1..12),
    ) {
        let (_, segment, summary) = segment_of(&rows);
        let data: usize = rows.iter().map(|(k, v)| k.len() + v.len()).sum();
        prop_assert_eq!(summary.entries as usize, rows.len());
        prop_assert_eq!(summary.data_bytes as usize, data);
        prop_assert_eq!(&*summary.first, &rows.first_key_value().unwrap().0[..]);
        prop_assert_eq!(&*summary.last, &rows.last_key_value().unwrap().0[..]);
        prop_assert_eq!((segment.entries(), segment.data_bytes()), (summary.entries, summary.data_bytes));
        prop_assert_eq!((segment.first_key(), segment.last_key()), (&*summary.first, &*summary.last));
        prop_assert_eq!(segment.verify(&mut |_| {}), vec![]);
        for direction in BOTH {
            prop_assert_eq!(collected(segment.iter(direction)), expected(&rows, (&[], &[255; 50]), direction));
        }
        let mut borders = vec![Vec::new(), vec![255; 50]];
        for (one, other, at) in &probes {
            // Half of the probes are keys that are there, or right behind one that is.
            let there = rows.keys().nth(at % rows.len()).unwrap();
            let behind = [&there[..], &[0]].concat();
            for key in [one, there, &behind] {
                let found = segment.get(key).unwrap();
                prop_assert_eq!(found.as_deref(), rows.get(key).map(Vec::as_slice));
            }
            for (start, end) in [(one, other), (one, there), (there, other), (there, &behind)] {
                for direction in BOTH {
                    let scan = segment.iter_range(start..end, direction).wanting(at % 200_000);
                    prop_assert_eq!(collected(scan), expected(&rows, (start, end), direction));
                }
                let floor = rows.keys().rfind(|key| *key <= end && *key >= start);
                let found = segment.floor_key(start, end).unwrap();
                prop_assert_eq!(found.as_deref(), floor.map(Vec::as_slice));
            }
            borders.extend([one.clone(), behind]);
        }
        borders.sort();
        let pieces = borders.windows(2).map(|pair| segment.bytes_in(&pair[0]..&pair[1]));
        prop_assert_eq!(pieces.sum::<u64>() as usize, data);
    }
}

/// Whatever a damaged segment says is true, and it does not get away with saying nothing.
fn check_damaged(files: &FaultFiles, len: usize, rows: &Rows, what: &str) {
    let segment = match Segment::open(files, NUMBER, len as u64) {
        Err(SegmentError::Damaged { .. }) => return,
        Err(other) => panic!("{what}: {other}"),
        Ok(segment) => segment,
    };
    let mut noticed = 0;
    for direction in BOTH {
        for row in segment.iter(direction) {
            match row {
                Ok(row) => assert_eq!(rows.get(&*row.key), Some(&row.value.to_vec()), "{what}"),
                Err(SegmentError::Damaged { .. }) => noticed += 1,
                Err(other) => panic!("{what}: {other}"),
            }
        }
    }
    assert_eq!(noticed, 2, "{what}");
    let damaged = segment.verify(&mut |_| {});
    let [damage] = &damaged[..] else {
        panic!("{what}: {damaged:?}")
    };
    for (key, value) in rows {
        let lost = damage.keys.contains(&Key::from(&key[..]));
        match segment.get(key) {
            Ok(found) => assert!(!lost && found.as_deref() == Some(value), "{what}"),
            Err(_) => assert!(lost, "{what}"),
        }
    }
}

fn check_every_flip(rows: &Rows, skip: impl Fn(usize) -> bool) {
    let (files, _, summary) = segment_of(rows);
    let len = summary.file_bytes as usize;
    for at in (0..len).filter(|at| !skip(*at)) {
        let mask = 1 << (at % 8);
        files.flip(NUMBER, at, mask);
        check_damaged(&files, len, rows, &format!("byte {at} of {len}"));
        files.flip(NUMBER, at, mask);
    }
    let clean = Segment::open(&files, NUMBER, len as u64).unwrap();
    assert_eq!(clean.verify(&mut |_| {}), []);
}

#[test]
fn damage_at_every_byte_is_noticed() {
    check_every_flip(&records(12, 40), |_| false);
    // Of large values, only some bytes.
    let is_value =
        |at: usize| at % BLOCK_BYTES > 700 && at < 5 * BLOCK_BYTES && !at.is_multiple_of(3001);
    let mut rows = records(200, 900);
    rows.extend([(vec![9], payload(1, BLOCK_BYTES)), (vec![9, 9], vec![1; 2])]);
    check_every_flip(&rows, is_value);
}

#[test]
fn a_file_that_was_cut_or_swapped_is_noticed() {
    let rows = records(3, 50);
    let (files, _, summary) = segment_of(&rows);
    let whole = files.content(NUMBER).unwrap();
    for len in 0..whole.len() {
        files.put(NUMBER, whole[..len].to_vec());
        for expected in [len as u64, summary.file_bytes] {
            let error = Segment::open(&files, NUMBER, expected).err();
            assert!(
                matches!(error, Some(SegmentError::Damaged { .. })),
                "{len}: {error:?}"
            );
        }
    }
    files.put(NUMBER + 1, whole.clone());
    let error = Segment::open(&files, NUMBER + 1, summary.file_bytes)
        .err()
        .unwrap();
    assert!(
        error
            .to_string()
            .contains("belongs to segment 0000000000001234"),
        "{error}"
    );
    // It grew, or shrank, behind the back of whoever has it open.
    files.put(NUMBER, whole);
    let segment = Segment::open(&files, NUMBER, summary.file_bytes).unwrap();
    files.truncate(NUMBER, 60);
    let [block, rest] = &segment.verify(&mut |_| {})[..] else {
        panic!("all is damaged")
    };
    assert_eq!((block.offset, &*block.keys.start), (0, segment.first_key()));
    assert_eq!(block.detail, "the file ends within it");
    assert_eq!(block.offset + block.bytes, rest.offset);
}

#[test]
fn a_block_of_another_place_is_noticed() {
    // Two blocks of the same length, swapped whole: each matches itself.
    let rows = records(2, BLOCK_BYTES);
    let (files, segment, summary) = segment_of(&rows);
    let len = segment.index().blocks()[0].len as usize;
    let mut bytes = files.content(NUMBER).unwrap();
    let (left, right) = bytes.split_at_mut(len);
    left.swap_with_slice(&mut right[..len]);
    files.put(NUMBER, bytes);
    let segment = Segment::open(&files, NUMBER, summary.file_bytes).unwrap();
    assert_eq!(segment.verify(&mut |_| {}).len(), 2);
    assert!(rows.keys().all(|key| segment.get(key).is_err()));
}

/// What is found after a crash: nothing, or all of it.
fn check_found(files: &FaultFiles, rows: &Rows, must_be_there: bool, what: &str) {
    files.remove_unfinished().unwrap();
    assert_eq!(files.unfinished(), 0, "{what}");
    let list = files.list().unwrap();
    assert!(!(must_be_there && list.is_empty()), "{what}: it is gone");
    for stored in list {
        let segment = Segment::open(files, stored.number, stored.bytes)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = collected(segment.iter(Direction::Forward));
        assert_eq!(
            found,
            expected(rows, (&[], &[255]), Direction::Forward),
            "{what}"
        );
        assert_eq!(segment.verify(&mut |_| {}), [], "{what}");
    }
}

/// Breaks the `nth` operation; `false` if there are fewer.
fn break_at(rows: &Rows, fault: FileFault) -> bool {
    let files = FaultFiles::new();
    files.set_fault(fault);
    let result = write(&files, NUMBER, rows);
    let what = format!("{fault:?}");
    let struck = files.has_struck();
    assert_eq!(result.is_ok(), !struck, "{what}: {result:?}");
    for keep in 0..8 {
        let kept = |place, len| match keep {
            0 => 0,
            1 => len,
            seed => (place * 7 + seed * 13) % (len + 1),
        };
        let after = files.after_power_cut(kept);
        check_found(
            &after,
            rows,
            result.is_ok(),
            &format!("{what}, power cut {keep}"),
        );
    }
    files.clear_fault();
    if fault.effect != Effect::PowerCut {
        let expected = usize::from(result.is_ok());
        assert_eq!(files.list().unwrap().len(), expected, "{what}");
        assert_eq!(files.unfinished(), 0, "{what}");
        if result.is_err() {
            write(&files, NUMBER, rows).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        check_found(&files, rows, true, &what);
    }
    struck
}

#[test]
fn a_fault_at_any_operation_leaves_nothing_or_all() {
    let mut rows = records(100, 2_000);
    rows.insert(vec![7], payload(3, WRITE_BYTES));
    let effects = [
        Effect::Fail(ErrorKind::StorageFull),
        Effect::Tear,
        Effect::PowerCut,
    ];
    let mut struck = 0;
    for effect in effects {
        for operation in FileOperation::ALL {
            let fault = |nth| FileFault {
                operation,
                nth,
                effect,
            };
            struck += (1..).take_while(|nth| break_at(&rows, fault(*nth))).count();
        }
    }
    // Of each: create, the writes, sync, rename, sync of the directory.
    assert_eq!(struck, 3 * (1 + 2 + 1 + 1 + 1));
}

#[test]
fn a_full_disk_leaves_nothing_and_passes() {
    let rows = records(100, 2_000);
    let (_, _, summary) = segment_of(&rows);
    for capacity in (0..summary.file_bytes as usize).step_by(7_001) {
        let files = FaultFiles::new();
        files.set_capacity(capacity);
        let error = write(&files, NUMBER, &rows).unwrap_err();
        assert!(error.is_disk_full(), "{error}");
        assert_eq!((files.unfinished(), files.list().unwrap()), (0, vec![]));
        files.set_capacity(usize::MAX);
        write(&files, NUMBER, &rows).unwrap();
        check_found(&files, &rows, true, "full disk");
    }
}

#[test]
fn a_writer_refuses_what_cannot_be_read_back() {
    let files = FaultFiles::new();
    let start = || SegmentWriter::new(Arc::new(files.clone()), NUMBER).unwrap();
    let refused = |result: Result<(), SegmentError>| match result {
        Err(SegmentError::Refused { refused, .. }) => refused,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(start().finish().map(drop)), Refused::Empty);
    let mut writer = start();
    assert_eq!(
        refused(writer.push(b"", b"v")),
        Refused::KeyLength { len: 0 }
    );
    let long = vec![1; crate::limits::MAX_KEY_LEN + 1];
    assert_eq!(
        refused(writer.push(&long, b"v")),
        Refused::KeyLength { len: long.len() }
    );
    writer.push(b"b", b"v").unwrap();
    for key in ["a", "b"] {
        let expected = Refused::Order {
            key: key.into(),
            after: "b".into(),
        };
        assert_eq!(refused(writer.push(key.as_bytes(), b"v")), expected);
    }
    let huge = vec![0; MAX_ENTRY_VALUE / 64];
    let mut parts = vec![&huge[..]; 64];
    parts.push(&huge[..1 + MAX_ENTRY_VALUE % 64]);
    let expected = Refused::ValueLength {
        key: "c".into(),
        len: MAX_ENTRY_VALUE + 1,
    };
    assert_eq!(refused(writer.push_parts(b"c", &parts)), expected);
    // None of it was taken, and the writer is as good as before.
    assert_eq!(writer.finish().unwrap().entries, 1);

    files.remove(NUMBER).unwrap();
    let mut writer = start();
    files.set_capacity(0);
    let alone = vec![1; WRITE_BYTES];
    assert!(writer.push(b"a", &alone).unwrap_err().is_disk_full());
    files.set_capacity(usize::MAX);
    assert_eq!(refused(writer.push(b"b", &alone)), Refused::GivenUp);
    assert_eq!(refused(writer.finish().map(drop)), Refused::GivenUp);
    assert_eq!((files.unfinished(), files.list().unwrap()), (0, vec![]));
}

#[test]
fn a_full_index_is_refused_before_it_is_too_long_to_read() {
    let files = FaultFiles::new();
    let mut writer = SegmentWriter::new(Arc::new(files.clone()), NUMBER).unwrap();
    // Each key is long and has a block of its own.
    let value = vec![0; BLOCK_BYTES];
    let mut key = vec![0; crate::limits::MAX_KEY_LEN];
    let mut pushed = 0u32;
    let refused = loop {
        key[..4].copy_from_slice(&pushed.to_be_bytes());
        // What was written is of no interest, and much.
        files.forget_content();
        match writer.push(&key, &value) {
            Ok(()) => pushed += 1,
            Err(error) => break error,
        }
    };
    let SegmentError::Refused {
        refused: Refused::Full,
        ..
    } = refused
    else {
        panic!("{refused}")
    };
    let index = u64::from(pushed) * (format::INDEX_HEAD + key.len()) as u64;
    assert!(index > limits::MAX_INDEX_BYTES as u64 * 9 / 10, "{index}");
    let written = writer.block_bytes();
    let summary = writer.finish().unwrap();
    assert!(summary.file_bytes - written < limits::MAX_INDEX_BYTES as u64);
}

#[test]
fn reads_no_more_than_it_must() {
    let mut rows = records(40, BLOCK_BYTES - 32);
    rows.extend((0..20u8).map(|n| (vec![1, n], payload(1, 100))));
    let (files, segment, _) = segment_of(&rows);
    let mut before = files.count(FileOperation::Read);
    let mut check = |what: &str, reads: u64, work: &dyn Fn()| {
        work();
        let now = files.count(FileOperation::Read);
        assert_eq!(now - std::mem::replace(&mut before, now), reads, "{what}");
    };
    let (first, at) = (rows.keys().next().unwrap(), rows.keys().nth(7).unwrap());
    let behind = [&at[..], &[0]].concat();
    check("get", 1, &|| assert!(segment.get(at).unwrap().is_some()));
    check("get nothing", 0, &|| {
        assert_eq!(segment.get(&behind).unwrap(), None)
    });
    check("get beyond", 0, &|| {
        assert_eq!(segment.get(&[2]).unwrap(), None)
    });
    check("floor", 0, &|| {
        assert_eq!(
            segment.floor_key(first, &behind).unwrap().as_deref(),
            Some(&at[..])
        );
        assert_eq!(
            segment.floor_key(first, &[9]).unwrap().as_deref(),
            Some(&[1, 19][..])
        );
    });
    check("floor among small ones", 1, &|| {
        let found = segment.floor_key(first, &[1, 7, 7]).unwrap();
        assert_eq!(found.as_deref(), Some(&[1, 7][..]));
    });
    // A block is 56 bytes more than its value: 15 of them fit a read.
    let whole = || segment.iter(Direction::Forward);
    check("scan", 3, &|| assert_eq!(whole().count(), 60));
    check("first row", 1, &|| {
        assert!(whole().wanting(0).next().is_some())
    });
    check("row by row", 41, &|| {
        assert_eq!(whole().wanting(0).count(), 60)
    });
    check("range of three", 1, &|| {
        assert_eq!(
            segment
                .iter_range(first..rows.keys().nth(3).unwrap(), Direction::Forward)
                .count(),
            3
        )
    });
    check("nothing", 0, &|| {
        assert_eq!(
            segment.iter_range(&[3]..&[4], Direction::Forward).count(),
            0
        )
    });
}

#[test]
fn large_values_share_a_buffer_and_small_ones_do_not() {
    let values = |rows: &Rows| -> Vec<Bytes> {
        let (_, segment, _) = segment_of(rows);
        segment
            .iter(Direction::Forward)
            .map(|row| row.unwrap().value)
            .collect()
    };
    let large = values(&records(4, BLOCK_BYTES));
    let distance = large[1].as_ptr() as usize - large[0].as_ptr() as usize;
    assert_eq!(distance, large[0].len() + 16 + 8 + 16);
    assert!(large.iter().all(|value| !value.is_unique()));
    // More than a group of copied values, less than a sixteenth of what was read.
    let medium = values(&records(400, 5_000));
    assert!(medium.len() * 5_000 > READ_AHEAD);
    assert!(medium[..100].iter().all(Bytes::is_unique));
}

#[test]
fn one_bad_read_hides_one_block_only() {
    let rows = records(20, BLOCK_BYTES);
    let (files, segment, _) = segment_of(&rows);
    let fault = |effect| FileFault {
        operation: FileOperation::Read,
        nth: 2,
        effect,
    };
    files.set_fault(fault(Effect::Fail(ErrorKind::Other)));
    assert_eq!(collected(segment.iter(Direction::Forward)).len(), 20);
    assert!(files.has_struck());

    files.set_fault(fault(Effect::Fail(ErrorKind::Other)));
    let mut scan = segment.iter(Direction::Backward);
    assert!(scan.next().unwrap().is_ok());
    let error = scan.next().unwrap().unwrap_err();
    assert!(
        matches!(error, SegmentError::Io { action: "read", .. }),
        "{error}"
    );
    assert_eq!(scan.filter(Result::is_ok).count(), 18);

    files.set_fault(fault(Effect::PowerCut));
    let scan = segment.iter(Direction::Forward);
    assert_eq!(scan.filter(Result::is_err).count(), 5);
}

#[test]
fn verify_counts_every_byte() {
    let (_, segment, summary) = segment_of(&records(300, 900));
    let mut seen = 0;
    assert_eq!(segment.verify(&mut |bytes| seen += bytes), []);
    assert_eq!(seen, summary.file_bytes);
}

#[test]
fn works_on_a_real_directory() {
    let directory = tempfile::tempdir().unwrap();
    let files: Arc<dyn Files> = Arc::new(DirFiles::open(directory.path()).unwrap());
    let rows = records(50, 3_000);
    let mut writer = SegmentWriter::new(Arc::clone(&files), NUMBER).unwrap();
    for (key, value) in &rows {
        writer.push(key, value).unwrap();
    }
    writer.sync().unwrap();
    let summary = writer.finish().unwrap();
    let listed = StoredFile {
        number: NUMBER,
        bytes: summary.file_bytes,
    };
    assert_eq!(files.list().unwrap(), [listed]);
    let segment = Segment::open(&*files, NUMBER, summary.file_bytes).unwrap();
    files.remove(NUMBER).unwrap();
    let found = collected(segment.iter(Direction::Backward));
    assert_eq!(found, expected(&rows, (&[], &[255]), Direction::Backward));

    drop(SegmentWriter::new(Arc::clone(&files), NUMBER + 1).unwrap());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}
