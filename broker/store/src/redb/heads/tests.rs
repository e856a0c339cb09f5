//! What is hot and what is sealed, told without reading it, and removed in steps.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use crate::batch::{Key, WriteBatch};
use crate::fault::FaultDisk;
use crate::key::record::{self, RecordKey};
use crate::limits::{EXTENT_REMOVAL_BYTES, RECORD_PREFIX};
use crate::redb::{RedbConfig, RedbStore};
use crate::segment::fault::{FaultFiles, FileOperation};
use crate::space::Space;
use crate::store::{Head, HeadPage, ScanLimit, Store};

const LARGE: usize = 100_000;
const SMALL: usize = 500;

fn store(files: &FaultFiles) -> RedbStore {
    let config = RedbConfig {
        cache_bytes: 4 << 20,
        ..RedbConfig::default()
    };
    let files = Arc::new(files.clone());
    RedbStore::open_with(FaultDisk::new().backend(), files, "disk", &config).unwrap()
}

fn key(partition: u32, base_offset: u64) -> Key {
    RecordKey {
        topic: 1,
        partition,
        base_offset,
    }
    .encode()
}

fn commit(store: &RedbStore, fill: impl FnOnce(&mut WriteBatch)) {
    let mut batch = WriteBatch::new();
    fill(&mut batch);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(store.commit(batch)).unwrap();
}

fn put(store: &RedbStore, partition: u32, offsets: std::ops::Range<u64>, len: usize) {
    commit(store, |batch| {
        for offset in offsets {
            batch.put(
                Space::Records,
                key(partition, offset),
                vec![offset as u8; len],
            );
        }
    });
}

fn heads(store: &RedbStore, limit: ScanLimit, head: usize) -> HeadPage {
    let all = record::range_topic(1);
    let snapshot = store.snapshot().unwrap();
    let range = &all.start[..]..&all.end[..];
    snapshot.heads(Space::Records, range, limit, head).unwrap()
}

const ALL: ScanLimit = ScanLimit::rows(usize::MAX);

fn totals(heads: &[Head]) -> (usize, u64) {
    let rows = heads.iter().map(|head| head.rows).sum();
    (rows, heads.iter().map(|head| head.bytes).sum())
}

#[test]
fn sizes_are_told_without_reading_what_is_sealed() {
    let files = FaultFiles::new();
    let store = store(&files);
    put(&store, 0, 0..20, LARGE);
    put(&store, 1, 0..400, SMALL);
    store.seal_now();
    put(&store, 0, 20..25, LARGE);
    // Its index is read when it is opened.
    heads(&store, ALL, 0);
    let before = files.count(FileOperation::Read);
    let page = heads(&store, ALL, 0);
    assert_eq!(files.count(FileOperation::Read), before);
    let bytes = 25 * (16 + LARGE) + 400 * (16 + SMALL);
    assert_eq!(totals(&page.heads), (425, bytes as u64));
    assert!(!page.more && page.heads.len() < 50, "{}", page.heads.len());

    // Of the large ones two ends are read, and the blocks of the small ones at once.
    let page = heads(&store, ALL, RECORD_PREFIX);
    let reads = files.count(FileOperation::Read) - before;
    assert!(reads <= 2 * 20 + 2, "{reads} reads");
    assert_eq!(totals(&page.heads), (425, bytes as u64));
    let alike = |head: &Head| {
        let offset = RecordKey::decode(&head.key).unwrap().base_offset;
        head.head == vec![offset as u8; RECORD_PREFIX]
    };
    assert!(page.heads.iter().all(alike));
}

#[test]
fn what_is_written_anew_between_sealed_records_is_told_of_in_its_place() {
    let store = store(&FaultFiles::new());
    put(&store, 0, 0..10, SMALL);
    store.seal_now();
    commit(&store, |batch| {
        batch.put(Space::Records, key(0, 4), vec![9; 70]);
        batch.delete(Space::Records, key(0, 6));
    });
    let expected: Vec<(u64, u64)> = (0..10)
        .filter(|offset| *offset != 6)
        .map(|offset| (offset, if offset == 4 { 86 } else { 516 }))
        .collect();
    for head in [0, 1, 200] {
        let page = heads(&store, ALL, head);
        let rows = page.heads.iter().map(|head| {
            assert_eq!(head.rows, 1);
            let key = RecordKey::decode(&head.key).unwrap();
            (key.base_offset, head.bytes)
        });
        assert_eq!(rows.collect::<Vec<_>>(), expected, "{head}");
    }
}

#[test]
fn a_damaged_header_is_damage_of_its_segment() {
    let files = FaultFiles::new();
    let store = store(&files);
    put(&store, 0, 0..3, LARGE);
    store.seal_now();
    let number = crate::segment::Files::list(&files).unwrap()[0].number;
    // The beginning of the second value: each block is 40 bytes more than its value and trailer.
    files.flip(number, (LARGE + 44) + 40 + 5, 1);
    let page = heads(&store, ALL, RECORD_PREFIX);
    assert_eq!((page.heads.len(), page.more), (1, true));
    let snapshot = store.snapshot().unwrap();
    let range = &key(0, 1)[..]..&key(0, 3)[..];
    let error = snapshot.heads(Space::Records, range, ALL, RECORD_PREFIX);
    assert!(error.unwrap_err().to_string().contains(".seg"));
    // By size alone it can be removed, and the shard goes on.
    assert_eq!(totals(&heads(&store, ALL, 0).heads).0, 3);
    assert!(store.health().borrow().cause().is_none());
}

/// What lies behind it in the same block must not be passed over with the old one.
#[test]
fn what_is_written_anew_where_an_extent_begins_is_told_of_once() {
    let store = store(&FaultFiles::new());
    put(&store, 0, 0..10, SMALL);
    store.seal_now();
    put(&store, 0, 0..1, 70);
    for head in [0, 1] {
        for from in [key(0, 0), Key::from([0])] {
            let snapshot = store.snapshot().unwrap();
            let range = &from[..]..&key(1, 0)[..];
            let page = snapshot.heads(Space::Records, range, ALL, head).unwrap();
            let bytes = (16 + 70) + 9 * (16 + SMALL) as u64;
            assert_eq!(totals(&page.heads), (10, bytes), "{head} from {from:?}");
            assert!(!page.more);
        }
    }
}

/// Removes the topic in steps of four large records, and says how many there were.
fn steps(store: &RedbStore) -> usize {
    let all = record::range_topic(1);
    for step in 0.. {
        let limit = ScanLimit {
            rows: 1_000,
            bytes: 4 * (LARGE + 20),
        };
        let snapshot = store.snapshot().unwrap();
        let range = &all.start[..]..&all.end[..];
        let end = snapshot.removable(Space::Records, range, limit).unwrap();
        let Some(end) = end else { return step };
        assert!(end > all.start && end <= all.end);
        commit(store, |batch| {
            batch.delete_range(Space::Records, all.start.clone()..end);
        });
    }
    unreachable!("it is endless")
}

#[test]
fn what_is_sealed_is_removed_in_few_steps_and_not_read() {
    let files = FaultFiles::new();
    let hot = store(&files);
    put(&hot, 0, 0..40, LARGE);
    assert_eq!(steps(&hot), 10);

    for partition in 0..30 {
        put(&hot, partition, 100..104, LARGE);
    }
    hot.seal_now();
    let before = files.count(FileOperation::Read);
    let extents = 4 * (LARGE + 20) / EXTENT_REMOVAL_BYTES;
    assert_eq!(steps(&hot), 30usize.div_ceil(extents));
    assert_eq!(files.count(FileOperation::Read), before);
    assert!(heads(&hot, ALL, 0).heads.is_empty());
}
