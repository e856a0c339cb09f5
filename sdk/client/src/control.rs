//! Requests on the control stream: pipelined, answered in any order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use millstream_proto::WireError;
use millstream_proto::frame::{Frame, FrameKind, message_frame};
use millstream_proto::message::{Request, Response};
use quinn::SendStream;
use tokio::sync::{mpsc, oneshot};

use crate::stream::{self, FrameReader, StreamError};

/// Requests that may be on their way to the writer at once; further ones wait.
const QUEUE: usize = 64;

/// The control stream of one connection.
pub(crate) struct Control {
    outgoing: mpsc::Sender<Bytes>,
    waiting: Arc<Mutex<Waiting>>,
    next_tag: AtomicU64,
}

type Answer = Result<Response, StreamError>;

#[derive(Default)]
struct Waiting {
    by_tag: HashMap<u64, oneshot::Sender<Answer>>,
    lost: bool,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    // Only a map and a flag: a panic elsewhere leaves them usable.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a request off the map when nobody waits for its answer any more.
struct Forget<'a> {
    waiting: &'a Mutex<Waiting>,
    tag: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).by_tag.remove(&self.tag);
    }
}

impl Control {
    /// Takes over an opened control stream.
    pub(crate) fn start(send: SendStream, reader: FrameReader) -> Self {
        let (outgoing, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::new(Mutex::new(Waiting::default()));
        let shared = Arc::clone(&waiting);
        tokio::spawn(async move {
            tokio::select! {
                () = write(send, queue) => {}
                e = read(reader, &shared) => tracing::debug!("the control stream ended: {e:?}"),
            }
            let mut waiting = lock(&shared);
            waiting.lost = true;
            // Dropping the senders tells those who wait.
            waiting.by_tag.clear();
        });
        Self {
            outgoing,
            waiting,
            next_tag: AtomicU64::new(0),
        }
    }

    pub(crate) fn is_lost(&self) -> bool {
        lock(&self.waiting).lost
    }

    /// Sends one request and waits for its answer. [`StreamError::Lost`] leaves
    /// open whether the broker carried it out.
    pub(crate) async fn request(&self, request: &Request) -> Answer {
        let tag = self.next_tag.fetch_add(1, Ordering::Relaxed);
        let frame =
            message_frame(FrameKind::Request, tag, request).map_err(StreamError::Refused)?;
        let (tell, told) = oneshot::channel();
        {
            let mut waiting = lock(&self.waiting);
            if waiting.lost {
                return Err(StreamError::Lost);
            }
            waiting.by_tag.insert(tag, tell);
        }
        let _forget = Forget {
            waiting: &self.waiting,
            tag,
        };
        if self.outgoing.send(frame).await.is_err() {
            return Err(StreamError::Lost);
        }
        told.await.unwrap_or(Err(StreamError::Lost))
    }
}

async fn write(mut send: SendStream, mut queue: mpsc::Receiver<Bytes>) {
    let mut frames = Vec::with_capacity(QUEUE);
    while queue.recv_many(&mut frames, QUEUE).await > 0 {
        if send.write_all_chunks(&mut frames).await.is_err() {
            return;
        }
        frames.clear();
    }
}

async fn read(mut reader: FrameReader, waiting: &Mutex<Waiting>) -> StreamError {
    loop {
        match reader.expect().await {
            Ok(frame) => {
                if let Err(e) = settle(&frame, waiting) {
                    return e;
                }
            }
            Err(e) => return e,
        }
    }
}

fn settle(frame: &Frame, waiting: &Mutex<Waiting>) -> Result<(), StreamError> {
    let answer = match frame.kind {
        FrameKind::Response => stream::decode(frame),
        FrameKind::Error if frame.tag == stream::STREAM_TAG => {
            return Err(stream::refusal(frame));
        }
        FrameKind::Error => {
            Err(stream::decode::<WireError>(frame).map_or_else(|e| e, StreamError::Refused))
        }
        other => {
            return Err(StreamError::Protocol(format!(
                "a {other:?} frame on the control stream"
            )));
        }
    };
    // Nobody waits for the answer to a request that was given up.
    if let Some(tell) = lock(waiting).by_tag.remove(&frame.tag) {
        let _ = tell.send(answer);
    }
    Ok(())
}
