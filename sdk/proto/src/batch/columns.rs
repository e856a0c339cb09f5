//! The columns as plugins see them: spans into the blob.
//!
//! The layout at rest stores lengths; the plugin interface passes offsets and
//! lengths, so that a guest can reach any record without adding up the ones
//! before it. Filling them is one pass over the length columns.

use super::{ABSENT, BatchView};

/// Which columns somebody needs; the others stay empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Record headers.
    pub headers: bool,
    /// Timestamps.
    pub timestamps: bool,
    /// Offsets.
    pub offsets: bool,
}

/// Spans of one batch, reusable from batch to batch.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    /// Six per record: key offset, key length, value offset, value length, first
    /// header, header count. Length [`ABSENT`] marks no key or no value.
    pub spans: Vec<u32>,
    /// Four per header: name offset, name length, value offset, value length.
    pub headers: Vec<u32>,
    /// Milliseconds since the Unix epoch, one per record, or empty.
    pub timestamps: Vec<i64>,
    /// One per record, or empty.
    pub offsets: Vec<i64>,
}

impl Columns {
    /// Replaces the contents with the columns of `view`.
    pub fn fill(&mut self, view: &BatchView<'_>, wanted: Wanted) {
        self.spans.clear();
        self.headers.clear();
        self.timestamps.clear();
        self.offsets.clear();
        if view.name_lens.is_empty() {
            self.fill_plain(view);
        } else {
            self.fill_with_headers(view, wanted.headers);
        }
        if wanted.timestamps {
            self.timestamps.extend(view.records().map(|r| r.timestamp));
        }
        if wanted.offsets {
            self.offsets
                .extend(view.records().map(|r| r.offset.0.cast_signed()));
        }
    }

    fn fill_plain(&mut self, view: &BatchView<'_>) {
        self.spans.reserve(view.count * 6);
        let mut at = 0;
        let mut piece = |len: u32| {
            let from = at;
            at += if len == ABSENT { 0 } else { len };
            from
        };
        if view.key_lens.is_empty() {
            for value in view.value_lens {
                let value = u32::from_le_bytes(*value);
                let from = piece(value);
                self.spans
                    .extend_from_slice(&[from, ABSENT, from, value, 0, 0]);
            }
        } else {
            for (key, value) in view.key_lens.iter().zip(view.value_lens) {
                let (key, value) = (u32::from_le_bytes(*key), u32::from_le_bytes(*value));
                let (key_at, value_at) = (piece(key), piece(value));
                self.spans
                    .extend_from_slice(&[key_at, key, value_at, value, 0, 0]);
            }
        }
    }

    fn fill_with_headers(&mut self, view: &BatchView<'_>, wanted: bool) {
        let start = view.blob.as_ptr() as usize;
        let span = |piece: &[u8]| [(piece.as_ptr() as usize - start) as u32, piece.len() as u32];
        for record in view.records() {
            let first = (self.headers.len() / 4) as u32;
            if wanted {
                for (name, value) in record.headers {
                    self.headers
                        .extend(span(name.as_bytes()).into_iter().chain(span(value)));
                }
            }
            let count = (self.headers.len() / 4) as u32 - first;
            let [key_at, key] = record.key.map_or([0, ABSENT], span);
            let [value_at, value] = record.value.map_or([0, ABSENT], span);
            self.spans
                .extend_from_slice(&[key_at, key, value_at, value, first, count]);
        }
    }
}
