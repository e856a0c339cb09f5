//! Which sealed segment holds which records: rows of two tables of the hot file.
//!
//! ```text
//! table segments   segment number -> what the file holds, and how much of it is still wanted
//! table extents    first key      -> segment number, end (a key, excluded), bytes
//! ```
//!
//! An extent is a run of keys of one partition (keys that share their first [`RUN_PREFIX`] bytes)
//! that lie in one segment and are all wanted. Extents do not overlap, so the one that may hold a
//! key is the last that begins at it or before. They are found in the transaction of the view that
//! reads, like every other row: nothing of them is loaded when the store opens. Removing records
//! cuts extents and leaves the file alone until none is left.
//!
//! All numbers are little-endian; every row ends in a CRC-32C over its key and itself.

use crate::batch::Key;
use crate::limits::MAX_KEY_LEN;

/// Keys that share so many bytes, a topic and a partition, may share an extent.
pub(super) const RUN_PREFIX: usize = 8;

/// The part of a key that all keys of an extent share.
pub(super) fn run_of(key: &[u8]) -> &[u8] {
    &key[..key.len().min(RUN_PREFIX)]
}

/// The smallest key behind `key`.
pub(super) fn successor(key: &[u8]) -> Key {
    Key::from(key).push_bytes(&[0])
}

/// Where a run of records lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) segment: u64,
    /// Behind its last key.
    pub(super) end: Key,
    /// Bytes of its keys and values.
    pub(super) bytes: u64,
}

/// A segment file in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct SegmentRow {
    /// Length of the file.
    pub(super) file_bytes: u64,
    /// Bytes of the keys and values in it.
    pub(super) data_bytes: u64,
    /// Bytes of those that are still wanted.
    pub(super) live_bytes: u64,
    /// Extents that lie in it.
    pub(super) extents: u64,
}

/// A row that does not match its checksum, or does not fit together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the row does not match its checksum")]
pub(super) struct RowDamaged;

const CRC_LEN: usize = 4;

fn sealed(mut row: Vec<u8>, key: &[u8]) -> Vec<u8> {
    let crc = crc32c::crc32c_append(crc32c::crc32c(key), &row);
    row.extend_from_slice(&crc.to_le_bytes());
    row
}

fn opened<'a>(row: &'a [u8], key: &[u8]) -> Result<&'a [u8], RowDamaged> {
    let (row, crc) = row.split_last_chunk::<CRC_LEN>().ok_or(RowDamaged)?;
    let expected = crc32c::crc32c_append(crc32c::crc32c(key), row);
    (expected.to_le_bytes() == *crc)
        .then_some(row)
        .ok_or(RowDamaged)
}

impl Extent {
    /// The row of the extent that begins at `start`.
    pub(super) fn encode(&self, start: &[u8]) -> Vec<u8> {
        let mut row = Vec::with_capacity(16 + self.end.len() + CRC_LEN);
        row.extend_from_slice(&self.segment.to_le_bytes());
        row.extend_from_slice(&self.bytes.to_le_bytes());
        row.extend_from_slice(&self.end);
        sealed(row, start)
    }

    /// Reads the row of the extent that begins at `start`.
    pub(super) fn decode(start: &[u8], row: &[u8]) -> Result<Self, RowDamaged> {
        let row = opened(row, start)?;
        let (segment, row) = row.split_first_chunk().ok_or(RowDamaged)?;
        let (bytes, end) = row.split_first_chunk().ok_or(RowDamaged)?;
        // One longer than a key may be: the end is a key's successor.
        if end <= start || end.len() > MAX_KEY_LEN + 1 {
            return Err(RowDamaged);
        }
        Ok(Self {
            segment: u64::from_le_bytes(*segment),
            end: Key::from(end),
            bytes: u64::from_le_bytes(*bytes),
        })
    }
}

impl SegmentRow {
    /// The row of segment `number`.
    pub(super) fn encode(&self, number: u64) -> Vec<u8> {
        let numbers = [
            self.file_bytes,
            self.data_bytes,
            self.live_bytes,
            self.extents,
        ];
        sealed(
            numbers.iter().flat_map(|n| n.to_le_bytes()).collect(),
            &number.to_le_bytes(),
        )
    }

    /// Reads the row of segment `number`.
    pub(super) fn decode(number: u64, row: &[u8]) -> Result<Self, RowDamaged> {
        let row = opened(row, &number.to_le_bytes())?;
        let (numbers, rest) = row.as_chunks::<8>();
        match (numbers, rest) {
            ([file, data, live, extents], []) => Ok(Self {
                file_bytes: u64::from_le_bytes(*file),
                data_bytes: u64::from_le_bytes(*data),
                live_bytes: u64::from_le_bytes(*live),
                extents: u64::from_le_bytes(*extents),
            }),
            _ => Err(RowDamaged),
        }
    }
}

/// What is left of an extent that begins at `start` once `cut` is taken out of it: the part before
/// and the part behind, each as its bounds.
pub(super) fn without<'a>(
    start: &'a [u8],
    end: &'a [u8],
    (cut_start, cut_end): (&'a [u8], &'a [u8]),
) -> [Option<(&'a [u8], &'a [u8])>; 2] {
    let before = (start, end.min(cut_start));
    let behind = (start.max(cut_end), end);
    [before, behind].map(|(start, end)| (start < end).then_some((start, end)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 1..20)
    }

    proptest! {
        #[test]
        fn rows_read_back(start in key(), tail in key(), segment: u64, bytes: u64, other in key()) {
            let end = Key::from(&start[..]).push_bytes(&tail);
            let extent = Extent { segment, end, bytes };
            let row = extent.encode(&start);
            prop_assert_eq!(Extent::decode(&start, &row), Ok(extent));
            if other != start {
                prop_assert_eq!(Extent::decode(&other, &row), Err(RowDamaged));
            }
            let row = SegmentRow { file_bytes: segment, data_bytes: 3, live_bytes: bytes, extents: 2 };
            let encoded = row.encode(segment);
            prop_assert_eq!(SegmentRow::decode(segment, &encoded), Ok(row));
            prop_assert_eq!(SegmentRow::decode(segment ^ 1, &encoded), Err(RowDamaged));
        }

        #[test]
        fn flipped_bits_are_noticed(start in key(), bytes: u64, bit: usize) {
            let extent = Extent { segment: 7, end: successor(&start), bytes };
            let mut row = extent.encode(&start);
            let bit = bit % (row.len() * 8);
            row[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Extent::decode(&start, &row), Err(RowDamaged));
        }

        #[test]
        fn any_bytes_are_a_row_or_not(start in key(), row: Vec<u8>) {
            let _ = Extent::decode(&start, &sealed(row.clone(), &start));
            let _ = SegmentRow::decode(1, &sealed(row, &1u64.to_le_bytes()));
        }

        #[test]
        fn cutting_leaves_what_lies_outside(
            mut bounds in [0u8..20, 0..20], mut cut in [0u8..20, 0..20], at in 0u8..20,
        ) {
            bounds.sort_unstable();
            cut.sort_unstable();
            prop_assume!(bounds[0] < bounds[1]);
            let [start, end, from, to] = [[bounds[0]], [bounds[1]], [cut[0]], [cut[1]]];
            let left = without(&start, &end, (&from, &to));
            let inside = |(start, end): (&[u8], &[u8])| (start..end).contains(&&[at][..]);
            let parts = left.into_iter().flatten().filter(|part| inside(*part)).count();
            let cut_out = (cut[0]..cut[1]).contains(&at);
            let expected = (bounds[0]..bounds[1]).contains(&at) && !cut_out;
            prop_assert_eq!(parts, usize::from(expected));
        }
    }
}
