//! A store of which some records cannot be read: what a missing segment does to those above it.

#![allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use millstream_store::{
    CommitError, Direction, Done, Health, Key, MemoryStore, Pending, Permit, ReadError, ScanLimit,
    ScanPage, Snapshot, Space, Store, StoreStats, WriteBatch,
};
use tokio::sync::watch;

/// Ranges of keys of records that give errors.
type Holes = Arc<Mutex<Vec<Range<Key>>>>;

/// A store in memory with holes in it.
pub(crate) struct Holed {
    inner: MemoryStore,
    holes: Holes,
}

/// The file that errors name.
pub(crate) const HOLED_FILE: &str = "0000000000000001.seg";

impl Holed {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: MemoryStore::new().unwrap(),
            holes: Holes::default(),
        })
    }

    /// From now on records in `range` cannot be read.
    pub(crate) fn hole(&self, range: Range<Key>) {
        self.holes.lock().unwrap().push(range);
    }

    /// Everything can be read again.
    pub(crate) fn mend(&self) {
        self.holes.lock().unwrap().clear();
    }

    /// The shard stops.
    pub(crate) fn fail(&self, cause: millstream_store::StopCause) {
        self.inner.fail(cause);
    }
}

impl Store for Holed {
    fn snapshot(&self) -> Result<Box<dyn Snapshot>, ReadError> {
        Ok(Box::new(View {
            inner: self.inner.snapshot()?,
            holes: Arc::clone(&self.holes),
        }))
    }

    fn reserve(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
        self.inner.reserve(bytes)
    }

    fn try_reserve(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        self.inner.try_reserve(bytes)
    }

    fn submit(&self, permit: Permit, batch: WriteBatch, done: Done) {
        self.inner.submit(permit, batch, done);
    }

    fn health(&self) -> watch::Receiver<Health> {
        self.inner.health()
    }

    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }

    fn close(&self) {
        self.inner.close();
    }
}

struct View {
    inner: Box<dyn Snapshot>,
    holes: Holes,
}

impl View {
    /// An error if anything that is there between the two cannot be read.
    fn look(&self, space: Space, start: &[u8], end: &[u8]) -> Result<(), ReadError> {
        let holes = self.holes.lock().unwrap();
        let hit = holes
            .iter()
            .any(|h| start < &h.end[..] && &h.start[..] < end);
        if space != Space::Records || !hit {
            return Ok(());
        }
        Err(ReadError::Io {
            file: HOLED_FILE.into(),
            space,
            detail: "no such file".to_owned(),
        })
    }
}

impl Snapshot for View {
    fn get(&self, space: Space, key: &[u8]) -> Result<Option<Bytes>, ReadError> {
        self.inner.get(space, key)
    }

    fn scan(
        &self,
        space: Space,
        range: Range<&[u8]>,
        direction: Direction,
        limit: ScanLimit,
    ) -> Result<ScanPage, ReadError> {
        self.look(space, range.start, range.end)?;
        self.inner.scan(space, range, direction, limit)
    }

    fn floor_key(&self, space: Space, start: &[u8], at: &[u8]) -> Result<Option<Key>, ReadError> {
        self.inner.floor_key(space, start, at)
    }
}
