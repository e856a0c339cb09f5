//! The segments of a shard that are open.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::SegmentError;
use super::files::Files;
use super::limits::{MAX_OPEN, MAX_OPEN_INDEX_BYTES};
use super::pin::Pins;
use super::reader::{Segment, check_len};

/// How much may be open at a time. One segment always may, whatever its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenLimits {
    /// Segments, each a file descriptor.
    pub segments: usize,
    /// Memory of their indexes, in bytes.
    pub index_bytes: usize,
}

impl Default for OpenLimits {
    fn default() -> Self {
        Self {
            segments: MAX_OPEN,
            index_bytes: MAX_OPEN_INDEX_BYTES,
        }
    }
}

/// Opens segments when they are first asked for and closes those that were not asked for longest.
/// One that somebody still reads stays open for them.
pub struct Segments {
    files: Arc<dyn Files>,
    limits: OpenLimits,
    state: Mutex<State>,
    pins: Mutex<Pins>,
}

#[derive(Default)]
struct State {
    open: HashMap<u64, Entry>,
    index_bytes: usize,
    /// Counts the calls; the last one is the most recent use.
    now: u64,
}

struct Entry {
    slot: Arc<Slot>,
    used: u64,
    /// 0 until it is open.
    index_bytes: usize,
}

/// Empty until the segment is open. Whoever opens it holds the lock, so that others who want the
/// same one wait for it, and those who want another do not. Nobody takes this lock while holding
/// that of the state.
type Slot = Mutex<Option<Arc<Segment>>>;

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Neither a slot nor the state is ever left half changed by what can panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Segments {
    /// None are open yet.
    #[must_use]
    pub fn new(files: Arc<dyn Files>, limits: OpenLimits) -> Self {
        Self {
            files,
            limits,
            state: Mutex::default(),
            pins: Mutex::default(),
        }
    }

    pub(super) fn pins(&self) -> &Mutex<Pins> {
        &self.pins
    }

    /// Where the segments lie.
    #[must_use]
    pub fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }

    /// Segment `number`, which was `expected_len` bytes long when it was finished; opened if it
    /// is not open.
    ///
    /// # Errors
    /// As [`Segment::open`]. The next call tries again.
    pub fn get(&self, number: u64, expected_len: u64) -> Result<Arc<Segment>, SegmentError> {
        let slot = self.slot(number);
        let mut opened = locked(&slot);
        if let Some(segment) = &*opened {
            check_len(segment.path(), segment.file_bytes(), expected_len)?;
            return Ok(Arc::clone(segment));
        }
        match Segment::open(&*self.files, number, expected_len) {
            Ok(segment) => {
                let segment = Arc::new(segment);
                *opened = Some(Arc::clone(&segment));
                self.opened(number, &slot, segment.index_bytes());
                Ok(segment)
            }
            Err(error) => {
                self.forget_slot(number, &slot);
                Err(error)
            }
        }
    }

    /// Forgets segment `number`, before or after its file is removed.
    pub fn remove(&self, number: u64) {
        locked(&self.state).forget(number);
    }

    /// How many are open, and the memory of their indexes in bytes.
    #[must_use]
    pub fn open_now(&self) -> (usize, usize) {
        let state = locked(&self.state);
        (state.open.len(), state.index_bytes)
    }

    fn slot(&self, number: u64) -> Arc<Slot> {
        let mut state = locked(&self.state);
        state.now += 1;
        let now = state.now;
        let entry = state.open.entry(number).or_insert_with(|| Entry {
            slot: Arc::default(),
            used: now,
            index_bytes: 0,
        });
        entry.used = now;
        Arc::clone(&entry.slot)
    }

    /// Counts a segment that was just opened, and closes others if it is one too many.
    fn opened(&self, number: u64, slot: &Arc<Slot>, index_bytes: usize) {
        let mut state = locked(&self.state);
        match state.open.get_mut(&number) {
            Some(entry) if Arc::ptr_eq(&entry.slot, slot) => entry.index_bytes = index_bytes,
            // It was removed meanwhile: it is open for whoever asked for it, and not kept.
            _ => return,
        }
        state.index_bytes += index_bytes;
        while state.open.len() > self.limits.segments.max(1)
            || state.index_bytes > self.limits.index_bytes
        {
            let others = state.open.iter().filter(|(other, _)| **other != number);
            let Some((&oldest, _)) = others.min_by_key(|(_, entry)| entry.used) else {
                return;
            };
            state.forget(oldest);
        }
    }

    fn forget_slot(&self, number: u64, slot: &Arc<Slot>) {
        let mut state = locked(&self.state);
        if let Some(entry) = state.open.get(&number)
            && Arc::ptr_eq(&entry.slot, slot)
        {
            state.forget(number);
        }
    }
}

impl State {
    fn forget(&mut self, number: u64) {
        if let Some(entry) = self.open.remove(&number) {
            self.index_bytes -= entry.index_bytes;
        }
    }
}

#[cfg(test)]
mod tests;
