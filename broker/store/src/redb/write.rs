//! One group of batches becomes one write transaction and one sync.
//!
//! A failed write or sync is final: the engine reports why, the shard stops, and redb itself
//! refuses the handle from then on. Trying again would be wrong even where it seemed to work: the
//! kernel may have dropped the pages whose sync failed, and the next sync would succeed without
//! them.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::PoisonError;

use ::redb::{Database, Durability as RedbDurability, Error as RedbError, WriteTransaction};

use super::{Recovery, Shared, TABLES};
use crate::batch::{Durability, Op, WriteBatch};
use crate::error::StopCause;
use crate::space::Space;
use crate::trailer;
use crate::writer::Engine;

pub(super) struct RedbEngine {
    database: Shared,
    file: PathBuf,
    recovery: Recovery,
    /// Where the parts of a value and its trailer are put together. redb's `insert_reserve`
    /// would spare this copy and make two others: it inserts a new buffer of zeros first.
    whole: Vec<u8>,
}

/// How much of that buffer is kept between commits.
const WHOLE_KEPT: usize = 1 << 20;

impl RedbEngine {
    pub(super) fn new(database: Shared, file: PathBuf, recovery: Recovery) -> Self {
        Self {
            database,
            file,
            recovery,
            whole: Vec::new(),
        }
    }

    fn begin(&self, durability: Durability) -> Result<WriteTransaction, RedbError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(RedbError::DatabaseClosed)?;
        begin(database, durability, self.recovery)
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
        let applied = self.begin(durability).and_then(|transaction| {
            let ops = batches.flat_map(WriteBatch::ops);
            apply_ops(&transaction, &mut self.whole, ops)?;
            transaction.commit().map_err(RedbError::from)
        });
        self.whole.clear();
        self.whole.shrink_to(WHOLE_KEPT);
        applied.map_err(|error| stop_cause(&self.file, error))
    }

    fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.file).map_or(0, |metadata| metadata.len())
    }

    fn close(&mut self) {
        let database = self
            .database
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Dropped outside the lock: it commits the allocator's state, which takes a sync.
        drop(database);
    }
}

/// Applies every operation in order. Tables are opened once, when first needed.
fn apply_ops<'a>(
    transaction: &WriteTransaction,
    whole: &mut Vec<u8>,
    ops: impl Iterator<Item = &'a Op>,
) -> Result<(), RedbError> {
    let mut tables: [Option<::redb::Table<'_, &[u8], &[u8]>>; Space::COUNT] =
        [const { None }; Space::COUNT];
    for op in ops {
        let (Op::Put { space, .. } | Op::Delete { space, .. } | Op::DeleteRange { space, .. }) = op;
        let slot = &mut tables[space.index()];
        let table = match slot {
            Some(table) => table,
            None => slot.insert(transaction.open_table(TABLES[space.index()])?),
        };
        match op {
            Op::Put { key, parts, .. } => {
                whole.clear();
                parts.iter().for_each(|part| whole.extend_from_slice(part));
                whole.extend_from_slice(&trailer::of_parts(*space, key, parts));
                table.insert(&key[..], &whole[..])?;
            }
            Op::Delete { key, .. } => drop(table.remove(&key[..])?),
            Op::DeleteRange { start, end, .. } => {
                if start < end {
                    table.retain_in::<&[u8], _>(&start[..]..&end[..], |_, _| false)?;
                }
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
