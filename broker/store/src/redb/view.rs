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
use super::{PACKS, TABLES};
use crate::space::Space;

pub(super) type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;
pub(super) type Chunks = ReadOnlyTable<(u64, u32), &'static [u8]>;

/// The state after one commit.
pub(super) struct View {
    // Opening a table searches the tree of tables: once for each view that is read.
    tables: [OnceLock<Rows>; Space::COUNT],
    packs: OnceLock<Chunks>,
    transaction: ReadTransaction,
    pub(super) sight: Sight,
    pub(super) index: Arc<RwLock<HotIndex>>,
}

impl View {
    /// The state that `database` is in now, which must be the one after `sight.commit`.
    pub(super) fn new(
        database: &Database,
        sight: Sight,
        index: Arc<RwLock<HotIndex>>,
    ) -> Result<Self, RedbError> {
        Ok(Self {
            tables: [const { OnceLock::new() }; Space::COUNT],
            packs: OnceLock::new(),
            transaction: database.begin_read()?,
            sight,
            index,
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
