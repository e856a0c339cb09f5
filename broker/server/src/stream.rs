//! Frames over a QUIC stream.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use millstream_proto::frame::{
    Assembler, Frame, FrameError, FrameKind, message_frame, put_message,
};
use millstream_proto::limits::{MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use millstream_proto::{ErrorCode, WireError};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout_at};

use crate::limits::{FRAME_TIMEOUT, FREE_FRAME_BYTES, INBOUND_BYTES};
use crate::metrics::Counters;

/// Tag of an error that concerns the whole stream.
pub(crate) const STREAM_TAG: u64 = u64::MAX;

/// Pieces taken from the stream at once: each taking costs a lock on the connection.
const PIECES: usize = 32;

/// Why no frame came.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFrameError {
    /// The peer or the network went away.
    #[error("{0}")]
    Gone(#[from] ReadError),
    /// The peer sent something that is not a frame.
    #[error("{0}")]
    Bad(#[from] FrameError),
    /// A large frame took too long.
    #[error("a frame of {0} bytes was not there within {FRAME_TIMEOUT:?}; send smaller batches")]
    TooSlow(usize),
    /// The stream ended within a frame.
    #[error("the stream ended in the middle of a frame")]
    CutOff,
}

impl ReadFrameError {
    /// What to tell the peer, if it can still be told.
    pub(crate) fn to_wire(&self) -> Option<WireError> {
        match self {
            ReadFrameError::Gone(_) => None,
            ReadFrameError::Bad(e) => Some(e.clone().into()),
            ReadFrameError::TooSlow(_) => {
                Some(WireError::new(ErrorCode::Overloaded, self.to_string()))
            }
            ReadFrameError::CutOff => Some(WireError::new(ErrorCode::Malformed, self.to_string())),
        }
    }
}

/// Reads frames. Dropping the future of [`FrameReader::next`] loses nothing.
pub(crate) struct FrameReader {
    stream: RecvStream,
    pieces: [Bytes; PIECES],
    /// Where in `pieces` those are that wait.
    waiting: Range<usize>,
    assembler: Assembler,
    /// Held while a large frame is being received, and until when that may take.
    room: Option<(SemaphorePermit<'static>, Instant)>,
}

/// Bounds what half-received frames hold, whoever sends them and on however many streams.
static INBOUND: Semaphore = Semaphore::const_new(INBOUND_BYTES);

impl FrameReader {
    /// Takes messages only: nobody may send a batch before he was let in as a producer, and what
    /// one connection's streams can make the broker hold stays small.
    pub(crate) fn new(stream: RecvStream) -> Self {
        let mut assembler = Assembler::default();
        assembler.limit(MAX_MESSAGE_BYTES);
        Self {
            stream,
            pieces: [const { Bytes::new() }; PIECES],
            waiting: 0..0,
            assembler,
            room: None,
        }
    }

    /// Takes batches too, from the next frame on.
    pub(crate) fn allow_batches(&mut self) {
        self.assembler.limit(MAX_FRAME_BYTES);
    }

    /// The next frame; `None` when the peer has finished its side.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, ReadFrameError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            match self.pieces().await? {
                Some(n) => self.waiting = 0..n,
                None if self.assembler.is_midway() => return Err(ReadFrameError::CutOff),
                None => return Ok(None),
            }
        }
    }

    /// More pieces from the stream, once there is room for the frame they belong to.
    async fn pieces(&mut self) -> Result<Option<usize>, ReadFrameError> {
        let large = self
            .assembler
            .claimed()
            .filter(|len| *len > FREE_FRAME_BYTES);
        let Some(len) = large else {
            return Ok(self.stream.read_chunks(&mut self.pieces).await?);
        };
        let until = match &self.room {
            Some((_, until)) => *until,
            None => {
                // A frame's length is bounded far below what the semaphore counts to, and the
                // semaphore is never closed.
                let room = INBOUND.acquire_many(len as u32).await;
                let until = Instant::now() + FRAME_TIMEOUT;
                self.room = room.ok().map(|room| (room, until));
                until
            }
        };
        let read = timeout_at(until, self.stream.read_chunks(&mut self.pieces)).await;
        Ok(read.map_err(|_| ReadFrameError::TooSlow(len))??)
    }

    /// The next frame among the pieces that wait.
    fn buffered(&mut self) -> Result<Option<Frame>, ReadFrameError> {
        while !self.waiting.is_empty() {
            let piece = &mut self.pieces[self.waiting.start];
            let frame = self.assembler.feed(piece)?;
            if piece.is_empty() {
                // An empty piece still holds on to the datagram that it was cut from.
                *piece = Bytes::new();
                self.waiting.start += 1;
            }
            if frame.is_some() {
                self.room = None;
                return Ok(frame);
            }
        }
        Ok(None)
    }

    /// Tells the peer to stop sending.
    pub(crate) fn stop(&mut self, code: ErrorCode) {
        // Already finished is as good as stopped.
        let _ = self.stream.stop(u32::from(code.number()).into());
    }
}

/// Writes frames.
pub(crate) struct FrameWriter {
    stream: SendStream,
    counters: Arc<Counters>,
}

impl FrameWriter {
    /// Counts the errors that it writes.
    pub(crate) fn new(stream: SendStream, counters: Arc<Counters>) -> Self {
        Self { stream, counters }
    }

    /// Writes one message.
    pub(crate) async fn message<M: Serialize>(
        &mut self,
        kind: FrameKind,
        tag: u64,
        message: &M,
    ) -> Result<(), WriteError> {
        let bytes = message_frame(kind, tag, message).unwrap_or_else(|e| {
            let mut out = BytesMut::new();
            // An error's text is bounded, so this frame always fits.
            let _ = put_message(&mut out, FrameKind::Error, tag, &e);
            out.freeze()
        });
        self.stream.write_chunk(bytes).await
    }

    /// Writes an error.
    pub(crate) async fn error(&mut self, tag: u64, error: &WireError) -> Result<(), WriteError> {
        self.counters.error(error.code);
        self.message(FrameKind::Error, tag, error).await
    }

    /// Writes pieces as they are, without copying.
    pub(crate) async fn pieces(&mut self, pieces: &mut [Bytes]) -> Result<(), WriteError> {
        self.stream.write_all_chunks(pieces).await
    }

    /// Writes what was put together elsewhere.
    pub(crate) async fn bytes(&mut self, bytes: Bytes) -> Result<(), WriteError> {
        self.stream.write_chunk(bytes).await
    }

    /// Says that nothing more will come, and waits until the peer has it all or is gone.
    pub(crate) async fn finish(mut self) {
        if self.stream.finish().is_ok() {
            // The peer stopping the stream, or going away, ends the wait too.
            let _ = self.stream.stopped().await;
        }
    }

    /// Breaks off, also in the middle of a frame: what was not sent yet never is.
    pub(crate) fn reset(&mut self, code: ErrorCode) {
        // Already finished or stopped is as good as reset.
        let _ = self.stream.reset(u32::from(code.number()).into());
    }

    /// Resolves when the peer no longer wants what is written.
    pub(crate) async fn stopped(&mut self) {
        let _ = self.stream.stopped().await;
    }
}
