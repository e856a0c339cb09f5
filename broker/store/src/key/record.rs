//! Record batches: the key is where the first record stands, the value is the batch as the
//! producer sent it. The base offset lives in the key alone, so that a batch is never rewritten.

use std::ops::Range;

use super::{Fields, RowError};
use crate::batch::Key;
use crate::error::ReadError;
use crate::space::Space;
use crate::store::{Direction, ScanLimit, ScanPage, Snapshot};

/// Length of an encoded key, in bytes.
pub const KEY_LEN: usize = 16;

/// Where a record batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The topic's number.
    pub topic: u32,
    /// The partition within the topic.
    pub partition: u32,
    /// The offset of the batch's first record.
    pub base_offset: u64,
}

impl RecordKey {
    /// The key's bytes.
    #[must_use]
    pub fn encode(self) -> Key {
        Key::new()
            .push_u32(self.topic)
            .push_u32(self.partition)
            .push_u64(self.base_offset)
    }

    /// The key that `bytes` are.
    ///
    /// # Errors
    /// If they are not [`KEY_LEN`] bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new("record", bytes);
        let key = Self {
            topic: fields.u32()?,
            partition: fields.u32()?,
            base_offset: fields.u64()?,
        };
        fields.end()?;
        Ok(key)
    }
}

/// The keys of a partition's batches that begin within `offsets`.
#[must_use]
pub fn range(topic: u32, partition: u32, offsets: Range<u64>) -> Range<Key> {
    let key = |base_offset| {
        RecordKey {
            topic,
            partition,
            base_offset,
        }
        .encode()
    };
    key(offsets.start)..key(offsets.end)
}

/// The keys of all of a partition's batches.
#[must_use]
pub fn range_all(topic: u32, partition: u32) -> Range<Key> {
    let all = range(topic, partition, 0..u64::MAX);
    // One byte longer than the greatest key: a batch at the last offset is within.
    all.start..all.end.push_bytes(&[0])
}

/// The keys of all batches of all partitions of a topic.
#[must_use]
pub fn range_topic(topic: u32) -> Range<Key> {
    range_all(topic, 0).start..range_all(topic, u32::MAX).end
}

/// Batches of a partition in order, beginning with the one that `offset` lies in, or the first
/// after it if that one is gone. Whether `offset` lies within the first batch or after its last
/// record is for the caller to see: the store does not know how many records a batch holds.
///
/// # Errors
/// As [`Snapshot::scan`].
pub fn scan_from(
    snapshot: &dyn Snapshot,
    topic: u32,
    partition: u32,
    offset: u64,
    limit: ScanLimit,
) -> Result<ScanPage, ReadError> {
    let all = range_all(topic, partition);
    let at = RecordKey {
        topic,
        partition,
        base_offset: offset,
    }
    .encode();
    let start = snapshot
        .floor_key(Space::Records, &all.start, &at)?
        .unwrap_or(at);
    snapshot.scan(Space::Records, &start..&all.end, Direction::Forward, limit)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_key() -> impl Strategy<Value = RecordKey> {
        (any::<u32>(), any::<u32>(), any::<u64>()).prop_map(|(topic, partition, base_offset)| {
            RecordKey {
                topic,
                partition,
                base_offset,
            }
        })
    }

    proptest! {
        #[test]
        fn round_trips_and_sorts(one in any_key(), other in any_key()) {
            prop_assert_eq!(RecordKey::decode(&one.encode()), Ok(one));
            prop_assert_eq!(one.encode().cmp(&other.encode()), one.cmp(&other));
            prop_assert_eq!(one.encode().len(), KEY_LEN);
        }

        #[test]
        fn ranges_hold_their_own_only(one in any_key(), topic: u32, partition: u32) {
            let key = one.encode();
            prop_assert!(range_all(one.topic, one.partition).contains(&key));
            prop_assert!(range_topic(one.topic).contains(&key));
            let same_topic = one.topic == topic;
            prop_assert_eq!(range_topic(topic).contains(&key), same_topic);
            prop_assert_eq!(
                range_all(topic, partition).contains(&key),
                same_topic && one.partition == partition
            );
        }

        #[test]
        fn decodes_any_bytes_without_panic(bytes: Vec<u8>) {
            prop_assert_eq!(RecordKey::decode(&bytes).is_ok(), bytes.len() == KEY_LEN);
        }
    }
}
