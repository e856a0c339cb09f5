//! Frames: how messages and batches follow one another on a stream.
//!
//! ```text
//!  0        4    5        8                16
//! +--------+----+--------+----------------+=================+
//! | length |kind| zero   | tag            | payload (length)|
//! +--------+----+--------+----------------+=================+
//! ```
//! Little-endian. `length` counts the payload only. `tag` is the correlation id
//! of a request and its answer, or the sequence of a produced batch and its
//! acknowledgement. [`Assembler`] takes a stream in whatever pieces it comes;
//! a frame that lies within one piece is passed on without copying.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::code::{ErrorCode, WireError};
use crate::limits::{MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use crate::offset::{Offset, PartitionId};

/// Length of a frame's header in bytes.
pub const FRAME_HEADER_LEN: usize = 16;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FrameKind {
    /// Opens a stream: [`StreamOpen`](crate::message::StreamOpen).
    Open = 1,
    /// The broker accepts the stream: the answer that belongs to its kind.
    Opened = 2,
    /// [`Request`](crate::message::Request) on the control stream.
    Request = 3,
    /// [`Response`](crate::message::Response) to the request of the same tag.
    Response = 4,
    /// [`ProducePrefix`] and a batch; the tag is the batch's sequence.
    Produce = 5,
    /// [`Ack`](crate::message::Ack) of the batch with the tag as sequence.
    Ack = 6,
    /// [`DeliverPrefix`] and a batch, or no batch: progress only.
    Deliver = 7,
    /// Raw bytes of an upload.
    Chunk = 8,
    /// The sender has said all on this stream.
    End = 9,
    /// [`WireError`]: about the tag's request or batch, or about the stream.
    Error = 10,
    /// [`Notice`](crate::message::Notice) among what a subscription delivers.
    Notice = 11,
}

impl FrameKind {
    fn from_number(n: u8) -> Option<Self> {
        Some(match n {
            1 => Self::Open,
            2 => Self::Opened,
            3 => Self::Request,
            4 => Self::Response,
            5 => Self::Produce,
            6 => Self::Ack,
            7 => Self::Deliver,
            8 => Self::Chunk,
            9 => Self::End,
            10 => Self::Error,
            11 => Self::Notice,
            _ => return None,
        })
    }

    /// Largest payload of this kind, in bytes.
    #[must_use]
    pub const fn max_payload(self) -> usize {
        match self {
            Self::Produce | Self::Deliver => MAX_FRAME_BYTES,
            _ => MAX_MESSAGE_BYTES,
        }
    }
}

/// One frame, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it carries.
    pub kind: FrameKind,
    /// Correlation id or sequence.
    pub tag: u64,
    /// What follows the header.
    pub payload: Bytes,
}

/// Why bytes are not a frame. The stream cannot go on after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this version does not know.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// Bytes that must be zero are not.
    #[error("reserved bytes of a frame header are not zero")]
    Reserved,
    /// Longer than its kind allows.
    #[error("a {kind:?} frame of {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// The kind.
        kind: FrameKind,
        /// The claimed length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The payload is not the message it should be.
    #[error("a {kind:?} frame does not hold a valid message: {why}")]
    Message {
        /// The kind.
        kind: FrameKind,
        /// What the decoder said.
        why: String,
    },
}

impl From<FrameError> for WireError {
    fn from(e: FrameError) -> Self {
        let code = match &e {
            FrameError::TooLarge { .. } => ErrorCode::FrameTooLarge,
            FrameError::UnknownKind(_) | FrameError::Reserved | FrameError::Message { .. } => {
                ErrorCode::Malformed
            }
        };
        WireError::new(code, e.to_string())
    }
}

/// A frame header's bytes.
///
/// `len` is at most [`FrameKind::max_payload`]; the receiver refuses more.
#[must_use]
pub fn frame_header(kind: FrameKind, tag: u64, len: usize) -> [u8; FRAME_HEADER_LEN] {
    let mut h = [0; FRAME_HEADER_LEN];
    h[0..4].copy_from_slice(&(len as u32).to_le_bytes());
    h[4] = kind as u8;
    h[8..16].copy_from_slice(&tag.to_le_bytes());
    h
}

/// Appends a frame with a postcard message.
///
/// # Errors
/// [`WireError`] of kind `FrameTooLarge` when the message is larger than
/// [`MAX_MESSAGE_BYTES`]; nothing is appended then.
pub fn put_message<M: Serialize>(
    out: &mut BytesMut,
    kind: FrameKind,
    tag: u64,
    message: &M,
) -> Result<(), WireError> {
    let payload = postcard::to_allocvec(message).map_err(|e| {
        WireError::new(
            ErrorCode::Internal,
            format!("a message cannot be encoded: {e}"),
        )
    })?;
    if payload.len() > kind.max_payload() {
        return Err(FrameError::TooLarge {
            kind,
            len: payload.len(),
            max: kind.max_payload(),
        }
        .into());
    }
    out.reserve(FRAME_HEADER_LEN + payload.len());
    out.put_slice(&frame_header(kind, tag, payload.len()));
    out.put_slice(&payload);
    Ok(())
}

/// A frame with a postcard message, by itself.
///
/// # Errors
/// As [`put_message`].
pub fn message_frame<M: Serialize>(
    kind: FrameKind,
    tag: u64,
    message: &M,
) -> Result<Bytes, WireError> {
    let mut out = BytesMut::new();
    put_message(&mut out, kind, tag, message)?;
    Ok(out.freeze())
}

impl Frame {
    /// The payload as a message.
    ///
    /// # Errors
    /// [`FrameError::Message`] when it is not one, or bytes are left over.
    pub fn message<M: DeserializeOwned>(&self) -> Result<M, FrameError> {
        let fail = |why: String| FrameError::Message {
            kind: self.kind,
            why,
        };
        match postcard::take_from_bytes::<M>(&self.payload) {
            Ok((message, [])) => Ok(message),
            Ok((_, rest)) => Err(fail(format!("{} bytes are left over", rest.len()))),
            Err(e) => Err(fail(e.to_string())),
        }
    }
}

/// First bytes reserved for a frame's payload before more of it has come: a
/// claimed length alone must not make the receiver allocate it.
const FIRST_RESERVE: usize = 256 << 10;

#[derive(Debug)]
enum State {
    Header {
        bytes: [u8; FRAME_HEADER_LEN],
        have: usize,
    },
    Payload {
        kind: FrameKind,
        tag: u64,
        len: usize,
        bytes: BytesMut,
    },
}

/// Puts frames together from a stream's pieces.
#[derive(Debug)]
pub struct Assembler {
    state: State,
    limit: usize,
}

const BETWEEN_FRAMES: State = State::Header {
    bytes: [0; FRAME_HEADER_LEN],
    have: 0,
};

impl Default for Assembler {
    fn default() -> Self {
        Self {
            state: BETWEEN_FRAMES,
            limit: MAX_FRAME_BYTES,
        }
    }
}

impl Assembler {
    /// Takes payloads of at most `bytes` from the next frame on, whatever their kind allows: a
    /// peer who may not send batches must not make the receiver hold one.
    pub fn limit(&mut self, bytes: usize) {
        self.limit = bytes;
    }

    /// Takes from the front of `piece` what belongs to the next frame, and
    /// returns the frame once it is whole. Call again while `piece` is not empty.
    ///
    /// # Errors
    /// Any [`FrameError`] of the header; the stream is lost after it.
    pub fn feed(&mut self, piece: &mut Bytes) -> Result<Option<Frame>, FrameError> {
        if let State::Header { bytes, have } = &mut self.state {
            let n = (FRAME_HEADER_LEN - *have).min(piece.len());
            bytes[*have..*have + n].copy_from_slice(&piece[..n]);
            piece.advance(n);
            *have += n;
            if *have < FRAME_HEADER_LEN {
                return Ok(None);
            }
            let (kind, tag, len) = parse_header(bytes, self.limit)?;
            if len <= piece.len() {
                self.state = BETWEEN_FRAMES;
                return Ok(Some(Frame {
                    kind,
                    tag,
                    payload: piece.split_to(len),
                }));
            }
            let bytes = BytesMut::with_capacity(len.min(FIRST_RESERVE));
            self.state = State::Payload {
                kind,
                tag,
                len,
                bytes,
            };
        }
        let State::Payload {
            kind,
            tag,
            len,
            bytes,
        } = &mut self.state
        else {
            return Ok(None);
        };
        let n = (*len - bytes.len()).min(piece.len());
        if bytes.capacity() - bytes.len() < n {
            let more = (*len - bytes.len()).min(bytes.len().max(n));
            bytes.reserve(more);
        }
        bytes.put_slice(&piece[..n]);
        piece.advance(n);
        if bytes.len() < *len {
            return Ok(None);
        }
        let frame = Frame {
            kind: *kind,
            tag: *tag,
            payload: std::mem::take(bytes).freeze(),
        };
        self.state = BETWEEN_FRAMES;
        Ok(Some(frame))
    }

    /// The length that a frame claims whose header is there and whose payload is not.
    #[must_use]
    pub fn claimed(&self) -> Option<usize> {
        match &self.state {
            State::Payload { len, .. } => Some(*len),
            State::Header { .. } => None,
        }
    }

    /// Whether a frame has begun and is not whole: the end of the stream here is an error.
    #[must_use]
    pub fn is_midway(&self) -> bool {
        !matches!(self.state, State::Header { have: 0, .. })
    }
}

fn parse_header(
    h: &[u8; FRAME_HEADER_LEN],
    limit: usize,
) -> Result<(FrameKind, u64, usize), FrameError> {
    let len = u32::from_le_bytes([h[0], h[1], h[2], h[3]]) as usize;
    let kind = FrameKind::from_number(h[4]).ok_or(FrameError::UnknownKind(h[4]))?;
    if h[5..8] != [0; 3] {
        return Err(FrameError::Reserved);
    }
    let max = kind.max_payload().min(limit);
    if len > max {
        return Err(FrameError::TooLarge { kind, len, max });
    }
    let mut tag = [0; 8];
    tag.copy_from_slice(&h[8..16]);
    Ok((kind, u64::from_le_bytes(tag), len))
}

/// Partition number that leaves the choice to the broker.
const ANY_PARTITION: u32 = u32::MAX;

/// What stands before the batch in a [`FrameKind::Produce`] frame: 8 bytes,
/// partition (`0xffffffff` = the broker chooses) and zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducePrefix {
    /// Where the batch goes, if the producer says.
    pub partition: Option<PartitionId>,
}

impl ProducePrefix {
    /// Its length in bytes.
    pub const LEN: usize = 8;

    /// Writes it.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&self.partition.map_or(ANY_PARTITION, |p| p.0).to_le_bytes());
        out
    }

    /// Splits a payload into prefix and batch.
    ///
    /// # Errors
    /// [`FrameError::Message`] when the payload is too short.
    pub fn split(mut payload: Bytes) -> Result<(Self, Bytes), FrameError> {
        if payload.len() < Self::LEN {
            return Err(FrameError::Message {
                kind: FrameKind::Produce,
                why: "it is too short".into(),
            });
        }
        let partition = payload.get_u32_le();
        payload.advance(4);
        let partition = (partition != ANY_PARTITION).then_some(PartitionId(partition));
        Ok((Self { partition }, payload))
    }
}

/// What stands before the batch in a [`FrameKind::Deliver`] frame: 24 bytes,
/// partition, zero, next offset, end offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeliverPrefix {
    /// Which partition the batch comes from.
    pub partition: PartitionId,
    /// The offset to go on with after this batch: what a consumer commits.
    pub next: Offset,
    /// The partition's durable end when the batch was sent.
    pub end: Offset,
}

impl DeliverPrefix {
    /// Its length in bytes.
    pub const LEN: usize = 24;

    /// Writes it.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut out = [0; Self::LEN];
        out[..4].copy_from_slice(&self.partition.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.next.0.to_le_bytes());
        out[16..24].copy_from_slice(&self.end.0.to_le_bytes());
        out
    }

    /// Splits a payload into prefix and batch; the batch is empty where only
    /// the position moved on.
    ///
    /// # Errors
    /// [`FrameError::Message`] when the payload is too short.
    pub fn split(mut payload: Bytes) -> Result<(Self, Bytes), FrameError> {
        if payload.len() < Self::LEN {
            return Err(FrameError::Message {
                kind: FrameKind::Deliver,
                why: "it is too short".into(),
            });
        }
        let partition = PartitionId(payload.get_u32_le());
        payload.advance(4);
        let (next, end) = (Offset(payload.get_u64_le()), Offset(payload.get_u64_le()));
        Ok((
            Self {
                partition,
                next,
                end,
            },
            payload,
        ))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is a test's way to fail")]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Frame]) -> Vec<u8> {
        let mut out = Vec::new();
        for f in frames {
            out.extend_from_slice(&frame_header(f.kind, f.tag, f.payload.len()));
            out.extend_from_slice(&f.payload);
        }
        out
    }

    fn decode(pieces: impl Iterator<Item = Bytes>) -> Result<Vec<Frame>, FrameError> {
        let mut assembler = Assembler::default();
        let mut frames = Vec::new();
        for mut piece in pieces {
            loop {
                match assembler.feed(&mut piece)? {
                    Some(frame) => frames.push(frame),
                    None if piece.is_empty() => break,
                    None => {}
                }
            }
        }
        Ok(frames)
    }

    fn frame() -> impl Strategy<Value = Frame> {
        (1u8..=11, any::<u64>(), vec(any::<u8>(), 0..200)).prop_map(|(kind, tag, payload)| Frame {
            kind: FrameKind::from_number(kind).unwrap(),
            tag,
            payload: payload.into(),
        })
    }

    proptest! {
        #[test]
        fn frames_come_out_however_the_stream_is_cut(
            frames in vec(frame(), 0..8), size in 1usize..64,
        ) {
            let bytes = encode(&frames);
            let pieces = bytes.chunks(size).map(Bytes::copy_from_slice);
            prop_assert_eq!(decode(pieces).unwrap(), frames);
        }

        #[test]
        fn no_bytes_make_the_assembler_panic(pieces in vec(vec(any::<u8>(), 0..64), 0..8)) {
            if let Ok(frames) = decode(pieces.into_iter().map(Bytes::from)) {
                for frame in frames {
                    let _ = frame.message::<crate::message::Request>();
                    let _ = frame.message::<crate::message::StreamOpen>();
                    let _ = frame.message::<WireError>();
                    let _ = frame.message::<crate::message::Notice>();
                    let _ = ProducePrefix::split(frame.payload.clone());
                    let _ = DeliverPrefix::split(frame.payload);
                }
            }
        }
    }

    #[test]
    fn golden_header() {
        let h = frame_header(FrameKind::Produce, 0x0102, 3);
        assert_eq!(h, [3, 0, 0, 0, 5, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_claimed_length_alone_does_not_allocate_it() {
        let mut assembler = Assembler::default();
        let head = frame_header(FrameKind::Produce, 0, MAX_FRAME_BYTES);
        let mut piece = Bytes::copy_from_slice(&head);
        assert_eq!(assembler.feed(&mut piece), Ok(None));
        let State::Payload { bytes, .. } = &assembler.state else {
            panic!("not in a payload")
        };
        assert!(bytes.capacity() <= FIRST_RESERVE);
        assert!(assembler.is_midway());
        assert_eq!(assembler.claimed(), Some(MAX_FRAME_BYTES));
    }

    #[test]
    fn a_limit_holds_from_the_next_frame_on() {
        let mut assembler = Assembler::default();
        assembler.limit(10);
        let feed = |assembler: &mut Assembler, len: usize| {
            let mut bytes = frame_header(FrameKind::Produce, 0, len).to_vec();
            bytes.resize(bytes.len() + len, 0);
            assembler.feed(&mut bytes.into())
        };
        assert!(feed(&mut assembler, 10).unwrap().is_some());
        let too_large = FrameError::TooLarge {
            kind: FrameKind::Produce,
            len: 11,
            max: 10,
        };
        assert_eq!(feed(&mut assembler, 11), Err(too_large));
        let mut assembler = Assembler::default();
        assembler.limit(10);
        assembler.limit(MAX_FRAME_BYTES);
        assert!(feed(&mut assembler, 11).unwrap().is_some());
    }

    #[test]
    fn faulty_headers_are_named() {
        let feed = |h: [u8; 16]| {
            Assembler::default()
                .feed(&mut Bytes::copy_from_slice(&h))
                .unwrap_err()
        };
        let mut unknown = frame_header(FrameKind::Ack, 0, 0);
        unknown[4] = 99;
        assert_eq!(feed(unknown), FrameError::UnknownKind(99));
        let mut reserved = frame_header(FrameKind::Ack, 0, 0);
        reserved[6] = 1;
        assert_eq!(feed(reserved), FrameError::Reserved);
        let large = frame_header(FrameKind::Ack, 0, MAX_MESSAGE_BYTES + 1);
        assert!(matches!(feed(large), FrameError::TooLarge { .. }));
    }

    #[test]
    fn prefixes_go_both_ways() {
        for partition in [None, Some(PartitionId(7))] {
            let bytes = [&ProducePrefix { partition }.encode()[..], b"rest"].concat();
            let (read, rest) = ProducePrefix::split(bytes.into()).unwrap();
            assert_eq!((read.partition, &rest[..]), (partition, &b"rest"[..]));
        }
        let prefix = DeliverPrefix {
            partition: PartitionId(1),
            next: Offset(2),
            end: Offset(3),
        };
        let (read, rest) = DeliverPrefix::split(Bytes::copy_from_slice(&prefix.encode())).unwrap();
        assert_eq!((read, rest.len()), (prefix, 0));
        assert!(DeliverPrefix::split(Bytes::from_static(b"short")).is_err());
    }
}
