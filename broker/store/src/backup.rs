//! What a backup takes from a store, and how a store is made of it again.
//!
//! A store is frozen ([`crate::Store::freeze`]): one consistent state, of which the rows come as
//! [`Part`]s of bounded size and the segments as files to copy. Rows are everything that is not in
//! a segment: all spaces, the records that are not sealed yet, and which run of records lies in
//! which segment. Segments never change and a number is used once in a store's life, so a segment
//! that was copied once needs no second copy.
//!
//! The rows come first. They hold a read transaction, and with it every page of the hot file that
//! is freed meanwhile; once the last part is out it is let go. The segments stay pinned until the
//! frozen state is dropped, which costs disk space for what retention removes in between, and
//! nothing else.
//!
//! What is absent: where the copies go, how they are named and which of them are still needed is
//! the broker's business. Nothing here knows what a topic is.

mod part;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::batch::Key;
use crate::error::ReadError;
use crate::segment::{Files, ReadAt, Segment, SegmentError};

pub use crate::redb::{Restorer, RowRestorer};
pub(crate) use part::PartWriter;
pub use part::{PART_VERSION, Part, PartDamaged, PartReader, PartRow};

/// What a store is known by: made when the store is, and never the same for two. A store that was
/// restored is another one than the one that was backed up, since from then on the two give the
/// same segment numbers to different contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u128);

impl std::fmt::Display for StoreId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A segment that a state names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Its number.
    pub number: u64,
    /// Length of its file.
    pub file_bytes: u64,
    /// Bytes of the keys and values in it.
    pub data_bytes: u64,
}

/// A run of records within a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentInfo {
    /// Its first key.
    pub start: Key,
    /// Behind its last key.
    pub end: Key,
    /// The segment it lies in.
    pub segment: u64,
    /// Bytes of its keys and values.
    pub bytes: u64,
}

/// Why a state could not be copied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackupError {
    /// The engine has nothing to copy.
    #[error("this store lives in memory only and cannot be backed up")]
    Unsupported,
    /// A row cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A segment cannot be read.
    #[error(
        "segment {number} cannot be backed up: {source}; `millstream check` says what else is wrong"
    )]
    Segment {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        source: SegmentError,
    },
    /// A segment cannot be read.
    #[error("could not read {}: {source}", file.display())]
    Io {
        /// The segment's file.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A segment is damaged, so a copy of it would be.
    #[error(
        "{} is damaged at byte {offset} ({detail}): check the disk, then `millstream check` says \
         what is lost and can put the segment aside; what was backed up before is whole",
        file.display()
    )]
    Damaged {
        /// The segment's file.
        file: PathBuf,
        /// Where the first damaged part begins.
        offset: u64,
        /// What was found to be wrong.
        detail: String,
    },
}

/// One consistent state of a store, to be copied. All of it blocks.
pub trait Frozen: Send {
    /// Which store.
    fn store(&self) -> StoreId;

    /// The segments that this state names, by number.
    fn segments(&self) -> &[SegmentInfo];

    /// The next rows, as many as fit one part; `None` once there are no more.
    ///
    /// # Errors
    /// If a row is damaged or cannot be read.
    fn next_part(&mut self) -> Result<Option<Part>, BackupError>;

    /// Opens a segment of this state.
    ///
    /// # Errors
    /// If its file is missing, cannot be read or has another length.
    fn open_segment(&self, info: SegmentInfo) -> Result<FrozenSegment, BackupError>;
}

/// How many bytes of a segment's end tell it from every other.
const FINGERPRINT_BYTES: u64 = 64;

/// A segment's file, open to be copied.
pub struct FrozenSegment {
    files: Arc<dyn Files>,
    file: Arc<dyn ReadAt>,
    info: SegmentInfo,
}

impl FrozenSegment {
    /// Opens the file of a segment.
    pub(crate) fn open(files: &Arc<dyn Files>, info: SegmentInfo) -> Result<Self, BackupError> {
        let failed = |source| BackupError::Io {
            file: files.path(info.number),
            source,
        };
        let file = files.open(info.number).map_err(failed)?;
        if file.byte_len() != info.file_bytes {
            return Err(BackupError::Damaged {
                file: files.path(info.number),
                offset: file.byte_len().min(info.file_bytes),
                detail: format!(
                    "it is {} bytes long and was {} when it was finished",
                    file.byte_len(),
                    info.file_bytes
                ),
            });
        }
        Ok(Self {
            files: Arc::clone(files),
            file,
            info,
        })
    }

    /// Which one.
    #[must_use]
    pub fn info(&self) -> SegmentInfo {
        self.info
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), BackupError> {
        self.file
            .read_exact_at(bytes, offset)
            .map_err(|source| BackupError::Io {
                file: self.files.path(self.info.number),
                source,
            })
    }

    /// A checksum of the footer, which sums up the file: cheap, and enough to notice that a data
    /// directory was copied and went another way.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn fingerprint(&self) -> Result<u32, BackupError> {
        let len = self.info.file_bytes.min(FINGERPRINT_BYTES);
        let mut tail = vec![0; len as usize];
        self.read(&mut tail, self.info.file_bytes - len)?;
        Ok(crc32c::crc32c(&tail))
    }

    /// Checks every block.
    ///
    /// # Errors
    /// The first damage that is found.
    pub fn check(&self) -> Result<(), BackupError> {
        let SegmentInfo {
            number, file_bytes, ..
        } = self.info;
        let segment = Segment::open(&*self.files, number, file_bytes)
            .map_err(|source| BackupError::Segment { number, source })?;
        match segment.verify(&mut |_| ()).into_iter().next() {
            None => Ok(()),
            Some(damage) => Err(BackupError::Damaged {
                file: self.files.path(number),
                offset: damage.offset,
                detail: damage.detail,
            }),
        }
    }
}

/// Why a store could not be made of a backup. What was written so far is not a store to use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] crate::error::OpenError),
    /// A row cannot be written.
    #[error("could not write {}: {detail}", file.display())]
    Write {
        /// The store file.
        file: PathBuf,
        /// What the engine says.
        detail: String,
    },
    /// A row cannot be committed.
    #[error(transparent)]
    Commit(#[from] crate::error::CommitError),
    /// A segment cannot be written.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A run of records lies in a segment that the backup does not list.
    #[error("the backup names segment {0} and does not hold it")]
    UnknownSegment(u64),
}

/// What is wrong with the bytes of a segment, as a copy of it; nothing if nothing is. `name` stands
/// for the file in what is said.
#[must_use]
pub fn check_segment_copy(number: u64, bytes: bytes::Bytes, name: &str) -> Vec<String> {
    let len = bytes.len() as u64;
    let files = part::OneFile {
        name: name.into(),
        bytes,
    };
    match Segment::open(&files, number, len) {
        Err(error) => vec![error.to_string()],
        Ok(segment) => {
            let damaged = segment.verify(&mut |_| ());
            let say = |damage: crate::segment::Damage| {
                format!(
                    "bytes {} to {}, keys \"{:?}\" to \"{:?}\": {}",
                    damage.offset,
                    damage.offset + damage.bytes,
                    damage.keys.start,
                    damage.keys.end,
                    damage.detail
                )
            };
            damaged.into_iter().map(say).collect()
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
