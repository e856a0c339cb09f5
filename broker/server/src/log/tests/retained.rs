//! Retention of what is sealed: by size nothing of it is read, by age the headers are.

use std::sync::Arc;

use millstream_proto::batch::{BatchBuilder, HEADER_LEN, NewRecord, Stamp};
use millstream_proto::topic::TopicConfig;
use millstream_proto::{Batch, Codec, Offset, PartitionId};
use millstream_store::fault::FaultDisk;
use millstream_store::key::record::{self, RecordKey};
use millstream_store::segment::fault::{FaultFiles, FileOperation};
use millstream_store::segment::{Files, Segment};
use millstream_store::{Direction, RedbConfig, RedbStore, ScanLimit, Space, Store, WriteBatch};

use super::{NEW_MS, OLD_MS, partition};
use crate::log::{Append, TailBudget, Topic, append, retain};

/// A batch of two records of these timestamps, together `len` bytes of values.
fn batch(timestamps: [i64; 2], len: usize) -> Batch {
    let mut builder = BatchBuilder::new(1 << 20);
    let value = vec![7; len / 2];
    for timestamp in timestamps {
        let record = NewRecord {
            value: Some(&value),
            timestamp,
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    builder.build(Codec::None, Stamp::default()).unwrap()
}

/// Nothing is sealed unless it is asked for.
fn store(files: &FaultFiles) -> Arc<RedbStore> {
    let (backend, files) = (FaultDisk::new().backend(), Arc::new(files.clone()));
    Arc::new(RedbStore::open_with(backend, files, "disk", &RedbConfig::default()).unwrap())
}

fn topic(store: &Arc<RedbStore>, config: TopicConfig) -> Arc<Topic> {
    let store = Arc::clone(store) as Arc<dyn Store>;
    let name = "acme/t".parse().unwrap();
    Topic::open(7, name, config, store, TailBudget::new(0)).unwrap()
}

async fn put(topic: &Arc<Topic>, batch: Batch) {
    let appends = vec![Append::to(topic, PartitionId(0), batch).unwrap()];
    append(topic.store(), appends, WriteBatch::new())
        .await
        .unwrap();
}

/// Damages the middle of every block, so that no value can be read.
fn spoil(files: &FaultFiles) {
    for file in files.list().unwrap() {
        let segment = Segment::open(files, file.number, file.bytes).unwrap();
        let mut at = 0;
        segment.visit(&mut |visit| {
            if let millstream_store::segment::Visit::Read(bytes) = visit {
                if at + bytes < file.bytes - HEADER_LEN as u64 {
                    files.flip(file.number, (at + bytes / 2) as usize, 1);
                }
                at += bytes;
            }
            at + 40_000 < file.bytes
        });
    }
}

fn left(topic: &Topic) -> Vec<(u64, u64)> {
    let all = record::range_all(7, 0);
    let snapshot = topic.store().snapshot().unwrap();
    let range = &all.start[..]..&all.end[..];
    let limit = ScanLimit::rows(usize::MAX);
    let page = snapshot.scan(Space::Records, range, Direction::Forward, limit);
    let row = |row: &millstream_store::Row| {
        let key = RecordKey::decode(&row.key).unwrap();
        (key.base_offset, row.value.len() as u64)
    };
    page.unwrap().rows.iter().map(row).collect()
}

#[tokio::test]
async fn nothing_is_read_of_what_goes_by_size() {
    let files = FaultFiles::new();
    let store = store(&files);
    let len = batch([OLD_MS; 2], 90_000).bytes().len() as u64;
    let config = TopicConfig {
        retention_bytes: 5 * len,
        ..TopicConfig::default()
    };
    let topic = topic(&store, config);
    for _ in 0..30 {
        put(&topic, batch([OLD_MS; 2], 90_000)).await;
    }
    store.seal_now();
    for _ in 0..3 {
        put(&topic, batch([OLD_MS; 2], 90_000)).await;
    }
    spoil(&files);
    let before = files.count(FileOperation::Read);
    assert!(retain(&topic, NEW_MS).await.unwrap());
    // The segment was closed and opened meanwhile at most.
    assert!(files.count(FileOperation::Read) <= before + 1);
    let partition = partition(&topic);
    assert_eq!(partition.start(), Offset(2 * 28));
    assert_eq!(partition.bytes(), 5 * len);
    assert!(!retain(&topic, NEW_MS).await.unwrap());
}

#[tokio::test]
async fn batches_that_are_told_of_together_are_counted_exactly() {
    let files = FaultFiles::new();
    let store = store(&files);
    let len = batch([OLD_MS; 2], 2_000).bytes().len() as u64;
    let config = TopicConfig {
        retention_bytes: 100 * len,
        ..TopicConfig::default()
    };
    let topic = topic(&store, config);
    for _ in 0..400 {
        put(&topic, batch([OLD_MS; 2], 2_000)).await;
    }
    store.seal_now();
    assert!(retain(&topic, NEW_MS).await.unwrap());
    let partition = partition(&topic);
    let left = left(&topic);
    assert_eq!(left[0].0, partition.start().0);
    let bytes: u64 = left.iter().map(|(_, bytes)| bytes).sum();
    assert_eq!(bytes, partition.bytes());
    // What lies in one block goes as a whole, or stays.
    assert!((100..100 + (64 << 10) / len).contains(&(left.len() as u64)));
    assert!(!retain(&topic, NEW_MS).await.unwrap());
}

#[tokio::test]
async fn headers_alone_are_read_of_what_goes_by_age() {
    let files = FaultFiles::new();
    let store = store(&files);
    let config = TopicConfig {
        retention_ms: 10_000,
        ..TopicConfig::default()
    };
    let topic = topic(&store, config);
    for _ in 0..20 {
        put(&topic, batch([OLD_MS; 2], 90_000)).await;
    }
    for _ in 0..5 {
        put(&topic, batch([NEW_MS; 2], 90_000)).await;
    }
    store.seal_now();
    spoil(&files);
    assert!(retain(&topic, NEW_MS).await.unwrap());
    assert_eq!(partition(&topic).start(), Offset(40));
    assert!(!retain(&topic, NEW_MS).await.unwrap());
}

#[tokio::test]
async fn a_batch_whose_records_have_timestamps_goes_by_the_newest() {
    let files = FaultFiles::new();
    let store = store(&files);
    let config = TopicConfig {
        retention_ms: 10_000,
        ..TopicConfig::default()
    };
    let topic = topic(&store, config);
    put(&topic, batch([OLD_MS, OLD_MS + 1], 90_000)).await;
    put(&topic, batch([OLD_MS, NEW_MS], 90_000)).await;
    put(&topic, batch([OLD_MS; 2], 90_000)).await;
    store.seal_now();
    assert!(retain(&topic, NEW_MS).await.unwrap());
    assert_eq!(partition(&topic).start(), Offset(2));
    assert!(!retain(&topic, NEW_MS).await.unwrap());
    assert!(retain(&topic, NEW_MS + 10_001).await.unwrap());
    assert_eq!(partition(&topic).start(), Offset(6));
}

#[tokio::test]
async fn the_last_batch_before_a_missing_segment_goes_by_size() {
    let files = FaultFiles::new();
    let store = store(&files);
    let len = batch([OLD_MS; 2], 90_000).bytes().len() as u64;
    let config = TopicConfig {
        retention_bytes: len,
        ..TopicConfig::default()
    };
    let topic = topic(&store, config);
    for _ in 0..2 {
        put(&topic, batch([OLD_MS; 2], 90_000)).await;
        store.seal_now();
    }
    put(&topic, batch([OLD_MS; 2], 90_000)).await;
    let numbers: Vec<u64> = files.list().unwrap().iter().map(|f| f.number).collect();
    assert_eq!(numbers.len(), 2);
    files.remove(numbers[1]).unwrap();
    let error = retain(&topic, NEW_MS).await.unwrap_err();
    assert!(error.to_string().contains(".seg"), "{error}");
    assert_eq!(partition(&topic).start(), Offset(2));
}
