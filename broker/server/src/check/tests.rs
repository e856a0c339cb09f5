use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
use millstream_proto::limits::MAX_BATCH_RECORDS;
use millstream_proto::storage::Finding;
use millstream_proto::topic::TopicConfig;
use millstream_proto::{Batch, Codec, Offset, PartitionId};
use millstream_store::key::lost::{LostKey, LostRow};
use millstream_store::key::partition::{PartitionKey, PartitionRow};
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{Key, LostRun, MemoryStore, RedbConfig, RedbStore, Space, WriteBatch};

use super::*;
use crate::catalog::row::{Row, TopicRow};
use crate::log::{Append, TailBudget, Topic, append, retain};

const TOPIC: u32 = 7;

#[test]
fn a_report_is_cut_to_fit_a_message() {
    let finding = |n: usize| Finding {
        file: "f".repeat(200),
        place: format!("place {n}"),
        what: "w".repeat(500),
        segment: Some(1),
        records: Vec::new(),
    };
    let report = CheckReport {
        findings: (0..2000).map(finding).collect(),
        leftovers: vec!["l".repeat(300); 1000],
        ..CheckReport::default()
    };
    let fitted = fitted(report);
    assert!(fitted.findings.len() > 100 && fitted.findings_left_out > 0);
    let kept = fitted.findings.len() as u64;
    assert_eq!(kept + fitted.findings_left_out, 2000);
    let len = postcard::to_allocvec(&Response::Check(fitted))
        .unwrap()
        .len();
    assert!(len <= PAGE_BYTES, "{len}");
}

fn batch(records: u32, bytes: usize, timestamp: i64) -> Batch {
    let mut builder = BatchBuilder::new(1 << 20);
    for _ in 0..records {
        let record = NewRecord {
            value: Some(&vec![7; bytes]),
            timestamp,
            ..NewRecord::default()
        };
        builder.push(&record).unwrap();
    }
    builder.build(Codec::None, Stamp::default()).unwrap()
}

fn key(partition: u32, base_offset: u64) -> Key {
    RecordKey {
        topic: TOPIC,
        partition,
        base_offset,
    }
    .encode()
}

fn topic_row() -> TopicRow {
    TopicRow {
        id: TOPIC,
        name: "acme/t".parse().unwrap(),
        config: TopicConfig::default(),
        chain: Vec::new(),
        chain_owner: None,
    }
}

/// A topic whose only partition has batches of two records at these offsets, and whose log begins
/// at 2.
fn rows(bases: impl IntoIterator<Item = u64>) -> WriteBatch {
    let mut rows = WriteBatch::new();
    topic_row().put(&mut rows);
    for base in bases {
        let stored = batch(2, 10, 0).bytes().clone();
        rows.put(Space::Records, key(0, base), stored);
    }
    let row = PartitionRow {
        log_start: 2,
        bytes: 100,
        counted_to: 8,
    };
    let partition = PartitionKey {
        topic: TOPIC,
        partition: 0,
    };
    rows.put(Space::Partitions, partition.encode(), row.encode());
    rows
}

async fn store_of(rows: WriteBatch) -> Arc<dyn Store> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new().unwrap());
    store.commit(rows).await.unwrap();
    store
}

/// What a check finds, as the broker runs it.
fn check(store: &dyn Store) -> CheckReport {
    let check = Check {
        report: Mutex::default(),
        pace: Pace::new(None),
    };
    check.run(store);
    check.report.into_inner().unwrap()
}

fn offsets(range: &millstream_proto::storage::OffsetRange) -> (u64, u64) {
    (range.start.0, range.end.map_or(u64::MAX, |end| end.0))
}

#[tokio::test]
async fn what_is_there_is_right_and_what_is_missing_is_told() {
    // What lies before the log's start is on its way out.
    let report = check(&*store_of(rows([2, 4, 6])).await);
    assert_eq!((report.state, report.findings), (CheckState::Done, vec![]));
    assert_eq!((report.batches, report.rows), (3, 2));

    let cases: [(&[u64], (u64, u64)); 4] = [
        (&[2, 6, 8], (4, 6)),
        (&[4, 6], (2, 4)),
        // The row says that there was more.
        (&[2], (4, 8)),
        (&[], (2, 8)),
    ];
    for (bases, missing) in cases {
        let report = check(&*store_of(rows(bases.iter().copied())).await);
        let found = report.findings.iter().flat_map(|found| &found.records);
        let found: Vec<_> = found.map(offsets).collect();
        assert_eq!(found, [missing], "{bases:?}");
        let named = |found: &Finding| {
            found.records[0]
                .to_string()
                .starts_with("acme/t, partition 0")
        };
        assert!(report.findings.iter().all(named), "{:?}", report.findings);
    }
}

#[tokio::test]
async fn what_was_given_up_is_listed_and_not_missing() {
    let mut rows = rows([2, 6]);
    let lost = LostKey {
        topic: TOPIC,
        partition: 0,
        start: 4,
    };
    let row = LostRow { end: 6, segment: 3 };
    rows.put(Space::Partitions, lost.encode(), row.encode());
    let report = check(&*store_of(rows).await);
    assert_eq!(report.findings, []);
    assert_eq!(
        report.lost.iter().map(offsets).collect::<Vec<_>>(),
        [(4, 6)]
    );
}

#[tokio::test]
async fn rows_that_make_no_sense_are_told_with_their_place() {
    type Change = fn(&mut WriteBatch);
    let of = |change: Change| {
        let mut rows = rows([2, 4, 6]);
        change(&mut rows);
        rows
    };
    let cases: [(&str, Change); 10] = [
        ("partition", |rows| {
            rows.put(Space::Partitions, "short", "x")
        }),
        ("producer", |rows| rows.put(Space::Producers, "short", "x")),
        ("offset", |rows| {
            rows.put(Space::Offsets, "longer than eight", "x")
        }),
        ("pipeline", |rows| rows.put(Space::Pipelines, "d", "")),
        ("kind", |rows| rows.put(Space::Pipelines, "z", "")),
        ("kind", |rows| rows.put(Space::Catalog, "z", "")),
        ("stands at the key of another", |rows| {
            rows.put(Space::Catalog, "tacme/other", topic_row().encode());
        }),
        ("digest", |rows| {
            rows.put(Space::Blobs, [1; 32], "component")
        }),
        ("overlap", |rows| {
            rows.put(Space::Records, key(0, 7), batch(2, 1, 0).bytes().clone());
        }),
        ("does not know", |rows| {
            let key = record::range(99, 0, 0..1).start;
            rows.put(Space::Records, key, batch(2, 1, 0).bytes().clone());
        }),
    ];
    for (told, change) in cases {
        let report = check(&*store_of(of(change)).await);
        assert_eq!(report.findings.len(), 1, "{told}: {:?}", report.findings);
        assert!(
            report.findings[0].what.contains(told),
            "{:?}",
            report.findings
        );
    }
    // A bit of a batch's body, which the store's own checksum leaves to readers.
    let mut damaged = batch(2, 500, 0).bytes().to_vec();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let mut rows = rows([2, 6]);
    rows.put(Space::Records, key(0, 4), Bytes::from(damaged));
    let report = check(&*store_of(rows).await);
    assert!(!report.findings.is_empty());
}

#[tokio::test]
async fn a_loss_at_the_end_is_as_long_as_the_last_batch_can_have_been() {
    let store = store_of(rows([2, 4])).await;
    let mut survey = Survey::new(|_| ());
    store.check(&mut survey, &Pace::new(None)).unwrap();
    let lost = |from, last| LostRun {
        segment: 3,
        keys: key(0, from)..key(0, last).push_bytes(&[0]),
        bytes: 1,
    };
    let most = u64::from(MAX_BATCH_RECORDS);
    // The row has counted up to 8; beyond, nobody knows how long the last batch was.
    for (from, last, end) in [(2, 2, 8), (6, 6, 8), (8, 20, 20 + most)] {
        let told = survey.told(&[lost(from, last)]);
        assert_eq!(told.iter().map(offsets).collect::<Vec<_>>(), [(from, end)]);
        let rows = survey.lost_rows(&[lost(from, last)]);
        let store = store_of(rows).await;
        let key = PartitionKey {
            topic: TOPIC,
            partition: 0,
        };
        let snapshot = store.snapshot().unwrap();
        let row = snapshot.get(Space::Partitions, &key.encode()).unwrap();
        let row = PartitionRow::decode(&row.unwrap()).unwrap();
        assert_eq!((row.log_start, row.counted_to), (2, end));
        assert_eq!(row.bytes, 2 * batch(2, 10, 0).bytes().len() as u64);
    }
    // Each segment's loss ends where that of the next one begins.
    let mut next = lost(8, 20);
    next.segment = 4;
    let told = survey.told(&[lost(2, 6), next]);
    let told: Vec<_> = told.iter().map(offsets).collect();
    assert_eq!(told, [(2, 8), (8, 20 + most)]);
    // Ranges that touch are one.
    let told = survey.told(&[lost(6, 6), lost(8, 8)]);
    assert_eq!(told.len(), 1, "{told:?}");
}

/// Everything that moves records about at once, and checks all the while.
#[tokio::test]
async fn a_check_finds_nothing_where_nothing_is_wrong_whatever_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let config = RedbConfig {
        hot_bytes: 1 << 20,
        segment_bytes: 64 << 10,
        ..RedbConfig::default()
    };
    let redb = RedbStore::open(directory.path().join("shard.redb"), &config).unwrap();
    let store: Arc<dyn Store> = Arc::new(redb);
    let mut row = topic_row();
    row.config = TopicConfig {
        partitions: 3,
        retention_bytes: 300 << 10,
        ..TopicConfig::default()
    };
    let mut rows = WriteBatch::new();
    row.put(&mut rows);
    store.commit(rows).await.unwrap();
    let opened = Topic::open(
        TOPIC,
        row.name,
        row.config,
        Arc::clone(&store),
        TailBudget::new(0),
    );
    let topic = opened.unwrap();

    let done = Arc::new(AtomicBool::new(false));
    let (checking, over) = (Arc::clone(&store), Arc::clone(&done));
    let checker = tokio::task::spawn_blocking(move || {
        let (mut checks, mut batches) = (0, 0);
        while !over.load(Ordering::Acquire) {
            let report = check(&*checking);
            assert_eq!(report.state, CheckState::Done);
            assert_eq!(report.findings, [], "check {checks}");
            checks += 1;
            batches += report.batches;
        }
        (checks, batches)
    });
    for round in 0..600u32 {
        // Uneven, so that segments are emptied at different times.
        let partition = PartitionId([0, 0, 1, 0, 2, 1][round as usize % 6]);
        let made = batch(1 + round % 3, 2000 + round as usize % 700, 0);
        let appends = vec![Append::to(&topic, partition, made).unwrap()];
        append(&store, appends, WriteBatch::new()).await.unwrap();
        if round % 20 == 19 {
            retain(&topic, 0).await.unwrap();
        }
    }
    done.store(true, Ordering::Release);
    let (checks, batches) = checker.await.unwrap();
    assert!(
        checks > 0 && batches > 0,
        "{checks} checks of {batches} batches"
    );
    assert!(store.stats().storage.segments > 0, "some of it is sealed");
    let end = topic.partition(PartitionId(0)).unwrap().end();
    assert!(end > Offset(100));
}
