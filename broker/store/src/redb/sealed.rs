//! The rows that say what is sealed: reading them, and changing them within a write transaction.

use std::ops::Range;
use std::sync::Arc;

use ::redb::{Error as RedbError, ReadableTable, Table, WriteTransaction};

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

    /// Takes `range` out of the extents. How much of a segment was cut is known to its index.
    pub(super) fn cut(
        &mut self,
        range: &Range<&[u8]>,
        segments: &Segments,
    ) -> Result<(), WriteFault> {
        while let Some((start, extent)) = self.first_in(range)? {
            opened(self.extents.remove(&start[..]))?;
            let row = self.segment(extent.segment)?;
            let parts = without(&start, &extent.end, (range.start, range.end));
            let kept = |part: &(&[u8], &[u8])| {
                // An index that cannot be read gives the error to whoever reads the records.
                let segment = segments.get(extent.segment, row.file_bytes);
                segment.map_or(0, |segment| segment.bytes_in(part.0..part.1))
            };
            let mut left = extent.bytes;
            let mut pieces = 0;
            for part in parts.into_iter().flatten() {
                let bytes = kept(&part).min(left);
                left -= bytes;
                pieces += 1;
                self.insert(part.0, part.1, extent.segment, bytes)?;
            }
            let row = SegmentRow {
                live_bytes: row.live_bytes.saturating_sub(left),
                extents: row.extents + pieces - 1,
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

    /// Moves extents to the new segment (number and length of its file), if all of them stand as
    /// they stood. Those in which nothing was found go. Says whether it was done.
    pub(super) fn replace(
        &mut self,
        new: Option<(u64, u64)>,
        moved: &[Moved],
    ) -> Result<bool, WriteFault> {
        for Moved { start, extent, .. } in moved {
            let row = opened(self.extents.get(&start[..]))?;
            let stands = row.is_some_and(|row| row.value() == extent.encode(start));
            if !stands {
                return Ok(false);
            }
        }
        let (mut data_bytes, mut extents) = (0, 0);
        for Moved {
            start,
            extent,
            bytes,
        } in moved
        {
            let old = self.segment(extent.segment)?;
            let left = SegmentRow {
                live_bytes: old.live_bytes.saturating_sub(extent.bytes),
                extents: old.extents - 1,
                ..old
            };
            self.set_segment(extent.segment, left)?;
            match new {
                Some((number, _)) if *bytes > 0 => {
                    self.insert(start, &extent.end, number, *bytes)?;
                    data_bytes += bytes;
                    extents += 1;
                }
                _ => drop(opened(self.extents.remove(&start[..]))?),
            }
        }
        if let Some((number, file_bytes)) = new {
            let row = SegmentRow {
                file_bytes,
                data_bytes,
                live_bytes: data_bytes,
                extents,
            };
            self.set_segment(number, row)?;
        }
        Ok(true)
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
