//! What snapshots share: the state after one commit.
//!
//! The writer publishes a view after every commit, because only the writer knows which state of
//! the index in memory belongs to which state of the file.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use ::redb::{
    Database, Error as RedbError, Key as RedbKey, ReadOnlyTable, ReadTransaction, ReadableDatabase,
    TableDefinition, Value as RedbValue,
};

use super::hot::{HotIndex, Sight};
use super::{DIRECTORIES, EXTENTS, PACKS, SEGMENTS, TABLES};
use crate::segment::Segments;
use crate::space::Space;

pub(super) type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;
pub(super) type Chunks = ReadOnlyTable<(u64, u32), &'static [u8]>;
pub(super) type Numbered = ReadOnlyTable<u64, &'static [u8]>;

/// The state after one commit.
pub(super) struct View {
    // Opening a table searches the tree of tables: once for each view that is read.
    tables: [OnceLock<Rows>; Space::COUNT],
    packs: OnceLock<Chunks>,
    directories: OnceLock<Numbered>,
    extents: OnceLock<Rows>,
    segment_rows: OnceLock<Numbered>,
    transaction: ReadTransaction,
    pub(super) sight: Sight,
    /// Whether anything is sealed at all.
    pub(super) sealed: bool,
    /// How often something had been taken out of packs.
    pub(super) kills: u64,
    pub(super) index: Arc<RwLock<HotIndex>>,
    pub(super) segments: Arc<Segments>,
}

impl View {
    /// The state that `database` is in now, which must be the one after `sight.commit`.
    pub(super) fn new(
        database: &Database,
        sight: Sight,
        kills: u64,
        index: Arc<RwLock<HotIndex>>,
        segments: Arc<Segments>,
    ) -> Result<Self, RedbError> {
        Ok(Self {
            tables: [const { OnceLock::new() }; Space::COUNT],
            packs: OnceLock::new(),
            directories: OnceLock::new(),
            extents: OnceLock::new(),
            segment_rows: OnceLock::new(),
            transaction: database.begin_read()?,
            sight,
            // The floor is the first pack as long as nothing is sealed.
            sealed: sight.floor > 0,
            kills,
            index,
            segments,
        })
    }

    /// The table of a space other than the records'.
    pub(super) fn table(&self, space: Space) -> Result<&Rows, RedbError> {
        let definition = TABLES[space.index()];
        self.opened(&self.tables[space.index()], definition)
    }

    /// The chunks of the packs.
    pub(super) fn packs(&self) -> Result<&Chunks, RedbError> {
        self.opened(&self.packs, PACKS)
    }

    /// Where the values of each pack lie.
    pub(super) fn directories(&self) -> Result<&Numbered, RedbError> {
        self.opened(&self.directories, DIRECTORIES)
    }

    /// Which segment holds what.
    pub(super) fn extents(&self) -> Result<&Rows, RedbError> {
        self.opened(&self.extents, EXTENTS)
    }

    /// The segments in use.
    pub(super) fn segment_rows(&self) -> Result<&Numbered, RedbError> {
        self.opened(&self.segment_rows, SEGMENTS)
    }

    fn opened<'a, K: RedbKey, V: RedbValue>(
        &self,
        cell: &'a OnceLock<ReadOnlyTable<K, V>>,
        definition: TableDefinition<'_, K, V>,
    ) -> Result<&'a ReadOnlyTable<K, V>, RedbError> {
        if let Some(table) = cell.get() {
            return Ok(table);
        }
        let table = self.transaction.open_table(definition)?;
        Ok(cell.get_or_init(|| table))
    }

    /// Looks something up in the index as this view sees it.
    pub(super) fn indexed<T>(&self, look: impl FnOnce(&HotIndex, &Sight) -> T) -> T {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        look(&index, &self.sight)
    }
}
