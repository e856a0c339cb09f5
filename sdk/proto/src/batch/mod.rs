//! The record batch: one blob of raw bytes and small integer columns.
//!
//! The same bytes go from the producer over the wire to disk, into plugins and
//! out to consumers. The header ([`BatchHeader`]) is followed by the body: first
//! the *blob*, in which each record's key, value and headers (name, value, name,
//! value, ...) lie one behind the other, then the *columns*:
//!
//! | column | type | there when | meaning |
//! |---|---|---|---|
//! | value length | u32 per record | always | `0xffffffff` = no value (tombstone) |
//! | key length | u32 per record | `keys` | `0xffffffff` = no key |
//! | timestamp delta | i32 per record | `timestamps` | milliseconds from the base timestamp |
//! | offset delta | u32 per record | `offset_deltas` | from the base offset, never falling |
//! | header count | u16 per record | `headers` | |
//! | header name length | u16 per header | `headers` | |
//! | header value length | u32 per header | `headers` | |
//!
//! Columns come last so that a producer can append records to the blob as they
//! come and never moves them again. A codec compresses the whole body.
//!
//! [`Batch`] owns bytes whose header and checksum were checked; [`Body`] owns the
//! plain body; [`BatchView`] borrows it with every bound checked, once.

mod builder;
mod columns;
mod header;
mod view;

#[cfg(test)]
mod tests;

use bytes::Bytes;

pub use builder::{BatchBuilder, NewHeader, NewRecord, PushError, Stamp};
pub use columns::{Columns, Wanted};
pub use header::{BATCH_VERSION, BatchHeader, CRC_FROM, Codec, Flags, HEADER_LEN, MAGIC};
pub use view::{BatchView, HeaderIter, RecordRef};

use crate::checksum::crc32c;
use crate::code::{ErrorCode, WireError};
use crate::offset::Offset;

/// Marks an absent key or value in a length column.
pub const ABSENT: u32 = u32::MAX;

/// Why bytes are not a batch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// Fewer bytes than the header says.
    #[error("the batch is cut off: {needed} bytes needed, {found} found")]
    Truncated {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        found: usize,
    },
    /// More bytes than the header says.
    #[error("{0} bytes follow the end of the batch")]
    Trailing(usize),
    /// Something else, or not the start of a batch.
    #[error("not a record batch: it begins with {0:#010x}")]
    BadMagic(u32),
    /// A format version that this build does not read.
    #[error("batch format version {0} is not supported; this side reads version {BATCH_VERSION}")]
    UnknownVersion(u8),
    /// A codec that this build does not know.
    #[error("compression codec {0} is unknown; use none (0), lz4 (1) or zstd (2)")]
    UnknownCodec(u8),
    /// The bytes changed on the way.
    #[error("the batch's checksum is {stored:#010x} but its bytes give {computed:#010x}")]
    BadChecksum {
        /// In the header.
        stored: u32,
        /// Of the bytes.
        computed: u32,
    },
    /// None or too many records.
    #[error("a batch of {0} records; 1 to {max} are allowed", max = crate::limits::MAX_BATCH_RECORDS)]
    RecordCount(u32),
    /// Too many record headers.
    #[error("a batch of {0} record headers; at most {max} are allowed", max = crate::limits::MAX_BATCH_HEADERS)]
    HeaderCount(u32),
    /// Over the limit for batches.
    #[error("the batch has {len} bytes; at most {max} are allowed: send smaller batches")]
    TooLarge {
        /// Its size.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// A record over the limit.
    #[error("record {index} has {len} bytes; at most {max} are allowed")]
    RecordTooLarge {
        /// Which record of the batch.
        index: u32,
        /// Its size.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Lengths and counts that contradict each other.
    #[error("the batch contradicts itself: {0}")]
    Malformed(&'static str),
    /// The body does not decompress to what the header says.
    #[error("the batch's body does not decompress: {0}")]
    Compression(String),
}

impl BatchError {
    /// The code under which a peer hears of it.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            BatchError::UnknownVersion(_) => ErrorCode::StaleBatchVersion,
            BatchError::UnknownCodec(_) => ErrorCode::UnknownCodec,
            BatchError::BadChecksum { .. } => ErrorCode::BadChecksum,
            BatchError::TooLarge { .. } => ErrorCode::BatchTooLarge,
            BatchError::RecordTooLarge { .. } => ErrorCode::RecordTooLarge,
            BatchError::Truncated { .. }
            | BatchError::Trailing(_)
            | BatchError::BadMagic(_)
            | BatchError::RecordCount(_)
            | BatchError::HeaderCount(_)
            | BatchError::Malformed(_)
            | BatchError::Compression(_) => ErrorCode::MalformedBatch,
        }
    }
}

impl From<BatchError> for WireError {
    fn from(e: BatchError) -> Self {
        WireError::new(e.code(), e.to_string())
    }
}

/// An encoded batch whose header and checksum are good. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

impl Batch {
    /// Takes bytes from a peer or a disk and checks header, length and checksum.
    ///
    /// # Errors
    /// Any [`BatchError`] that shows without decompressing or looking into the
    /// columns; those are [`Batch::body`]'s.
    pub fn check(bytes: Bytes) -> Result<Self, BatchError> {
        let header = BatchHeader::decode(&bytes)?;
        let needed = header.encoded_len();
        match bytes.len() {
            found if found < needed => return Err(BatchError::Truncated { needed, found }),
            found if found > needed => return Err(BatchError::Trailing(found - needed)),
            _ => {}
        }
        let computed = crc32c(&bytes[CRC_FROM..]);
        if computed != header.crc {
            return Err(BatchError::BadChecksum {
                stored: header.crc,
                computed,
            });
        }
        Ok(Self { header, bytes })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The encoded bytes, header first.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Number of records.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.header.count
    }

    /// The same batch at another base offset. Only the 64 bytes of the header
    /// are written anew; they are returned with the body, which is shared.
    #[must_use]
    pub fn at_offset(&self, base: Offset) -> ([u8; HEADER_LEN], Bytes) {
        let header = BatchHeader {
            base_offset: base,
            ..self.header
        };
        (header.encode(), self.bytes.slice(HEADER_LEN..))
    }

    /// The plain body, decompressed if need be.
    ///
    /// # Errors
    /// [`BatchError::Compression`] when the body does not decompress to exactly
    /// the length in the header.
    pub fn body(&self) -> Result<Body, BatchError> {
        let stored = self.bytes.slice(HEADER_LEN..);
        let len = self.header.plain_len();
        let plain = match self.header.codec {
            Codec::None => stored,
            Codec::Lz4 => {
                let mut out = vec![0; len];
                let n = lz4_flex::block::decompress_into(&stored, &mut out)
                    .map_err(|e| BatchError::Compression(e.to_string()))?;
                out.truncate(n);
                out.into()
            }
            Codec::Zstd => zstd::bulk::decompress(&stored, len)
                .map_err(|e| BatchError::Compression(e.to_string()))?
                .into(),
        };
        if plain.len() != len {
            return Err(BatchError::Compression(format!(
                "{} bytes came out where the header says {len}",
                plain.len()
            )));
        }
        Ok(Body {
            header: self.header,
            bytes: plain,
        })
    }
}

/// A batch's plain body with its header.
#[derive(Clone, Debug)]
pub struct Body {
    header: BatchHeader,
    bytes: Bytes,
}

impl Body {
    /// The header of the batch it came from.
    #[must_use]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// A borrowed view with every bound checked.
    ///
    /// # Errors
    /// [`BatchError::Malformed`] or [`BatchError::RecordTooLarge`].
    pub fn view(&self) -> Result<BatchView<'_>, BatchError> {
        BatchView::new(&self.header, &self.bytes)
    }

    /// The blob and columns as they lie.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
