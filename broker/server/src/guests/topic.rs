//! The chain of a topic: what every produced batch passes before storage.
//!
//! An actor on the guest thread owns the instances; sessions hand it batches and wait. Batches of
//! one session are answered in the order in which they were handed over. Dead letters are appended
//! in the same commit as the records that passed.

use std::sync::{Arc, OnceLock, Weak};

use millstream_proto::pipeline::PluginUse;
use millstream_proto::{Batch, ErrorCode, PartitionId, TopicName, WireError};
use tokio::sync::{mpsc, oneshot};

use super::apply::{Assembler, Form, Target};
use super::chain::{Blueprint, Chain};
use super::directory::Directory;
use super::halt::Halt;
use super::step::Bounds;
use crate::limits::{CHAIN_QUEUE, GUEST_IDLE};
use crate::log::{Append, Topic};

/// What passed a topic's chain.
#[derive(Debug, Default)]
pub struct Passed {
    /// What to append in one commit: to the topic, and dead letters to their topics. Empty when
    /// nothing passed.
    pub appends: Vec<Append>,
    /// Records of the batch of which nothing goes to the topic: filtered out, skipped, or sent
    /// to the dead letters.
    pub dropped: u32,
    /// There is one record for each of the batch, and in their order.
    pub in_order: bool,
}

/// The chain of a topic. When the last handle is dropped, its instances go.
pub struct TopicChain {
    topic: TopicName,
    uses: Vec<PluginUse>,
    routes: bool,
    jobs: mpsc::Sender<Job>,
    stopped: Arc<OnceLock<String>>,
}

impl std::fmt::Debug for TopicChain {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TopicChain")
            .field("topic", &self.topic)
            .field("stopped", &self.stopped())
            .finish_non_exhaustive()
    }
}

struct Job {
    batch: Batch,
    wanted: Option<PartitionId>,
    topic: Arc<Topic>,
    answer: oneshot::Sender<Result<Passed, WireError>>,
}

impl TopicChain {
    /// Starts the actor, and each plugin once. Runs on the guest thread.
    pub(super) async fn start(
        topic: TopicName,
        blueprint: Arc<Blueprint>,
        directory: Weak<dyn Directory>,
    ) -> Result<Self, WireError> {
        let mut chain = Arc::clone(&blueprint).raise(None).await?;
        // Raised to see that it starts. There may be more topics with plugins than places in the
        // pool, and a topic that nobody writes to must not take one from those that are in use.
        chain.rest();
        Ok(Self::with(topic, &blueprint, chain, directory))
    }

    /// Starts the actor; the plugins, which have started before, with the first batch. Runs on
    /// the guest thread.
    pub(super) async fn start_again(
        topic: TopicName,
        blueprint: Arc<Blueprint>,
        directory: Weak<dyn Directory>,
    ) -> Result<Self, WireError> {
        let chain = blueprint.lay(None)?;
        Ok(Self::with(topic, &blueprint, chain, directory))
    }

    fn with(
        topic: TopicName,
        blueprint: &Blueprint,
        chain: Chain,
        directory: Weak<dyn Directory>,
    ) -> Self {
        let (jobs, queue) = mpsc::channel(CHAIN_QUEUE);
        let stopped = Arc::<OnceLock<String>>::default();
        let actor = Actor {
            chain,
            assembler: Assembler::default(),
            directory,
            stopped: Arc::clone(&stopped),
        };
        tokio::spawn(actor.serve(queue));
        Self {
            topic,
            uses: blueprint.uses(),
            routes: blueprint.routes(),
            jobs,
            stopped,
        }
    }

    /// A chain that could not be started and lets nothing pass: what stands before a topic when
    /// its plugins do not start with the broker. It must not be left out, or records would be
    /// stored that a plugin should have seen.
    #[must_use]
    pub fn broken(topic: &TopicName, uses: Vec<PluginUse>, why: String) -> Arc<Self> {
        // Nobody listens; nothing is sent because of `stopped`.
        let (jobs, _) = mpsc::channel(1);
        let stopped = Arc::new(OnceLock::from(why));
        Arc::new(Self {
            topic: topic.clone(),
            uses,
            routes: true,
            jobs,
            stopped,
        })
    }

    /// The plugins as attached, versions filled in.
    #[must_use]
    pub fn uses(&self) -> &[PluginUse] {
        &self.uses
    }

    /// Whether the broker chooses partitions: a partitioner or a transform is attached.
    #[must_use]
    pub fn routes(&self) -> bool {
        self.routes
    }

    /// Why nothing passes any more, if so.
    #[must_use]
    pub fn stopped(&self) -> Option<String> {
        self.stopped.get().cloned()
    }

    /// Runs a batch through the chain, on the guest thread: one hop, whatever the number of
    /// plugins. A batch that every plugin leaves as it is comes back uncopied. `wanted` is the
    /// producer's choice of a partition; a plugin's choice goes before it, the topic's settings
    /// decide where there is neither.
    ///
    /// Calls that are polled in order are served in order, so a session may have several under
    /// way.
    ///
    /// # Errors
    /// `PluginFailed` once a plugin with the policy `stop` has failed, `PluginRetry` when a plugin
    /// asks for the batch again, `Overloaded` when no instance is to be had, and what is wrong
    /// with the batch if it does not hold together. Nothing may be stored then.
    pub async fn run(
        &self,
        batch: Batch,
        wanted: Option<PartitionId>,
        topic: &Arc<Topic>,
    ) -> Result<Passed, WireError> {
        if let Some(why) = self.stopped.get() {
            return Err(refusal(&Halt::Stop(why.clone()), &self.topic));
        }
        let (answer, answered) = oneshot::channel();
        let job = Job {
            batch,
            wanted,
            topic: Arc::clone(topic),
            answer,
        };
        let gone = || WireError::new(ErrorCode::ShuttingDown, "the broker is shutting down");
        self.jobs.send(job).await.map_err(|_| gone())?;
        answered.await.map_err(|_| gone())?
    }
}

/// The next job of an actor; without one for a while its instances go back to the pool.
pub(super) async fn next<T>(queue: &mut mpsc::Receiver<T>, chain: &mut Chain) -> Option<T> {
    // Under load there is nearly always one, and no timer is set.
    if let Ok(job) = queue.try_recv() {
        return Some(job);
    }
    match tokio::time::timeout(GUEST_IDLE, queue.recv()).await {
        Ok(job) => job,
        Err(_) => {
            chain.rest();
            queue.recv().await
        }
    }
}

fn refusal(halt: &Halt, topic: &TopicName) -> WireError {
    halt.to_wire(&format!(
        "nothing passes into topic {topic} until the plugin is attached again or detached"
    ))
}

/// Owns the instances.
struct Actor {
    chain: Chain,
    assembler: Assembler,
    directory: Weak<dyn Directory>,
    stopped: Arc<OnceLock<String>>,
}

impl Actor {
    async fn serve(mut self, mut queue: mpsc::Receiver<Job>) {
        while let Some(job) = next(&mut queue, &mut self.chain).await {
            let Job {
                batch,
                wanted,
                topic,
                answer,
            } = job;
            // Whoever asked may be gone; its batch must not be stored then.
            if answer.is_closed() {
                continue;
            }
            let passed = match self.stopped.get() {
                Some(why) => Err(Halt::Stop(why.clone())),
                None => self.pass(batch, wanted, &topic).await,
            };
            self.chain.flow.release();
            if let Err(Halt::Stop(why)) = &passed
                && self.stopped.set(why.clone()).is_ok()
            {
                tracing::warn!(topic = %topic.name(), "the topic's chain has stopped: {why}");
            }
            drop(answer.send(passed.map_err(|halt| refusal(&halt, topic.name()))));
        }
    }

    async fn pass(
        &mut self,
        batch: Batch,
        wanted: Option<PartitionId>,
        topic: &Arc<Topic>,
    ) -> Result<Passed, Halt> {
        if let Some(partition) = wanted
            && topic.partition(partition).is_none()
        {
            return Err(no_partition(topic, partition));
        }
        self.chain.flow.records.load(&batch, None)?;
        let config = topic.config();
        let bounds = Bounds {
            partitions: topic.partitions().len() as u32,
            max_record_bytes: config.max_record_bytes as usize,
        };
        self.chain
            .run(batch.header().base_timestamp, &[bounds])
            .await?;
        let mut appends = Vec::new();
        let flow = &mut self.chain.flow;
        let (dropped, in_order) = (flow.records.lost(), flow.records.is_one_to_one());
        let records = &mut flow.records;
        let whole = records.is_whole().then_some(&batch);
        let unplaced = records.is_unplaced();
        match (whole, wanted) {
            (Some(batch), Some(partition)) if unplaced => {
                let gone = || no_partition(topic, partition);
                appends.push(Append::to(topic, partition, batch.clone()).ok_or_else(gone)?);
            }
            _ => {
                let target = [Target {
                    topic: Arc::clone(topic),
                    wanted,
                }];
                let form = Form::of(&batch);
                self.assembler
                    .gather(records, &target, form, whole, &mut appends)?;
            }
        }
        if flow.dead.count > 0 {
            let gone = || Halt::Fault("the broker is shutting down".to_owned());
            let directory = self.directory.upgrade().ok_or_else(gone)?;
            flow.dead.finish(&*directory, &mut appends)?;
        }
        Ok(Passed {
            appends,
            dropped,
            in_order,
        })
    }
}

/// A producer asked for a partition that is not there.
fn no_partition(topic: &Topic, partition: PartitionId) -> Halt {
    let have = topic.partitions().len();
    let name = topic.name();
    Halt::Nowhere(format!(
        "topic {name} has no partition {partition}; it has {have}"
    ))
}
