//! Requests about offsets: those that consumers commit, and where a reader would begin.

use std::collections::BTreeSet;
use std::sync::Arc;

use millstream_proto::acl::Operation;
use millstream_proto::message::Response;
use millstream_proto::topic::StartAt;
use millstream_proto::{ConsumerName, ErrorCode, Offset, PartitionId, TopicName, WireError};
use millstream_store::key::offset::{OffsetKey, OffsetRow, range_topic};
use millstream_store::{Direction, ScanLimit, Space, WriteBatch};
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
    let known = known(&topic).await?;
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
    let committed = peer.broker.store.commit(batch).await;
    committed.map_err(|e| storage_error(&e))?;
    if let Some(names) = held.as_mut().and_then(|names| names.as_mut()) {
        names.insert(consumer.as_str().to_owned());
    }
    Ok(Response::Done)
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
    let mut known = known(&topic).await?;
    let mut batch = WriteBatch::new();
    for partition in topic.partitions().iter() {
        batch.delete(Space::Offsets, key(&topic, partition.id(), consumer));
    }
    let committed = peer.broker.store.commit(batch).await;
    committed.map_err(|e| storage_error(&e))?;
    if let Some(names) = known.as_mut() {
        names.remove(consumer.as_str());
    }
    Ok(Response::Done)
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
    use millstream_proto::topic::TopicConfig;
    use millstream_store::key::record;

    use super::*;
    use crate::guests::fixture::{Rec, batch_of};
    use crate::log::holed::Holed;
    use crate::log::{Append, TailBudget, append};

    fn open(store: &Arc<Holed>) -> Arc<Topic> {
        let store = Arc::clone(store) as Arc<dyn millstream_store::Store>;
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
}
