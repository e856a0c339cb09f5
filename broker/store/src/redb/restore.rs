//! Making a store of what was backed up: see [`crate::backup`].
//!
//! ```text
//! 1  a new file, and the rows that say which records lie in which segment
//! 2  the segments, each under its old number
//! 3  the file is opened as a store, which matches the segments against the rows
//! 4  all other rows, as ordinary commits
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::redb::{Database, Error as RedbError};
use bytes::Bytes;

use super::extent::{Extent, SegmentRow};
use super::{
    EXTENTS, Recovery, RedbConfig, RedbStore, SEGMENTS, open, sealed::set_marks, segment_directory,
    write::begin,
};
use crate::backup::{ExtentInfo, RestoreError, SegmentInfo};
use crate::batch::{Durability, Key, WriteBatch};
use crate::limits::GROUP_BYTES;
use crate::segment::{DirFiles, Files, Segment, SegmentWriter};
use crate::space::Space;
use crate::store::{Direction, Store};

/// Extents that are written in one transaction.
const EXTENTS_AT_ONCE: usize = 10_000;

/// A store that is being made of a backup: first the extents, then the segments that they need,
/// then everything else ([`Restorer::rows`]). All of it blocks.
pub struct Restorer {
    file: PathBuf,
    database: Database,
    files: DirFiles,
    /// What is wanted of each segment.
    wanted: BTreeMap<u64, Wanted>,
    extents: Vec<ExtentInfo>,
}

#[derive(Clone, Copy, Default)]
struct Wanted {
    bytes: u64,
    extents: u64,
}

impl Restorer {
    /// Begins a store at `path`, where nothing is yet.
    ///
    /// # Errors
    /// If the file cannot be created.
    pub fn create(path: &Path) -> Result<Self, RestoreError> {
        let database = open::open_file(path, &RedbConfig::default(), &Arc::default())?;
        let files = DirFiles::open(&segment_directory(path))?;
        Ok(Self {
            file: path.to_owned(),
            database,
            files,
            wanted: BTreeMap::new(),
            extents: Vec::new(),
        })
    }

    /// Adds a run of records.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn extent(&mut self, extent: ExtentInfo) -> Result<(), RestoreError> {
        let wanted = self.wanted.entry(extent.segment).or_default();
        wanted.bytes += extent.bytes;
        wanted.extents += 1;
        self.extents.push(extent);
        if self.extents.len() >= EXTENTS_AT_ONCE {
            self.write(&[])?;
        }
        Ok(())
    }

    /// The segments that the extents need, by number.
    #[must_use]
    pub fn segments(&self) -> Vec<u64> {
        self.wanted.keys().copied().collect()
    }

    /// Where to copy the segments that are taken whole, each under its number.
    #[must_use]
    pub fn files(&self) -> &DirFiles {
        &self.files
    }

    /// Adds those of `extents` that hold anything, and copies what lies in them, and nothing else,
    /// from their segment. They are in the order of their keys. Returns what the segment is now;
    /// `None` if there is nothing in them.
    ///
    /// # Errors
    /// If the segment cannot be read, or the copy cannot be written.
    pub fn extract(
        &mut self,
        source: &Segment,
        extents: &[ExtentInfo],
    ) -> Result<Option<SegmentInfo>, RestoreError> {
        let files: Arc<dyn Files> = Arc::new(self.files.clone());
        let mut writer = SegmentWriter::new(files, source.number())?;
        let mut data_bytes = 0;
        for extent in extents {
            let mut any = false;
            for row in source.iter_range(&extent.start..&extent.end, Direction::Forward) {
                let row = row?;
                writer.push(&row.key, &row.value)?;
                any = true;
            }
            if any {
                data_bytes += extent.bytes;
                self.extent(extent.clone())?;
            }
        }
        if !self.wanted.contains_key(&source.number()) {
            return Ok(None);
        }
        let written = writer.finish()?;
        Ok(Some(SegmentInfo {
            number: written.number,
            file_bytes: written.file_bytes,
            data_bytes,
        }))
    }

    /// Goes on with the rows, once every segment is there. `infos` are the segments of the backup,
    /// needed or not.
    ///
    /// # Errors
    /// If one that is needed is not among them, or the file cannot be written or opened.
    pub fn rows(mut self, infos: &[SegmentInfo]) -> Result<RowRestorer, RestoreError> {
        if let (Some(number), true) = (self.wanted.keys().next(), infos.is_empty()) {
            return Err(RestoreError::UnknownSegment(*number));
        }
        self.write(infos)?;
        let Self {
            file,
            database,
            files,
            ..
        } = self;
        files
            .sync_directory()
            .map_err(|error| RestoreError::Write {
                file: segment_directory(&file),
                detail: error.to_string(),
            })?;
        drop(database);
        let store = RedbStore::open(&file, &RedbConfig::default())?;
        Ok(RowRestorer {
            store,
            batch: WriteBatch::new(),
        })
    }

    /// Writes the extents gathered so far, and, if `infos` is given, the segments' rows.
    fn write(&mut self, infos: &[SegmentInfo]) -> Result<(), RestoreError> {
        let infos: BTreeMap<u64, &SegmentInfo> =
            infos.iter().map(|info| (info.number, info)).collect();
        let wanted = (!infos.is_empty()).then_some(&self.wanted);
        let mut segments = Vec::new();
        for (number, wanted) in wanted.into_iter().flatten() {
            let info = infos.get(number);
            let info = info.ok_or(RestoreError::UnknownSegment(*number))?;
            let row = SegmentRow {
                file_bytes: info.file_bytes,
                data_bytes: info.data_bytes,
                live_bytes: wanted.bytes.min(info.data_bytes),
                extents: wanted.extents,
            };
            segments.push((*number, row));
        }
        let written = write_sealed(&self.database, &self.extents, &segments);
        written.map_err(|error| RestoreError::Write {
            file: self.file.clone(),
            detail: error.to_string(),
        })?;
        self.extents.clear();
        Ok(())
    }
}

fn write_sealed(
    database: &Database,
    extents: &[ExtentInfo],
    segments: &[(u64, SegmentRow)],
) -> Result<(), RedbError> {
    let transaction = begin(database, Durability::Sync, Recovery::TwoPhase)?;
    let mut table = transaction.open_table(EXTENTS)?;
    for info in extents {
        let extent = Extent {
            segment: info.segment,
            end: info.end.clone(),
            bytes: info.bytes,
        };
        table.insert(&info.start[..], &extent.encode(&info.start)[..])?;
    }
    drop(table);
    let mut table = transaction.open_table(SEGMENTS)?;
    for (number, row) in segments {
        table.insert(number, &row.encode(*number)[..])?;
    }
    drop(table);
    if let Some((last, _)) = segments.last() {
        // That the first pack is not number 0 is how a view knows that something is sealed.
        set_marks(&transaction, 1, last + 1).map_err(|error| match error {
            super::records::WriteFault::Engine(error) => error,
            other => RedbError::Corrupted(other.to_string()),
        })?;
    }
    transaction.commit()?;
    Ok(())
}

/// The second half of [`Restorer`].
pub struct RowRestorer {
    store: RedbStore,
    batch: WriteBatch,
}

impl RowRestorer {
    /// Adds a row.
    ///
    /// # Errors
    /// If rows cannot be committed.
    pub async fn put(&mut self, space: Space, key: Key, value: Bytes) -> Result<(), RestoreError> {
        self.batch.put(space, key, value);
        if self.batch.byte_len() >= GROUP_BYTES {
            self.commit().await?;
        }
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), RestoreError> {
        let batch = std::mem::take(&mut self.batch);
        self.store.commit(batch).await?;
        Ok(())
    }

    /// Commits what is left and closes the store.
    ///
    /// # Errors
    /// If rows cannot be committed.
    pub async fn finish(mut self) -> Result<(), RestoreError> {
        self.commit().await?;
        self.store.close();
        Ok(())
    }
}
