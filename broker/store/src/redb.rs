//! The embedded engine: one redb file, one table for each [`Space`] but the records', which lie in
//! packs.
//!
//! * [`open`]: creating a file so that a crash cannot leave half of one, opening, verifying.
//! * [`migrate`]: what happens to a file of format 1.
//! * [`write`]: one group of batches, one write transaction, one sync.
//! * [`records`] and [`pack`]: what a commit appends, and how it lies in the file.
//! * [`hot`]: the index of the packs, in memory.
//! * [`seal`], [`desk`], [`sealed`], [`extent`] and [`sweep`]: moving the oldest packs into
//!   segments beside the file, the rows that say so, and giving their space back.
//! * [`view`]: the state after one commit, which snapshots share.
//! * [`check`] and [`offline`]: looking at everything, and taking damaged segments out.
//! * [`freeze`] and [`restore`]: what a backup copies, and a store made of it.
//! * [`read`] and [`merge`]: snapshots, with every value checked against its trailer; [`heads`]:
//!   what they tell without reading values.
//!
//! What is absent: compaction of the file itself. Freed pages are used again, and sealing keeps
//! what is in use below a limit.

mod ahead;
mod check;
mod desk;
mod extent;
mod freeze;
mod heads;
mod hot;
mod merge;
mod meter;
mod migrate;
mod offline;
mod open;
mod pack;
mod read;
mod records;
mod restore;
mod seal;
mod sealed;
mod sweep;
mod view;
mod write;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::thread::{self, JoinHandle};

use ::redb::{Database, StorageBackend, TableDefinition};
use tokio::sync::watch;

use crate::backup::{BackupError, Frozen, StoreId};
use crate::batch::WriteBatch;
use crate::check::{CheckTotals, Inspector};
use crate::error::{CommitError, OpenError, ReadError};
use crate::limits::{
    DEFAULT_CACHE_BYTES, DEFAULT_HOT_BYTES, DEFAULT_VERIFY_UP_TO, SEALS_BEFORE_BACKUP,
    SEGMENT_BYTES,
};
use crate::pace::{Pace, Stopwatch};
use crate::queue::{Gate, Permit};
use crate::segment::fault::FaultFiles;
use crate::segment::{DirFiles, Files, Segments};
use crate::shard::Shard;
use crate::space::Space;
use crate::store::{Done, Health, Pending, Snapshot, Store, StoreStats};

pub use offline::{LostRun, Mended, OfflineStore, QuarantineError, Quarantined};
pub use restore::{Restorer, RowRestorer};

type Table = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// The chunks of each pack, by its number and their first byte within it.
const PACKS: TableDefinition<'static, (u64, u32), &'static [u8]> = TableDefinition::new("packs");
/// Where the values of each pack lie.
const DIRECTORIES: TableDefinition<'static, u64, &'static [u8]> =
    TableDefinition::new("directories");

/// Which segment holds which records, by the first of their keys.
const EXTENTS: Table = TableDefinition::new("extents");
/// The segments in use.
const SEGMENTS: TableDefinition<'static, u64, &'static [u8]> = TableDefinition::new("segments");
/// Numbers that the engine keeps for itself.
const ENGINE: TableDefinition<'static, &'static str, u64> = TableDefinition::new("engine");
/// In [`ENGINE`]: the first pack that is not sealed.
const FLOOR: &str = "floor";
/// In [`ENGINE`]: the number of the next segment.
const NEXT_SEGMENT: &str = "next segment";
/// In [`ENGINE`]: what the store is known by, as two halves of a number.
const STORE_ID: [&str; 2] = ["store id, upper half", "store id, lower half"];

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
    /// What the file may take on the disk, in bytes, as far as records go: beyond a part of it the
    /// oldest are moved to segments, and appends wait rather than exceed it.
    pub hot_bytes: u64,
    /// About how many bytes of records become one segment; a part of them is in memory meanwhile.
    pub segment_bytes: u64,
}

impl Default for RedbConfig {
    fn default() -> Self {
        Self {
            cache_bytes: DEFAULT_CACHE_BYTES,
            verify_up_to: DEFAULT_VERIFY_UP_TO,
            recovery: Recovery::default(),
            hot_bytes: DEFAULT_HOT_BYTES,
            segment_bytes: SEGMENT_BYTES,
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
    meter: Arc<meter::Meter>,
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

/// A [`Store`] in one redb file, with segments beside it.
pub struct RedbStore {
    shared: Arc<Shared>,
    gate: Arc<Gate>,
    desk: Arc<desk::Desk>,
    sealer: Mutex<Option<JoinHandle<()>>>,
    shard: Shard,
    id: StoreId,
    segment_bytes: u64,
}

/// The directory of the segments that belong to the file at `path`.
fn segment_directory(path: &Path) -> PathBuf {
    path.with_extension("segments")
}

impl RedbStore {
    /// Opens the store at `path`, creating it if there is neither a file nor a segment; its
    /// segments lie in a directory of the same name that ends in `.segments`. Blocking: after a
    /// crash it reads the whole file. A file of format 1 is brought to format 2 first, which moves
    /// every record once, needs as much free space as they take, and cannot be undone; what it was
    /// interrupted in, the next opening finishes.
    ///
    /// # Errors
    /// If the file is in use, of another version, damaged, not a store, or missing though its
    /// segments are there; see [`OpenError`].
    pub fn open(path: impl AsRef<Path>, config: &RedbConfig) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let watch = Stopwatch::start();
        let meter = Arc::default();
        let database = open::open_file_of(path, config, &meter, &migrate::KNOWN)?;
        let files = DirFiles::open(&segment_directory(path)).map_err(open::segment_error)?;
        let store = Self::start(path.to_owned(), database, Arc::new(files), config, meter)?;
        store.shared.meter.opened(watch.elapsed());
        Ok(store)
    }

    /// Opens the store in `backend`, creating it if the backend is empty, with its segments in
    /// memory. `name` stands for the file in errors. For tests: [`crate::fault`] has backends that
    /// fail on request.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_with_backend(
        backend: impl StorageBackend,
        name: impl Into<PathBuf>,
        config: &RedbConfig,
    ) -> Result<Self, OpenError> {
        Self::open_with(backend, Arc::new(FaultFiles::new()), name, config)
    }

    /// As [`RedbStore::open_with_backend`], with its segments in `files`.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_with(
        backend: impl StorageBackend,
        files: Arc<dyn Files>,
        name: impl Into<PathBuf>,
        config: &RedbConfig,
    ) -> Result<Self, OpenError> {
        let name = name.into();
        let watch = Stopwatch::start();
        let meter = Arc::default();
        let database = open::open_backend_with(backend, &*files, &name, config, &meter)?;
        let store = Self::start(name, database, files, config, meter)?;
        store.shared.meter.opened(watch.elapsed());
        Ok(store)
    }

    /// Moves a segment's worth of the oldest records out of the hot file now, however few there
    /// are. Blocking; whether it could be done shows in [`Store::trouble`]. It is done of its own
    /// accord when the file demands it.
    pub fn seal_now(&self) {
        self.desk.seal_now();
    }

    fn start(
        file: PathBuf,
        mut database: Database,
        files: Arc<dyn Files>,
        config: &RedbConfig,
        meter: Arc<meter::Meter>,
    ) -> Result<Self, OpenError> {
        migrate::run(&mut database, &files, &file, config)?;
        let loaded = open::load(&database, &file)?;
        let id = open::store_id(&database, &file)?;
        let next_segment = open::match_segments(&*files, &loaded)?;
        let loaded = open::Loaded {
            next_segment,
            ..loaded
        };
        let segments = Arc::new(Segments::new(files, crate::segment::OpenLimits::default()));
        meter.sealed(loaded.sealed);
        let shared = Arc::new(Shared {
            meter,
            ..Shared::default()
        });
        *shared
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Some(database);
        let gate = Arc::new(Gate::new(file.clone()));
        let desk = Arc::<desk::Desk>::default();
        let engine = write::RedbEngine::new(
            Arc::clone(&shared),
            loaded,
            Arc::clone(&segments),
            Arc::clone(&desk),
            Arc::clone(&gate),
            config,
        );
        let engine = engine.map_err(|error| open::open_error(&file, error))?;
        let no_thread = |action, source| OpenError::Io {
            action,
            file: file.clone(),
            source,
        };
        let shard = Shard::start(Arc::clone(&gate), engine)
            .map_err(|source| no_thread("start a writer thread for", source))?;
        let sealer = seal::Sealer {
            shared: Arc::clone(&shared),
            segments,
            desk: Arc::clone(&desk),
            queue: Arc::clone(shard.queue()),
            next_segment,
            segment_bytes: config.segment_bytes,
            rewriting: seal::Rewriting::new(config.hot_bytes),
            values: Vec::new(),
        };
        let sealer = thread::Builder::new()
            .name("store-sealer".into())
            .spawn(move || sealer.run())
            .map_err(|source| no_thread("start a sealer thread for", source))?;
        Ok(Self {
            shared,
            gate,
            desk,
            sealer: Mutex::new(Some(sealer)),
            shard,
            id,
            segment_bytes: config.segment_bytes,
        })
    }

    /// Seals until less than a segment's worth is not, as far as that can be done.
    fn seal_most(&self) {
        for _ in 0..SEALS_BEFORE_BACKUP {
            let unsealed = |view: Arc<view::View>| view.indexed(|index, _| index.occupied());
            let unsealed = self.shared.view().map_or(0, unsealed);
            let in_vain = self.gate.stopped().is_some() || self.desk.seals_in_vain();
            if unsealed < self.segment_bytes || in_vain {
                return;
            }
            self.seal_now();
        }
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.close();
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

    fn reserve_append(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
        self.shard.reserve_append(bytes)
    }

    fn try_reserve_append(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        self.gate.try_reserve_append(bytes)
    }

    fn submit(&self, permit: Permit, batch: WriteBatch, done: Done) {
        self.shard.submit(permit, batch, done);
    }

    fn trouble(&self) -> Option<String> {
        self.desk.trouble()
    }

    fn freeze(&self) -> Result<Box<dyn Frozen>, BackupError> {
        self.seal_most();
        let Some(view) = self.shared.view() else {
            let file = self.gate.file.clone();
            return Err(ReadError::Closed { file }.into());
        };
        let gate = Arc::clone(&self.gate);
        Ok(Box::new(freeze::FrozenShard::new(self.id, view, gate)?))
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shard.health()
    }

    fn stats(&self) -> StoreStats {
        StoreStats {
            storage: self.shared.meter.read(),
            ..self.shard.stats()
        }
    }

    fn check(&self, inspector: &mut dyn Inspector, pace: &Pace) -> Result<CheckTotals, ReadError> {
        let walk = check::Walk {
            now: &|| self.shared.view(),
            file: &self.gate.file,
            online: true,
            inspector,
            pace,
            watch: Stopwatch::start(),
            totals: CheckTotals::default(),
        };
        match walk.run() {
            (_, Err(check::Interrupted::Closed)) => Err(ReadError::Closed {
                file: self.gate.file.clone(),
            }),
            (totals, _) => Ok(totals),
        }
    }

    fn close(&self) {
        self.desk.close();
        self.shard.close();
        let sealer = self
            .sealer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // It waits for the writer only until it sees that the store is closing.
        if sealer.is_some_and(|sealer| sealer.join().is_err()) {
            tracing::error!(file = %self.gate.file.display(), "the sealer thread panicked");
        }
    }
}

#[cfg(test)]
mod tests;
