//! Requests about offsets: those that consumers commit, and where a reader would begin.

use std::sync::Arc;

use millstream_proto::acl::Operation;
use millstream_proto::message::Response;
use millstream_proto::topic::StartAt;
use millstream_proto::{ConsumerName, ErrorCode, Offset, PartitionId, TopicName, WireError};
use millstream_store::key::offset::{OffsetKey, OffsetRow};
use millstream_store::{Space, WriteBatch};

use crate::catalog::{read_error, storage_error};
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
    if offset > end {
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
    if !batch.is_empty() {
        peer.broker
            .store
            .commit(batch)
            .await
            .map_err(|e| storage_error(&e))?;
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
