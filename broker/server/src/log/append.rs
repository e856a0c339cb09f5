//! Appending: assign offsets, put everything into one write batch, submit.

use std::sync::Arc;

use millstream_proto::message::Placement;
use millstream_proto::topic::Durability as Wanted;
use millstream_proto::{Batch, ErrorCode, Offset, PartitionId, TopicName};
use millstream_store::key::partition::PartitionKey;
use millstream_store::key::record::RecordKey;
use millstream_store::{CommitError, Durability, Permit, Space, Store, WriteBatch};
use tokio::sync::oneshot;

use super::partition::{Partition, Stored};
use super::topic::Topic;

/// A batch on its way to a partition that exists.
#[derive(Clone, Debug)]
pub struct Append {
    topic: Arc<Topic>,
    partition: Arc<Partition>,
    batch: Batch,
}

impl Append {
    /// To this partition of the topic; `None` when the topic has none of that number.
    #[must_use]
    pub fn to(topic: &Arc<Topic>, partition: PartitionId, batch: Batch) -> Option<Self> {
        let partition = topic.partition(partition)?;
        Some(Self {
            topic: Arc::clone(topic),
            partition,
            batch,
        })
    }

    /// The topic it goes to.
    #[must_use]
    pub fn topic(&self) -> &Arc<Topic> {
        &self.topic
    }

    /// The partition it goes to.
    #[must_use]
    pub fn partition(&self) -> PartitionId {
        self.partition.id()
    }

    /// The batch as it will lie on disk.
    #[must_use]
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    fn place(&self) -> (u32, PartitionId) {
        (self.partition.topic_id(), self.partition.id())
    }
}

/// How durable a commit of these must be before it counts: as its most
/// demanding topic asks.
#[must_use]
pub fn durability(appends: &[Append]) -> Durability {
    let relaxed = |a: &Append| a.topic.config().durability == Wanted::Interval;
    if !appends.is_empty() && appends.iter().all(relaxed) {
        Durability::Interval
    } else {
        Durability::Sync
    }
}

/// Why records were not appended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// The store does not take them.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// Nobody knows where the partition ends, so an append might take the place of records that
    /// are there. Nothing was written.
    #[error("not stored: topic {topic}, partition {partition} cannot be appended to: {why}")]
    Unreadable {
        /// The topic.
        topic: TopicName,
        /// The partition.
        partition: PartitionId,
        /// What could not be read, and what to do.
        why: String,
    },
}

impl AppendError {
    /// What a peer is told it is.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Commit(CommitError::Closed) => ErrorCode::ShuttingDown,
            Self::Commit(CommitError::Refused(_)) => ErrorCode::Internal,
            _ => ErrorCode::StorageStopped,
        }
    }
}

/// Room in the shard's queue.
#[derive(Debug)]
pub struct Ticket {
    permit: Permit,
}

/// Bytes charged for the rows that an append adds to each batch.
const ROW_BYTES: usize = 256;

impl Ticket {
    /// Waits for room in the shard's queue for `appends` and `rows`, and for the store to have
    /// room for more records if there are any. This is where a slow disk holds producers back.
    ///
    /// # Errors
    /// When the shard has stopped or closed, or nobody knows where one of the partitions ends.
    pub async fn reserve(
        store: &dyn Store,
        appends: &[Append],
        rows: &WriteBatch,
    ) -> Result<Self, AppendError> {
        let shut = |a: &Append| {
            let why = a.partition.unreadable()?.to_owned();
            Some(AppendError::Unreadable {
                topic: a.topic.name().clone(),
                partition: a.partition(),
                why,
            })
        };
        if let Some(error) = appends.iter().find_map(shut) {
            return Err(error);
        }
        let batches: usize = appends
            .iter()
            .map(|a| a.batch.bytes().len() + ROW_BYTES)
            .sum();
        let bytes = batches + rows.byte_len() + ROW_BYTES;
        // What appends nothing may be what makes room for what does.
        let permit = if appends.is_empty() {
            match store.try_reserve(bytes)? {
                Some(permit) => permit,
                None => store.reserve(bytes).await?,
            }
        } else {
            match store.try_reserve_append(bytes)? {
                Some(permit) => permit,
                None => store.reserve_append(bytes).await?,
            }
        };
        Ok(Self { permit })
    }
}

/// Assigns offsets and submits everything as one commit, with the ticket of the same
/// `appends`. `decide` sees the placements, in the order of `appends`, and adds its rows; `done` runs on the
/// store's writer thread once the commit is durable and consumers can see it.
///
/// The partitions are locked from the first assignment until the submit, in one
/// global order, so offsets are committed in the order they were assigned and
/// two appends over several partitions cannot block each other.
pub fn submit<T: Send + 'static>(
    store: &dyn Store,
    ticket: Ticket,
    appends: Vec<Append>,
    mut rows: WriteBatch,
    decide: impl FnOnce(&[Placement], &mut WriteBatch) -> T,
    done: impl FnOnce(T, Result<(), CommitError>) + Send + 'static,
) {
    let mut places: Vec<_> = appends.iter().map(|a| (a.place(), &a.partition)).collect();
    places.sort_by_key(|(place, _)| *place);
    places.dedup_by_key(|(place, _)| *place);
    let mut locks: Vec<_> = places
        .iter()
        .map(|(place, p)| (*place, p.applied()))
        .collect();

    let mut placements = Vec::with_capacity(appends.len());
    for append in &appends {
        let (topic, partition) = append.place();
        let at = locks.binary_search_by_key(&(topic, partition), |(place, _)| *place);
        let applied = &mut locks[at.expect("every append's partition was locked above")].1;
        let (base, count) = (applied.next, append.batch.count());
        applied.append(count, append.batch.bytes().len());
        let key = RecordKey {
            topic,
            partition: partition.0,
            base_offset: base,
        };
        rows.put(Space::Records, key.encode(), append.batch.bytes().clone());
        placements.push(Placement {
            partition,
            base: Offset(base),
            count,
        });
    }
    for ((topic, partition), applied) in &mut locks {
        if let Some(row) = applied.row_if_due() {
            let key = PartitionKey {
                topic: *topic,
                partition: partition.0,
            };
            rows.put(Space::Partitions, key.encode(), row.encode());
        }
    }
    let decided = decide(&placements, &mut rows);
    let targets = appends.clone();
    let show = move |result: Result<_, CommitError>| {
        let outcome = result.map(|_| show_committed(targets, &placements));
        done(decided, outcome);
    };
    store.submit(ticket.permit, rows, Box::new(show));
}

/// Moves the durable ends and wakes readers.
fn show_committed(appends: Vec<Append>, placements: &[Placement]) {
    for (append, placement) in appends.into_iter().zip(placements) {
        append.partition.commit(Stored {
            base: placement.base,
            batch: append.batch,
        });
        append.topic.notify();
    }
}

/// Appends and waits until it is durable. Placements come in the order of
/// `appends`; no appends with some `rows` is fine.
///
/// # Errors
/// When it must not be acknowledged; see [`AppendError`].
pub async fn append(
    store: &Arc<dyn Store>,
    appends: Vec<Append>,
    rows: WriteBatch,
) -> Result<Vec<Placement>, AppendError> {
    let ticket = Ticket::reserve(&**store, &appends, &rows).await?;
    let (sender, receiver) = oneshot::channel();
    let decide = |placements: &[Placement], _: &mut WriteBatch| placements.to_vec();
    let done = move |placements, result: Result<(), CommitError>| {
        // The waiter may have gone; the commit stands all the same.
        drop(sender.send(result.map(|()| placements)));
    };
    submit(&**store, ticket, appends, rows, decide, done);
    Ok(receiver.await.unwrap_or(Err(CommitError::Closed))?)
}
