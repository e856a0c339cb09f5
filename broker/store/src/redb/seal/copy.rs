//! Copying extents into a new segment, a part at a time.
//!
//! Extents come in the order of their keys and lie in many segments. For each part, a few megabytes
//! of them, the segments are read one after the other, so that a block that holds several of them
//! is read once, and the values are gathered in one buffer. An extent that is larger than a part is
//! copied by itself, as it is read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::paced::Paced;
use super::round::Source;
use super::{SealError, Sealer};
use crate::batch::Key;
use crate::limits::TRAILER_LEN;
use crate::redb::extent::{RowDamaged, SegmentRow};
use crate::redb::read::Fault;
use crate::redb::sealed::Moved;
use crate::redb::view::View;
use crate::segment::limits::BLOCK_BYTES;
use crate::segment::{Segment, SegmentError, Summary};
use crate::store::{Direction, Row};

/// The lengths of the files that hold extents, by segment.
pub(super) type FileLens = HashMap<u64, u64>;

/// The lengths of the files that `sources` lie in.
pub(super) fn file_lens(view: &View, sources: &[Source]) -> Result<FileLens, SealError> {
    let mut lens = FileLens::new();
    for source in sources {
        let number = source.extent.segment;
        if lens.contains_key(&number) {
            continue;
        }
        let damaged = |why| Fault::Row(Key::new().push_u64(number), why);
        let row = view.segment_rows()?.get(number)?;
        let row = row.ok_or_else(|| damaged(RowDamaged))?;
        let row = SegmentRow::decode(number, row.value()).map_err(damaged)?;
        lens.insert(number, row.file_bytes);
    }
    Ok(lens)
}

/// Values of a part, in the order in which they were read.
#[derive(Default)]
struct Gathered {
    /// Which source each came from, its key, and where it lies in the buffer.
    rows: Vec<(usize, Key, Range<usize>)>,
}

/// Extents are counted about, after a cut: a part may turn out to be so many times too large.
const PART_SLACK: usize = 2;

impl Sealer {
    /// Copies `sources` into a new segment; says how much was found in each. There is no new
    /// segment if nothing was.
    ///
    /// No view is needed meanwhile: only this thread removes the files of segments.
    pub(super) fn copy(
        &mut self,
        sources: Vec<Source>,
        lens: &FileLens,
    ) -> Result<(Option<Summary>, Vec<Moved>), SealError> {
        let mut target = None;
        let mut found = vec![0; sources.len()];
        let mut done = 0;
        while done < sources.len() {
            let (part, found) = (&sources[done..], &mut found[done..]);
            done += self.copy_part(part, found, lens, &mut target)?;
        }
        let segment = match target {
            Some(writer) => Some(writer.finish()?),
            None => None,
        };
        let moved = sources.into_iter().zip(found);
        let moved = moved.map(|(source, bytes)| Moved {
            start: source.start,
            extent: source.extent,
            bytes,
            joins: source.joins,
        });
        Ok((segment, moved.collect()))
    }

    /// Copies the first of `sources`, and says how many. Adds to `found` what was in each.
    fn copy_part(
        &mut self,
        sources: &[Source],
        found: &mut [u64],
        lens: &FileLens,
        target: &mut Option<Paced>,
    ) -> Result<usize, SealError> {
        let room = self.part_bytes();
        let mut len = part_len(sources, room as u64);
        let mut values = std::mem::take(&mut self.values);
        let gathered = loop {
            // One alone is never gathered: it may have any size.
            if len < 2 {
                break None;
            }
            values.clear();
            values.reserve(room);
            let most = room.saturating_mul(PART_SLACK);
            match self.gather(&sources[..len], lens, &mut values, most) {
                Ok(None) => len /= 2,
                Ok(gathered) => break gathered,
                Err(error) => {
                    self.keep(values);
                    return Err(error);
                }
            }
        };
        let written = match gathered {
            Some(gathered) => self.write(&gathered, &values, found, target),
            None => self.stream(&sources[0], &mut found[0], lens, target),
        };
        self.keep(values);
        written.map(|()| len.max(1))
    }

    /// Reads what `sources` hold, unless it is more than `most` bytes.
    fn gather(
        &mut self,
        sources: &[Source],
        lens: &FileLens,
        values: &mut Vec<u8>,
        most: usize,
    ) -> Result<Option<Gathered>, SealError> {
        let mut order: Vec<usize> = (0..sources.len()).collect();
        order.sort_by_key(|at| sources[*at].extent.segment);
        let mut gathered = Gathered::default();
        for same in order.chunk_by(|a, b| sources[*a].extent.segment == sources[*b].extent.segment)
        {
            let number = sources[same[0]].extent.segment;
            let segment = self.open(number, lens)?;
            let near = |a: &usize, b: &usize| is_near(&segment, &sources[*a], &sources[*b]);
            for cluster in same.chunk_by(near) {
                let read = gathered.read(&segment, sources, cluster, values, most);
                if !read.map_err(|why| self.avoid(number, why))? {
                    return Ok(None);
                }
            }
        }
        // The rows of each source are in order already.
        gathered.rows.sort_by_key(|(source, ..)| *source);
        Ok(Some(gathered))
    }

    fn write(
        &mut self,
        gathered: &Gathered,
        values: &[u8],
        found: &mut [u64],
        target: &mut Option<Paced>,
    ) -> Result<(), SealError> {
        for (source, key, range) in &gathered.rows {
            let stored = &values[range.clone()];
            self.target(target)?.push(key, stored)?;
            found[*source] += row_bytes(key, stored);
        }
        Ok(())
    }

    /// Copies one extent as it is read.
    fn stream(
        &mut self,
        source: &Source,
        found: &mut u64,
        lens: &FileLens,
        target: &mut Option<Paced>,
    ) -> Result<(), SealError> {
        let number = source.extent.segment;
        let segment = self.open(number, lens)?;
        let range = &source.start[..]..&source.extent.end;
        for row in segment.iter_range(range, Direction::Forward) {
            let Row { key, value } = row.map_err(|why| self.avoid(number, why))?;
            self.target(target)?.push(&key, &value)?;
            *found += row_bytes(&key, &value);
        }
        Ok(())
    }

    /// The new segment, begun if it is not.
    pub(super) fn target<'t>(
        &mut self,
        target: &'t mut Option<Paced>,
    ) -> Result<&'t mut Paced, SealError> {
        Ok(match target {
            Some(writer) => writer,
            None => target.insert(Paced::new(self.writer()?)),
        })
    }

    fn open(&mut self, number: u64, lens: &FileLens) -> Result<Arc<Segment>, SealError> {
        let len = lens.get(&number).copied().unwrap_or_default();
        let opened = self.segments.get(number, len);
        opened.map_err(|why| self.avoid(number, why))
    }
}

impl Gathered {
    /// Reads what the sources of `cluster` hold, which lie close together in `segment`. `false` if
    /// there is more than `most` bytes altogether.
    fn read(
        &mut self,
        segment: &Segment,
        sources: &[Source],
        cluster: &[usize],
        values: &mut Vec<u8>,
        most: usize,
    ) -> Result<bool, SegmentError> {
        let mut left = cluster.iter().copied();
        let (Some(mut at), Some(last)) = (left.next(), cluster.last()) else {
            return Ok(true);
        };
        let range = &sources[at].start[..]..&sources[*last].extent.end[..];
        let wanted = usize::try_from(segment.bytes_in(range.clone())).unwrap_or(usize::MAX);
        let rows = segment
            .iter_range(range, Direction::Forward)
            .wanting(wanted);
        for row in rows {
            let Row { key, value } = row?;
            while sources[at].extent.end <= key {
                // The last one ends where the range does.
                let Some(next) = left.next() else {
                    return Ok(true);
                };
                at = next;
            }
            if key < sources[at].start {
                continue;
            }
            if values.len() + value.len() > most {
                return Ok(false);
            }
            let start = values.len();
            values.extend_from_slice(&value);
            self.rows.push((at, key, start..values.len()));
        }
        Ok(true)
    }
}

/// How many of the first of `sources` make a part of `bytes`: one at least.
fn part_len(sources: &[Source], bytes: u64) -> usize {
    let mut left = bytes;
    let fits = |source: &&Source| {
        let rest = left.checked_sub(source.extent.bytes);
        left = rest.unwrap_or_default();
        rest.is_some()
    };
    sources.iter().take_while(fits).count().max(1)
}

/// Whether what lies between two extents of a segment is no more than what is read with them.
fn is_near(segment: &Segment, a: &Source, b: &Source) -> bool {
    let between = &a.extent.end[..]..&b.start[..];
    between.start >= between.end || segment.bytes_in(between) <= BLOCK_BYTES as u64
}

/// Bytes of a key and of the value in `stored`, as extents count them.
fn row_bytes(key: &[u8], stored: &[u8]) -> u64 {
    (key.len() + stored.len()).saturating_sub(TRAILER_LEN) as u64
}
