//! One partition: its applied end, its durable end, its tail.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millstream_proto::{Batch, Offset, PartitionId};
use millstream_store::Store;
use millstream_store::key::partition::PartitionRow;

use super::tail::{Tail, TailBudget};
use crate::limits::COUNT_EVERY_BYTES;

/// A batch with the offset at which it is stored. The batch's own header says 0:
/// at rest the base offset lives in the key.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Offset of its first record.
    pub base: Offset,
    /// The batch.
    pub batch: Batch,
}

impl Stored {
    /// The offset behind its last record.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.base.plus(u64::from(self.batch.count()))
    }
}

/// What the tail cache answers.
#[derive(Clone, Debug)]
pub enum TailRead {
    /// These batches; the first holds the wanted offset.
    Batches(Vec<Stored>),
    /// There is nothing there yet: the offset is the durable end.
    AtEnd,
    /// It lies further back: ask the store.
    Older,
    /// Before the first or behind the last offset.
    OutOfRange {
        /// The first offset kept.
        start: Offset,
        /// The durable end.
        end: Offset,
    },
}

/// What appenders own. Behind it everything is submitted, not all of it durable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Applied {
    /// The offset of the next record.
    pub(super) next: u64,
    /// First offset kept.
    pub(super) start: u64,
    /// Bytes of the batches kept.
    pub(super) bytes: u64,
    /// Bytes appended since the partition's row was written.
    pub(super) uncounted: u64,
}

impl Applied {
    /// A batch is appended.
    pub(super) fn append(&mut self, count: u32, bytes: usize) {
        self.next += u64::from(count);
        self.bytes += bytes as u64;
        self.uncounted += bytes as u64;
    }

    /// The row, if it is time to write it again.
    pub(super) fn row_if_due(&mut self) -> Option<PartitionRow> {
        (self.uncounted >= COUNT_EVERY_BYTES).then(|| self.row())
    }

    /// The row as it has to be written now.
    pub(super) fn row(&mut self) -> PartitionRow {
        self.uncounted = 0;
        PartitionRow {
            log_start: self.start,
            bytes: self.bytes,
            counted_to: self.next,
        }
    }
}

/// What readers see. Everything here is durable.
#[derive(Debug)]
struct Durable {
    start: u64,
    end: u64,
    bytes: u64,
    tail: Tail,
}

/// One partition of a topic.
pub struct Partition {
    topic: u32,
    id: PartitionId,
    pub(super) store: Arc<dyn Store>,
    applied: Mutex<Applied>,
    durable: Mutex<Durable>,
    /// Readers that follow the end, for whom the newest batches stay in memory.
    followers: AtomicUsize,
    tails: TailBudget,
    /// Why its end is not known, if it is not.
    unreadable: Option<String>,
}

/// Keeps a partition's newest batches in memory while somebody reads them.
#[derive(Debug)]
pub struct Follow(Arc<Partition>);

impl Drop for Follow {
    fn drop(&mut self) {
        self.0.followers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl std::fmt::Debug for Partition {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Partition({}/{})", self.topic, self.id)
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks panics half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Partition {
    pub(super) fn new(
        topic: u32,
        id: PartitionId,
        store: Arc<dyn Store>,
        tails: TailBudget,
        at: Applied,
        unreadable: Option<String>,
    ) -> Arc<Self> {
        let durable = Durable {
            start: at.start,
            end: at.next,
            bytes: at.bytes,
            tail: Tail::default(),
        };
        let (applied, durable) = (Mutex::new(at), Mutex::new(durable));
        Arc::new(Self {
            topic,
            id,
            store,
            applied,
            durable,
            followers: AtomicUsize::new(0),
            tails,
            unreadable,
        })
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> PartitionId {
        self.id
    }

    /// The topic's number.
    #[must_use]
    pub fn topic_id(&self) -> u32 {
        self.topic
    }

    /// Why nothing is read from it, appended to it or removed from it: its newest records could
    /// not be read when it was opened, so nobody knows where it ends. Its end, as far as it is
    /// told, is then the offset up to which records were found.
    #[must_use]
    pub fn unreadable(&self) -> Option<&str> {
        self.unreadable.as_deref()
    }

    /// First offset kept.
    #[must_use]
    pub fn start(&self) -> Offset {
        Offset(locked(&self.durable).start)
    }

    /// The durable end: one behind the last record that may be shown.
    #[must_use]
    pub fn end(&self) -> Offset {
        Offset(locked(&self.durable).end)
    }

    /// Bytes of the batches kept.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        locked(&self.durable).bytes
    }

    /// What the tail has at `from`, up to `max_bytes` but at least one batch. Never blocks.
    #[must_use]
    pub fn read_tail(&self, from: Offset, max_bytes: usize) -> TailRead {
        if self.unreadable.is_some() {
            // Whoever goes there is told why.
            return TailRead::Older;
        }
        let durable = locked(&self.durable);
        if from.0 < durable.start || from.0 > durable.end {
            return TailRead::OutOfRange {
                start: Offset(durable.start),
                end: Offset(durable.end),
            };
        }
        if from.0 == durable.end {
            return TailRead::AtEnd;
        }
        durable
            .tail
            .read(from.0, max_bytes)
            .map_or(TailRead::Older, TailRead::Batches)
    }

    pub(super) fn applied(&self) -> MutexGuard<'_, Applied> {
        locked(&self.applied)
    }

    /// Announces a reader that follows the end, until the answer is dropped.
    /// Without one, batches go to the store alone and their memory is free again
    /// as soon as they are durable: that is a good part of the speed of writing.
    #[must_use]
    pub fn follow(self: &Arc<Self>) -> Follow {
        self.followers.fetch_add(1, Ordering::AcqRel);
        Follow(Arc::clone(self))
    }

    /// A batch has become durable; called in the order of commit.
    pub(super) fn commit(self: &Arc<Self>, stored: Stored) {
        let bytes = stored.batch.bytes().len();
        let followed = self.followers.load(Ordering::Acquire) > 0;
        let emptied = {
            let mut durable = locked(&self.durable);
            durable.end = stored.end().0;
            durable.bytes += bytes as u64;
            if followed {
                durable.tail.push(stored);
                false
            } else {
                // The tail has no gaps: what is not kept ends what was.
                durable.tail.clear()
            }
        };
        if followed {
            self.tails.added(self, bytes);
        } else if emptied {
            self.tails.forget(self);
        }
    }

    /// The oldest batches have been removed, durably.
    pub(super) fn trimmed(&self, start: u64, bytes: u64) {
        let mut durable = locked(&self.durable);
        durable.start = start;
        durable.bytes = durable.bytes.saturating_sub(bytes);
    }

    pub(super) fn drop_oldest_cached(&self) {
        locked(&self.durable).tail.drop_oldest();
    }
}
