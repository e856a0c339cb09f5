//! A borrowed view of a plain body: checked once, then iterated without copying.

use super::{ABSENT, BatchError, BatchHeader};
use crate::limits::{MAX_RECORD_BYTES, MAX_RECORD_HEADERS};
use crate::offset::Offset;

/// A body whose every length was checked against the blob.
#[derive(Clone, Copy, Debug)]
pub struct BatchView<'a> {
    pub(super) base_offset: Offset,
    pub(super) base_timestamp: i64,
    pub(super) count: usize,
    pub(super) blob: &'a [u8],
    pub(super) value_lens: &'a [[u8; 4]],
    pub(super) key_lens: &'a [[u8; 4]],
    pub(super) timestamp_deltas: &'a [[u8; 4]],
    pub(super) offset_deltas: &'a [[u8; 4]],
    pub(super) header_counts: &'a [[u8; 2]],
    pub(super) name_lens: &'a [[u8; 2]],
    pub(super) header_value_lens: &'a [[u8; 4]],
}

/// Cuts `count` items of `N` bytes from the front; the caller has checked the length.
fn cut<'a, const N: usize>(rest: &mut &'a [u8], count: usize) -> &'a [[u8; N]] {
    let (column, tail) = rest.split_at(count * N);
    *rest = tail;
    column.as_chunks::<N>().0
}

/// A length column's entry as a number of bytes: absent counts as none.
fn present(len: [u8; 4]) -> u64 {
    match u32::from_le_bytes(len) {
        ABSENT => 0,
        n => u64::from(n),
    }
}

impl<'a> BatchView<'a> {
    pub(super) fn new(header: &BatchHeader, body: &'a [u8]) -> Result<Self, BatchError> {
        if body.len() != header.plain_len() {
            return Err(BatchError::Truncated {
                needed: header.plain_len(),
                found: body.len(),
            });
        }
        let (blob, mut rest) = body.split_at(header.blob_len as usize);
        let count = header.count as usize;
        let flags = header.flags;
        let optional = |on: bool, n: usize| if on { n } else { 0 };
        let headers = header.header_count as usize;
        let view = Self {
            base_offset: header.base_offset,
            base_timestamp: header.base_timestamp,
            count,
            blob,
            value_lens: cut(&mut rest, count),
            key_lens: cut(&mut rest, optional(flags.keys, count)),
            timestamp_deltas: cut(&mut rest, optional(flags.timestamps, count)),
            offset_deltas: cut(&mut rest, optional(flags.offset_deltas, count)),
            header_counts: cut(&mut rest, optional(flags.headers, count)),
            name_lens: cut(&mut rest, headers),
            header_value_lens: cut(&mut rest, headers),
        };
        view.check()?;
        Ok(view)
    }

    /// The blob is filled exactly, no record is over the limit, header counts
    /// add up, header names are UTF-8 and offsets do not fall.
    fn check(&self) -> Result<(), BatchError> {
        let pieces = [self.value_lens, self.key_lens, self.header_value_lens];
        let mut total: u64 = pieces
            .iter()
            .flat_map(|c| c.iter())
            .map(|l| present(*l))
            .sum();
        total += self
            .name_lens
            .iter()
            .map(|l| u64::from(u16::from_le_bytes(*l)))
            .sum::<u64>();
        if total != self.blob.len() as u64 {
            return Err(BatchError::Malformed(
                "the lengths do not add up to the blob",
            ));
        }
        if self
            .header_value_lens
            .iter()
            .any(|l| u32::from_le_bytes(*l) == ABSENT)
        {
            return Err(BatchError::Malformed("a record header has no value"));
        }
        let counts = || {
            self.header_counts
                .iter()
                .map(|c| usize::from(u16::from_le_bytes(*c)))
        };
        if counts().sum::<usize>() != self.name_lens.len() {
            return Err(BatchError::Malformed("the header counts do not add up"));
        }
        if counts().any(|n| n > MAX_RECORD_HEADERS) {
            return Err(BatchError::Malformed("a record has too many headers"));
        }
        let deltas = self.offset_deltas.iter().map(|d| u32::from_le_bytes(*d));
        if !deltas.is_sorted() {
            return Err(BatchError::Malformed("the offsets fall"));
        }
        // Only a blob over the limit can hold a record over the limit.
        if self.blob.len() > MAX_RECORD_BYTES {
            self.check_record_sizes()?;
        }
        if !self.name_lens.is_empty() && !self.names_are_utf8() {
            return Err(BatchError::Malformed("a record header's name is not UTF-8"));
        }
        Ok(())
    }

    fn check_record_sizes(&self) -> Result<(), BatchError> {
        for (index, record) in (0..).zip(self.records()) {
            if record.size > MAX_RECORD_BYTES {
                return Err(BatchError::RecordTooLarge {
                    index,
                    len: record.size,
                    max: MAX_RECORD_BYTES,
                });
            }
        }
        Ok(())
    }

    fn names_are_utf8(&self) -> bool {
        self.records()
            .flat_map(|r| r.headers.raw())
            .all(|(name, _)| str::from_utf8(name).is_ok())
    }

    /// Number of records.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no records; never so for a batch that was checked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The raw bytes that spans point into.
    #[must_use]
    pub fn blob(&self) -> &'a [u8] {
        self.blob
    }

    /// The records in order.
    #[must_use]
    pub fn records(&self) -> Records<'a> {
        Records {
            view: *self,
            index: 0,
            at: 0,
            header: 0,
        }
    }
}

/// Iterator over the records of a [`BatchView`].
#[derive(Clone, Debug)]
pub struct Records<'a> {
    view: BatchView<'a>,
    index: usize,
    at: usize,
    header: usize,
}

impl<'a> Records<'a> {
    fn piece(&mut self, len: u32) -> Option<&'a [u8]> {
        if len == ABSENT {
            return None;
        }
        let end = self.at + len as usize;
        let piece = &self.view.blob[self.at..end];
        self.at = end;
        Some(piece)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = RecordRef<'a>;

    fn next(&mut self) -> Option<RecordRef<'a>> {
        let (v, i) = (self.view, self.index);
        let value_len = u32::from_le_bytes(*v.value_lens.get(i)?);
        let key_len = v.key_lens.get(i).map_or(ABSENT, |l| u32::from_le_bytes(*l));
        let start = self.at;
        let key = self.piece(key_len);
        let value = self.piece(value_len);
        let n = v
            .header_counts
            .get(i)
            .map_or(0, |c| usize::from(u16::from_le_bytes(*c)));
        let range = self.header..self.header + n;
        let names = &v.name_lens[range.clone()];
        let values = &v.header_value_lens[range];
        let headers_len: usize = names
            .iter()
            .map(|l| usize::from(u16::from_le_bytes(*l)))
            .sum::<usize>()
            + values.iter().map(|l| present(*l) as usize).sum::<usize>();
        let headers = HeaderIter {
            names,
            values,
            rest: &v.blob[self.at..self.at + headers_len],
        };
        self.at += headers_len;
        self.header += n;
        self.index += 1;
        let delta = v
            .timestamp_deltas
            .get(i)
            .map_or(0, |d| i64::from(i32::from_le_bytes(*d)));
        let step = v
            .offset_deltas
            .get(i)
            .map_or(i as u64, |d| u64::from(u32::from_le_bytes(*d)));
        Some(RecordRef {
            offset: v.base_offset.plus(step),
            timestamp: v.base_timestamp.saturating_add(delta),
            key,
            value,
            headers,
            size: self.at - start,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = self.view.count - self.index;
        (n, Some(n))
    }
}

impl ExactSizeIterator for Records<'_> {}

/// One record, borrowed from its batch.
#[derive(Clone, Debug)]
pub struct RecordRef<'a> {
    /// Position in the partition, counted from the batch's base offset.
    pub offset: Offset,
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// The headers in the producer's order.
    pub headers: HeaderIter<'a>,
    /// Bytes of key, value and headers together.
    pub size: usize,
}

/// The headers of one record: name and value.
#[derive(Clone, Debug, Default)]
pub struct HeaderIter<'a> {
    names: &'a [[u8; 2]],
    values: &'a [[u8; 4]],
    rest: &'a [u8],
}

impl<'a> HeaderIter<'a> {
    fn raw(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = self.rest;
        self.names.iter().zip(self.values).map(move |(n, v)| {
            let (name, tail) = rest.split_at(usize::from(u16::from_le_bytes(*n)));
            let (value, tail) = tail.split_at(present(*v) as usize);
            rest = tail;
            (name, value)
        })
    }
}

impl<'a> Iterator for HeaderIter<'a> {
    type Item = (&'a str, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (n, names) = self.names.split_first()?;
        let (v, values) = self.values.split_first()?;
        let (name, tail) = self.rest.split_at(usize::from(u16::from_le_bytes(*n)));
        let (value, rest) = tail.split_at(present(*v) as usize);
        *self = Self {
            names,
            values,
            rest,
        };
        // Checked when the view was made.
        Some((str::from_utf8(name).unwrap_or_default(), value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.names.len(), Some(self.names.len()))
    }
}

impl ExactSizeIterator for HeaderIter<'_> {}
