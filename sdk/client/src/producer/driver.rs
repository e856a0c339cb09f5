//! The producer's task: it owns the stream, and opens another when it is lost.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use millstream_proto::frame::{FRAME_HEADER_LEN, Frame, FrameKind, ProducePrefix, frame_header};
use millstream_proto::message::{Ack, OpenProducer, ProducerOpened, StreamOpen};
use millstream_proto::{
    Batch, ErrorClass, PartitionId, ProducerEpoch, ProducerId, TopicName, WireError,
};
use quinn::SendStream;
use tokio::time::Instant;

use super::Shared;
use super::core::{Step, Verdict};
use super::gather::Rules;
use crate::ambient::random_u64;
use crate::connect::Client;
use crate::error::ProduceError;
use crate::retry::Attempts;
use crate::stream::{self, FrameReader, STREAM_TAG, StreamError};

/// A stream that the broker has accepted.
pub(super) struct Stream {
    send: SendStream,
    reader: FrameReader,
    pub(super) opened: ProducerOpened,
}

/// Opens a producer's stream, trying until the attempts' deadline.
pub(super) async fn open(
    client: &Client,
    topic: &TopicName,
    producer: ProducerId,
    attempts: &mut Attempts,
) -> Result<Stream, ProduceError> {
    let open = StreamOpen::Producer(OpenProducer {
        topic: topic.clone(),
        producer,
        epoch: ProducerEpoch(0),
    });
    loop {
        let link = client.link().await.map_err(|error| ProduceError::Connect {
            topic: topic.clone(),
            error,
        })?;
        let opened = async {
            let (send, reader, frame) = stream::open(&link.connection, &open).await?;
            let opened = stream::decode(&frame)?;
            Ok(Stream {
                send,
                reader,
                opened,
            })
        };
        let error = match opened.await {
            Ok(stream) => return Ok(stream),
            Err(StreamError::Protocol(why)) => {
                let topic = topic.clone();
                return Err(ProduceError::Protocol { topic, why });
            }
            Err(StreamError::Refused(wire)) => wire,
            Err(StreamError::Lost) => lost(),
        };
        let patience = attempts.failed(Instant::now(), error.retry_after_ms, random_u64());
        match patience.filter(|_| error.class() == ErrorClass::Retry) {
            Some(delay) => tokio::time::sleep(delay).await,
            None => {
                let topic = topic.clone();
                return Err(ProduceError::Refused { topic, error });
            }
        }
    }
}

fn lost() -> WireError {
    WireError::new(
        millstream_proto::ErrorCode::ShuttingDown,
        "the connection was lost while the stream was being opened",
    )
}

/// How a stream ended.
enum End {
    /// The broker has answered everything and said goodbye.
    Finished,
    Reopen,
    Fail(ProduceError),
}

/// Runs the producer until it is closed or fails.
pub(super) async fn drive(client: Client, shared: Arc<Shared>, first: Stream) {
    let why = tokio::select! {
        why = keep_streaming(&client, &shared, first) => why,
        // The client was closed with this producer open.
        () = client.closed() => ProduceError::Closed { topic: shared.topic.clone() },
    };
    if !matches!(why, ProduceError::Closed { .. }) {
        tracing::debug!(topic = %shared.topic, "the producer failed: {why}");
    }
    shared.lock().finish(why);
    shared.room.notify_waiters();
}

async fn keep_streaming(client: &Client, shared: &Shared, first: Stream) -> ProduceError {
    let mut stream = first;
    loop {
        match run(shared, stream).await {
            End::Finished => {
                return ProduceError::Closed {
                    topic: shared.topic.clone(),
                };
            }
            End::Fail(e) => return e,
            End::Reopen => {}
        }
        let (id, batch_bytes, until) = {
            let mut core = shared.lock();
            core.stream_gone();
            if core.is_drained() {
                return ProduceError::Closed {
                    topic: shared.topic.clone(),
                };
            }
            let settings = core.settings();
            (settings.id, settings.batch_bytes, core.paused_until())
        };
        shared.room.notify_waiters();
        if let Some(until) = until {
            tokio::time::sleep_until(until).await;
        }
        let config = client.config();
        let mut attempts = Attempts::new(config.backoff, config.reconnect_deadline);
        stream = match open(client, &shared.topic, id, &mut attempts).await {
            Ok(stream) => stream,
            Err(e) => return e,
        };
        let rules = Rules::new(&stream.opened, batch_bytes);
        shared.lock().reopened(rules);
        shared.room.notify_waiters();
    }
}

/// Serves one stream to its end.
async fn run(shared: &Shared, stream: Stream) -> End {
    let Stream { send, reader, .. } = stream;
    let reading = read(shared, reader);
    let writing = write(shared, send);
    tokio::pin!(reading, writing);
    let error = tokio::select! {
        end = &mut reading => return end,
        // After `End` only answers remain; the stream stays open for them.
        written = &mut writing => match written {
            Ok(_send) => return reading.await,
            Err(e) => e,
        },
    };
    // The broker may have said why it stopped reading.
    match error {
        StreamError::Lost => reading.await,
        StreamError::Refused(_) => reading.await,
        StreamError::Protocol(why) => protocol(shared, why),
    }
}

fn protocol(shared: &Shared, why: String) -> End {
    End::Fail(ProduceError::Protocol {
        topic: shared.topic.clone(),
        why,
    })
}

/// Writes what the core gives out, until it gives out the end.
async fn write(shared: &Shared, mut send: SendStream) -> Result<SendStream, StreamError> {
    loop {
        let step = shared.lock().step(Instant::now());
        match step {
            Step::Send {
                sequence,
                partition,
                batch,
            } => {
                let mut pieces = [head(sequence, partition, &batch), batch.bytes().clone()];
                drop(batch);
                send.write_all_chunks(&mut pieces).await?;
            }
            Step::End => {
                let end = frame_header(FrameKind::End, 0, 0);
                send.write_chunk(Bytes::copy_from_slice(&end)).await?;
                return Ok(send);
            }
            Step::Park(None) => shared.writer.notified().await,
            Step::Park(Some(until)) => {
                // Either way the core is asked again.
                let _ = tokio::time::timeout_at(until, shared.writer.notified()).await;
            }
        }
    }
}

/// What stands before the batch: the frame's header and where it goes.
fn head(sequence: u64, partition: Option<PartitionId>, batch: &Batch) -> Bytes {
    let len = ProducePrefix::LEN + batch.bytes().len();
    let mut head = BytesMut::with_capacity(FRAME_HEADER_LEN + ProducePrefix::LEN);
    head.extend_from_slice(&frame_header(FrameKind::Produce, sequence, len));
    head.extend_from_slice(&ProducePrefix { partition }.encode());
    head.freeze()
}

/// Reads answers until the stream ends.
async fn read(shared: &Shared, mut reader: FrameReader) -> End {
    loop {
        let mut frame = match reader.expect().await {
            Ok(frame) => frame,
            Err(e) => return ended(shared, e),
        };
        loop {
            match answer(shared, &frame) {
                Ok(Verdict::GoOn) => {}
                Ok(Verdict::Reopen) => return End::Reopen,
                Ok(Verdict::Fail(e)) => return End::Fail(e),
                Err(Goodbye) => return End::Finished,
            }
            match reader.buffered() {
                Ok(Some(next)) => frame = next,
                Ok(None) => break,
                Err(e) => return ended(shared, e),
            }
        }
        // Once for all answers that came together.
        if shared.lock().wake_writer() {
            shared.writer.notify_one();
        }
        shared.room.notify_waiters();
    }
}

fn ended(shared: &Shared, error: StreamError) -> End {
    let (now, random) = (Instant::now(), random_u64());
    let verdict = match error {
        StreamError::Lost => shared.lock().stream_lost(now, random),
        StreamError::Refused(wire) => shared.lock().stream_refused(wire, now, random),
        StreamError::Protocol(why) => return protocol(shared, why),
    };
    match verdict {
        Verdict::Fail(e) => End::Fail(e),
        Verdict::GoOn | Verdict::Reopen => End::Reopen,
    }
}

/// The broker's last word.
struct Goodbye;

fn answer(shared: &Shared, frame: &Frame) -> Result<Verdict, Goodbye> {
    let garbled = |why: String| {
        Ok(Verdict::Fail(ProduceError::Protocol {
            topic: shared.topic.clone(),
            why,
        }))
    };
    match frame.kind {
        FrameKind::Ack => match frame.message::<Ack>() {
            Ok(ack) => Ok(shared.lock().acked(frame.tag, ack)),
            Err(e) => garbled(e.to_string()),
        },
        FrameKind::Error => match frame.message::<WireError>() {
            Ok(error) => {
                let (now, random) = (Instant::now(), random_u64());
                let mut core = shared.lock();
                Ok(if frame.tag == STREAM_TAG {
                    core.stream_refused(error, now, random)
                } else {
                    core.refused(frame.tag, error, now, random)
                })
            }
            Err(e) => garbled(e.to_string()),
        },
        FrameKind::End => Err(Goodbye),
        other => garbled(format!("a {other:?} frame on a producer's stream")),
    }
}
