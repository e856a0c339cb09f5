//! Writing records: what a transform emits, as columns, copying only what is new.

#[cfg(test)]
mod tests;

use crate::{NONE, Output, Record};

/// Integers of `spans` for each new record.
const SPANS: usize = 9;
/// Integers of `headers` for each new header.
const HEADER: usize = 4;
/// The timestamp that means the input record's.
const KEEP_TIMESTAMP: i64 = i64::MIN;

/// Collects the records that a transform makes of a batch.
///
/// Every record it emits comes from one input record, the one given to [`Emitter::from`] last
/// (a [`Transform`](crate::Transform) need not do that: it is called for one record at a time).
/// What is not said otherwise is kept from that record, without a copy and whether or not the
/// plugin asked to see it.
#[derive(Clone, Debug, Default)]
pub struct Emitter {
    source: u32,
    emitted: Emitted,
}

/// The columns of the new records, as `wit/plugin.wit` describes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Emitted {
    /// The bytes that the other columns point at.
    pub data: Vec<u8>,
    /// One for each record, or empty.
    pub timestamps: Vec<i64>,
    /// Nine for each record.
    pub spans: Vec<u32>,
    /// Four for each header.
    pub headers: Vec<u32>,
}

impl Emitter {
    /// An emitter with room for about one new record for each of `records`.
    #[must_use]
    pub fn with_capacity(records: usize) -> Self {
        let spans = Vec::with_capacity(records * SPANS);
        Self {
            source: 0,
            emitted: Emitted {
                spans,
                ..Emitted::default()
            },
        }
    }

    /// Makes `record` the one from which the next ones come.
    #[inline]
    pub fn from(&mut self, record: &Record<'_>) -> &mut Self {
        self.source = narrow(record.index());
        self
    }

    /// How many records have been emitted.
    #[must_use]
    pub fn len(&self) -> usize {
        self.emitted.spans.len() / SPANS
    }

    /// Whether no record has been emitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.emitted.spans.is_empty()
    }

    /// Emits a record to `output`. It is the input record until the draft changes it, and needs
    /// nothing more to be sent.
    #[inline]
    pub fn emit(&mut self, output: Output) -> Draft<'_> {
        let row = [self.source, output.0, NONE, NONE, 0, NONE, 0, NONE, 0];
        self.emitted.spans.extend_from_slice(&row);
        if !self.emitted.timestamps.is_empty() {
            self.emitted.timestamps.push(KEEP_TIMESTAMP);
        }
        Draft {
            emitted: &mut self.emitted,
        }
    }

    /// The columns.
    #[must_use]
    pub fn finish(self) -> Emitted {
        self.emitted
    }
}

/// The record emitted last, to be changed. Dropping it changes nothing.
#[derive(Debug)]
pub struct Draft<'a> {
    emitted: &'a mut Emitted,
}

/// Where the integers of a record's row are.
mod row {
    pub(super) const PARTITION: usize = 2;
    pub(super) const KEY: usize = 3;
    pub(super) const VALUE: usize = 5;
    pub(super) const FIRST_HEADER: usize = 7;
    pub(super) const HEADERS: usize = 8;
}

impl Draft<'_> {
    /// Sends it to this partition of the output instead of letting the output choose.
    #[inline]
    pub fn partition(&mut self, partition: u32) -> &mut Self {
        self.row()[row::PARTITION] = partition;
        self
    }

    /// Sets the timestamp, in milliseconds since 1970-01-01T00:00:00Z. The smallest `i64` keeps
    /// the input record's.
    pub fn timestamp(&mut self, millis: i64) -> &mut Self {
        let records = self.emitted.spans.len() / SPANS;
        self.emitted.timestamps.resize(records, KEEP_TIMESTAMP);
        self.emitted.timestamps[records - 1] = millis;
        self
    }

    /// Sets the key.
    #[inline]
    pub fn key(&mut self, key: &[u8]) -> &mut Self {
        self.write(row::KEY, |data| data.extend_from_slice(key))
    }

    /// Takes the key away.
    #[inline]
    pub fn without_key(&mut self) -> &mut Self {
        self.set(row::KEY, 0, NONE)
    }

    /// Sets the value.
    #[inline]
    pub fn value(&mut self, value: &[u8]) -> &mut Self {
        self.write(row::VALUE, |data| data.extend_from_slice(value))
    }

    /// Sets the value to what `write` appends to the vector it is given, which saves a copy where
    /// the value is composed. The vector already has other bytes: append only.
    #[inline]
    pub fn value_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        self.write(row::VALUE, write)
    }

    /// Makes it a tombstone: a record without a value.
    #[inline]
    pub fn without_value(&mut self) -> &mut Self {
        self.set(row::VALUE, 0, NONE)
    }

    /// Takes all headers away.
    #[inline]
    pub fn without_headers(&mut self) -> &mut Self {
        self.set(row::FIRST_HEADER, 0, 0)
    }

    /// Adds a header. The first call takes the input record's headers away: use
    /// [`headers_of`](Self::headers_of) to have them too.
    ///
    /// `name` must not be empty; the broker refuses the batch if it is.
    pub fn header(&mut self, name: &str, value: &[u8]) -> &mut Self {
        let first = narrow(self.emitted.headers.len() / HEADER);
        let row = self.row();
        // Headers of one record lie side by side, so a record's first one decides where.
        if row[row::HEADERS] == 0 {
            row[row::FIRST_HEADER] = first;
        }
        row[row::HEADERS] += 1;
        let (name, name_length) = self.append(|data| data.extend_from_slice(name.as_bytes()));
        let (value, value_length) = self.append(|data| data.extend_from_slice(value));
        self.emitted
            .headers
            .extend_from_slice(&[name, name_length, value, value_length]);
        self
    }

    /// Copies the headers of a record that the plugin can see, to add others to them. Needs
    /// [`Needs::HEADERS`](crate::Needs::HEADERS).
    pub fn headers_of(&mut self, record: &Record<'_>) -> &mut Self {
        if self.row()[row::HEADERS] == 0 {
            self.without_headers();
        }
        for header in record.headers() {
            self.header(header.name, header.value);
        }
        self
    }

    #[inline]
    fn write(&mut self, at: usize, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let (offset, length) = self.append(write);
        self.set(at, offset, length)
    }

    #[inline]
    fn set(&mut self, at: usize, first: u32, second: u32) -> &mut Self {
        let row = self.row();
        row[at] = first;
        row[at + 1] = second;
        self
    }

    #[inline]
    fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> (u32, u32) {
        let start = self.emitted.data.len();
        write(&mut self.emitted.data);
        let end = self.emitted.data.len();
        assert!(start <= end, "value_with may only append to the vector");
        (narrow(start), narrow(end - start))
    }

    #[inline]
    fn row(&mut self) -> &mut [u32; SPANS] {
        self.emitted
            .spans
            .last_chunk_mut()
            .expect("a draft exists only after its row")
    }
}

#[inline]
fn narrow(length: usize) -> u32 {
    u32::try_from(length).expect("a guest's memory is smaller than 4 GiB")
}
