//! What is sealed at once: the oldest packs, put in order a part at a time.
//!
//! What lies where is in memory for the whole portion, the values only for one part of it: a run of
//! entries in the order of their keys, whose values are gathered from all over the packs into one
//! buffer. Each part is read through a view of its own, so that the hot file can use again what
//! commits free while a segment is being written.

use std::collections::HashSet;

use ::redb::AccessGuard;

use super::SealError;
use crate::batch::Key;
use crate::limits::{SEAL_ENTRIES, SEAL_RUNS};
use crate::redb::extent::run_of;
use crate::redb::pack::{self, Entry};
use crate::redb::read::Fault;
use crate::redb::sealed::SealedEntry;
use crate::redb::view::View;
use crate::space::Space;
use crate::trailer;

/// Entries that are looked up in the index under one lock, for which the writer may wait.
const LOOKUPS_AT_ONCE: usize = 256;

/// The oldest packs that are not sealed.
pub(super) struct Portion {
    /// The first pack behind them.
    pub(super) through: u64,
    /// What is alive in them, in the order of the keys.
    pub(super) entries: Vec<Packed>,
    /// How often something had been taken out of packs when they were looked at.
    pub(super) kills: u64,
}

/// An entry of a pack.
pub(super) struct Packed {
    entry: Entry,
    pack: u64,
    /// Removed since the packs were looked at.
    gone: bool,
}

impl Packed {
    /// What the writer is told of it, with its pack, unless it was left out.
    pub(super) fn sealed(self) -> Option<(SealedEntry, u64)> {
        let bytes = self.entry.bytes();
        let key = self.entry.key;
        (!self.gone).then_some((SealedEntry { key, bytes }, self.pack))
    }
}

/// The oldest packs: as many as make `wanted` bytes, or hold as much as one segment takes. `None`
/// if there are none.
pub(super) fn oldest(view: &View, wanted: u64) -> Result<Option<Portion>, SealError> {
    let mut portion = Portion {
        through: 0,
        entries: Vec::new(),
        kills: view.kills,
    };
    let mut runs: HashSet<Key> = HashSet::new();
    let mut bytes = 0;
    for row in view.directories()?.range(view.sight.floor..)? {
        let (number, row) = row?;
        let number = number.value();
        let directory = pack::decode_directory(number, row.value())
            .map_err(|why| SealError::Damaged(format!("pack {number}: {why}")))?;
        let ends = directory
            .iter()
            .map(|entry| u64::from(entry.offset) + u64::from(entry.len));
        bytes += ends.max().unwrap_or_default();
        for entry in directory {
            let run = Key::from(run_of(&entry.key));
            runs.insert(run);
            portion.entries.push(Packed {
                entry,
                pack: number,
                gone: false,
            });
        }
        portion.through = number + 1;
        let is_full = runs.len() >= SEAL_RUNS || portion.entries.len() >= SEAL_ENTRIES;
        if bytes >= wanted || is_full {
            break;
        }
    }
    portion
        .entries
        .sort_unstable_by(|a, b| a.entry.key.cmp(&b.entry.key));
    Ok((!portion.entries.is_empty()).then_some(portion))
}

/// How many of the first of `entries` make a part: their values take no more than `bytes`, unless
/// one alone does.
pub(super) fn part_len(entries: &[Packed], bytes: usize) -> usize {
    let mut left = bytes;
    let fits = |packed: &&Packed| {
        let rest = left.checked_sub(packed.entry.len as usize);
        left = rest.unwrap_or_default();
        rest.is_some()
    };
    entries.iter().take_while(fits).count().max(1)
}

/// Marks those of `part` that have been removed since the portion was looked at.
pub(super) fn mark_gone(view: &View, part: &mut [Packed], kills: u64) {
    if view.kills == kills {
        return;
    }
    for entries in part.chunks_mut(LOOKUPS_AT_ONCE) {
        view.indexed(|index, sight| {
            for packed in entries {
                let place = index.find(sight, &packed.entry.key);
                packed.gone = place.is_none_or(|place| place.pack != packed.pack);
            }
        });
    }
}

/// Reads the values of those of `part` that are not gone into `values`, in the order of the keys.
pub(super) fn read_part(
    view: &View,
    part: &[Packed],
    values: &mut Vec<u8>,
) -> Result<(), SealError> {
    let mut order: Vec<(u64, u32, u32, usize)> = Vec::with_capacity(part.len());
    let mut total = 0;
    for Packed { entry, pack, .. } in part.iter().filter(|packed| !packed.gone) {
        order.push((*pack, entry.offset, entry.len, total));
        total += entry.len as usize;
    }
    values.clear();
    values.resize(total, 0);
    // Each chunk is read once, whatever the order of the keys.
    order.sort_unstable();
    let mut chunks = Chunks { view, held: None };
    for (pack, offset, len, at) in order {
        chunks.read(pack, offset as usize, &mut values[at..at + len as usize])?;
    }
    Ok(())
}

/// Calls `take` with each of `part` that is not gone, its key and its value as [`read_part`] has
/// left it in `values`, in order.
pub(super) fn each_value(
    part: &[Packed],
    values: &[u8],
    mut take: impl FnMut(&[u8], &[u8]) -> Result<(), SealError>,
) -> Result<(), SealError> {
    let mut rest = values;
    for Packed { entry, .. } in part.iter().filter(|packed| !packed.gone) {
        let (stored, behind) = rest.split_at(entry.len as usize);
        rest = behind;
        trailer::open(Space::Records, &entry.key, stored)
            .map_err(|damaged| Fault::Value(entry.key.clone(), damaged))?;
        take(&entry.key, stored)?;
    }
    Ok(())
}

/// The chunks of packs, the last of which is kept.
struct Chunks<'v> {
    view: &'v View,
    held: Option<Chunk>,
}

struct Chunk {
    pack: u64,
    /// Its first byte within the pack.
    start: usize,
    bytes: AccessGuard<'static, &'static [u8]>,
}

impl Chunk {
    /// Its bytes from `at` of `pack` on, if it has any.
    fn from(&self, pack: u64, at: usize) -> Option<&[u8]> {
        let within = at.checked_sub(self.start).filter(|_| self.pack == pack)?;
        let bytes = self.bytes.value().get(within..)?;
        (!bytes.is_empty()).then_some(bytes)
    }
}

impl Chunks<'_> {
    /// Fills `into` from byte `at` of `pack` on.
    fn read(&mut self, pack: u64, mut at: usize, mut into: &mut [u8]) -> Result<(), SealError> {
        while !into.is_empty() {
            let held = self.held.as_ref();
            if held.is_none_or(|chunk| chunk.from(pack, at).is_none()) {
                self.held = Some(self.find(pack, at)?);
            }
            let held = self.held.as_ref();
            let found = held.and_then(|chunk| chunk.from(pack, at));
            let found = found.ok_or_else(|| lacking(pack))?;
            let taken = found.len().min(into.len());
            let (now, later) = into.split_at_mut(taken);
            now.copy_from_slice(&found[..taken]);
            (into, at) = (later, at + taken);
        }
        Ok(())
    }

    /// The chunk of `pack` that begins at `at` or before.
    fn find(&self, pack: u64, at: usize) -> Result<Chunk, SealError> {
        let upto = u32::try_from(at).map_err(|_| lacking(pack))?;
        let mut rows = self.view.packs()?.range((pack, 0)..=(pack, upto))?;
        let (start, bytes) = rows.next_back().ok_or_else(|| lacking(pack))??;
        Ok(Chunk {
            pack,
            start: start.value().1 as usize,
            bytes,
        })
    }
}

fn lacking(pack: u64) -> SealError {
    SealError::Damaged(format!("pack {pack} lacks a chunk"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(len: u32) -> Packed {
        let entry = Entry {
            key: Key::from([1]),
            offset: 0,
            len,
        };
        Packed {
            entry,
            pack: 0,
            gone: false,
        }
    }

    #[test]
    fn a_part_is_as_much_as_fits_or_one_that_does_not() {
        let check = |lens: &[u32], bytes, expected| {
            let entries: Vec<Packed> = lens.iter().map(|len| packed(*len)).collect();
            assert_eq!(part_len(&entries, bytes), expected, "{lens:?} in {bytes}");
        };
        check(&[10, 10, 10], 30, 3);
        check(&[10, 10, 10], 29, 2);
        check(&[31, 1], 30, 1);
        check(&[10, 31, 1], 30, 1);
        check(&[5], 0, 1);
    }
}
