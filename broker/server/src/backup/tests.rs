//! From a store to a place in memory and back, with every object damaged and every write failing.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use millstream_proto::TopicName;
use millstream_proto::topic::TopicConfig;
use millstream_store::key::partition::{PartitionKey, PartitionRow};
use millstream_store::key::producer::{ProducerKey, ProducerRow};
use millstream_store::key::record::RecordKey;
use millstream_store::{Direction, RedbConfig, RedbStore, ScanLimit, Space, Store, WriteBatch};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result as StoreResult,
};
use tempfile::TempDir;

use super::target::{BACKUPS, LOCKS, PARTS, SEGMENTS};
use super::*;
use crate::broker::SHARD_FILE;
use crate::catalog::row::{Row, TopicRow};

mod faults;

/// A place in memory that lets so many writes pass and then none.
#[derive(Debug, Default)]
struct Failing {
    inner: InMemory,
    left: AtomicUsize,
}

impl Failing {
    fn let_pass(&self, writes: usize) {
        self.left.store(writes, Ordering::Relaxed);
    }

    fn write(&self) -> StoreResult<()> {
        let take = |left: usize| left.checked_sub(1);
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.map(drop).map_err(|_| Error::Generic {
            store: "failing",
            source: "no more writes".into(),
        })
    }
}

impl fmt::Display for Failing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("failing")
    }
}

#[async_trait]
impl ObjectStore for Failing {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> StoreResult<PutResult> {
        self.write()?;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        self.write()?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, StoreResult<Path>>,
    ) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> StoreResult<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A store on disk, and a place for its backups.
struct World {
    dir: TempDir,
    store: RedbStore,
    place: Arc<Failing>,
    target: Target,
    now_ms: i64,
}

fn config() -> RedbConfig {
    RedbConfig {
        cache_bytes: 4 << 20,
        hot_bytes: 256 << 10,
        segment_bytes: 64 << 10,
        ..RedbConfig::default()
    }
}

type Rows = BTreeMap<(Space, Vec<u8>), Bytes>;

fn rows(store: &RedbStore) -> Rows {
    let snapshot = store.snapshot().unwrap();
    let mut rows = Rows::new();
    for space in Space::ALL {
        let (range, limit) = (&[0][..]..&[u8::MAX; 80][..], ScanLimit::rows(usize::MAX));
        let page = snapshot.scan(space, range, Direction::Forward, limit);
        let found = page.unwrap().rows.into_iter();
        rows.extend(found.map(|row| ((space, row.key.to_vec()), row.value)));
    }
    rows
}

fn restored(dir: &FilePath) -> Rows {
    let store = RedbStore::open(dir.join(SHARD_FILE), &config()).unwrap();
    rows(&store)
}

const TOPICS: [(u32, &str); 3] = [(1, "acme/a"), (2, "acme/b"), (7, "other/a")];

impl World {
    /// With three topics of two tenants.
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = RedbStore::open(dir.path().join("one.redb"), &config()).unwrap();
        let place = Arc::<Failing>::default();
        place.let_pass(usize::MAX);
        let target = Target::new(Arc::clone(&place) as Arc<dyn ObjectStore>, "memory");
        let mut batch = WriteBatch::new();
        for (id, name) in TOPICS {
            let row = TopicRow {
                id,
                name: name.parse().unwrap(),
                config: TopicConfig::default(),
                chain: Vec::new(),
                chain_owner: None,
            };
            row.put(&mut batch);
        }
        batch.put(Space::Meta, "m", "v");
        store.commit(batch).await.unwrap();
        let world = Self {
            dir,
            store,
            place,
            target,
            now_ms: 1_795_173_415_000,
        };
        world.fill(0..100).await;
        world
    }

    async fn fill(&self, offsets: Range<u64>) {
        for offset in offsets {
            let mut batch = WriteBatch::new();
            for (topic, _) in TOPICS {
                let key = RecordKey {
                    topic,
                    partition: 0,
                    base_offset: offset,
                };
                let len = (offset * 41 * u64::from(topic)) % 2000;
                let value = Bytes::from(vec![offset as u8; len as usize]);
                batch.put(Space::Records, key.encode(), value);
                let partition = PartitionKey {
                    topic,
                    partition: 0,
                };
                let row = PartitionRow::default().encode();
                batch.put(Space::Partitions, partition.encode(), row);
                let producer = ProducerKey { topic, producer: 9 };
                let row = ProducerRow {
                    last_sequence: offset,
                    ..ProducerRow::default()
                };
                batch.put(Space::Producers, producer.encode(), row.encode());
            }
            self.store.commit(batch).await.unwrap();
        }
    }

    async fn back_up(&mut self) -> Result<Created, CreateError> {
        self.now_ms += 60_000;
        let options = CreateOptions {
            now_ms: self.now_ms,
            bytes_per_second: None,
            spool_dir: self.dir.path().to_owned(),
        };
        let progress = Progress::default();
        let frozen = self.store.freeze().unwrap();
        let made = create(&self.target, frozen, &options, &progress).await;
        let (done, total) = progress.read();
        assert!(made.is_err() || done == total);
        made
    }

    async fn restore(
        &self,
        which: Which,
        into: &str,
        selection: &Selection,
    ) -> Result<Restored, RestoreError> {
        let manifest = self.target.find(&which).await?;
        let into = self.dir.path().join(into);
        let progress = Progress::default();
        let restored = restore(&self.target, &manifest, &into, selection, &progress).await;
        if restored.is_ok() {
            let (done, total) = progress.read();
            assert_eq!(done, total);
        }
        restored
    }

    fn dir(&self, into: &str) -> std::path::PathBuf {
        self.dir.path().join(into)
    }

    async fn objects(&self) -> Vec<String> {
        let mut objects = Vec::new();
        for folder in [BACKUPS, PARTS, SEGMENTS, LOCKS] {
            let listed = self.target.list(folder).await.unwrap().into_iter();
            objects.extend(listed.map(|listed| format!("{folder}/{}", listed.name)));
        }
        objects
    }

    async fn verify(&self) -> Verified {
        let progress = Progress::default();
        verify(&self.target, None, &progress).await.unwrap()
    }

    /// Nothing but what stood there before is left beside the store.
    fn no_leavings(&self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let name = name.to_str().unwrap().to_owned();
            assert!(!name.starts_with('.'), "{name} is left");
        }
    }
}

#[tokio::test]
async fn what_was_backed_up_is_restored_whatever_came_later() {
    let mut world = World::new().await;
    let before = world.now_ms;
    let first = world.back_up().await.unwrap();
    let expected = rows(&world.store);
    world.fill(100..150).await;
    let second = world.back_up().await.unwrap();
    let later = rows(&world.store);
    world.fill(150..200).await;

    let done = world.restore(Which::Latest, "latest", &Selection::All);
    assert_eq!(done.await.unwrap().id, second.id);
    assert!(restored(&world.dir("latest")) == later);
    // A directory that is there and empty will do.
    std::fs::create_dir(world.dir("first")).unwrap();
    let done = world.restore(Which::Id(first.id.clone()), "first", &Selection::All);
    let done = done.await.unwrap();
    assert_eq!((done.id, done.dir), (first.id.clone(), world.dir("first")));
    assert!(restored(&world.dir("first")) == expected);

    let in_time = Which::Before(before + 119_999);
    assert_eq!(world.target.find(&in_time).await.unwrap().id, first.id);
    let in_time = Which::Before(before + 120_000);
    assert_eq!(world.target.find(&in_time).await.unwrap().id, second.id);
    let error = world.target.find(&Which::Before(before)).await.unwrap_err();
    assert!(matches!(error, TargetError::NoBackup { .. }), "{error}");

    let refused = world.restore(Which::Latest, "first", &Selection::All).await;
    let error = refused.unwrap_err();
    assert!(matches!(error, RestoreError::NotEmpty { .. }), "{error}");
    assert!(restored(&world.dir("first")) == expected);
    world.no_leavings();
}

#[tokio::test]
async fn a_clock_that_stands_or_goes_back_changes_no_order() {
    let mut world = World::new().await;
    let begun = world.now_ms;
    let mut made = Vec::new();
    // A second one at the same moment, one after the clock was set back by an hour, one later.
    for ms in [60_000, 60_000, -3_600_000, 30_000] {
        world.now_ms = begun + ms - 60_000;
        made.push(world.back_up().await.unwrap().id);
        world
            .fill(100 + made.len() as u64..101 + made.len() as u64)
            .await;
    }
    assert_eq!(world.target.ids().await.unwrap(), made);
    let listed = world.target.backups().await.unwrap();
    assert!(listed.iter().map(|found| &found.id).eq(&made));
    let find = async |which: Which| world.target.find(&which).await.unwrap().id;
    assert_eq!(find(Which::Latest).await, made[3]);
    // The time is the one that the clock has said since it was set back.
    assert_eq!(find(Which::Before(begun + 90_000)).await, made[3]);
    assert_eq!(find(Which::Before(begun)).await, made[2]);
    let ahead = world.target.ahead_of(&made[3]).await.unwrap();
    assert_eq!(ahead, Some(made[1].clone()));
    assert_eq!(world.target.ahead_of(&made[1]).await.unwrap(), None);

    let pruned = prune(&world.target, 2, &[]).await.unwrap();
    assert_eq!(
        (pruned.removed, pruned.kept),
        (made[..2].to_vec(), made[2..].to_vec())
    );
    let again = world.back_up().await.unwrap().id;
    assert!(made.iter().all(|id| *id < again));
}

#[tokio::test]
async fn segments_are_copied_once() {
    let mut world = World::new().await;
    let mut first = world.back_up().await.unwrap();
    assert!(first.segments > 1 && first.copied_segments == first.segments);
    let same = loop {
        let next = world.back_up().await.unwrap();
        assert_eq!(next.copied_segments, next.segments - first.segments);
        if next.segments == first.segments {
            break next;
        }
        // The sealer was still at what had been written: it comes to rest, since nothing is added.
        first = next;
    };
    assert_eq!(same.copied_bytes, 0, "the rows are those of the first, too");

    world.fill(100..200).await;
    let before = world.target.list(SEGMENTS).await.unwrap().len();
    let more = world.back_up().await.unwrap();
    let after = world.target.list(SEGMENTS).await.unwrap().len();
    assert!(more.copied_segments > 0 && more.copied_segments < more.segments);
    assert_eq!((after - before) as u64, more.copied_segments);

    // A restored store goes its own way, from the same segments.
    let done = world.restore(Which::Latest, "copy", &Selection::All).await;
    done.unwrap();
    let file = world.dir("copy").join(SHARD_FILE);
    world.store = RedbStore::open(file, &config()).unwrap();
    world.fill(200..202).await;
    let of_copy = world.back_up().await.unwrap();
    assert!(of_copy.segments >= more.segments);
    assert_eq!(of_copy.copied_segments, of_copy.segments - more.segments);
    assert_eq!(world.verify().await.findings, []);
}

#[tokio::test]
async fn damage_is_named_and_never_restored() {
    let mut world = World::new().await;
    let made = world.back_up().await.unwrap();
    let good = world.verify().await;
    assert_eq!(good.findings, []);
    assert_eq!((good.backups, good.bytes), (1, made.bytes));
    let objects = world.objects().await;
    assert_eq!(objects.len() as u64, good.objects);
    for object in objects {
        let bytes = world.target.get(&object, u64::MAX).await.unwrap();
        let mut flipped = bytes.to_vec();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        let cut = bytes.slice(..bytes.len() - 1);
        for (damaged, missing) in [(flipped.into(), false), (cut, false), (Bytes::new(), true)] {
            world.target.delete(&object).await.unwrap();
            if !missing {
                world.target.put(&object, damaged).await.unwrap();
            }
            if missing && object.starts_with(BACKUPS) {
                continue;
            }
            let found = world.verify().await.findings;
            assert_eq!(found.len(), 1, "{object}: {found:?}");
            assert_eq!(found[0].object, object);
            assert_eq!(found[0].backups, std::slice::from_ref(&made.id));
            if object.starts_with(SEGMENTS) && !missing {
                assert!(found[0].detail.contains("segment "), "{found:?}");
            }
            let refused = world.restore(Which::Latest, "copy", &Selection::All).await;
            let error = refused.unwrap_err().to_string();
            assert!(error.contains(&object), "{error}");
            assert!(!world.dir("copy").exists());
            world.no_leavings();
        }
        world.target.put(&object, bytes).await.unwrap();
    }
    assert_eq!(world.verify().await.findings, []);
}

#[tokio::test]
async fn a_flipped_byte_of_a_segment_is_found_where_it_is() {
    let mut world = World::new().await;
    world.back_up().await.unwrap();
    let segment = world.target.list(SEGMENTS).await.unwrap().remove(0);
    let object = format!("{SEGMENTS}/{}", segment.name);
    let mut bytes = world.target.get(&object, u64::MAX).await.unwrap().to_vec();
    bytes[100] ^= 1;
    world.target.put(&object, bytes.into()).await.unwrap();
    let found = world.verify().await.findings.remove(0);
    assert!(found.detail.contains("bytes 0 to "), "{}", found.detail);
    assert!(found.detail.contains("keys "), "{}", found.detail);
}

#[tokio::test]
async fn a_write_that_fails_leaves_the_earlier_backups_whole() {
    let mut world = World::new().await;
    let first = world.back_up().await.unwrap();
    let expected = rows(&world.store);
    world.fill(100..140).await;
    let mut failures = 0;
    let made = loop {
        world.place.let_pass(failures);
        let made = world.back_up().await;
        world.place.let_pass(usize::MAX);
        match made {
            Ok(made) => break made,
            Err(error) => assert!(error.to_string().contains("no more writes"), "{error}"),
        }
        let ids = world.target.ids().await.unwrap();
        assert_eq!(ids, std::slice::from_ref(&first.id));
        assert_eq!(world.verify().await.findings, []);
        failures += 1;
    };
    // The lock, at least one part and one segment, and the manifest.
    assert!(failures >= 4, "{failures}");
    let copied = made.copied_segments as usize;
    assert!(
        copied < failures - 2,
        "what was there already is copied again"
    );
    assert_eq!(world.verify().await.findings, []);
    let whole = world.restore(Which::Id(first.id.clone()), "copy", &Selection::All);
    whole.await.unwrap();
    assert!(restored(&world.dir("copy")) == expected);

    // What those that failed have left goes with the next pruning.
    let pruned = prune(&world.target, 9, &[]).await.unwrap();
    assert_eq!(pruned.kept, [first.id, made.id]);
    let named = world.verify().await.objects;
    assert_eq!(world.objects().await.len() as u64, named);
}

#[tokio::test]
async fn pruning_removes_what_no_backup_needs() {
    let mut world = World::new().await;
    let mut made = Vec::new();
    for round in 0..4 {
        world.fill(100 + round * 30..130 + round * 30).await;
        let mut cut = WriteBatch::new();
        let key = |topic, base_offset| RecordKey {
            topic,
            partition: 0,
            base_offset,
        };
        let end = key(2, 30 * round).encode();
        cut.delete_range(Space::Records, key(1, 0).encode()..end);
        world.store.commit(cut).await.unwrap();
        made.push(world.back_up().await.unwrap().id);
    }
    let expected = rows(&world.store);
    let strangers = Bytes::from_static(b"somebody else's");
    world.target.put("backups/README", strangers).await.unwrap();
    let pruned = prune(&world.target, 2, &[]).await.unwrap();
    assert_eq!(pruned.removed, made[..2]);
    assert_eq!(pruned.kept, made[2..]);
    assert!(pruned.objects > 0 && pruned.bytes > 0);
    let verified = world.verify().await;
    assert_eq!((verified.backups, verified.findings), (2, vec![]));
    assert_eq!(world.objects().await.len() as u64, verified.objects + 1);
    world
        .restore(Which::Latest, "copy", &Selection::All)
        .await
        .unwrap();
    assert!(restored(&world.dir("copy")) == expected);

    // By name; and one that is not there.
    let unknown = prune(&world.target, 9, &made[..1]).await.unwrap_err();
    assert!(unknown.to_string().contains(made[0].as_str()), "{unknown}");
    let pruned = prune(&world.target, 9, &made[3..]).await.unwrap();
    assert_eq!(
        (pruned.removed, pruned.kept),
        (made[3..].to_vec(), made[2..3].to_vec())
    );

    // Nobody knows what a backup needs that cannot be read.
    let before = world.objects().await;
    let object = format!("{BACKUPS}/{}", made[2]);
    world
        .target
        .put(&object, Bytes::from_static(b"?"))
        .await
        .unwrap();
    let refused = prune(&world.target, 0, &[]).await.unwrap_err();
    assert!(matches!(refused, PruneError::Unreadable(_)), "{refused}");
    assert_eq!(world.objects().await, before);
    let pruned = prune(&world.target, 0, &made[2..3]).await.unwrap();
    assert_eq!(pruned.removed, made[2..3]);
    assert_eq!(world.objects().await, ["backups/README"]);
}

#[tokio::test]
async fn a_tenant_or_a_topic_comes_alone() {
    let mut world = World::new().await;
    world.back_up().await.unwrap();
    let all = rows(&world.store);
    let of = |ids: &[u32]| -> Rows {
        let wanted = |space: Space, key: &[u8]| match space {
            Space::Meta => true,
            Space::Catalog => TOPICS
                .iter()
                .any(|(id, name)| ids.contains(id) && key[1..] == *name.as_bytes()),
            _ => ids.iter().any(|id| key.starts_with(&id.to_be_bytes())),
        };
        let rows = all.clone().into_iter();
        rows.filter(|((space, key), _)| wanted(*space, key))
            .collect()
    };
    let acme = Selection::Tenant("acme".parse().unwrap());
    let done = world.restore(Which::Latest, "acme", &acme).await.unwrap();
    let found = restored(&world.dir("acme"));
    assert!(found == of(&[1, 2]) && found.len() > 200);
    assert_eq!(done.notes, [""; 0]);
    let name: TopicName = "other/a".parse().unwrap();
    let other = Selection::Topic(name);
    world.restore(Which::Latest, "other", &other).await.unwrap();
    // Its segments hold nothing of the others, and no file is left of those that do.
    let files = std::fs::read_dir(world.dir("other")).unwrap();
    let mut names: Vec<_> = files.map(|file| file.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["shard-0.redb", "shard-0.segments"]);
    let segments = std::fs::read_dir(world.dir("other").join("shard-0.segments")).unwrap();
    let sizes = segments.map(|file| file.unwrap().metadata().unwrap().len());
    let records = |(space, key): &&(Space, Vec<u8>)| {
        *space == Space::Records && key.starts_with(&7u32.to_be_bytes())
    };
    let of_others = all.iter().filter(|(key, _)| !records(key));
    let of_others: usize = of_others.map(|(_, value)| value.len()).sum();
    let whole = world.target.find(&Which::Latest).await.unwrap();
    let whole: u64 = whole.segments.iter().map(|segment| segment.bytes).sum();
    let sizes: u64 = sizes.sum();
    assert!(sizes > 0 && sizes + of_others as u64 / 2 < whole);
    assert!(restored(&world.dir("other")) == of(&[7]));

    let nobody = Selection::Topic("acme/c".parse().unwrap());
    let error = world.restore(Which::Latest, "none", &nobody).await;
    let error = error.unwrap_err();
    assert!(error.to_string().contains("topic acme/c"), "{error}");
    assert!(!world.dir("none").exists());
    world.no_leavings();
}

#[tokio::test]
async fn large_rows_go_in_pieces() {
    let mut world = World::new().await;
    let mut batch = WriteBatch::new();
    for blob in 0..3u8 {
        batch.put(Space::Blobs, [blob; 32], vec![blob; 9 << 20]);
    }
    world.store.commit(batch).await.unwrap();
    let made = world.back_up().await.unwrap();
    assert!(made.parts >= 2);
    assert_eq!(world.verify().await.findings, []);
    world
        .restore(Which::Latest, "copy", &Selection::All)
        .await
        .unwrap();
    assert!(restored(&world.dir("copy")) == rows(&world.store));
}
