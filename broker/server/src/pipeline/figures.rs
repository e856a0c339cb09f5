//! How many pipelines there are and how far they are behind, for whoever watches the broker.

use std::sync::Arc;

use millstream_proto::pipeline::PipelineState;
use millstream_proto::{PipelineName, TopicName};

use super::Pipelines;
use super::progress::Progress;

/// One pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Figures {
    /// Its name.
    pub(crate) name: PipelineName,
    /// Its state in a word, one of [`Figures::STATES`].
    pub(crate) state: &'static str,
    /// Records of its input that it has not read yet.
    pub(crate) lag: u64,
}

impl Figures {
    /// Every state.
    pub(crate) const STATES: [&str; 3] = ["running", "paused", "failed"];
}

fn word(state: &PipelineState) -> &'static str {
    let [running, paused, failed] = Figures::STATES;
    match state {
        PipelineState::Running => running,
        PipelineState::Paused => paused,
        PipelineState::Failed(_) => failed,
    }
}

impl Pipelines {
    /// Every pipeline, in order.
    pub(crate) fn figures(&self) -> Vec<Figures> {
        // Definitions can be large, and the lock is one that requests wait for.
        let all: Vec<_> = self
            .all()
            .iter()
            .map(|(name, entry)| {
                let state = word(&entry.row.state);
                let input = entry.row.spec.input.clone();
                (name.clone(), state, input, Arc::clone(&entry.progress))
            })
            .collect();
        all.into_iter()
            .map(|(name, state, input, progress)| Figures {
                name,
                state,
                lag: self.lag(&input, &progress),
            })
            .collect()
    }

    /// Records behind a pipeline's positions; 0 when its input is gone.
    fn lag(&self, input: &TopicName, progress: &Progress) -> u64 {
        let Some(topic) = self.directory().ok().and_then(|d| d.topic(input)) else {
            return 0;
        };
        let behind = |partition: &Arc<crate::log::Partition>| {
            let position = progress.position(topic.id(), partition.id());
            let at = position
                .unwrap_or_else(|| partition.start())
                .max(partition.start());
            partition.end().0.saturating_sub(at.0)
        };
        topic.partitions().iter().map(behind).sum()
    }
}
