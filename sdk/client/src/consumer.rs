//! Consuming: batches or single records of a topic, from any position, going on
//! where it was after a lost connection.
//!
//! What is prefetched waits in the QUIC stream, bounded by its receive window
//! ([`TransportSettings::stream_window`](crate::TransportSettings::stream_window));
//! a consumer that stops asking stops the broker from sending. There are no
//! groups: every consumer reads all partitions it asked for.

mod batch;
mod position;

use std::time::Duration;

use futures_core::Stream;
use futures_util::StreamExt;
use futures_util::stream::{self as streams, BoxStream};
use millstream_proto::frame::{DeliverPrefix, Frame, FrameKind};
use millstream_proto::message::{OpenSubscription, StreamOpen, SubscriptionOpened};
use millstream_proto::pipeline::PluginUse;
use millstream_proto::topic::StartAt;
use millstream_proto::{
    ConsumerName, ErrorClass, ErrorCode, Offset, PartitionId, TopicName, WireError,
};
use quinn::SendStream;
use tokio::time::Instant;

use self::position::Positions;
use crate::ambient::random_u64;
use crate::connect::{Client, Link};
use crate::error::ConsumeError;
use crate::record::Message;
use crate::retry::Attempts;
use crate::stream::{self, FrameReader, StreamError};

pub use self::batch::ConsumedBatch;

/// Sets up a [`Consumer`].
#[derive(Debug)]
#[must_use = "call build() to have a consumer"]
pub struct ConsumerBuilder {
    client: Client,
    wish: Wish,
}

/// What a consumer wants.
#[derive(Clone, Debug)]
struct Wish {
    topic: TopicName,
    partitions: Vec<PartitionId>,
    start: StartAt,
    consumer: Option<ConsumerName>,
    until_end: bool,
    chain: Vec<PluginUse>,
    auto_commit: Option<Duration>,
}

impl Client {
    /// Begins a consumer of `topic`.
    ///
    /// ```no_run
    /// # async fn run(client: millstream::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// use futures_util::StreamExt;
    /// use millstream::StartAt;
    ///
    /// let mut consumer = client
    ///     .consumer("acme/quakes".parse()?)
    ///     .start(StartAt::Earliest)
    ///     .named("dashboard".parse()?)
    ///     .auto_commit(Duration::from_secs(5))
    ///     .build()
    ///     .await?;
    /// let mut messages = consumer.messages();
    /// while let Some(message) = messages.next().await {
    ///     let message = message?;
    ///     println!("{} {}: {:?}", message.partition, message.offset, message.value);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn consumer(&self, topic: TopicName) -> ConsumerBuilder {
        ConsumerBuilder {
            client: self.clone(),
            wish: Wish {
                topic,
                partitions: Vec::new(),
                start: StartAt::Latest,
                consumer: None,
                until_end: false,
                chain: Vec::new(),
                auto_commit: None,
            },
        }
    }
}

impl ConsumerBuilder {
    /// Only these partitions. Default: all.
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = PartitionId>) -> Self {
        self.wish.partitions = partitions.into_iter().collect();
        self
    }

    /// Where to begin in partitions without a committed offset. Default:
    /// [`StartAt::Latest`].
    pub fn start(mut self, start: StartAt) -> Self {
        self.wish.start = start;
        self
    }

    /// Begins at the offsets committed under this name, and commits under it.
    pub fn named(mut self, name: ConsumerName) -> Self {
        self.wish.consumer = Some(name);
        self
    }

    /// Ends at the topic's durable end as it is when the consumer starts, or
    /// when it last had to connect anew. Default: goes on with what comes.
    pub fn until_end(mut self, until_end: bool) -> Self {
        self.wish.until_end = until_end;
        self
    }

    /// A filter or transform that runs in the broker, behind those named before:
    /// only what passes crosses the network.
    pub fn plugin(mut self, plugin: PluginUse) -> Self {
        self.wish.chain.push(plugin);
        self
    }

    /// Commits what was handed out about this often, while the consumer is asked
    /// for more; asking says that what came before is done with. What came last
    /// is for [`Consumer::commit`].
    pub fn auto_commit(mut self, every: Duration) -> Self {
        self.wish.auto_commit = Some(every);
        self
    }

    /// Opens the subscription.
    ///
    /// # Errors
    /// `UnknownTopic`, `UnknownPartition`, `OffsetOutOfRange`, `UnknownPlugin`,
    /// `NotAuthorized`; [`ConsumeError::Unnamed`] for auto-commit without a name;
    /// or any [`ConsumeError`].
    pub async fn build(self) -> Result<Consumer, ConsumeError> {
        let ConsumerBuilder { client, wish } = self;
        if wish.auto_commit.is_some() && wish.consumer.is_none() {
            return Err(ConsumeError::Unnamed { topic: wish.topic });
        }
        let config = client.config();
        let attempts = Attempts::new(config.backoff, config.reconnect_deadline);
        let mut consumer = Consumer {
            client,
            wish,
            positions: Positions::default(),
            subscription: None,
            live: false,
            rest: None,
            attempts,
            wait_until: None,
            committed_at: Instant::now(),
            over: false,
        };
        consumer.open_or_wait().await?;
        Ok(consumer)
    }
}

/// What a subscription's stream says.
enum Event {
    Deliver(Frame),
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

    /// The next record; `None` at the end asked for, and after an error. Asking
    /// says that the records before it are done with.
    ///
    /// # Errors
    /// Any [`ConsumeError`]; the consumer is finished then.
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
    /// for, and after an error. Asking says that what came before is done with.
    ///
    /// # Errors
    /// Any [`ConsumeError`]; the consumer is finished then.
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
        let topic = || self.wish.topic.clone();
        let Some(name) = self.wish.consumer.clone() else {
            return Err(ConsumeError::Unnamed { topic: topic() });
        };
        let offsets = self.positions.uncommitted();
        if !offsets.is_empty() {
            let committed = self
                .client
                .commit_offsets(topic(), name, offsets.clone())
                .await;
            committed.map_err(|error| ConsumeError::Commit {
                topic: topic(),
                error,
            })?;
            self.positions.commit(&offsets);
        }
        self.committed_at = Instant::now();
        Ok(())
    }

    /// The next batch with news in it.
    async fn receive(&mut self) -> Option<Result<ConsumedBatch, ConsumeError>> {
        if self.over {
            return None;
        }
        let result = self.receive_or_reopen().await;
        self.over = !matches!(result, Some(Ok(_)));
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

impl Wish {
    /// The subscription as it was wished for.
    fn first(&self) -> OpenSubscription {
        OpenSubscription {
            topic: self.topic.clone(),
            partitions: self.partitions.clone(),
            positions: Vec::new(),
            start: self.start,
            consumer: self.consumer.clone(),
            until_end: self.until_end,
            chain: self.chain.clone(),
        }
    }

    /// One that takes up the thread; `None` when there is nothing left to read.
    fn again(&self, positions: Vec<(PartitionId, Offset)>) -> Option<OpenSubscription> {
        if positions.is_empty() {
            return None;
        }
        let partitions = match self.partitions.is_empty() && !self.until_end {
            true => Vec::new(),
            false => positions.iter().map(|(partition, _)| *partition).collect(),
        };
        // Partitions that were added while the connection was lost are read from their first
        // record. Not by name: what is committed lies behind what was received.
        let start = StartAt::Earliest;
        Some(OpenSubscription {
            partitions,
            positions,
            start,
            consumer: None,
            ..self.first()
        })
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
