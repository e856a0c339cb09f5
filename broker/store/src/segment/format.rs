//! The bytes of a segment: blocks, index, footer. Pure; the diagram is in the module above.
//!
//! Decoders take any bytes. They look at nothing before its checksum has been verified, and trust
//! no length even then.

use std::ops::Range;

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest};

use super::limits::{BLOCK_BYTES, MAX_INDEX_BYTES};
use crate::batch::Key;
use crate::limits::MAX_KEY_LEN;

const MAGIC: [u8; 8] = *b"MILLSEG\n";
/// Raised whenever a build writes what an older one would misread.
pub(super) const FORMAT_VERSION: u32 = 1;

/// Bytes of a block before its directory.
pub(super) const BLOCK_HEAD: usize = 16;
/// Bytes of the directory for each entry.
pub(super) const ENTRY_HEAD: usize = 8;
/// Bytes of the index for each block, besides its first key.
pub(super) const INDEX_HEAD: usize = 10;
/// Bytes of the footer.
pub(super) const FOOTER_LEN: usize = 60;

/// What is wrong with some bytes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Flaw {
    #[error("it is too short")]
    Short,
    #[error("it does not match its checksum")]
    Checksum,
    #[error("it does not end as a segment does")]
    Magic,
    #[error("it belongs to segment {0:016x}")]
    Number(u64),
    #[error("its format version is {0}")]
    Version(u32),
    #[error("its lengths contradict each other")]
    Lengths,
    #[error("its keys are not in order")]
    Order,
    #[error("its index says otherwise")]
    Index,
}

/// CRC-32C of `parts`, and of where they belong.
fn placed_crc<'a>(number: u64, offset: u64, parts: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&number.to_le_bytes());
    place[8..].copy_from_slice(&offset.to_le_bytes());
    let parts = parts.into_iter();
    // The faster one is compiled with this crate: without optimisation it takes ten seconds for
    // each GB.
    if cfg!(debug_assertions) {
        plain_crc(&place, parts)
    } else {
        folded_crc(&place, parts)
    }
}

/// CRC-32C of `first` and `parts`, by the processor's instruction for it.
fn plain_crc<'a>(first: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> u32 {
    parts.fold(crc32c::crc32c(first), crc32c::crc32c_append)
}

/// The same, by folding: at least twice as fast for whole blocks, where the processor can.
fn folded_crc<'a>(first: &[u8], parts: impl Iterator<Item = &'a [u8]>) -> u32 {
    let mut digest = Digest::new(CrcAlgorithm::Crc32Iscsi);
    digest.update(first);
    parts.for_each(|part| digest.update(part));
    // It has 32 bits.
    digest.finalize() as u32
}

/// Takes fixed-width numbers off the front of some bytes.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Flaw> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Flaw::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Flaw::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn u16(&mut self) -> Result<u16, Flaw> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, Flaw> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Flaw> {
        self.array().map(u64::from_le_bytes)
    }

    fn key(&mut self, len: u16) -> Result<&'a [u8], Flaw> {
        let len = usize::from(len);
        if len == 0 || len > MAX_KEY_LEN {
            return Err(Flaw::Lengths);
        }
        self.bytes(len)
    }
}

/// A block that is being filled.
#[derive(Default)]
pub(super) struct BlockBuilder {
    directory: Vec<u8>,
    keys: Vec<u8>,
    /// The values that were copied in; one that has a block of its own is not.
    values: Vec<u8>,
    values_len: usize,
    entries: u32,
    first_key_len: usize,
}

/// Whether an entry has a block of its own.
pub(super) const fn is_alone(key_len: usize, value_len: usize) -> bool {
    BLOCK_HEAD + ENTRY_HEAD + key_len + value_len > BLOCK_BYTES
}

impl BlockBuilder {
    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Whether another entry would make the block larger than blocks of several entries may be.
    pub(super) fn is_full_for(&self, key_len: usize, value_len: usize) -> bool {
        !self.is_empty() && self.len() + ENTRY_HEAD + key_len + value_len > BLOCK_BYTES
    }

    pub(super) fn len(&self) -> usize {
        BLOCK_HEAD + self.directory.len() + self.keys.len() + self.values_len
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    pub(super) fn first_key(&self) -> &[u8] {
        &self.keys[..self.first_key_len]
    }

    /// Adds an entry and copies its value in.
    pub(super) fn push(&mut self, key: &[u8], value: &[&[u8]]) {
        for part in value {
            self.values.extend_from_slice(part);
        }
        self.push_key(key, value.iter().map(|part| part.len()).sum());
    }

    /// Adds an entry whose value of `value_len` bytes stays where it is, to be passed to
    /// [`BlockBuilder::parts`].
    pub(super) fn push_key(&mut self, key: &[u8], value_len: usize) {
        if self.is_empty() {
            self.first_key_len = key.len();
        }
        self.entries += 1;
        self.keys.extend_from_slice(key);
        self.values_len += value_len;
        let mut ends = [0; ENTRY_HEAD];
        ends[..4].copy_from_slice(&(self.keys.len() as u32).to_le_bytes());
        ends[4..].copy_from_slice(&(self.values_len as u32).to_le_bytes());
        self.directory.extend_from_slice(&ends);
    }

    /// The head of the block that begins at `offset` and whose last values are `beyond`.
    pub(super) fn head(&self, number: u64, offset: u64, beyond: &[&[u8]]) -> [u8; BLOCK_HEAD] {
        let mut head = [0; BLOCK_HEAD];
        head[4..8].copy_from_slice(&self.entries.to_le_bytes());
        head[8..12].copy_from_slice(&(self.keys.len() as u32).to_le_bytes());
        head[12..].copy_from_slice(&(self.values_len as u32).to_le_bytes());
        let parts = std::iter::once(&head[4..]).chain(self.parts(beyond));
        let crc = placed_crc(number, offset, parts);
        head[..4].copy_from_slice(&crc.to_le_bytes());
        head
    }

    /// What follows the head in the file.
    pub(super) fn parts<'a>(
        &'a self,
        beyond: &'a [&'a [u8]],
    ) -> impl Iterator<Item = &'a [u8]> + 'a {
        let own: [&[u8]; 3] = [&self.directory, &self.keys, &self.values];
        own.into_iter().chain(beyond.iter().copied())
    }

    pub(super) fn clear(&mut self) {
        self.directory.clear();
        self.keys.clear();
        self.values.clear();
        self.values_len = 0;
        self.entries = 0;
    }
}

/// A block as it was read, checked.
#[derive(Clone, Debug)]
pub(super) struct Block {
    bytes: Bytes,
    entries: usize,
    keys_at: usize,
    values_at: usize,
}

impl Block {
    /// The block of segment `number` at `offset`, if `bytes` are it.
    pub(super) fn decode(bytes: Bytes, number: u64, offset: u64) -> Result<Self, Flaw> {
        let mut fields = Fields(&bytes);
        let crc = fields.u32()?;
        if placed_crc(number, offset, [fields.0]) != crc {
            return Err(Flaw::Checksum);
        }
        let entries = fields.u32()? as usize;
        let (keys, values) = (fields.u32()? as usize, fields.u32()? as usize);
        let directory = entries.checked_mul(ENTRY_HEAD).ok_or(Flaw::Lengths)?;
        let rest = directory
            .checked_add(keys)
            .and_then(|len| len.checked_add(values));
        if entries == 0 || rest != Some(fields.0.len()) {
            return Err(Flaw::Lengths);
        }
        let block = Self {
            entries,
            keys_at: BLOCK_HEAD + directory,
            values_at: BLOCK_HEAD + directory + keys,
            bytes,
        };
        let mut before = (0, 0);
        for at in 0..entries {
            let (key, value) = block.ends(at);
            if key <= before.0 || key - before.0 > MAX_KEY_LEN || value < before.1 {
                return Err(Flaw::Lengths);
            }
            before = (key, value);
        }
        if before == (keys, values) {
            Ok(block)
        } else {
            Err(Flaw::Lengths)
        }
    }

    /// Where the key and the value of entry `at` end. Within the directory: the length of the
    /// block has been checked against the number of entries.
    #[inline]
    fn ends(&self, at: usize) -> (usize, usize) {
        let at = BLOCK_HEAD + at * ENTRY_HEAD;
        let ends = self.bytes[at..].first_chunk::<ENTRY_HEAD>();
        let ends = u64::from_le_bytes(ends.copied().unwrap_or_default());
        (ends as u32 as usize, (ends >> 32) as usize)
    }

    fn starts(&self, at: usize) -> (usize, usize) {
        at.checked_sub(1).map_or((0, 0), |before| self.ends(before))
    }

    pub(super) fn entries(&self) -> usize {
        self.entries
    }

    /// The key of entry `at`, and where its value lies among all values.
    #[inline]
    pub(super) fn entry(&self, at: usize) -> (&[u8], Range<usize>) {
        let ((key, value), (key_end, value_end)) = (self.starts(at), self.ends(at));
        (&self.bytes[self.keys_at..][key..key_end], value..value_end)
    }

    /// The key of entry `at`, which is less than [`Block::entries`].
    pub(super) fn key(&self, at: usize) -> &[u8] {
        &self.bytes[self.keys_at..][self.starts(at).0..self.ends(at).0]
    }

    /// The values that lie at `place` among all values, as one.
    pub(super) fn values_within(&self, place: Range<usize>) -> &[u8] {
        &self.bytes[self.values_at..][place]
    }

    /// Where the value of entry `at` ends among all values.
    pub(super) fn value_end(&self, at: usize) -> usize {
        self.ends(at).1
    }

    /// Where the value of entry `at` lies among all values.
    pub(super) fn value_place(&self, at: usize) -> Range<usize> {
        self.starts(at).1..self.ends(at).1
    }

    /// The value at `place`, sharing the buffer.
    pub(super) fn shared_value(&self, place: Range<usize>) -> Bytes {
        self.bytes
            .slice(self.values_at + place.start..self.values_at + place.end)
    }

    /// The first entry whose key is not less than `key`, or the number of entries.
    pub(super) fn lower_bound(&self, key: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.entries);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.key(middle) < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Whether the keys ascend, which the lengths and the checksum do not tell.
    pub(super) fn check_order(&self) -> Result<(), Flaw> {
        let ascends = (1..self.entries).all(|at| self.key(at - 1) < self.key(at));
        ascends.then_some(()).ok_or(Flaw::Order)
    }
}

/// An index that grows with its segment, as the bytes it will be in the file.
#[derive(Default)]
pub(super) struct IndexBuilder {
    bytes: Vec<u8>,
    blocks: u32,
}

impl IndexBuilder {
    /// Whether the index has room for what one more entry of the segment can add to it: a block
    /// that it closes, a block of its own, and the last key.
    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() + 3 * (INDEX_HEAD + MAX_KEY_LEN) <= MAX_INDEX_BYTES
    }

    pub(super) fn push(&mut self, first_key: &[u8], block_len: u32, entries: u32) {
        self.bytes
            .extend_from_slice(&(first_key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(&block_len.to_le_bytes());
        self.bytes.extend_from_slice(&entries.to_le_bytes());
        self.bytes.extend_from_slice(first_key);
        self.blocks += 1;
    }

    /// The index and the footer of a segment whose last block ends at `offset`.
    pub(super) fn finish(mut self, totals: Totals, last_key: &[u8]) -> (Vec<u8>, Footer) {
        self.bytes
            .extend_from_slice(&(last_key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(last_key);
        let footer = Footer {
            blocks: self.blocks,
            index_len: self.bytes.len() as u32,
            index_crc: placed_crc(totals.number, totals.end, [&self.bytes[..]]),
            totals,
        };
        (self.bytes, footer)
    }
}

/// What the footer says of the segment as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) number: u64,
    /// Where the last block ends and the index begins.
    pub(super) end: u64,
    pub(super) entries: u64,
    /// Bytes of all keys and values.
    pub(super) data_bytes: u64,
}

/// The end of every segment, from which the rest is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub(super) totals: Totals,
    pub(super) blocks: u32,
    pub(super) index_len: u32,
    pub(super) index_crc: u32,
}

impl Footer {
    pub(super) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut bytes = [0; FOOTER_LEN];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&MAGIC);
        put(&FORMAT_VERSION.to_le_bytes());
        put(&self.blocks.to_le_bytes());
        put(&self.totals.number.to_le_bytes());
        put(&self.totals.end.to_le_bytes());
        put(&self.index_len.to_le_bytes());
        put(&self.index_crc.to_le_bytes());
        put(&self.totals.entries.to_le_bytes());
        put(&self.totals.data_bytes.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..FOOTER_LEN - 4]);
        bytes[FOOTER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The footer at the end of `tail`, the last bytes of a file of `file_len` bytes that should
    /// be segment `number`.
    pub(super) fn decode(tail: &[u8], file_len: u64, number: u64) -> Result<Self, Flaw> {
        let (_, bytes) = tail.split_last_chunk::<FOOTER_LEN>().ok_or(Flaw::Short)?;
        let mut fields = Fields(bytes);
        if fields.array()? != MAGIC {
            return Err(Flaw::Magic);
        }
        let (covered, crc) = bytes.split_last_chunk().ok_or(Flaw::Short)?;
        if crc32c::crc32c(covered) != u32::from_le_bytes(*crc) {
            return Err(Flaw::Checksum);
        }
        let version = fields.u32()?;
        if version != FORMAT_VERSION {
            return Err(Flaw::Version(version));
        }
        let blocks = fields.u32()?;
        let (found, end) = (fields.u64()?, fields.u64()?);
        let (index_len, index_crc) = (fields.u32()?, fields.u32()?);
        let (entries, data_bytes) = (fields.u64()?, fields.u64()?);
        if found != number {
            return Err(Flaw::Number(found));
        }
        let whole = end.checked_add(u64::from(index_len) + FOOTER_LEN as u64);
        if whole != Some(file_len) || index_len as usize > MAX_INDEX_BYTES {
            return Err(Flaw::Lengths);
        }
        let totals = Totals {
            number,
            end,
            entries,
            data_bytes,
        };
        Ok(Self {
            totals,
            blocks,
            index_len,
            index_crc,
        })
    }
}

/// One block, as the index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockPlace {
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) entries: u32,
    /// Where its first key ends among those of all blocks.
    key_end: u32,
}

impl BlockPlace {
    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// Bytes of its keys and values. The decoder has checked that the block is long enough.
    pub(super) fn data_bytes(&self) -> u64 {
        u64::from(self.len) - BLOCK_HEAD as u64 - u64::from(self.entries) * ENTRY_HEAD as u64
    }
}

/// Where the blocks of a segment are. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index {
    keys: Vec<u8>,
    blocks: Vec<BlockPlace>,
    last_key: Key,
    totals: Totals,
}

impl Index {
    pub(super) fn decode(footer: &Footer, bytes: &[u8]) -> Result<Self, Flaw> {
        let totals = footer.totals;
        let count = footer.blocks as usize;
        if bytes.len() != footer.index_len as usize || count > bytes.len() / INDEX_HEAD {
            return Err(Flaw::Lengths);
        }
        if placed_crc(totals.number, totals.end, [bytes]) != footer.index_crc {
            return Err(Flaw::Checksum);
        }
        let mut fields = Fields(bytes);
        let mut index = Self {
            keys: Vec::with_capacity(bytes.len() - count * INDEX_HEAD),
            blocks: Vec::with_capacity(count),
            last_key: Key::new(),
            totals,
        };
        let mut summed = Totals {
            end: 0,
            entries: 0,
            data_bytes: 0,
            ..totals
        };
        for _ in 0..count {
            let place = index.decode_block(&mut fields, summed.end)?;
            // No overflow: at most MAX_INDEX_BYTES lengths of four bytes are added up.
            summed.end = place.end();
            summed.entries += u64::from(place.entries);
            summed.data_bytes += place.data_bytes();
        }
        let last_len = fields.u16()?;
        index.last_key = Key::from(fields.key(last_len)?);
        index.check_last_key()?;
        if summed != totals || !fields.0.is_empty() {
            return Err(Flaw::Lengths);
        }
        Ok(index)
    }

    fn decode_block(&mut self, fields: &mut Fields<'_>, offset: u64) -> Result<BlockPlace, Flaw> {
        let (key_len, len, entries) = (fields.u16()?, fields.u32()?, fields.u32()?);
        let key = fields.key(key_len)?;
        let count = self.blocks.len();
        if count > 0 && self.first_key(count - 1) >= key {
            return Err(Flaw::Order);
        }
        let least = BLOCK_HEAD as u64 + u64::from(entries) * ENTRY_HEAD as u64 + key.len() as u64;
        if entries == 0 || u64::from(len) < least {
            return Err(Flaw::Lengths);
        }
        self.keys.extend_from_slice(key);
        let place = BlockPlace {
            offset,
            len,
            entries,
            key_end: self.keys.len() as u32,
        };
        self.blocks.push(place);
        Ok(place)
    }

    fn check_last_key(&self) -> Result<(), Flaw> {
        let last = self.blocks.last().ok_or(Flaw::Lengths)?;
        let first_of_last = self.first_key(self.blocks.len() - 1);
        let ordered = match last.entries {
            1 => *first_of_last == *self.last_key,
            _ => *first_of_last < *self.last_key,
        };
        ordered.then_some(()).ok_or(Flaw::Order)
    }

    pub(super) fn totals(&self) -> Totals {
        self.totals
    }

    pub(super) fn last_key(&self) -> &Key {
        &self.last_key
    }

    /// Memory that it takes.
    pub(super) fn memory(&self) -> usize {
        self.keys.capacity() + self.blocks.capacity() * size_of::<BlockPlace>() + size_of::<Self>()
    }

    pub(super) fn blocks(&self) -> &[BlockPlace] {
        &self.blocks
    }

    /// The first key of block `at`, which is one of [`Index::blocks`].
    pub(super) fn first_key(&self, at: usize) -> &[u8] {
        let start = at
            .checked_sub(1)
            .map_or(0, |before| self.blocks[before].key_end);
        &self.keys[start as usize..self.blocks[at].key_end as usize]
    }

    /// How many blocks begin with a key less than `key`, or at it if `inclusive`.
    fn beginning_before(&self, key: &[u8], inclusive: bool) -> usize {
        let (mut low, mut high) = (0, self.blocks.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let first = self.first_key(middle);
            if first < key || inclusive && first == key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The only block that can hold `key`, if it is not less than all keys.
    pub(super) fn block_of(&self, key: &[u8]) -> Option<usize> {
        self.beginning_before(key, true).checked_sub(1)
    }

    /// The blocks that can hold keys from `start` on and, if there is one, before `end`.
    pub(super) fn blocks_within(&self, start: &[u8], end: Option<&[u8]>) -> Range<usize> {
        if *start > *self.last_key || end.is_some_and(|end| end <= start) {
            return 0..0;
        }
        let last = end.map_or(self.blocks.len(), |end| self.beginning_before(end, false));
        let first = self.block_of(start).unwrap_or(0);
        first..last.max(first)
    }

    /// The blocks that begin with a key from `start` on and before `end`.
    pub(super) fn beginning_within(&self, start: &[u8], end: &[u8]) -> &[BlockPlace] {
        let first = self.beginning_before(start, false);
        let last = self.beginning_before(end, false);
        &self.blocks[first..last.max(first)]
    }

    /// The least key that is greater than all of block `at`, as far as the index tells.
    pub(super) fn end_key(&self, at: usize) -> Key {
        let after = |key: &[u8]| Key::from(key).push_bytes(&[0]);
        if self.blocks[at].entries == 1 {
            after(self.first_key(at))
        } else if at + 1 < self.blocks.len() {
            Key::from(self.first_key(at + 1))
        } else {
            after(&self.last_key)
        }
    }
}

#[cfg(test)]
mod tests;
