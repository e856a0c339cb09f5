//! Creating and opening the file.
//!
//! What redb 4.4 does with a damaged file, found by damaging some: a wrong magic number is an IO
//! error, a truncated file one of several errors or an assertion, a flipped bit in a page nothing
//! at all unless the file was not closed cleanly or is asked to verify itself. After a crash it
//! verifies, and takes the older of its two commit slots if the newer does not verify: right for
//! a torn commit, which was never acknowledged. With one-phase commit nothing tells a torn commit
//! from one that was whole and then lost to the disk between the crash and the restart.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, Database, Error as RedbError, ReadableDatabase, StorageBackend, TableDefinition,
    WriteTransaction,
};

use super::ahead::Ahead;
use super::extent::SegmentRow;
use super::hot::{HotIndex, Sight};
use super::meter::{Meter, Metered, SealedTotals};
use super::write::begin;
use super::{
    DIRECTORIES, ENGINE, EXTENTS, FLOOR, NEXT_SEGMENT, PACKS, Recovery, RedbConfig, SEGMENTS,
    STORE_ID, TABLES, migrate, pack, segment_directory,
};
use crate::backup::StoreId;
use crate::batch::Durability;
use crate::error::OpenError;
use crate::limits::{ALLOT_STEP, ALLOTTED_BYTES};
use crate::segment::{DirFiles, Files, SegmentError, StoredFile};
use crate::space::Space;
use crate::writer::caught;

/// Raised whenever a build can write what an older one would misread.
pub(super) const FORMAT_VERSION: u32 = 2;

/// Holds one row: what wrote the file. Apart from the spaces, so that no batch can touch it.
pub(super) const FORMAT: TableDefinition<'static, &'static str, &'static [u8]> =
    TableDefinition::new("millstream");
pub(super) const FORMAT_KEY: &str = "format";

/// Opens the file at `path`, or creates it.
pub(super) fn open_file(
    path: &Path,
    config: &RedbConfig,
    meter: &Arc<Meter>,
) -> Result<Database, OpenError> {
    open_file_of(path, config, meter, &[FORMAT_VERSION])
}

/// As [`open_file`]; it may also be of any of `formats`.
pub(super) fn open_file_of(
    path: &Path,
    config: &RedbConfig,
    meter: &Arc<Meter>,
    formats: &[u32],
) -> Result<Database, OpenError> {
    let found = match path.try_exists() {
        Ok(found) => found,
        Err(source) => return Err(io_error("look for", path, source)),
    };
    if !found {
        let directory = segment_directory(path);
        // Not made before the file: a file that cannot be created leaves nothing behind.
        match std::fs::symlink_metadata(&directory) {
            Ok(_) => {
                let files = DirFiles::open(&directory).map_err(segment_error)?;
                refuse_to_begin_beside(&files, path)?;
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(io_error("look for", &directory, source)),
        }
        create_file(path, config, meter)?;
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| io_error("open", path, source))?;
    let len = file
        .metadata()
        .map_err(|source| io_error("inspect", path, source))?
        .len();
    if len == 0 {
        // redb would take an empty file for a new one, and a broker would start without its
        // records as if it had never had any.
        let detail = "it is empty".to_owned();
        return Err(OpenError::NotAStore {
            file: path.to_owned(),
            detail,
        });
    }
    let same = file
        .try_clone()
        .map_err(|source| io_error("open", path, source))?;
    let backend = FileBackend::new(file).map_err(|error| open_error(path, error.into()))?;
    let backend = Metered::new(backend, meter).with(Ahead::new(same, len));
    open_existing(backend, len, (path, config, formats))
}

/// Refuses to create the file `name` if there are segments already: they are those of a file that
/// was lost, and the new one would have them removed.
fn refuse_to_begin_beside(files: &dyn Files, name: &Path) -> Result<(), OpenError> {
    let segment = files.path(0);
    let directory = segment.parent().unwrap_or(&segment);
    let found = files
        .list()
        .map_err(|source| io_error("list the segments in", directory, source))?;
    if found.is_empty() {
        return Ok(());
    }
    Err(OpenError::Missing {
        file: name.to_owned(),
        directory: directory.to_owned(),
        segments: found.len(),
    })
}

/// As [`open_backend`], for a store with its segments in `files`.
pub(super) fn open_backend_with(
    backend: impl StorageBackend,
    files: &dyn Files,
    name: &Path,
    config: &RedbConfig,
    meter: &Arc<Meter>,
) -> Result<Database, OpenError> {
    let len = backend
        .len()
        .map_err(|source| io_error("inspect", name, source))?;
    if len == 0 {
        refuse_to_begin_beside(files, name)?;
    }
    open_backend(backend, name, config, meter, &migrate::KNOWN)
}

/// Opens what is in `backend`, which may be of any of `formats`, or creates a store in it if it is
/// empty.
fn open_backend(
    backend: impl StorageBackend,
    name: &Path,
    config: &RedbConfig,
    meter: &Arc<Meter>,
    formats: &[u32],
) -> Result<Database, OpenError> {
    let backend = Metered::new(backend, meter);
    let len = backend
        .len()
        .map_err(|source| io_error("inspect", name, source))?;
    if len > 0 {
        return open_existing(backend, len, (name, config, formats));
    }
    guarded(name, || {
        let database = builder(config, name, &Arc::default()).create_with_backend(backend)?;
        lay_out(&database)?;
        Ok(Ok(database))
    })
}

/// Creates the file under another name and gives it its own only when it is complete, so that a
/// crash leaves either no store or a whole one.
fn create_file(path: &Path, config: &RedbConfig, meter: &Arc<Meter>) -> Result<(), OpenError> {
    let mut name = OsString::from(path.file_name().unwrap_or_default());
    name.push(format!(".new-{}", std::process::id()));
    let unfinished = path.with_file_name(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&unfinished)
        .map_err(|source| io_error("create", &unfinished, source))?;
    let backend = FileBackend::new(file).map_err(|error| open_error(path, error.into()))?;
    let formats = [FORMAT_VERSION];
    drop(open_backend(backend, &unfinished, config, meter, &formats)?);
    allot(&unfinished).map_err(|source| io_error("inspect", &unfinished, source))?;
    // A link, not a rename: two brokers that start at once on one directory must not each take
    // the other's file away.
    let linked = std::fs::hard_link(&unfinished, path);
    let removed = std::fs::remove_file(&unfinished);
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(io_error("create", path, error));
        }
        _ => removed.map_err(|source| io_error("remove", &unfinished, source))?,
    }
    sync_directory(path).map_err(|source| io_error("sync the directory of", path, source))
}

/// Writes zeros behind the end of a new file, as far as a small broker's records will go. A sync of
/// blocks that were written before has no file system metadata to carry along: measured with 512 KiB
/// and nine small pages in a sync, 0.22 ms instead of 0.40 on ext4. redb takes the file as long as
/// it finds it, provided that whole pages were added, and gives back what is unused when it closes
/// it. A disk without room for that gets a file without it: a full disk is told of when it matters.
fn allot(path: &Path) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    let len = file.metadata()?.len();
    let zeros = [0; ALLOT_STEP];
    let mut steps = (len..ALLOTTED_BYTES).step_by(ALLOT_STEP);
    if let Err(error) = steps.try_for_each(|_| file.write_all(&zeros)) {
        tracing::warn!(file = %path.display(), %error, "no room to write the new file ahead");
        file.set_len(len)?;
    }
    file.sync_all()
}

/// Without this a power cut can take the new file's name with it, and all that was acknowledged.
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

/// Makes every table, so that no reader has to tell an empty space from a missing one.
fn lay_out(database: &Database) -> Result<(), RedbError> {
    let transaction = begin(database, Durability::Sync, Recovery::TwoPhase)?;
    for space in Space::ALL {
        if space != Space::Records {
            transaction.open_table(TABLES[space.index()])?;
        }
    }
    transaction.open_table(PACKS)?;
    transaction.open_table(DIRECTORIES)?;
    transaction.open_table(EXTENTS)?;
    transaction.open_table(SEGMENTS)?;
    write_store_id(&transaction)?;
    transaction
        .open_table(FORMAT)?
        .insert(FORMAT_KEY, &format_row(FORMAT_VERSION)[..])?;
    transaction.commit()?;
    Ok(())
}

/// Makes up what the store is known by.
fn write_store_id(transaction: &WriteTransaction) -> Result<StoreId, RedbError> {
    // Keyed by the system's randomness; it need not be secret, only different.
    let halves = STORE_ID.map(|half| RandomState::new().hash_one(half));
    let mut marks = transaction.open_table(ENGINE)?;
    for (name, half) in STORE_ID.into_iter().zip(halves) {
        marks.insert(name, half)?;
    }
    Ok(store_id_of(halves))
}

fn store_id_of([upper, lower]: [u64; 2]) -> StoreId {
    StoreId(u128::from(upper) << 64 | u128::from(lower))
}

/// What the store is known by. One of an earlier version gets it now.
pub(super) fn store_id(database: &Database, file: &Path) -> Result<StoreId, OpenError> {
    guarded(file, || {
        let reading = database.begin_read()?;
        let marks = reading.open_table(ENGINE)?;
        let halves = (marks.get(STORE_ID[0])?, marks.get(STORE_ID[1])?);
        if let (Some(upper), Some(lower)) = halves {
            return Ok(Ok(store_id_of([upper.value(), lower.value()])));
        }
        drop((marks, reading));
        let transaction = begin(database, Durability::Sync, Recovery::TwoPhase)?;
        let id = write_store_id(&transaction)?;
        transaction.commit()?;
        Ok(Ok(id))
    })
}

fn open_existing(
    backend: impl StorageBackend,
    len: u64,
    (name, config, formats): (&Path, &RedbConfig, &[u32]),
) -> Result<Database, OpenError> {
    guarded(name, || {
        let recovered = Arc::<AtomicBool>::default();
        let mut database = builder(config, name, &recovered).create_with_backend(backend)?;
        if let Err(error) = check_format(&database, name, formats)? {
            return Ok(Err(error));
        }
        if recovered.load(Ordering::Relaxed) {
            // Recovery has read and verified every page already.
        } else if len > config.verify_up_to {
            tracing::warn!(
                file = %name.display(),
                len,
                "too large to verify at opening: damage will be found only where it is read"
            );
        } else if !database.check_integrity()? {
            // redb has mended its own bookkeeping (which pages are free); all rows verified.
            tracing::warn!(file = %name.display(), "the free-page map was wrong and is rebuilt");
        }
        Ok(Ok(database))
    })
}

/// Sets `recovered` if the file turns out to need recovery.
fn builder(config: &RedbConfig, name: &Path, recovered: &Arc<AtomicBool>) -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(config.cache_bytes);
    let (name, recovered) = (name.to_owned(), Arc::clone(recovered));
    builder.set_repair_callback(move |session| {
        recovered.store(true, Ordering::Relaxed);
        // The engine says which of its steps it has reached by a fraction alone.
        tracing::info!(
            file = %name.display(),
            progress = session.progress(),
            "not closed cleanly: verifying and recovering"
        );
    });
    builder
}

/// Checks what wrote the file. The outer error is of the file, the inner one of its version.
fn check_format(
    database: &Database,
    name: &Path,
    formats: &[u32],
) -> Result<Result<(), OpenError>, RedbError> {
    let file = || name.to_owned();
    Ok(match format(database) {
        Ok(Some(found)) if formats.contains(&found) => Ok(()),
        Ok(Some(found)) => Err(OpenError::Format {
            file: file(),
            found,
            expected: FORMAT_VERSION,
        }),
        Ok(None) => Err(OpenError::Corrupt {
            file: file(),
            detail: "the row with the format version does not match its checksum".to_owned(),
        }),
        Err(RedbError::TableDoesNotExist(_)) => Err(OpenError::NotAStore {
            file: file(),
            detail: "a redb file of another program".to_owned(),
        }),
        Err(error) => return Err(error),
    })
}

/// The version of the file, if its row matches its checksum.
pub(super) fn format(database: &Database) -> Result<Option<u32>, RedbError> {
    let table = database.begin_read()?.open_table(FORMAT)?;
    let row = table.get(FORMAT_KEY)?;
    Ok(row.and_then(|row| read_format_row(row.value())))
}

/// The version and its checksum. This row's layout never changes, whatever the version.
pub(super) fn format_row(version: u32) -> [u8; 8] {
    let version = version.to_le_bytes();
    let mut row = [0; 8];
    row[..4].copy_from_slice(&version);
    row[4..].copy_from_slice(&crc32c::crc32c(&version).to_le_bytes());
    row
}

fn read_format_row(row: &[u8]) -> Option<u32> {
    let version: [u8; 4] = row.first_chunk().copied()?;
    (row[4..] == crc32c::crc32c(&version).to_le_bytes()).then(|| u32::from_le_bytes(version))
}

/// What a database holds, as far as the engine keeps it in memory.
pub(super) struct Loaded {
    pub(super) index: HotIndex,
    pub(super) sight: Sight,
    pub(super) next_segment: u64,
    /// Sealed packs that are still in the file, each with its bytes; the oldest first.
    pub(super) swept: VecDeque<(u64, u64)>,
    /// The segments in use, each with the length of its file.
    pub(super) segments: BTreeMap<u64, u64>,
    /// What they add up to.
    pub(super) sealed: SealedTotals,
}

/// Reads the directories of all packs and the rows of all segments.
pub(super) fn load(database: &Database, file: &Path) -> Result<Loaded, OpenError> {
    guarded(file, || {
        let damaged = |detail| OpenError::Corrupt {
            file: file.to_owned(),
            detail,
        };
        let transaction = database.begin_read()?;
        let marks = transaction.open_table(ENGINE)?;
        let mark = |name| marks.get(name).map(|row| row.map_or(0, |row| row.value()));
        let floor = mark(FLOOR)?;
        let mut loaded = Loaded {
            index: HotIndex::default(),
            sight: Sight {
                floor,
                end: floor,
                commit: 0,
            },
            next_segment: mark(NEXT_SEGMENT)?,
            swept: VecDeque::new(),
            segments: BTreeMap::new(),
            sealed: SealedTotals::default(),
        };
        for row in transaction.open_table(DIRECTORIES)?.range::<u64>(..)? {
            let (number, row) = row?;
            let number = number.value();
            let entries = match pack::decode_directory(number, row.value()) {
                Ok(entries) => entries,
                Err(why) => return Ok(Err(damaged(format!("pack {number}: {why}")))),
            };
            if number < floor {
                let bytes = entries.iter().map(|entry| u64::from(entry.len)).sum();
                loaded.swept.push_back((number, bytes));
            } else {
                loaded.index.insert(number, entries);
                loaded.sight.end = number + 1;
            }
        }
        for row in transaction.open_table(SEGMENTS)?.range::<u64>(..)? {
            let (number, row) = row?;
            let number = number.value();
            match SegmentRow::decode(number, row.value()) {
                Ok(row) => {
                    loaded.segments.insert(number, row.file_bytes);
                    loaded.sealed.add(&row);
                }
                Err(why) => return Ok(Err(damaged(format!("segment {number}: {why}")))),
            }
        }
        Ok(Ok(loaded))
    })
}

/// Removes files that a crash has left, and reports those that are missing. Returns the number for
/// the next segment.
pub(super) fn match_segments(files: &dyn Files, loaded: &Loaded) -> Result<u64, OpenError> {
    let failed = |action, path: PathBuf| {
        move |source| OpenError::Io {
            action,
            file: path,
            source,
        }
    };
    files
        .remove_unfinished()
        .map_err(failed("remove unfinished segments beside", files.path(0)))?;
    let found = files
        .list()
        .map_err(failed("list the segments beside", files.path(0)))?;
    let mut next = loaded.next_segment;
    let mut missing = loaded.segments.clone();
    for StoredFile { number, bytes } in found {
        next = next.max(number + 1);
        let file = files.path(number);
        match missing.remove(&number) {
            // Sealing stopped before its commit, or unlinking after its own.
            None => files.remove(number).map_err(failed("remove", file))?,
            Some(expected) if expected != bytes => tracing::error!(
                file = %file.display(), expected, bytes,
                "a segment is damaged: what it holds is not served"
            ),
            Some(_) => {}
        }
    }
    for number in missing.into_keys() {
        next = next.max(number + 1);
        let file = files.path(number);
        tracing::error!(file = %file.display(), "a segment is missing: what it holds is not served");
    }
    Ok(next)
}

/// A failure to reach the segments at all.
pub(super) fn segment_error(error: SegmentError) -> OpenError {
    match error {
        SegmentError::Io {
            action,
            file,
            source,
        } => OpenError::Io {
            action,
            file,
            source,
        },
        SegmentError::Damaged { ref file, .. }
        | SegmentError::Version { ref file, .. }
        | SegmentError::Refused { ref file, .. } => OpenError::Corrupt {
            file: file.clone(),
            detail: error.to_string(),
        },
    }
}

/// Runs something that may fail or panic on a damaged file.
pub(super) fn guarded<T>(
    file: &Path,
    work: impl FnOnce() -> Result<Result<T, OpenError>, RedbError>,
) -> Result<T, OpenError> {
    match caught(work) {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => Err(open_error(file, error)),
        Err(detail) => Err(OpenError::Corrupt {
            file: file.to_owned(),
            detail,
        }),
    }
}

fn io_error(action: &'static str, file: &Path, source: io::Error) -> OpenError {
    OpenError::Io {
        action,
        file: file.to_owned(),
        source,
    }
}

pub(super) fn open_error(file: &Path, error: RedbError) -> OpenError {
    let file: PathBuf = file.to_owned();
    match error {
        RedbError::DatabaseAlreadyOpen => OpenError::InUse { file },
        RedbError::UpgradeRequired(version) => OpenError::NotAStore {
            file,
            detail: format!("a redb file of format {version}, too old for this engine"),
        },
        RedbError::Io(source) if source.kind() == ErrorKind::InvalidData => OpenError::NotAStore {
            file,
            detail: source.to_string(),
        },
        RedbError::Io(source) if source.kind() == ErrorKind::UnexpectedEof => OpenError::Corrupt {
            file,
            detail: "it ends too early".to_owned(),
        },
        RedbError::Io(source) => OpenError::Io {
            action: "read",
            file,
            source,
        },
        other => OpenError::Corrupt {
            file,
            detail: other.to_string(),
        },
    }
}
