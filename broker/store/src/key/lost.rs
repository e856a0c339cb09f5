//! Ranges of offsets that were lost with a damaged segment and given up: readers pass over them.
//!
//! They stand in the partitions' space, behind the row of their partition, whose key theirs begin
//! with: what removes a topic removes them.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Fields, RowError, VERSION};
use crate::batch::Key;
use crate::error::ReadError;
use crate::space::Space;
use crate::store::{Direction, ScanLimit, Snapshot};

const KIND: &str = "lost range";

/// Length of an encoded key, in bytes; that of a partition is shorter.
pub const KEY_LEN: usize = 16;

/// Rows that are read at once.
const PAGE_ROWS: usize = 1000;

/// Where a lost range begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LostKey {
    /// The topic's number.
    pub topic: u32,
    /// The partition within the topic.
    pub partition: u32,
    /// The first offset that is lost.
    pub start: u64,
}

impl LostKey {
    /// The key's bytes.
    #[must_use]
    pub fn encode(self) -> Key {
        Key::new()
            .push_u32(self.topic)
            .push_u32(self.partition)
            .push_u64(self.start)
    }

    /// The key that `bytes` are.
    ///
    /// # Errors
    /// If they are not [`KEY_LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new(KIND, bytes);
        let key = Self {
            topic: fields.u32()?,
            partition: fields.u32()?,
            start: fields.u64()?,
        };
        fields.end()?;
        Ok(key)
    }
}

/// What is known of a lost range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRow {
    /// Behind the last offset that is lost; greater than the first.
    pub end: u64,
    /// The segment that it was lost with.
    pub segment: u64,
}

impl LostRow {
    /// The row's bytes.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let mut row = BytesMut::with_capacity(17);
        row.put_u8(VERSION);
        row.put_u64(self.end);
        row.put_u64(self.segment);
        row.freeze()
    }

    /// The row that `bytes` are.
    ///
    /// # Errors
    /// If they are of another version or length.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new(KIND, bytes);
        fields.version()?;
        let row = Self {
            end: fields.u64()?,
            segment: fields.u64()?,
        };
        fields.end()?;
        Ok(row)
    }
}

/// The keys of a partition's lost ranges that begin within `offsets`.
#[must_use]
pub fn range(topic: u32, partition: u32, offsets: Range<u64>) -> Range<Key> {
    let key = |start| {
        LostKey {
            topic,
            partition,
            start,
        }
        .encode()
    };
    key(offsets.start)..key(offsets.end)
}

/// A partition's lost ranges, in order, each with its row. Blocking.
///
/// # Errors
/// If they cannot be read, or a row makes no sense.
pub fn of_partition(
    snapshot: &dyn Snapshot,
    topic: u32,
    partition: u32,
) -> Result<Vec<(Range<u64>, LostRow)>, ReadError> {
    let Range { mut start, end } = range(topic, partition, 0..u64::MAX);
    let mut found = Vec::new();
    loop {
        let (rows, range) = (ScanLimit::rows(PAGE_ROWS), &start[..]..&end[..]);
        let page = snapshot.scan(Space::Partitions, range, Direction::Forward, rows)?;
        for row in &page.rows {
            let decoded = LostKey::decode(&row.key)
                .and_then(|key| LostRow::decode(&row.value).map(|row| (key.start..row.end, row)));
            found.push(decoded.map_err(|why| ReadError::Corrupt {
                file: "the shard's store".into(),
                space: Space::Partitions,
                key: row.key.to_vec(),
                detail: why.to_string(),
            })?);
        }
        match page.rows.last() {
            Some(last) if page.more => start = last.key.clone().push_bytes(&[0]),
            _ => return Ok(found),
        }
    }
}

/// If `offset` is lost, where what follows begins. Blocking.
///
/// # Errors
/// As [`of_partition`].
pub fn end_of_loss(
    snapshot: &dyn Snapshot,
    topic: u32,
    partition: u32,
    offset: u64,
) -> Result<Option<u64>, ReadError> {
    let mut at = offset;
    for (range, _) in of_partition(snapshot, topic, partition)? {
        if range.contains(&at) {
            at = range.end;
        }
    }
    Ok((at > offset).then_some(at))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::key::partition::{self, PartitionKey};
    use crate::{MemoryStore, Store, WriteBatch};

    proptest! {
        #[test]
        fn keys_round_trip_and_stand_behind_their_partition(one: (u32, u32, u64)) {
            let (topic, partition, start) = one;
            let key = LostKey { topic, partition, start };
            prop_assert_eq!(LostKey::decode(&key.encode()), Ok(key));
            let row = PartitionKey { topic, partition }.encode();
            prop_assert!(row < key.encode() && PartitionKey::decode(&key.encode()).is_err());
            prop_assert!(partition::range_topic(topic).contains(&key.encode()));
        }

        #[test]
        fn rows_round_trip(end: u64, segment: u64) {
            let row = LostRow { end, segment };
            prop_assert_eq!(LostRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn decodes_any_bytes_without_panic(bytes: Vec<u8>) {
            let _ = (LostKey::decode(&bytes), LostRow::decode(&bytes));
        }
    }

    #[test]
    fn a_loss_ends_where_nothing_more_is_lost() {
        let store = MemoryStore::new().unwrap();
        let mut batch = WriteBatch::new();
        for (partition, start, end) in [(1, 10, 20), (1, 20, 25), (1, 30, 40), (2, 0, 5)] {
            let key = LostKey {
                topic: 7,
                partition,
                start,
            };
            let row = LostRow { end, segment: 3 };
            batch.put(Space::Partitions, key.encode(), row.encode());
        }
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        runtime.block_on(store.commit(batch)).unwrap();
        let snapshot = store.snapshot().unwrap();
        for (offset, end) in [
            (0, None),
            (9, None),
            (10, Some(25)),
            (22, Some(25)),
            (25, None),
            (39, Some(40)),
        ] {
            assert_eq!(
                end_of_loss(&*snapshot, 7, 1, offset).unwrap(),
                end,
                "{offset}"
            );
        }
    }
}
