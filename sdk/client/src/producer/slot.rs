//! What became of a batch, shared by the futures of all its records.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use millstream_proto::message::{Ack, Placement};
use millstream_proto::{Offset, PartitionId};

use crate::error::ProduceError;

/// What became of a batch.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    pub(crate) ack: Ack,
    /// Records in the batch as it was sent.
    pub(crate) count: u32,
}

impl Outcome {
    /// The one place where all records lie in the order they were sent, if the
    /// broker kept the batch whole.
    fn whole(&self) -> Option<Placement> {
        match self.ack.placements[..] {
            [placement] if placement.count == self.count && self.ack.dropped == 0 => {
                Some(placement)
            }
            _ => None,
        }
    }
}

type Settled = Result<Outcome, ProduceError>;

#[derive(Debug, Default)]
struct State {
    settled: Option<Arc<Settled>>,
    wakers: Vec<Waker>,
}

/// One batch's outcome, once there is one.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    state: Mutex<State>,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under this lock panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells everybody. The first outcome counts.
    pub(crate) fn settle(&self, outcome: Settled) {
        let wakers = {
            let mut state = self.lock();
            if state.settled.is_some() {
                return;
            }
            state.settled = Some(Arc::new(outcome));
            std::mem::take(&mut state.wakers)
        };
        wakers.into_iter().for_each(Waker::wake);
    }

    /// `place` is where this future's waker stands in the list.
    fn poll(&self, cx: &Context<'_>, place: &mut Option<usize>) -> Poll<Arc<Settled>> {
        let mut state = self.lock();
        if let Some(settled) = &state.settled {
            return Poll::Ready(Arc::clone(settled));
        }
        match place.and_then(|at| state.wakers.get_mut(at)) {
            Some(waker) => waker.clone_from(cx.waker()),
            None => {
                *place = Some(state.wakers.len());
                state.wakers.push(cx.waker().clone());
            }
        }
        Poll::Pending
    }
}

/// Where a record was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// The partition. `None` where the topic's chain spread the batch over
    /// several or dropped it, or where the batch is a duplicate whose place is
    /// no longer known.
    pub partition: Option<PartitionId>,
    /// The offset, where the broker kept the batch whole.
    pub offset: Option<Offset>,
    /// The broker had the batch already, from a sending whose acknowledgement
    /// was lost. It is stored once.
    pub duplicate: bool,
}

/// Resolves when the record is stored as durably as its topic asks. Dropping it
/// does not take the record back.
#[derive(Debug)]
#[must_use = "a record is stored only when its delivery says so; drop it to not care"]
pub struct Delivery {
    slot: Arc<Slot>,
    index: u32,
    place: Option<usize>,
}

impl Delivery {
    pub(crate) fn new(slot: Arc<Slot>, index: u32) -> Self {
        Self {
            slot,
            index,
            place: None,
        }
    }
}

impl Future for Delivery {
    type Output = Result<Placed, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Poll::Ready(settled) = this.slot.poll(cx, &mut this.place) else {
            return Poll::Pending;
        };
        Poll::Ready(match &*settled {
            Ok(outcome) => Ok(placed(outcome, this.index)),
            Err(e) => Err(e.clone()),
        })
    }
}

fn placed(outcome: &Outcome, index: u32) -> Placed {
    let partition = match outcome.ack.placements[..] {
        [only] if outcome.ack.dropped == 0 => Some(only.partition),
        _ => None,
    };
    Placed {
        partition,
        offset: outcome
            .whole()
            .map(|placement| placement.base.plus(u64::from(index))),
        duplicate: outcome.ack.duplicate,
    }
}

/// What became of many records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchPlaced {
    /// Records that were sent.
    pub records: u64,
    /// Where the batches that hold them were stored. A batch can also hold
    /// records of other calls.
    pub placements: Vec<Placement>,
    /// Records of these batches that the topic's chain filtered out, skipped or
    /// dead-lettered.
    pub dropped: u64,
}

/// Resolves when all records of one call are stored, or with the first error.
/// Dropping it does not take the records back.
#[derive(Debug)]
#[must_use = "records are stored only when their delivery says so; drop it to not care"]
pub struct BatchDelivery {
    slots: Vec<Arc<Slot>>,
    next: usize,
    place: Option<usize>,
    placed: BatchPlaced,
}

impl BatchDelivery {
    pub(crate) fn new(slots: Vec<Arc<Slot>>, records: u64) -> Self {
        Self {
            slots,
            next: 0,
            place: None,
            placed: BatchPlaced {
                records,
                ..BatchPlaced::default()
            },
        }
    }
}

impl Future for BatchDelivery {
    type Output = Result<BatchPlaced, ProduceError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        while let Some(slot) = this.slots.get(this.next) {
            let Poll::Ready(settled) = slot.poll(cx, &mut this.place) else {
                return Poll::Pending;
            };
            match &*settled {
                Ok(outcome) => {
                    this.placed.placements.extend(&outcome.ack.placements);
                    this.placed.dropped += u64::from(outcome.ack.dropped);
                }
                Err(e) => return Poll::Ready(Err(e.clone())),
            }
            this.next += 1;
            this.place = None;
        }
        Poll::Ready(Ok(std::mem::take(&mut this.placed)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn outcome(placements: &[(u32, u64, u32)], count: u32, dropped: u32) -> Outcome {
        let placements = placements.iter().map(|&(p, base, count)| Placement {
            partition: PartitionId(p),
            base: Offset(base),
            count,
        });
        let ack = Ack {
            placements: placements.collect(),
            duplicate: false,
            dropped,
        };
        Outcome { ack, count }
    }

    #[test]
    fn a_record_of_a_whole_batch_knows_its_offset() {
        let at = placed(&outcome(&[(2, 100, 5)], 5, 0), 3);
        assert_eq!(at.partition, Some(PartitionId(2)));
        assert_eq!(at.offset, Some(Offset(103)));
    }

    #[test]
    fn a_record_of_a_split_or_thinned_batch_does_not() {
        let split = placed(&outcome(&[(0, 1, 2), (1, 1, 3)], 5, 0), 0);
        assert_eq!((split.partition, split.offset), (None, None));
        let thinned = placed(&outcome(&[(0, 1, 4)], 5, 1), 0);
        assert_eq!((thinned.partition, thinned.offset), (None, None));
        let grown = placed(&outcome(&[(0, 1, 9)], 5, 0), 0);
        assert_eq!(grown.offset, None);
        // As many as were sent, and not the same ones.
        let moved = placed(&outcome(&[(0, 1, 5), (0, 6, 0)], 5, 0), 0);
        assert_eq!((moved.partition, moved.offset), (None, None));
    }

    #[test]
    fn every_waiting_record_is_told() {
        let slot = Arc::new(Slot::default());
        let mut first = Delivery::new(Arc::clone(&slot), 0);
        let mut second = Delivery::new(Arc::clone(&slot), 1);
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut first).now_or_never().is_none());
        assert_eq!(
            slot.lock().wakers.len(),
            2,
            "a waker per future, not per poll"
        );
        slot.settle(Ok(outcome(&[(0, 7, 2)], 2, 0)));
        assert_eq!(
            first.now_or_never().unwrap().unwrap().offset,
            Some(Offset(7))
        );
        assert_eq!(
            second.now_or_never().unwrap().unwrap().offset,
            Some(Offset(8))
        );
    }

    #[test]
    fn many_records_wait_for_all_their_batches() {
        let slots: Vec<_> = (0..2).map(|_| Arc::new(Slot::default())).collect();
        let mut all = BatchDelivery::new(slots.clone(), 6);
        slots[1].settle(Ok(outcome(&[(1, 0, 3)], 3, 0)));
        assert!((&mut all).now_or_never().is_none());
        slots[0].settle(Ok(outcome(&[(0, 0, 2)], 3, 1)));
        let placed = all.now_or_never().unwrap().unwrap();
        assert_eq!((placed.records, placed.dropped), (6, 1));
        assert_eq!(placed.placements.len(), 2);
    }
}
