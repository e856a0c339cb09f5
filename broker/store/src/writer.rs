//! The writer thread of a shard: gathers what has been submitted, commits it, answers.
//!
//! No linger: while one commit is on its way to the disk the next group gathers by itself, and an
//! idle shard commits at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::batch::{Durability, WriteBatch};
use crate::error::{CommitError, StopCause};
use crate::figures::Tally;
use crate::limits::FLUSH_INTERVAL;
use crate::queue::{Job, Next, Queue};
use crate::store::Committed;

/// What an engine does for its writer thread. It never decides about order or durability.
pub(crate) trait Engine: Send + 'static {
    /// Applies `batches` in order, all or nothing, together with everything applied before if
    /// `durability` is [`Durability::Sync`].
    fn apply(
        &mut self,
        batches: &mut dyn Iterator<Item = &WriteBatch>,
        durability: Durability,
    ) -> Result<(), StopCause>;

    /// Does what the engine does of its own accord, a small step of it: called after each group,
    /// and, with `idle`, after [`Queue::nudge`] when no batch waits. Says whether there is more.
    ///
    /// A failure stops the shard, as one of [`Engine::apply`] does.
    fn chores(&mut self, idle: bool) -> Result<bool, StopCause> {
        let _ = idle;
        Ok(false)
    }

    /// Size of the file.
    fn file_bytes(&self) -> u64;

    /// Lets go of the file. Called once, last.
    fn close(&mut self);
}

/// What the writer counts for [`crate::StoreStats`].
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) file_bytes: AtomicU64,
    pub(crate) commit_bytes: Tally,
    pub(crate) commit_us: Tally,
}

/// Bounds of the first buckets: a commit of less, or one that is faster, is like any other such.
const FEW_BYTES: u64 = 256;
const FEW_US: u64 = 64;

impl Default for Counters {
    fn default() -> Self {
        Self {
            commits: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            file_bytes: AtomicU64::new(0),
            commit_bytes: Tally::new(FEW_BYTES),
            commit_us: Tally::new(FEW_US),
        }
    }
}

pub(crate) struct Writer<E> {
    engine: E,
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    commits: u64,
    /// When the oldest commit that is still in memory only was made.
    unflushed_since: Option<Instant>,
}

impl<E: Engine> Writer<E> {
    pub(crate) fn new(engine: E, queue: Arc<Queue>, counters: Arc<Counters>) -> Self {
        counters
            .file_bytes
            .store(engine.file_bytes(), Ordering::Relaxed);
        Self {
            engine,
            queue,
            counters,
            commits: 0,
            unflushed_since: None,
        }
    }

    /// Runs until the queue is closed and empty. A stopped shard goes on answering, with errors.
    pub(crate) fn run(mut self) {
        loop {
            match self
                .queue
                .next(self.unflushed_since.map(|since| since + FLUSH_INTERVAL))
            {
                Next::Group(jobs) => {
                    self.commit(jobs);
                    self.chores(false);
                }
                Next::Chores => self.chores(true),
                Next::Due => self.flush(),
                Next::Closed => break,
            }
        }
        self.flush();
        if let Err(detail) = caught(|| self.engine.close()) {
            tracing::error!(file = %self.queue.gate.file.display(), detail, "closing panicked");
        }
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        if let Some(cause) = self.queue.gate.stopped() {
            self.answer(jobs, &Err(CommitError::Stopped { cause }));
            return;
        }
        // Interval batches wait for a flush only among themselves. A group that syncs anyway, or
        // that finds the flush overdue under a steady load, carries everything with it.
        let overdue = self
            .unflushed_since
            .is_some_and(|since| since.elapsed() >= FLUSH_INTERVAL);
        let sync = |job: &Job| job.batch.durability() == Durability::Sync;
        let durability = if overdue || jobs.iter().any(sync) {
            Durability::Sync
        } else {
            Durability::Interval
        };
        let mut accepted = jobs
            .iter()
            .filter(|job| job.refused.is_none())
            .map(|job| &job.batch);
        let began = Instant::now();
        let result = self.apply(&mut accepted, durability);
        if result.is_ok() {
            let taken = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let accepted = jobs.iter().filter(|job| job.refused.is_none());
            let bytes: usize = accepted.map(|job| job.batch.byte_len()).sum();
            self.counters.commit_us.count(taken);
            self.counters.commit_bytes.count(bytes as u64);
        }
        self.answer(jobs, &result);
    }

    fn apply(
        &mut self,
        batches: &mut dyn Iterator<Item = &WriteBatch>,
        durability: Durability,
    ) -> Result<Committed, CommitError> {
        let applied = caught(|| self.engine.apply(batches, durability)).unwrap_or_else(|detail| {
            Err(StopCause::Panic {
                file: self.queue.gate.file.clone(),
                detail,
            })
        });
        if let Err(cause) = applied {
            // What was in memory only is lost with the engine; there is nothing left to flush.
            self.unflushed_since = None;
            return Err(CommitError::Failed {
                cause: self.queue.gate.stop(cause),
            });
        }
        self.commits += 1;
        match durability {
            Durability::Sync => self.unflushed_since = None,
            Durability::Interval => {
                self.unflushed_since.get_or_insert_with(Instant::now);
            }
        }
        self.counters.commits.store(self.commits, Ordering::Relaxed);
        self.counters
            .file_bytes
            .store(self.engine.file_bytes(), Ordering::Relaxed);
        Ok(Committed {
            commit: self.commits,
            durability,
        })
    }

    fn answer(&self, jobs: Vec<Job>, result: &Result<Committed, CommitError>) {
        for Job {
            batch,
            refused,
            done,
            _permit,
        } in jobs
        {
            let result = match refused {
                Some(refused) => Err(CommitError::Refused(refused)),
                None => result.clone(),
            };
            if result.is_ok() {
                self.counters.batches.fetch_add(1, Ordering::Relaxed);
                self.counters
                    .bytes
                    .fetch_add(batch.byte_len() as u64, Ordering::Relaxed);
            }
            // A callback that panicked left its owner's state half changed; going on would build
            // on it. The others are told the truth about their batches all the same.
            if let Err(detail) = caught(|| done(result)) {
                let file = self.queue.gate.file.clone();
                self.queue.gate.stop(StopCause::Panic { file, detail });
            }
        }
    }

    fn chores(&mut self, idle: bool) {
        if self.queue.gate.stopped().is_some() {
            return;
        }
        let done = caught(|| self.engine.chores(idle)).unwrap_or_else(|detail| {
            Err(StopCause::Panic {
                file: self.queue.gate.file.clone(),
                detail,
            })
        });
        match done {
            Ok(true) => self.queue.nudge(),
            Ok(false) => {}
            Err(cause) => drop(self.queue.gate.stop(cause)),
        }
    }

    fn flush(&mut self) {
        if self.unflushed_since.is_some() && self.queue.gate.stopped().is_none() {
            // Whoever was affected has been answered long ago: the gate reports a failure.
            let _ = self.apply(&mut std::iter::empty(), Durability::Sync);
        }
    }
}

/// Runs `work`; if it panics, returns what the panic said.
///
/// redb asserts rather than reports in places where only a damaged file can lead, and a damaged
/// file must not take down a broker that serves other shards. What a panic may have left
/// inconsistent is never used again: a write stops the shard, and redb refuses further writes on
/// a handle that unwound; a read changes nothing.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        let text = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without a message".to_owned())
    })
}
