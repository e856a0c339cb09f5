//! The batches in flight: sent or about to be, and not answered for good.
//!
//! Pure. Sequences follow one another without gaps in the order of pushing.
//! Answers come in the order of sending on one stream. When the broker asks for
//! a batch again, it and all behind it are sent again; answers that the broker
//! gave to the earlier round are told apart by keeping the order of sending.

use std::collections::VecDeque;

/// What an answer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// The newest sending of the batch.
    Current,
    /// A sending that has been repeated since.
    Outdated,
    /// Nothing that was sent on this stream: the broker has lost count.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Window<T> {
    /// `None` where a batch was settled before those in front of it.
    entries: VecDeque<Option<T>>,
    /// Sequence of the front entry.
    base: u64,
    /// Sequence of the next entry to send.
    send: u64,
    /// What was sent on this stream and not answered: sequence and round.
    sent: VecDeque<(u64, u32)>,
    round: u32,
}

impl<T> Default for Window<T> {
    fn default() -> Self {
        Self {
            entries: VecDeque::new(),
            base: 0,
            send: 0,
            sent: VecDeque::new(),
            round: 0,
        }
    }
}

impl<T> Window<T> {
    /// The sequence that the next pushed batch will have.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.base + self.entries.len() as u64
    }

    /// Everything below this sequence is settled.
    pub(crate) fn settled_below(&self) -> u64 {
        self.base
    }

    /// Batches not settled; those settled out of turn still count.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) fn push(&mut self, item: T) {
        self.entries.push_back(Some(item));
    }

    /// The next batch to write to the stream, which counts as sent from now on.
    pub(crate) fn send_next(&mut self) -> Option<(u64, &T)> {
        let mut at = self.index(self.send)?;
        while self.entries.get(at)?.is_none() {
            at += 1;
        }
        let sequence = self.base + at as u64;
        self.send = sequence + 1;
        self.sent.push_back((sequence, self.round));
        let item = self.entries.get(at)?.as_ref()?;
        Some((sequence, item))
    }

    /// Whether [`Window::send_next`] has something.
    pub(crate) fn has_unsent(&self) -> bool {
        self.index(self.send)
            .is_some_and(|at| self.entries.range(at..).any(Option::is_some))
    }

    /// An answer has come for `sequence`.
    pub(crate) fn answered(&mut self, sequence: u64) -> Answered {
        // The broker passes over batches behind one that it wants again.
        while let Some((sent, round)) = self.sent.pop_front() {
            if sent == sequence {
                return if round == self.round {
                    Answered::Current
                } else {
                    Answered::Outdated
                };
            }
        }
        Answered::Unknown
    }

    /// Takes a batch out for good; `None` when it was taken before.
    pub(crate) fn settle(&mut self, sequence: u64) -> Option<T> {
        let at = self.index(sequence)?;
        let item = self.entries.get_mut(at)?.take();
        while let Some(None) = self.entries.front() {
            self.entries.pop_front();
            self.base += 1;
        }
        self.send = self.send.max(self.base);
        item
    }

    /// Sends `sequence` and everything behind it again.
    pub(crate) fn rewind(&mut self, sequence: u64) {
        self.send = self.send.min(sequence.max(self.base));
        self.round = self.round.wrapping_add(1);
    }

    /// The stream is lost: everything not settled is to be sent on the next one.
    pub(crate) fn restart(&mut self) {
        self.sent.clear();
        self.send = self.base;
    }

    /// Takes out what was sent and not settled: on a lost stream, that whose
    /// outcome nobody knows.
    pub(crate) fn take_sent(&mut self) -> Vec<T> {
        let sequences: Vec<u64> = (self.base..self.send).collect();
        sequences
            .into_iter()
            .filter_map(|s| self.settle(s))
            .collect()
    }

    /// Takes out everything.
    pub(crate) fn take_all(&mut self) -> Vec<T> {
        self.base = self.next_sequence();
        self.send = self.base;
        self.sent.clear();
        self.entries.drain(..).flatten().collect()
    }

    fn index(&self, sequence: u64) -> Option<usize> {
        usize::try_from(sequence.checked_sub(self.base)?).ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_batch_asked_for_again_is_sent_again_with_those_behind_it() {
        let mut window = Window::default();
        (0..4).for_each(|i| window.push(i));
        for expected in 0..3 {
            assert_eq!(window.send_next().map(|(s, _)| s), Some(expected));
        }
        assert_eq!(window.answered(0), Answered::Current);
        assert_eq!(window.settle(0), Some(0));
        // 1 is wanted again; the broker also refuses the first sending of 2.
        assert_eq!(window.answered(1), Answered::Current);
        window.rewind(1);
        assert_eq!(window.send_next().map(|(s, _)| s), Some(1));
        assert_eq!(window.answered(2), Answered::Outdated);
        assert_eq!(window.answered(1), Answered::Current);
        assert_eq!(window.settle(1), Some(1));
        assert_eq!(window.send_next().map(|(s, _)| s), Some(2));
        assert_eq!(window.answered(7), Answered::Unknown);
        assert_eq!(window.settled_below(), 2);
    }

    #[test]
    fn what_was_sent_can_be_told_from_what_was_not() {
        let mut window = Window::default();
        (0..3).for_each(|i| window.push(i));
        window.send_next();
        assert_eq!(window.take_sent(), [0]);
        assert_eq!((window.len(), window.has_unsent()), (2, true));
        assert_eq!(window.take_all(), [1, 2]);
        assert_eq!((window.is_empty(), window.next_sequence()), (true, 3));
    }

    /// What happens next on the wire, in the model.
    #[derive(Clone, Copy, Debug)]
    enum Event {
        Push,
        Send,
        Answer,
        RefuseOnce,
        RefuseForGood,
        LoseStream,
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            3 => Just(Event::Push),
            4 => Just(Event::Send),
            4 => Just(Event::Answer),
            1 => Just(Event::RefuseOnce),
            1 => Just(Event::RefuseForGood),
            1 => Just(Event::LoseStream),
        ]
    }

    /// A broker that stores each sequence once and in order, and passes over what
    /// follows a batch that it wants again.
    #[derive(Default)]
    struct Model {
        pipe: VecDeque<u64>,
        next: u64,
        stored: Vec<u64>,
        holding: bool,
        fresh: bool,
    }

    impl Model {
        /// Judges the front of the pipe; `None` is silence.
        fn answer(&mut self, event: Event) -> Option<(u64, Event)> {
            let sequence = self.pipe.pop_front()?;
            if sequence < self.next {
                return Some((sequence, Event::Answer));
            }
            if sequence > self.next && self.holding {
                return None;
            }
            assert!(
                sequence == self.next || self.fresh,
                "a gap before {sequence}"
            );
            (self.holding, self.fresh) = (false, false);
            match event {
                Event::RefuseOnce => self.holding = true,
                Event::RefuseForGood => self.next = sequence + 1,
                _ => {
                    self.stored.push(sequence);
                    self.next = sequence + 1;
                }
            }
            Some((sequence, event))
        }
    }

    proptest! {
        #[test]
        fn every_batch_is_settled_once_and_stored_in_order(
            events in proptest::collection::vec(event(), 1..300),
        ) {
            let mut window = Window::default();
            let mut broker = Model::default();
            let (mut acked, mut refused) = (Vec::new(), Vec::new());
            let drain = std::iter::repeat_n([Event::Send, Event::Answer], 4000).flatten();
            for event in events.into_iter().chain(drain) {
                match event {
                    Event::Push => window.push(window.next_sequence()),
                    Event::Send => {
                        if let Some((sequence, item)) = window.send_next() {
                            prop_assert_eq!(sequence, *item);
                            broker.pipe.push_back(sequence);
                        }
                    }
                    Event::LoseStream => {
                        // What is still in the pipe may or may not arrive; here it does not.
                        broker.pipe.clear();
                        (broker.holding, broker.fresh) = (false, true);
                        window.restart();
                    }
                    Event::Answer | Event::RefuseOnce | Event::RefuseForGood => {
                        let Some((sequence, answer)) = broker.answer(event) else { continue };
                        let kind = window.answered(sequence);
                        prop_assert_ne!(kind, Answered::Unknown);
                        match answer {
                            Event::RefuseOnce if kind == Answered::Current => window.rewind(sequence),
                            Event::RefuseOnce => {}
                            Event::RefuseForGood => refused.extend(window.settle(sequence)),
                            _ => acked.extend(window.settle(sequence)),
                        }
                    }
                }
            }
            prop_assert!(window.is_empty());
            prop_assert!(acked.is_sorted() && acked == broker.stored);
            let mut all = [acked, refused].concat();
            all.sort_unstable();
            let expected: Vec<u64> = (0..window.next_sequence()).collect();
            prop_assert_eq!(all, expected);
        }
    }
}
