//! A stream of batches whose effect on a store is known after each of them, and the opening of
//! stores on disks that fail.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;
use millstream_store::fault::FaultDisk;
use millstream_store::key::partition::{PartitionKey, PartitionRow};
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{
    CommitError, Committed, Direction, OpenError, RedbConfig, RedbStore, ScanLimit, Space, Store,
    WriteBatch,
};

/// Batches that stay; older ones are deleted by the batch that comes.
const KEPT: u64 = 6;
const TOPIC: u32 = 7;
const PARTITIONS: u64 = 3;
const COUNTER: &[u8] = b"applied";

pub(crate) fn open(disk: &FaultDisk) -> RedbStore {
    try_open(disk).unwrap()
}

pub(crate) fn try_open(disk: &FaultDisk) -> Result<RedbStore, OpenError> {
    let config = RedbConfig {
        cache_bytes: 4 << 20,
        ..RedbConfig::default()
    };
    RedbStore::open_with_backend(disk.backend(), "disk.redb", &config)
}

#[allow(dead_code, reason = "not every test needs it")]
pub(crate) fn open_with_cache(disk: &FaultDisk, cache_bytes: usize) -> RedbStore {
    let config = RedbConfig {
        cache_bytes,
        ..RedbConfig::default()
    };
    RedbStore::open_with_backend(disk.backend(), "disk.redb", &config).unwrap()
}

pub(crate) fn commit(store: &RedbStore, batch: WriteBatch) -> Result<Committed, CommitError> {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(store.commit(batch))
}

fn record_key(number: u64) -> RecordKey {
    let partition = u32::try_from(number % PARTITIONS).unwrap();
    RecordKey {
        topic: TOPIC,
        partition,
        base_offset: number,
    }
}

/// A record batch as far as the store is concerned: it carries its own checksum over all but its
/// first 16 bytes, as batches do. Sizes vary from one page to several.
fn record_value(number: u64) -> Bytes {
    let len = 100 + usize::try_from(number * 7919 % 30_000).unwrap();
    let mut value: Vec<u8> = (0..len).map(|at| (at as u64 * 31 + number) as u8).collect();
    let crc = crc32c::crc32c(&value[16..]).to_le_bytes();
    value[8..12].copy_from_slice(&crc);
    value.into()
}

fn intact(value: &[u8]) -> bool {
    value.len() >= 16 && value[8..12] == crc32c::crc32c(&value[16..]).to_le_bytes()
}

/// What batch `number` does: a record, the row of its partition, a counter, and the deletion of
/// the record that has become too old.
pub(crate) fn fill(batch: &mut WriteBatch, number: u64) {
    let key = record_key(number);
    batch.put(Space::Records, key.encode(), record_value(number));
    let partition = PartitionKey {
        topic: key.topic,
        partition: key.partition,
    };
    let row = PartitionRow {
        log_start: number,
        bytes: number * 2,
        ..PartitionRow::default()
    };
    batch.put(Space::Partitions, partition.encode(), row.encode());
    batch.put(Space::Meta, COUNTER, number.to_be_bytes().to_vec());
    if number > KEPT {
        let old = record_key(number - KEPT);
        let range = record::range(TOPIC, old.partition, 0..old.base_offset + 1);
        batch.delete_range(Space::Records, range);
    }
}

pub(crate) fn batch(number: u64) -> WriteBatch {
    let mut batch = WriteBatch::new();
    fill(&mut batch, number);
    batch
}

/// Everything that a store holds.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) applied: u64,
    rows: BTreeMap<(Space, Vec<u8>), Bytes>,
}

/// Without the values: a failing test would print megabytes.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = self.rows.iter().map(|((space, key), value)| {
            format!("{space} {} ({} B)", key.escape_ascii(), value.len())
        });
        write!(
            f,
            "{} applied: {:?}",
            self.applied,
            rows.collect::<Vec<_>>()
        )
    }
}

impl State {
    /// What a store holds after batches 1 to `number`.
    pub(crate) fn after(number: u64) -> Self {
        let mut rows = BTreeMap::new();
        for number in 1..=number {
            let key = record_key(number);
            let partition = PartitionKey {
                topic: key.topic,
                partition: key.partition,
            };
            let row = PartitionRow {
                log_start: number,
                bytes: number * 2,
                ..PartitionRow::default()
            };
            rows.insert(
                (Space::Records, key.encode().to_vec()),
                record_value(number),
            );
            rows.insert(
                (Space::Partitions, partition.encode().to_vec()),
                row.encode(),
            );
            let counter = number.to_be_bytes().to_vec().into();
            rows.insert((Space::Meta, COUNTER.to_vec()), counter);
            if number > KEPT {
                rows.remove(&(Space::Records, record_key(number - KEPT).encode().to_vec()));
            }
        }
        Self {
            applied: number,
            rows,
        }
    }

    /// What `store` holds; an error if it reports one, or serves a record batch whose own
    /// checksum is wrong.
    pub(crate) fn read(store: &RedbStore) -> Result<Self, String> {
        let mut state = Self::default();
        let snapshot = store.snapshot().map_err(|error| error.to_string())?;
        for space in Space::ALL {
            let limit = ScanLimit::rows(usize::MAX);
            let page = snapshot
                .scan(space, &[0]..&[0xFF; 64], Direction::Forward, limit)
                .map_err(|error| error.to_string())?;
            for row in page.rows {
                if space == Space::Records && !intact(&row.value) {
                    return Err(format!("a record batch at {:?} is damaged", row.key));
                }
                state.rows.insert((space, row.key.to_vec()), row.value);
            }
        }
        if let Some(counter) = state.rows.get(&(Space::Meta, COUNTER.to_vec())) {
            state.applied = u64::from_be_bytes(counter[..].try_into().unwrap());
        }
        Ok(state)
    }

    /// Some row of a space: its key and its value.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn row_in(&self, space: Space) -> (Vec<u8>, Bytes) {
        let mut rows = self
            .rows
            .iter()
            .filter(|((row_space, _), _)| *row_space == space);
        rows.next_back()
            .map(|((_, key), value)| (key.clone(), value.clone()))
            .unwrap()
    }

    /// Whether every row of this state is one that the batches up to `number` wrote, under the
    /// key that they wrote it to. Rows may be missing.
    #[allow(dead_code, reason = "not every test needs it")]
    pub(crate) fn is_within(&self, number: u64) -> bool {
        let whole = Self::after(number);
        self.rows
            .iter()
            .all(|(key, value)| whole.rows.get(key) == Some(value))
    }
}
