//! How record batches lie in the hot file: all that one group commit appends is one *pack*.
//!
//! ```text
//! table packs        (pack number, first byte of the chunk) -> chunk of the pack's bytes
//! table directories   pack number                           -> where each value lies in it
//!
//! a pack is       value, trailer, value, trailer, ...          in the order of their keys
//! a directory is  crc u32 | count u32 | count x (key len u16 | offset u32 | len u32 | key)
//! ```
//!
//! A row for each value would touch, with every commit, one place in the tree for each partition
//! appended to: 8.5 bytes written for each byte of 256 partitions with a kilobyte each. A pack is
//! appended at the end of the tree whatever it holds, and its chunks fill the engine's pages.
//!
//! All numbers of a directory are little-endian; its checksum is a CRC-32C over the pack's number
//! and everything behind the checksum. Values are bound to their keys by their trailers.

use crate::batch::Key;
use crate::limits::{MAX_CHUNK_LEN, MAX_KEY_LEN, PACKED_PAGE, TRAILER_LEN};

/// Where a value lies in its pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    /// Its first byte within the pack.
    pub(super) offset: u32,
    /// Its length with its trailer.
    pub(super) len: u32,
}

impl Entry {
    /// Bytes of key and value, as scans count them.
    pub(super) fn bytes(&self) -> u64 {
        (self.key.len() + self.len as usize - TRAILER_LEN) as u64
    }
}

/// How many of the `left` bytes of a pack the next chunk takes: all, or as many as fill a page, so
/// that at most an eighth of a page stays empty.
pub(super) fn chunk_len(left: usize) -> usize {
    const OVERHEAD: usize = PACKED_PAGE - MAX_CHUNK_LEN;
    if left >= MAX_CHUNK_LEN {
        return MAX_CHUNK_LEN;
    }
    let page = (left + OVERHEAD).next_power_of_two();
    let wasted = page - OVERHEAD - left;
    // Small chunks share a page of the tree with others, or nearly fill one.
    if wasted <= page / 8 || page <= SMALL_PAGE {
        left
    } else {
        page / 2 - OVERHEAD
    }
}

/// Up to this page size a chunk is not split to save space.
const SMALL_PAGE: usize = 8 << 10;

/// About how many bytes of the file a pack of `len` bytes takes with its directory: whole pages for
/// what has pages of its own, twice its length for what shares one, since the tree's leaves are half
/// full at worst.
pub(super) fn space(len: usize, entries: &[Entry]) -> u64 {
    let shared = |bytes: usize| 2 * bytes as u64;
    let (mut left, mut pages) = (len, 0);
    while left > 0 {
        let taken = chunk_len(left);
        let page = (taken + PACKED_PAGE - MAX_CHUNK_LEN).next_power_of_two();
        pages += if page >= SMALL_PAGE / 2 {
            page as u64
        } else {
            shared(taken)
        };
        left -= taken;
    }
    let keys: usize = entries.iter().map(|entry| entry.key.len()).sum();
    pages + shared(HEAD_LEN + entries.len() * ENTRY_LEN + keys)
}

const CRC_LEN: usize = 4;
const HEAD_LEN: usize = CRC_LEN + 4;
const ENTRY_LEN: usize = 2 + 4 + 4;

fn checksum(pack: u64, rest: &[u8]) -> [u8; CRC_LEN] {
    crc32c::crc32c_append(crc32c::crc32c(&pack.to_le_bytes()), rest).to_le_bytes()
}

/// The directory row of `pack`. Entries are in the order of their keys.
pub(super) fn encode_directory(pack: u64, entries: &[Entry]) -> Vec<u8> {
    let keys: usize = entries.iter().map(|entry| entry.key.len()).sum();
    let mut row = Vec::with_capacity(HEAD_LEN + entries.len() * ENTRY_LEN + keys);
    row.extend_from_slice(&[0; CRC_LEN]);
    row.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for Entry { key, offset, len } in entries {
        row.extend_from_slice(&(key.len() as u16).to_le_bytes());
        row.extend_from_slice(&offset.to_le_bytes());
        row.extend_from_slice(&len.to_le_bytes());
        row.extend_from_slice(key);
    }
    let crc = checksum(pack, &row[CRC_LEN..]);
    row[..CRC_LEN].copy_from_slice(&crc);
    row
}

/// What is wrong with a directory row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DirectoryDamaged {
    #[error("the directory of the pack does not match its checksum")]
    Checksum,
    #[error("the directory of the pack does not fit together")]
    Layout,
    #[error("the directory of the pack is missing")]
    Missing,
}

/// The entries of `pack`, in the order of their keys.
pub(super) fn decode_directory(pack: u64, row: &[u8]) -> Result<Vec<Entry>, DirectoryDamaged> {
    let (crc, rest) = row
        .split_first_chunk::<CRC_LEN>()
        .ok_or(DirectoryDamaged::Layout)?;
    if checksum(pack, rest) != *crc {
        return Err(DirectoryDamaged::Checksum);
    }
    read_entries(rest).ok_or(DirectoryDamaged::Layout)
}

fn read_entries(mut rest: &[u8]) -> Option<Vec<Entry>> {
    let count = read_u32(&mut rest)? as usize;
    if count > rest.len() / ENTRY_LEN {
        return None;
    }
    let mut entries: Vec<Entry> = Vec::with_capacity(count);
    for _ in 0..count {
        let key_len = usize::from(u16::from_le_bytes(*rest.split_off(..2)?.first_chunk()?));
        let (offset, len) = (read_u32(&mut rest)?, read_u32(&mut rest)?);
        let key = Key::from(rest.split_off(..key_len)?);
        let ordered = entries.last().is_none_or(|last| last.key < key);
        let sound = (1..=MAX_KEY_LEN).contains(&key_len) && len as usize >= TRAILER_LEN;
        if !ordered || !sound || offset.checked_add(len).is_none() {
            return None;
        }
        entries.push(Entry { key, offset, len });
    }
    rest.is_empty().then_some(entries)
}

fn read_u32(rest: &mut &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(*rest.split_off(..4)?.first_chunk()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<Entry>> {
        let place = (any::<u32>(), TRAILER_LEN as u32..1000);
        let key = prop::collection::vec(any::<u8>(), 1..40);
        prop::collection::btree_map(key, place, 0..20).prop_map(
            |rows: BTreeMap<Vec<u8>, (u32, u32)>| {
                let entry = |(key, (offset, len)): (Vec<u8>, (u32, u32))| Entry {
                    key: Key::from(&key[..]),
                    offset: offset.min(u32::MAX - len),
                    len,
                };
                rows.into_iter().map(entry).collect()
            },
        )
    }

    proptest! {
        #[test]
        fn a_directory_reads_back(pack: u64, entries in entries()) {
            let row = encode_directory(pack, &entries);
            prop_assert_eq!(decode_directory(pack, &row), Ok(entries));
            let other = decode_directory(pack.wrapping_add(1), &row);
            prop_assert_eq!(other, Err(DirectoryDamaged::Checksum));
        }

        #[test]
        fn a_flipped_bit_is_noticed(pack: u64, entries in entries(), bit: usize) {
            let mut row = encode_directory(pack, &entries);
            let bit = bit % (row.len() * 8);
            row[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode_directory(pack, &row), Err(DirectoryDamaged::Checksum));
        }

        #[test]
        fn any_bytes_are_entries_or_none(bytes: Vec<u8>) {
            if let Some(entries) = read_entries(&bytes) {
                prop_assert!(entries.is_sorted_by(|a, b| a.key < b.key));
            }
            let _ = decode_directory(0, &bytes);
        }

        #[test]
        fn chunks_cover_a_pack_and_waste_little(total in 1usize..(8 << 20)) {
            let (mut left, mut pages) = (total, 0);
            while left > 0 {
                let taken = chunk_len(left);
                prop_assert!(taken >= 1 && taken <= left.min(MAX_CHUNK_LEN));
                let page = (taken + PACKED_PAGE - MAX_CHUNK_LEN).next_power_of_two();
                prop_assert!(page <= PACKED_PAGE);
                pages += page;
                left -= taken;
            }
            prop_assert!(pages <= total + total / 7 + SMALL_PAGE, "{} for {}", pages, total);
            let space = space(total, &[]);
            prop_assert!(space >= total as u64, "{} for {}", space, total);
            prop_assert!(space <= (2 * total + 2 * SMALL_PAGE) as u64, "{} for {}", space, total);
        }
    }
}
