//! What the engine counts as it goes along, for [`StorageFigures`].

use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::redb::{BackendError, StorageBackend};

use super::ahead::Ahead;
use super::extent::SegmentRow;
use crate::figures::StorageFigures;

/// The sum of all segments' rows, or a change of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SealedTotals {
    segments: u64,
    file_bytes: u64,
    data_bytes: u64,
    live_bytes: u64,
    extents: u64,
}

// A change may be negative: the sums wrap, and come out right when it is applied.
impl SealedTotals {
    pub(super) fn add(&mut self, row: &SegmentRow) {
        self.segments = self.segments.wrapping_add(1);
        self.file_bytes = self.file_bytes.wrapping_add(row.file_bytes);
        self.data_bytes = self.data_bytes.wrapping_add(row.data_bytes);
        self.live_bytes = self.live_bytes.wrapping_add(row.live_bytes);
        self.extents = self.extents.wrapping_add(row.extents);
    }

    pub(super) fn remove(&mut self, row: &SegmentRow) {
        self.segments = self.segments.wrapping_sub(1);
        self.file_bytes = self.file_bytes.wrapping_sub(row.file_bytes);
        self.data_bytes = self.data_bytes.wrapping_sub(row.data_bytes);
        self.live_bytes = self.live_bytes.wrapping_sub(row.live_bytes);
        self.extents = self.extents.wrapping_sub(row.extents);
    }
}

/// The counters of one shard. The writer and the sealer add to them, anybody reads.
#[derive(Debug, Default)]
pub(super) struct Meter {
    hot: AtomicU64,
    unsealed: AtomicU64,
    lag: AtomicU64,
    segments: AtomicU64,
    file: AtomicU64,
    data: AtomicU64,
    live: AtomicU64,
    extents: AtomicU64,
    appended: AtomicU64,
    hot_written: AtomicU64,
    segment_written: AtomicU64,
    opened_in_us: AtomicU64,
}

impl Meter {
    /// What lies in the hot file, of it what is not sealed, and what of that should be.
    pub(super) fn hot(&self, hot: u64, unsealed: u64, lag: u64) {
        self.hot.store(hot, Ordering::Relaxed);
        self.unsealed.store(unsealed, Ordering::Relaxed);
        self.lag.store(lag, Ordering::Relaxed);
    }

    /// The segments' rows have changed, durably.
    pub(super) fn sealed(&self, change: SealedTotals) {
        self.segments.fetch_add(change.segments, Ordering::Relaxed);
        self.file.fetch_add(change.file_bytes, Ordering::Relaxed);
        self.data.fetch_add(change.data_bytes, Ordering::Relaxed);
        self.live.fetch_add(change.live_bytes, Ordering::Relaxed);
        self.extents.fetch_add(change.extents, Ordering::Relaxed);
    }

    /// How many extents there are.
    pub(super) fn extents(&self) -> u64 {
        self.extents.load(Ordering::Relaxed)
    }

    /// Bytes in segments that are wanted.
    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }

    /// Records were appended, durably or not.
    pub(super) fn appended(&self, bytes: u64) {
        self.appended.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A segment was written.
    pub(super) fn wrote_segment(&self, bytes: u64) {
        self.segment_written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The store is open.
    pub(super) fn opened(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.opened_in_us.store(took, Ordering::Relaxed);
        // What recovery wrote is not on the account of what is appended from now on.
        self.hot_written.store(0, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> StorageFigures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (data, live) = (read(&self.data), read(&self.live));
        StorageFigures {
            hot_bytes: read(&self.hot),
            unsealed_bytes: read(&self.unsealed),
            seal_lag_bytes: read(&self.lag),
            segments: read(&self.segments),
            sealed_bytes: read(&self.file),
            live_bytes: live,
            garbage_bytes: data.saturating_sub(live),
            appended_bytes: read(&self.appended),
            hot_written_bytes: read(&self.hot_written),
            segment_written_bytes: read(&self.segment_written),
            opened_in_us: read(&self.opened_in_us),
        }
    }
}

/// A file of the engine whose writes are counted.
#[derive(Debug)]
pub(super) struct Metered<B> {
    backend: B,
    meter: Arc<Meter>,
    ahead: Option<Ahead>,
}

impl<B> Metered<B> {
    pub(super) fn new(backend: B, meter: &Arc<Meter>) -> Self {
        Self {
            backend,
            meter: Arc::clone(meter),
            ahead: None,
        }
    }

    /// Has space found for the file before it is written.
    pub(super) fn with(mut self, ahead: Ahead) -> Self {
        self.ahead = Some(ahead);
        self
    }
}

impl<B: StorageBackend> StorageBackend for Metered<B> {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let bytes = data.len() as u64;
        self.meter.hot_written.fetch_add(bytes, Ordering::Relaxed);
        if let Some(ahead) = &self.ahead {
            ahead.reach(offset + bytes);
        }
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.backend.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.backend.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.query_lock_range(start, end)
    }
}
