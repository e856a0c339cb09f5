//! Damaged rows that say where sealed records lie: `check --quarantine` makes them anew.

use std::path::Path;

use millstream_broker::check::offline;
use millstream_proto::Codec;
use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
use millstream_store::key::record::RecordKey;
use millstream_store::{
    Direction, Durability, RedbConfig, RedbStore, ScanLimit, Space, Store, WriteBatch,
};
use redb::{Database, ReadableTable as _, TableDefinition};

/// Which segment holds which records, and what each segment holds.
const EXTENTS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("extents");
const SEGMENTS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("segments");
/// The file of the store in a data directory.
const SHARD: &str = "shard-0.redb";
/// Batches in each of two partitions.
const BATCHES: u64 = 1_000;

fn config() -> RedbConfig {
    RedbConfig {
        hot_bytes: 256 << 10,
        segment_bytes: 64 << 10,
        ..RedbConfig::default()
    }
}

fn keys(store: &RedbStore) -> Vec<Vec<u8>> {
    let snapshot = store.snapshot().unwrap();
    let (range, limit) = (&[0][..]..&[u8::MAX; 16][..], ScanLimit::rows(usize::MAX));
    let page = snapshot.scan(Space::Records, range, Direction::Forward, limit);
    let rows = page.unwrap().rows.into_iter();
    rows.map(|row| row.key.to_vec()).collect()
}

/// A data directory with segments; returns the keys of what it holds.
async fn fill(dir: &Path) -> Vec<Vec<u8>> {
    let store = RedbStore::open(dir.join(SHARD), &config()).unwrap();
    let value = [7; 500];
    for base_offset in 0..BATCHES {
        let mut batch = WriteBatch::with_durability(Durability::Interval);
        for partition in 0..2 {
            let mut builder = BatchBuilder::new(1 << 16);
            let record = NewRecord {
                value: Some(&value),
                ..NewRecord::default()
            };
            builder.push(&record).unwrap();
            let made = builder.build(Codec::None, Stamp::default()).unwrap();
            let key = RecordKey {
                topic: 7,
                partition,
                base_offset,
            };
            batch.put(Space::Records, key.encode(), made.bytes().clone());
        }
        store.commit(batch).await.unwrap();
    }
    // It seals what there is.
    drop(store.freeze().unwrap());
    let keys = keys(&store);
    assert_eq!(keys.len() as u64, 2 * BATCHES);
    assert!(store.stats().storage.segments > 2);
    store.close();
    keys
}

/// Flips a bit in the first extent and in the last segment's row.
fn damage(dir: &Path) {
    let database = Database::open(dir.join(SHARD)).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut rows = write.open_table(EXTENTS).unwrap();
        let (key, mut row) = {
            let (key, row) = rows.first().unwrap().unwrap();
            (key.value().to_vec(), row.value().to_vec())
        };
        row[1] ^= 1;
        rows.insert(&key[..], &row[..]).unwrap();
        let mut rows = write.open_table(SEGMENTS).unwrap();
        let (number, mut row) = {
            let (number, row) = rows.last().unwrap().unwrap();
            (number.value(), row.value().to_vec())
        };
        row[1] ^= 1;
        rows.insert(number, &row[..]).unwrap();
    }
    write.commit().unwrap();
}

#[tokio::test]
async fn damaged_rows_are_made_anew_and_nothing_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let stored = fill(dir.path()).await;
    let told = |quarantine| offline::check(dir.path(), quarantine, |_| {}).unwrap();
    // The topic is in no catalogue here, which a check tells and nothing can be done about.
    let known = told(false).check.findings.len();
    damage(dir.path());
    let report = told(false);
    assert!(report.check.findings.len() > known && report.quarantined.is_none());

    let report = told(true);
    assert!(report.check.findings.len() > known, "what was found before");
    let done = report.quarantined.unwrap();
    assert_eq!((done.mended_rows, done.lost), (2, Vec::new()));
    assert_eq!((done.segments, done.files), (Vec::new(), Vec::new()));
    let report = told(true);
    assert_eq!(report.check.findings.len(), known);
    assert!(report.quarantined.is_none(), "there is nothing left to do");
    let store = RedbStore::open(dir.path().join(SHARD), &config()).unwrap();
    assert_eq!(keys(&store), stored);
    store.close();
}
