//! What can go wrong with a segment.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::batch::Key;

/// Why a segment could not be written or read. A read never gives a wrong answer instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SegmentError {
    /// The operating system refused.
    #[error("could not {action} {}: {source}", file.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The segment's file.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The file is not what was written.
    #[error(
        "{} is damaged at byte {offset} ({detail}): check the disk, then restore the file from a \
         backup", file.display()
    )]
    Damaged {
        /// The segment's file.
        file: PathBuf,
        /// Where in it the damaged part begins.
        offset: u64,
        /// What was found to be wrong.
        detail: String,
    },
    /// The file was written by a version that this one does not know.
    #[error(
        "{} has segment format version {found}, and this version of Millstream reads version \
         {expected}: run the version that wrote it", file.display()
    )]
    Version {
        /// The segment's file.
        file: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version this build reads and writes.
        expected: u32,
    },
    /// What was to be written cannot be part of a segment: a bug of the caller.
    #[error("{} was not written: {refused}", file.display())]
    Refused {
        /// The segment's file.
        file: PathBuf,
        /// What is wrong with it.
        refused: Refused,
    },
}

/// Why a writer did not take an entry, or has no segment to finish.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Keys come in strictly ascending order.
    #[error("key \"{key:?}\" came after \"{after:?}\"")]
    Order {
        /// The key that was pushed.
        key: Key,
        /// The one before.
        after: Key,
    },
    /// Empty, or longer than [`crate::limits::MAX_KEY_LEN`].
    #[error("a key of {len} bytes is empty or too long")]
    KeyLength {
        /// Its length.
        len: usize,
    },
    /// Longer than [`super::limits::MAX_ENTRY_VALUE`].
    #[error("the value of key \"{key:?}\" is {len} bytes long, which is too long")]
    ValueLength {
        /// Whose value it is.
        key: Key,
        /// Its length.
        len: usize,
    },
    /// The index has reached [`super::limits::MAX_INDEX_BYTES`]: finish this segment and begin
    /// another one.
    #[error("the segment has as many blocks as its index can name")]
    Full,
    /// A segment has at least one entry.
    #[error("it has no entries")]
    Empty,
    /// A write has failed before; the temporary file is gone.
    #[error("it was given up when a write failed")]
    GivenUp,
}

impl SegmentError {
    /// Whether the cause is that the disk is full, which may pass.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        matches!(
            self,
            Self::Io { source, .. }
                if matches!(source.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
        )
    }

    pub(super) fn io(action: &'static str, file: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action,
            file: file.to_owned(),
            source,
        }
    }

    pub(super) fn damaged(file: &Path, offset: u64, detail: impl ToString) -> Self {
        Self::Damaged {
            file: file.to_owned(),
            offset,
            detail: detail.to_string(),
        }
    }
}
