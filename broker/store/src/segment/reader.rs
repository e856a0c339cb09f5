//! Reading a segment: its index once, its blocks as they are wanted.

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::error::SegmentError;
use super::files::{Files, ReadAt};
use super::format::{Block, FOOTER_LEN, FORMAT_VERSION, Flaw, Footer, Index};
use super::limits::{PIN_SHARE, READ_AHEAD, TAIL_READ};
use super::scan::Scan;
use crate::batch::Key;
use crate::store::Direction;

/// An open segment. Its index is in memory; everything else is read when it is asked for, and
/// checked each time.
pub struct Segment {
    file: Arc<dyn ReadAt>,
    path: PathBuf,
    index: Index,
}

/// What [`Segment::visit`] shows.
#[derive(Debug)]
pub enum Visit<'a> {
    /// An entry: its key and its value.
    Entry(&'a [u8], Bytes),
    /// A part that cannot be read.
    Damaged(Damage),
    /// So many more bytes of the file have been looked at.
    Read(u64),
}

/// A part of a segment that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Where in the file it begins.
    pub offset: u64,
    /// How long it is.
    pub bytes: u64,
    /// The keys that are lost with it lie in here. That does not mean that all keys in here are
    /// lost to the segment: there are none of them in other blocks.
    pub keys: Range<Key>,
    /// What was found to be wrong.
    pub detail: String,
}

impl Segment {
    /// Opens segment `number`, which was `expected_len` bytes long when it was finished, and
    /// reads its index.
    ///
    /// # Errors
    /// If the file is not there or cannot be read, has another length, or its footer or index is
    /// damaged or of a version that this build does not know.
    pub fn open(files: &dyn Files, number: u64, expected_len: u64) -> Result<Self, SegmentError> {
        let path = files.path(number);
        let file = files
            .open(number)
            .map_err(SegmentError::io("open", &path))?;
        check_len(&path, file.byte_len(), expected_len)?;
        let index = read_index(&*file, &path, number)?;
        Ok(Self { file, path, index })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.index.totals().number
    }

    /// What to call its file when speaking to people.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length of the file.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.file.byte_len()
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.index.totals().data_bytes
    }

    /// How many entries there are.
    #[must_use]
    pub fn entries(&self) -> u64 {
        self.index.totals().entries
    }

    /// The smallest key.
    #[must_use]
    pub fn first_key(&self) -> &[u8] {
        self.index.first_key(0)
    }

    /// The greatest key.
    #[must_use]
    pub fn last_key(&self) -> &[u8] {
        self.index.last_key()
    }

    /// Where the last block ends, and what tells of the blocks begins.
    pub(crate) fn data_end(&self) -> u64 {
        self.index.totals().end
    }

    /// Memory that the index takes.
    #[must_use]
    pub fn index_bytes(&self) -> usize {
        self.index.memory()
    }

    /// What stands at `key`. Reads one block, or none if the index says that there is nothing.
    ///
    /// # Errors
    /// If the block is damaged or cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<Bytes>, SegmentError> {
        let Some(at) = self.index.block_of(key) else {
            return Ok(None);
        };
        let alone = self.index.blocks()[at].entries == 1;
        if *key > *self.index.last_key().as_ref() || alone && self.index.first_key(at) != key {
            return Ok(None);
        }
        let (block, buffer_len) = BlockReader::new(self).block(at, at + 1, 0)?;
        let found = block.lower_bound(key);
        if found == block.entries() || block.key(found) != key {
            return Ok(None);
        }
        Ok(Some(value(&block, found, buffer_len)))
    }

    /// The greatest key that is at least `start` and at most `at`. Reads one block at most, and
    /// none where blocks hold a single entry, or if `at` is the first key of one or beyond the
    /// greatest of all.
    ///
    /// # Errors
    /// If the block is damaged or cannot be read.
    pub fn floor_key(&self, start: &[u8], at: &[u8]) -> Result<Option<Key>, SegmentError> {
        let found = self.floor(at)?;
        Ok(found.filter(|key| **key >= *start))
    }

    fn floor(&self, at: &[u8]) -> Result<Option<Key>, SegmentError> {
        let Some(place) = self.index.block_of(at) else {
            return Ok(None);
        };
        if *at >= *self.index.last_key().as_ref() {
            return Ok(Some(self.index.last_key().clone()));
        }
        let first = self.index.first_key(place);
        if self.index.blocks()[place].entries == 1 || first == at {
            return Ok(Some(Key::from(first)));
        }
        let (block, _) = BlockReader::new(self).block(place, place + 1, 0)?;
        let above = block.lower_bound(at);
        let is_there = above < block.entries() && block.key(above) == at;
        // The block begins at or before `at`, so if it is not there, something is below it.
        let found = if is_there {
            above
        } else {
            above.saturating_sub(1)
        };
        Ok(Some(Key::from(block.key(found))))
    }

    /// The entries of `range` (start included, end excluded), ascending or descending. Reading
    /// begins with the first call of `next`.
    #[must_use]
    pub fn iter_range(&self, range: Range<&[u8]>, direction: Direction) -> Scan<'_> {
        Scan::new(self, range.start, Some(range.end), direction)
    }

    /// All entries, ascending or descending.
    #[must_use]
    pub fn iter(&self, direction: Direction) -> Scan<'_> {
        Scan::new(self, &[], None, direction)
    }

    /// Bytes of the keys and values of `range` (start included, end excluded), as far as the
    /// index tells: each block counts where its first key lies. So ranges that follow each other
    /// add up, and each is off by no more than what a block holds at either end.
    #[must_use]
    pub fn bytes_in(&self, range: Range<&[u8]>) -> u64 {
        let blocks = self.index.beginning_within(range.start, range.end);
        blocks.iter().map(|block| block.data_bytes()).sum()
    }

    /// Reads everything, from the file, and says what cannot be read. `progress` is called with
    /// the bytes looked at since the last call.
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Vec<Damage> {
        let mut damaged = Vec::new();
        self.visit(&mut |visit| {
            match visit {
                Visit::Read(bytes) => progress(bytes),
                Visit::Entry(..) => {}
                Visit::Damaged(damage) => damaged.push(damage),
            }
            true
        });
        damaged
    }

    /// Reads everything, from the file, in order, and shows it to `visitor`, which says whether to
    /// go on. Of a block that cannot be read no entry is shown.
    pub fn visit(&self, visitor: &mut dyn FnMut(Visit<'_>) -> bool) {
        let mut reader = BlockReader::new(self);
        let count = self.index.blocks().len();
        for (at, place) in self.index.blocks().iter().enumerate() {
            let go_on = match self.verify_block(&mut reader, at, count) {
                Ok(block) => (0..block.entries()).all(|entry| {
                    let value = block.shared_value(block.value_place(entry));
                    visitor(Visit::Entry(block.key(entry), value))
                }),
                Err(error) => visitor(Visit::Damaged(Damage {
                    offset: place.offset,
                    bytes: u64::from(place.len),
                    keys: Key::from(self.index.first_key(at))..self.index.end_key(at),
                    detail: detail(error),
                })),
            };
            if !go_on || !visitor(Visit::Read(u64::from(place.len))) {
                return;
            }
        }
        let end = self.index.totals().end;
        let rest = self.file_bytes() - end;
        let again = read_index(&*self.file, &self.path, self.number());
        let found = match again {
            Ok(index) if index == self.index => None,
            Ok(_) => Some("it has changed since it was opened".to_owned()),
            Err(error) => Some(detail(error)),
        };
        let damage = found.map(|detail| Damage {
            offset: end,
            bytes: rest,
            keys: Key::from(self.first_key())..self.index.end_key(count - 1),
            detail,
        });
        if damage.is_none_or(|damage| visitor(Visit::Damaged(damage))) {
            visitor(Visit::Read(rest));
        }
    }

    fn verify_block(
        &self,
        reader: &mut BlockReader<'_>,
        at: usize,
        end: usize,
    ) -> Result<Block, SegmentError> {
        let place = self.index.blocks()[at];
        let (block, _) = reader.block(at, end, READ_AHEAD)?;
        let last = block.key(block.entries() - 1);
        let is_within = *last < *self.index.end_key(at);
        block
            .check_order()
            .and(is_within.then_some(()).ok_or(Flaw::Index))
            .map_err(|flaw| SegmentError::damaged(&self.path, place.offset, flaw))?;
        Ok(block)
    }

    pub(super) fn index(&self) -> &Index {
        &self.index
    }

    pub(super) fn file(&self) -> &dyn ReadAt {
        &*self.file
    }
}

pub(super) fn check_len(path: &Path, len: u64, expected: u64) -> Result<(), SegmentError> {
    if len == expected {
        return Ok(());
    }
    let detail = format!("it is {len} bytes long and was {expected} when it was finished");
    Err(SegmentError::damaged(path, len.min(expected), detail))
}

/// An error without what whoever asked knows already.
fn detail(error: SegmentError) -> String {
    match error {
        SegmentError::Damaged { detail, .. } => detail,
        SegmentError::Io { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

/// An error of reading at `offset`, as damage if it says that the file is too short.
pub(super) fn read_error(path: &Path, offset: u64, source: std::io::Error) -> SegmentError {
    if source.kind() == ErrorKind::UnexpectedEof {
        SegmentError::damaged(path, offset, "the file ends within it")
    } else {
        SegmentError::io("read", path)(source)
    }
}

fn read_index(file: &dyn ReadAt, path: &Path, number: u64) -> Result<Index, SegmentError> {
    let len = file.byte_len();
    let tail_at = len.saturating_sub(TAIL_READ as u64);
    let mut tail = vec![0; (len - tail_at) as usize];
    file.read_exact_at(&mut tail, tail_at)
        .map_err(|source| read_error(path, tail_at, source))?;
    let footer = Footer::decode(&tail, len, number).map_err(|flaw| match flaw {
        Flaw::Version(found) => SegmentError::Version {
            file: path.to_owned(),
            found,
            expected: FORMAT_VERSION,
        },
        flaw => {
            let offset = len.saturating_sub(FOOTER_LEN as u64);
            SegmentError::damaged(path, offset, format_args!("footer: {flaw}"))
        }
    })?;
    // The decoder has checked that index and footer end with the file.
    let (at, index_len) = (footer.totals.end, footer.index_len as usize);
    let in_tail = at.checked_sub(tail_at).map(|start| start as usize);
    let index = match in_tail {
        Some(start) => Index::decode(&footer, &tail[start..start + index_len]),
        None => {
            let mut bytes = vec![0; index_len];
            file.read_exact_at(&mut bytes, at)
                .map_err(|source| read_error(path, at, source))?;
            Index::decode(&footer, &bytes)
        }
    };
    index.map_err(|flaw| SegmentError::damaged(path, at, format_args!("index: {flaw}")))
}

/// Whether a value of `len` bytes shares a buffer of `buffer_len` bytes.
pub(super) fn is_shared(len: usize, buffer_len: usize) -> bool {
    len.saturating_mul(PIN_SHARE) >= buffer_len
}

fn value(block: &Block, at: usize, buffer_len: usize) -> Bytes {
    let value = block.values_within(block.value_place(at));
    if is_shared(value.len(), buffer_len) {
        block.shared_value(block.value_place(at))
    } else {
        Bytes::copy_from_slice(value)
    }
}

/// Reads blocks, several at a time if wanted.
pub(super) struct BlockReader<'a> {
    segment: &'a Segment,
    buffer: Bytes,
    /// The blocks that `buffer` holds.
    held: Range<usize>,
}

impl<'a> BlockReader<'a> {
    pub(super) fn new(segment: &'a Segment) -> Self {
        Self {
            segment,
            buffer: Bytes::new(),
            held: 0..0,
        }
    }

    /// Block `at`, and the length of the buffer that it shares. If it has to be read, so are
    /// those after it that lie before block `end`, as long as all together fit `ahead` bytes.
    pub(super) fn block(
        &mut self,
        at: usize,
        end: usize,
        ahead: usize,
    ) -> Result<(Block, usize), SegmentError> {
        if !self.held.contains(&at) {
            let run = self.run(at, end, ahead);
            let read = self.read(at..run);
            match read {
                // One bad sector must not hide the blocks beside it.
                Err(_) if run > at + 1 => self.read(at..at + 1)?,
                other => other?,
            }
        }
        let segment = self.segment;
        let index = &segment.index;
        let place = index.blocks()[at];
        let start = (place.offset - index.blocks()[self.held.start].offset) as usize;
        let bytes = self.buffer.slice(start..start + place.len as usize);
        Block::decode(bytes, segment.number(), place.offset)
            .and_then(|block| {
                let is_it = block.entries() == place.entries as usize
                    && block.key(0) == index.first_key(at);
                is_it.then_some(block).ok_or(Flaw::Index)
            })
            .map(|block| (block, self.buffer.len()))
            .map_err(|flaw| SegmentError::damaged(&segment.path, place.offset, flaw))
    }

    /// The end of the run of blocks to be read together from `at` on.
    fn run(&self, at: usize, end: usize, ahead: usize) -> usize {
        let blocks = &self.segment.index.blocks()[at..end];
        let fits = |end: u64| end - blocks[0].offset <= ahead as u64;
        let more = blocks.iter().skip(1).take_while(|block| fits(block.end()));
        at + 1 + more.count()
    }

    fn read(&mut self, blocks: Range<usize>) -> Result<(), SegmentError> {
        let places = &self.segment.index.blocks()[blocks.clone()];
        let offset = places[0].offset;
        let len = places.iter().map(|place| place.len as usize).sum();
        self.held = 0..0;
        // If nobody has kept a value of the last buffer, it is used again: a new one would have
        // to be zeroed first, which costs half as much as reading it.
        let mut buffer = match std::mem::take(&mut self.buffer).try_into_mut() {
            Ok(mut buffer) if buffer.capacity() >= len => {
                buffer.resize(len, 0);
                buffer
            }
            _ => BytesMut::zeroed(len),
        };
        let segment = self.segment;
        segment
            .file
            .read_exact_at(&mut buffer, offset)
            .map_err(|source| read_error(&segment.path, offset, source))?;
        self.buffer = buffer.freeze();
        self.held = blocks;
        Ok(())
    }
}
