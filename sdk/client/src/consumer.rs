//! Consuming: batches or single records of a topic, from any position, going on
//! where it was after a lost connection.
//!
//! What is prefetched waits in the QUIC stream, bounded by its receive window
//! ([`TransportSettings::stream_window`](crate::TransportSettings::stream_window));
//! a consumer that stops asking stops the broker from sending. There are no
//! groups: every consumer reads all partitions it asked for.

mod batch;
mod builder;
mod position;
mod setback;

use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::{self as streams, BoxStream};
use millstream_proto::frame::{DeliverPrefix, Frame, FrameKind};
use millstream_proto::message::{Gap, Notice, StreamOpen, SubscriptionOpened};
use millstream_proto::{
    ConsumerName, ErrorClass, ErrorCode, Offset, PartitionId, TopicName, WireError,
};
use quinn::SendStream;
use tokio::time::Instant;

use self::builder::Wish;
use self::position::Positions;
use self::setback::Gaps;
use crate::ambient::random_u64;
use crate::connect::{Client, Link};
use crate::error::ConsumeError;
use crate::record::Message;
use crate::retry::Attempts;
use crate::stream::{self, FrameReader, StreamError};

pub use self::batch::ConsumedBatch;
pub use self::builder::ConsumerBuilder;
pub use self::setback::{MAX_GAPS, OnSetback};

/// What a subscription's stream says.
enum Event {
    Deliver(Frame),
    Notice(Notice),
    /// It has delivered everything.
    End(Vec<PartitionId>),
}

type Subscription = BoxStream<'static, Result<Event, StreamError>>;

/// Messages of a batch that were not handed out yet.
struct Rest {
    batch: ConsumedBatch,
    messages: std::vec::IntoIter<Message>,
}

/// Reads records of one topic.
///
/// [`Consumer::next_message`] and [`Consumer::next_batch`] are cancel-safe: a
/// dropped future loses nothing.
pub struct Consumer {
    client: Client,
    wish: Wish,
    positions: Positions,
    subscription: Option<Subscription>,
    /// Subscriptions are open for everything that is not finished.
    live: bool,
    rest: Option<Rest>,
    attempts: Attempts,
    wait_until: Option<Instant>,
    committed_at: Instant,
    over: bool,
    gaps: Gaps,
}

impl Consumer {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &TopicName {
        &self.wish.topic
    }

    /// By partition, the offset behind what was handed out so far: what
    /// [`Consumer::commit`] commits.
    #[must_use]
    pub fn positions(&self) -> Vec<(PartitionId, Offset)> {
        self.positions.handed().collect()
    }

    /// The gaps that were met since this was last asked, at most [`MAX_GAPS`]: records that the
    /// consumer was not given, and behind which it went on.
    pub fn take_gaps(&mut self) -> Vec<Gap> {
        self.gaps.take()
    }

    /// The next record; `None` at the end asked for, and once the consumer is finished. Asking
    /// says that the records before it are done with.
    ///
    /// # Errors
    /// Any [`ConsumeError`]; the consumer is finished then, except by a
    /// [setback](ConsumeError::is_setback) of one partition.
    pub async fn next_message(&mut self) -> Option<Result<Message, ConsumeError>> {
        loop {
            if let Some(rest) = &mut self.rest {
                let partition = rest.batch.partition();
                if let Some(message) = rest.messages.next() {
                    let done = match rest.messages.as_slice().first() {
                        None => rest.batch.next(),
                        // Made of the same record by a plugin: that is not done with yet.
                        Some(sibling) if sibling.offset == message.offset => message.offset,
                        Some(_) => message.offset.plus(1),
                    };
                    self.positions.hand(partition, done);
                    return Some(Ok(message));
                }
                self.rest = None;
            }
            match self.receive().await? {
                Ok(batch) => {
                    let messages = batch.messages().into_iter();
                    if messages.as_slice().is_empty() {
                        self.positions.hand(batch.partition(), batch.next());
                    } else {
                        self.rest = Some(Rest { batch, messages });
                    }
                }
                Err(e) => return Some(Err(e)),
            }
        }
    }

    /// The next batch, whole: the fastest way to read. `None` at the end asked
    /// for, and once the consumer is finished. Asking says that what came before is done with.
    ///
    /// # Errors
    /// As [`Consumer::next_message`].
    pub async fn next_batch(&mut self) -> Option<Result<ConsumedBatch, ConsumeError>> {
        let batch = match self.rest.take() {
            Some(Rest { batch, messages }) if !messages.as_slice().is_empty() => {
                let from = messages.as_slice()[0].offset;
                batch.from(from)
            }
            Some(_) | None => match self.receive().await? {
                Ok(batch) => batch,
                Err(e) => return Some(Err(e)),
            },
        };
        self.positions.hand(batch.partition(), batch.next());
        Some(Ok(batch))
    }

    /// The records as a stream.
    pub fn messages(&mut self) -> impl Stream<Item = Result<Message, ConsumeError>> + Send + Unpin {
        Box::pin(streams::unfold(self, |consumer| async move {
            consumer.next_message().await.map(|m| (m, consumer))
        }))
    }

    /// The batches as a stream.
    pub fn batches(
        &mut self,
    ) -> impl Stream<Item = Result<ConsumedBatch, ConsumeError>> + Send + Unpin {
        Box::pin(streams::unfold(self, |consumer| async move {
            consumer.next_batch().await.map(|b| (b, consumer))
        }))
    }

    /// Commits, durably, that everything handed out so far is done with.
    ///
    /// # Errors
    /// [`ConsumeError::Unnamed`] without a name; [`ConsumeError::Commit`] when
    /// the broker did not commit. The consumer can go on after either.
    pub async fn commit(&mut self) -> Result<(), ConsumeError> {
        let Some(name) = self.wish.consumer.clone() else {
            let topic = self.wish.topic.clone();
            return Err(ConsumeError::Unnamed { topic });
        };
        let mut committed = self.commit_as(&name).await;
        if let Err(ConsumeError::Commit { error, .. }) = &committed
            && error.wire().map(|wire| wire.code) == Some(ErrorCode::OffsetOutOfRange)
        {
            // A crash took what had been read: opening anew says how much.
            self.live = false;
            self.open_or_wait().await?;
            committed = self.commit_as(&name).await;
        }
        committed?;
        self.committed_at = Instant::now();
        Ok(())
    }

    async fn commit_as(&mut self, name: &ConsumerName) -> Result<(), ConsumeError> {
        let offsets = self.positions.uncommitted();
        if offsets.is_empty() {
            return Ok(());
        }
        let topic = || self.wish.topic.clone();
        let committed = self
            .client
            .commit_offsets(topic(), name.clone(), offsets.clone())
            .await;
        committed.map_err(|error| ConsumeError::Commit {
            topic: topic(),
            error,
        })?;
        self.positions.commit(&offsets);
        Ok(())
    }

    /// The next batch with news in it.
    async fn receive(&mut self) -> Option<Result<ConsumedBatch, ConsumeError>> {
        if self.over {
            return None;
        }
        let result = self.receive_or_reopen().await;
        self.over = match &result {
            Some(Ok(_)) => false,
            Some(Err(e)) => !e.is_setback() || self.wish.on_setback == OnSetback::Stop,
            None => true,
        };
        result
    }

    async fn receive_or_reopen(&mut self) -> Option<Result<ConsumedBatch, ConsumeError>> {
        loop {
            if !self.live
                && let Err(e) = self.open_or_wait().await
            {
                return Some(Err(e));
            }
            let next = match self.commit_at() {
                None => Some(next(&mut self.subscription).await),
                // Not left to the timeout: it would not be heeded while there is always more.
                Some(at) if at <= Instant::now() => None,
                Some(at) => tokio::time::timeout_at(at, next(&mut self.subscription))
                    .await
                    .ok(),
            };
            let Some(event) = next else {
                if let Err(e) = self.commit().await {
                    return Some(Err(e));
                }
                continue;
            };
            match event {
                Some(Ok(Event::Deliver(frame))) => match self.accept(frame).transpose() {
                    Some(done) => return Some(done),
                    None => continue,
                },
                Some(Ok(Event::Notice(notice))) => {
                    if let Some(setback) = self.heed(notice) {
                        return Some(Err(setback));
                    }
                }
                Some(Ok(Event::End(partitions))) => self.positions.finish(&partitions),
                Some(Err(e)) => {
                    if let Err(e) = self.broken(e) {
                        return Some(Err(e));
                    }
                }
                // Every stream has ended in good order.
                None => return None,
            }
        }
    }

    /// When auto-commit has something to do next.
    fn commit_at(&self) -> Option<Instant> {
        let every = self.wish.auto_commit?;
        let dirty = !self.positions.uncommitted().is_empty();
        dirty.then(|| self.committed_at + every)
    }

    /// Takes a delivery in; `None` when there is nothing new in it.
    fn accept(&mut self, frame: Frame) -> Result<Option<ConsumedBatch>, ConsumeError> {
        let topic = || self.wish.topic.clone();
        let split = DeliverPrefix::split(frame.payload);
        let (prefix, bytes) = split.map_err(|e| ConsumeError::Protocol {
            topic: topic(),
            why: e.to_string(),
        })?;
        let DeliverPrefix {
            partition,
            next,
            end,
        } = prefix;
        self.attempts.progressed();
        let batch = match bytes.is_empty() {
            true => None,
            false => Some(
                ConsumedBatch::check(bytes, partition, Offset(0), next, end).map_err(|error| {
                    ConsumeError::Batch {
                        topic: topic(),
                        partition,
                        error,
                    }
                })?,
            ),
        };
        if self.wish.partitions.is_empty() {
            // One that was added since; known ones keep their place.
            self.positions.begin(partition, Offset(0));
        }
        let reaches = |from| batch.as_ref().is_some_and(|batch| batch.reaches(from));
        let Some(from) = self.positions.receive(partition, next, reaches) else {
            return Ok(None);
        };
        if batch.is_none() {
            // Nothing waits to be handed out: deliveries are taken one by one.
            self.positions.hand(partition, next);
        }
        Ok(batch.map(|batch| batch.from(from)))
    }

    /// Takes a notice in; returns what the application is to hear of it.
    fn heed(&mut self, notice: Notice) -> Option<ConsumeError> {
        let topic = self.wish.topic.clone();
        self.attempts.progressed();
        match notice {
            Notice::Shut {
                partition,
                at,
                error,
            } => {
                self.positions.begin(partition, at);
                let shut = ConsumeError::Shut {
                    topic,
                    partition,
                    at,
                    error,
                };
                self.positions.shut(partition).then_some(shut)
            }
            Notice::Gap(gap) => {
                tracing::warn!(%topic, "{gap}");
                let stops = self.wish.on_setback == OnSetback::Stop;
                let (partition, at) = (gap.partition, gap.resumes_at());
                if stops || at == gap.from {
                    // One that stops has not passed the gap: what it commits must not say so.
                    self.positions.go_back(partition, gap.from);
                } else {
                    self.positions.begin(partition, gap.from);
                    self.positions.pass_over(partition, at);
                }
                if stops {
                    return Some(ConsumeError::Gap { topic, gap });
                }
                self.gaps.push(gap);
                None
            }
        }
    }

    /// Opens what is to be open, waiting where the broker asked for it. Leaves
    /// everything as it was when dropped midway.
    async fn open_or_wait(&mut self) -> Result<(), ConsumeError> {
        loop {
            if let Some(until) = self.wait_until {
                tokio::time::sleep_until(until).await;
                self.wait_until = None;
            }
            let link = self.client.link().await;
            let link = link.map_err(|error| ConsumeError::Connect {
                topic: self.wish.topic.clone(),
                error,
            })?;
            match self.open(&link).await {
                Ok(()) => {
                    self.live = true;
                    return Ok(());
                }
                Err(e) => self.broken(e)?,
            }
        }
    }

    async fn open(&mut self, link: &Link) -> Result<(), StreamError> {
        self.subscription = None;
        let open = match self.positions.is_empty() {
            true => self.wish.first(),
            false => match self.wish.again(self.positions.resume()) {
                Some(open) => open,
                // Everything that was asked for has come.
                None => return Ok(()),
            },
        };
        let opened = stream::open(&link.connection, &StreamOpen::Subscription(open)).await;
        let (send, reader, frame) = opened?;
        let opened: SubscriptionOpened = stream::decode(&frame)?;
        for (partition, start) in &opened.positions {
            self.positions.begin(*partition, *start);
            // What is in hand of behind that is gone too.
            let went_back = self.positions.go_back(*partition, *start);
            self.rest
                .take_if(|rest| went_back && rest.batch.partition() == *partition);
        }
        let partitions = opened.positions.into_iter().map(|(p, _)| p).collect();
        self.subscription = Some(events(send, reader, partitions));
        Ok(())
    }

    /// A stream broke: decides whether to open anew, and when.
    fn broken(&mut self, error: StreamError) -> Result<(), ConsumeError> {
        self.live = false;
        self.subscription = None;
        let topic = || self.wish.topic.clone();
        let wire = match error {
            StreamError::Protocol(why) => {
                return Err(ConsumeError::Protocol {
                    topic: topic(),
                    why,
                });
            }
            StreamError::Refused(wire) => wire,
            StreamError::Lost => WireError::new(
                ErrorCode::ShuttingDown,
                "the connection was lost over and over",
            ),
        };
        let now = Instant::now();
        let delay = match wire.class() {
            ErrorClass::Retry => self.attempts.failed(now, wire.retry_after_ms, random_u64()),
            ErrorClass::Fix | ErrorClass::Fatal => None,
        };
        match delay {
            Some(delay) => {
                self.wait_until = Some(now + delay);
                Ok(())
            }
            None => Err(ConsumeError::Refused {
                topic: topic(),
                error: wire,
            }),
        }
    }
}

/// What comes next; `None` when there is no stream or it has ended in good order.
async fn next(subscription: &mut Option<Subscription>) -> Option<<Subscription as Stream>::Item> {
    subscription.as_mut()?.next().await
}

/// The frames of one subscription. Dropping it tells the broker to stop.
fn events(send: SendStream, reader: FrameReader, partitions: Vec<PartitionId>) -> Subscription {
    let state = Some((send, reader, partitions));
    let next = |state: Option<(SendStream, FrameReader, Vec<PartitionId>)>| async move {
        let (send, mut reader, partitions) = state?;
        let event = match reader.expect().await {
            Ok(frame) => match frame.kind {
                FrameKind::Deliver => {
                    return Some((Ok(Event::Deliver(frame)), Some((send, reader, partitions))));
                }
                FrameKind::Notice => match stream::decode(&frame) {
                    Ok(notice) => {
                        let state = Some((send, reader, partitions));
                        return Some((Ok(Event::Notice(notice)), state));
                    }
                    Err(e) => Err(e),
                },
                FrameKind::End => Ok(Event::End(partitions)),
                FrameKind::Error => Err(stream::refusal(&frame)),
                other => Err(StreamError::Protocol(format!(
                    "a {other:?} frame on a subscription's stream"
                ))),
            },
            Err(e) => Err(e),
        };
        Some((event, None))
    };
    streams::unfold(state, next).boxed()
}

impl std::fmt::Debug for Consumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer")
            .field("topic", &self.wish.topic)
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}
