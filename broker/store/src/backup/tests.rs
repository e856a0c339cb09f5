//! From a store to parts and segments, and back.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;

use super::*;
use crate::key::record;
use crate::{
    CheckTotals, Direction, Finding, Inspector, OfflineStore, Pace, RedbConfig, RedbStore,
    ScanLimit, Snapshot, Space, Store, WriteBatch,
};

/// So little room that records are sealed, rewritten and swept all the time.
fn config() -> RedbConfig {
    RedbConfig {
        cache_bytes: 4 << 20,
        hot_bytes: 256 << 10,
        segment_bytes: 64 << 10,
        ..RedbConfig::default()
    }
}

fn record(topic: u32, offset: u64) -> Key {
    record::RecordKey {
        topic,
        partition: 0,
        base_offset: offset,
    }
    .encode()
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(future)
}

fn commit(store: &RedbStore, batch: WriteBatch) {
    wait(store.commit(batch)).unwrap();
}

/// A few topics with records of many sizes, and rows of every other space.
fn fill(store: &RedbStore, offsets: std::ops::Range<u64>) {
    for offset in offsets {
        let mut batch = WriteBatch::new();
        for topic in 1..=3 {
            let len = (offset * 37 * u64::from(topic)) % 3000;
            let value = Bytes::from(vec![offset as u8; len as usize]);
            batch.put(Space::Records, record(topic, offset), value);
        }
        for space in Space::ALL {
            if space != Space::Records {
                let key = format!("{}", offset % 50);
                batch.put(space, key.as_str(), offset.to_string());
            }
        }
        commit(store, batch);
    }
}

type Rows = BTreeMap<(Space, Vec<u8>), Bytes>;

fn rows(snapshot: &dyn Snapshot) -> Rows {
    let mut rows = Rows::new();
    for space in Space::ALL {
        let range = &[0][..]..&[u8::MAX; 40][..];
        let limit = ScanLimit::rows(usize::MAX);
        let page = snapshot
            .scan(space, range, Direction::Forward, limit)
            .unwrap();
        assert!(!page.more);
        rows.extend(
            page.rows
                .into_iter()
                .map(|row| ((space, row.key.to_vec()), row.value)),
        );
    }
    rows
}

/// What `millstream check` finds below the broker's rows.
#[derive(Default)]
struct Found(Vec<Finding>);

impl Inspector for Found {
    fn row(&mut self, _: Space, _: &[u8], _: &Bytes) -> Result<(), String> {
        Ok(())
    }

    fn found(&mut self, finding: Finding) {
        self.0.push(finding);
    }

    fn progress(&mut self, _: CheckTotals) {}
}

/// The store at `path` is sound; returns how many segments it has.
fn assert_sound(path: &Path) -> u64 {
    let mut found = Found::default();
    let mut store = OfflineStore::open(path).unwrap();
    let totals = store.check(&mut found, &Pace::new(None));
    assert!(found.0.is_empty(), "{:?}", found.0);
    totals.segments
}

fn parts(frozen: &mut dyn Frozen) -> Vec<Part> {
    let mut parts = Vec::new();
    while let Some(part) = frozen.next_part().unwrap() {
        parts.push(part);
    }
    parts
}

/// Makes a store of the parts and of the segments that are wanted.
fn restore(parts: &[Part], frozen: &dyn Frozen, path: &Path) -> usize {
    let read = || {
        let rows = parts.iter();
        rows.flat_map(|part| PartReader::new(part.bytes.clone()).unwrap())
            .map(Result::unwrap)
    };
    let mut restorer = Restorer::create(path).unwrap();
    for row in read() {
        if let PartRow::Extent(extent) = row {
            restorer.extent(extent).unwrap();
        }
    }
    let wanted = restorer.segments();
    for info in frozen.segments() {
        assert!(wanted.contains(&info.number));
        let segment = frozen.open_segment(*info).unwrap();
        segment.check().unwrap();
        let mut bytes = vec![0; info.file_bytes as usize];
        segment.read(&mut bytes, 0).unwrap();
        let mut file = restorer.files().create(info.number).unwrap();
        file.append(&bytes).unwrap();
        file.sync().unwrap();
        file.rename().unwrap();
        assert!(check_segment_copy(info.number, bytes.into(), "copy").is_empty());
    }
    let mut rows = restorer.rows(frozen.segments()).unwrap();
    wait(async {
        for row in read() {
            if let PartRow::Row { space, key, value } = row {
                rows.put(space, key, value).await.unwrap();
            }
        }
        rows.finish().await.unwrap();
    });
    wanted.len()
}

#[test]
fn a_frozen_store_comes_back_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("one.redb"), &config()).unwrap();
    fill(&store, 0..300);
    store.seal_now();
    fill(&store, 300..320);

    let mut frozen = store.freeze().unwrap();
    let expected = rows(&*store.snapshot().unwrap());
    // All that comes later is not part of it: more, less and elsewhere.
    fill(&store, 320..400);
    let mut cut = WriteBatch::new();
    cut.delete_range(Space::Records, record(1, 0)..record(3, 100));
    cut.delete_range(Space::Catalog, Key::from("0")..Key::from("3"));
    commit(&store, cut);
    store.seal_now();
    let parts = parts(&mut *frozen);
    fill(&store, 400..500);
    store.seal_now();

    let copy = directory.path().join("two.redb");
    assert!(restore(&parts, &*frozen, &copy) > 1);
    assert!(assert_sound(&copy) > 1);
    let restored = RedbStore::open(&copy, &config()).unwrap();
    assert!(rows(&*restored.snapshot().unwrap()) == expected);
    // It is a store like any other, and another one than the first.
    let id = frozen.store();
    assert_ne!(restored.freeze().unwrap().store(), id);
    fill(&restored, 500..600);
    restored.seal_now();
    let again = rows(&*restored.snapshot().unwrap());
    assert!(expected.keys().all(|key| again.contains_key(key)));
    drop((frozen, restored));

    store.close();
    let store = RedbStore::open(directory.path().join("one.redb"), &config()).unwrap();
    assert_eq!(
        store.freeze().unwrap().store(),
        id,
        "a store keeps its name"
    );
}

#[test]
fn segments_stay_while_they_are_copied_and_go_afterwards() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("one.redb"), &config()).unwrap();
    fill(&store, 0..200);
    store.seal_now();
    let mut frozen = store.freeze().unwrap();
    assert!(!frozen.segments().is_empty());
    parts(&mut *frozen);
    let mut cut = WriteBatch::new();
    cut.delete_range(Space::Records, record(0, 0)..record(9, 0));
    commit(&store, cut);
    let there = || {
        let entries = std::fs::read_dir(directory.path().join("one.segments"));
        entries.unwrap().count()
    };
    // The sealer unlinks before it seals.
    fill(&store, 200..201);
    store.seal_now();
    for info in frozen.segments() {
        frozen.open_segment(*info).unwrap().check().unwrap();
    }
    let kept = frozen.segments().len();
    let before = there();
    drop(frozen);
    assert_eq!(there(), before - kept);
}

#[test]
fn a_damaged_segment_is_not_copied() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("one.redb"), &config()).unwrap();
    fill(&store, 0..200);
    store.seal_now();
    let frozen = store.freeze().unwrap();
    let info = frozen.segments()[0];
    let mut file = directory.path().join("one.segments");
    file.push(format!("{:016x}.seg", info.number));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let error = frozen.open_segment(info).unwrap().check().unwrap_err();
    assert!(
        matches!(error, BackupError::Damaged { offset: 0, .. }),
        "{error}"
    );
    let said = check_segment_copy(info.number, bytes.clone().into(), "copy");
    assert!(said[0].starts_with("bytes 0 to "), "{said:?}");

    bytes.pop();
    std::fs::write(&file, &bytes).unwrap();
    let error = frozen.open_segment(info).err().unwrap();
    assert!(error.to_string().contains("bytes long"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let error = frozen.open_segment(info).err().unwrap();
    assert!(matches!(error, BackupError::Io { .. }), "{error}");
}

#[test]
fn a_backup_without_a_segment_it_names_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut restorer = Restorer::create(&directory.path().join("one.redb")).unwrap();
    let extent = ExtentInfo {
        start: record(1, 0),
        end: record(1, 9),
        segment: 7,
        bytes: 100,
    };
    restorer.extent(extent).unwrap();
    let other = SegmentInfo {
        number: 6,
        file_bytes: 1,
        data_bytes: 1,
    };
    let refused = restorer.rows(&[other]).err().unwrap();
    assert!(
        matches!(refused, RestoreError::UnknownSegment(7)),
        "{refused}"
    );
}

#[test]
fn a_part_of_a_segment_is_copied_without_the_rest() {
    let directory = tempfile::tempdir().unwrap();
    let store = RedbStore::open(directory.path().join("one.redb"), &config()).unwrap();
    fill(&store, 0..200);
    store.seal_now();
    let mut frozen = store.freeze().unwrap();
    let parts = parts(&mut *frozen);
    let read = parts
        .iter()
        .flat_map(|part| PartReader::new(part.bytes.clone()).unwrap());
    let mut extents = BTreeMap::<u64, Vec<ExtentInfo>>::new();
    for row in read {
        if let PartRow::Extent(extent) = row.unwrap()
            && extent.start.starts_with(&2u32.to_be_bytes())
        {
            extents.entry(extent.segment).or_default().push(extent);
        }
    }
    let copy = directory.path().join("two.redb");
    let mut restorer = Restorer::create(&copy).unwrap();
    let source = crate::segment::DirFiles::open(&directory.path().join("one.segments")).unwrap();
    let (mut infos, mut all) = (Vec::new(), 0);
    for info in frozen.segments() {
        let Some(extents) = extents.get(&info.number) else {
            continue;
        };
        let segment = Segment::open(&source, info.number, info.file_bytes).unwrap();
        // One that holds nothing is left out.
        let first = &extents[0];
        let nothing = ExtentInfo {
            start: record(1, u64::MAX - 1),
            end: record(1, u64::MAX),
            segment: first.segment,
            bytes: 1,
        };
        assert_eq!(
            restorer
                .extract(&segment, std::slice::from_ref(&nothing))
                .unwrap(),
            None
        );
        let with_nothing = [&[nothing], &extents[..]].concat();
        let part = restorer.extract(&segment, &with_nothing).unwrap().unwrap();
        assert!(part.file_bytes < info.file_bytes);
        infos.push(part);
        all += info.file_bytes;
    }
    let kept: u64 = infos.iter().map(|info| info.file_bytes).sum();
    assert!(!infos.is_empty() && kept * 2 < all);
    wait(restorer.rows(&infos).unwrap().finish()).unwrap();
    assert_eq!(assert_sound(&copy), infos.len() as u64);
    let restored = RedbStore::open(&copy, &config()).unwrap();
    let found = rows(&*restored.snapshot().unwrap());
    assert!(!found.is_empty());
    let whole = rows(&*store.snapshot().unwrap());
    for (key, value) in &found {
        assert!(key.1.starts_with(&2u32.to_be_bytes()));
        assert_eq!(&whole[key], value);
    }
    let sealed = |(space, key): &&(Space, Vec<u8>)| {
        *space == Space::Records
            && extents
                .values()
                .flatten()
                .any(|extent| (&extent.start[..]..&extent.end[..]).contains(&&key[..]))
    };
    assert_eq!(whole.keys().filter(sealed).count(), found.len());
}
