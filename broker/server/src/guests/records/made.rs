//! What a transform makes of records: new bytes, new columns.
//!
//! What a plugin returns was checked when its call ended, so nothing here can be out of bounds.
//! Pieces that are kept are copied, so that a record again lies in one place of its blob.

use bytes::BytesMut;
use millstream_plugin::{HeaderPiece, NONE, NewRecord, Output, Piece, SPAN};
use millstream_proto::batch::ABSENT;

use super::{HEADER, KEPT_SPANS, Records};

/// The records that a transform makes, collected over its calls for one batch.
#[derive(Debug, Default)]
pub(crate) struct Made {
    pub(super) data: BytesMut,
    pub(super) spans: Vec<u32>,
    pub(super) headers: Vec<u32>,
    pub(super) timestamps: Vec<i64>,
    pub(super) source: Vec<u32>,
    pub(super) outputs: Vec<u32>,
    pub(super) partitions: Vec<u32>,
}

impl Made {
    /// Makes it ready for the next batch; buffers out of the ordinary are not kept.
    pub(crate) fn clear(&mut self) {
        if self.spans.capacity() > KEPT_SPANS {
            *self = Self::default();
            return;
        }
        let Self {
            data,
            spans,
            headers,
            timestamps,
            source,
            outputs,
            partitions,
        } = self;
        data.clear();
        spans.clear();
        headers.clear();
        timestamps.clear();
        source.clear();
        outputs.clear();
        partitions.clear();
    }

    /// Number of records made so far.
    pub(crate) fn len(&self) -> usize {
        self.source.len()
    }

    /// Bytes made so far.
    pub(crate) fn bytes(&self) -> usize {
        self.data.len()
    }

    fn bytes_at(&mut self, bytes: &[u8]) -> u32 {
        let at = self.data.len() as u32;
        self.data.extend_from_slice(bytes);
        at
    }

    /// Adds everything that one call made of the records from `from` on. Call
    /// [`Records::want_times`] first.
    pub(crate) fn take(&mut self, records: &Records, from: usize, made: &Output) {
        self.data.reserve(made.expanded_bytes() as usize);
        self.spans.reserve(made.len() * SPAN);
        for new in made.iter() {
            let index = from + new.input as usize;
            let &[key, key_len, value, value_len, first, count] = records.span(index);
            let mut put = |piece: Piece<'_>, offset, len| {
                let bytes = match piece {
                    Piece::Keep => records.optional(offset, len),
                    Piece::Absent => None,
                    Piece::New(bytes) => Some(bytes),
                };
                let at = self.bytes_at(bytes.unwrap_or_default());
                [at, bytes.map_or(ABSENT, |bytes| bytes.len() as u32)]
            };
            let [key, key_len] = put(new.key, key, key_len);
            let [value, value_len] = put(new.value, value, value_len);
            let first_new = (self.headers.len() / HEADER) as u32;
            let count = match new.headers {
                HeaderPiece::Keep => self.keep_headers(records, first, count),
                HeaderPiece::New(headers) => {
                    let count = headers.iter().len() as u32;
                    headers
                        .iter()
                        .for_each(|(name, value)| self.header(name.as_bytes(), value));
                    count
                }
            };
            self.spans
                .extend_from_slice(&[key, key_len, value, value_len, first_new, count]);
            self.timestamps
                .push(new.timestamp.unwrap_or_else(|| records.time(index)));
            self.source.push(records.source(index));
            self.outputs.push(new.output);
            self.partitions.push(new.partition.unwrap_or(NONE));
        }
    }

    fn keep_headers(&mut self, records: &Records, first: u32, count: u32) -> u32 {
        let first = first as usize * HEADER;
        let entries = &records.columns.headers[first..first + count as usize * HEADER];
        for &[name, name_len, value, value_len] in entries.as_chunks::<HEADER>().0 {
            self.header(
                records.piece(name, name_len),
                records.piece(value, value_len),
            );
        }
        count
    }

    fn header(&mut self, name: &[u8], value: &[u8]) {
        let (name_at, value_at) = (self.bytes_at(name), self.bytes_at(value));
        let entry = [name_at, name.len() as u32, value_at, value.len() as u32];
        self.headers.extend_from_slice(&entry);
    }
}

/// Bytes of a new record, kept pieces included.
pub(crate) fn new_size(records: &Records, from: usize, new: &NewRecord<'_>) -> usize {
    let index = from + new.input as usize;
    let &[_, key_len, _, value_len, _, count] = records.span(index);
    let present = |len: u32| if len == ABSENT { 0 } else { len as usize };
    let (key, value) = (present(key_len), present(value_len));
    let piece = |piece: Piece<'_>, kept| match piece {
        Piece::Keep => kept,
        Piece::Absent => 0,
        Piece::New(bytes) => bytes.len(),
    };
    let headers = match new.headers {
        HeaderPiece::Keep if count == 0 => 0,
        HeaderPiece::Keep => records.size(index) - key - value,
        HeaderPiece::New(headers) => headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum(),
    };
    piece(new.key, key) + piece(new.value, value) + headers
}
