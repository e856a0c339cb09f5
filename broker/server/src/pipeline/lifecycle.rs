//! Starting runs and ending them.
//!
//! Whoever starts or ends a run has the turn, so there is never more than one of a pipeline. A
//! run that fails by itself asks for the turn too, and finds out then whether it still matters.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use millstream_core::pipeline::Place;
use millstream_proto::pipeline::{PipelineSpec, PipelineState};
use millstream_proto::{ErrorCode, PartitionId, PipelineName, TopicName, WireError};
use millstream_store::WriteBatch;

use super::progress::Progress;
use super::row::DefinitionRow;
use super::task::{Failure, Work};
use super::{Entry, Pipelines, Run, closing, run};
use crate::gate::Gate;
use crate::guests::{Blueprint, Site, Target};
use crate::log::Topic;

/// What a pipeline is made of, found and loaded.
pub(super) struct Parts {
    pub(super) blueprint: Arc<Blueprint>,
    pub(super) input: Arc<Topic>,
    outputs: Vec<Target>,
}

impl Pipelines {
    /// Finds the topics and loads the plugins of a definition.
    pub(super) async fn find(&self, spec: &PipelineSpec) -> Result<Parts, WireError> {
        let directory = self.directory()?;
        let topic = |name: &TopicName| {
            let text = || {
                format!(
                    "pipeline {}: topic {name} does not exist; create it first",
                    spec.name
                )
            };
            let found = directory.topic(name).filter(|topic| !topic.is_deleted());
            found.ok_or_else(|| WireError::new(ErrorCode::UnknownTopic, text()))
        };
        let input = topic(&spec.input)?;
        let target = |(_, name): &(String, TopicName)| {
            Ok::<_, WireError>(Target {
                topic: topic(name)?,
                wanted: None,
            })
        };
        let outputs = spec.outputs.iter().map(target).collect::<Result<_, _>>()?;
        let names: Vec<_> = spec.outputs.iter().map(|(name, _)| name.clone()).collect();
        let site = Site {
            place: Place::Pipeline(&names),
            name: &format!("pipeline {}", spec.name),
            tenant: &spec.name.tenant(),
            input: &spec.input,
            refusal: ErrorCode::InvalidPipeline,
        };
        let guests = &self.context()?.guests;
        let blueprint = Blueprint::draw(guests, site, &spec.steps, &directory).await?;
        Ok(Parts {
            blueprint: Arc::new(blueprint),
            input,
            outputs,
        })
    }

    /// Starts an instance of each plugin once, so that whoever applies a pipeline hears of a
    /// configuration that a plugin refuses.
    pub(super) async fn try_out(&self, parts: &Parts) -> Result<(), WireError> {
        let raise = Arc::clone(&parts.blueprint).raise(Some(PartitionId(0)));
        let raise = async move { raise.await.map(drop) };
        self.context()?
            .guests
            .thread()
            .spawn(raise)
            .await
            .map_err(|_| closing())?
    }

    /// Starts a pipeline that is to run and does not. The caller has the turn.
    pub(super) async fn start(&self, name: &PipelineName) {
        let Some(Entry { row, progress, run }) = self.all().get(name).cloned() else {
            return;
        };
        if row.state != PipelineState::Running || run.is_some() {
            return;
        }
        let started = self.try_start(&row, progress).await;
        let mut all = self.all();
        let Some(entry) = all.get_mut(name) else {
            return;
        };
        match started {
            Ok(run) => entry.run = Some(run),
            Err(error) => {
                tracing::warn!(pipeline = %name, "does not start: {}", error.message);
                // Not written down: the next start of the broker tries again.
                entry.row.state = PipelineState::Failed(error.message);
            }
        }
    }

    async fn try_start(
        &self,
        row: &DefinitionRow,
        progress: Arc<Progress>,
    ) -> Result<Run, WireError> {
        let context = self.context()?;
        let Parts {
            blueprint,
            input,
            outputs,
        } = self.find(&row.spec).await?;
        let work = Arc::new(Work {
            id: row.id,
            spec: row.spec.clone(),
            owner: row.owner.clone(),
            input,
            outputs,
            blueprint,
            progress,
            store: Arc::clone(&context.store),
            directory: context.directory.clone(),
        });
        let (gate, broker) = (Gate::default(), context.gate.clone());
        let inside = gate.enter().ok_or_else(closing)?;
        // Shutdown waits for the commit that is under way.
        let inside_broker = broker.enter().ok_or_else(closing)?;
        let number = self.shared.runs.fetch_add(1, Ordering::Relaxed);
        let (pipelines, name, own) = (self.clone(), row.spec.name.clone(), gate.clone());
        context.guests.thread().spawn(async move {
            let ended = run::run(work, own, broker).await;
            drop((inside, inside_broker));
            if let Err(failure) = ended {
                pipelines.failed(&name, number, failure).await;
            }
        });
        Ok(Run { number, gate })
    }

    /// Ends the run of a pipeline and waits for it. The caller has the turn.
    pub(super) async fn halt(&self, name: &PipelineName) {
        let run = self.all().get_mut(name).and_then(|entry| entry.run.take());
        if let Some(Run { gate, .. }) = run {
            gate.close();
            gate.empty().await;
        }
    }

    /// A run has failed: remembers why, unless somebody has stopped or replaced it meanwhile.
    async fn failed(&self, name: &PipelineName, run: u64, failure: Failure) {
        let _turn = self.shared.turn.lock().await;
        let failed = {
            let mut all = self.all();
            let Some(entry) = all.get_mut(name) else {
                return;
            };
            if entry.run.as_ref().map(|run| run.number) != Some(run) {
                return;
            }
            entry.run = None;
            entry.row.state = PipelineState::Failed(failure.to_string());
            entry.row.clone()
        };
        tracing::warn!(pipeline = %name, "failed: {failure}");
        if let Failure::Lasting(_) = failure
            && let Err(error) = self.commit(&failed, WriteBatch::new()).await
        {
            tracing::error!(pipeline = %name, "its failure is not written down: {}", error.message);
        }
    }
}
