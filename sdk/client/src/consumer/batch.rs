//! A batch as it comes out, and its records one by one.

use bytes::Bytes;
use millstream_proto::batch::Body;
use millstream_proto::{Batch, BatchError, Offset, PartitionId, RecordRef};

use crate::record::Message;

/// A batch of records from one partition. Its checksum and every length in it
/// were checked.
#[derive(Clone, Debug)]
pub struct ConsumedBatch {
    partition: PartitionId,
    from: Offset,
    next: Offset,
    end: Offset,
    body: Body,
}

impl ConsumedBatch {
    /// Checks the bytes of a batch. Its records before `from` are not shown.
    pub(crate) fn check(
        bytes: Bytes,
        partition: PartitionId,
        from: Offset,
        next: Offset,
        end: Offset,
    ) -> Result<Self, BatchError> {
        let body = Batch::check(bytes)?.body()?;
        // Once here, so that reading the records cannot fail.
        body.view()?;
        Ok(Self {
            partition,
            from,
            next,
            end,
            body,
        })
    }

    /// The same batch from `from` on.
    pub(crate) fn from(mut self, from: Offset) -> Self {
        self.from = self.from.max(from);
        self
    }

    /// Whether it has a record at `offset` or behind.
    pub(crate) fn reaches(&self, offset: Offset) -> bool {
        self.records().any(|r| r.offset >= offset)
    }

    /// Where it comes from.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// The offset to go on with after this batch: what a consumer commits.
    #[must_use]
    pub fn next(&self) -> Offset {
        self.next
    }

    /// The partition's durable end when the broker sent the batch.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.end
    }

    /// The records in order, borrowed from the batch.
    pub fn records(&self) -> impl Iterator<Item = RecordRef<'_>> {
        let from = self.from;
        let view = self
            .body
            .view()
            .expect("the batch was checked when it came");
        view.records().skip_while(move |r| r.offset < from)
    }

    /// Records in it, those before the consumer's position included.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.body.header().count
    }

    /// The records as messages that share the batch's bytes.
    #[must_use]
    pub fn messages(&self) -> Vec<Message> {
        let bytes = self.body.bytes();
        let share = |slice: &[u8]| bytes.slice_ref(slice);
        let message = |r: RecordRef<'_>| Message {
            partition: self.partition,
            offset: r.offset,
            timestamp: r.timestamp,
            key: r.key.map(share),
            value: r.value.map(share),
            headers: r
                .headers
                .map(|(name, value)| (name.to_owned(), share(value)))
                .collect(),
        };
        self.records().map(message).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::Codec;
    use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};

    use super::*;

    fn encoded(codec: Codec) -> Bytes {
        let mut builder = BatchBuilder::new(1 << 16);
        for i in 0..5u8 {
            let value = [i; 3];
            let record = NewRecord {
                key: (i % 2 == 0).then_some(b"key".as_slice()),
                value: (i != 3).then_some(&value),
                headers: &[("unit", b"Mw")],
                timestamp: i64::from(i),
            };
            builder.push(&record).unwrap();
        }
        builder
            .build(codec, Stamp::default())
            .unwrap()
            .bytes()
            .clone()
    }

    fn check(codec: Codec, from: u64) -> ConsumedBatch {
        let at = |n| Offset(n);
        ConsumedBatch::check(encoded(codec), PartitionId(2), at(from), at(5), at(9)).unwrap()
    }

    #[test]
    fn records_before_the_position_do_not_show() {
        for codec in [Codec::None, Codec::Lz4, Codec::Zstd] {
            let batch = check(codec, 2);
            let offsets: Vec<u64> = batch.records().map(|r| r.offset.0).collect();
            assert_eq!(offsets, [2, 3, 4]);
            let later: Vec<u64> = batch
                .from(Offset(4))
                .records()
                .map(|r| r.offset.0)
                .collect();
            assert_eq!(later, [4]);
        }
    }

    #[test]
    fn messages_carry_everything_and_share_the_batch() {
        let batch = check(Codec::None, 0);
        let messages = batch.messages();
        assert_eq!(messages.len(), 5);
        assert_eq!(messages[3].value, None);
        assert_eq!(messages[1].key, None);
        let second = &messages[2];
        assert_eq!(second.value.as_deref(), Some([2; 3].as_slice()));
        assert_eq!(
            second.headers,
            [("unit".to_owned(), Bytes::from_static(b"Mw"))]
        );
        assert_eq!((second.timestamp, second.partition), (2, PartitionId(2)));
        let blob = batch.body.bytes().as_ptr_range();
        assert!(blob.contains(&second.value.as_ref().unwrap().as_ptr()));
    }

    #[test]
    fn a_flipped_bit_does_not_pass() {
        let mut bytes = encoded(Codec::None).to_vec();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let e = ConsumedBatch::check(
            bytes.into(),
            PartitionId(0),
            Offset(0),
            Offset(5),
            Offset(5),
        );
        assert!(matches!(e, Err(BatchError::BadChecksum { .. })));
    }
}
