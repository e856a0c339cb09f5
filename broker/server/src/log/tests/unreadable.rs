//! What a segment that cannot be read keeps from working, and what it does not.

use millstream_proto::ErrorCode;
use millstream_store::key::record;
use millstream_store::{RedbConfig, RedbStore, StopCause};

use super::*;
use crate::log::holed::{HOLED_FILE, Holed};

fn open(store: &Arc<dyn Store>, config: &TopicConfig) -> Arc<Topic> {
    let name = "acme/t".parse().unwrap();
    let (config, store) = (config.clone(), Arc::clone(store));
    Topic::open(7, name, config, store, TailBudget::new(0)).unwrap()
}

async fn put(topic: &Arc<Topic>, partition: u32, made: Batch) -> Result<Offset, AppendError> {
    let appends = vec![Append::to(topic, PartitionId(partition), made).unwrap()];
    let placed = append(topic.store(), appends, WriteBatch::new()).await?;
    Ok(placed[0].base)
}

fn two_partitions() -> TopicConfig {
    TopicConfig {
        partitions: 2,
        retention_ms: 10_000,
        ..TopicConfig::default()
    }
}

/// Partition 0 answers everything with an error that says what to do, partition 1 works.
async fn only_the_first_is_shut(topic: &Arc<Topic>, file: &str, next: Offset) {
    let shut = topic.partition(PartitionId(0)).unwrap();
    let told = |text: String| {
        let whole = text.contains(file) && text.contains("`millstream check --quarantine`");
        assert!(whole, "{text}");
    };
    for at in [StartAt::Earliest, StartAt::Latest, StartAt::Timestamp(0)] {
        let error = seek(&shut, at).await.unwrap_err();
        assert_eq!(error.to_wire(topic.name()).code, ErrorCode::Corrupt);
        told(error.to_string());
    }
    for from in [0, 2, 1000].map(Offset) {
        told(shut.read(from, 1).await.unwrap_err().to_string());
        assert!(matches!(shut.read_tail(from, 1), TailRead::Older));
    }
    let error = put(topic, 0, batch(NEW_MS)).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::StorageStopped);
    told(error.to_string());
    retain(topic, i64::MAX).await.unwrap();

    let other = topic.partition(PartitionId(1)).unwrap();
    assert_eq!(put(topic, 1, batch(NEW_MS)).await.unwrap(), next);
    assert_eq!(other.read(next, 1).await.unwrap()[0].base, next);
}

#[tokio::test]
async fn a_partition_whose_end_cannot_be_read_is_shut_and_the_others_serve() {
    let holed = Holed::new();
    let store = Arc::clone(&holed) as Arc<dyn Store>;
    let config = two_partitions();
    let topic = open(&store, &config);
    for partition in [0, 1, 0] {
        put(&topic, partition, batch(OLD_MS)).await.unwrap();
    }
    holed.hole(record::range(7, 0, 2..3));
    let topic = open(&store, &config);
    only_the_first_is_shut(&topic, HOLED_FILE, Offset(2)).await;

    // Nothing was put in the place of what could not be read.
    holed.mend();
    let topic = open(&store, &config);
    let found = partition(&topic).read(Offset(0), 1 << 20).await.unwrap();
    assert_eq!((found.len(), partition(&topic).end()), (2, Offset(4)));

    // A shard that has stopped is not one to start with.
    holed.hole(record::range_all(7, 0));
    let detail = "the hot file is damaged".to_owned();
    holed.fail(StopCause::Corrupt { detail });
    let name = "acme/t".parse().unwrap();
    let opened = Topic::open(7, name, config, store, TailBudget::new(0));
    assert!(opened.is_err());
}

#[tokio::test]
async fn a_segment_file_that_is_gone_does_not_keep_a_topic_from_opening() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("shard.redb");
    let redb = RedbConfig {
        hot_bytes: 256 << 10,
        segment_bytes: 64 << 10,
        ..RedbConfig::default()
    };
    let config = two_partitions();
    {
        let store: Arc<dyn Store> = Arc::new(RedbStore::open(&file, &redb).unwrap());
        let topic = open(&store, &config);
        for _ in 0..2000 {
            put(&topic, 0, batch(NEW_MS)).await.unwrap();
        }
        // It seals what there is.
        drop(store.freeze().unwrap());
        put(&topic, 1, batch(NEW_MS)).await.unwrap();
        store.close();
    }
    let mut gone = 0;
    for entry in std::fs::read_dir(directory.path().join("shard.segments")).unwrap() {
        std::fs::remove_file(entry.unwrap().path()).unwrap();
        gone += 1;
    }
    assert!(gone > 0);
    let store: Arc<dyn Store> = Arc::new(RedbStore::open(&file, &redb).unwrap());
    let topic = open(&store, &config);
    only_the_first_is_shut(&topic, ".seg", Offset(2)).await;
}

#[tokio::test]
async fn retention_goes_on_behind_a_partition_that_it_cannot_read() {
    let holed = Holed::new();
    let store = Arc::clone(&holed) as Arc<dyn Store>;
    let topic = open(&store, &two_partitions());
    for partition in [0, 1] {
        put(&topic, partition, batch(OLD_MS)).await.unwrap();
    }
    holed.hole(record::range_all(7, 0));
    let error = retain(&topic, NEW_MS).await.unwrap_err();
    assert!(error.to_string().contains(HOLED_FILE), "{error}");
    let start = |p| topic.partition(PartitionId(p)).unwrap().start();
    assert_eq!((start(0), start(1)), (Offset(0), Offset(2)));
    holed.mend();
    assert!(retain(&topic, NEW_MS).await.unwrap());
    assert_eq!(start(0), Offset(2));
}

#[tokio::test]
async fn what_is_written_down_need_not_be_read_at_the_start() {
    let holed = Holed::new();
    let store = Arc::clone(&holed) as Arc<dyn Store>;
    let config = two_partitions();
    let topic = open(&store, &config);
    for partition in [0, 1, 0] {
        put(&topic, partition, batch(NEW_MS)).await.unwrap();
    }
    assert_eq!(note_ends(&topic).await.unwrap(), 2);
    assert_eq!(note_ends(&topic).await.unwrap(), 0, "nothing since");
    put(&topic, 0, batch(NEW_MS)).await.unwrap();
    holed.hole(record::range(7, 0, 0..4));
    holed.hole(record::range(7, 1, 0..2));
    let again = open(&store, &config);
    for (number, next) in [(0, 6), (1, 2)] {
        let (before, now) = [&topic, &again]
            .map(|t| t.partition(PartitionId(number)).unwrap())
            .into();
        assert_eq!((now.unreadable(), now.end()), (None, Offset(next)));
        assert_eq!(now.bytes(), before.bytes());
        assert_eq!(
            put(&again, number, batch(NEW_MS)).await.unwrap(),
            Offset(next)
        );
    }
    assert_eq!(note_ends(&again).await.unwrap(), 2);
}
