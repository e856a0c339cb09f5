//! Reading a batch: records, keys, values and headers as slices of one blob, without copying.
//!
//! The columns come from the host, which has checked them; still a span that points outside the
//! blob reads as absent instead of trapping, so that no arithmetic here can be wrong.

mod build;

pub use build::BatchBuilder;

use crate::NONE;

/// Integers of `spans` for each record.
const SPANS: usize = 6;
/// Integers of `headers` for each header.
const HEADER: usize = 4;

/// Consecutive records of one partition of one input.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    input: u32,
    partition: u32,
    data: Vec<u8>,
    offsets: Vec<i64>,
    timestamps: Vec<i64>,
    spans: Vec<u32>,
    headers: Vec<u32>,
}

impl Batch {
    /// A batch of the columns that `wit/plugin.wit` describes. For the export macros; tests use
    /// [`BatchBuilder`].
    #[doc(hidden)]
    #[must_use]
    pub fn from_columns(
        (input, partition): (u32, u32),
        data: Vec<u8>,
        offsets: Vec<i64>,
        timestamps: Vec<i64>,
        spans: Vec<u32>,
        headers: Vec<u32>,
    ) -> Self {
        Self {
            input,
            partition,
            data,
            offsets,
            timestamps,
            spans,
            headers,
        }
    }

    /// Which input the records came from: an index into [`Init::inputs`](crate::Init::inputs).
    #[must_use]
    pub fn input(&self) -> u32 {
        self.input
    }

    /// The partition of the input topic; 0 where none has been chosen yet.
    #[must_use]
    pub fn partition(&self) -> u32 {
        self.partition
    }

    /// How many records there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len() / SPANS
    }

    /// Whether there are no records.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of all records together, as far as they were sent.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// The records in order.
    #[inline]
    pub fn records(&self) -> impl ExactSizeIterator<Item = Record<'_>> {
        let spans = self.spans.as_chunks::<SPANS>().0;
        spans.iter().enumerate().map(|(index, span)| Record {
            batch: self,
            span,
            index,
        })
    }

    /// The record at this index; none past the end.
    #[must_use]
    pub fn record(&self, index: usize) -> Option<Record<'_>> {
        let span = self.spans.as_chunks::<SPANS>().0.get(index)?;
        Some(Record {
            batch: self,
            span,
            index,
        })
    }

    /// The bytes of a span; none where the length says absent.
    #[inline]
    fn piece(&self, offset: u32, length: u32) -> Option<&[u8]> {
        if length == NONE {
            return None;
        }
        self.data.get(offset as usize..)?.get(..length as usize)
    }
}

/// One record of a batch. Copying it copies a few words, never the bytes.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    batch: &'a Batch,
    span: &'a [u32; SPANS],
    index: usize,
}

impl<'a> Record<'a> {
    /// Its index in the batch.
    #[inline]
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The key; none if the record has no key, or if [`Needs::KEYS`](crate::Needs::KEYS) is not
    /// set.
    #[inline]
    #[must_use]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.batch.piece(self.span[0], self.span[1])
    }

    /// The value; none if the record is a tombstone, or if
    /// [`Needs::VALUES`](crate::Needs::VALUES) is not set.
    #[inline]
    #[must_use]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.batch.piece(self.span[2], self.span[3])
    }

    /// The offset in its partition; none if it has none yet, or if
    /// [`Needs::OFFSETS`](crate::Needs::OFFSETS) is not set.
    #[inline]
    #[must_use]
    pub fn offset(&self) -> Option<i64> {
        self.batch.offsets.get(self.index).copied()
    }

    /// Milliseconds since 1970-01-01T00:00:00Z; none if
    /// [`Needs::TIMESTAMPS`](crate::Needs::TIMESTAMPS) is not set.
    #[inline]
    #[must_use]
    pub fn timestamp(&self) -> Option<i64> {
        self.batch.timestamps.get(self.index).copied()
    }

    /// The headers in order; none if [`Needs::HEADERS`](crate::Needs::HEADERS) is not set.
    #[inline]
    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> {
        let batch = self.batch;
        let all = batch.headers.as_chunks::<HEADER>().0;
        let (first, count) = (self.span[4] as usize, self.span[5] as usize);
        let mine = all
            .get(first..)
            .and_then(|rest| rest.get(..count))
            .unwrap_or_default();
        mine.iter()
            .map(move |&[name, name_length, value, value_length]| Header {
                // The broker admits only UTF-8 names, so the fallback is never seen.
                name: batch
                    .piece(name, name_length)
                    .and_then(|bytes| str::from_utf8(bytes).ok())
                    .unwrap_or_default(),
                value: batch.piece(value, value_length).unwrap_or_default(),
            })
    }

    /// The value of the first header of this name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers()
            .find(|header| header.name == name)
            .map(|header| header.value)
    }
}

/// One header of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// Its name; several headers of a record may share one.
    pub name: &'a str,
    /// Any bytes.
    pub value: &'a [u8],
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_without_a_key_is_not_one_with_an_empty_key() {
        let batch = BatchBuilder::new()
            .record(None, Some(b"v"))
            .record(Some(b""), None)
            .build();
        let seen: Vec<_> = batch
            .records()
            .map(|record| (record.key(), record.value()))
            .collect();
        assert_eq!(seen, [(None, Some(&b"v"[..])), (Some(&b""[..]), None)]);
    }

    #[test]
    fn columns_that_were_not_sent_read_as_none() {
        let batch = Batch::from_columns(
            (0, 0),
            vec![7],
            vec![],
            vec![],
            vec![0, NONE, 0, 1, 0, 0],
            vec![],
        );
        let record = batch.record(0).expect("one record");
        assert_eq!((record.key(), record.value()), (None, Some(&[7][..])));
        assert_eq!((record.offset(), record.timestamp()), (None, None));
        assert_eq!(record.headers().count(), 0);
        assert!(batch.record(1).is_none());
    }

    /// Key, value, headers, offset and timestamp as a builder is given them.
    type Plain = (
        Option<Vec<u8>>,
        Option<Vec<u8>>,
        Vec<(String, Vec<u8>)>,
        i64,
        i64,
    );

    fn plain() -> impl Strategy<Value = Plain> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..20);
        let headers = prop::collection::vec(("[a-zé]{1,6}", bytes()), 0..4);
        (
            prop::option::of(bytes()),
            prop::option::of(bytes()),
            headers,
            any::<i64>(),
            any::<i64>(),
        )
    }

    proptest! {
        #[test]
        fn what_was_built_is_read_back(records in prop::collection::vec(plain(), 0..30)) {
            let mut builder = BatchBuilder::new();
            for (key, value, headers, offset, timestamp) in &records {
                builder = builder.record(key.as_deref(), value.as_deref()).at(*offset, *timestamp);
                for (name, value) in headers {
                    builder = builder.header(name, value);
                }
            }
            let batch = builder.build();
            prop_assert_eq!(batch.len(), records.len());
            let read: Vec<Plain> = batch
                .records()
                .map(|record| (
                    record.key().map(<[u8]>::to_vec),
                    record.value().map(<[u8]>::to_vec),
                    record.headers().map(|h| (h.name.to_owned(), h.value.to_vec())).collect(),
                    record.offset().expect("given"),
                    record.timestamp().expect("given"),
                ))
                .collect();
            prop_assert_eq!(read, records);
        }

        #[test]
        fn no_columns_make_reading_panic(
            data in prop::collection::vec(any::<u8>(), 0..40),
            spans in prop::collection::vec(prop_oneof![0u32..50, any::<u32>(), Just(NONE)], 0..40),
            headers in prop::collection::vec(prop_oneof![0u32..50, any::<u32>()], 0..20),
        ) {
            let batch = Batch::from_columns((0, 0), data, vec![], vec![], spans, headers);
            for record in batch.records() {
                let seen = record.headers().map(|h| h.name.len() + h.value.len()).max();
                prop_assert!(seen.unwrap_or(0) <= 2 * batch.bytes());
                prop_assert!(record.key().map_or(0, <[u8]>::len) <= batch.bytes());
                prop_assert!(record.value().map_or(0, <[u8]>::len) <= batch.bytes());
            }
        }
    }
}
