//! Batches whose effect is known after each of them, and which leave enough unwanted that
//! segments are written, rewritten and unlinked.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{
    Direction, Health, Key, ReadError, RedbStore, ScanLimit, Space, Store, WriteBatch,
};

use crate::machine::{commit, wait_until_or};

pub(crate) type Rows = BTreeMap<Key, Bytes>;

const COUNTER: &[u8] = b"applied";
pub(crate) const PARTITIONS: u32 = 4;

/// Batches that append only; what [`End`] does comes after them.
pub(crate) const APPENDS: u64 = 16;
/// The last batch of all.
pub(crate) const LAST: u64 = APPENDS + 4;

pub(crate) fn key(topic: u32, partition: u32, base_offset: u64) -> Key {
    RecordKey {
        topic,
        partition,
        base_offset,
    }
    .encode()
}

pub(crate) fn value(number: u64, partition: u32) -> Bytes {
    let len = 1_000 + (number * 7919 + u64::from(partition) * 104_729) as usize % 5_000;
    let byte = |at: usize| (at as u64 * 31 + number * 7 + u64::from(partition)) as u8;
    (0..len).map(byte).collect()
}

/// What batch `number` appends: a record batch to each partition of topic 1 or 2.
fn puts(number: u64) -> Rows {
    let topic = 1 + (number % 2) as u32;
    let put = |partition| (key(topic, partition, number), value(number, partition));
    (0..PARTITIONS).map(put).collect()
}

/// What batch `number` removes, before it appends: after the appends, the beginnings of all
/// partitions, and at last a whole topic.
fn removed(number: u64) -> Vec<std::ops::Range<Key>> {
    let beginning = |topic, partition| record::range(topic, partition, 0..APPENDS * 2 / 3);
    let beginnings = |topic| (0..PARTITIONS).map(move |partition| beginning(topic, partition));
    match number {
        n if n == APPENDS + 1 => beginnings(1).collect(),
        n if n == APPENDS + 2 => beginnings(2).collect(),
        LAST => vec![record::range_topic(1)],
        _ => Vec::new(),
    }
}

pub(crate) fn batch(number: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for range in removed(number) {
        batch.delete_range(Space::Records, range);
    }
    for (key, value) in puts(number) {
        batch.put(Space::Records, key, value);
    }
    batch.put(Space::Meta, COUNTER, number.to_be_bytes().to_vec());
    batch
}

/// What a store holds after batches 1 to `number`.
pub(crate) fn after(number: u64) -> Rows {
    let mut rows = Rows::new();
    for number in 1..=number {
        for range in removed(number) {
            rows.retain(|key, _| !range.contains(key));
        }
        rows.extend(puts(number));
    }
    rows
}

/// What a store holds: the number of its last batch, and its record batches.
pub(crate) fn read(store: &RedbStore) -> Result<(u64, Rows), ReadError> {
    let snapshot = store.snapshot()?;
    let counter = snapshot.get(Space::Meta, COUNTER)?;
    let number = counter.map_or(0, |count| u64::from_be_bytes(count[..].try_into().unwrap()));
    let (mut start, end, mut rows) = (Key::from([0]), [0xFF; 20], Rows::new());
    loop {
        let limit = ScanLimit::bytes(20_000);
        let page = snapshot.scan(Space::Records, &start..&end, Direction::Forward, limit)?;
        if let Some(last) = page.rows.last() {
            start = last.key.clone().push_bytes(&[0]);
        }
        for row in page.rows {
            assert!(
                rows.insert(row.key, row.value).is_none(),
                "a row came twice"
            );
        }
        if !page.more {
            return Ok((number, rows));
        }
    }
}

/// The store is in the state after some batch, at least the `least`th. Returns which.
pub(crate) fn check(store: &RedbStore, least: u64, context: &str) -> u64 {
    let (number, rows) = read(store).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(
        number >= least,
        "{context}: {number} found, {least} acknowledged"
    );
    same(&rows, &after(number), context);
    number
}

pub(crate) fn same(found: &Rows, expected: &Rows, context: &str) {
    let keys = |rows: &Rows| -> Vec<Key> { rows.keys().cloned().collect() };
    assert_eq!(keys(found), keys(expected), "{context}");
    assert!(found == expected, "{context}: a value has changed");
}

pub(crate) fn is_stopped(store: &RedbStore) -> bool {
    matches!(*store.health().borrow(), Health::Stopped(_))
}

/// Waits until the sealer has nothing left to do: all is sealed that is to be, the hot file is
/// swept, little is unwanted. A store that stops is not waited for.
pub(crate) fn settle(store: &RedbStore, segment_bytes: u64, given_up: impl Fn() -> bool) {
    store.seal_now();
    store.seal_now();
    let is_at_rest = || {
        let figures = store.stats().storage;
        let data = figures.live_bytes + figures.garbage_bytes;
        let is_clean = figures.garbage_bytes < segment_bytes.max(data / 5 + 1);
        let is_swept = figures.hot_bytes == figures.unsealed_bytes;
        let is_sealed = figures.seal_lag_bytes == 0;
        is_clean && is_swept && is_sealed && store.trouble().is_none()
            || is_stopped(store)
            || given_up()
    };
    wait_until_or(is_at_rest, || {
        let (figures, trouble) = (store.stats().storage, store.trouble());
        format!("the sealer at rest: {figures:?}, {trouble:?}")
    });
}

/// Batches from `first` on, until one is not acknowledged. Returns the last that was.
pub(crate) fn run(store: &RedbStore, first: u64, mut between: impl FnMut()) -> u64 {
    for number in first..=LAST {
        if commit(store, batch(number)).is_err() {
            return number - 1;
        }
        between();
    }
    LAST
}
