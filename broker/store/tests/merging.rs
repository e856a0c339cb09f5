//! Extents that are merged, and segments that cannot be read while others are rewritten.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use machine::{Machine, commit, tiny, wait_until_or};
use millstream_store::key::record::{self, RecordKey};
use millstream_store::segment::fault::FaultFiles;
use millstream_store::segment::{Files, NewFile, ReadAt, StoredFile};
use millstream_store::{
    Direction, Key, RedbConfig, RedbStore, ScanLimit, Space, Store, WriteBatch,
};
use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition};

const EXTENTS: TableDefinition<'static, &'static [u8], &'static [u8]> =
    TableDefinition::new("extents");

type Rows = BTreeMap<Key, Bytes>;

fn key(partition: u32, base_offset: u64) -> Key {
    RecordKey {
        topic: 1,
        partition,
        base_offset,
    }
    .encode()
}

fn value(partition: u32, base_offset: u64, len: usize) -> Bytes {
    let seed = u64::from(partition) * 31 + base_offset * 7;
    (0..len).map(|at| (at as u64 + seed) as u8).collect()
}

fn put(store: &RedbStore, rows: &mut Rows, records: impl IntoIterator<Item = (u32, u64, usize)>) {
    let mut batch = WriteBatch::new();
    for (partition, base_offset, len) in records {
        let (key, value) = (
            key(partition, base_offset),
            value(partition, base_offset, len),
        );
        batch.put(Space::Records, key.clone(), value.clone());
        rows.insert(key, value);
    }
    commit(store, batch).unwrap();
}

fn check(store: &RedbStore, rows: &Rows) {
    let snapshot = store.snapshot().unwrap();
    let (mut start, mut left) = (Key::from([0]), rows.iter());
    loop {
        let limit = ScanLimit::bytes(100_000);
        let end = [0xFF; 20];
        let page = snapshot
            .scan(Space::Records, &start..&end, Direction::Forward, limit)
            .unwrap();
        if let Some(last) = page.rows.last() {
            start = last.key.clone().push_bytes(&[0]);
        }
        for row in page.rows {
            assert!(left.next() == Some((&row.key, &row.value)), "{:?}", row.key);
        }
        if !page.more {
            assert_eq!(left.next(), None);
            return;
        }
    }
}

/// How many extents a closed store has.
fn extents(machine: &Machine) -> u64 {
    let copy = machine.copy();
    let database = Database::builder()
        .create_with_backend(copy.disk.backend())
        .unwrap();
    let table = database.begin_read().unwrap().open_table(EXTENTS).unwrap();
    table.len().unwrap()
}

/// Many partitions with little data each, sealed again and again: extents stay few, what is
/// written for that is bounded, and everything is there.
#[test]
fn extents_stay_few_however_often_little_is_sealed() {
    const PARTITIONS: u32 = 60;
    const SEALINGS: u64 = 250;
    let config = RedbConfig {
        hot_bytes: 1 << 20,
        segment_bytes: 64 << 10,
        ..tiny()
    };
    let (machine, mut rows) = (Machine::new(), Rows::new());
    let store = machine.open(&config);
    for offset in 0..SEALINGS {
        // Some partitions have something nearly always, some rarely.
        let partitions = (0..PARTITIONS).filter(|at| offset % (1 + u64::from(at % 4)) == 0);
        let len = |at: u32| 80 + (offset * 37 + u64::from(at) * 11) as usize % 80;
        put(
            &store,
            &mut rows,
            partitions.map(|at| (at, offset, len(at))),
        );
        store.seal_now();
    }
    let sealed = rows.len() as u64;
    let figures = store.stats().storage;
    let (appended, written) = (figures.appended_bytes, figures.segment_written_bytes);
    check(&store, &rows);
    drop(store);
    let left = extents(&machine);
    // One for each record, if none had been merged. They are looked through when there are twice
    // as many as the last time left, and half a dozen for each partition make no groups.
    assert!(
        left <= 16 * u64::from(PARTITIONS),
        "{left} extents of {sealed}"
    );
    // From less than 200 bytes to the 16 KiB that are not small here it is four times at most, the
    // first time they were sealed, and what segments and emptying those cost besides.
    assert!(
        written < 6 * appended,
        "{written} bytes written for {appended}"
    );
    let store = machine.open(&config);
    check(&store, &rows);
    // What was merged is cut like anything else.
    for partition in 0..PARTITIONS {
        let cut = record::range(1, partition, 0..SEALINGS / 2 + u64::from(partition));
        rows.retain(|key, _| !cut.contains(key));
        let mut batch = WriteBatch::new();
        batch.delete_range(Space::Records, cut);
        commit(&store, batch).unwrap();
    }
    check(&store, &rows);
    store.seal_now();
    drop(store);
    check(&machine.open(&config), &rows);
}

/// Retention cuts a record off each of many small extents, again and again. What is left of them is
/// wanted, and must not be rewritten for each cut: that would go on as long as anything is appended.
#[test]
fn what_is_cut_little_by_little_is_not_rewritten_each_time() {
    const PARTITIONS: u32 = 125;
    const ROUNDS: u64 = 120;
    const KEPT: u64 = 20;
    const LEN: usize = 800;
    let config = RedbConfig {
        hot_bytes: 1 << 20,
        segment_bytes: 128 << 10,
        ..tiny()
    };
    let (machine, mut rows) = (Machine::new(), Rows::new());
    let store = machine.open(&config);
    let figures = || store.stats().storage;
    for round in 0..ROUNDS {
        put(
            &store,
            &mut rows,
            (0..PARTITIONS).map(|at| (at, round, LEN)),
        );
        let mut batch = WriteBatch::new();
        for partition in 0..PARTITIONS {
            let cut = record::range(1, partition, 0..(round + 1).saturating_sub(KEPT));
            batch.delete_range(Space::Records, cut);
        }
        commit(&store, batch).unwrap();
        // All is rewritten that is ever going to be: how fast the sealer is does not matter.
        let settled = || {
            let (garbage, live) = (figures().garbage_bytes, figures().live_bytes);
            garbage < config.segment_bytes || garbage < (garbage + live) / 5
        };
        wait_until_or(settled, || format!("{:?}", figures()));
    }
    rows.retain(|key, _| key[8..] >= (ROUNDS - KEPT).to_be_bytes()[..]);
    check(&store, &rows);
    let (appended, written) = (figures().appended_bytes, figures().segment_written_bytes);
    assert!(
        written < 6 * appended,
        "{written} bytes written for {appended}"
    );
    // Nor does what is not wanted stay: a fifth, what is hot, and what may be garbage anyway.
    let wanted = u64::from(PARTITIONS) * KEPT * LEN as u64;
    let most = 2 * wanted + 2 * config.segment_bytes;
    assert!(machine.segment_bytes() < most, "{:?}", figures());
    drop(store);
    check(&machine.open(&config), &rows);
}

/// Files of which one cannot be read for as long as a test wants.
#[derive(Clone)]
struct BadFiles {
    files: FaultFiles,
    bad: Arc<AtomicU64>,
}

impl BadFiles {
    fn check(&self, number: u64) -> io::Result<()> {
        if self.bad.load(Ordering::SeqCst) == number {
            return Err(io::Error::other("a bad sector"));
        }
        Ok(())
    }
}

struct BadRead(BadFiles, u64, Arc<dyn ReadAt>);

impl ReadAt for BadRead {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.check(self.1)?;
        self.2.read_exact_at(bytes, offset)
    }

    fn byte_len(&self) -> u64 {
        self.2.byte_len()
    }
}

impl Files for BadFiles {
    fn create(&self, number: u64) -> io::Result<Box<dyn NewFile>> {
        self.files.create(number)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.files.sync_directory()
    }

    fn open(&self, number: u64) -> io::Result<Arc<dyn ReadAt>> {
        let opened = self.files.open(number)?;
        Ok(Arc::new(BadRead(self.clone(), number, opened)))
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        self.files.remove(number)
    }

    fn set_aside(&self, number: u64) -> io::Result<PathBuf> {
        self.files.set_aside(number)
    }

    fn list(&self) -> io::Result<Vec<StoredFile>> {
        self.files.list()
    }

    fn remove_unfinished(&self) -> io::Result<usize> {
        self.files.remove_unfinished()
    }

    fn path(&self, number: u64) -> PathBuf {
        self.files.path(number)
    }
}

/// A disk that cannot read one segment: the others are rewritten, whoever asks is told which it is,
/// and once it can be read it is rewritten too.
#[test]
fn a_segment_that_cannot_be_read_holds_up_no_other() {
    const SEGMENTS: u64 = 10;
    const LEN: usize = 8 << 10;
    let machine = Machine::new();
    let files = BadFiles {
        files: machine.files.clone(),
        bad: Arc::new(AtomicU64::new(u64::MAX)),
    };
    let config = RedbConfig {
        hot_bytes: 1 << 30,
        ..tiny()
    };
    let opened = Arc::new(files.clone());
    let store = RedbStore::open_with(machine.disk.backend(), opened, "disk.redb", &config).unwrap();
    let mut rows = Rows::new();
    for segment in 0..SEGMENTS {
        for offset in 4 * segment..4 * segment + 4 {
            put(&store, &mut rows, [(0, offset, LEN)]);
        }
        store.seal_now();
    }
    let listed = files.list().unwrap();
    assert_eq!(listed.len() as u64, SEGMENTS);
    let bad = listed[0].number;
    files.bad.store(bad, Ordering::SeqCst);
    // Three of four in each: all of them want rewriting, and the bad one comes first.
    let mut batch = WriteBatch::new();
    for segment in 0..SEGMENTS {
        let cut = record::range(1, 0, 4 * segment..4 * segment + 3);
        rows.retain(|key, _| !cut.contains(key));
        batch.delete_range(Space::Records, cut);
    }
    commit(&store, batch).unwrap();
    let garbage = || store.stats().storage.garbage_bytes;
    let told = || format!("{:?}, {:?}", store.stats().storage, store.trouble());
    let most = config.segment_bytes + 3 * (LEN as u64 + 100);
    wait_until_or(|| garbage() < most && store.trouble().is_some(), told);
    let trouble = store.trouble().unwrap();
    assert!(trouble.contains("a bad sector"), "{trouble}");
    assert!(trouble.contains(&format!("segment {bad} ")), "{trouble}");
    assert!(files.list().unwrap().iter().any(|file| file.number == bad));

    files.bad.store(u64::MAX, Ordering::SeqCst);
    wait_until_or(
        || garbage() < config.segment_bytes && store.trouble().is_none(),
        told,
    );
    check(&store, &rows);
}
