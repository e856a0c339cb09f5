//! One group of batches becomes one write transaction and one sync.
//!
//! A failed write or sync is final: the engine reports why, the shard stops, and redb itself
//! refuses the handle from then on. Trying again would be wrong even where it seemed to work: the
//! kernel may have dropped the pages whose sync failed, and the next sync would succeed without
//! them.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use ::redb::{Database, Durability as RedbDurability, Error as RedbError, WriteTransaction};

use super::desk::{Desk, What};
use super::hot::{HotIndex, Sight};
use super::open::Loaded;
use super::records::{RecordsChange, RecordsWritten, WriteFault};
use super::sealed::{SealedEntry, SealedTables, set_marks};
use super::view::View;
use super::{Recovery, RedbConfig, Shared, TABLES, sweep};
use crate::batch::{Durability, Key, Op, WriteBatch};
use crate::error::StopCause;
use crate::limits::{HOT_ENTRIES, IDLE_SWEEP_BYTES, SEAL_SHARE, SPARE_SHARE, SWEEP_BYTES};
use crate::queue::Gate;
use crate::segment::{Segments, Summary};
use crate::space::Space;
use crate::trailer;
use crate::writer::Engine;

pub(super) struct RedbEngine {
    shared: Arc<Shared>,
    index: Arc<RwLock<HotIndex>>,
    segments: Arc<Segments>,
    desk: Arc<Desk>,
    gate: Arc<Gate>,
    recovery: Recovery,
    hot_bytes: u64,
    /// What the next commit changes.
    sight: Sight,
    /// Views that a snapshot may still hold, the oldest first.
    views: VecDeque<(u64, Weak<View>)>,
    /// How often something was taken out of packs.
    kills: u64,
    next_segment: u64,
    /// Sealed packs that are still in the file, each with its bytes; the oldest first.
    swept: VecDeque<(u64, u64)>,
    /// Bytes of those.
    unswept_bytes: u64,
    /// Segments to unlink, each with the commit that emptied it.
    emptied: VecDeque<(u64, u64)>,
    /// The last commit that a power cut cannot take back.
    durable: u64,
    /// Where the parts of a value are put together.
    scratch: Vec<u8>,
}

/// How much of that buffer is kept between commits.
const SCRATCH_KEPT: usize = 1 << 20;

impl RedbEngine {
    /// Takes over a database that holds what was `loaded` from it, and publishes its first view.
    pub(super) fn new(
        shared: Arc<Shared>,
        loaded: Loaded,
        segments: Arc<Segments>,
        desk: Arc<Desk>,
        gate: Arc<Gate>,
        config: &RedbConfig,
    ) -> Result<Self, RedbError> {
        let unswept_bytes = loaded.swept.iter().map(|(_, bytes)| bytes).sum();
        let mut engine = Self {
            shared,
            index: Arc::new(RwLock::new(loaded.index)),
            segments,
            desk,
            gate,
            recovery: config.recovery,
            hot_bytes: config.hot_bytes,
            sight: loaded.sight,
            views: VecDeque::new(),
            kills: 0,
            next_segment: loaded.next_segment,
            swept: loaded.swept,
            unswept_bytes,
            emptied: VecDeque::new(),
            durable: loaded.sight.commit,
            scratch: Vec::new(),
        };
        engine.publish(loaded.sight)?;
        engine.weigh();
        Ok(engine)
    }

    /// Runs `work` in a transaction and commits it, as the commit after `self.sight`.
    fn commit<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&mut Self, &WriteTransaction) -> Result<T, WriteFault>,
    ) -> Result<T, WriteFault> {
        let shared = Arc::clone(&self.shared);
        let database = shared.database();
        let database = database.as_ref().ok_or(RedbError::DatabaseClosed)?;
        let transaction = begin(database, durability, self.recovery)?;
        let done = work(self, &transaction)?;
        transaction.commit().map_err(RedbError::from)?;
        if durability == Durability::Sync {
            self.durable = self.sight.commit + 1;
        }
        Ok(done)
    }

    fn write(
        &mut self,
        batches: &mut dyn Iterator<Item = &WriteBatch>,
        durability: Durability,
    ) -> Result<(), WriteFault> {
        let (written, swept) = self.commit(durability, |engine, transaction| {
            let index = engine.index.read().unwrap_or_else(PoisonError::into_inner);
            let change = RecordsChange::new(&index, engine.sight);
            let ops = batches.flat_map(WriteBatch::ops);
            let (segments, scratch) = (&engine.segments, &mut engine.scratch);
            let written = apply_ops(transaction, change, segments, scratch, ops)?;
            drop(index);
            let budget = 2 * written.bytes() + SWEEP_BYTES;
            let swept = sweep::packs(transaction, &engine.swept, budget)?;
            Ok((written, swept))
        })?;
        self.forget_swept(swept);
        let sight = Sight {
            floor: self.sight.floor,
            end: self.sight.end + written.packs(),
            commit: self.sight.commit + 1,
        };
        self.kills += u64::from(written.killed());
        self.shared.meter.appended(written.bytes());
        self.shared.meter.sealed(written.sealed);
        let cut = written.cut;
        let emptied = written.emptied.iter().map(|number| (sight.commit, *number));
        self.emptied.extend(emptied);
        self.take_over(sight.commit, |index| written.apply(index, sight.commit));
        self.publish(sight)?;
        // Not before it is published: the sealer would look at the state before.
        if cut {
            self.desk.cut();
        }
        self.weigh();
        Ok(())
    }

    /// The oldest commit whose state somebody still reads.
    fn oldest_view(&mut self) -> u64 {
        while let Some((_, view)) = self.views.front()
            && view.strong_count() == 0
        {
            self.views.pop_front();
        }
        let oldest = self.views.front();
        oldest.map_or(self.sight.commit, |(commit, _)| *commit)
    }

    /// Goes on forgetting what nobody can see any more, if there is time for it. Says whether there
    /// is more of that.
    fn forget(&mut self, idle: bool) -> bool {
        let oldest = self.oldest_view();
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let remembers = index.remembers(oldest);
        drop(index);
        if idle && remembers {
            self.take_over(self.sight.commit, |_| ());
        }
        remembers
    }

    /// Brings the index to the state just committed. Views before it see none of the change.
    fn take_over(&mut self, commit: u64, change: impl FnOnce(&mut HotIndex)) {
        let oldest = self.oldest_view().min(commit);
        let mut index = self.index.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut index);
        index.forget(oldest);
    }

    fn publish(&mut self, sight: Sight) -> Result<(), RedbError> {
        let view = {
            let database = self.shared.database();
            let database = database.as_ref().ok_or(RedbError::DatabaseClosed)?;
            let index = Arc::clone(&self.index);
            let segments = Arc::clone(&self.segments);
            Arc::new(View::new(database, sight, self.kills, index, segments)?)
        };
        // While an old one is held, those between it and the last are of no interest.
        while self
            .views
            .back()
            .is_some_and(|(_, view)| view.strong_count() == 0)
        {
            self.views.pop_back();
        }
        self.views.push_back((sight.commit, Arc::downgrade(&view)));
        self.sight = sight;
        self.shared.show(Some(view));
        Ok(())
    }

    /// Calls the sealer, and holds appends back, as the packs' size demands.
    fn weigh(&self) {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let (unsealed, entries) = (index.occupied(), index.alive());
        drop(index);
        if unsealed >= self.hot_bytes / SEAL_SHARE || entries >= HOT_ENTRIES {
            self.desk.want();
        }
        let full = self.hot_bytes - self.hot_bytes / SPARE_SHARE;
        let too_many = entries >= 2 * HOT_ENTRIES;
        self.gate
            .set_full(unsealed + self.unswept_bytes >= full || too_many);
        let lag = unsealed.saturating_sub(self.hot_bytes / SEAL_SHARE);
        let hot = unsealed + self.unswept_bytes;
        self.shared.meter.hot(hot, unsealed, lag);
    }

    fn forget_swept(&mut self, packs: usize) {
        for (_, bytes) in self.swept.drain(..packs) {
            self.unswept_bytes -= bytes;
        }
    }

    /// Commits what the sealer has prepared. `false` if it does not fit what has happened since.
    fn seal(&mut self, what: &What) -> Result<bool, WriteFault> {
        match what {
            What::Packs {
                segment,
                through,
                entries,
                kills,
            } => self
                .seal_packs(segment, *through, entries, *kills)
                .map(|()| true),
            What::Extents { segment, moved } => {
                let new = segment.as_ref().map(|new| (new.number, new.file_bytes));
                let (done, change, emptied) =
                    self.commit(Durability::Sync, |engine, transaction| {
                        let mut sealed = SealedTables::open(transaction)?;
                        let done = sealed.replace(new, moved)?;
                        let next = new.map_or(0, |(number, _)| number + 1);
                        engine.next_segment = engine.next_segment.max(next);
                        set_marks(transaction, engine.sight.floor, engine.next_segment)?;
                        Ok((done, sealed.change(), sealed.finish()))
                    })?;
                self.shared.meter.sealed(change);
                self.after_seal(self.sight.floor, emptied, |_| ())?;
                Ok(done)
            }
        }
    }

    fn seal_packs(
        &mut self,
        segment: &Summary,
        through: u64,
        entries: &[(SealedEntry, u64)],
        kills: u64,
    ) -> Result<(), WriteFault> {
        let alive = self.still_alive(entries, kills);
        let wanted: Vec<SealedEntry> = alive.iter().map(|at| entries[*at].0.clone()).collect();
        let gap = |at: usize| alive[at] != alive[at - 1] + 1;
        let (change, emptied) = self.commit(Durability::Sync, |engine, transaction| {
            let mut sealed = SealedTables::open(transaction)?;
            let segment = (segment.number, segment.file_bytes);
            sealed.add(segment, &wanted, gap, &engine.segments)?;
            engine.next_segment = engine.next_segment.max(segment.0 + 1);
            set_marks(transaction, through, engine.next_segment)?;
            Ok((sealed.change(), sealed.finish()))
        })?;
        self.shared.meter.sealed(change);
        let keys = alive.iter().map(|at| &entries[*at]);
        let keys: Vec<(Key, u64)> = keys.map(|(e, pack)| (e.key.clone(), *pack)).collect();
        let mut moved = Vec::new();
        let commit = self.sight.commit + 1;
        self.after_seal(through, emptied, |index| {
            moved = index.seal(through, keys, commit);
        })?;
        self.unswept_bytes += moved.iter().map(|(_, bytes)| bytes).sum::<u64>();
        self.swept.extend(moved);
        self.weigh();
        Ok(())
    }

    /// Places of the entries that have not been removed since they were read.
    fn still_alive(&self, entries: &[(SealedEntry, u64)], kills: u64) -> Vec<usize> {
        if kills == self.kills {
            return (0..entries.len()).collect();
        }
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let alive = |at: &usize| {
            let (entry, pack) = &entries[*at];
            let place = index.find(&self.sight, &entry.key);
            place.is_some_and(|place| place.pack == *pack)
        };
        (0..entries.len()).filter(alive).collect()
    }

    fn after_seal(
        &mut self,
        floor: u64,
        emptied: Vec<u64>,
        change: impl FnOnce(&mut HotIndex),
    ) -> Result<(), WriteFault> {
        let sight = Sight {
            floor,
            end: self.sight.end,
            commit: self.sight.commit + 1,
        };
        let emptied = emptied.into_iter().map(|number| (sight.commit, number));
        self.emptied.extend(emptied);
        self.take_over(sight.commit, change);
        Ok(self.publish(sight)?)
    }

    /// Hands segments to the sealer that nobody can read any more, not even after a power cut. If
    /// some are left, it asks again in a while: only a reader or a sync can change that.
    fn unlink(&mut self) {
        if self.emptied.is_empty() {
            return;
        }
        let oldest = self.oldest_view().min(self.durable);
        let ready = self
            .emptied
            .partition_point(|(commit, _)| *commit <= oldest);
        let ready = self.emptied.drain(..ready).map(|(_, number)| number);
        let ready: Vec<u64> = ready.collect();
        if !ready.is_empty() {
            self.desk.unlink(ready);
        }
        if !self.emptied.is_empty() {
            self.desk.remind();
        }
    }

    fn stop_cause(&self, fault: WriteFault) -> StopCause {
        let file = &self.gate.file;
        match fault {
            WriteFault::Engine(error) => stop_cause(file, &error),
            WriteFault::Directory { .. } | WriteFault::Row { .. } => StopCause::Corrupt {
                detail: format!("{} is damaged: {fault}", file.display()),
            },
        }
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
        applied.map_err(|fault| self.stop_cause(fault))
    }

    fn chores(&mut self, idle: bool) -> Result<bool, StopCause> {
        if let Some(job) = self.desk.take_job() {
            let done = self
                .seal(&job.what)
                .map_err(|fault| self.stop_cause(fault))?;
            // The sealer waits for this answer, or has been told to give up.
            let _ = job.reply.send(done);
        }
        if idle && !self.swept.is_empty() {
            let swept = self.commit(Durability::Sync, |engine, transaction| {
                sweep::packs(transaction, &engine.swept, IDLE_SWEEP_BYTES)
            });
            let swept = swept.map_err(|fault| self.stop_cause(fault))?;
            self.forget_swept(swept);
            let sight = Sight {
                commit: self.sight.commit + 1,
                ..self.sight
            };
            self.take_over(sight.commit, |_| ());
            let published = self.publish(sight).map_err(WriteFault::Engine);
            published.map_err(|fault| self.stop_cause(fault))?;
            self.weigh();
        }
        self.unlink();
        Ok(!self.swept.is_empty() || self.forget(idle))
    }

    fn file_bytes(&self) -> u64 {
        std::fs::metadata(&self.gate.file).map_or(0, |metadata| metadata.len())
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
    segments: &Segments,
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
    records.write(transaction, segments, scratch)
}

pub(super) fn apply_op(
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

pub(super) fn stop_cause(file: &std::path::Path, error: &RedbError) -> StopCause {
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
