//! A subscription's stream: batches out, as long as the reader takes them.
//!
//! Every partition has a cursor; cursors take turns. The tail serves whoever is
//! near the end; cursors that lag read the store in chunks on a blocking thread,
//! one chunk ahead of what is being written: that of the cursor whose turn is
//! next. Writing waits for the stream's flow control, and that is all the
//! backpressure there is: nothing is queued for a slow reader beyond the chunk in
//! hand and the one ahead, however many partitions there are.

use std::pin::Pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::batch::HEADER_LEN;
use millstream_proto::frame::{DeliverPrefix, FRAME_HEADER_LEN, FrameKind, frame_header};
use millstream_proto::message::{OpenSubscription, SubscriptionOpened};
use millstream_proto::pipeline::PluginUse;
use millstream_proto::topic::StartAt;
use millstream_proto::{Batch, ErrorCode, Offset, PartitionId, TopicName, WireError};
use millstream_store::key::offset::{OffsetKey, OffsetRow};
use millstream_store::{Space, Store};
use tokio::task::JoinHandle;

use crate::guests::{Directory, SubscriptionChain, Through, allow_dead_letters};
use crate::limits::{DELIVER_BYTES, READ_CHUNK_BYTES};
use crate::log::{Follow, Partition, ReadFault, Stored, TailRead, Topic, seek};
use crate::session::{Peer, refuse, shutting_down};
use crate::stream::{FrameReader, FrameWriter};

/// Serves the stream to its end.
pub(crate) async fn run(
    peer: Peer,
    open: OpenSubscription,
    mut reader: FrameReader,
    mut writer: FrameWriter,
) {
    let rights = Rights::of(&open);
    // Finding a timestamp may read whole partitions: not for a reader that has gone.
    let begun = tokio::select! {
        begun = begin(&peer, open) => begun,
        () = writer.stopped() => return,
        () = peer.broker.gate.closing() => Err(shutting_down()),
    };
    let (mut subscription, opened) = match begun {
        Ok(begun) => begun,
        Err(error) => return refuse(&mut reader, writer, &error).await,
    };
    if writer.message(FrameKind::Opened, 0, &opened).await.is_err() {
        return;
    }
    let interrupt = async {
        tokio::select! {
            () = unsubscribed(&mut reader) => End::Finished,
            error = forbidden(&peer, &rights) => End::Error(error),
            () = peer.broker.gate.closing() => End::Error(shutting_down()),
        }
    };
    let end = {
        tokio::pin!(interrupt);
        subscription.deliver(&mut writer, interrupt).await
    };
    match end {
        End::Finished => {
            if writer.message(FrameKind::End, 0, &()).await.is_ok() {
                writer.finish().await;
            }
        }
        End::Gone => {}
        End::Error(error) => refuse(&mut reader, writer, &error).await,
        End::MidFrame(code) => writer.reset(code),
    }
}

/// Resolves when the client says `End`; a client that merely has no more to say
/// still reads.
async fn unsubscribed(reader: &mut FrameReader) {
    match reader.next().await {
        Ok(Some(_)) => {}
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// What a subscription needs, to be looked at again when the rules change.
struct Rights {
    topic: TopicName,
    chain: Vec<PluginUse>,
}

impl Rights {
    fn of(open: &OpenSubscription) -> Self {
        Self {
            topic: open.topic.clone(),
            chain: open.chain.clone(),
        }
    }

    fn check(&self, peer: &Peer) -> Result<(), WireError> {
        let (access, who) = (&peer.broker.access, &peer.principal);
        access.check(
            who,
            Operation::Consume,
            ResourceKind::Topic,
            self.topic.as_str(),
        )?;
        for PluginUse { plugin, .. } in &self.chain {
            let name = plugin.as_str();
            access.check(who, Operation::Attach, ResourceKind::Plugin, name)?;
        }
        allow_dead_letters(who, &self.chain, &*peer.broker)
    }
}

/// Resolves when the peer has lost a right that the subscription needs.
async fn forbidden(peer: &Peer, rights: &Rights) -> WireError {
    let mut changed = peer.broker.access.changed();
    loop {
        if let Err(error) = rights.check(peer) {
            return error;
        }
        // The broker, and with it the sender, outlives every session.
        let _ = changed.changed().await;
    }
}

enum End {
    Finished,
    Gone,
    Error(WireError),
    /// Interrupted while a reader that does not read held up a frame: nothing
    /// that makes sense can follow on this stream.
    MidFrame(ErrorCode),
}

impl End {
    fn mid_frame(self) -> Self {
        match self {
            End::Error(error) => End::MidFrame(error.code),
            End::Finished | End::Gone | End::MidFrame(_) => End::Gone,
        }
    }
}

struct Cursor {
    partition: Arc<Partition>,
    _follow: Follow,
    next: Offset,
    stop: Option<Offset>,
    /// The read of the chunk at `next`, begun before this cursor's turn. At most one
    /// cursor of a subscription has it.
    ahead: Option<JoinHandle<Result<Vec<Stored>, ReadFault>>>,
}

struct Subscription {
    topic: Arc<Topic>,
    cursors: Vec<Cursor>,
    /// Whether partitions that are added belong to it.
    grows: bool,
    chain: Option<SubscriptionChain>,
}

async fn begin(
    peer: &Peer,
    open: OpenSubscription,
) -> Result<(Subscription, SubscriptionOpened), WireError> {
    let topic = super::topic(peer, &open.topic, Operation::Consume)?;
    Rights::of(&open).check(peer)?;
    let chain = match open.chain.is_empty() {
        true => None,
        false => Some(attach(peer, &topic, &open).await?),
    };
    let mut cursors = Vec::new();
    for partition in chosen(&topic, &open.partitions)? {
        let next = position(&topic, &partition, &open).await?;
        let stop = open.until_end.then(|| partition.end());
        cursors.push(Cursor::new(partition, next, stop));
    }
    let positions = cursors.iter().map(|c| (c.partition.id(), c.next)).collect();
    let grows = open.partitions.is_empty() && !open.until_end;
    let subscription = Subscription {
        topic,
        cursors,
        grows,
        chain,
    };
    Ok((subscription, SubscriptionOpened { positions }))
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

/// Where the subscription says for this partition, else the consumer's committed
/// offset if there is one that can still be read, else where it says for all.
async fn position(
    topic: &Topic,
    partition: &Arc<Partition>,
    open: &OpenSubscription,
) -> Result<Offset, WireError> {
    let fault = |e: ReadFault| e.to_wire(topic.name());
    if let Some((_, at)) = open.positions.iter().find(|(id, _)| *id == partition.id()) {
        return seek(partition, StartAt::Offset(*at)).await.map_err(fault);
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
        let committed = row.map_err(damaged)?.map(|row| Offset(row.offset));
        if let Some(offset) = committed
            && let Ok(offset) = seek(partition, StartAt::Offset(offset)).await
        {
            return Ok(offset);
        }
    }
    seek(partition, open.start).await.map_err(fault)
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

impl Cursor {
    fn new(partition: Arc<Partition>, next: Offset, stop: Option<Offset>) -> Self {
        let _follow = partition.follow();
        Self {
            partition,
            _follow,
            next,
            stop,
            ahead: None,
        }
    }

    fn is_done(&self) -> bool {
        self.stop.is_some_and(|stop| self.next >= stop)
    }

    /// What there is at the cursor, and nothing at the durable end.
    async fn read(&mut self) -> Result<Vec<Stored>, ReadFault> {
        if let Some(ahead) = self.ahead.take() {
            return ahead.await.unwrap_or(Err(ReadFault::Closing));
        }
        match self.partition.read_tail(self.next, DELIVER_BYTES) {
            TailRead::Batches(batches) => Ok(batches),
            TailRead::AtEnd => Ok(Vec::new()),
            TailRead::OutOfRange { start, end } => Err(ReadFault::OutOfRange {
                wanted: self.next,
                start,
                end,
            }),
            TailRead::Older => self.partition.read(self.next, READ_CHUNK_BYTES).await,
        }
    }

    /// Begins to read what follows, if that is not in the tail.
    fn read_ahead(&mut self) {
        let lags = matches!(self.partition.read_tail(self.next, 1), TailRead::Older);
        if lags && !self.is_done() && self.ahead.is_none() {
            let (partition, next) = (Arc::clone(&self.partition), self.next);
            self.ahead = Some(tokio::spawn(async move {
                partition.read(next, READ_CHUNK_BYTES).await
            }));
        }
    }
}

impl Subscription {
    /// Delivers until `interrupt` says how to end, which is heeded between frames
    /// and while a write waits for the reader.
    async fn deliver(
        &mut self,
        writer: &mut FrameWriter,
        mut interrupt: Pin<&mut impl Future<Output = End>>,
    ) -> End {
        let mut changed = self.topic.changed();
        loop {
            changed.borrow_and_update();
            if self.topic.is_deleted() {
                let text = format!("topic {} was deleted", self.topic.name());
                return End::Error(WireError::new(ErrorCode::TopicDeleted, text));
            }
            self.grow();
            let mut any = false;
            for at in 0..self.cursors.len() {
                if let Some(end) = interrupt.as_mut().now_or_never() {
                    return end;
                }
                let turn = tokio::select! {
                    biased;
                    turn = self.turn(at) => turn,
                    // A plugin may take its time: nobody has to wait for it to end this.
                    end = interrupt.as_mut() => return end,
                    () = writer.stopped() => return End::Gone,
                };
                let mut pieces = match turn {
                    Ok(pieces) => pieces,
                    Err(end) => return end,
                };
                any |= !pieces.is_empty();
                tokio::select! {
                    biased;
                    written = writer.pieces(&mut pieces) => if written.is_err() {
                        return End::Gone;
                    },
                    end = interrupt.as_mut() => return end.mid_frame(),
                }
            }
            if self.cursors.iter().all(Cursor::is_done) {
                return End::Finished;
            }
            if !any {
                tokio::select! {
                    // The topic outlives the subscription, so its sender does too.
                    _ = changed.changed() => {}
                    () = writer.stopped() => return End::Gone,
                    end = interrupt.as_mut() => return end,
                }
            }
        }
    }

    /// Takes in partitions that were added. Nothing was written to them before.
    fn grow(&mut self) {
        if !self.grows {
            return;
        }
        let partitions = self.topic.partitions();
        for added in partitions.iter().skip(self.cursors.len()) {
            self.cursors
                .push(Cursor::new(Arc::clone(added), added.start(), None));
        }
    }

    /// One cursor's turn: the frames of what there is.
    async fn turn(&mut self, at: usize) -> Result<Vec<Bytes>, End> {
        let cursor = &mut self.cursors[at];
        if cursor.is_done() {
            return Ok(Vec::new());
        }
        let fault = |e: ReadFault| End::Error(e.to_wire(self.topic.name()));
        let batches = match cursor.read().await {
            Err(ReadFault::Lost { wanted, next }) if next > cursor.next => {
                return Ok(self.pass_over(at, wanted, next));
            }
            read => read.map_err(fault)?,
        };
        let Some(last) = batches.last() else {
            return Ok(Vec::new());
        };
        cursor.next = last.end();
        let (id, end) = (cursor.partition.id(), cursor.partition.end());
        let next = (at + 1) % self.cursors.len();
        self.cursors[next].read_ahead();
        let mut frames = Frames::new(id, end);
        match &self.chain {
            None => batches.iter().for_each(|stored| frames.push_stored(stored)),
            Some(chain) => {
                for stored in batches {
                    let (base, next) = (stored.base, stored.end());
                    match chain.run(stored, id).await.map_err(End::Error)? {
                        Through::Whole(stored) => frames.push_stored(&stored),
                        Through::Made(batches) => frames.push_made(base, next, &batches),
                    }
                }
            }
        }
        Ok(frames.finish())
    }

    /// Goes on behind offsets that were lost and given up, as behind any others that are not there
    /// any more, and tells the reader where that is.
    fn pass_over(&mut self, at: usize, wanted: Offset, next: Offset) -> Vec<Bytes> {
        let (topic, cursor) = (self.topic.name(), &mut self.cursors[at]);
        let (partition, end) = (cursor.partition.id(), cursor.partition.end());
        tracing::warn!(%topic, %partition, "offsets {wanted} to {next} are lost; a reader passes over them");
        cursor.next = next;
        let mut frames = Frames::new(partition, end);
        frames.untold = Some(next);
        frames.finish()
    }
}

/// Deliver frames of one partition, as pieces: headers are written, bodies shared.
struct Frames {
    partition: PartitionId,
    end: Offset,
    heads: BytesMut,
    pieces: Vec<Bytes>,
    /// A position that no frame has told yet.
    untold: Option<Offset>,
}

impl Frames {
    fn new(partition: PartitionId, end: Offset) -> Self {
        Self {
            partition,
            end,
            heads: BytesMut::new(),
            pieces: Vec::new(),
            untold: None,
        }
    }

    fn head(&mut self, next: Offset, batch_len: usize) {
        let len = DeliverPrefix::LEN + batch_len;
        let prefix = DeliverPrefix {
            partition: self.partition,
            next,
            end: self.end,
        };
        self.heads
            .reserve(FRAME_HEADER_LEN + DeliverPrefix::LEN + HEADER_LEN);
        self.heads
            .extend_from_slice(&frame_header(FrameKind::Deliver, 0, len));
        self.heads.extend_from_slice(&prefix.encode());
        self.untold = None;
    }

    fn push_stored(&mut self, stored: &Stored) {
        let (header, body) = stored.batch.at_offset(stored.base);
        self.head(stored.end(), HEADER_LEN + body.len());
        self.heads.extend_from_slice(&header);
        self.pieces.push(self.heads.split().freeze());
        self.pieces.push(body);
    }

    /// What a chain made of the batch from `base` to `next`; offsets are in it.
    /// Behind a part the reader's position moves on to where the next part
    /// begins, and only behind the last to `next`.
    fn push_made(&mut self, base: Offset, next: Offset, parts: &[Batch]) {
        if parts.is_empty() {
            self.untold = Some(next);
        }
        for (i, batch) in parts.iter().enumerate() {
            // Several parts may begin with results of the same record: then the
            // position stays where it is for all but the last.
            let following = parts.get(i + 1).map(|part| part.header().base_offset);
            let at = following.map_or(next, |first| first.clamp(base, next));
            self.head(at, batch.bytes().len());
            self.pieces.push(self.heads.split().freeze());
            self.pieces.push(batch.bytes().clone());
        }
    }

    fn finish(mut self) -> Vec<Bytes> {
        if let Some(next) = self.untold {
            self.head(next, 0);
            self.pieces.push(self.heads.split().freeze());
        }
        self.pieces
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use millstream_proto::Codec;
    use millstream_proto::acl::{AclRule, Effect};
    use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
    use millstream_proto::frame::Assembler;
    use millstream_proto::pipeline::ErrorPolicy;

    use super::*;
    use crate::serve::control::tests::{ADMIN, STRANGER, peer, start};
    use crate::tls::tests::good;

    fn part(offsets: &[u64]) -> Batch {
        let mut builder = BatchBuilder::new(1 << 16);
        for offset in offsets {
            let record = NewRecord {
                value: Some(b"v"),
                ..NewRecord::default()
            };
            builder.push_at(Offset(*offset), &record).unwrap();
        }
        builder.build(Codec::None, Stamp::default()).unwrap()
    }

    #[test]
    fn behind_each_part_the_position_is_where_the_next_begins() {
        let mut frames = Frames::new(PartitionId(3), Offset(30));
        let parts = [part(&[10, 11, 12]), part(&[12, 15]), part(&[15, 15])];
        frames.push_made(Offset(10), Offset(20), &parts);
        frames.push_made(Offset(20), Offset(25), &[]);
        let mut bytes = Bytes::from(frames.finish().concat());
        let mut assembler = Assembler::default();
        let mut told = Vec::new();
        while !bytes.is_empty() {
            let frame = assembler.feed(&mut bytes).unwrap().unwrap();
            let (prefix, batch) = DeliverPrefix::split(frame.payload).unwrap();
            told.push((prefix.next.0, batch.is_empty()));
        }
        assert_eq!(told, [(12, false), (15, false), (20, false), (25, true)]);
    }

    #[tokio::test]
    async fn a_subscription_needs_its_topic_its_plugins_and_their_dead_letter_topics() {
        let dir = good();
        let running = start(&dir).await;
        let (admin, reader) = (peer(&running, ADMIN), peer(&running, STRANGER));
        let rights = Rights {
            topic: "acme/t".parse().unwrap(),
            chain: vec![PluginUse {
                on_error: ErrorPolicy::DeadLetter("acme/dead".parse().unwrap()),
                ..PluginUse::new("acme/p".parse().unwrap())
            }],
        };
        let needed = [
            (Operation::Consume, ResourceKind::Topic, "acme/t"),
            (Operation::Attach, ResourceKind::Plugin, "acme/p"),
            (Operation::Produce, ResourceKind::Topic, "acme/dead"),
        ];
        for (operation, resource, name) in needed {
            let error = rights.check(&reader).unwrap_err();
            assert!(error.message.contains(name), "{error}");
            let rule = AclRule {
                principal: STRANGER.parse().unwrap(),
                resource,
                name: name.parse().unwrap(),
                operations: vec![operation],
                effect: Effect::Allow,
            };
            let granted = running.broker().access.grant(&admin.principal, rule);
            granted.await.unwrap();
        }
        rights.check(&reader).unwrap();
        running.shutdown().await;
    }
}
