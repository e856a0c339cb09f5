//! A broker in memory, with one topic, that misbehaves on demand.
//!
//! It stores each producer's batches once and in order, and hands them out: just
//! enough to see what the client makes of lost connections and refusals.

pub(crate) mod pki;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use millstream::TransportSettings;
use millstream::proto::frame::{
    Assembler, DeliverPrefix, Frame, FrameKind, ProducePrefix, frame_header, message_frame,
};
use millstream::proto::message::{
    Ack, Notice, OpenProducer, OpenSubscription, Placement, ProducerOpened, Request, Response,
    StreamOpen, SubscriptionOpened,
};
use millstream::proto::version::HelloOk;
use millstream::proto::{Batch, ProducerId, Sequence};
use millstream::{ErrorClass, ErrorCode, Offset, PartitionId, StartAt, TopicConfig, WireError};
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use serde::Serialize;

/// What goes wrong with a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    /// The connection goes before the batch is stored.
    CloseBefore,
    /// The batch is stored, and the connection goes before the acknowledgement.
    CloseAfter,
    /// An error in answer to the batch.
    Refuse(ErrorCode),
}

#[derive(Default)]
pub(crate) struct State {
    partitions: Vec<Vec<Batch>>,
    ends: Vec<u64>,
    /// Per producer: next sequence, and where each went.
    producers: HashMap<ProducerId, (u64, HashMap<u64, Placement>)>,
    /// Faults by how many batches came in before, each once.
    pub(crate) faults: BTreeMap<u64, Fault>,
    pub(crate) batches_seen: u64,
    /// Close the connection after this many deliveries, each once.
    pub(crate) close_after_deliveries: VecDeque<u64>,
    pub(crate) committed: BTreeMap<PartitionId, Offset>,
    pub(crate) connections: u64,
    /// Requests by their number that are not answered before the connection goes.
    pub(crate) lose_requests: HashSet<u64>,
    pub(crate) requests: u64,
    /// Told behind the next opening of a subscription, in place of what a real broker would find.
    pub(crate) notices: Vec<Notice>,
}

pub(crate) struct Broker {
    pub(crate) addr: SocketAddr,
    state: Arc<Mutex<State>>,
}

type Shared = Arc<Mutex<State>>;

impl Broker {
    pub(crate) fn start(config: quinn::ServerConfig, partitions: usize) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let endpoint = TransportSettings::default().server_endpoint(any, config);
        let endpoint = endpoint.unwrap();
        let addr = endpoint.local_addr().unwrap();
        let state = Shared::default();
        state.lock().unwrap().partitions = vec![Vec::new(); partitions];
        state.lock().unwrap().ends = vec![0; partitions];
        tokio::spawn(listen(endpoint, Arc::clone(&state)));
        Self { addr, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

async fn listen(endpoint: Endpoint, state: Shared) {
    while let Some(incoming) = endpoint.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let Ok(connection) = incoming.await else {
                return;
            };
            state.lock().unwrap().connections += 1;
            while let Ok((send, recv)) = connection.accept_bi().await {
                let stream = Side {
                    connection: connection.clone(),
                    send,
                    frames: Frames::new(recv),
                };
                tokio::spawn(stream.serve(Arc::clone(&state)));
            }
        });
    }
}

struct Frames {
    recv: RecvStream,
    assembler: Assembler,
    piece: Bytes,
}

impl Frames {
    fn new(recv: RecvStream) -> Self {
        Self {
            recv,
            assembler: Assembler::default(),
            piece: Bytes::new(),
        }
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            while !self.piece.is_empty() {
                if let Some(frame) = self.assembler.feed(&mut self.piece).unwrap() {
                    return Some(frame);
                }
            }
            self.piece = self.recv.read_chunk(1 << 20, true).await.ok()??.bytes;
        }
    }
}

struct Side {
    connection: Connection,
    send: SendStream,
    frames: Frames,
}

impl Side {
    async fn say<M: Serialize>(&mut self, kind: FrameKind, tag: u64, message: &M) {
        let frame = message_frame(kind, tag, message).unwrap();
        // The client may be gone.
        let _ = self.send.write_chunk(frame).await;
    }

    async fn serve(mut self, state: Shared) {
        let Some(frame) = self.frames.next().await else {
            return;
        };
        match frame.message::<StreamOpen>().unwrap() {
            StreamOpen::Control(_) => self.control(state).await,
            StreamOpen::Producer(open) => self.producer(open, state).await,
            StreamOpen::Subscription(open) => self.subscription(open, state).await,
            StreamOpen::Upload(_) => {
                let error = WireError::new(ErrorCode::UploadRejected, "not a component");
                self.say(FrameKind::Error, u64::MAX, &error).await;
                let _ = self.frames.recv.stop(500u32.into());
                let _ = self.send.finish();
                let _ = self.send.stopped().await;
            }
        }
    }

    async fn control(&mut self, state: Shared) {
        let hello = HelloOk {
            version: 1,
            server: "test".to_owned(),
            principal: "spiffe://test/acme/client".parse().unwrap(),
        };
        self.say(FrameKind::Opened, 0, &hello).await;
        while let Some(frame) = self.frames.next().await {
            let lose = {
                let mut state = state.lock().unwrap();
                state.requests += 1;
                let number = state.requests;
                state.lose_requests.remove(&number)
            };
            if lose {
                self.connection.close(0u32.into(), b"");
                return;
            }
            let answer = match frame.message().unwrap() {
                Request::CommitOffsets { offsets, .. } => {
                    let mut state = state.lock().unwrap();
                    let end = |partition: PartitionId| state.ends[partition.0 as usize];
                    if offsets.iter().all(|(p, offset)| offset.0 <= end(*p)) {
                        state.committed.extend(offsets);
                        Ok(Response::Done)
                    } else {
                        Err(WireError::new(
                            ErrorCode::OffsetOutOfRange,
                            "behind the end",
                        ))
                    }
                }
                Request::ListTopics { after: None, .. } => Ok(Response::Topics(vec![
                    "acme/a".parse().unwrap(),
                    "acme/b".parse().unwrap(),
                ])),
                Request::ListTopics {
                    after: Some(after), ..
                } if after.local() == "b" => Ok(Response::Topics(vec!["acme/c".parse().unwrap()])),
                Request::ListTopics { .. } => Ok(Response::Topics(Vec::new())),
                Request::ListRules => Ok(Response::Done),
                _ => Err(WireError::new(ErrorCode::NotAuthorized, "not here")),
            };
            match answer {
                Ok(response) => self.say(FrameKind::Response, frame.tag, &response).await,
                Err(error) => self.say(FrameKind::Error, frame.tag, &error).await,
            }
        }
    }

    async fn producer(&mut self, open: OpenProducer, state: Shared) {
        let opened = {
            let mut state = state.lock().unwrap();
            let next = state.producers.entry(open.producer).or_default().0;
            ProducerOpened {
                partitions: state.partitions.len() as u32,
                broker_routes: false,
                next_sequence: Sequence(next),
                config: TopicConfig {
                    max_record_bytes: 100_000,
                    ..TopicConfig::default()
                },
            }
        };
        self.say(FrameKind::Opened, 0, &opened).await;
        let mut holding = false;
        while let Some(frame) = self.frames.next().await {
            if frame.kind == FrameKind::End {
                self.say(FrameKind::End, 0, &()).await;
                let _ = self.send.finish();
                return;
            }
            let tag = frame.tag;
            let taken = state.lock().unwrap().take(&open, frame, &mut holding);
            match taken {
                Taken::Ack(ack) => self.say(FrameKind::Ack, tag, &ack).await,
                Taken::Refused(error) => self.say(FrameKind::Error, tag, &error).await,
                Taken::Silence => {}
                Taken::Close => return self.connection.close(0u32.into(), b""),
            }
        }
    }

    async fn subscription(&mut self, open: OpenSubscription, state: Shared) {
        assert!(open.until_end, "this broker delivers what it has");
        let (positions, frames) = state.lock().unwrap().deliveries(&open);
        self.say(FrameKind::Opened, 0, &SubscriptionOpened { positions })
            .await;
        let notices = std::mem::take(&mut state.lock().unwrap().notices);
        for notice in notices {
            self.say(FrameKind::Notice, 0, &notice).await;
        }
        let close_after = state.lock().unwrap().close_after_deliveries.pop_front();
        for (i, mut frame) in (0u64..).zip(frames) {
            if Some(i) == close_after {
                // What was written before arrives before the connection goes.
                let _ = self.send.finish();
                let _ = self.send.stopped().await;
                return self.connection.close(0u32.into(), b"");
            }
            if self.send.write_all_chunks(&mut frame).await.is_err() {
                return;
            }
        }
        self.say(FrameKind::End, 0, &()).await;
        let _ = self.send.finish();
    }
}

enum Taken {
    Ack(Ack),
    Refused(WireError),
    Silence,
    Close,
}

impl State {
    /// Loses all but the first `batches` of a partition, each of which has one record.
    pub(crate) fn truncate(&mut self, partition: u32, batches: usize) {
        self.partitions[partition as usize].truncate(batches);
        self.ends[partition as usize] = batches as u64;
    }

    fn take(&mut self, open: &OpenProducer, frame: Frame, holding: &mut bool) -> Taken {
        let (prefix, bytes) = ProducePrefix::split(frame.payload).unwrap();
        let batch = Batch::check(bytes).unwrap();
        assert_eq!(batch.header().sequence.0, frame.tag);
        assert_eq!(batch.header().producer, open.producer);
        let (next, known) = self.producers.entry(open.producer).or_default();
        if frame.tag < *next {
            let placements = known.get(&frame.tag).copied().into_iter().collect();
            return Taken::Ack(Ack {
                placements,
                duplicate: true,
                dropped: 0,
            });
        }
        if *holding && frame.tag > *next {
            return Taken::Silence;
        }
        let fault = self.faults.remove(&self.batches_seen);
        self.batches_seen += 1;
        match fault {
            Some(Fault::CloseBefore) => return Taken::Close,
            Some(Fault::Refuse(code)) => {
                *holding = code.class() == ErrorClass::Retry;
                if !*holding {
                    *next = frame.tag + 1;
                }
                return Taken::Refused(WireError::new(code, "as asked").retry_after_ms(1));
            }
            Some(Fault::CloseAfter) | None => {}
        }
        *holding = false;
        *next = frame.tag + 1;
        let partition = prefix.partition.expect("the client routes");
        let end = &mut self.ends[partition.0 as usize];
        let placement = Placement {
            partition,
            base: Offset(*end),
            count: batch.count(),
        };
        known.insert(frame.tag, placement);
        *end += u64::from(batch.count());
        let (header, body) = batch.at_offset(placement.base);
        let stored = Batch::check([&header[..], &body].concat().into()).unwrap();
        self.partitions[partition.0 as usize].push(stored);
        match fault {
            Some(_) => Taken::Close,
            None => Taken::Ack(Ack {
                placements: vec![placement],
                duplicate: false,
                dropped: 0,
            }),
        }
    }

    fn deliveries(&self, open: &OpenSubscription) -> (Vec<(PartitionId, Offset)>, Vec<[Bytes; 2]>) {
        let start = match open.start {
            StartAt::Offset(offset) => offset,
            _ => Offset(0),
        };
        let all: Vec<PartitionId> = (0..).take(self.ends.len()).map(PartitionId).collect();
        let chosen = if open.partitions.is_empty() {
            &all
        } else {
            &open.partitions
        };
        let begin = |partition: PartitionId| {
            let own = open.positions.iter().find(|(p, _)| *p == partition);
            let end = Offset(self.ends[partition.0 as usize]);
            own.map_or(start, |(_, offset)| (*offset).min(end))
        };
        let mut frames = Vec::new();
        for &partition in chosen {
            let start = begin(partition);
            let end = Offset(self.ends[partition.0 as usize]);
            for batch in &self.partitions[partition.0 as usize] {
                let next = batch.header().base_offset.plus(u64::from(batch.count()));
                if next <= start {
                    continue;
                }
                let prefix = DeliverPrefix {
                    partition,
                    next,
                    end,
                }
                .encode();
                let len = prefix.len() + batch.bytes().len();
                let head = [&frame_header(FrameKind::Deliver, 0, len)[..], &prefix].concat();
                frames.push([head.into(), batch.bytes().clone()]);
            }
        }
        (chosen.iter().map(|p| (*p, begin(*p))).collect(), frames)
    }
}
