//! Bringing a file of format 1 up to date when it is opened.
//!
//! Format 1 knew neither packs nor segments: each record batch was a row of the table `records`,
//! at its key, with its trailer. All of them move into segments, the smallest keys first:
//!
//! ```text
//! 1  one commit: the tables that format 2 has besides, and the number of a move under way
//! 2  about a segment's worth of rows is copied into a new segment file, which is made durable
//! 3  one commit: that segment and its extents, and without those rows    2 and 3 until none is left
//! 4  one commit: without the table; then the file is compacted, since most of it is free now
//! 5  one commit: the number of format 2
//! ```
//!
//! Every commit leaves each record in exactly one place. Whatever interrupts the move, a crash or
//! a full disk, the next opening goes on where it stopped; a segment that no commit names is
//! removed first. Until step 4 the file keeps its size, so the move needs as much free space as
//! the records take.
//!
//! There is no way back. A version that knows format 1 refuses the file from step 1 on, by its
//! number, and this one does not write format 1: whoever may want to return to the old version
//! keeps a copy of the data directory from before.
//!
//! What is absent: repair. A batch that does not match its trailer moves as it is, and is reported
//! to whoever reads it, as it was before.

use std::path::Path;
use std::sync::Arc;

use ::redb::{
    Database, Error as RedbError, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    TableError, WriteTransaction,
};

use super::open::{self, FORMAT, FORMAT_KEY, FORMAT_VERSION};
use super::records::WriteFault;
use super::sealed::{SealedEntry, SealedTables, set_marks};
use super::write::begin;
use super::{DIRECTORIES, ENGINE, EXTENTS, PACKS, Recovery, RedbConfig, SEGMENTS, TABLES, Table};
use crate::batch::{Durability, Key};
use crate::error::OpenError;
use crate::limits::TRAILER_LEN;
use crate::segment::{Files, OpenLimits, SegmentError, SegmentWriter, Segments, Summary};
use crate::space::Space;
use crate::trailer;

/// The format that is brought up to date.
const FIRST: u32 = 1;

/// The number of a file whose records are on their way from one format to the other. No version
/// takes it for its own.
const UNDER_WAY: u32 = FIRST << 16 | FORMAT_VERSION;

/// The formats of files that [`run`] brings up to date, and the one they are brought to.
pub(super) const KNOWN: [u32; 3] = [FORMAT_VERSION, FIRST, UNDER_WAY];

/// The table of format 1 in which every record batch was a row.
const BATCHES: Table = TABLES[Space::Records.index()];

/// Why a step was not taken.
enum Fault {
    Engine(RedbError),
    Open(OpenError),
}

impl<E: Into<RedbError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Engine(error.into())
    }
}

impl From<SegmentError> for Fault {
    fn from(error: SegmentError) -> Self {
        Self::Open(open::segment_error(error))
    }
}

/// Brings the file up to date if it is not. Blocking: it reads and writes every record once.
pub(super) fn run(
    database: &mut Database,
    files: &Arc<dyn Files>,
    file: &Path,
    config: &RedbConfig,
) -> Result<(), OpenError> {
    let found = guarded(file, || Ok(open::format(database)?))?;
    if found == Some(FORMAT_VERSION) {
        return Ok(());
    }
    if found == Some(FIRST) {
        tracing::info!(
            file = %file.display(),
            "moving the records of format {FIRST} to format {FORMAT_VERSION}: there is no way back"
        );
        guarded(file, || lay_out(database))?;
    }
    // What an interrupted step has left must not be in the way of the next.
    let loaded = open::load(database, file)?;
    let next_segment = open::match_segments(&**files, &loaded)?;
    let mut migration = Migration {
        database,
        files,
        segments: Segments::new(Arc::clone(files), OpenLimits::default()),
        next_segment,
        wanted: config.segment_bytes,
        moved: 0,
    };
    while let Some(left) = guarded(file, || migration.step())? {
        tracing::info!(
            file = %file.display(), moved = migration.moved, left,
            "moving records into segments"
        );
    }
    guarded(file, || migration.end())?;
    tracing::info!(file = %file.display(), "the file is of format {FORMAT_VERSION} now");
    Ok(())
}

/// Runs something that may fail or panic on a damaged file.
fn guarded<T>(file: &Path, work: impl FnOnce() -> Result<T, Fault>) -> Result<T, OpenError> {
    open::guarded(file, || match work() {
        Ok(done) => Ok(Ok(done)),
        Err(Fault::Engine(error)) => Err(error),
        Err(Fault::Open(error)) => Ok(Err(error)),
    })
}

/// Makes the tables that format 1 did not have.
fn lay_out(database: &Database) -> Result<(), Fault> {
    let transaction = start(database)?;
    transaction.open_table(PACKS)?;
    transaction.open_table(DIRECTORIES)?;
    transaction.open_table(EXTENTS)?;
    transaction.open_table(SEGMENTS)?;
    transaction.open_table(ENGINE)?;
    set_format(&transaction, UNDER_WAY)?;
    transaction.commit()?;
    Ok(())
}

fn start(database: &Database) -> Result<WriteTransaction, RedbError> {
    begin(database, Durability::Sync, Recovery::TwoPhase)
}

fn set_format(transaction: &WriteTransaction, version: u32) -> Result<(), RedbError> {
    let mut table = transaction.open_table(FORMAT)?;
    table.insert(FORMAT_KEY, &open::format_row(version)[..])?;
    Ok(())
}

/// Rows that were copied into a segment.
struct Copied {
    segment: Summary,
    entries: Vec<SealedEntry>,
}

struct Migration<'a> {
    database: &'a mut Database,
    files: &'a Arc<dyn Files>,
    segments: Segments,
    next_segment: u64,
    /// About how many bytes become one segment.
    wanted: u64,
    /// Record batches moved so far.
    moved: u64,
}

impl Migration<'_> {
    /// Moves a segment's worth of rows. Says how many are left, or that there were none.
    fn step(&mut self) -> Result<Option<u64>, Fault> {
        let Some(Copied { segment, entries }) = self.copy()? else {
            return Ok(None);
        };
        let transaction = start(self.database)?;
        let left = {
            let mut batches = transaction.open_table(BATCHES)?;
            batches.retain_in::<&[u8], _>(..=&segment.last[..], |_, _| false)?;
            batches.len()?
        };
        let mut sealed = SealedTables::open(&transaction).map_err(write_fault)?;
        let place = (segment.number, segment.file_bytes);
        sealed
            .add(place, &entries, |_| false, &self.segments)
            .map_err(write_fault)?;
        drop(sealed);
        // That the first pack is not number 0 is how a view knows that something is sealed.
        set_marks(&transaction, 1, self.next_segment).map_err(write_fault)?;
        transaction.commit()?;
        self.moved += segment.entries;
        Ok(Some(left))
    }

    /// Copies the first rows into a segment of their own.
    fn copy(&mut self) -> Result<Option<Copied>, Fault> {
        let transaction = self.database.begin_read()?;
        let batches = match transaction.open_table(BATCHES) {
            // An interrupted end has removed it.
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            opened => opened?,
        };
        let mut rows = batches.iter()?.peekable();
        if rows.peek().is_none() {
            return Ok(None);
        }
        let number = self.next_segment;
        self.next_segment += 1;
        let mut writer = SegmentWriter::new(Arc::clone(self.files), number)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while bytes < self.wanted
            && let Some(row) = rows.next()
        {
            let (key, stored) = row?;
            let (key, stored) = (key.value(), stored.value());
            if let Err(damaged) = trailer::open(Space::Records, key, stored) {
                tracing::error!(key = %key.escape_ascii(), %damaged, "moving a batch as it is");
            }
            writer.push(key, stored)?;
            let len = (key.len() + stored.len()).saturating_sub(TRAILER_LEN) as u64;
            bytes += len;
            let key = Key::from(key);
            entries.push(SealedEntry { key, bytes: len });
        }
        let segment = writer.finish()?;
        Ok(Some(Copied { segment, entries }))
    }

    /// Gives the space back and raises the format.
    fn end(self) -> Result<(), Fault> {
        let transaction = start(self.database)?;
        transaction.delete_table(BATCHES)?;
        transaction.commit()?;
        // Before the format is raised: if it is interrupted, the next opening does it again.
        self.database.compact()?;
        let transaction = start(self.database)?;
        set_format(&transaction, FORMAT_VERSION)?;
        transaction.commit()?;
        Ok(())
    }
}

fn write_fault(fault: WriteFault) -> Fault {
    match fault {
        WriteFault::Engine(error) => Fault::Engine(error),
        other => Fault::Engine(RedbError::Corrupted(other.to_string())),
    }
}
