//! What can go wrong with backups, one type for each thing that is done with them.

use std::io;
use std::path::PathBuf;

use millstream_store::backup as store;

use super::manifest::BackupId;

/// Why the place of the backups gave no answer, or a wrong one.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// What was given is not such a place.
    #[error(
        "{url:?} is no place for backups: {detail}; give a directory, or a URL that begins with \
         file://, s3://, gs:// or az://"
    )]
    Url {
        /// As it was given.
        url: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The place refused.
    #[error(
        "could not {action} {object} at {target}: {source}; check the address, the credentials in \
         the environment and the rights that they give"
    )]
    Object {
        /// What was being done, as a verb.
        action: &'static str,
        /// The object, or the folder.
        object: String,
        /// The place.
        target: String,
        /// What it says.
        source: Box<object_store::Error>,
    },
    /// An object is not there.
    #[error("{object} is not at {target}")]
    Missing {
        /// The object.
        object: String,
        /// The place.
        target: String,
    },
    /// An object is not what its name or its manifest says.
    #[error("{object} at {target} is damaged: {detail}; `millstream backup verify` looks at all")]
    Damaged {
        /// The object.
        object: String,
        /// The place.
        target: String,
        /// What was found to be wrong.
        detail: String,
    },
    /// There is no such backup.
    #[error(
        "there is no backup {what} at {target}; `millstream backup list` shows those there are"
    )]
    NoBackup {
        /// Which one was asked for.
        what: String,
        /// The place.
        target: String,
    },
    /// Somebody else is at work there.
    #[error(
        "at {target}, {who} has been at work within the last {minutes} minutes: wait until it is \
         done; if it was interrupted, try again in {minutes} minutes"
    )]
    Busy {
        /// The place.
        target: String,
        /// The lock's name.
        who: String,
        /// How long a lock is respected.
        minutes: u64,
    },
}

/// Why no backup was made. Those that there were are whole.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] store::BackupError),
    /// The place of the backups.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The temporary file that holds the rows until they are sent.
    #[error("could not use a temporary file in {}: {source}", dir.display())]
    Spool {
        /// Where it is.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A segment was not the same when it was read a second time.
    #[error("segment {0} has changed while it was copied: check the disk, then try again")]
    Changed(u64),
}

/// Why nothing was restored. The directory is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The directory holds something.
    #[error(
        "{} is not empty: name a directory that is empty or does not exist yet", dir.display()
    )]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
    },
    /// A file or directory cannot be used.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The place of the backups.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The store cannot be written.
    #[error(transparent)]
    Store(#[from] store::RestoreError),
    /// A row of the backup makes no sense to this version.
    #[error("a row of backup {id} cannot be understood: {detail}")]
    Row {
        /// The backup.
        id: BackupId,
        /// What is wrong.
        detail: String,
    },
    /// The backup holds nothing of the kind that was asked for.
    #[error("backup {id} holds no {what}")]
    Nothing {
        /// The backup.
        id: BackupId,
        /// What was asked for.
        what: String,
    },
}

/// Why nothing more was removed.
#[derive(Debug, thiserror::Error)]
pub enum PruneError {
    /// The place of the backups.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A backup that stays cannot be read, so nobody knows what it needs.
    #[error(
        "{0}; nothing but whole backups was removed, since nobody knows what this one needs: \
         remove it by its name (`millstream backup prune --remove ID`) or mend it"
    )]
    Unreadable(TargetError),
}
