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
    /// How often was sealed since segments were last looked through for what is unwanted.
    seals: u32,
    /// How long they are not to be looked through, because that has failed.
    rewrite_pause: Duration,
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
    /// What keeps records from being sealed, and segments from being rewritten.
    sealing_trouble: Option<String>,
    rewriting_trouble: Option<String>,
}

impl Papers {
    /// What comes first of what there is to do. Sealing goes before rewriting, because appends
    /// wait for it, but while there is always something to seal, segments are looked through after
    /// `most_seals` of them: or what is unwanted in them would have no bound.
    fn pick(&mut self, most_seals: u32) -> Option<Errand> {
        if !self.unlink.is_empty() {
            return Some(Errand::Unlink(std::mem::take(&mut self.unlink)));
        }
        let may_rewrite = self.cut && self.rewrite_pause.is_zero();
        if self.wanted && !(may_rewrite && self.seals >= most_seals) {
            self.wanted = false;
            self.seals = self.seals.saturating_add(1);
            // About what it takes, at least.
            self.waited(PATIENCE);
            return Some(Errand::Seal(self.asked));
        }
        if may_rewrite {
            self.cut = false;
            self.seals = 0;
            return Some(Errand::Rewrite);
        }
        None
    }

    fn waited(&mut self, time: Duration) {
        self.rewrite_pause = self.rewrite_pause.saturating_sub(time);
    }
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
        let mut papers = self.lock();
        if !papers.cut {
            papers.cut = true;
            self.wake.notify_all();
        }
    }

    /// The sealer: segments are to be looked through again, but not before `pause` is over.
    pub(super) fn cut_later(&self, pause: Duration) {
        let mut papers = self.lock();
        papers.cut = true;
        papers.rewrite_pause = pause;
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

    /// The sealer: something is sealed, or could not be, with it the calls of [`Desk::seal_now`] up
    /// to `call`; and what is wrong now.
    pub(super) fn sealed(&self, call: u64, trouble: Option<String>) {
        let mut papers = self.lock();
        papers.sealing_trouble = trouble;
        papers.answered = call;
        drop(papers);
        self.wake.notify_all();
    }

    /// The sealer: what keeps segments from being rewritten now.
    pub(super) fn rewritten(&self, trouble: Option<String>) {
        self.lock().rewriting_trouble = trouble;
    }

    /// Whether the store is closing.
    pub(super) fn is_closing(&self) -> bool {
        self.lock().closing
    }

    /// Why sealing or rewriting does not get on, if it does not.
    pub(super) fn trouble(&self) -> Option<String> {
        let papers = self.lock();
        let trouble = papers.sealing_trouble.as_ref();
        trouble.or(papers.rewriting_trouble.as_ref()).cloned()
    }

    /// Whether the last attempt to seal has failed.
    pub(super) fn seals_in_vain(&self) -> bool {
        self.lock().sealing_trouble.is_some()
    }

    /// The sealer: waits for something to do; `most_seals` says how often it may seal before
    /// segments are looked through, `stopped` whether the shard has stopped.
    pub(super) fn next(&self, most_seals: impl Fn() -> u32, stopped: impl Fn() -> bool) -> Errand {
        let mut papers = self.lock();
        loop {
            if papers.closing || stopped() {
                return Errand::Close;
            }
            if let Some(errand) = papers.pick(most_seals()) {
                return errand;
            }
            if !papers.remind && !papers.cut {
                let woken = self.wake.wait(papers);
                papers = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let woken = self.wake.wait_timeout(papers, PATIENCE);
            let (guard, waited) = woken.unwrap_or_else(PoisonError::into_inner);
            papers = guard;
            if waited.timed_out() {
                papers.waited(PATIENCE);
                if std::mem::take(&mut papers.remind) {
                    return Errand::Remind;
                }
            }
        }
    }

    /// The sealer: waits after a failure, but not longer than the store stays open, and not if
    /// somebody wants it done now, or if files can be removed, which may be the remedy.
    pub(super) fn rest(&self, pause: Duration) {
        let has_time = |papers: &mut Papers| {
            !papers.closing && papers.asked == papers.answered && papers.unlink.is_empty()
        };
        let rested = self.wake.wait_timeout_while(self.lock(), pause, has_time);
        let (mut papers, rested) = rested.unwrap_or_else(PoisonError::into_inner);
        if rested.timed_out() {
            papers.waited(pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is done in turn while there is always something to seal and something unwanted: `S`
    /// for a seal, `R` for a look through the segments.
    fn turns(papers: &mut Papers, most_seals: u32, number: usize) -> String {
        let turn = |_| {
            papers.wanted = true;
            papers.cut = true;
            match papers.pick(most_seals) {
                Some(Errand::Seal(_)) => 'S',
                Some(Errand::Rewrite) => 'R',
                _ => '?',
            }
        };
        (0..number).map(turn).collect()
    }

    #[test]
    fn rewriting_has_its_turn_while_there_is_always_something_to_seal() {
        let mut papers = Papers::default();
        assert_eq!(turns(&mut papers, 4, 11), "SSSSRSSSSRS");
        assert_eq!(turns(&mut papers, 1, 4), "RSRS");
    }

    #[test]
    fn rewriting_that_has_failed_does_not_hold_up_sealing() {
        let mut papers = Papers {
            rewrite_pause: 6 * PATIENCE,
            ..Papers::default()
        };
        assert_eq!(turns(&mut papers, 4, 8), "SSSSSSRS");
        // Nor is it forgotten when nothing is to be sealed.
        papers.wanted = false;
        papers.rewrite_pause = PATIENCE;
        assert!(papers.pick(4).is_none());
        papers.waited(PATIENCE);
        assert!(matches!(papers.pick(4), Some(Errand::Rewrite)));
    }

    #[test]
    fn files_are_removed_before_anything_else() {
        let mut papers = Papers {
            wanted: true,
            cut: true,
            unlink: vec![7],
            ..Papers::default()
        };
        assert!(matches!(papers.pick(1), Some(Errand::Unlink(numbers)) if numbers == [7]));
        assert!(matches!(papers.pick(1), Some(Errand::Seal(0))));
    }

    #[test]
    fn trouble_of_rewriting_is_told_but_is_none_of_sealing() {
        let desk = Desk::default();
        desk.rewritten(Some("rewriting".into()));
        assert_eq!(desk.trouble().as_deref(), Some("rewriting"));
        assert!(!desk.seals_in_vain());
        desk.sealed(0, Some("sealing".into()));
        assert_eq!(desk.trouble().as_deref(), Some("sealing"));
        assert!(desk.seals_in_vain());
        desk.sealed(0, None);
        assert_eq!(desk.trouble().as_deref(), Some("rewriting"));
    }
}
