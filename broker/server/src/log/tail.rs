//! The newest batches in memory, so that live consumers never touch the database.
//!
//! Every partition that somebody follows keeps its newest batches in order; one
//! budget over all partitions evicts the oldest first, wherever it lies.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::partition::{Partition, Stored};

/// The budget that all partitions of a broker share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TailBudget(Arc<Mutex<Budget>>);

#[derive(Debug)]
struct Budget {
    limit: usize,
    used: usize,
    /// Every cached batch in order of commit: where it lies and its size. What a deleted topic had
    /// cached is gone with it and counts until its turn comes.
    order: VecDeque<(Weak<Partition>, usize)>,
}

impl TailBudget {
    /// A budget of `limit` bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Mutex::new(Budget {
            limit,
            used: 0,
            order: VecDeque::new(),
        })))
    }

    /// Bytes cached at present.
    #[must_use]
    pub fn used(&self) -> usize {
        self.lock().used
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Budget> {
        // Nothing under this lock panics half-way through a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a batch that `partition` has just taken into its tail, and makes
    /// the oldest batches give way.
    pub(super) fn added(&self, partition: &Arc<Partition>, bytes: usize) {
        let mut budget = self.lock();
        budget.used += bytes;
        budget.order.push_back((Arc::downgrade(partition), bytes));
        while budget.used > budget.limit {
            let Some((oldest, bytes)) = budget.order.pop_front() else {
                break;
            };
            budget.used -= bytes;
            if let Some(partition) = oldest.upgrade() {
                partition.drop_oldest_cached();
            }
        }
    }

    /// `partition` has emptied its tail.
    pub(super) fn forget(&self, partition: &Arc<Partition>) {
        let mut budget = self.lock();
        let mut freed = 0;
        budget.order.retain(|(of, bytes)| {
            let gone = std::ptr::eq(of.as_ptr(), Arc::as_ptr(partition));
            freed += if gone { *bytes } else { 0 };
            !gone
        });
        budget.used -= freed;
    }
}

/// The newest batches of one partition that is followed: contiguous, the last one ends at the durable end.
#[derive(Debug, Default)]
pub(super) struct Tail {
    batches: VecDeque<Stored>,
}

impl Tail {
    pub(super) fn push(&mut self, stored: Stored) {
        self.batches.push_back(stored);
    }

    /// Empties it. Returns whether there was anything.
    pub(super) fn clear(&mut self) -> bool {
        let any = !self.batches.is_empty();
        self.batches = VecDeque::new();
        any
    }

    pub(super) fn drop_oldest(&mut self) {
        self.batches.pop_front();
    }

    /// Batches from the one that holds `from`, up to `max_bytes` but at least
    /// one; `None` when the tail does not reach back that far.
    pub(super) fn read(&self, from: u64, max_bytes: usize) -> Option<Vec<Stored>> {
        if self.batches.front()?.base.0 > from {
            return None;
        }
        let first = self.batches.partition_point(|s| s.end().0 <= from);
        let mut bytes = 0;
        let fits = |s: &&Stored| {
            let first = bytes == 0;
            bytes += s.batch.bytes().len();
            first || bytes <= max_bytes
        };
        Some(
            self.batches
                .range(first..)
                .take_while(fits)
                .cloned()
                .collect(),
        )
    }
}
