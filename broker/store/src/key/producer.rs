//! Producers: what the next batch of each is compared with, so that a retry is answered with the
//! outcome of the first attempt instead of being stored again.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};

use super::{Fields, RowError, VERSION, end_of};
use crate::batch::Key;

const KIND: &str = "producer";
const OUTCOME_LEN: usize = 4 + 8 + 4;

/// Which producer of which topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerKey {
    /// The topic's number.
    pub topic: u32,
    /// The producer's id.
    pub producer: u64,
}

impl ProducerKey {
    /// The key's bytes.
    #[must_use]
    pub fn encode(self) -> Key {
        Key::new().push_u32(self.topic).push_u64(self.producer)
    }

    /// The key that `bytes` are.
    ///
    /// # Errors
    /// If they are not 12 bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new(KIND, bytes);
        let key = Self {
            topic: fields.u32()?,
            producer: fields.u64()?,
        };
        fields.end()?;
        Ok(key)
    }
}

/// The keys of all producers of a topic.
#[must_use]
pub fn range_topic(topic: u32) -> Range<Key> {
    let prefix = Key::new().push_u32(topic);
    let end = end_of(&prefix);
    prefix..end
}

/// What became of the part of a batch that went to one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The partition.
    pub partition: u32,
    /// The offset of the first record there.
    pub base_offset: u64,
    /// How many records went there.
    pub count: u32,
}

/// What is remembered of a producer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProducerRow {
    /// The producer's epoch; batches of an older one are refused.
    pub epoch: u16,
    /// The sequence of its last stored batch.
    pub last_sequence: u64,
    /// When that was, in milliseconds since the Unix epoch; who is silent for long is forgotten.
    pub stored_ms: u64,
    /// Where that batch went.
    pub last_outcome: Vec<Outcome>,
}

impl ProducerRow {
    /// The row's bytes.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut row = BytesMut::with_capacity(19 + self.last_outcome.len() * OUTCOME_LEN);
        row.put_u8(VERSION);
        row.put_u16(self.epoch);
        row.put_u64(self.last_sequence);
        row.put_u64(self.stored_ms);
        for outcome in &self.last_outcome {
            row.put_u32(outcome.partition);
            row.put_u64(outcome.base_offset);
            row.put_u32(outcome.count);
        }
        row.freeze()
    }

    /// The row that `bytes` are.
    ///
    /// # Errors
    /// If they are of another version or length.
    pub fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut fields = Fields::new(KIND, bytes);
        fields.version()?;
        let (epoch, last_sequence) = (fields.u16()?, fields.u64()?);
        let stored_ms = fields.u64()?;
        let mut last_outcome = Vec::with_capacity(fields.rest.len() / OUTCOME_LEN);
        while !fields.rest.is_empty() {
            last_outcome.push(Outcome {
                partition: fields.u32()?,
                base_offset: fields.u64()?,
                count: fields.u32()?,
            });
        }
        Ok(Self {
            epoch,
            last_sequence,
            stored_ms,
            last_outcome,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keys_round_trip_and_sort(one: (u32, u64), other: (u32, u64)) {
            let key = |(topic, producer)| ProducerKey { topic, producer };
            prop_assert_eq!(ProducerKey::decode(&key(one).encode()), Ok(key(one)));
            prop_assert_eq!(key(one).encode().cmp(&key(other).encode()), one.cmp(&other));
            prop_assert_eq!(
                range_topic(other.0).contains(&key(one).encode()),
                one.0 == other.0
            );
        }

        #[test]
        fn rows_round_trip(epoch: u16, last_sequence: u64, stored_ms: u64, outcomes: Vec<(u32, u64, u32)>) {
            let outcome = |(partition, base_offset, count)| Outcome { partition, base_offset, count };
            let last_outcome = outcomes.into_iter().map(outcome).collect();
            let row = ProducerRow { epoch, last_sequence, stored_ms, last_outcome };
            prop_assert_eq!(ProducerRow::decode(&row.encode()), Ok(row));
        }

        #[test]
        fn decodes_any_bytes_without_panic(bytes: Vec<u8>) {
            let _ = ProducerKey::decode(&bytes);
            let versioned = [&[VERSION], &bytes[..]].concat();
            let _ = (ProducerRow::decode(&bytes), ProducerRow::decode(&versioned));
        }
    }

    #[test]
    fn refuses_an_outcome_that_is_cut_off() {
        let last_outcome = vec![Outcome {
            partition: 1,
            base_offset: 2,
            count: 3,
        }];
        let row = ProducerRow {
            last_outcome,
            ..ProducerRow::default()
        }
        .encode();
        let refused = ProducerRow::decode(&row[..row.len() - 1]);
        assert_eq!(
            refused,
            Err(RowError::Length {
                kind: KIND,
                len: row.len() - 1
            })
        );
    }
}
