//! What lies in a range, with as little reading as will do: the index knows how many entries a
//! block has and how many bytes, and where the value lies of an entry that has a block of its own.

use std::ops::Range;

use super::error::SegmentError;
use super::format::{BLOCK_HEAD, Block, ENTRY_HEAD};
use super::limits::{ENDS_FROM, READ_AHEAD};
use super::reader::{BlockReader, Segment, read_error};
use crate::batch::Key;
use crate::limits::{RECORD_PREFIX, TRAILER_LEN};
use crate::store::Row;

/// What [`Heads`] tells.
#[derive(Debug)]
pub(crate) enum Told {
    /// All entries of a block, by the index.
    Block {
        first: Key,
        entries: usize,
        /// Of keys and values.
        bytes: u64,
    },
    /// An entry whose block was read and checked. The value shares the block's buffer.
    Entry(Row),
    /// An entry of whose value only the ends were read. No checksum of the segment vouches for
    /// them: whoever asked has to have one of its own.
    Ends {
        key: Key,
        /// Of the value.
        len: usize,
        /// The first [`RECORD_PREFIX`] bytes of the value.
        first: [u8; RECORD_PREFIX],
        last: [u8; TRAILER_LEN],
    },
}

/// The entries of a range in order. Like a scan it goes on behind what cannot be read, if it is
/// asked to.
pub(crate) struct Heads<'a> {
    segment: &'a Segment,
    reader: BlockReader<'a>,
    start: Key,
    end: Key,
    /// Blocks that have not been looked at yet.
    blocks: Range<usize>,
    how: How,
    /// About how many bytes are wanted in all.
    wanted: usize,
    current: Option<(Block, Range<usize>)>,
}

/// How entries are to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Those of one block together, where all of them lie in the range.
    Together,
    /// Each, without its value.
    Keys,
    /// Each with at least the first so many bytes of its value.
    Values(usize),
}

impl<'a> Heads<'a> {
    pub(super) fn new(segment: &'a Segment, range: Range<&[u8]>, how: How, wanted: usize) -> Self {
        Self {
            segment,
            reader: BlockReader::new(segment),
            start: Key::from(range.start),
            end: Key::from(range.end),
            blocks: segment.index().blocks_within(range.start, Some(range.end)),
            how,
            wanted,
            current: None,
        }
    }

    /// A key that no entry to come is less than; `None` if none comes.
    pub(crate) fn next_from(&self) -> Option<&[u8]> {
        if let Some((block, entries)) = &self.current
            && !entries.is_empty()
        {
            return Some(block.key(entries.start));
        }
        if self.blocks.is_empty() {
            return None;
        }
        let first = self.segment.index().first_key(self.blocks.start);
        Some(first.max(&self.start))
    }

    /// What the index tells of block `at` as a whole, if that will do.
    fn by_index(&self, at: usize) -> Option<Told> {
        let index = self.segment.index();
        let (block, first) = (&index.blocks()[at], index.first_key(at));
        let together = match self.how {
            How::Together => true,
            How::Keys => block.entries == 1,
            How::Values(_) => false,
        };
        let within = || *first >= *self.start && index.end_key(at) <= self.end;
        (together && within()).then(|| Told::Block {
            first: Key::from(first),
            entries: block.entries as usize,
            bytes: block.data_bytes(),
        })
    }

    /// The ends of the value of block `at`, if it is the only one and so large that they are not
    /// most of it.
    fn ends(&self, at: usize) -> Result<Option<Told>, SegmentError> {
        let index = self.segment.index();
        let (block, key) = (&index.blocks()[at], index.first_key(at));
        let fits = matches!(self.how, How::Values(head) if head <= RECORD_PREFIX);
        let wanted = *key >= *self.start && *key < *self.end;
        if block.entries != 1 || block.len < ENDS_FROM || !fits || !wanted {
            return Ok(None);
        }
        let len = block.len as usize - BLOCK_HEAD - ENTRY_HEAD - key.len();
        let (start, end) = (block.end() - len as u64, block.end());
        let (mut first, mut last) = ([0; RECORD_PREFIX], [0; TRAILER_LEN]);
        self.segment.read_at(&mut first, start)?;
        self.segment.read_at(&mut last, end - TRAILER_LEN as u64)?;
        let key = Key::from(key);
        Ok(Some(Told::Ends {
            key,
            len,
            first,
            last,
        }))
    }

    fn read(&mut self, at: usize) -> Result<(), SegmentError> {
        let places = self.segment.index().blocks();
        // What is read ahead are blocks that have to be read, no others.
        let others = places[at + 1..self.blocks.end.max(at + 1)].iter();
        let run = others.take_while(|block| block.entries > 1).count();
        let ahead = match self.how {
            How::Together => 0,
            How::Keys | How::Values(_) => READ_AHEAD.min(self.wanted),
        };
        self.wanted = self.wanted.saturating_sub(places[at].len as usize);
        let (block, _) = self.reader.block(at, at + 1 + run, ahead)?;
        let entries = block.lower_bound(&self.start)..block.lower_bound(&self.end);
        self.current = Some((block, entries));
        Ok(())
    }

    /// Goes to the next block; what it is told of at once, if it is.
    fn advance(&mut self, at: usize) -> Result<Option<Told>, SegmentError> {
        // Lets go of the buffer, so that it can be used again.
        self.current = None;
        if let Some(told) = self.by_index(at) {
            return Ok(Some(told));
        }
        match self.ends(at)? {
            Some(told) => Ok(Some(told)),
            None => self.read(at).map(|()| None),
        }
    }
}

impl Iterator for Heads<'_> {
    type Item = Result<Told, SegmentError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((block, entries)) = &mut self.current
                && let Some(at) = entries.next()
            {
                let key = Key::from(block.key(at));
                let value = block.shared_value(block.value_place(at));
                return Some(Ok(Told::Entry(Row { key, value })));
            }
            let at = self.blocks.next()?;
            match self.advance(at) {
                Ok(Some(told)) => return Some(Ok(told)),
                Ok(None) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Segment {
    /// What lies in `range` (start included, end excluded), ascending, told as `how` says; about
    /// `wanted` bytes of it are wanted. Reading begins with the first call of `next`.
    pub(crate) fn heads(&self, range: Range<&[u8]>, how: How, wanted: usize) -> Heads<'_> {
        Heads::new(self, range, how, wanted)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> Result<(), SegmentError> {
        let read = self.file().read_exact_at(bytes, offset);
        read.map_err(|source| read_error(self.path(), offset, source))
    }
}

#[cfg(test)]
mod tests;
