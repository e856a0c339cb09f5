//! A producer's stream: batches in, acknowledgements out, in order.
//!
//! Reading, the topic's chain and the commit overlap: while some batches are at
//! the plugins and others at the disk, the next are read. What keeps the order is
//! that batches leave the chain and are submitted in the order they came. The
//! stream is not read further while the shard's queue is full: that, through
//! QUIC's flow control, is how the disk slows a producer down.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesOrdered;
use millstream_core::dedup::Judgement;
use millstream_proto::acl::{Operation, ResourceKind};
use millstream_proto::frame::{Frame, FrameKind, ProducePrefix};
use millstream_proto::message::{Ack, OpenProducer, Placement, ProducerOpened};
use millstream_proto::topic::TopicConfig;
use millstream_proto::{
    Batch, BatchError, Codec, ErrorClass, ErrorCode, ProducerId, Sequence, WireError,
};
use millstream_store::{CommitError, WriteBatch};

use tokio::sync::Semaphore;

use super::answers::{Answer, Answers, Slot};
use crate::limits::{CHAIN_BYTES, CHAIN_DEPTH, COPY_BELOW_BYTES, UNPACKED_BATCHES};
use crate::log::{
    Append, AppendError, ProducerRefused, ProducerStream, Ticket, Topic, durability, submit,
};
use crate::metrics::{Amount, Traffic};
use crate::route;
use crate::session::{Peer, refuse, shutting_down};
use crate::stream::{FrameReader, FrameWriter};

/// Serves the stream to its end.
pub(crate) async fn run(
    peer: Peer,
    open: OpenProducer,
    mut reader: FrameReader,
    mut writer: FrameWriter,
) {
    let (producer, opened) = match begin(&peer, &open).await {
        Ok(begun) => begun,
        Err(error) => return refuse(&mut reader, writer, &error).await,
    };
    if writer.message(FrameKind::Opened, 0, &opened).await.is_err() {
        return;
    }
    reader.allow_batches();
    match converse(&producer, &mut reader, &mut writer).await {
        End::Finished => {
            if writer.message(FrameKind::End, 0, &()).await.is_ok() {
                writer.finish().await;
            }
        }
        End::Gone => {}
        End::Error(error) => refuse(&mut reader, writer, &error).await,
    }
}

/// Reads and answers at the same time, until one side has said all.
async fn converse(producer: &Producer, reader: &mut FrameReader, writer: &mut FrameWriter) -> End {
    let answers = &producer.answers;
    let reading = async {
        let end = producer.read(reader).await;
        answers.close();
        end
    };
    let writing = async {
        while let Some(out) = answers.next().await {
            if !out.is_empty() && writer.bytes(out.freeze()).await.is_err() {
                return Err(End::Gone);
            }
        }
        Ok(())
    };
    tokio::pin!(reading, writing);
    tokio::select! {
        end = &mut reading => writing.await.err().unwrap_or(end),
        // The client has gone; what was submitted is committed all the same.
        _ = &mut writing => End::Gone,
    }
}

async fn begin(peer: &Peer, open: &OpenProducer) -> Result<(Producer, ProducerOpened), WireError> {
    let topic = super::topic(peer, &open.topic, Operation::Produce)?;
    let stream = {
        let (topic, id, epoch) = (Arc::clone(&topic), open.producer, open.epoch);
        tokio::task::spawn_blocking(move || topic.open_producer(id, epoch))
            .await
            .map_err(|_| shutting_down())?
            .map_err(|e| not_opened(&e))?
    };
    let opened = ProducerOpened {
        partitions: topic.partitions().len() as u32,
        broker_routes: topic.chain().is_some_and(|c| c.routes()),
        next_sequence: stream.next(),
        config: TopicConfig::clone(&topic.config()),
    };
    let traffic = peer.broker.counters.tenant(&topic.name().tenant());
    let producer = Producer {
        peer: peer.clone(),
        topic,
        id: open.producer,
        stream,
        answers: Arc::new(Answers::new(Arc::clone(&peer.broker.counters))),
        traffic,
    };
    Ok((producer, opened))
}

fn not_opened(e: &ProducerRefused) -> WireError {
    let code = match e {
        ProducerRefused::Fenced(..) => ErrorCode::ProducerFenced,
        ProducerRefused::Store(_) => ErrorCode::StorageStopped,
        ProducerRefused::Row(..) => ErrorCode::Corrupt,
    };
    WireError::new(code, e.to_string())
}

/// How a stream ends.
enum End {
    Finished,
    Gone,
    Error(WireError),
}

/// A batch that has passed the door and the chain, or why not.
struct Prepared {
    slot: Slot,
    sequence: Sequence,
    /// Bytes it came with.
    bytes: usize,
    outcome: Result<Ready, WireError>,
}

struct Ready {
    appends: Vec<Append>,
    dropped: u32,
    /// As in [`Passed`](crate::guests::Passed).
    in_order: bool,
    /// What came.
    amount: Amount,
}

struct Producer {
    peer: Peer,
    topic: Arc<Topic>,
    id: ProducerId,
    stream: ProducerStream,
    answers: Arc<Answers>,
    traffic: Arc<Traffic>,
}

impl Producer {
    async fn read(&self, reader: &mut FrameReader) -> End {
        let mut ahead: FuturesOrdered<BoxFuture<'_, Prepared>> = FuturesOrdered::new();
        let mut ahead_bytes = 0;
        let mut rights = self.peer.broker.access.changed();
        // They may have changed while the stream was opened.
        if let Err(error) = self.still_allowed() {
            return End::Error(error);
        }
        let end = loop {
            // Not left to the waiting below: a client that sends without a pause never waits.
            if self.peer.broker.gate.is_closing() {
                break End::Error(shutting_down());
            }
            if rights.has_changed().is_ok_and(|changed| changed) {
                rights.mark_unchanged();
                if let Err(error) = self.still_allowed() {
                    break End::Error(error);
                }
            }
            let frame = tokio::select! {
                biased;
                Some(prepared) = ahead.next(), if !ahead.is_empty() => {
                    ahead_bytes -= prepared.bytes;
                    if let Err(error) = self.submit(prepared).await {
                        break End::Error(error);
                    }
                    continue;
                }
                frame = reader.next(),
                    if ahead.len() < CHAIN_DEPTH && ahead_bytes < CHAIN_BYTES => frame,
                // The broker, and with it the sender, outlives every session.
                _ = rights.changed() => {
                    rights.mark_changed();
                    continue;
                }
                () = self.peer.broker.gate.closing() => continue,
            };
            let frame = match frame {
                Ok(Some(frame)) => frame,
                Ok(None) => break End::Gone,
                Err(e) => break e.to_wire().map_or(End::Gone, End::Error),
            };
            match frame.kind {
                FrameKind::Produce => {}
                FrameKind::End => break End::Finished,
                kind => {
                    let text = format!("a {kind:?} frame does not belong on a producer's stream");
                    break End::Error(WireError::new(ErrorCode::UnexpectedFrame, text));
                }
            }
            let slot = self.answers.slot(frame.tag).await;
            if ahead.is_empty() && self.topic.chain().is_none() {
                // The common case: nothing to wait for, nothing to allocate.
                let prepared = self.prepare(frame, slot).await;
                if let Err(error) = self.submit(prepared).await {
                    break End::Error(error);
                }
            } else {
                ahead_bytes += frame.payload.len();
                ahead.push_back(Box::pin(self.prepare(frame, slot)));
            }
        };
        while let Some(prepared) = ahead.next().await {
            if let Err(error) = self.submit(prepared).await {
                return End::Error(error);
            }
        }
        end
    }

    fn still_allowed(&self) -> Result<(), WireError> {
        let (who, name) = (&self.peer.principal, self.topic.name().as_str());
        self.peer
            .broker
            .access
            .check(who, Operation::Produce, ResourceKind::Topic, name)
    }

    async fn prepare(&self, frame: Frame, slot: Slot) -> Prepared {
        let (sequence, bytes) = (Sequence(frame.tag), frame.payload.len());
        let outcome = self.pass(frame).await;
        Prepared {
            slot,
            sequence,
            bytes,
            outcome,
        }
    }

    /// Checks a batch at the door and runs it through the topic's chain.
    async fn pass(&self, frame: Frame) -> Result<Ready, WireError> {
        let (tag, (prefix, bytes)) = (frame.tag, ProducePrefix::split(frame.payload)?);
        let batch = Batch::check(settle(bytes)).map_err(|e| self.named(e.into()))?;
        self.check(&batch, tag)?;
        let amount = Amount {
            records: u64::from(batch.count()),
            bytes: batch.bytes().len() as u64,
        };
        self.look_into(&batch).await?;
        if self.topic.is_deleted() {
            let text = format!("topic {} was deleted", self.topic.name());
            return Err(WireError::new(ErrorCode::TopicDeleted, text));
        }
        if let Some(chain) = self.topic.chain() {
            let passed = chain.run(batch, prefix.partition, &self.topic).await?;
            return Ok(Ready {
                appends: passed.appends,
                dropped: passed.dropped,
                in_order: passed.in_order,
                amount,
            });
        }
        let placed = match prefix.partition {
            Some(partition) => vec![(partition, batch)],
            None => route::spread(&batch, &self.topic).map_err(|e| self.named(e.into()))?,
        };
        let appends = placed
            .into_iter()
            .map(|(p, batch)| {
                Append::to(&self.topic, p, batch).ok_or_else(|| {
                    let (name, have) = (self.topic.name(), self.topic.partitions().len());
                    let text = format!("topic {name} has no partition {p}; it has {have}");
                    WireError::new(ErrorCode::UnknownPartition, text)
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Ready {
            appends,
            dropped: 0,
            in_order: true,
            amount,
        })
    }

    /// What the header says: the stamp and the topic's limit.
    fn check(&self, batch: &Batch, tag: u64) -> Result<(), WireError> {
        let (header, config) = (batch.header(), self.topic.config());
        let fail = |code, text| Err(self.named(WireError::new(code, text)));
        if header.sequence.0 != tag || header.producer != self.id {
            let text = "the batch is stamped with another producer or sequence than its frame";
            return fail(ErrorCode::MalformedBatch, text.to_owned());
        }
        if header.flags.offset_deltas {
            let text = "the batch brings offsets of its own; the broker assigns them";
            return fail(ErrorCode::MalformedBatch, text.to_owned());
        }
        let (len, max) = (batch.bytes().len(), config.max_batch_bytes as usize);
        if len > max {
            let text = format!("a batch of {len} bytes; the topic takes {max} at most");
            return fail(ErrorCode::BatchTooLarge, text);
        }
        Ok(())
    }

    /// Looks into the batch, so that nobody finds out later that it cannot be
    /// read. A compressed one is unpacked beside the network's thread.
    async fn look_into(&self, batch: &Batch) -> Result<(), WireError> {
        let max = self.topic.config().max_record_bytes as usize;
        let fault = if batch.header().codec == Codec::None {
            inspect(batch, max)
        } else {
            let turn = UNPACKERS.acquire().await;
            let batch = batch.clone();
            let unpack = move || {
                // Kept to the end of the work, whether or not somebody still waits for it.
                let _turn = turn;
                inspect(&batch, max)
            };
            let unpacked = tokio::task::spawn_blocking(unpack).await;
            unpacked.map_err(|_| shutting_down())?
        };
        fault.map_err(|e| self.named(e.into()))
    }

    fn named(&self, mut error: WireError) -> WireError {
        error.message = format!("topic {}: {}", self.topic.name(), error.message);
        error
    }

    /// Submits one batch in its turn. An error ends the stream.
    async fn submit(&self, prepared: Prepared) -> Result<(), WireError> {
        let Prepared {
            slot,
            sequence,
            outcome,
            ..
        } = prepared;
        let (ready, error) = match outcome {
            Ok(ready) => (ready, None),
            Err(error) => (
                Ready {
                    appends: Vec::new(),
                    dropped: 0,
                    in_order: true,
                    amount: Amount::default(),
                },
                Some(error),
            ),
        };
        match self.stream.judge(sequence) {
            Judgement::New => {}
            Judgement::PassOver => {
                slot.fill(Answer::Silent);
                return Ok(());
            }
            Judgement::Duplicate(known) => return self.repeat(slot, known).await,
            Judgement::Refused(code) => {
                slot.fill(Answer::Error(self.refused_before(sequence, code)));
                return Ok(());
            }
            other => return Err(self.out_of_turn(slot, sequence, &other)),
        }
        if let Some(error) = error {
            match error.class() {
                ErrorClass::Retry => self.stream.ask_again(sequence),
                ErrorClass::Fix | ErrorClass::Fatal => self.stream.refused(sequence, error.code),
            }
            slot.fill(Answer::Error(error));
            return Ok(());
        }
        self.store(slot, sequence, ready).await
    }

    async fn store(&self, slot: Slot, sequence: Sequence, ready: Ready) -> Result<(), WireError> {
        let Ready {
            appends,
            dropped,
            in_order,
            amount,
        } = ready;
        let store = &**self.topic.store();
        let rows = WriteBatch::with_durability(durability(&appends));
        let ticket = match Ticket::reserve(store, &appends, &rows).await {
            Ok(ticket) => ticket,
            Err(e) => {
                self.stream.ask_again(sequence);
                slot.fill(Answer::Error(not_stored(&self.topic, &e)));
                return Ok(());
            }
        };
        let mut claim = match self.stream.claim(sequence) {
            Ok(claim) => claim,
            Err(judgement) => return Err(self.out_of_turn(slot, sequence, &judgement)),
        };
        let (keep, now_ms) = (self.stream.keep(), self.peer.broker.clock.now_ms());
        let decide = |placements: &[Placement], rows: &mut WriteBatch| {
            let told = told(placements, in_order);
            claim.stored(&told, rows, now_ms);
            told
        };
        let (topic, traffic) = (Arc::clone(&self.topic), Arc::clone(&self.traffic));
        let done = move |placements, result: Result<(), CommitError>| {
            if result.is_ok() {
                traffic.produce(amount);
            }
            slot.fill(match result {
                Ok(()) => Answer::Ack(Ack {
                    placements,
                    duplicate: false,
                    dropped,
                }),
                Err(e) => Answer::Error(not_stored(&topic, &e.into())),
            });
            drop(keep);
        };
        submit(store, ticket, appends, rows, decide, done);
        Ok(())
    }

    /// Answers a duplicate, behind everything submitted so far: the batch it
    /// repeats may not be durable yet.
    async fn repeat(&self, slot: Slot, known: Option<Vec<Placement>>) -> Result<(), WireError> {
        let store = &**self.topic.store();
        let rows = WriteBatch::new();
        let ticket = match Ticket::reserve(store, &[], &rows).await {
            Ok(ticket) => ticket,
            Err(e) => {
                slot.fill(Answer::Error(not_stored(&self.topic, &e)));
                return Ok(());
            }
        };
        let placements = known.unwrap_or_default();
        let topic = Arc::clone(&self.topic);
        let done = move |(), result: Result<(), CommitError>| {
            slot.fill(match result {
                Ok(()) => Answer::Ack(Ack {
                    placements,
                    duplicate: true,
                    dropped: 0,
                }),
                Err(e) => Answer::Error(not_stored(&topic, &e.into())),
            });
        };
        submit(store, ticket, Vec::new(), rows, |_, _| (), done);
        Ok(())
    }

    fn refused_before(&self, sequence: Sequence, code: ErrorCode) -> WireError {
        let text = format!(
            "batch {sequence} was refused when it came first ({code}); the answer was lost with its stream"
        );
        self.named(WireError::new(code, text))
    }

    fn out_of_turn(&self, slot: Slot, sequence: Sequence, judgement: &Judgement) -> WireError {
        slot.fill(Answer::Silent);
        let topic = self.topic.name();
        match judgement {
            Judgement::Gap { expected } => WireError::new(
                ErrorCode::SequenceGap,
                format!(
                    "topic {topic}: batch {sequence} came where {expected} was expected: open a new producer"
                ),
            ),
            Judgement::Fenced
            | Judgement::New
            | Judgement::Duplicate(_)
            | Judgement::Refused(_)
            | Judgement::PassOver => WireError::new(
                ErrorCode::ProducerFenced,
                format!(
                    "topic {topic}: another stream of producer {} has taken over",
                    self.id
                ),
            ),
        }
    }
}

/// Bounds how many batches are unpacked at the same time, each up to the limit
/// of a body.
static UNPACKERS: Semaphore = Semaphore::const_new(UNPACKED_BATCHES);

/// Unpacks a batch and checks every bound; `max` is the largest record in bytes.
fn inspect(batch: &Batch, max: usize) -> Result<(), BatchError> {
    let body = batch.body()?;
    let view = body.view()?;
    // Only a blob over the limit can hold a record over the limit.
    if view.blob().len() > max {
        for (index, record) in (0..).zip(view.records()) {
            if record.size > max {
                return Err(BatchError::RecordTooLarge {
                    index,
                    len: record.size,
                    max,
                });
            }
        }
    }
    Ok(())
}

/// Small batches are copied out of the receive buffer that they share.
fn settle(bytes: Bytes) -> Bytes {
    if bytes.len() < COPY_BELOW_BYTES {
        Bytes::copy_from_slice(&bytes)
    } else {
        bytes
    }
}

/// Why a batch is not acknowledged, for the client.
fn not_stored(topic: &Topic, e: &AppendError) -> WireError {
    WireError::new(e.code(), format!("topic {}: {e}", topic.name())).retry_after_ms(1000)
}

/// The placements as they are told, now and should the batch come again. A lone one would say that
/// the batch's records lie there one by one, so where that is not so an empty one follows.
fn told(placements: &[Placement], in_order: bool) -> Vec<Placement> {
    let mut told = placements.to_vec();
    if let [only] = placements
        && !in_order
    {
        told.push(Placement {
            base: only.base.plus(u64::from(only.count)),
            count: 0,
            ..*only
        });
    }
    told
}

#[cfg(test)]
mod tests;
