//! Answers of a producer's stream, in the order of its batches.
//!
//! A batch takes a slot when it is read; the slot is filled whenever its fate is
//! known, on whatever thread; the writing side sends filled slots from the front.
//! The number of slots is bounded, so a client that does not read its answers
//! is no longer read from.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;
use millstream_proto::WireError;
use millstream_proto::frame::{FrameKind, put_message};
use millstream_proto::message::Ack;
use tokio::sync::Notify;

use crate::limits::{ANSWER_BYTES, MAX_IN_FLIGHT_BATCHES};
use crate::metrics::Counters;

/// The fate of a batch.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Stored.
    Ack(Ack),
    /// Refused.
    Error(WireError),
    /// Nothing is said of it: it will come again.
    Silent,
}

#[derive(Debug, Default)]
struct Slots {
    /// Number of the slot at the front.
    front: u64,
    slots: VecDeque<(u64, Option<Answer>)>,
    closed: bool,
}

/// Slots between the reading side, the store and the writing side.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    slots: Mutex<Slots>,
    filled: Notify,
    freed: Notify,
    counters: Arc<Counters>,
}

/// The place of one batch's answer. It holds back all later ones until it is
/// filled; dropped unfilled, it counts as silent.
#[derive(Debug)]
pub(crate) struct Slot {
    answers: Arc<Answers>,
    number: u64,
    filled: bool,
}

impl Answers {
    /// Counts the errors among the answers.
    pub(crate) fn new(counters: Arc<Counters>) -> Self {
        Self {
            counters,
            ..Self::default()
        }
    }

    fn lock(&self) -> MutexGuard<'_, Slots> {
        // Nothing under this lock panics half-way through a change.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot for the batch with this tag; waits while too many are open.
    pub(crate) async fn slot(self: &Arc<Self>, tag: u64) -> Slot {
        loop {
            let freed = self.freed.notified();
            {
                let mut slots = self.lock();
                if slots.slots.len() < MAX_IN_FLIGHT_BATCHES {
                    let number = slots.front + slots.slots.len() as u64;
                    slots.slots.push_back((tag, None));
                    return Slot {
                        answers: Arc::clone(self),
                        number,
                        filled: false,
                    };
                }
            }
            freed.await;
        }
    }

    /// No further slots will be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_one();
    }

    /// The next answers as frames, in order; `None` when closed and all are sent.
    pub(crate) async fn next(&self) -> Option<BytesMut> {
        loop {
            let filled = self.filled.notified();
            if let Some(out) = self.take()? {
                self.freed.notify_one();
                return Some(out);
            }
            filled.await;
        }
    }

    /// `None`: over. `Some(None)`: nothing yet.
    fn take(&self) -> Option<Option<BytesMut>> {
        let mut slots = self.lock();
        if slots.closed && slots.slots.is_empty() {
            return None;
        }
        let mut out = BytesMut::new();
        let mut any = false;
        while out.len() < ANSWER_BYTES
            && let Some((_, Some(_))) = slots.slots.front()
            && let Some((tag, Some(answer))) = slots.slots.pop_front()
        {
            slots.front += 1;
            any = true;
            if let Answer::Error(error) = &answer {
                self.counters.error(error.code);
            }
            put_answer(&mut out, tag, answer);
        }
        Some(any.then_some(out))
    }
}

fn put_answer(out: &mut BytesMut, tag: u64, answer: Answer) {
    let put = match &answer {
        Answer::Ack(ack) => put_message(out, FrameKind::Ack, tag, ack),
        Answer::Error(error) => put_message(out, FrameKind::Error, tag, error),
        Answer::Silent => Ok(()),
    };
    if let Err(error) = put {
        // Too many placements for a frame: the batch is stored, and that is said.
        let ack = Ack {
            placements: Vec::new(),
            duplicate: false,
            dropped: 0,
        };
        tracing::warn!("an acknowledgement goes out without placements: {error}");
        let _ = put_message(out, FrameKind::Ack, tag, &ack);
    }
}

impl Slot {
    /// Fills the slot.
    pub(crate) fn fill(mut self, answer: Answer) {
        self.put(answer);
    }

    fn put(&mut self, answer: Answer) {
        if std::mem::replace(&mut self.filled, true) {
            return;
        }
        let mut slots = self.answers.lock();
        let at = self
            .number
            .checked_sub(slots.front)
            .and_then(|i| usize::try_from(i).ok());
        if let Some((_, slot)) = at.and_then(|i| slots.slots.get_mut(i)) {
            *slot = Some(answer);
        }
        let first = self.number == slots.front;
        drop(slots);
        if first {
            self.answers.filled.notify_one();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.put(Answer::Silent);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use bytes::Bytes;
    use millstream_proto::ErrorCode;
    use millstream_proto::frame::Assembler;
    use proptest::prelude::*;

    use super::*;

    fn tags(out: BytesMut) -> Vec<u64> {
        let mut bytes: Bytes = out.freeze();
        let mut assembler = Assembler::default();
        let mut tags = Vec::new();
        while !bytes.is_empty() {
            tags.extend(assembler.feed(&mut bytes).unwrap().map(|f| f.tag));
        }
        tags
    }

    fn ack() -> Answer {
        Answer::Ack(Ack {
            placements: Vec::new(),
            duplicate: false,
            dropped: 0,
        })
    }

    proptest! {
        #[test]
        fn answers_leave_in_the_order_of_their_slots(order in Just((0..20u64).collect::<Vec<_>>()).prop_shuffle()) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let answers = Arc::new(Answers::default());
                let mut slots = Vec::new();
                for tag in 0..20 {
                    slots.push(Some(answers.slot(tag).await));
                }
                let mut seen = Vec::new();
                for i in order {
                    slots[i as usize].take().unwrap().fill(ack());
                    if let Some(out) = answers.take().unwrap() {
                        seen.extend(tags(out));
                    }
                }
                assert_eq!(seen, (0..20).collect::<Vec<_>>());
                answers.close();
                assert!(answers.next().await.is_none());
            });
        }
    }

    #[tokio::test]
    async fn silent_slots_are_passed_over() {
        let answers = Arc::new(Answers::default());
        let (a, b) = (answers.slot(1).await, answers.slot(2).await);
        a.fill(Answer::Silent);
        b.fill(Answer::Error(WireError::new(ErrorCode::Internal, "x")));
        assert_eq!(tags(answers.next().await.unwrap()), [2]);
    }

    #[tokio::test]
    async fn a_dropped_slot_holds_nobody_back() {
        let answers = Arc::new(Answers::default());
        let (a, b) = (answers.slot(1).await, answers.slot(2).await);
        b.fill(ack());
        drop(a);
        assert_eq!(tags(answers.next().await.unwrap()), [2]);
    }

    #[tokio::test]
    async fn slots_are_bounded() {
        let answers = Arc::new(Answers::default());
        let mut slots = Vec::new();
        for tag in 0..MAX_IN_FLIGHT_BATCHES as u64 {
            slots.push(answers.slot(tag).await);
        }
        let waiting = answers.slot(9999);
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        slots.remove(0).fill(ack());
        assert!(answers.next().await.is_some());
        assert!(futures_util::poll!(&mut waiting).is_ready());
    }
}
