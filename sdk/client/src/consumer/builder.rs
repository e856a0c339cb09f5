//! What a consumer is to read, and how it begins.

use std::time::Duration;

use millstream_proto::message::OpenSubscription;
use millstream_proto::pipeline::PluginUse;
use millstream_proto::topic::StartAt;
use millstream_proto::{ConsumerName, Offset, PartitionId, TopicName};
use tokio::time::Instant;

use super::Consumer;
use super::position::Positions;
use super::setback::{Gaps, OnSetback};
use crate::connect::Client;
use crate::error::ConsumeError;
use crate::retry::Attempts;

/// Sets up a [`Consumer`].
#[derive(Debug)]
#[must_use = "call build() to have a consumer"]
pub struct ConsumerBuilder {
    client: Client,
    wish: Wish,
}

/// What a consumer wants.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) topic: TopicName,
    pub(super) partitions: Vec<PartitionId>,
    pub(super) start: StartAt,
    pub(super) consumer: Option<ConsumerName>,
    pub(super) until_end: bool,
    pub(super) chain: Vec<PluginUse>,
    pub(super) auto_commit: Option<Duration>,
    pub(super) on_setback: OnSetback,
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
                on_setback: OnSetback::default(),
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

    /// What happens where one partition cannot be read, or some of its records are not there.
    /// Default: [`OnSetback::GoOn`].
    pub fn on_setback(mut self, on_setback: OnSetback) -> Self {
        self.wish.on_setback = on_setback;
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
            gaps: Gaps::default(),
        };
        consumer.open_or_wait().await?;
        Ok(consumer)
    }
}

impl Wish {
    /// The subscription as it was wished for.
    pub(super) fn first(&self) -> OpenSubscription {
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
    pub(super) fn again(&self, positions: Vec<(PartitionId, Offset)>) -> Option<OpenSubscription> {
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
