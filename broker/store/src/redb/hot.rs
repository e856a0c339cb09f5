//! Which record batches the hot file holds, and where: an ordered index in memory.
//!
//! Only the writer changes it; snapshots read it, each with its own [`Sight`], so that what they
//! see stands still while the writer goes on. A pack is visible from the commit that wrote it
//! until it is sealed; a single entry until the commit in which it *dies*. What died stays until
//! no snapshot can see it any more.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::pack::{self, Entry};
use crate::batch::Key;
use crate::store::Direction;

/// The commit in which what is alive dies.
const NEVER: u64 = u64::MAX;

/// What one snapshot sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sight {
    /// The first pack that is not sealed.
    pub(super) floor: u64,
    /// One behind the last pack.
    pub(super) end: u64,
    /// The commit whose state this is.
    pub(super) commit: u64,
}

/// Where a value lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pack: u64,
    pub(super) offset: u32,
    /// With its trailer.
    pub(super) len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    offset: u32,
    len: u32,
    dies: u64,
}

/// A pack with something alive in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct PackUse {
    /// Entries that are alive.
    entries: usize,
    /// Bytes it takes in the file, whatever is alive in it.
    bytes: u64,
}

#[derive(Debug, Default)]
pub(super) struct HotIndex {
    slots: BTreeMap<(Key, u64), Slot>,
    packs: BTreeMap<u64, PackUse>,
    /// What died or was sealed, in the order of the commits.
    dead: VecDeque<(u64, (Key, u64))>,
    alive: usize,
    occupied: u64,
    /// Entries that came or died since entries were last forgotten.
    stirred: usize,
}

/// How many entries are forgotten at once, unless more came and died meanwhile: sealing a segment
/// of small records must not make one commit wait for all of them.
const FORGET_AT_ONCE: usize = 4096;

impl HotIndex {
    /// Takes the entries of a new pack.
    pub(super) fn insert(&mut self, pack: u64, entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        let used = self.packs.entry(pack).or_default();
        used.entries += entries.len();
        self.alive += entries.len();
        self.stirred += entries.len();
        let before = used.bytes;
        // Removed entries leave gaps: the end of the last one is what the pack takes.
        let ends = entries
            .iter()
            .map(|entry| entry.offset as usize + entry.len as usize);
        let len = ends.max().unwrap_or_default();
        used.bytes = used.bytes.max(pack::space(len, &entries));
        for entry in entries {
            let slot = Slot {
                offset: entry.offset,
                len: entry.len,
                dies: NEVER,
            };
            self.slots.insert((entry.key, pack), slot);
        }
        self.occupied += used.bytes - before;
    }

    /// The entry at `key` in `pack` is not part of the state after `commit`.
    pub(super) fn kill(&mut self, pack: u64, key: Key, commit: u64) {
        let at = (key, pack);
        let Some(slot) = self.slots.get_mut(&at) else {
            return;
        };
        slot.dies = commit;
        self.alive -= 1;
        self.stirred += 1;
        if let Some(used) = self.packs.get_mut(&pack) {
            used.entries -= 1;
            if used.entries == 0 {
                self.occupied -= used.bytes;
                self.packs.remove(&pack);
            }
        }
        self.dead.push_back((commit, at));
    }

    /// The packs below `floor` are sealed by `commit`; `entries` are what is alive in them. They
    /// stay for views that still see those packs. Returns the packs and their bytes.
    pub(super) fn seal(
        &mut self,
        floor: u64,
        entries: Vec<(Key, u64)>,
        commit: u64,
    ) -> Vec<(u64, u64)> {
        self.alive -= entries.len();
        self.dead.extend(entries.into_iter().map(|at| (commit, at)));
        let kept = self.packs.split_off(&floor);
        let sealed = std::mem::replace(&mut self.packs, kept);
        let sealed: Vec<_> = sealed
            .into_iter()
            .map(|(pack, used)| (pack, used.bytes))
            .collect();
        self.occupied -= sealed.iter().map(|(_, bytes)| bytes).sum::<u64>();
        sealed
    }

    /// Whether something died in `commit` or before that is not forgotten.
    pub(super) fn remembers(&self, commit: u64) -> bool {
        self.dead.front().is_some_and(|(died, _)| *died <= commit)
    }

    /// Forgets what died in `commit` or before, some of it at a time, but never less than what is
    /// to be forgotten grows by.
    pub(super) fn forget(&mut self, commit: u64) {
        for _ in 0..FORGET_AT_ONCE.max(2 * std::mem::take(&mut self.stirred)) {
            if self.dead.front().is_none_or(|(died, _)| *died > commit) {
                return;
            }
            if let Some((_, at)) = self.dead.pop_front() {
                self.slots.remove(&at);
            }
        }
    }

    /// Bytes that the packs take in the file which are not sealed.
    pub(super) fn occupied(&self) -> u64 {
        self.occupied
    }

    /// How many entries are alive.
    pub(super) fn alive(&self) -> usize {
        self.alive
    }

    fn seen(sight: &Sight, pack: u64, slot: &Slot) -> Option<Place> {
        let visible = (sight.floor..sight.end).contains(&pack) && sight.commit < slot.dies;
        visible.then_some(Place {
            pack,
            offset: slot.offset,
            len: slot.len,
        })
    }

    /// Where the value at `key` lies.
    pub(super) fn find(&self, sight: &Sight, key: &[u8]) -> Option<Place> {
        let key = Key::from(key);
        let versions = (key.clone(), 0)..=(key, u64::MAX);
        let mut versions = self.slots.range(versions).rev();
        versions.find_map(|((_, pack), slot)| Self::seen(sight, *pack, slot))
    }

    /// Calls `take` with what lies between the bounds, in the direction's order, until it says no.
    pub(super) fn walk(
        &self,
        sight: &Sight,
        (start, end): (Bound<&[u8]>, Bound<&[u8]>),
        direction: Direction,
        mut take: impl FnMut(&Key, Place) -> bool,
    ) {
        let start = match start {
            Bound::Included(key) => Bound::Included((Key::from(key), 0)),
            Bound::Excluded(key) => Bound::Excluded((Key::from(key), u64::MAX)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let end = match end {
            Bound::Included(key) => Bound::Included((Key::from(key), u64::MAX)),
            Bound::Excluded(key) => Bound::Excluded((Key::from(key), 0)),
            Bound::Unbounded => Bound::Unbounded,
        };
        let range = self.slots.range((start, end));
        let see = |(at, slot): (&'_ (Key, u64), &Slot)| Self::seen(sight, at.1, slot);
        match direction {
            Direction::Forward => {
                for row in range {
                    if see(row).is_some_and(|place| !take(&row.0.0, place)) {
                        return;
                    }
                }
            }
            Direction::Backward => {
                for row in range.rev() {
                    if see(row).is_some_and(|place| !take(&row.0.0, place)) {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(key: u8) -> Entry {
        Entry {
            key: Key::from([key]),
            offset: u32::from(key),
            len: 4 + u32::from(key),
        }
    }

    fn seen(index: &HotIndex, sight: &Sight) -> Vec<(u8, u64)> {
        let mut rows = Vec::new();
        let all = (Bound::Unbounded, Bound::Unbounded);
        index.walk(sight, all, Direction::Forward, |key, place| {
            assert_eq!(index.find(sight, key), Some(place));
            rows.push((key[0], place.pack));
            true
        });
        let mut back = Vec::new();
        index.walk(sight, all, Direction::Backward, |key, place| {
            back.push((key[0], place.pack));
            true
        });
        back.reverse();
        assert_eq!(rows, back);
        rows
    }

    #[derive(Clone, Debug)]
    struct Commit {
        puts: Vec<u8>,
        deletes: Vec<u8>,
        /// Whether everything written before is sealed with it.
        seals: bool,
        /// Whether the snapshots taken before are given up after it.
        forgets: bool,
    }

    fn commits() -> impl Strategy<Value = Vec<Commit>> {
        let keys = || prop::collection::btree_set(0u8..12, 0..5);
        let commit = (keys(), keys(), prop::bool::weighted(0.1), any::<bool>()).prop_map(
            |(puts, deletes, seals, forgets)| Commit {
                puts: puts.into_iter().collect(),
                deletes: deletes.into_iter().collect(),
                seals,
                forgets,
            },
        );
        prop::collection::vec(commit, 1..20)
    }

    #[test]
    fn what_dies_is_forgotten_as_fast_as_it_comes() {
        let mut index = HotIndex::default();
        let keys = |commit: u64| (0..20_000u32).map(move |n| (commit << 32) | u64::from(n));
        for commit in 1..20 {
            let entry = |n: u64| Entry {
                key: Key::from(n.to_be_bytes()),
                offset: 0,
                len: 4,
            };
            if commit > 1 {
                for n in keys(commit - 1) {
                    index.kill(commit - 1, Key::from(n.to_be_bytes()), commit);
                }
            }
            index.insert(commit, keys(commit).map(entry).collect());
            index.forget(commit);
            assert!(
                index.slots.len() <= 2 * 20_000,
                "{} entries",
                index.slots.len()
            );
        }
        while index.remembers(20) {
            index.forget(20);
        }
        assert_eq!(index.slots.len(), 20_000);
    }

    proptest! {
        /// Against a map copied at every commit.
        #[test]
        fn every_snapshot_stands_still(commits in commits()) {
            let mut index = HotIndex::default();
            let mut model = BTreeMap::<u8, u64>::new();
            let mut snapshots: Vec<(Sight, Vec<(u8, u64)>)> = Vec::new();
            let mut floor = 0;
            for (number, commit) in (1..).zip(commits) {
                for key in &commit.deletes {
                    if let Some(pack) = model.remove(key) {
                        index.kill(pack, Key::from([*key]), number);
                    }
                }
                for key in &commit.puts {
                    if let Some(old) = model.insert(*key, number) {
                        index.kill(old, Key::from([*key]), number);
                    }
                }
                index.insert(number, commit.puts.iter().map(|key| entry(*key)).collect());
                if commit.seals {
                    let sealed = std::mem::take(&mut model).into_iter();
                    let sealed = sealed.map(|(key, pack)| (Key::from([key]), pack)).collect();
                    let packs = index.seal(number + 1, sealed, number);
                    prop_assert!(packs.iter().all(|(pack, bytes)| *pack <= number && *bytes > 0));
                    prop_assert_eq!(index.occupied(), 0);
                    floor = number + 1;
                }
                if commit.forgets {
                    snapshots.clear();
                    index.forget(number);
                }
                let sight = Sight { floor, end: number + 1, commit: number };
                snapshots.push((sight, model.iter().map(|(key, pack)| (*key, *pack)).collect()));
                for (sight, rows) in &snapshots {
                    prop_assert_eq!(&seen(&index, sight), rows);
                }
                prop_assert_eq!(index.alive(), model.len());
                let packs: BTreeMap<u64, ()> = model.values().map(|pack| (*pack, ())).collect();
                prop_assert_eq!(index.occupied() == 0, packs.is_empty());
            }
        }
    }
}
