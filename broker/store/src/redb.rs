//! The embedded engine: one redb file, one table for each [`Space`] but the records', which lie in
//! packs.
//!
//! * [`open`]: creating a file so that a crash cannot leave half of one, opening, verifying.
//! * [`write`]: one group of batches, one write transaction, one sync.
//! * [`records`] and [`pack`]: what a commit appends, and how it lies in the file.
//! * [`hot`]: the index of the packs, in memory.
//! * [`view`]: the state after one commit, which snapshots share.
//! * [`read`]: snapshots, with every value checked against its trailer.
//!
//! What is absent: sealing old records into files of their own, and compaction. Freed pages are
//! used again, so a file whose retention keeps up stops growing; it does not shrink while open.

mod hot;
mod open;
mod pack;
mod read;
mod records;
mod view;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use ::redb::{Database, StorageBackend, TableDefinition};
use tokio::sync::watch;

use crate::batch::WriteBatch;
use crate::error::{CommitError, OpenError, ReadError};
use crate::limits::{DEFAULT_CACHE_BYTES, DEFAULT_VERIFY_UP_TO};
use crate::queue::{Gate, Permit};
use crate::shard::Shard;
use crate::space::Space;
use crate::store::{Done, Health, Pending, Snapshot, Store, StoreStats};

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The chunks of each pack, by its number and their first byte within it.
const PACKS: TableDefinition<'static, (u64, u32), &'static [u8]> = TableDefinition::new("packs");
/// Where the values of each pack lie.
const DIRECTORIES: TableDefinition<'static, u64, &'static [u8]> =
    TableDefinition::new("directories");

/// The table of each space, in the order of [`Space::ALL`]. That of the records is not used.
const TABLES: [Table; Space::COUNT] = {
    let mut tables = [TableDefinition::new(Space::ALL[0].name()); Space::COUNT];
    let mut index = 0;
    while index < Space::COUNT {
        tables[index] = TableDefinition::new(Space::ALL[index].name());
        index += 1;
    }
    tables
};

/// How the embedded engine is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedbConfig {
    /// Memory for the page cache, in bytes.
    pub cache_bytes: usize,
    /// Files up to this size, in bytes, have every page verified when they are opened after a
    /// clean close; after a crash every page is verified anyway. What it costs is one read of the
    /// file. What it buys: redb does not verify pages as it reads them, and while a damaged value
    /// is always noticed by its trailer, a damaged inner page can hide rows. Larger files are
    /// opened with a warning instead.
    pub verify_up_to: u64,
    /// What a commit does for the sake of recovery.
    pub recovery: Recovery,
}

impl Default for RedbConfig {
    fn default() -> Self {
        Self {
            cache_bytes: DEFAULT_CACHE_BYTES,
            verify_up_to: DEFAULT_VERIFY_UP_TO,
            recovery: Recovery::default(),
        }
    }
}

/// What a commit does for the sake of recovery after a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Recovery {
    /// One sync for each commit; the commit that a crash interrupted is recognised by its
    /// checksums, and recovery reads the whole file twice.
    #[default]
    OnePhase,
    /// Two syncs for each commit: recovery need not trust a checksum to tell a torn commit from a
    /// whole one. It still reads the file.
    TwoPhase,
    /// Two syncs, and the allocator's state saved with each commit: recovery takes milliseconds,
    /// and each commit costs more the larger the file is.
    Quick,
}

/// What the writer and the readers share.
#[derive(Default)]
struct Shared {
    /// `None` once closed.
    database: RwLock<Option<Database>>,
    /// What a snapshot taken now sees; `None` once closed.
    view: RwLock<Option<Arc<view::View>>>,
}

impl Shared {
    fn database(&self) -> RwLockReadGuard<'_, Option<Database>> {
        self.database.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn view(&self) -> Option<Arc<view::View>> {
        let view = self.view.read().unwrap_or_else(PoisonError::into_inner);
        view.clone()
    }

    fn show(&self, view: Option<Arc<view::View>>) {
        let mut shown = self.view.write().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *shown, view);
        drop(shown);
        // Ending a read transaction takes a lock of the database: not under ours.
        drop(old);
    }

    fn close(&self) {
        let mut database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let database = database.take();
        // Dropped outside the lock: it commits the allocator's state, which takes a sync.
        drop(database);
    }
}

/// A [`Store`] in one redb file.
pub struct RedbStore {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    shard: Shard,
}

impl RedbStore {
    /// Opens the store at `path`, creating it if there is no file. Blocking: after a crash it
    /// reads the whole file.
    ///
    /// # Errors
    /// If the file is in use, of another version, damaged, or not a store; see [`OpenError`].
    pub fn open(path: impl AsRef<Path>, config: &RedbConfig) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let database = open::open_file(path, config)?;
        Self::start(path.to_owned(), database, config)
    }

    /// Opens the store in `backend`, creating it if the backend is empty. `name` stands for the
    /// file in errors. For tests: [`crate::fault`] has backends that fail on request.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_with_backend(
        backend: impl StorageBackend,
        name: impl Into<PathBuf>,
        config: &RedbConfig,
    ) -> Result<Self, OpenError> {
        let name = name.into();
        let database = open::open_backend(backend, &name, config)?;
        Self::start(name, database, config)
    }

    fn start(file: PathBuf, database: Database, config: &RedbConfig) -> Result<Self, OpenError> {
        let (index, sight) = open::load_index(&database, &file)?;
        let shared = Arc::<Shared>::default();
        *shared
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(database);
        let gate = Arc::new(Gate::new(file.clone()));
        let (name, recovery) = (file.clone(), config.recovery);
        let engine = write::RedbEngine::new(Arc::clone(&shared), index, sight, name, recovery)
            .map_err(|error| open::open_error(&file, error))?;
        let shard = Shard::start(Arc::clone(&gate), engine).map_err(|source| OpenError::Io {
            action: "start a writer thread for",
            file,
            source,
        })?;
        Ok(Self {
            shared,
            gate,
            shard,
        })
    }
}

impl Store for RedbStore {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, ReadError> {
        match self.shared.view() {
            Some(view) => {
                let gate = Arc::clone(&self.gate);
                Ok(Box::new(read::RedbSnapshot::new(view, gate)))
            }
            None => Err(ReadError::Closed {
                file: self.gate.file.clone(),
            }),
        }
    }

    fn reserve(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
        self.shard.reserve(bytes)
    }

    fn try_reserve(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        self.shard.try_reserve(bytes)
    }

    fn submit(&self, permit: Permit, batch: WriteBatch, done: Done) {
        self.shard.submit(permit, batch, done);
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shard.health()
    }

    fn stats(&self) -> StoreStats {
        self.shard.stats()
    }

    fn close(&self) {
        self.shard.close();
    }
}

#[cfg(test)]
mod tests;
