//! Producer sequences: which batch is new, which was stored before.
//!
//! A producer numbers its batches to one topic 0, 1, 2, ... and resends what was
//! not acknowledged after a reconnect. [`ProducerState`] is what the broker
//! remembers of it: the epoch, the sequence it expects next and where the last
//! batches went. It changes when a batch is *submitted* to the store, whose
//! queue is first in, first out; the caller answers a duplicate only behind
//! everything submitted before it, so an answer is never ahead of the disk.
//!
//! A sequence may be left out only by the first batch on a new stream: the
//! producer knows which of its batches were refused for good, the broker may
//! have forgotten after a restart.

use std::collections::VecDeque;

use millstream_proto::message::Placement;
use millstream_proto::{ErrorCode, ProducerEpoch, Sequence};

/// How many of a producer's last batches are remembered with their placement.
/// A duplicate of an older one is still recognised, only its placement is lost.
pub const REMEMBERED_BATCHES: usize = 64;

/// How many of a producer's last refusals are remembered: as many as a stream
/// can have unanswered batches. Without, a refused batch that is sent again
/// because the answer was lost would be taken for one that is stored.
pub const REMEMBERED_REFUSALS: usize = 1024;

/// What to do with a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// Store it.
    New,
    /// It was stored before, there if still known.
    Duplicate(Option<Vec<Placement>>),
    /// It was refused for good before, with this code, and others behind it were not.
    Refused(ErrorCode),
    /// Another stream with this or a higher epoch has taken over.
    Fenced,
    /// One before it is to come again first, and this one then comes again too: say nothing.
    PassOver,
    /// Batches are missing before it.
    Gap {
        /// What should have come.
        expected: Sequence,
    },
}

/// What is known of one producer of one topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerState {
    epoch: ProducerEpoch,
    stream: u64,
    next: u64,
    fresh: bool,
    /// The batch that is to come again before any behind it.
    wanted: Option<u64>,
    recent: VecDeque<(u64, Vec<Placement>)>,
    refusals: VecDeque<(u64, ErrorCode)>,
}

impl ProducerState {
    /// A producer nobody has heard of.
    #[must_use]
    pub fn unknown(epoch: ProducerEpoch) -> Self {
        Self {
            epoch,
            stream: 0,
            next: 0,
            fresh: true,
            wanted: None,
            recent: VecDeque::new(),
            refusals: VecDeque::new(),
        }
    }

    /// A producer as the store remembers it: its last stored batch and where that went.
    #[must_use]
    pub fn restored(epoch: ProducerEpoch, last: Sequence, placements: Vec<Placement>) -> Self {
        let recent = VecDeque::from([(last.0, placements)]);
        Self {
            epoch,
            stream: 0,
            next: last.0.saturating_add(1),
            fresh: true,
            wanted: None,
            recent,
            refusals: VecDeque::new(),
        }
    }

    /// A stream opens with this epoch. Returns the stream's number, which fences
    /// off all earlier streams, or `None` when the epoch is older than one seen.
    pub fn open(&mut self, epoch: ProducerEpoch) -> Option<u64> {
        if epoch < self.epoch {
            return None;
        }
        if epoch > self.epoch {
            self.epoch = epoch;
            self.next = 0;
            self.recent.clear();
            self.refusals.clear();
        }
        self.stream += 1;
        self.fresh = true;
        self.wanted = None;
        Some(self.stream)
    }

    /// The sequence expected next.
    #[must_use]
    pub fn next(&self) -> Sequence {
        Sequence(self.next)
    }

    /// The epoch in force.
    #[must_use]
    pub fn epoch(&self) -> ProducerEpoch {
        self.epoch
    }

    /// Whether `stream` is the one in force.
    #[must_use]
    pub fn is_current(&self, stream: u64) -> bool {
        self.stream == stream
    }

    /// Judges a batch of `stream`; changes nothing.
    #[must_use]
    pub fn judge(&self, stream: u64, sequence: Sequence) -> Judgement {
        if stream != self.stream {
            return Judgement::Fenced;
        }
        if sequence.0 < self.next {
            let refusal = self.refusals.iter().find(|(s, _)| *s == sequence.0);
            if let Some((_, code)) = refusal {
                return Judgement::Refused(*code);
            }
            let known = self.recent.iter().find(|(s, _)| *s == sequence.0);
            return Judgement::Duplicate(known.map(|(_, p)| p.clone()));
        }
        // Before the rule for new streams: what comes behind the wanted batch must not take its
        // place there either.
        if self.wanted.is_some_and(|wanted| sequence.0 > wanted) {
            return Judgement::PassOver;
        }
        if sequence.0 > self.next && !self.fresh {
            return Judgement::Gap {
                expected: self.next(),
            };
        }
        Judgement::New
    }

    /// Notes that a new batch was submitted to the store.
    pub fn stored(&mut self, sequence: Sequence, placements: Vec<Placement>) {
        if self.recent.len() == REMEMBERED_BATCHES {
            self.recent.pop_front();
        }
        self.recent.push_back((sequence.0, placements));
        self.used(sequence);
    }

    /// Notes that a new batch was refused for good: its sequence is used up.
    pub fn refused(&mut self, sequence: Sequence, code: ErrorCode) {
        if self.refusals.len() == REMEMBERED_REFUSALS {
            self.refusals.pop_front();
        }
        self.refusals.push_back((sequence.0, code));
        self.used(sequence);
    }

    fn used(&mut self, sequence: Sequence) {
        self.next = self.next.max(sequence.0.saturating_add(1));
        self.fresh = false;
        self.wanted = None;
    }

    /// Notes that a new batch was refused for now: those behind it are passed over until it
    /// comes again.
    pub fn ask_again(&mut self, sequence: Sequence) {
        self.wanted = Some(sequence.0);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::{Offset, PartitionId};
    use proptest::prelude::*;

    use super::*;

    fn placed(base: u64) -> Vec<Placement> {
        vec![Placement {
            partition: PartitionId(0),
            base: Offset(base),
            count: 1,
        }]
    }

    #[test]
    fn batches_are_new_once() {
        let mut p = ProducerState::unknown(ProducerEpoch(0));
        let s = p.open(ProducerEpoch(0)).unwrap();
        assert_eq!(p.judge(s, Sequence(0)), Judgement::New);
        p.stored(Sequence(0), placed(7));
        assert_eq!(
            p.judge(s, Sequence(0)),
            Judgement::Duplicate(Some(placed(7)))
        );
        assert_eq!(
            p.judge(s, Sequence(2)),
            Judgement::Gap {
                expected: Sequence(1)
            }
        );
        assert_eq!(p.judge(s, Sequence(1)), Judgement::New);
    }

    #[test]
    fn a_new_stream_fences_the_old_and_may_skip_once() {
        let mut p = ProducerState::restored(ProducerEpoch(1), Sequence(4), placed(9));
        assert_eq!(p.open(ProducerEpoch(0)), None);
        let old = p.open(ProducerEpoch(1)).unwrap();
        let new = p.open(ProducerEpoch(1)).unwrap();
        assert_eq!(p.judge(old, Sequence(5)), Judgement::Fenced);
        assert_eq!(
            p.judge(new, Sequence(4)),
            Judgement::Duplicate(Some(placed(9)))
        );
        assert_eq!(p.judge(new, Sequence(3)), Judgement::Duplicate(None));
        // 5 was refused before the restart, which only the producer knows.
        assert_eq!(p.judge(new, Sequence(6)), Judgement::New);
        p.stored(Sequence(6), placed(10));
        assert_eq!(
            p.judge(new, Sequence(8)),
            Judgement::Gap {
                expected: Sequence(7)
            }
        );
    }

    #[test]
    fn what_follows_a_batch_that_is_wanted_again_waits_for_it_also_on_a_new_stream() {
        let mut p = ProducerState::unknown(ProducerEpoch(0));
        let s = p.open(ProducerEpoch(0)).unwrap();
        p.ask_again(Sequence(0));
        assert_eq!(p.judge(s, Sequence(1)), Judgement::PassOver);
        assert_eq!(p.judge(s, Sequence(0)), Judgement::New);
        p.stored(Sequence(0), placed(0));
        assert_eq!(p.judge(s, Sequence(1)), Judgement::New);
        p.ask_again(Sequence(1));
        assert_eq!(p.judge(s, Sequence(2)), Judgement::PassOver);
        let s = p.open(ProducerEpoch(0)).unwrap();
        assert_eq!(p.judge(s, Sequence(1)), Judgement::New);
        p.refused(Sequence(1), ErrorCode::PluginFailed);
        assert_eq!(p.judge(s, Sequence(2)), Judgement::New);
    }

    #[test]
    fn a_refused_batch_is_refused_again_when_its_answer_was_lost() {
        let mut p = ProducerState::unknown(ProducerEpoch(0));
        let s = p.open(ProducerEpoch(0)).unwrap();
        p.stored(Sequence(0), placed(0));
        p.refused(Sequence(1), ErrorCode::RecordTooLarge);
        assert_eq!(p.judge(s, Sequence(2)), Judgement::New);
        p.stored(Sequence(2), placed(1));
        let s = p.open(ProducerEpoch(0)).unwrap();
        assert_eq!(
            p.judge(s, Sequence(1)),
            Judgement::Refused(ErrorCode::RecordTooLarge)
        );
        assert_eq!(
            p.judge(s, Sequence(2)),
            Judgement::Duplicate(Some(placed(1)))
        );
        for sequence in 3..3 + REMEMBERED_REFUSALS as u64 {
            p.refused(Sequence(sequence), ErrorCode::PluginFailed);
        }
        assert_eq!(p.refusals.len(), REMEMBERED_REFUSALS);
    }

    #[test]
    fn a_higher_epoch_begins_anew() {
        let mut p = ProducerState::restored(ProducerEpoch(1), Sequence(4), placed(9));
        let s = p.open(ProducerEpoch(2)).unwrap();
        assert_eq!(p.judge(s, Sequence(0)), Judgement::New);
    }

    proptest! {
        /// However often a producer reconnects and resends, each sequence is stored once, in order.
        #[test]
        fn resending_never_stores_twice(steps in proptest::collection::vec((0u64..5, any::<bool>()), 1..200)) {
            let mut p = ProducerState::unknown(ProducerEpoch(0));
            let mut stream = p.open(ProducerEpoch(0)).unwrap();
            let mut stored: Vec<u64> = Vec::new();
            for (back, reconnect) in steps {
                if reconnect {
                    stream = p.open(ProducerEpoch(0)).unwrap();
                }
                let sequence = (stored.len() as u64).saturating_sub(back);
                match p.judge(stream, Sequence(sequence)) {
                    Judgement::New => {
                        prop_assert_eq!(sequence, stored.len() as u64);
                        stored.push(sequence);
                        p.stored(Sequence(sequence), placed(sequence));
                    }
                    Judgement::Duplicate(known) => {
                        prop_assert!(stored.contains(&sequence));
                        prop_assert_eq!(known, Some(placed(sequence)));
                    }
                    other => prop_assert!(false, "{other:?}"),
                }
            }
            prop_assert!(stored.is_sorted());
        }
    }
}
