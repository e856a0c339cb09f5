//! The producer's decisions: what to send next, and what an answer means.
//!
//! Pure but for telling slots: time is an argument, the socket is the driver's.

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use millstream_proto::batch::Stamp;
use millstream_proto::message::Ack;
use millstream_proto::{
    Batch, Codec, ErrorClass, ErrorCode, PartitionId, ProducerEpoch, ProducerId, Sequence,
    TopicName, WireError,
};
use tokio::time::Instant;

use super::gather::{Gather, LaneId, NotTaken, Sealed};
use super::slot::{Outcome, Slot};
use super::window::{Answered, Window};
use crate::ambient::Clock;
use crate::error::ProduceError;
use crate::record::Record;
use crate::retry::Attempts;

/// What the producer was built with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    pub(crate) linger: Duration,
    pub(crate) batch_bytes: usize,
    pub(crate) in_flight: usize,
    pub(crate) codec: Codec,
    pub(crate) id: ProducerId,
}

#[derive(Debug)]
enum Phase {
    Open,
    /// No more records; what is there is sent. `end_sent` once `End` was given out.
    Closing {
        end_sent: bool,
    },
    /// Nothing more happens. `clean` when everything taken was settled before.
    Over {
        why: ProduceError,
        clean: bool,
    },
}

/// What the writer does next.
#[derive(Debug)]
pub(crate) enum Step {
    /// Write this batch.
    Send {
        sequence: u64,
        partition: Option<PartitionId>,
        batch: Batch,
    },
    /// Write `End`.
    End,
    /// Wait for a wake-up, at most until then.
    Park(Option<Instant>),
}

/// What an answer means for the stream.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It goes on.
    GoOn,
    /// Open it anew and send again what is not settled.
    Reopen,
    /// The producer is finished.
    Fail(ProduceError),
}

/// What became of a record that was offered.
pub(crate) enum Offer {
    /// It is in a batch.
    Taken(LaneId),
    /// The window is full: wait, then offer again.
    NoRoom,
}

pub(crate) struct Core {
    topic: TopicName,
    settings: Settings,
    gather: Gather,
    window: Window<Sealed>,
    phase: Phase,
    /// No batch is sent before this: the broker asked for patience.
    paused_until: Option<Instant>,
    attempts: Attempts,
    /// The writer waits to be woken. While it does not, nobody needs to.
    parked: bool,
    /// Batches sealed since somebody last asked.
    sealed: u32,
}

impl Core {
    pub(crate) fn new(
        topic: TopicName,
        settings: Settings,
        gather: Gather,
        attempts: Attempts,
    ) -> Self {
        Self {
            topic,
            settings,
            gather,
            window: Window::default(),
            phase: Phase::Open,
            paused_until: None,
            attempts,
            parked: false,
            sealed: 0,
        }
    }

    pub(crate) fn gather(&mut self) -> &mut Gather {
        &mut self.gather
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Offers a record.
    #[inline]
    pub(crate) fn offer(
        &mut self,
        record: &Record<'_>,
        clock: &impl Clock,
    ) -> Result<Offer, ProduceError> {
        self.check_open()?;
        let (len, max) = (record.size(), self.gather.rules().max_record_bytes);
        if len > max {
            let topic = self.topic.clone();
            return Err(ProduceError::RecordTooLarge { topic, len, max });
        }
        loop {
            match self.gather.push(record, clock) {
                Ok(lane) => return Ok(Offer::Taken(lane)),
                Err(NotTaken::Full(lane)) if self.has_room() => self.seal(lane),
                Err(NotTaken::Full(_)) => return Ok(Offer::NoRoom),
                Err(other) => return Err(self.refusal(other)),
            }
        }
    }

    #[cold]
    fn refusal(&self, why: NotTaken) -> ProduceError {
        let topic = self.topic.clone();
        match why {
            NotTaken::UnknownPartition(partition) => ProduceError::UnknownPartition {
                topic,
                partition,
                partitions: self.gather.rules().partitions,
            },
            NotTaken::Record(error) => ProduceError::Record { topic, error },
            NotTaken::Full(_) => unreachable!("a full lane is sealed or waited for"),
        }
    }

    /// Puts a batch that was built elsewhere in line, if there is room.
    pub(crate) fn offer_batch(
        &mut self,
        build: impl FnOnce(Codec, Stamp) -> Result<Sealed, ProduceError>,
    ) -> Result<Option<Arc<Slot>>, ProduceError> {
        self.check_open()?;
        if !self.has_room() {
            return Ok(None);
        }
        let sealed = build(self.settings.codec, self.stamp())?;
        let slot = Arc::clone(&sealed.slot);
        self.window.push(sealed);
        self.sealed += 1;
        Ok(Some(slot))
    }

    /// Whether the producer still takes records.
    #[inline]
    pub(crate) fn check_open(&self) -> Result<(), ProduceError> {
        match &self.phase {
            Phase::Open => Ok(()),
            Phase::Closing { .. } => Err(ProduceError::Closed {
                topic: self.topic.clone(),
            }),
            Phase::Over { why, .. } => Err(why.clone()),
        }
    }

    /// Why the producer is finished, if it failed.
    pub(crate) fn failure(&self) -> Option<ProduceError> {
        match &self.phase {
            Phase::Over { why, clean: false } => Some(why.clone()),
            Phase::Over { clean: true, .. } | Phase::Open | Phase::Closing { .. } => None,
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over { .. })
    }

    /// Whether it is closing and everything is settled: no stream is needed any
    /// more, not even to say so.
    pub(crate) fn is_drained(&self) -> bool {
        matches!(self.phase, Phase::Closing { .. })
            && self.window.is_empty()
            && self.gather.is_empty()
    }

    fn has_room(&self) -> bool {
        self.window.len() < self.settings.in_flight
    }

    fn stamp(&self) -> Stamp {
        Stamp {
            producer: self.settings.id,
            epoch: ProducerEpoch(0),
            sequence: Sequence(self.window.next_sequence()),
        }
    }

    fn seal(&mut self, lane: LaneId) {
        match self.gather.seal(lane, self.settings.codec, self.stamp()) {
            Some(Ok(sealed)) => {
                self.window.push(sealed);
                self.sealed += 1;
            }
            Some(Err((error, slot))) => {
                let topic = self.topic.clone();
                slot.settle(Err(ProduceError::Encode { topic, error }));
            }
            None => {}
        }
    }

    /// How many batches were sealed since [`Core::take_sealed`].
    #[inline]
    pub(crate) fn sealed(&self) -> u32 {
        self.sealed
    }

    /// How many batches were sealed since the last call.
    #[inline]
    pub(crate) fn take_sealed(&mut self) -> u32 {
        std::mem::take(&mut self.sealed)
    }

    /// Whether the writer sleeps and must be woken; asking counts as waking it.
    #[inline]
    pub(crate) fn wake_writer(&mut self) -> bool {
        std::mem::take(&mut self.parked)
    }

    /// What the writer does next.
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        if let Some(until) = self.paused_until {
            if now < until {
                return self.park(Some(until));
            }
            self.paused_until = None;
        }
        if !self.window.has_unsent() && self.has_room() {
            let linger = match self.phase {
                Phase::Closing { .. } => Duration::ZERO,
                Phase::Open | Phase::Over { .. } => self.settings.linger,
            };
            if let Some(lane) = self.gather.due(now, linger) {
                self.seal(lane);
            }
        }
        if let Some((sequence, sealed)) = self.window.send_next() {
            return Step::Send {
                sequence,
                partition: sealed.partition,
                batch: sealed.batch.clone(),
            };
        }
        let drained = self.gather.is_empty();
        if let Phase::Closing { end_sent } = &mut self.phase
            && drained
            && !*end_sent
        {
            *end_sent = true;
            return Step::End;
        }
        let due = self.gather.due_at(self.settings.linger);
        let due = due.filter(|_| self.has_room());
        self.park(due)
    }

    fn park(&mut self, until: Option<Instant>) -> Step {
        self.parked = true;
        Step::Park(until)
    }

    /// Seals everything, over the window's limit if need be, so that it is sent
    /// at once. Returns the sequence below which all of it lies.
    pub(crate) fn flush(&mut self) -> u64 {
        while let Some(lane) = self.gather.first() {
            self.seal(lane);
        }
        self.window.next_sequence()
    }

    /// Whether everything below `sequence` is settled.
    pub(crate) fn is_settled_below(&self, sequence: u64) -> bool {
        self.window.settled_below() >= sequence
    }

    /// Takes no more records; what is there is sent.
    pub(crate) fn close(&mut self) {
        if matches!(self.phase, Phase::Open) {
            self.phase = Phase::Closing { end_sent: false };
        }
    }

    /// The broker stored a batch.
    pub(crate) fn acked(&mut self, sequence: u64, ack: Ack) -> Verdict {
        if self.window.answered(sequence) == Answered::Unknown {
            return self.out_of_order(sequence);
        }
        if let Some(sealed) = self.window.settle(sequence) {
            let count = sealed.batch.count();
            sealed.slot.settle(Ok(Outcome { ack, count }));
            self.attempts.progressed();
        }
        Verdict::GoOn
    }

    fn out_of_order(&self, sequence: u64) -> Verdict {
        Verdict::Fail(ProduceError::Protocol {
            topic: self.topic.clone(),
            why: format!("an answer to batch {sequence}, which was not sent"),
        })
    }

    /// The broker refused a batch.
    pub(crate) fn refused(
        &mut self,
        sequence: u64,
        error: WireError,
        now: Instant,
        random: u64,
    ) -> Verdict {
        match (self.window.answered(sequence), error.class()) {
            (Answered::Unknown, _) => self.out_of_order(sequence),
            // It has been sent again since; the answer to that counts.
            (Answered::Outdated, _) => Verdict::GoOn,
            (Answered::Current, ErrorClass::Retry) => {
                self.window.rewind(sequence);
                let verdict = self.pause(error, now, random);
                match (&self.phase, verdict) {
                    // This stream takes no more batches: `End` is behind them.
                    (Phase::Closing { end_sent: true }, Verdict::GoOn) => Verdict::Reopen,
                    (_, verdict) => verdict,
                }
            }
            (Answered::Current, ErrorClass::Fatal) => self.stream_refused(error, now, random),
            (Answered::Current, ErrorClass::Fix) => {
                if let Some(sealed) = self.window.settle(sequence) {
                    let topic = self.topic.clone();
                    sealed
                        .slot
                        .settle(Err(ProduceError::Refused { topic, error }));
                    self.attempts.progressed();
                }
                Verdict::GoOn
            }
        }
    }

    fn pause(&mut self, error: WireError, now: Instant, random: u64) -> Verdict {
        match self.attempts.failed(now, error.retry_after_ms, random) {
            Some(delay) => {
                self.paused_until = Some(now + delay);
                Verdict::GoOn
            }
            None => self.fatal(error),
        }
    }

    fn fatal(&self, error: WireError) -> Verdict {
        let topic = self.topic.clone();
        Verdict::Fail(ProduceError::Refused { topic, error })
    }

    /// The broker ended the stream with an error, or refused to open it.
    pub(crate) fn stream_refused(
        &mut self,
        error: WireError,
        now: Instant,
        random: u64,
    ) -> Verdict {
        // A gap follows from a batch that the broker could not store after it had
        // taken the ones behind it: a new stream begins where the disk ends.
        let again = error.class() == ErrorClass::Retry || error.code == ErrorCode::SequenceGap;
        if !again {
            return self.fatal(error);
        }
        match self.pause(error, now, random) {
            Verdict::GoOn => Verdict::Reopen,
            other => other,
        }
    }

    /// The stream broke off without a word.
    pub(crate) fn stream_lost(&mut self, now: Instant, random: u64) -> Verdict {
        let lost = WireError::new(
            ErrorCode::ShuttingDown,
            "the connection was lost over and over",
        );
        match self.pause(lost, now, random) {
            Verdict::GoOn => Verdict::Reopen,
            other => other,
        }
    }

    /// When the next stream may be opened.
    pub(crate) fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// A new stream is open, with the topic's settings as they are now.
    pub(crate) fn reopened(&mut self, rules: super::gather::Rules) {
        self.gather.set_rules(rules);
        self.paused_until = None;
        if let Phase::Closing { end_sent } = &mut self.phase {
            *end_sent = false;
        }
        self.window.restart();
        if self.window.is_empty() {
            self.attempts.progressed();
        }
    }

    /// The stream that batches were sent on is gone. Without an identity the
    /// broker cannot recognise a batch that comes twice, so the outcome of those
    /// is left open.
    pub(crate) fn stream_gone(&mut self) {
        if self.settings.id != ProducerId::NONE {
            return;
        }
        for sealed in self.window.take_sent() {
            let topic = self.topic.clone();
            sealed
                .slot
                .settle(Err(ProduceError::OutcomeUnknown { topic }));
        }
    }

    /// Nothing more will happen: everything not settled fails with `why`.
    pub(crate) fn finish(&mut self, why: ProduceError) {
        if self.is_over() {
            return;
        }
        let batches = self.window.take_all().into_iter().map(|sealed| sealed.slot);
        let left: Vec<Arc<Slot>> = batches.chain(self.gather.take_slots()).collect();
        let clean = left.is_empty() && matches!(why, ProduceError::Closed { .. });
        for slot in left {
            slot.settle(Err(why.clone()));
        }
        self.phase = Phase::Over { why, clean };
    }
}
