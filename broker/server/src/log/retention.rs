//! Retention: the oldest batches go, a few megabytes to a commit.
//!
//! redb reads what it deletes, so a step is kept small; the pages it frees are
//! used again by the next appends. A batch goes as a whole: when the partition
//! stays at or above its byte limit without it, or when its newest record is too old.

use std::sync::Arc;

use millstream_proto::topic::TopicConfig;
use millstream_proto::{Batch, Offset};
use millstream_store::key::lost;
use millstream_store::key::partition::PartitionKey;
use millstream_store::key::record::RecordKey;
use millstream_store::{CommitError, Space, WriteBatch};
use tokio::sync::oneshot;

use super::partition::Partition;
use super::read::ReadFault;
use super::topic::Topic;
use crate::limits::RETENTION_STEP_BYTES;

/// Why retention did not get on with a partition.
#[derive(Debug, thiserror::Error)]
pub enum RetainError {
    /// Its oldest batches cannot be read.
    #[error("{0}")]
    Read(#[from] ReadFault),
    /// The removal was not committed.
    #[error("{0}")]
    Commit(#[from] CommitError),
}

/// Batches at the beginning of a partition that are to go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Cut {
    /// First offset that stays.
    start: Offset,
    bytes: u64,
    /// Whether it goes past something that was lost, which takes no room.
    lost: bool,
}

/// Removes what the topic's settings do not keep. Returns whether anything was removed.
///
/// # Errors
/// See [`RetainError`], the first there was: a partition that cannot be read does not keep the
/// others from being looked at. What was removed stays removed.
pub async fn retain(topic: &Arc<Topic>, now_ms: i64) -> Result<bool, RetainError> {
    let config = topic.config();
    let (mut any, mut first) = (false, None);
    for partition in topic.partitions().iter() {
        if partition.unreadable().is_some() {
            continue;
        }
        match trim(topic, partition, &config, now_ms).await {
            Ok(removed) => any |= removed,
            Err(error) => drop(first.get_or_insert(error)),
        }
    }
    first.map_or(Ok(any), Err)
}

async fn trim(
    topic: &Arc<Topic>,
    partition: &Arc<Partition>,
    config: &Arc<TopicConfig>,
    now_ms: i64,
) -> Result<bool, RetainError> {
    let mut any = false;
    while let Some(cut) = find(partition, config, now_ms).await? {
        remove(topic, partition, cut).await?;
        any = true;
    }
    Ok(any)
}

fn over_bytes(config: &TopicConfig, bytes: u64) -> u64 {
    if config.retention_bytes == 0 {
        0
    } else {
        bytes.saturating_sub(config.retention_bytes)
    }
}

async fn find(
    partition: &Arc<Partition>,
    config: &Arc<TopicConfig>,
    now_ms: i64,
) -> Result<Option<Cut>, ReadFault> {
    let over = over_bytes(config, partition.bytes());
    if (over == 0 && config.retention_ms == 0) || partition.start() == partition.end() {
        return Ok(None);
    }
    let (partition, config) = (Arc::clone(partition), Arc::clone(config));
    let scan = move || {
        let expired = |batch: &Batch| {
            let limit = i64::try_from(config.retention_ms).unwrap_or(i64::MAX);
            config.retention_ms != 0
                && newest(batch).is_some_and(|t| now_ms.saturating_sub(t) > limit)
        };
        let stays = |removed: u64, batch: &Batch| {
            removed + batch.bytes().len() as u64 > over && !expired(batch)
        };
        let mut cut = Cut::default();
        // Mostly nothing has to go, and the oldest batch alone shows that.
        let first = match partition.read_store(partition.start(), 1) {
            Err(ReadFault::Lost { next, .. }) => {
                return Ok(Some(Cut {
                    start: next,
                    bytes: 0,
                    lost: true,
                }));
            }
            first => first?,
        };
        if first.first().is_none_or(|stored| stays(0, &stored.batch)) {
            return Ok(None);
        }
        for stored in partition.read_store(partition.start(), RETENTION_STEP_BYTES as usize)? {
            let bytes = stored.batch.bytes().len() as u64;
            if stays(cut.bytes, &stored.batch) {
                break;
            }
            cut = Cut {
                start: stored.end(),
                bytes: cut.bytes + bytes,
                lost: false,
            };
        }
        Ok((cut.bytes > 0).then_some(cut))
    };
    tokio::task::spawn_blocking(scan)
        .await
        .unwrap_or(Err(ReadFault::Closing))
}

/// The newest timestamp of a batch; `None` when it cannot be looked into.
fn newest(batch: &Batch) -> Option<i64> {
    if !batch.header().flags.timestamps {
        return Some(batch.header().base_timestamp);
    }
    let body = batch.body().ok()?;
    body.view().ok()?.records().map(|r| r.timestamp).max()
}

async fn remove(
    topic: &Arc<Topic>,
    partition: &Arc<Partition>,
    cut: Cut,
) -> Result<(), RetainError> {
    let (topic_id, id) = (partition.topic_id(), partition.id().0);
    let key = |base_offset| {
        RecordKey {
            topic: topic_id,
            partition: id,
            base_offset,
        }
        .encode()
    };
    let mut rows = WriteBatch::new();
    rows.delete_range(Space::Records, key(0)..key(cut.start.0));
    if cut.lost {
        let passed = lost::range(topic_id, id, 0..cut.start.0);
        rows.delete_range(Space::Partitions, passed);
    }
    let row_key = PartitionKey {
        topic: topic_id,
        partition: id,
    }
    .encode();
    let permit = partition.store.reserve(rows.byte_len() + 256).await?;
    let (sender, receiver) = oneshot::channel();
    {
        // Under the lock of appenders: rows are submitted in the order of the changes they record.
        let mut applied = partition.applied();
        applied.start = cut.start.0;
        applied.bytes = applied.bytes.saturating_sub(cut.bytes);
        rows.put(Space::Partitions, row_key, applied.row().encode());
        let trimmed = Arc::clone(partition);
        let done = move |result: Result<_, CommitError>| {
            let outcome = result.map(|_| trimmed.trimmed(cut.start.0, cut.bytes));
            drop(sender.send(outcome));
        };
        partition.store.submit(permit, rows, Box::new(done));
    }
    receiver.await.unwrap_or(Err(CommitError::Closed))?;
    topic.notify();
    Ok(())
}
