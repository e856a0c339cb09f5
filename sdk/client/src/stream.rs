//! Frames on a QUIC stream, for every kind of stream the client opens.

use bytes::Bytes;
use millstream_proto::frame::{Assembler, Frame, FrameKind, message_frame};
use millstream_proto::message::StreamOpen;
use millstream_proto::{ErrorCode, WireError};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};

/// Tag of an error that concerns the stream and not a request or batch on it.
pub(crate) const STREAM_TAG: u64 = u64::MAX;

/// Pieces taken from the connection at once: about 64 KiB at the default MTU.
const PIECES: usize = 48;

/// Why a stream cannot go on.
#[derive(Clone, Debug)]
pub(crate) enum StreamError {
    /// The connection is gone, or the peer abandoned the stream without a word.
    Lost,
    /// The broker said why.
    Refused(WireError),
    /// The broker does not keep to the protocol.
    Protocol(String),
}

impl StreamError {
    fn abandoned(code: u64) -> Self {
        match u16::try_from(code).map(ErrorCode::from_number) {
            Ok(code @ ErrorCode::Unknown(_)) if code.number() == 0 => Self::Lost,
            Ok(code) => Self::Refused(WireError::new(code, "the broker abandoned the stream")),
            Err(_) => Self::Lost,
        }
    }

    fn connection(error: &ConnectionError) -> Self {
        match error {
            ConnectionError::TransportError(e) => Self::Protocol(e.to_string()),
            _ => Self::Lost,
        }
    }
}

impl From<ReadError> for StreamError {
    fn from(e: ReadError) -> Self {
        match e {
            ReadError::Reset(code) => Self::abandoned(code.into_inner()),
            ReadError::ConnectionLost(e) => Self::connection(&e),
            ReadError::ClosedStream
            | ReadError::IllegalOrderedRead
            | ReadError::ZeroRttRejected => Self::Lost,
        }
    }
}

impl From<WriteError> for StreamError {
    fn from(e: WriteError) -> Self {
        match e {
            WriteError::Stopped(code) => Self::abandoned(code.into_inner()),
            WriteError::ConnectionLost(e) => Self::connection(&e),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Self::Lost,
        }
    }
}

impl From<ConnectionError> for StreamError {
    fn from(e: ConnectionError) -> Self {
        Self::connection(&e)
    }
}

/// Reads frames.
pub(crate) struct FrameReader {
    recv: RecvStream,
    assembler: Assembler,
    pieces: Box<[Bytes]>,
    at: usize,
    filled: usize,
}

impl FrameReader {
    pub(crate) fn new(recv: RecvStream) -> Self {
        Self {
            recv,
            assembler: Assembler::default(),
            pieces: vec![Bytes::new(); PIECES].into_boxed_slice(),
            at: 0,
            filled: 0,
        }
    }

    /// The next frame that has come already, without waiting.
    ///
    /// # Errors
    /// [`StreamError::Protocol`] when the bytes are not frames.
    pub(crate) fn buffered(&mut self) -> Result<Option<Frame>, StreamError> {
        while self.at < self.filled {
            let piece = &mut self.pieces[self.at];
            let frame = self.assembler.feed(piece);
            if piece.is_empty() {
                self.at += 1;
            }
            if let Some(frame) = frame.map_err(|e| StreamError::Protocol(e.to_string()))? {
                return Ok(Some(frame));
            }
        }
        Ok(None)
    }

    /// The next frame; `None` at the end of the stream. Cancel-safe: what was
    /// read stays in `self`.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(Some(frame));
            }
            match self.recv.read_chunks(&mut self.pieces).await? {
                Some(n) => (self.at, self.filled) = (0, n),
                None if self.assembler.is_midway() => {
                    return Err(StreamError::Protocol(
                        "the stream ends within a frame".to_owned(),
                    ));
                }
                None => return Ok(None),
            }
        }
    }

    /// The next frame, where the stream must not end.
    pub(crate) async fn expect(&mut self) -> Result<Frame, StreamError> {
        self.next().await?.ok_or(StreamError::Lost)
    }
}

/// Opens a stream and waits until the broker accepts it; returns its answer.
pub(crate) async fn open(
    connection: &quinn::Connection,
    message: &StreamOpen,
) -> Result<(SendStream, FrameReader, Frame), StreamError> {
    let first = message_frame(FrameKind::Open, 0, message).map_err(StreamError::Refused)?;
    let (mut send, recv) = connection.open_bi().await?;
    let mut reader = FrameReader::new(recv);
    // A broker that refuses may stop the stream before it has read it all: its
    // answer counts, not the failed write.
    let written = send.write_chunk(first).await;
    match reader.expect().await {
        Ok(frame) => accepted(frame).map(|frame| (send, reader, frame)),
        Err(StreamError::Lost) => Err(written.err().map_or(StreamError::Lost, Into::into)),
        Err(e) => Err(e),
    }
}

/// Passes the answer to an opening on, or the error in its place.
pub(crate) fn accepted(frame: Frame) -> Result<Frame, StreamError> {
    match frame.kind {
        FrameKind::Opened => Ok(frame),
        FrameKind::Error => Err(refusal(&frame)),
        other => Err(StreamError::Protocol(format!(
            "a {other:?} frame in answer to the opening of a stream"
        ))),
    }
}

/// The error inside an error frame.
pub(crate) fn refusal(frame: &Frame) -> StreamError {
    match frame.message::<WireError>() {
        Ok(wire) => StreamError::Refused(wire),
        Err(e) => StreamError::Protocol(e.to_string()),
    }
}

/// A message inside a frame.
pub(crate) fn decode<M: serde::de::DeserializeOwned>(frame: &Frame) -> Result<M, StreamError> {
    frame
        .message()
        .map_err(|e| StreamError::Protocol(e.to_string()))
}
