//! Builds a batch record by record.
//!
//! Records are appended to the blob as they come; the header's place is kept
//! free in front and the columns are appended at the end, so an uncompressed
//! batch is never copied again.

use bytes::{BufMut, Bytes, BytesMut};

use super::header::{BatchHeader, CRC_FROM, Codec, Flags, HEADER_LEN};
use super::{ABSENT, Batch, BatchError};
use crate::checksum::crc32c;
use crate::limits::{
    MAX_BATCH_BYTES, MAX_BATCH_HEADERS, MAX_BATCH_RECORDS, MAX_HEADER_NAME_BYTES, MAX_RECORD_BYTES,
    MAX_RECORD_HEADERS,
};
use crate::offset::{Offset, ProducerEpoch, ProducerId, Sequence};

/// Header of a record to be written.
pub type NewHeader<'a> = (&'a str, &'a [u8]);

/// A record to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewRecord<'a> {
    /// The key, if there is one.
    pub key: Option<&'a [u8]>,
    /// The value; `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers in order.
    pub headers: &'a [NewHeader<'a>],
    /// Milliseconds since the Unix epoch.
    pub timestamp: i64,
}

impl NewRecord<'_> {
    /// Bytes of key, value and headers.
    #[must_use]
    pub fn size(&self) -> usize {
        self.key.map_or(0, <[u8]>::len)
            + self.value.map_or(0, <[u8]>::len)
            + self
                .headers
                .iter()
                .map(|(n, v)| n.len() + v.len())
                .sum::<usize>()
    }
}

/// Who made the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The producer, or [`ProducerId::NONE`].
    pub producer: ProducerId,
    /// Its generation.
    pub epoch: ProducerEpoch,
    /// The batch's number on the producer's stream.
    pub sequence: Sequence,
}

/// Why a record was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// This batch has no room left; build it and begin the next.
    #[error("the batch is full")]
    Full,
    /// No batch could hold this record.
    #[error("a record of {len} bytes; at most {max} are allowed")]
    RecordTooLarge {
        /// Its size in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// Too many headers, or a header name that is too long.
    #[error(
        "a record may have {MAX_RECORD_HEADERS} headers with names of {MAX_HEADER_NAME_BYTES} bytes at most"
    )]
    Headers,
}

/// Lowest limit of a builder in bytes: a header and a small record.
const LEAST_LIMIT: usize = HEADER_LEN + 32;
/// Bytes reserved with a batch's first record, if its limit is not lower.
const EXPECTED_BYTES: usize = 1 << 20;

/// Collects records into one batch of bounded size.
#[derive(Debug)]
pub struct BatchBuilder {
    buf: BytesMut,
    /// Bytes reserved with the first record.
    expected: usize,
    limit: usize,
    value_lens: Vec<u32>,
    key_lens: Vec<u32>,
    timestamps: Vec<i32>,
    offsets: Vec<u32>,
    header_counts: Vec<u16>,
    header_name_lens: Vec<u16>,
    header_value_lens: Vec<u32>,
    base_timestamp: i64,
    base_offset: Offset,
    any_key: bool,
    any_delta: bool,
    any_headers: bool,
}

impl BatchBuilder {
    /// A builder for batches of at most `limit` encoded bytes (before
    /// compression). A single record larger than that still gets a batch of its
    /// own, up to [`MAX_RECORD_BYTES`].
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self {
            buf: BytesMut::new(),
            expected: EXPECTED_BYTES,
            limit: limit.clamp(LEAST_LIMIT, MAX_BATCH_BYTES),
            value_lens: Vec::new(),
            key_lens: Vec::new(),
            timestamps: Vec::new(),
            offsets: Vec::new(),
            header_counts: Vec::new(),
            header_name_lens: Vec::new(),
            header_value_lens: Vec::new(),
            base_timestamp: 0,
            base_offset: Offset(0),
            any_key: false,
            any_delta: false,
            any_headers: false,
        }
    }

    /// The same for batches that are likely to stay smaller than their limit:
    /// `bytes` are reserved at first, and more when there is more.
    #[must_use]
    pub fn expecting(mut self, bytes: usize) -> Self {
        self.expected = bytes;
        self
    }

    /// Changes the limit, from the next batch on.
    pub fn set_limit(&mut self, limit: usize) {
        self.limit = limit.clamp(LEAST_LIMIT, MAX_BATCH_BYTES);
    }

    /// Number of records so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.value_lens.len()
    }

    /// Whether there is no record yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.value_lens.is_empty()
    }

    /// Encoded size if it were built now, uncompressed, in bytes.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        if self.is_empty() {
            HEADER_LEN
        } else {
            self.flagged().encoded_len()
        }
    }

    fn flags(&self) -> Flags {
        Flags {
            keys: self.any_key,
            timestamps: self.any_delta,
            headers: self.any_headers,
            offset_deltas: !self.offsets.is_empty(),
        }
    }

    /// The header as far as it is known, for its length arithmetic.
    fn flagged(&self) -> BatchHeader {
        let mut header = BatchHeader {
            crc: 0,
            base_offset: self.base_offset,
            codec: Codec::None,
            flags: self.flags(),
            count: self.len() as u32,
            base_timestamp: self.base_timestamp,
            producer: ProducerId::NONE,
            sequence: Sequence(0),
            epoch: ProducerEpoch(0),
            header_count: self.header_name_lens.len() as u32,
            blob_len: self.buf.len().saturating_sub(HEADER_LEN) as u32,
            body_len: 0,
        };
        header.body_len = header.plain_len() as u32;
        header
    }

    /// Appends a record whose offset follows from its place.
    ///
    /// # Errors
    /// [`PushError::Full`] when the record does not fit into this batch any more;
    /// the other kinds when no batch could hold it. The builder is unchanged.
    #[inline]
    pub fn push(&mut self, record: &NewRecord<'_>) -> Result<(), PushError> {
        self.admit(record)?;
        self.append(record);
        Ok(())
    }

    /// Appends a record that keeps the offset it already has: for filtered views
    /// of a log. Offsets must not fall; all records of a batch are pushed this way.
    ///
    /// # Errors
    /// As [`BatchBuilder::push`]; [`PushError::Full`] also when the offset is too
    /// far from the batch's first.
    pub fn push_at(&mut self, offset: Offset, record: &NewRecord<'_>) -> Result<(), PushError> {
        if self.is_empty() {
            self.base_offset = offset;
        }
        let delta = offset
            .0
            .checked_sub(self.base_offset.0)
            .and_then(|d| u32::try_from(d).ok());
        let delta = delta.ok_or(PushError::Full)?;
        self.admit(record)?;
        self.append(record);
        self.offsets.push(delta);
        Ok(())
    }

    #[inline]
    fn admit(&self, record: &NewRecord<'_>) -> Result<(), PushError> {
        let size = record.size();
        if size > MAX_RECORD_BYTES {
            return Err(PushError::RecordTooLarge {
                len: size,
                max: MAX_RECORD_BYTES,
            });
        }
        let names_fit = || {
            record
                .headers
                .iter()
                .all(|(n, _)| n.len() <= MAX_HEADER_NAME_BYTES)
        };
        if record.headers.len() > MAX_RECORD_HEADERS || !names_fit() {
            return Err(PushError::Headers);
        }
        if self.is_empty() {
            return Ok(());
        }
        // Every column counted as if present: at most 18 bytes per record.
        let columns =
            (self.len() + 1) * 18 + (self.header_name_lens.len() + record.headers.len()) * 6;
        let delta = record.timestamp.checked_sub(self.base_timestamp);
        if self.buf.len() + size + columns > self.limit.max(HEADER_LEN)
            && self.exact_len_with(record, size) > self.limit
            || self.len() >= MAX_BATCH_RECORDS as usize
            || self.header_name_lens.len() + record.headers.len() > MAX_BATCH_HEADERS as usize
            || delta.is_none_or(|d| i32::try_from(d).is_err())
        {
            return Err(PushError::Full);
        }
        Ok(())
    }

    fn exact_len_with(&self, record: &NewRecord<'_>, size: usize) -> usize {
        let mut header = self.flagged();
        header.flags.keys |= record.key.is_some();
        header.flags.headers |= !record.headers.is_empty();
        header.flags.timestamps |= record.timestamp != self.base_timestamp;
        header.count += 1;
        header.header_count += record.headers.len() as u32;
        HEADER_LEN + header.plain_len() + size
    }

    #[inline]
    fn append(&mut self, record: &NewRecord<'_>) {
        if self.is_empty() {
            self.buf.reserve(self.limit.min(self.expected));
            self.buf.put_bytes(0, HEADER_LEN);
            self.base_timestamp = record.timestamp;
        }
        if let Some(key) = record.key {
            self.buf.extend_from_slice(key);
            self.any_key = true;
        }
        if let Some(value) = record.value {
            self.buf.extend_from_slice(value);
        }
        self.value_lens
            .push(record.value.map_or(ABSENT, |v| v.len() as u32));
        self.key_lens
            .push(record.key.map_or(ABSENT, |k| k.len() as u32));
        // In range: `admit` checked it, and the first record's delta is zero.
        let delta = (record.timestamp - self.base_timestamp) as i32;
        self.any_delta |= delta != 0;
        self.timestamps.push(delta);
        self.header_counts.push(record.headers.len() as u16);
        self.any_headers |= !record.headers.is_empty();
        for (name, value) in record.headers {
            self.buf.extend_from_slice(name.as_bytes());
            self.buf.extend_from_slice(value);
            self.header_name_lens.push(name.len() as u16);
            self.header_value_lens.push(value.len() as u32);
        }
    }

    /// Finishes the batch and leaves the builder empty for the next.
    ///
    /// # Errors
    /// [`BatchError::RecordCount`] when no record was pushed;
    /// [`BatchError::Compression`] when the codec fails;
    /// [`BatchError::TooLarge`] when a codec grew an incompressible batch over the limit.
    pub fn build(&mut self, codec: Codec, stamp: Stamp) -> Result<Batch, BatchError> {
        if self.is_empty() {
            return Err(BatchError::RecordCount(0));
        }
        let mut header = self.flagged();
        header.codec = codec;
        header.producer = stamp.producer;
        header.epoch = stamp.epoch;
        header.sequence = stamp.sequence;
        self.append_columns(header.flags);
        let mut bytes = self.buf.split();
        self.clear();
        if codec != Codec::None {
            bytes = compress(codec, &bytes)?;
            header.body_len = (bytes.len() - HEADER_LEN) as u32;
        }
        if bytes.len() > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge {
                len: bytes.len(),
                max: MAX_BATCH_BYTES,
            });
        }
        bytes[..HEADER_LEN].copy_from_slice(&header.encode());
        header.crc = crc32c(&bytes[CRC_FROM..]);
        bytes[4..8].copy_from_slice(&header.crc.to_le_bytes());
        Ok(Batch {
            header,
            bytes: Bytes::from(bytes),
        })
    }

    fn append_columns(&mut self, flags: Flags) {
        let buf = &mut self.buf;
        put_column(buf, &self.value_lens, |v| v.to_le_bytes());
        if flags.keys {
            put_column(buf, &self.key_lens, |v| v.to_le_bytes());
        }
        if flags.timestamps {
            put_column(buf, &self.timestamps, |v| v.to_le_bytes());
        }
        if flags.offset_deltas {
            put_column(buf, &self.offsets, |v| v.to_le_bytes());
        }
        if flags.headers {
            put_column(buf, &self.header_counts, |v| v.to_le_bytes());
            put_column(buf, &self.header_name_lens, |v| v.to_le_bytes());
            put_column(buf, &self.header_value_lens, |v| v.to_le_bytes());
        }
    }

    fn clear(&mut self) {
        self.value_lens.clear();
        self.key_lens.clear();
        self.timestamps.clear();
        self.offsets.clear();
        self.header_counts.clear();
        self.header_name_lens.clear();
        self.header_value_lens.clear();
        (self.any_key, self.any_delta, self.any_headers) = (false, false, false);
        self.base_offset = Offset(0);
    }
}

/// Appends a column in one go: the compiler turns the loop into a copy.
fn put_column<T: Copy, const N: usize>(
    buf: &mut BytesMut,
    column: &[T],
    le: impl Fn(T) -> [u8; N],
) {
    let at = buf.len();
    buf.put_bytes(0, column.len() * N);
    for (slot, value) in buf[at..].as_chunks_mut::<N>().0.iter_mut().zip(column) {
        *slot = le(*value);
    }
}

/// Compresses what follows the header's place; the result has that place again.
fn compress(codec: Codec, plain: &[u8]) -> Result<BytesMut, BatchError> {
    let body = &plain[HEADER_LEN..];
    let failed = |e: String| BatchError::Compression(e);
    let compressed = match codec {
        Codec::None => body.to_vec(),
        Codec::Lz4 => lz4_flex::block::compress(body),
        Codec::Zstd => zstd::bulk::compress(body, zstd::DEFAULT_COMPRESSION_LEVEL)
            .map_err(|e| failed(e.to_string()))?,
    };
    let mut out = BytesMut::with_capacity(HEADER_LEN + compressed.len());
    out.put_bytes(0, HEADER_LEN);
    out.extend_from_slice(&compressed);
    Ok(out)
}
