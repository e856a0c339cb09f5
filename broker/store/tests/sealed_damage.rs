//! Segments that are damaged or gone: whoever reads what lay in them is told, by the file's name,
//! and nobody else notices.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod machine;
mod script;

use std::collections::BTreeSet;
use std::sync::OnceLock;

use machine::{Machine, commit, tiny, wait_until};
use millstream_store::key::record;
use millstream_store::segment::{Files, OpenLimits, Segments};
use millstream_store::{
    Direction, Key, ReadError, RedbConfig, RedbStore, Row, ScanLimit, Snapshot, Space, Store,
    WriteBatch,
};
use proptest::prelude::*;
use proptest::sample::Index;
use script::{APPENDS, LAST, Rows, after, batch, is_stopped, settle};

/// A closed machine with batches 1 to [`APPENDS`], most of them sealed.
fn sealed() -> Machine {
    static MACHINE: OnceLock<Machine> = OnceLock::new();
    let machine = MACHINE.get_or_init(|| {
        let machine = Machine::new();
        let store = machine.open(&tiny());
        for number in 1..=APPENDS {
            commit(&store, batch(number)).unwrap();
        }
        settle(&store, tiny().segment_bytes, || false);
        store.close();
        machine
    });
    machine.copy()
}

/// Settings under which nothing moves of its own accord.
fn still() -> RedbConfig {
    RedbConfig {
        hot_bytes: 1 << 30,
        ..tiny()
    }
}

/// The keys that lie in a segment.
fn keys_of(machine: &Machine, number: u64) -> BTreeSet<Key> {
    let files = std::sync::Arc::new(machine.copy().files);
    let len = files.open(number).unwrap().byte_len();
    let segments = Segments::new(files, OpenLimits::default());
    let segment = segments.get(number, len).unwrap();
    segment
        .iter(Direction::Forward)
        .map(|row| row.unwrap().key)
        .collect()
}

fn names(machine: &Machine, error: &ReadError, number: u64) -> bool {
    let text = error.to_string();
    let is_kind = matches!(error, ReadError::Corrupt { .. } | ReadError::Io { .. });
    is_kind && text.contains(&machine.files.path(number).display().to_string())
}

/// Reads every record by itself. Those that cannot be read lie in segment `number`, and the error
/// says so; all others are what was written. Returns which those are.
fn unreadable(
    machine: &Machine,
    snapshot: &dyn Snapshot,
    rows: &Rows,
    number: u64,
) -> BTreeSet<Key> {
    let mut lost = BTreeSet::new();
    for (key, value) in rows {
        match snapshot.get(Space::Records, key) {
            Ok(found) => assert_eq!(found.as_ref(), Some(value), "{key:?}"),
            Err(error) => {
                assert!(names(machine, &error, number), "{error}");
                lost.insert(key.clone());
            }
        }
    }
    assert!(lost.is_subset(&keys_of(&sealed(), number)));
    lost
}

/// Pages through everything, around what cannot be read. What comes is right, in order, and
/// complete but for `lost`.
fn scan_around(
    machine: &Machine,
    snapshot: &dyn Snapshot,
    rows: &Rows,
    lost: &BTreeSet<Key>,
    number: u64,
) {
    for direction in [Direction::Forward, Direction::Backward] {
        let mut left: Vec<&Key> = rows.keys().collect();
        if direction == Direction::Backward {
            left.reverse();
        }
        let (mut from, mut to) = (Key::from([0]), Key::from([0xFF; 20]));
        let mut passed = BTreeSet::new();
        loop {
            let (limit, start) = (ScanLimit::bytes(15_000), left.first().copied());
            match snapshot.scan(Space::Records, &from..&to, direction, limit) {
                Ok(page) => {
                    let found: Vec<&Key> = page.rows.iter().map(|row| &row.key).collect();
                    assert!(
                        left.starts_with(&found),
                        "{direction:?}: {found:?} of {left:?}"
                    );
                    assert!(page.rows.iter().all(|row| rows[&row.key] == row.value));
                    left.drain(..found.len());
                    if !page.more {
                        break;
                    }
                }
                // Only because of the next one; it is passed over.
                Err(error) => {
                    assert!(names(machine, &error, number), "{error}");
                    assert!(
                        lost.contains(start.unwrap()),
                        "{direction:?}: {start:?} is not lost"
                    );
                    passed.insert(left.remove(0).clone());
                }
            }
            let Some(next) = left.first() else { break };
            match direction {
                Direction::Forward => from = Key::clone(next),
                Direction::Backward => to = Key::clone(next).push_bytes(&[0]),
            }
        }
        assert!(
            left.is_empty() && passed == *lost,
            "{direction:?}: {passed:?} of {lost:?}"
        );
    }
}

/// The store serves what is left, takes more, and seals it.
fn goes_on(store: &RedbStore, rows: &Rows) {
    for number in APPENDS + 1..=LAST {
        commit(store, batch(number)).unwrap();
    }
    let before = store.stats().storage.segments;
    store.seal_now();
    assert!(!is_stopped(store));
    let snapshot = store.snapshot().unwrap();
    for (key, value) in after(LAST)
        .iter()
        .filter(|(key, _)| !rows.contains_key(*key))
    {
        assert_eq!(
            snapshot.get(Space::Records, key).unwrap().as_ref(),
            Some(value)
        );
    }
    assert!(store.stats().storage.segments > 0, "{before} before");
}

#[test]
fn a_missing_segment_is_named_and_the_rest_is_served() {
    for number in sealed().segments() {
        let machine = sealed();
        machine.files.remove(number).unwrap();
        let store = machine.open(&still());
        let rows = after(APPENDS);
        let snapshot = store.snapshot().unwrap();
        let lost = unreadable(&machine, &*snapshot, &rows, number);
        assert_eq!(lost, keys_of(&sealed(), number));
        scan_around(&machine, &*snapshot, &rows, &lost, number);
        drop(snapshot);
        goes_on(&store, &rows);
    }
}

#[test]
fn a_segment_cut_short_is_named_and_the_rest_is_served() {
    let number = sealed().segments()[0];
    let len = sealed().files.content(number).unwrap().len();
    for kept in [0, 1, len / 2, len - 61, len - 1] {
        let machine = sealed();
        machine.files.truncate(number, kept);
        let store = machine.open(&still());
        let rows = after(APPENDS);
        let snapshot = store.snapshot().unwrap();
        let lost = unreadable(&machine, &*snapshot, &rows, number);
        assert_eq!(lost, keys_of(&sealed(), number), "cut to {kept}");
        drop(snapshot);
        goes_on(&store, &rows);
    }
}

#[test]
fn the_newest_records_are_found_though_what_lies_below_them_is_damaged() {
    let machine = sealed();
    for number in machine.segments() {
        machine.files.truncate(number, 10);
    }
    let store = machine.open(&still());
    for number in [APPENDS + 1, APPENDS + 3] {
        commit(&store, batch(number)).unwrap();
    }
    let snapshot = store.snapshot().unwrap();
    let topic = 1 + ((APPENDS + 1) % 2) as u32;
    for partition in 0..script::PARTITIONS {
        let limit = ScanLimit::rows(10);
        // In the middle of the batch before the last.
        let page = record::scan_from(&*snapshot, topic, partition, APPENDS + 2, limit).unwrap();
        let found: Vec<_> = page.rows.iter().map(|row| row.key.clone()).collect();
        let key = |offset| script::key(topic, partition, offset);
        assert_eq!(found, [key(APPENDS + 1), key(APPENDS + 3)]);
    }
    assert!(!is_stopped(&store));
}

/// Hot records that come before damaged ones are served, whichever way they are read.
#[test]
fn what_comes_before_damage_is_served() {
    let machine = sealed();
    for number in machine.segments() {
        machine.files.truncate(number, 10);
    }
    let store = machine.open(&still());
    let (first, last) = (script::key(0, 0, 7), script::key(3, 0, 7));
    let mut batch = WriteBatch::new();
    for key in [&first, &last] {
        batch.put(Space::Records, key.clone(), &b"hot"[..]);
    }
    commit(&store, batch).unwrap();
    let snapshot = store.snapshot().unwrap();
    let (start, end) = (Key::from([0]), Key::from([0xFF; 20]));
    for limit in [ScanLimit::ONE, ScanLimit::rows(10)] {
        for (direction, key) in [(Direction::Forward, &first), (Direction::Backward, &last)] {
            let page = snapshot
                .scan(Space::Records, &start..&end, direction, limit)
                .unwrap();
            let found: Vec<_> = page.rows.iter().map(|row| &row.key).collect();
            assert_eq!(found, [key], "{direction:?}");
            assert!(page.more);
        }
        // Nothing comes before it here.
        let behind = first.clone().push_bytes(&[0]);
        for (range, direction) in [
            (&behind[..]..&end[..], Direction::Forward),
            (&start[..]..&last[..], Direction::Backward),
        ] {
            let error = snapshot
                .scan(Space::Records, range, direction, limit)
                .unwrap_err();
            let numbers = machine.segments();
            let is_named = numbers.iter().any(|&at| names(&machine, &error, at));
            assert!(is_named, "{error}");
        }
    }
    // The way the end of a log is read: one hot record of a partition, all others below it lost.
    let newest = script::key(1, 2, APPENDS + 1);
    let mut batch = WriteBatch::new();
    batch.put(Space::Records, newest.clone(), &b"hot"[..]);
    commit(&store, batch).unwrap();
    let snapshot = store.snapshot().unwrap();
    let all = record::range_all(1, 2);
    let (all, direction) = (&all.start[..]..&all.end[..], Direction::Backward);
    let page = snapshot.scan(Space::Records, all, direction, ScanLimit::ONE);
    let page = page.unwrap();
    assert_eq!((page.rows.len(), page.more), (1, true));
    assert_eq!(page.rows[0].key, newest);
    assert!(!is_stopped(&store));
}

#[test]
fn an_error_says_once_what_happened_and_what_to_do() {
    let machine = sealed();
    let [number, gone] = *machine.segments().first_chunk().unwrap();
    machine.files.flip(number, 0, 0xFF);
    machine.files.truncate(number, 100);
    machine.files.remove(gone).unwrap();
    let store = machine.open(&still());
    let snapshot = store.snapshot().unwrap();
    for (number, parts) in [
        (
            number,
            &["check the disk", "check --quarantine", "backup"][..],
        ),
        (
            gone,
            &["missing", "put it back", "check --quarantine", "backup"],
        ),
    ] {
        let key = keys_of(&sealed(), number).pop_first().unwrap();
        let text = snapshot.get(Space::Records, &key).unwrap_err().to_string();
        let file = machine.files.path(number).display().to_string();
        for part in parts.iter().copied().chain([&file[..]]) {
            assert_eq!(text.matches(part).count(), 1, "{part}: {text}");
        }
    }
}

/// Rewriting passes over what it cannot read, says so, and goes on with the rest.
#[test]
fn a_damaged_segment_does_not_keep_others_from_being_rewritten() {
    let (damaged, gone) = (sealed().segments()[0], sealed().segments()[1]);
    let machine = sealed();
    for at in 0..20 {
        machine.files.flip(damaged, at, 0xFF);
    }
    machine.files.remove(gone).unwrap();
    let store = machine.open(&still());
    // Leaves little of each segment, but something: all but one partition goes.
    let mut rows = after(APPENDS);
    for (topic, partition) in (0..script::PARTITIONS).flat_map(|at| [(1, at), (2, at)]) {
        if (topic, partition) != (2, 3) {
            let range = record::range_all(topic, partition);
            rows.retain(|key, _| !range.contains(key));
            let mut batch = WriteBatch::new();
            batch.delete_range(Space::Records, range);
            commit(&store, batch).unwrap();
        }
    }
    assert!(rows.len() > 4);
    let newest = sealed().segments().into_iter().max();
    wait_until("a rewrite of the others", || {
        let trouble = store.trouble();
        let names = |number| {
            let file = machine.files.path(number).display().to_string();
            trouble.as_ref().is_some_and(|text| text.contains(&file))
        };
        let is_rewritten = machine.segments().into_iter().max() > newest;
        is_rewritten && machine.segments().len() < 4 && (names(damaged) || names(gone))
    });
    assert!(!is_stopped(&store));
    let kept: Vec<u64> = machine.segments();
    assert!(kept.contains(&damaged), "{kept:?}");
    for (key, value) in &rows {
        match store.snapshot().unwrap().get(Space::Records, key) {
            Ok(found) => assert_eq!(found.as_ref(), Some(value)),
            Err(error) => {
                let is_known = names(&machine, &error, damaged) || names(&machine, &error, gone);
                assert!(is_known, "{error}");
            }
        }
    }
    // With the last wanted record the trouble goes.
    for topic in [1, 2] {
        let mut batch = WriteBatch::new();
        batch.delete_range(Space::Records, record::range_topic(topic));
        commit(&store, batch).unwrap();
    }
    wait_until("the end of the segments", || machine.segments().is_empty());
    store.seal_now();
    wait_until("the end of the trouble", || store.trouble().is_none());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_flipped_byte_is_named_and_the_rest_is_served(
        which: Index, at: Index, mask in 1u8..=255, while_open: bool,
    ) {
        let machine = sealed();
        let segments = machine.segments();
        let number = segments[which.index(segments.len())];
        let at = at.index(machine.files.content(number).unwrap().len());
        let rows = after(APPENDS);
        if !while_open {
            machine.files.flip(number, at, mask);
        }
        let store = machine.open(&still());
        if while_open {
            script::check(&store, APPENDS, "before");
            machine.files.flip(number, at, mask);
        }
        let snapshot = store.snapshot().unwrap();
        let lost = unreadable(&machine, &*snapshot, &rows, number);
        // The index of an open segment is in memory.
        prop_assert!(while_open || !lost.is_empty());
        scan_around(&machine, &*snapshot, &rows, &lost, number);
        drop(snapshot);
        goes_on(&store, &rows);
    }
}

/// Pages through everything with `limit`; says what came, and in how many pages.
fn pages(snapshot: &dyn Snapshot, direction: Direction, limit: ScanLimit) -> (Vec<Row>, usize) {
    let (mut from, mut to) = (Key::from([0]), Key::from([0xFF; 20]));
    let mut found = Vec::new();
    for count in 1.. {
        let page = snapshot
            .scan(Space::Records, &from..&to, direction, limit)
            .unwrap();
        let last = page.rows.last().map(|row| row.key.clone());
        found.extend(page.rows);
        if !page.more {
            return (found, count);
        }
        match (last.expect("a page promised more"), direction) {
            (last, Direction::Forward) => from = last.push_bytes(&[0]),
            (last, Direction::Backward) => to = last,
        }
    }
    unreachable!("it is endless")
}

/// A hot record in the place of a sealed one is newer, so nothing is missing where only such ones
/// cannot be read; and nothing more is promised than there is.
#[test]
fn what_was_written_anew_is_not_missed_when_the_old_one_cannot_be_read() {
    let machine = Machine::new();
    let store = machine.open(&still());
    let put = |offset: u64, value: &'static [u8]| {
        let mut batch = WriteBatch::new();
        let key = record::range(1, 0, offset..offset + 1).start;
        batch.put(Space::Records, key.clone(), value.to_vec());
        commit(&store, batch).unwrap();
        Row {
            key,
            value: value.into(),
        }
    };
    for offset in 0..3 {
        put(offset, b"old");
        store.seal_now();
    }
    let rows = [0, 1, 2].map(|offset| put(offset, b"new"));
    for number in machine.segments() {
        machine.files.flip(number, 30, 1);
    }
    let snapshot = store.snapshot().unwrap();
    for limit in [ScanLimit::ONE, ScanLimit::bytes(1 << 20)] {
        let (found, count) = pages(&*snapshot, Direction::Forward, limit);
        assert_eq!((&found[..], count), (&rows[..], 3), "{limit:?}");
        let (mut found, count) = pages(&*snapshot, Direction::Backward, limit);
        found.reverse();
        assert_eq!((&found[..], count), (&rows[..], 3), "{limit:?}");
    }
    drop(snapshot);
    // The sealed ones are all of which anything is wrong.
    let mut batch = WriteBatch::new();
    batch.delete(Space::Records, rows[2].key.clone());
    commit(&store, batch).unwrap();
    assert!(!is_stopped(&store));
}
