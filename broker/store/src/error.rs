//! What can go wrong, one type for each thing a caller does: open, read, commit.
//!
//! An error of the file is told once to whoever hit it and, as the shard's [`StopCause`], to
//! everybody who comes later.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::batch::BatchRefused;
use crate::space::Space;

/// Why a store file could not be opened. Nothing was changed in it, except that an interrupted
/// commit may have been rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, usually another broker, has the file open.
    #[error(
        "{} is in use by another process: stop the broker that has it open, or give this one \
         another data directory", file.display()
    )]
    InUse {
        /// The store file.
        file: PathBuf,
    },
    /// The file was written by a version that this one does not know.
    #[error(
        "{} has format version {found}, and this version of Millstream reads version {expected}: \
         run the version that wrote it, or move its records with `produce` and `consume`",
        file.display()
    )]
    Format {
        /// The store file.
        file: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version this build reads and writes.
        expected: u32,
    },
    /// The file is not a Millstream store.
    #[error(
        "{} is not a Millstream store ({detail}): check the data directory; if the file is a \
         damaged store, restore it from a backup, or move it away to start empty", file.display()
    )]
    NotAStore {
        /// The store file.
        file: PathBuf,
        /// What was found instead.
        detail: String,
    },
    /// The file is a store, and damaged.
    #[error(
        "{} is damaged ({detail}): check the disk, then restore the file from a backup, or move \
         it away to start empty", file.display()
    )]
    Corrupt {
        /// The store file.
        file: PathBuf,
        /// What was found to be wrong.
        detail: String,
    },
    /// There is no file, but there are segments of one. A new file would know none of them, and
    /// segments that no row names are removed.
    #[error(
        "{} is missing, but {segments} segments are in {}: put the file back, or restore a backup, \
         or move that directory away to begin anew", file.display(), directory.display()
    )]
    Missing {
        /// The store file.
        file: PathBuf,
        /// Where its segments are.
        directory: PathBuf,
        /// How many there are.
        segments: usize,
    },
    /// The operating system refused.
    #[error("could not {action} {}: {source}", file.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file it was done to.
        file: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
}

/// Why a read gave no answer. It never gives a wrong one.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file is damaged here. If it is the store's own, the shard has stopped accepting writes;
    /// if it is a segment, all that lies elsewhere goes on.
    #[error(
        "{} is damaged at {space} key \"{}\" ({detail}): {}",
        file.display(), key.escape_ascii(), mend(file)
    )]
    Corrupt {
        /// The store file, or the segment.
        file: PathBuf,
        /// The space that was read.
        space: Space,
        /// The key that was read, or where the scan began.
        key: Vec<u8>,
        /// What was found to be wrong.
        detail: String,
    },
    /// The operating system could not read the file. The shard has stopped accepting writes.
    #[error("could not read {} ({space}): {detail}", file.display())]
    Io {
        /// The store file.
        file: PathBuf,
        /// The space that was read.
        space: Space,
        /// The system's answer.
        detail: String,
    },
    /// The store was closed.
    #[error("{} was closed", file.display())]
    Closed {
        /// The store file.
        file: PathBuf,
    },
}

/// What to do about a damaged file. A segment can be given up without the rest of the store.
fn mend(file: &Path) -> &'static str {
    if file.extension().is_some_and(|extension| extension == "seg") {
        "check the disk, then restore from a backup, or stop the broker and save what can be read \
         of it with `millstream check --quarantine`"
    } else {
        "check the disk, then restore the file from a backup"
    }
}

/// Why a shard no longer accepts writes. It stays so until the broker is restarted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StopCause {
    /// The disk is full.
    #[error(
        "the disk of {} is full ({detail}): free space, then restart the broker", file.display()
    )]
    DiskFull {
        /// The store file.
        file: PathBuf,
        /// The system's answer.
        detail: String,
    },
    /// A write or a sync failed. After a failed sync nobody knows what reached the disk, so
    /// trying again would be a lie.
    #[error(
        "writing {} failed ({detail}): check the disk, then restart the broker", file.display()
    )]
    Io {
        /// The store file.
        file: PathBuf,
        /// The system's answer.
        detail: String,
    },
    /// The file is damaged.
    #[error("{detail}")]
    Corrupt {
        /// What was found to be wrong, and where.
        detail: String,
    },
    /// The engine, or a callback, panicked: a bug.
    #[error("{} stopped by an internal error ({detail}): please report it", file.display())]
    Panic {
        /// The store file.
        file: PathBuf,
        /// What the panic said.
        detail: String,
    },
}

/// Why a batch was not acknowledged.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// The commit that carried this batch failed. The batch may or may not be in the file after a
    /// restart; what it must not be is acknowledged.
    #[error("not acknowledged, and possibly not stored: {cause}")]
    Failed {
        /// What happened.
        cause: Arc<StopCause>,
    },
    /// The shard had stopped before this batch's turn; the batch was not written.
    #[error("not stored, the shard has stopped: {cause}")]
    Stopped {
        /// Why it stopped.
        cause: Arc<StopCause>,
    },
    /// The store was closed before this batch was submitted; it was not written.
    #[error("not stored, the shard is closed")]
    Closed,
    /// The batch itself is at fault; it was not written, and others are unharmed.
    #[error("not stored: {0}")]
    Refused(#[from] BatchRefused),
}
