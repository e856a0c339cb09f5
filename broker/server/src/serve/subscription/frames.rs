//! What goes over a subscription's stream.

use bytes::{Bytes, BytesMut};
use millstream_proto::batch::HEADER_LEN;
use millstream_proto::frame::{
    DeliverPrefix, FRAME_HEADER_LEN, FrameKind, frame_header, message_frame,
};
use millstream_proto::message::Notice;
use millstream_proto::{Batch, Offset, PartitionId};

use crate::log::Stored;

/// The frame of a notice.
pub(super) fn notice(notice: &Notice) -> Bytes {
    message_frame(FrameKind::Notice, 0, notice)
        .expect("a notice is a few numbers and an error, whose text is bounded")
}

/// Deliver frames of one partition, as pieces: headers are written, bodies shared.
pub(super) struct Frames {
    partition: PartitionId,
    end: Offset,
    heads: BytesMut,
    pieces: Vec<Bytes>,
    /// A position that no frame has told yet.
    untold: Option<Offset>,
    pub(super) records: u64,
}

impl Frames {
    pub(super) fn new(partition: PartitionId, end: Offset) -> Self {
        Self {
            partition,
            end,
            heads: BytesMut::new(),
            pieces: Vec::new(),
            untold: None,
            records: 0,
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

    pub(super) fn push_stored(&mut self, stored: &Stored) {
        self.records += u64::from(stored.batch.count());
        let (header, body) = stored.batch.at_offset(stored.base);
        self.head(stored.end(), HEADER_LEN + body.len());
        self.heads.extend_from_slice(&header);
        self.pieces.push(self.heads.split().freeze());
        self.pieces.push(body);
    }

    /// What a chain made of the batch from `base` to `next`; offsets are in it.
    /// Behind a part the reader's position moves on to where the next part
    /// begins, and only behind the last to `next`.
    pub(super) fn push_made(&mut self, base: Offset, next: Offset, parts: &[Batch]) {
        if parts.is_empty() {
            self.untold = Some(next);
        }
        for (i, batch) in parts.iter().enumerate() {
            // Several parts may begin with results of the same record: then the
            // position stays where it is for all but the last.
            let following = parts.get(i + 1).map(|part| part.header().base_offset);
            let at = following.map_or(next, |first| first.clamp(base, next));
            self.records += u64::from(batch.count());
            self.head(at, batch.bytes().len());
            self.pieces.push(self.heads.split().freeze());
            self.pieces.push(batch.bytes().clone());
        }
    }

    pub(super) fn finish(mut self) -> Vec<Bytes> {
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
    use millstream_proto::batch::{BatchBuilder, NewRecord, Stamp};
    use millstream_proto::frame::Assembler;

    use super::*;

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
}
