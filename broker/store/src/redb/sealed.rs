//! The rows that say what is sealed: reading them, and changing them within a write transaction.

mod kept;

use std::ops::Range;
use std::sync::Arc;

use ::redb::{Error as RedbError, ReadableTable, Table, WriteTransaction};

use self::kept::kept;
use super::extent::{Extent, RowDamaged, SegmentRow, run_of, successor, without};
use super::meter::SealedTotals;
use super::records::WriteFault;
use super::{ENGINE, EXTENTS, FLOOR, NEXT_SEGMENT, SEGMENTS};
use crate::batch::Key;
use crate::segment::Segments;

/// A record that lies in a new segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SealedEntry {
    pub(super) key: Key,
    /// Bytes of key and value.
    pub(super) bytes: u64,
}

/// An extent that a new segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Moved {
    /// Where it begins.
    pub(super) start: Key,
    /// As it stood when it was copied.
    pub(super) extent: Extent,
    /// Bytes of the keys and values that were found in it, none if there were none. After a cut
    /// the extent itself knows them only about.
    pub(super) bytes: u64,
    /// It becomes one with the extent that was moved before it, its neighbour.
    pub(super) joins: bool,
}

/// The sealed part of the store, open for change in one transaction.
pub(super) struct SealedTables<'t> {
    extents: Table<'t, &'static [u8], &'static [u8]>,
    segments: Table<'t, u64, &'static [u8]>,
    /// Segments that no extent lies in any more.
    emptied: Vec<u64>,
    change: SealedTotals,
}

fn opened<T, E: Into<RedbError>>(result: Result<T, E>) -> Result<T, WriteFault> {
    result.map_err(|error| WriteFault::Engine(error.into()))
}

impl<'t> SealedTables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, WriteFault> {
        Ok(Self {
            extents: opened(transaction.open_table(EXTENTS))?,
            segments: opened(transaction.open_table(SEGMENTS))?,
            emptied: Vec::new(),
            change: SealedTotals::default(),
        })
    }

    /// What has changed in the segments as a whole.
    pub(super) fn change(&self) -> SealedTotals {
        self.change
    }

    /// Gives up the tables; returns the segments whose last extent was removed.
    pub(super) fn finish(self) -> Vec<u64> {
        self.emptied
    }

    /// The first extent that reaches into `range`, with where it begins.
    fn first_in(&self, range: &Range<&[u8]>) -> Result<Option<(Key, Extent)>, WriteFault> {
        let before = opened(self.extents.range::<&[u8]>(..=range.start))?.next_back();
        if let Some(row) = before {
            let (start, row) = opened(row)?;
            let extent = read_extent(start.value(), row.value())?;
            if &extent.end[..] > range.start {
                return Ok(Some((Key::from(start.value()), extent)));
            }
        }
        match opened(self.extents.range::<&[u8]>(range.clone()))?.next() {
            Some(row) => {
                let (start, row) = opened(row)?;
                let extent = read_extent(start.value(), row.value())?;
                Ok(Some((Key::from(start.value()), extent)))
            }
            None => Ok(None),
        }
    }

    /// Takes `range` out of the extents. How much is left of those it cuts is told by [`kept`]; the
    /// rest is what their segment loses, so that its row stays the sum of its extents.
    pub(super) fn cut(
        &mut self,
        range: &Range<&[u8]>,
        segments: &Segments,
    ) -> Result<(), WriteFault> {
        while let Some((start, extent)) = self.first_in(range)? {
            opened(self.extents.remove(&start[..]))?;
            let row = self.segment(extent.segment)?;
            let parts = without(&start, &extent.end, (range.start, range.end));
            let whole = &start[..]..&extent.end[..];
            let mut left = extent.bytes;
            let mut pieces = 0;
            for (from, to) in parts.into_iter().flatten() {
                // An index that cannot be read gives the error to whoever reads the records.
                let segment = segments.get(extent.segment, row.file_bytes).ok();
                let bytes = kept(&whole, extent.bytes, &(from..to), segment.as_deref()).min(left);
                left -= bytes;
                pieces += 1;
                self.insert(from, to, extent.segment, bytes)?;
            }
            let row = SegmentRow {
                live_bytes: row.live_bytes.saturating_sub(left),
                extents: (row.extents + pieces).saturating_sub(1),
                ..row
            };
            self.set_segment(extent.segment, row)?;
            if pieces == 2 {
                break;
            }
        }
        Ok(())
    }

    /// Adds a finished segment that holds `entries`, in the order of their keys. `gap_before`
    /// says of an entry that its extent must begin at it.
    pub(super) fn add(
        &mut self,
        (number, file_bytes): (u64, u64),
        entries: &[SealedEntry],
        gap_before: impl Fn(usize) -> bool,
        segments: &Segments,
    ) -> Result<(), WriteFault> {
        let mut row = SegmentRow {
            file_bytes,
            ..SegmentRow::default()
        };
        let mut first = 0;
        for at in 1..=entries.len() {
            let ends = entries.get(at).is_none_or(|next| {
                run_of(&next.key) != run_of(&entries[first].key) || gap_before(at)
            });
            if ends {
                row.extents += self.add_run(number, &entries[first..at], segments)?;
                first = at;
            }
        }
        row.data_bytes = entries.iter().map(|entry| entry.bytes).sum();
        row.live_bytes = row.data_bytes;
        self.set_segment(number, row)
    }

    /// Adds one run; returns how many extents it became.
    fn add_run(
        &mut self,
        number: u64,
        run: &[SealedEntry],
        segments: &Segments,
    ) -> Result<u64, WriteFault> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(0);
        };
        let end = successor(&last.key);
        if self.first_in(&(&first.key[..]..&end[..]))?.is_none() {
            let bytes = run.iter().map(|entry| entry.bytes).sum();
            self.insert(&first.key, &end, number, bytes)?;
            return Ok(1);
        }
        // Something older lies in between: keys that were put again, or out of order. The log
        // never does either; the seam allows both.
        for entry in run {
            let end = successor(&entry.key);
            self.cut(&(&entry.key[..]..&end[..]), segments)?;
            self.insert(&entry.key, &end, number, entry.bytes)?;
        }
        Ok(run.len() as u64)
    }

    fn insert(
        &mut self,
        start: &[u8],
        end: &[u8],
        segment: u64,
        bytes: u64,
    ) -> Result<(), WriteFault> {
        let end = Key::from(end);
        let extent = Extent {
            segment,
            end,
            bytes,
        };
        opened(self.extents.insert(start, &extent.encode(start)[..]))?;
        Ok(())
    }

    /// The row of a segment that extents name.
    fn segment(&self, number: u64) -> Result<SegmentRow, WriteFault> {
        let row = opened(self.segments.get(number))?;
        let row = row.ok_or(WriteFault::Row {
            table: "segments",
            why: RowDamaged,
        })?;
        SegmentRow::decode(number, row.value()).map_err(|why| WriteFault::Row {
            table: "segments",
            why,
        })
    }

    fn set_segment(&mut self, number: u64, row: SegmentRow) -> Result<(), WriteFault> {
        let old = if row.extents == 0 {
            self.emptied.push(number);
            opened(self.segments.remove(number))?
        } else {
            self.change.add(&row);
            opened(self.segments.insert(number, &row.encode(number)[..]))?
        };
        if let Some(old) = old.and_then(|old| SegmentRow::decode(number, old.value()).ok()) {
            self.change.remove(&old);
        }
        Ok(())
    }

    /// Moves extents to the new segment (number and length of its file), as far as they stand as
    /// they stood; neighbours that join become one. Those in which nothing was found go; those that
    /// were cut stay where they are, and their copies are nobody's. Says whether any stood: if none
    /// did, nothing has changed, and the new segment is not wanted.
    pub(super) fn replace(
        &mut self,
        new: Option<(u64, u64)>,
        moved: &[Moved],
    ) -> Result<bool, WriteFault> {
        let mut row = SegmentRow {
            file_bytes: new.map_or(0, |(_, file_bytes)| file_bytes),
            ..SegmentRow::default()
        };
        let (mut any_stood, mut open) = (false, None);
        for copied in moved {
            row.data_bytes += copied.bytes;
            let stands = self.take_standing(copied)?;
            any_stood |= stands;
            // What was cut has copies in the new segment that nobody may see: no extent reaches
            // over them.
            if !stands || !copied.joins || !self.is_next(open.as_ref(), copied)? {
                self.settle(open.take(), &mut row)?;
            }
            match (&mut open, new) {
                (_, None) => {}
                _ if !stands || copied.bytes == 0 => {}
                (Some((_, joined)), _) => {
                    joined.end = copied.extent.end.clone();
                    joined.bytes += copied.bytes;
                }
                (None, Some((segment, _))) => {
                    let extent = Extent {
                        segment,
                        end: copied.extent.end.clone(),
                        bytes: copied.bytes,
                    };
                    open = Some((copied.start.clone(), extent));
                }
            }
        }
        self.settle(open, &mut row)?;
        if let Some((number, _)) = new
            && any_stood
        {
            self.set_segment(number, row)?;
        }
        Ok(any_stood)
    }

    /// Takes a copied extent out of its old segment, if it stands as it stood.
    fn take_standing(&mut self, copied: &Moved) -> Result<bool, WriteFault> {
        let Moved { start, extent, .. } = copied;
        let standing = opened(self.extents.get(&start[..]))?;
        if standing.is_none_or(|standing| standing.value() != extent.encode(start)) {
            return Ok(false);
        }
        opened(self.extents.remove(&start[..]))?;
        let old = self.segment(extent.segment)?;
        let left = SegmentRow {
            live_bytes: old.live_bytes.saturating_sub(extent.bytes),
            extents: old.extents.saturating_sub(1),
            ..old
        };
        self.set_segment(extent.segment, left)?;
        Ok(true)
    }

    /// Whether nothing lies between the extent that was begun, if one was, and the next.
    fn is_next(&self, open: Option<&(Key, Extent)>, next: &Moved) -> Result<bool, WriteFault> {
        let Some((start, _)) = open else {
            return Ok(true);
        };
        let mut between = opened(self.extents.range::<&[u8]>(&start[..]..&next.start[..]))?;
        Ok(run_of(start) == run_of(&next.start) && between.next().is_none())
    }

    /// Writes the row of an extent of the new segment that is complete.
    fn settle(
        &mut self,
        extent: Option<(Key, Extent)>,
        row: &mut SegmentRow,
    ) -> Result<(), WriteFault> {
        let Some((start, extent)) = extent else {
            return Ok(());
        };
        self.insert(&start, &extent.end, extent.segment, extent.bytes)?;
        row.live_bytes += extent.bytes;
        row.extents += 1;
        Ok(())
    }
}

fn read_extent(start: &[u8], row: &[u8]) -> Result<Extent, WriteFault> {
    Extent::decode(start, row).map_err(|why| WriteFault::Row {
        table: "extents",
        why,
    })
}

/// Records that packs below `floor` are sealed, and which number the next segment gets.
pub(super) fn set_marks(
    transaction: &WriteTransaction,
    floor: u64,
    next_segment: u64,
) -> Result<(), WriteFault> {
    let mut table = opened(transaction.open_table(ENGINE))?;
    opened(table.insert(FLOOR, floor))?;
    opened(table.insert(NEXT_SEGMENT, next_segment))?;
    Ok(())
}

/// Forgets and unlinks the files of segments that nobody reads any more, but for a backup.
pub(super) fn unlink(segments: &Arc<Segments>, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        segments.unlink(number);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use ::redb::{Database, backends::InMemoryBackend};

    use super::*;
    use crate::redb::extent::RUN_PREFIX;

    const OLD: u64 = 1;
    const NEW: (u64, u64) = (2, 500);

    /// A key of the only run.
    fn key(at: u8) -> Key {
        Key::from([0; RUN_PREFIX]).push_bytes(&[at])
    }

    fn extent(segment: u64, end: u8, bytes: u64) -> Extent {
        let end = key(end);
        Extent {
            segment,
            end,
            bytes,
        }
    }

    fn moved(start: u8, extent: Extent, bytes: u64) -> Moved {
        let start = key(start);
        Moved {
            start,
            extent,
            bytes,
            joins: false,
        }
    }

    /// Runs `work` on an old segment with extents of 100 bytes from 10 and 20 on, and one of 50
    /// from 30 on, which is what a cut has left.
    fn with_tables(work: impl FnOnce(&mut SealedTables<'_>)) {
        let backend = InMemoryBackend::new();
        let database = Database::builder().create_with_backend(backend).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut tables = SealedTables::open(&transaction).unwrap();
        for (start, end, bytes) in [(10, 15, 100), (20, 25, 100), (30, 33, 50)] {
            tables.insert(&key(start), &key(end), OLD, bytes).unwrap();
        }
        let row = SegmentRow {
            file_bytes: 400,
            data_bytes: 300,
            live_bytes: 250,
            extents: 3,
        };
        tables.set_segment(OLD, row).unwrap();
        work(&mut tables);
    }

    fn at(tables: &SealedTables<'_>, start: u8) -> Option<Extent> {
        let row = tables.extents.get(&key(start)[..]).unwrap();
        row.map(|row| Extent::decode(&key(start), row.value()).unwrap())
    }

    /// Moves all three, each joining the one before, as they were copied: with what was found.
    fn join(tables: &mut SealedTables<'_>, copies: [(u8, u8, u64, u64); 3]) {
        let copy = |(start, end, bytes, found)| Moved {
            joins: start > 10,
            ..moved(start, extent(OLD, end, bytes), found)
        };
        assert!(tables.replace(Some(NEW), &copies.map(copy)).unwrap());
        let rows = tables.extents.iter().unwrap().map(|row| {
            let (start, row) = row.unwrap();
            Extent::decode(start.value(), row.value()).unwrap()
        });
        let rows: Vec<Extent> = rows.collect();
        for number in [OLD, NEW.0] {
            let extents = rows.iter().filter(|extent| extent.segment == number);
            let bytes: u64 = extents.clone().map(|extent| extent.bytes).sum();
            let counted = tables.segment(number).unwrap_or_default();
            let found = (extents.count() as u64, bytes);
            assert_eq!((counted.extents, counted.live_bytes), found, "{number}");
        }
    }

    #[test]
    fn neighbours_become_one() {
        with_tables(|tables| {
            join(
                tables,
                [(10, 15, 100, 101), (20, 25, 100, 102), (30, 33, 50, 53)],
            );
            assert_eq!(at(tables, 10), Some(extent(NEW.0, 33, 256)));
            assert_eq!((at(tables, 20), at(tables, 30)), (None, None));
            assert_eq!(tables.emptied, [OLD]);
        });
    }

    #[test]
    fn an_empty_neighbour_is_passed_over() {
        with_tables(|tables| {
            join(
                tables,
                [(10, 15, 100, 100), (20, 25, 100, 0), (30, 33, 50, 50)],
            );
            assert_eq!(at(tables, 10), Some(extent(NEW.0, 33, 150)));
            assert_eq!((at(tables, 20), at(tables, 30)), (None, None));
        });
    }

    /// The copies of what was cut are in the new segment: no extent may reach over them.
    #[test]
    fn what_was_cut_parts_its_neighbours() {
        with_tables(|tables| {
            join(
                tables,
                [(10, 15, 100, 100), (20, 28, 130, 130), (30, 33, 50, 50)],
            );
            assert_eq!(at(tables, 10), Some(extent(NEW.0, 15, 100)));
            assert_eq!(at(tables, 20), Some(extent(OLD, 25, 100)));
            assert_eq!(at(tables, 30), Some(extent(NEW.0, 33, 50)));
        });
        with_tables(|tables| {
            let old = tables.extents.remove(&key(20)[..]).unwrap();
            drop(old);
            let row = tables.segment(OLD).unwrap();
            let left = SegmentRow {
                live_bytes: row.live_bytes - 100,
                extents: 2,
                ..row
            };
            tables.set_segment(OLD, left).unwrap();
            join(
                tables,
                [(10, 15, 100, 100), (20, 25, 100, 100), (30, 33, 50, 50)],
            );
            assert_eq!(at(tables, 10), Some(extent(NEW.0, 15, 100)));
            assert_eq!(at(tables, 20), None);
            assert_eq!(at(tables, 30), Some(extent(NEW.0, 33, 50)));
        });
    }

    #[test]
    fn what_lies_between_is_not_reached_over() {
        with_tables(|tables| {
            tables.insert(&key(27), &key(28), OLD, 1).unwrap();
            let row = tables.segment(OLD).unwrap();
            let more = SegmentRow {
                live_bytes: row.live_bytes + 1,
                extents: 4,
                ..row
            };
            tables.set_segment(OLD, more).unwrap();
            join(
                tables,
                [(10, 15, 100, 100), (20, 25, 100, 100), (30, 33, 50, 50)],
            );
            assert_eq!(at(tables, 10), Some(extent(NEW.0, 25, 200)));
            assert_eq!(at(tables, 27), Some(extent(OLD, 28, 1)));
            assert_eq!(at(tables, 30), Some(extent(NEW.0, 33, 50)));
        });
    }

    #[test]
    fn what_was_cut_meanwhile_stays_and_the_rest_moves() {
        with_tables(|tables| {
            let copies = [
                moved(10, extent(OLD, 15, 100), 100),
                // Found empty.
                moved(20, extent(OLD, 25, 100), 0),
                moved(30, extent(OLD, 35, 100), 90),
                // Gone altogether.
                moved(40, extent(OLD, 45, 100), 70),
            ];
            assert!(tables.replace(Some(NEW), &copies).unwrap());
            assert_eq!(at(tables, 10), Some(extent(NEW.0, 15, 100)));
            assert_eq!(at(tables, 20), None);
            assert_eq!(at(tables, 30), Some(extent(OLD, 33, 50)));
            assert_eq!(at(tables, 40), None);
            let row = SegmentRow {
                file_bytes: NEW.1,
                data_bytes: 260,
                live_bytes: 100,
                extents: 1,
            };
            assert_eq!(tables.segment(NEW.0).unwrap(), row);
            let left = tables.segment(OLD).unwrap();
            assert_eq!((left.live_bytes, left.extents), (50, 1));
            assert!(tables.emptied.is_empty());
        });
    }

    #[test]
    fn nothing_changes_if_nothing_stands() {
        with_tables(|tables| {
            let before = tables.segment(OLD).unwrap();
            let copies = [moved(30, extent(OLD, 35, 100), 90)];
            assert!(!tables.replace(Some(NEW), &copies).unwrap());
            assert_eq!(tables.segment(OLD).unwrap(), before);
            assert!(tables.segment(NEW.0).is_err());
            assert!(tables.emptied.is_empty());
        });
    }

    /// Its file goes the way of every segment that has become empty.
    #[test]
    fn a_new_segment_of_which_nothing_is_wanted_is_empty_at_once() {
        with_tables(|tables| {
            let copies = [
                moved(20, extent(OLD, 25, 100), 0),
                moved(30, extent(OLD, 35, 100), 90),
            ];
            assert!(tables.replace(Some(NEW), &copies).unwrap());
            assert!(tables.segment(NEW.0).is_err());
            assert_eq!(tables.emptied, [NEW.0]);
        });
    }
}
