//! Pipelines: topic -> chain -> topics, exactly once.
//!
//! A definition and its positions are rows in the store; a running pipeline is a task for each
//! input partition on the guest thread (`task`), under one that starts and ends them (`run`).
//! Output and position are one commit, so a restart finds the one where the other left off.
//!
//! Deliberately so: the chains of output topics do not run (a pipeline's own chain is the place
//! for what must happen to its records), and a pipeline runs as whoever applied it last, whose
//! rights are asked for again before every commit.
//!
//! Absent: state, timers and joins.

mod figures;
mod lifecycle;
mod progress;
pub(crate) mod row;
mod run;
mod task;

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use millstream_core::pipeline::{Edge, loop_through};
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::limits::MAX_PAGE;
use millstream_proto::pipeline::{PipelineInfo, PipelineProgress, PipelineSpec, PipelineState};
use millstream_proto::{ErrorCode, PipelineName, PluginName, Principal, Tenant, WireError};
use millstream_store::{CommitError, Store, WriteBatch};

use crate::broker::Broker;
use crate::gate::Gate;
use crate::guests::{Directory, Guests};
use crate::limits::{MAX_CHAIN_BYTES, MAX_PIPELINES, PAGE_BYTES};
use crate::log::Topic;
pub(crate) use figures::Figures;
use progress::Progress;
pub use row::LoadError as PipelineError;
use row::{DefinitionRow, PositionKey};
use task::check_rights;

/// The pipelines of a broker. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Pipelines {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    context: OnceLock<Context>,
    /// One change at a time.
    turn: tokio::sync::Mutex<()>,
    all: Mutex<BTreeMap<PipelineName, Entry>>,
    runs: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pipelines").finish_non_exhaustive()
    }
}

/// What pipelines need of the broker.
pub(crate) struct Context {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) guests: Guests,
    pub(crate) gate: Gate,
    pub(crate) directory: Weak<dyn Directory>,
}

/// One pipeline. What is shown of it is durable, except that it failed.
#[derive(Clone)]
struct Entry {
    row: DefinitionRow,
    progress: Arc<Progress>,
    run: Option<Run>,
}

/// A run under way.
#[derive(Clone)]
struct Run {
    /// Tells it from earlier and later ones of the same pipeline.
    number: u64,
    /// Closing it ends the run; whoever runs is inside.
    gate: Gate,
}

fn unknown(name: &PipelineName) -> WireError {
    let text =
        format!("there is no pipeline {name}; `millstream pipeline list` shows those there are");
    WireError::new(ErrorCode::UnknownPipeline, text)
}

fn closing() -> WireError {
    WireError::new(ErrorCode::ShuttingDown, "the broker is shutting down")
}

fn stopped(name: &PipelineName, error: &CommitError) -> WireError {
    let code = match error {
        CommitError::Closed => ErrorCode::ShuttingDown,
        CommitError::Refused(_) => ErrorCode::Internal,
        _ => ErrorCode::StorageStopped,
    };
    WireError::new(code, format!("pipeline {name}: {error}"))
}

impl Pipelines {
    /// Loads the pipelines and starts those that are to run. One that cannot start is shown as
    /// failed and holds nothing else up. To be called once, after topics and plugins are there.
    ///
    /// # Errors
    /// When the store cannot be read or holds what cannot be a pipeline.
    pub async fn resume(&self, broker: &Arc<Broker>) -> Result<(), PipelineError> {
        let directory: Arc<dyn Directory> = broker.clone();
        let context = Context {
            store: Arc::clone(&broker.store),
            guests: broker.guests.clone(),
            gate: broker.gate.clone(),
            directory: Arc::downgrade(&directory),
        };
        self.open(context).await
    }

    /// As [`Pipelines::resume`], with what is needed of the broker.
    pub(crate) async fn open(&self, context: Context) -> Result<(), PipelineError> {
        let store = Arc::clone(&context.store);
        let loaded = context
            .guests
            .thread()
            .spawn_blocking(move || row::load(&*store.snapshot()?));
        // It is lost only with the guest thread, and then there is nothing to run.
        let Ok(loaded) = loaded.await else {
            return Ok(());
        };
        let row::Rows {
            definitions,
            positions,
        } = loaded?;
        if self.shared.context.set(context).is_err() {
            return Ok(());
        }
        for row in definitions {
            let progress = Progress::default();
            let own = positions.iter().filter(|(key, _)| key.pipeline == row.id);
            own.for_each(|(key, at)| progress.reached(key.topic, key.partition, *at));
            let name = row.spec.name.clone();
            let progress = Arc::new(progress);
            self.all().insert(
                name,
                Entry {
                    row,
                    progress,
                    run: None,
                },
            );
        }
        let names: Vec<_> = self.all().keys().cloned().collect();
        let _turn = self.shared.turn.lock().await;
        for name in names {
            self.start(&name).await;
        }
        Ok(())
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<PipelineName, Entry>> {
        // Valid after every statement.
        self.shared
            .all
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, name: &PipelineName) -> Result<Entry, WireError> {
        self.all().get(name).cloned().ok_or_else(|| unknown(name))
    }

    fn context(&self) -> Result<&Context, WireError> {
        self.shared.context.get().ok_or_else(closing)
    }

    fn directory(&self) -> Result<Arc<dyn Directory>, WireError> {
        self.context()?.directory.upgrade().ok_or_else(closing)
    }

    fn allow(
        &self,
        who: &Principal,
        operation: Operation,
        name: &PipelineName,
    ) -> Result<(), WireError> {
        self.directory()?
            .allow(who, operation, ResourceKind::Pipeline, name.as_str())
    }

    /// Creates a pipeline, or replaces its definition, as `who`. Positions in partitions that it
    /// has read stay. A pipeline that was paused stays paused; any other runs.
    ///
    /// # Errors
    /// `NotAuthorized` when `who` may not manage the pipeline, consume the input, produce to an
    /// output or a dead-letter topic, or attach a plugin; `InvalidPipeline`, `UnknownTopic` or
    /// `UnknownPlugin` when the definition does not hold together or a plugin does not start. The
    /// pipeline is as it was then.
    pub async fn apply(
        &self,
        who: &Principal,
        spec: PipelineSpec,
    ) -> Result<PipelineInfo, WireError> {
        self.allow(who, Operation::Manage, &spec.name)?;
        check_rights(&*self.directory()?, who, &spec)?;
        check_spec(&spec)?;
        let parts = self.find(&spec).await?;
        let spec = PipelineSpec {
            steps: parts.blueprint.uses(),
            ..spec
        };
        self.try_out(&parts).await?;
        let _turn = self.shared.turn.lock().await;
        let name = spec.name.clone();
        self.check_loops(&spec)?;
        let before = self.all().get(&name).cloned();
        let (id, state, progress) = match &before {
            Some(Entry { row, progress, .. }) => {
                (row.id, after_apply(&row.state), Arc::clone(progress))
            }
            None => (self.next_id()?, PipelineState::Running, Arc::default()),
        };
        self.halt(&name).await;
        let row = DefinitionRow {
            id,
            spec,
            owner: who.clone(),
            state,
        };
        if let Err(error) = self.commit_new(&row, &progress, &parts.input).await {
            // It goes on as it was.
            self.start(&name).await;
            return Err(error);
        }
        self.all().insert(
            name.clone(),
            Entry {
                row,
                progress,
                run: None,
            },
        );
        self.start(&name).await;
        drop(_turn);
        tracing::info!(pipeline = %name, by = %who, "applied");
        Ok(self.info(&self.entry(&name)?))
    }

    /// Whether records would come back to the pipeline's input through others.
    fn check_loops(&self, spec: &PipelineSpec) -> Result<(), WireError> {
        let others: Vec<Edge> = self
            .all()
            .iter()
            .filter(|(name, _)| **name != spec.name)
            .map(|(_, entry)| Edge::of(&entry.row.spec))
            .collect();
        let Some(way) = loop_through(&Edge::of(spec), &others) else {
            return Ok(());
        };
        let own = way
            .iter()
            .all(|topic| topic.tenant_str() == spec.name.tenant_str());
        // What other tenants' pipelines do is not for this one to know.
        let through = if own {
            way.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" -> ")
        } else {
            "other pipelines".to_owned()
        };
        let text = format!(
            "records of pipeline {} would come back to its input {} by way of {through}, for ever",
            spec.name, spec.input
        );
        Err(WireError::new(ErrorCode::InvalidPipeline, text))
    }

    fn next_id(&self) -> Result<u32, WireError> {
        let all = self.all();
        if all.len() >= MAX_PIPELINES {
            let text = format!(
                "the broker has {MAX_PIPELINES} pipelines, and that is the limit; delete some"
            );
            return Err(WireError::new(ErrorCode::InvalidPipeline, text));
        }
        // A deleted pipeline's positions are deleted with it, so its number is free.
        let greatest = all.values().map(|entry| entry.row.id).max();
        Ok(greatest.map_or(1, |id| id.wrapping_add(1)))
    }

    /// Commits a definition, and where it begins in partitions that it has not read yet.
    async fn commit_new(
        &self,
        row: &DefinitionRow,
        progress: &Progress,
        input: &Topic,
    ) -> Result<(), WireError> {
        let mut begin = Vec::new();
        for partition in input.partitions().iter() {
            if progress.position(input.id(), partition.id()).is_none() {
                let at = if row.spec.from_latest {
                    partition.end()
                } else {
                    partition.start()
                };
                begin.push((partition.id(), at));
            }
        }
        let mut batch = WriteBatch::new();
        for &(partition, at) in &begin {
            let key = PositionKey {
                pipeline: row.id,
                topic: input.id(),
                partition,
            };
            key.put(at, &mut batch);
        }
        self.commit(row, batch).await?;
        for (partition, at) in begin {
            progress.reached(input.id(), partition, at);
        }
        Ok(())
    }

    async fn commit(&self, row: &DefinitionRow, mut batch: WriteBatch) -> Result<(), WireError> {
        let name = &row.spec.name;
        let unfit = |e: postcard::Error| {
            WireError::new(ErrorCode::Internal, format!("pipeline {name}: {e}"))
        };
        row.put(&mut batch).map_err(unfit)?;
        let committed = self.context()?.store.commit(batch).await;
        committed.map(|_| ()).map_err(|error| stopped(name, &error))
    }

    /// Ends a pipeline's run until it is resumed.
    ///
    /// # Errors
    /// `NotAuthorized`, `UnknownPipeline`, and the store's.
    pub async fn pause(
        &self,
        who: &Principal,
        name: &PipelineName,
    ) -> Result<PipelineInfo, WireError> {
        self.allow(who, Operation::Manage, name)?;
        self.change(name, PipelineState::Paused).await?;
        tracing::info!(pipeline = %name, by = %who, "paused");
        Ok(self.info(&self.entry(name)?))
    }

    /// Runs a pipeline again after a pause or a failure, from where it was, as its owner.
    ///
    /// # Errors
    /// `NotAuthorized`, `UnknownPipeline`, the store's, and what prevents it from running.
    pub async fn resume_one(
        &self,
        who: &Principal,
        name: &PipelineName,
    ) -> Result<PipelineInfo, WireError> {
        self.allow(who, Operation::Manage, name)?;
        let row = self.entry(name)?.row;
        check_rights(&*self.directory()?, &row.owner, &row.spec)?;
        let parts = self.find(&row.spec).await?;
        self.try_out(&parts).await?;
        self.change(name, PipelineState::Running).await?;
        tracing::info!(pipeline = %name, by = %who, "resumed");
        Ok(self.info(&self.entry(name)?))
    }

    async fn change(&self, name: &PipelineName, state: PipelineState) -> Result<(), WireError> {
        let _turn = self.shared.turn.lock().await;
        let row = self.entry(name)?.row;
        if row.state == state && (state == PipelineState::Paused || self.is_running(name)) {
            return Ok(());
        }
        self.halt(name).await;
        let row = DefinitionRow { state, ..row };
        let committed = self.commit(&row, WriteBatch::new()).await;
        if committed.is_ok()
            && let Some(entry) = self.all().get_mut(name)
        {
            entry.row = row;
        }
        self.start(name).await;
        committed
    }

    fn is_running(&self, name: &PipelineName) -> bool {
        self.all()
            .get(name)
            .is_some_and(|entry| entry.run.is_some())
    }

    /// Deletes a pipeline with its positions. What it wrote stays.
    ///
    /// # Errors
    /// `NotAuthorized`, `UnknownPipeline`, and the store's.
    pub async fn delete(&self, who: &Principal, name: &PipelineName) -> Result<(), WireError> {
        self.allow(who, Operation::Manage, name)?;
        let _turn = self.shared.turn.lock().await;
        let row = self.entry(name)?.row;
        self.halt(name).await;
        let mut batch = WriteBatch::new();
        row::delete(&row, &mut batch);
        if let Err(error) = self.context()?.store.commit(batch).await {
            self.start(name).await;
            return Err(stopped(name, &error));
        }
        self.all().remove(name);
        tracing::info!(pipeline = %name, by = %who, "deleted");
        Ok(())
    }

    /// One pipeline as it is now.
    ///
    /// # Errors
    /// `NotAuthorized`, `UnknownPipeline`.
    pub fn show(&self, who: &Principal, name: &PipelineName) -> Result<PipelineInfo, WireError> {
        self.allow(who, Operation::Describe, name)?;
        Ok(self.info(&self.entry(name)?))
    }

    /// The pipelines that `who` may describe, in order, behind `after`: as many as fit an answer.
    ///
    /// # Errors
    /// When the broker is shutting down.
    pub fn list(
        &self,
        who: &Principal,
        tenant: Option<&Tenant>,
        after: Option<&PipelineName>,
    ) -> Result<Vec<PipelineInfo>, WireError> {
        let directory = self.directory()?;
        let visible = |name: &PipelineName| {
            let kind = ResourceKind::Pipeline;
            tenant.is_none_or(|tenant| name.tenant_str() == tenant.as_str())
                && directory
                    .allow(who, Operation::Describe, kind, name.as_str())
                    .is_ok()
        };
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries: Vec<_> = {
            let all = self.all();
            let behind = all.range::<PipelineName, _>((from, Bound::Unbounded));
            // No more than an answer holds: together the definitions may be large.
            let mut bytes = 0;
            let fits = |(_, entry): &(&PipelineName, &Entry)| {
                let first = bytes == 0;
                bytes += postcard::to_allocvec(&entry.row.spec).map_or(0, |spec| spec.len());
                first || bytes <= PAGE_BYTES
            };
            behind
                .filter(|(name, _)| visible(name))
                .take(MAX_PAGE)
                .take_while(fits)
                .map(|(_, e)| e.clone())
                .collect()
        };
        let (mut infos, mut bytes) = (Vec::new(), 0);
        for entry in &entries {
            let info = self.info(entry);
            bytes += postcard::to_allocvec(&info).map_or(0, |encoded| encoded.len());
            if bytes > PAGE_BYTES && !infos.is_empty() {
                break;
            }
            infos.push(info);
        }
        Ok(infos)
    }

    /// A pipeline that uses this plugin, or this version of it: it cannot be deleted then.
    #[must_use]
    pub fn user_of(&self, plugin: &PluginName, version: Option<u32>) -> Option<PipelineName> {
        let uses = |entry: &Entry| {
            entry.row.spec.steps.iter().any(|step| {
                step.plugin == *plugin && (version.is_none() || step.version == version)
            })
        };
        self.all()
            .iter()
            .find(|(_, entry)| uses(entry))
            .map(|(name, _)| name.clone())
    }

    fn info(&self, entry: &Entry) -> PipelineInfo {
        let Entry { row, progress, .. } = entry;
        let counts = progress.counts();
        let input = self.directory().ok().and_then(|d| d.topic(&row.spec.input));
        let partitions = input.as_ref().map(|topic| (topic.id(), topic.partitions()));
        let progress_of = |(topic, partitions): (u32, Arc<[Arc<crate::log::Partition>]>)| {
            let one = |partition: &Arc<crate::log::Partition>| {
                let position = progress.position(topic, partition.id());
                PipelineProgress {
                    partition: partition.id(),
                    position: position.unwrap_or_else(|| partition.start()),
                    end: partition.end(),
                }
            };
            partitions.iter().map(one).collect()
        };
        PipelineInfo {
            spec: row.spec.clone(),
            owner: row.owner.clone(),
            state: row.state.clone(),
            progress: partitions.map_or_else(Vec::new, progress_of),
            records_in: counts.records_in,
            records_out: counts.records_out,
            dead_letters: counts.dead_letters,
            skipped: counts.skipped,
        }
    }
}

fn after_apply(state: &PipelineState) -> PipelineState {
    match state {
        PipelineState::Paused => PipelineState::Paused,
        PipelineState::Running | PipelineState::Failed(_) => PipelineState::Running,
    }
}

fn check_spec(spec: &PipelineSpec) -> Result<(), WireError> {
    let invalid = |text: String| WireError::new(ErrorCode::InvalidPipeline, text);
    spec.check().map_err(invalid)?;
    // A description must fit one answer, with the progress of every partition.
    let bytes = postcard::to_allocvec(spec).map_or(usize::MAX, |encoded| encoded.len());
    if bytes > MAX_CHAIN_BYTES {
        return Err(invalid(format!(
            "pipeline {} with its configuration takes {bytes} bytes; at most {MAX_CHAIN_BYTES} \
             are allowed",
            spec.name
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
