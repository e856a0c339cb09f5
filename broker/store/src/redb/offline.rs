//! A store that nobody serves: to be checked, and to have damaged segments taken out.
//!
//! Unlike a store that is opened to serve, it starts no thread, removes no file, and opens though
//! rows are damaged. It has the file to itself all the same.
//!
//! Taking out a segment, in an order in which a crash loses nothing that can be read:
//!
//! ```text
//! 1  what can be read of it goes into new segments, which are made durable
//! 2  its file gets a second name under `quarantine/`
//! 3  one commit: its extents give way to those of the new segments, and the rows that say what
//!    is lost are written
//! 4  its file loses the first name
//! ```

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use ::redb::{Database, Error as RedbError, StorageBackend, WriteTransaction};
use bytes::Bytes;

use super::check::{LiveExtents, Walk, live_in};
use super::extent::{Extent, SegmentRow, successor};
use super::hot::{HotIndex, Sight};
use super::meter::Meter;
use super::records::WriteFault;
use super::sealed::{SealedEntry, SealedTables, set_marks};
use super::view::View;
use super::write::{apply_op, begin};
use super::{ENGINE, FLOOR, NEXT_SEGMENT, Recovery, RedbConfig, TABLES, open, segment_directory};
use crate::batch::{Durability, Key, Op, WriteBatch};
use crate::check::{CheckTotals, Finding, Inspector, Place};
use crate::error::OpenError;
use crate::limits::TRAILER_LEN;
use crate::pace::{Pace, Stopwatch};
use crate::segment::{
    DirFiles, Files, OpenLimits, Segment, SegmentError, SegmentWriter, Segments, Summary, Visit,
};
use crate::space::Space;
use crate::trailer;
use crate::writer::caught;

mod mend;

pub use mend::Mended;

/// A store's files, for as long as no broker has them open.
pub struct OfflineStore {
    path: PathBuf,
    /// Reads of the database: gone before it is.
    view: Option<Arc<View>>,
    database: Database,
    segments: Arc<Segments>,
    /// Pages of the file are damaged, so that nothing may be written to it.
    broken: bool,
}

/// Records that are lost with a segment that was taken out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostRun {
    /// The segment.
    pub segment: u64,
    /// They lie in here, and so does nothing else.
    pub keys: Range<Key>,
    /// About how many bytes they took.
    pub bytes: u64,
}

/// What came of taking out segments.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quarantined {
    /// What is lost.
    pub lost: Vec<LostRun>,
    /// Records that could be read, and have moved to new segments.
    pub saved: u64,
    /// Where the files are now, as far as there were any.
    pub files: Vec<PathBuf>,
}

/// Why segments were not taken out. Nothing has changed then, except that files may be left which
/// the next start removes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuarantineError {
    /// The file that names the segments is itself damaged.
    #[error(
        "{} is damaged itself ({detail}): restore it from a backup", file.display()
    )]
    Hot {
        /// The store file.
        file: PathBuf,
        /// What was found to be wrong.
        detail: String,
    },
    /// A segment cannot be read for a reason that is not damage, or a new one not be written.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// The operating system refused.
    #[error("could not {action} {}: {source}", file.display())]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// The file it was done to.
        file: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// What can be read of a segment.
struct Salvage {
    /// The new segment, unless nothing could be read.
    new: Option<Summary>,
    /// What lies in it, in order.
    entries: Vec<SealedEntry>,
    /// Where what was wanted of the old one lay.
    extents: Vec<(Key, Extent)>,
    /// Which of the entries have something lost before them.
    gaps: Vec<usize>,
    lost: Vec<LostRun>,
}

impl OfflineStore {
    /// Opens the store at `path`. After a crash this recovers the file, as serving it would.
    ///
    /// # Errors
    /// If there is none, a broker has it open, or the file is not one that can be opened at all.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let io = |source| OpenError::Io {
            action: "open",
            file: path.to_owned(),
            source,
        };
        // Whoever serves a directory without a store starts an empty one; this does not.
        if !path.try_exists().map_err(io)? {
            return Err(io(ErrorKind::NotFound.into()));
        }
        let database = open::open_file(path, &unverified(), &Arc::<Meter>::default())?;
        let files = DirFiles::open(&segment_directory(path)).map_err(open::segment_error)?;
        Self::of(path.to_owned(), database, Arc::new(files))
    }

    /// As [`OfflineStore::open`], of a store in `backend`, which is not empty, with its segments in
    /// `files`. `name` stands for the file in errors. For tests: [`crate::fault`] has backends that
    /// fail on request.
    ///
    /// # Errors
    /// As [`OfflineStore::open`].
    pub fn open_with(
        backend: impl StorageBackend,
        files: Arc<dyn Files>,
        name: impl Into<PathBuf>,
    ) -> Result<Self, OpenError> {
        let name = name.into();
        let meter = Arc::<Meter>::default();
        let database = open::open_backend_with(backend, &*files, &name, &unverified(), &meter)?;
        Self::of(name, database, files)
    }

    fn of(path: PathBuf, database: Database, files: Arc<dyn Files>) -> Result<Self, OpenError> {
        let segments = Arc::new(Segments::new(files, OpenLimits::default()));
        let mut store = Self {
            path,
            view: None,
            database,
            segments,
            broken: false,
        };
        let looked = store.look();
        looked.map_err(|error| open::open_error(&store.path, error))?;
        Ok(store)
    }

    /// Takes a view of the file as it is now.
    fn look(&mut self) -> Result<(), RedbError> {
        let floor = match caught(|| mark(&self.database, FLOOR)) {
            Ok(floor) => floor?,
            Err(panic) => return Err(RedbError::Corrupted(panic)),
        };
        let sight = Sight {
            floor,
            end: floor,
            commit: 0,
        };
        let index = Arc::new(RwLock::new(HotIndex::default()));
        let segments = Arc::clone(&self.segments);
        self.view = Some(Arc::new(View::new(
            &self.database,
            sight,
            0,
            index,
            segments,
        )?));
        Ok(())
    }

    /// Looks at everything, as [`crate::Store::check`] does, and at the pages of the file.
    pub fn check(&mut self, inspector: &mut dyn Inspector, pace: &Pace) -> CheckTotals {
        let view = self.view.clone();
        let walk = Walk {
            now: &|| view.clone(),
            file: &self.path,
            online: false,
            inspector,
            pace,
            watch: Stopwatch::start(),
            totals: CheckTotals::default(),
        };
        let (totals, _) = walk.run();
        drop(view);
        if totals.complete
            && let Err(detail) = self.check_pages()
        {
            self.broken = true;
            inspector.found(Finding {
                file: self.path.clone(),
                place: Place::File,
                detail,
                records: Vec::new(),
            });
        }
        totals
    }

    /// Verifies the checksum of every page of the file.
    fn check_pages(&mut self) -> Result<(), String> {
        self.view = None;
        let database = &mut self.database;
        let verified = caught(|| database.check_integrity());
        // Whether the map of free pages was right does not matter: it has been mended.
        verified?.map_err(|error| error.to_string())?;
        self.look().map_err(|error| error.to_string())
    }

    /// Takes segments out of service: what can be read of them, and what `keep` does not refuse,
    /// goes to new segments, the rest is lost, and their files go to a directory `quarantine`
    /// beside the others. `rows` is told what is lost; the rows it makes of that (in other spaces
    /// than the records') are written in the same commit.
    ///
    /// # Errors
    /// See [`QuarantineError`].
    pub fn quarantine(
        &mut self,
        numbers: &[u64],
        keep: &mut dyn FnMut(&[u8], &Bytes) -> bool,
        rows: &mut dyn FnMut(&[LostRun]) -> WriteBatch,
    ) -> Result<Quarantined, QuarantineError> {
        let view = self.view.take().filter(|_| !self.broken);
        let view = view.ok_or_else(|| self.hot("pages do not match their checksums"))?;
        let done = self.take_out(&view, numbers, keep, rows);
        drop(view);
        let looked = self.look().map_err(|error| self.hot(error));
        let done = done?;
        looked?;
        Ok(done)
    }

    fn take_out(
        &self,
        view: &View,
        numbers: &[u64],
        keep: &mut dyn FnMut(&[u8], &Bytes) -> bool,
        rows: &mut dyn FnMut(&[LostRun]) -> WriteBatch,
    ) -> Result<Quarantined, QuarantineError> {
        let hot = |error: RedbError| self.hot(error);
        let files = self.segments.files();
        let listed = files.list().map_err(self.io("list", files.path(0)))?;
        let mark = mark(&self.database, NEXT_SEGMENT).map_err(hot)?;
        let mut next = listed.iter().map(|file| file.number + 1).max();
        next = next.max(Some(mark));
        let mut next = next.unwrap_or(mark);
        let mut taken = BTreeMap::new();
        for &number in numbers {
            let extents = extents_of(view, number).map_err(hot)?;
            let mut salvage = self.salvage(view, number, next, &extents, keep)?;
            next += 1;
            salvage.extents = extents;
            taken.insert(number, salvage);
        }
        let mut done = Quarantined::default();
        for salvage in taken.values() {
            done.lost.extend(salvage.lost.iter().cloned());
            done.saved += salvage.entries.len() as u64;
        }
        let present = numbers
            .iter()
            .filter(|number| listed.iter().any(|file| file.number == **number));
        for &number in present.clone() {
            done.files.push(self.set_aside(number)?);
        }
        let rows = rows(&done.lost);
        let committed = caught(|| self.commit(&taken, next, &rows));
        committed
            .map_err(|panic| self.hot(panic))?
            .map_err(|fault| self.hot(fault))?;
        for &number in present {
            self.segments.remove(number);
            let removed = files.remove(number);
            removed.map_err(self.io("remove", files.path(number)))?;
        }
        files
            .sync_directory()
            .map_err(self.io("sync the directory of", files.path(0)))?;
        Ok(done)
    }

    /// Copies what can be read of segment `number` to segment `new`.
    fn salvage(
        &self,
        view: &View,
        number: u64,
        new: u64,
        extents: &[(Key, Extent)],
        keep: &mut dyn FnMut(&[u8], &Bytes) -> bool,
    ) -> Result<Salvage, QuarantineError> {
        let row = segment_row(view, number).map_err(|error| self.hot(error))?;
        let files = self.segments.files();
        let segment = match Segment::open(&**files, number, row.file_bytes) {
            Ok(segment) => segment,
            Err(error) if is_gone(&error) => return Ok(Salvage::nothing(number, extents)),
            Err(error) => return Err(error.into()),
        };
        let mut salvage = Salvage::empty();
        let mut live = LiveExtents::new(view, number);
        let mut writer: Option<SegmentWriter> = None;
        let mut failed: Option<QuarantineError> = None;
        segment.visit(&mut |visit| {
            let done = match visit {
                Visit::Read(_) => Ok(()),
                // The index was read whole a moment ago: of the blocks nothing is lost with it.
                Visit::Damaged(damage) if damage.offset >= segment.data_end() => Ok(()),
                Visit::Damaged(damage) => live_in(view, number, &damage.keys)
                    .map_err(|error| self.hot(error))
                    .map(|ranges| salvage.lose(number, ranges, damage.bytes)),
                Visit::Entry(key, stored) => match live.holds(key) {
                    Err(error) => Err(self.hot(error)),
                    Ok(false) => Ok(()),
                    Ok(true) if !is_whole(key, &stored, keep) => {
                        let key = Key::from(key);
                        let bytes = (key.len() + stored.len()) as u64;
                        let range = key.clone()..successor(&key);
                        salvage.lose(number, vec![range], bytes);
                        Ok(())
                    }
                    Ok(true) => salvage
                        .save(&mut writer, files, new, key, &stored)
                        .map_err(QuarantineError::from),
                },
            };
            failed = done.err();
            failed.is_none()
        });
        if let Some(error) = failed {
            return Err(error);
        }
        salvage.new = writer.map(SegmentWriter::finish).transpose()?;
        Ok(salvage)
    }

    /// Gives the file of segment `number` a second name, where nobody looks for segments.
    fn set_aside(&self, number: u64) -> Result<PathBuf, QuarantineError> {
        let files = self.segments.files();
        let aside = files.set_aside(number);
        aside.map_err(self.io("set aside", files.path(number)))
    }

    fn commit(
        &self,
        taken: &BTreeMap<u64, Salvage>,
        next: u64,
        rows: &WriteBatch,
    ) -> Result<(), WriteFault> {
        let floor = mark(&self.database, FLOOR)?;
        let transaction = begin(&self.database, Durability::Sync, Recovery::TwoPhase)?;
        let mut sealed = SealedTables::open(&transaction)?;
        for salvage in taken.values() {
            for (start, extent) in &salvage.extents {
                sealed.cut(&(&start[..]..&extent.end[..]), &self.segments)?;
            }
            if let Some(new) = &salvage.new {
                let gap = |at: usize| salvage.gaps.binary_search(&at).is_ok();
                let segment = (new.number, new.file_bytes);
                sealed.add(segment, &salvage.entries, gap, &self.segments)?;
            }
        }
        drop(sealed.finish());
        set_marks(&transaction, floor, next)?;
        apply_rows(&transaction, rows)?;
        transaction.commit().map_err(RedbError::from)?;
        Ok(())
    }

    fn hot(&self, detail: impl ToString) -> QuarantineError {
        QuarantineError::Hot {
            file: self.path.clone(),
            detail: detail.to_string(),
        }
    }

    fn io(&self, action: &'static str, file: PathBuf) -> impl FnOnce(io::Error) -> QuarantineError {
        move |source| QuarantineError::Io {
            action,
            file,
            source,
        }
    }
}

/// Writes rows of other spaces than the records'.
fn apply_rows(transaction: &WriteTransaction, rows: &WriteBatch) -> Result<(), WriteFault> {
    let mut scratch = Vec::new();
    for op in rows.ops() {
        let (Op::Put { space, .. } | Op::Delete { space, .. } | Op::DeleteRange { space, .. }) = op;
        debug_assert!(*space != Space::Records, "records are not written here");
        let mut table = transaction
            .open_table(TABLES[space.index()])
            .map_err(RedbError::from)?;
        apply_op(&mut table, &mut scratch, op)?;
    }
    Ok(())
}

impl Salvage {
    fn empty() -> Self {
        Self {
            new: None,
            entries: Vec::new(),
            extents: Vec::new(),
            gaps: Vec::new(),
            lost: Vec::new(),
        }
    }

    /// All of `extents` is lost.
    fn nothing(segment: u64, extents: &[(Key, Extent)]) -> Self {
        let lost = extents.iter().map(|(start, extent)| LostRun {
            segment,
            keys: start.clone()..extent.end.clone(),
            bytes: extent.bytes,
        });
        Self {
            lost: lost.collect(),
            ..Self::empty()
        }
    }

    /// `ranges` are lost, which follow what was saved last.
    fn lose(&mut self, segment: u64, ranges: Vec<Range<Key>>, bytes: u64) {
        let share = bytes / (ranges.len() as u64).max(1);
        self.lost.extend(ranges.into_iter().map(|keys| LostRun {
            segment,
            keys,
            bytes: share,
        }));
        if self.gaps.last() != Some(&self.entries.len()) {
            self.gaps.push(self.entries.len());
        }
    }

    fn save(
        &mut self,
        writer: &mut Option<SegmentWriter>,
        files: &Arc<dyn Files>,
        number: u64,
        key: &[u8],
        stored: &[u8],
    ) -> Result<(), SegmentError> {
        let writer = match writer {
            Some(writer) => writer,
            None => writer.insert(SegmentWriter::new(Arc::clone(files), number)?),
        };
        writer.push(key, stored)?;
        self.entries.push(SealedEntry {
            key: Key::from(key),
            bytes: (key.len() + stored.len() - TRAILER_LEN) as u64,
        });
        Ok(())
    }
}

/// How it is opened: it is verified by the check itself, after everything else.
fn unverified() -> RedbConfig {
    RedbConfig {
        verify_up_to: 0,
        ..RedbConfig::default()
    }
}

/// Whether nothing of the segment can be read, now or later.
fn is_gone(error: &SegmentError) -> bool {
    match error {
        SegmentError::Damaged { .. } => true,
        SegmentError::Io { source, .. } => source.kind() == ErrorKind::NotFound,
        SegmentError::Version { .. } | SegmentError::Refused { .. } => false,
    }
}

fn is_whole(key: &[u8], stored: &Bytes, keep: &mut dyn FnMut(&[u8], &Bytes) -> bool) -> bool {
    match trailer::open(Space::Records, key, stored) {
        Ok(value) => {
            let len = value.len();
            keep(key, &stored.slice(..len))
        }
        Err(_) => false,
    }
}

fn mark(database: &Database, name: &str) -> Result<u64, RedbError> {
    use ::redb::ReadableDatabase as _;
    let marks = database.begin_read()?.open_table(ENGINE)?;
    Ok(marks.get(name)?.map_or(0, |row| row.value()))
}

fn segment_row(view: &View, number: u64) -> Result<SegmentRow, RedbError> {
    let row = view.segment_rows()?.get(number)?;
    let row = row.map(|row| SegmentRow::decode(number, row.value()));
    match row {
        Some(Ok(row)) => Ok(row),
        Some(Err(why)) => Err(RedbError::Corrupted(format!("segment {number}: {why}"))),
        None => Err(RedbError::Corrupted(format!(
            "segment {number} is not known"
        ))),
    }
}

/// The extents of segment `number`, with where they begin.
fn extents_of(view: &View, number: u64) -> Result<Vec<(Key, Extent)>, RedbError> {
    let mut extents = Vec::new();
    for row in view.extents()?.range::<&[u8]>(..)? {
        let (start, row) = row?;
        let start = Key::from(start.value());
        match Extent::decode(&start, row.value()) {
            Ok(extent) if extent.segment == number => extents.push((start, extent)),
            Ok(_) => {}
            Err(why) => return Err(RedbError::Corrupted(format!("a row of extents: {why}"))),
        }
    }
    Ok(extents)
}
