//! The chain of a subscription: only what passes it crosses the network.
//!
//! Records keep the offsets they have in the partition. Dead letters are committed before the
//! batch is delivered; a consumer that reads the batch again makes them again.

use std::sync::{Arc, Weak};

use millstream_proto::{Batch, ErrorCode, PartitionId, TopicName, WireError};
use millstream_store::{Store, WriteBatch};
use tokio::sync::{mpsc, oneshot};

use super::apply::view;
use super::chain::{Blueprint, Chain};
use super::directory::Directory;
use super::halt::Halt;
use super::step::Bounds;
use super::topic::next;
use crate::limits::CHAIN_QUEUE;
use crate::log::{Stored, append, durability};

/// The chain of one subscription. When it is dropped, its instances go.
pub struct SubscriptionChain {
    topic: TopicName,
    jobs: mpsc::Sender<Job>,
}

impl std::fmt::Debug for SubscriptionChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SubscriptionChain({})", self.topic)
    }
}

/// What passed a subscription's chain of one stored batch.
#[derive(Clone, Debug)]
pub enum Through {
    /// Every record, as it was: the batch itself, uncopied.
    Whole(Stored),
    /// New batches in the order of offsets, which are in the batches' headers and columns. None
    /// when no record passed, nearly always one; several when their timestamps lie more than
    /// three weeks apart or a transform made more than one batch can hold. Only behind the last
    /// of them may the consumer's position move past the stored batch, since a record may have
    /// become several.
    Made(Vec<Batch>),
}

struct Job {
    stored: Stored,
    partition: PartitionId,
    answer: oneshot::Sender<Result<Through, WireError>>,
}

impl SubscriptionChain {
    /// Starts the actor. Runs on the guest thread.
    pub(super) async fn start(
        topic: TopicName,
        blueprint: Arc<Blueprint>,
        directory: Weak<dyn Directory>,
        store: Arc<dyn Store>,
    ) -> Result<Self, WireError> {
        let chain = blueprint.raise(None).await?;
        let (jobs, queue) = mpsc::channel(CHAIN_QUEUE);
        let actor = Actor {
            chain,
            directory,
            store,
            topic: topic.clone(),
            stopped: None,
        };
        tokio::spawn(actor.serve(queue));
        Ok(Self { topic, jobs })
    }

    /// Runs one stored batch through the chain, on the guest thread.
    ///
    /// # Errors
    /// `PluginFailed` once a plugin with the policy `stop` has failed, `PluginRetry` when a plugin
    /// asks for the batch again, `Overloaded` when no instance is to be had, and the store's
    /// error when dead letters cannot be committed.
    pub async fn run(&self, stored: Stored, partition: PartitionId) -> Result<Through, WireError> {
        let (answer, answered) = oneshot::channel();
        let gone = || WireError::new(ErrorCode::ShuttingDown, "the broker is shutting down");
        self.jobs
            .send(Job {
                stored,
                partition,
                answer,
            })
            .await
            .map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// Owns the instances.
struct Actor {
    chain: Chain,
    directory: Weak<dyn Directory>,
    store: Arc<dyn Store>,
    topic: TopicName,
    stopped: Option<String>,
}

impl Actor {
    async fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = next(&mut queue, &mut self.chain).await {
            let Job {
                stored,
                partition,
                mut answer,
            } = job;
            let passed = match &self.stopped {
                Some(why) => Err(self.refusal(&Halt::Stop(why.clone()))),
                None => tokio::select! {
                    biased;
                    // A slow plugin may take minutes for a batch: not for a reader that has gone.
                    () = answer.closed() => {
                        self.chain.flow.release();
                        continue;
                    }
                    passed = self.pass(stored, partition) => passed,
                },
            };
            self.chain.flow.release();
            drop(answer.send(passed));
        }
    }

    fn refusal(&self, halt: &Halt) -> WireError {
        halt.to_wire(&format!(
            "this subscription to topic {} has ended; subscribe again once the cause is mended",
            self.topic
        ))
    }

    async fn pass(&mut self, stored: Stored, partition: PartitionId) -> Result<Through, WireError> {
        let passed = self.filter(stored, partition).await;
        if let Err(Halt::Stop(why)) = &passed {
            self.stopped = Some(why.clone());
        }
        let passed = passed.map_err(|halt| self.refusal(&halt))?;
        self.bury().await?;
        Ok(passed)
    }

    async fn filter(&mut self, stored: Stored, partition: PartitionId) -> Result<Through, Halt> {
        let flow = &mut self.chain.flow;
        flow.source.partition = Some(partition);
        flow.records.load(&stored.batch, Some(stored.base))?;
        let header = *stored.batch.header();
        self.chain
            .run(header.base_timestamp, &[Bounds::NEXT])
            .await?;
        let records = &mut self.chain.flow.records;
        if records.is_whole() {
            return Ok(Through::Whole(stored));
        }
        Ok(Through::Made(view(records, header.codec)?))
    }

    /// Commits the dead letters of the batch.
    async fn bury(&mut self) -> Result<(), WireError> {
        if self.chain.flow.dead.count == 0 {
            return Ok(());
        }
        let gone = || WireError::new(ErrorCode::ShuttingDown, "the broker is shutting down");
        let directory = self.directory.upgrade().ok_or_else(gone)?;
        let mut appends = Vec::new();
        let finished = self.chain.flow.dead.finish(&*directory, &mut appends);
        finished.map_err(|halt| self.refusal(&halt))?;
        let rows = WriteBatch::with_durability(durability(&appends));
        let stopped = |error| {
            let text = format!("dead letters of a subscription to {}: {error}", self.topic);
            WireError::new(ErrorCode::StorageStopped, text)
        };
        append(&self.store, appends, rows).await.map_err(stopped)?;
        Ok(())
    }
}
