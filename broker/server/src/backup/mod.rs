//! Backups of a broker's store at a place that the operator names: a directory, S3, Google Cloud
//! Storage, Azure.
//!
//! ```text
//! target/
//!   backups/20261120T111655.123Z-1a2b3c4d    a manifest: what one backup consists of
//!   segments/<SHA-256>                   sealed segments, shared by all backups that name them
//!   parts/<SHA-256>                      the rows of one backup that are in no segment
//!   locks/<name>                         who is at work; see `lock`
//! ```
//!
//! A backup exists from the moment its manifest does, and that is written last, when everything it
//! names is there. What an interrupted one leaves is found by the next, which needs not copy it
//! again, or removed by [`prune`]. Objects are named by what they hold, so that whoever reads one
//! knows whether it is right, and so that nothing is ever written over.
//!
//! * [`target`]: reaching the place; [`lock`]: one removes nothing while another adds.
//! * [`manifest`]: what a backup consists of.
//! * [`create`], [`verify`], [`restore`] with [`select`], [`prune`]: what is done with backups.
//! * [`job`]: the backup that a running broker makes on request.
//!
//! What is absent: a schedule (that is cron's or the orchestrator's), encryption (that is the
//! place's), and changes between two backups: a point in time is that of a backup.

pub mod create;
mod error;
pub mod job;
mod lock;
pub mod manifest;
mod offline;
pub mod progress;
mod prune;
mod restore;
mod select;
mod target;
mod throttle;
mod verify;

pub use create::{CreateOptions, Created, create};
pub use error::{CreateError, PruneError, RestoreError, TargetError};
pub use manifest::{BackupId, Manifest};
pub use offline::{OfflineError, create_offline};
pub use progress::Progress;
pub use prune::{Pruned, prune};
pub use restore::{Restored, restore};
pub use select::Selection;
pub use target::{Found, Target, Which};
pub use verify::{Finding, Verified, verify};

#[cfg(test)]
mod tests;
