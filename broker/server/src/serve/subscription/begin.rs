//! Opening a subscription: which partitions, and where in each.

use std::sync::Arc;

use bytes::Bytes;
use millstream_proto::acl::Operation;
use millstream_proto::message::{Gap, GapCause, Notice, OpenSubscription, SubscriptionOpened};
use millstream_proto::{ErrorCode, Offset, PartitionId, WireError};
use millstream_store::key::offset::{OffsetKey, OffsetRow};
use millstream_store::{Space, Store};

use super::cursor::Cursor;
use super::frames::notice;
use super::{Rights, Subscription};
use crate::guests::{Directory, SubscriptionChain};
use crate::log::{Partition, ReadFault, Topic, approach};
use crate::serve;
use crate::session::Peer;

/// A subscription before its first delivery.
pub(super) struct Begun {
    pub(super) subscription: Subscription,
    /// The answer to the opening.
    pub(super) opened: SubscriptionOpened,
    /// What is to be told right behind it.
    pub(super) notices: Vec<Bytes>,
}

pub(super) async fn begin(peer: &Peer, open: OpenSubscription) -> Result<Begun, WireError> {
    let topic = serve::topic(peer, &open.topic, Operation::Consume)?;
    Rights::of(&open).check(peer)?;
    let chain = match open.chain.is_empty() {
        true => None,
        false => Some(attach(peer, &topic, &open).await?),
    };
    let (mut cursors, mut notices) = (Vec::new(), Vec::new());
    for partition in chosen(&topic, &open.partitions)? {
        let (next, gap) = position(&topic, &partition, &open).await?;
        if let Some(gap) = gap {
            tracing::warn!(topic = %topic.name(), "a reader is told: {gap}");
            notices.push(notice(&Notice::Gap(gap)));
        }
        let stop = open.until_end.then(|| stop(&partition));
        cursors.push(Cursor::new(partition, next, stop));
    }
    let positions = cursors.iter().map(|c| (c.partition.id(), c.next)).collect();
    let grows = open.partitions.is_empty() && !open.until_end;
    let traffic = peer.broker.counters.tenant(&topic.name().tenant());
    let subscription = Subscription {
        traffic,
        topic,
        cursors,
        grows,
        chain,
    };
    let opened = SubscriptionOpened { positions };
    Ok(Begun {
        subscription,
        opened,
        notices,
    })
}

/// Where a reader is done who reads up to the end. Nobody knows where a partition ends that cannot be
/// read: he stands before it and is told, rather than be done with what he has not seen.
pub(super) fn stop(partition: &Partition) -> Offset {
    match partition.unreadable() {
        None => partition.end(),
        Some(_) => Offset(u64::MAX),
    }
}

async fn attach(
    peer: &Peer,
    topic: &Arc<Topic>,
    open: &OpenSubscription,
) -> Result<SubscriptionChain, WireError> {
    let (broker, who) = (&peer.broker, &peer.principal);
    let (directory, store) = (
        Arc::clone(broker) as Arc<dyn Directory>,
        Arc::clone(topic.store()),
    );
    let uses = open.chain.clone();
    broker
        .guests
        .subscription_chain(topic.name(), who, uses, directory, store)
        .await
}

fn chosen(topic: &Topic, wanted: &[PartitionId]) -> Result<Vec<Arc<Partition>>, WireError> {
    if wanted.is_empty() {
        return Ok(topic.partitions().to_vec());
    }
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let find = |id: PartitionId| {
        topic.partition(id).ok_or_else(|| {
            let (name, have) = (topic.name(), topic.partitions().len());
            let text = format!("topic {name} has no partition {id}; it has {have}");
            WireError::new(ErrorCode::UnknownPartition, text)
        })
    };
    wanted.into_iter().map(find).collect()
}

/// Where the subscription says for this partition, else the consumer's committed offset if there is
/// one, else where it says for all; and what is not there any more of what it would have read. A
/// partition that cannot be read is begun where it would be if it could, as far as that is known:
/// the reader hears of it when it comes to read.
async fn position(
    topic: &Topic,
    partition: &Arc<Partition>,
    open: &OpenSubscription,
) -> Result<(Offset, Option<Gap>), WireError> {
    let fault = |e: ReadFault| e.to_wire(topic.name());
    if let Some((_, at)) = open.positions.iter().find(|(id, _)| *id == partition.id()) {
        return Ok(take_up(partition, *at));
    }
    if let Some(consumer) = &open.consumer {
        let key = OffsetKey {
            topic: topic.id(),
            partition: partition.id().0,
            consumer: consumer.as_str().as_bytes(),
        };
        let row = committed(topic.store(), key.encode())
            .await
            .map_err(fault)?;
        // To begin elsewhere instead would pass over records without a word.
        let damaged = |e| {
            let text = format!(
                "topic {}: the committed offset of {consumer} in partition {} is damaged: {e}; commit another, or consume without a name",
                topic.name(),
                partition.id()
            );
            WireError::new(ErrorCode::Corrupt, text)
        };
        let row = row.map(|row| OffsetRow::decode(&row)).transpose();
        if let Some(row) = row.map_err(damaged)? {
            return Ok(take_up(partition, Offset(row.offset)));
        }
    }
    let (offset, _) = approach(partition, open.start).await.map_err(fault)?;
    Ok((offset, None))
}

/// Where a reader goes on that stands at `at`. Retention may have removed what comes next, and a
/// crash what had been read of a topic that does not sync each commit: both are told.
fn take_up(partition: &Partition, at: Offset) -> (Offset, Option<Gap>) {
    let (start, end) = (partition.start(), partition.end());
    let gap = |from, to, cause| {
        let partition = partition.id();
        let gap = Gap {
            partition,
            from,
            to,
            cause,
        };
        (gap.resumes_at(), Some(gap))
    };
    if at < start {
        return gap(at, start, GapCause::Removed);
    }
    // Where a partition ends that cannot be read nobody knows.
    if at > end && partition.unreadable().is_none() {
        return gap(end, at, GapCause::Truncated);
    }
    (at, None)
}

async fn committed(
    store: &Arc<dyn Store>,
    key: millstream_store::Key,
) -> Result<Option<Bytes>, ReadFault> {
    let store = Arc::clone(store);
    let read = move || Ok(store.snapshot()?.get(Space::Offsets, &key)?);
    tokio::task::spawn_blocking(read)
        .await
        .unwrap_or(Err(ReadFault::Closing))
}
