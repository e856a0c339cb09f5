//! Snapshots. Every value is checked against its trailer before it leaves.
//!
//! Values are copied out. redb can hand out its page without a copy, but that pins the read
//! transaction, and with it every page freed since, for as long as the bytes live; the bytes of a
//! fetch live in the send queue of a connection whose peer decides when to read. One stalled
//! consumer would make the file grow as fast as producers write.
//!
//! What it costs, from a profile of `store_bench` scanning 64 KiB values that the operating system
//! has cached, at 1.6 to 2.9 GB/s: the kernel's copy into redb's page takes about half of the
//! time, zeroing that page first a quarter, copying the value out less than a fifth.

use std::cell::OnceCell;
use std::ops::Range;
use std::sync::Arc;

use ::redb::{Error as RedbError, ReadOnlyTable, ReadTransaction};
use bytes::Bytes;

use super::TABLES;
use crate::batch::Key;
use crate::error::{ReadError, StopCause};
use crate::queue::Gate;
use crate::space::Space;
use crate::store::{Direction, Row, ScanLimit, ScanPage, Snapshot};
use crate::trailer::{self, Damaged};
use crate::writer::caught;

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

pub(super) struct RedbSnapshot {
    // Opening a table searches the tree of tables; a chunk of reading does it once for each space.
    tables: [OnceCell<Rows>; Space::COUNT],
    transaction: ReadTransaction,
    gate: Arc<Gate>,
}

/// Why one read failed, before it is known which key to blame.
enum Fault {
    Engine(RedbError),
    /// A value, with its key.
    Value(Key, Damaged),
}

impl<E: Into<RedbError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Engine(error.into())
    }
}

impl RedbSnapshot {
    pub(super) fn new(
        begun: Result<Result<ReadTransaction, RedbError>, String>,
        gate: Arc<Gate>,
    ) -> Result<Self, ReadError> {
        let tables = [const { OnceCell::new() }; Space::COUNT];
        match begun {
            Ok(Ok(transaction)) => Ok(Self {
                tables,
                transaction,
                gate,
            }),
            Ok(Err(error)) => Err(report(&gate, Space::Meta, &[], Fault::Engine(error))),
            Err(panic) => Err(report_damage(&gate, Space::Meta, &[], panic)),
        }
    }

    fn table(&self, space: Space) -> Result<&Rows, Fault> {
        let cell = &self.tables[space.index()];
        if let Some(table) = cell.get() {
            return Ok(table);
        }
        let table = self.transaction.open_table(TABLES[space.index()])?;
        Ok(cell.get_or_init(|| table))
    }

    /// Runs one read; whatever is wrong becomes an error that blames `key`, and stops the shard.
    fn read<T>(
        &self,
        space: Space,
        key: &[u8],
        work: impl FnOnce(&Rows) -> Result<T, Fault>,
    ) -> Result<T, ReadError> {
        match caught(|| work(self.table(space)?)) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(fault)) => Err(report(&self.gate, space, key, fault)),
            Err(panic) => Err(report_damage(&self.gate, space, key, panic)),
        }
    }
}

impl Snapshot for RedbSnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.read(space, key, |table| match table.get(key)? {
            Some(stored) => opened(space, key, stored.value()).map(Some),
            None => Ok(None),
        })
    }

    fn scan(
        &self,
        space: Space,
        range: Range<&[u8]>,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<ScanPage, ReadError> {
        if range.start >= range.end {
            return Ok(ScanPage::default());
        }
        self.read(space, range.start, |table| {
            let mut rows = table.range::<&[u8]>(range.clone())?;
            let mut page = ScanPage::default();
            let mut bytes = 0usize;
            loop {
                let next = match direction {
                    Direction::Forward => rows.next(),
                    Direction::Backward => rows.next_back(),
                };
                let Some(row) = next else { return Ok(page) };
                let (key, stored) = row?;
                let (key, stored) = (key.value(), stored.value());
                bytes = bytes.saturating_add(key.len() + stored.len());
                if limit.is_reached(page.rows.len(), bytes) {
                    page.more = true;
                    return Ok(page);
                }
                let value = opened(space, key, stored)?;
                page.rows.push(Row {
                    key: Key::from(key),
                    value,
                });
            }
        })
    }

    fn floor_key(&self, space: Space, start: &[u8], at: &[u8]) -> Result<Option<Key>, ReadError> {
        if start > at {
            return Ok(None);
        }
        self.read(space, at, |table| {
            match table.range::<&[u8]>(start..=at)?.next_back() {
                Some(row) => Ok(Some(Key::from(row?.0.value()))),
                None => Ok(None),
            }
        })
    }
}

fn opened(space: Space, key: &[u8], stored: &[u8]) -> Result<Bytes, Fault> {
    match trailer::open(space, key, stored) {
        Ok(value) => Ok(Bytes::copy_from_slice(value)),
        Err(damaged) => Err(Fault::Value(Key::from(key), damaged)),
    }
}

fn report(gate: &Gate, space: Space, key: &[u8], fault: Fault) -> ReadError {
    let file = || gate.file.clone();
    match fault {
        Fault::Value(key, damaged) => report_damage(gate, space, &key, damaged.to_string()),
        Fault::Engine(RedbError::DatabaseClosed) => ReadError::Closed { file: file() },
        Fault::Engine(error @ (RedbError::Io(_) | RedbError::PreviousIo)) => {
            let detail = error.to_string();
            gate.stop(StopCause::Io {
                file: file(),
                detail: detail.clone(),
            });
            ReadError::Io {
                file: file(),
                space,
                detail,
            }
        }
        // Whatever else redb says of a read, only a damaged file can make it say: a table that is
        // missing, of another type, or poisoned by an earlier panic.
        Fault::Engine(error) => report_damage(gate, space, key, error.to_string()),
    }
}

/// Damage stops the shard: the disk that lost this value is not one to acknowledge more on.
fn report_damage(gate: &Gate, space: Space, key: &[u8], detail: String) -> ReadError {
    let error = ReadError::Corrupt {
        file: gate.file.clone(),
        space,
        key: key.to_vec(),
        detail,
    };
    gate.stop(StopCause::Corrupt {
        detail: error.to_string(),
    });
    error
}
