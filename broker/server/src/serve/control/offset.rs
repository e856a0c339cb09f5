//! Requests about offsets: those that consumers commit, and where a reader would begin.

use std::collections::BTreeSet;
use std::sync::Arc;

use millstream_proto::acl::Operation;
use millstream_proto::message::Response;
use millstream_proto::topic::StartAt;
use millstream_proto::{ConsumerName, ErrorCode, Offset, PartitionId, TopicName, WireError};
use millstream_store::key::offset::{OffsetKey, OffsetRow, range_topic};
use millstream_store::{Direction, ReadError, ScanLimit, Space, WriteBatch};
use tokio::sync::MutexGuard;

use crate::catalog::{read_error, storage_error};
use crate::limits::{MAX_CONSUMERS, READ_CHUNK_BYTES};
use crate::log::{Topic, seek};
use crate::serve;
use crate::session::{Peer, shutting_down};

fn key(topic: &Topic, partition: PartitionId, consumer: &ConsumerName) -> millstream_store::Key {
    let consumer = consumer.as_str().as_bytes();
    OffsetKey {
        topic: topic.id(),
        partition: partition.0,
        consumer,
    }
    .encode()
}

/// A consumer can have read up to the durable end and no further; what retention has removed it
/// may still commit.
fn check(topic: &Topic, partition: PartitionId, offset: Offset) -> Result<(), WireError> {
    let name = topic.name();
    let Some(found) = topic.partition(partition) else {
        let have = topic.partitions().len();
        let text = format!("topic {name} has no partition {partition}; it has {have}, from 0");
        return Err(WireError::new(ErrorCode::UnknownPartition, text));
    };
    let end = found.end();
    // Where a partition ends that cannot be read nobody knows; whoever had read all of it stands
    // behind what was found, and has others to commit with it.
    if offset > end && found.unreadable().is_none() {
        let text = format!(
            "offset {offset} of topic {name} partition {partition} cannot be committed: the \
             partition ends at {end}"
        );
        return Err(WireError::new(ErrorCode::OffsetOutOfRange, text));
    }
    Ok(())
}

pub(super) async fn commit(
    peer: &Peer,
    topic: &TopicName,
    consumer: &ConsumerName,
    offsets: &[(PartitionId, Offset)],
) -> Result<Response, WireError> {
    let topic = serve::topic(peer, topic, Operation::Consume)?;
    let have = topic.partitions().len();
    if offsets.len() > have {
        let text = format!(
            "{} offsets for topic {}, which has {have} partitions: send one for each at most",
            offsets.len(),
            topic.name()
        );
        return Err(WireError::new(ErrorCode::InvalidConfig, text));
    }
    let mut batch = WriteBatch::new();
    for &(partition, offset) in offsets {
        check(&topic, partition, offset)?;
        let row = OffsetRow {
            offset: offset.0,
            metadata: String::new(),
        };
        batch.put(
            Space::Offsets,
            key(&topic, partition, consumer),
            row.encode(),
        );
    }
    if batch.is_empty() {
        return Ok(Response::Done);
    }
    put(&topic, consumer, batch).await?;
    Ok(Response::Done)
}

/// Stores what a consumer commits, and its name among those that are known.
async fn put(
    topic: &Arc<Topic>,
    consumer: &ConsumerName,
    batch: WriteBatch,
) -> Result<(), WireError> {
    let known = known(topic).await?;
    let is_new = !known
        .as_ref()
        .is_some_and(|names| names.contains(consumer.as_str()));
    // Who is known need not wait for others; who is new must not pass the limit beside others.
    let mut held = is_new.then_some(known);
    let full = held.as_ref().and_then(|names| names.as_ref());
    if full.is_some_and(|names| names.len() >= MAX_CONSUMERS) {
        let text = format!(
            "consumers have committed offsets of topic {name} under {MAX_CONSUMERS} names, and that is \
             the limit: take one of those instead of {consumer}, or forget one that is not used any \
             more with `millstream consume {name} --as NAME --forget`",
            name = topic.name()
        );
        return Err(WireError::new(ErrorCode::InvalidConfig, text));
    }
    let committed = topic.store().commit(batch).await;
    committed.map_err(|e| storage_error(&e))?;
    match held.as_mut() {
        Some(names) => {
            names
                .get_or_insert_default()
                .insert(consumer.as_str().to_owned());
        }
        None => count_again(topic, consumer).await,
    }
    Ok(())
}

/// Sees to it that a name counts under which something was committed while nobody was held up: it
/// may have been forgotten before that reached the store.
async fn count_again(topic: &Arc<Topic>, consumer: &ConsumerName) {
    let mut known = topic.consumers.lock().await;
    let Some(names) = known.as_mut() else {
        return;
    };
    if names.contains(consumer.as_str()) {
        return;
    }
    // Or behind that: then there is nothing left to count. Nobody forgets it just now.
    let (of, name) = (Arc::clone(topic), consumer.clone());
    match tokio::task::spawn_blocking(move || has_offsets(&of, &name)).await {
        Ok(Ok(true)) => {
            names.insert(consumer.as_str().to_owned());
        }
        Ok(Ok(false)) => {}
        // Whoever has to know next reads them all.
        Ok(Err(_)) | Err(_) => *known = None,
    }
}

/// Whether anything is committed under a name. Blocking.
fn has_offsets(topic: &Topic, consumer: &ConsumerName) -> Result<bool, ReadError> {
    let snapshot = topic.store().snapshot()?;
    for partition in topic.partitions().iter() {
        let key = key(topic, partition.id(), consumer);
        if snapshot.get(Space::Offsets, &key)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The names under which offsets of the topic are committed. They are read once.
async fn known(topic: &Arc<Topic>) -> Result<MutexGuard<'_, Option<BTreeSet<String>>>, WireError> {
    let mut known = topic.consumers.lock().await;
    if known.is_none() {
        let of = Arc::clone(topic);
        let read = tokio::task::spawn_blocking(move || names(&of));
        *known = Some(read.await.unwrap_or_else(|_| Err(shutting_down()))?);
    }
    Ok(known)
}

fn names(topic: &Topic) -> Result<BTreeSet<String>, WireError> {
    let snapshot = topic.store().snapshot().map_err(|e| read_error(&e))?;
    let range = range_topic(topic.id());
    let (mut from, mut names) = (range.start, BTreeSet::new());
    loop {
        let limit = ScanLimit::bytes(READ_CHUNK_BYTES);
        let page = snapshot
            .scan(
                Space::Offsets,
                &from[..]..&range.end[..],
                Direction::Forward,
                limit,
            )
            .map_err(|e| read_error(&e))?;
        for row in &page.rows {
            let key = OffsetKey::decode(&row.key)
                .map_err(|e| WireError::new(ErrorCode::Corrupt, e.to_string()))?;
            let name = String::from_utf8_lossy(key.consumer);
            if !names.contains(&*name) {
                names.insert(name.into_owned());
            }
        }
        match page.rows.last() {
            Some(last) if page.more => from = last.key.clone().push_bytes(&[0]),
            _ => return Ok(names),
        }
    }
}

/// Removes everything that was committed under a name; one that is not there is forgotten already.
pub(super) async fn forget(
    peer: &Peer,
    topic: &TopicName,
    consumer: &ConsumerName,
) -> Result<Response, WireError> {
    let topic = serve::topic(peer, topic, Operation::Consume)?;
    remove(&topic, consumer).await?;
    Ok(Response::Done)
}

async fn remove(topic: &Arc<Topic>, consumer: &ConsumerName) -> Result<(), WireError> {
    let mut known = known(topic).await?;
    let mut batch = WriteBatch::new();
    for partition in topic.partitions().iter() {
        batch.delete(Space::Offsets, key(topic, partition.id(), consumer));
    }
    let committed = topic.store().commit(batch).await;
    committed.map_err(|e| storage_error(&e))?;
    if let Some(names) = known.as_mut() {
        names.remove(consumer.as_str());
    }
    Ok(())
}

pub(super) async fn fetch(
    peer: &Peer,
    topic: &TopicName,
    consumer: ConsumerName,
) -> Result<Response, WireError> {
    let topic = serve::topic(peer, topic, Operation::Consume)?;
    let store = Arc::clone(&peer.broker.store);
    let read = move || {
        let snapshot = store.snapshot().map_err(|e| read_error(&e))?;
        let mut offsets = Vec::new();
        for partition in topic.partitions().iter().map(|p| p.id()) {
            let key = key(&topic, partition, &consumer);
            let row = snapshot
                .get(Space::Offsets, &key)
                .map_err(|e| read_error(&e))?;
            if let Some(row) = row {
                let row = OffsetRow::decode(&row)
                    .map_err(|e| WireError::new(ErrorCode::Corrupt, e.to_string()))?;
                offsets.push((partition, Offset(row.offset)));
            }
        }
        Ok(Response::Offsets(offsets))
    };
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or_else(|_| Err(shutting_down()))
}

pub(super) async fn find(
    peer: &Peer,
    topic: &TopicName,
    at: StartAt,
) -> Result<Response, WireError> {
    let topic = serve::topic(peer, topic, Operation::Describe)?;
    let mut offsets = Vec::new();
    for partition in topic.partitions().iter() {
        let offset = seek(partition, at)
            .await
            .map_err(|e| e.to_wire(topic.name()))?;
        offsets.push((partition.id(), offset));
    }
    Ok(Response::Offsets(offsets))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use std::sync::Mutex;

    use futures_util::poll;
    use millstream_proto::topic::TopicConfig;
    use millstream_store::key::record;
    use millstream_store::{
        CommitError, Done, Health, MemoryStore, Pending, Permit, Snapshot, Store, StoreStats,
    };
    use tokio::sync::watch;

    use super::*;
    use crate::guests::fixture::{Rec, batch_of};
    use crate::log::holed::Holed;
    use crate::log::{Append, TailBudget, append};

    fn open<S: Store>(store: &Arc<S>) -> Arc<Topic> {
        let store = Arc::clone(store) as Arc<dyn Store>;
        let (name, config) = ("acme/t".parse().unwrap(), TopicConfig::default());
        Topic::open(7, name, config, store, TailBudget::new(0)).unwrap()
    }

    #[tokio::test]
    async fn what_was_read_before_the_end_became_unknown_can_be_committed() {
        let store = Holed::new();
        let topic = open(&store);
        for _ in 0..2 {
            let batch = batch_of(&[Rec::new("k", "v")]);
            let appends = vec![Append::to(&topic, PartitionId(0), batch).unwrap()];
            append(topic.store(), appends, WriteBatch::new())
                .await
                .unwrap();
        }
        let of = |topic: &Arc<Topic>, offset| check(topic, PartitionId(0), Offset(offset));
        assert_eq!(of(&topic, 2), Ok(()));
        let beyond = of(&topic, 3).unwrap_err();
        assert_eq!(beyond.code, ErrorCode::OffsetOutOfRange);

        store.hole(record::range(7, 0, 1..2));
        let shut = open(&store);
        let partition = shut.partition(PartitionId(0)).unwrap();
        assert!(partition.unreadable().is_some() && partition.end() < Offset(2));
        assert_eq!(of(&shut, 2), Ok(()));
    }

    /// A store that keeps back what is handed to it, while it is told to.
    struct Slow {
        inner: MemoryStore,
        kept: Mutex<Option<Vec<(Permit, WriteBatch, Done)>>>,
    }

    impl Slow {
        fn keep(&self) {
            *self.kept.lock().unwrap() = Some(Vec::new());
        }

        /// What was kept back until now; nothing is any more.
        fn take(&self) -> Vec<(Permit, WriteBatch, Done)> {
            self.kept.lock().unwrap().take().unwrap()
        }

        fn submit_all(&self, kept: Vec<(Permit, WriteBatch, Done)>) {
            for (permit, batch, done) in kept {
                self.inner.submit(permit, batch, done);
            }
        }
    }

    impl Store for Slow {
        fn snapshot(&self) -> Result<Box<dyn Snapshot>, ReadError> {
            self.inner.snapshot()
        }

        fn reserve(&self, bytes: usize) -> Pending<Result<Permit, CommitError>> {
            self.inner.reserve(bytes)
        }

        fn try_reserve(&self, bytes: usize) -> Result<Option<Permit>, CommitError> {
            self.inner.try_reserve(bytes)
        }

        fn submit(&self, permit: Permit, batch: WriteBatch, done: Done) {
            match self.kept.lock().unwrap().as_mut() {
                Some(kept) => kept.push((permit, batch, done)),
                None => self.inner.submit(permit, batch, done),
            }
        }

        fn health(&self) -> watch::Receiver<Health> {
            self.inner.health()
        }

        fn stats(&self) -> StoreStats {
            self.inner.stats()
        }

        fn close(&self) {
            self.inner.close();
        }
    }

    fn offset(topic: &Topic, consumer: &ConsumerName) -> WriteBatch {
        let row = OffsetRow {
            offset: 0,
            metadata: String::new(),
        };
        let mut batch = WriteBatch::new();
        let key = key(topic, PartitionId(0), consumer);
        batch.put(Space::Offsets, key, row.encode());
        batch
    }

    /// Whether a name counts, which must be so if there is anything under it.
    async fn counts(topic: &Arc<Topic>, consumer: &ConsumerName) -> bool {
        let known = known(topic).await.unwrap();
        let counts = known.as_ref().unwrap().contains(consumer.as_str());
        assert_eq!(has_offsets(topic, consumer).unwrap(), counts);
        counts
    }

    #[tokio::test]
    async fn a_name_counts_that_is_forgotten_while_it_commits_if_it_is_left_with_an_offset() {
        let inner = MemoryStore::new().unwrap();
        let kept = Mutex::default();
        let store = Arc::new(Slow { inner, kept });
        let topic = open(&store);
        let name: ConsumerName = "a".parse().unwrap();
        put(&topic, &name, offset(&topic, &name)).await.unwrap();
        assert!(counts(&topic, &name).await);

        // The store has it after it has forgotten.
        store.keep();
        let mut late = Box::pin(put(&topic, &name, offset(&topic, &name)));
        assert!(poll!(late.as_mut()).is_pending());
        let kept = store.take();
        remove(&topic, &name).await.unwrap();
        assert!(!counts(&topic, &name).await);
        store.submit_all(kept);
        late.await.unwrap();
        assert!(counts(&topic, &name).await);

        // The store has it before it forgets, and whoever committed hears of it afterwards.
        store.keep();
        let mut early = Box::pin(put(&topic, &name, offset(&topic, &name)));
        assert!(poll!(early.as_mut()).is_pending());
        store.submit_all(store.take());
        remove(&topic, &name).await.unwrap();
        early.await.unwrap();
        assert!(!counts(&topic, &name).await);
    }
}
