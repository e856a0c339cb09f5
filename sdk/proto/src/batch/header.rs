//! The fixed header in front of every batch.
//!
//! ```text
//!  0        4        8                16 17 18  20       24               32
//! +--------+--------+----------------+--+--+---+--------+----------------+
//! | "MSB1" | crc32c | base offset    |v |c |flg| count  | base timestamp |
//! +--------+--------+----------------+--+--+---+--------+----------------+
//! 32               40               48   50    52       56       60      64
//! +----------------+----------------+----+----+--------+--------+--------+
//! | producer id    | sequence       |epo.| 0  | headers|blob len|body len|
//! +----------------+----------------+----+----+--------+--------+--------+
//! ```
//! All integers are little-endian. The CRC-32C covers byte 16 to the end of the
//! body, so the broker can write the base offset without touching anything else.

use super::BatchError;
use crate::limits::{MAX_BATCH_BYTES, MAX_BATCH_HEADERS, MAX_BATCH_RECORDS, MAX_BODY_BYTES};
use crate::offset::{Offset, ProducerEpoch, ProducerId, Sequence};

/// Length of the header in bytes.
pub const HEADER_LEN: usize = 64;
/// First byte that the checksum covers.
pub const CRC_FROM: usize = 16;
/// The first four bytes of every batch.
pub const MAGIC: [u8; 4] = *b"MSB1";
/// The format version that this build writes and reads.
pub const BATCH_VERSION: u8 = 1;

/// How a batch's body is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Codec {
    /// As it is.
    #[default]
    None,
    /// LZ4 block format: fast, modest ratio.
    Lz4,
    /// Zstandard: slower, better ratio.
    Zstd,
}

impl Codec {
    const fn number(self) -> u8 {
        match self {
            Codec::None => 0,
            Codec::Lz4 => 1,
            Codec::Zstd => 2,
        }
    }

    fn from_number(n: u8) -> Result<Self, BatchError> {
        match n {
            0 => Ok(Codec::None),
            1 => Ok(Codec::Lz4),
            2 => Ok(Codec::Zstd),
            n => Err(BatchError::UnknownCodec(n)),
        }
    }
}

impl std::fmt::Display for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Codec::None => "none",
            Codec::Lz4 => "lz4",
            Codec::Zstd => "zstd",
        })
    }
}

impl std::str::FromStr for Codec {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "none" => Ok(Codec::None),
            "lz4" => Ok(Codec::Lz4),
            "zstd" => Ok(Codec::Zstd),
            other => Err(format!("unknown codec {other:?}; use none, lz4 or zstd")),
        }
    }
}

/// Which optional columns a batch has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Some record has a key.
    pub keys: bool,
    /// Timestamps differ from the base timestamp.
    pub timestamps: bool,
    /// Some record has headers.
    pub headers: bool,
    /// Offsets are not consecutive: a filtered view of the log.
    pub offset_deltas: bool,
}

impl Flags {
    const KEYS: u16 = 1;
    const TIMESTAMPS: u16 = 2;
    const HEADERS: u16 = 4;
    const OFFSET_DELTAS: u16 = 8;

    fn bits(self) -> u16 {
        u16::from(self.keys) * Self::KEYS
            + u16::from(self.timestamps) * Self::TIMESTAMPS
            + u16::from(self.headers) * Self::HEADERS
            + u16::from(self.offset_deltas) * Self::OFFSET_DELTAS
    }

    fn from_bits(bits: u16) -> Result<Self, BatchError> {
        if bits & !(Self::KEYS | Self::TIMESTAMPS | Self::HEADERS | Self::OFFSET_DELTAS) != 0 {
            return Err(BatchError::Malformed(
                "a flag that this version does not know is set",
            ));
        }
        Ok(Self {
            keys: bits & Self::KEYS != 0,
            timestamps: bits & Self::TIMESTAMPS != 0,
            headers: bits & Self::HEADERS != 0,
            offset_deltas: bits & Self::OFFSET_DELTAS != 0,
        })
    }
}

/// The header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Checksum over everything behind the base offset.
    pub crc: u32,
    /// Offset of the first record; assigned by the broker.
    pub base_offset: Offset,
    /// Compression of the body.
    pub codec: Codec,
    /// Which optional columns there are.
    pub flags: Flags,
    /// Number of records, 1 to [`MAX_BATCH_RECORDS`].
    pub count: u32,
    /// Timestamp of the first record, in milliseconds since the Unix epoch.
    pub base_timestamp: i64,
    /// Who produced the batch, or [`ProducerId::NONE`].
    pub producer: ProducerId,
    /// The batch's number on its producer's stream.
    pub sequence: Sequence,
    /// The producer's generation.
    pub epoch: ProducerEpoch,
    /// Record headers in the whole batch.
    pub header_count: u32,
    /// Bytes of the uncompressed blob.
    pub blob_len: u32,
    /// Bytes behind the header as they are stored.
    pub body_len: u32,
}

impl BatchHeader {
    /// Bytes of the columns behind the blob.
    #[must_use]
    pub fn columns_len(&self) -> usize {
        let f = self.flags;
        let per_record = 4
            + usize::from(f.keys) * 4
            + usize::from(f.timestamps) * 4
            + usize::from(f.headers) * 2
            + usize::from(f.offset_deltas) * 4;
        self.count as usize * per_record + self.header_count as usize * 6
    }

    /// Bytes of the body once uncompressed: blob and columns.
    #[must_use]
    pub fn plain_len(&self) -> usize {
        self.blob_len as usize + self.columns_len()
    }

    /// Bytes of the whole batch as stored.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        HEADER_LEN + self.body_len as usize
    }

    /// Writes the header.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut h = [0; HEADER_LEN];
        h[0..4].copy_from_slice(&MAGIC);
        h[4..8].copy_from_slice(&self.crc.to_le_bytes());
        h[8..16].copy_from_slice(&self.base_offset.0.to_le_bytes());
        h[16] = BATCH_VERSION;
        h[17] = self.codec.number();
        h[18..20].copy_from_slice(&self.flags.bits().to_le_bytes());
        h[20..24].copy_from_slice(&self.count.to_le_bytes());
        h[24..32].copy_from_slice(&self.base_timestamp.to_le_bytes());
        h[32..40].copy_from_slice(&self.producer.0.to_le_bytes());
        h[40..48].copy_from_slice(&self.sequence.0.to_le_bytes());
        h[48..50].copy_from_slice(&self.epoch.0.to_le_bytes());
        h[52..56].copy_from_slice(&self.header_count.to_le_bytes());
        h[56..60].copy_from_slice(&self.blob_len.to_le_bytes());
        h[60..64].copy_from_slice(&self.body_len.to_le_bytes());
        h
    }

    /// Reads a header and checks what can be checked without the body.
    ///
    /// # Errors
    /// Names what is wrong: too short, wrong magic, unknown version or codec, a
    /// count or length over its limit.
    pub fn decode(bytes: &[u8]) -> Result<Self, BatchError> {
        let Some(h) = bytes.first_chunk::<HEADER_LEN>() else {
            return Err(BatchError::Truncated {
                needed: HEADER_LEN,
                found: bytes.len(),
            });
        };
        if h[0..4] != MAGIC {
            return Err(BatchError::BadMagic(u32_at(h, 0)));
        }
        if h[16] != BATCH_VERSION {
            return Err(BatchError::UnknownVersion(h[16]));
        }
        let header = Self {
            crc: u32_at(h, 4),
            base_offset: Offset(u64_at(h, 8)),
            codec: Codec::from_number(h[17])?,
            flags: Flags::from_bits(u16::from_le_bytes([h[18], h[19]]))?,
            count: u32_at(h, 20),
            base_timestamp: u64_at(h, 24).cast_signed(),
            producer: ProducerId(u64_at(h, 32)),
            sequence: Sequence(u64_at(h, 40)),
            epoch: ProducerEpoch(u16::from_le_bytes([h[48], h[49]])),
            header_count: u32_at(h, 52),
            blob_len: u32_at(h, 56),
            body_len: u32_at(h, 60),
        };
        header.check()?;
        Ok(header)
    }

    fn check(&self) -> Result<(), BatchError> {
        if self.count == 0 || self.count > MAX_BATCH_RECORDS {
            return Err(BatchError::RecordCount(self.count));
        }
        if self.header_count > MAX_BATCH_HEADERS {
            return Err(BatchError::HeaderCount(self.header_count));
        }
        if !self.flags.headers && self.header_count != 0 {
            return Err(BatchError::Malformed(
                "record headers are counted but not flagged",
            ));
        }
        if self.encoded_len() > MAX_BATCH_BYTES {
            return Err(BatchError::TooLarge {
                len: self.encoded_len(),
                max: MAX_BATCH_BYTES,
            });
        }
        if self.plain_len() > MAX_BODY_BYTES {
            return Err(BatchError::TooLarge {
                len: self.plain_len(),
                max: MAX_BODY_BYTES,
            });
        }
        if self.codec == Codec::None && self.plain_len() != self.body_len as usize {
            return Err(BatchError::Malformed(
                "the body's length is not blob plus columns",
            ));
        }
        Ok(())
    }
}

fn u32_at(h: &[u8; HEADER_LEN], at: usize) -> u32 {
    u32::from_le_bytes([h[at], h[at + 1], h[at + 2], h[at + 3]])
}

fn u64_at(h: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(u32_at(h, at)) | u64::from(u32_at(h, at + 4)) << 32
}
