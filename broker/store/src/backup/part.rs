//! Parts: rows of a frozen store, one after the other.
//!
//! ```text
//! part                          all numbers are little-endian
//!   magic              8        "MILLPRT\n"
//!   version            4        1
//!   rows
//! row
//!   checksum           4        CRC-32C of: where the row begins in the part u64, and its rest
//!   kind               1        number of the space, or 0xE0: an extent
//!   length of key      2        k
//!   length of value    4        v
//!   key                k        of an extent, its first key
//!   value              v        of an extent: segment u64, bytes u64, end
//! ```
//!
//! The checksums say which row is damaged; that no row is missing is for whoever keeps the part,
//! by a checksum over all of it.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use super::ExtentInfo;
use crate::batch::Key;
use crate::limits::{MAX_KEY_LEN, MAX_VALUE_LEN, PART_BYTES};
use crate::segment::{Files, NewFile, ReadAt, StoredFile};
use crate::space::Space;

/// Raised whenever a build can write what an older one would misread.
pub const PART_VERSION: u32 = 1;

const MAGIC: &[u8; 8] = b"MILLPRT\n";
const HEAD_LEN: usize = 8 + 4;
const CRC_LEN: usize = 4;
const ROW_LEN: usize = CRC_LEN + 1 + 2 + 4;
const EXTENT: u8 = 0xE0;

/// Some rows of a frozen store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The rows, encoded.
    pub bytes: Bytes,
    /// How many there are.
    pub rows: u64,
}

/// One row of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PartRow {
    /// A row of a space.
    Row {
        /// Which space.
        space: Space,
        /// Its key.
        key: Key,
        /// Its value; shares the part's memory.
        value: Bytes,
    },
    /// Where a run of sealed records lies.
    Extent(ExtentInfo),
}

/// What is wrong with a part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}: {detail}")]
pub struct PartDamaged {
    /// Where the damaged row begins.
    pub offset: usize,
    /// What was found to be wrong.
    pub detail: &'static str,
}

/// Gathers rows.
pub(crate) struct PartWriter {
    bytes: Vec<u8>,
    rows: u64,
}

impl PartWriter {
    pub(crate) fn new() -> Self {
        let mut bytes = Vec::with_capacity(HEAD_LEN);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&PART_VERSION.to_le_bytes());
        Self { bytes, rows: 0 }
    }

    /// Whether it holds as much as a part should.
    pub(crate) fn is_full(&self) -> bool {
        self.bytes.len() >= PART_BYTES
    }

    /// How many bytes it should still take.
    pub(crate) fn room(&self) -> usize {
        PART_BYTES.saturating_sub(self.bytes.len())
    }

    pub(crate) fn row(&mut self, space: Space, key: &[u8], value: &[u8]) {
        self.push(space as u8, key, &[value]);
    }

    pub(crate) fn extent(&mut self, extent: &ExtentInfo) {
        let numbers = [extent.segment.to_le_bytes(), extent.bytes.to_le_bytes()];
        self.push(
            EXTENT,
            &extent.start,
            &[numbers.as_flattened(), &extent.end],
        );
    }

    fn push(&mut self, kind: u8, key: &[u8], value: &[&[u8]]) {
        let start = self.bytes.len();
        let value_len: usize = value.iter().map(|piece| piece.len()).sum();
        self.bytes.extend_from_slice(&[0; CRC_LEN]);
        self.bytes.push(kind);
        self.bytes
            .extend_from_slice(&(key.len() as u16).to_le_bytes());
        self.bytes
            .extend_from_slice(&(value_len as u32).to_le_bytes());
        self.bytes.extend_from_slice(key);
        for piece in value {
            self.bytes.extend_from_slice(piece);
        }
        let crc = checksum(start, &self.bytes[start + CRC_LEN..]);
        self.bytes[start..start + CRC_LEN].copy_from_slice(&crc);
        self.rows += 1;
    }

    /// The part; `None` if it has no rows.
    pub(crate) fn finish(self) -> Option<Part> {
        (self.rows > 0).then(|| Part {
            bytes: self.bytes.into(),
            rows: self.rows,
        })
    }
}

fn checksum(start: usize, rest: &[u8]) -> [u8; CRC_LEN] {
    let place = crc32c::crc32c(&(start as u64).to_le_bytes());
    crc32c::crc32c_append(place, rest).to_le_bytes()
}

/// The rows of a part, in their order. Ends behind the first that is damaged.
pub struct PartReader {
    bytes: Bytes,
    at: usize,
}

impl PartReader {
    /// Reads the rows in `bytes`.
    ///
    /// # Errors
    /// If they are not a part, or of a version that this build does not know.
    pub fn new(bytes: Bytes) -> Result<Self, PartDamaged> {
        let wrong = |detail| PartDamaged { offset: 0, detail };
        let head = bytes.get(..HEAD_LEN).ok_or(wrong("it is too short"))?;
        if !head.starts_with(MAGIC) {
            return Err(wrong("it does not begin as rows of a backup do"));
        }
        if head[MAGIC.len()..] != PART_VERSION.to_le_bytes() {
            return Err(wrong(
                "it is of a version that this build does not know: run the version that wrote it",
            ));
        }
        Ok(Self {
            bytes,
            at: HEAD_LEN,
        })
    }

    fn read(&self) -> Result<(PartRow, usize), &'static str> {
        const SHORT: &str = "it ends within a row";
        let rest = &self.bytes[self.at..];
        let (crc, body) = rest.split_first_chunk::<CRC_LEN>().ok_or(SHORT)?;
        let (head, _) = body
            .split_first_chunk::<{ ROW_LEN - CRC_LEN }>()
            .ok_or(SHORT)?;
        let [kind, k0, k1, v0, v1, v2, v3] = *head;
        let key_len = usize::from(u16::from_le_bytes([k0, k1]));
        let value_len = u32::from_le_bytes([v0, v1, v2, v3]) as usize;
        if key_len == 0 || key_len > MAX_KEY_LEN || value_len > MAX_VALUE_LEN {
            return Err("a row has an impossible length");
        }
        let end = ROW_LEN + key_len + value_len;
        let body = rest.get(CRC_LEN..end).ok_or(SHORT)?;
        if checksum(self.at, body) != *crc {
            return Err("the row does not match its checksum");
        }
        let key_at = self.at + ROW_LEN;
        let key = Key::from(&self.bytes[key_at..key_at + key_len]);
        let value = self.bytes.slice(key_at + key_len..self.at + end);
        let row = if kind == EXTENT {
            PartRow::Extent(extent(key, &value).ok_or("an extent does not fit together")?)
        } else {
            let space = Space::ALL.get(usize::from(kind)).copied();
            let space = space.ok_or("the row is of a kind that this build does not know")?;
            PartRow::Row { space, key, value }
        };
        Ok((row, self.at + end))
    }
}

fn extent(start: Key, value: &[u8]) -> Option<ExtentInfo> {
    let (segment, rest) = value.split_first_chunk()?;
    let (bytes, end) = rest.split_first_chunk()?;
    // One longer than a key may be: the end is a key's successor.
    if end <= &start[..] || end.len() > MAX_KEY_LEN + 1 {
        return None;
    }
    Some(ExtentInfo {
        start,
        end: Key::from(end),
        segment: u64::from_le_bytes(*segment),
        bytes: u64::from_le_bytes(*bytes),
    })
}

impl Iterator for PartReader {
    type Item = Result<PartRow, PartDamaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        match self.read() {
            Ok((row, next)) => {
                self.at = next;
                Some(Ok(row))
            }
            Err(detail) => {
                let offset = std::mem::replace(&mut self.at, self.bytes.len());
                Some(Err(PartDamaged { offset, detail }))
            }
        }
    }
}

/// A directory of segments that holds one, in memory.
pub(super) struct OneFile {
    pub(super) name: PathBuf,
    pub(super) bytes: Bytes,
}

impl ReadAt for OneFile {
    fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| ErrorKind::UnexpectedEof)?;
        let end = start.checked_add(bytes.len());
        let found = end.and_then(|end| self.bytes.get(start..end));
        bytes.copy_from_slice(found.ok_or(ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn byte_len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Files for OneFile {
    fn create(&self, _: u64) -> io::Result<Box<dyn NewFile>> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, _: u64) -> io::Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(Self {
            name: self.name.clone(),
            bytes: self.bytes.clone(),
        }))
    }

    fn remove(&self, _: u64) -> io::Result<()> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_aside(&self, _: u64) -> io::Result<PathBuf> {
        Err(ErrorKind::ReadOnlyFilesystem.into())
    }

    fn list(&self) -> io::Result<Vec<StoredFile>> {
        Ok(Vec::new())
    }

    fn remove_unfinished(&self) -> io::Result<usize> {
        Ok(0)
    }

    fn path(&self, _: u64) -> PathBuf {
        self.name.clone()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rows() -> impl Strategy<Value = Vec<PartRow>> {
        let key = || prop::collection::vec(any::<u8>(), 1..30);
        let value = prop::collection::vec(any::<u8>(), 0..200);
        let row = (0..Space::COUNT, key(), value).prop_map(|(space, key, value)| PartRow::Row {
            space: Space::ALL[space],
            key: Key::from(&key[..]),
            value: value.into(),
        });
        let extent =
            (key(), key(), any::<u64>(), any::<u64>()).prop_map(|(start, tail, segment, bytes)| {
                let start = Key::from(&start[..]);
                PartRow::Extent(ExtentInfo {
                    end: start.clone().push_bytes(&tail),
                    start,
                    segment,
                    bytes,
                })
            });
        prop::collection::vec(prop_oneof![row, extent], 1..20)
    }

    fn written(rows: &[PartRow]) -> Part {
        let mut part = PartWriter::new();
        for row in rows {
            match row {
                PartRow::Row { space, key, value } => part.row(*space, key, value),
                PartRow::Extent(extent) => part.extent(extent),
            }
        }
        part.finish().unwrap()
    }

    proptest! {
        #[test]
        fn rows_read_back(rows in rows()) {
            let part = written(&rows);
            prop_assert_eq!(part.rows, rows.len() as u64);
            let read: Result<Vec<_>, _> = PartReader::new(part.bytes).unwrap().collect();
            prop_assert_eq!(read.unwrap(), rows);
        }

        #[test]
        fn a_flipped_bit_is_noticed_where_it_is(rows in rows(), bit: usize) {
            let part = written(&rows);
            let mut bytes = part.bytes.to_vec();
            let bit = bit % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            let read = PartReader::new(bytes.into());
            let found = read.and_then(|rows| rows.collect::<Result<Vec<_>, _>>());
            let damaged = found.unwrap_err();
            prop_assert!(damaged.offset <= bit / 8);
        }

        #[test]
        fn any_bytes_are_rows_or_damaged(bytes: Vec<u8>, body: Vec<u8>) {
            let _ = PartReader::new(bytes.into()).map(Iterator::count);
            let whole = [&MAGIC[..], &PART_VERSION.to_le_bytes(), &body].concat();
            let read = PartReader::new(whole.into()).unwrap();
            let _ = read.count();
        }
    }

    /// A backup of this version must be read by every later one.
    #[test]
    fn golden_bytes() {
        let part = written(&[
            PartRow::Row {
                space: Space::Catalog,
                key: Key::from("k"),
                value: Bytes::from_static(b"v"),
            },
            PartRow::Extent(ExtentInfo {
                start: Key::from("a"),
                end: Key::from("b"),
                segment: 3,
                bytes: 4,
            }),
        ]);
        let head = b"MILLPRT\n\x01\0\0\0";
        assert_eq!(&part.bytes[..12], head);
        assert_eq!(&part.bytes[16..25], b"\x06\x01\0\x01\0\0\0kv");
        let extent = b"\xe0\x01\0\x11\0\0\0a\x03\0\0\0\0\0\0\0\x04\0\0\0\0\0\0\0b";
        assert_eq!(&part.bytes[29..], extent);
        let (first, second) = (checksum(12, &part.bytes[16..25]), checksum(25, extent));
        assert_eq!(
            (&part.bytes[12..16], &part.bytes[25..29]),
            (&first[..], &second[..])
        );
    }

    #[test]
    fn another_version_and_other_files_are_refused() {
        let mut bytes = written(&[PartRow::Row {
            space: Space::Meta,
            key: Key::from("k"),
            value: Bytes::new(),
        }])
        .bytes
        .to_vec();
        bytes[8] = 9;
        let refused = PartReader::new(bytes.into()).err().unwrap();
        assert!(refused.detail.contains("version"), "{refused}");
        assert!(PartReader::new(Bytes::from_static(b"something else")).is_err());
        assert!(PartReader::new(Bytes::new()).is_err());
    }
}
