//! Backups that a running broker makes on request.

use serde::{Deserialize, Serialize};

/// How far the broker's backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupState {
    /// Where backups go; the broker's configuration says so.
    pub target: String,
    /// How far it is.
    pub phase: BackupPhase,
}

/// How far a backup is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BackupPhase {
    /// None was asked for since the broker started.
    Never,
    /// One is under way.
    Running {
        /// When it began, in milliseconds since the Unix epoch.
        started_ms: i64,
        /// Bytes done.
        done: u64,
        /// Bytes done and to do, as far as that is known yet.
        total: u64,
    },
    /// The last one was made.
    Done(BackupOutcome),
    /// The last one was not made. Those before it are whole.
    Failed {
        /// When it ended, in milliseconds since the Unix epoch.
        ended_ms: i64,
        /// Why.
        error: String,
    },
}

/// A backup that was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupOutcome {
    /// Its name.
    pub id: String,
    /// When it was complete, in milliseconds since the Unix epoch.
    pub ended_ms: i64,
    /// Bytes that restoring it takes.
    pub bytes: u64,
    /// Bytes of those that had to be copied.
    pub copied_bytes: u64,
    /// Segments that it names.
    pub segments: u64,
    /// Those of them that had to be copied.
    pub copied_segments: u64,
}
