//! How rows are laid out: one file for each kind of row, its key, its value, and the proof that
//! both survive a round trip and sort as they should.
//!
//! Keys are big-endian composites, so that bytes sort as the tuples do; only the last part may
//! vary in length. Values begin with a version byte. Decoders take any bytes and never panic.
//!
//! | kind | space | key | value |
//! |---|---|---|---|
//! | [`record`] | `Records` | topic, partition, base offset | a record batch, as it is |
//! | [`partition`] | `Partitions` | topic, partition | log start, bytes, up to where they were counted |
//! | [`lost`] | `Partitions` | topic, partition, first offset | behind the last offset, segment |
//! | [`producer`] | `Producers` | topic, producer id | epoch, last sequence, when and where that was |
//! | [`offset`] | `Offsets` | topic, partition, consumer name | offset, metadata |
//!
//! Rows of the catalogue, the pipelines and the shard itself are laid out by the broker.

pub mod lost;
pub mod offset;
pub mod partition;
pub mod producer;
pub mod record;

use crate::batch::Key;
use crate::limits::MAX_KEY_LEN;

/// Why the bytes of a key or a value are not a row of the kind expected. The store has verified
/// their checksum: this is a row of another version, or a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// Too short, too long, or cut off within a field.
    #[error("a {kind} row of {len} bytes has the wrong length")]
    Length {
        /// The kind of row.
        kind: &'static str,
        /// How long it is.
        len: usize,
    },
    /// Written by a version that this one does not know.
    #[error("a {kind} row has layout version {found}: run the version that wrote it")]
    Version {
        /// The kind of row.
        kind: &'static str,
        /// The version it carries.
        found: u8,
    },
    /// Text that is not UTF-8.
    #[error("a {kind} row holds text that is not UTF-8")]
    Text {
        /// The kind of row.
        kind: &'static str,
    },
}

/// The version byte that every value begins with today.
const VERSION: u8 = 1;

/// Takes fixed-width numbers off the front of a row.
struct Fields<'a> {
    kind: &'static str,
    len: usize,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(kind: &'static str, row: &'a [u8]) -> Self {
        Self {
            kind,
            len: row.len(),
            rest: row,
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        let (field, rest) = self.rest.split_first_chunk().ok_or(self.wrong_length())?;
        self.rest = rest;
        Ok(*field)
    }

    fn version(&mut self) -> Result<(), RowError> {
        match self.take()? {
            [VERSION] => Ok(()),
            [found] => Err(RowError::Version {
                kind: self.kind,
                found,
            }),
        }
    }

    fn u16(&mut self) -> Result<u16, RowError> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, RowError> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, RowError> {
        self.take().map(u64::from_be_bytes)
    }

    fn end(&self) -> Result<(), RowError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.wrong_length())
        }
    }

    fn wrong_length(&self) -> RowError {
        RowError::Length {
            kind: self.kind,
            len: self.len,
        }
    }
}

/// The exclusive end of all keys that begin with `prefix`.
fn end_of(prefix: &Key) -> Key {
    prefix
        .prefix_end()
        .unwrap_or_else(|| Key::from([u8::MAX; MAX_KEY_LEN]))
}
