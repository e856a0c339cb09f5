//! Partitions: where the log of each starts, and how large it is. Where it ends is not stored:
//! the greatest record key and the batch that stands there say so.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Fields, RowError, VERSION, end_of};
use crate::batch::Key;

const KIND: &str = "partition";

/// Which partition of which topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionKey {
    /// The topic's number.
    pub topic: u32,
    /// The partition within the topic.
    pub partition: u32,
}

impl PartitionKey {
    /// The key's bytes.
    #[must_use]
    pub fn encode(self) -> Key {
        Key::new().push_u32(self.topic).push_u32(self.partition)
    }

    /// The key that `bytes` are.
    ///
    /// # Errors
    /// If they are not 8 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new(KIND, bytes);
        let key = Self {
            topic: fields.u32()?,
            partition: fields.u32()?,
        };
        fields.end()?;
        Ok(key)
    }
}

/// The keys of all partitions of a topic.
#[must_use]
pub fn range_topic(topic: u32) -> Range<Key> {
    let prefix = Key::new().push_u32(topic);
    let end = end_of(&prefix);
    prefix..end
}

/// What is known of a partition besides its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionRow {
    /// The first offset that may still be read.
    pub log_start: u64,
    /// Bytes of the record batches between the log's start and `counted_to`.
    pub bytes: u64,
    /// Where counting stopped when the row was written. It is not written with every batch, which
    /// would make every commit touch one more table; what is behind it is counted on opening.
    pub counted_to: u64,
}

impl PartitionRow {
    /// The row's bytes.
    #[must_use]
    pub fn encode(self) -> Bytes {
        let mut row = BytesMut::with_capacity(25);
        row.put_u8(VERSION);
        row.put_u64(self.log_start);
        row.put_u64(self.bytes);
        row.put_u64(self.counted_to);
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
            log_start: fields.u64()?,
            bytes: fields.u64()?,
            counted_to: fields.u64()?,
        };
        fields.end()?;
        Ok(row)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_round_trip_and_sort(one: (u32, u32), other: (u32, u32)) {
            let key = |(topic, partition)| PartitionKey { topic, partition };
            prop_assert_eq!(PartitionKey::decode(&key(one).encode()), Ok(key(one)));
            prop_assert_eq!(key(one).encode().cmp(&key(other).encode()), one.cmp(&other));
            prop_assert_eq!(
                range_topic(other.0).contains(&key(one).encode()),
                one.0 == other.0
            );
        }

        #[test]
        fn rows_round_trip(log_start: u64, bytes: u64, counted_to: u64) {
            let row = PartitionRow { log_start, bytes, counted_to };
            prop_assert_eq!(PartitionRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn decodes_any_bytes_without_panic(bytes: Vec<u8>) {
            let _ = (PartitionKey::decode(&bytes), PartitionRow::decode(&bytes));
        }
    }

    #[test]
    fn refuses_another_version_and_another_length() {
        let mut row = PartitionRow::default().encode().to_vec();
        row[0] = 9;
        let refused = PartitionRow::decode(&row);
        assert_eq!(
            refused,
            Err(RowError::Version {
                kind: KIND,
                found: 9
            })
        );
        row[0] = VERSION;
        row.push(0);
        assert_eq!(
            PartitionRow::decode(&row),
            Err(RowError::Length {
                kind: KIND,
                len: 26
            })
        );
    }
}
