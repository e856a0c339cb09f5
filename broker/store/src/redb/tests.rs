//! What only the file-backed engine does: files, versions, locks, and the limits of its pages.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use ::redb::{Database, ReadableDatabase, ReadableTableMetadata};
use bytes::Bytes;

use super::*;
use crate::batch::Durability;
use crate::conformance;
use crate::fault::{FaultDisk, Operation};
use crate::limits::{FLUSH_INTERVAL, MAX_CHUNK_LEN, PACKED_PAGE, TRAILER_LEN};

fn config() -> RedbConfig {
    RedbConfig {
        cache_bytes: 4 << 20,
        ..RedbConfig::default()
    }
}

fn on(disk: &FaultDisk) -> RedbStore {
    RedbStore::open_with_backend(disk.backend(), "disk", &config()).unwrap()
}

fn commit(store: &RedbStore, durability: Durability, key: &str, value: impl Into<Bytes>) {
    let mut batch = WriteBatch::with_durability(durability);
    batch.put(Space::Records, key, value);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(store.commit(batch)).unwrap();
}

fn value(store: &RedbStore, key: &str) -> Option<Bytes> {
    store
        .snapshot()
        .unwrap()
        .get(Space::Records, key.as_bytes())
        .unwrap()
}

#[test]
fn conforms() {
    conformance::suite(&|| Arc::new(on(&FaultDisk::new())));
}

#[test]
fn conforms_with_every_kind_of_recovery() {
    for recovery in [Recovery::TwoPhase, Recovery::Quick] {
        let config = RedbConfig {
            recovery,
            ..config()
        };
        conformance::suite(&|| {
            let backend = FaultDisk::new().backend();
            Arc::new(RedbStore::open_with_backend(backend, "disk", &config).unwrap())
        });
    }
}

/// So little room that everything is sealed while the suite runs.
#[test]
fn conforms_while_sealing() {
    let config = RedbConfig {
        hot_bytes: 16 << 10,
        segment_bytes: 4 << 10,
        ..config()
    };
    conformance::suite(&|| {
        let backend = FaultDisk::new().backend();
        Arc::new(RedbStore::open_with_backend(backend, "disk", &config).unwrap())
    });
}

#[test]
fn a_file_outlives_its_store() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shard.redb");
    let store = RedbStore::open(&path, &config()).unwrap();
    commit(&store, Durability::Sync, "k", "kept");
    assert!(store.stats().file_bytes > 0);
    store.close();
    let store = RedbStore::open(&path, &config()).unwrap();
    assert_eq!(value(&store, "k").unwrap(), "kept");
    drop(store);
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(
        left.len(),
        2,
        "the file and its segments, no more: {left:?}"
    );
}

/// A store of a few segments, closed.
fn with_segments(store: &RedbStore) {
    for key in ["a", "b"] {
        commit(store, Durability::Sync, key, vec![7; 1000]);
        store.seal_now();
    }
    store.close();
}

#[test]
fn a_lost_file_is_not_made_anew_beside_its_segments() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shard.redb");
    let aside = directory.path().join("aside");
    with_segments(&RedbStore::open(&path, &config()).unwrap());
    std::fs::rename(&path, &aside).unwrap();
    for _ in 0..2 {
        let refused = RedbStore::open(&path, &config()).err().unwrap();
        let text = refused.to_string();
        assert!(
            matches!(&refused, OpenError::Missing { file, segments: 2, .. } if *file == path),
            "{text}"
        );
        for part in ["shard.segments", "put the file back", "backup", "move"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!path.exists());
    }
    std::fs::rename(&aside, &path).unwrap();
    let store = RedbStore::open(&path, &config()).unwrap();
    assert_eq!(value(&store, "a").unwrap(), vec![7; 1000]);
    drop(store);

    // As the error says.
    std::fs::remove_file(&path).unwrap();
    std::fs::rename(segment_directory(&path), &aside).unwrap();
    let store = RedbStore::open(&path, &config()).unwrap();
    assert_eq!(value(&store, "a"), None);
    drop(store);
    // What nothing was sealed of can be begun anew.
    std::fs::remove_file(&path).unwrap();
    RedbStore::open(&path, &config()).unwrap();
}

#[test]
fn a_lost_backend_is_not_made_anew_beside_its_segments() {
    let files = Arc::new(FaultFiles::new());
    let open = |disk: &FaultDisk| {
        let files = Arc::<FaultFiles>::clone(&files);
        RedbStore::open_with(disk.backend(), files, "disk", &config())
    };
    let disk = FaultDisk::new();
    with_segments(&open(&disk).unwrap());
    let refused = open(&FaultDisk::new()).err().unwrap();
    assert!(
        matches!(refused, OpenError::Missing { segments: 2, .. }),
        "{refused}"
    );
    let store = open(&disk).unwrap();
    assert_eq!(value(&store, "b").unwrap(), vec![7; 1000]);
}

#[test]
fn a_new_file_is_written_ahead() {
    use std::os::unix::fs::MetadataExt;

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shard.redb");
    let store = RedbStore::open(&path, &config()).unwrap();
    commit(&store, Durability::Sync, "k", "kept");
    let found = std::fs::metadata(&path).unwrap();
    assert!(
        found.len() >= crate::limits::ALLOTTED_BYTES,
        "{}",
        found.len()
    );
    // Written, not a hole: that is what it is for.
    assert!(found.blocks() * 512 >= crate::limits::ALLOTTED_BYTES / 2);
}

#[test]
fn a_scan_that_says_more_has_more_though_what_was_sealed_is_written_anew() {
    let store = on(&FaultDisk::new());
    for key in ["a", "b"] {
        commit(&store, Durability::Sync, key, vec![7; 1000]);
        store.seal_now();
    }
    // The sealed one does not fit behind "a", this one would.
    commit(&store, Durability::Sync, "b", "small");
    let snapshot = store.snapshot().unwrap();
    let (mut start, mut found, mut more) = (crate::batch::Key::from(*b"a"), Vec::new(), true);
    while more {
        let limit = crate::store::ScanLimit::bytes(1500);
        let page = snapshot
            .scan(
                Space::Records,
                &start..b"c",
                crate::store::Direction::Forward,
                limit,
            )
            .unwrap();
        assert!(!page.rows.is_empty(), "{found:?} and no more");
        more = page.more;
        found.extend(page.rows.into_iter().map(|row| row.key));
        start = extent::successor(found.last().unwrap());
    }
    assert_eq!(found, ["a", "b"].map(|key| key.into()));
}

#[test]
fn a_file_has_one_user() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shard.redb");
    let first = RedbStore::open(&path, &config()).unwrap();
    let second = RedbStore::open(&path, &config()).err().unwrap();
    assert!(
        matches!(&second, OpenError::InUse { file } if *file == path),
        "{second}"
    );
    drop(first);
    RedbStore::open(&path, &config()).unwrap();
}

#[test]
fn an_unknown_format_is_refused_by_number() {
    let disk = FaultDisk::new();
    drop(on(&disk));
    let database = Database::builder()
        .create_with_backend(disk.backend())
        .unwrap();
    let transaction = database.begin_write().unwrap();
    let row = open::format_row(open::FORMAT_VERSION + 7);
    transaction
        .open_table(open::FORMAT)
        .unwrap()
        .insert(open::FORMAT_KEY, &row[..])
        .unwrap();
    transaction.commit().unwrap();
    drop(database);
    let refused = RedbStore::open_with_backend(disk.backend(), "disk", &config())
        .err()
        .unwrap();
    assert!(
        matches!(
            refused,
            OpenError::Format {
                found: 9,
                expected: 2,
                ..
            }
        ),
        "{refused}"
    );
    assert!(
        refused
            .to_string()
            .contains("run the version that wrote it")
    );
}

#[test]
fn what_is_not_a_store_is_refused() {
    let foreign = FaultDisk::new();
    drop(
        Database::builder()
            .create_with_backend(foreign.backend())
            .unwrap(),
    );
    let text = FaultDisk::from_image(b"not a database".repeat(1000));
    for disk in [foreign, text] {
        let refused = RedbStore::open_with_backend(disk.backend(), "disk", &config()).err();
        assert!(
            matches!(refused, Some(OpenError::NotAStore { .. })),
            "{refused:?}"
        );
    }
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("shard.redb");
    std::fs::write(&empty, b"").unwrap();
    let refused = RedbStore::open(&empty, &config()).err();
    assert!(
        matches!(refused, Some(OpenError::NotAStore { .. })),
        "{refused:?}"
    );
    let missing = RedbStore::open(directory.path().join("no/such/shard.redb"), &config()).err();
    assert!(matches!(missing, Some(OpenError::Io { .. })), "{missing:?}");
}

#[test]
fn a_group_of_interval_batches_does_not_sync_by_itself() {
    let disk = FaultDisk::new();
    let store = on(&disk);
    let before = disk.count(Operation::Sync);
    commit(&store, Durability::Interval, "a", "in memory");
    assert_eq!(value(&store, "a").unwrap(), "in memory");
    // The flush may have come already on a slow machine, but not more than one.
    assert!(disk.count(Operation::Sync) <= before + 1);
    commit(&store, Durability::Sync, "b", "on disk");
    let crashed = on(&disk.after_power_cut(|_, _| 0));
    assert_eq!(
        value(&crashed, "a").unwrap(),
        "in memory",
        "a later sync carries it"
    );
}

#[test]
fn an_interval_batch_is_flushed_though_nothing_follows() {
    let disk = FaultDisk::new();
    let store = on(&disk);
    let before = disk.count(Operation::Sync);
    commit(&store, Durability::Interval, "a", "soon");
    let deadline = std::time::Instant::now() + 100 * FLUSH_INTERVAL;
    while disk.count(Operation::Sync) == before {
        assert!(std::time::Instant::now() < deadline, "never flushed");
        thread::yield_now();
    }
    drop(store);
    let disk = FaultDisk::new();
    let store = on(&disk);
    commit(&store, Durability::Interval, "a", "at close");
    store.close();
    assert_eq!(
        value(&on(&disk.after_power_cut(|_, _| 0)), "a").unwrap(),
        "at close"
    );
}

/// Bytes that a commit of one value of `len` bytes writes, once the file has its size.
fn written_per_value(len: usize) -> usize {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shard.redb");
    let store = RedbStore::open(&path, &config()).unwrap();
    let count = 40u64;
    for offset in 0..count {
        let mut batch = WriteBatch::new();
        let key = crate::key::record::RecordKey {
            topic: 1,
            partition: 1,
            base_offset: offset,
        };
        batch.put(Space::Records, key.encode(), vec![7; len]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(store.commit(batch)).unwrap();
    }
    let snapshot = store.snapshot().unwrap();
    let all = crate::key::record::range_all(1, 1);
    let limit = crate::store::ScanLimit::rows(1000);
    let direction = crate::store::Direction::Forward;
    let page = snapshot
        .scan(Space::Records, &all.start..&all.end, direction, limit)
        .unwrap();
    assert_eq!(page.rows.len() as u64, count);
    drop(snapshot);
    drop(store);
    let database = Database::builder().open(&path).unwrap();
    let packs = database.begin_read().unwrap().open_table(PACKS).unwrap();
    let stats = packs.stats().unwrap();
    usize::try_from(stats.stored_bytes() + stats.metadata_bytes() + stats.fragmented_bytes())
        .unwrap()
        / usize::try_from(count).unwrap()
}

#[test]
fn a_full_chunk_takes_one_page_and_one_byte_more_little_more() {
    let full = MAX_CHUNK_LEN - TRAILER_LEN;
    for len in [full, full + 1] {
        let stored = written_per_value(len);
        assert!(
            (PACKED_PAGE..PACKED_PAGE + PACKED_PAGE / 8).contains(&stored),
            "{stored} bytes for each value of {len}"
        );
    }
}
