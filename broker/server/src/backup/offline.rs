//! A backup of a data directory that no broker has open.

use std::path::{Path, PathBuf};

use millstream_store::{OpenError, RedbConfig, RedbStore, Store};

use super::create::{CreateOptions, Created, create};
use super::error::CreateError;
use super::progress::Progress;
use super::target::Target;
use crate::broker::SHARD_FILE;

/// Why a data directory was not backed up.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is nothing to back up.
    #[error("{} holds no store: name the directory that the broker calls data_dir", dir.display())]
    NoStore {
        /// The directory.
        dir: PathBuf,
    },
    /// The store cannot be opened; a broker may have it open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The backup was not made.
    #[error(transparent)]
    Create(#[from] CreateError),
}

/// Copies the store in `data_dir` to `target`. As [`create`], on a thread that may block.
///
/// # Errors
/// See [`OfflineError`].
pub async fn create_offline(
    target: &Target,
    data_dir: &Path,
    options: &CreateOptions,
    progress: &Progress,
) -> Result<Created, OfflineError> {
    let file = data_dir.join(SHARD_FILE);
    // Opening would make an empty one.
    if !file.exists() {
        return Err(OfflineError::NoStore {
            dir: data_dir.to_owned(),
        });
    }
    let store = RedbStore::open(&file, &RedbConfig::default())?;
    let frozen = store.freeze().map_err(CreateError::from)?;
    let made = create(target, frozen, options, progress).await;
    store.close();
    Ok(made?)
}
