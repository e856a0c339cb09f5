//! Where the writer and the sealer leave word for each other. See [`super::seal`].

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use super::sealed::{Moved, SealedEntry};
use crate::segment::Summary;

/// What the sealer asks the writer to commit.
pub(super) struct SealJob {
    pub(super) what: What,
    /// Told whether it was committed.
    pub(super) reply: mpsc::SyncSender<bool>,
}

/// What a new segment holds.
pub(super) enum What {
    /// The packs below `through`.
    Packs {
        segment: Summary,
        through: u64,
        entries: Vec<(SealedEntry, u64)>,
        /// How often something had been taken out of packs when they were read.
        kills: u64,
    },
    /// Extents of other segments; without a new one if nothing was found in them.
    Extents {
        segment: Option<Summary>,
        moved: Vec<Moved>,
    },
}

impl What {
    /// The number of the new segment.
    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::Packs { segment, .. } => Some(segment.number),
            Self::Extents { segment, .. } => segment.as_ref().map(|segment| segment.number),
        }
    }
}

/// What there is to do.
pub(super) enum Errand {
    /// With the last call of [`Desk::seal_now`].
    Seal(u64),
    Rewrite,
    Unlink(Vec<u64>),
    /// Of what the writer wants to look at again.
    Remind,
    Close,
}

/// How often the sealer looks whether the store is closing while it waits for the writer.
pub(super) const PATIENCE: Duration = Duration::from_millis(50);

#[derive(Default)]
struct Papers {
    /// The hot file holds more than it should.
    wanted: bool,
    /// Something was cut out of segments.
    cut: bool,
    job: Option<SealJob>,
    unlink: Vec<u64>,
    /// The writer wants to look after a while whether more can be unlinked.
    remind: bool,
    /// How often [`Desk::seal_now`] was called, and up to which call it was done.
    asked: u64,
    answered: u64,
    closing: bool,
    /// The sealer has ended: because of that, or because the shard has stopped.
    gone: bool,
    trouble: Option<String>,
}

/// Where the writer and the sealer leave word for each other.
#[derive(Default)]
pub(super) struct Desk {
    papers: Mutex<Papers>,
    wake: Condvar,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, Papers> {
        // Nothing under this lock panics half-way through a change.
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The writer: the hot file is too large.
    pub(super) fn want(&self) {
        let mut papers = self.lock();
        if !papers.wanted {
            papers.wanted = true;
            self.wake.notify_all();
        }
    }

    /// Seals a segment's worth of packs, however few there are, and waits until that is done or
    /// has failed.
    pub(super) fn seal_now(&self) {
        let mut papers = self.lock();
        papers.asked += 1;
        papers.wanted = true;
        let call = papers.asked;
        self.wake.notify_all();
        while papers.answered < call && !papers.closing && !papers.gone {
            let woken = self.wake.wait(papers);
            papers = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The writer: records were cut out of segments.
    pub(super) fn cut(&self) {
        self.lock().cut = true;
        self.wake.notify_all();
    }

    /// The writer: nobody reads these any more.
    pub(super) fn unlink(&self, numbers: impl IntoIterator<Item = u64>) {
        self.lock().unlink.extend(numbers);
        self.wake.notify_all();
    }

    /// The writer: nudge me after a while, there is more to unlink once nobody reads it.
    pub(super) fn remind(&self) {
        self.lock().remind = true;
        self.wake.notify_all();
    }

    /// The writer: what there is to commit.
    pub(super) fn take_job(&self) -> Option<SealJob> {
        self.lock().job.take()
    }

    /// The store is closing.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.wake.notify_all();
    }

    /// The sealer: it has ended.
    pub(super) fn leave(&self) {
        self.lock().gone = true;
        self.wake.notify_all();
    }

    /// The sealer: what the writer is to commit.
    pub(super) fn put_job(&self, job: SealJob) {
        self.lock().job = Some(job);
    }

    /// The sealer: an errand is done, or has failed, with it the calls of [`Desk::seal_now`] up to
    /// `call`; and what is wrong now.
    pub(super) fn done(&self, call: Option<u64>, trouble: Option<String>) {
        let mut papers = self.lock();
        papers.trouble = trouble;
        if let Some(call) = call {
            papers.answered = call;
        }
        drop(papers);
        self.wake.notify_all();
    }

    /// Whether the store is closing.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Why sealing does not get on, if it does not.
    pub(super) fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// The sealer: waits for something to do; `stopped` says whether the shard has stopped.
    pub(super) fn next(&self, stopped: impl Fn() -> bool) -> Errand {
        let mut papers = self.lock();
        loop {
            if papers.closing || stopped() {
                return Errand::Close;
            }
            if !papers.unlink.is_empty() {
                return Errand::Unlink(std::mem::take(&mut papers.unlink));
            }
            if std::mem::take(&mut papers.wanted) {
                return Errand::Seal(papers.asked);
            }
            if std::mem::take(&mut papers.cut) {
                return Errand::Rewrite;
            }
            if papers.remind {
                let woken = self.wake.wait_timeout(papers, PATIENCE);
                let (guard, waited) = woken.unwrap_or_else(PoisonError::into_inner);
                papers = guard;
                if waited.timed_out() {
                    papers.remind = false;
                    return Errand::Remind;
                }
                continue;
            }
            let woken = self.wake.wait(papers);
            papers = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The sealer: waits after a failure, but not longer than the store stays open, and not if
    /// somebody wants it done now, or if files can be removed, which may be the remedy.
    pub(super) fn rest(&self, pause: Duration) {
        let has_time = |papers: &mut Papers| {
            !papers.closing && papers.asked == papers.answered && papers.unlink.is_empty()
        };
        drop(self.wake.wait_timeout_while(self.lock(), pause, has_time));
    }
}
