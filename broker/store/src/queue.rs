//! The bounded queue between those who submit and a shard's writer thread, and the gate that
//! closes it.
//!
//! Room is counted in bytes and handed out before a batch is built, as a [`Permit`], so that
//! submitting itself never waits. A permit is given back when its batch has been answered.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, watch};

use crate::batch::{BatchRefused, WriteBatch};
use crate::error::{CommitError, StopCause};
use crate::limits::{GROUP_BATCHES, GROUP_BYTES, PERMIT_SLACK, QUEUE_BYTES};
use crate::store::{Done, Health};

/// Room for one batch in a shard's queue. Dropping it gives the room back.
#[derive(Debug)]
pub struct Permit {
    room: OwnedSemaphorePermit,
    bytes: usize,
}

impl Permit {
    /// Bytes it was reserved for.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Whether the shard accepts writes, and how much room it has for them.
pub(crate) struct Gate {
    pub(crate) file: PathBuf,
    health: watch::Sender<Health>,
    closed: AtomicBool,
    room: Arc<Semaphore>,
    /// Whether appends must wait for the engine to make room on the disk.
    full: watch::Sender<bool>,
    /// Appends that wait, for whatever room.
    appends_waiting: AtomicU64,
}

/// One append more that waits, as long as this lives.
struct InLine<'a>(&'a AtomicU64);

impl<'a> InLine<'a> {
    fn enter(waiting: &'a AtomicU64) -> Self {
        waiting.fetch_add(1, Ordering::Relaxed);
        Self(waiting)
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Gate {
    pub(crate) fn new(file: PathBuf) -> Self {
        Self {
            file,
            health: watch::Sender::new(Health::Serving),
            closed: AtomicBool::new(false),
            room: Arc::new(Semaphore::new(QUEUE_BYTES)),
            full: watch::Sender::new(false),
            appends_waiting: AtomicU64::new(0),
        }
    }

    /// Has appends wait, or go on.
    pub(crate) fn set_full(&self, full: bool) {
        self.full
            .send_if_modified(|was| std::mem::replace(was, full) != full);
    }

    /// Whether appends wait.
    pub(crate) fn is_full(&self) -> bool {
        *self.full.borrow()
    }

    /// Stops the shard for good. Only the first cause counts: later ones are its consequences.
    pub(crate) fn stop(&self, cause: StopCause) -> Arc<StopCause> {
        let mut standing = Arc::new(cause);
        let first = self.health.send_if_modified(|health| match health {
            Health::Serving => {
                *health = Health::Stopped(Arc::clone(&standing));
                true
            }
            Health::Stopped(earlier) => {
                standing = Arc::clone(earlier);
                false
            }
        });
        if first {
            tracing::error!(file = %self.file.display(), cause = %standing, "shard stopped");
        }
        self.room.close();
        self.set_full(false);
        standing
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.close();
        self.set_full(false);
    }

    pub(crate) fn stopped(&self) -> Option<Arc<StopCause>> {
        self.health.borrow().cause().map(Arc::clone)
    }

    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Why no more batches are accepted.
    pub(crate) fn refusal(&self) -> CommitError {
        match self.stopped() {
            Some(cause) => CommitError::Stopped { cause },
            None => CommitError::Closed,
        }
    }

    pub(crate) fn appends_waiting(&self) -> u64 {
        self.appends_waiting.load(Ordering::Relaxed)
    }

    pub(crate) fn queued_bytes(&self) -> u64 {
        (QUEUE_BYTES - self.room.available_permits()) as u64
    }

    pub(crate) async fn reserve(self: Arc<Self>, bytes: usize) -> Result<Permit, CommitError> {
        match Arc::clone(&self.room)
            .acquire_many_owned(charge(bytes))
            .await
        {
            Ok(room) => Ok(Permit { room, bytes }),
            Err(_) => Err(self.refusal()),
        }
    }

    /// As [`Gate::reserve`], once the engine has room for more records. Whoever waits for the queue
    /// meanwhile does so in order; those who wait for the engine go on in any.
    pub(crate) async fn reserve_append(
        self: Arc<Self>,
        bytes: usize,
    ) -> Result<Permit, CommitError> {
        let _in_line = InLine::enter(&self.appends_waiting);
        let mut full = self.full.subscribe();
        loop {
            // The sender lives as long as this gate.
            drop(full.wait_for(|full| !full || self.room.is_closed()).await);
            let permit = Arc::clone(&self).reserve(bytes).await?;
            if !self.is_full() {
                return Ok(permit);
            }
            // It became full while this waited for the queue. Room must not be held meanwhile:
            // what makes the engine's room goes through the same queue.
            drop(permit);
        }
    }

    pub(crate) fn try_reserve_append(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        if self.is_full() && !self.room.is_closed() {
            return Ok(None);
        }
        let permit = self.try_reserve(bytes)?;
        Ok(permit.filter(|_| !self.is_full()))
    }

    pub(crate) fn try_reserve(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
        match Arc::clone(&self.room).try_acquire_many_owned(charge(bytes)) {
            Ok(room) => Ok(Some(Permit { room, bytes })),
            Err(TryAcquireError::NoPermits) => Ok(None),
            Err(TryAcquireError::Closed) => Err(self.refusal()),
        }
    }

    /// What makes `batch` unfit for the queue under `permit`.
    fn check(&self, permit: &Permit, batch: &WriteBatch) -> Result<(), BatchRefused> {
        if !Arc::ptr_eq(permit.room.semaphore(), &self.room) {
            return Err(BatchRefused::ForeignPermit);
        }
        if batch.byte_len() > permit.bytes.saturating_add(PERMIT_SLACK) {
            return Err(BatchRefused::PermitTooSmall {
                reserved: permit.bytes,
                needed: batch.byte_len(),
            });
        }
        batch.check()
    }
}

/// A batch larger than the whole queue waits for an empty queue, not forever.
fn charge(bytes: usize) -> u32 {
    u32::try_from(bytes.min(QUEUE_BYTES)).expect("QUEUE_BYTES fits u32, asserted in limits")
}

/// One batch in the queue.
pub(crate) struct Job {
    pub(crate) batch: WriteBatch,
    /// Set if the batch must not reach the engine.
    pub(crate) refused: Option<BatchRefused>,
    pub(crate) done: Done,
    /// Given back when the job is dropped, after `done` was called.
    pub(crate) _permit: Permit,
}

/// What the writer is to do next.
pub(crate) enum Next {
    /// Commit these, in this order.
    Group(Vec<Job>),
    /// Nothing came before the deadline.
    Due,
    /// The engine has something to do that is not a batch.
    Chores,
    /// The queue is closed and empty.
    Closed,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    chores: bool,
    closed: bool,
}

/// The jobs of one shard, in order of submission.
pub(crate) struct Queue {
    pub(crate) gate: Arc<Gate>,
    waiting: Mutex<Waiting>,
    ready: Condvar,
}

impl Queue {
    pub(crate) fn new(gate: Arc<Gate>) -> Self {
        Self {
            gate,
            waiting: Mutex::default(),
            ready: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that can panic runs under this lock, so a poisoned one is still consistent.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, permit: Permit, batch: WriteBatch, done: Done) {
        let refused = self.gate.check(&permit, &batch).err();
        let job = Job {
            batch,
            refused,
            done,
            _permit: permit,
        };
        let mut waiting = self.lock();
        if !waiting.closed {
            waiting.jobs.push_back(job);
            drop(waiting);
            self.ready.notify_one();
            return;
        }
        drop(waiting);
        // The writer has gone. The caller may hold a lock that `done` takes, so `done` must not
        // run in here. As many of these can exist as there were permits when the store closed.
        let refusal = self.gate.refusal();
        let answer = move || (job.done)(Err(refusal));
        if std::thread::Builder::new()
            .name("store-late".into())
            .spawn(answer)
            .is_err()
        {
            tracing::warn!("no thread to refuse a batch submitted after the store was closed");
        }
    }

    /// Has the writer call [`crate::writer::Engine::chores`] soon.
    pub(crate) fn nudge(&self) {
        self.lock().chores = true;
        self.ready.notify_one();
    }

    pub(crate) fn close(&self) {
        self.gate.close();
        self.lock().closed = true;
        self.ready.notify_all();
    }

    /// Waits for work, at most until `deadline`, and takes as much of it as one commit should
    /// carry.
    pub(crate) fn next(&self, deadline: Option<Instant>) -> Next {
        let mut waiting = self.lock();
        loop {
            if !waiting.jobs.is_empty() {
                return Next::Group(take_group(&mut waiting.jobs));
            }
            if waiting.closed {
                return Next::Closed;
            }
            if std::mem::take(&mut waiting.chores) {
                return Next::Chores;
            }
            waiting = match deadline {
                None => self
                    .ready
                    .wait(waiting)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Next::Due;
                    }
                    let woken = self.ready.wait_timeout(waiting, left);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

fn take_group(jobs: &mut VecDeque<Job>) -> Vec<Job> {
    let mut bytes = 0;
    let fits = |job: &&Job| {
        bytes += job.batch.byte_len();
        bytes <= GROUP_BYTES
    };
    let taken = jobs.iter().take(GROUP_BATCHES).take_while(fits).count();
    jobs.drain(..taken.max(1)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use bytes::Bytes;

    use super::*;
    use crate::space::Space;

    fn queue() -> Queue {
        Queue::new(Arc::new(Gate::new("test".into())))
    }

    fn push(queue: &Queue, bytes: usize) {
        let mut batch = WriteBatch::new();
        batch.put(Space::Blobs, "k", Bytes::from(vec![0; bytes]));
        let permit = queue.gate.try_reserve(batch.byte_len()).unwrap().unwrap();
        queue.push(permit, batch, Box::new(|_| ()));
    }

    fn group(queue: &Queue) -> Vec<usize> {
        match queue.next(None) {
            Next::Group(jobs) => jobs.iter().map(|job| job.batch.byte_len()).collect(),
            _ => panic!("expected a group"),
        }
    }

    #[test]
    fn a_group_is_what_has_gathered_up_to_its_cap() {
        let queue = queue();
        for _ in 0..5 {
            push(&queue, GROUP_BYTES / 3);
        }
        assert_eq!(group(&queue).len(), 2);
        assert_eq!(group(&queue).len(), 2);
        assert_eq!(group(&queue).len(), 1);
        push(&queue, GROUP_BYTES + 1);
        assert_eq!(group(&queue).len(), 1, "a batch above the cap goes alone");
    }

    #[test]
    fn a_group_has_a_cap_on_batches() {
        let queue = queue();
        for _ in 0..=GROUP_BATCHES {
            push(&queue, 0);
        }
        assert_eq!(group(&queue).len(), GROUP_BATCHES);
        assert_eq!(group(&queue).len(), 1);
    }

    #[test]
    fn room_is_bounded_and_comes_back() {
        let queue = queue();
        let all = queue.gate.try_reserve(usize::MAX).unwrap().unwrap();
        assert!(queue.gate.try_reserve(1).unwrap().is_none());
        assert_eq!(queue.gate.queued_bytes(), QUEUE_BYTES as u64);
        drop(all);
        push(&queue, 100);
        assert!(queue.gate.queued_bytes() > 100);
        drop(queue.next(None));
        assert_eq!(queue.gate.queued_bytes(), 0);
    }

    type Append = Pin<Box<dyn Future<Output = Result<Permit, CommitError>>>>;

    fn poll(append: &mut Append) -> Poll<Result<Permit, CommitError>> {
        append
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Appends that wait for the queue, and for the engine since it was full.
    fn waiting_appends(gate: &Arc<Gate>) -> Vec<Append> {
        let all = gate.try_reserve(usize::MAX).unwrap().unwrap();
        let reserve = |_| Box::pin(Arc::clone(gate).reserve_append(100)) as Append;
        let mut appends: Vec<Append> = (0..50).map(reserve).collect();
        assert!(appends.iter_mut().all(|append| poll(append).is_pending()));
        gate.set_full(true);
        // Gives each of them its room in the queue.
        drop(all);
        appends
    }

    #[test]
    fn who_waits_for_the_queue_is_not_let_in_once_it_is_full() {
        let gate = Arc::new(Gate::new("test".into()));
        let mut appends = waiting_appends(&gate);
        for _ in 0..3 {
            assert!(appends.iter_mut().all(|append| poll(append).is_pending()));
            assert_eq!(gate.queued_bytes(), 0, "none of them holds room");
        }
        assert!(gate.try_reserve_append(100).unwrap().is_none());
        assert!(gate.try_reserve(usize::MAX).unwrap().is_some());
        gate.set_full(false);
        let permits = appends.iter_mut().map(poll);
        let permits: Vec<_> = permits.filter(|polled| polled.is_ready()).collect();
        assert_eq!(permits.len(), appends.len());
    }

    #[test]
    fn who_waits_though_it_was_let_into_the_queue_hears_of_the_end() {
        let cause = StopCause::Corrupt {
            detail: "test".into(),
        };
        for cause in [None, Some(cause)] {
            let gate = Arc::new(Gate::new("test".into()));
            let mut appends = waiting_appends(&gate);
            // Half of them have seen that it is full, half have not.
            assert!(appends.iter_mut().skip(25).all(|a| poll(a).is_pending()));
            match &cause {
                None => gate.close(),
                Some(cause) => drop(gate.stop(cause.clone())),
            }
            gate.set_full(true);
            for append in &mut appends {
                match poll(append) {
                    Poll::Ready(Err(CommitError::Closed)) => assert!(cause.is_none()),
                    Poll::Ready(Err(CommitError::Stopped { .. })) => assert!(cause.is_some()),
                    other => panic!("{other:?}"),
                }
            }
            gate.try_reserve_append(1).unwrap_err();
        }
    }

    #[test]
    fn a_batch_beyond_its_permit_is_refused() {
        let queue = queue();
        let mut batch = WriteBatch::new();
        batch.put(Space::Blobs, "k", Bytes::from(vec![0; PERMIT_SLACK + 1]));
        let permit = queue.gate.try_reserve(1).unwrap().unwrap();
        assert_eq!(
            queue.gate.check(&permit, &batch),
            Err(BatchRefused::PermitTooSmall {
                reserved: 1,
                needed: batch.byte_len()
            })
        );
        let other = Gate::new("other".into());
        let foreign = other.try_reserve(batch.byte_len()).unwrap().unwrap();
        assert_eq!(
            queue.gate.check(&foreign, &batch),
            Err(BatchRefused::ForeignPermit)
        );
    }

    #[test]
    fn the_first_cause_stays() {
        let gate = Gate::new("test".into());
        let first = StopCause::Corrupt {
            detail: "first".into(),
        };
        gate.stop(first.clone());
        let told = gate.stop(StopCause::Corrupt {
            detail: "second".into(),
        });
        assert_eq!(*told, first);
        assert!(
            matches!(gate.try_reserve(1), Err(CommitError::Stopped { cause }) if *cause == first)
        );
    }
}
