//! Committed offsets: how far each named consumer has come in each partition.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Fields, RowError, VERSION, end_of};
use crate::batch::Key;

const KIND: &str = "consumer offset";

/// Which consumer, in which partition of which topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OffsetKey<'a> {
    /// The topic's number.
    pub topic: u32,
    /// The partition within the topic.
    pub partition: u32,
    /// The consumer's name, as bytes.
    pub consumer: &'a [u8],
}

impl<'a> OffsetKey<'a> {
    /// The key's bytes.
    #[must_use]
    pub fn encode(self) -> Key {
        Key::new()
            .push_u32(self.topic)
            .push_u32(self.partition)
            .push_bytes(self.consumer)
    }

    /// The key that `bytes` are.
    ///
    /// # Errors
    /// If they are shorter than 8 bytes.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new(KIND, bytes);
        let (topic, partition) = (fields.u32()?, fields.u32()?);
        Ok(Self {
            topic,
            partition,
            consumer: fields.rest,
        })
    }
}

/// The keys of all consumers of a partition.
#[must_use]
pub fn range_partition(topic: u32, partition: u32) -> Range<Key> {
    let prefix = Key::new().push_u32(topic).push_u32(partition);
    let end = end_of(&prefix);
    prefix..end
}

/// The keys of all consumers of all partitions of a topic.
#[must_use]
pub fn range_topic(topic: u32) -> Range<Key> {
    let prefix = Key::new().push_u32(topic);
    let end = end_of(&prefix);
    prefix..end
}

/// How far a consumer has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OffsetRow {
    /// The next offset it wants.
    pub offset: u64,
    /// Whatever it wishes to remember beside it.
    pub metadata: String,
}

impl OffsetRow {
    /// The row's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut row = BytesMut::with_capacity(9 + self.metadata.len());
        row.put_u8(VERSION);
        row.put_u64(self.offset);
        row.put_slice(self.metadata.as_bytes());
        row.freeze()
    }

    /// The row that `bytes` are.
    ///
    /// # Errors
    /// If they are of another version, too short, or end in something that is not text.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new(KIND, bytes);
        fields.version()?;
        let offset = fields.u64()?;
        let metadata = str::from_utf8(fields.rest)
            .map_err(|_| RowError::Text { kind: KIND })?
            .to_owned();
        Ok(Self { offset, metadata })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_round_trip_and_sort(one: (u32, u32, Vec<u8>), other: (u32, u32, Vec<u8>)) {
            fn key(parts: &(u32, u32, Vec<u8>)) -> OffsetKey<'_> {
                OffsetKey { topic: parts.0, partition: parts.1, consumer: &parts.2 }
            }
            let encoded = key(&one).encode();
            prop_assert_eq!(OffsetKey::decode(&encoded), Ok(key(&one)));
            prop_assert_eq!(key(&one).encode().cmp(&key(&other).encode()), one.cmp(&other));
            let within = range_partition(other.0, other.1).contains(&key(&one).encode());
            prop_assert_eq!(within, (one.0, one.1) == (other.0, other.1));
            prop_assert!(range_topic(one.0).contains(&key(&one).encode()));
        }

        #[test]
        fn rows_round_trip(offset: u64, metadata: String) {
            let row = OffsetRow { offset, metadata };
            prop_assert_eq!(OffsetRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn decodes_any_bytes_without_panic(bytes: Vec<u8>) {
            let versioned = [&[VERSION], &bytes[..]].concat();
            let _ = (OffsetKey::decode(&bytes), OffsetRow::decode(&bytes));
            let _ = OffsetRow::decode(&versioned);
        }
    }

    #[test]
    fn the_last_partition_has_an_end_too() {
        let key = OffsetKey {
            topic: u32::MAX,
            partition: u32::MAX,
            consumer: b"\xFFz",
        };
        assert!(range_partition(u32::MAX, u32::MAX).contains(&key.encode()));
    }

    #[test]
    fn refuses_metadata_that_is_not_text() {
        let mut row = OffsetRow {
            offset: 1,
            metadata: "x".into(),
        }
        .encode()
        .to_vec();
        row[9] = 0xFF;
        assert_eq!(OffsetRow::decode(&row), Err(RowError::Text { kind: KIND }));
    }
}
