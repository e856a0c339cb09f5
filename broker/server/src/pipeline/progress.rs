//! How far a pipeline is and what it has done, for its owner and for its next start.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use millstream_proto::{Offset, PartitionId};

/// Durable positions, and counts since the broker started.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// The next offset by topic number and partition. Everything here is durable.
    positions: Mutex<BTreeMap<(u32, PartitionId), Offset>>,
    records_in: AtomicU64,
    records_out: AtomicU64,
    dead_letters: AtomicU64,
    skipped: AtomicU64,
}

/// What one commit adds to the counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Records read.
    pub(super) records_in: u64,
    /// Records written to outputs.
    pub(super) records_out: u64,
    /// Records sent to dead-letter topics.
    pub(super) dead_letters: u64,
    /// Records left out by the policy `skip`.
    pub(super) skipped: u64,
}

impl Progress {
    fn positions(&self) -> MutexGuard<'_, BTreeMap<(u32, PartitionId), Offset>> {
        // Valid after every statement.
        self.positions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The next offset to read, if it was ever written down.
    pub(super) fn position(&self, topic: u32, partition: PartitionId) -> Option<Offset> {
        self.positions().get(&(topic, partition)).copied()
    }

    /// A position has become durable.
    pub(super) fn reached(&self, topic: u32, partition: PartitionId, position: Offset) {
        self.positions().insert((topic, partition), position);
    }

    /// A commit has become durable.
    pub(super) fn count(&self, counts: Counts) {
        let Counts {
            records_in,
            records_out,
            dead_letters,
            skipped,
        } = counts;
        self.records_in.fetch_add(records_in, Ordering::Relaxed);
        self.records_out.fetch_add(records_out, Ordering::Relaxed);
        self.dead_letters.fetch_add(dead_letters, Ordering::Relaxed);
        self.skipped.fetch_add(skipped, Ordering::Relaxed);
    }

    /// Everything counted so far.
    pub(super) fn counts(&self) -> Counts {
        Counts {
            records_in: self.records_in.load(Ordering::Relaxed),
            records_out: self.records_out.load(Ordering::Relaxed),
            dead_letters: self.dead_letters.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
        }
    }
}
