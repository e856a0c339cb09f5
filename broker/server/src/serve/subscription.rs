//! A subscription's stream: batches out, as long as the reader takes them.
//!
//! Every partition has a cursor; cursors take turns. The tail serves whoever is
//! near the end; cursors that lag read the store in chunks on a blocking thread,
//! one chunk ahead of what is being written: that of the next cursor that lags.
//! Writing waits for the stream's flow control, and that is all the backpressure
//! there is: nothing is queued for a slow reader beyond the chunk in hand and the
//! one ahead, however many partitions there are.
//!
//! A partition that cannot be read stands still and is told of; the others go on. Offsets that are
//! not there any more are passed over, and told of too.

mod begin;
mod cursor;
mod frames;

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::frame::FrameKind;
use millstream_proto::message::{Gap, GapCause, Notice, OpenSubscription};
use millstream_proto::pipeline::PluginUse;
use millstream_proto::{ErrorCode, TopicName, WireError};
use millstream_store::ReadError;
use tokio::time::{Instant, sleep_until};

use self::begin::{Begun, begin};
use self::cursor::{Cursor, read_ahead};
use self::frames::{Frames, notice};
use crate::guests::{SubscriptionChain, Through, allow_dead_letters};
use crate::log::{ReadFault, Topic};
use crate::metrics::{Amount, Traffic};
use crate::session::{Peer, refuse, shutting_down};
use crate::stream::{FrameReader, FrameWriter};

/// Serves the stream to its end.
pub(crate) async fn run(
    peer: Peer,
    open: OpenSubscription,
    mut reader: FrameReader,
    mut writer: FrameWriter,
) {
    let rights = Rights::of(&open);
    // Finding a timestamp may read whole partitions: not for a reader that has gone.
    let begun = tokio::select! {
        begun = begin(&peer, open) => begun,
        () = writer.stopped() => return,
        () = peer.broker.gate.closing() => Err(shutting_down()),
    };
    let Begun {
        mut subscription,
        opened,
        mut notices,
    } = match begun {
        Ok(begun) => begun,
        Err(error) => return refuse(&mut reader, writer, &error).await,
    };
    if writer.message(FrameKind::Opened, 0, &opened).await.is_err()
        || writer.pieces(&mut notices).await.is_err()
    {
        return;
    }
    let interrupt = async {
        tokio::select! {
            () = unsubscribed(&mut reader) => End::Finished,
            error = forbidden(&peer, &rights) => End::Error(error),
            () = peer.broker.gate.closing() => End::Error(shutting_down()),
        }
    };
    let end = {
        tokio::pin!(interrupt);
        subscription.deliver(&mut writer, interrupt).await
    };
    match end {
        End::Finished => {
            if writer.message(FrameKind::End, 0, &()).await.is_ok() {
                writer.finish().await;
            }
        }
        End::Gone => {}
        End::Error(error) => refuse(&mut reader, writer, &error).await,
        End::MidFrame(code) => writer.reset(code),
    }
}

/// Resolves when the client says `End`; a client that merely has no more to say
/// still reads.
async fn unsubscribed(reader: &mut FrameReader) {
    match reader.next().await {
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// What a subscription needs, to be looked at again when the rules change.
struct Rights {
    topic: TopicName,
    chain: Vec<PluginUse>,
}

impl Rights {
    fn of(open: &OpenSubscription) -> Self {
        Self {
            topic: open.topic.clone(),
            chain: open.chain.clone(),
        }
    }

    fn check(&self, peer: &Peer) -> Result<(), WireError> {
        let (access, who) = (&peer.broker.access, &peer.principal);
        access.check(
            who,
            Operation::Consume,
            ResourceKind::Topic,
            self.topic.as_str(),
        )?;
        for PluginUse { plugin, .. } in &self.chain {
            let name = plugin.as_str();
            access.check(who, Operation::Attach, ResourceKind::Plugin, name)?;
        }
        allow_dead_letters(who, &self.chain, &*peer.broker)
    }
}

/// Resolves when the peer has lost a right that the subscription needs.
async fn forbidden(peer: &Peer, rights: &Rights) -> WireError {
    let mut changed = peer.broker.access.changed();
    loop {
        if let Err(error) = rights.check(peer) {
            return error;
        }
        // The broker, and with it the sender, outlives every session.
        let _ = changed.changed().await;
    }
}

enum End {
    Finished,
    Gone,
    Error(WireError),
    /// Interrupted while a reader that does not read held up a frame: nothing
    /// that makes sense can follow on this stream.
    MidFrame(ErrorCode),
}

impl End {
    fn mid_frame(self) -> Self {
        match self {
            End::Error(error) => End::MidFrame(error.code),
            End::Finished | End::Gone | End::MidFrame(_) => End::Gone,
        }
    }
}

struct Subscription {
    topic: Arc<Topic>,
    cursors: Vec<Cursor>,
    /// Whether partitions that are added belong to it.
    grows: bool,
    chain: Option<SubscriptionChain>,
    traffic: Arc<Traffic>,
}

impl Subscription {
    /// Delivers until `interrupt` says how to end, which is heeded between frames
    /// and while a write waits for the reader.
    async fn deliver(
        &mut self,
        writer: &mut FrameWriter,
        mut interrupt: Pin<&mut impl Future<Output = End>>,
    ) -> End {
        let mut changed = self.topic.changed();
        loop {
            changed.borrow_and_update();
            if self.topic.is_deleted() {
                let text = format!("topic {} was deleted", self.topic.name());
                return End::Error(WireError::new(ErrorCode::TopicDeleted, text));
            }
            self.grow();
            let mut any = false;
            for at in 0..self.cursors.len() {
                if let Some(end) = interrupt.as_mut().now_or_never() {
                    return end;
                }
                let turn = tokio::select! {
                    biased;
                    turn = self.turn(at) => turn,
                    // A plugin may take its time: nobody has to wait for it to end this.
                    end = interrupt.as_mut() => return end,
                    () = writer.stopped() => return End::Gone,
                };
                let mut pieces = match turn {
                    Ok(pieces) => pieces,
                    Err(end) => return end,
                };
                any |= !pieces.is_empty();
                tokio::select! {
                    biased;
                    written = writer.pieces(&mut pieces) => if written.is_err() {
                        return End::Gone;
                    },
                    end = interrupt.as_mut() => return end.mid_frame(),
                }
            }
            if self.cursors.iter().all(Cursor::has_said_all) {
                return End::Finished;
            }
            if !any {
                let again = self.cursors.iter().filter_map(|c| c.shut.as_ref()?.again);
                let again = again.min();
                tokio::select! {
                    // The topic outlives the subscription, so its sender does too.
                    _ = changed.changed() => {}
                    () = until(again) => {}
                    () = writer.stopped() => return End::Gone,
                    end = interrupt.as_mut() => return end,
                }
            }
        }
    }

    /// Takes in partitions that were added. Nothing was written to them before.
    fn grow(&mut self) {
        if !self.grows {
            return;
        }
        let partitions = self.topic.partitions();
        for added in partitions.iter().skip(self.cursors.len()) {
            self.cursors
                .push(Cursor::new(Arc::clone(added), added.start(), None));
        }
    }

    /// One cursor's turn: the frames of what there is.
    async fn turn(&mut self, at: usize) -> Result<Vec<Bytes>, End> {
        let cursor = &mut self.cursors[at];
        if cursor.is_done() || cursor.stands_still(Instant::now()) {
            return Ok(Vec::new());
        }
        let batches = match cursor.read().await {
            Ok(batches) => batches,
            Err(fault) => {
                return self
                    .setback(at, fault)
                    .map(|frame| frame.into_iter().collect());
            }
        };
        cursor.shut = None;
        let Some(last) = batches.last() else {
            return Ok(Vec::new());
        };
        cursor.next = last.end();
        let (id, end) = (cursor.partition.id(), cursor.partition.end());
        read_ahead(&mut self.cursors, at);
        let mut frames = Frames::new(id, end);
        match &self.chain {
            None => batches.iter().for_each(|stored| frames.push_stored(stored)),
            Some(chain) => {
                for stored in batches {
                    let (base, next) = (stored.base, stored.end());
                    match chain.run(stored, id).await.map_err(End::Error)? {
                        Through::Whole(stored) => frames.push_stored(&stored),
                        Through::Made(batches) => frames.push_made(base, next, &batches),
                    }
                }
            }
        }
        let records = frames.records;
        let pieces = frames.finish();
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        self.traffic.consume(Amount { records, bytes });
        Ok(pieces)
    }

    /// What comes next in a partition is not there or cannot be read: goes on behind it, or in the
    /// other partitions, and tells the reader. An error ends the subscription.
    fn setback(&mut self, at: usize, fault: ReadFault) -> Result<Option<Bytes>, End> {
        let mut cursors = self.cursors.iter().enumerate();
        let others = cursors.any(|(other, cursor)| other != at && cursor.shut.is_none());
        let (topic, cursor) = (self.topic.name(), &mut self.cursors[at]);
        let partition = cursor.partition.id();
        let (to, cause) = match fault {
            ReadFault::Lost { next, .. } if next > cursor.next => (next, GapCause::Lost),
            // Retention was faster.
            ReadFault::OutOfRange { start, .. } if start > cursor.next => {
                (start, GapCause::Removed)
            }
            ReadFault::Damaged { .. }
            | ReadFault::Store(ReadError::Corrupt { .. } | ReadError::Io { .. }) => {
                let (error, is_news) = cursor.shut(topic, &fault, others);
                let at = cursor.next;
                if self.cursors.iter().all(|cursor| cursor.shut.is_some()) {
                    // There is nothing that could go on.
                    return Err(End::Error(error));
                }
                if is_news {
                    tracing::warn!(%topic, "a reader is told: {}", error.message);
                }
                let shut = Notice::Shut {
                    partition,
                    at,
                    error,
                };
                return Ok(is_news.then(|| notice(&shut)));
            }
            fault => return Err(End::Error(fault.to_wire(topic))),
        };
        let gap = Gap {
            partition,
            from: cursor.next,
            to,
            cause,
        };
        tracing::warn!(%topic, "a reader is told: {gap}");
        cursor.next = gap.resumes_at();
        Ok(Some(notice(&Notice::Gap(gap))))
    }
}

/// Resolves at this time, if there is one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests;
