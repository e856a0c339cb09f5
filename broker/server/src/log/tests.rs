#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::sync::Arc;

use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
use millstream_proto::topic::{StartAt, TopicConfig};
use millstream_proto::{Batch, Codec, Offset, PartitionId};
use millstream_store::key::lost::{LostKey, LostRow};
use millstream_store::key::record::RecordKey;
use millstream_store::{MemoryStore, Space, Store, WriteBatch};

use super::seek::SEEKING;
use super::*;
use crate::limits::TIME_SEEKERS;

mod retained;
mod unreadable;

/// Timestamp of the batches that time is to remove.
const OLD_MS: i64 = 1_000;
const NEW_MS: i64 = 50_000;

fn batch(timestamp: i64) -> Batch {
    let mut builder = BatchBuilder::new(1 << 16);
    for value in [b"one", b"two"] {
        let record = NewRecord {
            value: Some(value),
            timestamp,
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    builder.build(Codec::None, Stamp::default()).unwrap()
}

/// A topic of one partition that holds batches of two records with these timestamps, none of
/// them cached.
async fn topic_of(config: TopicConfig, timestamps: &[i64]) -> Arc<Topic> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new().unwrap());
    let name = "acme/t".parse().unwrap();
    let topic = Topic::open(7, name, config, Arc::clone(&store), TailBudget::new(0)).unwrap();
    for timestamp in timestamps {
        let appends = vec![Append::to(&topic, PartitionId(0), batch(*timestamp)).unwrap()];
        append(&store, appends, WriteBatch::new()).await.unwrap();
    }
    topic
}

fn partition(topic: &Topic) -> Arc<Partition> {
    topic.partition(PartitionId(0)).unwrap()
}

#[tokio::test]
async fn a_reader_that_retention_has_just_overtaken_is_told_so() {
    let topic = topic_of(TopicConfig::default(), &[OLD_MS; 3]).await;
    let partition = partition(&topic);
    // The moment between a removal's commit and its callback: the rows are gone, the start that
    // readers are shown has not moved yet.
    partition.applied().start = 4;
    let key = |base_offset| {
        RecordKey {
            topic: 7,
            partition: 0,
            base_offset,
        }
        .encode()
    };
    let mut rows = WriteBatch::new();
    rows.delete_range(Space::Records, key(0)..key(4));
    topic.store().commit(rows).await.unwrap();
    match partition.read(Offset(0), 1).await {
        Err(ReadFault::OutOfRange { start, .. }) => assert_eq!(start, Offset(4)),
        other => panic!("{other:?}"),
    }
    assert_eq!(partition.read(Offset(4), 1).await.unwrap().len(), 1);

    // What is lost rather than removed is damage.
    let mut rows = WriteBatch::new();
    rows.delete_range(Space::Records, key(4)..key(6));
    topic.store().commit(rows).await.unwrap();
    let lost = partition.read(Offset(4), 1).await;
    assert!(matches!(lost, Err(ReadFault::Damaged { .. })), "{lost:?}");
}

#[tokio::test]
async fn retention_removes_what_is_too_old_or_too_much_and_nothing_else() {
    let by_age = TopicConfig {
        retention_ms: 10_000,
        ..TopicConfig::default()
    };
    let topic = topic_of(by_age, &[OLD_MS, OLD_MS, NEW_MS, OLD_MS]).await;
    assert!(!retain(&topic, OLD_MS).await.unwrap());
    assert!(retain(&topic, NEW_MS).await.unwrap());
    assert_eq!(partition(&topic).start(), Offset(4), "up to the first new");
    assert!(!retain(&topic, NEW_MS).await.unwrap());

    let len = batch(0).bytes().len() as u64;
    let by_bytes = TopicConfig {
        retention_bytes: 2 * len + 1,
        ..TopicConfig::default()
    };
    let topic = topic_of(by_bytes, &[NEW_MS; 5]).await;
    assert!(retain(&topic, NEW_MS).await.unwrap());
    // It stays at or above the limit.
    assert_eq!(partition(&topic).start(), Offset(4));
    assert_eq!(partition(&topic).bytes(), 3 * len);
    assert!(!retain(&topic, NEW_MS).await.unwrap());
}

#[tokio::test]
async fn a_timestamp_is_found_behind_what_retention_removes_meanwhile() {
    let config = TopicConfig {
        retention_ms: 10_000,
        ..TopicConfig::default()
    };
    let topic = topic_of(config, &[OLD_MS, OLD_MS, NEW_MS]).await;
    let partition = partition(&topic);
    let at = StartAt::Timestamp(NEW_MS);
    assert_eq!(seek(&partition, at).await.unwrap(), Offset(4));
    let beyond = StartAt::Timestamp(NEW_MS + 1);
    assert_eq!(seek(&partition, beyond).await.unwrap(), Offset(6));

    // It has seen where the partition begins, and its turn to read comes after retention's.
    let turns = SEEKING.acquire_many(TIME_SEEKERS as u32).await.unwrap();
    let seeking = seek(&partition, at);
    tokio::pin!(seeking);
    assert!(futures_util::poll!(&mut seeking).is_pending());
    retain(&topic, NEW_MS).await.unwrap();
    drop(turns);
    assert_eq!(seeking.await.unwrap(), Offset(4));
    assert_eq!(partition.start(), Offset(4));
}

/// Offsets 4 to 8 of the topic are lost, and known to be.
async fn with_a_loss(config: TopicConfig) -> Arc<Topic> {
    let topic = topic_of(config, &[OLD_MS, OLD_MS, OLD_MS, OLD_MS, NEW_MS]).await;
    let mut rows = WriteBatch::new();
    let gone = millstream_store::key::record::range(7, 0, 4..8);
    rows.delete_range(Space::Records, gone);
    let key = LostKey {
        topic: 7,
        partition: 0,
        start: 4,
    };
    let row = LostRow { end: 8, segment: 1 };
    rows.put(Space::Partitions, key.encode(), row.encode());
    topic.store().commit(rows).await.unwrap();
    topic
}

#[tokio::test]
async fn what_was_lost_and_given_up_is_passed_over() {
    let topic = with_a_loss(TopicConfig::default()).await;
    let partition = partition(&topic);
    let before = partition.read(Offset(0), 1 << 20).await.unwrap();
    assert_eq!(before.last().unwrap().end(), Offset(4));
    for wanted in [4, 5, 7] {
        match partition.read(Offset(wanted), 1 << 20).await {
            Err(ReadFault::Lost { next, .. }) => assert_eq!(next, Offset(8)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(partition.read(Offset(8), 1).await.unwrap().len(), 1);
    let found = seek(&partition, StartAt::Timestamp(NEW_MS)).await.unwrap();
    assert_eq!(found, Offset(8));
}

#[tokio::test]
async fn retention_gets_past_what_was_lost() {
    let config = TopicConfig {
        retention_ms: 10_000,
        ..TopicConfig::default()
    };
    let topic = with_a_loss(config).await;
    assert!(retain(&topic, NEW_MS).await.unwrap());
    assert_eq!(partition(&topic).start(), Offset(8));
    let snapshot = topic.store().snapshot().unwrap();
    let kept = millstream_store::key::lost::of_partition(&*snapshot, 7, 0);
    assert_eq!(kept.unwrap(), [], "nothing is left to pass over");
    assert!(!retain(&topic, NEW_MS).await.unwrap());
}
