//! One group of batches becomes one write transaction and one sync.
//!
//! A failed write or sync is final: the engine reports why, the shard stops, and redb itself
//! refuses the handle from then on. Trying again would be wrong even where it seemed to work: the
//! kernel may have dropped the pages whose sync failed, and the next sync would succeed without
//! them.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use ::redb::{Database, Durability as RedbDurability, Error as RedbError, WriteTransaction};

use super::hot::{HotIndex, Sight};
use super::records::{RecordsChange, RecordsWritten, WriteFault};
use super::view::View;
use super::{Recovery, Shared, TABLES};
use crate::batch::{Durability, Op, WriteBatch};
use crate::error::StopCause;
use crate::space::Space;
use crate::trailer;
use crate::writer::Engine;

pub(super) struct RedbEngine {
    shared: Arc<Shared>,
    index: Arc<RwLock<HotIndex>>,
    file: PathBuf,
    recovery: Recovery,
    /// What the next commit changes.
    sight: Sight,
    /// Views that a snapshot may still hold, the oldest first.
    views: VecDeque<(u64, Weak<View>)>,
    /// Where the parts of a value are put together.
    scratch: Vec<u8>,
}

/// How much of that buffer is kept between commits.
const SCRATCH_KEPT: usize = 1 << 20;

impl RedbEngine {
    /// Takes over a database that holds what `index` says, and publishes its first view.
    pub(super) fn new(
        shared: Arc<Shared>,
        index: HotIndex,
        sight: Sight,
        file: PathBuf,
        recovery: Recovery,
    ) -> Result<Self, RedbError> {
        let mut engine = Self {
            shared,
            index: Arc::new(RwLock::new(index)),
            file,
            recovery,
            sight,
            views: VecDeque::new(),
            scratch: Vec::new(),
        };
        engine.publish(sight)?;
        Ok(engine)
    }

    fn write(
        &mut self,
        batches: &mut dyn Iterator<Item = &WriteBatch>,
        durability: Durability,
    ) -> Result<(), WriteFault> {
        let written = {
            let database = self.shared.database();
            let database = database.as_ref().ok_or(RedbError::DatabaseClosed)?;
            let transaction = begin(database, durability, self.recovery)?;
            let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
            let change = RecordsChange::new(&index, self.sight);
            let ops = batches.flat_map(WriteBatch::ops);
            let written = apply_ops(&transaction, change, &mut self.scratch, ops)?;
            drop(index);
            transaction.commit().map_err(RedbError::from)?;
            written
        };
        let sight = Sight {
            floor: self.sight.floor,
            end: self.sight.end + written.packs(),
            commit: self.sight.commit + 1,
        };
        self.take_over(written, sight.commit);
        Ok(self.publish(sight)?)
    }

    /// Brings the index to the state just committed. Views before it see none of the change.
    fn take_over(&mut self, written: RecordsWritten, commit: u64) {
        while let Some((_, view)) = self.views.front()
            && view.strong_count() == 0
        {
            self.views.pop_front();
        }
        let oldest = self.views.front().map_or(commit, |(commit, _)| *commit);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        written.apply(&mut index, commit);
        index.forget(oldest);
    }

    fn publish(&mut self, sight: Sight) -> Result<(), RedbError> {
        let view = {
            let database = self.shared.database();
            let database = database.as_ref().ok_or(RedbError::DatabaseClosed)?;
            Arc::new(View::new(database, sight, Arc::clone(&self.index))?)
        };
        self.views.push_back((sight.commit, Arc::downgrade(&view)));
        self.sight = sight;
        self.shared.show(Some(view));
        Ok(())
    }
}

/// Begins a write transaction that commits as asked.
///
/// One phase by default. Measured by `store_bench` on two cores and ext4, in one run; the last two
/// columns while other work kept the machine busy:
///
/// | | 100 B a commit, p50, p99 | 16 x 64 KiB a commit | 64 batches of 64 KiB in flight |
/// |---|---|---|---|
/// | append and fdatasync | 0.15, 0.22 ms (4 KiB) | 190 MB/s | |
/// | one phase | 0.30, 0.40 ms | 228 MB/s | 383 MB/s |
/// | two phases | 0.34, 4.0 ms | 128 MB/s | 217 MB/s |
/// | quick repair, small file | 0.39, 0.52 ms | 127 MB/s | 231 MB/s |
///
/// What the second sync would buy is that recovery need not rely on a non-cryptographic checksum
/// to tell a torn commit from a whole one. To exploit that, a hostile producer would have to
/// foresee which pages of a commit the kernel writes, in which order, and have the power cut
/// between them; it would win damaged values, which the trailers, bound to where a value stands,
/// report. The price of one phase: a last commit that was whole, and damaged on the disk between
/// a crash and the restart, looks like a torn one and is rolled back.
///
/// No quick repair by default: it takes the second sync as well, and saves what reading the file
/// costs after a crash: 1 s for 512 MiB on that busy machine.
pub(super) fn begin(
    database: &Database,
    durability: Durability,
    recovery: Recovery,
) -> Result<WriteTransaction, RedbError> {
    let mut transaction = database.begin_write()?;
    transaction.set_durability(match durability {
        Durability::Sync => RedbDurability::Immediate,
        Durability::Interval => RedbDurability::None,
    })?;
    transaction.set_two_phase_commit(recovery != Recovery::OnePhase);
    transaction.set_quick_repair(recovery == Recovery::Quick);
    Ok(transaction)
}

impl Engine for RedbEngine {
    fn apply(
        &mut self,
        batches: &mut dyn Iterator<Item = &WriteBatch>,
        durability: Durability,
    ) -> Result<(), StopCause> {
        let applied = self.write(batches, durability);
        self.scratch.clear();
        self.scratch.shrink_to(SCRATCH_KEPT);
        applied.map_err(|fault| match fault {
            WriteFault::Engine(error) => stop_cause(&self.file, error),
            WriteFault::Directory { .. } => StopCause::Corrupt {
                detail: format!("{} is damaged: {fault}", self.file.display()),
            },
        })
    }

    fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |metadata| metadata.len())
    }

    fn close(&mut self) {
        self.shared.show(None);
        self.shared.close();
    }
}

/// Applies every operation in order. Tables are opened once, when first needed.
fn apply_ops<'a>(
    transaction: &WriteTransaction,
    mut records: RecordsChange<'_, 'a>,
    scratch: &mut Vec<u8>,
    ops: impl Iterator<Item = &'a Op>,
) -> Result<RecordsWritten, WriteFault> {
    let mut tables: [Option<::redb::Table<'_, &[u8], &[u8]>>; Space::COUNT] =
        [const { None }; Space::COUNT];
    for op in ops {
        let (Op::Put { space, .. } | Op::Delete { space, .. } | Op::DeleteRange { space, .. }) = op;
        if *space == Space::Records {
            records.take(op);
            continue;
        }
        let slot = &mut tables[space.index()];
        let table = match slot {
            Some(table) => table,
            None => {
                let table = transaction.open_table(TABLES[space.index()]);
                slot.insert(table.map_err(RedbError::from)?)
            }
        };
        apply_op(table, scratch, op)?;
    }
    records.write(transaction, scratch)
}

fn apply_op(
    table: &mut ::redb::Table<'_, &[u8], &[u8]>,
    scratch: &mut Vec<u8>,
    op: &Op,
) -> Result<(), RedbError> {
    match op {
        Op::Put { space, key, parts } => {
            scratch.clear();
            parts
                .iter()
                .for_each(|part| scratch.extend_from_slice(part));
            scratch.extend_from_slice(&trailer::of_parts(*space, key, parts));
            table.insert(&key[..], &scratch[..])?;
        }
        Op::Delete { key, .. } => drop(table.remove(&key[..])?),
        Op::DeleteRange { start, end, .. } => {
            if start < end {
                table.retain_in::<&[u8], _>(&start[..]..&end[..], |_, _| false)?;
            }
        }
    }
    Ok(())
}

fn stop_cause(file: &std::path::Path, error: RedbError) -> StopCause {
    let file = file.to_owned();
    match error {
        RedbError::Io(error) => match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                StopCause::DiskFull {
                    file,
                    detail: error.to_string(),
                }
            }
            _ => StopCause::Io {
                file,
                detail: error.to_string(),
            },
        },
        RedbError::Corrupted(detail) => StopCause::Corrupt {
            detail: format!("{} is damaged: {detail}", file.display()),
        },
        other => StopCause::Io {
            file,
            detail: other.to_string(),
        },
    }
}
