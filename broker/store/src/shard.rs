//! What all engines share in front of their files: the queue, the writer thread, its end.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::watch;

use crate::batch::WriteBatch;
use crate::error::CommitError;
use crate::figures::StorageFigures;
use crate::queue::{Gate, Permit, Queue};
use crate::store::{Done, Health, Pending, StoreStats};
use crate::writer::{Counters, Engine, Writer};

pub(crate) struct Shard {
    queue: Arc<Queue>,
    counters: Arc<Counters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Shard {
    /// Starts the writer thread.
    pub(crate) fn start<E: Engine>(gate: Arc<Gate>, engine: E) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(gate));
        let counters = Arc::<Counters>::default();
        let writer = Writer::new(engine, Arc::clone(&queue), Arc::clone(&counters));
        let thread = thread::Builder::new()
            .name("store-writer".into())
            .spawn(move || writer.run())?;
        Ok(Self {
            queue,
            counters,
            thread: Mutex::new(Some(thread)),
        })
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.queue.gate
    }

    pub(crate) fn file(&self) -> PathBuf {
        self.queue.gate.file.clone()
    }

    pub(crate) fn reserve(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
        Box::pin(Arc::clone(&self.queue.gate).reserve(bytes))
    }

    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        self.queue.gate.try_reserve(bytes)
    }

    pub(crate) fn reserve_append(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
        Box::pin(Arc::clone(&self.queue.gate).reserve_append(bytes))
    }

    pub(crate) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    pub(crate) fn submit(&self, permit: Permit, batch: WriteBatch, done: Done) {
        self.queue.push(permit, batch, done);
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.queue.gate.health()
    }

    pub(crate) fn stats(&self) -> StoreStats {
        let counters = &self.counters;
        StoreStats {
            commits: counters.commits.load(Ordering::Relaxed),
            batches: counters.batches.load(Ordering::Relaxed),
            bytes: counters.bytes.load(Ordering::Relaxed),
            queued_bytes: self.queue.gate.queued_bytes(),
            appends_waiting: self.queue.gate.appends_waiting(),
            file_bytes: counters.file_bytes.load(Ordering::Relaxed),
            commit_bytes: counters.commit_bytes.read(),
            commit_us: counters.commit_us.read(),
            storage: StorageFigures::default(),
        }
    }

    pub(crate) fn close(&self) {
        self.queue.close();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(thread) = thread else { return };
        // The last owner of a store may be a callback, on the very thread to be joined. It will
        // end by itself.
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            tracing::error!(file = %self.queue.gate.file.display(), "the writer thread panicked");
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        self.close();
    }
}
