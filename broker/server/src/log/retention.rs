//! Retention: the oldest batches go, in steps.
//!
//! A batch goes as a whole: when the partition stays at or above its byte limit without it, or when
//! its newest record is too old. By size nothing of it is read, and where the store can tell of
//! batches together only, they go together or stay; by age its header is read, and all of it only if
//! its records have timestamps of their own. A step is as large as the store can remove while it
//! reads a few megabytes, so it does not hold up appending.

use std::ops::Range;
use std::sync::Arc;

use millstream_proto::batch::{BatchHeader, HEADER_LEN};
use millstream_proto::topic::TopicConfig;
use millstream_proto::{Batch, BatchError, Offset};
use millstream_store::key::lost;
use millstream_store::key::partition::PartitionKey;
use millstream_store::key::record::{self, RecordKey};
use millstream_store::{CommitError, Key, ScanLimit, Snapshot, Space, WriteBatch};
use tokio::sync::oneshot;

use super::partition::Partition;
use super::read::ReadFault;
use super::topic::Topic;
use crate::limits::{
    RETENTION_LOOK_HEADERS, RETENTION_LOOK_ROWS, RETENTION_STEP_BYTES, RETENTION_STEP_ROWS,
};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// First offset that stays.
    start: Offset,
    bytes: u64,
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
    let (partition, retention_ms) = (Arc::clone(partition), config.retention_ms);
    let look = move || {
        let log = Oldest::of(&partition)?;
        if let Some(lost) = log.lost_at_start()? {
            return Ok(Some(lost));
        }
        let by_size = match over {
            0 => None,
            over => log.over(over)?,
        };
        match retention_ms {
            0 => Ok(by_size),
            _ if by_size.is_some() => Ok(by_size),
            limit => log.expired(now_ms, i64::try_from(limit).unwrap_or(i64::MAX)),
        }
    };
    tokio::task::spawn_blocking(look)
        .await
        .unwrap_or(Err(ReadFault::Closing))
}

/// The beginning of a partition at one moment. Reading it blocks.
struct Oldest<'a> {
    partition: &'a Partition,
    snapshot: Box<dyn Snapshot>,
    start: Offset,
    end: Offset,
    /// The keys of all batches before the end.
    keys: Range<Key>,
}

/// A batch, or several that the store tells of together.
struct Lot {
    key: Key,
    base: Offset,
    bytes: u64,
    /// If it was asked for; then it is one batch.
    header: Option<BatchHeader>,
}

/// The first lots, and whether there are more or something that cannot be read.
struct Lots {
    lots: Vec<Lot>,
    more: bool,
}

impl<'a> Oldest<'a> {
    fn of(partition: &'a Partition) -> Result<Self, ReadFault> {
        // The end first: whatever lies before it is in every later snapshot.
        let (start, end) = (partition.start(), partition.end());
        let keys = record::range(partition.topic_id(), partition.id().0, 0..end.0);
        Ok(Self {
            partition,
            snapshot: partition.store.snapshot()?,
            start,
            end,
            keys,
        })
    }

    fn damaged(&self, offset: Offset, why: &BatchError) -> ReadFault {
        ReadFault::Damaged {
            partition: self.partition.id(),
            offset,
            why: why.to_string(),
        }
    }

    /// The keys of what one step may remove, the first batch in any case.
    fn step(&self, first: &Lot) -> Result<Range<Key>, ReadFault> {
        let limit = ScanLimit {
            rows: RETENTION_STEP_ROWS,
            bytes: RETENTION_STEP_BYTES,
        };
        let range = &self.keys.start[..]..&self.keys.end[..];
        let end = self.snapshot.removable(Space::Records, range, limit)?;
        let behind_first = first.key.clone().push_bytes(&[0]);
        Ok(self.keys.start.clone()..end.unwrap_or_default().max(behind_first))
    }

    fn first(&self, headers: bool) -> Result<Option<Lot>, ReadFault> {
        let found = self.lots(&self.keys, ScanLimit::ONE, headers)?;
        Ok(found.lots.into_iter().next())
    }

    fn lots(&self, keys: &Range<Key>, limit: ScanLimit, headers: bool) -> Result<Lots, ReadFault> {
        let head = if headers { HEADER_LEN } else { 0 };
        let range = &keys.start[..]..&keys.end[..];
        let page = self.snapshot.heads(Space::Records, range, limit, head)?;
        let mut lots = Vec::with_capacity(page.heads.len());
        for head in page.heads {
            let key = RecordKey::decode(&head.key).map_err(|e| ReadFault::Damaged {
                partition: self.partition.id(),
                offset: self.start,
                why: e.to_string(),
            })?;
            let base = Offset(key.base_offset);
            let header = headers.then(|| BatchHeader::decode(&head.head));
            let header = header.transpose().map_err(|e| self.damaged(base, &e))?;
            lots.push(Lot {
                bytes: head
                    .bytes
                    .saturating_sub((head.rows * head.key.len()) as u64),
                key: head.key,
                base,
                header,
            });
        }
        Ok(Lots {
            lots,
            more: page.more,
        })
    }

    /// That what the partition begins with was lost and given up, which takes no room.
    fn lost_at_start(&self) -> Result<Option<Cut>, ReadFault> {
        if self.first(false)?.is_some_and(|lot| lot.base <= self.start) {
            return Ok(None);
        }
        match self.partition.gone_or_damaged(&*self.snapshot, self.start) {
            Err(ReadFault::Lost { next, .. }) => Ok(Some(Cut {
                start: next,
                bytes: 0,
            })),
            Err(fault) => Err(fault),
            Ok(_) => Ok(None),
        }
    }

    /// What goes because the partition is `over` bytes larger than it is to be.
    fn over(&self, over: u64) -> Result<Option<Cut>, ReadFault> {
        // Mostly nothing has to go, and the oldest batch alone shows that.
        let first = self.first(false)?;
        let Some(first) = first.filter(|first| first.bytes <= over) else {
            return Ok(None);
        };
        let fitting = |lots: &[Lot]| {
            let mut removed = 0;
            let fits = |lot: &&Lot| {
                removed += lot.bytes;
                removed <= over
            };
            lots.iter().take_while(fits).count()
        };
        let step = self.step(&first)?;
        let found = self.lots(&step, ScanLimit::rows(RETENTION_LOOK_ROWS), false)?;
        if let Some(cut) = self.cut(&step, &found, fitting(&found.lots)) {
            return Ok(Some(cut));
        }
        // What follows the first cannot be read: its header tells where it ends.
        let found = self.lots(&step, ScanLimit::rows(RETENTION_LOOK_HEADERS), true)?;
        Ok(self.cut(&step, &found, fitting(&found.lots)))
    }

    /// What goes because its newest record was older than `limit` milliseconds at `now`.
    fn expired(&self, now: i64, limit: i64) -> Result<Option<Cut>, ReadFault> {
        let is_old = |timestamp: i64| now.saturating_sub(timestamp) > limit;
        let expired = |lot: &Lot| match &lot.header {
            // The first record's is among them.
            Some(header) if is_old(header.base_timestamp) => match header.flags.timestamps {
                true => Ok(self.newest(lot)?.is_some_and(is_old)),
                false => Ok(true),
            },
            _ => Ok::<_, ReadFault>(false),
        };
        let first = match self.first(true)? {
            Some(first) if expired(&first)? => first,
            _ => return Ok(None),
        };
        let step = self.step(&first)?;
        let found = self.lots(&step, ScanLimit::rows(RETENTION_LOOK_HEADERS), true)?;
        let mut count = 0;
        for lot in &found.lots {
            if !expired(lot)? {
                break;
            }
            count += 1;
        }
        Ok(self.cut(&step, &found, count))
    }

    /// The newest timestamp of a batch whose records have their own; `None` when it cannot be
    /// looked into.
    fn newest(&self, lot: &Lot) -> Result<Option<i64>, ReadFault> {
        let value = self.snapshot.get(Space::Records, &lot.key)?;
        let batch = Batch::check(value.unwrap_or_default());
        let batch = batch.map_err(|e| self.damaged(lot.base, &e))?;
        Ok(newest(&batch))
    }

    /// Where what follows the first `count` of the lots found in `step` begins, if that is known.
    fn border(&self, step: &Range<Key>, found: &Lots, count: usize) -> Option<Offset> {
        if let Some(next) = found.lots.get(count) {
            return Some(next.base);
        }
        if !found.more {
            let rest = step.end.clone()..self.keys.end.clone();
            // What cannot be read is told of when it is its turn.
            if let Ok(next) = self.lots(&rest, ScanLimit::ONE, false) {
                return Some(next.lots.first().map_or(self.end, |next| next.base));
            }
        }
        let last = found.lots.get(count.checked_sub(1)?)?;
        let header = last.header.as_ref()?;
        Some(last.base.plus(u64::from(header.count)))
    }

    /// The first `count` of the lots found in `step`, as far as it is known where the rest begins.
    fn cut(&self, step: &Range<Key>, found: &Lots, count: usize) -> Option<Cut> {
        let (count, start) = match (self.border(step, found, count), count) {
            (_, 0) => return None,
            (Some(border), count) => (count, border),
            (None, count) => (count - 1, found.lots[count - 1].base),
        };
        let bytes = found.lots[..count].iter().map(|lot| lot.bytes).sum();
        (count > 0).then_some(Cut { start, bytes })
    }
}

/// The newest timestamp of a batch; `None` when it cannot be looked into.
fn newest(batch: &Batch) -> Option<i64> {
    let body = batch.body().ok()?;
    body.view().ok()?.records().map(|r| r.timestamp).max()
}

async fn remove(
    topic: &Arc<Topic>,
    partition: &Arc<Partition>,
    cut: Cut,
) -> Result<(), RetainError> {
    let (topic_id, id) = (partition.topic_id(), partition.id().0);
    let mut rows = WriteBatch::new();
    rows.delete_range(Space::Records, record::range(topic_id, id, 0..cut.start.0));
    // What was lost among them is not to be passed over any more.
    let passed = lost::range(topic_id, id, 0..cut.start.0);
    rows.delete_range(Space::Partitions, passed);
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
