//! What one group commit does to the record batches: what it appends becomes a pack, what it
//! removes leaves the directories of the packs it lies in.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, Range};

use ::redb::{Error as RedbError, ReadableTable, WriteTransaction};
use bytes::Bytes;

use super::extent::{RowDamaged, successor};
use super::hot::{HotIndex, Sight};
use super::meter::SealedTotals;
use super::pack::{self, DirectoryDamaged, Entry};
use super::sealed::SealedTables;
use super::{DIRECTORIES, PACKS};
use crate::batch::{Key, Op};
use crate::limits::{PACK_BYTES, TRAILER_LEN};
use crate::segment::Segments;
use crate::space::Space;
use crate::store::Direction;
use crate::trailer;

/// Why a change of the record batches could not be written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteFault {
    #[error(transparent)]
    Engine(#[from] RedbError),
    #[error("pack {pack}: {why}")]
    Directory { pack: u64, why: DirectoryDamaged },
    #[error("a row of {table}: {why}")]
    Row {
        table: &'static str,
        why: RowDamaged,
    },
}

/// Gathers the operations of one commit. Nothing is written until [`RecordsChange::write`].
pub(super) struct RecordsChange<'i, 'a> {
    index: &'i HotIndex,
    sight: Sight,
    puts: BTreeMap<&'a Key, &'a [Bytes]>,
    /// What dies, by the pack it lies in.
    killed: BTreeMap<u64, BTreeSet<Key>>,
    /// What is taken out of the sealed segments. They hold nothing that this commit puts.
    cuts: Vec<Range<Key>>,
}

/// What was written, for the index to take over once it is committed.
#[derive(Default)]
pub(super) struct RecordsWritten {
    packs: Vec<(u64, Vec<Entry>)>,
    killed: BTreeMap<u64, BTreeSet<Key>>,
    /// Segments that hold nothing any more.
    pub(super) emptied: Vec<u64>,
    /// Whether something may have been taken out of segments.
    pub(super) cut: bool,
    /// What that changed in them as a whole.
    pub(super) sealed: SealedTotals,
}

impl<'i, 'a> RecordsChange<'i, 'a> {
    /// A change of what `sight` shows.
    pub(super) fn new(index: &'i HotIndex, sight: Sight) -> Self {
        Self {
            index,
            sight,
            puts: BTreeMap::new(),
            killed: BTreeMap::new(),
            cuts: Vec::new(),
        }
    }

    /// Takes an operation on [`Space::Records`].
    pub(super) fn take(&mut self, op: &'a Op) {
        match op {
            Op::Put { key, parts, .. } => {
                self.kill(key);
                self.puts.insert(key, parts);
            }
            Op::Delete { key, .. } => {
                self.kill(key);
                self.puts.remove(key);
                self.cut(key.clone()..successor(key));
            }
            Op::DeleteRange { start, end, .. } if start < end => {
                self.puts.retain(|key, _| !(start..end).contains(key));
                let range = (Bound::Included(&start[..]), Bound::Excluded(&end[..]));
                let killed = &mut self.killed;
                self.index
                    .walk(&self.sight, range, Direction::Forward, |key, place| {
                        killed.entry(place.pack).or_default().insert(key.clone());
                        true
                    });
                self.cut(start.clone()..end.clone());
            }
            Op::DeleteRange { .. } => {}
        }
    }

    fn kill(&mut self, key: &Key) {
        if let Some(place) = self.index.find(&self.sight, key) {
            let killed = self.killed.entry(place.pack).or_default();
            killed.insert(key.clone());
        }
    }

    fn cut(&mut self, range: Range<Key>) {
        // Nothing has been sealed as long as the first pack is not.
        if self.sight.floor > 0 {
            self.cuts.push(range);
        }
    }

    /// Writes the change into `transaction`. `scratch` is where chunks are put together.
    pub(super) fn write(
        self,
        transaction: &WriteTransaction,
        segments: &Segments,
        scratch: &mut Vec<u8>,
    ) -> Result<RecordsWritten, WriteFault> {
        if !self.killed.is_empty() {
            remove(transaction, &self.killed)?;
        }
        let (mut emptied, mut change) = (Vec::new(), SealedTotals::default());
        if !self.cuts.is_empty() {
            let mut sealed = SealedTables::open(transaction)?;
            for range in &self.cuts {
                sealed.cut(&(&range.start[..]..&range.end[..]), segments)?;
            }
            change = sealed.change();
            emptied = sealed.finish();
        }
        let mut packs = Vec::new();
        let mut puts = self.puts.into_iter().peekable();
        while puts.peek().is_some() {
            let number = self.sight.end + packs.len() as u64;
            let (entries, pieces) = lay_out(&mut puts);
            write_pack(transaction, number, &pieces, scratch)?;
            let directory = pack::encode_directory(number, &entries);
            let mut table = opened(transaction.open_table(DIRECTORIES))?;
            opened(table.insert(number, &directory[..]))?;
            packs.push((number, entries));
        }
        Ok(RecordsWritten {
            packs,
            killed: self.killed,
            emptied,
            cut: !self.cuts.is_empty(),
            sealed: change,
        })
    }
}

impl RecordsWritten {
    /// Whether something was taken from what was there before.
    pub(super) fn killed(&self) -> bool {
        !self.killed.is_empty()
    }

    /// Bytes of the packs that were written.
    pub(super) fn bytes(&self) -> u64 {
        let entries = self.packs.iter().flat_map(|(_, entries)| entries);
        entries.map(|entry| u64::from(entry.len)).sum()
    }

    /// How many packs were written.
    pub(super) fn packs(&self) -> u64 {
        self.packs.len() as u64
    }

    /// Takes the change over into the index; `commit` is its number.
    pub(super) fn apply(self, index: &mut HotIndex, commit: u64) {
        for (pack, keys) in self.killed {
            for key in keys {
                index.kill(pack, key, commit);
            }
        }
        for (pack, entries) in self.packs {
            index.insert(pack, entries);
        }
    }
}

fn opened<T, E: Into<RedbError>>(result: Result<T, E>) -> Result<T, WriteFault> {
    result.map_err(|error| WriteFault::Engine(error.into()))
}

/// Takes values until a pack is full: where they lie, and their pieces in that order.
fn lay_out<'a>(
    puts: &mut impl Iterator<Item = (&'a Key, &'a [Bytes])>,
) -> (Vec<Entry>, Vec<Piece<'a>>) {
    let (mut entries, mut pieces, mut offset) = (Vec::new(), Vec::new(), 0usize);
    for (key, parts) in puts {
        let len = parts.iter().map(Bytes::len).sum::<usize>() + TRAILER_LEN;
        entries.push(Entry {
            key: key.clone(),
            offset: offset as u32,
            len: len as u32,
        });
        pieces.extend(parts.iter().map(Piece::Part));
        pieces.push(Piece::Trailer(trailer::of_parts(
            Space::Records,
            key,
            parts,
        )));
        offset += len;
        if offset >= PACK_BYTES {
            break;
        }
    }
    (entries, pieces)
}

enum Piece<'a> {
    Part(&'a Bytes),
    Trailer([u8; TRAILER_LEN]),
}

impl Piece<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Part(part) => part,
            Self::Trailer(trailer) => trailer,
        }
    }
}

/// Writes the pieces as chunks. redb's `insert_reserve` would spare the copy into `chunk` and make
/// two others: it inserts a new buffer of zeros first.
fn write_pack(
    transaction: &WriteTransaction,
    number: u64,
    pieces: &[Piece<'_>],
    chunk: &mut Vec<u8>,
) -> Result<(), WriteFault> {
    let mut table = opened(transaction.open_table(PACKS))?;
    let mut left: usize = pieces.iter().map(|piece| piece.bytes().len()).sum();
    let mut start = 0u32;
    let mut wanted = pack::chunk_len(left);
    chunk.clear();
    for piece in pieces {
        let mut rest = piece.bytes();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(wanted - chunk.len()));
            chunk.extend_from_slice(now);
            rest = later;
            if chunk.len() == wanted {
                opened(table.insert((number, start), &chunk[..]))?;
                left -= wanted;
                start += wanted as u32;
                wanted = pack::chunk_len(left);
                chunk.clear();
            }
        }
    }
    Ok(())
}

/// Takes entries out of the directories of their packs, and packs without entries out of the file.
fn remove(
    transaction: &WriteTransaction,
    killed: &BTreeMap<u64, BTreeSet<Key>>,
) -> Result<(), WriteFault> {
    let mut directories = opened(transaction.open_table(DIRECTORIES))?;
    let mut packs = opened(transaction.open_table(PACKS))?;
    for (&pack, keys) in killed {
        let damaged = |why| WriteFault::Directory { pack, why };
        let row = opened(directories.get(pack))?.map(|row| row.value().to_vec());
        let row = row.ok_or_else(|| damaged(DirectoryDamaged::Missing))?;
        let mut entries = pack::decode_directory(pack, &row).map_err(damaged)?;
        entries.retain(|entry| !keys.contains(&entry.key));
        if entries.is_empty() {
            opened(directories.remove(pack))?;
            opened(packs.retain_in((pack, 0)..=(pack, u32::MAX), |_, _| false))?;
        } else {
            let row = pack::encode_directory(pack, &entries);
            opened(directories.insert(pack, &row[..]))?;
        }
    }
    Ok(())
}
