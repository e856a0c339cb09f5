//! Reading the entries of a range in order.

use std::ops::Range;

use bytes::Bytes;

use super::error::SegmentError;
use super::format::{BLOCK_HEAD, Block, ENTRY_HEAD};
use super::limits::{COPY_GROUP, READ_AHEAD};
use super::reader::{BlockReader, Segment, is_shared};
use crate::batch::Key;
use crate::store::{Direction, Row};

/// The entries of a range of keys. After an error it goes on with the next block, if it is asked
/// to: the entries of the damaged one are missing then.
pub struct Scan<'a> {
    segment: &'a Segment,
    reader: BlockReader<'a>,
    start: Key,
    end: Option<Key>,
    direction: Direction,
    /// Blocks that have not been looked at yet.
    blocks: Range<usize>,
    /// How much may still be read ahead.
    wanted: usize,
    current: Option<Current>,
}

/// The block that entries are being taken from.
struct Current {
    block: Block,
    buffer_len: usize,
    /// Entries that have not been returned yet.
    entries: Range<usize>,
    copied: Copied,
}

/// Values that were copied out together.
#[derive(Default)]
struct Copied {
    entries: Range<usize>,
    /// Where the first of them lies among all values of the block.
    start: usize,
    /// Their values, one after the other.
    values: Bytes,
}

impl<'a> Scan<'a> {
    pub(super) fn new(
        segment: &'a Segment,
        start: &[u8],
        end: Option<&[u8]>,
        direction: Direction,
    ) -> Self {
        Self {
            segment,
            reader: BlockReader::new(segment),
            start: Key::from(start),
            end: end.map(Key::from),
            direction,
            blocks: segment.index().blocks_within(start, end),
            wanted: usize::MAX,
            current: None,
        }
    }

    /// Promises that about `bytes` will be wanted in all, so that no more is read ahead. Without
    /// it, a forward scan reads [`READ_AHEAD`] at a time.
    #[must_use]
    pub fn wanting(mut self, bytes: usize) -> Self {
        self.wanted = bytes;
        self
    }

    /// Bytes of the next entry's key and value, if the index knows them without the block being
    /// read: it has a block of its own. For those who would not take it.
    pub(crate) fn next_alone(&self) -> Option<usize> {
        let here = self.current.as_ref();
        if self.blocks.is_empty() || here.is_some_and(|current| !current.entries.is_empty()) {
            return None;
        }
        let at = match self.direction {
            Direction::Forward => self.blocks.start,
            Direction::Backward => self.blocks.end - 1,
        };
        let index = self.segment.index();
        let (block, key) = (&index.blocks()[at], index.first_key(at));
        let wanted = key >= &self.start[..] && self.end.as_ref().is_none_or(|end| key < &end[..]);
        (block.entries == 1 && wanted).then(|| block.len as usize - BLOCK_HEAD - ENTRY_HEAD)
    }

    /// Goes to the next block; `false` if there is none.
    fn advance(&mut self) -> Result<bool, SegmentError> {
        // Lets go of the buffer, so that it can be used again.
        self.current = None;
        let (next, ahead) = match self.direction {
            Direction::Forward => (self.blocks.next(), READ_AHEAD.min(self.wanted)),
            Direction::Backward => (self.blocks.next_back(), 0),
        };
        let Some(at) = next else { return Ok(false) };
        let end = self.blocks.end.max(at + 1);
        let (block, buffer_len) = self.reader.block(at, end, ahead)?;
        let len = self.segment.index().blocks()[at].len as usize;
        self.wanted = self.wanted.saturating_sub(len);
        let first = block.lower_bound(&self.start);
        let last = self.end.as_ref().map(|end| block.lower_bound(end));
        let entries = first..last.unwrap_or(block.entries());
        self.current = Some(Current {
            block,
            buffer_len,
            entries,
            copied: Copied::default(),
        });
        Ok(true)
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Row, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.current.as_mut().and_then(|c| c.next(self.direction)) {
                return Some(Ok(row));
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Current {
    fn next(&mut self, direction: Direction) -> Option<Row> {
        let at = match direction {
            Direction::Forward => self.entries.next(),
            Direction::Backward => self.entries.next_back(),
        }?;
        let (key, place) = self.block.entry(at);
        let key = Key::from(key);
        let value = self.value(at, place, direction);
        Some(Row { key, value })
    }

    fn value(&mut self, at: usize, place: Range<usize>, direction: Direction) -> Bytes {
        let block = &self.block;
        if is_shared(place.len(), self.buffer_len) {
            return block.shared_value(place);
        }
        if !self.copied.entries.contains(&at) {
            self.copied = copy_group(block, at, &self.entries, direction);
        }
        let copied = &self.copied;
        copied
            .values
            .slice(place.start - copied.start..place.end - copied.start)
    }
}

/// Copies the value of entry `at` and of those among `left` that will be wanted next.
fn copy_group(block: &Block, at: usize, left: &Range<usize>, direction: Direction) -> Copied {
    let (mut first, mut last) = (at, at);
    let Range { mut start, mut end } = block.value_place(at);
    match direction {
        Direction::Forward => {
            let ends = (at + 1..left.end).map(|next| block.value_end(next));
            for next in ends.take_while(|end| end - start <= COPY_GROUP) {
                (last, end) = (last + 1, next);
            }
        }
        Direction::Backward => {
            let starts = (left.start..at).rev();
            let starts = starts.map(|before| block.value_place(before).start);
            for before in starts.take_while(|start| end - start <= COPY_GROUP) {
                (first, start) = (first - 1, before);
            }
        }
    }
    Copied {
        entries: first..last + 1,
        start,
        values: Bytes::copy_from_slice(block.values_within(start..end)),
    }
}
