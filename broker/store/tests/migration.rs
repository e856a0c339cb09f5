//! Files of format 1, made by hand as that version wrote them: they open, lose nothing, and what
//! interrupts the move is made good by the next opening.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;

use std::collections::BTreeMap;
use std::io::ErrorKind;

use bytes::Bytes;
use machine::{Machine, commit, tiny, wait_until};
use millstream_store::fault::{Effect, Fault, FaultDisk, Operation};
use millstream_store::key::record::{self, RecordKey};
use millstream_store::segment::fault::FaultFiles;
use millstream_store::{
    Direction, Key, OpenError, ReadError, RedbConfig, RedbStore, ScanLimit, Space, Store,
    WriteBatch,
};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

type Rows = BTreeMap<Key, Bytes>;

const FORMAT: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("millstream");

fn table(space: Space) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(space.name())
}

/// A value with the trailer that format 1 put behind it: a checksum over space, lengths, key and
/// value, but of a record batch only its first 64 bytes.
fn with_trailer(space: Space, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut covered = vec![space as u8];
    covered.extend((key.len() as u32).to_le_bytes());
    covered.extend((value.len() as u32).to_le_bytes());
    covered.extend(key);
    let part = if space == Space::Records {
        64
    } else {
        usize::MAX
    };
    covered.extend(&value[..value.len().min(part)]);
    let mut stored = value.to_vec();
    stored.extend(crc32c::crc32c(&covered).to_le_bytes());
    stored
}

fn format_row(version: u32) -> Vec<u8> {
    let version = version.to_le_bytes();
    [version, crc32c::crc32c(&version).to_le_bytes()].concat()
}

/// A closed file of `version` with these record batches and one row in every other space.
fn file(version: u32, rows: &Rows) -> FaultDisk {
    let disk = FaultDisk::new();
    let database = Database::builder()
        .create_with_backend(disk.backend())
        .unwrap();
    let transaction = database.begin_write().unwrap();
    for space in Space::ALL {
        let mut table = transaction.open_table(table(space)).unwrap();
        if space == Space::Records {
            for (key, value) in rows {
                table
                    .insert(&key[..], &with_trailer(space, key, value)[..])
                    .unwrap();
            }
        } else {
            let stored = with_trailer(space, b"row", space.name().as_bytes());
            table.insert(&b"row"[..], &stored[..]).unwrap();
        }
    }
    let mut format = transaction.open_table(FORMAT).unwrap();
    format.insert("format", &format_row(version)[..]).unwrap();
    drop(format);
    transaction.commit().unwrap();
    drop(database);
    FaultDisk::from_image(disk.image())
}

/// Batches of several partitions of several topics; every `large`th takes many pages.
fn batches(count: u64, large: u64) -> Rows {
    let batch = |number: u64| {
        let key = RecordKey {
            topic: 1 + (number % 3) as u32,
            partition: (number % 7) as u32,
            base_offset: number,
        };
        let large = if number.is_multiple_of(large) {
            100_000
        } else {
            0
        };
        let len = 1 + (number * 7919 % 500) as usize + large;
        let value: Bytes = (0..len).map(|at| (at as u64 * 31 + number) as u8).collect();
        (key.encode(), value)
    };
    (0..count).map(batch).collect()
}

fn read(store: &RedbStore) -> Result<Rows, ReadError> {
    let snapshot = store.snapshot()?;
    let (start, end, limit) = ([0], [0xFF; 20], ScanLimit::rows(usize::MAX));
    let page = snapshot.scan(Space::Records, &start..&end, Direction::Forward, limit)?;
    Ok(page
        .rows
        .into_iter()
        .map(|row| (row.key, row.value))
        .collect())
}

/// Everything is where it was.
fn check(store: &RedbStore, rows: &Rows, context: &str) {
    let found = read(store).unwrap();
    assert_eq!(found.len(), rows.len(), "{context}");
    assert!(found == *rows, "{context}: a batch has changed");
    let snapshot = store.snapshot().unwrap();
    for space in Space::ALL {
        if space != Space::Records {
            let row = snapshot.get(space, b"row").unwrap().unwrap();
            assert_eq!(row, space.name().as_bytes(), "{context}");
        }
    }
}

/// The format of a file, and how many batches are left in the table of format 1, if it is there.
fn looked_into(disk: &FaultDisk) -> (u32, Option<u64>) {
    let copy = FaultDisk::from_image(disk.image());
    let database = Database::builder()
        .create_with_backend(copy.backend())
        .unwrap();
    let transaction = database.begin_read().unwrap();
    let format = transaction.open_table(FORMAT).unwrap();
    let row = format.get("format").unwrap().unwrap();
    let version = u32::from_le_bytes(row.value()[..4].try_into().unwrap());
    let names = transaction.list_tables().unwrap();
    let records = names
        .into_iter()
        .any(|name| name.name() == Space::Records.name());
    let count = || {
        let batches = transaction.open_table(table(Space::Records)).unwrap();
        batches.iter().unwrap().count() as u64
    };
    (version, records.then(count))
}

#[test]
fn a_file_of_the_first_format_is_brought_up_to_date() {
    let rows = batches(5_000, 100);
    let machine = Machine::with(file(1, &rows), FaultFiles::new());
    let before = machine.disk.image().len();
    let store = machine.open(&tiny());
    check(&store, &rows, "at once");
    let segments = machine.segments().len();
    assert!(segments > 20, "{segments}");
    store.close();
    assert_eq!(looked_into(&machine.disk), (2, None));
    let after = machine.disk.image().len();
    assert!(after < before / 4, "{after} bytes of {before} left");

    // From here on it is like any other: appended to, sealed, trimmed, opened again.
    let store = machine.open(&tiny());
    check(&store, &rows, "opened again");
    let mut rows = rows;
    let key = RecordKey {
        topic: 2,
        partition: 3,
        base_offset: 1 << 40,
    }
    .encode();
    let mut batch = WriteBatch::new();
    batch.put(Space::Records, key.clone(), "new");
    commit(&store, batch).unwrap();
    rows.insert(key, "new".into());
    store.seal_now();
    check(&store, &rows, "appended to and sealed");
    let mut batch = WriteBatch::new();
    batch.delete_range(Space::Records, record::range_topic(1));
    batch.delete_range(Space::Records, record::range_topic(3));
    commit(&store, batch).unwrap();
    rows.retain(|key, _| key[3] == 2);
    check(&store, &rows, "trimmed");
    wait_until("the end of most segments", || {
        machine.segments().len() < segments / 2
    });
    check(&store, &rows, "rewritten");
    drop(store);
    check(&machine.open(&tiny()), &rows, "at last");
}

#[test]
fn real_files_are_brought_up_to_date() {
    let rows = batches(300, 50);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("shard.redb");
    std::fs::write(&path, file(1, &rows).image()).unwrap();
    let config = RedbConfig {
        segment_bytes: 64 << 10,
        ..RedbConfig::default()
    };
    let store = RedbStore::open(&path, &config).unwrap();
    check(&store, &rows, "at once");
    drop(store);
    let files = std::fs::read_dir(path.with_extension("segments"))
        .unwrap()
        .count();
    assert!(files > 3, "{files}");
    check(
        &RedbStore::open(&path, &config).unwrap(),
        &rows,
        "opened again",
    );
}

#[test]
fn a_file_of_the_first_format_without_records_is_brought_up_to_date() {
    let rows = Rows::new();
    let machine = Machine::with(file(1, &rows), FaultFiles::new());
    let store = machine.open(&tiny());
    check(&store, &rows, "at once");
    drop(store);
    assert_eq!(looked_into(&machine.disk), (2, None));
    assert_eq!(machine.segments(), []);
}

#[test]
fn nothing_is_lost_when_the_power_is_cut_at_any_change() {
    let rows = batches(150, 60);
    let whole = file(1, &rows).image();
    let machine = Machine::with(FaultDisk::from_image(whole.clone()), FaultFiles::new());
    machine.open(&tiny()).close();
    let changes = machine.changes();
    assert!(changes > 60, "only {changes}");
    let leftovers: [fn(usize, usize) -> usize; 4] = [
        |_, _| 0,
        |_, len| len,
        |place, len| if place % 2 == 0 { len } else { 0 },
        |place, len| if place < 2 { len } else { len / 1024 * 512 },
    ];
    let (mut moving, mut moved) = (0, 0);
    for nth in 1..=changes {
        let machine = Machine::with(FaultDisk::from_image(whole.clone()), FaultFiles::new());
        machine.cut_at(nth, nth % 2 == 0);
        drop(machine.try_open(&tiny()));
        assert!(machine.is_off(), "change {nth} never came");
        for (which, kept) in leftovers.into_iter().enumerate() {
            let context = format!("change {nth}, leftovers {which}");
            let left = machine.after_cut(kept, kept);
            let (format, batches) = looked_into(&left.disk);
            // Whoever knows only format 1 must not take the rest for all there is.
            assert!(
                format != 1 || batches == Some(rows.len() as u64),
                "{context}"
            );
            moving += u32::from(format != 1 && batches.is_some_and(|left| left > 0));
            moved += u32::from(format != 2 && batches.is_none());
            let store = left.open(&tiny());
            check(&store, &rows, &context);
            drop(store);
            assert_eq!(looked_into(&left.disk), (2, None), "{context}");
            assert_eq!(left.files.unfinished(), 0, "{context}");
            check(&left.open(&tiny()), &rows, &context);
        }
    }
    assert!(
        moving > 0 && moved > 0,
        "cut in the middle {moving}, at the end {moved} times"
    );
}

#[test]
fn nothing_is_lost_when_any_operation_fails() {
    let rows = batches(150, 60);
    let whole = file(1, &rows).image();
    for operation in [Operation::Write, Operation::Sync, Operation::Resize] {
        for nth in 1.. {
            let disk = FaultDisk::from_image(whole.clone());
            let machine = Machine::with(disk, FaultFiles::new());
            let effect = Effect::Fail(ErrorKind::Other);
            machine.disk.set_fault(Fault {
                operation,
                nth,
                effect,
            });
            let opened = machine.try_open(&tiny()).map(drop);
            if !machine.disk.has_struck() {
                assert!(nth > 1, "{operation:?} never came");
                break;
            }
            let context = format!("{operation:?} {nth}");
            if let Err(error) = opened {
                assert!(
                    error.to_string().contains("disk.redb"),
                    "{context}: {error}"
                );
            }
            let left = machine.after_cut(|_, len| len, |_, len| len);
            check(&left.open(&tiny()), &rows, &context);
        }
    }
}

#[test]
fn a_full_disk_interrupts_and_the_next_opening_goes_on() {
    let rows = batches(2_000, 100);
    let machine = Machine::with(file(1, &rows), FaultFiles::new());
    let mut left = vec![rows.len() as u64];
    for room in [300_000, 700_000, 1_500_000] {
        machine.files.set_capacity(room);
        let error = machine.try_open(&tiny()).err().unwrap();
        assert!(matches!(error, OpenError::Io { .. }), "{error}");
        let text = error.to_string();
        assert!(
            text.contains("memory/") && text.contains("no space left"),
            "{text}"
        );
        let (format, batches) = looked_into(&machine.disk);
        assert_eq!(format, 1 << 16 | 2);
        left.push(batches.unwrap());
    }
    assert!(
        left.is_sorted_by(|before, after| before > after),
        "{left:?}"
    );
    machine.files.set_capacity(usize::MAX);
    check(&machine.open(&tiny()), &rows, "with room");
}

#[test]
fn a_damaged_batch_moves_and_is_reported_as_before() {
    let mut rows = batches(50, 60);
    let disk = file(1, &rows);
    let database = Database::builder()
        .create_with_backend(disk.backend())
        .unwrap();
    let transaction = database.begin_write().unwrap();
    let (damaged, _) = rows.pop_last().unwrap();
    let mut batches = transaction.open_table(table(Space::Records)).unwrap();
    batches
        .insert(&damaged[..], &b"not what was written"[..])
        .unwrap();
    drop(batches);
    transaction.commit().unwrap();
    drop(database);
    let store = Machine::with(disk, FaultFiles::new()).open(&tiny());
    let snapshot = store.snapshot().unwrap();
    for (key, value) in &rows {
        let found = snapshot.get(Space::Records, key).unwrap();
        assert_eq!(found.as_ref(), Some(value));
    }
    let error = snapshot.get(Space::Records, &damaged).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn unknown_formats_are_refused_by_number() {
    for version in [0, 3, 9, 1 << 16 | 3, u32::MAX] {
        let machine = Machine::with(file(version, &Rows::new()), FaultFiles::new());
        let before = machine.disk.image();
        match machine.try_open(&tiny()).err() {
            Some(OpenError::Format {
                found, expected, ..
            }) => {
                assert_eq!((found, expected), (version, 2));
            }
            other => panic!("{other:?}"),
        }
        let same = machine.disk.image().len() == before.len();
        assert!(
            same && looked_into(&machine.disk).0 == version,
            "{version} was changed"
        );
    }
}
