#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::PathBuf;

use ::redb::{Database, ReadableTable as _, TableDefinition};
use tempfile::TempDir;

use super::*;
use crate::key::lost::{self, LostKey, LostRow};
use crate::key::record::RecordKey;
use crate::redb::{
    DIRECTORIES, EXTENTS, LostRun, OfflineStore, PACKS, Quarantined, RedbConfig, RedbStore,
    SEGMENTS, TABLES,
};

mod mend;
use crate::{Direction, Durability, Health, ScanLimit, Store, WriteBatch};

/// Records of each partition, in segments and behind them.
const SEALED: u64 = 40;
const HOT: u64 = 4;
/// Bytes of each: several blocks of them make a segment.
const BYTES: usize = 10_000;

/// A store on a disk, closed.
struct Closed {
    directory: TempDir,
}

/// Notes what it is shown.
#[derive(Default)]
struct Notes {
    rows: Vec<(Space, Key)>,
    found: Vec<Finding>,
}

impl Inspector for Notes {
    fn row(&mut self, space: Space, key: &[u8], value: &Bytes) -> Result<(), String> {
        self.rows.push((space, Key::from(key)));
        match &value[..] {
            b"refused" => Err("it is refused".to_owned()),
            _ => Ok(()),
        }
    }

    fn found(&mut self, finding: Finding) {
        self.found.push(finding);
    }

    fn progress(&mut self, _: CheckTotals) {}
}

fn key(partition: u32, base_offset: u64) -> Key {
    RecordKey {
        topic: 7,
        partition,
        base_offset,
    }
    .encode()
}

fn base(key: &Key) -> u64 {
    RecordKey::decode(&key[..16]).unwrap().base_offset
}

fn commit(store: &dyn Store, batch: WriteBatch) {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.build().unwrap();
    runtime.block_on(store.commit(batch)).unwrap();
}

fn append(store: &dyn Store, offsets: Range<u64>) {
    for offset in offsets {
        let mut batch = WriteBatch::with_durability(Durability::Sync);
        for partition in 0..2 {
            let value = vec![offset as u8; BYTES];
            batch.put(Space::Records, key(partition, offset), value);
        }
        commit(store, batch);
    }
}

impl Closed {
    /// With two segments, records in the hot file and a row.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let closed = Self { directory };
        let store = closed.open();
        for half in [0..SEALED / 2, SEALED / 2..SEALED] {
            append(&store, half);
            store.seal_now();
        }
        assert_eq!(store.trouble(), None);
        append(&store, SEALED..SEALED + HOT);
        let mut batch = WriteBatch::new();
        batch.put(Space::Offsets, "k", "value");
        commit(&store, batch);
        assert_eq!(store.stats().storage.segments, 2);
        closed
    }

    fn open(&self) -> RedbStore {
        RedbStore::open(self.path(), &RedbConfig::default()).unwrap()
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("shard.redb")
    }

    fn segments(&self) -> PathBuf {
        self.directory.path().join("shard.segments")
    }

    fn segment(&self, number: u64) -> PathBuf {
        self.segments().join(format!("{number:016x}.seg"))
    }

    /// The numbers of the segments, in order.
    fn listed(&self) -> Vec<u64> {
        let files = crate::segment::DirFiles::open(&self.segments()).unwrap();
        files.list().unwrap().iter().map(|f| f.number).collect()
    }

    fn check(&self) -> Notes {
        let mut notes = Notes::default();
        let mut store = OfflineStore::open(self.path()).unwrap();
        let totals = store.check(&mut notes, &Pace::new(None));
        assert!(totals.complete);
        notes
    }

    /// The only thing that is wrong.
    fn only(&self) -> Finding {
        let mut notes = self.check();
        assert_eq!(notes.found.len(), 1, "{:#?}", notes.found);
        notes.found.remove(0)
    }

    /// Flips a bit in the last row of a table, or removes it.
    fn damage<K: ::redb::Key + 'static>(
        &self,
        table: TableDefinition<'_, K, &'static [u8]>,
        flip: Option<usize>,
    ) {
        let database = Database::open(self.path()).unwrap();
        let write = database.begin_write().unwrap();
        {
            let mut rows = write.open_table(table).unwrap();
            let (key, mut row) = {
                let (key, row) = rows.last().unwrap().unwrap();
                let key = K::as_bytes(&key.value()).as_ref().to_vec();
                (key, row.value().to_vec())
            };
            match flip {
                None => drop(rows.remove(K::from_bytes(&key)).unwrap()),
                Some(at) => {
                    let at = at % row.len();
                    row[at] ^= 0x10;
                    rows.insert(K::from_bytes(&key), &row[..]).unwrap();
                }
            }
        }
        write.commit().unwrap();
    }

    fn flip(&self, number: u64, at: impl FnOnce(usize) -> usize) {
        let mut bytes = fs::read(self.segment(number)).unwrap();
        let at = at(bytes.len());
        bytes[at] ^= 0x10;
        fs::write(self.segment(number), bytes).unwrap();
    }

    fn quarantine(&self, numbers: &[u64]) -> Quarantined {
        let mut store = OfflineStore::open(self.path()).unwrap();
        store
            .quarantine(numbers, &mut |_, _| true, &mut lost_rows)
            .unwrap()
    }

    /// The offsets of a partition that can be read.
    fn offsets(&self, partition: u32) -> Vec<u64> {
        let store = self.open();
        let (start, end) = (key(partition, 0), key(partition, u64::MAX));
        let (range, limit) = (&start[..]..&end[..], ScanLimit::rows(1000));
        let snapshot = store.snapshot().unwrap();
        let page = snapshot
            .scan(Space::Records, range, Direction::Forward, limit)
            .unwrap();
        page.rows.iter().map(|row| base(&row.key)).collect()
    }
}

fn lost_rows(runs: &[LostRun]) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for run in runs {
        let first = RecordKey::decode(&run.keys.start).unwrap();
        let key = LostKey {
            topic: first.topic,
            partition: first.partition,
            start: first.base_offset,
        };
        let end = base(&run.keys.end) + u64::from(run.keys.end.len() > 16);
        let segment = run.segment;
        batch.put(
            Space::Partitions,
            key.encode(),
            LostRow { end, segment }.encode(),
        );
    }
    batch
}

#[test]
fn a_whole_store_shows_every_row_once_and_nothing_is_found() {
    let closed = Closed::new();
    let mut notes = closed.check();
    assert_eq!(notes.found, []);
    notes.rows.sort();
    let records = (0..2).flat_map(|p| (0..SEALED + HOT).map(move |o| (Space::Records, key(p, o))));
    let mut expected: Vec<_> = records.collect();
    expected.push((Space::Offsets, Key::from("k")));
    expected.sort();
    assert_eq!(notes.rows, expected);

    let (store, mut notes) = (closed.open(), Notes::default());
    let totals = store.check(&mut notes, &Pace::new(None)).unwrap();
    notes.rows.sort();
    assert_eq!((notes.found, notes.rows), (Vec::new(), expected));
    assert_eq!((totals.segments, totals.rows), (2, 1));
    assert_eq!(totals.records, 2 * (SEALED + HOT));
    let in_use = OfflineStore::open(closed.path()).err().unwrap();
    assert!(in_use.to_string().contains("in use"), "{in_use}");
}

#[test]
fn a_stop_ends_a_check() {
    let (closed, mut notes, pace) = (Closed::new(), Notes::default(), Pace::new(None));
    pace.stop();
    let totals = closed.open().check(&mut notes, &pace).unwrap();
    assert!(!totals.complete);
}

#[test]
fn flips_in_rows_are_found_where_they_are() {
    let closed = Closed::new();
    let offsets = TABLES[Space::Offsets.index()];
    closed.damage(offsets, Some(2));
    let place = Place::Row {
        space: Space::Offsets,
        key: Key::from("k"),
    };
    assert_eq!(closed.only().place, place);
    closed.damage(offsets, Some(2));
    assert_eq!(closed.check().found, []);

    // Each of them twice: the second mends it.
    for flip in [0, 9, 20] {
        closed.damage(DIRECTORIES, Some(flip));
        assert!(matches!(closed.only().place, Place::Pack(_)));
        closed.damage(DIRECTORIES, Some(flip));

        closed.damage(SEGMENTS, Some(flip));
        let found = closed.check().found;
        let last = *closed.listed().last().unwrap();
        assert!(
            found.iter().any(|f| f.place == Place::Segment(last)),
            "{found:#?}"
        );
        let names = |f: &Finding| f.detail.contains("not known") && f.records.len() == 1;
        assert_eq!(found.iter().filter(|f| names(f)).count(), 2, "{found:#?}");
        closed.damage(SEGMENTS, Some(flip));

        closed.damage(EXTENTS, Some(flip));
        let found = closed.check().found;
        let extent = Place::Extent(key(1, SEALED / 2));
        assert!(found.iter().any(|f| f.place == extent), "{found:#?}");
        closed.damage(EXTENTS, Some(flip));
        assert_eq!(closed.check().found, []);
    }
}

#[test]
fn flips_in_packs_are_found_with_the_record_they_hit() {
    let closed = Closed::new();
    // The last chunk ends with the trailer of the last record.
    let last = closed_len(&closed) - 1;
    closed.damage(PACKS, Some(last));
    let found = closed.only();
    assert!(matches!(found.place, Place::Pack(_)));
    let of = key(1, SEALED + HOT - 1);
    assert_eq!(found.records, [of.clone()..successor(&of)]);
    closed.damage(PACKS, Some(last));

    closed.damage(PACKS, None);
    let found = closed.check().found;
    assert!(
        found
            .iter()
            .any(|f| f.records == [of.clone()..successor(&of)]),
        "{found:#?}"
    );
}

/// The length of the last chunk.
fn closed_len(closed: &Closed) -> usize {
    let database = Database::open(closed.path()).unwrap();
    let read = ::redb::ReadableDatabase::begin_read(&database).unwrap();
    let packs = read.open_table(PACKS).unwrap();
    let (_, chunk) = packs.last().unwrap().unwrap();
    chunk.value().len()
}

#[test]
fn a_pack_without_a_directory_is_found() {
    let closed = Closed::new();
    closed.damage(DIRECTORIES, None);
    let found = closed.only();
    assert!(found.detail.contains("directory is missing"), "{found:?}");
}

#[test]
fn extents_that_overlap_or_name_nothing_are_found() {
    let closed = Closed::new();
    let segment = closed.listed()[0];
    let database = Database::open(closed.path()).unwrap();
    let write = database.begin_write().unwrap();
    {
        let mut rows = write.open_table(EXTENTS).unwrap();
        let mut put = |start: &Key, end: Key, segment| {
            let extent = Extent {
                segment,
                end,
                bytes: 1,
            };
            rows.insert(&start[..], &extent.encode(start)[..]).unwrap();
        };
        put(&key(0, 5), key(0, 6), segment);
        put(&key(2, 0), key(2, 9), segment);
        put(&key(3, 0), key(4, 9), 99);
    }
    write.commit().unwrap();
    drop(database);
    let found = closed.check().found;
    for text in [
        "overlaps the extent before",
        "segment 99, which is not known",
        "beyond its partition",
        "its row counts 2 extents",
    ] {
        let tells = |f: &&Finding| f.detail.contains(text);
        assert_eq!(found.iter().filter(tells).count(), 1, "{text}: {found:#?}");
    }
}

#[test]
fn damage_to_segments_is_found_with_what_is_lost() {
    type Break = fn(&Closed, u64);
    let blocks: Break = |closed, number| closed.flip(number, |_| 100);
    let whole: [Break; 4] = [
        |closed, number| closed.flip(number, |len| len - 100),
        |closed, number| closed.flip(number, |len| len - 10),
        |closed, number| fs::remove_file(closed.segment(number)).unwrap(),
        |closed, number| {
            let file = fs::OpenOptions::new()
                .write(true)
                .open(closed.segment(number));
            file.unwrap().set_len(5000).unwrap();
        },
    ];
    let closed = Closed::new();
    let number = closed.listed()[1];
    blocks(&closed, number);
    let found = closed.only();
    let Place::Block {
        segment,
        offset,
        bytes,
    } = found.place
    else {
        panic!("{found:?}");
    };
    assert_eq!((segment, offset), (number, 0));
    assert!(bytes > BYTES as u64 && found.file.ends_with(closed.segment(number)));
    let lost = &found.records[0];
    assert_eq!((found.records.len(), base(&lost.start)), (1, SEALED / 2));
    assert!(base(&lost.end) < SEALED);

    for damage in whole {
        let closed = Closed::new();
        damage(&closed, number);
        let found = closed.only();
        assert_eq!(found.place, Place::Segment(number));
        let starts: Vec<_> = found
            .records
            .iter()
            .map(|keys| keys.start.clone())
            .collect();
        assert_eq!(starts, [key(0, SEALED / 2), key(1, SEALED / 2)]);
    }
}

#[test]
fn a_check_beside_a_serving_store_finds_damage_and_stops_nothing() {
    let closed = Closed::new();
    closed.flip(closed.listed()[0], |_| 100);
    let (store, mut notes) = (closed.open(), Notes::default());
    store.check(&mut notes, &Pace::new(None)).unwrap();
    assert_eq!(notes.found.len(), 1, "{:#?}", notes.found);
    append(&store, SEALED + HOT..SEALED + HOT + 1);
    assert!(matches!(*store.health().borrow(), Health::Serving));
}

#[test]
fn what_a_crash_has_left_is_no_damage() {
    let closed = Closed::new();
    fs::write(closed.segment(77), "left").unwrap();
    let found = closed.only();
    assert!(found.is_leftover() && found.file.ends_with(closed.segment(77)));
}

#[test]
fn what_an_inspector_refuses_is_found_where_it_stands() {
    let closed = Closed::new();
    let store = closed.open();
    let mut batch = WriteBatch::new();
    batch.put(Space::Records, key(0, 1000), "refused");
    commit(&store, batch);
    drop(store);
    assert!(matches!(closed.only().place, Place::Pack(_)));
    let store = closed.open();
    store.seal_now();
    drop(store);
    let segment = *closed.listed().last().unwrap();
    let key = key(0, 1000);
    assert_eq!(closed.only().place, Place::Sealed { segment, key });
}

#[test]
fn of_a_damaged_segment_only_the_damaged_part_is_lost() {
    let closed = Closed::new();
    let number = closed.listed()[0];
    closed.flip(number, |_| 100);
    let lost = closed.only().records;
    let done = closed.quarantine(&[number]);
    assert_eq!(done.lost.len(), 1);
    assert_eq!(
        (&done.lost[0].keys, done.lost[0].segment),
        (&lost[0], number)
    );
    let behind = base(&lost[0].end);
    assert_eq!(done.saved, SEALED - behind);
    let aside = closed
        .segments()
        .join("quarantine")
        .join(format!("{number:016x}.seg"));
    assert_eq!(done.files, std::slice::from_ref(&aside));
    assert!(aside.exists() && !closed.segment(number).exists());

    assert_eq!(closed.check().found, []);
    let all: Vec<u64> = (0..SEALED + HOT).collect();
    assert_eq!(closed.offsets(0), all[behind as usize..]);
    assert_eq!(closed.offsets(1), all);
    let store = closed.open();
    let snapshot = store.snapshot().unwrap();
    let end = lost::end_of_loss(&*snapshot, 7, 0, 0).unwrap();
    assert_eq!(end, Some(behind));
    drop(snapshot);

    // What is left is removed like anything else, and takes its segments with it.
    let mut batch = WriteBatch::new();
    batch.delete_range(Space::Records, key(0, 0)..key(9, 0));
    commit(&store, batch);
    assert_eq!(store.stats().storage.segments, 0);
    drop(store);
    // Files that were not unlinked any more before the store was closed are when it opens.
    drop(closed.open());
    assert_eq!(closed.check().found, []);
}

#[test]
fn a_missing_segment_is_given_up_whole() {
    let closed = Closed::new();
    let number = closed.listed()[0];
    fs::remove_file(closed.segment(number)).unwrap();
    let done = closed.quarantine(&[number]);
    assert_eq!((done.saved, done.files.len(), done.lost.len()), (0, 0, 2));
    assert_eq!(closed.check().found, []);
    let rest: Vec<u64> = (SEALED / 2..SEALED + HOT).collect();
    assert_eq!((closed.offsets(0), closed.offsets(1)), (rest.clone(), rest));
}

#[test]
fn a_crash_before_a_segment_is_taken_out_takes_nothing_back() {
    let closed = Closed::new();
    let number = closed.listed()[0];
    closed.flip(number, |_| 100);
    // Its second name and the new segment were made, and nothing was committed.
    let aside = closed.segments().join("quarantine");
    fs::create_dir(&aside).unwrap();
    let name = format!("{number:016x}.seg");
    fs::hard_link(closed.segment(number), aside.join(&name)).unwrap();
    fs::write(closed.segment(50), "unfinished business").unwrap();
    let done = closed.quarantine(&[number]);
    assert_eq!(done.files, [aside.join(name)]);
    let leftover = closed.only();
    assert!(leftover.is_leftover(), "{leftover:?}");
    assert_eq!(closed.offsets(1).len() as u64, SEALED + HOT);
}

#[test]
fn only_what_is_there_is_opened() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shard.redb");
    let error = OfflineStore::open(&path).err().unwrap();
    assert!(error.to_string().contains("could not open"), "{error}");
    assert!(!path.exists(), "nothing is made");
}
