//! An engine without a file, for tests of what stands above the seam. It keeps the whole contract
//! but one: nothing outlives the store.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;

use crate::batch::{Durability, Key, Op, WriteBatch};
use crate::error::{CommitError, ReadError, StopCause};
use crate::queue::{Gate, Permit};
use crate::shard::Shard;
use crate::space::Space;
use crate::store::{
    Direction, Done, Health, Pending, Row, ScanLimit, ScanPage, Snapshot, Store, StoreStats,
};
use crate::writer::Engine;

type Rows = [BTreeMap<Key, Bytes>; Space::COUNT];
/// `None` once closed. A snapshot shares the rows; a commit copies them if one does.
type Shared = Arc<RwLock<Option<Arc<Rows>>>>;

/// A [`Store`] that lives and dies with its value.
pub struct MemoryStore {
    rows: Shared,
    shard: Shard,
}

impl MemoryStore {
    /// An empty store.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn new() -> std::io::Result<Self> {
        let rows = Shared::new(RwLock::new(Some(Arc::default())));
        let gate = Arc::new(Gate::new("memory".into()));
        let shard = Shard::start(
            gate,
            MemoryEngine {
                rows: Arc::clone(&rows),
            },
        )?;
        Ok(Self { rows, shard })
    }

    /// Stops the shard as a failing disk would, so that a test sees what its callers do.
    pub fn fail(&self, cause: StopCause) {
        self.shard.gate().stop(cause);
    }
}

impl Store for MemoryStore {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, ReadError> {
        let rows = self
            .rows
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match rows {
            Some(rows) => Ok(Box::new(MemorySnapshot { rows })),
            None => Err(ReadError::Closed {
                file: self.shard.file(),
            }),
        }
    }

    fn reserve(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
        self.shard.reserve(bytes)
    }

    fn try_reserve(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        self.shard.try_reserve(bytes)
    }

    fn submit(&self, permit: Permit, batch: WriteBatch, done: Done) {
        self.shard.submit(permit, batch, done);
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.shard.health()
    }

    fn stats(&self) -> StoreStats {
        self.shard.stats()
    }

    fn close(&self) {
        self.shard.close();
    }
}

struct MemoryEngine {
    rows: Shared,
}

impl Engine for MemoryEngine {
    fn apply(
        &mut self,
        batches: &mut dyn Iterator<Item = &WriteBatch>,
        _durability: Durability,
    ) -> Result<(), StopCause> {
        let mut shared = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        let Some(shared) = shared.as_mut() else {
            let file = Path::new("memory").to_owned();
            return Err(StopCause::Panic {
                file,
                detail: "written to after closing".into(),
            });
        };
        let rows = Arc::make_mut(shared);
        for op in batches.flat_map(WriteBatch::ops) {
            match op {
                Op::Put { space, key, parts } => {
                    let value = match &parts[..] {
                        [whole] => whole.clone(),
                        parts => parts.iter().fold(BytesMut::new(), joined).freeze(),
                    };
                    rows[space.index()].insert(key.clone(), value);
                }
                Op::Delete { space, key } => drop(rows[space.index()].remove(key)),
                Op::DeleteRange { space, start, end } => {
                    rows[space.index()].retain(|key, _| key < start || key >= end);
                }
            }
        }
        Ok(())
    }

    fn file_bytes(&self) -> u64 {
        0
    }

    fn close(&mut self) {
        *self.rows.write().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn joined(mut whole: BytesMut, part: &Bytes) -> BytesMut {
    whole.extend_from_slice(part);
    whole
}

struct MemorySnapshot {
    rows: Arc<Rows>,
}

impl Snapshot for MemorySnapshot {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        Ok(self.rows[space.index()].get(key).cloned())
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
        let mut rows = self.rows[space.index()].range(Key::from(range.start)..Key::from(range.end));
        let mut page = ScanPage::default();
        let mut bytes = 0usize;
        loop {
            let next = match direction {
                Direction::Forward => rows.next(),
                Direction::Backward => rows.next_back(),
            };
            let Some((key, value)) = next else {
                return Ok(page);
            };
            bytes = bytes.saturating_add(key.len() + value.len());
            if limit.is_reached(page.rows.len(), bytes) {
                page.more = true;
                return Ok(page);
            }
            page.rows.push(Row {
                key: key.clone(),
                value: value.clone(),
            });
        }
    }

    fn floor_key(&self, space: Space, start: &[u8], at: &[u8]) -> Result<Option<Key>, ReadError> {
        if start > at {
            return Ok(None);
        }
        let mut rows = self.rows[space.index()].range(Key::from(start)..=Key::from(at));
        Ok(rows.next_back().map(|(key, _)| key.clone()))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn conforms() {
        crate::conformance::suite(&|| Arc::new(MemoryStore::new().unwrap()));
    }

    #[test]
    fn whoever_waits_for_room_is_told_when_the_shard_stops() {
        let store = MemoryStore::new().unwrap();
        let _all = store.try_reserve(usize::MAX).unwrap().unwrap();
        let mut waiting = store.reserve(1);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        let cause = StopCause::DiskFull {
            file: "memory".into(),
            detail: "a test".into(),
        };
        let mut health = store.health();
        store.fail(cause.clone());
        assert!(health.has_changed().unwrap());
        assert_eq!(**health.borrow_and_update().cause().unwrap(), cause);
        let told = waiting.as_mut().poll(&mut context);
        let std::task::Poll::Ready(Err(CommitError::Stopped { cause: told })) = told else {
            panic!("{told:?}")
        };
        assert_eq!(*told, cause);
    }
}
