//! One run of a pipeline: a task for each input partition, and what ends them.

use std::sync::Arc;

use futures_util::future::{FutureExt, select_all};
use millstream_proto::TopicName;
use tokio::task::{JoinError, JoinSet};

use super::task::{Failure, Task, Work};
use crate::gate::Gate;

/// Runs the pipeline until its gate or the broker's closes, or a task fails. All tasks have ended
/// when it returns, so nothing of this run is committed any more.
pub(super) async fn run(work: Arc<Work>, gate: Gate, broker: Gate) -> Result<(), Failure> {
    let mut tasks = JoinSet::new();
    let mut started = 0;
    let mut changed = work.input.changed();
    let deleted = deletion(&work);
    tokio::pin!(deleted);
    let ended = loop {
        changed.mark_unchanged();
        // Partitions that were added meanwhile.
        for partition in work.input.partitions().iter().skip(started) {
            let task = Task::new(Arc::clone(&work), Arc::clone(partition));
            tasks.spawn(task.run(gate.clone()));
            started += 1;
        }
        tokio::select! {
            () = gate.closing() => break Ok(()),
            () = broker.closing() => break Ok(()),
            topic = &mut deleted => break Err(Failure::deleted(&topic)),
            Some(ended) = tasks.join_next() => match failure(ended) {
                Ok(()) => {}
                Err(failure) => break Err(failure),
            },
            _ = changed.changed() => {}
        }
    };
    gate.close();
    while let Some(ended) = tasks.join_next().await {
        // What failed first is told; the others were being stopped.
        if let Err(error) = failure(ended) {
            tracing::debug!(pipeline = %work.spec.name, "ended with: {error}");
        }
    }
    ended
}

/// Resolves when one of the topics is deleted that the pipeline reads or writes: one that is quiet
/// would find out with its next record only, and look well until then.
async fn deletion(work: &Work) -> TopicName {
    let topics =
        std::iter::once(&work.input).chain(work.outputs.iter().map(|output| &output.topic));
    let gone = topics.map(|topic| {
        async { topic.deletion().await }
            .map(|()| topic.name())
            .boxed()
    });
    let (name, _, _) = select_all(gone).await;
    name.clone()
}

fn failure(ended: Result<Result<(), Failure>, JoinError>) -> Result<(), Failure> {
    ended.unwrap_or_else(|error| {
        // A runtime that shuts down cancels its tasks; all else is a panic, which is ours.
        let text = match error.is_cancelled() {
            true => "the broker is shutting down".to_owned(),
            false => format!("a fault of the broker's own: {error}"),
        };
        Err(Failure::Storage(text))
    })
}
