//! One pipeline in one partition of its input: read, run, commit.
//!
//! What a commit holds is decided here and is the whole of exactly once: the records for every
//! output, the dead letters and the new position go to the store in one batch, so a position never
//! says more or less than the outputs do. Nothing is kept in memory that a restart could miss.

use std::sync::{Arc, Weak};
use std::time::Duration;

use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::batch::Stamp;
use millstream_proto::limits::MAX_RECORD_BYTES;
use millstream_proto::pipeline::PipelineSpec;
use millstream_proto::{Batch, ErrorCode, Offset, PartitionId, Principal, TopicName, WireError};
use millstream_store::{Store, WriteBatch};
use tokio::time::{Instant, sleep_until};

use super::progress::{Counts, Progress};
use super::row::PositionKey;
use crate::gate::Gate;
use crate::guests::{
    Assembler, Blueprint, Bounds, Chain, Directory, Form, Halt, Records, Target, allow_dead_letters,
};
use crate::limits::{
    GUEST_IDLE, PIPELINE_COMMIT_BYTES, PIPELINE_MERGE_BYTES, PIPELINE_READ_BYTES,
    PIPELINE_RETRY_FIRST, PIPELINE_RETRY_LAST,
};
use crate::log::{
    Append, AppendError, Follow, Partition, ReadFault, Stored, Topic, append, durability,
};

/// Why a pipeline does not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Something that somebody must mend; remembered over restarts.
    #[error("{0}")]
    Lasting(String),
    /// The store does not take or give anything; a restart may help.
    #[error("{0}")]
    Storage(String),
}

impl Failure {
    /// A topic that the pipeline reads or writes was deleted.
    pub(super) fn deleted(topic: &TopicName) -> Self {
        Self::Lasting(format!(
            "topic {topic} was deleted: create it again and resume the pipeline, or apply the \
             pipeline with another"
        ))
    }
}

impl From<WireError> for Failure {
    fn from(error: WireError) -> Self {
        Self::Lasting(error.message)
    }
}

/// What the tasks of one run share.
pub(super) struct Work {
    pub(super) id: u32,
    pub(super) spec: PipelineSpec,
    pub(super) owner: Principal,
    pub(super) input: Arc<Topic>,
    /// In the order of the definition.
    pub(super) outputs: Vec<Target>,
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) progress: Arc<Progress>,
    pub(super) store: Arc<dyn Store>,
    pub(super) directory: Weak<dyn Directory>,
}

impl Work {
    /// Whether the owner may still do all of it, and the topics are still there. Cheap enough to
    /// be asked before each commit, so a revoked right ends a pipeline at once.
    pub(super) fn check(&self) -> Result<(), Failure> {
        let gone = || Failure::Storage("the broker is shutting down".to_owned());
        let directory = self.directory.upgrade().ok_or_else(gone)?;
        check_rights(&*directory, &self.owner, &self.spec)?;
        let topics = std::iter::once(&self.input).chain(self.outputs.iter().map(|o| &o.topic));
        match topics.into_iter().find(|topic| topic.is_deleted()) {
            Some(topic) => Err(Failure::deleted(topic.name())),
            None => Ok(()),
        }
    }

    fn bounds(&self) -> Vec<Bounds> {
        let bounds = |target: &Target| Bounds {
            partitions: target.topic.partitions().len() as u32,
            max_record_bytes: target.topic.config().max_record_bytes as usize,
        };
        self.outputs.iter().map(bounds).collect()
    }

    /// The rows of a commit: the new position, as durable as the outputs.
    fn rows(&self, appends: &[Append], partition: PartitionId, position: Offset) -> WriteBatch {
        let mut rows = WriteBatch::with_durability(durability(appends));
        let key = PositionKey {
            pipeline: self.id,
            topic: self.input.id(),
            partition,
        };
        key.put(position, &mut rows);
        rows
    }
}

/// Whether a pipeline may run as `owner`.
pub(super) fn check_rights(
    directory: &dyn Directory,
    owner: &Principal,
    spec: &PipelineSpec,
) -> Result<(), WireError> {
    let topic =
        |operation, name: &str| directory.allow(owner, operation, ResourceKind::Topic, name);
    topic(Operation::Consume, spec.input.as_str())?;
    spec.outputs
        .iter()
        .try_for_each(|(_, output)| topic(Operation::Produce, output.as_str()))?;
    for step in &spec.steps {
        let plugin = step.plugin.as_str();
        directory.allow(owner, Operation::Attach, ResourceKind::Plugin, plugin)?;
    }
    allow_dead_letters(owner, &spec.steps, directory)
}

/// One commit: records, and the position behind those they were made of.
struct Output {
    appends: Vec<Append>,
    counts: Counts,
    position: Offset,
}

/// The task of one input partition.
pub(super) struct Task {
    work: Arc<Work>,
    partition: Arc<Partition>,
    _follow: Follow,
    position: Offset,
    /// Raised with the first record, so that quiet partitions hold no instances.
    chain: Option<Chain>,
    assembler: Assembler,
}

/// How one round ended.
enum Round {
    /// A commit was made; there may be more.
    Moved,
    /// There is nothing to read.
    Quiet,
    /// A plugin or the pool asks for time.
    Later(String),
    /// The run is being stopped.
    Stopping,
}

impl Task {
    pub(super) fn new(work: Arc<Work>, partition: Arc<Partition>) -> Self {
        let (topic, id) = (work.input.id(), partition.id());
        // Partitions that were there when the pipeline was applied have a row. One that was added
        // later is read from its first record: nothing was written to it before.
        let position = work
            .progress
            .position(topic, id)
            .unwrap_or_else(|| partition.start());
        Self {
            _follow: partition.follow(),
            work,
            partition,
            position,
            chain: None,
            assembler: Assembler::default(),
        }
    }

    /// Runs until the gate closes.
    pub(super) async fn run(mut self, gate: Gate) -> Result<(), Failure> {
        let work = Arc::clone(&self.work);
        let mut changed = work.input.changed();
        let mut wait = PIPELINE_RETRY_FIRST;
        let mut worked = Instant::now();
        loop {
            // Before looking, so that what comes meanwhile is not slept through.
            changed.mark_unchanged();
            let pause: Option<Duration> = match self.round(&gate).await? {
                Round::Stopping => return Ok(()),
                Round::Moved => {
                    wait = PIPELINE_RETRY_FIRST;
                    worked = Instant::now();
                    continue;
                }
                Round::Quiet => None,
                Round::Later(why) => {
                    tracing::debug!(pipeline = %work.spec.name, "waits {wait:?}: {why}");
                    let pause = wait;
                    wait = (wait * 2).min(PIPELINE_RETRY_LAST);
                    Some(pause)
                }
            };
            // From the last work on, not from the last look: records of other partitions wake too.
            let due = pause.map_or(worked + GUEST_IDLE, |pause| Instant::now() + pause);
            tokio::select! {
                () = gate.closing() => return Ok(()),
                () = sleep_until(due), if pause.is_some() || self.chain.is_some() => {
                    if pause.is_none() {
                        self.chain = None;
                    }
                }
                _ = changed.changed(), if pause.is_none() => {}
            }
        }
    }

    async fn round(&mut self, gate: &Gate) -> Result<Round, Failure> {
        self.work.check()?;
        let batches = tokio::select! {
            () = gate.closing() => return Ok(Round::Stopping),
            batches = self.read() => batches?,
        };
        if batches.is_empty() {
            return Ok(Round::Quiet);
        }
        let output = tokio::select! {
            // A guest that is cut off here has done nothing yet.
            () = gate.closing() => return Ok(Round::Stopping),
            output = self.transform(&batches) => output,
        };
        match output {
            // Not cut off: what was submitted is committed, and the position must be known.
            Ok(output) => self.commit(output).await.map(|()| Round::Moved),
            Err(Halt::Later(why)) => Ok(Round::Later(why)),
            Err(Halt::Busy(why)) => {
                // Others wait for the places that this chain has: whoever held on to some while
                // waiting for more could wait for somebody who does the same.
                self.chain = None;
                Ok(Round::Later(why))
            }
            Err(halt) => {
                let (partition, at) = (self.partition.id(), self.position);
                let input = self.work.input.name();
                let text = format!("{halt} (reading {input}, partition {partition}, offset {at})");
                Err(Failure::Lasting(text))
            }
        }
    }

    /// What is there at the position, up to what one commit takes.
    async fn read(&mut self) -> Result<Vec<Stored>, Failure> {
        let mut batches = match self
            .partition
            .read(self.position, PIPELINE_READ_BYTES)
            .await
        {
            Ok(batches) => batches,
            Err(ReadFault::OutOfRange { wanted, start, end }) if wanted < start => {
                let (pipeline, input) = (&self.work.spec.name, self.work.input.name());
                let partition = self.partition.id();
                tracing::warn!(%pipeline, %input, %partition, "retention has removed offsets {wanted} to {start} unread; going on there");
                self.position = start;
                debug_assert!(start <= end, "a partition starts before it ends");
                Box::pin(self.partition.read(start, PIPELINE_READ_BYTES))
                    .await
                    .map_err(fault)?
            }
            Err(ReadFault::Lost { wanted, next }) if wanted < next => {
                let (pipeline, input) = (&self.work.spec.name, self.work.input.name());
                let partition = self.partition.id();
                tracing::warn!(%pipeline, %input, %partition, "offsets {wanted} to {next} are lost; going on behind them");
                self.position = next;
                return Box::pin(self.read()).await;
            }
            Err(error) => return Err(fault(error)),
        };
        // Counted as plugins will see them: a small batch may hold a large one, compressed.
        let mut plain = 0;
        let fits = |stored: &&Stored| {
            plain += stored.batch.header().plain_len();
            plain <= PIPELINE_READ_BYTES
        };
        let count = batches.iter().take_while(fits).count();
        batches.truncate(count.max(1));
        Ok(batches)
    }

    /// Runs the batches through the chain: all of them, or fewer if they become too much for one
    /// commit.
    async fn transform(&mut self, batches: &[Stored]) -> Result<Output, Halt> {
        let Self {
            work,
            partition,
            position,
            chain,
            assembler,
            ..
        } = self;
        let chain = match chain {
            Some(chain) => chain,
            None => chain.insert(raise(work, partition.id()).await?),
        };
        chain.flow.release();
        let mut round = Passing {
            work,
            bounds: work.bounds(),
            output: Output {
                appends: Vec::new(),
                counts: Counts::default(),
                position: *position,
            },
        };
        let mut rest = batches;
        while !rest.is_empty() && appended(&round.output.appends) < PIPELINE_COMMIT_BYTES {
            let (group, later) = rest.split_at(merge(rest));
            round.pass(group, chain, assembler).await?;
            rest = later;
        }
        let mut output = round.output;
        output.counts.dead_letters = chain.flow.dead.count;
        output.counts.skipped = chain.flow.skipped;
        if chain.flow.dead.count > 0 {
            let gone = || Halt::Fault("the broker is shutting down".to_owned());
            let directory = work.directory.upgrade().ok_or_else(gone)?;
            chain.flow.dead.finish(&*directory, &mut output.appends)?;
        }
        chain.flow.release();
        Ok(output)
    }

    /// Commits records and position together.
    async fn commit(&mut self, output: Output) -> Result<(), Failure> {
        let Output {
            appends,
            counts,
            position,
        } = output;
        let partition = self.partition.id();
        let rows = self.work.rows(&appends, partition, position);
        let stopped = |error: AppendError| Failure::Storage(error.to_string());
        append(&self.work.store, appends, rows)
            .await
            .map_err(stopped)?;
        self.position = position;
        self.work
            .progress
            .reached(self.work.input.id(), partition, position);
        self.work.progress.count(counts);
        Ok(())
    }
}

async fn raise(work: &Work, partition: PartitionId) -> Result<Chain, Halt> {
    let raised = Arc::clone(&work.blueprint).raise(Some(partition)).await;
    raised.map_err(|error| match error.code {
        ErrorCode::Overloaded => Halt::Busy(error.message),
        ErrorCode::Internal => Halt::Fault(error.message),
        _ => Halt::Stop(error.message),
    })
}

fn fault(error: ReadFault) -> Failure {
    match error {
        ReadFault::OutOfRange { .. } | ReadFault::Lost { .. } | ReadFault::Damaged { .. } => {
            Failure::Lasting(error.to_string())
        }
        ReadFault::Store(_) | ReadFault::Closing => Failure::Storage(error.to_string()),
    }
}

fn appended(appends: &[Append]) -> usize {
    appends
        .iter()
        .map(|append| append.batch().bytes().len())
        .sum()
}

/// How many of the first batches are worth one call: small ones are put together.
fn merge(batches: &[Stored]) -> usize {
    let mut plain = 0;
    let fits = |stored: &&Stored| {
        plain += stored.batch.header().plain_len();
        plain <= PIPELINE_MERGE_BYTES
    };
    batches.iter().take_while(fits).count().max(1)
}

/// One commit being gathered.
struct Passing<'a> {
    work: &'a Work,
    bounds: Vec<Bounds>,
    output: Output,
}

impl Passing<'_> {
    /// Passes a group of batches, one behind the other, through the chain.
    async fn pass(
        &mut self,
        group: &[Stored],
        chain: &mut Chain,
        assembler: &mut Assembler,
    ) -> Result<(), Halt> {
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Ok(());
        };
        let records = &mut chain.flow.records;
        records.load_all(group.iter().map(|stored| &stored.batch), first.base)?;
        let done = self.output.position.0.saturating_sub(first.base.0) as usize;
        if done > 0 {
            records.remove(0, done);
        }
        self.output.counts.records_in += records.len() as u64;
        chain
            .run(first.batch.header().base_timestamp, &self.bounds)
            .await?;
        self.output.counts.records_out += chain.flow.records.len() as u64;
        self.apply(group, chain, assembler)?;
        self.output.position = last.end();
        Ok(())
    }

    /// Adds what came through to the commit.
    fn apply(
        &mut self,
        group: &[Stored],
        chain: &mut Chain,
        assembler: &mut Assembler,
    ) -> Result<(), Halt> {
        let records = &mut chain.flow.records;
        if !self.work.blueprint.routes() {
            self.check_kept(records)?;
        }
        let like = group
            .iter()
            .map(|stored| stored.batch.header().plain_len())
            .max();
        let form = Form {
            codec: group
                .first()
                .map_or_else(Default::default, |s| s.batch.header().codec),
            stamp: Stamp::default(),
            like: like.unwrap_or_default(),
        };
        // Only without a transform are they still the batch that was read, and then there is one
        // output, which may take smaller batches than the input.
        let fits = |batch: &Batch| {
            let taken = |to: &Target| to.topic.config().max_batch_bytes as usize;
            self.work
                .outputs
                .first()
                .is_some_and(|to| batch.bytes().len() <= taken(to))
        };
        let whole = match group {
            [Stored { batch, .. }] if records.is_whole() && fits(batch) => Some(batch),
            _ => None,
        };
        let outputs = &self.work.outputs;
        assembler.gather(records, outputs, form, whole, &mut self.output.appends)
    }

    /// A transform's records are checked when they are made; those that were kept, here.
    fn check_kept(&self, records: &Records) -> Result<(), Halt> {
        let most = self
            .bounds
            .first()
            .map_or(MAX_RECORD_BYTES, |output| output.max_record_bytes);
        if most >= MAX_RECORD_BYTES {
            return Ok(());
        }
        let Some(index) = (0..records.len()).find(|&index| records.size(index) > most) else {
            return Ok(());
        };
        let (size, offset) = (
            records.size(index),
            records.offset(index).unwrap_or_default(),
        );
        let output = self
            .work
            .outputs
            .first()
            .map_or("", |target| target.topic.name().as_str());
        Err(Halt::Stop(format!(
            "the record at offset {offset} has {size} bytes and topic {output} takes {most} at \
             most; raise its max_record_bytes, or filter such records out"
        )))
    }
}
