//! Writing down where partitions end.
//!
//! A start reads what lies behind the partitions' rows, which may be sealed by then, and in a
//! segment that cannot be read any more. Appends write a row for each mebibyte only: what goes on
//! slowly, or rests, is written down here.

use std::sync::Arc;

use millstream_store::key::partition::PartitionKey;
use millstream_store::{CommitError, Durability, Space, WriteBatch};
use tokio::sync::oneshot;

use super::topic::Topic;

/// Bytes charged for one row.
const ROW_BYTES: usize = 128;

/// Writes the rows of the topic's partitions that are behind. Returns how many were.
///
/// # Errors
/// When they were not committed, which costs the next start some time and nothing else.
pub async fn note_ends(topic: &Arc<Topic>) -> Result<usize, CommitError> {
    let partitions = topic.partitions();
    let behind = partitions.iter();
    let behind = behind.filter(|p| p.unreadable().is_none() && p.applied().uncounted > 0);
    let behind: Vec<_> = behind.collect();
    if behind.is_empty() {
        return Ok(0);
    }
    let permit = topic.store().reserve(behind.len() * ROW_BYTES).await?;
    let (sender, receiver) = oneshot::channel();
    {
        // Nobody waits for it, so it need not be synced by itself.
        let mut rows = WriteBatch::with_durability(Durability::Interval);
        // Under the locks of appenders, and in their order: rows are submitted in the order of the
        // changes they record.
        let mut locks: Vec<_> = behind.iter().map(|p| p.applied()).collect();
        for (partition, applied) in behind.iter().zip(&mut locks) {
            let key = PartitionKey {
                topic: topic.id(),
                partition: partition.id().0,
            };
            rows.put(Space::Partitions, key.encode(), applied.row().encode());
        }
        let done = move |result: Result<_, CommitError>| drop(sender.send(result.map(drop)));
        topic.store().submit(permit, rows, Box::new(done));
    }
    receiver.await.unwrap_or(Err(CommitError::Closed))?;
    Ok(behind.len())
}
